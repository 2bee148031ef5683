"""Logits of the rows of a file: the only reader and writer, and what binds them to their texts and teachers.

A logits file is a dict with the tensor "logits" (N, C), row i for data row i, and with the fingerprints of
the texts and of the teachers; or a bare (N, C) tensor of any other system, of which only the shape can be
checked, and its rows and columns by the labels that the file has.
"""

import hashlib
import json
import os
import re
import shlex
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path
from statistics import NormalDist

import torch

import runtime
from data import labels
from data.examples import Examples, fingerprint_of_first, stem
from runtime import UserError

FORMAT = 2


@dataclass
class Logits:
    """The logits of one data file, one row per data row. A bare tensor has `values` alone."""

    values: torch.Tensor  # (N, C), still on disk after read_logits
    names: list[str] | None = None  # of the C columns
    task: str = "classification"  # as in tasks.TASKS
    texts: str | None = None  # Examples.fingerprint()
    teachers: list[dict] = field(default_factory=list)  # fingerprints() of each
    teacher_files: list[str] = field(default_factory=list)
    precision: str = "fp32"  # of the forward pass
    blocks: list[str] = field(default_factory=list)  # names of the blocks that it was computed in
    path: str = ""
    stat: os.stat_result | None = None

    @property
    def bare(self) -> bool:
        return self.names is None


def bare_order(task) -> list[str]:
    """What the columns of a bare tensor are: the names of the outputs in the order of the sorted labels."""
    return labels.in_order(task.names)


def read_logits(path, rows: int | None = None) -> Logits:
    """A logits file of this kit, or a bare tensor. Raises UserError where it is damaged or something else.

    Of logits in other containers and shapes the error has the command that makes the file read here; `rows`
    that it should have tell a tensor that is transposed.
    """
    try:
        artifact, other = runtime.load_weights(path, mmap=True), None
    except UserError as error:
        other = foreign_file(path, str(error)) if os.path.isfile(path) else None
        if other is None:
            raise
    other = other or foreign_value(artifact, rows)
    if other:
        what, code, *load = other
        raise UserError(f"{path}: holds {what} where a float tensor (rows, classes) is needed; make it one: "
                        f"{conversion(path, code, *load)}")
    if torch.is_tensor(artifact):
        found = Logits(artifact.detach().unsqueeze(1) if artifact.dim() == 1 else artifact.detach())
    else:
        runtime.check(artifact, path, "logits", FORMAT, ("logits", "label_names", "texts", "teachers"))
        files = artifact.get("teacher_files")
        found = Logits(artifact["logits"], artifact["label_names"], artifact.get("task", "classification"),
                       artifact["texts"], artifact["teachers"], files, artifact.get("precision", "fp32"),
                       artifact.get("blocks", []))
        plain = all(isinstance(values, list) and all(isinstance(item, kind) for item in values)
                    for values, kind in ((found.names, str), (found.teachers, dict), (files, str),
                                         (found.blocks, str)))
        if not plain or not all(isinstance(text, str) for text in (found.texts, found.task)) \
                or found.precision not in ("fp32", "bf16"):
            raise UserError(f"{path}: damaged, its names or teachers cannot be read; make it again with "
                            f"dump_logits.py --overwrite")
        # They are stored relative to the logits. Of a name with a NUL there is no file.
        found.teacher_files = [os.path.relpath(Path(path).parent / file) for file in files
                               if "\0" not in file]
    found.path, found.stat, values = str(path), os.stat(path), found.values
    if not torch.is_tensor(values) or values.dim() != 2 or not values.is_floating_point() or not len(values) \
            or (not found.bare and values.size(1) != len(found.names)):
        shape = f"{list(values.shape)} {values.dtype}" if torch.is_tensor(values) else type(values).__name__
        raise UserError(f"{path}: holds {shape} where a float tensor (rows, classes) is needed; make it "
                        f"again with dump_logits.py --overwrite")
    return found


def conversion(path, code: str, load: str = "torch.load({})") -> str:
    """A command that makes of x, what is in the file at `path`, the tensor `code`, and saves it beside it."""
    load, out = load.format(repr(str(path))), str(Path(path).with_suffix(".fixed.pt"))
    code = f"import numpy, torch; x = {load}; torch.save({code}, {out!r})"
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f"python -c {quoted}, and give --logits {shlex.quote(out)}"


