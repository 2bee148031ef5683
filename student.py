"""The BiLSTM student: its sizes, the network, save and load, predict. Needs torch and tokenizers alone.

    python student.py "이 영화 진짜 재밌다" "돈이 아깝다"                               # with models/base.pt
    python student.py students/base/student.pt "이 영화 진짜 재밌다"
    python student.py students/base/student.pt < reviews.txt > predictions.tsv      # one text a line
    python student.py students/base/student.pt --export-onnx base.onnx

    from student import Student
    student = Student.load("student.pt")          # the file holds tokenizer, labels and hyperparameters too
    student.predict(["이 영화 진짜 재밌다"])         # (N, C) probabilities, columns as student.label_names

Copy this file and a student.pt into an application: nothing else of the kit is needed.
The network is the single-layer BiLSTM of Tang et al. (2019, arXiv 1903.12136) with learnt subword embeddings.
Shapes: B batch, T tokens, E embedding, H hidden, C classes.
"""

import argparse
import os


def parse_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("student", nargs="?", metavar="STUDENT.pt", help="default: models/base.pt beside me")
    p.add_argument("text", nargs="*", help="texts; without any, one text a line is read from standard input")
    p.add_argument("--export-onnx", metavar="FILE", help="write FILE, and FILE.tokenizer.json beside it")
    args = p.parse_intermixed_args(argv)
    if args.student is not None and not args.student.endswith(".pt"):
        if os.path.exists(args.student):
            p.error(f"{args.student} is no text and no STUDENT.pt; files of texts go to standard input")
        args.text.insert(0, args.student)
        args.student = None
    if args.export_onnx and args.text:
        p.error("--export-onnx takes no texts")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before torch is imported: --help and a wrong flag answer at once

import itertools
import json
import math
import pickletools
import re
import reprlib
import sys
import zipfile
import zlib
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

FORMAT = 2  # format 1 had neither precisions nor a temperature, and a tokenizer's plain JSON
# name: (embedding_dim, hidden_dim); 1,175,554 / 391,170 / 146,434 / 52,418 / 27,394 parameters
# at a vocabulary of 3,000 and two classes.
SIZES = {"large": (128, 256), "base": (64, 128), "small": (32, 64), "mini": (16, 16), "tiny": (8, 16)}
POOLINGS = ("last", "max", "mean", "attention")
HEADS = ("linear", "relu")
PRECISIONS = ("float32", "float16", "int8")  # of the weights in a file; in memory they are float32
SHIPPED = Path(__file__).with_name("models") / "base.pt"
CHUNK = 65_536  # texts whose token ids predict holds at a time
PART = 1024  # texts that a thread tokenizes at a time
UNPACKED = 2**20, 256  # bytes that a tokenizer's JSON may have, and for each token
SHARE = 256  # texts for each thread that make it worth starting threads
# What a file of plain values names; torch.load also lets pass bytearray(10**11) and the like.
PLAIN = re.compile(r"torch \w+Storage|collections OrderedDict|"
                   r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)")


class StudentError(ValueError):
    """A student.pt, or settings for one, that cannot be used; the text is one line that says why."""


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
    max_length: int = 128  # tokens; a longer text is cut
    pad_id: int = 0
    blank_id: int = 0  # stands for a text without any token
    temperature: float = 1.0  # predict divides logits by it, so that probabilities are those to be relied on

    def __post_init__(self):
        for name in ("vocab_size", "num_labels", "embedding_dim", "hidden_dim", "num_layers", "max_length"):
            most = 100 if name == "num_layers" else 2**24
            if type(getattr(self, name)) is not int or not 1 <= getattr(self, name) <= most:
                raise StudentError(f"{name} is {reprlib.repr(getattr(self, name))}, must be a whole number "
                                   f"in [1, {most}]")
        for name in ("pad_id", "blank_id"):
            if type(getattr(self, name)) is not int or not 0 <= getattr(self, name) < self.vocab_size:
                raise StudentError(f"{name} is {reprlib.repr(getattr(self, name))}, must be in "
                                   f"[0, {self.vocab_size})")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise StudentError(f"dropout is {reprlib.repr(self.dropout)}, must be in [0, 1)")
        if not isinstance(self.temperature, (int, float)) or not 1e-3 <= self.temperature <= 1e3:
            raise StudentError(f"temperature is {reprlib.repr(self.temperature)}, must be in [0.001, 1000]")
        if self.pooling not in POOLINGS or self.head not in HEADS:
            raise StudentError(f"pooling {reprlib.repr(self.pooling)} must be one of {POOLINGS}, "
                               f"head {reprlib.repr(self.head)} of {HEADS}")


