"""data/prepare.py against a loopback server with tiny files in the publishers' formats. No network."""

import csv
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import refused

from data import prepare
from data.examples import read_examples
from data.prepare import File

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS = ("train", "valid", "test")


def nsmc(first: int, rows: int) -> bytes:
    """Ids from `first`, labels alternating; with a quote, a blank and U+0085 (ends a line for some)."""
    texts = {0: '"따옴표로 시작', 1: "", 2: "중간\u0085줄"}
    lines = [f"{first + i}\t{texts.get(i, f'영화 {first + i}')}\t{i % 2}" for i in range(rows)]
    return ("id\tdocument\tlabel\n" + "\n".join(lines) + "\n").encode()


FILES = {
    "ratings_train.txt": nsmc(1000, 100),
    "ratings_test.txt": nsmc(5000, 30),
    # 200 rows, stars 1 2 4 5 in turn; the text tells the stars
    "naver_shopping.txt": "".join(f"{s}\t별 {s} 상품 {i}\n" for i in range(50) for s in "1245").encode(),
    # one text with a second tab and a CR inside, no line end after the last line
    "steam.txt": "\n".join(f"{i % 2}\t게임 {i}" + ("\t탭\r끝" if i == 7 else "") for i in range(60)).encode(),
}
COUNTS = {  # rows, counts of labels, slack
    "ratings_train.txt": (100, {"1": 50}, 1),
    "ratings_test.txt": (30, {"1": 15}, 0),
    "naver_shopping.txt": (200, {"1": 100}, 0),
    "steam.txt": (60, {"1": 30}, 0),
}
REVIEWS = ("nsmc", "shopping", "steam")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        server.requests.append(name)
        if name not in server.files:
            return self.send_error(404)
        body = server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])  # the connection ends with the handler

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(monkeypatch):
    """The loopback server; the corpora of reviews are there, with the tiny files' counts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.cut = dict(FILES), [], None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in REVIEWS:
        corpus = prepare.CORPORA[name]
        monkeypatch.setattr(corpus, "home", f"http://127.0.0.1:{server.server_port}/", raising=False)
        monkeypatch.setattr(corpus, "files", tuple(File(file.split, file.name, *COUNTS[file.name])
                                                   for file in corpus.files), raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def prepared(flags, *more):
    prepare.main(prepare.parse_args([*flags.split(), *map(str, more)]))


def not_prepared(flags, *patterns):
    return refused(lambda: prepared(flags), *patterns)


def rows(folder, *splits):
    """The rows of output files (of all, unless named) without the header, read without help of the kit."""
    found = []
    for split in splits or OUTPUTS:
        text = (Path(folder) / f"{split}.tsv").read_bytes().decode()
        assert text.endswith("\n") and "\r" not in text
        found += [tuple(line.split("\t")) for line in text[:-1].split("\n")[1:]]
    return found


def header(folder):
    headers = {(Path(folder) / f"{split}.tsv").read_text("utf-8").split("\n")[0] for split in OUTPUTS}
    assert len(headers) == 1
    return headers.pop()


def sizes(folder):
    return tuple(len(rows(folder, split)) for split in OUTPUTS)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_tsv(name, data, column="label"):
    lines = ("\t".join(row) + "\n" for row in [("text", column), *data])
    Path(name).write_text("".join(lines), encoding="utf-8")


def texts_of(count):
    return [(f"글 {i}", str(i % 2)) for i in range(count)]


# ---- the corpora -------------------------------------------------------------------------------------------


RAW = "https://raw.githubusercontent.com/"
UNSMILE = ["여성/가족", "남성", "성소수자", "인종/국적", "연령", "지역", "종교", "기타 혐오",
           "악플/욕설", "clean"]
INTENTS = ["fragment", "statement", "question", "command", "rhetorical question", "rhetorical command",
           "intonation-dependent utterance"]
INFERENCES = ["entailment", "contradiction", "neutral"]
KLUE, KORNLU = "KLUE-benchmark/KLUE/main/klue_benchmark/klue-", "kakaobrain/kor-nlu-datasets/master/"
PUBLISHED = {  # corpus: [(split, address, rows, counts of labels, slack)]
    # e9t/nsmc README: 150K, 50K, "random guess yields 50% accuracy"
    "nsmc": [("train", "e9t/nsmc/master/ratings_train.txt", 150_000, {"1": 75_000}, 1_500),
             ("test", "e9t/nsmc/master/ratings_test.txt", 50_000, {"1": 25_000}, 500)],
    # bab2min/corpus sentiment/README.md
    "shopping": [("train", "bab2min/corpus/master/sentiment/naver_shopping.txt", 200_000,
                  {"1": 81_177 + 18_786}, 0)],
    "steam": [("train", "bab2min/corpus/master/sentiment/steam.txt", 100_000, {"1": 49_996}, 0)],
    # README: 7,896 training set, 471 validation set
    "hate-speech": [("train", "kocohub/korean-hate-speech/master/labeled/train.tsv", 7_896, {}, 0),
                    ("test", "kocohub/korean-hate-speech/master/labeled/dev.tsv", 471, {}, 0)],
    # README, 2: rows and a table of labels
    "unsmile": [("train", "smilegate-ai/korean_unsmile_dataset/main/unsmile_train_v1.0.tsv", 15_005,
                 dict(zip(UNSMILE, [1599, 1347, 1138, 1728, 603, 1052, 1181, 569, 3146, 3739],
                          strict=True)), 3),
                ("test", "smilegate-ai/korean_unsmile_dataset/main/unsmile_valid_v1.0.tsv", 3_737,
                 dict(zip(UNSMILE, [394, 334, 280, 426, 146, 260, 290, 134, 786, 935], strict=True)), 0)],
    # README: 78,977(train) / 8,776 (validation) / 21,939 (test)
    "kmhas": [("train", "adlnlp/K-MHaS/main/data/kmhas_train.txt", 78_977, {}, 0),
              ("valid", "adlnlp/K-MHaS/main/data/kmhas_valid.txt", 8_776, {}, 0),
              ("test", "adlnlp/K-MHaS/main/data/kmhas_test.txt", 21_939, {}, 0)],
    # README: num_rows 40000, 5000, 5000
    "kote": [("train", "searle-j/KOTE/main/train.tsv", 40_000, {}, 0),
             ("valid", "searle-j/KOTE/main/val.tsv", 5_000, {}, 0),
             ("test", "searle-j/KOTE/main/test.tsv", 5_000, {}, 0)],
    # the card of the dataset klue on the Hugging Face hub: num_examples
    "klue-nli": [("train", KLUE + "nli-v1.1/klue-nli-v1.1_train.json", 24_998, {}, 0),
                 ("test", KLUE + "nli-v1.1/klue-nli-v1.1_dev.json", 3_000,
                  dict.fromkeys(INFERENCES, 1_000), 0)],
    "klue-sts": [("train", KLUE + "sts-v1.1/klue-sts-v1.1_train.json", 11_668, {}, 0),
                 ("test", KLUE + "sts-v1.1/klue-sts-v1.1_dev.json", 519, {}, 0)],
    # README: 942,854 of SNLI and MNLI, 2,490, 5,010; 5,749, 1,500, 1,379
    "kornli": [("train", KORNLU + "KorNLI/snli_1.0_train.ko.tsv", 550_152, {}, 0),
               ("train", KORNLU + "KorNLI/multinli.train.ko.tsv", 942_854 - 550_152, {}, 0),
               ("valid", KORNLU + "KorNLI/xnli.dev.ko.tsv", 2_490, dict.fromkeys(INFERENCES, 830), 0),
               ("test", KORNLU + "KorNLI/xnli.test.ko.tsv", 5_010, dict.fromkeys(INFERENCES, 1_670), 0)],
    "korsts": [("train", KORNLU + "KorSTS/sts-train.tsv", 5_749, {}, 0),
               ("valid", KORNLU + "KorSTS/sts-dev.tsv", 1_500, {}, 0),
               ("test", KORNLU + "KorSTS/sts-test.tsv", 1_379, {}, 0)],
    # README: train 6,888 개, test 688개
    "question-pair": [("train", "songys/Question_pair/master/kor_pair_train.csv", 6_888, {}, 0),
                      ("test", "songys/Question_pair/master/kor_Pair_test.csv", 688, {}, 0)],
}


def test_published_counts_and_addresses():
    found = {name: [(file.split, corpus.home + file.name, file.rows, file.counts, file.slack)
                    for file in corpus.files] for name, corpus in prepare.CORPORA.items()}
    for name, files in PUBLISHED.items():
        assert found[name] == [(split, RAW + address, *stated) for split, address, *stated in files]
    # pawsx/README.md: 49,401; 1,965 and 1,972 beside the rows that have NS for a text
    assert found["paws-x"] == [(split, f"https://storage.googleapis.com/paws/pawsx/{name}.tsv", rows, {}, 0)
                               for split, name, rows in (("train", "translated_train", 49_401),
                                                         ("valid", "dev_2k", 1_965 + 35),
                                                         ("test", "test_2k", 1_972 + 28))]
    assert found["hate-speech-bias"] == found["hate-speech-gender"] == found["hate-speech"]
    # images/portion.PNG: the intents of both files together; README: "split in train:test with ratio 9:1"
    train, test = found["3i4k"]
    assert [file[:2] for file in (train, test)] == [
        (split, RAW + f"warnikchow/3i4k/master/data/train_val_test/fci_{name}.txt")
        for split, name in (("train", "train_val"), ("test", "test"))]
    both = [train[3][name] + test[3][name] for name in INTENTS]
    assert both == [6_009, 18_300, 17_869, 12_968, 1_745, 1_087, 3_277]
    assert [file[2] for file in (train, test)] == [sum(file[3].values()) for file in (train, test)]
    assert sum(both) == 61_255
    assert all(abs(test[3][name] - n / 10) < 1 for name, n in zip(INTENTS, both, strict=True))


def test_nsmc_keeps_the_published_test_and_takes_valid_from_train(server, capsys):
    prepared("nsmc")
    assert sizes("data/nsmc") == (95, 5, 30) and header("data/nsmc") == "id\ttext\tlabel"

    def published(name):
        return [tuple(line.split("\t")) for line in FILES[name].decode()[:-1].split("\n")[1:]]

    assert rows("data/nsmc", "test") == published("ratings_test.txt")
    assert sorted(rows("data/nsmc", "train", "valid")) == published("ratings_train.txt")
    assert read_examples("data/nsmc/test.tsv").texts[:3] == ['"따옴표로 시작', "", "중간\u0085줄"]
    out = capsys.readouterr().out
    positives = sum(row[2] == "1" for row in rows("data/nsmc", "train"))
    assert re.search(rf"^train +95 +{95 - positives} +{positives} +data/nsmc/train.tsv$", out, re.M)
    assert re.search(r"^test +30 +15 +15 +data/nsmc/test.tsv$", out, re.M)
    assert out.endswith("next: python train_tokenizer.py --data data/nsmc/train.tsv\n")

    assert server.requests == ["ratings_train.txt", "ratings_test.txt"]
    assert Path("data/downloads/ratings_train.txt").read_bytes() == FILES["ratings_train.txt"]
    Path("data/nsmc/notes.txt").write_text("mine")
    before = bytes_of("data/nsmc")
    prepared("nsmc")
    assert len(server.requests) == 2  # nothing is downloaded twice
    assert bytes_of("data/nsmc") == before
    prepared("nsmc --seed 2")
    after = bytes_of("data/nsmc")
    assert sorted(after) == ["notes.txt", "test.tsv", "train.tsv", "valid.tsv"]
    assert after["test.tsv"] == before["test.tsv"] and after["valid.tsv"] != before["valid.tsv"]


def test_shopping_maps_stars_and_splits_by_the_seed_alone(server):
    prepared("shopping")
    assert sizes("data/shopping") == (171, 9, 20)  # 10 % of 200, 5 % of 180
    label = {"1": "0", "2": "0", "4": "1", "5": "1"}
    assert set(rows("data/shopping")) == {(f"별 {s} 상품 {i}", label[s]) for i in range(50) for s in "1245"}
    # The same files on every machine and in every version: the first test rows of seed 1, by random().
    generator = random.Random(1)
    order = sorted((generator.random(), i) for i in range(200))
    lines = FILES["naver_shopping.txt"].decode().split("\n")
    test = rows("data/shopping", "test")
    assert [row[0] for row in test] == [lines[i].split("\t")[1] for _, i in order[:20]]
    prepared("shopping --seed 2 --out b")
    assert rows("b", "test") != test


def test_steam_parts_are_rounded_up_and_a_tab_becomes_a_space(server):
    prepared("steam --out elsewhere")
    assert sizes("elsewhere") == (51, 3, 6)  # 6 of 60, ceil(2.7) of 54
    assert ("게임 7 탭 끝", "1") in rows("elsewhere") and header("elsewhere") == "text\tlabel"
    prepared("split elsewhere/test.tsv --out again")
    assert sizes("again") == (4, 1, 1)


def test_seed_mix_is_all_three_shuffled(server):
    prepared("seed-mix")
    assert sizes("data/seed-mix") == (333, 18, 39)  # 390 rows: 39, then ceil(17.55) of 351
    assert len({row[0] for row in rows("data/seed-mix")}) == 390 - 3  # the two NSMC files share three texts
    assert header("data/seed-mix") == "text\tlabel"
    for split in OUTPUTS:  # every part has rows of every corpus
        assert {row[0][:2] for row in rows("data/seed-mix", split)} >= {"영화", "별 ", "게임"}


# ---- corpora of other forms: files written here as their publishers write theirs ---------------------------


@pytest.fixture
def given(monkeypatch):
    """A function that writes a corpus's files into the folder `given`, and states of each its rows, or
    (rows, counts of labels, slack).
    """
    def write(name, contents, stated):
        Path("given").mkdir(exist_ok=True)
        corpus = prepare.CORPORA[name]
        assert [file.name for file in corpus.files] == list(contents)
        for file, text in contents.items():
            Path("given", file).write_bytes(text.encode())
        stated = [numbers if isinstance(numbers, tuple) else (numbers,) for numbers in stated]
        monkeypatch.setattr(corpus, "files", tuple(
            File(file.split, file.name, *numbers) for file, numbers in zip(corpus.files, stated, strict=True)
        ), raising=False)
    return write


def parts(folder):
    return [rows(folder, split) for split in OUTPUTS]


def test_hate_speech_is_three_answers_to_the_same_comments(given):
    """Quoted as CSV where a text has quotation marks; valid comes from train, dev is the test set."""
    biases = [("True", "gender", "hate"), ("False", "others", "offensive"), ("False", "none", "none")]
    head = "comments\tcontain_gender_bias\tbias\thate\n"
    train = head + "".join("\t".join([f"댓글 {i}", *biases[i % 3]]) + "\n" for i in range(39))
    train += '"그는 ""예""라고"\tTrue\tgender\tnone\n'
    dev = head + '말만 "끝"\tFalse\tnone\toffensive\n둘째\tTrue\tgender\thate\n'
    for name, column in (("hate-speech", 3), ("hate-speech-bias", 2), ("hate-speech-gender", 1)):
        given(name, {"train.tsv": train, "dev.tsv": dev}, [40, 2])
        prepared(f"{name} --from given --out {name}")
        assert header(name) == "text\tlabel" and sizes(name) == (38, 2, 2)
        answer = [line.split("\t")[column] for line in dev.splitlines()[1:]]
        assert rows(name, "test") == [('말만 "끝"', answer[0]), ("둘째", answer[1])]
        assert dict(rows(name, "train", "valid")) == {
            **{f"댓글 {i}": biases[i % 3][column - 1] for i in range(39)},
            '그는 "예"라고': ("True", "gender", "none")[column - 1]}
    texts = [[row[0] for row in rows(name)] for name in ("hate-speech", "hate-speech-bias")]
    assert texts[0] == texts[1]  # one split, whichever answer
    given("hate-speech", {"train.tsv": train.replace("\toffensive", "\tOffensive"), "dev.tsv": dev}, [40, 2])
    not_prepared("hate-speech --from given", "^given/train.tsv:3: label 'Offensive'")


def unsmile(*marked):
    """A file of UnSmile: of each text, the columns that are 1. No line end after the last row."""
    columns = [*UNSMILE, "개인지칭"]
    lines = ["\t".join(["문장", *columns])]
    lines += ["\t".join([text, *(str(int(name in chosen)) for name in columns)]) for text, chosen in marked]
    return "\n".join(lines)


def test_unsmile_columns_of_0_and_1_become_names(given):
    clean = [(f"글 {i}", ["clean"]) for i in range(18)]
    train = unsmile(("둘", ["악플/욕설", "지역"]), ("지칭", ["남성", "개인지칭"]), *clean)
    valid = unsmile(("없음", []), ("기타", ["기타 혐오", "clean"]))
    files = {"unsmile_train_v1.0.tsv": train, "unsmile_valid_v1.0.tsv": valid}
    given("unsmile", files, [(20, {"clean": 21, "지역": 1}, 3), (2, {"기타 혐오": 1})])
    prepared("unsmile --from given --out out")
    assert header("out") == "text\tlabels" and sizes("out") == (19, 1, 2)
    assert dict(rows("out", "train", "valid")) == {
        "둘": "지역,악플/욕설", "지칭": "남성", **{text: "clean" for text, _ in clean}}
    assert rows("out", "test") == [("없음", "-"), ("기타", "기타 혐오,clean")]
    before = bytes_of("out")
    given("unsmile", files, [(20, {"clean": 22}, 3), 2])
    not_prepared("unsmile --from given --out out", "train_v1.0.tsv: has 18 rows of label 'clean'.* 22 ± 3")
    given("unsmile", {**files, "unsmile_valid_v1.0.tsv": valid.replace("없음\t0", "없음\t2")}, [20, 2])
    not_prepared("unsmile --from given --out out", "^given/unsmile_valid_v1.0.tsv:2: label '2'")
    assert bytes_of("out") == before


def test_kmhas_numbers_become_names_and_the_publishers_three_parts_stay(given):
    head = "document\tlabel\n"
    files = {"kmhas_train.txt": head + "".join(f"글 {i}\t{i % 9}\n" for i in range(18)),
             "kmhas_valid.txt": head + "셋\t1,3,8\n",
             "kmhas_test.txt": head + '"따옴표 ""속"""\t0,2\n"\t8\n'}
    given("kmhas", files, [18, 1, 2])
    prepared("kmhas --from given --out out")
    names = ["출신차별", "외모차별", "정치성향차별", "혐오욕설", "연령차별", "성차별", "인종차별", "종교차별",
             "해당사항없음"]
    train, valid, test = parts("out")
    assert header("out") == "text\tlabels"
    assert train != sorted(train) and dict(train) == {f"글 {i}": names[i % 9] for i in range(18)}
    assert valid == [("셋", "외모차별,혐오욕설,해당사항없음")]
    assert test == [('따옴표 "속"', "출신차별,정치성향차별"), ('"', "해당사항없음")]
    for bad in ("9", "", "0,", "-1", " 1"):
        given("kmhas", {**files, "kmhas_valid.txt": head + f"셋\t{bad}\n"}, [18, 1, 2])
        not_prepared("kmhas --from given --out out", "^given/kmhas_valid.txt:2: label")


