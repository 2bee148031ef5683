"""Side-by-side measurements: what the comparisons have in common before torch is imported.

Each comparison is one module, run from the repository's root (`python -m bench.distillation`); common.py
holds the measuring, table.py fills the README's table. `make bench` runs all in their short form.
"""

import argparse
import os
from pathlib import Path


def parse_args(doc: str, argv=None, *, rows: int, long_rows: int, add=None) -> argparse.Namespace:
    """The flags of a comparison; `add(arg)` adds its own. Also keeps the process to --cores."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # data
    arg("--train", default="data/sample/train.tsv", metavar="FILE", help=".tsv (default: %(default)s)")
    arg("--valid", default="data/sample/valid.tsv", metavar="FILE", help=".tsv (default: %(default)s)")
    arg("--tokenizer", metavar="DIR", help="the student's; default: one trained on --train")
    arg("--checkpoint", metavar="DIR|ID",
        help="the teacher's; default: an ELECTRA, 6 layers, 256 wide, of random weights, which are as fast")
    # amount
    arg("--long", action="store_true", help="more rows and rounds, for the figures of a README")
    arg("--rows", type=int, metavar="N",
        help=f"of --train: the first N, over again if it has fewer (default: {rows:,}, long {long_rows:,})")
    arg("--rounds", type=int, metavar="N", help="alternations (default: 3, long 5)")
    # machine, output
    arg("--cores", type=int, default=2, metavar="N", help="at most this many (default: %(default)s)")
    arg("--results", default="bench/results", metavar="DIR", help="default: %(default)s")
    if add is not None:
        add(arg)
    args = p.parse_args(argv)
    args.rows = args.rows or (long_rows if args.long else rows)
    args.rounds = args.rounds or (5 if args.long else 3)
    if args.rows < 1 or args.rounds < 1 or args.cores < 1:
        p.error("--rows, --rounds and --cores must be at least 1")
    keep_to_cores(args.cores)
    quiet(offline=args.checkpoint is None or Path(args.checkpoint).is_dir())
    return args


def keep_to_cores(count: int) -> None:
    """Must come before the import of PyTorch and tokenizers, whose threads follow the cores they find."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    count = min(count, os.cpu_count() or 1)
    os.environ.update(OMP_NUM_THREADS=str(count), RAYON_NUM_THREADS=str(count), TOKENIZERS_PARALLELISM="true")


def quiet(offline: bool) -> None:
    """The peers' warnings and bars would hide the few lines that matter."""
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
