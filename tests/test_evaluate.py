"""evaluate.py: its figures against computations from predict, on tiny random models; what it refuses."""

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import write_rows
from tokenizers import Tokenizer, models, pre_tokenizers

import evaluate
import runtime
import tasks
from data.examples import read_examples
from student import Student, StudentConfig
from teacher import Teacher, TeacherConfig

NAMES = ["neg", "pos", "mid"]  # not in alphabetical order
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def student(path, seed, names=NAMES, temperature=1.0, pair=None):
    """A random student, its weights large enough for predictions of every class."""
    torch.manual_seed(seed)
    config = StudentConfig(len(WORDS), len(names), embedding_dim=6, hidden_dim=5, temperature=temperature,
                           pair=pair)
    model = Student(config, tokenizer(), names)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save(path)


def rows(count=60, seed=0):
    """(text, label) drawn at random; the texts are all different."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(3, 9))) + f" x{i}" for i in range(count)]
    return [(text, rng.choice(NAMES)) for text in texts]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """one.pt and two.pt, whose label order differs, and data.tsv, all in the working directory; the rows."""
    monkeypatch.chdir(tmp_path)
    student("one.pt", 1)
    student("two.pt", 2, ["mid", "neg", "pos"], temperature=1.5)
    data = rows()
    write_rows(Path("data.tsv"), data)
    return data


def run(capsys, *flags):
    evaluate.main(evaluate.parse_args([*flags, "--device", "cpu"]))
    return capsys.readouterr().out


def models_of(capsys, *flags):
    return json.loads(run(capsys, *flags, "--json"))["models"]


def predictions(path, *columns):
    """Student.predict as a {label: probability} for each row."""
    model = Student.load(path)
    probabilities = model.predict(*map(list, columns)).tolist()
    return [dict(zip(model.label_names, row, strict=True)) for row in probabilities]


def best(row):
    return max(row, key=row.get)


def by_hand(path, first, data):
    """The figures of one model in plain Python."""
    labels, columns = [label for *_, label in data], list(zip(*data, strict=True))[:-1]
    found, n = predictions(path, *columns), len(data)
    predicted, base = [best(p) for p in found], [best(p) for p in predictions(first, *columns)]
    f1, gaps = [], [0.0] * 15
    for name in NAMES:
        hits = sum(p == label == name for p, label in zip(predicted, labels, strict=True))
        f1.append(2 * hits / (predicted.count(name) + labels.count(name)))
    for p, label in zip(found, labels, strict=True):
        gaps[math.ceil(max(p.values()) * 15) - 1] += (best(p) == label) - max(p.values())
    return {
        "accuracy": sum(p == label for p, label in zip(predicted, labels, strict=True)) / n,
        "macro_f1": sum(f1) / 3,
        "log_loss": -sum(math.log(p[label]) for p, label in zip(found, labels, strict=True)) / n,
        "ece": sum(map(abs, gaps)) / n,
        "agreement": sum(a == b for a, b in zip(predicted, base, strict=True)) / n,
    }


# ---- figures -----------------------------------------------------------------------------------------------


def test_every_figure_equals_a_computation_from_predict(case, capsys):
    """two.pt has its labels in another order: its columns follow those of the first model."""
    for order in (["one.pt", "two.pt"], ["two.pt", "one.pt"]):
        found = json.loads(run(capsys, *order, "--data", "data.tsv", "--json"))
        assert (found["data"], found["rows"], found["seen_rows"]) == ("data.tsv", 60, None)
        labels = [label for _, label in case]
        assert found["commonest"] == max(map(labels.count, NAMES)) / 60 and found["device"] == "cpu"
        assert [model["model"] for model in found["models"]] == order
        for path, model in zip(order, found["models"], strict=True):
            expected = by_hand(path, order[0], case)
            assert {key: model[key] for key in expected} == pytest.approx(expected, rel=1e-5)
            assert model["bytes"] == len(Path(path).read_bytes())
            assert model["parameters"] == 12 * 6 + 2 * 4 * 5 * (6 + 5 + 2) + 3 * (2 * 5 + 1)
            assert not {"logits", "statistics", "answers", "unseen"} & model.keys()
        first, second = found["models"]
        assert first["agreement"] == 1 and "difference" not in first
        assert 0.05 < second["agreement"] < 0.95 and 0 < second["accuracy"] < 1  # they can be told apart


def test_intervals_and_differences_are_by_bootstrap_over_the_same_rows(case, capsys):
    task, target = tasks.Classification(NAMES), torch.tensor([NAMES.index(label) for _, label in case])
    texts, rows = [text for text, _ in case], []
    for path in ("one.pt", "two.pt", "one.pt"):
        model = Student.load(path)
        order = [model.label_names.index(name) for name in NAMES]
        rows.append(task.statistics(model.logits(texts)[:, order], target))
    expected = tasks.bootstrap(task, rows)
    found = models_of(capsys, "one.pt", "two.pt", "one.pt", "--data", "data.tsv")
    for model, interval in zip(found, expected, strict=True):
        assert model["interval"] == pytest.approx(list(interval["accuracy"]), abs=1e-9)
        assert model["interval"][0] < model["accuracy"] < model["interval"][1]
    one, two, again = found
    assert two["difference"] == pytest.approx(
        [two["accuracy"] - one["accuracy"], *expected[1]["difference"]], abs=1e-9)
    assert two["difference"][1] < two["difference"][0] < two["difference"][2]
    assert again["difference"] == [0, 0, 0] and again["interval"] == one["interval"]


def test_the_error_before_calibration_is_that_of_temperature_1(case, capsys):
    student("warm.pt", 1, temperature=2.5)
    one, warm = models_of(capsys, "one.pt", "warm.pt", "--data", "data.tsv")
    assert one["ece_uncalibrated"] == pytest.approx(one["ece"], abs=1e-6)
    assert warm["ece_uncalibrated"] == pytest.approx(one["ece"], abs=1e-6)
    assert abs(warm["ece"] - one["ece"]) > 0.01
    assert warm["ece"] == pytest.approx(by_hand("warm.pt", "one.pt", case)["ece"], abs=1e-6)


def test_pairs_are_judged_as_pairs_in_any_number_of_chunks(case, capsys, monkeypatch):
    """Their mistakes have both texts; one is seen only if both texts were."""
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    student("one.pt", 1, pair="align")
    student("two.pt", 2, ["mid", "neg", "pos"], temperature=1.5, pair="siamese")
    pairs = [(text, other, label) for (text, label), (other, _) in zip(case, rows(60, 1), strict=True)]
    write_rows(Path("pairs.tsv"), pairs, "premise\ttext2\tgold")
    write_rows(Path("train.tsv"), [(a, b) for a, b, _ in pairs[:7]] + [(a, "0") for a, _, _ in pairs[7:]],
               "premise\ttext2")
    flags = ["--data", "pairs.tsv", "--text-column", "premise", "--label-column", "gold"]
    found = models_of(capsys, "one.pt", "two.pt", *flags, "--errors", "mistakes.tsv")[1]
    expected = by_hand("two.pt", "one.pt", pairs)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    swapped = by_hand("two.pt", "one.pt", [(other, text, label) for text, other, label in pairs])
    assert found["log_loss"] != pytest.approx(swapped["log_loss"], rel=1e-3)
    header, *lines = [line.split("\t") for line in Path("mistakes.tsv").read_text("utf-8").splitlines()]
    assert header[-2:] == ["text", "text2"] and lines
    assert all((line[2], (line[7], line[8], line[3])) == ("", pairs[int(line[1])]) for line in lines)
    assert json.loads(run(capsys, "one.pt", *flags, "--seen", "train.tsv", "--json"))["seen_rows"] == 7


def test_a_teacher_is_judged_by_the_same_figures(case, capsys):
    torch.manual_seed(0)
    config = TeacherConfig("bert", len(WORDS), 8, 1, 2, 16, 8, 32, 2, num_labels=3, initializer_range=1.0)
    teacher = Teacher(config, tokenizer(), NAMES, max_length=32)
    teacher.save("teacher.pt")
    found = models_of(capsys, "one.pt", "teacher.pt", "--data", "data.tsv")[1]
    probabilities = teacher.eval().predict([text for text, _ in case])
    labels = torch.tensor([NAMES.index(label) for _, label in case])
    assert found["accuracy"] == (probabilities.argmax(1) == labels).double().mean().item()
    assert found["log_loss"] == pytest.approx(-probabilities[range(60), labels].log().mean().item(), rel=1e-5)
    assert "ece_uncalibrated" not in found


# ---- cached logits -----------------------------------------------------------------------------------------


def write_logits(path, data, names=("mid", "neg", "pos"), **changes):
    """Random logits of data.tsv as dump_logits.py writes them; {label: probability} of each row."""
    logits = 2 * torch.randn(len(data), len(names), generator=torch.Generator().manual_seed(5))
    artifact = {"kind": "logits", "format": 2, "logits": logits, "label_names": list(names), "teachers": [],
                "texts": read_examples("data.tsv").fingerprint(), "teacher_files": []}
    torch.save(artifact | changes, path)
    return [dict(zip(names, row, strict=True)) for row in logits.softmax(1).tolist()]


def test_logits_are_judged_as_a_model_that_need_not_run(case, capsys):
    expected = write_logits("logits.pt", case)
    flags = ["--data", "data.tsv", "--logits", "logits.pt"]
    beside, alone = models_of(capsys, "one.pt", *flags)[1], models_of(capsys, *flags)[0]
    right = [best(p) == label for p, (_, label) in zip(expected, case, strict=True)]
    for found in (beside, alone):
        assert found["model"] == "logits.pt" and "texts_per_second" not in found
        assert found["accuracy"] == pytest.approx(sum(right) / 60, abs=1e-12)
        assert found["log_loss"] == pytest.approx(
            -sum(math.log(p[label]) for p, (_, label) in zip(expected, case, strict=True)) / 60, abs=1e-5)
    ones = [best(p) for p in predictions("one.pt", [text for text, _ in case])]
    assert beside["agreement"] == sum(best(p) == q for p, q in zip(expected, ones, strict=True)) / 60
    line = run(capsys, "one.pt", *flags, "--markdown").splitlines()[-1]
    assert line.startswith("| logits.pt | ") and line.endswith(" | – | – |")


def test_a_bare_tensor_has_the_labels_of_the_file_or_of_the_model_beside(case, capsys):
    write_logits("logits.pt", case)
    torch.save(torch.load("logits.pt", weights_only=True)["logits"], "bare.pt")
    named, bare = (models_of(capsys, "--data", "data.tsv", "--logits", path)[0] for path in
                   ("logits.pt", "bare.pt"))
    assert named["log_loss"] == bare["log_loss"]  # alphabetical, as there

    two = [row for row in case if row[1] != "mid"]  # not every label is in the file
    write_rows(Path("data.tsv"), two)
    torch.save(Student.load("two.pt").logits([text for text, _ in two]), "bare.pt")
    model, bare = models_of(capsys, "two.pt", "--data", "data.tsv", "--logits", "bare.pt")
    assert bare["accuracy"] == model["accuracy"] and bare["agreement"] == 1
    other = Student.load("two.pt")
    other.label_names.reverse()  # a bare tensor keeps the order of the sorted labels
    other.save("other.pt")
    reversed_, bare = models_of(capsys, "other.pt", "--data", "data.tsv", "--logits", "bare.pt")
    assert bare["accuracy"] == model["accuracy"] != reversed_["accuracy"] and bare["agreement"] < 1
    torch.save(torch.zeros(len(two), 2), "bare.pt")
    refused(capsys, r"bare\.pt: 2 columns", "two.pt", "--data", "data.tsv", "--logits", "bare.pt")


@pytest.mark.parametrize(("changes", "words"), [
    ({"texts": "0"}, "other texts.*dump_logits.py"),
    ({"label_names": ["a", "b", "c"]}, "'a', 'b', 'c'.*'neg', 'pos', 'mid'"),
    ({"task": "multilabel"}, "multilabel"),
    ({"logits": torch.zeros(59, 3)}, "59 rows.*60"),
    ({"logits": torch.zeros(60, 2)}, r"\[60, 2\]"),
    ({"logits": torch.tensor([[0.0]] * 7 + [[math.nan]] * 53).expand(60, 3).clone()}, "row 7"),
    ({"kind": "teacher"}, "teacher"),
])
def test_logits_that_do_not_belong_are_refused(case, capsys, changes, words):
    write_logits("logits.pt", case, **changes)
    refused(capsys, rf"logits\.pt: .*{words}", "one.pt", "--data", "data.tsv", "--logits", "logits.pt")


# ---- --seen ------------------------------------------------------------------------------------------------


def unseen_accuracy(path, data, seen):
    kept = [(best(p), label) for p, (text, label) in zip(predictions(path, [text for text, _ in data]), data,
                                                         strict=True) if text not in seen]  # fmt: skip
    return sum(p == label for p, label in kept) / len(kept)


def test_seen_texts_are_counted_and_left_out_of_unseen(case, capsys):
    """Over several files, with other blanks, whatever their labels; a part of a text is not the text."""
    seen = {text for text, _ in case[:25:2] + case[40:]}
    write_rows(Path("train.tsv"), [(f"  {text.replace(' ', '  ')} ", "other") for text, _ in case[:25:2]]
               + [(case[30][0][:-1], "neg")])
    write_rows(Path("more.tsv"), case[40:] + case[40:], "text")
    flags = ["one.pt", "two.pt", "--data", "data.tsv", "--seen", "train.tsv", "more.tsv"]
    found = json.loads(run(capsys, *flags, "--json"))
    assert found["seen_rows"] == len(seen) == 33
    for path, model in zip(["one.pt", "two.pt"], found["models"], strict=True):
        assert model["unseen"] == pytest.approx(unseen_accuracy(path, case, seen), abs=1e-12)
        assert model["accuracy"] == pytest.approx(by_hand(path, path, case)["accuracy"], abs=1e-12)
    assert "33 of 60 texts (55.00%)" in run(capsys, *flags).splitlines()[-1]
    found = json.loads(run(capsys, "one.pt", "--data", "data.tsv", "--seen", "data.tsv", "--json"))
    assert found["seen_rows"] == 60 and "unseen" not in found["models"][0]
    out = run(capsys, "one.pt", "--data", "data.tsv", "--seen", "data.tsv", "--all")
    assert "60 of 60 texts (100.00%)" in out and "unseen" not in out
    assert "ECE" in out and "difference" not in out and "agreement" not in out  # of one model alone
    write_rows(Path("pairs.tsv"), [("a", "b")], "text\ttext2")
    refused(capsys, "pairs.tsv.*text2", "one.pt", "--data", "data.tsv", "--seen", "pairs.tsv")


# ---- output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "every"), [(False, False), (True, True)])
def test_the_table_has_a_cell_for_each_column(case, capsys, seen, every):
    """Markdown has as many cells in every line; the plain table shows the same figures."""
    columns = ["model", "accuracy", "95 % interval", *["unseen only"] * seen, "difference (95 %)",
               *["macro-F1", "log loss", "ECE", "ECE, T = 1", "agreement"] * every,
               "parameters", "bytes", "texts/s", "ms/text"]
    write_rows(Path("train.tsv"), case[:15])
    flags = ["one.pt", "two.pt", "--data", "data.tsv", *["--seen", "train.tsv"] * seen, *["--all"] * every]
    first, empty, *lines = run(capsys, *flags, "--markdown").split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[:2] == [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    assert first.startswith("data.tsv: 60 rows") and empty == ""
    plain = [[cell.strip() for cell in line.split("  ") if cell]
             for line in run(capsys, *flags).split("\n")[2:5]]
    assert plain[0] == columns
    for i, model in enumerate(models_of(capsys, *flags)):
        difference = [f"{100 * value:+.2f}" for value in model.get("difference", ())]
        expected = [
            model["model"], f"{model['accuracy']:.2%}", "{:.2%}–{:.2%}".format(*model["interval"]),
            *[f"{model.get('unseen', 0):.2%}"] * seen,
            "{} ({} … {})".format(*difference) if difference else "–",
            *[f"{model[key]:.4f}" for key in ("macro_f1", "log_loss", "ece", "ece_uncalibrated") * every],
            *[f"{model['agreement']:.2%}"] * every, "625", f"{model['bytes']:,}"]
        for line in (cells[2 + i], plain[1 + i]):
            assert len(line) == len(columns) and line[: len(expected)] == expected


def test_errors_lists_the_mistakes_the_largest_loss_first(case, capsys):
    """Of both models in one file; tabs and line ends of a text become blanks, so that a .tsv holds it."""
    data = [(f"{text}\t둘째\n줄", label) for text, label in case]
    Path("data.jsonl").write_text("".join(json.dumps({"text": text, "label": label, "id": f"n{i}"}) + "\n"
                                          for i, (text, label) in enumerate(data)), encoding="utf-8")
    out = run(capsys, "one.pt", "two.pt", "--data", "data.jsonl", "--errors", "in/new/mistakes.tsv")
    expected = {}
    for path in ("one.pt", "two.pt"):
        for i, p in enumerate(predictions(path, [text for text, _ in data])):
            text, label = data[i]
            if best(p) != label:
                expected[path, str(i)] = [f"n{i}", label, best(p), text.replace("\t", " ").replace("\n", " "),
                                          max(p.values()), -math.log(p[label])]
    header, *lines, end = Path("in/new/mistakes.tsv").read_bytes().decode().split("\n")
    assert header.split("\t") == ["model", "row", "id", "label", "predicted", "confidence", "loss", "text"]
    found = [line.split("\t") for line in lines]
    assert sorted((line[0], line[1]) for line in found) == sorted(expected) and end == ""
    for model, row, name, label, answer, confidence, loss, text in found:
        assert [name, label, answer, text] == expected[model, row][:4]
        assert [float(confidence), float(loss)] == pytest.approx(expected[model, row][4:], abs=1e-4)
    losses = [float(line[6]) for line in found]
    assert losses == sorted(losses, reverse=True) and {line[0] for line in found[:20]} == {"one.pt", "two.pt"}
    assert f"mistakes.tsv: {len(expected)} " in out


def test_the_script_runs_from_a_command_line(case):
    done = subprocess.run([sys.executable, evaluate.__file__, "one.pt", "--data", "data.tsv"],
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "one.pt" in done.stdout


# ---- refusals ----------------------------------------------------------------------------------------------


def refused(capsys, words, *flags):
    """Exit code 2, one line on stderr in which the words are found, nothing on stdout."""
    with pytest.raises(SystemExit) as exit_:
        runtime.main(evaluate.main, evaluate.parse_args([*flags, "--device", "cpu"]),
                     errors=(evaluate.StudentError,))
    out, error = capsys.readouterr()
    assert exit_.value.code == 2 and out == "" and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(words, error.removeprefix("error: ")), error


@pytest.mark.parametrize(("lines", "words"), [
    (["text\tlabel", "a\tneg", "b\t", "c\t"], "3: no label"), (["text", "a"], " no column label"),
    (["text\tlabel", "a\tneg", "b\tgood"], "3: .*'good'.*'neg', 'pos', 'mid'"),
])
def test_rows_without_a_usable_label_are_refused_with_their_line(case, capsys, lines, words):
    Path("bad.tsv").write_text("\n".join([*lines, ""]))
    refused(capsys, f"^bad.tsv:{words}", "one.pt", "--data", "bad.tsv")


def test_files_that_are_no_model_of_these_labels_are_refused(case, capsys):
    write_logits("logits.pt", case)
    torch.save({"kind": "student", "format": 1, "config": {}}, "part.pt")
    student("other.pt", 3, ["neg", "pos"])
    for name in ("logits.pt", "part.pt", "data.tsv", "none.pt", "other.pt"):
        refused(capsys, rf"^{name}\b", "one.pt", name, "--data", "data.tsv")


@pytest.mark.parametrize("name", ["./data.tsv", "seen.tsv", "two.pt", "logits.pt", "pipe"])
def test_errors_never_overwrite_what_is_read_nor_a_pipe(case, capsys, name):
    write_rows(Path("seen.tsv"), case[:3])
    write_logits("logits.pt", case)
    os.mkfifo("pipe")
    before = None if name == "pipe" else Path(name).read_bytes()
    refused(capsys, Path(name).name, "one.pt", "two.pt", "--data", "data.tsv", "--seen", "seen.tsv",
            "--logits", "logits.pt", "--errors", name)
    assert Path("pipe").is_fifo() and (before is None or Path(name).read_bytes() == before)


@pytest.mark.parametrize("path", ["one.pt/mistakes.tsv", "folder"])
def test_errors_that_cannot_be_written_are_told(case, capsys, path):
    """After the table is printed: what was computed is not lost."""
    Path("folder").mkdir()
    with pytest.raises(runtime.UserError, match=f"^{path}: cannot write"):
        run(capsys, "one.pt", "--data", "data.tsv", "--errors", path)
    assert "one.pt" in capsys.readouterr().out
    assert {file.name for file in Path().iterdir()} == {"data.tsv", "folder", "one.pt", "two.pt"}


def test_names_of_files_that_are_not_utf8(case, capsys):
    """Such as CP949 on Linux: in a table of UTF-8 their bytes are told in hexadecimal."""
    model, data, errors = (os.fsdecode(name) for name in (b"\xb0\xa1.pt", b"\xb0\xa2.tsv", b"\xb0\xa3.tsv"))
    os.rename("one.pt", model)
    os.rename("data.tsv", data)
    runtime.main(evaluate.main, evaluate.parse_args([model, "--data", data, "--errors", errors]))
    lines = Path(errors).read_text("utf-8").splitlines()
    assert len(lines) > 1 and all(line.startswith("\\udcb0\\udca1.pt\t") for line in lines[1:])


@pytest.mark.parametrize(("flags", "word"), [
    ([], "--data"),
    (["a.pt"], "--data"),
    (["--data", "a.tsv"], "--logits"),  # nothing to judge
    (["a.pt", "--data", "a.tsv", "--json", "--markdown"], "--markdown"),
    (["a.pt", "--data", "a.tsv", "--device", "tpu"], "tpu"),
])
def test_bad_flags_end_with_code_2(capsys, flags, word):
    with pytest.raises(SystemExit) as exit_:
        evaluate.parse_args(flags)
    assert exit_.value.code == 2 and word in capsys.readouterr().err.strip().split("\n")[-1]
