"""What bench/gpu.sh measures in one process. It prints lines of two cells: what, and its figure.

    python -m bench.gpu equality --device cuda      # the CPU's results and the GPU's: the largest difference
    python -m bench.gpu epochs --train train.tsv --logits logits/train.pt --valid valid.tsv \\
        --tokenizer tokenizer/vocab_size_3000 --students base:4096 base:16384:8e-3 tiny:16384
    python -m bench.gpu half pretrained encoder     # a published folder in float16; or a teacher.pt, rounded

equality  fine-tunes models/encoder and distils Base, in float32 with the same seed, on the CPU and on
          --device (default: auto; cpu: the CPU with itself). A difference beyond rounding is an error.
epochs    trains students as distill.py does, the texts encoded once. Of each: seconds of its fastest epoch
          without validation, the GPU's utilisation by nvidia-smi, accuracy of the last epoch. Of Base with
          the default rate also how much of a step the GPU is at work, and the operators that take the time.
writes    epochs: PyTorch's profile of each Base, OUTPUT_DIR/base-MAX_TOKENS.txt
"""

import argparse
from pathlib import Path

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = p.add_subparsers(dest="part", required=True)
    arg = parts.add_parser("equality").add_argument
    arg("--rows", type=flags.count, default=256, help="of data/sample/train.tsv (default: %(default)s)")
    flags.add_device(arg)
    arg = parts.add_parser("epochs").add_argument
    arg("--train", required=True, nargs="+", metavar="FILE")
    arg("--logits", required=True, nargs="+", metavar="FILE")
    arg("--valid", required=True, metavar="FILE")
    arg("--tokenizer", required=True, metavar="DIR")
    arg("--students", required=True, nargs="+", metavar="SIZE:MAX_TOKENS[:LR]")
    arg("--epochs", type=flags.count, default=3, help="default: %(default)s")
    arg("--steps", type=flags.count, default=30, metavar="N", help="to profile (default: %(default)s)")
    arg("--output-dir", default="profiles", type=Path, metavar="DIR", help="default: %(default)s")
    flags.add_device(arg)
    arg = parts.add_parser("half").add_argument
    arg("source", type=Path)
    arg("target", type=Path)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import distill
import dump_logits
import finetune_teacher
import runtime
import tasks
from bench.common import call
from data.batches import encode, read_tokenizer
from data.training import encode_training_set, read_training_set
from runtime import UserError
from student import Student
from teacher import Teacher

ROOT = Path(__file__).parent.parent
BASE = ROOT / "models/base.pt"
# How far apart rounding may bring logits of about 5; and after a few steps, as AdamW makes full steps even of
# gradients that are rounding alone. On a CPU with other kernels: 0, and 4e-4.
ROUNDING, AFTER_TRAINING = 1e-3, 2e-2


def show(what: str, figure: str) -> None:
    print(what, figure, sep="\t", flush=True)


# ---- equality ----------------------------------------------------------------------------------------------


def compare(what: str, cpu, other, limit: float) -> bool:
    """Show the largest difference of two tensors, or lists of numbers, and whether it is within the limit."""
    difference = (torch.as_tensor(cpu) - torch.as_tensor(other)).abs().max().item()
    same = difference <= limit  # NaN is not
    show(what, f"{difference:.1e} apart, {'within' if same else 'MORE THAN'} {limit:g}")
    return same


def losses(folder: Path) -> list[float]:
    """The training loss of each epoch."""
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["train_loss"] for line in lines[1:]]


