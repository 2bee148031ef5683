"""The student: sizes, exactness under padding, predict and its threads, the file, and standing alone."""

import copy
import inspect
import io
import json
import math
import os
import pickle
import re
import runpy
import shutil
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn

import runtime
import student as student_py
from student import (
    HEADS,
    POOLINGS,
    SHIPPED,
    SIZES,
    Student,
    StudentConfig,
    StudentError,
    check_archive,
    chosen,
    decode,
    pack_tokenizer,
    probabilities,
    unpack_tokenizer,
)

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


def test_the_embeddings_start_as_nn_embedding_starts_them():
    torch.manual_seed(0)
    expected = nn.Embedding(40, 6, padding_idx=3)
    found = new_student(pad_id=3).embedding
    assert torch.equal(found.weight, expected.weight) and not found.weight[3].any()
    assert found.padding_idx == 3 and found.weight.requires_grad


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
    torch.testing.assert_close(student.pool(states, padding, pooling)[0], expected)


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
    student.pairs = None  # as of an old file
    as_pair = student.predict(["단어2"], ["단어3"])  # this tokenizer joins them without [SEP]
    torch.testing.assert_close(as_pair, by_hand, rtol=0, atol=1e-6)
    assert torch.equal(together[1], together[2])  # a blank text is [UNK]
    torch.testing.assert_close(together[3:4], student.predict(["단어4 " * 5]), rtol=0, atol=1e-6)  # cut at 5


def test_predict_of_nothing_is_empty_and_training_mode_is_restored():
    student = new_student(dropout=0.5).train()
    assert student.predict([]).shape == (0, 3)
    assert torch.equal(student.predict(["단어2"]), student.predict(["단어2"]))  # no dropout
    assert student.training


def test_predict_divides_by_the_temperature():
    student = new_student()
    cool = student.predict(["단어2 단어3"])
    student.config.temperature = 4.0
    warm = student.predict(["단어2 단어3"])
    torch.testing.assert_close(warm, (cool.log() / 4).softmax(1), rtol=1e-5, atol=0)


def test_predict_refuses_one_string():
    with pytest.raises(TypeError, match="list"):
        new_student().predict("단어2")


class Series(list):
    """What pandas gives: iterating yields the values, whatever the index; [0] may be no row at all."""

    def __getitem__(self, row):
        raise KeyError(row)


def test_predict_takes_texts_from_any_iterable():
    student, texts = new_student(), ["단어2 단어3", "단어4"]
    expected = student.predict(texts)
    for same in (tuple(texts), iter(texts), Series(texts), np.array(texts), dict.fromkeys(texts)):
        assert torch.equal(student.predict(same), expected)


@pytest.mark.parametrize(("value", "error", "kind"), [
    (None, TypeError, "NoneType"), (math.nan, TypeError, "float"), (5, TypeError, "int"),
    (b"a", TypeError, "bytes"), (["단어2", "단어3"], TypeError, "list"), (("가", "나"), TypeError, "tuple"),
    ("단어2 \ud83d", ValueError, "surrogate")])
def test_what_is_not_a_text_is_named_by_row_and_type(value, error, kind, monkeypatch):
    monkeypatch.setattr("student.PART", 4)
    student, texts = new_student(), ["단어2"] * 10
    for rows in (9, 10):  # the wrong one is row 7
        wrong = [*texts[:7], value, *texts[: rows - 8]]
        with pytest.raises(error, match=rf"texts\[7\].*{kind}"):
            student.predict(wrong)
        with pytest.raises(error, match=rf"texts2\[7\].*{kind}"):
            student.logits(texts[:rows], wrong)


def test_texts2_of_another_length_is_refused_with_both():
    with pytest.raises(ValueError, match=r"3 .*texts2.* 2$"):
        new_student().predict(["단어2"] * 3, ["단어3"] * 2)


# ---- other tools -------------------------------------------------------------------------------------------


def test_copies_and_pickles_predict_the_same():
    student, texts = new_student(), ["단어2 단어3", ""]
    expected = student.predict(texts)
    for same in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(same.predict(texts), expected)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_predicts_nearly_the_same_in_float32(kind, tolerance):
    student, texts = new_student(), ["단어2 단어3", ""]
    expected = student.predict(texts)
    found = student.to(kind).predict(texts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore")  # PyTorch wants its users to move to torchao
def test_pytorchs_dynamic_quantization_predicts_nearly_the_same():
    student, texts = new_student(num_layers=2), ["단어2 단어3", "단어4", ""]
    found = torch.ao.quantization.quantize_dynamic(student, {nn.LSTM, nn.Linear})
    assert not isinstance(found.layers[0].ahead, nn.LSTM) and not isinstance(found.head, nn.Linear)
    torch.testing.assert_close(found.predict(texts), student.predict(texts), rtol=0, atol=0.01)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_is_right_for_other_shapes_than_its_own():
    student = new_student()
    traced = torch.jit.trace(student, (torch.randint(2, 40, (2, 6)), torch.tensor([6, 3])))
    input_ids, lengths = torch.randint(2, 40, (3, 9)), torch.tensor([2, 9, 5])
    torch.testing.assert_close(traced(input_ids, lengths), student(input_ids, lengths), rtol=0, atol=1e-6)


# ---- tasks -------------------------------------------------------------------------------------------------


def test_outputs_become_probabilities_and_answers_by_hand():
    found = probabilities(torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]]), "classification")
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75], [0.8, 0.2]]))
    answers = decode(found, ["부정", "긍정"], "classification")
    assert [answer for answer, _ in answers] == ["긍정", "부정"]
    assert [confidence for _, confidence in answers] == pytest.approx([0.75, 0.8])
    assert decode(torch.empty(0, 2), ["부정", "긍정"], "classification") == []


