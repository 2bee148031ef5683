"""data/examples.py: one table in every format, columns found by name, targets, fingerprints, refusals."""

import csv
import gzip
import hashlib
import io
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import refused

from data import examples as module
from data.examples import fingerprint_of_first, read_again, read_examples, stem, stream_examples, survey
from tasks import Classification


def write(path, data):
    """Text or bytes to a path, compressed if it ends in .gz; returns the path."""
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.name.lower().endswith(".gz") else data)
    return path


def read(tmp_path, name, data, **columns):
    return read_examples(write(tmp_path / name, data), **columns)


def labelled(tmp_path, labels, name="a.tsv"):
    return read(tmp_path, name, "text\tlabel\n" + "".join(f"글\t{label}\n" for label in labels))


# ---- formats -----------------------------------------------------------------------------------------------

# Neither LF nor tab, so that a .tsv can hold it; but all that a reader could take for a quote or a line end.
ROWS = [
    ("7", "재밌다, 정말", "둘째", "1"),
    ("8", '"열린 따옴표', '"', "0"),
    ("9", "", "앞은 빈 글", "1"),
    ("10", "중간\u2028줄\u0085\x0b\x1c과 \r끝", "나'", ""),
    ("", " 앞뒤 빈칸 ", "😀 é é", "0"),
]
COLUMNS = ("id", "text", "text2", "label")


def formatted(ending, end="\n"):
    """COLUMNS and ROWS as a file with this ending, lines ended by `end`."""
    if ending == "jsonl":
        return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + end for row in ROWS)
    if ending == "csv":
        file = io.StringIO()
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator=end).writerows([COLUMNS, *ROWS])
        return file.getvalue()
    return "".join("\t".join(row) + end for row in [COLUMNS, *ROWS])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv", "a.jsonl", "a.tsv.gz", "a.csv.gz", "a.jsonl.gz",
                                  "A.TSV", "A.Csv.GZ"])
def test_every_format_gives_the_same_rows_and_fingerprint(tmp_path, name, bom, end):
    ending = name.lower().split(".")[1]
    data = bom + formatted(ending, end)
    found = read(tmp_path, name, data)
    assert list(zip(found.ids, found.texts, found.texts2, found.answers, strict=True)) == ROWS
    assert (found.path, found.column, len(found)) == (str(tmp_path / name), "label", 5)
    assert found.lines.tolist() == ([1, 2, 3, 4, 5] if ending == "jsonl" else [2, 3, 4, 5, 6])
    assert found.fingerprint() == read(tmp_path, "plain.tsv", formatted("tsv")).fingerprint()
    assert found == read(tmp_path, name, data.removesuffix(end))  # the last line needs no line end


def test_csv_quoting_and_line_numbers_follow_rfc_4180(tmp_path):
    """Rules 5 to 7: a quoted field may hold commas, line ends and doubled quotes; `lines` has first lines."""
    rows = '"가, 나",1\n"""아"" 했다",0\n"두\n줄",1\n"세\r\n\r\n줄","0"\n"",1\n,1\n마지막,""\n'
    found = read(tmp_path, "a.csv", "text,label\n" + rows)
    assert found.texts == ["가, 나", '"아" 했다', "두\n줄", "세\r\n\r\n줄", "", "", "마지막"]
    assert found.answers == ["1", "0", "1", "0", "1", "1", ""]
    assert found.lines.tolist() == [2, 3, 4, 6, 9, 10, 11]


@pytest.mark.parametrize("name, data", [
    ("a.tsv", "text\n\n \n글\n"), ("a.tsv", "text\r\n\r\n \r\n글"), ("a.csv", 'text\n""\n \n글\n'),
    ("a.csv", "text\n\n \n글\n"), ("a.jsonl", '{"text": ""}\n{"text": " "}\n{"text": "글"}\n'),
])
def test_blank_texts_stay_rows(tmp_path, name, data):
    assert read(tmp_path, name, data).texts == ["", " ", "글"]


