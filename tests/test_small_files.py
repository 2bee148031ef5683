"""Small files: precisions, the packed tokenizer, calibration, --quantize and --budget."""

import gc
import json
import math
import re
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models

import distill
import train_tokenizer
from data import batching
from data.examples import read_examples
from student import SIZES, Student, StudentConfig, StudentError, pack_tokenizer, to_int8, unpack_tokenizer
from tests.test_distill import folder, run, windows  # noqa: F401  (two are fixtures)
from tests.test_student import new_student, word_tokenizer

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"


# ---- precisions --------------------------------------------------------------------------------------------


def test_int8_rows_are_multiples_of_their_127th_part_by_hand():
    matrix = torch.tensor([[1.27, -0.64, 0.006], [0.0, 0.0, 0.0], [-254.0, 127.0, 1.9]])
    steps, scales = to_int8(matrix)
    assert steps.tolist() == [[127, -64, 1], [0, 0, 0], [-127, 64, 1]]  # 63.5 to the even 64
    assert scales.shape == (3, 1) and scales.dtype == torch.float16
    assert scales[:, 0].tolist() == pytest.approx([0.01, 0, 2], rel=5e-4)


def test_int8_is_off_by_half_a_step_at_most_and_by_its_scales_rounding():
    matrix = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    matrix *= torch.logspace(-4, 2, 200)[:, None]
    steps, scales = to_int8(matrix)
    off = (steps.float() * scales.float() - matrix).abs()
    step = matrix.abs().amax(1, keepdim=True) / 127
    # A float16 has 11 bits, or is a multiple of 2^-24.
    assert (off <= 0.5 * step * 1.001 + 127 * step * 2**-11 + 127 * 2**-25).all()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_file_holds_what_its_precision_can_and_is_used_like_any_other(tmp_path, precision):
    student = new_student(pooling="attention", head="relu", num_layers=2, temperature=1.5)
    student.save(tmp_path / "s.pt", precision, scores={"valid_accuracy": 0.5})
    loaded = Student.load(tmp_path / "s.pt")
    distill.round_weights(student, precision)
    for name, value in student.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], value), name
    texts = ["단어2 단어9", "", "단어30"]
    assert torch.equal(loaded.predict(texts), student.predict(texts))
    assert loaded.config == student.config and loaded.artifact["precision"] == precision
    assert loaded.artifact["scores"] == {"valid_accuracy": 0.5}
    stored = torch.load(tmp_path / "s.pt", weights_only=True)["weights"]
    kinds = {2: torch.int8 if precision == "int8" else torch.float16, 1: torch.float16}
    assert all(value.dtype == kinds[value.dim()] for value in stored.values())


