"""Label options to add to a command: for images outside class folders, and for `cls evaluate` of a run's images."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cls.config import Data
from cls.data.folders.image_folder import Listing, natural, scan
from cls.data.labels.files import candidates, find_file, folder_splits, without_marked
from cls.data.labels.read import ImageFiles, read_file, read_labelled, read_labels
from cls.data.labels.table import FILES
from cls.data.labels.values import UnclearColumnError
from cls.data.readers import column

LOOKED_AT, LARGEST, SEVERAL = 20, 50_000_000, 6
"""Files opened for a hint, the largest one's bytes, and files named in it."""
PATTERNS = (r"(.+)_\d+", r"(.+)-\d+", r"(.+)\.\d+", r"(.+) \d+", r"(.+) ?\(\d+\)", r"(\D+)\d+", r"([^_]+)_")
"""Of file names with a class and a number, the simplest first."""


@contextmanager
def hinted(path: str, data: Data, classes: Collection[str] = ()) -> Iterator[None]:
    """Without label options, adds the label files beside the images to a ValueError from inside."""
    try:
        yield
    except ValueError as error:
        root = Path(path).expanduser()
        if data.own_labels or not root.is_dir():
            raise
        hint = label_hint(root, scan(root), classes)
        raise ValueError(f"{error}; {hint}" if hint else str(error)) from None


def label_hint(root: Path, listing: Listing, classes: Collection[str] = ()) -> str:
    """``train.csv looks like labels of 1,024 of the 1,024 images: add --data.labels train.csv``; "" if nothing does.

    The options have been tried: they give training images of two classes, or labels that are all in ``classes``. Opens
    at most LOOKED_AT files, only when a start fails.
    """
    if not listing.images:
        return ""
    clear, plain = without_marked(listing, same=True)[0], without_marked(listing, same=False)[0]
    images = ImageFiles(root, clear, folder_splits(root, clear.images))
    return _files_hint(images, classes) or _pattern_hint(root, plain, classes)


def _files_hint(images: ImageFiles, classes: Collection[str]) -> str:
    """The files that label most images, no image in two of them."""
    root, listing, _ = images
    near = candidates(listing.others) or [f"../{name}" for name in candidates(_files_above(root))]
    tried = {name: found for name in near[:LOOKED_AT] if (found := _tried(images, name))}
    chosen: list[str] = []
    for name in sorted(tried, key=lambda name: (bool(tried[name].columns), -len(tried[name].images))):
        if not any(tried[name].images & tried[other].images for other in chosen):
            chosen.append(name)
    best, most = "", 0
    for count in range(1, min(len(chosen), SEVERAL) + 1):
        names = chosen[:count]
        unclear = next((tried[name].columns for name in names if tried[name].columns), ())
        data = Data(path=str(root), labels=tuple(names), label_column=unclear[0] if unclear else "")
        if (used := _labelled(root, listing, data, classes)) <= most:
            continue
        labelled, most = sum(len(tried[name].images) for name in names), used
        words = ["--data.labels", *names] + (["--data.label-column", unclear[0]] if unclear else [])
        others = f", or {' or '.join(unclear[1:])}" if unclear else ""
        best = (
            f"{' and '.join(names)} {'looks' if count == 1 else 'look'} like labels of {labelled:,} of the "
            f"{len(images.names):,} images: add {shlex.join(words)}{others}"
        )
    return best


def _files_above(root: Path) -> list[str]:
    """Label files in the parent folder: data.path may name the folder of the images alone."""
    try:
        return sorted(path.name for path in (root / "..").iterdir() if path.name.lower().endswith(FILES))
    except OSError:
        return []


class _Tried(NamedTuple):
    images: set[int]  # with a label in the file
    columns: tuple[str, ...]  # that may hold the labels, the one tried first; () if the column is clear