def equality(args) -> None:
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # TF32 rounds more
    devices = "cpu", runtime.pick_device(args.device).type
    lines = (ROOT / "data/sample/train.tsv").read_text("utf-8").splitlines()[: args.rows + 1]
    texts = [line.split("\t")[1] for line in lines[1:]]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows, encoder, words = folder / "rows.tsv", folder / "encoder", folder / "vocab_size_3000"
        rows.write_text("\n".join([*lines, ""]), "utf-8")
        shutil.copytree(ROOT / "models/encoder", encoder)  # without dropout, as each device draws its own
        config = json.loads((encoder / "config.json").read_text("utf-8"))
        config |= {name: 0.0 for name in config if "dropout" in name}
        (encoder / "config.json").write_text(json.dumps(config), "utf-8")
        words.mkdir()
        (words / "tokenizer.json").write_text(Student.load(BASE).tokenizer.to_str(), "utf-8")

        def trained(script, name: str, *more) -> list[Path]:
            """The folders of the two runs."""
            for i, device in enumerate(devices):
                call(script, "--train", rows, "--valid", rows, "--epochs", 2, "--max-tokens", 1024,
                     "--precision", "fp32", "--device", device, "--output-dir", folder / f"{name}{i}", *more)
            return [next(folder.glob(f"{name}{i}/**/log.jsonl")).parent for i in range(2)]

        teachers = trained(finetune_teacher, "teacher", "--checkpoint", encoder, "--lr", 3e-4)
        call(dump_logits, "--teacher", teachers[0] / "teacher.pt", "--data", rows, "--device", "cpu",
             "--precision", "fp32", "--output-dir", folder)
        students = trained(distill, "student", "--tokenizer", words, "--logits", folder / "rows.pt")
        same = [compare(f"{what}, logits of {len(texts)} reviews",
                        *(load(file, device).logits(texts) for device in devices), ROUNDING)
                for what, load, file in (("the shipped Base", Student.load, BASE),
                                         ("a teacher", Teacher.load, teachers[0] / "teacher.pt"))]
        for what, load, runs in (("teacher", Teacher.load, teachers), ("student", Student.load, students)):
            same += [compare(f"{what} after training, loss of each epoch", *map(losses, runs), ROUNDING),
                     compare(f"{what} after training, logits",
                             *(load(run / f"{what}.pt").logits(texts) for run in runs), AFTER_TRAINING)]
    if not all(same):
        raise UserError(f"{same.count(False)} of {len(same)} differences are larger than rounding")


# ---- epochs ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def utilisation(device: torch.device):
    """Within the block the GPU's utilisation is sampled; yields a list, in the end of percentages. It stays
    empty without nvidia-smi."""
    samples, command = [], shutil.which("nvidia-smi")
    if command is None:
        yield samples
        return
    command = [command, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    if device.type == "cuda":
        command += ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield samples
        finally:
            process.terminate()
            samples += [float(line) for line in process.stdout if line.strip().isdigit()]


class Profiled(runtime.Run):
    """A run of one short epoch: `count` steps to warm up, as many by the clock, as many in the profiler."""

    count: int

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def steps(self, batches, rows: int):
        batches = super().steps(batches, rows)
        yield from islice(batches, self.count)
        self.wait()
        start = time.perf_counter()
        yield from islice(batches, self.count)
        self.wait()
        self.wall = time.perf_counter() - start
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        with profile(activities=kinds) as self.profile:
            yield from islice(batches, self.count)
            self.wait()
        self.watch.finish()
        self.progress.close()


def busy(spans) -> float:
    """How long at least one of the (start, end) lasts."""
    total = at = 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, at))
        at = max(at, end)
    return total


def shares(events, seconds) -> str:
    """The five operators that take most of the time seconds(event), and their shares of all."""
    events = [event for event in events if event.device_type == DeviceType.CPU]
    events.sort(key=seconds, reverse=True)
    total = sum(map(seconds, events))
    return ", ".join(f"{event.key} {seconds(event) / total:.0%}" for event in events[:5])


