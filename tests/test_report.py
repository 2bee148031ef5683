"""bench.report: its figures by hand, each model tested once, and the sections of both README files."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from bench import report
from bench.report import paired_gain, size_of, summary
from runtime import UserError
from student import Student, StudentConfig
from teacher import Teacher, TeacherConfig, load_model

NAMES = ["나쁨", "좋음"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "좋다", "싫다", "영화", "배우"]


def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def new_student(path, seed, dimensions=(8, 16)):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Student(StudentConfig(len(WORDS), 2, *dimensions), tokenizer(), NAMES).save(path, scores={}, made_by={})
    return str(path)


@pytest.fixture
def files(tmp_path):
    """A test file of 60 reviews, 2 of which are in train.tsv, a teacher, and three students in two arms."""
    torch.manual_seed(1)
    config = TeacherConfig("bert", len(WORDS), 8, 1, 1, 16, 8, 32, 2, num_labels=2)
    Teacher(config, tokenizer(), NAMES, 32).save(
        tmp_path / "teacher.pt", scores={}, epoch=1, made_by={})
    rows = [f"{' '.join(WORDS[4 + (i * k) % 4] for k in range(1 + i % 6))} {'아' * i}\t{NAMES[i * i % 5 > 1]}"
            for i in range(60)]
    (tmp_path / "test.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    seen = "\n".join(["text\tlabel", rows[3], rows[7], "다른\t좋음", ""])
    (tmp_path / "train.tsv").write_text(seen, encoding="utf-8")
    for name in ("README.md", "README.ko.md"):
        (tmp_path / name).write_text("before\n<!-- report -->\nold\n<!-- /report -->\nafter\n", "utf-8")
    return SimpleNamespace(
        root=tmp_path, labels=torch.tensor([int(row.endswith("좋음")) for row in rows]),
        texts=[row.split("\t")[0] for row in rows],
        plain=[new_student(tmp_path / f"plain/{seed}.pt", seed) for seed in (1, 2)],
        taught=[new_student(tmp_path / f"taught/{seed}.pt", seed + 5) for seed in (1, 2)],
        mini=new_student(tmp_path / "taught/mini.pt", 9, (16, 16)))


def make(files, *more):
    args = ["--arm", "labels alone", *files.plain, "--arm", "distilled", *files.taught, files.mini,
            "--teacher", files.root / "teacher.pt", "--data", files.root / "test.tsv", "--seen",
            files.root / "train.tsv", "--out", files.root / "out", "--readme", files.root / "README.md",
            files.root / "README.ko.md", *more]
    report.main(report.parse_args(list(map(str, args))))
    return json.loads((files.root / "out/report.json").read_text("utf-8"))


def test_paired_gain_by_hand():
    """Shares of right runs: (1, .5, 0, 1) and (1, 1, .5, 1), so the differences are (0, .5, .5, 0)."""
    first = [torch.tensor([True, True, False, True]), torch.tensor([True, False, False, True])]
    second = [torch.tensor([True, True, True, True]), torch.tensor([True, True, False, True])]
    found = paired_gain(first, second)
    half = 1.959964 * math.sqrt(4 * 0.25**2 / 3) / 2
    assert found["gain"] == pytest.approx(0.25)
    assert found["interval"] == pytest.approx([0.25 - half, 0.25 + half])


def test_sizes_have_the_kits_names():
    assert size_of({"embedding_dim": 8, "hidden_dim": 16}) == "tiny"
    assert size_of({"embedding_dim": 9, "hidden_dim": 16}) == "e9-h16"


def test_summary_by_hand():
    labels = torch.tensor([0, 1, 1, 0])

    def result(predicted, accuracy):
        predicted = torch.tensor(predicted)
        return {"model": "m", "accuracy": accuracy, "probabilities": torch.eye(2)[predicted],
                "right": predicted == labels, "macro_f1": 0.5, "log_loss": 1.0, "ece": 0.1,
                "texts_per_second": 10.0, "ms_per_text": 1.0, "parameters": 3, "bytes": 4, "machine": {}}

    teacher = result([0, 1, 0, 0], 0.75)
    found = summary([result([0, 0, 1, 0], 0.75), result([0, 1, 1, 0], 1.0)], teacher,
                    torch.tensor([False, True, False, False]), torch.tensor([3, 15, 16, 100]))
    assert found["accuracy"] == 0.875 and found["sd"] == pytest.approx(0.125 * math.sqrt(2))
    assert found["unseen_accuracy"] == 1.0 and found["agreement"] == pytest.approx(5 / 8)
    assert found["by_length"] == [0.75, 1.0, None, 1.0]
    assert summary([teacher], teacher, torch.zeros(4).bool(), torch.ones(4))["sd"] is None


def test_the_report_says_what_the_models_answer(files):
    found = make(files)
    right = {path: Student.load(path).predict(files.texts).argmax(1) == files.labels
             for path in (*files.plain, *files.taught, files.mini)}
    answers = Teacher.load(files.root / "teacher.pt").predict(files.texts).argmax(1)
    tiny = found["students"]["tiny"]
    for arm, paths in (("labels alone", files.plain), ("distilled", files.taught)):
        expected = [right[path].double().mean().item() for path in paths]
        assert tiny[arm]["accuracies"] == pytest.approx(expected)
        assert tiny[arm]["runs"] == paths and tiny[arm]["parameters"] > 1000
    assert tiny["distilled"]["gain"] == pytest.approx(
        tiny["distilled"]["accuracy"] - tiny["labels alone"]["accuracy"])
    assert found["students"]["mini"]["distilled"]["accuracies"] == [right[files.mini].double().mean().item()]
    assert list(found["students"]) == ["mini", "tiny"]
    assert "gain" not in found["students"]["mini"]["distilled"]  # no labels alone of that size
    assert found["teachers"]["teacher"]["accuracy"] == pytest.approx(
        (answers == files.labels).double().mean().item())
    assert found["leaked_rows"] == 2 and found["rows"] == 60 and sum(found["length_rows"]) == 60


def test_each_model_is_tested_once(files, monkeypatch):
    first = make(files)
    monkeypatch.setattr(report, "assess", None)
    again = make(files)
    assert again["students"] == first["students"] and again["teachers"] == first["teachers"]
    new_student(files.root / "taught/mini.pt", 10, (16, 16))  # another student in the same place
    with pytest.raises(TypeError):
        make(files)


def test_both_readme_files_have_the_same_figures(files):
    found = make(files)
    english, korean = ((files.root / name).read_text("utf-8") for name in ("README.md", "README.ko.md"))
    tiny = found["students"]["tiny"]["distilled"]
    for text in (english, korean):
        assert text.startswith("before\n<!-- report -->\n|") and text.endswith("\n<!-- /report -->\nafter\n")
        line = next(line for line in text.splitlines() if line.startswith("| Tiny |"))
        assert f"{tiny['accuracy']:.2%} ± {100 * tiny['sd']:.2f}" in line
        assert f"**{100 * tiny['gain']:+.2f}**" in line and f"{tiny['parameters']:,}" in line
        assert text.count("\n| Mini |") == 2 and "old" not in text
    assert "labels alone" in english and "레이블만" in korean and "2 of the reviews (3.3%)" in english


def test_several_teachers_are_judged_alone_and_as_the_mean_of_their_logits(files):
    other = Teacher.load(files.root / "teacher.pt")
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    other.save(files.root / "other.pt", scores={}, epoch=1, made_by={})
    found = make(files, "--teacher", files.root / "teacher.pt", files.root / "other.pt")["teachers"]
    p, q = (Teacher.load(files.root / name).predict(files.texts) for name in ("teacher.pt", "other.pt"))
    odds = (p[:, 1] / p[:, 0]).log() + (q[:, 1] / q[:, 0]).log()
    mean = ((odds > 0) == files.labels).double().mean().item()
    one, two = ((x.argmax(1) == files.labels).double().mean().item() for x in (p, q))
    assert {name: figures["accuracy"] for name, figures in found.items()} == pytest.approx(
        {"teacher 1": one, "teacher 2": two, "mean of the teachers": mean})
    assert found["mean of the teachers"]["bytes"] == sum(
        (files.root / name).stat().st_size for name in ("teacher.pt", "other.pt"))
    models = [load_model(files.root / name) for name in ("teacher.pt", "other.pt")]
    mean = report.Mean(models).predict(files.texts)
    torch.testing.assert_close(mean[:, 1], (odds / 2).sigmoid(), rtol=1e-4, atol=1e-6)
    assert (p - q).abs().max() > 0.05


def test_a_student_among_the_teachers_counts_with_its_logits_before_calibration(files):
    path = new_student(files.root / "assistant.pt", 11, (32, 64))
    student = Student.load(path)
    exact = student.predict(files.texts)
    student.config.temperature = 4.0
    student.save(path)
    found = make(files, "--teacher", files.root / "teacher.pt", path)["teachers"]
    assert list(found) == ["teacher 1", "teacher 2 (small)", "mean of the teachers"]
    teacher = Teacher.load(files.root / "teacher.pt").predict(files.texts)
    odds = (teacher[:, 1] / teacher[:, 0]).log() + (exact[:, 1] / exact[:, 0]).log()
    mean = report.Mean([load_model(files.root / "teacher.pt"), load_model(path)]).predict(files.texts)
    torch.testing.assert_close(mean[:, 1], (odds / 2).sigmoid(), rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="model2vec starts from a teacher"):
        make(files, "--teacher", path, "--train", files.root / "test.tsv", "--valid", files.root / "test.tsv")
    student.label_names = student.label_names[::-1]
    student.save(path)
    with pytest.raises(UserError, match="need the same labels in the same order"):
        make(files, "--teacher", files.root / "teacher.pt", path)


def test_a_student_in_int8_is_compared_with_its_exact_weights(files):
    exact = new_student(files.root / "small/student.pt", 11, (32, 64))
    Student.load(exact).save(files.root / "small/student.int8.pt", "int8")
    model = Student.load(files.root / "small/student.int8.pt")
    with torch.no_grad():
        model.head.weight.neg_()  # so that the two differ
    model.save(files.root / "small/student.int8.pt", "int8")
    found = make(files, "--arm", "more", exact)
    accuracies = [(Student.load(path).predict(files.texts).argmax(1) == files.labels).double().mean().item()
                  for path in (exact, files.root / "small/student.int8.pt")]
    assert list(found["files"]) == ["small"]
    pair = found["files"]["small"]
    assert [pair[kind]["accuracy"] for kind in ("float32", "int8")] == pytest.approx(accuracies)
    assert pair["int8"]["gain"] == pytest.approx(accuracies[1] - accuracies[0])
    assert accuracies[0] != accuracies[1]
    assert pair["int8"]["bytes"] == (files.root / "small/student.int8.pt").stat().st_size
    line = (files.root / "README.md").read_text("utf-8").split("| file |")[1].splitlines()[2]
    assert line.startswith(f"| Small | {pair['float32']['bytes']:,} | {pair['int8']['bytes']:,} | "
                           f"{accuracies[0]:.2%} | {accuracies[1]:.2%} | ")
    assert line.endswith(f"| {pair['float32']['ece_uncalibrated']:.4f} | {pair['float32']['ece']:.4f} |")


def test_wrong_use_is_one_line(files, capsys):
    with pytest.raises(SystemExit) as error:
        make(files, "--arm", "distilled", files.mini)
    assert error.value.code == 2 and "another for each" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"teacher\.pt: holds a teacher; --arm wants student\.pt"):
        make(files, "--arm", "third", files.root / "teacher.pt")
    with pytest.raises(UserError, match=r"none\.pt: cannot read|none\.pt: no such file"):
        make(files, "--arm", "third", files.root / "none.pt")
    with pytest.raises(SystemExit):
        make(files, "--train", files.root / "train.tsv")
    baselines = ("--train", files.root / "train.tsv", "--valid", files.root / "test.tsv")
    (files.root / "train.tsv").write_text("text\tlabel\n하나\t\n", "utf-8")
    with pytest.raises(UserError, match=r"train\.tsv:2: "):
        make(files, *baselines)
    (files.root / "train.tsv").write_text("text\tlabel\n하나\t좋음\n", "utf-8")
    with pytest.raises(UserError, match="has not every label of"):
        make(files, *baselines)
    (files.root / "README.ko.md").write_text("no marks", "utf-8")
    with pytest.raises(UserError, match=r"README\.ko\.md: one <!-- report -->"):
        make(files)
    assert "\nold\n" in (files.root / "README.md").read_text("utf-8")