def test_answers_of_several_labels_by_hand():
    p, names = torch.tensor([[0.9, 0.4, 0.6], [0.1, 0.2, 0.3]]), ["가", "나", "다"]
    torch.testing.assert_close(probabilities(torch.logit(p), "multilabel"), p)
    assert chosen(p, names, "multilabel") == [["가", "다"], []]
    assert chosen(p, names, "multilabel", [0.95, 0.3, 0.25]) == [["나", "다"], ["다"]]
    found = decode(p, names, "multilabel", [0.95, 0.3, 0.25])
    assert [answer for answer, _ in found] == ["나,다", "다"]
    assert [sure for _, sure in found] == pytest.approx([0.1 * 0.4 * 0.6, 0.9 * 0.8 * 0.3])
    assert decode(p, ["가", "나, 라", "다"], "multilabel")[0][0] == '["가", "다"]'  # as JSON
    assert [answer for answer, _ in decode(p, names, "multilabel")] == ["가,다", "-"]


def test_scores_are_given_in_their_units(tmp_path):
    """Also in bf16, which has no digits for differences of 1 near 1,000."""
    student = Student(StudentConfig(40, 1, 8, 16, mean=1000.0, deviation=0.5), word_tokenizer(40), ["점수"],
                      "regression").eval()
    student.save(tmp_path / "s.pt")
    plain = Student(StudentConfig(40, 1, 8, 16), word_tokenizer(40), ["점수"], "regression").eval()
    plain.load_state_dict(student.state_dict())
    texts = ["단어3", "단어4 단어5", ""]
    found = Student.load(tmp_path / "s.pt").answers(texts)
    assert found == pytest.approx([1000 + 0.5 * score for score in plain.answers(texts)], abs=1e-3)
    assert student.answers(texts, precision="bf16") == pytest.approx(found, abs=0.01)
    assert student.predict(texts).shape == (3, 1) and student.answers([]) == []
    assert decode(torch.tensor([[1000.25]]), ["점수"], "regression") == [("1000.25", None)]


def test_a_label_is_the_answer_of_a_classification():
    student = new_student()
    texts = ["단어3", "단어4 단어5", ""]
    expected = [student.label_names[i] for i in student.predict(texts).argmax(1)]
    assert student.answers(texts) == expected and student.answers([]) == []


def test_a_file_says_no_more_than_its_task_needs(tmp_path):
    """So that a classifier is read by the student.py of an application that has an older one."""
    new_student().save(tmp_path / "s.pt")
    config = torch.load(tmp_path / "s.pt", weights_only=True)["config"]
    assert not {"thresholds", "mean", "deviation"} & config.keys() and len(config) == 12


def test_a_student_says_how_it_reads_and_for_which_task(tmp_path, monkeypatch):
    student = new_student(max_length=9, pad_id=3)
    assert student.reads == {"max_length": 9, "pad_id": 3, "blank_id": 1, "segments": False, "apart": False}
    assert student.task == "classification"
    monkeypatch.setitem(student_py.PROBABILITIES, "toy", torch.sigmoid)
    student.task = "toy"
    student.save(tmp_path / "s.pt")
    loaded = Student.load(tmp_path / "s.pt")
    assert loaded.task == "toy"
    with torch.no_grad():
        expected = student(torch.tensor([[2, 3]])).sigmoid()
    torch.testing.assert_close(loaded.predict(["단어2 단어3"]), expected, rtol=0, atol=1e-6)
    monkeypatch.delitem(student_py.PROBABILITIES, "toy")
    with pytest.raises(StudentError, match=r"'toy'.*classification"):
        Student.load(tmp_path / "s.pt")


# ---- threads -----------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    """What a Python thread starts with that has not used PyTorch."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


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
    torch.testing.assert_close(student.predict(texts[1:]), alone[1:], rtol=0, atol=1e-6)
    assert len({thread for thread, _, _ in seen[1:]}) == 1  # 127 texts are not worth two threads
    assert {count for _, count, _ in seen[1:]} == {1}