def test_saving_again_in_int8_changes_nothing(tmp_path):
    new_student().save(tmp_path / "one.pt", "int8")
    Student.load(tmp_path / "one.pt").save(tmp_path / "two.pt", "int8")
    one, two = (Student.load(tmp_path / name).state_dict() for name in ("one.pt", "two.pt"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=2e-3, atol=0)  # a scale may round once more


TARGETS = {"large": 1_300_000, "base": 450_000, "small": 190_000, "mini": 85_000, "tiny": 60_000}


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def real_tokenizer(request):
    """3,000 tokens of Korean, or as many as the sample has."""
    texts = [text for name in ("train", "unlabeled", "valid", "test")
             for text in read_examples(SAMPLE / f"{name}.tsv").texts]
    words = train_tokenizer.count_words(texts, request.param)
    return train_tokenizer.train(texts, words, request.param, 3000, 1, 1500)


@pytest.mark.parametrize("size", SIZES)
def test_int8_files_are_as_small_as_promised(tmp_path, size, real_tokenizer):
    assert real_tokenizer.get_vocab_size() == 3000
    embedding_dim, hidden_dim = SIZES[size]
    config = StudentConfig(3000, 2, embedding_dim=embedding_dim, hidden_dim=hidden_dim)
    Student(config, real_tokenizer, ["0", "1"]).save(tmp_path / "s.pt", "int8", made_by={"x": "0" * 2000})
    weights = {"large": 1_175_554, "base": 391_170, "small": 146_434, "mini": 52_418, "tiny": 27_394}[size]
    assert weights < (tmp_path / "s.pt").stat().st_size < TARGETS[size]


def test_weights_beyond_float16_are_refused_and_the_file_stays(tmp_path):
    student = new_student()
    student.save(tmp_path / "s.pt")
    before = (tmp_path / "s.pt").read_bytes()
    with torch.no_grad():
        student.head.bias[0] = 1e5
    for precision in ("float16", "int8"):
        with pytest.raises(StudentError, match=f"weights are beyond the range of {precision}; nothing was"):
            student.save(tmp_path / "s.pt", precision)
    assert (tmp_path / "s.pt").read_bytes() == before
    with pytest.raises(ValueError, match="precision is 'int4', must be one of"):
        student.save(tmp_path / "s.pt", "int4")


def change(path, **changes):
    torch.save(torch.load(path, weights_only=True) | changes, path)


@pytest.mark.parametrize(("scale", "reason"), [
    (None, "embedding.weight is torch.int8, without scales"),
    (torch.ones(40, 1), "embedding.weight has scales of another type or shape"),
    (torch.ones(40).half(), "embedding.weight has scales of another type or shape"),
    (torch.ones(40, 6).half(), "embedding.weight has scales of another type or shape"),
    (torch.full((40, 1), math.inf).half(), "its weights are not finite"),
    (torch.ones(1, 1).half().expand(40, 1), "its config or weights claim more than the file holds"),
])
def test_scales_that_do_not_fit_are_refused(tmp_path, scale, reason):
    path = tmp_path / "s.pt"
    new_student().save(path, "int8")
    scales = torch.load(path, weights_only=True)["scales"]
    del scales["embedding.weight"]
    change(path, scales=scales | ({} if scale is None else {"embedding.weight": scale}))
    with pytest.raises(StudentError, match=re.escape(reason)):
        Student.load(path)


@pytest.mark.parametrize(("name", "weight"), [
    ("head.bias", torch.ones(20_000, dtype=torch.int8)),  # times a column of scales: 1.6 GB
    ("head.weight", torch.ones(20_000, 1, 5, dtype=torch.int8)),
    ("embedding.weight", torch.zeros(2**40, 0)),  # would let the tokenizer unpack without end
])
def test_shapes_are_checked_before_memory_is_taken(tmp_path, name, weight):
    path = tmp_path / "s.pt"
    new_student().save(path, "int8")
    artifact = torch.load(path, weights_only=True)
    scales = {name: torch.ones(len(weight), 1).half()} if weight.dtype == torch.int8 else {}
    artifact["scales"].pop(name, None)
    change(path, weights=artifact["weights"] | {name: weight}, scales=artifact["scales"] | scales)
    reason = "another shape than its config" if name.startswith("emb") else "scales of another type or shape"
    with pytest.raises(StudentError, match=reason):
        Student.load(path)


def test_a_tokenizer_that_pads_to_millions_does_not(tmp_path):
    state = json.loads(word_tokenizer(40).to_str())
    state["padding"] = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    path = tmp_path / "s.pt"
    new_student().save(path)
    packed = zlib.compress(json.dumps(state).encode())
    change(path, tokenizer=torch.frombuffer(bytearray(packed), dtype=torch.uint8))
    assert Student.load(path).predict(["단어3"]).shape == (1, 3)


def test_one_storage_cannot_stand_for_many_weights(tmp_path):
    """Each would fit the file, together they would be a hundred times as large in memory."""
    path = tmp_path / "s.pt"
    new_student().save(path, "int8")
    one = torch.zeros(1000, 1000, dtype=torch.int8)
    change(path, weights={f"w{i}": one for i in range(100)})
    with pytest.raises(StudentError, match="claim more than the file holds"):
        Student.load(path)


# ---- the tokenizer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_packed_tokenizer_is_the_same_and_smaller(kind):
    texts = read_examples(SAMPLE / "train.tsv").texts
    words = train_tokenizer.count_words(texts, kind)
    tokenizer = train_tokenizer.train(texts, words, kind, 2000, 1, 1000)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the library rounds unigram's scores in reading
    packed = pack_tokenizer(tokenizer)
    assert unpack_tokenizer(packed, 2000).to_str() == tokenizer.to_str()
    if kind != "unigram":
        assert len(packed) < 0.28 * len(tokenizer.to_str().encode())


def test_a_tokenizer_of_other_ids_or_merges_is_kept_as_it_is():
    tokenizer = word_tokenizer(10)
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"]["단어9"] = 20  # a gap
    tokenizer = Tokenizer.from_str(json.dumps(state))
    assert unpack_tokenizer(pack_tokenizer(tokenizer), 10).to_str() == tokenizer.to_str()
    texts = ["가나 가나 가다"] * 5
    bpe = train_tokenizer.train(texts, train_tokenizer.count_words(texts, "bpe"), "bpe", 60, 1, 100)
    state = json.loads(bpe.to_str())
    state["model"]["merges"].reverse()  # not in the order of the ids
    bpe = Tokenizer.from_str(json.dumps(state))
    assert len(state["model"]["merges"]) > 1
    assert unpack_tokenizer(pack_tokenizer(bpe), 60).to_str() == bpe.to_str()


def test_a_tokenizer_that_unpacks_to_more_than_its_tokens_can_need_is_refused():
    packed = zlib.compress(b" " * (2**20 + 256 * 10) + b"{}")
    with pytest.raises(StudentError, match="its tokenizer is cut, or unpacks to more than 1,051,136 bytes"):
        unpack_tokenizer(packed, 10)


def test_a_tokenizer_that_load_would_refuse_is_not_saved(tmp_path):
    words = {"[PAD]": 0} | {"가" * 400 + str(i): i for i in range(1, 3000)}
    tokenizer = Tokenizer(models.WordLevel(words, "[PAD]"))
    student = Student(StudentConfig(3000, 2, 8, 8), tokenizer, ["0", "1"])
    with pytest.raises(StudentError, match=r"the tokenizer has [\d,]+ bytes of JSON, more than 1,048,576"):
        student.save(tmp_path / "s.pt")
    assert not list(tmp_path.iterdir())


def test_files_of_format_1_are_read(tmp_path):
    """Before int8: float32 alone, the tokenizer's whole JSON, no temperature."""
    student = new_student()
    student.save(tmp_path / "s.pt")
    artifact = torch.load(tmp_path / "s.pt", weights_only=True)
    packed = zlib.compress(student.tokenizer.to_str().encode())
    del artifact["scales"], artifact["precision"], artifact["config"]["temperature"]
    torch.save(artifact | {"format": 1, "tokenizer": torch.frombuffer(bytearray(packed), dtype=torch.uint8)},
               tmp_path / "s.pt")
    assert torch.equal(Student.load(tmp_path / "s.pt").predict(["단어3"]), student.predict(["단어3"]))


# ---- calibration -------------------------------------------------------------------------------------------


def test_fitted_temperature_is_where_the_cross_entropy_is_least():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]  # calibrated at T = 1
    assert distill.fit_temperature(logits, labels) == pytest.approx(1, abs=0.06)
    T = distill.fit_temperature(3 * logits, labels)
    assert pytest.approx(3 * distill.fit_temperature(logits, labels), rel=1e-6) == T
    losses = [F.cross_entropy(3 * logits / t, labels).item() for t in (T, 0.98 * T, 1.02 * T)]
    assert losses[0] == min(losses)


