"""distill.py: the loss against hand computations, the join of logits and rows, resume, the grid."""

import fcntl
import json
import math
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import distill
import dump_logits
import runtime
import train_tokenizer
from data import batching, training
from data.examples import read_again, read_examples, survey
from distill import distill_loss
from runtime import UserError
from student import Student, StudentError
from teacher import Teacher, TeacherConfig, bert_template, load_tokenizer

WORDS = ["좋다", "최고", "추천", "재밌다", "별로", "최악", "지루", "실망", "영화", "배우", "그냥", "정말"]


def write_reviews(path, n, seed, labelled=True):
    """Random words; label 1 when more of the first four than of the second four occur."""
    random = np.random.default_rng(seed)
    lines = ["text\tlabel" if labelled else "text"]
    for _ in range(n):
        chosen = random.integers(0, len(WORDS), random.integers(1, 9))
        label = int((chosen < 4).sum() > ((chosen >= 4) & (chosen < 8)).sum())
        text = " ".join(WORDS[i] for i in chosen)
        lines.append(f"{text}\t{label}" if labelled else text)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def dump(path, data, logits, names=("0", "1")):
    """A logits file as dump_logits.py writes it."""
    torch.save({"kind": "logits", "format": 2, "logits": logits, "label_names": list(names),
                "texts": read_examples(data).fingerprint(), "teachers": [], "teacher_files": [],
                "made_by": {}}, path)


@pytest.fixture
def windows(monkeypatch):
    """Small windows of small blocks, so that these few rows come as those of a file beyond memory do."""
    count, read = [], batching.Store._read
    monkeypatch.setattr(batching.Store, "_read", lambda self, blocks: count.append(1) or read(self, blocks))
    monkeypatch.setattr(batching, "WINDOW", 400)
    monkeypatch.setattr(read_again, "__defaults__", (None, None, None, 32))
    return count  # an element for each window that was read


@pytest.fixture(params=["one window", "several"])
def window_or_several(request):
    """The test twice: all rows in memory, and in windows."""
    return request.getfixturevalue("windows") if request.param == "several" else None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """train.tsv (300), unlabeled.tsv (200), valid.tsv (80), logits of the first two, a tokenizer; the cwd."""
    monkeypatch.chdir(tmp_path)
    write_reviews(tmp_path / "train.tsv", 300, 1)
    write_reviews(tmp_path / "unlabeled.tsv", 200, 2, labelled=False)
    write_reviews(tmp_path / "valid.tsv", 80, 3)
    dump("train.pt", "train.tsv", torch.randn(300, 2, generator=torch.Generator().manual_seed(0)))
    dump("unlabeled.pt", "unlabeled.tsv", torch.randn(200, 2, generator=torch.Generator().manual_seed(1)))
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", "train.tsv", "--vocab-size", "60", "--min-frequency", "1"]))
    return tmp_path


COMMON = ["--valid", "valid.tsv", "--tokenizer", "tokenizer/vocab_size_60", "--size", "tiny",
          "--device", "cpu", "--precision", "fp32", "--max-tokens", "256", "--epochs", "3"]


def run(*flags):
    training.teacher_fingerprints.cache_clear()  # of an earlier process
    distill.main(distill.parse_args([*COMMON, *flags]))


# ---- the loss ----------------------------------------------------------------------------------------------


def test_soft_loss_is_t_squared_times_kl():
    """Two classes, T = 2, by hand with math alone: teacher (2, 0), student (0, 1)."""
    p = 1 / (1 + math.exp(-1.0))  # softmax((2, 0) / 2)[0]
    q = 1 / (1 + math.exp(0.5))  # softmax((0, 1) / 2)[0]
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    student, teacher, label = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    loss = distill_loss(student, teacher, label, 0.0, 2.0, "kl")
    assert loss.item() == pytest.approx(4 * kl, rel=1e-6)
    hard = -math.log(1 / (1 + math.exp(1.0)))  # cross-entropy of label 0
    loss = distill_loss(student, teacher, label, 0.3, 2.0, "kl")
    assert loss.item() == pytest.approx(0.3 * hard + 0.7 * 4 * kl, rel=1e-6)


def test_soft_gradient_keeps_its_scale_at_high_temperature():
    """Hinton et al. (2015), section 2.1: for T → ∞ and centred logits, T² times dKL/dz → (z − v) / C."""
    student = torch.tensor([[0.5, -0.5, 0.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, -1.0]])
    distill_loss(student, teacher, torch.tensor([0]), 0.0, 1000.0, "kl").backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 3, rtol=0, atol=1e-3)


def test_soft_loss_is_zero_for_a_perfect_copy_and_blind_to_a_shift_of_the_logits():
    logits = torch.randn(5, 3)
    labels = torch.zeros(5, dtype=torch.long)
    assert distill_loss(logits + 7, logits, labels, 0.0, 3.0, "kl").abs() < 1e-5
    assert distill_loss(logits, logits, labels, 0.0, 3.0, "mse") == 0


def test_mse_is_the_squared_distance_of_the_logits():
    loss = distill_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [0.0, 2.0]]),
                        torch.tensor([0, 1]), 0.0, 1.0, "mse")
    assert loss.item() == pytest.approx(((4 + 1) + (0 + 4)) / 2)


def test_a_row_without_label_has_the_soft_part_alone():
    student, teacher = torch.randn(2, 2), torch.randn(2, 2)
    both = distill_loss(student, teacher, torch.tensor([1, -1]), 0.25, 1.5)
    labelled = distill_loss(student[:1], teacher[:1], torch.tensor([1]), 0.25, 1.5)
    unlabelled = distill_loss(student[1:], teacher[1:], torch.tensor([0]), 0.0, 1.5)  # alpha 0: no label
    assert both.item() == pytest.approx((labelled + unlabelled).item() / 2, rel=1e-6)


