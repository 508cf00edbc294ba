"""The image of each row of a label file: ids are compared with the ends of the images' paths."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cls.data.labels.table import Table
from cls.transforms.decode import EXTENSIONS

Form = Literal["as written", "by name", "by number"]
FORMS: tuple[Form, ...] = ("as written", "by name", "by number")
"""How an id is compared: its folders and ending, if any, must be the image's; or only the name without them, if all ids
have the same folder (paths of another machine, ``.dcm`` for ``.png``); or 7 for ``0007.jpg``."""
ID_NAMES = ("file_name", "filename", "file", "path", "filepath", "image_path", "image", "image_id", "imageid", "img",
            "image_name", "img_name", "id", "id_code", "name", "uuid")  # fmt: skip
SAMPLE = 300  # rows compared to choose a column


@dataclass(frozen=True)
class Matched:
    """The images of each row of a table: none, one, or several if the id is ambiguous."""

    column: int
    images: list[list[int]]


class ImageNames:
    """Some rows of a list of images by the ends of their paths: 0.3 s and 20 MB for 100,000 images."""

    def __init__(self, root: str, names: Sequence[str], rows: Iterable[int]) -> None:
        self._above = plain_path(os.path.abspath(root)).split("/")
        self._names, self.rows = names, list(rows)
        self._ends: dict[int, dict[str, list[int]]] = {}
        self._numbers: dict[int, list[int]] = {}

    def find(self, value: str, form: Form) -> list[int]:
        """Rows of the images that an id may mean."""
        path = plain_path(value)
        if not path:
            return []
        if form == "by number":
            number = re.fullmatch(r"([0-9]{1,18})(?:\.0*)?", path)  # 7.0: as pandas writes it beside missing values
            return self._by_number().get(int(number[1]), []) if number else []
        if form == "by name":
            return self._by_end(1).get(re.sub(r"\.[A-Za-z]{1,5}$", "", path.rpartition("/")[2]), [])
        ends = self._by_end(path.count("/") + 1)
        stem, ending = split_ending(path)
        found = ends.get(stem, [])
        if ending:
            same = [row for row in found if self._names[row].endswith(ending)]
            found = same or [row for row in found if self._names[row].lower().endswith(ending.lower())]
            found = found or ends.get(path, [])  # of a.jpg.png, called a.jpg
        return found

    def _by_end(self, depth: int) -> dict[str, list[int]]:
        """Rows by the last ``depth`` parts of their paths, without the ending."""
        if depth not in self._ends:
            ends: dict[str, list[int]] = {}
            for row in self.rows:
                parts = plain_path(self._names[row]).split("/")
                if len(parts) < depth:
                    parts = self._above + parts
                if len(parts) >= depth:
                    ends.setdefault(split_ending("/".join(parts[-depth:]))[0], []).append(row)
            self._ends[depth] = ends
        return self._ends[depth]

    def _by_number(self) -> dict[int, list[int]]:
        if not self._numbers:
            for stem, rows in self._by_end(1).items():
                if re.fullmatch(r"[0-9]{1,18}", stem):
                    self._numbers.setdefault(int(stem), []).extend(rows)
        return self._numbers


def plain_path(text: str) -> str:
    """A path in one spelling: / between its parts, none at its start, no . and .., NFC."""
    text = text.replace("\\", "/")
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    if "/" not in text:
        return text
    return "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def split_ending(path: str) -> tuple[str, str]:
    """A path without an image's ending, and the ending."""
    stem, ending = os.path.splitext(path)
    return (stem, ending) if ending.lower() in EXTENSIONS else (path, "")


def match(table: Table, images: ImageNames, wanted: int | None) -> Matched | None:
    """The images of each row by the wanted column, else by the one that names most images; None if none does.

    Beside a column of file names no other one is tried but those with an id's name or with letters: the numbers that
    pandas writes before each row are names of images, too, where these are numbered. ValueError if two columns name
    different images.
    """
    places = range(0, len(table), max(1, len(table) // SAMPLE))
    for columns in [[wanted]] if wanted is not None else _candidates(table):
        for sample in (places, range(len(table))):  # all rows only if the sample names no image
            ranked = sorted(_rank(table, column, sample, images) for column in columns)
            hits, _, _, place, form = ranked[-1]
            if hits:
                found = Matched(-place, _images(table, images, -place, -form))
                _reject_unclear(table, images, found, ranked)
                return found
    return None


def _candidates(table: Table) -> list[list[int]]:
    """Columns that may hold ids; the second list is tried where no column of the first one names an image."""
    every = [*range(len(table.columns))]
    files = [c for c in every if sum(bool(split_ending(value)[1]) for value in table.columns[c]) * 2 > len(table)]
    if not files:
        return [every]
    return [files, [c for c in every if _known(table, c) or not all(map(str.isdigit, table.columns[c]))]]


def _images(table: Table, images: ImageNames, column: int, form: int) -> list[list[int]]:
    return [images.find(value, FORMS[form]) for value in table.columns[column]]


def _reject_unclear(
    table: Table, images: ImageNames, found: Matched, ranked: list[tuple[int, int, int, int, int]]
) -> None:
    """ValueError if another column names at least half as many images, but different ones, no worse than the best."""
    hits, endings, known, place, form = ranked[-1]
    for others, other_endings, _, other, other_form in ranked[:-1]:
        clear = known > -len(ID_NAMES) and hits >= others and form >= other_form
        values = table.columns[-other]
        if clear or others * 2 < hits or other_endings < endings or len(set(values)) < len(values):  # or are classes
            continue
        pairs = zip(found.images, _images(table, images, -other, -other_form), strict=True)
        if any(one and two and one != two for one, two in pairs):
            cells = {table.columns[column][0] for column in (-place, -other)}
            names = (table if table.headed or any(map(looks_like_id, cells)) else table.with_header()).names
            raise ValueError(
                f"data.labels: columns {names[-place]} and {names[-other]} of {table.name} name different images: name "
                "the right one with --data.id-column"
            )


def _rank(table: Table, column: int, sample: range, images: ImageNames) -> tuple[int, int, int, int, int]:
    """Sort key: images named, values with an image's ending, usual column name, earlier column, form."""
    values = [table.columns[column][place] for place in sample]
    best = (0, 0)
    for number, form in enumerate(FORMS):
        if form == "by name" and not _one_folder(table.columns[column][0 if table.headed else 1 :]):
            continue
        named = {found[0] for value in values if (found := images.find(value, form))}
        best = max(best, (len(named), -number))
    endings = sum(bool(split_ending(value)[1]) for value in values)
    known = -ID_NAMES.index(name) if (name := _known(table, column)) else -len(ID_NAMES)
    return best[0], endings, known, -column, best[1]


def _known(table: Table, column: int) -> str:
    """The name of a column that is usual for ids; else empty."""
    name = table.names[column].lower().replace(" ", "_")
    return name if table.headed and name in ID_NAMES else ""


def _one_folder(values: list[str]) -> bool:
    return len({plain_path(value).rpartition("/")[0] for value in values}) == 1


def looks_like_id(value: str) -> bool:
    """Whether this cell of the first row looks like an id, not like a column's name."""
    return bool(split_ending(value)[1]) or "/" in value or value.isdigit()
