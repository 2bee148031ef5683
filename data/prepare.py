"""Make train.tsv, valid.tsv and test.tsv from a public Korean corpus, or from an answered file of your own.

    python -m data.prepare nsmc                                # film reviews, positive or negative
    python -m data.prepare unsmile                             # comments with several labels each
    python -m data.prepare nsmc --from ~/corpora               # files already downloaded, no network
    python -m data.prepare split reviews.csv --out data/mine   # your own .tsv, .txt, .csv or .jsonl
    python -m data.prepare split train.csv --test-percent 0    # if you already have a test file
    python -m data.prepare look reviews.csv                    # what is in a file, and what looks wrong

corpora   nsmc, shopping, steam             reviews, 1 is positive and 0 negative
          seed-mix                          these three together, 500,000 reviews
          hate-speech, hate-speech-bias, hate-speech-gender   three answers to the same comments
          unsmile, kmhas                    comments, kinds of hate: several labels
          kote                              comments, 44 emotions: several labels
          3i4k                              utterances, 7 intents
          klue-nli, kornli                  pairs: entailment, contradiction or neutral
          question-pair, paws-x             pairs: the same or different
          klue-sts, korsts                  pairs: a score of similarity from 0 to 5

A published test set stays the test set, a dev set becomes it where there is no other; neither ever goes to
train. What the publisher does not have is cut from train after a shuffle: 10 % for test, 5 % of the rest for
valid (rounded up; pairs of a corpus that share their first text stay together). The same seed gives the same
files.

reads   the publisher's files, downloaded into data/downloads unless they are there. Row counts, and counts of
        labels where they are published, must match. Or FILE.
writes  OUT/train.tsv, valid.tsv, test.tsv, all or none: columns id (if any), text, text2 (if any), and label,
        labels or score; UTF-8, tabs, no quoting. Blank texts are kept; rows without an answer go to train.
next    python train_tokenizer.py --data OUT/train.tsv
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import random
import shlex
import shutil
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import flags

# ---- the corpora -------------------------------------------------------------------------------------------


@dataclass
class File:
    """One published file, and what its publisher states about it."""

    split: str  # train, valid or test
    name: str
    rows: int
    counts: dict[str, int] = field(default_factory=dict)  # {label as it is written here: rows that have it}
    slack: int = 0  # by how many rows a count may differ


class Corpus:
    """The files of a publisher, and what one row says: of a table with tabs, a .csv, or a list in a .json."""

    home: str  # address of the files, without their names
    archive: str = ""  # name of the .tar.gz that holds them, if one does
    folder: str = ""  # in --downloads, where the names are as common as train.tsv
    files: tuple[File, ...]
    columns: tuple[str, ...]  # with tabs all of them, and the last one keeps tabs; else those that are read
    header: bool = True  # the first line names them
    quoted: bool = False  # a text that has quotation marks is written as in CSV

    def read(self, *cells: str) -> dict[str, str]:
        """The row that a line becomes; of .csv and .json it gets the whole row, as a dict.

        Raises KeyError for an answer that is not one of the published.
        """
        raise NotImplementedError


def by_number(*names: str) -> dict[str, str]:
    """{"0": the first name, "1": the second, …}"""
    return {str(i): name for i, name in enumerate(names)}


def joined(names) -> str:
    """A cell of the column `labels`; "-" is none of them."""
    return ",".join(names) or "-"


RAW = "https://raw.githubusercontent.com/"
BINARY = by_number("0", "1")
STARS = {"1": "0", "2": "0", "4": "1", "5": "1"}


class Nsmc(Corpus):
    """Film reviews: github.com/e9t/nsmc, CC0. It only states that a "random guess yields 50% accuracy"."""

    home = RAW + "e9t/nsmc/master/"
    files = (File("train", "ratings_train.txt", 150_000, {"1": 75_000}, slack=1_500),
             File("test", "ratings_test.txt", 50_000, {"1": 25_000}, slack=500))
    columns = ("id", "document", "label")

    def read(self, number, document, label):
        return {"id": number, "text": document, "label": BINARY[label]}


class Shopping(Corpus):
    """Naver shopping reviews with 1, 2, 4 or 5 stars: github.com/bab2min/corpus, public domain."""

    home = RAW + "bab2min/corpus/master/sentiment/"
    files = (File("train", "naver_shopping.txt", 200_000, {"1": 99_963}),)
    columns, header = ("label", "text"), False
    labels = STARS

    def read(self, label, text):
        return {"text": text, "label": self.labels[label]}


class Steam(Shopping):
    """Reviews of games, from the same place."""

    files = (File("train", "steam.txt", 100_000, {"1": 49_996}),)
    labels = BINARY


class HateSpeech(Corpus):
    """Comments on entertainment news: Moon et al. (2020, arXiv 2005.12503), CC BY-SA 4.0.

    The labels of the test set are not published, so dev is the test set.
    """

    home, folder = RAW + "kocohub/korean-hate-speech/master/labeled/", "hate-speech"
    files = (File("train", "train.tsv", 7_896), File("test", "dev.tsv", 471))
    columns, quoted = ("comments", "contain_gender_bias", "bias", "hate"), True
    answer, labels = "hate", {"none", "offensive", "hate"}

    def read(self, *cells):
        row = dict(zip(self.columns, cells, strict=True))
        if row[self.answer] not in self.labels:
            raise KeyError(row[self.answer])
        return {"text": row["comments"], "label": row[self.answer]}


class HateSpeechBias(HateSpeech):
    answer, labels = "bias", {"none", "gender", "others"}


class HateSpeechGender(HateSpeech):
    answer, labels = "contain_gender_bias", {"True", "False"}


class UnSmile(Corpus):
    """Comments with ten labels: github.com/smilegate-ai/korean_unsmile_dataset, CC BY-NC-ND 4.0.

    A column of 0 and 1 for each label. The counts are those of the README, which differ from the files by up
    to 3 rows. `clean` is a label, as in the published figures; 개인지칭 (a certain person is meant) is not.
    """

    home = RAW + "smilegate-ai/korean_unsmile_dataset/main/"
    labels = ("여성/가족", "남성", "성소수자", "인종/국적", "연령", "지역", "종교", "기타 혐오", "악플/욕설",
              "clean")
    files = (File("train", "unsmile_train_v1.0.tsv", 15_005, dict(zip(labels, (
                 1_599, 1_347, 1_138, 1_728, 603, 1_052, 1_181, 569, 3_146, 3_739), strict=True)), slack=3),
             File("test", "unsmile_valid_v1.0.tsv", 3_737, dict(zip(labels, (
                 394, 334, 280, 426, 146, 260, 290, 134, 786, 935), strict=True))))
    columns = ("문장", *labels, "개인지칭")

    def read(self, text, *cells):
        chosen = [name for name, cell in zip(self.columns[1:], cells, strict=True) if BINARY[cell] == "1"]
        return {"text": text, "labels": joined(name for name in chosen if name in self.labels)}


class KMHaS(Corpus):
    """News comments with nine labels: Lee et al. (2022, arXiv 2208.10684), CC BY-SA 4.0.

    A cell lists numbers, such as 0,3. 해당사항없음, no hate, is a label, as in the published figures.
    """

    home = RAW + "adlnlp/K-MHaS/main/data/"
    files = (File("train", "kmhas_train.txt", 78_977), File("valid", "kmhas_valid.txt", 8_776),
             File("test", "kmhas_test.txt", 21_939))
    columns, quoted = ("document", "label"), True
    labels = by_number("출신차별", "외모차별", "정치성향차별", "혐오욕설", "연령차별", "성차별", "인종차별",
                       "종교차별", "해당사항없음")

    def read(self, document, label):
        return {"text": document, "labels": joined(self.labels[number] for number in label.split(","))}


class Kote(Corpus):
    """Comments with 44 labels, any of five readers' emotions: Jeon et al. (2022, arXiv 2205.05300), MIT.

    No header; a cell lists numbers. 없음, no emotion, is a label, and stands beside others.
    """

    home, folder = RAW + "searle-j/KOTE/main/", "kote"
    files = (File("train", "train.tsv", 40_000), File("valid", "val.tsv", 5_000),
             File("test", "test.tsv", 5_000))
    columns, header, quoted = ("ID", "text", "labels"), False, True
    labels = by_number(
        "불평/불만", "환영/호의", "감동/감탄", "지긋지긋", "고마움", "슬픔", "화남/분노", "존경", "기대감",
        "우쭐댐/무시함", "안타까움/실망", "비장함", "의심/불신", "뿌듯함", "편안/쾌적", "신기함/관심",
        "아껴주는", "부끄러움", "공포/무서움", "절망", "한심함", "역겨움/징그러움", "짜증", "어이없음",
        "없음", "패배/자기혐오", "귀찮음", "힘듦/지침", "즐거움/신남", "깨달음", "죄책감", "증오/혐오",
        "흐뭇함(귀여움/예쁨)", "당황/난처", "경악", "부담/안_내킴", "서러움", "재미없음",
        "불쌍함/연민", "놀람", "행복", "불안/걱정", "기쁨", "안심/신뢰")

    def read(self, number, text, labels):
        return {"id": number, "text": text, "labels": joined(self.labels[i] for i in labels.split(","))}


class Intents(Corpus):
    """3i4K, utterances with one of seven intents: Cho et al. (2018, arXiv 1811.04231), CC BY-SA 4.0.

    No header, label<TAB>text. The counts are published of both files together, split 9 to 1.
    """

    home = RAW + "warnikchow/3i4k/master/data/train_val_test/"
    labels = by_number("fragment", "statement", "question", "command", "rhetorical question",
                       "rhetorical command", "intonation-dependent utterance")
    files = (File("train", "fci_train_val.txt", 55_134, dict(zip(labels.values(), (
                 5_409, 16_470, 16_083, 11_672, 1_571, 979, 2_950), strict=True))),
             File("test", "fci_test.txt", 6_121, dict(zip(labels.values(), (
                 600, 1_830, 1_786, 1_296, 174, 108, 327), strict=True))))
    columns, header = ("label", "text"), False

    def read(self, label, text):
        return {"text": text, "label": self.labels[label]}


INFERENCES = {name: name for name in ("entailment", "contradiction", "neutral")}


class KlueNli(Corpus):
    """A premise and a hypothesis: Park et al. (2021, arXiv 2105.09680), CC BY-SA 4.0.

    The labels of the test set are not published, so dev is the test set. Most premises have three hypotheses.
    """

    home = RAW + "KLUE-benchmark/KLUE/main/klue_benchmark/klue-nli-v1.1/"
    files = (File("train", "klue-nli-v1.1_train.json", 24_998),
             File("test", "klue-nli-v1.1_dev.json", 3_000, dict.fromkeys(INFERENCES, 1_000)))
    columns = ("guid", "premise", "hypothesis", "gold_label")

    def read(self, row):
        return {"id": row["guid"], "text": row["premise"], "text2": row["hypothesis"],
                "label": INFERENCES[row["gold_label"]]}


class KlueSts(Corpus):
    """Two sentences and how similar they are, the mean of several readers: the same paper and licence."""

    home = RAW + "KLUE-benchmark/KLUE/main/klue_benchmark/klue-sts-v1.1/"
    files = (File("train", "klue-sts-v1.1_train.json", 11_668), File("test", "klue-sts-v1.1_dev.json", 519))
    columns = ("guid", "sentence1", "sentence2")

    def read(self, row):
        return {"id": row["guid"], "text": row["sentence1"], "text2": row["sentence2"],
                "score": similarity(row["labels"]["real-label"])}


class KorNli(Corpus):
    """SNLI and MultiNLI, translated by machine, XNLI by people: Ham et al. (2020, arXiv 2004.03289).

    CC BY-SA 4.0. A quotation mark means nothing in these files; who reads them as CSV loses rows.
    """

    home = RAW + "kakaobrain/kor-nlu-datasets/master/KorNLI/"
    files = (File("train", "snli_1.0_train.ko.tsv", 550_152), File("train", "multinli.train.ko.tsv", 392_702),
             File("valid", "xnli.dev.ko.tsv", 2_490, dict.fromkeys(INFERENCES, 830)),
             File("test", "xnli.test.ko.tsv", 5_010, dict.fromkeys(INFERENCES, 1_670)))
    columns = ("sentence1", "sentence2", "gold_label")

    def read(self, text, text2, label):
        return {"text": text, "text2": text2, "label": INFERENCES[label]}


class KorSts(Corpus):
    """The STS benchmark, translated: the same paper and licence; quotation marks as in KorNLI."""

    home = RAW + "kakaobrain/kor-nlu-datasets/master/KorSTS/"
    files = (File("train", "sts-train.tsv", 5_749), File("valid", "sts-dev.tsv", 1_500),
             File("test", "sts-test.tsv", 1_379))
    columns = ("genre", "filename", "year", "id", "score", "sentence1", "sentence2")

    def read(self, genre, filename, year, number, score, text, text2):
        return {"id": "/".join((genre, filename, year, number)), "text": text, "text2": text2,
                "score": similarity(score)}


class PawsX(Corpus):
    """Two sentences of nearly the same words, the same or not: Yang et al. (2019, arXiv 1908.11828).

    Free to use for any purpose. Its README counts 1,965 and 1,972 rows in dev and test, without the 35 and 28
    that have NS for a text; they stay here, as in the files and most published figures.
    """

    home, archive, folder = "https://storage.googleapis.com/paws/pawsx/", "x-final.tar.gz", "x-final/ko"
    files = (File("train", "translated_train.tsv", 49_401), File("valid", "dev_2k.tsv", 2_000),
             File("test", "test_2k.tsv", 2_000))
    columns = ("id", "sentence1", "sentence2", "label")
    labels = by_number("different", "same")

    def read(self, number, text, text2, label):
        return {"id": number, "text": text, "text2": text2, "label": self.labels[label]}


class QuestionPair(Corpus):
    """Questions of everyday life: github.com/songys/Question_pair, MIT.

    In the column is_duplicate 1 means different, as the README says. CSV with a BOM; in the test file a comma
    ends every line, the header too, and the id has another name.
    """

    home = RAW + "songys/Question_pair/master/"
    files = (File("train", "kor_pair_train.csv", 6_888), File("test", "kor_Pair_test.csv", 688))
    columns = ("question1", "question2", "is_duplicate")
    labels = by_number("same", "different")

    def read(self, row):
        return {"id": row["id"] if "id" in row else row["test_id"], "text": row["question1"],
                "text2": row["question2"], "label": self.labels[row["is_duplicate"]]}


def similarity(score) -> str:
    """A score from 0 to 5 as a cell."""
    if not (_is_number(score) and 0 <= float(score) <= 5):
        raise KeyError(score)
    return str(score)


CORPORA = {"nsmc": Nsmc(), "shopping": Shopping(), "steam": Steam(), "hate-speech": HateSpeech(),
           "hate-speech-bias": HateSpeechBias(), "hate-speech-gender": HateSpeechGender(),
           "unsmile": UnSmile(), "kmhas": KMHaS(), "kote": Kote(), "3i4k": Intents(),
           "klue-nli": KlueNli(), "kornli": KorNli(), "question-pair": QuestionPair(), "paws-x": PawsX(),
           "klue-sts": KlueSts(), "korsts": KorSts()}
SEED_MIX = ("nsmc", "shopping", "steam")  # the original kit's mixture


# ---- the command -------------------------------------------------------------------------------------------


def parse_args(argv=None):
    p = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("corpus", choices=[*CORPORA, "seed-mix", "split", "look"],
        help="a public corpus, or what to do with a FILE")
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
    flags.add_columns(arg, "label, labels or score", task=True)
    args = p.parse_intermixed_args(argv)  # FILE may follow a flag
    if args.corpus in ("split", "look"):
        if not args.file:
            p.error(f"{args.corpus} needs a FILE: python -m data.prepare {args.corpus} reviews.csv")
        if args.source_dir:
            p.error(f"--from is for the public corpora; {args.corpus} reads FILE")
    elif (args.file or args.text_column or args.text2_column or args.label_column or args.task
          or args.test_percent != 10):
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
from data.examples import ANSWER_COLUMNS, Examples, csv_rows, decoded_lines, read_examples, survey
from runtime import UserError, refuse_to_overwrite_inputs, warn

UNFIT = str.maketrans("\t\n\r\0", "    ")  # what a field of an unquoted TSV cannot hold
TASK_COLUMNS = dict(zip(flags.TASKS, ANSWER_COLUMNS, strict=False))
DAMAGED = "it is damaged or another version: delete or replace it and run again"


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


def unpack(archive: Path, name: str, path: Path) -> None:
    """Write the file `name` of a .tar.gz to `path`, complete or not at all. Raises UserError."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed, packed.extractfile(name) as source, open(partial, "wb") as file:
            shutil.copyfileobj(source, file)
        os.replace(partial, path)
    except (OSError, EOFError, KeyError, zlib.error, tarfile.TarError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{archive}: cannot unpack {name} ({error}); {DAMAGED}") from None


def published(corpus: Corpus, args) -> tuple[list[str], dict[str, list]]:
    """(Names of the columns, {split: rows}) of a corpus, downloaded if need be and checked."""
    found = {}
    for file in corpus.files:
        path = (args.source_dir or args.downloads / corpus.folder) / file.name
        if not path.exists():
            if args.source_dir:
                names = " and ".join(file.name for file in corpus.files)
                raise UserError(f"{path}: not found; --from needs {names} in DIR")
            source = args.downloads / corpus.archive if corpus.archive else path
            if not source.exists():
                print(f"downloading {corpus.home}{source.name}")
                download(corpus.home + source.name, source)
            if corpus.archive:
                unpack(source, f"{corpus.folder}/{file.name}", path)
        header, rows = rows_of(corpus, path)
        if len(rows) != file.rows:
            raise UserError(f"{path}: has {len(rows):,} rows, the published file {file.rows:,}; {DAMAGED}")
        counts = Counter(name for row in rows for name in names_in(row[-1], header[-1]))
        for name, count in file.counts.items():
            if abs(counts[name] - count) > file.slack:
                raise UserError(f"{path}: has {counts[name]:,} rows of label {name!r}, the published file "
                                f"{count:,} ± {file.slack:,}; {DAMAGED}")
        found[file.split] = found.get(file.split, []) + rows
    return header, found


def rows_of(corpus: Corpus, path: Path) -> tuple[list[str], list[tuple]]:
    """The names of the columns, and the rows of one published file."""
    header, rows = [], []
    for where, cells in records(corpus, path):
        try:
            row = corpus.read(*cells)
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: label {error.args[0]!r} is none of the published; {DAMAGED}") from None
        header = list(row)
        rows.append(fit(row.values()))
    return header, rows


def records(corpus: Corpus, path: Path):
    """(where it stands, what `read` takes) of each row of one published file. Only LF ends a line."""
    if path.suffix in (".csv", ".json"):
        for where, row in (csv_records if path.suffix == ".csv" else json_records)(str(path)):
            if not (isinstance(row, dict) and all(isinstance(row.get(name), str) for name in corpus.columns)):
                raise UserError(f"{where}: lacks one of {', '.join(corpus.columns)}; {DAMAGED}")
            yield where, [row]
        return
    for number, line in decoded_lines(str(path)):
        cells = line.removesuffix("\n").removesuffix("\r").split("\t", len(corpus.columns) - 1)
        heads = corpus.header and number == 1
        if len(cells) != len(corpus.columns) or (heads and tuple(cells) != corpus.columns):
            raise UserError(f"{path}:{number}: is not {'<TAB>'.join(corpus.columns)}; {DAMAGED}")
        if not heads:
            yield f"{path}:{number}", map(unquoted, cells) if corpus.quoted else cells


def csv_records(path: str):
    """(FILE:LINE, {column: cell}) of each row below the header."""
    rows = csv_rows(path)
    _, names = next(rows, (1, []))
    for line, cells in rows:
        yield f"{path}:{line}", dict(zip(names, cells, strict=False))


def json_records(path: str):
    """(FILE: row NUMBER, row) of the list that a JSON file holds."""
    try:
        rows = json.loads("".join(line for _, line in decoded_lines(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); {DAMAGED}") from None
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield f"{path}: row {number}", row


def unquoted(cell: str) -> str:
    """What a cell says that may be quoted as in CSV, where two quotation marks inside stand for one."""
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def fit(cells) -> tuple[str, ...]:
    return tuple(cell.translate(UNFIT) for cell in cells)


def table(examples: Examples, column: str) -> tuple[list[str], list[tuple]]:
    """The names of the columns that are there, and the rows with every field made fit for an unquoted TSV."""
    columns = {"id": examples.ids, "text": examples.texts, "text2": examples.texts2,
               column: examples.answers}
    columns = {name: values for name, values in columns.items() if values is not None}
    return list(columns), [fit(row) for row in zip(*columns.values(), strict=True)]


# ---- the answers -------------------------------------------------------------------------------------------


def wanted(args):
    """The column of answers to read, as read_examples takes it."""
    return args.label_column or (args.task and (TASK_COLUMNS[args.task],))


def answer_column(name: str | None, args) -> str:
    """What the column of answers that was read is called in the files written: the scripts go by that."""
    return TASK_COLUMNS.get(args.task) or (name if name in ANSWER_COLUMNS else "label")


def names_in(cell: str, column: str) -> list[str]:
    """The labels of a cell of this column; a score has none. Raises ValueError."""
    if not cell or column == "score":
        return []
    return labels.split(cell) if column == "labels" else [cell]


def judge(cells: dict[str, str], column: str) -> int:
    """How many labels (or scores) there are. Refuses those that are surely a mistake.

    cells: {answer: where it first stands, as FILE:LINE}. Raises UserError.
    """
    names = {}
    for cell, place in cells.items():
        if column == "score" and not _is_number(cell):
            raise UserError(f"{place}: the score {cell!r} is not a number; correct it, or leave it empty if "
                            f"it is unknown")
        try:
            for name in names_in(cell, column):
                names.setdefault(name, place)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    labels.judge(names)
    return len(cells if column == "score" else names)


def refuse_too_few_answers(examples: Examples, column: str) -> None:
    cells, needed = examples.cells(), 1 if column in ("labels", "score") else 2
    if judge(cells, column) < needed:
        have = f"the only label is {min(cells)!r}" if cells else f"no row has a {column.removesuffix('s')}"
        raise UserError(f"{examples.path}: {have}; at least {('one is', 'two are')[needed - 1]} needed "
                        f"(column {', '.join(ANSWER_COLUMNS)}, or --label-column; its columns are "
                        f"{', '.join(examples.header)})")


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except (ValueError, TypeError):  # of a cell; of a value in JSON
        return False


# ---- the split ---------------------------------------------------------------------------------------------


def shuffle(rows: list, seed: int) -> list:
    """Sort by random(): the only method for which Python promises equal numbers in every version."""
    generator = random.Random(seed)
    keys = [generator.random() for _ in rows]
    return [rows[i] for i in sorted(range(len(rows)), key=keys.__getitem__)]


def cut(rows: list, percent: int, column: int | None = None) -> tuple[list, list]:
    """(The first `percent` of the rows, the rest), rounded up in whole numbers, so that no part is empty.

    With `column`, rows that are equal there stay together: whole groups, in the order of their first rows,
    until there are as many.
    """
    size = -(-len(rows) * percent // 100)
    if column is None:
        return rows[:size], rows[size:]
    counts, chosen, taken = Counter(row[column] for row in rows), set(), 0
    for row in rows:
        if taken < size and row[column] not in chosen:
            chosen.add(row[column])
            taken += counts[row[column]]
    return [row for row in rows if row[column] in chosen], [row for row in rows if row[column] not in chosen]


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


def summary(out: Path, splits: dict, column: str) -> None:
    """Print how many rows each file has, and of which answers."""
    found = {split: Counter(name for row in rows for name in names_in(row[-1], column))
             for split, rows in splits.items()}
    names = labels.in_order({name for counts in found.values() for name in counts})
    titles = ["negative", "positive"] if names == ["0", "1"] else names[:8]
    if column == "score":
        titles = ["lowest", "mean", "highest"]
    print(f"{'split':5} {'rows':>10}", *(f"{title:>10}" for title in titles), " file")
    for split, rows in splits.items():
        shown = [f"{found[split][name]:,}" for name in names[:8]]
        if column == "score":
            scores = [float(row[-1]) for row in rows if row[-1]]
            shown = [f"{value:.4g}" for value in (min(scores), sum(scores) / len(scores), max(scores))]
        print(f"{split:5} {len(rows):>10,}", *(f"{value:>10}" for value in shown), f" {out / split}.tsv")
        if absent := [name for name in names if not found[split][name]]:
            warn(f"{out / split}.tsv has no row of {', '.join(absent[:8])}; a larger file would have some")
    print(f"next: python train_tokenizer.py --data {shlex.quote(str(out / 'train.tsv'))}")


def look_at(args) -> None:
    """Print what a file holds. Raises UserError for answers that are surely a mistake."""
    columns = args.text_column, args.text2_column, wanted(args)
    found = survey(args.file, *columns)
    print(*look.files([found], columns), sep="\n")
    if args.tokenizer:
        tokenizer = read_tokenizer(args.tokenizer)
        unknown = tokenizer.token_to_id("[UNK]")
        reads = {"max_length": 128, "pad_id": unknown, "blank_id": unknown}  # 128: the scripts' default
        print(look.tokenizers({args.tokenizer: (tokenizer, reads)}, [found]))
    judge(found.cells, answer_column(found.column, args))


def main(args) -> None:
    if args.corpus == "look":
        look_at(args)
        return
    if args.corpus == "split":
        examples = read_examples(args.file, args.text_column, args.text2_column, wanted(args))
        column = answer_column(examples.column, args)
        refuse_to_overwrite_inputs([args.file], [args.out / f"{s}.tsv" for s in ("train", "valid", "test")])
        refuse_too_few_answers(examples, column)
        header, rows = table(examples, column)
        parts = {"train": rows}
    elif args.corpus == "seed-mix":
        header = ["text", "label"]  # only NSMC has an id
        files = [rows for name in SEED_MIX for rows in published(CORPORA[name], args)[1].values()]
        parts = {"train": [row[-2:] for rows in files for row in rows]}
    else:
        header, parts = published(CORPORA[args.corpus], args)
    labelled = shuffle([row for row in parts["train"] if row[-1]], args.seed)
    unlabelled = [row for row in parts["train"] if not row[-1]]  # can teach, not choose the epoch nor test
    together = header.index("text") if args.corpus in CORPORA and "text2" in header else None
    test, rest = (parts["test"], labelled) if "test" in parts else cut(labelled, args.test_percent)
    valid, train = (parts["valid"], rest) if "valid" in parts else cut(rest, 5, together)
    if not train:  # of a file to split
        raise UserError(f"{args.file}: {len(labelled)} labelled rows leave none to train on; give more, or "
                        f"a lower --test-percent")
    splits = {"train": train + unlabelled, "valid": valid} | ({"test": test} if test else {})
    if not test and (args.out / "test.tsv").exists():
        raise UserError(f"{args.out / 'test.tsv'}: comes from an earlier split, and train would now contain "
                        f"rows of it; remove it or give another --out")
    report_leaks(splits, header, args.drop_leaks)
    write(args.out, header, splits)
    summary(args.out, splits, header[-1])


if __name__ == "__main__":
    runtime.main(main, ARGS)
