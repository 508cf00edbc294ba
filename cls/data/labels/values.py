"""Which column of a label file holds the classes, and the class in each of its cells."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from cls.data.labels.ids import ID_NAMES
from cls.data.labels.splits import is_fold, split_columns
from cls.data.labels.table import Table, is_missing, listed, plain_name
from cls.data.split_words import split_name

LABEL_NAMES = ("label", "labels", "class", "classes", "class_name", "classname", "label_name", "category",
               "category_name", "target", "species", "breed", "diagnosis", "dx", "cls", "fine_label", "y", "class_id",
               "label_id", "category_id", "prediction_string")  # fmt: skip
BOXES = re.compile(r"(\w+)(\s+-?\d+(\.\d+)?){4}(\s+\1(\s+-?\d+(\.\d+)?){4})*\s*")
"""A class and a box, once or several times, as ImageNet's PredictionString."""
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True, kw_only=True)
class Values:
    """The class of each row of a table; "" is missing."""

    what: str  # their source, for messages; "" if the table has none
    classes: list[str] = field(default_factory=list)
    negative: int = 0  # rows with a number below 0, which is missing, too


class UnclearColumnError(ValueError):
    """Several columns may hold the classes."""

    def __init__(self, message: str, columns: Sequence[str]) -> None:
        super().__init__(message)
        self.columns = tuple(columns)


def has_column(table: Table, wanted: str) -> bool:
    return wanted.lower() in [name.lower() for name in table.names]


def has_usual_names(table: Table) -> bool:
    """Whether columns have usual names of ids and labels: the first row is then a header."""
    names = set(map(plain_name, table.names))
    return not names.isdisjoint(ID_NAMES) and not names.isdisjoint(LABEL_NAMES)


def column_named(table: Table, wanted: str, option: str) -> int:
    """The number of a column; ValueError with the names that exist."""
    if wanted in table.names:
        return table.names.index(wanted)
    lower = [name.lower() for name in table.names]
    if lower.count(wanted.lower()) == 1:
        return lower.index(wanted.lower())
    about = "" if table.headed else " (the file has no header, so they are numbered)"
    raise ValueError(f"--data.{option} {wanted}: {table.name} has no such column; it has {listed(table.names)}{about}")


def class_values(table: Table, ids: int, wanted: str) -> Values:
    """The classes of a table whose ids are in column ``ids``.

    From the wanted column, a name in LABEL_NAMES, one column per class, the only column that can hold classes, or the
    folders in the ids. UnclearColumnError if several columns can; ValueError for several classes of one image.
    """
    if wanted:
        return _of_column(table, column_named(table, wanted, "label-column"))
    no_class = {ids, *split_columns(table)}
    others = [column for column in range(len(table.columns)) if column not in no_class and not is_fold(table, column)]
    named = {plain_name(table.names[column]): column for column in reversed(others)} if table.headed else {}
    for name in LABEL_NAMES:
        if name in named and not (name == "y" and "x" in named):  # a place in the picture
            return _of_column(table, named[name])
    binary = [column for column in others if table.headed and _is_binary(table.columns[column])]
    if len(binary) > 1 and (found := _one_hot(table, binary, alone=len(binary) == len(others))):
        return found
    return _only_column(table, others) or _folders(table, ids)


def _only_column(table: Table, others: list[int]) -> Values | None:
    """The one column besides the ids, or that can hold classes; without a header, the only one of words."""
    likely = [column for column in others if _is_classes(table.columns[column])]
    words = [column for column in likely if not all(map(_is_number, table.columns[column]))]
    chosen = words if len(words) == 1 and not table.headed else likely
    if len(chosen) == 1 or len(others) == 1:
        return _of_column(table, (chosen or others)[0])
    if len(likely) > 1:
        names = [table.names[column] for column in likely]
        about = "" if table.headed else " (numbers, as the file has no header)"
        raise UnclearColumnError(
            f"data.labels: several columns of {table.name} may hold the classes: name one with --data.label-column, "
            f"of {listed(names)}{about}",
            names,
        )
    return None


