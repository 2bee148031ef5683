"""tasks.py by hand; two toy tasks, spans and grades, show that its interface carries others."""

import json
import math
import re
from bisect import bisect
from collections import Counter
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import refused, run, write_rows

import data.examples
import flags
import student
import tasks
from data.examples import Examples
from runtime import UserError
from student import Student
from tasks import Classification, MultiLabel, Regression, apply_flags, bootstrap, distill_loss, judge
from teacher import Teacher

TWO, THREE = Classification(["neg", "pos"]), Classification(["a", "b", "c"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scores_of(task, logits, target):
    means = task.statistics(torch.as_tensor(logits), torch.as_tensor(target)).mean(0)
    return {name: value.item() for name, value in task.scores(means).items()}


# ---- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "names"), [
    (["10", "9", "-1", "9", ""], ["-1", "9", "10"]),  # whole numbers by value
    (["01", "1", "0"], ["0", "01", "1"]),  # one value, two labels
    (["10", "9", "x"], ["10", "9", "x"]),  # others by their characters
    (["0,1", "0", "1.5"], ["0", "0,1", "1.5"]),
    (["9" * 19, "1" * 19, "2"], ["1" * 19, "2", "9" * 19]),  # too long for a number
])  # fmt: skip
def test_labels_have_one_order(cells, names):
    assert Classification.survey(cells, "t").names == Classification.survey(cells[::-1], "t").names == names


def test_a_cell_is_read_as_the_number_of_its_label():
    for cells, words in (["x", "x", ""], r"^train\.tsv: .*'x'"), (["", ""], "^train.tsv: no row"):
        refused(lambda cells=cells: Classification.survey(cells, "train.tsv"), words)
    assert [THREE.read(cell, "text") for cell in ("c", "a", "")] == [2, 0, -1]
    with pytest.raises(ValueError, match=r"'d'.*'a', 'b', 'c'"):
        THREE.read("d", "text")
    with pytest.raises(ValueError, match=r"^.{,60}1,000 known.{,30}$"):
        Classification([str(i) for i in range(1000)]).read("x", "text")


def test_the_task_is_that_of_the_column_or_of_the_artifact():
    for column in ("label", "gold", None):  # a column of any other name is of classification
        made = tasks.make(column, {"b": "train.tsv:2", "a": "train.tsv:3"}, "train.tsv")
        assert (made.names, tasks.name_of(made)) == (["a", "b"], "classification")
    assert tasks.make("label", {}, "train.tsv", ("classification", ["y", "x"], "t.pt")).names == ["y", "x"]
    for call in (lambda: tasks.of_name("ranking", ["y"], "t.pt"),
                 lambda: tasks.make("label", {}, "train.tsv", ("ranking", ["y"], "t.pt"))):
        refused(call, r"^t\.pt: .*ranking.*classification")


# ---- the loss ----------------------------------------------------------------------------------------------


def test_both_halves_of_the_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    hard = THREE.hard(logits, torch.tensor([1, 2]))
    assert hard.tolist() == pytest.approx([math.log(math.exp(2) + 1 + math.e), math.log(3)], rel=1e-6)
    assert THREE.hard(logits, torch.tensor([-1, 2])).isfinite().all()  # an unknown answer
    mse = TWO.soft(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    assert mse.tolist() == [4 + 1, 0 + 4]
    # T²·KL of two classes, T = 2, with math alone: teacher (2, 0), student (0, 1).
    p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(0.5))  # softmax((2, 0) / 2)[0], softmax((0, 1) / 2)[0]
    kl = TWO.soft(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), None, "kl", 2.0)
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert kl.item() == pytest.approx(4 * expected, rel=1e-6)
    assert THREE.soft(logits + 7, logits, None, "kl", 3.0).abs().max() < 1e-5  # blind to a shift


