"""Compare students and teachers on a labelled file: quality, calibration, size and speed in one table.

    python evaluate.py students/base/student.pt teacher/teacher.pt --data data/nsmc/test.tsv
    python evaluate.py a/student.pt b/student.pt --data test.tsv --seen train.tsv --errors mistakes.tsv
    python evaluate.py students/*/student.pt --data test.tsv --markdown                     # or --json
    python evaluate.py --data train.tsv --logits logits/train.pt --disagreements doubtful.tsv
    python evaluate.py student.pt --data valid.tsv --logits logits/valid.pt --escalate 89

reads   any number of student.pt and teacher.pt, a file with the columns text and label; with --logits what
        dump_logits.py wrote for this file: its teacher is judged without being run
writes  the table to standard output; with --errors the mistakes of each model, with --disagreements those
        rows whose label the cached teacher contradicts (wrong labels are among the first), most confident
        first; with --escalate how accurate a student is together with the cached teacher, who answers where
        the student is less sure than a threshold

The columns: accuracy with its 95 % interval (Wilson 1927), macro-F1, log loss in nats, expected calibration
error over 15 bins (Guo et al. 2017, arXiv 1706.04599), the same without a student's temperature, share of
rows on which a model agrees with the first one, two-sided exact McNemar p-value of its accuracy against
the first one's, parameters, bytes on disk, texts per second in bulk (text in, probabilities out, float32)
and median milliseconds for one text.
"""

import argparse
import math


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("models", nargs="*", metavar="MODEL.pt",
        help="student.pt or teacher.pt; the first is what others are held to")
    arg("--data", required=True, metavar="FILE", help="labelled texts (.tsv .csv .jsonl, also .gz)")
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    arg("--label-column", metavar="NAME", help="default: label")
    arg("--seen", nargs="+", default=[], metavar="FILE",
        help="training files: texts of --data that occur there too are counted, and scored without")
    arg("--errors", metavar="FILE", help="write the mistakes with their probabilities to this TSV")
    # the cached teacher
    arg("--logits", metavar="FILE", help="logits of --data: one model more, that need not run")
    arg("--disagreements", metavar="FILE", help="write the rows where --logits contradict the label")
    arg("--escalate", nargs="?", type=float, const=math.nan, metavar="ACCURACY", help="print the accuracy of "
        "each student with --logits behind it; with the threshold for so many percent, if given")
    # output
    form = p.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")
    form.add_argument("--json", action="store_true", help="print JSON, every number in full")
    arg("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: %(default)s")
    args = p.parse_args(argv)
    if not args.models and not args.logits:
        p.error("name a student.pt or teacher.pt, or give --logits")
    if not args.logits and (args.disagreements or args.escalate is not None):
        p.error("--disagreements and --escalate need --logits (dump_logits.py --data FILE makes them)")
    if args.escalate is not None and not args.models:
        p.error("--escalate needs a student.pt")
    if args.escalate is not None and not (math.isnan(args.escalate) or 1 < args.escalate <= 100):
        p.error("--escalate is an accuracy in percent, such as 89")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import runtime
from data.examples import Examples, label_names, read_examples
from data.training import LOGITS_FORMAT
from runtime import UserError
from student import Student
from teacher import load_model

CHUNK = 8192  # texts between two steps of the progress line

