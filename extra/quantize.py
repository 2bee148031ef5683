"""Write a smaller copy of a student, with int8 or float16 weights, and measure what rounding costs.

    python extra/quantize.py students/base/student.pt
    python extra/quantize.py students/base/student.pt --precision float16 --data data/nsmc/valid.tsv

reads   student.pt; with --data labelled texts, on which both students are scored
writes  student.int8.pt beside it, used like any student.pt: int8 matrices with one scale per row, float16
        vectors; label names, calibration, scores and origin are copied
again   a finished file is left alone; a different one is replaced only with --overwrite
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("student", metavar="STUDENT.pt")
    arg("--precision", default="int8", choices=["int8", "float16"], help="default: %(default)s")
    arg("--out", metavar="FILE", help="default: student.int8.pt or student.float16.pt, beside STUDENT.pt")
    arg("--overwrite", action="store_true", help="replace an existing file")
    arg("--data", metavar="FILE", help="labelled texts: print the scores before and after")
    flags.add_columns(arg, task=True)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import runtime
from data.batches import encode, logits_in_order
from data.examples import read_examples
from student import Student, StudentError, write_whole
from tasks import columns, judge, make, of_model

# What Student.to_bytes writes itself.
OWN = {"kind", "format", "config", "precision", "label_names", "task", "pairs"}
MAX_TOKENS = 8192  # of a batch, padding included


def scores(student: Student, path, data, args) -> dict[str, float]:
    """The scores of a student with its calibration on the labelled rows of `data`, Examples."""
    make(data.column, {}, data.path, (student.task, student.label_names, path), args.task)  # refuses others
    task = of_model(student, path)
    targets, known = data.targets(task)
    if not known.any():
        raise runtime.UserError(f"{data.path}: no row has a {task.column}, so there is nothing to score")
    rows = data.take(known.nonzero()[:, 0].tolist())
    encoded = encode(student.tokenizer, rows.texts, rows.texts2, **student.reads)
    logits = logits_in_order(student, encoded, MAX_TOKENS) / student.config.temperature
    found = judge(task, logits, targets[known], texts=rows.texts)
    return {name: value for name, value in found.items() if name != "loss"}


def main(args):
    source = Path(args.student)
    out = Path(args.out) if args.out else source.with_suffix(f".{args.precision}.pt")
    runtime.refuse_to_overwrite_inputs([source, args.data], [out])
    student = Student.load(source)
    now = student.artifact.get("precision", "float32")  # format 1 did not say
    if now != "float32":
        raise runtime.UserError(f"{source}: the weights are {now} already; give the float32 student")
    data = args.data and read_examples(args.data, *columns(args))
    before = scores(student, source, data, args) if data else {}
    kept = {key: value for key, value in student.artifact.items() if key not in OWN}
    content = student.to_bytes(args.precision, **kept)
    there = out.is_file() and out.read_bytes()
    if there and there != content and not args.overwrite:
        raise runtime.UserError(f"{out}: exists and differs; choose another --out, or pass --overwrite")
    if there != content:
        write_whole(out, content)
    after = scores(Student.load(out), out, data, args) if data else {}
    print(f"{out}: {'left alone, it is the same' if there == content else 'written'}")
    print(f"{'':12}{'float32':>12}{args.precision:>12}")
    print(f"{'bytes':12}{source.stat().st_size:12,}{len(content):12,}")
    for name in before:
        print(f"{name:12}{before[name]:12.4f}{after[name]:12.4f}")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=[StudentError])
