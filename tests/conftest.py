"""What several test files share. Models are trained once per session; who changes one copies it first."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads would only wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import shutil

import pytest
from helpers import LABELLED, STUDENT, TAUGHT, TEACHER, reviews, run, write_rows
from hostile import make_small

from data import batches
from data.examples import read_again


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    """A folder with everything small, read only (`here` is a copy to change):

    train.tsv (120 rows), valid.tsv, test.tsv (40 each): text, label 0 or 1; unlabeled.tsv (80): text
    tokenizer/vocab_size_3000/tokenizer.json   BPE, some 40 tokens
    teacher/teacher.pt                         1 layer, 16 wide
    logits/train.pt, logits/unlabeled.pt
    students/tiny/student.pt
    """
    folder = tmp_path_factory.mktemp("kit")
    for seed, (name, count) in enumerate({"train": 120, "unlabeled": 80, "valid": 40, "test": 40}.items()):
        write_rows(folder / f"{name}.tsv", reviews(count, seed),
                   "text" if name == "unlabeled" else "text\tlabel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("train_tokenizer", "--data train.tsv unlabeled.tsv --min-frequency 1")
        run("finetune_teacher", f"{LABELLED} {TEACHER}")
        run("dump_logits", "--teacher teacher/teacher.pt --data train.tsv unlabeled.tsv --device cpu "
                           "--precision fp32")
        run("distill", f"{TAUGHT} {STUDENT}")
    return folder


@pytest.fixture
def here(kit, tmp_path, monkeypatch):
    """A copy of the kit, which is the working directory."""
    folder = tmp_path / "kit"
    shutil.copytree(kit, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def windows(monkeypatch):
    """Small windows of small blocks, so that a few rows come as those of a file beyond memory do."""
    monkeypatch.setattr(batches, "WINDOW", 400)
    monkeypatch.setattr(read_again, "__defaults__", (None, None, None, 32))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with a kit so small that a run takes a tenth of a second; see hostile.make_small."""
    folder = tmp_path_factory.mktemp("small")
    make_small(folder)
    return folder