def test_kote_has_no_header_ids_and_44_labels(given):
    files = {"train.tsv": "".join(f"{100 + i}\t글 {i}\t{i}\n" for i in range(44)),
             "val.tsv": '7\t"그 ""말"" 참"\t0,24,43\n', "test.tsv": "9\t시험\t32,35\n"}
    given("kote", files, [44, 1, 1])
    prepared("kote --from given --out out")
    train, valid, test = parts("out")
    assert header("out") == "id\ttext\tlabels" and len({row[2] for row in train}) == 44
    assert ("112", "글 12", "의심/불신") in train
    assert valid == [("7", '그 "말" 참', "불평/불만,없음,안심/신뢰")]
    assert test == [("9", "시험", "흐뭇함(귀여움/예쁨),부담/안_내킴")]


def test_3i4k_intents_get_their_names(given):
    """CRLF, no line end after the last row."""
    files = {"fci_train_val.txt": "\r\n".join(f"{i % 7}\t말 {i}" for i in range(35)),
             "fci_test.txt": "6\t뭐\r\n3\t해"}
    given("3i4k", files, [(35, {"question": 5}), 2])
    prepared("3i4k --from given --out out")
    assert header("out") == "text\tlabel" and sizes("out") == (33, 2, 2)
    assert dict(rows("out", "train", "valid")) == {f"말 {i}": INTENTS[i % 7] for i in range(35)}
    assert rows("out", "test") == [("뭐", "intonation-dependent utterance"), ("해", "command")]
    given("3i4k", {**files, "fci_test.txt": "6\t뭐\r\n0,1\t해"}, [35, 2])
    not_prepared("3i4k --from given --out out", "^given/fci_test.txt:2: label '0,1'")


