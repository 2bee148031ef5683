"""Programs in docs/ do what the page says."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from extra import export_onnx
from student import Student

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.optional


def program(page: str, words: str) -> str:
    """The one block of Python on a page that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.S)
    found, = (block for block in blocks if words in block)
    return found


def test_ray_answers_a_folder_of_files(tmp_path):
    """One file's texts are all numbers, another has a line break and quotation marks in a cell."""
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    source = program("scaling.md", "ray.data")
    assert len([line for line in source.splitlines() if line and line[0] != "#"]) < 20
    (tmp_path / "app").mkdir()
    (tmp_path / "reviews").mkdir()
    (tmp_path / "app/answers.py").write_text(source, "utf-8")
    shutil.copy(ROOT / "serving/predictor.py", tmp_path / "app")
    student = Student.load(ROOT / "models/tiny.pt")
    (tmp_path / "app/base.onnx").write_bytes(export_onnx.onnx_bytes(student))
    files = [["2024", "", "10"], ["정말 재밌다", '"최고"라더니\n돈이 아깝다'],
             [f"{word} {i}" for i in range(300) for word in ("좋아요", "별로")]]
    rows = {}
    for name, texts in enumerate(files):
        with open(tmp_path / f"reviews/{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            for i, text in enumerate(texts):
                key = str(i) if name == 0 else f"{name}-{i}"
                writer.writerow([key, text])
                rows[key] = text
    done = subprocess.run([sys.executable, "app/answers.py", tmp_path / "reviews", tmp_path / "answers"],
                          cwd=tmp_path, env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}, timeout=600,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = parquet.read_table(tmp_path / "answers").to_pylist()
    assert {row["id"]: row["text"] for row in found} == rows and len(found) == len(rows)
    expected = student.predict([row["text"] for row in found]).numpy()
    assert [row["label"] for row in found] == [student.label_names[i] for i in expected.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in found], expected.max(1), atol=1e-5)
