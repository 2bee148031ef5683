"""Make train.tsv, valid.tsv and test.tsv from a public Korean corpus, or from a labelled file of your own.

    python -m data.prepare nsmc                                # 200,000 film reviews, the published test set
    python -m data.prepare shopping                            # 200,000 Naver shopping reviews
    python -m data.prepare steam                               # 100,000 Steam game reviews
    python -m data.prepare seed-mix --drop-leaks               # the three together, 500,000 reviews
    python -m data.prepare nsmc --from ~/corpora               # files already downloaded, no network
    python -m data.prepare split reviews.csv --out data/mine   # your own .tsv, .txt, .csv or .jsonl
    python -m data.prepare split train.csv --test-percent 0    # if you already have a test file
    python -m data.prepare look reviews.csv                    # what is in a file, and what looks wrong

Label 1 is positive, 0 negative; in shopping, 4 and 5 stars are positive, 1 and 2 negative. nsmc keeps the
published test set and takes 5 % of the published training set as valid. The others are shuffled: 10 % become
test, 5 % of the rest valid (rounded up). The same seed gives the same files.

reads   ratings_train.txt, ratings_test.txt (github.com/e9t/nsmc, CC0), naver_shopping.txt, steam.txt
        (github.com/bab2min/corpus, public domain), downloaded into data/downloads unless they are there.
        Row counts and label balance must match the published ones. Or FILE.
writes  OUT/train.tsv, valid.tsv, test.tsv, all or none: columns id (if any), text, text2 (if any), label;
        UTF-8, tabs, no quoting. Blank texts are kept; rows without a label go to train.
next    python train_tokenizer.py --data OUT/train.tsv
"""

import argparse
import contextlib
import http.client
import os
import random
import re
import shlex
import shutil
from array import array
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import flags


@dataclass
class Source:
    """One published file: where it is, and what its README says about it."""

    url: str
    header: bool  # id, document, label under a header; otherwise label, text and no header
    labels: dict[str, str]  # label in the file -> label written
    rows: int
    positives: int
    slack: int  # by how many rows the positives may differ: 0 if the exact count is published


NSMC = "https://raw.githubusercontent.com/e9t/nsmc/master/"
BAB2MIN = "https://raw.githubusercontent.com/bab2min/corpus/master/sentiment/"
BINARY = {"0": "0", "1": "1"}
STARS = {"1": "0", "2": "0", "4": "1", "5": "1"}  # the publisher left 3 stars out
SOURCES = {  # NSMC only states that a "random guess yields 50% accuracy": its files may differ by 1 % of rows
    "ratings_train.txt": Source(NSMC + "ratings_train.txt", True, BINARY, 150_000, 75_000, 1_500),
    "ratings_test.txt": Source(NSMC + "ratings_test.txt", True, BINARY, 50_000, 25_000, 500),
    "naver_shopping.txt": Source(BAB2MIN + "naver_shopping.txt", False, STARS, 200_000, 99_963, 0),
    "steam.txt": Source(BAB2MIN + "steam.txt", False, BINARY, 100_000, 49_996, 0),
}
CORPORA = {"nsmc": ["ratings_train.txt", "ratings_test.txt"], "shopping": ["naver_shopping.txt"],
           "steam": ["steam.txt"],
           "seed-mix": ["ratings_train.txt", "ratings_test.txt", "naver_shopping.txt", "steam.txt"]}


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("corpus", choices=[*CORPORA, "split", "look"], help="a public corpus, or what to do with a FILE")
    arg("file", nargs="?", metavar="FILE", help="the file to split, or to look at")
    # artifacts
    arg("--out", type=Path, metavar="DIR", help="output folder (default: data/CORPUS or data/FILE)")
    arg("--from", type=Path, metavar="DIR", dest="source_dir", help="use the files in DIR, download nothing")
    arg("--downloads", type=Path, metavar="DIR", default=Path("data/downloads"),
        help="folder for downloaded files (default: %(default)s)")
    # method
    arg("--seed", type=flags.natural, default=1, help="of the shuffle (default: %(default)s)")
    arg("--test-percent", type=flags.number(int, 0, 89, "a whole number from 0 to 89"), metavar="P",
        default=10, help="share of FILE that becomes test; 0: there is a test file (default: %(default)s)")
    arg("--tokenizer", metavar="DIR",
        help="look: also count unknown tokens and cut texts; a folder from train_tokenizer.py")
    arg("--drop-leaks", action="store_true", help="remove train rows whose text is also in valid or test")
    flags.add_columns(arg, "label")
    args = p.parse_intermixed_args(argv)  # FILE may follow a flag
    if args.corpus in ("split", "look"):
        if not args.file:
            p.error(f"{args.corpus} needs a FILE: python -m data.prepare {args.corpus} reviews.csv")
        if args.source_dir:
            p.error(f"--from is for the public corpora; {args.corpus} reads FILE")
    elif args.file or args.text_column or args.text2_column or args.label_column or args.test_percent != 10:
        p.error(f"FILE, --test-percent and the column flags are not for {args.corpus}: it has its own files")
    if args.corpus == "look" and (args.out or args.drop_leaks):
        p.error("look writes nothing; leave --out and --drop-leaks out")
    if args.tokenizer and args.corpus != "look":
        p.error(f"--tokenizer is for look; {args.corpus} splits no text into tokens")
    if args.out is None and args.corpus != "look":
        args.out = Path("data") / (Path(args.file).name.split(".")[0] if args.file else args.corpus)
        if args.file and args.out.exists():
            p.error(f"{args.out} exists; name the output folder with --out")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import runtime