def test_labels_alone_are_cross_entropy():
    student, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    expected = F.cross_entropy(student, labels).item()
    assert distill_loss(student, None, labels, 1.0, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert (distill_loss(student, torch.randn(4, 3), labels, 1.0, 2.0).item()
            == pytest.approx(expected, rel=1e-6))


# ---- training ----------------------------------------------------------------------------------------------


def test_student_learns_its_teacher_even_against_the_labels(folder, capsys):
    """Logits that invert the labels: with alpha 0 the student follows the teacher, with alpha 1 the labels.

    Best-by-validation would keep the student that resists, so the last epoch is read from last.pt."""
    train = read_examples("train.tsv")
    wrong = 1 - torch.tensor(train.label_ids(["0", "1"]))
    dump("wrong.pt", "train.tsv", 6.0 * F.one_hot(wrong, 2) - 3)
    run("--train", "train.tsv", "--logits", "wrong.pt", "--alpha", "0", "1", "--lr", "0.02", "--epochs", "12")
    for alpha, low, high in (("0", 0.0, 0.2), ("1", 0.8, 1.0)):
        student = Student.load(f"students/tiny-alpha{alpha}/student.pt")
        student.load_state_dict(
            runtime.load(f"students/tiny-alpha{alpha}/last.pt", "student-resume", distill.FORMAT)["weights"])
        right = student.predict(train.texts).argmax(1) == torch.tensor(train.label_ids(["0", "1"]))
        assert low <= right.double().mean() <= high


def test_a_student_of_several_windows_learns_its_teacher(folder, windows):
    """As above, with the logits that invert the labels; the last epoch again."""
    train = read_examples("train.tsv")
    wrong = 1 - torch.tensor(train.label_ids(["0", "1"]))
    dump("wrong.pt", "train.tsv", 6.0 * F.one_hot(wrong, 2) - 3)
    run("--train", "train.tsv", "--logits", "wrong.pt", "--alpha", "0", "--lr", "0.02", "--epochs", "12")
    assert len(windows) >= 12 * 3
    student = Student.load("students/tiny/student.pt")
    last = runtime.load("students/tiny/last.pt", "student-resume", distill.FORMAT)
    student.load_state_dict(last["weights"])
    right = student.predict(train.texts).argmax(1) == torch.tensor(train.label_ids(["0", "1"]))
    assert right.double().mean() <= 0.2


def test_rows_and_logits_stay_together_across_files(folder, monkeypatch, window_or_several):
    """Every row of every batch meets its own logits and label: the logits are made from the text, the label
    is the text's, none in the unlabelled file."""
    def logits_of(texts):
        return torch.tensor([[float(len(text)), float(sum(map(ord, text)) % 1000)] for text in texts])

    texts = {}
    for name in ("train", "unlabeled"):
        examples = read_examples(f"{name}.tsv")
        dump(f"{name}.pt", f"{name}.tsv", logits_of(examples.texts))
        texts[name] = examples.texts
    tokenizer = distill.read_tokenizer("tokenizer/vocab_size_60")
    allowed = {}
    labels = [*read_examples("train.tsv").label_ids(["0", "1"]), *[-1] * 200]
    for text, label in zip(texts["train"] + texts["unlabeled"], labels, strict=True):
        allowed.setdefault(tuple(tokenizer.encode(text).ids), set()).add(
            (*logits_of([text])[0].tolist(), label))
    forward, batch, seen = Student.forward, [], []

    def remember(self, input_ids, lengths):
        batch[:] = [tuple(row[:n]) for row, n in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
        return forward(self, input_ids, lengths)

    def checked(student_logits, teacher_logits, labels, *rest):
        for ids, logits, label in zip(batch, teacher_logits.tolist(), labels.tolist(), strict=True):
            assert (*logits, label) in allowed[ids]
            seen.append((ids, label))
        return distill_loss(student_logits, teacher_logits * 0, labels, *rest)

    monkeypatch.setattr(Student, "forward", remember)
    monkeypatch.setattr(distill, "distill_loss", checked)
    run("--train", "train.tsv", "unlabeled.tsv", "--logits", "train.pt", "unlabeled.pt", "--epochs", "1")
    all_rows = [tuple(tokenizer.encode(text).ids) for text in texts["train"] + texts["unlabeled"]]
    assert sorted(seen) == sorted(zip(all_rows, labels, strict=True))
    assert window_or_several is None or len(window_or_several) > 3


def die_after(monkeypatch, saves: int):
    """runtime.save kills the run right after so many files were written; returns those that were."""
    save, saved = runtime.save, []

    def save_then_die(artifact, path):
        save(artifact, path)
        saved.append(artifact["kind"])
        if len(saved) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "save", save_then_die)
    return saved


def log_without_seconds(folder):
    """Lines of log.jsonl but for seconds, and for what the first says of folder and flags."""
    lines = [json.loads(line) for line in Path(folder, "log.jsonl").read_text("utf-8").splitlines()]
    for name in ("output_dir", "save_every"):
        del lines[0]["arguments"][name]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("saves", [1, 2, 9, 30])
def test_resume_equals_an_uninterrupted_run_bit_for_bit(folder, monkeypatch, window_or_several, saves):
    """Killed before the first step, in the middle of epochs, and several times over."""
    flags = ["--train", "train.tsv", "unlabeled.tsv", "--logits", "train.pt", "unlabeled.pt",
             "--dropout", "0.3", "--num-layers", "2"]
    run(*flags, "--output-dir", "whole")
    flags += ["--output-dir", "parts", "--save-every", "0"]
    starts, kills = [], 0
    while True:
        with monkeypatch.context() as patch:
            die_after(patch, saves)
            try:
                run(*flags, *(["--resume"] if kills else []))
                break
            except KeyboardInterrupt:
                kills += 1
        at = runtime.load("parts/tiny/last.pt", "student-resume", distill.FORMAT)["at"]
        starts.append((at["epoch"], at["step"]))
        torch.manual_seed(12345)  # whatever ran in between
        if saves <= 2 and kills == 3:
            run(*flags, "--resume")
            break
    assert kills >= 1 and starts == sorted(starts)
    assert saves == 1 or len(set(starts)) == kills  # each run got further
    assert Path("parts/tiny/student.pt").read_bytes() == Path("whole/tiny/student.pt").read_bytes()
    whole, parts = (torch.load(f"{name}/tiny/last.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole["weights"][name], parts["weights"][name]) for name in whole["weights"])
    for number, state in whole["optimizer"]["state"].items():
        assert all(torch.equal(state[name], parts["optimizer"]["state"][number][name]) for name in state)
    assert {**whole["at"], "seconds": 0, "log": 0} == {**parts["at"], "seconds": 0, "log": 0}
    assert set(parts) == {"kind", "format", "weights", "optimizer", "at", "precision",
                          "made_by"}  # no random state is needed
    assert log_without_seconds("whole/tiny") == log_without_seconds("parts/tiny")
    assert window_or_several is None or len(window_or_several) > 12


def test_resume_with_other_settings_is_refused(folder):
    flags = ["--train", "train.tsv", "--logits", "train.pt"]
    run(*flags)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"last.pt: was made with other values of epochs \(3, now 5\), "
                                        r"alpha \(0.1, now 0.5\); use those, or --overwrite to start anew"):
        run(*flags, "--epochs", "5", "--alpha", "0.5", "--resume")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_reviews(folder / "train.tsv", 300, 99)
    dump("train.pt", "train.tsv", torch.zeros(300, 2))
    with pytest.raises(UserError, match="the texts of --train, the labels of --train, --logits; use those"):
        run(*flags, "--resume")


def test_resume_keeps_the_precision_and_refuses_another(folder, monkeypatch):
    flags = ["--train", "train.tsv", "--alpha", "1"]
    run(*flags)
    with pytest.raises(UserError, match=r"other values of --precision \(fp32, now bf16\)"):
        run(*flags, "--precision", "bf16", "--resume")
    monkeypatch.setattr(runtime, "pick_precision", lambda *args: "bf16")  # what a trial says today
    run(*flags, "--precision", "auto", "--resume")
    assert torch.load("students/tiny/last.pt", weights_only=True)["precision"] == "fp32"


def test_earlier_results_are_overwritten_only_when_told_to(folder):
    flags = ["--train", "train.tsv", "--alpha", "1", "--epochs", "1"]
    run(*flags)
    first = Path("students/tiny/student.pt").read_bytes()
    with pytest.raises(UserError, match=r"students/tiny/last.pt: is there already; --resume goes on"):
        run(*flags, "--seed", "1")
    run(*flags, "--resume")  # finished: stays as it is
    assert Path("students/tiny/student.pt").read_bytes() == first
    run(*flags, "--seed", "1", "--overwrite")
    assert Path("students/tiny/student.pt").read_bytes() != first
    Path("students/tiny/student.pt").unlink()
    with pytest.raises(UserError, match=r"students/tiny/student.pt: the best so far is gone"):
        run(*flags, "--seed", "1", "--resume")
    Path("students/tiny/last.pt").rename("students/tiny/student.pt")
    with pytest.raises(UserError, match=r"student.pt: is there, but no last.pt to go on from"):
        run(*flags, "--seed", "1", "--resume")


def test_a_second_run_on_one_folder_is_refused_and_an_aborted_save_is_cleared_away(folder):
    litter = folder / "students/tiny/.last.pt.123.partial"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"half")
    held = open("students/tiny/.lock", "a")  # noqa: SIM115 - as another process holds it
    fcntl.flock(held, fcntl.LOCK_EX)
    flags = ["--train", "train.tsv", "--alpha", "1", "--epochs", "1"]
    with pytest.raises(UserError, match=r"students/tiny: another run \(process unknown\) is writing there"):
        run(*flags)
    assert litter.exists() and not Path("students/tiny/student.pt").exists()
    held.close()
    run(*flags)
    assert not litter.exists()


@pytest.mark.parametrize("trouble", ["another run", "is there already"])
def test_a_grid_looks_at_all_its_folders_before_it_trains(folder, trouble):
    second = folder / "students/tiny-seed1"
    second.mkdir(parents=True)
    with open(second / (".lock" if trouble == "another run" else "student.pt"), "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"students/tiny-seed1.*: {trouble}"):
            run("--train", "train.tsv", "--alpha", "1", "--seed", "0", "1")
    assert not (folder / "students/tiny-seed0/last.pt").exists()


def test_the_same_command_gives_the_same_bytes_wherever_it_runs(folder):
    flags = ["--train", "train.tsv", "--logits", "train.pt", "--epochs", "1", "--dropout", "0.2"]
    run(*flags, "--output-dir", "one")
    for name in ("train.tsv", "valid.tsv", "train.pt"):
        Path("elsewhere").mkdir(exist_ok=True)
        Path(f"elsewhere/other_{name}").write_bytes(Path(name).read_bytes())
    run(*flags, "--train", "elsewhere/other_train.tsv", "--valid", "elsewhere/other_valid.tsv",
        "--logits", "elsewhere/other_train.pt", "--output-dir", "two/deep")
    assert Path("one/tiny/student.pt").read_bytes() == Path("two/deep/tiny/student.pt").read_bytes()
    assert b"elsewhere" not in Path("two/deep/tiny/student.pt").read_bytes()


def test_student_pt_is_the_epoch_that_is_best_on_validation(folder):
    run("--train", "train.tsv", "--alpha", "1", "--lr", "0.02")
    log = [json.loads(line) for line in (folder / "students/tiny/log.jsonl").read_text("utf-8").splitlines()]
    best = max(log[1:], key=lambda line: line["valid_accuracy"])
    valid = read_examples("valid.tsv")
    student = Student.load("students/tiny/student.pt")
    right = student.predict(valid.texts).argmax(1) == torch.tensor(valid.label_ids(["0", "1"]))
    assert right.float().mean().item() == pytest.approx(best["valid_accuracy"])
    assert student.artifact["scores"]["epoch"] == best["step"]
    assert log[0]["arguments"]["alpha"] == 1 and log[0]["arguments"]["train"] == ["train.tsv"]
    assert log[0]["versions"]["torch"] == str(torch.__version__) and log[0]["threads"] > 0
    assert log[0]["fingerprints"]["the texts of --valid"] == valid.fingerprint()


def test_grid_trains_every_combination_and_saves_the_table(folder):
    run("--train", "train.tsv", "--logits", "train.pt", "--alpha", "0.1", "1", "--seed", "0", "1",
        "--epochs", "1")
    names = {"tiny-alpha0.1-seed0", "tiny-alpha0.1-seed1", "tiny-alpha1-seed0", "tiny-alpha1-seed1"}
    assert {path.name for path in (folder / "students").iterdir()} == names | {"summary.tsv", ".summary.lock"}
    header, *rows = [line.split("\t") for line in
                     (folder / "students/summary.tsv").read_text("utf-8").splitlines()]
    assert header[:3] == ["alpha", "seed", "parameters"] and len(rows) == 4
    scores = [float(row[header.index("valid_accuracy")]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        stored = Student.load(folder / row[-1] / "student.pt").artifact
        assert stored["scores"]["valid_accuracy"] == pytest.approx(float(row[4]), abs=1e-4)
        assert stored["made_by"]["arguments"]["seed"] == int(row[1])


def test_the_summary_has_the_rates_that_were_used(folder):
    run("--train", "train.tsv", "--alpha", "1", "--lr", "5e-5", "1.5e-4", "--epochs", "1")
    lines = Path("students/summary.tsv").read_text("utf-8").splitlines()
    header, *rows = [line.split("\t") for line in lines]
    assert header[0] == "lr" and sorted(float(row[0]) for row in rows) == [5e-5, 1.5e-4]


def test_files_whose_names_are_not_utf8_train_a_student(folder):
    train = os.fsdecode(b"\xb0\xa1.tsv")
    os.rename("train.tsv", train)
    run("--train", train, "--alpha", "1", "--epochs", "1")
    run("--train", train, "--alpha", "1", "--epochs", "1", "--resume")
    first = json.loads((folder / "students/tiny/log.jsonl").read_text("utf-8").splitlines()[0])
    assert first["arguments"]["train"] == [train]


def test_a_grid_goes_on_behind_students_that_are_finished_and_takes_more(folder):
    """The tokenizer that a finished student's file was written with is the one that the next is made with."""
    flags = ["--train", "train.tsv", "--logits", "train.pt", "--epochs", "1", "--seed", "0", "1"]
    run(*flags)
    wanted = Path("students/tiny-seed1/student.pt").read_bytes()
    shutil.rmtree("students/tiny-seed1")
    run(*flags, "--resume")
    assert Path("students/tiny-seed1/student.pt").read_bytes() == wanted
    run(*flags, "2", "--resume")
    summary = Path("students/summary.tsv").read_text("utf-8").splitlines()
    assert len(summary) == 4 and Path("students/tiny-seed2/student.pt").exists()
    with pytest.raises(UserError, match=r"students/summary.tsv: is there already"):
        run(*flags[:-3], "--alpha", "0.1", "0.5")


def test_a_grid_that_was_killed_while_it_replaced_another_replaces_all_of_it(folder, monkeypatch):
    flags = ["--train", "train.tsv", "--logits", "train.pt", "--seed", "0", "1"]
    run(*flags, "--epochs", "1")
    with monkeypatch.context() as patch:
        die_after(patch, 4)  # two marks, and two of the first student's
        with pytest.raises(KeyboardInterrupt):
            run(*flags, "--epochs", "2", "--overwrite")
    run(*flags, "--epochs", "2", "--resume")
    for seed in (0, 1):
        last = runtime.load(f"students/tiny-seed{seed}/last.pt", "student-resume", distill.FORMAT)
        assert last["made_by"]["arguments"]["epochs"] == 2 and last["at"]["epoch"] == 2


def test_a_file_that_is_read_is_not_written_to(folder):
    Path("students/tiny").mkdir(parents=True)
    lines = [json.dumps({"text": text, "label": "01"[i % 2]}) for i, text in enumerate(WORDS)]
    Path("students/tiny/log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"students/tiny/log.jsonl: is read, and would be overwritten"):
        run("--train", "students/tiny/log.jsonl", "--alpha", "1", "--overwrite")
    assert Path("students/tiny/log.jsonl").read_text("utf-8") == "\n".join(lines)


@pytest.mark.parametrize("flags, names", [
    (["--size", "base"], ["base"]),
    (["--size", "base", "tiny", "--num-layers", "1", "2"], ["base-l1", "base-l2", "tiny-l1", "tiny-l2"]),
    (["--embedding-dim", "50"], ["base-e50"]),
    (["--tokenizer", "tokenizer/vocab_size_2000", "tokenizer/vocab_size_3000"], ["base-v2000", "base-v3000"]),
    (["--lr", "1e-3", "0.003"], ["base-lr0.001", "base-lr0.003"]),
])
def test_folder_names_are_short(flags, names):
    args = distill.parse_args(["--train", "a", "--logits", "b", "--valid", "c", "--tokenizer", "t", *flags])
    assert [name for name, _ in distill.grid_settings(args)] == names


# ---- logits ------------------------------------------------------------------------------------------------


def test_logits_of_another_file_are_refused(folder):
    with pytest.raises(UserError) as error:
        run("--train", "train.tsv", "--logits", "unlabeled.pt")
    assert str(error.value) == (
        "unlabeled.pt: these are logits of other texts than train.tsv; make the right ones: "
        "python dump_logits.py --teacher TEACHER.pt --data train.tsv --output-dir ., and give --logits "
        "train.pt")
    lines = (folder / "train.tsv").read_text("utf-8").splitlines()
    lines[5], lines[6] = lines[6], lines[5]  # the same texts, two rows exchanged
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="these are logits of other texts"):
        run("--train", "train.tsv", "--logits", "train.pt")


def read_logits(path, *flags):
    args = distill.parse_args([*COMMON, "--train", "train.tsv", "--logits", path, *flags])
    return training.read_logits(path, survey("train.tsv"), (None, None, None), args, {})


@pytest.mark.parametrize("requires_grad", [False, True])  # the output of a model that nobody detached
def test_a_bare_tensor_from_any_system_teaches(folder, requires_grad):
    logits = torch.randn(300, 2, dtype=torch.float16, requires_grad=requires_grad)
    torch.save(logits, "bare.pt")
    found = read_logits("bare.pt")
    assert torch.equal(found.values, logits) and found.label_names is None
    run("--train", "train.tsv", "--logits", "bare.pt")
    assert Student.load("students/tiny/student.pt").label_names == ["0", "1"]


def test_logits_too_large_for_float32_are_refused_as_not_finite(folder):
    logits = torch.randn(300, 2, dtype=torch.float64)
    logits[7, 1] = 1e300
    torch.save(logits, "bare.pt")
    with pytest.raises(UserError, match="row 7 are not finite"):
        read_logits("bare.pt")


def test_logits_are_mapped_rather_than_read(folder):
    """Logits of a hundred million rows do not fit in memory; a file that cannot be mapped is read."""
    torch.save(torch.randn(300, 2), "old.pt", _use_new_zipfile_serialization=False)
    expected = torch.load("old.pt")
    torch.save(expected, "bare.pt")
    dump("own.pt", "train.tsv", expected)
    for name, mapped in (("bare", True), ("own", True), ("old", False)):
        found = read_logits(f"{name}.pt").values
        assert torch.equal(found, expected)
        maps = Path("/proc/self/maps")  # Linux only
        if maps.exists():
            assert (str(folder / f"{name}.pt") in maps.read_text("utf-8")) == mapped
        run("--train", "train.tsv", "--logits", f"{name}.pt", "--epochs", "1", "--output-dir", name)
    weights = [Student.load(f"{name}/tiny/student.pt").state_dict() for name in ("bare", "own", "old")]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in other)


def write_teacher(path, seed, max_length=32):
    """A small teacher with random weights."""
    tokenizer = load_tokenizer(Path("tokenizer/vocab_size_60"), "bert")
    tokenizer.post_processor = bert_template(tokenizer)
    torch.manual_seed(seed)
    config = TeacherConfig("bert", tokenizer.get_vocab_size(), 8, 1, 2, 16, 8, 40, 2, 2,
                           initializer_range=0.4)
    Path(path).parent.mkdir(exist_ok=True)
    Teacher(config, tokenizer, ["0", "1"], max_length).save(path)


def run_dump(*flags):
    dump_logits.main(dump_logits.parse_args([*flags, "--device", "cpu", "--precision", "fp32"]))


@pytest.fixture
def taught(folder):
    """logits/train.pt and logits/unlabeled.pt, which dump_logits.py made of t.pt; the flags to use them."""
    write_teacher("t.pt", 1)
    run_dump("--teacher", "t.pt", "--data", "train.tsv", "unlabeled.tsv")
    return ["--train", "train.tsv", "unlabeled.tsv", "--logits", "logits/train.pt", "logits/unlabeled.pt",
            "--epochs", "1"]


def refused(*flags) -> str:
    with pytest.raises(UserError) as error:
        run(*flags)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("change, named", [
    ({"seed": 2}, "weights"), ({"seed": 1, "max_length": 9}, "max_length"),
    ({"seed": 2, "max_length": 9}, "weights and max_length"),
])
def test_logits_of_a_teacher_that_has_changed_are_refused_and_the_printed_command_repairs_them(
        taught, change, named):
    run(*taught)
    first = Path("students/tiny/student.pt").read_bytes()
    write_teacher("t.pt", **change)
    for name in ("train", "unlabeled"):  # each has its own command
        message = refused(*taught, "--overwrite")
        assert message == (
            f"logits/{name}.pt: was made by another teacher than t.pt now is (other {named}); make the right "
            f"ones: python dump_logits.py --teacher t.pt --data {name}.tsv --output-dir logits --overwrite, "
            f"or name the teacher they are of with --teacher")
        assert Path("students/tiny/student.pt").read_bytes() == first
        run_printed(message)
    run(*taught, "--overwrite")
    assert Path("students/tiny/student.pt").read_bytes() != first
    for name in ("train", "unlabeled"):
        made = torch.load(f"logits/{name}.pt", weights_only=True)
        assert made["teachers"] == [Teacher.load("t.pt").fingerprints()]


@pytest.mark.parametrize("teachers", [["t.pt", "u.pt"], ["my teachers/t.pt"]])
def test_the_printed_command_names_all_teachers_of_the_mean(taught, teachers):
    """Of a mean of two it must not make the logits of one; and a shell has to read it."""
    for seed, path in enumerate(teachers, 5):
        write_teacher(path, seed)
    run_dump("--teacher", *teachers, "--data", "train.tsv", "--overwrite")
    write_teacher(teachers[-1], 9)
    words = run_printed(refused(*taught[:2], "--logits", "logits/train.pt"))
    assert words[: 1 + len(teachers)] == ["--teacher", *teachers]
    made = torch.load("logits/train.pt", weights_only=True)
    assert made["teachers"] == [Teacher.load(path).fingerprints() for path in teachers]
    run("--train", "train.tsv", "--logits", "logits/train.pt", "--epochs", "1")


def test_the_printed_command_reads_the_columns_that_distill_reads(taught):
    lines = [line.split("\t") for line in Path("train.tsv").read_text("utf-8").splitlines()[1:]]
    rows = "".join(f"{text} 정말\t{text}\t{label}\n" for text, label in lines)
    Path("both.tsv").write_text(f"text\tbody\tgold\n{rows}", encoding="utf-8")
    run_dump("--teacher", "t.pt", "--data", "both.tsv")  # of the column text
    flags = ["--train", "both.tsv", "--logits", "logits/both.pt", "--text-column", "body", "--label-column",
             "gold", "--valid", "valid2.tsv", "--epochs", "1"]
    Path("valid2.tsv").write_text(f"text\tbody\tgold\n{rows}", encoding="utf-8")
    message = refused(*flags)
    assert message.startswith("logits/both.pt: these are logits of other texts than both.tsv; make the right")
    run_printed(message)
    run(*flags)


def test_logits_of_a_file_that_has_grown_need_its_new_rows_alone(taught, monkeypatch):
    old = torch.load("logits/train.pt", weights_only=True)["logits"]
    with open("train.tsv", "a", encoding="utf-8") as file:
        file.write("새로운 영화\t1\n정말 지루\t0\n")
    message = refused(*taught)
    assert message == (
        "logits/train.pt: these are logits of other texts than train.tsv; it has grown, add the new rows: "
        "python dump_logits.py --teacher t.pt --data train.tsv --output-dir logits --append")
    computed, mean_logits = [], dump_logits.mean_logits
    monkeypatch.setattr(dump_logits, "mean_logits", lambda teachers, texts, *rest: (
        computed.extend(texts) or mean_logits(teachers, texts, *rest)))
    run_printed(message)
    assert computed == ["새로운 영화", "정말 지루"]
    new = torch.load("logits/train.pt", weights_only=True)["logits"]
    assert len(new) == 302 and torch.equal(new[:300], old)
    run(*taught)


def test_a_named_teacher_is_compared_and_one_that_is_gone_is_not(taught, capsys):
    write_teacher("u.pt", 2)
    assert refused(*taught, "--teacher", "u.pt") == (
        "logits/train.pt: was made by another teacher than u.pt now is (other weights); make the right ones: "
        "python dump_logits.py --teacher u.pt --data train.tsv --output-dir logits --overwrite, or name the "
        "teacher they are of with --teacher")
    assert refused(*taught, "--teacher", "t.pt", "u.pt").startswith(
        "logits/train.pt: is the mean of 1 teachers, --teacher names 2; make the right ones: python dump_l")
    os.rename("t.pt", "kept.pt")
    capsys.readouterr()
    run(*taught)  # nothing is there to compare with, which is told
    assert ("warning: logits/train.pt: its teacher t.pt is not there any more and cannot be compared; name "
            "it with --teacher\n") in capsys.readouterr().err
    assert refused(*taught, "--teacher", "t.pt", "--overwrite") == (
        "t.pt: cannot read (No such file or directory)")
    run(*taught, "--teacher", "kept.pt", "--overwrite")
    os.rename("u.pt", "t.pt")
    assert "logits/train.pt: was made by another teacher than t.pt" in refused(*taught, "--overwrite")
    run(*taught, "--teacher", "kept.pt", "--overwrite")  # what dump_logits.py read is then not looked at


def test_a_student_teaches_beside_its_teacher(taught, capsys):
    """Its own logits, before calibration; the next student's embeddings still come from the Transformer."""
    run(*taught)
    student, teacher = Student.load("students/tiny/student.pt"), Teacher.load("t.pt")
    student.config.temperature = 3.0
    student.save("assistant.pt")
    run_dump("--teacher", "assistant.pt", "t.pt", "--data", "train.tsv", "unlabeled.tsv", "--overwrite")
    made = torch.load("logits/train.pt", weights_only=True)
    texts = [line.split("\t")[0] for line in Path("train.tsv").read_text("utf-8").splitlines()[1:]]
    expected = []
    for text in texts:  # one at a time, nothing padded
        ids = [torch.tensor([model.tokenizer.encode(text).ids]) for model in (student, teacher)]
        with torch.no_grad():
            expected.append((student(ids[0]) + teacher(ids[1], torch.tensor([ids[1].size(1)])))[0] / 2)
    torch.testing.assert_close(made["logits"], torch.stack(expected), rtol=0, atol=1e-5)
    run_dump("--teacher", "assistant.pt", "t.pt", "--data", "train.tsv", "--check", "5")
    capsys.readouterr()
    run(*taught, "--output-dir", "next")
    assert "embeddings from t.pt" in capsys.readouterr().out
    with torch.no_grad():
        student.head.bias += 1
    student.save("assistant.pt")
    assert "by another teacher than assistant.pt now is (other weights)" in refused(*taught, "--overwrite")
    run_dump("--teacher", "assistant.pt", "--data", "train.tsv", "unlabeled.tsv", "--overwrite")
    run(*taught, "--output-dir", "alone")
    printed = capsys.readouterr()
    assert "embeddings from" not in printed.out and "start at random" in printed.err
    message = refused(*taught, "--embeddings", "teacher", "random", "--overwrite")
    assert "the teachers are students, which have none" in message


@pytest.mark.parametrize("path, flags", [
    ("students/tiny/student.pt", []), ("students/tiny-seed1/student.pt", ["--seed", "0", "1"]),
    ("students/budget_90000/student.pt", ["--budget", "90KB"]),
])
def test_a_student_that_teaches_is_not_overwritten(taught, monkeypatch, path, flags):
    run(*taught, "--output-dir", "first")
    Path(path).parent.mkdir(parents=True)
    shutil.copy("first/tiny/student.pt", path)
    before = Path(path).read_bytes()
    run_dump("--teacher", "t.pt", path, "--data", "train.tsv", "unlabeled.tsv", "--overwrite")
    if "--budget" in flags:
        size = COMMON.index("--size")
        monkeypatch.setitem(globals(), "COMMON", COMMON[:size] + COMMON[size + 2 :])
    for more in ([], ["--teacher", "t.pt", path]):
        assert refused(*taught, "--overwrite", *flags, *more) == (
            f"{path}: is read, and would be overwritten; give another --output-dir")
        assert Path(path).read_bytes() == before


def test_teachers_are_found_from_whatever_folder_distill_runs_in(taught, tmp_path, monkeypatch):
    write_teacher("u.pt", 2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    flags = [f"../{flag}" if flag.endswith((".pt", ".tsv")) else flag for flag in taught]
    flags += ["--valid", "../valid.tsv", "--tokenizer", "../tokenizer/vocab_size_60", "--epochs", "1"]
    run(*flags)
    os.replace("../u.pt", "../t.pt")
    assert "train.pt: was made by another teacher than ../t.pt now is" in refused(*flags, "--overwrite")


def test_the_printed_command_keeps_float16_and_another_name_of_the_logits_is_told(taught):
    run_dump("--teacher", "t.pt", "--data", "train.tsv", "--overwrite", "--dtype", "float16")
    with open("train.tsv", "a", encoding="utf-8") as file:
        file.write("좋다 영화\t1\n")
    assert refused(*taught).endswith(
        "it has grown, add the new rows: python dump_logits.py --teacher t.pt --data train.tsv --output-dir "
        "logits --dtype float16 --append")
    os.rename("logits/train.pt", "logits/mine.pt")
    flags = ["logits/mine.pt" if flag == "logits/train.pt" else flag for flag in taught]
    assert refused(*flags).endswith("--dtype float16, and give --logits logits/train.pt")


def test_logits_in_another_order_than_the_files_are_told(taught):
    at = taught.index("logits/train.pt")
    taught[at : at + 2] = taught[at + 1], taught[at]
    assert refused(*taught) == (
        "logits/unlabeled.pt: these are logits of unlabeled.tsv, not of train.tsv; give --logits in the "
        "order of --train")


def test_logits_of_two_teachers_do_not_teach_together(taught):
    write_teacher("u.pt", 2)
    run_dump("--teacher", "u.pt", "--data", "unlabeled.tsv", "--overwrite")
    assert refused(*taught).startswith(
        "logits/unlabeled.pt: is of other teachers than logits/train.pt; one for all files: python dump_lo")


def test_logits_that_are_replaced_while_they_are_read_are_refused(taught, monkeypatch):
    """They are checked at the start and read from the file when the rows are encoded."""
    encode, other = distill.encode_training_set, torch.load("logits/unlabeled.pt", weights_only=True)

    def replace_then_encode(*args):
        other["logits"] += 1
        torch.save(other, "logits/unlabeled.pt")
        return encode(*args)

    monkeypatch.setattr(distill, "encode_training_set", replace_then_encode)
    assert refused(*taught) == "logits/unlabeled.pt: was changed while it was read; run again"
    assert not Path("students/tiny/student.pt").exists()


def test_label_names_are_those_of_all_training_files_and_with_bare_logits_of_validation(folder):
    for name, labels in (("a", ["3", "3"]), ("b", None), ("c", ["20", ""]), ("v", ["100", "3"])):
        data = "text\n글\n말\n" if labels is None else "text\tlabel\n" + "".join(f"글\t{x}\n" for x in labels)
        (folder / f"{name}.tsv").write_text(data, encoding="utf-8")
        torch.save(torch.zeros(2, 3), f"{name}.pt")
    flags = ["--train", "a.tsv", "b.tsv", "c.tsv", "--valid", "v.tsv", "--tokenizer", "t"]
    with pytest.raises(UserError, match=r"^v\.tsv:2: label '100' is none of \['3', '20'\];"):
        training.read_training_set(distill.parse_args([*flags, "--alpha", "1"]))
    data = training.read_training_set(distill.parse_args([*flags, "--logits", "a.pt", "b.pt", "c.pt"]))
    assert data.label_names == ["3", "20", "100"]
    assert (data.rows, data.labelled, data.valid_labels.tolist()) == (6, 3, [2, 0])


@pytest.mark.parametrize("tensor, message", [
    (torch.zeros(299, 2), r"bare.pt: \[299, 2\] torch.float32 where train.tsv has 300 rows"),
    (torch.zeros(300), r"bare.pt: \[300\] torch.float32"),
    (torch.zeros(300, 2, dtype=torch.long), "a float tensor"),
    (torch.zeros(300, 2).index_fill_(0, torch.tensor([7]), torch.nan), "the logits of row 7 are not finite"),
    (torch.zeros(300, 3), r"bare.pt: 3 classes, but the labels are \['0', '1'\]"),
])
def test_unfit_bare_tensors_are_refused(folder, tensor, message):
    torch.save(tensor, "bare.pt")
    with pytest.raises(UserError, match=message):
        run("--train", "train.tsv", "--logits", "bare.pt")


def test_unlabelled_rows_are_left_out_of_a_run_on_labels_alone(folder, capsys):
    run("--train", "train.tsv", "unlabeled.tsv", "--alpha", "1")
    assert "students/tiny: " in (output := capsys.readouterr().out)
    assert "300 rows, labels alone" in output
    with pytest.raises(UserError, match=r"^unlabeled\.tsv: no row has a label; a classifier needs"):
        run("--train", "unlabeled.tsv", "--alpha", "1", "--overwrite")
    with pytest.raises(UserError, match="--alpha 1 trains on labels alone, but no --train file has any"):
        run("--train", "unlabeled.tsv", "--logits", "unlabeled.pt", "--alpha", "1", "0", "--overwrite")


@pytest.mark.parametrize("flags, message", [
    (["--alpha", "2"], "--alpha must be in [0, 1]"),
    (["--temperature", "0"], "--temperature positive"),
    (["--lr", "-1"], "--lr and --clip must be positive"),
    (["--epochs", "0"], "must be at least 1"),
    (["--train", "a", "b"], "2 --train files but 1 --logits"),
    (["--size", "huge"], "invalid choice: 'huge'"),
    (["--test", "t.tsv"], "unrecognized arguments: --test t.tsv"),  # test data has no place in training
])
def test_misuse_is_told_before_anything_runs(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        distill.parse_args(["--train", "a", "--logits", "b", "--valid", "c", "--tokenizer", "t", *flags])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_logits_are_needed_unless_labels_teach_alone(capsys):
    with pytest.raises(SystemExit):
        distill.parse_args(["--train", "a", "--valid", "c", "--tokenizer", "t"])
    assert "--logits are needed, one for each --train file (or --alpha 1" in capsys.readouterr().err


def test_resume_with_another_tokenizer_of_the_same_name_is_refused(folder):
    flags = ["--train", "train.tsv", "--logits", "train.pt"]
    run(*flags)
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", "unlabeled.tsv", "--vocab-size", "60", "--min-frequency", "9", "--overwrite"]))
    with pytest.raises(UserError, match="other values of the tokenizer; use those"):
        run(*flags, "--resume")


def test_a_validation_loss_that_is_not_finite_ends_the_run_and_is_never_the_best(folder, monkeypatch):
    monkeypatch.setattr(distill, "logits_in_order", lambda *args: torch.full((80, 2), torch.nan))
    with pytest.raises(UserError, match=r"epoch 1: the validation loss is not finite; lower --lr$"):
        run("--train", "train.tsv", "--alpha", "1")
    assert not (folder / "students/tiny/student.pt").exists()


@pytest.mark.parametrize("poison, save_every", [("loss", "10"), ("gradient", "0")])
def test_a_poisoned_batch_stops_the_run_at_its_step_and_is_named(folder, monkeypatch, window_or_several,
                                                                 poison, save_every):
    """Row 150 of the second file, in epoch 2: its step changes nothing, all rows of its batch are told."""
    logits = torch.randn(200, 2)
    logits[150] = torch.tensor([777.0, 777.0])
    dump("unlabeled.pt", "unlabeled.tsv", logits)
    epochs, batches, rows_of_batch, before = [], distill.training_batches, [], {}

    def counted(*args):
        epochs.append(0)
        for window, rows in batches(*args):
            rows_of_batch[:] = window.numbers[rows].tolist()
            epochs[-1] += 1
            before.update((path.name, path.read_bytes()) for path in Path("students/tiny").iterdir())
            yield window, rows

    def poisoned(student_logits, teacher_logits, labels, *rest):
        loss = distill_loss(student_logits, teacher_logits.clamp(max=9), labels, *rest)
        if len(epochs) == 2 and (teacher_logits == 777).any():
            wrong = torch.nan if poison == "loss" else 0 * (student_logits - student_logits).sqrt().sum()
            return loss + wrong  # the square root of 0 has no gradient: 0 · ∞
        return loss

    monkeypatch.setattr(distill, "training_batches", counted)
    monkeypatch.setattr(distill, "distill_loss", poisoned)
    flags = ["--train", "train.tsv", "unlabeled.tsv", "--logits", "train.pt", "unlabeled.pt"]
    with pytest.raises(UserError) as error:
        run(*flags, "--save-every", save_every)
    assert str(error.value) == (
        f"epoch 2, step {epochs[1]}: loss or gradient is not finite; its {len(rows_of_batch)} rows are in "
        f"students/tiny/diverged.tsv; lower --lr (students/tiny/student.pt is the best before)")
    header, *lines = Path("students/tiny/diverged.tsv").read_text("utf-8").splitlines()
    expected = [f"train.tsv\t{i}" if i < 300 else f"unlabeled.tsv\t{i - 300}" for i in sorted(rows_of_batch)]
    assert header == "file\trow" and lines == expected and "unlabeled.tsv\t150" in lines
    assert 0 < len(lines) < 200
    after = {path.name: path.read_bytes() for path in Path("students/tiny").iterdir()}
    assert after.pop("diverged.tsv") and after == before  # student.pt and last.pt are those before the step
    at = runtime.load("students/tiny/last.pt", "student-resume", distill.FORMAT)["at"]
    assert (at["epoch"], at["step"]) == (1, 0 if save_every == "10" else epochs[1] - 1)
    assert Student.load("students/tiny/student.pt").artifact["scores"]["epoch"] == 1


def test_logits_whose_squares_are_no_float32_stop_the_first_step(folder):
    flags = ["--train", "train.tsv", "--logits", "train.pt", "--epochs", "1"]
    dump("train.pt", "train.tsv", torch.full((300, 2), 1e15))
    run(*flags)
    before = Path("students/tiny/student.pt").read_bytes()
    dump("train.pt", "train.tsv", torch.full((300, 2), 1e30))
    with pytest.raises(UserError, match=r"^epoch 1, step 1: loss or gradient is not finite; .*; lower --lr$"):
        run(*flags, "--overwrite")
    assert Path("students/tiny/student.pt").read_bytes() == before


@pytest.mark.parametrize("flags, message", [
    (["--seed", "0", "0"], "two students of the grid would share the folder base-seed0"),
    (["--tokenizer", "x/vocab_size_400", "y/vocab_size_400"], "would share the folder base-v400"),
    (["--dropout", "0.1", "1"], "dropout is 1.0, must be in"),
    (["--embedding-dim", "0"], "embedding_dim is 0, must be a whole number"),
    (["--num-layers", "1000000000"], r"num_layers is 1000000000, must be a whole number in \[1, 100\]"),
])
def test_a_grid_that_cannot_be_is_refused_before_it_starts(flags, message):
    args = distill.parse_args(["--train", "a", "--logits", "b", "--valid", "c", "--tokenizer", "t", *flags])
    with pytest.raises((UserError, StudentError), match=message):
        distill.grid_settings(args)


@pytest.mark.parametrize("flags, message", [
    (["--lr", "4e-3", "nan"], "--lr is nan, must be finite and below 2147483648"),
    (["--clip", "inf"], "--clip is inf, must be finite"), (["--seed", "-1"], "--seed must be at least 0"),
    (["--max-tokens", "9" * 20], "--max-tokens is 99999999999999999999, must be finite and below"),
])
def test_numbers_out_of_this_world_are_misuse(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        distill.parse_args(["--train", "a", "--logits", "b", "--valid", "c", "--tokenizer", "t", *flags])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_the_last_epoch_is_not_kept_when_an_earlier_one_was_better(folder, monkeypatch):
    right = F.one_hot(torch.tensor(read_examples("valid.tsv").label_ids(["0", "1"])), 2).float()
    outputs = iter([1 - right, right, 1 - right])
    monkeypatch.setattr(distill, "logits_in_order", lambda *args: next(outputs))
    run("--train", "train.tsv", "--alpha", "1")
    assert Student.load("students/tiny/student.pt").artifact["scores"]["epoch"] == 2


def test_every_setting_reaches_its_place(folder, monkeypatch):
    losses, orders, seeds = set(), [], []
    batches, seed_everything = batching.token_batches, runtime.seed_everything
    monkeypatch.setattr(distill, "distill_loss", lambda *a: losses.add(a[3:]) or distill_loss(*a))
    monkeypatch.setattr(batching, "token_batches", lambda *a: orders.append(a[1:]) or batches(*a))
    monkeypatch.setattr(runtime, "seed_everything", lambda *a: seeds.append(a[1:]) or seed_everything(*a))
    run("--train", "train.tsv", "--logits", "train.pt", "--loss", "kl", "--alpha", "0.25",
        "--temperature", "3", "--seed", "7", "--pooling", "max", "--head", "relu", "--dropout", "0.3",
        "--num-layers", "2",
        "--embedding-dim", "5", "--hidden-dim", "6", "--max-length", "9")
    assert losses == {(0.25, 3.0, "kl")}
    # A new order every epoch (seed, epoch, window); validation in order, in batches four times as large.
    assert orders == [call for epoch in range(3) for call in ((256, (7, epoch, 0)), (1024,))]
    steps = (len(seeds) - 1) // 3  # of an epoch
    assert steps > 1 and seeds[0] == (7,)  # the weights; then each step of rank 0 its own dropout
    assert set(seeds[1:]) == {(7, epoch, step, 0) for epoch in range(3) for step in range(steps)}
    assert len(set(seeds)) == len(seeds)
    config = Student.load("students/tiny-e5-h6/student.pt").config
    assert (config.pooling, config.head, config.dropout, config.num_layers) == ("max", "relu", 0.3, 2)
    assert (config.embedding_dim, config.hidden_dim, config.max_length) == (5, 6, 9)


def test_a_grid_of_tokenizers_encodes_for_each(folder):
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", "train.tsv", "--vocab-size", "30", "--min-frequency", "1"]))
    run("--train", "train.tsv", "--alpha", "1", "--epochs", "1", "--tokenizer",
        "tokenizer/vocab_size_60", "tokenizer/vocab_size_30")
    for size in (60, 30):
        tokenizer = distill.read_tokenizer(f"tokenizer/vocab_size_{size}")
        student = Student.load(f"students/tiny-v{size}/student.pt")
        assert student.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_the_order_of_labels_is_that_of_the_logits(folder):
    dump("train.pt", "train.tsv", torch.randn(300, 2), names=("1", "0"))
    run("--train", "train.tsv", "--logits", "train.pt", "--epochs", "1")
    assert Student.load("students/tiny/student.pt").label_names == ["1", "0"]
    with pytest.raises(UserError, match="its classes are not those of the other logits"):
        run("--train", "train.tsv", "unlabeled.tsv", "--logits", "train.pt", "unlabeled.pt")


def test_the_rate_rises_then_falls_and_is_never_zero(folder, monkeypatch):
    """The rate of a step is that at the middle of its rows, so that steps of many rows weigh more."""
    rates, sizes, step, batches = [], [], torch.optim.AdamW.step, distill.training_batches

    def counted(*args):
        for window, rows in batches(*args):
            sizes.append(len(rows))
            yield window, rows

    monkeypatch.setattr(distill, "training_batches", counted)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(
        self.param_groups[0]["lr"]) or step(self))
    run("--train", "train.tsv", "unlabeled.tsv", "--alpha", "1", "--lr", "0.01", "--warmup", "0.2")
    assert sum(sizes) == 3 * 300 and len(set(sizes)) > 1  # rows without label have no part in it
    done = [(sum(sizes[:i]) + size / 2) / 900 for i, size in enumerate(sizes)]
    expected = [0.01 * min(d / 0.2, (1 - d) / 0.8) for d in done]
    assert rates == pytest.approx(expected, rel=1e-6) and min(rates) > 0


# ---- embeddings of the teacher -----------------------------------------------------------------------------


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


def start(*flags):
    """The embeddings a student starts with: the rate is too small to move them."""
    run(*flags, "--lr", "1e-12", "--weight-decay", "0", "--overwrite")
    return Student.load("students/tiny/student.pt").embedding.weight.detach()


def test_embeddings_start_from_the_teachers_of_the_same_tokens(taught):
    weight = Teacher.load("t.pt").encoder.word_embeddings.weight.detach()  # of the same tokenizer
    found = start(*taught)
    expected = distill.principal_components(weight, 8)
    assert torch.allclose(found[1:], expected[1:], atol=1e-5) and not found[0].any()  # [PAD] stays zero
    random = start(*taught, "--embeddings", "random")
    assert not torch.allclose(random[1:], expected[1:], atol=0.1)
    assert torch.allclose(start(*taught, "--alpha", "1"), random, atol=1e-6)  # labels alone have no teacher
    os.rename("t.pt", "kept.pt")
    assert torch.equal(start(*taught), random)
    assert torch.equal(start(*taught, "--teacher", "kept.pt"), found)


def test_a_wider_student_keeps_random_numbers_where_the_teacher_has_none(taught):
    run(*taught, "--embedding-dim", "12", "--lr", "1e-12", "--weight-decay", "0", "--output-dir", "wide")
    [file] = Path("wide").glob("*/student.pt")
    found = Student.load(file).embedding.weight.detach()
    weight = Teacher.load("t.pt").encoder.word_embeddings.weight.detach()
    assert torch.allclose(found[1:, :8], distill.principal_components(weight, 8)[1:], atol=1e-5)
    assert found[1:, 8:].std().item() == pytest.approx(1, abs=0.2)


def test_a_resumed_run_has_the_same_start(taught):
    run(*taught)
    os.rename("t.pt", "kept.pt")
    assert "was made with other values of the teacher's embeddings" in refused(*taught, "--resume")
    run(*taught, "--resume", "--teacher", "kept.pt")


def run_printed(message) -> list[str]:
    """Do what a refusal says; the command's words."""
    script, *words = shlex.split(re.search(r"python (dump_logits\.py .*?)(, or name |$)", message)[1])
    assert script == "dump_logits.py"
    run_dump(*words)
    return words