def foreign_file(path, error: str) -> tuple[str, str, str] | None:
    """(what it is, Python that makes of it, x, a tensor (N, C), how to load it) of a file that load_weights
    refuses with this error; None for any other. It may carry code, so it is not loaded here."""
    with open(path, "rb") as file:
        head = file.read(256)
    if head.startswith(b"\x93NUMPY"):
        return "a numpy array", "torch.from_numpy(x).float()", "numpy.load({})"
    if head.startswith(b"PK") and b".npy" in head:
        x = "x['logits' if 'logits' in x else x.files[0]]"
        return "numpy arrays", f"torch.from_numpy({x}).float()", "numpy.load({})"
    found = re.search(r"GLOBAL (numpy|transformers)[\w.]*", error)
    if not found:
        return None
    load = "torch.load({}, weights_only=False)"
    what = f"pickled objects of {found[1]} (loading them may run code: only if you trust the file)"
    if found[1] == "numpy":
        x = "x['logits'] if isinstance(x, dict) else x"
        return what, f"torch.as_tensor(numpy.asarray({x})).float()", load
    return what, "torch.as_tensor(getattr(x, 'logits', getattr(x, 'predictions', None))).float()", load


def foreign_value(value, rows: int | None) -> tuple[str, str] | None:
    """(what it is, Python that makes of it, x, a tensor (N, C)) of logits in another form; None of any other
    value. `rows`: how many there should be."""
    if torch.is_tensor(value):
        what, x = f"{list(value.shape)} {value.dtype}", "x.float()"
        if value.dim() == 3 and 1 in value.shape[:2]:
            return what, f"x.squeeze({0 if value.size(0) == 1 else 1}).float()"
        if value.dim() == 2 and value.size(1) == rows != value.size(0):
            return what, "x.T.float().contiguous()"
        return (what, x) if value.dim() in (1, 2) and not value.is_floating_point() else None
    if isinstance(value, dict) and value and "kind" not in value:
        if "logits" in value:
            return "a dict with 'logits'", "torch.as_tensor(x['logits']).float()"
        order = "sorted(x, key=int)" if all(str(key).isdecimal() for key in value) else "x"
        return "a dict of rows", f"torch.stack([torch.as_tensor(x[key]) for key in {order}]).float()"
    if isinstance(value, (list, tuple)) and value:
        batches = torch.is_tensor(value[0]) and value[0].dim() == 2
        if batches and torch.is_tensor(value[-1]) and value[-1].dim() != 2:
            return f"a {type(value).__name__} of logits and something else", "x[0].float()"
        join = "cat" if batches else "stack"
        return f"a {type(value).__name__}", f"torch.{join}([torch.as_tensor(row) for row in x]).float()"
    return None


def two_columns(values) -> str:
    """Python that makes of x, the one output of a sigmoid, (N,) or (N, 1), logits of two labels."""
    x = "torch.logit(x.flatten().float(), 1e-6)" if ((values >= 0) & (values <= 1)).all() else "x.flatten()"
    return f"torch.stack([0 * x.flatten(), {x}], 1).float()"


def refuse_other_columns(logits: Logits, task) -> None:
    """A UserError unless there is one column per output of the task."""
    count, names = logits.values.size(1), task.names
    if count == 1 and len(names) == 2 and task.column == "label":
        raise UserError(f"{logits.path}: 1 column, but two labels {names} need two; if it is of a sigmoid "
                        f"for {names[1]!r}: {conversion(logits.path, two_columns(logits.values))}")
    if count != len(names):
        raise UserError(f"{logits.path}: {count} columns, but the labels are {names}; one column per label "
                        f"is needed, in this order")


def write_logits(path, logits: Logits, made_by: dict) -> None:
    """Write a logits file; the paths of the teachers become relative to it."""
    files = [os.path.relpath(file, Path(path).parent) for file in logits.teacher_files]
    runtime.save({
        "kind": "logits", "format": FORMAT, "logits": logits.values, "label_names": logits.names,
        "task": logits.task, "texts": logits.texts, "teachers": logits.teachers, "teacher_files": files,
        "dtype": str(logits.values.dtype).removeprefix("torch."), "precision": logits.precision,
        "blocks": logits.blocks, "made_by": made_by}, path)


