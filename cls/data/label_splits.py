"""The columns of a label file that say which split each row belongs to."""

import re
from collections import Counter
from collections.abc import Collection

from cls.data.label_table import Table, is_missing, listed, plain_name, printable
from cls.data.names import splits_in

SURE_NAMES = ("split", "splits", "data_split", "split_name", "train_test_split", "train_val_test", "partition", "usage")
"""Of columns that always say a split."""
SPLIT_NAMES = (*SURE_NAMES, "set", "subset", "image_set", "phase", "stage", "mode", "dataset", "data_set", "fold",
               "folds")  # fmt: skip
"""Of columns that say a split where any of their cells does."""
FLAGS = {"is_train": "train", "is_training": "train", "is_training_image": "train", "is_valid": "val", "is_val": "val",
         "is_validation": "val", "is_test": "test", "is_testing": "test"}  # fmt: skip
"""Columns of yes and no."""
YES, NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f")
DO = (
    "write train, val or test into each of its rows, or name one file for each split: --data.labels train=FILE "
    "val=FILE test=FILE"
)


def split_columns(table: Table, others: Collection[str] = (), known: str = "") -> list[int]:
    """Columns that say the splits of the rows, by their names and cells.

    ``others`` are names of columns with another use, ``known`` is the split that the file is for, which a column
    without any split word does not change.
    """
    taken = {name.lower() for name in others}
    return [
        column
        for column, name in enumerate(table.names)
        if table.headed and name.lower() not in taken and _says_splits(table, column, known)
    ]


def _says_splits(table: Table, column: int, known: str) -> bool:
    name = plain_name(table.names[column])
    cells = {cell for cell in table.columns[column] if not is_missing(cell)}
    if name in FLAGS or name not in SPLIT_NAMES:
        return name in FLAGS and bool(cells)
    return any(map(splits_in, cells)) or (bool(cells) and name in SURE_NAMES and not known)


def unused_columns(table: Table, used: Collection[int]) -> list[int]:
    """Columns with a split column's name whose cells say no split: numbers of folds, say."""
    return [
        column
        for column, name in enumerate(table.names)
        if table.headed and column not in used and plain_name(name) in SPLIT_NAMES
        and not all(map(is_missing, table.columns[column]))
    ]  # fmt: skip


def is_fold(table: Table, column: int) -> bool:
    """Whether a column holds numbers of folds, which are no classes."""
    known = [cell for cell in table.columns[column] if not is_missing(cell)]
    return plain_name(table.names[column]) in ("fold", "folds") and all(
        re.fullmatch(r"-?\d+(\.0*)?", cell) for cell in known
    )


def split_values(table: Table, columns: Collection[int]) -> list[str]:
    """The split of each row by these columns; ValueError with counts for cells that say none or several."""
    flags = [column for column in columns if plain_name(table.names[column]) in FLAGS]
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
    """By columns of yes and no; a row with no in all of them is of train or, where that has a column, of the rest."""
    named = {column: FLAGS[plain_name(table.names[column])] for column in columns}
    for column in columns:
        cells = table.columns[column]
        _check_clear(table, column, [cell for cell in cells if cell.lower() not in (*YES, *NO)], "neither yes nor no")
    rest = next((split for split in ("train", "test", "val") if split not in named.values()), "")
    splits, wrong = [], []
    for place, line in enumerate(table.lines):
        said = {split for column, split in named.items() if table.columns[column][place].lower() in YES}
        splits.append(said.pop() if len(said) == 1 else rest)
        wrong += [line] if said or not splits[-1] else []
    if wrong:
        names = listed([table.names[column] for column in columns])
        raise ValueError(
            f"data.labels: {len(wrong):,} rows of {table.name} say no split, or several, in columns {names}, e.g. line "
            f"{wrong[0]}: each row needs one split"
        )
    return splits