def test_kl_keeps_the_scale_of_its_gradient_at_high_temperature():
    """Hinton et al. (2015), section 2.1: for T → ∞ and centred logits, T² times dKL/dz → (z − v) / C."""
    logits = torch.tensor([[0.5, -0.5, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    THREE.soft(logits, teacher, None, "kl", 1000.0).sum().backward()
    torch.testing.assert_close(logits.grad, (logits - teacher).detach() / 3, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_alpha_mixes_and_an_unknown_row_has_the_soft_part_alone(kind):
    logits, teacher = draw(3, 3), draw(3, 3, seed=1)
    batch = {"target": torch.tensor([2, -1, 0]), "known": torch.tensor([True, False, True]),
             "teacher_logits": teacher}
    hard = [F.cross_entropy(logits[i], torch.tensor(t)).item() for i, t in ((0, 2), (2, 0))]
    soft = THREE.soft(logits, teacher, None, kind, 1.5).tolist()
    rows = [0.25 * hard[0] + 0.75 * soft[0], soft[1], 0.25 * hard[1] + 0.75 * soft[2]]
    for alpha, expected in ((0.25, rows), (0.0, soft)):
        found = distill_loss(THREE, logits, batch, alpha, kind, 1.5).item()
        assert found == pytest.approx(sum(expected) / 3, rel=1e-6)


def test_alpha_1_is_the_labels_alone_and_needs_no_teacher():
    logits, batch = draw(4, 3), {"target": torch.tensor([0, 2, 1, 1]), "known": torch.ones(4).bool()}
    expected = F.cross_entropy(logits, batch["target"]).item()
    for more in ({}, {"teacher_logits": torch.full((4, 3), math.nan)}):
        assert distill_loss(THREE, logits, batch | more, 1).item() == pytest.approx(expected, rel=1e-6)


# ---- rare classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "weights"), [  # N / (K · n_c)
    ({"a": 6, "b": 2}, [8 / (2 * 6), 8 / (2 * 2), 0]),  # c, in validation alone, does not enter
    ({"c": 1, "a": 50, "b": 49}, [100 / 150, 100 / 147, 100 / 3]),
    ({"b": 7}, [0, 1, 0]), ({"a": 5, "b": 5, "c": 5}, [1, 1, 1]),
])  # fmt: skip
def test_weights_of_classes_by_hand(cells, weights):
    task = Classification(["a", "b", "c"])
    task.balance(Counter(cells))
    assert task.weights.tolist() == pytest.approx(weights, rel=1e-6)
    rows = [task.weights[task.read(cell, "")].item() for cell, count in cells.items() for _ in range(count)]
    assert sum(rows) / len(rows) == pytest.approx(1, rel=1e-6)


@pytest.mark.optional
def test_weights_of_classes_are_those_of_scikit_learn():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = ["a"] * 33 + ["b"] * 5 + ["c"] * 411
    task = Classification(["a", "b", "c"])
    task.balance(Counter(labels))
    expected = compute("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert task.weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_weights_multiply_the_hard_part_alone_and_the_mean_is_over_rows():
    task, logits, teacher = Classification(["a", "b", "c"]), draw(4, 3), draw(4, 3, seed=1)
    target = torch.tensor([0, 0, -1, 1])
    task.balance(Counter({"a": 9, "b": 1}))
    weights = torch.tensor([10 / 18, 10 / 2, 0])
    expected = F.cross_entropy(logits, target.clamp(min=0), weights, reduction="none")
    assert torch.equal(task.hard(logits, target), expected)
    torch.testing.assert_close(task.hard(logits.double(), target), expected.double())  # of any precision
    assert torch.equal(task.soft(logits, teacher), THREE.soft(logits, teacher))
    batch = {"target": target, "known": target >= 0, "teacher_logits": teacher}
    rows = [w * -logits[i].log_softmax(0)[t].item()
            for i, t, w in ((0, 0, 10 / 18), (1, 0, 10 / 18), (3, 1, 5))]
    soft = (teacher - logits).square().sum(1).tolist()
    mixed = 0.3 * sum(rows) + 0.7 * (soft[0] + soft[1] + soft[3]) + soft[2]
    assert distill_loss(task, logits, batch, 0.3).item() == pytest.approx(mixed / 4, rel=1e-6)
    labelled = {name: value[batch["known"]] for name, value in batch.items()}
    alone = distill_loss(task, logits[batch["known"]], labelled, 1)
    assert alone.item() == pytest.approx(sum(rows) / 3, rel=1e-6)


def test_validation_knows_no_weights():
    task, logits, target = Classification(["a", "b", "c"]), draw(50, 3), torch.arange(50) % 3
    task.balance(Counter({"a": 98, "b": 1, "c": 1}))
    assert judge(task, logits, target) == judge(THREE, logits, target) and task.weights is not None


def given(best=None, class_weights=None):
    return SimpleNamespace(best=best, class_weights=class_weights, valid="v.tsv")


def test_the_task_is_told_the_score_that_chooses_and_its_weights(capsys):
    rows = Counter({"a": 6, "b": 2, "c": 4})
    for flag, kept, best in ((None, None, "accuracy"), ("accuracy", None, "accuracy"),
                             ("macro_f1", "macro_f1", "macro_f1")):
        task, args = Classification(["a", "b", "c"]), given(flag)
        apply_flags(task, args, rows, ["a", "b", "c"])
        assert (task.best, args.best, task.weights) == (best, kept, None)  # the default is no setting
    task = Classification(["a", "b", "c"])
    apply_flags(task, given(class_weights="balanced"), rows, ["a", "b", "c"])
    assert task.weights.tolist() == pytest.approx([2 / 3, 2, 1])
    assert Classification.best == "accuracy" and Classification.weights is None
    assert capsys.readouterr().err == ""


def test_what_a_task_does_not_have_is_refused(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "span", Span)
    span, rows, weighted = Span(["start", "last"]), Counter({"0:2": 3}), given(class_weights="balanced")
    refused(lambda: apply_flags(span, weighted, rows, rows), "^--class-weights .*span")
    refused(lambda: apply_flags(THREE, weighted, Counter(), ["a"]), "^--class-weights .*labels")
    for task, names in ((THREE, "accuracy or macro_f1"), (span, "f1 or exact")):
        for name in ("log_loss", "F1", ""):
            refused(lambda task=task, name=name: apply_flags(task, given(name), {}, {}),
                    f"^--best {name}: .*{names}$")
    assert (THREE.best, THREE.weights) == ("accuracy", None)


@pytest.mark.parametrize(("cells", "valid", "words"), [
    ({"a": 1, "b": 1, "c": 1}, ["b", "b"], [r"^warning: v\.tsv: .*'b'", "which epoch"]),
    ({}, ["b", "b"], [r"^warning: v\.tsv: .*'b'"]),  # logits alone teach
    ({"a": 9, "b": 1, "c": 1}, ["b", "a", "b"], [r"^warning: v\.tsv: lacks 1 .*\('c'\)"]),
    ({"a": 9, "b": 1}, ["b", "a", "b"], []), ({"a": 1, "b": 1}, ["c", "b", "a"], []), ({}, ["a", "b"], []),
])  # fmt: skip
def test_validation_rows_that_cannot_tell_are_warned_of(cells, valid, words, capsys):
    apply_flags(THREE, given(), Counter(cells), valid)
    found = capsys.readouterr().err
    assert found.count("\n") == bool(words) and all(re.search(word, found) for word in words), found


def test_of_many_labels_that_validation_lacks_ten_are_named(capsys):
    names = [f"label{i:02}" for i in range(30)]
    apply_flags(Classification(names), given(), Counter(names), names[:2])
    found = capsys.readouterr().err
    assert "28" in found and "label11" in found and "label12" not in found


# ---- scores ------------------------------------------------------------------------------------------------


def hot(answers, classes):
    return 5 * F.one_hot(torch.tensor(answers), classes).float()


@pytest.mark.parametrize(("predicted", "labels", "classes", "f1"), [  # 2 hits / (predicted + labelled)
    ([0, 1, 1, 1, 0], [0, 1, 1, 0, 1], 2, (2 / 4 + 4 / 6) / 2),
    ([1, 1, 1, 1], [0, 1, 1, 1], 2, (0 + 6 / 7) / 2),  # 0 is never predicted
    ([0, 0, 1, 1], [0, 1, 1, 0], 3, (1 / 2 + 1 / 2) / 2),  # 2 neither occurs nor is predicted: left out
    ([2, 0, 0], [0, 0, 1], 3, (2 / 4 + 0 + 0) / 3),  # 2 is predicted only, 1 occurs only
    ([1, 1, 1], [1, 1, 1], 5, 1.0),
])  # fmt: skip
def test_accuracy_and_macro_f1_by_hand(predicted, labels, classes, f1):
    found = scores_of(Classification(list("abcde"[:classes])), hot(predicted, classes), labels)
    right = sum(p == label for p, label in zip(predicted, labels, strict=True))
    assert (found["accuracy"], found["macro_f1"]) == pytest.approx((right / len(labels), f1), abs=1e-12)


@pytest.mark.optional
@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_that_of_scikit_learn(seed):
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    predicted, labels = torch.randint(1, 6, (2, 9), generator=torch.Generator().manual_seed(seed)).tolist()
    found = scores_of(Classification(list("abcdef")), hot(predicted, 6), labels)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)


@pytest.mark.parametrize(("confidences", "right", "bins", "expected"), [
    ([1.0, 1.0], [1, 0], 15, 0.5),
    ([0.75, 0.9375, 0.9375, 0.625], [1, 1, 0, 0], 15, (0.25 + abs(1 - 1.875) + 0.625) / 4),  # three bins
    ([0.75, 0.9375], [1, 0], 2, abs(1 - 1.6875) / 2),  # both in (1/2, 1]: gaps of either sign add up first
    ([0.5, 0.6875, 0.8125], [0, 1, 1], 4, (0.5 + 0.3125 + 0.1875) / 3),  # (1/4, 1/2], (1/2, 3/4], (3/4, 1]
    ([0.5, 0.5625, 0.6875], [1, 0, 0], 4, (0.5 + 0.5625 + 0.6875) / 3),  # 1/2 is not in the bin of 0.5625
])  # fmt: skip
def test_calibration_error_by_hand(confidences, right, bins, expected, monkeypatch):
    """|sum of hits − sum of confidences| of each bin, over all rows."""
    monkeypatch.setattr(Classification, "BINS", bins)
    p = torch.tensor(confidences, dtype=torch.double)
    found = scores_of(TWO, torch.stack([1 - p, p], 1).log().clamp(min=-1e4),
                      [hit if c > 0.5 else 1 - hit for c, hit in zip(confidences, right, strict=True)])
    assert found["ece"] == pytest.approx(expected, abs=1e-9)


def test_judge_gives_scores_and_the_loss_of_training():
    logits, target = draw(50, 3), torch.arange(50) % 3
    found = judge(THREE, logits, target)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)
    assert {name: found[name] for name in list(found)[1:]} == pytest.approx(scores_of(THREE, logits, target))
    assert found["log_loss"] == pytest.approx(found["loss"], rel=1e-5) and THREE.best in found
    assert scores_of(TWO, [[500.0, 0.0]], [1])["log_loss"] == pytest.approx(-math.log(1e-15))  # not infinite


# ---- calibration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "rows"), [(70, 100), (99, 100), (100, 100), (3, 3)])
def test_the_temperature_of_one_confidence_is_known(right, rows):
    """Logits (2, 0) of which a share is right: softmax(2 / T) is that share, smoothed by 1 / (N + 2)."""
    s = 1 / (rows + 2)
    share = (1 - s) * right / rows + s / 2
    target = torch.tensor([0] * right + [1] * (rows - right))
    found = TWO.fit_temperature(torch.tensor([[2.0, 0.0]] * rows), target)
    assert found == pytest.approx(2 / math.log(share / (1 - share)), rel=1e-6)


def test_the_temperature_has_the_least_log_loss_and_its_limits():
    target = torch.randint(3, (4000,), generator=torch.Generator().manual_seed(0))
    logits = (hot(target.tolist(), 3) / 5 + draw(4000, 3)) * 4  # four times too certain
    T = THREE.fit_temperature(logits, target)
    losses = {factor: F.cross_entropy(logits / (T * factor), target).item() for factor in (0.95, 1, 1.05)}
    assert losses[1] == min(losses.values()) and 3 < T < 5
    assert THREE.fit_temperature(logits / 3, target) == pytest.approx(T / 3, rel=1e-4)
    wrong = TWO.fit_temperature(torch.tensor([[9.0, 0.0]] * 9), torch.ones(9).long())
    assert wrong == pytest.approx(20, rel=1e-3)


# ---- intervals ---------------------------------------------------------------------------------------------


def rights(count, rows):
    """Statistics of a classifier that has the first `count` of so many rows right."""
    target = torch.arange(rows) % 2
    return TWO.statistics(hot([int(t) if i < count else 1 - int(t) for i, t in enumerate(target)], 2), target)


@pytest.mark.parametrize("count", [160, 100, 196])
def test_the_interval_of_an_accuracy_is_that_of_the_binomial(count):
    p = count / 200
    sums = list(accumulate(math.comb(200, k) * p**k * (1 - p) ** (200 - k) for k in range(201)))
    found = bootstrap(TWO, [rights(count, 200)], 4000)[0]["accuracy"]
    assert found == pytest.approx((bisect(sums, 0.025) / 200, bisect(sums, 0.975) / 200), abs=0.0076)


def test_differences_are_paired():
    """Right on 120 and on 100 rows of 400, all of the 100 among the 120: only 20 rows decide."""
    first, second, again = bootstrap(TWO, [rights(120, 400), rights(100, 400), rights(120, 400)], 4000)
    assert first == again and first["difference"] == (0, 0)
    low, high = second["difference"]
    spread = 1.96 * math.sqrt(0.05 * 0.95 / 400)  # of the share of those 20
    assert (low, high) == pytest.approx((-0.05 - spread, -0.05 + spread), abs=0.004)
    assert high - low < 0.6 * (second["accuracy"][1] - second["accuracy"][0])
    assert bootstrap(TWO, [rights(50, 50)])[0]["accuracy"] == (1, 1)  # no rounding above 1


def test_intervals_are_seeded_and_disturb_no_other_draw():
    rows = [THREE.statistics(draw(40, 3), torch.arange(40) % 3)]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    found = bootstrap(THREE, rows, 200)
    assert torch.equal(torch.rand(3), expected) and found == bootstrap(THREE, rows, 200)
    for name, value in scores_of(THREE, draw(40, 3), torch.arange(40) % 3).items():
        low, high = found[0][name]
        assert low <= value <= high or name == "ece", name  # resampled calibration errors are larger


# ---- several labels ----------------------------------------------------------------------------------------

ABC = MultiLabel(["a", "b", "c"])


@pytest.mark.parametrize(("cell", "target"), [
    ("a,c", [1, 0, 1]), ("c,a", [1, 0, 1]), ("b", [0, 1, 0]), ("-", [0, 0, 0]), ("", [0, 0, 0]),
    (" a , b ", [1, 1, 0]), ('["c", "b"]', [0, 1, 1]), ("[]", [0, 0, 0]), ('["-"]', [0, 0, 0]),
])  # fmt: skip
def test_a_cell_names_any_number_of_labels(cell, target):
    assert ABC.read(cell, "text") == target


@pytest.mark.parametrize(("cell", "words"), [
    ("a,b,a", "'a' occurs twice"), ('["a", "a"]', "'a' occurs twice"), ("a, a", "'a' occurs twice"),
    ("a,-", "stands alone"), ("-,-", "stands alone"), ('["-", "b"]', "stands alone"),
    ("a,,b", "empty"), (",", "empty"), ("a,", "empty"), ('["a", ""]', "empty"), ("  ", "empty"),
    ("a,d", "'d' is none of .*'a', 'b', 'c'"), ("A", "'A' .*from 'a'.*case"), ("[]]", "JSON"),
    ("[1, 2]", "JSON"),
    ("['a']", "JSON"), ("[" * 20000, "JSON"), ('{"a": 1}', "none of"), ("[b", "JSON"),
])  # fmt: skip
def test_a_cell_that_cannot_be_is_refused(cell, words):
    with pytest.raises(ValueError, match=words):
        ABC.read(cell, "text")


def test_labels_are_surveyed_across_cells_and_judged_where_they_stand():
    cells = {"b,10": "t.tsv:2", "-": "t.tsv:3", '["x,y", "b"]': "t.tsv:4", "a,a": "t.tsv:5", "": "t.tsv:6"}
    assert tasks.make("labels", cells, "t.tsv").names == ["10", "b", "x,y"]
    assert MultiLabel.survey(["10,9", "9,8"], "t").names == ["8", "9", "10"]
    assert MultiLabel.survey(["욕"], "t").names == ["욕"]  # one label is a task, too
    for cells in ({}, {"-": "t.tsv:2"}, {"": "t.tsv:2"}):
        refused(lambda cells=cells: tasks.make("labels", cells, "t.tsv"), "^t.tsv: no row")
    alike = {"a,b": "t.tsv:2", "c, b\u200b": "t.tsv:3"}
    refused(lambda: tasks.make("labels", alike, "t.tsv"), r"^t\.tsv:3: .*t\.tsv:2.*invisible")


def test_both_halves_of_the_loss_of_labels_by_hand():
    logits, target = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    expected = math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(-1))
    assert ABC.hard(logits, target).item() == pytest.approx(expected, rel=1e-6)
    teacher = torch.tensor([[1.0, 2.0, -1.0]])
    assert ABC.soft(logits, teacher).tolist() == [1 + 4 + 0]
    T, kl = 3.0, 0.0
    for z, v in zip(logits[0].tolist(), teacher[0].tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-v / T)), 1 / (1 + math.exp(-z / T))
        kl += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert ABC.soft(logits, teacher, None, "kl", T).item() == pytest.approx(T * T * kl, rel=1e-4)
    batch = {"target": target, "known": torch.tensor([False]), "teacher_logits": teacher}
    assert distill_loss(ABC, logits, batch, 0.3).item() == 5  # of an unknown row the soft part alone


