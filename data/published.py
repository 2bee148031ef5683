"""The tokenizers of published checkpoints, read into the `tokenizers` library.

    tokenizer = load_tokenizer(Path("klue/roberta-small"), "roberta")

A folder gives the ids that `transformers` gives, or it is refused by the name of a file. `transformers`
builds BertTokenizer and RobertaTokenizer from a vocabulary and from settings in up to five files; so does
this module, and it refuses a tokenizer.json that says something else. tests/test_published.py compares ids.
KoBERT's SentencePiece model, for which `transformers` has no class, is read by data/sentencepiece.py.
"""

import json
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data.sentencepiece import TEACH_BY_LOGITS, load_sentencepiece
from runtime import UserError

# The classes that are read, without "Fast". AS_IT_IS: tokenizer.json alone says how texts are read.
BERT = ("BertTokenizer", "ElectraTokenizer", "DistilBertTokenizer")
ROBERTA = ("RobertaTokenizer",)
AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend", "XLMRobertaTokenizer")
# monologg/kobert; the package kobert_tokenizer; what skt/kobert-base-v1, which that package reads, names.
KOBERT = ("KoBertTokenizer", "KoBERTTokenizer", "XLNetTokenizer")
# The special tokens of a class, in the order in which `transformers` adds them.
BERT_NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
              "mask_token": "[MASK]"}
ROBERTA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>",
                 "pad_token": "<pad>", "cls_token": "<s>",
                 "mask_token": {"content": "<mask>", "lstrip": True}}
NEEDED = ("unk_token", "cls_token", "sep_token", "pad_token")  # a model cannot do without
# Other values of these settings give other ids.
REQUIRED = {"do_basic_tokenize": True, "split_special_tokens": False, "truncation_side": "right"}


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
        settings, name = _settings(folder)
        name = name or (AS_IT_IS[2] if family == "xlm-roberta" else None)
        file, given = folder / "tokenizer.json", None
        if file.exists() and name not in KOBERT:
            given = Tokenizer.from_file(str(file))
            given.no_padding()
            given.no_truncation()
            if isinstance(given.model, models.WordPiece):
                _refuse_pieces(file, given.get_vocab())
            published = (folder / "config.json").exists() or (folder / "tokenizer_config.json").exists()
            if name in AS_IT_IS or not published:
                return _as_it_is(folder, settings, given, published)
        return _by_class(folder, settings, given, name, family)
    except UserError:
        raise
    except Exception as error:  # the Rust library raises bare Exception for a file it cannot parse
        raise UserError(f"{folder}: cannot read the tokenizer ({' '.join(str(error).split())})") from None


def _as_it_is(folder: Path, settings: dict, given: Tokenizer, published: bool) -> Tokenizer:
    """What tokenizer.json says, with the tokens that other files add; BERT's template if it is one of
    train_tokenizer.py, which has none."""
    _add_tokens(given, settings, folder, _named(settings), given)
    if published and not first_is_special(given):
        raise UserError(f"{folder / 'tokenizer.json'}: puts no special token before a text, but the model's "
                        f"head reads the first token; add a post-processor, or name the tokenizer_class "
                        f"(BertTokenizer, RobertaTokenizer) in tokenizer_config.json")
    if given.post_processor is None and None not in map(given.token_to_id, ("[CLS]", "[SEP]")):
        given.post_processor = bert_template(given)
    return given


def first_is_special(tokenizer: Tokenizer) -> bool:
    """Whether each row begins with a token that does not come from its text."""
    return all(row.special_tokens_mask[:1] == [1] for row in tokenizer.encode_batch(["가", ("가", "나")]))


def bert_template(tokenizer: Tokenizer, cls: str = "[CLS]", sep: str = "[SEP]"):
    """[CLS] text [SEP], or [CLS] text [SEP] text2 [SEP] with text2 as segment 1."""
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)])


def roberta_template(tokenizer: Tokenizer, cls: str, sep: str):
    """<s> text </s>, or <s> text </s></s> text2 </s>."""
    return processors.RobertaProcessing(*((token, tokenizer.token_to_id(token)) for token in (sep, cls)))


# ---- the files that `transformers` reads -------------------------------------------------------------------


