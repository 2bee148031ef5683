"""serving/web: the page in a real browser, from a server and without one; its tokenizers beside Python's.

    SCREENSHOTS=docs python -m pytest tests/test_web.py -m optional -k pictures      # writes docs/page*.png

Needs Debian's chromium, chromium-driver and fonts-nanum; node 20 or later with npm.
"""

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import subprocess
import threading
import time
import unicodedata
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import reviews
from test_pairs import texts as pair_texts
from test_predictor import FORMS, exported, student_of
from tokenizers import Tokenizer

import train_tokenizer
from data.examples import read_examples
from student import Student, StudentConfig

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = pytest.mark.optional

ROOT = Path(__file__).parent.parent
WEB = ROOT / "serving" / "web"
SAMPLE = [ROOT / "data" / "sample" / f"{name}.tsv" for name in ("train", "unlabeled")]
TEXT = "연기도 음악도 훌륭한데 결말이 너무 아쉽다"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--lang=ko", "--accept-lang=ko",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no network


# ---- a server, a browser -----------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    """A folder, and the two addresses of serving/server.py if the server has a predictor."""

    def log_message(self, *args):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        known = self.server.predictor
        if self.path != "/health" or known is None:
            return super().do_GET()
        return self.answer(200, {"status": "ok", "task": known.task, "label_names": known.label_names,
                                 "pairs": bool(known.pairs), "max_texts": 9, "max_characters": 1000})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        if self.server.slow in asked["texts"]:
            self.server.go.wait(30)
        if self.server.failing:
            return self.answer(*self.server.failing)
        assert len(asked["texts"]) <= 9 and sum(map(len, asked["texts"])) <= 2000
        found = predictions(self.server.predictor, asked["texts"], asked.get("texts2"))
        return self.answer(200, {"predictions": found})


def predictions(predictor, *columns) -> list[dict]:
    rows = []
    for row, answer in zip(predictor.predict(*columns).tolist(), predictor.answers(*columns), strict=True):
        shares = dict(zip(predictor.label_names, row, strict=True))
        rows.append({"classification": {"label": answer, "probability": max(row), "probabilities": shares},
                     "multilabel": {"labels": answer, "probabilities": shares},
                     "regression": {"score": answer}}[predictor.task])
    return rows