from data import labels, look
from data.batches import read_tokenizer
from data.examples import Examples, decoded_lines, read_examples, survey
from runtime import UserError, refuse_to_overwrite_inputs, warn

UNFIT = str.maketrans("\t\n\r\0", "    ")  # what a field of an unquoted TSV cannot hold


def download(url: str, path: Path) -> None:
    """Fetch `url` into a temporary file, and rename it when it is complete.

    Raises UserError if the server cannot be reached, refuses or ends early.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(url, timeout=30) as response, open(partial, "wb") as file:  # seconds without a byte
            shutil.copyfileobj(response, file)
            if response.length:  # http.client ends quietly when a connection does
                raise OSError(f"the connection ended {response.length:,} bytes early")
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:  # unreachable, timed out, reset: all are OSError
        partial.unlink(missing_ok=True)
        reason = error.reason if type(error) is URLError else error
        raise UserError(f"{url}: cannot download ({reason}); run again, or use files already downloaded with "
                        f"--from DIR") from None


def load(name: str, args) -> Examples:
    """One published file with labels 0 and 1, downloaded if need be and checked against its README."""
    source, path = SOURCES[name], (args.source_dir or args.downloads) / name
    if not path.exists():
        if args.source_dir:
            raise UserError(f"{path}: not found; --from needs {' and '.join(CORPORA[args.corpus])} in DIR")
        print(f"downloading {source.url}")
        download(source.url, path)
    examples = read_examples(path, label_column="label") if source.header else _read_headerless(path)
    hint = "it is damaged or another version: delete or replace it and run again"
    if len(examples) != source.rows:
        raise UserError(f"{path}: has {len(examples):,} rows, the published file {source.rows:,}; {hint}")
    for line, label in zip(examples.lines, examples.answers, strict=True):
        if label not in source.labels:
            raise UserError(f"{path}:{line}: label {label!r} is none of {' '.join(source.labels)}; {hint}")
    examples.answers = [source.labels[label] for label in examples.answers]
    positives = examples.answers.count("1")
    if abs(positives - source.positives) > source.slack:
        raise UserError(f"{path}: has {positives:,} positive rows, the published file {source.positives:,} "
                        f"± {source.slack:,}; {hint}")
    if args.corpus == "seed-mix":
        examples.ids = None  # only NSMC has them
    return examples


def _read_headerless(path: Path) -> Examples:
    """label<TAB>text. Only LF ends a line; the text is everything after the first tab."""
    examples = Examples(str(path), [], None, [], None, array("Q"))
    for number, line in decoded_lines(str(path)):
        label, tab, text = line.removesuffix("\n").removesuffix("\r").partition("\t")
        if not tab:
            raise UserError(f"{path}:{number}: no tab; each line must be label<TAB>text")
        examples.answers.append(label)
        examples.texts.append(text)
        examples.lines.append(number)
    return examples


def table(examples: Examples) -> tuple[list[str], list[tuple]]:
    """The names of the columns that are there, and the rows with every field made fit for an unquoted TSV."""
    columns = {"id": examples.ids, "text": examples.texts, "text2": examples.texts2,
               "label": examples.answers}
    columns = {name: values for name, values in columns.items() if values is not None}
    fit = ([value.translate(UNFIT) for value in values] for values in columns.values())
    return list(columns), list(zip(*fit, strict=True))


def shuffle(rows: list, seed: int) -> list:
    """Sort by random(): the only method for which Python promises equal numbers in every version."""
    generator = random.Random(seed)
    keys = [generator.random() for _ in rows]
    return [rows[i] for i in sorted(range(len(rows)), key=keys.__getitem__)]


def cut(rows: list, percent: int) -> tuple[list, list]:
    """(The first `percent` of the rows, the rest), rounded up in whole numbers, so that no part is empty."""
    size = -(-len(rows) * percent // 100)
    return rows[:size], rows[size:]


def report_leaks(splits: dict, header: list[str], drop: bool) -> None:
    """Print how many train rows have a text that is also in valid or test; with `drop`, remove them."""
    texts = [i for i, name in enumerate(header) if name in ("text", "text2")]
    keys = {name: [tuple(row[i].strip() for i in texts) for row in rows] for name, rows in splits.items()}
    train, leaks = splits["train"], set()
    for name in list(splits)[1:]:
        seen = set(keys[name])
        found = [i for i, key in enumerate(keys["train"]) if key in seen]
        leaks.update(found)
        print(f"leaks: {len(found):,} of {len(train):,} train rows ({len(found) / len(train):.2%}) "
              f"have a text that is also in {name}")
    if drop:
        splits["train"] = [row for i, row in enumerate(train) if i not in leaks]
        print(f"leaks: {len(leaks):,} rows removed from train")
        if not splits["train"]:
            raise UserError("--drop-leaks would leave no row in train: every text is also in valid or test")
    elif leaks:
        print("leaks: kept; --drop-leaks removes them from train")


def write(out: Path, header: list[str], splits: dict) -> None:
    """Set the earlier files aside, write the new ones. A failure puts everything back.

    The earlier files are gone before the first new one comes: not even a killed run leaves a mixture of sets.
    """
    texts = {out / f"{name}.tsv": "".join("\t".join(row) + "\n" for row in (header, *rows))
             for name, rows in splits.items()}
    earlier = {file: out / f".{file.name}.{os.getpid()}.old" for file in texts if file.is_file()}
    try:
        for file, aside in earlier.items():
            os.replace(file, aside)
        runtime.save_together(texts)
    except BaseException:  # Ctrl-C too
        for file in texts:
            if file not in earlier and file.is_file():
                file.unlink()
            elif file in earlier and earlier[file].exists():
                os.replace(earlier[file], file)
        raise
    for aside in earlier.values():
        with contextlib.suppress(OSError):
            aside.unlink()


def summary(out: Path, splits: dict, labels: list[str]) -> None:
    titles = ["negative", "positive"] if labels == ["0", "1"] else labels[:8]
    print(f"{'split':5} {'rows':>10}", *(f"{title:>10}" for title in titles), " file")
    for split, rows in splits.items():
        counts = [sum(row[-1] == label for row in rows) for label in labels[:8]]  # the last column
        print(f"{split:5} {len(rows):>10,}", *(f"{count:>10,}" for count in counts), f" {out / split}.tsv")
        if absent := sorted(set(labels) - {row[-1] for row in rows}):
            warn(f"{out / split}.tsv has no row of {', '.join(absent[:8])}; a larger file would have some")
    print(f"next: python train_tokenizer.py --data {shlex.quote(str(out / 'train.tsv'))}")


def look_at(args) -> None:
    """Print what a file holds. Raises UserError for labels that are surely a mistake."""
    columns = args.text_column, args.text2_column, args.label_column
    found = survey(args.file, *columns)
    print(*look.files([found], columns), sep="\n")
    if args.tokenizer:
        tokenizer = read_tokenizer(args.tokenizer)
        unknown = tokenizer.token_to_id("[UNK]")
        reads = {"max_length": 128, "pad_id": unknown, "blank_id": unknown}  # 128: the scripts' default
        print(look.tokenizers({args.tokenizer: (tokenizer, reads)}, [found]))
    labels.judge(found.cells)


def main(args) -> None:
    if args.corpus == "look":
        look_at(args)
        return
    if args.corpus == "split":
        parts = [read_examples(args.file, args.text_column, args.text2_column, args.label_column)]
        refuse_to_overwrite_inputs([args.file], [args.out / f"{s}.tsv" for s in ("train", "valid", "test")])
    else:
        parts = [load(name, args) for name in CORPORA[args.corpus]]
    names = {label for part in parts for label in part.answers or () if label}
    if len(names) < 2:
        have = f"the only label is {min(names)!r}" if names else "no row has a label"
        raise UserError(f"{args.file}: {have}; at least two are needed (column `label`, or --label-column; "
                        f"its columns are {', '.join(parts[0].header)})")
    if args.corpus == "split":
        labels.judge(parts[0].cells())
    numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in names)
    names = sorted(names, key=lambda label: (int(label) if numbers else 0, label))
    headers, tables = zip(*map(table, parts), strict=True)
    rows = tables[0] if args.corpus == "nsmc" else list(chain(*tables))
    labelled = shuffle([row for row in rows if row[-1]], args.seed)
    unlabelled = [row for row in rows if not row[-1]]  # they can teach, but neither choose the epoch nor test
    test, rest = (tables[1], labelled) if args.corpus == "nsmc" else cut(labelled, args.test_percent)
    valid, train = cut(rest, 5)
    if not train:  # of a file to split
        raise UserError(f"{args.file}: {len(labelled)} labelled rows leave none to train on; give more, or "
                        f"a lower --test-percent")
    splits = {"train": train + unlabelled, "valid": valid} | ({"test": test} if test else {})
    if not test and (args.out / "test.tsv").exists():
        raise UserError(f"{args.out / 'test.tsv'}: comes from an earlier split, and train would now contain "
                        f"rows of it; remove it or give another --out")
    report_leaks(splits, headers[0], args.drop_leaks)
    write(args.out, headers[0], splits)
    summary(args.out, splits, names)


if __name__ == "__main__":
    runtime.main(main, ARGS)
