"""train_tokenizer.py: files, ids, template, printed numbers, and the original kit's vocabulary."""

import gzip
import os
import random
import re
import subprocess
import sys
import unicodedata

import pytest
from helpers import refused
from tokenizers import BertWordPieceTokenizer, Tokenizer, normalizers

import train_tokenizer
from student import Student, StudentConfig
from train_tokenizer import SPECIAL_TOKENS, charsmap

KINDS = ("wordpiece", "bpe", "unigram")
# Words of at most four characters: where several merges are equally frequent, the order in which the
# tokenizers library takes them in a longer word differs from run to run (its issue 1794).
REVIEWS = [
    *["이 영화 진짜 꿀잼ㅋㅋ", "ㅋㅋㅋ 노잼 ㅠㅠ 돈이 아깝다..", "LG BTS CGV lg 최고!!"] * 9,
    *["Café café É 연기 최고", "연기력 ㅠㅠㅠㅠ 재밌다 (강추)", "전개 10점 만점, 10점"] * 6,
    *["다섯번"] * 5, *["네번"] * 4, "한번 漢字漢字", "😀 \u200b\u3000끝",
]
UNSEEN = ["LG 영화ㅋㅋ 재밌네 café", "Lg É 10점ㅠㅠ 뷁", "네번 다섯번", "漢字 (강추)!!"]


def write(path, texts, column="text"):
    data = "".join(f"{line}\n" for line in [column, *texts]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def train(tmp_path, texts, *flags, out="tokenizer"):
    """Run the script on the texts; returns {vocab_size: Tokenizer} as read back from the files."""
    file = write(tmp_path / "texts.tsv", texts)
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(file), "--output-dir", str(tmp_path / out), *map(str, flags)]))
    return {int(folder.name.removeprefix("vocab_size_")): Tokenizer.from_file(str(folder / "tokenizer.json"))
            for folder in (tmp_path / out).iterdir()}


def vocab_of(tokenizer):
    return set(tokenizer.get_vocab())


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_size_gets_a_folder_and_special_tokens_have_ids_0_to_4(tmp_path, kind):
    found = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 110, 100)
    assert found.keys() == {100, 110}
    for size, tokenizer in found.items():
        folder = tmp_path / f"tokenizer/vocab_size_{size}"
        assert sorted(os.listdir(folder)) == ["tokenizer.json"] + ["vocab.txt"] * (kind == "wordpiece")
        assert [tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
        if kind != "unigram":  # which stops where further pieces gain nothing, and is not repeatable
            assert tokenizer.get_vocab_size() == size
            alone = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", size, out=f"alone{size}")
            assert alone[size].to_str() == tokenizer.to_str()
        if kind == "wordpiece":
            lines = (folder / "vocab.txt").read_bytes().decode().split("\n")
            assert lines == [*(tokenizer.id_to_token(i) for i in range(size)), ""]


def test_the_same_texts_give_the_same_bytes(tmp_path):
    """But for unigram. A hundred words that occur equally often, so that ties decide which of them, and of
    their characters, become tokens; the library breaks ties in the order of a new hash table each time."""
    words = [f"{chr(0xAC00 + 37 * i)}{chr(0xB000 + 53 * i)}{chr(0xC000 + 11 * i)}" for i in range(100)]
    for kind in ("wordpiece", "bpe"):
        for limit in (150, 1500):
            flags = ["--type", kind, "--vocab-size", "350", "--limit-alphabet", str(limit)]
            one, two, three = (train(tmp_path, texts * 6, *flags, out=f"{kind}{limit}{i}")[350].to_str()
                               for i, texts in enumerate((words[::-1], words, words)))
            assert one == two == three
    done = subprocess.run([sys.executable, train_tokenizer.__file__, "--data", "texts.tsv", *flags],
                          cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer/vocab_size_350/tokenizer.json")).to_str() == one


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_different_tokenizer_is_replaced_only_when_told_to(tmp_path, kind):
    def run(texts, *more):
        train(tmp_path, texts * 5, "--vocab-size", 20, "--type", kind, *more)
        return {path.name: path.read_bytes() for path in (tmp_path / "tokenizer/vocab_size_20").iterdir()}

    first = run(["가 나"])
    assert run(["가 나"]) == first
    refused(lambda: run(["다 라"]), r"vocab_size_20/tokenizer\.json: .*--overwrite")
    assert run(["가 나"]) == first
    second = run(["다 라"], "--overwrite")
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


def test_all_files_and_both_columns_of_pairs_are_read(tmp_path, capsys):
    pairs = write(tmp_path / "pairs.tsv", ["가\t나"] * 5, "premise\thypothesis")
    more = write(tmp_path / "more.tsv.gz", ["다\t라"] * 5, "hypothesis\tpremise")
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(pairs), str(more), "--output-dir", str(tmp_path / "out"), "--text-column", "premise",
         "--text2-column", "hypothesis", "--vocab-size", "10"]))
    tokenizer = Tokenizer.from_file(str(tmp_path / "out/vocab_size_10/tokenizer.json"))
    assert vocab_of(tokenizer) == {*SPECIAL_TOKENS, *"▁가나다라"}
    assert capsys.readouterr().out.startswith("20 texts\n")


