"""Bad input, script by script: the last line on stderr, word for word, exit code 2, nothing on disk harmed."""

import errno
import gzip
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distill
import finetune_teacher
import train_tokenizer
from data import examples
from data.examples import survey
from student import Student, StudentConfig
from teacher import Teacher, TeacherConfig, bert_template, load_tokenizer

ROOT = Path(__file__).parent.parent
ROWS = [f"이 영화 {'재밌다' if i % 2 else '별로'} {i % 7}점\t{i % 2}" for i in range(12)]
TABLE = "\n".join(["text\tlabel", *ROWS, ""]).encode()

# ---- files -------------------------------------------------------------------------------------------------


def make_kit(folder: Path) -> Path:
    """One small file of each kind the scripts exchange."""
    folder.mkdir(exist_ok=True)
    (folder / "train.tsv").write_bytes(TABLE)
    (folder / "valid.tsv").write_bytes(b"\n".join([b"text\tlabel", *TABLE.split(b"\n")[5:]]))
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(folder / "train.tsv"), "--output-dir", str(folder), "--vocab-size", "60",
         "--min-frequency", "1"]))
    (folder / "vocab_size_60").rename(folder / "tok")
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder / "tok", "bert")
    config = StudentConfig(tokenizer.get_vocab_size(), 2, 4, 4)
    Student(config, tokenizer, ["0", "1"]).save(folder / "student.pt")
    for name, labels in (("teacher.pt", ["0", "1"]), ("swapped.pt", ["1", "0"])):
        tokenizer = load_tokenizer(folder / "tok", "bert")
        tokenizer.post_processor = bert_template(tokenizer)
        config = TeacherConfig("bert", tokenizer.get_vocab_size(), 8, 1, 2, 16, 8, 32, 2, 2)
        Teacher(config, tokenizer, labels, 16).save(folder / name)
    train = survey(folder / "train.tsv")
    torch.save({"kind": "logits", "format": 1, "logits": torch.randn(12, 2), "label_names": ["0", "1"],
                "texts": train.fingerprint, "teachers": [], "max_lengths": [], "made_by": {}},
               folder / "logits.pt")
    return folder


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return make_kit(tmp_path_factory.mktemp("kit") / "kit")


@pytest.fixture
def here(kit, tmp_path, monkeypatch):
    """A copy of the kit's files as the working folder; signal handlers are put back at the end."""
    folder = shutil.copytree(kit, tmp_path / "here")
    monkeypatch.chdir(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)


def changed(source, **values):
    """A .pt file with some of its values replaced; None takes one out."""
    def write(path):
        artifact = torch.load(source, weights_only=True) | values
        torch.save({key: value for key, value in artifact.items() if value is not None}, path)
    return write


def config_of(source, **values):
    """A .pt file with some values of its config replaced."""
    def write(path):
        artifact = torch.load(source, weights_only=True)
        torch.save(artifact | {"config": artifact["config"] | values}, path)
    return write


def cut(source, share=0.5):
    def write(path):
        data = Path(source).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
    return write


def saved(value):
    return lambda path: torch.save(value, path)


def tokenizer_without(token):
    def write(path):
        text = Path("tok/tokenizer.json").read_text(encoding="utf-8")
        path.write_text(text.replace(f'"{token}"', '"[NONE]"'), encoding="utf-8")
    return write


def folder(path):
    path.mkdir()


def not_finite(path):
    logits = torch.zeros(12, 2)
    logits[7, 1] = torch.nan
    torch.save(logits, path)


def put(files: dict) -> None:
    for file, content in files.items():
        path = Path(file)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)


# ---- running -----------------------------------------------------------------------------------------------

FAST = "--device cpu --precision fp32"
TRAINING = f"--epochs 1 {FAST}"
SCRIPTS = {  # flags that come before a case's own; a later flag wins
    "train_tokenizer": "--vocab-size 60 --min-frequency 1",
    "finetune_teacher": f"--train train.tsv --valid valid.tsv {TRAINING}",
    "dump_logits": f"--teacher teacher.pt --data train.tsv {FAST}",
    "distill": f"--train train.tsv --logits logits.pt --valid valid.tsv --tokenizer tok --size tiny {TRAINING}",
    "evaluate": "--data valid.tsv --device cpu",
    "student": "",
    "data.prepare": "split --out out",
}


def run(script: str, flags: str, monkeypatch, given: bytes = b"") -> int:
    """The script as `python SCRIPT FLAGS` runs it, in this process; returns the exit code."""
    argv = [f"{script}.py", *SCRIPTS[script].split(), *flags.split()]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    try:
        if script == "data.prepare":
            monkeypatch.delitem(sys.modules, script, raising=False)
            runpy.run_module(script, run_name="__main__")
        else:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_unharmed(before: dict, folder: Path) -> None:
    """Every file is as it was, and no half-written one or artifact came to be."""
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    fresh = sorted(Path(name).name for name in set(after) - set(before))
    assert [name for name in fresh if name not in (".lock", "log.jsonl")] == []


# ---- the table ---------------------------------------------------------------------------------------------