@pytest.mark.parametrize("share", [1, 1000])  # many texts, few texts
def test_every_other_thread_keeps_its_setting_also_after_an_error(monkeypatch, two_threads, share):
    monkeypatch.setattr("student.SHARE", share)
    student, seen = new_student(), []
    old, use, used = threading.Event(), threading.Event(), []

    def live():
        used.append(torch.get_num_threads())  # now it has a setting of its own
        old.set()
        use.wait(30)
        used.append(torch.get_num_threads())

    living = threading.Thread(target=live)
    living.start()
    old.wait(30)

    def see(input_ids):
        seen.append((torch.get_num_threads(), threads_of_a_new_thread()))
        if fail:
            raise ZeroDivisionError

    watch(student, monkeypatch, see)
    for fail in (False, True):
        if fail:
            with pytest.raises(ZeroDivisionError):
                student.predict(["단어2"] * 10)
        else:
            student.predict(["단어2"] * 10)
        assert torch.get_num_threads() == 2 and threads_of_a_new_thread() == 2
    use.set()
    living.join()
    assert used == [2, 2] and {*seen} == {(1, 2)}


def test_threads_of_an_application_predict_at_once_and_keep_their_settings(monkeypatch, two_threads):
    student, meet, counts = new_student(), threading.Barrier(4, timeout=30), [2, 3, 4, 5]
    expected = student.predict(["단어2 단어3", "단어4"])
    student_py.crew.cache_clear()  # new threads, which start at once
    seen = []
    watch(student, monkeypatch, lambda input_ids: seen.append(torch.get_num_threads()))

    def application(count):
        torch.get_num_threads()  # a thread's first use of PyTorch replaces what was set before
        torch.set_num_threads(count)
        meet.wait()
        found = [student.predict(["단어2 단어3", "단어4"]) for _ in range(20)]
        return torch.get_num_threads(), all(torch.equal(one, expected) for one in found)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(application, counts)) == [(count, True) for count in counts]
    assert {*seen} == {1} and torch.get_num_threads() == 2
    assert threads_of_a_new_thread() in counts  # the last that the application set


def test_a_thread_that_is_set_to_one_works_alone(monkeypatch, two_threads):
    torch.set_num_threads(1)
    student, seen = new_student(), []
    watch(student, monkeypatch, lambda input_ids: seen.append(threading.current_thread()))
    student.predict(["단어2"])
    assert seen == [threading.current_thread()]


def test_a_tokenizer_is_set_only_where_it_differs(two_threads):
    """While another thread tokenizes, tokenizers 0.20 to 0.22 refuse to be set: "Already borrowed"."""
    student, calls = new_student(max_length=7), []
    expected = student.predict(["단어2 단어3"])

    class Spy:
        def __getattr__(self, name, tokenizer=student.tokenizer):
            if name.startswith(("no_", "enable_")):
                calls.append(name)
            return getattr(tokenizer, name)

    student.tokenizer = Spy()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: student.predict(["단어2 단어3"]), range(100)))
    assert all(torch.equal(one, expected) for one in found) and not calls
    student.to_bytes()
    student.predict(["단어2 단어3"])
    assert not calls
    for change in (lambda: student.tokenizer.enable_padding(), lambda: student.tokenizer.no_truncation(),
                   lambda: student.tokenizer.enable_truncation(1, direction="left")):
        change()
        calls.clear()
        assert torch.equal(student.predict(["단어2 단어3"]), expected) and len(calls) == 1


def test_no_more_than_a_part_is_held_as_encodings(monkeypatch):
    monkeypatch.setattr("student.PART", 3)
    student, sizes = new_student(), []

    class Spy:
        def __getattr__(self, name, tokenizer=student.tokenizer):
            return getattr(tokenizer, name)

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
    with pytest.raises(ValueError, match="fp16"):
        student.predict(["단어2"], precision="fp16")


FORKED = """
import os, sys
import torch
from student import Student
torch.set_num_threads(2)
torch.randn(999, 999).softmax(1)  # OpenMP's threads of this Python thread, which a child has not
student, content = Student.load("student.pt"), open("student.pt", "rb").read()
few, many = ["단어2 단어3"] * 3, ["단어2 단어3"] * 600
def answers():
    return student.predict(few), student.predict(many), Student.load(content).predict(few)
before = answers()
if not (child := os.fork()):
    os._exit(7 if all(map(torch.equal, before, answers())) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 7)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_loads_and_predicts_as_its_parent_does(tmp_path):
    """gunicorn --preload. OpenMP lets a child wait forever for threads that its parent had."""
    new_student(3000, embedding_dim=64, hidden_dim=16).save(tmp_path / "student.pt", "int8")
    shutil.copy(ROOT / "student.py", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=tmp_path, env=environment, timeout=100,
                          capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_fork_waits_until_no_thread_sets_anything():
    """What is half set, and the lock itself, would stay so in the child."""
    with student_py.LOCK:
        forked = threading.Thread(target=lambda: os.fork() or os._exit(0))
        forked.start()
        forked.join(0.2)
        assert forked.is_alive()
    forked.join(30)
    assert not forked.is_alive() and os.wait()[1] == 0


# ---- the file ----------------------------------------------------------------------------------------------


def test_save_and_load_keep_everything(tmp_path):
    student = new_student(pooling="attention", head="relu", num_layers=2, dropout=0.25)
    student.save(tmp_path / "student.pt", scores={"valid_accuracy": 0.5})
    assert (tmp_path / "student.pt").read_bytes() == student.to_bytes(scores={"valid_accuracy": 0.5})
    loaded = Student.load(tmp_path / "student.pt")
    assert loaded.config == student.config and not loaded.training
    assert loaded.label_names == ["가", "나", "다"] and loaded.task == "classification"
    assert loaded.artifact["scores"] == {"valid_accuracy": 0.5}
    texts = ["단어2 단어9", "", "단어30"]
    assert torch.equal(loaded.predict(texts), student.predict(texts))
    assert [path.name for path in tmp_path.iterdir()] == ["student.pt"]  # no temporary file stays


class Forward:
    """A response: it reads once, has no name and cannot seek."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


