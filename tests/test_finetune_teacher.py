"""finetune_teacher.py: rates, steps, the best epoch, published heads, logits of others."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CPU,
    LABELLED,
    TAUGHT,
    TEACHER,
    equal,
    log_lines,
    publish,
    read,
    refused,
    reviews,
    run,
    snapshot,
    write_rows,
)

import finetune_teacher
from data.examples import read_examples
from teacher import Teacher

NEW = f"{TEACHER} --epochs 2 --output-dir out"  # on 120 labelled rows: 3 steps or so an epoch


def finetune(flags: str, *more) -> None:
    run("finetune_teacher", flags, *more)


def targets(examples, names=("0", "1")):
    return torch.tensor([names.index(answer) for answer in examples.answers])


# ---- rates and steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_decay, rates", [
    (1.0, {"head": 0.8, "layers.1": 0.8, "layers.0": 0.8, "embedding": 0.8}),
    (0.5, {"head": 0.8, "layers.1": 0.4, "layers.0": 0.2, "embedding": 0.1}),
])
def test_the_rate_falls_from_layer_to_layer_and_matrices_alone_decay(kit, layer_decay, rates):
    config = Teacher.load(kit / "teacher/teacher.pt").config
    config.num_layers, config.family, config.embedding_size = 2, "electra", 8
    teacher = Teacher(config, Teacher.load(kit / "teacher/teacher.pt").tokenizer, ["0", "1"], 9)
    names = {id(parameter): name for name, parameter in teacher.named_parameters()}
    seen = {}
    for group in finetune_teacher.parameter_groups(teacher, 0.8, layer_decay, 0.03):
        assert group["lr"] == group["peak"]
        seen |= {names[id(parameter)]: (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    assert len(seen) == len(names)
    for name, found in seen.items():
        rate = next(rate for part, rate in rates.items() if part in name)
        assert found == pytest.approx((rate, 0.0 if name.endswith("bias") or "norm" in name else 0.03)), name


def test_every_step_has_its_share_of_the_peak_and_no_larger_gradient(here, monkeypatch):
    """The rate is that at the middle of the step's rows: a quarter of all rows to rise in."""
    steps, sizes, grouped = [], [], finetune_teacher.grouped

    class Recorder(torch.optim.AdamW):
        def step(self):
            groups = self.param_groups
            norm = torch.cat([p.grad.flatten() for group in groups for p in group["params"]]).norm().item()
            steps.append(([group["lr"] / group["peak"] for group in groups], norm))
            super().step()

    def counted(*args):
        for group in grouped(*args):
            sizes.append(sum(len(rows) for _, rows in group))
            yield group

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    monkeypatch.setattr(finetune_teacher, "grouped", counted)
    finetune(f"{LABELLED} {NEW} --warmup 0.25 --layer-decay 0.5 --accumulate 2 --max-tokens 99 --clip 0.01")
    assert sum(sizes) == 240 and len(set(sizes)) > 1 and len(steps) == len(sizes) > 8
    for i, (shares, norm) in enumerate(steps):
        done = (sum(sizes[:i]) + sizes[i] / 2) / 240
        assert shares == pytest.approx([min(done / 0.25, (1 - done) / 0.75)] * len(shares), rel=1e-6)
        assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("taught", [LABELLED, TAUGHT])
