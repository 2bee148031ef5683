"""Bad input, script by script: the last line on stderr word for word, exit code 2, nothing on disk harmed."""

import contextlib
import errno
import gzip
import io
import json
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import distill
import dump_logits
import finetune_teacher
import runtime
import train_tokenizer
from data import examples, prepare
from data.batching import logits_in_order
from data.examples import read_again, read_examples, survey
from student import Student, StudentConfig
from teacher import Teacher, TeacherConfig, bert_template, load_tokenizer, published_names

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
         "--min-frequency", "1", "--type", "wordpiece"]))
    (folder / "vocab_size_60").rename(folder / "tok")
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder / "tok", "bert")
    config = StudentConfig(tokenizer.get_vocab_size(), 2, 4, 4)
    Student(config, tokenizer, ["0", "1"]).save(folder / "student.pt")
    for name, labels in (("swapped.pt", ["1", "0"]), ("teacher.pt", ["0", "1"])):
        tokenizer = load_tokenizer(folder / "tok", "bert")
        tokenizer.post_processor = bert_template(tokenizer)
        config = TeacherConfig("bert", tokenizer.get_vocab_size(), 8, 1, 2, 16, 8, 32, 2, 2)
        teacher = Teacher(config, tokenizer, labels, 16).eval()
        teacher.save(folder / name)
    publish(teacher, folder / "bert")
    rows = read_examples(folder / "train.tsv")
    torch.save({"kind": "logits", "format": dump_logits.FORMAT, "label_names": ["0", "1"],
                "logits": logits_in_order(teacher, teacher.encode(rows.texts), 1000),
                "texts": rows.fingerprint(), "teachers": [teacher.fingerprints()],
                "teacher_files": ["teacher.pt"], "dtype": "float32", "precision": "fp32", "made_by": {}},
               folder / "logits.pt")
    return folder


def publish(teacher: Teacher, folder: Path) -> None:
    """The teacher as a checkpoint folder from the hub."""
    folder.mkdir()
    config, own = teacher.config, teacher.state_dict()
    (folder / "config.json").write_text(json.dumps({
        "model_type": "bert", "vocab_size": config.vocab_size, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}))
    (folder / "tokenizer.json").write_text(teacher.tokenizer.to_str())
    torch.save({name: part.clone() for ours, theirs in published_names(config).items()
                for name, part in zip(theirs, own[ours].chunk(len(theirs)), strict=True)},
               folder / "pytorch_model.bin")


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


def weight_of(source, name, value):
    """A .pt file one of whose weights is `value` throughout."""
    def write(path):
        artifact = torch.load(source, weights_only=True)
        artifact["weights"][name].fill_(value)
        torch.save(artifact, path)
    return write


def published(**values):
    """The checkpoint's config.json with some values replaced."""
    def write(path):
        path.write_text(json.dumps(json.loads(Path("bert/config.json").read_text()) | values))
    return write


def tensors(change):
    """The checkpoint's pytorch_model.bin with every tensor changed."""
    def write(path):
        loaded = torch.load("bert/pytorch_model.bin", weights_only=True)
        torch.save({name: change(tensor) for name, tensor in loaded.items()}, path)
    return write


def cut(source, share=0.5):
    """The start of a file, as a download that ended early leaves it."""
    def write(path):
        data = Path(source).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
    return write


def cut_safetensors(path):
    """One tensor of three numbers, of which two are there."""
    header = b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    (path.parent / "pytorch_model.bin").unlink()


def line_of_50_mb(path):
    data = b"text\n" + b"a" * 50_000_000 + b"\n"
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def with_code(path):
    """A path is no plain value: to load it, a pickle names a function to call."""
    torch.save({"kind": "student", "code": Path("/")}, path)


def plan(**values):
    """The plan of a dump that was interrupted."""
    def write(path):
        made = torch.load("logits.pt", weights_only=True)
        keys = ("format", "teachers", "label_names", "dtype", "texts", "precision")
        torch.save({key: made[key] for key in keys} | {"kind": "logits-plan", "max_tokens": 8192, "first": 0}
                   | values, path)
    return write


def saved(value):
    return lambda path: torch.save(value, path)


def tokenizer_without(token):
    def write(path):
        text = Path("tok/tokenizer.json").read_text(encoding="utf-8")
        path.write_text(text.replace(f'"{token}"', '"[NONE]"'), encoding="utf-8")
    return write


def tokenizer_with_gaps(path):
    state = json.loads(Path("tok/tokenizer.json").read_text(encoding="utf-8"))
    vocab = state["model"]["vocab"]
    vocab[max(vocab, key=vocab.get)] += 7
    path.write_text(json.dumps(state), encoding="utf-8")


def folder(path):
    path.mkdir()


def not_finite(path):
    logits = torch.zeros(12, 2)
    logits[7, 1] = torch.nan
    torch.save(logits, path)


def put(files: dict) -> None:
    for file, content in files.items():
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)


# ---- running -----------------------------------------------------------------------------------------------

FAST = "--device cpu --precision fp32"
TRAINING = f"--epochs 1 {FAST}"
SCRIPTS = {  # flags that come before a case's own; a later flag wins
    "train_tokenizer": "--type wordpiece --vocab-size 60 --min-frequency 1",
    "finetune_teacher": f"--train train.tsv --valid valid.tsv {TRAINING}",
    "dump_logits": f"--teacher teacher.pt --data train.tsv {FAST}",
    "distill": "--train train.tsv --logits logits.pt --valid valid.tsv --tokenizer tok --size tiny "
               + TRAINING,
    "evaluate": "--data valid.tsv --device cpu",
    "student": "",
    "data.prepare": "--out out",
}


def run(script: str, flags: str, monkeypatch, given: bytes = b"") -> int:
    """The script as `python SCRIPT FLAGS` runs it, in this process; returns the exit code."""
    argv = [f"{script}.py", *SCRIPTS[script].split(), *flags.split()]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    try:
        for module in ("data.training", "data.prepare"):  # as a new process imports them
            monkeypatch.delitem(sys.modules, module, raising=False)
        if script == "data.prepare":
            runpy.run_module(script, run_name="__main__")
        else:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_unharmed(before: dict, folder: Path, *begun: str) -> None:
    """Every file is as it was, and nothing came to be but locks and, of a run that got so far, `begun`."""
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    fresh = {Path(name).name for name in set(after) - set(before)}
    assert {name for name in fresh if not name.endswith(".lock")} <= set(begun)


# ---- the table ---------------------------------------------------------------------------------------------

SCRATCH, BERT = "--scratch 1,8,2 --tokenizer tok", "--checkpoint bert"
DOWN = ("make the right ones: python dump_logits.py --teacher TEACHER.pt --data train.tsv --output-dir ., "
        "and give --logits train.pt")