def test_a_student_is_loaded_from_a_path_bytes_or_a_file(tmp_path):
    student, path = new_student(), tmp_path / "student.pt"
    student.save(path, "int8")
    content, expected = path.read_bytes(), Student.load(path).predict(["단어2 단어3"])
    archived = io.BytesIO()
    with zipfile.ZipFile(archived, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("models/student.pt", content)
    with open(path, "rb") as file, zipfile.ZipFile(archived) as zipped, \
            zipped.open("models/student.pt") as member:
        for source in (str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), file,
                       member, Forward(content)):
            assert torch.equal(Student.load(source).predict(["단어2 단어3"]), expected)


@pytest.mark.parametrize("change", [
    lambda data: data[:-9], lambda data: data + b" ", lambda data: repacked(data, zipfile.ZIP_DEFLATED),
    lambda data: flipped(data, data.index(b"PK\1\2") // 2, 1), lambda data: b"",
    lambda data: archive({"a/data.pkl": b"cos\nsystem\n."})])
def test_the_checks_hold_for_bytes_and_files_and_name_them(tmp_path, change):
    data, path = change(new_student().to_bytes()), tmp_path / "student.pt"
    path.write_bytes(data)
    with open(path, "rb") as file:
        for source, name in ((data, "<bytes>"), (io.BytesIO(data), "<bytes>"), (Forward(data), "<bytes>"),
                             (file, str(path)), (path, str(path))):
            with pytest.raises(StudentError) as error:
                Student.load(source)
            assert str(error.value).startswith(f"{name}: ") and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("source", [None, 2, io.StringIO("글")])
def test_what_is_neither_path_nor_bytes_nor_file_is_refused(source):
    with pytest.raises(StudentError, match=r"not a \.pt file"):
        Student.load(source)


def test_no_more_is_claimed_than_the_bytes_hold():
    artifact = torch.load(io.BytesIO(new_student().to_bytes()), weights_only=True)
    artifact["weights"] = {name: value[:1].clone().expand(value.shape)
                           for name, value in artifact["weights"].items()}
    with pytest.raises(StudentError, match="claim more"):
        Student.load(saved(artifact))


def test_a_library_that_is_too_old_is_named_with_the_version_that_is_needed(monkeypatch):
    content = new_student().to_bytes()
    needed = dict(line.split(">=") for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines())
    for name, old in (("torch", "2.9.1+cpu"), ("tokenizers", "0.19.1")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{name}.__version__", old)
            with pytest.raises(StudentError, match=rf"{name} {needed[name]} or newer.*{re.escape(old)}"):
                Student.load(content)
            patch.setattr(f"{name}.__version__", f"{needed[name]}.0rc1")
            Student.load(content)


def test_a_tokenizer_that_the_library_cannot_read_is_not_called_damaged():
    artifact = torch.load(io.BytesIO(new_student().to_bytes()), weights_only=True)
    state = json.loads(word_tokenizer(40).to_str())
    state["model"]["type"] = "OfTomorrow"
    artifact["tokenizer"] = torch.frombuffer(bytearray(zlib.compress(json.dumps(state).encode())),
                                             dtype=torch.uint8)
    with pytest.raises(StudentError, match=rf"^<bytes>: tokenizers {tokenizers.__version__} .*new") as error:
        Student.load(saved(artifact))
    assert "damaged" not in str(error.value) and len(str(error.value).splitlines()) == 1


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    student = new_student()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")  # not /dev/null: without the check, a test run by root would replace it
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "file" / "s.pt"):
        with pytest.raises(StudentError, match=str(path)):
            student.save(path)
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        student.save(tmp_path / "file")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "pipe"}
    assert (tmp_path / "file").read_text() == "x" and (tmp_path / "pipe").is_fifo()


def test_base_with_its_tokenizer_is_under_1_6_megabytes():
    embedding_dim, hidden_dim = SIZES["base"]
    config = StudentConfig(3000, 2, embedding_dim=embedding_dim, hidden_dim=hidden_dim)
    assert 391_170 * 4 < len(Student(config, word_tokenizer(3000), ["0", "1"]).to_bytes()) < 1_600_000


# Column "1" of "이 영화 진짜 재밌다", "돈이 아깝다", "", as at cbea99c and 002a875, which trained them.
RELEASED = {"base": [0.9664173, 0.0224507, 0.5697226],
            "small": [0.9610812, 0.0185558, 0.5080944],
            "tiny": [0.965807, 0.0240958, 0.5060227]}


