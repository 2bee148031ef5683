"""Hostile files: code that would run, claims to memory, altered bytes, paths out of a folder; all refused.

The scripts run as a user starts them, forked from a process that has imported PyTorch once: the exit code,
all of stderr, the memory taken and the files opened are those of the command alone.
"""

import codecs
import gzip
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
from test_fuzz import DISTIL, DUMP, EXACT, TORTURE, TRAIN, TUNE, kit, nested, repacked, run  # noqa: F401 - a fixture

import distill
import dump_logits
import runtime
import student
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher

ROOT = Path(__file__).parent.parent
SERVER = """
import gc, json, os, resource, runpy, signal, sys, time
import huggingface_hub, numpy, tokenizers, torch
torch.set_num_threads(1)
with torch.device("meta"):  # imports what PyTorch imports late
    torch.optim.AdamW(torch.nn.LSTM(1, 1).parameters())
gc.freeze()
WATCHED = "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"
for line in sys.stdin:
    (number, folder, *argv), start = json.loads(line), time.time()
    if not (child := os.fork()):
        os.chdir(folder)
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
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024, time.time() - start]),
          flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def server(kit):  # noqa: F811 - the fixture
    """The process that commands() talks to."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": "hub", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          encoding="utf-8", env=env) as commands.server:
        yield
        commands.server.stdin.close()


class Ended:
    """A command's exit code, peak memory in megabytes, seconds; lines of its output, and what it opened."""

    def __init__(self, number, line):
        self.code, self.megabytes, self.seconds = json.loads(line)
        self.err, self.opened = (Path(f"{number}.{name}").read_text(encoding="utf-8").splitlines()
                                 for name in ("err", "opened"))


def commands(lines: list) -> list[Ended]:
    """Run `SCRIPT.py flag …` for each list of words, in the working folder."""
    done = []
    for number, (script, *flags) in enumerate(lines):
        print(json.dumps([number, os.getcwd(), str(ROOT / script), *map(str, flags)]), flush=True,
              file=commands.server.stdin)
        done.append(Ended(number, commands.server.stdout.readline()))
    return done


def refused(names, lines: list) -> list[Ended]:
    """Run the commands: each ends with exit code 2 and one line."""
    done = commands(lines)
    for name, end in zip(names, done, strict=True):
        assert end.code == 2 and [line[:7] for line in end.err] == ["error: "], (name, end.code, end.err)
    return done


# ---- every place where a .pt is read -----------------------------------------------------------------------

# A place is a function: the path of a .pt -> the command that reads it there.
SHARDS = ".train.shards"
PUBLISHED = ["finetune_teacher.py", *TRAIN[:4], *EXACT, "--epochs", 1, "--output-dir"]
RESUME = ("dump_logits.py", *DUMP, "train.tsv", "--output-dir")


def place_in(folder, file, script, *flags):
    """In a copy of a run's folder, which goes on."""
    def line(path):
        shutil.copytree(folder, f"{path}.folder")
        shutil.copy(path, f"{path}.folder/{file}")
        return [script, *flags, f"{path}.folder", "--resume"]
    return line


def place_logits(*flags):
    def line(path):
        Path(f"{path}.folder").mkdir()
        shutil.copy(path, f"{path}.folder/train.pt")
        return [*RESUME, f"{path}.folder", *flags]
    return line


def place_named_teacher(path):
    """The teacher that a logits file says it was made by."""
    good = torch.load("logits/train.pt", weights_only=True)
    torch.save(good | {"teacher_files": [Path(path).name]}, f"{path}.logits")
    return ["distill.py", *DISTIL, f"{path}.new", "--logits", f"{path}.logits"]


def place_checkpoint(path):
    shutil.copytree("bert", f"{path}.folder")
    shutil.copy(path, f"{path}.folder/pytorch_model.bin")
    return [*PUBLISHED, f"{path}.new", "--checkpoint", f"{path}.folder"]