def test_few_rows_that_are_all_right_make_no_student_sure_by_hand():
    """Of two rows' labels a quarter goes to both classes: probability 7/8, so 0.9 / T = log 7."""
    logits = torch.tensor([[0.9, 0.0], [0.0, 0.9]])
    found = distill.fit_temperature(logits, torch.tensor([0, 1]))
    assert found == pytest.approx(0.9 / math.log(7), rel=1e-6)
    assert distill.fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(20, rel=1e-6)  # all wrong


def test_predict_divides_by_the_temperature(tmp_path):
    student = new_student()
    cool = student.predict(["단어2 단어3"])
    student.config.temperature = 4.0
    warm = student.predict(["단어2 단어3"])
    torch.testing.assert_close(warm, (cool.log() / 4).softmax(1), rtol=1e-5, atol=0)
    for wrong in (0.0, -1.0, 1e-320, 10**400, math.inf, math.nan, "1", None):
        with pytest.raises(StudentError, match=r"temperature is .*, must be in"):
            new_student(temperature=wrong)


def test_distill_stores_the_temperature_of_its_best_epoch(folder):  # noqa: F811
    run("--train", "train.tsv", "--logits", "train.pt", "--lr", "0.02")
    student = Student.load("students/tiny/student.pt")
    valid = read_examples("valid.tsv")
    logits = student.predict(valid.texts).log() * student.config.temperature
    labels = torch.tensor(valid.label_ids(["0", "1"]))
    assert student.config.temperature == pytest.approx(distill.fit_temperature(logits, labels), rel=1e-3)
    assert abs(student.config.temperature - 1) > 0.01


