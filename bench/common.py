"""What the comparisons share: alternation, statistics, the roofline, the result file, and the material.

A result is a JSON object with the keys of SCHEMA. `ratio` is how many times better ours is, whatever the
unit; it comes from the medians, `ratio_spread` from the rounds, each side's run against its neighbour's.
Shapes: H hidden, E embedding, D width, I feed-forward, C classes, T tokens of a row.
"""

import contextlib
import csv
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import finetune_teacher
import runtime
import train_tokenizer
from runtime import UserError

SIDE = {"median": float, "min": float, "max": float, "values": list}
SCHEMA = {"name": str, "ours": dict, "theirs": dict, "unit": str, "n": int, "rounds": int, "ratio": float,
          "ratio_spread": list, "target": float, "reached": bool, "precision": str, "checked": str,
          "roofline": dict, "gap": str, "also": dict, "hardware": dict, "versions": dict, "command": str}
PEERS = ("torch", "tokenizers", "numpy", "transformers", "accelerate", "fasttext-wheel")
MAX_LENGTH = 128  # tokens of a row, both sides; the scripts' default


# ---- measuring ---------------------------------------------------------------------------------------------


def alternate(sides: dict, rounds: int, warm_up: dict | None = None) -> dict[str, list]:
    """Call every side once to warm up, then `rounds` times in turn, every other round in reverse.

    A side returns its figure. `warm_up` may have a shorter call for a side, or None.
    """
    for name, side in sides.items():
        first = (warm_up or {}).get(name, side)
        if first is not None:
            first()
    values = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            values[name].append(sides[name]())
            print(f"  round {i + 1}/{rounds} {name}: {figure(values[name][-1])}", file=sys.stderr)
    return values


def summary(values: list[float]) -> dict:
    """Median and spread, which is from the least to the greatest."""
    return {"median": float(statistics.median(values)), "min": float(min(values)), "max": float(max(values)),
            "values": [float(value) for value in values]}


def ratios(ours: list[float], theirs: list[float], better: str) -> tuple[float, list[float]]:
    """How many times better ours is: of the medians, and [least, greatest] of the rounds."""
    def ratio(a, b):
        return a / b if better == "more" else b / a
    rounds = [ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
    return ratio(statistics.median(ours), statistics.median(theirs)), [min(rounds), max(rounds)]


def precisions(auto: str, names, args) -> list[str]:
    """fp32, and bf16 if the kit chooses it here; else bf16 results of another machine are removed, so that
    the README's table never mixes two."""
    if auto == "bf16":
        return ["fp32", "bf16"]
    for name in names:
        Path(args.results, f"{name}-bf16.json").unlink(missing_ok=True)
    return ["fp32"]


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def figure(value: float) -> str:
    """Three digits that matter: 0.123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@contextlib.contextmanager
def silence():
    """What the scripts print; yields the buffer."""
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield buffer


@contextlib.contextmanager
def native_silence():
    """What libraries write to the standard error below Python."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def call(script, *argv) -> str:
    """script.main with these flags, as a user runs it, in this process; returns what it printed."""
    with silence() as printed:
        script.main(script.parse_args([str(item) for item in argv]))
    return printed.getvalue()


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def count_steps():
    """Optimiser steps within the block; yields a list whose length is their number."""
    steps = []
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    try:
        yield steps
    finally:
        handle.remove()


def largest_difference(ours, theirs, limit: float, what: str) -> str:
    """A line for `checked`; ends the comparison when the sides did not compute the same."""
    difference = (torch.as_tensor(ours).double() - torch.as_tensor(theirs).double()).abs().max().item()
    if not difference <= limit:
        raise UserError(f"the sides differ: {what}: by {difference:.2g}, at most {limit:.2g} is allowed")
    return f"{what}: largest difference {difference:.1g} (allowed {limit:.2g})"


# ---- the roofline ------------------------------------------------------------------------------------------


def student_work(tokens: int, rows: int, batches: int, parameters: int, embedding: int, hidden: int,
                 classes: int, training: bool) -> tuple[float, float]:
    """(operations, bytes) a one-layer BiLSTM needs for `rows` of `tokens` in all; a multiply-add is two.

    Operations: of each token 2 directions · 4H(E + H), of each row the head 2H·C; the backward pass costs
    twice the forward. Bytes, float32: the weights once a batch and each token's embedding; in training the
    weights, gradients and AdamW's moments 11 times (weights: forward, backward, step in and out; gradients:
    out, clipping, step; two moments in and out), and each token's embedding, gates and states out and in.
    """
    operations = 2 * (tokens * 2 * 4 * hidden * (embedding + hidden) + rows * 2 * hidden * classes)
    if not training:
        return float(operations), 4.0 * (batches * parameters + tokens * embedding)
    return 3.0 * operations, 4.0 * (11 * batches * parameters + 2 * tokens * (embedding + 2 * 6 * hidden))


def teacher_work(lengths: list[int], batches: int, parameters: int, config: dict,
                 training: bool) -> tuple[float, float]:
    """(operations, bytes) an encoder and its head need for rows of these lengths, special tokens included.

    Of each token and layer 2(4D² + 2DI), of each row and layer 4D·T² for attention; the last layer computes
    keys and values of all tokens, the rest for the first token alone, since the head reads no other.
    `config` is that of the published folder. Bytes, float32: the weights once a batch, each layer's input and
    output; in training as student_work, with 8D + 2I values a token and layer, and A·T of attention, out and
    in.
    """
    D, I, L = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]  # noqa: E741
    E, A = config.get("embedding_size", D), config["num_attention_heads"]
    tokens, rows, squares = sum(lengths), len(lengths), sum(length * length for length in lengths)
    operations = (L - 1) * (tokens * 2 * (4 * D * D + 2 * D * I) + 4 * D * squares)
    operations += tokens * 4 * D * D + rows * 2 * (2 * D * D + 2 * D * I) + 4 * D * tokens
    operations += (tokens * 2 * E * D if E != D else 0) + rows * 2 * D * D
    if not training:
        return float(operations), 4.0 * (batches * parameters + tokens * 2 * D * L)
    saved = L * (tokens * (8 * D + 2 * I) + A * squares)
    return 3.0 * operations, 4.0 * (11 * batches * parameters + 2 * saved)


