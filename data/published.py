"""The tokenizers of published checkpoints, read into the `tokenizers` library.

    tokenizer = load_tokenizer(Path("klue/roberta-small"), "roberta")

A folder gives the ids that `transformers` gives, or it is refused by the name of a file. `transformers`
builds BertTokenizer and RobertaTokenizer from a vocabulary and from settings in up to five files; so does
this module. KoBERT's SentencePiece model, for which `transformers` has no class, is read from its own file.
tests/test_published.py compares ids with `transformers` and with the `sentencepiece` package.
"""

import itertools
import json
import struct
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import runtime
from runtime import UserError

# The classes that are read, without "Fast". AS_IT_IS: tokenizer.json alone says how texts are read.
BERT = ("BertTokenizer", "ElectraTokenizer", "DistilBertTokenizer")
ROBERTA = ("RobertaTokenizer",)
AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
# monologg/kobert; the package kobert_tokenizer; what skt/kobert-base-v1, which that package reads, names.
KOBERT = ("KoBertTokenizer", "KoBERTTokenizer", "XLNetTokenizer")
NAMES = {"bert": {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
                  "mask_token": "[MASK]"},
         "roberta": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
                     "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}}
ORDER = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Settings with which `transformers` gives other ids than this module does, or one version of it does.
UNREAD = {"do_basic_tokenize": False, "split_special_tokens": True, "truncation_side": "left",
          "keep_accents": True, "remove_space": False}
FAST = ('"tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json makes it be read as '
        "tokenizer.json says")
LOGITS = "the model can teach through its logits: save them as an (N, C) tensor"


def load_tokenizer(folder: Path, family: str) -> Tokenizer:
    """The tokenizer of a published folder, or of one that train_tokenizer.py wrote; without truncation and
    padding. `family` decides where the folder names no class, as in `transformers`. Raises UserError.

    Read otherwise than `transformers` reads it:
    - a vocab.txt in a RoBERTa that names no class: as BertTokenizer;
    - a special token that no file states and the vocabulary lacks: not added;
    - <mask> that no file states: takes the space before it, as in transformers 4.
    A folder without config.json and tokenizer_config.json is not published: tokenizer.json as it stands.
    """
    try:
        tokenizer = _load(folder, family)
    except UserError:
        raise
    except Exception as error:  # the Rust library raises bare Exception for a file it cannot parse
        raise UserError(f"{folder}: cannot read the tokenizer ({' '.join(str(error).split())})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _load(folder: Path, family: str) -> Tokenizer:
    settings, name = _settings(folder)
    file, pieces = folder / "tokenizer.json", sorted(folder.glob("*.model"))
    given = Tokenizer.from_file(str(file)) if file.exists() else None
    if name in KOBERT or (pieces and given is None and name in (None, *BERT)
                          and not _has_wordpiece(folder / "vocab.txt")):
        return _kobert(folder, pieces, settings)
    if given is not None and isinstance(given.model, models.WordPiece):
        _refuse_pieces(file, given.get_vocab(with_added_tokens=False), pieces)
    published = (folder / "config.json").exists() or (folder / "tokenizer_config.json").exists()
    if given is not None and (name in AS_IT_IS or not published):
        return _as_it_is(folder, settings, given, None if published else family)

    wordpiece = given is None and (folder / "vocab.txt").exists() and not (folder / "vocab.json").exists()
    if name is None:
        name = ROBERTA[0] if family == "roberta" and not wordpiece else BERT[0]
    read, kind, files = (_byte_level_bpe, models.BPE, ("vocab.json", "merges.txt")) if name in ROBERTA else \
        (_wordpiece, models.WordPiece, ("vocab.txt",))
    if given is None and (name in AS_IT_IS or not all((folder / each).exists() for each in files)):
        raise UserError(f"{folder}: no tokenizer.json"
                        + ("" if name in AS_IT_IS else f", or {' and '.join(files)},")
                        + f" in it, which tokenizer class {name} needs")
    if given is not None and not isinstance(given.model, kind):
        raise UserError(f"{file}: holds a {type(given.model).__name__} model, but the folder stands for "
                        f"{name}, which is {kind.__name__}; {FAST}")
    return read(folder, settings, given)


def _as_it_is(folder: Path, settings: dict, given: Tokenizer, family: str | None) -> Tokenizer:
    """What tokenizer.json says, with the tokens that other files add. With `family`, which is that of a
    tokenizer without a model, the family's template where there is none."""
    split, prefix = given.pre_tokenizer, settings.get("add_prefix_space")
    if isinstance(split, pre_tokenizers.ByteLevel) and prefix not in (None, split.add_prefix_space):
        raise UserError(f"{folder / 'tokenizer_config.json'}: add_prefix_space is {prefix!r}, and not so in "
                        f"tokenizer.json; correct one")
    _add_tokens(given, settings, folder, {})
    if family:
        cls, sep = ("<s>", "</s>") if family == "roberta" else ("[CLS]", "[SEP]")
        template = _roberta_template if family == "roberta" else bert_template
        if given.post_processor is None and None not in (given.token_to_id(cls), given.token_to_id(sep)):
            given.post_processor = template(given, cls, sep)
    elif not first_is_special(given):
        raise UserError(f"{folder / 'tokenizer.json'}: puts no special token before a text, but the model's "
                        f"head reads the first token; add a post-processor, or name the tokenizer_class "
                        f"(BertTokenizer, RobertaTokenizer) in tokenizer_config.json")
    return given


def first_is_special(tokenizer: Tokenizer) -> bool:
    """Whether each row begins with a token that does not come from its text."""
    return all(mask[:1] == [1] for mask in (tokenizer.encode("가").special_tokens_mask,
                                            tokenizer.encode("가", "나").special_tokens_mask))


# ---- the files that `transformers` reads -------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """A file that holds one JSON object. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); a checkpoint needs this file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def _optional(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _settings(folder: Path) -> tuple[dict, str | None]:
    """(all settings of the tokenizer, the name of its class without "Fast" or None)."""
    path = folder / "tokenizer_config.json"
    settings = _optional(path)
    name, where = settings.get("tokenizer_class"), path
    if name is None:
        where = folder / "config.json"
        name = _optional(where).get("tokenizer_class")
    code = settings.get("auto_map") or ()
    code = code.get("AutoTokenizer", ()) if isinstance(code, dict) else code
    for part in filter(None, [code] if isinstance(code, str) else code):
        name, where = str(part).rsplit(".", 1)[-1], path
        break
    if name is not None:
        name = str(name).removesuffix("Fast")
        known = (*BERT, *ROBERTA, *AS_IT_IS, *KOBERT)
        if name not in known or (code and name not in KOBERT):
            of_its_own = ", which comes with code of its own," if code else ""
            raise UserError(f"{where}: tokenizer class {name}{of_its_own} is not read here "
                            f"({', '.join(known[:-1])} are); {LOGITS}")
    for key, value in UNREAD.items():
        if settings.get(key) == value and (name in KOBERT or key not in ("keep_accents", "remove_space")):
            raise UserError(f"{path}: {key} is {value!r}, which is not read here; {LOGITS}")
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"):
        if not isinstance(settings.get(key, True), bool) and (key, settings[key]) != ("strip_accents", None):
            raise UserError(f"{path}: {key} is {settings[key]!r}, must be true or false without quotes")
    both = [settings.get(key) for key in ("additional_special_tokens", "extra_special_tokens")]
    if all(both) and both[0] != both[1]:
        raise UserError(f"{path}: additional_special_tokens and extra_special_tokens differ, and versions of "
                        f"transformers differ on which count; leave one out")
    if "added_tokens_decoder" not in settings:
        more, extra = _optional(folder / "special_tokens_map.json"), extra_tokens(settings)
        if extra and extra_tokens(more) not in ([], extra):
            raise UserError(f"{folder / 'special_tokens_map.json'}: its additional special tokens are not "
                            f"those of tokenizer_config.json, and versions of transformers differ on which "
                            f"count; correct one")
        settings = settings | more | ({"extra_special_tokens": extra} if extra else {})
    return settings, name


def extra_tokens(settings: dict) -> list:
    """What additional_special_tokens, later called extra_special_tokens, hold."""
    found = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return list(found.values() if isinstance(found, dict) else found)


def _token(value, special: bool = True) -> AddedToken:
    """A token that a file states as a string or as an object."""
    if isinstance(value, str):
        return AddedToken(value, special=special, normalized=not special)
    flags = {key: flag for key, flag in value.items() if key != "__type"}
    return AddedToken(**{"special": special} | flags)


def _named(settings: dict, defaults: dict) -> dict[str, AddedToken]:
    """{unk_token and others: the token}: those that the files state, and the class's own; null is none."""
    stated = {key: value for key, value in (defaults | settings).items()
              if key.endswith("_token") and isinstance(value, (str, dict))}
    return {key: _token(stated[key]) for key in sorted(stated, key=lambda key: (*ORDER, key).index(key))}


def _names(settings: dict, kind: str, path: Path) -> tuple[str, str, str, str]:
    """The unknown, separator, padding and first token, which a model cannot do without."""
    named = _named(settings, NAMES[kind])
    for key in ORDER[2:6]:
        if key not in named:
            raise UserError(f"{path}: {key} is null in the tokenizer's settings; name a token")
    unk, sep, pad, cls = (named[key].content for key in ORDER[2:6])
    return unk, sep, pad, cls


def _add_tokens(tokenizer: Tokenizer, settings: dict, folder: Path, defaults: dict) -> None:
    """Add what the files state as added and special tokens, in the order of `transformers`, on which new ids
    depend."""
    named, extra = _named(settings, defaults), [_token(value) for value in extra_tokens(settings)]
    if "added_tokens_decoder" in settings:
        numbered = {int(i): _token(value, False) for i, value in settings["added_tokens_decoder"].items()}
    else:
        # Those of special_tokens_map.json alone become special only if they are not in added_tokens.json.
        known = extra if settings.get("extra_special_tokens") else []
        stated = {token.content for token in (*_named(settings, {}).values(), *known)}
        numbered = {i: _token(text, text in stated)
                    for text, i in _optional(folder / "added_tokens.json").items()}
        if (folder / "tokenizer.json").exists():
            for value in read_json(folder / "tokenizer.json").get("added_tokens", ()):
                flags = {key: flag for key, flag in value.items() if key != "id"}
                numbered[value["id"]] = _token(flags)
    tokens = [token for _, token in sorted(numbered.items(), key=lambda item: item[0])]
    present = {token.content for token in (*tokens, *tokenizer.get_added_tokens_decoder().values())}
    vocab = tokenizer.get_vocab()
    for key, token in [*named.items(), *((None, token) for token in extra)]:
        if token.content not in present and (key is None or key in settings or token.content in vocab):
            tokens.append(token)
            present.add(token.content)
    contents = {token.content for token in named.values()}
    for token in tokens:
        token.special = token.special or token.content in contents
    tokenizer.add_tokens([token for token in tokens if token.content])


def bert_template(tokenizer: Tokenizer, cls: str = "[CLS]",
                  sep: str = "[SEP]") -> processors.TemplateProcessing:
    """[CLS] text [SEP], or [CLS] text [SEP] text2 [SEP] with text2 as segment 1."""
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _roberta_template(tokenizer: Tokenizer, cls: str, sep: str, add_prefix_space: bool = False):
    """<s> text </s>, or <s> text </s></s> text2 </s>."""
    pair = [(token, tokenizer.token_to_id(token)) for token in (sep, cls)]
    return processors.RobertaProcessing(*pair, add_prefix_space=add_prefix_space)


def _refuse_unlike(folder: Path, given: Tokenizer, built: Tokenizer, differences: dict) -> None:
    """A UserError if tokenizer.json reads texts otherwise than the tokenizer that was built from its
    vocabulary and the settings: `differences` are {part: is it unlike}."""
    tokens = {(i, token.content) for i, token in given.get_added_tokens_decoder().items()}
    differences["the added tokens"] = not tokens <= {
        (i, token.content) for i, token in built.get_added_tokens_decoder().items()}
    if given.num_special_tokens_to_add(False):  # else the class adds its own
        rows = []
        for post_processor in (given.post_processor, built.post_processor):
            built.post_processor = post_processor
            rows.append([(row.ids, row.type_ids) for row in (built.encode("가"), built.encode("가", "나"))])
        differences["the post-processor"] = rows[0] != rows[1]
    unlike = [part for part, differs in differences.items() if differs]
    if unlike:
        raise UserError(f"{folder / 'tokenizer.json'}: {' and '.join(unlike)} would not be read as the file "
                        f"says by the class that the folder's settings stand for; {FAST}")


# ---- WordPiece and byte-level BPE --------------------------------------------------------------------------


def read_vocab(path: Path) -> list[str]:
    """The tokens of a vocab.txt, one per line; the number of its line is a token's id."""
    try:
        lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None
    lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, 1):
        if "\r" in line.strip("\r"):
            raise UserError(f"{path}, line {number}: a carriage return inside a line, which versions of "
                            f"transformers count differently; end each line with a line feed")
    return lines


def _has_wordpiece(path: Path) -> bool:
    return path.exists() and not _is_sentencepiece(read_vocab(path))


def _is_sentencepiece(tokens) -> bool:
    """Whether a word's first piece is marked (▁), as in SentencePiece, rather than all others (##)."""
    return sum(token.startswith("▁") for token in tokens) > sum(token.startswith("##") for token in tokens)


def _refuse_pieces(path: Path, tokens, pieces: list[Path]) -> None:
    if _is_sentencepiece(tokens):
        raise UserError(f"{path}: WordPiece with SentencePiece tokens (▁), as transformers makes of KoBERT's "
                        f"vocab.txt: most words would be unknown; "
                        + (f"remove it, and {pieces[0].name} is read" if pieces else
                           "put the *.model file of the published folder beside it, without tokenizer.json"))


def _wordpiece(folder: Path, settings: dict, given: Tokenizer | None) -> Tokenizer:
    """BertTokenizer: settings that tokenizer_config.json lacks are the defaults of `transformers`."""
    unk, sep, pad, cls = _names(settings, "bert", folder)
    if given is None:
        path = folder / "vocab.txt"
        vocab = {token: i for i, token in enumerate(read_vocab(path))}
        _refuse_pieces(path, vocab, [])
        model = models.WordPiece(vocab, unk_token=unk)
    else:
        path, model = folder / "tokenizer.json", given.model
        vocab = given.get_vocab()
    if missing := [token for token in (unk, cls, sep, pad) if token not in vocab]:
        raise UserError(f"{path}: no {' '.join(missing)} in it; not a BERT vocabulary")
    flags = {"lowercase": settings.get("do_lower_case", True), "strip_accents": settings.get("strip_accents"),
             "handle_chinese_chars": settings.get("tokenize_chinese_chars", True)}
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(**flags)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _add_tokens(tokenizer, settings, folder, NAMES["bert"])
    tokenizer.post_processor = bert_template(tokenizer, cls, sep)
    if given is not None:
        normalizer = given.normalizer
        plain = isinstance(normalizer, normalizers.BertNormalizer) and normalizer.clean_text
        if plain and normalizer.lowercase != flags["lowercase"] and "do_lower_case" not in settings:
            runtime.warn(f"{path}: keeps case; without do_lower_case in tokenizer_config.json "
                         f"transformers reads it in lower case, with Hangul as jamo, and so does the kit")
        _refuse_unlike(folder, given, tokenizer, {
            "the normalizer": not plain,
            "the pre-tokenizer": not isinstance(given.pre_tokenizer, pre_tokenizers.BertPreTokenizer),
            "the model": (model.continuing_subword_prefix, model.max_input_chars_per_word, model.unk_token)
            != ("##", 100, unk)})
    return tokenizer


def _byte_level_bpe(folder: Path, settings: dict, given: Tokenizer | None) -> Tokenizer:
    """RobertaTokenizer."""
    defaults = NAMES["roberta"]
    unk, sep, pad, cls = _names(settings, "roberta", folder)
    prefix = settings.get("add_prefix_space", False)
    if given is None:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    else:
        model = given.model
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if "mask_token" not in settings:
        defaults = defaults | {"mask_token": {"content": "<mask>", "lstrip": True}}
    _add_tokens(tokenizer, settings, folder, defaults)
    vocab = tokenizer.get_vocab()
    if missing := [token for token in (unk, cls, sep, pad) if token not in vocab]:
        raise UserError(f"{folder}: no {' '.join(missing)} in its vocabulary; not one of a RoBERTa")
    tokenizer.post_processor = _roberta_template(tokenizer, cls, sep, prefix)
    if given is not None:
        split = given.pre_tokenizer
        parts = (model.dropout, model.continuing_subword_prefix or None, model.end_of_word_suffix or None,
                 model.fuse_unk, model.byte_fallback)
        whole = model.unk_token is None or set(pre_tokenizers.ByteLevel.alphabet()) <= vocab.keys()
        _refuse_unlike(folder, given, tokenizer, {
            "the normalizer": given.normalizer is not None,
            "the pre-tokenizer": not isinstance(split, pre_tokenizers.ByteLevel) or not split.use_regex
            or ("add_prefix_space" not in settings and split.add_prefix_space),
            "the model": parts != (None, None, None, False, False) or not whole})
    return tokenizer


# ---- SentencePiece -----------------------------------------------------------------------------------------


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces
UNIGRAM, BPE = 1, 2  # kinds of models


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; a number, or the bytes of anything else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        if key & 7 not in (1, 2, 5) or at + size > len(data):
            raise ValueError("it is damaged")
        at += size
        yield key >> 3, data[at - size : at]


def read_sentencepiece(path: Path) -> tuple[list[tuple[str, float, int]], dict]:
    """(pieces in the order of their ids: text, score, kind; settings) of a SentencePiece model.

    Numbers of fields: sentencepiece_model.proto of github.com/google/sentencepiece. Raises UserError.
    """
    pieces = []
    settings = {"model_type": UNIGRAM, "byte_fallback": 0, "suffix": 0,
                "charsmap": b"", "dummy_prefix": 1, "fewer_spaces": 1, "escape": 1}
    trainer = {3: "model_type", 24: "suffix", 35: "byte_fallback"}
    normalizer = {2: "charsmap", 3: "dummy_prefix", 4: "fewer_spaces", 5: "escape"}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = {3: NORMAL, 2: bytes(4)} | dict(_fields(value))
                pieces.append((piece[1].decode("utf-8"), *struct.unpack("<f", piece[2]), piece[3]))
            elif number in (2, 3):
                known = trainer if number == 2 else normalizer
                settings |= {known[key]: found for key, found in _fields(value) if key in known}
        if not pieces:
            raise ValueError("there are no pieces in it")
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{path}: not a SentencePiece model ({error})") from None
    return pieces, settings


def _kobert(folder: Path, files: list[Path], settings: dict) -> Tokenizer:
    """KoBertTokenizer: a SentencePiece model whose ids are the lines of vocab.txt, where there is one.

    The ids are those of the `sentencepiece` package on the text that KoBertTokenizer hands to it: white space
    made single, `` and '' made quotes, NFKD without combining marks. Except that
    - a piece that ends in a digit and a comma stays one piece; KoBertTokenizer divides it once more;
    - special tokens are also found where their brackets become [ ] only by NFKD;
    - of two segmentations whose scores are equal but for float32's rounding, as of 0 + 00 and 00 + 0, the
      package's choice depends on what comes before; in a BPE model two overlapping merges into the same piece
      may change places;
    - without a normalization of its own (identity) the model gets the text as it stands, white space apart:
      it would know no Hangul in NFKD.
    """
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{folder}: {found} where one *.model file is needed, KoBERT's SentencePiece model")
    [path] = files
    pieces, spec = read_sentencepiece(path)
    unk, sep, pad, cls = _names(settings, "bert", folder)
    names = {token.content for token in _named(settings, NAMES["bert"]).values()}
    for unread in ({"user-defined pieces"} if any(
            kind == USER_DEFINED and text not in names for text, _, kind in pieces) else set(),
            {"unused pieces"} if any(kind == UNUSED for *_, kind in pieces) else set(),
            {f"model type {spec['model_type']}"} - {"model type 1", "model type 2"},
            {"white space as a suffix"} if spec["suffix"] else set(),
            {"white space that is not escaped"} if not spec["escape"] else set()):
        if unread:
            raise UserError(f"{path}: has {unread.pop()}, which is not read here; {LOGITS}")

    vocab = folder / "vocab.txt"
    if vocab.exists():
        tokens = [token.strip() for token in read_vocab(vocab)]
    else:
        vocab, tokens = path, [text for text, _, _ in pieces]
    ids = {token: i for i, token in enumerate(tokens)}
    needed = [unk, cls, sep, pad] + [text for text, _, kind in pieces if kind in (NORMAL, BYTE)]
    if missing := [token for token in needed if token not in ids]:
        raise UserError(f"{vocab}: {missing[0]} and {len(missing) - 1} others are not in it, but belong to "
                        f"{path.name} or to KoBERT's special tokens; they do not belong together")
    scores = {text: score for text, score, kind in pieces if kind == NORMAL}
    least = min(scores.values(), default=0.0)
    # Tokens that no text may become keep their place under a name that no text has; special ones their name.
    kept = {*needed, *names}
    slots = [token if token in kept and ids[token] == i else f"\0{i}" for i, token in enumerate(tokens)]
    fallback = bool(spec["byte_fallback"])
    if spec["model_type"] == UNIGRAM:
        model = models.Unigram([(slot, scores.get(slot, least)) for slot in slots], ids[unk], fallback)
    else:
        ranked = sorted(scores, key=lambda text: -scores[text])
        merges = [(text[:i], text[i:]) for text in ranked for i in range(1, len(text))
                  if text[:i] in scores and text[i:] in scores]
        model = models.BPE({slot: i for i, slot in enumerate(slots)}, merges, unk_token=unk, fuse_unk=True,
                           byte_fallback=fallback)
    tokenizer = Tokenizer(model)
    steps = [normalizers.Replace(Regex(r"[\s\x1c-\x1f\x85]+"), " "),
             normalizers.Replace(Regex(r"\A | \z"), "")]
    if spec["charsmap"]:
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(),
                  normalizers.Replace(Regex(f"[{_combining()}]"), "")]
    if settings.get("do_lower_case", False):
        steps.append(normalizers.Lowercase())
    if spec["charsmap"]:
        # Precompiled maps single characters only, so NFC joins those that NFKD took apart.
        steps += [normalizers.NFC(), normalizers.Precompiled(spec["charsmap"])]
    if spec["fewer_spaces"]:
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex(r"\A |[ ▁]+\z"), "")]
    if spec["dummy_prefix"]:
        steps += [normalizers.Prepend("▁")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    _add_tokens(tokenizer, settings, folder, NAMES["bert"])
    tokenizer.post_processor = bert_template(tokenizer, cls, sep)
    return tokenizer


def _combining() -> str:
    """The characters with a combining class, as what stands between the brackets of a regular expression."""
    marks = [i for i in range(sys.maxunicode + 1) if unicodedata.combining(chr(i))]
    runs = itertools.groupby(enumerate(marks), key=lambda item: item[1] - item[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in ends)
