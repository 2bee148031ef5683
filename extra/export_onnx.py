"""Write a student as an ONNX graph, for ONNX Runtime in any language.

    python extra/export_onnx.py students/base/student.pt base.onnx
    python extra/export_onnx.py students/base/student.pt base.int8.onnx --precision int8
    python serving/predictor.py base.onnx "이 영화 진짜 재밌다"           # needs no torch, and no other file

reads   student.pt; needs one more package: pip install onnx; int8 also onnxruntime
writes  base.onnx: input_ids (B, T) and lengths (B,), int64 -> probabilities (B, C), as Student.predict's to
        1e-5 (of scores: the scores, (B, 1)); an empty text has length 0; of a student of pairs also
        input_ids2 (B, T2) and lengths2 (B,) for the second texts. Its metadata hold all else that a program
        needs: tokenizer (JSON, set to cut and pad texts as the graph needs them), label_names (JSON), task,
        pairs (JSON), precision, max_length, blank_id, and of several labels per text their thresholds (JSON)
again   a finished file is left alone; a different one is replaced only with --overwrite

int8 is a third of the size for Base. Its activations are scaled over the batch: run it text by text.

Shapes: B batch, T tokens, E embedding, H hidden, C outputs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("student", metavar="STUDENT.pt")
    p.add_argument("onnx", metavar="FILE.onnx")
    p.add_argument("--precision", default="float32", choices=["float32", "int8"], help="default: %(default)s")
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import json
import os

import torch

import runtime
from student import Student, StudentError, to_int8, write_whole

try:
    from onnx import checker, helper, load_model, numpy_helper, parser
except ImportError:
    parser = None

# Parts of the graph as ONNX writes it; {t} is 2 for the second text of a pair, else empty. Its LSTM takes
# lengths, and reads backwards from each text's own end. A text of length 0 becomes the one token blank; one
# more step is there for it if all texts are empty.
INPUTS = "int64[B, T{t}] input_ids{t}, int64[B] lengths{t}"
TEXT = """
    none{t} = Less (lengths{t}, one)
    real_lengths{t} = Max (lengths{t}, one)
    lengths32{t} = Cast <to = 6> (real_lengths{t})
    given{t} = Transpose <perm = [1, 0]> (input_ids{t})
    longer{t} = Pad (given{t}, one_step)
    tokens{t} = Where (none{t}, blank, longer{t})"""
EMBEDDING = {
    "float32": """
    {x}{t}_0 = Gather (embedding_weight, tokens{t})""",
    "int8": """
    integers{t} = Gather (embedding_int8, tokens{t})
    scales{t} = Gather (embedding_scales, tokens{t})
    floats{t} = Cast <to = 1> (integers{t})
    {x}{t}_0 = Mul (floats{t}, scales{t})"""}
LSTM = """
    y{t}_{i}, h{t}_{i} = LSTM <direction = "bidirectional", hidden_size = {H}> (
        x{t}_{i}, w_{i}, r_{i}, b_{i}, lengths32{t})"""
STATES = """
    yt{t}_{i} = Transpose <perm = [0, 2, 1, 3]> (y{t}_{i})
    x{t}_{next} = Reshape (yt{t}_{i}, join)"""
REAL = """
    T{t} = Shape <start = 0, end = 1> (tokens{t})
    end{t} = Squeeze (T{t})
    range{t} = Range (zero, end{t}, one)
    steps{t} = Unsqueeze (range{t}, axes12)
    ends{t} = Unsqueeze (real_lengths{t}, axes02)
    real{t} = Less (steps{t}, ends{t})"""
WEIGHED = """
    weighed{t} = Mul (shares{t}, x{t}_{next})
    {out}{t} = ReduceSum <keepdims = 0> (weighed{t}, time)"""
POOLING = {  # states x (T, B, 2H), final states h (2, B, H) -> (B, 2H); real (T, B, 1): not padding
    "last": """
    final{t} = Transpose <perm = [1, 0, 2]> (h{t}_{i})
    {out}{t} = Reshape (final{t}, flat)""",
    "max": """
    kept{t} = Where (real{t}, x{t}_{next}, low)
    {out}{t} = ReduceMax <keepdims = 0> (kept{t}, time)""",
    "mean": """
    ones{t} = Cast <to = 1> (real{t})
    count{t} = ReduceSum (ones{t}, time)
    shares{t} = Div (ones{t}, count{t})""" + WEIGHED,
    "attention": """
    squashed{t} = Tanh (x{t}_{next})
    scores{t} = MatMul (squashed{t}, attention_columns)
    kept{t} = Where (real{t}, scores{t}, low)
    shares{t} = Softmax <axis = 0> (kept{t})""" + WEIGHED}
COMMON = """
    columns = Unsqueeze (tokens, axes1)
    others = Unsqueeze (tokens2, axes0)
    equal = Equal (columns, others)
    realc = Transpose <perm = [0, 2, 1]> (real)
    reals = Transpose <perm = [2, 0, 1]> (real2)
    both = And (realc, reals)
    same = And (equal, both)
    same1 = Cast <to = 1> (same)
    any = ReduceMax (same1, axes1)
    any2 = ReduceMax (same1, axes0)
    common = Transpose <perm = [0, 2, 1]> (any)
    common2 = Transpose <perm = [1, 2, 0]> (any2)
    vector = Transpose <perm = [1, 0]> (common_weight)
    added = Mul (common, vector)
    added2 = Mul (common2, vector)
    x_0 = Add (e_0, added)
    x2_0 = Add (e2_0, added2)"""
ALIGNED = """
    rows{t} = Transpose <perm = [1, 0, 2]> (x{t}_{next})
    turned{t} = Transpose <perm = [1, 2, 0]> (x{o}_{next})
    similar{t} = MatMul (rows{t}, turned{t})
    seen{t} = Transpose <perm = [1, 2, 0]> (real{o})
    looked{t} = Where (seen{t}, similar{t}, low)
    weights{t} = Softmax <axis = 2> (looked{t})
    values{t} = Transpose <perm = [1, 0, 2]> (x{o}_{next})
    found{t} = MatMul (weights{t}, values{t})
    aligned{t} = Transpose <perm = [1, 0, 2]> (found{t})
    minus{t} = Sub (x{t}_{next}, aligned{t})
    times{t} = Mul (x{t}_{next}, aligned{t})
    beside{t} = Concat <axis = 2> (x{t}_{next}, aligned{t}, minus{t}, times{t})
    product{t} = MatMul (beside{t}, projection_columns)
    sum{t} = Add (product{t}, projection_bias)
    x{t}_c = Relu (sum{t})"""
FEATURES = {  # what the head sees
    None: "",
    "siamese": """
    minus = Sub (pooled, pooled2)
    distance = Abs (minus)
    times = Mul (pooled, pooled2)
    features = Concat <axis = 1> (pooled, pooled2, distance, times)""",
    "align": """
    features = Concat <axis = 1> (average, maximum, average2, maximum2)"""}
HEAD = {
    "linear": """
    z = Gemm <transB = 1> (features, head_weight, head_bias)""",
    "relu": """
    hidden = Gemm <transB = 1> (features, head_0_weight, head_0_bias)
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
NUMBERS = {"join": [0, 0, -1], "flat": [0, -1], "zero": 0, "one": 1, "axes0": [0], "axes1": [1],
           "axes12": [1, 2], "axes02": [0, 2], "time": [0], "one_step": [0, 0, 1, 0], "low": float("-inf")}


