"""The BiLSTM student: its sizes, the network, save and load, predict. Needs only torch and tokenizers.

    python student.py "이 영화 진짜 재밌다" "돈이 아깝다"                               # with models/base.pt
    python student.py students/base/student.pt "이 영화 진짜 재밌다"
    python student.py students/base/student.pt < reviews.txt > predictions.tsv      # one text per line
    python student.py pair.pt "글 하나" "글 둘"        # a student of pairs; in a file, a tab between the two

    from student import Student
    student = Student.load("student.pt")      # the file also holds the tokenizer, labels and hyperparameters
    student.predict(["이 영화 진짜 재밌다"])     # (N, C) probabilities, columns as in student.label_names

Copy this file and a student.pt into an application: nothing else of the kit is needed.
The network is the single-layer BiLSTM of Tang et al. (2019, arXiv 1903.12136) with learnt subword embeddings.
It reads both texts of a pair, which are then compared as in that paper (siamese) or as in ESIM (align; Chen
et al. 2017, arXiv 1609.06038).
Shapes: B batch, T tokens, E embedding, H hidden, C outputs, N texts.
"""

import argparse
import os
import re

PATH = re.compile(r"(?s).*\.pt|\S+\.(txt|tsv|csv|jsonl?|xlsx)(\.gz)?")  # even if nothing is there


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("student", nargs="?", metavar="STUDENT.pt", help="default: models/base.pt")
    p.add_argument("text", nargs="*",
                   help="texts to classify, of pairs two by two; default: one per line of standard input")
    args, unknown = p.parse_known_args(argv)
    if unknown:
        p.error(f"no flag is called {unknown[0]}; put -- before texts that begin with a dash")
    if args.student is not None and not args.student.endswith(".pt"):
        args.text.insert(0, args.student)
        args.student = None
    for text in args.text:
        folder = os.path.dirname(text)  # of students/bsae; 10/10 and A/S have none
        if os.path.exists(text) or PATH.fullmatch(text) or (folder and os.path.isdir(folder)):
            p.error(f"{text} is a path, not a text. One STUDENT.pt comes first; lines of a file, and texts "
                    f"that look like a path, go to standard input: python student.py STUDENT.pt < FILE")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import functools
import hashlib
import io
import itertools
import json
import pickletools
import reprlib
import select
import sys
import threading
import zipfile
import zlib
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import Tokenizer
from torch import nn

# Format 1 had neither precisions nor a temperature, and stored the tokenizer's plain JSON; 3 has pairs, which
# older versions cannot read. Single texts are still written as 2.
FORMAT = 3
# name: (embedding_dim, hidden_dim); 1,175,554 / 391,170 / 146,434 / 52,418 / 27,394 parameters
# at a vocabulary of 3,000 and two classes.
SIZES = {"large": (128, 256), "base": (64, 128), "small": (32, 64), "mini": (16, 16), "tiny": (8, 16)}
# How a pair is compared: the share of a size's hidden_dim that makes its number of parameters the size's.
PAIRS = {"siamese": 3 / 4, "align": 1 / 2}
POOLINGS = ("last", "max", "mean", "attention")
HEADS = ("linear", "relu")
PRECISIONS = ("float32", "float16", "int8")  # of the weights in a file; in memory they are float32
SHIPPED = Path(__file__).with_name("models") / "base.pt"
CHUNK = 65_536  # texts whose token ids predict holds at a time
PART = 1024  # texts that a thread tokenizes at a time
SHARE = 256  # texts per thread from which several threads are worth starting
UNPACKED = 2**20, 256  # bytes that a tokenizer's JSON may have: in all cases, and for each token
# The globals that a file of plain values names; torch.load also lets bytearray(10**11) and the like pass.
PLAIN = re.compile(r"torch \w+Storage|collections OrderedDict|"
                   r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)")
# Why hf_hub_download failed, by the name of its error.
NOT_FROM_HUB = {"RepositoryNotFoundError": "no such repository, or a private one: hf auth login",
                "GatedRepoError": "its owner has to give you access, then: hf auth login",
                "RevisionNotFoundError": "no such branch, tag or commit",
                "EntryNotFoundError": "no such file in it", "RemoteEntryNotFoundError": "no such file in it",
                "LocalEntryNotFoundError": "not in the cache, and the hub cannot be reached",
                "ModuleNotFoundError": "pip install huggingface_hub"}
LOCK = threading.Lock()  # held while a tokenizer or PyTorch's number of threads is set
if hasattr(os, "register_at_fork"):  # not on Windows; a child would inherit what is half set, and the lock
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class StudentError(ValueError):
    """A student.pt, or settings for one, that cannot be used; the message is one line that says why."""


class LibraryError(StudentError):
    """A library that is too old for this file, or for a student.pt."""


def widths(size: str, pair: str | None = None) -> tuple[int, int]:
    """(embedding_dim, hidden_dim) of a size, for single texts or for a form of PAIRS."""
    embedding_dim, hidden_dim = SIZES[size]
    return embedding_dim, int(hidden_dim * PAIRS.get(pair, 1))


PROBABILITIES = {"classification": lambda logits: logits.softmax(-1), "multilabel": torch.sigmoid,
                 "regression": lambda logits: logits}  # scores have none: they are the logits


def probabilities(logits, task: str):
    """Logits (N, C), divided by the temperature -> probabilities (N, C), or scores (N, 1)."""
    return PROBABILITIES[task](logits)


