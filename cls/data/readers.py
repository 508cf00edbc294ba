"""Encoded images by row, from any kind of storage."""

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
Encoded = bytes | memoryview | CorruptImageError  # the bytes of an image file, or why there are none
TRANSIENT = {
    errno.EAGAIN, errno.EHOSTDOWN, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN,
    errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
"""Faults of the file system or machine: replacing the image would make the weights depend on them."""
LOOKED_AT = 1000  # paths at a time: as Python strings, all of them would take 150 bytes each
PAUSES = (0.2, 1.0, 5.0)  # seconds before another try


class Images(Protocol):
    """Labelled images by row. A corrupt image is a value; a failing file system is a DataError."""

    labels: np.ndarray  # class index of each row, -1 unknown

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """The stable id of an image."""

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        """The encoded images of these rows, in this order."""

    def sampler(self, seed: int, balanced: bool) -> Sampler | BlockSampler:
        """The row of each training sample index."""


class Blocks(Protocol):
    """Images in blocks that are cheap to read as a whole; rows are counted through all blocks."""

    counts: np.ndarray  # rows of each block

    def name(self, row: int) -> str: ...

    def read(self, rows: Sequence[int]) -> list[Encoded]: ...

    def identity(self) -> list[Any]:
        """What identifies the images, besides counts and labels; JSON values."""

    def sizes(self) -> np.ndarray:
        """Bytes of each image, int64; empty if unknown without reading them."""


class Indexed:
    """Images of a Hugging Face dataset (columns image, label, id) with memory-mapped Arrow tables."""

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
        """A few us an image beyond the file system's time; bytes in Arrow are not copied."""
        found = []
        for row in rows:
            chunk, place = locate(self._starts, self._place(row))
            found.append(encoded(self._chunks[chunk], place))
        return found

    def sampler(self, seed: int, balanced: bool) -> Sampler:
        return Sampler(self.labels, seed, balanced)

    def _place(self, row: int) -> int:
        return row if self._places is None else int(self._places[row])


class Stream:
    """Labelled images in blocks, sampled few blocks at a time."""

    def __init__(self, blocks: Blocks, labels: np.ndarray) -> None:
        assert len(labels) == blocks.counts.sum()
        self.blocks, self.labels = blocks, labels
        self.name, self.read = blocks.name, blocks.read

    def __len__(self) -> int:
        return len(self.labels)

    def sampler(self, seed: int, balanced: bool) -> BlockSampler:
        assert not balanced  # cls.validate: it would need all blocks at once
        return BlockSampler(self.blocks.counts, seed)


def locate(starts: np.ndarray, row: int) -> tuple[int, int]:
    """Which of the parts that begin at ``starts`` has a row, and its position there."""
    part = int(np.searchsorted(starts, row, "right")) - 1
    return part, row - int(starts[part])


def images_of(rows: Dataset | Images) -> Images:
    """A split as images by row."""
    return Indexed(rows) if isinstance(rows, Dataset) else rows


def column(rows: Dataset, name: str) -> pa.ChunkedArray:
    """A column in row order, without a Python object for each value."""
    return _in_row_order(rows, rows.data.column(name))


def _in_row_order(rows: Dataset, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """``values`` of a table's rows, for the rows of a selection."""
    places = _places(rows)
    return values if places is None else values.take(pa.array(places))


def files_of(rows: Dataset) -> pa.ChunkedArray:
    """Path of each image's file, in row order; null if the table has its bytes."""
    chunks = rows.data.column("image").chunks
    inside = [(images.field("bytes").is_valid(), images.field("path")) for images in chunks]
    paths = [pc.if_else(here, pa.scalar(None, pa.string()), path) for here, path in inside]
    return _in_row_order(rows, pa.chunked_array(paths))


def sizes_of(rows: Dataset) -> pa.ChunkedArray:
    """Bytes of each image, in row order, without reading them; null if it has a file of its own."""
    sizes = [pc.binary_length(images.field("bytes")) for images in rows.data.column("image").chunks]
    return _in_row_order(rows, pa.chunked_array(sizes))


def image_sizes(rows: Dataset | Stream) -> np.ndarray:
    """Bytes of each image, int64, -1 for a missing file; empty if blocks do not know them.

    Reads no image: one stat per image file, 2.6 us if cached by the kernel; offsets for tables. 8 bytes of memory an
    image.
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
    """Table rows of a selection; None: all in order. The API of datasets gathers row by row."""
    if rows._indices is None:
        return None
    places: np.ndarray = rows._indices.column(0).to_numpy()
    return places


def fingerprint(rows: Dataset | Stream) -> str:
    """Hash of a split's ids (or files and places) and labels, independent of how columns are chunked."""
    digest = hashlib.sha256()
    if isinstance(rows, Stream):
        digest.update(json.dumps(rows.blocks.identity()).encode())
        digest.update(rows.blocks.counts.astype("<i8").tobytes())
        digest.update(rows.labels.astype("<i8").tobytes())
        return digest.hexdigest()
    lengths, ids = hashlib.sha256(), column(rows, "id")
    for start in range(0, len(ids), 10_000):  # the allocator would keep a joined copy of all
        for chunk in ids.slice(start, 10_000).chunks:
            lengths.update(pc.binary_length(chunk).to_numpy(zero_copy_only=False).astype("<i4").tobytes())
            digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(chunk)], chunk), "")[0].as_buffer())
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
    """Bytes; -1 if it is missing or not accessible. DataError where the file system fails."""
    found = _tried(path, lambda: os.stat(path).st_size)
    return -1 if isinstance(found, CorruptImageError) else found


def _opened(path: str, take: Callable[[int], Encoded]) -> Encoded:
    """Opens the file each time (5 us), so that no worker inherits a descriptor."""

    def work() -> Encoded:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # does not wait for a pipe
        try:
            return take(descriptor)
        finally:
            os.close(descriptor)

    return _tried(path, work)


def _tried(path: str, work: Callable[[], T]) -> T | CorruptImageError:
    """The result of ``work``; transient faults are retried."""
    for pause in (*PAUSES, 0.0):
        try:
            return work()
        except OSError as error:
            if error.errno not in TRANSIENT:
                return CorruptImageError(f"cannot be read: {error.strerror}")
            why = error.strerror
        time.sleep(pause)
    raise DataError(
        f"{path} cannot be read ({why}, {len(PAUSES) + 1} times within {sum(PAUSES):.0f} s): a fault of the machine, "
        "not of the image; run the same command again when it is fixed. Without this file they are other images, which "
        "need another --out"
    )


def _file(path: pa.Scalar) -> Encoded:
    return _opened(path.as_py(), _whole) if path.is_valid else b""


def _whole(descriptor: int) -> Encoded:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return CorruptImageError("is no regular file")  # a device would be read without end
    with open(descriptor, "rb", closefd=False, buffering=0) as file:
        return file.read()
