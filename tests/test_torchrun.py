"""Two processes against one: same weights and logits, files and lines once; how a run ends under torchrun."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import Killed, die_after, log_lines, publish, read, refused, reviews, run, write_rows
from hostile import ROOT, Process

import distill
import runtime
from data.examples import read_examples
from data.published import bert_template, load_tokenizer
from runtime import UserError
from teacher import Teacher, TeacherConfig

CPU, EXACT = torch.device("cpu"), "--device cpu --precision fp32"
# Two processes take sums in another order than one. Measured after two epochs: weights differ by at most
# 2e-7; where the gradient was halved, as by a mean over ranks, by more than 1e-3.
TOLERANCE = 2e-6
# So few tokens that some batches are of one row, and rank 1 has none of it. The clip lets about half of the
# gradients through: Adam is blind to a gradient scaled in every step, but not to one that is cut more often.
DISTILL = (f"--train train.tsv --logits logits.pt --valid valid.tsv --tokenizer tok --size tiny --epochs 2 "
           f"--max-tokens 20 --clip 2 {EXACT} --output-dir")
FINETUNE = (f"--train train.tsv --valid valid.tsv --checkpoint bert --epochs 2 --lr 0.002 --max-tokens 20 "
            f"--accumulate 2 --clip 0.8 {EXACT} --output-dir")


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """The working folder: train.tsv (61 rows), valid.tsv (30), logits of train.tsv, a tokenizer, a published
    BERT without dropout."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("ranks")
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dump_logits.py"])  # as made_by has it
        write_rows(folder / "train.tsv", reviews(61, 1))
        write_rows(folder / "valid.tsv", reviews(30, 2))
        torch.save(torch.randn(61, 2, generator=torch.Generator().manual_seed(0)), "logits.pt")
        run("train_tokenizer", "--data train.tsv --vocab-size 60 --min-frequency 1 --output-dir . "
                               "--type wordpiece")
        Path("vocab_size_60").rename("tok")
        tokenizer = load_tokenizer(Path("tok"), "bert")
        tokenizer.post_processor = bert_template(tokenizer)
        torch.manual_seed(5)
        publish(Teacher(TeacherConfig("bert", tokenizer.get_vocab_size(), 16, 1, 2, 24, 16, 512, 2, 2,
                                      initializer_range=0.2), tokenizer, ["0", "1"], 40), "bert")
        yield folder