def exceeding(probabilities, thresholds: list[float] | None):
    """(N, C) bool: which labels are given, those whose probability is above their threshold, normally 0.5."""
    return probabilities > probabilities.new_tensor(thresholds or [0.5] * probabilities.size(-1))


def chosen(probabilities, names: list[str], task: str, thresholds: list[float] | None = None) -> list:
    """Probabilities (N, C) -> for each row a label, a list of labels, or a score, as the task has them."""
    if task == "regression":
        return probabilities[:, 0].tolist()
    if task == "multilabel":
        return [[name for name, given in zip(names, row, strict=True) if given]
                for row in exceeding(probabilities, thresholds).tolist()]
    return [names[i] for i in probabilities.argmax(-1).tolist()]


def decode(probabilities, names: list[str], task: str, thresholds: list[float] | None = None) -> list[tuple]:
    """Probabilities (N, C) -> for each row the answer, as a data file would have it, and its probability.

    That of several labels is the probability that these apply and no other, if labels are independent. A
    score has None.
    """
    answers = chosen(probabilities, names, task, thresholds)
    if task == "regression":
        return [(f"{score:.6g}", None) for score in answers]
    if task == "multilabel":
        commas = any("," in name or name[:1] == "[" for name in names)
        cells = [json.dumps(row, ensure_ascii=False) if commas else ",".join(row) or "-" for row in answers]
        sure = torch.where(exceeding(probabilities, thresholds), probabilities, 1 - probabilities).prod(-1)
        return list(zip(cells, sure.tolist(), strict=True))
    return list(zip(answers, probabilities.amax(-1).tolist(), strict=True))


@dataclass
class StudentConfig:
    """Everything that determines the shape and the arithmetic of a student."""

    vocab_size: int
    num_labels: int
    embedding_dim: int = 64
    hidden_dim: int = 128
    num_layers: int = 1
    dropout: float = 0.0
    pooling: str = "last"
    head: str = "linear"
    max_length: int = 128  # tokens; a longer text is cut, each of a pair
    pad_id: int = 0
    blank_id: int = 0  # the one token of a text that has none
    temperature: float = 1.0  # calibration: predict divides logits by it
    thresholds: list | None = None  # of the probability of each label, where a text has several
    mean: float | None = None  # of the scores that it was trained on: the head gives standardised ones
    deviation: float | None = None
    pair: str | None = None  # of PAIRS; None: single texts, or pairs of an old file, read as one text

    def __post_init__(self):
        for names, kinds, least, most in (
                ("vocab_size num_labels embedding_dim hidden_dim max_length", [int], 1, 2**24),
                ("num_layers", [int], 1, 100), ("pad_id blank_id", [int], 0, 2**24),
                ("dropout", [int, float], 0, 0.999), ("temperature", [int, float], 1e-3, 1e3)):
            for name in names.split():
                if type(value := getattr(self, name)) not in kinds or not least <= value <= most:
                    raise StudentError(f"{name} is {reprlib.repr(value)}, must be in [{least}, {most}]")
        if (cuts := self.thresholds) is not None and not (
                type(cuts) is list and len(cuts) == self.num_labels
                and all(type(value) is float and 0 <= value <= 1 for value in cuts)):
            raise StudentError(f"thresholds are {reprlib.repr(cuts)}, must be one number in [0, 1] per label")
        if (unit := [self.mean, self.deviation]) != [None, None] and not (
                all(type(value) is float and abs(value) < 1e39 for value in unit) and self.deviation > 0):
            raise StudentError(f"mean and deviation are {reprlib.repr(unit)}, must be finite, the second "
                               f"positive")
        for name, choices in (("pooling", POOLINGS), ("head", HEADS), ("pair", (None, *PAIRS))):
            if (value := getattr(self, name)) not in choices:
                raise StudentError(f"{name} is {reprlib.repr(value)}, must be one of "
                                   f"{', '.join(map(str, choices))}")
        if self.pair == "align" and self.pooling != "last":
            raise StudentError(f"pooling is {self.pooling}, but align pools by mean and maximum; use last")
        if max(self.pad_id, self.blank_id) >= self.vocab_size:
            raise StudentError(f"pad_id and blank_id must be below vocab_size, {self.vocab_size}")


class BiLSTMLayer(nn.Module):
    """One bidirectional layer whose result does not depend on padding.

    The backward direction is a forward LSTM over each sequence reversed within its own length. Padding then
    follows the tokens in both directions, and no state at a token has seen any. On the CPU this is 2 to 4
    times faster than nn.LSTM over packed sequences, the other exact way.
    """

    def __init__(self, input_dim: int, hidden_dim: int):
        super().__init__()
        self.ahead = nn.LSTM(input_dim, hidden_dim)
        self.behind = nn.LSTM(input_dim, hidden_dim)

    def forward(self, x, mirror):
        """x (T, B, E), mirror (T, B) or None as for take -> states (T, B, H) of both directions; the second
        ones begin at the last token."""
        return lstm_states(self.ahead, x), lstm_states(self.behind, take(x, mirror))


def lstm_states(lstm, x):
    """x (T, B, E) -> (T, B, H). nn.LSTM's forward without its checks, a tenth of the time for one text."""
    if not isinstance(lstm, nn.LSTM):  # PyTorch's quantize_dynamic replaces it
        return lstm(x)[0]
    weights, exact = lstm.all_weights[0], nullcontext()
    if not x.is_cpu and not x.is_meta:  # under autocast to bf16 cuDNN's is float16: small gradients vanish
        x, exact = x.to(weights[0].dtype), torch.autocast(x.device.type, enabled=False)
    zeros = x.new_zeros(1, x.size(1), lstm.hidden_size)  # (1, B, H)
    with exact:
        return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, lstm.training, False, False)[0]


