"""The kinds of task, and the loss that distils: the method, without files, loops or devices.

A task says how the C outputs of a model answer a text: what a cell of the file means, the two halves of the
loss, and the scores. No script knows. To add one, write a class with these methods and name it in TASKS. Say
in student.py how its outputs become probabilities and answers, and in data/examples.py the column's name.
Shapes: N rows of a file, B rows of a batch, L characters, C outputs, S statistics.
"""

import copy
import re
from collections import Counter
from typing import ClassVar

import torch
import torch.nn.functional as F

from data import labels
from runtime import UserError, warn
from student import probabilities


class Classification:
    """Each text has one of C classes."""

    column: ClassVar[str] = "label"  # of the file; a file that has it is of this task
    per: ClassVar[str] = "text"  # what an answer belongs to: "text", or "char", each character of it
    best: str = "accuracy"  # the score that chooses the epoch, where --best names no other
    choosers: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")  # what --best may name: higher is better
    weights: torch.Tensor | None = None  # (C,) of the classes in hard(); balance() sets them

    BINS: ClassVar[int] = 15  # of the calibration error

    def __init__(self, names: list[str]):
        self.names = names  # of the C outputs
        self.index = {name: i for i, name in enumerate(names)}

    @classmethod
    def survey(cls, cells, where: str) -> "Classification":
        """The task of these cells: whole numbers in numeric order, other labels alphabetically.

        `where` names the files. Raises UserError where there are fewer than two labels.
        """
        labels = {cell for cell in cells if cell}
        if len(labels) < 2:
            have = f"the only label is {min(labels)!r}" if labels else "no row has a label"
            raise UserError(f"{where}: {have}; a classifier needs at least two (column `label`, or another "
                            f"one with --label-column)")
        if all(re.fullmatch(r"-?\d{1,18}", name) for name in labels):
            return cls(sorted(labels, key=lambda name: (int(name), name)))
        return cls(sorted(labels))

    def read(self, cell: str, text: str) -> int:
        """The target of one example; of an empty cell any number, as its loss does not count.

        Raises ValueError.
        """
        if not cell:
            return -1
        if cell not in self.index:
            known = self.names if len(self.names) <= 20 else f"the {len(self.names):,} known"
            other = labels.alike(cell, self.names)
            differs = other and f" (from {other!r} it differs only by {labels.difference(cell, other)})"
            raise ValueError(f"label {cell!r} is none of {known}{differs or ''}; correct it")
        return self.index[cell]

    def counts(self, cells: Counter) -> torch.Tensor:
        """How many rows have each class: {cell: rows} -> (C,) float64."""
        found = torch.zeros(len(self.names), dtype=torch.double)
        for cell, rows in cells.items():
            found[self.read(cell, "")] += rows
        return found

    def balance(self, cells: Counter) -> None:
        """Weigh class c in hard() by N / (K · n_c), so that each of the K classes counts alike.

        n_c of the N labelled rows have class c; a class that none has does not enter. It is scikit-learn's
        class_weight="balanced", after King & Zeng (2001, Political Analysis 9:137). The mean weight of the N
        rows is 1, so the learning rate and alpha keep their meaning.
        """
        counts = self.counts(cells)
        weights = counts.sum() / ((counts > 0).sum() * counts)
        self.weights = weights.where(counts > 0, 0.0).float()

    def hard(self, logits, target, mask=None):
        """Cross-entropy with the labels, times the class's weight: logits (B, C), target (B,) -> (B,)."""
        weights = None if self.weights is None else self.weights.to(logits)
        return F.cross_entropy(logits, target.clamp(min=0), weights, reduction="none")

    def soft(self, logits, teacher, mask=None, kind: str = "mse", temperature: float = 2.0):
        """How far the student is from the teacher: logits, teacher (B, C) -> (B,).

        mse  ‖teacher − student‖², Tang et al. (2019, arXiv 1903.12136), section 3.2
        kl   T² · KL(softmax(teacher / T) ‖ softmax(student / T)), Hinton et al. (2015, arXiv 1503.02531);
             T² keeps the gradient's scale independent of T
        """
        if kind == "mse":
            return (teacher - logits).square().sum(1)
        if kind != "kl":
            raise ValueError(f"no loss is called {kind}")
        log_p = F.log_softmax(teacher / temperature, 1)
        log_q = F.log_softmax(logits / temperature, 1)
        return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)

    def statistics(self, logits, target, mask=None, texts=None):
        """What scores() needs of each row: logits (N, C), target (N,) -> (N, 2 + 3C + BINS), float64.

        Scores are folded from means over rows, so that every interval is one bootstrap over rows.
        """
        p, C = probabilities(logits.double(), "classification"), len(self.names)
        confidence, predicted = p.max(1)
        right = predicted == target
        surprise = -p.gather(1, target[:, None]).clamp(min=1e-15).log()  # (N, 1), nats
        truth, guess = F.one_hot(target, C), F.one_hot(predicted, C)
        # Bins (0, 1/15], (1/15, 2/15], … of the confidence; Guo et al. (2017, arXiv 1706.04599)
        index = (confidence * self.BINS).ceil().long().clamp(1, self.BINS) - 1
        gaps = F.one_hot(index, self.BINS) * (right.double() - confidence)[:, None]
        return torch.cat([right[:, None].double(), surprise, truth * guess, guess, truth, gaps], 1)

    def scores(self, means) -> dict:
        """accuracy, macro-F1, log loss (nats) and expected calibration error from (…, S) mean statistics.

        F1 is averaged over the classes that occur or are predicted, as in scikit-learn.
        """
        C = len(self.names)
        hits, guess, truth, gaps = means[..., 2:].split([C, C, C, self.BINS], -1)
        f1 = 2 * hits / (guess + truth).clamp(min=1e-300)
        return {"accuracy": means[..., 0],
                "macro_f1": f1.sum(-1) / (guess + truth > 0).sum(-1),
                "log_loss": means[..., 1],
                "ece": gaps.abs().sum(-1)}

    def fit_temperature(self, logits, target) -> float:
        """The T of least cross-entropy of logits / T: Guo et al. (2017, arXiv 1706.04599), section 4.2.

        logits (N, C), target (N,). The cross-entropy is convex in 1 / T; its slope is bisected in [0.05, 20].
        1 / (N + 2) of each label goes to all classes (Platt 1999), so that a few rows, all right, do not make
        the student certain.
        """
        logits = logits.double()
        share = 1 / (len(target) + 2)
        expected = (1 - share) * logits[torch.arange(len(target)), target] + share * logits.mean(1)  # (N,)
        low, high = 0.05, 20.0
        for _ in range(50):
            middle = (low * high) ** 0.5
            found = ((middle * logits).softmax(1) * logits).sum(1)  # (N,)
            if (found - expected).mean() < 0:
                low = middle
            else:
                high = middle
        return 1 / middle


