"""Which files of tables, or which named splits of a data set, are train, val and test."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cls.data.split import SPLITS
from cls.data.split_words import (
    ALL_WORDS,
    MANY,
    glued,
    is_unused,
    links,
    path_option,
    some,
    split_word,
    splits_in,
    without,
    words,
)
from cls.runtime.console import printable

TABLES = (".parquet", ".arrow", ".tar", ".tgz", ".tar.gz")
"""File name endings that tables.py reads."""


class Grouped(NamedTuple):
    kind: str  # file name ending
    paths: dict[str, list[str]]  # of each split
    notes: list[str]  # what is left out


def kind_of(name: str) -> str:
    return next(kind for kind in TABLES if name.lower().endswith(kind))


def grouped(root: Path, names: Sequence[str]) -> Grouped:
    """Files of one kind by split: its word may stand anywhere in the path, as a word of its own (names.words).

    Files without such a word are train if all are, and so is a single file whose name says nothing clear. Files of
    images without labels (``unlabeled-0.tar``, ``extra``) beside others are left out. What is unclear is a ValueError.
    """
    _refuse_kinds(root, names)
    wrap = _wrap(names)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_role(name[len(wrap) :]), []).append(name)
    inner = glued(found.get("none", []))
    for name, word in inner.items():
        found["none"].remove(name)
        found.setdefault(ALL_WORDS[word], []).append(name)
    found = {role: own for role, own in found.items() if own}
    splits: dict[str, list[str]] = {split: found[split] for split in ("train", "val", "test") if split in found}
    if len(names) == 1 and not splits:
        found = splits = {"train": list(names)}
    unused = found.get("unused", [])
    if not splits and not found.get("both"):
        splits = {"train": found.get("none", unused)}
        found = {"unused": unused} if "none" in found else {}
    elif wrong := [*found.get("none", []), *found.get("both", [])]:
        texts = {"none": "no split in the name", "both": "several splits in the name", "unused": "left out"}
        listed = "; ".join(f"{texts.get(role, role)}: {printable(some(own, 8))}" for role, own in found.items())
        raise ValueError(
            f"data.path: cannot tell the split of {printable(str(root / wrong[0]))}; {listed}; name each train-, val- "
            f"or test-...{_way_out(root, splits, wrong)}"
        )
    inside = {split: [name[len(wrap) :] for name in own] for split, own in splits.items()}
    _refuse_sets(root / wrap, inside)
    _refuse_starts(root / wrap, inside)
    _refuse_words(root / wrap, inside, inner)
    notes = []
    if unused and "unused" in found:
        notes.append(
            f"{printable(str(root))}: {len(unused):,} files of no split left out: {printable(some(unused))}; for "
            f"predictions: cls predict RUN {shlex.quote(str(root / unused[0]))}"
        )
    return Grouped(kind_of(names[0]), {split: [str(root / n) for n in own] for split, own in splits.items()}, notes)


def _way_out(root: Path, splits: dict[str, list[str]], wrong: Sequence[str]) -> str:
    """What to do with files of no clear split, where training files remain or some of them may be those."""
    if "train" in splits:
        return f", or leave the unclear ones out: {without(root, wrong)}"
    train = [name for name in wrong if any("train" in splits_in(part) for part in name.split("/"))]
    found = {"train": train, **splits}
    files = {f"{split}-{i}{kind_of(name)}": name for split, own in found.items() for i, name in enumerate(own)}
    return f", or train on what has train in its name: {links(root, files)}" if train and len(files) <= MANY else ""


def _wrap(names: Sequence[str]) -> str:
    """The folder around all files, with "/" at its end, where the names inside it say every file's split."""
    shared = os.path.commonpath([os.path.dirname(name) for name in names]).split("/")
    for count in range(len(shared), 0, -1):
        wrap = "".join(f"{part}/" for part in shared[:count])
        roles = {_role(name[len(wrap) :]) for name in names} if wrap != "/" else {"none"}
        if "none" not in roles and roles & {*SPLITS.values()}:
            return wrap
    return ""


def _refuse_sets(root: Path, splits: dict[str, list[str]]) -> None:
    """Several data sets side by side: files of one split have its word below different folders."""
    places = {split: {name: _place(name) for name in names} for split, names in splits.items()}
    several = next((list(dict.fromkeys(found.values())) for found in places.values() if len({*found.values()}) > 1), [])
    if not several:
        return
    first = min(places.get("train", places[next(iter(places))]).values(), key=lambda place: len(Path(place).parts))
    found = [(name, place) for own in places.values() for name, place in own.items()]
    if any(f"{place}/".startswith(f"{first}/" if first else "") for _, place in found if place != first):
        option = f"leave the other files out: {without(root, [name for name, place in found if place != first])}"
    else:
        option = f"point at one: {path_option(root / first)}"
    listed = printable(some([place or "the folder itself" for place in several]))
    raise ValueError(f"data.path: {printable(str(root))} has several sets side by side, {listed}; {option}")