def read_logits_of(path, file, columns: tuple, args, others: dict | None = None) -> Logits:
    """read_logits for the rows of `file` (a Survey or Examples). Raises UserError where they do not belong.

    Logits of other texts would train a model that looks fine and is wrong. `others`: {fingerprint: path} of
    files whose logits may have been given by mistake.
    """
    rows, texts = (file.rows, file.fingerprint) if hasattr(file, "rows") else (len(file), file.fingerprint())
    found = read_logits(path, rows)
    remake = dump_command(file.path, found, args)
    if not found.bare and found.texts != texts:
        if found.texts in (others or {}):
            raise UserError(f"{path}: these logits belong to {others[found.texts]}, not to {file.path}; give "
                            f"--logits in the order of --train")
        if found.texts == fingerprint_of_first(len(found.values), file.path, *columns):
            raise UserError(f"{path}: {file.path} has grown since; compute the new rows: "
                            + remake.replace(" --overwrite", ""))
        raise UserError(f"{path}: these are logits of other texts than {file.path}; make the right ones: "
                        f"{remake}")
    if len(found.values) != rows:
        raise UserError(f"{path}: {len(found.values)} rows of logits, but {file.path} has {rows} rows; make "
                        f"the right ones: {remake}")
    shares = found.bare and found.values.size(1) > 1
    for start in range(0, rows, 2**20):
        values = found.values[start : start + 2**20].float()  # as they will be used
        finite = values.isfinite().all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise UserError(f"{path}: the logits of row {row} are not finite; make them again: {remake}")
        shares = shares and bool((values >= 0).all() and ((values.sum(1) - 1).abs() < 0.01).all())
    if shares:
        command = conversion(path, "x.float().clamp(min=1e-6).log()")
        runtime.warn(f"{path}: these are probabilities (every row adds up to 1), and logits are needed; take "
                     f"their logarithm: {command}")
    return found


def compare_with_labels(logits: Logits, examples: Examples, task) -> None:
    """Warn where logits contradict the answers of rows of their file, `examples` being its first rows.

    task: with its outputs in the order of the columns.
    """
    if logits.bare and task.column == "labels":
        values = logits.values[: len(examples)].float()
        if ((values >= 0) & (values <= 1)).all():
            runtime.warn(f"{logits.path}: these look like probabilities (all are between 0 and 1), and "
                         f"logits are needed: {conversion(logits.path, 'torch.logit(x.float(), 1e-6)')}")
    target, known = examples.targets(task)
    rows = known.nonzero()[:, 0]
    code = other_units(logits.values[rows], target[rows]) if task.column == "score" and logits.bare else ""
    if code:
        runtime.warn(f"{logits.path}: these scores are in other units than those of {examples.path}; convert "
                     f"them: {conversion(logits.path, code)}")
    words, order = doubt(task, logits.values, rows, target[rows])
    if order:
        words += f"; reorder them: {conversion(logits.path, f'x[:, {order}]')}" if logits.bare else \
            "; the classes of the teacher are mixed up: correct id2label in its checkpoint's config.json"
    if words:
        runtime.warn(f"{logits.path} and {examples.path}: {words}")


def other_units(logits, target) -> str:
    """Python that makes of x scores with the mean and deviation of the answers; empty where x is near them.

    logits (n, 1), target (n,). Scores in other units, such as standardised ones, rank the rows well, and are
    further from the answers than these are from their mean.
    """
    x, y = logits[:, 0].double(), target.double()
    if len(x) < 20 or not (x.std() > 0 and y.std() > 0) or torch.corrcoef(torch.stack([x, y]))[0, 1] < 0.5 \
            or (x - y).square().mean() < y.var(correction=0):
        return ""
    slope = (y.std() / x.std()).item()
    return f"x.float() * {slope:.6g} + {(y.mean() - slope * x.mean()).item():.6g}"


