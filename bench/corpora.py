"""A table for each corpus that a recipe went through: students, teacher and TF-IDF on its test file.

    sh recipes/unsmile.sh && sh recipes/hate-speech.sh && python -m bench.corpora unsmile hate-speech

Each model is run once. Figures of several seeds are their mean and standard deviation. The gain is that of
distilled students over those of labels alone, the difference of the means, with its 95 % interval over rows.

reads   what recipes/corpus.sh left in RUNS/CORPUS/: teacher/teacher.pt, labels/*/student.pt,
        distilled/*/student.pt; DATA/CORPUS/train.tsv, valid.tsv, test.tsv
writes  in --page what stands between <!-- CORPUS --> and <!-- /CORPUS -->
needs   pip install -r requirements-bench.txt, for the baseline: character n-grams (bench/tfidf.py)
"""

import argparse
from pathlib import Path


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m bench.corpora", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("corpora", nargs="+", metavar="CORPUS")
    arg("--runs", default="runs", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--data", default="data", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--page", default="docs/results.md", type=Path, metavar="FILE", help="default: %(default)s")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()

import contextlib
import io
import statistics

import torch

import evaluate
import runtime
import tasks
from bench import tfidf
from bench.runs import size_of
from bench.table import filled, table
from evaluate import TITLES, shown
from runtime import UserError
from student import SIZES, Student, StudentError

ARMS = {"labels": "labels alone", "distilled": "distilled"}  # folder of a run: what the table calls it


def find(folder: Path) -> dict[tuple[str, str], list[str]]:
    """{(size, folder of the arm): students of all its seeds}, the smallest size first."""
    found = {}
    for arm in ARMS:
        for path in sorted(folder.glob(f"{arm}/*/student.pt")):
            found.setdefault((size_of(Student.load(path).config), arm), []).append(str(path))
    if {arm for _, arm in found} != set(ARMS) or not any(folder.glob("teacher*/teacher.pt")):
        raise UserError(f"{folder}: lacks labels/*/student.pt, distilled/*/student.pt or teacher/teacher.pt; "
                        f"run the recipe of this corpus first")
    sizes = [*reversed(SIZES)]
    return dict(sorted(found.items(), key=lambda item: sizes.index(item[0][0].split(",")[0])))


def mean(values: list[float], name: str, best: str) -> str:
    """0.7123 ± 0.0012, or 71.23% ± 0.12 of an accuracy."""
    text = shown(name, statistics.mean(values), best)
    if len(values) == 1:
        return text
    scale, digits = (100, 2) if text.endswith("%") else (1, 4)
    return f"{text} ± {scale * statistics.stdev(values):.{digits}f}"


def section(folder: Path, data: Path) -> str:
    """The table of one corpus, and a line that says what was tested on what."""
    groups = find(folder)
    teachers = sorted(map(str, folder.glob("teacher*/teacher.pt")))
    models = [*(path for paths in groups.values() for path in paths), *teachers]
    train, valid, test = (str(data / f"{name}.tsv") for name in ("train", "valid", "test"))
    args = evaluate.parse_args([*models, "--data", test])
    examples = evaluate.read_examples(test)
    task, target, results = evaluate.assess(args, examples, torch.device("cpu"))
    chosen = Student.load(models[0]).artifact["made_by"]["arguments"]
    best = task.best = chosen.get("best") or task.best
    other = next(name for name in task.choosers if name != best)
    by_path = dict(zip(models, results, strict=True))
    for result in results:
        result["statistics"] = result["task"].statistics(result["logits"], target)
        result |= {name: value.item() for name, value in task.scores(result["statistics"].mean(0)).items()}

    def cells(paths, gain="–"):
        runs = [by_path[path] for path in paths]
        return [f"{runs[0]['parameters']:,}", *(mean([run[name] for run in runs], name, best)
                                                for name in (best, other)), gain]

    flags = [word for name in ("best", "class_weights") if chosen.get(name)
             for word in (f"--{name.replace('_', '-')}", chosen[name])]
    with contextlib.redirect_stdout(said := io.StringIO()):
        scores = [*tfidf.compare(tfidf.parse_args(["--train", train, "--valid", valid, "--test", test,
                                                         *flags])).values()][-1]
    rows = [["TF-IDF", "–", *(shown(name, scores[name], best) for name in (best, other)), "–"]]
    for size, arm in groups:
        gain = "–"
        if arm == "distilled" and (size, "labels") in groups:
            arms = [[by_path[path] for path in groups[size, name]] for name in ("distilled", "labels")]
            draws = [torch.stack([sample[best] for sample in tasks.resampled(
                task, [run["statistics"] for run in runs])]).mean(0) for runs in arms]
            middle = [statistics.fmean(run[best] for run in runs) for runs in arms]
            gain = shown("difference", (middle[0] - middle[1], *tasks.interval(draws[0] - draws[1])), best)
        rows.append([f"{size.capitalize()}, {ARMS[arm]}", *cells(groups[size, arm], gain)])
    rows.append(["teacher", *cells(teachers)])
    counts = ", ".join(sorted({f"{len(paths)} seeds" for paths in groups.values()}))
    header = ["", "parameters", TITLES.get(best, best), TITLES.get(other, other), "gain (95 %)"]
    return "\n".join([*table(header, rows), "", f"{len(examples):,} test rows; students: {counts}. "
                      + said.getvalue().splitlines()[0].partition("; ")[2] + "."])


def main(args) -> None:
    text = args.page.read_text("utf-8")
    for name in args.corpora:
        filled(text, "", args.page, name)  # a page without the place ends here, before anything is run
    for name in args.corpora:
        text = filled(text, section(args.runs / name, args.data / name), args.page, name)
        runtime.save_together({args.page: text})
        print(f"{args.page}: {name}")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,))
