"""data/training.py: files, answers and logits are read as one set; what does not fit is refused."""

import argparse
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import read, refused, reviews, run, write_rows
from tokenizers import Tokenizer

import runtime
import tasks
from data import batches
from data.batches import encode
from data.examples import read_again, read_examples
from data.training import encode_training_set, read_training_set
from student import Student
from teacher import Teacher

BOTH = ["train.tsv", "unlabeled.tsv"], ["logits/train.pt", "logits/unlabeled.pt"]
load = partial(runtime.load_model, loaders={"teacher": Teacher.load, "student": Student.load})


def read_set(train=("train.tsv",), logits=None, valid="valid.tsv", **flags):
    args = argparse.Namespace(**{"teacher": None, "text_column": None, "text2_column": None, "task": None,
                                 "label_column": None} | flags, train=train, logits=logits, valid=valid)
    return read_training_set(args, tasks, load)


def encode_set(data, folder="store"):
    tokenizer = Tokenizer.from_file("tokenizer/vocab_size_3000/tokenizer.json")
    return encode_training_set(data, partial(encode, tokenizer, max_length=32, pad_id=0, blank_id=1), folder)


def cells(path, column, header="text\tlabel"):
    return write_rows(Path(path), [("글", cell) for cell in column], header)


# ---- what is read ------------------------------------------------------------------------------------------


def test_files_answers_and_logits_are_one_set(here):
    data = read_set(*BOTH)
    assert (data.rows, data.labelled, data.task.names) == (200, 120, ["0", "1"])
    assert data.teachers == ["teacher/teacher.pt"] * 2 and isinstance(data.task, tasks.Classification)
    assert data.valid_target.tolist() == [int(answer) for answer in read_examples("valid.tsv").answers]
    assert [data.name_row(number) for number in (0, 119, 120, 199)] == [
        ("train.tsv", 0), ("train.tsv", 119), ("unlabeled.tsv", 0), ("unlabeled.tsv", 79)]
    with pytest.raises(IndexError):
        data.name_row(200)
    assert read_set(*BOTH, teacher=["teacher/teacher.pt"]).teachers == ["teacher/teacher.pt"]
    alone = read_set()
    assert alone.logits == alone.teachers == [] and alone.rows == 120


def test_another_order_of_outputs_reaches_targets_and_logits(here):
    """That of a published head."""
    before, data = read_set(*BOTH), read_set(*BOTH)
    data.reorder(["1", "0"])
    assert data.task.names == ["1", "0"] and torch.equal(data.valid_target, 1 - before.valid_target)
    for now, then in zip(data.logits, before.logits, strict=True):
        assert torch.equal(now.values, then.values.flip(1))
    store, _ = encode_set(data)
    [window] = store.windows(torch.device("cpu"))
    answers = [int(answer) for answer in read_examples("train.tsv").answers]
    assert window.columns["target"][:120].tolist() == [1 - answer for answer in answers]


def test_the_columns_of_a_bare_tensor_are_sorted_labels_beside_logits_of_another_order(here):
    artifact = read("logits/train.pt")
    torch.save(artifact | {"label_names": ["1", "0"]}, "reversed.pt")
    torch.save(torch.arange(160.0).view(80, 2), "bare.pt")
    data = read_set(BOTH[0], ["reversed.pt", "bare.pt"])
    assert data.task.names == ["1", "0"] and data.logits[1].values[0].tolist() == [1.0, 0.0]
    assert torch.equal(data.logits[0].values, artifact["logits"])


def test_labels_are_those_of_all_files_and_with_bare_logits_of_validation_too(here):
    cells("a.tsv", ["3", "3"]), cells("b.tsv", "xy", "text"), cells("c.tsv", ["20", ""])
    cells("v.tsv", ["100", "3"])
    torch.save(torch.zeros(2, 3), "bare.pt")
    files = ["a.tsv", "b.tsv", "c.tsv"]
    refused(lambda: read_set(files, valid="v.tsv"), r"^v\.tsv:2: .*'100'.*\['3', '20'\]")
    data = read_set(files, ["bare.pt"] * 3, valid="v.tsv")
    assert data.task.names == ["3", "20", "100"]
    assert (data.rows, data.labelled, data.valid_target.tolist()) == (6, 3, [2, 0])
    refused(lambda: read_set(files, ["bare.pt"] * 3), "bare.pt.*3 columns.*'0', '1', '3', '20'")
    artifact = read("logits/train.pt")  # the order of labels is that of the logits
    torch.save(artifact | {"label_names": ["1", "0"]}, "logits/train.pt")
    data = read_set(["train.tsv"], ["logits/train.pt"])
    assert data.task.names == ["1", "0"]
    assert data.valid_target.tolist() == [1 - int(answer) for answer in read_examples("valid.tsv").answers]


# ---- what is refused ---------------------------------------------------------------------------------------


def test_files_that_do_not_fit_each_other_are_refused(here, capsys):
    write_rows(here / "pairs.tsv", [("글", "말", "1"), ("글", "말", "0")], "text\ttext2\tlabel")
    refused(lambda: read_set(["train.tsv", "pairs.tsv"]), "pairs.tsv and .*valid.tsv|pairs.tsv and train.tsv",
            "text2")
    refused(lambda: read_set(valid="pairs.tsv"), "pairs.tsv and train.tsv")
    cells("late.tsv", ["0"] * 20 + ["2"])
    torch.save(read("logits/train.pt") | {"logits": torch.zeros(21, 2), "texts": read_examples(
        "late.tsv").fingerprint()}, "late.pt")
    refused(lambda: read_set(["late.tsv"], ["late.pt"]), r"late\.tsv:22: .*'2'.* empty")
    assert "has the texts" not in capsys.readouterr().err
    read_set(["train.tsv", "test.tsv"], valid="test.tsv")
    assert "test.tsv has the texts of test.tsv" in capsys.readouterr().err