# ---- vocabulary --------------------------------------------------------------------------------------------


def reference(tmp_path, texts, vocab_size, limit_alphabet):
    """As the original kit trains: from a file of one text per line, by the library's class for it."""
    (tmp_path / "lines.txt").write_text("\n".join(texts), encoding="utf-8")
    tokenizer = BertWordPieceTokenizer(lowercase=False)
    tokenizer.train(str(tmp_path / "lines.txt"), vocab_size=vocab_size, min_frequency=5, show_progress=False,
                    limit_alphabet=limit_alphabet)
    return tokenizer


def test_wordpiece_has_the_vocabulary_of_the_original(tmp_path):
    """Case, accents and jamo included; what occurs less than five times forms no token of its own."""
    theirs = reference(tmp_path, REVIEWS, 3000, 1500)
    ours = train(tmp_path, REVIEWS, "--type", "wordpiece")[3000]
    assert vocab_of(ours) == vocab_of(theirs)
    for text in REVIEWS + UNSEEN:
        assert ours.encode(text).tokens == theirs.encode(text, add_special_tokens=False).tokens
    assert {"LG", "lg", "café", "Café", "É", "ㅋㅋㅋ", "ㅠㅠ", "다섯번", "10", "漢"} <= vocab_of(ours)
    assert not {"cafe", "네번", "漢字"} & vocab_of(ours)


@pytest.mark.parametrize("vocab_size, flags, characters", [
    (2000, [], 1000), (2001, [], 1500), (2000, ["--limit-alphabet", 1500], 1500),
    (3000, ["--limit-alphabet", 1000], 1000),
])
def test_the_rarest_characters_are_left_out(tmp_path, vocab_size, flags, characters):
    """1,600 characters: character i occurs more often than i + 1 around both limits, so no tie decides."""
    letters = [chr(ord("가") + i) for i in range(1600)]
    counts = [9] * 999 + [8, 7] + [6] * 498 + [5, 4] + [3] * 99
    texts = [" ".join(letter * (count > i) for letter, count in zip(letters, counts, strict=True))
             for i in range(9)]
    tokenizer = train(tmp_path, texts, "--type", "wordpiece", "--vocab-size", vocab_size, *flags)[vocab_size]
    assert vocab_of(tokenizer) == {*SPECIAL_TOKENS, *letters[:characters]}
    assert vocab_of(tokenizer) == vocab_of(reference(tmp_path, texts, vocab_size, characters))


