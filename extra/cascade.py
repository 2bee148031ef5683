"""Use cached logits of a teacher beside labels and students: find doubtful labels, or answer in two steps.

    python extra/cascade.py disagreements --data valid.tsv --logits logits/valid.pt --out doubtful.tsv
    python extra/cascade.py escalate students/base/student.pt --data valid.tsv --logits logits/valid.pt
    python extra/cascade.py escalate a/student.pt b/student.pt … --accuracy 89

disagreements  writes the labelled rows whose label the teacher contradicts, those of the largest loss first
               (of scores all rows, the largest difference first): wrong labels are among them. Use logits of
               a teacher that was not trained on these rows; one that was has learnt their labels.
escalate       prints how accurate a student is together with the teacher, who answers wherever the student is
               less sure than a threshold; with --accuracy also the threshold that suffices for so many
               percent. The threshold is of the probability that Student.predict gives its answer.

reads   a file with answers and the logits of its rows from dump_logits.py (or any (N, C) tensor); students
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flags

percent = flags.number(float, 1, 100, "an accuracy in percent, such as 89", open_low=True)


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True, metavar="disagreements|escalate")
    for name in ("disagreements", "escalate"):
        arg = commands.add_parser(name).add_argument
        if name == "escalate":
            arg("students", nargs="+", metavar="STUDENT.pt")
        arg("--data", required=True, metavar="FILE", help="texts with answers (.tsv .csv .jsonl, also .gz)")
        arg("--logits", required=True, metavar="FILE", help="the teacher's logits of --data")
        flags.add_columns(arg, "label, labels or score", task=True)
        if name == "disagreements":
            arg("--out", required=True, metavar="FILE.tsv", help="the table to write; an old one is replaced")
        else:
            arg("--accuracy", type=percent, metavar="PERCENT", help="print the threshold for it")
            arg("--json", action="store_true", help="every number in full")
            flags.add_device(arg)
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json
import math

import torch

import runtime
import tasks
from data.examples import Examples, read_examples
from data.logits import Logits, bare_order, read_logits_of, refuse_other_columns
from runtime import UserError
from student import Student, StudentError

CHUNK = 8192  # texts between two steps of the progress line


def task_of(args, cached: Logits, examples: Examples, student=None):
    """The task of the logits; of a bare tensor that of `student`, (task, names, path), or of the answers."""
    stored = student if cached.bare else (cached.task, cached.names, cached.path)
    task = tasks.make(examples.column, examples.cells(), examples.path, stored, args.task)
    if cached.bare:
        task = type(task)(bare_order(task))
    refuse_other_columns(cached, task)
    return task


# ---- disagreements -----------------------------------------------------------------------------------------


def disagreements(args, examples: Examples, cached: Logits) -> None:
    """Write the rows, ranked as in Northcutt et al. (2021, arXiv 1911.00068) by the label's probability."""
    task = task_of(args, cached, examples)
    runtime.refuse_to_overwrite_inputs([args.data, args.logits], [Path(args.out)])
    runtime.refuse_device(Path(args.out))
    target, known = examples.targets(task)
    if not known.any():
        raise UserError(f"{args.data}: no row has a {task.column} that the teacher could contradict")
    logits = cached.values.float()
    losses, targets, rows = task.hard(logits, target).tolist(), target.tolist(), []
    for i, (answer, confidence) in enumerate(tasks.answers(task, logits)):
        if known[i] and (confidence is None or task.read(answer, "") != targets[i]):
            texts = [column[i] for column in (examples.texts, examples.texts2) if column is not None]
            rows.append((losses[i], [str(i), examples.ids[i] if examples.ids else "", examples.answers[i],
                                     answer, "" if confidence is None else f"{confidence:.4f}",
                                     f"{losses[i]:.4f}", *texts]))
    rows.sort(key=lambda row: -row[0])
    header = ["row", "id", task.column, "teacher", "confidence", "loss", "text",
              *([] if examples.texts2 is None else ["text2"])]
    lines = [header] + [[" ".join(cell.replace("\t", " ").splitlines()) for cell in row] for _, row in rows]
    runtime.save_together({args.out: "".join("\t".join(line) + "\n" for line in lines)})
    count = int(known.sum())
    print(f"{args.out}: {len(rows):,} of {count:,} labelled rows ({len(rows) / count:.2%}) contradict "
          f"{args.logits}, the largest loss first")


# ---- escalate ----------------------------------------------------------------------------------------------