def _tried(images: ImageFiles, name: str) -> _Tried | None:
    wanted: tuple[str, ...] = ("",)
    unclear: tuple[str, ...] = ()
    while wanted:
        data = Data(path=str(images.root), label_column=wanted[0])
        try:
            file = find_file(images.root, name, images.listing, data)
            if file.path.stat().st_size > LARGEST:
                return None
            found = read_file(images, file, data, [])
        except UnclearColumnError as error:
            wanted = unclear = error.columns
        except (ValueError, OSError):
            wanted = unclear = unclear[1:]
        else:
            known = {row for row, given in found if given.label is not None}
            return _Tried(known, unclear) if known else None
    return None


def _labelled(root: Path, listing: Listing, data: Data, classes: Collection[str]) -> int:
    """How many images have a label with these options; 0 if they do not work."""
    try:
        parts = read_labels(root, listing, data).parts
    except ValueError:
        return 0
    names = {split: set(part.present) for split, part in parts.items()}
    if classes:
        return sum(map(len, parts.values())) if len(parts) == 1 and {*names.popitem()[1]} <= set(classes) else 0
    train = names.get("train", set())
    if not 2 <= len(train) <= len(parts["train"]) / 2 or not all(known <= train for known in names.values()):
        return 0
    return sum(len(part) - part.unlabelled for part in parts.values())


def _pattern_hint(root: Path, listing: Listing, classes: Collection[str]) -> str:
    """A pattern for names such as great_pyrenees_12.jpg; a class of one image would be a number."""
    splits = folder_splits(root, listing.images)
    names = [name for name, split in zip(listing.images, splits, strict=True) if split != "test"] or listing.images
    for pattern in PATTERNS:
        found = [re.match(pattern, name.rpartition("/")[2]) for name in names]
        counts = Counter(one[1] if one else "" for one in found)
        if "" in counts or len(counts) < 2 or min(counts.values()) < 2 or any(map(str.isdigit, counts)):
            continue
        if _labelled(root, listing, Data(path=str(root), label_pattern=pattern), classes):
            shown = ", ".join(sorted(counts, key=natural)[:3]) + (", ..." if len(counts) > 3 else "")
            option = shlex.join(["--data.label-pattern", pattern])
            return f"the files' names look like {len(counts)} classes ({shown}): add {option}"
    return ""


def evaluate_options(data: Data, image: str, classes: Collection[str]) -> str:
    """PATH and options, quoted, for `cls evaluate` of the split that has the image with id ``image``.

    They have been tried: all of the run's label files or one of them, for data.path or the image's folder in it, give
    one split whose labels are all in ``classes``. If none does, FOLDER and the option's name.
    """
    root, path = Path(data.path).expanduser(), data.path.rstrip("/")
    top, _, rest = image.partition("/")
    places = [(data.path, image, data.labels)]
    if rest:
        places.append((f"{path}/{top}", rest, tuple(_absolute(root, text) for text in data.labels)))
    for count in (len(data.labels), 1):
        for place, name, labels in places:
            for start in range(len(labels) // count if count else 1):
                tried = replace(data, path=place, labels=labels[start * count : (start + 1) * count])
                if _works(tried, name, classes):
                    return " ".join((shlex.quote(place), *_words(tried)))
    return "FOLDER --data.labels FILE"


def _absolute(root: Path, text: str) -> str:
    """A word of data.labels with the file's absolute path."""
    before, mark, name = text.rpartition("=")
    inside = root / Path(name).expanduser()
    return f"{before}{mark}{os.path.abspath(inside if inside.is_file() else name)}"


def _works(data: Data, image: str, classes: Collection[str]) -> bool:
    try:
        parts = list(read_labelled(data.path, data).parts.values())
    except ValueError:
        return False
    if len(parts) != 1 or parts[0].unlabelled or not set(parts[0].present) <= set(classes):
        return False
    return image in column(parts[0].images, "id").to_pylist()


def _words(data: Data) -> list[str]:
    found = ["--data.labels", *data.labels] if data.labels else []
    for option, value in (("label-pattern", data.label_pattern), ("label-column", data.label_column),
                          ("id-column", data.id_column)):  # fmt: skip
        found += [f"--data.{option}", value] if value else []
    return [shlex.quote(word) for word in found]
