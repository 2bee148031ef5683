"""The results of whole runs: teacher, students of all sizes and seeds, and baselines on one test file.

    python -m bench.report --teacher teacher/teacher.pt --data test.tsv.gz \\
        --arm "labels alone" students/labels/*/student.pt --arm distilled students/train/*/student.pt \\
        --arm "distilled, more text" students/more/*/student.pt \\
        --train train.tsv --valid valid.tsv --seen train.tsv unlabeled.tsv.gz

Students of an arm that have one size are runs of one method: their mean, standard deviation and the gain
over the first arm are reported. Where student.int8.pt stands beside each student.pt of the last arm of a
size, both are compared. Baselines, TF-IDF with logistic regression, fastText and model2vec, are trained on
--train from their own packages, their settings chosen on --valid.

reads   teacher.pt (or students that taught), any number of student.pt, the test file
writes  OUT/report.json, OUT/accuracy.png (accuracy against bytes), and in README.md and README.ko.md the
        lines between <!-- report --> and <!-- /report -->. OUT/tested.pt keeps what each model answered: a
        model that is in it is not run on the test file again
needs   pip install -r bench/requirements.txt, for the baselines and the picture
"""

import argparse
from pathlib import Path


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--arm", action="append", required=True, nargs="+", metavar=("NAME", "STUDENT.pt"),
        help="a method and its students; several times, the first is what gains are over")
    arg("--teacher", required=True, nargs="+", metavar="FILE",
        help="teacher.pt or student.pt; of several also the mean")
    arg("--data", required=True, metavar="FILE", help="the labelled test file")
    arg("--seen", nargs="+", default=[], metavar="FILE", help="training files, for the audit of leaks")
    arg("--train", metavar="FILE", help="labelled file to train the baselines on")
    arg("--valid", metavar="FILE", help="labelled file to choose their settings on")
    arg("--out", default="bench/report", type=Path, metavar="DIR", help="default: %(default)s")
    arg("--readme", nargs="*", default=["README.md", "README.ko.md"], metavar="FILE",
        help="of which one that ends in .ko.md is Korean (default: both)")
    args = p.parse_args(argv)
    if any(len(arm) < 2 for arm in args.arm) or len({arm[0] for arm in args.arm}) < len(args.arm):
        p.error("--arm needs a name, another for each, and the student.pt files")
    if (args.train is None) != (args.valid is None):
        p.error("the baselines need both --train and --valid")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import hashlib
import itertools
import json
import math
import shlex
import statistics
import sys
from collections import defaultdict

import torch

import runtime
from bench.table import filled
from data.examples import read_examples
from dump_logits import load_teachers
from evaluate import assess, text_keys
from runtime import UserError
from student import SIZES, Student
from teacher import Teacher, load_model

CACHE_FORMAT = 1
LENGTHS = ((0, 15), (16, 30), (31, 60), (61, math.inf))  # characters of a text
KOREAN = {"labels alone": "레이블만", "distilled": "증류", "distilled, more text": "증류, 텍스트 추가",
          "Base teaches as well": "Base도 teacher로", "mean of the teachers": "teacher들의 평균",
          "TF-IDF, logistic regression": "TF-IDF, 로지스틱 회귀"}
WORDS = {
    "en": {"header": ["", "parameters", "bytes", "{arms}", "gain (95 %)", "agrees with teacher", "reviews/s",
                      "ms for one"],
           "text": "Accuracy on {rows:,} test reviews, mean ± standard deviation of {seeds}. The gain is of "
                   "the last\nmethod over the first, paired by review. {leaks:,} of the reviews "
                   "({share:.1%}) also occur in training files; `bench/report/report.json`\nhas the "
                   "figures without them, with calibration, macro-F1 and the command. {machine}, float32.",
           "one": "one run each", "several": "{} seeds", "machine": "{}, {} threads",
           "by": "by length in characters", "rows": "reviews",
           "files": ["file", "bytes", "in int8", "accuracy", "in int8", "difference (95 %)", "reviews/s",
                     "in int8", "ECE, T = 1", "ECE"]},
    "ko": {"header": ["", "파라미터", "바이트", "{arms}", "이득 (95 %)", "teacher와 일치", "리뷰/초",
                      "한 건 ms"],
           "text": "테스트 리뷰 {rows:,}개의 정확도({seeds}의 평균 ± 표준편차). 이득은 첫 방법에 대한 마지막 "
                   "방법의 차이를\n리뷰별로 짝지어 구했습니다. 리뷰 {leaks:,}개({share:.1%})는 학습 파일에도 "
                   "있습니다. 이를 뺀 값과 보정 오차, macro-F1, 명령은\n`bench/report/report.json`에 "
                   "있습니다. {machine}, float32.",
           "one": "한 번 실행", "several": "seed {}개", "machine": "{}, 스레드 {}개",
           "by": "글자 수별", "rows": "리뷰 수",
           "files": ["파일", "바이트", "int8", "정확도", "int8", "차이 (95 %)", "리뷰/초", "int8",
                     "ECE, T = 1", "ECE"]},
}


