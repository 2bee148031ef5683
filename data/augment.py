"""Make unlabelled variants of texts for the teacher to judge: by masking, replacement and n-gram sampling.

    python -m data.augment --data data/nsmc/train.tsv --out data/nsmc/augmented.tsv --times 4
    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv data/nsmc/augmented.tsv
    python distill.py --train data/nsmc/train.tsv data/nsmc/augmented.tsv \\
        --logits logits/train.pt logits/augmented.pt …

The rules and rates of Tang et al. (2019, arXiv 1903.12136), section 3.3. Each word (what stands between
spaces) is masked with --mask, else replaced with --replace by another of its kind, drawn by frequency; then,
with --ngram, only 1 to 5 neighbouring words of the text are kept. The paper's kind is a part of speech. Here
it is the word's last syllable, where Korean has its particles and endings, so no tagger is needed: 배우가 is
replaced by 영화가, 좋았다 by 지루하다. A variant that equals a text of --data or another variant is dropped.

reads   files with a text column; labels are not needed
writes  OUT: a table of text (and text2), without labels; the same seed gives the same file
"""

import argparse
from pathlib import Path


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m data.augment", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # artifacts
    arg("--data", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--out", required=True, type=Path, metavar="FILE.tsv", help="the table to write")
    arg("--overwrite", action="store_true", help="even if --out is there already")
    arg("--text-column", metavar="NAME", help="default: text or document")
    arg("--text2-column", metavar="NAME", help="second text of a pair; default: text2 if there")
    # method
    arg("--times", type=int, default=4, metavar="N", help="variants of each text; the paper makes 20 "
        "(default: %(default)s)")
    arg("--mask", type=float, default=0.1, metavar="P", help="of a word (default: %(default)s)")
    arg("--replace", type=float, default=0.1, metavar="P", help="of a word (default: %(default)s)")
    arg("--ngram", type=float, default=0.25, metavar="P", help="of a text (default: %(default)s)")
    arg("--mask-token", default="[MASK]", metavar="TOKEN",
        help="as the teacher's tokenizer has it, <mask> for some (default: %(default)s)")
    arg("--seed", type=int, default=0, help="default: %(default)s")
    args = p.parse_args(argv)
    if args.times < 1:
        p.error("--times must be at least 1")
    if min(args.mask, args.replace) < 0 or not args.mask + args.replace <= 1 or not 0 <= args.ngram <= 1:
        p.error("--mask, --replace and --ngram must be in [0, 1], the first two together too")
    if args.mask_token.split() != [args.mask_token] or args.seed < 0:
        p.error("--mask-token must be one word, --seed at least 0")
    if args.out.suffix != ".tsv":
        p.error(f"--out {args.out}: must end in .tsv")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports: --help and a wrong flag answer at once

import random
from bisect import bisect
from collections import Counter, defaultdict
from itertools import accumulate, chain

from data.examples import read_examples
from runtime import UserError, run, save_together

LONGEST_NGRAM = 5


def kind(word: str) -> str:
    """What a word may be replaced by: its last Hangul syllable, punctuation behind it aside.

    Words without one are of the kinds 1 (they end in a digit), A (in another letter) and "" (marks alone).
    """
    last = word.rstrip("".join({c for c in word if not c.isalnum()}))[-1:]
    return last if "가" <= last <= "힣" else "1" if last.isdigit() else "A" if last else ""


class Augmenter:
    """Variants of texts whose words are replaced by others of `texts`. Equal seeds give equal variants."""

    def __init__(self, texts, mask: float, replace: float, ngram: float, mask_token: str, seed: int):
        self.mask, self.replace, self.ngram, self.mask_token = mask, replace, ngram, mask_token
        self.random = random.Random(seed).random  # of which Python promises equal numbers in every version
        counts = defaultdict(Counter)
        for text in texts:
            for word in text.split():
                counts[kind(word)][word] += 1
        # {kind: (words, how often these and those before them occur)}
        self.words = {name: (list(of), list(accumulate(of.values()))) for name, of in counts.items()}

    def word_like(self, word: str) -> str:
        """A word of the same kind, drawn by frequency; it may be the same."""
        words, sums = self.words[kind(word)]
        return words[bisect(sums, self.random() * sums[-1])]

    def vary(self, text: str) -> str:
        words = []
        for word in text.split():
            draw = self.random()
            if draw < self.mask:
                word = self.mask_token
            elif draw < self.mask + self.replace:
                word = self.word_like(word)
            words.append(word)
        if self.random() < self.ngram:
            size = min(1 + int(self.random() * LONGEST_NGRAM), len(words))
            start = int(self.random() * (len(words) - size + 1))
            words = words[start : start + size]
        return " ".join(words)


def main(args):
    files = [read_examples(file, args.text_column, args.text2_column) for file in args.data]
    if args.out.resolve() in [Path(file).resolve() for file in args.data]:
        raise UserError(f"--out {args.out} would overwrite what is read; name another file")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"--out {args.out}: is there already; name another file, or --overwrite")
    if len({part.texts2 is None for part in files}) > 1:
        raise UserError("some files have a column text2 and some have not; all or none must be pairs")
    rows = [row for part in files
            for row in zip(part.texts, *([part.texts2] if part.texts2 else []), strict=True)]
    rows = [tuple(" ".join(text.replace("\0", " ").split()) for text in row) for row in rows]  # fit for a TSV
    augmenter = Augmenter(chain(*rows), args.mask, args.replace, args.ngram, args.mask_token, args.seed)
    seen, variants = set(rows), []
    for time in range(args.times):
        for row in rows:
            # Of a pair, as in the paper, in turn the first, the second, and both.
            row = tuple(augmenter.vary(text) if len(row) == 1 or time % 3 in (i, 2) else text
                        for i, text in enumerate(row))
            if row not in seen:
                seen.add(row)
                variants.append(row)
    if not variants:
        raise UserError(f"{' '.join(args.data)}: no text has a variant; raise --times, --mask or --replace")
    header = ("text", "text2")[: len(rows[0])]
    save_together({args.out: "".join("\t".join(row) + "\n" for row in (header, *variants))})
    print(f"{args.out}: {len(variants):,} variants of {len(rows):,} rows; "
          f"{args.times * len(rows) - len(variants):,} were no new ones")
    print(f"next: python dump_logits.py --teacher teacher/teacher.pt --data {args.out}")


if __name__ == "__main__":
    run(main, ARGS)
