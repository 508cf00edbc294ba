"""Split words (train, val, test and synonyms) in the names of files and folders, and the other words of a name."""

import re
from collections.abc import Iterable

from cls.data.split import SPLITS

GENERIC = frozenset((
    "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pic", "pics", "data", "dataset",
    "set", "folder", "dir", "split", "splits", "file", "files", "jpg", "jpeg", "png",
))  # fmt: skip
"""Words that say nothing about a folder's content."""
KINDS = frozenset((
    "raw", "resized", "cropped", "crop", "full", "small", "original", "clean", "final", "sample", "samples",
))  # fmt: skip
"""Words that beside a split word name a variant of the split."""
MARKED = frozenset((
    "annotation", "annotations", "mask", "masks", "label", "labels", "trimap", "trimaps", "segmentation",
    "segmentations", "meta", "bbox", "bboxes", "boxes", "xml", "xmls", "lists", "attributes", "parts",
    "thumbnails", "thumbs",
))  # fmt: skip
"""Words of folders with annotations of images."""
UNUSED = frozenset((
    "extra", "pred", "preds", "prediction", "predictions", "unlabeled", "unlabelled", "unsupervised",
))  # fmt: skip
"""Words of folders whose images are never for training: without labels, or outside the splits."""
SHORT = {"trn": "train", "tst": "test"}  # short split words, which only count where names differ in nothing else
WHOLE = {"tr": "train", "te": "test"}  # the same, but only as whole words: many words begin or end so
ALL_WORDS = SPLITS | SHORT | WHOLE
_RUN = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_HELD = re.compile(r"h[eo]ld[\W_]?out", re.IGNORECASE)
_JOINED = re.compile(rf"({'|'.join(SPLITS)})(?:set|data|images|imgs)")


def words(name: str) -> list[str]:
    """Words of a name in lower case, split at everything but letters and at a capital after small letters.

    "train2017", "TrainSet" and "imagenet1k-train-0000.tar" have the word train, "latest" has not; "trainval" means two
    splits.
    """
    found: list[str] = []
    for run in _RUN.findall(_HELD.sub(" holdout ", name)):
        found += _CAMEL.findall(run) if run.isascii() else [run]
    return [word.lower() for word in found]


def split_word(word: str) -> str:
    """The split word that a word is, alone or before "set", "data" or "images"; else empty."""
    joined = _JOINED.fullmatch(word)
    found = joined[1] if joined else word
    return found if found in SPLITS else ""


def _splits(word: str) -> tuple[str, ...]:
    if word in ("trainval", "trainvalid"):
        return "train", "val"
    found = split_word(word)
    return (SPLITS[found],) if found else ()


def splits_in(name: str) -> set[str]:
    """The splits whose words are in the name of a file or folder."""
    return {split for word in words(name) for split in _splits(word)}


def _cuts(name: str) -> set[tuple[tuple[str, ...], str]]:
    """Each split word at the start or end of a word of a name, with the words that remain without it."""
    found, cuts = words(name), set()
    for place, word in enumerate(found):
        parts = {(rest, split) for split in (*SPLITS, *SHORT)
                 for rest in (word.removesuffix(split), word.removeprefix(split)) if rest != word}  # fmt: skip
        for rest, split in parts | ({("", word)} if word in WHOLE else set()):
            cuts.add((tuple(one for one in (*found[:place], rest, *found[place + 1 :]) if one), split))
    return cuts


def glued(names: Iterable[str]) -> dict[str, str]:
    """Names that differ in a split word only, train's among them (mnisttrain, mnisttest; x_trn, x_tst), and the word.

    Only the first such family. Ordinary words that contain a split word form none: strain, contest.
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


def other_words(name: str) -> list[str]:
    """The words of a name that are no split words."""
    return [word for word in words(name) if not _splits(word)]


def class_in_name(name: str) -> str:
    """A name without its split word: "cat" of "train_cat", "cat1" of "cat1-train"."""
    return "_".join(p for p in re.split(r"[\W_]+", name) if p and not splits_in(p)) or "_".join(other_words(name))


def split_name(name: str) -> str:
    """The split that a folder's name means, if it means nothing else: "val", "test1", "train_images"; else empty."""
    found = splits_in(name)
    return found.pop() if len(found) == 1 and (GENERIC | KINDS).issuperset(other_words(name)) else ""


def is_no_class(name: str) -> bool:
    """Whether a folder's name means images in general, annotations or images without labels."""
    found = words(name)
    return bool(found) and (is_unused(name) or (GENERIC | MARKED).issuperset(found))


def is_generic(name: str) -> bool:
    """Whether a folder's name means images in general."""
    found = words(name)
    return bool(found) and GENERIC.issuperset(found)


def is_unused(name: str) -> bool:
    """Whether a name means images without labels, or outside the splits."""
    return not UNUSED.isdisjoint(words(name))