def place_download(path):
    name = Path(path).name.replace(".", "-")
    cache(name, Path(path).read_bytes())
    return [*PUBLISHED, f"{path}.new", "--checkpoint", f"someone/{name}"]


def cache(name: str, weights: bytes) -> Path:
    """The cache of the hub's own client: a snapshot of links to files that are named by their hashes."""
    folder = Path(f"hub/hub/models--someone--{name}")
    snapshot = folder / "snapshots" / ("0" * 40)
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    for file in ("config.json", "vocab.txt", "pytorch_model.bin"):
        data = weights if file.endswith(".bin") else Path("bert", file).read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data)  # as git's
        stated = (hashlib.sha256(data) if file.endswith(".bin") else digest).hexdigest()
        (folder / "blobs" / stated).write_bytes(data)
        (snapshot / file).symlink_to(f"../../blobs/{stated}")
    return snapshot


PLACES = {  # name: (a good file for it, the place)
    "student.py": ("students/tiny/student.pt", lambda path: ["student.py", path, "재밌다"]),
    "evaluate.py, a student": ("students/tiny/student.pt",
                               lambda path: ["evaluate.py", path, "--data", "valid.tsv", "--device", "cpu"]),
    "evaluate.py, a teacher": ("teacher/teacher.pt",
                               lambda path: ["evaluate.py", path, "--data", "valid.tsv", "--device", "cpu"]),
    "dump_logits.py": ("teacher/teacher.pt", lambda path: [*RESUME, f"{path}.new", "--teacher", path]),
    "--append": ("logits/train.pt", place_logits("--append")),
    "--resume": ("logits/train.pt", place_logits("--resume")),
    "--check": ("logits/train.pt", place_logits("--check", 2)),
    "plan.pt": (f"half/logits/{SHARDS}/plan.pt", place_in("half/logits", f"{SHARDS}/plan.pt", *RESUME)),
    "a part": (f"half/logits/{SHARDS}/000000.pt", place_in("half/logits", f"{SHARDS}/000000.pt", *RESUME)),
    "--logits": ("logits/train.pt", lambda path: ["distill.py", *DISTIL, f"{path}.new", "--logits", path]),
    "--teacher": ("teacher/teacher.pt",
                  lambda path: ["distill.py", *DISTIL, f"{path}.new", "--teacher", path]),
    "teacher_files": ("teacher/teacher.pt", place_named_teacher),
    "distill.py's last.pt": ("half/students/tiny/last.pt",
                             place_in("half/students", "tiny/last.pt", "distill.py", *DISTIL)),
    "finetune_teacher.py's last.pt": ("half/teacher/last.pt",
                                      place_in("half/teacher", "last.pt", "finetune_teacher.py", *TUNE)),
    "pytorch_model.bin": ("bert/pytorch_model.bin", place_checkpoint),
    "a download": ("bert/pytorch_model.bin", place_download),
}


def placed(files: dict) -> list:
    """The commands that read {(what, place): bytes}, each in its place."""
    for folder in ("hostile", "hub"):
        shutil.rmtree(folder, ignore_errors=True)
    Path("hostile").mkdir()
    lines = []
    for number, ((_, place), data) in enumerate(files.items()):
        Path(f"hostile/{number}.pt").write_bytes(data)
        lines.append(PLACES[place][1](f"hostile/{number}.pt"))
    return lines


def test_good_files_are_taken_in_every_place():
    files = {("good", place): Path(file).read_bytes() for place, (file, _) in PLACES.items()}
    for name, end in zip(files, commands(placed(files)), strict=True):
        assert end.code == 0, (name, end.err)


# ---- code --------------------------------------------------------------------------------------------------


