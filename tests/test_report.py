"""bench.report: each model tested once into runs.jsonl, figures by hand, pages made of that file alone."""

import json
import math
import os
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import Killed, refused
from tokenizers import Tokenizer, models, pre_tokenizers

from bench import baselines, report, runs
from student import SIZES, Student, StudentConfig, widths
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


def vary(model) -> None:
    """Weights so large that the answers differ from text to text."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape))


def new_student(path, seed, dimensions=(8, 16)):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    student = Student(StudentConfig(len(WORDS), 2, *dimensions, temperature=2.0), tokenizer(), NAMES)
    vary(student)
    student.save(path, scores={}, made_by={"arguments": {"seed": seed}})
    return str(path)


def new_teacher(path, seed):
    torch.manual_seed(seed)
    config = TeacherConfig("bert", len(WORDS), 8, 1, 1, 16, 8, 32, 2, num_labels=2)
    teacher = Teacher(config, tokenizer(), NAMES, 32)
    vary(teacher)
    teacher.save(path, scores={}, epoch=1, made_by={})
    return str(path)


@pytest.fixture
def files(tmp_path):
    """A test file of 60 reviews, 2 of which are in train.tsv, a teacher, and students in two arms."""
    rows = [f"{' '.join(WORDS[4 + (i * k) % 4] for k in range(1 + i % 6))} {'아' * i}\t{NAMES[i * i % 5 > 1]}"
            for i in range(60)]
    (tmp_path / "test.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    seen = "\n".join(["text\tlabel", rows[3], rows[7], "다른\t좋음", ""])
    (tmp_path / "train.tsv").write_text(seen, encoding="utf-8")
    for page, name in PAGES.items():
        (tmp_path / page).write_text(f"before\n<!-- {name} -->\nold\n<!-- /{name} -->\nafter\n", "utf-8")
    return SimpleNamespace(
        root=tmp_path, labels=torch.tensor([int(row.endswith("좋음")) for row in rows]),
        texts=[row.split("\t")[0] for row in rows], runs=tmp_path / "out/runs.jsonl",
        teacher=new_teacher(tmp_path / "teacher.pt", 3),
        plain=[new_student(tmp_path / f"plain/{seed}.pt", seed) for seed in (1, 2)],
        taught=[new_student(tmp_path / f"taught/{seed}.pt", seed + 5) for seed in (1, 2)],
        mini=new_student(tmp_path / "taught/mini.pt", 9, (16, 16)))


def add(files, *words):
    """bench.report --data …; the lines of runs.jsonl after it."""
    args = ["--data", files.root / "test.tsv", "--out", files.root / "out", *words]
    report.main(report.parse_args(list(map(str, args))))
    return runs.read_runs(files.runs)


def add_all(files):
    add(files, "--teacher", "first", files.teacher, "--saw", "texts", "--seen", files.root / "train.tsv")
    add(files, "--arm", "labels alone", *files.plain)
    return add(files, "--arm", "distilled", *files.taught, files.mini, "--taught-by", "first")


def render(files):
    args = ["--out", files.root / "out", "--pages", *(files.root / page for page in PAGES)]
    report.main(report.parse_args(list(map(str, args))))
    return {page: (files.root / page).read_text("utf-8") for page in PAGES}


def answers(files, path) -> torch.Tensor:
    kind = Student if "student" in torch.load(path, weights_only=True)["kind"] else Teacher
    return kind.load(path).predict(files.texts).argmax(1)


# ---- runs.jsonl --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 255, 65535])
def test_packed_numbers_come_back(most):
    numbers = torch.randint(most + 1, (1003,), generator=torch.Generator().manual_seed(0))
    numbers[-1] = most
    packed = runs.pack(numbers)
    assert packed.isascii() and torch.equal(runs.unpack(packed, 1003), numbers)
    with pytest.raises(ValueError):
        runs.unpack(packed, 1012)


def test_a_model_that_has_88_percent_of_25_000_rows_right_takes_3_kb():
    wrong = torch.rand(25_000, generator=torch.Generator().manual_seed(0)) < 0.12
    assert len(runs.pack(wrong.long())) < 3000


def test_lines_say_what_the_models_answer(files):
    test, *lines = add_all(files)
    assert (test["rows"], test["names"], test["seen"]) == (60, NAMES, ["train.tsv"])
    assert test["leaked"].nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(test["labels"], files.labels)
    groups = [(len(text) > 15) + (len(text) > 30) + (len(text) > 60) for text in files.texts]
    assert test["length"].tolist() == groups and set(groups) == {0, 1, 2, 3}
    assert [(line["kind"], line["name"]) for line in lines] == [
        ("teacher", "first"), *[("student", "labels alone")] * 2, *[("student", "distilled")] * 3]
    assert len({tuple(line["off"].tolist()) for line in lines}) == len(lines)  # else the rest says little
    for line, path in zip(lines, [files.teacher, *files.plain, *files.taught, files.mini], strict=True):
        expected = answers(files, path)
        assert torch.equal((test["labels"] + line["off"]) % 2, expected)
        right = (expected == files.labels).double().mean().item()
        assert line["result"]["accuracy"] == pytest.approx(right, abs=1e-6)
        assert line["result"]["bytes"] == Path(path).stat().st_size and line["result"]["texts_per_second"] > 0
        assert line["result"]["machine"]["device"] == "cpu"
    teacher, student, *_, mini = lines
    assert (teacher["saw"], teacher["network"]) == ("texts", "BERT")
    assert student["file"] == "1.pt"  # of a path that is not this machine's alone all is kept
    assert (student["taught_by"], student["size"], student["seed"], student["precision"]) == (
        None, "tiny, 8 tokens", 1, "float32")
    assert (mini["taught_by"], mini["size"], mini["seed"]) == ("first", "mini, 8 tokens", 9)
    model = Student.load(files.plain[0])
    target = files.labels[:, None]
    for name, probabilities in (("ece", model.predict(files.texts)),
                                ("ece_uncalibrated", (2 * model.logits(files.texts)).softmax(1))):
        confidence, guess = probabilities.double().max(1)
        gaps = torch.zeros(15, dtype=torch.double).index_add(
            0, (confidence * 15).ceil().long() - 1, (guess == files.labels).double() - confidence)
        assert student["result"][name] == pytest.approx(gaps.abs().sum().item() / 60, abs=1e-5)
    log_loss = -model.predict(files.texts).gather(1, target).log().mean().item()
    assert student["result"]["log_loss"] == pytest.approx(log_loss, abs=1e-5)


def test_an_answer_is_how_far_it_is_from_the_label():
    task, target = Classification(["a", "b", "c"]), torch.tensor([2, 0, 1, 2])
    answered = torch.tensor([0, 2, 1, 1])
    line = runs.Runs.judged(SimpleNamespace(task=task, target=target), torch.eye(3)[answered], 1.0, bytes=7)
    assert line["off"].tolist() == [1, 2, 0, 2] and torch.equal((target + line["off"]) % 3, answered)
    assert (line["result"]["accuracy"], line["result"]["bytes"]) == (0.25, 7)


def test_each_model_is_tested_once(files, monkeypatch, capsys):
    before = add_all(files)
    content = files.runs.read_bytes()
    monkeypatch.setattr(runs, "run_model", None)
    add_all(files)
    assert files.runs.read_bytes() == content
    assert capsys.readouterr().out.count("not tested again") == len(before) - 1
    # A student that also teaches keeps its answers.
    *_, line = add(files, "--teacher", "second", files.mini, "--saw", "texts")
    assert (line["kind"], line["network"]) == ("teacher", "mini, 8 tokens")
    assert line["result"] == before[-1]["result"] and torch.equal(line["off"], before[-1]["off"])
    new_student(Path(files.mini), 10, (16, 16))  # another student in the same place
    with pytest.raises(TypeError):
        add_all(files)


def test_several_teachers_are_judged_as_the_mean_of_their_logits(files, monkeypatch):
    """A student among them counts with its logits before calibration, as dump_logits.py has them."""
    paths = [files.teacher, new_teacher(files.root / "other.pt", 5),
             new_student(files.root / "assistant.pt", 11, (32, 64))]
    student = Student.load(paths[2])
    logits = student.logits(files.texts) * student.config.temperature
    logits = (logits + sum(Teacher.load(path).logits(files.texts) for path in paths[:2])) / 3
    tested, run_model = [], runs.run_model
    monkeypatch.setattr(runs, "run_model", lambda path, *args: tested.append(path) or run_model(path, *args))
    test, one, both, mean = add(files, "--teacher", "first", paths[0], "--teacher", "other", paths[1],
                                "--teacher", "mean", *paths, "--saw", "ratings")
    assert tested == paths  # each once
    assert torch.equal((test["labels"] + mean["off"]) % 2, logits.argmax(1))
    log_loss = -logits.double().log_softmax(1).gather(1, files.labels[:, None]).mean().item()
    assert mean["result"]["log_loss"] == pytest.approx(log_loss, abs=1e-5)
    assert (mean["network"], mean["saw"]) == ("3-model ensemble", "ratings")
    assert mean["result"]["bytes"] == sum(Path(path).stat().st_size for path in paths)
    assert mean["result"]["ms_per_text"] > one["result"]["ms_per_text"] + both["result"]["ms_per_text"]
    assert mean["result"]["texts_per_second"] < min(
        line["result"]["texts_per_second"] for line in (one, both)) / 1.5
    monkeypatch.setattr(runs, "run_model", None)
    assert len(add(files, "--teacher", "mean", *paths[::-1], "--saw", "ratings")) == 4


def test_an_int8_copy_beside_a_student_is_tested_with_it(files):
    exact = new_student(files.root / "small/student.pt", 11, (32, 64))
    model = Student.load(exact)
    with torch.no_grad():
        model.head.weight.neg_()  # so that the two differ
    rounded = files.root / "small/student.int8.pt"
    model.save(rounded, "int8", made_by={"arguments": {"seed": 11}})
    test, *lines = add(files, "--arm", "labels alone", exact)
    assert [(line["precision"], line["seed"], line["size"]) for line in lines] == [
        ("float32", 11, "small, 8 tokens"), ("int8", 11, "small, 8 tokens")]
    (part,) = report.sections(test, lines)
    pair = part.files["small, 8 tokens"]
    expected = [(answers(files, path) == files.labels).double().mean().item() for path in (exact, rounded)]
    assert [figures["accuracy"] for figures in pair] == pytest.approx(expected)
    assert expected[0] != expected[1] and pair[1]["gain"] == pytest.approx(expected[1] - expected[0])
    pages = render(files)
    line = pages["results.md"].split("| file |")[1].splitlines()[2]
    assert line.startswith(f"| Small, 8 tokens | {pair[0]['bytes']:,} | {pair[1]['bytes']:,} | "
                           f"{expected[0]:.2%} | {expected[1]:.2%} | ")
    assert line.endswith(f"| {pair[0]['ece_uncalibrated']:.4f} | {pair[0]['ece']:.4f} |")
    assert f"| Small, 8 tokens, int8 | {pair[1]['parameters']:,} | " in pages["README.md"]
    refused(lambda: add(files, "--arm", "third", rounded), r"student\.int8\.pt: .*int8")


def test_what_was_seen_can_be_said_later(files):
    test, _ = add(files, "--arm", "labels alone", files.mini)
    assert test["leaked"].sum() == 0
    for more in (["--seen", files.root / "train.tsv"], []):
        test, _ = add(files, "--arm", "labels alone", files.mini, *more)
        assert test["leaked"].nonzero().flatten().tolist() == [3, 7]


@pytest.mark.parametrize(("change", "other"), [
    (lambda text: text.replace("영화", "배우"), "other texts;"),
    (lambda text: text.replace("\t나쁨", "\t좋음", 1), "other labels;"),
    (lambda text: text.rsplit("\n", 2)[0] + "\n", "other rows, texts, labels;")])
def test_another_test_file_is_refused(files, change, other):
    add_all(files)
    content, path = files.runs.read_bytes(), files.root / "test.tsv"
    path.write_text(change(path.read_text("utf-8")), encoding="utf-8")
    refused(lambda: add(files, "--arm", "third", files.mini, "--seen", files.root / "train.tsv"),
            r"test\.tsv: .*" + other)
    assert files.runs.read_bytes() == content


def test_a_kill_leaves_no_half_line(files, monkeypatch):
    add_all(files)
    content = files.runs.read_bytes()

    def die(*_):
        raise Killed

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(Killed):
        add(files, "--arm", "third", files.mini)
    assert files.runs.read_bytes() == content
    monkeypatch.undo()
    assert len(add(files, "--arm", "third", files.mini)) == content.count(b"\n") + 1


@pytest.mark.parametrize(("line", "change"), [
    (7, lambda text: text[:-20]), (7, lambda text: text.replace('"off": "', '"off": "AA')),
    (1, lambda text: text.replace('"rows": 60', '"rows": 80')), (3, lambda text: "<<<<<<< HEAD"),
    (2, lambda text: text.replace('"teacher"', '"other"')), (4, lambda text: "{}")])
def test_a_damaged_line_is_named_and_nothing_is_lost(files, line, change):
    add_all(files)
    lines = files.runs.read_text("utf-8").splitlines()
    lines[line - 1] = change(lines[line - 1])
    files.runs.write_text("\n".join(lines), encoding="utf-8")  # a torn last line has no end
    content = files.runs.read_bytes()
    for call in (lambda: add(files, "--arm", "third", files.mini), lambda: render(files)):
        refused(call, rf"runs\.jsonl:{line}: damaged .*delete")
    assert files.runs.read_bytes() == content


# ---- figures -----------------------------------------------------------------------------------------------


def described(rows: int, names=NAMES, **more) -> dict:
    """A test file's line: all labels 0, none leaked, all short."""
    zeros = torch.zeros(rows, dtype=torch.long)
    return {"data": "test.tsv", "rows": rows, "names": names, "labels": zeros, "leaked": zeros,
            "length": zeros, "seen": []} | more


