"""Training images by integer: which image, in which order, augmented how, is a function of (seed, draw)."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cls.data.access import Encoded, Images
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


class Draws(torch.utils.data.Dataset[Sample]):
    """Map-style data set of all draws of a run; index = draw."""

    def __init__(self, images: Images, ops: tuple[Op, ...], seed: int, balanced: bool = False) -> None:
        self.images, self.ops, self.seed = images, ops, seed
        self.labels, self.order = images.labels, images.order(seed, balanced)

    def __getitem__(self, draw: int) -> Sample:
        row = self.order.row(draw)
        broken: list[tuple[int, str]] = []
        image: Image.Image | None = None
        while image is None:
            try:
                image = decode(_content(self.images.read([row])[0]))
            except BadImage as error:
                broken.append((row, str(error)))
                if len(broken) == min(len(self.labels), 2 * MAX_TRIES):
                    raise DataError(
                        f"{len(broken)} images in a row could not be read, at last {self.images.name(row)} ({error}): "
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

    def __init__(self, images: Images, ops: tuple[Op, ...], size: int, seed: int, view: str) -> None:
        self.images, self.ops, self.size, self.seed, self.view = images, ops, size, seed, view

    def __getitem__(self, row: int) -> Sample:
        label = int(self.images.labels[row])
        try:
            image = decode(_content(self.images.read([row])[0]))
        except BadImage as error:
            black = torch.zeros(3, self.size, self.size, dtype=torch.uint8)
            return Sample(black, label, row, row, (0, 0, 0, 0), ((row, str(error)),))
        rng = generator(self.seed, "view", self.view, row)
        pixels, box = apply(image, draw_parameters(self.ops, *image.size, rng))
        return Sample(pixels, label, row, row, box, ())


def _content(found: Encoded) -> bytes:
    if isinstance(found, BadImage):
        raise found
    return bytes(found)
