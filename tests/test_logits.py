"""data/logits.py: what is written is read, old files and bare tensors too; logits of anything else are
refused, and the command that the refusal prints makes the right ones."""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import read, refused, reviews, run, run_printed, write_rows

import tasks
from data.examples import read_examples, survey
from data.logits import (
    Logits,
    check_teachers,
    compare_with_labels,
    doubt,
    fingerprints,
    read_logits,
    read_logits_of,
    refuse_other_columns,
    write_logits,
)
from student import Student
from teacher import Teacher

DUMP = "--teacher teacher/teacher.pt --device cpu"


def arguments(**flags):
    return argparse.Namespace(**{"teacher": None, "text_column": None, "text2_column": None,
                                 "label_column": None, "task": None} | flags)


def read_for(path, data="train.tsv", others=None, **flags):
    args = arguments(**flags)
    columns = args.text_column, args.text2_column, args.label_column
    return read_logits_of(path, survey(data, *columns), columns, args, others)


def compare(path, data="train.tsv", load=Teacher.load, **flags):
    """read_for, and the teachers compared, as the scripts do."""
    found = read_for(path, data, **flags)
    check_teachers(found, data, arguments(**flags), lambda path: fingerprints(load(path)))
    return found


def change(path, **changes) -> None:
    """Other values in a logits file; of None the key is taken out."""
    artifact = read(path) | changes
    torch.save({name: value for name, value in artifact.items() if value is not None}, path)


# ---- what is read ------------------------------------------------------------------------------------------


