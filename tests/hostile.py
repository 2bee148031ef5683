"""What test_bad_input.py, test_unsafe.py and tests/torture/ share: a very small kit, files that are wrong in
one place, and commands in processes of their own that start at once."""

import contextlib
import functools
import io
import json
import os
import pickle
import queue
import select
import socket
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import Killed, die_after, publish, read, run

from student import Student
from teacher import Teacher

ROOT = Path(__file__).parent.parent
EXACT = "--device cpu --precision fp32"
LEARN = f"--train train.tsv --valid valid.tsv --tokenizer tok --epochs 2 {EXACT} --output-dir"
TUNE = f"--scratch 1,8,2 {LEARN}"
DISTIL = f"--size tiny --logits logits.pt {LEARN}"
DUMP = f"--teacher teacher.pt --data train.tsv {EXACT} --output-dir"
PUBLISHED = f"--checkpoint bert --train train.tsv --valid valid.tsv --epochs 1 {EXACT} --output-dir"
ROWS = [f"이 영화 {'재밌다' if i % 2 else '별로'} {i % 7}점\t{i % 2}" for i in range(16)]
TABLE = "\n".join(["text\tlabel", *ROWS[:12], ""]).encode()


def make_small(folder: Path) -> None:
    """train.tsv (12 rows), more.tsv (these and 4 more), valid.tsv (8), tok/ (WordPiece); teacher.pt,
    swapped.pt (other weights, labels in another order), student.pt and its last.pt, finished.pt, int8.pt;
    logits.pt of train.tsv; bert/ as a checkpoint is published, and its weights in the format from before
    PyTorch 1.6, old.bin. In half/ what killed runs left: teacher/ and students/tiny-tok/ with last.pt,
    logits/ with a finished block.
    """
    for name, rows in (("train", ROWS[:12]), ("more", ROWS), ("valid", ROWS[4:12])):
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        run("train_tokenizer", "--data train.tsv --output-dir . --vocab-size 60 --min-frequency 1 "
                               "--type wordpiece")
        Path("vocab_size_60").rename("tok")
        for seed, name in enumerate(("teacher", "swapped")):
            run("finetune_teacher", f"{TUNE} {name} --seed {seed}")
            Path(name, "teacher.pt").rename(f"{name}.pt")
        change("swapped.pt", "swapped.pt", label_names=["1", "0"])
        run("dump_logits", f"{DUMP} .")
        Path("train.pt").rename("logits.pt")
        run("distill", f"{DISTIL} students")
        Path("students/tiny-tok/student.pt").rename("student.pt")
        Path("students/tiny-tok/last.pt").rename("finished.pt")
        Student.load("student.pt").save("int8.pt", "int8")
        for script, flags, saves in (("finetune_teacher", f"{TUNE} half/teacher", 3),
                                     ("distill", f"{DISTIL} half/students", 2),
                                     ("dump_logits", f"{DUMP} half/logits", 1)):
            with patch.context() as dying, pytest.raises(Killed):
                die_after(dying, saves)
                run(script, flags)
        publish(Teacher.load("teacher.pt"), "bert", hidden_dropout_prob=0.1, id2label={"0": "0", "1": "1"})
        torch.save(read("bert/pytorch_model.bin"), "old.bin", _use_new_zipfile_serialization=False)
    for name in ("teacher", "swapped", "students"):
        subprocess.run(["rm", "-r", folder / name], check=True)


# ---- files that are wrong in one place ---------------------------------------------------------------------


def change(source, target, **values) -> None:
    """A .pt file with some of its values replaced; None takes one out, a dict is merged into an old one."""
    artifact = torch.load(source, weights_only=True)
    for name, value in values.items():
        merged = isinstance(value, dict) and isinstance(artifact.get(name), dict)
        artifact[name] = artifact[name] | value if merged else value
        if value is None:
            del artifact[name]
    torch.save(artifact, target)


def changed(source, **values) -> bytes:
    change(source, file := io.BytesIO(), **values)
    return file.getvalue()


