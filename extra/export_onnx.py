"""Write a student as an ONNX graph, for ONNX Runtime in any language.

    python extra/export_onnx.py students/base/student.pt base.onnx

reads   student.pt; needs one more package: pip install onnx
writes  base.onnx: input_ids (B, T) and lengths (B,), int64 -> probabilities (B, C), as Student.predict's to
        1e-5; its metadata hold label_names (JSON), task and blank_id: encode an empty text as this single id
        base.onnx.tokenizer.json: the tokenizer, set to cut and pad texts as the graph needs them
again   finished files are left alone; different ones are replaced only with --overwrite

Shapes: B batch, T tokens, E embedding, H hidden, C outputs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("student", metavar="STUDENT.pt")
    arg("onnx", metavar="FILE.onnx", help="FILE.onnx.tokenizer.json is written beside it")
    arg("--overwrite", action="store_true", help="replace existing files")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json
import math

import torch
from tokenizers import Tokenizer
from torch import nn

import runtime
from student import Student, StudentError, probabilities, write_whole

try:
    from onnx import TensorProto, checker, helper, numpy_helper
except ImportError:
    helper = None


class Graph:
    """The nodes and constants of an ONNX graph while it is written. Values are known by their names."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name: str, value) -> str:
        """A tensor, or numbers for one; the same name twice is the same value."""
        if all(constant.name != name for constant in self.constants):
            value = torch.as_tensor(value).detach().cpu().numpy()
            self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, *inputs: str, out, **attributes) -> str:
        """An operation of this kind, with its outputs' names; returns the first of them."""
        out = [out] if isinstance(out, str) else out
        self.nodes.append(helper.make_node(kind, list(inputs), out, **attributes))
        return out[0]


def gates(*tensors):
    """(4H, …) of each direction -> (2, 4H, …), PyTorch's gate order i f g o as ONNX's i o f g."""
    parts = [tensor.chunk(4) for tensor in tensors]
    return torch.stack([torch.cat([i, o, f, g]) for i, f, g, o in parts])


def add_layers(graph: Graph, student: Student) -> tuple[str, str]:
    """Embedding and LSTMs -> names of the last layer's states (T, B, 2H) and final states (2, B, H).

    Pooling "last" needs only the final states; the last layer's others are then not among the nodes.
    """
    graph.node("Cast", "lengths", out="lengths32", to=TensorProto.INT32)
    graph.node("Transpose", "input_ids", out="tokens", perm=[1, 0])  # (T, B)
    x = graph.node("Gather", graph.constant("table", student.embedding.weight), "tokens", out="embedded")
    for i, layer in enumerate(student.layers):
        a, b = layer.ahead, layer.behind
        w = graph.constant(f"w{i}", gates(a.weight_ih_l0, b.weight_ih_l0))  # (2, 4H, E)
        r = graph.constant(f"r{i}", gates(a.weight_hh_l0, b.weight_hh_l0))  # (2, 4H, H)
        biases = graph.constant(f"b{i}", torch.cat([gates(a.bias_ih_l0, b.bias_ih_l0),
                                                    gates(a.bias_hh_l0, b.bias_hh_l0)], 1))  # (2, 8H)
        # ONNX's LSTM takes lengths, and reads backwards from each text's own end.
        graph.node("LSTM", x, w, r, biases, "lengths32", out=[f"y{i}", f"h{i}"], direction="bidirectional",
                   hidden_size=student.config.hidden_dim)  # (T, 2, B, H) and (2, B, H)
        if i + 1 < len(student.layers) or student.config.pooling != "last":
            graph.node("Transpose", f"y{i}", out=f"yt{i}", perm=[0, 2, 1, 3])
            x = graph.node("Reshape", f"yt{i}", graph.constant("join", [0, 0, -1]), out=f"x{i}")  # (T, B, 2H)
    return x, f"h{i}"


