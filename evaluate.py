"""Compare students and teachers on a labelled file: quality, size and speed in one table.

    python evaluate.py students/base/student.pt teacher/teacher.pt --data data/nsmc/test.tsv
    python evaluate.py a/student.pt b/student.pt --data test.tsv --seen train.tsv --errors mistakes.tsv
    python evaluate.py students/*/student.pt --data test.tsv --all                # every score
    python evaluate.py students/*/student.pt --data test.tsv --markdown           # or --json

reads   any number of student.pt, teacher.pt and published classifiers (a folder, a hub id); a file with texts
        and a label, labels or a score for each; with --logits what dump_logits.py wrote for this file: its
        teacher is judged without being run
writes  the table to standard output; with --errors the mistakes of each model, the worst first

The columns: the score that chooses the epoch, such as accuracy, with its 95 % interval, and its difference to
that of the first model, both by bootstrap over the same rows; parameters, bytes on disk, texts per second in
bulk (text in, probabilities out) and median milliseconds for one text. With --all: the task's other scores,
the calibration error without a student's temperature, the share of rows that get the first model's answer,
and a second table with precision, recall and F1 of each label.
"""

import argparse

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("models", nargs="*", metavar="MODEL.pt",
        help="student.pt, teacher.pt or a published classifier; the first model is the reference")
    arg("--data", required=True, metavar="FILE", help="labelled texts (.tsv .csv .jsonl, also .gz)")
    flags.add_columns(arg, "label, labels or score", task=True)
    arg("--logits", metavar="FILE", help="cached logits of --data: adds the teacher without running it")
    arg("--seen", nargs="+", default=[], metavar="FILE",
        help="training files: texts of --data that occur there too are counted, and scored without")
    arg("--errors", metavar="FILE", help="write the mistakes to this TSV")
    # output
    arg("--all", action="store_true", help="every score, and a table of the labels")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    form.add_argument("--json", action="store_true", help="print JSON: every score, every number in full")
    flags.add_device(arg)
    args = p.parse_args(argv)
    if not args.models and not args.logits:
        p.error("name a student.pt or teacher.pt, or give --logits")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json
import statistics
import time
from collections import Counter
from pathlib import Path

import torch

import runtime
import tasks
from data.examples import Examples, read_examples
from data.logits import bare_order, compare_with_labels, read_logits_of, refuse_other_columns
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher

CHUNK = 8192  # texts between two steps of the progress line


def columns_of(path: str, kind: str, names: list[str], task) -> list[int]:
    """Where the outputs of `task`, the first model's, stand among `names` of a model of the task `kind`."""
    if (kind, sorted(names)) != (tasks.name_of(task), sorted(task.names)):
        raise UserError(f"{path}: {kind}, labels {names}, but the first model: {tasks.name_of(task)}, labels "
                        f"{task.names}; compare models of the same task and labels")
    return [names.index(name) for name in task.names]


