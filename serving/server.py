"""A student behind HTTP. Needs requirements-server.txt; no torch.

    pip install -r serving/requirements-server.txt
    python serving/server.py base.onnx           # written by extra/export_onnx.py
    curl localhost:8000/predict -d '{"text": "이 영화 진짜 재밌다"}'

POST /predict   {"text": "…"} or {"texts": ["…", …]}; of pairs also text2 or texts2
                -> {"predictions": [{"label": "1", "probability": 0.98, "probabilities": {…}}]}
GET  /health    the task, the labels and the limits
GET  /          a page (web/); /docs describes all of it

Copy this file, predictor.py, web/ and one .onnx: nothing else of the kit is needed. What cannot be answered
gets a 4xx or 5xx and {"error": "one line"}. SIGTERM and Ctrl-C answer what has come, then end.
"""

import argparse
import importlib.util
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
from multiprocessing.connection import wait
from pathlib import Path


def cores() -> int:
    """Those that this process may use: its affinity, and the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split())
    except (OSError, ValueError):  # not Linux, or "max"
        return count
    return max(1, min(count, math.ceil(quota / period)))


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def port(text: str) -> int:
    if not 0 <= (value := int(text)) < 65536:
        raise ValueError
    return value


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("onnx", metavar="FILE.onnx")
    arg("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all (default: %(default)s)")
    arg("--port", type=port, default=8000, metavar="N",
        help="0 picks a free one (default: %(default)s)")
    arg("--workers", type=positive, default=cores(), metavar="N", help="processes (default: one per core)")
    arg("--max-texts", type=positive, default=1000, metavar="N", help="of a request (default: %(default)s)")
    arg("--max-characters", type=positive, default=10_000, metavar="N",
        help="of a text (default: %(default)s)")
    arg("--timeout", type=positive, default=30, metavar="SECONDS",
        help="for the headers of a request, and from there to its answer (default: %(default)s)")
    return p.parse_args(argv)


# ---- the first process: it listens, and watches the workers ------------------------------------------------


def listening(host: str, port: int, count: int) -> list[socket.socket]:
    """A socket for each worker, all of one address. Of one socket for all, the worker that wakes first would
    take most of many connections that come at once. Only Linux shares them out over several."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    first = socket.create_server((host, port), family=family)  # fails if anyone else listens there
    if count == 1 or not sys.platform.startswith("linux"):
        return [first] * count
    address = first.getsockname()[:2]
    first.close()
    return [socket.create_server(address, family=family, reuse_port=True) for _ in range(count)]


def watch(args) -> int:
    """Start the workers, replace one that dies, and end them. Returns the exit code."""
    for name in ("fastapi", "uvicorn", "httptools", "onnxruntime", "tokenizers", "predictor"):
        if importlib.util.find_spec(name) is None:
            print(f"error: {name} is missing; " + ("copy predictor.py beside server.py" if name == "predictor"
                  else "pip install -r serving/requirements-server.txt"), file=sys.stderr)
            return 2
    try:
        sockets = listening(args.host, args.port, args.workers)
    except OSError as error:
        reason = str(error.strerror).split(" (")[0]
        print(f"error: cannot listen on {args.host}, port {args.port} ({reason}); choose another --host or "
              f"--port", file=sys.stderr)
        return 2
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy computes nothing here that needs more
    # Workers are forks of a process without threads, and share its memory: onnxruntime and the graph, which
    # start some, come after the fork.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context, workers, stopping = multiprocessing.get_context(method), {}, False
    context.set_forkserver_preload(["fastapi", "httptools", "numpy", "uvicorn"])

    def stop(number=None, frame=None):
        nonlocal stopping
        for worker in workers.values():
            (worker.kill if stopping and number == signal.SIGINT else worker.terminate)()
        stopping = True

    def start(place: int):
        """A worker, and the end of a pipe on which it says that it is ready."""
        reader, writer = context.Pipe(duplex=False)
        workers[place] = context.Process(target=work, args=(args, sockets[place], writer))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited; Ctrl-C goes to all of them, this one acts
        workers[place].start()
        signal.signal(signal.SIGINT, stop)
        writer.close()
        if stopping:
            workers[place].terminate()
        return workers[place], reader

    def ready(worker, reader) -> bool:
        try:
            return reader.recv()
        except EOFError:  # it ended; its own line says why
            worker.join()
            return False

    signal.signal(signal.SIGTERM, stop)
    first = start(0)  # alone, so that an error is told once
    if not ready(*first) or not all(ready(*each) for each in [start(i) for i in range(1, args.workers)]):
        code = 0 if stopping else first[0].exitcode or 1
        stop()
        return code
    host, port = sockets[0].getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port} ({args.onnx}, workers: {args.workers}; "
          f"Ctrl-C ends)", flush=True)
    code = 0
    while not stopping:
        wait([worker.sentinel for worker in workers.values()])
        for place, worker in list(workers.items()):
            if not stopping and not worker.is_alive():
                print(f"error: a worker died (exit code {worker.exitcode}); starting another",
                      file=sys.stderr)
                if not ready(*start(place)) and not stopping:
                    code = 1
                    stop()
    for worker in workers.values():
        worker.join()
    return code


