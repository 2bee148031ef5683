"""bench.report: its figures by hand, each model tested once, and the pages it fills."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from bench import report
from runtime import UserError
from student import Student, StudentConfig
from tasks import Classification
from teacher import Teacher, TeacherConfig

ROOT = Path(__file__).parent.parent
NAMES = ["나쁨", "좋음"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "좋다", "싫다", "영화", "배우"]
PAGES = {"results.md": "report", "README.md": "headline", "README.ko.md": "headline"}


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
    """A test file of 60 reviews, 2 of which are in train.tsv, a teacher, and students in two arms."""
    torch.manual_seed(1)
    config = TeacherConfig("bert", len(WORDS), 8, 1, 1, 16, 8, 32, 2, num_labels=2)
    Teacher(config, tokenizer(), NAMES, 32).save(tmp_path / "teacher.pt", scores={}, epoch=1, made_by={})
    rows = [f"{' '.join(WORDS[4 + (i * k) % 4] for k in range(1 + i % 6))} {'아' * i}\t{NAMES[i * i % 5 > 1]}"
            for i in range(60)]
    (tmp_path / "test.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    seen = "\n".join(["text\tlabel", rows[3], rows[7], "다른\t좋음", ""])
    (tmp_path / "train.tsv").write_text(seen, encoding="utf-8")
    for page, name in PAGES.items():
        (tmp_path / page).write_text(f"before\n<!-- {name} -->\nold\n<!-- /{name} -->\nafter\n", "utf-8")
    return SimpleNamespace(
        root=tmp_path, labels=torch.tensor([int(row.endswith("좋음")) for row in rows]),
        texts=[row.split("\t")[0] for row in rows],
        plain=[new_student(tmp_path / f"plain/{seed}.pt", seed) for seed in (1, 2)],
        taught=[new_student(tmp_path / f"taught/{seed}.pt", seed + 5) for seed in (1, 2)],
        mini=new_student(tmp_path / "taught/mini.pt", 9, (16, 16)))


def fill(files, *more):
    args = ["--out", files.root / "out", "--pages", *(files.root / page for page in PAGES), *more]
    report.main(report.parse_args(list(map(str, args))))
    return json.loads((files.root / "out/report.json").read_text("utf-8"))


def make(files, *more):
    return fill(files, "--arm", "labels alone", *files.plain, "--arm", "distilled", *files.taught, files.mini,
                "--teacher", files.root / "teacher.pt", "--data", files.root / "test.tsv", "--seen",
                files.root / "train.tsv", *more)


def right(files, path) -> torch.Tensor:
    kind = Teacher if "teacher" in Path(path).name or "other" in Path(path).name else Student
    return (kind.load(path).predict(files.texts).argmax(1) == files.labels).double()


# ---- figures -----------------------------------------------------------------------------------------------


def statistics(hits: list[int]) -> dict:
    """What gains() reads of a run that has these rows right."""
    target = torch.zeros(len(hits), dtype=torch.long)
    logits = torch.eye(2)[1 - torch.tensor(hits)]
    return {"statistics": Classification(NAMES).statistics(logits, target)}


def test_gains_are_paired_by_row():
    """Shares of right runs: (1, .5, 0, 1) and (1, 1, .5, 1), repeated: the differences are (0, .5, .5, 0)."""
    first = [statistics([1, 1, 0, 1] * 100), statistics([1, 0, 0, 1] * 100)]
    second = [statistics([1, 1, 1, 1] * 100), statistics([1, 1, 0, 1] * 100)]
    task = Classification(NAMES)
    none, found = report.gains(task, [first, second])
    assert none == {"gain": 0.0, "interval": [0.0, 0.0]}
    assert found["gain"] == pytest.approx(0.25)
    half = 1.96 * 0.25 / math.sqrt(400)  # unpaired it would be 1.7 times as wide
    assert found["interval"] == pytest.approx([0.25 - half, 0.25 + half], abs=0.004)


def test_sizes_have_the_kits_names():
    assert report.size_of(SimpleNamespace(embedding_dim=8, hidden_dim=16)) == "tiny"
    assert report.size_of(SimpleNamespace(embedding_dim=9, hidden_dim=16)) == "e9-h16"


def test_summary_by_hand():
    labels = torch.tensor([0, 1, 1, 0])

    def result(predicted, accuracy):
        logits = torch.eye(2)[torch.tensor(predicted)]
        return {"model": "m", "accuracy": accuracy, "logits": logits,
                "statistics": Classification(NAMES).statistics(logits, labels), "macro_f1": 0.5,
                "log_loss": 1.0, "ece": 0.1, "ece_uncalibrated": 0.2, "texts_per_second": 10.0,
                "ms_per_text": 1.0, "parameters": 3, "bytes": 4, "machine": {"threads": 2}, "family": None}

    teacher = result([0, 1, 0, 0], 0.75)
    found = report.summary([result([0, 0, 1, 0], 0.75), result([0, 1, 1, 0], 1.0)], teacher,
                           torch.tensor([False, True, False, False]), torch.tensor([3, 15, 16, 100]))
    assert found["accuracy"] == 0.875 and found["sd"] == pytest.approx(0.125 * math.sqrt(2))
    assert found["unseen_accuracy"] == 1.0 and found["agreement"] == pytest.approx(5 / 8)
    assert found["by_length"] == [0.75, 1.0, None, 1.0] and "family" not in found
    assert report.summary([teacher], teacher, torch.zeros(4).bool(), torch.ones(4))["sd"] is None


def test_the_report_says_what_the_models_answer(files):
    found = make(files)
    tiny = found["students"]["tiny"]
    for arm, paths in (("labels alone", files.plain), ("distilled", files.taught)):
        assert tiny[arm]["accuracies"] == pytest.approx([right(files, path).mean().item() for path in paths])
        assert tiny[arm]["runs"] == paths and tiny[arm]["parameters"] > 1000
    gain = tiny["distilled"]["accuracy"] - tiny["labels alone"]["accuracy"]
    assert tiny["distilled"]["gain"] == pytest.approx(gain)
    low, high = tiny["distilled"]["interval"]
    assert low <= gain <= high and high - low > 0.01
    assert found["students"]["mini"]["distilled"]["accuracies"] == [right(files, files.mini).mean().item()]
    assert list(found["students"]) == ["mini", "tiny"]  # the largest first
    assert "gain" not in found["students"]["mini"]["distilled"]  # no labels alone of that size
    teacher = found["teachers"]["teacher"]
    assert teacher["accuracy"] == pytest.approx(right(files, files.root / "teacher.pt").mean().item())
    assert teacher["agreement"] == 1 and teacher["family"] == "bert"
    assert found["leaked_rows"] == 2 and found["rows"] == 60 and sum(found["length_rows"]) == 60


def test_each_model_is_tested_once(files, monkeypatch):
    first = make(files)
    monkeypatch.setattr(report, "run_model", None)
    again = make(files)
    assert again["students"] == first["students"] and again["teachers"] == first["teachers"]
    test = files.root / "test.tsv"
    text = test.read_text("utf-8")
    test.write_text(text.replace("영화", "배우"), "utf-8")  # another test file
    with pytest.raises(TypeError):
        make(files)
    test.write_text(text, "utf-8")
    make(files)
    new_student(files.root / "taught/mini.pt", 10, (16, 16))  # another student in the same place
    with pytest.raises(TypeError):
        make(files)


def test_several_teachers_are_judged_alone_and_as_the_mean_of_their_logits(files):
    """A student among them counts with its logits before calibration, as dump_logits.py has them."""
    other = Teacher.load(files.root / "teacher.pt")
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    other.save(files.root / "other.pt", scores={}, epoch=1, made_by={})
    student = Student.load(new_student(files.root / "assistant.pt", 11, (32, 64)))
    logits = student.logits(files.texts)
    student.config.temperature = 4.0
    student.save(files.root / "assistant.pt")
    paths = [files.root / name for name in ("teacher.pt", "other.pt", "assistant.pt")]
    found = make(files, "--teacher", *paths)["teachers"]
    logits = (logits + sum(Teacher.load(path).logits(files.texts) for path in paths[:2])) / 3
    expected = [right(files, path).mean().item() for path in paths]
    expected += [(logits.argmax(1) == files.labels).double().mean().item()]
    names = ["teacher 1", "teacher 2", "teacher 3 (small)", "mean of the teachers"]
    assert {name: figures["accuracy"] for name, figures in found.items()} == pytest.approx(
        dict(zip(names, expected, strict=True)))
    mean, alone = found["mean of the teachers"], [found[name] for name in names[:3]]
    assert mean["bytes"] == sum(path.stat().st_size for path in paths)
    assert mean["ms_per_text"] == pytest.approx(sum(figures["ms_per_text"] for figures in alone))
    assert mean["texts_per_second"] < min(figures["texts_per_second"] for figures in alone)
    log_loss = -logits.double().log_softmax(1).gather(1, files.labels[:, None]).mean().item()
    assert mean["log_loss"] == pytest.approx(log_loss, abs=1e-5)


def test_a_student_in_int8_is_compared_with_its_exact_weights(files):
    exact = new_student(files.root / "small/student.pt", 11, (32, 64))
    Student.load(exact).save(files.root / "small/student.int8.pt", "int8")
    model = Student.load(files.root / "small/student.int8.pt")
    with torch.no_grad():
        model.head.weight.neg_()  # so that the two differ
    model.save(files.root / "small/student.int8.pt", "int8")
    found = make(files, "--arm", "more", exact)
    rounded = files.root / "small/student.int8.pt"
    before, after = (right(files, path).mean().item() for path in (exact, rounded))
    assert list(found["files"]) == ["small"] and before != after
    pair = found["files"]["small"]
    assert [pair[kind]["accuracy"] for kind in ("float32", "int8")] == pytest.approx([before, after])
    assert pair["int8"]["gain"] == pytest.approx(after - before)
    assert pair["int8"]["bytes"] == rounded.stat().st_size
    line = (files.root / "results.md").read_text("utf-8").split("| file |")[1].splitlines()[2]
    assert line.startswith(f"| Small | {pair['float32']['bytes']:,} | {pair['int8']['bytes']:,} | "
                           f"{before:.2%} | {after:.2%} | ")
    assert line.endswith(f"| {pair['float32']['ece_uncalibrated']:.4f} | {pair['float32']['ece']:.4f} |")
    readme = (files.root / "README.md").read_text("utf-8")
    assert f"| Small, int8 | {pair['int8']['parameters']:,} | " in readme


# ---- pages -------------------------------------------------------------------------------------------------


def test_pages_have_the_figures(files):
    found = make(files)
    texts = {page: (files.root / page).read_text("utf-8") for page in PAGES}
    for page, text in texts.items():
        assert text.startswith(f"before\n<!-- {PAGES[page]} -->\n|") and "old" not in text
        assert text.endswith(f"\n<!-- /{PAGES[page]} -->\nafter\n")
    tiny = found["students"]["tiny"]["distilled"]
    score = f"{tiny['accuracy']:.2%} ± {100 * tiny['sd']:.2f}"
    line = next(line for line in texts["results.md"].splitlines() if line.startswith("| Tiny |"))
    assert score in line and f"**{100 * tiny['gain']:+.2f}**" in line and f"{tiny['parameters']:,}" in line
    assert texts["results.md"].count("\n| Mini |") == 2 and "labels alone" in texts["results.md"]
    for page in ("README.md", "README.ko.md"):
        assert f"| Tiny | {tiny['parameters']:,} | {tiny['bytes'] / 1000:,.0f} KB | {score} |" in texts[page]
        assert "| teacher, BERT | " in texts[page]
    assert "accuracy" in texts["README.md"] and "정확도" in texts["README.ko.md"]
    (files.root / "README.md").write_text("<!-- headline -->\n<!-- /headline -->", "utf-8")
    assert fill(files) == found  # without models: from report.json
    assert f"| {score} |" in (files.root / "README.md").read_text("utf-8")


def test_the_pages_of_the_kit_have_the_figures_of_the_report():
    found = json.loads((ROOT / "bench/report/report.json").read_text("utf-8"))
    for page, name in PAGES.items():
        page = f"docs/{page}" if name == "report" else page
        content = (ROOT / page).read_text("utf-8").split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
        made = report.page(f"<!-- {name} -->\n<!-- /{name} -->", page, found).splitlines()[1:-1]
        rows = [line for line, after in zip(made, [*made[1:], ""], strict=True)
                if line.startswith("| ") and not after.startswith("|---")]
        missing = [line for line in rows if line not in content.splitlines()]
        assert len(rows) > 5 and not missing, f"{page}: run python -m bench.report"


# ---- wrong use, baselines ----------------------------------------------------------------------------------


def test_wrong_use_is_one_line(files, capsys):
    for wrong in (["--arm", "distilled", files.mini], ["--train", files.root / "train.tsv"]):
        with pytest.raises(SystemExit) as error:
            make(files, *wrong)
        assert error.value.code == 2
    with pytest.raises(SystemExit):
        fill(files, "--arm", "one", files.mini)
    with pytest.raises(UserError, match=r"teacher\.pt: this is a teacher"):
        make(files, "--arm", "third", files.root / "teacher.pt")
    with pytest.raises(UserError, match=r"none\.pt: "):
        make(files, "--arm", "third", files.root / "none.pt")
    baselines = ("--train", files.root / "train.tsv", "--valid", files.root / "test.tsv")
    with pytest.raises(UserError, match=r"model2vec.*teacher\.pt"):
        make(files, "--teacher", files.mini, *baselines)
    (files.root / "train.tsv").write_text("text\tlabel\n하나\t\n", "utf-8")
    with pytest.raises(UserError, match=r"train\.tsv:2: "):
        make(files, *baselines)
    (files.root / "train.tsv").write_text("text\tlabel\n하나\t좋음\n", "utf-8")
    with pytest.raises(UserError, match=r"train\.tsv: .*every label"):
        make(files, *baselines)
    student = Student.load(files.mini)
    student.label_names = student.label_names[::-1]
    student.save(files.root / "turned.pt")
    with pytest.raises(UserError, match=r"turned\.pt: .*same order"):
        make(files, "--teacher", files.root / "teacher.pt", files.root / "turned.pt")
    for page in ("README.ko.md", "results.md"):
        (files.root / page).write_text("no marks", "utf-8")
        with pytest.raises(SystemExit) as error:  # before the work
            make(files, "--teacher", "none.pt")
        assert error.value.code == 2 and page in capsys.readouterr().err
    assert "\nold\n" in (files.root / "README.md").read_text("utf-8")


@pytest.mark.optional
@pytest.mark.parametrize("name", report.BASELINES)
def test_baselines_are_trained_and_judged(files, name, monkeypatch):
    pytest.importorskip({"fastText": "fasttext", "model2vec": "model2vec.train"}.get(name, "sklearn"))
    monkeypatch.setattr(report, "BASELINES", {name: report.BASELINES[name]})
    rows = [f"{'좋다' if i % 2 else '싫다'} {WORDS[6 + i % 2]} {i}\t{NAMES[i % 2]}" for i in range(200)]
    for file in ("train", "test"):
        (files.root / f"{file}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    bert = Teacher.load(files.root / "teacher.pt")
    from tokenizers.processors import TemplateProcessing
    bert.tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    bert.save(files.root / "teacher.pt", scores={}, epoch=1, made_by={})
    found = make(files, "--train", files.root / "train.tsv", "--valid", files.root / "test.tsv")["baselines"]
    assert list(found) == [name] and found[name]["accuracy"] > 0.9  # one word tells
    assert found[name]["parameters"] > 0 and found[name]["bytes"] > 0
