"""Bad input, script by script: one line that names the place, exit code 2, nothing on disk harmed."""

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import read
from hostile import ROOT, TABLE, Process, change, saved

import runtime
from data import examples
from data.examples import survey

# ---- files: bytes, or a function of the path ---------------------------------------------------------------


def changed(source, **values):
    return lambda path: change(source, path, **values)


def weight(source, name, value):
    """A .pt file one of whose weights is `value` throughout."""
    def write(path):
        artifact = read(source)
        artifact["weights"][name].fill_(value)
        torch.save(artifact, path)
    return write


def config(**values):
    """The checkpoint's config.json with some values replaced."""
    return lambda path: path.write_text(json.dumps(json.loads(Path("bert/config.json").read_text()) | values))


def cut(source, share=0.5):
    """The start of a file, as a download that ended early leaves it."""
    return lambda path: path.write_bytes(Path(source).read_bytes()[: int(share * os.path.getsize(source))])


def without(token):
    """The tokenizer without a special token."""
    return lambda path: path.write_bytes(TOKENIZER.read_bytes().replace(token.encode(), b"[NONE]"))


def with_gaps(path):
    state = json.loads(TOKENIZER.read_text("utf-8"))
    vocab = state["model"]["vocab"]
    vocab[max(vocab, key=vocab.get)] += 7
    path.write_text(json.dumps(state), "utf-8")


def put(files: dict) -> None:
    for file, content in files.items():
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)


TOKENIZER = Path("tok/tokenizer.json")
CODE = saved({"kind": "student", "code": Path("/")})  # to load a path, a pickle names a function to call
NAN = torch.tensor([[0.0, 0.0]] * 7 + [[0.0, torch.nan]] + [[0.0, 0.0]] * 4)
PAIRS, BARE = b"text\ttext2\tlabel\na\tb\t1\n", b"text\na\n"
LATE = b'{"text": "a"}\n{"text": "b", "label": 1}\n'
LONG = b"text\n" + b"a" * 17_000_000 + b"\n"
ABSENT = "mps" if torch.cuda.is_available() else "cuda"

# ---- running -----------------------------------------------------------------------------------------------

EXACT = "--device cpu --precision fp32"
LEARN = f"--train train.tsv --valid valid.tsv --epochs 1 {EXACT}"
SCRIPTS = {  # flags that come before a case's own; a later flag wins
    "tokenizer": "train_tokenizer.py --type wordpiece --vocab-size 60 --min-frequency 1 --data train.tsv",
    "finetune": f"finetune_teacher.py {LEARN} --output-dir new",
    "scratch": f"finetune_teacher.py {LEARN} --output-dir new --scratch 1,8,2 --tokenizer tok",
    "bert": f"finetune_teacher.py {LEARN} --output-dir new --checkpoint bert",
    "dump": f"dump_logits.py --teacher teacher.pt --data train.tsv {EXACT}",
    "distill": f"distill.py {LEARN} --logits logits.pt --tokenizer tok --size tiny",
    "evaluate": "evaluate.py --data valid.tsv --device cpu",
    "student": "student.py",
}


def run(script: str, flags: str, monkeypatch, given: bytes = b"") -> int:
    """As `python SCRIPT.py FLAGS`, in this process; returns the exit code."""
    words = f"{SCRIPTS[script]} {flags}".split()
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    monkeypatch.delitem(sys.modules, "data.training", raising=False)  # it binds what a test may replace
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0


def refusal(stderr: str, place: str, *words: str) -> None:
    """The last line is the error; it begins with the place and has the words."""
    last = stderr.splitlines()[-1]
    assert "Traceback" not in stderr and len(re.findall("^.*?error: ", stderr, re.M)) == 1
    assert re.match(rf"(\w+\.py: )?error: {re.escape(place)}(?!\w)", last), last
    assert all(word in last for word in words), last


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unharmed(before: dict, folder: Path, *begun: str) -> None:
    """Every file is as it was, and nothing came to be but locks and, of a run that got so far, `begun`."""
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    fresh = {Path(name).name for name in set(after) - set(before)}
    assert {name for name in fresh if not name.endswith(".lock")} <= set(begun)


@pytest.fixture
def here(small, tmp_path, monkeypatch):
    """A copy of the small kit as the working folder; signal handlers are put back at the end."""
    folder = shutil.copytree(small, tmp_path / "here")
    monkeypatch.chdir(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)


# ---- the table ---------------------------------------------------------------------------------------------