def work(args, sock, writer) -> None:
    """A worker. Its process imports this file, down to the end."""
    serve(args, sock, writer)


if __name__ == "__main__":
    sys.exit(watch(parse_args()))  # needs nothing of what follows: little memory, and --help answers at once

import asyncio
import hashlib
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from predictor import Predictor, PredictorError, checked
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WEB = Path(__file__).resolve().with_name("web")
SMALL = 2000  # bytes of a body that is answered without a thread: 2 ms of work at most
HEAD = 1_000_000  # bytes of headers, with what of the body came in one piece with them
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)  # to HTTP/2: the parser would drop the body
HELD = 16  # times the largest body: what the bodies that wait in a worker may have together


# ---- what is asked and answered ----------------------------------------------------------------------------


class Question(BaseModel):
    """One text or a list of texts. Where the graph reads pairs, the second texts beside them."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: str = Field(default_factory=str)
    texts: list[str] = Field(default_factory=list)
    text2: str = Field(default_factory=str, description="of pairs, beside text")
    texts2: list[str] = Field(default_factory=list, description="of pairs, beside texts; as many")


class Answer(BaseModel):
    """Of one label per text `label`, of several `labels`, of scores `score` alone."""

    label: str = Field(None, examples=["1"])
    probability: float = Field(None, description="of the label", examples=[0.98])
    labels: list[str] = Field(None, description="those that apply")
    probabilities: dict[str, float] = Field(None, examples=[{"0": 0.02, "1": 0.98}])
    score: float = Field(None)


class Answers(BaseModel):
    predictions: list[Answer] = Field(description="of each text, in order")


class Health(BaseModel):
    status: str = Field(examples=["ok"])
    task: str = Field(examples=["classification"])
    label_names: list[str] = Field(examples=[["0", "1"]])
    pairs: bool
    max_texts: int = Field(examples=[1000])
    max_characters: int = Field(description="of a text", examples=[10_000])
    max_bytes: int = Field(description="of a body", examples=[4_000_000])
    version: str = Field(description="the first digits of the graph's SHA-256")


class Error(BaseModel):
    error: str = Field(description="what is wrong and what to do, in one line",
                       examples=["texts[3]: not a string"])


EXAMPLES = [{"text": "이 영화 진짜 재밌다"}, {"texts": ["이 영화 진짜 재밌다", "돈이 아깝다"]}]
OF_PAIRS = [{"text": "이 영화 진짜 재밌다", "text2": "정말 재미있는 영화"},
            {"texts": ["이 영화 진짜 재밌다", "돈이 아깝다"], "texts2": ["정말 재미있는 영화", "돈 낭비"]}]


WRONG = {"model_type": 'not an object; send {"text": "…"}', "string_type": "not a string",
         "list_type": "not a list of strings",
         "extra_forbidden": "unknown; known are text and texts, and beside them text2 and texts2"}


def columns_of(body: bytes, predictor, args) -> list[list[str]]:
    """The texts of a body, and of pairs the second texts. Raises HTTPException."""
    try:
        asked = Question.model_validate(json.loads(body.decode()))
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"byte {error.start} of the body is not UTF-8; convert it") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"[{key}]" if isinstance(key, int) else key for key in wrong["loc"]) or "the body"
        raise HTTPException(422, f"{place[:100]}: {WRONG.get(wrong['type'], wrong['msg'])}") from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f'the body is not JSON ({error}); send {{"text": "…"}}') from None
    given = asked.model_fields_set
    first = "texts" if "texts" in given else "text"
    second = f"{first}2"
    if first not in given or given - {first, second}:
        raise HTTPException(422, f"{', '.join(sorted(given)) or 'nothing'} given; send either text or texts, "
                                 f"and of pairs beside it text2 or texts2")
    if predictor.pairs and second not in given:
        raise HTTPException(422, f"{second} is missing: this graph reads pairs of texts")
    if second in given and predictor.pairs is False:
        raise HTTPException(422, f"{second} is not wanted: this graph reads single texts, not pairs")
    columns = [value if isinstance(value, list) else [value]
               for value in (getattr(asked, name) for name in (first, second) if name in given)]
    if not columns[0]:
        raise HTTPException(422, "texts is empty; send at least one")
    if len(columns[0]) != len(columns[-1]):
        raise HTTPException(422, f"texts has {len(columns[0])} rows, texts2 has {len(columns[-1])}")
    if len(columns[0]) > args.max_texts:
        raise HTTPException(413, f"{len(columns[0])} texts; at most {args.max_texts} in a request")
    for name, column in zip((first, second), columns, strict=False):
        try:
            checked(column, name)
        except ValueError as error:  # a lone surrogate
            reason = str(error) if first == "texts" else str(error).replace(f"{name}[0]", name)  # no list
            raise HTTPException(422, reason) from None
        for row, text in enumerate(column):
            if len(text) > args.max_characters:
                at = f"{name}[{row}]" if first == "texts" else name
                raise HTTPException(413, f"{at} has {len(text)} characters; at most {args.max_characters}")
    return columns


def predictions(predictor, found) -> list[dict]:
    """What predict returned -> one object per text."""
    chosen, rows = predictor.chosen(found), found.tolist()
    if predictor.task == "regression":
        return [{"score": round(score, 6)} for score in chosen]
    shares = [dict(zip(predictor.label_names, (round(p, 6) for p in row), strict=True)) for row in rows]
    if predictor.task == "multilabel":
        return [{"labels": labels, "probabilities": share}
                for labels, share in zip(chosen, shares, strict=True)]
    return [{"label": label, "probability": share[label], "probabilities": share}
            for label, share in zip(chosen, shares, strict=True)]


# ---- the worker --------------------------------------------------------------------------------------------


class Together:
    """Small requests that came in the same moment, answered by one call: a third less work for each."""

    def __init__(self, predictor):
        self.predictor, self.waiting = predictor, {1: [], 2: []}  # by the number of columns

    async def predict(self, columns: list[list[str]]):
        loop, waiting = asyncio.get_running_loop(), self.waiting[len(columns)]
        if not waiting:
            loop.call_soon(self._answer, waiting)  # after all others that are ready now
        waiting.append((columns, future := loop.create_future()))
        return await future

    def _answer(self, waiting: list):
        requests = waiting.copy()
        waiting.clear()
        columns = zip(*(columns for columns, _ in requests), strict=True)
        try:
            found = self.predictor.predict(*(list(itertools.chain.from_iterable(each)) for each in columns))
        except Exception as error:
            found = error
        end = 0
        for (first, *_), future in requests:
            end += len(first)
            if future.done():
                continue  # it timed out
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found[end - len(first) : end])


class Patient(HttpToolsProtocol):
    """uvicorn's, with limits for the headers of a request, which have none there: their time and size; and
    deaf to offers of another protocol, which curl --http2 and Java make."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.head = 0  # bytes that have come of the headers; None after them
        self.limit = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def data_received(self, data):
        if self.head is not None:
            self.head += len(data)
            if self.head > HEAD:
                return self.transport.close()
            head, *body = data.partition(b"\r\n\r\n")
            data = b"".join([UPGRADE.sub(b"", head), *body])
        super().data_received(data)

    def on_message_begin(self):
        self.head = 0
        self.limit.cancel()
        self.limit = self.loop.call_later(self.timeout_keep_alive, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self):
        self.head = None
        self.limit.cancel()
        super().on_headers_complete()

    def on_message_complete(self):
        self.head = 0
        super().on_message_complete()


