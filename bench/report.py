"""The report: how teachers, students of all sizes and seeds, and baselines did on one test file.

    python -m bench.report --data test.tsv.gz --teacher first teacher/teacher.pt --saw texts \\
        --seen train.tsv unlabeled.tsv.gz --train train.tsv --valid valid.tsv
    python -m bench.report --data test.tsv.gz --arm "labels alone" students/labels/*/student.pt
    python -m bench.report --data test.tsv.gz --arm distilled students/train/*/student.pt --taught-by first
    python -m bench.report

With --data each model is tested once and gets a line in OUT/runs.jsonl: scores, speed, and its answer to each
row. Without, the report is made from these lines alone; neither models nor the test file are needed.

Students of one arm and size are seeds of one method. Arms stand in the order of their first lines, labels
alone before all others; gains are those of the last arm over the first. An int8 copy beside student.pt is
tested with it. The baselines, TF-IDF with logistic regression, fastText and model2vec, are trained on
--train, their settings chosen on --valid.

reads   with --data: the test file, student.pt, teacher.pt; without: OUT/runs.jsonl
writes  with --data: OUT/runs.jsonl; without: OUT/accuracy.png, accuracy against size, and in each of --pages
        what stands between <!-- report --> and <!-- /report --> and between <!-- headline --> and
        <!-- /headline -->, of which a page has at least one pair
needs   pip install -r requirements-bench.txt, for the baselines and the picture
"""

import argparse
from pathlib import Path

SAW = {"texts": "texts alone", "ratings": "star ratings too"}


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--data", metavar="FILE", help="the labelled test file")
    arg("--teacher", action="append", default=[], nargs="+", metavar=("NAME", "FILE"),
        help="teacher.pt or student.pt, of several the mean of their logits; can be repeated")
    arg("--saw", choices=SAW,
        help="what the encoder of these teachers saw: texts alone, or star ratings of unlabelled texts too")
    arg("--arm", action="append", default=[], nargs="+", metavar=("NAME", "STUDENT.pt"),
        help="a method and its students; can be repeated")
    arg("--taught-by", metavar="NAME", help="the teacher of these arms; leave it out for labels alone")
    arg("--seen", nargs="+", default=[], metavar="FILE",
        help="training files: rows of --data that occur there too are noted (default: as noted before)")
    arg("--train", metavar="FILE", help="labelled file to train the baselines on")
    arg("--valid", metavar="FILE", help="labelled file to choose their settings on")
    arg("--out", default="bench/report", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--pages", nargs="*", default=["docs/results.md", "README.md", "README.ko.md"], metavar="FILE",
        help="one that ends in .ko.md is Korean (default: %(default)s)")
    args = p.parse_args(argv)
    if any(len(words) < 2 for words in args.teacher + args.arm):
        p.error("--teacher and --arm need a name and files")
    for one, other in (("data", "teacher or --arm"), ("teacher", "data"), ("teacher", "saw"),
                       ("saw", "teacher"), ("arm", "data"), ("taught-by", "arm"), ("seen", "data"),
                       ("train", "valid"), ("valid", "train"), ("train", "teacher")):
        given = {name.replace("_", "-") for name, value in vars(args).items() if value}
        if one in given and not given & set(other.split(" or --")):
            p.error(f"--{one} needs --{other}")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import math
import statistics
from functools import partial
from itertools import cycle
from string import ascii_uppercase

import torch
import torch.nn.functional as F

import runtime
from bench.runs import LENGTHS, add, read_runs
from bench.table import filled, table
from runtime import UserError
from student import StudentError
from tasks import Classification, bootstrap

FILES = ["file", "bytes", "in int8", "accuracy", "in int8", "difference (95 %)", "reviews/s", "in int8",
         "ECE, T = 1", "ECE"]
HEADLINE = {"en": ["", "parameters", "file", "accuracy", ", encoder saw {}", "reviews/s, {} cores"],
            "ko": ["", "파라미터", "파일 크기", "정확도", " (인코더: {})", "처리량 (리뷰/초, {}코어)"]}
KOREAN = {"TF-IDF, logistic regression": "TF-IDF, 로지스틱 회귀", "-model ensemble": "개 모델 앙상블",
          "texts alone": "텍스트만", "star ratings too": "별점도 사용"}



# ---- figures -----------------------------------------------------------------------------------------------