@pytest.mark.parametrize("name", RELEASED)
def test_released_students_give_the_probabilities_they_gave(name):
    """Not bit for bit: other processors round otherwise."""
    student = Student.load(SHIPPED.with_name(f"{name}.pt"))
    found = student.predict(["이 영화 진짜 재밌다", "돈이 아깝다", ""])
    torch.testing.assert_close(found[:, 1], torch.tensor(RELEASED[name]), rtol=0, atol=1e-5)


def test_files_of_format_1_are_read(tmp_path):
    """Before int8: float32 alone, the tokenizer's whole JSON, no temperature and no task."""
    student = new_student()
    student.save(tmp_path / "s.pt")
    artifact = torch.load(tmp_path / "s.pt", weights_only=True)
    packed = zlib.compress(student.tokenizer.to_str().encode())
    for key in ("scales", "precision", "task"):
        del artifact[key]
    del artifact["config"]["temperature"]
    torch.save(artifact | {"format": 1, "tokenizer": torch.frombuffer(bytearray(packed), dtype=torch.uint8)},
               tmp_path / "s.pt")
    loaded = Student.load(tmp_path / "s.pt")
    assert loaded.task == "classification"
    assert torch.equal(loaded.predict(["단어3"]), student.predict(["단어3"]))


class Bomb:
    """Pickles to code that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["missing", "folder", "text", "empty", "a list", "other kind", "format",
                                     "task", "weights", "config", "names", "code"])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "student.pt"
    new_student().save(path)
    artifact = torch.load(path, weights_only=True)
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content in ("text", "empty"):
        path.write_text("이것은 모델이 아니다" if content == "text" else "")
    elif content == "a list":
        torch.save([1], path)
    elif content == "code":
        torch.save({"kind": "student", "bomb": Bomb(tmp_path / "harm")}, path)
    elif content != "missing":
        change = {"other kind": {"kind": "teacher\n"}, "format": {"format": 99}, "task": {"task": [{}]},
                  "weights": {"weights": {}}, "config": {"config": artifact["config"] | {"hidden_dim": 7}},
                  "names": {"label_names": ["가"]}}[content]
        torch.save(artifact | change, path)
    with pytest.raises(StudentError) as error:
        Student.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("options", [
    {"hidden_dim": 0}, {"hidden_dim": 5.0}, {"embedding_dim": True}, {"num_layers": 0}, {"num_layers": 101},
    {"max_length": 2**40}, {"pad_id": 40}, {"blank_id": -1}, {"blank_id": 40}, {"dropout": 1.0},
    {"dropout": -0.1}, {"pooling": "sum"}, {"head": "gelu"},
    *({"temperature": wrong} for wrong in (0.0, -1.0, 1e-320, 10**400, math.inf, math.nan, "1", None)),
    *({"thresholds": wrong} for wrong in ([], [0.5] * 2, [0.5, 0.5, 1.5], [0.5, 0.5, math.nan], [1, 0, 0],
                                          (0.5,) * 3, 0.5)),
    *({"mean": mean, "deviation": wrong} for mean, wrong in (
        (0.0, None), (None, 1.0), (0.0, 0.0), (0.0, -1.0), (math.inf, 1.0), (0.0, math.nan), (0, 1.0))),
])
def test_impossible_settings_are_refused(options):
    with pytest.raises(StudentError, match=next(iter(options))):
        new_student(**options)


@pytest.mark.parametrize("change", [
    lambda state: state["model"]["vocab"].update({"단어9": 1000}),  # beyond the embeddings
    lambda state: state["model"]["vocab"].pop("단어9"),
])
def test_a_tokenizer_of_another_vocabulary_is_refused(change):
    state = json.loads(word_tokenizer(40).to_str())
    change(state)
    with pytest.raises(StudentError, match="tokens"):
        Student(StudentConfig(40, 1), Tokenizer.from_str(json.dumps(state)), ["가"])


# ---- the archive -------------------------------------------------------------------------------------------


def archive(members: dict, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip file without zip64's records, as other programs than PyTorch write it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def saved(value) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def repacked(data: bytes, compression=zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return archive({name: file.read(name) for name in file.namelist()}, compression)


def two_tables(shown: bytes, hidden: bytes, zip64: bool) -> bytes:
    """An archive in which Python's zipfile finds the members of one, and PyTorch those of another.

    zipfile takes the table of contents that ends where the end record begins, PyTorch the one at the offset
    that the end record states. With zip64 the last 76 bytes of the former look like zip64's records to
    who does not look at their signature.
    """
    tables = []
    for data in (hidden, shown):
        length, start = struct.unpack("<LL", data[-10:-2])
        tables.append((start, data[start : start + length]))
    size = max(len(table) for _, table in tables) + 76
    whole = tables[0][0] + tables[1][0] + 2 * size + 22
    records = bytes(40) + struct.pack("<QQ4sLQL", size, whole - 22 - size, b"PK\6\7", 0, whole - 98, 1)
    for i, (start, table) in enumerate(tables):  # to one length, by a comment of the last member
        last = table.rindex(b"PK\1\2") + 32
        comment = (records if zip64 and i else b"").rjust(size - len(table))
        tables[i] = start, table[:last] + struct.pack("<H", len(comment)) + table[last + 2 :] + comment
    (start, table), (shown_start, shown_table) = tables
    moved, at = bytearray(shown_table), 0
    while at < size:  # where zipfile looks is this offset + size + shown_start
        offset, = struct.unpack_from("<L", moved, at + 42)
        struct.pack_into("<L", moved, at + 42, start + offset - shown_start)
        at += 46 + sum(struct.unpack_from("<HHH", moved, at + 28))
    end = hidden[-22:-10] + struct.pack("<LLH", size, start, 0)
    return hidden[:start] + table + shown[:shown_start] + bytes(moved) + end


def test_an_archive_of_tensors_is_accepted_as_pytorch_and_as_zipfile_write_it(tmp_path):
    for data in (saved({"x": torch.ones(3)}), repacked(saved({"x": torch.ones(3)})), SHIPPED.read_bytes()):
        (tmp_path / "x.pt").write_bytes(data)
        check_archive(tmp_path / "x.pt")


@pytest.mark.parametrize("zip64", [False, True])
def test_two_tables_of_contents_are_refused(tmp_path, zip64):
    data = two_tables(repacked(saved("shown")), repacked(saved("hidden")), zip64)
    assert torch.load(io.BytesIO(data), weights_only=True) == "hidden"
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert b"shown" in file.read("archive/data.pkl")
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(ValueError, match="table"):
        check_archive(tmp_path / "x.pt")


def commented(data: bytes) -> bytes:
    """With a comment that looks like the three records at the end of an archive, but for the last."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        start = file.start_dir
    records = struct.pack("<4s44xQ4s4xQ26x", b"PK\6\6", start, b"PK\6\7", len(data))
    return data[:-2] + struct.pack("<H", len(records)) + records


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