# ---- what each model answered ------------------------------------------------------------------------------


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Tested:
    """Figures and probabilities (N, C) of models on the test file, kept in a file: each is run once."""

    def __init__(self, path: Path, examples, names: list[str]):
        self.path, self.examples, self.names = path, examples, names
        self.labels = torch.tensor(examples.label_ids(names, every_row=True))
        self.test = examples.fingerprint() + runtime.fingerprint(self.labels)
        self.found = {}
        if path.exists():
            self.found = runtime.load(path, "tested", CACHE_FORMAT, ("models",))["models"]

    def __call__(self, what: str, identity: str, model) -> dict:
        """`model()` is called only when what has this identity was not tested on this file before."""
        key = hashlib.sha256(f"{self.test} {identity}".encode()).hexdigest()
        if key not in self.found:
            self.found[key] = model() | {"machine": runtime.machine(torch.device("cpu"))}
            runtime.save({"kind": "tested", "format": CACHE_FORMAT, "models": self.found}, self.path)
        result = self.found[key] | {"model": what}
        result["right"] = result["probabilities"].argmax(1) == self.labels  # (N,)
        return result

    def file(self, path: str) -> dict:
        return self(path, digest(path), lambda: assess(path, load_model(path), self.examples, self.labels,
                                                       self.names))


class Mean:
    """What assess() asks of a model: teachers whose logits are averaged, as dump_logits.py averages them."""

    def __init__(self, models: list):
        self.models, self.label_names = models, models[0].label_names

    def predict(self, texts, texts2=None):
        logits = 0
        for model in self.models:  # but for a constant of each row, which drops out
            temperature = getattr(model.config, "temperature", 1)  # a student's probabilities are calibrated
            logits += temperature / len(self.models) * model.predict(texts, texts2).clamp(min=1e-30).log()
        return logits.softmax(1)

    def parameters(self):
        return itertools.chain.from_iterable(model.parameters() for model in self.models)


# ---- baselines, each from its own package ------------------------------------------------------------------


class Baseline:
    """What assess() asks of a model. `classify` takes texts and returns (N, C) probabilities."""

    def __init__(self, classify, names: list[str], numbers: int):
        self.predict = lambda texts, texts2=None: torch.tensor(classify(texts), dtype=torch.float)
        self.label_names, self.numbers = names, numbers

    def parameters(self):
        return [torch.empty(self.numbers, device="meta")]


def tf_idf(train, valid, names: list[str], args) -> tuple[str, Baseline]:
    """Logistic regression on TF-IDF of character n-grams, weak or strong regularisation as --valid likes."""
    import pickle

    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    best = None
    for C in (1.0, 4.0):
        model = make_pipeline(
            TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=5, sublinear_tf=True),
            LogisticRegression(C=C, max_iter=300))
        model.fit(train.texts, train.labels)
        score = model.score(valid.texts, valid.labels)
        print(f"TF-IDF, characters 1-4, C {C:g}: validation accuracy {score:.2%}")
        if best is None or score > best[0]:
            best = score, model
    model = best[1]
    path = args.out / "tf-idf.pkl"
    path.write_bytes(pickle.dumps(model))
    columns = [list(model.classes_).index(name) for name in names]
    return str(path), Baseline(lambda texts: model.predict_proba(texts)[:, columns], names,
                               model[-1].coef_.size + model[-1].intercept_.size)