# ---- figures -----------------------------------------------------------------------------------------------


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion, Wilson (1927): unlike the textbook one it stays in [0, 1]."""
    centre = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding may overstep


def macro_f1(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> float:
    """Mean over classes of F1; a class that neither occurs nor is predicted counts 0."""
    confusion = torch.bincount(labels * classes + predicted,
                               minlength=classes * classes).view(classes, classes)
    hits = confusion.diag().double()
    return (2 * hits / (confusion.sum(0) + confusion.sum(1)).clamp(min=1)).mean().item()


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Expected calibration error: |accuracy − confidence| per bin of equal width, weighted by rows."""
    confidence, predicted = probabilities.double().max(1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # bins (0, 1/15], (1/15, 2/15], …
    gap = (predicted == labels).double() - confidence
    return torch.zeros(bins, dtype=torch.double).index_add_(0, index, gap).abs().sum().item() / len(labels)


def mcnemar(first: torch.Tensor, second: torch.Tensor) -> float:
    """Two-sided exact p-value of McNemar's test; first, second (N,) say which rows each model has right."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    k = torch.arange(min(only_first, only_second) + 1, dtype=torch.double)
    log_binomial = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) - n * math.log(2)
    return min(1.0, 2 * log_binomial.logsumexp(0).exp().item())


def escalation(student: dict, teacher: dict, labels: torch.Tensor, wanted: float) -> dict:
    """Accuracy of a student that leaves the rows it is less sure of to a teacher.

    student, teacher: with "probabilities" (N, C). "curve" has (share of rows the student answers, least
    probability of its answer, accuracy of both) for 0, 10, …, 100 %, rows of one probability going together.
    "wanted" is the point of the largest share with at least this accuracy, None if there is none.
    """
    confidence, predicted = student["probabilities"].max(1)
    confidence, order = confidence.sort(descending=True)
    right = (predicted == labels)[order].long().cumsum(0)  # among the k surest rows, at k - 1
    teacher_right = (teacher["probabilities"].argmax(1) == labels)[order].long()
    left = teacher_right.sum() - teacher_right.cumsum(0)  # among the others
    accuracy = (right + left).double() / len(labels)
    ends = torch.ones(len(labels), dtype=torch.bool)  # a threshold can only fall between two probabilities
    ends[:-1] = confidence[:-1] > confidence[1:]
    ends = ends.nonzero()[:, 0]  # the last of each run of equal ones

    def point(i):
        return (i + 1) / len(labels), confidence[i].item(), accuracy[i].item()

    nothing = (0.0, None, teacher_right.double().mean().item())
    curve = [nothing]
    for tenth in range(1, 11):
        i = min(len(ends) - 1, int(torch.searchsorted(ends, math.ceil(tenth * len(labels) / 10) - 1)))
        curve.append(point(int(ends[i])))
    wanted -= 1e-9  # 87.2 / 100 is a little above 872 / 1000
    enough = ends[accuracy[ends] >= wanted]
    found = point(int(enough[-1])) if len(enough) else nothing if nothing[2] >= wanted else None
    return {"curve": curve, "wanted": found}


# ---- models ------------------------------------------------------------------------------------------------


def read_logits(path: str, examples: Examples, names: list[str] | None) -> tuple[torch.Tensor, list[str]]:
    """(N, C) logits of the rows of a file, and the names of their columns: what dump_logits.py writes, or a
    bare tensor of any other system, whose columns are as `names`, or else in the order of the labels."""
    logits = runtime.load_weights(path)
    if torch.is_tensor(logits):
        names = names or label_names({label for label in examples.labels or () if label}, examples.path)
    else:
        artifact = runtime.check(logits, path, "logits", LOGITS_FORMAT, ["logits", "label_names", "texts"])
        logits, names = artifact["logits"], artifact["label_names"]
        if artifact["texts"] != examples.fingerprint():
            raise UserError(f"{path}: these are logits of other texts than {examples.path}; make the right "
                            f"ones with dump_logits.py --data {examples.path}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: damaged, its label_names are no names; make it anew with dump_logits.py "
                        f"--data {examples.path}")
    if not torch.is_tensor(logits) or not logits.is_floating_point() \
            or list(logits.shape) != [len(examples), len(names)]:
        raise UserError(f"{path}: not a row of logits for each of {len(examples)} texts and a column for "
                        f"each of {names}; make them anew with dump_logits.py --data {examples.path}")
    if not logits.isfinite().all():
        raise UserError(f"{path}: the logits of row {int((~logits.isfinite().all(1)).nonzero()[0])} are not "
                        f"finite; make them anew with dump_logits.py --data {examples.path}")
    return logits.float(), names


def columns_of(path: str, names: list[str], wanted: list[str]) -> list[int]:
    """Where the columns `wanted` stand among `names`."""
    if sorted(names) != sorted(wanted):
        raise UserError(f"{path}: its labels are {names}, those of the first model {wanted}; "
                        f"compare models of the same labels")
    return [names.index(name) for name in wanted]


def figures(path: str, probabilities: torch.Tensor, labels: torch.Tensor) -> dict:
    """What probabilities (N, C) are worth."""
    predicted = probabilities.argmax(1)
    right = predicted == labels
    return {
        "model": path,
        "accuracy": right.double().mean().item(),
        "interval": wilson_interval(int(right.sum()), len(right)),
        "macro_f1": macro_f1(predicted, labels, probabilities.size(1)),
        "log_loss": F.nll_loss(probabilities.double().clamp(min=1e-15).log(), labels).item(),
        "ece": calibration_error(probabilities, labels),
        "bytes": Path(path).stat().st_size,
        "probabilities": probabilities,
    }


def uncalibrated(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(z) from softmax(z / T)."""
    return (probabilities.double().clamp(min=1e-300).log() * temperature).softmax(1)


def assess(path: str, model, examples: Examples, labels: torch.Tensor, names: list[str]) -> dict:
    """Figures of one model; probabilities (N, C) have their columns in the order of `names`."""
    columns = columns_of(path, model.label_names, names)
    texts, texts2 = examples.texts, examples.texts2
    model.predict(texts[:64], texts2 and texts2[:64])  # the first calls pay for set-up
    progress = runtime.Progress(path, len(texts), "texts")
    parts = []
    for i in range(0, len(texts), CHUNK):
        parts.append(model.predict(texts[i : i + CHUNK], texts2 and texts2[i : i + CHUNK]))
        progress.add(len(parts[-1]))
    seconds = progress.close()
    probabilities = torch.cat(parts)
    times = []
    for i in range(0, len(texts), max(1, len(texts) // 100)):
        start = time.perf_counter()
        model.predict(texts[i : i + 1], texts2 and texts2[i : i + 1])
        times.append(time.perf_counter() - start)

    result = figures(path, probabilities[:, columns], labels) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "texts_per_second": len(texts) / seconds,
        "ms_per_text": 1000 * statistics.median(times),
    }
    if isinstance(model, Student):
        raw = uncalibrated(result["probabilities"], model.config.temperature)
        result["ece_uncalibrated"] = calibration_error(raw, labels)
    return result


def text_keys(examples: Examples) -> list:
    """What makes two rows the same text: the text, or the pair, without blanks around."""
    texts = [text.strip() for text in examples.texts]
    return (texts if examples.texts2 is None
            else list(zip(texts, map(str.strip, examples.texts2), strict=True)))


# ---- output ------------------------------------------------------------------------------------------------

COLUMNS = {
    "model": ("model", str),
    "accuracy": ("accuracy", lambda v: f"{v:.2%}"),
    "interval": ("95 % interval", lambda v: f"{v[0]:.2%}–{v[1]:.2%}"),
    "unseen_accuracy": ("unseen only", lambda v: f"{v:.2%}"),
    "macro_f1": ("macro-F1", lambda v: f"{v:.4f}"),
    "log_loss": ("log loss", lambda v: f"{v:.4f}"),
    "ece": ("ECE", lambda v: f"{v:.4f}"),
    "ece_uncalibrated": ("ECE, T = 1", lambda v: f"{v:.4f}"),
    "agreement": ("agreement", lambda v: f"{v:.2%}"),
    "mcnemar_p": ("p", lambda v: f"{v:.2g}"),
    "parameters": ("parameters", lambda v: f"{v:,}"),
    "bytes": ("bytes", lambda v: f"{v:,}"),
    "texts_per_second": ("texts/s", lambda v: f"{v:,.0f}"),
    "ms_per_text": ("ms/text", lambda v: f"{v:.2f}"),
}


def table(results: list[dict], markdown: bool) -> str:
    keys = [key for key in COLUMNS if any(key in result for result in results)]
    lines = [[COLUMNS[key][0] for key in keys]]
    lines += [[COLUMNS[key][1](result[key]) if key in result else "–" for key in keys] for result in results]
    if markdown:
        lines.insert(1, ["---"] + ["---:"] * (len(keys) - 1))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in
                     zip(line[1:], widths[1:], strict=True)]) for line in lines)


