"""Add a model's answers to a table: every column stays, label and probability follow.

    python extra/predict_table.py students/base/student.pt reviews.csv --out answers.csv
    python extra/predict_table.py student.pt reviews.tsv.gz --out answers.csv.gz --prefix predicted_

reads   student.pt, teacher.pt or a published classifier; texts (.tsv .csv .jsonl, also .gz), of pairs with
        text2. The table is read twice: every row is looked at before the first is answered
writes  --out, in the format of its ending (.jsonl only of .jsonl), rows in order, any number of them. New are
        label and probability; labels and the probability that exactly these apply; or score. The file
        appears whole, or not at all
again   an existing file is replaced only with --overwrite
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("model", metavar="STUDENT.pt", help="student.pt, teacher.pt or a published classifier")
    arg("table", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--out", required=True, metavar="FILE", help="the table to write (.tsv .csv .jsonl, also .gz)")
    flags.add_columns(arg, answers=None)
    arg("--prefix", default="", metavar="TEXT", help="begins the names of the new columns")
    arg("--overwrite", action="store_true", help="replace an existing file")
    flags.add_device(arg)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import codecs
import contextlib
import csv
import gzip
import io
import json
import os

import runtime
import tasks
from data.examples import stream_rows, survey
from data.labels import split
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher

IN_JSON = {"label": str, "labels": split, "score": float}  # what JSON has in place of a table's cell


def format_of(path) -> str:
    """csv, tsv or jsonl, as the ending of a file tells. Raises UserError."""
    name = str(path).lower().removesuffix(".gz")
    for ending, found in {".csv": "csv", ".tsv": "tsv", ".txt": "tsv", ".jsonl": "jsonl"}.items():
        if name.endswith(ending):
            return found
    raise UserError(f"{path}: unknown ending; use .tsv, .txt, .csv or .jsonl, each also with .gz")


def refuse_output(args, out: Path) -> None:
    """A UserError for an --out that cannot be, or must not be, written."""
    runtime.refuse_to_overwrite_inputs([args.table, args.model], [out])
    runtime.refuse_device(out)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file in it")
    if out.exists() and not args.overwrite:
        raise UserError(f"{out}: exists; choose another --out, or pass --overwrite")
    if (format_of(out) == "jsonl") != (format_of(args.table) == "jsonl"):
        raise UserError(f"{out}: JSON lines are written of JSON lines only, and tables of tables (.csv or "
                        f".tsv); give --out another ending")


def refuse_columns(where: str, names, new: list[str]) -> None:
    """A UserError if one of the columns `names` is called as a new one is."""
    for name in new:
        if name in names:
            prefix = "predicted2_" if name.startswith("predicted_") else "predicted_"
            raise UserError(f"{where}: has a column {name!r} already; --prefix {prefix} gives the new ones "
                            f"other names")


@contextlib.contextmanager
def whole(path: Path, bom: bool):
    """A text file that appears as `path` when the block has ended, and not at all if the block raises."""
    partial, packed = path.with_name(f".{path.name}.{os.getpid()}.partial"), path.name.lower().endswith(".gz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            with gzip.GzipFile("", "wb", 6, file, mtime=0) if packed else contextlib.nullcontext(file) as raw:
                text = io.TextIOWrapper(raw, "utf-8-sig" if bom else "utf-8", "backslashreplace", newline="")
                yield text
                text.detach()  # flushes, and leaves the file open
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # what reading raises is a UserError already
        raise UserError(f"{path}: cannot write ({error.strerror or error}); nothing was changed") from None
    finally:
        with contextlib.suppress(OSError):  # such as: its folder could not be made
            partial.unlink(missing_ok=True)


def has_bom(path) -> bool:
    """Whether a file begins with a BOM; without one Excel takes a .csv for CP949."""
    with gzip.open(path) if str(path).lower().endswith(".gz") else open(path, "rb") as file:
        return file.read(3) == codecs.BOM_UTF8


# ---- a row of the output: the row of the input as it stands in its file, and what is added -----------------


def csv_line(where: str, row: list[str], added: dict) -> str:
    """With CRLF, as RFC 4180 has it: csv.writer then also quotes a cell with a CR."""
    csv.writer(line := io.StringIO(newline="")).writerow([*row, *added.values()])
    return line.getvalue()


def tsv_line(where: str, row: list[str], added: dict) -> str:
    cells = [*row, *map(str, added.values())]
    if any("\t" in cell or "\n" in cell for cell in cells):
        raise UserError(f"{where}: a cell has a tab or a line break, which .tsv cannot hold; let --out end "
                        f"in .csv")
    return "\t".join(cells) + "\n"


def jsonl_line(where: str, row: str, added: dict) -> str:
    """The object stays as it is written, its numbers to the last digit."""
    refuse_columns(where, json.loads(row), added)
    return f"{row.strip()[:-1].rstrip()}, {json.dumps(added, ensure_ascii=False)[1:]}\n"


LINES = {"csv": csv_line, "tsv": tsv_line, "jsonl": jsonl_line}


def answers(args, model, task, part) -> list[tuple]:
    """(answer as a cell has it, its probability or None) of each row."""
    try:
        return tasks.answers(task, model.logits(part.texts, part.texts2))
    except StudentError as error:  # it reads pairs, or does not
        how = "; name its column with --text2-column, or text2" if part.texts2 is None else ""
        raise UserError(f"{args.table}: {error}{how}") from None


def main(args):
    out, columns = Path(args.out), (args.text_column, args.text2_column, False)
    refuse_output(args, out)
    device, before = runtime.pick_device(args.device), os.stat(args.table)
    model = runtime.load_model(args.model, {"teacher": Teacher.load, "student": Student.load}, device)
    task, kind = tasks.of_model(model, args.model), format_of(out)
    found = survey(args.table, *columns)
    names = [task.column, "probability"][: 1 + hasattr(task, "counts")]  # a score has none
    new = [args.prefix + name for name in names]
    refuse_columns(args.table, found.head.header, new)
    line_of, value_of = LINES[kind], IN_JSON[task.column] if kind == "jsonl" else str
    with whole(out, has_bom(args.table)) as file:
        if kind != "jsonl":
            file.write(line_of(args.table, found.head.header, dict(zip(new, new, strict=True))))
        progress = runtime.Progress(out.name, found.rows, "texts")
        for part, rows in stream_rows(args.table, *columns):
            found_here = answers(args, model, task, part)
            for row, line, (cell, sure) in zip(rows, part.lines, found_here, strict=True):
                values = [value_of(cell), *([] if sure is None else [round(sure, 4)])]
                file.write(line_of(f"{args.table}:{line}", row, dict(zip(new, values, strict=True))))
            progress.add(len(part))
        runtime.unchanged(args.table, before)
    print(f"{out}: {found.rows:,} rows, {' and '.join(new)} added, "
          f"{found.rows / max(progress.close(), 1e-9):,.0f} texts/s")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="close other programs, or give --device cpu")