def _of_column(table: Table, column: int) -> Values:
    name, cells = table.names[column], ["" if is_missing(cell) else cell for cell in table.columns[column]]
    given = [(cell, line) for cell, line in zip(cells, table.lines, strict=True) if cell]
    for cell, line in given:
        if "|" in cell or (cell[0] == "[" and cell[-1] == "]") or cell[0] == "{":
            raise ValueError(
                f"data.labels: {table.name}, line {line}: {cell[:60]!r} in column {name} is several labels or none; "
                "one class for each image is needed: name another column with --data.label-column"
            )
    if given and all(BOXES.fullmatch(cell) for cell, _ in given):
        return Values(what=f"first word of column {name}", classes=[cell.split()[0] if cell else "" for cell in cells])
    if all(re.fullmatch(r"-?\d+\.0*", cell) for cell, _ in given):  # how pandas writes integers beside missing values
        cells = [cell.partition(".")[0] for cell in cells]
    negative = r"-1(\.0*)?"  # -1: unknown, as in other tables
    if given and all(re.fullmatch(r"-?\d+", cell) for cell in cells if cell):
        negative = r"-\d+"
    elif given and all(_is_number(cell) for cell, _ in given):
        raise ValueError(
            f"data.labels: column {name} of {table.name} holds numbers such as {given[0][0]}, no classes: name another "
            f"with --data.label-column, of {listed(table.names)}"
        )
    known = ["" if cell.startswith("-") and re.fullmatch(negative, cell) else cell for cell in cells]
    classes = [cell if cell.isascii() else unicodedata.normalize("NFC", cell) for cell in known]
    return Values(what=f"column {name}", classes=classes, negative=known.count("") - cells.count(""))


def _one_hot(table: Table, columns: list[int], alone: bool) -> Values | None:
    """One column per class with one 1 in each row; None if the columns are something else."""
    classes = []
    for place, line in enumerate(table.lines):
        ones = [table.names[column] for column in columns if table.columns[column][place].lower() in YES]
        if len(ones) != 1:
            if not alone:
                return None
            raise ValueError(
                f"data.labels: {table.name}, line {line} marks {len(ones)} of the columns "
                f"{listed([table.names[column] for column in columns])}: these are several labels of an image, and "
                "one class for each image is needed; name a column with --data.label-column"
            )
        classes.append(unicodedata.normalize("NFC", ones[0]))
    return Values(what=f"the {len(columns)} columns with one 1 in each row", classes=classes)


def _folders(table: Table, ids: int) -> Values:
    """The class is the folder before the file's name in the id: apple_pie/1005649.

    ValueError where folders above it differ, too, which are no splits: cat/indoor/1.
    """
    above = {tuple(cell.replace("\\", "/").split("/")[:-1]) for cell in table.columns[ids]}
    levels = [{*level} for level in zip(*above, strict=True)] if len({len(path) for path in above}) == 1 else []
    if len(several := [level for level in levels if len(level) > 1 and not all(map(split_name, level))]) > 1:
        shown = " and ".join(listed(sorted(level)[:3]) for level in several)
        raise ValueError(
            f"data.labels: the ids of {table.name} have several folders that may be the classes ({shown}): add a "
            "column with the classes"
        )
    folders = [cell.replace("\\", "/").rpartition("/")[0].rpartition("/")[2] for cell in table.columns[ids]]
    if all(folders) and len(set(folders)) > 1:
        return Values(what="the folders in the ids", classes=[unicodedata.normalize("NFC", name) for name in folders])
    return Values(what="")


def _is_classes(cells: list[str]) -> bool:
    """Whether there are two or more values, some of them repeated, and no measurements."""
    known = [cell for cell in cells if not is_missing(cell)]
    measured = all(map(_is_number, known)) and not all(re.fullmatch(r"-?\d+(\.0*)?", cell) for cell in known)
    return 1 < len(set(known)) < len(known) and not measured


def _is_binary(cells: list[str]) -> bool:
    return all(cell.lower() in (*YES, *NO) for cell in cells)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", cell) is not None
