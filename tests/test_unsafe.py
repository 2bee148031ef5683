"""Hostile files: code that would run, claims to memory, altered bytes, paths out of a folder; all refused.

Where the exit code, the memory taken or the files opened matter, the scripts run in processes of their own.
"""

import codecs
import gzip
import inspect
import io
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import equal, run
from hostile import (
    DISTIL,
    DUMP,
    PUBLISHED,
    TUNE,
    Bomb,
    changed,
    commands,
    legacy,
    nested,
    repacked,
    saved,
)

import distill
import runtime
import student
from data.logits import read_logits
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher, load_checkpoint

TORTURE = bool(os.environ.get("TORTURE"))


@pytest.fixture(scope="module", autouse=True)
def here(small, tmp_path_factory):
    """A copy of the small kit as the working folder of all these tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = shutil.copytree(small, tmp_path_factory.mktemp("unsafe") / "here")
        patch.chdir(folder)
        yield folder


def refused(names, lines: list) -> list:
    """Run the commands: each ends with exit code 2 and one line; another run's file is left out with one."""
    done = commands(lines, GIGABYTES="6")
    for name, end in zip(names, done, strict=True):
        code, begins = (0, "warning: ") if name[1] == "another run's last.pt" else (2, "error: ")
        assert end.returncode == code, (name, end.returncode, end.lines("err"))
        assert [line[: len(begins)] for line in end.lines("err")] == [begins], (name, end.lines("err"))
    return done


# ---- every place where a .pt is read -----------------------------------------------------------------------

STUDENT, LAST, BLOCK = "student.pt", "half/students/tiny-tok/last.pt", "half/logits/.train.blocks/{block}"
PLACES = {  # name: (a good file for it, folder that is copied or "", the file in the copy, command)
    "student.py": (STUDENT, "", "a.pt", "student.py {path} 재밌다"),
    "evaluate.py, a student": ("int8.pt", "", "a.pt", "evaluate.py {path} --data valid.tsv"),
    "evaluate.py, a teacher": ("teacher.pt", "", "a.pt", "evaluate.py {path} --data valid.tsv"),
    "evaluate.py --logits": ("logits.pt", "", "a.pt", "evaluate.py --logits {path} --data train.tsv"),
    "dump_logits.py": ("teacher.pt", "", "a.pt", f"dump_logits.py {DUMP} {{folder}} --teacher {{path}}"),
    "logits that are there": ("logits.pt", "", "train.pt", f"dump_logits.py {DUMP} {{folder}}"),
    "--check": ("logits.pt", "", "train.pt", f"dump_logits.py --check 2 {DUMP} {{folder}}"),
    "a block": (BLOCK, "half/logits", BLOCK[12:], f"dump_logits.py {DUMP} {{folder}}"),
    "--logits": ("logits.pt", "", "a.pt", f"distill.py {DISTIL} {{folder}} --logits {{path}}"),
    "--teacher": ("teacher.pt", "", "a.pt", f"distill.py {DISTIL} {{folder}} --teacher {{path}}"),
    "teacher_files": ("teacher.pt", "", "a.pt",
                      f"distill.py {DISTIL} {{folder}} --logits {{folder}}/names-it.pt"),
    "distill.py's last.pt": (LAST, "half/students", LAST[14:], f"distill.py {DISTIL} {{folder}}"),
    "another run's last.pt": (LAST, "", "other/last.pt", f"distill.py {DISTIL} {{folder}}"),
    "finetune_teacher.py's last.pt": (
        "half/teacher/last.pt", "half/teacher", "last.pt", f"finetune_teacher.py {TUNE} {{folder}}"),
    "pytorch_model.bin": ("bert/pytorch_model.bin", "bert", "pytorch_model.bin",
                          f"finetune_teacher.py {PUBLISHED} {{folder}} --checkpoint {{folder}}"),
}


def good(place: str) -> str:
    """A file that belongs there."""
    return PLACES[place][0].format(block=next(Path("half/logits/.train.blocks").glob("*.pt")).name)


def placed(files: dict) -> list:
    """The commands that read {(what, place): bytes}, each in its place."""
    shutil.rmtree("hostile", ignore_errors=True)
    lines = []
    for number, ((_, place), data) in enumerate(files.items()):
        _, copied, file, command = PLACES[place]
        folder = Path("hostile", str(number))
        path = folder / (Path(good(place)).relative_to(copied) if "{" in file else file)
        shutil.copytree(copied, folder) if copied else path.parent.mkdir(parents=True)
        path.write_bytes(data)
        (folder / "names-it.pt").write_bytes(changed("logits.pt", teacher_files=["a.pt"]))
        lines.append(command.format(path=path, folder=folder).split())
    return lines