def gates(layer, name: str):
    """A parameter (4H, …) of both directions -> (2, 4H, …), PyTorch's gates i f g o as ONNX's i o f g."""
    parts = [getattr(lstm, name).chunk(4) for lstm in (layer.ahead, layer.behind)]
    return torch.stack([torch.cat([i, o, f, g]) for i, f, g, o in parts])


def body(config, texts: list[str], precision: str) -> str:
    """The part of the graph from the inputs of each text to what FEATURES takes."""
    n, align, graph = config.num_layers, config.pair == "align", ""
    every = align or config.pooling != "last"  # else the final states suffice
    for t in texts:
        graph += TEXT.format(t=t) + EMBEDDING[precision].format(t=t, x="e" if align else "x")
        graph += REAL.format(t=t) if every else ""
    graph += COMMON if align else ""
    for t in texts:
        for i in range(n):
            graph += LSTM.format(t=t, i=i, H=config.hidden_dim)
            graph += STATES.format(t=t, i=i, next=i + 1) if every or i + 1 < n else ""
        if not align:
            out = "pooled" if config.pair else "features"
            graph += POOLING[config.pooling].format(t=t, i=n - 1, next=n, out=out)
    for t, other in zip(texts, texts[::-1], strict=True) if align else ():
        graph += ALIGNED.format(t=t, o=other, next=n)
        graph += LSTM.format(t=t, i="c", H=config.hidden_dim) + STATES.format(t=t, i="c", next="end")
        for pooling, out in (("mean", "average"), ("max", "maximum")):
            graph += POOLING[pooling].format(t=t, next="end", out=out)
    return graph


