"""Training images by integer: which image, in which order, augmented how, is a function of (seed, draw)."""

from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from cls.data.sources import read_bytes
from cls.images.decode import BadImage, decode
from cls.images.draw import draw as draw_parameters
from cls.images.ops import Op
from cls.images.reference import apply
from cls.outcome import DataError
from cls.seed import generator

# Broken images in a row after which one draw looks in all classes; after as many more the data has gone away.
MAX_TRIES = 50


class Sample(NamedTuple):
    """One augmented image as a loader worker sends it."""

    pixels: Tensor  # 3 h w, uint8
    label: int
    draw: int
    row: int
    box: tuple[int, int, int, int]  # top, left, height, width of the erased box; zeros for none
    broken: tuple[tuple[int, str], ...]  # (row, reason) of images that could not be read on the way here


class Order:
    """The image of each draw.

    ``epoch, k = divmod(draw, n)`` and the image is the k-th of that epoch's permutation. Balanced: classes take turns
    in a seeded order (every block of c draws has each class once) and each runs through its own permutations.
    """

    def __init__(self, labels: np.ndarray, seed: int, balanced: bool) -> None:
        self.seed, self.rows = seed, len(labels)
        self.of_class = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
        self.of_class = [rows for rows in self.of_class if len(rows)] if balanced else []
        self._cache: dict[tuple[str | int, ...], np.ndarray] = {}

    def row(self, draw: int) -> int:
        if not self.of_class:
            epoch, k = divmod(draw, self.rows)
            return int(self._permutation(self.rows, "order", epoch)[k])
        turn, k = divmod(draw, len(self.of_class))
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


class Draws(torch.utils.data.Dataset[Sample]):
    """Map-style data set of all draws of a run; index = draw."""

    def __init__(self, rows: Dataset, ops: tuple[Op, ...], seed: int, balanced: bool = False) -> None:
        self.rows, self.ops, self.seed = rows, ops, seed
        self.labels = np.asarray(rows["label"])
        self.order = Order(self.labels, seed, balanced)

    def __getitem__(self, draw: int) -> Sample:
        row = self.order.row(draw)
        broken: list[tuple[int, str]] = []
        image: Image.Image | None = None
        while image is None:
            try:
                image = decode(read_bytes(self.rows[row]))
            except (BadImage, OSError) as error:
                broken.append((row, str(error) or type(error).__name__))
                if len(broken) == min(len(self.labels), 2 * MAX_TRIES):
                    raise DataError(
                        f"{len(broken)} images in a row could not be read, at last {self.rows[row]['id']} ({error}): "
                        "has data.path gone away?"
                    ) from None
                row = self._replacement(draw, [r for r, _ in broken])
        rng = generator(self.seed, "augment", draw)
        pixels, box = apply(image, draw_parameters(self.ops, *image.size, rng))
        return Sample(pixels, int(self.labels[row]), draw, row, box, tuple(broken))

    def _replacement(self, draw: int, broken: list[int]) -> int:
        """Another image of the first one's class, the same wherever it is decoded; of any class after MAX_TRIES."""
        others = np.setdiff1d(np.flatnonzero(self.labels == self.labels[broken[0]]), broken)
        if not len(others) or len(broken) >= MAX_TRIES:
            others = np.setdiff1d(np.arange(len(self.labels)), broken)
        return int(generator(self.seed, "replace", draw, len(broken)).choice(others))


class Views(torch.utils.data.Dataset[Sample]):
    """One view of every row of an evaluation split; index = row. A broken image is black and named in ``broken``."""

    def __init__(self, rows: Dataset, ops: tuple[Op, ...], size: int, seed: int, view: str) -> None:
        self.rows, self.ops, self.size, self.seed, self.view = rows, ops, size, seed, view

    def __getitem__(self, row: int) -> Sample:
        item = self.rows[row]
        try:
            image = decode(read_bytes(item))
        except (BadImage, OSError) as error:
            black = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            return Sample(black, int(item["label"]), row, row, (0, 0, 0, 0), ((row, str(error) or "unreadable"),))
        rng = generator(self.seed, "view", self.view, row)
        pixels, box = apply(image, draw_parameters(self.ops, *image.size, rng))
        return Sample(pixels, int(item["label"]), row, row, box, ())
