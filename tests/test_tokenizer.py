"""train_tokenizer.py, run in-process: files, ids, template, figures, and the original kit's vocabulary."""

import gzip
import os
import re
import subprocess
import sys
import unicodedata

import pytest
from tokenizers import BertWordPieceTokenizer, Tokenizer

import runtime
import train_tokenizer
from train_tokenizer import SPECIAL_TOKENS

KINDS = ("wordpiece", "bpe", "unigram")
WORDPIECE = ("--type", "wordpiece")

# Words of at most four characters: where several merges are equally frequent, the order in which the
# tokenizers library takes them in a longer word differs from run to run (its issue 1794).
REVIEWS = [
    *["이 영화 진짜 꿀잼ㅋㅋ", "ㅋㅋㅋ 노잼 ㅠㅠ 돈이 아깝다..", "LG BTS CGV lg 최고!!"] * 9,
    *["Café café É 연기 최고", "연기력 ㅠㅠㅠㅠ 재밌다 (강추)", "전개 10점 만점, 10점"] * 6,
    *["다섯번"] * 5, *["네번"] * 4, "한번 漢字漢字", "😀 \u200b\u3000끝",
]  # fmt: skip
UNSEEN = ["LG 영화ㅋㅋ 재밌네 café", "Lg É 10점ㅠㅠ 뷁", "네번 다섯번", "漢字 (강추)!!"]


def write(path, texts, column="text"):
    data = "".join(f"{line}\n" for line in [column, *texts]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def train(tmp_path, texts, *flags, out="tokenizer"):
    """Run main on the texts; returns {vocab_size: Tokenizer} as read back from the files."""
    file = write(tmp_path / "texts.tsv", texts)
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(file), "--output-dir", str(tmp_path / out), *map(str, flags)]))
    return {int(folder.name.removeprefix("vocab_size_")): Tokenizer.from_file(str(folder / "tokenizer.json"))
            for folder in (tmp_path / out).iterdir()}


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_size_gets_a_folder_and_special_tokens_have_ids_0_to_4(tmp_path, kind):
    found = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 100, 110)
    assert found.keys() == {100, 110}
    for size, tokenizer in found.items():
        folder = tmp_path / f"tokenizer/vocab_size_{size}"
        assert sorted(os.listdir(folder)) == ["tokenizer.json"] + ["vocab.txt"] * (kind == "wordpiece")
        assert [tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))
        if kind != "unigram":  # it stops where further pieces gain nothing
            assert tokenizer.get_vocab_size() == size
        if kind == "wordpiece":
            lines = (folder / "vocab.txt").read_bytes().decode().split("\n")
            assert lines == [*(tokenizer.id_to_token(i) for i in range(size)), ""]


def test_one_run_for_several_sizes_equals_a_run_for_each(tmp_path):
    together = train(tmp_path, REVIEWS, "--type", "bpe", "--vocab-size", 100, 70, 85)
    for size in (70, 85, 100):
        alone = train(tmp_path, REVIEWS, "--type", "bpe", "--vocab-size", size, out=f"alone{size}")
        assert alone[size].to_str() == together[size].to_str()


@pytest.mark.parametrize("limit", [150, 1500])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_another_process_writes_the_same_bytes(tmp_path, kind, limit):
    """Unigram alone numbers equally frequent tokens anew in each run (tokenizers 0.23). A hundred words that
    occur equally often, so that ties decide which of them, and of their characters, become tokens."""
    words = [f"{chr(0xAC00 + 37 * i)}{chr(0xB000 + 53 * i)}{chr(0xC000 + 11 * i)}" for i in range(100)]
    (tmp_path / "ties.tsv").write_text("\n".join(["text", *words * 6]), encoding="utf-8")
    for out in ("one", "two", "three"):
        flags = ["--data", "ties.tsv", "--type", kind, "--vocab-size", "350", "--output-dir", out,
                 "--limit-alphabet", str(limit)]
        subprocess.run([sys.executable, train_tokenizer.__file__, *flags], cwd=tmp_path, check=True,
                       capture_output=True)
    one, two, three = ((tmp_path / out / "vocab_size_350/tokenizer.json").read_bytes()
                       for out in ("one", "two", "three"))
    assert one == two == three


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_another_tokenizer_is_replaced_only_when_told_to(tmp_path, kind):
    def run(texts, *more):
        write(tmp_path / "a.tsv", texts * 5)
        train_tokenizer.main(train_tokenizer.parse_args([
            "--data", str(tmp_path / "a.tsv"), "--output-dir", str(tmp_path), "--vocab-size", "20", "--type",
            kind, *more]))
        return {path.name: path.read_bytes() for path in (tmp_path / "vocab_size_20").iterdir()}

    first = run(["가 나"])
    assert run(["가 나"]) == first
    with pytest.raises(runtime.UserError, match="is there already and is another one; --over"):
        run(["다 라"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "vocab_size_20").iterdir()} == first
    second = run(["다 라"], "--overwrite")
    assert first.keys() == second.keys() and all(first[name] != second[name] for name in first)