def line_of(kind: str, name: str, off, **more) -> dict:
    """A model's line."""
    off = torch.as_tensor(off)
    result = {"accuracy": (off == 0).double().mean().item(), "parameters": 1000, "bytes": 4000,
              "ece": 0.1, "ece_uncalibrated": 0.2, "texts_per_second": 10.0, "ms_per_text": 1.0,
              "machine": {"threads": 2}}
    if kind == "student":
        more = {"size": "tiny", "precision": "float32", "taught_by": None} | more
    result |= {key: more.pop(key) for key in [*more] if key in result}
    return {"kind": kind, "name": name, "off": off, "result": result, **more}


def test_gains_are_paired_by_row():
    """Shares of right runs: (1, .5, 0, 1) and (1, 1, .5, 1), repeated: the differences are (0, .5, .5, 0)."""
    first = [line_of("student", "", off * 100) for off in ([0, 0, 1, 0], [0, 1, 1, 0])]
    second = [line_of("student", "", off * 100) for off in ([0, 0, 0, 0], [0, 0, 1, 0])]
    none, found = report.gains(described(400), [first, second])
    assert none == {"gain": 0.0, "interval": [0.0, 0.0]}
    assert found["gain"] == pytest.approx(0.25)
    half = 1.96 * 0.25 / math.sqrt(400)  # unpaired it would be 1.7 times as wide
    assert found["interval"] == pytest.approx([0.25 - half, 0.25 + half], abs=0.004)


