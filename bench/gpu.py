"""What bench/gpu.sh measures in one process. It prints lines of two cells: what, and its figure.

    python -m bench.gpu equality --device cuda        # the CPU's results and the GPU's: the largest difference
    python -m bench.gpu epochs --train train.tsv --logits logits/train.pt --valid valid.tsv \\
        --tokenizer tokenizer/vocab_size_3000 --students base:4096 base:16384:8e-3 tiny:16384
    python -m bench.gpu half pretrained encoder       # a published folder in float16; or a teacher.pt, rounded

equality  fine-tunes models/encoder and distils Base, both in float32 with the same seed, on --device and on the
          CPU. "--device cpu" compares the CPU with itself. The exit code is 1 if a difference is too large.
epochs    trains students as distill.py does, the texts encoded once. Of each: seconds of its fastest epoch
          without validation, the GPU's utilisation by nvidia-smi, accuracy of the last epoch. Of Base with the
          default rate also how much of a step the GPU is at work, and the operators that take the time.
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
    arg("--steps", type=flags.count, default=50, metavar="N", help="to profile (default: %(default)s)")
    arg("--output-dir", default="profiles", type=Path, metavar="DIR", help="default: %(default)s")
    flags.add_device(arg)
    arg = parts.add_parser("half").add_argument
    arg("source", type=Path)
    arg("target", type=Path)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import contextlib
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
from student import Student
from teacher import Teacher

ROOT = Path(__file__).parent.parent
# What float32 rounds differently may be this far apart: of logits of about 5; after steps of training, in which
# AdamW makes a full step of the smallest gradient.
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


def equality(args) -> int:
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # TF32 is not what is compared
    devices = "cpu", runtime.pick_device(args.device).type
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lines = (ROOT / "data/sample/train.tsv").read_text("utf-8").splitlines(keepends=True)
        rows = folder / "rows.tsv"
        rows.write_text("".join(lines[: args.rows + 1]), "utf-8")
        texts = [line.split("\t")[1] for line in lines[1 : args.rows + 1]]
        encoder = folder / "encoder"  # without dropout: each device draws its own
        shutil.copytree(ROOT / "models/encoder", encoder)
        config = json.loads((encoder / "config.json").read_text("utf-8"))
        config |= {name: 0.0 for name in config if "dropout" in name}
        (encoder / "config.json").write_text(json.dumps(config), "utf-8")
        vocabulary = folder / "vocab_size_3000"
        vocabulary.mkdir()
        (vocabulary / "tokenizer.json").write_text(Student.load(ROOT / "models/base.pt").tokenizer.to_str(), "utf-8")
        given = ["--train", rows, "--valid", rows, "--precision", "fp32", "--max-tokens", 1024, "--epochs", 2]
        trained = {"teacher": [], "base-random": []}
        for name, script, *more in (
                ("teacher", finetune_teacher, "--checkpoint", encoder, "--lr", 3e-4),
                ("base-random", distill, "--tokenizer", vocabulary, "--logits", folder / "rows.pt",
                 "--embeddings", "random")):
            if script is distill:
                call(dump_logits, "--teacher", folder / "0/teacher/teacher.pt", "--data", rows, "--device", "cpu",
                     "--precision", "fp32", "--output-dir", folder)
            for i, device in enumerate(devices):
                out = folder / str(i) / name if script is finetune_teacher else folder / str(i)
                call(script, *given, *more, "--device", device, "--output-dir", out)
                trained[name].append(folder / str(i) / name)
        same = []
        for what, load, file in (("the shipped Base", Student.load, ROOT / "models/base.pt"),
                                 ("a teacher", Teacher.load, folder / "0/teacher/teacher.pt")):
            same.append(compare(f"{what}, logits of {len(texts)} reviews",
                                *(load(file, device).logits(texts) for device in devices), ROUNDING))
        for name, load, file in (("teacher", Teacher.load, "teacher.pt"), ("base-random", Student.load, "student.pt")):
            what = f"{name.removesuffix('-random')} after training"
            same += [compare(f"{what}, losses", *map(losses, trained[name]), ROUNDING),
                     compare(f"{what}, logits", *(load(out / file).logits(texts) for out in trained[name]),
                             AFTER_TRAINING)]
    return 0 if all(same) else 1


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
    events = sorted((event for event in events if event.device_type == DeviceType.CPU), key=seconds, reverse=True)
    total = sum(map(seconds, events))
    return ", ".join(f"{event.key} {seconds(event) / total:.0%}" for event in events[:5])


def profiled(run: Profiled) -> str:
    """What a step's time goes into."""
    events, averages = run.profile.events(), run.profile.key_averages()
    kernels = [(event.time_range.start, event.time_range.end) for event in events
               if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    found = [f"{1000 * run.wall / run.count:.2f} ms per step"]
    if kernels:
        found += [f"the GPU at work in {busy(kernels) / 1e6 / run.wall:.0%} of it, "
                  f"{len(kernels) / run.count:,.0f} kernels",
                  "most GPU time: " + shares(averages, lambda event: event.self_device_time_total)]
    return "; ".join([*found, "most CPU time: " + shares(averages, lambda event: event.self_cpu_time_total)])


def epochs(args) -> int:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        given = ["--train", *args.train, "--logits", *args.logits, "--valid", args.valid, "--tokenizer",
                 args.tokenizer, "--embeddings", "random", "--device", args.device]
        plan = [student.split(":") for student in args.students]
        plan = [distill.parse_args([*given, "--size", size, "--max-tokens", tokens, "--epochs", str(args.epochs),
                                    *(["--lr", *rate] if rate else [])]) for size, tokens, *rate in plan]
        device, data = runtime.pick_device(args.device), read_training_set(plan[0], tasks.make, distill.load)
        tokenizer = read_tokenizer(args.tokenizer)
        reads = {"max_length": plan[0].max_length, "pad_id": tokenizer.token_to_id("[PAD]"),
                 "blank_id": tokenizer.token_to_id("[UNK]")}
        store, valid = encode_training_set(data, partial(encode, tokenizer, **reads), folder)
        valid = valid.to(device)

        def train(kind, flags, name: str):
            [(_, settings)] = distill.grid_settings(flags)
            run = kind(Path(folder, name), "student.pt", runtime.made_by({}, {}), flags, device,
                       runtime.pick_precision(flags.precision, device, lstm=True))
            student = distill.new_student(settings, tokenizer, None, data.task, flags, device)
            distill.train(run, student, settings, store, valid, data, flags, device)
            return run

        for student, flags in zip(args.students, plan, strict=True):
            size, tokens, *rate = student.split(":")
            name = f"{size}, --max-tokens {tokens}" + "".join(f" --lr {value}" for value in rate)
            with utilisation(device) as samples:
                run = train(runtime.Run, flags, f"{student}".replace(":", "-"))
            log = [json.loads(line) for line in run.log.text.splitlines()[1:]]
            seconds = min(line["seconds"] for line in log)
            used = f"{statistics.fmean(samples):.0f} %" if samples else "–"
            with contextlib.redirect_stdout(sys.__stdout__):
                show(name, f"{seconds:.2f} s per epoch of {data.rows:,} reviews, GPU {used}, validation accuracy "
                           f"{log[-1]['valid_accuracy']:.2%} after {args.epochs} epochs")
            if size == "base" and not rate:
                Profiled.count, flags.epochs = args.steps, 1
                run = train(Profiled, flags, f"profile-{tokens}")
                args.output_dir.mkdir(parents=True, exist_ok=True)
                (args.output_dir / f"base-{tokens}.txt").write_text(run.profile.key_averages().table(
                    sort_by=f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total", row_limit=30), "utf-8")
                with contextlib.redirect_stdout(sys.__stdout__):
                    show(f"{name}, {args.steps} steps", profiled(run))
    return 0


# ---- half --------------------------------------------------------------------------------------------------


def half(args) -> int:
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
    return 0


def main(args):
    sys.exit({"equality": equality, "epochs": epochs, "half": half}[args.part](args))


if __name__ == "__main__":
    runtime.main(main, ARGS)
