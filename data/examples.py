"""Read a file of texts, with answers or without: name its rows, fingerprint its texts.

One format in every script: a header and the columns `text` (or `document`), `text2` (the second sentence of
a pair), `id`, and for the answers `label`, `labels` or `score`; only the text is required. The ending tells
the format: .tsv or .txt (tabs; quotation marks have no special meaning), .csv (RFC 4180), .jsonl (one object
per line), each also with .gz.
UTF-8, with or without BOM, LF or CRLF. Row i of the data (from 0, header not counted) is example i everywhere
in the kit.
"""

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from data.labels import refuse_near_columns
from runtime import UserError

TEXT_COLUMNS = ("text", "document")
ANSWER_COLUMNS = ("label", "labels", "score")  # of each kind of task in tasks.py
CHUNK = 8192  # rows that stream_examples yields at a time
LONGEST = 2**24  # bytes of a line
CR_ALONE = "a CR without LF; if its lines end so, convert them: tr '\\r' '\\n' < FILE > NEW"
DISTINCT = 2**22  # rows among which a survey looks for duplicates: 34 MB


@dataclass
class Examples:
    """Rows of one file, in file order. `texts2`, `answers` and `ids` are None when the column is absent.

    A blank text is a row like any other; an empty cell among the answers means that the answer is unknown.
    """

    path: str
    texts: list[str]
    texts2: list[str] | None
    answers: list[str] | None  # cells as they stand in the file; a task reads them
    ids: list[str] | None
    lines: array  # line number of each row, for messages
    column: str | None = None  # name of the column of answers
    header: tuple[str, ...] = ()  # names of all columns

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows) -> "Examples":
        """These rows."""
        return Examples(self.path, *(column and [column[row] for row in rows] for column in
                                     (self.texts, self.texts2, self.answers, self.ids, self.lines)),
                        self.column, self.header)

    def words(self) -> list[tuple[str, ...]]:
        """What makes two rows the same text, or the same pair: the words. data.prepare writes blanks in place
        of tabs and line breaks."""
        columns = [self.texts] if self.texts2 is None else [self.texts, self.texts2]
        return list(zip(*([" ".join(text.split()) for text in column] for column in columns), strict=True))

    def cells(self) -> dict[str, str]:
        """{answer: FILE:LINE where it first stands}, empty ones aside."""
        found = {}
        for cell, line in zip(self.answers or (), self.lines, strict=False):
            if cell and cell not in found:
                found[cell] = f"{self.path}:{line}"
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the texts in order: equal exactly when every row's texts are. Labels do not enter."""
        fingerprint = Fingerprint()
        fingerprint.add(self)
        return fingerprint.hexdigest()

    def targets(self, task, every_row: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, …) targets as the task reads them, (N,) bool: which rows have an answer. Raises UserError.

        With `every_row` one without is refused.
        """
        if every_row and self.answers is None:
            raise UserError(f"{self.path}: no column {task.column} among {list(self.header)}, and every row "
                            f"of this file needs one; --label-column reads another column")
        cells = self.answers if self.answers is not None else [""] * len(self)
        texts = self.texts if self.texts2 is None or task.per == "text" else self.texts2
        found = []
        for cell, text, line in zip(cells, texts, self.lines, strict=True):
            if every_row and not cell:
                raise UserError(f"{self.path}:{line}: no {task.column}; every row of this file needs one")
            try:
                found.append(task.read(cell, text))
            except ValueError as error:
                raise UserError(f"{self.path}:{line}: {error}"
                                + ("" if every_row else ", or leave it empty if it is unknown")) from None
        return torch.as_tensor(found), torch.tensor([bool(cell) for cell in cells])


class Fingerprint:
    """Examples.fingerprint() of a file that is read in parts, and another of its answers in order."""

    def __init__(self):
        self.texts, self.texts2, self.answers = hashlib.sha256(b"column"), None, hashlib.sha256()

    def add(self, part: Examples, rows: int | None = None) -> None:
        """Go on with `part`, or with its first `rows` rows."""
        self._update(self.texts, part.texts[:rows])
        self._update(self.answers, (part.answers or ())[:rows])
        if part.texts2 is not None:
            self.texts2 = self.texts2 or hashlib.sha256(b"column")
            self._update(self.texts2, part.texts2[:rows])

    @staticmethod
    def _update(digest, texts):
        for text in texts:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)

    def hexdigest(self) -> str:
        whole = self.texts.copy()
        whole.update(b"none" if self.texts2 is None else self.texts2.digest())
        return whole.hexdigest()


@dataclass
class Survey:
    """What one pass over a file tells, without keeping its rows."""

    path: str
    head: Examples  # the first rows, at most CHUNK
    rows: int = 0
    answers: Counter = field(default_factory=Counter)  # how often each cell occurs, empty ones aside
    cells: dict[str, str] = field(default_factory=dict)  # {answer: FILE:LINE where it first stands}
    blank: int = 0  # rows with a text that is empty, or blanks alone
    first_blank: str = ""  # FILE:LINE
    quoted: str = ""  # FILE:LINE, in a file of one column: a quotation mark opens that a later row closes
    opened: str = ""  # FILE:LINE of the last one that opened
    keys: array = field(default_factory=lambda: array("q"))  # of DISTINCT rows: equal for equal texts
    fingerprint: str = ""  # of the texts
    answer_fingerprint: str = ""

    @property
    def column(self) -> str | None:
        """Name of the column of answers."""
        return self.head.column

    @property
    def pairs(self) -> bool:
        return self.head.texts2 is not None

    @property
    def labelled(self) -> int:
        return self.answers.total()

    def add(self, part: Examples) -> None:
        """Count the next rows."""
        self.answers.update(filter(None, part.answers or ()))
        for cell, place in part.cells().items():
            self.cells.setdefault(cell, place)
        lines_alone = len(part.header) == 1 and not self.path.lower().removesuffix(".gz").endswith(".csv")
        for row, (key, text, line) in enumerate(
                zip(part.words(), part.texts, part.lines, strict=True), self.rows):
            if not all(key):
                self.blank += 1
                self.first_blank = self.first_blank or f"{self.path}:{line}"
                key = self.path, row  # blank texts are not counted as duplicates
            if row < DISTINCT:
                self.keys.append(hash(key))
            if lines_alone and text.count('"') % 2:
                if self.opened and text.endswith('"'):
                    self.quoted = self.quoted or self.opened
                self.opened = f"{self.path}:{line}" if text.startswith('"') else ""
        self.rows += len(part)

    def refuse_other_answers(self, task, *columns) -> None:
        """A UserError with the line of the first cell that the task cannot read, if there is one."""
        try:
            for cell in self.answers:
                task.read(cell, "")
        except ValueError:
            for part in stream_examples(self.path, *columns):
                part.targets(task)


def survey(path, text_column=None, text2_column=None, label_column=None) -> Survey:
    """Read a file once, keeping few rows: what is wrong with it is told before any work. Raises UserError."""
    return survey_of(stream_examples(path, text_column, text2_column, label_column))


def survey_of(parts) -> Survey:
    """What survey() gives, of the parts of a file, or of all of it in one."""
    found, fingerprint = None, Fingerprint()
    for part in parts:
        found = found or Survey(part.path, part.take(range(min(len(part), CHUNK))))
        found.add(part)
        fingerprint.add(part)
    found.fingerprint, found.answer_fingerprint = fingerprint.hexdigest(), fingerprint.answers.hexdigest()
    return found


def read_again(found: Survey, text_column=None, text2_column=None, label_column=None,
               chunk: int = CHUNK) -> Iterator[Examples]:
    """stream_examples of a surveyed file; refuses a file that is another one by now."""
    fingerprint = Fingerprint()
    for part in stream_examples(found.path, text_column, text2_column, label_column, chunk):
        fingerprint.add(part)
        yield part
    now = fingerprint.hexdigest(), fingerprint.answers.hexdigest()
    if now != (found.fingerprint, found.answer_fingerprint):
        raise UserError(f"{found.path}: was changed while it was read; run again")


def stem(path) -> str:
    """A data file's name without its endings: data/train.tsv.gz -> train."""
    return re.sub(r"(\.(tsv|txt|csv|jsonl))?(\.gz)?$", "", Path(path).name)


