"""data/batches.py: encoding against a row-by-row loop, batches and windows against their promises, logits in
order."""

import tempfile
from itertools import chain, pairwise, product

import numpy as np
import pytest
import torch
from helpers import refused
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data import batches
from data.batches import Encoded, Store, encode, inputs, logits_in_order, token_batches, training_batches

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


def random_texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(list("abcdefghij!"), rng.integers(0, 13))) for _ in range(count)]


def random_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 50, rng.integers(1, 20)).tolist() for _ in range(count)]


def encoded_of(rows, **columns):
    """Encoded of lists of token ids; PAD is no token here, 99 stands for it."""
    lengths = np.array([len(row) for row in rows])
    return Encoded(torch.tensor([id_ for row in rows for id_ in row], dtype=torch.int32),
                   torch.tensor([0, *np.cumsum(lengths)]), lengths,
                   {name: torch.as_tensor(column) for name, column in columns.items()}, pad_id=99)


def rows_of(encoded):
    return [encoded.tokens[start:end].tolist() for start, end in pairwise(encoded.offsets.tolist())]


# ---- encode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [3, 7, 100])
@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_encode_equals_a_row_by_row_loop(monkeypatch, template, pairs, max_length):
    """Also if there are several chunks, the last of them not full, and the tokenizer was in use before."""
    monkeypatch.setattr(batches, "CHUNK", 16)
    texts, texts2 = random_texts(50, 1), random_texts(50, 2) if pairs else None
    used, count = tokenizer(template), Count()
    used.enable_padding(length=30)
    used.enable_truncation(2 if template else 1)
    encoded = encode(used, texts, texts2, max_length, PAD, blank_id=9, segments=True, progress=count)

    one = tokenizer(template)
    one.enable_truncation(max_length)
    expected = [one.encode(*row) for row in zip(*filter(None, (texts, texts2)), strict=True)]
    assert rows_of(encoded) == [encoding.ids or [9] for encoding in expected]
    assert encoded.lengths.tolist() == [max(1, len(encoding.ids)) for encoding in expected]
    assert encoded.lengths.max() <= max_length and encoded.pad_id == PAD
    assert (len(encoded), sum(count), count[-1]) == (50, 50, 2)
    assert (encoded.tokens.dtype, encoded.offsets.dtype) == (torch.int32, torch.int64)
    if pairs and template:
        assert encoded.columns["second"].tolist() == [encoding.type_ids.index(1) for encoding in expected]


@pytest.mark.parametrize("texts, texts2, template, max_length, expected", [
    (["", " \t", "a"], None, False, 9, [[UNKNOWN], [UNKNOWN], [A]]),
    (["", ""], ["", "b"], False, 9, [[UNKNOWN], [B]]),
    (["", "a"], None, True, 9, [[CLS, SEP], [CLS, A, SEP]]),
    (["a b c", "a b"], None, False, 2, [[A, B], [A, B]]),
    (["a b c", "a b"], None, True, 4, [[CLS, A, B, SEP], [CLS, A, B, SEP]]),
    (["a b c", "a"], ["d", "b c d e"], True, 6, [[CLS, A, B, SEP, D, SEP], [CLS, A, SEP, B, C, SEP]]),
    (["a b"], ["c"], True, 3, [[CLS, SEP, SEP]]),
])
def test_blank_rows_and_truncation_by_hand(texts, texts2, template, max_length, expected):
    """Special tokens count towards max_length and stay; of a pair the longer text is cut."""
    encoded = encode(tokenizer(template), texts, texts2, max_length, PAD, blank_id=UNKNOWN)
    assert rows_of(encoded) == expected and encoded.columns == {}


@pytest.mark.parametrize("words, words2", [(900, 901), (900, 900), (901, 900), (900, 1), (2, 900), (0, 900)])
def test_long_pairs_are_cut_before_they_are_joined(words, words2):
    """The library keeps what it cuts off in every combination: of 900 and 901 words more than 50,000 rows."""
    pair, used = ("ab c " * words, "d efg " * words2), tokenizer(True)
    short = batches.shorter(used, pair, 9)
    used.enable_truncation(9)
    assert used.encode(*short).ids == used.encode(*pair).ids
    assert len(used.encode(*short).overflowing) < 20 and max(map(len, short)) < 100
    assert rows_of(encode(used, [pair[0]], [pair[1]], 9, PAD, UNKNOWN)) == [used.encode(*short).ids]


