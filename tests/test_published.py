"""Published checkpoints: tokenizers with the ids of transformers and sentencepiece, or refused by name;
heads, shards, wrappers' prefixes, folders without weights."""

import json
import struct
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import LABELLED, STUDENT, publish, read, refused, run, write_rows
from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from data.examples import read_examples
from data.published import bert_template, load_tokenizer, read_json
from data.sentencepiece import read_sentencepiece
from teacher import Teacher, load_checkpoint

TEXTS = ["이 영화 정말 재밌다!", "Café MOVIE was 최고 👍🏽", "", "   ", "노잼", "별로다 ㅠㅠ 漢字 24년 " * 9,
         "[MASK] <mask> 다시\u3000봐도\t좋다", "재밌[NAME]다 [name]ㅋㅋㅋㅋㅋ [EMOJI]최고",
         "둘이ㅋㅋㅋㅋ보다가 [NAME] ",
         "[SEP] </s> [CLS]x<pad> [UNK]", "가\u0301 ÀÉ İ ﬁ\u200b\u00ad", "ㅋㅋㅋ" * 60, "a\u0300 각 각",
         "Ä ß ΑΣ ½ ①", "<s>연기</s>", " 앞에 빈칸", "끝에 빈칸 ", "＜ｓ＞ ［ＣＬＳ］",
         "문장.마침표,쉼표(괄호)"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def letters() -> list[str]:
    text = "".join(TEXTS)
    text += text.lower()
    text += unicodedata.normalize("NFD", text)
    return sorted({c for c in text if c.isprintable() and not c.isspace() and c < "\U00010000"})


def wordpiece_tokens(special=SPECIAL) -> list[str]:
    words = ["영화", "정말", "##영화", "최고", "##최고", "movie", "Movie", "MOVIE", "cafe", "##ㅋㅋ", "ㅋㅋ"]
    return list(dict.fromkeys([*special, *letters(), *("##" + c for c in letters()), *words]))


def put(folder, family, files: dict):
    """A folder with config.json of this family and these files: text, bytes, or what becomes JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({"config.json": {"model_type": family, "vocab_size": 9999}} | files).items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).write_bytes(text.encode())
    return folder


def vocab_txt(tokens, end="\n") -> str:
    return "".join(token + end for token in tokens)


def wordpiece_json(*, lower=False, template=True, tokens=None, change=lambda t: None, **options) -> dict:
    tokens = tokens or wordpiece_tokens()
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]",
                                           **options))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in SPECIAL if token in tokens])
    if template:
        tokenizer.post_processor = bert_template(tokenizer)
    change(tokenizer)
    return json.loads(tokenizer.to_str())


def bpe_files(folder, prefix=False, template=True) -> dict:
    """vocab.json and merges.txt, and the same as tokenizer.json."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=prefix)
    bpe.train_from_iterator(TEXTS, vocab_size=400, min_frequency=1, show_progress=False,
                            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder.mkdir()
    bpe.save_model(str(folder))
    tokenizer = bpe._tokenizer
    if template:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0),
                                                                add_prefix_space=prefix)
    return {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")} | {
        "tokenizer.json": json.loads(tokenizer.to_str())}


def token(content, **flags) -> dict:
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": False} | flags


V = len(wordpiece_tokens())
CASED = {"do_lower_case": False}
MASK = {"mask_token": token("<mask>", lstrip=True) | {"__type": "AddedToken"}}
VOCAB = {"vocab.txt": vocab_txt(wordpiece_tokens())}
SWAPPED = {"vocab.txt": vocab_txt(["[EMOJI]" if t == "½" else t for t in wordpiece_tokens()])}
DECODER = {"added_tokens_decoder": {str(V): token("[NAME]"), str(V + 1): token("ㅋㅋㅋ", normalized=True),
                                    str(V + 2): token("[EMOJI]", special=True, lstrip=True, rstrip=True)}}


def wordpiece(config=None, files=None, vocab=VOCAB, family="bert") -> tuple[str, dict]:
    return family, vocab | ({} if config is None else {"tokenizer_config.json": config}) | (files or {})


def fast(config=None, files=None, **options) -> tuple[str, dict]:
    return wordpiece(config, {"tokenizer.json": wordpiece_json(**options)} | (files or {}), vocab={})


