"""The kinds of task, and the loss that distils: the method, without files, loops or devices.

A task says how the C outputs of a model answer a text: what a cell of the file means, the two halves of the
loss, and the scores. No script knows. To add one, write a class with these methods and name it in TASKS. Say
in student.py how its outputs become probabilities and answers, and in data/examples.py the column's name.
Logits are in raw units, scores as the file has them, so that teachers can be averaged.
Shapes: N rows of a file, B rows of a batch, L characters, C outputs, S statistics.
"""

import contextlib
import copy
import math
import re
from collections import Counter
from typing import ClassVar

import torch
import torch.nn.functional as F

from data import labels
from runtime import UserError, warn
from student import decode, exceeding, probabilities

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Task:
    """What the kinds of task have in common, and what they need not say."""

    column: ClassVar[str]  # of the file; a file that has it is of this task
    per: ClassVar[str] = "text"  # what an answer belongs to: "text", or "char", each character of it
    best: str  # the score that chooses the epoch, where --best names no other
    choosers: ClassVar[tuple[str, ...]]  # what --best may name: higher is better
    weights: torch.Tensor | None = None  # (C,) of the classes in hard(); balance() sets them
    thresholds: list[float] | None = None  # of the probability of each label; None: 0.5
    config: ClassVar[dict] = {}  # what a new model's config has of the task

    def __init__(self, names: list[str]):
        self.names = names  # of the C outputs
        self.index = {name: i for i, name in enumerate(names)}

    @classmethod
    def names_in(cls, cell: str) -> list[str]:
        """The labels that a cell names. Raises ValueError."""
        return [cell]

    def fit(self, answers: Counter, valid_answers: Counter) -> None:
        """Learn what training needs to know of the answers: {cell: rows} of --train and of --valid."""

    def calibrate(self, logits, target) -> dict:
        """What the config of a student with these logits (N, C) on validation rows is to have."""
        return {"temperature": self.fit_temperature(logits, target)}


# ---- labels ------------------------------------------------------------------------------------------------


class Labels(Task):
    """What Classification and MultiLabel have in common: the outputs are labels."""

    BINS: ClassVar[int] = 15  # of the calibration error

    def output(self, name: str) -> int:
        """The number of the output with this name. Raises ValueError."""
        if name not in self.index:
            known = self.names if len(self.names) <= 20 else f"the {len(self.names):,} known"
            other = labels.alike(name, self.names)
            differs = other and f" (from {other!r} it differs only by {labels.difference(name, other)})"
            raise ValueError(f"label {name!r} is none of {known}{differs or ''}; correct it")
        return self.index[name]

    def tally(self, means):
        """From mean statistics: shares of rows (…, C) with a label given rightly, given, and true."""
        return means[..., 2 : -self.BINS].chunk(3, -1)

    def each(self, means) -> dict:
        """From mean statistics, of each label (…, C): share of rows that have it, precision, recall, F1."""
        hits, guess, truth = self.tally(means)
        return {"support": truth, "precision": hits / guess.clamp(min=1e-300),
                "recall": hits / truth.clamp(min=1e-300), "f1": f1(hits, guess, truth)}


