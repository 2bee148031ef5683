"""Mutated files: readers and loaders give what can be used, or their documented error in a line; none hangs.

By default the same few examples are drawn each time. TORTURE=50 (`make torture`) draws 50 times as many,
others each time, and prints how many of each target were accepted and refused.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import resource
import shutil
import signal
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from helpers import run
from hostile import DISTIL, DUMP, TUNE, nested, repacked, saved

import distill
import runtime
import tasks
from data import training
from data.examples import read_examples, stream_examples, survey
from data.logits import fingerprints
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher, load_checkpoint

TORTURE = bool(os.environ.get("TORTURE"))
SECONDS = 60  # for one example, which takes some hundredths
GIGABYTES = 4  # of addresses that the process may take more than it has: a file of some kilobytes needs none
COUNTS = {}  # target: Counter of accepted and refused


def fuzz(examples: int, example) -> None:
    """Call example(rng) so often; hypothesis, which draws what rng gives, makes a failing one smaller."""
    hypothesis = pytest.importorskip("hypothesis")
    hypothesis.settings(max_examples=examples * (50 if TORTURE else 1), derandomize=not TORTURE,
                        database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))(
        hypothesis.given(rng=hypothesis.strategies.randoms(use_true_random=False))(example))()


class Hang(BaseException):
    """No Exception: the code under test may turn those into its own errors."""


@contextlib.contextmanager
def limits():
    """A time limit; what is printed is kept from the terminal, signal handlers are put back."""
    def late(number, frame):
        raise Hang(f"more than {SECONDS} seconds")

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def attempt(target: str, call, *args, begins: str = "") -> None:
    """Call it and count whether it is content or has its documented error; anything else is a failure."""
    outcome = "accepted"
    try:
        with limits():
            call(*args)
    except (UserError, StudentError) as error:
        outcome = "refused"
        assert len(str(error).splitlines()) == 1 and str(error).startswith(begins), repr(str(error))
    COUNTS.setdefault(target, Counter())[outcome] += 1


def mutate_bytes(rng, data: bytes) -> bytes:
    """Up to four changes of spans, most of them short."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randint(0, len(data)), rng.choice([1, 1, 1, 2, 4, 16, 300])
        span, kind = data[at : at + length], rng.randint(0, 7)
        if kind == 0 and span:
            data[at] ^= 1 << rng.randint(0, 7)
        elif kind == 1:
            data[at : at + length] = bytes(rng.randint(0, 255) for _ in span[:16])
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = bytes(rng.randint(0, 255) for _ in range(min(length, 16)))
        elif kind == 4:
            data[at:at] = span * rng.choice([1, 1, 50])
        elif kind == 5:
            del data[at:]
        elif kind == 6:  # a span from elsewhere
            there = rng.randint(0, len(data))
            data[at : at + length] = data[there : there + length]
        else:
            data[at:at] = rng.choice([b"\0", b"\xff", b"\n", b"\r", b"\r\n", b"\t", b'"', b",", b"{", b"\\",
                                      b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x80\x02",
                                      b"PK\x03\x04", b"PK\x05\x06", b"PK\x01\x02", b"\x1f\x8b\x08"])
    return bytes(data)


# ---- .pt: other values in them, under right checksums ------------------------------------------------------


