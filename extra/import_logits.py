"""Make logits of a table of scores: a language model's answers, annotators' votes, another system's output.

    python extra/import_logits.py scores.tsv --data train.tsv --out logits/train.pt
    python extra/import_logits.py votes.csv --data train.tsv --out logits/train.pt --kind votes
    python extra/import_logits.py answers.jsonl --data train.tsv --unanswered ask.jsonl   # what is to ask
    python extra/import_logits.py prompt1.jsonl prompt2.jsonl --data train.tsv --out logits/answered.pt \\
        --answered answered.jsonl                                     # where not all rows have an answer

A table (.tsv .csv, also .gz) has one column per label; JSON lines are {"긍정": 0.9, "부정": 0.1}. Further
columns say which row of --data a line is about: `id` (the ids of --data) or `row` (from 0); without them line
i is about row i. `text`, where it is there, must be that row's. A score is one number in the column `score`.

--kind probabilities  at least 0, adding up to 1; labels that are missing share what is left
       log            the same as natural logarithms
       votes          how many annotators chose the label. One more vote is divided equally among the labels
                      (Perks 1947), so that none is impossible. Where texts have several labels: 0 or 1, a
                      line per annotator
       scores         logits, or the scores of a regression, as they are
Lines about the same row are averaged (votes: added), so repetitions do no harm. A line that cannot be used,
such as {"row": 7, "error": "timeout"}, is no answer; how many there are is told, and why the first one is.

reads   the tables; --data: its texts, ids, and the names of the labels. Without answers there, the labels
        are those of the tables
writes  --out like dump_logits.py; --answered, --unanswered: rows of --data in JSON lines
again   a file with the same content is left alone; another one is replaced only with --overwrite
next    python distill.py --train train.tsv --logits logits/train.pt --valid valid.tsv …
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags

KINDS = ("probabilities", "log", "votes", "scores")


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("tables", nargs="+", metavar="TABLE", help=".tsv .csv .jsonl, also .gz")
    arg("--data", required=True, metavar="FILE", help="the texts that the tables are about")
    arg("--out", metavar="FILE.pt", help="the logits")
    arg("--answered", metavar="FILE.jsonl", help="the rows that have an answer; --out is of these")
    arg("--unanswered", metavar="FILE.jsonl", help="the rows that have none; replaced without being asked")
    arg("--kind", choices=KINDS, help="what the numbers are (default: probabilities; of a regression scores)")
    flags.add_columns(arg, task=True)
    arg("--overwrite", action="store_true", help="replace existing files")
    args = p.parse_args(argv)
    if not args.out and (args.answered or not args.unanswered):
        p.error("give --out, or --unanswered alone")
    if any(name and not name.endswith(".jsonl") for name in (args.answered, args.unanswered)):
        p.error("--answered and --unanswered are written as JSON lines; call them NAME.jsonl")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import csv
import json
import math
import os

import torch

import runtime
import tasks
from data import labels
from data.examples import (
    ANSWER_COLUMNS,
    LONGEST,
    TEXT_COLUMNS,
    Examples,
    decoded_lines,
    read_examples,
)
from data.logits import Logits, doubt, read_logits, write_logits
from runtime import UserError

LARGEST = 1e30  # of a number: sums of them stay within float32
FLOOR = 1e-4  # of a probability: no answer is so sure that a student should have to be surer
ABOUT = ("id", "row", "text2", *TEXT_COLUMNS, *ANSWER_COLUMNS[:2])  # columns that are not labels


class Unusable(ValueError):
    """Why a line cannot be used."""


# ---- tables ------------------------------------------------------------------------------------------------


def lines_of(path: str):
    """(line number, {column: value}) of each line of a table; None in place of what is not JSON."""
    lines = decoded_lines(path)
    name = path.lower().removesuffix(".gz")
    if name.endswith(".jsonl"):
        for number, line in lines:
            if line.strip():
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError):
                    found = None
                yield number, found if isinstance(found, dict) else None
        return
    if not name.endswith((".tsv", ".txt", ".csv")):
        raise UserError(f"{path}: unknown ending; use .tsv, .csv or .jsonl, each also with .gz")
    csv.field_size_limit(LONGEST)
    style = {"strict": True} if name.endswith(".csv") else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader((line for _, line in lines), **style)
    try:
        header = next(reader, [])
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise UserError(f"{path}: column {twice!r} occurs {header.count(twice)} times; keep one")
        for column in set(header).difference(ABOUT):
            if (plain := column.strip().lower()) in ("id", "row"):
                raise UserError(f"{path}: column {column!r}: call it {plain}")
        for cells in reader:
            if len(cells) != len(header):
                raise UserError(f"{path}:{reader.line_num}: {len(cells)} columns where the header has "
                                f"{len(header)}")
            yield reader.line_num, {column: cell for column, cell in zip(header, cells, strict=True)
                                    if cell or column in ("id", "row")}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None


def number(value) -> float | None:
    """The number of a cell; None of what is not one, such as a message in JSON."""
    try:
        return None if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


class Join:
    """Which row of the data a line is about."""

    def __init__(self, examples: Examples):
        self.examples, self.rows = examples, {}  # {id: row, or None of an id that occurs twice}
        for row, name in enumerate(examples.ids or ()):
            if self.rows.setdefault(name, row) != row:
                self.rows[name] = None

    def row(self, line: dict | None, count: int) -> int:
        """The row of the line that is the `count`-th of its table. Raises Unusable."""
        if line is None:
            raise Unusable("not a JSON object")
        key, rows = line.get("id"), len(self.examples)
        if "id" in line and (self.examples.ids is not None or "row" not in line):
            if self.examples.ids is None:
                raise Unusable(f"it has an id, but {self.examples.path} has no column id")
            row = self.rows.get(str(key), -1)
            if row is None or row < 0:
                raise Unusable(f"id {key!r} occurs {'more than once' if row is None else 'nowhere'} in "
                               f"{self.examples.path}")
        elif "row" in line:
            row = number(line["row"])
            if row is None or not 0 <= row < rows or row != int(row):
                raise Unusable(f"row {line['row']!r} is not one of 0 to {rows - 1}")
            row = int(row)
        elif count < rows:
            row = count
        else:
            raise Unusable(f"{self.examples.path} has only {rows:,} rows; a column id or row is needed")
        for column, texts in (*((name, self.examples.texts) for name in TEXT_COLUMNS),
                              ("text2", self.examples.texts2)):
            if texts and column in line and str(line[column]).split() != texts[row].split():
                raise Unusable(f"its {column} is not that of row {row} of {self.examples.path}")
        return row


def table_labels(paths: list[str]) -> list[str]:
    """The labels of tables: columns, or keys with numbers, that do not say what a line is about."""
    found = {name: 0 for path in paths for _, line in lines_of(path) for name, value in (line or {}).items()
             if name not in ABOUT and number(value) is not None}
    return labels.in_order(found)


# ---- numbers -> logits -------------------------------------------------------------------------------------


def values_of(line: dict, task, kind: str) -> list[float]:
    """The numbers of the task's outputs in a line, as probabilities, votes or scores. Raises Unusable."""
    found = {name: number(value) for name, value in line.items() if name in task.index or name not in ABOUT}
    for name in task.names:
        if found.get(name, 0) is None and line[name] is not None:
            raise Unusable(f"{name} is {line[name]!r}, which is not a number")
    found = {name: value for name, value in found.items() if value is not None}
    if strange := [name for name in found if name not in task.index]:
        other = labels.alike(strange[0], task.names)
        raise Unusable(f"the label {strange[0]!r} is none of {task.names}"
                       + (f"; is it {other!r}?" if other else ""))
    if not found:
        raise Unusable("no label has a number")
    if not all(abs(value) < LARGEST for value in found.values()):  # nor NaN
        raise Unusable("a number is not finite, or too large")
    missing = [name for name in task.names if name not in found]
    if kind == "log":
        if max(found.values()) > 1e-3:
            raise Unusable("a logarithm of a probability is above 0; is it --kind scores or probabilities?")
        found, kind = {name: math.exp(value) for name, value in found.items()}, "probabilities"
    if kind in ("probabilities", "votes") and min(found.values()) < 0:
        raise Unusable(f"a negative number; {kind} have none; is it --kind log or scores?")
    alone = tasks.name_of(task) == "classification"  # one label per text
    if kind == "votes":
        if not alone and max(found.values()) > 1:
            raise Unusable("more than one vote; where texts have several labels, a line is one annotator's")
        if alone and not any(found.values()):
            raise Unusable("no vote")
        return [found.get(name, 0.0) for name in task.names]
    total = sum(found.values())
    if kind == "probabilities" and alone:
        if total > 1.02 or (total < 0.98 and not missing):
            raise Unusable(f"the probabilities add up to {total:g}; is it --kind votes, log or scores?")
        return [found.get(name, max(1 - total, 0) / max(len(missing), 1)) for name in task.names]
    if missing:
        raise Unusable(f"no number for the label {missing[0]!r}")
    if kind == "probabilities" and max(found.values()) > 1:
        raise Unusable("a probability is above 1; is it --kind votes or scores?")
    return [found[name] for name in task.names]


