"""Split words in the names of files and folders, and what a name says besides."""

import os
import re
import shlex
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from cls.data.split import SPLITS
from cls.runtime.console import printable

GENERIC = frozenset((
    "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pic", "pics", "data", "dataset",
    "set", "folder", "dir", "split", "splits", "file", "files", "jpg", "jpeg", "png",
))  # fmt: skip
"""Words that say nothing of what is in a folder."""
KINDS = frozenset((
    "raw", "resized", "cropped", "crop", "full", "small", "original", "clean", "final", "sample", "samples",
))  # fmt: skip
"""Words that beside a split's say which kind of it."""
MARKED = frozenset((
    "annotation", "annotations", "mask", "masks", "label", "labels", "trimap", "trimaps", "segmentation",
    "segmentations", "meta", "bbox", "bboxes", "boxes", "xml", "xmls", "lists", "attributes", "parts",
    "thumbnails", "thumbs",
))  # fmt: skip
"""Words of folders that hold something about the images."""
UNUSED = frozenset((
    "extra", "pred", "preds", "prediction", "predictions", "unlabeled", "unlabelled", "unsupervised",
))  # fmt: skip
"""Words of images without labels, or beside the splits: never training images."""
SHORT = {"trn": "train", "tst": "test"}
"""Short split words that only count where names differ in nothing else."""
WHOLE = {"tr": "train", "te": "test"}
"""The same, but only as words of their own: many words begin or end so."""
ALL_WORDS = SPLITS | SHORT | WHOLE
MANY = 8
_RUN = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_HELD = re.compile(r"h[eo]ld[\W_]?out", re.IGNORECASE)
_JOINED = re.compile(rf"({'|'.join(SPLITS)})(?:set|data|images|imgs)")


def words(name: str) -> list[str]:
    """Words of a name in lower case: everything but a letter parts them, and a capital after small letters.

    "train2017", "TrainSet" and "imagenet1k-train-0000.tar" have the word train; "latest" has
    not, and "trainval" is of two splits.
    """
    found: list[str] = []
    for run in _RUN.findall(_HELD.sub(" holdout ", name)):
        found += _CAMEL.findall(run) if run.isascii() else [run]
    return [word.lower() for word in found]


def split_word(word: str) -> str:
    """The split word that a word is, also with "set", "data" or "images" after it; else empty."""
    joined = _JOINED.fullmatch(word)
    found = joined[1] if joined else word
    return found if found in SPLITS else ""


def _splits(word: str) -> tuple[str, ...]:
    if word in ("trainval", "trainvalid"):
        return "train", "val"
    found = split_word(word)
    return (SPLITS[found],) if found else ()


def splits_in(name: str) -> set[str]:
    """The splits whose words are in a name of one file or folder."""
    return {split for word in words(name) for split in _splits(word)}


def _cuts(name: str) -> set[tuple[tuple[str, ...], str]]:
    """What remains of a name's words where a split word is cut out of the start or the end of one, and that word."""
    found, cuts = words(name), set()
    for place, word in enumerate(found):
        pieces = {(rest, piece) for piece in (*SPLITS, *SHORT)
                  for rest in (word.removesuffix(piece), word.removeprefix(piece)) if rest != word}  # fmt: skip
        for rest, piece in pieces | ({("", word)} if word in WHOLE else set()):
            cuts.add((tuple(one for one in (*found[:place], rest, *found[place + 1 :]) if one), piece))
    return cuts


def glued(names: Iterable[str]) -> dict[str, str]:
    """Names that are equal but for a split word in them, train's among others: mnisttrain, mnisttest, and x_trn, x_tst.

    The first such family alone, the split word of each. Ordinary words that hold one are none: strain, contest.
    """
    families: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        for rest, word in sorted(_cuts(name)):
            families.setdefault(rest, {}).setdefault(name, word)
    for found in families.values():
        splits = {ALL_WORDS[word] for word in found.values()}
        if "train" in splits and len(splits) > 1:
            return found
    return {}


