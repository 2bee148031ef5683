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

from data import prepare
from data.examples import read_examples
from runtime import UserError

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
        asked = self.headers.get("Range")
        server.requests.append((name, asked))
        if name not in server.files:
            return self.send_error(404)
        body = server.files[name]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][:server.cut])  # the connection ends with the handler

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The loopback server; prepare.SOURCES points at it and at the tiny files' counts. Runs in tmp_path."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.ranges, server.cut, server.shift = dict(FILES), [], True, None, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, (rows, positives, slack) in COUNTS.items():
        source = replace(prepare.SOURCES[name], url=f"http://127.0.0.1:{server.server_port}/{name}",
                         rows=rows, positives=positives, slack=slack)
        monkeypatch.setitem(prepare.SOURCES, name, source)
    monkeypatch.chdir(tmp_path)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def prepared(*flags):
    prepare.main(prepare.parse_args(list(map(str, flags))))


def rows(folder, split):
    """The rows of an output file, header first, read without any help of the kit."""
    text = (Path(folder) / f"{split}.tsv").read_bytes().decode()
    assert text.endswith("\n") and "\r" not in text
    return [tuple(line.split("\t")) for line in text[:-1].split("\n")]


def sizes(folder):
    return tuple(len(rows(folder, split)) - 1 for split in OUTPUTS)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# ---- the published table -----------------------------------------------------------------------------------


def test_published_counts_and_addresses():
    """e9t/nsmc README (150K, 50K, 'random guess yields 50% accuracy'); bab2min/corpus sentiment/README.md."""
    found = {name: (s.rows, s.positives, s.slack) for name, s in prepare.SOURCES.items()}
    assert found == {
        "ratings_train.txt": (150_000, 75_000, 1_500),
        "ratings_test.txt": (50_000, 25_000, 500),
        "naver_shopping.txt": (200_000, 81_177 + 18_786, 0),
        "steam.txt": (100_000, 49_996, 0),
    }
    raw = "https://raw.githubusercontent.com"
    assert [source.url for source in prepare.SOURCES.values()] == [
        f"{raw}/e9t/nsmc/master/ratings_train.txt", f"{raw}/e9t/nsmc/master/ratings_test.txt",
        f"{raw}/bab2min/corpus/master/sentiment/naver_shopping.txt",
        f"{raw}/bab2min/corpus/master/sentiment/steam.txt"]


# ---- the corpora -------------------------------------------------------------------------------------------


def test_nsmc_keeps_the_published_test_and_carves_valid_from_train(server):
    prepared("nsmc")
    assert sizes("data/nsmc") == (95, 5, 30)
    published = [tuple(line.split("\t")) for line in FILES["ratings_test.txt"].decode()[:-1].split("\n")]
    assert rows("data/nsmc", "test") == [("id", "text", "label"), *published[1:]]
    train = FILES["ratings_train.txt"].decode()[:-1].split("\n")[1:]
    assert sorted(rows("data/nsmc", "train")[1:] + rows("data/nsmc", "valid")[1:]) == \
        sorted(tuple(line.split("\t")) for line in train)
    assert (Path("data/downloads") / "ratings_train.txt").read_bytes() == FILES["ratings_train.txt"]


def test_quotes_blank_texts_and_odd_line_ends_survive(server):
    prepared("nsmc")
    everything = {row[0]: row[1:] for split in OUTPUTS for row in rows("data/nsmc", split)[1:]}
    assert everything["1000"] == ('"따옴표로 시작', "0")
    assert everything["1001"] == ("", "1")
    assert everything["1002"] == ("중간\u0085줄", "0")
    examples = [read_examples(f"data/nsmc/{split}.tsv") for split in OUTPUTS]
    assert sum(part.texts.count("") for part in examples) == 2  # one in each published file


def test_shopping_maps_stars_and_splits(server):
    prepared("shopping")
    assert sizes("data/shopping") == (171, 9, 20)  # 10 % of 200, 5 % of 180
    label = {"1": "0", "2": "0", "4": "1", "5": "1"}
    seen = {row for split in OUTPUTS for row in rows("data/shopping", split)[1:]}
    assert seen == {(f"별 {s} 상품 {i}", label[s]) for i in range(50) for s in "1245"}