def test_all_files_and_both_columns_of_pairs_are_read(tmp_path, capsys):
    pairs = write(tmp_path / "pairs.tsv", ["가\t나"] * 5, "premise\thypothesis")
    more = write(tmp_path / "more.tsv.gz", ["다\t라"] * 5, "hypothesis\tpremise")
    train_tokenizer.main(train_tokenizer.parse_args(
        ["--data", str(pairs), str(more), "--output-dir", str(tmp_path / "out"), "--text-column", "premise",
         "--text2-column", "hypothesis", "--vocab-size", "10"]))
    vocab = Tokenizer.from_file(str(tmp_path / "out/vocab_size_10/tokenizer.json")).get_vocab()
    assert sorted(vocab, key=vocab.get)[:5] == SPECIAL_TOKENS
    assert sorted(vocab.keys() - set(SPECIAL_TOKENS)) == ["▁", "가", "나", "다", "라"]
    assert capsys.readouterr().out.startswith("20 texts\n")


# ---- vocabulary --------------------------------------------------------------------------------------------


def reference(tmp_path, texts, vocab_size, limit_alphabet):
    """As the original kit trains: from a file of one text a line, by the class that tokenizers has for it."""
    (tmp_path / "lines.txt").write_text("\n".join(texts), encoding="utf-8")
    tokenizer = BertWordPieceTokenizer(lowercase=False)
    tokenizer.train(str(tmp_path / "lines.txt"), vocab_size=vocab_size, min_frequency=5, show_progress=False,
                    limit_alphabet=limit_alphabet)
    return tokenizer


def test_wordpiece_has_the_vocabulary_of_the_original(tmp_path):
    """Case, accents and jamo included; what occurs less than five times forms no token of its own."""
    theirs, ours = reference(tmp_path, REVIEWS, 3000, 1500), train(tmp_path, REVIEWS, *WORDPIECE)[3000]
    assert ours.get_vocab().keys() == theirs.get_vocab().keys()
    for text in REVIEWS + UNSEEN:
        assert ours.encode(text).tokens == theirs.encode(text, add_special_tokens=False).tokens
    vocab = ours.get_vocab()
    assert {"LG", "lg", "café", "Café", "É", "ㅋㅋㅋ", "ㅠㅠ", "다섯번", "10", "漢"} <= vocab.keys()
    assert not {"cafe", "네번", "漢字"} & vocab.keys()


@pytest.mark.parametrize(("vocab_size", "flags", "characters"), [
    (2000, [], 1000), (2001, [], 1500), (3000, [], 1500), (2000, ["--limit-alphabet", 1500], 1500),
    (3000, ["--limit-alphabet", 1000], 1000),
])  # fmt: skip
def test_the_rarest_characters_are_left_out(tmp_path, vocab_size, flags, characters):
    """1,600 characters: character i occurs more often than i + 1 around both limits, so no tie decides."""
    letters = [chr(ord("가") + i) for i in range(1600)]
    counts = [9] * 999 + [8, 7] + [6] * 498 + [5, 4] + [3] * 99
    texts = [" ".join(letter * (count > i) for letter, count in zip(letters, counts, strict=True))
             for i in range(9)]  # fmt: skip
    tokenizer = train(tmp_path, texts, *WORDPIECE, "--vocab-size", vocab_size, *flags)[vocab_size]
    assert tokenizer.get_vocab().keys() == {*SPECIAL_TOKENS, *letters[:characters]}
    theirs = reference(tmp_path, texts, vocab_size, characters)
    assert tokenizer.get_vocab().keys() == theirs.get_vocab().keys()


def test_the_most_frequent_words_become_tokens(tmp_path):
    """Two-letter words, word i occurring 30 - i times: the vocabulary of any size is known beforehand."""
    words = [chr(ord("가") + i) + chr(ord("하") + i) for i in range(20)]
    texts = [word for i, word in enumerate(words) for _ in range(30 - i)]
    singles = {*SPECIAL_TOKENS, *"".join(words), *("##" + word[1] for word in words)}
    found = train(tmp_path, texts, *WORDPIECE, "--min-frequency", 15, "--vocab-size", 65, 72, 200)
    for size, merged in ((65, 0), (72, 7), (200, 16)):
        assert found[size].get_vocab().keys() == singles | set(words[:merged])


