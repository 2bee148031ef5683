"""Mutated files: a reader or loader gives what can be used, or its documented error in one line; it never hangs.

`make test` draws the same examples each time. TORTURE=50 (`make torture`) draws 20 times as many, others each
time, and prints how many of each target were accepted and refused.
"""

import contextlib
import copy
import csv
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import zipfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill
import dump_logits
import evaluate
import finetune_teacher
import runtime
import train_tokenizer
from data import prepare
from data.examples import read_examples, stream_examples, survey
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher, load_checkpoint, published_names

TORTURE = bool(os.environ.get("TORTURE"))
SECONDS = 20  # for one example, which takes some thousandths
MEGABYTES = 1000  # by which the process may grow, whatever the files claim
COUNTS = {}  # target: Counter of accepted and refused


def fuzz(examples: int):
    """A test's only argument is a random.Random whose draws hypothesis shrinks when it finds a failure."""
    def decorate(test):
        return settings(max_examples=examples * (20 if TORTURE else 1), derandomize=not TORTURE, database=None,
                        deadline=None, suppress_health_check=list(HealthCheck))(
            given(st.randoms(use_true_random=False))(test))
    return decorate


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


def attempt(target: str, call, *args):
    """(what `call` returns, None), or (None, the text of its documented error); anything else is a failure."""
    counts = COUNTS.setdefault(target, Counter())
    try:
        with limits():
            value, text = call(*args), None
    except (UserError, StudentError) as error:
        value, text = None, str(error)
        assert text and len(text.splitlines()) == 1, repr(text)
    counts["accepted" if text is None else "refused"] += 1
    return value, text


# ---- mutations ---------------------------------------------------------------------------------------------


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
                                      b"PK\x03\x04", b"PK\x05\x06", b"PK\x01\x02"])
    return bytes(data)


def places(value, found=None):
    """(container, key) of everything in nested dicts and lists."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        places(item, found)
    return found


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


VALUES = [  # each is called, so that no two examples share a tensor
    lambda: None, lambda: True, lambda: False, lambda: 0, lambda: 1, lambda: -1, lambda: 7, lambda: 2**31,
    lambda: 2**40, lambda: 2**63, lambda: 10**30, lambda: 10**600, lambda: -(2**70), lambda: 0.5, lambda: 1e308,
    lambda: float("nan"), lambda: float("inf"), lambda: "", lambda: "x", lambda: "a\nb", lambda: "\ud800",
    lambda: "0", lambda: "가" * 5000, lambda: "../../x", lambda: "fp32", lambda: [], lambda: {}, lambda: (),
    lambda: [0, 1], lambda: ["0", "1"], lambda: ["0", 1], lambda: {"a": 1}, lambda: {1: "x"}, lambda: nested(8),
    lambda: nested(60), lambda: [None] * 12,
]
TENSORS = [
    lambda: torch.tensor(1.0), lambda: torch.ones(0), lambda: torch.ones(3), lambda: torch.ones(12, 2),
    lambda: torch.ones(12, 3), lambda: torch.zeros(12, 2).double(), lambda: torch.zeros(12, 2).half(),
    lambda: torch.zeros(12, 2).bfloat16(), lambda: torch.tensor([2, 1]), lambda: torch.tensor(True),
    lambda: torch.ones(2, dtype=torch.complex64), lambda: torch.zeros(5, dtype=torch.uint8),
    lambda: torch.full((12, 2), float("nan")), lambda: torch.full((12, 2), 1e38).double() ** 2,
    lambda: torch.zeros(1).expand(10**6, 10**6), lambda: torch.zeros(1, dtype=torch.uint8).expand(10**11),
    lambda: torch.eye(3).to_sparse(), lambda: torch.ones(3, device="meta"),
    lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    lambda: torch.nn.Parameter(torch.ones(12, 2)), lambda: torch.ones(12, 2, requires_grad=True),
    lambda: torch.ones(2, 12).T, lambda: torch._neg_view(torch.ones(12, 2)), lambda: torch.ones(12, 2)[::2],
]


def another(rng, value):
    """A value like this one, or of another kind."""
    if rng.randint(0, 1):
        if isinstance(value, (int, float)):
            return rng.choice([value + 1, value - 1, -value, value * 2, float(value), str(value)])
        if isinstance(value, str) and value:
            at = rng.randint(0, len(value) - 1)
            return rng.choice([value[:at], value[:at] + "영" + value[at + 1 :], value + "\n", value * 2, value[::-1]])
        if torch.is_tensor(value):
            return rng.choice([
                lambda: value[:-1] if value.dim() else value[None], lambda: value.flatten(), lambda: value.T,
                lambda: torch.cat([value, value]) if value.dim() else value + 1, lambda: value.double(),
                lambda: value.half(), lambda: value.bool(), lambda: value * float("nan"), lambda: value.to("meta"),
                lambda: value.float() * 1e38, lambda: value.to_sparse(), lambda: value[None], lambda: value.float(),
                lambda: value.flatten()[:1].expand(value.shape) if value.dim() else value])()
        if isinstance(value, list) and value:
            return rng.choice([value[:-1], value[::-1], value + value, [*value, "x"], tuple(value)])
        if isinstance(value, dict):
            return rng.choice([list(value), list(value.values()), {str(key): 0 for key in value}])
    return rng.choice(VALUES)() if rng.randint(0, 1) else rng.choice(TENSORS)()


def mutate_values(rng, artifact) -> dict:
    """One or two values deep in an artifact replaced, removed, renamed or exchanged."""
    found = places(artifact)
    for _ in range(rng.choice([1, 1, 1, 2]) if found else 0):
        container, key = rng.choice(found)
        if isinstance(container, dict) and key not in container or isinstance(container, list) and key >= len(container):
            continue  # the first change took it out
        if key == "tokenizer" and container is artifact:
            container[key] = mutate_tokenizer(rng, container[key])
            continue
        kind = rng.randint(0, 9)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[rng.choice(["x", "", 0, "weights", "\n"])] = container.pop(key)
        elif kind == 2:
            other, there = rng.choice(found)
            container[key], other[there] = other[there], container[key]
        else:
            container[key] = another(rng, container[key])
    return artifact


def mutate_tokenizer(rng, tokenizer):
    """A tokenizer's JSON, packed as in student.pt or not, with a value of it replaced."""
    if rng.randint(0, 3) == 0 or not torch.is_tensor(tokenizer) and not str(tokenizer).startswith("{"):
        return another(rng, tokenizer)
    packed = torch.is_tensor(tokenizer)
    settings = json.loads(zlib.decompress(bytes(tokenizer.tolist())) if packed else tokenizer)
    container, key = rng.choice(places(settings))
    kind = rng.randint(0, 4)
    if kind == 0:
        del container[key]
    else:
        container[key] = rng.choice([None, True, 0, -1, 5, 10**6, 2**40, 0.5, "", "x", "[PAD]", "가", [], {}, [0]])
    text = json.dumps(settings)
    return torch.frombuffer(bytearray(zlib.compress(text.encode())), dtype=torch.uint8) if packed else text


