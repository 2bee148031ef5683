"""Write a student as an ONNX graph, for ONNX Runtime in any language.

    python extra/export_onnx.py students/base/student.pt base.onnx

reads   student.pt; needs one more package: pip install onnx
writes  base.onnx: input_ids (B, T) and lengths (B,), int64 -> probabilities (B, C), as Student.predict's to
        1e-5 (of scores: the scores, (B, 1)); an empty text has length 0; its metadata hold label_names
        (JSON), task, blank_id, and for several labels per text their thresholds (JSON)
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
    p.add_argument("student", metavar="STUDENT.pt")
    p.add_argument("onnx", metavar="FILE.onnx", help="FILE.onnx.tokenizer.json is written beside it")
    p.add_argument("--overwrite", action="store_true", help="replace existing files")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json

import torch

import runtime
from student import Student, StudentError, write_whole

try:
    from onnx import checker, helper, numpy_helper, parser
except ImportError:
    parser = None

# Parts of the graph as ONNX writes it. Its LSTM takes lengths, and reads backwards from each text's own end.
# A text of length 0 becomes the one token blank; a step more is there for it if all texts are empty.
LSTM = """
    y{i}, h{i} = LSTM <direction = "bidirectional", hidden_size = {H}> (x{i}, w{i}, r{i}, b{i}, lengths32)"""
STATES = """
    yt{i} = Transpose <perm = [0, 2, 1, 3]> (y{i})
    x{next} = Reshape (yt{i}, join)"""
REAL = """
    T = Shape <start = 0, end = 1> (tokens)
    end = Squeeze (T)
    range = Range (zero, end, one)
    steps = Unsqueeze (range, axes12)
    ends = Unsqueeze (real_lengths, axes02)
    real = Less (steps, ends)"""
WEIGHED = """
    weighed = Mul (shares, x{next})
    pooled = ReduceSum <keepdims = 0> (weighed, time)"""
POOLING = {  # states x (T, B, 2H), final states h (2, B, H) -> (B, 2H); real (T, B, 1): not padding
    "last": """
    final = Transpose <perm = [1, 0, 2]> (h{i})
    pooled = Reshape (final, flat)""",
    "max": REAL + """
    kept = Where (real, x{next}, low)
    pooled = ReduceMax <keepdims = 0> (kept, time)""",
    "mean": REAL + """
    ones = Cast <to = 1> (real)
    count = ReduceSum (ones, time)
    shares = Div (ones, count)""" + WEIGHED,
    "attention": REAL + """
    squashed = Tanh (x{next})
    query = Transpose <perm = [1, 0]> (attention_weight)
    scores = MatMul (squashed, query)
    kept = Where (real, scores, low)
    shares = Softmax <axis = 0> (kept)""" + WEIGHED}
HEAD = {
    "linear": "z = Gemm <transB = 1> (pooled, head_weight, head_bias)",
    "relu": """
    hidden = Gemm <transB = 1> (pooled, head_0_weight, head_0_bias)
    active = Relu (hidden)
    z = Gemm <transB = 1> (active, head_3_weight, head_3_bias)"""}
PROBABILITIES = {  # as in student.py
    "classification": """
    logits = Div (z, temperature)
    probabilities = Softmax <axis = -1> (logits)""",
    "multilabel": """
    logits = Div (z, temperature)
    probabilities = Sigmoid (logits)""",
    "regression": """
    spread = Mul (z, deviation)
    probabilities = Add (spread, mean)"""}
NUMBERS = {"join": [0, 0, -1], "flat": [0, -1], "zero": 0, "one": 1, "axes12": [1, 2], "axes02": [0, 2],
           "time": [0], "one_step": [0, 0, 1, 0], "low": float("-inf")}


def gates(layer, name: str):
    """A parameter (4H, …) of both directions -> (2, 4H, …), PyTorch's gates i f g o as ONNX's i o f g."""
    parts = [getattr(lstm, name).chunk(4) for lstm in (layer.ahead, layer.behind)]
    return torch.stack([torch.cat([i, o, f, g]) for i, f, g, o in parts])


def onnx_bytes(student: Student) -> bytes:
    """The ONNX file of a student."""
    config, layers = student.config, ""
    constants = NUMBERS | {name.replace(".", "_"): value for name, value in student.state_dict().items()}
    constants |= {"temperature": float(config.temperature), "blank": config.blank_id,
                  "mean": config.mean or 0.0, "deviation": config.deviation or 1.0}
    for i, layer in enumerate(student.layers):
        constants |= {f"w{i}": gates(layer, "weight_ih_l0"), f"r{i}": gates(layer, "weight_hh_l0"),
                      f"b{i}": torch.cat([gates(layer, "bias_ih_l0"), gates(layer, "bias_hh_l0")], 1)}
        layers += LSTM.format(i=i, H=config.hidden_dim)
        if i + 1 < config.num_layers or config.pooling != "last":  # "last" needs the final states alone
            layers += STATES.format(i=i, next=i + 1)
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 18]>
student (int64[B, T] input_ids, int64[B] lengths) => (float[B, {config.num_labels}] probabilities) {{
    none = Less (lengths, one)
    real_lengths = Max (lengths, one)
    lengths32 = Cast <to = 6> (real_lengths)
    given = Transpose <perm = [1, 0]> (input_ids)
    longer = Pad (given, one_step)
    tokens = Where (none, blank, longer)
    x0 = Gather (embedding_weight, tokens)
    {layers} {POOLING[config.pooling].format(i=i, next=i + 1)} {HEAD[config.head]}
    {PROBABILITIES[student.task]}
}}""")
    needed = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(torch.as_tensor(value).numpy(force=True), name)
                                   for name, value in constants.items() if name in needed)
    known = {"thresholds": json.dumps(config.thresholds)} if config.thresholds else {}
    helper.set_model_props(model, {"label_names": json.dumps(student.label_names, ensure_ascii=False),
                                   "task": student.task, "blank_id": str(config.blank_id), **known})
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def main(args):
    if parser is None:
        raise runtime.UserError("the package onnx is not installed; run: pip install onnx")
    student = Student.load(args.student)
    if student.task not in PROBABILITIES:
        raise runtime.UserError(f"{args.student}: there is no graph for {student.task}; use Student.predict")
    tokenizer, pad = student.tokenizer, student.config.pad_id
    tokenizer.enable_truncation(student.config.max_length)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))
    files = {Path(args.onnx): onnx_bytes(student),
             Path(f"{args.onnx}.tokenizer.json"): tokenizer.to_str(pretty=True).encode()}
    runtime.refuse_to_overwrite_inputs([args.student], files)
    there = {path: path.read_bytes() for path in files if path.is_file()}
    for path in there:
        if there[path] != files[path] and not args.overwrite:
            raise runtime.UserError(f"{path}: exists and differs; choose another file, or pass --overwrite")
    for path, content in files.items():
        if there.get(path) != content:
            write_whole(path, content)
    print(f"{' and '.join(map(str, files))}: {'left alone, the same' if there == files else 'written'}")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=[StudentError])