def add_pooling(graph: Graph, student: Student, x: str, final: str) -> str:
    """States (T, B, 2H) and final states (2, B, H) -> pooled (B, 2H)."""
    pooling = student.config.pooling
    if pooling == "last":
        graph.node("Transpose", final, out="final", perm=[1, 0, 2])
        return graph.node("Reshape", "final", graph.constant("flat", [0, -1]), out="pooled")
    graph.node("Shape", "tokens", out="T", start=0, end=1)
    graph.node("Squeeze", "T", out="end")
    graph.node("Range", graph.constant("zero", 0), "end", graph.constant("one", 1), out="range")
    graph.node("Unsqueeze", "range", graph.constant("axes12", [1, 2]), out="steps")  # (T, 1, 1)
    graph.node("Unsqueeze", "lengths", graph.constant("axes02", [0, 2]), out="ends")  # (1, B, 1)
    graph.node("Less", "steps", "ends", out="real")  # (T, B, 1): not padding
    time, low = graph.constant("time", [0]), graph.constant("low", -math.inf)
    if pooling == "max":
        graph.node("Where", "real", x, low, out="kept")
        return graph.node("ReduceMax", "kept", time, out="pooled", keepdims=0)
    if pooling == "mean":
        graph.node("Cast", "real", out="ones", to=TensorProto.FLOAT)
        graph.node("ReduceSum", "ones", time, out="count")  # (1, B, 1)
        graph.node("Div", "ones", "count", out="shares")
    else:
        query = graph.constant("query", student.attention.weight.T)
        graph.node("MatMul", graph.node("Tanh", x, out="squashed"), query, out="scores")
        graph.node("Where", "real", "scores", low, out="kept")
        graph.node("Softmax", "kept", out="shares", axis=0)
    graph.node("Where", "real", x, graph.constant("nothing", 0.0), out="tidy")
    graph.node("Mul", "shares", "tidy", out="weighed")
    return graph.node("ReduceSum", "weighed", time, out="pooled", keepdims=0)


def add_head(graph: Graph, student: Student, x: str) -> None:
    """Pooled (B, 2H) -> probabilities (B, C)."""
    for i, part in enumerate(student.head if student.config.head == "relu" else [student.head]):
        if isinstance(part, nn.Linear):
            weight, bias = graph.constant(f"hw{i}", part.weight), graph.constant(f"hb{i}", part.bias)
            x = graph.node("Gemm", x, weight, bias, out=f"z{i}", transB=1)
        elif isinstance(part, nn.ReLU):
            x = graph.node("Relu", x, out=f"z{i}")
    graph.node("Div", x, graph.constant("temperature", float(student.config.temperature)), out="logits")
    graph.node("Softmax", "logits", out="probabilities", axis=-1)


def onnx_bytes(student: Student) -> bytes:
    """The ONNX file of a student."""
    graph = Graph()
    add_head(graph, student, add_pooling(graph, student, *add_layers(graph, student)))
    int64, real, C = TensorProto.INT64, TensorProto.FLOAT, len(student.label_names)
    inputs = [helper.make_tensor_value_info("input_ids", int64, ["B", "T"]),
              helper.make_tensor_value_info("lengths", int64, ["B"])]
    outputs = [helper.make_tensor_value_info("probabilities", real, ["B", C])]
    model = helper.make_model(helper.make_graph(graph.nodes, "student", inputs, outputs, graph.constants),
                              opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"label_names": json.dumps(student.label_names, ensure_ascii=False),
                                   "task": student.task, "blank_id": str(student.config.blank_id)})
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def tokenizer_bytes(student: Student) -> bytes:
    """The tokenizer.json that gives the graph what it reads."""
    tokenizer, pad = Tokenizer.from_str(student.tokenizer.to_str()), student.config.pad_id
    tokenizer.enable_truncation(student.config.max_length)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    return tokenizer.to_str(pretty=True).encode()


def main(args):
    if helper is None:
        raise runtime.UserError("the package onnx is not installed; run: pip install onnx")
    student = Student.load(args.student)
    sample = torch.linspace(-2, 2, 5)
    if not torch.equal(probabilities(sample, student.task), sample.softmax(-1)):
        raise runtime.UserError(f"{args.student}: the probabilities of {student.task} are not a softmax, and "
                                f"the graph knows no other; use Student.predict")
    files = {Path(args.onnx): onnx_bytes(student),
             Path(f"{args.onnx}.tokenizer.json"): tokenizer_bytes(student)}
    if any(path.exists() and path.samefile(args.student) for path in files):
        raise runtime.UserError(f"{args.onnx}: this would replace the student; choose another file")
    there = {path: path.read_bytes() for path in files if path.is_file()}
    differ = [path for path in there if there[path] != files[path]]
    if differ and not args.overwrite:
        raise runtime.UserError(f"{differ[0]}: exists and differs; choose another file, or pass --overwrite")
    for path, content in files.items():
        if there.get(path) != content:
            write_whole(path, content)
    print(f"{args.onnx}: {'left alone, it is the same' if there == files else 'written'}; "
          f"probabilities of {', '.join(student.label_names)}, tokens by {args.onnx}.tokenizer.json")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=[StudentError])