def fingerprint_of_first(rows: int, path, *columns) -> str:
    """Examples.fingerprint() of the first `rows` rows of a file."""
    fingerprint = Fingerprint()
    for part in stream_examples(path, *columns):
        fingerprint.add(part, rows)
        rows -= len(part)
        if rows <= 0:
            break
    return fingerprint.hexdigest()


def read_examples(path, text_column=None, text2_column=None, label_column=None) -> Examples:
    """Read one file whole. Columns are text/document, text2, label, labels or score by default; one that is
    named must exist.

    label_column may also be a tuple of names, of which none need exist; with False there are no answers.
    Raises UserError `FILE:LINE: what is wrong; what to do`.
    """
    parts = stream_examples(path, text_column, text2_column, label_column)
    whole = next(parts)
    for part in parts:
        for name, column in vars(part).items():
            if column is not None and name not in ("path", "column", "header"):
                getattr(whole, name).extend(column)
    return whole


def stream_examples(path, text_column=None, text2_column=None, label_column=None,
                    chunk: int = CHUNK) -> Iterator[Examples]:
    """read_examples, `chunk` rows at a time: a file of any size passes through little memory."""
    for part, _ in stream_rows(path, text_column, text2_column, label_column, chunk):
        yield part


def stream_rows(path, text_column=None, text2_column=None, label_column=None,
                chunk: int = CHUNK) -> Iterator[tuple[Examples, tuple]]:
    """stream_examples, each part with its rows as the file has them: lists of cells, or lines of JSON."""
    path = str(path)
    name = path.lower().removesuffix(".gz")
    wanted = text_column, text2_column, label_column
    if name.endswith((".tsv", ".txt", ".csv")):
        records = _table_records(path, name, wanted)
    elif name.endswith(".jsonl"):
        records = _json_records(path, wanted)
    else:
        raise UserError(f"{path}: unknown ending; use .tsv, .txt, .csv or .jsonl, each also with .gz")
    header, columns = next(records)  # {"text": name of the column in the file, …}
    rows = 0
    while part := list(islice(records, chunk)):
        lines, raw, *values = zip(*part, strict=True)
        values = dict(zip(columns, map(list, values), strict=True))
        yield Examples(path, values["text"], values.get("text2"), values.get("answer"), values.get("id"),
                       array("Q", lines), columns.get("answer"), header), raw
        rows += len(part)
    if not rows:
        raise UserError(f"{path}: has a header but no rows")