def breakdown(run: Profiled, averages) -> str:
    """What a step's time goes into; `averages` are key_averages() of the profile."""
    kernels = [(event.time_range.start, event.time_range.end) for event in run.profile.events()
               if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    found = [f"{1000 * run.wall / run.count:.2f} ms per step"]
    if kernels:
        found += [f"the GPU at work in {busy(kernels) / 1e6 / run.wall:.0%} of it, "
                  f"{len(kernels) / run.count:,.0f} kernels",
                  "most GPU time: " + shares(averages, lambda event: event.self_device_time_total)]
    return "; ".join([*found, "most CPU time: " + shares(averages, lambda event: event.self_cpu_time_total)])


def epochs(args) -> None:
    quiet = contextlib.redirect_stdout(sys.stderr)  # of all but the figures
    given = ["--train", *args.train, "--logits", *args.logits, "--valid", args.valid, "--tokenizer",
             args.tokenizer, "--embeddings", "random", "--device", args.device, "--epochs", str(args.epochs)]
    plan = []
    for student in args.students:
        named = zip(("--size", "--max-tokens", "--lr"), student.split(":"), strict=False)
        plan.append((student.split(":"), distill.parse_args([*given, *itertools.chain(*named)])))
    with tempfile.TemporaryDirectory() as folder:
        with quiet:
            flags, device = plan[0][1], runtime.pick_device(args.device)
            data = read_training_set(flags, tasks, distill.load)
            tokenizer = read_tokenizer(args.tokenizer)
            store, valid = encode_training_set(data, partial(
                encode, tokenizer, max_length=flags.max_length, pad_id=tokenizer.token_to_id("[PAD]"),
                blank_id=tokenizer.token_to_id("[UNK]")), folder)
            valid = valid.to(device)

        def train(kind, flags) -> runtime.Run:
            [(_, settings)] = distill.grid_settings(flags)
            with quiet:
                run = kind(tempfile.mkdtemp(dir=folder), "student.pt", runtime.made_by({}, {}), flags, device,
                           runtime.pick_precision(flags.precision, device, lstm=True))
                student = distill.new_student(settings, tokenizer, None, data.task, flags, device)
                distill.train(run, student, settings, store, valid, data, flags, device)
            return run

        for (size, tokens, *rate), flags in plan:
            name = f"{size}, --max-tokens {tokens}" + "".join(f" --lr {value}" for value in rate)
            with utilisation(device) as samples:
                run = train(runtime.Run, flags)
            log = [json.loads(line) for line in run.log.text.splitlines()[1:]]
            seconds, score = min(line["seconds"] for line in log), data.task.best
            used = f"{statistics.fmean(samples):.0f} %" if samples else "–"
            show(name, f"{seconds:.2f} s per epoch of {data.rows:,} reviews, GPU {used}, validation {score} "
                       f"{log[-1][f'valid_{score}']:.4f} after {len(log)} epochs")
            if size == "base" and not rate:
                Profiled.count, flags.epochs = args.steps, 1
                run = train(Profiled, flags)
                averages = run.profile.key_averages()
                show(f"{name}, {args.steps} steps", breakdown(run, averages))
                by = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
                args.output_dir.mkdir(parents=True, exist_ok=True)
                (args.output_dir / f"base-{tokens}.txt").write_text(
                    averages.table(sort_by=by, row_limit=30), "utf-8")


# ---- half --------------------------------------------------------------------------------------------------


def half(args) -> None:
    """Of a published folder the weights become float16; of a teacher.pt they are rounded to it, and stay
    float32, as which they are read."""
    if args.source.is_dir():
        args.target.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            if (args.source / name).exists():
                shutil.copy(args.source / name, args.target)
        config = json.loads((args.source / "config.json").read_text("utf-8")) | {"torch_dtype": "float16"}
        weights = runtime.load_weights(args.source / "pytorch_model.bin")
        runtime.save_together({
            args.target / "config.json": json.dumps(config, ensure_ascii=False, indent=1),
            args.target / "pytorch_model.bin": {name: tensor.half() for name, tensor in weights.items()}})
    else:
        artifact = runtime.load_weights(args.source)
        artifact["weights"] = {name: tensor.half().float() for name, tensor in artifact["weights"].items()}
        runtime.save(artifact, args.target)


def main(args):
    {"equality": equality, "epochs": epochs, "half": half}[args.part](args)


if __name__ == "__main__":
    runtime.main(main, ARGS)