@pytest.mark.parametrize(("change", "word"), [
    (lambda data: data + b" ", "table"),
    (lambda data: b" " + data, "table"),
    (lambda data: flipped(data, len(data) - 98, 1), "table|directory"),
    (lambda data: commented(repacked(data)), "table"),
    (lambda data: repacked(data, zipfile.ZIP_DEFLATED), "packed"),
    (lambda data: flipped(data, data.index(b"\0\0\x80?\0\0\x80?"), 1), "checksum"),
    (lambda data: flipped(data, data.rindex(b"PK\1\2") + 38, 16), "folder"),
    (lambda data: archive({"a/data.pkl": b"cos\nsystem\n."}), "os.system"),
    (lambda data: archive({"a/b.pkl": b".", "a/DATA.PKL": b"cbuiltins\nbytearray\n."}), "bytearray"),
    (lambda data: archive({"a/data.pkl": b".", zipfile.ZipInfo("a/x/"): b""}), "folder"),
])
def test_an_archive_with_anything_but_intact_tensors_is_refused(tmp_path, change, word):
    (tmp_path / "x.pt").write_bytes(change(saved({"x": torch.ones(3)})))
    with pytest.raises((ValueError, zipfile.BadZipFile), match=word):
        check_archive(tmp_path / "x.pt")


