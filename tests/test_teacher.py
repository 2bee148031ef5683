"""Teachers: logits and tokens equal to those of transformers, faulty published folders, teacher.pt."""

import hashlib
import json
import pickle
import sys
import unicodedata

import huggingface_hub
import pytest
import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer, normalizers

from data.batches import encode, logits_in_order
from data.logits import fingerprints
from data.published import load_tokenizer
from runtime import UserError
from teacher import ACTIVATIONS, Teacher, load_checkpoint

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.optional

TEXTS = ["이 영화 정말 재밌다!", "Café MOVIE was 최고 👍🏽", "", "   ", "노잼", "별로다 ㅠㅠ 漢字 24년 " * 9,
         "[MASK] <mask> 다시\u3000봐도\t좋다", "a", "둘이 보다가 하나가 죽어도 모를 영화..."]
TEXTS2 = ["재미있어요", "", "so so", "그냥", "not BAD at all, 진짜로 " * 8, "연기 최고", " ", "b", "추천👍"]
MAX_LENGTH = 24  # the repeated texts are longer
WORDPIECE = {"do_lower_case": False, "strip_accents": False}
NAMES = {2: ["부정", "긍정"], 3: ["부정", "중립", "긍정"]}
BASE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 40, "initializer_range": 0.2}
FAMILIES = {  # name: (class prefix, config)
    "bert": ("Bert", BASE),
    "electra": ("Electra", BASE | {"embedding_size": 8}),
    "electra-equal": ("Electra", BASE | {"embedding_size": 16}),
    "roberta": ("Roberta", BASE | {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "klue": ("Roberta", BASE | {"type_vocab_size": 1, "pad_token_id": 1}),  # WordPiece in a RoBERTa
    "distilbert": ("DistilBert", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                                  "max_position_embeddings": 40, "initializer_range": 0.2}),
}


def write_vocab(folder, first=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), extra=0):
    """vocab.txt of all characters of TEXTS, whole and decomposed, and a few words; emoji stay unknown."""
    text = "".join(TEXTS + TEXTS2)
    text += text.lower()
    text += unicodedata.normalize("NFD", text)
    letters = sorted({c for c in text if c.isprintable() and not c.isspace() and c < "\U00010000"})
    words = ["영화", "정말", "##영화", "the", "Movie", "movie"] + [f"여분{i}" for i in range(extra)]
    tokens = [*first, *letters, *("##" + c for c in letters), *words]
    lines = "".join(f"{token}\n" for token in dict.fromkeys(tokens))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")