def test_good_files_are_taken_in_every_place():
    files = {("good", place): Path(good(place)).read_bytes() for place in PLACES}
    for name, end in zip(files, commands(placed(files)), strict=True):
        assert end.returncode == 0, (name, end.lines("err"))


# ---- code --------------------------------------------------------------------------------------------------

OLD = {"_use_new_zipfile_serialization": False}
WAYS = {  # (a good artifact, a bomb) -> a file that has the bomb
    "in an archive": lambda good, bomb: saved({"kind": good.get("kind"), "format": 1, "x": bomb}),
    "deep in a good archive": lambda good, bomb: saved(good | {"x": {"y": [1, (bomb,)]}}),
    "deep in a file of the old format": lambda good, bomb: saved(good | {"x": {"y": [1, (bomb,)]}}, **OLD),
    "in a plain pickle": lambda good, bomb: pickle.dumps({"kind": "student", "x": bomb}, 2),
    "in a plain pickle of another protocol": lambda good, bomb: pickle.dumps(bomb, 4),
}


def test_a_file_that_carries_code_is_refused_in_every_place_and_the_code_not_run():
    """Each place meets two of the ways, and all if TORTURE is set."""
    marker, files = Path("marker").resolve(), {}
    bombs = [Bomb(os.system, f"touch {marker}"), Bomb(open, str(marker), "w"),
             Bomb(exec, f"open({str(marker)!r}, 'w')")]
    for i, (way, make) in enumerate(WAYS.items()):
        for j, place in enumerate(PLACES):
            if TORTURE or (i + j) % 5 < 2:
                artifact = torch.load(good(place), weights_only=True)
                artifact = artifact if isinstance(artifact, dict) else {"logits": artifact}
                files[way, place] = make(artifact, bombs[(i + j) % 3])
    for end in refused(files, placed(files)):
        assert ".pt file that can be loaded safely" in end.lines("err")[0]
    assert not marker.exists()
    for way in WAYS:  # they are live
        data = next(data for (other, _), data in files.items() if other == way)
        pickle.loads(data) if "plain" in way else torch.load(io.BytesIO(data), weights_only=False)
        assert marker.exists(), way
        marker.unlink()


# ---- memory ------------------------------------------------------------------------------------------------


def with_pickle(file: str, value) -> bytes:
    """A file whose pickle is another one, under right checksums."""
    return repacked(Path(file).read_bytes(),
                    lambda name, old: pickle.dumps(value, 2) if name.endswith("data.pkl") else old)


def deflated(file: str) -> bytes:
    """A file with 100 megabytes more, packed into a half."""
    return repacked(changed(file, x=torch.zeros(25 * 10**6)), method=zipfile.ZIP_DEFLATED)


def two_formats(value, file: str) -> bytes:
    """A file that zipfile takes for the archive `file`, and torch.load for one of the old format."""
    out = io.BytesIO(legacy(pickle.dumps(value, 2), pickle.dumps([], 2)))
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(out, "a") as new:  # its offsets count all bytes
        for name in archive.namelist():
            new.writestr(name, archive.read(name))
    return out.getvalue()


class OldPickler(pickle.Pickler):
    """Writes "the storage" as one of 240 million floats."""

    def persistent_id(self, value):
        if value == "the storage":
            return "storage", torch.FloatStorage, "0", "cpu", 24 * 10**7, None


def old_claim() -> bytes:
    """A tensor in the format from before PyTorch 1.6, of whose storage the file has nothing."""
    tensor = "the storage", 0, (12, 2 * 10**7), (2 * 10**7, 1), False, OrderedDict()
    OldPickler(file := io.BytesIO(), 2).dump(Bomb(torch._utils._rebuild_tensor_v2, *tensor))
    return legacy(file.getvalue(), pickle.dumps([], 2))


def doubled(times: int):
    """A text that torch.load would double so many times."""
    value = Bomb(codecs.encode, "x" * 1000, "latin1")
    for _ in range(times):
        value = Bomb(codecs.encode, value, "hex")
    return value


LOADERS = {
    STUDENT: Student.load, "teacher.pt": Teacher.load, "logits.pt": read_logits, LAST: runtime.load_weights,
    "half/teacher/last.pt": runtime.load_weights, "bert/pytorch_model.bin": runtime.load_weights,
}