TASKS = {"classification": Classification}


def name_of(task) -> str:
    """The name under which TASKS has a task: what the .pt files store."""
    return next(name for name, kind in TASKS.items() if type(task) is kind)


def make(column: str | None, cells: dict[str, str], where: str, stored=None):
    """The task whose answers a column of this name holds (classification for any other name): its outputs are
    those of `stored`, (task, names, path) of an artifact, or else surveyed from the cells and judged.

    cells: {cell: FILE:LINE where it first stands}. `where` names the files. Raises UserError.
    """
    if stored:
        return of_name(*stored)
    kind = next((kind for kind in TASKS.values() if kind.column == column), Classification)
    task = kind.survey(cells, where)
    labels.judge({name: cells.get(name, where) for name in task.names})
    return task


def of_name(name: str, names: list[str], path):
    """The task that an artifact stores. Raises UserError where this version does not know it."""
    if name not in TASKS:
        raise UserError(f"{path}: made for {name!r}; this version of the kit knows {', '.join(TASKS)}")
    return TASKS[name](names)


def apply_flags(task, args, answers, valid_answers) -> None:
    """Tell the task what --best and --class-weights say; warn where --valid cannot judge it.

    answers, valid_answers: the cells of the labelled rows, or how often each occurs. Raises UserError for
    what the task does not have.
    """
    answers, valid_answers = Counter(answers), Counter(valid_answers)
    if args.best is not None and args.best not in task.choosers:
        raise UserError(f"--best {args.best}: not a score that can choose the epoch of a {name_of(task)}; "
                        f"use {' or '.join(task.choosers)}")
    if args.best == task.best:
        args.best = None  # the same run as without the flag
    task.best = args.best or task.best
    if args.class_weights:
        if not hasattr(task, "balance"):
            raise UserError(f"--class-weights {args.class_weights}: a {name_of(task)} has none; leave it out")
        if not answers:
            raise UserError(f"--class-weights {args.class_weights}: no --train file has labels; leave it out")
        task.balance(answers)
    if hasattr(task, "counts"):
        trained, valid = task.counts(answers), task.counts(valid_answers)
        absent = [task.names[i] for i in torch.nonzero((trained > 0) & (valid == 0)).flatten()]
        if (valid > 0).sum() == 1:
            warn(f"{args.valid}: every row has the label {task.names[valid.argmax()]!r}, so it cannot tell "
                 f"which epoch is best; use a file with rows of every label")
        elif absent:
            shown = ", ".join(map(repr, absent[:10])) + (", …" if len(absent) > 10 else "")
            warn(f"{args.valid}: lacks {len(absent):,} of the labels of --train ({shown}); the best epoch is "
                 f"chosen without them")


