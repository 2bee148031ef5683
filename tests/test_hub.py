"""from_hub of Student and Predictor, extra/publish.py, against a server here that speaks the hub's API."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from helpers import read, refused, run

import runtime
from student import Student, StudentError

ROOT = Path(__file__).parent.parent
STUDENT = "students/tiny/student.pt"
TEXTS = ["최고 추천", "지루 실망 영화"]
TOKEN = "hf_of_this_test"
SCRIPT = Path(sys.argv[0]).name  # what made_by calls the script of the kit's students


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {name: {revision: {file: bytes}}}; every commit is also called main."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def commit(self, repo: str, files: dict, *names: str) -> str:
        files = {**self.repos[repo].get("main", {}), **files}
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos[repo] |= dict.fromkeys((oid, "main", *names), files)
        return oid

    def oid(self, repo: str, revision: str) -> str:
        files = self.repos[repo][revision]
        return next(name for name, each in self.repos[repo].items() if each is files and len(name) == 40)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status: int, content: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.server.asked.append(self.path)
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        revisions = self.server.repos.get(repo)
        if revisions is None:
            return self.send(404, X_Error_Code="RepoNotFound")
        if revision not in revisions:
            return self.send(404, X_Error_Code="RevisionNotFound")
        oid = self.server.oid(repo, revision)
        if file not in revisions[revision]:
            return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        content = revisions[revision][file]
        return self.send(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=oid)

    do_HEAD = do_GET

    def do_POST(self):
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self.reply(errors=[], warnings=[])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, b'{"error": "Invalid username or password."}')
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.server.repos:
                return self.send(409, json.dumps({"url": f"{self.server.url}/{repo}"}).encode())
            self.server.repos[repo] = {}
            return self.reply(url=f"{self.server.url}/{repo}")
        _, _, _, user, name, what, revision = self.path.split("/")
        assert revision == "main"
        if what == "preupload":
            return self.reply(files=[{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                     for file in json.loads(body)["files"]])
        assert what == "commit"
        lines = [json.loads(line) for line in body.splitlines()]
        oid = self.server.commit(f"{user}/{name}", {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines if line["key"] == "file"})
        url = f"{self.server.url}/{user}/{name}/commit/{oid}"
        return self.reply(success=True, commitUrl=url, commitOid=oid)

    def reply(self, **values):
        self.send(200, json.dumps(values).encode(), Content_Type="application/json")


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()
    server.server_close()


def ask(hub, home, *command, **more) -> subprocess.CompletedProcess:
    """python COMMAND with the hub's endpoint: huggingface_hub reads its settings once, at its import."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env = {**ours, "HF_HOME": str(home), "HF_ENDPOINT": hub.url,
           "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT), **more}
    return subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True, text=True,
                          timeout=300, check=False)


LOAD = """
import json, sys
from student import Student, StudentError
for repo, revision in json.loads(sys.argv[1]):
    try:
        print(json.dumps(Student.from_hub(repo, revision).predict(json.loads(sys.argv[2])).tolist()))
    except StudentError as error:
        print(json.dumps(str(error)))
"""


