"""Teachers of the families that transformers builds: logits equal to the package's own, from a published
folder to a student; what is refused."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    LABELLED,
    STUDENT,
    assert_same_run,
    interrupted,
    log_lines,
    peak_above,
    read,
    refused,
    reviews,
    run,
    write_rows,
)
from test_torchrun import TOLERANCE, halved, largest_difference, two
from tokenizers import ByteLevelBPETokenizer, processors

from data.logits import fingerprints
from data.published import read_json
from finetune_teacher import parameter_groups
from student import Student
from teacher import Teacher, load_checkpoint
from teacher_hf import PackageTeacher

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.optional

TEXTS = ["이 영화 정말 재밌다!", "Café MOVIE was 최고 👍🏽", "노잼", "별로다 ㅠㅠ 漢字 24년 " * 9,
         "다시 봐도 좋다", "a", "둘이 보다가 하나가 죽어도 모를 영화..."]
TEXTS2 = ["재미있어요", "so so", "그냥", "not BAD at all, 진짜로 " * 8, "연기 최고", "b", "추천👍"]
MAX_LENGTH = 24  # the repeated texts are longer
NAMES = ["가", "나", "다"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 40}
BERT = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]",
        "mask_token": "[MASK]"}
# model_type: class, config, and the tokenizer as its authors publish it: the name of a SentencePiece model
# and its pieces, or a file and special tokens.
FAMILIES = {
    "albert": ("Albert", SIZE | {"embedding_size": 8}, "spiece", {
        "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}),
    "bart": ("Bart", {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "max_position_embeddings": 40}, "vocab.json", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "big_bird": ("BigBird", SIZE, "spiece", {
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}),
    "deberta-v2": ("DebertaV2", SIZE | {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm",
        "position_biased_input": False, "share_att_key": True, "position_buckets": 8}, "spm", {
        "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
        "eos_piece": "[SEP]", "unk_piece": "[UNK]"}),
    "electra": ("Electra", SIZE | {"embedding_size": 8}, "vocab.txt", [*BERT.values()]),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}, "vocab.json",
             ["<|endoftext|>", "<pad>"]),
    "modernbert": ("ModernBert", SIZE, "tokenizer.json", [*BERT.values()]),
    "roberta": ("Roberta", SIZE | {"type_vocab_size": 1}, "vocab.json",
                ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "t5": ("T5", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
                  "decoder_start_token_id": 0}, "spiece",
           {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}),
    "xlm-roberta": ("XLMRoberta", SIZE | {"type_vocab_size": 1}, "sentencepiece.bpe", {
        "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}),
    "xlnet": ("XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, "spiece", {
        "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 5,
        "control_symbols": ["<cls>", "<sep>", "<mask>", "<eod>", "<eop>"]}),
}
OURS = {"electra", "roberta", "xlm-roberta"}  # read by teacher.py
OTHERS = [name for name in FAMILIES if name not in OURS]


def write_tokenizer(folder, kind: str, special) -> None:
    texts = [*TEXTS, *TEXTS2, *(text for text, _ in reviews(40, 0))]
    if isinstance(special, dict):
        spm = pytest.importorskip("sentencepiece")
        (folder / "texts").write_text("\n".join(texts), encoding="utf-8")
        spm.SentencePieceTrainer.train(
            input=str(folder / "texts"), model_prefix=str(folder / kind), vocab_size=160, minloglevel=2,
            hard_vocab_limit=False, **({"pad_piece": "<pad>"} | special))
        (folder / "texts").unlink()
        (folder / f"{kind}.vocab").unlink()
    elif kind == "vocab.txt":
        letters = sorted({c for c in "".join(texts) if c.isprintable() and not c.isspace()})
        (folder / kind).write_text("\n".join([*special, *letters, *("##" + c for c in letters), ""]), "utf-8")
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    else:
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(texts, vocab_size=400, min_frequency=1, special_tokens=special,
                                show_progress=False)
        if kind == "vocab.json":
            bpe.save_model(str(folder))
            return
        ids = [(token, bpe.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        bpe._tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids)
        bpe._tokenizer.save(str(folder / kind))
        (folder / "tokenizer_config.json").write_text(json.dumps(BERT | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"]}))


def publish(folder: Path, name: str, classes: int = 3, **options):
    """A published folder of this family with random weights: (model, tokenizer) of the package."""
    prefix, config, kind, special = FAMILIES[name]
    folder.mkdir(parents=True)
    write_tokenizer(folder, kind, special)
    (folder / "config.json").write_text(json.dumps({"model_type": name}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, **({"pad_token": "<pad>"} if name == "gpt2" else {}))
    ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")
           if getattr(tokenizer, key) is not None}
    config = getattr(transformers, f"{prefix}Config")(
        **{"vocab_size": len(tokenizer), "num_labels": classes} | config | ids | options)
    torch.manual_seed(1)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():  # so that none can be forgotten unnoticed
            parameter.normal_(float("norm" in key.lower() and key.endswith("weight")), 0.4)
    model.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """shelf(name): (folder, model, tokenizer) of a family, made once; read only."""
    made, root = {}, tmp_path_factory.mktemp("published")

    def take(name):
        if name not in made:
            made[name] = root / name, *publish(root / name, name)
        return made[name]

    return take


def theirs(model, tokenizer, texts, texts2=None, **options):
    """(logits of all rows in one padded batch, logits of each row alone), as the package computes them."""
    def logits(*texts, **more):
        with torch.no_grad():
            return model(**tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, return_tensors="pt",
                                     **options, **more)).logits

    columns = [texts] if texts2 is None else [texts, texts2]
    return logits(*columns, padding=True), torch.cat([logits(*row) for row in zip(*columns, strict=True)])


def close(actual, expected, atol=1e-4):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def configure(folder, **settings) -> None:
    config = read_json(folder / "config.json") | settings
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), "utf-8")


# ---- equal to the package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_the_packages(shelf, tmp_path, name):
    """Texts and pairs, in any batch, and after a way through teacher.pt."""
    folder, model, tokenizer = shelf(name)
    teacher, report = load_checkpoint(str(folder), NAMES, MAX_LENGTH)
    assert isinstance(teacher, PackageTeacher) == (name not in OURS)
    assert "0 not used, 0 started fresh" in report[0] and str(NAMES) in report[1] and len(report) == 2
    teacher.save(tmp_path / "teacher.pt")
    again = Teacher.load(tmp_path / "teacher.pt")
    segments = {"return_token_type_ids": True} if name == "electra" else {}
    for texts2 in (None, TEXTS2):
        together, alone = theirs(model, tokenizer, TEXTS, texts2, **segments)
        assert alone.std(0).min() > 0.02  # the texts are told apart
        for max_tokens in (60, 10_000):
            close(teacher.logits(TEXTS, texts2, max_tokens), alone)
        close(together, alone)
        assert torch.equal(again.logits(TEXTS, texts2), teacher.logits(TEXTS, texts2))
        close(again.predict(TEXTS, texts2), alone.softmax(1))
    assert teacher.predict([]).shape == (0, 3) and teacher.logits(["", " "]).isfinite().all()


@pytest.mark.parametrize("name", OTHERS)
def test_neighbours_and_padding_never_reach_a_row(shelf, name):
    teacher = load_checkpoint(str(shelf(name)[0]), NAMES, 38)[0].eval()
    lengths, end = torch.tensor([3, 38, 11, 4, 29]), teacher.model.config.eos_token_id
    input_ids = torch.randint(6, 80, (5, 38))  # padding is filled with tokens: they must not matter
    if teacher.model.config.is_encoder_decoder:
        input_ids[range(5), lengths - 1] = end
    together = teacher(input_ids, lengths)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        close(together[one], teacher(input_ids[one, :length], lengths[one]))


@pytest.mark.parametrize("name", ["xlnet", "albert"])
def test_segments_are_read_where_the_tokenizer_gives_them(tmp_path, name):
    """In transformers 5 only if tokenizer_config.json says so. XLNet's last token has its own segment."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    model, tokenizer = publish(tmp_path / "it", name)
    (tmp_path / "it/tokenizer_config.json").write_text(json.dumps({"model_input_names": inputs}))
    teacher, _ = load_checkpoint(str(tmp_path / "it"), NAMES, MAX_LENGTH)
    for texts2 in (None, TEXTS2):
        together, alone = theirs(model, tokenizer, TEXTS, texts2, return_token_type_ids=True)
        close(together, alone)
        close(teacher.logits(TEXTS, texts2), alone)
    without = theirs(model, tokenizer, TEXTS, TEXTS2, return_token_type_ids=False)[1]
    assert (without - alone).abs().max() > 0.01


