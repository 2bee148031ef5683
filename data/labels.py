"""Judge a name that stands in a file: a label in a cell, a column in the header.

A reader takes `0` and `0 ` for the same label, and 긍정 composed (NFC) and decomposed (NFD); a program does
not. What is surely a mistake is refused, what may be one is a warning, each with its line.
"""

import json
import re
import unicodedata

from runtime import UserError, warn

NOT_A_NUMBER = re.compile(r"[+-]?(nan|NaN|NAN)|NaT|<NA>")  # what pandas writes of a missing value
MISSING = re.compile(r"None|null|NULL|NA|#?N/A")  # may be a missing value; `none` is a label in many corpora
SHOWN = 3  # warnings
# Drawn as nothing: Hangul fillers, the grapheme joiner, variation selectors; and all of the category Cf.
UNSEEN = re.compile("[\u034f\u115f\u1160\u3164\uffa0\ufe00-\ufe0f]")


def visible(name: str) -> str:
    """What a reader sees of a name: no invisible characters, one space for each run of blanks, NFKC."""
    name = "".join(c for c in UNSEEN.sub("", name)
                   if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc"))
    return " ".join(unicodedata.normalize("NFKC", name).split())


def same(name: str) -> str:
    """Equal for names that a reader takes for the same: what looks alike, and 1 and pandas's 1.0."""
    return re.sub(r"^(-?\d+)\.0$", r"\1", visible(name))


def difference(one: str, other: str) -> str:
    """How two names differ that are the same() to a reader, or the same but for case."""
    for how, plain in (("spaces", lambda name: "".join(name.split())),
                       ("Unicode form (NFC, NFD)", lambda name: unicodedata.normalize("NFC", name)),
                       ("the form of their letters (NFKC)", lambda name: unicodedata.normalize("NFKC", name)),
                       ("invisible characters", visible),
                       ("how the number is written", same)):
        if plain(one) == plain(other):
            return how
    return "case"


def alike(name: str, names) -> str | None:
    """The one of `names` that a reader could take `name` for."""
    return next((other for other in names if same(other) == same(name)), None) or next(
        (other for other in names if visible(other).casefold() == visible(name).casefold()), None)


def in_order(names) -> list[str]:
    """Whole numbers in numeric order, other labels alphabetically."""
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def split(cell: str) -> list[str]:
    """The labels in a cell that has several: names with commas between, a JSON list, or "-" for none.

    Raises ValueError.
    """
    names = [name.strip() for name in cell.split(",")]
    if cell[:1] == "[":
        try:
            names = json.loads(cell)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{cell} is not a list in JSON; write names with commas between")
    if names in (["-"], []):
        return []
    if not all(names):
        raise ValueError(f"labels {cell!r}: a name is empty; write names with commas between, - for none")
    if "-" in names:
        raise ValueError(f"labels {cell!r}: - means none of them and stands alone; correct it")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"labels {cell!r}: {twice[0]!r} occurs twice; remove one")
    return names


def judge(cells: dict[str, str]) -> None:
    """Refuse labels that are surely a mistake (UserError), warn about those that may be one.

    cells: {label: where it first stands, as FILE:LINE}.
    """
    seen, cases, warnings = {}, {}, []
    for cell, place in cells.items():
        shown = visible(cell)
        if len(cell.splitlines()) > 1 or "\t" in cell:
            raise UserError(f"{place}: the label {cell!r} has a line break or a tab; remove it")
        if not shown:
            raise UserError(f"{place}: the label has only invisible characters ({cell!a}); leave the cell "
                            f"empty if the label is unknown")
        if NOT_A_NUMBER.fullmatch(shown):
            raise UserError(f"{place}: the label {cell!r} is a missing value; leave the cell empty if the "
                            f"label is unknown")
        other = seen.setdefault(same(cell), cell)
        if other != cell:
            raise UserError(f"{place}: the labels {cell!r} and {other!r} ({cells[other]}) differ only by "
                            f"{difference(cell, other)}; write both in the same way")
        other = cases.setdefault(shown.casefold(), cell)
        if other != cell:
            warnings.append(f"{place}: the labels {cell!r} and {other!r} ({cells[other]}) differ only by "
                            f"case")
        if MISSING.fullmatch(shown):
            warnings.append(f"{place}: the label {cell!r} may be a missing value; if the label is unknown, "
                            f"leave the cell empty")
        if cell != cell.strip():
            warnings.append(f"{place}: the label {cell!r} begins or ends with a space, and keeps it")
    for text in warnings[:SHOWN]:
        warn(text)
    if len(warnings) > SHOWN:
        warn(f"and {len(warnings) - SHOWN:,} more labels like these")


def refuse_near_columns(where: str, header: list[str], names, flag: str) -> None:
    """A UserError if a column of `header` is nearly one of `names`, of which it has none."""
    def plain(name):
        return re.sub(r"[\s_'\"]", "", visible(name)).casefold().removesuffix("s")

    for name in header:
        if plain(name) in map(plain, names):
            if name[:1] == name[-1:] == '"':
                raise UserError(f"{where}: the column {name} is in quotation marks, which have no special "
                                f"meaning in .tsv; save the file as .csv. The header is {header}")
            like = alike(name, names)
            how = f" (it differs only by {difference(name, like)})" if like else ""
            raise UserError(f"{where}: the column {name!r} is not {' or '.join(map(repr, names))}{how}; "
                            f"rename it, or read it with {flag} {name!r}. The header is {header}")