class Classification(Labels):
    """Each text has one of C classes."""

    column, best, choosers = "label", "accuracy", ("accuracy", "macro_f1")

    @classmethod
    def survey(cls, cells, where: str) -> "Classification":
        """The task of these cells: whole numbers in numeric order, other labels alphabetically.

        `where` names the files. Raises UserError where there are fewer than two labels.
        """
        names = {cell for cell in cells if cell}
        if len(names) < 2:
            have = f"the only label is {min(names)!r}" if names else "no row has a label"
            raise UserError(f"{where}: {have}; a classifier needs at least two (column `label`, or another "
                            f"one with --label-column)")
        if several := [name for name in names if name.startswith('["')]:
            raise UserError(f"{where}: {min(several)} is a list of labels; --task multilabel reads lists")
        return cls(labels.in_order(names))

    def read(self, cell: str, text: str) -> int:
        """The target of one example; of an empty cell any number, as its loss does not count.

        Raises ValueError.
        """
        return self.output(cell) if cell else -1

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
        gaps = binned(confidence[:, None], right[:, None], self.BINS)
        return torch.cat([right[:, None].double(), surprise, truth * guess, guess, truth, gaps], 1)

    def scores(self, means) -> dict:
        """accuracy, macro-F1, log loss (nats) and expected calibration error from (…, S) mean statistics.

        F1 is averaged over the classes that occur or are predicted, as in scikit-learn.
        """
        hits, guess, truth = self.tally(means)
        return {"accuracy": means[..., 0],
                "macro_f1": f1(hits, guess, truth).sum(-1) / (guess + truth > 0).sum(-1),
                "log_loss": means[..., 1],
                "ece": means[..., -self.BINS :].abs().sum(-1)}

    def fit_temperature(self, logits, target) -> float:
        """The T of least cross-entropy of logits / T: Guo et al. (2017, arXiv 1706.04599), section 4.2.

        logits (N, C), target (N,). 1 / (N + 2) of each label goes to all classes (Platt 1999), so that a few
        rows, all right, do not make the student certain.
        """
        logits = logits.double()
        share = 1 / (len(target) + 2)
        expected = (1 - share) * logits[torch.arange(len(target)), target] + share * logits.mean(1)  # (N,)
        return bisected(lambda inverse: (
            ((inverse * logits).softmax(1) * logits).sum(1) - expected).mean())