def claims() -> dict:
    """{(what it claims, good file): bytes}: a hundred megabytes and more, or what the file has not."""
    weights = torch.load(STUDENT, weights_only=True)["weights"]["embedding.weight"]
    packed_up = torch.frombuffer(bytearray(zlib.compress(bytes(10**8), 1)), dtype=torch.uint8)
    packed, wide = deflated(STUDENT), torch.zeros(1).expand(12, 10**9)
    files = {
        STUDENT: {
            **{f"{key} {value}": changed(STUDENT, config={key: value}) for key, value in (
                ("vocab_size", 10**12), ("embedding_dim", 2**24), ("hidden_dim", 2**24),
                ("hidden_dim", 2**40), ("num_layers", 10**9), ("num_labels", 10**9), ("pad_id", 10**9),
                ("thresholds", [0.5] * 9), ("deviation", 1.0))},
            **{f"weights {name}": changed(STUDENT, weights={"embedding.weight": value}) for name, value in {
                "expanded": torch.zeros(1).expand(10**6, 10**6), "sparse": weights.to_sparse(),
                "meta": weights.to("meta"), "meta, huge": torch.empty(10**6, 10**6, device="meta"),
                "int8 without scales": weights.to(torch.int8), "float64": weights.double(),
                "int64": weights.long(), "not finite": weights * torch.nan,
                "of another shape": weights[:-1]}.items()},
            "many weights of one storage": changed(STUDENT, weights=dict.fromkeys(
                map(str, range(500)), torch.zeros(1000, 1000, dtype=torch.float16))),
            "a packed tokenizer": changed(STUDENT, tokenizer=packed_up),
            "an expanded tokenizer": changed(STUDENT, tokenizer=packed_up[:1].expand(10**9)),
            "Tensor(…)": with_pickle(STUDENT, {"kind": "student", "x": Bomb(torch.Tensor, 10**5, 10**4)}),
            "a doubled text": with_pickle(STUDENT, {"kind": "student", "x": doubled(19)}),
            "lists of lists": changed(STUDENT, config={"hidden_dim": nested(60)}),
            "thresholds of lists": changed(STUDENT, config={"thresholds": nested(60)}),
            "labels of lists": changed(STUDENT, label_names=nested(60))},
        "teacher.pt": {f"{key} {value}": changed("teacher.pt", config={key: value}) for key, value in (
            ("vocab_size", 10**12), ("hidden_size", 2**24), ("num_layers", 10**9), ("num_labels", 2**24),
            ("intermediate_size", 2**40), ("max_positions", 2**24), ("thresholds", [0.5] * 9),
            ("deviation", 1.0))},
        "logits.pt": {
            "a tensor expanded": saved(wide), "logits expanded": changed("logits.pt", logits=wide),
            "a tensor sparse": saved(torch.eye(12, 2).to_sparse()),
            "a tensor meta": saved(torch.ones(12, 2, device="meta")),
            "an old tensor expanded": saved(wide, **OLD), "an old tensor without storage": old_claim()},
    }
    files = {(what, file): data for file, found in files.items() for what, data in found.items()}
    for file in LOADERS:
        files |= {("packed", file): packed,
                  ("bytearray(…)", file): with_pickle(file, {"x": Bomb(bytearray, 10**9)}),
                  ("bytearray(…) before an archive", file): two_formats({"x": Bomb(bytearray, 10**9)}, file)}
        if file != STUDENT:  # of which values that it does not need are left as they are
            files |= {("expanded", file): changed(file, x=wide),
                      ("lists of lists", file): changed(file, x=nested(60))}
    return files


def megabytes(name: str) -> int:
    """VmRSS, the memory that this process has now, or VmHWM, the most since it was last asked to forget."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="for Linux's /proc")
def test_what_a_file_claims_is_checked_before_memory_is_taken():
    for (what, file), data in claims().items():
        Path("a.pt").write_bytes(data)
        Path("/proc/self/clear_refs").write_text("5")  # forget
        before = megabytes("VmRSS")
        with pytest.raises((UserError, StudentError)) as error:
            LOADERS[file]("a.pt")
            pytest.fail(f"{what}: {file} was taken")
        assert str(error.value).startswith("a.pt: ") and len(str(error.value).splitlines()) == 1, (what, file)
        assert megabytes("VmHWM") < before + 50, (what, file)


def test_an_optimizer_that_would_write_beyond_its_memory_is_refused():
    """The fused step trusts its state: a real one would end in a crash, or in other values' place."""
    files, shape = {}, torch.load(LAST, weights_only=True)["weights"]["embedding.weight"].shape
    for values in ({"exp_avg": torch.zeros(())}, {"exp_avg_sq": torch.zeros(1, 8)}, {"step": torch.zeros(9)},
                   {"exp_avg": torch.zeros(10**4)[-1:].expand(shape)}):
        artifact = torch.load(LAST, weights_only=True)
        artifact["optimizer"]["state"][0].update(values)
        files[str(values), "distill.py's last.pt"] = saved(artifact)
    for end in refused(files, placed(files)):
        assert "damaged" in end.lines("err")[0]