def take(x, positions):
    """x (T, B, D) at positions (P, B) -> (P, B, D); positions None: x reversed."""
    if positions is None:
        return x.flip(0)
    _, B, D = x.shape
    rows = positions * B + torch.arange(B, device=x.device)  # (P, B)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(-1, B, D)  # 3 to 9 times as fast as gather


def in_order(ahead, behind, mirror):
    """What BiLSTMLayer gives (T, B, H) twice -> states (T, B, 2H), both directions at their token."""
    return torch.cat([ahead, take(behind, mirror)], 2)


def in_common(input_ids, lengths, input_ids2, lengths2):
    """(B, T) and (B, T2) bool: does this token also occur in the other text? ESIM has no such feature. With
    it accuracy is 1.5 points higher on question pairs, 6 on 8,000 rows of KLUE-NLI (docs/manual.md)."""
    same = input_ids[:, :, None] == input_ids2[:, None]  # (B, T, T2)
    if lengths is not None:
        same = same & (torch.arange(same.size(1), device=same.device) < lengths[:, None])[:, :, None]
    if lengths2 is not None:
        same = same & (torch.arange(same.size(2), device=same.device) < lengths2[:, None])[:, None]
    return same.any(2), same.any(1)


def align(a, padding, b, padding2):
    """Soft alignment, ESIM's eq. 11-13: for each state its mean over the other text, weighted by similarity.

    a (T, B, D), b (T2, B, D), paddings (T or T2, B or 1, 1) -> of a (T, B, D), of b (T2, B, D).
    """
    a, b = a.transpose(0, 1), b.transpose(0, 1)  # (B, T, D), (B, T2, D)
    scores = a @ b.mT  # (B, T, T2)
    of_a = scores.masked_fill(padding2.permute(1, 2, 0), -torch.inf).softmax(2) @ b
    of_b = scores.masked_fill(padding.permute(1, 0, 2), -torch.inf).softmax(1).mT @ a
    return of_a.transpose(0, 1), of_b.transpose(0, 1)


def to_int8(matrix):
    """(R, D) -> int8 (R, D) and float16 (R, 1): integers -127 to 127, one scale per row, max|row| / 127."""
    scales = (matrix.abs().amax(1, keepdim=True) / 127).half()
    steps = matrix / scales.float().clamp(min=2**-24)  # float16's smallest number; rows below it become zero
    return steps.round().clamp(-127, 127).to(torch.int8), scales


def pack_tokenizer(tokenizer) -> bytes:
    """Compressed JSON without what can be derived: ids, both halves of BPE's merges, padding, truncation."""
    state = json.loads(tokenizer.to_str()) | {"padding": None, "truncation": None}  # predict sets its own
    vocab, merges = state["model"].get("vocab"), state["model"].get("merges", [])
    if isinstance(vocab, dict):
        pieces = sorted(vocab, key=vocab.get)
        if [vocab[piece] for piece in pieces] == list(range(len(pieces))) \
                and ["".join(merge) for merge in merges] == pieces[len(pieces) - len(merges) :]:
            state["model"]["vocab"] = pieces
            if merges:
                state["model"]["merges"] = [len(left) for left, _ in merges]
    text = json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > UNPACKED[0] + UNPACKED[1] * tokenizer.get_vocab_size():  # load would refuse it
        raise StudentError(f"the tokenizer has {len(text):,} bytes of JSON, too many for its tokens")
    return zlib.compress(text, 9)


def unpack_tokenizer(packed: bytes, tokens: int) -> Tokenizer:
    """The tokenizer with this number of tokens that pack_tokenizer packed."""
    most, unpacking = UNPACKED[0] + UNPACKED[1] * tokens, zlib.decompressobj()
    text = unpacking.decompress(packed, most)
    if not unpacking.eof:
        raise StudentError(f"its tokenizer is cut off, or unpacks to more than {most:,} bytes")
    state = json.loads(text) | {"padding": None, "truncation": None}
    model, pieces = state["model"], state["model"]["vocab"]
    if model["type"] != "Unigram" and isinstance(pieces, list):
        model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
        if lefts := model.get("merges"):
            merged = zip(pieces[len(pieces) - len(lefts) :], lefts, strict=True)
            model["merges"] = [(piece[:n], piece[n:]) for piece, n in merged]
    try:
        return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    except Exception as error:  # the library raises nothing narrower
        raise LibraryError(f"tokenizers {tokenizers.__version__} cannot read its tokenizer ({error}); if a "
                           f"newer version wrote it: pip install -U tokenizers") from None