ACCEPTED = {
    "vocab.txt alone lowercases": wordpiece(),
    "cased": wordpiece(CASED),
    "cased, accents stripped": wordpiece(CASED | {"strip_accents": True}),
    "lower, accents kept": wordpiece({"do_lower_case": True, "strip_accents": False}),
    "Chinese characters in words": wordpiece(CASED | {"tokenize_chinese_chars": False}),
    "the class in config.json": wordpiece(CASED, {"config.json": {
        "model_type": "bert", "vocab_size": 99, "tokenizer_class": "BertTokenizerFast"}}),
    "electra": wordpiece(CASED | {"tokenizer_class": "ElectraTokenizer"}, family="electra"),
    "distilbert": wordpiece(CASED | {"tokenizer_class": "DistilBertTokenizerFast"}, family="distilbert"),
    "klue/roberta": wordpiece(
        CASED | {"tokenizer_class": "BertTokenizer"}, family="roberta",
        vocab={"vocab.txt": vocab_txt(wordpiece_tokens(["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]))}),
    "added_tokens.json": wordpiece(CASED, {"added_tokens.json": {"ㅋㅋㅋㅋ": V + 1, "[NAME]": V}}),
    "added_tokens.json, lower": wordpiece({}, {"added_tokens.json": {"[NAME]": V}}),
    "added_tokens.json, special by the map": wordpiece(CASED, {
        "added_tokens.json": {"[NAME]": V},
        "special_tokens_map.json": {"additional_special_tokens": ["[NAME]"]}}),
    "added_tokens.json, special by the map, lower": wordpiece(None, {
        "added_tokens.json": {"[NAME]": V},
        "special_tokens_map.json": {"additional_special_tokens": ["[NAME]"]}}),
    "added_tokens.json, special by tokenizer_config.json, lower": wordpiece(
        {"additional_special_tokens": ["[NAME]"]}, {"added_tokens.json": {"[NAME]": V}}),
    "added_tokens_decoder": wordpiece(CASED | DECODER),
    "added_tokens_decoder, lower": wordpiece(DECODER | {"tokenizer_class": "BertTokenizer"}),
    "an empty added_tokens_decoder silences added_tokens.json": wordpiece(
        CASED | {"added_tokens_decoder": {}}, {"added_tokens.json": {"[NAME]": V}}),
    "additional_special_tokens": wordpiece(CASED | {"additional_special_tokens": ["[NAME]", "[EMOJI]"]}),
    "additional_special_tokens in the vocabulary": wordpiece(
        {"additional_special_tokens": ["[EMOJI]"]},
        {"special_tokens_map.json": {"additional_special_tokens": ["[EMOJI]"]}}, vocab=SWAPPED),
    "extra_special_tokens": wordpiece(CASED | {"extra_special_tokens": ["[NAME]"]}),
    "special_tokens_map.json alone": wordpiece(CASED, {"special_tokens_map.json": {
        "additional_special_tokens": ["[EMOJI]", "[NAME]"], "mask_token": token("[MASK]", lstrip=True)}}),
    "a special token by another name": wordpiece(
        CASED | {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        vocab={"vocab.txt": vocab_txt(wordpiece_tokens(["<pad>", "<unk>", "<s>", "</s>", "[MASK]"]))}),
    "no mask token": wordpiece(CASED | {"mask_token": None}),
    "a mask token that the vocabulary lacks": wordpiece(CASED | {"mask_token": "<mask>"}),
    "CRLF": wordpiece(CASED, vocab={"vocab.txt": vocab_txt(wordpiece_tokens(), "\r\n")}),
    "doubled tokens and blank lines": wordpiece(CASED, vocab={"vocab.txt": vocab_txt(
        [*wordpiece_tokens()[:20], "", "영", *wordpiece_tokens()[20:], "", "영화", "노"])}),
    "a carriage return inside a line": wordpiece(CASED, vocab={
        "vocab.txt": vocab_txt([*wordpiece_tokens()[:20], "x\ry", *wordpiece_tokens()[20:]])}),
    "no line feed at the end": wordpiece(CASED, vocab={"vocab.txt": vocab_txt(wordpiece_tokens())[:-1]}),
    "tokenizer.json": fast(CASED | {"tokenizer_class": "BertTokenizer"}),
    "tokenizer.json without a post-processor": fast(
        CASED | {"tokenizer_class": "BertTokenizer"}, template=False),
    "tokenizer.json alone": fast(lower=True),
    "tokenizer.json as it stands": fast({"tokenizer_class": "PreTrainedTokenizerFast"}),
    "tokenizer.json as it stands, with its own normalizer": fast(
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        change=lambda t: setattr(t, "normalizer", normalizers.Sequence([normalizers.NFKC(), t.normalizer]))),
    "tokenizer.json as it stands, tokens added": fast(
        DECODER | {"tokenizer_class": "PreTrainedTokenizerFast"},
        change=lambda t: t.add_tokens([AddedToken("[NAME]", normalized=False)])),
    "tokenizer.json and added_tokens.json": fast(
        CASED | {"tokenizer_class": "BertTokenizer"}, {"added_tokens.json": {"[NAME]": V}},
        change=lambda t: t.add_tokens([AddedToken("[NAME]", normalized=True)])),
    "as transformers 4 saves it": fast(
        CASED | {"tokenizer_class": "BertTokenizer", "strip_accents": None, "extra_special_tokens": {},
                 "additional_special_tokens": ["[NAME]"], "added_tokens_decoder": {
                     **{str(i): token(text, special=True) for i, text in enumerate(SPECIAL)},
                     str(V): token("[NAME]", special=True), str(V + 1): token("ㅋㅋㅋ", normalized=True)}},
        {"special_tokens_map.json": {"additional_special_tokens": [token("[NAME]")], "cls_token": "[CLS]"},
         "added_tokens.json": {"[NAME]": V, "ㅋㅋㅋ": V + 1}, **VOCAB},
        change=lambda t: t.add_tokens([AddedToken("[NAME]", special=True), AddedToken("ㅋㅋㅋ")])),
    "tokenizer.json with added tokens of its own": fast(
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
        change=lambda t: t.add_special_tokens(["[EMOJI]", "[NAME]"])),
}

REFUSED = {  # (folder, what the message names)
    "do_lower_case as a string": (wordpiece({"do_lower_case": "false"}),
                                  ["tokenizer_config.json", "do_lower_case", "without quotes"]),
    "strip_accents as a number": (wordpiece({"strip_accents": 1}),
                                  ["tokenizer_config.json", "strip_accents"]),
    "no basic tokenizer": (wordpiece({"do_basic_tokenize": False}),
                           ["tokenizer_config.json", "do_basic_tok"]),
    "texts cut on the left": (wordpiece({"truncation_side": "left"}), ["truncation_side"]),
    "a class of its own": (wordpiece({"tokenizer_class": "MecabBertTokenizer"}),
                           ["tokenizer_config.json", "MecabBertTokenizer", "logits"]),
    "Japanese": (wordpiece({"tokenizer_class": "BertJapaneseTokenizer"}), ["BertJapaneseTokenizer"]),
    "a class of its own in config.json": (wordpiece(CASED, {"config.json": {
        "model_type": "bert", "tokenizer_class": "KRBertTokenizer"}}), ["config.json", "KRBertTokenizer"]),
    "code of its own": (wordpiece({"auto_map": {"AutoTokenizer": ["tokenization_kr.KRTokenizer", None]}}),
                        ["tokenizer_config.json", "KRTokenizer", "code"]),
    "code of its own, old": (wordpiece({"auto_map": ["tokenization_kr.KRTokenizer", None]}), ["KRTokenizer"]),
    "code under a known name": (wordpiece({"auto_map": {"AutoTokenizer": ["mine.BertTokenizer", None]}}),
                                ["BertTokenizer", "code"]),
    "as it stands without a post-processor": (
        fast({"tokenizer_class": "PreTrainedTokenizerFast"}, template=False),
        ["tokenizer.json", "special token"]),
    "as it stands without the file": (wordpiece({"tokenizer_class": "PreTrainedTokenizerFast"}),
                                      ["tokenizer.json", "PreTrainedTokenizer"]),
    "another normalizer": (fast(CASED | {"tokenizer_class": "BertTokenizer"}, change=lambda t: setattr(
        t, "normalizer", normalizers.NFKC())), ["tokenizer.json", "normalizer", "PreTrainedTokenizerFast"]),
    "tokenizer.json against the settings": (fast({"do_lower_case": True}), [
        "tokenizer.json", 'normalizer .*"lowercase": false', "tokenizer_config.json"]),
    "tokenizer.json against the defaults": (fast({"tokenizer_class": "BertTokenizer"}), ["normalizer"]),
    "another pre-tokenizer": (fast(CASED, change=lambda t: setattr(
        t, "pre_tokenizer", pre_tokenizers.Whitespace())), ["tokenizer.json", "pre_tokenizer"]),
    "another post-processor": (fast(CASED, change=lambda t: setattr(
        t, "post_processor", processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]))),
        ["tokenizer.json", "post_processor"]),
    "short words": (fast(CASED, max_input_chars_per_word=9), [
        "tokenizer.json", 'model .*"max_input_chars_per_word": 9']),
    "added tokens that only one file has": (
        fast(CASED | {"added_tokens_decoder": {}}, change=lambda t: t.add_tokens(["[NAME]"])),
        ["tokenizer.json", r"added token \[NAME\]"]),
    "no first token": (wordpiece({"cls_token": None}), ["cls_token", "null"]),
    "two lists of special tokens in one file": (
        wordpiece({"additional_special_tokens": ["[NAME]"], "extra_special_tokens": {"a_token": "[EMOJI]"}}),
        ["tokenizer_config.json", "additional_special_tokens", "extra_special_tokens"]),
    "two lists of special tokens": (
        wordpiece({"additional_special_tokens": ["[NAME]"]},
                  {"special_tokens_map.json": {"additional_special_tokens": ["[EMOJI]"]}}),
        ["special_tokens_map.json", "tokenizer_config.json"]),
    "SentencePiece tokens in a WordPiece tokenizer.json": (
        fast({"tokenizer_class": "BertTokenizer"}, tokens=[*SPECIAL, "▁이", "▁영화", "는", "##"]),
        ["tokenizer.json", "SentencePiece", r"\.model"]),
    "SentencePiece tokens in vocab.txt": (
        wordpiece(CASED, vocab={"vocab.txt": vocab_txt([*SPECIAL, "▁이", "▁영화", "는", "##"])}),
        ["vocab.txt", "SentencePiece", r"\.model"]),
    "a Unigram model by the name of BERT": (
        ("bert", {"tokenizer.json": Tokenizer(models.Unigram([(t, 0.0) for t in SPECIAL], 1, False)).to_str(),
                  "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}),
        ["tokenizer.json", "Unigram"]),
    "another kind without the name of a class": (
        ("bert", {"tokenizer.json": Tokenizer(
            models.BPE({t: i for i, t in enumerate(SPECIAL)}, [])).to_str()}),
        ["tokenizer.json", 'model .*"BPE"', "PreTrainedTokenizerFast"]),
    "no class of RoBERTa": (wordpiece({"tokenizer_class": "RobertaTokenizer"}, family="roberta"),
                            ["vocab.json", "merges.txt"]),
}


# transformers 4 adds no special token here, does not know the setting, or takes a token for a special one.
SINCE_5 = {"tokenizer.json without a post-processor", "extra_special_tokens",
           "added_tokens.json, special by the map, lower"}


def assert_same_ids(folder, family, theirs) -> None:
    tokenizer = load_tokenizer(folder, family)
    assert [row.ids for row in tokenizer.encode_batch(TEXTS)] == theirs(TEXTS).input_ids
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    rows, expected = tokenizer.encode_batch(pairs), theirs(TEXTS, TEXTS[::-1], return_token_type_ids=True)
    assert [row.ids for row in rows] == expected.input_ids
    assert [row.type_ids for row in rows] == expected.token_type_ids
    assert tokenizer.get_vocab() == theirs.get_vocab()


@pytest.mark.optional
@pytest.mark.parametrize("kind", ACCEPTED)
def test_ids_equal_those_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    if kind in SINCE_5 and transformers.__version__ < "5":
        pytest.skip("transformers 4")
    family, files = ACCEPTED[kind]
    put(tmp_path / "it", family, files)
    assert_same_ids(tmp_path / "it", family, transformers.AutoTokenizer.from_pretrained(tmp_path / "it"))


@pytest.mark.optional
@pytest.mark.parametrize("kind", ["cased", "klue/roberta", "electra", "vocab.txt alone lowercases",
                                  "added_tokens.json, lower", "as transformers 4 saves it"])
def test_a_folder_that_transformers_saved_with_more_tokens_is_read(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    family, files = ACCEPTED[kind]
    theirs = transformers.AutoTokenizer.from_pretrained(put(tmp_path / "it", family, files))
    theirs.add_tokens(["굿ㅋㅋ", "최고"])
    theirs.add_tokens(["노잼"], special_tokens=True)
    theirs.save_pretrained(put(tmp_path / "saved", family, {}))
    assert_same_ids(tmp_path / "saved", family, theirs)


@pytest.mark.optional
@pytest.mark.parametrize("prefix", [None, False, True])
@pytest.mark.parametrize("names", [["vocab.json", "merges.txt"], ["tokenizer.json"]])
@pytest.mark.parametrize("kind", ["RobertaTokenizer", None, "PreTrainedTokenizerFast"])
def test_byte_level_ids_equal_those_of_transformers(tmp_path, kind, names, prefix):
    transformers = pytest.importorskip("transformers")
    if kind == "PreTrainedTokenizerFast" and "tokenizer.json" not in names:
        return
    template = kind == "PreTrainedTokenizerFast" or transformers.__version__ < "5"  # else the class has one
    files = bpe_files(tmp_path / "bpe", prefix=bool(prefix), template=template)
    config = MASK | ({} if prefix is None else {"add_prefix_space": prefix}) | (
        {} if kind is None else {"tokenizer_class": kind}) | {"additional_special_tokens": ["[NAME]"]}
    files = {name: files[name] for name in names} | {"tokenizer_config.json": config}
    folder = put(tmp_path / "it", "roberta", files)
    assert_same_ids(folder, "roberta", transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path, kind):
    (family, files), parts = REFUSED[kind]
    folder = put(tmp_path / "it", family, files)
    message = refused(lambda: load_tokenizer(folder, family), *parts)
    assert message.startswith(str(folder))


@pytest.mark.parametrize("config", [{}, {"add_prefix_space": False}])
def test_add_prefix_space_of_two_kinds_is_refused(tmp_path, config):
    config = {"tokenizer_class": "RobertaTokenizer"} | config
    files = bpe_files(tmp_path / "bpe", prefix=True) | {"tokenizer_config.json": config}
    folder = put(tmp_path / "it", "roberta", files)
    refused(lambda: load_tokenizer(folder, "roberta"), r"tokenizer\.json",
            'pre_tokenizer .*"add_prefix_space": true')


def test_a_tokenizer_that_train_tokenizer_wrote_gets_the_template_of_the_family(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(wordpiece_json(template=False)), encoding="utf-8")
    row = load_tokenizer(tmp_path, "bert").encode("Movie", "영화")
    assert row.tokens == ["[CLS]", "Movie", "[SEP]", "영화", "[SEP]"] and row.type_ids == [0, 0, 0, 1, 1]


# ---- KoBERT ------------------------------------------------------------------------------------------------

STEMS = ["영화", "배우", "연기", "감독", "이야기", "음악", "장면", "결말", "주인공", "극장", "웃음", "눈물"]
ENDINGS = ["가", "는", "를", "도", "의", "에서", "까지", "만", "처럼", "보다"]
VERBS = ["좋았다", "재미있다", "지루하다", "최고였어요", "별로네요", "아깝다", "훌륭합니다", "감동적이에요"]
ODD = ["1,000원", "3.5점", "BEST!!", "(강추)", "...", "2024년", "ㅠㅠ", "ㅋㅋㅋ", "10,", "굿!?", "진짜~"]
UNKNOWN = ["漢字", "👍🏽👍", "뷁", "½", "Ⅳ", "①②", "ｆｕｌｌ", "№", "\u3000", "\t", "  ", "\u200b", "\u00a0",
           "👨\u200d👩", "❤\ufe0f", "``인용''", "™", "\x1c", "Ωσς", "▁", "ﬁ", "각", "café", "1\ufe0f\u20e3",
           unicodedata.normalize("NFD", "한글"), "´", "\u0e33"]


def sentences(count: int, seed: int, odd: list[str]) -> list[str]:
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = [random.choice(STEMS) + random.choice(ENDINGS) for _ in range(random.integers(1, 5))]
        words += [random.choice(VERBS), *random.choice(odd, random.integers(0, 3))]
        random.shuffle(words)
        rows.append(random.choice(["", " "], p=[0.1, 0.9]).join(words))
    return rows


def train(folder, rule="nmt_nfkc", **options):
    """A SentencePiece model as KoBERT's folder has it: its processor."""
    spm = pytest.importorskip("sentencepiece")
    folder.mkdir(exist_ok=True)
    (folder / "texts").write_text("\n".join(sentences(3000, 1, ODD)), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(folder / "texts"), model_prefix=str(folder / "tokenizer_78b3253a26"),
        normalization_rule_name=rule, control_symbols=["[MASK]"], unk_piece="[UNK]", pad_piece="[PAD]",
        bos_piece="[CLS]", eos_piece="[SEP]", unk_id=0, pad_id=1, bos_id=2, eos_id=3, minloglevel=2,
        **({"vocab_size": 300} | options))
    return spm.SentencePieceProcessor(model_file=str(folder / "tokenizer_78b3253a26.model"))


def kobert(folder, processor, **config):
    """The rest of the folder: vocab.txt sorts the pieces, so that no id is that of the model."""
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(pieces[5:]))]
    (folder / "texts").unlink()
    put(folder, "bert", {"vocab.txt": vocab_txt(tokens),
                         "tokenizer_config.json": {"tokenizer_class": "KoBertTokenizer"} | config})
    return {token: i for i, token in enumerate(tokens)}


def by_kobert(processor, vocab, text: str) -> list[int]:
    """Ids as KoBertTokenizer makes them, but for pieces that end in a digit and a comma."""
    text = unicodedata.normalize("NFKD", " ".join(text.split()).replace("``", '"').replace("''", '"'))
    text = "".join(c for c in text if not unicodedata.combining(c))
    pieces = processor.encode(text, out_type=str)
    return [vocab["[CLS]"], *(vocab.get(piece, vocab["[UNK]"]) for piece in pieces), vocab["[SEP]"]]


@pytest.mark.optional
@pytest.mark.parametrize("rule, options", [
    ("nmt_nfkc", {}), ("nfkc", {}), ("nmt_nfkc", {"split_by_whitespace": False})])
def test_ids_equal_those_of_the_sentencepiece_package(tmp_path, rule, options):
    processor = train(tmp_path / "it", rule, **options)
    vocab = kobert(tmp_path / "it", processor)
    tokenizer = load_tokenizer(tmp_path / "it", "bert")
    scores = {processor.id_to_piece(i): processor.get_score(i) for i in range(processor.vocab_size())}
    tokens = {i: token for token, i in vocab.items()}
    rows, ties = [*sentences(1000, 2, ODD), *sentences(1000, 3, ODD + UNKNOWN)], 0
    for text, row in zip(rows, tokenizer.encode_batch(rows), strict=True):
        expected = by_kobert(processor, vocab, text)
        if row.ids != expected:  # only two segmentations of equal score, of which float32 chooses one
            ours, theirs = ([tokens[i] for i in ids] for ids in (row.ids, expected))
            assert "".join(ours) == "".join(theirs), text
            assert sum(map(scores.get, ours)) == pytest.approx(sum(map(scores.get, theirs)), abs=1e-4), text
            ties += 1
    plain = [processor.encode(text) for text in rows[:1000]]  # by the package alone, without KoBertTokenizer
    expected = [[vocab.get(processor.id_to_piece(i), 0) for i in ids] for ids in plain]
    found = [row.ids[1:-1] for row in tokenizer.encode_batch(rows[:1000])]
    assert sum(one != other for one, other in zip(found, expected, strict=True)) <= ties
    assert ties <= 0.02 * len(rows)
    assert len({i for row in tokenizer.encode_batch(rows) for i in row.ids}) > 100


@pytest.mark.optional
def test_kobert_pairs_special_tokens_and_ids_without_a_vocab_txt(tmp_path):
    processor = train(tmp_path / "it")
    code = {"AutoTokenizer": ["tokenization_kobert.KoBertTokenizer", None]}
    vocab = kobert(tmp_path / "it", processor, auto_map=code)
    tokenizer = load_tokenizer(tmp_path / "it", "distilbert")
    one, two = "배우가 좋았다", "결말은 별로네요"
    row, ids = tokenizer.encode(one, two), [by_kobert(processor, vocab, text) for text in (one, two)]
    assert row.ids == ids[0] + ids[1][1:]
    assert row.type_ids == [0] * len(ids[0]) + [1] * (len(ids[1]) - 1)
    inside = tokenizer.encode(f"{one}[MASK] {two}")
    assert inside.ids == [*ids[0][:-1], vocab["[MASK]"], *ids[1][1:]]
    assert tokenizer.encode("").ids == [2, 3] and tokenizer.encode(" \t ").ids == [2, 3]

    (tmp_path / "it/vocab.txt").unlink()  # skt/kobert-base-v1: the ids of the model, XLNet's name
    (tmp_path / "it/tokenizer_config.json").write_text('{"tokenizer_class": "XLNetTokenizer"}')
    assert load_tokenizer(tmp_path / "it", "bert").encode(one).ids == [2, *processor.encode(one), 3]
    (tmp_path / "it/tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path / "it", "bert").encode(one).ids == [2, *processor.encode(one), 3]


@pytest.mark.optional
def test_the_reader_reads_what_the_package_reads(tmp_path):
    processor = train(tmp_path / "it")
    pieces, charsmap = read_sentencepiece(tmp_path / "it/tokenizer_78b3253a26.model")
    ids = range(processor.vocab_size())
    assert [text for text, _, _ in pieces] == [processor.id_to_piece(i) for i in ids]
    assert [score for _, score, _ in pieces] == [processor.get_score(i) for i in ids]
    kinds = [kind for *_, kind in pieces]
    assert [kind == 2 for kind in kinds] == [processor.is_unknown(i) for i in ids]
    assert [kind == 3 for kind in kinds] == [processor.is_control(i) for i in ids]
    assert 0 < kinds.count(3) < len(kinds) and len(charsmap) > 1000


@pytest.mark.optional
@pytest.mark.parametrize("options, part", [
    ({"user_defined_symbols": ["<br>"]}, "user-defined"), ({"model_type": "char"}, "model_type 4"),
    ({"model_type": "word", "vocab_size": 100}, "model_type 3"), ({"model_type": "bpe"}, "model_type 2"),
    ({"treat_whitespace_as_suffix": True}, "suffix"), ({"add_dummy_prefix": False}, "add_dummy_prefix"),
    ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces"),
    ({"rule": "identity"}, "normalization"), ({"byte_fallback": True, "vocab_size": 600}, "<0x00> of kind 6"),
])
def test_a_sentencepiece_model_of_another_kind_is_refused_by_name(tmp_path, options, part):
    options = {"vocab_size": 250, "hard_vocab_limit": False} | options
    kobert(tmp_path / "it", train(tmp_path / "it", **options))
    refused(lambda: load_tokenizer(tmp_path / "it", "bert"), r"tokenizer_78b3253a26\.model", part, "logits")


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number: int, value) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str, score: bytes = b"\0\0\x80\xbf", kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + varint(2 << 3 | 5) + score + field(3, kind))


NFKC = field(3, field(2, struct.pack("<I", 1024) + bytes(1024)))  # a charsmap without entries


def test_a_model_written_by_hand(tmp_path):
    """Two segmentations of 영화: one piece of score -1, or 영 and 화 of -1 each. Ids are those of vocab.txt.
    """
    data = piece("[UNK]", kind=2) + b"".join(map(piece, ["▁", "영", "화", "영화", "▁이"])) + NFKC
    tokens = ["[PAD]", "▁이", "영화", "[UNK]", "[CLS]", "[SEP]", "화", "영", "▁", "화영"]  # no piece: 화영
    folder = put(tmp_path / "it", "bert", {"some.model": data, "vocab.txt": vocab_txt(tokens),
                                           "tokenizer_config.json": {}})
    tokenizer = load_tokenizer(folder, "bert")
    assert tokenizer.encode(" 이  영화 화영!?").ids == [4, 1, 8, 2, 8, 6, 7, 3, 5]


@pytest.mark.parametrize("content, part", [
    (b"", "no pieces"), (b"\xff\xff", "not a SentencePiece"), (piece("a")[:-3], "not a SentencePiece"),
    ("이것은 모델이 아니다".encode(), "not a SentencePiece"),
    (piece("a")[:4] + b"\xff", "not a SentencePiece"),
])
def test_a_damaged_model_is_refused(tmp_path, content, part):
    folder = put(tmp_path / "it", "bert", {"spiece.model": content,
                                           "tokenizer_config.json": {"tokenizer_class": "KoBertTokenizer"}})
    refused(lambda: load_tokenizer(folder, "bert"), r"spiece\.model", part)


def test_a_model_whose_pieces_vocab_txt_lacks_is_refused(tmp_path):
    config = {"tokenizer_class": "KoBertTokenizer"}
    model = piece("[UNK]", kind=2) + piece("가") + piece("나") + NFKC
    folder = put(tmp_path / "it", "bert", {"a.model": model, "vocab.txt": vocab_txt([*SPECIAL, "가"]),
                                           "tokenizer_config.json": config})
    refused(lambda: load_tokenizer(folder, "bert"), r"vocab\.txt", "나", r"a\.model")
    (folder / "b.model").write_bytes(model)
    refused(lambda: load_tokenizer(folder, "bert"), r"a\.model, b\.model", "one")


def test_read_json_is_one_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    refused(lambda: read_json(tmp_path / "a.json"), r"a\.json", "object")


# ---- heads -------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(kit, tmp_path):
    """The kit's fine-tuned teacher (labels 0 and 1) as a published folder, and the teacher."""
    teacher = Teacher.load(kit / "teacher/teacher.pt")
    publish(teacher, tmp_path / "it")
    return tmp_path / "it", teacher


def configure(folder, **settings):
    config = read_json(folder / "config.json") | settings
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")


def by_id(names) -> dict:
    return {str(i): name for i, name in enumerate(names)}


def test_labels_equal_but_for_case_space_and_unicode_form_are_matched_and_told(classifier):
    folder, teacher = classifier
    own = [" Positive", unicodedata.normalize("NFD", "부정")]
    configure(folder, id2label=by_id(own))
    for names in (["부정", "positive"], ["positive", "부정"]):
        found, report = load_checkpoint(str(folder), names, 20)
        assert found.label_names == ["positive", "부정"]  # in the head's order, by the names of the file
        assert torch.equal(found.head_out.weight, teacher.head_out.weight)
        assert str(own) in report[-1] and str(found.label_names) in report[-1]
    found, report = load_checkpoint(str(folder), own[::-1], 20)
    assert found.label_names == own and not any("classes" in line for line in report)
    # Two labels that look alike cannot be told apart by what people see.
    configure(folder, id2label=by_id(["A", "a"]))
    assert load_checkpoint(str(folder), ["a", "a "], 20)[0].label_names == ["a", "a "]


def test_id2label_and_label2id_that_contradict_each_other_are_told(classifier):
    folder, _ = classifier
    configure(folder, id2label=by_id("10"), label2id={"0": 0, "1": 1})
    teacher, report = load_checkpoint(str(folder), ["0", "1"], 20)
    line = next(line for line in report if "contradicts" in line)
    assert "['1', '0']" in line and "['0', '1']" in line and teacher.label_names == ["1", "0"]
    configure(folder, id2label=by_id("10"), label2id={"1": 0, "0": 1})
    assert not any("contradicts" in line for line in load_checkpoint(str(folder), ["0", "1"], 20)[1])
    configure(folder, id2label=None, label2id={"1": 0, "0": 1})
    assert load_checkpoint(str(folder), ["0", "1"], 20)[0].label_names == ["1", "0"]


@pytest.mark.parametrize("classes, settings, parts", [
    (3, {"id2label": by_id(["neg", "neutral", "pos"])},
     ["3 classes", "'neutral'", "2 labels", r"\['0', '1'\]"]),
    (2, {"problem_type": "multi_label_classification"}, ["multilabel", "multi_label_classification"]),
    (2, {"problem_type": "regression"}, ["regression", "problem_type"]),
    (1, {}, ["regression", "one output"]),
])
def test_a_head_for_something_else_is_not_used_and_epochs_0_says_why(here, classes, settings, parts):
    publish(Teacher.load("teacher/teacher.pt"), "it", **settings)
    tensors = read("it/pytorch_model.bin")
    tensors |= {"classifier.weight": torch.ones(classes, 16), "classifier.bias": torch.ones(classes)}
    torch.save(tensors, "it/pytorch_model.bin")
    flags = f"{LABELLED} --checkpoint it --device cpu --max-length 20 --output-dir out"
    refused(lambda: run("finetune_teacher", f"{flags} --epochs 0"), "--epochs", "checkpoint's head", *parts)
    run("finetune_teacher", f"{flags} --epochs 1 --lr 1e-3")
    teacher = Teacher.load("out/teacher.pt")
    assert teacher.head_out.weight.shape == (2, 16) and teacher.head_out.weight.std() < 0.1
    publish(teacher, "it")
    configure(Path("it"), problem_type="single_label_classification")
    run("finetune_teacher", f"{flags} --epochs 0 --overwrite")


def test_a_head_of_several_labels_is_kept_in_its_own_order(here):
    """What config.json calls multi_label_classification, or leaves open."""
    teacher = Teacher.load("teacher/teacher.pt")
    texts = read_examples("train.tsv").texts
    for name, (first, rest) in {"train": ("나", "가,나"), "valid": ("가", "-")}.items():
        write_rows(Path(f"{name}-labels.tsv"), [(text, rest if i else first) for i, text in enumerate(texts)],
                   "text\tlabels")
    flags = ("--train train-labels.tsv --valid valid-labels.tsv --checkpoint it --epochs 0 --device cpu "
             "--max-length 20 --overwrite --output-dir out")
    for problem in ("multi_label_classification", None):
        publish(teacher, "it", problem_type=problem, id2label=by_id(["나", "가"]))
        run("finetune_teacher", flags)
        found = Teacher.load("out/teacher.pt")
        assert (found.task, found.label_names) == ("multilabel", ["나", "가"])
        torch.testing.assert_close(found.logits(texts), teacher.logits(texts), rtol=0, atol=1e-5)
        assert len(found.config.thresholds) == 2
    configure(Path("it"), problem_type="single_label_classification")
    refused(lambda: run("finetune_teacher", flags), "for classification .*single_label.*multilabel")


@pytest.mark.parametrize("unit", [{}, {"target_mean": 2.5, "target_deviation": 0.5}])
@pytest.mark.parametrize("problem", ["regression", None])
def test_a_head_of_scores_is_kept_in_the_units_of_the_file(here, unit, problem):
    """transformers' are scores; what extra/pretrain_teacher.py wrote are standardised, and it says how."""
    teacher = Teacher.load("teacher/teacher.pt")
    publish(teacher, "it", problem_type=problem, id2label={"0": "LABEL_0"}, **unit)
    tensors = read("it/pytorch_model.bin")
    tensors |= {"classifier.weight": torch.linspace(-1, 1, 16)[None], "classifier.bias": torch.tensor([7.0])}
    torch.save(tensors, "it/pytorch_model.bin")
    with torch.no_grad():
        teacher.head_out.weight[:], teacher.head_out.bias[:] = tensors["classifier.weight"], 7.0
        texts = read_examples("train.tsv").texts
        expected = teacher.logits(texts)[:, :1] * unit.get("target_deviation", 1) + unit.get("target_mean", 0)
    for name, scale in (("train", 40), ("valid", 20)):
        rows = [(text, f"{scale + len(text)}") for text in read_examples(f"{name}.tsv").texts]
        write_rows(Path(f"{name}-scores.tsv"), rows, "text\tscore")
    flags = "--train train-scores.tsv --valid valid-scores.tsv --checkpoint it --device cpu --max-length 20"
    run("finetune_teacher", f"{flags} --epochs 0 --output-dir kept")
    found = Teacher.load("kept/teacher.pt")
    assert (found.task, found.label_names) == ("regression", ["score"]) and found.config.mean > 40
    torch.testing.assert_close(found.logits(texts), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.predict(texts), found.logits(texts))
    # Training goes on from this head.
    run("finetune_teacher", f"{flags} --epochs 1 --lr 1e-9 --output-dir more")
    torch.testing.assert_close(Teacher.load("more/teacher.pt").logits(texts), expected, rtol=1e-3, atol=1e-2)
    configure(Path("it"), target_deviation="wide")
    refused(lambda: run("finetune_teacher", f"{flags} --output-dir bad"), "config.json: target_deviation")
    configure(Path("it"), target_deviation=None, problem_type="multi_label_classification")
    refused(lambda: run("finetune_teacher", f"{flags} --epochs 0 --output-dir bad"), "multilabel.*regression")


def test_the_report_of_a_head_that_is_not_used_names_its_tensors(classifier):
    folder, _ = classifier
    configure(folder, problem_type="multi_label_classification")
    report = load_checkpoint(str(folder), ["0", "1"], 20)[1]
    assert "not used: classifier.bias, classifier.weight" in report
    assert "starts fresh: head_out.weight, head_out.bias" in report


@pytest.mark.parametrize("length, lowered", [(20, False), (512, False), (513, True), (9999, True)])
def test_a_max_length_above_the_positions_is_told(classifier, length, lowered):
    folder, _ = classifier
    teacher, report = load_checkpoint(str(folder), ["0", "1"], length)
    told = [line for line in report if "--max-length" in line]
    assert teacher.max_length == min(length, 512) and len(told) == lowered
    assert all(str(length) in line and "512" in line for line in told)


def test_a_max_length_above_the_positions_is_told_of_a_new_encoder(here, capsys):
    flags = f"{LABELLED} --scratch 1,16,2 --tokenizer tokenizer/vocab_size_3000 --device cpu --epochs 1"
    run("finetune_teacher", f"{flags} --max-length 600 --output-dir out")
    assert "--max-length 600" in (printed := capsys.readouterr().out) and "512" in printed


# ---- a published classifier in place of teacher.pt ---------------------------------------------------------


@pytest.mark.parametrize("problem, names, column", [
    (None, ["1", "0"], "label"), ("multi_label_classification", ["나", "가"], "labels"),
    ("regression", ["LABEL_0"], "score"), (None, ["LABEL_0"], "score")])
def test_a_published_classifier_is_dumped_and_judged_as_it_is(here, capsys, problem, names, column):
    teacher = Teacher.load("teacher/teacher.pt")
    publish(teacher, "org/it", problem_type=problem, id2label=by_id(names))
    tensors = read("org/it/pytorch_model.bin")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name][: len(names)].clone()
    torch.save(tensors, "org/it/pytorch_model.bin")
    texts = read_examples("train.tsv").texts
    cells = {"label": "01", "labels": ["가", "-"], "score": ["2", "3.5"]}[column]
    write_rows(Path("new.tsv"), [(text, cells[i % 2]) for i, text in enumerate(texts)], f"text\t{column}")
    run("dump_logits", "--teacher org/it --data new.tsv --device cpu --precision fp32")
    found = read("logits/new.pt")
    expected = teacher.logits(texts)[:, : len(names)]
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5)
    assert found["label_names"] == (["score"] if column == "score" else names)
    run("distill", f"--train new.tsv --valid new.tsv --logits logits/new.pt {STUDENT} --output-dir out")
    printed = capsys.readouterr()
    assert "cannot be compared" not in printed.err and "embeddings from the teacher" in printed.out
    run("evaluate", "org/it out/tiny/student.pt --data new.tsv --json --device cpu")
    report = json.loads(capsys.readouterr().out)
    assert "bytes" not in report["models"][0] and report["models"][0]["model"] == "org/it"
    configure(Path("org/it"), layer_norm_eps=0.1)
    refused(lambda: run("distill", f"--train new.tsv --valid new.tsv --logits logits/new.pt {STUDENT} "
                                   f"--output-dir out"),
            "different version of org/it")


def test_teachers_with_their_labels_in_another_order_are_averaged_by_name(here):
    teacher = Teacher.load("teacher/teacher.pt")
    publish(teacher, "org/it", id2label=by_id(["1", "0"]))
    run("dump_logits", "--teacher teacher/teacher.pt org/it --data train.tsv --output-dir both --device cpu "
                       "--precision fp32")
    one = teacher.logits(read_examples("train.tsv").texts)
    torch.testing.assert_close(read("both/train.pt")["logits"], (one + one.flip(1)) / 2, rtol=0, atol=1e-5)
    publish(teacher, "org/same", id2label=by_id(["1", "1"]))
    refused(lambda: run("dump_logits", "--teacher org/same --data train.tsv --output-dir out --device cpu"),
            "org/same: id2label", "twice")


def test_a_published_classifier_must_name_its_labels_and_have_a_head(here, monkeypatch):
    publish(Teacher.load("teacher/teacher.pt"), "org/it", id2label=by_id(["LABEL_0", "LABEL_1"]))
    dump = "--data train.tsv --output-dir out --device cpu --teacher"
    refused(lambda: run("dump_logits", f"{dump} org/it"), "^org/it: id2label",
            "--checkpoint org/it --epochs 0")
    configure(Path("org/it"), id2label=by_id("01"), problem_type="regression")
    refused(lambda: run("dump_logits", f"{dump} org/it"), "no trained head for regression", "2 classes")
    tensors = read("org/it/pytorch_model.bin")
    torch.save({name: tensors[name] for name in tensors if "class" not in name}, "org/it/pytorch_model.bin")
    configure(Path("org/it"), problem_type=None)
    refused(lambda: run("dump_logits", f"{dump} org/it"), "no trained head", "--checkpoint org/it --train")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download",
                        lambda source, **_: asked.append(source) or "org/it")
    refused(lambda: run("dump_logits", f"{dump} other/one"), "^other/one: has no trained head")
    assert set(asked) == {"other/one"}
    for missing in ("teacher/other.pt", "a/b/c", "nothing"):  # not ids of the hub
        refused(lambda missing=missing: run("dump_logits", f"{dump} {missing}"), missing, "No such file")
    assert set(asked) == {"other/one"}


# ---- weights -----------------------------------------------------------------------------------------------


def same_weights(folder, teacher, *lines: str) -> None:
    found, report = load_checkpoint(str(folder), ["0", "1"], 20)
    weights = found.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())
    for part in lines:
        assert any(part in line for line in report), report


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "bert.", "net."])
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_a_prefix_of_all_tensors_is_left_out_and_told(classifier, prefix, key):
    folder, teacher = classifier
    tensors = {prefix + name: tensor for name, tensor in read(folder / "pytorch_model.bin").items()}
    torch.save({key: tensors, "epoch": 3} if key else tensors, folder / "pytorch_model.bin")
    same_weights(folder, teacher, f"prefix {'state_dict.' if key else ''}{prefix} ")


