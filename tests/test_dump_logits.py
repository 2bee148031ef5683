"""dump_logits.py: row i has the logits of row i; blocks that are there are reused, and give the same bits."""

import json
import os
import re
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    Killed,
    die_after,
    peak_above,
    publish,
    read,
    refused,
    reviews,
    run,
    snapshot,
    write_rows,
)

import dump_logits
import runtime
from data.examples import read_again, read_examples
from data.logits import fingerprints
from student import Student
from teacher import Teacher, TeacherConfig

TEXTS = [text for text, _ in reviews(120, 0)]  # of train.tsv
ONE = "--teacher teacher/teacher.pt"
TWO = f"{ONE} b.pt"


def dump(flags: str, *more) -> None:
    run("dump_logits", f"--max-tokens 50 {CPU} {flags}", *more)


def alone(model, text, text2=None):
    """Logits (C,) of one row by itself, straight from the tokenizer, nothing padded."""
    model.tokenizer.no_padding()
    model.tokenizer.enable_truncation(model.reads["max_length"])
    encoding = model.tokenizer.encode(text, text2)
    ids = torch.tensor([encoding.ids or [model.reads["blank_id"]]])
    second = () if text2 is None else (torch.tensor([len(encoding.ids) - sum(encoding.type_ids)]),)
    with torch.no_grad():
        return model.eval()(ids, torch.tensor([ids.size(1)]), *second)[0]


