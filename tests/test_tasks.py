"""tasks.py by hand; two toy tasks, spans and several labels, show that its interface carries them."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import data.examples
import distill
import dump_logits
import evaluate
import finetune_teacher
import runtime
import student
import tasks
import train_tokenizer
from data.examples import Examples
from extra import cascade
from runtime import UserError
from student import Student
from tasks import Classification, bootstrap, distill_loss, judge
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
    (["1.5", "1.25", "0"], ["0", "1.25", "1.5"]),
    (["0,1", "0"], ["0", "0,1"]),
    (["긍정", "부정", "긍정"], ["긍정", "부정"]),
    (["9" * 19, "1" * 19, "2"], ["1" * 19, "2", "9" * 19]),  # too long for a number
])  # fmt: skip
def test_labels_have_one_order(cells, names):
    assert Classification.survey(cells, "train.tsv").names == names
    assert Classification.survey(reversed(cells), "train.tsv").names == names


@pytest.mark.parametrize(("cells", "found"), [(["x", "x", ""], "'x'"), (["", ""], "no row"), ([], "no row")])
def test_fewer_than_two_labels_are_refused(cells, found):
    with pytest.raises(UserError) as error:
        Classification.survey(cells, "train.tsv")
    assert str(error.value).startswith("train.tsv: ") and found in str(error.value)


def test_a_cell_is_read_as_the_number_of_its_label():
    assert [THREE.read(cell, "text") for cell in ("c", "a", "")] == [2, 0, -1]
    with pytest.raises(ValueError, match=r"'d'.*'a', 'b', 'c'"):
        THREE.read("d", "text")
    with pytest.raises(ValueError, match="1,000 known") as error:
        Classification([str(i) for i in range(1000)]).read("x", "text")
    assert len(str(error.value)) < 100


def test_the_task_is_that_of_the_column_or_of_the_artifact():
    made = tasks.make("label", ["b", "a"], "train.tsv")
    assert (type(made), made.names, tasks.name_of(made)) == (Classification, ["a", "b"], "classification")
    assert tasks.make("gold", ["b", "a"], "train.tsv").names == ["a", "b"]  # a column of any other name
    assert tasks.make(None, ["b", "a"], "train.tsv").names == ["a", "b"]
    assert tasks.make("label", [], "train.tsv", ("classification", ["y", "x"], "t.pt")).names == ["y", "x"]
    assert tasks.of_name("classification", ["y", "x"], "t.pt").names == ["y", "x"]
    for call in (lambda: tasks.of_name("ranking", ["y"], "t.pt"),
                 lambda: tasks.make("label", ["a", "b"], "train.tsv", ("ranking", ["y"], "t.pt"))):
        with pytest.raises(UserError, match=r"^t\.pt: .*ranking.*classification"):
            call()


# ---- the loss ----------------------------------------------------------------------------------------------


def test_hard_is_cross_entropy_of_each_row():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    loss = THREE.hard(logits, torch.tensor([1, 2]))
    total = math.exp(2) + 1 + math.e
    assert loss.tolist() == pytest.approx([-math.log(1 / total), math.log(3)], rel=1e-6)
    assert THREE.hard(logits, torch.tensor([-1, 2])).isfinite().all()  # an unknown answer


def test_mse_is_the_squared_distance_of_the_logits():
    found = TWO.soft(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    assert found.tolist() == [4 + 1, 0 + 4]


def test_kl_is_t_squared_times_kl():
    """Two classes, T = 2, with math alone: teacher (2, 0), student (0, 1)."""
    p = 1 / (1 + math.exp(-1.0))  # softmax((2, 0) / 2)[0]
    q = 1 / (1 + math.exp(0.5))  # softmax((0, 1) / 2)[0]
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = TWO.soft(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), None, "kl", 2.0)
    assert found.item() == pytest.approx(4 * kl, rel=1e-6)


def test_kl_keeps_the_scale_of_its_gradient_at_high_temperature():
    """Hinton et al. (2015), section 2.1: for T → ∞ and centred logits, T² times dKL/dz → (z − v) / C."""
    logits = torch.tensor([[0.5, -0.5, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    THREE.soft(logits, teacher, None, "kl", 1000.0).sum().backward()
    torch.testing.assert_close(logits.grad, (logits - teacher).detach() / 3, rtol=0, atol=1e-3)


def test_a_perfect_copy_has_no_soft_loss():
    logits = draw(5, 3)
    assert THREE.soft(logits + 7, logits, None, "kl", 3.0).abs().max() < 1e-5  # blind to a shift
    assert THREE.soft(logits, logits).sum() == 0


def batch(target, known, teacher=None):
    found = {"target": torch.tensor(target), "known": torch.tensor(known)}
    return found if teacher is None else found | {"teacher_logits": teacher}


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_alpha_mixes_and_an_unknown_row_has_the_soft_part_alone(kind):
    logits, teacher = draw(3, 3), draw(3, 3, seed=1)
    found = distill_loss(THREE, logits, batch([2, -1, 0], [True, False, True], teacher), 0.25, kind, 1.5)
    hard = [F.cross_entropy(logits[i], torch.tensor(t)).item() for i, t in ((0, 2), (2, 0))]
    soft = THREE.soft(logits, teacher, None, kind, 1.5).tolist()
    rows = [0.25 * hard[0] + 0.75 * soft[0], soft[1], 0.25 * hard[1] + 0.75 * soft[2]]
    assert found.item() == pytest.approx(sum(rows) / 3, rel=1e-6)
    alone = distill_loss(THREE, logits, batch([2, 1, 0], [True] * 3, teacher), 0.0, kind, 1.5)
    assert alone.item() == pytest.approx(sum(soft) / 3, rel=1e-6)


def test_alpha_1_is_the_labels_alone_and_needs_no_teacher():
    logits = draw(4, 3)
    expected = F.cross_entropy(logits, torch.tensor([0, 2, 1, 1])).item()
    for teacher in (None, torch.full((4, 3), math.nan)):
        found = distill_loss(THREE, logits, batch([0, 2, 1, 1], [True] * 4, teacher), 1)
        assert found.item() == pytest.approx(expected, rel=1e-6)


# ---- scores ------------------------------------------------------------------------------------------------


def hot(answers, classes):
    return 5 * F.one_hot(torch.tensor(answers), classes).float()


CONFUSIONS = [  # predicted, labels, classes, macro-F1: 2 hits / (predicted + labelled), averaged
    ([0, 1, 1, 0], [0, 1, 1, 0], 2, 1.0),
    ([0, 1, 1, 1, 0], [0, 1, 1, 0, 1], 2, (2 / 4 + 4 / 6) / 2),
    ([1, 1, 1, 1], [0, 1, 1, 1], 2, (0 + 6 / 7) / 2),  # 0 is never predicted
    ([0, 0, 1, 1], [0, 1, 1, 0], 3, (1 / 2 + 1 / 2) / 2),  # 2 neither occurs nor is predicted: left out
    ([2, 0, 0], [0, 0, 1], 3, (2 / 4 + 0 + 0) / 3),  # 2 is predicted only, 1 occurs only
    ([1, 1, 1], [1, 1, 1], 5, 1.0),
]


@pytest.mark.parametrize(("predicted", "labels", "classes", "f1"), CONFUSIONS)
def test_accuracy_and_macro_f1_by_hand(predicted, labels, classes, f1):
    found = scores_of(Classification(list("abcde"[:classes])), hot(predicted, classes), labels)
    right = sum(p == label for p, label in zip(predicted, labels, strict=True))
    assert found["accuracy"] == pytest.approx(right / len(labels), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(f1, abs=1e-12)


@pytest.mark.optional
@pytest.mark.parametrize("seed", range(3))
def test_macro_f1_is_that_of_scikit_learn(seed):
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    predicted, labels = torch.randint(1, 6, (2, 9), generator=torch.Generator().manual_seed(seed)).tolist()
    found = scores_of(Classification(list("abcdef")), hot(predicted, 6), labels)
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)


def test_log_loss_by_hand():
    found = scores_of(TWO, [[1.0, 0.0], [0.0, 3.0], [500.0, 0.0]], [0, 0, 1])
    assert found["log_loss"] == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3)) - math.log(1e-15)) / 3, rel=1e-9)


@pytest.mark.parametrize(("confidences", "right", "bins", "expected"), [
    ([1.0, 1.0], [1, 1], 15, 0.0),
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
    assert found["loss"] == pytest.approx(found["log_loss"], rel=1e-5) and THREE.best in found


# ---- calibration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "rows"), [(70, 100), (90, 100), (99, 100), (100, 100), (3, 3)])
def test_the_temperature_of_one_confidence_is_known(right, rows):
    """Logits (2, 0) of which a share is right: softmax(2 / T) is that share, smoothed by 1 / (N + 2)."""
    logits = torch.tensor([[2.0, 0.0]]).expand(rows, 2)
    target = torch.tensor([0] * right + [1] * (rows - right))
    s = 1 / (rows + 2)
    share = (1 - s) * right / rows + s / 2
    assert TWO.temperature(logits, target) == pytest.approx(2 / math.log(share / (1 - share)), rel=1e-6)


def test_the_temperature_has_the_least_log_loss_and_its_limits():
    target = torch.randint(3, (4000,), generator=torch.Generator().manual_seed(0))
    logits = (hot(target.tolist(), 3) / 5 + draw(4000, 3)) * 4  # four times too certain
    T = THREE.temperature(logits, target)
    losses = {factor: F.cross_entropy(logits / (T * factor), target).item() for factor in (0.95, 1, 1.05)}
    assert losses[1] == min(losses.values()) and 3 < T < 5
    assert THREE.temperature(logits / 3, target) == pytest.approx(T / 3, rel=1e-4)
    wrong = torch.tensor([[9.0, 0.0]] * 40), torch.ones(40).long()
    assert TWO.temperature(*wrong) == pytest.approx(20, rel=1e-3)


# ---- intervals ---------------------------------------------------------------------------------------------


def rights(count, rows):
    """Statistics of a classifier that has the first `count` of so many rows right."""
    target = torch.arange(rows) % 2
    return TWO.statistics(hot([int(t) if i < count else 1 - int(t) for i, t in enumerate(target)], 2), target)


def binomial_quantile(n, p, share):
    total = 0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= share:
            return k / n


@pytest.mark.parametrize("count", [160, 100, 196])
def test_the_interval_of_an_accuracy_is_that_of_the_binomial(count):
    low, high = bootstrap(TWO, [rights(count, 200)], 4000)[0]["accuracy"]
    assert low == pytest.approx(binomial_quantile(200, count / 200, 0.025), abs=0.0076)
    assert high == pytest.approx(binomial_quantile(200, count / 200, 0.975), abs=0.0076)


def test_a_model_does_not_differ_from_itself_and_equal_rows_have_no_spread():
    one, two = bootstrap(TWO, [rights(70, 100), rights(70, 100)])
    assert one == two and one["difference"] == two["difference"] == (0, 0)
    assert bootstrap(TWO, [rights(50, 50)])[0]["accuracy"] == (1, 1)


def test_differences_are_paired():
    """Right on 120 and on 100 rows of 400, all of the 100 among the 120: only 20 rows decide."""
    first, second = bootstrap(TWO, [rights(120, 400), rights(100, 400)], 4000)
    assert first["difference"] == (0, 0)
    low, high = second["difference"]
    spread = 1.96 * math.sqrt(0.05 * 0.95 / 400)  # of the share of those 20
    assert (low, high) == pytest.approx((-0.05 - spread, -0.05 + spread), abs=0.004)
    assert high - low < 0.6 * (second["accuracy"][1] - second["accuracy"][0])


def test_intervals_are_seeded_and_disturb_no_other_draw():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = bootstrap(THREE, [THREE.statistics(draw(40, 3), torch.arange(40) % 3)], 200)
    assert torch.equal(torch.rand(3), expected)
    assert one == bootstrap(THREE, [THREE.statistics(draw(40, 3), torch.arange(40) % 3)], 200)
    for name, (low, high) in one[0].items():
        value = scores_of(THREE, draw(40, 3), torch.arange(40) % 3).get(name, 0)
        assert low <= value <= high or name == "ece", name  # resampled calibration errors are larger


# ---- a toy task: spans -------------------------------------------------------------------------------------


class Span:
    """An answer is a part of the text, "first:end". Logits (B, L, 2): of its first and its last character."""

    column, per, best = "answer", "char", "f1"

    def __init__(self, names):
        self.names = names

    @classmethod
    def survey(cls, cells, where):
        return cls(["start", "last"])

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


def pointing(*spans):
    """(B, 7, 2) logits that point at these first and last characters."""
    logits = torch.zeros(len(spans), 7, 2)
    for row, (first, last) in zip(logits, spans, strict=True):
        row[first, 0] = row[last, 1] = 3.0
    return logits


def test_a_span_is_read_from_the_second_text_of_a_pair():
    task = tasks.make("answer", ["0:2"], "x.tsv") if "span" in tasks.TASKS else Span.survey([], "x.tsv")
    rows = Examples("x.tsv", ["어디?", "어디?"], TEXTS, ["3:4", ""], None, [2, 3], "answer")
    target, known = rows.targets(task)
    assert target.tolist() == [[3, 3], [0, 0]] and known.tolist() == [True, False]
    rows.answers[1] = "0:3"
    with pytest.raises(UserError, match=r"^x\.tsv:3: .*0:3"):
        rows.targets(task)


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
    good, poor = pointing((0, 3), (0, 1)), pointing((0, 1), (0, 1))
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


# ---- a toy task: several labels ----------------------------------------------------------------------------


class MultiLabel:
    """A text has any number of labels: "a,b", or "-" for none."""

    column, per, best = "labels", "text", "macro_f1"

    def __init__(self, names):
        self.names = names

    @classmethod
    def survey(cls, cells, where):
        return cls(sorted({name for cell in cells if cell not in ("", "-") for name in cell.split(",")}))

    def read(self, cell, text):
        chosen = set() if cell in ("", "-") else set(cell.split(","))
        if chosen - set(self.names):
            raise ValueError(f"labels {cell!r}: not all known; correct it")
        return [float(name in chosen) for name in self.names]

    def hard(self, logits, target, mask=None):
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)

    def soft(self, logits, teacher, mask=None, kind="mse", temperature=2.0):
        if kind == "mse":
            return (teacher - logits).square().sum(1)
        p = (teacher / temperature).sigmoid()
        return temperature**2 * (self.hard(logits / temperature, p) - self.hard(teacher / temperature, p))

    def statistics(self, logits, target, mask=None, texts=None):
        guess, truth = logits > 0, target > 0.5
        exact = (guess == truth).all(1, keepdim=True)
        return torch.cat([exact, guess & truth, guess, truth], 1).double()

    def scores(self, means):
        hits, guess, truth = means[..., 1:].chunk(3, -1)
        return {"macro_f1": (2 * hits / (guess + truth).clamp(min=1e-9)).mean(-1), "exact": means[..., 0]}

    def temperature(self, logits, target):
        return min((0.5, 1.0, 1.5, 2.0), key=lambda T: self.hard(logits / T, target).sum().item())


def decode_labels(probabilities, names, task):
    return [(",".join(name for name, p in zip(names, row, strict=True) if p > 0.5) or "-",
             min(max(p, 1 - p) for p in row)) for row in probabilities.tolist()]


@pytest.fixture
def several(tmp_path, monkeypatch):
    """The task is known everywhere; train.tsv, valid.tsv and more.tsv (no labels) are in the folder."""
    monkeypatch.setitem(tasks.TASKS, "multilabel", MultiLabel)
    monkeypatch.setitem(student.PROBABILITIES, "multilabel", torch.sigmoid)
    monkeypatch.setattr(data.examples, "ANSWER_COLUMNS", ("label", "labels"))
    for module in (student, evaluate, cascade):
        monkeypatch.setattr(module, "decode", decode_labels)
    monkeypatch.chdir(tmp_path)
    words = {"욕": "바보", "칭찬": "최고", "": "영화"}
    random = torch.Generator().manual_seed(0)

    def row(i):
        names = [name for name in words if torch.rand(1, generator=random) < 0.5]
        text = " ".join(words[name] for name in names) or "그냥"
        return f"{text} {i % 7}", ",".join(filter(None, names)) or "-"

    for name, count in (("train", 240), ("valid", 60), ("more", 80)):
        rows = [row(i) for i in range(count)]
        if name == "train":
            rows[5] = rows[5][0], ""  # unknown
        lines = ["text\tlabels", *map("\t".join, rows)] if name != "more" else ["text", *(r[0] for r in rows)]
        Path(f"{name}.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return tmp_path


def call(script, line):
    script.main(script.parse_args(line.split()))


TOKENIZER = "--data train.tsv --vocab-size 60 --min-frequency 1"
CPU = "--device cpu --precision fp32 --max-tokens 48"


def test_several_labels_go_through_every_script_unchanged(several, capsys):
    call(train_tokenizer, TOKENIZER)
    call(finetune_teacher, "--train train.tsv --valid valid.tsv --scratch 1,32,2 --epochs 4 --lr 1e-2 "
         f"--tokenizer tokenizer/vocab_size_60 {CPU}")
    call(dump_logits, f"--teacher teacher/teacher.pt --data train.tsv more.tsv {CPU}")
    assert "macro_f1" in capsys.readouterr().out
    call(distill, "--train train.tsv more.tsv --logits logits/train.pt logits/more.pt --valid valid.tsv "
         f"--tokenizer tokenizer/vocab_size_60 --size tiny --epochs 4 --alpha 0.1 1 {CPU}")
    assert Teacher.load("teacher/teacher.pt").task == "multilabel"
    small = Student.load("students/tiny-v60-alpha1/student.pt")
    assert (small.task, small.label_names) == ("multilabel", ["욕", "칭찬"])
    p = small.predict(["바보 최고", "그냥"])
    torch.testing.assert_close(p, small.logits(["바보 최고", "그냥"]).sigmoid())
    assert p[0].min() > 0.5 > p[1].max()  # probabilities of one row are independent
    header, *lines = Path("students/summary.tsv").read_text("utf-8").splitlines()
    assert "valid_macro_f1" in header.split("\t") and len(lines) == 2

    capsys.readouterr()
    models = "teacher/teacher.pt students/tiny-v60/student.pt students/tiny-v60-alpha1/student.pt"
    call(evaluate, f"{models} --data valid.tsv --errors errors.tsv --json")
    found = json.loads(capsys.readouterr().out)["models"]
    assert found[0]["macro_f1"] > 0.6 and found[1]["agreement"] > 0.8 and found[2]["macro_f1"] > 0.95
    assert found[0]["interval"][0] < found[0]["macro_f1"] < found[0]["interval"][1] < 1
    assert "ece" not in found[0] and "difference" not in found[0] and len(found[1]["difference"]) == 3
    assert Path("errors.tsv").read_text("utf-8").startswith("model\trow\tid\tlabels\tpredicted")
    call(evaluate, f"{models} --data valid.tsv --all --markdown")
    assert "exact" in capsys.readouterr().out

    call(dump_logits, f"--teacher teacher/teacher.pt --data valid.tsv {CPU}")
    capsys.readouterr()
    call(evaluate, "--data valid.tsv --logits logits/valid.pt --json")
    cached, = json.loads(capsys.readouterr().out)["models"]
    assert cached["macro_f1"] == pytest.approx(found[0]["macro_f1"])
    call(cascade, "escalate students/tiny-v60/student.pt --data valid.tsv --logits logits/valid.pt --json")
    assert len(json.loads(capsys.readouterr().out)["models"][0]["curve"]) == 11


def test_files_of_another_task_are_refused(several, capsys):
    """Though the labels have the same names."""
    call(train_tokenizer, TOKENIZER)
    tokenizer = distill.read_tokenizer("tokenizer/vocab_size_60")
    for task in ("classification", "multilabel"):
        config = student.StudentConfig(tokenizer.get_vocab_size(), 2, 4, 4)
        Student(config, tokenizer, ["욕", "칭찬"], task).save(f"{task}.pt")
        call(dump_logits, f"--teacher {task}.pt --data more.tsv --output-dir {task} {CPU}")
    with pytest.raises(UserError, match=r"^classification\.pt: "):
        call(evaluate, "multilabel.pt classification.pt --data valid.tsv")
    Path("more.tsv").write_text(Path("more.tsv").read_text("utf-8").replace("text\n", "text\tlabels\n", 1)
                                .replace("\n", "\t-\n").replace("labels\t-\n", "labels\n", 1), "utf-8")
    with pytest.raises(UserError, match=r"^classification/more\.pt: "):
        call(evaluate, "multilabel.pt --data more.tsv --logits classification/more.pt")
    with pytest.raises(UserError, match=r"^classification\.pt: "):
        call(cascade, "escalate classification.pt --data more.tsv --logits multilabel/more.pt")
    Path("valid.tsv").write_text("text\tlabels\n바보\t욕\n바보\t욕,욕설\n", "utf-8")
    with pytest.raises(SystemExit) as exit_:
        runtime.main(evaluate.main, evaluate.parse_args(["multilabel.pt", "--data", "valid.tsv"]))
    assert exit_.value.code == 2 and "error: valid.tsv:3: " in capsys.readouterr().err
