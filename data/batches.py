"""Encode texts once into one flat tensor, then draw batches by row index, grouped by length.

No DataLoader and no per-example Python: a batch is `encoded.batch(rows)`, a gather on the device. Rows beyond
what memory should hold stay in scratch files and come a window at a time (`Store`).
Shapes: N rows, S tokens in all, B rows of a batch, T tokens of its longest row.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from runtime import RANK, WORLD, UserError, autocast, sum_over_ranks

CHUNK = 8192  # texts handed to the tokenizer's threads at a time
POOL = 50  # batches' worth of rows among which lengths are sorted: less padding, order still random
WINDOW = 2**24  # tokens that a Store holds in memory: 67 MB, about 800 thousand reviews


@dataclass
class Encoded:
    """Token ids of N rows, and what else belongs to a row. Row i is tokens[offsets[i] : offsets[i + 1]].

    Of pairs that are read apart, lengths are (N, 2), and text j of row i is from offsets[2 * i + j].
    """

    tokens: torch.Tensor  # (S,) int32, on the device
    offsets: torch.Tensor  # (N + 1,) or (2N + 1,) int64, on the device
    lengths: np.ndarray  # (N,) or (N, 2) int64, on the host: sizes are known without asking the device
    columns: dict[str, torch.Tensor]  # (N, …) each, on the device; "second": where text2 starts in the row
    pad_id: int
    numbers: np.ndarray | None = None  # (N,) number of each row in the Store that it comes from, on the host

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) tokens of each row as batches count them. A pair that is read apart counts twice its longer
        text, so that no padding of either goes beyond what is counted."""
        return self.lengths if self.lengths.ndim == 1 else 2 * self.lengths.max(1)

    def to(self, device: torch.device) -> "Encoded":
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return replace(self, tokens=self.tokens.to(device), offsets=self.offsets.to(device), columns=columns)

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """input_ids (B, T) int64 padded with pad_id, lengths (B,), and the columns (B, …) of `rows`; of pairs
        that are read apart also input_ids2 (B, T2) and lengths2 (B,)."""
        longest = self.lengths[rows].max(0, keepdims=True).ravel().tolist()  # of each text of a row
        rows = torch.from_numpy(rows).to(self.tokens.device, non_blocking=True)
        found = {name: column[rows] for name, column in self.columns.items()}
        for i, T in enumerate(longest):
            text = len(longest) * rows + i
            starts = self.offsets[text]  # (B,)
            lengths = self.offsets[text + 1] - starts  # (B,)
            columns = torch.arange(T, device=rows.device)
            positions = (starts[:, None] + columns).clamp_(max=len(self.tokens) - 1)  # (B, T)
            input_ids = self.tokens[positions].long().masked_fill_(columns >= lengths[:, None], self.pad_id)
            found |= {f"input_ids{'2' * i}": input_ids, f"lengths{'2' * i}": lengths}
        return found


def inputs(batch: dict) -> dict:
    """What of a batch a model's forward takes."""
    names = ("input_ids", "lengths", "input_ids2", "lengths2", "second")
    return {name: batch[name] for name in names if name in batch}


def largest_id(tokenizer) -> int:
    """The largest token id that a tokenizer gives, special tokens included. UserError if it gives none."""
    try:
        return max([*tokenizer.get_vocab().values(), *tokenizer.encode("가", "\U0010ffff").ids])
    except Exception as error:  # the tokenizers library's, such as: its own unknown token is missing
        raise UserError(f"the tokenizer cannot be used ({error})") from None


def read_tokenizer(folder: str) -> Tokenizer:
    """A student's tokenizer: a folder with tokenizer.json, or the file. Raises UserError."""
    path = Path(folder) / "tokenizer.json" if Path(folder).is_dir() else Path(folder)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); train_tokenizer.py makes one") from None
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{path}: not a tokenizer file ({' '.join(str(error).split())})") from None
    for token in ("[PAD]", "[UNK]"):
        if tokenizer.token_to_id(token) is None:
            raise UserError(f"{path}: the tokenizer has no {token}; make one with train_tokenizer.py")
    try:
        gaps = largest_id(tokenizer) >= tokenizer.get_vocab_size()
    except UserError as error:
        raise UserError(f"{path}: {error}; make one with train_tokenizer.py") from None
    if gaps:
        raise UserError(f"{path}: there are gaps between its ids; make one with train_tokenizer.py")
    tokenizer.no_padding()  # encode() sets its own
    tokenizer.no_truncation()
    return tokenizer


