"""data/examples.py: one table in every format, names of rows and labels, fingerprints, refusals."""

import csv
import gzip
import hashlib
import io
import json

import pytest

from data.examples import label_names, read_again, read_examples, stream_examples, survey
from runtime import UserError


def write(path, data):
    """Write text or bytes to a path, compressed if it ends in .gz; returns the path."""
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if path.name.lower().endswith(".gz") else data)
    return path


def read(tmp_path, name, data, **columns):
    return read_examples(write(tmp_path / name, data), **columns)


def refused(call, *args, **named):
    with pytest.raises(UserError) as error:
        call(*args, **named)
    return str(error.value)


# ---- formats -----------------------------------------------------------------------------------------------

# Neither LF nor tab, so that a .tsv can hold it; but all that a reader could take for a quote or a line end.
ROWS = [
    ("7", "재밌다, 정말", "둘째", "1"),
    ("8", '"따옴표"로 시작', "", "0"),
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
@pytest.mark.parametrize("name", ["a.tsv", "a.txt", "a.csv", "a.jsonl", "a.tsv.gz", "a.txt.gz", "a.csv.gz",
                                  "a.jsonl.gz", "A.TSV", "A.Csv.GZ"])
def test_every_format_gives_the_same_rows_and_fingerprint(tmp_path, name, bom, end):
    ending = name.lower().split(".")[1]
    examples = read(tmp_path, name, bom + formatted(ending, end))
    assert list(zip(examples.ids, examples.texts, examples.texts2, examples.labels, strict=True)) == ROWS
    assert examples.path == str(tmp_path / name) and len(examples) == 5
    assert examples.lines.tolist() == ([1, 2, 3, 4, 5] if ending == "jsonl" else [2, 3, 4, 5, 6])
    assert examples.fingerprint() == read(tmp_path, "plain.tsv", formatted("tsv")).fingerprint()


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_the_last_line_needs_no_line_end(tmp_path, ending):
    data = formatted(ending)
    assert data.endswith("\n")
    assert read(tmp_path, f"a.{ending}", data[:-1]) == read(tmp_path, f"a.{ending}", data)


def test_a_tsv_has_no_quoting(tmp_path):
    examples = read(tmp_path, "a.tsv", 'text\tlabel\n"열린 채\t"1"\n""\t0\n가"나\t1\n')
    assert (examples.texts, examples.labels) == (['"열린 채', '""', '가"나'], ['"1"', "0", "1"])


def test_csv_quoting_and_line_numbers_follow_rfc_4180(tmp_path):
    """Rules 5 to 7: a quoted field may hold commas, line ends and doubled quotes; `lines` has first lines."""
    rows = '"가, 나",1\n"""아"" 했다",0\n"두\n줄",1\n"세\r\n\r\n줄","0"\n"",1\n,1\n마지막,""\n'
    examples = read(tmp_path, "a.csv", "text,label\n" + rows)
    assert examples.texts == ["가, 나", '"아" 했다', "두\n줄", "세\r\n\r\n줄", "", "", "마지막"]
    assert examples.labels == ["1", "0", "1", "0", "1", "1", ""]
    assert examples.lines.tolist() == [2, 3, 4, 6, 9, 10, 11]


@pytest.mark.parametrize(("name", "data"), [
    ("a.tsv", "text\n\n \n글\n"), ("a.tsv", "text\r\n\r\n \r\n글"), ("a.csv", 'text\n""\n \n글\n'),
    ("a.csv", "text\n\n \n글\n"), ("a.jsonl", '{"text": ""}\n{"text": " "}\n{"text": "글"}\n'),
])  # fmt: skip
def test_blank_texts_stay_rows(tmp_path, name, data):
    assert read(tmp_path, name, data).texts == ["", " ", "글"]


def test_jsonl_takes_numbers_and_truth_values_as_labels_and_whole_numbers_as_ids(tmp_path):
    """Blank lines are no rows, an absent or null label is none, keys that are no column are ignored."""
    lines = ['{"id": 5, "label": 1, "text": "가"}', "",
             '{"text": "나", "label": true, "id": "x", "more": [1]}', " \t",
             '{"id": -3, "label": false, "text": "다"}', '{"text": "라", "label": null}', '{"text": "마"}',
             '{"text": "바", "label": 3.50}']
    examples = read(tmp_path, "a.jsonl", "\n".join(lines))
    assert examples.texts == ["가", "나", "다", "라", "마", "바"]
    assert examples.labels == ["1", "1", "0", "", "", "3.5"]
    assert examples.ids == ["5", "x", "-3", "", "", ""]
    assert examples.lines.tolist() == [1, 3, 5, 6, 7, 8]


# ---- columns -----------------------------------------------------------------------------------------------

WIDE = "note\tgold\ttext\tid\tother\tlabel\n n\tg\tt\ti\to\tl\n"


@pytest.mark.parametrize(("data", "columns", "expected"), [
    ("text\nt\n", {}, ("t", None, None, None)),
    ("document\nd\n", {}, ("d", None, None, None)),
    ("id\tdocument\tlabel\n9\td\t1\n", {}, ("d", None, "1", "9")),
    (WIDE, {}, ("t", None, "l", "i")),
    (WIDE, {"text_column": "note", "text2_column": "other", "label_column": "gold"}, (" n", "o", "g", "i")),
    ("text\tdocument\nt\td\n", {"text_column": "document"}, ("d", None, None, None)),
    ("Text\ttext\tLabel\nT\tt\tL\n", {}, ("t", None, None, None)),  # names are matched as written
])  # fmt: skip
@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl"])
def test_columns_are_found_by_name(tmp_path, data, columns, expected, ending):
    if ending == "csv":
        data = data.replace("\t", ",")
    if ending == "jsonl":
        data = json.dumps(dict(zip(*(line.split("\t") for line in data.splitlines()), strict=True)))
    examples = read(tmp_path, f"a.{ending}", data, **columns)
    found = (examples.texts, examples.texts2, examples.labels, examples.ids)
    assert found == tuple(None if value is None else [value] for value in expected)


# ---- labels ------------------------------------------------------------------------------------------------


def labelled(tmp_path, labels, name="a.tsv"):
    return read(tmp_path, name, "text\tlabel\n" + "".join(f"글\t{label}\n" for label in labels))


@pytest.mark.parametrize(("labels", "expected"), [
    (["10", "2", "1", "2"], ["1", "2", "10"]),
    (["1", "-1", "0", "-10"], ["-10", "-1", "0", "1"]),
    (["01", "1", "2", "001", "-0", "0"], ["-0", "0", "001", "01", "1", "2"]),  # equal numbers: as letters
    (["10", "9", "가"], ["10", "9", "가"]),
    (["1.5", "10", "9"], ["1.5", "10", "9"]),
    (["b", "", "a", "B", ""], ["B", "a", "b"]),
])  # fmt: skip
def test_whole_numbers_sort_by_value_and_anything_else_by_letter(tmp_path, labels, expected):
    assert label_names(survey(labelled(tmp_path, labels).path).labels, "a.tsv") == expected


@pytest.mark.parametrize(("labels", "have"), [
    (["1", "", "1"], "the only label is '1'"), (["", ""], "no row has a label"), (None, "no row has a label"),
])
def test_fewer_than_two_labels_are_refused(tmp_path, labels, have):
    examples = read(tmp_path, "a.tsv", "text\n글\n") if labels is None else labelled(tmp_path, labels)
    assert refused(label_names, survey(examples.path).labels, "a.tsv, b.tsv") == (
        f"a.tsv, b.tsv: {have}; a classifier needs at least two (column `label`, or --label-column)")


def test_label_ids_are_positions_and_minus_one_without_label(tmp_path):
    assert labelled(tmp_path, ["b", "", "a", "b"]).label_ids(["b", "a"]) == [0, -1, 1, 0]
    assert read(tmp_path, "a.tsv", "text\n글\n글\n").label_ids(["b", "a"]) == [-1, -1]


def test_every_row_needs_a_label_where_that_is_asked_for(tmp_path):
    line = f"{tmp_path}/a.tsv:3: no label; every row needs one"
    assert refused(labelled(tmp_path, ["a", "", "b", ""]).label_ids, ["a", "b"], every_row=True) == line
    line = f"{tmp_path}/a.tsv:2: no label; every row needs one"
    assert refused(read(tmp_path, "a.tsv", "text\n글\n").label_ids, ["a", "b"], every_row=True) == line
    assert labelled(tmp_path, ["b", "a"]).label_ids(["a", "b"], every_row=True) == [1, 0]


def test_an_unknown_label_is_named_with_file_and_line(tmp_path):
    examples = read(tmp_path, "a.csv", 'text,label\n"두\n줄",1\n글,\n글,긍정\n글,부정\n')
    assert refused(examples.label_ids, ["0", "1"]) == (
        f"{tmp_path}/a.csv:5: label '긍정' is none of ['0', '1']; "
        "correct it, or leave it empty if the row has no label")


# ---- fingerprint -------------------------------------------------------------------------------------------


def fingerprint(tmp_path, *rows, columns=("text",)):
    return read(tmp_path, "a.tsv", "".join("\t".join(row) + "\n" for row in (columns, *rows))).fingerprint()


def test_every_change_to_a_text_or_its_place_changes_the_fingerprint(tmp_path):
    pair = ("text", "text2")
    found = [
        *(fingerprint(tmp_path, *rows) for rows in (
            [("ab",), ("c",)], [("a",), ("bc",)], [("abc",), ("",)], [("",), ("abc",)], [("abc",)],
            [("c",), ("ab",)], [("ab ",), ("c",)], [("ab",), ("c",), ("",)],
        )),
        *(fingerprint(tmp_path, *rows, columns=pair) for rows in (
            [("ab", ""), ("c", "")], [("ab", "c")], [("c", "ab")], [("a", "bc")], [("abc", "")],
            [("", "abc")], [("ab", "d"), ("c", "e")], [("ab", "e"), ("c", "d")],
        )),
    ]  # fmt: skip
    assert len(set(found)) == len(found)


def test_labels_ids_and_the_order_of_columns_do_not_enter_the_fingerprint(tmp_path):
    plain = fingerprint(tmp_path, ("가",), ("나",))
    assert plain == fingerprint(tmp_path, ("1", "가", "x"), ("0", "나", ""), columns=("label", "text", "id"))
    assert plain == fingerprint(tmp_path, ("가",), ("나",), columns=("document",))


def test_the_fingerprint_is_this_sha256_for_good(tmp_path):
    """logits.pt files carry it: another recipe would refuse all that exist."""
    size = len("가".encode()).to_bytes(8, "little")
    single = b"column" + size + "가".encode() + b"none"
    assert fingerprint(tmp_path, ("가",)) == hashlib.sha256(single).hexdigest()
    second = hashlib.sha256(b"column" + size + "나".encode())  # both columns of a stream are hashed at once
    pair = b"column" + size + "가".encode() + second.digest()
    assert fingerprint(tmp_path, ("가", "나"), columns=("text", "text2")) == hashlib.sha256(pair).hexdigest()


# ---- a file in parts ---------------------------------------------------------------------------------------

FIELDS = ("texts", "texts2", "labels", "ids", "lines")


def joined(parts):
    """The columns of parts as one list each, None for an absent one."""
    return {name: None if getattr(parts[0], name) is None else
            [value for part in parts for value in getattr(part, name)] for name in FIELDS}


@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
@pytest.mark.parametrize("name", ["a.tsv", "a.txt.gz", "a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
def test_a_file_read_in_parts_is_the_file_read_whole(tmp_path, monkeypatch, name, chunk):
    path = write(tmp_path / name, formatted(name.split(".")[1]))
    whole = read_examples(path)
    parts = list(stream_examples(path, chunk=chunk))
    assert [len(part) for part in parts] == [chunk] * (5 // chunk) + [5 % chunk] * (5 % chunk > 0)
    assert {part.path for part in parts} == {str(path)}
    assert joined(parts) == joined([whole])
    found = survey(path)
    assert joined(list(read_again(found, chunk=chunk))) == joined([whole])
    monkeypatch.setattr(stream_examples, "__defaults__", (*stream_examples.__defaults__[:-1], chunk))
    assert read_examples(path) == whole and survey(path) == found


@pytest.mark.parametrize("chunk", [1, 3])
def test_bad_rows_are_told_with_their_line_whatever_the_parts(tmp_path, chunk):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "글\t1\n" * 6 + "글\n")
    parts = stream_examples(path, chunk=chunk)
    message = refused(list, parts)
    assert message == f"{path}:8: 1 columns where the header has 2; a text must not contain a tab"


def test_a_survey_counts_without_keeping_rows(tmp_path):
    path = write(tmp_path / "a.tsv", formatted("tsv"))
    found = survey(path)
    assert (found.path, found.rows, found.labelled, found.pairs) == (str(path), 5, 4, True)
    assert found.labels == {"0", "1"}
    assert found.fingerprint == read_examples(path).fingerprint()
    bare = survey(write(tmp_path / "b.tsv", "text\n" + "글\n" * 3))
    assert (bare.rows, bare.labelled, bare.pairs, bare.labels) == (3, 0, False, set())
    named = survey(write(tmp_path / "c.tsv", WIDE), "note", "other", "gold")
    assert (named.rows, named.labelled, named.pairs, named.labels) == (1, 1, True, {"g"})


def test_the_fingerprint_of_labels_is_theirs_in_order_and_not_that_of_texts(tmp_path):
    def found(*rows):
        return survey(write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{row}\n" for row in rows)))

    first = found("가\t1", "나\t0", "다\t")
    others = [found("가\t0", "나\t1", "다\t"), found("가\t1", "나\t", "다\t0"), found("가\t1", "나\t0"),
              found("가\t10", "나\t", "다\t"), found("가\t1", "나\t0", "다\t1")]
    fingerprints = [first.label_fingerprint, *(other.label_fingerprint for other in others)]
    assert len(set(fingerprints)) == len(fingerprints)
    assert [other.fingerprint == first.fingerprint for other in others] == [True, True, False, True, True]
    same_labels = found("라\t1", "나\t0", "다\t")
    assert same_labels.label_fingerprint == first.label_fingerprint
    assert same_labels.fingerprint != first.fingerprint


@pytest.mark.parametrize("after", ["가1나1라0", "가1나1다0라0", "가1나1", "나1가1다0", "가1나0다0"])
@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_a_file_that_changed_between_its_readings_is_refused(tmp_path, after, chunk):
    """Another text, a row more, a row less, two rows exchanged, another label."""
    path = write(tmp_path / "a.tsv", "text\tlabel\n가\t1\n나\t1\n다\t0\n")
    found = survey(path)
    assert len(list(read_again(found, chunk=chunk))) == -(-3 // chunk)
    rows = [after[i : i + 2] for i in range(0, len(after), 2)]
    write(path, "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    assert refused(list, read_again(found, chunk=chunk)) == (
        f"{path}: was changed while it was read; run again")


def test_a_label_that_others_do_not_know_is_found_by_its_line(tmp_path):
    found = survey(write(tmp_path / "a.csv", 'text,gold\n"두\n줄",1\n글,\n글,긍정\n글,부정\n'),
                   label_column="gold")
    columns = None, None, "gold"
    assert refused(found.refuse_other_labels, ["0", "1"], *columns) == (
        f"{tmp_path}/a.csv:5: label '긍정' is none of ['0', '1']; "
        "correct it, or leave it empty if the row has no label")
    found.refuse_other_labels(["0", "1", "긍정", "부정"], *columns)  # labels that no row has are none's harm


# ---- refusals ----------------------------------------------------------------------------------------------

EMPTY = "FILE: is empty; a header line such as text<TAB>label is needed"
NO_TEXT = "no column text or document among ['글', 'label']; the first line must name the columns " \
          "(--text-column for another name)"
ENDING = "FILE: unknown ending; use .tsv, .txt, .csv or .jsonl, each also with .gz"
NUL = "NUL byte; the file is not UTF-8 text (UTF-16? convert it)"
AT_12 = "FILE:3: not UTF-8 at byte 12 of the file (invalid start byte); convert it, for example from CP949"
CP949 = "text\n첫째\n".encode() + "둘째 글\n".encode("cp949")
OBJECT = 'FILE:1: a JSON object such as {"text": "…"} is needed'
GZIP = gzip.compress(("text\n" + "가나다라 " * 99).encode())

BAD = {  # a message that ends with … is the beginning: the rest is the operating system's or Python's
    "missing": ("a.tsv", None, {}, "FILE: cannot read (No such file or directory)"),
    "unknown ending": ("a.json", '{"text": "글"}', {}, ENDING),
    "only .gz": ("a.gz", "text\n글\n", {}, ENDING),
    "empty": ("a.tsv", "", {}, EMPTY),
    "empty .csv": ("a.csv", "", {}, EMPTY),
    "empty .gz": ("a.tsv.gz", "", {}, EMPTY),
    "empty .jsonl": ("a.jsonl", "\n \n", {}, "FILE: is empty; one JSON object a line is needed"),
    "header only": ("a.tsv", "text\tlabel\n", {}, "FILE: has a header but no rows"),
    "header only .csv": ("a.csv", "text,label", {}, "FILE: has a header but no rows"),
    "no text column": ("a.tsv", "글\tlabel\n글\t1\n", {}, f"FILE:1: {NO_TEXT}"),
    "no text key": ("a.jsonl", '\n{"글": "글", "label": 1}\n', {}, f"FILE:2: {NO_TEXT}"),
    "--text-column": ("a.csv", "text\n글\n", {"text_column": "글"},
                      "FILE:1: no column 글 among ['text']; the first line must name the columns "
                      "(--text-column for another name)"),
    "--text2-column": ("a.tsv", "text\n글\n", {"text2_column": "text2"},
                       "FILE:1: no column text2 among ['text']; the first line must name the columns "
                       "(--text2-column for another name)"),
    "--label-column": ("a.jsonl", '{"text": "글"}', {"label_column": "gold"},
                       "FILE:1: no column gold among ['text']; the first line must name the columns "
                       "(--label-column for another name)"),
    "text twice": ("a.tsv", "text\tlabel\ttext\n1\t2\t3\n", {},
                   "FILE:1: column text or document occurs 2 times; keep one, "
                   "or name another with --text-column"),
    "text and document": ("a.csv", "text,document\n1,2\n", {},
                          "FILE:1: column text or document occurs 2 times; keep one, "
                          "or name another with --text-column"),
    "label thrice": ("a.tsv", "label\tlabel\ttext\tlabel\n1\t2\t3\t4\n", {},
                     "FILE:1: column label occurs 3 times; keep one, or name another with --label-column"),
    "a tab too many": ("a.tsv", "text\tlabel\n글\t1\n가\t나\t0\n", {},
                       "FILE:3: 3 columns where the header has 2; a text must not contain a tab"),
    "a comma too many": ("a.csv", 'text,label\n"두\n줄",1\n가,나,0\n', {},
                         "FILE:4: 3 columns where the header has 2; a text must not contain a bare comma"),
    "a tab too few": ("a.tsv", "text\tlabel\n글\n", {}, "FILE:2: 1 columns where the header has 2…"),
    "blank line among two columns": ("a.csv", "text,label\n글,1\n\n", {},
                                     "FILE:3: an empty line; remove it"),
    "CP949": ("a.tsv", CP949, {}, AT_12),
    "CP949 in .csv.gz": ("a.csv.gz", CP949, {}, AT_12),
    "half a character": ("a.jsonl", '{"text": "글"}'.encode()[:-3], {},
                         "FILE:1: not UTF-8 at byte 10 of the file (unexpected end of data); "
                         "convert it, for example from CP949"),
    "NUL": ("a.tsv", "text\n글\n가\0나\n", {}, f"FILE:3: {NUL}"),
    "UTF-16": ("a.csv", "text\n글\n".encode("utf-16"), {}, f"FILE:1: {NUL}"),
    "empty line after a text of two": ("a.csv", 'text,label\n"두\n줄",1\n\n글,1\n', {},
                                       "FILE:4: an empty line; remove it"),
    "no gzip": ("a.tsv.gz", b"text\n", {}, "FILE: cannot read (Not a gzipped file (b'te'))"),
    "gzip cut": ("a.tsv.gz", GZIP[:-9], {}, "FILE: cannot read (Compressed file ended before the "
                                            "end-of-stream marker was reached)"),
    "gzip with a wrong checksum": ("a.tsv.gz", GZIP[:-8] + b"\0\0\0\0" + GZIP[-4:], {},
                                   "FILE: cannot read (CRC check failed…"),
    "gzip with a wrong code": ("a.tsv.gz", GZIP[:10] + b"\7" + GZIP[11:], {}, "FILE: cannot read (Error -3…"),
    "a folder": ("a.tsv", "folder", {}, "FILE: cannot read (…"),
    "quote left open": ("a.csv", 'text,label\n글,1\n"가,1\n나,0\n', {},
                        "FILE:3: not valid CSV (unexpected end of data); is a quote not closed, or not "
                        "doubled?"),
    "text after a quote": ("a.csv", 'text,label\n"두\n줄",1\n"가"나,1\n', {},
                           "FILE:4: not valid CSV (',' expected after '\"'); is a quote not closed, or not "
                           "doubled?"),
    "bare CR": ("a.csv", "text,label\n가\r나,1\n", {}, "FILE:2: not valid CSV (new-line character seen in …"),
    "no JSON": ("a.jsonl", '{"text": "글"}\n{"text":\n', {},
                "FILE:2: not valid JSON (Expecting value at column 1)"),
    "JSON without end": ("a.jsonl", "[" * 200_000, {}, "FILE:1: not valid JSON (…"),
    "a JSON list": ("a.jsonl", '["text"]', {}, OBJECT),
    "a JSON string": ("a.jsonl", '"text"', {}, OBJECT),
    "number as text": ("a.jsonl", '{"text": 1}', {}, "FILE:1: 'text' is 1, a string is needed"),
    "no text in a row": ("a.jsonl", '{"text": "글"}\n\n{"document": "글"}', {},
                         "FILE:3: 'text' is null, a string is needed"),
    "list as text2": ("a.jsonl", '{"t": "글", "u": ["글"]}', {"text_column": "t", "text2_column": "u"},
                      "FILE:1: 'u' is [\"\\uae00\"], a string is needed"),
    "NaN as label": ("a.jsonl", '{"text": "글", "label": NaN}', {},
                     "FILE:1: 'label' is NaN, a string or number is needed"),
    "fraction as id": ("a.jsonl", '{"text": "글", "id": 0.5}', {},
                       "FILE:1: 'id' is 0.5, a string or whole number is needed"),
    "object as label": ("a.jsonl", '{"text": "글", "gold": {"a": 1}}', {"label_column": "gold"},
                        "FILE:1: 'gold' is {\"a\": 1}, a string or number is needed"),
    "list as id": ("a.jsonl", '{"text": "글", "id": []}', {},
                   "FILE:1: 'id' is [], a string or whole number is needed"),
    "half a surrogate pair": ("a.jsonl", '{"text": "글"}\n{"text": "\\ud83d"}', {},
                              "FILE:2: 'text' holds half of a surrogate pair, which is no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(tmp_path, case):
    name, data, columns, expected = BAD[case]
    path = tmp_path / name
    if data == "folder":
        path.mkdir()
    elif isinstance(data, bytes) and "gzip" in case:  # as it is, not compressed once more
        path.write_bytes(data)
    elif data is not None:
        write(path, data)
    message = refused(read_examples, path, **columns).replace(str(path), "FILE")
    if expected.endswith("…"):
        assert message.startswith(expected[:-1]) and "\n" not in message
    else:
        assert message == expected


def test_a_key_that_only_later_objects_have_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "가"}\n{"text": "나", "label": "1"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:2: has 'label', which the first object has not"):
        read_examples(path)


def test_a_label_that_only_looks_like_a_number_sorts_by_letter(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n가\t10\n나\t--1\n다\t2\n", encoding="utf-8")
    assert label_names(survey(path).labels, "a.tsv") == ["--1", "10", "2"]