def roofline(work: tuple[float, float], rates: dict, precision: str, seconds: float) -> dict:
    """The least time the machine's own rates allow for this work, and the fraction of them reached."""
    operations, moved = work
    least = max(operations / rates[precision], moved / rates["copy"])
    return {"operations": operations, "bytes": moved, "matmul_per_second": rates[precision],
            "copied_bytes_per_second": rates["copy"], "least_seconds": least, "seconds": seconds,
            "fraction": least / seconds}


def machine_rates() -> dict[str, float]:
    """Best of ten: operations a second of a matrix product, 1024³, in fp32 and bf16; bytes a second, read and
    written, of a copy of 256 MB. A bf16 that is emulated is measured on a product of 128³."""
    def best(step) -> float:
        step()
        return min(timed(step) for _ in range(10))

    def product(size, dtype) -> float:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        return best(lambda: torch.mm(a, b))

    emulated = product(128, torch.bfloat16) > 20 * product(128, torch.float32)
    size = 128 if emulated else 1024
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    return {"fp32": 2 * 1024**3 / product(1024, torch.float32),
            "bf16": 2 * size**3 / product(size, torch.bfloat16),
            "copy": 2 * source.nbytes / best(lambda: target.copy_(source))}


def best_rates(before: dict, after: dict) -> dict:
    """Of the rates before and after the rounds the better one each: the roof is what the machine can do."""
    return {name: max(before[name], after[name]) for name in before}


PRODUCTS = {"LSTM layers": r"(?i)rnn_?layer|lstm", "matrix products": r"(?i)mm$|mm_|mmbackward|linear|matmul"}


def account(run, least_seconds: float, steps: int | None = None) -> str:
    """Where run() spends its time, in words for `gap`: its kinds of operators, the main cause first.

    Products, of LSTM layers or plain, could not take less than least_seconds; all other time is the gap's.
    With `steps`, run() trains for as many, and what lies between its first and its last counts.
    """
    profile, ends = torch.autograd.profiler.profile(use_kineto=False), []

    def step(*_):
        ends.append(time.perf_counter())
        if len(ends) == 1:
            profile.__enter__()
        elif len(ends) == steps:
            profile.__exit__(None, None, None)

    with native_silence():
        if steps is None:
            with profile:
                whole = timed(run)
        elif steps < 2:
            return "too few steps to tell"
        else:
            handle = register_optimizer_step_post_hook(step)
            try:
                run()
            finally:
                handle.remove()
            whole, least_seconds = ends[steps - 1] - ends[0], least_seconds * (steps - 1) / steps
    return gap_in_words({event.key.removeprefix("aten::"): event.self_cpu_time_total / 1e6
                         for event in profile.key_averages()}, whole, least_seconds)


def gap_in_words(own: dict[str, float], whole: float, least_seconds: float) -> str:
    """`own`: seconds of each operator; `whole`: of the run. See account."""
    kinds = {}
    for name, value in own.items():
        kind = next((kind for kind, pattern in PRODUCTS.items() if re.search(pattern, name)), None)
        kinds.setdefault(kind or "other operators", {})[name] = value
    kinds["Python, tokenizing, reading"] = {"": max(0.0, whole - sum(own.values()))}
    totals = {kind: sum(parts.values()) for kind, parts in kinds.items()}
    product = max((kind for kind in totals if kind in PRODUCTS), key=totals.get, default=None)
    lost = {kind: total - least_seconds * (kind == product) for kind, total in totals.items()}
    words = []
    for kind in sorted(kinds, key=lost.get, reverse=True):
        if totals[kind] < 0.005 * whole:
            continue
        most = max(kinds[kind], key=kinds[kind].get)
        words.append(f"{kind} {totals[kind] / whole:.0%}" + (f" (at the roof {least_seconds / whole:.0%})"
                     if kind == product else f" (most of it {most})" if most else ""))
    return "of the time " + ", ".join(words)


