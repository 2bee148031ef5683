"""distill.py: students follow their teacher, the best epoch, embeddings, the grid, running again."""

import contextlib
import fcntl
import importlib
import io
import math
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CPU,
    LABELLED,
    STUDENT,
    TAUGHT,
    TEACHER,
    Killed,
    assert_same_run,
    die_after,
    equal,
    interrupted,
    log_lines,
    read,
    refused,
    reviews,
    run,
    run_printed,
    snapshot,
    write_rows,
)

import distill
import finetune_teacher
import runtime
import tasks
from data import batches
from data.examples import read_examples
from runtime import UserError
from student import HEADS, POOLINGS, SIZES, Student, StudentError
from teacher import Teacher, load_checkpoint

ALONE = f"{LABELLED} --alpha 1 {STUDENT}"
QUICK = f"{STUDENT} --epochs 1 --output-dir out"


def train(flags: str, *more) -> None:
    run("distill", flags, *more)


def targets(name="valid.tsv"):
    return torch.tensor([int(answer) for answer in read_examples(name).answers])


# ---- the method --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["one window", "windows"])
def test_a_student_learns_its_teacher_even_against_the_labels(here, request, rows):
    """Logits that invert the labels: with alpha 0 the student follows the teacher, with alpha 1 the labels.
    Validation would keep the student that resists, so the last epoch is read from last.pt."""
    if rows == "windows":
        request.getfixturevalue("windows")
    torch.save(6.0 * F.one_hot(1 - targets("train.tsv"), 2) - 3, "wrong.pt")
    train(f"{LABELLED} --logits wrong.pt {STUDENT} --alpha 0 1 --lr 0.02 --epochs 12 --output-dir out")
    for alpha, low, high in ((0, 0.0, 0.1), (1, 0.9, 1.0)):
        student = Student.load(f"out/tiny-alpha{alpha}-lr0.02/student.pt")
        student.load_state_dict(read(f"out/tiny-alpha{alpha}-lr0.02/last.pt")["weights"])
        right = student.predict(read_examples("train.tsv").texts).argmax(1) == targets("train.tsv")
        assert low <= right.double().mean() <= high


def test_every_setting_reaches_its_place(here, monkeypatch):
    losses, orders, seeds = set(), [], []
    loss, order, seed = tasks.distill_loss, batches.token_batches, runtime.seed_everything
    monkeypatch.setattr(tasks, "distill_loss", lambda *args: losses.add(args[3:]) or loss(*args))
    monkeypatch.setattr(batches, "token_batches", lambda *args: orders.append(args[1:]) or order(*args))
    monkeypatch.setattr(runtime, "seed_everything", lambda *args: seeds.append(args[1:]) or seed(*args))
    train(f"{TAUGHT} {STUDENT} --loss kl --alpha 0.25 --temperature 3 --seed 7 --pooling max --head relu "
          f"--dropout 0.3 --num-layers 2 --embedding-dim 5 --hidden-dim 6 --max-length 9")
    assert losses == {(0.25, "kl", 3.0)}
    # A new order every epoch (seed, epoch, window); validation in order, in batches four times as large.
    assert orders == [call for epoch in range(3) for call in ((256, (7, epoch, 0)), (1024,))]
    steps = (len(seeds) - 1) // 3  # of an epoch
    assert steps > 1 and seeds[0] == (7,)  # the weights; then each step of rank 0 its own dropout
    assert seeds[1:] == [(7, epoch, step, 0) for epoch in range(3) for step in range(steps)]
    [folder] = [path for path in Path("students").iterdir() if path.name not in ("tiny", "summary.tsv")]
    assert folder.name == "tiny-e5-h6-l2-d0.3-max-relu-kl-alpha0.25-T3-seed7"
    config = Student.load(folder / "student.pt").config
    assert (config.pooling, config.head, config.dropout, config.num_layers) == ("max", "relu", 0.3, 2)
    assert (config.embedding_dim, config.hidden_dim, config.max_length) == (5, 6, 9)


