"""Run a fine-tuned teacher once over texts and keep its logits: row i of the tensor is row i of the file.

    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv       # -> logits/train.pt
    python dump_logits.py --teacher a.pt b.pt --data train.tsv unlabeled.tsv.gz         # mean of two teachers
    torchrun --nproc_per_node 2 dump_logits.py …                                        # several processes

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

import torch

import runtime
from data.batching import logits_in_order, token_batches
from data.examples import Survey, read_again, stream_examples, survey
from runtime import UserError
from teacher import Teacher

FORMAT = 1
SHARD = 2**18  # rows that are encoded, sorted by length and run at a time


def output_paths(data: list[str], output_dir: str) -> list[Path]:
    """train.tsv.gz -> OUTPUT_DIR/train.pt; two files that would share one name are refused."""
    paths = [Path(output_dir, re.sub(r"(\.(tsv|txt|csv|jsonl))?(\.gz)?$", "", Path(file).name) + ".pt")
             for file in data]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UserError(f"{data[paths.index(path)]} and {data[i]} would both be written to {path}; "
                            f"dump them in two runs with different --output-dir")
    return paths


def load_teachers(paths: list[str], device) -> list[Teacher]:
    """Teachers whose logits can be averaged: they have the same classes in the same order."""
    teachers = [Teacher.load(path).to(device) for path in paths]
    for path, teacher in zip(paths, teachers, strict=True):
        if teacher.label_names != teachers[0].label_names:
            raise UserError(f"{path}: labels {teacher.label_names} differ from {teachers[0].label_names} of "
                            f"{paths[0]}; averaged teachers need the same labels in the same order")
    return teachers


def choose_precision(teacher: Teacher, file: Survey, columns: tuple, args, device) -> str:
    """By a trial on the longest of the file's first rows."""
    part = next(stream_examples(file.path, *columns))
    encoded = teacher.encode(part.texts, part.texts2).to(device)
    longest = token_batches(encoded.lengths, args.max_tokens)[0]
    with torch.inference_mode():
        return runtime.pick_precision(args.precision, device, lambda: teacher(**encoded.batch(longest)))


def dump(file: Survey, columns: tuple, teachers: list[Teacher], args, device) -> torch.Tensor:
    """Logits (N, C) of a file in args.dtype, the mean over teachers, in file order."""
    names = teachers[0].label_names
    precisions = [choose_precision(teacher, file, columns, args, device) for teacher in teachers]
    progress = runtime.Progress(Path(file.path).name, file.rows * len(teachers), "texts")
    shards, right = [], 0
    for part in read_again(file, *columns, chunk=SHARD):
        logits = 0
        for teacher, precision in zip(teachers, precisions, strict=True):
            encoded = teacher.encode(part.texts, part.texts2).to(device)
            logits += logits_in_order(teacher, encoded, args.max_tokens, precision, progress) / len(teachers)
        right += int((logits.argmax(1) == torch.tensor(part.label_ids(names))).sum())
        shards.append(logits.to(getattr(torch, args.dtype)))
        if not shards[-1].isfinite().all():
            row = int((~shards[-1].isfinite()).any(1).nonzero()[0])
            raise UserError(f"{file.path}:{part.lines[row]}: the logits of this row are not finite in "
                            f"{args.dtype}; try --dtype float32 --precision fp32")
    seconds = progress.close()
    print(f"{file.path}: {file.rows / seconds:,.0f} texts/s {precisions[0]}, {runtime.clock(seconds)}"
          + (f", accuracy {right / file.labelled:.2%} of {file.labelled:,} labelled rows"
             if file.labelled else ""))
    return torch.cat(shards)


def main(args):
    device = runtime.connect(runtime.pick_device(args.device))
    paths = output_paths(args.data, args.output_dir)
    columns = args.text_column, args.text2_column, args.label_column
    files = [survey(file, *columns) for file in args.data]
    teachers = load_teachers(args.teacher, device)
    names = teachers[0].label_names
    for file in files:
        file.refuse_other_labels(names, *columns)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # what is bound to fail fails before the work
    for path, file in zip(paths, files, strict=True):
        logits = dump(file, columns, teachers, args, device)
        runtime.save({
            "kind": "logits", "format": FORMAT, "logits": logits, "label_names": names,
            "texts": file.fingerprint, "teachers": [teacher.fingerprint() for teacher in teachers],
            "max_lengths": [teacher.max_length for teacher in teachers],
            "made_by": runtime.made_by(args),
        }, path)
        if runtime.RANK == 0:
            print(f"{path}: logits of {len(logits):,} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    runtime.run(main, ARGS)