def test_the_most_frequent_words_become_tokens(tmp_path):
    """Two-letter words, word i occurring 30 - i times: the vocabulary of any size is known beforehand."""
    words = [chr(ord("가") + i) + chr(ord("하") + i) for i in range(20)]
    texts = [word for i, word in enumerate(words) for _ in range(30 - i)]
    singles = {*SPECIAL_TOKENS, *"".join(words), *("##" + word[1] for word in words)}
    found = train(tmp_path, texts, "--type", "wordpiece", "--min-frequency", 15, "--vocab-size", 65, 72, 200)
    for size, merged in ((65, 0), (72, 7), (200, 16)):
        assert vocab_of(found[size]) == singles | set(words[:merged])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_survive_encoding_in_either_form_of_hangul(tmp_path, kind):
    """Case, accents and jamo are kept. macOS hands over Hangul decomposed (NFD): it is the same text."""
    tokenizer = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 300)[300]
    for text in ("LG lg", "Café É", "ㅋㅋㅋ ㅠㅠ", "재밌다"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for text in REVIEWS:
        assert tokenizer.encode(unicodedata.normalize("NFD", text)).ids == tokenizer.encode(text).ids
    # No special tokens around a text, one [SEP] between two.
    first, second = tokenizer.encode("이 영화").ids, tokenizer.encode("최고").ids
    assert min(first + second) > 4
    assert tokenizer.encode("이 영화", "최고").ids == [*first, SPECIAL_TOKENS.index("[SEP]"), *second]


# ---- jamo --------------------------------------------------------------------------------------------------

LETTERS = [chr(code) for code in range(0x3131, 0x318F)]  # what a Korean keyboard types, and old letters
HALF_WIDTH = [chr(code) for code in range(0xFFA0, 0xFFDD) if unicodedata.name(chr(code), "")]
BEFORE = normalizers.Sequence(  # as the shipped students and all older tokenizers have it
    [normalizers.NFC(), normalizers.BertNormalizer(lowercase=False, strip_accents=False)])
# ㅄ, ㅀ and the dot ㆍ are old letters to Unicode: NFKC makes them U+1121, U+111A and U+119E.
LAUGHS = ["ㅋㅋㅋ 꿀잼 ㅠㅠ", "ㅇㅇ ㄱㄱ ㄲㅃ", "ㅁㅊ ㅂㅅ ㅄ", "연기ㆍ전개 ㅜㅜ", "ㄳ ㅎㅎ ㅀ 재밌다"]


def normalized(text):
    return train_tokenizer.NORMALIZER.normalize_str(text)


def half_width(text):
    """A text with its letters in half width, found by their names; syllables have no such form."""
    forms = {unicodedata.name(c).removeprefix("HALFWIDTH "): c for c in HALF_WIDTH}
    return "".join(forms.get(unicodedata.name(c), c) for c in text)


def test_every_single_jamo_becomes_the_letter_that_the_keyboard_types():
    for letter in LETTERS:
        forms = [letter, *(unicodedata.normalize(form, letter) for form in ("NFC", "NFD", "NFKC", "NFKD"))]
        assert {normalized(form) for form in forms} == {letter}
    assert len(HALF_WIDTH) == 52
    for half in HALF_WIDTH:
        assert normalized(half) == unicodedata.lookup(unicodedata.name(half).removeprefix("HALFWIDTH "))
    for kind, first, last in (("CHOSEONG", 0x1100, 0x1112), ("JUNGSEONG", 0x1161, 0x1175),
                              ("JONGSEONG", 0x11A8, 0x11C2)):  # 19 leading, 21 middle, 27 trailing
        for part in map(chr, range(first, last + 1)):
            assert normalized(part) == unicodedata.lookup(unicodedata.name(part).replace(kind, "LETTER"))
    assert normalized("\u110f \u11bf \uffbb ㅋ") == "ㅋ ㅋ ㅋ ㅋ"


@pytest.mark.parametrize("text, expected", [
    ("\u110f\u110f\u110f", "ㅋㅋㅋ"), ("\uffbb\uffbb", "ㅋㅋ"), ("\u1172\u1172", "ㅠㅠ"),
    ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),            # macOS: syllables are composed
    ("가\u11a8", "각"), ("각\u11a8", "각ㄱ"),                      # as NFC does, and what it leaves
    ("가\u110f\u110f", "가ㅋㅋ"), ("\u110f가", "ㅋ가"), ("\u1161가", "ㅏ가"),
    ("\u1100ㅏ", "ㄱㅏ"), ("\uffa1\uffc2", "ㄱㅏ"), ("ㄱㅏ", "ㄱㅏ"),  # typed as letters, they stay letters
    ("\u1112\u119e\u11ab", "ㅎㆍㄴ"),                            # a syllable of old Korean has no code point
])
def test_sequences_of_jamo(text, expected):
    assert normalized(text) == expected


