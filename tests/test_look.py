"""data/look.py: what the scripts say of files and tokenizers before the work, counted by hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from helpers import LABELLED, STUDENT, TAUGHT, TEACHER, run, write_rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data import examples, look, prepare
from data.examples import read_examples, survey, survey_of
from tasks import Classification

WORDS = ["[PAD]", "[UNK]", "[SEP]", "이", "영화", "좋다"]
READS = {"max_length": 4, "pad_id": 0, "blank_id": 1}


def words(template="$A") -> Tokenizer:
    """A tokenizer of three words; everything else is unknown."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair="$A [SEP] $B", special_tokens=[("[SEP]", 2)])
    return tokenizer


def put(folder, name, *rows, header="text\tlabel"):
    text = "\n".join([header, *("\t".join(row) for row in rows)]) + "\n"
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return survey(folder / name)


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path()


def test_rows_labels_blank_and_doubled_texts(cwd):
    one = put(cwd, "a.tsv", ("가", "1"), ("나", "0"), ("가", "0"), ("", "1"), (" ", ""), (" 나 ", "10"))
    two = put(cwd, "b.tsv.gz", ("다",), ("나",), ("\u3000",), header="text")
    lines = look.files([one, two], ())
    assert look.files([two], ())[0] == "b.tsv.gz: 3 rows, 0 labelled; the columns are text"
    assert lines == ["a.tsv, b.tsv.gz: 9 rows, 5 labelled: 1: 2, 0: 2, 10: 1",
                     "  texts: 3 blank (first at a.tsv:5), 3 duplicate (first at a.tsv:4)"]
    assert look.files([two, one], (), Classification(["0", "1", "10"])) == [
        "b.tsv.gz, a.tsv: 9 rows, 5 labelled: 0: 2, 1: 2, 10: 1",
        "  texts: 3 blank (first at b.tsv.gz:4), 3 duplicate (first at a.tsv:3)"]
    assert look.files([put(cwd, "c.tsv", ("가", "1"))], ()) == ["c.tsv: 1 rows, 1 labelled: 1: 1"]


def test_the_first_ten_labels_are_shown_and_the_rest_counted(cwd):
    found = put(cwd, "a.tsv", *[(f"글{i}", f"{i % 13:02}") for i in range(30)])
    line, = look.files([found], ())
    counts = ", ".join(f"{i:02}: {3 - (i > 3)}" for i in range(10))
    assert line.endswith(f" labelled: {counts}, and 3 other labels")
    odd = put(cwd, "b.tsv", ("가", "0 "), ("나", "긍\u200b정"))
    assert r"'0 ': 1, '긍\u200b정': 1" in look.files([odd], ())[0]


def test_lines_are_those_of_the_file_where_texts_have_line_breaks(cwd):
    (cwd / "a.csv").write_text('text,label\n"가\n나",0\n"다\n라",1\n"",1\n다  라,0\n', encoding="utf-8")
    assert look.files([survey("a.csv")], ())[1] == \
        "  texts: 1 blank (first at a.csv:6), 1 duplicate (first at a.csv:7)"


def test_pairs_are_doubled_where_both_texts_are(cwd):
    found = put(cwd, "a.tsv", ("가", "나"), ("나", "가"), ("가", "다"), ("가 ", "나"), ("가", ""), ("", "나"),
                header="text\ttext2")
    assert look.files([found], ())[1] == \
        "  texts: 2 blank (first at a.tsv:6), 1 duplicate (first at a.tsv:5)"


@pytest.mark.parametrize("chunk", [1, 2, 8192])
def test_a_file_read_in_parts_gives_the_same(cwd, monkeypatch, chunk):
    put(cwd, "a.tsv", ("가", "1"), ("", "0"), ("가", "0"), ("나", "1"))
    whole = look.files([survey_of([read_examples("a.tsv")])], ())
    monkeypatch.setattr(examples.stream_examples, "__defaults__",
                        (*examples.stream_examples.__defaults__[:-1], chunk))
    assert look.files([survey("a.tsv")], ()) == whole and len(whole) == 2


def test_doubled_texts_are_looked_for_among_so_many_rows(cwd, monkeypatch):
    monkeypatch.setattr(examples, "DISTINCT", 3)
    found = put(cwd, "a.tsv", ("가", "1"), ("나", "0"), ("가", "0"), ("나", "1"))
    assert len(found.keys) == 3 and look.duplicates([found], ()) == (1, "a.tsv:4")


@pytest.mark.parametrize(("texts", "line"), [
    (["가", '"나', '다"', "라"], 3), (["가", '"나', "다", '라"', '"마', '바"'], 3),
    (['"나"', '다 "라"'], None), (['"나', "다"], None), (['가 "나', '다"'], None),
    (['"가', '나 "다', '라"'], None),
])
def test_a_quoted_line_break_in_a_file_of_one_column_is_told(cwd, capsys, texts, line):
    found = put(cwd, "a.tsv", *[(text,) for text in texts], header="text")
    look.files([found], ())
    error = capsys.readouterr().err
    assert error.startswith(f"warning: a.tsv:{line}: ") and ".csv" in error if line else error == ""
    put(cwd, "b.tsv", *[(text, "0") for text in texts])
    look.files([survey("b.tsv")], ())  # where there are more columns, such a row is refused when it is read
    assert capsys.readouterr().err == ""