class BiLSTMLayer(nn.Module):
    """One bidirectional layer whose result padding cannot reach.

    The backward direction is a forward LSTM over each sequence reversed within its own length. Then padding
    stands after the tokens for both directions, and no state at a token has seen any. On the CPU this is 2
    to 4 times faster than nn.LSTM over packed sequences, which is the other exact way.
    """

    def __init__(self, input_dim: int, hidden_dim: int):
        super().__init__()
        self.ahead = nn.LSTM(input_dim, hidden_dim)
        self.behind = nn.LSTM(input_dim, hidden_dim)

    def forward(self, x, mirror):
        """x (T, B, E), mirror (T, B) or None as for take -> states of both directions, (T, B, H) each.

        The backward direction's states are in its own order: position 0 is the last token.
        """
        return lstm_states(self.ahead, x), lstm_states(self.behind, take(x, mirror))


def lstm_states(lstm, x):
    """x (T, B, E) -> (T, B, H). nn.LSTM's forward without its checks, a tenth of one text's time."""
    weights, exact = lstm.all_weights[0], nullcontext()
    if not x.is_cpu and not x.is_meta:  # under autocast to bf16 cuDNN's is float16: small gradients vanish
        x, exact = x.to(weights[0].dtype), torch.autocast(x.device.type, enabled=False)
    zeros = x.new_zeros(1, x.size(1), lstm.hidden_size)  # (1, B, H)
    with exact:
        return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, lstm.training, False, False)[0]


def take(x, positions):
    """x (T, B, D) at positions (P, B) -> (P, B, D); without positions, x reversed.

    Whole rows by index_select: gather, element by element, takes 3 to 9 times as long.
    """
    if positions is None:
        return x.flip(0)
    _, B, D = x.shape
    rows = positions * B + torch.arange(B, device=x.device)  # (P, B)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(-1, B, D)


@contextmanager
def workers(threads: int):
    """A map that runs in `threads` threads, each on one core; plain map for one.

    Whole batches side by side are 1.3 times as fast as one batch at a time on all cores, which then wait for
    each other in every operation.
    """
    if threads == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # some of the setting is the thread's, some the process's


def largest_id(tokenizer) -> int:
    """The largest token id that a tokenizer gives, special tokens included. StudentError if it gives none."""
    try:
        return max([*tokenizer.get_vocab().values(), *tokenizer.encode("가", "\U0010ffff").ids])
    except Exception as error:  # the tokenizers library's, such as: its own unknown token is missing
        raise StudentError(f"the tokenizer cannot be used ({error})") from None


def to_int8(matrix):
    """(R, D) -> int8 (R, D) and float16 (R, 1): every row in whole multiples of its 127th part."""
    scales = (matrix.abs().amax(1, keepdim=True) / 127).half()
    steps = matrix / scales.float().clamp(min=2**-24)  # float16's smallest; a row below it is nought
    return steps.round().clamp(-127, 127).to(torch.int8), scales