def run_model(path: str, model, examples: Examples) -> tuple[torch.Tensor, dict]:
    """Logits (N, C) of all rows, calibrated, and how fast they came."""
    texts, texts2 = examples.texts, examples.texts2
    try:
        model.predict(texts[:64], texts2 and texts2[:64])  # the first calls pay for set-up
    except StudentError as error:  # it reads pairs, or does not
        raise UserError(f"{path}: {error}") from None
    progress, parts = runtime.Progress(path, len(texts), "texts"), []
    for i in range(0, len(texts), CHUNK):
        parts.append(model.logits(texts[i : i + CHUNK], texts2 and texts2[i : i + CHUNK]))
        progress.add(len(parts[-1]))
    seconds, times = progress.close(), []
    for i in range(0, len(texts), max(1, len(texts) // 100)):
        start = time.perf_counter()
        model.predict(texts[i : i + 1], texts2 and texts2[i : i + 1])
        times.append(time.perf_counter() - start)
    return torch.cat(parts), {"parameters": sum(p.numel() for p in model.parameters()),
                              "texts_per_second": len(texts) / seconds,
                              "ms_per_text": 1000 * statistics.median(times)}


def assess(args, examples: Examples, device) -> tuple:
    """(task, target (N, …), results): of each model its logits, its statistics per row, and its speed."""
    loaders = {"teacher": Teacher.load, "student": Student.load}
    models = [runtime.load_model(path, loaders, device) for path in args.models]
    columns = tasks.columns(args)
    cached = read_logits_of(args.logits, examples, columns, args) if args.logits else None
    stored = (models[0].task, models[0].label_names, args.models[0]) if models else \
        None if cached.bare else (cached.task, cached.names, cached.path)
    task = tasks.make(examples.column, examples.cells(), args.data, stored, args.task)
    target, _ = examples.targets(task, every_row=True)
    results = []
    for path, model in zip(args.models, models, strict=True):
        order = columns_of(path, model.task, model.label_names, task)
        logits, speed = run_model(path, model, examples)
        result = {"model": path, "task": tasks.of_model(model, path, task.names), "logits": logits[:, order],
                  **speed}
        if isinstance(model, Student):
            raw = tasks.judge(task, result["logits"] * model.config.temperature, target)
            result |= {"ece_uncalibrated": raw["ece"]} if "ece" in raw else {}
        results.append(result)
    if cached:
        kind, names = cached.task, cached.names
        if cached.bare:
            kind, names = tasks.name_of(task), bare_order(task)
        refuse_other_columns(cached, type(task)(names))
        order = columns_of(args.logits, kind, names, task)
        if cached.bare:
            compare_with_labels(cached, examples.take(range(min(CHUNK, len(examples)))), type(task)(names))
        results.append({"model": args.logits, "task": task, "logits": cached.values.float()[:, order]})
    return task, target, results


def score(task, target, results: list[dict], unseen: torch.Tensor) -> None:
    """Add scores, intervals, the difference to the first model and agreement with it to each result."""
    for result in results:
        result["statistics"] = result["task"].statistics(result["logits"], target)
        result["answers"] = tasks.answers(result["task"], result["logits"])
    intervals = tasks.bootstrap(task, [result["statistics"] for result in results])
    first = results[0]
    for result, interval in zip(results, intervals, strict=True):
        result |= {name: value.item() for name, value in task.scores(result["statistics"].mean(0)).items()}
        result["interval"] = interval[task.best]
        if result is not first:
            result["difference"] = (result[task.best] - first[task.best], *interval["difference"])
        if first["answers"][0][1] is not None:  # scores are hardly ever equal
            result["agreement"] = statistics.fmean(
                mine[0] == other[0] for mine, other in zip(result["answers"], first["answers"], strict=True))
        if hasattr(task, "each"):
            result["labels"] = each_label(result, len(target))
        if Path(result["model"]).is_file():
            result["bytes"] = Path(result["model"]).stat().st_size
        if unseen.any() and not unseen.all():
            result["unseen"] = task.scores(result["statistics"][unseen].mean(0))[task.best].item()


def each_label(result: dict, rows: int) -> list[dict]:
    """Of each label support (rows that have it), precision, recall, F1, and the threshold if it has one."""
    task, means = result["task"], result["statistics"].mean(0)
    columns = {name: values.tolist() for name, values in task.each(means).items()}
    columns["support"] = [round(share * rows) for share in columns["support"]]
    columns |= {"threshold": task.thresholds} if task.thresholds else {}
    return [{"label": name, **{key: values[i] for key, values in columns.items()}}
            for i, name in enumerate(task.names)]


# ---- output ------------------------------------------------------------------------------------------------

PERCENT = ("accuracy", "exact", "agreement")
TITLES = {"unseen": "unseen only", "interval": "95 % interval", "difference": "difference (95 %)",
          "macro_f1": "macro-F1", "micro_f1": "micro-F1", "f1": "F1", "exact": "exact match",
          "pearson": "Pearson", "spearman": "Spearman", "mse": "MSE", "log_loss": "log loss", "ece": "ECE",
          "ece_uncalibrated": "ECE, T = 1",
          "texts_per_second": "texts/s", "ms_per_text": "ms/text"}


def shown(name: str, value, best: str) -> str:
    scale, digits, sign = (100, 2, "%") if best in PERCENT else (1, 4, "")
    name = best if name == "unseen" else name
    if name == "interval":
        return "–".join(f"{scale * end:.{digits}f}{sign}" for end in value)
    if name == "difference":
        middle, low, high = (f"{scale * end:+.{digits}f}" for end in value)
        return f"{middle} ({low} … {high})"
    if isinstance(value, str):
        return value
    if name in ("parameters", "bytes", "texts_per_second", "support"):
        return f"{value:,.0f}"
    return f"{value:.2%}" if name in PERCENT else f"{value:.2f}" if name == "ms_per_text" else f"{value:.4f}"


def table(results: list[dict], task, every: bool, markdown: bool) -> str:
    scores = [name for name in task.scores(results[0]["statistics"].mean(0)) if name != task.best]
    keys = ["model", task.best, "interval", "unseen", "difference"]
    keys += [*scores, "ece_uncalibrated", "agreement"] if every else []
    keys += ["parameters", "bytes", "texts_per_second", "ms_per_text"]
    keys = [key for key in keys if any(key in result for result in results)]
    keys = [key for key in keys if key != "agreement" or len(results) > 1]
    return aligned(keys, results, task.best, markdown)


def table_of_labels(results: list[dict], markdown: bool) -> str:
    """One line for each model and label."""
    rows = [{"model": result["model"], **row} for result in results for row in result["labels"]]
    return aligned(list({key: 0 for row in rows for key in row}), rows, "", markdown)


def aligned(keys: list[str], rows: list[dict], best: str, markdown: bool) -> str:
    lines = [[TITLES.get(key, key) for key in keys]]
    lines += [[shown(key, row[key], best) if key in row else "–" for key in keys] for row in rows]
    if markdown:
        lines.insert(1, ["---"] + ["---:"] * (len(keys) - 1))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in
                     zip(line[1:], widths[1:], strict=True)]) for line in lines)


