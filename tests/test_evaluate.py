"""evaluate.py: its figures by hand and against published values; the command on tiny random models."""

import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import evaluate
import runtime
from data.examples import read_examples
from evaluate import calibration_error, macro_f1, mcnemar, wilson_interval
from student import Student, StudentConfig
from teacher import Teacher, TeacherConfig

# ---- figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correct", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
])  # fmt: skip
def test_wilson_interval_is_as_published(correct, n, low, high):
    """Newcombe (1998), Statistics in Medicine 17, table I, method 3; and mirrored for the complement."""
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_solves_the_score_equation():
    """Its ends are where (p̂ - p)² = z² p (1 - p) / n, Wilson (1927)."""
    for correct, n in ((0, 7), (3, 7), (87, 100), (43_910, 50_000)):
        for p in wilson_interval(correct, n):
            assert (correct / n - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / n, abs=1e-12)


@pytest.mark.parametrize(("predicted", "labels", "classes", "expected"), [
    ([0, 1, 1, 0], [0, 1, 1, 0], 2, 1.0),
    ([0, 1, 1, 1, 0], [0, 1, 1, 0, 1], 2, (2 / 4 + 4 / 6) / 2),
    ([1, 1, 1, 1], [0, 1, 1, 1], 2, (0 + 6 / 7) / 2),  # 0 is never predicted
    ([0, 0, 1, 1], [0, 1, 1, 0], 3, (1 / 2 + 1 / 2 + 0) / 3),  # 2 is neither predicted nor a label
    ([2, 0, 0], [0, 0, 1], 3, (2 / 4 + 0 + 0) / 3),  # 2 is predicted only, 1 a label only
])  # fmt: skip
def test_macro_f1_by_hand(predicted, labels, classes, expected):
    """F1 of a class is 2 hits / (predicted + labelled)."""
    found = macro_f1(torch.tensor(predicted), torch.tensor(labels), classes)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("confidences", "right", "bins", "expected"), [
    ([1.0, 1.0], [1, 1], 15, 0.0),
    ([1.0, 1.0], [1, 0], 15, 0.5),
    ([0.75, 0.9375, 0.9375, 0.625], [1, 1, 0, 0], 15, (0.25 + abs(1 - 1.875) + 0.625) / 4),  # three bins
    ([0.75, 0.9375], [1, 0], 2, abs(1 - 1.6875) / 2),  # both in (1/2, 1]: gaps of either sign add up first
    ([0.5, 0.75, 0.8125], [0, 1, 1], 4, (0.5 + 0.25 + 0.1875) / 3),  # (1/4, 1/2], (1/2, 3/4], (3/4, 1]
    ([0.5, 0.5625, 0.75], [1, 0, 0], 4, (0.5 + 0.5625 + 0.75) / 3),  # 1/2 is not in the bin of 0.5625
])  # fmt: skip
def test_calibration_error_by_hand(confidences, right, bins, expected):
    """|sum of hits - sum of confidences| per bin, over all rows; the confidences are exact in binary."""
    probabilities = torch.tensor([[1 - p, p] for p in confidences])
    labels = torch.tensor(right) * probabilities.argmax(1) + (1 - torch.tensor(right)) * 7
    assert calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-12)


def outcomes(only_first, only_second, both=3, neither=4):
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize(("only_first", "only_second", "expected"), [
    (10, 2, 2 * (1 + 12 + 66) / 2**12),  # 0.03857
    (0, 5, 2 / 2**5),
    (1, 8, 2 * (1 + 9) / 2**9),
    (0, 1, 1.0),
    (0, 0, 1.0),
    (7, 7, 1.0),
    (4, 5, 1.0),
    (700, 800, 2 * sum(math.comb(1500, k) for k in range(701)) / 2**1500),
])  # fmt: skip
def test_mcnemar_is_the_exact_binomial_test(only_first, only_second, expected):
    for rows in (outcomes(only_first, only_second), outcomes(only_second, only_first),
                 outcomes(only_first, only_second, both=500, neither=0)):  # fmt: skip
        assert mcnemar(*rows) == pytest.approx(expected, rel=1e-9)