GUESSED = [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
TRUE = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_scores_of_labels_by_hand():
    found = scores_of(ABC, 6 * torch.tensor(GUESSED).float() - 3, torch.tensor(TRUE).float())
    # a: 1 hit, given twice, true once; b: 1, 2, 2; c: never
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (4 + 3)) and found["exact"] == 0.5
    wrong, right = math.log(1 + math.exp(3)), math.log(1 + math.exp(-3))
    assert found["log_loss"] == pytest.approx((3 * wrong + 9 * right) / 12)
    p, q = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))  # 4 given, 2 rightly; 8 not given, 1 wrongly
    assert found["ece"] == pytest.approx((abs(2 - 4 * p) + abs(1 - 8 * q)) / 12)
    each = ABC.each(ABC.statistics(6 * torch.tensor(GUESSED).float() - 3, torch.tensor(TRUE).float()).mean(0))
    assert {name: values.tolist() for name, values in each.items()} == {
        "support": [0.25, 0.5, 0], "precision": [0.5, 0.5, 0], "recall": [1, 0.5, 0],
        "f1": [pytest.approx(2 / 3), 0.5, 0]}


@pytest.mark.optional
@pytest.mark.parametrize("seed", range(3))
def test_scores_of_labels_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    random = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(40, 6, generator=random), torch.rand(40, 6, generator=random) < 0.3
    logits[:, 4], target[:, 4:] = -3, False  # neither true nor given; given, never true
    task = MultiLabel(list("abcdef"))
    task.thresholds = [0.2, 0.5, 0.5, 0.7, 0.9, 0.5]
    given = (logits.sigmoid() > torch.tensor(task.thresholds)).numpy()
    found, truth = scores_of(task, logits, target.float()), target.numpy()
    for name in ("macro", "micro"):
        expected = metrics.f1_score(truth, given, average=name, zero_division=0)
        assert found[f"{name}_f1"] == pytest.approx(expected, abs=1e-12)
    assert found["exact"] == pytest.approx(metrics.accuracy_score(truth, given), abs=1e-12)
    each = task.each(task.statistics(logits, target.float()).mean(0))
    expected = metrics.precision_recall_fscore_support(truth, given, zero_division=0)
    for values, name in zip(expected[:3], ("precision", "recall", "f1"), strict=True):
        assert each[name].tolist() == pytest.approx(values.tolist(), abs=1e-12)


