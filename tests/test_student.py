"""The student: sizes, exactness under padding, predict, the file, and standing alone."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from student import HEADS, POOLINGS, SIZES, Student, StudentConfig, StudentError

ROOT = Path(__file__).parent.parent
COUNTS = {"large": 1_175_554, "base": 391_170, "small": 146_434, "mini": 52_418, "tiny": 27_394}


def word_tokenizer(size: int) -> Tokenizer:
    """[PAD], [UNK], 단어2, 단어3, …"""
    words = ["[PAD]", "[UNK]"] + [f"단어{i}" for i in range(2, size)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def new_student(vocab=40, **options) -> Student:
    torch.manual_seed(0)
    options = {"embedding_dim": 6, "hidden_dim": 5, "blank_id": 1} | options
    return Student(StudentConfig(vocab, 3, **options), word_tokenizer(vocab), ["가", "나", "다"]).eval()


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_are_the_originals(size):
    embedding_dim, hidden_dim = SIZES[size]
    config = StudentConfig(3000, 2, embedding_dim=embedding_dim, hidden_dim=hidden_dim)
    student = Student(config, word_tokenizer(3000), ["0", "1"])
    assert sum(p.numel() for p in student.parameters()) == COUNTS[size]


def test_relu_head_has_one_hidden_layer_of_the_hidden_size():
    shapes = [tuple(p.shape) for p in new_student(head="relu").head.parameters()]
    assert shapes == [(5, 10), (5,), (3, 5), (3,)]


def test_equals_a_packed_bidirectional_lstm():
    """The same weights in nn.LSTM over packed sequences, PyTorch's own exact way, two layers."""
    student = new_student(num_layers=2)
    reference = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    for i, layer in enumerate(student.layers):
        for suffix, lstm in (("", layer.ahead), ("_reverse", layer.behind)):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(reference, f"{name}_l{i}{suffix}").data.copy_(getattr(lstm, f"{name}_l0").data)
    lengths = torch.tensor([7, 1, 4])
    input_ids = torch.randint(2, 40, (3, 7))
    packed = nn.utils.rnn.pack_padded_sequence(
        student.embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
    _, (hidden, _) = reference(packed)
    expected = student.head(torch.cat([hidden[-2], hidden[-1]], 1))
    torch.testing.assert_close(student(input_ids, lengths), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_and_neighbours_never_reach_a_row(pooling, num_layers):
    student = new_student(pooling=pooling, num_layers=num_layers, head=HEADS[num_layers - 1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        lengths = torch.randint(1, 12, (6,), generator=generator)
        longest = int(lengths.max()) + int(torch.randint(0, 5, (), generator=generator))
        # What stands in the padding must not matter either, so it is filled with tokens.
        input_ids = torch.randint(2, 40, (6, longest), generator=generator)
        together = student(input_ids, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = student(input_ids[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_lengths_every_row_is_full(pooling, num_layers):
    student = new_student(pooling=pooling, num_layers=num_layers)
    input_ids = torch.randint(2, 40, (3, 7))
    expected = student(input_ids, torch.tensor([7, 7, 7]))
    torch.testing.assert_close(student(input_ids), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean", "attention"])
def test_pooling_against_its_definition(pooling):
    student = new_student(pooling=pooling)
    states = torch.randn(4, 1, 10)
    padding = torch.tensor([False, False, False, True])[:, None, None]
    seen = states[:3, 0]
    if pooling == "attention":
        weights = (seen.tanh() @ student.attention.weight[0]).softmax(0)
        expected = (weights[:, None] * seen).sum(0)
    else:
        expected = seen.amax(0) if pooling == "max" else seen.mean(0)
    torch.testing.assert_close(student.pool(states, padding)[0], expected)


def test_predict_keeps_order_and_knows_blank_long_and_unknown_texts(monkeypatch):
    monkeypatch.setattr("student.CHUNK", 4)  # more than one chunk
    student = new_student(max_length=5)
    texts = ["단어2 단어3", "", "없는말", "단어4 " * 50, "단어2", "   "]
    together = student.predict(texts, max_tokens=10)
    assert together.shape == (6, 3)
    torch.testing.assert_close(together.sum(1), torch.ones(6))
    for i, text in enumerate(texts):
        torch.testing.assert_close(together[i : i + 1], student.predict([text]), rtol=0, atol=1e-6)
    by_hand = student(torch.tensor([[2, 3]]), torch.tensor([2])).softmax(1)
    torch.testing.assert_close(together[:1], by_hand, rtol=0, atol=1e-6)
    as_pair = student.predict(["단어2"], ["단어3"])  # this tokenizer joins them without [SEP]
    torch.testing.assert_close(as_pair, by_hand, rtol=0, atol=1e-6)
    assert torch.equal(together[1], together[2])  # a blank text is [UNK]
    torch.testing.assert_close(together[3:4], student.predict(["단어4 " * 5]), rtol=0, atol=1e-6)  # cut at 5


def test_predict_of_nothing_is_empty_and_training_mode_is_restored():
    student = new_student(dropout=0.5).train()
    assert student.predict([]).shape == (0, 3)
    assert torch.equal(student.predict(["단어2"]), student.predict(["단어2"]))  # no dropout
    assert student.training


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def watch(student, monkeypatch, see):
    """Call see(input_ids) before each forward."""
    forward = student.forward
    monkeypatch.setattr(student, "forward", lambda *args: (see(args[0]), forward(*args))[1])


def test_threads_share_a_large_list_and_change_nothing(monkeypatch, two_threads):
    monkeypatch.setattr("student.CHUNK", 50)
    monkeypatch.setattr("student.PART", 7)
    student = new_student(max_length=9)
    generator = torch.Generator().manual_seed(1)
    texts = [" ".join(f"단어{word}" for word in torch.randint(2, 40, (length,), generator=generator).tolist())
             for length in torch.randint(0, 12, (128,), generator=generator).tolist()]
    alone = torch.cat([student.predict([text]) for text in texts])
    seen, meet = [], threading.Barrier(2, timeout=30)

    def see(input_ids):
        if not seen:
            meet.wait()  # goes on when a second batch runs beside the first
        seen.append((threading.current_thread(), torch.get_num_threads(), input_ids.numel()))

    monkeypatch.setattr("student.SHARE", 64)
    watch(student, monkeypatch, see)
    together = student.predict(texts, max_tokens=20)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert threading.current_thread() not in {thread for thread, _, _ in seen}
    assert {count for _, count, _ in seen} == {1} and torch.get_num_threads() == 2
    assert max(tokens for _, _, tokens in seen) <= 20
    seen[:] = [()]
    student.predict(texts[1:])  # 127 texts are not worth two threads
    assert {(thread, count) for thread, count, _ in seen[1:]} == {(threading.current_thread(), 2)}


def test_an_error_in_a_thread_is_the_callers_and_the_setting_comes_back(monkeypatch, two_threads):
    monkeypatch.setattr("student.SHARE", 1)
    student = new_student()
    watch(student, monkeypatch, lambda input_ids: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        student.predict(["단어2"] * 10)
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as pool:  # a new thread starts with the process's setting
        assert pool.submit(torch.get_num_threads).result() == 2


def test_no_more_than_a_part_is_held_as_encodings(monkeypatch):
    monkeypatch.setattr("student.PART", 3)
    student, sizes = new_student(), []

    class Spy:
        no_padding, enable_truncation = student.tokenizer.no_padding, student.tokenizer.enable_truncation

        def encode_batch_fast(self, texts, encode=student.tokenizer.encode_batch_fast):
            sizes.append(len(texts))
            return encode(texts)

    student.tokenizer = Spy()
    student.predict(["단어2"] * 8)
    assert sizes == [3, 3, 2]


def test_precision_is_what_predict_is_told_in_every_thread(monkeypatch, two_threads):
    student, seen = new_student(), []

    def forward(*args):  # not the network: bf16 needs a processor that has it
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return torch.zeros(2, 3, dtype=torch.bfloat16)

    monkeypatch.setattr(student, "forward", forward)
    for share in (1, 1000):  # in threads, in this one
        monkeypatch.setattr("student.SHARE", share)
        with torch.autocast("cpu", torch.bfloat16):  # reaches this thread alone, so it must reach none
            student.predict(["단어2"] * 2)
        assert student.predict(["단어2"] * 2, precision="bf16").dtype == torch.float32
        assert seen == [False, torch.bfloat16]
        seen.clear()
    with pytest.raises(ValueError, match="precision is 'fp16', must be fp32 or bf16"):
        student.predict(["단어2"], precision="fp16")


def test_save_and_load_keep_everything(tmp_path):
    student = new_student(pooling="attention", head="relu", num_layers=2, dropout=0.25)
    student.save(tmp_path / "student.pt", scores={"valid_accuracy": 0.5})
    loaded = Student.load(tmp_path / "student.pt")
    assert loaded.config == student.config
    assert loaded.label_names == ["가", "나", "다"]
    assert loaded.artifact["scores"] == {"valid_accuracy": 0.5}
    texts = ["단어2 단어9", "", "단어30"]
    assert torch.equal(loaded.predict(texts), student.predict(texts))
    assert [path.name for path in tmp_path.iterdir()] == ["student.pt"]  # no temporary file stays


def test_base_with_its_tokenizer_is_under_1_6_megabytes(tmp_path):
    embedding_dim, hidden_dim = SIZES["base"]
    config = StudentConfig(3000, 2, embedding_dim=embedding_dim, hidden_dim=hidden_dim)
    Student(config, word_tokenizer(3000), ["0", "1"]).save(tmp_path / "student.pt")
    assert 391_170 * 4 < (tmp_path / "student.pt").stat().st_size < 1_600_000


class Bomb:
    """Pickles to code that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["missing", "text", "other kind", "format", "weights", "config", "code"])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "student.pt"
    new_student().save(path)
    artifact = torch.load(path, weights_only=True)
    if content == "missing":
        path.unlink()
    elif content == "text":
        path.write_text("이것은 모델이 아니다")
    elif content == "code":
        torch.save({"kind": "student", "bomb": Bomb(tmp_path / "harm")}, path)
    else:
        change = {"other kind": {"kind": "teacher"}, "format": {"format": 99}, "weights": {"weights": {}},
                  "config": {"config": artifact["config"] | {"hidden_dim": 7}}}[content]
        torch.save(artifact | change, path)
    with pytest.raises(StudentError) as error:
        Student.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("options", [
    {"hidden_dim": 0}, {"num_layers": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"pooling": "sum"},
    {"head": "gelu"},
])
def test_impossible_settings_are_refused(options):
    with pytest.raises(StudentError, match="must be"):
        new_student(**options)


def test_student_py_and_student_pt_work_in_an_empty_folder(tmp_path):
    """What README says to copy into an application is enough, from arguments and from standard input."""
    student = new_student()
    student.save(tmp_path / "student.pt")
    shutil.copy(ROOT / "student.py", tmp_path)
    probability, label = student.predict(["단어2 단어3"])[0].max(0)
    line = f"{student.label_names[label]}\t{probability:.4f}\t단어2 단어3\n"

    def script(*args, **options):
        return subprocess.run([sys.executable, "student.py", *args], cwd=tmp_path, capture_output=True,
                              encoding="utf-8", **options)

    assert script("student.pt", "단어2 단어3").stdout == line
    piped = script("student.pt", input="단어2 단어3\r\n\n단어2 단어3").stdout.splitlines(keepends=True)
    assert len(piped) == 3 and piped[0] == piped[2] == line
    refused = script("nothing.pt", "단어2")
    assert refused.returncode == 2
    assert refused.stderr == "error: nothing.pt: cannot read (No such file or directory)\n"
    (tmp_path / "students").mkdir()
    refused = script("students", "단어2")  # a slip, not a text
    assert refused.returncode == 2 and refused.stderr.endswith(
        "error: students is no text and no STUDENT.pt; files of texts go to standard input\n")


def test_predict_refuses_one_string():
    with pytest.raises(TypeError, match="a list of texts, not one string"):
        new_student().predict("단어2")


def test_standard_input_is_utf_8_whatever_the_locale_and_anything_else_is_refused(tmp_path):
    new_student().save(tmp_path / "student.pt")
    command = [sys.executable, ROOT / "student.py", tmp_path / "student.pt"]
    plain = subprocess.run([*command, "단어2"], capture_output=True).stdout
    posix = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with_bom = subprocess.run(command, input="\ufeff단어2\n".encode(), capture_output=True, env=posix)
    assert with_bom.stdout == plain
    cp949 = subprocess.run(command, input="단어2\n".encode("cp949"), capture_output=True, env=posix)
    assert cp949.returncode == 2 and cp949.stderr.startswith(b"error: ") and b"Traceback" not in cp949.stderr