def write_whole(path, content: bytes) -> None:
    """Write a temporary file beside `path`, then rename it. Raises StudentError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if path.exists() and not path.is_file():  # a device would be replaced
        raise StudentError(f"{path} is not a regular file; choose another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StudentError(f"{path}: cannot write ({error.strerror}); nothing was changed") from None
    finally:
        with suppress(OSError):  # such as: its folder could not be made
            partial.unlink(missing_ok=True)


# runtime.py has the same function: this file must work alone.
def check_archive(file) -> None:
    """ValueError if the zip archive of a .pt file is packed, damaged, or names anything but tensors.

    `file` is a path, or a file object that can seek.
    """
    with zipfile.ZipFile(file) as archive:
        archive.fp.seek(0)
        head, size = archive.fp.read(4), archive.fp.seek(0, 2)
        archive.fp.seek(max(size - 98, 0))
        tail = archive.fp.read().rjust(98)  # zip64's end record (56 bytes), its locator (20), the end (22)
        # zipfile and PyTorch must read the same table of contents: the one that ends where the file does.
        members, start = archive.infolist(), archive.start_dir.to_bytes(8, "little")
        zip64 = tail[56:60] == b"PK\6\7"
        if tail[76:80] != b"PK\5\6" or start != (tail[48:56] if zip64 else tail[92:96] + bytes(4)) \
                or (zip64 and tail[:4] + tail[64:72] != b"PK\6\6" + (size - 98).to_bytes(8, "little")):
            raise ValueError("damaged: its table of contents is not at its end")
        if head != b"PK\3\4":  # torch.load would read what is before the archive, in its old format
            raise ValueError("damaged: its start is not that of an archive")
        if any(each.compress_type for each in members) or sum(each.file_size for each in members) > size:
            raise ValueError("the archive is packed")
        if any(each.is_dir() or each.external_attr & 16 for each in members):
            raise ValueError("damaged: has a folder")  # of one, torch.load takes what memory happens to hold
        if damaged := archive.testzip():
            raise ValueError(f"damaged: the checksum of {damaged} is wrong")
        for member in (each for each in members if each.filename.lower().endswith("data.pkl")):
            for opcode, name, _ in pickletools.genops(archive.read(member)):
                if opcode.name == "GLOBAL" and not PLAIN.fullmatch(name):
                    raise ValueError(f"Unsupported global: GLOBAL {'.'.join(name.split())}")


def one_thread() -> None:
    """Limit PyTorch to one thread in this new Python thread, and in no other.

    torch.set_num_threads also sets what Python threads that have yet to use PyTorch will start with. Another
    thread, which needs PyTorch for nothing else, sets that back at once.
    """
    with LOCK:
        before = torch.get_num_threads()  # what new threads start with; a first use would undo the next line
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()


# The threads of small calls, for each process: they do not survive a fork.
crew = functools.cache(lambda process: ThreadPoolExecutor(os.cpu_count(), "student", one_thread))


def alone(function, *args):
    """function(*args) in a Python thread in which PyTorch uses one thread.

    On a busy machine, cores that wait for each other in every operation took 220 ms for one text. And the
    threads that OpenMP gave to another Python thread are gone after a fork: it would wait for them forever.
    """
    # Executors end with the main thread; a thread that outlives it works by itself.
    if torch.get_num_threads() == 1 or not threading.main_thread().is_alive():
        return function(*args)
    return crew(os.getpid()).submit(function, *args).result()


def check_libraries() -> None:
    """LibraryError if one is older than requirements.txt says: older PyTorch lets a file run code."""
    for library, oldest in ((torch, "2.10"), (tokenizers, "0.20")):
        numbers = [[int(number) for number in re.findall(r"\d+", version)[:2]]
                   for version in (library.__version__, oldest)]
        if numbers[0] < numbers[1]:
            raise LibraryError(f"student.py needs {library.__name__} {oldest} or newer; this is "
                               f"{library.__version__}: pip install -U {library.__name__}")


def checked(texts, name: str) -> list[str]:
    """`texts` as a list; TypeError or ValueError names the row of what is not a text."""
    if isinstance(texts, str):
        raise TypeError("predict takes a list of texts, not one string")
    texts = list(texts)
    try:
        for i in range(0, len(texts), PART):  # 0.01 µs per text
            "".join(texts[i : i + PART]).encode()
    except (TypeError, UnicodeError):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"{name}[{row}] is of type {type(text).__name__}, not a text") from None
            if text.encode(errors="ignore").decode() != text:
                raise ValueError(f"{name}[{row}] has a lone surrogate; the text was decoded "
                                 f"incorrectly") from None
    return texts


class Student(nn.Module):
    """Embedding, BiLSTM, pooling and head, with the tokenizer, the label names and the task."""

    def __init__(self, config: StudentConfig, tokenizer: Tokenizer, label_names: list[str],
                 task: str = "classification"):
        super().__init__()
        tokens = tokenizer.get_vocab_size()
        last = max([*tokenizer.get_vocab().values(), *tokenizer.encode("가", "\U0010ffff").ids])
        if tokens != config.vocab_size or last >= config.vocab_size:
            raise StudentError(f"the tokenizer has {tokens} tokens, with ids up to {last}, the model has "
                               f"{config.vocab_size} tokens; they do not belong together")
        if len(label_names) != config.num_labels or not all(isinstance(name, str) for name in label_names):
            raise StudentError(f"{len(label_names)} label names for {config.num_labels} outputs")
        self.config, self.tokenizer, self.label_names, self.task = config, tokenizer, [*label_names], task
        E, H, C = config.embedding_dim, config.hidden_dim, config.num_labels
        table = torch.empty(config.vocab_size, E)
        if not table.is_meta:  # there normal_ would import much of PyTorch: 1 s of the 2 to load a student
            nn.init.normal_(table)[config.pad_id] = 0
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=config.pad_id)
        self.layers = nn.ModuleList(BiLSTMLayer(2 * H if i else E, H) for i in range(config.num_layers))
        self.attention = nn.Linear(2 * H, 1, bias=False) if config.pooling == "attention" else None
        if config.pair == "align":
            self.common = nn.Linear(1, E, bias=False)  # marks a token that is in both texts
            self.projection, self.composition = nn.Linear(8 * H, H), BiLSTMLayer(H, H)
        F = 8 * H if config.pair else 2 * H  # what the head sees
        if config.head == "relu":  # as in the paper
            self.head = nn.Sequential(nn.Linear(F, H), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(H, C))
        else:
            self.head = nn.Linear(F, C)
        self.dropout = nn.Dropout(config.dropout)
        self.pairs = config.pair is not None  # whether it reads pairs; None: an old file, which does not tell

    @property
    def reads(self) -> dict:
        """How data.batches.encode has to encode texts for this model."""
        return {"max_length": self.config.max_length, "pad_id": self.config.pad_id,
                "blank_id": self.config.blank_id, "segments": False, "apart": self.pairs}

    def forward(self, input_ids, lengths=None, input_ids2=None, lengths2=None):
        """input_ids (B, T), lengths (B,) of at least 1, or None if no row is padded -> logits (B, C).

        input_ids2 (B, T2) and lengths2 (B,) are those of the second texts of pairs.
        """
        if self.config.pair is None:
            return self.answer(self.vector(input_ids, lengths))
        if self.config.pair == "siamese":
            return self.compare(self.vector(input_ids, lengths), self.vector(input_ids2, lengths2))
        common, common2 = in_common(input_ids, lengths, input_ids2, lengths2)
        a, *places = self.states(input_ids, lengths, common)
        b, *places2 = self.states(input_ids2, lengths2, common2)
        a2, b2 = align(a, places[-1], b, places2[-1])
        return self.answer(torch.cat([self.compose(a, a2, *places), self.compose(b, b2, *places2)], 1))

    def answer(self, features):
        """What the head sees (B, F) -> logits (B, C); of scores in their own units."""
        logits = self.head(self.dropout(features))
        if self.config.deviation is None:
            return logits
        return logits.float() * self.config.deviation + self.config.mean  # bf16 has few digits

    def compare(self, u, v):
        """Vectors (B, 2H) of first and of second texts, as embed gives them -> logits (B, C)."""
        if self.config.pair != "siamese" or not u.shape == v.shape == (len(u), 2 * self.config.hidden_dim):
            raise StudentError("compare takes two tensors of vectors that embed of this siamese student gave")
        return self.answer(torch.cat([u, v, (u - v).abs(), u * v], 1))

    def read(self, input_ids, lengths, common=None):
        """-> states (T, B, H) of both directions as BiLSTMLayer gives them, and where things are: the last
        token (1, B or 1), mirror, padding (T, B or 1, 1). common (B, T): as of in_common, or None."""
        # Time first, as LSTM kernels have it; batch first would copy every input and output.
        steps = torch.arange(input_ids.size(1), device=input_ids.device)[:, None]  # (T, 1)
        last = steps[-1:] if lengths is None else (lengths - 1)[None]  # (1, B or 1)
        mirror = None if lengths is None else torch.where(steps <= last, last - steps, steps)  # (T, B)
        x = self.embedding(input_ids.T)  # (T, B, E)
        if common is not None:
            x = x + self.common(common.T[..., None].to(x.dtype))
        for layer in self.layers[:-1]:
            x = in_order(*layer(self.dropout(x), mirror), mirror)
        return *self.layers[-1](self.dropout(x), mirror), last, mirror, (steps > last)[..., None]

    def states(self, input_ids, lengths, common):
        """-> states (T, B, 2H), mirror, padding."""
        ahead, behind, _, mirror, padding = self.read(input_ids, lengths, common)
        return in_order(ahead, behind, mirror), mirror, padding

    def vector(self, input_ids, lengths=None):
        """A text as one vector: (B, 2H)."""
        ahead, behind, last, mirror, padding = self.read(input_ids, lengths)
        if self.config.pooling != "last":
            return self.pool(in_order(ahead, behind, mirror), padding, self.config.pooling)
        if lengths is None:  # each direction has read the whole text at its end
            return torch.cat([ahead[-1], behind[-1]], 1)
        return torch.cat([take(ahead, last), take(behind, last)], 2)[0]

    def compose(self, x, aligned, mirror, padding):
        """States (T, B, 2H) and what stands for each of them in the other text -> (B, 4H)."""
        x = self.projection(torch.cat([x, aligned, x - aligned, x * aligned], 2)).relu()  # (T, B, H)
        x = in_order(*self.composition(self.dropout(x), mirror), mirror)  # (T, B, 2H)
        return torch.cat([self.pool(x, padding, "mean"), self.pool(x, padding, "max")], 1)

    def pool(self, states, padding, pooling: str):
        """states (T, B, 2H), padding (T, B or 1, 1) -> (B, 2H)."""
        if pooling == "max":
            return states.masked_fill(padding, -torch.inf).amax(0)
        if pooling == "mean":
            return states.masked_fill(padding, 0).sum(0) / (~padding).sum(0)
        # Attention as in Zhou et al. (2016), eq. 9-11: softmax(wᵀ tanh(h_t)) weighs the states.
        scores = self.attention(states.tanh()).masked_fill(padding, -torch.inf)  # (T, B, 1)
        return (scores.softmax(0) * states).sum(0)

    def predict(self, texts: list[str], texts2: list[str] | None = None, max_tokens: int = 8192,
                precision: str = "fp32") -> torch.Tensor:
        """Probabilities (N, C) on the CPU, float32, of `texts` in order; of a student of pairs texts2 has the
        second texts. Of a student of scores, these (N, 1).

        Rows run in batches of similar length, at most max_tokens tokens each; on the CPU in as many threads
        as PyTorch is set to, fewer than SHARE texts per thread in one. Precision "bf16" suits processors that
        have it: Base is then about 1.4 times as fast, its probabilities differ by 0.0004 on average.
        """
        return self._predict(texts, texts2, max_tokens, precision,
                             functools.partial(probabilities, task=self.task))

    def logits(self, texts: list[str], texts2: list[str] | None = None, max_tokens: int = 8192,
               precision: str = "fp32") -> torch.Tensor:
        """Logits (N, C), divided by the temperature, of which predict gives the probabilities."""
        return self._predict(texts, texts2, max_tokens, precision, lambda logits: logits)

    def answers(self, texts: list[str], texts2: list[str] | None = None, max_tokens: int = 8192,
                precision: str = "fp32") -> list:
        """Of each text, or pair: its label, a string; its labels, a list of them; or its score, a float."""
        found = self.predict(texts, texts2, max_tokens, precision)
        return chosen(found, self.label_names, self.task, self.config.thresholds)

    def embed(self, texts: list[str], max_tokens: int = 8192, precision: str = "fp32") -> torch.Tensor:
        """Vectors (N, 2H) of single texts, float32 on the CPU, by a siamese student (else a StudentError).
        compare() makes the logits of pairs of them, before they are divided by the temperature."""
        if self.config.pair != "siamese":
            raise StudentError("only a siamese student has vectors of texts; train one: "
                               "distill.py --pair siamese")
        return self._run([checked(texts, "texts")], max_tokens, precision, self.vector,
                         2 * self.config.hidden_dim, lambda vectors: vectors)

    def _predict(self, texts, texts2, max_tokens: int, precision: str, finish) -> torch.Tensor:
        """finish(logits (B, C) of a batch) of all rows."""
        columns = [checked(texts, "texts")]
        if texts2 is not None:
            columns.append(checked(texts2, "texts2"))
            if len(columns[0]) != len(columns[1]):
                raise ValueError(f"texts has {len(columns[0])} rows, texts2 has {len(columns[1])}")
        if self.pairs not in (None, texts2 is not None):
            raise StudentError("this student reads pairs of texts; texts2 is missing" if self.pairs else
                               "this student reads single texts, not pairs; leave out texts2, in a file the "
                               "column text2")
        if texts2 is not None and self.config.pair is None:
            columns = [list(zip(*columns, strict=True))]  # the tokenizer joins them
        return self._run(columns, max_tokens, precision, self, len(self.label_names),
                         lambda logits: finish(logits / self.config.temperature))

    def _run(self, columns: list, max_tokens: int, precision: str, network, width: int, finish):
        """finish(network(…) (B, width), in float32 on the CPU) of all rows: (N, width). Of each text of a row
        `columns` has a list, and the network takes input_ids and lengths."""
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {precision!r}, must be fp32 or bf16")
        cut = {"max_length": self.config.max_length, "stride": 0, "strategy": "longest_first",
               "direction": "right"}
        with LOCK:  # setting what is set already would fail while another thread tokenizes
            if self.tokenizer.padding is not None:
                self.tokenizer.no_padding()
            if self.tokenizer.truncation != cut:
                self.tokenizer.enable_truncation(self.config.max_length)
        if was_training := self.training:  # eval() and train() visit every module: not for one text
            self.eval()
        threads = torch.get_num_threads()
        result = torch.empty(len(columns[0]), width)
        fill = functools.partial(self._fill, result, columns, max_tokens, precision, network, finish)
        if not self.embedding.weight.is_cpu:
            fill(map)
        elif threads == 1 or len(result) < SHARE * threads or not threading.main_thread().is_alive():
            alone(fill, map)
        else:  # batches side by side are 1.3 times as fast as one after the other on all cores
            with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
                fill(pool.map)
        if was_training:
            self.train()
        return result

    def _fill(self, result, columns: list, max_tokens: int, precision: str, network, finish, each) -> None:
        """Write what _run returns to `result`; `each` is map or does what map does."""
        device, blank = self.embedding.weight.device, [self.config.blank_id]

        def encode(part):  # texts as bytes, 4 per token: padded and joined at the speed of a copy
            encodings = self.tokenizer.encode_batch_fast(part)
            return [array("i", encoding.ids or blank).tobytes() for encoding in encodings]

        def padded(texts):  # -> input_ids (B, T), lengths (B,) or None; padding is token 0, any would do
            sizes = list(map(len, texts))
            longest = max(sizes)
            joined = bytearray().join([text.ljust(longest, b"\0") for text in texts])
            input_ids = torch.frombuffer(joined, dtype=torch.int32).view(len(texts), -1).to(device)
            if min(sizes) == longest:
                return input_ids, None
            return input_ids, torch.tensor([size // 4 for size in sizes], device=device)

        @torch.inference_mode()
        def classify(batch):  # row numbers
            inputs = itertools.chain.from_iterable(padded([texts[i] for i in batch]) for texts in ids)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = network(*inputs)
            answers = finish(output.float().cpu())
            found[batch if len(batch) > 1 else batch[0]] = answers  # a list as index takes 6 µs more

        for chunk in range(0, len(result), CHUNK):
            found, end = result[chunk : chunk + CHUNK], min(chunk + CHUNK, len(result))
            parts = [[column[i : min(i + PART, end)] for i in range(chunk, end, PART)] for column in columns]
            ids = [list(itertools.chain.from_iterable(each(encode, part))) for part in parts]
            sizes = [len(ids) * max(map(len, texts)) for texts in zip(*ids, strict=True)]  # padding counted
            order = sorted(range(len(found)), key=lambda i: -sizes[i])
            batches, start = [], 0
            while start < len(order):
                batches.append(order[start : start + max(1, 4 * max_tokens // sizes[order[start]])])
                start += len(batches[-1])
            list(each(classify, batches))

    def save(self, path, precision: str = "float32", **extra) -> None:
        """Write student.pt; `extra` are plain values such as scores. Raises StudentError."""
        write_whole(path, self.to_bytes(precision, **extra))

    def to_bytes(self, precision: str = "float32", **extra) -> bytes:
        """The content of student.pt. A file of any precision is loaded and used in the same way: float16
        halves the weights; int8 stores matrices in a quarter of the bytes, vectors in float16."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, must be one of {PRECISIONS}")
        weights, scales = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}, {}
        for name, tensor in weights.items():
            if precision == "int8" and tensor.dim() == 2:
                weights[name], scales[name] = to_int8(tensor)
            elif precision != "float32":
                weights[name] = tensor.half()
        if not all(tensor.isfinite().all() for tensor in [*weights.values(), *scales.values()]):
            raise StudentError(f"weights exceed the range of {precision}; nothing was written")
        packed = torch.frombuffer(bytearray(pack_tokenizer(self.tokenizer)), dtype=torch.uint8)
        config = {name: value for name, value in asdict(self.config).items() if value is not None}
        torch.save({"kind": "student", "format": FORMAT if self.config.pair else 2, "config": config,
                    "precision": precision, "weights": weights, "scales": scales, "tokenizer": packed,
                    "label_names": self.label_names, "task": self.task, "pairs": self.pairs, **extra},
                   content := io.BytesIO())
        return content.getvalue()

    @classmethod
    def load(cls, source=SHIPPED, device="cpu") -> "Student":
        """Read student.pt, from a path, bytes or a binary file object: tensors and plain values only, never
        code. Raises StudentError.

        Checksums are checked, which torch.load does not do, and nothing in the file can claim more memory
        than its weights in float32 and as many tokens (UNPACKED) take.
        """
        check_libraries()
        return alone(cls._load, source).to(device).eval()

    @classmethod
    def from_hub(cls, repo: str, revision: str | None = None, device="cpu") -> "Student":
        """Read student.pt of the repository "user/name" on the Hugging Face hub; offline, from its cache.

        revision: a branch, tag or commit. Its bytes must have the hash that the hub states. Uses
        huggingface_hub, which tokenizers requires. Raises StudentError.
        """
        try:
            from huggingface_hub import hf_hub_download

            path = hf_hub_download(repo, "student.pt", revision=revision)
        except Exception as error:  # its classes, and those of its HTTP library, vary by version
            kind = type(error).__name__
            reason = NOT_FROM_HUB.get(kind) or f"{kind}: {' '.join(str(error).split())[:200]}"
            at = f" at revision {revision}" if revision else ""
            raise StudentError(f"{repo}: cannot read student.pt{at} from the hub ({reason})") from None
        content, stated = Path(path).read_bytes(), os.path.basename(os.path.realpath(path))
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        # The cache calls a file by the hub's hash, git's SHA-1 or SHA-256, and never checks it.
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stated) \
                and stated not in (git, hashlib.sha256(content).hexdigest()):
            raise StudentError(f"{path}: damaged (its hash is not what the hub states); delete "
                               f"{os.path.realpath(path)} and run again")
        return cls.load(path, device)

    @classmethod
    def _load(cls, source) -> "Student":
        stored, name = isinstance(source, (str, os.PathLike)), getattr(source, "name", None) or "<bytes>"
        path = source if stored else name
        try:
            content = source.read() if hasattr(source, "read") else source  # it may only read forward
            with open(source, "rb") if stored else io.BytesIO(content) as file:
                check_archive(file)
                size = file.seek(0, 2)
                file.seek(0)
                artifact = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise StudentError(f"{path}: cannot read ({error.strerror or error})") from None
        except Exception as error:  # a corrupt file raises nearly anything: pickle, zip, unicode, key errors
            # Without PyTorch's advice to load it unsafely, which comes first.
            reason = re.sub(r"(?s)^Weights only load failed.*?(Unsupported|Trying)", r"\1", str(error))
            reason = (reason.strip().splitlines() or [type(error).__name__])[0][:200]
            raise StudentError(f"{path}: not a .pt file that can be loaded safely ({reason})") from None
        found = {"task": "classification", **artifact} if isinstance(artifact, dict) else {}
        kind, number, task = (value if type(value := found.get(key)) in (str, int) else "unknown"
                              for key in ("kind", "format", "task"))
        if kind != "student" or number not in range(1, FORMAT + 1) or task not in PROBABILITIES:
            kind, number, task = map(reprlib.repr, (kind, number, task))
            raise StudentError(f"{path}: holds {kind} of format {number} for {task}; this student.py reads a "
                               f"student of format 1 to {FORMAT} for {', '.join(PROBABILITIES)}")
        try:
            config, weights = StudentConfig(**artifact["config"]), dict(artifact["weights"])
            scales, packed = artifact.get("scales", {}), artifact["tokenizer"]
            tensors = [packed, *weights.values(), *scales.values()]
            if config.num_layers > len(weights) \
                    or any(value.nbytes > value.untyped_storage().nbytes() for value in tensors) \
                    or sum(value.nbytes for value in tensors) > size \
                    or weights["embedding.weight"].shape != (config.vocab_size, config.embedding_dim):
                raise StudentError("its config or weights claim more than the file holds")
            for name, value in weights.items():
                scale = scales.get(name)
                if scale is None and value.dtype in (torch.float32, torch.float16):
                    weights[name] = value.float()
                elif scale is not None and value.dtype == torch.int8 and value.dim() == 2 \
                        and scale.dtype == torch.float16 and scale.shape == (len(value), 1):
                    weights[name] = value.float() * scale.float()
                else:
                    raise StudentError(f"{name} has the type {value.dtype}, or scales that do not fit it")
            if not all(value.isfinite().all() for value in weights.values()):
                raise StudentError("its weights are not finite")
            tokenizer = unpack_tokenizer(bytes(packed.tolist()), config.vocab_size)
            with torch.device("meta"):  # shapes alone: no config claims memory that the weights do not fill
                student = cls(config, tokenizer, artifact["label_names"], task)
            student.load_state_dict(weights, assign=True)
        except LibraryError as error:
            raise LibraryError(f"{path}: {' '.join(str(error).split())}") from None
        except Exception as error:  # the tokenizers library raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise StudentError(f"{path}: damaged ({reason}); copy it again or train it again") from None
        if artifact.get("pairs") is None and config.pair is None:
            student.pairs = None
        student.artifact = {key: value for key, value in artifact.items()
                            if key not in ("weights", "scales", "tokenizer")}
        return student


