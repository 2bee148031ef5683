"""data/augment.py: the rules and rates of Tang et al. (2019), words of a kind, no duplicates, bad input."""

import random
from collections import Counter

import pytest
from helpers import refused

from data import augment
from data.augment import Augmenter, kind

TEXT = "배우가 정말 연기를 잘한다 최고 영화 음악 화면 모두 좋다"


def write(path, rows, header="text"):
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def made(out, *data, **flags):
    """Lines of the table that the script writes."""
    flags = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    augment.main(augment.parse_args(["--data", *map(str, data), "--out", str(out), *filter(None, flags)]))
    return out.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("word, expected", [
    ("배우가", "가"), ("영화가!!", "가"), ("좋았다...ㅋㅋ", "A"), ("(최고)", "고"), ("10점", "점"),
    ("2019", "1"), ("OST", "A"), ("...", ""), ("♥", ""),
])
def test_the_kind_of_a_word_is_its_last_syllable(word, expected):
    assert kind(word) == expected


def test_rates_are_those_asked_for():
    """Of 40,000 words a tenth is masked; a fifth is drawn again, half of which is another word by chance."""
    augmenter = Augmenter(["하나가 둘이 하나가 셋가 셋가"], 0.1, 0.2, 0.0, "[MASK]", 0)
    words = " ".join(augmenter.vary("하나가 하나가 둘이 하나가") for _ in range(10_000)).split()
    counts = Counter(words)
    assert len(words) == 40_000
    assert counts["[MASK]"] / 40_000 == pytest.approx(0.1, abs=0.006)
    assert counts["셋가"] / 30_000 == pytest.approx(0.2 / 2, abs=0.006)  # 2 of the 4 words in 가
    assert counts["둘이"] / 10_000 == pytest.approx(0.9, abs=0.01)  # alone of its kind: replaced by itself


def test_replacements_are_of_the_kind_and_drawn_by_frequency():
    augmenter = Augmenter(["가다", *["오다"] * 3, "먹다", "책을"], 0.0, 1.0, 0.0, "[MASK]", 0)
    counts = Counter(augmenter.vary("가다") for _ in range(10_000))
    assert set(counts) == {"가다", "오다", "먹다"}
    shares = [counts[word] / 10_000 for word in ("가다", "오다", "먹다")]
    assert shares == pytest.approx([0.2, 0.6, 0.2], abs=0.015)


def test_ngrams_are_one_to_five_neighbouring_words():
    augmenter = Augmenter([TEXT], 0.0, 0.0, 0.25, "[MASK]", 0)
    cut = [variant for variant in (augmenter.vary(TEXT) for _ in range(8_000)) if variant != TEXT]
    assert len(cut) / 8_000 == pytest.approx(0.25, abs=0.02)
    assert all(f" {variant} " in f" {TEXT} " for variant in cut)
    sizes = Counter(len(variant.split()) for variant in cut)
    assert set(sizes) == {1, 2, 3, 4, 5} and min(sizes.values()) > 0.15 * len(cut)
    assert {variant.split()[0] for variant in cut} == set(TEXT.split())  # from everywhere
    short = Augmenter([TEXT], 0.0, 0.0, 1.0, "[MASK]", 0)
    assert {short.vary("둘 하나") for _ in range(100)} == {"둘 하나", "둘", "하나"} and short.vary("") == ""


def test_the_file_is_repeatable_without_labels_duplicates_or_originals(tmp_path):
    generator = random.Random(0)
    texts = [" ".join(generator.choices(TEXT.split(), k=generator.randint(1, 8))) for _ in range(200)]
    data = write(tmp_path / "a.csv", [f'"{text}",1' for text in [*texts, "", "  "]], "text,label")
    lines = made(tmp_path / "b.tsv", data, times=5)
    assert lines[0] == "text" and len(lines) > 200
    assert len(set(lines[1:])) == len(lines) - 1 and not set(lines[1:]) & {*texts, ""}
    assert made(tmp_path / "b.tsv", data, times=5) == lines  # the same again is no harm
    refused(lambda: made(tmp_path / "b.tsv", data, times=5, seed=1), r"b\.tsv: .*--overwrite")
    assert made(tmp_path / "c.tsv", data, times=5) == lines
    assert made(tmp_path / "c.tsv", data, times=5, seed=1, overwrite="") != lines
    masked = made(tmp_path / "e.tsv", data, mask=1, replace=0, ngram=0, mask_token="<mask>")
    assert set(" ".join(masked[1:]).split()) == {"<mask>"}


def test_a_seed_gives_these_variants_for_good(tmp_path):
    """Logits of augmented texts are bound to them."""
    data = write(tmp_path / "a.tsv", [TEXT, "영화가 최고"])
    assert made(tmp_path / "b.tsv", data, mask=0.2, replace=0.5, ngram=0.5, seed=3) == [
        "text", "영화가 정말 연기를 [MASK] 최고 영화 음악 화면 모두 [MASK]", "영화 음악 화면 모두 좋다",
        "[MASK] [MASK]", "배우가 정말 연기를 좋다 최고 영화 음악 화면 모두 좋다",
        "배우가 정말 연기를 [MASK] 최고 영화 음악 화면 [MASK] 잘한다"]


def test_of_a_pair_the_first_the_second_and_both_are_varied_in_turn(tmp_path):
    data = write(tmp_path / "a.tsv", ["하나 둘\t셋 넷"], "p\tq")
    lines = made(tmp_path / "b.tsv", data, times=3, mask=1, replace=0, ngram=0, text_column="p",
                 text2_column="q")
    assert lines == ["text\ttext2", "[MASK] [MASK]\t셋 넷", "하나 둘\t[MASK] [MASK]",
                     "[MASK] [MASK]\t[MASK] [MASK]"]