def fast_text(train, valid, names: list[str], args) -> tuple[str, Baseline]:
    """fastText with words, pairs of them, and n-grams of characters as --valid likes."""
    import fasttext

    def lines(texts):  # fastText wants a text to be one line
        return [" ".join(text.split()) for text in texts]

    data = args.out / "fasttext.txt"
    runtime.save_together({data: "".join(f"__label__{names.index(label)} {text}\n" for text, label in zip(
        lines(train.texts), train.labels, strict=True))})
    fasttext.FastText.eprint = lambda *_: None
    best, right = None, [names.index(label) for label in valid.labels]

    def classify(model, texts):
        rows = []
        for text in lines(texts):  # its predict() of a list returns shares that it has freed already
            row = {label: value for value, label in model.f.predict(f"{text}\n", len(names), 0.0, "strict")}
            rows.append([row.get(f"__label__{i}", 0.0) for i in range(len(names))])
        return rows

    for least, most in ((0, 0), (1, 3), (2, 4)):
        model = fasttext.train_supervised(str(data), dim=32, epoch=10, lr=0.3, wordNgrams=2, minn=least,
                                          maxn=most, bucket=200_000, thread=1, verbose=0)
        found = torch.tensor(classify(model, valid.texts)).argmax(1).tolist()
        score = statistics.mean(one == other for one, other in zip(found, right, strict=True))
        print(f"fastText, word pairs, characters {least}-{most}: validation accuracy {score:.2%}")
        if best is None or score > best[0]:
            best = score, model
    model, path = best[1], args.out / "fasttext.bin"
    model.save_model(str(path))
    return str(path), Baseline(lambda texts: classify(model, texts), names,
                               model.get_input_matrix().size + model.get_output_matrix().size)


def static_embeddings(train, valid, names: list[str], args) -> tuple[str, Baseline]:
    """model2vec: a vector for each of the teacher's tokens, as its encoder has it alone, averaged over a text
    and trained on, with no or one hidden layer as --valid likes."""
    from model2vec import StaticModel
    from model2vec.train import StaticModelForClassification

    teacher = next(model for model in map(load_model, args.teacher) if isinstance(model, Teacher))
    tokenizer = teacher.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    alone = torch.arange(tokenizer.get_vocab_size())[:, None]
    first, last = tokenizer.encode("").ids  # [CLS] and [SEP], or what the family calls them
    before, after = torch.full_like(alone, first), torch.full_like(alone, last)
    with torch.inference_mode():
        vectors = [teacher.encoder(ids, torch.full((len(ids),), 3), None).mean(1)
                   for ids in torch.cat([before, alone, after], 1).split(1024)]
    static, best = StaticModel(torch.cat(vectors).numpy(), tokenizer), None
    for layers in (0, 1):
        model = StaticModelForClassification.from_static_model(model=static, n_layers=layers)
        model.fit(train.texts, train.labels, X_val=valid.texts, y_val=valid.labels)
        score = statistics.mean(
            one == other for one, other in zip(model.predict(valid.texts), valid.labels, strict=True))
        print(f"model2vec, {layers} hidden layers: validation accuracy {score:.2%}")
        if best is None or score > best[0]:
            best = score, model
    model, path = best[1], args.out / "model2vec.pt"
    torch.save({"weights": model.state_dict(), "tokenizer": tokenizer.to_str()}, path)
    columns = [list(model.classes_).index(name) for name in names]
    return str(path), Baseline(lambda texts: model.predict_proba(texts)[:, columns], names,
                               sum(p.numel() for p in model.parameters() if p.is_floating_point()))


BASELINES = {"TF-IDF, logistic regression": tf_idf, "fastText": fast_text, "model2vec": static_embeddings}