def write_tokenizer(folder, name, **settings):
    """A published tokenizer's files, and the same tokenizer as transformers reads it."""
    folder.mkdir(exist_ok=True)
    if name == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(TEXTS + TEXTS2, vocab_size=400, min_frequency=1, special_tokens=special,
                                show_progress=False)
        bpe.save_model(str(folder))
        # As in every published tokenizer_config.json; transformers 5 no longer has it as its default.
        mask = AddedToken("<mask>", lstrip=True, special=True)
        return transformers.RobertaTokenizerFast.from_pretrained(folder, mask_token=mask)
    klue = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    write_vocab(folder, klue) if name == "klue" else write_vocab(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return transformers.BertTokenizerFast.from_pretrained(folder, **settings)


def randomise(model):
    """Every weight random, biases and LayerNorms too, so that none of them can be forgotten unnoticed."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(float(norm), 0.4)
    return model.eval()


def new_model(name, tokenizer, head="ForSequenceClassification", **options):
    prefix, config = FAMILIES[name]
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), **(config | options))
    return randomise(getattr(transformers, f"{prefix}{head}")(config))


def as_bin(folder, change=lambda tensors: tensors):
    """Replace model.safetensors by pytorch_model.bin, its dict of tensors passed through `change`."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    torch.save(change(tensors), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def publish(folder, name="bert", head="ForSequenceClassification", **options):
    """A published folder with random weights: (model, tokenizer) of transformers."""
    tokenizer = write_tokenizer(folder, name, **WORDPIECE)
    model = new_model(name, tokenizer, head, **options)
    model.save_pretrained(folder)
    return model, tokenizer


def theirs(model, tokenizer, texts, texts2=None, segments=None):
    """Logits as transformers computes them, all rows in one padded batch, segments as its family has them."""
    if segments is None:
        segments = model.config.model_type in ("bert", "electra")
    inputs = tokenizer(texts, texts2, padding=True, truncation=True, max_length=MAX_LENGTH,
                       return_tensors="pt", return_token_type_ids=segments)
    with torch.no_grad():
        return model(**inputs).logits


def ours(teacher, texts, texts2=None, max_tokens=60):
    """Logits (N, C) in small batches of rows of several lengths."""
    return logits_in_order(teacher, encode(teacher.tokenizer, texts, texts2, **teacher.reads), max_tokens)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def test_embeddings_of_another_tokenizers_tokens(tmp_path):
    """Tokens that the teacher has; sub-tokens of one that it lacks; a word without its tokenizer's mark."""
    publish(tmp_path)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    vocab, weight = teacher.tokenizer.get_vocab(), teacher.encoder.word_embeddings.weight.detach()
    known = [token for token in vocab if token.isalpha() and len(token) == 1][:2]
    inner = next(token for token in vocab if token.startswith("##") and token[2:] in vocab)
    found = teacher.embeddings_of(["[PAD]", inner, " ".join(known), f"▁{known[0]}", "▁"])
    both = [vocab[token] for token in known]
    expected = [weight[vocab["[PAD]"]], weight[vocab[inner]], weight[both].mean(0), weight[both[0]],
                weight.mean(0)]
    close(found, torch.stack(expected), 1e-7)


def refused(folder, *parts):
    """The error is one line that names every part: files, tensors, settings, what to do."""
    with pytest.raises(UserError) as error:
        load_checkpoint(str(folder), NAMES[2], MAX_LENGTH)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# ---- equal to transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, activation", [(2, "gelu"), (3, "relu"), (3, "gelu_new")])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers_from_either_weight_file(tmp_path, name, classes, activation):
    options = {"activation" if name == "distilbert" else "hidden_act": activation, "num_labels": classes}
    model, tokenizer = publish(tmp_path, name, **options)
    teacher, report = load_checkpoint(str(tmp_path), NAMES[classes], MAX_LENGTH)
    assert f"{len(model.state_dict())} tensors read, 0 not used, 0 started fresh" in report[0]
    assert str(NAMES[classes]) in report[1] and len(report) == 2  # LABEL_0, … are taken to be these
    results = []
    for texts2 in (None, TEXTS2):
        expected = theirs(model, tokenizer, TEXTS, texts2)
        assert expected.std(0).min() > 0.1  # the texts are told apart
        results.append(ours(teacher, TEXTS, texts2))
        close(results[-1], expected)
        close(ours(teacher, TEXTS, texts2, max_tokens=10_000), expected)  # one padded batch
    close(teacher.logits(TEXTS), theirs(model, tokenizer, TEXTS))
    close(teacher.predict(TEXTS, TEXTS2), theirs(model, tokenizer, TEXTS, TEXTS2).softmax(1))
    assert teacher.predict([]).shape == teacher.logits([]).shape == (0, classes)

    as_bin(tmp_path)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[classes], MAX_LENGTH)
    assert torch.equal(ours(teacher, TEXTS), results[0])
    assert torch.equal(ours(teacher, TEXTS, TEXTS2), results[1])


