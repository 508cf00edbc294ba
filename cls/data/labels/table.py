"""Label files as columns of text: CSV, TSV and other text lists, JSON and JSON lines."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cls.transforms.decode import EXTENSIONS

FILES = (".csv", ".tsv", ".txt", ".json", ".jsonl")  # endings of files that may hold labels
MISSING = ("", "nan", "<na>")  # written by pandas for missing values; "none" and "NA" may be classes
LONGEST = 100_000_000  # characters in one field, enough for the mask of an image
MAGIC = {
    b"PK\x03\x04": "is an Excel or zip file: save the table as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel file: save the table as CSV",
    b"\x1f\x8b": "is compressed: unpack it first (gunzip)",
    b"MATLAB": "is a MATLAB file: write its table as CSV",
    b"PAR1": "is a parquet file: write its table as CSV",
    b"\xff\xfe": "is UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16, not UTF-8: convert it with iconv -f UTF-16 -t UTF-8",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """The cells of a label file by column, stripped."""

    name: str  # the file's name in messages
    names: tuple[str, ...]  # of the columns; numbers from 1 if the file has no header
    columns: tuple[list[str], ...]
    lines: list[int]  # line of each row in the file, from 1; in a .json file the record's number
    headed: bool  # False while the first row may be a header

    def __len__(self) -> int:
        return len(self.lines)

    def with_header(self) -> "Table":
        """The first row as names of the columns; empty and repeated names get the column's number."""
        names: list[str] = []
        for number, column in enumerate(self.columns, 1):
            name = printable(column[0])
            names.append(name if name and name not in names else f"{name}#{number}")
        rest = tuple(column[1:] for column in self.columns)
        return Table(name=self.name, names=tuple(names), columns=rest, lines=self.lines[1:], headed=True)


def read_table(path: Path, name: str) -> Table:
    """The table in a file, called ``name`` in messages; ValueError with the line if it is no table in UTF-8.

    Reads 100,000 rows of two columns in 0.3 s.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"data.labels: cannot read {name}: {error.strerror}") from None
    for magic, what in MAGIC.items():
        if content.startswith(magic):
            raise ValueError(f"data.labels: {name} {what}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"data.labels: {name}, line {line} is not UTF-8: convert the file, e.g. with iconv -f LATIN1 -t UTF-8"
        ) from None
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return _records(name, *_json(text, name, whole=path.suffix.lower() == ".json"))
    rows, lines = _rows(text, name)
    if not rows:
        raise ValueError(f"data.labels: {name} has no rows")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"data.labels: {name}, line {line} has {len(row)} fields, but line {lines[0]} has {len(rows[0])}"
            )
    names = tuple(str(number) for number in range(1, len(rows[0]) + 1))
    columns = tuple([cell.strip() for cell in column] for column in zip(*rows, strict=True))
    return Table(name=name, names=names, columns=columns, lines=lines, headed=False)


def printable(name: str) -> str:
    """A column's name in one line, and at most 60 characters of it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name[:60])


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message."""
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def plain_name(name: str) -> str:
    """A column's name in small letters, with "_" between its words."""
    return re.sub(r"[^a-z]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def _rows(text: str, name: str) -> tuple[list[list[str]], list[int]]:
    """Fields by line; lines without any are left out."""
    with _long_fields():
        delimiter = _delimiter(text)
        numbered = _csv(text, delimiter, name) if delimiter else _words(text)
        kept = [(row, line) for row, line in numbered if any(cell.strip() for cell in row)]
    return [row for row, _ in kept], [line for _, line in kept]


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allow fields of LONGEST characters, such as masks, in place of Python's 131,072."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(text: str, delimiter: str, name: str) -> Iterator[tuple[list[str], int]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    start = 1
    try:
        for row in reader:
            yield row, start
            start = reader.line_num + 1
    except csv.Error as error:
        open_quote = "" if "limit" in str(error) else "; is a quote not closed?"
        raise ValueError(f"data.labels: {name}, line {start}: {error}{open_quote}") from None


def _words(text: str) -> Iterator[tuple[list[str], int]]:
    """Lines of words, of an image's name and a class of several words, or of a name with spaces and one word; "#"
    begins a comment.
    """
    kept = [(line, number) for number, line in _lines(text) if line and not line.startswith("#")]
    even = len({len(line.split()) for line, _ in kept}) == 1
    named = len(kept) > 1 and all(line.split()[0].lower().endswith(EXTENSIONS) for line, _ in kept[1:])  # or a header
    for line, number in kept:
        yield (line.split() if even else line.split(None, 1) if named else line.rsplit(None, 1)), number


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines end at line feed and carriage return only; str.splitlines knows ten more ends."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        yield number, line.strip()


def _delimiter(text: str) -> str:
    """Tab, comma, semicolon or, if each line has as many, |; "" for lists of words."""
    sample = [line for _, line in zip(range(50), (line for _, line in _lines(text) if line), strict=False)]
    counts = {mark: _widths(sample, mark) for mark in "\t,;|"}
    even = [mark for mark in counts if len(counts[mark]) == 1 and max(counts[mark]) > 1]
    if even:
        return max(even, key=lambda mark: (mark == "\t", sample[0].count(mark)))
    found = [mark for mark in "\t,;" if sample and mark in sample[0]]
    return found[0] if found else ""


def _widths(sample: Sequence[str], delimiter: str) -> set[int]:
    """Fields in each line; empty if the lines are no table."""
    try:
        return {len(row) for row in csv.reader(sample, delimiter=delimiter, skipinitialspace=True)}
    except csv.Error:
        return set()


def _json(text: str, name: str, whole: bool) -> tuple[list[dict[str, Any]], list[int]]:
    """Objects and their lines: one a line, a list, or a mapping of files to labels or of classes to files."""
    if not whole:
        lines = [number for number, line in _lines(text) if line]
        records = [_parsed(line, f"{name}, line {number}") for number, line in _lines(text) if line]
    else:
        found = _parsed(text, name)
        if isinstance(found, dict) and found and all(_is_files(value) for value in found.values()):
            found = [{"file": file, "label": label} for label, files in found.items() for file in files]
        elif isinstance(found, dict) and found and not any(isinstance(v, list | dict) for v in found.values()):
            found = [{"file": file, "label": label} for file, label in found.items()]
        records = found if isinstance(found, list) else [found, None]
        lines = list(range(1, len(records) + 1))
    if not any(records) or not all(isinstance(record, dict) for record in records):
        raise ValueError(
            f"data.labels: {name} is not understood: expected objects with a file name and a label, one a line or in a "
            'list, or {"file": "label", ...}'
        )
    return records, lines


def _is_files(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"data.labels: {where}: not JSON: {error}") from None


def _records(name: str, records: Sequence[dict[str, Any]], lines: list[int]) -> Table:
    names = tuple(dict.fromkeys(key for record in records for key in record))
    columns = tuple([_cell(record.get(key)) for record in records] for key in names)
    return Table(name=name, names=tuple(map(printable, names)), columns=columns, lines=lines, headed=True)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value, ensure_ascii=False)