def test_summary_by_hand():
    """Three classes: two answers that are wrong in different ways do not agree."""
    test = described(4, ["a", "b", "c"], leaked=torch.tensor([0, 1, 0, 0]),
                     length=torch.tensor([0, 0, 1, 3]))
    teacher = line_of("teacher", "t", [0, 1, 2, 0])
    pair = [line_of("student", "s", [0, wrong, 0, 0], texts_per_second=20.0 * wrong) for wrong in (1, 2)]
    found = report.summary(pair, teacher, test)
    assert (found["seeds"], found["accuracy"], found["sd"]) == (2, 0.75, 0.0)
    assert found["unseen"] == 1.0 and found["agreement"] == pytest.approx(5 / 8)
    assert found["by_length"] == [0.5, 1.0, None, 1.0] and found["texts_per_second"] == 30.0
    found = report.summary([pair[0], line_of("student", "s", [0, 0, 0, 0])], None, test)
    assert found["sd"] == pytest.approx(0.125 * math.sqrt(2)) and found["agreement"] is None
    assert report.summary([teacher], teacher, test)["sd"] is None


def both_kinds() -> tuple[dict, list[dict]]:
    """40 rows; a teacher of each kind and what they taught, labels alone, a baseline. File order is not the
    report's: labels alone come last."""
    def off(wrong):
        return [1] * wrong + [0] * (40 - wrong)

    big = {"size": "base", "parameters": 9000}
    return described(40), [
        line_of("teacher", "T", off(4), saw="texts", network="BERT", parameters=20_000),
        line_of("teacher", "R", off(2), saw="ratings", network="BERT", parameters=30_000),
        line_of("student", "by T", off(8), taught_by="T"), line_of("student", "by T", off(10), taught_by="T"),
        line_of("student", "by T", off(6), taught_by="T", **big),
        line_of("student", "by R", off(4), taught_by="R"),
        line_of("student", "by R", off(5), taught_by="R", precision="int8", bytes=1000),
        line_of("student", "alone", off(12)), line_of("baseline", "TF-IDF, logistic regression", off(9)),
        line_of("baseline", "fastText", off(11))]