def test_steam_parts_are_rounded_up_and_a_tab_becomes_a_space(server):
    prepared("steam", "--out", "elsewhere")
    assert sizes("elsewhere") == (51, 3, 6)  # 6 of 60, ceil(2.7) of 54
    everything = [row for split in OUTPUTS for row in rows("elsewhere", split)[1:]]
    assert ("게임 7 탭 끝", "1") in everything
    assert rows("elsewhere", "train")[0] == ("text", "label")
    prepared("split", "elsewhere/test.tsv", "--out", "again")
    assert sizes("again") == (4, 1, 1)


def test_seed_mix_is_all_three_shuffled(server):
    prepared("seed-mix")
    assert sizes("data/seed-mix") == (333, 18, 39)  # 390 rows: 39, then ceil(17.55) of 351
    everything = [row for split in OUTPUTS for row in rows("data/seed-mix", split)[1:]]
    assert len({row[0] for row in everything}) == 390 - 3  # the two NSMC files share three texts
    assert rows("data/seed-mix", "train")[0] == ("text", "label")
    for split in OUTPUTS:  # shuffled: every part has rows of every corpus
        assert {row[0][:2] for row in rows("data/seed-mix", split)[1:]} >= {"영화", "별 ", "게임"}


def test_the_seed_alone_decides(server):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepared("shopping", "--out", out, "--seed", seed)
    assert bytes_of("a") == bytes_of("b")
    assert bytes_of("a")["test.tsv"] != bytes_of("c")["test.tsv"]
    prepared("nsmc", "--out", "d")
    prepared("nsmc", "--out", "e", "--seed", 2)
    assert bytes_of("d")["test.tsv"] == bytes_of("e")["test.tsv"]
    assert bytes_of("d")["valid.tsv"] != bytes_of("e")["valid.tsv"]
    # the same files on every machine and in every version: the first test rows of seed 1, by random()
    generator = random.Random(1)
    order = sorted((generator.random(), i) for i in range(200))
    lines = FILES["naver_shopping.txt"].decode().split("\n")
    assert [row[0] for row in rows("a", "test")[1:]] == [lines[i].split("\t")[1] for _, i in order[:20]]


def test_summary_names_rows_positives_and_the_next_command(server, capsys):
    prepared("nsmc")
    text = capsys.readouterr().out
    train = rows("data/nsmc", "train")[1:]
    positives = sum(row[2] == "1" for row in train)
    assert re.search(rf"^train +95 +{95 - positives} +{positives} +data/nsmc/train.tsv$", text, re.M)
    assert re.search(r"^test +30 +15 +15 +data/nsmc/test.tsv$", text, re.M)
    assert "next: python train_tokenizer.py --data data/nsmc/train.tsv\n" in text


# ---- download ----------------------------------------------------------------------------------------------


