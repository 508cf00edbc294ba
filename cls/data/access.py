"""Encoded images by row, many at a time: what the loader reads, whatever the images are kept in."""

import os
import stat
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from datasets import Dataset

from cls.data.order import Order
from cls.images.decode import BadImage

Encoded = bytes | memoryview | BadImage
"""The bytes of an image file, or why there are none."""


class Images(Protocol):
    """Labelled images by row. Reading never raises: a broken image is a value."""

    labels: np.ndarray
    """Class index of each row, -1 unknown."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """The stable id of an image."""

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        """The encoded images of these rows, in this order."""

    def order(self, seed: int, balanced: bool) -> Order:
        """Which row each training draw is."""


class Indexed:
    """Images of a Hugging Face dataset (columns image, label, id), whose Arrow tables are mapped, not read."""

    def __init__(self, rows: Dataset) -> None:
        self.labels = np.asarray(rows["label"])
        self._images = rows.select_columns(["image"]).with_format("arrow")
        self._names = rows.select_columns(["id"]).with_format("arrow")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        return str(self._names[row].column("id")[0].as_py())

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        """5 to 10 us an image besides the file system's own time; bytes in Arrow are not copied."""
        column = self._images[list(rows)].column("image").combine_chunks()
        paths, content = column.field("path"), column.field("bytes")
        return [
            memoryview(data.as_buffer()).cast("B") if (data := content[i]).is_valid else _file(paths[i])
            for i in range(len(rows))
        ]

    def order(self, seed: int, balanced: bool) -> Order:
        return Order(self.labels, seed, balanced)


def images_of(rows: Dataset | Images) -> Images:
    """A split as images by row."""
    return Indexed(rows) if isinstance(rows, Dataset) else rows


def _file(path: pa.Scalar) -> Encoded:
    if not path.is_valid:
        return b""
    try:
        # a pipe would be waited for, a device read without end
        descriptor = os.open(path.as_py(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return BadImage(f"cannot be read: {error.strerror}")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return BadImage("is no regular file")
        with open(descriptor, "rb", closefd=False, buffering=0) as file:
            return file.read()
    except OSError as error:
        return BadImage(f"cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)
