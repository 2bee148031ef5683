"""extra/predict_table.py: what comes in goes out, with the model's answers; whole, or not at all."""

import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from helpers import refused, run, snapshot

from data import examples
from extra import predict_table
from runtime import UserError
from student import Student, StudentConfig, decode
from teacher import Teacher

ROOT = Path(__file__).parent.parent
STUDENT = "students/tiny/student.pt"
# Cells that a careless writer tears apart: commas, quotes, every line end, blanks, other line separators.
CELLS = ['최고, "정말" 좋다', "지루\n실망", "영화\r\n배우", "별로\r", "", " 추천 ", "재밌다\u2028그냥", '"',
         "\\", "최악\t"]
PAIRED = [*CELLS[1:], CELLS[0]]
NAMES = ["욕설,지역", "칭찬", "비난"]  # one with a comma, so that a cell of several is a JSON list


def written(path, rows, bom="") -> Path:
    """The rows as csv.writer has them, or as tabs and lines; packed if the name says so."""
    out = io.StringIO(newline="")
    if ".csv" in path:
        csv.writer(out).writerows(rows)
    else:
        out.writelines("\t".join(row) + "\n" for row in rows)
    data = (bom + out.getvalue()).encode()
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)
    return Path(path)


def read_back(path) -> list[list[str]]:
    data = Path(path).read_bytes()
    text = (gzip.decompress(data) if str(path).endswith(".gz") else data).decode()
    if ".csv" in str(path):
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    lines = text.split("\n")
    assert lines.pop() == ""
    return [line.split("\t") for line in lines]


def expected(path, texts, texts2=None) -> list[list[str]]:
    """The new cells, by Student.predict and decode, three rows at a time: the last digit may depend on it."""
    student = Student.load(path)
    found = torch.cat([student.predict(texts[i : i + 3], texts2 and texts2[i : i + 3])
                       for i in range(0, len(texts), 3)])
    found = decode(found, student.label_names, student.task, student.config.thresholds)
    return [[answer] if sure is None else [answer, str(round(sure, 4))] for answer, sure in found]


@pytest.fixture
def small_parts(monkeypatch):
    """Rows come three at a time, as those of a large file come in thousands."""
    for function in (examples.stream_rows, examples.stream_examples):
        monkeypatch.setattr(function, "__defaults__", (None, None, None, 3))


@pytest.fixture
def models(here):
    """several.pt, score.pt and pairs.pt (classification), untrained, with the kit's tokenizer."""
    tokenizer = Student.load(STUDENT).tokenizer
    torch.manual_seed(0)
    for name, task, names, more in (("several", "multilabel", NAMES, {"thresholds": [0.5, 0.4, 0.6]}),
                                    ("score", "regression", ["score"], {"mean": 3.0, "deviation": 2.0}),
                                    ("pairs", "classification", ["a", "b"], {"pair": "siamese"})):
        config = StudentConfig(tokenizer.get_vocab_size(), len(names), 8, 8, **more)
        student = Student(config, tokenizer, names, task)
        student.head.weight.data *= 20  # answers that differ
        student.save(f"{name}.pt")


# ---- what comes in goes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_every_cell_of_a_csv_comes_back(here, small_parts, ending, bom, capsys):
    """Also those of columns with one name; the text is in the middle."""
    rows = [[cell, text, cell, str(i)] for i, (cell, text) in enumerate(zip(PAIRED, CELLS, strict=True))]
    table = written(f"in.{ending}", [["note", "text", "note", 'a "quoted", name'], *rows], bom)
    run("extra.predict_table", f"{STUDENT} {table} --out new/out.{ending}")
    header, *found = read_back(f"new/out.{ending}")
    assert header == [f"{bom}note", "text", "note", 'a "quoted", name', "label", "probability"]
    assert found == [row + more for row, more in zip(rows, expected(STUDENT, CELLS), strict=True)]
    assert f"out.{ending}: {len(CELLS)} rows" in capsys.readouterr().out
    assert [path.name for path in Path("new").iterdir()] == [f"out.{ending}"]


@pytest.mark.parametrize("source, target", [("in.tsv", "out.tsv"), ("in.TXT", "out.txt.gz"),
                                            ("in.tsv.gz", "out.csv"), ("in.csv", "out.tsv")])
def test_tables_may_change_their_format(here, small_parts, source, target):
    texts = [cell.replace("\n", " ").replace("\t", " ") for cell in CELLS]
    rows = [[text, text, str(i)] for i, text in enumerate(texts)]
    table = written(source, [["again", "review", "id"], *rows])
    run("extra.predict_table", f"{STUDENT} {table} --out {target} --text-column review --prefix predicted_")
    header, *found = read_back(target)
    assert header == ["again", "review", "id", "predicted_label", "predicted_probability"]
    assert found == [row + more for row, more in zip(rows, expected(STUDENT, texts), strict=True)]