def f1_at(p, truth, threshold):
    given = p > threshold
    return 2 * (given & truth).sum().item() / max(1, (given.sum() + truth.sum()).item())


def test_thresholds_have_the_highest_f1_of_their_label():
    random = torch.Generator().manual_seed(0)
    target = torch.rand(60, 4, generator=random) < torch.tensor([0.5, 0.1, 0.03, 0.0])
    logits = (torch.randn(60, 4, generator=random) + 2 * target - 3).mul(4).round() / 4  # many are equal
    task = MultiLabel(list("abcd"))
    found = task.fit_thresholds(logits, target.float())
    p = logits.sigmoid()
    for i in range(3):
        best = max(f1_at(p[:, i], target[:, i], t) for t in [0, *p[:, i].tolist()])
        assert f1_at(p[:, i], target[:, i], found[i]) == pytest.approx(best) and best > 0
        assert (p[:, i] - found[i]).abs().min() > 1e-3  # rounding decides nothing
    assert found[3] == 0.5  # no row has it
    midway, = MultiLabel(["a"]).fit_thresholds(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [0.0]]))
    assert midway == pytest.approx((1 / (1 + math.exp(-2)) + 1 / (1 + math.e)) / 2)
    same = task.fit_thresholds(torch.full((3, 4), 30.0), torch.eye(4)[:3])  # float32's sigmoid is 1
    assert min(same) >= 0 and max(same) < 1