def write_errors(path: str, task, target, results: list[dict], examples: Examples) -> int:
    """The mistakes of every model (of scores: all rows), the largest loss first; returns how many."""
    rows, targets = [], target.tolist()
    for result in results:
        losses = task.hard(result["logits"], target).tolist()
        for i, (answer, confidence) in enumerate(result["answers"]):
            if confidence is None or task.read(answer, "") != targets[i]:
                pair = [] if examples.texts2 is None else [examples.texts2[i]]
                rows.append((losses[i], [
                    result["model"], str(i), examples.ids[i] if examples.ids else "", examples.answers[i],
                    answer, "" if confidence is None else f"{confidence:.4f}", f"{losses[i]:.4f}",
                    examples.texts[i], *pair]))
    rows.sort(key=lambda row: -row[0])
    header = ["model", "row", "id", task.column, "predicted", "confidence", "loss", "text"]
    header += [] if examples.texts2 is None else ["text2"]
    lines = [header] + [[" ".join(cell.replace("\t", " ").splitlines()) for cell in row] for _, row in rows]
    runtime.save_together({path: "".join("\t".join(line) + "\n" for line in lines)})
    return len(rows)


def main(args):
    device = runtime.pick_device(args.device)
    examples = read_examples(args.data, *tasks.columns(args))
    if args.errors:
        runtime.refuse_to_overwrite_inputs([args.data, *args.seen, *args.models, args.logits],
                                           [Path(args.errors)])
        runtime.refuse_device(Path(args.errors))
    seen = set()
    for file in args.seen:
        part = read_examples(file, args.text_column, args.text2_column, False)
        if (part.texts2 is None) != (examples.texts2 is None):
            raise UserError(f"{file} and {args.data} disagree: only one has a text2 column")
        seen.update(part.words())
    unseen = torch.tensor([key not in seen for key in examples.words()])
    task, target, results = assess(args, examples, device)
    score(task, target, results, unseen if args.seen else torch.zeros(0, dtype=torch.bool))

    commonest = Counter(examples.answers).most_common(1)[0][1] / len(examples)
    machine, leaked = runtime.machine(device), int((~unseen).sum())
    if args.json:
        hidden = ("task", "logits", "statistics", "answers")
        print(json.dumps({
            "data": args.data, "rows": len(examples), "commonest": commonest,
            "seen_rows": leaked if args.seen else None, **machine,
            "models": [{key: result[key] for key in result if key not in hidden} for result in results],
        }, ensure_ascii=False, indent=1))
    else:
        print(f"{args.data}: {len(examples):,} rows, "
              + (f"labels {task.names}, the commonest answer {commonest:.2%}; " * hasattr(task, "counts"))
              + f"{machine['hardware']}, {machine['threads']} threads\n")
        print(table(results, task, args.all, args.markdown))
        if args.all and hasattr(task, "each"):
            print(f"\n{table_of_labels(results, args.markdown)}")
        if args.seen:
            print(f"\n{leaked:,} of {len(examples):,} texts ({leaked / len(examples):.2%}) also occur in "
                  f"{', '.join(args.seen)}"
                  + ("; 'unseen only' is without them" if 0 < leaked < len(unseen) else ""))
    if args.errors:
        count = write_errors(args.errors, task, target, results, examples)
        if not args.json:
            print(f"\n{args.errors}: {count:,} mistakes, the worst first")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,), memory="close other programs, or give --device cpu")
