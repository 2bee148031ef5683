"""data/logits.py: what is written is read, old files and bare tensors too; logits of anything else are
refused, and the command that the refusal prints makes the right ones."""

import argparse
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import read, refused, reviews, run, run_printed, write_rows

from data.examples import read_examples, survey
from data.logits import Logits, check_teachers, fingerprints, read_logits, read_logits_of, write_logits
from student import Student
from teacher import Teacher

DUMP = "--teacher teacher/teacher.pt --device cpu"


def arguments(**flags):
    return argparse.Namespace(**{"teacher": None, "text_column": None, "text2_column": None,
                                 "label_column": None} | flags)


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
