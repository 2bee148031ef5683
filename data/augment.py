"""Make unlabelled texts for the teacher to judge: variants by masking, replacement, n-grams; and new pairs.

    python -m data.augment --data data/nsmc/train.tsv --out data/nsmc/augmented.tsv --times 4
    python dump_logits.py --teacher teacher/teacher.pt --data data/nsmc/train.tsv data/nsmc/augmented.tsv
    python distill.py --train data/nsmc/train.tsv data/nsmc/augmented.tsv \\
        --logits logits/train.pt logits/augmented.pt …

The rules and rates of Tang et al. (2019, arXiv 1903.12136), section 3.3. Each word is masked with probability
--mask, or replaced with probability --replace by another of its kind, drawn by frequency. Then, with
probability --ngram, only 1 to 5 neighbouring words of the text are kept. The paper's kind is the part of
speech; here it is the last syllable, where Korean has its particles and endings, so no tagger is needed:
배우가 is replaced by 영화가. A variant that equals a text of --data or another variant is dropped.

    python -m data.augment --data data/korsts/train.tsv --out augmented.tsv --pairs 4 --symmetric

Of pairs, --pairs also puts the first text of each row beside second texts of other rows: half of them random,
half those that share the most pairs of letters with it, because random texts are mostly unrelated.
--symmetric adds each pair of --data in swapped order, for tasks where the order says nothing.

reads   files with a text column; labels are not needed
writes  OUT: a table of text (and text2) without labels
again   the same texts, flags and seed give the same file; a different one is kept unless --overwrite
"""

import argparse
from pathlib import Path

import flags


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m data.augment", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    # artifacts
    arg("--data", required=True, nargs="+", metavar="FILE", help="texts (.tsv .csv .jsonl, also .gz)")
    arg("--out", required=True, type=Path, metavar="FILE.tsv", help="the table to write")
    arg("--overwrite", action="store_true", help="replace a different --out that is there")
    flags.add_columns(arg, answers=None)
    # method
    arg("--times", type=flags.natural, default=4, metavar="N",
        help="variants of each text; the paper makes 20 (default: %(default)s)")
    arg("--pairs", type=flags.natural, default=0, metavar="N",
        help="of pairs: also new ones from each first text (default: %(default)s)")
    arg("--symmetric", action="store_true", help="of pairs: also each in swapped order")
    arg("--mask", type=flags.weight, default=0.1, metavar="P", help="for each word (default: %(default)s)")
    arg("--replace", type=flags.weight, default=0.1, metavar="P", help="for each word (default: %(default)s)")
    arg("--ngram", type=flags.weight, default=0.25, metavar="P", help="for each text (default: %(default)s)")
    arg("--mask-token", default="[MASK]", metavar="TOKEN",
        help="the mask token of the teacher's tokenizer; some have <mask> (default: %(default)s)")
    arg("--seed", type=flags.natural, default=0, help="default: %(default)s")
    args = p.parse_args(argv)
    if args.mask + args.replace > 1:
        p.error("--mask and --replace must not exceed 1 together")
    if args.mask_token.split() != [args.mask_token]:
        p.error("--mask-token must be one word")
    if args.out.suffix != ".tsv":
        p.error(f"--out {args.out}: must end in .tsv")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports: --help and a wrong flag answer at once

import random
import shlex
from bisect import bisect
from collections import Counter, defaultdict
from itertools import accumulate, chain

import runtime
from data.examples import read_examples
from runtime import UserError


