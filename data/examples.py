"""Read a file of labelled or unlabelled texts, name its rows, fingerprint its texts.

One format in every script: a header and the columns `text` (or `document`), `text2` (the second sentence of
a pair), `label` and `id`; only the text is required. The ending tells the format: .tsv or .txt (tabs, no
quoting: a quote is a quote), .csv (RFC 4180), .jsonl (an object a line), each also with .gz. UTF-8, with or
without BOM, LF or CRLF. Row i of the data (from 0, header not counted) is example i everywhere in the kit.
"""

import csv
import gzip
import hashlib
import json
import re
import zlib
from array import array
from dataclasses import dataclass

from runtime import UserError

TEXT_COLUMNS = ("text", "document")


@dataclass
class Examples:
    """The rows of one file, in file order. `texts2`, `labels` and `ids` are None when the column is absent.

    A blank text is a row like any other; an empty label means that the row has none.
    """

    path: str
    texts: list[str]
    texts2: list[str] | None
    labels: list[str] | None
    ids: list[str] | None
    lines: array  # line number of each row, for messages

    def __len__(self) -> int:
        return len(self.texts)

    def fingerprint(self) -> str:
        """SHA-256 of the texts in order: equal exactly when every row's texts are. Labels do not enter."""
        digest = hashlib.sha256()
        for column in (self.texts, self.texts2):
            digest.update(b"none" if column is None else b"column")
            for text in column or ():
                data = text.encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.hexdigest()

    def label_ids(self, label_names: list[str], every_row: bool = False) -> list[int]:
        """Index of each row's label in `label_names`, -1 where it has none (refused with `every_row`).

        An unknown label is refused.
        """
        index = {name: i for i, name in enumerate(label_names)} | {"": -1}
        try:
            ids = [index[label] for label in self.labels] if self.labels is not None else [-1] * len(self)
            if every_row and -1 in ids:
                raise UserError(f"{self.path}:{self.lines[ids.index(-1)]}: no label; every row needs one")
            return ids
        except KeyError:
            row = next(i for i, label in enumerate(self.labels) if label not in index)
            raise UserError(
                f"{self.path}:{self.lines[row]}: label {self.labels[row]!r} is none of {label_names}; "
                f"correct it, or leave it empty if the row has no label"
            ) from None


def label_names(examples: list[Examples]) -> list[str]:
    """The distinct labels of all files: whole numbers in numeric, anything else in alphabetical order."""
    names = {label for part in examples for label in part.labels or () if label}
    if len(names) < 2:
        files = ", ".join(part.path for part in examples)
        have = f"the only label is {names.pop()!r}" if names else "no row has a label"
        raise UserError(f"{files}: {have}; a classifier needs at least two "
                        f"(column `label`, or --label-column)")
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def read_examples(path, text_column=None, text2_column=None, label_column=None) -> Examples:
    """Read one file. Column names default to text/document, text2, label; a name that is given must exist.

    Raises UserError `FILE:LINE: what is wrong; what to do`.
    """
    path = str(path)
    name = path.lower().removesuffix(".gz")
    if name.endswith((".tsv", ".txt")):
        rows = _tsv_rows(path)
    elif name.endswith(".csv"):
        rows = _csv_rows(path)
    elif name.endswith(".jsonl"):
        return _read_jsonl(path, text_column, text2_column, label_column)
    else:
        raise UserError(f"{path}: unknown ending; use .tsv, .txt, .csv or .jsonl, each also with .gz")

    line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}: is empty; a header line such as text<TAB>label is needed")
    columns = _columns(f"{path}:{line}", header, text_column, text2_column, label_column)
    values = {key: [] for key, position in columns.items() if position is not None}
    lines = array("Q")
    for line, row in rows:
        if row == [""] and len(header) > 1:
            raise UserError(f"{path}:{line}: an empty line; remove it")
        if len(row) != len(header):
            raise UserError(f"{path}:{line}: {len(row)} columns where the header has {len(header)}; "
                            f"a text must not contain "
                            f"{'a tab' if name.endswith(('.tsv', '.txt')) else 'a bare comma'}")
        for key, column in values.items():
            column.append(row[columns[key]])
        lines.append(line)
    return _examples(path, values, lines)