def test_text_without_single_jamo_is_normalised_as_before():
    jamo = {*map(chr, range(0x1100, 0x1200)), *HALF_WIDTH}
    others = [c for c in map(chr, [*range(1, 0xD800), *range(0xE000, 0x20000)]) if c not in jamo]
    for c in others:
        assert normalized(c) == BEFORE.normalize_str(c)
    draw = random.Random(0)
    pools = [others, LETTERS, "가각힣한글", "e\u0301\u0308\u200d\ufe0f\r\n \t😀ａ１①漢"]
    for _ in range(3000):
        text = "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(30)))
        assert normalized(text) == BEFORE.normalize_str(text)
        decomposed = unicodedata.normalize("NFD", text)
        assert normalized(decomposed) == BEFORE.normalize_str(decomposed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_text_with_jamo_has_the_same_ids(tmp_path, kind):
    """And a file with single jamo in it gives the same tokenizer: all that counts normalises alike."""
    flags = ["--type", kind, "--vocab-size", 100]
    tokenizer = train(tmp_path, LAUGHS * 5, *flags)[100]
    for text in LAUGHS:
        encoded = tokenizer.encode(text)
        assert "[UNK]" not in encoded.tokens and tokenizer.decode(encoded.ids) == text
        for form in ("NFD", "NFKC", "NFKD"):
            assert tokenizer.encode(unicodedata.normalize(form, text)).ids == encoded.ids
        assert half_width(text) != text and tokenizer.encode(half_width(text)).ids == encoded.ids
    other = train(tmp_path, [unicodedata.normalize("NFKC", text) for text in LAUGHS] * 5, *flags, out="nfkc")
    assert vocab_of(other[100]) == vocab_of(tokenizer)
    if kind != "unigram":
        assert other[100].to_str() == tokenizer.to_str()


def test_a_student_keeps_the_normaliser_of_its_tokenizer(tmp_path):
    """An older student goes on reading U+110F as unknown: what a file computes never changes."""
    tokenizer = train(tmp_path, LAUGHS * 5, "--vocab-size", 100)[100]
    for normalizer, tokens in ((train_tokenizer.NORMALIZER, ["▁", "ㅋ"]), (BEFORE, ["▁", "[UNK]"])):
        tokenizer.normalizer = normalizer
        student = Student(StudentConfig(vocab_size=tokenizer.get_vocab_size(), num_labels=2, embedding_dim=1,
                                        hidden_dim=1), tokenizer, ["0", "1"])
        student.save(tmp_path / "student.pt", "int8")
        loaded = Student.load(tmp_path / "student.pt").tokenizer
        assert loaded.to_str() == tokenizer.to_str()
        assert loaded.encode("\u110f").tokens == tokens


def test_a_charsmap_replaces_characters_as_python_does():
    """Keys of one to four bytes, values of any length; every other character stays."""
    targets = {"a": "b", "b": "가나", "é": "e", "가": "a", "각": "가", "\uffff": "\U0001f601", "😀": "b"}
    normalizer = normalizers.Precompiled(charsmap(targets))
    draw, characters = random.Random(0), "abcABC éèㅋ가각간나\uffff\ufffe😀😁漢"
    for _ in range(2000):
        text = "".join(draw.choice(characters) for _ in range(draw.randrange(12)))
        assert normalizer.normalize_str(text) == text.translate(str.maketrans(targets))
    everything = [chr(code) for code in [*range(1, 0xD800), *range(0xE000, 0x20000)]]
    assert [c for c in everything if normalizer.normalize_str(c) != c] == sorted(targets)


# ---- what is printed ---------------------------------------------------------------------------------------


def printed(out):
    """[(size, tokens, kind, share unknown, tokens per text, longest)] of the lines."""
    return re.findall(r"vocab_size_(\d+): (\d+) tokens \((\w+)\), ([\d.]+%) of tokens unknown, "
                      r"([\d.]+) tokens per text \(longest (\d+)\)", out)


def test_printed_numbers_by_hand(tmp_path, capsys):
    """12 of 가, 10 of 나, 2 of 다 and an alphabet of two: 24 tokens, two of them unknown, in 11 texts."""
    train(tmp_path, ["가 나"] * 9 + ["가 나 다 다"] + ["가 가"], "--type", "wordpiece", "--vocab-size", 10,
          "--limit-alphabet", 2)
    out = capsys.readouterr().out
    assert out.startswith("11 texts\n") and printed(out) == [("10", "7", "wordpiece", "8.333%", "2.2", "4")]


@pytest.mark.parametrize("kind", KINDS)
def test_printed_numbers_equal_a_count_over_the_texts(tmp_path, capsys, kind):
    limit = [] if kind == "unigram" else ["--limit-alphabet", 30]
    found = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 90, 100, *limit)
    expected = []
    for size in (90, 100):
        rows = [found[size].encode(text).ids for text in REVIEWS]
        count, unknown = sum(map(len, rows)), sum(row.count(1) for row in rows)
        assert unknown > 0 or kind == "unigram"
        expected.append((str(size), str(found[size].get_vocab_size()), kind, f"{unknown / count:.3%}",
                         f"{count / len(rows):.1f}", str(max(map(len, rows)))))
    assert printed(capsys.readouterr().out) == expected


