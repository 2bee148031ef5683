"""The results of whole runs: teacher, students of all sizes and seeds, and baselines on one test file.

    python -m bench.report --teacher teacher/teacher.pt --data test.tsv.gz \\
        --arm "labels alone" students/labels/*/student.pt --arm distilled students/train/*/student.pt \\
        --arm "distilled, more text" students/more/*/student.pt \\
        --train train.tsv --valid valid.tsv --seen train.tsv unlabeled.tsv.gz
    python -m bench.report                        # only fill the pages again, from OUT/report.json

Students of an arm that have one size are runs of one method: their mean, standard deviation and the gain over
the first arm are reported. Where student.int8.pt stands beside each student.pt of the last arm of a size,
both are compared. Baselines, TF-IDF with logistic regression, fastText and model2vec, are trained on --train
from their own packages, their settings chosen on --valid.

reads   teacher.pt (or students that taught), any number of student.pt, the test file
writes  OUT/report.json, OUT/accuracy.png (accuracy against bytes), and in each of --pages the lines between
        <!-- report --> and <!-- /report --> and those between <!-- headline --> and <!-- /headline -->, of
        which a page has at least one pair. OUT/answers.pt keeps what each model answered, so that none is run
        on the test file twice
needs   pip install -r requirements-bench.txt, for the baselines and the picture
"""

import argparse
from pathlib import Path


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--arm", action="append", default=[], nargs="+", metavar=("NAME", "STUDENT.pt"),
        help="a method and its students; several times, gains are over the first")
    arg("--teacher", nargs="+", metavar="FILE",
        help="teacher.pt or student.pt; of several also their mean, which is then what taught")
    arg("--data", metavar="FILE", help="the labelled test file")
    arg("--seen", nargs="+", default=[], metavar="FILE", help="training files, for the audit of leaks")
    arg("--train", metavar="FILE", help="labelled file to train the baselines on")
    arg("--valid", metavar="FILE", help="labelled file to choose their settings on")
    arg("--out", default="bench/report", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--pages", nargs="*", default=["docs/results.md", "README.md", "README.ko.md"], metavar="FILE",
        help="one that ends in .ko.md is Korean (default: %(default)s)")
    args = p.parse_args(argv)
    if any(len(arm) < 2 for arm in args.arm) or len({arm[0] for arm in args.arm}) < len(args.arm):
        p.error("--arm needs a name, another for each, and the student.pt files")
    if {bool(args.arm), bool(args.teacher), bool(args.data)} == {True, False}:
        p.error("--arm, --teacher and --data need each other")
    if (args.train is None) != (args.valid is None):
        p.error("the baselines need both --train and --valid")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import hashlib
import json
import math
import pickle
import shlex
import statistics
import sys
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import torch

import runtime
import tasks
from bench.common import CPU, peer
from bench.table import filled, table
from data.examples import read_examples
from dump_logits import load, load_teachers
from evaluate import columns_of, run_model, text_keys
from runtime import UserError
from student import SIZES, Student, StudentError
from teacher import Teacher

LENGTHS = {"0–15": (0, 15), "16–30": (16, 30), "31–60": (31, 60), "61+": (61, math.inf)}  # in characters
FILES = ["file", "bytes", "in int8", "accuracy", "in int8", "difference (95 %)", "reviews/s", "in int8",
         "ECE, T = 1", "ECE"]
HEADLINE = {"en": ["", "parameters", "file", "accuracy", "reviews/s, {} cores"],
            "ko": ["", "파라미터", "파일 크기", "정확도", "처리량 (리뷰/초, {}코어)"]}
KOREAN = {"TF-IDF, logistic regression": "TF-IDF, 로지스틱 회귀"}


# ---- what each model answered ------------------------------------------------------------------------------


def digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Tested:
    """What models answer on the test file, and how fast, kept in a file: each is run once."""

    def __init__(self, path: Path, examples, task):
        self.path, self.examples, self.task, self.found = path, examples, task, {}
        self.target, _ = examples.targets(task, every_row=True)
        self.test = examples.fingerprint() + runtime.fingerprint(self.target)
        if path.exists():
            self.found = runtime.load(path, "answers", 1, ("models",))["models"]

    def __call__(self, what: str, identity: str, make) -> dict:
        """make() gives (path, model); it is called only if none of this identity was tested on this file."""
        key = runtime.fingerprint(f"{self.test} {identity}")
        if key not in self.found:
            path, model = make()
            order = columns_of(path, model.task, model.label_names, self.task)
            logits, speed = run_model(str(path), model, self.examples)
            config = getattr(model, "config", None)
            self.found[key] = {
                "logits": logits[:, order], **speed, "bytes": Path(path).stat().st_size,
                "temperature": getattr(config, "temperature", 1.0),
                "family": getattr(config, "family", None), "machine": runtime.machine(CPU)}
            runtime.save({"kind": "answers", "format": 1, "models": self.found}, self.path)
        return self.judged(self.found[key] | {"model": what})

    def file(self, path: str) -> dict:
        return self(path, digest(path), lambda: (path, load(path)))

    def mean(self, results: list[dict]) -> dict:
        """The ensemble, without running it: mean logits before calibration, sums of all else."""
        total = {name: sum(result[name] for result in results)
                 for name in ("parameters", "bytes", "ms_per_text")}
        return self.judged({
            **results[0], "model": "mean of the teachers", "family": None, "temperature": 1.0, **total,
            "logits": sum(result["logits"] * result["temperature"] for result in results) / len(results),
            "texts_per_second": 1 / sum(1 / result["texts_per_second"] for result in results)})

    def judged(self, result: dict) -> dict:
        """`result` with its statistics (N, S) and scores."""
        rows = self.task.statistics(result["logits"], self.target)
        raw = tasks.judge(self.task, result["logits"] * result["temperature"], self.target)
        scores = {name: value.item() for name, value in self.task.scores(rows.mean(0)).items()}
        return result | scores | {"statistics": rows, "ece_uncalibrated": raw["ece"]}


# ---- baselines, each from its own package ------------------------------------------------------------------


def baseline(setting: str, classify, names, numbers: int, save) -> SimpleNamespace:
    """What run_model asks of a model. classify(texts) gives (N, C) probabilities; `numbers`: how many
    parameters; save(path)."""
    def predict(texts, texts2=None):
        return torch.as_tensor(classify(texts), dtype=torch.float)
    return SimpleNamespace(
        setting=setting, predict=predict, save=save, task="classification", label_names=[*map(str, names)],
        logits=lambda texts, texts2=None: predict(texts).clamp(min=1e-30).log(),
        parameters=lambda: [torch.empty(numbers, device="meta")])


def tf_idf(train, valid, names: list[str], args):
    """Logistic regression on TF-IDF of character n-grams, weakly or strongly regularised."""
    peer("sklearn")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    for C in (1.0, 4.0):
        model = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=5, sublinear_tf=True),
            LogisticRegression(C=C, max_iter=300)).fit(train.texts, train.answers)
        yield baseline(f"characters 1-4, C {C:g}", model.predict_proba, model.classes_,
                       model[-1].coef_.size + model[-1].intercept_.size,
                       lambda path, model=model: path.write_bytes(pickle.dumps(model)))


def fast_text(train, valid, names: list[str], args):
    """fastText with words, pairs of them, and with or without n-grams of characters."""
    fasttext = peer("fasttext")

    def lines(texts):  # it wants a text to be one
        return [" ".join(text.split()) for text in texts]

    def classify(model, texts):
        rows = []
        for text in lines(texts):  # its predict() of a list returns shares that it has freed already
            found = model.f.predict(f"{text}\n", len(names), 0.0, "strict")
            shares = {label: value for value, label in found}
            rows.append([shares.get(f"__label__{i}", 0.0) for i in range(len(names))])
        return rows

    data = args.out / "fasttext.txt"
    data.write_text("".join(f"__label__{names.index(label)} {text}\n" for text, label in zip(
        lines(train.texts), train.answers, strict=True)), encoding="utf-8")
    fasttext.FastText.eprint = lambda *_: None
    for least, most in ((0, 0), (1, 3), (2, 4)):
        model = fasttext.train_supervised(str(data), dim=32, epoch=10, lr=0.3, wordNgrams=2, minn=least,
                                          maxn=most, bucket=200_000, thread=1, verbose=0)
        yield baseline(f"word pairs, characters {least}-{most}",
                       lambda texts, model=model: classify(model, texts), names,
                       model.get_input_matrix().size + model.get_output_matrix().size,
                       lambda path, model=model: model.save_model(str(path)))