def encode(tokenizer, texts, texts2, max_length: int, pad_id: int, blank_id: int, segments=False,
           apart: bool | None = None, progress=None) -> Encoded:
    """Tokenize texts (or pairs, if texts2 is given) in the tokenizer's own threads.

    A row is cut at max_length tokens, special tokens included; a row that has no token becomes [blank_id].
    With `segments`, where text2 starts is kept for models with segment embeddings. Students read the texts of
    a pair `apart`, each cut at max_length; False: it reads single texts. Else the tokenizer joins a pair. A
    model's `reads` has all of these arguments. `progress` is a runtime.Progress that counts rows; the caller
    closes it. UserError for pairs to a reader of single texts, or single texts to one of pairs.
    """
    if apart not in (None, texts2 is not None):
        raise UserError("the student reads pairs, but the file has no column text2 (--text2-column)" if apart
                        else "the student reads single texts, but the file has a column text2")
    joined = texts2 is not None and not apart
    special = tokenizer.num_special_tokens_to_add(joined)
    if max_length < special:
        raise UserError(f"--max-length {max_length} has no room for {special} special tokens")
    tokenizer.no_padding()
    rows = texts if texts2 is None else list(zip(texts, texts2, strict=True))
    if apart:
        rows = list(chain.from_iterable(rows))
    tokens, lengths, second = [], [], []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        try:
            if joined:
                tokenizer.no_truncation()
                part = [shorter(tokenizer, pair, max_length) for pair in part]
            tokenizer.enable_truncation(max_length)
            encodings = tokenizer.encode_batch_fast(part)
        except Exception as error:  # the Rust library raises bare Exception: [UNK] is not in its vocabulary
            raise UserError(f"the tokenizer cannot encode a text ({error}); train it again") from None
        ids = [encoding.ids or [blank_id] for encoding in encodings]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        tokens.append(np.fromiter(chain.from_iterable(ids), np.int32, lengths[-1].sum()))
        if segments and joined:
            second.append(np.array([len(encoding.ids) - sum(encoding.type_ids) for encoding in encodings]))
        if progress is not None:
            progress.add(len(ids) // (1 + bool(apart)))
    lengths = np.concatenate(lengths).reshape((-1, 2) if apart else -1)
    return Encoded(torch.from_numpy(np.concatenate(tokens)), offsets(lengths), lengths,
                   {"second": torch.from_numpy(np.concatenate(second))} if second else {}, pad_id)


def shorter(tokenizer, pair: tuple, length: int) -> tuple:
    """A pair without words that a cut of the joined row at `length` tokens drops anyway.

    The tokenizer keeps what it cuts off a pair, in every combination: gigabytes where texts are long.
    """
    if sum(map(len, pair)) <= 4 * length:
        return pair
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in pair]

    def cut(i: int, least: int) -> int:  # to the end of a word; how many tokens are left
        if len(tokens[i]) > least and (word := tokens[i].token_to_word(least - 1)) is not None:
            texts[i] = texts[i][: tokens[i].word_to_chars(word)[1]]
            return tokens[i].word_to_tokens(word)[1]
        return len(tokens[i])

    texts, longer = list(pair), int(len(tokens[0]) <= len(tokens[1]))
    cut(longer, max(length, cut(1 - longer, length) + 1))  # the longer one stays so: it loses tokens first
    return tuple(texts)