def kind(word: str) -> str:
    """The last syllable of a word, punctuation after it ignored; words of the same kind replace each other.

    Words that do not end in a Hangul syllable are of kind 1 (digit), A (other letter) or "" (marks only).
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

    def vary(self, text: str) -> str:
        words = []
        for word in text.split():
            draw = self.random()
            if draw < self.mask:
                word = self.mask_token
            elif draw < self.mask + self.replace:
                like, sums = self.words[kind(word)]
                word = like[bisect(sums, self.random() * sums[-1])]  # perhaps itself
            words.append(word)
        if self.random() < self.ngram:
            size = min(1 + int(self.random() * 5), len(words))
            start = int(self.random() * (len(words) - size + 1))
            words = words[start : start + size]
        return " ".join(words)


def bigrams(text: str) -> set[str]:
    """The pairs of neighbouring letters of a text, blanks left out. A single letter is one too."""
    letters = "".join(text.split())
    return {letters[i : i + 2] for i in range(max(len(letters) - 1, 1))}


def dice(one: set, other: set) -> float:
    """Shared share of two sets, from 0 to 1 (Dice 1945)."""
    return 2 * len(one & other) / (len(one) + len(other))


class Partners:
    """Second texts for new pairs. `draw` is a function that gives a random number from 0 to 1."""

    CANDIDATES = 64  # how many are compared with a text, of those that share its rarest bigrams

    def __init__(self, texts, draw):
        self.texts, self.draw = list(dict.fromkeys(texts)), draw
        self.having = defaultdict(list)  # {bigram: numbers of the texts that have it}
        for number, text in enumerate(self.texts):
            for bigram in bigrams(text):
                self.having[bigram].append(number)

    def random(self) -> str:
        return self.texts[int(self.draw() * len(self.texts))]

    def like(self, text: str) -> list[str]:
        """Texts that share bigrams with `text`, the most similar first."""
        own, found = bigrams(text), {}
        for bigram in sorted(own & self.having.keys(), key=lambda bigram: (len(self.having[bigram]), bigram)):
            if len(found) < self.CANDIDATES:
                numbers = self.having[bigram]
                start = int(self.draw() * len(numbers))  # long lists begin elsewhere each time
                found |= dict.fromkeys((numbers[start:] + numbers[:start])[: self.CANDIDATES])
        found = {self.texts[number]: None for number in found}
        return sorted(found, key=lambda other: (-dice(own, bigrams(other)), other))

    def pairs(self, rows, times: int, seen: set):
        """Up to `times` new pairs of each row's first text, alike and random in turn; adds them to `seen`."""
        for number, (text, _) in enumerate(rows):
            alike = iter(self.like(text))
            for time in range(times):
                pair = text, self.random()
                if (number + time) % 2 == 0:
                    pair = next((new for other in alike if (new := (text, other)) not in seen), pair)
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def main(args):
    runtime.refuse_to_overwrite_inputs(args.data, [args.out])
    files = [read_examples(file, args.text_column, args.text2_column, False) for file in args.data]
    if len({part.texts2 is None for part in files}) > 1:
        raise UserError("only some files have a column text2; either all or none must be pairs")
    if files[0].texts2 is None and (args.pairs or args.symmetric):
        raise UserError(f"{args.data[0]}: --pairs and --symmetric are for pairs; it has no column text2")
    rows = [tuple(" ".join(text.replace("\0", " ").split()) for text in row)  # fit for a TSV
            for part in files for row in zip(*filter(None, (part.texts, part.texts2)), strict=True)]
    augmenter = Augmenter(chain(*rows), args.mask, args.replace, args.ngram, args.mask_token, args.seed)
    seen, variants = set(rows), []
    for time in range(args.times):
        for row in rows:
            # As in the paper, of a pair the first text is varied, then the second, then both.
            row = tuple(augmenter.vary(text) if len(row) == 1 or time % 3 in (i, 2) else text
                        for i, text in enumerate(row))
            if row not in seen:
                seen.add(row)
                variants.append(row)
    if args.symmetric:
        swapped = dict.fromkeys(row[::-1] for row in rows)
        variants += [row for row in swapped if row not in seen]
        seen |= swapped.keys()
    if args.pairs:
        variants += Partners((row[1] for row in rows), augmenter.random).pairs(rows, args.pairs, seen)
    if not variants:
        raise UserError(f"{' '.join(args.data)}: no text has a variant; raise --times, --mask or --replace")
    asked = (args.times + args.pairs + args.symmetric) * len(rows)
    table = "".join("\t".join(row) + "\n" for row in (("text", "text2")[: len(rows[0])], *variants))
    if args.out.is_file() and not args.overwrite and args.out.read_bytes() != table.encode():
        raise UserError(f"{args.out}: a different file is there already; --overwrite replaces it, another "
                        f"--out keeps both")
    runtime.save_together({args.out: table})
    print(f"{args.out}: {len(variants):,} variants of {len(rows):,} rows; "
          f"{asked - len(variants):,} duplicates dropped")
    print(f"next: python dump_logits.py --teacher teacher/teacher.pt --data {shlex.quote(str(args.out))}")


if __name__ == "__main__":
    runtime.main(main, ARGS)
