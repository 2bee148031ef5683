"""Distilling more rows: time to a million, memory to 20 million.

    python -m bench.scaling                                               # the sample, minutes
    python -m bench.scaling --long                                        # hours, several GB of disk

Rows are those of --train, repeated until there are enough. Time: one epoch of Base, training alone, at the
smaller and the larger size in turn; a ratio of 1 is linear, above 1 more rows are cheaper. Memory: a process
of its own trains Tiny for a while (--seconds, after reading and encoding) at both sizes; what it holds is
read from the kernel ten times a second: the peak of its anonymous memory, without pages of mapped files,
which the kernel takes back when it needs room. `ours` is the larger size's, `theirs` the smaller's.

writes  RESULTS/scaling-time.json, scaling-memory.json (Linux)
"""

import bench

FORMS = {  # rows of time, rows of memory, seconds
    "tiny": ((100, 200), (100, 400), 1), "short": ((10_000, 50_000), (20_000, 200_000), 5),
    "long": ((10_000, 1_000_000), (1_000_000, 20_000_000), 120)}


def parse_args(argv=None):
    args = bench.parse_args(__doc__, argv, rows=(200, 10_000, 10_000), add=lambda arg: (
        arg("--seconds", type=int, help="of training while memory is read (default: 5; tiny 1, long 120)")))
    args.times, args.memory, seconds = FORMS[args.form]
    args.seconds = args.seconds or seconds
    return args


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import distill
import runtime
from bench import common
from data.batches import encode
from student import SIZES, Student

ROOT = Path(__file__).parent.parent


def files(made, rows: int) -> tuple[Path, Path]:
    """Training file and logits of this many rows; any logits cost the same."""
    logits = made.folder / f"rows{rows}.pt"
    torch.save(torch.randn(rows, len(made.names)), logits)
    return made.write(rows, f"rows{rows}"), logits


def time_by_rows(args, made):
    (small, large), lines, whole = args.times, {}, {}
    found = {rows: files(made, rows) for rows in args.times}

    def microseconds(rows):
        train, logits = found[rows]
        whole[rows] = common.timed(lambda: lines.update({rows: common.train(
            distill, made, train, "--logits", logits, "--tokenizer", made.tokenizer, "--epochs", 1)}))
        return 1e6 * lines[rows]["seconds"] / rows

    values, rates = common.alternate(args, {
        "ours": lambda: microseconds(large), f"{small:,} rows": lambda: microseconds(small)}, cold=("ours",))
    line, before = lines[large], lines[small]
    student = Student.load(line["folder"] / "student.pt")
    parameters = sum(p.numel() for p in student.parameters())
    tokens = encode(student.tokenizer, made.texts, None, **student.reads).lengths.mean() * large
    work = common.student_work(int(tokens), large, line["steps"], parameters, *SIZES["base"],
                               len(made.names), training=True)
    common.publish(
        args, "scaling-time", values, unit="µs/example", better="less", n=large, precision=line["precision"],
        roof=common.roofline(work, rates, line["precision"], statistics.median(values["ours"]) * large / 1e6),
        checked=f"rows per optimizer step: {large / line['steps']:.1f} and {small / before['steps']:.1f}",
        also={f"µs/example of the whole script, {rows:,} rows": 1e6 * whole[rows] / rows
              for rows in args.times})


def memory_of(argv: list, log: Path, seconds: float) -> float:
    """The most MB that a process which trains with these flags for `seconds` owns."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, "distill.py", *map(str, argv)], cwd=ROOT, stdout=output,
                                   stderr=output)
        most, training_since = 0.0, None
        try:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
                if found := re.search(r"^RssAnon:\s+(\d+) kB$", status, re.M):
                    most = max(most, int(found[1]) * 1024 / 1e6)
                if training_since is None and log.exists() and log.read_text("utf-8").endswith("\n"):
                    training_since = time.monotonic()  # its first line stands after encoding, before the loop
                if training_since and time.monotonic() - training_since > seconds:
                    break
                time.sleep(0.1)
        finally:
            process.kill()
            code = process.wait()
        if training_since is None and not log.exists():
            output.seek(0)
            raise runtime.UserError(f"distill.py ended with {code}: {output.read().decode()[-500:]}")
    return most


def memory_by_rows(args, made):
    (small, large), found = args.memory, {}
    for rows in args.memory:  # written and removed in turn: the large one has gigabytes
        train, logits = files(made, rows)
        output = Path(tempfile.mkdtemp(dir=made.folder))
        found[rows] = memory_of(
            ["--train", train, "--logits", logits, "--valid", made.valid, "--tokenizer", made.tokenizer,
             "--output-dir", output, "--epochs", 1, "--size", "tiny", "--device", "cpu", "--max-length",
             common.MAX_LENGTH], output / "tiny" / "log.jsonl", args.seconds)
        train.unlink()
        logits.unlink()
    common.publish(
        args, "scaling-memory", {"ours": [found[large]], f"{small:,} rows": [found[small]]}, unit="MB",
        better="less", n=large, precision="auto",
        checked=f"both trained for {args.seconds} s, or to the end of the epoch",
        also={"bytes held for each row more": 1e6 * (found[large] - found[small]) / (large - small)})


def compare(args, made):
    time_by_rows(args, made)
    if Path("/proc/self/status").exists():
        memory_by_rows(args, made)


if __name__ == "__main__":
    common.main(compare, ARGS, teacher=False)