TOK, GOES_ON = "--tokenizer a.json", "--epochs 2 --output-dir half/students"
LAST, BEST = "half/students/tiny-tok/last.pt", "half/students/tiny-tok/student.pt"
# script, flags, files, place, words
CASES = [
    # tables
    ("tokenizer", "--data none.tsv", {}, "none.tsv", "No such file"),
    ("evaluate", "student.pt --data a.tsv", {"a.tsv": Path.mkdir}, "a.tsv", "Is a directory"),
    ("scratch", "--train a.parquet", {"a.parquet": TABLE}, "a.parquet", "ending", ".tsv"),
    ("tokenizer", "--data a.tsv", {"a.tsv": b""}, "a.tsv", "empty"),
    ("tokenizer", "--data a.jsonl", {"a.jsonl": b"\n\n"}, "a.jsonl", "empty"),
    ("distill", "--valid a.tsv", {"a.tsv": b"text\tlabel\n"}, "a.tsv", "no rows"),
    ("scratch", "--train a.tsv", {"a.tsv": b"review\tlabel\nx\t1\n"}, "a.tsv:1", "column text", "'review'"),
    ("evaluate", "student.pt --text-column review", {}, "valid.tsv:1", "column review", "--text-column"),
    ("distill", "--label-column stars", {}, "train.tsv:1", "column stars", "--label-column"),
    ("tokenizer", "--data a.csv", {"a.csv": b"text,document\na,b\n"}, "a.csv:1", "2 times", "--text-column"),
    ("tokenizer", "--data a.tsv", {"a.tsv": TABLE + b"alone\n"}, "a.tsv:14", "1 columns", "2"),
    ("distill", "--train a.tsv", {"a.tsv": TABLE + b"a\tb\tc\n"}, "a.tsv:14", "3 columns", "tab"),
    ("evaluate", "student.pt --data a.tsv", {"a.tsv": TABLE + b"\n" + TABLE}, "a.tsv:14", "empty line"),
    ("dump", "--data a.tsv", {"a.tsv": b"text\nabc\n\xc1\xc1\n"}, "a.tsv:3", "UTF-8", "byte 9", "CP949"),
    ("scratch", "--valid a.tsv", {"a.tsv": TABLE + b"a\0b\t1\n"}, "a.tsv:14", "NUL"),
    ("dump", "--data a.tsv.gz", {"a.tsv.gz": gzip.compress(LONG, 1)}, "a.tsv.gz:2", "16,777,216 bytes"),
    ("tokenizer", "--data a.csv", {"a.csv": b"text,label\n\"a,1\nb,0\n"}, "a.csv:2", "CSV", "quote"),
    ("distill", "--train a.jsonl", {"a.jsonl": b'{"text": "a"}\n{"text": \n'}, "a.jsonl:2", "JSON"),
    ("tokenizer", "--data a.jsonl", {"a.jsonl": b"[1, 2]\n"}, "a.jsonl:1", "JSON object"),
    ("evaluate", "student.pt --data a.jsonl", {"a.jsonl": b'{"text": 1}\n'}, "a.jsonl:1", "'text' is 1"),
    ("distill", "--valid a.jsonl", {"a.jsonl": b'{"text": "a", "label": [1]}\n'}, "a.jsonl:1", "[1]"),
    ("distill", "--train a.jsonl", {"a.jsonl": LATE}, "a.jsonl:2", "'label'", "null"),
    ("dump", "--data a.jsonl", {"a.jsonl": b'{"text": "\\ud83d"}\n'}, "a.jsonl:1", "surrogate"),
    ("dump", "--data a.tsv.gz", {"a.tsv.gz": gzip.compress(TABLE)[:-20]}, "a.tsv.gz", "ended before"),
    ("evaluate", "student.pt --seen a.tsv", {"a.tsv": PAIRS}, "a.tsv and valid.tsv", "text2"),
    # answers
    ("scratch", "--train a.tsv", {"a.tsv": BARE}, "a.tsv", "no row has a label", "--label-column"),
    ("scratch", "--train a.tsv", {"a.tsv": b"text\tlabel\na\t1\nb\t1\n"}, "a.tsv", "only label", "'1'"),
    ("scratch", "--valid a.tsv", {"a.tsv": TABLE + b"x\tneutral\n"}, "a.tsv:14", "'neutral'", "['0', '1']"),
    ("distill", "--train a.tsv", {"a.tsv": TABLE.replace(b"\t1", b"\tgood", 1)}, "a.tsv:3", "'good'"),
    ("evaluate", "student.pt --data a.tsv", {"a.tsv": TABLE + b"x\t2\n"}, "a.tsv:14", "'2'", "['0', '1']"),
    ("dump", "--data a.tsv", {"a.tsv": TABLE + b"x\t2\n"}, "a.tsv:14", "'2'", "['0', '1']", "empty"),
    ("distill", "--valid a.tsv", {"a.tsv": TABLE + b"x\t\n"}, "a.tsv:14", "no label"),
    ("evaluate", "student.pt --data a.tsv", {"a.tsv": BARE}, "a.tsv", "no column label"),
    ("distill", "--alpha 1 --train a.tsv --logits a.pt", {"a.tsv": BARE, "a.pt": saved(torch.zeros(1, 2))},
     "--alpha 1", "no --train file"),
    ("scratch", "--valid a.tsv", {"a.tsv": PAIRS}, "a.tsv and train.tsv", "text2"),
    ("distill", "--valid a.tsv", {"a.tsv": PAIRS}, "a.tsv and train.tsv", "text2"),
    # logits
    ("distill", "--logits none.pt", {}, "none.pt", "No such file"),
    ("distill", "--logits a.pt", {"a.pt": saved(NAN)}, "a.pt", "row 7", "not finite", "dump_logits.py"),
    ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", texts="0" * 64)}, "a.pt", "other texts"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(11, 2))}, "a.pt", "11 rows", "12 rows"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(12, 2).long())}, "a.pt", "torch.int64"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.eye(12, 2).to_sparse())}, "a.pt", "loaded safely"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.zeros(12, 3))}, "a.pt", "3 columns", "['0', '1']"),
    ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", logits=None)}, "a.pt", "damaged", "logits"),
    ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", teachers=[1])}, "a.pt", "damaged"),
    ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", task="parrot")}, "a.pt", "parrot"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.ones(12, 2).double() * 1e300)}, "a.pt", "row 0"),
    ("distill", "", {"teacher.pt": changed("swapped.pt")}, "logits.pt", "teacher.pt", "weights", "--teacher"),
    ("distill", "--teacher teacher.pt swapped.pt", {}, "logits.pt", "mean of 1", "names 2"),
    ("distill", "--train a.tsv", {"a.tsv": TABLE + b"new\t1\n"}, "logits.pt", "has grown", "--data a.tsv"),
    ("distill", "--train train.tsv train.tsv --logits logits.pt a.pt",
     {"a.pt": changed("logits.pt", label_names=["1", "0"])}, "a.pt", "labels"),
    ("distill", "--logits a.pt", {"a.pt": changed("logits.pt", format=0)}, "a.pt", "format 0"),
    ("distill", "--logits teacher.pt", {}, "teacher.pt", "this is teacher", "logits"),
    ("distill", "--logits a.pt", {"a.pt": cut("logits.pt")}, "a.pt", "loaded safely", "its end is missing"),
    ("distill", "--logits a.pt", {"a.pt": saved([1, 2])}, "a.pt", "a list"),
    ("evaluate", "--logits a.pt", {"a.pt": saved(torch.zeros(7, 2))}, "a.pt", "7 rows", "8 rows"),
    ("evaluate", "--logits a.pt", {"a.pt": saved(torch.zeros(8, 3))}, "a.pt", "3 columns"),
    # dumps
    ("dump", "--teacher teacher.pt swapped.pt", {"swapped.pt": changed("swapped.pt", label_names=["1", "2"])},
     "swapped.pt", "['1', '2']", "teacher.pt"),
    ("dump", "--output-dir .", {"train.pt": saved(torch.zeros(12, 2))}, "train.pt", "bare", "--overwrite"),
    ("dump", "--output-dir . --dtype float16", {"train.pt": changed("logits.pt")}, "train.pt",
     "--dtype (float32, now float16)", "--overwrite"),
    ("dump", "--output-dir .", {"train.pt": changed("logits.pt", texts="0" * 64)}, "train.pt", "other texts"),
    ("dump", "--output-dir .", {"train.pt": changed("logits.pt", teachers=[1])}, "train.pt", "damaged"),
    ("dump", "--output-dir .", {"train.pt": changed("logits.pt", logits=None)}, "train.pt", "damaged"),
    ("dump", "--check 3", {}, "logits/train.pt", "not there"),
    ("dump", "--check 3 --output-dir .", {"train.pt": changed("teacher.pt")}, "train.pt", "this is teacher"),
    ("dump", "--check 12 --output-dir .", {"train.pt": changed("logits.pt", logits=torch.ones(12, 2))},
     "train.pt", "12 of 12 rows", "row 0 (train.tsv:2)", "[1.0, 1.0]"),
    ("dump", "--data train.tsv a/train.tsv", {"a/train.tsv": TABLE}, "train.tsv and a/train.tsv",
     "logits/train.pt", "--output-dir"),
    ("dump", "--data student.tsv --output-dir .", {"student.tsv": TABLE}, "student.pt", "this is student"),
    ("dump", "--data teacher.tsv --output-dir . --overwrite", {"teacher.tsv": TABLE}, "teacher.pt", "input"),
    ("dump", "--teacher a.pt --dtype float16", {"a.pt": weight("teacher.pt", "head_out.bias", 1e6)},
     "train.tsv:2", "not finite", "float32"),
    # models
    ("student", "none.pt hello", {}, "none.pt", "No such file"),
    ("student", "tok hello", {}, "tok", "STUDENT.pt"),
    ("student", "train.tsv hello", {}, "train.tsv", "STUDENT.pt", "< FILE"),
    ("student", "a.pt hello", {"a.pt": cut("student.pt")}, "a.pt", "loaded safely"),
    ("student", "a.pt hello", {"a.pt": CODE}, "a.pt", "Unsupported global", "pathlib"),
    ("student", "teacher.pt hello", {}, "teacher.pt", "'teacher'", "a student"),
    ("student", "a.pt hello", {"a.pt": saved(torch.zeros(3))}, "a.pt", "a student"),
    ("student", "a.pt hello", {"a.pt": changed("student.pt", format=4)}, "a.pt", "4", "1 to 3"),
    ("student", "a.pt hello", {"a.pt": changed("student.pt", task="parrot")}, "a.pt", "parrot"),
    ("student", "a.pt hello", {"a.pt": changed("student.pt", config=[])}, "a.pt", "damaged"),
    ("student", "a.pt hello", {"a.pt": changed("student.pt", config={"blank_id": 37})}, "a.pt", "blank_id"),
    ("evaluate", "logits.pt", {}, "logits.pt", "this is logits"),
    ("evaluate", "a.pt", {"a.pt": saved([1])}, "a.pt", "not a file of this kit"),
    ("evaluate", "student.pt a.pt", {"a.pt": changed("student.pt", kind="parrot")}, "a.pt", "this is parrot"),
    ("evaluate", "a.pt", {"a.pt": weight("student.pt", "head.bias", torch.nan)}, "a.pt", "not finite"),
    ("evaluate", "a.pt", {"a.pt": changed("teacher.pt", task="parrot")}, "a.pt", "parrot"),
    ("evaluate", "student.pt a.pt", {"a.pt": changed("student.pt", label_names=["0", "2"])}, "a.pt", "'2'"),
    ("evaluate", "student.pt --errors valid.tsv", {}, "valid.tsv", "input"),
    ("evaluate", "student.pt --seen train.tsv --errors train.tsv", {}, "train.tsv", "input"),
    ("evaluate", "student.pt --errors teacher.pt/a.tsv", {}, "teacher.pt/a.tsv", "cannot write"),
    ("evaluate", "student.pt --errors tok", {}, "tok", "cannot write"),
    ("evaluate", "student.pt --errors pipe", {"pipe": os.mkfifo}, "pipe", "regular file"),
    ("dump", "--teacher none.pt", {}, "none.pt", "No such file"),
    ("dump", "--teacher bert", {"bert/config.json": config(id2label={"0": "LABEL_0"}, problem_type=(
        "single_label_classification"))}, "bert", "id2label", "--checkpoint bert --epochs 0"),
    ("dump", "--teacher a.pt", {"a.pt": b"<!DOCTYPE html>\n"}, "a.pt", "loaded safely"),
    ("dump", "--teacher a.pt", {"a.pt": CODE}, "a.pt", "Unsupported global", "pathlib"),
    ("dump", "--teacher a.pt", {"a.pt": cut("teacher.pt", 0.9)}, "a.pt", "its end is missing"),
    ("dump", "--teacher logits.pt", {}, "logits.pt", "this is logits"),
    ("dump", "--teacher a.pt", {"a.pt": changed("teacher.pt", kind="x\n\x1by")}, "a.pt", "not a file"),
    ("dump", "--teacher a.pt", {"a.pt": changed("teacher.pt", format=0)}, "a.pt", "format 0", "1"),
    ("dump", "--teacher a.pt", {"a.pt": changed("teacher.pt", max_length=None)}, "a.pt", "max_length"),
    ("dump", "--teacher a.pt", {"a.pt": weight("teacher.pt", "head_out.bias", torch.inf)}, "a.pt", "finite"),
    # runs that are there
    ("distill", "--output-dir .", {"tiny-tok/last.pt": b""}, "tiny-tok/last.pt", "loaded safely"),
    ("distill", "--output-dir .", {"tiny-tok/student.pt": b""}, "tiny-tok/student.pt", "last.pt"),
    ("distill", "--output-dir .", {"tiny-tok/last.pt": changed("student.pt")}, "tiny-tok/last.pt", "student"),
    ("distill", "--output-dir .", {"tiny-tok/last.pt": saved({"kind": "student-resume", "format": 2})},
     "tiny-tok/last.pt", "older version", "--overwrite"),
    ("distill", "--output-dir .", {"tiny-tok/last.pt": saved({"kind": "run", "format": 9})},
     "tiny-tok/last.pt", "format 9"),
    ("distill", "--output-dir .", {"tiny-tok/last.pt": saved({"kind": "run", "format": 1})},
     "tiny-tok/last.pt", "damaged", "--overwrite"),
    ("scratch", "--output-dir .", {}, "teacher.pt", "last.pt", "--overwrite"),
    ("distill", "--output-dir . --logits tiny-tok/last.pt --overwrite",
     {"tiny-tok/last.pt": saved(torch.zeros(12, 2))}, "tiny-tok/last.pt", "input"),
    ("distill", f"{GOES_ON} --clip 3 --precision bf16", {}, LAST, "(fp32, now bf16)", "(1.0, now 3.0)"),
    ("distill", GOES_ON, {"valid.tsv": TABLE}, LAST, "the texts of --valid", "the answers of --valid"),
    ("distill", GOES_ON, {"logits.pt": saved(torch.ones(12, 2))}, LAST, "--logits", "embeddings"),
    ("distill", GOES_ON, {LAST: Path.unlink}, BEST, "last.pt", "--overwrite"),
    ("scratch", "--epochs 2 --output-dir half/teacher --seed 3", {}, "half/teacher/last.pt", "(0, now 3)"),
    # tokenizers and published checkpoints
    ("distill", "--tokenizer none", {}, "none", "No such file", "train_tokenizer.py"),
    ("distill", "--tokenizer a", {"a": Path.mkdir}, "a/tokenizer.json", "No such file"),
    ("distill", TOK, {"a.json": b"{}"}, "a.json", "not a tokenizer"),
    ("distill", TOK, {"a.json": b"\xff\xfe"}, "a.json", "not a tokenizer"),
    ("distill", TOK, {"a.json": without("[PAD]")}, "a.json", "[PAD]", "train_tokenizer.py"),
    ("distill", TOK, {"a.json": without("[UNK]")}, "a.json", "[UNK]", "train_tokenizer.py"),
    ("distill", TOK, {"a.json": with_gaps}, "a.json", "gaps"),
    ("scratch", "--tokenizer a", {"a/tokenizer.json": without("[CLS]")}, "a", "[CLS]"),
    ("scratch", "--tokenizer a", {"a/tokenizer.json": b"[]"}, "a", "tokenizer"),
    ("tokenizer", "--type unigram --vocab-size 10", {}, "--vocab-size 10"),
    ("bert", "--checkpoint a/b/c", {}, "a/b/c", "no such folder"),
    ("bert", "--checkpoint tok", {}, "tok/config.json", "No such file"),
    ("bert", "", {"bert/config.json": b"{"}, "bert/config.json", "JSON"),
    ("bert", "", {"bert/config.json": b"[]"}, "bert/config.json", "JSON object"),
    ("bert", "", {"bert/config.json": config(model_type="brand_new")}, "bert/config.json",
     "'brand_new'", "transformers"),
    ("bert", "", {"bert/config.json": b'{"model_type": "bert"}'}, "bert/config.json", "'vocab_size'"),
    ("bert", "", {"bert/config.json": config(num_hidden_layers=10**6)}, "bert/config.json", "num_layers"),
    ("bert", "", {"bert/config.json": config(vocab_size=10**12)}, "bert/config.json", "vocab_size"),
    ("bert", "", {"bert/config.json": config(layer_norm_eps="a")}, "bert/config.json", "layer_norm_eps"),
    ("bert", "", {"bert/config.json": config(vocab_size=10**7)}, "bert/pytorch_model.bin", "[10000000, 8]"),
    ("bert", "", {"bert/config.json": config(hidden_size=10**7)}, "bert/pytorch_model.bin", "10000000]"),
    ("bert", "", {"bert/config.json": config(vocab_size=3)}, "bert", "37 tokens", "3"),
    ("bert", "", {"bert/tokenizer.json": b'{"version": "1.0"'}, "bert", "tokenizer"),
    ("bert", "", {"bert/pytorch_model.bin": cut("student.pt")}, "bert/pytorch_model.bin", "end"),
    ("bert", "", {"bert/pytorch_model.bin": saved([1, 2])}, "bert/pytorch_model.bin", "dict of tensors"),
    ("bert", "", {"bert/pytorch_model.bin": changed("bert/pytorch_model.bin", **{
        "bert.embeddings.LayerNorm.bias": torch.full((8,), torch.nan)})}, "bert/pytorch_model.bin", "finite"),
    ("bert", "--epochs 0 --train a.tsv --valid a.tsv", {"a.tsv": TABLE + b"x\t2\n"}, "--epochs 0", "head"),
    # folders and files in the way
    ("tokenizer", "--output-dir student.pt", {}, "student.pt/vocab_size_60/tokenizer.json", "cannot write"),
    ("scratch", "--output-dir student.pt", {}, "student.pt", "cannot write", "--output-dir"),
    ("dump", "--output-dir student.pt", {}, "student.pt", "cannot write", "--output-dir"),
    ("distill", "--output-dir teacher.pt", {}, "teacher.pt/tiny-tok", "cannot write", "--output-dir"),
    ("distill", "--output-dir .", {"tiny-tok/log.jsonl/a": b""}, "tiny-tok/log.jsonl", "log"),
    ("distill", "--output-dir .", {"tiny-tok/.lock/a": b""}, "tiny-tok", "cannot write"),
    ("distill", "--output-dir .", {"tiny-tok/last.pt/a": b""}, "tiny-tok/last.pt", "Is a directory"),
    ("tokenizer", "--output-dir .", {"vocab_size_60/tokenizer.json": b"{}"}, "vocab_size_60/tokenizer.json",
     "different", "--overwrite"),
    ("tokenizer", "--output-dir . --overwrite", {"vocab_size_60/tokenizer.json/a": b"",
     "vocab_size_60/vocab.txt": b"old"}, "vocab_size_60/tokenizer.json", "Is a directory"),
    # flags
    ("tokenizer", "--vocab-size 3", {}, "argument --vocab-size", "10"),
    ("tokenizer", "--vocab-size 1000000000000", {}, "argument --vocab-size", "1048576"),
    ("tokenizer", "--min-frequency 0", {}, "argument --min-frequency", "1"),
    ("tokenizer", "--limit-alphabet " + "9" * 30, {}, "argument --limit-alphabet", "2147483647"),
    ("distill", "--hidden-dim 0", {}, "argument --hidden-dim"),
    ("distill", "--hidden-dim 20000000", {}, "hidden_dim", "16777216"),
    ("distill", "--num-layers 0", {}, "argument --num-layers"),
    ("distill", "--temperature nan", {}, "argument --temperature", "positive"),
    ("distill", "--alpha 2", {}, "argument --alpha", "[0, 1]"),
    ("distill", "--lr fast", {}, "argument --lr", "positive"),
    ("distill", "--epochs 0", {}, "argument --epochs"),
    ("distill", "--seed -1", {}, "argument --seed"),
    ("distill", "--save-every -1", {}, "argument --save-every"),
    ("distill", "--learning-rate 1", {}, "unrecognized arguments", "--learning-rate"),
    ("distill", "--resume", {}, "unrecognized arguments", "--resume"),
    ("distill", "--train train.tsv train.tsv", {}, "2 --train", "1 --logits"),
    ("distill", "--seed 1 1", {}, "two students", "tiny-tok-seed1"),
    ("dump", "--check 3 --overwrite", {}, "argument --overwrite", "--check"),
    ("dump", "--check 0", {}, "argument --check"),
    ("evaluate", f"student.pt --device {ABSENT}", {}, f"--device {ABSENT}", "cpu"),
    ("evaluate", "", {}, "name a student.pt"),
    ("scratch", "--checkpoint bert", {}, "--checkpoint and --scratch", "remove one"),
    ("bert", "--tokenizer tok", {}, "--scratch needs --tokenizer"),
    ("finetune", "--scratch 1,8,2", {}, "--scratch needs --tokenizer"),
    ("scratch", "--alpha 0.5", {}, "--teacher and --alpha", "--logits"),
    ("scratch", "--scratch 1,8", {}, "--scratch 1,8", "layers,width,heads"),
    ("scratch", "--scratch 1,0,2", {}, "--scratch 1,0,2", "hidden_size"),
    ("scratch", "--scratch 1,1000000000000,2", {}, "--scratch 1,1000000000000,2", "hidden_size"),
    ("scratch", "--scratch 1,9,2", {}, "--scratch 1,9,2", "multiple"),
    ("scratch", "--epochs 0", {}, "--epochs 0", "head"),
    ("scratch", "--clip nan", {}, "argument --clip", "positive"),
    ("scratch", "--layer-decay 0", {}, "argument --layer-decay", "(0, 1]"),
    ("scratch", "--max-length 2", {}, "argument --max-length", "3"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1][:50]}: {case[-1][:30]}")
