"""Train the student's subword vocabulary on texts, in one or several sizes.

    python train_tokenizer.py --data data/nsmc/train.tsv                                   # BPE, 3,000 tokens
    python train_tokenizer.py --data train.tsv unlabeled.tsv.gz --vocab-size 2000 3000 9000

reads   files with a text column; labels are not needed
writes  OUTPUT_DIR/vocab_size_N/tokenizer.json, and vocab.txt for WordPiece
again   the same texts give the same file; a different one that is there is kept unless --overwrite
next    python distill.py --tokenizer tokenizer/vocab_size_3000 …
"""

import argparse

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # artifacts
    arg("--data", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--output-dir", default="tokenizer", metavar="DIR", help="default: %(default)s")
    arg("--overwrite", action="store_true", help="replace a different tokenizer that is there")
    flags.add_columns(arg, answers=None)
    # vocabulary
    arg("--type", default="bpe", choices=["bpe", "wordpiece", "unigram"], help="default: %(default)s")
    # the trainers take 70 bytes per token at once
    arg("--vocab-size", type=flags.number(int, 10, 2**20, f"a whole number from 10 to {2**20}"), nargs="+",
        default=[3000], metavar="N", help="default: 3000")
    arg("--min-frequency", type=flags.count, default=5,
        help="of a token, not for unigram (default: %(default)s)")
    arg("--limit-alphabet", type=flags.count, metavar="N",
        help="characters kept, not for unigram (default: 1500, or 1000 up to 2,000 tokens)")
    return p.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports: --help and a wrong flag answer at once

import itertools
import struct
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import runtime
from data.batches import encode
from data.examples import read_examples
from runtime import UserError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


def jamo() -> dict[str, str]:
    """{a jamo in another form: the letter that a keyboard types}: ㅋ from U+110F, U+11BF and U+FFBB.

    NFKC and NFKD turn the typed letters into leading, middle and trailing parts of syllables.
    """
    letters = {unicodedata.normalize("NFKD", letter): letter for letter in map(chr, range(0x3131, 0x318F))}
    trailing = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"  # U+11A8 and on
    letters |= {chr(0x11A8 + i): letter for i, letter in enumerate(trailing)}
    for half_width in map(chr, range(0xFFA0, 0xFFDD)):
        if (part := unicodedata.normalize("NFKD", half_width)) in letters:
            letters[half_width] = letters[part]
    return letters


def charsmap(targets: dict[str, str]) -> bytes:
    """{character: target} for normalizers.Precompiled: SentencePiece's format, a double-array trie of UTF-8.

    It takes one pass over a text; a Replace for each of the 94 letters makes tokenizing five times as slow.
    Bits 0 to 7 of a unit are the byte that leads to it, bit 8 says that a key ends there, and bits 10 and up
    are its position XOR its base. The next unit is at base XOR byte. A key's value is at the base itself,
    with bit 31 set: where its target begins in the joined targets.
    """
    trie, joined = {}, "".join(f"{target}\0" for target in dict.fromkeys(targets.values())).encode()
    for key, target in targets.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = joined.index(f"{target}\0".encode())
    units, bases, nodes = {0: 0}, set(), [(0, trie)]
    for position, node in nodes:  # which grows
        base = next(base for base in itertools.count(1)
                    if base not in bases and not any(base ^ byte in units for byte in node))
        bases.add(base)
        units[position] |= (position ^ base) << 10 | (0 in node) << 8
        for byte, child in node.items():
            units[base ^ byte] = byte or 1 << 31 | child
            nodes += [(base ^ byte, child)] if byte else []
    size = (max(bases) | 255) + 1  # the library looks up any byte, and panics beyond the end
    return struct.pack(f"<{size + 1}I", 4 * size, *(units.get(i, 0) for i in range(size))) + joined


# NFC: macOS hands over Hangul decomposed into jamo, which are other tokens. What it cannot compose are single
# jamo: they become the letters of the keyboard, and sequences of half-width ones too, letter by letter.
NORMALIZER = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Precompiled(charsmap(jamo())),
     normalizers.BertNormalizer(lowercase=False, strip_accents=False)])
BERT_WORDS = pre_tokenizers.BertPreTokenizer()


