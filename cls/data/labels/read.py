"""Labels of image files from label files (data.labels) or from the files' own names (data.label_pattern).

Not cached: each process walks the folder and reads the label files at every start, 0.3 s for 30,000 images, 2 s and
80 MB at the peak for 100,000 rows. `cls pack` makes shards that need neither.
"""

import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cls import config
from cls.data import tables
from cls.data.fixes import path_option
from cls.data.folders import ignored
from cls.data.folders.image_folder import Listing, files, natural, scan
from cls.data.folders.tree import Tree
from cls.data.labels.files import LabelFile, class_folder, find_file, folder_splits, without_marked
from cls.data.labels.ids import ID_NAMES, ImageNames, Matched, looks_like_id, match
from cls.data.labels.splits import is_named, split_columns, split_values, unused_columns
from cls.data.labels.table import Table, listed, read_table
from cls.data.labels.values import Values, class_values, column_named, has_column, has_usual_names
from cls.data.split import RawSplits


class Given(NamedTuple):
    """The split and label of an image, with their source for messages."""

    split: str
    label: str | None
    how: str
    file: str = ""
    line: int = 0


class ImageFiles(NamedTuple):
    """The images of a folder, with the splits of their folders by row."""

    root: Path
    listing: Listing
    splits: Sequence[str]

    @property
    def names(self) -> list[str]:
        return self.listing.images


def read_labels(root: Path, listing: Listing, data: config.Data) -> RawSplits:
    """The splits of a folder by ``data.labels`` or ``data.label_pattern``; ValueError for what cannot be used.

    An image belongs to its label file's split (``val=FILE``, a split column, or a split word in the file's path), else
    to the split of its folders (``train_images/``), else to train. If a split has a file, its images without a row are
    left out, but those of test kept without a label; a split without a file has class folders.
    """
    if not listing.images:
        raise ValueError(f"data.path: {root} holds no images, so data.labels and data.label_pattern have no use")
    listing, text = without_marked(listing, same=not data.label_pattern)
    unread = [name for name in listing.others if ignored.is_unread_image(name)]
    notes = ([f"{root}: {text}"] if text else []) + ignored.notes(root, unread, "images")
    images = ImageFiles(root, listing, folder_splits(root, listing.images))
    given = _by_pattern(images, data.label_pattern, notes) if data.label_pattern else _by_files(images, data, notes)
    parts = {}
    for split in ("train", "val", "test"):
        if rows := sorted(row for row, one in given.items() if one.split == split):
            part = files(root, [listing.images[row] for row in rows], [given[row].label for row in rows])
            parts[split] = replace(part, origin=", ".join(dict.fromkeys(given[row].how for row in rows)))
    return RawSplits(parts, notes)


def read_labelled(path: str, data: config.Data) -> RawSplits:
    """:func:`read_labels` of a path, which must be a folder of image files."""
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path: there is no file or folder {path}")
    if not root.is_dir() or tables.is_saved(root):
        raise ValueError(
            f"data.labels and data.label_pattern are for folders of image files, which {path} is not: "
            "a table has its labels in a column, data.label_column"
        )
    return read_labels(root, scan(root), data)


def _by_pattern(images: ImageFiles, pattern: str, notes: list[str]) -> dict[int, Given]:
    names, splits = images.names, images.splits
    given, without, how = {}, [], f"file names, {pattern}"
    elsewhere = "" if "train" in splits else "train"  # beside train/, other folders are no training images
    for row, name in enumerate(names):
        base = unicodedata.normalize("NFC", name.rpartition("/")[2])
        found = re.match(pattern, base)
        label = (found[1] or "").strip() if found else ""
        if split := splits[row] or elsewhere:
            given[row] = Given(split, label or None, how)
            without += [name] if split != "test" and not label else []
    if without:
        raise ValueError(
            f"data.label_pattern: {pattern!r} finds no class in the names of {len(without)} of {len(names)} images in "
            f"{images.root}, e.g. {without[0]!r}: its group must match in each, from the start of the name"
        )
    stray = [name for row, name in enumerate(names) if row not in given]
    _leave_out(images.root, stray, "outside train/, val/ and test/", notes)
    return _with_test(given)


def _by_files(images: ImageFiles, data: config.Data, notes: list[str]) -> dict[int, Given]:
    root, names, splits = images.root, images.names, images.splits
    given: dict[int, Given] = {}
    for text in data.labels:
        found = read_file(images, find_file(root, text, images.listing, data), data, notes)
        _add(given, found, names, notes)
    covered = {one.split for one in given.values()}
    rest = [row for row in range(len(splits)) if row not in given]
    stray = [names[row] for row in rest if splits[row] in ("", *covered - {"test"})]
    _leave_out(root, stray, f"without a row in {', '.join(data.labels)}", notes)
    tree, others = Tree(root, names), dict[int, Given]()
    for row in rest:
        if (split := splits[row]) == "test" or (split and split not in covered):
            label = None if split in covered else class_folder(tree, names[row], split)
            others[row] = Given(split, label, "folders")
    _reject_unlabelled(root, others, names)
    return _with_test(given | others, keep="test" in covered)


