"""One split of the data before its labels are numbered, and the columns that all datasets here have."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value

from cls.data.access import Blocks

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
"""Names of folders, of the beginnings of files, and of a data set's splits."""
COLUMNS = {"image": Image(decode=False), "id": Value("string")}


@dataclass(frozen=True)
class Part:
    """One split whose labels are still numbered as its source does it."""

    images: Dataset | Blocks  # a Dataset has the columns image (undecoded) and id
    codes: np.ndarray  # int: index into names for each row, -1 where the class is unknown
    names: tuple[str, ...]
    columns: tuple[str, ...] = ()  # of the table it was read from, for messages
    files: tuple[str, ...] = ()  # the tables it was read from, where they are files here

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def unlabelled(self) -> int:
        return int((self.codes < 0).sum())

    @property
    def present(self) -> list[str]:
        """The classes that have images here."""
        return [self.names[code] for code in np.flatnonzero(np.bincount(self.codes[self.codes >= 0], minlength=1))]


def coded(labels: Sequence[str | None] | pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and names of class names by row; null is unknown."""
    if not isinstance(labels, pa.ChunkedArray):
        labels = pa.chunked_array([pa.array(labels, pa.string())])
    found = labels.dictionary_encode().combine_chunks()  # one dictionary for all chunks
    if isinstance(found, pa.ChunkedArray):  # what combining no chunk at all gives
        found = pa.array([], pa.string()).dictionary_encode()
    return pc.fill_null(found.indices, -1).to_numpy(zero_copy_only=False), tuple(found.dictionary.to_pylist())


def dataset(images: pa.Array, ids: pa.Array, fingerprint: str) -> Dataset:
    """Undecoded images and their ids; hashing the columns for a fingerprint of datasets' own would take longer."""
    features = Features(COLUMNS)
    table = pa.table([images, ids], schema=features.arrow_schema)
    return Dataset(table, fingerprint=fingerprint)
