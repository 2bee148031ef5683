"""How distill.py grows with its data: time of an example, and memory of the process.

    python -m bench.scaling                                               # ten and fifty thousand rows
    python -m bench.scaling --long --train train.tsv --valid valid.tsv    # to 1 million; memory to 20 million

Rows are those of --train, over again until there are enough. Time: one epoch of Base, training alone, at the
smaller and the larger size in turn; a ratio of 1 is linear, more means that more rows are cheaper. Memory: a
process of its own trains Tiny for a while (--seconds, after reading and encoding) at both sizes; what it
holds is read from the kernel ten times a second. `ours` is the larger size's, `theirs` the smaller's.
The figure is anonymous memory, which the process owns; pages of mapped files, which the kernel takes back
when it needs room, are told beside it, and so is the peak of both together.

writes  RESULTS/scaling-time.json, scaling-memory.json (Linux)
"""

from bench import parse_args

if __name__ == "__main__":
    ARGS = parse_args(
        __doc__, rows=10_000, long_rows=10_000,
        add=lambda arg: (
            arg("--times", type=int, nargs=2, metavar="N",
                help="rows (default: 10,000 50,000; long 10,000 1,000,000)"),
            arg("--memory", type=int, nargs=2, metavar="N",
                help="rows (default: 20,000 200,000; long 1,000,000 20,000,000)"),
            arg("--seconds", type=int, help="of training when memory is read (default: 5, long 120)")))

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

import distill
import runtime
from bench import common
from student import SIZES

TARGETS = {"scaling-time": 1 / 1.1, "scaling-memory": 1 / 1.2}
FIELDS = {"RssAnon": "own memory", "RssFile": "mapped files", "VmHWM": "peak of both"}


def flags(made, rows: int, size: str, output: Path) -> list[str]:
    """distill.py's, for this many rows; makes the files."""
    train = made.write(rows, f"rows{rows}")
    logits = made.folder / f"rows{rows}.pt"
    torch.save(torch.randn(rows, len(made.names)), logits)  # any logits cost the same
    return ["--train", str(train), "--logits", str(logits), "--valid", str(made.valid), "--tokenizer",
            str(made.tokenizer), "--output-dir", str(output), "--overwrite", "--epochs", "1", "--size", size,
            "--device", "cpu", "--max-length", str(common.MAX_LENGTH)]


def epoch(made, argv: list[str]) -> dict:
    """One epoch of Base: its line of the log, precision, steps, and the seconds of everything."""
    with common.count_steps() as steps:
        whole = common.timed(lambda: common.call(distill, *argv))
    log = common.read_log(made.folder / "students" / "base" / "log.jsonl")
    return {**log[-1], "precision": log[0]["precision"], "steps": len(steps), "whole": whole}


def time_by_rows(args, made):
    small, large = args.times or (10_000, 1_000_000 if args.long else 50_000)
    argv = {rows: flags(made, rows, "base", made.folder / "students") for rows in (small, large)}
    lines = {}

    def microseconds(rows):
        lines[rows] = epoch(made, argv[rows])
        return 1e6 * lines[rows]["seconds"] / rows

    rates = common.machine_rates()
    values = common.alternate(
        {"ours": lambda: microseconds(large), f"{small:,} rows": lambda: microseconds(small)}, args.rounds,
        warm_up={"ours": lambda: microseconds(small), f"{small:,} rows": None})
    rates = common.best_rates(rates, common.machine_rates())
    tokenizer = Tokenizer.from_file(str(made.tokenizer / "tokenizer.json"))
    tokenizer.enable_truncation(common.MAX_LENGTH)
    tokens = sum(max(1, len(row.ids)) for row in tokenizer.encode_batch(made.texts))
    tokens = tokens * large // len(made.texts)
    E, H = SIZES["base"]
    parameters = tokenizer.get_vocab_size() * E + 2 * 4 * H * (E + H + 2) + (2 * H + 1) * len(made.names)
    precision = lines[large]["precision"]
    work = common.student_work(tokens, large, lines[large]["steps"], parameters, E, H, len(made.names),
                               training=True)
    roof = common.roofline(work, rates, precision, common.summary(values["ours"])["median"] * large / 1e6)
    argv[small] += ["--precision", precision]  # no trial, whose operators would count
    gap = common.account(lambda: microseconds(small), roof["least_seconds"] * small / large,
                         lines[small]["steps"])
    common.publish(common.make_result(
        "scaling-time", values, unit="µs/example", better="less", n=large, target=TARGETS["scaling-time"],
        precision=precision, roof=roof, gap=gap,
        checked=[f"rows an optimiser step: {large / lines[large]['steps']:.1f} and "
                 f"{small / lines[small]['steps']:.1f}"],
        also={f"µs/example of the whole script, {rows:,} rows": 1e6 * lines[rows]["whole"] / rows
              for rows in (small, large)}), args.results)


def memory_of(argv: list[str], log: Path, seconds: float) -> dict[str, float]:
    """MB of each of FIELDS at their most, of a process that trains with these flags for `seconds`."""
    log.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, "distill.py", *argv], stdout=output, stderr=output)
        most, training_since = dict.fromkeys(FIELDS, 0.0), None
        try:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
                for name, amount in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.M):
                    if name in most:
                        most[name] = max(most[name], int(amount) * 1024 / 1e6)
                if training_since is None and log.exists() and log.read_text("utf-8").endswith("\n"):
                    training_since = time.monotonic()  # its first line stands after encoding, before the loop
                if training_since and time.monotonic() - training_since > seconds:
                    break
                time.sleep(0.1)
        finally:
            process.kill()
            code = process.wait()
        if training_since is None:
            output.seek(0)
            raise runtime.UserError(f"distill.py ended with {code}: {output.read().decode()[-500:]}")
    return most


def memory_by_rows(args, made):
    small, large = args.memory or ((1_000_000, 20_000_000) if args.long else (20_000, 200_000))
    seconds = args.seconds or (120 if args.long else 5)
    output = made.folder / "memory"
    found = {}
    for rows in (small, large):  # written and removed in turn: the large one has gigabytes
        argv = flags(made, rows, "tiny", output)
        found[rows] = memory_of(argv, output / "tiny" / "log.jsonl", seconds)
        for path in (argv[1], argv[3]):
            Path(path).unlink()
        amounts = [f"{FIELDS[name]} {common.figure(value)} MB" for name, value in found[rows].items()]
        print(f"  {rows:,} rows: {', '.join(amounts)}", file=sys.stderr)
    held = 1e6 * (found[large]["RssAnon"] - found[small]["RssAnon"]) / (large - small)
    size = sum(len(text.encode()) for text in made.texts) / len(made.texts)
    values = {"ours": [found[large]["RssAnon"]], f"{small:,} rows": [found[small]["RssAnon"]]}
    common.publish(common.make_result(
        "scaling-memory", values, unit="MB", better="less", n=large, target=TARGETS["scaling-memory"],
        precision="auto", roof={}, checked=[f"both trained for {seconds} s, or to the end of the epoch"],
        gap=f"{held:,.0f} bytes are held for each row more; a text is {size:,.0f} bytes on average",
        also={f"{what}, MB, {rows:,} rows": found[rows][name] for name, what in FIELDS.items()
              for rows in (small, large) if name != "RssAnon"}), args.results)


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        made = common.material(args, folder, teacher=False)
        time_by_rows(args, made)
        if Path("/proc/self/status").exists():
            memory_by_rows(args, made)


if __name__ == "__main__":
    runtime.run(main, ARGS)