def baselines(args, tested: Tested) -> list[dict]:
    train, valid = (read_examples(file) for file in (args.train, args.valid))
    for part in (train, valid):
        part.label_ids(tested.names, every_row=True)  # refuses a row without, or with another
    if part.texts2 is not None or train.texts2 is not None or tested.examples.texts2 is not None:
        raise UserError(f"{args.train}: the baselines read one text; leave out --train and --valid for pairs")
    if set(train.labels) != set(tested.names):
        raise UserError(f"{args.train}: has not every label of {tested.names}")
    identity = " ".join([train.fingerprint(), valid.fingerprint(), *train.labels, *valid.labels])
    results = []
    for name, train_it in BASELINES.items():
        def run(train_it=train_it):
            path, model = train_it(train, valid, tested.names, args)
            return assess(path, model, tested.examples, tested.labels, tested.names)

        teachers = " ".join(map(digest, args.teacher)) if train_it is static_embeddings else ""
        try:
            results.append(tested(name, f"{name} {identity} {teachers}".rstrip(), run))
        except ImportError as error:
            raise UserError(f"{name}: {error}; pip install -r bench/requirements.txt") from None
    return results


# ---- figures -----------------------------------------------------------------------------------------------


def paired_gain(first: list[torch.Tensor], second: list[torch.Tensor]) -> dict:
    """Difference of the mean accuracies of two groups of runs, with its 95 % interval over the rows (N,).

    Each row is paired with itself: its share of runs that have it right, of the second less of the first.
    """
    shares = [torch.stack(group).double().mean(0) for group in (first, second)]  # (N,) each
    differences = shares[1] - shares[0]
    half = 1.959964 * differences.std().item() / math.sqrt(len(differences))
    mean = differences.mean().item()
    return {"gain": mean, "interval": [mean - half, mean + half]}


def size_of(config: dict) -> str:
    dimensions = config["embedding_dim"], config["hidden_dim"]
    known = [size for size, own in SIZES.items() if own == dimensions]
    return known[0] if known else "e{}-h{}".format(*dimensions)


def size_order(size: str) -> tuple:
    """The kit's sizes first, the largest before the others."""
    return (list(SIZES).index(size), "") if size in SIZES else (len(SIZES), size)


def summary(results: list[dict], teacher: dict, leaked: torch.Tensor, lengths: torch.Tensor) -> dict:
    """Figures of the runs of one method, the means over the runs; None where there is nothing to measure."""
    def share(values):
        return values.mean().item() if len(values) else None

    accuracies = [result["accuracy"] for result in results]
    answers = teacher["probabilities"].argmax(1)
    right = torch.stack([result["right"] for result in results]).double().mean(0)  # (N,) share of the runs
    agree = [result["probabilities"].argmax(1) == answers for result in results]
    figures = {"runs": [result["model"] for result in results], "accuracy": statistics.mean(accuracies),
               "sd": statistics.stdev(accuracies) if len(results) > 1 else None, "accuracies": accuracies,
               "unseen_accuracy": share(right[~leaked]),
               "agreement": torch.stack(agree).double().mean().item(),
               "by_length": [share(right[(least <= lengths) & (lengths <= most)]) for least, most in LENGTHS],
               "machine": results[0]["machine"]}
    for name in ("macro_f1", "log_loss", "ece", "ece_uncalibrated", "texts_per_second", "ms_per_text"):
        if name in results[0]:
            figures[name] = statistics.mean(result[name] for result in results)
    return figures | {name: results[0][name] for name in ("parameters", "bytes")}


