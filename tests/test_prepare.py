"""data/prepare.py against a loopback server with tiny files in the publishers' formats. No network."""

import csv
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import refused

from data import prepare
from data.examples import read_examples

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
COUNTS = {  # rows, positives, slack
    "ratings_train.txt": (100, 50, 1),
    "ratings_test.txt": (30, 15, 0),
    "naver_shopping.txt": (200, 100, 0),
    "steam.txt": (60, 30, 0),
}


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
    """The loopback server; prepare.SOURCES points at it and at the tiny files' counts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.cut = dict(FILES), [], None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, (rows, positives, slack) in COUNTS.items():
        source = replace(prepare.SOURCES[name], url=f"http://127.0.0.1:{server.server_port}/{name}",
                         rows=rows, positives=positives, slack=slack)
        monkeypatch.setitem(prepare.SOURCES, name, source)
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


def write_tsv(name, data):
    lines = ("\t".join(row) + "\n" for row in [("text", "label"), *data])
    Path(name).write_text("".join(lines), encoding="utf-8")


def texts_of(count):
    return [(f"글 {i}", str(i % 2)) for i in range(count)]


# ---- the corpora -------------------------------------------------------------------------------------------


def test_published_counts_and_addresses():
    """e9t/nsmc README (150K, 50K, 'random guess yields 50% accuracy'); bab2min/corpus sentiment/README.md."""
    raw = "https://raw.githubusercontent.com"
    theirs = f"{raw}/bab2min/corpus/master/sentiment"
    assert [(s.url, s.rows, s.positives, s.slack) for s in prepare.SOURCES.values()] == [
        (f"{raw}/e9t/nsmc/master/ratings_train.txt", 150_000, 75_000, 1_500),
        (f"{raw}/e9t/nsmc/master/ratings_test.txt", 50_000, 25_000, 500),
        (f"{theirs}/naver_shopping.txt", 200_000, 81_177 + 18_786, 0),
        (f"{theirs}/steam.txt", 100_000, 49_996, 0)]


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
    not_prepared("steam", f"^{prepare.SOURCES['steam.txt'].url}: cannot download .*404")
    assert not Path("data/downloads/steam.txt").exists()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/steam.txt"  # bound, not listening: refuses
        monkeypatch.setitem(prepare.SOURCES, "steam.txt", replace(prepare.SOURCES["steam.txt"], url=url))
        not_prepared("steam", f"^{url}: cannot download .*refused.*--from DIR")


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
    "unbalanced": ("steam.txt", lambda b: b.replace(b"0\t", b"1\t", 1), ": has 31 positive.* 30 ± 0;"),
    "beyond the slack": ("ratings_train.txt", lambda b: b.replace(b"\t0\n", b"\t1\n", 2),
                         ": has 52 positive.* 50 ± 1;"),
    "three stars": ("naver_shopping.txt", lambda b: b.replace(b"2\t", b"3\t", 1), ":2: label '3'"),
    "no tab": ("steam.txt", lambda b: b.replace(b"1\t", b"1 ", 1), ":2: no tab"),
    "CP949": ("steam.txt", lambda b: b.replace("게임 3".encode(), "게임 3".encode("cp949")), ":4: not UTF-8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_and_nothing_is_touched(server, case):
    name, damage, message = DAMAGED[case]
    corpus = next(corpus for corpus, names in prepare.CORPORA.items() if name in names)
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
    ("nsmc --test-percent 20", "column flags"), ("steam --seed x", "--seed"),
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
