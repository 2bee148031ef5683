"""Hostile files: code that would run, claims to memory, altered bytes, paths out of the folder; each is refused.

The scripts run as a user starts them, from a process that has imported PyTorch once and forks for each command:
so the exit code, all of stderr, the memory that was taken and every file that was opened are those of the command.
"""

import codecs
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
from collections import OrderedDict
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
import gc, json, os, resource, runpy, signal, sys, time
import huggingface_hub, numpy, tokenizers, torch
WATCHED = "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"
torch.set_num_threads(1)
with torch.device("meta"):  # what PyTorch imports late
    torch.optim.AdamW(torch.nn.LSTM(1, 1).parameters())
gc.freeze()
for number, argv in enumerate(json.load(sys.stdin)):
    start = time.time()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
        signal.alarm(60)
        for file, name in ((1, "out"), (2, "err"), (3, "opened")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), file)
        sys.argv, sys.path[0], sys.stdin = argv, os.path.dirname(argv[0]), open(os.devnull)
        sys.addaudithook(lambda event, args: event in WATCHED
                         and os.write(3, f"{event} {args[:3]}\\n".encode("utf-8", "backslashreplace")))
        try:
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(code)
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


PUBLISHED = ["finetune_teacher.py", *TRAIN[:4], *EXACT, "--epochs", 1, "--output-dir"]


def place_student(path):
    return ["student.py", path, "재밌다"]


def place_model(path):
    return ["evaluate.py", path, "--data", "valid.tsv", "--device", "cpu"]


def place_teacher(path):
    return ["dump_logits.py", *DUMP, "train.tsv", "--teacher", path, "--output-dir", f"{path}.new"]


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
    return ["distill.py", *DISTIL, f"{path}.new", "--logits", path]


def place_distil_teacher(path):
    return ["distill.py", *DISTIL, f"{path}.new", "--teacher", path]


def place_named_teacher(path):
    """The teacher that a logits file says it was made by."""
    torch.save(torch.load("logits/train.pt", weights_only=True) | {"teacher_files": [path]}, f"{path}.logits")
    return ["distill.py", *DISTIL, f"{path}.new", "--logits", f"{path}.logits"]


def place_checkpoint(path):
    shutil.copytree("bert", f"{path}.folder")
    shutil.copy(path, f"{path}.folder/pytorch_model.bin")
    return [*PUBLISHED, f"{path}.new", "--checkpoint", f"{path}.folder"]


def place_download(path):
    """The cache of the hub's own client, as it downloads: links in a snapshot to files named by their hashes."""
    name = Path(path).name.replace(".", "-")
    cache(name, {"pytorch_model.bin": Path(path).read_bytes()})
    return [*PUBLISHED, f"{path}.new", "--checkpoint", f"someone/{name}"]


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


# ---- memory ------------------------------------------------------------------------------------------------


def changed(file: str, **values) -> bytes:
    """A file with some of its values replaced; the value of a dict is merged into the one that is there."""
    artifact = torch.load(file, weights_only=True)
    return saved(artifact | {name: artifact[name] | value if isinstance(artifact.get(name), dict)
                             and isinstance(value, dict) else value for name, value in values.items()})