def test_a_decoder_without_a_padding_token(tmp_path):
    """Each row is read at its last token, as the package reads a row alone."""
    model, tokenizer = publish(tmp_path / "it", "gpt2")
    configure(tmp_path / "it", pad_token_id=None)
    teacher, _ = load_checkpoint(str(tmp_path / "it"), NAMES, MAX_LENGTH)
    for texts2 in (None, TEXTS2):
        close(teacher.logits(TEXTS, texts2), theirs(model, tokenizer, TEXTS, texts2)[1])


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_rows_with_unlike_numbers_of_end_tokens(shelf, name):
    """The package refuses them in one batch."""
    folder, model, tokenizer = shelf(name)
    teacher, _ = load_checkpoint(str(folder), NAMES, MAX_LENGTH)
    texts = ["좋다</s>", "나쁘다", "</s></s>그냥", "재밌다"]
    expected = torch.cat([theirs(model, tokenizer, [text])[1] for text in texts])
    close(teacher.logits(texts), expected)
    ids, lengths = torch.tensor([[5, 1, 2], [6, 2, 1]]), torch.tensor([3, 3])
    teacher.train()(ids, lengths).sum().backward()
    assert teacher.word_embeddings.weight.grad.abs().sum() > 0


def test_an_end_token_is_added_where_the_tokenizer_gives_none(shelf, tmp_path):
    """As KoBART's does not, read as PreTrainedTokenizerFast."""
    source, model, _ = shelf("bart")
    bpe = ByteLevelBPETokenizer(str(source / "vocab.json"), str(source / "merges.txt"))
    shutil.copytree(source, tmp_path / "it")
    bpe._tokenizer.save(str(tmp_path / "it/tokenizer.json"))
    (tmp_path / "it/tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}))
    teacher, report = load_checkpoint(str(tmp_path / "it"), NAMES, MAX_LENGTH)
    assert any("</s>" in line for line in report)
    for pair in (("좋다 최고",), ("좋다 최고", "그냥")):
        ids = [i for text in pair for i in [*bpe.encode(text).ids, 2]]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits
        close(teacher.logits(*([text] for text in pair)), expected)
    assert teacher.tokenizer.encode("").ids == [2]


def test_a_short_batch_does_not_change_how_big_bird_reads_a_long_one(tmp_path):
    publish(tmp_path / "it", "big_bird", block_size=4, num_random_blocks=1)  # sparse above 28 tokens
    teacher, _ = load_checkpoint(str(tmp_path / "it"), NAMES, 40)
    long, short = ["별로다 ㅠㅠ 漢字 24년 " * 9], ["노잼"]
    first = teacher.logits(long)
    close(teacher.logits(short), load_checkpoint(str(tmp_path / "it"), NAMES, 40)[0].logits(short))
    assert torch.equal(teacher.logits(long), first)
    configure(tmp_path / "it", attention_type="original_full")
    full = load_checkpoint(str(tmp_path / "it"), NAMES, 40)[0].logits(long)
    assert (full - first).abs().max() > 1e-3


@pytest.mark.parametrize("name, model_max, most", [
    ("bart", None, 40), ("gpt2", None, 40), ("modernbert", 30, 30), ("t5", None, 2**20),
    ("xlnet", None, 2**20)])
def test_rows_are_as_long_as_the_model_has_positions(tmp_path, name, model_max, most):
    publish(tmp_path / "it", name)
    if model_max:
        config = read_json(tmp_path / "it/tokenizer_config.json", {}) | {"model_max_length": model_max}
        (tmp_path / "it/tokenizer_config.json").write_text(json.dumps(config))
    teacher, report = load_checkpoint(str(tmp_path / "it"), NAMES, 2**21)
    assert teacher.max_length == most and str(most) in report[-1]
    if most < 100:
        assert teacher.logits(["노잼 " * 100]).isfinite().all()


def test_camemberts_positions_start_after_the_padding(tmp_path):
    """As RoBERTa's; none of the families above has such a table."""
    publish(tmp_path / "it", "roberta")
    configure(tmp_path / "it", model_type="camembert")
    (tmp_path / "it/tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    teacher, _ = load_checkpoint(str(tmp_path / "it"), NAMES, 1000)
    assert isinstance(teacher, PackageTeacher) and teacher.max_length == 38
    assert teacher.logits(["노잼 " * 100]).isfinite().all()


@pytest.mark.parametrize("name, layers", [
    ("albert", 1), ("bart", 4), ("deberta-v2", 2), ("gpt2", 2), ("modernbert", 2), ("t5", 4), ("xlnet", 2)])
def test_depths_rise_from_the_embeddings_to_the_head(shelf, name, layers):
    """A decoder's layers lie above the encoder's."""
    teacher, _ = load_checkpoint(str(shelf(name)[0]), NAMES, MAX_LENGTH)
    depths = teacher.depths()
    assert depths.keys() == {key for key, _ in teacher.named_parameters()}
    assert {*depths.values()} == {*range(layers + 2)}
    table = teacher.word_embeddings.weight
    assert depths[next(key for key, value in teacher.named_parameters() if value is table)] == 0
    assert all(depth == 0 for key, depth in depths.items() if "embeddings" in key or "embed_positions" in key)
    assert list(depths.values())[-1] == layers + 1  # the head
    if layers == 4:
        for side, expected in (("encoder", {1, 2}), ("decoder", {3, 4})):
            assert {depth for key, depth in depths.items() if f".{side}." in key and ".1." in key} <= expected


def test_embeddings_of_another_tokenizers_tokens(shelf):
    teacher, _ = load_checkpoint(str(shelf("t5")[0]), NAMES, MAX_LENGTH)
    vocab, weight = teacher.tokenizer.get_vocab(), teacher.model.get_input_embeddings().weight.detach()
    token = next(token for token in vocab if len(token) == 1 and token.isalpha())
    found = teacher.embeddings_of([token, "[PAD]", "영화좋다"])
    ids = teacher.tokenizer.encode("영화좋다", add_special_tokens=False).ids
    assert found.shape == (3, 16) and torch.equal(found[0], weight[vocab[token]])
    close(found[2], weight[ids].mean(0), 1e-6)


# ---- from the folder to a student --------------------------------------------------------------------------

SCORES = {"0": "2.5", "1": "4"}
CELLS = {"label": {"0": "나쁨", "1": "좋음"}, "labels": {"0": "-", "1": "좋음,영화"}, "score": SCORES}


def files_of(column: str) -> None:
    """train.tsv and valid.tsv in the working directory, with answers of this kind."""
    for seed, (name, count) in enumerate({"train": 60, "valid": 20}.items()):
        rows = [(text, CELLS[column][label]) for text, label in reviews(count, seed)]
        write_rows(Path(f"{name}.tsv"), rows, f"text\t{column}")


@pytest.mark.parametrize("column", CELLS)
@pytest.mark.parametrize("name", FAMILIES)
def test_fine_tuned_dumped_and_taught(here, shelf, name, column):
    files_of(column)
    run("finetune_teacher", f"{LABELLED} --epochs 1 --max-tokens 400 --layer-decay 0.9 --output-dir out "
                            f"--overwrite --lr 1e-2 {CPU} --checkpoint", shelf(name)[0])
    teacher = Teacher.load("out/teacher.pt")
    start, _ = load_checkpoint(str(shelf(name)[0]), teacher.label_names, 128, task=teacher.task, **(
        {"mean": 0.0, "deviation": 1.0} if column == "score" else {}))
    assert not torch.equal(teacher.word_embeddings.weight, start.word_embeddings.weight)
    run("dump_logits", f"--teacher out/teacher.pt --data train.tsv --output-dir out {CPU}")
    dumped, texts = read("out/train.pt"), [text for text, _ in reviews(60, 0)]
    close(dumped["logits"], teacher.logits(texts), 1e-3)
    assert (dumped["task"], dumped["label_names"]) == (teacher.task, teacher.label_names)
    run("distill", f"--train train.tsv --valid valid.tsv --logits out/train.pt {STUDENT} --epochs 1 "
                   f"--output-dir out")
    assert Student.load("out/tiny/student.pt").label_names == teacher.label_names
    run("dump_logits", f"--teacher out/teacher.pt --data train.tsv --output-dir out {CPU} --check 10")


def test_an_interrupted_run_continues_with_the_same_bits(here, shelf):
    """With dropout."""
    flags = (f"{LABELLED} --epochs 2 --max-tokens 400 --lr 1e-2 {CPU} --checkpoint {shelf('bart')[0]} "
             f"--output-dir")
    run("finetune_teacher", f"{flags} whole")
    assert interrupted("finetune_teacher", f"{flags} out", 5).code == 130
    run("finetune_teacher", f"{flags} out")
    assert_same_run("out", "whole", "teacher.pt")


@pytest.mark.parametrize("name, options", [
    ("modernbert", {}), ("t5", {"dropout_rate": 0.0})])  # neither has biases of keys: largest_difference
def test_two_processes_finetune_and_dump_what_one_does(here, name, options):
    publish(Path("it"), name, **options)
    flags = (f"{LABELLED} --checkpoint it --epochs 1 --lr 2e-3 --max-tokens 100 --clip 0.8 --layer-decay 0.9 "
             f"{CPU} --output-dir")
    run("finetune_teacher", f"{flags} one")
    first, second = two("finetune_teacher", f"{flags} two")
    assert (first.returncode, second.returncode, second.lines("out")) == (0, 0, []), first.lines("err")
    halved("finetune_teacher", f"{flags} halved")
    weights, others, wrong = (read(f"{folder}/teacher.pt")["weights"] for folder in ("one", "two", "halved"))
    assert largest_difference(weights, others) < 20 * TOLERANCE  # sums of 100 tokens, not 20
    assert largest_difference(weights, wrong) > 500 * TOLERANCE
    flags = f"--teacher one/teacher.pt --data train.tsv {CPU} --output-dir"
    run("dump_logits", f"{flags} d-one")
    assert [process.returncode for process in two("dump_logits", f"{flags} d-two")] == [0, 0]
    assert torch.equal(read("d-one/train.pt")["logits"], read("d-two/train.pt")["logits"])


@pytest.mark.parametrize("name", ["modernbert", "gpt2"])
def test_bf16_trains_and_dumps_nearly_as_float32(here, shelf, name):
    found = {}
    for precision in ("fp32", "bf16"):
        machine = f"{precision} --device cpu --precision {precision}"
        run("finetune_teacher", f"{LABELLED} --checkpoint {shelf(name)[0]} --epochs 2 --max-tokens 400 "
                                f"--lr 1e-3 --output-dir {machine}")
        run("dump_logits", f"--teacher {precision}/teacher.pt --data train.tsv --output-dir {machine}")
        first, *_, last = log_lines(precision)
        assert first["precision"] == read(f"{precision}/train.pt")["precision"] == precision
        found[precision] = last["train_loss"], read(f"{precision}/train.pt")["logits"]
    assert {each.dtype for each in read("bf16/teacher.pt")["weights"].values()} == {torch.float32}
    (loss, logits), (rounded, others) = found["fp32"], found["bf16"]
    assert rounded == pytest.approx(loss, rel=0.05) and rounded != loss
    assert 0 < (others - logits).square().mean().sqrt() < 0.2 * logits.std()


def test_the_rate_falls_from_layer_to_layer_and_vectors_do_not_decay(shelf):
    teacher, rates = load_checkpoint(str(shelf("modernbert")[0]), NAMES, MAX_LENGTH)[0], {}
    for group in parameter_groups(teacher, 0.8, 0.5, 0.03):
        rates |= {id(each): (group["peak"], group["weight_decay"]) for each in group["params"]}
    model = teacher.model
    assert len(rates) == len([*teacher.parameters()])
    for parameter, expected in ((model.model.embeddings.tok_embeddings.weight, (0.1, 0.03)),
                                (model.model.layers[0].attn.Wqkv.weight, (0.2, 0.03)),
                                (model.model.layers[1].mlp.Wo.weight, (0.4, 0.03)),
                                (model.model.layers[1].mlp_norm.weight, (0.4, 0.0)),
                                (model.classifier.weight, (0.8, 0.03)), (model.classifier.bias, (0.8, 0.0))):
        assert rates[id(parameter)] == pytest.approx(expected)


# ---- weights that stay in their file -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_held_for_a_precision_give_the_same_bits(shelf, tmp_path, name, dtype):
    """As float32 weights, and the same fingerprints, however they are stored."""
    folder, model, _ = shelf(name)
    shutil.copytree(folder, tmp_path / "it")
    deepcopy(model).to(dtype).save_pretrained(tmp_path / "it")
    configure(tmp_path / "it", id2label=dict(enumerate(NAMES)), label2id={"가": 0, "나": 1, "다": 2})
    whole, _ = load_checkpoint(str(tmp_path / "it"), NAMES, 512)
    for precision in ("fp32", "bf16"):
        teacher = Teacher.load(str(tmp_path / "it"), mapped=True)
        assert fingerprints(teacher) == fingerprints(whole)
        teacher.hold(precision)
        for texts2 in (None, TEXTS2):
            assert torch.equal(teacher.logits(TEXTS, texts2, precision=precision),
                               whole.logits(TEXTS, texts2, precision=precision))
        matrices = {each.weight.dtype for each in teacher.modules() if isinstance(each, torch.nn.Linear)}
        assert matrices == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize("stored", ["published in bf16", "teacher.pt"])
def test_a_dump_in_bf16_takes_little_more_memory_than_the_weights_in_bf16(here, stored):
    """63 million of them, which are 252 MB in float32."""
    size = {"num_attention_heads": 8, "id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}
    for name, layers, wide in (("small", 1, 16), ("large", 6, 1024)):
        model, _ = publish(Path(name), "modernbert", 2, num_hidden_layers=layers, hidden_size=wide,
                           intermediate_size=2 * wide, **size)
        if stored == "teacher.pt":
            Teacher.load(name).save(f"{name}.pt")
        else:
            model.bfloat16().save_pretrained(name)
    weights = 2 * sum(each.numel() for each in model.parameters())
    assert peak_above(*(f"{name}.pt" if stored == "teacher.pt" else name for name in ("small", "large"))) \
        < 1.3 * weights + 24e6


# ---- heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bart", "deberta-v2"])
@pytest.mark.parametrize("column, names, classes, problem", [
    ("label", ["좋음", "나쁨"], 2, None), ("labels", ["영화", "좋음"], 2, "multi_label_classification"),
    ("score", ["LABEL_0"], 1, None), ("label", ["좋음", "나쁨"], 2, "regression")])
def test_a_published_head_is_kept_as_it_is(here, name, column, names, classes, problem):
    files_of(column)
    model, tokenizer = publish(Path("it"), name, classes, problem_type=problem)
    configure(Path("it"), id2label=dict(enumerate(names)), label2id={key: i for i, key in enumerate(names)})
    flags = f"{LABELLED} --checkpoint it --epochs 0 --output-dir out {CPU}"
    if problem == "regression":  # as many outputs, of another task
        refused(lambda: run("finetune_teacher", flags), "--epochs 0", "regression.*classification")
        return
    run("finetune_teacher", flags)
    teacher, texts = Teacher.load("out/teacher.pt"), [text for text, _ in reviews(60, 0)]
    close(teacher.logits(texts), theirs(model, tokenizer, texts)[0])
    assert teacher.label_names == (["score"] if column == "score" else names)
    assert (teacher.config.thresholds is not None) == (column == "labels")


def test_a_published_classifier_is_dumped_as_it_is(here):
    model, tokenizer = publish(Path("org/it"), "gpt2", 2)
    configure(Path("org/it"), id2label={"0": "1", "1": "0"}, label2id={"1": 0, "0": 1})
    run("dump_logits", f"--teacher org/it --data train.tsv --output-dir out {CPU}")
    found = read("out/train.pt")
    texts = [text for text, _ in reviews(120, 0)]
    close(found["logits"], theirs(model, tokenizer, texts)[0])
    assert found["label_names"] == ["1", "0"]


def test_a_head_of_other_classes_is_replaced_and_epochs_0_says_why(here, shelf):
    folder = shelf("modernbert")[0]
    flags = f"{LABELLED} --output-dir out {CPU} --checkpoint {folder}"
    refused(lambda: run("finetune_teacher", f"{flags} --epochs 0"), "--epochs", "3 classes", "2 labels")
    teacher, report = load_checkpoint(str(folder), ["0", "1"], 20)
    assert "starts fresh: classifier.bias, classifier.weight" in report
    assert teacher.model.classifier.weight.shape == (2, 16) and teacher.model.classifier.weight.std() < 0.1
    assert teacher.logits(TEXTS).shape == (7, 2)


@pytest.mark.parametrize("name, fresh", [
    ("albert", {"classifier.weight", "classifier.bias"}), ("gpt2", {"score.weight"}),
    ("t5", {f"classification_head.{each}" for each in (
        "dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")})])
def test_an_encoder_without_head_gets_one(tmp_path, name, fresh):
    model, _ = publish(tmp_path / "it", name)
    model.base_model.save_pretrained(tmp_path / "it")
    torch.manual_seed(0)
    teacher, report = load_checkpoint(str(tmp_path / "it"), NAMES, 20)
    assert {*report[-1].removeprefix("starts fresh: ").split(", ")} == fresh
    assert torch.equal(teacher.word_embeddings.weight, model.get_input_embeddings().weight)
    assert teacher.logits(TEXTS).shape == (7, 3)
    torch.manual_seed(0)  # the same weights again, so that a run can continue
    again, _ = load_checkpoint(str(tmp_path / "it"), NAMES, 20)
    assert torch.equal(again.logits(TEXTS), teacher.logits(TEXTS))


# ---- refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, change, parts", [
    ("t5", {"model_type": "brand_new"}, ["config.json", "brand_new", "does not know", "logits"]),
    ("t5", {"model_type": "mine", "auto_map": {"AutoModel": "mine.Model"}}, ["config.json", "never run"]),
    ("t5", {"model_type": "clip"}, ["config.json", "clip", "no classifier"]),
    ("t5", {"quantization_config": {"quant_method": "bitsandbytes"}}, ["config.json", "quantised"]),
    ("gpt2", {"n_layer": 3}, [r"h\.2\.", "missing"]),
    ("modernbert", {"hidden_size": "wide"}, [r"config\.json|transformers cannot read"]),
    ("modernbert", {"vocab_size": 500}, ["tok_embeddings", "shape"]),
])
def test_a_folder_that_cannot_be_read_is_refused_in_a_line(shelf, tmp_path, name, change, parts):
    shutil.copytree(shelf(name)[0], tmp_path / "it")
    configure(tmp_path / "it", **change)
    refused(lambda: load_checkpoint(str(tmp_path / "it"), NAMES, 20), *parts)


@pytest.mark.parametrize("file, parts", [
    ("model-Q4_K_M.gguf", [r"model-Q4_K_M\.gguf", "float"]), ("adapter_config.json", ["merge_and_unload"]),
    ("training_args.bin", ["no pytorch_model.bin or model.safetensors"])])
def test_a_folder_without_weights_is_refused_in_a_line(shelf, tmp_path, file, parts):
    shutil.copytree(shelf("modernbert")[0], tmp_path / "it")
    (tmp_path / "it/model.safetensors").unlink()
    (tmp_path / f"it/{file}").write_bytes(b"{}")
    refused(lambda: load_checkpoint(str(tmp_path / "it"), NAMES, 20), *parts)


def test_a_tokenizer_that_cannot_be_read_or_does_not_belong_is_refused(shelf, tmp_path):
    shutil.copytree(shelf("modernbert")[0], tmp_path / "it")
    tokenizer = (tmp_path / "it/tokenizer.json").read_bytes()
    (tmp_path / "it/tokenizer.json").write_bytes(tokenizer[:-9])
    refused(lambda: load_checkpoint(str(tmp_path / "it"), NAMES, 20), "tokenizer", "pip install")
    more = transformers.AutoTokenizer.from_pretrained(shelf("modernbert")[0])
    more.add_tokens(["굿ㅋㅋ"])
    more.save_pretrained(tmp_path / "it")
    refused(lambda: load_checkpoint(str(tmp_path / "it"), NAMES, 20), "401 tokens", "400")


def test_a_side_to_cut_on_and_python_in_a_tokenizer_are_told(shelf, tmp_path, monkeypatch):
    """The kit cuts on the right. A tokenizer that is more than its tokenizer.json would give other ids."""
    shutil.copytree(shelf("modernbert")[0], tmp_path / "it")
    config = read_json(tmp_path / "it/tokenizer_config.json")
    (tmp_path / "it/tokenizer_config.json").write_text(json.dumps(config | {"truncation_side": "left"}))
    assert any("right" in line for line in load_checkpoint(str(tmp_path / "it"), NAMES, 20)[1])
    read_as_is = transformers.PreTrainedTokenizerFast.__call__
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "__call__", lambda self, *texts, **options: (
        read_as_is(self, *(text.replace("!", "?") for text in texts), **options)))
    refused(lambda: load_checkpoint(str(tmp_path / "it"), NAMES, 20), "Python", "logits")


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model, _ = publish(tmp_path / "it", "modernbert")
    with torch.no_grad():
        model.model.layers[1].attn.Wo.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "it")
    refused(lambda: load_checkpoint(str(tmp_path / "it"), NAMES, 20), r"layers\.1\.attn\.Wo", "finite")