def test_teachers_that_saw_ratings_are_kept_apart():
    texts, ratings = report.sections(*both_kinds())
    assert (texts.saw, texts.arms, [*texts.teachers]) == ("texts", ["alone", "by T"], ["T"])
    assert (ratings.saw, ratings.arms, [*ratings.teachers]) == ("ratings", ["alone", "by R"], ["R"])
    assert list(texts.students) == ["base", "tiny"] and list(ratings.students) == ["tiny"]
    tiny = texts.students["tiny"]
    assert tiny["by T"]["accuracy"] == pytest.approx(31 / 40) and tiny["by T"]["seeds"] == 2
    assert tiny["by T"]["gain"] == pytest.approx(3 / 40) and "gain" not in texts.students["base"]["by T"]
    assert tiny["by T"]["agreement"] == pytest.approx(35 / 40)
    assert ratings.students["tiny"]["by R"]["agreement"] == pytest.approx(38 / 40)
    assert not texts.files and ratings.files["tiny"][1]["gain"] == pytest.approx(-1 / 40)
    (alone,) = report.sections(described(40), [both_kinds()[1][7]])
    assert (alone.saw, alone.arms, alone.taught) == (None, ["alone"], None)
    test, (_, *lines) = both_kinds()
    refused(lambda: report.sections(test, lines), "by T: .*teacher T")


