"""The scripts as a user runs them: one after the other, again and again; what each may import."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    LABELLED,
    STUDENT,
    TAUGHT,
    TEACHER,
    Killed,
    assert_same_run,
    die_after,
    interrupted,
    log_lines,
    read,
    refused,
    reviews,
    run,
    snapshot,
    write_rows,
)
from tokenizers import Tokenizer

import runtime
from data.examples import read_examples
from student import Student
from tasks import TASKS
from teacher import Teacher

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train_tokenizer", "finetune_teacher", "dump_logits", "distill", "evaluate"]
FILES = [path for pattern in ("*.py", "data/*.py", "extra/*.py", "serving/*.py")
         for path in sorted(ROOT.glob(pattern))]
SOURCES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in FILES}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}

# ---- what each may import ----------------------------------------------------------------------------------

# Imports go down only. Packages beside torch, tokenizers and numpy are imported inside a function.
DATA = {"runtime", "data"}
LATE = {"teacher_hf"}  # only inside a function, for models of other families
BELOW = {"student.py": set(), "runtime.py": set(), "flags.py": set(), "tasks.py": {"student", *DATA},
         "teacher.py": DATA | LATE, "teacher_hf.py": {"teacher", *DATA},
         "data/prepare.py": {"flags", *DATA}, "data/augment.py": {"flags", *DATA},
         "serving/predictor.py": set(), "serving/server.py": {"predictor"}}
OUTSIDE = {"student.py": {"torch", "tokenizers"}, "runtime.py": {"torch", "numpy"}, "flags.py": set(),
           "serving/predictor.py": {"onnxruntime", "tokenizers", "numpy"},
           "serving/server.py": {"anyio", "fastapi", "pydantic", "starlette", "uvicorn"}}
OPTIONAL = {"teacher.py": {"safetensors", "huggingface_hub"}, "teacher_hf.py": {"transformers"},
            "extra/export_onnx.py": {"onnx"}, "student.py": {"huggingface_hub"},
            "extra/publish.py": {"huggingface_hub"}, "serving/predictor.py": {"huggingface_hub"}}
ROOMS = {"student", "runtime", "flags", "tasks", "teacher", "data"}  # teacher alone knows teacher_hf


def imports(nodes) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_down_only_and_outside_to_three_packages(path):
    found = imports(ast.walk(TREES[path])) - set(sys.stdlib_module_names)
    inside = found & (ROOMS | {Path(name).stem for name in SOURCES})
    assert inside <= BELOW.get(path, DATA if path.startswith("data/") else ROOMS)  # no script is among these
    assert not LATE & imports(TREES[path].body)
    outside = found - inside - OUTSIDE.get(path, {"torch", "tokenizers", "numpy"})
    assert outside <= OPTIONAL.get(path, set()) and not outside & imports(TREES[path].body)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_tests_the_name_of_a_task(script):
    found = {getattr(node, "value", getattr(node, "id", None)) for node in ast.walk(TREES[f"{script}.py"])
             if isinstance(node, (ast.Constant, ast.Name))}
    assert not found & {*TASKS, "multilabel", "regression", "tagging", "span", "Classification", "TASKS"}


# ---- one after the other -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Every script once, on 200 rows of each file of the sample; the folder and what evaluate.py printed."""
    folder, printed = tmp_path_factory.mktemp("chain"), io.StringIO()
    for name in ("train", "valid", "test", "unlabeled"):
        lines = (ROOT / f"data/sample/{name}.tsv").read_text("utf-8").split("\n")[:201]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("train_tokenizer", "--data train.tsv unlabeled.tsv --vocab-size 800")
        run("finetune_teacher", f"{LABELLED} --scratch 1,32,2 --tokenizer tokenizer/vocab_size_800 "
                                f"--epochs 2 --max-tokens 3072 --lr 2e-3 {CPU}")
        run("dump_logits", f"--teacher teacher/teacher.pt --data train.tsv unlabeled.tsv {CPU}")
        run("distill", f"{TAUGHT} --tokenizer tokenizer/vocab_size_800 --size mini --epochs 2 {CPU}")
        with redirect_stdout(printed):
            run("evaluate", "students/mini-v800/student.pt teacher/teacher.pt --data test.tsv "
                            "--seen train.tsv --json --device cpu")
    return folder, json.loads(printed.getvalue())


