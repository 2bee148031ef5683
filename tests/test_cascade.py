"""extra/cascade.py: disagreements with labels, and escalation against a count at every threshold."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import read, run, write_rows

import runtime
from data.examples import read_examples
from extra import cascade
from extra.cascade import escalation
from student import Student

ROOT = Path(__file__).parent.parent
DATA = "--data train.tsv --logits logits/train.pt"


def answers(logits, names):
    """(answer, probability of each label) of every row."""
    return [(names[row.argmax()], dict(zip(names, row.tolist(), strict=True))) for row in logits.softmax(1)]


@pytest.fixture
def weak(here):
    """Logits that are often wrong, and in another order than the student's labels; (student's, teacher's)."""
    artifact = read("logits/train.pt")
    noise = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    artifact |= {"logits": artifact["logits"].flip(1) / 4 + noise, "label_names": ["1", "0"]}
    torch.save(artifact, "logits/train.pt")
    examples, student = read_examples("train.tsv"), Student.load("students/tiny/student.pt")
    return examples.answers, answers(student.logits(examples.texts), student.label_names), \
        answers(artifact["logits"], ["1", "0"])


def refused(capsys, words, flags):
    with pytest.raises(SystemExit) as exit_:
        runtime.main(cascade.main, cascade.parse_args(flags.split()), errors=(cascade.StudentError,))
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert runtime.re.search(words, error), error


# ---- disagreements -----------------------------------------------------------------------------------------


def test_disagreements_are_the_labelled_rows_that_the_teacher_contradicts(weak, capsys):
    """The largest loss first; rows without a label are none."""
    labels, _, teacher = weak
    texts = read_examples("train.tsv").texts
    write_rows(Path("train.tsv"), [(text, label if i % 3 else "", f"n{i}") for i, (text, label) in
                                   enumerate(zip(texts, labels, strict=True))], "text\tlabel\tid")
    run("extra.cascade", f"disagreements {DATA} --out new/doubtful.tsv")
    wrong = [i for i, (answer, _) in enumerate(teacher) if i % 3 and answer != labels[i]]
    losses = {i: -math.log(teacher[i][1][labels[i]]) for i in wrong}
    header, *lines = [line.split("\t") for line in Path("new/doubtful.tsv").read_text("utf-8").splitlines()]
    assert header == ["row", "id", "label", "teacher", "confidence", "loss", "text"]
    assert [int(line[0]) for line in lines] == sorted(wrong, key=lambda i: -losses[i]) and len(wrong) > 10
    for row, name, label, answer, confidence, loss, text in lines:
        i = int(row)
        assert (name, label, answer, text) == (f"n{i}", labels[i], teacher[i][0], texts[i])
        assert float(confidence) == pytest.approx(max(teacher[i][1].values()), abs=1e-4)
        assert float(loss) == pytest.approx(losses[i], abs=1e-4)
    assert f"{len(wrong)} of 80 " in capsys.readouterr().out


def test_disagreements_of_pairs_and_of_a_bare_tensor(here):
    """A bare tensor has its columns in the order of the labels in the file."""
    write_rows(Path("pairs.tsv"), [("a", "b\u2028c", "y"), ("d", "e", "x"), ("f", "g", "y")],
               "text\ttext2\tlabel")
    torch.save(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 9.0]]), "bare.pt")
    run("extra.cascade", "disagreements --data pairs.tsv --logits bare.pt --out d.tsv")
    header, line, *more = Path("d.tsv").read_text("utf-8").split("\n")
    assert header.endswith("\ttext\ttext2") and more == [""]
    assert line.split("\t")[:4] == ["0", "", "y", "x"] and line.split("\t")[6:] == ["a", "b c"]


def test_what_cannot_be_compared_is_refused(here, capsys):
    out = " --out d.tsv"
    for file in ("train.tsv", "logits/train.pt"):
        before = Path(file).read_bytes()
        refused(capsys, file, f"disagreements {DATA} --out ./{file}")
        assert Path(file).read_bytes() == before
    refused(capsys, r"logits/train\.pt: .*other texts", "disagreements --data test.tsv --logits "
            "logits/train.pt" + out)
    refused(capsys, r"unlabeled\.tsv: .*label",
            "disagreements --data unlabeled.tsv --logits logits/unlabeled.pt" + out)
    torch.save(torch.zeros(120, 3), "bare.pt")
    refused(capsys, r"bare\.pt: 3 columns", "disagreements --data train.tsv --logits bare.pt" + out)
    refused(capsys, r"bare\.pt: 3 columns",
            "escalate students/tiny/student.pt --data train.tsv --logits bare.pt")
    torch.save(read("logits/train.pt") | {"label_names": ["0", "x"]}, "logits/train.pt")
    refused(capsys, r"^error: students/tiny/student\.pt: .*'1'.*'x'",
            f"escalate students/tiny/student.pt {DATA}")
    refused(capsys, r"train\.tsv:\d+: .*'0', 'x'", f"disagreements {DATA}{out}")
    refused(capsys, "teacher", f"escalate teacher/teacher.pt {DATA}")
    assert not Path("d.tsv").exists()


# ---- escalate ----------------------------------------------------------------------------------------------