def in_int8(model):
    """The model with its matrices in integers, one scale for each of their outputs.

    7 bits: on processors without VNNI, 8 bits can saturate (ONNX Runtime's documentation) and give other
    answers. Two LSTMs must not share matrices while they are quantized, so the second text of a pair has
    copies until then.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer onnxruntime reports to Microsoft by default
    try:
        from onnxruntime import quantization
    except ImportError:
        raise runtime.UserError("the package onnxruntime is not installed; run: pip install onnxruntime") \
            from None
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # else it warns
    constants = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "LSTM" and node.output[0].startswith("y2"):
            for i, name in ((1, node.input[1]), (2, node.input[2])):
                node.input[i] = f"copy_{name}"
                model.graph.initializer.add().CopyFrom(constants[name])
                model.graph.initializer[-1].name = f"copy_{name}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(model, path, ["LSTM", "MatMul", "Gemm"], per_channel=True,
                                      reduce_range=True)
        model = load_model(path)
    for node in model.graph.node:
        node.input[:] = [name.removeprefix("copy_") for name in node.input]
    kept = [each for each in model.graph.initializer if not each.name.startswith("copy_")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def metadata(student: Student, precision: str) -> dict[str, str]:
    """What a program needs beside the graph."""
    config, tokenizer = student.config, student.tokenizer
    tokenizer.enable_truncation(config.max_length)
    tokenizer.enable_padding(pad_id=config.pad_id, pad_token=tokenizer.id_to_token(config.pad_id))
    known = {"label_names": student.label_names, "pairs": student.pairs}  # pairs null: does not tell
    known |= {"thresholds": config.thresholds} if config.thresholds else {}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in known.items()} | {
        "task": student.task, "precision": precision, "max_length": str(config.max_length),
        "blank_id": str(config.blank_id), "tokenizer": tokenizer.to_str()}


def onnx_bytes(student: Student, precision: str = "float32") -> bytes:
    """The ONNX file of a student."""
    config, texts = student.config, ["", "2"] if student.config.pair else [""]
    constants = NUMBERS | {name.replace(".", "_"): value for name, value in student.state_dict().items()}
    constants |= {"temperature": float(config.temperature), "blank": config.blank_id,
                  "mean": config.mean or 0.0, "deviation": config.deviation or 1.0}
    constants |= {name.replace("weight", "columns"): constants[name].T
                  for name in ("attention_weight", "projection_weight") if name in constants}
    if precision == "int8":  # rounded as by extra/quantize.py, row by row
        integers, scales = to_int8(student.embedding.weight)
        constants |= {"embedding_int8": integers, "embedding_scales": scales.float()}
    layers = dict(enumerate(student.layers))
    if config.pair == "align":
        layers["c"] = student.composition
    for i, layer in layers.items():
        constants |= {f"w_{i}": gates(layer, "weight_ih_l0"), f"r_{i}": gates(layer, "weight_hh_l0"),
                      f"b_{i}": torch.cat([gates(layer, "bias_ih_l0"), gates(layer, "bias_hh_l0")], 1)}
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 18]>
student ({", ".join(INPUTS.format(t=t) for t in texts)}) => (float[B, {config.num_labels}] probabilities) {{
    {body(config, texts, precision)} {FEATURES[config.pair]} {HEAD[config.head]}
    {PROBABILITIES[student.task]}
}}""")
    needed = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(torch.as_tensor(value).numpy(force=True), name)
                                   for name, value in constants.items() if name in needed)
    checker.check_model(model, full_check=True)
    if precision == "int8":
        model = in_int8(model)
    helper.set_model_props(model, metadata(student, precision))
    return model.SerializeToString(deterministic=True)


def main(args):
    if parser is None:
        raise runtime.UserError("the package onnx is not installed; run: pip install onnx")
    student = Student.load(args.student)
    if student.task not in PROBABILITIES:
        raise runtime.UserError(f"{args.student}: there is no graph for {student.task}; use Student.predict")
    path, content = Path(args.onnx), onnx_bytes(student, args.precision)
    runtime.refuse_to_overwrite_inputs([args.student], [path])
    same = path.is_file() and path.read_bytes() == content
    if path.is_file() and not same and not args.overwrite:
        raise runtime.UserError(f"{path}: exists and differs; choose another file, or pass --overwrite")
    if not same:
        write_whole(path, content)
    print(f"{path}: {'left alone, the same' if same else 'written'}")


if __name__ == "__main__":
    runtime.main(main, ARGS, errors=[StudentError])