@contextlib.contextmanager
def serving(folder, predictor=None):
    """A server of the folder; .url, .asked: the bodies it got, .failing: (status, body) that it answers,
    .slow: a text that waits for .go."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        server.predictor, server.asked, server.failing = predictor, [], None
        server.slow, server.go = None, threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Page:
    """A page in the browser; what a reader does and sees."""

    def __init__(self, driver, downloads):
        self.driver, self.downloads = driver, downloads
        self.run = driver.execute_script

    def open(self, url, language="ko", width=1000, height=900):
        agent = self.run("return navigator.userAgent")
        self.driver.execute_cdp_cmd("Emulation.setUserAgentOverride",
                                    {"userAgent": agent, "acceptLanguage": language})
        self.size(width, height)
        self.driver.get(url)
        self.until(lambda: self.text("privacy"))  # the model is there

    def size(self, width, height):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})

    def __getitem__(self, name):
        return self.driver.find_element(By.ID, name)

    def text(self, name):
        return self[name].text

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def until(self, condition):
        return WebDriverWait(self.driver, 60).until(lambda driver: condition())

    def type(self, text, box="text"):
        before = self.run("return document.querySelector('#marked').innerHTML")
        self[box].clear()
        self[box].send_keys(text)
        self.until(lambda: self.run("return document.querySelector('#marked').innerHTML") != before)
        time.sleep(0.5)  # longer than the page waits for another key

    def changes(self):
        """[(word, change)] of the list below the words."""
        found = [span.text.rsplit(" ", 1) for span in self.all("#changes dd span")]
        return [(word, float(change.replace("−", "-"))) for word, change in found]

    def drop(self, path):
        """A file, as a hand drops it."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", self["drop"])
        place = self.run("return arguments[0].getBoundingClientRect()", self["drop"])
        event = {"x": place["x"] + 20, "y": place["y"] + 20,
                 "data": {"items": [], "files": [str(path)], "dragOperationsMask": 1}}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **event})

    def downloaded(self, name):
        """The bytes of the file that the page gave."""
        self.until(lambda: (self.downloads / name).is_file())
        return (self.downloads / name).read_bytes()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser; run: apt-get install chromium chromium-driver fonts-nanum")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    driver.set_script_timeout(300)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, tmp_path):
    (tmp_path / "downloads").mkdir()
    driver.execute_cdp_cmd("Browser.setDownloadBehavior",
                           {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")})
    driver.get_log("browser")  # empties it
    yield Page(driver, tmp_path / "downloads")
    lines = [line["message"] for line in driver.get_log("browser")]  # exceptions, what the policy forbids
    assert not [line for line in lines if "Failed to load resource" not in line]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The shipped student behind a server."""
    student = Student.load(ROOT / "models" / "base.pt")
    with serving(WEB, exported(student, tmp_path_factory.mktemp("base") / "base.onnx")) as server:
        yield server


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """dist/ of the shipped small student."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node, or no npm; run: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("static") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    exported(Student.load(ROOT / "models" / "small.pt"), folder / "small.onnx")
    subprocess.run(["npm", "ci", "--ignore-scripts", "--silent"], cwd=folder, check=True)
    subprocess.run(["node", "build.js", "small.onnx"], cwd=folder, check=True, capture_output=True)
    return folder / "dist"


# ---- the answer to what is typed ---------------------------------------------------------------------------


def left_out(text: str) -> list[str]:
    """The text without each of its words."""
    words = text.split()
    return [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]


def test_typing_gives_the_answer_and_what_each_word_changes(page, base):
    page.open(base.url)
    base.asked.clear()
    page.type(f"  {TEXT}\n")
    found = base.predictor.predict([TEXT, *left_out(TEXT)])
    best = found[0].argmax()
    assert page.text("answer") == f"{base.predictor.label_names[best]} {found[0, best]:.1%}"
    assert [row.text.split("\n") for row in page.all("#classes button")] == [
        [name, f"{p:.1%}"] for name, p in zip(base.predictor.label_names, found[0].tolist(), strict=True)]
    changes = dict(zip(TEXT.split(), 100 * (found[0, best] - found[1:, best]).astype(float), strict=True))
    listed = page.changes()
    assert dict(listed) == pytest.approx(changes, abs=0.0501)
    assert [c > 0 for _, c in listed] == sorted((c > 0 for _, c in listed), reverse=True)
    marked = {mark.text for mark in page.all("#marked mark")}
    assert marked == {word for word, c in changes.items() if abs(c) >= max(map(abs, changes.values())) / 10}
    for mark in page.all("#marked mark"):  # the colour, and a sign that is no colour
        change = changes[mark.text]
        assert mark.get_attribute("class") == ("up" if change > 0 else "down")
        assert mark.value_of_css_property("text-decoration-style") == ("solid" if change > 0 else "dotted")
        assert float(mark.get_attribute("title").replace("−", "-")) == pytest.approx(change, abs=0.0501)
    assert page.text("marked") == TEXT
    assert base.asked[-1]["texts"] == [TEXT, *left_out(TEXT)]  # one request

    page.all("#classes button")[1 - best].click()  # the other class: the same changes, the other way
    assert dict(page.changes()) == pytest.approx({word: -c for word, c in listed}, abs=0.0501)
    page["text"].clear()
    page["text"].send_keys(" ")
    page.until(lambda: not page["details"].is_displayed())
    assert page.text("answer") == ""


@pytest.mark.parametrize("task, pair", [("multilabel", None), ("regression", None),
                                        ("classification", "align"), ("multilabel", "siamese")])
def test_other_tasks_and_pairs(page, tmp_path, task, pair):
    predictor = exported(student_of(task, pair=pair), tmp_path / "s.onnx")
    one, two = "단어5 단어9 단어11", "단어7 단어5"
    with serving(WEB, predictor) as server:
        page.open(server.url)
        assert page["text2"].is_displayed() == bool(pair)
        if pair:
            page["text2"].send_keys(two)
        page.type(one)
        rows = [[one, *left_out(one)]]
        if pair:
            rows = [rows[0] + [one] * 2, [two] * 4 + left_out(two)]
        found = predictor.predict(*rows)
        answer = predictor.answers(*(row[:1] for row in rows))[0]
        column = found[0].argmax()
        if task == "regression":
            assert page.text("answer") == f"{answer:.2f}" and not page.all("#classes button")
            changes, unit = found[0, 0] - found[1:, 0], 0.01  # the last digit that is shown
        else:
            assert page.text("answer") == (", ".join(answer) if task == "multilabel" else
                                           f"{answer} {found[0].max():.1%}")
            given = answer if task == "multilabel" else []
            assert [row.text.split("\n") for row in page.all("#classes button")] == [
                [f"{name} 해당" if name in given else name, f"{p:.1%}"]
                for name, p in zip(predictor.label_names, found[0].tolist(), strict=True)]
            changes, unit = 100 * (found[0, column] - found[1:, column]), 0.1
        expected = sorted(change for change in changes.tolist() if abs(change) >= unit / 2)
        np.testing.assert_allclose(sorted(c for _, c in page.changes()), expected, atol=0.51 * unit)


def test_a_late_answer_does_not_replace_a_newer_one(page, tmp_path):
    predictor = exported(student_of(), tmp_path / "s.onnx")
    with serving(WEB, predictor) as server:
        page.open(server.url)
        server.slow = "단어7"
        page["text"].send_keys("단어7")
        page.until(lambda: server.asked)
        page.type("단어5 단어9")
        shown = page.text("answer")
        server.go.set()
        time.sleep(0.5)
        assert page.text("answer") == shown and page.text("marked") == "단어5 단어9"


def test_errors_take_one_line_and_pass(page, tmp_path):
    predictor = exported(student_of(), tmp_path / "s.onnx")
    with serving(WEB, predictor) as server:
        page.open(server.url)
        server.failing = (422, {"error": "texts[0]: not a string"})
        page["text"].send_keys("단어5")
        page.until(lambda: page.text("error") == "texts[0]: not a string")
        assert page["error"].get_attribute("role") == "alert" and not page["details"].is_displayed()
        server.failing = (502, "<html>")  # of something between browser and server
        page["text"].send_keys(" 단어6")
        page.until(lambda: page.text("error") == "HTTP 502")
        server.failing = (503, {"error": "busy"})
        page["text"].send_keys(" 단어7")
        count = len(server.asked)
        page.until(lambda: len(server.asked) > count)
        server.failing = None  # it asks again by itself
        page.until(lambda: page["details"].is_displayed())
        assert page.text("error") == ""
    page["text"].send_keys(" 단어8")
    page.until(lambda: "서버가 답하지 않습니다" in page.text("error"))
    page["language"].click()
    assert "does not answer" in page.text("error")


def test_korean_first_and_english(page, base):
    page.open(base.url, "ko-KR")
    look = "return [document.documentElement.lang, document.title, document.querySelector('h1').textContent]"
    assert page.run(look) == ["ko", "문장 분류", "문장 분류"]
    page.type(TEXT)
    words = page.text("words")
    page["language"].click()
    assert page.run(look) == ["en", "Text classification", "Text classification"]
    assert page["language"].get_attribute("lang") == "ko" and page.text("language") == "한국어"
    assert page.text("words") != words
    shown = page.run("return document.body.innerText").replace("한국어", "")
    for word in TEXT.split():
        shown = shown.replace(word, "")
    assert not re.search("[가-힣]", shown)
    page.open(base.url, "en-US")
    assert page.run(look)[0] == "en" and "sent to the server" in page.text("privacy")
    page.open(base.url, "fr")
    assert page.run(look)[0] == "en"


def test_every_field_has_a_name(page, base):
    page.open(base.url)
    page.type(TEXT)
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = [(node["role"]["value"], node["name"]["value"]) for node in nodes if not node["ignored"]]
    fields = [(role, name) for role, name in found if role in ("textbox", "button")]
    assert ("textbox", "글을 적으면 바로 답합니다") in fields and ("button", "파일 고르기") in fields
    assert all(name for _, name in fields)
    assert {role for role, _ in found} >= {"heading", "status", "alert", "main"}  # what changes is told


def test_a_phone_scrolls_down_only(page, tmp_path):
    student = student_of("multilabel", thresholds=[0.0] * 3)  # all labels apply
    student.label_names = ["긴이름" * 20, "long name " * 10, "x" * 80]
    with serving(WEB, exported(student, tmp_path / "s.onnx")) as server:
        page.open(server.url, width=375, height=700)
        page.type(f"단어5 단어9 {'ㅋ' * 300} https://example.com/{'a' * 200}")
        assert page["marked"].is_displayed()
        assert page.run("return document.documentElement.scrollWidth") <= 375
        assert page.run("return [...document.querySelectorAll('body *')].every("
                        "e => !e.checkVisibility() || e.getBoundingClientRect().right <= 375)")


# ---- tables ------------------------------------------------------------------------------------------------


def put(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def answers(predictor, texts) -> list[list[str]]:
    return [[answer, f"{p:.4f}".rstrip("0")] for answer, p in predictor.decode(predictor.predict(texts))]


def test_a_csv_comes_back_with_two_more_columns(page, base, tmp_path):
    texts = ["최고의 영화", '그는 "별로"라고 했다', "한 줄,\n두 줄", "", "돈이 아깝다"]
    texts += [f"{i} {TEXT[i:]}" for i in range(20)]
    rows = [[str(i), text, "a,b"] for i, text in enumerate(texts)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([["번호", " 리뷰 ", "label"], *rows])  # CRLF, quotes
    page.open(base.url)
    page.drop(put(tmp_path, "영화.csv", buffer.getvalue(), "cp949"))
    content = page.downloaded("영화.answers.csv")
    assert content.startswith(b"\xef\xbb\xbf") and content.count(b"\r\n") == len(rows) + 1
    found = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert found[0] == ["번호", " 리뷰 ", "label", "predicted_label", "predicted_probability"]
    assert found[1:] == [row + more for row, more in zip(rows, answers(base.predictor, texts), strict=True)]
    assert "25행" in page.text("done") and not page["working"].is_displayed()
    lines = zip(content.decode("utf-8-sig").split("\r\n"), buffer.getvalue().split("\r\n"), strict=True)
    assert all(new.startswith(old) for new, old in lines)  # quotes as they were


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_tsv_has_plain_quotes_and_keeps_its_blank_lines(page, base, tmp_path, encoding):
    page.open(base.url)
    path = put(tmp_path, "a.tsv", 'id\tdocument\tx\n1\t"좋다\t\n\n2\t최고"라니\n3\t별로\t끝', encoding)
    page["file"].send_keys(str(path))
    (one, two, three) = answers(base.predictor, ['"좋다', '최고"라니', "별로"])
    assert page.downloaded("a.answers.tsv").decode("utf-8-sig") == (
        "id\tdocument\tx\tlabel\tprobability\n1\t\"좋다\t\t{}\t{}\n\n2\t최고\"라니\t\t{}\t{}\n3\t별로\t끝\t{}\t{}\n"
        .format(*one, *two, *three))


def test_a_column_without_a_known_name_is_asked_for(page, base, tmp_path):
    page.open(base.url)
    page.drop(put(tmp_path, "a.csv", "이름;의견\r\n가;좋다\r\n나;별로\r\n"))
    page.until(lambda: page["columns"].is_displayed())
    select = Select(page["column"])
    assert [option.text for option in select.options] == ["이름: 가", "의견: 좋다"]
    select.select_by_index(1)
    page["column"].send_keys(Keys.TAB, Keys.ENTER)
    one, two = answers(base.predictor, ["좋다", "별로"])
    assert page.downloaded("a.answers.csv").decode("utf-8-sig") == (
        f"이름;의견;label;probability\r\n가;좋다;{';'.join(one)}\r\n나;별로;{';'.join(two)}\r\n")
    page.drop(put(tmp_path, "b.csv", "의견\n좋다"))  # the only column
    assert page.downloaded("b.answers.csv").decode("utf-8-sig").split("\n")[1] == f"좋다,{','.join(one)}"


def test_tables_of_pairs_and_several_labels(page, tmp_path):
    predictor = exported(student_of("multilabel", pair="align"), tmp_path / "s.onnx")
    with serving(WEB, predictor) as server:
        page.open(server.url)
        rows = list(zip(pair_texts(15, seed=0, most=5), pair_texts(15, seed=1, most=5), strict=True))
        page.drop(put(tmp_path, "p.csv", "text2,text\n" + "".join(f"{two},{one}\n" for one, two in rows)))
        found = list(csv.reader(io.StringIO(page.downloaded("p.answers.csv").decode("utf-8-sig"))))
    expected = predictor.decode(predictor.predict(*map(list, zip(*rows, strict=True))))
    assert found[0] == ["text2", "text", "labels", "probability"]
    assert [row[2] for row in found[1:]] == [answer for answer, _ in expected]
    np.testing.assert_allclose([float(row[3]) for row in found[1:]], [p for _, p in expected], atol=5.1e-5)


@pytest.mark.parametrize("name, content, reason", [
    ("a.xlsx", b"PK\3\4", "CSV나 TSV 파일만"),
    ("a.csv", b"text\n\xff\xff\xff\n", "UTF-8도 CP949도"),
    ("a.csv", b"PK\3\4\0\0", "UTF-8도 CP949도"),
    ("a.csv", b"text\n", "행이 없습니다"),
    ("a.csv", b"", "행이 없습니다"),
    ("a.csv", b'text,x\na,b\n"c,d\ne,f\n', "3행: 따옴표"),
    ("a.csv", b"text,x\na,b\n\nc,d,e\n", "4행: 칸이 3개")])
def test_a_file_that_cannot_be_read(page, base, tmp_path, name, content, reason):
    page.open(base.url)
    (tmp_path / name).write_bytes(content)
    page.drop(tmp_path / name)
    page.until(lambda: reason in page.text("file-error"))
    page.drop(put(tmp_path, "good.csv", "text\n좋다\n"))
    assert page.downloaded("good.answers.csv")
    assert page.text("file-error") == ""


def test_a_server_that_fails_in_the_middle_gives_no_file(page, base, tmp_path):
    page.open(base.url)
    base.failing = (500, {"error": "the server failed"})
    try:
        page.drop(put(tmp_path, "a.csv", "text\n좋다\n"))
        page.until(lambda: page.text("file-error") == "the server failed")
        assert page.text("done") == "" and not list(page.downloads.iterdir())
    finally:
        base.failing = None


# ---- tokenizers --------------------------------------------------------------------------------------------

WRITTEN = """
이 영화 진짜 재밌다 돈이 아깝다 배우들 연기가 좋아요 최고의 반전, 지루해서 잤다. 10/10 3.5점 2,000원 ㅋㅋㅋㅋ
good movie Très bien déjà ÀÉ İstanbul straße ㅠㅠ ㅎㄷㄷ ㅇㅈ OST가 [UNK] [SEP] [PAD] x[MASK]y [unk] <s>
▁ ▁▁a a▁b 不好 電影가 日本語 ｶﾞｷﾞ カタカナ ﾡﾢ ﾤﾾ １２３ ＡＢ ﬁn ½ № ㈜ ㎏ 😀 👍🏽 👨‍👩‍👧 ❤️ 🇰🇷
^^;; --> ~!@#$%^&*()_+ `{}|\\ “따옴표” … — ·
"""
WORDS = WRITTEN.split()
ODD = ["\u1100\u1161", "\u1112", "\u1112\u1161\u11ab", "\u11a8", "\u110f\u0301", "\u11bf\u0301\u0301",
       "\uffa0", "\ufffd", "\u200b", "\u200d", "\ufeff", "\xad", "\0", "\1", "\x7f", "\x85", "\u2028",
       "\xa0", "\u3000", "\ue000", "\U000f0000", "\u0301", "e\u0301", "\u0323\u0307q", "\ud7b0",
       "\ua960", "\u3164", "\U00020000", "\u08e2", "\u2e43", "\u166d", "\u0600", "\t", "\n", "\r\n",
       "\v", "\f", "  ", "   "]
RANGES = [(0, 0x20), (0x20, 0x7f), (0x80, 0x180), (0x300, 0x370), (0x400, 0x500), (0x590, 0x700),
          (0x900, 0xa00), (0xe00, 0xe80), (0x1100, 0x1200), (0x2000, 0x3200), (0x4e00, 0x4f00),
          (0xac00, 0xd7a4), (0xd7b0, 0xd800), (0xe000, 0xe100), (0xf900, 0xfa00), (0xff00, 0xffef),
          (0x10000, 0x10400), (0x1d100, 0x1d200), (0x1f300, 0x1fa00), (0x20000, 0x20100),
          (0x2f800, 0x2f900), (0xe0000, 0xe0080)]


def hostile(count: int, seed: int) -> list[str]:
    """Texts of Korean, jamo, emoji, control characters, all of it mixed; some decomposed (NFD), some long."""
    draw, texts = random.Random(seed), []

    def word():
        return draw.choice(WORDS + ODD)

    def character():
        return chr(draw.randrange(*draw.choice(RANGES)))

    def syllable():
        return chr(draw.randrange(0xac00, 0xd7a4)) if draw.random() < 0.8 else " "

    kinds = [lambda: word() + " ", lambda: draw.choice([word, character])(), character, syllable]
    for i in range(count):
        text = "".join(kinds[i % 4]() for _ in range(draw.randrange(300 if i % 20 == 3 else 25)))
        texts.append(unicodedata.normalize("NFD", text) if i % 5 == 1 else text)
    return texts


def sample_texts():
    return [text for path in SAMPLE for text in read_examples(path).texts]


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def tokenizer(request) -> Tokenizer:
    texts, kind = sample_texts(), request.param
    words = train_tokenizer.count_words(texts, kind) if kind != "unigram" else None
    tokenizer = train_tokenizer.train(texts, words, kind, 2000, 2, 1000)
    tokenizer.enable_truncation(128)
    return tokenizer


ENCODE = """
import fs from "node:fs";
const { encoderOf } = await import(process.argv[1]);
const [json, texts] = JSON.parse(fs.readFileSync(0));
console.log(JSON.stringify(texts.map(encoderOf(json))));
"""


def node(code, folder, given):
    """Run code whose argument is the address of tokenizer.js."""
    command = ["node", "--input-type=module", "--eval", code, (folder / "tokenizer.js").as_uri()]
    return subprocess.run(command, input=given, capture_output=True, text=True, encoding="utf-8")


def test_ids_are_those_of_python(static, tokenizer):
    every = "".join(chr(i) for i in range(0x10000) if not 0xd800 <= i < 0xe000)  # the basic plane
    texts = hostile(1000, seed=0) + [every[i : i + 20] for i in range(0, len(every), 20)]
    texts += ["가".join(text) for text in texts[1000:]]
    found = json.loads(node(ENCODE, static, json.dumps([json.loads(tokenizer.to_str()), texts])).stdout)
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert not [text for text, ours, theirs in zip(texts, found, expected, strict=True) if ours != theirs]


def test_other_normalizers_are_refused(static):
    tokenizer = json.loads(Student.load(ROOT / "models" / "tiny.pt").tokenizer.to_str())
    ended = node(ENCODE, static, json.dumps([tokenizer | {"normalizer": {"type": "Lowercase"}}, []]))
    assert ended.returncode != 0 and "Lowercase" in ended.stderr


# ---- without a server --------------------------------------------------------------------------------------

RUN = """
const [texts, texts2, done] = arguments;
const here = (name) => new URL(name, location).href;
(async () => {
  const { connect, metadata } = await import(here("predict.js"));
  const { encoderOf } = await import(here("tokenizer.js"));
  const bytes = new Uint8Array(await (await fetch("model.onnx")).arrayBuffer());
  const encode = encoderOf(JSON.parse(metadata(bytes).tokenizer));
  const model = await connect();
  const predictions = await model.predict(texts, texts2);
  return { ids: texts.map(encode), names: model.label_names, predictions };
})().then(done, (error) => done({ error: String(error) }));
"""


def test_the_static_page_answers_as_python_does(page, static):
    predictor = exported(Student.load(ROOT / "models" / "small.pt"), static.parent / "again.onnx")
    texts = hostile(700, seed=1) + sample_texts()[:300]
    with serving(static) as server:  # a plain one: files only
        page.open(server.url)
        assert "떠나지 않습니다" in page.text("privacy")
        found = page.driver.execute_async_script(RUN, texts, None)
        loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(url.startswith(server.url) for url in loaded)
    assert any(url.endswith(".wasm") for url in loaded)
    assert found["ids"] == [encoding.ids for encoding in predictor.tokenizer.encode_batch(texts)]
    expected = predictor.predict(texts)
    shares = [[row["probabilities"][name] for name in predictor.label_names] for row in found["predictions"]]
    np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-5)
    assert [row["label"] for row in found["predictions"]] == predictor.answers(texts)
    page.type(TEXT)  # the server is gone: nothing more is needed
    probability = predictor.predict([TEXT]).max()
    assert page.text("answer") == f"{predictor.answers([TEXT])[0]} {probability:.1%}"
    page.drop(put(page.downloads.parent, "a.csv", f"text\n{TEXT}\n"))
    assert page.downloaded("a.answers.csv").decode().split(",")[-1] == f"{round(float(probability), 4)}\n"
    assert static.joinpath("model.onnx").stat().st_size < 1e6


@pytest.mark.parametrize("task", FORMS)
@pytest.mark.parametrize("pair", [None, "siamese", "align"])
def test_static_pages_of_every_task(page, static, tmp_path, task, pair):
    known = student_of(task, pair=pair)
    torch.manual_seed(1)
    config = StudentConfig(**vars(known.config) | {"vocab_size": 3000, "max_length": 20})
    tokenizer = Student.load(ROOT / "models" / "tiny.pt").tokenizer
    student = Student(config, tokenizer, known.label_names, task).eval()
    shutil.copytree(static, tmp_path / "dist")
    predictor = exported(student, tmp_path / "dist" / "model.onnx")
    columns = [["", " ", *(text for text, _ in reviews(20, seed)), TEXT * 5] for seed in (0, 1)]
    columns = columns[: 1 + bool(pair)]
    with serving(tmp_path / "dist") as server:
        page.open(server.url)
        found = page.driver.execute_async_script(RUN, *columns, *[None] * (2 - len(columns)))
    assert found["names"] == predictor.label_names
    expected = predictions(predictor, *columns)
    for ours, theirs in zip(found["predictions"], expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == (pytest.approx(value, abs=1e-4) if key not in ("label", "labels") else value)


def test_the_command_that_builds_names_what_is_missing(static, tmp_path):
    shutil.copy(WEB / "build.js", tmp_path)
    whole = static.parent
    for arguments, folder, word in [(["none.onnx"], whole, "none.onnx"), ([], whole, "MODEL.onnx"),
                                    ([str(static / "model.onnx")], tmp_path, "npm ci")]:
        ended = subprocess.run(["node", "build.js", *arguments], cwd=folder, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1) and word in ended.stderr
    assert (static / "model.onnx").is_file()


def test_the_lock_file_names_no_machine():
    assert "resolved" not in (WEB / "package-lock.json").read_text("utf-8")
    pinned = json.loads((WEB / "package.json").read_text("utf-8"))["dependencies"]
    assert all(re.fullmatch(r"[\d.]+", version) for version in pinned.values())


# ---- pictures ----------------------------------------------------------------------------------------------


def test_pictures(page, base, static, tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with serving(static) as server:
        for name, url, width in [("page", base.url, 820), ("page-phone", base.url, 375),
                                 ("page-static", server.url, 820)]:
            page.open(url, width=width, height=600)
            page.type(TEXT)
            page.run("document.activeElement.blur()")
            height = page.run("return document.documentElement.scrollHeight")
            page.size(width, height)
            page.driver.save_screenshot(str(folder / f"{name}.png"))
            picture = image.open(folder / f"{name}.png").convert("RGB")
            assert picture.size == (width, height) and len(picture.getcolors(10**6)) > 100
            picture.quantize(256).save(folder / f"{name}.png", optimize=True)
            assert (folder / f"{name}.png").stat().st_size < 60_000