def test_nothing_is_fetched_twice(server):
    prepared("nsmc")
    assert server.requests == [("ratings_train.txt", None), ("ratings_test.txt", None)]
    prepared("nsmc")
    assert len(server.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_download_is_refused_and_resumed(server, ranges):
    body, target = FILES["naver_shopping.txt"], Path("data/downloads/naver_shopping.txt")
    partial = target.with_name(target.name + ".partial")
    server.cut, server.ranges = 1001, ranges
    with pytest.raises(UserError, match=f"ended after 1,001 of {len(body):,} bytes.*run again to resume"):
        prepared("shopping")
    assert partial.read_bytes() == body[:1001]
    assert not target.exists() and not Path("data/shopping").exists()

    server.cut = None
    prepared("shopping")
    assert server.requests == [("naver_shopping.txt", None), ("naver_shopping.txt", "bytes=1001-")]
    assert target.read_bytes() == body
    assert not partial.exists()


def test_cut_twice(server):
    body = FILES["naver_shopping.txt"]
    server.cut = 500
    for total in (500, 1000):
        with pytest.raises(UserError, match=f"ended after {total:,} of {len(body):,}"):
            prepared("shopping")
    server.cut = None
    prepared("shopping")
    assert server.requests[-1] == ("naver_shopping.txt", "bytes=1000-")
    assert Path("data/downloads/naver_shopping.txt").read_bytes() == body


@pytest.mark.parametrize(("extra", "requests"), [(b"", 1), (b"more than there is", 2)])
def test_416_means_whole_or_another_version(server, extra, requests):
    """A partial file of the right length is taken as whole; a longer one is fetched anew."""
    body, target = FILES["steam.txt"], Path("data/downloads/steam.txt")
    target.parent.mkdir(parents=True)
    target.with_name("steam.txt.partial").write_bytes(body + extra)
    prepared("steam")
    assert target.read_bytes() == body
    assert len(server.requests) == requests
    assert not target.with_name("steam.txt.partial").exists()


def test_another_range_than_asked_for_is_not_appended(server):
    body, target = FILES["steam.txt"], Path("data/downloads/steam.txt")
    target.parent.mkdir(parents=True)
    target.with_name("steam.txt.partial").write_bytes(body[:100])
    server.shift = 3
    with pytest.raises(UserError, match="another part"):
        prepared("steam")
    prepared("steam")
    assert target.read_bytes() == body
    assert [asked for _, asked in server.requests] == ["bytes=100-", None]


def refused(capsys, *flags):
    """The one line on stderr of a run that ends with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        prepare.run(prepare.main, prepare.parse_args(list(map(str, flags))))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith("\n")
    return error


def test_404_and_offline_are_one_line(server, capsys, monkeypatch):
    del server.files["steam.txt"]
    error = refused(capsys, "steam")
    assert f"{prepare.SOURCES['steam.txt'].url}: cannot download (HTTP Error 404: Not Found)" in error
    assert not Path("data/downloads/steam.txt").exists()

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/steam.txt"  # bound, not listening: refuses
        monkeypatch.setitem(prepare.SOURCES, "steam.txt", replace(prepare.SOURCES["steam.txt"], url=url))
        error = refused(capsys, "steam")
    assert f"{url}: cannot download" in error and "refused" in error and "--from DIR" in error


# ---- --from and verification -------------------------------------------------------------------------------


def test_from_uses_the_files_and_fetches_nothing(server, capsys):
    Path("mine").mkdir()
    Path("mine/ratings_train.txt").write_bytes(FILES["ratings_train.txt"])
    assert "mine/ratings_test.txt: not found" in refused(capsys, "nsmc", "--from", "mine")
    Path("mine/ratings_test.txt").write_bytes(FILES["ratings_test.txt"].replace(b"\n", b"\r\n"))
    prepared("nsmc", "--from", "mine")
    assert sizes("data/nsmc") == (95, 5, 30)
    assert server.requests == [] and not Path("data/downloads").exists()
    assert sorted(os.listdir("mine")) == ["ratings_test.txt", "ratings_train.txt"]


DAMAGED = {
    "a row lost": ("steam.txt", lambda b: b[:b.rindex(b"\n")], "59 rows, published are 60"),
    "a row too many": ("ratings_test.txt", lambda b: b + "9\t덤\t1\n".encode(), "31 rows, published are 30"),
    "unbalanced": ("steam.txt", lambda b: b.replace(b"0\t", b"1\t", 1), "31 positive rows, published are 30"),
    "beyond the slack": ("ratings_train.txt", lambda b: b.replace(b"\t0\n", b"\t1\n", 2),
                         "52 positive rows, published are 50 ± 1;"),
    "three stars": ("naver_shopping.txt", lambda b: b.replace(b"2\t", b"3\t", 1), "txt:2: label '3' where 1"),
    "no tab": ("steam.txt", lambda b: b.replace(b"1\t", b"1 ", 1), "txt:2: no tab"),
    "not UTF-8": ("steam.txt", lambda b: b.replace("게임 3".encode(), "게임 3".encode("cp949")), "not UTF-8"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_and_nothing_is_touched(server, capsys, case):
    name, damage, message = DAMAGED[case]
    corpus = next(corpus for corpus, names in prepare.CORPORA.items() if name in names)
    prepared(corpus)
    before = bytes_of(f"data/{corpus}")
    damaged = damage(FILES[name])
    assert damaged != FILES[name]
    Path(f"data/downloads/{name}").write_bytes(damaged)
    error = refused(capsys, corpus, "--seed", 2)
    assert f"data/downloads/{name}" in error and message in error
    assert bytes_of(f"data/{corpus}") == before


def test_the_slack_itself_is_accepted(server):
    server.files["ratings_train.txt"] = FILES["ratings_train.txt"].replace(b"\t0\n", b"\t1\n", 1)
    prepared("nsmc")
    labels = [row[2] for split in ("train", "valid") for row in rows("data/nsmc", split)[1:]]
    assert labels.count("1") == 51


# ---- split -------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """pairs.csv: 100 rows of premise, hypothesis, gold and id, with commas, quotes, tabs and line ends."""
    monkeypatch.chdir(tmp_path)
    with open("pairs.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "gold", "premise", "hypothesis", "note"])
        for i in range(100):
            writer.writerow([f"p{i}", "나다가"[i % 3], f'전제, "{i}"', f"가설\t{i}\r\n둘째\n줄", "unused"])
    return "pairs.csv"


def test_split_keeps_text2_and_id(pairs, capsys):
    prepared("split", "--text-column", "premise", "--text2-column", "hypothesis", "--label-column", "gold",
             "--out", "mine", pairs)  # FILE after the flags
    assert sizes("mine") == (85, 5, 10)
    assert rows("mine", "train")[0] == ("id", "text", "text2", "label")
    everything = {row for split in OUTPUTS for row in rows("mine", split)[1:]}
    assert everything == {(f"p{i}", f'전제, "{i}"', f"가설 {i}  둘째 줄", label)
                          for i, label in zip(range(100), "나다가" * 34, strict=False)}
    test = read_examples("mine/test.tsv")
    assert test.ids == [row[0] for row in rows("mine", "test")[1:]]
    out = capsys.readouterr().out
    counts = [sum(row[3] == label for row in rows("mine", "test")) for label in "가나다"]
    assert re.search(rf"^test +10 +{counts[0]} +{counts[1]} +{counts[2]} +mine/test.tsv$", out, re.M)


def write_tsv(name, data):
    lines = ("\t".join(row) + "\n" for row in [("text", "label"), *data])
    Path(name).write_text("".join(lines), encoding="utf-8")


def test_leaks_are_counted_and_dropped_exactly(tmp_path, monkeypatch, capsys):
    """Twenty texts, each 5 times with blanks around some: every train row can be checked by hand."""
    monkeypatch.chdir(tmp_path)
    data = [(f"{' ' * (i % 2)}글 {i % 20}{' ' * (i % 3)}" if i % 20 else "", str(i % 2)) for i in range(100)]
    write_tsv("leaky.tsv", data)
    prepared("split", "leaky.tsv", "--out", "kept")
    train, valid, test = (rows("kept", split)[1:] for split in OUTPUTS)
    assert (len(train), len(valid), len(test)) == (85, 5, 10)
    in_valid = [row for row in train if row[0].strip() in {other[0].strip() for other in valid}]
    in_test = [row for row in train if row[0].strip() in {other[0].strip() for other in test}]
    clean = [row for row in train if row not in in_valid and row not in in_test]
    assert 0 < len(in_valid) < 85 and 0 < len(in_test) < 85 and clean
    out = capsys.readouterr().out
    for found, split in ((in_valid, "valid"), (in_test, "test")):
        assert f"leaks: {len(found)} of 85 train rows ({len(found) / 85:.2%}) " \
               f"have a text that is also in {split}\n" in out
    assert "--drop-leaks removes them" in out

    prepared("split", "leaky.tsv", "--out", "dropped", "--drop-leaks")
    assert rows("dropped", "train")[1:] == clean
    assert rows("dropped", "valid")[1:] == valid and rows("dropped", "test")[1:] == test
    assert f"leaks: {85 - len(clean)} rows removed from train\n" in capsys.readouterr().out


def test_a_pair_leaks_only_as_a_pair(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": "같은 전제", "text2": f"가설 {i}", "label": i % 2}) for i in range(40)]
    Path("pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepared("split", "pairs.jsonl")
    assert capsys.readouterr().out.count("leaks: 0 of 34 train rows (0.00%)") == 2
    assert sizes("data/pairs") == (34, 2, 4)


def test_a_split_that_leaves_none_to_train_on_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    unlabelled = [("글", "")] * 5
    for labelled, percent in ((10, 89), (3, 34), (2, 10)):
        write_tsv("reviews.tsv", [(f"글 {i}", str(i % 2)) for i in range(labelled)] + unlabelled)
        assert f"reviews.tsv: {labelled} labelled rows leave none to train on" in refused(
            capsys, "split", "reviews.tsv", "--test-percent", percent)
    assert not Path("data").exists()


def test_a_class_that_a_part_lacks_is_told_and_a_pipe_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tsv("reviews.tsv", [("글", "긍정"), *((f"글 {i}", "부정") for i in range(39))])
    prepared("split", "reviews.tsv")
    holder = next(split for split in ("train", "valid", "test")
                  if any(row[-1] == "긍정" for row in rows("data/reviews", split)[1:]))
    assert capsys.readouterr().err.splitlines() == [
        f"warning: data/reviews/{split}.tsv has no row of 긍정; more rows would do"
        for split in ("train", "valid", "test") if split != holder]
    os.mkdir("piped")
    os.mkfifo("piped/train.tsv")
    assert "piped/train.tsv: is no file that could be replaced" in refused(
        capsys, "split", "reviews.tsv", "--out", "piped")
    assert os.listdir("piped") == ["train.tsv"] and Path("piped/train.tsv").is_fifo()


def test_a_file_that_has_its_test_set_already_gives_train_and_valid_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tsv("reviews.tsv", [(f"글 {i}", str(i % 2)) for i in range(40)])
    prepared("split", "reviews.tsv", "--test-percent", "0")
    assert sorted(path.name for path in Path("data/reviews").iterdir()) == ["train.tsv", "valid.tsv"]
    train, valid = (rows("data/reviews", split)[1:] for split in ("train", "valid"))
    assert (len(train), len(valid)) == (38, 2)
    assert sorted(train + valid) == sorted(rows(".", "reviews")[1:])


def test_split_refusals_leave_everything_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    write_tsv("mine/train.tsv", [(f"글 {i}", str(i % 2)) for i in range(20)])
    write_tsv("same.tsv", [("같은 글", str(i % 2)) for i in range(20)])
    write_tsv("two.tsv", [("하나", "0"), ("둘", "1")])
    Path("nolabel.csv").write_text("text\n하나\n둘\n셋\n", encoding="utf-8")
    half = json.dumps({"text": "반쪽 \ud83d", "label": "0"})
    Path("half.jsonl").write_text("\n".join([half, half, half.replace('"0"', '"1"')]), encoding="utf-8")
    before = bytes_of("mine")
    assert "would be overwritten" in refused(capsys, "split", "mine/train.tsv", "--out", "mine")
    assert "no row in train" in refused(capsys, "split", "same.tsv", "--out", "mine", "--drop-leaks")
    assert "2 rows" in refused(capsys, "split", "two.tsv", "--out", "mine")
    assert "no row has a label" in refused(capsys, "split", "nolabel.csv", "--out", "mine")
    assert "half.jsonl:1: 'text' holds half of a surrogate pair" in refused(capsys, "split", "half.jsonl")
    assert "two.tsv: cannot write" in refused(capsys, "split", "same.tsv", "--out", "two.tsv")
    assert bytes_of("mine") == before


def test_nul_and_line_ends_from_jsonl_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": f"가\0나\r다\n라\t마 {i}", "label": i % 2}) for i in range(10)]
    Path("odd.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepared("split", "odd.jsonl")
    texts = [text for split in OUTPUTS for text in read_examples(f"data/odd/{split}.tsv").texts]
    assert sorted(texts) == [f"가 나 다 라 마 {i}" for i in range(10)]


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_a_failed_rename_puts_the_earlier_set_back(server, capsys, monkeypatch, fails_at):
    """Three renames set the earlier files aside, three bring the new ones: each is made to fail in turn."""
    prepared("steam")
    before, calls, real = bytes_of("data/steam"), [], os.replace

    def failing(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise PermissionError(13, "open in another program")
        if 3 < len(calls) < fails_at:  # never old and new together
            assert len(list(Path("data/steam").glob(".*.old"))) == 3
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    assert "nothing was changed" in refused(capsys, "steam", "--seed", 2)
    assert bytes_of("data/steam") == before  # no temporary files either


def test_a_failed_rename_leaves_no_part_of_a_first_set(server, capsys):
    """valid.tsv is a folder here, so the second of three renames fails."""
    Path("data/steam/valid.tsv").mkdir(parents=True)
    assert "nothing was changed" in refused(capsys, "steam")
    assert os.listdir("data/steam") == ["valid.tsv"]


def test_a_new_set_replaces_the_earlier_one_and_leaves_no_litter(server):
    prepared("steam")
    before = bytes_of("data/steam")
    Path("data/steam/notes.txt").write_text("mine")
    prepared("steam", "--seed", 2)
    assert sorted(bytes_of("data/steam")) == ["notes.txt", "test.tsv", "train.tsv", "valid.tsv"]
    assert bytes_of("data/steam")["test.tsv"] != before["test.tsv"]


# ---- command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "message"), [
    ([], "required: corpus"),
    (["imdb"], "invalid choice: 'imdb'"),
    (["split"], "split needs a FILE"),
    (["split", "a.csv", "--from", "x"], "--from is for the public corpora"),
    (["nsmc", "a.csv"], "FILE, --test-percent and the column flags are for split"),
    (["steam", "--text-column", "x"], "FILE, --test-percent and the column flags are for split"),
    (["steam", "--seed", "x"], "invalid int value: 'x'"),
])
def test_misuse(capsys, flags, message):
    with pytest.raises(SystemExit) as exit_:
        prepare.parse_args(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]


def test_default_folders():
    assert prepare.parse_args(["seed-mix"]).out == Path("data/seed-mix")
    assert prepare.parse_args(["split", "x/reviews.csv.gz"]).out == Path("data/reviews")
    assert prepare.parse_args(["split", "--out", "y", "reviews.csv"]).file == "reviews.csv"


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "data.prepare", "steam", "--from", tmp_path, "--out", tmp_path / "out"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path / 'steam.txt'}: not found; --from needs steam.txt in DIR\n"
    assert list(tmp_path.iterdir()) == []


def test_help_is_the_manual_and_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['prepare', '--help']\n" \
           "import runpy; runpy.run_module('data.prepare', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert prepare.__doc__.strip() in result.stdout
    assert "(default: data/downloads)" in " ".join(result.stdout.split())


def test_rows_without_label_go_to_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tsv("some.tsv", [(f"글 {i}", "" if i % 2 else str(i % 4 // 2)) for i in range(80)])
    prepared("split", "some.tsv")
    assert sizes("data/some") == (74, 2, 4)  # 40 labelled rows: 4, 2 and 34; and the 40 others
    assert sum(row[1] == "" for row in rows("data/some", "train")[1:]) == 40
    assert all(row[1] for split in ("valid", "test") for row in rows("data/some", split)[1:])


def test_a_split_neither_guesses_an_existing_folder_nor_leaves_a_stale_test(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tsv("sample.tsv", [(f"글 {i}", str(i % 2)) for i in range(40)])
    prepared("split", "sample.tsv")
    before = bytes_of("data/sample")
    with pytest.raises(SystemExit):
        prepared("split", "sample.tsv")
    assert "data/sample exists; name the folder to write into with --out" in capsys.readouterr().err
    assert "from an earlier split" in refused(
        capsys, "split", "sample.tsv", "--out", "data/sample", "--test-percent", "0")
    assert bytes_of("data/sample") == before