def test_calibration_of_labels_is_the_temperature_then_the_thresholds():
    """The task scores logits as they are, a student those divided by its temperature: the same answers."""
    random = torch.Generator().manual_seed(1)
    target = (torch.rand(200, 3, generator=random) < 0.3).float()
    logits = 3 * (torch.randn(200, 3, generator=random) + 2 * target - 1.5)
    task = MultiLabel(["a", "b", "c"])
    found = task.calibrate(logits, target)
    raw = judge(task, logits, target)
    assert found.keys() == {"temperature", "thresholds"}
    assert raw["macro_f1"] > judge(ABC, logits, target)["macro_f1"]
    losses = [ABC.hard(logits / found["temperature"] / factor, target).mean().item()
              for factor in (0.9, 1, 1.1)]
    assert min(losses) == losses[1]
    task.thresholds = found["thresholds"]
    after = judge(task, logits / found["temperature"], target)
    assert {name: after[name] for name in ("macro_f1", "micro_f1", "exact")} == {
        name: raw[name] for name in ("macro_f1", "micro_f1", "exact")}
    assert judge(task, logits, target)["loss"] == raw["loss"] and ABC.thresholds is None


@pytest.mark.parametrize(("right", "rows"), [(70, 100), (100, 100)])
def test_the_temperature_of_one_logit_is_known(right, rows):
    """Logit 2 where a share of rows has the label: sigmoid(2 / T) is that share, smoothed by 1 / (N + 2)."""
    s = 1 / (rows + 2)
    share = (1 - s) * right / rows + s / 2
    target = (torch.arange(rows) < right).float()[:, None]
    found = MultiLabel(["a"]).fit_temperature(torch.full((rows, 1), 2.0), target)
    assert found == pytest.approx(2 / math.log(share / (1 - share)), rel=1e-6)


# ---- scores, numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "value"), [
    ("3.8", 3.8), ("-2", -2), ("+.5", 0.5), ("1e3", 1000), ("4.", 4), ("", 0), (" 3 ", 3)])
def test_a_score_is_read_as_a_number(cell, value):
    assert Regression(["score"]).read(cell, "text") == value


@pytest.mark.parametrize("cell", [
    "nan", "inf", "-", "3,8", "three", "1_000", "٣", " ", "1e39", "9" * 400, "0x1", "1 2"])
def test_what_is_not_a_finite_number_is_refused(cell):
    with pytest.raises(ValueError, match=r"not a number|too large"):
        Regression(["score"]).read(cell, "text")
    refused(lambda: Regression.survey(["", ""], "t.tsv"), "^t.tsv: no row has a score")


def fitted(answers, valid=()):
    task = Regression.survey([*answers, *valid], "t.tsv")
    task.fit(Counter(answers), Counter(valid))
    return task