def test_second_is_where_the_second_text_begins():
    texts, texts2 = ["a b", "", "a", "", "a b c d e"], ["c", "c d", "", "", "a b c"]
    encoded = encode(tokenizer(True), texts, texts2, 8, PAD, UNKNOWN, segments=True)
    assert rows_of(encoded) == [[CLS, A, B, SEP, C, SEP], [CLS, SEP, C, D, SEP], [CLS, A, SEP, SEP],
                                [CLS, SEP, SEP], [CLS, A, B, C, SEP, A, B, SEP]]
    assert encoded.columns["second"].tolist() == [4, 2, 3, 2, 5]
    assert encode(tokenizer(True), texts, None, 8, PAD, UNKNOWN, segments=True).columns == {}


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError):
        encode(tokenizer(), ["a", "b"], ["c"], 10, PAD, UNKNOWN)  # a mistake of the caller
    refused(lambda: encode(tokenizer(True), ["a"], ["b"], 2, PAD, UNKNOWN), "--max-length 2 .*3 special")
    broken = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))  # which is not in its vocabulary
    refused(lambda: encode(broken, ["b"], None, 10, PAD, UNKNOWN), "tokenizer cannot encode")
    refused(lambda: encode(broken, ["b" * 99], ["a"], 10, PAD, UNKNOWN), "tokenizer cannot encode")
    refused(lambda: batches.largest_id(broken), "tokenizer cannot be used")


def test_the_largest_id_counts_every_token_the_tokenizer_gives():
    assert batches.largest_id(tokenizer()) == len(WORDS) - 1
    added = tokenizer()
    added.add_special_tokens(["[MASK]", "[X]"])
    assert batches.largest_id(added) == len(WORDS) + 1
    added.post_processor = processors.TemplateProcessing(  # gives an id beyond the vocabulary
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 77)])
    assert batches.largest_id(added) == 77


# ---- batch -------------------------------------------------------------------------------------------------


def test_batch_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    rows, second = random_rows(40), rng.integers(0, 20, 40).tolist()
    encoded = encoded_of(rows, second=second)
    for chosen in ([39], [0], [39, 0, 39], range(40), *(rng.permutation(40)[:7] for _ in range(10))):
        batch = encoded.batch(np.array(chosen))
        longest = max(len(rows[i]) for i in chosen)
        assert batch["input_ids"].tolist() == [rows[i] + [99] * (longest - len(rows[i])) for i in chosen]
        assert batch["lengths"].tolist() == [len(rows[i]) for i in chosen]
        assert batch["second"].tolist() == [second[i] for i in chosen]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_inputs_are_what_a_model_reads():
    """Neither answers nor logits; `second` only where there is one."""
    rows, row = random_rows(3), np.array([0])
    columns = {"target": [1, 0, 1], "known": [True] * 3, "teacher_logits": [[0.0]] * 3}
    batch = encoded_of(rows, second=[1, 2, 3], **columns).batch(row)
    assert batch.keys() == {"input_ids", "lengths", "second", *columns}
    assert inputs(batch) == {name: batch[name] for name in ("input_ids", "lengths", "second")}
    assert inputs(encoded_of(rows, **columns).batch(row)).keys() == {"input_ids", "lengths"}


# ---- token_batches -----------------------------------------------------------------------------------------


def lists(batches):
    return [batch.tolist() for batch in batches]


def review_lengths(count):
    """Lengths as those of reviews: mean 21, median 16, longest 141."""
    random = np.random.default_rng(0)
    return np.exp(random.normal(2.75, 0.75, count)).round().clip(1, 141).astype(np.int64)