@pytest.mark.parametrize(("key", "value"), [
    ("vocab_size", 10**12), ("vocab_size", 2**24), ("hidden_size", 2**24), ("num_hidden_layers", 10**9),
    ("intermediate_size", 2**24), ("max_position_embeddings", 2**24), ("type_vocab_size", 2**24),
    ("num_attention_heads", 2**24), ("pad_token_id", 10**9), ("initializer_range", float("nan"))])
def test_what_config_json_claims_is_checked_against_the_weights(key, value, tmp_path):
    shutil.copytree("bert", tmp_path / "bert")
    settings = json.loads(Path("bert/config.json").read_text())
    (tmp_path / "bert/config.json").write_text(json.dumps(settings | {key: value}))
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    with pytest.raises(UserError):
        load_checkpoint(str(tmp_path / "bert"), ["0", "1"], 16)
    assert megabytes("VmHWM") < before + 50


# ---- altered bytes -----------------------------------------------------------------------------------------


def test_student_py_stands_alone_and_checks_as_runtime_py_does():
    assert inspect.getsource(student.check_archive) == inspect.getsource(runtime.check_archive)
    assert student.PLAIN == runtime.PLAIN


@pytest.mark.parametrize("check", [student.check_archive, runtime.check_archive], ids=["student", "runtime"])
@pytest.mark.parametrize(("make", "word"), [
    (lambda plain: repacked(plain, method=zipfile.ZIP_DEFLATED), "packed"),
    (lambda plain: two_formats({"x": 1}, STUDENT), "start"),
    (lambda plain: b" " + plain, "table"),
    (lambda plain: plain + b" ", "table"),
    (lambda plain: with_pickle(STUDENT, Bomb(bytearray, 10)), "bytearray"),
    (lambda plain: repacked(plain, lambda name, old: old + b"0" if "/data/" in name else old).replace(
        b"0PK\3\4", b"1PK\3\4", 1), "checksum")])
def test_both_checks_refuse_what_torch_load_would_take(check, make, word):
    plain = repacked(Path(STUDENT).read_bytes())
    Path("a.pt").write_bytes(plain)
    check("a.pt")
    Path("a.pt").write_bytes(make(plain))
    with pytest.raises(ValueError, match=word):
        check("a.pt")