def make_report(args, tested: Tested, teachers: dict, arms: dict, others: list[dict]) -> dict:
    """All of report.json. `teachers`: {name: result}, the last is the one that taught; `arms`: {arm: {size:
    [result]}}."""
    teacher = list(teachers.values())[-1]

    def in_int8(size):
        """The last arm's runs of a size and their files in int8, if each has one."""
        runs = [sizes[size] for sizes in arms.values() if size in sizes][-1]
        files = [Path(result["model"]).with_name("student.int8.pt") for result in runs]
        return (runs, [tested.file(str(file)) for file in files]) if all(map(Path.exists, files)) else None

    keys, seen = text_keys(tested.examples), set()
    for file in args.seen:
        seen.update(text_keys(read_examples(file)))
    leaked = torch.tensor([key in seen for key in keys])
    lengths = torch.tensor([len(text) for text in tested.examples.texts])
    context = teacher, leaked, lengths
    first = next(iter(arms.values()))
    students = {size: {} for size in sorted(set().union(*arms.values()), key=size_order)}
    for (arm, sizes), size in itertools.product(arms.items(), students):
        if size in sizes:
            students[size][arm] = summary(sizes[size], *context)
            if sizes is not first and size in first:
                students[size][arm] |= paired_gain(*([result["right"] for result in runs[size]]
                                                     for runs in (first, sizes)))
    files = {}
    for size in students:
        if pair := in_int8(size):
            exact, rounded = (summary(results, *context) for results in pair)
            gain = paired_gain(*([result["right"] for result in results] for results in pair))
            files[size] = {"float32": exact, "int8": rounded | gain}
    return {"data": args.data, "rows": len(keys), "leaked_rows": int(leaked.sum()), "seen": args.seen,
            "length_rows": [int(((least <= lengths) & (lengths <= most)).sum()) for least, most in LENGTHS],
            "arms": list(arms), "students": students, "files": files,
            "teachers": {name: summary([result], *context) for name, result in teachers.items()},
            "baselines": {result["model"]: summary([result], *context) for result in others},
            "command": f"python -m bench.report {shlex.join(sys.argv[1:])}"}


# ---- README and picture ------------------------------------------------------------------------------------


def block(report: dict, language: str) -> str:
    """The generated section of one README."""
    words, arms = WORDS[language], report["arms"]

    def name(text):
        return KOREAN.get(text, text) if language == "ko" else text

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    def score(figures):
        sd = "" if figures["sd"] is None else f" ± {100 * figures['sd']:.2f}"
        return f"{figures['accuracy']:.2%}{sd}"

    def rest(figures):
        gain = "–"
        if "gain" in figures:
            low, high = figures["interval"]
            gain = f"**{100 * figures['gain']:+.2f}** ({100 * low:+.2f} … {100 * high:+.2f})"
        return [gain, f"{figures['agreement']:.1%}", f"{figures['texts_per_second']:,.0f}",
                f"{figures['ms_per_text']:.2f}"]

    def size(figures):
        return [f"{figures['parameters']:,}", f"{figures['bytes']:,}"]

    header = [cell for title in words["header"]
              for cell in (map(name, arms) if title == "{arms}" else [title])]
    lines = [line(header), "|---|" + "---:|" * (len(header) - 1)]
    for what, figures in [*report["teachers"].items(), *report["baselines"].items()]:
        cells = [score(figures)] + ["–"] * (len(arms) - 1)
        lines.append(line([name(what), *size(figures), *cells, *rest(figures)]))
    for what, by_arm in report["students"].items():
        last = list(by_arm.values())[-1]
        cells = [score(by_arm[arm]) if arm in by_arm else "–" for arm in arms]
        lines.append(line([what.capitalize(), *size(last), *cells, *rest(last)]))
    spans = [f"{least}–{most}" if most < math.inf else f"{least}+" for least, most in LENGTHS]
    lines += ["", line([words["by"], *spans]), "|---|" + "---:|" * len(spans),
              line([words["rows"], *(f"{rows:,}" for rows in report["length_rows"])])]
    students = [(size.capitalize(), list(by_arm.values())[-1]) for size, by_arm in report["students"].items()]
    for what, figures in [list(report["teachers"].items())[-1], *students]:
        shares = ["–" if value is None else f"{value:.2%}" for value in figures["by_length"]]
        lines.append(line([name(what), *shares]))
    if report["files"]:
        lines += ["", line(words["files"]), "|---|" + "---:|" * (len(words["files"]) - 1)]
    for what, pair in report["files"].items():
        exact, rounded = pair["float32"], pair["int8"]
        low, high = rounded["interval"]
        lines.append(line([
            what.capitalize(), f"{exact['bytes']:,}", f"{rounded['bytes']:,}", score(exact), score(rounded),
            f"{100 * rounded['gain']:+.2f} ({100 * low:+.2f} … {100 * high:+.2f})",
            f"{exact['texts_per_second']:,.0f}", f"{rounded['texts_per_second']:,.0f}",
            f"{exact['ece_uncalibrated']:.4f}", f"{exact['ece']:.4f}"]))
    machines = dict.fromkeys(
        words["machine"].format(figures["machine"]["hardware"], figures["machine"]["threads"])
        for group in (report["teachers"], report["baselines"], *report["students"].values())
        for figures in group.values())
    runs = {len(figures["runs"]) for by_arm in report["students"].values() for figures in by_arm.values()}
    text = words["text"].format(
        rows=report["rows"], leaks=report["leaked_rows"], share=report["leaked_rows"] / report["rows"],
        seeds=words["one"] if runs == {1} else words["several"].format(
            "–".join(dict.fromkeys(map(str, (min(runs), max(runs)))))),
        machine="; ".join(machines))
    return "\n".join([*lines, "", text])