LENGTHS = {
    "one row": np.array([7]), "equal": np.full(100, 8), "one token": np.ones(333, np.int64),
    "ascending": np.arange(1, 200), "descending": np.arange(200, 0, -1),
    "one long among short": np.array([1] * 50 + [5000] + [1] * 50), "reviews": review_lengths(2000),
    **{f"uniform {i}": np.random.default_rng(i).integers(1, 3 ** (i + 1), 500) for i in range(6)},
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_every_row_comes_once_and_no_batch_exceeds_the_cap(lengths):
    """A row that alone exceeds it goes alone."""
    for max_tokens, seed in product([1, 9, 64, 700, 100_000], [None, (1, 0), (1, 1), (2, 0)]):
        found = token_batches(lengths, max_tokens, seed)
        assert sorted(np.concatenate(found)) == list(range(len(lengths)))
        assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= max_tokens for rows in found)


@pytest.mark.parametrize("lengths, max_tokens, expected", [
    ([3, 1, 2, 5, 4], 8, [[3], [4, 0], [2, 1]]),  # 5 5; 4 4; 2 2: one more row would make 10, 12
    ([3, 1, 2, 5, 4], 9, [[3], [4, 0], [2, 1]]),
    ([3, 1, 2, 5, 4], 10, [[3, 4], [0, 2, 1]]),
    ([2, 9, 2, 30, 2], 6, [[3], [1], [0, 2, 4]]),  # longer than the cap: alone; equal lengths in file order
    ([1, 1, 1], 2, [[0, 1], [2]]),
])
def test_without_a_seed_the_longest_come_first_and_batches_are_full(lengths, max_tokens, expected):
    assert lists(token_batches(np.array(lengths), max_tokens)) == expected


def test_seed_and_epoch_alone_decide_the_batches_and_every_epoch_mixes_again():
    """Batches are other sets of rows, not only in another order, and neighbours are not of like length."""
    lengths = review_lengths(5000)
    epochs = [token_batches(lengths, 512, (1, epoch)) for epoch in (0, 1)]
    torch.manual_seed(5)  # the global generators must not matter
    np.random.seed(5)
    assert lists(token_batches(lengths, 512, (1, 0))) == lists(epochs[0])
    assert lists(token_batches(lengths, 512, (2, 0))) != lists(epochs[0])
    one, other = ({row: set(rows) for rows in lists(found) for row in rows} for found in epochs)
    shared = np.array([len(one[row] & other[row]) / len(one[row] | other[row]) for row in range(5000)])
    assert shared.mean() < 0.15 and shared[lengths > 80].mean() < 0.3  # of long rows there are few
    longest = np.array([lengths[rows].max() for rows in epochs[0]])
    neighbours, any_two = np.abs(np.diff(longest)).mean(), np.abs(longest[:, None] - longest).mean()
    assert 0.8 < neighbours / any_two < 1.2


@pytest.mark.parametrize("seed", [None, (1, 0), (7, 3)])
@pytest.mark.parametrize("max_tokens", [512, 2048, 8192])
def test_on_reviews_padding_wastes_less_than_a_tenth_and_batches_are_full(max_tokens, seed):
    lengths = review_lengths(20_000)
    found = token_batches(lengths, max_tokens, seed)
    padded = sum(len(rows) * lengths[rows].max() for rows in found)
    assert 1 - lengths.sum() / padded < 0.1
    assert padded / (len(found) * max_tokens) > 0.9


# ---- Store -------------------------------------------------------------------------------------------------


def columns_of(numbers):
    """Columns of different shapes and types, each a function of the row's number."""
    numbers = torch.as_tensor(numbers)
    return {"number": numbers, "known": numbers % 3 > 0,
            "teacher_logits": torch.stack([numbers / 7, -numbers / 3], 1)}


def store_of(rows, folder, block=16, columns=columns_of):
    store = Store(folder)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        store.append(encoded_of(part, **columns(range(start, start + len(part)))))
    return store


def numbers_of(windows):
    return [window.columns["number"].tolist() for window in windows]