@pytest.mark.parametrize("problem, classes", [("multi_label_classification", 3), ("regression", 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_labels_and_of_scores_equal_transformers(tmp_path, name, problem, classes):
    """Also where scores are standardised inside."""
    model, tokenizer = publish(tmp_path, name, num_labels=classes, problem_type=problem)
    task, names, unit = {3: ("multilabel", NAMES[3], {}), 1: ("regression", ["score"], {
        "mean": 30.0, "deviation": 7.0})}[classes]
    teacher, report = load_checkpoint(str(tmp_path), names, MAX_LENGTH, task=task, **unit)
    assert "0 not used, 0 started fresh" in report[0] and (teacher.task, teacher.label_names) == (task, names)
    for texts2 in (None, TEXTS2):
        expected = theirs(model, tokenizer, TEXTS, texts2)
        assert expected.std(0).min() > 0.1
        close(ours(teacher, TEXTS, texts2), expected, 1e-4)
        close(teacher.predict(TEXTS, texts2), expected.sigmoid() if classes == 3 else expected, 1e-4)
    teacher.save(tmp_path / "teacher.pt")
    close(Teacher.load(tmp_path / "teacher.pt").logits(TEXTS), theirs(model, tokenizer, TEXTS), 1e-4)


@pytest.mark.parametrize("name, type_vocab_size", [("bert", 1), ("roberta", 2)])
def test_segments_follow_the_tokenizer_not_the_size_of_the_table(tmp_path, name, type_vocab_size):
    model, tokenizer = publish(tmp_path, name, type_vocab_size=type_vocab_size)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    close(ours(teacher, TEXTS, TEXTS2), theirs(model, tokenizer, TEXTS, TEXTS2, segments=False))


@pytest.mark.parametrize("name, settings", [
    ("bert", {}), ("bert", WORDPIECE), ("klue", WORDPIECE), ("roberta", {}),
    ("bert", {"do_lower_case": False}), ("bert", {"do_lower_case": True, "strip_accents": False}),
    ("bert", {"tokenize_chinese_chars": False}),
])  # fmt: skip
@pytest.mark.parametrize("files", ["published", "tokenizer.json"])
def test_token_ids_equal_transformers(tmp_path, name, settings, files):
    reference = write_tokenizer(tmp_path, name, **settings)
    if files == "tokenizer.json":
        (tmp_path / "tokenizer").mkdir()
        reference.save_pretrained(tmp_path / "tokenizer")
        tmp_path /= "tokenizer"
        assert (tmp_path / "tokenizer.json").exists()
    tokenizer = load_tokenizer(tmp_path, "roberta" if name == "roberta" else "bert")
    assert tokenizer.get_vocab() == reference.get_vocab()
    texts = [*TEXTS, "[SEP] </s> [CLS]x<pad>", "가\u0301 ÀÉ İ ﬁ\u200b\u00ad", "ㅋㅋㅋ" * 60]
    assert [e.ids for e in tokenizer.encode_batch(texts)] == reference(texts).input_ids
    pairs = tokenizer.encode_batch(list(zip(TEXTS, TEXTS2, strict=True)))
    expected = reference(TEXTS, TEXTS2, return_token_type_ids=True)
    assert [e.ids for e in pairs] == expected.input_ids
    assert [e.type_ids for e in pairs] == expected.token_type_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_drawn_where_transformers_draws_it(tmp_path, name):
    """On rows of one token both draw masks of the same shapes: one seed, one result, if the places agree."""
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}
    if name == "distilbert":  # the original has no dropout after attention's output, so that rate is 0 here
        dropout = {"dropout": 0.0, "attention_dropout": 0.3, "seq_classif_dropout": 0.4}
    model, _ = publish(tmp_path, name, attn_implementation="eager", **dropout)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    input_ids = torch.arange(5, 35)[:, None]
    torch.manual_seed(2)
    expected = model.train()(input_ids).logits
    torch.manual_seed(2)
    close(teacher.train()(input_ids, torch.ones(30, dtype=torch.long)), expected)
    teacher.eval()
    assert (teacher(input_ids, torch.ones(30, dtype=torch.long)) - expected).abs().max() > 0.01


# ---- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_neighbours_and_padding_never_reach_a_row(tmp_path, name):
    publish(tmp_path, name)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], 38)
    teacher.eval()
    lengths = torch.tensor([3, 38, 11, 1, 29])
    input_ids = torch.randint(5, 80, (5, 38))  # padding is filled with tokens: they must not matter
    second = torch.tensor([2, 19, 4, 1, 20])
    together = teacher(input_ids, lengths, second)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        close(together[one], teacher(input_ids[one, :length], lengths[one], second[one]), atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "electra", "distilbert"])