def test_what_has_no_share_in_the_prefix_is_not_used(classifier):
    """encoder.… of an AutoModel, and a head of the user's own, which need not be BERT's."""
    folder, teacher = classifier
    tensors = {"encoder." + name.removeprefix("bert."): tensor
               for name, tensor in read(folder / "pytorch_model.bin").items() if name.startswith("bert.")}
    torch.save(tensors | {"classifier.weight": torch.ones(2, 16), "loss.weight": torch.ones(2)},
               folder / "pytorch_model.bin")
    found, report = load_checkpoint(str(folder), ["0", "1"], 20)
    assert torch.equal(found.encoder.word_embeddings.weight, teacher.encoder.word_embeddings.weight)
    assert any("prefix encoder. " in line for line in report)
    assert "not used: classifier.weight, loss.weight" in report
    assert "starts fresh: head_out.weight, head_out.bias" in report


def test_an_encoder_alone_has_no_prefix(classifier):
    folder, _ = classifier
    tensors = {name: tensor for name, tensor in read(folder / "pytorch_model.bin").items() if "bert." in name}
    for change in (str, lambda name: name.removeprefix("bert.")):
        torch.save({change(name): tensor for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
        report = load_checkpoint(str(folder), ["0", "1"], 20)[1]
        assert not any("prefix" in line for line in report) and "2 started fresh" in report[0]


def shard(folder, ending: str, save) -> None:
    """Three files of tensors and their index, in place of pytorch_model.bin."""
    tensors = list(read(folder / "pytorch_model.bin").items())
    (folder / "pytorch_model.bin").unlink()
    stem, weight_map = "model" if ending == "safetensors" else "pytorch_model", {}
    for i in range(3):
        name = f"{stem}-{i + 1:05}-of-00003.{ending}"
        save(dict(tensors[i::3]), folder / name)
        weight_map |= dict.fromkeys(dict(tensors[i::3]), name)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_from_a_folder_and_from_the_hub(classifier, monkeypatch):
    folder, teacher = classifier
    shard(folder, "bin", torch.save)
    same_weights(folder, teacher, "pytorch_model.bin.index.json: 25 tensors read, 0 not used")
    asked = []

    def download(source, allow_patterns):
        asked.append([name for name in allow_patterns if name.endswith(".bin")])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_checkpoint("someone/some-model", ["0", "1"], 20)
    assert asked == [["pytorch_model.bin"], [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]]

    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), "pytorch_model-00002-of-00003.bin")
    index = folder / "pytorch_model.bin.index.json"
    for files in (None, {}, {"a": "../x.bin"}, {"a": 3}):
        index.write_text(json.dumps({"weight_map": files}))
        refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), r"index\.json", "weight_map")