@pytest.mark.parametrize("seed", [None, (5, 0)])
@pytest.mark.parametrize("block", [1, 16, 200])
@pytest.mark.parametrize("window_tokens", [1, 150, 700, 10**6])
def test_windows_hold_every_row_once_with_its_own_columns(tmp_path, monkeypatch, window_tokens, block, seed):
    monkeypatch.setattr(batches, "WINDOW", window_tokens)
    rows = random_rows(101)
    store = store_of(rows, tmp_path, block)
    windows = list(store.windows(CPU, seed))
    assert len(store) == 101 and sorted(chain.from_iterable(numbers_of(windows))) == list(range(101))
    blocks = [set(range(start, min(start + block, 101))) for start in range(0, 101, block)]
    for window, numbers in zip(windows, numbers_of(windows), strict=True):
        assert rows_of(window) == [rows[i] for i in numbers] and window.numbers.tolist() == numbers
        assert window.lengths.tolist() == [len(rows[i]) for i in numbers]
        for name, column in columns_of(numbers).items():
            assert window.columns[name].dtype == column.dtype and torch.equal(window.columns[name], column)
        assert (window.pad_id, window.tokens.dtype, window.lengths.dtype) == (99, torch.int32, np.int64)
        complete = [part for part in blocks if part <= set(numbers)]
        assert sum(map(len, complete)) == len(numbers)
        assert len(window.tokens) <= window_tokens or len(complete) == 1
        batch = window.batch(np.array([len(window) - 1, 0]))
        assert batch["number"].tolist() == [numbers[-1], numbers[0]]
        assert batch["input_ids"][0, : batch["lengths"][0]].tolist() == rows[numbers[-1]]
    for one, other in pairwise(windows):  # filled before the next begins
        first = next(part for part in blocks if other.columns["number"][0].item() in part)
        assert len(one.tokens) + sum(len(rows[i]) for i in first) > window_tokens
    assert (len(windows) == 1) == (window_tokens >= sum(map(len, rows)) or block == 200)


def test_the_seed_alone_decides_the_order_of_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 300)
    store = store_of(random_rows(200), tmp_path)
    first = numbers_of(store.windows(CPU, (1, 0)))
    np.random.seed(5)  # the global generator must not matter
    assert len(first) > 3 and numbers_of(store.windows(CPU, (1, 0))) == first
    assert list(chain.from_iterable(numbers_of(store.windows(CPU)))) == list(range(200))
    for other in ((1, 1), (2, 0), None):
        again = numbers_of(store.windows(CPU, other))
        assert again != first and {frozenset(window) for window in again} != {frozenset(w) for w in first}


def test_rows_that_fit_are_read_once_and_more_a_window_at_a_time(tmp_path, monkeypatch):
    """They fit at WINDOW tokens exactly. One window after the other is what keeps memory small."""
    rows = random_rows(50)
    monkeypatch.setattr(batches, "WINDOW", sum(map(len, rows)))
    store = store_of(rows, tmp_path)
    (first,) = store.windows(CPU, (0, 0))
    for file, *_ in store.files.values():
        file.close()
    assert [window is first for window in store.windows(CPU, (0, 1))] == [True]
    assert rows_of(first) == rows

    monkeypatch.setattr(batches, "WINDOW", sum(map(len, rows)) - 1)
    store = store_of(rows, tmp_path)
    read, reads = store._read, []
    monkeypatch.setattr(store, "_read", lambda blocks: reads.append(len(blocks)) or read(blocks))
    for count, _ in enumerate(store.windows(CPU), 1):
        assert len(reads) == count
    assert count == 2 and store.resident is None