class Bomb:
    """Pickles to a call of a function with arguments, which happens when the pickle is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


OLD = {"_use_new_zipfile_serialization": False}
WAYS = {  # (a good artifact, a bomb) -> a file that has the bomb
    "in an archive": lambda good, bomb: saved({"kind": good.get("kind"), "format": 1, "x": bomb}),
    "deep in a good archive": lambda good, bomb: saved(good | {"x": {"y": [1, (bomb,)]}}),
    "deep in a file of the old format": lambda good, bomb: saved(good | {"x": {"y": [1, (bomb,)]}}, **OLD),
    "in a plain pickle": lambda good, bomb: pickle.dumps({"kind": "student", "x": bomb}, 2),
    "in a plain pickle of another protocol": lambda good, bomb: pickle.dumps(bomb, 4),
}


def test_a_file_that_carries_code_is_refused_in_every_place_and_the_code_not_run():
    marker = Path("marker").resolve()
    bombs = [Bomb(os.system, f"touch {marker}"), Bomb(open, str(marker), "w"),
             Bomb(exec, f"open({str(marker)!r}, 'w')")]
    goods = {file: torch.load(file, weights_only=True) for file, _ in PLACES.values()}
    files = {(way, place): make(goods[file], bombs[(i + j) % 3]) for i, (way, make) in enumerate(WAYS.items())
             for j, (place, (file, _)) in enumerate(PLACES.items())}
    for end in refused(files, placed(files)):
        assert ".pt file that can be loaded safely" in end.err[0]
    assert not marker.exists()
    for (way, _), data in list(files.items())[:: len(PLACES) - 1]:  # they are live
        pickle.loads(data) if "plain" in way else torch.load(io.BytesIO(data), weights_only=False)
        assert marker.exists(), way
        marker.unlink()


# ---- memory ------------------------------------------------------------------------------------------------


def changed(file: str, **values) -> bytes:
    """A file with some of its values replaced; a dict is merged into the one that is there."""
    artifact = torch.load(file, weights_only=True)
    for name, value in values.items():
        both = isinstance(value, dict) and name in artifact
        artifact[name] = artifact[name] | value if both else value
    return saved(artifact)


def deflated(file: str) -> bytes:
    """A file with 400 megabytes more, packed into two."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(changed(file, x=torch.zeros(10**8)))) as archive, \
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in archive.namelist():
            new.writestr(name, archive.read(name))
    return out.getvalue()


def two_tables(shown: bytes, hidden: bytes) -> bytes:
    """An archive in which Python's zipfile finds the members of one, and PyTorch those of another.

    zipfile takes the table of contents that ends where the end record begins, PyTorch the one at the offset
    that the end record states; zipfile thinks the difference something that was put before the archive.
    """
    tables = []
    for data in (hidden, shown):
        length, start = struct.unpack("<LL", data[-10:-2])
        tables.append((start, data[start : start + length]))
    size = max(len(table) for _, table in tables)
    for i, (start, table) in enumerate(tables):  # to one length, by a comment of the last member
        last = table.rindex(b"PK\1\2") + 32
        comment = size - len(table)
        tables[i] = start, table[:last] + struct.pack("<H", comment) + table[last + 2 :] + b" " * comment
    (start, table), (shown_start, shown_table) = tables
    moved, at = bytearray(shown_table), 0
    while at < size:  # where zipfile looks is this offset + size + shown_start
        offset, = struct.unpack_from("<L", moved, at + 42)
        struct.pack_into("<L", moved, at + 42, start + offset - shown_start)
        at += 46 + sum(struct.unpack_from("<HHH", moved, at + 28))
    end = hidden[-22:-10] + struct.pack("<LLH", size, start, 0)
    return hidden[:start] + table + shown[:shown_start] + bytes(moved) + end


class OldPickler(pickle.Pickler):
    """Writes "the storage" as one of 240 million floats."""

    def persistent_id(self, value):
        if value == "the storage":
            return "storage", torch.FloatStorage, "0", "cpu", 24 * 10**7, None


def old_claim() -> bytes:
    """A tensor in the format from before PyTorch 1.6, of whose storage the file has nothing."""
    file = io.BytesIO()
    for value in (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}):
        pickle.dump(value, file, 2)
    OldPickler(file, 2).dump(Bomb(torch._utils._rebuild_tensor_v2, "the storage", 0, (12, 2 * 10**7),
                                  (2 * 10**7, 1), False, OrderedDict()))
    pickle.dump([], file, 2)
    return file.getvalue()


