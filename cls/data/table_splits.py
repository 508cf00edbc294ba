"""Which table files, or which named splits of a data set, are train, val and test."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cls.data.fixes import MANY, links, path_option, some, without
from cls.data.split import SPLITS
from cls.data.split_words import ALL_WORDS, glued, is_unused, split_word, splits_in, words
from cls.runtime.console import printable

TABLES = (".parquet", ".arrow", ".tar", ".tgz", ".tar.gz")  # file name endings that tables.py reads


class Grouped(NamedTuple):
    kind: str  # file name ending
    paths: dict[str, list[str]]  # of each split
    notes: list[str]  # what is left out


def kind_of(name: str) -> str:
    return next(kind for kind in TABLES if name.lower().endswith(kind))


def grouped(root: Path, names: Sequence[str]) -> Grouped:
    """Files of one kind by split: a split word may be anywhere in the path (split_words.words).

    If no file has one, all are train; so is a single file with an unclear name. Files of images without labels
    (``unlabeled-0.tar``, ``extra``) beside others are left out. An unclear file is a ValueError.
    """
    _reject_kinds(root, names)
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
            f"data.path: the split of {printable(str(root / wrong[0]))} is not clear; {listed}; name each train-, val- "
            f"or test-...{_way_out(root, splits, wrong)}"
        )
    inside = {split: [name[len(wrap) :] for name in own] for split, own in splits.items()}
    _reject_several(root / wrap, inside, inner)
    notes = []
    if unused and "unused" in found:
        notes.append(
            f"{printable(str(root))}: {len(unused):,} files of no split left out: {printable(some(unused))}; for "
            f"predictions: cls predict RUN {shlex.quote(str(root / unused[0]))}"
        )
    return Grouped(kind_of(names[0]), {split: [str(root / n) for n in own] for split, own in splits.items()}, notes)


def _way_out(root: Path, splits: dict[str, list[str]], wrong: Sequence[str]) -> str:
    """How to continue with files of no clear split, if there are training files or some of these may be."""
    if "train" in splits:
        return f", or leave the unclear ones out: {without(root, wrong)}"
    train = [name for name in wrong if any("train" in splits_in(part) for part in name.split("/"))]
    found = {"train": train, **splits}
    files = {f"{split}-{i}{kind_of(name)}": name for split, own in found.items() for i, name in enumerate(own)}
    return f", or train on what has train in its name: {links(root, files)}" if train and len(files) <= MANY else ""


def _wrap(names: Sequence[str]) -> str:
    """The folder around all files, ending with "/", if the paths inside it have every file's split; else empty."""
    shared = os.path.commonpath([os.path.dirname(name) for name in names]).split("/")
    for count in range(len(shared), 0, -1):
        wrap = "".join(f"{part}/" for part in shared[:count])
        roles = {_role(name[len(wrap) :]) for name in names} if wrap != "/" else {"none"}
        if "none" not in roles and roles & {*SPLITS.values()}:
            return wrap
    return ""


def _reject_several(root: Path, splits: dict[str, list[str]], inner: dict[str, str]) -> None:
    """ValueError for several data sets side by side: in different folders, or with different words around the split's.

    Two names of one split (val.parquet, valid.parquet) may be one file twice, or two sets. ``inner``: split words found
    inside of other words.
    """
    where, places = printable(str(root)), {name: _before(name)[0] for names in splits.values() for name in names}
    folders = [list(dict.fromkeys(places[name] for name in names)) for names in splits.values()]
    if several := next((own for own in folders if len(own) > 1), []):
        own = splits.get("train") or next(iter(splits.values()))
        first = min((places[name] for name in own), key=lambda place: len(Path(place).parts))
        others = [name for name, place in places.items() if place != first]
        if any(f"{places[name]}/".startswith(f"{first}/" if first else "") for name in others):
            option = f"leave the other files out: {without(root, others)}"
        else:
            option = f"point at one: {path_option(root / first)}"
        listed = printable(some([place or "the folder itself" for place in several]))
        raise ValueError(f"data.path: {where} has several sets side by side, {listed}; {option}")
    starts: dict[str, set[str]] = {}
    for split, names in splits.items():
        for name in names:
            starts.setdefault(_before(name)[1], set()).add(split)
    sets = [start for start, found in starts.items() if "train" in found and len(found) > 1]
    if len(sets) > 1:  # mnist_train, mnist_test, fashion_train, fashion_test
        raise ValueError(
            f"data.path: {where} has several sets side by side, of files named "
            f"{printable(some(start or 'by the split alone' for start in sets))}; leave the other files out: "
            f"{without(root, [name for name in places if _before(name)[1] != sets[0]])}"
        )
    for split, names in splits.items():
        named = {name: inner.get(name) or _word(name) for name in names}
        known = [word for word in ALL_WORDS if word in named.values()]  # the usual one first
        if len(known) > 1:
            raise ValueError(
                f"data.path: {where} has files named {' and '.join(known)}; keep one name for {split}: "
                f"{without(root, [name for name, word in named.items() if word != known[0]])}"
            )