KNOWN = DOWN.replace("TEACHER", "teacher")  # where the logits tell of whom they are
AGAIN = "--resume goes on with its run, --overwrite starts anew, another --output-dir keeps both"
NOT_PT = "not a .pt file that can be loaded safely"
ABSENT = "mps" if torch.cuda.is_available() else "cuda"
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
    "empty tsv": ("data.prepare", "split a.tsv", {"a.tsv": b""},
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
    "two text columns": ("data.prepare", "split a.csv", {"a.csv": b"text,document,label\na,b,1\n"},
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
    "not UTF-8 in gz": (
        "data.prepare", "split a.csv.gz", {"a.csv.gz": gzip.compress(b"text,label\na\xff,1\n")},
        "error: a.csv.gz:2: not UTF-8 at byte 12 of the file (invalid start byte); convert it, for "
        "example from CP949"),
    "NUL byte": ("finetune_teacher", f"{SCRATCH} --valid a.tsv", {"a.tsv": TABLE + b"a\0b\t1\n"},
        "error: a.tsv:14: NUL byte; the file is not UTF-8 text (UTF-16? convert it)"),
    "UTF-16": ("train_tokenizer", "--data a.tsv", {"a.tsv": "text\na\n".encode("utf-16-le")},
        "error: a.tsv:1: NUL byte; the file is not UTF-8 text (UTF-16? convert it)"),
    "a line of 50 MB": ("train_tokenizer", "--data a.tsv", {"a.tsv": line_of_50_mb},
        "error: a.tsv:2: a line of more than 16,777,216 bytes; a row is one line (are line ends missing?)"),
    "a packed line of 50 MB": ("dump_logits", "--data a.tsv.gz", {"a.tsv.gz": line_of_50_mb},
        "error: a.tsv.gz:2: a line of more than 16,777,216 bytes; a row is one line (are line ends "
        "missing?)"),
    "a quote that never ends": ("train_tokenizer", "--data a.csv", {"a.csv": b"text,label\n\"a,1\nb,0\n"},
        "error: a.csv:2: not valid CSV (unexpected end of data); is a quote not closed, or not "
        "doubled?"),
    "text behind a quote": ("dump_logits", "--data a.csv", {"a.csv": b"text,label\n\"a\"b,1\n"},
        "error: a.csv:2: not valid CSV (',' expected after '\"'); is a quote not closed, or not doubled?"),
    "broken JSON": ("distill", "--train a.jsonl", {"a.jsonl": b'{"text": "a", "label": 1}\n{"text": \n'},
        "error: a.jsonl:2: not valid JSON (Expecting value at column 1)"),
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
    "a list for a label": ("distill", "--valid a.jsonl", {"a.jsonl": b'{"text": "a", "label": [1]}\n'},
        "error: a.jsonl:1: 'label' is [1], a string or number is needed"),
    "a fraction for a label": ("distill", "--valid a.jsonl", {"a.jsonl": b'{"text": "a", "label": 0.5}\n'},
        "error: a.jsonl:1: label '0.5' is none of ['0', '1']; correct it"),
    "a label that comes late": (
        "data.prepare", "split a.jsonl",
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
    "one class for a student": (
        "distill", "--train a.tsv --valid b.tsv --logits a.pt",
        {"a.tsv": b"text\na\n", "b.tsv": b"text\tlabel\nb\t1\n", "a.pt": saved(torch.zeros(1, 2))},
        "error: a.tsv, b.tsv: the only label is '1'; a classifier needs at least two (column `label`, or "
        "--label-column)"),
    "one class to split": ("data.prepare", "split a.tsv", {"a.tsv": b"text\tlabel\n" + b"a\tyes\n" * 5},
        "error: a.tsv: the only label is 'yes'; a classifier needs at least two (column `label`, or "
        "--label-column)"),
    "a label training has not": (
        "finetune_teacher", f"{SCRATCH} --valid a.tsv",
        {"a.tsv": TABLE + b"x\tneutral\n"},
        "error: a.tsv:14: label 'neutral' is none of ['0', '1']; correct it"),
    "a label the logits have not": (
        "distill", "--train a.tsv --alpha 0.5",
        {"a.tsv": TABLE.replace(b"\t1", b"\tgood", 1)},
        "error: a.tsv:3: label 'good' is none of ['0', '1']; correct it, or leave it empty if the row "
        "has no label"),
    "a label the model has not": ("evaluate", "student.pt --data a.tsv", {"a.tsv": TABLE + b"x\t2\n"},
        "error: a.tsv:14: label '2' is none of ['0', '1']; correct it"),
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
    "two rows to split": ("data.prepare", "split a.tsv", {"a.tsv": b"text\tlabel\na\t1\nb\t0\n"},
        "error: a.tsv: 2 rows; train, valid and test need at least 3"),
    "pairs and single texts": (
        "finetune_teacher", f"{SCRATCH} --valid a.tsv",
        {"a.tsv": b"text\ttext2\tlabel\na\tb\t1\n"},
        "error: a.tsv has a column text2 and train.tsv has not; all or none must be pairs"),
    "pairs and single texts for a student": (
        "distill", "--valid a.tsv",
        {"a.tsv": b"text\ttext2\tlabel\na\tb\t1\n"},
        "error: a.tsv has a column text2 and train.tsv has not; all or none must be pairs"),
    "no logits file": ("distill", "--logits none.pt", {},
        "error: none.pt: cannot read (No such file or directory)"),
    "logits that are not finite": ("distill", "--logits a.pt", {"a.pt": not_finite},
        "error: a.pt: the logits of row 7 are not finite; " + DOWN),
    "logits of another file": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", texts="0" * 64)},
        "error: a.pt: these are logits of other texts than train.tsv; " + KNOWN),
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
        "error: a.pt: not a .pt file that can be loaded safely (…"),
    "logits of three classes": ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(12, 3))},
        "error: a.pt: 3 classes, but the labels are ['0', '1']: a column for each is needed, in this order"),
    "logits without logits": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", logits=None)},
        "error: a.pt: damaged, no logits, label_names or teachers in it; " + KNOWN),
    "label names that are numbers": (
        "distill", "--logits a.pt",
        {"a.pt": changed("logits.pt", label_names=[0, 1])},
        "error: a.pt: damaged, no logits, label_names or teachers in it; " + KNOWN),
    "label names that are lists": (
        "distill", "--logits a.pt",
        {"a.pt": changed("logits.pt", label_names=[[], []])},
        "error: a.pt: damaged, no logits, label_names or teachers in it; " + KNOWN),
    "logits beyond float32": ("distill", "--logits a.pt", {"a.pt": saved(torch.ones(12, 2).double() * 1e300)},
        "error: a.pt: the logits of row 0 are not finite; " + DOWN),
    "logits of a teacher that has changed": ("distill", "", {"teacher.pt": changed("swapped.pt")},
        "error: logits.pt: was made by another teacher than teacher.pt now is (other weights); make the "
        "right ones: python dump_logits.py --teacher teacher.pt --data train.tsv --output-dir ., and give "
        "--logits train.pt, or name the teacher they are of with --teacher"),
    "logits of one teacher where two are named": ("distill", "--teacher teacher.pt swapped.pt", {},
        "error: logits.pt: is the mean of 1 teachers, --teacher names 2; make the right ones: python "
        "dump_logits.py --teacher teacher.pt swapped.pt --data train.tsv --output-dir ., and give --logits "
        "train.pt"),
    "logits of the first rows": (
        "distill", "--train a.tsv", {"a.tsv": TABLE + b"new\t1\n"},
        "error: logits.pt: these are logits of other texts than a.tsv; it has grown, add the new rows: "
        "python dump_logits.py --teacher teacher.pt --data a.tsv --output-dir ., and give --logits a.pt"),
    "logits of two teachers": (
        "distill", "--train train.tsv train.tsv --logits logits.pt a.pt",
        {"a.pt": changed("logits.pt", label_names=["1", "0"])},
        "error: a.pt: its classes are not those of the other logits; one teacher for all files"),
    "logits of an older format": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", format=0)},
        "error: a.pt: format 0, this version reads 2; make it anew"),
    "logits without a format": ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", format=None)},
        "error: a.pt: format unknown, this version reads 2; make it anew"),
    "a teacher for logits": ("distill", "--logits teacher.pt", {},
        "error: teacher.pt: holds teacher, a logits is needed"),
    "text for logits": ("distill", "--logits train.tsv", {},
        f"error: train.tsv: {NOT_PT} (…"),
    "cut logits": ("distill", "--logits a.pt", {"a.pt": cut("logits.pt")},
        f"error: a.pt: {NOT_PT} (its end is missing)"),
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
    "logits of another teacher to append to": (
        "dump_logits", "--output-dir . --append --teacher swapped.pt", {"train.pt": changed("logits.pt")},
        "error: train.pt: was made with other values of the weights of teacher 1, label_names; use those, "
        "or --overwrite to start anew"),
    "logits of other texts to append to": (
        "dump_logits", "--output-dir . --append", {"train.pt": changed("logits.pt", texts="0" * 64)},
        "error: train.pt: is of other texts than those of train.tsv; --overwrite makes it anew"),
    "logits of fewer rows to resume": (
        "dump_logits", "--output-dir . --resume --data a/train.tsv",
        {"train.pt": changed("logits.pt"), "a/train.tsv": TABLE + b"new\t1\n"},
        "error: train.pt: has 12 of the 13 rows of a/train.tsv; --append adds the rest"),
    "logits of garbage teachers": ("dump_logits", "--output-dir . --check 1",
        {"train.pt": changed("logits.pt", teachers=[1])},
        "error: train.pt: damaged, its teachers cannot be read; --overwrite makes it anew"),
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
        "error: train.pt: damaged, no texts in it; --overwrite makes it anew"),
    "a logit that is wrong": (
        "dump_logits", "--check 12 --output-dir .",
        {"train.pt": changed("logits.pt", logits=torch.ones(12, 2))},
        "error: train.pt: 12 of 12 rows are wrong, first row 0 (train.tsv:2): [1.0, 1.0], computed again […"),
    "an interrupted dump is there": (
        "dump_logits", "--output-dir .", {".train.shards/plan.pt": plan(), ".train.shards/000000.pt": b""},
        f"error: .train.shards: is there already; {AGAIN}"),
    "a plan of an older format": (
        "dump_logits", "--output-dir . --resume",
        {".train.shards/plan.pt": plan(format=1), ".train.shards/000000.pt": b""},
        "error: .train.shards/plan.pt: format 1, this version reads 2; make it anew"),
    "a plan of another dump": (
        "dump_logits", "--output-dir . --resume",
        {".train.shards/plan.pt": plan(dtype="float16", max_tokens=100), ".train.shards/000000.pt": b""},
        "error: .train.shards/plan.pt: was made with other values of dtype (float16, now float32), "
        "max_tokens (100, now 8192); use those, or --overwrite to start anew"),
    "two files of one name": ("dump_logits", "--data train.tsv a/train.tsv", {"a/train.tsv": TABLE},
        "error: train.tsv and a/train.tsv would both be written to logits/train.pt; dump them in two "
        "runs with different --output-dir"),
    "no student": ("student", "none.pt hello", {},
        "error: none.pt: cannot read (No such file or directory)"),
    "a folder for a student": ("student", "tok hello", {},
        "student.py: error: tok is no text and no STUDENT.pt; files of texts go to standard input"),
    "text for a student": ("student", "train.tsv hello", {},
        "student.py: error: train.tsv is no text and no STUDENT.pt; files of texts go to standard input"),
    "a student that is text": ("student", "a.pt hello", {"a.pt": TABLE},
        "error: a.pt: not a .pt file that can be loaded safely (…"),
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
        "error: a.pt: format unknown, this student.py reads 1 to 2"),
    "a student of a later format": ("student", "a.pt hello", {"a.pt": changed("student.pt", format=3)},
        "error: a.pt: format 3, this student.py reads 1 to 2"),
    "a student without tokenizer": ("student", "a.pt hello", {"a.pt": changed("student.pt", tokenizer=None)},
        "error: a.pt: damaged ('tokenizer'); copy it again or train "
        "it anew"),
    "a student without weights": ("student", "a.pt hello", {"a.pt": changed("student.pt", weights={})},
        "error: a.pt: damaged (its config or weights claim more than the file holds); copy it again or train "
        "it anew"),
    "a student with a wrong config": (
        "student", "a.pt hello",
        {"a.pt": changed("student.pt", config={"size": 3})},
        "error: a.pt: damaged (StudentConfig.__init__() got an unexpected keyword argument 'size'); copy it "
        "again or train "
        "it anew"),
    "a student with too few labels": (
        "student", "a.pt hello",
        {"a.pt": changed("student.pt", label_names=["0"])},
        "error: a.pt: damaged (1 label names for 2 classes); copy it again or train "
        "it anew"),
    "a blank token beyond the vocabulary": (
        "student", "a.pt hello",
        {"a.pt": config_of("student.pt", blank_id=10**6)},
        "error: a.pt: damaged (blank_id is 1000000, must be in [0, 37)); copy it again or train "
        "it anew"),
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
        "error: --errors valid.tsv would overwrite another file of this command; name another"),
    "mistakes over a model": ("evaluate", "student.pt --errors student.pt", {},
        "error: --errors student.pt would overwrite another file of this command; name another"),
    "mistakes over a seen file": ("evaluate", "student.pt --seen train.tsv --errors train.tsv", {},
        "error: --errors train.tsv would overwrite another file of this command; name another"),
    "mistakes where a file is": ("evaluate", "student.pt --errors teacher.pt/mistakes.tsv", {},
        "error: teacher.pt/mistakes.tsv: cannot write (File exists); nothing was changed"),
    "models of other labels": (
        "evaluate", "student.pt a.pt", {"a.pt": changed("student.pt", label_names=["0", "good"])},
        "error: a.pt: its labels are ['0', 'good'], those of the first model ['0', '1']; "
        "compare models of the same labels"),
    "mistakes over a folder": ("evaluate", "student.pt --errors tok", {},
        "error: --errors tok: is no file that could be replaced; name another"),
    "no teacher": ("dump_logits", "--teacher none.pt", {},
        "error: none.pt: cannot read (No such file or directory)"),
    "a web page for a teacher": ("dump_logits", "--teacher a.pt", {"a.pt": b"<!DOCTYPE html>\n"},
        f"error: a.pt: {NOT_PT} (…"),
    "an empty teacher": ("dump_logits", "--teacher a.pt", {"a.pt": b""},
        f"error: a.pt: {NOT_PT} (…"),
    "a teacher that carries code": ("dump_logits", "--teacher a.pt", {"a.pt": with_code},
        f"error: a.pt: {NOT_PT} (Unsupported global: GLOBAL pathlib…"),
    "a student that carries code": ("student", "a.pt hello", {"a.pt": with_code},
        f"error: a.pt: {NOT_PT} (Unsupported global: GLOBAL pathlib…"),
    "a student that is not finite": (
        "evaluate", "a.pt", {"a.pt": weight_of("student.pt", "head.bias", torch.nan)},
        "error: a.pt: damaged (its weights are not finite); copy it again or train "
        "it anew"),
    "a teacher that is not finite": (
        "dump_logits", "--teacher a.pt", {"a.pt": weight_of("teacher.pt", "head_out.bias", torch.inf)},
        "error: a.pt: not a usable teacher (its weights are not finite); make it anew"),
    "logits that float16 cannot hold": (
        "dump_logits", "--teacher a.pt --dtype float16",
        {"a.pt": weight_of("teacher.pt", "head_out.bias", 1e6)},
        "error: train.tsv:2: the logits of this row are not finite in float16; try --dtype float32 "
        "--precision fp32"),
    "logits for a teacher": ("dump_logits", "--teacher logits.pt", {},
        "error: logits.pt: holds logits; a student.pt or teacher.pt is needed"),
    "a kind with a line end for a teacher": (
        "dump_logits", "--teacher a.pt", {"a.pt": changed("teacher.pt", kind="x\n\x1by")},
        "error: a.pt: holds something that is not of this kit; a student.pt or teacher.pt is needed"),
    "a damaged student for a teacher": ("dump_logits", "--teacher a.pt", {"a.pt": cut("student.pt")},
        f"error: a.pt: {NOT_PT} (its end is missing)"),
    "a student for a teacher of other classes": ("dump_logits", "--teacher swapped.pt student.pt", {},
        "error: student.pt: labels ['0', '1'] differ from ['1', '0'] of swapped.pt; averaged teachers need "
        "the same labels in the same order"),
    "text for a teacher": ("dump_logits", "--teacher train.tsv", {},
        "error: train.tsv: not a .pt file that can be loaded safely (…"),
    "a cut teacher": ("dump_logits", "--teacher a.pt", {"a.pt": cut("teacher.pt", 0.9)},
        f"error: a.pt: {NOT_PT} (its end is missing)"),
    "a teacher of an older format": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", format=0)},
        "error: a.pt: format 0, this version reads 1; make it anew"),
    "a teacher with a kind of two": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", kind=torch.zeros(2))},
        "error: a.pt: holds something that is not of this kit; a student.pt or teacher.pt is needed"),
    "a teacher without maximum length": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", max_length=None)},
        "error: a.pt: not a usable teacher ('max_length'); make it anew"),
    "a teacher with garbage for a tokenizer": (
        "dump_logits", "--teacher a.pt",
        {"a.pt": changed("teacher.pt", tokenizer="{}")},
        "error: a.pt: not a usable teacher (…"),
    "a run is there": ("distill", "--output-dir .", {"tiny/last.pt": b""},
        f"error: tiny/last.pt: is there already; {AGAIN}"),
    "a student is there": ("distill", "--output-dir .", {"tiny/student.pt": b""},
        f"error: tiny/student.pt: is there already; {AGAIN}"),
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
        "error: tiny/last.pt: damaged, no weights or optimizer or at or precision or made_by in it; "
        "--overwrite makes it anew"),
    "a teacher's run is there": ("finetune_teacher", f"{SCRATCH} --output-dir .", {},
        f"error: teacher.pt: is there already; {AGAIN}"),
    "a teacher's last.pt of an older format": (
        "finetune_teacher", f"{SCRATCH} --output-dir a --resume",
        {"a/last.pt": saved({"kind": "teacher-resume", "format": 0})},
        "error: a/last.pt: format 0, this version reads 3; make it anew"),
    "a teacher's last.pt with nothing in it": (
        "finetune_teacher", f"{SCRATCH} --output-dir a --resume",
        {"a/last.pt": saved({"kind": "teacher-resume", "format": finetune_teacher.FORMAT})},
        "error: a/last.pt: damaged, no weights or optimizer or at or precision or made_by in it; "
        "--overwrite makes it anew"),
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
    "a tokenizer with gaps": ("distill", "--tokenizer a.json", {"a.json": tokenizer_with_gaps},
        "error: a.json: there are gaps between its ids; make one with train_tokenizer.py"),
    "a tokenizer without [UNK]": ("distill", "--tokenizer a.json", {"a.json": tokenizer_without("[UNK]")},
        "error: a.json: the tokenizer has no [UNK]; make one with train_tokenizer.py"),
    "a tokenizer without [CLS]": (
        "finetune_teacher", "--scratch 1,8,2 --tokenizer a",
        {"a/tokenizer.json": tokenizer_without("[CLS]")},
        "error: a: the tokenizer has no [CLS]; make one with train_tokenizer.py"),
    "a teacher's tokenizer without [PAD]": (
        "finetune_teacher", "--scratch 1,8,2 --tokenizer a",
        {"a/tokenizer.json": tokenizer_without("[PAD]")},
        "error: a: the tokenizer has no [PAD]; make one with train_tokenizer.py"),
    "a teacher's tokenizer without [UNK]": (
        "finetune_teacher", "--scratch 1,8,2 --tokenizer a",
        {"a/tokenizer.json": tokenizer_without("[UNK]")},
        "error: a: the tokenizer has no [UNK]; make one with train_tokenizer.py"),
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
    "config.json nested without end": (
        "finetune_teacher", "--checkpoint a", {"a/config.json": b"[" * 100_000},
        "error: a/config.json: not valid JSON (…"),
    "10**12 layers": ("finetune_teacher", BERT, {"bert/config.json": published(num_hidden_layers=10**12)},
        "error: bert/config.json: num_layers is 1000000000000, must be at most 1000"),
    "10**6 layers": ("finetune_teacher", BERT, {"bert/config.json": published(num_hidden_layers=10**6)},
        "error: bert/config.json: num_layers is 1000000, must be at most 1000"),
    "10**12 tokens": ("finetune_teacher", BERT, {"bert/config.json": published(vocab_size=10**12)},
        "error: bert/config.json: vocab_size is 1000000000000, must be at most 16777216"),
    "10**7 tokens": ("finetune_teacher", BERT, {"bert/config.json": published(vocab_size=10**7)},
        "error: bert/pytorch_model.bin: tensor bert.embeddings.word_embeddings.weight has shape [37, 8], "
        "config.json asks for [10000000, 8]"),
    "10**7 wide": ("finetune_teacher", BERT, {"bert/config.json": published(hidden_size=10**7)},
        "error: bert/pytorch_model.bin: tensor bert.embeddings.word_embeddings.weight has shape [37, 8], "
        "config.json asks for [37, 10000000]"),
    "fewer tokens than the tokenizer": (
        "finetune_teacher", BERT, {"bert/config.json": published(vocab_size=3)},
        "error: bert: the tokenizer has 37 tokens, the model embeds only 3; they do not belong together"),
    "no token at all": ("finetune_teacher", BERT, {"bert/config.json": published(vocab_size=0)},
        "error: bert/config.json: vocab_size is 0, must be at least 1"),
    "a dropout of 5": ("finetune_teacher", BERT, {"bert/config.json": published(hidden_dropout_prob=5)},
        "error: bert/config.json: hidden_dropout is 5, must be in [0, 1]"),
    "an epsilon that is a word": (
        "finetune_teacher", BERT, {"bert/config.json": published(layer_norm_eps="a")},
        "error: bert/config.json: layer_norm_eps is 'a', must be in [0, 1]"),
    "a cut tokenizer.json": ("finetune_teacher", BERT, {"bert/tokenizer.json": cut("bert/tokenizer.json")},
        "error: bert: the tokenizer cannot be read (…"),
    "a cut pytorch_model.bin": (
        "finetune_teacher", BERT, {"bert/pytorch_model.bin": cut("bert/pytorch_model.bin")},
        f"error: bert/pytorch_model.bin: {NOT_PT} (its end is missing)"),
    "a cut model.safetensors": ("finetune_teacher", BERT, {"bert/model.safetensors": cut_safetensors},
        "error: bert/model.safetensors: cannot read (…"),
    "weights that are not finite": (
        "finetune_teacher", BERT, {"bert/pytorch_model.bin": tensors(lambda tensor: tensor * torch.nan)},
        "error: bert/pytorch_model.bin: tensor bert.embeddings.word_embeddings.weight is not finite; get the "
        "file again"),
    "weights that are none": ("finetune_teacher", BERT, {"bert/pytorch_model.bin": saved([1, 2])},
        "error: bert/pytorch_model.bin: is not a dict of tensors"),
    "a published head of other classes": (
        "finetune_teacher", f"{BERT} --epochs 0 --train a.tsv --valid b.tsv",
        {"a.tsv": TABLE + b"x\t2\n", "b.tsv": b"text\tlabel\na\t1\n"},
        "error: --epochs 0 keeps a fine-tuned checkpoint as it is, this head is new: train it"),
    "a size that is missing": (
        "finetune_teacher", "--checkpoint a",
        {"a/config.json": b'{"model_type": "bert"}'},
        "error: a/config.json: has no 'vocab_size'"),
    "a file where the tokenizer's folder goes": (
        "train_tokenizer", "--data train.tsv --output-dir student.pt",
        {},
        "error: student.pt/vocab_size_60/tokenizer.json: cannot write (Not a directory); nothing was "
        "changed"),
    "a file where the teacher's folder goes": ("finetune_teacher", f"{SCRATCH} --output-dir student.pt", {},
        "error: student.pt: cannot write there (File exists); give another --output-dir"),
    "a file where the logits' folder goes": ("dump_logits", "--output-dir student.pt", {},
        "error: student.pt: cannot write there (File exists); give another --output-dir"),
    "a file where the students' folder goes": ("distill", "--output-dir teacher.pt", {},
        "error: teacher.pt/tiny: cannot write there (Not a directory); give another --output-dir"),
    "a folder where the log goes": ("distill", "--output-dir .", {"tiny/log.jsonl/a": b""},
        "error: tiny/log.jsonl: cannot write the log (Is a directory)"),
    "a folder where the teacher's log goes": (
        "finetune_teacher", f"{SCRATCH} --output-dir a", {"a/log.jsonl": folder},
        "error: a/log.jsonl: cannot write the log (Is a directory)"),
    "a folder where the lock goes": ("distill", "--output-dir .", {"tiny/.lock": folder},
        "error: tiny: cannot write there (Is a directory); give another --output-dir"),
    "a folder where last.pt goes": ("distill", "--output-dir . --resume", {"tiny/last.pt": folder},
        "error: tiny/last.pt: cannot read (Is a directory)"),
    "another tokenizer is there": (
        "train_tokenizer", "--data train.tsv --output-dir .", {"vocab_size_60/tokenizer.json": b"{}"},
        "error: vocab_size_60/tokenizer.json: is there already and is another one; --overwrite replaces it, "
        "another --output-dir keeps both"),
    "a folder where tokenizer.json goes": (
        "train_tokenizer", "--data train.tsv --output-dir . --overwrite",
        {"vocab_size_60/tokenizer.json": folder, "vocab_size_60/vocab.txt": b"old"},
        "error: vocab_size_60/tokenizer.json: cannot write (Is a directory); nothing was changed"),
    "a folder where a split goes": (
        "data.prepare", "split train.tsv", {"out/train.tsv": b"old", "out/valid.tsv": folder},
        "error: out/valid.tsv: cannot write (Is a directory); nothing was changed"),
    "a folder where a corpus is": ("data.prepare", "steam --from .", {"steam.txt": folder},
        "error: steam.txt: cannot read (Is a directory)"),
    "a corpus of another length": ("data.prepare", "steam --from .", {"steam.txt": b"1\ta\n0\tb\n"},
        "error: steam.txt: 2 rows, published are 100,000; it is damaged or another version: delete or "
        "replace it and run again"),
    "a corpus without tabs": ("data.prepare", "steam --from .", {"steam.txt": b"1\ta\n0 b\n"},
        "error: steam.txt:2: no tab; a line must be label<TAB>text"),
    "a file where the splits go": ("data.prepare", "split train.tsv --out student.pt", {},
        "error: student.pt: cannot write (File exists); nothing was changed"),
    "splits over their own file": ("data.prepare", "split train.tsv --out .", {},
        "error: train.tsv: is the FILE to split and would be overwritten; give another --out"),
    "vocabulary of 0": ("train_tokenizer", "--data train.tsv --vocab-size 0", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "vocabulary of 3": ("train_tokenizer", "--data train.tsv --vocab-size 3", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "vocabulary of 10**12": ("train_tokenizer", "--data train.tsv --vocab-size 1000000000000", {},
        "train_tokenizer.py: error: --vocab-size must be at most 1048576, --min-frequency and "
        "--limit-alphabet 2147483648"),
    "frequency 0": ("train_tokenizer", "--data train.tsv --min-frequency 0", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "frequency of 30 digits": ("train_tokenizer", "--data train.tsv --min-frequency " + "9" * 30, {},
        "train_tokenizer.py: error: --vocab-size must be at most 1048576, --min-frequency and "
        "--limit-alphabet 2147483648"),
    "alphabet of 30 digits": ("train_tokenizer", "--data train.tsv --limit-alphabet " + "9" * 30, {},
        "train_tokenizer.py: error: --vocab-size must be at most 1048576, --min-frequency and "
        "--limit-alphabet 2147483648"),
    "alphabet below 0": ("train_tokenizer", "--data train.tsv --limit-alphabet -1", {},
        "train_tokenizer.py: error: --vocab-size must be at least 10, --min-frequency and "
        "--limit-alphabet at least 1"),
    "hidden size 0": ("distill", "--hidden-dim 0", {},
        "error: hidden_dim is 0, must be a whole number in [1, 16777216]"),
    "embedding size below 0": ("distill", "--embedding-dim -4", {},
        "error: embedding_dim is -4, must be a whole number in [1, 16777216]"),
    "no layers": ("distill", "--num-layers 0", {},
        "error: num_layers is 0, must be a whole number in [1, 100]"),
    "dropout 1": ("distill", "--dropout 1", {},
        "error: dropout is 1.0, must be in [0, 1)"),
    "temperature 0": ("distill", "--temperature 0", {},
        "distill.py: error: --alpha must be in [0, 1], --temperature positive"),
    "temperature NaN": ("distill", "--temperature nan", {},
        "distill.py: error: --temperature is nan, must be finite and below 2147483648"),
    "alpha 2": ("distill", "--alpha 2", {},
        "distill.py: error: --alpha must be in [0, 1], --temperature positive"),
    "alpha NaN": ("distill", "--alpha nan", {},
        "distill.py: error: --alpha must be in [0, 1], --temperature positive"),
    "a rate below 0": ("distill", "--lr -0.001", {},
        "distill.py: error: --lr and --clip must be positive, --warmup in [0, 1), --weight-decay at "
        "least 0"),
    "a rate that is NaN": ("distill", "--lr nan", {},
        "distill.py: error: --lr is nan, must be finite and below 2147483648"),
    "a rate without bound": ("distill", "--lr inf", {},
        "distill.py: error: --lr is inf, must be finite and below 2147483648"),
    "no epochs": ("distill", "--epochs 0", {},
        "distill.py: error: --epochs, --max-tokens and --max-length must be at least 1"),
    "warm-up all along": ("distill", "--warmup 1", {},
        "distill.py: error: --lr and --clip must be positive, --warmup in [0, 1), --weight-decay at "
        "least 0"),
    "a seed below 0": ("distill", "--seed -1", {},
        "distill.py: error: --seed must be at least 0"),
    "texts of no token": ("distill", "--max-length 0", {},
        "distill.py: error: --epochs, --max-tokens and --max-length must be at least 1"),
    "batches of no token": ("distill", "--max-tokens 0", {},
        "distill.py: error: --epochs, --max-tokens and --max-length must be at least 1"),
    "saves below 0": ("distill", "--save-every -1", {},
        "distill.py: error: --save-every must be at least 0"),
    "resume and overwrite": ("distill", "--overwrite --resume", {},
        "distill.py: error: argument --resume: not allowed with argument --overwrite"),
    "resume and overwrite a teacher": ("finetune_teacher", f"{SCRATCH} --resume --overwrite", {},
        "finetune_teacher.py: error: argument --overwrite: not allowed with argument --resume"),
    "resume and overwrite logits": ("dump_logits", "--resume --overwrite", {},
        "dump_logits.py: error: argument --overwrite: not allowed with argument --resume"),
    "append and overwrite logits": ("dump_logits", "--append --overwrite", {},
        "dump_logits.py: error: --append goes with neither --overwrite nor --check"),
    "a device that is not there": ("evaluate", f"student.pt --device {ABSENT}", {},
        f"error: --device {ABSENT}: this machine has no such device; use --device auto or cpu"),
    "no logits at all": ("distill", "--alpha 0 --logits", {},
        "distill.py: error: argument --logits: expected at least one argument"),
    "an unknown size": ("distill", "--size huge", {},
        "distill.py: error: argument --size: invalid choice: 'huge' (choose from …"),
    "a rate that is a word": ("distill", "--lr fast", {},
        "distill.py: error: argument --lr: invalid float value: 'fast'"),
    "a flag that there is not": ("distill", "--learning-rate 1", {},
        "distill.py: error: unrecognized arguments: --learning-rate 1"),
    "no flags": ("evaluate", "", {},
        "evaluate.py: error: name a student.pt or teacher.pt, or give --logits"),
    "one student twice": ("distill", "--seed 1 1", {},
        "error: two students of the grid would share the folder tiny-seed1; give each value once, "
        "tokenizers of one size in two runs with different --output-dir"),
    "neither checkpoint nor scratch": ("finetune_teacher", "", {},
        "finetune_teacher.py: error: give either --checkpoint or --scratch"),
    "a tokenizer beside a checkpoint": ("finetune_teacher", f"{BERT} --tokenizer tok", {},
        "finetune_teacher.py: error: --tokenizer is for --scratch; a checkpoint brings its own"),
    "scratch without tokenizer": ("finetune_teacher", "--scratch 1,8,2", {},
        "finetune_teacher.py: error: --scratch needs --tokenizer DIR (make one with train_tokenizer.py)"),
    "a shape of two numbers": ("finetune_teacher", f"{SCRATCH} --scratch 1,8", {},
        "error: --scratch 1,8: layers,width,heads as in 2,128,4 are needed (not enough values to unpack "
        "(expected 3, got 2))"),
    "a width of 0": ("finetune_teacher", f"{SCRATCH} --scratch 1,0,2", {},
        "error: --scratch 1,0,2: layers,width,heads as in 2,128,4 are needed (hidden_size is 0, must be at "
        "least 1)"),
    "a width of 10**12": ("finetune_teacher", f"{SCRATCH} --scratch 1,1000000000000,2", {},
        "error: --scratch 1,1000000000000,2: layers,width,heads as in 2,128,4 are needed (hidden_size is "
        "1000000000000, must be at most 16777216)"),
    "no heads": ("finetune_teacher", f"{SCRATCH} --scratch 1,8,0", {},
        "error: --scratch 1,8,0: layers,width,heads as in 2,128,4 are needed (num_heads is 0, must be at "
        "least 1)"),
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
        "finetune_teacher.py: error: --clip is nan, must be finite and below 2147483648"),
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
    "all rows for test": ("data.prepare", "split train.tsv --test-percent 90", {},
        "python -m data.prepare: error: --test-percent must be in [0, 90)"),
    "nothing to split": ("data.prepare", "split", {},
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
    assert_unharmed(before, here, "plan.pt")  # of a dump that had begun


SUBPROCESS = ("a label training has not", "a cut student", "two rows to split")


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


def test_a_processor_without_bf16_is_told(here):
    """oneDNN as on a processor without AVX-512: PyTorch refuses an LSTM in bf16."""
    command = [sys.executable, ROOT / "distill.py", *SCRIPTS["distill"].split(), "--precision", "bf16"]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, encoding="utf-8",
                          env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.fullmatch(r"error: this processor has no bf16 for the LSTM \(.*\); give --precision fp32", last)


@pytest.mark.parametrize("way, reason", [("argument", "surrogates not allowed"),
                                         ("standard input", "invalid start byte")])
def test_a_text_to_predict_that_is_not_utf8_is_one_line(way, reason, here, monkeypatch, capsys):
    flags = "student.pt" + (" \udcff" if way == "argument" else "")
    assert run("student", flags, monkeypatch, given=b"good\n\xc1\xc1\n") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: a text is not UTF-8 ({reason}); convert it, for example from CP949"]


@pytest.mark.parametrize("module, script, flags, files, message", [
    ("safetensors", "finetune_teacher", BERT, {"bert/model.safetensors": cut_safetensors},
     "error: bert/model.safetensors: reading it needs a package: pip install safetensors"),
    ("torch.utils.tensorboard", "distill", "--tensorboard", {},
     "error: --tensorboard needs a package: pip install tensorboard"),
])
def test_a_package_that_is_not_installed_is_named(module, script, flags, files, message, here, monkeypatch,
                                                  capsys):
    put(files)
    before = snapshot(here)
    monkeypatch.setitem(sys.modules, module, None)
    assert run(script, flags, monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert_unharmed(before, here)


# ---- what looks bad and works ------------------------------------------------------------------------------

WORKS = {  # as CASES, but with what standard output has to hold
    "fewer rows than a batch": ("distill", "--train a.tsv --logits a.pt",
                                {"a.tsv": b"text\na\n", "a.pt": saved(torch.ones(1, 2))}, "1 training rows"),
    "two rows for a teacher": ("finetune_teacher", f"{SCRATCH} --train a.tsv --output-dir new",
                               {"a.tsv": b"text\tlabel\na\t0\nb\t1\n"}, "2 training rows"),
    "one row to evaluate": ("evaluate", "student.pt teacher.pt --data a.tsv",
                            {"a.tsv": b"text\tlabel\na\t1\n"}, "1 rows"),
    "labels in another order": ("evaluate", "student.pt swapped.pt", {}, "labels ['0', '1']"),
    "one row to dump": ("dump_logits", "--data a.tsv", {"a.tsv": b"text\na\n"}, "logits of 1 rows"),
    "three rows to split": (
        "data.prepare", "split a.tsv", {"a.tsv": b"text\tlabel\na\t0\nb\t1\nc\t1"}, "train"),
    "blank texts": ("distill", "--train a.tsv --logits a.pt",
                    {"a.tsv": b"text\tlabel\n\t1\n \t0\n", "a.pt": saved(torch.ones(2, 2))}, "2 training"),
    "a field of 200,000 bytes": ("train_tokenizer", "--data a.csv", {"a.csv": b"text\n" + b"a" * 200_000},
                                "1 texts"),
    "CRLF, BOM and no last line end": (
        "evaluate", "student.pt --data a.csv",
        {"a.csv": b'\xef\xbb\xbftext,label\r\n"a,\r\nb",1\r\nc,0'}, "2 rows"),
    "a line of 100 kB": ("evaluate", "student.pt --data a.tsv",
                         {"a.tsv": b"text\tlabel\n" + b"a " * 50_000 + b"\t1\nb\t0\n"}, "2 rows"),
    "logits that ask for gradients": (
        "distill", "--logits a.pt", {"a.pt": saved(torch.ones(12, 2, requires_grad=True))}, "12 training"),
    "logits that are a view": (
        "distill", "--logits a.pt", {"a.pt": saved(torch.ones(24, 2)[::2])}, "12 training"),
    "logits whose teacher is gone": (
        "distill", "", {"logits.pt": changed("logits.pt", teacher_files=["gone.pt"])}, "12 training"),
}


@pytest.mark.parametrize("name", WORKS)
def test_little_or_odd_input_works(name, here, monkeypatch, capsys):
    script, flags, files, said = WORKS[name]
    put(files)
    assert run(script, flags, monkeypatch) == 0
    out, error = capsys.readouterr()
    assert said in out and "error" not in error


@pytest.mark.parametrize("script, flags", [
    ("distill", "--valid train.tsv"),
    ("finetune_teacher", f"{SCRATCH} --valid train.tsv --output-dir new"),
])
def test_validation_on_the_training_file_is_warned_of_and_runs(script, flags, here, monkeypatch, capsys):
    assert run(script, flags, monkeypatch) == 0
    assert capsys.readouterr().err == (
        "warning: train.tsv has the texts of train.tsv: it cannot tell which epoch is best\n")


# ---- files and folders that are not the user's -------------------------------------------------------------


@contextlib.contextmanager
def unprivileged():
    """As a user who may not do everything: root reads and writes where nobody may."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        if not os.access(ROOT / "runtime.py", os.R_OK, effective_ids=True):
            pytest.skip("the scripts are where root alone may read")
        yield
    finally:
        if root:
            os.seteuid(0)


DENIED = {  # script, flags, the file that may not be read or the folder that may not be written, last line
    "a table": ("train_tokenizer", "--data valid.tsv", "valid.tsv",
        "error: valid.tsv: cannot read (Permission denied)"),
    "a student": ("student", "student.pt hello", "student.pt",
        "error: student.pt: cannot read (Permission denied)"),
    "a teacher": ("dump_logits", "", "teacher.pt",
        "error: teacher.pt: cannot read (Permission denied)"),
    "logits": ("distill", "", "logits.pt",
        "error: logits.pt: cannot read (Permission denied)"),
    "a tokenizer": ("distill", "", "tok/tokenizer.json",
        "error: tok/tokenizer.json: cannot read (Permission denied); make one with train_tokenizer.py"),
    "a config.json": ("finetune_teacher", BERT, "bert/config.json",
        "error: bert/config.json: cannot read (Permission denied); a published checkpoint folder has it"),
    "a pytorch_model.bin": ("finetune_teacher", BERT, "bert/pytorch_model.bin",
        "error: bert/pytorch_model.bin: cannot read (Permission denied)"),
    "a folder for tokenizers": ("train_tokenizer", "--data train.tsv --output-dir .", ".",
        "error: vocab_size_60/tokenizer.json: cannot write (Permission denied); nothing was changed"),
    "a folder for a teacher": ("finetune_teacher", f"{SCRATCH} --output-dir . --overwrite", ".",
        "error: .: cannot write there (Permission denied); give another --output-dir"),
    "a folder for logits": ("dump_logits", "--output-dir . --overwrite", ".",
        "error: .: cannot write there (Permission denied); give another --output-dir"),
    "a folder for students": ("distill", "--output-dir .", ".",
        "error: tiny: cannot write there (Permission denied); give another --output-dir"),
    "a folder for mistakes": ("evaluate", "student.pt --errors errors.tsv", ".",
        "error: errors.tsv: cannot write (Permission denied); nothing was changed"),
    "a folder for splits": ("data.prepare", "split train.tsv --out bert", "bert",
        "error: bert: cannot write (Permission denied); nothing was changed"),
}


@pytest.mark.parametrize("name", DENIED)
def test_what_may_not_be_read_or_written_is_named(name, here, monkeypatch, capsys):
    script, flags, closed, message = DENIED[name]
    before = snapshot(here)
    for path in (here, *here.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    Path(closed).chmod(0o555 if Path(closed).is_dir() else 0)
    try:
        with unprivileged():
            assert run(script, flags, monkeypatch) == 2
    finally:
        Path(closed).chmod(0o777)
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert_unharmed(before, here)


# ---- a full disk -------------------------------------------------------------------------------------------

BEGUN = ("last.pt", "plan.pt", "log.jsonl")  # what --resume goes on from
SAVES = {  # script: flags, and the file that is there already
    "finetune_teacher": (f"{SCRATCH} --output-dir . --overwrite", "teacher.pt"),
    "dump_logits": ("--output-dir . --overwrite", "train.pt"),
    "distill": ("--output-dir . --overwrite", "tiny/student.pt"),
}
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [NO_SPACE, RuntimeError("[enforce fail at inline_container.cc:672]\nmore")],
                         ids=["OSError", "RuntimeError"])
@pytest.mark.parametrize("script", SAVES)
@pytest.mark.parametrize("good", range(3))
def test_a_full_disk_leaves_the_old_file(good, script, error, here, monkeypatch, capsys):
    """The first, second or third save fails half way."""
    flags, file = SAVES[script]
    put({file: (here / "student.pt").read_bytes()})
    before, real, saves = snapshot(here), torch.save, []

    def half(artifact, target):
        saves.append(artifact["kind"])
        if len(saves) <= good:
            return real(artifact, target)
        target.write(b"PK half a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    assert run(script, flags, monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    reason = getattr(error, "strerror", None) or "[enforce fail at inline_container.cc:672]"
    assert last.endswith(f".pt: cannot write ({reason}); nothing was changed")
    if good == 2 and script != "dump_logits":  # the best epoch is saved, last.pt is not
        before.pop(file)
    assert_unharmed(before, here, *BEGUN, "000000.pt", Path(file).name)


@pytest.mark.parametrize("script, flags, fails_at, message", [
    ("train_tokenizer", "--data valid.tsv --output-dir . --overwrite", 2,  # tokenizer.json could be written
     "error: vocab_size_60/vocab.txt: cannot write (No space left on device); nothing was changed"),
    ("evaluate", "student.pt --errors errors.tsv", 1,
     "error: errors.tsv: cannot write (No space left on device); nothing was changed"),
    ("data.prepare", "split train.tsv", 3,
     "error: out: cannot write (No space left on device); nothing was changed"),
])
def test_a_full_disk_leaves_the_old_texts(script, flags, fails_at, message, here, monkeypatch, capsys):
    put({"errors.tsv": b"old", "vocab_size_60/tokenizer.json": b"old", "vocab_size_60/vocab.txt": b"old",
         "out/train.tsv": b"old", "out/valid.tsv": b"old", "out/test.tsv": b"old"})
    before, real, calls = snapshot(here), os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == fails_at:
            raise NO_SPACE
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    assert run(script, flags, monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert_unharmed(before, here)


FULL = {  # bytes that a file may have, flags, the file that would have more
    "finetune_teacher": (8192, f"{SCRATCH} --output-dir . --overwrite", "last.pt"),
    "dump_logits": (8192, "--data a.tsv --output-dir . --overwrite", ".a.shards/000000.pt"),
    "distill": (8192, "--output-dir . --overwrite", "tiny/last.pt"),
    "train_tokenizer": (1024, "--data train.tsv --output-dir . --overwrite", "vocab_size_60/tokenizer.json"),
}


@pytest.mark.parametrize("script", FULL)
def test_a_file_that_the_system_cuts_is_not_kept(script, here, monkeypatch, capsys):
    """As a full disk, and real: the system ends the write that would pass the limit."""
    size, flags, file = FULL[script]
    put({"a.tsv": b"text\n" + b"a\n" * 2000} | dict.fromkeys(
        ("a.pt", "last.pt", "tiny/student.pt", "tiny/last.pt", "vocab_size_60/tokenizer.json"), b"old"))
    before, limits = snapshot(here), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        code = run(script, flags, monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {file}: cannot write (File too large); nothing was changed")
    assert code == 2
    marked = {"finetune_teacher": ["last.pt"], "distill": ["tiny/last.pt"]}.get(script, [])
    for name in marked:  # --overwrite put its mark in place of what it replaces
        assert torch.load(before.pop(name) and name, weights_only=True) == {"kind": runtime.REPLACED}
    assert_unharmed(before, here, *BEGUN, *marked)


def test_a_log_that_cannot_be_written_ends_the_run(here, monkeypatch, capsys):
    before, real = snapshot(here), runtime.Log.write

    def write(self, step=None, **values):
        if step is not None:
            self.file.close()
            self.file = open("/dev/full", "w")  # noqa: SIM115 - the log closes it
        real(self, step, **values)

    monkeypatch.setattr(runtime.Log, "write", write)
    assert run("distill", "--output-dir .", monkeypatch) == 2
    assert capsys.readouterr().err == "error: /dev/full: cannot write the log (No space left on device)\n"
    assert_unharmed(before, here, *BEGUN, "student.pt")


# ---- files that change, runs that meet ---------------------------------------------------------------------


@pytest.mark.parametrize("script, flags", [("distill", ""), ("dump_logits", ""),
                                           ("finetune_teacher", f"{SCRATCH} --output-dir new")])
def test_a_file_that_is_replaced_while_it_is_read_is_refused(script, flags, here, monkeypatch, capsys):
    """The survey reads one file, what comes after it another."""
    put({"logits.pt": saved(torch.ones(12, 2))})

    def survey_then_replace(path, *columns, **options):
        found = survey(path, *columns, **options)
        Path(path).write_bytes(TABLE.replace(b"6", b"8"))
        return found

    monkeypatch.setattr(examples, "survey", survey_then_replace)
    assert run(script, flags, monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: train.tsv: was changed while it was read; run again")
    for made in ("logits/*.pt", "students/*/*.pt", "new/*.pt"):
        assert list(here.glob(made)) == []


@pytest.mark.parametrize("change, message", [
    (lambda path: path.write_bytes(path.read_bytes()[:100]), "was changed while it was read; run again"),
    (Path.unlink, "No such file or directory"),
])
def test_logits_that_are_replaced_while_they_are_read_are_refused(change, message, here, monkeypatch, capsys):
    """They are mapped: what is cut off a mapped file would kill the process that reads it."""
    def replace_then_read(*args, **options):
        change(Path("logits.pt"))
        yield from read_again(*args, **options)

    monkeypatch.setattr(examples, "read_again", replace_then_read)
    before = snapshot(here)
    assert run("distill", "", monkeypatch) == 2
    assert capsys.readouterr().err == f"error: logits.pt: {message}\n"
    before.pop("logits.pt")
    assert_unharmed(before, here, "logits.pt")


@pytest.mark.parametrize("script, flags, lock, folder", [
    ("finetune_teacher", f"{SCRATCH} --output-dir . --overwrite", ".lock", "."),
    ("dump_logits", "--output-dir . --overwrite", ".train.lock", "."),
    ("distill", "--output-dir . --resume", "tiny/.lock", "tiny"),
])
def test_a_second_run_on_one_folder_is_refused(script, flags, lock, folder, here, monkeypatch, capsys):
    """Another process holds the lock and is amid a save."""
    (here / folder).mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    other = os.fork()
    if not other:  # the other process: locks, says so, and lives until this one has hung up
        try:
            ours.close()
            runtime.lock(lock)
            theirs.sendall(b"locked")
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    try:
        assert ours.recv(6) == b"locked"
        put({f"{folder}/.last.pt.1.partial": b"half", f"{folder}/.train.pt.1.partial": b"half"})
        before = snapshot(here)
        code = run(script, flags, monkeypatch)
    finally:
        ours.close()
        os.waitpid(other, 0)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {folder}: another run (process {other}) is writing there; wait until it ends, or give "
        f"another --output-dir")
    assert code == 2
    assert_unharmed(before, here)


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError("no more"),
                                   RuntimeError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
                                   RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
@pytest.mark.parametrize("script, flags, lower", [
    ("distill", "", "--max-tokens, --max-length or the student's size"),
    ("dump_logits", "", "--max-tokens"),
    ("finetune_teacher", f"{SCRATCH} --output-dir new", "--max-tokens, or --max-length")])
def test_out_of_memory_says_what_to_lower(script, flags, lower, error, here, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.nn.functional, "embedding", fail)
    before = snapshot(here)
    assert run(script, flags, monkeypatch) == 2
    first = str(error).split("\n")[0]
    assert capsys.readouterr().err.splitlines()[-1] == f"error: out of memory ({first}); lower {lower}"
    assert_unharmed(before, here, *BEGUN)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells the memory in use on Linux alone")
def test_memory_that_the_system_refuses_is_told_as_such(here, monkeypatch, capsys):
    """Real: a student of 26 GB, where the process may have 4 GB more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, limits = snapshot(here), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, limits[1]))
    try:
        code = run("distill", "--hidden-dim 40000", monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: out of memory (")
    assert last.endswith("); lower --max-tokens, --max-length or the student's size")
    assert code == 2
    assert_unharmed(before, here)


# ---- going on with something else --------------------------------------------------------------------------

TEACH = f"{SCRATCH} --output-dir new"
SWAP = {"swap.tsv": TABLE.replace(b"\t1", b"\tx").replace(b"\t0", b"\t1").replace(b"\tx", b"\t0")}
RESUMES = {  # script, flags of the first run, files that are then put, flags of the second, last line
    "another rate": (
        "distill", "", {}, "--lr 0.002",
        "error: students/tiny/last.pt: was made with other values of lr (0.016, now 0.002); use those, or "
        "--overwrite to start anew"),
    "several others": (
        "distill", "", {}, "--epochs 2 --precision bf16 --clip 3",
        "error: students/tiny/last.pt: was made with other values of --precision (fp32, now bf16), epochs "
        "(1, now 2), clip (1.0, now 3.0); use those, or --overwrite to start anew"),
    "other texts": (
        "distill", "", {"valid.tsv": b"\n".join(TABLE.split(b"\n")[:5])}, "",
        "error: students/tiny/last.pt: was made with other values of the texts of --valid, the labels of "
        "--valid; use those, or --overwrite to start anew"),
    "labels in another order": (
        "distill", "", {"logits.pt": changed("logits.pt", label_names=["1", "0"])}, "",
        "error: students/tiny/last.pt: was made with other values of the labels of --valid, the names of the "
        "labels (['0', '1'], now ['1', '0']); use those, or --overwrite to start anew"),
    "other logits": (
        "distill", "", {"logits.pt": saved(torch.ones(12, 2))}, "",
        "error: students/tiny/last.pt: was made with other values of --logits, the teacher's embeddings; use "
        "those, or --overwrite to start anew"),
    "no best": (
        "distill", "", {"students/tiny/student.pt": Path.unlink}, "",
        "error: students/tiny/student.pt: the best so far is gone; put it back, or --overwrite to start "
        "anew"),
    "no last.pt": (
        "distill", "", {"students/tiny/last.pt": Path.unlink}, "",
        "error: students/tiny/student.pt: is there, but no last.pt to go on from; --overwrite starts anew"),
    "a cut last.pt": (
        "distill", "", {"students/tiny/last.pt": cut("students/tiny/last.pt")}, "",
        f"error: students/tiny/last.pt: {NOT_PT} (its end is missing)"),
    "another seed of a teacher": (
        "finetune_teacher", TEACH, {}, "--seed 3",
        "error: new/last.pt: was made with other values of seed (0, now 3), the weights at the start; use "
        "those, or --overwrite to start anew"),
    "other labels of a teacher": (
        "finetune_teacher", TEACH, SWAP, "--train swap.tsv",
        "error: new/last.pt: was made with other values of the labels of --train; use those, or --overwrite "
        "to start anew"),
    "another type of logits": (
        "dump_logits", "", {}, "--dtype float16",
        "error: logits/train.pt: was made with other values of dtype (float32, now float16); use those, or "
        "--overwrite to start anew"),
    "another maximum length of a teacher": (
        "dump_logits", "", {"teacher.pt": changed("teacher.pt", max_length=8)}, "",
        "error: logits/train.pt: was made with other values of the max_length of teacher 1 (16, now 8); use "
        "those, or --overwrite to start anew"),
    "one teacher more": (
        "dump_logits", "", {}, "--teacher teacher.pt teacher.pt",
        "error: logits/train.pt: was made with other values of the weights of teacher 2, the tokenizer of "
        "teacher 2, the max_length of teacher 2 (None, now 16), the number of teachers (1, now 2); use "
        "those, or --overwrite to start anew"),
}


@pytest.mark.parametrize("name", RESUMES)
def test_a_run_goes_on_with_its_own_values_alone(name, here, monkeypatch, capsys):
    script, first, files, flags, message = RESUMES[name]
    assert run(script, first, monkeypatch) == 0
    put(files)
    before = snapshot(here)
    assert run(script, f"{first} {flags} --resume", monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert_unharmed(before, here)


# ---- a download that ends early ----------------------------------------------------------------------------


def test_a_download_that_ends_early_is_refused_and_goes_on(here, monkeypatch, capsys):
    """The corpora come from a loopback server here, which hangs up after 1,000 of 5,000 bytes."""
    def serve():
        with listening.accept()[0] as client:
            client.recv(10_000)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"1\tlabel\n" * 125)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/steam.txt"
        monkeypatch.setitem(prepare.SOURCES, "steam.txt", replace(prepare.SOURCES["steam.txt"], url=url))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        before, server = snapshot(here), threading.Thread(target=serve)
        server.start()
        with pytest.raises(SystemExit) as end:
            runtime.run(prepare.main, prepare.parse_args(["steam"]))
        server.join()
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {url}: cannot download (the connection ended after 1,000 of 5,000 bytes); run again to "
        f"resume, or use files already downloaded with --from DIR")
    assert_unharmed(before, here, "steam.txt.partial")