def static_embeddings(train, valid, names: list[str], args):
    """model2vec: a vector for each of the teacher's tokens, as its encoder has it alone, averaged over a text
    and trained on, with no or one hidden layer."""
    StaticModelForClassification = peer("model2vec.train").StaticModelForClassification
    teacher = next(model for model in map(load, args.teacher) if isinstance(model, Teacher))
    tokenizer = teacher.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first, last = tokenizer.encode("").ids  # [CLS] and [SEP], or what the family calls them
    alone = torch.tensor([[first, i, last] for i in range(tokenizer.get_vocab_size())])
    with torch.inference_mode():
        vectors = [teacher.encoder(ids, torch.full((len(ids),), 3), None).mean(1)
                   for ids in alone.split(1024)]
    static = peer("model2vec").StaticModel(torch.cat(vectors).numpy(), tokenizer)
    for layers in (0, 1):
        model = StaticModelForClassification.from_static_model(model=static, n_layers=layers)
        model.fit(train.texts, train.answers, X_val=valid.texts, y_val=valid.answers)
        yield baseline(f"{layers} hidden layers", model.predict_proba, model.classes_,
                       sum(p.numel() for p in model.parameters() if p.is_floating_point()),
                       lambda path, model=model: torch.save(
                           {"weights": model.state_dict(), "tokenizer": tokenizer.to_str()}, path))


BASELINES = {"TF-IDF, logistic regression": (tf_idf, "tf-idf.pkl"), "fastText": (fast_text, "fasttext.bin"),
             "model2vec": (static_embeddings, "model2vec.pt")}


def baselines(args, tested: Tested) -> list[dict]:
    """Each at its best setting on --valid."""
    train, valid = (read_examples(file) for file in (args.train, args.valid))
    target, names = valid.targets(tested.task, every_row=True)[0], tested.task.names
    train.targets(tested.task, every_row=True)
    if any(part.texts2 is not None for part in (train, valid, tested.examples)):
        raise UserError(f"{args.train}: the baselines read one text; leave out --train and --valid for pairs")
    if set(train.answers) != set(names):
        raise UserError(f"{args.train}: does not have every label of {names}")
    identity = " ".join([train.fingerprint(), valid.fingerprint(), *train.answers, *valid.answers])
    results = []
    for name, (candidates, file) in BASELINES.items():
        def make(name=name, candidates=candidates, path=args.out / file):
            found = []
            for model in candidates(train, valid, names, args):
                order = columns_of(name, model.task, model.label_names, tested.task)
                right = model.predict(valid.texts)[:, order].argmax(1) == target
                found.append((right.double().mean().item(), model))
                print(f"{name}, {model.setting}: validation accuracy {found[-1][0]:.2%}")
            best = max(found, key=lambda item: item[0])[1]
            best.save(path)
            return path, best

        teachers = "".join(f" {digest(path)}" for path in args.teacher if candidates is static_embeddings)
        results.append(tested(name, f"{name} {identity}{teachers}", make))
    return results


# ---- figures -----------------------------------------------------------------------------------------------


def size_of(config) -> str:
    dimensions = config.embedding_dim, config.hidden_dim
    return next((size for size, own in SIZES.items() if own == dimensions), "e{}-h{}".format(*dimensions))


def gains(task, groups: list[list[dict]]) -> list[dict]:
    """Of each group of runs the gain in accuracy over the first, and its 95 % interval over the rows.

    Each row is paired with itself: its share of runs that have it right.
    """
    means = [torch.stack([result["statistics"] for result in group]).mean(0) for group in groups]  # (N, S)
    accuracies = [task.scores(rows.mean(0))["accuracy"].item() for rows in means]
    return [{"gain": accuracy - accuracies[0], "interval": [*found["difference"]]}
            for accuracy, found in zip(accuracies, tasks.bootstrap(task, means), strict=True)]


def by_length(lengths) -> list:
    """For each of LENGTHS which rows (N,) are that long."""
    return [(least <= lengths) & (lengths <= most) for least, most in LENGTHS.values()]


def summary(results: list[dict], teacher: dict, leaked: torch.Tensor, lengths: torch.Tensor) -> dict:
    """Figures of the runs of one method, the means over the runs; None where there is nothing to measure."""
    def share(values):
        return values.mean().item() if len(values) else None

    first, accuracies = results[0], [result["accuracy"] for result in results]
    right = torch.stack([result["statistics"][:, 0] for result in results]).mean(0)  # (N,) share of the runs
    agree = [result["logits"].argmax(1) == teacher["logits"].argmax(1) for result in results]
    means = ("macro_f1", "log_loss", "ece", "ece_uncalibrated", "texts_per_second", "ms_per_text")
    return {"runs": [result["model"] for result in results], "accuracy": statistics.mean(accuracies),
            "sd": statistics.stdev(accuracies) if len(results) > 1 else None, "accuracies": accuracies,
            "unseen_accuracy": share(right[~leaked]),
            "agreement": torch.stack(agree).double().mean().item(),
            "by_length": [share(right[rows]) for rows in by_length(lengths)],
            **{name: first[name] for name in ("machine", "parameters", "bytes", "family") if first[name]},
            **{name: statistics.mean(result[name] for result in results) for name in means}}