def test_both_scripts_train_with_the_loss_of_tasks_py(here, monkeypatch):
    calls, loss = [], tasks.distill_loss
    monkeypatch.setattr(tasks, "distill_loss", lambda *args: calls.append(args[3:]) or 0.0 * loss(*args))
    train(f"{TAUGHT} {QUICK} --weight-decay 0")
    count = len(calls)
    run("finetune_teacher", f"{TAUGHT} --scratch 1,16,2 --tokenizer tokenizer/vocab_size_3000 --epochs 1 "
                            f"--alpha 0.3 --output-dir t {CPU}")
    assert count and set(calls[:count]) == {(0.1, "mse", 2.0)} and set(calls[count:]) == {(0.3,)}
    assert log_lines("out/tiny")[1]["train_loss"] == log_lines("t")[1]["train_loss"] == 0


def test_the_rate_rises_then_falls_and_rows_without_label_have_no_part_in_labels_alone(here, monkeypatch):
    rates, sizes, step, training = [], [], torch.optim.AdamW.step, distill.training_batches

    def counted(*args, **flags):
        for window, rows in training(*args, **flags):
            sizes.append(len(rows))
            yield window, rows

    monkeypatch.setattr(distill, "training_batches", counted)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(
        self.param_groups[0]["lr"]) or step(self))
    train(f"--train train.tsv unlabeled.tsv --valid valid.tsv --alpha 1 {STUDENT} --lr 0.01 --warmup 0.2 "
          "--max-tokens 99 --output-dir out")
    assert sum(sizes) == 3 * 120 and len(set(sizes)) > 1
    done = [(sum(sizes[:i]) + size / 2) / 360 for i, size in enumerate(sizes)]
    assert rates == pytest.approx([0.01 * min(d / 0.2, (1 - d) / 0.8) for d in done], rel=1e-6)
    train(f"{ALONE} --lr 0.01 --warmup 0.2 --max-tokens 99 --output-dir alone")
    assert equal(*(read(f"{name}/tiny-alpha1-lr0.01/last.pt")["weights"] for name in ("out", "alone")))


def test_student_pt_is_the_best_epoch_calibrated_on_validation(here):
    train(f"{LABELLED} --logits logits/train.pt {STUDENT} --epochs 5 --lr 0.03 --output-dir out")
    lines = log_lines("out/tiny-lr0.03")
    accuracies = [line["valid_accuracy"] for line in lines[1:]]
    student, valid = Student.load("out/tiny-lr0.03/student.pt"), read_examples("valid.tsv")
    scores = student.artifact["scores"]
    assert scores["epoch"] == 1 + accuracies.index(max(accuracies))
    assert scores["valid_accuracy"] == max(accuracies)
    logits = student.logits(valid.texts) * student.config.temperature
    assert (logits.argmax(1) == targets()).float().mean().item() == pytest.approx(max(accuracies))
    assert student.config.temperature == pytest.approx(
        tasks.Classification(["0", "1"]).fit_temperature(logits, targets()), rel=1e-3)
    assert abs(student.config.temperature - 1) > 0.01 and student.task == "classification"
    assert lines[0]["arguments"]["alpha"] == 0.1 and lines[0]["arguments"]["train"] == ["train.tsv"]
    assert lines[0]["fingerprints"]["the texts of --valid"] == valid.fingerprint()


def test_the_last_epoch_is_not_kept_when_an_earlier_one_was_better(here, monkeypatch):
    right = F.one_hot(targets(), 2).float()
    outputs = iter([1 - right, right, 1 - right])
    monkeypatch.setattr(distill, "logits_in_order", lambda *args: next(outputs))
    train(f"{ALONE} --output-dir out")
    assert Student.load("out/tiny-alpha1/student.pt").artifact["scores"]["epoch"] == 2
    monkeypatch.setattr(distill, "logits_in_order", lambda *args: torch.full((40, 2), torch.nan))
    refused(lambda: train(f"{ALONE} --output-dir other"), "epoch 1: .*validation loss.*--lr$")
    assert not Path("other/tiny-alpha1/student.pt").exists()


# ---- rare classes ------------------------------------------------------------------------------------------


@pytest.fixture
def rare(here):
    """One validation row in ten has label 1; `epochs` are logits of it as three epochs would give them."""
    texts = [text for text, _ in reviews(40, 2)]
    write_rows(here / "valid.tsv", [(text, "01"[i >= 36]) for i, text in enumerate(texts)])
    return [F.one_hot(torch.tensor([0] * (36 - extra) + [1] * extra + rare), 2).float() for extra, rare in (
        (0, [0] * 4),  # accuracy 0.9, F1 72/76 and 0
        (6, [1] * 4),  # accuracy 0.85, F1 60/66 and 8/14
        (8, [1] * 4))]