@pytest.mark.parametrize("file", LOADERS)
def test_a_flipped_bit_is_found_or_of_no_matter_and_a_cut_file_is_refused(file):
    data, path, load = Path(file).read_bytes(), Path("flipped.pt"), LOADERS[file]
    whole, table, harmless = torch.load(file, weights_only=True), data.index(b"PK\1\2"), 0
    places = range(len(data)) if TORTURE else {*range(0, len(data), 1 + len(data) // 99),
                                               *range(table, len(data), 23)}
    flips = [(at, 1 << at % 8) for at in places]
    # The bit that makes a member a folder, of which PyTorch reads nothing: a tensor would hold anything.
    flips += [(at + 38, 16) for at in range(table, len(data)) if data[at : at + 4] == b"PK\1\2"]
    for at, bit in flips:
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
        try:
            found = load(path)
        except (UserError, StudentError) as error:
            assert str(error).startswith("flipped.pt: ") and len(str(error).splitlines()) == 1
            continue
        harmless += 1
        if hasattr(found, "state_dict"):
            assert equal(dict(found.state_dict()), whole["weights"]), at
            assert found.label_names == whole["label_names"]
        elif file == "logits.pt":
            assert torch.equal(found.values, whole["logits"]) and found.names == whole["label_names"], at
        else:
            assert equal(found, whole), at
    assert 0 < harmless < len(flips) / 2  # dates, padding, sizes that are stated twice
    for size in (*range(0, len(data), 1 + len(data) // 20), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises((UserError, StudentError)):
            load(path)


# ---- paths -------------------------------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A folder with files that paths name from three folders below: there is a copy of the kit, the cwd."""
    folder = shutil.copytree(".", tmp_path / "a/b/c", ignore=shutil.ignore_patterns("hostile", "*.out"))
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
    known = {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": None}  # others are refused
    Path("bert/tokenizer_config.json").write_text(json.dumps(extra | known))
    rows = [f"{text}\t{label}" for text in ("재밌다", "별로", "영화") for label in (names[0], absolute)]
    for file in ("train", "valid"):
        Path(f"{file}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    tokenizer = json.loads(Path("tok/tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    for token, name in zip(list(vocab)[-len(names) :], names, strict=True):
        vocab[name] = vocab.pop(token)
    Path("tok/tokenizer.json").write_text(json.dumps(tokenizer))
    for file, member in (("in", "archive/../../../x"), ("out", "../../x"), ("absolute", absolute)):
        shutil.copy("teacher.pt", f"{file}.pt")
        with zipfile.ZipFile(f"{file}.pt", "a") as archive:
            archive.writestr(member, "written")
    before = snapshot(deep)
    steps = [f"finetune_teacher.py {PUBLISHED} out", f"dump_logits.py {DUMP} out --teacher out/teacher.pt",
             f"distill.py {DISTIL} out --logits out/train.pt",
             "evaluate.py out/tiny-tok/student.pt out/teacher.pt --data valid.tsv --errors out/errors.tsv",
             "student.py out/tiny-tok/student.pt 재밌다"]
    done = [commands([step.split()])[0] for step in steps]  # one after the other
    opened = [line for end in done for line in end.lines("opened")]
    assert [end.returncode for end in done] == [0] * 5, [end.lines("err") for end in done]
    done = commands([f"dump_logits.py {DUMP} out/{file} --data more.tsv --teacher {file}.pt".split()
                     for file in ("in", "out", "absolute")])
    opened += [line for end in done for line in end.lines("opened")]
    assert [end.returncode for end in done] == [0, 2, 2], [end.lines("err") for end in done]
    assert snapshot(deep) == before
    assert opened and not [line for line in opened if "../" in line or absolute in line]


def test_the_teachers_that_a_logits_file_names_are_compared_if_they_are_files_and_nothing_else(deep):
    """They are read as any teacher.pt is: as plain values, and no pipe or device makes the script wait."""
    os.mkfifo(deep / "a/pipe")
    names, lines = [*PATHS, str(deep / "a/pipe"), "../../pipe", "/dev/zero", "/dev/stdin", "."], []
    for number, name in enumerate(names):
        Path(f"{number}.pt").write_bytes(changed("logits.pt", teacher_files=[name]))
        lines.append(f"distill.py {DISTIL} out/{number} --logits {number}.pt".split())
    before = snapshot(deep)
    for name, end in zip(names, commands(lines), strict=True):
        name = os.path.relpath(name)
        if os.path.isfile(name):
            assert end.returncode == 2 and len(end.lines("err")) == 1, (name, end.lines("err"))
            assert f"{name}: not a .pt file that can be loaded safely" in end.lines("err")[0]
        else:
            assert end.returncode == 0, (name, end.lines("err"))
    assert snapshot(deep) == before


@pytest.mark.parametrize("data", ["..tsv", "...tsv", ".tsv", "-.tsv", "a b.tsv.gz", "..\\x.tsv", "[a].tsv"])
def test_a_dump_stays_in_its_folder_whatever_its_data_is_called(data, deep):
    content = Path("train.tsv").read_bytes()
    Path(data).write_bytes(gzip.compress(content) if data.endswith(".gz") else content)
    before = snapshot(deep)
    run("dump_logits", f"{DUMP} out --data", f"./{data}")
    assert snapshot(deep) == before
    assert len([path for path in Path("out").iterdir() if path.is_file() and path.suffix != ".lock"]) == 1


def test_a_grid_stays_in_its_folder_whatever_its_tokenizers_are_called():
    args = distill.parse_args([*DISTIL.split(), "out"])
    args.tokenizer = ["..", "/", "../x", "tok/../y", "~"]
    for name, _ in distill.grid_settings(args):
        assert "/" not in name and Path("out", name).resolve().parent == Path("out").resolve()
    args.tokenizer = ["tok", "a/tok"]
    with pytest.raises(UserError, match="would share the folder"):
        distill.grid_settings(args)