def gains(test: dict, groups: list[list[dict]]) -> list[dict]:
    """Of each group of runs the gain in accuracy over the first, and its 95 % interval over the rows.

    Each row is paired with itself: its share of runs that have it right.
    """
    task, C = Classification(test["names"]), len(test["names"])
    means = [sum(task.statistics(F.one_hot((test["labels"] + run["off"]) % C, C), test["labels"])
                 for run in group) / len(group) for group in groups]  # (N, S) of each group
    accuracies = [rows[:, 0].mean().item() for rows in means]
    return [{"gain": accuracy - accuracies[0], "interval": [*found["difference"]]}
            for accuracy, found in zip(accuracies, bootstrap(task, means), strict=True)]


def summary(runs: list[dict], teacher: dict | None, test: dict) -> dict:
    """Figures of the runs of one method, the means over the runs; None where there is nothing to measure."""
    def share(values):
        return values.mean().item() if len(values) else None

    right = torch.stack([run["off"] == 0 for run in runs]).double()  # (runs, N)
    rows, accuracies, results = right.mean(0), right.mean(1).tolist(), [run["result"] for run in runs]
    agree = [(run["off"] == teacher["off"]).double() for run in runs] if teacher else None
    return {"seeds": len(runs), "accuracy": statistics.mean(accuracies),
            "sd": statistics.stdev(accuracies) if len(runs) > 1 else None,
            "unseen": share(rows[test["leaked"] == 0]),
            "agreement": share(torch.cat(agree)) if agree else None,
            "by_length": [share(rows[test["length"] == i]) for i in range(len(LENGTHS))],
            **{name: results[0][name] for name in ("parameters", "bytes", "machine")},
            **{name: statistics.mean(result[name] for result in results)
               for name in ("ece", "ece_uncalibrated", "texts_per_second", "ms_per_text")}}


class Section:
    """The report of one kind of teachers, those whose encoder saw `saw`; with labels alone and baselines.

    arms: their names; students: {size: {arm: figures}}, the largest first; files: {size: (float32, int8)} of
    the last arm of a size; teachers, baselines: {name: figures}; taught: the name of the last arm's teacher.
    """

    def __init__(self, saw: str | None, test: dict, lines: list[dict]):
        teachers = {line["name"]: line for line in lines if line["kind"] == "teacher" and line["saw"] == saw}
        students = [line for line in lines if line["kind"] == "student" and (
            line["taught_by"] is None or line["taught_by"] in teachers)]
        students.sort(key=lambda line: line["taught_by"] is not None)  # labels alone come first
        by = {line["name"]: line["taught_by"] for line in students}
        self.saw, self.arms, self.students, self.files = saw, [*by] or ["accuracy"], {}, {}
        self.taught = next((name for name in reversed(by.values()) if name), next(reversed(teachers), None))

        def figures(runs, teacher=None):
            return summary(runs, teachers.get(teacher or self.taught), test)

        self.teachers = {name: figures([line]) | {"network": line["network"]}
                         for name, line in teachers.items()}
        self.baselines = {line["name"]: figures([line]) for line in lines if line["kind"] == "baseline"}

        def runs(size, arm, precision):
            return [line for line in students
                    if (line["size"], line["name"], line["precision"]) == (size, arm, precision)]

        for size in dict.fromkeys(line["size"] for line in sorted(
                students, key=lambda line: -line["result"]["parameters"])):
            exact = {arm: runs(size, arm, "float32") for arm in self.arms if runs(size, arm, "float32")}
            self.students[size] = {arm: figures(found, by[arm]) for arm, found in exact.items()}
            if self.arms[0] in exact:
                for arm, found in [*zip(exact, gains(test, [*exact.values()]), strict=True)][1:]:
                    self.students[size][arm] |= found
            rounded = runs(size, arm := [*exact][-1], "int8")
            if len(rounded) == len(exact[arm]):
                self.files[size] = (self.students[size][arm],
                                    figures(rounded, by[arm]) | gains(test, [exact[arm], rounded])[1])

    def best(self, size: str) -> tuple[str, dict]:
        """(title, figures) of the last arm of a size, in int8 if it is there."""
        if size in self.files:
            return f"{size.capitalize()}, int8", self.files[size][1]
        return size.capitalize(), last(self.students[size])