@pytest.mark.parametrize("kind", KINDS)
def test_case_accents_and_jamo_survive_encoding(tmp_path, kind):
    tokenizer = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 300)[300]
    for text in ("LG lg", "Café É", "ㅋㅋㅋ ㅠㅠ", "재밌다"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_hangul_in_jamo_is_the_same_text(tmp_path, kind):
    """macOS hands over Hangul decomposed (NFD)."""
    tokenizer = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 300)[300]
    for text in REVIEWS:
        assert tokenizer.encode(unicodedata.normalize("NFD", text)).ids == tokenizer.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_gets_no_special_tokens_and_a_pair_gets_one_sep_between(tmp_path, kind):
    tokenizer = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 300)[300]
    first, second = tokenizer.encode("이 영화").ids, tokenizer.encode("최고").ids
    assert min(first + second) > 4
    assert tokenizer.encode("이 영화", "최고").ids == [*first, SPECIAL_TOKENS.index("[SEP]"), *second]
    if kind == "wordpiece":
        assert tokenizer.encode("이 영화", "최고").tokens == ["이", "영화", "[SEP]", "최고"]


# ---- figures -----------------------------------------------------------------------------------------------


def test_printed_figures_by_hand(tmp_path, capsys):
    """12 of 가, 10 of 나, 2 of 다 and an alphabet of two: 24 tokens, two of them unknown, in 11 texts."""
    train(tmp_path, ["가 나"] * 9 + ["가 나 다 다"] + ["가 가"], *WORDPIECE, "--vocab-size", 10,
          "--limit-alphabet", 2)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "11 texts",
        f"{tmp_path}/tokenizer/vocab_size_10: 7 tokens (wordpiece), 8.333% of tokens unknown, "
        "2.2 tokens a text (longest 4)",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_printed_figures_equal_a_count_over_the_texts(tmp_path, capsys, kind):
    limit = [] if kind == "unigram" else ["--limit-alphabet", 30]
    found = train(tmp_path, REVIEWS, "--type", kind, "--vocab-size", 90, 100, *limit)
    printed = re.findall(r"vocab_size_(\d+): (\d+) tokens \((\w+)\), ([\d.]+%) of tokens unknown, "
                         r"([\d.]+) tokens a text \(longest (\d+)\)", capsys.readouterr().out)  # fmt: skip
    expected = []
    for size in (90, 100):
        rows = [found[size].encode(text).ids for text in REVIEWS]
        count = sum(map(len, rows))
        unknown = sum(row.count(1) for row in rows)
        assert unknown > 0 or kind == "unigram"
        expected.append((str(size), str(found[size].get_vocab_size()), kind, f"{unknown / count:.3%}",
                         f"{count / len(rows):.1f}", str(max(map(len, rows)))))
    assert printed == expected


@pytest.mark.parametrize(("size", "told"), [(3000, "fewer"), (100, None), (20, "more")])
def test_a_vocabulary_of_another_size_than_asked_for_is_told(tmp_path, capsys, size, told):
    """WordPiece keeps every character of the alphabet, and has no more tokens than the texts hold."""
    found = train(tmp_path, REVIEWS, "--vocab-size", size)[size].get_vocab_size()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == (told is not None)
    assert all(line.startswith(f"  {told} than the {size:,} asked for: ") for line in lines)
    assert (found < size, found > size) == (told == "fewer", told == "more")


# ---- misuse ------------------------------------------------------------------------------------------------

LEAST = "--vocab-size must be at least 10, --min-frequency and --limit-alphabet at least 1"


@pytest.mark.parametrize(("flags", "message"), [
    ([], "the following arguments are required: --data"),
    (["--data"], "argument --data: expected at least one argument"),
    (["--data", "a.tsv", "--type", "word"], "argument --type: invalid choice: 'word'"),
    (["--data", "a.tsv", "--vocab-size", "3k"], "argument --vocab-size: invalid int value: '3k'"),
    (["--data", "a.tsv", "--vocab-size", "3000", "9"], LEAST),
    (["--data", "a.tsv", "--min-frequency", "0"], LEAST),
    (["--data", "a.tsv", "--limit-alphabet", "0"], LEAST),
    (["--data", "a.tsv", "--limit-alphabet", "-1"], LEAST),
    (["--data", "a.tsv", "--cased"], "unrecognized arguments: --cased"),
])
def test_bad_flags_end_with_code_2(capsys, flags, message):
    with pytest.raises(SystemExit) as exit_:
        train_tokenizer.parse_args(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize(("data", "out", "flags", "message"), [
    ("none.tsv", "out", [], "{}/none.tsv: cannot read (No such file or directory)"),
    ("texts.tsv", "texts.tsv", [],
     "{}/texts.tsv/vocab_size_3000/tokenizer.json: cannot write (Not a directory); nothing was changed"),
    ("texts.tsv", "out", ["--type", "unigram", "--vocab-size", "10"],
     "--vocab-size 10: The vocabulary is not large enough to contain all chars"),
])
def test_what_cannot_be_done_ends_with_code_2_and_one_line(tmp_path, capsys, data, out, flags, message):
    write(tmp_path / "texts.tsv", ["가나다라마바사아자차카타파하"])
    args = train_tokenizer.parse_args(
        ["--data", str(tmp_path / data), "--output-dir", str(tmp_path / out), *flags])
    with pytest.raises(SystemExit) as exit_:
        runtime.run(train_tokenizer.main, args)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"error: {message.format(tmp_path)}\n"