def test_a_flipped_bit_is_found_or_does_not_matter(tmp_path):
    data, path = new_student().to_bytes("int8"), tmp_path / "s.pt"
    path.write_bytes(data)
    good, table = Student.load(path), data.index(b"PK\1\2")
    flips = [(at, 1 << at % 8) for at in {*range(0, len(data), 293), *range(table, len(data), 11)}]
    harmless = 0
    for at, bit in flips:
        path.write_bytes(flipped(data, at, bit))
        try:
            found = Student.load(path)
        except StudentError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
            continue
        harmless += 1
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in good.state_dict().items())
        assert found.config == good.config and found.label_names == good.label_names
    assert 0 < harmless < len(flips) / 2  # dates, padding, sizes that are stated twice
    for size in (*range(0, len(data), 1 + len(data) // 20), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(StudentError):
            Student.load(path)


def test_runtime_py_checks_archives_in_the_same_way():
    assert inspect.getsource(check_archive) == inspect.getsource(runtime.check_archive)
    assert student_py.PLAIN == runtime.PLAIN


# ---- the tokenizer -----------------------------------------------------------------------------------------


def change(path, **changes):
    torch.save(torch.load(path, weights_only=True) | changes, path)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_packed_tokenizer_is_the_same_and_smaller(kind):
    texts = (Path(__file__).parent.parent / "data/sample/train.tsv").read_text("utf-8").splitlines()
    model, trainer = {"wordpiece": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
                      "bpe": (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
                      "unigram": (models.Unigram(), trainers.UnigramTrainer)}[kind]
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]"} if kind == "unigram" else {}
    tokenizer.train_from_iterator(texts[:400], trainer(
        vocab_size=1500, special_tokens=["[PAD]", "[UNK]"], show_progress=False, **special))
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the library rounds unigram's scores in reading
    packed = pack_tokenizer(tokenizer)
    assert unpack_tokenizer(packed, 2000).to_str() == tokenizer.to_str()
    if kind != "unigram":
        assert len(packed) < 0.28 * len(tokenizer.to_str().encode())


def test_a_tokenizer_of_other_ids_or_merges_is_kept_as_it_is():
    state = json.loads(word_tokenizer(10).to_str())
    state["model"]["vocab"]["단어9"] = 20  # a gap
    tokenizer = Tokenizer.from_str(json.dumps(state))
    assert unpack_tokenizer(pack_tokenizer(tokenizer), 10).to_str() == tokenizer.to_str()
    state = json.loads(Student.load().tokenizer.to_str())
    state["model"]["merges"].reverse()  # not in the order of the ids
    state["truncation"] = None
    bpe = Tokenizer.from_str(json.dumps(state))
    assert len(state["model"]["merges"]) > 1
    assert unpack_tokenizer(pack_tokenizer(bpe), 3000).to_str() == bpe.to_str()


def test_a_tokenizer_that_unpacks_to_more_than_its_tokens_can_need_is_refused():
    with pytest.raises(StudentError, match="1,051,136 bytes"):
        unpack_tokenizer(zlib.compress(b" " * (2**20 + 256 * 10) + b"{}"), 10)
    words = {"[PAD]": 0} | {"가" * 400 + str(i): i for i in range(1, 3000)}
    with pytest.raises(StudentError, match="bytes of JSON"):  # nor is it saved
        pack_tokenizer(Tokenizer(models.WordLevel(words, "[PAD]")))


def test_a_tokenizer_that_pads_to_millions_does_not(tmp_path):
    state = json.loads(word_tokenizer(40).to_str())
    state["padding"] = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    path = tmp_path / "s.pt"
    new_student().save(path)
    packed = zlib.compress(json.dumps(state).encode())
    change(path, tokenizer=torch.frombuffer(bytearray(packed), dtype=torch.uint8))
    assert Student.load(path).predict(["단어3"]).shape == (1, 3)


# ---- as a script -------------------------------------------------------------------------------------------


ALONE = """
import os, sys, threading
import torch
from student import Student
torch.set_num_threads(2)
student = Student.load("student.pt")
# Imports that would double the time to load; PyTorch 2.10 cannot do without.
assert "sympy" not in sys.modules or torch.__version__.startswith("2.10.")
student.predict(["단어2"])  # the threads of small calls are there
if not (child := os.fork()):
    student.predict(["단어2"])
    os._exit(7)
def late():
    threading.main_thread().join()
    print(student.predict(["단어2 단어3"]).max().item())
threading.Thread(target=late).start()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 7)
"""


def test_student_py_and_student_pt_work_in_an_empty_folder(tmp_path):
    """What README says to copy is enough; also after a fork, and when the main thread has ended."""
    student = new_student()
    student.save(tmp_path / "student.pt")
    # Neither torch nor tokenizers brings numpy along.
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('numpy')", encoding="utf-8")
    shutil.copy(ROOT / "student.py", tmp_path)
    probability, label = student.predict(["단어2 단어3"])[0].max(0)
    posix = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "student.py", "student.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=posix, timeout=60,
                          input="\ufeff단어2 단어3\r\n\n단어2 단어3".encode())
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0 and len(lines) == 3
    assert lines[0] == lines[2] == f"{student.label_names[label]}\t{probability:.4f}\t단어2 단어3"
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0 and float(done.stdout) == pytest.approx(probability.item(), abs=1e-6)


def answers(capsys, *args) -> list[list[str]]:
    student_py.main(student_py.parse_args([*map(str, args)]))
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_the_script_answers_with_the_shipped_student_or_another(tmp_path, capsys, monkeypatch):
    new_student().save(tmp_path / "s.pt")
    (label, confidence, text), = answers(capsys, tmp_path / "s.pt", "단어2\n단어3")
    assert label in "가나다" and 1 / 3 < float(confidence) < 1 and text == "단어2 단어3"
    texts = ["이 영화 진짜 재밌다", "돈이 아깝다"]
    found = answers(capsys, *texts)
    assert [label for label, _, _ in found] == ["1", "0"] and found == answers(capsys, SHIPPED, *texts)
    for end in ("\n", "\r\n"):
        stdin = io.TextIOWrapper(io.BytesIO(end.join(texts).encode()), encoding="cp949", newline="\n")
        monkeypatch.setattr(sys, "stdin", stdin)
        assert answers(capsys) == found
    for stdin, word in ((None, "closed"), (io.TextIOWrapper(io.BytesIO(b"a\n\xbf\xb5")), "line 2.*UTF-8")):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(StudentError, match=word):
            answers(capsys)
    with pytest.raises(UnicodeError):
        answers(capsys, "\ud800")
    monkeypatch.setattr(student_py, "SHIPPED", tmp_path / "base.pt")
    with pytest.raises(StudentError, match=r"base\.pt.*STUDENT"):
        answers(capsys, *texts)


@pytest.mark.parametrize(("args", "word"), [
    (["no.pt", "글"], "no.pt"), (["."], "STUDENT.pt"), (["s.pt", "\udcb1"], "UTF-8"), (["--size"], "--size"),
    (["-최악"], "-- before"), (["s.pt", "글", "-최악"], "-- before"), (["s.pt", "글", "s.pt"], "s.pt"),
    (["s.pt", "no.pt"], "no.pt"), (["s.pt", "."], "FILE"), (["students/bsae", "글"], "students/bsae"),
    (["s.pt", "reviews.txt"], "reviews.txt"), (["s.pt", "리뷰.tsv.gz"], "FILE")])
def test_the_script_ends_with_2_for_what_it_cannot_use(tmp_path, capsys, monkeypatch, args, word):
    new_student().save(tmp_path / "s.pt")
    (tmp_path / "students").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["student.py", *args])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "student.py"), run_name="__main__")
    *_, last = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "error: " in last and word in last