def doubt(task, logits, rows, target) -> tuple[str, list[int]]:
    """(what is wrong with the logits, the better order of the columns), each empty where nothing is.

    logits (N, C); rows (n,): numbers of rows whose answers are target (n, …). task.best of the logits is
    compared with that of other orders of the columns (up to five), of the rows before and after, and of rows
    in random order. A better order counts at z of one-sided 0.0005, divided by the number of candidates, so
    that a few rows or a weak teacher raise no doubt.
    """
    N, C = logits.shape
    rows = rows[: 2**20 // C]
    n, target = len(rows), target[: len(rows)]
    if n < 2:
        return "", []
    values, random = logits[rows].float(), torch.Generator().manual_seed(0)
    given = task.statistics(values, target)

    def score(statistics):
        return task.scores(statistics)[task.best]

    def z(candidates):
        return -NormalDist().inv_cdf(0.0005 / candidates)

    def gain(candidate):
        """(how much better it is than the logits as they are, standard error): the jackknife (Efron 1982).

        The error is as if there were no gain, so that few rows prove nothing; of an accuracy: McNemar's test.
        """
        other = task.statistics(candidate, target)
        without = [score((part.sum(0) - part) / (n - 1)) for part in (given, other)]  # a row each
        variance = (without[1] - without[0]).var(correction=0).item() * (n - 1) ** 2 / n
        difference = (score(other.mean(0)) - score(given.mean(0))).item()
        return difference, (variance + difference**2 / n) ** 0.5

    def better(candidate, candidates):
        """Its score if it is clearly better, and by a fifth of what is missing: a teacher that takes
        neighbouring classes for each other is weak, not in another order."""
        difference, error = gain(candidate)
        return now + difference if difference > max(z(candidates) * error, (1 - now) / 5) else None

    now = score(given.mean(0)).item()
    words = f"{task.best} {now:.4f} on {n:,} labelled rows"
    orders = [list(order) for order in permutations(range(C))] if C <= 5 else []
    few = slice(0, 1024)  # enough to choose a candidate
    order = max(orders, default=[], key=lambda order: score(
        task.statistics(values[few][:, order], target[few]).mean(0)))
    if order != sorted(order) and (best := better(values[:, order], len(orders))):
        names = [task.names[order.index(i)] for i in range(C)]
        return f"{words}, but {best:.4f} if the columns are {names}, not {task.names}", order
    for step, neighbour in ((1, "after"), (-1, "before")):
        if best := better(logits[(rows + step) % N].float(), 2):
            return (f"{words}, but {best:.4f} with the logits of the row {neighbour}: the rows are off by "
                    f"one (a header counted as a row, a blank line left out?)"), []

    shuffles = [values[torch.randperm(n, generator=random)] for _ in range(32)]
    chance = torch.stack([score(task.statistics(each, target).mean(0)) for each in shuffles])
    if n >= 200 and chance.std() > 0 and now < chance.mean() + 1.3 * chance.std():  # p > 0.1
        return (f"{words}, {chance.mean():.4f} with the rows in any order: no better than guessing; are the "
                f"rows in the order of the file, and the columns {task.names}?"), []
    return "", []


def dump_command(data: str, logits: Logits, args) -> str:
    """The command that makes the logits of `data` in place of what is at logits.path."""
    if any("table" in teacher for teacher in logits.teachers):
        return f"python extra/import_logits.py TABLE {shlex.join(['--data', data, '--out', logits.path])}"
    written = Path(logits.path).parent / f"{stem(data)}.pt"
    teachers = getattr(args, "teacher", None) or logits.teacher_files or ["TEACHER.pt"]
    words = ["--teacher", *teachers, "--data", data, "--output-dir", str(written.parent)]
    words += ["--dtype", "float16"] if logits.values.dtype == torch.float16 else []
    for name in ("text_column", "text2_column", "label_column", "task"):
        if getattr(args, name, None) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(args, name)]
    command = f"python dump_logits.py {shlex.join(words)}"
    if written == Path(logits.path):
        return f"{command} --overwrite"
    return f"{command}, and give --logits {shlex.quote(str(written))}"


def fingerprints(model) -> dict:
    """All that decides the logits of a text: SHA-256 of config and weights and of the tokenizer, and the
    maximum length."""
    config = {name: value for name, value in asdict(model.config).items() if value is not None}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        for part in tensor.detach().cpu().contiguous().flatten().split(2**22):
            # Halves that stayed in their file count as the float32 that they are read as elsewhere.
            digest.update((part.float() if part.dtype in runtime.HALVES else part).numpy().data)
        if getattr(model, "mapped", False):
            runtime.give_back(tensor)
    model.tokenizer.no_padding()  # what encode() sets on the tokenizer is not part of the model
    model.tokenizer.no_truncation()
    return {"weights": digest.hexdigest(), "tokenizer": runtime.fingerprint(model.tokenizer.to_str()),
            "max_length": model.reads["max_length"]}


def check_teachers(logits: Logits, file: str, args, fingerprints_of) -> None:
    """Compare the teachers that made the logits with --teacher, or with what their files now hold.

    fingerprints_of(path) gives the fingerprints() of a model. Raises UserError.
    """
    remake = dump_command(file, logits, args)
    if args.teacher and len(args.teacher) != len(logits.teachers):
        raise UserError(f"{logits.path}: the mean of {len(logits.teachers)} teachers, but --teacher names "
                        f"{len(args.teacher)}; make the right ones: {remake}")
    for path, made_by in zip(args.teacher or logits.teacher_files, logits.teachers, strict=False):
        if not args.teacher and not runtime.is_model(path):
            runtime.warn(f"{logits.path}: its teacher {path} is not there any more and cannot be compared; "
                         f"name it with --teacher")
            continue
        try:
            now = fingerprints_of(path)
        except UserError as error:
            if args.teacher:
                raise
            raise UserError(f"{logits.path}: its teacher cannot be compared ({error}); name it with "
                            f"--teacher") from None
        differing = [name for name in now if str(made_by.get(name)) != str(now[name])]
        if differing:
            raise UserError(f"{logits.path}: these logits were computed by a different version of {path} "
                            f"({', '.join(differing)} changed); make them again: {remake} - or pass the "
                            f"original with --teacher")