def packed(file: str, **values) -> bytes:
    """The same, deflated: what compresses well unfolds to far more than the file's size."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(changed(file, **values))) as archive, \
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in archive.namelist():
            new.writestr(name, archive.read(name))
    return out.getvalue()


def with_pickle(file: str, value) -> bytes:
    """A file whose pickle is another one, under right checksums."""
    return repacked(Path(file).read_bytes(),
                    lambda name, old: pickle.dumps(value, 2) if name.endswith("data.pkl") else old)


def two_tables(shown: bytes, hidden: bytes) -> bytes:
    """An archive in which Python's zipfile finds the members of one, and torch.load those of another.

    zipfile takes the table of contents that ends where the end record begins, PyTorch the one at the offset
    that the end record states; where both differ, zipfile takes the difference for something put in front.
    """
    (length, start), (shown_length, shown_start) = (
        struct.unpack("<LL", data[-10:-2]) for data in (hidden, shown))
    table, shown_table = hidden[start : start + length], shown[shown_start : shown_start + shown_length]
    size = max(length, shown_length)
    tables = []
    for data in (table, shown_table):  # to one length, by a comment of the last member
        last = data.rindex(b"PK\1\2") + 32
        tables.append(data[:last] + struct.pack("<H", size - len(data)) + data[last + 2 :]
                      + b" " * (size - len(data)))
    members = shown[:shown_start]
    # Where zipfile looks for a member: its offset + (the table's true place - the offset that is stated).
    shift = start + size + shown_start - start
    front = hidden[:start] + tables[0]
    moved, at = bytearray(tables[1]), 0
    while at < size:
        offset = struct.unpack_from("<L", moved, at + 42)[0]
        struct.pack_into("<L", moved, at + 42, len(front) + offset - shift)
        at += 46 + sum(struct.unpack_from("<HHH", moved, at + 28))
    return front + members + bytes(moved) + hidden[-22:-10] + struct.pack("<LLH", size, start, 0)


class OldPickler(pickle.Pickler):
    """Writes None as the storage of `numel` floats."""

    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, "0", "cpu", self.numel, None) if value == "the storage" else None


def old_claim(numel: int) -> bytes:
    """A tensor in the format from before PyTorch 1.6, of whose storage the file has nothing."""
    file = io.BytesIO()
    for value in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}):
        pickle.dump(value, file, 2)
    pickler = OldPickler(file, 2)
    pickler.numel = numel
    pickler.dump(Bomb(torch._utils._rebuild_tensor_v2, "the storage", 0, (12, numel // 12), (numel // 12, 1), False,
                      OrderedDict()))
    pickle.dump([], file, 2)
    return file.getvalue()


def hexed(times: int):
    """A short text that torch.load would double so many times."""
    value = Bomb(codecs.encode, "x" * 1000, "latin1")
    for _ in range(times):
        value = Bomb(codecs.encode, value, "hex")
    return value


def state_of(file: str, index: int, **values) -> dict:
    """The optimizer's state in a last.pt with some values of one parameter replaced."""
    optimizer = torch.load(file, weights_only=True)["optimizer"]
    optimizer["state"][index].update(values)
    return optimizer