def test_objects_of_json_lines_stay_as_they_are_written(here, small_parts):
    """Numbers to the last digit, keys twice, spaces; what a table has no place for."""
    lines = ['{"text": "최고", "n": 1.10, "big": 123456789012345678901234567890}',
             '{ "n": NaN, "text": "별\\ub85c", "x": {"label": [1, {"a": null}]} }  ', "",
             '{"text": "지루", "n": 1, "n": 2, "late": "\\ud800"}\r', '{"text":"영화"}', '{"text":"}"}']
    Path("in.jsonl").write_bytes("\n".join(lines).encode())
    run("extra.predict_table", f"{STUDENT} in.jsonl --out out.jsonl.gz")
    found = gzip.decompress(Path("out.jsonl.gz").read_bytes()).decode().split("\n")
    assert found.pop() == ""
    texts = ["최고", "별로", "지루", "영화", "}"]
    for line, before, text, (label, sure) in zip(found, filter(None, lines), texts,
                                                 expected(STUDENT, texts), strict=True):
        assert line.startswith(before.strip()[:-1].rstrip() + ", ")
        record = json.loads(line)
        assert (record["text"], record["label"], record["probability"]) == (text, label, float(sure))


@pytest.mark.parametrize("name, columns", [("several", ["labels", "probability"]), ("score", ["score"])])
def test_several_labels_and_scores(models, small_parts, name, columns):
    written("in.csv", [["text"], *([cell] for cell in CELLS)])
    Path("in.jsonl").write_text("".join(json.dumps({"text": cell}) + "\n" for cell in CELLS), "utf-8")
    for ending in ("csv", "jsonl"):
        run("extra.predict_table", f"{name}.pt in.{ending} --out out.{ending}")
    header, *found = read_back("out.csv")
    cells = expected(f"{name}.pt", CELLS)
    assert header == ["text", *columns]
    assert found == [[text, *more] for text, more in zip(CELLS, cells, strict=True)]
    read = json.loads if name == "several" else float
    for line, (answer, *sure) in zip(Path("out.jsonl").read_text("utf-8").splitlines(), cells, strict=True):
        record = json.loads(line)
        assert list(record) == ["text", *columns] and record[columns[0]] == read(answer)
        assert [record[column] for column in columns[1:]] == list(map(float, sure))
    assert len({row[1] for row in found}) > 1


def test_pairs_are_read_as_pairs(models, small_parts):
    rows = list(map(list, zip(CELLS, PAIRED, strict=True)))
    written("in.csv", [["text", "text2"], *rows])
    written("named.csv", [["text", "other"], *rows])
    run("extra.predict_table", "pairs.pt in.csv --out out.csv")
    run("extra.predict_table", "pairs.pt named.csv --text2-column other --out named.out.csv")
    found = [row + more for row, more in zip(rows, expected("pairs.pt", CELLS, PAIRED), strict=True)]
    assert read_back("out.csv")[1:] == read_back("named.out.csv")[1:] == found
    refused(lambda: run("extra.predict_table", "pairs.pt named.csv --out no.csv"), r"named\.csv: .*text2")
    refused(lambda: run("extra.predict_table", f"{STUDENT} in.csv --out no.csv"), r"in\.csv: .*single texts")
    assert not Path("no.csv").exists()


def test_a_teacher_answers_too(here):
    texts = ["최고 추천", "지루 실망"]
    written("in.tsv", [["text"], *([text] for text in texts)])
    run("extra.predict_table", "teacher/teacher.pt in.tsv --out out.tsv")
    teacher = Teacher.load("teacher/teacher.pt")
    sure, best = teacher.predict(texts).max(1)
    assert read_back("out.tsv")[1:] == [[text, teacher.label_names[i], str(round(p, 4))] for text, i, p in
                                        zip(texts, best.tolist(), sure.tolist(), strict=True)]


def test_memory_does_not_grow_with_the_file(here, monkeypatch, small_parts):
    """The model aside. 8 bytes a row are of the first reading, which looks for duplicates."""
    monkeypatch.setattr(Student, "logits", lambda self, texts, texts2=None: torch.zeros(len(texts), 2))
    peaks = []
    for count in (2000, 20000):
        written("in.tsv", [["text", "note"], *([f"{i}", "x" * 50] for i in range(count))])
        tracemalloc.start()
        run("extra.predict_table", f"{STUDENT} in.tsv --out out.tsv --overwrite")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(read_back("out.tsv")) == count + 1
    assert peaks[1] - peaks[0] < 20000 * 20  # a row of the file has 55 bytes and more


# ---- whole, or not at all ----------------------------------------------------------------------------------

TABLE = [["text", "note"], *([f"영화 {i}", "x"] for i in range(8))]
OLD = b"an old file"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, RuntimeError("out of memory"),
                                  OSError(errno.ENOSPC, "No space left on device"), UserError("no")])
