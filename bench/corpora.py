"""A table for each corpus that a recipe went through: students, teacher and TF-IDF on its test file.

    sh recipes/unsmile.sh && sh recipes/hate-speech.sh && python -m bench.corpora unsmile hate-speech

Each model is run once. Figures of several seeds are their mean and standard deviation. The gain is that of
distilled students over those of labels alone, the difference of the means, with its 95 % interval over rows.

reads   what recipes/corpus.sh left in RUNS/CORPUS/: labels/*/student.pt, distilled/*/student.pt,
        logits/train.pt, which names the teachers; DATA/CORPUS/train.tsv, valid.tsv, test.tsv
writes  in --page what stands between <!-- CORPUS --> and <!-- /CORPUS -->
needs   pip install -r requirements-bench.txt, for the baseline: character n-grams (bench/tfidf.py)
"""

import argparse
from pathlib import Path

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m bench.corpora", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("corpora", nargs="+", metavar="CORPUS")
    arg("--runs", default="runs", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--data", default="data", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--ngrams", type=flags.count, default=4, metavar="N",
        help="of the baseline: of 1 to N characters (default: %(default)s)")
    arg("--page", default="docs/results.md", type=Path, metavar="FILE", help="default: %(default)s")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()

import contextlib
import io
import itertools
import statistics

import torch

import evaluate
import runtime
import tasks
from bench import tfidf
from bench.runs import size_of
from bench.table import filled, table
from data.logits import read_logits
from dump_logits import load
from evaluate import TITLES, shown
from runtime import UserError
from student import Student, StudentError

ARMS = {"labels": "labels alone", "distilled": "distilled"}  # folder of a run: what the table calls it
LOGITS = "logits/train.pt"


def find(folder: Path) -> dict[tuple[str, str], list[str]]:
    """{(size, folder of the arm): students of all its seeds}, the smallest size first."""
    found, parameters = {}, {}
    for arm in ARMS:
        for path in sorted(folder.glob(f"{arm}/*/student.pt")):
            student = Student.load(path)
            size = size_of(student.config)
            found.setdefault((size, arm), []).append(str(path))
            parameters[size] = sum(p.numel() for p in student.parameters())
    if {arm for _, arm in found} != set(ARMS) or not (folder / LOGITS).exists():
        raise UserError(f"{folder}: lacks labels/*/student.pt, distilled/*/student.pt or {LOGITS}; "
                        f"run the recipe of this corpus first")
    return dict(sorted(found.items(), key=lambda item: parameters[item[0][0]]))


def mean(values: list[float], name: str, best: str) -> str:
    """0.7123 ± 0.0012, or 71.23% ± 0.12 of an accuracy."""
    text = shown(name, statistics.mean(values), best)
    if len(values) == 1:
        return text
    scale, digits = (100, 2) if text.endswith("%") else (1, 4)
    return f"{text} ± {scale * statistics.stdev(values):.{digits}f}"


def gain(task, distilled: list[dict], alone: list[dict]) -> tuple[float, float, float]:
    """How much better the mean of the seeds' task.best is, and the 95 % interval of that over rows."""
    def draws(runs):
        samples = tasks.resampled(task, [run["statistics"] for run in runs])
        return torch.stack([sample[task.best] for sample in samples]).mean(0)

    middle, other = (statistics.fmean(run[task.best] for run in runs) for runs in (distilled, alone))
    return middle - other, *tasks.interval(draws(distilled) - draws(alone))


def section(folder: Path, data: Path, ngrams: int) -> str:
    """The table of one corpus, and a line that says what was tested on what."""
    groups, teachers = find(folder), [str(Path(path)) for path in read_logits(folder / LOGITS).teacher_files]
    models = list(dict.fromkeys([*itertools.chain.from_iterable(groups.values()), *teachers]))
    train, valid, test = (str(data / f"{name}.tsv") for name in ("train", "valid", "test"))
    examples = evaluate.read_examples(test)
    task, target, results = evaluate.assess(evaluate.parse_args([*models, "--data", test]), examples,
                                            torch.device("cpu"))
    chosen = Student.load(models[0]).artifact["made_by"]["arguments"]
    task.best = chosen.get("best") or task.best
    scores = task.best, next(name for name in task.choosers if name != task.best)
    taught = [results[models.index(path)] for path in teachers]
    if len(taught) > 1:  # what the students learned: their mean logits, before calibration
        raw = [each["logits"] * getattr(load(each["model"]).config, "temperature", 1.0) for each in taught]
        results.append({"task": task, "logits": torch.stack(raw).mean(0),
                        "parameters": sum(each["parameters"] for each in taught)})
    for result in results:
        result["statistics"] = result["task"].statistics(result["logits"], target)
        result |= {name: value.item() for name, value in task.scores(result["statistics"].mean(0)).items()}
    by_path = dict(zip(models, results, strict=False))
    groups = {key: [by_path[path] for path in paths] for key, paths in groups.items()}

    def row(name, runs, difference="–"):
        return [name, f"{runs[0]['parameters']:,}",
                *(mean([run[score] for run in runs], score, task.best) for score in scores), difference]

    options = [word for name in ("best", "class_weights") if chosen.get(name)
               for word in (f"--{name.replace('_', '-')}", chosen[name])]
    options += ["--train", train, "--valid", valid, "--test", test, "--ngrams", str(ngrams)]
    with contextlib.redirect_stdout(said := io.StringIO()):
        found = tfidf.compare(tfidf.parse_args(options))
    if task.column == "labels":  # the one with the thresholds of --valid
        found = dict([*found.items()][-1:])
    names = ["TF-IDF", *[*found][1:]]  # of pairs, also by one similarity
    rows = [[name, "–", *(shown(score, baseline[score], task.best) for score in scores), "–"]
            for name, baseline in zip(names, found.values(), strict=True)]
    for (size, arm), runs in groups.items():
        difference = "–"
        if arm == "distilled" and (size, "labels") in groups:
            difference = shown("difference", gain(task, runs, groups[size, "labels"]), task.best)
        rows.append(row(f"{size.capitalize()}, {ARMS[arm]}", runs, difference))
    rows.append(row("teacher" if len(taught) == 1 else f"{len(taught)} teachers, mean", results[-1:]))
    counts = ", ".join(sorted({f"{len(runs)} seeds" for runs in groups.values()}))
    header = ["", "parameters", *(TITLES.get(score, score) for score in scores), "gain (95 %)"]
    return "\n".join([*table(header, rows), "", f"{len(examples):,} test rows; students: {counts}. "
                      + said.getvalue().splitlines()[0].partition("; ")[2] + "."])


def main(args) -> None:
    text = args.page.read_text("utf-8")
    for name in args.corpora:
        filled(text, "", args.page, name)  # a page without the place ends here, before anything is run
    for name in args.corpora:
        text = filled(text, section(args.runs / name, args.data / name, args.ngrams), args.page, name)
        runtime.save_together({args.page: text})
        print(f"{args.page}: {name}")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,))
