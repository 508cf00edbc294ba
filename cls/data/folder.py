"""A folder of image files as a Hugging Face dataset.

An own walk: 0.3 s for 30,000 files, where ``load_dataset("imagefolder")`` takes 14 to 18 s at every launch and drops
the label column when one file lies deeper than the others. What it finds is kept by index.py.
"""

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cls.data.part import SPLITS, Part, coded, dataset
from cls.images.decode import EXTENSIONS
from cls.paths import name_problem

TABLES = (".parquet", ".arrow", ".tar", ".tgz", ".tar.gz")
"""File name endings that tables.py reads."""


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key with numbers as numbers: "2" before "10"; the text itself breaks ties ("1" and "01")."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], name


class Stamp(NamedTuple):
    """A folder as it was before its names were read: another stamp, other names."""

    path: str  # below the root, as it was walked; "" is the root itself
    changed_ns: int
    inode: int
    device: int


@dataclass(frozen=True)
class Listing:
    """Relative paths with "/" below one root, naturally sorted; hidden files are not listed."""

    images: list[str]
    tables: list[str]
    others: list[str]  # neither images nor tables
    folders: list[Stamp]
    dangling: bool  # a link to nothing, which may be a folder later without a trace in the folders' stamps


def stamp(root: str | Path, path: str) -> Stamp:
    status = os.stat(f"{root}/{path}")
    # ctime: cp -a, rsync and tar set the other time of change to what it was elsewhere, nobody can set this one
    return Stamp(path, status.st_ctime_ns, status.st_ino, status.st_dev)


def scan(root: Path) -> Listing:
    """Walk a folder and, through symbolic links, its subfolders. A folder that cannot be read is a ValueError."""
    images: list[str] = []
    tables: list[str] = []
    folders: list[Stamp] = []
    others: list[str] = []
    dangling = False
    root = Path(os.path.realpath(root))
    pending = [(root, "", frozenset((str(root),)))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            folders.append(stamp(root, prefix))  # before the names: one that comes meanwhile makes it stale
            for entry in os.scandir(folder):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if real not in above:  # a link to a folder above would be walked for ever
                        pending.append((Path(real), f"{prefix}{entry.name}/", above | {real}))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    images.append(prefix + entry.name)
                elif entry.name.lower().endswith(TABLES):
                    tables.append(prefix + entry.name)
                else:
                    others.append(prefix + entry.name)
                    dangling |= entry.is_symlink() and not os.path.exists(entry.path)
        except OSError as error:
            raise ValueError(f"data.path: cannot read folder {folder}: {error.strerror}") from None
    for name in (*images, *tables):
        if not name.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in name):  # surrogates
            raise ValueError(f"data.path: the file name {name!r} in {root} {name_problem()}")
    return Listing(sorted(images, key=natural), sorted(tables, key=natural), sorted(others, key=natural), folders, dangling)


def files(root: Path, names: list[str], labels: Sequence[str | None]) -> Part:
    """Image files by their paths relative to ``root``, which become their ids."""
    ids = pa.array(names, pa.string())
    paths = pc.binary_join_element_wise(str(root.absolute()), ids, "/")
    return _part(ids, paths, f"files-{root.absolute()}", labels)


def listed(names: list[str]) -> Part:
    """Unlabelled image files, there or not, by paths relative to the working directory, which are their ids as given.

    A path that is given twice is a ValueError; one that is not UTF-8 cannot be read, and is shown with \\xNN.
    """
    names = [name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in names]
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if lines.setdefault(name, line) != line:
            raise ValueError(f"{name!r} is given twice, as path {lines[name]} and {line}: pass them through sort -u")
    paths = pa.array([os.path.abspath(name) for name in names], pa.string())
    fingerprint = hashlib.sha256("\0".join(paths.to_pylist()).encode()).hexdigest()
    return _part(pa.array(names, pa.string()), paths, f"list-{fingerprint[:32]}", [None] * len(names))


def _part(ids: pa.Array, paths: pa.Array, fingerprint: str, labels: Sequence[str | None]) -> Part:
    images = pa.StructArray.from_arrays([pa.nulls(len(ids), pa.binary()), paths], ["bytes", "path"])
    return Part(dataset(images, ids, fingerprint), *coded(labels))