@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz"])
def test_what_breaks_off_leaves_the_old_file(here, small_parts, monkeypatch, name, stop):
    """Half of the rows are answered, the disk is full at the end."""
    written("in.csv", TABLE)
    Path(name).write_bytes(OLD)
    before, logits, calls = snapshot(), Student.logits, []

    def breaks(self, *columns):
        calls.append(1)
        if len(calls) == 2:
            raise stop
        return logits(self, *columns)

    def full(descriptor):
        raise stop

    if isinstance(stop, OSError):
        monkeypatch.setattr(predict_table.os, "fsync", full)
        stop = UserError
    else:
        monkeypatch.setattr(Student, "logits", breaks)
        stop = stop if isinstance(stop, type) else type(stop)
    with pytest.raises(stop):
        run("extra.predict_table", f"{STUDENT} in.csv --out {name} --overwrite")
    assert snapshot() == before


def test_a_full_disk_is_one_line(here, monkeypatch):
    written("in.csv", TABLE)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predict_table.os, "fsync", full)
    refused(lambda: run("extra.predict_table", f"{STUDENT} in.csv --out out.csv"), r"^out\.csv: .*No space")


def test_a_table_that_changes_while_it_is_read_is_refused(here, small_parts, monkeypatch):
    written("in.csv", TABLE)
    logits = Student.logits

    def grows(self, *columns):
        with open("in.csv", "a", encoding="utf-8") as file:
            file.write("one more,x\n")
        return logits(self, *columns)

    monkeypatch.setattr(Student, "logits", grows)
    refused(lambda: run("extra.predict_table", f"{STUDENT} in.csv --out out.csv"), r"^in\.csv: .*changed")
    assert not Path("out.csv").exists()


@pytest.mark.parametrize("flags, words", [
    ("in.csv --out old.csv", ["^old.csv: exists", "--overwrite"]),
    ("in.csv --out in.csv --overwrite", ["^in.csv: .*input"]),
    ("in.csv --out link.csv --overwrite", ["^in.csv: .*input"]),
    ("in.csv --out ./students/tiny/student.pt --overwrite", ["student.pt: .*input"]),
    ("in.csv --out logits --overwrite", ["^logits: is a folder"]),
    ("in.csv --out /dev/null", ["/dev/null", "regular"]),
    ("in.csv --out out.xlsx", ["^out.xlsx: unknown ending"]),
    ("in.csv --out out.jsonl", ["^out.jsonl: ", r"\.csv"]), ("in.jsonl --out out.csv", ["^out.csv: "]),
    ("in.csv --out old.csv/out.csv", ["old.csv/out.csv: cannot write"]),
    ("labelled.csv --out out.csv", ["^labelled.csv: .*'label'", "--prefix predicted_"]),
    ("labelled.csv --out out.csv --prefix predicted_", ["'predicted_probability'", "--prefix predicted2_"]),
    ("late.jsonl --out out.jsonl", ["^late.jsonl:2: .*'probability'", "--prefix"]),
    ("broken.csv --out out.tsv", ["^broken.csv:4: .*tab or a line break", r"\.csv"]),
    ("ragged.csv --out out.csv", ["^ragged.csv:7: 3 columns"]),
    ("cp949.tsv --out out.tsv", ["^cp949.tsv:6: not UTF-8"]),
    ("in.csv --out out.csv --text-column body", ["^in.csv:1: .*body"]),
    ("empty.csv --out out.csv", ["^empty.csv: .*no rows"]),
])
def test_what_cannot_be_done_is_refused_and_nothing_is_written(here, small_parts, flags, words):
    written("in.csv", TABLE)
    written("labelled.csv", [["text", "label", "predicted_probability"], ["영화", "1", "1"]])
    written("broken.csv", [*TABLE[:3], ["a\nb", "x"], ["c", "x"]])
    written("ragged.csv", [*TABLE[:6], ["영화", "x", "y"]])
    written("empty.csv", TABLE[:1])
    Path("cp949.tsv").write_bytes(b"text\n" + "영화\n".encode() * 4 + "영화\n".encode("cp949"))
    Path("in.jsonl").write_text('{"text": "a"}\n', "utf-8")
    Path("late.jsonl").write_text('{"text": "a"}\n{"text": "b", "probability": 1}\n', "utf-8")
    Path("old.csv").write_bytes(OLD)
    os.symlink("in.csv", "link.csv")
    before = snapshot()
    refused(lambda: run("extra.predict_table", f"{STUDENT} {flags}"), *words)
    assert snapshot() == before


def test_the_script_runs_from_another_folder_and_ends_with_2(kit, tmp_path):
    command = [sys.executable, ROOT / "extra/predict_table.py", kit / STUDENT]
    bad = written(str(tmp_path / "bad.tsv"), [["text"], ["영화"], ["a", "b"]])
    for table, code, error in ((kit / "unlabeled.tsv", 0, ""), (bad, 2, f"error: {bad}:3: ")):
        done = subprocess.run([*command, table, "--out", tmp_path / f"{code}.tsv"], cwd=tmp_path,
                              capture_output=True, text=True, check=False)
        assert done.returncode == code and done.stderr.startswith(error) and done.stderr.count("\n") <= 1
    assert len(read_back(tmp_path / "0.tsv")) == 81 and not (tmp_path / "2.tsv").exists()