def train(texts: list[str], words: Counter, kind: str, vocab_size: int, min_frequency: int,
          limit_alphabet: int) -> Tokenizer:
    """A trained tokenizer; `words` are those of the texts with their counts, as count_words gives them.

    WordPiece as the original kit's: BERT's normalisation and word splitting, case and accents kept.
    BPE and unigram split as SentencePiece does, a space being part of the token that follows it.
    """
    limits = {"min_frequency": min_frequency, "limit_alphabet": limit_alphabet}
    common = {"vocab_size": vocab_size, "show_progress": sys.stderr.isatty()}
    kinds = {"wordpiece": models.WordPiece(unk_token="[UNK]"), "bpe": models.BPE(unk_token="[UNK]"),
             "unigram": models.Unigram()}
    tokenizer = Tokenizer(kinds[kind])
    tokenizer.normalizer = NORMALIZER
    if kind == "wordpiece":
        tokenizer.pre_tokenizer = BERT_WORDS
        tokenizer.decoder = decoders.WordPiece()
        first, inner = alphabet(words, limit_alphabet)
        trainer = trainers.WordPieceTrainer(**common, **limits, initial_alphabet=first,
                                            special_tokens=SPECIAL_TOKENS + first + [f"##{c}" for c in inner])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        if kind == "bpe":
            trainer = trainers.BpeTrainer(**common, **limits, special_tokens=SPECIAL_TOKENS,
                                          initial_alphabet=alphabet(words, limit_alphabet)[0])
        else:
            trainer = trainers.UnigramTrainer(**common, special_tokens=SPECIAL_TOKENS, unk_token="[UNK]")
    try:
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    except Exception as error:  # the Rust library's own, as for a unigram vocabulary too small
        raise UserError(f"--vocab-size {vocab_size}: {error}") from None
    if kind == "wordpiece":  # built again, as the alphabet must not stay special
        trained = tokenizer
        tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
        tokenizer.decoder = trained.decoder
        tokenizer.add_special_tokens(SPECIAL_TOKENS)
    # No [CLS] and [SEP] around a text: an LSTM needs no place to collect, and each costs a step.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B", special_tokens=[("[SEP]", SPECIAL_TOKENS.index("[SEP]"))])
    return tokenizer


def count_words(texts: list[str], kind: str) -> Counter:
    """The words that WordPiece or BPE split, with their counts."""
    splitter = BERT_WORDS if kind == "wordpiece" else pre_tokenizers.Metaspace()
    words = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(NORMALIZER.normalize_str(text)))
    return words


def alphabet(words: Counter, limit: int) -> tuple[list[str], list[str]]:
    """The `limit` most frequent characters, and those of them that occur inside a word; both sorted.

    The library would number them in the order of a hash table, another one in each run (its issue 1794),
    and so break ties between tokens at random. Given in order, the same texts give the same file.
    """
    counts = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    kept = set(sorted(counts, key=lambda character: (-counts[character], character))[:limit])
    return sorted(kept), sorted(kept & {character for word in words for character in word[1:]})


def save(tokenizer: Tokenizer, folder: Path, kind: str, overwrite: bool) -> None:
    """tokenizer.json, and vocab.txt (one token per line, by id) for WordPiece; each complete or not at all.

    Students may depend on a tokenizer that is there: a different one is replaced with --overwrite only.
    Raises UserError.
    """
    files = {"tokenizer.json": tokenizer.to_str(pretty=True)}
    if kind == "wordpiece":
        vocab = tokenizer.get_vocab()
        files["vocab.txt"] = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.get))
    for name, text in files.items():
        if (folder / name).is_file() and not overwrite and (folder / name).read_bytes() != text.encode():
            raise UserError(f"{folder / name}: a different tokenizer is there already; --overwrite replaces "
                            f"it, another --output-dir keeps both")
    runtime.save_together({folder / name: text for name, text in files.items()})


def main(args):
    texts = []
    for file in args.data:
        examples = read_examples(file, args.text_column, args.text2_column, False)
        texts += examples.texts + (examples.texts2 or [])
    print(f"{len(texts):,} texts")
    words = Counter() if args.type == "unigram" else count_words(texts, args.type)
    for vocab_size in args.vocab_size:
        limit_alphabet = args.limit_alphabet or (1000 if vocab_size <= 2000 else 1500)
        tokenizer = train(texts, words, args.type, vocab_size, args.min_frequency, limit_alphabet)
        folder = Path(args.output_dir, f"vocab_size_{vocab_size}")
        save(tokenizer, folder, args.type, args.overwrite)

        unknown = tokenizer.token_to_id("[UNK]")
        encoded = encode(tokenizer, texts, None, max_length=1_000_000, pad_id=0, blank_id=0)
        share = (encoded.tokens == unknown).float().mean().item()
        print(f"{folder}: {tokenizer.get_vocab_size():,} tokens ({args.type}), {share:.3%} of tokens "
              f"unknown, {encoded.lengths.mean():.1f} tokens per text (longest {encoded.lengths.max()})")
        if tokenizer.get_vocab_size() < vocab_size:
            print(f"  fewer than the {vocab_size:,} asked for: the texts hold no more"
                  + ("" if args.type == "unigram" else "; lower --min-frequency"))
        if tokenizer.get_vocab_size() > vocab_size:
            print(f"  more than the {vocab_size:,} asked for: single characters alone are that many; lower "
                  f"--limit-alphabet")


if __name__ == "__main__":
    runtime.main(main, ARGS)