def _refuse_starts(root: Path, splits: dict[str, list[str]]) -> None:
    """Several data sets in one folder: mnist_train, mnist_test, fashion_train, fashion_test."""
    starts: dict[str, set[str]] = {}
    for split, names in splits.items():
        for name in names:
            starts.setdefault(_start(name), set()).add(split)
    several = [start for start, found in starts.items() if "train" in found and len(found) > 1]
    if len(several) > 1:
        others = [name for names in splits.values() for name in names if _start(name) != several[0]]
        raise ValueError(
            f"data.path: {printable(str(root))} has several sets side by side, of files named "
            f"{printable(some(start or 'by the split alone' for start in several))}; leave the other files out: "
            f"{without(root, others)}"
        )


def _start(name: str) -> str:
    """The words before the split's in the first part of a path that has one."""
    found = words(next((part for part in name.split("/") if splits_in(part)), ""))
    return " ".join(found[: next((i for i, word in enumerate(found) if splits_in(word)), 0)])


def _refuse_words(root: Path, splits: dict[str, list[str]], inner: dict[str, str]) -> None:
    """Two names for one split: val.parquet and valid.parquet may be one file twice, or two sets."""
    for split, names in splits.items():
        found = {name: inner.get(name) or _word(name) for name in names}
        several = [word for word in ALL_WORDS if word in found.values()]  # the usual one first
        if len(several) > 1:
            others = [name for name, word in found.items() if word != several[0]]
            raise ValueError(
                f"data.path: {printable(str(root))} has files named {' and '.join(several)}; keep one name for "
                f"{split}: {without(root, others)}"
            )


def _word(name: str) -> str:
    """The first split word in a file's path."""
    return next((found for part in name.split("/") for word in words(part) if (found := split_word(word))), "")


def _place(name: str) -> str:
    """The path above the first part of a file's path that has a split's word."""
    parts = name.split("/")
    return "/".join(parts[: next((i for i, part in enumerate(parts) if splits_in(part)), 0)])


def beside_pictures(tables: Sequence[str], images: Sequence[str]) -> bool:
    """Whether tables have training images by their names, and no folder of image files has a split's word."""
    folders = {part for name in images for part in name.split("/")[:-1]}
    return any(_role(name) == "train" for name in tables) and not any(map(splits_in, folders))


def given(names: Sequence[str]) -> Grouped:
    """Tables that a command line names, whatever folders they lie in: the deepest name with a split's word decides."""
    _refuse_kinds(Path(), names)
    paths: dict[str, list[str]] = {}
    for name in names:
        deepest = next((found for part in reversed(Path(name).parts) if (found := splits_in(part))), {"train"})
        paths.setdefault(deepest.pop() if len(deepest) == 1 else "train", []).append(name)
    return Grouped(kind_of(names[0]), paths, [])


def _refuse_kinds(root: Path, names: Sequence[str]) -> None:
    kinds = sorted({kind_of(name) for name in names})
    if len(kinds) > 1:
        most = max(kinds, key=lambda kind: sum(kind_of(name) == kind for name in names))
        others = [name for name in names if kind_of(name) != most]
        raise ValueError(
            f"data.path: {printable(str(root))} mixes {' and '.join(kinds)} files; point at one kind, e.g. {most}: "
            f"{without(root, others)}"
        )


def _role(name: str) -> str:
    """train, val or test; "unused" for images without labels; "both" where a path says several things, or "none"."""
    parts = re.sub(rf"({'|'.join(map(re.escape, TABLES))})$", "", name, flags=re.IGNORECASE).split("/")
    found = {split for part in parts for split in splits_in(part)}
    marked = any(map(is_unused, parts))
    if not found:
        return "unused" if marked else "none"
    if len(found) > 1 or (marked and (found != {"test"} or "pred" in "".join(words(name)))):
        return "both"
    return found.pop()


class Chosen(NamedTuple):
    names: dict[str, str]  # split -> its name in the data set
    notes: list[str]


def chosen(names: Iterable[str], where: str) -> Chosen:
    """The named splits of a data set that are train, val and test; of several for one the most usual name."""
    known = list(names)
    rank = list(SPLITS)
    found: dict[str, str] = {}
    for name in sorted((name for name in known if name.lower() in SPLITS), key=lambda name: rank.index(name.lower())):
        found.setdefault(SPLITS[name.lower()], name)
    left = [name for name in known if name not in found.values()]
    note = f"{where}: {len(left)} splits left out: {printable(some(left, 8))}; used are {', '.join(found.values())}"
    return Chosen({split: found[split] for split in ("train", "val", "test") if split in found}, [note] if left else [])


def origin(paths: Sequence[str]) -> str:
    """Which files, for a line about a start."""
    names = [os.path.basename(path) for path in paths]
    return printable(names[0] if len(names) == 1 else f"{len(names):,} files, {names[0]} to {names[-1]}")