# ---- results -----------------------------------------------------------------------------------------------


def hardware() -> dict:
    """The machine; `amx` and `avx512_bf16` say whether its cores have these instructions (None: unknown)."""
    flags = None
    with contextlib.suppress(OSError):  # Linux on x86
        flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)[1].split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {**runtime.machine(torch.device("cpu")), "cores": cores,
            "amx": flags and "amx_bf16" in flags, "avx512_bf16": flags and "avx512_bf16" in flags}


def versions() -> dict:
    found = {"python": platform.python_version()}
    for package in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found["kit"] = subprocess.run(["git", "describe", "--always", "--dirty"], check=True, text=True,
                                      capture_output=True).stdout.strip()
    return found


def command(argv: list[str]) -> str:
    """What was typed, with the names alone of files outside this folder."""
    module = f"bench.{Path(argv[0]).stem}"
    return " ".join(["python -m", module, *(Path(word).name if Path(word).is_absolute() else word
                                            for word in argv[1:])])


def make_result(name: str, values: dict[str, list], *, unit: str, n: int, target: float, precision: str,
                checked: list[str], roof: dict, gap: str, better: str = "more", also=None,
                equal: bool = True) -> dict:
    """`values` are those of alternate(), ours first, theirs second. `better`: more or less of the unit.
    Without `equal`, the sides' results not being as good, no ratio reaches the target."""
    (_, ours), (them, theirs) = list(values.items())[:2]
    ratio, spread = ratios(ours, theirs, better)
    return {
        "name": name, "ours": summary(ours), "theirs": {"what": them, **summary(theirs)}, "unit": unit,
        "n": n, "rounds": len(ours), "ratio": ratio, "ratio_spread": spread, "target": float(target),
        "reached": equal and ratio >= target, "precision": precision, "checked": "; ".join(checked),
        "roofline": roof, "gap": gap, "also": also or {}, "hardware": hardware(),
        "versions": versions(), "command": command(sys.argv),
    }


def check_result(result: dict, where: str) -> dict:
    """`result` if it has every key of the schema, with a value of its type; else a UserError."""
    parts = [(result, SCHEMA, ""), *((result.get(side), SIDE, f"{side}.") for side in ("ours", "theirs"))]
    for values, schema, prefix in parts:
        for key, kind in schema.items():
            value = values.get(key) if isinstance(values, dict) else None
            if not isinstance(value, (int, float) if kind is float else kind):
                raise UserError(f"{where}: {prefix}{key} is {value!r}, a {kind.__name__} is needed: "
                                f"measure anew")
    return result