def test_escalation_equals_a_count_at_every_threshold(weak, capsys):
    labels, student, teacher = weak

    def combined(threshold):  # (share the student answers, accuracy of both)
        mine = [max(p.values()) >= threshold for _, p in student]
        right = [(s if own else t) == label for (s, _), (t, _), own, label in
                 zip(student, teacher, mine, labels, strict=True)]
        return sum(mine) / 120, sum(right) / 120

    every = [combined(max(p.values())) for _, p in student] + [combined(2)]
    wanted = sorted(accuracy for _, accuracy in every)[-20]
    flags = f"escalate students/tiny/student.pt students/tiny/student.pt {DATA}"
    run("extra.cascade", f"{flags} --accuracy {100 * wanted} --json")
    found, again = json.loads(capsys.readouterr().out)["models"]
    assert found == again and found["model"] == "students/tiny/student.pt"
    assert found["curve"][0] == [0.0, None, combined(2)[1]] and len(found["curve"]) == 11
    for tenth, (share, threshold, accuracy) in enumerate(found["curve"]):
        assert share >= tenth / 10 - 1e-9
        assert (share, accuracy) == pytest.approx(combined(2 if threshold is None else threshold - 1e-9))
    share, threshold, accuracy = found["wanted"]
    assert (share, accuracy) == pytest.approx(combined(threshold - 1e-9)) and share > 0
    assert share == pytest.approx(max(share for share, accuracy in every if accuracy >= wanted - 1e-9))

    run("extra.cascade", f"{flags} --accuracy {100 * wanted}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"for {wanted:.2%}: ") and f"{share:.1%}" in lines[-1]
    assert f"{math.floor(threshold * 1e5) / 1e5:.5f}" in lines[-1]
    run("extra.cascade", flags)
    assert "for " not in capsys.readouterr().out


def test_the_columns_of_a_bare_tensor_are_in_the_order_of_the_sorted_labels(here, capsys):
    student = Student.load("students/tiny/student.pt")
    student.label_names.reverse()  # the other answer to every text
    student.save("other.pt")
    torch.save(student.logits(read_examples("train.tsv").texts), "bare.pt")
    flags = "--data train.tsv --logits bare.pt"
    run("extra.cascade", f"escalate other.pt students/tiny/student.pt {flags} --json")
    other, tiny = (model["curve"] for model in json.loads(capsys.readouterr().out)["models"])
    assert {accuracy for *_, accuracy in tiny} == {tiny[0][2]}
    assert other[0][2] == tiny[0][2] and other[-1][2] == pytest.approx(1 - tiny[0][2])
    write_rows(Path("train.tsv"), [(text, "") for text in read_examples("train.tsv").texts])
    refused(capsys, r"train\.tsv:2: .*label", f"escalate other.pt {flags}")


def test_rows_of_one_confidence_are_never_torn_apart():
    confidence = torch.tensor([0.8, 0.9, 0.6, 0.8, 0.8], dtype=torch.double)
    right = torch.tensor([True, True, False, False, False])
    teacher = torch.tensor([False, False, True, True, True])
    found = escalation(confidence, right, teacher, 0.8)
    assert {share for share, _, _ in found["curve"]} == {0.0, 0.2, 0.8, 1.0}
    assert found["wanted"] == pytest.approx((0.2, 0.9, 0.8))  # 0.6 for none, 0.6 at 80 %, 0.4 for all
    assert escalation(confidence, right, teacher, 0.6)["wanted"] == pytest.approx((0.8, 0.8, 0.6))
    assert escalation(confidence, right, ~teacher & False, 0.9)["wanted"] is None
    assert escalation(confidence, right, teacher | True, 1.0)["wanted"] == pytest.approx((0.2, 0.9, 1.0))
    assert escalation(confidence, ~right & False, teacher | True, 1.0)["wanted"] == (0.0, None, 1.0)


def test_the_end_of_the_line_for_each_outcome(capsys):
    for wanted, words in (((0.0, None, 0.9), "the teacher answers all"), (None, "not reached"),
                          ((1.0, 0.9999999, 0.9), "at least 0.99999")):
        cascade.show("s.pt", "l.pt", {"curve": [(0.0, None, 0.9)], "wanted": wanted}, 89)
        assert words in capsys.readouterr().out.splitlines()[-1]


# ---- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "word"), [
    ("", "disagreements"),
    ("disagreements --data a.tsv --logits l.pt", "--out"),
    ("disagreements --data a.tsv --out o.tsv", "--logits"),
    ("escalate --data a.tsv --logits l.pt", "STUDENT.pt"),
    ("escalate a.pt --data a.tsv", "--logits"),
    *((f"escalate a.pt --data a.tsv --logits l.pt --accuracy {value}", "percent")
      for value in (101, 1, "nan")),
])
def test_bad_flags_end_with_code_2(capsys, flags, word):
    with pytest.raises(SystemExit) as exit_:
        cascade.parse_args(flags.split())
    assert exit_.value.code == 2 and word in capsys.readouterr().err.strip().split("\n")[-1]


def test_the_script_runs_from_another_folder(kit, tmp_path):
    flags = f"escalate {kit}/students/tiny/student.pt --data {kit}/train.tsv --logits {kit}/logits/train.pt"
    done = subprocess.run([sys.executable, str(ROOT / "extra" / "cascade.py"), *flags.split()], cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "100.0%" in done.stdout
