"""bench/gpu.sh in its small form, on the CPU: what it measures and leaves behind, what may fail."""

import gzip
import io
import json
import math
import os
import re
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import read
from torch.autograd import DeviceType

from bench import gpu
from runtime import UserError
from student import SIZES, Student
from teacher import Teacher

ROOT = Path(__file__).parent.parent
PARTS = ["chain", "equality", "epochs", "pretrain", "teacher", "students"]

# Python with PyTorch takes seconds to start, and gpu.sh starts it 18 times: here a process that has imported
# PyTorch forks instead. `python` hands it the command with standard input, output and error.
SERVER = """
import json, os, runpy, socket, sys, traceback
import numpy, tokenizers, torch, torch._dynamo

def run(folder, environment, argv):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    module, sys.argv = argv[0] == "-m", argv[argv[0] == "-m":]
    sys.path[0] = folder if module else os.path.dirname(os.path.abspath(argv[0]))
    try:
        if module:
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        elif argv[0] == "-":
            exec(sys.stdin.read(), {"__name__": "__main__"})
        else:
            runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("ready", flush=True)
    while True:
        peer, _ = server.accept()
        if os.fork() == 0:
            command, streams, _, _ = socket.recv_fds(peer, 2**20, 3)
            for i, stream in enumerate(streams):
                os.dup2(stream, i)
            code = run(*json.loads(command))
            sys.stdout.flush()
            sys.stderr.flush()
            peer.send(str(code).encode())
            os._exit(code)
        peer.close()
"""
CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    socket.send_fds(server, [json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()], [0, 1, 2])
    sys.exit(int(server.recv(9) or 1))