def two(script, flags) -> list[Process]:
    """Rank 0 and rank 1 of a run that has ended; they meet by gloo, as under torchrun."""
    while runtime._locks:  # of runs of this process, which have ended
        runtime._locks.popitem()[1].close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = [Process([ROOT / f"{script}.py", *flags.split()], output=f"rank{rank}", RANK=str(rank),
                     LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
             for rank in (0, 1)]
    for process in ranks:
        process.wait()
    return ranks


def largest_difference(one, other) -> float:
    """Without the biases of keys: softmax is blind to them, so that their gradient is rounding alone, which
    Adam makes steps of full size of."""
    assert one.keys() == other.keys()
    if (name := "encoder.layers.0.key_value.bias") in one:
        one, other = ({**weights, name: weights[name][len(weights[name]) // 2 :]} for weights in (one, other))
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_same_run(one: Path, two: Path, wrong: Path, artifact: str) -> None:
    """`wrong` is the run with half the gradient: what it differs by would be found."""
    for file in (artifact, "last.pt"):
        weights, others, halved = (read(folder / file)["weights"] for folder in (one, two, wrong))
        assert largest_difference(weights, others) < TOLERANCE
        assert largest_difference(weights, halved) > 500 * TOLERANCE
    ones, twos = (log_lines(folder)[1:] for folder in (one, two))
    assert [line["step"] for line in twos] == [1, 2]
    for mine, theirs in zip(ones, twos, strict=True):
        for name in ("train_loss", "valid_loss", "valid_accuracy"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5)
    assert {path.name for path in two.iterdir()} == {artifact, "last.pt", "log.jsonl", ".lock"}


def halved(script, flags) -> None:
    """The run that a mean of gradients over two ranks, instead of their sum, would be."""
    def half(parameters):
        for parameter in parameters:
            parameter.grad.mul_(0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "sum_gradients", half)
        run(script, flags)


def test_two_processes_distill_the_students_that_one_does(monkeypatch):
    """Of the grid's two students one is continued in the middle of its second epoch, the other begun."""
    sizes, batches = [], distill.training_batches
    monkeypatch.setattr(distill, "training_batches", lambda *args, **options: (
        sizes.append(len(rows)) or (window, rows) for window, rows in batches(*args, **options)))
    run("distill", f"{DISTILL} one --seed 0 1")
    assert 1 in sizes and max(sizes) > 2 and any(size % 2 for size in sizes if size > 2)
    steps = len(sizes) // 4
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 1 + steps + 1 + 3)  # the first save, every step, the epoch, three steps
        run("distill", f"{DISTILL} two --seed 0 1 --save-every 0")
    at = read("two/tiny-tok/last.pt")["at"]
    assert (at["epoch"], at["step"]) == (1, 3) and not Path("two/tiny-tok-seed1/last.pt").exists()
    first, second = two("distill", f"{DISTILL} two --seed 0 1")
    assert (first.returncode, second.returncode, second.lines("out")) == (0, 0, []), first.lines("err")
    halved("distill", f"{DISTILL} halved --seed 0 1")
    for name in ("tiny-tok", "tiny-tok-seed1"):
        assert_same_run(Path("one", name), Path("two", name), Path("halved", name), "student.pt")
    ranks = [log_lines(f"two/{name}")[0]["ranks"] for name in ("tiny-tok", "tiny-tok-seed1")]
    assert ranks == [1, 2]  # the first line is of the run that began it
    assert {path.name for path in Path("two").iterdir()} == {"tiny-tok", "tiny-tok-seed1", "summary.tsv"}
    said = [line.split(":")[0] for line in first.lines("out")]
    assert [line for line in said if line.startswith("epoch")] == ["epoch 2/2", "epoch 1/2", "epoch 2/2"]
    assert "two/tiny-tok: continuing after epoch 1, step 3" in first.lines("out")
    assert said.count("two/summary.tsv") == 1


@pytest.mark.parametrize("column", ["labels", "score"])
def test_two_processes_agree_on_every_task(column):
    """On what is learnt of the answers, too: thresholds, mean and deviation."""
    for name in ("train", "valid"):
        rows = read_examples(f"{name}.tsv")
        cells = [{"labels": "-" if len(text) % 3 else "길다,셋" if len(text) > 12 else "셋",
                  "score": str(len(text) / 7)}[column] for text in rows.texts]
        write_rows(Path(f"{column}-{name}.tsv"), list(zip(rows.texts, cells, strict=True)), f"text\t{column}")
    flags = (f"--train {column}-train.tsv --valid {column}-valid.tsv --alpha 1 --tokenizer tok --size tiny "
             f"--epochs 2 --max-tokens 20 {EXACT} --output-dir")
    run("distill", f"{flags} {column}-one")
    first, second = two("distill", f"{flags} {column}-two")
    assert (first.returncode, second.returncode, second.lines("out")) == (0, 0, []), first.lines("err")
    one, other = (read(f"{column}-{name}/tiny-tok-alpha1/student.pt") for name in ("one", "two"))
    assert largest_difference(one["weights"], other["weights"]) < TOLERANCE
    for name, value in one["config"].items():
        assert other["config"][name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3))
    assert {"labels": "thresholds", "score": "deviation"}[column] in one["config"]


def test_two_processes_finetune_the_teacher_that_one_does():
    run("finetune_teacher", f"{FINETUNE} t-one")
    first, second = two("finetune_teacher", f"{FINETUNE} t-two")
    assert (first.returncode, second.returncode, second.lines("out")) == (0, 0, []), first.lines("err")
    halved("finetune_teacher", f"{FINETUNE} t-halved")
    assert_same_run(Path("t-one"), Path("t-two"), Path("t-halved"), "teacher.pt")


def test_two_processes_dump_the_logits_that_one_does(monkeypatch):
    """To the byte; of the first file they go on after the block that one process finished."""
    write_rows(Path("long.tsv").resolve(), reviews(8200, 3))
    flags = f"--data long.tsv valid.tsv --teacher t/teacher.pt --max-tokens 1000 {EXACT} --output-dir"
    run("finetune_teacher", f"{FINETUNE} t --epochs 1")
    run("dump_logits", f"{flags} d-one")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(patch, 1)
        run("dump_logits", f"{flags} d-two")
    assert len([*Path("d-two").glob("*/*.pt")]) == 1
    first, second = two("dump_logits", f"{flags} d-two")
    assert (first.returncode, second.returncode, second.lines("out")) == (0, 0, []), first.lines("err")
    for name in ("long", "valid"):
        assert Path(f"d-one/{name}.pt").read_bytes() == Path(f"d-two/{name}.pt").read_bytes()
    assert "8,192 rows were there already" in "".join(first.lines("out"))
    assert {path.name for path in Path("d-two").iterdir()} == {
        "long.pt", "valid.pt", ".long.lock", ".valid.lock"}


SLOW = """
import sys, time
sys.path.insert(0, ROOT)
import dump_logits, runtime
save, dump_logits.BLOCK = runtime.save_together, 20
runtime.save_together = lambda files: (time.sleep(0.3), save(files))
runtime.main(dump_logits.main, dump_logits.parse_args())
"""


def test_blocks_of_the_same_texts_are_computed_once_by_all():
    """A rank that looked for the second before the other had saved the first would wait for it forever."""
    write_rows(Path("same.tsv").resolve(), [("좋다 영화", "1")] * 60)
    Path("slow.py").write_text(SLOW.replace("ROOT", repr(str(ROOT))))
    run("finetune_teacher", f"{FINETUNE} t --epochs 1")
    done = two(Path("slow").resolve(), f"--data same.tsv --teacher t/teacher.pt {EXACT} --output-dir same")
    assert [process.returncode for process in done] == [0, 0]
    assert len(read("same/same.pt")["logits"].unique(dim=0)) == 1


# ---- how a run ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_diverges_is_named_whichever_rank_had_its_row(monkeypatch, rank):
    """The square of one logit is no float32, its gradient is: the rank that has the row alone sees it."""
    flags = DISTILL.replace("logits.pt", f"bad{rank}.pt") + f" bad{rank} --alpha 0 --max-tokens 60"
    seen, batches = [], distill.training_batches

    def remembered(*args, **options):
        for window, rows in batches(*args, **options):
            seen.append(window.numbers[rows].tolist())
            yield window, rows

    with monkeypatch.context() as patch:
        patch.setattr(distill, "training_batches", remembered)
        torch.save(torch.zeros(61, 2), f"bad{rank}.pt")
        run("distill", f"{flags} --epochs 1")
    assert len(seen[2]) > 2 and len(seen) > 4
    logits = torch.zeros(61, 2)
    logits[seen[2][rank], 0] = 1.9e19
    torch.save(logits, f"bad{rank}.pt")
    done = two("distill", f"{flags} --overwrite")
    assert [process.returncode for process in done] == [2, 2]
    folder = Path(f"bad{rank}/tiny-tok-alpha0")
    for number, process in enumerate(done):
        (line,) = process.lines("err")
        assert line.startswith(f"rank {number}: error: epoch 1, step 3: ") and f"{len(seen[2])} rows" in line
    assert (folder / "diverged.tsv").read_text("utf-8").splitlines() == [
        "file\trow", *(f"train.tsv\t{number}" for number in sorted(seen[2]))]
    at = read(folder / "last.pt")["at"]
    assert (at["epoch"], at["step"]) == (0, 0)


def torchrun(script, flags) -> subprocess.Popen:
    """Two processes of one thread each, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen([*command, str(ROOT / f"{script}.py"), *flags.split()], encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def rank_of(process, rank) -> int:
    """The process id of one rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(child) for child in children
                if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"))


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="for Linux's /proc")
@pytest.mark.parametrize("way", ["killed", "terminated"])
def test_a_run_that_torchrun_ends_is_continued_by_one_process(way):
    """A rank that is killed, as when memory runs out, ends the others; SIGTERM to torchrun reaches both."""
    folder, flags = Path(way, "tiny-tok"), f"{DISTILL} {way} --epochs 100"
    process = torchrun("distill", flags)
    try:
        log, deadline = folder / "log.jsonl", time.monotonic() + 120
        while not (log.exists() and len(log.read_text("utf-8").splitlines()) > 2):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.05)
        survivor = rank_of(process, 1)
        os.kill(rank_of(process, 0), signal.SIGKILL) if way == "killed" else process.terminate()
        output, errors = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode != 0 and output.count("epoch 1/100") == 1, errors
    assert "epoch 100/100" not in output, errors
    assert not Path(f"/proc/{survivor}").exists() and "terminate called" not in errors
    own = [line for line in errors.splitlines() if re.match(r"rank \d: ", line)]
    if way == "killed":  # torchrun names the signal; what the other says before it is ended is one line
        assert "SIGKILL" in errors and len(own) <= 1
        assert all(line.startswith("rank 1: error: another process died") for line in own)
    else:  # torchrun may end one of the two before it has said so
        assert own and all("interrupted; saved; run the same command again" in line for line in own)
    at = read(folder / "last.pt")["at"]
    assert at["epoch"] >= 1 and len(at["log"].splitlines()) == 1 + at["epoch"]
    run("distill", flags)
    run("distill", flags.replace(way, "whole", 1))
    weights, others = (read(Path(name, "tiny-tok/student.pt"))["weights"] for name in (way, "whole"))
    assert largest_difference(weights, others) < 100 * TOLERANCE