def _table_records(path, name, wanted):
    """(header, {role: name of its column}), then (line number, row, value of each role) of every row."""
    rows = csv_rows(path) if name.endswith(".csv") else _tsv_rows(path)
    line, header = next(rows, (1, None))
    if header is None:
        raise UserError(f"{path}: is empty; a header line such as text<TAB>label is needed")
    if any("\r" in column for column in header):
        raise UserError(f"{path}:{line}: {CR_ALONE}")
    columns = _columns(f"{path}:{line}", header, *wanted)
    yield tuple(header), {key: header[position] for key, position in columns.items()}
    positions, before = tuple(columns.values()), []
    for line, row in rows:
        if row == header and len(header) > 1:
            raise UserError(f"{path}:{line}: the header again; remove the line")
        if len(row) != len(header):
            if not name.endswith(".csv") and any("\r" in field for field in row):
                advice = CR_ALONE
            elif name.endswith(".csv"):
                advice = "a text with a comma or a line break needs quotation marks around it"
            elif any(field[:1] == '"' and field.count('"') % 2 for field in (*before[-1:], *row)):
                advice = ("a quotation mark opens here or in the line before, and in .tsv it has no special "
                          "meaning; if the texts have line breaks, save the file as .csv")
            else:
                advice = "a text must not contain a tab or a line break"
            if row == [""]:
                raise UserError(f"{path}:{line}: an empty line; remove it ({advice})")
            raise UserError(f"{path}:{line}: {len(row)} columns where the header has {len(header)}; "
                            f"{advice}")
        before = row
        yield line, row, *[row[position] for position in positions]