def test_code_beside_a_known_model_is_not_run(shelf, tmp_path):
    shutil.copytree(shelf("modernbert")[0], tmp_path / "it")
    (tmp_path / "it/mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    configure(tmp_path / "it", auto_map={"AutoModelForSequenceClassification": "mine.Model"},
              attn_implementation="someone/kernel", _attn_implementation="someone/kernel")
    teacher, _ = load_checkpoint(str(tmp_path / "it"), NAMES, 20)
    assert teacher.logits(TEXTS).isfinite().all() and not (tmp_path / "ran").exists()
    assert "auto_map" not in json.dumps(teacher.config.settings)
    assert "someone" not in json.dumps(teacher.config.settings)


@pytest.mark.parametrize("settings", [
    {}, {"hidden_size": 2**30}, {"num_hidden_layers": 1}, {"vocab_size": 2**40}, {"model_type": "mine"},
    {"quantization_config": {"quant_method": "gptq"}}, {"hidden_size": "wide"}])
def test_a_teacher_whose_weights_do_not_fit_its_config_is_refused(shelf, tmp_path, settings):
    load_checkpoint(str(shelf("modernbert")[0]), NAMES, 20)[0].save(tmp_path / "teacher.pt")
    artifact = read(tmp_path / "teacher.pt")
    if settings:
        artifact["config"]["settings"] |= settings
    else:  # the package would draw it at random
        del artifact["weights"]["model.model.layers.0.attn.Wo.weight"]
    torch.save(artifact, tmp_path / "teacher.pt")
    refused(lambda: Teacher.load(tmp_path / "teacher.pt"), r"teacher\.pt")
