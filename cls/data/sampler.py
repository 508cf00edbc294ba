"""Sample index -> image: arithmetic on (seed, sample index), without state."""

from collections.abc import Iterator

import numpy as np

from cls.runtime.rng import generator


class MicroBatchSampler:
    """Sample indices of this rank's micro-batches from step ``start`` on; step s owns [s·B, (s+1)·B)."""

    def __init__(self, start: int, stop: int, batch: int, micro_batch: int, share: range) -> None:
        self.start, self.stop, self.batch, self.micro_batch, self.share = start, stop, batch, micro_batch, share

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for micro_batch in self.share:
                first = step * self.batch + micro_batch * self.micro_batch
                yield list(range(first, first + self.micro_batch))

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.share)


class Sampler:
    """The row of each sample index.

    ``epoch, k = divmod(index, n)`` and the row is the k-th of that epoch's permutation. Balanced: classes take turns
    in a seeded order (c sample indices in a row have each class once), each through permutations of its own.
    """

    def __init__(self, labels: np.ndarray, seed: int, balanced: bool) -> None:
        self.seed, self.rows = seed, len(labels)
        classes = np.unique(labels[labels >= 0]) if balanced else ()
        self.of_class = [np.flatnonzero(labels == c) for c in classes]
        self._cache: dict[tuple[str | int, ...], np.ndarray] = {}

    def row(self, index: int) -> int:
        if not self.of_class:
            epoch, k = divmod(index, self.rows)
            return int(self._permutation(self.rows, "order", epoch)[k])
        turn, k = divmod(index, len(self.of_class))
        chosen = int(self._permutation(len(self.of_class), "turn", turn)[k])
        rows = self.of_class[chosen]
        epoch, k = divmod(turn, len(rows))
        return int(rows[self._permutation(len(rows), "class", chosen, epoch)[k]])

    def _permutation(self, n: int, *tags: str | int) -> np.ndarray:
        if tags not in self._cache:
            if len(self._cache) > 2 * len(self.of_class) + 2:
                self._cache.clear()
            self._cache[tags] = generator(self.seed, *tags).permutation(n)
        return self._cache[tags]


WINDOW = 16
"""Blocks whose rows are shuffled together. 16 random blocks of a class-sorted folder hold about 16 classes; 16 row
groups of 4 MB are 64 MB for each process that reads them."""

BLOCK = 128  # rows of a block where the storage has no blocks: about 4 MB of small photos


class BlockSampler:
    """The row of each sample index for rows in blocks: every row once per epoch, few blocks at a time.

    In each epoch a permutation of the blocks is cut into windows of ``WINDOW``; within a window, rows are permuted.
    """

    def __init__(self, counts: np.ndarray, seed: int) -> None:
        self.seed, self.rows = seed, int(counts.sum())
        self._counts, self._first = counts, np.cumsum(counts) - counts
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def row(self, index: int) -> int:
        epoch, k = divmod(index, self.rows)
        blocks, starts = self._epoch(epoch)
        window = int(np.searchsorted(starts, k, "right")) - 1
        return int(self._window(epoch, window, blocks)[k - starts[window]])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """This epoch's blocks in order, and the position in the epoch at which each window starts."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.clear()
            blocks = generator(self.seed, "blocks", epoch).permutation(len(self._counts))
            ends = np.cumsum(self._counts[blocks])
            self._epochs[epoch] = blocks, np.concatenate([[0], ends[WINDOW - 1 : -1 : WINDOW]])
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int, blocks: np.ndarray) -> np.ndarray:
        if (epoch, window) not in self._windows:
            if len(self._windows) > 1:
                self._windows.clear()
            own = blocks[window * WINDOW : (window + 1) * WINDOW]
            rows = np.concatenate([np.arange(self._first[b], self._first[b] + self._counts[b]) for b in own])
            self._windows[epoch, window] = generator(self.seed, "window", epoch, window).permutation(rows)
        return self._windows[epoch, window]


def block_counts(rows: int) -> np.ndarray:
    """Rows of each block, for storage that can be cut anywhere."""
    return np.diff([*range(0, rows, BLOCK), rows])
