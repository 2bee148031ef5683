"""data/labels.py: labels that look alike or are none, headers that nearly match; each with its line."""

import unicodedata
from pathlib import Path

import pytest
from helpers import LABELLED, STUDENT, refused, run, snapshot

import tasks
from data.examples import read_examples, survey
from data.labels import alike, difference, judge, same, visible

NFD = unicodedata.normalize("NFD", "긍정")


def places(*cells):
    return {cell: f"a.tsv:{line}" for line, cell in enumerate(cells, 2)}


@pytest.mark.parametrize(("one", "other", "how"), [
    ("0", "0 ", "spaces"), ("0", " 0", "spaces"), ("매우 좋음", "매우\u00a0좋음", "spaces"),
    ("1", "1\u3000", "spaces"),
    ("긍정", NFD, "NFC"), ("긍정", "긍정\u200b", "invisible"), ("긍정", "\ufeff긍정", "invisible"),
    ("긍정", "긍\u00ad정", "invisible"), ("긍정", "긍정\u3164", "invisible"), ("❤", "❤\ufe0f", "invisible"),
    ("1", "1.0", "number"), ("-2", "-2.0", "number"), ("0", "-0", None),
    ("1", "01", None), ("1.1", "1.10", None),
    ("1", "１", "NFKC"), ("A", "Ａ", "NFKC"), ("매우 좋음", "매우좋음", None),
    ("10", "1", None), ("좋음", "종음", None),
    ("12345678901234567", "12345678901234568", None), ("a", "b", None), ("none", "some", None),
])
def test_labels_that_a_reader_takes_for_the_same_are_refused_with_both_lines(one, other, how):
    for cells in (places("x", one, other), places("x", other, one)):
        if how is None:
            judge(cells)
            assert same(one) != same(other)
        else:
            refused(lambda cells=cells: judge(cells), rf"^a\.tsv:4: .*\(a\.tsv:3\).*only by .*{how}")
            assert how in difference(one, other) and alike(one, ["x", other]) == other


@pytest.mark.parametrize(("cell", "words"), [
    ("nan", "missing"), ("NaN", "missing"), ("-nan", "missing"), ("<NA>", "missing"), ("NaT", "missing"),
    (" ", "invisible"), ("\u200b", "invisible"), ("\u3164", "invisible"), ("\u00a0 ", "invisible"),
    ("긍\n정", "line break"), ("긍정\r", None), ("긍\u2028정", "line break"), ("긍\x0b정", "line break"),
    ("긍\t정", "tab"),
])
def test_what_is_no_label_is_refused_with_its_line(cell, words):
    if words:
        refused(lambda: judge(places("0", "1", cell)), rf"^a\.tsv:4: .*{words}")
    judge(places("0", "1", "난", "라벨", "na", "none", "없음", "nano", "NAT", "Nan", "label"))


@pytest.mark.parametrize(("cells", "line", "words"), [
    (("Positive", "positive"), 3, "case"), (("ＰＯＳ", "pos"), 3, "case"), (("0", "None"), 3, "missing"),
    (("0", "N/A"), 3, "missing"), (("0", "null"), 3, "missing"), ((" 0", "1"), 2, "space"),
    (("부정", "긍정 "), 3, "space"),
])
def test_what_may_be_a_mistake_is_told_with_its_line(cells, line, words, capsys):
    judge(places(*cells))
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith(f"warning: a.tsv:{line}: ") and words in error


def test_what_is_seen_of_a_name():
    assert visible(" 긍\u200b정\u3000 \ufeff１ ") == visible(f"{NFD} 1") == "긍정 1"
    assert (same("1"), same("１.0"), same("1.0.0"), same("1.50")) == ("1", "1", "1.0.0", "1.50")