def _columns(where, header, text_column, text2_column, label_column) -> dict:
    """Position of each wanted column in the header, None for an optional one that is absent."""
    wanted = {
        "text": ("--text-column", (text_column,) if text_column else TEXT_COLUMNS, True),
        "text2": ("--text2-column", (text2_column or "text2",), text2_column is not None),
        "label": ("--label-column", (label_column or "label",), label_column is not None),
        "id": (None, ("id",), False),
    }
    columns = {}
    for key, (flag, names, required) in wanted.items():
        found = [i for i, name in enumerate(header) if name in names]
        if len(found) > 1:
            raise UserError(f"{where}: column {' or '.join(names)} occurs {len(found)} times; keep one, "
                            f"or name another with {flag}")
        if required and not found:
            raise UserError(f"{where}: no column {' or '.join(names)} among {header}; the first line must "
                            f"name the columns ({flag} for another name)")
        columns[key] = found[0] if found else None
    return columns


def _examples(path, values, lines) -> Examples:
    if not lines:
        raise UserError(f"{path}: has a header but no rows")
    return Examples(path, values["text"], values.get("text2"), values.get("label"), values.get("id"), lines)


def _decoded_lines(path):
    """(line number, text with line end) of a UTF-8 file. Only LF ends a line: texts may hold U+2028 or CR."""
    offset = 0
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if b"\0" in raw:
                    raise UserError(f"{path}:{number}: NUL byte; the file is not UTF-8 text "
                                    f"(UTF-16? convert it)")
                try:
                    text = raw.decode()
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}:{number}: not UTF-8 at byte {offset + error.start} of the file "
                                    f"({error.reason}); convert it, for example from CP949") from None
                offset += len(raw)
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except (OSError, EOFError, zlib.error) as error:  # gzip reports a broken archive as any of the three
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read ({reason})") from None


def _tsv_rows(path):
    for number, line in _decoded_lines(path):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def _csv_rows(path):
    reader = csv.reader((line for _, line in _decoded_lines(path)), strict=True)
    start = 1
    try:
        for row in reader:
            yield start, row or [""]  # an empty line is one empty field
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV ({error})") from None


def _read_jsonl(path, text_column, text2_column, label_column) -> Examples:
    columns, lines = None, array("Q")
    for number, line in _decoded_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a JSON object such as {{\"text\": \"…\"}} is needed")
        if columns is None:  # the first object plays the header's part
            found = _columns(f"{path}:{number}", list(record), text_column, text2_column, label_column)
            names = list(record)
            columns = {key: names[position] for key, position in found.items() if position is not None}
            values = {key: [] for key in columns}
            optional = {"text2", "label", "id"} - set(columns) - set(columns.values())
        late = [name for name in optional if name in record]
        if late:
            raise UserError(f"{path}:{number}: has {late[0]!r}, which the first object has not; give every "
                            f"object the same keys (null: no label)")
        for key, name in columns.items():
            values[key].append(_json_field(f"{path}:{number}", record, key, name))
        lines.append(number)
    if columns is None:
        raise UserError(f"{path}: is empty; one JSON object a line is needed")
    return _examples(path, values, lines)


def _json_field(where, record, key, name) -> str:
    value = record.get(name)
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {name!r} holds half of a surrogate pair, which is no text")
        return value
    if key in ("label", "id"):
        if value is None:
            return ""
        if isinstance(value, int):
            return str(int(value))  # true and false are labels 1 and 0
    raise UserError(f"{where}: {name!r} is {json.dumps(value)[:40]}, "
                    f"a {'string or whole number' if key in ('label', 'id') else 'string'} is needed")
