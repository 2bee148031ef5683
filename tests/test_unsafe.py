"""Hostile files: code that would run, claims to memory, altered bytes, paths out of the folder; each is refused.

The scripts run as a user starts them, from a process that has imported PyTorch once and forks for each command:
so the exit code, all of stderr, the memory that was taken and every file that was opened are those of the command.
"""

import hashlib
import inspect
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from test_fuzz import DISTIL, DUMP, EXACT, TORTURE, TRAIN, TUNE, kit, nested, repacked  # noqa: F401 - a fixture

import distill
import dump_logits
import runtime
import student
from data.examples import survey
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher

ROOT = Path(__file__).parent.parent
SERVER = """
import json, os, resource, runpy, signal, sys, time
import numpy, tokenizers, torch, huggingface_hub
torch.set_num_threads(1)
for number, argv in enumerate(json.load(sys.stdin)):
    start = time.time()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
        signal.alarm(60)
        for file, name in ((1, "out"), (2, "err"), (3, "opened")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), file)
        sys.argv, sys.path[0], sys.stdin = argv, os.path.dirname(argv[0]), open(os.devnull)
        sys.addaudithook(lambda event, args: event in ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink")
                         and os.write(3, f"{event} {args[:3]}\\n".encode("utf-8", "backslashreplace")))
        runpy.run_path(argv[0], run_name="__main__")
        sys.exit(0)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024, time.time() - start]))
"""


class Ended:
    """A command's exit code, lines of stderr, peak memory in megabytes, seconds, and what it opened."""

    def __init__(self, number, line):
        self.code, self.megabytes, self.seconds = json.loads(line)
        self.out, self.err, self.opened = (
            Path(f"{number}.{name}").read_text(encoding="utf-8").splitlines() for name in ("out", "err", "opened"))


def commands(lines: list) -> list[Ended]:
    """Run `SCRIPT.py flag …` for each list of words, in the working folder."""
    words = [[str(ROOT / line[0]), *map(str, line[1:])] for line in lines]
    done = subprocess.run([sys.executable, "-c", SERVER], input=json.dumps(words), capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": "hub", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return [Ended(number, line) for number, line in enumerate(done.stdout.splitlines())]


def refused(names, lines: list) -> list[Ended]:
    """Run the commands: each ends with exit code 2 and one line."""
    done = commands(lines)
    for name, end in zip(names, done, strict=True):
        assert end.code == 2 and len(end.err) == 1 and end.err[0].startswith("error: "), (name, end.code, end.err)
    return done


# ---- every place where a .pt is read -----------------------------------------------------------------------


def place_student(path):
    return ["student.py", path, "재밌다"]


def place_model(path):
    return ["evaluate.py", path, "--data", "valid.tsv", "--device", "cpu"]


def place_teacher(path):
    return ["dump_logits.py", *DUMP, "train.tsv", "--teacher", path, "--output-dir", "new"]


def place_logits(*flags):
    def line(path):
        folder = f"{path}.folder"
        Path(folder).mkdir()
        shutil.copy(path, f"{folder}/train.pt")
        return ["dump_logits.py", *DUMP, "train.tsv", "--output-dir", folder, *flags]
    return line


def place_in(folder, file, script, *flags):
    def line(path):
        shutil.copytree(folder, f"{path}.folder")
        shutil.copy(path, f"{path}.folder/{file}")
        return [script, *flags, f"{path}.folder", "--resume"]
    return line


def place_distil_logits(path):
    return ["distill.py", *DISTIL, "new", "--logits", path]


def place_distil_teacher(path):
    return ["distill.py", *DISTIL, "new", "--teacher", path]


def place_named_teacher(path):
    """The teacher that a logits file says it was made by."""
    torch.save(torch.load("logits/train.pt", weights_only=True) | {"teacher_files": [path]}, f"{path}.logits")
    return ["distill.py", *DISTIL, "new", "--logits", f"{path}.logits"]


def place_checkpoint(path):
    shutil.copytree("bert", f"{path}.folder")
    shutil.copy(path, f"{path}.folder/pytorch_model.bin")
    return ["finetune_teacher.py", *TRAIN[:4], *EXACT, "--output-dir", "new", "--checkpoint", f"{path}.folder"]


def place_download(path):
    """The cache of the hub's own client, as it downloads: links in a snapshot to files named by their hashes."""
    name = Path(path).name.replace(".", "-")
    cache(name, {"pytorch_model.bin": Path(path).read_bytes()})
    return ["finetune_teacher.py", *TRAIN[:4], *EXACT, "--output-dir", "new", "--checkpoint", f"someone/{name}"]


def cache(name: str, files: dict) -> Path:
    folder = Path(f"hub/hub/models--someone--{name}")
    snapshot = folder / "snapshots" / ("0" * 40)
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    for file, data in {path.name: path.read_bytes() for path in Path("bert").iterdir()
                       if path.suffix in (".txt", ".json")}.items() | files.items():
        large = file.endswith(".bin")
        stated = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data)
        (folder / "blobs" / stated.hexdigest()).write_bytes(data)
        (snapshot / file).symlink_to(f"../../blobs/{stated.hexdigest()}")
    return folder