def test_jsonl_takes_numbers_and_truth_values_as_answers_and_whole_numbers_as_ids(tmp_path):
    """Blank lines are not rows; an absent or null answer is unknown; keys that are no column are ignored."""
    lines = ['{"id": 5, "label": 1, "text": "가"}', "",
             '{"text": "나", "label": true, "id": "x", "more": [1]}', " \t",
             '{"id": -3, "label": false, "text": "다"}', '{"text": "라", "label": null}', '{"text": "마"}',
             '{"text": "바", "label": 3.50}']
    found = read(tmp_path, "a.jsonl", "\n".join(lines))
    assert found.texts == ["가", "나", "다", "라", "마", "바"]
    assert found.answers == ["1", "1", "0", "", "", "3.5"]
    assert found.ids == ["5", "x", "-3", "", "", ""]
    assert found.lines.tolist() == [1, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("path, name", [
    ("data/train.tsv.gz", "train"), ("a.b.csv", "a.b"), ("x.jsonl", "x"), ("x.txt", "x"), ("x.gz", "x"),
])
def test_stem(path, name):
    assert stem(path) == name


# ---- columns -----------------------------------------------------------------------------------------------

WIDE = "note\tgold\ttext\tid\tother\tlabel\n n\tg\tt\ti\to\tl\n"


@pytest.mark.parametrize("data, columns, expected", [
    ("text\nt\n", {}, ("t", None, None, None, None)),
    ("document\nd\n", {}, ("d", None, None, None, None)),
    ("id\tdocument\tlabel\n9\td\t1\n", {}, ("d", None, "1", "9", "label")),
    ("text\ttext2\tgold\nt\tu\t1\n", {}, ("t", "u", None, None, None)),
    (WIDE, {}, ("t", None, "l", "i", "label")),
    (WIDE, {"text_column": "note", "text2_column": "other", "label_column": "gold"},
     (" n", "o", "g", "i", "gold")),
    ("text\tdocument\nt\td\n", {"text_column": "document"}, ("d", None, None, None, None)),
    ("Text\ttext\tIDs\nT\tt\tI\n", {}, ("t", None, None, None, None)),  # names are matched as written
])
@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_columns_are_found_by_name(tmp_path, data, columns, expected, ending):
    if ending == "csv":
        data = data.replace("\t", ",")
    if ending == "jsonl":
        data = json.dumps(dict(zip(*(line.split("\t") for line in data.splitlines()), strict=True)))
    found = read(tmp_path, f"a.{ending}", data, **columns)
    values = (found.texts, found.texts2, found.answers, found.ids)
    assert values == tuple(value and [value] for value in expected[:4])
    assert found.column == expected[4] == survey(found.path, **columns).column


@pytest.mark.parametrize("flags", [{"text2_column": "text"}, {"text2_column": "label"}])
def test_no_column_is_read_twice(tmp_path, flags):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n글\t1\n", "utf-8")
    refused(lambda: read_examples(str(path), **flags), "a.tsv", "twice", "--(text2|label)-column")


def test_a_key_that_only_later_objects_have_is_refused_if_it_would_be_a_column(tmp_path):
    for name, value in (("label", "1"), ("text2", "글"), ("id", 3)):
        lines = [json.dumps({"t": "가", "u": "나"}), json.dumps({"t": "다", "u": "라", name: value})]
        path = write(tmp_path / "a.jsonl", "\n".join(lines))
        refused(lambda path=path: read_examples(path, "t"), rf"a\.jsonl:2: .*'{name}'")
        if name != "id":  # another column plays that part
            assert len(read_examples(path, "t", "u" if name == "text2" else None,
                                     "u" if name == "label" else None)) == 2


# ---- targets -----------------------------------------------------------------------------------------------


class Vowels:
    """A toy task on characters: the target is two numbers, and depends on the text."""

    column, per = "vowels", "char"

    def read(self, cell, text):
        if cell and int(cell) > len(text):
            raise ValueError(f"{cell} is beyond the text; correct it")
        return [int(cell or -1), len(text)]


def test_targets_are_what_the_task_reads(tmp_path):
    task = Classification(["b", "a"])
    target, known = labelled(tmp_path, ["b", "", "a", "b"]).targets(task)
    assert (target[known].tolist(), known.tolist()) == ([0, 1, 0], [True, False, True, True])
    assert (target.shape, target.dtype, known.dtype) == ((4,), torch.int64, torch.bool)
    target, known = read(tmp_path, "a.tsv", "text\n글\n글\n").targets(task)  # no column
    assert (len(target), known.tolist()) == (2, [False, False])
    assert labelled(tmp_path, ["b", "a"]).targets(task, every_row=True)[0].tolist() == [0, 1]


@pytest.mark.parametrize("per, lengths", [("char", [2, 0]), ("text", [1, 3])])
def test_of_a_pair_characters_are_those_of_the_second_text(tmp_path, per, lengths):
    task = Vowels()
    task.per = per
    found = read(tmp_path, "a.tsv", "text\ttext2\tvowels\n가\t나다\t1\n라마바\t\t\n", label_column="vowels")
    assert found.targets(task)[0].tolist() == [[1, lengths[0]], [-1, lengths[1]]]


def test_an_answer_that_cannot_be_read_is_told_with_its_line(tmp_path):
    found = read(tmp_path, "a.csv", 'text,label\n"두\n줄",1\n글,\n글,긍정\n글,부정\n')
    task = Classification(["0", "1"])
    message = refused(lambda: found.targets(task), rf"^{tmp_path}/a\.csv:5: .*긍정", "empty if")
    assert "부정" not in message
    refused(lambda: found.targets(Classification(["긍정", "부정"])), r"a\.csv:2: .*'1'")
    short = read(tmp_path, "b.tsv", "text\tvowels\n가나\t2\n가\t2\n", label_column="vowels")
    refused(lambda: short.targets(Vowels()), r"b\.tsv:3: 2 is beyond")


def test_every_row_needs_an_answer_where_that_is_asked_for(tmp_path):
    task = Classification(["a", "b"])
    found, bare = labelled(tmp_path, ["a", "", "b", ""]), read(tmp_path, "b.tsv", "text\n글\n")
    refused(lambda: found.targets(task, every_row=True), r"a\.tsv:3: no label")
    refused(lambda: bare.targets(task, every_row=True), r"b\.tsv: no column label.*text")
    message = refused(lambda: labelled(tmp_path, ["c"]).targets(task, every_row=True), r"a\.tsv:2: .*'c'")
    assert "empty" not in message  # would not help


def test_take_gives_these_rows_in_this_order(tmp_path):
    found = read(tmp_path, "a.tsv", formatted("tsv"))
    part = found.take([3, 0])
    assert list(zip(part.ids, part.texts, part.texts2, part.answers, strict=True)) == [ROWS[3], ROWS[0]]
    assert (list(part.lines), part.path, part.column) == ([5, 2], found.path, "label")
    bare = read(tmp_path, "b.tsv", "text\n가\n나\n").take([1])
    assert (bare.texts, bare.texts2, bare.answers, bare.ids, bare.column) == (["나"], None, None, None, None)


# ---- fingerprints ------------------------------------------------------------------------------------------


def fingerprint(tmp_path, *rows, columns="text"):
    """Of a .tsv; the cells of a row are separated by |."""
    return read(tmp_path, "a.tsv", "\n".join([columns, *rows, ""]).replace("|", "\t")).fingerprint()


def test_every_change_to_a_text_or_its_place_changes_the_fingerprint(tmp_path):
    found = [
        *(fingerprint(tmp_path, *rows) for rows in (
            ("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("abc",), ("c", "ab"), ("ab ", "c"),
            ("ab", "c", ""))),
        *(fingerprint(tmp_path, *rows, columns="text|text2") for rows in (
            ("ab|", "c|"), ("ab|c",), ("c|ab",), ("a|bc",), ("abc|",), ("|abc",), ("ab|d", "c|e"),
            ("ab|e", "c|d"))),
    ]
    assert len(set(found)) == len(found) == 16


def test_the_fingerprint_is_this_sha256_of_the_texts_for_good(tmp_path):
    """Logits files carry it: another recipe would refuse all that exist. Other columns do not enter."""
    def sized(text):
        return len(text.encode()).to_bytes(8, "little") + text.encode()

    single = hashlib.sha256(b"column" + sized("가나") + sized("") + b"none").hexdigest()
    assert fingerprint(tmp_path, "가나", "") == single
    assert fingerprint(tmp_path, "1|가나|x", "0||", columns="label|document|id") == single
    second = hashlib.sha256(b"column" + sized("나")).digest()  # both columns of a stream are hashed at once
    pair = hashlib.sha256(b"column" + sized("가") + second).hexdigest()
    assert fingerprint(tmp_path, "나|가", columns="text2|text") == pair


@pytest.mark.parametrize("chunk", [1, 2, 8192])
def test_the_fingerprint_of_the_first_rows_is_that_of_a_file_of_them(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(stream_examples, "__defaults__", (*stream_examples.__defaults__[:-1], chunk))
    path = write(tmp_path / "a.tsv", formatted("tsv"))
    whole = read_examples(path)
    for rows in (1, 2, 3, 5, 9):
        assert fingerprint_of_first(rows, path) == whole.take(range(min(rows, 5))).fingerprint()


def test_the_fingerprint_of_answers_is_theirs_in_order_and_not_that_of_texts(tmp_path):
    def found(rows):
        rows = rows.replace(" ", "\n").replace("|", "\t")
        return survey(write(tmp_path / "a.tsv", f"text\tlabel\n{rows}\n"))

    first = found("가|1 나|0 다|")
    others = [found(rows) for rows in ("가|0 나|1 다|", "가|1 나| 다|0", "가|10 나| 다|", "가|1 나|0 다|1")]
    assert len({first.answer_fingerprint, *(other.answer_fingerprint for other in others)}) == 5
    assert {first.fingerprint, *(other.fingerprint for other in others)} == {first.fingerprint}
    same_answers = found("라|1 나|0 다|")
    assert same_answers.answer_fingerprint == first.answer_fingerprint
    assert same_answers.fingerprint != first.fingerprint


# ---- a file in parts ---------------------------------------------------------------------------------------


def joined(parts):
    """The columns of parts as one list each, None for an absent one."""
    return {name: None if getattr(parts[0], name) is None else
            [value for part in parts for value in getattr(part, name)]
            for name in ("texts", "texts2", "answers", "ids", "lines")}


@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_file_read_in_parts_is_the_file_read_whole(tmp_path, monkeypatch, name, chunk):
    path = write(tmp_path / name, formatted(name.split(".")[1]))
    whole = read_examples(path)
    parts = list(stream_examples(path, chunk=chunk))
    assert [len(part) for part in parts] == [chunk] * (5 // chunk) + [5 % chunk] * (5 % chunk > 0)
    assert {(part.path, part.column) for part in parts} == {(str(path), "label")}
    assert joined(parts) == joined([whole])
    found = survey(path)
    assert joined(list(read_again(found, chunk=chunk))) == joined([whole])
    monkeypatch.setattr(stream_examples, "__defaults__", (*stream_examples.__defaults__[:-1], chunk))
    again = survey(path)
    assert len(again.head) == min(chunk, len(whole)) and len(found.head) == 5
    assert read_examples(path) == whole and replace(again, head=found.head) == found


def test_a_survey_counts_without_keeping_rows(tmp_path):
    path = write(tmp_path / "a.tsv", formatted("tsv"))
    found = survey(path)
    assert (found.path, found.rows, found.labelled, found.pairs) == (str(path), 5, 4, True)
    assert (found.answers, found.column) == (Counter({"0": 2, "1": 2}), "label")
    assert found.fingerprint == read_examples(path).fingerprint()
    bare = survey(write(tmp_path / "b.tsv", "text\n" + "글\n" * 3))
    assert (bare.rows, bare.labelled, bare.pairs, bare.answers, bare.column) == (3, 0, False, Counter(), None)
    named = survey(write(tmp_path / "c.tsv", WIDE), "note", "other", "gold")
    assert (named.rows, named.labelled, named.pairs, named.answers) == (1, 1, True, Counter("g"))


def test_an_answer_that_others_do_not_know_is_found_by_its_line(tmp_path):
    found = survey(write(tmp_path / "a.csv", 'text,gold\n"두\n줄",1\n글,\n글,긍정\n글,부정\n'),
                   label_column="gold")
    columns = None, None, "gold"
    refused(lambda: found.refuse_other_answers(Classification(["0", "1"]), *columns), r"a\.csv:5: .*긍정")
    found.refuse_other_answers(Classification(["1", "긍정", "부정", "no row has it"]), *columns)


@pytest.mark.parametrize("after", ["가1나1라0", "가1나1다0라0", "가1나1", "나1가1다0", "가1나0다0"])
@pytest.mark.parametrize("chunk", [1, 8])
def test_a_file_that_changed_between_its_readings_is_refused(tmp_path, after, chunk):
    """Another text, one row more, one row less, two rows exchanged, another answer."""
    path = write(tmp_path / "a.tsv", "text\tlabel\n가\t1\n나\t1\n다\t0\n")
    found = survey(path)
    assert len(list(read_again(found, chunk=chunk))) == -(-3 // chunk)
    rows = [after[i : i + 2] for i in range(0, len(after), 2)]
    write(path, "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    refused(lambda: list(read_again(found, chunk=chunk)), rf"^{path}: .*changed")


# ---- refusals ----------------------------------------------------------------------------------------------

CP949 = "text\n첫째\n".encode() + "둘째 글\n".encode("cp949")
GZIP = gzip.compress(("text\n" + "가나다라 " * 99).encode())
BAD = {  # file, content (None: not there), columns, line (0: of the file), key words
    "missing": ("a.tsv", None, {}, 0, "No such file"),
    "a folder": ("a.tsv", "folder", {}, 0, "cannot read"),
    "unknown ending": ("a.json", '{"text": "글"}', {}, 0, r"\.tsv, \.txt, \.csv or \.jsonl"),
    "only .gz": ("a.gz", "text\n글\n", {}, 0, "unknown ending"),
    "empty": ("a.tsv", "", {}, 0, "empty.*header"),
    "empty .jsonl": ("a.jsonl", "\n \n", {}, 0, "empty.*JSON"),
    "header only": ("a.tsv", "text\tlabel\n", {}, 0, "no rows"),
    "no text column": ("a.tsv", "글\tlabel\n글\t1\n", {}, 1, "text or document among.*--text-column"),
    "no text key": ("a.jsonl", '\n{"글": "글", "label": 1}\n', {}, 2, "text or document.*--text-column"),
    "--text-column": ("a.csv", "text\n글\n", {"text_column": "글"}, 1, "글.*--text-column"),
    "--text2-column": ("a.tsv", "text\n글\n", {"text2_column": "text2"}, 1, "text2.*--text2-column"),
    "--label-column": ("a.jsonl", '{"text": "글"}', {"label_column": "gold"}, 1, "gold.*--label-column"),
    "text twice": ("a.tsv", "text\tlabel\ttext\n1\t2\t3\n", {}, 1, "text.* 2 times.*--text-column"),
    "text and document": ("a.csv", "text,document\n1,2\n", {}, 1, "document.* 2 times.*--text-column"),
    "a tab too many": ("a.tsv", "text\tlabel\n글\t1\n가\t나\t0\n", {}, 3, "3 columns .* 2; .*tab"),
    "a comma too many": ("a.csv", 'text,label\n"두\n줄",1\n가,나,0\n', {}, 4, "3 columns .* 2; .*comma"),
    "blank line": ("a.csv", "text,label\n글,1\n\n", {}, 3, "empty line"),
    "blank line after a text of two": ("a.csv", 'text,label\n"두\n줄",1\n\n글,1\n', {}, 4, "empty line"),
    "CP949": ("a.tsv", CP949, {}, 3, "byte 12 .*CP949"),
    "CP949 in .csv.gz": ("a.csv.gz", CP949, {}, 3, "byte 12 .*CP949"),
    "half a character": ("a.jsonl", '{"text": "글"}'.encode()[:-3], {}, 1, "byte 10 "),
    "NUL": ("a.tsv", "text\n글\n가\0나\n", {}, 3, "NUL"),
    "UTF-16": ("a.csv", "text\n글\n".encode("utf-16"), {}, 1, "UTF-16"),
    "no gzip": ("a.tsv.gz", b"text\n", {}, 0, "Not a gzipped file"),
    "gzip cut": ("a.tsv.gz", GZIP[:-9], {}, 0, "end-of-stream"),
    "gzip with a wrong checksum": ("a.tsv.gz", GZIP[:-8] + b"\0\0\0\0" + GZIP[-4:], {}, 0, "CRC"),
    "gzip with a wrong code": ("a.tsv.gz", GZIP[:10] + b"\7" + GZIP[11:], {}, 0, "Error -3"),
    "quote left open": ("a.csv", 'text,label\n글,1\n"가,1\n나,0\n', {}, 3, "CSV"),
    "text after a quote": ("a.csv", 'text,label\n"두\n줄",1\n"가"나,1\n', {}, 4, "CSV"),
    "bare CR": ("a.csv", "text,label\n가\r나,1\n", {}, 2, "CR"),
    "no JSON": ("a.jsonl", '{"text": "글"}\n{"text":\n', {}, 2, "JSON.*column 1"),
    "JSON without end": ("a.jsonl", "[" * 200_000, {}, 1, "JSON"),
    "a JSON list": ("a.jsonl", '["text"]', {}, 1, "JSON object"),
    "number as text": ("a.jsonl", '{"text": 1}', {}, 1, "'text' is 1"),
    "no text in a row": ("a.jsonl", '{"text": "글"}\n\n{"document": "글"}', {}, 3, "'text' is null"),
    "list as text2": ("a.jsonl", '{"t": "글", "u": ["글"]}', {"text_column": "t", "text2_column": "u"}, 1,
                      r"'u' is \["),
    "NaN as label": ("a.jsonl", '{"text": "글", "label": NaN}', {}, 1, "'label' is NaN"),
    "fraction as id": ("a.jsonl", '{"text": "글", "id": 0.5}', {}, 1, "'id' is 0.5.*whole number"),
    "object as label": ("a.jsonl", '{"text": "글", "gold": {"a": 1}}', {"label_column": "gold"}, 1,
                        "'gold' is {"),
    "half a surrogate pair": ("a.jsonl", '{"text": "글"}\n{"text": "\\ud83d"}', {}, 2, "surrogate"),
    "a line without end": ("a.tsv", "text\n" + "가" * 400, {}, 2, "1,000 bytes.*line ends"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, monkeypatch, case):
    name, data, columns, line, words = BAD[case]
    if "without end" in case and name == "a.tsv":
        monkeypatch.setattr(module, "LONGEST", 1000)
    path = tmp_path / name
    if data == "folder":
        path.mkdir()
    elif isinstance(data, bytes) and "gzip" in case:  # as it is, not compressed once more
        path.write_bytes(data)
    elif data is not None:
        write(path, data)
    refused(lambda: read_examples(path, **columns), rf"^{path}{f':{line}' if line else ''}: ", words)