def places(value, found=None) -> list:
    """(container, key) of everything in nested dicts and lists."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        places(item, found)
    return found


VALUES = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**40, 2**63, 10**30, 10**600, -(2**70), 0.5, 1e308,
    float("nan"), float("inf"), "", "x", "a\nb", "\ud800", "0", "가" * 5000, "../../x", "fp32", [], {}, (),
    [0, 1], ["0", "1"], ["0", 1], {"a": 1}, {1: "x"}, [None] * 12, nested(8), nested(60)]
TENSORS = [  # made when they are needed
    lambda: torch.tensor(1.0), lambda: torch.ones(0), lambda: torch.ones(3), lambda: torch.ones(12, 2),
    lambda: torch.ones(12, 3), lambda: torch.zeros(12, 2).double(), lambda: torch.zeros(12, 2).half(),
    lambda: torch.zeros(12, 2).bfloat16(), lambda: torch.tensor([2, 1]), lambda: torch.tensor(True),
    lambda: torch.ones(2, dtype=torch.complex64), lambda: torch.zeros(5, dtype=torch.uint8),
    lambda: torch.full((12, 2), torch.nan), lambda: torch.full((12, 2), 1e300, dtype=torch.double),
    lambda: torch.zeros(1).expand(10**6, 10**6), lambda: torch.zeros(1, dtype=torch.uint8).expand(10**11),
    lambda: torch.eye(3).to_sparse(), lambda: torch.ones(3, device="meta"),
    lambda: torch.nn.Parameter(torch.ones(12, 2)), lambda: torch.ones(2, 12).T,
    lambda: torch._neg_view(torch.ones(12, 2)), lambda: torch.ones(24, 2)[::2]]
LIKE = [  # a tensor of another shape, type or size
    lambda t: t[:-1], lambda t: t.flatten(), lambda t: t.movedim(0, -1), lambda t: torch.cat([t, t]),
    lambda t: t.double(), lambda t: t.half(), lambda t: t.bool(), lambda t: t * torch.nan, lambda t: t[None],
    lambda t: t.float() * 1e38, lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t + 1,
    lambda t: t.flatten()[:1].expand(t.shape)]


def another(rng, value):
    """A value like this one, or of another kind."""
    like = rng.randint(0, 1)
    if like and isinstance(value, (int, float)):
        return rng.choice([value + 1, value - 1, -value, value * 2, float(value), str(value)])
    if like and isinstance(value, str) and value:
        at = rng.randint(0, len(value) - 1)
        return rng.choice([value[:at], f"{value[:at]}영{value[at + 1:]}", f"{value}\n", value * 2])
    if like and torch.is_tensor(value):
        return rng.choice(LIKE)(value)
    if like and isinstance(value, list) and value:
        return rng.choice([value[:-1], value[::-1], value + value, [*value, "x"], tuple(value)])
    if like and isinstance(value, dict):
        return rng.choice([list(value), list(value.values()), dict.fromkeys(map(str, value), 0)])
    return rng.choice(VALUES) if rng.randint(0, 1) else rng.choice(TENSORS)()


def mutate_values(rng, artifact) -> dict:
    """One or two values deep in an artifact replaced, removed, renamed or exchanged."""
    if torch.is_tensor(artifact):
        return another(rng, artifact)
    found = places(artifact)
    for container, key in [rng.choice(found) for _ in range(rng.choice([1, 1, 1, 2]))]:
        kind, other = rng.randint(0, 9), rng.choice(found)
        # The first of two changes may have taken it out; not every tensor or number has each of the forms.
        with contextlib.suppress(LookupError, RuntimeError, OverflowError):
            if key == "tokenizer" and container is artifact and kind < 8:
                edit_tokenizer(artifact, lambda value: replace_any(rng, value))
            elif kind == 0:
                del container[key]
            elif kind == 1 and isinstance(container, dict):
                container[rng.choice(["x", "", 0, "weights", "\n"])] = container.pop(key)
            elif kind == 2:
                container[key], other[0][other[1]] = other[0][other[1]], container[key]
            else:
                container[key] = another(rng, container[key])
    return artifact


def edit_tokenizer(artifact, edit) -> None:
    """Call edit(the value of the tokenizer's JSON), which a student.pt has packed, as a list of pieces."""
    tokenizer = artifact["tokenizer"]
    packed = torch.is_tensor(tokenizer)
    value = json.loads(zlib.decompress(bytes(tokenizer.tolist())) if packed else tokenizer)
    edit(value)
    text = json.dumps(value)
    pack = bytearray(zlib.compress(text.encode()))
    artifact["tokenizer"] = torch.frombuffer(pack, dtype=torch.uint8) if packed else text


def replace_any(rng, value) -> None:
    container, key = rng.choice(places(value))
    container[key] = rng.choice([None, True, 0, -1, 5, 10**6, 2**40, 0.5, "", "x", "[PAD]", "가", [], {}])


def mutate_pt(rng, data: bytes) -> bytes:
    """A .pt with damaged bytes, with a damaged pickle under right checksums, or with other values in it."""
    kind, archive = rng.randint(0, 9), data.startswith(b"PK")
    if kind < 2 or (kind < 4 and not archive):
        return mutate_bytes(rng, data)
    if kind == 2:
        return repacked(data, lambda name, old: mutate_bytes(rng, old) if name.endswith("data.pkl") else old)
    if kind == 3:
        return repacked(data, lambda name, old: old if rng.randint(0, 3) else mutate_bytes(rng, old))
    return saved(mutate_values(rng, torch.load(io.BytesIO(data), weights_only=True)),
                 _use_new_zipfile_serialization=archive if kind < 9 else not archive)


# ---- real files --------------------------------------------------------------------------------------------

TEXTS = ["이 영화 재밌다", "", "별로 7점 zz 👍"]
LAST, BLOCK = "half/students/tiny-tok/last.pt", "half/logits/.train.blocks/block"  # see block()


@pytest.fixture(scope="module", autouse=True)
def here(small, tmp_path_factory):
    """A copy of the small kit as the working folder, and a limit on memory."""
    patch = pytest.MonkeyPatch()
    patch.chdir(shutil.copytree(small, tmp_path_factory.mktemp("fuzz") / "here"))
    patch.setattr(os, "fsync", lambda file: None)  # what matters here is not the disk
    before = resource.getrlimit(resource.RLIMIT_AS)
    if Path("/proc/self/statm").exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + GIGABYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    patch.undo()


def work(data: bytes, file: str, folder: str | None = None) -> Path:
    """`data` as work/FILE, where all else is a copy of the folder."""
    shutil.rmtree("work", ignore_errors=True)
    shutil.copytree(folder, "work") if folder else Path("work").mkdir()
    path = Path("work", file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def block() -> Path:
    """The one that the killed dump has finished."""
    return next(Path("half/logits/.train.blocks").glob("*.pt"))


# ---- loaders of .pt ----------------------------------------------------------------------------------------


def predicts(model) -> None:
    """A model that was loaded can be used."""
    found = model.predict(TEXTS)
    assert found.shape == (len(TEXTS), len(model.label_names)) and found.dtype == torch.float32
    assert set(fingerprints(model)) == {"weights", "tokenizer", "max_length"}


def load_student(data):
    predicts(Student.load(work(data, "a.pt")))
    predicts(distill.load("work/a.pt"))


def load_teacher(data):
    predicts(Teacher.load(work(data, "a.pt")))
    predicts(distill.load("work/a.pt"))


def read_training_set(data):
    flags = DISTIL.replace("logits.pt", str(work(data, "logits.pt")))
    Path("work/logits.pt").with_name("teacher.pt").symlink_to("../teacher.pt")
    args = distill.parse_args([*flags.split(), "unused"])
    found = training.read_training_set(args, tasks, distill.load)
    assert found.logits[0].values.shape == (12, 2) and sorted(found.task.names) == ["0", "1"]


def evaluate_logits(data):
    work(data, "logits.pt")
    run("evaluate", "--data train.tsv --logits work/logits.pt --errors work/mistakes.tsv")
    assert Path("work/mistakes.tsv").read_text("utf-8").startswith("model\trow\t")


def dump_grown(data):
    work(data, "more.pt")
    run("dump_logits", f"{DUMP} work --data more.tsv")
    assert torch.load("work/more.pt", weights_only=True)["logits"].shape == (16, 2)


def check_logits(data):
    work(data, "train.pt")
    run("dump_logits", f"{DUMP} work --check 3")


def continue_dump(data):
    work(data, str(block().relative_to("half/logits")), "half/logits")
    run("dump_logits", f"{DUMP} work")
    assert torch.load("work/train.pt", weights_only=True)["logits"].shape == (12, 2)


def continue_distill(data):
    work(data, "tiny-tok/last.pt", "half/students")
    run("distill", f"{DISTIL} work")
    predicts(Student.load("work/tiny-tok/student.pt"))


def summarise(data):
    work(data, "other/last.pt")
    for seed in (1, 2):
        Path(f"work/{seed}").mkdir()
        state = torch.load("finished.pt", weights_only=True)
        state["made_by"]["arguments"]["seed"] = seed
        torch.save(state, f"work/{seed}/last.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "warn", refuse)  # a student that is left out of the summary
        distill.write_summary(Path("work"), "accuracy")


def refuse(text):
    raise UserError(text)


def continue_finetune(data):
    work(data, "last.pt", "half/teacher")
    run("finetune_teacher", f"{TUNE} work")
    predicts(Teacher.load("work/teacher.pt"))


def load_published(data):
    work(data, "pytorch_model.bin", "bert")
    predicts(load_checkpoint("work", ["0", "1"], 16)[0].eval())


LOADERS = {  # what is loaded: (the file, what loads it, examples by default)
    "student.pt": ("student.pt", load_student, 40),
    "student.int8.pt": ("int8.pt", load_student, 30),
    "teacher.pt": ("teacher.pt", load_teacher, 40),
    "logits, by distill.py": ("logits.pt", read_training_set, 40),
    "logits, by evaluate.py": ("logits.pt", evaluate_logits, 10),
    "logits of a file that grew": ("logits.pt", dump_grown, 15),
    "logits, by --check": ("logits.pt", check_logits, 15),
    "a block of a dump": (BLOCK, continue_dump, 15),
    "last.pt of distill.py": (LAST, continue_distill, 20),
    "last.pt of a finished run": ("finished.pt", continue_distill, 15),
    "last.pt for summary.tsv": ("finished.pt", summarise, 30),
    "last.pt of finetune_teacher.py": ("half/teacher/last.pt", continue_finetune, 15),
    "pytorch_model.bin": ("bert/pytorch_model.bin", load_published, 25),
    "old pytorch_model.bin": ("old.bin", load_published, 20),
}


def good(target: str) -> bytes:
    file = LOADERS[target][0]
    return (block() if file == BLOCK else Path(file)).read_bytes()


@pytest.mark.optional
@pytest.mark.filterwarnings("ignore")  # PyTorch's, of the odd tensors that are made here
@pytest.mark.parametrize("target", LOADERS)
def test_a_mutated_pt_is_refused_in_one_line_or_can_be_used(target):
    _, call, examples = LOADERS[target]
    data = good(target)
    attempt(target, call, data)
    assert COUNTS[target]["accepted"]
    fuzz(examples, lambda rng: attempt(target, call, mutate_pt(rng, data)))


def put(*path_and_value):
    """A change of an artifact: the value goes to the end of the path."""
    def change(artifact):
        *path, key, value = path_and_value
        for name in path:
            artifact = artifact[name]
        artifact[key] = value
    return change


def tokenizer_with(*path_and_value):
    return lambda artifact: edit_tokenizer(artifact, put(*path_and_value))


STEPS = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(()), "exp_avg_sq": torch.zeros(())}
FOUND = {  # by fuzzing, each once ended in a traceback, a second line, a hang, or a prediction of nonsense
    "student.pt": [
        put("kind", "student\n"), put("config", "pad_id", True), put("config", "hidden_dim", nested(60)),
        put("label_names", nested(60)), put("tokenizer", torch.ones(1, dtype=torch.uint8).expand(10**10)),
        put("weights", "embedding.weight", torch.ones(3, device="meta")),
        tokenizer_with("model", "vocab", {"[PAD]": 0, "[UNK]": 10**6}),
        tokenizer_with("model", "unk_token", "x")],
    "teacher.pt": [
        put("config", "layer_norm_eps", [1]), put("config", "pad_id", 10**6),
        put("config", "hidden_dropout", "x"), put("config", "hidden_size", 2**62), put("max_length", 5.5),
        put("max_length", -1), put("label_names", {"0": 0, "1": 1}),
        tokenizer_with("model", "vocab", "[UNK]", 10**6),
        tokenizer_with("post_processor", "special_tokens", "[CLS]", "ids", [10**6])],
    "logits, by distill.py": [
        put("teachers", [{"weights": torch.ones(2)}]), put("teacher_files", [torch.ones(2)]),
        put("task", "classification\n"), put("x", nested(60)),
        lambda artifact: artifact.update(texts="x", logits=torch.tensor(1.0))],
    "logits, by evaluate.py": [put("label_names", [torch.ones(12, 2), "1"])],
    "logits of a file that grew": [
        put("teachers", [1]), put("teachers", 7), put("logits", torch.ones(12, 3)), put("precision", 7)],
    "logits, by --check": [put("teachers", ["x"]), put("precision", None)],
    "last.pt of distill.py": [
        put("at", {}), put("at", "epoch", "x"), put("at", "step", -1), put("at", "best", {}),
        put("at", "log", 0), put("at", torch.ones(3)), put("precision", torch.ones(2)),
        put("at", "finished", torch.ones(3)), put("at", "best", torch.ones(2)), put("at", "best", "x", "y"),
        put("made_by", "arguments", "clip", torch.ones(2)),
        put("optimizer", "state", 0, STEPS), put("optimizer", "param_groups", 0, "maximize", 0.0),
        put("optimizer", "param_groups", 0, "amsgrad", True)],
    "last.pt for summary.tsv": [
        put("at", {}), put("at", torch.ones(3)), put("at", "best", {}), put("at", "best", []),
        put("at", "best", "valid_accuracy", torch.ones(3)), put("made_by", {}), put("weights", [1])],
    "last.pt of finetune_teacher.py": [
        put("optimizer", "param_groups", 0, "peak", None), put("optimizer", "state", 0, STEPS),
        lambda artifact: artifact["optimizer"]["param_groups"][0].pop("betas")],
    "pytorch_model.bin": [put("x", nested(60)), put("bert.embeddings.LayerNorm.bias", torch.ones(8).long())],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", FOUND)
def test_what_fuzzing_has_found_before_is_refused(target):
    for number, change in enumerate(FOUND[target]):
        artifact = torch.load(io.BytesIO(good(target)), weights_only=True)
        change(artifact)
        before = COUNTS.get(target, Counter())["refused"]
        attempt(target, LOADERS[target][1], saved(artifact))
        assert COUNTS[target]["refused"] == before + 1, number


# ---- readers of tables -------------------------------------------------------------------------------------

ROWS = [["text", "text2", "label", "id"],
        ["이 영화 \"정말\" 재밌다", "최고, 강추", "긍정", "1"], ["", "  ", "", "2"],
        ["줄\u2028바꿈 👍", "그냥 그렇다", "0", "세 번째"], ["노잼 ㅠㅠ", "돈 아까움", "부정", "4"],
        ["재밌다", "또 본다", "긍정", "5"], ["별로", "지루", "부정", "6"], ["café", "돈", "부정", ""]]
CELLS = ["", " ", "\ufeff", '"', '""', 'a"b', "a\tb", "a,b", "a\nb", "\r", "a\rb", "\u2028", "\x85", "\x1a",
         "\0", "text", "document", "label", "0", "-0", "긍정", "가" * 50_000, "𠮷", "\u200b", "\\", "'"]
LINES = ["", "{}", "[]", "null", "NaN", "1" * 5000, '{"text": 1e999}', "[" * 10**5,
         '{"text": "\\ud800", "text2": "가", "label": "0", "id": "1"}',
         '{"text": "가", "text": "나", "label": null}', '{"text": "가", "text2": "", "label": true, "id": 7}',
         '{"text": "가", "label": 1.0}', '{"text": "\\u0000"}', '{"text": "가"} {"text": "나"}', "\ufeff{}"]
ENDINGS = [".tsv", ".txt", ".csv", ".csv", ".jsonl", ".jsonl", ".TSV"]


def written(rows, ending: str, line_end: str, bom: bool) -> bytes:
    """A table in the format of the ending."""
    if ending == ".csv":
        file = io.StringIO()
        csv.writer(file, lineterminator=line_end).writerows(rows)
        text = file.getvalue()
    elif ending == ".jsonl":
        lines = [dict(zip(rows[0], row, strict=False)) for row in rows[1:]] if rows else []
        text = "".join(json.dumps(line, ensure_ascii=False) + line_end for line in lines)
    else:
        text = "".join("\t".join(row) + line_end for row in rows)
    return ("\ufeff" * bom + text).encode("utf-8", "surrogatepass")


def mutate_rows(rng, rows) -> list:
    """Cells replaced, rows and columns removed, doubled or exchanged."""
    rows = [list(row) for row in rows]
    for _ in range(rng.randint(0, 3)):
        i, kind = rng.randint(0, len(rows) - 1), rng.randint(0, 9)
        if kind == 0 and len(rows) > 1:
            del rows[i]
        elif kind == 1:
            rows.insert(i, list(rng.choice(rows)))
        elif kind == 2 and rows[i]:
            del rows[i][rng.randint(0, len(rows[i]) - 1)]
        elif kind == 3:
            column = rng.randint(0, 3)
            rows = [row[:column] + row[column + 1 :] for row in rows]
        elif rows[i]:
            rows[i][rng.randint(0, len(rows[i]) - 1)] = rng.choice(CELLS)
    return rows


def mutate_table(rng) -> tuple[str, bytes]:
    """(name, content) of a table, mutated before or after it is written, before or after it is packed."""
    ending, bom, packed = rng.choice(ENDINGS), bool(rng.randint(0, 1)), rng.randint(0, 3)
    level = rng.randint(0, 4)  # what is mutated: 0 nothing, 1 rows, 2 lines of JSON, 3 bytes, 4 packed bytes
    rows = mutate_rows(rng, ROWS) if level else ROWS
    data = written(rows, ending, rng.choice(["\n", "\r\n"]), bom)
    if level == 2 and ending == ".jsonl":
        lines = data.split(b"\n")
        lines.insert(rng.randint(0, len(lines)), rng.choice(LINES).encode())
        data = b"\n".join(lines)
    if level == 3:
        data = mutate_bytes(rng, data)
    if packed:
        return f"work/a{ending}", data
    data = gzip.compress(data, rng.choice([0, 9]), mtime=0) * rng.choice([1, 1, 2])
    return f"work/a{ending}.gz", mutate_bytes(rng, data) if level == 4 else data


def read_table(path: str) -> None:
    """Three readers have the same rows or the same error; rows are whole, and are text."""
    outcomes = []
    for read in (lambda: list(stream_examples(path, chunk=3)), lambda: read_examples(path),
                 lambda: survey(path)):
        try:
            outcomes.append(read())
        except UserError as error:
            outcomes.append(error)
    if any(isinstance(outcome, UserError) for outcome in outcomes):
        assert len(set(map(str, outcomes))) == 1, outcomes
        raise outcomes[0]
    parts, whole, found = outcomes
    assert len(whole) > 0 and list(whole.lines) == sorted(set(whole.lines))
    for name in ("texts", "texts2", "answers", "ids"):
        column = getattr(whole, name)
        assert column is None or (len(column) == len(whole) and all(type(cell) is str for cell in column))
        "".join(column or ()).encode()  # UnicodeEncodeError for what is no text
        assert list(chain.from_iterable(getattr(part, name) or () for part in parts)) == (column or [])
    assert found.rows == len(whole) and found.answers == Counter(filter(None, whole.answers or ()))
    assert found.pairs == (whole.texts2 is not None) and found.fingerprint == whole.fingerprint()


def split_table(path: str) -> None:
    """data.prepare's split: every row is in one of the files, which can be read."""
    run("data.prepare", f"split {path} --out work/out")
    written = [read_examples(f"work/out/{name}.tsv") for name in ("train", "valid", "test")]
    assert sum(map(len, written)) == len(read_examples(path))


@pytest.mark.optional
@pytest.mark.parametrize(("target", "read"), [("tables", read_table), ("data.prepare split", split_table)])
def test_a_mutated_table_is_read_whole_or_refused_with_its_name(target, read):
    def example(rng):
        name, data = mutate_table(rng)
        shutil.rmtree("work", ignore_errors=True)
        Path("work").mkdir()
        Path(name).write_bytes(data)
        attempt(target, read, name, begins=f"{name}:")

    fuzz(100 if read is read_table else 40, example)


def test_json_of_any_depth_is_refused_with_its_line():
    """One depth can just be read, and no longer be written into a message."""
    path = Path("deep.jsonl")
    for depth in range(800, 1010, 1 if TORTURE else 7):
        for value in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            path.write_text(f'{{"text": "가"}}\n{{"text": {value}}}\n', encoding="utf-8")
            with pytest.raises(UserError, match=r"^deep.jsonl:2: "):
                survey(path)


# ---- what was run ------------------------------------------------------------------------------------------


@pytest.mark.optional
def test_every_target_had_files_that_it_takes_and_files_that_it_refuses(capsys):
    if TORTURE:
        with capsys.disabled():
            print(f"\n{'fuzzed':31}{'examples':>9}{'accepted':>9}{'refused':>9}")
            for target, counts in COUNTS.items():
                print(f"{target:31}{counts.total():9,}{counts['accepted']:9,}{counts['refused']:9,}")
    for target, counts in COUNTS.items():
        assert min(counts["accepted"], counts["refused"]) > 0.01 * counts.total(), (target, counts)
