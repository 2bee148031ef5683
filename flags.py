"""Types of flags, and the flags that several scripts share. Imports no torch: --help answers at once."""

import argparse
import math
import os


def number(kind, low: float, high: float, text: str, open_low=False, open_high=False):
    """An argparse type: an int or float in a range; `text` describes it in the error."""
    def parse(value: str):
        try:
            found = kind(value)
        except ValueError:
            found = math.nan  # NaN is in no range
        fits = (low < found if open_low else low <= found) and (found < high if open_high else found <= high)
        if not fits:
            raise argparse.ArgumentTypeError(f"{value} is not {text}")
        return found
    return parse


def embeddings(value: str) -> str:
    """An argparse type: teacher, random, or what looks like a file, a folder or a hub id."""
    if value in ("teacher", "random") or value.endswith(".pt") or "/" in value or os.path.isdir(value):
        return value
    raise argparse.ArgumentTypeError(f"{value!r} is not teacher, random, a .pt file, a folder or a hub id")


TASKS = ("classification", "multilabel", "regression")  # those of tasks.py: label, labels, score
LARGEST = 2**31 - 1
count = number(int, 1, LARGEST, f"a whole number from 1 to {LARGEST}")
natural = number(int, 0, LARGEST, f"a whole number from 0 to {LARGEST}")
length = number(int, 3, LARGEST, "a whole number of at least 3")
positive = number(float, 0, LARGEST, "a positive number", open_low=True)
not_negative = number(float, 0, LARGEST, "a number of at least 0")
share = number(float, 0, 1, "a number in [0, 1)", open_high=True)
weight = number(float, 0, 1, "a number in [0, 1]")
factor = number(float, 0, 1, "a number in (0, 1]", open_low=True)


def add_columns(arg, answers="label, labels or score if there", task=False) -> None:
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    if answers:
        arg("--label-column", metavar="NAME", help=f"default: {answers}")
    if task:
        arg("--task", choices=TASKS, help="what the answers are; default: as their column is called")


def add_device(arg) -> None:
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")


def add_machine(arg) -> None:
    """Device and precision; all scripts that run a model many times have them."""
    add_device(arg)
    arg("--precision", default="auto", choices=["auto", "fp32", "bf16"],
        help="auto: bf16 where the processor is fast at it (default: %(default)s)")


def add_training(arg) -> None:
    add_machine(arg)
    arg("--deterministic", action="store_true", help="the same bits in every run on CUDA too; slower")
    arg("--tensorboard", action="store_true", help="also log to a folder tensorboard beside log.jsonl")


def add_run(arg, folder: str) -> None:
    """Where a training run writes, and how often it saves."""
    arg("--output-dir", default=folder, metavar="DIR", help="default: %(default)s")
    arg("--overwrite", action="store_true", help="discard existing results and start over")
    arg("--save-every", type=not_negative, default=10, metavar="MINUTES",
        help="minutes between checkpoints (default: %(default)g)")


def add_task(arg) -> None:
    """What tasks.apply_flags() tells the task."""
    arg("--class-weights", choices=["balanced"],
        help="in the labels' loss a rare class counts as much as a common one")
    arg("--best", metavar="SCORE",
        help="score of --valid that chooses the epoch, such as macro_f1 (default: the task's own)")


def add_optimizer(arg, warmup: float, clip: float = 1.0) -> None:
    arg("--warmup", type=share, default=warmup,
        help="share of the run in which the learning rate rises (default: %(default)s)")
    arg("--weight-decay", type=not_negative, default=0.01, help="default: %(default)s")
    arg("--clip", type=positive, default=clip, help="largest gradient norm (default: %(default)s)")
