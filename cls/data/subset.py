"""Seeded subsets: the images held out for validation, and those of a smoke run."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from cls.data.readers import column
from cls.runtime.rng import generator


def held_out(ids: pa.ChunkedArray, labels: np.ndarray, fraction: float, seed: int, tag: str) -> np.ndarray:
    """Rows to hold out: the fraction of each class with two or more images, at least one and never all.

    Each class is sorted by id and permuted by its number: independent of the order of the listing and of other classes'
    images, but not of a new class that is sorted before it.
    """
    held = []
    for label, rows in _by_class(ids, labels).items():
        if len(rows) > 1:
            count = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
            held.append(generator(seed, tag, label).permutation(rows)[:count])
    if not held:
        raise ValueError("data.path: no class has two images, so none can be held out; provide a val/ folder")
    return np.sort(np.concatenate(held))


def in_parts(ids: pa.ChunkedArray, labels: np.ndarray, parts: int) -> np.ndarray:
    """Part of each row, from 0; -1 for the only image of a class, which training cannot lack.

    Each class is sorted by id, permuted by its number and dealt out where the one before ended: of each class and of
    all images two parts differ by at most one. No seed enters, so runs of all seeds have the same parts, as folds need.
    """
    found, dealt = np.full(len(labels), -1), 0
    for label, rows in _by_class(ids, labels).items():
        if len(rows) > 1:
            found[generator(0, "hold_out", label).permutation(rows)] = np.arange(dealt, dealt + len(rows)) % parts
            dealt += len(rows)
    return found


def limited(table: Dataset, limit: int, seed: int, split: str) -> Dataset:
    """At most ``limit`` rows in their order, chosen from the classes in turn, so that each is included early."""
    assert limit >= 0
    turns: list[tuple[int, int, int]] = []
    classes = _by_class(column(table, "id"), column(table, "label").to_numpy())
    order = generator(seed, "limit", split).permutation(len(classes)).tolist()
    for place, (label, rows) in zip(order, classes.items(), strict=True):
        chosen = generator(seed, "limit", split, label).permutation(rows)[:limit].tolist()
        turns += [(turn, place, row) for turn, row in enumerate(chosen)]
    return table.select(sorted(row for _, _, row in sorted(turns)[:limit]))


def _by_class(ids: pa.ChunkedArray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Rows of each label, ascending, each sorted by id (its UTF-8 bytes: the order of Python's strings)."""
    by_id = pc.sort_indices(ids).to_numpy().astype(np.int64)
    order = by_id[np.argsort(labels[by_id], kind="stable")]
    counts = np.bincount(labels + 1)  # from -1, unknown; np.unique hashes all, 0.03 s for 100,000
    classes = np.flatnonzero(counts)
    return dict(zip((classes - 1).tolist(), np.split(order, np.cumsum(counts[classes])[:-1]), strict=True))