def test_scratch_files_lie_in_the_folder_without_a_name(tmp_path, monkeypatch):
    """The folder is on the disk the user chose, /tmp may be memory; a killed run leaves nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    monkeypatch.setattr(batches, "WINDOW", 100)
    store = store_of(random_rows(100), tmp_path / "made" / "by it")
    assert len(list(store.windows(CPU))) > 1
    assert list((tmp_path / "made" / "by it").iterdir()) == []
    (tmp_path / "file").touch()
    refused(lambda: store_of(random_rows(1), tmp_path / "file"), rf"^{tmp_path}/file: cannot write")


# ---- training_batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("known_only", [False, True])
@pytest.mark.parametrize("window_tokens", [200, 10**6])
def test_an_epoch_yields_every_row_once(tmp_path, monkeypatch, window_tokens, known_only):
    monkeypatch.setattr(batches, "WINDOW", window_tokens)
    rows = random_rows(150)
    store = store_of(rows, tmp_path)
    orders = []
    for epoch in (0, 0, 1):
        numbers = []
        for window, batch in training_batches(store, 40, (4, epoch), CPU, known_only):
            numbers.append(window.columns["number"][torch.from_numpy(batch)].tolist())
            assert len(batch) == 1 or len(batch) * max(len(rows[i]) for i in numbers[-1]) <= 40
            assert window.batch(batch)["lengths"].tolist() == [len(rows[i]) for i in numbers[-1]]
        assert sorted(chain.from_iterable(numbers)) == [i for i in range(150) if not known_only or i % 3 > 0]
        orders.append(numbers)
    assert orders[0] == orders[1] != orders[2]


def test_a_window_without_any_answer_gives_no_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 1)  # each block is a window
    store = store_of(random_rows(64), tmp_path,
                     columns=lambda numbers: {"known": torch.tensor([i // 16 % 2 == 0 for i in numbers])})
    found = list(training_batches(store, 40, (0, 0), CPU, known_only=True))
    assert sum(len(rows) for _, rows in found) == 32
    assert all(window.batch(rows)["known"].all() for window, rows in found)


def test_every_window_has_its_own_order_of_rows(tmp_path, monkeypatch):
    """Rows of one length, windows of one size: the same draw for each would show."""
    monkeypatch.setattr(batches, "WINDOW", 1)
    store = store_of([[1, 2]] * 64, tmp_path)
    orders = {}
    for window, rows in training_batches(store, 8, (3, 0), CPU):
        orders.setdefault(id(window.tokens), (window, []))[1].extend(rows.tolist())
    assert len({tuple(order) for _, order in orders.values()}) == len(orders) == 4


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
    rows = random_rows(101, seed=3)
    second = [i % 20 for i in range(101)]
    toy, count = Toy().train(), Count()
    encoded = encoded_of(rows, second=second, target=second)  # targets are not for the model
    logits = logits_in_order(toy, encoded, max_tokens, progress=count)
    expected = [[sum(row), row[0], row[-1], len(row), at] for row, at in zip(rows, second, strict=True)]
    assert logits.tolist() == expected  # dropout of 0.9 is off
    assert (logits.dtype, logits.device.type) == (torch.float32, "cpu")
    assert toy.sizes == count and sum(count) == 101
    assert (max(toy.sizes) == 1) == (max_tokens == 1)


@pytest.mark.parametrize("world", [2, 3, 50])
def test_ranks_share_the_batches_and_their_sum_is_all_of_them(monkeypatch, world):
    """Each batch has one rank, but for the first, which tells all ranks the number of outputs."""
    encoded = encoded_of(random_rows(60), second=[3] * 60)
    alone, parts, sizes = logits_in_order(Toy(), encoded, 40), [], []
    monkeypatch.setattr(batches, "WORLD", world)
    monkeypatch.setattr(batches, "sum_over_ranks", lambda tensors: None)
    for rank in range(world):
        monkeypatch.setattr(batches, "RANK", rank)
        toy, count = Toy(), Count()
        parts.append(logits_in_order(toy, encoded, 40, progress=count))
        sizes += toy.sizes[1 if rank else 0 :]
        assert sum(count) == 60  # the rows of all ranks: rank 0 alone shows them
    assert torch.equal(sum(parts), alone)
    assert sorted(sizes) == sorted(map(len, token_batches(encoded.lengths, 40)))
    assert all(((part != 0).any(1).int().sum() < 60) for part in parts)


def test_bf16_is_used_when_asked_for_and_comes_back_as_float32():
    class Linear(torch.nn.Linear):
        def forward(self, input_ids, lengths):
            self.output = super().forward(input_ids.float())
            return self.output

    linear, encoded = Linear(3, 2), encoded_of([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    expected = torch.arange(1.0, 10).view(3, 3) @ linear.weight.T + linear.bias
    for precision, dtype, tolerance in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 0.1)):
        logits = logits_in_order(linear, encoded, 100, precision)
        assert (linear.output.dtype, logits.dtype) == (dtype, torch.float32)
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