def read_file(images: ImageFiles, file: LabelFile, data: config.Data, notes: list[str]) -> list[tuple[int, Given]]:
    """Rows of ``images`` with their entries in a label file, in its order; a row may appear several times.

    ValueError if the file is ambiguous or lacks labels.
    """
    table, file, matched = _match_table(images, file, data)
    values = _values(table, matched.column, data.label_column, file.split)
    by_row = _row_splits(table, matched.column, values.what, file, data, notes)
    how = f"{file.name}: ids in column {table.names[matched.column]}, labels: {values.what or 'none'}"
    found, missing = [], []
    for place, rows in enumerate(matched.images):
        for row in rows:
            split = file.split or (by_row[place] if by_row else "") or images.splits[row] or "train"
            label = values.classes[place] if values.what else ""
            missing += [] if label or split == "test" else [place]
            found.append((row, Given(split, label or None, how, file.name, table.lines[place])))
    ids = table.columns[matched.column]
    _reject_test_images(images, file, found)
    if missing:
        raise ValueError(
            f"data.labels: {len(missing)} rows of {file.name} have no label, e.g. line {table.lines[missing[0]]} (id "
            f"{ids[missing[0]][:60]!r}, {values.what}): fill or remove them"
            + "; -1 is read as unknown: give a class of that name another one"
            * bool(values.negative)
        )
    if values.negative:
        notes.append(
            f"{file.name}: {values.negative:,} of {len(table):,} rows have -1 in {values.what}: no label known"
        )
    nowhere = [place for place, rows in enumerate(matched.images) if not rows]
    if nowhere:
        example = f"line {table.lines[nowhere[0]]} ({ids[nowhere[0]][:60]!r})"
        notes.append(f"{file.name}: {len(nowhere)} of {len(table)} rows name no image, e.g. {example}: ignored")
    return found


def _reject_test_images(images: ImageFiles, file: LabelFile, found: Sequence[tuple[int, Given]]) -> None:
    """ValueError where a file that is for train by its name alone names images in a folder of test."""
    wrong = [row for row, one in found if one.split == "train" and images.splits[row] == "test"]
    if wrong and file.split == "train" and not file.asked:
        raise ValueError(
            f"data.labels: {len(wrong):,} of {len(found):,} rows of {file.name} name images of test, e.g. "
            f"{images.names[wrong[0]]}: remove these rows, or, to train on them all the same: "
            f"--data.labels train={file.name}"
        )


def _row_splits(table: Table, ids: int, labels: str, file: LabelFile, data: config.Data, notes: list[str]) -> list[str]:
    """The split of each row by the file's columns; empty if there are none or the file is for one split."""
    used = split_columns(table, (data.id_column, data.label_column, table.names[ids]), file.split)
    if file.split and used:
        names = listed([table.names[column] for column in used])
        notes.append(f"{file.name}: all rows are {file.split}, as in data.labels: column {names} is not used")
    for column in unused_columns(table, used):
        name = table.names[column]
        if column != ids and labels != f"column {name}" and not labels.endswith("one 1 in each row"):
            cells = listed(sorted(set(table.columns[column]), key=natural)[:3])
            notes.append(f"{file.name}: column {name} ({cells}, ...) holds no splits and is not used; to set them: "
                         "--data.labels train=FILE val=FILE")  # fmt: skip
    return split_values(table, used) if used and not file.split else []


def _match_table(images: ImageFiles, file: LabelFile, data: config.Data) -> tuple[Table, LabelFile, Matched]:
    """The table with its header, if it has one; the file without a split if its rows have splits."""
    table = read_table(file.path, file.name)
    headed = table if table.headed or len(table) < 2 else table.with_header()
    wanted = [name for name in (data.id_column, data.label_column) if name]
    by_row = split_columns(headed, wanted, file.split)
    if not file.asked and by_row:
        file = replace(file, split="")
    if (
        is_named(headed, by_row)
        or any(has_column(headed, name) or not name.isdigit() for name in wanted)
        or has_usual_names(headed)
    ):
        table = headed
    column = column_named(table, data.id_column, "id-column") if data.id_column else None
    matched = _matched(images, file, table, column)
    if not table.headed and not matched.images[0] and not looks_like_id(table.columns[matched.column][0]):
        table, matched = table.with_header(), Matched(matched.column, matched.images[1:])
    _check_clear(images, file, table, matched)
    return table, file, matched