def saved(value, **options) -> bytes:
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()


def repacked(data: bytes, changed=lambda name, content: content, method=zipfile.ZIP_STORED) -> bytes:
    """An archive with its members changed, and the checksums right."""
    old, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name, changed(name, old.read(name)))
    return out.getvalue()


class Bomb:
    """Pickles to a call of a function with arguments, which happens when the pickle is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def legacy(*pickles: bytes) -> bytes:
    """A file from before PyTorch 1.6 with these pickles after its three first ones."""
    first = torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}
    return b"".join([*(pickle.dumps(value, 2) for value in first), *pickles])


def nested(depth: int) -> list:
    """A list that unfolds to 2 ** depth."""
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


# ---- commands in processes of their own --------------------------------------------------------------------

# A process that has imported PyTorch forks one for each command: that one starts at once, and its exit code,
# output, memory and signals are its own.
SERVER = """
import gc, json, os, resource, runpy, signal, sys, time
import numpy, tokenizers, torch
torch.set_num_threads(1)
with torch.device("meta"):  # imports what PyTorch imports late
    torch.optim.AdamW(torch.nn.LSTM(1, 1).parameters())
gc.freeze()
WATCHED = "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"
server = int(sys.argv[1 + bool(os.fork())])  # there are two from here on
requests, answers = open(server, closefd=False), open(server, "w", closefd=False)
for line in requests:
    folder, argv, output, environment = json.loads(line)
    if not (child := os.fork()):
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "GIGABYTES" in os.environ:
            resource.setrlimit(resource.RLIMIT_AS, (int(os.environ["GIGABYTES"]) * 2**30,) * 2)
        signal.alarm(120)
        for file, name in ((1, "out"), (2, "err"), (3, "opened")):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), file)
        sys.argv, sys.path[0], sys.stdin = argv, os.path.dirname(argv[0]), open(os.devnull)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.addaudithook(lambda event, args: event in WATCHED
                         and os.write(3, f"{event} {args[:3]}\\n".encode("utf-8", "backslashreplace")))
        try:
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = 1
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(code)
    start = time.time()
    print(child, flush=True, file=answers)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024, time.time() - start]),
          flush=True, file=answers)
"""


class Process:
    """One command, as `python SCRIPT FLAGS` in `folder`; it prints to OUTPUT.out and OUTPUT.err."""

    def __init__(self, argv, folder=".", output="0", **environment):
        self.server = servers().get()
        self.returncode, self.folder, self.output = None, Path(folder), output
        request = json.dumps([str(self.folder.resolve()), list(map(str, argv)), output, environment])
        self.server.write(request.encode() + b"\n")
        self.pid = int(self.server.readline())

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.returncode if not select.select([self.server], [], [], 0)[0] else self.wait()

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode, self.megabytes, self.seconds = json.loads(self.server.readline())
            servers().put(self.server)
        return self.returncode

    def lines(self, name: str) -> list[str]:
        lines = (self.folder / f"{self.output}.{name}").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not line.startswith("[Gloo] ")]  # PyTorch 2.10 says whom it meets


@functools.cache
def servers() -> queue.Queue:
    """Two processes that fork others, those that are not at work."""
    found, pairs = queue.Queue(), [socket.socketpair(), socket.socketpair()]
    theirs = [pair[1].fileno() for pair in pairs]
    subprocess.Popen([sys.executable, "-c", SERVER, *map(str, theirs)], pass_fds=theirs,
                     env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": "hub", "HF_HUB_OFFLINE": "1"})
    for ours, other in pairs:
        other.close()
        found.put(ours.makefile("rwb", buffering=0))
    return found


def commands(lines: list, **environment) -> list[Process]:
    """Run `SCRIPT.py flag …` for each list of words, in the working folder, two at a time."""
    def command(number):
        script, *flags = lines[number]
        process = Process([ROOT / script, *flags], output=str(number), **environment)
        process.wait()
        return process

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(command, range(len(lines))))
