"""Answers of a student by ONNX Runtime. Needs onnxruntime, tokenizers and numpy; no torch.

    python serving/predictor.py base.onnx "이 영화 진짜 재밌다" "돈이 아깝다"
    python serving/predictor.py base.onnx < reviews.txt > predictions.tsv      # one text per line
    python serving/predictor.py pair.onnx "글 하나" "글 둘"       # of pairs; in a file, a tab between the two

    from predictor import Predictor
    predictor = Predictor("base.onnx")           # written by extra/export_onnx.py
    predictor.predict(["이 영화 진짜 재밌다"])    # (N, C) probabilities, columns: predictor.label_names

Copy this file and one .onnx into an application: nothing else of the kit is needed. The answers are those of
Student in student.py; float32 graphs give the same probabilities to 1e-5.
Shapes: B batch, T tokens, C outputs, N texts.
"""

import argparse
import os


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("onnx", metavar="FILE.onnx")
    p.add_argument("text", nargs="*",
                   help="texts to classify, of pairs two by two; default: one per line of standard input")
    args, unknown = p.parse_known_args(argv)
    if unknown:
        p.error(f"no flag is called {unknown[0]}; put -- before texts that begin with a dash")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before onnxruntime is imported: --help and a wrong flag answer at once

import functools
import hashlib
import itertools
import json
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # newer onnxruntime reports to Microsoft by default
import onnxruntime
from tokenizers import Tokenizer

TASKS = ("classification", "multilabel", "regression")
CHUNK = 65_536  # texts whose token ids predict holds at a time
PART = 1024  # texts that a thread tokenizes at a time
SHARE = 256  # texts per core from which several threads are worth starting
BATCH = 512  # tokens of a batch, padding included
# Why hf_hub_download failed, by the name of its error.
NOT_FROM_HUB = {"RepositoryNotFoundError": "no such repository, or a private one: hf auth login",
                "GatedRepoError": "its owner has to give you access, then: hf auth login",
                "RevisionNotFoundError": "no such branch, tag or commit",
                "EntryNotFoundError": "no such file in it", "RemoteEntryNotFoundError": "no such file in it",
                "LocalEntryNotFoundError": "not in the cache, and the hub cannot be reached",
                "ModuleNotFoundError": "pip install huggingface_hub"}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# The threads of large calls, shared by all Predictors of a process: they do not survive a fork.
crew = functools.cache(lambda process: ThreadPoolExecutor(CORES, "predictor"))


class PredictorError(ValueError):
    """A graph, or input for it, that cannot be used; the message is one line that says why."""


def checked(texts, name: str) -> list[str]:
    """`texts` as a list; TypeError or ValueError names the row of what is not a text."""
    if isinstance(texts, str):
        raise TypeError("predict takes a list of texts, not one string")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{row}] is of type {type(text).__name__}, not a text")
        try:
            text.encode()
        except UnicodeError:
            raise ValueError(f"{name}[{row}] has a lone surrogate; the text was decoded "
                             f"incorrectly") from None
    return texts