def write_errors(path: str, results: list[dict], examples: Examples, labels, names: list[str]) -> int:
    """Mistakes of every model, the most confident first; returns how many."""
    rows = []
    for result in results:
        confidence, predicted = result["probabilities"].max(1)
        for i in (predicted != labels).nonzero()[:, 0].tolist():
            pair = [] if examples.texts2 is None else [examples.texts2[i]]
            rows.append((confidence[i].item(), [
                result["model"], str(i), examples.ids[i] if examples.ids else "", names[labels[i]],
                names[predicted[i]], f"{confidence[i]:.4f}", f"{result['probabilities'][i, labels[i]]:.4f}",
                examples.texts[i], *pair,
            ]))
    rows.sort(key=lambda row: -row[0])
    header = ["model", "row", "id", "label", "predicted", "p_predicted", "p_label", "text"]
    header += [] if examples.texts2 is None else ["text2"]
    lines = [header] + [[cell.replace("\t", " ").replace("\n", " ") for cell in row] for _, row in rows]
    runtime.save_together({path: "".join("\t".join(line) + "\n" for line in lines)})
    return len(rows)


def lower(threshold: float) -> str:
    """Five decimals, cut rather than rounded: 0.999996 must not become 1."""
    return f"{math.floor(threshold * 1e5) / 1e5:.5f}"


