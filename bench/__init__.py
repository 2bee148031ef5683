"""Side-by-side measurements: the flags they share, before torch is imported.

Each comparison is one module, run from the repository's root (`python -m bench.distillation`); common.py
measures, table.py writes docs/efficiency.md. `make bench` runs all of them in their short form, and
`make bench BENCH=--tiny` in a form that only shows whether they still work.
"""

import argparse
import os
from pathlib import Path

import flags

FORMS = {"tiny": 1, "short": 3, "long": 5}  # rounds of each


def parse_args(doc: str, argv=None, *, rows: tuple[int, int, int], add=None) -> argparse.Namespace:
    """The flags of a comparison; `rows` of the three forms. `add(arg)` adds flags of its own."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # data
    arg("--train", default="data/sample/train.tsv", metavar="FILE", help=".tsv (default: %(default)s)")
    arg("--valid", default="data/sample/valid.tsv", metavar="FILE", help=".tsv (default: %(default)s)")
    arg("--tokenizer", metavar="DIR", help="the student's; default: one trained on --train")
    arg("--checkpoint", metavar="DIR|ID",
        help="the teacher's (default: models/encoder)")
    # amount
    form = p.add_mutually_exclusive_group()
    form.add_argument("--tiny", dest="form", action="store_const", const="tiny", default="short",
                      help="seconds: the default teacher keeps one layer; the figures mean nothing")
    form.add_argument("--long", dest="form", action="store_const", const="long", help="more rows and rounds")
    arg("--rows", type=flags.count, metavar="N", help="of --train: the first N, repeated if it has fewer "
        f"(default: {rows[1]:,}; tiny {rows[0]:,}, long {rows[2]:,})")
    arg("--rounds", type=flags.count, metavar="N", help="alternations (default: 3; tiny 1, long 5)")
    # machine, output
    arg("--cores", type=flags.count, metavar="N", help="at most this many (default: 2; tiny 1)")
    arg("--results", metavar="DIR", help="default: bench/results; with --tiny nothing is written")
    if add is not None:
        add(arg)
    p.set_defaults(family="electra")  # of comparisons without add_family too
    args = p.parse_args(argv)
    if args.checkpoint and args.family != "electra":
        p.error("--family changes the default teacher; leave out --checkpoint")
    args.tiny = args.form == "tiny"
    args.rows = args.rows or dict(zip(FORMS, rows, strict=True))[args.form]
    args.rounds = args.rounds or FORMS[args.form]
    args.cores = args.cores or (1 if args.tiny else 2)
    args.results = args.results or (None if args.tiny else "bench/results")
    return args


def add_family(arg) -> None:
    """--family, of a comparison whose result then has another name (common.name_of)."""
    arg("--family", default="electra", choices=["electra", "albert", "modernbert"],
        help="of the default teacher, models/encoder; albert has its weights too, modernbert random ones; "
             "only transformers builds these two (default: %(default)s)")


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """Keep the process to --cores and the peers quiet. Must come before the import of PyTorch and tokenizers,
    whose threads follow the cores that they find."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    count = str(min(args.cores, os.cpu_count() or 1))
    os.environ.update(OMP_NUM_THREADS=count, RAYON_NUM_THREADS=count, TOKENIZERS_PARALLELISM="true",
                      TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    if args.checkpoint is None or Path(args.checkpoint).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    return args