def test_the_last_layer_of_the_first_token_alone_equals_the_full_computation(tmp_path, name):
    publish(tmp_path, name)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    teacher.eval()
    input_ids, lengths = torch.randint(5, 80, (4, 12)), torch.tensor([12, 3, 7, 1])
    parameters = list(teacher.encoder.parameters())
    results = []
    for first_only in (True, False):
        x = teacher.encoder(input_ids, lengths, first_only=first_only)
        assert x.shape == (4, 1 if first_only else 12, 16)
        gradients = torch.autograd.grad(x[:, 0].pow(3).sum(), parameters)
        results.append((x[:, 0], *gradients))
    for alone, full in zip(*results, strict=True):
        torch.testing.assert_close(alone, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_length, kept", [(5, 5), (40, 40), (1000, 40)])
def test_rows_are_cut_at_max_length_and_at_the_last_position(tmp_path, max_length, kept):
    publish(tmp_path)
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], max_length)
    assert teacher.max_length == kept
    encoded = encode(teacher.tokenizer, ["노잼 " * 100], None, **teacher.reads)
    ids = teacher.tokenizer.token_to_id
    expected = [ids("[CLS]"), *([ids("노"), ids("##잼")] * 50)[: kept - 2], ids("[SEP]")]
    assert encoded.tokens.tolist() == expected
    assert ours(teacher, ["노잼 " * 100]).isfinite().all()


def test_roberta_has_fewer_positions_than_its_table(tmp_path):
    publish(tmp_path, "klue")
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], 1000)
    assert teacher.max_length == 40 - 2  # the first position is pad_id + 1
    assert ours(teacher, ["노잼 " * 100]).isfinite().all()


# ---- what a published checkpoint holds ---------------------------------------------------------------------


@pytest.mark.parametrize("name, head, fresh, unused", [
    ("bert", "Model", ["head_out"], []),
    ("electra", "Model", ["head_dense", "head_out"], []),
    ("electra-equal", "Model", ["head_dense", "head_out"], []),
    ("klue", "Model", ["head_dense", "head_out"], ["roberta.pooler.dense"]),
    ("distilbert", "Model", ["head_dense", "head_out"], []),
    ("electra", "ForPreTraining", ["head_dense", "head_out"],
     ["discriminator_predictions.dense", "discriminator_predictions.dense_prediction"]),
])  # fmt: skip
def test_an_encoder_without_head_is_loaded_and_all_is_accounted_for(tmp_path, name, head, fresh, unused):
    model, tokenizer = publish(tmp_path, name, head)
    torch.manual_seed(0)
    teacher, report = load_checkpoint(str(tmp_path), NAMES[3], MAX_LENGTH)
    fresh = [f"{module}.{part}" for module in fresh for part in ("weight", "bias")]
    unused = [f"{module}.{part}" for module in unused for part in ("bias", "weight")]
    lines = dict(line.split(": ", 1) for line in report[1:])
    assert lines.pop("starts fresh") == ", ".join(fresh)
    assert lines.pop("not used", "") == ", ".join(unused) and not lines
    read = len(model.state_dict()) - len(unused)
    assert f"{read} tensors read, {len(unused)} not used, {len(fresh)} started fresh" in report[0]

    inputs = tokenizer(TEXTS[:2], padding=True, return_tensors="pt", return_token_type_ids=False)
    lengths = inputs["attention_mask"].sum(1)
    encoder = model if head == "Model" else model.electra
    with torch.no_grad():
        expected = encoder(**inputs).last_hidden_state
        actual = teacher.eval().encoder(inputs["input_ids"], lengths)
    for row, length in enumerate(lengths):
        close(actual[row, :length], expected[row, :length])
    if name == "bert":
        assert torch.equal(teacher.head_dense.weight, model.pooler.dense.weight)
    assert 0.1 < teacher.head_out.weight.std() < 0.3  # initializer_range 0.2
    assert not teacher.head_out.bias.any()


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_a_head_of_other_classes_starts_fresh(tmp_path, name):
    model, _ = publish(tmp_path, name, num_labels=3)
    teacher, report = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    assert report[-1] == "starts fresh: head_out.weight, head_out.bias"
    assert teacher.head_out.weight.shape == (2, 16)
    dense = model.bert.pooler.dense if name == "bert" else model.classifier.dense
    assert torch.equal(teacher.head_dense.weight, dense.weight)


