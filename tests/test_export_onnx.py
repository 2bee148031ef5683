"""extra/export_onnx.py: the graph equals PyTorch for padded batches, and holds all that it needs."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import runtime
import student as student_py
from extra import export_onnx
from student import HEADS, POOLINGS, Student, StudentError, to_int8
from tests.test_student import new_student

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.optional

SCRIPT = Path(__file__).parent.parent / "extra/export_onnx.py"


def session(graph):
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def run(*args):
    export_onnx.main(export_onnx.parse_args([*map(str, args)]))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_pytorch_for_padded_batches_of_any_size(pooling, head, num_layers):
    student = new_student(pooling=pooling, head=head, num_layers=num_layers, temperature=1.7)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(3)  # small weights would hide a wrong gate
    graph = session(export_onnx.onnx_bytes(student))
    generator = torch.Generator().manual_seed(2)
    spread = []
    for rows, longest in ((1, 1), (1, 9), (5, 4), (33, 30)):
        lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
        lengths[0] = longest
        input_ids = torch.randint(2, 40, (rows, longest), generator=generator)  # padding holds tokens
        found, = graph.run(["probabilities"], {"input_ids": input_ids.numpy(), "lengths": lengths.numpy()})
        with torch.inference_mode():
            expected = (student(input_ids, lengths) / 1.7).softmax(1)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
        spread.append(expected)
    assert torch.cat(spread).std(0).max() > 0.02  # rows differ: equal answers would prove nothing


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_empty_text_of_length_0_is_what_predict_makes_of_it(pooling):
    student = new_student(pooling=pooling, blank_id=7)
    graph = session(export_onnx.onnx_bytes(student))
    expected = student.predict(["", "단어5 단어6"])
    for ids, lengths in (([[9, 9], [5, 6]], [0, 2]), ([[], []], [0, 0])):  # beside another text; without one
        ids = torch.tensor(ids, dtype=torch.int64).reshape(2, -1)
        found, = graph.run(None, {"input_ids": ids.numpy(), "lengths": torch.tensor(lengths).numpy()})
        rows = [0 if length == 0 else 1 for length in lengths]
        torch.testing.assert_close(torch.from_numpy(found), expected[rows], rtol=0, atol=1e-5)


def test_the_script_writes_one_file_with_all_that_it_needs(tmp_path):
    student = new_student(max_length=4, pad_id=0)
    student.save(tmp_path / "s.pt", "int8")
    command = [sys.executable, SCRIPT, "s.pt", "s.onnx"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)  # from a folder without the kit
    assert {path.name for path in tmp_path.iterdir()} == {"s.pt", "s.onnx"}
    graph = session((tmp_path / "s.onnx").read_bytes())
    properties = graph.get_modelmeta().custom_metadata_map
    tokenizer = Tokenizer.from_str(properties["tokenizer"])
    texts = ["단어5 단어6", "단어7 단어8 단어9 단어10 단어11", "모름"]
    encoded = tokenizer.encode_batch(texts)
    assert [e.ids for e in encoded] == [[5, 6, 0, 0], [7, 8, 9, 10], [1, 0, 0, 0]]
    found, = graph.run(None, {"input_ids": [e.ids for e in encoded],
                              "lengths": [sum(e.attention_mask) for e in encoded]})
    expected = Student.load(tmp_path / "s.pt").predict(texts)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    del properties["tokenizer"]
    assert json.loads(properties.pop("label_names")) == ["가", "나", "다"]
    assert properties == {"task": "classification", "pairs": "false", "precision": "float32",
                          "max_length": "4", "blank_id": "1"}


def int8_graph(**options):
    """A student whose rows differ, and its int8 graph."""
    student = new_student(head="relu", num_layers=2, embedding_dim=16, hidden_dim=16, **options)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(3)
    return student, export_onnx.onnx_bytes(student, "int8")


def test_int8_rounds_the_first_lstm_to_7_bits_and_other_large_matrices_to_8():
    student, content = int8_graph(pooling="last")
    assert content == export_onnx.onnx_bytes(student, "int8")  # else it could not be left alone
    stored = {each.name: onnx.numpy_helper.to_array(each)
              for each in onnx.load_from_string(content).graph.initializer}
    assert not {"embedding_weight", "w_0", "r_0", "w_1"} & set(stored)
    embedding = student.embedding.weight.detach().numpy()
    assert stored["embedding_int8"][:, 16:].tolist() == [[127, -128]] * 40
    steps = embedding / np.abs(embedding).max() * 126
    assert np.abs(stored["embedding_int8"][:, :16] - steps).max() <= 0.501
    assert stored["embedding_scale"] == pytest.approx(np.abs(embedding).max() / 126)
    for direction, lstm in enumerate((student.layers[0].ahead, student.layers[0].behind)):
        steps, scales = stored["r_int8"][direction], stored["r_scales"][direction]
        i, f, g, o = lstm.weight_hh_l0.detach().numpy().reshape(4, 16, 16)
        for gate, rows in enumerate((i, o, f, g)):
            found = slice(18 * gate, 18 * gate + 16)  # of 18 units the last two bound the others
            assert scales[found] == pytest.approx(np.abs(rows).max(1) / 64)
            assert np.abs(steps.T[found, :16] * scales[found, None] - rows).max() <= scales.max() * 0.501
        assert np.abs(steps.astype(int)).max() == 64 and not steps[16:].any()
    integers, scales = to_int8(student.layers[1].ahead.weight_ih_l0.detach())
    i, f, g, o = integers.numpy().reshape(4, 16, 32)
    assert np.array_equal(stored["w_1_int8"][0], np.concatenate([i, o, f, g]))
    assert sorted(stored["w_1_scales"][0, :, 0]) == sorted(scales[:, 0].float().tolist())


@pytest.mark.parametrize(("pooling", "pair"), [*((pooling, None) for pooling in POOLINGS),
                                               ("last", "siamese"), ("last", "align")])
def test_int8_answers_a_text_alike_in_any_batch(pooling, pair):
    """ONNX Runtime rounds by the range of a batch; were it not the same in all, answers would differ by more
    than 1e-3. Sums over padding (alignment, mean) may differ in the last digit."""
    student, content = int8_graph(pooling=pooling, pair=pair)
    graph, names = session(content), ["", "2"] if pair else [""]
    generator = torch.Generator().manual_seed(2)
    lengths = [torch.randint(1, 31, (40,), generator=generator) for _ in names]
    ids = [torch.randint(2, 40, (40, 30), generator=generator) for _ in names]

    def answers(rows):
        inputs = {}
        for name, text, length in zip(names, ids, lengths, strict=True):
            inputs |= {f"input_ids{name}": text[rows, : length[rows].max()].numpy(),
                       f"lengths{name}": length[rows].numpy()}
        return graph.run(None, inputs)[0]

    found = answers(list(range(40)))
    for rows in (*([row] for row in range(40)), [3, 1, 4], list(range(39, 19, -1))):
        np.testing.assert_allclose(answers(rows), found[rows], rtol=0, atol=1e-6)
    with torch.inference_mode():
        columns = [tensor for both in zip(ids, lengths, strict=True) for tensor in both]
        expected = student(*columns).softmax(1).numpy()
    assert 0 < np.abs(found - expected).mean() < expected.std(0).max() / 10


def test_existing_files_are_kept_unless_they_are_the_same_or_overwritten(tmp_path, capsys):
    student, path = new_student(), tmp_path / "s.onnx"
    student.save(tmp_path / "s.pt")
    run(tmp_path / "s.pt", path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    run(tmp_path / "s.pt", path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert ["left alone" in line for line in capsys.readouterr().out.splitlines()] == [False, True]
    assert student.predict(["단어5"]).shape == (1, 3)
    new_student(max_length=5).save(tmp_path / "s.pt")  # the same graph, another length at which it cuts
    for other in ([], ["--precision", "int8"]):
        with pytest.raises(runtime.UserError, match=r"s\.onnx.*--overwrite"):
            run(tmp_path / "s.pt", path, *other)
    assert path.read_bytes() == before[0]
    run(tmp_path / "s.pt", path, "--overwrite")
    assert path.read_bytes() != before[0]


def test_what_cannot_be_written_or_exported_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "s.pt"
    student = new_student()
    student.save(path)
    before = path.read_bytes()
    with pytest.raises(runtime.UserError, match=r"s\.pt"):
        run(path, path, "--overwrite")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StudentError, match="pipe"):
        run(path, tmp_path / "pipe")
    (tmp_path / "pipe").unlink()
    monkeypatch.setitem(student_py.PROBABILITIES, "toy", torch.sigmoid)  # the graph ends in a softmax
    student.task = "toy"
    student.save(path)
    with pytest.raises(runtime.UserError, match="toy"):
        run(path, tmp_path / "s.onnx")
    assert before != path.read_bytes() and [each.name for each in tmp_path.iterdir()] == ["s.pt"]


def test_without_the_package_the_error_names_the_command(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        without = importlib.reload(export_onnx)
        with pytest.raises(runtime.UserError, match="pip install onnx"):
            without.main(without.parse_args([str(tmp_path / "s.pt"), str(tmp_path / "s.onnx")]))
    importlib.reload(export_onnx)
    assert not list(tmp_path.iterdir())
