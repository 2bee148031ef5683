"""The ONNX file: equal to PyTorch for padded batches, and usable with its tokenizer alone."""

import json
import subprocess
import sys

import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

from student import HEADS, POOLINGS, StudentError
from tests.test_student import new_student


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_pytorch_for_padded_batches_of_any_size(tmp_path, pooling, head, num_layers):
    student = new_student(pooling=pooling, head=head, num_layers=num_layers, temperature=1.7)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(3)  # small weights would hide a wrong gate
    student.export_onnx(tmp_path / "s.onnx")
    run = session(tmp_path / "s.onnx").run
    generator = torch.Generator().manual_seed(2)
    spread = []
    for rows, longest in ((1, 1), (1, 9), (5, 4), (33, 30)):
        lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
        lengths[0] = longest
        input_ids = torch.randint(2, 40, (rows, longest), generator=generator)  # padding holds tokens
        found, = run(["probabilities"], {"input_ids": input_ids.numpy(), "lengths": lengths.numpy()})
        with torch.inference_mode():
            expected = (student(input_ids, lengths) / 1.7).softmax(1)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
        spread.append(expected)
    assert torch.cat(spread).std(0).max() > 0.02  # rows differ: equal answers would prove nothing


def test_the_tokenizer_beside_it_cuts_and_pads(tmp_path):
    student = new_student(max_length=4, pad_id=0)
    student.export_onnx(tmp_path / "s.onnx")
    tokenizer = Tokenizer.from_file(str(tmp_path / "s.onnx.tokenizer.json"))
    texts = ["단어5 단어6", "단어7 단어8 단어9 단어10 단어11", "모름"]
    encoded = tokenizer.encode_batch(texts)
    assert [e.ids for e in encoded] == [[5, 6, 0, 0], [7, 8, 9, 10], [1, 0, 0, 0]]
    onnx = session(tmp_path / "s.onnx")
    found, = onnx.run(None, {"input_ids": [e.ids for e in encoded],
                             "lengths": [sum(e.attention_mask) for e in encoded]})
    torch.testing.assert_close(torch.from_numpy(found), student.predict(texts), rtol=0, atol=1e-5)
    properties = onnx.get_modelmeta().custom_metadata_map
    assert json.loads(properties["label_names"]) == ["가", "나", "다"]
    assert properties["blank_id"] == "1"
    assert student.predict(["단어5"]).shape == (1, 3)  # padding is not left on


def test_from_the_command_line(tmp_path):
    student = new_student()
    student.save(tmp_path / "student.pt", "int8")
    onnx = tmp_path / "s.onnx"
    command = [sys.executable, "student.py", str(tmp_path / "student.pt"), "--export-onnx", str(onnx)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{onnx}: 가, 나, 다; tokens by {onnx}.tokenizer.json\n"
    done = subprocess.run([*command, "글"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("error: --export-onnx takes no texts\n")


def test_the_student_itself_is_not_overwritten(tmp_path):
    new_student().save(tmp_path / "s.pt")
    before = (tmp_path / "s.pt").read_bytes()
    command = [sys.executable, "student.py", tmp_path / "s.pt", "--export-onnx", tmp_path / "s.pt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        f"error: --export-onnx {tmp_path}/s.pt: is the student itself; name another file\n")
    assert (tmp_path / "s.pt").read_bytes() == before
    with pytest.raises(StudentError, match="/dev/null: is no file that could be replaced"):
        new_student().export_onnx("/dev/null")


def test_without_the_package_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(StudentError, match=r"^ONNX needs one more package: pip install onnx$"):
        new_student().export_onnx(tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())