"""
NVIDIA_SMI = """#!/bin/sh
while echo 40 && echo 41; do sleep 0.05; done
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with `python`, which forks, and an nvidia-smi that sees 40 and 41 %."""
    folder = tmp_path_factory.mktemp("programs")
    path = str(folder / "socket")
    texts = {"python": CLIENT.format(python=sys.executable, path=path), "nvidia-smi": NVIDIA_SMI}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(stat.S_IRWXU)
    with subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"ready\n"
        yield folder
        server.kill()


def gpu_sh(programs, data, out, *parts, **environment):
    """(exit code, rows of the table as (part, what, figure), standard output) of a run in the small form."""
    done = subprocess.run(
        ["bash", str(ROOT / "bench/gpu.sh"), str(data), str(out), *parts], capture_output=True, text=True,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": "python", "SMALL": "1",
                          "WORK": f"{out}.work", **environment})
    table = Path(out, "table.md")
    lines = table.read_text("utf-8").splitlines() if table.exists() else []
    assert lines[:2] in ([], ["| part | what | figure |", "|---|---|---|"])
    return done.returncode, [tuple(re.split(r" ?\| ?", line)[1:4]) for line in lines[2:]], done.stdout


def ends(rows) -> list[tuple[str, str]]:
    """(part, how it ended) in the order of the table."""
    return [(part, what.strip("*")) for part, what, _ in rows if what.startswith("**")]


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    """All parts on the sample: the exit code, the rows of the table, and the folder of what they made."""
    folder = tmp_path_factory.mktemp("whole")
    code, rows, _ = gpu_sh(programs, ROOT / "data/sample", folder / "out")
    with tarfile.open(fileobj=io.BytesIO(b"".join(
            path.read_bytes() for path in sorted((folder / "out").glob("results.tgz.*"))))) as archive:
        archive.extractall(folder, filter="data")
    return code, rows, folder / "results"


def test_every_part_is_ok_and_has_its_figures(whole):
    code, rows, _ = whole
    assert ends(rows) == [(part, "ok") for part in PARTS] and code == 0
    figures = {part: {} for part in ["machine", *PARTS]}
    for part, what, figure in rows:
        figures[part][what] = figure
    assert figures["machine"]["PyTorch"] == torch.__version__ and {"GPU", "date"} <= set(figures["machine"])
    assert {"small/student.pt", "teacher/teacher.pt"} < set(figures["chain"])
    differences = [figure for figure in figures["equality"].values() if "apart" in figure]
    limits = [0.001, 0.001, 0.001, 0.02, 0.001, 0.02]
    assert differences == [f"0.0e+00 apart, within {limit}" for limit in limits]
    for size in SIZES:
        found = re.match(r"(\d+\.\d\d) s per epoch of 117 reviews, GPU (\d+) %, validation accuracy [01]\.",
                         figures["epochs"][f"{size}, --max-tokens 512"])
        assert float(found[1]) > 0 and 40 <= int(found[2]) <= 41
        assert re.fullmatch(r"accuracy \d+\.\d\d%", figures["students"][f"students/{size}.pt"])
    for tokens in (128, 256, 512):
        assert re.match(r"\d+\.\d\d ms per step; most CPU time: \S+ \d+%, ",
                        figures["epochs"][f"base, --max-tokens {tokens}, 2 steps"])
    assert "loss" in figures["pretrain"]["0.08 minutes"] and "accuracy" in figures["teacher"]["epoch 1/1"]
    files = {part: figures[part]["**ok**"].split("; ")[1].split() for part in PARTS[2:]}
    assert {"encoder/config.json", "encoder/pytorch_model.bin"} < set(files["pretrain"])
    assert files["teacher"] == ["logits/train.pt", "logits/unlabeled.pt", "logits/valid.pt", "teacher.pt"]
    assert set(files["students"]) > {f"students/{size}.pt" for size in SIZES}


def test_what_the_parts_made_comes_out_and_can_be_used(whole):
    _, _, results = whole
    encoder, teacher = read(results / "encoder/pytorch_model.bin"), Teacher.load(results / "teacher.pt")
    assert {tensor.dtype for tensor in encoder.values()} == {torch.float16}
    assert json.loads((results / "encoder/config.json").read_text("utf-8"))["hidden_size"] == 32
    assert teacher.config.hidden_size == 32  # it is the encoder that was pretrained before
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in teacher.state_dict().values())
    for name, rows in (("train", 57), ("unlabeled", 60), ("valid", 3)):
        logits = read(results / f"logits/{name}.pt")["logits"]
        assert logits.shape == (rows, 2) and logits.dtype == torch.float16
    for size, dimensions in SIZES.items():
        config = Student.load(results / f"students/{size}.pt").config
        assert (config.embedding_dim, config.hidden_dim) == dimensions
    assert {path.name for path in (results / "logs").iterdir()} == set(PARTS)
    assert "aten::" in (results / "profiles/base-512.txt").read_text("utf-8")


def test_a_part_that_fails_is_named_and_the_next_one_runs(programs, tmp_path):
    """On files as NSMC has them, packed, and without unlabelled ones. It can be repeated."""
    data = tmp_path / "data"
    data.mkdir()
    text = (ROOT / "data/sample/train.tsv").read_text("utf-8").replace("id\ttext\t", "id\tdocument\t")
    (data / "train.tsv.gz").write_bytes(gzip.compress(text.encode()))
    code, rows, _ = gpu_sh(programs, data, tmp_path / "out", "pretrain", "epochs", PRETRAIN="--mask-rate 7",
                           PLAN="tiny:512")
    (_, epochs), (_, pretrain) = ends(rows)  # in the order of all parts
    assert code == 1 and epochs == "ok" and pretrain.startswith("FAILED: ") and "--mask-rate" in pretrain
    [figure] = [figure for part, what, figure in rows if what == "tiny, --max-tokens 512"]
    assert "of 57 reviews" in figure
    for _ in range(2):
        code, again, _ = gpu_sh(programs, data, tmp_path / "out", "pretrain", MINUTES="0.01")
        assert code == 0 and ends(again) == [("epochs", "ok"), ("pretrain", "ok")]
        assert [row for row in again if row[0] == "epochs"] == [row for row in rows if row[0] == "epochs"]


def test_parts_after_the_deadline_are_named_and_pieces_are_small(programs, tmp_path):
    (tmp_path / "out.work/results").mkdir(parents=True)
    content = os.urandom(20 * 2**20)
    (tmp_path / "out.work/results/large").write_bytes(content)
    code, rows, _ = gpu_sh(programs, ROOT / "data/sample", tmp_path / "out", "students", DEADLINE="0")
    assert code == 1 and ends(rows) == [("students", "skipped: 0 s were over")]
    pieces = sorted((tmp_path / "out").glob("results.tgz.*"))
    assert len(pieces) == 2 and all(piece.stat().st_size <= 15 * 2**20 for piece in pieces)
    with tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))) as archive:
        assert archive.extractfile("results/large").read() == content


def test_an_unknown_part_is_refused(programs, tmp_path):
    code, rows, printed = gpu_sh(programs, ROOT / "data/sample", tmp_path / "out", "chain", "epoch")
    assert code == 2 and rows == [] and "epoch" in printed and all(part in printed for part in PARTS)


# ---- bench/gpu.py by itself --------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "shown"), [
    ([1.0, -2.0], "0.0e+00 apart, within 0.5"), ([1.5, -2.0], "5.0e-01 apart, within 0.5"),
    ([1.0, -2.6], "6.0e-01 apart, MORE THAN 0.5"), ([math.nan, -2.0], "nan apart, MORE THAN")])
def test_the_largest_difference_is_compared(capsys, other, shown):
    assert gpu.compare("x", [1.0, -2.0], torch.tensor(other), 0.5) == ("MORE" not in shown)
    assert shown in capsys.readouterr().out


def test_a_device_that_trains_otherwise_is_an_error(monkeypatch, capsys):
    """Here its learning rate rises for longer."""
    call, students = gpu.call, []

    def otherwise(script, *argv):
        students.append(script is gpu.distill)
        call(script, *argv, *(["--warmup", 0.5] if sum(students) == 2 else []))

    monkeypatch.setattr(gpu, "call", otherwise)
    with pytest.raises(UserError, match="2 of 6"):
        gpu.main(gpu.parse_args(["equality", "--rows", "15", "--device", "cpu"]))
    figures = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert len(figures) == 6 and {what for what, figure in figures.items() if "MORE" in figure} \
        == {"student after training, loss of each epoch", "student after training, logits"}


@pytest.mark.parametrize(("spans", "length"), [([], 0), ([(5, 7)], 2), ([(4, 6), (1, 3)], 4),
                                               ([(1, 9), (2, 3), (8, 10), (10, 11)], 10)])
def test_time_in_which_two_kernels_run_counts_once(spans, length):
    assert gpu.busy(spans) == length


def event(key, device_type, start=0, end=0, annotation=False, **seconds):
    return SimpleNamespace(key=key, device_type=device_type, is_user_annotation=annotation,
                           time_range=SimpleNamespace(start=start, end=end), **seconds)


def test_what_a_step_on_a_gpu_goes_into_by_hand():
    """2 steps take 10 ms by the clock; kernels run in 1 + 2 ms of them. Times are in µs."""
    kernels = [event("k", DeviceType.CUDA, 0, 1000), event("k", DeviceType.CUDA, 4000, 6000),
               event("k", DeviceType.CUDA, 5000, 5500), event("s", DeviceType.CUDA, 0, 9000, annotation=True)]
    averages = [event("lstm", DeviceType.CPU, self_device_time_total=3000, self_cpu_time_total=100),
                event("add", DeviceType.CPU, self_device_time_total=1000, self_cpu_time_total=300),
                event("k", DeviceType.CUDA, self_device_time_total=4000, self_cpu_time_total=0)]
    run = SimpleNamespace(wall=0.01, count=2, profile=SimpleNamespace(events=lambda: kernels))
    assert gpu.breakdown(run, averages) == (
        "5.00 ms per step; the GPU at work in 30% of it, 2 kernels; most GPU time: lstm 75%, add 25%; "
        "most CPU time: add 75%, lstm 25%")