def escalation(confidence, right, teacher_right, wanted: float = math.nan) -> dict:
    """Accuracy of a student that leaves the rows it is less sure of to a teacher.

    confidence (N,) of the student's answers; right, teacher_right (N,) bool. "curve" has (share of rows the
    student answers, its least confidence there, accuracy of both) for 0, 10, …, 100 %; rows of one confidence
    go together. "wanted": the point of the largest share with at least this accuracy, None if there is none.
    """
    N = len(right)
    confidence, order = confidence.sort(descending=True)
    left = teacher_right.sum() - teacher_right[order].cumsum(0)  # what the teacher has right of the rest
    accuracy = (right[order].cumsum(0) + left).double() / N  # where the student answers the i + 1 surest rows
    ends = torch.ones(N, dtype=torch.bool)  # a threshold can only fall between two confidences
    ends[:-1] = confidence[:-1] > confidence[1:]
    ends = ends.nonzero()[:, 0]  # the last row of each run of equal ones

    def point(i: int) -> tuple:
        return (i + 1) / N, confidence[i].item(), accuracy[i].item()

    nothing = (0.0, None, teacher_right.double().mean().item())
    tenths = [min(len(ends) - 1, int(torch.searchsorted(ends, math.ceil(tenth * N / 10) - 1)))
              for tenth in range(1, 11)]
    enough = ends[accuracy[ends] >= wanted - 1e-9]  # 87.2 / 100 is a little above 872 / 1000
    return {"curve": [nothing, *(point(int(ends[i])) for i in tenths)],
            "wanted": point(int(enough[-1])) if len(enough) else nothing if nothing[2] >= wanted - 1e-9
            else None}


def cut(threshold: float | None) -> str:
    """Five decimals, cut rather than rounded: 0.999996 must not become 1."""
    return "–" if threshold is None else f"{math.floor(threshold * 1e5) / 1e5:.5f}"


def show(path: str, teacher: str, found: dict, accuracy: float | None) -> None:
    print(f"\n{path} answers where it is sure enough, {teacher} the rest\n"
          f"student answers  threshold  accuracy")
    for share, threshold, both in found["curve"]:
        print(f"{share:15.1%}  {cut(threshold):>9}  {both:8.2%}")
    if found["wanted"]:
        share, threshold, _ = found["wanted"]
        print(f"for {accuracy:.2f}%: " + ("the teacher answers all" if threshold is None else
              f"the student answers {share:.1%}, where its probability is at least {cut(threshold)}"))
    elif accuracy is not None:
        print(f"{accuracy:.2f}% is not reached at any threshold")


def escalate(args, examples: Examples, cached: Logits) -> None:
    device = runtime.pick_device(args.device)
    students = [Student.load(path, device) for path in args.students]
    tasks_of = [tasks.of_model(student, path)  # outputs in the student's own order
                for student, path in zip(students, args.students, strict=True)]
    task = task_of(args, cached, examples, (students[0].task, students[0].label_names, args.students[0]))
    for path, own in zip(args.students, tasks_of, strict=True):
        if type(own) is not type(task) or sorted(own.names) != sorted(task.names):
            raise UserError(f"{path}: {tasks.name_of(own)}, labels {own.names}, but {args.logits}: "
                            f"{tasks.name_of(task)}, labels {task.names}")
    targets = examples.targets(task, every_row=True)[0].tolist()
    texts, texts2 = examples.texts, examples.texts2

    def right(found):
        return torch.tensor([task.read(answer, "") == target for (answer, _), target in
                             zip(found, targets, strict=True)])

    of_teacher, results = tasks.answers(task, cached.values.float()), []
    if of_teacher[0][1] is None:
        raise UserError(f"{args.data}: a {task.column} has no probability, so nothing tells which rows to "
                        f"leave to the teacher")
    teacher_right = right(of_teacher)
    for path, student, own in zip(args.students, students, tasks_of, strict=True):
        found, progress = [], runtime.Progress(path, len(texts), "texts")
        for i in range(0, len(texts), CHUNK):
            logits = student.logits(texts[i : i + CHUNK], texts2 and texts2[i : i + CHUNK])
            found += tasks.answers(own, logits)
            progress.add(len(logits))
        progress.close()
        confidence = torch.tensor([value for _, value in found], dtype=torch.double)
        wanted = math.nan if args.accuracy is None else args.accuracy / 100
        results.append({"model": path, **escalation(confidence, right(found), teacher_right, wanted)})
    if args.json:
        print(json.dumps({"rows": len(texts), "models": results}, ensure_ascii=False, indent=1))
    else:
        for result in results:
            show(result["model"], args.logits, result, args.accuracy)


def main(args):
    columns = tasks.columns(args)
    examples = read_examples(args.data, *columns)
    cached = read_logits_of(args.logits, examples, columns, args)
    (disagreements if args.command == "disagreements" else escalate)(args, examples, cached)


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="close other programs, or give --device cpu")