SCRATCH = "--scratch 1,8,2 --tokenizer tok"
DOWN = "make the right ones: python dump_logits.py --teacher … --data train.tsv"
# name: (script, flags, {file: its bytes, or a function of its path}, last line)
CASES = {
    "no such file": ("train_tokenizer", "--data none.tsv", {},
        "error: none.tsv: cannot read (No such file or directory)"),
    "no such csv.gz": ("dump_logits", "--data none.csv.gz", {},
        "error: none.csv.gz: cannot read (No such file or directory)"),
    "a folder for a file": ("evaluate", "student.pt --data tok.tsv", {"tok.tsv": folder},
        "error: tok.tsv: cannot read (Is a directory)"),
    "a folder for a packed file": ("distill", "--train d.jsonl.gz", {"d.jsonl.gz": folder},
        "error: d.jsonl.gz: cannot read (Is a directory)"),
    "unknown ending": ("finetune_teacher", f"{SCRATCH} --train a.parquet", {"a.parquet": TABLE},
        "error: a.parquet: unknown ending; use .tsv, .txt, .csv or .jsonl, each also with .gz"),
    "empty tsv": ("data.prepare", "a.tsv", {"a.tsv": b""},
        "error: a.tsv: is empty; a header line such as text<TAB>label is needed"),
    "empty csv": ("train_tokenizer", "--data a.csv", {"a.csv": b""},
        "error: a.csv: is empty; a header line such as text<TAB>label is needed"),
    "empty jsonl": ("train_tokenizer", "--data a.jsonl", {"a.jsonl": b"\n\n"},
        "error: a.jsonl: is empty; one JSON object a line is needed"),
    "empty gz": ("train_tokenizer", "--data a.tsv.gz", {"a.tsv.gz": gzip.compress(b"")},
        "error: a.tsv.gz: is empty; a header line such as text<TAB>label is needed"),
    "no bytes for gz": ("train_tokenizer", "--data a.tsv.gz", {"a.tsv.gz": b""},
        "error: a.tsv.gz: is empty; a header line such as text<TAB>label is needed"),
    "header only": ("distill", "--valid a.tsv", {"a.tsv": b"text\tlabel\n"},
        "error: a.tsv: has a header but no rows"),
    "header only in csv": ("dump_logits", "--data a.csv", {"a.csv": b"text,label\r\n"},
        "error: a.csv: has a header but no rows"),
    "BOM only": ("dump_logits", "--data a.tsv", {"a.tsv": b"\xef\xbb\xbf"},
        "error: a.tsv:1: no column text or document among ['']; the first line must name the columns "
        "(--text-column for another name)"),
    "no text column": ("finetune_teacher", f"{SCRATCH} --train a.tsv", {"a.tsv": b"review\tlabel\nx\t1\n"},
        "error: a.tsv:1: no column text or document among ['review', 'label']; the first line must name "
        "the columns (--text-column for another name)"),
    "a column that is named and absent": ("evaluate", "student.pt --text-column review", {},
        "error: valid.tsv:1: no column review among ['text', 'label']; the first line must name the "
        "columns (--text-column for another name)"),
    "a label column that is absent": ("distill", "--label-column stars", {},
        "error: train.tsv:1: no column stars among ['text', 'label']; the first line must name the "
        "columns (--label-column for another name)"),
    "two text columns": ("data.prepare", "a.csv", {"a.csv": b"text,document,label\na,b,1\n"},
        "error: a.csv:1: column text or document occurs 2 times; keep one, or name another with "
        "--text-column"),
    "too few columns": ("train_tokenizer", "--data a.tsv", {"a.tsv": TABLE + b"alone\n"},
        "error: a.tsv:14: 1 columns where the header has 2; a text must not contain a tab"),
    "too many columns": ("distill", "--train a.tsv", {"a.tsv": TABLE + b"a\tb\tc\n"},
        "error: a.tsv:14: 3 columns where the header has 2; a text must not contain a tab"),
    "too many columns in csv": ("train_tokenizer", "--data a.csv", {"a.csv": b"text,label\na, b,1\n"},
        "error: a.csv:2: 3 columns where the header has 2; a text must not contain a bare comma"),
    "an empty line": ("evaluate", "student.pt --data a.tsv", {"a.tsv": TABLE + b"\n" + TABLE},
        "error: a.tsv:14: an empty line; remove it"),
    "not UTF-8": ("dump_logits", "--data a.tsv", {"a.tsv": b"text\nabc\n" + "좋다".encode("cp949") + b"\n"},
        "error: a.tsv:3: not UTF-8 at byte 9 of the file (invalid start byte); convert it, for example "
        "from CP949"),
    "UTF-8 cut in a character": (
        "train_tokenizer", "--data a.txt",
        {"a.txt": b"text\n" + "좋다".encode()[:-1]},
        "error: a.txt:2: not UTF-8 at byte 8 of the file (unexpected end of data); convert it, for "
        "example from CP949"),
    "not UTF-8 in gz": ("data.prepare", "a.csv.gz", {"a.csv.gz": gzip.compress(b"text,label\na\xff,1\n")},
        "error: a.csv.gz:2: not UTF-8 at byte 12 of the file (invalid start byte); convert it, for "
        "example from CP949"),
    "NUL byte": ("finetune_teacher", f"{SCRATCH} --valid a.tsv", {"a.tsv": TABLE + b"a\0b\t1\n"},
        "error: a.tsv:14: NUL byte; the file is not UTF-8 text (UTF-16? convert it)"),
    "UTF-16": ("train_tokenizer", "--data a.tsv", {"a.tsv": "text\na\n".encode("utf-16-le")},
        "error: a.tsv:1: NUL byte; the file is not UTF-8 text (UTF-16? convert it)"),
    "a quote that never ends": ("train_tokenizer", "--data a.csv", {"a.csv": b"text,label\n\"a,1\nb,0\n"},
        "error: a.csv:2: not valid CSV (unexpected end of data)"),
    "a field beyond csv's limit": (
        "train_tokenizer", "--data a.csv",
        {"a.csv": b"text\n" + b"a" * 200_000 + b"\n"},
        "error: a.csv:2: not valid CSV (field larger than field limit (131072))"),
    "text behind a quote": ("dump_logits", "--data a.csv", {"a.csv": b"text,label\n\"a\"b,1\n"},
        "error: a.csv:2: not valid CSV (',' expected after '\"')"),
    "broken JSON": ("distill", "--train a.jsonl", {"a.jsonl": b'{"text": "a", "label": 1}\n{"text": \n'},
        "error: a.jsonl:2: not valid JSON (Expecting value: line 2 column 1 (char 10))"),
    "a JSON list": ("train_tokenizer", "--data a.jsonl", {"a.jsonl": b"[1, 2]\n"},
        'error: a.jsonl:1: a JSON object such as {"text": "…"} is needed'),
    "JSON nested without end": ("train_tokenizer", "--data a.jsonl", {"a.jsonl": b"[" * 100_000 + b"\n"},
        "error: a.jsonl:1: not valid JSON (…"),
    "a number for a text": (
        "evaluate", "student.pt --data a.jsonl",
        {"a.jsonl": b'{"text": 1, "label": 1}\n'},
        "error: a.jsonl:1: 'text' is 1, a string is needed"),
    "no text in a JSON object": (
        "train_tokenizer", "--data a.jsonl",
        {"a.jsonl": b'{"text": "a"}\n{"txt": "a"}\n'},
        "error: a.jsonl:2: 'text' is null, a string is needed"),
    "a fraction for a label": ("distill", "--valid a.jsonl", {"a.jsonl": b'{"text": "a", "label": 0.5}\n'},
        "error: a.jsonl:1: 'label' is 0.5, a string or whole number is needed"),
    "a label that comes late": (
        "data.prepare", "a.jsonl",
        {"a.jsonl": b'{"text": "a"}\n{"text": "b", "label": 1}\n'},
        "error: a.jsonl:2: has 'label', which the first object has not; give every object the same keys "
        "(null: no label)"),
    "half a surrogate pair": ("dump_logits", "--data a.jsonl", {"a.jsonl": b'{"text": "\\ud83d"}\n'},
        "error: a.jsonl:1: 'text' holds half of a surrogate pair, which is no text"),
    "a cut gz": ("dump_logits", "--data a.tsv.gz", {"a.tsv.gz": gzip.compress(TABLE, mtime=0)[:-20]},
        "error: a.tsv.gz: cannot read (Compressed file ended before the end-of-stream marker was reached)"),
    "gz that is none": ("distill", "--train a.tsv.gz", {"a.tsv.gz": TABLE},
        "error: a.tsv.gz: cannot read (Not a gzipped file (b'te'))"),
    "gz with a wrong sum": (
        "train_tokenizer", "--data a.tsv.gz",
        {"a.tsv.gz": gzip.compress(TABLE, mtime=0)[:-8] + b"12345678"},
        "error: a.tsv.gz: cannot read (CRC check failed 0x34333231 != 0xd70902b5)"),
    "a wrong file after a right one": (
        "train_tokenizer", "--data train.tsv a.tsv",
        {"a.tsv": b"text\n\xff\n"},
        "error: a.tsv:2: not UTF-8 at byte 5 of the file (invalid start byte); convert it, for example "
        "from CP949"),
    "seen file of another form": ("evaluate", "student.pt --seen a.tsv", {"a.tsv": b"text\ttext2\na\tb\n"},
        "error: a.tsv: one of it and valid.tsv has a column text2 and the other has not"),
    "no labels": ("finetune_teacher", f"{SCRATCH} --train a.tsv", {"a.tsv": b"text\na\n"},
        "error: a.tsv: no row has a label; a classifier needs at least two (column `label`, or "
        "--label-column)"),
    "one class": ("finetune_teacher", f"{SCRATCH} --train a.tsv", {"a.tsv": b"text\tlabel\na\t1\nb\t1\n"},
        "error: a.tsv: the only label is '1'; a classifier needs at least two (column `label`, or "
        "--label-column)"),
    "one class to split": ("data.prepare", "a.tsv", {"a.tsv": b"text\tlabel\n" + b"a\tyes\n" * 5},
        "error: a.tsv: the only label is 'yes'; a classifier needs at least two (column `label`, or "
        "--label-column)"),
    "a label training has not": (
        "finetune_teacher", f"{SCRATCH} --valid a.tsv",
        {"a.tsv": TABLE + b"x\tneutral\n"},
        "error: a.tsv:14: label 'neutral' is none of ['0', '1']; correct it, or leave it empty if the "
        "row has no label"),
    "a label the logits have not": (
        "distill", "--train a.tsv --alpha 0.5",
        {"a.tsv": TABLE.replace(b"\t1", b"\tgood", 1)},
        "error: a.tsv:3: label 'good' is none of ['0', '1']; correct it, or leave it empty if the row "
        "has no label"),
    "a label the model has not": ("evaluate", "student.pt --data a.tsv", {"a.tsv": TABLE + b"x\t2\n"},
        "error: a.tsv:14: label '2' is none of ['0', '1']; correct it, or leave it empty if the row has "
        "no label"),
    "a label the teacher has not": ("dump_logits", "--data a.tsv", {"a.tsv": TABLE + b"x\t2\n"},
        "error: a.tsv:14: label '2' is none of ['0', '1']; correct it, or leave it empty if the row has "
        "no label"),
    "a validation row without label": ("distill", "--valid a.tsv", {"a.tsv": TABLE + b"x\t\n"},
        "error: a.tsv:14: no label; every row needs one"),
    "a test row without label": ("evaluate", "student.pt --data a.tsv", {"a.tsv": b"text\na\n"},
        "error: a.tsv:2: no label; every row needs one"),
    "labels alone without labels": (
        "distill", "--alpha 1 --train a.tsv --logits a.pt",
        {"a.tsv": b"text\na\n", "a.pt": saved(torch.zeros(1, 2))},
        "error: --alpha 1 trains on labels alone, but no --train file has any"),
    "two rows to split": ("data.prepare", "a.tsv", {"a.tsv": b"text\tlabel\na\t1\nb\t0\n"},
        "error: a.tsv: 2 rows; train, valid and test need at least 3"),
    "pairs and single texts": (
        "finetune_teacher", f"{SCRATCH} --valid a.tsv",
        {"a.tsv": b"text\ttext2\tlabel\na\tb\t1\n"},
        "error: train.tsv and a.tsv: one has a column text2 and the other has not"),
    "pairs and single texts for a student": (
        "distill", "--valid a.tsv",
        {"a.tsv": b"text\ttext2\tlabel\na\tb\t1\n"},
        "error: some files have a column text2 and some have not; all or none must be pairs"),
    "no logits file": ("distill", "--logits none.pt", {},
        "error: none.pt: cannot read (No such file or directory)"),
    "logits that are not finite": ("distill", "--logits a.pt", {"a.pt": not_finite},
        "error: a.pt: the logits of row 7 are not finite; " + DOWN),
    "logits of another file": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", texts="0" * 64)},
        "error: a.pt: these are logits of other texts than train.tsv; " + DOWN),
    "fewer logits than rows": ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(11, 2))},
        "error: a.pt: [11, 2] torch.float32 where train.tsv has 12 rows: a float tensor (rows, classes) "
        "is needed; " + DOWN),
    "logits in one dimension": ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(12))},
        "error: a.pt: [12] torch.float32 where train.tsv has 12 rows: a float tensor (rows, classes) is "
        "needed; " + DOWN),
    "logits that are whole numbers": ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(12, 2).long())},
        "error: a.pt: [12, 2] torch.int64 where train.tsv has 12 rows: a float tensor (rows, classes) is "
        "needed; " + DOWN),
    "sparse logits": ("distill", "--logits a.pt", {"a.pt": saved(torch.eye(12, 2).to_sparse())},
        "error: a.pt: not a plain tensor, or one that claims more than the file holds; " + DOWN),
    "logits of three classes": ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(12, 3))},
        "error: a.pt: 3 classes, but the labels are ['0', '1']"),
    "logits without logits": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", logits=None)},
        "error: a.pt: damaged, no logits or label_names in it; " + DOWN),
    "label names that are numbers": (
        "distill", "--logits a.pt",
        {"a.pt": changed("logits.pt", label_names=[0, 1])},
        "error: a.pt: damaged, no logits or label_names in it; " + DOWN),
    "label names that are lists": (
        "distill", "--logits a.pt",
        {"a.pt": changed("logits.pt", label_names=[[], []])},
        "error: a.pt: damaged, no logits or label_names in it; " + DOWN),
    "logits of two teachers": (
        "distill", "--train train.tsv train.tsv --logits logits.pt a.pt",
        {"a.pt": changed("logits.pt", label_names=["1", "0"])},
        "error: a.pt: its classes are not those of the other logits; one teacher for all files"),
    "logits of an older format": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", format=0)},
        "error: a.pt: format 0, this version reads 1; make it anew"),
    "logits without a format": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", format=None)},
        "error: a.pt: format unknown, this version reads 1; make it anew"),
    "a teacher for logits": ("distill", "--logits teacher.pt", {},
        "error: teacher.pt: holds teacher, a logits is needed"),
    "text for logits": ("distill", "--logits train.tsv", {},
        "error: train.tsv: not a .pt file that can be loaded safely (…"),
    "cut logits": ("distill", "--logits a.pt", {"a.pt": cut("logits.pt")},
        "error: a.pt: not a .pt file that can be loaded safely (…"),
    "one list for logits": ("distill", "--logits a.pt", {"a.pt": saved([1, 2])},
        "error: a.pt: holds something that is not of this kit, a logits is needed"),
    "two files and one logits": ("distill", "--train train.tsv train.tsv", {},
        "distill.py: error: 2 --train files but 1 --logits; give one for each, in order"),
    "the teachers' labels differ in order": ("dump_logits", "--teacher teacher.pt swapped.pt", {},
        "error: swapped.pt: labels ['1', '0'] differ from ['0', '1'] of teacher.pt; averaged teachers "
        "need the same labels in the same order"),
    "logits are there": ("dump_logits", "--output-dir .", {"train.pt": changed("logits.pt")},
        "error: train.pt: is there already; --append if its file grew, --check to test it, --overwrite "
        "to start anew"),
    "logits by other teachers": ("dump_logits", "--output-dir . --append", {"train.pt": changed("logits.pt")},
        "error: train.pt: damaged, no precision in it; --overwrite makes it anew"),
    "nothing to check": ("dump_logits", "--check 3", {},
        "error: logits/train.pt: cannot read (No such file or directory)"),
    "a teacher to check": ("dump_logits", "--check 3 --output-dir .", {"train.pt": changed("teacher.pt")},
        "error: train.pt: holds teacher, a logits is needed"),
    "damaged logits to append to": (
        "dump_logits", "--append --output-dir .",
        {"train.pt": changed("logits.pt", logits=None)},
        "error: train.pt: damaged, no logits in it; --overwrite makes it anew"),
    "damaged logits to check": (
        "dump_logits", "--check 1 --output-dir .",
        {"train.pt": changed("logits.pt", texts=None)},
        "error: train.pt: damaged, no texts or precision in it; --overwrite makes it anew"),
    "two files of one name": ("dump_logits", "--data train.tsv a/train.tsv", {"a/train.tsv": TABLE},
        "error: train.tsv and a/train.tsv would both be written to logits/train.pt; dump them in two "
        "runs with different --output-dir"),
    "no student": ("student", "none.pt hello", {},
        "error: none.pt: cannot read (No such file or directory)"),
    "a folder for a student": ("student", "tok hello", {},
        "error: tok: cannot read (Is a directory)"),
    "text for a student": ("student", "train.tsv hello", {},
        "error: train.tsv: not a .pt file that can be loaded safely (…"),
    "an empty student": ("student", "a.pt hello", {"a.pt": b""},
        "error: a.pt: not a .pt file that can be loaded safely (…"),
    "a cut student": ("student", "a.pt hello", {"a.pt": cut("student.pt")},
        "error: a.pt: not a .pt file that can be loaded safely (…"),
    "a teacher for a student": ("student", "teacher.pt hello", {},
        "error: teacher.pt: holds teacher, not a student"),
    "a tensor for a student": ("student", "a.pt hello", {"a.pt": saved(torch.zeros(3))},
        "error: a.pt: holds something that is not of this kit, not a student"),
    "a kind that is a tensor": ("student", "a.pt hello", {"a.pt": changed("student.pt", kind=torch.zeros(2))},
        "error: a.pt: holds something that is not of this kit, not a student"),
    "a format that is a tensor": (
        "student", "a.pt hello",
        {"a.pt": changed("student.pt", format=torch.ones(2))},
        "error: a.pt: format unknown, this student.py reads 1"),
    "a student of a later format": ("student", "a.pt hello", {"a.pt": changed("student.pt", format=2)},
        "error: a.pt: format 2, this student.py reads 1"),
    "a student without tokenizer": ("student", "a.pt hello", {"a.pt": changed("student.pt", tokenizer=None)},
        "error: a.pt: damaged ('tokenizer')"),
    "a student without weights": ("student", "a.pt hello", {"a.pt": changed("student.pt", weights={})},
        "error: a.pt: damaged (its config or weights claim more than the file holds)"),
    "a student with a wrong config": (
        "student", "a.pt hello",
        {"a.pt": changed("student.pt", config={"size": 3})},
        "error: a.pt: damaged (StudentConfig.__init__() got an unexpected keyword argument 'size')"),
    "a student with too few labels": (
        "student", "a.pt hello",
        {"a.pt": changed("student.pt", label_names=["0"])},
        "error: a.pt: damaged (1 label names for 2 classes)"),
    "a blank token beyond the vocabulary": (
        "student", "a.pt hello",
        {"a.pt": config_of("student.pt", blank_id=10**6)},
        "error: a.pt: damaged (blank_id is 1000000, must be in [0, 37))"),
    "logits for a model": ("evaluate", "logits.pt", {},
        "error: logits.pt: holds logits; a student.pt or teacher.pt is needed"),
    "a list for a model": ("evaluate", "a.pt", {"a.pt": saved([1])},
        "error: a.pt: holds something that is not of this kit; a student.pt or teacher.pt is needed"),
    "a model's kind that is a tensor": ("evaluate", "a.pt", {"a.pt": saved({"kind": torch.zeros(2)})},
        "error: a.pt: holds something that is not of this kit; a student.pt or teacher.pt is needed"),
    "an unknown kind of model": (
        "evaluate", "student.pt a.pt",
        {"a.pt": changed("student.pt", kind="parrot")},
        "error: a.pt: holds parrot; a student.pt or teacher.pt is needed"),
    "mistakes over the data": ("evaluate", "student.pt --errors valid.tsv", {},
        "error: --errors valid.tsv would overwrite what is read; name another file"),
    "mistakes over a model": ("evaluate", "student.pt --errors student.pt", {},
        "error: --errors student.pt would overwrite what is read; name another file"),
    "mistakes over a seen file": ("evaluate", "student.pt --seen train.tsv --errors train.tsv", {},
        "error: --errors train.tsv would overwrite what is read; name another file"),
    "mistakes in no folder": ("evaluate", "student.pt --errors none/mistakes.tsv", {},
        "error: none/mistakes.tsv: cannot write (No such file or directory); nothing was changed"),
    "mistakes over a folder": ("evaluate", "student.pt --errors tok", {},
        "error: tok: cannot write (Is a directory); nothing was changed"),
    "no teacher": ("dump_logits", "--teacher none.pt", {},
        "error: none.pt: cannot read (No such file or directory)"),
    "a student for a teacher": ("dump_logits", "--teacher student.pt", {},
        "error: student.pt: holds student, a teacher is needed"),
    "text for a teacher": ("dump_logits", "--teacher train.tsv", {},
        "error: train.tsv: not a .pt file that can be loaded safely (…"),
    "a cut teacher": ("dump_logits", "--teacher a.pt", {"a.pt": cut("teacher.pt", 0.9)},
        "error: a.pt: …"),
    "a teacher of an older format": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", format=0)},
        "error: a.pt: format 0, this version reads 1; make it anew"),
    "a teacher with a kind of two": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", kind=torch.zeros(2))},
        "error: a.pt: holds something that is not of this kit, a teacher is needed"),
    "a teacher without maximum length": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", max_length=None)},
        "error: a.pt: not a usable teacher ('max_length'); make it anew"),
    "a teacher with garbage for a tokenizer": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", tokenizer="{}")},
        "error: a.pt: not a usable teacher (…"),
    "a run is there": ("distill", "--output-dir .", {"tiny/last.pt": b""},
        "error: tiny/last.pt: is there already; --resume goes on with its run, --overwrite starts anew, "
        "another --output-dir keeps both"),
    "an empty last.pt": ("distill", "--output-dir . --resume", {"tiny/last.pt": b""},
        "error: tiny/last.pt: not a .pt file that can be loaded safely (…"),
    "a student for its last.pt": (
        "distill", "--output-dir . --resume",
        {"tiny/last.pt": changed("student.pt")},
        "error: tiny/last.pt: holds student, a student-resume is needed"),
    "a last.pt of an older format": (
        "distill", "--output-dir . --resume",
        {"tiny/last.pt": saved({"kind": "student-resume", "format": 0})},
        "error: tiny/last.pt: format 0, this version reads 2; make it anew"),
    "a last.pt with nothing in it": (
        "distill", "--output-dir . --resume",
        {"tiny/last.pt": saved({"kind": "student-resume", "format": distill.FORMAT})},
        "error: tiny/last.pt: damaged, no weights or optimizer or at or best or precision or log or "
        "fingerprints or made_by in it; --overwrite makes it anew"),
    "a teacher's run is there": ("finetune_teacher", f"{SCRATCH} --output-dir .", {},
        "error: teacher.pt: is there already; --resume goes on with its run, --overwrite starts anew, "
        "another --output-dir keeps both"),
    "a teacher's last.pt of an older format": (
        "finetune_teacher", f"{SCRATCH} --output-dir a --resume",
        {"a/last.pt": saved({"kind": "teacher-resume", "format": 0})},
        "error: a/last.pt: format 0, this version reads 2; make it anew"),
    "a teacher's last.pt with nothing in it": (
        "finetune_teacher", f"{SCRATCH} --output-dir a --resume",
        {"a/last.pt": saved({"kind": "teacher-resume", "format": finetune_teacher.FORMAT})},
        "error: a/last.pt: damaged, no weights or optimizer or at or best or precision or log or "
        "fingerprints or made_by in it; --overwrite makes it anew"),
    "no tokenizer": ("distill", "--tokenizer none", {},
        "error: none: cannot read (No such file or directory); make one with train_tokenizer.py"),
    "a folder without tokenizer": ("distill", "--tokenizer a", {"a": folder},
        "error: a/tokenizer.json: cannot read (No such file or directory); make one with "
        "train_tokenizer.py"),
    "garbage for a tokenizer": ("distill", "--tokenizer a.json", {"a.json": b"{}"},
        "error: a.json: not a tokenizer file (…"),
    "a tokenizer that is no text": ("distill", "--tokenizer a.json", {"a.json": b"\xff\xfe"},
        "error: a.json: not a tokenizer file ('utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte)"),
    "a tokenizer without [PAD]": ("distill", "--tokenizer a.json", {"a.json": tokenizer_without("[PAD]")},
        "error: a.json: the tokenizer has no [PAD]; make one with train_tokenizer.py"),
    "a tokenizer without [UNK]": ("distill", "--tokenizer a.json", {"a.json": tokenizer_without("[UNK]")},
        "error: a.json: the tokenizer has no [UNK]; make one with train_tokenizer.py"),
    "a tokenizer without [CLS]": (
        "finetune_teacher", "--scratch 1,8,2 --tokenizer a",
        {"a/tokenizer.json": tokenizer_without("[CLS]")},
        "error: a: the tokenizer has no [CLS] and [SEP]"),
    "a teacher's tokenizer is garbage": (
        "finetune_teacher", "--scratch 1,8,2 --tokenizer a",
        {"a/tokenizer.json": b"[]"},
        "error: a: the tokenizer cannot be read (…"),
    "a unigram vocabulary too small": (
        "train_tokenizer", "--data train.tsv --type unigram --vocab-size 10",
        {},
        "error: --vocab-size 10: …"),
    "no checkpoint": ("finetune_teacher", "--checkpoint a/b/c", {},
        "error: a/b/c: no such folder"),
    "a checkpoint without config.json": ("finetune_teacher", "--checkpoint tok", {},
        "error: tok/config.json: cannot read (No such file or directory); a published checkpoint folder "
        "has it"),
    "config.json is no JSON": ("finetune_teacher", "--checkpoint a", {"a/config.json": b"{"},
        "error: a/config.json: not valid JSON (Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1))"),
    "config.json is a list": ("finetune_teacher", "--checkpoint a", {"a/config.json": b"[]"},
        "error: a/config.json: a JSON object is needed"),
    "another model_type": ("finetune_teacher", "--checkpoint a", {"a/config.json": b'{"model_type": "gpt2"}'},
        "error: a/config.json: model_type is 'gpt2'; this kit reads bert, electra, roberta, distilbert "
        "(any other model teaches through its logits: save them as an (N, C) tensor, see README)"),
    "a model_type that is a list": (
        "finetune_teacher", "--checkpoint a",
        {"a/config.json": b'{"model_type": []}'},
        "error: a/config.json: model_type is []; this kit reads bert, electra, roberta, distilbert (any "
        "other model teaches through its logits: save them as an (N, C) tensor, see README)"),
    "a size that is missing": (
        "finetune_teacher", "--checkpoint a",
        {"a/config.json": b'{"model_type": "bert"}'},
        "error: a/config.json: has no 'vocab_size'"),
    "a file where the tokenizer's folder goes": (
        "train_tokenizer", "--data train.tsv --output-dir student.pt",
        {},
        "error: student.pt/vocab_size_60: cannot write (Not a directory)"),
    "a file where the teacher's folder goes": ("finetune_teacher", f"{SCRATCH} --output-dir student.pt", {},
        "error: [Errno 17] File exists: 'student.pt'"),
    "a file where the logits' folder goes": ("dump_logits", "--output-dir student.pt", {},
        "error: [Errno 20] Not a directory: 'student.pt/.train.shards'"),
    "a file where the students' folder goes": ("distill", "--output-dir teacher.pt", {},
        "error: [Errno 17] File exists: 'teacher.pt'"),
    "a file where the splits go": ("data.prepare", "train.tsv --out student.pt", {},
        "error: student.pt: cannot write the files ([Errno 17] File exists: 'student.pt'); nothing was "
        "changed"),
    "splits over their own file": ("data.prepare", "train.tsv --out .", {},
        "error: train.tsv: is the FILE to split and would be overwritten; give another --out"),
    "vocabulary of 3": ("train_tokenizer", "--data train.tsv --vocab-size 3", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "vocabulary of 10**12": ("train_tokenizer", "--data train.tsv --vocab-size 1000000000000", {},
        "train_tokenizer.py: error: --vocab-size, --min-frequency and --limit-alphabet must be at most "
        "2147483648"),
    "frequency 0": ("train_tokenizer", "--data train.tsv --min-frequency 0", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "frequency of 30 digits": ("train_tokenizer", "--data train.tsv --min-frequency " + "9" * 30, {},
        "train_tokenizer.py: error: --vocab-size, --min-frequency and --limit-alphabet must be at most "
        "2147483648"),
    "alphabet of 30 digits": ("train_tokenizer", "--data train.tsv --limit-alphabet " + "9" * 30, {},
        "train_tokenizer.py: error: --vocab-size, --min-frequency and --limit-alphabet must be at most "
        "2147483648"),
    "alphabet below 0": ("train_tokenizer", "--data train.tsv --limit-alphabet -1", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "hidden size 0": ("distill", "--hidden-dim 0", {},
        "error: hidden_dim is 0, must be at least 1"),
    "embedding size below 0": ("distill", "--embedding-dim -4", {},
        "error: embedding_dim is -4, must be at least 1"),
    "no layers": ("distill", "--num-layers 0", {},
        "error: num_layers is 0, must be at least 1"),
    "dropout 1": ("distill", "--dropout 1", {},
        "error: dropout is 1.0, must be in [0, 1)"),
    "temperature 0": ("distill", "--temperature 0", {},
        "distill.py: error: --alpha must be in [0, 1], --temperature positive"),
    "temperature NaN": ("distill", "--temperature nan", {},
        "distill.py: error: a number is not finite or too large, or --seed negative"),
    "alpha 2": ("distill", "--alpha 2", {},
        "distill.py: error: --alpha must be in [0, 1], --temperature positive"),
    "alpha NaN": ("distill", "--alpha nan", {},
        "distill.py: error: --alpha must be in [0, 1], --temperature positive"),
    "a rate below 0": ("distill", "--lr -0.001", {},
        "distill.py: error: --lr and --clip must be positive, --warmup in [0, 1), --weight-decay at "
        "least 0"),
    "a rate that is NaN": ("distill", "--lr nan", {},
        "distill.py: error: a number is not finite or too large, or --seed negative"),
    "a rate without bound": ("distill", "--lr inf", {},
        "distill.py: error: a number is not finite or too large, or --seed negative"),
    "no epochs": ("distill", "--epochs 0", {},
        "distill.py: error: --epochs, --max-tokens and --max-length must be at least 1"),
    "warm-up all along": ("distill", "--warmup 1", {},
        "distill.py: error: --lr and --clip must be positive, --warmup in [0, 1), --weight-decay at "
        "least 0"),
    "a seed below 0": ("distill", "--seed -1", {},
        "distill.py: error: a number is not finite or too large, or --seed negative"),
    "texts of no token": ("distill", "--max-length 0", {},
        "distill.py: error: --epochs, --max-tokens and --max-length must be at least 1"),
    "batches of no token": ("distill", "--max-tokens 0", {},
        "distill.py: error: --epochs, --max-tokens and --max-length must be at least 1"),
    "saves below 0": ("distill", "--save-every -1", {},
        "distill.py: error: --save-every must be at least 0"),
    "one student twice": ("distill", "--seed 1 1", {},
        "error: two students of the grid would share the folder tiny-seed1; give each value once, "
        "tokenizers of one size in two runs with different --output-dir"),
    "neither checkpoint nor scratch": ("finetune_teacher", "", {},
        "finetune_teacher.py: error: give either --checkpoint or --scratch"),
    "scratch without tokenizer": ("finetune_teacher", "--scratch 1,8,2", {},
        "finetune_teacher.py: error: --scratch needs --tokenizer DIR (make one with train_tokenizer.py)"),
    "a shape of two numbers": ("finetune_teacher", f"{SCRATCH} --scratch 1,8", {},
        "error: --scratch 1,8: layers,width,heads as in 2,128,4 are needed (not enough values to unpack "
        "(expected 3, got 2))"),
    "a shape without layers": ("finetune_teacher", f"{SCRATCH} --scratch 0,8,2", {},
        "error: --scratch 0,8,2: layers,width,heads as in 2,128,4 are needed (num_layers is 0, must be "
        "at least 1)"),
    "a width that heads do not share": ("finetune_teacher", f"{SCRATCH} --scratch 1,9,2", {},
        "error: --scratch 1,9,2: layers,width,heads as in 2,128,4 are needed (hidden size 9 is not a "
        "multiple of 2 heads)"),
    "no epochs from scratch": ("finetune_teacher", f"{SCRATCH} --epochs 0", {},
        "error: --epochs 0 keeps a fine-tuned checkpoint as it is, this head is new: train it"),
    "a teacher's rate below 0": ("finetune_teacher", f"{SCRATCH} --lr -1", {},
        "finetune_teacher.py: error: --lr and --clip must be positive, --layer-decay in (0, 1], --warmup "
        "in [0, 1), --weight-decay at least 0"),
    "a teacher's clip of NaN": ("finetune_teacher", f"{SCRATCH} --clip nan", {},
        "finetune_teacher.py: error: a number is not finite or too large, or --seed negative"),
    "layer decay 0": ("finetune_teacher", f"{SCRATCH} --layer-decay 0", {},
        "finetune_teacher.py: error: --lr and --clip must be positive, --layer-decay in (0, 1], --warmup "
        "in [0, 1), --weight-decay at least 0"),
    "accumulate 0": ("finetune_teacher", f"{SCRATCH} --accumulate 0", {},
        "finetune_teacher.py: error: --epochs must be at least 0, --max-length 3, --max-tokens and "
        "--accumulate 1"),
    "a dump in batches of none": ("dump_logits", "--max-tokens 0", {},
        "dump_logits.py: error: --max-tokens and --check must be at least 1"),
    "a check of no row": ("dump_logits", "--check 0", {},
        "dump_logits.py: error: --max-tokens and --check must be at least 1"),
    "all rows for test": ("data.prepare", "train.tsv --test-percent 90", {},
        "python -m data.prepare: error: --test-percent must be in [0, 90)"),
    "nothing to split": ("data.prepare", "", {},
        "python -m data.prepare: error: split needs a FILE: python -m data.prepare split reviews.csv"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_harms_nothing(name, here, monkeypatch, capsys):
    script, flags, files, message = CASES[name]
    put(files)
    before = snapshot(here)
    code = run(script, flags, monkeypatch)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    if message.endswith("…"):  # the rest is a library's own text, which varies by version
        assert last.startswith(message[:-1])
    else:
        assert last == message
    assert code == 2
    assert_unharmed(before, here)


SUBPROCESS = ("no such file", "a field beyond csv's limit", "a label training has not", "sparse logits",
              "a cut student", "mistakes over a model", "alpha 2", "two rows to split")


@pytest.mark.parametrize("name", SUBPROCESS)
def test_the_command_line_says_the_same(name, here):
    script, flags, files, message = CASES[name]
    put(files)
    command = ["-m", script] if script == "data.prepare" else [str(ROOT / f"{script}.py")]
    done = subprocess.run([sys.executable, *command, *SCRIPTS[script].split(), *flags.split()],
                          capture_output=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message.removesuffix("…"))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("way, reason", [("argument", "surrogates not allowed"),
                                         ("standard input", "invalid start byte")])
def test_a_text_to_predict_that_is_not_utf8_is_one_line(way, reason, here, monkeypatch, capsys):
    flags = "student.pt" + (" \udcff" if way == "argument" else "")
    assert run("student", flags, monkeypatch, given=b"good\n\xc1\xc1\n") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: a text is not UTF-8 ({reason}); convert it, for example from CP949"]


# ---- what looks bad and works ------------------------------------------------------------------------------

WORKS = {  # as CASES, but with what standard output has to hold
    "fewer rows than a batch": ("distill", "--train a.tsv --logits a.pt",
                                {"a.tsv": b"text\na\n", "a.pt": saved(torch.ones(1, 2))}, "1 training rows"),
    "two rows for a teacher": ("finetune_teacher", f"{SCRATCH} --train a.tsv --output-dir new",
                               {"a.tsv": b"text\tlabel\na\t0\nb\t1\n"}, "2 training rows"),
    "one row to evaluate": ("evaluate", "student.pt teacher.pt --data a.tsv",
                            {"a.tsv": b"text\tlabel\na\t1\n"}, "1 rows"),
    "one row to dump": ("dump_logits", "--data a.tsv", {"a.tsv": b"text\na\n"}, "logits of 1 rows"),
    "three rows to split": ("data.prepare", "a.tsv", {"a.tsv": b"text\tlabel\na\t0\nb\t1\nc\t1"}, "train"),
    "blank texts": ("distill", "--train a.tsv --logits a.pt",
                    {"a.tsv": b"text\tlabel\n\t1\n \t0\n", "a.pt": saved(torch.ones(2, 2))}, "2 training"),
    "CRLF, BOM and no last line end": (
        "evaluate", "student.pt --data a.csv",
        {"a.csv": b'\xef\xbb\xbftext,label\r\n"a,\r\nb",1\r\nc,0'}, "2 rows"),
    "a line of 50 MB": ("evaluate", "student.pt --data a.tsv",
                        {"a.tsv": b"text\tlabel\n" + b"a " * 25_000_000 + b"\t1\nb\t0\n"}, "2 rows"),
    "logits that ask for gradients": (
        "distill", "--logits a.pt", {"a.pt": saved(torch.ones(12, 2, requires_grad=True))}, "12 training"),
    "logits that are a view": (
        "distill", "--logits a.pt", {"a.pt": saved(torch.ones(24, 2)[::2])}, "12 training"),
}


@pytest.mark.parametrize("name", WORKS)
def test_little_or_odd_input_works(name, here, monkeypatch, capsys):
    script, flags, files, said = WORKS[name]
    put(files)
    assert run(script, flags, monkeypatch) == 0
    out, error = capsys.readouterr()
    assert said in out and "error" not in error


@pytest.mark.parametrize("script, flags, file", [
    ("distill", "--valid train.tsv", "a --train file"),
    ("finetune_teacher", f"{SCRATCH} --valid train.tsv --output-dir new", "train.tsv"),
])
def test_validation_on_the_training_file_is_warned_of_and_runs(script, flags, file, here, monkeypatch, capsys):
    assert run(script, flags, monkeypatch) == 0
    assert capsys.readouterr().err == (
        f"warning: train.tsv has the texts of {file}: it cannot tell which epoch is best\n")


# ---- trouble on the way ------------------------------------------------------------------------------------

SAVES = {  # script: flags, and the file that is there already
    "finetune_teacher": (f"{SCRATCH} --output-dir . --overwrite", "teacher.pt"),
    "dump_logits": ("--output-dir . --overwrite", "train.pt"),
    "distill": ("--output-dir . --overwrite", "tiny/student.pt"),
}
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [NO_SPACE, RuntimeError("[enforce fail at inline_container.cc:672]\nmore")],
                         ids=["OSError", "RuntimeError"])
@pytest.mark.parametrize("script", SAVES)
def test_a_full_disk_leaves_the_old_file(script, error, here, monkeypatch, capsys):
    flags, file = SAVES[script]
    put({file: (here / "student.pt").read_bytes()})
    before = snapshot(here)

    def half(artifact, target):
        target.write(b"PK half a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    assert run(script, flags, monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    reason = getattr(error, "strerror", None) or "[enforce fail at inline_container.cc:672]"
    assert last.endswith(f".pt: cannot write ({reason}); nothing was changed")
    assert_unharmed(before, here)


@pytest.mark.parametrize("script, flags, half_written, message", [
    ("train_tokenizer", "--data valid.tsv --output-dir .", "vocab.txt",  # tokenizer.json could be written
     "error: vocab_size_60: cannot write (No space left on device)"),
    ("evaluate", "student.pt --errors errors.tsv", "errors.tsv",
     "error: errors.tsv: cannot write (No space left on device); nothing was changed"),
])
def test_a_full_disk_leaves_the_old_texts(script, flags, half_written, message, here, monkeypatch, capsys):
    put({"errors.tsv": b"old", "vocab_size_60/tokenizer.json": b"old", "vocab_size_60/vocab.txt": b"old"})
    before, real = snapshot(here), Path.write_text

    def half(self, text, *args, **kwargs):
        real(self, text[:20], *args, **kwargs)
        if half_written in self.name:
            raise NO_SPACE

    monkeypatch.setattr(Path, "write_text", half)
    assert run(script, flags, monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert_unharmed(before, here)


@pytest.mark.parametrize("script, flags", [("distill", ""), ("dump_logits", ""),
                                           ("finetune_teacher", f"{SCRATCH} --output-dir new")])
def test_a_file_that_is_replaced_while_it_is_read_is_refused(script, flags, here, monkeypatch, capsys):
    """The survey reads one file, what comes after it another."""
    def survey_then_replace(path, *columns, **options):
        found = survey(path, *columns, **options)
        Path(path).write_bytes(TABLE.replace(b"6", b"8"))
        return found

    monkeypatch.setattr(examples, "survey", survey_then_replace)
    assert run(script, flags, monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: train.tsv: was changed while it was read; run again")
    assert list(here.glob("logits/*.pt")) == list(here.glob("students/*/*.pt")) == []


@pytest.mark.parametrize("error", [MemoryError("no more"),
                                   RuntimeError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
@pytest.mark.parametrize("script, flags", [("distill", ""), ("dump_logits", ""),
                                           ("finetune_teacher", f"{SCRATCH} --output-dir new")])
def test_out_of_memory_says_what_to_lower(script, flags, error, here, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.nn.functional, "embedding", fail)
    before = snapshot(here)
    assert run(script, flags, monkeypatch) == 2
    first = str(error).split("\n")[0]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: out of memory ({first}); lower --max-tokens")
    assert_unharmed(before, here)