@pytest.mark.parametrize("script, flags, folder, name", [
    ("distill", f"{ALONE} --output-dir out", "out/tiny-alpha1", "student.pt"),
    ("finetune_teacher", f"{LABELLED} {TEACHER} --epochs 3 --output-dir out", "out", "teacher.pt")])
def test_another_score_chooses_the_epoch(rare, monkeypatch, capsys, script, flags, folder, name):
    for best, epoch, value in (("accuracy", 1, 0.9), ("macro_f1", 2, (60 / 66 + 8 / 14) / 2)):
        following = partial(next, iter(rare))
        monkeypatch.setattr(importlib.import_module(script), "logits_in_order", lambda *_, f=following: f())
        run(script, f"{flags} --best {best} --overwrite")
        scores = read(f"{folder}/{name}")["scores"]
        assert (scores["epoch"], scores[f"valid_{best}"]) == (epoch, pytest.approx(value))
        assert capsys.readouterr().out.count(f"{best} {value:.4f}") >= 1
        run(script, f"{flags} --best {best}")
        assert f"finished already, validation {best} {value:.4f}" in capsys.readouterr().out
    refused(lambda: run(script, flags), f"{folder}/last.pt", r"best \(macro_f1, now None\)")
    refused(lambda: run(script, f"{flags} --best recall"), "^--best recall: .*accuracy or macro_f1$")


def test_the_table_is_sorted_by_the_score_that_chooses(rare, monkeypatch):
    """The first student is the more accurate one, the second has the higher macro-F1."""
    flags = f"{ALONE} --epochs 1 --output-dir out --seed"
    for seed, logits in (("0", rare[0]), ("1 --best macro_f1", rare[1])):
        monkeypatch.setattr(distill, "logits_in_order", lambda *_, logits=logits: logits)
        train(f"{flags} {seed}")
    for seed, first, score in (("1 --best macro_f1", "tiny-alpha1-seed1", 0.7403), ("0", "tiny-alpha1", 0.9)):
        train(f"{flags} {seed}")  # finished; the table is written again
        header, row, _ = [line.split("\t") for line in
                          Path("out/summary.tsv").read_text("utf-8").splitlines()]
        assert header[:2] == ["seed", "best"]
        assert (row[-1], float(row[4])) == (f"out/{first}", pytest.approx(score, abs=1e-4)), header


def test_a_student_of_another_task_is_not_in_the_table(here):
    train(f"{ALONE} --epochs 1 --output-dir out --seed 0 1")
    state = read("out/tiny-alpha1/last.pt")
    state["at"]["best"] = {"valid_loss": 1.0, "valid_exact": 1.0, "epoch": 1}
    Path("out/spans").mkdir()
    runtime.save(state, "out/spans/last.pt")
    train(f"{ALONE} --epochs 1 --output-dir out")
    assert "spans" not in Path("out/summary.tsv").read_text("utf-8")
    assert len(Path("out/summary.tsv").read_text("utf-8").splitlines()) == 3