def incoming(stream):
    """The lines of a binary stream, in lists: those that are there without waiting, 8,192 or a few more."""
    rest, lines, number = b"", [], 1
    while True:
        piece = stream.read1(2**20)  # waits for the first byte only
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        lines += (whole + newline if piece else rest).splitlines()
        # A pause of 10 ms ends a list of several lines; a line by itself is answered at once.
        if piece and len(lines) < 8192 and (not lines or is_ready(stream, 0.01 if len(lines) > 1 else 0)):
            continue
        if number == 1 and lines:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # a BOM
        texts = []
        try:
            for line in lines:
                texts.append(line.decode())
        except UnicodeError as error:
            yield texts
            raise StudentError(f"line {number + len(texts)} of standard input is not UTF-8 ({error.reason}); "
                               f"convert it, for example from CP949") from None
        yield texts
        if not piece:
            return
        lines, number = [], number + len(texts)


def is_ready(stream, seconds: float) -> bool:
    """Whether more can be read, now or within this time. Windows does not tell."""
    with suppress(OSError, ValueError):
        return bool(select.select([stream], [], [], seconds)[0])
    return False


def in_pairs(lists):
    """Lists of lines, as of incoming -> [texts, texts2] of each. Of a line that is no pair the StudentError
    comes after the pairs before it."""
    number = 1
    for lines in lists:
        rows = [line.split("\t") for line in lines]
        wrong = next((i for i, row in enumerate(rows) if len(row) != 2), len(rows))
        yield [[row[i] for row in rows[:wrong]] for i in (0, 1)]
        if wrong < len(rows):
            raise StudentError(f"line {number + wrong} of standard input has {len(rows[wrong]) - 1} tabs; "
                               f"this student reads pairs: two texts per line, one tab between them")
        number += len(rows)