# ---- tokenizers --------------------------------------------------------------------------------------------


def test_unknown_tokens_and_cut_texts_are_counted_without_special_tokens(cwd, capsys):
    one = put(cwd, "a.tsv", ("이 영화 좋다", "1"), ("이 영화 이 영화", "0"), ("이 영화 이 영화 재밌다", "0"),
              ("좋다", "1"))
    for template, cut in (("$A", "25.00% of texts cut at 4 tokens (first at a.tsv:4)"),
                          ("[SEP] $A", "50.00% of texts cut at 4 tokens (first at a.tsv:3)")):
        assert look.tokenizers({"tok": (words(template), READS)}, [one]) == \
            f"tok: {1 / 13:.2%} of tokens unknown, {cut}"
    assert capsys.readouterr().err == ""
    two = put(cwd, "b.tsv", ("이", "좋다 재밌다"), header="text\ttext2")
    assert look.tokenizers({"tok": (words(), READS)}, [two]).startswith("tok: 33.33% of tokens unknown, 0.0")
    assert capsys.readouterr().err.startswith("warning: b.tsv:2: 33% ")


def test_a_tokenizer_that_knows_few_tokens_is_told_with_the_line(cwd, capsys):
    found = put(cwd, "a.tsv", *[("이 영화", "1")] * 9, ("하나 둘 이", "0"))
    assert look.tokenizers({"tok": (words(), READS)}, [found]).startswith(f"tok: {2 / 21:.2%} ")
    assert capsys.readouterr().err == ""
    found = put(cwd, "a.tsv", *[("이 영화", "1")] * 8, ("하나 둘 셋", "0"))
    line = look.tokenizers({"one": (words(), READS), "two": (words(), READS)}, [found])
    assert line.count(f"{3 / 19:.2%} of tokens unknown") == 2 and "; two: " in line
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and error.startswith("warning: a.tsv:10: 16% of the tokens are unknown")


def test_only_the_first_rows_of_a_file_are_tokenized(cwd, monkeypatch):
    monkeypatch.setattr(examples, "CHUNK", 2)
    found = put(cwd, "a.tsv", ("이 영화", "1"), ("이", "0"), ("재밌다", "1"))
    assert look.tokenizers({"tok": (words(), READS)}, [found]).endswith(" (first 8,192 rows of each file)")


# ---- in the scripts ----------------------------------------------------------------------------------------


def unknown_share(name, tokenizer):
    tokenizer = Tokenizer.from_file(tokenizer)
    encodings = [tokenizer.encode(text, add_special_tokens=False) for text in read_examples(name).texts]
    return np.mean([i == tokenizer.token_to_id("[UNK]") for encoding in encodings for i in encoding.ids])


@pytest.mark.parametrize("script", ["distill", "finetune_teacher", "dump_logits", "look"])
def test_scripts_print_it_first_in_at_most_six_lines(here, capsys, script):
    rows = [line.split("\t") for line in Path("train.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    rows[3:5], rows[7] = [["", "1"], ["", "0"]], rows[0]
    write_rows(Path("train.tsv"), rows)
    run("dump_logits", "--teacher teacher/teacher.pt --data train.tsv --device cpu --overwrite")
    capsys.readouterr()
    found = survey("train.tsv")
    if script == "look":
        prepare.main(prepare.parse_args(["look", "train.tsv", "--tokenizer", "tokenizer/vocab_size_3000"]))
    else:
        run(script, {"distill": f"{TAUGHT} {STUDENT} --output-dir new".replace(
                         " logits/unlabeled.pt", "").replace(" unlabeled.tsv", ""),
                     "finetune_teacher": f"{LABELLED} {TEACHER} --output-dir new",
                     "dump_logits": "--teacher teacher/teacher.pt --data train.tsv --device cpu "
                                    "--output-dir new"}[script])
    out = capsys.readouterr().out.splitlines()
    counts = ", ".join(f"{name}: {found.answers[name]}" for name in ("0", "1"))
    if script == "look":
        counts = ", ".join(f"{name}: {count}" for name, count in found.answers.most_common())
    assert out[0] == f"train.tsv: 120 rows, 120 labelled: {counts}"
    assert out[1].startswith("  texts: 2 blank (first at train.tsv:5), ") and " duplicate (f" in out[1]
    share = unknown_share("train.tsv", "tokenizer/vocab_size_3000/tokenizer.json")
    number = next(i for i, line in enumerate(out) if "of tokens unknown" in line)
    assert number < 6 and f": {share:.2%} of tokens unknown" in out[number]


def test_look_takes_any_file_and_refuses_what_is_for_others(cwd, capsys):
    (cwd / "a.tsv").write_text("review\tgold\n가\t긍정\n", encoding="utf-8")
    prepare.main(prepare.parse_args(["look", "a.tsv", "--text-column", "review", "--label-column", "gold"]))
    assert capsys.readouterr().out == "a.tsv: 1 rows, 1 labelled: 긍정: 1\n"
    assert sorted(cwd.iterdir()) == [cwd / "a.tsv"]
    for flags in ("look", "look a.tsv --from x", "split a.tsv --tokenizer x", "nsmc --tokenizer x"):
        with pytest.raises(SystemExit) as exit_:
            prepare.parse_args(flags.split())
        assert exit_.value.code == 2