def sections(test: dict, lines: list[dict]) -> list[Section]:
    """One for each kind of teachers that is there. Raises UserError where an arm's teacher is missing."""
    saw = {line["name"]: line["saw"] for line in lines if line["kind"] == "teacher"}
    for line in lines:
        if line["kind"] == "student" and line["taught_by"] not in (None, *saw):
            raise UserError(f"{line['name']}: its teacher {line['taught_by']} has no line; add it again")
    taught = {saw.get(line["taught_by"]) for line in lines if line["kind"] == "student"} - {None}
    only = [line for line in lines if line["kind"] != "student"]  # of a kind that taught none
    return [Section(kind, test, lines if kind in taught or not taught else only)
            for kind in [each for each in SAW if each in saw.values()] or [None]]


# ---- pages and picture -------------------------------------------------------------------------------------


def last(by_arm: dict) -> dict:
    """The figures of a size that a table with one line per size shows."""
    return [*by_arm.values()][-1]


def percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{share:.{digits}%}"


def score(figures: dict, seeds: bool = False) -> str:
    sd = "" if figures["sd"] is None else f" ± {100 * figures['sd']:.2f}"
    return f"{figures['accuracy']:.2%}{sd}" + (f" ({figures['seeds']})" if seeds else "")


def gain(figures: dict, bold: str = "") -> str:
    if "gain" not in figures:
        return "–"
    low, high = figures["interval"]
    return f"{bold}{100 * figures['gain']:+.2f}{bold} ({100 * low:+.2f} … {100 * high:+.2f})"


def block(test: dict, parts: list[Section]) -> str:
    """The tables of docs/results.md."""
    leaked = int(test["leaked"].sum())
    seen = ", ".join(test["seen"]) or "training files, of which none was named"
    lines = [f"{test['data']}: {test['rows']:,} reviews; {leaked:,} ({leaked / test['rows']:.1%}) also occur "
             f"in {seen}. Accuracy ± standard deviation (number of seeds)."]
    for part in parts:
        if part.saw:
            lines += ["", f"**Encoder saw {SAW[part.saw]}.**"]
        others = {name: {part.arms[0]: figures}
                  for name, figures in (part.teachers | part.baselines).items()}
        students = {size.capitalize(): by_arm for size, by_arm in part.students.items()}
        lines += ["", *table(["", "parameters", "bytes", *part.arms, "gain (95 %)", "without leaked rows",
                              "agrees with teacher", "reviews/s", "ms for one"], [[
            name, f"{shown['parameters']:,}", f"{shown['bytes']:,}",
            *(score(by_arm[arm], seeds=name in students) if arm in by_arm else "–" for arm in part.arms),
            gain(shown, "**"), percent(shown["unseen"]), percent(shown["agreement"], 1),
            f"{shown['texts_per_second']:,.0f}", f"{shown['ms_per_text']:.2f}"]
            for name, by_arm in (others | students).items() for shown in [last(by_arm)]])]
        taught = {part.taught: others[part.taught]} if part.taught else {}
        lines += ["", *table(["by length in characters", *LENGTHS], [
            ["reviews", *(f"{int((test['length'] == i).sum()):,}" for i in range(len(LENGTHS)))],
            *([name, *map(percent, last(by_arm)["by_length"])]
              for name, by_arm in (taught | students).items())])]
        if part.files:
            lines += ["", *table(FILES, [[
                size.capitalize(), f"{exact['bytes']:,}", f"{rounded['bytes']:,}", score(exact),
                score(rounded), gain(rounded), f"{exact['texts_per_second']:,.0f}",
                f"{rounded['texts_per_second']:,.0f}",
                f"{exact['ece_uncalibrated']:.4f}", f"{exact['ece']:.4f}"]
                for size, (exact, rounded) in part.files.items()])]
    return "\n".join(lines)


def headline(test: dict, parts: list[Section], language: str) -> str:
    """The table of a README: what taught the last arm, each size, the best baseline; a column of accuracies
    for each kind of teachers."""
    found = [(part.saw, f"teacher, {figures['network']}", figures) for part in parts
             for name, figures in part.teachers.items() if name == part.taught]
    found += sorted(((part.saw, *part.best(size)) for part in parts for size in part.students),
                    key=lambda item: -item[2]["parameters"])
    found += [(parts[0].saw, *max(part.baselines.items(), key=lambda item: item[1]["accuracy"]))
              for part in parts[:1] if part.baselines]
    rows = {}  # {(what, parameters): {saw: figures}}
    for saw, what, figures in found:
        rows.setdefault((what, figures["parameters"]), {})[saw] = figures
    *columns, accuracy, saw, speed = HEADLINE[language]
    columns += [accuracy + (saw.format(SAW[part.saw]) if part.saw else "") for part in parts]
    speed = speed.format(found[0][2]["machine"]["threads"] if found else "")
    text = "\n".join(table([*columns, speed], [[
        what, f"{parameters:,}", f"{first['bytes'] / 1000:,.0f} KB",
        *(score(by[part.saw]) if part.saw in by else "–" for part in parts),
        f"{first['texts_per_second']:,.0f}"]
        for (what, parameters), by in rows.items() for first in [*by.values()][:1]]))
    for english, korean in KOREAN.items() if language == "ko" else ():
        text = text.replace(english, korean)
    return text


