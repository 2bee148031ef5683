"""Find the best student whose file fits in so many bytes: a short trial of each shape, the best one in full.

    python extra/search_budget.py --budget 300KB --tokenizer tokenizer/* -- --train data/nsmc/train.tsv \\
        --logits logits/train.pt --valid data/nsmc/valid.tsv

For each vocabulary and embedding width, the widest LSTM whose int8 file fits is trained for an eighth of the
epochs. The one with the best validation score is trained in full, and a copy in the finest precision that
fits is written beside it. All flags that are not listed below are passed on to distill.py, one value each.

reads   what distill.py reads
writes  OUTPUT_DIR/trials/NAME and OUTPUT_DIR/best/NAME, as distill.py does; student.float16.pt or .int8.pt
        beside student.pt where student.pt itself is too large
again   the same command continues where it stopped; finished students are left alone
next    python evaluate.py budget/best/NAME/student.int8.pt --data data/nsmc/test.tsv
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import flags

SEVERAL = ("--train", "--logits", "--teacher")  # flags of distill.py that may have several values


def byte_count(text: str) -> int:
    """"300KB" -> 300,000."""
    number, unit = text.upper().removesuffix("B"), 1
    if number.endswith(("K", "M")):
        number, unit = number[:-1], {"K": 10**3, "M": 10**6}[number[-1]]
    if not number.isdecimal() or int(number) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 60000, 300KB or 1MB")
    return int(number) * unit


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--budget", required=True, type=byte_count, metavar="BYTES", help="such as 300KB")
    arg("--tokenizer", required=True, nargs="+", metavar="DIR", help="folders with tokenizer.json to try")
    arg("--epochs", type=flags.count, default=8, help="of the final student (default: %(default)s)")
    arg("--output-dir", default="budget", metavar="DIR", help="default: %(default)s")
    words = sys.argv[1:] if argv is None else argv
    args, args.rest = p.parse_known_args([word for word in words if word != "--"])
    starts = [i for i, word in enumerate(args.rest) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(args.rest)], strict=True):
        flag = args.rest[start].split("=")[0]
        if flag in ("--size", "--embedding-dim", "--hidden-dim"):
            p.error(f"{flag}: the search chooses it; leave it out")
        if end - start > 2 and not any(name.startswith(flag) for name in SEVERAL):
            p.error(f"{flag}: give one value; the search has no grid")
    # Of what is passed on, this says how large a file becomes and which student is best.
    p = argparse.ArgumentParser(add_help=False)
    arg = p.add_argument
    for flag in SEVERAL:
        arg(flag, nargs="+", required=flag == "--train", metavar="FILE")
    arg("--valid", required=True, metavar="FILE")
    flags.add_columns(arg, task=True)
    arg("--num-layers", type=flags.count, default=1)
    arg("--pair")
    arg("--pooling", default="last")
    arg("--head")
    flags.add_task(arg)
    return p.parse_known_args(args.rest, args)[0]


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import bisect
import subprocess
from functools import partial

import runtime
import tasks
from data.batches import read_tokenizer
from data.training import read_training_set
from runtime import UserError
from student import PRECISIONS, SIZES, Student, StudentConfig, StudentError, widths, write_whole
from teacher import Teacher

WIDTHS = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of embeddings
RESERVE = 1500  # bytes for the settings and scores in a student.pt
load = partial(runtime.load_model, loaders={"teacher": Teacher.load, "student": Student.load})


def candidates(args, tokenizers: dict, data) -> list[tuple]:
    """(path of the tokenizer, embedding_dim, hidden_dim) of each shape that is worth a trial: the widest LSTM
    that fits for its vocabulary and embedding width, unless another is wider in both."""
    def file_size(H, E, tokenizer) -> int:
        config = StudentConfig(tokenizer.get_vocab_size(), len(data.task.names), E, H, args.num_layers,
                               pooling=args.pooling, head=args.head, pair=args.pair, **data.task.config)
        student = Student(config, tokenizer, data.task.names, tasks.name_of(data.task))
        return len(student.to_bytes("int8", made_by=data.what_was_read())) + RESERVE

    found, smallest = [], float("inf")
    for path, tokenizer in tokenizers.items():
        widest = 0
        for E in reversed(WIDTHS):
            size = partial(file_size, E=E, tokenizer=tokenizer)
            hidden = range(8, min(12 * E, 256) + 1, 8)  # narrow embeddings suit large vocabularies
            fitting = bisect.bisect_right(hidden, args.budget, key=size)
            if not fitting:
                smallest = min(smallest, size(8))
            elif hidden[fitting - 1] > widest and 2 * hidden[fitting - 1] >= E:
                widest = hidden[fitting - 1]
                found.append((path, E, widest))
    if not found:
        raise UserError(f"--budget: the smallest student with these tokenizers has {smallest:,} bytes; raise "
                        f"it, or make a smaller vocabulary (train_tokenizer.py --vocab-size)")
    return found


def run_distill(words: list[str]) -> None:
    """Run distill.py, and let it save when this script is told to stop."""
    sys.stdout.flush()
    child = subprocess.Popen([sys.executable, str(ROOT / "distill.py"), *words])
    stopped, code = False, None
    while code is None:
        try:
            code = child.wait()
        except KeyboardInterrupt as signal:  # a terminal sends Ctrl-C to both, SIGTERM comes to this one
            stopped = True
            if isinstance(signal, runtime.Stopped):
                child.terminate()
    if stopped or code in (130, 143):
        raise runtime.Stopped(code if code > 0 else 130, runtime.how_to_continue())
    if code:
        raise UserError(f"distill.py ended with exit code {code}; see its message above")


def train(args, candidate: tuple, epochs: int, folder: Path) -> tuple[Path, dict[str, bytes], dict]:
    """Train a candidate, unless that is done: (its folder, its file in each precision, its best scores)."""
    path, E, H = candidate
    size = min(SIZES, key=lambda name: abs(widths(name, args.pair)[1] - H))  # decides the learning rate
    run_distill([*args.rest, "--tokenizer", path, "--size", size, "--embedding-dim", str(E), "--hidden-dim",
                 str(H), "--epochs", str(epochs), "--output-dir", str(folder)])
    # Only distill.py knows the name of its folder: the one whose lock was taken last.
    folder = max((lock.stat().st_mtime_ns, lock.parent) for lock in folder.glob("*/.lock"))[1]
    student = Student.load(folder / "student.pt")
    kept = {name: student.artifact[name] for name in ("scores", "made_by")}
    content = {kind: student.to_bytes(kind, **kept) for kind in PRECISIONS}
    return folder, content | {"float32": (folder / "student.pt").read_bytes()}, kept["scores"]


def main(args):
    data = read_training_set(args, tasks, load)
    tasks.apply_flags(data.task, args, data.answers, data.valid.answers)
    args.pair = args.pair or ("align" if data.pairs else None)  # as distill.py does
    args.head = args.head or ("relu" if data.pairs else "linear")
    tokenizers = {path: read_tokenizer(path) for path in args.tokenizer}
    output, score, short = Path(args.output_dir), f"valid_{data.task.best}", max(1, args.epochs // 8)
    rows = []
    for candidate in candidates(args, tokenizers, data):
        _, content, best = train(args, candidate, short, output / "trials")
        rows.append((best[score], -len(content["int8"]), candidate))
    rows.sort(reverse=True)
    _, _, chosen = rows[0]
    folder, content, best = train(args, chosen, args.epochs, output / "best")
    kind = next((kind for kind in PRECISIONS if len(content[kind]) <= args.budget), None)
    if kind is None:
        raise UserError(f"--budget: {folder} takes {len(content['int8']):,} bytes in int8, more than "
                        f"reckoned; raise it a little")
    file = folder / ("student.pt" if kind == "float32" else f"student.{kind}.pt")
    if kind != "float32" and not (file.is_file() and file.read_bytes() == content[kind]):
        write_whole(file, content[kind])

    print(f"\ntrials of {short} epochs, the best first\n{'vocabulary':>10}{'embedding':>11}{'hidden':>8}"
          f"{'int8 bytes':>13}{data.task.best:>12}  tokenizer")
    for value, size, (path, E, H) in rows:
        print(f"{tokenizers[path].get_vocab_size():10,}{E:11}{H:8}{-size:13,}{value:12.4f}  {path}")
    print(f"{kind} is the finest precision that fits in {args.budget:,} bytes ("
          + ", ".join(f"{name} {len(value):,}" for name, value in content.items()) + ")\n"
          f"{file}: validation {data.task.best} {best[score]:.4f} after {args.epochs} epochs")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="lower --max-tokens or --max-length")