def distill_loss(task, logits, batch: dict, alpha: float, kind: str = "mse", temperature: float = 2.0):
    """The method: mean over rows of alpha · hard + (1 − alpha) · soft; of rows without answer, soft alone.

    logits (B, C); batch has target (B, …), known (B,) bool and, unless alpha is 1, teacher_logits (B, C).
    With alpha 1 every row needs an answer.
    """
    hard = task.hard(logits, batch["target"], batch.get("mask"))  # (B,)
    if alpha == 1:
        return hard.mean()
    soft = task.soft(logits, batch["teacher_logits"], batch.get("mask"), kind, temperature)  # (B,)
    alpha = alpha * batch["known"]  # (B,)
    return (alpha * hard + (1 - alpha) * soft).mean()


def judge(task, logits, target, mask=None, texts=None) -> dict[str, float]:
    """The scores of logits (N, C) on rows that all have an answer, and their mean loss, without weights."""
    scores = task.scores(task.statistics(logits, target, mask, texts).mean(0))
    plain = copy.copy(task)
    plain.weights = None
    loss = plain.hard(logits, target, mask).mean()
    return {"loss": loss.item(), **{name: value.item() for name, value in scores.items()}}


def bootstrap(task, statistics: list, draws: int = 1000) -> list[dict]:
    """For each model {score: (low, high)}, 95 % percentile intervals, and "difference" of task.best to the
    first model's, from rows drawn with replacement (Efron 1979), the same ones for every model.

    statistics: of each model (N, S). The draws are seeded: the same rows give the same intervals.
    """
    rows, random = len(statistics[0]), torch.Generator().manual_seed(0)
    means = [[] for _ in statistics]
    for _ in range(draws):
        drawn = torch.randint(rows, (rows,), generator=random)
        counts = torch.bincount(drawn, minlength=rows).double()  # (N,)
        for found, values in zip(means, statistics, strict=True):
            found.append(counts @ values / rows)  # (S,)
    samples = [task.scores(torch.stack(found)) for found in means]  # {score: (draws,)} of each model

    def interval(values):
        return tuple(values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist())

    return [{name: interval(values) for name, values in sample.items()}
            | {"difference": interval(sample[task.best] - samples[0][task.best])} for sample in samples]