def test_names_of_old_checkpoints_and_half_precision(tmp_path):
    model, _ = publish(tmp_path)
    expected = ours(load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)[0], TEXTS)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors):
        for new, gone in old.items():
            tensors = {name.replace(new, gone): tensor for name, tensor in tensors.items()}
        assert sum("gamma" in name for name in tensors) == 5
        return tensors | {"bert.embeddings.position_ids": torch.arange(40)[None]}

    as_bin(tmp_path, rename)
    teacher, report = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    assert torch.equal(ours(teacher, TEXTS), expected)
    assert report[1] == "not used: bert.embeddings.position_ids" and len(report) == 3

    model.half().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
    assert {tensor.dtype for tensor in teacher.state_dict().values()} == {torch.float32}
    assert torch.equal(teacher.head_out.weight, model.classifier.weight.float())


@pytest.mark.parametrize("name, gone", [
    ("bert", "bert.encoder.layer.1.output.dense.weight"),
    ("electra", "electra.embeddings_project.bias"),
    ("klue", "roberta.embeddings.word_embeddings.weight"),
    ("distilbert", "distilbert.transformer.layer.0.attention.q_lin.weight"),
])
def test_a_missing_encoder_tensor_is_refused(tmp_path, name, gone):
    publish(tmp_path, name)
    as_bin(tmp_path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != gone})
    refused(tmp_path, str(tmp_path / "pytorch_model.bin"), gone)