@pytest.mark.parametrize("size, told", [(3000, "fewer"), (100, None), (20, "more")])
def test_a_vocabulary_of_another_size_than_asked_for_is_told(tmp_path, capsys, size, told):
    """The characters of the alphabet are all kept, and there are no more tokens than the texts hold."""
    found = train(tmp_path, REVIEWS, "--vocab-size", size)[size].get_vocab_size()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == (told is not None)
    assert all(line.startswith(f"  {told} than the {size:,}") for line in lines)
    assert (found < size, found > size) == (told == "fewer", told == "more")


# ---- misuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["", "--data", "--data a --type word", "--data a --vocab-size 3k",
                                   "--data a --vocab-size 3000 9", f"--data a --vocab-size {2**20 + 1}",
                                   "--data a --min-frequency 0", "--data a --limit-alphabet -1",
                                   "--data a --cased"])
def test_bad_flags_end_with_code_2(capsys, flags):
    with pytest.raises(SystemExit) as end:
        train_tokenizer.parse_args(flags.split())
    assert end.value.code == 2
    named = re.findall("--[a-z-]+", flags or "--data")[-1]
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_done_is_one_line(tmp_path):
    texts = ["가나다라마바사아자차카타파하"]
    refused(lambda: train(tmp_path, texts, out="texts.tsv"), r"texts\.tsv/.*: cannot write")
    refused(lambda: train(tmp_path, texts, "--type", "unigram", "--vocab-size", 10), "^--vocab-size 10: ")
    with pytest.raises(train_tokenizer.UserError, match=r"none\.tsv: cannot read"):
        train_tokenizer.main(train_tokenizer.parse_args(["--data", str(tmp_path / "none.tsv")]))