def sentences(count):
    """Pairs of which each first text resembles the second texts of its own topic alone."""
    topics = ["비행기가 공항에 도착했다", "고양이는 소파 위에서 잔다", "주가는 오늘 크게 올랐다"]
    return [(f"{topics[i % 3]} {i}번", f"{i}째로 {topics[i % 3]}") for i in range(count)]


def topic(text):
    return next(word for word in ("비행기", "고양이", "주가는") if word in text)


def test_new_pairs_are_half_alike_and_half_random(tmp_path):
    rows = sentences(60)
    data = write(tmp_path / "a.tsv", map("\t".join, rows), "text\ttext2")
    lines = [tuple(line.split("\t")) for line in made(tmp_path / "b.tsv", data, times=0, pairs=6)[1:]]
    assert len(lines) == len(set(lines)) > 340 and not set(lines) & set(rows)  # random ones can meet again
    assert {text for text, _ in lines} == {text for text, _ in rows}
    assert {text for _, text in lines} <= {text for _, text in rows}
    assert len({text for _, text in lines}) > 50
    assert Counter(Counter(text for text, _ in lines).values()).most_common(1)[0][0] == 6
    same = sum(topic(text) == topic(text2) for text, text2 in lines) / len(lines)
    assert same == pytest.approx(1 / 2 + 1 / 2 / 3, abs=0.06)
    assert made(tmp_path / "c.tsv", data, times=0, pairs=6)[1:] == ["\t".join(line) for line in lines]
    assert made(tmp_path / "d.tsv", data, times=0, pairs=6, seed=1)[1:] != ["\t".join(line) for line in lines]
    single = dict(line.split("\t") for line in made(tmp_path / "e.tsv", data, times=0, pairs=1)[1:])
    assert all(topic(text) == topic(single[text]) for text, _ in rows[::2])


def test_the_text_that_shares_the_most_letter_pairs_comes_first():
    """Dice by hand: 나비가 날다 has 나비 비가 가날 날다; 나비 날다 has 나비 비날 날다: 2 · 2 / 7."""
    assert augment.dice(augment.bigrams("나비가 날다"), augment.bigrams("나비 날다")) == pytest.approx(4 / 7)
    assert augment.bigrams("가") == {"가"} and augment.bigrams(" ") == {""}
    texts = ["바다", "나비 날다", "나비가 날다", "나비다", "나비가"]
    partners = augment.Partners(texts, random.Random(0).random)
    assert partners.like("나비가 날다") == ["나비가 날다", "나비가", "나비 날다", "나비다"]
    many = augment.Partners([f"공통 {i}" for i in range(1000)] + ["공통 희귀"], random.Random(0).random)
    assert len(many.like("공통")) == many.CANDIDATES and many.like("공통 희귀")[0] == "공통 희귀"


def test_symmetric_pairs_are_also_written_in_swapped_order(tmp_path):
    rows = [("하나", "둘"), ("셋", "넷"), ("둘", "하나"), ("다섯", "다섯")]
    data = write(tmp_path / "a.tsv", map("\t".join, rows), "text\ttext2")
    assert made(tmp_path / "b.tsv", data, times=0, symmetric="") == ["text\ttext2", "넷\t셋"]
    both = made(tmp_path / "c.tsv", data, symmetric="", pairs=2)
    assert both[: both.index("넷\t셋")] == made(tmp_path / "d.tsv", data) and len(set(both)) == len(both)


def test_a_text_with_line_ends_and_nul_stays_one_row(tmp_path):
    data = write(tmp_path / "a.jsonl", ['{"text": "하나\\t둘\\n셋\\u0000넷"}'], "")
    lines = made(tmp_path / "b.tsv", data, times=1, mask=1, replace=0, ngram=0)
    assert lines == ["text", "[MASK] [MASK] [MASK] [MASK]"]


@pytest.mark.parametrize("flags, named", [
    ("--times -1", "--times"), ("--pairs -1", "--pairs"), ("--mask -1", "--mask"), ("--mask nan", "--mask"),
    ("--ngram nan", "--ngram"),
    ("--mask 0.9 --replace 0.2", "together"), ("--out x.csv", ".tsv"), ("--seed -1", "--seed"),
    ("--mask-token=a\tb", "--mask-token"), ("--mask-token=", "--mask-token"),
])
def test_wrong_flags_end_with_usage(capsys, flags, named):
    with pytest.raises(SystemExit) as end:
        augment.parse_args(["--data", "a.tsv", "--out", "b.tsv", *flags.split(" ")])
    assert end.value.code == 2 and named in capsys.readouterr().err.splitlines()[-1]


def test_wrong_input_is_one_line_and_harms_no_file(tmp_path):
    single, pair = write(tmp_path / "a.tsv", ["하나"]), write(tmp_path / "b.tsv", ["하나\t둘"], "text\ttext2")
    out = tmp_path / "c.tsv"
    refused(lambda: made(out, single, pair), "pairs")
    refused(lambda: made(single, single, overwrite=""), r"a\.tsv: would be overwritten")
    refused(lambda: made(out, tmp_path / "none.tsv"), r"none\.tsv: cannot read")
    for flags in ({"pairs": 1}, {"symmetric": ""}):
        refused(lambda flags=flags: made(out, single, **flags), r"a\.tsv: .*text2")
    refused(lambda: made(out, pair, times=0, pairs=1), "no text has a variant")
    refused(lambda: made(out, single, mask=0, replace=0), r"a\.tsv: no text has a variant")
    assert single.read_text("utf-8") == "text\n하나\n" and not out.exists()
