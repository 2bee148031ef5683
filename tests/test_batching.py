"""data/batching.py: encoding against a row-by-row loop, batches against their promises, logits in order."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data import batching
from data.batching import Encoded, encode, logits_in_order, token_batches

CPU = torch.device("cpu")
PAD, UNKNOWN, CLS, SEP = range(4)
WORDS = {word: id_ for id_, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"])}
A, B, C, D, E = (WORDS[word] for word in "abcde")


def tokenizer(template=False):
    """A token for each word; with `template`, BERT's [CLS] a [SEP] and [CLS] a [SEP] b [SEP]."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    return tokenizer


def random_texts(count, seed, longest=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(list("abcdefghij!"), rng.integers(0, longest + 1))) for _ in range(count)]


def encoded_of(rows, second=None):
    """Encoded of lists of token ids; PAD is no token here, 99 stands for it."""
    lengths = np.array([len(row) for row in rows])
    return Encoded(torch.tensor([id_ for row in rows for id_ in row], dtype=torch.int32),
                   torch.tensor([0, *np.cumsum(lengths)]), lengths,
                   None if second is None else torch.tensor(second), pad_id=99)  # fmt: skip


def rows_of(encoded):
    return [encoded.tokens[start:end].tolist() for start, end in pairwise(encoded.offsets.tolist())]


# ---- encode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [3, 7, 100])
@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_encode_equals_a_row_by_row_loop(monkeypatch, template, pairs, max_length):
    """Also where the texts are more than a chunk, and the last chunk is not full."""
    monkeypatch.setattr(batching, "CHUNK", 16)
    texts, texts2 = random_texts(50, 1), random_texts(50, 2) if pairs else None
    encoded = encode(tokenizer(template), texts, texts2, max_length, PAD, blank_id=9, segments=True)

    one = tokenizer(template)
    one.enable_truncation(max_length)
    expected = [one.encode(*row) for row in zip(texts, *([texts2] if pairs else []), strict=True)]
    assert rows_of(encoded) == [encoding.ids or [9] for encoding in expected]
    assert encoded.lengths.tolist() == [max(1, len(encoding.ids)) for encoding in expected]
    assert len(encoded) == 50 and encoded.lengths.max() <= max_length and encoded.pad_id == PAD
    assert (encoded.tokens.dtype, encoded.offsets.dtype) == (torch.int32, torch.int64)
    if pairs and template:
        assert encoded.second.tolist() == [encoding.type_ids.index(1) for encoding in expected]


@pytest.mark.parametrize(("texts", "texts2", "template", "max_length", "expected"), [
    (["", " \t", "a"], None, False, 9, [[UNKNOWN], [UNKNOWN], [A]]),
    (["", ""], ["", "b"], False, 9, [[UNKNOWN], [B]]),
    (["", "a"], None, True, 9, [[CLS, SEP], [CLS, A, SEP]]),
    (["a b c", "a b"], None, False, 2, [[A, B], [A, B]]),
    (["a b c", "a b"], None, True, 4, [[CLS, A, B, SEP], [CLS, A, B, SEP]]),
    (["a b c", "a"], ["d", "b c d e"], True, 6, [[CLS, A, B, SEP, D, SEP], [CLS, A, SEP, B, C, SEP]]),
])  # fmt: skip
def test_blank_rows_and_truncation_by_hand(texts, texts2, template, max_length, expected):
    """Special tokens count towards max_length and stay; of a pair the longer text is cut."""
    encoded = encode(tokenizer(template), texts, texts2, max_length, PAD, blank_id=UNKNOWN)
    assert rows_of(encoded) == expected


def test_second_is_where_the_second_text_begins():
    texts, texts2 = ["a b", "", "a", "", "a b c d e"], ["c", "c d", "", "", "a b c"]
    encoded = encode(tokenizer(True), texts, texts2, 8, PAD, UNKNOWN, segments=True)
    assert rows_of(encoded) == [
        [CLS, A, B, SEP, C, SEP], [CLS, SEP, C, D, SEP], [CLS, A, SEP, SEP], [CLS, SEP, SEP],
        [CLS, A, B, C, SEP, A, B, SEP],
    ]  # fmt: skip
    assert encoded.second.tolist() == [4, 2, 3, 2, 5]
    assert encode(tokenizer(True), texts, texts2, 8, PAD, UNKNOWN).second is None
    assert encode(tokenizer(True), texts, None, 8, PAD, UNKNOWN, segments=True).second is None


def test_padding_and_truncation_set_before_do_not_matter():
    used = tokenizer()
    used.enable_padding(length=30)
    used.enable_truncation(1)
    assert rows_of(encode(used, ["a b c", "d"], None, 10, PAD, UNKNOWN)) == [[A, B, C], [D]]


def test_pairs_of_unequal_number_are_refused():
    with pytest.raises(ValueError):
        encode(tokenizer(), ["a", "b"], ["c"], 10, PAD, UNKNOWN)


# ---- batch -------------------------------------------------------------------------------------------------


def test_batch_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 50, rng.integers(1, 20)).tolist() for _ in range(40)]
    second = rng.integers(0, 20, 40).tolist()
    encoded = encoded_of(rows, second)
    for chosen in ([39], [0], [39, 0, 39], range(40), *(rng.permutation(40)[:7] for _ in range(10))):
        batch = encoded.batch(np.array(chosen), CPU)
        longest = max(len(rows[i]) for i in chosen)
        assert batch["input_ids"].tolist() == [rows[i] + [99] * (longest - len(rows[i])) for i in chosen]
        assert batch["lengths"].tolist() == [len(rows[i]) for i in chosen]
        assert batch["second"].tolist() == [second[i] for i in chosen]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert encoded_of(rows).batch(np.array([0]), CPU).keys() == {"input_ids", "lengths"}


# ---- token_batches -----------------------------------------------------------------------------------------


def lists(batches):
    return [batch.tolist() for batch in batches]


def review_lengths(count):
    """Lengths as those of reviews: mean 21, median 16, longest 141."""
    random = np.random.default_rng(0)
    return np.exp(random.normal(2.75, 0.75, count)).round().clip(1, 141).astype(np.int64)


LENGTHS = {
    "one row": np.array([7]),
    "equal": np.full(100, 8),
    "one token": np.ones(333, np.int64),
    "ascending": np.arange(1, 200),
    "descending": np.arange(200, 0, -1),
    "one long among short": np.array([1] * 50 + [5000] + [1] * 50),
    "reviews": review_lengths(2000),
    **{f"uniform {i}": np.random.default_rng(i).integers(1, 3 ** (i + 1), 500) for i in range(6)},
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_every_row_comes_once_and_no_batch_exceeds_the_cap(lengths):
    for max_tokens, seed in product([1, 9, 64, 700, 100_000], [None, (1, 0), (1, 1), (2, 0)]):
        batches = token_batches(lengths, max_tokens, seed)
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= max_tokens for rows in batches)


@pytest.mark.parametrize(("lengths", "max_tokens", "expected"), [
    ([3, 1, 2, 5, 4], 8, [[3], [4, 0], [2, 1]]),  # 5 5; 4 4; 2 2: one more row would make 10, 12
    ([3, 1, 2, 5, 4], 9, [[3], [4, 0], [2, 1]]),
    ([3, 1, 2, 5, 4], 10, [[3, 4], [0, 2, 1]]),
    ([2, 9, 2, 30, 2], 6, [[3], [1], [0, 2, 4]]),  # longer than the cap: alone; equal lengths in file order
    ([1, 1, 1], 2, [[0, 1], [2]]),
])  # fmt: skip
def test_without_a_seed_the_longest_come_first_and_batches_are_full(lengths, max_tokens, expected):
    assert lists(token_batches(np.array(lengths), max_tokens)) == expected


def test_a_row_longer_than_the_cap_goes_alone():
    lengths = np.array([3, 50, 2, 60, 4, 20])
    for seed in [None, *((1, epoch) for epoch in range(20))]:
        batches = lists(token_batches(lengths, 20, seed))
        assert [1] in batches and [3] in batches and [5] in batches


def test_seed_and_epoch_alone_decide_the_batches():
    lengths = review_lengths(3000)
    first = lists(token_batches(lengths, 512, (1, 0)))
    torch.manual_seed(5)  # the global generators must not matter
    np.random.seed(5)
    assert lists(token_batches(lengths, 512, (1, 0))) == first
    assert lists(token_batches(lengths, 512, (1, 1))) != first
    assert lists(token_batches(lengths, 512, (2, 0))) != first


def companions(batches):
    return {row: set(rows) for rows in lists(batches) for row in rows}


def test_every_epoch_mixes_anew():
    """Batches are other sets of rows, not only in another order, and neighbours are not of like length."""
    lengths = review_lengths(5000)
    epochs = [token_batches(lengths, 512, (1, epoch)) for epoch in (0, 1)]
    one, other = map(companions, epochs)
    shared = [len(one[row] & other[row]) / len(one[row] | other[row]) for row in one]
    assert np.mean(shared) < 0.25
    longest = np.array([lengths[rows].max() for rows in epochs[0]])
    neighbours, any_two = np.abs(np.diff(longest)).mean(), np.abs(longest[:, None] - longest).mean()
    assert 0.8 < neighbours / any_two < 1.2


@pytest.mark.parametrize("seed", [None, (1, 0), (7, 3)])
@pytest.mark.parametrize("max_tokens", [512, 2048, 8192])
def test_on_reviews_padding_wastes_less_than_a_tenth_and_batches_are_full(max_tokens, seed):
    lengths = review_lengths(20_000)
    batches = token_batches(lengths, max_tokens, seed)
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert 1 - lengths.sum() / padded < 0.1
    assert padded / (len(batches) * max_tokens) > 0.9


# ---- logits_in_order ---------------------------------------------------------------------------------------


class Toy(torch.nn.Module):
    """Logits that are a function of the row: sum, first and last token, length, second. Notes its batches."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.9)
        self.sizes = []

    def forward(self, input_ids, lengths, second):
        self.sizes.append(len(input_ids))
        real = torch.arange(input_ids.size(1)) < lengths[:, None]
        last = input_ids.gather(1, lengths[:, None] - 1)[:, 0]
        logits = torch.stack([(input_ids * real).sum(1), input_ids[:, 0], last, lengths, second], 1)
        return self.dropout(logits.double())


class Count(list):
    """In place of a runtime.Progress."""

    add = list.append


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_logits_come_in_file_order_whatever_the_batches(max_tokens):
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 50, rng.integers(1, 20)).tolist() for _ in range(101)]
    second = rng.integers(0, 20, 101).tolist()
    toy, count = Toy().train(), Count()
    logits = logits_in_order(toy, encoded_of(rows, second), max_tokens, CPU, progress=count)
    expected = [[sum(row), row[0], row[-1], len(row), at] for row, at in zip(rows, second, strict=True)]
    assert logits.tolist() == expected  # dropout of 0.9 is off
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    assert toy.sizes == count and sum(count) == 101
    assert (max(toy.sizes) == 1) == (max_tokens == 1)


def test_bf16_is_used_when_asked_for_and_comes_back_as_float32():
    class Linear(torch.nn.Linear):
        def forward(self, input_ids, lengths):
            output = super().forward(input_ids.float())
            self.seen = output.dtype
            return output

    linear = Linear(3, 2)
    encoded = encoded_of([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    expected = torch.arange(1.0, 10).view(3, 3) @ linear.weight.T + linear.bias
    for precision, dtype, tolerance in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 0.1)):
        logits = logits_in_order(linear, encoded, 100, CPU, precision)
        assert linear.seen == dtype and logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
