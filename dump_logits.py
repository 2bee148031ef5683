"""Run a fine-tuned teacher once over texts and keep its logits: row i of the tensor is row i of the file.

    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv       # -> logits/train.pt
    python dump_logits.py --teacher a.pt b.pt --data train.tsv unlabeled.tsv.gz         # mean of two teachers

reads   teacher.pt (several: their logits are averaged), files with a text column; labels are not needed
writes  OUTPUT_DIR/NAME.pt for each data file NAME.tsv: logits (N, C), fingerprints of texts and teachers
next    python distill.py --train data/nsmc/train.tsv --logits logits/train.pt --valid data/nsmc/valid.tsv …
"""

import argparse


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # artifacts
    arg("--teacher", required=True, nargs="+", metavar="FILE", help="teacher.pt; several are averaged")
    arg("--data", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--output-dir", default="logits", metavar="DIR", help="default: %(default)s")
    arg("--dtype", default="float32", choices=["float32", "float16"],
        help="of the file; float16 halves it (default: %(default)s)")
    # data
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    arg("--label-column", metavar="NAME",
        help="default: label if there; only to print the teacher's accuracy")
    # machine
    arg("--max-tokens", type=int, default=8192,
        help="tokens of a batch, padding counted (default: %(default)s)")
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    arg("--precision", default="auto", choices=["auto", "fp32", "bf16"],
        help="auto takes bf16 where a trial shows it faster (default: %(default)s)")
    args = p.parse_args(argv)
    if args.max_tokens < 1:
        p.error("--max-tokens must be at least 1")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import re
from pathlib import Path

import numpy as np
import torch

import runtime
from data.batching import logits_in_order
from data.examples import Examples, read_examples
from runtime import UserError
from teacher import Teacher

FORMAT = 1


def output_paths(data: list[str], output_dir: str) -> list[Path]:
    """train.tsv.gz -> OUTPUT_DIR/train.pt; two files that would share one name are refused."""
    paths = [Path(output_dir, re.sub(r"(\.(tsv|txt|csv|jsonl))?(\.gz)?$", "", Path(file).name) + ".pt")
             for file in data]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{data[paths.index(path)]} and {data[i]} would both be written to {path}; "
                            f"dump them in two runs with different --output-dir")
    return paths


def run_teacher(path: str, teacher: Teacher, files: list[Examples], labels, args, device) -> list:
    """Logits (N, C) float32 of each file, in file order; `labels` (N,) of each, for the printout."""
    encoded = [teacher.encode(examples.texts, examples.texts2).to(device) for examples in files]
    lengths = encoded[0].lengths
    longest = np.argsort(-lengths, kind="stable")[: max(1, args.max_tokens // lengths.max())]
    with torch.inference_mode():
        precision = runtime.pick_precision(args.precision, device,
                                           lambda: teacher(**encoded[0].batch(longest, device)))
    results = []
    for examples, rows, known in zip(files, encoded, labels, strict=True):
        what = f"{Path(path).name}, {Path(examples.path).name}"
        progress = runtime.Progress(what, len(rows), "texts")
        results.append(logits_in_order(teacher, rows, args.max_tokens, device, precision, progress))
        seconds = progress.close()
        print(f"{path} on {examples.path}: {len(rows) / seconds:,.0f} texts/s {precision}, "
              f"{runtime.clock(seconds)}{accuracy(results[-1], known)}")
    return results


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> str:
    """Share of labelled rows whose label has the largest logit, in words for the log; empty without any."""
    known = labels >= 0
    if not known.any():
        return ""
    correct = (logits.argmax(1) == labels)[known]
    return f", accuracy {correct.float().mean():.2%} of {len(correct):,} labelled rows"


def main(args):
    device = runtime.pick_device(args.device)
    paths = output_paths(args.data, args.output_dir)
    files = [read_examples(file, args.text_column, args.text2_column, args.label_column)
             for file in args.data]
    teachers = [Teacher.load(path) for path in args.teacher]
    names = teachers[0].label_names
    for path, teacher in zip(args.teacher, teachers, strict=True):
        if teacher.label_names != names:
            raise UserError(f"{path}: labels {teacher.label_names} differ from {names} of "
                            f"{args.teacher[0]}; averaged teachers need the same labels in the same order")
    labels = [torch.tensor(examples.label_ids(names)) for examples in files]  # or refuses
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # what is bound to fail fails before the work
    sums = [0.0] * len(files)
    for path, teacher in zip(args.teacher, teachers, strict=True):
        logits = run_teacher(path, teacher.to(device), files, labels, args, device)
        teacher.to("cpu")
        sums = [total + part for total, part in zip(sums, logits, strict=True)]

    for path, examples, known, total in zip(paths, files, labels, sums, strict=True):
        logits = total / len(args.teacher)
        if len(args.teacher) > 1:
            print(f"mean of {len(args.teacher)} teachers on {examples.path}{accuracy(logits, known)}")
        logits = logits.to(getattr(torch, args.dtype))
        if not logits.isfinite().all():
            row = int((~logits.isfinite()).any(1).nonzero()[0])
            raise UserError(f"{examples.path}:{examples.lines[row]}: the logits of row {row} are not finite "
                            f"in {args.dtype}; try --dtype float32 --precision fp32")
        runtime.save({
            "kind": "logits", "format": FORMAT, "logits": logits, "label_names": names,
            "texts": examples.fingerprint(), "teachers": [teacher.fingerprint() for teacher in teachers],
            "max_lengths": [teacher.max_length for teacher in teachers],
            "made_by": runtime.made_by(args),
        }, path)
        print(f"{path}: logits of {len(logits):,} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    runtime.run(main, ARGS)