def nli(count, **changed):
    """A file of KLUE-NLI: three hypotheses to each premise but the first, which has one."""
    rows = [{"guid": f"nli_{i}", "source": "wikitree", "premise": f"전제 {-(-i // 3)}",
             "hypothesis": f"가설 {i}", "gold_label": INFERENCES[i % 3], "author": "neutral"}
            for i in range(count)]
    rows[-1] |= changed
    return json.dumps(rows, ensure_ascii=False, indent=4)


def test_klue_nli_is_a_list_in_json_and_no_premise_is_in_two_parts(given):
    """Of 301 rows: valid is ceil(15.05) rows, or ends with the premise of the 16th."""
    files = {"klue-nli-v1.1_train.json": "\ufeff" + nli(301), "klue-nli-v1.1_dev.json": nli(4)}
    given("klue-nli", files, [301, (4, {"entailment": 2})])
    prepared("klue-nli --from given --out out")
    train, valid, test = parts("out")
    assert header("out") == "id\ttext\ttext2\tlabel"
    assert len(train) + len(valid) == 301 and 16 <= len(valid) <= 18
    assert not {row[1] for row in train} & {row[1] for row in valid}
    assert train + valid != sorted(train + valid)
    assert set(train + valid) == {(f"nli_{i}", f"전제 {-(-i // 3)}", f"가설 {i}", INFERENCES[i % 3])
                                  for i in range(301)}
    assert test == [(f"nli_{i}", f"전제 {-(-i // 3)}", f"가설 {i}", INFERENCES[i % 3]) for i in range(4)]
    dev = "^given/klue-nli-v1.1_dev.json"
    for text, stated, pattern in [
            (nli(4, gold_label="-"), 4, f"{dev}: row 4: label '-'"),
            (nli(4, premise=None), 4, f"{dev}: row 4:"),
            (nli(4, hypothesis=["가", "나"]), 4, f"{dev}: row 4:"),
            ('{"premise": 1}', 1, f"{dev}: row 1:"), ("[3]", 1, f"{dev}: row 1:"),
            (nli(4)[:-1], 4, f"{dev}:3[0-9]: not valid JSON"),
            (nli(3), 4, f"{dev}: has 3 rows")]:
        given("klue-nli", {**files, "klue-nli-v1.1_dev.json": text}, [301, stated])
        not_prepared("klue-nli --from given --out out", pattern)