def test_bad_input_ends_all_processes_with_its_line():
    process = torchrun("distill", f"{DISTILL} none --train none.tsv")
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and not re.sub(r"\[Gloo\] .*\n", "", output) and not Path("none").exists()
    own = [line for line in errors.splitlines() if "none.tsv" in line]
    # The ranks find it at the same time; torchrun may end one before it has said so.
    assert own and all(re.match(r"rank [01]: error: none\.tsv: ", line) for line in own)


# ---- one rank by itself ------------------------------------------------------------------------------------


def test_any_rank_but_0_writes_no_file(monkeypatch):
    import finetune_teacher

    for module in (runtime, distill, finetune_teacher):
        monkeypatch.setattr(module, "RANK", 1)
    run("distill", f"{DISTILL} rank1/s --epochs 1")
    run("finetune_teacher", f"{FINETUNE} rank1/t --epochs 1")
    runtime.save({"kind": "x"}, Path("rank1/a/x.pt"))
    assert [path for path in Path("rank1").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("own", "others", "expected"), [
    ("amx_bf16", 1.0, "bf16"), ("amx_bf16", 0.0, "fp32"), ("sse", 1.0, "fp32"), ("sse", 0.0, "fp32")])
def test_every_rank_needs_bf16(monkeypatch, own, others, expected):
    """Ranks of two precisions would train different students and call them one."""
    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(runtime, "cpu_flags", lambda: {own})
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensors: tensors[0].add_(others))
    assert runtime.pick_precision("auto", CPU) == expected