def test_students_agree_with_the_teacher_of_their_own_arm():
    test, lines = both_kinds()
    lines += [line_of("teacher", "T2", [1] * 20 + [0] * 20, saw="texts", network="BERT"),
              line_of("student", "by T2", [1] * 19 + [0] * 21, taught_by="T2")]
    section, _ = report.sections(test, lines)
    assert section.taught == "T2" and section.teachers["T"]["agreement"] == pytest.approx(24 / 40)
    agreement = {arm: figures["agreement"] for arm, figures in section.students["tiny"].items()}
    assert agreement == pytest.approx({"alone": 32 / 40, "by T": 35 / 40, "by T2": 39 / 40})


def test_a_teacher_that_taught_none_has_no_students_beside_it():
    test, lines = both_kinds()
    lines = [line for line in lines if line.get("taught_by") != "T"]
    texts, ratings = report.sections(test, lines)
    assert (texts.arms, texts.students, ratings.arms) == (["accuracy"], {}, ["alone", "by R"])
    block = report.block(test, [texts, ratings])
    assert "| T | 20,000 | 4,000 | 90.00% | – |" in block and block.count("| Tiny | 1,000 |") == 1
    headline = report.headline(test, [texts, ratings], "en")
    assert headline.count("| Tiny") == 1 and "| Tiny, int8 | 1,000 | 1 KB | – | 87.50% | 10 |" in headline
    none_taught = [line for line in lines if not line.get("taught_by")]
    assert all(part.students for part in report.sections(test, none_taught))


# ---- pages -------------------------------------------------------------------------------------------------


def test_the_headline_says_what_the_encoder_saw():
    test, lines = both_kinds()
    assert report.headline(test, report.sections(test, lines), "en").splitlines() == [
        "|  | parameters | file | accuracy, encoder saw texts alone | "
        "accuracy, encoder saw star ratings too | reviews/s, 2 cores |",
        "|---|---:|---:|---:|---:|---:|",
        "| teacher, BERT | 20,000 | 4 KB | 90.00% | – | 10 |",
        "| teacher, BERT | 30,000 | 4 KB | – | 95.00% | 10 |",
        "| Base | 9,000 | 4 KB | 85.00% | – | 10 |",
        "| Tiny | 1,000 | 4 KB | 77.50% ± 3.54 | – | 10 |",
        "| Tiny, int8 | 1,000 | 1 KB | – | 87.50% | 10 |",
        "| TF-IDF, logistic regression | 1,000 | 4 KB | 77.50% | – | 10 |"]
    korean = report.headline(test, report.sections(test, lines), "ko")
    assert "정확도 (인코더: 텍스트만)" in korean and "| TF-IDF, 로지스틱 회귀 |" in korean


