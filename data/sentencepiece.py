"""KoBERT's SentencePiece model, read into the `tokenizers` library without the `sentencepiece` package.

    tokenizer = load_sentencepiece(Path("kobert/tokenizer_78b3253a26.model"), "[UNK]", {"[CLS]", …})

`transformers` has no class for KoBERT; its own, KoBertTokenizer, hands a text to the package: white space
made single, `` and '' made quotes, NFKD without combining marks. The ids are the lines of vocab.txt beside
the model, or the model's own if there is none. tests/test_published.py compares them with the package.
Exceptions:
- a piece that ends in a digit and a comma stays one piece; KoBertTokenizer divides it once more;
- special tokens are also found where their brackets become [ ] only by NFKD;
- of two segmentations whose scores are equal but for float32's rounding, as of 0 + 00 and 00 + 0, the
  package's choice depends on what comes before.
"""

import struct
import sys
import unicodedata
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from runtime import UserError

# Field numbers: sentencepiece_model.proto of github.com/google/sentencepiece. What a model must have here.
TRAINER = {3: ("model_type", 1), 24: ("treat_whitespace_as_suffix", 0)}  # 1: Unigram
NORMALIZER = {3: ("add_dummy_prefix", 1), 4: ("remove_extra_whitespaces", 1), 5: ("escape_whitespaces", 1)}
CHARSMAP = 2  # of the normalizer: what becomes of a character
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = range(1, 5)  # kinds of pieces; a model here has no others
TEACH_BY_LOGITS = "the model can teach through its logits: save them as an (N, C) tensor"


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; a number, or the bytes of anything else."""
    stream = BytesIO(data)

    def varint() -> int:
        value = shift = 0
        while True:
            [byte] = stream.read(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while stream.tell() < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        value = stream.read(size)
        if key & 7 not in (1, 2, 5) or len(value) < size:
            raise ValueError("it is damaged")
        yield key >> 3, value


def read_sentencepiece(path: Path) -> tuple[list[tuple[str, float, int]], bytes]:
    """(pieces in the order of their ids: text, score, kind; charsmap) of a model. Raises UserError."""
    pieces, parts = [], {2: {}, 3: {CHARSMAP: b""}}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = {2: bytes(4), 3: NORMAL} | dict(_fields(value))
                pieces.append((piece[1].decode("utf-8"), *struct.unpack("<f", piece[2]), piece[3]))
            elif number in parts:
                parts[number] |= dict(_fields(value))
        if not pieces:
            raise ValueError("there are no pieces in it")
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise UserError(f"{path}: not a SentencePiece model ({error})") from None
    odd = [f"{name} {parts[number][key]}" for number, known in ((2, TRAINER), (3, NORMALIZER))
           for key, (name, value) in known.items() if parts[number].get(key, value) != value]
    odd += [f"the piece {text} of kind {kind}" for text, _, kind in pieces if kind > USER_DEFINED]
    odd += [] if parts[3][CHARSMAP] else ["no normalization"]
    if odd:
        raise UserError(f"{path}: has {odd[0]}, unlike KoBERT's, and is not supported; {TEACH_BY_LOGITS}")
    return pieces, parts[3][CHARSMAP]


def load_sentencepiece(path: Path, vocab: list[str] | None, unk: str, special: set[str],
                       lowercase: bool = False) -> Tokenizer:
    """The tokenizer of a model, with the places of special tokens; `vocab` are the lines of vocab.txt."""
    pieces, charsmap = read_sentencepiece(path)
    tokens = [text for text, _, _ in pieces] if vocab is None else [token.strip() for token in vocab]
    scores = {text: score for text, score, kind in pieces if kind == NORMAL}
    ids = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in (unk, *scores) if token not in ids]:
        raise UserError(f"{path if vocab is None else path.parent / 'vocab.txt'}: {missing[0]} and "
                        f"{len(missing) - 1} others are not in it, but belong to {path.name}; they do not "
                        f"belong together")
    if user := [text for text, _, kind in pieces if kind == USER_DEFINED and text not in special]:
        raise UserError(f"{path}: has user-defined pieces ({user[0]}), which are not supported; "
                        f"{TEACH_BY_LOGITS}")
    # Tokens that no text may become keep their place under a name that no text has.
    least, kept = min(scores.values(), default=0.0), {*scores, *special}
    slots = [token if token in kept and ids[token] == i else f"\0{i}" for i, token in enumerate(tokens)]
    tokenizer = Tokenizer(models.Unigram([(slot, scores.get(slot, least)) for slot in slots], ids[unk]))
    marks = "".join(filter(unicodedata.combining, map(chr, range(sys.maxunicode + 1))))
    replace = [(Regex(r"[\s\x1c-\x1f\x85]+"), " "), (Regex(r"\A | \z"), ""), ("``", '"'), ("''", '"')]
    tokenizer.normalizer = normalizers.Sequence([
        *(normalizers.Replace(*pair) for pair in replace),
        normalizers.NFKD(), normalizers.Replace(Regex(f"[{marks}]"), ""),  # StripAccents also drops \ufe0f
        *[normalizers.Lowercase()] * lowercase,
        # Precompiled maps single characters only, so NFC joins those that NFKD took apart.
        normalizers.NFC(), normalizers.Precompiled(charsmap),
        normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex(r"\A |[ ▁]+\z"), ""),
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer
