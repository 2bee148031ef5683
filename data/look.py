"""A look at files before the work: what a user wants to know before waiting for hours, in a few lines."""

from collections import Counter
from contextlib import suppress
from itertools import chain, islice

import numpy as np

from data import labels
from data.batches import encode
from data.examples import CHUNK, Survey, stream_examples
from runtime import UserError, warn

ALARM = 0.1  # share of unknown tokens from which on the tokenizer is not made for these texts
SHOWN = 10  # labels


def files(found: list[Survey], columns: tuple, task=None) -> list[str]:
    """One or two lines on the rows, the answers and the texts of files, read with these columns.

    Labels are in the order of the task's outputs, or the commonest first.
    """
    names, counts = ", ".join(file.path for file in found), sum((file.answers for file in found), Counter())
    lines = [f"{names}: {sum(file.rows for file in found):,} rows, {counts.total():,} labelled"]
    if counts:
        column = task.column if task else found[0].column
        lines[0] += f": {answers(counts, column, getattr(task, 'names', []))}"
    elif other := dict.fromkeys(name for file in found for name in file.head.header):
        lines[0] += f"; the columns are {', '.join(other)}"
    parts = []
    if blank := sum(file.blank for file in found):
        first = next(file.first_blank for file in found if file.first_blank)
        parts.append(f"{blank:,} blank (first at {first})")
    count, first = duplicates(found, columns)
    if count:
        parts.append(f"{count:,} duplicate (first at {first})")
    if parts:
        lines.append("  texts: " + ", ".join(parts))
    for file in found:
        if file.quoted:
            warn(f"{file.quoted}: a quotation mark opens here and closes in a later row; if the texts have "
                 f"line breaks, save the file as .csv: in .tsv quotation marks have no special meaning")
    return lines


def answers(counts: Counter, column: str, names: list[str]) -> str:
    """What the cells of a column are, {cell: rows}: how often each label occurs, or the range of scores."""
    with suppress(ValueError):  # a bad cell is refused elsewhere, with its line
        if column == "score":
            mean = sum(float(cell) * rows for cell, rows in counts.items()) / counts.total()
            return f"{min(map(float, counts)):g} to {max(map(float, counts)):g}, mean {mean:.4g}"
        if column == "labels":
            cells, counts = counts, Counter()
            for cell, rows in cells.items():
                counts.update(dict.fromkeys(labels.split(cell) or ["-"], rows))
    order = {name: i for i, name in enumerate(names)}
    shown = sorted(counts.most_common(), key=lambda item: order.get(item[0], len(order)))
    return ", ".join(
        f"{name if name.isprintable() and name == name.strip() else repr(name)}: {count:,}"
        for name, count in shown[:SHOWN]) + (
        f", and {len(shown) - SHOWN:,} other labels" if len(shown) > SHOWN else "")


def duplicates(found: list[Survey], columns: tuple) -> tuple[int, str]:
    """(how many rows have a text that an earlier row has, FILE:LINE of the first of them)."""
    keys = np.concatenate([np.frombuffer(file.keys, np.int64) for file in found])
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    if not again.any():
        return 0, ""
    row = int(again.argmax())
    for file in found:
        if row < len(file.keys):
            break
        row -= len(file.keys)
    lines = chain.from_iterable(part.lines for part in stream_examples(file.path, *columns))
    return int(again.sum()), f"{file.path}:{next(islice(lines, row, None))}"


def tokenizers(readers: dict, found: list[Survey]) -> str:
    """A line on how tokenizers fit the first rows of files: unknown tokens, texts that are cut.

    readers: {name: (tokenizer, how its model reads texts, as for data.batches.encode)}. Warns where one is
    not made for such texts.
    """
    rows = sum(len(file.head) for file in found)
    few = f" (first {CHUNK:,} rows of each file)" if rows < sum(file.rows for file in found) else ""
    return "; ".join(_fit(name, *reader, found) for name, reader in readers.items()) + few


def _fit(name: str, tokenizer, reads: dict, found: list[Survey]) -> str:
    rows = unknown = tokens = cut = 0
    first_unknown = first_cut = ""
    apart = reads.get("apart")
    texts = 2 if apart else 1  # of a row
    for file in found:
        head = file.head
        try:
            encoded = encode(tokenizer, head.texts, head.texts2, max_length=2**20, pad_id=0, blank_id=-1,
                             apart=apart)
        except UserError as error:
            raise UserError(f"{name} and {file.path}: {error}") from None
        which = np.flatnonzero(encoded.tokens.numpy() == reads["blank_id"])
        long = np.flatnonzero((encoded.lengths.reshape(-1, texts) > reads["max_length"]).any(1))
        if len(which) and not first_unknown:
            row = np.searchsorted(encoded.offsets.numpy(), which[0], side="right") - 1
            first_unknown = f"{file.path}:{head.lines[row // texts]}"
        if len(long) and not first_cut:
            first_cut = f" (first at {file.path}:{head.lines[long[0]]})"
        special = tokenizer.num_special_tokens_to_add(file.pairs and not apart) * texts * len(head)
        rows, unknown, cut = rows + len(head), unknown + len(which), cut + len(long)
        tokens += int((encoded.tokens >= 0).sum()) - special  # -1 stands where a text has no token
    share = unknown / max(tokens, 1)
    if share > ALARM:
        warn(f"{first_unknown}: {share:.0%} of the tokens are unknown to the tokenizer of {name}; is it the "
             f"one that belongs to the model, and made for such texts?")
    return (f"{name}: {share:.2%} of tokens unknown, {cut / rows:.2%} of texts cut at {reads['max_length']} "
            f"tokens{first_cut}")