@pytest.mark.parametrize("setting", [{"intermediate_size": 23}, {"max_position_embeddings": 41}])
def test_weights_of_another_shape_than_config_json_are_refused(tmp_path, setting):
    publish(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    shapes = {23: ("[24, 16]", "[23, 16]"), 41: ("[40, 16]", "[41, 16]")}[next(iter(setting.values()))]
    refused(tmp_path, "bert.e", *shapes)


@pytest.mark.parametrize("change, parts", [
    ({"model_type": "brand_new"}, ["config.json", "'brand_new'", "logits"]),
    ({"model_type": None}, ["config.json", "bert, electra, roberta, distilbert"]),
    ({"model_type": None}, ["None", "bert, electra, roberta, distilbert"]),
    ({"position_embedding_type": "relative_key"}, ["absolute"]),
    ({"hidden_act": "swiglu"}, ["swiglu"]),
    ({"num_attention_heads": 3}, ["16", "3"]),
    ({"hidden_size": None}, ["config.json"]),
    ({"hidden_size": "16"}, ["config.json"]),
])
def test_a_config_that_cannot_be_read_is_refused(tmp_path, change, parts):
    publish(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(tmp_path, *parts)


@pytest.mark.parametrize("file, content, parts", [
    ("config.json", None, ["config.json", "cannot read"]),
    ("config.json", "{", ["config.json", "JSON"]),
    ("config.json", "[]", ["config.json", "JSON object"]),
    ("model.safetensors", None, ["pytorch_model.bin", "model.safetensors"]),
    ("model.safetensors", "이것은 모델이 아니다", ["model.safetensors", "cannot read"]),
    ("pytorch_model.bin", "이것은 모델이 아니다", ["pytorch_model.bin"]),
    ("vocab.txt", None, ["tokenizer.json", "vocab.txt"]),
    ("vocab.txt", "[PAD]\n[UNK]\n가\n", ["vocab.txt", "[CLS] [SEP]"]),
    ("tokenizer.json", "{}", ["tokenizer"]),
    ("tokenizer_config.json", "{", ["tokenizer_config.json"]),
])
def test_a_folder_with_a_missing_or_broken_file_is_refused(tmp_path, file, content, parts):
    publish(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content, encoding="utf-8")
    refused(tmp_path, *parts)


def test_a_sentencepiece_model_is_named_as_the_reason(tmp_path):
    publish(tmp_path)
    (tmp_path / "vocab.txt").rename(tmp_path / "spiece.model")
    refused(tmp_path, "SentencePiece")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    _, tokenizer = publish(tmp_path)
    write_vocab(tmp_path, extra=1)
    refused(tmp_path, str(len(tokenizer) + 1), str(len(tokenizer)))


class Bomb:
    """Pickles to code that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_checkpoint_that_carries_code_is_refused_and_the_code_not_run(tmp_path, plain_pickle):
    publish(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    content = {"bert.pooler.dense.weight": Bomb(tmp_path / "harm")}
    path.write_bytes(pickle.dumps(content, 2)) if plain_pickle else torch.save(content, path)
    refused(tmp_path, "pytorch_model.bin", "safely")
    assert not (tmp_path / "harm").exists()
    pickle.loads(path.read_bytes()) if plain_pickle else torch.load(path, weights_only=False)
    assert (tmp_path / "harm").exists()  # it was live


@pytest.mark.parametrize("content", [["a list"], {"step": 3}])
def test_a_bin_that_is_not_a_dict_of_tensors_is_refused(tmp_path, content):
    publish(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pytorch_model.bin", "tensors")


def test_safetensors_without_the_package_names_it(tmp_path, monkeypatch):
    publish(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    refused(tmp_path, "pip install safetensors")


# ---- the hub -----------------------------------------------------------------------------------------------


def test_a_hub_id_without_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def offline(*args, **options):
        raise OSError("Connection failed:\n no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused("someone/some-model", "someone/some-model", "offline")


def test_a_path_that_is_not_a_folder_never_asks_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: pytest.fail("asked the hub"))
    refused(tmp_path / "typo", "typo: no such folder")


@pytest.mark.parametrize("has_bin", [True, False])
def test_a_hub_id_fetches_one_weight_file(tmp_path, monkeypatch, has_bin):
    model, tokenizer = publish(tmp_path)
    if has_bin:
        as_bin(tmp_path)
    asked = []

    def download(source, allow_patterns):
        assert source == "someone/some-model"
        asked.append([name for name in allow_patterns if name.endswith((".bin", ".safetensors"))])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    teacher, _ = load_checkpoint("someone/some-model", NAMES[2], MAX_LENGTH)
    close(ours(teacher, TEXTS), theirs(model, tokenizer, TEXTS))
    assert asked == [["pytorch_model.bin"], ["model.safetensors"]][: 1 if has_bin else 2]


@pytest.mark.parametrize("file", ["model.safetensors", "vocab.txt"])
def test_a_hub_file_that_is_not_what_the_hub_states_is_refused(tmp_path, monkeypatch, file):
    """The hub's cache: a link of the file's name to a file that is named by the SHA-256 of its bytes."""
    snapshot = tmp_path / "snapshot"
    publish(snapshot)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(snapshot))
    link = snapshot / file
    data = link.read_bytes()
    blob = tmp_path / hashlib.sha256(data).hexdigest()
    link.rename(blob)
    link.symlink_to(blob)
    load_checkpoint("someone/some-model", NAMES[2], MAX_LENGTH)
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("someone/some-model", f"{link}: damaged", f"delete {blob}")


# ---- teacher.pt --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_save_and_load_keep_logits_and_fingerprints_to_the_bit(tmp_path, name):
    publish(tmp_path / "published", name)
    teacher, _ = load_checkpoint(str(tmp_path / "published"), NAMES[2], MAX_LENGTH)
    teacher.task = "multilabel"
    before = fingerprints(teacher)
    expected = ours(teacher, TEXTS, TEXTS2)
    assert fingerprints(teacher) == before  # encoding, which sets truncation, leaves no trace
    teacher.save(tmp_path / "out" / "teacher.pt", epoch=2)
    loaded = Teacher.load(tmp_path / "out" / "teacher.pt")
    assert fingerprints(loaded) == before
    assert (loaded.config, loaded.label_names, loaded.reads) == (teacher.config, NAMES[2], teacher.reads)
    assert (loaded.task, loaded.max_length, loaded.training) == ("multilabel", MAX_LENGTH, False)
    assert torch.equal(ours(loaded, TEXTS, TEXTS2), expected)
    artifact = torch.load(tmp_path / "out" / "teacher.pt", weights_only=True)
    assert artifact["epoch"] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["teacher.pt"]
    del artifact["task"]  # as in files from before there were tasks
    torch.save(artifact, tmp_path / "old.pt")
    old = Teacher.load(tmp_path / "old.pt")
    assert old.task == "classification" and torch.equal(ours(old, TEXTS, TEXTS2), expected)


@pytest.mark.parametrize("part, changes", [
    ("weights", [lambda t: t.encoder.word_embeddings.weight[7, 3].add_(1e-6),
                 lambda t: t.head_out.bias[1].neg_(), lambda t: setattr(t.config, "layer_norm_eps", 1e-5),
                 lambda t: setattr(t.config, "pad_id", 1)]),
    ("tokenizer", [lambda t: t.tokenizer.add_tokens(["<new>"]),
                   lambda t: setattr(t.tokenizer, "normalizer", normalizers.Lowercase())]),
    ("max_length", [lambda t: setattr(t, "max_length", 23)]),
])
def test_each_fingerprint_changes_with_its_part_of_what_decides_a_logit(tmp_path, part, changes):
    publish(tmp_path)

    def changed(change):
        teacher, _ = load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)
        with torch.no_grad():
            change(teacher)
        return fingerprints(teacher)

    before = changed(lambda teacher: None)
    assert before.keys() == {"weights", "tokenizer", "max_length"} and before["max_length"] == MAX_LENGTH
    assert changed(lambda teacher: None) == before
    after = [changed(change) for change in changes]
    assert len({found[part] for found in (before, *after)}) == 1 + len(changes)
    assert all(found | {part: before[part]} == before for found in after)  # no other part


@pytest.mark.parametrize("content", ["missing", "text", "other kind", "format", "weights", "config", "task",
                                     "code"])
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, content):
    publish(tmp_path)
    path = tmp_path / "teacher.pt"
    load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)[0].save(path)
    artifact = torch.load(path, weights_only=True)
    if content == "missing":
        path.unlink()
    elif content == "text":
        path.write_text("이것은 모델이 아니다", encoding="utf-8")
    elif content == "code":
        torch.save({"kind": "teacher", "bomb": Bomb(tmp_path / "harm")}, path)
    else:
        change = {"other kind": {"kind": "student"}, "format": {"format": 99}, "weights": {"weights": {}},
                  "config": {"config": artifact["config"] | {"hidden_size": 8}},
                  "task": {"task": 3}}[content]
        torch.save(artifact | change, path)
    with pytest.raises(UserError) as error:
        Teacher.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_equal_transformers(activation):
    x = torch.linspace(-4, 4, 101)
    close(ACTIVATIONS[activation](x), transformers.activations.ACT2FN[activation](x), atol=1e-6)


def test_a_published_head_keeps_the_order_of_its_own_labels(tmp_path):
    """If id2label lists the data's labels in another order, the columns follow the head, not the data. A head
    of other names is said to be taken for the data's labels, unless it starts fresh."""
    publish(tmp_path, num_labels=2)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    own, numbered = {"0": "긍정", "1": "부정"}, {"0": "LABEL_0", "1": "LABEL_1"}
    two, three = ["부정", "긍정"], ["가", "나", "다"]
    for names, labels, expected, said in (
            (own, two, two[::-1], None), (numbered, two, two, "['LABEL_0', 'LABEL_1']"),
            (numbered, three, three, None), ({}, two, two, "no names")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": names}), encoding="utf-8")
        teacher, report = load_checkpoint(str(tmp_path), labels, MAX_LENGTH)
        assert teacher.label_names == expected
        said_so = [line for line in report if "taken to be" in line]
        assert len(said_so) == (said is not None)
        assert all(said in line and str(two) in line for line in said_so)


def test_kobert_style_vocabulary_is_not_read_as_wordpiece(tmp_path):
    publish(tmp_path)
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n▁이\n▁영화\n는\n", encoding="utf-8")
    refused(tmp_path, "vocab.txt", "SentencePiece", "*.model")


def test_nulls_in_config_json_are_defaults_and_each_part_must_fit(tmp_path):
    publish(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    nulls = {"pad_token_id": None, "hidden_dropout_prob": None}
    (tmp_path / "config.json").write_text(json.dumps(config | nulls))
    assert load_checkpoint(str(tmp_path), NAMES[2], MAX_LENGTH)[0].config.pad_id == 0
    key, value = (f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("key", "value"))
    as_bin(tmp_path, lambda tensors: tensors | {key: torch.zeros(15, 16), value: torch.zeros(17, 16)})
    refused(tmp_path, key, "[15, 16]", "[16, 16]")
