"""serving/predictor.py: the answers of Student for every task, from one file and without torch."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pairs import texts
from test_student import new_student, word_tokenizer

from extra import export_onnx
from student import SHIPPED, Student, StudentConfig, StudentError, chosen, decode

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from serving import predictor as predictor_py
from serving.predictor import Predictor, PredictorError

pytestmark = pytest.mark.optional

ROOT = Path(__file__).parent.parent
FORMS = {"classification": {}, "multilabel": {"thresholds": [0.3, 0.6, 0.5]},
         "regression": {"num_labels": 1, "mean": 3.5, "deviation": 1.5, "temperature": 1.0}}
EDGES = ["", " ", "모름", "단어5 " * 300, "\t\n단어7", "단어9"]  # nothing, unknown, cut at max_length


def student_of(task="classification", **options) -> Student:
    torch.manual_seed(0)
    options = {"num_labels": 3, "embedding_dim": 6, "hidden_dim": 5, "blank_id": 1, "max_length": 12,
               "temperature": 1.7} | FORMS[task] | options
    config = StudentConfig(40, **options)
    student = Student(config, word_tokenizer(40), ["가", "나,다", "라"][: config.num_labels], task).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(std=0.5)  # rows differ: equal answers would prove nothing
    return student


def exported(student, path, precision="float32") -> Predictor:
    path.write_bytes(export_onnx.onnx_bytes(student, precision))
    return Predictor(path)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "s.onnx"
    exported(student_of(), path)
    return path


@pytest.fixture
def many_batches(monkeypatch):
    """Small chunks and batches, in threads from two texts on."""
    for name, value in {"CHUNK": 40, "PART": 7, "SHARE": 1, "BATCH": 24, "CORES": 2}.items():
        monkeypatch.setattr(predictor_py, name, value)
    predictor_py.crew.cache_clear()
    yield
    predictor_py.crew.cache_clear()


@pytest.mark.parametrize("pair", [None, "siamese", "align"])
@pytest.mark.parametrize("task", FORMS)
def test_the_answers_are_those_of_student(tmp_path, task, pair, many_batches):
    student = student_of(task, pair=pair)
    predictor = exported(student, tmp_path / "s.onnx")
    assert (predictor.label_names, predictor.task, predictor.pairs) == (
        student.label_names, task, pair is not None)
    rows = [EDGES + texts(90, seed=0, most=20)]
    if pair:
        rows.append(texts(90, seed=1, most=20) + EDGES)
    found, expected = predictor.predict(*rows), student.predict(*rows)
    assert found.dtype == np.float32 and found.shape == (96, 1 if task == "regression" else 3)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    assert expected.std(0).min() > 0.01
    same = torch.from_numpy(found)  # numbers right at a threshold may differ in the last digit
    assert predictor.answers(*rows) == chosen(same, student.label_names, task, student.config.thresholds)
    for mine, theirs in zip(predictor.decode(found),
                            decode(same, student.label_names, task, student.config.thresholds), strict=True):
        assert mine[0] == theirs[0]
        assert (mine[1] is None and task == "regression") or mine[1] == pytest.approx(theirs[1], rel=1e-6)
    for i in (0, 3, 50):  # alone, in the calling thread
        alone = predictor.predict(*([column[i]] for column in rows))
        np.testing.assert_allclose(alone, found[i : i + 1], rtol=1e-5, atol=1e-5)
    assert predictor.predict(*([] for _ in rows)).shape == (0, found.shape[1])


def test_an_old_student_joins_pairs_and_also_reads_single_texts(tmp_path):
    student = student_of()
    student.pairs = None
    predictor = exported(student, tmp_path / "s.onnx")
    first, second = EDGES + texts(20, 0), texts(20, 1) + EDGES
    assert predictor.pairs is None
    for rows in ([first], [first, second]):
        np.testing.assert_allclose(predictor.predict(*rows), student.predict(*rows).numpy(), atol=1e-5)


def test_the_shipped_student_gives_its_probabilities(tmp_path):
    student, rows = Student.load(SHIPPED), sample("test")[0]
    predictor = exported(student, tmp_path / "base.onnx")
    np.testing.assert_allclose(predictor.predict(rows), student.predict(rows).numpy(), rtol=0, atol=1e-5)


def sample(name: str):
    """Texts and labels of a file of data/sample."""
    with open(ROOT / f"data/sample/{name}.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in rows], [row["label"] for row in rows]


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
def test_int8_is_a_third_and_answers_alike_whatever_is_beside_a_text(tmp_path, size, many_batches):
    student = Student.load(SHIPPED.with_name(f"{size}.pt"))
    rows, labels = sample("test")
    predictor = exported(student, tmp_path / "int8.onnx", "int8")
    tokenizer = len(predictor.session.get_modelmeta().custom_metadata_map["tokenizer"].encode())
    weights = 4 * sum(parameter.numel() for parameter in student.parameters())
    assert (tmp_path / "int8.onnx").stat().st_size - tokenizer < weights / 3 + 20_000
    found, expected = predictor.predict(rows), student.predict(rows).numpy()
    assert 0 < np.abs(found - expected).mean() < 0.005 and np.abs(found - expected).max() < 0.1
    right = [np.array([student.label_names[i] for i in p.argmax(1)]) == labels for p in (found, expected)]
    assert abs(right[0].mean() - right[1].mean()) <= 0.006  # of 500: three texts
    for i in range(0, len(rows), 50):
        assert np.array_equal(predictor.predict([rows[i]]), found[i : i + 1])
    assert np.array_equal(predictor.predict(rows[::-1]), found[::-1])


@pytest.mark.parametrize("pair", ["siamese", "align"])
def test_int8_graphs_of_pairs_answer_alike(tmp_path, pair):
    torch.manual_seed(0)
    student = new_student(embedding_dim=32, hidden_dim=32, pair=pair, head="relu")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(3)
    predictor = exported(student, tmp_path / "s.onnx", "int8")
    weights = sum(value.numel() for value in student.parameters())
    stored = [onnx.numpy_helper.to_array(each) for each in onnx.load(tmp_path / "s.onnx").graph.initializer]
    integers = sum(each.size for each in stored if each.dtype == np.int8)
    assert 0.9 * weights < integers < 1.1 * weights  # both texts share them
    rows = EDGES + texts(60, 0), texts(60, 1) + EDGES
    found, expected = predictor.predict(*rows), student.predict(*rows).numpy()
    assert 0 < np.abs(found - expected).max() < 0.03 < expected.std(0).max()
    assert np.array_equal(predictor.predict(rows[0][7:9], rows[1][7:9]), found[7:9])


def test_eight_threads_get_what_one_gets(graph, many_batches):
    predictor, rows = Predictor(graph), EDGES + texts(100, 3, most=15)
    expected = predictor.predict(rows)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(predictor.predict, [rows] * 40):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        found = pool.map(lambda text: predictor.predict([text]), rows * 4)
        np.testing.assert_allclose(np.concatenate(list(found)), np.tile(expected, (4, 1)), rtol=0, atol=1e-6)


def test_a_forked_child_answers_whatever_its_parent_did_before(tmp_path, graph):
    code = f"""if True:
        import multiprocessing, sys
        sys.path.insert(0, {str(ROOT / "serving")!r})
        import predictor as module
        module.SHARE, module.CORES = 1, 2
        predictor = module.Predictor({str(graph)!r})
        def same():
            return (predictor.predict(["단어5", "단어6 단어7"] * 20) == expected).all()
        expected = predictor.predict(["단어5", "단어6 단어7"] * 20)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.apply_async(same).get(60), same())"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert result.stdout == "True True\n", result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_onnxruntime_does_not_report_home(tmp_path):
    """The releases that do so start a thread for it when they are imported, and look for a home."""
    code = "import os; from serving import predictor; print(len(os.listdir('/proc/self/task')))"
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env.pop("ORT_DISABLE_TELEMETRY", None)
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.stdout == "1\n" and result.stderr == "" and not list(tmp_path.iterdir())