@pytest.mark.optional
def test_shards_in_safetensors(classifier):
    save_file = pytest.importorskip("safetensors.torch").save_file
    folder, teacher = classifier
    shard(folder, "safetensors", save_file)
    same_weights(folder, teacher, "model.safetensors.index.json: 25 tensors read, 0 not used")


@pytest.mark.parametrize("name, parts", [
    ("model_best.safetensors", [r"model_best\.safetensors", r"rename it to model\.safetensors"]),
    ("best.ckpt", [r"best\.ckpt", r"rename it to pytorch_model\.bin"]),
    ("adapter_config.json", [r"adapter_config\.json", "merge_and_unload"]),
    ("model-Q4_K_M.gguf", [r"model-Q4_K_M\.gguf", "float", "safetensors"]),
    ("tf_model.h5", [r"tf_model\.h5", "from_tf"]), ("flax_model.msgpack", ["from_flax"]),
    ("model.ckpt.index", [r"model\.ckpt\.index", "from_tf"]),
    ("optimizer.pt", ["no pytorch_model.bin or model"]),
])
def test_a_folder_without_weights_is_refused_with_what_it_has(classifier, name, parts):
    folder, _ = classifier
    (folder / "pytorch_model.bin").unlink()
    (folder / name).write_bytes(b"{}")
    (folder / "training_args.bin").write_bytes(b"")
    message = refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), *parts)
    assert "training_args" not in message
    if name in ("adapter_config.json", "model-Q4_K_M.gguf"):
        (folder / "config.json").unlink()  # as peft writes its folder, and llama.cpp its file
        refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), *parts)


def test_another_family_needs_one_more_package_and_the_command_is_told(classifier, monkeypatch):
    folder, _ = classifier
    monkeypatch.setitem(sys.modules, "transformers", None)
    configure(folder, model_type="gpt2")
    refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), r"config\.json", "gpt2",
            r'pip install "transformers\[sentencepiece\]"$')
    configure(folder, model_type="xlm-roberta")  # its tokenizer alone does
    (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")
    refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), "xlm-roberta", "pip install")


def test_a_pickled_model_is_refused_with_what_to_save(classifier):
    folder, teacher = classifier
    torch.save(teacher.encoder, folder / "pytorch_model.bin")
    refused(lambda: load_checkpoint(str(folder), ["0", "1"], 20), r"pytorch_model\.bin", "state_dict")