def one_field(text: str) -> str:
    """Without tabs and line breaks of any kind."""
    return " ".join(text.replace("\t", " ").splitlines())


def main(args):
    if args.student is None and not SHIPPED.exists():
        raise StudentError(f"{SHIPPED} does not exist; name a STUDENT.pt before the texts")
    student = Student.load(args.student or SHIPPED)
    names = [one_field(name) for name in student.label_names]
    "".join(args.text).encode()  # UnicodeError: an argument was not UTF-8
    sys.stdout.reconfigure(encoding="utf-8")
    if not args.text:
        if sys.stdin is None:
            raise StudentError("standard input is closed; give texts as arguments")
        if sys.stdin.isatty():
            end = "Ctrl-Z and Enter end" if os.name == "nt" else "Ctrl-D ends"
            row = "two texts per line, a tab between them" if student.pairs else "one text per line"
            print(f"{row}; {end} the input", file=sys.stderr)
    if not args.text:
        lists = incoming(sys.stdin.buffer)
        lists = in_pairs(lists) if student.pairs else ([texts] for texts in lists)
    elif student.pairs and len(args.text) % 2:
        raise StudentError(f"this student reads pairs: give an even number of texts, not {len(args.text)}")
    else:
        lists = [[args.text[0::2], args.text[1::2]] if student.pairs else [args.text]]
    for columns in lists:
        answers = decode(student.predict(*columns), names, student.task, student.config.thresholds)
        for *row, (answer, confidence) in zip(*columns, answers, strict=True):
            sure = [] if confidence is None else [f"{confidence:.4f}"]
            print(answer, *sure, *map(one_field, row), sep="\t")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(ARGS)
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (StudentError, OSError, UnicodeError) as error:
        reason = f"a text is not UTF-8 ({error.reason}); convert it, for example from CP949" \
            if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