def test_both_files_work_where_nothing_of_the_kit_and_no_torch_is(tmp_path, graph):
    shutil.copy(ROOT / "serving/predictor.py", tmp_path)
    shutil.copy(graph, tmp_path / "s.onnx")
    rows = ["단어5 단어6", "", "모름"]
    code = f"""if True:
        import json, sys
        sys.modules.update(torch=None, student=None, runtime=None)
        from predictor import Predictor
        print(json.dumps(Predictor("s.onnx").predict({rows!r}).tolist()))"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    np.testing.assert_allclose(json.loads(result.stdout), student_of().predict(rows).numpy(), atol=1e-5)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["단어5", None, [None], ["단어5", b"x"], [float("nan")], ["\ud800"]])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_text_is_refused_as_student_refuses_it(tmp_path, rows, place):
    student = student_of(pair="siamese")
    predictor = exported(student, tmp_path / "s.onnx")
    columns = [["단어5"] * len(rows or "x")] * 2
    if rows is None and place:
        pytest.skip("texts2=None: a missing column")
    columns[place] = rows
    messages = []
    for each in (student, predictor):
        with pytest.raises((TypeError, ValueError)) as error:
            each.predict(*columns)
        messages.append((error.type, str(error.value)))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(("pair", "columns"), [
    (None, [["단어5"], ["단어6"]]), ("align", [["단어5"]]), ("align", [["단어5"], ["단어6", ""]])])
def test_a_missing_or_needless_second_text_is_refused(tmp_path, pair, columns):
    student = student_of(pair=pair)
    predictor = exported(student, tmp_path / "s.onnx")
    for each, kind in ((student, StudentError), (predictor, PredictorError)):
        with pytest.raises(ValueError, match="texts2") as error:
            each.predict(*columns)
        assert isinstance(error.value, kind) == (len(columns[-1]) == 1)


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path, graph):
    content = graph.read_bytes()

    def with_metadata(**changes):
        model = onnx.load_from_string(content)
        known = {each.key: each.value for each in model.metadata_props} | changes
        onnx.helper.set_model_props(model, {name: value for name, value in known.items() if value})
        return model.SerializeToString()

    for wrong, words in ((None, "read"), (b"", "graph"), (b"text\n", "graph"), (content[:-900], "graph|meta"),
                         (with_metadata(tokenizer=""), "tokenizer.*export_onnx"),
                         (with_metadata(tokenizer="{"), "metadata"), (with_metadata(pairs=""), "metadata"),
                         (with_metadata(task="tagging"), "tagging"),
                         (with_metadata(label_names='["가"]'), "1 names for 3 outputs")):
        path = tmp_path / "wrong.onnx"
        if wrong is not None:
            path.write_bytes(wrong)
        with pytest.raises(PredictorError, match=rf"wrong\.onnx: .*({words})") as error:
            Predictor(path)
        assert "\n" not in str(error.value)


# ---- the command line --------------------------------------------------------------------------------------


def said(capsys, *args) -> list[list[str]]:
    predictor_py.main(predictor_py.parse_args([*map(str, args)]))
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def given(monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="cp949"))


def test_arguments_and_lines_are_answered(graph, capsys, monkeypatch):
    p = student_of().predict(["단어5", "단어 6", ""])
    names = ["가", "나,다", "라"]
    expected = [[names[row.argmax()], f"{row.max():.4f}", text]
                for row, text in zip(p, ["단어5", "단어 6", ""], strict=True)]
    assert said(capsys, graph, "단어5", "단어 6", "") == expected
    given(monkeypatch, "\ufeff단어5\r\n단어 6\r\n\n".encode())
    assert said(capsys, graph) == expected
    given(monkeypatch, "단어5\n".encode() + "단어".encode("cp949") + b"\n")
    with pytest.raises(PredictorError, match=r"line 2 .*UTF-8"):
        said(capsys, graph)
    assert capsys.readouterr().out.splitlines() == ["\t".join(expected[0])]
    with pytest.raises(SystemExit) as stopped:
        said(capsys, graph, "-별로")
    assert stopped.value.code == 2 and "put -- before" in capsys.readouterr().err


def test_pairs_are_arguments_two_by_two_or_lines_with_a_tab(tmp_path, capsys, monkeypatch):
    student = student_of("regression", pair="align")
    exported(student, tmp_path / "s.onnx")
    scores = [f"{score:.6g}" for score in exported(student, tmp_path / "s.onnx").answers(["단어5", ""],
                                                                                        ["단어7", "단어8"])]
    expected = [[scores[0], "단어5", "단어7"], [scores[1], "", "단어8"]]
    assert said(capsys, tmp_path / "s.onnx", "단어5", "단어7", "", "단어8") == expected
    given(monkeypatch, "단어5\t단어7\n\t단어8".encode())
    assert said(capsys, tmp_path / "s.onnx") == expected
    with pytest.raises(PredictorError, match=r"pairs.*even.*3$"):
        said(capsys, tmp_path / "s.onnx", *["단어5"] * 3)
    given(monkeypatch, "단어5\t단어7\n단어8\n".encode())
    with pytest.raises(PredictorError, match=r"line 2 .*0 tabs"):
        said(capsys, tmp_path / "s.onnx")
    assert capsys.readouterr().out.splitlines() == ["\t".join(expected[0])]


def test_the_script_ends_with_one_line_and_code_2(tmp_path):
    for args, words in ((["none.onnx", "글"], ["none.onnx", "read"]), (["--nope"], ["nope|FILE"])):
        result = subprocess.run([sys.executable, ROOT / "serving/predictor.py", *args], cwd=tmp_path,
                                capture_output=True, text=True)
        assert result.returncode == 2 and result.stdout == ""
        assert any(word in result.stderr.splitlines()[-1] for word in words[0].split("|"))
        assert "Traceback" not in result.stderr