def offsets(lengths: np.ndarray) -> torch.Tensor:
    """(N,) or (N, 2) lengths -> int64, one more: where each text begins, and the end."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))


class Store:
    """Encoded rows of any number, in unnamed scratch files of a folder; the files vanish with the process.

    Rows that fit in one WINDOW are read once and stay on the device.
    """

    def __init__(self, folder: Path):
        self.folder, self.files, self.rows, self.tokens = Path(folder), {}, 0, 0
        self.blocks = []  # (first row, rows, first token, tokens) of each append
        self.resident = None

    def __len__(self) -> int:
        return self.rows

    def append(self, encoded: Encoded) -> None:
        """Add the rows of `encoded`, which all appends give the same columns."""
        for name, tensor in {"tokens": encoded.tokens, "lengths": torch.from_numpy(encoded.lengths),
                             **encoded.columns}.items():
            if name not in self.files:
                file = self._scratch()
                self.files[name] = file, tensor.numpy().dtype, tensor.shape[1:]
            try:
                self.files[name][0].write(np.ascontiguousarray(tensor.numpy()))
                self.files[name][0].flush()
            except OSError as error:
                raise UserError(f"{self.folder}: cannot write scratch files ({error.strerror or error}); "
                                f"they hold 4 bytes per token") from None
        self.blocks.append((self.rows, len(encoded), self.tokens, len(encoded.tokens)))
        self.rows += len(encoded)
        self.tokens += len(encoded.tokens)
        self.pad_id = encoded.pad_id

    def _scratch(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=self.folder)  # as long as the store
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write there ({error.strerror or error})") from None

    def windows(self, device: torch.device, seed: tuple | None = None) -> Iterator[Encoded]:
        """All rows, on `device`, as one Encoded; or, beyond WINDOW tokens, as several, one after the other.

        A window is then made of whole blocks (of CHUNK neighbouring rows), drawn at random with a seed.
        """
        if self.tokens <= WINDOW:
            if self.resident is None:
                self.resident = self._read(self.blocks).to(device)
            yield self.resident
            return
        order = range(len(self.blocks))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(self.blocks)).tolist()
        chosen, tokens = [], 0
        for i in order:
            if chosen and tokens + self.blocks[i][3] > WINDOW:
                yield self._read(chosen).to(device)
                chosen, tokens = [], 0
            chosen.append(self.blocks[i])
            tokens += self.blocks[i][3]
        yield self._read(chosen).to(device)

    def _read(self, blocks) -> Encoded:
        arrays = {}
        for name, (file, dtype, shape) in self.files.items():
            first, count = (2, 3) if name == "tokens" else (0, 1)
            arrays[name] = np.empty((sum(block[count] for block in blocks), *shape), dtype)
            size, at = arrays[name][:1].nbytes, 0
            for block in blocks:
                file.seek(block[first] * size)
                file.readinto(arrays[name][at : at + block[count]])
                at += block[count]
        lengths = arrays.pop("lengths")
        tokens = torch.from_numpy(arrays.pop("tokens"))
        columns = {name: torch.from_numpy(array) for name, array in arrays.items()}
        numbers = np.concatenate([np.arange(first, first + count) for first, count, _, _ in blocks])
        return Encoded(tokens, offsets(lengths), lengths, columns, self.pad_id, numbers)


def training_batches(store: Store, max_tokens: int, seed: tuple, device, known_only: bool = False):
    """An epoch: (window, rows of a batch in it), every row once; with `known_only` those with an answer."""
    for number, window in enumerate(store.windows(device, seed)):
        rows = np.arange(len(window))
        if known_only:
            rows = np.flatnonzero(window.columns["known"].cpu().numpy())
        if len(rows):
            for batch in token_batches(window.sizes[rows], max_tokens, (*seed, number)):
                yield window, rows[batch]


def token_batches(lengths: np.ndarray, max_tokens: int, seed: tuple | None = None) -> list[np.ndarray]:
    """Cut all rows into batches of at most max_tokens tokens, padding counted (a longer row goes alone).

    With a seed, such as (seed, epoch): rows are shuffled, then sorted by length within pools of about POOL
    batches, and the batches shuffled; the same seed gives the same batches. Without: sorted by length over
    the whole file, longest first, so that the first batch shows whether memory suffices.
    """
    if seed is None:
        order = np.argsort(-lengths, kind="stable")
    else:
        random = np.random.default_rng(seed)
        order = random.permutation(len(lengths))
        pool = np.arange(len(lengths)) // max(1, int(POOL * max_tokens / lengths.mean()))
        # Every other pool runs from long to short: neighbours meet at like lengths.
        order = order[np.lexsort((np.where(pool % 2, -1, 1) * lengths[order], pool))]
    sorted_lengths = lengths[order]
    batches, start = [], 0
    while start < len(order):
        window = sorted_lengths[start : start + max(1, max_tokens // max(1, sorted_lengths[start]) + 1)]
        padded = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
        count = max(1, int(np.searchsorted(padded, max_tokens, side="right")))
        batches.append(order[start : start + count])
        start += count
    if seed is not None:
        batches = [batches[i] for i in random.permutation(len(batches))]
    return batches


@torch.inference_mode()
def logits_in_order(model, encoded: Encoded, max_tokens: int, precision="fp32", progress=None):
    """Run `model` over every row in length-sorted batches: (N, C) float32 on the CPU, in file order.

    Under torchrun the ranks take the batches in turn and all get the whole. `progress` is a runtime.Progress
    that counts rows; the caller closes it.
    """
    model.eval()
    device = encoded.tokens.device
    logits = None
    for i, rows in enumerate(token_batches(encoded.sizes, max_tokens)):
        if i % WORLD == RANK or i == 0:  # the first tells every rank the number of classes
            with autocast(device, precision):
                output = model(**inputs(encoded.batch(rows))).float()  # (B, C)
            if i == 0:
                logits = torch.zeros(len(encoded), output.size(1), device=device)
            if i % WORLD == RANK:
                logits.index_copy_(0, torch.from_numpy(rows).to(device, non_blocking=True), output)
        if progress is not None:
            progress.add(len(rows))
    sum_over_ranks([logits])
    return logits.cpu()