def test_klue_sts_has_its_score_inside_another_object(given):
    def sts(count, **labels):
        return json.dumps([{"guid": f"sts_{i}", "sentence1": f"하나 {i}", "sentence2": f"둘\n{i}", "labels": {
            "label": 3.7, "real-label": i / 8, "binary-label": 1} | labels} for i in range(count)])

    given("klue-sts", {"klue-sts-v1.1_train.json": sts(40), "klue-sts-v1.1_dev.json": sts(2)}, [40, 2])
    prepared("klue-sts --from given --out out")
    assert header("out") == "id\ttext\ttext2\tscore" and sizes("out") == (38, 2, 2)
    assert set(rows("out", "train", "valid")) == {(f"sts_{i}", f"하나 {i}", f"둘 {i}", str(i / 8))
                                                  for i in range(40)}
    for score in (5.1, -1, "나", None, float("nan")):
        given("klue-sts", {"klue-sts-v1.1_train.json": sts(40),
                           "klue-sts-v1.1_dev.json": sts(2, **{"real-label": score})}, [40, 2])
        not_prepared("klue-sts --from given --out out", "^given/klue-sts-v1.1_dev.json: row 1: ")


def test_kornli_and_korsts_keep_quotation_marks_and_all_three_parts(given):
    """Unbalanced ones too; csv.reader would make one row of several. Both train files are read."""
    head = "sentence1\tsentence2\tgold_label\n"
    files = {"snli_1.0_train.ko.tsv": head + '"전제\t가설\tneutral\n"둘"\t셋"\tentailment\n',
             "multinli.train.ko.tsv": head + "넷\t\tcontradiction\n",
             "xnli.dev.ko.tsv": head + "다\t라\tneutral\n", "xnli.test.ko.tsv": head + "마\t바\tneutral\n"}
    given("kornli", files, [2, 1, 1, 1])
    prepared("kornli --from given --out out")
    train, valid, test = parts("out")
    assert header("out") == "text\ttext2\tlabel" and valid == [("다", "라", "neutral")]
    assert test == [("마", "바", "neutral")]
    assert set(train) == {('"전제', "가설", "neutral"), ('"둘"', '셋"', "entailment"),
                          ("넷", "", "contradiction")}
    head = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"
    files = {"sts-train.tsv": head + 'a\tb\t2012\t0001\t5.000\t"그는\t그녀"\nc\tb\t2012\t0001\t0\t하나\t둘\n',
             "sts-dev.tsv": head + "a\tb\t2013\t7\t3.800\t다\t라\n",
             "sts-test.tsv": head + "a\tb\tx\t7\t1\t마\t바"}
    given("korsts", files, [2, 1, 1])
    prepared("korsts --from given --out sts")
    train, valid, test = parts("sts")
    assert header("sts") == "id\ttext\ttext2\tscore" and valid == [("a/b/2013/7", "다", "라", "3.800")]
    assert set(train) == {("a/b/2012/0001", '"그는', '그녀"', "5.000"), ("c/b/2012/0001", "하나", "둘", "0")}
    assert test == [("a/b/x/7", "마", "바", "1")]
    given("korsts", {**files, "sts-dev.tsv": head + "a\tb\t2013\t7\t\t다\t라\n"}, [2, 1, 1])
    not_prepared("korsts --from given --out sts", "^given/sts-dev.tsv:2: label ''")