def logits_of(sums: torch.Tensor, counts: torch.Tensor, task, kind: str) -> torch.Tensor:
    """(n, C) sums of the numbers of lines, (n,) how many lines -> (n, C) float32 logits of the task."""
    counts = counts[:, None]
    if kind == "scores":
        return (sums / counts).float()
    C, alone = len(task.names), tasks.name_of(task) == "classification"  # one label per text
    if kind == "votes":
        p = (sums + 1 / C) / (sums.sum(1, keepdim=True) + 1) if alone else (sums + 0.5) / (counts + 1)
    else:
        p = sums / counts
    if not alone:
        return p.clamp(FLOOR, 1 - FLOOR).logit().float()
    logits = p.clamp(min=FLOOR).log()
    return (logits - logits.mean(1, keepdim=True)).float()  # about 0, as a classifier's are


# ---- the script --------------------------------------------------------------------------------------------


def task_of(args, examples: Examples):
    """The task of the answers of --data; without any, of the labels of the tables."""
    if examples.answers and any(examples.answers):
        return tasks.make(examples.column, examples.cells(), args.data, None, args.task)
    names = table_labels(args.tables)
    name = args.task or ("regression" if names == ["score"] else "classification")
    print(f"labels, from the tables: {names}")
    if args.out and (len(names) < 1 + (name == "classification") or (name == "regression" and names[1:])):
        raise UserError(f"{', '.join(args.tables)}: has numbers of {names or 'no label'}, and {args.data} "
                        f"has no answers that name others")
    return tasks.of_name(name, names, args.tables[0])