def claims() -> dict:
    """{(what a file claims, where it is read): its bytes}; each claims 400 megabytes or more."""
    (model, _), (teacher, _), (logits, _), (last, _), (tuned, _), (weights, _) = (PLACES[place] for place in (
        "student.py", "dump_logits.py --teacher", "distill.py --logits", "distill.py last.pt",
        "finetune_teacher.py last.pt", "pytorch_model.bin"))
    huge, wide = torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(12, 10**9)
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(5 * 10**8))), dtype=torch.uint8)
    name = "embedding.weight"
    own = torch.load(model, weights_only=True)["weights"][name]
    found = {(f"{key} of {value:,}", "student.py"): changed(model, config={key: value}) for key, value in (
        ("vocab_size", 10**12), ("embedding_dim", 2**24), ("hidden_dim", 2**24), ("hidden_dim", 2**40),
        ("num_layers", 10**9), ("num_labels", 10**9), ("pad_id", 10**9))}
    found |= {(f"{key} of {value:,}", "dump_logits.py --teacher"): changed(teacher, config={key: value})
              for key, value in (("vocab_size", 10**12), ("hidden_size", 2**24), ("num_layers", 10**9),
                                 ("intermediate_size", 2**40), ("max_positions", 2**24), ("num_labels", 2**24))}
    found |= {(f"weights: {what}", "student.py"): changed(model, weights={name: value}) for what, value in (
        ("expanded", huge), ("sparse", own.to_sparse()), ("meta", own.to("meta")), ("float16", own.half()),
        ("float64", own.double()), ("whole numbers", own.long()), ("not finite", own * torch.nan),
        ("another shape", own[:-1]), ("meta, huge", torch.empty(10**6, 10**6, device="meta")))}
    found |= {(what, "student.py"): data for what, data in (
        ("a packed archive", packed(model, x=torch.zeros(10**8))),
        ("a packed archive under another's table", two_tables(
            repacked(Path(model).read_bytes(), lambda name, old: old), packed(model, x=torch.zeros(10**8)))),
        ("a packed tokenizer", changed(model, tokenizer=bomb)),
        ("an expanded tokenizer", changed(model, tokenizer=torch.zeros(1, dtype=torch.uint8).expand(10**9))),
        ("bytearray(…)", with_pickle(model, {"kind": "student", "x": Bomb(bytearray, 10**9)})),
        ("Tensor(…)", with_pickle(model, {"kind": "student", "x": Bomb(torch.Tensor, 10**5, 10**4)})),
        ("a text doubled", with_pickle(model, {"kind": "student", "x": hexed(19)})),
        ("lists that share lists", changed(model, config={"hidden_dim": nested(60)})),
        ("labels that share lists", changed(model, label_names=nested(60))))}
    found |= {(what, place): data for place, good in (
        ("evaluate.py, a student", model), ("dump_logits.py --teacher", teacher), ("dump_logits.py --append", logits),
        ("dump_logits.py --check", logits), ("distill.py --logits", logits), ("plan.pt", PLACES["plan.pt"][0]),
        ("a part", PLACES["a part"][0]), ("distill.py last.pt", last), ("finetune_teacher.py last.pt", tuned),
        ("pytorch_model.bin", weights)) for what, data in (
        ("expanded", changed(good, x=huge)), ("meta", changed(good, x=torch.ones(3, device="meta"))),
        ("a packed archive", packed(good, x=torch.zeros(10**8))), ("sparse", changed(good, x=torch.eye(9).to_sparse())),
        ("bytearray(…)", with_pickle(good, {"x": Bomb(bytearray, 10**9)})),
        ("lists that share lists", changed(good, x=nested(60))))}
    found |= {(what, "distill.py --logits"): data for what, data in (
        ("a bare tensor, expanded", saved(wide)), ("logits, expanded", changed(logits, logits=wide)),
        ("a bare tensor in the old format", old_claim(12 * 10**8)),
        ("a bare tensor in the old format, expanded", saved(wide, **OLD)))}
    found |= {(f"the optimizer's {what}", "distill.py last.pt"): changed(last, optimizer=state_of(last, 0, **values))
              for what, values in (("moments are scalars", {"exp_avg": torch.zeros(())}),
                                   ("steps are many", {"step": torch.zeros(9)}),
                                   ("moments are of one row", {"exp_avg_sq": torch.zeros(1, 8)}))}
    return found


def test_what_a_file_claims_is_checked_before_memory_is_taken():
    cases = claims()
    good, (name, *names) = PLACES["student.py"][0], [("a good file", "student.py"), *cases]
    _, (line, *lines) = hostile({(name): Path(good).read_bytes()} | cases)
    (control,) = commands([line])
    assert control.code == 0
    for (what, place), end in zip(names, refused(names, lines), strict=True):
        assert end.megabytes < control.megabytes + 150 and end.seconds < 30, (what, place, end.megabytes, end.seconds)


def test_what_config_json_claims_is_checked_against_the_weights(tmp_path):
    settings = json.loads(Path("bert/config.json").read_text())
    cases = {f"{key} {value}": {key: value} for key, value in (
        ("vocab_size", 10**12), ("vocab_size", 2**24), ("hidden_size", 10**12), ("hidden_size", 2**24),
        ("num_hidden_layers", 10**9), ("intermediate_size", 2**24), ("max_position_embeddings", 2**24),
        ("type_vocab_size", 2**24), ("num_attention_heads", 2**24), ("vocab_size", "9"), ("vocab_size", -1),
        ("pad_token_id", 10**9), ("layer_norm_eps", "x"), ("hidden_dropout_prob", 7), ("model_type", []),
        ("initializer_range", float("nan")))}
    lines = []
    for number, values in enumerate(cases.values()):
        shutil.copytree("bert", tmp_path / str(number))
        (tmp_path / str(number) / "config.json").write_text(json.dumps(settings | values))
        lines.append([*PUBLISHED, tmp_path / "new", "--checkpoint", tmp_path / str(number)])
    for name, end in zip(cases, refused(cases, lines), strict=True):
        assert end.megabytes < 500 and end.seconds < 30, (name, end.megabytes, end.seconds)
