"""Students of pairs: both forms against references, padding, files, the command line, and every script."""

import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import equal, interrupted, read, refused, run, write_rows
from test_student import new_student, word_tokenizer
from test_torchrun import TOLERANCE, largest_difference, two
from torch import nn

import distill
import student as student_py
from data.batches import Store, encode, inputs, logits_in_order, token_batches, training_batches
from student import PAIRS, POOLINGS, SIZES, Student, StudentConfig, StudentError, widths

SINGLE = {"large": 1_175_554, "base": 391_170, "small": 146_434, "mini": 52_418, "tiny": 27_394}
COUNTS = {"align": {"large": 1_175_170, "base": 390_978, "small": 146_338, "mini": 51_890, "tiny": 27_370},
          "siamese": {"large": 1_174_082, "base": 390_434, "small": 146_066, "mini": 52_070, "tiny": 27_302}}
CPU = "--device cpu --precision fp32"
WORDS = [f"단어{i}" for i in range(2, 40)]


def texts(count: int, seed: int, most: int = 9) -> list[str]:
    """Of 0 to `most` words that new_student() knows."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(0, most + 1))) for _ in range(count)]


def forms(**options):
    """A student of each form and, of siamese ones, of each pooling."""
    for pair, pooling in [("align", "last"), *(("siamese", pooling) for pooling in POOLINGS)]:
        student = new_student(pair=pair, pooling=pooling, head="relu", **options)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.normal_(std=0.5)  # small weights would hide a wrong term
        yield student


# ---- the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pair", "size"), list(itertools.product(PAIRS, SIZES)))
def test_a_size_has_as_many_parameters_for_pairs_as_for_single_texts(pair, size):
    config = StudentConfig(3000, 2, *widths(size, pair), head="relu", pair=pair)
    count = sum(p.numel() for p in Student(config, word_tokenizer(3000), ["0", "1"]).parameters())
    assert count == COUNTS[pair][size] == pytest.approx(SINGLE[size], rel=0.02)
    assert widths(size, pair)[0] == SIZES[size][0]


def states_by_hand(layer, xs: list) -> list:
    """One BiLSTMLayer over one text, a position at a time: the states of both directions at each token."""
    both = []
    for lstm, inputs_ in ((layer.ahead, xs), (layer.behind, xs[::-1])):
        h, c, states = *xs[0].new_zeros(2, lstm.hidden_size), []
        for x in inputs_:
            i, f, g, o = (lstm.weight_ih_l0 @ x + lstm.bias_ih_l0
                          + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        both.append(states)
    return [torch.cat([a, b]) for a, b in zip(both[0], both[1][::-1], strict=True)]


def encoded_by_hand(student, ids: list[int], others=()) -> list:
    xs = [student.embedding.weight[i] + (student.common.weight[:, 0] if i in others else 0) for i in ids]
    for layer in student.layers:
        xs = states_by_hand(layer, xs)
    return xs


def aligned_by_hand(student, ids: list[int], ids2: list[int]):
    """ESIM's equations 11 to 20 for one pair, by loops over positions; a token of both texts has a mark."""
    one, other, pooled = encoded_by_hand(student, ids, ids2), encoded_by_hand(student, ids2, ids), []
    for mine, theirs in ((one, other), (other, one)):
        composed = []
        for a in mine:
            weights = [float(a @ b) for b in theirs]
            weights = [np.exp(w - max(weights)) for w in weights]
            soft = sum(w / sum(weights) * b for w, b in zip(weights, theirs, strict=True))
            features = torch.cat([a, soft, a - soft, a * soft])
            composed.append(torch.relu(student.projection.weight @ features + student.projection.bias))
        states = states_by_hand(student.composition, composed)
        pooled += [sum(states) / len(states), torch.stack(states).max(0).values]
    first, _, _, last = student.head
    return last.weight @ torch.relu(first.weight @ torch.cat(pooled) + first.bias) + last.bias


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_align_equals_a_reference_of_loops(num_layers):
    student = next(forms(num_layers=num_layers)).double()
    generator, rows = torch.Generator().manual_seed(3), []
    for n, m in ((1, 1), (1, 5), (6, 1), (4, 7), (7, 4)):
        rows.append([torch.randint(2, 9, (k,), generator=generator).tolist() for k in (n, m)])
    assert {bool(set(one) & set(other)) for one, other in rows} == {True, False}
    expected = torch.stack([aligned_by_hand(student, *row) for row in rows])
    padded = [[ids + [9] * (8 - len(ids)) for ids in column] for column in zip(*rows, strict=True)]
    lengths = [torch.tensor([len(ids) for ids in column]) for column in zip(*rows, strict=True)]
    found = student(torch.tensor(padded[0]), lengths[0], torch.tensor(padded[1]), lengths[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert expected.std(0).min() > 0.01  # equal rows would prove nothing
    alone = student(torch.tensor([rows[3][0]]), None, torch.tensor([rows[3][1]]))
    torch.testing.assert_close(alone, expected[3:4], rtol=0, atol=1e-6)


@torch.no_grad()
def test_siamese_sees_both_vectors_their_distance_and_their_product():
    """Equation by equation of Tang et al. (2019), section 3.2, over the last states of both directions."""
    student = new_student(pair="siamese", head="relu", dropout=0.4)
    ids, ids2 = [3, 4, 5], [6, 7]
    u, v = (torch.cat([states[-1][:5], states[0][5:]])
            for states in (encoded_by_hand(student, ids), encoded_by_hand(student, ids2)))
    first, _, _, last = student.head
    features = torch.cat([u, v, (u - v).abs(), u * v])
    expected = last.weight @ torch.relu(first.weight @ features + first.bias) + last.bias
    found = student(torch.tensor([ids]), None, torch.tensor([ids2]))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_padding_and_neighbours_never_reach_a_pair(num_layers):
    generator = torch.Generator().manual_seed(1)
    for student in forms(num_layers=num_layers):
        for _ in range(5):
            batch = []
            for _ in range(2):
                lengths = torch.randint(1, 12, (6,), generator=generator)
                longest = int(lengths.max()) + int(torch.randint(0, 5, (), generator=generator))
                # What stands in the padding must not matter either, so it is filled with tokens.
                batch += [torch.randint(2, 40, (6, longest), generator=generator), lengths]
            together = student(*batch)
            for row in range(6):
                one, two_ = (batch[i][row : row + 1, : batch[i + 1][row]] for i in (0, 2))
                alone = student(one, None, two_, None)
                torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-6)


def test_a_gradient_reaches_every_parameter_and_none_is_of_padding():
    for student in forms():
        ids = torch.tensor([[3, 6, 0, 0], [5, 6, 7, 8]])
        student(ids, torch.tensor([2, 4]), ids.flip(0), torch.tensor([4, 2])).square().sum().backward()
        for name, parameter in student.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("options", [{"pair": "esim"}, {"pair": 1}, {"pair": ["align"]},
                                     {"pair": "align", "pooling": "max"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(StudentError, match=r"pair|pooling"):
        new_student(**options)


# ---- predict, embed, files ---------------------------------------------------------------------------------


@torch.no_grad()
def test_predict_gives_each_pair_what_it_gives_it_alone(monkeypatch):
    monkeypatch.setattr("student.CHUNK", 16)  # more than one chunk
    monkeypatch.setattr("student.PART", 5)
    one, other = texts(40, 1), texts(40, 2)
    for student in forms(max_length=6, blank_id=7, temperature=1.5):
        together = student.predict(one, other, max_tokens=40)
        ids = [[[int(word[2:]) for word in text.split()][:6] or [7] for text in column]
               for column in (one, other)]  # each text is cut at max_length; an empty one is the blank
        for row, (mine, theirs) in enumerate(zip(*ids, strict=True)):
            expected = (student(torch.tensor([mine]), None, torch.tensor([theirs])) / 1.5).softmax(1)
            torch.testing.assert_close(together[row : row + 1], expected, rtol=0, atol=1e-6)
        assert together.std(0).max() > 0.01
        assert student.predict([], []).shape == (0, 3)
        assert student.answers(one, other) == [student.label_names[i] for i in together.argmax(1)]
    swapped = student.predict(other, one)
    assert not torch.allclose(swapped, together, atol=1e-3)  # which text is the first matters


def test_no_batch_has_more_tokens_than_asked_padding_of_both_texts_counted(monkeypatch):
    student, seen = new_student(pair="align"), []
    forward = student.forward

    def counted(ids, lengths, ids2, lengths2):
        seen.append((len(ids), ids.numel() + ids2.numel()))
        return forward(ids, lengths, ids2, lengths2)

    monkeypatch.setattr(student, "forward", counted)
    student.predict(texts(50, 1), texts(50, 2), max_tokens=60)
    assert sum(rows for rows, _ in seen) == 50 and max(tokens for _, tokens in seen) <= 60
    assert len(seen) < 25


def test_a_student_knows_whether_it_reads_pairs(tmp_path):
    for student in (new_student(pair="siamese"), new_student(pair="align"), new_student()):
        student.save(tmp_path / "s.pt")
        loaded = Student.load(tmp_path / "s.pt")
        for model in (student, loaded):
            row = [["단어2"]] if model.config.pair else [["단어2"], ["단어3"]]
            for call in (model.predict, model.logits, model.answers):
                with pytest.raises(StudentError, match=r"pairs.*texts2"):
                    call(*row)
        assert loaded.pairs == (loaded.config.pair is not None) == loaded.reads["apart"]
        # Older versions read the files of single texts, and say of pairs that they cannot.
        assert read(tmp_path / "s.pt")["format"] == (3 if loaded.config.pair else 2)


def test_files_of_pairs_come_back_as_they_were(tmp_path):
    one, other = texts(20, 1), texts(20, 2)
    for student in forms(num_layers=2):
        for precision, tolerance in (("float32", 0), ("float16", 5e-3), ("int8", 0.1)):
            student.save(tmp_path / "s.pt", precision)
            loaded = Student.load(tmp_path / "s.pt")
            assert loaded.config == student.config
            found, expected = loaded.predict(one, other), student.predict(one, other)
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_an_old_file_reads_a_pair_as_one_text_and_stays_an_old_file(tmp_path):
    """It does not tell whether it was trained on pairs: it takes both, with the numbers that it had."""
    old = new_student()
    old.save(tmp_path / "s.pt")
    artifact = read(tmp_path / "s.pt")
    assert "pair" not in artifact["config"] and artifact.pop("pairs") is False
    torch.save(artifact, tmp_path / "old.pt")
    for precision in ("float32", "int8"):
        student = Student.load(tmp_path / "old.pt")
        student.save(tmp_path / "again.pt", precision)
        loaded = Student.load(tmp_path / "again.pt")
        assert student.pairs is None and loaded.pairs is None and loaded.reads["apart"] is None
        joined = loaded(torch.tensor([[2, 3, 4]])).softmax(1)  # this tokenizer puts nothing between
        torch.testing.assert_close(loaded.predict(["단어2 단어3"], ["단어4"]), joined, rtol=0, atol=1e-6)
        torch.testing.assert_close(loaded.predict(["단어2 단어3 단어4"]), joined, rtol=0, atol=1e-6)
    encoded = encode(loaded.tokenizer, ["단어2 단어3"], ["단어4"], **loaded.reads)
    assert encoded.tokens.tolist() == [2, 3, 4] and encoded.lengths.tolist() == [3]
    assert torch.equal(logits_in_order(loaded, encoded, 10), loaded(torch.tensor([[2, 3, 4]])))


@torch.no_grad()
def test_vectors_of_texts_make_the_logits_of_pairs():
    one, other = texts(30, 1), texts(30, 2)
    for student in list(forms(max_length=6, temperature=1.5))[1:]:
        u, v = student.embed(one, max_tokens=40), student.embed(other)
        assert u.shape == (30, 10) and u.dtype == torch.float32 and not u.requires_grad
        by_hand = student.head(torch.cat([u, v, (u - v).abs(), u * v], 1))
        torch.testing.assert_close(student.compare(u, v), by_hand, rtol=0, atol=0)
        torch.testing.assert_close(student.logits(one, other), by_hand / 1.5, rtol=0, atol=1e-6)
        torch.testing.assert_close(u[4:5], student.embed(one[4:5]), rtol=0, atol=1e-6)
    student.config.mean, student.config.deviation = 3.0, 2.0  # of scores
    torch.testing.assert_close(student.compare(u, v), by_hand * 2 + 3)
    for wrong in (new_student(pair="align"), new_student()):
        with pytest.raises(StudentError, match="siamese"):
            wrong.embed(one)
        with pytest.raises(StudentError, match=r"compare .* siamese"):
            wrong.compare(u, v)
    for wrong in ((u[:, 1:], v[:, 1:]), (u, v[:1]), (u[0], v[0])):
        with pytest.raises(StudentError, match="compare"):
            student.compare(*wrong)
    with pytest.raises(TypeError, match=r"texts\[1\].*int"):
        student.embed(["단어2", 5])


# ---- the command line --------------------------------------------------------------------------------------


def said(capsys, *args) -> list[list[str]]:
    student_py.main(student_py.parse_args([*map(str, args)]))
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_arguments_are_pairs_two_by_two_and_lines_have_a_tab(tmp_path, capsys, monkeypatch):
    student = new_student(pair="align")
    student.save(tmp_path / "s.pt")
    p = student.predict(["단어5", "단어 6"], ["단어7 단어8", ""])
    expected = [[student.label_names[row.argmax()], f"{row.max():.4f}"] for row in p]
    assert said(capsys, tmp_path / "s.pt", "단어5", "단어7 단어8", "단어 6", "") == [
        [*expected[0], "단어5", "단어7 단어8"], [*expected[1], "단어 6", ""]]
    for count in (1, 3):
        with pytest.raises(StudentError, match=rf"pairs.*even.*{count}$"):
            said(capsys, tmp_path / "s.pt", *["단어5"] * count)

    def lines(*rows):
        stdin = io.TextIOWrapper(io.BytesIO("\r\n".join(rows).encode()), encoding="cp949", newline="\n")
        monkeypatch.setattr(sys, "stdin", stdin)

    lines("\ufeff단어5\t단어7 단어8", "단어 6\t")
    assert said(capsys, tmp_path / "s.pt") == [
        [*expected[0], "단어5", "단어7 단어8"], [*expected[1], "단어 6", ""]]
    for wrong, tabs in (("단어5", 0), ("", 0), ("a\tb\tc", 2)):
        lines("단어5\t단어7 단어8", wrong, "단어5\t단어6")
        with pytest.raises(StudentError, match=rf"line 2 .*{tabs} tabs.*pairs"):
            said(capsys, tmp_path / "s.pt")
        assert capsys.readouterr().out.splitlines() == ["\t".join([*expected[0], "단어5", "단어7 단어8"])]


def test_lines_are_counted_over_all_lists():
    lists = student_py.in_pairs(iter([["a\tb", "c\td"], ["e\tf"], ["g\th", "i"]]))
    assert list(itertools.islice(lists, 3)) == [[["a", "c"], ["b", "d"]], [["e"], ["f"]], [["g"], ["h"]]]
    with pytest.raises(StudentError, match="line 5 "):
        next(lists)


def test_a_student_of_single_texts_takes_each_argument_alone(tmp_path, capsys):
    new_student().save(tmp_path / "s.pt")
    assert [line[2:] for line in said(capsys, tmp_path / "s.pt", "단어5", "단어6", "단어7")] == [
        ["단어5"], ["단어6"], ["단어7"]]


# ---- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_windows", [False, True])
def test_pairs_apart_come_back_from_batches_and_scratch_files(tmp_path, monkeypatch, small_windows):
    monkeypatch.setattr("data.batches.CHUNK", 8)
    if small_windows:
        monkeypatch.setattr("data.batches.WINDOW", 100)
    one, other, store = texts(60, 1), texts(60, 2), Store(tmp_path)
    for start in range(0, 60, 20):
        part = slice(start, start + 20)
        encoded = encode(word_tokenizer(40), one[part], other[part], 5, pad_id=0, blank_id=1, apart=True)
        encoded.columns["known"] = torch.ones(20, dtype=torch.bool)
        store.append(encoded)
    expected = [[[int(word[2:]) for word in text.split()][:5] or [1] for text in row]
                for row in zip(one, other, strict=True)]
    found, windows = {}, 0
    for window, rows in training_batches(store, 60, (1, 2), torch.device("cpu")):
        batch = inputs(window.batch(rows))
        assert list(batch) == ["input_ids", "lengths", "input_ids2", "lengths2"]
        assert batch["input_ids"].numel() + batch["input_ids2"].numel() <= 60
        windows = max(windows, len(store) // len(window))
        for i, number in enumerate(window.numbers[rows]):
            for name in ("", "2"):
                ids, length = batch[f"input_ids{name}"][i], batch[f"lengths{name}"][i]
                assert not ids[length:].any() and ids.dtype == torch.int64
                found.setdefault(int(number), []).append(ids[:length].tolist())
            assert batch["input_ids"].size(1) == batch["lengths"].max()
    assert found == dict(enumerate(expected)) and (windows > 1) == small_windows


def test_sorting_keeps_the_padding_of_pairs_small():
    random = np.random.default_rng(0)
    lengths = np.maximum(1, random.poisson(12, (2000, 1)) + random.integers(-3, 4, (2000, 2)))
    encoded = encode(word_tokenizer(40), *([" ".join(["단어2"] * n) for n in lengths[:, i]] for i in (0, 1)),
                     99, 0, 1, apart=True)
    assert encoded.lengths.tolist() == lengths.tolist()
    padded = sum(len(rows) * encoded.lengths[rows].max(0).sum()
                 for rows in token_batches(encoded.sizes, 1024, (0, 0)))
    assert padded < 1.25 * lengths.sum()


# ---- the scripts -------------------------------------------------------------------------------------------

PARTS = {"train": 300, "valid": 80}
SAME = f"--train train.tsv --valid valid.tsv --tokenizer tok --alpha 1 --size mini --max-tokens 512 {CPU}"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder: train.tsv and valid.tsv, of pairs that have a word in common (1) or none (0); tok; an align
    and a siamese student of labels alone in students. To read."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        random = np.random.default_rng(0)
        for name, count in PARTS.items():
            rows = []
            for i in range(count):
                words = [f"말{j}" for j in random.permutation(12)]
                first, second = words[: random.integers(1, 4)], words[4 : 4 + random.integers(1, 3)]
                if i % 2:
                    second[0] = first[-1]
                rows.append((" ".join(first), " ".join(second), str(i % 2)))
            write_rows(folder / f"{name}.tsv", rows, "text\ttext2\tlabel")
        run("train_tokenizer", "--data train.tsv --vocab-size 60 --min-frequency 1 --output-dir .")
        Path("vocab_size_60").rename("tok")
        run("distill", f"{SAME} --epochs 10 --pair align siamese")
    return folder


@pytest.fixture
def inside(pairs, monkeypatch):
    monkeypatch.chdir(pairs)
    return pairs


@pytest.fixture
def copied(pairs, tmp_path, monkeypatch):
    """Links to the folder's files, and an empty place for results."""
    for path in pairs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


ALIGN, SIAMESE = "students/mini-tok-alpha1/student.pt", "students/mini-tok-siamese-alpha1/student.pt"


def test_align_is_what_files_with_text2_get_and_it_learns_to_compare(inside, capsys):
    align, siamese = Student.load(ALIGN), Student.load(SIAMESE)
    assert (align.config.pair, align.config.hidden_dim, align.config.head) == ("align", 8, "relu")
    assert (siamese.config.pair, siamese.config.hidden_dim, siamese.config.head, siamese.config.pooling) == (
        "siamese", 12, "relu", "max")
    run("evaluate", f"{ALIGN} {SIAMESE} --data valid.tsv --json --device cpu")
    models = json.loads(capsys.readouterr().out)["models"]
    assert models[0]["accuracy"] > 0.95  # the commonest class has 0.5
    for model, path in zip(models, (ALIGN, SIAMESE), strict=True):
        stored = read(Path(path).with_name("last.pt"))["at"]["best"]["valid_accuracy"]
        assert model["accuracy"] == pytest.approx(stored)
    header, *lines = Path("students/summary.tsv").read_text("utf-8").splitlines()
    assert header.split("\t")[0] == "pair" and {line.split("\t")[0] for line in lines} == {"align", "siamese"}
    run("distill", f"{SAME} --epochs 10")  # the default is the one that was named
    assert "finished" in capsys.readouterr().out


def test_widths_and_head_can_be_chosen(inside, tmp_path):
    run("distill", f"{SAME} --epochs 1 --pair siamese --embedding-dim 4 --hidden-dim 6 --head linear "
                   f"--pooling last --max-length 2 --output-dir {tmp_path}")
    student = Student.load(tmp_path / "mini-tok-siamese-e4-h6-last-linear-alpha1/student.pt")
    assert isinstance(student.head, nn.Linear) and student.head.in_features == 8 * 6
    assert student.embedding.embedding_dim == 4
    short = student.predict(["말1 말2"], ["말3"])  # each text is cut, neither takes room from the other
    assert torch.equal(short, student.predict(["말1 말2 말5 말6"], ["말3"]))
    assert not torch.equal(short, student.predict(["말1 말2"], ["말4"]))


def test_what_is_not_for_pairs_or_not_for_single_texts_is_refused(inside, tmp_path):
    write_rows(tmp_path / "one.tsv", [("말1", "0"), ("말2", "1")])
    one = SAME.replace("train.tsv", str(tmp_path / "one.tsv")).replace("valid.tsv", str(tmp_path / "one.tsv"))
    refused(lambda: run("distill", f"{one} --pair siamese --output-dir {tmp_path}/a"), "--pair", "text2")
    with pytest.raises(StudentError, match="pooling"):
        run("distill", f"{SAME} --pooling max --output-dir {tmp_path}/a")
    run("distill", f"{one} --epochs 1 --output-dir {tmp_path}/single")
    single = tmp_path / "single/mini-tok-alpha1/student.pt"
    for model, data in ((ALIGN, tmp_path / "one.tsv"), (single, "valid.tsv")):
        words = "pairs" if model == ALIGN else "single texts"
        refused(lambda model=model, data=data: run("evaluate", f"{model} --data {data} --device cpu"),
                str(model), words, "texts2")
        refused(lambda model=model, data=data: run(
            "dump_logits", f"--teacher {model} --data {data} --output-dir {tmp_path}/a {CPU}"),
            str(model), str(data), words, "text2")
        refused(lambda model=model, data=data: run(
            "extra.quantize", f"{model} --data {data} --out {tmp_path}/a/s.pt"), words, "text2")
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").glob("*.pt"))


def test_a_student_of_pairs_teaches(copied):
    flags = f"--teacher {ALIGN} --data train.tsv --output-dir logits {CPU} --max-tokens 100"
    run("dump_logits", flags)
    student, logits = Student.load(ALIGN), read("logits/train.pt")["logits"]
    rows = [line.split("\t") for line in Path("train.tsv").read_text("utf-8").splitlines()[1:]]
    expected = student.logits([row[0] for row in rows], [row[1] for row in rows]) * student.config.temperature
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    run("dump_logits", f"{flags} --check 50")
    run("distill", f"--train train.tsv --logits logits/train.pt --valid valid.tsv --tokenizer tok "
                   f"--size mini --epochs 16 --max-tokens 256 --output-dir taught {CPU}")
    student = Student.load("taught/mini-tok/student.pt")
    assert student.artifact["scores"]["valid_accuracy"] > 0.9


def test_a_smaller_copy_answers_alike(inside, tmp_path, capsys):
    run("extra.quantize", f"{ALIGN} --data valid.tsv --out {tmp_path}/s.pt")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))
    assert abs(float(line.split()[1]) - float(line.split()[2])) < 0.03
    small, student = Student.load(tmp_path / "s.pt"), Student.load(ALIGN)
    assert small.pairs is True and small.config == student.config


def test_the_budget_is_searched_for_pairs_too(copied, monkeypatch):
    from extra import search_budget

    monkeypatch.setattr(search_budget, "run_distill", lambda words: distill.main(distill.parse_args(words)))
    for pair, floor in (("align", 8), ("siamese", 16)):
        run("extra.search_budget", f"--budget 40KB --tokenizer tok --epochs 1 --output-dir {pair} -- "
            f"--pair {pair} --train train.tsv --valid valid.tsv --alpha 1 {CPU}")
        best, = Path(pair, "best").glob("*/student.int8.pt")
        student = Student.load(best)
        assert student.config.pair == pair and student.config.hidden_dim >= floor
        assert 30_000 < best.stat().st_size <= 40_000  # nearly as wide as fits


def test_a_look_cuts_each_text_alone(inside, capsys, tmp_path):
    rows = [("말1 말2 말3", "말4", "0"), ("말1", "말4 말2 말3", "1"), ("말1 말2", "말4 말5", "0")]
    write_rows(tmp_path / "t.tsv", rows, "text\ttext2\tlabel")
    run("distill", f"{SAME} --train {tmp_path}/t.tsv --epochs 1 --max-length 2 --output-dir {tmp_path}")
    assert f"66.67% of texts cut at 2 tokens (first at {tmp_path}/t.tsv:2)" in capsys.readouterr().out


def test_an_interrupted_student_of_pairs_goes_on_to_the_same_bits(copied):
    flags = f"{SAME} --epochs 3 --output-dir"
    interrupted("distill", f"{flags} one", 8)
    run("distill", f"{flags} one")
    run("distill", f"{flags} two")
    weights = [read(f"{name}/mini-tok-alpha1/student.pt")["weights"] for name in ("one", "two")]
    assert equal(*weights)


def test_a_finished_run_from_before_pairs_is_left_alone(here, capsys):
    """A student of single texts, whose last.pt has neither --pair nor --start."""
    path = Path("students/tiny/last.pt")
    state = read(path)
    assert state["made_by"]["arguments"].pop("pair") is None
    assert state["made_by"]["fingerprints"].pop("--start") is None
    torch.save(state, path)
    from helpers import STUDENT, TAUGHT
    run("distill", f"{TAUGHT} {STUDENT}")
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("pair", PAIRS)
def test_two_processes_train_what_one_trains(copied, pair):
    flags = f"{SAME} --epochs 2 --clip 2 --pair {pair} --output-dir"
    run("distill", f"{flags} one")
    for process in two("distill", f"{flags} two"):
        assert process.returncode == 0
    one, other = (next(Path(name).glob("*/last.pt")) for name in ("one", "two"))
    assert largest_difference(read(one)["weights"], read(other)["weights"]) < TOLERANCE


# ---- --start -----------------------------------------------------------------------------------------------


def test_start_takes_all_layers_but_the_head_of_another_task(copied):
    start = Student.load(ALIGN)
    rows = [line.split("\t") for line in Path("train.tsv").read_text("utf-8").splitlines()[1:]]
    write_rows(Path("scores.tsv"), [(*row[:2], f"{2 + int(row[2])}") for row in rows], "text\ttext2\tscore")
    flags = SAME.replace("train.tsv", "scores.tsv").replace("valid.tsv", "scores.tsv")
    args = distill.parse_args([*flags.split(), "--start", ALIGN, "--lr", "1e-9", "--epochs", "1"])
    distill.main(args)
    student = Student.load("students/mini-tok-alpha1-lr1e-09/student.pt")
    assert (student.task, student.config.temperature, student.config.thresholds) == ("regression", 1, None)
    mine, theirs = student.state_dict(), start.state_dict()
    same = {name for name in mine if mine[name].shape == theirs[name].shape
            and torch.allclose(mine[name], theirs[name], atol=1e-6)}
    assert same == {name for name in mine if not name.startswith("head.")}
    assert {"embedding.weight", "projection.weight", "composition.behind.bias_hh_l0"} <= same


def test_a_start_that_does_not_fit_is_refused_with_what_differs(copied):
    out = "--output-dir a"
    for flags, differs in ((f"--start {SIAMESE}",
                            r"hidden_dim \(12, here 8\), pooling \(max, here last\), pair \(siamese"),
                           (f"--start {ALIGN} --embedding-dim 4 --num-layers 2",
                            r"embedding_dim \(16, here 4\), num_layers \(1, here 2\)")):
        message = refused(lambda flags=flags: run("distill", f"{SAME} {out} {flags}"), differs)
        assert "tokenizer" not in message
    run("train_tokenizer",
        "--data train.tsv --vocab-size 60 --min-frequency 1 --type wordpiece --output-dir .")
    other = SAME.replace("tok ", "vocab_size_60 ")
    refused(lambda: run("distill", f"{other} {out} --start {ALIGN}"), "the tokenizer;")
    with pytest.raises(SystemExit):
        distill.parse_args([*SAME.split(), "--start", ALIGN, "--embeddings", "random"])
    assert not list(Path("a").rglob("*.pt"))


def test_a_run_goes_on_with_its_own_start_only(copied):
    flags, folder = f"{SAME} --epochs 2 --output-dir a", "mini-tok-alpha1"
    run("distill", f"{SAME} --epochs 1 --seed 1 --output-dir other")
    other = "other/mini-tok-alpha1-seed1/student.pt"
    interrupted("distill", f"{flags} --start {ALIGN}", 5)
    for wrong in ("", f"--start {other}"):
        refused(lambda wrong=wrong: run("distill", f"{flags} {wrong}"), rf"a/{folder}", "--start")
    run("distill", f"{flags} --start {ALIGN}")
    run("distill", f"{flags[:-1]}b --start {ALIGN}")
    run("distill", f"{flags[:-1]}c")
    weights = [read(f"{name}/{folder}/student.pt")["weights"] for name in "abc"]
    assert equal(weights[0], weights[1]) and not equal(weights[0], weights[2])
    refused(lambda: run("distill", f"{flags[:-1]}c --start {ALIGN}"), "--start")


# ---- ONNX --------------------------------------------------------------------------------------------------


@pytest.mark.optional
@pytest.mark.parametrize("num_layers", [1, 2])
def test_graphs_of_pairs_equal_pytorch_for_padded_batches_of_any_size(num_layers):
    onnxruntime = pytest.importorskip("onnxruntime")
    from extra.export_onnx import onnx_bytes

    generator = torch.Generator().manual_seed(2)
    for student in forms(num_layers=num_layers, temperature=1.7):
        session = onnxruntime.InferenceSession(onnx_bytes(student), providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        assert names == ["input_ids", "lengths", "input_ids2", "lengths2"]
        spread = []
        for rows, longest in ((1, (1, 1)), (1, (9, 2)), (5, (4, 7)), (33, (30, 5))):
            batch = {}
            for name, most in zip(("", "2"), longest, strict=True):
                lengths = torch.randint(1, most + 1, (rows,), generator=generator)
                batch[f"input_ids{name}"] = torch.randint(2, 40, (rows, most), generator=generator)
                batch[f"lengths{name}"] = lengths
            found, = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
            with torch.inference_mode():
                expected = (student(**batch) / 1.7).softmax(1)
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
            spread.append(expected)
        assert torch.cat(spread).std(0).max() > 0.005
        empty, full = torch.tensor([[9, 9], [5, 6]]), torch.tensor([0, 2])
        found, = session.run(None, {"input_ids": empty.numpy(), "lengths": full.numpy(),
                                    "input_ids2": empty[:, :0].numpy(), "lengths2": (0 * full).numpy()})
        expected = student.predict(["", "단어5 단어6"], ["", ""])
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