def test_accumulated_batches_are_one_larger_batch(here, taught):
    """Without dropout; batches of unequal size count by their rows."""
    publish(Teacher.load("teacher/teacher.pt"), "published")
    flags = f"{taught} --checkpoint published --epochs 3 --lr 1e-3 --clip 0.5 {CPU} --output-dir"
    finetune(f"{flags} one --max-tokens 99999")
    finetune(f"{flags} many --max-tokens 200 --accumulate 99")
    logits, texts = [], read_examples("valid.tsv").texts  # biases of keys have no gradient but rounding
    for name in ("one", "many"):
        teacher = Teacher.load("teacher/teacher.pt")
        teacher.load_state_dict(read(f"{name}/last.pt")["weights"])
        logits.append(teacher.logits(texts))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    losses = [[line["train_loss"] for line in log_lines(name)[1:]] for name in ("one", "many")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(set(losses[0])) == 3


# ---- the best epoch ----------------------------------------------------------------------------------------


def test_teacher_pt_is_the_best_epoch_on_validation(here):
    """Labels of validation that are the wrong way round: the more it learns the worse it is."""
    wrong = write_rows(here / "wrong.tsv", [(text, str(1 - int(label))) for text, label in reviews(40, 2)])
    finetune(f"--train train.tsv --valid {wrong} {TEACHER} --output-dir out")
    lines = log_lines("out")[1:]
    accuracies = [line["valid_accuracy"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, 9)) and accuracies[-1] < 0.3 < max(accuracies)
    best, last = read("out/teacher.pt"), read("out/last.pt")
    assert best["epoch"] == 1 + accuracies.index(max(accuracies)) < 8
    assert best["scores"] == last["at"]["best"] and best["scores"]["epoch"] == best["epoch"]
    assert last["at"]["epoch"] == 8 and last["at"]["finished"] is True
    teacher, valid = Teacher.load("out/teacher.pt"), read_examples(wrong)
    assert (teacher.task, teacher.label_names) == ("classification", ["0", "1"])
    for weights, line in ((best["weights"], lines[best["epoch"] - 1]), (last["weights"], lines[-1])):
        teacher.load_state_dict(weights)
        logits = teacher.logits(valid.texts)
        right = (logits.argmax(1) == targets(valid)).sum().item()
        assert line["valid_accuracy"] == pytest.approx(right / 40)
        assert line["valid_loss"] == pytest.approx(F.cross_entropy(logits, targets(valid)).item(), rel=1e-4)


def test_rows_without_label_are_left_out(here):
    rows = [("라벨이 없는 아주 긴 글 " * 5, "")]
    for i, row in enumerate(reviews(120, 0)):
        rows += [row] if i % 3 else [row, ("모르겠다", "")]
    write_rows(here / "some.tsv", rows)
    finetune(f"{LABELLED} {NEW}")
    finetune(f"--train some.tsv --valid valid.tsv {NEW} --output-dir some")
    assert equal(*(read(f"{name}/last.pt")["weights"] for name in ("out", "some")))
    assert log_lines("out")[-1]["train_loss"] == log_lines("some")[-1]["train_loss"]


def test_balanced_weights_follow_the_order_of_a_published_head(here):
    write_rows(here / "train.tsv", [(text, "01"[i % 10 == 0]) for i, (text, _) in enumerate(reviews(60, 5))])
    publish(Teacher.load("teacher/teacher.pt"), "published", id2label={"0": "1", "1": "0"})
    finetune(f"{LABELLED} --checkpoint published --epochs 1 --lr 1e-30 --max-tokens 99999 "
             f"--class-weights balanced --output-dir out {CPU}")
    train = read_examples("train.tsv")
    logits, target = Teacher.load("teacher/teacher.pt").logits(train.texts).flip(1), targets(train)
    rows = F.cross_entropy(logits, target, reduction="none") * torch.tensor([60 / 108, 60 / 12])[target]
    assert Teacher.load("out/teacher.pt").label_names == ["1", "0"]
    assert log_lines("out")[1]["train_loss"] == pytest.approx(rows.mean().item(), rel=1e-5)


def test_without_a_checkpoint_the_shipped_encoder_is_fine_tuned(here, monkeypatch, capsys):
    assert finetune_teacher.ENCODER.parts[-2:] == ("models", "encoder")
    publish(Teacher.load("teacher/teacher.pt"), "published")
    monkeypatch.setattr(finetune_teacher, "ENCODER", Path("published"))
    flags = f"{LABELLED} {CPU} --epochs 1 --output-dir"
    finetune(f"{flags} out")
    finetune(f"{flags} named --checkpoint published --lr 3e-4")
    finetune(f"{flags} slower --lr 5e-5")
    weights = {name: read(f"{name}/teacher.pt")["weights"] for name in ("out", "named", "slower")}
    assert equal(weights["out"], weights["named"]) and not equal(weights["out"], weights["slower"])
    monkeypatch.setattr(finetune_teacher, "ENCODER", Path("absent"))
    with pytest.raises(SystemExit) as stop:
        finetune(f"{flags} none")
    assert stop.value.code == 2 and "absent" in capsys.readouterr().err


@pytest.mark.parametrize("width, rate", [(256, 3e-4), (264, 5e-5)])
def test_the_default_rate_follows_the_width(here, width, rate):
    finetune(f"{LABELLED} {CPU} --epochs 1 --output-dir out --tokenizer tokenizer/vocab_size_3000 "
             f"--scratch 1,{width},4")
    assert read("out/teacher.pt")["made_by"]["arguments"]["lr"] == rate


@pytest.mark.parametrize("few, flags, expected", [
    (121, "", (6, 1024)), (120, "", (3, 3072)), (121, "--epochs 2 --max-tokens 99", (2, 99))])
def test_fewer_rows_take_more_and_smaller_steps(here, monkeypatch, few, flags, expected):
    monkeypatch.setattr(finetune_teacher, "FEW", few)  # train.tsv has 120 rows
    finetune(f"{LABELLED} --scratch 1,16,2 --tokenizer tokenizer/vocab_size_3000 {CPU} --output-dir out "
             f"{flags}")
    made_by = read("out/teacher.pt")["made_by"]["arguments"]
    assert (made_by["epochs"], made_by["max_tokens"]) == expected


# ---- published heads and logits of others ------------------------------------------------------------------


@pytest.fixture
def published(here):
    """published/ has the kit's teacher with its classes in the order 1, 0."""
    publish(Teacher.load("teacher/teacher.pt"), "published", id2label={"0": "1", "1": "0"})
    return here


def test_no_epochs_keep_the_head_of_a_published_checkpoint(published, capsys):
    flags = f"{LABELLED} --checkpoint published --epochs 0 {CPU} --output-dir out"
    finetune(flags)
    teacher, valid = Teacher.load("out/teacher.pt"), read_examples("valid.tsv")
    expected = Teacher.load("teacher/teacher.pt").logits(valid.texts)
    torch.testing.assert_close(teacher.logits(valid.texts), expected)
    assert teacher.label_names == ["1", "0"]
    accuracy = (expected.argmax(1) == targets(valid, ["1", "0"])).float().mean().item()
    assert read("out/teacher.pt")["scores"]["valid_accuracy"] == pytest.approx(accuracy)
    before = snapshot("out")
    finetune(flags)
    assert "finished already" in capsys.readouterr().out and snapshot("out") == before
    refused(lambda: finetune(f"{LABELLED} {NEW} --epochs 0"), "--epochs 0")


@pytest.mark.parametrize("alpha", [None, 0, 0.4, 1])
def test_a_teacher_learns_logits_of_others_as_a_student_does(published, alpha):
    """The loss of the one step of an epoch by hand: squared distance of the logits, and `alpha` of
    cross-entropy where there is a label. 1: the labels alone. The head's order of classes is another."""
    given = "" if alpha is None else f"--alpha {alpha}"
    finetune(f"{TAUGHT} --checkpoint published --epochs 1 --lr 1e-30 --max-tokens 99999 {CPU} {given} "
             f"--output-dir out")
    alpha = 0.1 if alpha is None else alpha
    files = read_examples("train.tsv"), read_examples("unlabeled.tsv")
    found = Teacher.load("teacher/teacher.pt").logits(files[0].texts + files[1].texts)  # columns 1, 0
    logits = torch.cat([read(f"logits/{name}.pt")["logits"] for name in ("train", "unlabeled")])
    soft = (found.flip(1) - logits).square().sum(1)
    hard = F.cross_entropy(found[:120].flip(1), targets(files[0]), reduction="none")
    expected = ((alpha * hard + (1 - alpha) * soft[:120]).sum() + soft[120:].sum()) / 200
    expected = hard.mean() if alpha == 1 else expected
    assert log_lines("out")[1]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert Teacher.load("out/teacher.pt").label_names == ["1", "0"]


def test_the_order_of_classes_and_the_logits_are_compared_when_a_run_is_repeated(published):
    flags = f"{TAUGHT} --checkpoint published --epochs 1 {CPU} --output-dir out"
    finetune(flags)
    finetune(flags)
    publish(Teacher.load("teacher/teacher.pt"), "published")
    refused(lambda: finetune(flags), "out/last.pt", "the names of the labels")
    torch.save(torch.zeros(80, 2), "bare.pt")
    refused(lambda: finetune(f"{flags} --logits logits/train.pt bare.pt"), "out/last.pt", "--logits")