def _columns(where, header, text_column, text2_column, label_column) -> dict:
    """{role: position in the header} of the columns that are there."""
    named = isinstance(label_column, str)
    wanted = {
        "text": ("--text-column", (text_column,) if text_column else TEXT_COLUMNS, True),
        "text2": ("--text2-column", (text2_column or "text2",), text2_column is not None),
        "answer": ("--label-column", (label_column,) if named else label_column or ANSWER_COLUMNS, named),
        "id": (None, ("id",), False),
    }
    if label_column is False:
        del wanted["answer"]
    columns = {}
    for key, (flag, names, required) in wanted.items():
        found = [i for i, name in enumerate(header) if name in names]
        if len(found) > 1:
            raise UserError(f"{where}: column {' or '.join(names)} occurs {len(found)} times; keep one, "
                            f"or name another with {flag}")
        if not found and key != "id":  # with --task, the column of another task is not a near one
            others = () if key != "answer" or named else ANSWER_COLUMNS
            refuse_near_columns(where, [name for name in header if name not in others], names, flag)
        if required and not found and len(header) == 1 and re.search("[,;\t|]", header[0]):
            raise UserError(f"{where}: the only column is {header[0]!r}; columns are separated by tabs in "
                            f".tsv, by commas in .csv")
        if required and not found:
            raise UserError(f"{where}: no column {' or '.join(names)} among {header}; the first line must "
                            f"name the columns ({flag} for another name)")
        if found and found[0] in columns.values():
            raise UserError(f"{where}: column {header[found[0]]!r} would be read twice, as {key} too; name "
                            f"another with {flag}")
        if found:
            columns[key] = found[0]
    return columns


def decoded_lines(path):
    """(line number, text with line end) of a UTF-8 file. Only LF ends a line: texts may hold U+2028 or CR."""
    offset = 0
    try:
        with gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
                if len(raw) > LONGEST:
                    raise UserError(f"{path}:{number}: a line of more than {LONGEST:,} bytes; each row is "
                                    f"one line (are line ends missing?)")
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
    for number, line in decoded_lines(path):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def csv_rows(path):
    csv.field_size_limit(LONGEST)
    reader = csv.reader((line for _, line in decoded_lines(path)), strict=True)
    start = 1
    try:
        for row in reader:
            yield start, row or [""]  # an empty line is one empty field
            start = reader.line_num + 1
    except csv.Error as error:
        if "new-line character" in str(error):  # in a field without quotation marks
            raise UserError(f"{path}:{start}: {CR_ALONE}") from None
        raise UserError(f"{path}:{start}: not valid CSV ({error}); is a quote not closed, or not doubled?"
                        ) from None


def _json_records(path, wanted):
    """As _table_records; the first object plays the header's part."""
    columns = None
    for number, line in decoded_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if "\r" in line.rstrip():
                raise UserError(f"{path}:{number}: {CR_ALONE}") from None
            reason = f"{error.msg} at column {error.colno}" if hasattr(error, "colno") else str(error)
            raise UserError(f"{path}:{number}: not valid JSON ({reason})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a JSON object such as {{\"text\": \"…\"}} is needed")
        if columns is None:
            found = _columns(f"{path}:{number}", list(record), *wanted)
            names = list(record)
            columns = {key: names[position] for key, position in found.items()}
            seen = {*names}
            yield tuple(names), columns
        if late := [name for name in record if name not in seen and name not in TEXT_COLUMNS]:
            new = _columns(f"{path}:{number}", [*columns.values(), *late], *wanted)
            if new.keys() - columns:
                raise UserError(f"{path}:{number}: has {late[0]!r}, which the first object has not; give "
                                f"every object the same keys (null: no answer)")
            seen.update(late)
        yield number, line, *[_json_field(f"{path}:{number}", record, key, name)
                              for key, name in columns.items()]
    if columns is None:
        raise UserError(f"{path}: is empty; one JSON object per line is needed")


def _json_field(where, record, key, name) -> str:
    value = record.get(name)
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {name!r} holds half of a surrogate pair, which is not text")
        return value
    if key == "answer" and name != "label" and isinstance(value, list) \
            and all(isinstance(each, (str, int)) for each in value):
        return json.dumps([each if isinstance(each, str) else str(int(each)) for each in value],
                          ensure_ascii=False)
    if key in ("answer", "id"):
        if value is None:
            return ""
        if isinstance(value, int):
            return str(int(value))  # true and false are labels 1 and 0
        if key == "answer" and isinstance(value, float) and math.isfinite(value):
            return str(value)
    try:
        shown = json.dumps(value)[:40]
    except RecursionError:  # so deep that it could just be read
        shown = "nested too deeply"
    needed = {"answer": "string or number", "id": "string or whole number"}.get(key, "string")
    raise UserError(f"{where}: {name!r} is {shown}, a {needed} is needed")