def make_report(args, tested: Tested, teachers: dict, groups: dict, others: list[dict]) -> dict:
    """All of report.json. `teachers`: {name: result}, the last is what taught; `groups`: {size: {arm:
    [result]}}."""
    keys, seen = text_keys(tested.examples), set()
    for file in args.seen:
        seen.update(text_keys(read_examples(file)))
    leaked = torch.tensor([key in seen for key in keys])
    lengths = torch.tensor([len(text) for text in tested.examples.texts])
    context = [*teachers.values()][-1], leaked, lengths
    students, files = {}, {}
    for size, by_arm in sorted(groups.items(), key=lambda item: -max(
            run["parameters"] for runs in item[1].values() for run in runs)):  # the largest first
        students[size] = {arm: summary(runs, *context) for arm, runs in by_arm.items()}
        if args.arm[0][0] in by_arm:
            for arm, found in [*zip(by_arm, gains(tested.task, [*by_arm.values()]), strict=True)][1:]:
                students[size][arm] |= found
        *_, exact = by_arm.values()
        paths = [Path(run["model"]).with_name("student.int8.pt") for run in exact]
        if all(map(Path.exists, paths)):
            rounded = [tested.file(str(path)) for path in paths]
            files[size] = {"float32": summary(exact, *context),
                           "int8": summary(rounded, *context) | gains(tested.task, [exact, rounded])[1]}
    return {"data": args.data, "rows": len(keys), "leaked_rows": int(leaked.sum()), "seen": args.seen,
            "length_rows": [int(rows.sum()) for rows in by_length(lengths)],
            "arms": [arm[0] for arm in args.arm], "students": students, "files": files,
            "teachers": {name: summary([result], *context) for name, result in teachers.items()},
            "baselines": {result["model"]: summary([result], *context) for result in others},
            "command": f"python -m bench.report {shlex.join(sys.argv[1:])}"}


# ---- pages and picture -------------------------------------------------------------------------------------


def last(by_arm: dict) -> dict:
    """The figures of a size that a table with one line per size shows."""
    return [*by_arm.values()][-1]


def score(figures: dict) -> str:
    sd = "" if figures["sd"] is None else f" ± {100 * figures['sd']:.2f}"
    return f"{figures['accuracy']:.2%}{sd}"


def gain(figures: dict, bold: str = "") -> str:
    if "gain" not in figures:
        return "–"
    low, high = figures["interval"]
    return f"{bold}{100 * figures['gain']:+.2f}{bold} ({100 * low:+.2f} … {100 * high:+.2f})"


def block(report: dict) -> str:
    """The tables of docs/results.md."""
    arms, teachers = report["arms"], report["teachers"]
    students = {size.capitalize(): by_arm for size, by_arm in report["students"].items()}
    methods = {name: {arms[0]: figures} for name, figures in (teachers | report["baselines"]).items()}
    lines = table(["", "parameters", "bytes", *arms, "gain (95 %)", "agrees with teacher", "reviews/s",
                   "ms for one"], [[
        name, f"{last(by_arm)['parameters']:,}", f"{last(by_arm)['bytes']:,}",
        *(score(by_arm[arm]) if arm in by_arm else "–" for arm in arms), gain(last(by_arm), "**"),
        f"{last(by_arm)['agreement']:.1%}", f"{last(by_arm)['texts_per_second']:,.0f}",
        f"{last(by_arm)['ms_per_text']:.2f}"] for name, by_arm in (methods | students).items()])
    taught = [*teachers][-1]
    lines += ["", *table(["by length in characters", *LENGTHS], [
        ["reviews", *(f"{rows:,}" for rows in report["length_rows"])], *(
            [name, *("–" if share is None else f"{share:.2%}" for share in last(by_arm)["by_length"])]
            for name, by_arm in ({taught: methods[taught]} | students).items())])]
    if report["files"]:
        pairs = [(size, pair["float32"], pair["int8"]) for size, pair in report["files"].items()]
        lines += ["", *table(FILES, [[
            size.capitalize(), f"{exact['bytes']:,}", f"{rounded['bytes']:,}", score(exact), score(rounded),
            gain(rounded), f"{exact['texts_per_second']:,.0f}", f"{rounded['texts_per_second']:,.0f}",
            f"{exact['ece_uncalibrated']:.4f}", f"{exact['ece']:.4f}"] for size, exact, rounded in pairs])]
    return "\n".join(lines)