def test_question_pair_is_csv_with_bom_and_a_trailing_comma(given):
    """is_duplicate is 1 for pairs that differ, as the README says."""
    train = "\ufeffid,qid1,qid2,question1,question2,is_duplicate\r\n" + "\r\n".join(
        f'{i},{2 * i},{2 * i + 1},"질문, {i // 2}",답 {i},{i % 2}' for i in range(40))
    test = '\ufefftest_id,question1,question2,is_duplicate,\r\n1,"그는 ""예""","둘\r\n줄",0,\r\n2,셋,넷,1,'
    files = {"kor_pair_train.csv": train, "kor_Pair_test.csv": test}
    given("question-pair", files, [40, 2])
    prepared("question-pair --from given --out out")
    assert header("out") == "id\ttext\ttext2\tlabel" and sizes("out") == (38, 2, 2)
    assert set(rows("out", "train", "valid")) == {
        (str(i), f"질문, {i // 2}", f"답 {i}", ("same", "different")[i % 2]) for i in range(40)}
    assert len({row[1] for row in rows("out", "valid")}) == 1  # both pairs of one question
    assert rows("out", "test") == [("1", '그는 "예"', "둘  줄", "same"), ("2", "셋", "넷", "different")]
    bad = "^given/kor_Pair_test.csv:2: "
    for damaged, pattern in [(test.replace('줄",0', '줄",2'), f"{bad}label '2'"),
                             (test.replace("question2", "질문"), f"{bad}lacks .*question2"),
                             (test.replace('"예""', '"예"'), f"{bad}not valid CSV")]:
        given("question-pair", {**files, "kor_Pair_test.csv": damaged}, [40, 2])
        not_prepared("question-pair --from given --out out", pattern)
    Path("given/kor_Pair_test.csv").write_bytes(test.encode("cp949", "ignore"))  # as a spreadsheet saves it
    not_prepared("question-pair --from given --out out", "kor_Pair_test.csv:2: not UTF-8 .*CP949")


def paws(texts):
    return ("id\tsentence1\tsentence2\tlabel\n" + "".join(
        f'{i}\t"{text}\tNS\t{i % 2}\n' for i, text in enumerate(texts))).encode()