def test_what_only_resembles_a_path_or_a_flag_is_a_text(tmp_path, capsys):
    new_student().save(tmp_path / "s.pt")
    texts = ["좋아요/별로", "10/10", "", "see a/b", "A/S", "http://naver.com", "- 글",
             "-1", "v.txt 글", "x" * 5000, "a\0/"]
    assert [text for _, _, text in answers(capsys, tmp_path / "s.pt", *texts)] == texts
    assert answers(capsys, tmp_path / "s.pt", "글", "--", "-최악", "-h")[1:] \
        == answers(capsys, tmp_path / "s.pt", "--", "-최악", "-h")


BREAKS = ["\r\n", "\n", "\r", "\t", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def test_each_text_is_one_line_of_three_fields(tmp_path, capsys):
    student = new_student()
    student.label_names = [f"{i}{'x'.join(BREAKS)}x" for i in range(3)]
    student.save(tmp_path / "s.pt")
    student_py.main(student_py.parse_args([str(tmp_path / "s.pt"), *(f"글{each}x" for each in BREAKS)]))
    *lines, end = capsys.readouterr().out.split("\n")
    assert len(lines) == len(BREAKS) and end == ""
    for line in lines:
        label, _, text = line.split("\t")
        assert text == "글 x" and len(label.splitlines()) == 1 and label[1:] == " " + " ".join("x" * 12)


def start(path, **options):
    process = subprocess.Popen([sys.executable, str(ROOT / "student.py"), str(path)], stdout=subprocess.PIPE,
                               env=os.environ | {"PYTHONUNBUFFERED": ""}, **options)
    timer = threading.Timer(60, process.kill)  # what is waited for would never come
    timer.daemon = True
    timer.start()
    return process


def test_a_pipe_is_answered_where_it_pauses(tmp_path):
    new_student().save(tmp_path / "s.pt")
    with start(tmp_path / "s.pt", stdin=subprocess.PIPE) as process:
        for sent, expected in (("단어2\n".encode(), ["단어2"]), ("단어3\n\n단어4\r\n글".encode()[:-1],
                                                            ["단어3", "", "단어4"])):
            process.stdin.write(sent)  # the last one pauses inside a character
            process.stdin.flush()
            for text in expected:  # each comes before anything else is sent
                assert process.stdout.readline().decode().rstrip("\n").split("\t")[2] == text
        process.stdin.write("글".encode()[-1:])
        process.stdin.close()
        assert process.stdout.readline().decode().endswith("\t글\n") and process.stdout.read() == b""


def test_what_came_before_a_line_that_is_not_utf_8_is_answered(tmp_path):
    new_student().save(tmp_path / "s.pt")
    (tmp_path / "lines").write_bytes("\ufeff단어2\n단어3\n".encode() + b"\xb1\n" + "단어4\n".encode())
    with open(tmp_path / "lines", "rb") as lines, \
            start(tmp_path / "s.pt", stdin=lines, stderr=subprocess.PIPE) as process:
        found = process.stdout.read().decode().splitlines()
        assert [line.split("\t")[2] for line in found] == ["단어2", "단어3"]
        assert b"line 3 " in process.stderr.read() and process.wait() == 2


def test_a_terminal_is_told_that_it_is_waited_for(tmp_path):
    pty = pytest.importorskip("pty")
    new_student().save(tmp_path / "s.pt")
    ours, theirs = pty.openpty()
    with start(tmp_path / "s.pt", stdin=theirs, stderr=subprocess.PIPE) as process:
        assert b"one text per line" in process.stderr.readline()
        os.write(ours, "단어2\n".encode())
        assert process.stdout.readline().decode().endswith("\t단어2\n")
        os.write(ours, b"\4")  # Ctrl-D
        assert process.stdout.read() == b"" and process.wait() == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_passed_on_in_large_lists_where_they_are_there(tmp_path, end):
    lines = [f"줄 {i}" * (i % 3) for i in range(30_000)]
    (tmp_path / "lines").write_bytes("".join(line + end for line in lines).encode())
    with open(tmp_path / "lines", "rb") as file:
        found = [*student_py.incoming(file)]
    assert [line for part in found for line in part] == lines
    assert all(len(part) >= 8192 for part in found[:-1])