def test_scores_are_standardised_by_the_training_answers():
    task = fitted(["1", "5", "5.0", "2"])
    assert (task.mean, task.deviation) == pytest.approx((3.25, np.std([1, 5, 5, 2])))
    assert task.config == {"mean": task.mean, "deviation": task.deviation} and Regression.deviation == 1
    for answers in ([], ["3"], ["3", "3.0"]):  # none that differ: those of --valid
        assert fitted(answers, ["1", "2"]).config == {"mean": 1.5, "deviation": 0.5}
    refused(lambda: fitted(["0.1"] * 9, ["0.1", "0.10"]), "same score")


def test_both_halves_of_the_loss_of_scores_are_in_deviations():
    """In raw units, so that a target twice as wide does not change alpha's and the rate's meaning."""
    for scale in (1, 100):
        task = fitted([str(scale), str(3 * scale)])  # deviation: scale
        logits, target = scale * torch.tensor([[2.0], [0.5]]), scale * torch.tensor([3.0, 0.5])
        teacher = scale * torch.tensor([[4.0], [1.0]])
        assert task.hard(logits, target).tolist() == [1, 0]
        assert task.soft(logits, teacher).tolist() == [4, 0.25]
        assert task.soft(logits, teacher, None, "kl", 7.0).tolist() == [2, 0.125]
        batch = {"target": target, "known": torch.tensor([True, False]), "teacher_logits": teacher}
        assert distill_loss(task, logits, batch, 0.5).item() == pytest.approx((0.5 * 1 + 0.5 * 4 + 0.25) / 2)


def test_correlations_and_squared_error_by_hand():
    task = Regression(["score"])
    found = scores_of(task, [[1.0], [2.0], [2.0], [9.0]], [1.0, 3.0, 2.0, 4.0])
    x, y = np.array([1, 2, 2, 9]), np.array([1, 3, 2, 4])
    assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5 (times N)
    assert found["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert found["mse"] == pytest.approx((0 + 1 + 0 + 25) / 4)
    far = scores_of(task, [[1e5 + 0.25 * i] for i in range(9)], [float(i) for i in range(9)])
    assert far["pearson"] == pytest.approx(1, abs=1e-6)
    for constant in ([[3.1]] * 3, [[1e7]] * 3):
        found = scores_of(task, constant, [1.0, 2.0, 3.0])
        assert (found["pearson"], found["spearman"]) == (0, 0)  # neither NaN nor rounding


@pytest.mark.optional
def test_correlations_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    x, y = draw(80), draw(80, seed=1).mul(2).round().double()
    x = ((x + y).mul(3).round() / 3).double()  # ties in both
    found = scores_of(Regression(["score"]), x[:, None], y)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)


def test_the_interval_of_a_correlation_is_a_bootstrap_of_its_rows():
    x = draw(300)
    y = 0.6 * x + 0.8 * draw(300, seed=1)
    task = Regression(["score"])
    rows = [task.statistics(values[:, None], y) for values in (x, x + draw(300, seed=2))]
    first, second = bootstrap(task, rows)
    r = np.corrcoef(x, y)[0, 1]
    fisher = [math.tanh(math.atanh(r) + side * 1.96 / math.sqrt(297)) for side in (-1, 1)]
    assert first["pearson"] == pytest.approx(fisher, abs=0.03)
    assert first["spearman"][0] < first["spearman"][1] < 1 and second["difference"][1] < 0


# ---- which task --------------------------------------------------------------------------------------------


def test_the_column_or_the_flag_tells_the_task():
    cells = {"3": "t.tsv:2", "4,5": "t.tsv:3"}
    for column, name, kind, names in (
            ("labels", None, MultiLabel, ["3", "4", "5"]), ("label", None, Classification, ["3", "4,5"]),
            ("stars", None, Classification, ["3", "4,5"]),
            ("stars", "multilabel", MultiLabel, ["3", "4", "5"]),
            ("score", None, Regression, ["score"]), ("label", "regression", Regression, ["score"])):
        task = tasks.make(column, cells, "t.tsv", name=name)
        assert (type(task), task.names) == (kind, names)
    lists = {'["a", "b"]': "t.jsonl:1", "c": "t.jsonl:2"}
    refused(lambda: tasks.make("tags", lists, "t.jsonl"), "^t.jsonl: .*--task multilabel")
    args = SimpleNamespace(text_column="문장", text2_column=None, label_column=None, task="regression")
    assert tasks.columns(args) == ("문장", None, ("score",))
    args.label_column = "stars"
    assert tasks.columns(args) == ("문장", None, "stars")


def test_what_was_made_for_another_task_is_refused():
    stored = "multilabel", ["a", "b"], "m.pt"
    assert isinstance(tasks.make("labels", {}, "t.tsv", stored), MultiLabel)
    for column, name in (("tags", None), ("label", "multilabel"), (None, None)):
        assert isinstance(tasks.make(column, {}, "t.tsv", stored, name), MultiLabel)
    for column, name in (("label", None), ("score", None), ("labels", "regression")):
        refused(lambda column=column, name=name: tasks.make(column, {}, "t.tsv", stored, name),
                r"^m\.pt: .*multilabel.*--task multilabel")


def test_flags_name_every_task():
    assert set(flags.TASKS) == set(tasks.TASKS)
    assert [kind.column for kind in tasks.TASKS.values()] == list(data.examples.ANSWER_COLUMNS)


@pytest.mark.parametrize("logits", [
    [[2.0, -1.0, 0.5], [-1.0, -2.0, -3.0]], [[1.5, 0.2, 0.1], [0.0, 3.0, 1.0]]])
