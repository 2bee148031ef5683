"""Serving: serving/server.py, a worker per core, against Student behind the simplest Flask route.

    python -m bench.serving --seconds 300        # the server for five minutes, after three rounds of both

The shipped student, 64 connections of one client process (bench/client.py), one text of the sample per
request. Both servers run all the time, and are asked in turn. Memory is PSS, in which shared pages count in
equal parts; of ours the mean of the workers. Every answer is compared with the label of Student.

writes  RESULTS/serve.json, serve-memory.json
"""

import bench
import flags


def parse_args(argv=None):
    def add(arg):
        arg("--seconds", type=flags.count, metavar="N",
            help="of the last round, of ours alone (default: 20; tiny 1, long 300)")
    args = bench.parse_args(__doc__, argv, rows=(64, 500, 2000), add=add)
    args.seconds = args.seconds or {"tiny": 1, "short": 20, "long": 300}[args.form]
    return args


if __name__ == "__main__":
    ARGS = bench.settle(parse_args())

import contextlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import runtime
from bench import common
from extra import export_onnx
from student import SHIPPED, Student

CONNECTIONS = 64
ROOT = Path(__file__).resolve().parent.parent
FLASK = """
import sys
from flask import Flask, request
from student import Student, decode

student, app = Student.load(sys.argv[1]), Flask("student")

@app.post("/predict")
def predict():
    found = student.predict([request.json["text"]])
    [(label, probability)] = decode(found, student.label_names, student.task)
    return {"label": label, "probability": probability}

app.run(port=0, threaded=True)
"""


@contextlib.contextmanager
def started(folder: Path, name: str, *command):
    """(pid, port) of a server that prints its address."""
    path = folder / f"{name}.log"
    with open(path, "w") as log:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=log, stderr=log)
    try:
        while not (address := re.search(r"http://127\.0\.0\.1:(\d+)", path.read_text("utf-8"))):
            if process.poll() is not None:
                raise runtime.UserError(f"{name} did not start: {path.read_text('utf-8')}")
        yield process.pid, int(address[1])
    finally:
        process.terminate()
        process.wait()


def workers(pid: int) -> list[int]:
    """Of a process and all below it, those that have a model."""
    mine = [pid] if re.search("onnxruntime|libtorch", Path(f"/proc/{pid}/maps").read_text("utf-8")) else []
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split())
    return mine + [each for child in children for each in workers(child)]


def megabytes(pid: int) -> float:
    """PSS, the mean of the workers."""
    found = [Path(f"/proc/{each}/smaps_rollup").read_text("ascii") for each in workers(pid)]
    return statistics.mean(int(re.search(r"\nPss: +(\d+)", each)[1]) for each in found) / 1000


def ask(port: int, asked: str, seconds: int) -> dict:
    """What bench/client.py prints."""
    command = [sys.executable, ROOT / "bench/client.py", *map(str, (port, CONNECTIONS, seconds))]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise runtime.UserError(f"bench/client.py ended with {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def compare(args, made):
    common.peer("flask")
    common.peer("uvicorn")
    student, graph, code = Student.load(SHIPPED), made.folder / "base.onnx", made.folder / "route.py"
    graph.write_bytes(export_onnx.onnx_bytes(student, "float32"))
    code.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}){FLASK}", "utf-8")
    rows = zip(made.texts, student.answers(made.texts), strict=True)
    asked = "".join(json.dumps(row) + "\n" for row in rows)
    found, memory = {"ours": [], "Flask": []}, {"ours": [], "Flask": []}
    seconds = 1 if args.tiny else 10
    with started(made.folder, "server.py", "serving/server.py", graph, "--port", 0) as ours, \
            started(made.folder, "route.py", code, SHIPPED) as theirs:
        def side(name, pid, port):
            def rate():
                found[name].append(ask(port, asked, seconds))
                memory[name].append(megabytes(pid))
                return found[name][-1]["requests"] / found[name][-1]["seconds"]
            return rate

        values, _ = common.alternate(args, {"ours": side("ours", *ours), "Flask": side("Flask", *theirs)})
        before = megabytes(ours[0])
        last = ask(ours[1], asked, args.seconds)
        after = megabytes(ours[0])
    for each in (*found["ours"], last):
        if each["errors"]:
            raise runtime.UserError(f"server.py: {each['errors']} of {each['requests']} requests failed: "
                                    f"{each['first']}")
    rounds = {name: each[-args.rounds :] for name, each in found.items()}
    them = f"Student behind a Flask route, {CONNECTIONS} connections"
    count = sum(each["requests"] for each in (*found["ours"], last))
    checked = f"the labels of all {count:,} answers"
    common.publish(args, "serve", {"ours": values["ours"], them: values["Flask"]}, unit="requests/s",
                   n=len(made.texts), precision="fp32", checked=checked, also={
        f"{what}, ms, {name}": statistics.median(each[what] for each in rounds[name])
        for name in rounds for what in ("p50", "p99")} | {
        "errors, Flask": sum(each["errors"] for each in rounds["Flask"]),
        "last round, seconds": args.seconds, "last round, requests/s": last["requests"] / last["seconds"],
        "last round, p99, ms": last["p99"], "last round, errors": last["errors"],
        "MB of a worker before": before, "MB of a worker after": after})
    common.publish(args, "serve-memory", {"ours": memory["ours"][-args.rounds :],
                                          "Student behind a Flask route": memory["Flask"][-args.rounds :]},
                   unit="MB", n=len(made.texts), precision="fp32", checked=checked, better="less")


if __name__ == "__main__":
    common.main(compare, ARGS, teacher=False)
