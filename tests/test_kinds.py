"""Several labels and scores through every script, for texts and for pairs."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import read, refused, run, write_rows

import tasks
from data.examples import read_examples
from student import Student
from teacher import Teacher

ROOT = Path(__file__).parent.parent
CPU = "--device cpu --precision fp32 --max-tokens 96"
TOKENIZER = "--tokenizer tokenizer/vocab_size_60"
TEACHER = f"--scratch 1,32,2 --epochs 10 --lr 3e-3 {TOKENIZER} {CPU}"
STUDENT = f"--size tiny --epochs 6 {TOKENIZER} {CPU}"
LABELLED = "--train train.tsv --valid valid.tsv"
TAUGHT = "--train train.tsv more.tsv --logits logits/train.pt logits/more.pt --valid valid.tsv"
KINDS = {"multilabel": "labels", "regression": "score"}


def answer(kind: str, counts: dict) -> str:
    """욕 and 칭찬 of the words that occur; or how good a text is, a number near 300."""
    if kind == "multilabel":
        return ",".join(name for name, word in (("칭찬", "최고"), ("욕", "바보")) if counts[word]) or "-"
    return f"{300 + 50 * counts['최고'] - 40 * counts['바보']}"


def texts(count: int, seed: int) -> list[tuple[str, dict]]:
    random, rows = torch.Generator().manual_seed(seed), []
    for i in range(count):
        good, bad = torch.randint(0, 3, (2,), generator=random).tolist()
        text = " ".join(["영화", *["최고"] * good, *["바보"] * bad, f"{i % 7}"])
        rows.append((text, {"최고": good, "바보": bad}))
    return rows


def make(kind: str, pairs: bool) -> None:
    """train.tsv (200 rows, one of them without an answer), valid.tsv (60), more.tsv (80, texts alone); a
    tokenizer, a teacher, logits of all files, a student of both files and one of labels alone."""
    header = "text\ttext2" if pairs else "text"
    for seed, (name, count) in enumerate({"train": 200, "valid": 60, "more": 80}.items()):
        rows = []
        for i, (text, counts) in enumerate(texts(count, seed)):
            cell = "" if name == "train" and i == 5 else answer(kind, counts)
            first, second = text.split(" ", 1)
            rows.append((first + " 그", second, cell) if pairs else (text, cell))
        write_rows(Path(f"{name}.tsv"), rows, header if name == "more" else f"{header}\t{KINDS[kind]}")
    run("train_tokenizer", "--data train.tsv --vocab-size 60 --min-frequency 1")
    run("finetune_teacher", f"{LABELLED} {TEACHER}")
    run("dump_logits", f"--teacher teacher/teacher.pt --data train.tsv more.tsv valid.tsv {CPU}")
    run("distill", f"{TAUGHT} {STUDENT} --alpha 0.1 1")


@contextmanager
def inside(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module", params=["multilabel", "regression", "multilabel-pairs", "regression-pairs"])
def made(request, tmp_path_factory):
    """(folder with what make() makes, kind, whether of pairs); to read."""
    folder, (kind, *pairs) = tmp_path_factory.mktemp(request.param), request.param.split("-")
    with inside(folder):
        make(kind, bool(pairs))
    return folder, kind, bool(pairs)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    with inside(folder):
        make("multilabel", False)
    return folder


@pytest.fixture
def several(labelled, tmp_path, monkeypatch):
    """The folder of several labels, to change."""
    shutil.copytree(labelled, tmp_path / "kit")
    monkeypatch.chdir(tmp_path / "kit")


BOTH, ALONE = "students/tiny-v60/student.pt", "students/tiny-v60-alpha1/student.pt"


def judged(capsys, flags) -> list[dict]:
    capsys.readouterr()
    run("evaluate", f"{flags} --json --device cpu")
    return json.loads(capsys.readouterr().out)["models"]


def test_the_chain_from_a_file_to_a_table(made, capsys):
    folder, kind, _ = made
    with inside(folder):
        found = judged(capsys, f"teacher/teacher.pt {BOTH} {ALONE} --data valid.tsv --logits logits/valid.pt")
        best = {"multilabel": "macro_f1", "regression": "pearson"}[kind]
        teacher, both, alone, cached = (model[best] for model in found)
        assert min(teacher, both) > 0.8 and alone > 0.9
        for model, path in zip(found, ("teacher/teacher.pt", BOTH, ALONE), strict=False):
            # What training chose the epoch by is what the model has.
            stored = read(Path(path).with_name("last.pt"))["at"]["best"][f"valid_{best}"]
            assert model[best] == pytest.approx(stored, abs=1e-6)
            assert model["interval"][0] <= model[best] <= model["interval"][1]
        if kind == "regression":
            assert cached == pytest.approx(teacher) and "agreement" not in found[1]
            assert found[0]["mse"] > 1 and found[3]["mse"] == pytest.approx(found[0]["mse"], rel=1e-4)
        else:  # cached logits have no thresholds
            assert found[3]["log_loss"] == pytest.approx(found[0]["log_loss"], rel=1e-5)
            assert found[1]["agreement"] > 0.5 and "ece_uncalibrated" in found[1]
        assert f"valid_{best}" in Path("students/summary.tsv").read_text("utf-8")


def test_answers_are_what_an_application_wants(made):
    folder, kind, pairs = made
    student = Student.load(folder / ALONE)
    rows = [["영화 최고 1", "영화 바보 바보 2", "영화 3"]]
    if pairs:
        rows = [["영화 그"] * 3, ["최고 1", "바보 바보 2", "3"]]
    found, p = student.answers(*rows), student.predict(*rows)
    if kind == "multilabel":
        names = student.label_names
        assert sorted(names) == ["욕", "칭찬"] and found == [["칭찬"], ["욕"], []]
        assert student.config.mean is None and len(student.config.thresholds) == 2
        torch.testing.assert_close(p, student.logits(*rows).sigmoid())
        student.config.thresholds = [1.0, 0.0]
        assert student.answers(*rows) == [[names[1]]] * 3
    else:
        assert all(type(score) is float for score in found) and found == p[:, 0].tolist()
        assert found == pytest.approx([350, 220, 300], abs=25) and p.shape == (3, 1)
        assert (student.config.temperature, student.config.thresholds) == (1, None)
        values = torch.tensor([float(cell) for cell in read_examples(folder / "train.tsv").answers if cell])
        assert student.config.mean == pytest.approx(values.mean().item(), rel=1e-6)
        assert student.config.deviation == pytest.approx(values.std(correction=0).item(), rel=1e-6)
    assert student.answers([], [] if pairs else None) == []


def test_logits_are_in_the_units_of_the_file(made):
    folder, kind, _ = made
    teacher, logits = Teacher.load(folder / "teacher/teacher.pt"), read(folder / "logits/valid.pt")
    examples = read_examples(folder / "valid.tsv")
    assert (teacher.task, logits["task"]) == (kind, kind)
    assert logits["label_names"] == teacher.label_names
    assert len(teacher.label_names) == logits["logits"].size(1)
    own = teacher.logits(examples.texts, examples.texts2)
    torch.testing.assert_close(own, logits["logits"], rtol=1e-4, atol=1e-3)
    p = teacher.predict(examples.texts, examples.texts2)
    assert torch.equal(p, own.sigmoid() if kind == "multilabel" else own)
    if kind == "regression":
        assert 200 < own.mean() < 400 and own.std() > 20 and teacher.config.thresholds is None
    else:
        assert len(teacher.config.thresholds) == 2


def test_a_smaller_copy_answers_alike(made, capsys, tmp_path):
    folder, kind, _ = made
    with inside(folder):
        run("extra.quantize", f"{ALONE} --data valid.tsv --out {tmp_path / 's.pt'}")
        name = {"multilabel": "macro_f1", "regression": "pearson"}[kind]
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
        assert abs(float(line.split()[1]) - float(line.split()[2])) < 0.03
        one, two = (Student.load(path) for path in (ALONE, tmp_path / "s.pt"))
        assert one.config == two.config
        rows = read_examples("valid.tsv")
        answers = [student.answers(rows.texts, rows.texts2) for student in (one, two)]
        if kind == "regression":
            assert answers[1] == pytest.approx(answers[0], abs=10)
        else:
            assert sum(mine == other for mine, other in zip(*answers, strict=True)) > 57


@pytest.mark.optional
def test_the_graph_gives_what_predict_gives(made, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from tokenizers import Tokenizer

    folder, kind, pairs = made
    run("extra.export_onnx", f"{folder / ALONE} {tmp_path / 's.onnx'}")
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"), providers=["CPUExecutionProvider"])
    student, rows = Student.load(folder / ALONE), read_examples(folder / "valid.tsv")
    metadata = session.get_modelmeta().custom_metadata_map
    tokenizer = Tokenizer.from_str(metadata["tokenizer"])
    inputs = {}
    for name, texts in {"": rows.texts, "2": rows.texts2}.items() if pairs else [("", rows.texts)]:
        encoded = tokenizer.encode_batch(texts)
        inputs[f"input_ids{name}"] = [each.ids for each in encoded]
        inputs[f"lengths{name}"] = [sum(each.attention_mask) for each in encoded]
    found, = session.run(["probabilities"], inputs)
    expected = student.predict(rows.texts, rows.texts2)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)
    assert metadata["task"] == kind
    assert json.loads(metadata.get("thresholds", "null")) == student.config.thresholds


def test_doubtful_answers_and_what_is_left_to_the_teacher(made, capsys, tmp_path):
    folder, kind, _ = made
    with inside(folder):
        flags = "--data train.tsv --logits logits/train.pt"
        run("extra.cascade", f"disagreements {flags} --out {tmp_path / 'd.tsv'}")
        header, *lines = [line.split("\t") for line in (tmp_path / "d.tsv").read_text("utf-8").splitlines()]
        assert header[:4] == ["row", "id", KINDS[kind], "teacher"]
        logits = read("logits/train.pt")
        task, rows = tasks.TASKS[kind](logits["label_names"]), read_examples("train.tsv")
        target, known = rows.targets(task)
        losses = task.hard(logits["logits"], target)
        if kind == "regression":
            wrong = set(known.nonzero()[:, 0].tolist())
        else:
            differs = ((logits["logits"] > 0) != target.bool()).any(1)
            wrong = set((differs & known).nonzero()[:, 0].tolist())
        assert {int(line[0]) for line in lines} == wrong
        order = [losses[int(line[0])].item() for line in lines]
        assert order == sorted(order, reverse=True)
        command = f"escalate {BOTH} --data valid.tsv --logits logits/valid.pt --json --device cpu"
        if kind == "regression":
            refused(lambda: run("extra.cascade", command), r"^valid\.tsv: a score")
            return
        capsys.readouterr()
        run("extra.cascade", command)
        curve = json.loads(capsys.readouterr().out)["models"][0]["curve"]
        exact = judged(capsys, f"{BOTH} --data valid.tsv")[0]["exact"]
        assert curve[-1][0] == 1 and curve[-1][2] == pytest.approx(exact)


def test_all_scores_and_a_table_of_the_labels(made, capsys):
    folder, kind, _ = made
    with inside(folder):
        run("evaluate", f"{BOTH} {ALONE} --data valid.tsv --all --device cpu")
        printed = capsys.readouterr().out
        found = judged(capsys, f"{BOTH} {ALONE} --data valid.tsv")
        if kind == "regression":
            assert all(word in printed for word in ("Pearson", "Spearman", "MSE"))
            assert "support" not in printed
            return
        assert all(word in printed for word in ("macro-F1", "micro-F1", "exact match", "ECE", "threshold"))
        table = printed.split("\n\n")[2].splitlines()
        assert len(table) == 1 + 2 * 2
        assert [line.split()[1] for line in table[1:3]] == [row["label"] for row in found[0]["labels"]]
        student, rows = Student.load(ALONE), read_examples("valid.tsv")
        given = student.answers(rows.texts, rows.texts2)
        truth = [cell.split(",") for cell in rows.answers]
        for row in found[1]["labels"]:
            name = row["label"]
            hits = sum(name in mine and name in own for mine, own in zip(given, truth, strict=True))
            has, gets = (sum(name in each for each in column) for column in (truth, given))
            assert row["support"] == has and row["precision"] == pytest.approx(hits / gets)
            assert (row["recall"], row["f1"]) == pytest.approx((hits / has, 2 * hits / (has + gets)))
            assert row["threshold"] == student.config.thresholds[student.label_names.index(name)]


def test_the_errors_of_each_task(made, tmp_path):
    folder, kind, _ = made
    with inside(folder):
        run("evaluate", f"{BOTH} --data valid.tsv --errors {tmp_path / 'e.tsv'} --json --device cpu")
        header, *lines = [line.split("\t") for line in (tmp_path / "e.tsv").read_text("utf-8").splitlines()]
        assert header[3:7] == [KINDS[kind], "predicted", "confidence", "loss"]
        losses = [float(line[6]) for line in lines]
        assert losses == sorted(losses, reverse=True)
        if kind == "regression":
            assert len(lines) == 60 and all(line[5] == "" for line in lines)
            assert losses[0] == pytest.approx((float(lines[0][3]) - float(lines[0][4])) ** 2, rel=1e-3)
        else:  # in whatever order a cell names them
            assert all(set(line[3].split(",")) != set(line[4].split(",")) for line in lines)


def test_the_command_line_prints_one_line_per_text(made):
    folder, kind, pairs = made
    if pairs:
        return
    done = subprocess.run([sys.executable, ROOT / "student.py", folder / ALONE, "영화 최고 1", "영화 바보 2"],
                          capture_output=True, text=True, encoding="utf-8", check=True)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[-1] for line in lines] == ["영화 최고 1", "영화 바보 2"]
    if kind == "multilabel":
        assert [line[0] for line in lines] == ["칭찬", "욕"]
        assert all(0 < float(line[1]) <= 1 for line in lines)
    else:
        assert all(len(line) == 2 for line in lines)
        assert [float(line[0]) for line in lines] == pytest.approx([350, 260], abs=25)


# ---- teachers together, more rows, the grid ----------------------------------------------------------------


def test_the_mean_of_teachers_is_that_of_their_scores(made, tmp_path):
    """Though each standardises by itself."""
    folder, _, _ = made
    with inside(folder):
        teachers = f"teacher/teacher.pt {BOTH}"
        run("dump_logits", f"--teacher {teachers} --data valid.tsv --output-dir {tmp_path} {CPU}")
        rows = read_examples("valid.tsv")
        one, two = (model.logits(rows.texts, rows.texts2) for model in (
            Teacher.load("teacher/teacher.pt"), Student.load(BOTH)))
        two = two * Student.load(BOTH).config.temperature
        found = read(tmp_path / "valid.pt")["logits"]
        torch.testing.assert_close(found, (one + two) / 2, rtol=1e-4, atol=1e-2)


def test_a_teacher_is_taught_and_a_run_continues(made, tmp_path):
    folder, kind, _ = made
    with inside(folder):
        flags = f"{TAUGHT} {TEACHER} --epochs 1 --output-dir {tmp_path / 'teacher'}"
        run("finetune_teacher", flags)
        before = (tmp_path / "teacher/teacher.pt").read_bytes()
        run("finetune_teacher", flags)
        run("finetune_teacher", f"{flags} --overwrite")
        assert (tmp_path / "teacher/teacher.pt").read_bytes() == before
        other = {"multilabel": "exact", "regression": "spearman"}[kind]
        refused(lambda: run("finetune_teacher", f"{flags} --best {other}"), rf"last\.pt .*best .*{other}")


def test_the_losses_of_the_grid(made, tmp_path, capsys):
    folder, kind, _ = made
    with inside(folder):
        run("distill", f"{TAUGHT} {STUDENT} --epochs 3 --loss mse kl --output-dir {tmp_path}")
        best = {"multilabel": "macro_f1", "regression": "pearson"}[kind]
        assert f"valid_{best}" in (tmp_path / "summary.tsv").read_text("utf-8").splitlines()[0]
        assert (tmp_path / "tiny-v60-kl/student.pt").exists()
        weighted = f"{TAUGHT} {STUDENT} --class-weights balanced"
        refused(lambda: run("distill", weighted), f"class-weights .*{kind}")
        refused(lambda: run("distill", f"{TAUGHT} {STUDENT} --best accuracy"), f"accuracy: .*{best} or ")


def test_the_budget_search(made, tmp_path, capsys):
    folder, kind, pairs = made
    if pairs:
        return
    with inside(folder):
        module = importlib.import_module("extra.search_budget")
        flags = f"--budget 12KB {TOKENIZER} --epochs 2 --output-dir {tmp_path} -- {TAUGHT} {CPU}"
        module.main(module.parse_args(flags.split()))
        name = {"multilabel": "macro_f1", "regression": "pearson"}[kind]
        assert name in capsys.readouterr().out
        [file] = (path for path in tmp_path.glob("best/*/student*.pt") if path.stat().st_size <= 12_000)
        assert Student.load(file).task == kind


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "cell", "words"), [
    ("multilabel", "욕,욕", "twice"), ("multilabel", "욕,-", "alone"), ("multilabel", "욕,,칭찬", "empty"),
    ("regression", "좋음", "not a number"), ("regression", "nan", "not a number"),
    ("regression", "-", "not a number"),
])  # fmt: skip
def test_a_bad_cell_is_one_line_wherever_it_is_read(made, tmp_path, kind, cell, words):
    folder, of, pairs = made
    if of != kind or pairs:
        return
    bad = tmp_path / "bad.tsv"
    rows = [(text, answer(kind, counts)) for text, counts in texts(20, 9)]
    write_rows(bad, [*rows[:7], (rows[7][0], cell), *rows[8:]], f"text\t{KINDS[kind]}")
    place = rf"^{bad}:9: .*{words}"
    with inside(folder):
        for script, flags in (
                ("finetune_teacher", f"--train {bad} --valid valid.tsv {TEACHER}"),
                ("finetune_teacher", f"--train train.tsv --valid {bad} {TEACHER}"),
                ("distill", f"--train {bad} --valid valid.tsv --alpha 1 {STUDENT}"),
                ("dump_logits", f"--teacher {BOTH} --data {bad} --output-dir {tmp_path} {CPU}"),
                ("evaluate", f"{BOTH} --data {bad}"),
                ("extra.quantize", f"{BOTH} --data {bad} --out {tmp_path / 'q'}")):
            refused(lambda script=script, flags=flags: run(script, flags), place)


def test_unknown_and_look_alike_labels_have_their_line(several):
    for cell, script, flags, words in (
            ("욕설", "evaluate", f"{BOTH} --data bad.tsv", r"^bad\.tsv:9: .*'욕설' is none of"),
            ("칭찬,욕\u200b", "distill", f"--train bad.tsv --valid valid.tsv --alpha 1 {STUDENT} --overwrite",
             r"^bad\.tsv:9: .*invisible"),
            ("칭찬\u200b", "finetune_teacher", f"--train train.tsv --valid bad.tsv {TEACHER} --overwrite",
             r"^bad\.tsv:9: .*invisible")):
        rows = [(text, answer("multilabel", counts)) for text, counts in texts(20, 9)]
        write_rows(Path("bad.tsv"), [*rows[:7], (rows[7][0], cell), *rows[8:]], "text\tlabels")
        refused(lambda script=script, flags=flags: run(script, flags), words)


def test_files_of_another_task_are_refused_unless_the_flag_says_so(several, capsys):
    texts_ = read_examples("valid.tsv").texts
    write_rows(Path("classes.tsv"), [(text, "욕" if i % 2 else "칭찬") for i, text in enumerate(texts_)])
    for script, flags in (("evaluate", f"{BOTH} --data classes.tsv"),
                          ("dump_logits", f"--teacher {BOTH} --data classes.tsv {CPU}"),
                          ("extra.quantize", f"{BOTH} --data classes.tsv --out q.pt"),
                          ("distill", "--train classes.tsv --valid classes.tsv --logits logits/valid.pt "
                                      + STUDENT),
                          ("extra.cascade", f"escalate {BOTH} --data classes.tsv --logits logits/valid.pt")):
        refused(lambda script=script, flags=flags: run(script, flags),
                "label .*classification.*--task multilabel")
    run("evaluate", f"{BOTH} --data classes.tsv --label-column label --task multilabel --device cpu")
    run("dump_logits", f"--teacher {BOTH} --data classes.tsv --task multilabel --output-dir other {CPU}")
    assert "0 labelled" in capsys.readouterr().out  # there is no column labels
    write_rows(Path("both.tsv"), [(text, "1", "욕") for text in texts_], "text\tlabel\tlabels")
    refused(lambda: run("evaluate", f"{BOTH} --data both.tsv"), "label or labels.*--label-column")
    for more in ("--label-column labels", "--task multilabel"):
        run("evaluate", f"{BOTH} --data both.tsv --device cpu {more}")


def test_another_column_by_name(several):
    for name in ("train", "valid"):
        rows = read_examples(f"{name}.tsv")
        write_rows(Path(f"{name}2.tsv"), list(zip(rows.texts, rows.answers, strict=True)), "text\ttags")
    run("distill", "--train train2.tsv --valid valid2.tsv --label-column tags --task multilabel --alpha 1 "
        f"--output-dir other {STUDENT}")
    expected, found = (read(path)["weights"] for path in (ALONE, "other/tiny-v60-alpha1/student.pt"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_lists_in_json_lines_are_labels(several):
    """Names with commas need them; a table then has them as JSON."""
    for name in ("train", "valid"):
        rows = read_examples(f"{name}.tsv")
        with open(f"{name}.jsonl", "w", encoding="utf-8") as file:
            for text, cell in zip(rows.texts, rows.answers, strict=True):
                names = None if not cell else [] if cell == "-" else [
                    name.replace("욕", "욕, 비하") for name in cell.split(",")]
                file.write(json.dumps({"text": text, "labels": names}) + "\n")
    run("distill", f"--train train.jsonl --valid valid.jsonl --alpha 1 --output-dir lists {STUDENT}")
    student = Student.load("lists/tiny-v60-alpha1/student.pt")
    assert student.label_names == ["욕, 비하", "칭찬"]
    assert student.answers(["영화 바보 최고 1", "영화 1"]) == [["욕, 비하", "칭찬"], []]
    run("evaluate", "lists/tiny-v60-alpha1/student.pt --data valid.jsonl --errors e.tsv --device cpu")
    lines = '{"text": "가", "labels": ["욕, 비하"]}\n{"text": "나", "labels": [["x"]]}\n'
    Path("bad.jsonl").write_text(lines, "utf-8")
    refused(lambda: run("evaluate", "lists/tiny-v60-alpha1/student.pt --data bad.jsonl"), r"^bad\.jsonl:2: ")
    Path("bad.jsonl").write_text('{"text": "가", "label": ["욕"]}\n', "utf-8")
    refused(lambda: run("evaluate", f"{BOTH} --data bad.jsonl"), r"^bad\.jsonl:1: .*string or number")


# ---- logits of others --------------------------------------------------------------------------------------


def test_bare_tensors_teach_every_task(made, tmp_path):
    """Of scores, one number per row will do."""
    folder, kind, _ = made
    with inside(folder):
        logits = read("logits/train.pt")["logits"]
        torch.save(logits[:, 0] if kind == "regression" else logits, tmp_path / "bare.pt")
        for logits, out in ((tmp_path / "bare.pt", "one"), ("logits/train.pt", "two")):
            run("distill", f"{LABELLED} --logits {logits} {STUDENT} --epochs 2 --embeddings random "
                           f"--output-dir {tmp_path / out}")
        one, two = (read(tmp_path / out / "tiny-v60-random/student.pt")["weights"] for out in ("one", "two"))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_bare_tensors_that_do_not_belong_are_told(made, tmp_path, capsys):
    folder, kind, _ = made
    logits = read(folder / "logits/train.pt")["logits"]
    torch.save(torch.cat([logits, logits], 1), tmp_path / "wide.pt")
    with inside(folder):
        rows = read_examples("train.tsv")
        target = rows.targets(tasks.make(KINDS[kind], rows.cells(), "train.tsv"))[0].view(200, -1)
        logits = target if kind == "regression" else 4 * target - 2
        torch.save(logits.roll(1, 0), tmp_path / "shifted.pt")
        flags = f"{LABELLED} {STUDENT} --epochs 1 --output-dir {tmp_path} --logits"
        refused(lambda: run("distill", f"{flags} {tmp_path / 'wide.pt'}"), f"{2 * logits.size(1)} columns")
        capsys.readouterr()
        run("distill", f"{flags} {tmp_path / 'shifted.pt'}")
        assert "the row after" in capsys.readouterr().err
        if kind == "multilabel":
            torch.save(target * 0.8 + 0.1, tmp_path / "p.pt")
            run("distill", f"{flags} {tmp_path / 'p.pt'} --overwrite")
            error = capsys.readouterr().err
            assert "probabilities" in error and "torch.logit" in error


def test_a_look_shows_labels_and_the_range_of_scores(made, capsys):
    folder, kind, _ = made
    with inside(folder):
        run("data.prepare", "look train.tsv")
        line = capsys.readouterr().out.splitlines()[0]
        cells = [cell for cell in read_examples("train.tsv").answers if cell]
        if kind == "regression":
            values = [float(cell) for cell in cells]
            assert f": {min(values):g} to {max(values):g}, mean {sum(values) / 199:.4g}" in line
        else:
            count = sum("욕" in cell.split(",") for cell in cells)
            assert f"욕: {count}" in line and f"-: {cells.count('-')}" in line