def test_bad_input_is_one_line_and_harms_nothing(case, here, monkeypatch, capsys):
    script, flags, files, *line = case
    put(files)
    before = snapshot(here)
    assert run(script, flags, monkeypatch) == 2
    refusal(capsys.readouterr().err, *line)
    unharmed(before, here)


def test_the_command_line_says_the_same(here):
    """The real command: exit code 2, one line, and earlier results as they were."""
    put({"a.tsv": TABLE + b"x\tneutral\n", "a.pt": cut("student.pt"), "train.pt": b"old", "a.txt": b"old"})
    bad = [("tokenizer", "--data a.pt.tsv --output-dir .", "a.pt.tsv"),
           ("scratch", "--valid a.tsv --epochs 2 --output-dir half/teacher", "a.tsv:14"),
           ("dump", "--teacher a.pt --output-dir . --overwrite", "a.pt"),
           ("distill", f"{GOES_ON} --valid a.tsv --overwrite", "a.tsv:14"),
           ("evaluate", "a.pt --errors a.txt", "a.pt"), ("student", "a.pt hello", "a.pt")]
    before = snapshot(here)

    def command(case):
        words = f"{ROOT}/{SCRIPTS[case[0]]} {case[1]}".split()
        return subprocess.run([sys.executable, *words], capture_output=True, encoding="utf-8")

    with ThreadPoolExecutor(2) as pool:
        for (_, _, place), done in zip(bad, pool.map(command, bad), strict=True):
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            refusal(done.stderr, place)
    unharmed(before, here)