@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "x,y", "c"], ["[a", "b", "c"]])
def test_answers_can_be_read_again(names, logits):
    logits, task = torch.tensor(logits), MultiLabel(names)
    task.thresholds = [0.6, 0.5, 0.7]
    found = tasks.answers(task, logits)
    p = logits.sigmoid()
    given = p > torch.tensor(task.thresholds)
    assert [task.read(cell, "") for cell, _ in found] == given.float().tolist()
    assert [sure for _, sure in found] == pytest.approx(torch.where(given, p, 1 - p).prod(1).tolist())
    score = Regression(["score"])
    assert tasks.answers(score, torch.tensor([[3.25], [-1e-7]])) == [("3.25", None), ("-1e-07", None)]


# ---- a toy task: spans -------------------------------------------------------------------------------------


class Span:
    """An answer is a part of the text, "first:end". Logits (B, L, 2): of its first and its last character."""

    column, per, best, choosers = "answer", "char", "f1", ("f1", "exact")

    def __init__(self, names):
        self.names = names

    def read(self, cell, text):
        if not cell:
            return [0, 0]
        first, end = map(int, cell.split(":"))
        if not 0 <= first < end <= len(text):
            raise ValueError(f"answer {cell} is not inside the text")
        return [first, end - 1]

    def hard(self, logits, target, mask=None):
        log_p = logits.masked_fill(~mask[..., None], -math.inf).log_softmax(1)  # over positions
        return -log_p.gather(1, target[:, None]).sum((1, 2))

    def soft(self, logits, teacher, mask=None, kind="mse", temperature=2.0):
        read = mask & ~teacher.isnan().any(2)  # what the teacher did not read teaches nothing
        if kind == "mse":
            return (teacher - logits).where(read[..., None], 0.0).square().sum((1, 2))
        log_p, log_q = (values.where(read[..., None], -1e9).div(temperature).log_softmax(1)
                        for values in (teacher, logits))
        return temperature**2 * (log_p.exp() * (log_p - log_q)).sum((1, 2))

    def statistics(self, logits, target, mask=None, texts=None):
        rows = []
        found = logits.masked_fill(~mask[..., None], -math.inf).argmax(1).tolist()
        for (start, last), (first, end), text in zip(found, target.tolist(), texts, strict=True):
            mine, truth = text[start : last + 1].split(), text[first : end + 1].split()
            common = sum(min(mine.count(word), truth.count(word)) for word in set(mine))
            rows.append([mine == truth, 2 * common / max(1, len(mine) + len(truth))])
        return torch.tensor(rows, dtype=torch.double)

    def scores(self, means):
        return {"exact": means[..., 0], "f1": means[..., 1]}


TEXTS = ["서울 은 크다", "부산"]
MASK = torch.tensor([[True] * 7, [True] * 2 + [False] * 5])


def test_a_span_is_read_from_the_second_text_of_a_pair():
    task = Span(["start", "last"])
    rows = Examples("x.tsv", ["어디?", "어디?"], TEXTS, ["3:4", ""], None, [2, 3], "answer")
    target, known = rows.targets(task)
    assert target.tolist() == [[3, 3], [0, 0]] and known.tolist() == [True, False]
    rows.answers[1] = "0:3"
    refused(lambda: rows.targets(task), r"^x\.tsv:3: .*0:3")


