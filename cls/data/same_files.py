"""Which images of one set are also in another one."""

import hashlib
from collections.abc import Iterator

import numpy as np

from cls.data.readers import column, image_sizes, images_of
from cls.data.sources import Rows
from cls.transforms.decode import CorruptImageError


def also_in(rows: Rows, others: Rows) -> np.ndarray:
    """n: whether each image is one of ``others``: a file of the same name, in whatever folder, and the same bytes.

    Names are compared first, then sizes, so that of a million others only those are opened that are probably the same.
    """
    named, theirs = _names(rows), _names(others)
    own, known = np.flatnonzero(np.isin(named, theirs)), np.flatnonzero(np.isin(theirs, named))
    sizes, their_sizes = image_sizes(rows.select(own)), image_sizes(others.select(known))
    shared = np.intersect1d(sizes[sizes > 0], their_sizes[their_sizes > 0])
    own, known = own[np.isin(sizes, shared)], known[np.isin(their_sizes, shared)]
    digests = set(_digests(others, known)) - {None}
    found = np.zeros(len(rows), dtype=bool)
    found[own] = [digest in digests for digest in _digests(rows, own)]
    return found


def _names(rows: Rows) -> np.ndarray:
    """The last part of each id, hashed: 8 bytes an image."""
    names = (name.rpartition("/")[2] for chunk in column(rows, "id").chunks for name in chunk.to_pylist())
    return np.fromiter(map(hash, names), dtype=np.int64, count=len(rows))


def _digests(rows: Rows, places: np.ndarray) -> Iterator[bytes | None]:
    """Of each image's bytes; None for a file that cannot be read."""
    images = images_of(rows)
    for place in places.tolist():
        (data,) = images.read([place])
        yield None if isinstance(data, CorruptImageError) else hashlib.blake2b(data, digest_size=16).digest()