def test_a_processor_without_bf16_is_told(here):
    """oneDNN as on a processor without AVX-512: PyTorch refuses an LSTM in bf16."""
    words = f"{ROOT}/{SCRIPTS['distill']} --precision bf16".split()
    process = Process(words, ONEDNN_MAX_CPU_ISA="AVX2")
    assert process.wait() == 2
    refusal(process.lines("err")[-1], "this processor has no bf16", "--precision fp32")


# ---- what looks bad and works ------------------------------------------------------------------------------

WORKS = [  # script, flags, files, what standard output has to hold
    ("distill", "--train a.tsv --logits a.pt", {"a.tsv": BARE, "a.pt": saved(torch.ones(1, 2))}, "1 rows"),
    ("scratch", "--train a.tsv", {"a.tsv": b"text\tlabel\na\t0\nb\t1\n"}, "2 rows"),
    ("evaluate", "student.pt teacher.pt --data a.tsv", {"a.tsv": b"text\tlabel\na\t1\n"}, "1 rows"),
    ("evaluate", "student.pt swapped.pt", {}, "labels ['0', '1']"),
    ("dump", "--data a.tsv", {"a.tsv": BARE}, "logits of 1 rows"),
    ("distill", "--train a.tsv --logits a.pt",
     {"a.tsv": b"text\tlabel\n\t1\n \t0\n", "a.pt": saved(torch.ones(2, 2))}, "2 rows"),
    ("evaluate", "student.pt --data a.csv", {"a.csv": b"text,label\n" + b"a " * 100_000 + b",1\n"}, "1 rows"),
    ("evaluate", "student.pt --data a.csv",
     {"a.csv": b'\xef\xbb\xbftext,label\r\n"a,\r\nb",1\r\nc,0'}, "2 rows"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.ones(12, 2, requires_grad=True))}, "12 rows"),
    ("distill", "--logits a.pt", {"a.pt": saved(torch.ones(24, 2)[::2])}, "12 rows"),
    ("distill", "", {"logits.pt": changed("logits.pt", teacher_files=["gone.pt"])}, "12 rows"),
]