class MultiLabel(Labels):
    """Each text has any number of C labels: a cell names them, with commas between; "-" is none of them."""

    column, best, choosers = "labels", "macro_f1", ("macro_f1", "micro_f1", "exact")

    @classmethod
    def names_in(cls, cell: str) -> list[str]:
        """욕설,지역 or, where a name has a comma, a JSON list. Blanks around names do not count."""
        return labels.split(cell)

    @classmethod
    def survey(cls, cells, where: str) -> "MultiLabel":
        """The task of these cells, labels in the order of Classification.survey."""
        names = set()
        for cell in filter(None, cells):
            try:
                names.update(cls.names_in(cell))
            except ValueError:  # told with its line when the file is read again
                continue
        if not names:
            raise UserError(f"{where}: no row has a label (column `labels`, or another one with --task and "
                            f"--label-column)")
        return cls(labels.in_order(names))

    def read(self, cell: str, text: str) -> list[float]:
        """(C,) 1 for the labels that the cell names; of an empty cell all 0. Raises ValueError."""
        chosen = {self.output(name) for name in self.names_in(cell)} if cell else ()
        return [float(i in chosen) for i in range(len(self.names))]

    def counts(self, cells: Counter) -> torch.Tensor:
        """How many rows have each label: {cell: rows} -> (C,) float64."""
        return sum((rows * torch.tensor(self.read(cell, ""), dtype=torch.double)
                    for cell, rows in cells.items()), torch.zeros(len(self.names), dtype=torch.double))

    def hard(self, logits, target, mask=None):
        """Binary cross-entropies with the labels, summed: logits (B, C), target (B, C) -> (B,)."""
        return F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none").sum(1)

    def soft(self, logits, teacher, mask=None, kind: str = "mse", temperature: float = 2.0):
        """As Classification.soft; the divergence is that of C Bernoulli distributions, summed."""
        if kind == "mse":
            return (teacher - logits).square().sum(1)
        p = (teacher / temperature).sigmoid()
        return temperature**2 * (self.hard(logits / temperature, p) - self.hard(teacher / temperature, p))

    def statistics(self, logits, target, mask=None, texts=None):
        """logits (N, C), target (N, C) -> (N, 2 + 3C + BINS), float64, as those of a classification."""
        truth, p = target.bool(), probabilities(logits.float(), "multilabel")
        guess = exceeding(p, self.thresholds)
        exact = (guess == truth).all(1, keepdim=True)
        surprise = self.hard(logits.double(), target)[:, None] / len(self.names)  # nats per label
        gaps = binned(p.double(), truth, self.BINS)
        return torch.cat([exact, surprise, truth & guess, guess, truth, gaps], 1)

    def scores(self, means) -> dict:
        """macro-F1 over all labels, micro-F1, share of rows with exactly the right labels, log loss (nats per
        label), calibration error of the labels' probabilities, from (…, S) mean statistics.

        F1 is as in scikit-learn: 0 for a label that no row has or gets.
        """
        hits, guess, truth = self.tally(means)
        return {"macro_f1": f1(hits, guess, truth).mean(-1),
                "micro_f1": f1(hits.sum(-1), guess.sum(-1), truth.sum(-1)),
                "exact": means[..., 0], "log_loss": means[..., 1],
                "ece": means[..., -self.BINS :].abs().sum(-1)}

    def fit_temperature(self, logits, target) -> float:
        """One T for all labels, as Classification.fit_temperature; of each answer 1 / (N + 2) goes to both
        sides."""
        logits = logits.double()
        share = 1 / (len(target) + 2)
        expected = ((1 - share) * target.double() + share / 2) * logits  # (N, C)
        return bisected(lambda inverse: ((inverse * logits).sigmoid() * logits - expected).mean())

    def fit_thresholds(self, logits, target) -> list[float]:
        """For each label the threshold of its probability with the highest F1 on these rows; 0.5 where no row
        has the label. It lies midway between two neighbouring probabilities.

        logits (N, C), target (N, C).
        """
        found = []
        for p, truth in zip(probabilities(logits.float(), "multilabel").T, target.T, strict=True):
            p, order = p.sort(descending=True)
            hits = truth[order].double().cumsum(0)  # (N,) where the i + 1 likeliest rows get the label
            score = f1(hits, torch.arange(1, len(p) + 1), hits[-1])
            score[:-1][p[:-1] == p[1:]] = -1  # rows of one probability go together
            last, after = torch.cat([p, p.new_zeros(1)])[(i := int(score.argmax())) : i + 2]
            middle = (last + after) / 2 if (last + after) / 2 < last else after
            found.append(middle.item() if hits[-1] else 0.5)
        return found

    def calibrate(self, logits, target) -> dict:
        """Temperature, then thresholds. The task itself takes those of the logits as they are."""
        self.thresholds = self.fit_thresholds(logits, target)
        temperature = self.fit_temperature(logits, target)
        return {"temperature": temperature, "thresholds": self.fit_thresholds(logits / temperature, target)}


def f1(hits, guess, truth):
    """From how many have and get a label, get it, have it; 0 where there are none."""
    return 2 * hits / (guess + truth).clamp(min=1e-300)


def binned(p, happened, bins: int):
    """How far probabilities are from what happened, by bins: (N, D) float64, (N, D) bool -> (N, bins).

    Bins (0, 1/15], (1/15, 2/15], … of the probability; Guo et al. (2017, arXiv 1706.04599).
    """
    index = (p * bins).ceil().long().clamp(1, bins) - 1
    return p.new_zeros(len(p), bins).scatter_add_(1, index, (happened.double() - p) / p.size(1))


def bisected(slope) -> float:
    """The temperature in [0.05, 20] at whose inverse `slope`, that of a convex loss, is 0."""
    low, high = 0.05, 20.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return 1 / middle


# ---- scores ------------------------------------------------------------------------------------------------