def pack_tokenizer(tokenizer) -> bytes:
    """Compressed JSON without what follows from the rest: ids, and both sides of BPE's merges.

    Raises StudentError where it would be more than UNPACKED.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if isinstance(model.get("vocab"), dict):
        pieces = sorted(model["vocab"], key=model["vocab"].get)
        merges = model.get("merges", [])
        merged = pieces[len(pieces) - len(merges) :]
        if [model["vocab"][piece] for piece in pieces] == list(range(len(pieces))) \
                and ["".join(merge) for merge in merges] == merged:
            model["vocab"] = pieces
            if merges:
                model["merges"] = [len(left) for left, _ in merges]
    text = json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > UNPACKED[0] + UNPACKED[1] * tokenizer.get_vocab_size():
        raise StudentError(f"the tokenizer has {len(text):,} bytes of JSON, more than {UNPACKED[0]:,} and "
                           f"{UNPACKED[1]} for each token")
    return zlib.compress(text, 9)


def unpack_tokenizer(packed: bytes, tokens: int) -> Tokenizer:
    """The tokenizer of so many tokens that pack_tokenizer packed."""
    most = UNPACKED[0] + UNPACKED[1] * tokens
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(packed, most)
    if not unpacking.eof:
        raise StudentError(f"its tokenizer is cut, or unpacks to more than {most:,} bytes")
    state = json.loads(text)
    state["padding"] = state["truncation"] = None  # predict sets its own
    model = state["model"]
    if model["type"] != "Unigram" and isinstance(model["vocab"], list):
        pieces, lefts = model["vocab"], model.get("merges", [])
        model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
        if lefts:
            merged = pieces[len(pieces) - len(lefts) :]
            model["merges"] = [(piece[:n], piece[n:]) for piece, n in zip(merged, lefts, strict=True)]
    return Tokenizer.from_str(json.dumps(state, ensure_ascii=False))


def write_whole(path, write) -> None:
    """Have write(file) fill a temporary file beside `path`, then rename it. Raises StudentError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    if path.exists() and not path.is_file():  # a device would be replaced
        raise StudentError(f"{path}: is no file that could be replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__  # PyTorch's hides the system's
        reason = getattr(cause, "strerror", None) or str(error).strip().split("\n")[0][:200]
        raise StudentError(f"{path}: cannot write ({reason}); nothing was changed") from None
    finally:
        with suppress(OSError):  # such as: its folder could not be made
            partial.unlink(missing_ok=True)


# As in runtime.py: this file has to stand alone.
def check_archive(path) -> None:
    """A ValueError when the zip archive of a .pt file is packed, damaged, or names more than tensors.

    Its table of contents has to end where the file does: elsewhere, torch.load might read another one.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(size - 98, 0))
        tail = file.read().rjust(98)  # zip64's end record (56 bytes), where that is (20), the end record (22)
    zip64 = tail[56:60] == b"PK\6\7"
    end = size - (98 if zip64 else 22)
    where, start, length = (int.from_bytes(part, "little") for part in (
        (tail[64:72], tail[48:56], tail[40:48]) if zip64 else (b"", tail[92:96], tail[88:92])))
    if tail[76:80] != b"PK\5\6" or start + length != end or (zip64 and where != end):
        raise ValueError("damaged: its table of contents is not at its end")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) \
                or sum(member.file_size for member in members) > size:
            raise ValueError("the archive is packed")
        if any(member.is_dir() or member.external_attr & 16 for member in members):
            raise ValueError("damaged: has a folder")  # of one, torch.load takes what memory happens to hold
        if damaged := archive.testzip():
            raise ValueError(f"damaged: the checksum of {damaged} is wrong")
        for member in members:
            if member.filename.lower().endswith("data.pkl"):
                check_names(archive.read(member))


def check_names(pickle) -> None:
    """A ValueError when a pickle (bytes, or a file at its start) names more than PLAIN."""
    for opcode, name, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL" and not PLAIN.fullmatch(name):
            raise ValueError(f"Unsupported global: GLOBAL {'.'.join(name.split())}")


class Student(nn.Module):
    """Embedding, BiLSTM, pooling and head, with the tokenizer and the label names."""

    def __init__(self, config: StudentConfig, tokenizer: Tokenizer, label_names: list[str]):
        super().__init__()
        if tokenizer.get_vocab_size() != config.vocab_size:
            raise StudentError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model "
                               f"{config.vocab_size}; they do not belong together")
        if largest_id(tokenizer) >= config.vocab_size:
            raise StudentError(f"the tokenizer gives ids beyond the model's {config.vocab_size} tokens")
        if len(label_names) != config.num_labels or not all(isinstance(name, str) for name in label_names):
            raise StudentError(f"{len(label_names)} label names for {config.num_labels} classes")
        self.config, self.tokenizer, self.label_names = config, tokenizer, list(label_names)
        E, H, C = config.embedding_dim, config.hidden_dim, config.num_labels
        self.embedding = nn.Embedding(config.vocab_size, E, padding_idx=config.pad_id)
        self.layers = nn.ModuleList(BiLSTMLayer(2 * H if i else E, H) for i in range(config.num_layers))
        self.attention = nn.Linear(2 * H, 1, bias=False) if config.pooling == "attention" else None
        if config.head == "relu":  # the paper's
            self.head = nn.Sequential(nn.Linear(2 * H, H), nn.ReLU(), nn.Dropout(config.dropout),
                                      nn.Linear(H, C))
        else:
            self.head = nn.Linear(2 * H, C)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids, lengths=None):
        """input_ids (B, T), lengths (B,) of at least 1, or None if no row is padded -> logits (B, C)."""
        # Time first, as LSTM kernels have it; batch first would copy every input and output.
        steps = torch.arange(input_ids.size(1), device=input_ids.device)[:, None]  # (T, 1)
        last = steps[-1:] if lengths is None else (lengths - 1)[None]  # (1, B or 1)
        mirror = None if lengths is None else torch.where(steps <= last, last - steps, steps)  # (T, B)
        x = self.embedding(input_ids.T)  # (T, B, E)
        for layer in self.layers[:-1]:
            ahead, behind = layer(self.dropout(x), mirror)
            x = torch.cat([ahead, take(behind, mirror)], 2)  # (T, B, 2H)
        ahead, behind = self.layers[-1](self.dropout(x), mirror)  # (T, B, H) each
        if self.config.pooling != "last":
            pooled = self.pool(torch.cat([ahead, take(behind, mirror)], 2), (steps > last)[..., None])
        elif lengths is None:  # each direction after it has read the whole text
            pooled = torch.cat([ahead[-1], behind[-1]], 1)  # (B, 2H)
        else:
            pooled = torch.cat([take(ahead, last), take(behind, last)], 2)[0]
        return self.head(self.dropout(pooled))

    def pool(self, states, padding):
        """states (T, B, 2H), padding (T, B or 1, 1) -> (B, 2H)."""
        if self.config.pooling == "max":
            return states.masked_fill(padding, -torch.inf).amax(0)
        if self.config.pooling == "mean":
            return states.masked_fill(padding, 0).sum(0) / (~padding).sum(0)
        # Attention as in Zhou et al. (2016), eq. 9-11: softmax(wᵀ tanh(h_t)) weighs the states.
        scores = self.attention(states.tanh()).masked_fill(padding, -torch.inf)  # (T, B, 1)
        return (scores.softmax(0) * states).sum(0)

    # ---- use -----------------------------------------------------------------------------------------------

    def predict(self, texts: list[str], texts2: list[str] | None = None, max_tokens: int = 8192,
                precision: str = "fp32") -> torch.Tensor:
        """Probabilities (N, C) on the CPU, float32, of `texts` (of the pairs, if texts2 is given).

        Rows run in batches of like length, at most max_tokens tokens each, and come back in order; on the CPU
        in as many threads as PyTorch is set to. Precision "bf16" suits processors that have it: Base is then
        about 1.4 times as fast, its probabilities are off by 0.0004 on average. A GPU's LSTM stays float32.
        """
        if isinstance(texts, str) or isinstance(texts2, str):
            raise TypeError("predict takes a list of texts, not one string")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {precision!r}, must be fp32 or bf16")
        rows = list(texts) if texts2 is None else list(zip(texts, texts2, strict=True))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.config.max_length)
        was_training = self.training
        if was_training:  # eval() and train() visit every module: not for one text
            self.eval()
        threads = torch.get_num_threads() if self.embedding.weight.device.type == "cpu" else 1
        probabilities = torch.empty(len(rows), len(self.label_names))
        with workers(threads if len(rows) >= SHARE * threads else 1) as each:
            for start in range(0, len(rows), CHUNK):
                chunk = slice(start, start + CHUNK)
                self._predict_chunk(rows[chunk], max_tokens, precision, each, probabilities[chunk])
        if was_training:
            self.train()
        return probabilities

    def _predict_chunk(self, rows: list, max_tokens: int, precision: str, each, probabilities) -> None:
        """Fill `probabilities`; `each` is map or does what map does."""
        device, blank = self.embedding.weight.device, [self.config.blank_id]

        def encode(part):  # a row as bytes, 4 a token: padded and joined at the speed of a copy
            encodings = self.tokenizer.encode_batch_fast(part)
            return [array("i", encoding.ids or blank).tobytes() for encoding in encodings]

        @torch.inference_mode()
        def classify(batch):  # row numbers, the longest first; padding is token 0, any would do
            longest = len(ids[batch[0]])
            joined = bytearray().join([ids[i].ljust(longest, b"\0") for i in batch])
            input_ids = torch.frombuffer(joined, dtype=torch.int32).view(len(batch), -1).to(device)
            lengths = None
            if len(ids[batch[-1]]) < longest:
                lengths = torch.tensor([len(ids[i]) // 4 for i in batch], device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = self(input_ids, lengths)
            probabilities[batch] = (logits.float() / self.config.temperature).softmax(1).cpu()

        parts = [rows[i : i + PART] for i in range(0, len(rows), PART)]
        ids = list(itertools.chain.from_iterable(each(encode, parts)))
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batches, start = [], 0
        while start < len(order):
            batches.append(order[start : start + max(1, 4 * max_tokens // len(ids[order[start]]))])
            start += len(batches[-1])
        list(each(classify, batches))

    def save(self, path, precision: str = "float32", **extra) -> None:
        """Write student.pt (to a temporary file, then renamed); `extra` are plain values such as scores.

        Precision "float16" halves the weights. "int8" has matrices in a quarter, with a scale a row, and
        vectors in float16. The file is loaded and used like any other.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}, must be one of {PRECISIONS}")
        weights = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        scales = {}
        for name, tensor in weights.items():
            if precision == "int8" and tensor.dim() == 2:
                weights[name], scales[name] = to_int8(tensor)
            elif precision != "float32":
                weights[name] = tensor.half()
        if not all(tensor.isfinite().all() for tensor in [*weights.values(), *scales.values()]):
            raise StudentError(f"{path}: weights are beyond the range of {precision}; nothing was changed")
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        artifact = {
            "kind": "student", "format": FORMAT, "config": asdict(self.config), "precision": precision,
            "weights": weights, "scales": scales,
            "tokenizer": torch.frombuffer(bytearray(pack_tokenizer(self.tokenizer)), dtype=torch.uint8),
            "label_names": self.label_names, **extra,
        }
        write_whole(path, lambda file: torch.save(artifact, file))

    def export_onnx(self, path) -> None:
        """Write an ONNX graph: input_ids (B, T), lengths (B,), int64 -> probabilities (B, C), as predict's.

        The graph is written by hand: ONNX's LSTM takes lengths, and reads backwards within them. Beside it,
        PATH.tokenizer.json cuts and pads as the student needs it. Raises StudentError without package onnx.
        """
        try:
            from onnx import TensorProto, checker, helper, numpy_helper
        except ImportError:
            raise StudentError("ONNX needs one more package: pip install onnx") from None
        nodes, constants = [], []

        def constant(name, value):
            constants.append(numpy_helper.from_array(value.detach().cpu().numpy(), name))
            return name

        def node(kind, *inputs, out, **attributes):
            out = [out] if isinstance(out, str) else out
            nodes.append(helper.make_node(kind, list(inputs), out, **attributes))
            return out[0]

        def gates(*tensors):  # (4H, …) of both directions -> (2, 4H, …); PyTorch's i f g o as i o f g
            parts = [tensor.chunk(4) for tensor in tensors]
            return torch.stack([torch.cat([i, o, f, g]) for i, f, g, o in parts])

        node("Cast", "lengths", out="lengths32", to=TensorProto.INT32)
        node("Transpose", "input_ids", out="tokens", perm=[1, 0])  # (T, B)
        x = node("Gather", constant("table", self.embedding.weight), "tokens", out="embedded")  # (T, B, E)
        for i, layer in enumerate(self.layers):
            a, b = layer.ahead, layer.behind
            inputs = [constant(f"w{i}", gates(a.weight_ih_l0, b.weight_ih_l0)),
                      constant(f"r{i}", gates(a.weight_hh_l0, b.weight_hh_l0)),
                      constant(f"b{i}", torch.cat([gates(a.bias_ih_l0, b.bias_ih_l0),
                                                   gates(a.bias_hh_l0, b.bias_hh_l0)], 1))]
            node("LSTM", x, *inputs, "lengths32", out=[f"y{i}", f"h{i}"], direction="bidirectional",
                 hidden_size=self.config.hidden_dim)  # (T, 2, B, H) and (2, B, H)
            if i + 1 < len(self.layers) or self.config.pooling != "last":
                node("Transpose", f"y{i}", out=f"yt{i}", perm=[0, 2, 1, 3])
                shape = constant(f"shape{i}", torch.tensor([0, 0, -1]))
                x = node("Reshape", f"yt{i}", shape, out=f"x{i}")  # (T, B, 2H)
        if self.config.pooling == "last":
            node("Transpose", f"h{len(self.layers) - 1}", out="last", perm=[1, 0, 2])
            x = node("Reshape", "last", constant("flat", torch.tensor([0, -1])), out="pooled")  # (B, 2H)
        else:
            node("Shape", "tokens", out="T", start=0, end=1)
            node("Squeeze", "T", out="end")
            zero, one = constant("zero", torch.tensor(0)), constant("one", torch.tensor(1))
            node("Range", zero, "end", one, out="range")
            node("Unsqueeze", "range", constant("axes12", torch.tensor([1, 2])), out="steps")  # (T, 1, 1)
            node("Unsqueeze", "lengths", constant("axes02", torch.tensor([0, 2])), out="ends")  # (1, B, 1)
            node("Less", "steps", "ends", out="real")
            first = constant("first", torch.tensor([0]))
            if self.config.pooling == "max":
                node("Where", "real", x, constant("low", torch.tensor(-math.inf)), out="kept")
                x = node("ReduceMax", "kept", first, out="pooled", keepdims=0)
            else:
                if self.config.pooling == "mean":
                    node("Cast", "real", out="ones", to=TensorProto.FLOAT)
                    node("ReduceSum", "ones", first, out="count")  # (1, B, 1)
                    node("Div", "ones", "count", out="shares")
                else:
                    query = constant("query", self.attention.weight.T)
                    node("MatMul", node("Tanh", x, out="squashed"), query, out="scores")
                    node("Where", "real", "scores", constant("low", torch.tensor(-math.inf)), out="kept")
                    node("Softmax", "kept", out="shares", axis=0)
                node("Where", "real", x, constant("nought", torch.tensor(0.0)), out="tidy")
                node("Mul", "shares", "tidy", out="weighed")
                x = node("ReduceSum", "weighed", first, out="pooled", keepdims=0)
        for i, part in enumerate(self.head if self.config.head == "relu" else [self.head]):
            if isinstance(part, nn.Linear):
                weight, bias = constant(f"hw{i}", part.weight), constant(f"hb{i}", part.bias)
                x = node("Gemm", x, weight, bias, out=f"z{i}", transB=1)
            elif isinstance(part, nn.ReLU):
                x = node("Relu", x, out=f"z{i}")
        temperature = constant("temperature", torch.tensor(float(self.config.temperature)))
        node("Div", x, temperature, out="logits")
        node("Softmax", "logits", out="probabilities", axis=1)

        graph = helper.make_graph(
            nodes, "student",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"]),
             helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", len(self.label_names)])],
            constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        helper.set_model_props(model, {"label_names": json.dumps(self.label_names, ensure_ascii=False),
                                       "blank_id": str(self.config.blank_id)})
        checker.check_model(model, full_check=True)
        pad = self.config.pad_id
        self.tokenizer.enable_truncation(self.config.max_length)
        self.tokenizer.enable_padding(pad_id=pad, pad_token=self.tokenizer.id_to_token(pad))
        text = self.tokenizer.to_str(pretty=True)
        self.tokenizer.no_padding()
        write_whole(path, lambda file: file.write(model.SerializeToString()))
        write_whole(f"{path}.tokenizer.json", lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path=SHIPPED, device="cpu") -> "Student":
        """Read student.pt: tensors and plain values only, never code. Raises StudentError.

        The archive's sums are checked, which torch.load does not do, and nothing in it can claim more memory
        than its weights in float32 and as many tokens (UNPACKED).
        """
        try:
            check_archive(path)
            artifact = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise StudentError(f"{path}: cannot read ({error.strerror or error})") from None
        except Exception as error:  # a corrupt file raises nearly anything: pickle, zip, unicode, key errors
            # Without PyTorch's advice to load it unsafely, which comes first.
            reason = re.sub(r"(?s)^Weights only load failed.*?(Unsupported|Trying)", r"\1", str(error))
            reason = (reason.strip().splitlines() or [type(error).__name__])[0][:200]
            raise StudentError(f"{path}: not a .pt file that can be loaded safely ({reason})") from None
        kind = artifact.get("kind") if isinstance(artifact, dict) else None
        if not isinstance(kind, str) or kind != "student":
            plain = isinstance(kind, str) and kind.isprintable()
            found = kind if plain else "something that is not of this kit"
            raise StudentError(f"{path}: holds {found}, not a student")
        number = artifact.get("format")
        if number.__class__ is not int or not 1 <= number <= FORMAT:
            number = number if isinstance(number, int) else "unknown"
            raise StudentError(f"{path}: format {number}, this student.py reads 1 to {FORMAT}")
        try:
            config, weights = StudentConfig(**artifact["config"]), dict(artifact["weights"])
            scales, packed = artifact.get("scales", {}), artifact["tokenizer"]
            tensors = [packed, *weights.values(), *scales.values()]
            if config.num_layers > len(weights) or not all(
                    value.layout == torch.strided and value.device.type == "cpu"
                    and value.nbytes <= value.untyped_storage().nbytes() for value in tensors) \
                    or sum(value.nbytes for value in tensors) > os.path.getsize(path):
                raise StudentError("its config or weights claim more than the file holds")
            if weights["embedding.weight"].shape != (config.vocab_size, config.embedding_dim):
                raise StudentError("its embeddings are of another shape than its config")
            for name, value in weights.items():
                scale = scales.get(name)
                if value.dtype not in ((torch.float32, torch.float16) if scale is None else (torch.int8,)):
                    raise StudentError(f"{name} is {value.dtype}, "
                                       + ("without scales" if scale is None else "with scales"))
                if scale is not None and (scale.dtype != torch.float16 or value.dim() != 2
                                          or scale.shape != (len(value), 1)):
                    raise StudentError(f"{name} has scales of another type or shape")
                weights[name] = value.float() if scale is None else value.float() * scale.float()
            if not all(value.isfinite().all() for value in weights.values()):
                raise StudentError("its weights are not finite")
            if packed.dtype != torch.uint8:
                raise StudentError("its tokenizer is no bytes")
            tokenizer = unpack_tokenizer(packed.numpy().tobytes(), config.vocab_size)
            with torch.device("meta"):  # shapes alone: no config claims memory that the weights do not fill
                student = cls(config, tokenizer, artifact["label_names"])
            student.load_state_dict(weights, assign=True)
        except Exception as error:  # the tokenizers library raises bare Exception
            reason = " ".join(str(error).split())[:200]
            raise StudentError(f"{path}: damaged ({reason}); copy it again or train it anew") from None
        student.artifact = {key: value for key, value in artifact.items()
                            if key not in ("weights", "scales", "tokenizer")}
        return student.to(device).eval()


def main(args):
    if args.student is None and not SHIPPED.exists():
        raise StudentError(f"{SHIPPED} is not there; name a STUDENT.pt before the texts")
    student = Student.load(args.student or SHIPPED)
    if args.export_onnx:
        if os.path.exists(args.export_onnx) and os.path.samefile(args.export_onnx, args.student or SHIPPED):
            raise StudentError(f"--export-onnx {args.export_onnx}: is the student itself; name another file")
        student.export_onnx(args.export_onnx)
        print(f"{args.export_onnx}: {', '.join(student.label_names)}; "
              f"tokens by {args.export_onnx}.tokenizer.json")
        return
    if sys.stdin is None and not args.text:
        raise StudentError("standard input is closed; give texts as arguments")
    # UTF-8 whatever the locale; a BOM is no part of the first text.
    if sys.stdin is not None:
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    sys.stdout.reconfigure(encoding="utf-8")
    lines = iter(args.text) if args.text else (line.removesuffix("\n").removesuffix("\r")
                                               for line in sys.stdin)
    while texts := list(itertools.islice(lines, 8192)):
        probabilities, labels = student.predict(texts).max(1)
        for text, label, probability in zip(texts, labels.tolist(), probabilities.tolist(), strict=True):
            print(f"{student.label_names[label]}\t{probability:.4f}\t{' '.join(text.splitlines())}")


if __name__ == "__main__":
    try:
        main(ARGS)
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (StudentError, OSError) as error:
        print(f"error: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(2)
    except (UnicodeError, TypeError) as error:  # TypeError: the tokenizer's, for half of a surrogate pair
        if isinstance(error, TypeError) and not any("\ud800" <= c <= "\udfff" for c in "".join(ARGS.text)):
            raise
        reason = getattr(error, "reason", "surrogates not allowed")
        print(f"error: a text is not UTF-8 ({reason}); convert it, for example from CP949", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
