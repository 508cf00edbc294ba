"""Encoded images by row, many at a time: what the loader reads, whatever the images are kept in."""

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from cls.data.sampler import BlockSampler, Sampler
from cls.runtime.exit import DataError
from cls.transforms.decode import CorruptImageError

T = TypeVar("T")
Encoded = bytes | memoryview | CorruptImageError
"""The bytes of an image file, or why there are none."""
PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN",
        "EHOSTDOWN",
        "EIO",
        "EMFILE",
        "ENFILE",
        "ENOMEM",
        "ENOTCONN",
        "EREMOTEIO",
        "ESTALE",
        "ETIMEDOUT",
    )
}
"""Faults of the file system or the machine: an image that another stands in for would make the weights depend on them.
"""
LOOKED_AT = 1000  # paths at a time: those of all as Python's strings would take 150 bytes each, and stay so
PAUSES = (0.2, 1.0, 5.0)  # seconds before another try


class Images(Protocol):
    """Labelled images by row. A broken image is a value; only where the file system fails reading is a DataError."""

    labels: np.ndarray
    """Class index of each row, -1 unknown."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """The stable id of an image."""

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        """The encoded images of these rows, in this order."""

    def sampler(self, seed: int, balanced: bool) -> Sampler | BlockSampler:
        """The row of each training sample index."""


class Blocks(Protocol):
    """Images that lie in blocks, each of which is cheap to read as a whole; rows are counted through all blocks."""

    counts: np.ndarray
    """Rows of each block."""

    def name(self, row: int) -> str: ...

    def read(self, rows: Sequence[int]) -> list[Encoded]: ...

    def identity(self) -> list[Any]:
        """What the images are known by, besides counts and labels, in JSON's terms."""

    def sizes(self) -> np.ndarray:
        """Bytes of each image, int64, as far as known without reading them; of none: empty."""


class Indexed:
    """Images of a Hugging Face dataset (columns image, label, id), whose Arrow tables are mapped, not read."""

    def __init__(self, rows: Dataset) -> None:
        self._rows, self._places = rows, _places(rows)
        self.labels = column(rows, "label").to_numpy()
        self._chunks = rows.data.column("image").chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return str(self._rows.data.column("id")[self._place(row)].as_py())

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        """A few us an image besides the file system's own time; bytes in Arrow are not copied."""
        found = []
        for row in rows:
            place = self._place(row)
            chunk = int(np.searchsorted(self._starts, place, "right")) - 1
            found.append(encoded(self._chunks[chunk], place - int(self._starts[chunk])))
        return found

    def sampler(self, seed: int, balanced: bool) -> Sampler:
        return Sampler(self.labels, seed, balanced)

    def _place(self, row: int) -> int:
        return row if self._places is None else int(self._places[row])


class Stream:
    """Labelled images in blocks, in a computed order that needs few blocks at a time."""

    def __init__(self, blocks: Blocks, labels: np.ndarray) -> None:
        assert len(labels) == blocks.counts.sum()
        self.blocks, self.labels = blocks, labels
        self.name, self.read = blocks.name, blocks.read

    def __len__(self) -> int:
        return len(self.labels)

    def sampler(self, seed: int, balanced: bool) -> BlockSampler:
        assert not balanced  # cls.validate: it would need all blocks at once
        return BlockSampler(self.blocks.counts, seed)


def images_of(rows: Dataset | Images) -> Images:
    """A split as images by row."""
    return Indexed(rows) if isinstance(rows, Dataset) else rows


def column(rows: Dataset, name: str) -> pa.ChunkedArray:
    """A column in row order, without a Python object for each value."""
    found, places = rows.data.column(name), _places(rows)
    return found if places is None else found.take(pa.array(places))


def files_of(rows: Dataset) -> pa.ChunkedArray:
    """Where the file of each image lies, in row order; null where the table has its bytes."""
    chunks = rows.data.column("image").chunks
    inside = [(images.field("bytes").is_valid(), images.field("path")) for images in chunks]
    found = pa.chunked_array([pc.if_else(here, pa.scalar(None, pa.string()), path) for here, path in inside])
    places = _places(rows)
    return found if places is None else found.take(pa.array(places))


def sizes_of(rows: Dataset) -> pa.ChunkedArray:
    """Of each image's bytes, in row order, without reading them; null where they lie in a file of their own."""
    chunks = rows.data.column("image").chunks
    found = pa.chunked_array([pc.binary_length(images.field("bytes")) for images in chunks])
    places = _places(rows)
    return found if places is None else found.take(pa.array(places))