def read_json(path: Path, default: dict | None = None) -> dict:
    """A file that holds one JSON object, or `default` if there is no file. Raises UserError."""
    if default is not None and not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); a checkpoint needs this file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def _settings(folder: Path) -> tuple[dict, str | None]:
    """(all settings of the tokenizer, the name of its class without "Fast" or None).

    Tokens beside the named ones: extra_special_tokens are those of tokenizer_config.json,
    additional_special_tokens those of any file.
    """
    path, second = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    settings = read_json(path, {})
    code = re.search(r"\.(\w+)", json.dumps(settings.get("auto_map")))
    where = path if code or settings.get("tokenizer_class") else folder / "config.json"
    name = code[1] if code else read_json(where, {}).get("tokenizer_class")
    name = name and str(name).removesuffix("Fast")
    known = (*BERT, *ROBERTA, *AS_IT_IS, *KOBERT)
    if name and (name not in known or (code and name not in KOBERT)):
        raise UserError(f"{where}: tokenizer class {name}{' (custom code)' if code else ''} is not supported "
                        f"({', '.join(known[:-1])} are); {TEACH_BY_LOGITS}")
    for key, value in REQUIRED.items():
        if settings.get(key) not in (None, value):
            raise UserError(f"{path}: {key} is {settings[key]!r}, which is not supported; {TEACH_BY_LOGITS}")
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"):
        if not isinstance(settings.get(key), (bool, type(None))):
            raise UserError(f"{path}: {key} is {settings[key]!r}, must be true or false without quotes")

    more = {} if "added_tokens_decoder" in settings else read_json(second, {})
    own, others = ([found[key] for key in ("extra_special_tokens", "additional_special_tokens")
                    if found.get(key)] for found in (settings, more))
    lists = own + others
    if any(found != lists[0] or not isinstance(found, list) for found in lists):
        raise UserError(f"{path}: extra_special_tokens and additional_special_tokens, there and in "
                        f"{second.name}, are not the same list, and versions of transformers differ on which "
                        f"counts; correct them")
    return settings | more | {"extra_special_tokens": own[0] if own else [],
                              "additional_special_tokens": lists[0] if lists else []}, name


def _token(value: str | dict, special: bool = True) -> AddedToken:
    """A token that a file states as a string or as an object."""
    flags = {"content": value} if isinstance(value, str) else value
    return AddedToken(**{"special": special} | {key: flag for key, flag in flags.items() if key != "__type"})


def _named(settings: dict) -> dict[str, AddedToken]:
    """{unk_token and others: the token}, in the order in which `transformers` adds them; null is none."""
    return {key: _token(settings[key]) for key in ROBERTA_NAMES if isinstance(settings.get(key), (str, dict))}


def _add_tokens(tokenizer: Tokenizer, settings: dict, folder: Path, named: dict, given) -> None:
    """Add what the files state as added and special tokens, in the order of `transformers`, on which new ids
    depend. Of two tokens with the same content the first counts."""
    if "added_tokens_decoder" in settings:
        numbered = {int(i): _token(value, False) for i, value in settings["added_tokens_decoder"].items()}
    else:
        # Those of special_tokens_map.json alone become special only if they are not in added_tokens.json.
        stated = {token.content for token in (*_named(settings).values(),
                                              *map(_token, settings["extra_special_tokens"]))}
        numbered = {i: _token(text, text in stated)
                    for text, i in read_json(folder / "added_tokens.json", {}).items()}
        numbered |= given.get_added_tokens_decoder() if given is not None else {}
    vocab, tokens = tokenizer.get_vocab(), {}
    for token in [*(numbered[i] for i in sorted(numbered)),
                  *(token for key, token in named.items() if key in settings or token.content in vocab),
                  *map(_token, settings["additional_special_tokens"])]:
        tokens.setdefault(token.content, token)
    tokenizer.add_tokens([token for token in tokens.values() if token.content])


# ---- a tokenizer by its class ------------------------------------------------------------------------------


