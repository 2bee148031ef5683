"""serving/server.py as a user runs it: a process on a free port, where neither the kit nor PyTorch is."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_pairs import texts
from test_predictor import EDGES, exported, student_of

from serving.predictor import Predictor

for name in ("fastapi", "uvicorn", "httptools"):
    pytest.importorskip(name)

pytestmark = pytest.mark.optional

ROOT = Path(__file__).parent.parent
FORMS = {"classification": None, "multilabel": "siamese", "regression": None}  # and their pairs
LIMITS = ["--max-texts", "120", "--max-characters", "1500"]
LARGEST = 2000 * 120 + 12 * 1500
ROWS = EDGES + texts(90, seed=0, most=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """server.py, predictor.py, a graph for each of FORMS, and a torch that cannot be imported."""
    folder = tmp_path_factory.mktemp("serving")
    for name in ("server.py", "predictor.py"):
        shutil.copy(ROOT / "serving" / name, folder)
    (folder / "torch.py").write_text("raise ImportError('torch is not needed')")
    for task, pair in FORMS.items():
        exported(student_of(task, pair=pair), folder / f"{task}.onnx")
    return folder


@contextmanager
def server(folder, *flags, code=0):
    """(process, port); stopped at the end as a supervisor does it, with no word on standard error."""
    with open(folder / "stderr", "w+", encoding="utf-8") as errors:
        process = subprocess.Popen([sys.executable, "server.py", *flags, "--port", "0"], cwd=folder,
                                   stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), (folder / "stderr").read_text("utf-8")
            yield process, int(line.split()[0].rsplit(":", 1)[1])
            process.terminate()
            assert process.wait(60) == code
        finally:
            process.kill()
            process.stdout.close()
    said = (folder / "stderr").read_text("utf-8")
    assert "Traceback" not in said and "Exception" not in said, said


@pytest.fixture(scope="module")
def port(folder):
    with server(folder, "classification.onnx", "--workers", "1", *LIMITS) as (_, port):
        yield port


def ask(port, body=b"", method="POST", path="/predict", headers=None, connection=None):
    """(status, what the JSON says, headers)"""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = body if isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body).encode()
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), answer.headers


def expected(predictor, *columns) -> list[dict]:
    found, names = predictor.predict(*columns), predictor.label_names
    answers = []
    for answer, row in zip(predictor.answers(*columns), found.tolist(), strict=True):
        shares = dict(zip(names, (pytest.approx(p, abs=2e-6) for p in row), strict=True))
        answers.append({"classification": {"label": answer, "probability": pytest.approx(max(row), abs=2e-6),
                                           "probabilities": shares},
                        "multilabel": {"labels": answer, "probabilities": shares},
                        "regression": {"score": pytest.approx(answer, abs=2e-6)}}[predictor.task])
    return answers


@pytest.mark.parametrize("task", FORMS)
def test_the_answers_are_those_of_predictor(folder, task):
    predictor = Predictor(folder / f"{task}.onnx")
    columns = [ROWS, ROWS[::-1]] if FORMS[task] else [ROWS]
    with server(folder, f"{task}.onnx", "--workers", "1", *LIMITS) as (_, port):
        status, answer, headers = ask(port, dict(zip(("texts", "texts2"), columns, strict=False)))
        assert status == 200 and headers["Content-Type"] == "application/json"
        assert answer == {"predictions": expected(predictor, *columns)}
        for i in (0, 3, 50):
            body = dict(zip(("text", "text2"), (column[i] for column in columns), strict=False))
            assert ask(port, body)[:2] == (200, {"predictions": expected(predictor, *([column[i]] for column
                                                                                     in columns))})
        status, health, _ = ask(port, method="GET", path="/health")
        assert status == 200 and len(health.pop("version")) == 12
        assert health == {"status": "ok", "task": task, "label_names": predictor.label_names,
                          "pairs": FORMS[task] is not None, "max_texts": 120, "max_characters": 1500,
                          "max_bytes": LARGEST * len(columns)}
        schema = ask(port, method="GET", path="/openapi.json")[1]
        assert schema["paths"].keys() == {"/predict", "/health"}
        post = schema["paths"]["/predict"]["post"]
        assert post["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
        examples = post["requestBody"]["content"]["application/json"]["schema"]["examples"]
        assert len(examples) == 2 and [ask(port, example)[0] for example in examples] == [200, 200]
        if FORMS[task]:
            for body, *words in (({"text": "단어5"}, "text2", "missing", "pairs"),
                                 ({"texts": ["단어5"]}, "texts2", "missing"),
                                 ({"texts": ["단어5"], "text2": "단어5"}, "text2"),
                                 ({"texts": ["단어5"], "texts2": ["단어5"] * 2}, "1 rows", "2"),
                                 ({"text": "단어5", "text2": 7}, "text2: not a string"),
                                 ({"text": "단어5", "text2": "\ud800"}, "text2 has a lone surrogate"),
                                 ({"text": "단어5", "text2": "x" * 1501}, "text2", "1501")):
                status, answer, _ = ask(port, body)
                assert status in (413, 422) and all(word in answer["error"] for word in words), answer


def chunks(size: int):
    """A body without a length, of so many bytes."""
    yield b'{"text": "'
    yield from (b"x" * 10_000 for _ in range(size // 10_000))
    yield b'"}'


BAD = [  # status, words of the line, body, what else ask() takes
    (400, "not JSON", b""),
    (400, "not JSON", b"{"),
    (400, "not JSON", b"text=abc"),
    (400, "not JSON", b"\xef\xbb\xbf{}"),
    (400, "not JSON", b'{"text": "a"} {"text": "b"}'),
    (400, "not JSON", b'{"text": "a\nb"}'),
    (400, "not JSON", b"[" * 10_000),
    (400, "not JSON", b"1" * 10_000),
    (400, "UTF-8", '{"text": "재밌다"}'.encode("cp949")),
    (400, "UTF-8", '{"text": "재밌다"}'.encode("utf-16")),
    (400, "byte 10", b'{"text": "\xff"}'),
    (422, "object", b"[]"),
    (422, "object", b'"text"'),
    (422, "object", b"null"),
    (422, "nothing given", {}),
    (422, "text: not a string", {"text": 1}),
    (422, "text: not a string", {"text": None}),
    (422, "text: not a string", {"text": ["단어5"]}),
    (422, "text: not a string", b'{"text": NaN}'),
    (422, "texts: not a list", {"texts": "단어5"}),
    (422, "texts: not a list", {"texts": {"0": "단어5"}}),
    (422, "texts[2]: not a string", {"texts": ["단어5", "", 3, 4]}),
    (422, "texts[1]: not a string", {"texts": ["단어5", None]}),
    (422, "texts[0]: not a string", {"texts": [["단어5"]]}),
    (422, "text has a lone surrogate", {"text": "\ud800"}),
    (422, "texts[1] has a lone surrogate", {"texts": ["단어5", "단어\udfff"]}),
    (422, "empty", {"texts": []}),
    (422, "either text or texts", {"text": "단어5", "texts": ["단어5"]}),
    (422, "label: unknown", {"text": "단어5", "label": "가"}),
    (422, "Text: unknown", {"Text": "단어5"}),
    (422, "", {"text": "단어5", "\ud800": 1}),
    (422, "text2 is not wanted", {"text": "단어5", "text2": "단어6"}),
    (422, "texts2 is not wanted", {"texts": ["단어5"], "texts2": ["단어6"]}),
    (422, "text2 given", {"text2": "단어6"}),
    (413, "121 texts; at most 120", {"texts": ["단어5"] * 121}),
    (413, "text has 1501 characters; at most 1500", {"text": "가" * 1501}),
    (413, "texts[1] has 1501", {"texts": ["단어5", "가" * 1501]}),
    (413, f"more than {LARGEST} bytes", b" " * (LARGEST + 1)),
    (413, f"more than {LARGEST} bytes", chunks(2 * LARGEST)),
    (413, f"more than {LARGEST} bytes", b"", {"headers": {"Content-Length": "1000000000000"}}),
    (404, "GET /nothing", b"", {"method": "GET", "path": "/nothing"}),
    (404, "POST /predict", b"", {"method": "GET", "path": "/../server.py"}),
    (405, "GET /predict", b"", {"method": "GET"}),
    (405, "PUT /predict", b"{}", {"method": "PUT"}),
    (405, "POST /health", b"{}", {"path": "/health"}),
]


@pytest.mark.parametrize(("status", "words", "body", "more"), [(*row, {})[:4] for row in BAD])
def test_what_cannot_be_answered_is_refused_in_a_line(port, status, words, body, more):
    found, answer, _ = ask(port, body, **more)
    assert found == status and answer.keys() == {"error"}
    assert words in answer["error"] and "\n" not in answer["error"] and len(answer["error"]) < 200
    assert ask(port, {"text": "단어5"})[0] == 200


def test_the_largest_request_is_answered(port):
    """Escaped, as json.dumps does it, and without a length, in many pieces."""
    body = json.dumps({"texts": ["😀" * 100 + " 단어5"] * 120}).encode()
    assert LARGEST / 2 < len(body) < LARGEST
    pieces = (body[i : i + 5000] for i in range(0, len(body), 5000))
    status, answer, _ = ask(port, pieces)
    assert status == 200 and len(answer["predictions"]) == 120


def test_sixty_four_clients_get_their_own_answers(folder, port):
    rows = ROWS * 3
    answers = expected(Predictor(folder / "classification.onnx"), rows)

    def client(i):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for row in range(i, len(rows), 64):
            status, answer, _ = ask(port, {"text": rows[row]}, connection=connection)
            assert status == 200 and answer["predictions"] == [answers[row]]
            if row % 9 == 0:
                status, answer, _ = ask(port, {"texts": rows[row : row + 30]}, connection=connection)
                assert status == 200 and answer["predictions"] == answers[row : row + 30]
                assert ask(port, {"text": row}, connection=connection)[0] == 422
        connection.close()

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(client, range(64)))


# ---- slow clients and full queues --------------------------------------------------------------------------


def half(port, length=40, sent=b'{"text": ') -> socket.socket:
    """A connection that has sent the headers of a request and a part of its body."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + sent)
    return connection


