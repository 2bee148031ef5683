"""Encode texts once into one flat tensor, then draw batches by row index, grouped by length.

No DataLoader and no per-example Python: a batch is `encoded.batch(rows)`, a gather on the device.
Shapes: N rows, S tokens in all, B rows of a batch, T tokens of its longest row.
"""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from runtime import Progress, UserError, autocast

CHUNK = 8192  # texts handed to the tokenizer's threads at a time
POOL = 50  # batches' worth of rows among which lengths are sorted: less padding, order still random


@dataclass
class Encoded:
    """All token ids of a file. Row i is tokens[offsets[i] : offsets[i + 1]]."""

    tokens: torch.Tensor  # (S,) int32, on the device
    offsets: torch.Tensor  # (N + 1,) int64, on the device
    lengths: np.ndarray  # (N,) int64, on the host: sizes of batches are known without asking the device
    second: torch.Tensor | None  # (N,) int64, where text2 starts in the row; None for single texts
    pad_id: int

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "Encoded":
        """Move to the device if it fits there with room to spare; otherwise stay, and move batch by batch."""
        if device.type == "cuda" and 4 * self.tokens.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        second = None if self.second is None else self.second.to(device)
        return replace(self, tokens=self.tokens.to(device), offsets=self.offsets.to(device), second=second)

    def batch(self, rows: np.ndarray, device: torch.device) -> dict:
        """input_ids (B, T) int64 padded with pad_id, lengths (B,), and second (B,) for pairs, on `device`."""
        longest = int(self.lengths[rows].max())
        rows = torch.from_numpy(rows).to(self.tokens.device)
        starts = self.offsets[rows]  # (B,)
        lengths = self.offsets[rows + 1] - starts  # (B,)
        columns = torch.arange(longest, device=rows.device)
        positions = (starts[:, None] + columns).clamp_(max=len(self.tokens) - 1)  # (B, T)
        input_ids = self.tokens[positions].long().masked_fill_(columns >= lengths[:, None], self.pad_id)
        batch = {"input_ids": input_ids, "lengths": lengths}
        if self.second is not None:
            batch["second"] = self.second[rows]
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def encode(tokenizer, texts, texts2, max_length: int, pad_id: int, blank_id: int, segments=False) -> Encoded:
    """Tokenize texts (or pairs, if texts2 is no None) in the tokenizer's own threads.

    A row is cut at max_length tokens, special tokens included; a row that has no token becomes [blank_id].
    With `segments`, where text2 starts is kept for models with segment embeddings.
    """
    special = tokenizer.num_special_tokens_to_add(texts2 is not None)
    if max_length < special:
        raise UserError(f"--max-length {max_length} has no room for {special} special tokens")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    rows = texts if texts2 is None else list(zip(texts, texts2, strict=True))
    tokens, lengths, second = [], [], []
    progress = Progress("encode", len(rows), "texts")
    for start in range(0, len(rows), CHUNK):
        encodings = tokenizer.encode_batch_fast(rows[start : start + CHUNK])
        ids = [encoding.ids or [blank_id] for encoding in encodings]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        tokens.append(np.fromiter(chain.from_iterable(ids), np.int32, lengths[-1].sum()))
        if segments and texts2 is not None:
            second.append(np.array([len(encoding.ids) - sum(encoding.type_ids) for encoding in encodings]))
        progress.add(len(ids))
    progress.close()
    lengths = np.concatenate(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(
        torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(offsets), lengths,
        torch.from_numpy(np.concatenate(second)) if second else None, pad_id,
    )


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
def logits_in_order(model, encoded: Encoded, max_tokens: int, device, precision="fp32", progress=None):
    """Run `model` over every row in length-sorted batches: (N, C) float32 on the CPU, in file order.

    `progress` is a runtime.Progress that counts rows; the caller closes it.
    """
    model.eval()
    batches = token_batches(encoded.lengths, max_tokens)
    outputs = []
    for rows in batches:
        with autocast(device, precision):
            outputs.append(model(**encoded.batch(rows, device)).float())  # (B, C)
        if progress is not None:
            progress.add(len(rows))
    logits = torch.cat(outputs).cpu()
    return torch.empty_like(logits).index_copy_(0, torch.from_numpy(np.concatenate(batches)), logits)