def test_logits_that_do_not_fit_each_other_are_refused(here):
    refused(lambda: read_set(BOTH[0], BOTH[1][::-1]), "logits/unlabeled.pt: .* to unlabeled.tsv.* order")
    good = read("logits/unlabeled.pt")

    def altered(**changes):
        torch.save(good | changes, "logits/unlabeled.pt")
        return lambda: read_set(*BOTH)

    refused(altered(label_names=["1", "0"]), "logits/unlabeled.pt", "labels")
    refused(altered(task="multilabel"), "logits/unlabeled.pt", "one teacher")
    refused(altered(teachers=good["teachers"] * 2, teacher_files=good["teacher_files"] * 2),
            "logits/unlabeled.pt", "other teachers than logits/train.pt", "dump_logits.py")
    torch.save(torch.zeros(80, 3), "bare.pt")
    refused(lambda: read_set(BOTH[0], ["logits/train.pt", "bare.pt"]), "bare.pt", "labels")
    torch.save(torch.zeros(80, 2), "bare.pt")  # of any other system: beside a teacher's it is taken
    altered()
    assert read_set(BOTH[0], ["logits/train.pt", "bare.pt"]).task.names == ["0", "1"]
    for name in ("train", "unlabeled"):
        torch.save(read(f"logits/{name}.pt") | {"task": "clustering"}, f"logits/{name}.pt")
    refused(lambda: read_set(*BOTH), "logits/train.pt", "clustering", "classification")


def test_bare_logits_that_contradict_the_labels_are_reported(here, capsys):
    """Each file with both is compared, on the rows with an answer; dump_logits.py has compared its own."""
    rows = [(text, label if i % 3 else "") for i, (text, label) in enumerate(reviews(240, 5))]
    write_rows(here / "more.tsv", rows)
    right = torch.tensor([[-3.0, 3.0] if label == "1" else [3.0, -3.0] for _, label in reviews(240, 5)])

    def warned(values):
        torch.save(values, "more.pt")
        read_set(["train.tsv", "more.tsv", "unlabeled.tsv"], ["logits/train.pt", "more.pt", *BOTH[1][1:]])
        return capsys.readouterr().err

    assert warned(right) == ""
    message = warned(right.flip(1))
    assert message.startswith("warning: more.pt and more.tsv: accuracy 0.0000 on 160 labelled rows, but 1.0")
    assert message.count("\n") == 1 and "['1', '0'], not ['0', '1']" in message and "x[:, [1, 0]]" in message
    assert "row before" in warned(right.roll(-1, 0))
    for path in ("logits/train.pt", "logits/unlabeled.pt"):  # a teacher whose labels are in another order
        torch.save(read(path) | {"label_names": ["1", "0"], "logits": read(path)["logits"].flip(1)}, path)
    assert warned(right) == ""
    assert "not ['0', '1']" in warned(right.flip(1))


# ---- rows in scratch files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2**24, 200])
def test_every_row_keeps_its_tokens_target_and_logits(here, monkeypatch, window):
    """Also where rows are read in parts and come in windows. Every third answer is empty."""
    monkeypatch.setattr(batches, "WINDOW", window)
    monkeypatch.setattr(read_again, "__defaults__", (None, None, None, 16))
    rows = [(text, label if i % 3 else "") for i, (text, label) in enumerate(reviews(120, 0))]
    write_rows(here / "train.tsv", rows)
    run("dump_logits", "--teacher teacher/teacher.pt --data train.tsv --dtype float16 --overwrite")
    data = read_set(*BOTH)
    expected = torch.cat([item.values.float() for item in data.logits])
    texts, answers = [], []
    for file in BOTH[0]:
        examples = read_examples(file)
        texts += examples.texts
        answers += examples.answers or [""] * len(examples)
    store, valid = encode_set(data)
    tokenizer = Tokenizer.from_file("tokenizer/vocab_size_3000/tokenizer.json")
    seen = []
    for part in store.windows(torch.device("cpu"), (1, 2)):
        for i, number in enumerate(part.numbers.tolist()):
            assert part.tokens[part.offsets[i] : part.offsets[i + 1]].tolist() == tokenizer.encode(
                texts[number]).ids
            assert part.columns["known"][i].item() == bool(answers[number])
            assert not answers[number] or part.columns["target"][i].item() == int(answers[number])
            assert torch.equal(part.columns["teacher_logits"][i], expected[number])
            seen.append(number)
    assert sorted(seen) == list(range(200)) and (seen != sorted(seen)) == (window == 200)
    assert len(valid) == 40 and not list(Path("store").iterdir())


@pytest.mark.parametrize("path", ["train.tsv", "logits/unlabeled.pt"])
def test_files_that_change_after_they_were_checked_are_refused(here, path):
    data = read_set(*BOTH)
    if path.endswith(".tsv"):
        write_rows(here / path, [("다른 글", "1"), *reviews(120, 0)[1:]])
    else:
        torch.save(read(path) | {"x": 1}, path)
    refused(lambda: encode_set(data), f"^{path}: was changed")