def with_pickle(file: str, value) -> bytes:
    """A file whose pickle is another one, under right checksums."""
    return repacked(Path(file).read_bytes(),
                    lambda name, old: pickle.dumps(value, 2) if name.endswith("data.pkl") else old)


def doubled(times: int):
    """A text that torch.load would double so many times."""
    value = Bomb(codecs.encode, "x" * 1000, "latin1")
    for _ in range(times):
        value = Bomb(codecs.encode, value, "hex")
    return value


def with_state(file: str, **values) -> bytes:
    """A last.pt with some values of one parameter's optimizer state replaced."""
    artifact = torch.load(file, weights_only=True)
    artifact["optimizer"]["state"][0].update(values)
    return saved(artifact)


def claims() -> dict:
    """{(what it claims, place): bytes} of files that claim hundreds of megabytes, or what they have not."""
    model, teacher, logits, last = (PLACES[place][0] for place in (
        "student.py", "dump_logits.py", "--logits", "distill.py's last.pt"))
    weights = torch.load(model, weights_only=True)["weights"]["embedding.weight"]
    bytes_ = torch.frombuffer(bytearray(zlib.compress(bytes(4 * 10**8), 1)), dtype=torch.uint8)
    packed, wide = deflated(model), torch.zeros(1).expand(12, 10**9)
    plain = repacked(Path(model).read_bytes(), lambda name, old: old)
    files = {
        "student.py": {
            **{f"{key} {value}": changed(model, config={key: value}) for key, value in (
                ("vocab_size", 10**12), ("embedding_dim", 2**24), ("hidden_dim", 2**24),
                ("hidden_dim", 2**40), ("num_layers", 10**9), ("num_labels", 10**9), ("pad_id", 10**9))},
            **{f"weights {name}": changed(model, weights={"embedding.weight": value}) for name, value in {
                "expanded": torch.zeros(1).expand(10**6, 10**6), "sparse": weights.to_sparse(),
                "meta": weights.to("meta"), "meta, huge": torch.empty(10**6, 10**6, device="meta"),
                "int8 without scales": weights.to(torch.int8), "float64": weights.double(),
                "int64": weights.long(),
                "not finite": weights * torch.nan, "of another shape": weights[:-1]}.items()},
            "many weights of one storage": changed(model, weights=dict.fromkeys(
                map(str, range(500)), torch.zeros(1000, 1000, dtype=torch.float16))),
            "an archive packed": packed,
            "an archive packed under another's table": two_tables(plain, packed),
            "a packed tokenizer": changed(model, tokenizer=bytes_),
            "an expanded tokenizer": changed(model, tokenizer=bytes_[:1].expand(10**9)),
            "bytearray(…)": with_pickle(model, {"kind": "student", "x": Bomb(bytearray, 10**9)}),
            "Tensor(…)": with_pickle(model, {"kind": "student", "x": Bomb(torch.Tensor, 10**5, 10**4)}),
            "a doubled text": with_pickle(model, {"kind": "student", "x": doubled(19)}),
            "lists of lists": changed(model, config={"hidden_dim": nested(60)}),
            "labels of lists": changed(model, label_names=nested(60))},
        "dump_logits.py": {f"{key} {value}": changed(teacher, config={key: value}) for key, value in (
            ("vocab_size", 10**12), ("hidden_size", 2**24), ("num_layers", 10**9), ("num_labels", 2**24),
            ("intermediate_size", 2**40), ("max_positions", 2**24))},
        "--logits": {
            "a tensor expanded": saved(wide), "logits expanded": changed(logits, logits=wide),
            "a tensor sparse": saved(torch.eye(12, 2).to_sparse()),
            "a tensor meta": saved(torch.ones(12, 2, device="meta")),
            "an old tensor expanded": saved(wide, **OLD), "an old tensor without storage": old_claim()},
        # The optimizer's fused step would write beyond them.
        "distill.py's last.pt": {name: with_state(last, **values) for name, values in {
            "moments of one number": {"exp_avg": torch.zeros(())},
            "moments of one row": {"exp_avg_sq": torch.zeros(1, 8)},
            "moments that overlap": {"exp_avg": torch.zeros(10**4)[-1:].expand(weights.shape)},
            "many counts of steps": {"step": torch.zeros(9)}}.items()},
    }
    files = {(what, place): data for place, found in files.items() for what, data in found.items()}
    for place in ("evaluate.py, a student", "dump_logits.py", "--append", "--check", "--logits", "plan.pt",
                  "a part", "distill.py's last.pt", "finetune_teacher.py's last.pt", "pytorch_model.bin"):
        good = PLACES[place][0]
        files |= {("packed", place): packed, ("expanded", place): changed(good, x=wide),
                  ("bytearray(…)", place): with_pickle(good, {"x": Bomb(bytearray, 10**9)})}
    return files | {("lists of lists", place): changed(PLACES[place][0], x=nested(60))
                    for place in ("evaluate.py, a student", "--logits", "plan.pt", "distill.py's last.pt")}