def repacked(data: bytes, change) -> bytes:
    """An archive with its members changed and the checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as new:
        for name in archive.namelist():
            new.writestr(name, change(name, archive.read(name)))
    return out.getvalue()


def mutate_pt(rng, data: bytes) -> bytes:
    """A .pt with damaged bytes, with a damaged pickle under right checksums, or with other values in it."""
    kind = rng.randint(0, 9)
    if kind < 2 or kind < 4 and not data.startswith(b"PK"):
        return mutate_bytes(rng, data)
    if kind == 2:
        return repacked(data, lambda name, old: mutate_bytes(rng, old) if name.endswith("data.pkl") else old)
    if kind == 3:
        return repacked(data, lambda name, old: mutate_bytes(rng, old) if rng.randint(0, 3) == 0 else old)
    file = io.BytesIO()
    artifact = torch.load(io.BytesIO(data), weights_only=True)
    torch.save(mutate_values(rng, artifact), file, _use_new_zipfile_serialization=kind < 9)
    return file.getvalue()


# ---- real files --------------------------------------------------------------------------------------------

TEXTS = ["이 영화 재밌다", "", "별로 7점 zz 👍"]
DISTIL = ["--train", "train.tsv", "--logits", "logits/train.pt", "--valid", "valid.tsv", "--tokenizer", "tok",
          "--size", "tiny", "--epochs", "2", "--device", "cpu", "--precision", "fp32", "--output-dir"]
TUNE = ["--train", "train.tsv", "--valid", "valid.tsv", "--scratch", "1,8,2", "--tokenizer", "tok", "--epochs", "2",
        "--device", "cpu", "--output-dir"]
DUMP = ["--teacher", "teacher/teacher.pt", "--device", "cpu", "--precision", "fp32", "--max-tokens", "1", "--data"]


def run(script, *flags):
    script.main(script.parse_args([str(flag) for flag in flags]))


def stopped(patch, count: int, script, *flags):
    """Run a script until it has saved `count` times."""
    save, calls = runtime.save, []

    def stopping(*args):
        save(*args)
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt

    patch.setattr(runtime, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(script, *flags)
    patch.setattr(runtime, "save", save)


@pytest.fixture(scope="module", autouse=True)
def kit(tmp_path_factory):
    """Small files that the scripts wrote, the working folder: interrupted runs in half/, `work` for mutated ones."""
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("fuzz"))
    rows = [f"이 영화 {'재밌다' if i % 2 else '별로'} {i % 7}점\t{i % 2}" for i in range(16)]
    for name, count in (("train", 12), ("more", 16), ("valid", 5)):
        Path(f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows[:count], ""]), encoding="utf-8")
    with limits():
        run(train_tokenizer, "--data", "train.tsv", "--output-dir", ".", "--vocab-size", 60, "--min-frequency", 1)
        Path("vocab_size_60").rename("tok")
        run(finetune_teacher, *TUNE, "teacher")
        run(dump_logits, *DUMP, "train.tsv")
        run(distill, *DISTIL, "students")
        stopped(patch, 3, finetune_teacher, *TUNE, "half/teacher")  # after the first epoch's last.pt
        stopped(patch, 2, distill, *DISTIL, "half/students")
        stopped(patch, 2, dump_logits, *DUMP, "train.tsv", "--output-dir", "half/logits")  # plan.pt, a shard
    teacher = Teacher.load("teacher/teacher.pt")
    weights, tensors = teacher.state_dict(), {}
    for ours, theirs in published_names(teacher.config).items():
        tensors.update(zip(theirs, weights[ours].chunk(len(theirs)), strict=True))
    config = teacher.config
    Path("bert").mkdir()
    torch.save(tensors, "bert/pytorch_model.bin")
    torch.save(tensors, "bert/legacy.bin", _use_new_zipfile_serialization=False)
    shutil.copy("tok/vocab.txt", "bert")
    Path("bert/config.json").write_text(json.dumps({
        "model_type": "bert", "vocab_size": config.vocab_size, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "pad_token_id": 0,
        "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02, "type_vocab_size": 2,
        "classifier_dropout": None, "id2label": {"0": "0", "1": "1"}}), encoding="utf-8")
    yield
    patch.undo()


def in_copy_of(folder, file, data: bytes) -> Path:
    """The folder `work`, as `folder` is, with `data` in one of its files."""
    shutil.rmtree("work", ignore_errors=True)
    shutil.copytree(folder, "work")
    Path("work", file).write_bytes(data)
    return Path("work", file)


def predictions(model) -> torch.Tensor:
    """What a model that was loaded gives: as many rows as texts, and none without its classes."""
    found = model.predict(TEXTS)
    assert found.shape == (len(TEXTS), len(model.label_names)) and found.dtype == torch.float32
    return found


# ---- .pt ---------------------------------------------------------------------------------------------------


def load_student(data):
    path = in_copy_of("students/tiny", "student.pt", data)
    predictions(Student.load(path))
    predictions(evaluate.load_model(str(path), "cpu"))


def load_teacher(data):
    path = in_copy_of("teacher", "teacher.pt", data)
    teacher = Teacher.load(path)
    predictions(teacher)
    assert set(teacher.fingerprints()) == {"weights", "tokenizer", "max_length"}
    predictions(evaluate.load_model(str(path), "cpu"))


def read_as_training_set(data):
    in_copy_of("logits", "train.pt", data)
    flags = list(DISTIL)
    flags[3] = "work/train.pt"
    found = distill.read_training_set(distill.parse_args([*flags, "unused"]))
    assert found.logits[0].values.shape == (12, 2) and found.label_names in (["0", "1"], ["1", "0"])


def append_to_logits(data):
    in_copy_of("logits", "train.pt", data).rename("work/more.pt")
    run(dump_logits, *DUMP, "more.tsv", "--output-dir", "work", "--append")
    assert torch.load("work/more.pt", weights_only=True)["logits"].shape == (16, 2)


def check_logits(data):
    in_copy_of("logits", "train.pt", data)
    run(dump_logits, *DUMP, "train.tsv", "--output-dir", "work", "--check", 3)


def resume_dump(file):
    def call(data):
        in_copy_of("half/logits", f".train.shards/{file}", data)
        run(dump_logits, *DUMP, "train.tsv", "--output-dir", "work", "--resume")
        assert torch.load("work/train.pt", weights_only=True)["logits"].shape == (12, 2)
    return call


def resume_distill(data):
    in_copy_of("half/students", "tiny/last.pt", data)
    run(distill, *DISTIL, "work", "--resume")
    Student.load("work/tiny/student.pt")


def resume_finetune(data):
    in_copy_of("half/teacher", "last.pt", data)
    run(finetune_teacher, *TUNE, "work", "--resume")
    Teacher.load("work/teacher.pt")


def load_published(data):
    in_copy_of("bert", "pytorch_model.bin", data)
    teacher, _ = load_checkpoint("work", ["0", "1"], 16)
    predictions(teacher.eval())


TARGETS = {  # name: (the file, what reads it, examples of `make test`)
    "student.pt": ("students/tiny/student.pt", load_student, 200),
    "teacher.pt": ("teacher/teacher.pt", load_teacher, 200),
    "logits for distill": ("logits/train.pt", read_as_training_set, 150),
    "logits for --append": ("logits/train.pt", append_to_logits, 60),
    "logits for --check": ("logits/train.pt", check_logits, 60),
    "plan.pt": ("half/logits/.train.shards/plan.pt", resume_dump("plan.pt"), 60),
    "a shard": ("half/logits/.train.shards/000000.pt", resume_dump("000000.pt"), 60),
    "last.pt of distill": ("half/students/tiny/last.pt", resume_distill, 60),
    "last.pt of finetune_teacher": ("half/teacher/last.pt", resume_finetune, 60),
    "pytorch_model.bin": ("bert/pytorch_model.bin", load_published, 100),
    "old pytorch_model.bin": ("bert/legacy.bin", load_published, 100),
}