SHARDS = ".train.shards"
RESUME = ("dump_logits.py", *DUMP, "train.tsv", "--output-dir")
PLACES = {  # name: (a good file for it, the command)
    "student.py": ("students/tiny/student.pt", place_student),
    "evaluate.py, a student": ("students/tiny/student.pt", place_model),
    "evaluate.py, a teacher": ("teacher/teacher.pt", place_model),
    "dump_logits.py --teacher": ("teacher/teacher.pt", place_teacher),
    "dump_logits.py --append": ("logits/train.pt", place_logits("--append")),
    "dump_logits.py --resume": ("logits/train.pt", place_logits("--resume")),
    "dump_logits.py --check": ("logits/train.pt", place_logits("--check", 2)),
    "plan.pt": (f"half/logits/{SHARDS}/plan.pt", place_in("half/logits", f"{SHARDS}/plan.pt", *RESUME)),
    "a part": (f"half/logits/{SHARDS}/000000.pt", place_in("half/logits", f"{SHARDS}/000000.pt", *RESUME)),
    "distill.py --logits": ("logits/train.pt", place_distil_logits),
    "distill.py --teacher": ("teacher/teacher.pt", place_distil_teacher),
    "distill.py, teacher_files": ("teacher/teacher.pt", place_named_teacher),
    "distill.py last.pt": ("half/students/tiny/last.pt",
                           place_in("half/students", "tiny/last.pt", "distill.py", *DISTIL)),
    "finetune_teacher.py last.pt": ("half/teacher/last.pt",
                                    place_in("half/teacher", "last.pt", "finetune_teacher.py", *TUNE)),
    "pytorch_model.bin": ("bert/pytorch_model.bin", place_checkpoint),
    "a downloaded pytorch_model.bin": ("bert/pytorch_model.bin", place_download),
}


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def hostile(names: dict) -> tuple[list, list]:
    """(names, commands) of {(name, place): bytes}, each file in place."""
    shutil.rmtree("hostile", ignore_errors=True)
    shutil.rmtree("hub", ignore_errors=True)
    Path("hostile").mkdir()
    lines = []
    for number, ((_, place), data) in enumerate(names.items()):
        Path(f"hostile/{number}.pt").write_bytes(data)
        lines.append(PLACES[place][1](f"hostile/{number}.pt"))
    return list(names), lines


# ---- code --------------------------------------------------------------------------------------------------


class Bomb:
    """Pickles to a call of a function with arguments: code that runs when the pickle is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


OLD = {"_use_new_zipfile_serialization": False}
WAYS = {  # a good artifact and a bomb -> a file that has both
    "in an archive": lambda good, bomb: saved({"kind": good.get("kind"), "format": 1, "x": bomb}),
    "deep in a good archive": lambda good, bomb: saved(good | {"x": {"y": [1, (bomb,)]}}),
    "deep in a file of the old format": lambda good, bomb: saved(good | {"x": {"y": [1, (bomb,)]}}, **OLD),
    "in a plain pickle": lambda good, bomb: pickle.dumps({"kind": "student", "x": bomb}, 2),
    "in a plain pickle of another protocol": lambda good, bomb: pickle.dumps(bomb, 4),
}


def test_a_file_that_carries_code_is_refused_in_every_place_and_the_code_not_run():
    marker = Path("marker").resolve()
    bombs = [Bomb(os.system, f"touch {marker}"), Bomb(open, str(marker), "w"), Bomb(exec, f"open({str(marker)!r}, 'w')")]
    goods = {file: torch.load(file, weights_only=True) for file, _ in PLACES.values()}
    cases = {(way, place): make(goods[file], bombs[(i + j) % 3]) for i, (way, make) in enumerate(WAYS.items())
             for j, (place, (file, _)) in enumerate(PLACES.items())}
    for end in refused(*hostile(cases)):
        assert ".pt file that can be loaded safely" in end.err[0]
    assert not marker.exists()
    for (way, _), data in list(cases.items())[:: len(PLACES) - 1]:  # they are live
        pickle.loads(data) if "plain" in way else torch.load(io.BytesIO(data), weights_only=False)
        assert marker.exists(), way
        marker.unlink()


def test_the_same_files_without_code_are_taken():
    names, lines = hostile({("good", place): Path(file).read_bytes() for place, (file, _) in PLACES.items()})
    for name, end in zip(names, commands(lines), strict=True):
        assert end.code == 0, (name, end.err)