class Regression(Task):
    """Each text has a score, a number. Logits (N, 1) are scores in the units of the file."""

    column, best, choosers = "score", "pearson", ("pearson", "spearman")
    mean, deviation = 0.0, 1.0  # of the training answers: models standardise inside

    @classmethod
    def names_in(cls, cell: str) -> list[str]:
        return []

    @classmethod
    def survey(cls, cells, where: str) -> "Regression":
        if not any(cells):
            raise UserError(f"{where}: no row has a score (column `score`, or another one with --task and "
                            f"--label-column)")
        return cls(["score"])

    def read(self, cell: str, text: str) -> float:
        """The number; of an empty cell 0. Raises ValueError."""
        if cell and not NUMBER.fullmatch(cell.strip()):
            raise ValueError(f"score {cell!r} is not a number such as 3.8; correct it")
        if abs(value := float(cell or 0)) > torch.finfo(torch.float32).max:
            raise ValueError(f"score {cell} is too large; correct it")
        return value

    def fit(self, answers: Counter, valid_answers: Counter) -> None:
        """Mean and deviation of the answers, of --valid's if those of --train do not differ."""
        for counts in (answers, valid_answers):
            values = torch.tensor([self.read(cell, "") for cell in counts], dtype=torch.double)
            if len(values.unique()) > 1:
                rows = torch.tensor([*counts.values()], dtype=torch.double)
                mean = (rows @ values) / rows.sum()
                variance = rows @ (values - mean).square() / rows.sum()
                self.mean, self.deviation = mean.item(), variance.sqrt().item()
                return
        raise UserError("every row has the same score, so there is nothing to learn")

    @property
    def config(self) -> dict:
        return {"mean": self.mean, "deviation": self.deviation}

    def hard(self, logits, target, mask=None):
        """Squared error of the standardised scores: logits (B, 1), target (B,) -> (B,)."""
        return ((logits[:, 0] - target) / self.deviation).square()

    def soft(self, logits, teacher, mask=None, kind: str = "mse", temperature: float = 2.0):
        """Squared distance of the standardised scores; "kl": half of it, the divergence of two normal
        distributions of the answers' width. T² · KL does not depend on T."""
        return self.hard(logits, teacher[:, 0]) * (0.5 if kind == "kl" else 1)

    def statistics(self, logits, target, mask=None, texts=None):
        """logits (N, 1), target (N,) -> (N, 11), float64: moments of scores and of ranks, squared error.

        Ranks are those among these N rows. The bootstrap draws rows with their ranks and does not rank again,
        so its intervals of Spearman's correlation are approximate.
        """
        x, y = logits[:, 0].double(), target.double()
        return torch.stack([*moments(x, y), *moments(ranks(x), ranks(y)), (x - y).square()], 1)

    def scores(self, means) -> dict:
        """Pearson's and Spearman's correlation, mean squared error, from (…, 11) mean statistics."""
        return {"pearson": correlation(means[..., :5]), "spearman": correlation(means[..., 5:10]),
                "mse": means[..., 10]}

    def calibrate(self, logits, target) -> dict:
        """A score has no temperature."""
        return {}


def ranks(values):
    """(N,) -> (N,) ranks from 1 / N to 1, equal values with the mean of theirs (Spearman 1904)."""
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[index].double() / len(values)


def moments(x, y):
    return x, y, x * x, y * y, x * y


def correlation(means):
    """Pearson's, from means of moments (…, 5); 0 where either does not vary beyond rounding."""
    x, y, xx, yy, xy = means.unbind(-1)
    variances = [(square - mean * mean).where(square - mean * mean > 1e-14 * square, math.inf)
                 for mean, square in ((x, xx), (y, yy))]
    return ((xy - x * y) / (variances[0].sqrt() * variances[1].sqrt())).clamp(-1, 1)


# ---- which task --------------------------------------------------------------------------------------------

TASKS = {"classification": Classification, "multilabel": MultiLabel, "regression": Regression}


def name_of(task) -> str:
    """The name under which TASKS has a task: what the .pt files store."""
    return next(name for name, kind in TASKS.items() if type(task) is kind)