def from_hub(hub, home, *asked, **more) -> list:
    """Of each (repository, revision) the probabilities of TEXTS, or the StudentError's text."""
    done = ask(hub, home, "-c", LOAD, json.dumps(asked), json.dumps(TEXTS), **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def students(here):
    """Two students with different probabilities: their bytes, and the probabilities of TEXTS."""
    one = Student.load(STUDENT)
    contents = [Path(STUDENT).read_bytes()]
    one.config.temperature *= 3
    one.save("hot.pt")
    contents.append(Path("hot.pt").read_bytes())
    found = [Student.load(content).predict(TEXTS).tolist() for content in contents]
    assert found[0] != found[1]
    return contents, found


# ---- Student.from_hub --------------------------------------------------------------------------------------


def test_a_student_of_the_hub_by_revision_and_from_the_cache(hub, students, tmp_path):
    """A branch, a tag and a commit; then with no network at all; and what is not there, in one line."""
    contents, found = students
    hub.repos = {"user/name": {}, "user/empty": {}}
    first = hub.commit("user/name", {"student.pt": contents[0]}, "v1")
    hub.commit("user/name", {"student.pt": contents[1]})
    hub.commit("user/empty", {"README.md": b"nothing"})
    *loaded, revision, repo, empty, broken = from_hub(
        hub, tmp_path / "hf", ("user/name", None), ("user/name", "v1"), ("user/name", first),
        ("user/name", "v2"), ("user/missing", None), ("user/empty", None), ("user//name", None))
    assert loaded == [found[1], found[0], found[0]]
    for text, *words in ((revision, "user/name: ", "v2", "no such branch, tag or commit"),
                         (repo, "user/missing: ", "no such repository"),
                         (empty, "user/empty: ", "student.pt", "no such file"), (broken, "user//name: ")):
        assert isinstance(text, str) and "\n" not in text and all(word in text for word in words), text

    before = len(hub.asked)
    *loaded, absent, other = from_hub(
        hub, tmp_path / "hf", ("user/name", None), ("user/name", "v1"), ("user/name", first),
        ("user/other", None), ("user/name", "v2"), HF_HUB_OFFLINE="1")
    assert loaded == [found[1], found[0], found[0]] and len(hub.asked) == before
    assert absent.startswith("user/other: ") and "not in the cache" in absent
    assert other.startswith("user/name: ") and "v2" in other and "not in the cache" in other


def test_a_file_of_the_cache_that_changed_is_refused(hub, students, tmp_path):
    """It is a whole student.pt, so no checksum inside it tells: the hub's hash does."""
    contents, found = students
    hub.repos = {"user/name": {}}
    hub.commit("user/name", {"student.pt": contents[0]})
    assert from_hub(hub, tmp_path / "hf", ("user/name", None)) == [found[0]]
    [blob] = [path for path in (tmp_path / "hf").rglob(hashlib.sha256(contents[0]).hexdigest())
              if path.is_file()]
    blob.write_bytes(contents[1])
    [text] = from_hub(hub, tmp_path / "hf", ("user/name", None), HF_HUB_OFFLINE="1")
    assert "student.pt: damaged" in text and f"delete {blob}" in text


GRAPH = """
import json, sys
sys.modules["torch"] = None
from serving.predictor import Predictor, PredictorError
for given in json.loads(sys.argv[1]):
    try:
        print(json.dumps(Predictor.from_hub(**given).predict(json.loads(sys.argv[2])).tolist()))
    except PredictorError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.optional
def test_a_graph_that_was_published_comes_back_without_torch(hub, students, tmp_path):
    """As with a student: revisions, the cache, the hash; one older than its student is not published."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, found = students
    run("extra.export_onnx", "hot.pt hot.onnx")
    run("extra.publish", "hot.pt user/name --license mit --dry-run card")
    assert 'Predictor.from_hub("user/name").answers(' in front_and_body("card")[1]
    done = ask(hub, tmp_path / "hf", ROOT / "extra/publish.py", "card", "user/name", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    files = hub.repos["user/name"]["main"]
    assert files.keys() == {"student.pt", "README.md", "student.onnx"}
    old = hub.oid("user/name", "main")
    hub.commit("user/name", {"student.onnx": b"new", "int8.onnx": files["student.onnx"]})

    def graphs(*given, **more):
        out = ask(hub, tmp_path / "hf", "-c", GRAPH, json.dumps(given), json.dumps(TEXTS), **more)
        assert out.returncode == 0, out.stderr
        return [json.loads(line) for line in out.stdout.splitlines()]

    pinned, named = {"repo": "user/name", "revision": old}, {"repo": "user/name", "file": "int8.onnx"}
    absent = {"repo": "user/name", "file": "none.onnx", "revision": "v2"}
    *loaded, error = graphs(pinned, named, absent)
    assert loaded == [[pytest.approx(row, abs=1e-5) for row in found[1]]] * 2
    assert error.startswith("user/name: ") and all(word in error for word in ("none.onnx", "v2", "no such"))
    before = len(hub.asked)
    assert graphs(pinned, named, HF_HUB_OFFLINE="1") == loaded and len(hub.asked) == before
    [blob] = [path for path in (tmp_path / "hf").rglob(hashlib.sha256(files["student.onnx"]).hexdigest())
              if path.is_file()]
    blob.write_bytes(blob.read_bytes() + b"\x00")
    [error] = graphs(pinned, HF_HUB_OFFLINE="1")
    assert "damaged" in error and f"delete {blob}" in error

    os.utime("hot.onnx", (0, 0))
    refused(lambda: run("extra.publish", "hot.pt user/name --license mit --dry-run again"),
            r"hot\.onnx", "older")


def test_a_machine_without_huggingface_hub_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(StudentError, match="pip install huggingface_hub"):
        Student.from_hub("user/name")


# ---- extra/publish.py --------------------------------------------------------------------------------------


def test_what_is_published_comes_back(hub, students, tmp_path):
    """A new repository, then one more commit; the revision that is printed is the one to pin."""
    contents, found = students
    publish_, env = [ROOT / "extra/publish.py"], {"HF_TOKEN": TOKEN}
    done = ask(hub, tmp_path / "hf", *publish_, STUDENT, "user/name", "--license", "mit", **env)
    assert done.returncode == 0, done.stderr
    again = ask(hub, tmp_path / "hf", *publish_, "hot.pt", "user/name", "--license", "mit", **env)
    assert again.returncode == 0, again.stderr
    pins = [out.stdout.splitlines()[-1].split('revision="')[1].removesuffix('")') for out in (done, again)]
    assert [hub.repos["user/name"][pin]["student.pt"] for pin in pins] == contents
    assert hub.repos["user/name"][pins[0]].keys() == {"student.pt", "README.md"}
    assert b'license: "mit"' in hub.repos["user/name"]["main"]["README.md"]
    assert from_hub(hub, tmp_path / "hf", *(("user/name", pin) for pin in pins)) == found


def test_an_upload_that_the_hub_refuses_is_one_line(hub, students, tmp_path):
    done = ask(hub, tmp_path / "hf", ROOT / "extra/publish.py", STUDENT, "user/name", "--license", "mit")
    assert done.returncode == 2 and not hub.repos
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: user/name: ") and "401" in last and "hf auth login" in last
    assert "Traceback" not in done.stderr


def front_and_body(folder) -> tuple[dict, str]:
    _, front, body = Path(folder, "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_says_what_the_file_says_and_no_folder(here, capsys):
    """The command is that of the log beside the file; each path in it is reduced to a name."""
    log = Path("students/tiny/log.jsonl")
    first, *rest = log.read_text("utf-8").splitlines()
    first = json.loads(first)
    first["arguments"] |= {"train": ["/home/someone/train.tsv", "..\\secret\\more.tsv"],
                           "valid": "a/valid.tsv"}
    log.write_text("\n".join([json.dumps(first), *rest]), "utf-8")
    run("evaluate", f"{STUDENT} --data test.tsv --json --device cpu")
    report = capsys.readouterr().out
    Path("report.json").write_text(report, "utf-8")
    run("extra.publish", "students/tiny user/name --license cc-by-4.0 --language no --teacher klue/bert-base "
                         "--scores report.json --dry-run card --data", "two | three")
    front, body = front_and_body("card")
    assert front == {"language": "no", "license": "cc-by-4.0", "pipeline_tag": "text-classification",
                     "tags": ["distillation", "bilstm"], "base_model": "klue/bert-base"}
    assert Path("card/student.pt").read_bytes() == Path(STUDENT).read_bytes()
    model, [command] = json.loads(report)["models"][0], [
        line for line in body.splitlines() if line.startswith("python ")]
    low, high = model["interval"]
    assert f"| accuracy | {model['accuracy']:.4f} | {low:.4f}–{high:.4f} | test.tsv, 40 rows |" in body
    assert f"| accuracy | {read(STUDENT)['scores']['valid_accuracy']:.4f} | – |" in body
    assert f"{model['bytes']:,} bytes" in body and f"{model['parameters']:,} parameters" in body
    assert command.startswith(f"python {SCRIPT} --train train.tsv more.tsv ")
    assert "--valid valid.tsv" in command and "--seed 0" in command and "--output-dir" not in command
    assert not any(word in body for word in ("someone", "secret", "home", "students"))
    use = body.split("```python\n")[1].split("```")[0]
    assert 'Student.from_hub("user/name")' in use and use.count("\n") == 3


def test_the_command_is_not_that_of_another_log(here):
    first, *rest = Path("students/tiny/log.jsonl").read_text("utf-8").splitlines()
    first = json.loads(first)
    first["fingerprints"]["the tokenizer"] = "0"
    Path("students/tiny/log.jsonl").write_text("\n".join([json.dumps(first), *rest]), "utf-8")
    run("extra.publish", f"{STUDENT} user/name --license mit --dry-run card")
    body = front_and_body("card")[1]
    assert f"python {SCRIPT} --epochs 3" in body and "train.tsv" not in body


def test_an_edited_card_stays_as_it_is(here):
    run("extra.publish", f"{STUDENT} user/name --license mit --dry-run card")
    Path("card/README.md").write_text("mine", "utf-8")
    run("extra.publish", "card user/name --dry-run again")
    assert Path("again/README.md").read_text("utf-8") == "mine"
    assert Path("again/student.pt").read_bytes() == Path(STUDENT).read_bytes()


def test_what_cannot_be_published_is_refused_and_nothing_written(here):
    evaluated = {"data": "x", "rows": 1, "models": [{"model": "other.pt", "bytes": 1}]}
    Path("other.json").write_text(json.dumps(evaluated), "utf-8")
    for flags, *words in (("user/name", "--license"), ("name --license mit", "user/name"),
                          ("user/name --license mit --scores other.json", "other.json", "student.pt"),
                          ("user/name --license mit --scores train.tsv", "train.tsv", "evaluate.py")):
        refused(lambda flags=flags: run("extra.publish", f"{STUDENT} {flags} --dry-run card"), *words)
    with pytest.raises(StudentError, match=r"^card: cannot read"):
        run("extra.publish", "card user/name --license mit --dry-run card")
    assert not Path("card").exists()
    runtime.save_together({Path("card/README.md"): "another"})
    refused(lambda: run("extra.publish", f"{STUDENT} user/name --license mit --dry-run card"),
            r"card/README\.md", "exists")
    assert [path.name for path in Path("card").iterdir()] == ["README.md"]