def test_the_loss_of_spans_ignores_padding_and_what_the_teacher_did_not_read():
    task, logits = Span(["start", "last"]), draw(2, 7, 2).requires_grad_()
    teacher = draw(2, 7, 2, seed=1)
    teacher[0, 5:] = math.nan  # the teacher's text was cut
    teacher[1, 2:] = math.nan  # no text there
    both = {"target": torch.tensor([[0, 1], [0, 0]]), "known": torch.tensor([True, False]), "mask": MASK,
            "teacher_logits": teacher}
    loss = distill_loss(task, logits, both, 0.3)
    hard = sum(F.cross_entropy(logits[0, :, i][None], torch.tensor([i])).item() for i in (0, 1))
    soft = [(teacher[i, :n] - logits[i, :n]).square().sum().item() for i, n in ((0, 5), (1, 2))]
    assert loss.item() == pytest.approx((0.3 * hard + 0.7 * soft[0] + soft[1]) / 2, rel=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all() and (logits.grad[1, 2:] == 0).all() and logits.grad[1, :2].all()
    kl = distill_loss(task, logits, both, 0.0, "kl", 1.5)
    expected = [1.5**2 * F.kl_div((logits[i, :n] / 1.5).log_softmax(0), (teacher[i, :n] / 1.5).log_softmax(0),
                                  log_target=True, reduction="sum").item() for i, n in ((0, 5), (1, 2))]
    assert kl.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    labelled = {name: value[:1] for name, value in both.items()}
    assert distill_loss(task, logits[:1], labelled, 1).item() == pytest.approx(hard, rel=1e-6)


def test_scores_of_spans_need_the_text():
    task, target = Span(["start", "last"]), torch.tensor([[0, 3], [0, 1]])  # 서울 은, 부산
    good, poor = (3 * F.one_hot(torch.tensor(spans), 7).mT.float() for spans in (
        [[0, 3], [0, 1]], [[0, 1], [0, 1]]))  # (2, 7, 2)
    assert judge(task, good, target, MASK, TEXTS)["f1"] == 1
    found = judge(task, poor, target, MASK, TEXTS)
    assert found["exact"] == 0.5 and found["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["loss"] == pytest.approx(task.hard(poor, target, MASK).mean().item())
    rows = [task.statistics(logits.repeat(20, 1, 1), target.repeat(20, 1), MASK.repeat(20, 1), TEXTS * 20)
            for logits in (good, poor)]
    first, second = bootstrap(task, rows)
    assert first["f1"] == (1, 1) and second["exact"][0] < 0.5 < second["exact"][1]
    low, high = second["difference"]  # of f1, the score that chooses
    assert low < -1 / 6 < high < 0


# ---- a toy task: grades ------------------------------------------------------------------------------------


class Ordinal(tasks.Task):
    """Each text has a grade, 1 to C + 1; output k says whether it is above k (Frank & Hall 2001)."""

    column, best, choosers = "grade", "accuracy", ("accuracy",)
    soft, fit_temperature = MultiLabel.soft, MultiLabel.fit_temperature

    @classmethod
    def names_in(cls, cell):
        return []

    @classmethod
    def survey(cls, cells, where):
        highest = max((int(cell) for cell in cells if cell.isdecimal()), default=0)
        if highest < 2:
            raise UserError(f"{where}: no grade is above 1")
        return cls([str(k) for k in range(1, highest)])

    def read(self, cell, text):
        if cell and not (cell.isdecimal() and 1 <= int(cell) <= len(self.names) + 1):
            raise ValueError(f"grade {cell!r} is not a number from 1 to {len(self.names) + 1}; correct it")
        return [float(int(cell or 1) > int(name)) for name in self.names]

    def hard(self, logits, target, mask=None):
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    def statistics(self, logits, target, mask=None, texts=None):
        distance = ((logits > 0).sum(1) - target.sum(1)).abs().double()
        return torch.stack([distance == 0, distance], 1)

    def scores(self, means):
        return {"accuracy": means[..., 0], "distance": means[..., 1]}


def decode_grades(probabilities, names, task, thresholds=None):
    grades = (1 + (probabilities > 0.5).sum(-1)).tolist()
    sure = torch.maximum(probabilities, 1 - probabilities).amin(-1).tolist()
    return [(str(grade), p) for grade, p in zip(grades, sure, strict=True)]


@pytest.fixture
def grades(tmp_path, monkeypatch):
    """The task is known everywhere; train.tsv, valid.tsv, more.tsv (no grades) and a tokenizer are there."""
    monkeypatch.setitem(tasks.TASKS, "ordinal", Ordinal)
    monkeypatch.setitem(student.PROBABILITIES, "ordinal", torch.sigmoid)
    monkeypatch.setattr(data.examples, "ANSWER_COLUMNS", ("label", "grade"))
    monkeypatch.setattr(tasks, "decode", decode_grades)
    monkeypatch.chdir(tmp_path)
    random = torch.Generator().manual_seed(0)
    for name, count in (("train", 240), ("valid", 60), ("more", 80)):
        rows = []
        for i, good in enumerate(torch.randint(0, 4, (count,), generator=random).tolist()):
            rows.append((" ".join([*["최고"] * good, "영화", str(i % 7)]), str(1 + good) if i != 5 else ""))
        rows[5] = rows[5] if name == "train" else rows[4]  # there an answer is unknown
        write_rows(Path(f"{name}.tsv"), rows, "text" if name == "more" else "text\tgrade")
    run("train_tokenizer", "--data train.tsv --vocab-size 60 --min-frequency 1")


CPU = "--device cpu --precision fp32 --max-tokens 48"


def test_a_task_of_ones_own_goes_through_every_script_unchanged(grades, capsys):
    run("finetune_teacher", "--train train.tsv --valid valid.tsv --scratch 1,32,2 --epochs 4 --lr 1e-2 "
        f"--tokenizer tokenizer/vocab_size_60 {CPU}")
    run("dump_logits", f"--teacher teacher/teacher.pt --data train.tsv more.tsv valid.tsv {CPU}")
    assert "accuracy" in capsys.readouterr().out
    run("distill", "--train train.tsv more.tsv --logits logits/train.pt logits/more.pt --valid valid.tsv "
        f"--tokenizer tokenizer/vocab_size_60 --size tiny --epochs 4 --alpha 0.1 1 {CPU}")
    assert Teacher.load("teacher/teacher.pt").task == "ordinal"
    alone = Student.load("students/tiny-v60-alpha1/student.pt")
    assert (alone.task, alone.label_names) == ("ordinal", ["1", "2", "3"])
    p = alone.predict(["최고 최고 최고 영화 1", "영화 1"])
    assert p[0].min() > 0.5 > p[1].max()
    assert "valid_accuracy" in Path("students/summary.tsv").read_text("utf-8")

    capsys.readouterr()
    models = "teacher/teacher.pt students/tiny-v60/student.pt students/tiny-v60-alpha1/student.pt"
    run("evaluate", f"{models} --data valid.tsv --logits logits/valid.pt --errors errors.tsv --json")
    found = json.loads(capsys.readouterr().out)["models"]
    assert found[1]["agreement"] > 0.5 and found[2]["accuracy"] > 0.9
    assert found[0]["interval"][0] < found[0]["accuracy"] < found[0]["interval"][1] <= 1
    assert found[3]["accuracy"] == pytest.approx(found[0]["accuracy"]) and "ece" not in found[1]
    lines = Path("errors.tsv").read_text("utf-8").splitlines()
    assert lines[0].startswith("model\trow\tid\tgrade\tpredicted")
    wrong = [line.split("\t")[3:5] for line in lines[1:] if line.startswith("teacher")]
    assert len(wrong) == round(60 * (1 - found[0]["accuracy"])) and all(one != other for one, other in wrong)
    run("evaluate", f"{models} --data valid.tsv --all --markdown")
    assert "distance" in capsys.readouterr().out
    run("extra.cascade", "escalate students/tiny-v60/student.pt --data valid.tsv --logits logits/valid.pt")
    assert "100.0%" in capsys.readouterr().out


def test_the_flags_of_a_task_are_its_own(grades):
    flags = "--train train.tsv --valid valid.tsv --alpha 1 --tokenizer tokenizer/vocab_size_60 " \
            f"--size tiny --epochs 2 {CPU}"
    refused(lambda: run("distill", f"{flags} --class-weights balanced"), "^--class-weights .*ordinal")
    refused(lambda: run("distill", f"{flags} --best macro_f1"), "^--best macro_f1: .*use accuracy$")
    assert not Path("students").exists()