def draw(report: dict, path: Path) -> None:
    """Accuracy against bytes on disk, PNG."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install -r bench/requirements.txt")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    for arm in report["arms"]:
        points = [by_arm[arm] for by_arm in report["students"].values() if arm in by_arm]
        axes.errorbar([point["bytes"] for point in points], [100 * point["accuracy"] for point in points],
                      yerr=[100 * (point["sd"] or 0) for point in points], marker="o", capsize=3, label=arm)
    if report["files"]:
        points = [pair["int8"] for pair in report["files"].values()]
        axes.plot([point["bytes"] for point in points], [100 * point["accuracy"] for point in points],
                  "o", color="black", fillstyle="none", label="the last of a size, in int8")
    for size, by_arm in report["students"].items():
        last = list(by_arm.values())[-1]
        axes.annotate(size.capitalize(), (last["bytes"], 100 * last["accuracy"]), (0, 8),
                      textcoords="offset points", ha="center")
    others = [*report["teachers"].items(), *report["baselines"].items()]
    for (what, figures), marker in zip(others, itertools.cycle("*sD^vPX")):
        axes.plot(figures["bytes"], 100 * figures["accuracy"], marker, color="black", label=what)
    axes.set(xscale="log", xlabel="bytes of the file",
             ylabel=f"accuracy on {report['rows']:,} test reviews, %")
    axes.margins(0.05, 0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main(args):
    readmes = {path: Path(path).read_text("utf-8") for path in args.readme}
    for path, text in readmes.items():
        try:
            filled(text, "", path, "report")
        except SystemExit as error:  # now, not after the work
            raise UserError(str(error).removeprefix("error: ")) from None
    args.out.mkdir(parents=True, exist_ok=True)
    examples = read_examples(args.data)
    models = load_teachers(args.teacher, torch.device("cpu"))
    names = models[0].label_names
    if args.train and not any(isinstance(model, Teacher) for model in models):
        raise UserError("--teacher: the baseline model2vec starts from a teacher.pt; name one, or leave out "
                        "--train and --valid")
    tested = Tested(args.out / "tested.pt", examples, names)
    several, teachers = len(models) > 1, {}
    for i, (path, model) in enumerate(zip(args.teacher, models, strict=True), 1):
        size = f" ({size_of(vars(model.config))})" if isinstance(model, Student) else ""
        teachers[f"teacher {i}{size}" if several else "teacher"] = tested.file(path)
    if several:
        identity = " ".join(map(digest, args.teacher))
        mean = tested("mean of the teachers", f"mean {identity}", lambda: assess(
            args.teacher[0], Mean(models), examples, tested.labels, names))
        teachers["mean of the teachers"] = mean | {"bytes": sum(
            result["bytes"] for result in teachers.values())}
    arms = {}
    for arm, *files in args.arm:
        arms[arm] = defaultdict(list)
        for file in sorted(files):
            model = load_model(file)
            if not isinstance(model, Student):
                raise UserError(f"{file}: holds a teacher; --arm wants student.pt files")
            arms[arm][size_of(vars(model.config))].append(tested.file(file))
    others = baselines(args, tested) if args.train else []
    report = make_report(args, tested, teachers, arms, others)
    runtime.save_together({args.out / "report.json": json.dumps(report, ensure_ascii=False, indent=1) + "\n"})
    draw(report, args.out / "accuracy.png")
    print(block(report, "en"))
    runtime.save_together({
        path: filled(text, block(report, "ko" if path.endswith(".ko.md") else "en"), path, "report")
        for path, text in readmes.items()})


if __name__ == "__main__":
    runtime.run(main, ARGS)