@pytest.fixture
def folder(here):
    """The kit without logits, with a second teacher b.pt that reads 9 tokens."""
    shutil.rmtree("logits")
    teacher = Teacher.load("teacher/teacher.pt")
    with torch.no_grad():
        teacher.head_out.weight.mul_(-0.3)
    teacher.max_length = 9
    teacher.save("b.pt")
    return here


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of 32 rows; returns the texts of every call that runs the teachers."""
    monkeypatch.setattr(dump_logits, "BLOCK", 32)
    calls, mean_logits = [], dump_logits.mean_logits

    def counted(teachers, texts, *rest):
        calls.append(list(texts))
        return mean_logits(teachers, texts, *rest)

    monkeypatch.setattr(dump_logits, "mean_logits", counted)
    return calls


def killed(flags: str, writes: int) -> list[str]:
    """What a dump wrote that was killed after so many files."""
    with pytest.MonkeyPatch.context() as patch:
        written = die_after(patch, writes)
        with pytest.raises(Killed):
            dump(flags)
    return written


def files(name="logits") -> set[str]:
    return {path.name for path in Path(name).iterdir()} - {".train.lock", ".unlabeled.lock"}


# ---- the logits --------------------------------------------------------------------------------------------


def test_row_i_holds_the_logits_of_row_i_of_each_file(folder):
    """Labelled rows, unlabelled ones with blanks and one that is cut, and pairs."""
    texts = ["정말 최고", "", "지루 영화 " * 99, "   ", "영화 별로", "\U0001f600"]
    pairs = [("영화", "정말 최고"), ("", "별로"), ("추천", ""), ("최악 " * 99, "재밌다 배우 " * 99)]
    Path("b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_rows(folder / "c.tsv", pairs, "text\ttext2")
    dump(f"{ONE} --data train.tsv b.jsonl c.tsv")
    teacher = Teacher.load("teacher/teacher.pt")
    single = {name: [(text, None) for text in column]
              for name, column in {"train.tsv": TEXTS, "b.jsonl": texts}.items()}
    for data, rows in {**single, "c.tsv": pairs}.items():
        artifact = read(f"logits/{Path(data).stem}.pt")
        expected = torch.stack([alone(teacher, *row) for row in rows])
        assert artifact["logits"].dtype == torch.float32 and expected.std(0).min() > 0.05
        torch.testing.assert_close(artifact["logits"], expected, rtol=0, atol=1e-5)
        assert artifact["texts"] == read_examples(data).fingerprint()
        assert artifact["teachers"] == [fingerprints(teacher)] and len(artifact["blocks"]) == 1
        assert (artifact["label_names"], artifact["task"]) == (["0", "1"], "classification")
        assert (artifact["precision"], artifact["teacher_files"]) == ("fp32", ["../teacher/teacher.pt"])
    assert files() == {"train.pt", "b.pt", "c.pt", ".b.lock", ".c.lock"}


def test_two_teachers_give_the_mean_of_their_logits(folder, blocks):
    for flags, name in ((ONE, "a"), ("--teacher b.pt", "b"), (TWO, "mean")):
        dump(f"{flags} --data train.tsv --output-dir {name}")
    a, b, mean = (read(f"{name}/train.pt") for name in ("a", "b", "mean"))
    assert torch.equal(mean["logits"], a["logits"] / 2 + b["logits"] / 2)
    assert mean["teachers"] == a["teachers"] + b["teachers"] and mean["teachers"][1]["max_length"] == 9
    assert len(blocks) == 3 * 4


def test_a_student_teaches_beside_a_teacher_with_its_logits_before_calibration(folder):
    student = Student.load("students/tiny/student.pt")
    student.config.temperature = 3.0
    student.save("assistant.pt")
    teacher = Teacher.load("teacher/teacher.pt")
    dump(f"{ONE} assistant.pt --data train.tsv")
    expected = [(alone(student, text) + alone(teacher, text)) / 2 for text in TEXTS]
    torch.testing.assert_close(read("logits/train.pt")["logits"], torch.stack(expected), rtol=0, atol=1e-5)
    dump(f"{ONE} assistant.pt --data train.tsv --check 9")


def test_float16_is_the_float32_rounded_at_half_the_size(folder):
    for dtype in ("float32", "float16"):
        dump(f"{ONE} --data train.tsv --dtype {dtype} --output-dir {dtype}")
    full, half = (read(f"{dtype}/train.pt")["logits"] for dtype in ("float32", "float16"))
    assert half.dtype == torch.float16 and torch.equal(half, full.half())
    full, half = (os.path.getsize(f"{dtype}/train.pt") for dtype in ("float32", "float16"))
    assert full - half == pytest.approx(120 * 2 * 2, abs=128)  # tensors start at multiples of 64
    dump(f"{ONE} --data train.tsv --dtype float16 --output-dir float16 --check 120")


def test_the_printed_score_is_that_of_the_labelled_rows(folder, capsys):
    rows = [(text, label if i % 3 else "") for i, (text, label) in enumerate(reviews(120, 0))]
    write_rows(folder / "train.tsv", rows)
    dump(f"{ONE} --data train.tsv unlabeled.tsv")
    right = sum(str(int(row.argmax())) == label for row, (_, label) in
                zip(read("logits/train.pt")["logits"], rows, strict=True))
    printed = re.findall(r"^(\S+): .*texts/s(?:.*accuracy (\S+) on (\d+) )?", capsys.readouterr().out, re.M)
    assert printed == [("train.tsv", f"{right / 80:.4f}", "80"), ("unlabeled.tsv", "", "")]
    write_rows(folder / "train.tsv", [*rows, ("좋다", "2")])
    refused(lambda: dump(f"{ONE} --data train.tsv --output-dir other"), "train.tsv:122: .*'2'")


def test_a_teacher_whose_labels_are_in_another_order_is_told(folder, capsys):
    dump(f"{ONE} --data train.tsv")
    assert "warning" not in capsys.readouterr().err
    rows = [(text, str(1 - int(label)) if i % 3 else "") for i, (text, label) in enumerate(reviews(120, 0))]
    write_rows(folder / "train.tsv", rows)
    dump(f"{ONE} --data train.tsv unlabeled.tsv --overwrite")
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("warning: logits/train.pt and train.tsv: accuracy 0.")
    assert "on 80 labelled rows" in message and "the columns are ['1', '0']" in message


# ---- running again: blocks ---------------------------------------------------------------------------------


def test_a_repeated_dump_computes_nothing(folder, blocks, capsys):
    dump(f"{TWO} --data train.tsv unlabeled.tsv")
    before = snapshot()
    assert [len(call) for call in blocks] == [32, 32, 32, 24, 32, 32, 16]
    del blocks[:]
    dump(f"{TWO} --data train.tsv unlabeled.tsv --max-tokens 77")
    assert not blocks and snapshot() == before and "complete already" in capsys.readouterr().out
    dump(f"{TWO} --data train.tsv test.tsv")  # one more file
    assert [len(call) for call in blocks] == [32, 8]
    assert {name: value for name, value in snapshot().items() if name in before} == before


@pytest.mark.parametrize("writes", [1, 2, 4, 5])
@pytest.mark.parametrize("flags", [ONE, f"{TWO} --dtype float16"])
def test_an_interrupted_dump_computes_what_is_missing_and_has_the_same_bits(folder, blocks, flags, writes):
    dump(f"{flags} --data train.tsv --output-dir whole")
    del blocks[:]
    killed(f"{flags} --data train.tsv", writes)
    assert len(blocks) == min(writes, 4) and ("train.pt" in files()) == (writes == 5)
    del blocks[:]
    dump(f"{flags} --data train.tsv")
    assert blocks == [TEXTS[start : start + 32] for start in range(0, 120, 32)][writes:]
    assert Path("logits/train.pt").read_bytes() == Path("whole/train.pt").read_bytes()
    assert files() == {"train.pt"}


@pytest.mark.parametrize("rows", [31, 64, 100, 119])
def test_a_file_that_grew_has_its_new_blocks_computed_alone(folder, blocks, rows):
    """The block that was not full is a new one; all bits are those of a full dump."""
    dump(f"{TWO} --data train.tsv --output-dir whole")
    write_rows(folder / "train.tsv", reviews(120, 0)[:rows])
    dump(f"{TWO} --data train.tsv")
    write_rows(folder / "train.tsv", reviews(120, 0))
    del blocks[:]
    killed(f"{TWO} --data train.tsv", 1)  # also in two goes
    assert len(read("logits/train.pt")["logits"]) == rows
    dump(f"{TWO} --data train.tsv")
    assert [text for call in blocks for text in call] == TEXTS[rows // 32 * 32 :]
    assert Path("logits/train.pt").read_bytes() == Path("whole/train.pt").read_bytes()
    assert files() == {"train.pt"}


def test_a_dump_of_an_earlier_version_has_no_blocks_but_stays_and_grows(folder, blocks):
    dump(f"{ONE} --data train.tsv --output-dir whole")
    write_rows(folder / "train.tsv", reviews(120, 0)[:64])
    dump(f"{ONE} --data train.tsv")
    artifact = read("logits/train.pt")
    del artifact["blocks"], artifact["task"]
    torch.save(artifact, "logits/train.pt")
    before = snapshot()
    dump(f"{ONE} --data train.tsv")
    assert snapshot() == before
    write_rows(folder / "train.tsv", reviews(120, 0))
    dump(f"{ONE} --data train.tsv")
    assert Path("logits/train.pt").read_bytes() == Path("whole/train.pt").read_bytes()


def shrink(folder):
    write_rows(folder / "train.tsv", reviews(119, 0))


def change(folder):
    rows = reviews(120, 0)
    write_rows(folder / "train.tsv", [*rows[:100], ("다른 글", "1"), *rows[101:]])


def change_and_grow(folder):
    write_rows(folder / "train.tsv", [("다른 글", "1"), *reviews(120, 0)])


def retrain(folder):
    teacher = Teacher.load("b.pt")
    with torch.no_grad():
        teacher.head_out.bias += 1
    teacher.save("b.pt")


def bare(folder):
    torch.save(torch.zeros(120, 2), "logits/train.pt")


def other_rows(count):
    def prepare(folder):
        artifact = read("logits/train.pt")
        torch.save(artifact | {"logits": artifact["logits"].repeat(2, 1)[:count].clone()}, "logits/train.pt")
    return prepare


@pytest.mark.parametrize("prepare, flags, words", [
    (shrink, TWO, "other texts"), (change, TWO, "other texts"), (change_and_grow, TWO, "other texts"),
    (retrain, TWO, "the weights of teacher 2"), (None, ONE, r"number of teachers \(2, now 1\)"),
    (None, "--teacher b.pt teacher/teacher.pt", "max_length of teacher 1"),
    (None, f"{TWO} --dtype float16", r"--dtype \(float32, now float16\)"),
    (None, f"{TWO} --precision bf16", r"--precision \(fp32, now bf16\)"),
    (bare, TWO, "bare"), (other_rows(90), TWO, "train.tsv"), (other_rows(130), TWO, "train.tsv"),
], ids=lambda value: getattr(value, "__name__", None))
def test_logits_of_other_texts_or_made_otherwise_need_overwrite(folder, blocks, prepare, flags, words):
    dump(f"{TWO} --data train.tsv")
    if prepare:
        prepare(folder)
    before, _ = snapshot(), blocks.clear()
    refused(lambda: dump(f"{flags} --data unlabeled.tsv train.tsv"), "logits/train.pt", words, "--overwrite")
    assert snapshot() == before and not blocks
    dump(f"{flags} --data unlabeled.tsv train.tsv --overwrite")
    dump(f"{flags} --data unlabeled.tsv train.tsv --check 200")


@pytest.mark.parametrize("writes", [0, 2, 5, 7, 9])
def test_a_killed_overwrite_of_two_files_replaces_both_when_run_again(folder, blocks, writes):
    """Each has an altered logit, and looks complete. It is killed after two tombstones, in each of the files,
    and between them."""
    dump(f"{ONE} --data train.tsv unlabeled.tsv --output-dir whole")
    shutil.copytree("whole", "logits")
    for name in ("train", "unlabeled"):
        artifact = read(f"logits/{name}.pt")
        artifact["logits"][7, 0] += 3
        torch.save(artifact, f"logits/{name}.pt")
    old = snapshot("logits")
    if writes:
        killed(f"{ONE} --data train.tsv unlabeled.tsv --overwrite", writes)
        assert writes > 6 or snapshot("logits").items() >= old.items()  # it stays until it can be replaced
        dump(f"{ONE} --data train.tsv unlabeled.tsv")
    else:
        dump(f"{ONE} --data train.tsv unlabeled.tsv --overwrite")
    for name in ("train", "unlabeled"):
        assert Path(f"logits/{name}.pt").read_bytes() == Path(f"whole/{name}.pt").read_bytes()
    assert files() == {"train.pt", "unlabeled.pt"}


def test_blocks_of_another_teacher_are_not_reused_and_damaged_ones_are_told(folder, blocks):
    killed(f"{ONE} --data train.tsv", 2)
    del blocks[:]
    killed("--teacher b.pt --data train.tsv", 1)
    assert blocks == [TEXTS[:32]]
    dump("--teacher b.pt --data train.tsv")
    dump("--teacher b.pt --data train.tsv --check 120")
    killed(f"{ONE} --data train.tsv --output-dir other", 1)
    [block] = Path("other/.train.blocks").iterdir()
    torch.save(torch.zeros(32, 3), block)
    refused(lambda: dump(f"{ONE} --data train.tsv --output-dir other"), f"{block}: damaged")
    dump(f"{ONE} --data train.tsv --output-dir other --overwrite")
    dump(f"{ONE} --data train.tsv --output-dir other --check 120")


def test_texts_that_change_while_they_are_read_are_refused(folder, blocks, monkeypatch):
    """Put back as they were, only the block is computed that held the other text."""
    dump(f"{ONE} --data train.tsv --output-dir whole")

    def replaced(*args, **flags):
        change(folder)
        return read_again(*args, **flags)

    with monkeypatch.context() as patch:
        patch.setattr(dump_logits, "read_again", replaced)
        refused(lambda: dump(f"{ONE} --data train.tsv"), "train.tsv: was changed")
    assert "train.pt" not in files()
    write_rows(folder / "train.tsv", reviews(120, 0))
    del blocks[:]
    dump(f"{ONE} --data train.tsv")
    assert blocks == [TEXTS[96:]]
    assert Path("logits/train.pt").read_bytes() == Path("whole/train.pt").read_bytes()


def test_precision_auto_is_decided_once_for_a_file(folder, blocks, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: {"avx512_bf16"})
    write_rows(folder / "train.tsv", reviews(64, 0))
    dump(f"{ONE} --data train.tsv --precision auto")
    dump("--teacher students/tiny/student.pt --data train.tsv --precision auto --output-dir student")
    assert read("logits/train.pt")["precision"] == "bf16" and read("student/train.pt")["precision"] == "fp32"
    monkeypatch.setattr(runtime, "cpu_flags", set)
    write_rows(folder / "train.tsv", reviews(120, 0))
    del blocks[:]
    dump(f"{ONE} --data train.tsv --precision auto")
    assert [len(call) for call in blocks] == [32, 24] and read("logits/train.pt")["precision"] == "bf16"


# ---- memory and time of large teachers ---------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["published in bf16", "teacher.pt"])
def test_a_dump_in_bf16_takes_little_more_memory_than_the_weights_in_bf16(kit, here, stored):
    """64 million of them, which are 257 MB in float32."""
    tokenizer, size = Teacher.load("teacher/teacher.pt").tokenizer, 100
    for name, layers, wide in (("small", 1, 16), ("large", 5, 1024)):
        teacher = Teacher(TeacherConfig("bert", size, wide, layers, 2, 4 * wide, wide, 64, 2, 2), tokenizer,
                          ["0", "1"], 64)
        if stored == "teacher.pt":
            teacher.save(f"{name}.pt")
        else:
            publish(teacher.bfloat16(), name, id2label={"0": "0", "1": "1"})
    weights = 2 * sum(each.numel() for each in teacher.parameters())
    assert peak_above(*(f"{name}.pt" if stored == "teacher.pt" else name for name in ("small", "large"))) \
        < 1.3 * weights + 24e6


def test_batches_are_small_for_a_transformer_on_the_cpu(folder):
    for teacher, tokens in (("teacher/teacher.pt", 1024), ("students/tiny/student.pt", 8192)):
        run("dump_logits", f"--teacher {teacher} --data valid.tsv --output-dir {tokens} {CPU}")
        assert read(f"{tokens}/valid.pt")["made_by"]["arguments"]["max_tokens"] == tokens


def test_the_expected_time_is_printed_first(folder, capsys, monkeypatch):
    """Of the rows that are missing, by 15 of them that take 1.5 seconds."""
    clock = count(1000, 1.5)
    monkeypatch.setattr(dump_logits, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    dump(f"{ONE} --data train.tsv")
    dump(f"{ONE} --data train.tsv")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train.tsv: ")]
    assert lines[1] == "train.tsv: about 12s for 120 rows in fp32" and "texts/s" in lines[2]
    assert sum("about" in line for line in lines) == 1
    monkeypatch.setattr(dump_logits, "BLOCK", 60)
    killed(f"{ONE} --data train.tsv --output-dir other", 1)
    dump(f"{ONE} --data train.tsv --output-dir other")
    first, then = (line for line in capsys.readouterr().out.splitlines() if "about" in line)
    assert first == "train.tsv: about 12s for 120 rows in fp32" and "for 60 rows" in then


# ---- --check -----------------------------------------------------------------------------------------------


def test_check_computes_rows_again_and_finds_the_one_that_was_altered(folder, blocks, capsys, monkeypatch):
    dump(f"{TWO} --data train.tsv")
    before, _ = snapshot(), blocks.clear()
    dump(f"{TWO} --data train.tsv --check 25")
    assert len(blocks) == 1 and len(blocks[0]) == 25 and set(blocks[0]) <= set(TEXTS)
    dump(f"{TWO} --data train.tsv --check 999")
    assert "120 of 120 rows computed again in fp32" in capsys.readouterr().out and snapshot() == before
    artifact = read("logits/train.pt")
    right = artifact["logits"][41, 1].item()
    draw = np.random.default_rng
    seed = next(seed for seed in range(99) if 41 in draw(seed).permutation(120)[:30])
    for wrong in (right + 0.02, right - 0.02, torch.nan):
        artifact["logits"][41, 1] = wrong
        torch.save(artifact, "logits/train.pt")
        with monkeypatch.context() as patch:
            patch.setattr(np.random, "default_rng", lambda: draw(seed))  # every fourth row, 41 among them
            refused(lambda: dump(f"{TWO} --data train.tsv --check 30"), "1 of 30 .*row 41", r"train\.tsv:43")
        refused(lambda: dump(f"{TWO} --data train.tsv --check 120"), "1 of 120 .*row 41", "--overwrite")
    refused(lambda: dump(f"{ONE} --data train.tsv --check 5"), "number of teachers")
    with pytest.raises(SystemExit):
        dump(f"{ONE} --data train.tsv --check 5 --overwrite")
