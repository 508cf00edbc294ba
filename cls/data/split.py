"""A split whose labels are not yet numbered by the run's class list, and the columns of all datasets."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value

from cls.data.readers import Blocks

SPLITS = {
    "train": "train", "training": "train", "validation": "val", "val": "val", "valid": "val", "validate": "val",
    "dev": "val", "eval": "val", "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip
"""Names of folders and of a data set's splits, the usual ones first; split_words.py finds them in longer names."""
COLUMNS = {"image": Image(decode=False), "id": Value("string")}


@dataclass(frozen=True)
class Split:
    """One split, with labels numbered as in its source."""

    images: Dataset | Blocks  # a Dataset has the columns image (undecoded) and id
    codes: np.ndarray  # int: index into names for each row, -1 unknown
    names: tuple[str, ...]
    unlabelled_hint: str = ""  # what to do about missing labels
    origin: str = ""  # its folder or files
    files: tuple[str, ...] = ()  # the local tables it was read from

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def unlabelled(self) -> int:
        return int((self.codes < 0).sum())

    @property
    def present(self) -> list[str]:
        """The classes that have images here."""
        return [self.names[code] for code in np.flatnonzero(np.bincount(self.codes[self.codes >= 0], minlength=1))]


class RawSplits(NamedTuple):
    """The splits of a source, before labels are numbered by one class list."""

    parts: dict[str, Split]
    notes: list[str]  # what is left out or decided, a line each, printed at every start
    ignored: str = ""  # what is left out, in short


def normal(name: str) -> str:
    """A class name in NFC: "é" as one letter, or as "e" with an accent, is the same name."""
    return unicodedata.normalize("NFC", name)


def merged(codes: np.ndarray, names: Iterable[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and names in NFC; names that differ in their Unicode form only are one class."""
    forms = [normal(name) for name in names]
    places = {name: place for place, name in enumerate(dict.fromkeys(forms))}
    if len(places) == len(forms):
        return codes, tuple(forms)
    numbers = np.array([*(places[name] for name in forms), -1], dtype=codes.dtype)  # code -1 is the last
    return numbers[codes], tuple(places)


def coded(labels: Sequence[str | None] | pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and names (NFC) of class names by row; null is unknown."""
    if not isinstance(labels, pa.ChunkedArray):
        labels = pa.chunked_array([pa.array(labels, pa.string())])
    found = labels.dictionary_encode().combine_chunks()  # one dictionary for all chunks
    if isinstance(found, pa.ChunkedArray):  # if there is no chunk
        found = pa.array([], pa.string()).dictionary_encode()
    return merged(pc.fill_null(found.indices, -1).to_numpy(zero_copy_only=False), found.dictionary.to_pylist())


def dataset(images: pa.Array, ids: pa.Array, fingerprint: str) -> Dataset:
    """Undecoded images and their ids; computing the fingerprint of datasets would take longer."""
    return Dataset(pa.table([images, ids], schema=Features(COLUMNS).arrow_schema), fingerprint=fingerprint)