# ---- the command -------------------------------------------------------------------------------------------

NAMES = ["neg", "pos", "mid"]  # not in alphabetical order
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
COLUMNS = ["model", "accuracy", "95 % interval", "macro-F1", "log loss", "ECE", "ECE, T = 1", "agreement",
           "p", "parameters", "bytes", "texts/s", "ms/text"]  # fmt: skip


def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def student(path, seed, names=NAMES):
    """A random student, its weights large enough for predictions of every class."""
    torch.manual_seed(seed)
    model = Student(StudentConfig(len(WORDS), len(names), embedding_dim=6, hidden_dim=5), tokenizer(), names)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    model.save(path)
    return str(path)


def rows(count=60, seed=0):
    """(text, label) drawn at random; the texts are all different."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(3, 9))) + f" x{i}" for i in range(count)]
    return [(text, rng.choice(NAMES)) for text in texts]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """one.pt and two.pt, whose label order differs, and data.tsv, all in the working directory."""
    monkeypatch.chdir(tmp_path)
    student("one.pt", 1)
    student("two.pt", 2, ["mid", "neg", "pos"])
    data = rows()
    write_tsv("data.tsv", data)
    return data


def write_tsv(path, data, header=("text", "label")):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines("\t".join(row) + "\n" for row in [header, *data])


def run(capsys, *flags):
    evaluate.main(evaluate.parse_args([*flags, "--device", "cpu"]))
    return capsys.readouterr().out


def predictions(path, *columns):
    """Student.predict as a {label: probability} for each row."""
    model = Student.load(path)
    probabilities = model.predict(*map(list, columns)).tolist()
    return [dict(zip(model.label_names, row, strict=True)) for row in probabilities]


def best(row):
    return max(row, key=row.get)


def by_hand(path, first, data):
    """The figures of one model in plain Python."""
    labels = [label for *_, label in data]
    n = len(labels)
    row = predictions(path, *list(zip(*data, strict=True))[:-1])
    predicted = [best(p) for p in row]
    base = [best(p) for p in predictions(first, *list(zip(*data, strict=True))[:-1])]
    right = [p == label for p, label in zip(predicted, labels, strict=True)]
    base_right = [p == label for p, label in zip(base, labels, strict=True)]
    lost, won = (sum(a > b for a, b in zip(x, y, strict=True))
                 for x, y in ((base_right, right), (right, base_right)))  # fmt: skip
    f1 = []
    for name in NAMES:
        hits = sum(p == label == name for p, label in zip(predicted, labels, strict=True))
        f1.append(2 * hits / (predicted.count(name) + labels.count(name)))
    gaps = [0.0] * 15
    for p, hit in zip(row, right, strict=True):
        gaps[math.ceil(max(p.values()) * 15) - 1] += hit - max(p.values())
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    return {
        "accuracy": sum(right) / n,
        "macro_f1": sum(f1) / 3,
        "log_loss": -sum(math.log(p[label]) for p, label in zip(row, labels, strict=True)) / n,
        "ece": sum(map(abs, gaps)) / n,
        "agreement": sum(a == b for a, b in zip(predicted, base, strict=True)) / n,
        "mcnemar_p": min(1.0, 2 * tail),
    }


def test_every_figure_equals_a_computation_from_predict(case, capsys):
    """two.pt has its labels in another order: its columns follow those of the first model."""
    for order in (["one.pt", "two.pt"], ["two.pt", "one.pt"]):
        found = json.loads(run(capsys, *order, "--data", "data.tsv", "--json"))
        assert (found["data"], found["rows"], found["seen_rows"]) == ("data.tsv", 60, None)
        labels = [label for _, label in case]
        assert found["majority"] == max(map(labels.count, NAMES)) / 60
        assert [model["model"] for model in found["models"]] == order
        for path, model in zip(order, found["models"], strict=True):
            expected = by_hand(path, order[0], case)
            assert {key: model[key] for key in expected} == pytest.approx(expected, rel=1e-6)
            assert model["interval"] == list(wilson_interval(round(60 * expected["accuracy"]), 60))
            assert model["bytes"] == len(Path(path).read_bytes())
            assert model["parameters"] == 12 * 6 + 2 * 4 * 5 * (6 + 5 + 2) + 3 * (2 * 5 + 1)
            assert "probabilities" not in model and "unseen_accuracy" not in model
        first, second = found["models"]
        assert (first["agreement"], first["mcnemar_p"]) == (1, 1)
        assert 0.05 < second["agreement"] < 0.95 and 0 < second["accuracy"] < 1  # they can be told apart


def test_pairs_are_judged_as_pairs_in_any_number_of_chunks(case, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    pairs = [(text, other, label) for (text, label), (other, _) in zip(case, rows(60, 1), strict=True)]
    write_tsv("pairs.tsv", pairs, ("premise", "text2", "gold"))
    found = json.loads(run(capsys, "one.pt", "two.pt", "--data", "pairs.tsv", "--json", "--text-column",
                           "premise", "--label-column", "gold"))["models"][1]
    expected = by_hand("two.pt", "one.pt", pairs)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert found["log_loss"] != pytest.approx(by_hand("two.pt", "one.pt", case)["log_loss"], rel=1e-3)


def test_a_teacher_is_judged_by_the_same_figures(case, capsys):
    torch.manual_seed(0)
    config = TeacherConfig("bert", len(WORDS), 8, 1, 2, 16, 8, 32, 2, num_labels=3, initializer_range=1.0)
    teacher = Teacher(config, tokenizer(), NAMES, max_length=32)
    teacher.save("teacher.pt")
    found = json.loads(run(capsys, "one.pt", "teacher.pt", "--data", "data.tsv", "--json"))["models"][1]
    probabilities = teacher.eval().predict([text for text, _ in case])
    labels = torch.tensor([NAMES.index(label) for _, label in case])
    assert found["accuracy"] == (probabilities.argmax(1) == labels).double().mean().item()
    assert found["log_loss"] == pytest.approx(-probabilities[range(60), labels].log().mean().item(), rel=1e-5)


# ---- --seen ------------------------------------------------------------------------------------------------


def unseen_accuracy(path, data, seen):
    kept = [(best(p), label) for p, (text, label) in zip(predictions(path, [text for text, _ in data]), data,
                                                         strict=True) if text not in seen]  # fmt: skip
    return sum(p == label for p, label in kept) / len(kept)


def test_seen_texts_are_counted_and_left_out_of_unseen(case, capsys):
    """Over several files, with blanks around, whatever their labels; a part of a text is not the text."""
    seen = {text for text, _ in case[:25:2] + case[40:]}
    write_tsv("train.tsv", [(f"  {text} ", "other") for text, _ in case[:25:2]] + [(case[30][0][:-1], "neg")])
    write_tsv("more.tsv", [(text,) for text, _ in case[40:] + case[40:]], ["text"])
    flags = ["one.pt", "two.pt", "--data", "data.tsv", "--seen", "train.tsv", "more.tsv"]
    found = json.loads(run(capsys, *flags, "--json"))
    assert found["seen_rows"] == len(seen) == 33
    for path, model in zip(["one.pt", "two.pt"], found["models"], strict=True):
        assert model["unseen_accuracy"] == pytest.approx(unseen_accuracy(path, case, seen), abs=1e-12)
        assert model["accuracy"] == pytest.approx(by_hand(path, path, case)["accuracy"], abs=1e-12)
    assert run(capsys, *flags).endswith("\n33 of 60 texts (55.00%) also occur in train.tsv, more.tsv; "
                                        "'unseen only' is the accuracy without them\n")  # fmt: skip


def test_a_pair_is_seen_only_as_a_pair(case, capsys):
    pairs = [(text, f"{i}", label) for i, (text, label) in enumerate(case)]
    write_tsv("pairs.tsv", pairs, ("text", "text2", "label"))
    write_tsv("train.tsv", [(a, b) for a, b, _ in pairs[:7]] + [(a, "0") for a, _, _ in pairs[7:]],
              ("text", "text2"))
    found = json.loads(run(capsys, "one.pt", "--data", "pairs.tsv", "--seen", "train.tsv", "--json"))
    assert found["seen_rows"] == 7


def test_without_an_unseen_text_there_is_no_unseen_accuracy(case, capsys):
    found = json.loads(run(capsys, "one.pt", "--data", "data.tsv", "--seen", "data.tsv", "--json"))
    assert found["seen_rows"] == 60 and "unseen_accuracy" not in found["models"][0]


# ---- output ------------------------------------------------------------------------------------------------


def test_errors_lists_the_mistakes_most_confident_first(case, capsys):
    """Of both models in one file; tabs and line ends of a text become blanks, so that a .tsv holds it."""
    data = [(f"{text}\t둘째\n줄", label) for text, label in case]
    with open("data.jsonl", "w", encoding="utf-8") as file:
        for i, (text, label) in enumerate(data):
            file.write(json.dumps({"text": text, "label": label, "id": f"n{i}"}) + "\n")
    out = run(capsys, "one.pt", "two.pt", "--data", "data.jsonl", "--errors", "mistakes.tsv")
    expected = []
    for path in ("one.pt", "two.pt"):
        for i, p in enumerate(predictions(path, [text for text, _ in data])):
            text, label = data[i]
            if best(p) != label:
                expected.append((-max(p.values()), len(expected), [
                    path, str(i), f"n{i}", label, best(p), f"{max(p.values()):.4f}", f"{p[label]:.4f}",
                    text.replace("\t", " ").replace("\n", " ")]))
    expected = [line for *_, line in sorted(expected)]
    assert {line[0] for line in expected[:20]} == {"one.pt", "two.pt"}  # the models' mistakes are mixed
    header, *lines, end = Path("mistakes.tsv").read_bytes().decode().split("\n")
    assert header == "\t".join(["model", "row", "id", "label", "predicted", "p_predicted", "p_label", "text"])
    assert [line.split("\t") for line in lines] == expected and end == ""
    assert out.endswith(f"\nmistakes.tsv: {len(expected)} mistakes, most confident first\n")


def test_errors_of_pairs_have_both_texts_and_ids_may_lack(case, capsys):
    pairs = [(text, f"둘째 {i}", label) for i, (text, label) in enumerate(case)]
    write_tsv("pairs.tsv", pairs, ("text", "text2", "label"))
    run(capsys, "one.pt", "--data", "pairs.tsv", "--errors", "mistakes.tsv")
    text = Path("mistakes.tsv").read_text(encoding="utf-8")
    header, *lines = [line.split("\t") for line in text.splitlines()]
    assert header[-2:] == ["text", "text2"] and lines
    assert all((line[2], (line[7], line[8], line[3])) == ("", pairs[int(line[1])]) for line in lines)


@pytest.mark.parametrize("seen", [False, True])
def test_the_table_has_a_cell_for_each_column(case, capsys, seen):
    """Markdown has as many cells in every line; the plain table shows the same figures."""
    columns = COLUMNS[:3] + ["unseen only"] * seen + COLUMNS[3:]
    write_tsv("train.tsv", case[:15])
    flags = ["one.pt", "two.pt", "--data", "data.tsv", *(["--seen", "train.tsv"] if seen else [])]
    first, empty, *lines = run(capsys, *flags, "--markdown").split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines[:4])
    assert cells[:2] == [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    share = max(sum(label == name for _, label in case) for name in NAMES) / 60
    assert first.startswith(f"data.tsv: 60 rows, labels ['neg', 'pos', 'mid'], largest class {share:.2%}; ")
    assert empty == ""

    lines = run(capsys, *flags).split("\n")[2:5]
    plain = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    assert plain[0] == columns
    for i, path in enumerate(["one.pt", "two.pt"]):
        figures = by_hand(path, "one.pt", case)
        low, high = wilson_interval(round(60 * figures["accuracy"]), 60)
        expected = [path, f"{figures['accuracy']:.2%}", f"{low:.2%}–{high:.2%}"]
        if seen:
            expected.append(f"{unseen_accuracy(path, case, {text for text, _ in case[:15]}):.2%}")
        expected += [f"{figures[key]:.4f}" for key in ("macro_f1", "log_loss", "ece", "ece")]
        expected += [f"{figures['agreement']:.2%}", f"{figures['mcnemar_p']:.2g}", "625"]
        for line in (cells[2 + i], plain[1 + i]):
            assert len(line) == len(columns)
            assert line[:len(expected)] == expected


# ---- refusals ----------------------------------------------------------------------------------------------


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as exit_:
        runtime.run(evaluate.main, evaluate.parse_args([*flags, "--device", "cpu"]))
    assert exit_.value.code == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1
    return error.removeprefix("error: ").removesuffix("\n")


def test_a_model_of_other_labels_is_refused(case, capsys):
    student("other.pt", 3, ["neg", "pos"])
    assert refused(capsys, "one.pt", "other.pt", "--data", "data.tsv") == (
        "other.pt: its labels are ['neg', 'pos'], those of the first model ['neg', 'pos', 'mid']; "
        "compare models of the same labels")


@pytest.mark.parametrize(("data", "header", "message"), [
    ([("a", "neg"), ("b", ""), ("c", "")], ("text", "label"), "bad.tsv:3: no label; every row needs one"),
    ([("a",)], ("text",), "bad.tsv:2: no label; every row needs one"),
    ([("a", "neg"), ("b", "good")], ("text", "label"),
     "bad.tsv:3: label 'good' is none of ['neg', 'pos', 'mid']; correct it"),
])
def test_rows_without_a_usable_label_are_refused_with_their_line(case, capsys, data, header, message):
    write_tsv("bad.tsv", data, header)
    assert refused(capsys, "one.pt", "--data", "bad.tsv") == message


def test_files_that_are_no_model_are_refused(case, capsys):
    torch.save({"kind": "logits", "format": 1}, "logits.pt")
    torch.save(torch.zeros(2), "tensor.pt")
    torch.save({"kind": "student", "format": 1, "config": {}}, "part.pt")
    needed = "; a student.pt or teacher.pt is needed"
    for path, message in {
        "logits.pt": "logits.pt: holds logits" + needed,
        "tensor.pt": "tensor.pt: holds something that is not of this kit" + needed,
        "data.tsv": "data.tsv: not a .pt file that can be loaded safely (",
        "none.pt": "none.pt: cannot read (No such file or directory)",
        "part.pt": "part.pt: damaged (",
    }.items():
        assert refused(capsys, "one.pt", path, "--data", "data.tsv").startswith(message)


def test_errors_that_cannot_be_written_are_told(case, capsys):
    """After the table is printed: what was computed is not lost."""
    with pytest.raises(runtime.UserError) as error:
        run(capsys, "one.pt", "--data", "data.tsv", "--errors", "one.pt/mistakes.tsv")
    assert str(error.value) == "one.pt/mistakes.tsv: cannot write (File exists); nothing was changed"
    assert "one.pt" in capsys.readouterr().out


def test_a_device_or_pipe_is_not_replaced_by_a_file(case, capsys):
    os.mkfifo("pipe")
    os.mkdir("folder")
    for name in ("pipe", "folder"):
        assert refused(capsys, "one.pt", "--data", "data.tsv", "--errors", name) == (
            f"--errors {name}: is no file that could be replaced; name another")
    with pytest.raises(runtime.UserError, match=r"^pipe: is no file that could be replaced$"):
        runtime.save_together({"pipe": "text"})
    assert Path("pipe").is_fifo()


def test_names_of_files_that_are_not_utf8(case, capsys):
    """Such as CP949 on Linux: in a table of UTF-8 their bytes are told in hexadecimal."""
    model, data, errors = (os.fsdecode(name) for name in (b"\xb0\xa1.pt", b"\xb0\xa2.tsv", b"\xb0\xa3.tsv"))
    os.rename("one.pt", model)
    os.rename("data.tsv", data)
    runtime.run(evaluate.main, evaluate.parse_args([model, "--data", data, "--errors", errors]))
    lines = Path(errors).read_text("utf-8").splitlines()
    assert len(lines) > 1 and all(line.startswith("\\udcb0\\udca1.pt\t") for line in lines[1:])


@pytest.mark.parametrize("name", ["./data.tsv", "seen.tsv", "two.pt"])
def test_errors_never_overwrite_what_is_read(case, capsys, name):
    write_tsv("seen.tsv", case[:3])
    before = Path(name).read_bytes()
    flags = ["one.pt", "two.pt", "--data", "data.tsv", "--seen", "seen.tsv", "--errors"]
    assert refused(capsys, *flags, name) == (
        f"--errors {name} would overwrite another file of this command; name another")
    assert Path(name).read_bytes() == before
    run(capsys, *flags, "in/new/folders.tsv")
    assert Path("in/new/folders.tsv").read_text("utf-8").startswith("model\trow\t")


@pytest.mark.parametrize(("flags", "message"), [
    ([], "the following arguments are required: --data"),
    (["--data", "a.tsv"], "name a student.pt or teacher.pt, or give --logits"),
    (["a.pt", "--data", "a.tsv", "--escalate"],
     "--disagreements and --escalate need --logits (dump_logits.py --data FILE makes them)"),
    (["--data", "a.tsv", "--logits", "l.pt", "--escalate"], "--escalate needs a student.pt"),
    (["a.pt", "--data", "a.tsv", "--logits", "l.pt", "--escalate", "101"],
     "--escalate is an accuracy in percent, such as 89"),
    (["a.pt"], "the following arguments are required: --data"),
    (["a.pt", "--data", "a.tsv", "--json", "--markdown"], "not allowed with argument --json"),
    (["a.pt", "--data", "a.tsv", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
])
def test_bad_flags_end_with_code_2(capsys, flags, message):
    with pytest.raises(SystemExit) as exit_:
        evaluate.parse_args(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]


# ---- the cached teacher ------------------------------------------------------------------------------------


def write_logits(path, data, names=("mid", "neg", "pos"), seed=5, **changes):
    """Random logits of data.tsv as dump_logits.py writes them; returns {label: probability} of each row."""
    logits = 2 * torch.randn(len(data), len(names), generator=torch.Generator().manual_seed(seed))
    artifact = {"kind": "logits", "format": 2, "logits": logits, "label_names": list(names),
                "texts": read_examples("data.tsv").fingerprint()}
    torch.save(artifact | changes, path)
    return [dict(zip(names, row, strict=True)) for row in logits.softmax(1).tolist()]


def test_logits_are_judged_as_a_model_that_need_not_run(case, capsys):
    rows = write_logits("logits.pt", case)
    out = json.loads(run(capsys, "one.pt", "--data", "data.tsv", "--logits", "logits.pt", "--json"))
    alone = json.loads(run(capsys, "--data", "data.tsv", "--logits", "logits.pt", "--json"))
    right = [best(p) == label for p, (_, label) in zip(rows, case, strict=True)]
    for found in (out["models"][1], alone["models"][0]):
        assert found["model"] == "logits.pt" and "texts_per_second" not in found
        assert found["accuracy"] == pytest.approx(sum(right) / 60, abs=1e-12)
        assert found["log_loss"] == pytest.approx(
            -sum(math.log(p[label]) for p, (_, label) in zip(rows, case, strict=True)) / 60, abs=1e-5)
    ones = [best(p) for p in predictions("one.pt", [text for text, _ in case])]
    assert out["models"][1]["agreement"] == sum(best(p) == q for p, q in zip(rows, ones, strict=True)) / 60
    line = run(capsys, "one.pt", "--data", "data.tsv", "--logits", "logits.pt", "--markdown").splitlines()[-1]
    assert line.startswith("| logits.pt | ") and line.endswith(" | – | – |")


def test_a_bare_tensor_has_its_columns_in_the_order_of_the_labels(case, capsys):
    write_logits("logits.pt", case)
    torch.save(torch.load("logits.pt", weights_only=True)["logits"], "bare.pt")
    out = [json.loads(run(capsys, "--data", "data.tsv", "--logits", path, "--json"))["models"][0]["accuracy"]
           for path in ("logits.pt", "bare.pt")]
    assert out[0] == out[1]


def test_a_bare_tensor_has_the_columns_of_the_model_that_it_is_beside(case, capsys):
    """Also where the file has not every label; a row without any is told as such."""
    two = [row for row in case if row[1] != "mid"]
    write_tsv("data.tsv", two)
    probabilities = Student.load("two.pt").predict([text for text, _ in two])
    torch.save(probabilities.log(), "bare.pt")
    out = json.loads(run(capsys, "two.pt", "--data", "data.tsv", "--logits", "bare.pt", "--json"))
    assert out["models"][1]["accuracy"] == out["models"][0]["accuracy"] and out["models"][1]["agreement"] == 1
    write_tsv("data.tsv", [*case, ("말", "")])
    torch.save(torch.zeros(61, 3), "bare.pt")
    told = refused(capsys, "--data", "data.tsv", "--logits", "bare.pt")
    assert told == "data.tsv:62: no label; every row needs one"


def test_disagreements_are_the_rows_the_cached_teacher_contradicts(case, capsys):
    rows = write_logits("logits.pt", case)
    out = run(capsys, "one.pt", "--data", "data.tsv", "--logits", "logits.pt", "--disagreements", "new/d.tsv")
    expected = [(-max(p.values()), i) for i, (p, (_, label)) in enumerate(zip(rows, case, strict=True))
                if best(p) != label]
    _, *lines = [line.split("\t") for line in Path("new/d.tsv").read_text("utf-8").splitlines()]
    assert [int(line[1]) for line in lines] == [i for _, i in sorted(expected)]
    assert {line[0] for line in lines} == {"logits.pt"}
    assert out.endswith(
        f"\nnew/d.tsv: {len(lines)} rows whose label logits.pt contradict, most confident first\n")


def test_escalation_equals_a_count_at_every_threshold(case, capsys):
    teacher = write_logits("logits.pt", case)
    labels = [label for _, label in case]
    student_rows = predictions("one.pt", [text for text, _ in case])

    def combined(threshold):  # (share the student answers, accuracy of both)
        answers = [max(p.values()) >= threshold for p in student_rows]
        right = [best(p if mine else q) == label
                 for p, q, mine, label in zip(student_rows, teacher, answers, labels, strict=True)]
        return sum(answers) / 60, sum(right) / 60

    every = [combined(max(p.values())) for p in student_rows] + [combined(2)]
    wanted = sorted(accuracy for _, accuracy in every)[-5]
    flags = ["one.pt", "--data", "data.tsv", "--logits", "logits.pt", "--escalate"]
    found = json.loads(run(capsys, *flags, str(100 * wanted - 1e-9), "--json"))["models"][0]["escalation"]
    assert found["curve"][0] == [0.0, None, combined(2)[1]]
    for tenth, (share, threshold, accuracy) in enumerate(found["curve"]):
        assert share == pytest.approx(tenth / 10)
        assert (share, accuracy) == pytest.approx(combined(threshold or 2))
    share, threshold, accuracy = found["wanted"]
    assert (share, accuracy) == pytest.approx(combined(threshold))
    assert share == max(share for share, accuracy in every if accuracy >= wanted - 1e-9)
    out = run(capsys, *flags, str(100 * wanted - 1e-9))
    assert f"\nfor {wanted:.2%}: the student answers {share:.1%}, where its probability is at least " in out
    assert run(capsys, *flags, "100").endswith("100.00% is not reached at any threshold\n")
    assert "for " not in run(capsys, *flags).split("threshold", 1)[1]


def test_rows_of_one_probability_are_never_torn_apart():
    student = {"probabilities": torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])}
    teacher = {"probabilities": torch.tensor([[0.2, 0.8]] * 5)}
    labels = torch.tensor([0, 0, 1, 1, 1])
    found = evaluate.escalation(student, teacher, labels, 0.8)
    assert {share for share, _, _ in found["curve"]} == {0.0, 0.2, 0.8, 1.0}
    assert found["wanted"] == pytest.approx((0.2, 0.9, 0.8))  # 0.6 for none, 0.6 at 80 %, 0.4 for all
    assert evaluate.escalation(student, teacher, labels, 0.6)["wanted"] == pytest.approx((0.8, 0.8, 0.6))
    assert evaluate.escalation(student, teacher, torch.ones(5).long(), 1.0)["wanted"] == (0.0, None, 1.0)


def test_the_error_before_calibration_is_that_of_temperature_1(case, capsys):
    model = Student.load("one.pt")
    model.config.temperature = 2.5
    model.save("warm.pt")
    one, warm = json.loads(run(capsys, "one.pt", "warm.pt", "--data", "data.tsv", "--json"))["models"]
    assert one["ece_uncalibrated"] == pytest.approx(one["ece"], abs=1e-6)
    assert warm["ece_uncalibrated"] == pytest.approx(one["ece"], abs=1e-6)
    assert abs(warm["ece"] - one["ece"]) > 0.01


@pytest.mark.parametrize(("changes", "message"), [
    ({"texts": "0"}, "logits.pt: these are logits of other texts than data.tsv; make the right ones with "
                     "dump_logits.py --data data.tsv"),
    ({"label_names": ["a", "b", "c"]}, "logits.pt: its labels are ['a', 'b', 'c'], those of the first model "
                                       "['neg', 'pos', 'mid']; compare models of the same labels"),
    ({"logits": torch.zeros(59, 3)}, "logits.pt: not a row of logits for each of 60 texts and a column for "
                                     "each of ['mid', 'neg', 'pos']; make them anew with dump_logits.py "
                                     "--data data.tsv"),
    ({"logits": torch.tensor([[0.0]] * 7 + [[math.nan]] * 53).expand(60, 3).clone()},
     "logits.pt: the logits of row 7 are not finite; make them anew with dump_logits.py --data data.tsv"),
    ({"kind": "teacher"}, "logits.pt: holds teacher, a logits is needed"),
])
def test_logits_that_do_not_belong_are_refused(case, capsys, changes, message):
    write_logits("logits.pt", case, **changes)
    assert refused(capsys, "one.pt", "--data", "data.tsv", "--logits", "logits.pt") == message


def test_disagreements_never_overwrite_what_is_read_or_written(case, capsys):
    write_logits("logits.pt", case)
    flags = ["one.pt", "--data", "data.tsv", "--logits", "logits.pt", "--errors", "e.tsv", "--disagreements"]
    for name in ("logits.pt", "./e.tsv"):
        assert refused(capsys, *flags, name) == (
            f"--disagreements {name} would overwrite another file of this command; name another")
    assert not Path("e.tsv").exists()