def test_what_is_written_is_read_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = torch.randn(3, 2)
    made = Logits(values, ["가", "나"], "classification", "f" * 64, [{"weights": "w"}], ["t/a.pt"], "bf16",
                  ["b" * 64])
    write_logits("logits/x.pt", made, {"script": "x"})
    (tmp_path / "deep").mkdir()
    for folder, teacher in (("deep", "../t/a.pt"), ("t", "a.pt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        found = read_logits("../logits/x.pt")
        assert torch.equal(found.values, values) and found.teacher_files == [teacher] and not found.bare
        assert found.path == "../logits/x.pt" and found.stat == os.stat("../logits/x.pt")
        for name in ("names", "task", "texts", "teachers", "precision", "blocks"):
            assert getattr(found, name) == getattr(made, name)
    stored = read("../logits/x.pt")
    assert (stored["dtype"], stored["made_by"], stored["teacher_files"]) == (
        "float32", {"script": "x"}, ["../t/a.pt"])
    maps = Path("/proc/self/maps")  # of Linux; a hundred million rows do not fit in memory
    assert not maps.exists() or "logits/x.pt" in maps.read_text("utf-8")


def test_files_of_earlier_versions_are_read(here):
    change("logits/train.pt", task=None, blocks=None)
    found = compare("logits/train.pt")
    assert (found.task, found.blocks, found.names) == ("classification", [], ["0", "1"])
    change("logits/train.pt", precision=None)
    assert read_logits("logits/train.pt").precision == "fp32"


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("tensor", [torch.randn(120, 3), torch.randn(120, 2).half(),
                                    torch.randn(120, 2, dtype=torch.float64, requires_grad=True)])
def test_a_bare_tensor_of_any_system_is_read(here, tensor, options):
    torch.save(tensor, "bare.pt", **options)
    found = compare("bare.pt")
    assert torch.equal(found.values, tensor) and not found.values.requires_grad
    assert found.bare and found.names is None and found.teachers == []


@pytest.mark.parametrize("changes, word", [
    ({"label_names": ["0", 1]}, "damaged"), ({"label_names": "01"}, "damaged"), ({"texts": 1}, "damaged"),
    ({"teacher_files": [1]}, "damaged"), ({"blocks": [1]}, "damaged"), ({"precision": "fp8"}, "damaged"),
    ({"logits": None}, "no logits"), ({"texts": None}, "no texts"), ({"label_names": ["0"]}, r"\[120, 2\]"),
    ({"logits": torch.zeros(120)}, r"\[120\]"), ({"logits": torch.zeros(120, 2).long()}, "int64"),
    ({"logits": torch.zeros(0, 2)}, r"\[0, 2\]"), ({"logits": [1, 2]}, "list"), ({"format": 3}, "format 3"),
    ({"kind": "student"}, "student"), ({"kind": 3}, "not a file of this kit"),
])
def test_a_damaged_file_is_refused_in_one_line(here, changes, word):
    change("logits/train.pt", **changes)
    refused(lambda: read_logits("logits/train.pt"), "logits/train.pt", word)


# ---- other containers and shapes ---------------------------------------------------------------------------

LOGITS = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
ARRAY, ROWS = LOGITS.numpy(), LOGITS.tolist()


def convert(message: str, old: str) -> None:
    """Run the Python that a message prints, as a shell reads it; what it writes replaces the old file."""
    python, flag, code, *words, new = shlex.split(message[message.index("python -c ") :])
    assert (python, flag, words) == ("python", "-c", ["and", "give", "--logits"]) and repr(old) in code
    before = Path(old).read_bytes()
    exec(code.removesuffix(","), {})
    assert Path(old).read_bytes() == before
    os.replace(new, Path(old).with_suffix(".pt"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: torch.save(
    value, path, _use_new_zipfile_serialization=False)], ids=["zip", "legacy"])
@pytest.mark.parametrize("value, words", [
    (ARRAY, "numpy"), ({"logits": LOGITS}, "dict"), ({"logits": LOGITS, "loss": torch.tensor(1.0)}, "dict"),
    ({"logits": ROWS}, "dict"), ({str(i): LOGITS[i] for i in reversed(range(120))}, "dict of rows"),
    ({i: LOGITS[i] for i in reversed(range(120))}, "dict of rows"),
    ({f"id{i}": row for i, row in enumerate(ROWS)}, "of rows"), (OrderedDict(enumerate(LOGITS)), "of rows"),
    (list(LOGITS), "a list"), (ROWS, "a list"), (tuple(map(tuple, ROWS)), "a tuple"),
    (list(LOGITS.split(32)), "a list"), ([LOGITS], "a list"),
    ((LOGITS, torch.zeros(120)), "something else"), (LOGITS[None], r"\[1, 120, 2\]"),
    (LOGITS.T.contiguous(), r"\[2, 120\] torch.float32"), (LOGITS[:, None], r"\[120, 1, 2\]"),
    (LOGITS.double()[:, None], r"\[120, 1, 2\] torch.float64"),
])
def test_logits_in_another_container_are_refused_with_the_command_that_makes_them_a_tensor(here, value, words,
                                                                                           save):
    save(value, "x.pt")
    convert(refused(lambda: read_for("x.pt"), r"^x\.pt: holds ", words), "x.pt")
    assert torch.equal(read_for("x.pt").values, LOGITS)


@pytest.mark.parametrize("name, save, words", [
    ("x.npy", np.save, "numpy array"), ("x.npy", lambda path, a: np.save(path, a.astype("float64")), "numpy"),
    ("x.npz", lambda path, array: np.savez(path, labels=array[:, 0], logits=array), "arrays"),
    ("x.npz", np.savez_compressed, "arrays"),
    ("it's $x.pt", lambda path, array: torch.save({"logits": array, "ids": list(range(120))}, path), "numpy"),
    ("x.pt", lambda path, array: torch.save(list(array), path), "numpy"),
])
def test_files_of_numpy_are_refused_with_their_command(here, name, save, words):
    save(name, ARRAY)
    message = refused(lambda: read_for(name), f"{re.escape(name)}: holds ", words)
    assert ("only if you trust" in message) == (not name.startswith("x.np"))
    convert(message, name)
    assert torch.equal(read_for(Path(name).with_suffix(".pt")).values, LOGITS)


@pytest.mark.optional
@pytest.mark.parametrize("array", [False, True])
def test_outputs_of_transformers_are_refused_with_their_command(here, array):
    transformers = pytest.importorskip("transformers")
    value = transformers.modeling_outputs.SequenceClassifierOutput(logits=LOGITS)
    if array:
        value = transformers.trainer_utils.PredictionOutput(ARRAY, None, None)
    torch.save(value, "x.pt")
    message = refused(lambda: read_for("x.pt"), "of transformers", "trust")
    convert(message, "x.pt")
    assert torch.equal(read_for("x.pt").values, LOGITS)


@pytest.mark.parametrize("value, words", [
    (torch.zeros(2, 60, 2), r"\[2, 60, 2\]"), (torch.zeros(0, 2), r"\[0, 2\]"),
    ("text", "not a file of this kit"),
])
def test_what_has_no_logits_is_refused_without_a_command(here, value, words):
    torch.save(value, "x.pt")
    assert "python -c" not in refused(lambda: read_for("x.pt"), r"^x\.pt: ", words)


def test_a_file_that_is_not_there_is_refused_as_such(here):
    for path in ("none.pt", "logits"):
        refused(lambda path=path: read_logits(path), f"^{path}: cannot read")


def test_int_tensors_are_refused_and_floats_of_any_size_taken(here):
    whole = torch.arange(240).view(120, 2)
    torch.save(whole, "x.pt")
    convert(refused(lambda: read_for("x.pt"), r"\[120, 2\] torch.int64"), "x.pt")
    assert torch.equal(read_for("x.pt").values, whole.float())
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        torch.save(LOGITS.to(dtype), "x.pt")
        assert read_for("x.pt").values.dtype == dtype
    torch.save(torch.ones(120, 120), "x.pt")
    assert read_for("x.pt").values.shape == (120, 120)


@pytest.mark.parametrize("shape", [(120,), (120, 1)])
@pytest.mark.parametrize("share", [False, True])
def test_the_one_output_of_a_sigmoid_becomes_the_logits_of_two_labels(here, shape, share):
    x = LOGITS[:, 0].sigmoid() if share else LOGITS[:, 0]
    torch.save(x.view(shape), "x.pt")
    two, three = tasks.Classification(["a", "b"]), tasks.Classification(["a", "b", "c"])
    convert(refused(lambda: refuse_other_columns(read_for("x.pt"), two), "sigmoid"), "x.pt")
    found = read_for("x.pt")
    refuse_other_columns(found, two)
    torch.testing.assert_close(found.values.softmax(1)[:, 1], LOGITS[:, 0].sigmoid())
    assert "python -c" not in refused(lambda: refuse_other_columns(found, three), "2 columns")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_are_told_with_the_command_that_makes_logits(here, dtype, capsys):
    probabilities = (9 * LOGITS).softmax(1)
    probabilities[7] = torch.tensor([0.0, 1.0])
    torch.save(probabilities.to(dtype), "x.pt")
    read_for("x.pt")
    message = capsys.readouterr().err
    assert message.startswith("warning: x.pt: ") and "probabilities" in message
    convert(message, "x.pt")
    found = read_for("x.pt")
    assert not capsys.readouterr().err
    assert found.values[7].tolist() == pytest.approx([-13.8155, 0.0], abs=1e-4)
    torch.testing.assert_close(found.values.softmax(1), probabilities, rtol=0, atol=0.01)
    for other in (LOGITS, LOGITS.log_softmax(1), LOGITS.softmax(1) - 0.1, torch.ones(120, 1)):
        torch.save(other, "x.pt")
        read_for("x.pt")
    assert not capsys.readouterr().err


# ---- logits of something else ------------------------------------------------------------------------------


def swap_rows():
    rows = reviews(120, 0)
    write_rows(Path("train.tsv"), [rows[1], rows[0], *rows[2:]])


def one_row_more():
    write_rows(Path("train.tsv"), [*reviews(120, 0), ("정말 최고", "1")])


def one_row_less():
    write_rows(Path("train.tsv"), reviews(120, 0)[:119])


def text2():
    write_rows(Path("train.tsv"), [(text, "") for text, _ in reviews(120, 0)], "text\ttext2")


def float16_and_grown():
    run("dump_logits", f"{DUMP} --data train.tsv --dtype float16 --overwrite")
    one_row_more()


def renamed():
    one_row_less()
    os.rename("logits/train.pt", "logits/mine.pt")
    return "logits/mine.pt"


def of_another_file():
    return "logits/unlabeled.pt"


@pytest.mark.parametrize("prepare, words, flags", [
    (swap_rows, "other texts", ["--overwrite"]), (one_row_less, "other texts", ["--overwrite"]),
    (one_row_more, "has grown", []), (text2, "other texts", ["--overwrite"]),
    (float16_and_grown, "has grown", ["--dtype", "float16"]), (renamed, "other texts", []),
    (of_another_file, "other texts", []),
], ids=lambda value: getattr(value, "__name__", ""))
def test_logits_of_other_texts_are_refused_and_the_printed_command_makes_the_right_ones(here, prepare, words,
                                                                                        flags):
    path = prepare() or "logits/train.pt"
    found, given = run_printed(refused(lambda: compare(path), path, "train.tsv", words))
    assert found[2:] == ["--data", "train.tsv", "--output-dir", "logits", *flags]
    assert given == ("" if path == "logits/train.pt" else "logits/train.pt")
    compare("logits/train.pt")
    assert read("logits/train.pt")["texts"] == read_examples("train.tsv").fingerprint()


def test_the_printed_command_reads_the_same_columns(here):
    rows = [(text, text + " 정말", label) for text, label in reviews(30, 9)]
    write_rows(here / "my data.tsv", rows, "text\tbody\tgold")
    run("dump_logits", f"{DUMP} --data 'my data.tsv'")
    given = {"path": "logits/my data.pt", "data": "my data.tsv", "text_column": "body",
             "label_column": "gold"}
    words, _ = run_printed(refused(lambda: compare(**given), "other texts"))
    assert words[-5:] == ["--text-column", "body", "--label-column", "gold", "--overwrite"]
    compare(**given)


# ---- of other teachers -------------------------------------------------------------------------------------


def train_on(path, max_length=None) -> None:
    """Another version of the teacher at `path`."""
    teacher = Teacher.load(path)
    if max_length is None:
        with torch.no_grad():
            teacher.head_out.bias += 1
    else:
        teacher.max_length = max_length
    teacher.save(path)


@pytest.mark.parametrize("max_length, named", [(None, "weights"), (9, "max_length")])
@pytest.mark.parametrize("teachers", [["teacher/teacher.pt"], ["teacher/teacher.pt", "my teachers/b.pt"]])
def test_logits_of_a_teacher_that_changed_are_refused_and_the_printed_command_repairs_them(
        here, max_length, named, teachers):
    """Of a mean of two it must not make the logits of one; and a shell has to read it."""
    (here / "my teachers").mkdir()
    shutil.copy("teacher/teacher.pt", "my teachers/b.pt")
    train_on("my teachers/b.pt")
    run("dump_logits", "--data train.tsv --overwrite --device cpu --teacher", *teachers)
    compare("logits/train.pt")
    train_on(teachers[-1], max_length)
    words, _ = run_printed(refused(lambda: compare("logits/train.pt"), f"{teachers[-1]} \\({named} changed"))
    assert words[: 1 + len(teachers)] == ["--teacher", *teachers] and words[-1] == "--overwrite"
    assert compare("logits/train.pt").teachers == [fingerprints(Teacher.load(path)) for path in teachers]


def test_a_named_teacher_is_compared_and_one_that_is_gone_is_not(here, capsys):
    shutil.copy("teacher/teacher.pt", "other.pt")
    train_on("other.pt")
    refused(lambda: compare("logits/train.pt", teacher=["other.pt"]), "other.pt", "weights changed")
    both = ["teacher/teacher.pt", "other.pt"]
    refused(lambda: compare("logits/train.pt", teacher=both), "of 1 teachers.* 2")
    os.rename("teacher/teacher.pt", "kept.pt")
    compare("logits/train.pt")
    assert "teacher/teacher.pt is not there" in capsys.readouterr().err
    refused(lambda: compare("logits/train.pt", teacher=both[:1]), "teacher/teacher.pt: cannot read")
    os.rename("other.pt", "teacher/teacher.pt")
    compare("logits/train.pt", teacher=["kept.pt"])  # what dump_logits.py read is then not looked at
    shutil.copy("logits/train.pt", "teacher/teacher.pt")
    refused(lambda: compare("logits/train.pt"), "logits/train.pt", "cannot be compared", "--teacher")
    assert not capsys.readouterr().err


def test_fingerprints_are_of_all_that_decides_and_of_nothing_else(kit):
    teacher = Teacher.load(kit / "teacher/teacher.pt")
    for model in (teacher, Student.load(kit / "students/tiny/student.pt")):
        first = fingerprints(model)
        model.predict(["영화 최고", "좋다"])  # which sets truncation
        assert fingerprints(model) == first and first["max_length"] == model.reads["max_length"]
        weight = next(model.parameters()).detach()
        before = weight.clone()
        weight[0, 0] += 1
        assert fingerprints(model) | {"weights": first["weights"]} == first != fingerprints(model)
        weight.copy_(before)
        model.tokenizer.add_tokens(["새로운"])
        assert fingerprints(model) | {"tokenizer": first["tokenizer"]} == first != fingerprints(model)
    before = fingerprints(teacher)["weights"]
    teacher.config.layer_norm_eps *= 2
    assert fingerprints(teacher)["weights"] != before


def test_settings_that_a_task_does_not_have_change_no_fingerprint(kit):
    """Logits that were made before there were such settings belong to their teachers still."""
    for load, path in ((Teacher.load, "teacher/teacher.pt"), (Student.load, "students/tiny/student.pt")):
        model, artifact = load(kit / path), read(kit / path)
        assert not {"thresholds", "mean", "deviation"} & artifact["config"].keys()
        digest = hashlib.sha256(json.dumps(artifact["config"], sort_keys=True).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        assert fingerprints(model)["weights"] == digest.hexdigest()
        model.config.mean, model.config.deviation = 1.0, 2.0
        assert fingerprints(model)["weights"] != digest.hexdigest()


# ---- logits against labels ---------------------------------------------------------------------------------


def teacher(count: int, shares, accuracy: float, seed: int):
    """Logits of a teacher that is right so often, and the labels, in these shares."""
    random, C = np.random.default_rng(seed), len(shares)
    labels = random.choice(C, count, p=np.array(shares) / sum(shares))
    wrong = (labels + random.integers(1, C, count)) % C
    logits = random.normal(size=(count, C))
    logits[np.arange(count), np.where(random.random(count) < accuracy, labels, wrong)] = 4
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


def answering(count: int, seed: int, of_rare: float, of_common: float):
    """Two labels, 1 to 50; a teacher that answers the rare one on so many rows of each."""
    random = np.random.default_rng(seed)
    labels = random.random(count) < 1 / 51
    answers = random.random(count) < np.where(labels, of_rare, of_common)
    return torch.tensor(np.stack([~answers, answers], 1)).float(), torch.tensor(labels).long()


def ask(logits, labels):
    task = tasks.Classification([f"name{i}" for i in range(logits.size(1))])
    return doubt(task, logits, torch.arange(len(labels)), labels)


def cells_sorted(count, seed):
    logits, labels = teacher(count, [4, 3, 3], 0.6, seed)
    return logits[labels.argsort()], labels.sort()[0]


def stars(count, seed):
    """From 1 to 5; neighbours are taken for each other, and 5 is mostly answered 4."""
    random = np.random.default_rng(seed)
    labels = random.choice(5, count, p=[0.1, 0.1, 0.2, 0.25, 0.35])
    answers = np.where(random.random(count) < 0.6, labels, labels + random.integers(-1, 2, count)).clip(0, 4)
    answers = np.where((answers == 4) & (random.random(count) < 0.7), 3, answers)
    return torch.eye(5)[answers], torch.tensor(labels)


@pytest.mark.parametrize("make, times", [
    (lambda seed: teacher(40, [1, 1], 0.55, seed), 200), (lambda seed: teacher(10, [1, 1], 0.6, seed), 100),
    (lambda seed: teacher(400, [1, 1], 0.62, seed), 50), (lambda seed: teacher(2000, [1, 1], 0.62, seed), 10),
    (lambda seed: teacher(40, [1, 1, 2, 2, 3], 0.4, seed), 50),
    (lambda seed: answering(40, seed, 0.0, 0.0), 50), (lambda seed: answering(400, seed, 0.0, 0.0), 50),
    (lambda seed: answering(8000, seed, 0.0, 0.0), 3), (lambda seed: answering(2000, seed, 0.25, 0.01), 20),
    (lambda seed: answering(400, seed, 0.8, 0.1), 50), (lambda seed: answering(4000, seed, 0.8, 0.1), 5),
    (lambda seed: stars(2000, seed), 10), (lambda seed: cells_sorted(400, seed), 20),
], ids=["55 % of 40", "60 % of 10", "62 % of 400", "62 % of 2000", "40 % of five", "the commonest, 40",
        "the commonest, 400", "the commonest, 8000", "a rare class, weak", "class weights, 400",
        "class weights, 4000", "stars", "sorted by label"])
def test_a_weak_but_honest_teacher_is_not_doubted(make, times):
    doubted = [words for words, _ in map(ask, *zip(*map(make, range(times)), strict=True)) if words]
    assert len(doubted) <= times // 50, doubted


@pytest.mark.parametrize("count, shares, order, least", [
    (25, [1, 1], [1, 0], 35), (40, [1, 1], [1, 0], 47), (40, [4, 1], [1, 0], 47), (200, [50, 1], [1, 0], 50),
    (40, [5, 3, 2], [1, 2, 0], 49), (50, [1, 1, 2, 2, 3], [1, 2, 3, 4, 0], 49),
    (400, [1, 1, 2, 2, 3], [1, 0, 2, 3, 4], 50),
])
def test_columns_in_another_order_are_found(count, shares, order, least):
    """Of 50 teachers of 88 %."""
    found = 0
    for seed in range(50):
        logits, labels = teacher(count, shares, 0.88, seed)
        words, back = ask(logits[:, order], labels)
        found += bool(back) and torch.equal(logits[:, order][:, back], logits)
        assert not back or f"the columns are {[f'name{i}' for i in order]}, not" in words
    assert found >= least


@pytest.mark.parametrize("shares, count", [([1, 1], 300), ([1, 1, 2, 2, 3], 300), ([4, 1], 600),
                                           ([50, 1], 4000), ([1] * 30, 2000)])
def test_rows_in_another_order_are_found(shares, count):
    found = []
    for seed in range(20):
        logits, labels = teacher(count, shares, 0.98 if shares == [50, 1] else 0.88, seed)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        found.append(ask(logits[order], labels))
    assert all(words == "" or "in the order of the file" in words for words, _ in found)
    assert found.count(("", [])) <= 5


@pytest.mark.parametrize("step, word", [(1, "after"), (-1, "before")])
@pytest.mark.parametrize("shares", [[1, 1], [1, 1, 2, 2, 3]])
def test_rows_that_are_off_by_one_are_found(step, word, shares):
    for seed in range(20):
        logits, labels = teacher(200, shares, 0.88, seed)
        words, order = ask(logits.roll(step, 0), labels)
        assert f"the row {word}" in words and order == []


def test_the_numbers_of_a_doubt_by_hand():
    """30 rows of 40 are 1; 4 logits are right."""
    labels = torch.tensor([1] * 30 + [0] * 10)
    answers = labels.clone()
    answers[:36] = 1 - answers[:36]
    words, order = ask(torch.eye(2)[answers], labels)
    assert "accuracy 0.1000 on 40 labelled rows, but 0.9000" in words and order == [1, 0]
    labels = torch.arange(60) % 30  # of 30 no order is looked for
    words, order = ask(torch.eye(30)[torch.arange(60) % 30].roll(2, 1).repeat(40, 1), labels.repeat(40))
    assert order == []
    assert re.search("^accuracy 0.0000 on 2,400 .* 0.03[23].* any order: no better.*'name0'", words)


class Several:
    """Any of three labels; the score is no mean over rows."""

    best = "f1"

    def __init__(self, names):
        self.names = names

    def statistics(self, logits, target):
        return torch.cat([(logits > 0) & (target > 0), logits > 0, target > 0], 1).double()

    def scores(self, means):
        hits, guess, truth = means.chunk(3, -1)
        return {"f1": (2 * hits / (guess + truth).clamp(min=1e-9)).mean(-1)}


class Numbers:
    best = "r"

    def __init__(self, names):
        self.names = names

    def statistics(self, logits, target):
        x, y = logits[:, 0].double(), target.double()
        return torch.stack([x, y, x * x, y * y, x * y], 1)

    def scores(self, means):
        x, y, xx, yy, xy = means.unbind(-1)
        return {"r": (xy - x * y) / ((xx - x * x) * (yy - y * y)).sqrt()}


def test_a_doubt_is_of_any_task():
    random = torch.Generator().manual_seed(0)
    target = (torch.rand(300, 3, generator=random) < torch.tensor([0.5, 0.2, 0.1])).float()
    logits = 4 * target - 2 + torch.randn(300, 3, generator=random)
    task, rows = Several(["a", "b", "c"]), torch.arange(300)
    assert doubt(task, logits, rows, target) == ("", [])
    assert doubt(task, logits[:, [1, 2, 0]], rows, target)[1] == [2, 0, 1]
    assert "f1 " in doubt(task, logits.roll(1, 0), rows, target)[0]
    assert doubt(task, torch.full((300, 3), -1.0), rows, target) == ("", [])
    assert doubt(Numbers(["score"]), logits[:, :1], rows, target[:, 0]) == ("", [])
    for few in (0, 1, 2):
        assert doubt(task, logits[:, [1, 2, 0]], rows[:few], target[:few]) == ("", [])


def test_scores_in_other_units_are_told_with_the_command_that_converts_them(here, capsys):
    y = torch.linspace(1, 5, 120)[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    cells = [(f"글 {i}", f"{value:.3f}") for i, value in enumerate(y.tolist())]
    write_rows(Path("rows.tsv"), cells, "text\tscore")
    noisy = y + 0.5 * torch.randn(120, generator=torch.Generator().manual_seed(1))
    task = tasks.Regression(["score"])

    def warned(values):
        torch.save(values, "x.pt")
        compare_with_labels(read_logits("x.pt"), read_examples("rows.tsv"), task)
        return capsys.readouterr().err

    for near in (y, noisy, noisy + 0.5, noisy[:, None], 0.5 * noisy + 1.5, y.mean().expand(120)):
        assert warned(near.clone()) == ""
    for other in ((noisy - y.mean()) / y.std(), 20 * noisy, noisy - 3):
        message = warned(other.clone())
        assert message.startswith("warning: x.pt: ") and "units" in message and "rows.tsv" in message
        convert(message, "x.pt")
        found = read_logits("x.pt").values[:, 0]
        assert found.mean().item() == pytest.approx(y.mean().item(), rel=1e-3)
        assert found.std().item() == pytest.approx(y.std().item(), rel=1e-3)
        assert warned(found.clone()) == ""


def test_a_warning_names_both_files_and_its_command_reorders_the_columns(here, capsys):
    """Compared on the rows with an answer."""
    logits, labels = teacher(120, [1, 1, 1], 0.9, 0)
    names = ["a", "b", "c"]
    write_rows(Path("rows.tsv"), [("글", names[label] if i % 3 else "") for i, label in enumerate(labels)])
    torch.save(logits[:, [1, 2, 0]], "x.pt")

    def warned():
        compare_with_labels(read_logits("x.pt"), read_examples("rows.tsv"), tasks.Classification(names))
        return capsys.readouterr().err

    message = warned()
    assert message.startswith("warning: x.pt and rows.tsv: accuracy 0.") and message.count("\n") == 1
    assert " on 80 labelled rows" in message
    convert(message, "x.pt")
    assert torch.equal(read_logits("x.pt").values, logits) and not warned()
    logits, labels = teacher(4000, [1, 1, 1], 0.9, 0)
    write_rows(Path("rows.tsv"), [("글", names[label]) for label in labels])
    torch.save(logits[torch.randperm(4000, generator=torch.Generator().manual_seed(1))], "x.pt")
    message = warned()
    assert message.startswith("warning: x.pt and rows.tsv: accuracy 0.3") and "python" not in message


def test_evaluate_tells_columns_in_another_order_also_beside_a_model(here, capsys):
    rows = reviews(40, 3)
    values = torch.tensor([[1.0, -1.0] if label == "1" else [-1.0, 1.0] for _, label in rows])
    torch.save(values, "x.pt")
    model = Student.load("students/tiny/student.pt")
    model.label_names.reverse()
    model.save("reversed.pt")
    for models in ("", "reversed.pt"):
        run("evaluate", f"{models} --data test.tsv --logits x.pt --device cpu")
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("warning: x.pt and test.tsv: accuracy 0.0000 on 40 labelled rows, but 1.0")
        assert "the columns are ['1', '0'], not ['0', '1']" in message
    convert(message, "x.pt")
    run("evaluate", "--data test.tsv --logits x.pt --device cpu")
    assert "warning" not in capsys.readouterr().err