def show_escalation(student: dict, teacher: dict, found: dict, wanted: float) -> None:
    print(f"\n{student['model']} answers where it is sure enough, {teacher['model']} the rest\n\n"
          f"{'student answers':>15}  {'threshold':>9}  {'accuracy':>8}")
    for share, threshold, accuracy in found["curve"]:
        shown = "–" if threshold is None else lower(threshold)
        print(f"{share:15.1%}  {shown:>9}  {accuracy:8.2%}")
    if found["wanted"] is not None:
        share, threshold, accuracy = found["wanted"]
        print(f"for {wanted:.2%}: " + ("the teacher answers all" if threshold is None else
              f"the student answers {share:.1%}, where its probability is at least {lower(threshold)}"))
    elif not math.isnan(wanted):
        print(f"{wanted:.2%} is not reached at any threshold")


def main(args):
    device = runtime.pick_device(args.device)
    columns = args.text_column, args.text2_column, args.label_column
    examples = read_examples(args.data, *columns)
    read = [Path(file).resolve() for file in (args.data, *args.seen, *args.models, args.logits) if file]
    for flag in ("errors", "disagreements"):
        file = getattr(args, flag)
        if file and Path(file).resolve() in read:
            raise UserError(f"--{flag} {file} would overwrite another file of this command; name another")
        if file and Path(file).exists() and not Path(file).is_file():
            raise UserError(f"--{flag} {file}: is no file that could be replaced; name another")
        read += [Path(file).resolve()] if file else []
    models = [load_model(path, device) for path in args.models]
    if args.escalate is not None and not any(isinstance(model, Student) for model in models):
        raise UserError("--escalate needs a student.pt")
    names = models[0].label_names if models else None
    if args.logits:
        logits, logits_names = read_logits(args.logits, examples, names)
        names = names or logits_names
    labels = torch.tensor(examples.label_ids(names, every_row=True))
    seen = set()
    for file in args.seen:
        part = read_examples(file, args.text_column, args.text2_column)
        if (part.texts2 is None) != (examples.texts2 is None):
            raise UserError(f"{file}: one of it and {args.data} has a column text2 and the other has not")
        seen.update(text_keys(part))
    leaked = torch.tensor([key in seen for key in text_keys(examples)])

    results = [assess(path, model, examples, labels, names)
               for path, model in zip(args.models, models, strict=True)]
    if args.logits:
        columns = columns_of(args.logits, logits_names, names)
        results.append(figures(args.logits, logits.softmax(1)[:, columns], labels))
    wanted = math.nan if args.escalate is None else args.escalate / 100
    for model, result in zip(models, results, strict=False):
        if args.escalate is not None and isinstance(model, Student):
            result["escalation"] = escalation(result, results[-1], labels, wanted)
    first = results[0]["probabilities"].argmax(1)
    for result in results:
        predicted = result["probabilities"].argmax(1)
        result["agreement"] = (predicted == first).double().mean().item()
        result["mcnemar_p"] = mcnemar(first == labels, predicted == labels)
        if args.seen and not leaked.all():
            result["unseen_accuracy"] = (predicted == labels)[~leaked].double().mean().item()

    majority = torch.bincount(labels).max().item() / len(labels)
    if args.json:
        print(json.dumps({
            "data": args.data, "rows": len(labels), "majority": majority,
            "seen_rows": int(leaked.sum()) if args.seen else None, **runtime.machine(device),
            "models": [{key: result[key] for key in result if key != "probabilities"} for result in results],
        }, ensure_ascii=False, indent=1))
    else:
        machine = runtime.machine(device)
        print(f"{args.data}: {len(labels):,} rows, labels {names}, largest class {majority:.2%}; "
              f"{machine['hardware']}, {machine['threads']} threads\n")
        print(table(results, args.markdown))
        if args.seen:
            print(f"\n{int(leaked.sum()):,} of {len(labels):,} texts ({leaked.double().mean():.2%}) also "
                  f"occur in {', '.join(args.seen)}"
                  + ("" if leaked.all() else "; 'unseen only' is the accuracy without them"))
        for result in results:
            if "escalation" in result:
                show_escalation(result, results[-1], result["escalation"], wanted)
    for file, judged in ((args.errors, results), (args.disagreements, results[-1:])):
        if file:
            count = write_errors(file, judged, examples, labels, names)
            if not args.json:
                what = "mistakes" if judged is results else f"rows whose label {args.logits} contradict"
                print(f"\n{file}: {count:,} {what}, most confident first")


if __name__ == "__main__":
    runtime.run(main, ARGS, memory="close other programs, or give --device cpu")