class Predictor:
    """A graph with its tokenizer, label names and task. All threads of a process may share one.

    label_names: the names of the C columns; task: of TASKS; pairs: whether it reads pairs, None of an old
    student, which does not tell.
    """

    def __init__(self, path):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise PredictorError(f"{path}: cannot read ({error.strerror or error})") from None
        if content[:2] == b"PK":  # zip, as torch.save writes
            raise PredictorError(f"{path}: not a graph but a student; write its graph with: "
                                 f"python extra/export_onnx.py {path} student.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # would keep a plan for every shape that it ever met
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of error for each reason, and none for all
            raise PredictorError(f"{path}: not a graph that can be run ({one_line(error)})") from None
        known, width = self.session.get_modelmeta().custom_metadata_map, self.session.get_outputs()[0].shape
        if "tokenizer" not in known:
            raise PredictorError(f"{path}: has no tokenizer; write it again with extra/export_onnx.py")
        try:
            self.task, self.pairs = known["task"], json.loads(known["pairs"])
            self.label_names = json.loads(known["label_names"])
            self.thresholds = json.loads(known.get("thresholds", "null"))
            self.tokenizer = Tokenizer.from_str(known["tokenizer"])  # cuts texts at max_length
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise PredictorError(f"{path}: its metadata cannot be used ({one_line(error)}); write it again, "
                                 f"or: pip install -U tokenizers") from None
        if self.task not in TASKS or width[-1] != len(self.label_names):
            raise PredictorError(f"{path}: a graph of {len(self.label_names)} names for {width[-1]} outputs, "
                                 f"task {self.task}; this predictor.py knows {', '.join(TASKS)}")
        self.tokenizer.no_padding()  # _run pads
        self.apart = len(self.session.get_inputs()) > 2  # both texts of a pair have inputs of their own

    @classmethod
    def from_hub(cls, repo: str, file: str = "student.onnx", revision: str | None = None) -> "Predictor":
        """Read a graph of the repository "user/name" on the Hugging Face hub; offline, from its cache.

        revision: a branch, tag or commit. Its bytes must have the hash that the hub states. Uses
        huggingface_hub, which tokenizers requires. Raises PredictorError.
        """
        try:
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(repo, file, revision=revision)
        except Exception as error:  # its classes, and those of its HTTP library, vary by version
            at, kind = f" at revision {revision}" * bool(revision), type(error).__name__
            reason = NOT_FROM_HUB.get(kind) or f"{kind}: {one_line(error)}"
            raise PredictorError(f"{repo}: cannot read {file}{at} from the hub ({reason})") from None
        with open(path, "rb") as graph:
            content, stated = graph.read(), os.path.basename(os.path.realpath(path))
        # The cache calls a file by the hub's hash, git's SHA-1 or SHA-256, and never checks it.
        found = (hashlib.sha1(b"blob %d\0" % len(content) + content), hashlib.sha256(content))
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated) \
                and stated not in [each.hexdigest() for each in found]:
            raise PredictorError(f"{path}: damaged (its hash is not what the hub states); delete "
                                 f"{os.path.realpath(path)} and run again")
        return cls(path)

    def predict(self, texts: list[str], texts2: list[str] | None = None) -> np.ndarray:
        """Probabilities (N, C), float32, of `texts` in order; of a graph of pairs texts2 has the second
        texts. Of scores, these (N, 1).

        Fewer than SHARE texts per core run in the calling thread alone, more in a pool of a thread per core,
        which all calls share. Rows of similar length make a batch.
        """
        columns = [checked(texts, "texts")]
        if texts2 is not None:
            columns.append(checked(texts2, "texts2"))
            if len(columns[0]) != len(columns[1]):
                raise ValueError(f"texts has {len(columns[0])} rows, texts2 has {len(columns[1])}")
        if self.pairs not in (None, texts2 is not None):
            raise PredictorError("this graph reads pairs of texts; texts2 is missing" if self.pairs else
                                 "this graph reads single texts, not pairs; leave out texts2")
        if texts2 is not None and not self.apart:
            columns = [list(zip(*columns, strict=True))]  # the tokenizer joins them
        if len(columns[0]) == 1:  # as most calls of a server: making batches would cost a tenth of its time
            return self._run([self._encode(column) for column in columns])
        result = np.empty((len(columns[0]), len(self.label_names)), np.float32)
        for start in range(0, len(result), CHUNK):
            self._fill(result[start : start + CHUNK], [column[start : start + CHUNK] for column in columns])
        return result

    def answers(self, texts: list[str], texts2: list[str] | None = None) -> list:
        """Of each text, or pair: its label, a string; its labels, a list of them; or its score, a float."""
        return self.chosen(self.predict(texts, texts2))

    def decode(self, found: np.ndarray) -> list[tuple]:
        """What predict returned -> for each row the answer, as a data file would have it, and its
        probability: of several labels that these apply and no other, of a score None."""
        answers = self.chosen(found)
        if self.task == "regression":
            return [(f"{score:.6g}", None) for score in answers]
        if self.task == "classification":
            return list(zip(answers, found.max(1).tolist(), strict=True))
        commas = any("," in name or name[:1] == "[" for name in self.label_names)
        cells = [json.dumps(row, ensure_ascii=False) if commas else ",".join(row) or "-" for row in answers]
        sure = np.where(self._exceeding(found), found, 1 - found).prod(1)
        return list(zip(cells, sure.tolist(), strict=True))

    def _exceeding(self, found):
        """(N, C) bool: which labels are given, those whose probability is above their threshold."""
        return found > np.array(self.thresholds or [0.5] * len(self.label_names), np.float32)

    def chosen(self, found: np.ndarray) -> list:
        """What predict returned -> what answers returns."""
        if self.task == "regression":
            return found[:, 0].tolist()
        if self.task == "multilabel":
            return [[name for name, given in zip(self.label_names, row, strict=True) if given]
                    for row in self._exceeding(found)]
        return [self.label_names[i] for i in found.argmax(1)]

    def _fill(self, result, columns: list) -> None:
        """Write the probabilities (N, C) of all rows to `result`."""
        large = len(result) >= SHARE * CORES and threading.main_thread().is_alive()
        each = crew(os.getpid()).map if large else map

        def encode(part):
            if large:  # without the global lock of Python, but in threads of the library
                return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(part)]
            return self._encode(part)

        def classify(batch):  # row numbers
            result[batch] = self._run([[texts[i] for i in batch] for texts in ids])

        parts = [[column[i : i + PART] for i in range(0, len(result), PART)] for column in columns]
        ids = [list(itertools.chain.from_iterable(each(encode, part))) for part in parts]
        sizes = [max(1, *map(len, texts)) * len(ids) for texts in zip(*ids, strict=True)]
        order = sorted(range(len(result)), key=lambda i: -sizes[i])
        batches, start = [], 0
        while start < len(order):
            batches.append(order[start : start + max(1, BATCH // sizes[order[start]])])
            start += len(batches[-1])
        list(each(classify, batches))

    def _encode(self, texts: list) -> list[list[int]]:
        """The token ids of texts, or of pairs of them, in this thread."""
        return [self.tokenizer.encode(*row if isinstance(row, tuple) else [row]).ids for row in texts]

    def _run(self, ids: list):
        """Of each text of a row a list of token ids of all rows -> probabilities (B, C)."""
        inputs = {}
        for texts, second in zip(ids, ("", "2"), strict=False):
            lengths = [len(text) for text in texts]
            padded = [text + [0] * (max(lengths) - len(text)) for text in texts]
            inputs |= {f"input_ids{second}": np.array(padded, np.int64),
                       f"lengths{second}": np.array(lengths, np.int64)}
        return self.session.run(None, inputs)[0]


def one_line(error) -> str:
    return " ".join(str(error).split())[:200]


def one_field(text: str) -> str:
    """Without tabs and line breaks of any kind."""
    return " ".join(text.replace("\t", " ").splitlines())


def incoming(stream):
    """The lines of a binary stream, in lists of those that have come so far."""
    rest, number = b"", 1
    while True:
        piece = stream.read1(2**16)  # waits for the first byte only
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        lines = (whole + newline if piece else rest).splitlines()
        if number == 1 and lines:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # a BOM
        texts = []
        try:
            for line in lines:
                texts.append(line.decode())
        except UnicodeError as error:
            yield texts
            raise PredictorError(f"line {number + len(texts)} of standard input is not UTF-8 "
                                 f"({error.reason}); convert it, for example from CP949") from None
        yield texts
        if not piece:
            return
        number += len(lines)


def in_pairs(lists):
    """Lists of lines -> [texts, texts2] of each. Of a line that is no pair the error comes after the pairs
    before it."""
    number = 1
    for lines in lists:
        rows = [line.split("\t") for line in lines]
        wrong = next((i for i, row in enumerate(rows) if len(row) != 2), len(rows))
        yield [[row[i] for row in rows[:wrong]] for i in (0, 1)]
        if wrong < len(rows):
            raise PredictorError(f"line {number + wrong} of standard input has {len(rows[wrong]) - 1} tabs; "
                                 f"this graph reads pairs: two texts per line, one tab between them")
        number += len(rows)


def main(args):
    predictor = Predictor(args.onnx)
    "".join(args.text).encode()  # UnicodeError: an argument was not UTF-8
    sys.stdout.reconfigure(encoding="utf-8")
    if not args.text:
        if sys.stdin is None:
            raise PredictorError("standard input is closed; give texts as arguments")
        if sys.stdin.isatty():
            row = "two texts per line, a tab between them" if predictor.pairs else "one text per line"
            print(f"{row}; {'Ctrl-Z and Enter end' if os.name == 'nt' else 'Ctrl-D ends'} the input",
                  file=sys.stderr)
        lists = incoming(sys.stdin.buffer)
        lists = in_pairs(lists) if predictor.pairs else ([texts] for texts in lists)
    elif predictor.pairs and len(args.text) % 2:
        raise PredictorError(f"this graph reads pairs: give an even number of texts, not {len(args.text)}")
    else:
        lists = [[args.text[0::2], args.text[1::2]] if predictor.pairs else [args.text]]
    for columns in lists:
        answers = predictor.decode(predictor.predict(*columns))
        for *row, (answer, confidence) in zip(*columns, answers, strict=True):
            sure = [] if confidence is None else [f"{confidence:.4f}"]
            print(one_field(answer), *sure, *map(one_field, row), sep="\t")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(ARGS)
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PredictorError, OSError, UnicodeError) as error:
        reason = f"a text is not UTF-8 ({error.reason}); convert it, for example from CP949" \
            if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