@pytest.mark.parametrize("script", ["distill", "finetune_teacher", "split", "look"])
@pytest.mark.parametrize(("labels", "line", "words"), [
    ("0 1 0_ 1", 4, "spaces"), ("0 1 0 nan", 5, "missing"), ("0 1 label 0", 4, "header"),
    ("1 1.0 0", 3, "number"),
])
def test_every_script_refuses_them_before_any_work(here, script, labels, line, words, monkeypatch):
    rows = "".join(f"{'text' if label == 'label' else i}\t{label.replace('_', ' ')}\n"
                   for i, label in enumerate(labels.split()))
    Path("odd.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    before = snapshot()
    flags = {"distill": f"--train odd.tsv --valid valid.tsv --alpha 1 {STUDENT} --output-dir new",
             "finetune_teacher": "--train odd.tsv --valid valid.tsv --scratch 1,16,2 --output-dir new "
                                 "--tokenizer tokenizer/vocab_size_3000"}
    from data import prepare
    call = {"split": lambda: prepare.main(prepare.parse_args(["split", "odd.tsv", "--out", "new"])),
            "look": lambda: prepare.main(prepare.parse_args(["look", "odd.tsv"]))}
    refused(call.get(script, lambda: run(script, flags[script])), rf"^odd\.tsv:{line}: .*{words}")
    assert snapshot() == before


def test_the_first_of_several_files_is_named(tmp_path, monkeypatch):
    """`0` stands in one file, `0 ` in the other: each with its own line."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", "가\t1\n나\t0\n"), ("b", "다\t1\n라\t\n마\t0 \n")):
        Path(f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    cells = survey("a.tsv").cells | survey("b.tsv").cells | survey("a.tsv").cells
    refused(lambda: tasks.make("label", cells, "a.tsv, b.tsv"), r"b\.tsv:4", r"a\.tsv:3", "spaces")


def test_a_label_that_others_do_not_know_names_the_one_it_looks_like(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n가\t0\n나\t1 \n", encoding="utf-8")
    task = tasks.Classification(["0", "1"])
    refused(lambda: read_examples(tmp_path / "a.tsv").targets(task), r"a\.tsv:3: .*'1 '.*'1'.*spaces")
    with pytest.raises(ValueError, match=r"'Pos'.*'pos'.*case"):
        tasks.Classification(["neg", "pos"]).read("Pos", "글")
    with pytest.raises(ValueError, match=r"^label '2' is none of \['0', '1'\]; correct it$"):
        task.read("2", "글")


# ---- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "near", "flag"), [
    ("text, label", " label", "label"), ("text,Labels", "Labels", "label"), ("text,LABEL", "LABEL", "label"),
    ("text,label ", "label ", "label"), ("text,\u200blabel", "label", "label"),
    ("Text,label", "Text", "text"),
    ("texts,label", "texts", "text"), ("text ,label", "text ", "text"),
    ("documents,label", "documents", "text"),
    ("text,Text2,label", "Text2", "text2"), ("text,text 2,label", "text 2", "text2"),
    ("text,text_2,label", "text_2", "text2"), ("text,ｌａｂｅｌ", "ｌａｂｅｌ", "label"),
])
def test_a_column_that_nearly_matches_is_named_and_the_header_listed(tmp_path, header, near, flag):
    cells = ",".join("가" for _ in header.split(","))
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{cells}\n", encoding="utf-8")
    names = header.split(",")
    message = refused(lambda: read_examples(path), r"a\.csv:1: ", f"--{flag}-column")
    assert repr(near).strip("'") in message and all(repr(name) in message for name in names)
    named = {f"{flag}_column": next(name for name in names if near in name)}
    assert len(read_examples(path, **named)) == 1  # the advice can be followed
    if flag == "label":
        assert read_examples(path, label_column=False).answers is None  # who reads texts alone need not care


def test_a_column_that_is_named_and_nearly_there_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tGold\n가\t1\n", encoding="utf-8")
    refused(lambda: read_examples(tmp_path / "a.tsv", label_column="gold"), r"a\.tsv:1: .*'Gold'.*'gold'")
    found = read_examples(tmp_path / "a.tsv", label_column="Gold")
    assert (found.answers, found.header) == (["1"], ("text", "Gold"))


def test_other_columns_are_left_alone(tmp_path):
    (tmp_path / "a.csv").write_text("text,Text,Labelled,texture,label,LABELS,ID\n" + "가,나,다,라,0,바,사\n",
                                    encoding="utf-8")
    found = read_examples(tmp_path / "a.csv")
    assert (found.texts, found.answers, found.ids) == (["가"], ["0"], None)


@pytest.mark.parametrize("key", ["Label", "labels", " label", "라벨 "])
def test_a_key_of_a_later_object_that_nearly_matches_is_named(tmp_path, key):
    lines = ['{"text": "가"}', '{"text": "나", "more": 1}', f'{{"text": "다", "{key}": "1"}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if key == "라벨 ":
        assert len(read_examples(tmp_path / "a.jsonl")) == 3
    else:
        refused(lambda: read_examples(tmp_path / "a.jsonl"), r"a\.jsonl:3: ", repr(key))


@pytest.mark.parametrize(("name", "header"), [("a.csv", "text;label"), ("a.csv", "text\tlabel"),
                                              ("a.tsv", "text,label")])
def test_another_separator_is_named(tmp_path, name, header):
    (tmp_path / name).write_text(f"{header}\n", encoding="utf-8")
    refused(lambda: read_examples(tmp_path / name), rf"{name}:1: .*tabs.*commas")


def test_a_header_in_quotation_marks_is_explained(tmp_path):
    (tmp_path / "a.tsv").write_text('"text"\t"label"\n"가"\t"0"\n', encoding="utf-8")
    refused(lambda: read_examples(tmp_path / "a.tsv"), r"a\.tsv:1: .*quotation marks.*\.csv")


def test_training_without_a_column_of_labels_lists_the_header(here):
    Path("gold.tsv").write_text("text\tgold\n가\t1\n나\t0\n", encoding="utf-8")
    for flags in (f"--train gold.tsv --valid valid.tsv --alpha 1 {STUDENT}", LABELLED.replace(
            "train.tsv", "gold.tsv") + f" --alpha 1 {STUDENT}"):
        refused(lambda flags=flags: run("distill", flags), "gold.tsv.*text, gold", "--label-column")
    refused(lambda: run("distill", f"--train train.tsv --valid gold.tsv --alpha 1 {STUDENT}"),
            r"gold\.tsv: no column label among \['text', 'gold'\]")


# ---- line ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data", "line", "words"), [
    ("a.tsv", 'text\tlabel\n가\t0\n"나\n다"\t1\n', 3, "quotation mark.*csv"),
    ("a.tsv", 'label\ttext\n0\t가\n1\t"나\n다"\n', 4, "quotation mark.*csv"),
    ("a.tsv", 'label\ttext\n0\t가\n1\t"나\n\n다"\n', 4, "quotation mark.*csv"),
    ("a.tsv", "text\tlabel\n가\t0\n나\n", 3, "tab or a line break"),
    ("a.csv", "text,label\n가,0\n나,다,1\n", 3, "comma"),
    ("a.tsv", "text\tlabel\r가\t0\r나\t1\r", 1, "CR.*tr "),
    ("a.csv", "text,label\r가,0\r나,1\r", 1, "CR.*tr "),
    ("a.jsonl", '{"text": "가"}\r{"text": "나"}\r', 1, "CR.*tr "), ("a.tsv", "text\r가\r나\r", 1, "CR.*tr "),
])
def test_line_ends_of_other_kinds_are_named_with_what_to_do(tmp_path, name, data, line, words):
    (tmp_path / name).write_bytes(data.encode())
    refused(lambda: survey(tmp_path / name), rf"{name}:{line}: .*{words}")
    if "CR" in words:  # the advice can be followed
        (tmp_path / name).write_bytes(data.replace("\r", "\n").encode())
        assert survey(tmp_path / name).rows == 2