@pytest.mark.parametrize("alpha", [0.4, 1])
def test_balanced_weights_count_the_labels_of_all_files(here, alpha):
    """The loss of an epoch by hand: two files, and rows without a label. The rate is too small to learn."""
    rows = [(text, "01"[i % 10 == 0]) for i, (text, _) in enumerate(reviews(60, 5))]  # 54 and 6
    rows[3:5] = [(rows[3][0], ""), (rows[4][0], "")]  # 52 and 6
    write_rows(here / "first.tsv", rows[:40])
    write_rows(here / "second.tsv", rows[40:])
    teacher = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    torch.save(teacher[:40], "first.pt"), torch.save(teacher[40:], "second.pt")
    train(f"--train first.tsv second.tsv --logits first.pt second.pt --valid valid.tsv {STUDENT} --epochs 1 "
          f"--alpha {alpha} --class-weights balanced --lr 1e-30 --output-dir out")
    [folder] = Path("out").glob("tiny*")
    student = Student.load(folder / "student.pt")
    logits = student.logits([text for text, _ in rows]) * student.config.temperature
    hard = [math.nan if label == "" else (58 / 12 if label == "1" else 58 / 104) * F.cross_entropy(
        logits[i], torch.tensor(int(label))).item() for i, (_, label) in enumerate(rows)]
    soft = (teacher - logits).square().sum(1).tolist()
    losses = [s if math.isnan(h) else alpha * h + (1 - alpha) * s for h, s in zip(hard, soft, strict=True)]
    if alpha == 1:
        losses = [h for h in hard if not math.isnan(h)]
    found = log_lines(folder)[1]
    assert found["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    valid = student.logits(read_examples("valid.tsv").texts) * student.config.temperature
    assert found["valid_loss"] == pytest.approx(F.cross_entropy(valid, targets()).item(), rel=1e-5)


@pytest.mark.parametrize("script, flags, folder", [
    ("distill", f"{TAUGHT} {STUDENT}", "students/tiny"),
    ("finetune_teacher", f"{LABELLED} {TEACHER}", "teacher")])
def test_what_a_version_without_the_flags_finished_is_finished(here, capsys, script, flags, folder):
    state = read(f"{folder}/last.pt")
    for name in ("class_weights", "best"):
        assert state["made_by"]["arguments"].pop(name) is None
    runtime.save(state, Path(folder, "last.pt"))
    before = snapshot(folder)
    run(script, f"{flags} --best accuracy")
    assert "finished already" in capsys.readouterr().out and snapshot(folder) == before
    for flag, named in (("--best macro_f1", "best"), ("--class-weights balanced", "class_weights")):
        refused(lambda flag=flag: run(script, f"{flags} {flag}"),
                rf"last\.pt .*: {named} \(None, now {flag[-8:]}\);")
    if script == "distill":
        train(f"{flags} --seed 0 1")  # with one of this version, in one table
        assert len(Path("students/summary.tsv").read_text("utf-8").splitlines()) == 3


@pytest.mark.parametrize("script, flags", [
    ("distill", f"{TAUGHT} {STUDENT}"), ("finetune_teacher", f"{TAUGHT} {TEACHER}")])
def test_weights_without_labels_are_a_wrong_flag(here, script, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        run(script, f"{flags} --alpha 0 --class-weights balanced --output-dir out")
    assert ended.value.code == 2 and "--class-weights" in capsys.readouterr().err


@pytest.mark.parametrize("script, flags", [
    ("distill", f"{ALONE} --epochs 1"), ("finetune_teacher", f"{LABELLED} {TEACHER} --epochs 1")])
def test_a_validation_file_of_one_label_is_warned_of(here, script, flags, capsys):
    write_rows(here / "valid.tsv", [(text, "1") for text, _ in reviews(40, 2)])
    run(script, f"{flags} --output-dir out")
    assert re.search(r"^warning: valid\.tsv: .*'1'", capsys.readouterr().err, re.MULTILINE)


# ---- order and repeats -------------------------------------------------------------------------------------


def test_the_order_of_classes_is_that_of_the_logits(here):
    for name in ("train", "unlabeled"):
        artifact = read(f"logits/{name}.pt")
        torch.save(artifact | {"label_names": ["1", "0"], "logits": artifact["logits"].flip(1)},
                   f"logits/{name}.pt")
    train(f"{TAUGHT} {STUDENT} --output-dir out")
    student = Student.load("out/tiny/student.pt")
    assert student.label_names == ["1", "0"] and student.artifact["scores"]["valid_accuracy"] > 0.8
    right = (1 - student.predict(read_examples("valid.tsv").texts).argmax(1)) == targets()
    assert right.float().mean() == pytest.approx(student.artifact["scores"]["valid_accuracy"])


def test_a_run_is_repeated_from_the_same_start(here):
    """Which is the teacher's embeddings, though nothing else of the teacher is read."""
    os.rename("teacher/teacher.pt", "kept.pt")
    refused(lambda: train(f"{TAUGHT} {STUDENT}"), "students/tiny/last.pt", "the teacher's embeddings")
    before = snapshot("students")
    train(f"{TAUGHT} {STUDENT} --teacher kept.pt")
    assert snapshot("students") == before


def test_a_killed_overwrite_replaces_the_whole_grid_when_run_again(here):
    flags = f"{TAUGHT} {STUDENT} --output-dir out --seed 0 1 --epochs"
    train(f"{flags} 1")
    with pytest.MonkeyPatch.context() as patch:
        die_after(patch, 4)  # two tombstones, and two files of the first student
        with pytest.raises(Killed):
            train(f"{flags} 2 --overwrite")
    train(f"{flags} 2")
    train(f"{flags} 2 --output-dir whole")
    for name in ("tiny", "tiny-seed1"):
        assert_same_run(f"out/{name}", f"whole/{name}", "student.pt")


# ---- the grid ----------------------------------------------------------------------------------------------


def test_a_seed_that_is_added_is_the_only_one_trained_and_the_table_has_all(here, monkeypatch):
    trained, new_student = [], distill.new_student
    monkeypatch.setattr(distill, "new_student", lambda settings, *args: (
        trained.append((settings["alpha"], settings["seed"])) or new_student(settings, *args)))
    flags = f"{TAUGHT} {QUICK} --alpha 0.1 1 --seed 0 1"
    train(flags)
    assert trained == [(0.1, 0), (0.1, 1), (1, 0), (1, 1)]
    names = {"tiny", "tiny-seed1", "tiny-alpha1", "tiny-alpha1-seed1"}
    assert {path.name for path in Path("out").iterdir()} == names | {"summary.tsv"}
    before = {name: value for name, value in snapshot("out").items() if "summary" not in name}
    del trained[:]
    train(f"{flags} 2")
    train(f"{TAUGHT} {QUICK} --seed 3")  # another command, the same table
    assert trained == [(0.1, 2), (1, 2), (0.1, 3)]
    assert snapshot("out").items() >= before.items()
    header, *rows = [line.split("\t") for line in Path("out/summary.tsv").read_text("utf-8").splitlines()]
    assert " ".join(header) == "alpha seed parameters valid_loss valid_accuracy epoch seconds folder"
    assert sorted((row[0], row[1]) for row in rows) == sorted(
        [("0.1", str(seed)) for seed in range(4)] + [("1.0", str(seed)) for seed in range(3)])
    assert [float(row[4]) for row in rows] == sorted((float(row[4]) for row in rows), reverse=True)
    for row in rows:
        student = Student.load(Path(row[-1], "student.pt"))
        assert student.artifact["scores"]["valid_accuracy"] == pytest.approx(float(row[4]), abs=1e-4)
        assert int(row[2]) == sum(parameter.numel() for parameter in student.parameters())
    shutil.rmtree("out/tiny-seed3"), interrupted("distill", f"{TAUGHT} {QUICK} --seed 4", 2)
    Path("out/tiny-seed2/last.pt").write_bytes(b"damaged")  # another student's: a warning, not an end
    train(f"{TAUGHT} {QUICK}")
    assert len(Path("out/summary.tsv").read_text("utf-8").splitlines()) == 1 + 5


def test_a_grid_looks_at_all_its_folders_before_it_trains_or_replaces(here):
    second = here / "out/tiny-seed1"
    second.mkdir(parents=True)
    with open(second / ".lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for more in ("", "--overwrite"):
            refused(lambda more=more: train(f"{TAUGHT} {QUICK} --seed 0 1 {more}"), "out/tiny-seed1: another")
    (second / "student.pt").write_bytes(b"x")
    refused(lambda: train(f"{TAUGHT} {QUICK} --seed 0 1"), "out/tiny-seed1/student.pt")
    assert not Path("out/tiny/last.pt").exists()


@pytest.mark.parametrize("flags, names", [
    ("", ["base"]), ("--size small --alpha 1 --seed 2", ["small-alpha1-seed2"]),
    ("--size base tiny --num-layers 1 2", ["base", "base-l2", "tiny", "tiny-l2"]),
    ("--tokenizer x/vocab_size_3000 x/vocab_size_8000 x/words", ["base", "base-v8000", "base-words"]),
    ("--lr 1e-3 0.003", ["base-lr0.001", "base-lr0.003"]), ("--alpha 0.1 --seed 0", ["base"]),
    ("--embedding-dim 50 --hidden-dim 9 --dropout 0.5 --pooling attention --head relu --embeddings random "
     "--loss kl --temperature 4", ["base-e50-h9-d0.5-attention-relu-random-kl-T4"]),
    ("--embeddings teacher teacher/teacher.pt models/encoder", ["base", "base-teacher", "base-encoder"]),
])
def test_folders_are_named_after_what_is_not_the_default(flags, names):
    given = "--train a --logits b --valid c --tokenizer t/vocab_size_3000"
    args = distill.parse_args(f"{given} {flags}".split())
    grid = distill.grid_settings(args)
    assert [name for name, _ in grid] == names
    assert all(settings["lr"] in (1e-3, 3e-3, distill.RATES[settings["size"]]) for _, settings in grid)


def test_a_grid_of_tokenizers_encodes_for_each(here):
    run("train_tokenizer", "--data train.tsv --vocab-size 30 --min-frequency 1")
    train(f"{LABELLED} --logits logits/train.pt {QUICK} --tokenizer tokenizer/vocab_size_3000 "
          "tokenizer/vocab_size_30")
    for name, folder in (("vocab_size_3000", "tiny"), ("vocab_size_30", "tiny-v30")):
        expected = distill.read_tokenizer(f"tokenizer/{name}").get_vocab()
        assert Student.load(f"out/{folder}/student.pt").tokenizer.get_vocab() == expected


@pytest.mark.parametrize("flags, words", [
    ("--seed 0 0", "folder base"), ("--tokenizer x/vocab_size_4 y/vocab_size_4", "folder base-v4"),
    ("--num-layers 1000000", "num_layers"), ("--embedding-dim 99999999", "embedding_dim"),
    ("--dropout 0.9999", "dropout"),
])
def test_a_grid_that_cannot_be_is_refused_before_it_starts(flags, words):
    args = distill.parse_args(["--train", "a", "--logits", "b", "--valid", "c", "--tokenizer", "t",
                               *flags.split()])
    with pytest.raises((UserError, StudentError), match=words):
        distill.grid_settings(args)


# ---- embeddings and teachers -------------------------------------------------------------------------------


def test_principal_components_by_hand():
    """Points on a cross, three times as wide along (1, 1) as along (1, -1), in a plane of three-space."""
    along, across = torch.tensor([1.0, 1, 0]) / 2**0.5, torch.tensor([1.0, -1, 0]) / 2**0.5
    vectors = torch.stack([3 * along, -3 * along, across, -across]) + 5
    found = distill.principal_components(vectors, 2)
    expected = torch.tensor([[2, 0], [-2, 0], [0, 2], [0, -2]]) / 2**0.5  # of variance 1
    assert torch.allclose(found.abs(), expected.abs(), atol=1e-5)
    assert torch.allclose(found[::2], -found[1::2], atol=1e-5)
    assert torch.allclose(distill.principal_components(vectors, 1), found[:, :1])
    assert distill.principal_components(vectors, 3).shape == (4, 2)  # they differ in no third direction


def start(flags: str, folder="tiny"):
    """The embeddings a student starts with: the rate is too small to move them."""
    train(f"{flags} {QUICK} --lr 1e-12 --weight-decay 0 --overwrite")
    return Student.load(f"out/{folder}-lr1e-12/student.pt").embedding.weight.detach()


def test_embeddings_start_from_the_teachers_of_the_same_tokens(here, capsys):
    weight = Teacher.load("teacher/teacher.pt").encoder.word_embeddings.weight.detach()  # the same tokenizer
    found = start(TAUGHT)
    expected = distill.principal_components(weight, 8)
    assert torch.allclose(found[1:], expected[1:], atol=1e-4) and not found[0].any()  # [PAD] stays zero
    wide = start(f"{TAUGHT} --embedding-dim 20", "tiny-e20")
    assert torch.allclose(wide[1:, :16], distill.principal_components(weight, 16)[1:], atol=1e-4)
    assert wide[1:, 16:].std().item() == pytest.approx(1, abs=0.2)  # random, where the teacher has none
    random = start(f"{TAUGHT} --embeddings random", "tiny-random")
    assert not torch.allclose(random[1:], expected[1:], atol=0.1)
    assert torch.allclose(start(f"{TAUGHT} --alpha 1", "tiny-alpha1"), random, atol=1e-6)
    os.rename("teacher/teacher.pt", "kept.pt")
    capsys.readouterr()
    assert torch.equal(start(TAUGHT), random)
    assert "teacher/teacher.pt is not there" in capsys.readouterr().err
    assert torch.equal(start(f"{TAUGHT} --teacher kept.pt"), found)
    named = start(f"{LABELLED} --alpha 1 --embeddings ./kept.pt", "tiny-kept-alpha1")  # with labels alone too
    assert torch.equal(named, found)


def test_embeddings_start_from_a_published_encoder(here, capsys):
    vocab = distill.read_tokenizer("tokenizer/vocab_size_3000").get_vocab()
    shipped = finetune_teacher.ENCODER
    encoder = load_checkpoint(str(shipped), [], 128)[0]
    expected = distill.principal_components(encoder.embeddings_of(sorted(vocab, key=vocab.get)), 8)
    found = start(f"{LABELLED} --alpha 1 --embeddings {shipped}", "tiny-encoder-alpha1")
    assert torch.allclose(found[1:], expected[1:], atol=1e-4)
    refused(lambda: train(f"{TAUGHT} {QUICK} --embeddings tokenizer"), "config.json")
    for typo in ("techer", ""):
        with pytest.raises(SystemExit) as stopped:
            distill.parse_args([*LABELLED.split(), "--tokenizer", "a", "--alpha", "1", "--embeddings", typo])
        assert stopped.value.code == 2 and "--embeddings" in capsys.readouterr().err


def test_a_student_that_teaches_has_no_embeddings_to_start_from(here, capsys):
    for flags, told in (("students/tiny/student.pt teacher/teacher.pt", "embeddings from the teacher"),
                        ("students/tiny/student.pt", "no Transformer is among the teachers, so embeddings "
                         "start at random")):
        run("dump_logits", f"--teacher {flags} --data train.tsv unlabeled.tsv --overwrite")
        capsys.readouterr()
        train(f"{TAUGHT} {QUICK} --overwrite")
        printed = capsys.readouterr()
        assert told in printed.out + printed.err
    refused(lambda: train(f"{TAUGHT} {QUICK} --embeddings teacher random --overwrite"), "leave teacher out")


def test_logits_of_something_else_are_refused_and_the_printed_command_makes_the_right_ones(here):
    flags = f"{TAUGHT} {QUICK}"
    write_rows(here / "train.tsv", reviews(130, 0))
    run_printed(refused(lambda: train(flags), "logits/train.pt", "has grown"))
    run("finetune_teacher", f"{LABELLED} --scratch 1,16,2 --tokenizer tokenizer/vocab_size_3000 --epochs 1 "
                            f"--overwrite {CPU}")
    for name in ("train", "unlabeled"):  # each has its own command
        run_printed(refused(lambda: train(flags), f"logits/{name}.pt", "different version"))
    assert not Path("out").exists()
    train(flags)


def test_labels_alone_need_labels(here, capsys):
    train(f"--train train.tsv unlabeled.tsv --valid valid.tsv --alpha 1 {QUICK}")
    assert "labels alone" in capsys.readouterr().out
    refused(lambda: train(f"{LABELLED} --train unlabeled.tsv --alpha 1 {QUICK}"), "unlabeled.tsv.*label")
    flags = "--train unlabeled.tsv --logits logits/unlabeled.pt --valid valid.tsv"
    refused(lambda: train(f"{flags} --alpha 1 0 {QUICK}"), "--alpha 1")
    train(f"{flags} --alpha 0 {QUICK}")


def test_files_whose_names_are_not_utf8_train_a_student(here):
    name = os.fsdecode(b"\xb0\xa1.tsv")
    os.rename("train.tsv", name)
    for _ in range(2):
        run("distill", f"--valid valid.tsv --alpha 1 {QUICK} --train", name)
    assert log_lines("out/tiny-alpha1")[0]["arguments"]["train"] == [name]


def choices(flag):
    """What a flag of distill.py may be, from the line that argparse prints for a wrong value."""
    parser_error = io.StringIO()
    with contextlib.redirect_stderr(parser_error), pytest.raises(SystemExit):
        distill.parse_args([flag, "no such name", "--train", "a", "--valid", "b", "--tokenizer", "c"])
    return set(re.findall(r"\w+", parser_error.getvalue().split("choose from")[1]))


def test_every_loss_that_can_be_chosen_is_one_of_its_own_with_a_gradient():
    task, teacher = tasks.Classification(["0", "1", "2"]), torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]])
    values = []
    for name in choices("--loss"):
        logits = torch.tensor([[0.5, 0.5, -1.0], [1.0, 2.0, 0.0]], requires_grad=True)
        soft = task.soft(logits, teacher, kind=name)
        soft.sum().backward()
        assert soft.shape == (2,) and logits.grad.abs().min() > 1e-3
        assert task.soft(teacher, teacher, kind=name).abs().max() < 1e-6
        values.append(soft.sum().item())
    assert len(set(values)) == len(values) == 2
    with pytest.raises(ValueError, match="cosine"):
        task.soft(teacher, teacher, kind="cosine")


def test_the_network_has_what_can_be_chosen():
    assert choices("--pooling") == set(POOLINGS) and choices("--head") == set(HEADS)
    assert choices("--size") == set(SIZES)