def headline(report: dict, language: str) -> str:
    """The table of a README: the first teacher, each size of student (in int8 if it is there), the best
    baseline."""
    first = next(iter(report["teachers"].values()))
    rows = [("teacher" + (f", {first['family'].upper()}" if "family" in first else ""), first)]
    for size, by_arm in report["students"].items():
        pair = report["files"].get(size)
        rows.append((f"{size.capitalize()}, int8", pair["int8"]) if pair else
                    (size.capitalize(), last(by_arm)))
    rows += sorted(report["baselines"].items(), key=lambda item: -item[1]["accuracy"])[:1]
    return "\n".join(table([cell.format(first["machine"]["threads"]) for cell in HEADLINE[language]], [[
        KOREAN.get(name, name) if language == "ko" else name, f"{figures['parameters']:,}",
        f"{figures['bytes'] / 1000:,.0f} KB", score(figures), f"{figures['texts_per_second']:,.0f}"]
        for name, figures in rows]))


def page(text: str, path: str, report: dict | None) -> str:
    """A page with what it has markers for; without a report only checked: ends with 2 if it has none."""
    language = "ko" if path.endswith(".ko.md") else "en"
    made = {"report": block, "headline": partial(headline, language=language)}
    for name in [name for name in made if f"<!-- {name} -->" in text] or ["report"]:
        text = filled(text, made[name](report) if report else "", path, name)
    return text


def draw(report: dict, path: Path) -> None:
    """Accuracy against bytes on disk, PNG."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install -r requirements-bench.txt")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")

    def points(several):
        return [each["bytes"] for each in several], [100 * each["accuracy"] for each in several]

    for arm in report["arms"]:
        several = [by_arm[arm] for by_arm in report["students"].values() if arm in by_arm]
        axes.errorbar(*points(several), yerr=[100 * (each["sd"] or 0) for each in several], marker="o",
                      capsize=3, label=arm)
    if report["files"]:
        axes.plot(*points([pair["int8"] for pair in report["files"].values()]), "o", color="black",
                  fillstyle="none", label="the last of a size, in int8")
    for size, by_arm in report["students"].items():
        axes.annotate(size.capitalize(), (last(by_arm)["bytes"], 100 * last(by_arm)["accuracy"]), (0, 8),
                      textcoords="offset points", ha="center")
    others = report["teachers"] | report["baselines"]
    for (what, figures), marker in zip(others.items(), "*sD^vPX" * 9, strict=False):
        axes.plot(*points([figures]), marker, color="black", label=what)
    axes.set(xscale="log", xlabel="bytes of the file",
             ylabel=f"accuracy on {report['rows']:,} test reviews, %")
    axes.margins(0.05, 0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150, metadata={"Software": None})


def run_all(args) -> dict:
    """Run every model on the test file, and report what they answered."""
    args.out.mkdir(parents=True, exist_ok=True)
    models = load_teachers(args.teacher, CPU)
    if args.train and not any(isinstance(model, Teacher) for model in models):
        raise UserError("--teacher: the baseline model2vec starts from a teacher.pt; name one, or leave out "
                        "--train and --valid")
    task = tasks.of_name(models[0].task, models[0].label_names, args.teacher[0])
    tested = Tested(args.out / "answers.pt", read_examples(args.data), task)
    teachers, groups = {}, defaultdict(lambda: defaultdict(list))
    for i, (path, model) in enumerate(zip(args.teacher, models, strict=True), 1):
        size = f" ({size_of(model.config)})" if isinstance(model, Student) else ""
        teachers[f"teacher {i}{size}" if len(models) > 1 else "teacher"] = tested.file(path)
    if len(models) > 1:
        teachers["mean of the teachers"] = tested.mean([*teachers.values()])
    for arm, *paths in args.arm:
        for path in sorted(paths):
            model = load(path)
            if not isinstance(model, Student):
                raise UserError(f"{path}: this is a teacher; --arm takes student.pt files")
            groups[size_of(model.config)][arm].append(tested.file(path))
    return make_report(args, tested, teachers, groups, baselines(args, tested) if args.train else [])


def main(args):
    path, pages = args.out / "report.json", {name: Path(name).read_text("utf-8") for name in args.pages}
    for name, text in pages.items():
        page(text, name, None)  # what is wrong with a page is told now, not after the work
    if args.arm:
        report = run_all(args)
        runtime.save_together({path: json.dumps(report, ensure_ascii=False, indent=1) + "\n"})
        draw(report, args.out / "accuracy.png")
    else:
        report = json.loads(path.read_text("utf-8"))
    print(block(report))
    runtime.save_together({name: page(text, name, report) for name, text in pages.items()})


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=(StudentError,))
