"""All scripts in sequence as a user runs them, what each imports, and how each answers --help and misuse."""

import ast
import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from teacher import Teacher

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train_tokenizer.py", "finetune_teacher.py", "dump_logits.py", "distill.py", "evaluate.py",
           "student.py", "pretrain_teacher.py"]
CORE = {"torch", "tokenizers", "numpy", "huggingface_hub", "tqdm"}
PROJECT = {"runtime", "student", "teacher", "data", "distill", "dump_logits", "finetune_teacher", "evaluate"}
# Optional packages, each imported inside a function where it is used.
OPTIONAL = {"teacher.py": {"safetensors"}, "student.py": {"onnx"}}
SOURCES = [path.relative_to(ROOT) for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]]


def imports(tree) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_module_imports_more_than_the_three_packages(path):
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    outside = imports(tree) - set(sys.stdlib_module_names) - PROJECT - CORE
    assert outside <= OPTIONAL.get(str(path), set())
    at_top = imports(ast.Module([node for node in tree.body
                                 if isinstance(node, (ast.Import, ast.ImportFrom))], []))
    assert not at_top & outside


def test_rooms_keep_to_themselves():
    def project_imports(path):
        return imports(ast.parse((ROOT / path).read_text("utf-8"))) & PROJECT

    assert project_imports("student.py") == set()
    assert project_imports("runtime.py") == set()
    assert project_imports("data/examples.py") == {"runtime"}
    assert project_imports("data/batching.py") == {"runtime"}
    assert project_imports("teacher.py") == {"runtime", "data", "student"}  # a student may teach
    assert "argparse" not in imports(ast.parse((ROOT / "runtime.py").read_text("utf-8")))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_manual_and_comes_without_torch(script):
    """`--help` shows the module's docstring, and answers even where torch cannot be imported."""
    code = ("import sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; import runpy; "
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    result = subprocess.run([sys.executable, "-c", code, ROOT / script, "--help"], capture_output=True,
                            encoding="utf-8", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    manual = ast.get_docstring(ast.parse((ROOT / script).read_text("utf-8")))
    assert manual in result.stdout
    for flag in re.findall(r"\b(?:arg|grid|add_argument)\(\"(--[\w-]+)", (ROOT / script).read_text("utf-8")):
        assert flag in result.stdout


def run(folder, script, *args, code=0):
    result = subprocess.run([sys.executable, ROOT / script, *map(str, args)], cwd=folder, capture_output=True,
                            encoding="utf-8")
    assert result.returncode == code, result.stderr + result.stdout
    return result


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Every script once, on 200 rows of each sample file; the folder and what evaluate.py printed."""
    folder = tmp_path_factory.mktemp("chain")
    for name in ("train", "valid", "test", "unlabeled"):
        lines = (ROOT / f"data/sample/{name}.tsv").read_text("utf-8").split("\n")[:201]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    common = "--device", "cpu", "--precision", "fp32"
    run(folder, "train_tokenizer.py", "--data", "train.tsv", "unlabeled.tsv", "--vocab-size", 800)
    run(folder, "finetune_teacher.py", "--train", "train.tsv", "--valid", "valid.tsv", "--scratch", "1,32,2",
        "--tokenizer", "tokenizer/vocab_size_800", "--epochs", 2, "--lr", "2e-3", *common)
    run(folder, "dump_logits.py", "--teacher", "teacher/teacher.pt", "--data", "train.tsv", "unlabeled.tsv",
        *common)
    run(folder, "distill.py", "--train", "train.tsv", "unlabeled.tsv",
        "--logits", "logits/train.pt", "logits/unlabeled.pt", "--valid", "valid.tsv",
        "--tokenizer", "tokenizer/vocab_size_800", "--size", "mini", "--epochs", 2, *common)
    output = run(folder, "evaluate.py", "students/mini/student.pt", "teacher/teacher.pt",
                 "--data", "test.tsv", "--seen", "train.tsv", "--json", "--device", "cpu").stdout
    return folder, json.loads(output)


def test_the_chain_hands_every_artifact_on(chain):
    folder, report = chain
    logits = torch.load(folder / "logits/train.pt", weights_only=True)
    assert logits["logits"].shape == (200, 2) and logits["label_names"] == ["0", "1"]
    assert torch.load(folder / "logits/unlabeled.pt", weights_only=True)["logits"].shape == (200, 2)
    assert report["rows"] == 200 and report["seen_rows"] == 0
    student, teacher = report["models"]
    vocab_size = Tokenizer.from_file(str(folder / "tokenizer/vocab_size_800/tokenizer.json")).get_vocab_size()
    assert student["parameters"] == vocab_size * 16 + 2 * 4 * 16 * (16 + 16 + 2) + 2 * 32 + 2
    assert student["bytes"] == (folder / "students/mini/student.pt").stat().st_size
    assert student["agreement"] == 1 and student["mcnemar_p"] == 1
    assert 0 < teacher["accuracy"] < 1 and 0 < teacher["agreement"] < 1


def test_predictions_of_the_command_line_give_the_reported_accuracy(chain):
    folder, report = chain
    rows = [line.split("\t") for line in (folder / "test.tsv").read_text("utf-8").splitlines()[1:]]
    texts = "".join(text + "\n" for _, text, _ in rows)
    output = subprocess.run([sys.executable, ROOT / "student.py", "students/mini/student.pt"], input=texts,
                            cwd=folder, capture_output=True, encoding="utf-8").stdout
    predicted = [line.split("\t")[0] for line in output.splitlines()]
    right = sum(label == guess for (_, _, label), guess in zip(rows, predicted, strict=True))
    assert right / 200 == pytest.approx(report["models"][0]["accuracy"])


@pytest.mark.parametrize("script, args, message", [
    ("distill.py", "--train train.tsv --logits logits/unlabeled.pt --valid valid.tsv "
                   "--tokenizer tokenizer/vocab_size_800", "these are logits of other texts than train.tsv"),
    ("distill.py", "--train none.tsv --alpha 1 --valid valid.tsv --tokenizer tokenizer/vocab_size_800",
     "none.tsv: cannot read (No such file or directory)"),
    ("distill.py", "--train train.tsv --alpha 1 --valid valid.tsv --tokenizer none",
     "make one with train_tokenizer"),
    ("evaluate.py", "logits/train.pt --data test.tsv", "holds logits; a student.pt or teacher.pt is needed"),
    ("dump_logits.py", "--teacher logits/train.pt --data train.tsv",
     "holds logits; a student.pt or teacher.pt is needed"),
    ("finetune_teacher.py", "--train unlabeled.tsv --valid valid.tsv --checkpoint x", "no row has a label"),
    ("finetune_teacher.py", "--train train.tsv --valid valid.tsv --checkpoint none/here/at/all",
     "no such folder"),
    ("train_tokenizer.py", "--data train.tsv --text-column body",
     "no column body among ['id', 'text', 'label']"),
])
def test_a_users_mistake_is_one_line_and_exit_code_2(chain, script, args, message):
    folder, _ = chain
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = run(folder, script, *args.split(), code=2)
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


COMMON = "--device cpu --precision fp32"


@pytest.mark.parametrize("script, args, lock, made", [
    ("finetune_teacher.py", "--train train.tsv --valid valid.tsv --scratch 1,32,2 --epochs 1 "
     "--tokenizer tokenizer/vocab_size_800", "teacher/.lock", "teacher/last.pt"),
    ("dump_logits.py", "--teacher teacher/teacher.pt --data train.tsv",
     "logits/.train.lock", "logits/train.pt"),
    ("distill.py", "--train train.tsv --alpha 1 --valid valid.tsv --size mini --epochs 1 "
     "--tokenizer tokenizer/vocab_size_800", "students/mini/.lock", "students/mini/last.pt"),
])
def test_one_run_a_folder_and_finished_work_stays(chain, script, args, lock, made):
    """While another process has the folder, even --overwrite is refused; and without it when none has."""
    def state():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != lock}

    folder, _ = chain
    lock = folder / lock
    before = state()
    with open(lock, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        error = run(folder, script, *args.split(), *COMMON.split(), "--overwrite", code=2).stderr
        assert re.fullmatch(rf"error: {lock.parent.relative_to(folder)}: another run \(process \d+\) is "
                            r"writing there; wait until it ends, or give another --output-dir\n", error)
        if script == "dump_logits.py":  # which writes nothing
            checked = run(folder, script, *args.split(), *COMMON.split(), "--check", "20").stdout
            assert checked.startswith("logits/train.pt: 20 of 200 rows computed again in fp32, all agree")
    error = run(folder, script, *args.split(), *COMMON.split(), code=2).stderr
    assert error.startswith(f"error: {made}: is there already; --") and error.count("\n") == 1
    assert "--overwrite" in error and state() == before


def test_the_sample_is_what_its_readme_says():
    """At least 1,000 distinct reviews, both labels near half, no text in two files."""
    texts, labels = [], []
    for name in ("train", "valid", "test", "unlabeled"):
        header, *lines = (ROOT / f"data/sample/{name}.tsv").read_text("utf-8").removesuffix("\n").split("\n")
        rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
        texts += [re.sub(r"\s", "", row["text"]) for row in rows]
        labels += [row["label"] for row in rows if "label" in row]
    assert len(texts) == len(set(texts)) == 3335
    assert len(labels) == 2600 and abs(labels.count("1") / len(labels) - 0.5) < 0.03


def test_a_scratch_teacher_reads_cls_and_tells_the_second_text_apart(chain):
    folder, _ = chain
    teacher = Teacher.load(folder / "teacher/teacher.pt")
    encoded = teacher.encode(["좋아요", ""], ["별로", "별로"])
    cls, sep = teacher.tokenizer.token_to_id("[CLS]"), teacher.tokenizer.token_to_id("[SEP]")
    first, second = (encoded.tokens[encoded.offsets[i] : encoded.offsets[i + 1]].tolist() for i in (0, 1))
    assert first[0] == second[0] == cls and first[-1] == second[-1] == sep and second[1] == sep
    assert encoded.columns["second"].tolist() == [first.index(sep) + 1, 2]


def test_a_run_whose_output_nobody_reads_any_more_ends_as_a_failure(chain):
    """`… | true`: half the work is done, and `&& next` must not go on."""
    folder, _ = chain
    command = [sys.executable, "-u", ROOT / "dump_logits.py", "--teacher", "teacher/teacher.pt", "--data",
               "train.tsv", "unlabeled.tsv", "--output-dir", "piped", *COMMON.split()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 141
    assert error.splitlines()[-1].startswith("stopped: standard output was closed; go on with: python ")