def refuse_glued(root: Path, base: str, folders: dict[str, set[str]]) -> None:
    """ValueError for folders of such a family that hold the same folders, two or more: they are splits, no classes."""
    found = glued(folders)
    same = set.intersection(*(folders[name] for name in found)) if found else set()
    if len(same) > 1:
        places = {ALL_WORDS[word]: f"{base}/{name}".lstrip("/") for name, word in found.items()}
        raise ValueError(
            f"data.path: {printable(str(root / base))} has {printable(some(found, MANY))}, by their names and folders "
            f"splits: {links(root, dict(sorted(places.items())))}"
        )


def besides(name: str) -> list[str]:
    """The words of a name that are no split's."""
    return [word for word in words(name) if not _splits(word)]


def class_beside(name: str) -> str:
    """What a name says besides its split: "cat" of "train_cat", "cat1" of "cat1-train"."""
    return "_".join(p for p in re.split(r"[\W_]+", name) if p and not splits_in(p)) or "_".join(besides(name))


def split_name(name: str) -> str:
    """The split that a folder's name says and nothing else: "val", "test1", "train_images"; else empty."""
    found = splits_in(name)
    return found.pop() if len(found) == 1 and (GENERIC | KINDS).issuperset(besides(name)) else ""


def is_no_class(name: str) -> bool:
    """Whether a folder's name is of images in general, of annotations or of images without labels."""
    found = words(name)
    return bool(found) and (is_unused(name) or (GENERIC | MARKED).issuperset(found))


def is_generic(name: str) -> bool:
    """Whether a folder's name is of images in general."""
    found = words(name)
    return bool(found) and GENERIC.issuperset(found)


def is_unused(name: str) -> bool:
    """Whether a name is of images without labels, or beside the splits."""
    return not UNUSED.isdisjoint(words(name))


def path_option(path: str | Path) -> str:
    return f"--data.path {shlex.quote(str(path))}"


def new_folder(root: Path, why: str) -> str:
    """A folder, not there yet, that a printed command makes where it is typed; inside the data: beside these."""
    real, here = os.path.realpath(root), os.path.realpath(os.curdir)
    name = f"{os.path.basename(real) or 'data'}-{why}"
    inside = os.path.commonpath((real, here)) == real
    name = os.path.join(os.path.relpath(os.path.dirname(real), here), name) if inside else name
    names = (name if n == 1 else f"{name}-{n}" for n in count(1))
    return next(each for each in names if not os.path.lexists(each))


def links(root: Path, folders: dict[str, str]) -> str:
    """Commands that give folders other names (new name -> path below the root) without a copy, and the option then."""
    real, to = os.path.realpath(root), new_folder(root, "split")
    made = [to, *sorted({f"{to}/{os.path.dirname(new)}" for new in folders if "/" in new})]
    steps = [f"mkdir {' '.join(map(shlex.quote, made))}"]
    steps += [
        f"ln -s {shlex.quote(os.path.join(real, old))} {shlex.quote(f'{to}/{new}')}" for new, old in folders.items()
    ]
    return f"{' && '.join(steps)}, then {path_option(to)}"


def without(root: Path, names: Iterable[str], to: str = "") -> str:
    """Commands that make a tree of links without these files or folders, and the option then.

    ``to`` is where, else a new folder where they are typed.
    Names that differ in numbers only are taken out by one pattern: their words are the same.
    """
    to = to or new_folder(root, "clear")
    patterns = sorted({re.sub(r"[0-9]+", "*", name) for name in names})
    if len(patterns) > MANY:  # one in each of many class folders
        patterns = sorted({_wide(pattern.split("/")) for pattern in patterns})
    out = " ".join("/".join((shlex.quote(to), _quoted(pattern))) for pattern in patterns)
    return f"cp -rLs {shlex.quote(os.path.realpath(root))} {shlex.quote(to)} && rm -r {out}, then {path_option(to)}"


def _wide(parts: list[str]) -> str:
    return "/".join(
        [*(parts[:1] if len(parts) > 2 else ()), *("*" for _ in parts[1 if len(parts) > 2 else 0 : -1]), parts[-1]]
    )


def _quoted(pattern: str) -> str:
    return "*".join(shlex.quote(piece) if piece else "" for piece in pattern.split("*"))


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first names and how many more there are."""
    found = list(names)
    more = f" and {len(found) - shown:,} more" if len(found) > shown else ""
    return ", ".join(found[:shown]) + more
