"""Two processes under torchrun against one: same weights and logits, files and lines once; how a run ends."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import distill
import dump_logits
import finetune_teacher
import runtime
import train_tokenizer
from data.examples import read_examples
from runtime import UserError

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
WORDS = ["좋다", "최고", "추천", "재밌다", "별로", "최악", "지루", "실망", "영화", "배우", "그냥", "정말"]
# Two processes take sums in another order than one. Measured after two epochs: weights differ by at most
# 2e-7; where the gradient was halved, as by a mean over ranks, by more than 1e-3.
TOLERANCE = 2e-6


def torchrun(folder, script, *args, **popen):
    """`script` as two processes of one thread each, started in `folder`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / script), *map(str, args)]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **popen)


def run(folder, script, *args):
    """(stdout, stderr) of a run that ends well."""
    process = torchrun(folder, script, *args)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors + output
    assert "Traceback" not in errors
    return output, errors


def read(path):
    return torch.load(path, weights_only=True)


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def largest_difference(one, other):
    """Without the biases of keys: softmax is blind to them, so that their gradient is rounding alone, which
    Adam makes steps of full size of."""
    assert one.keys() == other.keys()
    if (name := "encoder.layers.0.key_value.bias") in one:
        one, other = ({**weights, name: weights[name][len(weights[name]) // 2 :]} for weights in (one, other))
    return max((one[name] - other[name]).abs().max().item() for name in one)


def write_reviews(path, n, seed):
    """Random words, from one to eight; label 1 when more of the first four than of the second four occur."""
    random = np.random.default_rng(seed)
    lines = ["text\tlabel"]
    for _ in range(n):
        chosen = random.integers(0, len(WORDS), random.integers(1, 9))
        label = int((chosen < 4).sum() > ((chosen >= 4) & (chosen < 8)).sum())
        lines.append(" ".join(WORDS[i] for i in chosen) + f"\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """train.tsv (61), valid.tsv (30), logits of train.tsv, a tokenizer, a published BERT without dropout."""
    folder = tmp_path_factory.mktemp("prepared")
    write_reviews(folder / "train.tsv", 61, 1)
    write_reviews(folder / "valid.tsv", 30, 2)
    torch.save(torch.randn(61, 2, generator=torch.Generator().manual_seed(0)), folder / "logits.pt")
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(folder / "train.tsv"), "--vocab-size", "60", "--min-frequency", "1",
         "--output-dir", str(folder / "tokenizer"), "--type", "wordpiece"]))
    vocab = folder / "tokenizer" / "vocab_size_60" / "vocab.txt"
    config = transformers.BertConfig(
        vocab_size=len(vocab.read_text("utf-8").splitlines()), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=40, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(5)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "published")
    shutil.copy(vocab, folder / "published")
    (folder / "published" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A copy of what is prepared, as the working folder; and one thread here too."""
    shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "work"
    torch.set_num_threads(threads)


# So few tokens that some batches are of one row, and rank 1 has none of it. The clip lets about half of the
# gradients through: Adam is blind to a gradient scaled in every step, but not to one that is cut more often.
DISTILL = ["--train", "train.tsv", "--logits", "logits.pt", "--valid", "valid.tsv", "--tokenizer",
           "tokenizer/vocab_size_60", "--size", "tiny", "--seed", "0", "1", "--epochs", "2", "--lr", "0.01",
           "--max-tokens", "20", "--clip", "2", "--device", "cpu", "--precision", "fp32"]
FINETUNE = ["--train", "train.tsv", "--valid", "valid.tsv", "--checkpoint", "published", "--epochs", "2",
            "--lr", "0.002", "--max-tokens", "20", "--accumulate", "2", "--clip", "0.8", "--device", "cpu",
            "--precision", "fp32"]


def halved(monkeypatch):
    """From now on a run in this process has the gradient that a mean over two ranks would have."""
    def half(parameters):
        for parameter in parameters:
            parameter.grad.mul_(0.5)

    monkeypatch.setattr(runtime, "sum_gradients", half)


def killed_when(monkeypatch, last, main, args):
    """main(args), killed right after a save for which last(artifact, path); its locks go as at its end."""
    save = runtime.save

    def save_then_die(artifact, path):
        save(artifact, path)
        if last(artifact, path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runtime, "save", save_then_die)
        main(args)
    while runtime._locks:
        runtime._locks.popitem()[1].close()


def test_two_processes_distill_the_students_that_one_does(folder, monkeypatch):
    """Of the grid's two students one is resumed in the middle of its second epoch, the other begun."""
    sizes, batches = [], distill.training_batches
    monkeypatch.setattr(distill, "training_batches", lambda *args: (
        sizes.append(len(rows)) or (window, rows) for window, rows in batches(*args)))
    distill.main(distill.parse_args([*DISTILL, "--output-dir", "one"]))
    assert 1 in sizes and max(sizes) > 2 and any(size % 2 for size in sizes if size > 2)

    args = distill.parse_args([*DISTILL, "--output-dir", "two", "--save-every", "0"])
    killed_when(monkeypatch, lambda state, _: (state["at"]["epoch"], state["at"]["step"]) == (1, 3),
                distill.main, args)
    assert {str(path) for path in Path("two").glob("*/*")} == {
        *(f"two/tiny-seed0/{name}" for name in ("student.pt", "last.pt", "log.jsonl", ".lock")),
        "two/tiny-seed1/.lock"}
    output, _ = run(folder, "distill.py", *DISTILL, "--output-dir", "two", "--resume")

    halved(monkeypatch)
    distill.main(distill.parse_args([*DISTILL, "--output-dir", "halved"]))
    for name in ("tiny-seed0", "tiny-seed1"):
        for file in ("student.pt", "last.pt"):
            one, two, wrong = (read(folder / run / name / file) for run in ("one", "two", "halved"))
            assert largest_difference(one["weights"], two["weights"]) < TOLERANCE
            assert largest_difference(one["weights"], wrong["weights"]) > 500 * TOLERANCE
        assert (two["at"]["epoch"], two["at"]["step"]) == (2, 0)
        ones, twos = (log_lines(folder / run / name)[1:] for run in ("one", "two"))
        assert [line["step"] for line in twos] == [1, 2]
        for one, two in zip(ones, twos, strict=True):
            assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
            assert two["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-5)
            assert two["valid_accuracy"] == one["valid_accuracy"]
        assert {path.name for path in (folder / "two" / name).iterdir()} == {
            "student.pt", "last.pt", "log.jsonl", ".lock"}
    ranks = [log_lines(folder / "two" / name)[0]["ranks"] for name in ("tiny-seed0", "tiny-seed1")]
    assert ranks == [1, 2]  # the first line is of the run that began it
    assert {path.name for path in (folder / "two").iterdir()} == {
        "tiny-seed0", "tiny-seed1", "summary.tsv", ".summary.lock"}
    starts = [line.split(":")[0] for line in output.splitlines() if line.startswith(("epoch", "resuming"))]
    assert starts == ["resuming two/tiny-seed0 after epoch 1, step 3", "epoch 2/2", "epoch 1/2", "epoch 2/2"]
    assert output.count("labels ['0', '1']") == output.count("two/summary.tsv: 2 students") == 1


def test_two_processes_finetune_the_teacher_that_one_does(folder, monkeypatch):
    finetune_teacher.main(finetune_teacher.parse_args([*FINETUNE, "--output-dir", "one"]))
    output, _ = run(folder, "finetune_teacher.py", *FINETUNE, "--output-dir", "two")
    halved(monkeypatch)
    finetune_teacher.main(finetune_teacher.parse_args([*FINETUNE, "--output-dir", "halved"]))
    for file in ("teacher.pt", "last.pt"):
        one, two, wrong = (read(folder / run / file) for run in ("one", "two", "halved"))
        assert largest_difference(one["weights"], two["weights"]) < TOLERANCE
        assert largest_difference(one["weights"], wrong["weights"]) > 500 * TOLERANCE
    ones, twos = (log_lines(folder / run)[1:] for run in ("one", "two"))
    assert [line["step"] for line in twos] == [1, 2]
    for one, two in zip(ones, twos, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert two["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-5)
    starts = [line.split(":")[0] for line in output.splitlines() if line.startswith("epoch")]
    assert starts == ["epoch 1/2", "epoch 2/2"]


def test_two_processes_dump_the_logits_that_one_does(folder, monkeypatch):
    """To the byte; of the first file they go on after the part that one process finished."""
    flags = ["--data", "train.tsv", "valid.tsv", "--teacher", "t/teacher.pt", "--max-tokens", "10",
             "--device", "cpu", "--precision", "fp32", "--output-dir"]
    finetune_teacher.main(finetune_teacher.parse_args(
        [*FINETUNE, "--epochs", "1", "--output-dir", "t"]))
    monkeypatch.setattr(sys, "argv", ["dump_logits.py"])  # as made_by has it
    dump_logits.main(dump_logits.parse_args([*flags, "one"]))
    killed_when(monkeypatch, lambda _, path: path.name == "000000.pt",
                dump_logits.main, dump_logits.parse_args([*flags, "two"]))
    assert sorted(path.name for path in Path("two").glob("*/*")) == ["000000.pt", "plan.pt"]
    output, _ = run(folder, "dump_logits.py", *flags, "two", "--resume")
    for name, rows in (("train", 61), ("valid", 30)):
        assert (folder / "two" / f"{name}.pt").read_bytes() == (folder / "one" / f"{name}.pt").read_bytes()
        two = read(folder / "two" / f"{name}.pt")
        assert two["texts"] == read_examples(f"{name}.tsv").fingerprint() and two["logits"].shape == (rows, 2)
        assert output.count(f"two/{name}.pt: logits of {rows} rows") == output.count(f"{name}.tsv: ") == 1
    assert "40 rows were there" in output
    assert {path.name for path in (folder / "two").iterdir()} == {
        "train.pt", "valid.pt", ".train.lock", ".valid.lock"}


# ---- how a run ends ----------------------------------------------------------------------------------------


def test_bad_input_ends_all_processes_with_its_line(folder):
    process = torchrun(folder, "distill.py", *DISTILL, "--train", "none.tsv")
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and output == ""
    lines = [line for line in errors.splitlines() if "none.tsv" in line]
    # The ranks find it at the same time; torchrun may end one before it has said so.
    assert lines and set(lines) <= {f"rank {i}: error: none.tsv: cannot read (No such file or directory)"
                                    for i in (0, 1)}
    assert not (folder / "students").exists()


def rank_of(process, rank):
    """The process id of one rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(child) for child in children
                if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"))


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="for Linux's /proc")
def test_a_killed_rank_ends_the_run_and_its_reason_is_told(folder):
    """As the kernel does when memory runs out: the others must not wait for it."""
    process = torchrun(folder, "distill.py", *DISTILL, "--seed", "0", "--epochs", "100000")
    try:
        log, deadline = folder / "students" / "tiny" / "log.jsonl", time.monotonic() + 120
        while not (log.exists() and len(log_lines(folder / "students" / "tiny")) > 2):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.1)
        survivor = rank_of(process, 1)
        os.kill(rank_of(process, 0), signal.SIGKILL)  # the one that writes
        output, errors = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode != 0 and output.count("epoch 1/100000") == 1
    # torchrun names the signal; what the other says, if it is not ended before, is one line too.
    assert "SIGKILL" in errors and "terminate called" not in errors
    own = [line for line in errors.splitlines() if line.startswith("rank ")]
    assert len(own) <= 1 and all(line.startswith("rank 1: error: lost another rank") for line in own)
    assert not Path(f"/proc/{survivor}").exists()
    at = read(folder / "students" / "tiny" / "last.pt")["at"]  # whole, and a resume can go on
    assert at["epoch"] >= 1 and at["step"] == 0 and len(at["log"].splitlines()) == 1 + at["epoch"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_diverges_is_named_whichever_rank_had_its_row(folder, monkeypatch, rank):
    """The square of one logit is no float32, its gradient is: the rank that has the row alone sees it."""
    flags = [*DISTILL, "--seed", "0", "--alpha", "0", "--max-tokens", "60"]
    seen, batches = [], distill.training_batches

    def remembered(*args):
        for window, rows in batches(*args):
            seen.append(window.numbers[rows].tolist())
            yield window, rows

    monkeypatch.setattr(distill, "training_batches", remembered)
    distill.main(distill.parse_args([*flags, "--epochs", "1", "--output-dir", "one"]))
    batch = seen[2]
    assert len(batch) > 2 and len(seen) > 4
    logits = torch.zeros(61, 2)
    logits[batch[rank], 0] = 1.9e19
    torch.save(logits, "logits.pt")
    with pytest.raises(UserError) as error:
        distill.main(distill.parse_args([*flags, "--output-dir", "one", "--overwrite"]))
    message = (f"epoch 1, step 3: loss or gradient is not finite; its {len(batch)} rows are in "
               f"one/tiny/diverged.tsv; lower --lr")
    assert str(error.value) == message
    process = torchrun(folder, "distill.py", *flags, "--output-dir", "two")
    output, errors = process.communicate(timeout=100)
    own = [line for line in errors.splitlines() if line.startswith("rank ")]
    assert process.returncode != 0 and "epoch 1/2" not in output
    assert any(line.endswith(message.replace("one/", "two/")) for line in own), own
    lines = ["file\trow", *(f"train.tsv\t{number}" for number in sorted(batch))]
    for name in ("one", "two"):
        assert (folder / name / "tiny" / "diverged.tsv").read_text("utf-8").splitlines() == lines
    assert not (folder / "two" / "tiny" / "student.pt").exists()
    at = read(folder / "two" / "tiny" / "last.pt")["at"]
    assert (at["epoch"], at["step"]) == (0, 0)


# ---- one rank by itself ------------------------------------------------------------------------------------


def test_any_rank_but_0_writes_no_file(folder, monkeypatch):
    for module in (runtime, distill, finetune_teacher):
        monkeypatch.setattr(module, "RANK", 1)
    distill.main(distill.parse_args([*DISTILL, "--epochs", "1", "--output-dir", "s"]))
    finetune_teacher.main(finetune_teacher.parse_args([*FINETUNE, "--epochs", "1", "--output-dir", "t"]))
    runtime.save({"kind": "x"}, folder / "a" / "x.pt")
    for name in ("s", "t", "a"):
        assert [path for path in (folder / name).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("own, others, expected", [
    (True, 1.0, "bf16"), (True, 0.0, "fp32"), (False, 1.0, "fp32"), (False, 0.0, "fp32"),
])
def test_bf16_has_to_win_on_every_rank(monkeypatch, own, others, expected):
    """Ranks of two precisions would train different students and call them one."""
    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(runtime, "_has_bf16", lambda *args: own)
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensors: tensors[0].add_(others))
    assert runtime.pick_precision("auto", CPU, None) == expected


@pytest.mark.parametrize("products, steps, expected", [  # seconds: products bf16, fp32; steps fp32, bf16, …
    ((1, 1), [1, 0.5, 1, 0.5, 1, 0.5], "bf16"),
    ((1, 1), [1, 1.2, 1, 1.2, 1, 1.2], "bf16"),  # noise alone must not decide
    ((1, 1), [1, 1.3, 1, 1.3, 1, 1.3], "fp32"),
    ((1, 1), [9, 9, 1, 9, 9, 1.2], "bf16"),  # the best of three each
    ((4.9, 1), [1, 1, 1, 1, 1, 1], "bf16"),
    ((5.1, 1), [], "fp32"),  # emulated: no step is tried
])
def test_auto_takes_bf16_unless_it_loses_by_a_quarter(monkeypatch, products, steps, expected):
    times = iter([*products, *steps])
    monkeypatch.setattr(runtime, "_seconds", lambda step: next(times))
    assert runtime.pick_precision("auto", CPU, None) == expected
    assert next(times, None) is None


def test_a_trial_leaves_the_random_state_and_bf16_may_fail_but_not_float32(monkeypatch):
    monkeypatch.setattr(runtime, "_seconds", lambda step: step() is None or 1.0)  # at any pace

    def draw_or_fail(failing):
        product = torch.rand(3, 3) @ torch.rand(3, 3)
        if product.dtype == failing:
            raise RuntimeError("could not create a primitive descriptor")

    before = torch.get_rng_state()
    assert runtime.pick_precision("auto", CPU, lambda: draw_or_fail(torch.bfloat16)) == "fp32"
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="primitive descriptor"):
        runtime.pick_precision("auto", CPU, lambda: draw_or_fail(torch.float32))


@pytest.fixture
def saves(monkeypatch):
    """runtime.Saves of every ten minutes, and a clock: saves.now. Its handlers go at the end."""
    monkeypatch.setattr(sys, "argv", ["distill.py", "--train", "내 글.tsv", "--overwrite"])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: saves.now if saves else 0.0)
    saves = None
    saves = runtime.Saves(10, CPU)
    saves.now = 0.0
    yield saves
    with contextlib.suppress(runtime.Stopped):  # of a signal that no step saw
        saves.close()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


GO_ON = "go on with: python distill.py --train '내 글.tsv' --resume"


def test_a_signal_behind_the_last_step_stops_at_the_close(saves):
    """Else a grid would go on with its next student."""
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(runtime.Stopped) as stopped:
        saves.close()
    assert stopped.value.code == 143 and str(stopped.value) == f"saved; {GO_ON}"


def test_a_save_is_due_every_ten_minutes_and_after_a_signal(saves, capfd):
    saves.now = 599.0
    assert not saves.due(3)
    saves.now = 600.0
    assert saves.due(4)
    saves.done()
    assert not saves.due(5)
    saves.now = 1199.0
    assert not saves.due(6)
    signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == "stopping after this step; once more stops at once\n"
    assert saves.due(7)
    with pytest.raises(runtime.Stopped) as stopped:
        saves.done()
    assert (stopped.value.code, str(stopped.value)) == (143, f"saved; {GO_ON}")
    with pytest.raises(runtime.Stopped) as stopped:  # a second one does not wait for the step
        signal.raise_signal(signal.SIGINT)
    assert (stopped.value.code, str(stopped.value)) == (130, GO_ON)


@pytest.mark.parametrize("own, others, due, code", [  # the other rank votes: save, SIGINT, SIGTERM
    (None, (0, 0, 0), False, None), (None, (1, 0, 0), True, None), (None, (1, 0, 1), True, 143),
    (None, (1, 1, 0), True, 130), (signal.SIGTERM, (0, 0, 0), True, 143),
    (signal.SIGINT, (1, 0, 1), True, 130), (signal.SIGTERM, (1, 1, 0), True, 130),
])
def test_ranks_agree_when_to_save_and_how_to_end(saves, monkeypatch, own, others, due, code):
    """Each hears of a signal at another step: all stop after the same one, in the same way."""
    asked = []
    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensors: (
        asked.append(1), tensors[0].add_(torch.tensor(others))))
    if own:
        signal.raise_signal(own)
    assert not any(saves.due(step) for step in range(1, 16)) and not asked  # a message now and then suffices
    assert saves.due(16) == due and len(asked) == 1
    if code is None:
        saves.done()
    else:
        with pytest.raises(runtime.Stopped) as stopped:
            saves.done()
        assert stopped.value.code == code
        assert str(stopped.value) == "saved; go on with the same command and --resume"


@pytest.mark.parametrize("device, late", [("cpu", 0), ("cuda", 1)])
def test_a_watch_tells_the_first_step_that_is_not_finite(device, late):
    """On a GPU one step later, and of what is left before anything is saved."""
    told = []
    watch = runtime.Watch(torch.device(device), lambda *which: told.append(which))
    for step, value in enumerate([1.0, 2.0, torch.inf, torch.nan, 3.0]):
        watch.step(torch.tensor(value), 0, step)
        assert told == [(0, i) for i in (2, 3) if i + late <= step]
    watch.step(torch.tensor(torch.nan), 1, 0)
    watch.finish()
    assert told == [(0, 2), (0, 3), (1, 0)]


def test_a_watch_reads_the_copy_of_a_gpu_when_it_has_come(monkeypatch):
    """Not before, when it is whatever was in that memory; nor is the GPU asked, which would take longer."""
    told, copies = [], []

    class OnGPU:
        is_cuda = True

        def __init__(self, value):
            self.value = value

        def to(self, device, non_blocking):
            assert device == "cpu" and non_blocking
            copies.append((torch.tensor(torch.nan), self.value))
            return copies[-1][0]

    class Event:
        def record(self):
            self.copy, self.value = copies[-1]

        def synchronize(self):
            self.copy.fill_(self.value)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = runtime.Watch(torch.device("cuda"), lambda *which: told.append(which))
    for step, value in enumerate([1.0, torch.inf, 2.0]):
        watch.step(OnGPU(value), step)
    watch.finish()
    assert told == [(1,)] and len(copies) == 3


def test_a_barrier_waits_for_the_value(monkeypatch):
    """nccl puts a sum in the GPU's queue and returns; only who reads it has waited for the other ranks."""
    read, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: read.append(item(tensor)))
    monkeypatch.setattr(runtime, "sum_over_ranks", lambda tensors: tensors[0].add_(5))
    runtime.barrier(CPU)
    assert read == [5]


def test_other_devices_have_one_process(monkeypatch):
    monkeypatch.setattr(runtime, "WORLD", 2)
    with pytest.raises(UserError, match="--device mps: runs in one process alone; use --device cpu under"):
        runtime.connect(torch.device("mps"))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(runtime, "WORLD", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"3 or more processes on a machine with 2 GPUs: lower --nproc_per_n"):
        runtime.connect(torch.device("cuda"))


def test_a_collective_that_fails_is_told_in_one_line(monkeypatch):
    def fail(tensor):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:123] Connection closed by peer\n more of it")

    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(UserError) as error:
        runtime.sum_over_ranks([torch.zeros(2)])
    assert str(error.value) == (
        "lost another rank, whose own message tells why ([gloo/transport/tcp/pair.cc:123] Connection closed "
        "by peer); start the run again, where it was training with --resume")


def test_an_error_ends_a_rank_past_the_threads_of_torch_distributed(monkeypatch, capsys):
    """A usual exit meets threads that talk to a rank that is gone: "terminate called", now and then."""
    def fail():
        raise UserError("some reason")

    class Gone(BaseException):
        pass

    def leave(code):
        raise Gone(code)

    monkeypatch.setattr(runtime, "WORLD", 2)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Gone, match="2"):
        runtime.run(fail)
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