def application(predictor, args) -> FastAPI:
    largest = (2000 * args.max_texts + 12 * args.max_characters) * (1 if predictor.pairs is False else 2)
    version = hashlib.sha256(Path(args.onnx).read_bytes()).hexdigest()[:12]
    together, pool, held = Together(predictor), ThreadPoolExecutor(1, "long"), 0
    app = FastAPI(title=Path(args.onnx).name, version=version, redoc_url=None)
    asked = Question.model_json_schema() | {"examples": OF_PAIRS if predictor.pairs else EXAMPLES}
    error = {"model": Error}

    def answer_many(body: bytes) -> list[dict]:
        return predictions(predictor, predictor.predict(*columns_of(body, predictor, args)))

    @app.post("/predict", responses={200: {"model": Answers}, "4XX": error, "5XX": error},
              openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
                  "schema": asked}}}})
    async def predict(request: Request) -> Response:
        """Answer one text or many.

        400: not UTF-8 or not JSON. 413: too many texts, or too long. 422: not what this graph reads.
        408, 504: the body, or the answer, took too long. 503: too much is waiting.
        """
        nonlocal held
        body, size, late = bytearray(), int(request.headers.get("content-length", 0)), 408
        try:
            with anyio.fail_after(args.timeout):
                if size <= HELD * largest:
                    size = 0
                    async for chunk in request.stream():  # to its end, so that the client reads the answer
                        size += len(chunk)
                        if size > HELD * largest:
                            break
                        if size <= largest and held + len(chunk) <= HELD * largest:
                            body += chunk
                            held += len(chunk)
                if size > largest:
                    raise HTTPException(413, f"the body has more than {largest} bytes; send fewer texts")
                if size > len(body):
                    raise HTTPException(503, "too many texts are waiting; try again", {"Retry-After": "1"})
                late = 504
                if size <= SMALL:
                    found = await together.predict(columns_of(bytes(body), predictor, args))
                    answers = predictions(predictor, found)
                else:  # in a thread, so that others are answered meanwhile
                    loop = asyncio.get_running_loop()
                    answers = await loop.run_in_executor(pool, answer_many, bytes(body))
                return JSONResponse({"predictions": answers})
        except TimeoutError:
            raise HTTPException(late, f"the {'body' if late == 408 else 'answer'} took longer than "
                                f"{args.timeout} s; send fewer texts at once, or later") from None
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            held -= len(body)

    @app.api_route("/predict", methods=["GET", "HEAD"], include_in_schema=False)
    async def not_asked():
        raise HTTPException(405, headers={"Allow": "POST"})

    @app.get("/health")
    async def health() -> Health:
        return Health(status="ok", task=predictor.task, label_names=predictor.label_names,
                      pairs=bool(predictor.pairs), max_texts=args.max_texts,
                      max_characters=args.max_characters, max_bytes=largest, version=version)

    @app.head("/health", include_in_schema=False)
    async def alive() -> Response:
        return Response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        reason, headers = error.detail, dict(error.headers or {})
        if error.status_code in (404, 405):
            reason = f"not {request.method} {request.url.path}, but POST /predict, GET /health or GET /docs"
        if error.status_code in (408, 413, 503):
            headers["Connection"] = "close"  # the rest of the body may never come
        return JSONResponse({"error": " ".join(reason.split())}, error.status_code, headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed; its log says why"}, 500)

    if WEB.is_dir():
        app.mount("/", StaticFiles(directory=WEB, html=True))
    else:
        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return RedirectResponse("/docs")
    return app


def serve(args, sock, writer) -> None:
    try:
        predictor = Predictor(args.onnx)
    except PredictorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    server = uvicorn.Server(uvicorn.Config(
        application(predictor, args), http=Patient, ws="none", log_level="warning", access_log=False,
        timeout_keep_alive=args.timeout, timeout_graceful_shutdown=args.timeout))

    def follow():
        multiprocessing.parent_process().join()  # killed: nobody would end this one
        server.should_exit = True

    threading.Thread(target=follow, daemon=True).start()
    writer.send(True)
    writer.close()
    server.run([sock])