def publish(result: dict, folder: str) -> None:
    """Write bench/results/NAME.json and print it in words."""
    path = Path(folder, f"{check_result(result, result['name'])['name']}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    ours, theirs, roof = result["ours"], result["theirs"], result["roofline"]
    spread = " to ".join(f"{figure(value)}x" for value in result["ratio_spread"])
    print(f"\n{result['name']} ({result['precision']}, n = {result['n']:,}, {result['rounds']} rounds)")
    for who, side in (("ours", ours), (theirs["what"], theirs)):
        print(f"  {who:<48} {figure(side['median']):>9} {result['unit']}  "
              f"({figure(side['min'])} to {figure(side['max'])})")
    print(f"  {'ratio':<48} {figure(result['ratio']):>9} x  ({spread}), target {figure(result['target'])}x"
          f" {'reached' if result['reached'] else 'NOT reached'}")
    for what, value in result["also"].items():
        print(f"  {what:<48} {figure(value) if isinstance(value, (int, float)) else value:>9}")
    print(f"  same: {result['checked']}")
    if roof:
        print(f"  roofline: {roof['operations'] / 1e9:,.3g} GFLOP and {roof['bytes'] / 1e9:,.3g} GB need "
              f"{roof['least_seconds']:.3g} s at {roof['matmul_per_second'] / 1e12:.3g} TFLOP/s and "
              f"{roof['copied_bytes_per_second'] / 1e9:.3g} GB/s; took {roof['seconds']:.3g} s: "
              f"{roof['fraction']:.1%}")
    print(f"  gap: {result['gap']}")
    print(f"  {path}", flush=True)


# ---- material ----------------------------------------------------------------------------------------------


@dataclass
class Material:
    """Rows of --train and --valid as files in a temporary folder, and what both sides need beside them."""

    folder: Path
    train: Path
    valid: Path
    texts: list[str]
    labels: list[int]
    names: list[str]
    tokenizer: Path  # folder of the student's
    checkpoint: Path | None = None  # published folder of the teacher, head included
    teacher: Path | None = None  # the same as the kit's teacher.pt

    def logits(self, logits: torch.Tensor, name: str = "logits") -> Path:
        """(N, C) as a file that distill.py reads."""
        torch.save(logits.contiguous(), self.folder / f"{name}.pt")
        return self.folder / f"{name}.pt"

    def read_valid(self) -> tuple[list[str], list[int]]:
        """Texts and labels of the validation rows."""
        rows = read_rows(self.valid)
        return [text for text, _ in rows], [self.names.index(label) for _, label in rows]

    def write(self, rows: int, name: str) -> Path:
        """The first `rows` of the texts, over again if there are fewer."""
        path = self.folder / f"{name}.tsv"
        write_rows(path, itertools.islice(itertools.cycle(zip(self.texts, self.labels, strict=True)), rows),
                   self.names)
        return path


def read_rows(path: str) -> list[tuple[str, str]]:
    """(text, label) of each row of a .tsv that has both columns."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows)
        text = next((header.index(name) for name in ("text", "document") if name in header), None)
        if text is None or "label" not in header:
            raise UserError(f"{path}: columns text and label are needed")
        return [(row[text], row[header.index("label")]) for row in rows]


def write_rows(path: Path, rows, names: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("text\tlabel\n")
        file.writelines(f"{text}\t{names[label]}\n" for text, label in rows)


def material(args, folder: str, teacher: bool, small_head: bool = False) -> Material:
    """Everything a comparison needs; the teacher's part only if it is wanted.

    A head that starts fresh is drawn large, so that the logits of two rows differ, or small, to be trained.
    """
    folder = Path(folder)
    rows, valid = read_rows(args.train), read_rows(args.valid)
    names = sorted({label for _, label in rows + valid})
    tokenizer = Path(args.tokenizer) if args.tokenizer else folder / "tokenizer" / "vocab_size_3000"
    if not args.tokenizer:
        call(train_tokenizer, "--data", args.train, "--output-dir", folder / "tokenizer", "--overwrite")
    rows = list(itertools.islice(itertools.cycle(rows), args.rows))
    texts, labels = [text for text, _ in rows], [names.index(label) for _, label in rows]
    made = Material(folder, folder / "train.tsv", folder / "valid.tsv", texts, labels, names, tokenizer)
    write_rows(made.train, zip(texts, labels, strict=True), names)
    write_rows(made.valid, [(text, names.index(label)) for text, label in valid], names)
    if teacher:
        made.checkpoint = published(args.checkpoint, made, small_head)
        call(finetune_teacher, "--train", made.train, "--valid", made.valid, "--checkpoint", made.checkpoint,
             "--epochs", 0, "--output-dir", folder / "teacher", "--overwrite", "--precision", "fp32",
             "--device", "cpu")
        made.teacher = folder / "teacher" / "teacher.pt"
    return made


def published(source: str | None, made: Material, small_head: bool) -> Path:
    """A published folder with a head for these labels: of `source`, or an ELECTRA of random weights."""
    transformers = peers()
    torch.manual_seed(0)
    folder = made.folder / "published"
    labels = {"num_labels": len(made.names), "id2label": dict(enumerate(made.names)),
              "label2id": {name: i for i, name in enumerate(made.names)}}
    if source:
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            source, output_loading_info=True, **labels)
        fresh = bool(report["missing_keys"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    else:
        vocab = made.tokenizer / "vocab.txt"
        config = transformers.ElectraConfig(
            vocab_size=len(vocab.read_text("utf-8").splitlines()), embedding_size=128, hidden_size=256,
            num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024, **labels)
        model = transformers.ElectraForSequenceClassification(config)
        fresh = True
        folder.mkdir()
        (folder / "vocab.txt").write_text(vocab.read_text("utf-8"), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"do_lower_case": False, "strip_accents": False, "tokenizer_class": "ElectraTokenizer"}), "utf-8")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if fresh and not small_head:
        *_, last = (module for module in model.modules() if isinstance(module, nn.Linear))
        nn.init.normal_(last.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peers():
    """The transformers package, quiet."""
    try:
        import accelerate  # noqa: F401 - the Trainer wants it
        import transformers
    except ImportError as error:
        raise UserError(f"{error}; the peers are missing: pip install -r bench/requirements.txt") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    return transformers


def peer_teacher(made: Material):
    """(model, tokenizer) of the transformers package, float32, ready to predict."""
    transformers = peers()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made.checkpoint).float().eval()
    return model, transformers.AutoTokenizer.from_pretrained(made.checkpoint)