def _check_clear(images: ImageFiles, file: LabelFile, table: Table, matched: Matched) -> None:
    """ValueError for ids of several images, with how to make them unique."""
    names = images.names
    unclear = [place for place, rows in enumerate(matched.images) if len(rows) > 1]
    if unclear:
        several = matched.images[unclear[0]]
        shown = " and ".join(repr(names[row]) for row in several[:2])
        one = f"name the split of the file: --data.labels train={file.name}"
        if file.split or all(images.splits[row] in ("", "train") for row in several):  # naming it would change nothing
            inside = next(names[row].partition("/")[0] for row in several if "/" in names[row])
            place = shlex.quote(os.path.abspath(file.path))
            one = f"name the images' folder alone, e.g. {path_option(images.root / inside)} --data.labels {place}"
        raise ValueError(
            f"data.labels: {len(unclear)} ids of {file.name} are the names of several images, e.g. "
            f"{table.columns[matched.column][unclear[0]]!r} (line {table.lines[unclear[0]]}) of {shown}: write "
            f"folders and endings into the ids, or {one}"
        )


def _matched(images: ImageFiles, file: LabelFile, table: Table, column: int | None) -> Matched:
    """The images of each row: among those below the file's folder, of its split, or all; the first that has half."""
    root, names, splits = images.root, images.names, images.splits
    fits = [row for row in range(len(names)) if not file.split or splits[row] in ("", file.split)]
    below = [row for row in fits if names[row].startswith(file.folder)]
    best: Matched | None = None
    for pool in dict.fromkeys((tuple(below), tuple(fits), tuple(range(len(names))))):
        found = match(table, ImageNames(str(root), names, pool), column)
        if found and (best is None or _hits(found) > _hits(best)):
            best = found
        if best and _hits(best) * 2 >= len(table):
            break
    if best is None:
        heads = (table if table.headed else table.with_header()).names
        likely = [heads.index(name) for name in ID_NAMES if name in heads]
        shown = column if column is not None else [*likely, 0][0]
        raise ValueError(
            f"data.labels: {file.name} names no image of {root}: its ids look like {table.columns[shown][-1][:60]!r} "
            f"(column {heads[shown]}, line {table.lines[-1]}), a file like {names[0]!r}; name the column of "
            f"the ids with --data.id-column, of {listed(heads)}"
        )
    return best


def _hits(matched: Matched) -> int:
    return sum(map(bool, matched.images))


def _values(table: Table, ids: int, wanted: str, split: str) -> Values:
    """The classes; a file for test may have none."""
    if split == "test" and wanted and not has_column(table, wanted):
        return Values(what="")
    values = class_values(table, ids, wanted)
    if not values.what and split != "test":
        raise ValueError(
            f"data.labels: cannot find the labels in {table.name}: name their column with --data.label-column, of "
            f"{listed(table.names)}"
        )
    return values


def _add(given: dict[int, Given], found: Iterable[tuple[int, Given]], names: Sequence[str], notes: list[str]) -> None:
    """ValueError for rows of one image that differ; equal ones count once, with a note."""
    again = []
    for row, one in found:
        known = given.setdefault(row, one)
        if known is one:
            continue
        if (known.label, known.split) != (one.label, one.split):
            raise ValueError(
                f"data.labels: {names[row]} is {known.label!r} in {known.split} by {known.file}, line {known.line}, "
                f"and {one.label!r} in {one.split} by {one.file}, line {one.line}: each image needs one label and one "
                "split"
            )
        again.append((known, one))
    if again:
        known, one = again[0]
        notes.append(f"{len(again)} rows repeat an image with the same label: used once, e.g. {known.file}, line "
                     f"{known.line} and {one.file}, line {one.line}")  # fmt: skip


def _leave_out(root: Path, names: Sequence[str], why: str, notes: list[str]) -> None:
    if names:
        notes.append(f"{root}: {len(names)} images {why} left out, e.g. {names[0]}; move images to predict into test/")


def _reject_unlabelled(root: Path, given: Mapping[int, Given], names: Sequence[str]) -> None:
    for split in ("train", "val"):
        rows = [row for row, one in given.items() if one.split == split and one.label is None]
        if rows:
            raise ValueError(
                f"data.labels: {len(rows)} images of {root} are {split} by their folders and have neither a row nor a "
                f"class folder, e.g. {names[rows[0]]}: add the label file of {split} (--data.labels takes several), or "
                "remove them"
            )


def _with_test(given: dict[int, Given], keep: bool = False) -> dict[int, Given]:
    """Test images keep labels from their folders or names only if one of these is a class of train."""
    classes = {one.label for one in given.values() if one.split == "train"}
    if keep or classes & {one.label for one in given.values() if one.split == "test"} - {None}:
        return given
    return {row: one._replace(label=None) if one.split == "test" else one for row, one in given.items()}