def image_sizes(rows: Dataset | Stream) -> np.ndarray:
    """Bytes of each image, int64, -1 of a file that is not there; empty where blocks do not know them.

    No image is read: one look at each image file, 2.6 us where the kernel knows it and what a file server takes where
    it does not; the offsets of those in tables. 8 bytes of memory an image.
    """
    if isinstance(rows, Stream):
        known: np.ndarray = rows.blocks.sizes()
        return known
    chunks, places = rows.data.column("image").chunks, _places(rows)
    found = np.full(len(rows), -1, dtype=np.int64)
    if any(images.field("bytes").null_count < len(images) for images in chunks):
        found[:] = pc.fill_null(sizes_of(rows), -1).to_numpy()
    paths = pa.chunked_array([images.field("path") for images in chunks])  # of all rows of the table, not copied
    for start in range(0, len(found), LOOKED_AT):
        missing = start + np.flatnonzero(found[start : start + LOOKED_AT] < 0)
        where = missing if places is None else places[missing]
        for row, path in zip(missing.tolist(), paths.take(pa.array(where)).to_pylist(), strict=True):
            found[row] = -1 if path is None else file_size(path)
    return found


def _places(rows: Dataset) -> np.ndarray | None:
    """Where the rows of a selection lie in its table; None: in order. What datasets offers gathers row by row."""
    if rows._indices is None:
        return None
    places: np.ndarray = rows._indices.column(0).to_numpy()
    return places


def fingerprint(rows: Dataset | Stream) -> str:
    """What a split's images are, by id (or file and place) and label, however the columns are cut into chunks."""
    digest = hashlib.sha256()
    if isinstance(rows, Stream):
        digest.update(json.dumps(rows.blocks.identity()).encode())
        digest.update(rows.blocks.counts.astype("<i8").tobytes())
        digest.update(rows.labels.astype("<i8").tobytes())
        return digest.hexdigest()
    lengths, ids = hashlib.sha256(), column(rows, "id")
    for start in range(0, len(ids), 10_000):  # a joined copy of all would stay with the allocator
        for piece in ids.slice(start, 10_000).chunks:
            lengths.update(pc.binary_length(piece).to_numpy(zero_copy_only=False).astype("<i4").tobytes())
            digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(piece)], piece), "")[0].as_buffer())
    digest.update(lengths.digest())
    digest.update(column(rows, "label").to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def encoded(images: pa.Array, place: int) -> Encoded:
    """An image in an Arrow column of ``{bytes, path}`` or plain binary; its bytes are not copied."""
    content = images.field("bytes") if isinstance(images, pa.StructArray) else images
    if (data := content[place]).is_valid:
        return memoryview((data.value if isinstance(data, pa.DictionaryScalar) else data).as_buffer()).cast("B")
    has_path = isinstance(images, pa.StructArray) and images.type.get_field_index("path") >= 0
    return _file(images.field("path")[place]) if has_path else b""


def pread(path: str, offset: int, size: int) -> Encoded:
    """A part of a file."""
    data = _opened(path, lambda descriptor: os.pread(descriptor, size, offset))
    if isinstance(data, CorruptImageError) or len(data) == size:
        return data
    return CorruptImageError(f"cannot be read: {path} has changed since the start")


def file_size(path: str) -> int:
    """Bytes; -1 of what is not there or may not be looked at. DataError where the file system fails."""
    found = _tried(path, lambda: os.stat(path).st_size)
    return -1 if isinstance(found, CorruptImageError) else found


def _opened(path: str, take: Callable[[int], Encoded]) -> Encoded:
    """The file is opened each time (5 us), so that no worker inherits a descriptor."""

    def work() -> Encoded:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
        try:
            return take(descriptor)
        finally:
            os.close(descriptor)

    return _tried(path, work)


def _tried(path: str, work: Callable[[], T]) -> T | CorruptImageError:
    """What ``work`` gives; what fails for a moment only is tried again."""
    for pause in (*PAUSES, 0.0):
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                return CorruptImageError(f"cannot be read: {error.strerror}")
            why = error.strerror
        time.sleep(pause)
    raise DataError(
        f"{path} cannot be read ({why}, {len(PAUSES) + 1} times within {sum(PAUSES):.0f} s), which is the fault of the "
        "machine, not of the image: run the same command when it works again, or remove this file"
    )


def _file(path: pa.Scalar) -> Encoded:
    return _opened(path.as_py(), _whole) if path.is_valid else b""


def _whole(descriptor: int) -> Encoded:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return CorruptImageError("is no regular file")  # a device would be read without end
    with open(descriptor, "rb", closefd=False, buffering=0) as file:
        return file.read()