def test_what_a_file_claims_is_checked_before_memory_is_taken():
    control, files = ("a good file", "student.py"), claims()
    line, *lines = placed({control: Path(PLACES["student.py"][0]).read_bytes()} | files)
    (good,) = commands([line])
    assert good.code == 0
    for name, end in zip(files, refused(files, lines), strict=True):
        assert end.megabytes < good.megabytes + 150 and end.seconds < 30, (name, end.megabytes, end.seconds)


def test_what_config_json_claims_is_checked_against_the_weights(tmp_path):
    settings = json.loads(Path("bert/config.json").read_text())
    cases = [
        ("vocab_size", 10**12), ("vocab_size", 2**24), ("hidden_size", 10**12), ("hidden_size", 2**24),
        ("num_hidden_layers", 10**9), ("intermediate_size", 2**24), ("max_position_embeddings", 2**24),
        ("type_vocab_size", 2**24), ("num_attention_heads", 2**24), ("vocab_size", "9"), ("vocab_size", -1),
        ("pad_token_id", 10**9), ("layer_norm_eps", "x"), ("hidden_dropout_prob", 7), ("model_type", []),
        ("initializer_range", float("nan"))]
    lines = []
    for number, (key, value) in enumerate(cases):
        folder = shutil.copytree("bert", tmp_path / str(number))
        (folder / "config.json").write_text(json.dumps(settings | {key: value}))
        lines.append([*PUBLISHED, tmp_path / "new", "--checkpoint", folder])
    for name, end in zip(cases, refused(cases, lines), strict=True):
        assert end.megabytes < 500 and end.seconds < 30, (name, end.megabytes, end.seconds)


def test_student_py_stands_alone_and_checks_as_runtime_py_does():
    for function in ("check_archive", "check_names"):
        assert inspect.getsource(getattr(student, function)) == inspect.getsource(getattr(runtime, function))
    assert student.PLAIN == runtime.PLAIN


# ---- altered bytes -----------------------------------------------------------------------------------------


def equal(one, other) -> bool:
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (dict, list, tuple)):
        keys = one if isinstance(one, dict) else range(len(one))
        return type(one) is type(other) and len(one) == len(other) and all(
            equal(one[key], other[key]) for key in keys)
    return type(one) is type(other) and one == other