@pytest.mark.parametrize("case", WORKS, ids=lambda case: f"{case[0]} {case[1]}: {case[3]}")
def test_little_or_odd_input_works(case, here, monkeypatch, capsys):
    script, flags, files, said = case
    put(files)
    assert run(script, flags, monkeypatch) == 0
    out, error = capsys.readouterr()
    assert said in out and "error" not in error


@pytest.mark.parametrize("script", ["distill", "scratch"])
def test_validation_on_the_training_file_is_warned_of_and_runs(script, here, monkeypatch, capsys):
    assert run(script, "--valid train.tsv", monkeypatch) == 0
    assert re.fullmatch("warning: train.tsv has the texts of train.tsv.*\n", capsys.readouterr().err)


# ---- files and folders that are not the user's -------------------------------------------------------------

DENIED = [  # script, flags, the file that may not be read or folder that may not be written, place
    ("tokenizer", "--data valid.tsv", "valid.tsv", "valid.tsv"),
    ("student", "student.pt hello", "student.pt", "student.pt"),
    ("dump", "", "teacher.pt", "teacher.pt"),
    ("distill", "", "logits.pt", "logits.pt"),
    ("distill", "", "tok/tokenizer.json", "tok/tokenizer.json"),
    ("bert", "", "bert/config.json", "bert/config.json"),
    ("bert", "", "bert/pytorch_model.bin", "bert/pytorch_model.bin"),
    ("tokenizer", "--output-dir .", ".", "vocab_size_60/tokenizer.json"),
    ("scratch", "--output-dir . --overwrite", ".", "."),
    ("dump", "--output-dir . --overwrite", ".", ".train.blocks"),
    ("distill", "--output-dir .", ".", "tiny-tok"),
    ("evaluate", "student.pt --errors errors.tsv", ".", "errors.tsv"),
]


