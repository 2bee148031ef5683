"""serving/predictor.py: one review, also on a busy machine, in bulk, its memory; beside the same peers.

    python -m bench.predictor                                             # the sample, minutes
    python -m bench.predictor --long --train train.tsv --checkpoint koreview-electra

Students and peers are those of bench.prediction. Base: one review in one thread against the teacher in
transformers; the 99th percentile of single reviews, while another process multiplies matrices, against the
median of such reviews in quiet; in bulk, float32 against the faster of the pipeline's two ways, and int8
against float32. Tiny, in calls of 256 texts, which keep to one core, against fastText on one core. Memory:
a process that loads Base and answers 200 reviews, against the same with Student and PyTorch.

writes  RESULTS/predictor-one.json, predictor-tail.json, predictor-bulk.json, predictor-int8.json,
        predictor-tiny.json; on Linux predictor-memory.json
"""

import bench


def parse_args(argv=None):
    return bench.parse_args(__doc__, argv, rows=(64, 2000, 20_000))


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import contextlib
import json
import statistics
import subprocess
import sys
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from bench import common, prediction
from extra.export_onnx import onnx_bytes
from runtime import UserError
from serving.predictor import Predictor

ROOT = Path(__file__).parent.parent
CALL = 256  # texts of a call that keeps to one core
LOAD = """if True:
    import numpy
    matrix = numpy.random.rand(512, 512).astype(numpy.float32)
    print(flush=True)
    while True:
        matrix @ matrix"""
WORKER = """if True:
    import json, re, sys
    {load}
    model = load(sys.argv[1])
    for text in json.load(sys.stdin):
        model.predict([text])
    memory = open("/proc/self/smaps_rollup").read()
    print(re.search("Rss: +([0-9]+)", memory)[1], "torch" in sys.modules)"""


def graphs(made, size: str):
    """(student, {precision: its Predictor}); the files are made.folder / SIZE-PRECISION.onnx."""
    student, found = prediction.new_student(made, size), {}
    for precision in ("float32", "int8"):
        path = made.folder / f"{size}-{precision}.onnx"
        path.write_bytes(onnx_bytes(student, precision))
        found[precision] = Predictor(path)
    return student, found


def same_answers(texts, student, predictors) -> str:
    """A line for `checked`: the graphs give the probabilities of Student."""
    texts, limits = texts[:500], {"float32": 1e-5, "int8": 0.05}
    return "; ".join(common.largest_difference(predictors[precision].predict(texts), student.predict(texts),
                                               limits[precision], f"probabilities, {precision} and Student")
                     for precision in limits)


def one_review(args, made, student, predictors):
    values, rates, texts, checked = prediction.beside_teacher(
        args, made, {"ours": predictors["float32"].predict, "int8": predictors["int8"].predict,
                     "Student": student.predict})
    also = {f"{name}, ms": statistics.median(values.pop(name)) for name in ("int8", "Student")}
    prediction.publish(args, "predictor-one", values, student, texts, rates, f"{checked}; "
                       f"{same_answers(made.texts, student, predictors)}", unit="ms", also=also)


@contextlib.contextmanager
def a_busy_core():
    """Another process is busy within the block."""
    process = subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE,
                               env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def tail(args, made, student, predictors):
    texts = list(islice(cycle(made.texts), 50 if args.tiny else 5000))
    predict, also = predictors["float32"].predict, {}

    def milliseconds(where: str, percent: float) -> float:
        times = np.array([1000 * common.timed(partial(predict, [text])) for text in texts])
        for q in {50, 99, 99.9} - {percent}:
            also.setdefault(f"percentile {q:g}, {where}, ms", []).append(float(np.percentile(times, q)))
        return float(np.percentile(times, percent))

    def busy() -> float:
        with a_busy_core():
            return milliseconds("busy", 99)

    values, _ = common.alternate(args, {"ours": busy, "its own median in quiet": partial(
        milliseconds, "quiet", 50)})
    common.publish(args, "predictor-tail", values, unit="ms", better="less", n=len(texts), precision="fp32",
                   checked=same_answers(made.texts, student, predictors),
                   also={name: statistics.median(found) for name, found in sorted(also.items())})


def in_bulk(args, made, student, predictors):
    ours, theirs, also, rates, checked = prediction.beside_pipeline(
        args, made, {"ours": predictors["float32"].predict, "int8": predictors["int8"].predict,
                     "Student": student.predict})
    also["Student, examples/s"] = statistics.median(ours.pop("Student"))
    int8, same = ours.pop("int8"), same_answers(made.texts, student, predictors)
    prediction.publish(args, "predictor-bulk", ours | theirs, student, made.texts, rates,
                       f"{checked}; {same}", also=also)
    common.publish(args, "predictor-int8", {"int8": int8, "float32": ours["ours"]}, unit="examples/s",
                   n=len(made.texts), precision="int8", checked=same)


def against_fasttext(args, made, student, predictors):
    model, texts = prediction.trained_fasttext(args, made)
    predictor, calls = predictors["float32"], range(0, len(texts), CALL)

    def rate(predict):
        return lambda: len(texts) / common.timed(predict)

    values, rates = common.alternate(args, {
        "ours": rate(lambda: [predictor.predict(texts[i : i + CALL]) for i in calls]),
        "fastText, predict(list), one core": rate(lambda: model.predict(texts)),
        "tokenizing alone, one core": rate(lambda: [predictor.tokenizer.encode(text) for text in texts]),
        "in one call, on all cores": rate(lambda: predictor.predict(texts))})
    also = {f"{name}, examples/s": statistics.median(values.pop(name)) for name in list(values)[2:]}
    prediction.publish(args, "predictor-tiny", values, student, texts, rates, also=also,
                       checked=same_answers(texts, student, predictors))


def memory(args, made, student, predictors):
    texts = json.dumps(made.texts[:200])

    def megabytes(load: str, file: str, torch: bool) -> float:
        """As if it were alone: what it shares with other processes, as with this one, counts in full."""
        done = subprocess.run([sys.executable, "-c", WORKER.format(load=load), made.folder / file], cwd=ROOT,
                              input=texts, capture_output=True, text=True, check=True)
        kilobytes, imported = done.stdout.split()
        if imported != str(torch):
            raise UserError(f"the sides are not what they should be: torch imported is {imported}")
        return int(kilobytes) * 1024 / 1e6

    sides = {"ours": ("from serving.predictor import Predictor as load", "base-float32.onnx", False),
             "Student, PyTorch": ("from student import Student; load = Student.load", "base.pt", True)}
    values, _ = common.alternate(args, {name: partial(megabytes, *side) for name, side in sides.items()})
    common.publish(args, "predictor-memory", values, unit="MB", better="less", n=200, precision="fp32",
                   checked=same_answers(made.texts, student, predictors))


def compare(args, made):
    base, tiny = graphs(made, "base"), graphs(made, "tiny")
    one_review(args, made, *base)
    tail(args, made, *base)
    in_bulk(args, made, *base)
    against_fasttext(args, made, *tiny)
    if Path("/proc/self/smaps_rollup").exists():
        memory(args, made, *base)


if __name__ == "__main__":
    common.main(compare, ARGS)