def test_the_chain_hands_every_artifact_on(chain):
    folder, report = chain
    for name in ("train", "unlabeled"):
        logits = read(folder / f"logits/{name}.pt")
        assert logits["logits"].shape == (200, 2) and logits["label_names"] == ["0", "1"]
    assert report["rows"] == 200 and report["seen_rows"] == 0
    student, teacher = report["models"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer/vocab_size_800/tokenizer.json"))
    assert student["parameters"] == tokenizer.get_vocab_size() * 16 + 2 * 4 * 16 * (16 + 16 + 2) + 2 * 32 + 2
    assert student["bytes"] == (folder / "students/mini-v800/student.pt").stat().st_size
    assert student["agreement"] == 1 and 0 < teacher["agreement"] < 1 and 0 < teacher["accuracy"] < 1
    pair = Teacher.load(folder / "teacher/teacher.pt").tokenizer.encode("좋아요", "별로")
    assert pair.tokens[0] == "[CLS]" and pair.tokens.count("[SEP]") == 2 and set(pair.type_ids) == {0, 1}
    test = read_examples(folder / "test.tsv")
    guesses = Student.load(folder / "students/mini-v800/student.pt").predict(test.texts).argmax(1).tolist()
    right = sum(str(guess) == label for guess, label in zip(guesses, test.answers, strict=True))
    assert student["accuracy"] == pytest.approx(right / 200)


def test_a_run_whose_output_nobody_reads_ends_as_a_failure(chain):
    """`… | true`: half of the work is done, and `&& next` must not go on."""
    folder, _ = chain
    command = [sys.executable, "-u", ROOT / "dump_logits.py", "--teacher", "teacher/teacher.pt", "--data",
               "train.tsv", "unlabeled.tsv", "--output-dir", "piped", *CPU.split()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert "standard output was closed" in process.stderr.read().decode() and process.wait() == 141


def test_the_sample_is_what_its_readme_says():
    """3,335 distinct reviews, both labels near half, no text in two files."""
    texts, labels = [], []
    for name in ("train", "valid", "test", "unlabeled"):
        header, *lines = (ROOT / f"data/sample/{name}.tsv").read_text("utf-8").removesuffix("\n").split("\n")
        rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
        texts += [re.sub(r"\s", "", row["text"]) for row in rows]
        labels += [row["label"] for row in rows if "label" in row]
    assert len(texts) == len(set(texts)) == 3335
    assert len(labels) == 2600 and abs(labels.count("1") / len(labels) - 0.5) < 0.03


# ---- again and again ---------------------------------------------------------------------------------------

RUNS = {  # script: flags, the folder below --output-dir, what it writes, and where the kit has it finished
    "finetune_teacher": (f"{LABELLED} {TEACHER}", "", "teacher.pt", "teacher"),
    "distill": (f"{TAUGHT} {STUDENT}", "tiny", "student.pt", "students"),
}
TRAINING = pytest.mark.parametrize("script", RUNS)


@pytest.mark.parametrize("step", [1, 4, 8])
@pytest.mark.parametrize("script, flags", [
    ("finetune_teacher", f"{LABELLED} {TEACHER} --accumulate 2"),
    ("finetune_teacher", f"{TAUGHT} {TEACHER} --accumulate 2"),
    ("distill", f"{TAUGHT} {STUDENT} --dropout 0.3 --num-layers 2"),
    ("distill", f"{TAUGHT} {STUDENT} --alpha 1"),
], ids=["labels", "logits", "student", "labels-alone"])
def test_an_interrupted_run_continues_with_the_same_bits(here, windows, script, flags, step):
    """At any step, with dropout, and with rows in several windows."""
    flags = f"{flags} --max-tokens 140 --epochs 2 --output-dir"
    run(script, f"{flags} whole")
    stopped = interrupted(script, f"{flags} out", step)
    assert stopped.code == 130 and "run again: python " in str(stopped)
    torch.rand(7)  # whatever ran in between
    run(script, f"{flags} out")
    [artifact] = Path("whole").rglob("[st]*.pt")
    folder = artifact.parent.relative_to("whole")
    assert_same_run("out" / folder, "whole" / folder, artifact.name)


@TRAINING
@pytest.mark.parametrize("writes", [2, 5])
def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(here, script, writes):
    """It writes last.pt at the start, after each step and each epoch, and the best model before that."""
    flags, folder, artifact, _ = RUNS[script]
    flags, kills, dead = f"{flags} --epochs 2 --output-dir", 0, True
    run(script, f"{flags} whole")
    while dead:
        with pytest.MonkeyPatch.context() as patch:
            die_after(patch, writes)
            try:
                run(script, f"{flags} out --save-every 0")
                dead = False
            except Killed:
                kills += 1
    assert 1 < kills < 20
    assert_same_run(Path("out", folder), Path("whole", folder), artifact)


@TRAINING
def test_a_finished_run_is_left_alone(here, script, capsys):
    flags, _, artifact, output = RUNS[script]
    before = snapshot(output)
    run(script, flags)
    run(script, f"{flags} --precision auto --device auto --save-every 3")  # these decide nothing
    assert capsys.readouterr().out.count(f"{artifact}: finished already") == 2 and snapshot(output) == before
    run(script, f"{flags} --seed 0 --epochs 1 --overwrite")
    assert all(snapshot(output)[name] != before[name] for name in before)


@pytest.fixture(scope="module")
def unfinished(kit, tmp_path_factory):
    """A copy of the kit with an interrupted run of each script in out/, and files that differ."""
    folder = tmp_path_factory.mktemp("unfinished") / "kit"
    shutil.copytree(kit, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, rows in (("train", reviews(120, 0)), ("valid", reviews(40, 2))):
            write_rows(folder / f"{name}2.tsv", [(rows[0][0], str(1 - int(rows[0][1]))), *rows[1:]])
        for rows in (40, 80):
            torch.save(torch.zeros(rows, 2), f"{rows}.pt")
        run("train_tokenizer", "--data unlabeled.tsv --min-frequency 9 --output-dir other")
        for script, (flags, *_) in RUNS.items():
            interrupted(script, f"{flags} --output-dir out", 5)
    return folder


OTHERS = {"both": [
    ("--epochs 5 --clip 2", r"epochs \(\d, now 5\), .*clip"), ("--warmup 0.2", "warmup"),
    ("--max-tokens 99", "max_tokens"), ("--weight-decay 0", "weight_decay"), ("--max-length 9", "max_length"),
    ("--precision bf16", r"--precision \(fp32, now bf16\)"), ("--valid test.tsv", "the texts of --valid"),
    ("--valid valid2.tsv", "settings: the answers of --valid;"),
    ("--tokenizer other/vocab_size_3000", "the tokenizer"),
], "finetune_teacher": [
    ("--train train2.tsv", "settings: the answers of --train;"), ("--train test.tsv", "the texts of --train"),
    ("--seed 1", r"seed \(0, now 1\)"), ("--scratch 1,32,2", r"scratch \(1,16,2, now 1,32,2\)"),
    ("--accumulate 2", "accumulate"), ("--layer-decay 0.9", "layer_decay"), ("--lr 0.01", "lr"),
], "distill": [
    ("--train train2.tsv unlabeled.tsv", "settings: the answers of --train;"),
    ("--train test.tsv unlabeled.tsv --logits 40.pt 80.pt", "the texts of --train, the answers .*, --logits"),
    ("--logits logits/train.pt 80.pt", "settings: --logits;"),
]}


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize("script, flags, named", [
    (script, *other) for script in RUNS for other in OTHERS["both"] + OTHERS[script]])
def test_other_settings_are_refused_by_name(unfinished, monkeypatch, script, state, flags, named):
    given, folder, _, output = RUNS[script]
    monkeypatch.chdir(unfinished)
    output, before = "out" if state == "unfinished" else output, snapshot()
    refused(lambda: run(script, f"{given} --output-dir {output} {flags}"),
            str(Path(output, folder, "last.pt")), named)
    assert snapshot() == before


@TRAINING
def test_precision_auto_is_decided_once(here, monkeypatch, script):
    flags, folder, *_ = RUNS[script]
    monkeypatch.setattr(runtime, "cpu_flags", set)
    interrupted(script, f"{flags} --epochs 1 --precision auto --output-dir out", 2)
    monkeypatch.setattr(runtime, "cpu_flags", lambda: {"amx_bf16"})
    run(script, f"{flags} --epochs 1 --precision auto --output-dir out")
    assert read(Path("out", folder, "last.pt"))["precision"] == "fp32"
    assert log_lines(Path("out", folder))[0]["precision"] == "fp32"


@TRAINING
def test_a_killed_overwrite_does_not_keep_the_old_run(here, monkeypatch, script):
    """It dies before its first step; the old run is finished and has the same settings."""
    flags, folder, artifact, output = RUNS[script]
    before = Path(output, folder, artifact).stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(f"{script}.encode_training_set", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(script, f"{flags} --overwrite")
    assert Path(output, folder, artifact).stat().st_mtime_ns == before
    run(script, flags)
    assert Path(output, folder, artifact).stat().st_mtime_ns > before


@TRAINING
def test_what_an_older_version_left_unfinished_is_refused(here, script):
    flags, folder, artifact, _ = RUNS[script]
    state = {"kind": artifact.replace(".pt", "-resume"), "format": 2, "weights": {}, "at": {}}
    runtime.save(state, Path("out", folder, "last.pt"))
    before = snapshot()
    refused(lambda: run(script, f"{flags} --output-dir out"), "last.pt", "older version", "--overwrite")
    assert snapshot() == before


@TRAINING
def test_the_same_work_gives_the_same_bytes_wherever_it_is_done(here, script):
    """Whatever files and folders are called, and whatever else the process has drawn."""
    flags, folder, artifact, _ = RUNS[script]
    flags = f"{flags} --epochs 1 --deterministic"
    run(script, f"{flags} --output-dir one")
    assert torch.are_deterministic_algorithms_enabled()
    for name in ("train", "unlabeled", "valid"):
        os.rename(f"{name}.tsv", f"moved-{name}.tsv")
        flags = flags.replace(f" {name}.tsv", f" moved-{name}.tsv")
    run(script, f"{flags} --output-dir two/deep")
    torch.use_deterministic_algorithms(False)
    one, two = (Path(name, folder, artifact).read_bytes() for name in ("one", "two/deep"))
    assert one == two and b"moved" not in two


@TRAINING
def test_no_input_is_written_to(here, script):
    """Neither a model that teaches, named or found, nor a file of texts."""
    flags, folder, artifact, output = RUNS[script]
    flags = flags.replace(LABELLED, TAUGHT)
    path, log = Path(output, folder, artifact), Path(output, folder, "log.jsonl")
    run("dump_logits", f"--teacher {path} --data train.tsv unlabeled.tsv --overwrite")
    log.write_text('{"text": "좋다", "label": 1}\n{"text": "나", "label": 0}\n', "utf-8")
    before = snapshot()
    for more, named in (("", path), (f"--teacher {path}", path), (f"--valid {log}", f"({path}|{log})")):
        refused(lambda more=more: run(script, f"{flags} --overwrite {more}"), f"^{named}: .*input")
    assert snapshot() == before


@TRAINING
def test_rows_of_a_step_that_diverged_are_named_by_file_and_row(here, windows, monkeypatch, script):
    """The square of 1e30 is no float32. Nothing else is written."""
    flags, folder, _, _ = RUNS[script]
    logits, steps, step = read("logits/unlabeled.pt"), [], runtime.Run.step
    logits["logits"][50] = 1e30
    torch.save(logits, "logits/unlabeled.pt")
    monkeypatch.setattr(runtime.Run, "step", lambda self, norm, numbers, rate: steps.append(
        sorted(numbers.tolist())) or step(self, norm, numbers, rate))
    flags = f"{flags.replace(LABELLED, TAUGHT)} --max-tokens 140 --output-dir out"
    message = refused(lambda: run(script, flags))
    path = Path("out", folder, "diverged.tsv")
    assert f"epoch 1, step {len(steps)}: " in message and str(path) in message and "--lr" in message
    expected = [f"train.tsv\t{row}" if row < 120 else f"unlabeled.tsv\t{row - 120}" for row in steps[-1]]
    assert path.read_text("utf-8").splitlines() == ["file\trow", *expected]
    assert "unlabeled.tsv\t50" in expected and len(expected) < 100
    assert {file.name for file in path.parent.iterdir()} == {".lock", "diverged.tsv", "last.pt", "log.jsonl"}