def _before(name: str) -> tuple[str, str]:
    """Of the first part of a file's path with a split word: the path above, and the words in the part before it."""
    parts = name.split("/")
    place = next((i for i, part in enumerate(parts) if splits_in(part)), None)
    if place is None:
        return "", ""
    found = words(parts[place])
    return "/".join(parts[:place]), " ".join(found[: next((i for i, word in enumerate(found) if splits_in(word)), 0)])


def _word(name: str) -> str:
    """The first split word in a file's path."""
    return next((found for part in name.split("/") for word in words(part) if (found := split_word(word))), "")


def with_pictures(tables: Sequence[str], images: Sequence[str]) -> bool:
    """Whether a table's name means training images, and no folder of image files has a split word."""
    folders = {part for name in images for part in name.split("/")[:-1]}
    return any(_role(name) == "train" for name in tables) and not any(map(splits_in, folders))


def given(names: Sequence[str]) -> Grouped:
    """Tables named on a command line: the deepest part of the path with a split word decides."""
    _reject_kinds(Path(), names)
    paths: dict[str, list[str]] = {}
    for name in names:
        deepest = next((found for part in reversed(Path(name).parts) if (found := splits_in(part))), {"train"})
        paths.setdefault(deepest.pop() if len(deepest) == 1 else "train", []).append(name)
    return Grouped(kind_of(names[0]), paths, [])


def _reject_kinds(root: Path, names: Sequence[str]) -> None:
    kinds = sorted({kind_of(name) for name in names})
    if len(kinds) > 1:
        most = max(kinds, key=lambda kind: sum(kind_of(name) == kind for name in names))
        others = [name for name in names if kind_of(name) != most]
        raise ValueError(
            f"data.path: {printable(str(root))} mixes {' and '.join(kinds)} files; point at one kind, e.g. {most}: "
            f"{without(root, others)}"
        )


def _role(name: str) -> str:
    """train, val or test; "unused" for images without labels; "both" for a path with several meanings, or "none"."""
    parts = re.sub(rf"({'|'.join(map(re.escape, TABLES))})$", "", name, flags=re.IGNORECASE).split("/")
    found = {split for part in parts for split in splits_in(part)}
    marked = any(map(is_unused, parts))
    if not found:
        return "unused" if marked else "none"
    if len(found) > 1 or (marked and (found != {"test"} or "pred" in "".join(words(name)))):
        return "both"
    return found.pop()


def chosen(names: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The names of train, val and test in a data set, of several the most usual, and a note on splits left out."""
    known = list(names)
    rank = list(SPLITS)
    found: dict[str, str] = {}
    for name in sorted((name for name in known if name.lower() in SPLITS), key=lambda name: rank.index(name.lower())):
        found.setdefault(SPLITS[name.lower()], name)
    left = [name for name in known if name not in found.values()]
    note = f"{where}: {len(left)} splits left out: {printable(some(left, 8))}; used are {', '.join(found.values())}"
    return {split: found[split] for split in ("train", "val", "test") if split in found}, [note] if left else []


def origin(paths: Sequence[str]) -> str:
    """Which files, for the start's summary line."""
    names = [os.path.basename(path) for path in paths]
    return printable(names[0] if len(names) == 1 else f"{len(names):,} files, {names[0]} to {names[-1]}")


def reject_split_column(columns: Mapping[str, pa.ChunkedArray]) -> None:
    """ValueError for a column of a table for training by which its rows are of several splits."""
    for name, values in columns.items():
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            continue
        counts = {each["values"]: each["counts"] for each in pc.value_counts(values.combine_chunks()).to_pylist()}
        if len({split for cell in counts for split in splits_in(cell or "")}) > 1:
            shown = some(f"{cell} ({count:,})" for cell, count in counts.items())
            raise ValueError(
                f"data.path: column {name!r} of a table for training holds several splits, {shown}: write each into a "
                f"table of its own, called train.parquet and so on: pandas.read_parquet(TABLE).groupby({name!r})"
            )