def columns(args) -> tuple:
    """What read_examples takes of the flags: the columns of the text, of the second text, of the answers."""
    answers = args.label_column or (args.task and (TASKS[args.task].column,))
    return args.text_column, args.text2_column, answers


def make(column: str | None, cells: dict[str, str], where: str, stored=None, name: str | None = None):
    """The task `name`, or else that whose answers a column of this name holds (classification for any other
    name): its outputs are those of `stored`, (task, names, path) of an artifact, or else surveyed from the
    cells and judged.

    cells: {cell: FILE:LINE where it first stands}. `where` names the files. Raises UserError.
    """
    found = name or next((key for key, kind in TASKS.items() if kind.column == column), None)
    if stored:
        if found not in (None, stored[0]) and stored[0] in TASKS:
            which = "--task is" if name else f"the column {column} of {where} is for"
            raise UserError(f"{stored[2]}: made for {stored[0]}, but {which} {found}; give another file, or "
                            f"--task {stored[0]} (with --label-column if its column has another name)")
        return of_name(*stored)
    kind = TASKS[found or "classification"]
    task = kind.survey(cells, where)
    places = {}
    for cell, place in cells.items():
        with contextlib.suppress(ValueError):  # told when its file is read again
            for label in kind.names_in(cell):
                places.setdefault(label, place)
    labels.judge({name: places.get(name, where) for name in task.names})
    return task


def of_name(name: str, names: list[str], path):
    """The task that an artifact stores. Raises UserError where this version does not know it."""
    if name not in TASKS:
        raise UserError(f"{path}: made for {name!r}; this version of the kit knows {', '.join(TASKS)}")
    return TASKS[name](names)


def of_model(model, path, names: list[str] | None = None):
    """The task of a model, with the thresholds of its labels; its outputs in the order of `names`."""
    task = of_name(model.task, names or model.label_names, path)
    if thresholds := getattr(model.config, "thresholds", None):
        task.thresholds = [thresholds[model.label_names.index(name)] for name in task.names]
    return task


def answers(task, logits) -> list[tuple]:
    """Logits (N, C) -> for each row the answer as a file would have it, and its probability (or None)."""
    name = name_of(task)
    return decode(probabilities(logits, name), task.names, name, task.thresholds)


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
    if len(valid_answers) == 1:
        warn(f"{args.valid}: every row has the answer {min(valid_answers)!r}, so it cannot tell which "
             f"epoch is best; use a file with different ones")
    elif hasattr(task, "counts"):
        trained, valid = task.counts(answers), task.counts(valid_answers)
        absent = [task.names[i] for i in torch.nonzero((trained > 0) & (valid == 0)).flatten()]
        if absent:
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


def resampled(task, statistics: list, draws: int = 1000) -> list[dict]:
    """For each model {score: (draws,)} of rows drawn with replacement (Efron 1979), the same ones for every
    model. statistics: of each model (N, S). The draws are seeded: the same rows give the same scores.
    """
    rows, random = len(statistics[0]), torch.Generator().manual_seed(0)
    means = [[] for _ in statistics]
    for _ in range(draws):
        drawn = torch.randint(rows, (rows,), generator=random)
        counts = torch.bincount(drawn, minlength=rows).double()  # (N,)
        for found, values in zip(means, statistics, strict=True):
            found.append(counts @ values / rows)  # (S,)
    return [task.scores(torch.stack(found)) for found in means]


def interval(values) -> tuple[float, float]:
    """The 95 % percentile interval of draws."""
    return tuple(values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist())


def bootstrap(task, statistics: list, draws: int = 1000) -> list[dict]:
    """For each model {score: (low, high)}, 95 % intervals, and "difference" of task.best to the first
    model's; statistics as for resampled()."""
    samples = resampled(task, statistics, draws)
    return [{name: interval(values) for name, values in sample.items()}
            | {"difference": interval(sample[task.best] - samples[0][task.best])} for sample in samples]