def page(text: str, path: str, *report) -> str:
    """A page with what it has markers for; without a report only checked: ends with 2 if it has none."""
    language = "ko" if path.endswith(".ko.md") else "en"
    made = {"report": block, "headline": partial(headline, language=language)}
    for name in [name for name in made if f"<!-- {name} -->" in text] or ["report"]:
        text = filled(text, made[name](*report) if report else "", path, name)
    return text


def spread(places: list[float], gap: float) -> list[float]:
    """Ascending places, moved up where one would stand closer than `gap` to the one before."""
    moved = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    return moved


def draw(test: dict, parts: list[Section], path: Path) -> None:
    """Accuracy against size of the file, PNG: arms differ by marker and line, not by colour alone."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install -r requirements-bench.txt")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    arms = {arm: [by_arm[arm] for by_arm in part.students.values() if arm in by_arm]
            for part in parts if part.students for arm in part.arms}
    int8 = {f"{' / '.join(part.arms[1:] or part.arms)}, int8": [rounded for _, rounded in part.files.values()]
            for part in parts if part.files}
    others = {name: each for part in parts for name, each in part.teachers.items()} | parts[0].baselines
    figure, axes = pyplot.subplots(figsize=(9, 6.5), layout="constrained")

    def plot(label, several, marker, line, **style):
        sd = [100 * (each["sd"] or 0) for each in several]
        axes.errorbar([each["bytes"] for each in several], [100 * each["accuracy"] for each in several],
                      sd if any(sd) else None, marker=marker, linestyle=line, label=label, capsize=3, **style)

    lines = "-", "--", "-.", ":", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3))
    for (arm, several), marker, line in zip(arms.items(), cycle("osD^vPX"), cycle(lines), strict=False):
        plot(arm, several, marker, line)
    for (label, several), marker in zip(int8.items(), "os", strict=False):
        plot(label, several, marker, (0, (1, 2)), color="black", markerfacecolor="white")
    for (name, figures), letter in zip(others.items(), ascii_uppercase, strict=False):
        plot(name, [figures], f"${letter}$", "", color="black", markersize=9, markeredgewidth=0.5)
    axes.set(xscale="log", xlabel="size of the file", ylabel=f"accuracy on {test['rows']:,} test reviews, %")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(
        lambda size, _: f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} KB")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="y", alpha=0.3)
    low, high = map(math.log, axes.get_xlim())
    sizes = {size: last(by_arm)["bytes"] for part in parts for size, by_arm in part.students.items()}
    sizes = dict(sorted(sizes.items(), key=lambda item: item[1]))
    places = spread([(math.log(size) - low) / (high - low) for size in sizes.values()], 0.04)
    for (name, size), place in zip(sizes.items(), places, strict=True):  # above the axes, with a line
        axes.axvline(size, color="gray", linewidth=0.5, alpha=0.6, zorder=0)
        axes.annotate("", (size, 1), (place, 1.03), axes.get_xaxis_transform(), "axes fraction",
                      {"arrowstyle": "-", "color": "gray", "shrinkA": 0, "shrinkB": 0})
        axes.text(place, 1.04, name.capitalize(), transform=axes.transAxes, rotation=30,
                  rotation_mode="anchor")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(args):
    if args.data:
        return add(args)
    path = args.out / "runs.jsonl"
    if not path.exists():
        raise UserError(f"{path}: is not there; test models first, with --data, --teacher and --arm")
    pages = {name: Path(name).read_text("utf-8") for name in args.pages}
    for name, text in pages.items():
        page(text, name)  # what is wrong with a page is told before anything is written
    test, *lines = read_runs(path)
    report = test, sections(test, lines)
    print(block(*report))
    runtime.save_together({name: page(text, name, *report) for name, text in pages.items()})
    draw(*report, args.out / "accuracy.png")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,))
