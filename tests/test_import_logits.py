"""extra/import_logits.py: tables of probabilities, logarithms, votes and scores become logits of a file."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CPU, STUDENT, read, refused, run, snapshot, write_rows

from data.examples import read_examples
from data.logits import read_logits

ROOT = Path(__file__).parent.parent
IMPORT = "extra.import_logits"
TEXTS = ["좋다", "나쁘다", "그냥", "몰라"]
L = math.log


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """train.tsv: four texts with ids, the labels 나쁨 and 좋음."""
    monkeypatch.chdir(tmp_path)
    write_rows(Path("train.tsv"), [(text, f"i{row}", ("좋음", "나쁨", "", "")[row]) for row, text in
                                   enumerate(TEXTS)], "text\tid\tlabel")
    return tmp_path


def lines(path, *records) -> str:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    Path(path).write_text(text, "utf-8")
    return path


def imported(flags: str, data: str = "train.tsv", out: str = "out.pt"):
    run(IMPORT, f"{flags} --data {data} --out {out}")
    return read(out)


def softmaxed(found) -> list:
    return found["logits"].softmax(1).tolist()


def near(actual, expected):
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=0, atol=4e-4)


ROWS = [[0.2, 0.8], [0.7, 0.3], [0.5, 0.5], [0.9, 0.1]]  # 나쁨, 좋음


def table(path, rows=ROWS, header="나쁨\t좋음", end="\t") -> str:
    text = "\n".join([header, *("\t".join(map(str, row)) for row in rows), ""])
    Path(path).write_text(text.replace("\t", end), "utf-8")
    return path


# ---- numbers -----------------------------------------------------------------------------------------------


def test_probabilities_in_the_order_of_the_file(folder):
    """The columns may stand in any order, and those of a .csv too."""
    found = imported(table("a.tsv"))
    near(softmaxed(found), ROWS)
    assert found["logits"].sum(1).abs().max() < 1e-5 and found["logits"].dtype == torch.float32
    assert found["label_names"] == ["나쁨", "좋음"] and found["task"] == "classification"
    assert found["texts"] == read_examples("train.tsv").fingerprint()
    near(softmaxed(imported(table("b.csv", [row[::-1] for row in ROWS], "좋음,나쁨", ","), out="b.pt")), ROWS)


def test_logarithms_and_logits(folder):
    logs = [[L(p) for p in row] for row in ROWS]
    near(softmaxed(imported(f"{table('a.tsv', logs)} --kind log")), ROWS)
    scores = [[3, -1], [0.5, 2], [0, 0], [-70, 70]]
    found = imported(f"{table('a.tsv', scores)} --kind scores --overwrite")
    assert found["logits"].tolist() == scores  # as they are


def test_a_certain_answer_is_no_infinite_logit(folder):
    found = imported(table("a.tsv", [[0, 1], [1, 0], [1, 0], [0.5, 0.5]]))
    near(found["logits"][0].tolist(), [L(1e-4) / 2, -L(1e-4) / 2])


def test_missing_labels_share_what_is_left(folder):
    write_rows(Path("train.tsv"), [(text, label) for text, label in zip(TEXTS, "가나다라", strict=True)])
    rows = [{"가": 0.7}, {"나": 0.5, "다": 0.3}, {"다": 1}, dict.fromkeys("가나다라", 0.25)]
    expected = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0, 0, 1, 0], [0.25] * 4]
    near(softmaxed(imported(lines("a.jsonl", *rows))), expected)
    logs = [{name: L(p) for name, p in row.items()} for row in rows]  # as an API gives the best few
    near(softmaxed(imported(f"{lines('a.jsonl', *logs)} --kind log", out="b.pt")), expected)


def test_votes_and_one_more_that_is_divided_equally(folder):
    found = imported(f"{table('a.tsv', [[0, 3], [2, 2], [1, 0], [0, 10]])} --kind votes")
    near(softmaxed(found), [[0.5 / 4, 3.5 / 4], [0.5, 0.5], [1.5 / 2, 0.5 / 2], [0.5 / 11, 10.5 / 11]])


def test_several_labels(folder):
    """Probabilities of each; votes: a line per annotator, of several prompts too."""
    write_rows(Path("train.tsv"), [(text, cell) for text, cell in zip(
        TEXTS, ["가", "가,나", "-", "나"], strict=True)], "text\tlabels")
    rows = [[0.2, 0.9], [0.5, 0.5], [1, 0], [0.01, 0.99]]
    found = imported(table("a.tsv", rows, "가\t나"))
    near(found["logits"].sigmoid().tolist(), rows)
    assert found["task"] == "multilabel"
    for name, votes in {"b": [1, 0], "c": [1, 1], "d": [1, 0]}.items():
        table(f"{name}.tsv", [votes] * 4, "가\t나")
    found = imported("b.tsv c.tsv d.tsv --kind votes --overwrite")
    near(found["logits"].sigmoid().tolist(), [[3.5 / 4, 1.5 / 4]] * 4)
    refused(lambda: run(IMPORT, f"{table('e.tsv', [[2, 0]] * 4, '가	나')} --data train.tsv --kind votes "
                                f"--out e.pt"), "e.tsv:2: more than one vote")
    refused(lambda: run(IMPORT, f"{lines('e.jsonl', {'가': 0.5})} --data train.tsv --out e.pt"), "'나'")


def test_scores_are_averaged(folder):
    rows = zip(TEXTS, ["1", "5", "2", ""], strict=True)
    write_rows(Path("train.tsv"), rows, "text\tscore")
    found = imported(lines("a.jsonl", *({"row": row, "score": score} for row, score in (
        (0, 1.5), (1, 4), (2, 2), (3, 3), (1, 5)))))
    assert found["logits"].tolist() == [[1.5], [4.5], [2], [3]] and found["task"] == "regression"
    refused(lambda: run(IMPORT, "a.jsonl --data train.tsv --out b.pt --kind votes"), "--kind votes")


def test_a_file_without_answers_has_the_labels_of_the_table(folder):
    write_rows(Path("plain.tsv"), [(text,) for text in TEXTS], "text")
    found = imported(table("a.tsv", [[*row, "x"] for row in ROWS], "10\t9\ttext2"), "plain.tsv")
    near(softmaxed(found), [row[::-1] for row in ROWS])
    assert found["label_names"] == ["9", "10"] and found["task"] == "classification"
    near(imported("a.tsv --task multilabel --overwrite", "plain.tsv")["logits"].sigmoid().tolist(),
         [row[::-1] for row in ROWS])
    found = imported(table("b.tsv", [[1], [2], [3], [4]], "score"), "plain.tsv", "b.pt")
    assert found["task"] == "regression" and found["logits"].flatten().tolist() == [1, 2, 3, 4]
    refused(lambda: imported(table("c.tsv", [[1]] * 4, "좋음"), "plain.tsv", "c.pt"), "c.tsv", "plain.tsv")


# ---- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["id", "row"])
def test_lines_are_joined_by_id_or_row(folder, key):
    """In any order; more than one about a row, of several files, are averaged."""
    names = {"id": ["i2", "i0", "i3", "i1"], "row": [2, 0, 3, 1]}[key]
    rows = [{key: name, "나쁨": ROWS[row][0], "좋음": ROWS[row][1], "text": TEXTS[row]}
            for name, row in zip(names, [2, 0, 3, 1], strict=True)]
    lines("a.jsonl", *rows, *rows)
    near(softmaxed(imported("a.jsonl")), ROWS)
    lines("b.jsonl", {key: names[1], "나쁨": 0.6, "좋음": 0.4})
    found = softmaxed(imported("a.jsonl a.jsonl b.jsonl --overwrite"))
    near(found[0], [(4 * 0.2 + 0.6) / 5, (4 * 0.8 + 0.4) / 5])


BAD = [
    ({"row": 1, "error": "timeout"}, "no label has a number"), ({"row": 1, "나쁨": None}, "no label"),
    ({"row": 4, "나쁨": 1}, "row 4"), ({"row": -1, "나쁨": 1}, "row -1"),
    ({"row": 0.5, "나쁨": 1}, "row 0.5"),
    ({"id": "i9", "나쁨": 1}, "'i9'"), ({"row": 1, "나쁨": 1, "text": "좋다"}, "text .* row 1"),
    ({"row": 1, "좋음 ": 1}, "'좋음 '.*'좋음'"),
    ({"row": 1, "나쁨": 3, "좋음": 1}, "add up to 4.*--kind votes"),
    ({"row": 1, "나쁨": 0.3, "좋음": 0.3}, "add up to 0.6"),
    ({"row": 1, "나쁨": -0.1, "좋음": 1.1}, "negative"),
    ({"row": 1, "나쁨": float("nan")}, "finite"), ([1], "not a JSON object"),
    ({"row": 1, "나쁨": 10**400, "좋음": 0}, "not a number"), ({"row": 10**400, "나쁨": 1}, "row 1000"),
    ({"row": 1, "나쁨": 0.9, "좋음": "x"}, "좋음 is 'x'"), ({"id": None, "나쁨": 1}, "id None"),
]


@pytest.mark.parametrize("bad, why", BAD)
def test_a_line_that_cannot_be_used_is_no_answer(folder, capsys, bad, why):
    good = [{"row": row, "나쁨": a, "좋음": b} for row, (a, b) in enumerate(ROWS)]
    lines("a.jsonl", good[0], bad, *good[2:])
    refused(lambda: imported("a.jsonl"), r"train\.tsv:3: ", r"a\.jsonl:2: ", why, "--unanswered")
    assert not Path("out.pt").exists()
    lines("a.jsonl", bad, *good)
    near(softmaxed(imported("a.jsonl")), ROWS)
    assert "1 lines cannot be used" in capsys.readouterr().err


def test_half_a_line_is_no_answer(folder):
    """What a process that was killed leaves; the next one appends to it."""
    good = [json.dumps({"row": row, "나쁨": a, "좋음": b}) for row, (a, b) in enumerate(ROWS)]
    Path("a.jsonl").write_text("\n".join([good[0][:9] + good[1], *good]), "utf-8")
    near(softmaxed(imported("a.jsonl")), ROWS)


@pytest.mark.parametrize("name, text, parts", [
    ("a.tsv", "나쁨\t좋음\n0.5\n", [r"a\.tsv:2", "1 columns"]),
    ("a.tsv", "나쁨\t나쁨\n0.5\t0.5\n", [r"a\.tsv: column '나쁨' occurs 2 times"]),
    ("a.tsv", "ID\t나쁨\ni0\t0.5\n", [r"a\.tsv: column 'ID'", "id"]),
    ("a.tsv", "id\t나쁨\ni0\t0.5\n\t0.5\n", [r"a\.tsv:3: id ''"]),
    ("a.csv", '나쁨,좋음\n"0.5,0.5\n', [r"a\.csv:2", "CSV"]), ("a.xlsx", "", ["ending"]),
    ("a.tsv", "나쁨\t좋음\n" + "0.5\t0.5\n" * 5, []),
    ("a.tsv", "나쁨\t좋음\n" + "0.5\t0.5\n" * 3, [r"train\.tsv:5", "first of 1"])])
def test_a_table_that_cannot_be_read_is_refused(folder, capsys, name, text, parts):
    Path(name).write_text(text, "utf-8")
    if parts:
        refused(lambda: imported(name), *parts)
    else:
        imported(name)
        assert "only 4 rows" in capsys.readouterr().err


def test_ids_that_nobody_knows_are_not_positions(folder):
    write_rows(Path("train.tsv"), [(text, "좋음") for text in TEXTS[:2]] + [(TEXTS[2], "나쁨")])
    table("a.tsv", [["i2", 1, 0], ["i1", 0, 1], ["i0", 0, 1]], "id\t나쁨\t좋음")
    refused(lambda: imported("a.tsv"), r"a\.tsv:2: it has an id, but train\.tsv has no column id")


def test_what_is_too_large_for_float32_and_no_vote_are_no_answers(folder):
    for kind, first, why in (("scores", [1e39, 0], "too large"), ("votes", [0, 0], "no vote")):
        table("a.tsv", [first, *ROWS[1:]])
        refused(lambda kind=kind: imported(f"a.tsv --kind {kind} --unanswered ask.jsonl"),
                rf"train\.tsv:2: .*a\.tsv:2: .*{why}")
        assert json.loads(Path("ask.jsonl").read_text("utf-8"))["id"] == "i0"


def test_outputs_have_names_of_their_own(folder):
    table("a.tsv")
    refused(lambda: imported("a.tsv --answered x.jsonl --unanswered x.jsonl"), "same file")
    assert not Path("x.jsonl").exists()


def test_a_table_of_several_columns_holds_no_scores_of_a_regression(folder, capsys):
    write_rows(Path("plain.tsv"), [(text,) for text in TEXTS], "text")
    refused(lambda: imported(f"{table('a.tsv')} --task regression", "plain.tsv"), "나쁨")
    imported("a.tsv", "plain.tsv")
    assert "['나쁨', '좋음']" in capsys.readouterr().out


def test_an_id_that_occurs_twice_in_the_data_joins_nothing(folder):
    write_rows(Path("train.tsv"), [(text, "i", "좋음") for text in TEXTS[:3]] + [(TEXTS[3], "j", "나쁨")],
               "text\tid\tlabel")
    refused(lambda: imported(lines("a.jsonl", {"id": "i", "좋음": 1})), "more than once")


def test_what_is_not_answered_is_written_to_be_asked_and_the_rest_can_teach(folder):
    lines("a.jsonl", {"row": 2, "나쁨": 0.5, "좋음": 0.5}, {"row": 0, "나쁨": 0.2, "좋음": 0.8})
    run(IMPORT, "a.jsonl --data train.tsv --unanswered ask.jsonl")
    asked = [json.loads(line) for line in Path("ask.jsonl").read_text("utf-8").splitlines()]
    assert [(each["row"], each["id"], each["text"]) for each in asked] == [
        (1, "i1", "나쁘다"), (3, "i3", "몰라")]
    found = imported("a.jsonl --answered yes.jsonl")
    near(softmaxed(found), [ROWS[0], ROWS[2]])
    answered = read_examples("yes.jsonl")
    assert answered.texts == ["좋다", "그냥"] and answered.answers == ["좋음", ""]
    assert found["texts"] == answered.fingerprint()
    lines("none.jsonl")
    write_rows(Path("plain.tsv"), [(text,) for text in TEXTS], "text")
    run(IMPORT, "none.jsonl --data plain.tsv --unanswered ask.jsonl")  # before the first answer
    assert len(Path("ask.jsonl").read_text("utf-8").splitlines()) == 4


# ---- the file ----------------------------------------------------------------------------------------------


def test_a_file_is_left_alone_or_refused_and_inputs_are_kept(folder):
    table("a.tsv")
    imported("a.tsv --answered yes.jsonl")
    before = snapshot()
    imported("a.tsv --answered yes.jsonl")
    assert snapshot() == before
    table("b.tsv", ROWS[::-1])
    for flags, named in (("b.tsv", "out.pt: exists"), ("b.tsv --answered train.jsonl", "out.pt"),
                         ("b.tsv --kind votes", "out.pt"), ("a.tsv --answered yes.jsonl --kind log", "")):
        refused(lambda flags=flags: imported(flags), named)
    lines("a.jsonl", {"row": 0, "좋음": 1})
    refused(lambda: imported("a.jsonl --answered yes.jsonl", out="new.pt"), "yes.jsonl: exists")
    refused(lambda: run(IMPORT, "a.jsonl --data train.tsv --unanswered a.jsonl"), "a.jsonl: .*input")
    refused(lambda: imported("a.tsv", out="a.tsv"), "a.tsv: .*input")
    Path("a.jsonl").unlink()
    Path("b.tsv").unlink()
    assert snapshot() == before
    table("a.tsv", ROWS[::-1])
    imported("a.tsv --overwrite")
    near(softmaxed(read("out.pt")), ROWS[::-1])


def test_columns_under_each_others_names_are_told(here, capsys):
    labels = read_examples("train.tsv").answers
    table("right.tsv", [[0.9, 0.1] if label == "0" else [0.1, 0.9] for label in labels], "0\t1")
    table("wrong.tsv", [[0.1, 0.9] if label == "0" else [0.9, 0.1] for label in labels], "0\t1")
    imported("right.tsv")
    assert not capsys.readouterr().err
    imported("wrong.tsv", out="wrong.pt")
    assert "['1', '0']" in capsys.readouterr().err


def test_a_student_learns_them_and_a_changed_file_is_told(here):
    labels = read_examples("train.tsv").answers
    rows = [{"row": row, label: 0.9} for row, label in enumerate(labels)]
    imported(lines("a.jsonl", *rows), out="logits/table.pt")
    run("distill", f"--train train.tsv --logits logits/table.pt --valid valid.tsv {STUDENT} --output-dir out")
    run("evaluate", "out/tiny/student.pt --data train.tsv --logits logits/table.pt --device cpu")
    assert read_logits("logits/table.pt").teacher_files == []
    texts = read_examples("train.tsv").texts
    write_rows(Path("more.tsv"), [("새 글", "1"), *zip(texts, labels, strict=True)])
    refused(lambda: run("distill", f"--train more.tsv --logits logits/table.pt --valid valid.tsv {STUDENT} "
                                   f"--output-dir more"), "import_logits.py TABLE --data more.tsv")


def test_the_recipe_survives_failed_and_repeated_rows(here):
    """The stub fails at every ninth row and repeats every seventh; logits are those of one that does not."""
    environment = os.environ | {"PYTHON": sys.executable, "D": str(here), "OUT": str(here / "out"),
                                "SIZES": f"tiny --epochs 1 {CPU}"}
    subprocess.run(["sh", ROOT / "recipes/answers.sh"], check=True, env=environment, capture_output=True)
    answers = [json.loads(line) for line in Path("out/answers.jsonl").read_text("utf-8").splitlines()]
    assert any("error" in line for line in answers)
    rows = [line["row"] for line in answers if "error" not in line]
    assert len(rows) > len({*rows})
    texts, found = read_examples("unlabeled.tsv").texts, read("out/logits/answered.pt")
    lines = Path("out/answered.jsonl").read_text("utf-8").splitlines()
    answered = [json.loads(line)["row"] for line in lines]
    assert len(answered) >= len(texts) - 1
    for row, p in zip(answered, found["logits"].softmax(1)[:, 1].tolist(), strict=True):
        good, bad = (any(word in texts[row] for word in words) for words in (
            ("최고", "재밌", "좋"), ("최악", "별로", "지루")))
        assert p == pytest.approx(0.9 if good else 0.1 if bad else 0.5, abs=1e-4)
    assert Path("out/students/tiny/student.pt").exists()