def collect(args, examples: Examples, task, kind: str):
    """(sums (N, C) of the numbers of all lines, counts (N,) of lines, why the first unusable line is so)."""
    sums = torch.zeros(len(examples), len(task.names), dtype=torch.double)
    counts, bad, first, join = torch.zeros(len(examples), dtype=torch.double), 0, "", Join(examples)
    for path in args.tables:
        used = 0
        for count, (number_of_line, line) in enumerate(lines_of(path)):
            try:
                row = join.row(line, count)
                sums[row] += torch.tensor(values_of(line, task, kind), dtype=torch.double)
                counts[row] += 1
                used += 1
            except Unusable as error:
                bad += 1
                first = first or f"{path}:{number_of_line}: {error}"
        print(f"{path}: {used:,} answers")
    if bad:
        runtime.warn(f"{bad:,} lines cannot be used; the first is {first}")
    return sums, counts, first


def json_lines(examples: Examples, rows: list[int]) -> str:
    """Rows of a file as JSON lines; `row` is their number in it."""
    columns = {"id": examples.ids, "text": examples.texts, "text2": examples.texts2,
               examples.column: examples.answers}
    there = {name: column for name, column in columns.items() if column}
    records = ({"row": row} | {name: column[row] for name, column in there.items()} for row in rows)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main(args):
    columns = tasks.columns(args)
    examples = read_examples(args.data, *columns)
    written = [Path(path).resolve() for path in (args.out, args.answered, args.unanswered) if path]
    if len(set(written)) < len(written):
        raise UserError("--out, --answered and --unanswered name the same file twice; give each its own")
    runtime.refuse_to_overwrite_inputs([args.data, *args.tables], [
        Path(path) for path in (args.out, args.answered, args.unanswered) if path])
    task = task_of(args, examples)
    kind = args.kind or ("scores" if tasks.name_of(task) == "regression" else "probabilities")
    if tasks.name_of(task) == "regression" and kind != "scores":
        raise UserError(f"--kind {kind}: the answers of {args.data} are scores; leave it out")
    sums, counts, first = collect(args, examples, task, kind)
    there = (counts > 0).nonzero()[:, 0].tolist()
    absent = (counts == 0).nonzero()[:, 0].tolist()
    print(f"{args.data}: {len(there):,} of {len(examples):,} rows have an answer")
    files = {args.unanswered: json_lines(examples, absent)} if args.unanswered else {}
    if args.out:
        if not there or (absent and not args.answered):
            why = f"; {first}" if first else ""
            runtime.save_together(files)  # what is to be asked again
            raise UserError(f"{args.data}:{examples.lines[absent[0]]}: no answer to this row, the first of "
                            f"{len(absent):,}{why}. --unanswered FILE.jsonl writes them, to ask again; "
                            f"--answered FILE.jsonl keeps the others, and --out is then of those")
        values = logits_of(sums[there], counts[there], task, kind)
        data = examples if not args.answered else examples.take(there)
        if args.answered:
            files[args.answered] = json_lines(examples, there)
        found = Logits(values, task.names, tasks.name_of(task), data.fingerprint(), [{"table": kind}],
                       path=args.out)
        same = not args.overwrite and unchanged(args, found, files)
        target, known = data.targets(task)
        words, _ = doubt(task, values, known.nonzero()[:, 0], target[known])
        if words:
            runtime.warn(f"{args.data} and {', '.join(args.tables)}: {words}")
    runtime.save_together(files)
    if args.out and not same:
        write_logits(args.out, found, runtime.made_by({"kind": kind}, {
            "the numbers": runtime.fingerprint(sums), "the texts": found.texts}))
    if args.out:
        print(f"{args.out}: {'left alone, it is the same' if same else f'logits of {len(there):,} rows'}")


def unchanged(args, found: Logits, files: dict) -> bool:
    """Whether --out is there as it would be written. Raises UserError if it, or --answered, would change."""
    if args.answered and os.path.exists(args.answered):
        if Path(args.answered).read_bytes() != files[args.answered].encode():
            raise UserError(f"{args.answered}: exists and differs; --overwrite replaces it")
        del files[args.answered]
    if not os.path.exists(args.out):
        return False
    old = read_logits(args.out)
    if torch.equal(old.values, found.values) and all(
            getattr(old, name) == getattr(found, name) for name in ("names", "task", "texts", "teachers")):
        return True
    raise UserError(f"{args.out}: exists and differs; --overwrite replaces it, another --out keeps it")


if __name__ == "__main__":
    runtime.main(main, ARGS)
