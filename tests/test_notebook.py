"""notebooks/quickstart.ipynb runs from its first cell to its last; the checkout stands for a clone."""

import json
import re
from pathlib import Path

import pytest

from student import Student, decode

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.optional


def test_the_notebook_runs_and_the_logits_help(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    (tmp_path / "kit/notebooks").mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name not in ("notebooks", "runs", ".git"):
            (tmp_path / "kit" / path.name).symlink_to(path)
    notebook = nbformat.read(ROOT / "notebooks/quickstart.ipynb", 4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {
        "path": tmp_path / "kit/notebooks"}}).execute()
    install, predict, *_, plot, own = (cell for cell in notebook.cells if cell.cell_type == "code")
    assert install.outputs == []  # nothing was cloned or installed
    student, lines = Student.load(ROOT / "models/base.pt"), printed(predict)
    texts = [line.split(" ", 2)[2] for line in lines]
    assert len(texts) == 3 and lines == [f"{label} {sure:.2f} {text}" for text, (label, sure) in zip(
        texts, decode(student.predict(texts), student.label_names, student.task), strict=True)]
    scores = json.loads((tmp_path / "kit/runs/quickstart/scores.json").read_text("utf-8"))["models"]
    alone, distilled, _, shipped = (model["accuracy"] for model in scores)
    assert alone + 0.05 < distilled and shipped == pytest.approx(0.8)
    assert any("image/png" in output.get("data", {}) for output in plot.outputs)
    assert all(re.fullmatch(r"[01] [01]\.\d\d .+", line) for line in printed(own)) and len(printed(own)) == 2


def printed(cell) -> list[str]:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout").splitlines()