def _by_class(folder: Path, settings: dict, given: Tokenizer | None, name: str | None,
              family: str) -> Tokenizer:
    """BertTokenizer, RobertaTokenizer or KoBertTokenizer; `given` is what tokenizer.json holds."""
    has = {path.name for path in folder.glob("*")}
    pieces = sorted(file for file in has if file.endswith(".model"))
    if name is None:
        only_vocab_txt = given is None and "vocab.txt" in has and "vocab.json" not in has
        name = ROBERTA[0] if family == "roberta" and not only_vocab_txt else BERT[0]
    read, files, defaults, template = _wordpiece, ["vocab.txt"], BERT_NAMES, bert_template
    if name in AS_IT_IS:
        files = ["tokenizer.json"]
    elif name in ROBERTA:
        read, files = _byte_level_bpe, ["vocab.json", "merges.txt"]
        defaults, template = ROBERTA_NAMES, roberta_template
    elif name in KOBERT or (pieces and given is None):
        read, files = _kobert, [*has & {"vocab.txt"}, *pieces]
        if len(pieces) != 1:
            raise UserError(f"{folder}: {', '.join(pieces) or 'none'} where one *.model file is needed, "
                            f"KoBERT's SentencePiece model")
    if given is None and not has.issuperset(files):
        ways = " or ".join({"tokenizer.json": 0, " and ".join(files): 0})
        raise UserError(f"{folder}: no {ways} in it, which tokenizer class {name} needs")
    named = _named(defaults | settings)
    unk, cls, sep, pad = (named[key].content if key in named else f"{key} (null)" for key in NEEDED)
    tokenizer = read([folder / file for file in files], settings, given, unk)
    path = folder / ("tokenizer.json" if given is not None else files[0])
    vocab = (tokenizer if given is None else given).get_vocab()
    if missing := [token for token in (unk, cls, sep, pad) if token not in vocab]:
        raise UserError(f"{path}: no {' '.join(missing)} in it, which a {name} needs")
    _add_tokens(tokenizer, settings, folder, named, given)
    tokenizer.post_processor = template(tokenizer, cls, sep)
    if given is not None:
        _refuse_unlike(path, given, tokenizer)
    return tokenizer


def _wordpiece(files: list[Path], settings: dict, given: Tokenizer | None, unk: str) -> Tokenizer:
    """What settings lack are the defaults of `transformers`."""
    if given is None:
        vocab = {token: i for i, token in enumerate(_lines(files[0]))}
        _refuse_pieces(files[0], vocab)
    else:
        vocab = given.get_vocab(with_added_tokens=False)
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_level_bpe(files: list[Path], settings: dict, given: Tokenizer | None, unk: str) -> Tokenizer:
    if given is None:
        vocab, merges = models.BPE.read_file(*map(str, files))
    else:
        vocab = given.get_vocab(with_added_tokens=False)
        merges = [tuple(pair) for pair in json.loads(given.to_str())["model"].get("merges", ())]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    prefix = settings.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _kobert(files: list[Path], settings: dict, given: None, unk: str) -> Tokenizer:
    *vocab, model = files
    return load_sentencepiece(model, _lines(*vocab) if vocab else None, unk,
                              {token.content for token in _named(BERT_NAMES | settings).values()},
                              settings.get("do_lower_case", False))


def _lines(path: Path) -> list[str]:
    """The tokens of a vocab.txt; the number of a line is the token's id."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None


def _refuse_pieces(path: Path, vocab) -> None:
    """A UserError if a word's first piece is marked (▁), as in SentencePiece, rather than all others (##)."""
    if sum(token.startswith("▁") for token in vocab) > sum(token.startswith("##") for token in vocab):
        raise UserError(f"{path}: SentencePiece tokens (▁) in WordPiece, as transformers reads KoBERT: most "
                        f"words would be unknown; put the *.model file of the published folder beside it, "
                        f"without tokenizer.json")


def _refuse_unlike(path: Path, given: Tokenizer, built: Tokenizer) -> None:
    """A UserError if tokenizer.json reads texts otherwise than what was built of its vocabulary and the
    settings: versions of `transformers` differ on which of the two they follow."""
    theirs, ours = json.loads(given.to_str()), json.loads(built.to_str())
    for parts in (theirs, ours):
        parts["model"] = {key: value or None for key, value in parts["model"].items()
                          if key not in ("vocab", "merges")}
    unlike = [f"{part} {json.dumps(theirs[part])[:300]}" for part in ("model", "normalizer", "pre_tokenizer")
              if theirs[part] != ours[part]]
    tokens, kept = ({(i, token.content) for i, token in each.get_added_tokens_decoder().items()}
                    for each in (given, built))
    unlike += [f"added token {token}" for _, token in sorted(tokens - kept)]
    if not unlike and given.num_special_tokens_to_add(False):  # else the class adds its own
        rows = [[(row.ids, row.type_ids) for row in each.encode_batch(["가", ("가", "나")])]
                for each in (given, built)]
        unlike += ["post_processor"] * (rows[0] != rows[1])
    if unlike:
        raise UserError(f"{path}: its {unlike[0]} does not match tokenizer_config.json or its class; "
                        f'correct one, or write "tokenizer_class": "PreTrainedTokenizerFast" there to have '
                        f"tokenizer.json read as it stands")