def rest(connection) -> bytes:
    """What comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def until(condition):
    """What `condition` returns once that is true; it has a minute."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_slow_clients_are_let_go(folder):
    with server(folder, "classification.onnx", "--workers", "1", "--timeout", "2") as (_, port):
        silent = socket.create_connection(("127.0.0.1", port), timeout=60)
        slow_headers = socket.create_connection(("127.0.0.1", port), timeout=60)
        slow_headers.sendall(b"POST /predict HTTP/1.1\r\nHost: ")
        slow_body = half(port)
        assert rest(silent) == rest(slow_headers) == b""
        head, _, body = rest(slow_body).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ") and "body" in json.loads(body)["error"]


def test_headers_without_end_are_cut_and_load_balancers_are_answered(port):
    flood = socket.create_connection(("127.0.0.1", port), timeout=60)
    with contextlib.suppress(ConnectionError):
        flood.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * 8_000_000 + b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert rest(flood) == b""
    probe = socket.create_connection(("127.0.0.1", port), timeout=60)
    probe.sendall(b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert rest(probe).startswith(b"HTTP/1.1 200 ")


def test_an_offer_of_http2_is_ignored_and_the_body_read(port):
    body = json.dumps({"text": "단어5"}).encode()
    head = (b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: %s\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABk\r\nContent-Length: %d\r\n\r\n")
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    for connection in (b"Upgrade, HTTP2-Settings", b"Upgrade, close"):
        client.sendall(head % (connection, len(body)) + body)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert answer.status == 200 and json.loads(answer.read())["predictions"]


def refused(port):
    status, *rest = ask(port, {"text": "단어5"})
    assert status in (200, 503)
    return rest if status == 503 else None


def test_a_full_queue_is_told_and_empties(folder):
    """16 bodies of the largest size but for a byte: 16 bytes are left."""
    flags = ["--workers", "1", "--max-texts", "1", "--max-characters", "10"]
    with server(folder, "classification.onnx", *flags) as (_, port):
        held = [half(port, 2120, b" " * 2119) for _ in range(16)]
        answer, headers = until(lambda: refused(port))  # when all of it has been read
        assert "waiting" in answer["error"] and headers["Retry-After"]
        for connection in held:
            connection.close()
        until(lambda: not refused(port))


# ---- start and stop ----------------------------------------------------------------------------------------


def test_a_request_that_is_under_way_is_answered_before_the_end(folder):
    with server(folder, "classification.onnx", "--workers", "2") as (process, port):
        body = b'{"text": "\xeb\x8b\xa8\xec\x96\xb45"}'
        connections = [half(port, len(body), body[:7]) for _ in range(8)]  # of both workers, most likely
        assert ask(port, {"text": "단어5"})[0] == 200
        time.sleep(0.5)
        process.terminate()
        time.sleep(0.5)
        for connection in connections:
            connection.sendall(body[7:])
        answers = {rest(connection).partition(b"\r\n\r\n")[2] for connection in connections}
        assert process.wait(60) == 0
    assert [json.loads(answer)["predictions"] for answer in answers] == [
        expected(Predictor(folder / "classification.onnx"), ["단어5"])]


def workers(process) -> list[int]:
    """Processes that listen, below this one."""
    def children(pid):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from children(child)
    return [pid for pid in children(process.pid) if b"onnxruntime" in Path(f"/proc/{pid}/maps").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_worker_that_dies_is_replaced_and_ctrl_c_ends_all(folder):
    with server(folder, "classification.onnx", "--workers", "2") as (process, port):
        before = workers(process)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        until(lambda: before[0] not in workers(process) and len(workers(process)) == 2)
        now = workers(process)
        for _ in range(20):
            assert ask(port, {"text": "단어5"})[0] == 200
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in now)
    assert (folder / "stderr").read_text("utf-8").count("worker died") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_no_worker_outlives_a_killed_first_process(folder):
    with server(folder, "classification.onnx", "--workers", "2", code=-signal.SIGKILL) as (process, port):
        left = workers(process)
        process.kill()
        process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
        with pytest.raises(ConnectionRefusedError):
            ask(port, {"text": "단어5"})


def test_a_start_that_fails_is_one_line_and_code_2(folder):
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    student_of().save(folder / "student.pt")
    (folder / "text.onnx").write_text("text")
    for flags, *words in ((["none.onnx"], "none.onnx", "cannot read"), (["text.onnx"], "text.onnx", "graph"),
                          (["student.pt"], "extra/export_onnx.py student.pt"),
                          (["classification.onnx", "--port", port], "--port", "in use"),
                          (["classification.onnx", "--host", "192.0.2.1"], "--host"),
                          (["classification.onnx", "--workers", "0"], "--workers"),
                          (["classification.onnx", "--port", "70000"], "--port"), ([], "FILE.onnx")):
        done = subprocess.run([sys.executable, "server.py", "--workers", "2", *flags], cwd=folder,
                              capture_output=True, text=True, timeout=100)
        *_, last = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
        assert all(word in last for word in words) and done.stderr.count("error: ") == 1, done.stderr
    taken.close()


def test_the_page_is_the_folder_beside(folder, tmp_path):
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    with server(tmp_path, "classification.onnx", "--workers", "1") as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.read() == b"" and (answer.status, answer.headers["Location"]) == (307, "/docs")
    (tmp_path / "web").mkdir()
    (tmp_path / "web/index.html").write_text("<p>안녕", "utf-8")
    (tmp_path / "web/page.js").write_text("1", "utf-8")
    with server(tmp_path, "classification.onnx", "--workers", "1") as (_, port):
        for path, kind, content in (("/", "text/html", "<p>안녕"), ("/page.js", "javascript", "1"),
                                    ("/docs", "text/html", None)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200 and kind in answer.headers["Content-Type"]
            assert content in (None, answer.read().decode())
        for path in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/classification.onnx"):
            assert ask(port, method="GET", path=path)[0] == 404
        assert ask(port, method="GET")[0] == 405
