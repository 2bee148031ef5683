"""What ships: the students are as their card states, student.py uses one when none is named, and the encoder
reads Korean."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.examples import read_examples
from student import Student
from tasks import Classification
from teacher import load_checkpoint

ROOT = Path(__file__).parent.parent
MOST = {"base": 450_000, "small": 190_000, "tiny": 60_000}


def card() -> dict:
    """{name: cells} of the table in models/README.md."""
    lines = (ROOT / "models/README.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0].strip("`").removesuffix(".pt"): dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


@pytest.mark.parametrize("name", MOST)
def test_a_shipped_student_is_as_its_card_states(name):
    path, row = ROOT / f"models/{name}.pt", card()[name]
    student = Student.load(path)
    assert student.artifact["precision"] == "int8" and student.label_names == ["0", "1"]
    assert f"{path.stat().st_size:,}" == row["bytes"] and path.stat().st_size <= MOST[name]
    assert f"{sum(weight.numel() for weight in student.parameters()):,}" == row["parameters"]
    examples = read_examples(ROOT / "data/sample/test.tsv")
    labels, _ = examples.targets(Classification(student.label_names))
    right = int((student.predict(examples.texts).argmax(1) == labels).sum())
    stated = int(row["right of the 500 in `data/sample/test.tsv`"])
    assert abs(right - stated) <= 1  # other processors round otherwise


def test_without_a_student_the_shipped_base_answers(tmp_path):
    def answer(*args, script=ROOT / "student.py", **options):
        return subprocess.run([sys.executable, script, *args], capture_output=True, encoding="utf-8",
                              cwd=tmp_path, **options)

    texts = ["이 영화 진짜 재밌다", "돈이 아깝다"]
    done = answer(*texts)
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["1", "0"]
    assert done.stdout == answer(ROOT / "models/base.pt", *texts).stdout
    assert done.stdout == answer(input="\n".join(texts)).stdout
    shutil.copy(ROOT / "student.py", tmp_path)
    done = answer("재밌다", script="student.py")
    assert done.returncode == 2
    assert f"{tmp_path}/models/base.pt" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_student_runs_on_shapes_alone():
    """On the meta device, where operations are counted without being done."""
    student = Student.load().to("meta")
    assert student(torch.zeros(3, 5, dtype=torch.long, device="meta")).shape == (3, 2)


def test_the_shipped_encoder_is_small_and_knows_its_words():
    folder = ROOT / "models/encoder"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 26e6
    encoder, report = load_checkpoint(str(folder), ["0", "1"], 128)
    assert sum(weight.numel() for weight in encoder.parameters()) <= 15e6
    assert "starts fresh: head_dense.bias, head_dense.weight, head_out.bias, head_out.weight" in "\n".join(
        f"starts fresh: {', '.join(sorted(line.removeprefix('starts fresh: ').split(', ')))}"
        for line in report if line.startswith("starts fresh"))
    words = encoder.tokenizer.encode("이 영화 진짜 재밌다").tokens
    assert words[1:4] == ["이", "영화", "진짜"] and "[UNK]" not in words