@pytest.mark.parametrize(("script", "flags", "closed", "place"), DENIED)
def test_what_may_not_be_read_or_written_is_named(script, flags, closed, place, here, monkeypatch, capsys):
    before, root = snapshot(here), os.geteuid() == 0
    for path in (here, *here.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    Path(closed).chmod(0o555 if Path(closed).is_dir() else 0)
    try:
        if root:  # who may do anything else
            os.seteuid(65534)
        if not os.access(ROOT / "runtime.py", os.R_OK, effective_ids=True):
            pytest.skip("the scripts are where only root may read")
        assert run(script, flags, monkeypatch) == 2
    finally:
        if root:
            os.seteuid(0)
        Path(closed).chmod(0o777)
    refusal(capsys.readouterr().err, place, "Permission denied")
    unharmed(before, here)


# ---- a full disk -------------------------------------------------------------------------------------------

BEGUN = ("last.pt", "log.jsonl", "overwrite")  # what the same command goes on from
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
FAILURE = RuntimeError("[enforce fail at inline_container.cc:672]\nmore")  # PyTorch's words for it


@pytest.mark.parametrize(("script", "file", "good", "error"), [
    *(("scratch", "new/teacher.pt", good, NO_SPACE) for good in range(4)),
    ("dump", "logits/train.pt", 0, NO_SPACE), ("dump", "logits/train.pt", 1, FAILURE),
    ("distill", "students/tiny-tok/student.pt", 0, FAILURE)])
def test_a_full_disk_leaves_the_old_file(script, file, good, error, here, monkeypatch, capsys):
    """With --overwrite, the save after so many good ones fails half way."""
    put({file: b"old"})
    real, saves = torch.save, []

    def half(artifact, target):
        saves.append(artifact)
        if len(saves) <= good:
            return real(artifact, target)
        target.write(b"PK half a file")
        raise error

    monkeypatch.setattr(torch, "save", half)
    assert run(script, "--overwrite", monkeypatch) == 2
    assert re.search(r"\.pt: cannot write \((No space|\[enforce)", capsys.readouterr().err)
    assert Path(file).read_bytes() == b"old" or (good == 3 and read(file))
    assert not [*here.rglob("*.partial")]


@pytest.mark.parametrize(("script", "flags", "size", "place"), [
    ("scratch", "--output-dir . --overwrite", 8192, "last.pt"),
    ("dump", "--data a.tsv --output-dir . --overwrite", 8192, ".a.blocks"),
    ("distill", "--output-dir .", 8192, "tiny-tok/last.pt"),
    ("tokenizer", "--output-dir . --overwrite", 1024, "vocab_size_60/tokenizer.json"),
    ("evaluate", "student.pt --data a.tsv --errors a.pt", 8192, "a.pt")])
def test_a_file_that_the_system_cuts_is_not_kept(script, flags, size, place, here, monkeypatch, capsys):
    """As a full disk, and real: the system ends the write that would pass the limit."""
    put({"a.tsv": b"text\tlabel\n" + b"a\t0\na\t1\n" * 2000, "a.pt": b"old",
         "vocab_size_60/tokenizer.json": b"old"})
    before, limits = snapshot(here), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        code = run(script, flags, monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refusal(capsys.readouterr().err, place, "File too large", "nothing was changed")
    assert code == 2
    if script == "scratch":
        assert read("last.pt") == {"kind": "tombstone"}
    unharmed(before, here, *BEGUN)


def test_a_log_that_cannot_be_written_ends_the_run(here, monkeypatch, capsys):
    real = runtime.Log.write

    def write(self, step=None, **values):
        if step is not None:
            self.file.close()
            self.file = open("/dev/full", "w")  # noqa: SIM115 - the log closes it
        real(self, step, **values)

    monkeypatch.setattr(runtime.Log, "write", write)
    assert run("distill", "", monkeypatch) == 2
    refusal(capsys.readouterr().err, "/dev/full", "log", "No space")


# ---- files that change, runs that meet, memory -------------------------------------------------------------


@pytest.mark.parametrize("script", ["distill", "dump", "scratch"])
def test_a_file_that_is_replaced_while_it_is_read_is_refused(script, here, monkeypatch, capsys):
    """The survey reads one file, what comes after it another."""
    def survey_then_replace(path, *columns, **options):
        found = survey(path, *columns, **options)
        Path(path).write_bytes(TABLE.replace(b"6", b"8"))
        return found

    put({"logits.pt": saved(torch.ones(12, 2))})
    monkeypatch.setattr(examples, "survey", survey_then_replace)
    assert run(script, "", monkeypatch) == 2
    refusal(capsys.readouterr().err, "train.tsv", "changed while it was read")
    assert [*here.glob("logits/*.pt"), *here.glob("students/*/*.pt"), *here.glob("new/*.pt")] == []


@pytest.mark.parametrize(("script", "flags", "lock"), [
    ("scratch", "--output-dir . --overwrite", ".lock"), ("dump", "--output-dir . --overwrite", ".train.lock"),
    ("distill", "--output-dir . --overwrite --seed 0 1", "tiny-tok-seed1/.lock")])
def test_a_second_run_in_one_folder_is_refused(script, flags, lock, here, monkeypatch, capsys):
    """Another process holds the lock and is amid a save."""
    put({lock: b"", "tiny-tok/last.pt": b"the first student's"})
    ours, theirs = socket.socketpair()
    if not (other := os.fork()):  # the other process: locks, says so, and lives until this one has hung up
        with contextlib.suppress(BaseException):
            ours.close()
            runtime.lock(lock)
            theirs.sendall(b"locked")
            theirs.recv(1)
        os._exit(0)
    theirs.close()
    try:
        assert ours.recv(6) == b"locked"
        place = os.path.dirname(lock) or "."
        put({f"{place}/.last.pt.1.partial": b"half", f"{place}/.train.pt.1.partial": b"half"})
        before = snapshot(here)
        assert run(script, flags, monkeypatch) == 2
    finally:
        ours.close()
        os.waitpid(other, 0)
    refusal(capsys.readouterr().err, place, "another run", f"process {other}")
    unharmed(before, here)


@pytest.mark.parametrize(("script", "error", "lower"), [
    ("distill", MemoryError("no more"), "size"), ("dump", MemoryError("no more"), "--max-tokens"),
    ("scratch", RuntimeError("CUDA out of memory. Tried to allocate 9 GiB\nmore"), "--max-length"),
    ("distill", RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "--max-tokens"),
    ("distill", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "--max-tokens")])
def test_out_of_memory_says_what_to_lower(script, error, lower, here, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.nn.functional, "embedding", fail)
    assert run(script, "", monkeypatch) == 2
    refusal(capsys.readouterr().err, "out of memory", str(error).split("\n")[0], lower)


def test_memory_that_the_system_refuses_is_told_as_such(here):
    """Real: a student of 26 GB, where the process may have 6 GB."""
    process = Process(f"{ROOT}/{SCRIPTS['distill']} --hidden-dim 40000".split(), GIGABYTES="6")
    assert process.wait() == 2
    refusal(process.lines("err")[-1], "out of memory", "size")