# ---- --quantize --------------------------------------------------------------------------------------------


def accuracy(path) -> float:
    valid = read_examples("valid.tsv")
    labels = torch.tensor(valid.label_ids(["0", "1"]))
    return (Student.load(path).predict(valid.texts).argmax(1) == labels).float().mean().item()


def test_quantize_writes_the_best_student_rounded(folder, capsys):  # noqa: F811
    run("--train", "train.tsv", "--alpha", "1", "--lr", "0.02", "--quantize", "int8", "float16")
    out = capsys.readouterr().out
    for kind in ("int8", "float16"):
        path = Path(f"students/tiny/student.{kind}.pt")
        rounded = Student.load(path)
        distill.round_weights(exact := Student.load("students/tiny/student.pt"), kind)
        for name, value in exact.state_dict().items():
            assert torch.equal(rounded.state_dict()[name], value)
        scores = rounded.artifact["scores"]
        assert scores["valid_accuracy"] == pytest.approx(accuracy(path), abs=1e-6)
        before = exact.artifact["scores"]["valid_accuracy"]
        assert f"{path}: {path.stat().st_size:,} bytes, validation accuracy " \
               f"{scores['valid_accuracy']:.2%}, float32 {before:.2%}" in out


def test_fine_tuning_holds_one_window_at_a_time(folder, windows, monkeypatch):  # noqa: F811
    monkeypatch.setattr(distill, "HARM", -1.0)
    def alive():
        return sum(type(thing) is batching.Encoded for thing in gc.get_objects())

    gc.collect()
    seen, loss, others = [], distill.batch_loss, alive()  # others: of tests before this one

    def recorded(*args):
        seen.append(alive() - others)
        return loss(*args)

    monkeypatch.setattr(distill, "batch_loss", recorded)
    run("--train", "train.tsv", "--alpha", "1", "--quantize", "int8")
    assert len(windows) >= 4 * 3  # three epochs and another, of three windows or more
    assert len(seen) > 30 and max(seen) <= 4  # at 8 in all


def test_where_rounding_harms_an_epoch_under_rounding_helps(folder, monkeypatch, capsys):  # noqa: F811
    """When only a row's largest weights stay, and become equal, plain rounding ruins the student."""
    def coarse(matrix):
        scales = matrix.abs().amax(1, keepdim=True).half()
        shares = matrix / scales.float().clamp(min=2**-24)
        return (shares.sign() * (shares.abs() > 0.9)).to(torch.int8), scales

    monkeypatch.setattr(distill, "to_int8", coarse)
    monkeypatch.setattr("student.to_int8", coarse)
    run("--train", "train.tsv", "--alpha", "1", "--lr", "0.1", "--max-tokens", "32", "--epochs", "6",
        "--quantize", "int8")
    found = re.search(r"rounded ([\d.]+)%, then fine-tuned ([\d.]+)%", capsys.readouterr().out)
    rounded, tuned = map(float, found.groups())
    assert tuned > rounded + 2
    assert 100 * accuracy("students/tiny/student.int8.pt") == pytest.approx(max(rounded, tuned), abs=0.01)
    assert 100 * accuracy("students/tiny/student.pt") > rounded  # it is as it was