@pytest.mark.parametrize(("own", "others", "due", "code"), [  # the other rank votes: save, SIGINT, SIGTERM
    (0, (0, 0, 0), False, None), (0, (1, 0, 0), True, None), (0, (1, 0, 1), True, 143),
    (0, (1, 1, 0), True, 130), (signal.SIGTERM, (0, 0, 0), True, 143),
    (signal.SIGINT, (1, 0, 1), True, 130), (signal.SIGTERM, (1, 1, 0), True, 130)])
def test_ranks_agree_when_to_save_and_how_to_end(monkeypatch, own, others, due, code):
    """Each hears of a signal at another step: all stop after the same one, in the same way."""
    run, asked = object.__new__(runtime.Run), []
    run.signal, run.saved, run.device = own, time.monotonic(), CPU
    run.args = type("Args", (), {"save_every": 10})
    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensors: (
        asked.append(1), tensors[0].add_(torch.tensor(others))))
    assert not any(run._due(step) for step in range(1, 16)) and not asked  # a message now and then suffices
    assert run._due(16) == due and len(asked) == 1
    if code is None:
        run._stop_if_told()
    else:
        with pytest.raises(runtime.Stopped, match="saved; run the same command again") as stopped:
            run._stop_if_told()
        assert stopped.value.code == code


def test_a_save_is_due_every_ten_minutes():
    run = object.__new__(runtime.Run)
    run.signal, run.args = 0, type("Args", (), {"save_every": 10})
    for seconds, due in ((0, False), (590, False), (600, True)):
        run.saved = time.monotonic() - seconds
        assert run._due(3) == due
    run.saved, run.signal = time.monotonic(), signal.SIGTERM
    assert run._due(3)


def test_a_barrier_waits_for_the_value(monkeypatch):
    """nccl puts a sum in the GPU's queue and returns; only who reads it has waited for the other ranks."""
    found, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: found.append(item(tensor)))
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensors: tensors[0].add_(5))
    runtime.barrier(CPU)
    assert found == [5]


def test_what_cannot_have_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(runtime, "WORLD", 4)
    refused(lambda: runtime.connect(torch.device("mps")), "--device mps", "one process", "--device cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    refused(lambda: runtime.connect(torch.device("cuda")), "3 or more", "2 GPUs", "--nproc_per_node")


def test_a_collective_that_fails_is_told_in_one_line(monkeypatch):
    def fail(tensor):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:123] Connection closed by peer\n more of it")

    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    refused(lambda: runtime.sum_over_ranks([torch.zeros(2)]), "another process died", "closed by peer")


def test_an_error_ends_a_rank_past_the_threads_of_torch_distributed(monkeypatch, capsys):
    """A usual exit meets threads that talk to a rank that is gone: "terminate called", now and then."""
    def fail(args):
        raise UserError("some reason")

    def leave(code):
        raise SystemError(code)

    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemError, match="2"):
        runtime.main(fail, None)
    assert capsys.readouterr().err == "rank 0: error: some reason\n"


def test_gradients_and_sums_keep_their_places(monkeypatch):
    """Tensors of different shapes go in one message; a rank without rows brings zeros."""
    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(torch.arange(len(flat))))
    weight, bias = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(2))
    bias.grad = torch.tensor([0.5, 0.25])
    runtime.sum_gradients(iter([weight, bias]))
    assert weight.grad.tolist() == [[0, 1, 2], [3, 4, 5]] and bias.grad.tolist() == [6.5, 7.25]
    total = torch.tensor(1.0)
    runtime.sum_over_ranks([total])
    assert total.item() == 1.0