def test_the_block_has_a_table_for_each_kind():
    test, lines = both_kinds()
    test |= {"leaked": torch.tensor([1] * 4 + [0] * 36), "seen": ["train.tsv"]}
    block = report.block(test, report.sections(test, lines))
    assert block.startswith("test.tsv: 40 reviews; 4 (10.0%) also occur in train.tsv.")
    texts, ratings = block.split("**Encoder saw star ratings too.**")
    tiny = next(line for line in texts.splitlines() if line.startswith("| Tiny |"))
    # 31 of 40 right, without the 4 leaked rows 31 of 36
    assert tiny.startswith("| Tiny | 1,000 | 4,000 | 70.00% (1) | 77.50% ± 3.54 (2) | **+7.50** (")
    assert tiny.endswith(f"| {31 / 36:.2%} | 87.5% | 10 | 1.00 |")
    assert "| alone | by T |" in texts and "by R" not in texts and "by T" not in ratings
    assert "| T | 20,000 | 4,000 | 90.00% | – | – |" in texts
    assert "| reviews | 40 | 0 | 0 | 0 |\n| T | 90.00% | – | – | – |" in texts
    assert "| Tiny | 4,000 | 1,000 | 90.00% | 87.50% | -2.50 (" in ratings


def test_pages_need_neither_models_nor_test_file(files):
    test, *lines = add_all(files)
    for path in ("plain", "taught", "teacher.pt", "test.tsv", "train.tsv"):
        path = files.root / path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    texts = render(files)
    for page, text in texts.items():
        assert text.startswith(f"before\n<!-- {PAGES[page]} -->\n") and "old" not in text
        assert text.endswith(f"\n<!-- /{PAGES[page]} -->\nafter\n")
    (part,) = report.sections(test, lines)
    tiny = part.students["tiny, 8 tokens"]["distilled"]
    score = f"{tiny['accuracy']:.2%} ± {100 * tiny['sd']:.2f}"
    assert f" | {score} (2) | **{100 * tiny['gain']:+.2f}**" in texts["results.md"]
    for page in ("README.md", "README.ko.md"):
        row = f"| Tiny, 8 tokens | {tiny['parameters']:,} | {tiny['bytes'] / 1000:,.0f} KB | {score} |"
        assert row in texts[page] and "| teacher, BERT | " in texts[page]
    assert "accuracy" in texts["README.md"] and "정확도" in texts["README.ko.md"]


def test_the_pages_of_the_kit_have_the_figures_of_the_report():
    path = ROOT / "bench/report/runs.jsonl"
    if not path.exists():
        pytest.skip("no model has been added yet")
    test, *lines = runs.read_runs(path)
    parts = report.sections(test, lines)
    for page, name in PAGES.items():
        page = f"docs/{page}" if name == "report" else page
        content = (ROOT / page).read_text("utf-8")
        assert report.page(content, page, test, parts) == content, f"{page}: run python -m bench.report"


def test_names_are_spread():
    assert report.spread([0.1, 0.11, 0.12, 0.5], 0.04) == pytest.approx([0.1, 0.14, 0.18, 0.5])
    assert report.spread([], 0.04) == []


@pytest.mark.optional
def test_the_picture_can_be_read_without_colours(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import pyplot
    test, lines = both_kinds()
    lines += [line_of("student", "by T", [0] * 40, taught_by="T", size=f"e{i}", bytes=4100 + i)
              for i in (1, 2)]
    report.draw(test, report.sections(test, lines), tmp_path / "picture.png")
    header = (tmp_path / "picture.png").read_bytes()[:24]
    assert header[1:4] == b"PNG" and int.from_bytes(header[16:20], "big") == 1350
    (axes,) = pyplot.gcf().axes
    curves = [bars.lines[0] for bars in axes.containers]
    assert len({(line.get_marker(), str(line._unscaled_dash_pattern)) for line in curves}) == len(curves) == 8
    names = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in names] == ["Base", "Tiny", "E1", "E2"]
    places = [text.get_position()[0] for text in names]
    assert all(after - before >= 0.04 - 1e-9 for before, after in pairwise(places))
    pyplot.close("all")


# ---- wrong use, baselines ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [
    "--arm a s.pt", "--data t.tsv", "--data t.tsv --arm a", "--data t.tsv --teacher t t.pt",
    "--data t.tsv --arm a s.pt --saw texts", "--data t.tsv --teacher t t.pt --saw texts --taught-by t",
    "--data t.tsv --arm a s.pt --train x.tsv --valid y.tsv", "--seen x.tsv",
    "--data t.tsv --teacher t t.pt --saw texts --train x.tsv"])