class Found(NamedTuple):
    parts: dict[str, Part]
    notes: list[tuple[int, str]]  # what is left out, which is told at every start: level and text


def read(root: Path, listing: Listing) -> Found:
    """The splits of a folder: ``train/ val/ test/`` (SPLITS), or only class folders (all of it is train).

    Labels are the names of the class folders; files may lie deeper inside them. The test folder may be flat, or have
    subfolders that are no classes: its images are then unlabelled. Everything else is a ValueError.
    """
    notes: list[tuple[int, str]] = []
    if listing.others:
        notes.append((logging.INFO, f"{root}: {len(listing.others)} files that are no images ignored"))
    # A class may be called "train": it is the split only if it has folders (classes) inside.
    holders = {name.split("/")[0] for name in listing.images if name.count("/") > 1}
    if not any(SPLITS.get(name.lower()) == "train" for name in holders):
        _refuse_splits(root, {name.split("/")[0] for name in listing.images if "/" in name}, holders)
        return Found({"train": _class_folders(root, listing.images, 0, notes)}, notes)
    groups: dict[str, list[str]] = {}
    folders: dict[str, set[str]] = {}
    for name in listing.images:
        top = name.split("/")[0]
        split = SPLITS.get(top.lower()) if "/" in name else None
        groups.setdefault(split or "", []).append(name)
        folders.setdefault(split or "", set()).add(top)
    if stray := groups.pop("", []):
        text = f"{root}: {len(stray)} images outside train/, val/ and test/ ignored, e.g. {stray[0]}"
        notes.append((logging.WARNING, text))
    for split, tops in folders.items():
        if split and len(tops) > 1:
            raise ValueError(f"data.path: {root} has {' and '.join(sorted(tops))}; keep one folder for {split}")
    _refuse_empty(root, groups)
    parts = {split: _class_folders(root, names, 1, notes) for split, names in groups.items() if split != "test"}
    if "test" in groups:
        parts["test"] = _test_folder(root, groups["test"], set(parts["train"].names))
    return Found(parts, notes)


def _refuse_splits(root: Path, tops: set[str], holders: set[str]) -> None:
    """Splits would be classes. ``holders``: those top folders that have folders with images."""
    splits = {name for name in tops if name.lower() in SPLITS}
    if tops and (tops == splits or splits & holders):
        raise ValueError(
            f"data.path: {root} has {', '.join(sorted(splits))} but no train/ with class folders; "
            "expected train/<class>/..., or class folders only"
        )
    alike = {name for name in holders if re.search(r"(^|[^a-z])(train|val|test)", name.lower())}
    if alike and alike == tops:
        raise ValueError(
            f"data.path: {root} has {', '.join(sorted(alike))}, which are splits by their names, and classes inside: "
            "call them train, val and test"
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: one broken image, not a broken data set


def _refuse_empty(root: Path, groups: dict[str, list[str]]) -> None:
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        split = SPLITS.get(entry.name.lower())
        if split and entry.is_dir() and split not in groups:
            raise ValueError(f"data.path: {entry.path} holds no images; fill it or remove it")


def _class_folders(root: Path, names: list[str], depth: int, notes: list[tuple[int, str]]) -> Part:
    inside = [name for name in names if name.count("/") > depth]
    where = f"{root}/{names[0].rsplit('/', 1)[0]}" if depth and names else f"{root}"
    if not inside:
        raise ValueError(f"data.path: {where} has no class folders with images; expected <class>/<image> inside it")
    if len(inside) < len(names):
        text = f"{where}: {len(names) - len(inside)} images outside the class folders ignored"
        notes.append((logging.WARNING, text))
    return files(root, inside, [name.split("/")[depth] for name in inside])


def _test_folder(root: Path, names: list[str], classes: set[str]) -> Part:
    """Labelled if any subfolder is a class; then a subfolder that is none is an unknown class, found later."""
    labels = [name.split("/")[1] if name.count("/") > 1 else None for name in names]
    if not classes.intersection(label for label in labels if label):
        labels = [None] * len(names)
    return files(root, names, labels)