def test_fine_tuning_that_does_not_help_is_thrown_away(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(distill, "HARM", -1.0)  # always

    def spoil(student, *_):
        with torch.no_grad():
            student.head.weight.zero_()

    monkeypatch.setattr(distill, "finetune_rounded", spoil)
    run("--train", "train.tsv", "--alpha", "1", "--lr", "0.02", "--quantize", "int8")
    rounded, exact = Student.load("students/tiny/student.int8.pt"), Student.load("students/tiny/student.pt")
    distill.round_weights(exact, "int8")
    assert torch.equal(rounded.head.weight, exact.head.weight) and exact.head.weight.abs().sum() > 0
    assert rounded.config.temperature == pytest.approx(exact.config.temperature, rel=0.2)


def test_a_rounded_file_of_an_earlier_run_does_not_stay_beside_a_new_student(folder):  # noqa: F811
    flags = ["--train", "train.tsv", "--alpha", "1"]
    run(*flags, "--quantize", "int8")
    Path("students/tiny/student.float16.pt").write_bytes(b"old")
    run(*flags, "--overwrite")
    assert not list(Path("students/tiny").glob("student.*.pt"))
    run(*flags, "--resume", "--quantize", "int8")  # of a finished run: nothing is trained
    assert accuracy("students/tiny/student.int8.pt") > 0


# ---- --budget ----------------------------------------------------------------------------------------------


def test_budget_trains_the_best_trial_and_its_file_fits(folder, capsys):  # noqa: F811
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", "train.tsv", "--vocab-size", "40", "--min-frequency", "1"]))
    capsys.readouterr()
    flags = ["--valid", "valid.tsv", "--device", "cpu", "--precision", "fp32", "--max-tokens", "256",
             "--epochs", "16", "--train", "train.tsv", "--alpha", "1", "--lr", "0.02",
             "--tokenizer", "tokenizer/vocab_size_60", "tokenizer/vocab_size_40", "--budget", "22KB"]
    distill.main(distill.parse_args(flags))
    out = capsys.readouterr().out
    header, *lines = [line.split("\t") for line in
                      Path("students/budget_22000/trials.tsv").read_text("utf-8").splitlines()]
    trials = [dict(zip(header, line, strict=True)) for line in lines]
    assert {trial["vocabulary"] for trial in trials} == {"40", "60"} or len(trials) > 2
    assert all(int(trial["int8_bytes"]) <= 22000 for trial in trials)
    best = trials[0]
    assert float(best["valid_accuracy"]) == max(float(trial["valid_accuracy"]) for trial in trials)
    file, = Path("students/budget_22000").glob("student.*.pt")
    student = Student.load(file)
    assert file.stat().st_size <= 22000
    config = student.config
    assert [str(number) for number in (config.embedding_dim, config.hidden_dim, config.vocab_size)] \
        == [best["embedding"], best["hidden"], best["vocabulary"]]
    epochs = {len(Path(folder, "log.jsonl").read_text().splitlines()) - 1
              for folder in Path("students/budget_22000/trials").iterdir()}
    assert epochs == {2}  # 16 / 8
    assert len(Path("students/budget_22000/log.jsonl").read_text().splitlines()) == 17
    assert "chosen for 22,000 bytes: a vocabulary of " in out and "the finest precision that fits" in out

    before = file.read_bytes()
    distill.main(distill.parse_args([*flags, "--resume"]))  # the same choice, nothing anew
    assert file.read_bytes() == before
    with pytest.raises(distill.UserError, match=r"is there already|--resume|--overwrite"):
        distill.main(distill.parse_args(flags))


def test_many_classes_and_files_are_reckoned_with(folder):  # noqa: F811
    names = [f"분류이름_아주_긴_카테고리_{i:03d}" for i in range(60)]
    for name, rows in (("train", 120), ("valid", 60)):
        lines = ["text\tlabel", *(f"좋다 {i}\t{names[i % 60]}" for i in range(rows))]
        Path(f"{name}.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    run_budget("40KB", *["train.tsv"] * 8)
    file, = Path("students/budget_40000").glob("student.*.pt")
    assert file.stat().st_size <= 40_000


def test_a_wide_budget_takes_float32(folder, capsys):  # noqa: F811
    run_budget("50MB")
    assert "embedding 128, hidden 256, the best of 1 after 1 of 1 epochs; float32, the finest" \
        in capsys.readouterr().out
    assert not list(Path("students/budget_50000000").glob("student.*.pt"))
    assert Path("students/budget_50000000/student.pt").exists()


def test_candidates_are_the_widest_that_fit(folder):  # noqa: F811
    tokenizer = distill.read_tokenizer("tokenizer/vocab_size_60")
    args = distill.parse_args(["--valid", "v", "--train", "t", "--alpha", "1", "--tokenizer", "a", "--budget",
                               "60000"])
    found = distill.candidates(args, {"a": tokenizer}, ["0", "1"])
    shapes = [(settings["embedding_dim"], settings["hidden_dim"]) for settings in found]
    assert len(shapes) > 1 and shapes == sorted(shapes, reverse=True)
    assert [H for _, H in shapes] == sorted({H for _, H in shapes})  # narrower in one, wider in the other
    assert any(H > 4 * E for E, H in shapes)  # a large vocabulary is best with narrow embeddings
    for settings in found:
        wider = settings | {"hidden_dim": settings["hidden_dim"] + 8}
        assert distill.file_size(settings, tokenizer, ["0", "1"], 1, "int8") <= 60000
        assert distill.file_size(wider, tokenizer, ["0", "1"], 1, "int8") > 60000 \
            or wider["hidden_dim"] > min(256, 12 * wider["embedding_dim"])


def test_a_budget_too_small_is_told_with_the_least_that_would_do(folder):  # noqa: F811
    with pytest.raises(distill.UserError, match=r"--budget: no student with these tokenizers is so small, "
                                                r"the smallest has [\d,]+ bytes; train a smaller one"):
        run_budget("5KB")
    assert not Path("students").exists()


def run_budget(budget, *more):
    distill.main(distill.parse_args([
        "--valid", "valid.tsv", "--train", "train.tsv", *more, "--alpha", "1", "--tokenizer",
        "tokenizer/vocab_size_60", "--epochs", "1", "--budget", budget, "--device", "cpu", "--precision",
        "fp32"]))


@pytest.mark.parametrize(("flags", "message"), [
    (["--budget", "many"], "argument --budget: 'many' is not a number of bytes such as 60000, 300KB or 1MB"),
    (["--budget", "0KB"], "argument --budget: '0KB' is not a number of bytes"),
    (["--budget", "-5"], "argument --budget: '-5' is not a number"),
    (["--budget", "9KB", "--size", "tiny"], "--budget searches for itself; give no --size"),
    (["--budget", "9KB", "--hidden-dim", "8"], "--budget searches for itself; give no --hidden-dim"),
    (["--budget", "9KB", "--seed", "1", "2"],
     "--budget searches for itself; give no --seed of several values"),
    (["--budget", "9KB", "--quantize", "int8"], "--budget chooses the precision itself; give no --quantize"),
])
def test_misuse_of_the_budget_is_told(flags, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        distill.parse_args(["--train", "t", "--alpha", "1", "--valid", "v", "--tokenizer", "k", *flags])
    assert exit_.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "number"), [
    ("60000", 60_000), ("300KB", 300_000), ("1mb", 10**6), ("2k", 2000)])
def test_byte_counts(text, number):
    assert distill.byte_count(text) == number
