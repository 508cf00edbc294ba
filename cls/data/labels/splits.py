"""Columns of a label file with the split of each row."""

import re
from collections import Counter
from collections.abc import Collection

from cls.data.labels.table import Table, is_missing, listed, plain_name, printable
from cls.data.split import SPLITS
from cls.data.split_words import split_name, splits_in, words

SURE_NAMES = ("split", "splits", "data_split", "split_name", "train_test_split", "train_val_test", "partition", "usage")
"""Names of columns that always hold splits."""
SPLIT_WORDS = {"split", "splits", "partition", "usage", "set", "subset", "dataset", "phase", "stage", "mode", "fold",
               "folds", "kfold"}  # fmt: skip
"""Words in the names of columns that hold splits if any of their cells is one."""
NOTED = (*SURE_NAMES, "set", "subset", "phase", "dataset", "data_set", "fold", "folds", "kfold")
"""Names of columns that are noted if no cell is a split."""
FLAG = re.compile(r"(?:is|in)_([a-z]+?)(?:_?(?:set|image|img|data|sample))?")  # names of yes/no columns
LOOSE_FLAG = re.compile(
    r"(?:(?:is|in|for|use_for|use_in)_?)?(train|training|val|valid|validation|test|testing|holdout|held_?out|hold_out)"
    r"(?:_?(?:set|image|img|data|sample|flag))?"
)
"""Names of columns that are such if all of their cells are yes or no."""
MOST = 50  # largest number of values of a column with another name that may hold splits
YES, NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f")
DO = (
    "write train, val or test into each of its rows, or name one file for each split: --data.labels train=FILE "
    "val=FILE test=FILE"
)


def split_columns(table: Table, others: Collection[str] = (), known: str = "") -> list[int]:
    """Columns that hold splits, by their names and cells.

    ``others``: names of columns with another use. ``known``: the split that the file is for.
    """
    taken = {name.lower() for name in others}
    free = [column for column, name in enumerate(table.names) if name.lower() not in taken]
    return [column for column in free if _holds_splits(table, column, known)]


def _holds_splits(table: Table, column: int, known: str) -> bool:
    name, cells = table.names[column], {cell for cell in table.columns[column] if not is_missing(cell)}
    if _flag(table, column):
        return bool(cells)
    if _is_named(table, column) and any(map(splits_in, cells)):
        return True
    if table.headed and plain_name(name) in SURE_NAMES and cells and not known:
        return True
    meant = {split_name(cell) for cell in cells} if len(cells) <= MOST else {""}
    # whatever the column is called; where some cells are no splits, that is an error to come
    return len(meant) > 1 and ("" not in meant or {"train", "test"} <= meant or {"train", "val"} <= meant)


def _flag(table: Table, column: int) -> str:
    """The split of the rows with yes in a yes/no column; "" for other columns."""
    name = plain_name(table.names[column]) if table.headed else ""
    if found := FLAG.fullmatch(name):
        return SPLITS.get(found[1], "")
    loose = LOOSE_FLAG.fullmatch(name)
    if not loose or not _is_yes_no(table.columns[column]) or len(table.columns) < 3 or _is_one_of(table, column):
        return ""
    return SPLITS[re.sub(r"h[eo]ld_?out", "holdout", loose[1])]


def _is_yes_no(cells: list[str]) -> bool:
    return not all(map(is_missing, cells)) and all(cell.lower() in (*YES, *NO) for cell in cells)


def _is_one_of(table: Table, column: int) -> bool:
    """Whether a yes/no column is one class of several: cars, buses and trains, one of them in each row."""
    binary = [c for c in range(len(table.columns)) if c == column or _is_yes_no(table.columns[c])]
    if all(LOOSE_FLAG.fullmatch(plain_name(table.names[c])) for c in binary):
        return False
    marked = zip(*(table.columns[c] for c in binary), strict=True)
    return all(sum(cell.lower() in YES for cell in row) == 1 for row in marked)


def _is_named(table: Table, column: int) -> bool:
    name = table.names[column]
    return table.headed and (not SPLIT_WORDS.isdisjoint(words(name.lower())) or len(splits_in(name)) > 1)


def is_named(table: Table, columns: Collection[int]) -> bool:
    """Whether one of these columns has a split column's name: the first row is then a header."""
    return any(_is_named(table, column) or _flag(table, column) for column in columns)


def unused_columns(table: Table, used: Collection[int]) -> list[int]:
    """Columns with a split column's name, or a split in it, but no splits, such as fold numbers."""
    return [
        column
        for column in range(len(table.names))
        if table.headed and column not in used
        and (plain_name(table.names[column]) in NOTED or splits_in(table.names[column]))
        and not all(map(is_missing, table.columns[column]))
    ]  # fmt: skip


def is_fold(table: Table, column: int) -> bool:
    """Whether a column holds fold numbers, which are no classes."""
    known = [cell for cell in table.columns[column] if not is_missing(cell)]
    return plain_name(table.names[column]) in ("fold", "folds", "kfold") and all(
        re.fullmatch(r"-?\d+(\.0*)?", cell) for cell in known
    )


def split_values(table: Table, columns: Collection[int]) -> list[str]:
    """The split of each row by these columns; ValueError with counts for cells with no or several splits."""
    flags = [column for column in columns if _flag(table, column)]
    found = {column: _of_words(table, column) for column in columns if column not in flags}
    if flags:
        found[flags[0]] = _of_flags(table, flags)
    first, *rest = found
    for other in rest:
        wrong = [line for one, two, line in zip(found[first], found[other], table.lines, strict=True) if one != two]
        if wrong:
            raise ValueError(
                f"data.labels: columns {table.names[first]} and {table.names[other]} of {table.name} say different "
                f"splits in {len(wrong)} rows, e.g. line {wrong[0]}: remove one of the columns"
            )
    return found[first]


def _of_words(table: Table, column: int) -> list[str]:
    cells = ["" if is_missing(cell) else cell for cell in table.columns[column]]
    splits = {cell: splits_in(cell) for cell in set(cells)}
    _check_clear(table, column, [cell for cell in cells if len(splits[cell]) != 1], "no split, or several")
    return [next(iter(splits[cell])) for cell in cells]


def _check_clear(table: Table, column: int, unclear: list[str], what: str) -> None:
    if unclear:
        counts = [f"{printable(cell) or 'empty'} ({count:,})" for cell, count in Counter(unclear).most_common()]
        raise ValueError(
            f"data.labels: {len(unclear):,} of {len(table):,} rows of {table.name} say {what} in column "
            f"{table.names[column]}: {listed(counts)}; {DO}"
        )


def _of_flags(table: Table, columns: list[int]) -> list[str]:
    """By yes/no columns; a row with no in all of them is train or, if train has a column, test or val."""
    named = {column: _flag(table, column) for column in columns}
    for column in columns:
        cells = table.columns[column]
        _check_clear(table, column, [cell for cell in cells if cell.lower() not in (*YES, *NO)], "neither yes nor no")
    rest = next((split for split in ("train", "test", "val") if split not in named.values()), "")
    splits, wrong = [], []
    for place, line in enumerate(table.lines):
        meant = {split for column, split in named.items() if table.columns[column][place].lower() in YES}
        splits.append(meant.pop() if len(meant) == 1 else rest)
        wrong += [line] if meant or not splits[-1] else []
    if wrong:
        names = listed([table.names[column] for column in columns])
        raise ValueError(
            f"data.labels: {len(wrong):,} rows of {table.name} say no split, or several, in columns {names}, e.g. line "
            f"{wrong[0]}: each row needs one split"
        )
    return splits