def test_a_wrong_flag_is_refused(flags):
    with pytest.raises(SystemExit) as error:
        report.parse_args(flags.split())
    assert error.value.code == 2


def test_wrong_use_is_one_line(files, capsys):
    refused(lambda: render(files), r"out/runs\.jsonl: .*--data")
    add_all(files)
    content = files.runs.read_bytes()
    other = new_teacher(files.root / "other.pt", 4)
    baselines = ("--train", files.root / "test.tsv", "--valid", files.root / "test.tsv")
    teacher = ("--saw", "texts", "--teacher", "first")
    for words, expected in (
            (["--arm", "third", files.teacher], r"teacher\.pt: this is a teacher"),
            (["--arm", "third", files.root / "none.pt"], r"none\.pt: "),
            (["--arm", "third", files.mini, "--taught-by", "nobody"], r"nobody.*first"),
            (["--arm", "distilled", files.plain[0]], "distilled.*another"),
            ([*teacher, other], "first.*another"),
            (["--teacher", "second", files.mini, "--saw", "texts", *baselines], r"model2vec.*teacher\.pt")):
        refused(lambda words=words: add(files, *words), expected)
        if "second" not in words:
            assert files.runs.read_bytes() == content
    baselines = ("--train", files.root / "train.tsv", *baselines[2:])
    for row, expected in (("하나\t", r"train\.tsv:2: "), ("하나\t좋음", r"train\.tsv: .*every label")):
        (files.root / "train.tsv").write_text(f"text\tlabel\n{row}\n", "utf-8")
        refused(lambda: add(files, *teacher, files.teacher, *baselines), expected)
    for page in ("README.ko.md", "results.md"):
        (files.root / page).write_text("no marks", "utf-8")
        with pytest.raises(SystemExit) as error:
            render(files)
        assert error.value.code == 2 and page in capsys.readouterr().err
    assert "\nold\n" in (files.root / "README.md").read_text("utf-8")


@pytest.mark.optional
@pytest.mark.parametrize("name", baselines.BASELINES)
def test_baselines_are_trained_and_judged(files, name, monkeypatch):
    pytest.importorskip({"fastText": "fasttext", "model2vec": "model2vec.train"}.get(name, "sklearn"))
    monkeypatch.setattr(baselines, "BASELINES", {name: baselines.BASELINES[name]})
    rows = [f"{'좋다' if i % 2 else '싫다'} {WORDS[6 + i % 2]} {i}\t{NAMES[i % 2]}" for i in range(200)]
    for file in ("train", "test"):
        (files.root / f"{file}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]), encoding="utf-8")
    bert = Teacher.load(files.teacher)
    from tokenizers.processors import TemplateProcessing
    bert.tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    bert.save(files.teacher, scores={}, epoch=1, made_by={})
    words = ("--teacher", "first", files.teacher, "--saw", "texts", "--train", files.root / "train.tsv",
             "--valid", files.root / "test.tsv")
    *_, line = add(files, *words)
    assert (line["kind"], line["name"]) == ("baseline", name)
    assert line["result"]["accuracy"] > 0.9 and (line["off"] == 0).sum() > 180  # one word tells
    assert line["result"]["parameters"] > 0 and line["result"]["bytes"] > 0
    monkeypatch.setattr(runs, "run_model", None)
    assert len(add(files, *words)) == 3
    assert f"| {name} | " in render(files)["README.md"]


def test_lines_are_json_that_git_can_compare(files):
    add_all(files)
    content = files.runs.read_text("utf-8")
    assert content.endswith("}\n") and "나쁨" in content  # not \uXXXX
    assert all(isinstance(json.loads(line), dict) for line in content.splitlines())


@pytest.mark.parametrize("pair", [None, "align", "siamese"])
def test_a_size_has_the_name_that_distill_knows(pair):
    for size in SIZES:
        assert runs.size_of(StudentConfig(3000, 2, *widths(size, pair), pair=pair)) == size
    assert runs.size_of(StudentConfig(6000, 2, *widths("tiny", pair), pair=pair)) == "tiny, 6,000 tokens"
    assert runs.size_of(StudentConfig(3000, 2, 9, 9, pair=pair)) == "e9-h9"