FILES = {
    "student.pt": ("students/tiny/student.pt", Student.load),
    "teacher.pt": ("teacher/teacher.pt", Teacher.load),
    "logits": ("logits/train.pt", lambda path: runtime.load_weights(path, mmap=True)),
    "plan.pt": (f"half/logits/{SHARDS}/plan.pt", runtime.load_weights),
    "last.pt of distill.py": ("half/students/tiny/last.pt", runtime.load_weights),
    "last.pt of finetune_teacher.py": ("half/teacher/last.pt", runtime.load_weights),
    "pytorch_model.bin": ("bert/pytorch_model.bin", runtime.load_weights),
}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_or_of_no_matter_and_a_cut_file_is_refused(name):
    file, load = FILES[name]
    data, path = Path(file).read_bytes(), Path("flipped.pt")
    good = torch.load(file, weights_only=True)
    table = data.index(b"PK\1\2")  # from there on one byte in eleven, and 200 of all
    places = sorted({*range(0, len(data), 1 + len(data) // 200), *range(table, len(data), 11)})
    flips = [(at, 1 << at % 8) for at in (range(len(data)) if TORTURE else places)]
    # The bit that makes a member a folder, of which PyTorch reads nothing: a tensor would hold anything.
    flips += [(at + 38, 16) for at in range(table, len(data)) if data[at : at + 4] == b"PK\1\2"]
    harmless = 0
    for at, bit in flips:
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        try:
            found = load(path)
        except (UserError, StudentError) as error:
            assert str(error).startswith("flipped.pt: ") and len(str(error).splitlines()) == 1
            continue
        harmless += 1
        if isinstance(found, dict):
            assert equal(found, good), at
        else:
            assert equal(dict(found.state_dict()), good["weights"]), at
            assert found.label_names == good["label_names"]
    assert 0 < harmless < len(flips) / 2  # dates, padding, sizes that are stated twice
    for size in (*range(0, len(data), 1 + len(data) // 20), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises((UserError, StudentError)):
            load(path)


# ---- downloads ---------------------------------------------------------------------------------------------


def test_a_download_that_is_not_what_the_hub_states_is_refused():
    shutil.rmtree("hub", ignore_errors=True)
    changes = {"altered": lambda data: data.replace(b"0", b"1", 1), "cut": lambda data: data[:-1],
               "longer": lambda data: data + b" "}
    names, lines = [], []
    for file in ("pytorch_model.bin", "config.json", "vocab.txt"):
        for change, alter in changes.items():
            name = f"{change}-{file}".replace(".", "-")
            blob = (cache(name, Path("bert/pytorch_model.bin").read_bytes()) / file).resolve()
            data = blob.read_bytes()
            blob.write_bytes(alter(data))
            assert blob.read_bytes() != data
            names.append((file, blob))
            lines.append([*PUBLISHED, "new", "--checkpoint", f"someone/{name}"])
    for (file, blob), end in zip(names, refused(names, lines), strict=True):
        assert f"{file}: is damaged" in end.err[0] and end.err[0].endswith(f"delete {blob} and run again")


# ---- paths -------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A folder with files that paths name from three folders below: there is a copy of the kit, the cwd."""
    folder = shutil.copytree(".", tmp_path / "a/b/c", ignore=shutil.ignore_patterns("hostile", "hub"))
    monkeypatch.chdir(folder)
    for name in ("x", "x.pt"):
        (tmp_path / "a" / name).write_text("not to be read")
    return tmp_path


def snapshot(deep: Path) -> dict:
    """All files but those of out/, and those of commands()."""
    return {str(path): path.read_bytes() for path in deep.rglob("*") if path.is_file()
            and deep / "a/b/c/out" not in path.parents and path.suffix not in (".out", ".err", ".opened")}


PATHS = ["../../x", "../../x.pt", "/etc/passwd", "..", "~/x", "a/../../../x", "C:\\x", "\0", "x" * 5000,
         "..\\x"]


def test_paths_in_files_are_neither_written_to_nor_read(deep):
    """As names of labels and tokens, in config.json and its like, as members of archives."""
    absolute = str(deep / "a/x")
    names = [*PATHS, absolute]
    config = json.loads(Path("bert/config.json").read_text())
    extra = dict(zip(("_name_or_path", "tokenizer_file", "vocab_file", "auto_map", "tokenizer_class",
                      "name_or_path", "model_file", "merges_file", "special_tokens_map_file", "architectures",
                      "weights"), names, strict=True))
    labels = {"id2label": {"0": names[0], "1": absolute}}
    Path("bert/config.json").write_text(json.dumps(extra | config | labels))
    Path("bert/tokenizer_config.json").write_text(json.dumps(extra))
    rows = [f"{text}\t{label}" for text in ("재밌다", "별로", "영화") for label in (names[0], absolute)]
    for file in ("train", "valid"):
        Path(f"{file}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    tokenizer = json.loads(Path("tok/tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    for token, name in zip(list(vocab)[-len(names) :], names, strict=True):
        vocab[name] = vocab.pop(token)
    Path("tok/tokenizer.json").write_text(json.dumps(tokenizer))
    for file, member in (("in.pt", "archive/../../../x"), ("out.pt", "../../x"), ("absolute.pt", absolute)):
        shutil.copy("teacher/teacher.pt", file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(member, "written")
    before = snapshot(deep)
    done = commands([
        [*PUBLISHED, "out/teacher", "--checkpoint", "bert"],
        [*RESUME, "out/logits", "--teacher", "out/teacher/teacher.pt"],
        ["distill.py", *DISTIL, "out/students", "--logits", "out/logits/train.pt"],
        ["evaluate.py", "out/students/tiny/student.pt", "out/teacher/teacher.pt", "--data", "valid.tsv",
         "--errors", "out/errors.tsv"],
        ["student.py", "out/students/tiny/student.pt", "재밌다"],
        *([*RESUME, f"out/{file}", "--data", "more.tsv", "--teacher", file]
          for file in ("in.pt", "out.pt", "absolute.pt"))])
    assert [end.code for end in done] == [0, 0, 0, 0, 0, 0, 2, 2], [end.err for end in done]
    assert snapshot(deep) == before
    opened = [line for end in done for line in end.opened]
    assert opened and not [line for line in opened if "../" in line or absolute in line]


def test_the_teachers_that_a_logits_file_names_are_compared_if_they_are_files_and_nothing_else(deep):
    """They are read as any teacher.pt is: as plain values, and no pipe or device makes the script wait."""
    os.mkfifo(deep / "a/pipe")
    names = [*PATHS, str(deep / "a/x"), str(deep / "a/pipe"), "../../pipe", "/dev/zero", "/dev/stdin", "."]
    lines = []
    for number, name in enumerate(names):
        Path(f"{number}.pt").write_bytes(changed("logits/train.pt", teacher_files=[name]))
        lines.append(["distill.py", *DISTIL, f"out/{number}", "--logits", f"{number}.pt"])
    before = snapshot(deep)
    for name, end in zip(names, commands(lines), strict=True):
        name = os.path.relpath(name)
        if os.path.isfile(name):
            assert end.code == 2 and len(end.err) == 1, (name, end.err)
            assert f"{name}: not a .pt file that can be loaded safely" in end.err[0]
        else:
            assert end.code == 0, (name, end.err)
    assert snapshot(deep) == before


@pytest.mark.parametrize("data", ["..tsv", "...tsv", ".tsv", "-.tsv", "a b.tsv.gz", "..\\x.tsv", "[a].tsv"])
def test_a_dump_stays_in_its_folder_whatever_its_data_is_called(data, deep):
    content = Path("train.tsv").read_bytes()
    Path(data).write_bytes(gzip.compress(content) if data.endswith(".gz") else content)
    before = snapshot(deep)
    run(dump_logits, *DUMP, f"./{data}", "--output-dir", "out")
    assert snapshot(deep) == before
    assert len([path for path in Path("out").iterdir() if path.is_file() and path.suffix != ".lock"]) == 1


def test_a_grid_stays_in_its_folder_whatever_its_tokenizers_are_called():
    args = distill.parse_args([*map(str, DISTIL), "out"])
    args.tokenizer = ["..", "/", "../x", "tok/../y", "~"]
    for name, _ in distill.grid_settings(args):
        assert "/" not in name and Path("out", name).resolve().parent == Path("out").resolve()
    args.tokenizer = ["..", "../.."]
    with pytest.raises(UserError, match="would share the folder"):
        distill.grid_settings(args)