def test_paws_x_comes_in_an_archive(server, given, monkeypatch):
    """Its Korean files alone are unpacked; downloaded once; a damaged archive leaves no file."""
    contents = {"translated_train.tsv": paws("가나다"), "dev_2k.tsv": paws("라"), "test_2k.tsv": paws("마바")}
    given("paws-x", {name: text.decode() for name, text in contents.items()}, [3, 1, 2])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for folder in ("de", "ko"):
            for name, text in contents.items():
                member = tarfile.TarInfo(f"x-final/{folder}/{name}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
    corpus, folder = prepare.CORPORA["paws-x"], Path("data/downloads/x-final/ko")
    monkeypatch.setattr(corpus, "home", prepare.CORPORA["nsmc"].home, raising=False)
    server.files["x-final.tar.gz"] = packed.getvalue()[:100]
    not_prepared("paws-x", "^data/downloads/x-final.tar.gz: cannot unpack x-final/ko/translated_train.tsv")
    assert not list(folder.iterdir())
    server.files["x-final.tar.gz"] = packed.getvalue()
    Path("data/downloads/x-final.tar.gz").unlink()
    prepared("paws-x")
    assert header("data/paws-x") == "id\ttext\ttext2\tlabel" and server.requests == ["x-final.tar.gz"] * 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    assert rows("data/paws-x", "test") == [("0", '"마', "NS", "different"), ("1", '"바', "NS", "same")]
    prepared("paws-x --out again")
    prepared("paws-x --from given --out from")
    assert bytes_of("again") == bytes_of("from") == bytes_of("data/paws-x") and len(server.requests) == 2


def test_files_of_the_same_name_are_downloaded_into_folders_of_their_own(server, monkeypatch):
    server.files |= {"train.tsv": "1\t글\t0\n".encode(), "val.tsv": "2\t글\t1\n".encode(),
                     "test.tsv": "3\t글\t2\n".encode()}
    kote = prepare.CORPORA["kote"]
    monkeypatch.setattr(kote, "home", prepare.CORPORA["nsmc"].home, raising=False)
    not_prepared("kote", "^data/downloads/kote/train.tsv: has 1 rows.* 40,000")
    assert server.requests == ["train.tsv"] and prepare.CORPORA["hate-speech"].folder not in ("", "kote")


# ---- download ----------------------------------------------------------------------------------------------


def test_a_download_that_is_cut_is_refused_and_starts_over(server):
    body, target = FILES["naver_shopping.txt"], Path("data/downloads/naver_shopping.txt")
    server.cut = 1001
    not_prepared("shopping", f"ended {len(body) - 1001:,} bytes early", "--from DIR")
    assert not list(target.parent.iterdir()) and not Path("data/shopping").exists()
    server.cut = None
    prepared("shopping")
    assert target.read_bytes() == body and len(server.requests) == 2


def test_404_and_offline_are_one_line(server, monkeypatch):
    del server.files["steam.txt"]
    not_prepared("steam", f"^{prepare.CORPORA['steam'].home}steam.txt: cannot download .*404")
    assert not Path("data/downloads/steam.txt").exists()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        home = f"http://127.0.0.1:{unused.getsockname()[1]}/"  # bound, not listening: refuses
        monkeypatch.setattr(prepare.CORPORA["steam"], "home", home)
        not_prepared("steam", f"^{home}steam.txt: cannot download .*refused.*--from DIR")


# ---- --from and verification -------------------------------------------------------------------------------


def test_from_uses_the_files_and_downloads_nothing(server):
    Path("mine").mkdir()
    Path("mine/ratings_train.txt").write_bytes(FILES["ratings_train.txt"])
    not_prepared("nsmc --from mine", "^mine/ratings_test.txt: not found")
    Path("mine/ratings_test.txt").write_bytes(FILES["ratings_test.txt"].replace(b"\n", b"\r\n"))
    prepared("nsmc --from mine")
    assert sizes("data/nsmc") == (95, 5, 30)
    assert server.requests == [] and not Path("data/downloads").exists()
    assert sorted(os.listdir("mine")) == ["ratings_test.txt", "ratings_train.txt"]
    Path("mine/steam.txt").write_bytes(FILES["steam.txt"].replace(b"\n", b"\r\n"))
    prepared("steam --from mine")
    assert ("게임 0", "0") in rows("data/steam")


DAMAGED = {
    "a row lost": ("steam.txt", lambda b: b[:b.rindex(b"\n")], ": has 59 rows.* 60;"),
    "a row too many": ("ratings_test.txt", lambda b: b + "9\t덤\t1\n".encode(), ": has 31 rows.* 30;"),
    "unbalanced": ("steam.txt", lambda b: b.replace(b"0\t", b"1\t", 1), ": has 31 rows of label '1'.* 30 ±"),
    "beyond the slack": ("ratings_train.txt", lambda b: b.replace(b"\t0\n", b"\t1\n", 2),
                         ": has 52 rows of label '1'.* 50 ± 1;"),
    "three stars": ("naver_shopping.txt", lambda b: b.replace(b"2\t", b"3\t", 1), ":2: label '3'"),
    "no tab": ("steam.txt", lambda b: b.replace(b"1\t", b"1 ", 1), ":2: is not label<TAB>text"),
    "another header": ("ratings_test.txt", lambda b: b.replace(b"document", b"text"),
                       ":1: is not id<TAB>document"),
    "CP949": ("steam.txt", lambda b: b.replace("게임 3".encode(), "게임 3".encode("cp949")), ":4: not UTF-8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_and_nothing_is_touched(server, case):
    name, damage, message = DAMAGED[case]
    corpus = next(corpus for corpus in REVIEWS
                  if name in [file.name for file in prepare.CORPORA[corpus].files])
    prepared(corpus)
    before, damaged = bytes_of(f"data/{corpus}"), damage(FILES[name])
    assert damaged != FILES[name]
    Path(f"data/downloads/{name}").write_bytes(damaged)
    not_prepared(f"{corpus} --seed 2", f"^data/downloads/{name}{message}")
    assert bytes_of(f"data/{corpus}") == before


def test_the_slack_itself_is_accepted(server):
    server.files["ratings_train.txt"] = FILES["ratings_train.txt"].replace(b"\t0\n", b"\t1\n", 1)
    prepared("nsmc")
    assert [row[2] for row in rows("data/nsmc", "train", "valid")].count("1") == 51


# ---- split -------------------------------------------------------------------------------------------------


def test_split_keeps_text2_and_id(capsys):
    """Of a CSV with commas, quotes, tabs and line ends, and labels that sort as numbers."""
    with open("pairs.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "gold", "premise", "hypothesis", "note"])
        for i in range(100):
            writer.writerow([f"p{i}", (9, 10, -1)[i % 3], f'전제, "{i}"', f"가설\t{i}\r\n둘째\n줄", "unused"])
    prepared("split --text-column premise --text2-column hypothesis --label-column gold --out mine pairs.csv")
    assert sizes("mine") == (85, 5, 10) and header("mine") == "id\ttext\ttext2\tlabel"
    assert set(rows("mine")) == {(f"p{i}", f'전제, "{i}"', f"가설 {i}  둘째 줄", ("9", "10", "-1")[i % 3])
                                 for i in range(100)}
    test = rows("mine", "test")
    assert read_examples("mine/test.tsv").ids == [row[0] for row in test]
    counts = " +".join(str(sum(row[3] == label for row in test)) for label in ("-1", "9", "10"))
    out = capsys.readouterr().out
    assert re.search(rf"^split +rows +-1 +9 +10 +file\n(.*\n)*test +10 +{counts} +mine/test.tsv$", out, re.M)


def test_split_of_several_labels_counts_each(capsys):
    cells = ["배송,가격", "배송", "-", ""]
    write_tsv("several.tsv", [(f"글 {i}", cells[i % 4]) for i in range(40)], "labels")
    prepared("split several.tsv")
    assert header("data/several") == "text\tlabels" and sizes("data/several") == (35, 2, 3)  # 30 have one
    assert sorted(rows("data/several")) == sorted((f"글 {i}", cells[i % 4]) for i in range(40))
    assert all(row[1] for row in rows("data/several", "valid", "test"))
    train = [row[1] for row in rows("data/several", "train")]
    price, delivery = train.count("배송,가격"), train.count("배송,가격") + train.count("배송")
    out = capsys.readouterr()
    assert re.search(r"^split +rows +가격 +배송 +file$", out.out, re.M)
    assert re.search(rf"^train +35 +{price} +{delivery} ", out.out, re.M)
    valid = "".join(row[1] for row in rows("data/several", "valid"))
    assert ("valid.tsv has no row of" in out.err) == ("가격" not in valid or "배송" not in valid)


def test_split_of_scores_tells_their_range(capsys):
    write_tsv("scores.tsv", [(f"글 {i}", f"{1 + i % 9 / 2}") for i in range(39)] + [("끝", "")], "score")
    prepared("split scores.tsv --out out")
    assert header("out") == "text\tscore" and sizes("out") == (34, 2, 4)
    values = [float(row[1]) for row in rows("out", "train") if row[1]]
    low, mean, high = (f"{value:.4g}" for value in (min(values), sum(values) / len(values), max(values)))
    out = capsys.readouterr().out
    assert re.search(rf"rows +lowest +mean +highest +file\ntrain +34 +{low} +{mean} +{high} ", out)
    prepared("look scores.tsv")
    Path("mixed.csv").write_text("text,score\n하나,1\n둘,1.0\n셋,-3e1\n", encoding="utf-8")
    prepared("look mixed.csv")  # 1 and 1.0 are the same score, and two labels that look alike


def test_split_reads_lists_and_columns_of_other_names():
    lines = [json.dumps({"text": f"글 {i}", "labels": ["배송", "가격, 값"][: i % 3]}) for i in range(30)]
    Path("lists.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepared("split lists.jsonl --out lists")
    assert {row[1] for row in rows("lists")} == {"[]", '["배송"]', '["배송", "가격, 값"]'}
    Path("two.csv").write_text("text,label,stars\n" + "".join(f"글 {i},{i % 2},{i % 5}\n" for i in range(30)),
                               encoding="utf-8")
    for flag, column, values in (("", "label", 2), ("--task regression --label-column stars", "score", 5),
                                 ("--label-column stars", "label", 5)):
        prepared(f"split two.csv --out {column}{values} {flag}")
        assert header(f"{column}{values}") == f"text\t{column}"
        assert len({row[1] for row in rows(f"{column}{values}")}) == values


@pytest.mark.parametrize("column, cells, pattern", [
    ("score", ["3", "3,5"], r"^bad.tsv:3: the score '3,5' is not a number"),
    ("score", ["nan", "1"], r"^bad.tsv:2: the score 'nan' is not a number"),
    ("score", ["", ""], "no row has a score; at least one is needed"),
    ("labels", ["", ""], "no row has a label; at least one is needed"),
    ("labels", ["-", "-"], "at least one is needed"),
    ("labels", ["1", "1.0,배송"], r"^bad.tsv:3: the labels '1.0' and '1' \(bad.tsv:2\)"),
    ("labels", ["배송", "배송,,가격"], "^bad.tsv:3: .*a name is empty"),
    ("labels", ["배송", "가격,-"], "^bad.tsv:3: .*stands alone"),
    ("labels", ["배송,가격,배송", "가격"], "^bad.tsv:2: '?.*'배송' occurs twice"),
])
def test_answers_that_are_surely_a_mistake_are_refused(column, cells, pattern):
    write_tsv("bad.tsv", zip(("하나", "둘"), cells, strict=True), column)
    not_prepared("split bad.tsv --out out", pattern)
    assert not Path("out").exists()


def test_leaks_are_counted_and_dropped_exactly(capsys):
    """Twenty texts, each 5 times with blanks around some: every train row can be checked by hand."""
    data = [(f"{' ' * (i % 2)}글 {i % 20}{' ' * (i % 3)}" if i % 20 else "", str(i % 2)) for i in range(100)]
    write_tsv("leaky.tsv", data)
    prepared("split leaky.tsv --out kept")
    train, valid, test = (rows("kept", split) for split in OUTPUTS)
    assert (len(train), len(valid), len(test)) == (85, 5, 10)
    in_valid, in_test = ([row for row in train if row[0].strip() in {other[0].strip() for other in part}]
                         for part in (valid, test))
    clean = [row for row in train if row not in in_valid and row not in in_test]
    assert 0 < len(in_valid) < 85 and 0 < len(in_test) < 85 and clean
    out = capsys.readouterr().out
    for found, split in ((in_valid, "valid"), (in_test, "test")):
        assert re.search(rf"leaks: {len(found)} of 85 .*{len(found) / 85:.2%}.* {split}\n", out)
    assert "--drop-leaks" in out

    prepared("split leaky.tsv --out dropped --drop-leaks")
    assert [rows("dropped", split) for split in OUTPUTS] == [clean, valid, test]
    assert f"leaks: {85 - len(clean)} rows removed" in capsys.readouterr().out


def test_a_pair_leaks_only_as_a_pair_and_can_be_read_back(capsys):
    lines = [json.dumps({"text": "같은\0전\r제\n", "text2": f"가설 {i}", "label": i % 2}) for i in range(40)]
    Path("pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepared("split pairs.jsonl")
    assert capsys.readouterr().out.count("leaks: 0 of 34 train rows") == 2
    assert sizes("data/pairs") == (34, 2, 4)
    assert read_examples("data/pairs/test.tsv").texts == ["같은 전 제 "] * 4  # what a TSV cannot hold


@pytest.mark.parametrize("labelled, percent", [(10, 89), (3, 34), (2, 10)])
def test_a_split_that_leaves_none_to_train_on_is_refused(labelled, percent):
    write_tsv("reviews.tsv", texts_of(labelled) + [("글", "")] * 5)
    not_prepared(f"split reviews.tsv --test-percent {percent}", f"^reviews.tsv: {labelled} labelled .*none")
    assert not Path("data").exists()


def test_rows_without_label_go_to_train():
    write_tsv("some.tsv", [(f"글 {i}", "" if i % 2 else str(i % 4 // 2)) for i in range(80)])
    prepared("split some.tsv")
    assert sizes("data/some") == (74, 2, 4)  # 40 labelled rows: 4, 2 and 34; and the 40 others
    assert sum(row[1] == "" for row in rows("data/some", "train")) == 40
    assert all(row[1] for row in rows("data/some", "valid", "test"))


def test_a_file_that_has_its_test_set_already_gives_train_and_valid_alone():
    write_tsv("reviews.tsv", texts_of(40))
    prepared("split reviews.tsv --test-percent 0")
    assert sorted(os.listdir("data/reviews")) == ["train.tsv", "valid.tsv"]
    assert [len(rows("data/reviews", split)) for split in ("train", "valid")] == [38, 2]
    assert sorted(rows("data/reviews", "train", "valid")) == sorted(texts_of(40))


def test_a_class_that_a_part_lacks_is_told(capsys):
    write_tsv("reviews.tsv", [("글", "긍정"), *((f"글 {i}", "부정") for i in range(39))])
    prepared("split reviews.tsv")
    lacking = [split for split in OUTPUTS if "긍정" not in {row[-1] for row in rows("data/reviews", split)}]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(lacking) == 2
    for split, line in zip(lacking, warnings, strict=True):
        assert re.match(f"warning: data/reviews/{split}.tsv has no row of 긍정", line)


def test_split_refusals_leave_everything_as_it_was():
    Path("mine").mkdir()
    write_tsv("mine/train.tsv", texts_of(20))
    write_tsv("same.tsv", [("같은 글", str(i % 2)) for i in range(20)])
    write_tsv("one.tsv", [("하나", "0"), ("둘", "0"), ("셋", "")])
    Path("nolabel.csv").write_text("text\n하나\n둘\n셋\n", encoding="utf-8")
    before = bytes_of("mine")
    not_prepared("split mine/train.tsv --out mine", "^mine/train.tsv: would be overwritten")
    not_prepared("split same.tsv --out mine --drop-leaks", "no row in train")
    not_prepared("split one.tsv --out mine", "^one.tsv: the only label is '0'")
    not_prepared("split nolabel.csv --out mine", "^nolabel.csv: no row has a label")
    not_prepared("split same.tsv --out one.tsv", "^one.tsv/.*: cannot write")
    assert bytes_of("mine") == before
    os.mkfifo("mine/valid.tsv")
    not_prepared("split same.tsv --out mine", "^mine/valid.tsv is not a regular file")
    assert Path("mine/valid.tsv").is_fifo()
    os.unlink("mine/valid.tsv")
    assert bytes_of("mine") == before


def test_a_split_neither_guesses_an_existing_folder_nor_leaves_a_stale_test(capsys):
    write_tsv("sample.tsv", texts_of(40))
    prepared("split sample.tsv")
    before = bytes_of("data/sample")
    with pytest.raises(SystemExit):
        prepared("split sample.tsv")
    assert "data/sample exists" in capsys.readouterr().err
    not_prepared("split sample.tsv --out data/sample --test-percent 0", "^data/sample/test.tsv: .*earlier")
    assert bytes_of("data/sample") == before


def test_the_samples_are_what_their_page_says():
    """No text twice in any of them, and every label and half star in train, valid and test."""
    sample = ROOT / "data/sample"
    ranges = {"비슷": (3.5, 4, 4.5, 5), "반대": (1.5, 2, 2.5), "무관": (0, 0.5, 1)}
    files = {str(path.relative_to(sample)): rows(path.parent, path.stem) for path in sample.rglob("*.tsv")}
    pairs, similarity = ({split: files.pop(f"{folder}/{split}.tsv") for split in OUTPUTS}
                         for folder in ("pairs", "similarity"))
    texts = [row[1] if len(row) == 3 or name == "unlabeled.tsv" else row[0]
             for name, found in files.items() for row in found]
    texts += [text for found in pairs.values() for row in found for text in row[:2]]
    assert len({*texts}) == len(texts) == 3_335 + 400 + 400
    for split, size in (("train", 130), ("valid", 30), ("test", 40)):
        several, scores = files[f"several/{split}.tsv"], files[f"scores/{split}.tsv"]
        assert len(several) == len(scores) == size
        cells = [row[1].split(",") for row in several]
        assert {name for names in cells for name in names} == {"배송", "가격", "품질", "포장", "친절", "-"}
        assert all(len({*names}) == len(names) and (names == ["-"] or "-" not in names) for names in cells)
        assert {float(row[1]) for row in scores} == {half / 2 for half in range(2, 11)}
        assert len(pairs[split]) == size and {row[2] for row in pairs[split]} == set(ranges)
        for pair, alike in zip(pairs[split], similarity[split], strict=True):
            assert pair[:2] == alike[:2] and float(alike[2]) in ranges[pair[2]]


# ---- a set replaces the earlier one, or nothing changes ----------------------------------------------------


@pytest.mark.parametrize("error", [PermissionError(13, "open in another program"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", range(1, 7))
def test_a_failed_rename_puts_the_earlier_set_back(server, monkeypatch, fails_at, error):
    """Three renames set the earlier files aside, three bring the new ones: each is made to fail in turn."""
    prepared("steam")
    before, calls, real = bytes_of("data/steam"), [], os.replace

    def failing(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise error
        if 3 < len(calls) < fails_at:  # never old and new together
            assert len(list(Path("data/steam").glob(".*.old"))) == 3
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises((prepare.UserError, type(error))):
        prepared("steam --seed 2")
    assert bytes_of("data/steam") == before  # no temporary files either


def test_a_failed_rename_leaves_no_part_of_a_first_set(server):
    """valid.tsv is a folder here, so the second of three renames fails."""
    Path("data/steam/valid.tsv").mkdir(parents=True)
    not_prepared("steam", "^data/steam/valid.tsv: .*nothing was changed")
    assert os.listdir("data/steam") == ["valid.tsv"]


# ---- command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, word", [
    ("", "corpus"), ("imdb", "imdb"), ("split", "FILE"), ("split a.csv --from x", "--from"),
    ("nsmc a.csv", "column flags"), ("steam --text-column x", "column flags"),
    ("nsmc --test-percent 20", "column flags"), ("kote --task multilabel", "column flags"),
    ("steam --seed x", "--seed"),
    ("split a.csv --test-percent 90", "--test-percent"), ("split a.csv --test-percent -1", "--test-percent"),
])
def test_misuse(capsys, flags, word):
    with pytest.raises(SystemExit) as end:
        prepare.parse_args(flags.split())
    assert end.value.code == 2 and word in capsys.readouterr().err.splitlines()[-1]


def test_default_folders():
    assert prepare.parse_args(["seed-mix"]).out == Path("data/seed-mix")
    assert prepare.parse_args(["split", "x/reviews.csv.gz"]).out == Path("data/reviews")
    assert prepare.parse_args(["split", "--out", "y", "reviews.csv"]).file == "reviews.csv"


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "data.prepare", "steam", "--from", tmp_path, "--out", tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'steam.txt'}: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
