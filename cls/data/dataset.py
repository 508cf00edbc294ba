"""Training images by integer: which image, in which order, augmented how, is a function of (seed, draw)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from cls.config import Run, View
from cls.data.readers import Encoded, Images, images_of
from cls.models.build import input_statistics
from cls.runtime.exit import DataError
from cls.runtime.rng import generator, rewind
from cls.transforms.decode import CorruptImageError
from cls.transforms.jpeg import Pixels
from cls.transforms.ops import CenterCrop, HFlip, Op, ResizeShort, Squash, training_ops, view_ops
from cls.transforms.pipeline import Area, Planned, Rendered, Renderer

# Broken images in a row after which one draw looks in all classes; after as many more the data has gone away.
MAX_TRIES = 50
PLAIN: tuple[View, ...] = ("identity",)


class Found(NamedTuple):
    """All of a batch but its pixels: little enough to be sent from process to process; b images."""

    labels: list[int]
    areas: list[Area]
    draws: list[int]
    rows: list[int]
    broken: list[tuple[int, str]]  # (row, reason) of images that could not be read on the way here


class Batch(NamedTuple):
    """Images in draw order; b of them."""

    pixels: Tensor  # b 3 h w, uint8, channels last in memory
    labels: Tensor  # b, int64
    areas: list[Area]  # to be erased
    draws: list[int]
    rows: list[int]
    broken: list[tuple[int, str]]


def batch_of(pixels: Tensor, found: Found) -> Batch:
    """``pixels``: b h w 3."""
    return Batch(pixels.permute(0, 3, 1, 2), torch.tensor(found.labels), *found[1:])


class Source(Protocol):
    """Draws or Views: pixels and facts by integer."""

    size: int

    def describe(self, indices: Sequence[int], /) -> str:
        """What these integers are, for an error message."""

    def fill(self, indices: Sequence[int], out: Pixels, /) -> Found: ...


def made_here(source: Source, indices: Sequence[int]) -> Batch:
    """A batch made in this process."""
    room = torch.empty(len(indices), source.size, source.size, 3, dtype=torch.uint8)
    return batch_of(room, source.fill(indices, room.numpy()))


class TrainDataset:
    """All draws of a run."""

    def __init__(
        self,
        images: Images,
        ops: tuple[Op, ...],
        size: int,
        seed: int,
        balanced: bool = False,
        exact_order: bool = False,
    ) -> None:
        self.images, self.size, self.seed = images, size, seed
        self.labels, self.order = images.labels, images.order(seed, balanced)
        self._renderer, self._rng = Renderer(ops, exact_order), generator(seed)

    def describe(self, draws: Sequence[int]) -> str:
        return f"draws {draws[0]} to {draws[-1]}"

    def fill(self, draws: Sequence[int], out: Pixels) -> Found:
        """Put the pixels of these draws into ``out``, uint8 [at least b, size, size, 3]."""
        rows = [self.order.row(draw) for draw in draws]
        areas: list[Area] = []
        broken: list[tuple[int, str]] = []
        for at, (draw, planned) in enumerate(zip(draws, self._plan(draws, rows), strict=True)):
            tried: list[tuple[int, str]] = []
            while True:
                try:
                    out[at], area = self._renderer.render(planned)
                    break
                except CorruptImageError as error:
                    tried.append((rows[at], str(error)))
                    rows[at] = self._replacement(draw, tried)
                    (planned,) = self._plan([draw], [rows[at]])
            areas.append(area)
            broken += tried
        return Found([int(self.labels[row]) for row in rows], areas, list(draws), rows, broken)

    def _plan(self, draws: Sequence[int], rows: Sequence[int]) -> list[Planned | Rendered | CorruptImageError]:
        contents = zip(draws, self.images.read(rows), strict=True)
        return [self._renderer.plan(one, rewind(self._rng, self.seed, "augment", draw)) for draw, one in contents]

    def _replacement(self, draw: int, tried: list[tuple[int, str]]) -> int:
        """Another image of the first one's class, the same wherever it is decoded; of any class after MAX_TRIES."""
        broken = [row for row, _ in tried]
        if len(broken) == min(len(self.labels), 2 * MAX_TRIES):
            raise DataError(
                f"{len(broken)} images in a row could not be read, at last {self.images.name(broken[-1])} "
                f"({tried[-1][1]}): has data.path gone away?"
            )
        others = np.setdiff1d(np.flatnonzero(self.labels == self.labels[broken[0]]), broken)
        if not len(others) or len(broken) >= MAX_TRIES:
            others = np.setdiff1d(np.arange(len(self.labels)), broken)
        return int(generator(self.seed, "replace", draw, len(broken)).choice(others))


def train_dataset(images: Images, run: Run) -> TrainDataset:
    """The training draws of a run."""
    ops = training_ops(run.augment, run.data, input_statistics(run)[0])
    return TrainDataset(images, ops, run.data.size, run.seed, run.data.balanced, run.data.exact_order)


class Views:
    """One view of every row of an evaluation split. A broken image is black and named in ``broken``.

    The angle or the box of a random view follows from (seed, view, bytes of the image file), so it is the same for the
    image alone, in a folder, in a list in any order and in packed shards that keep the bytes.
    """

    def __init__(
        self, images: Images, ops: tuple[Op, ...], size: int, seed: int, view: str, exact_order: bool = False
    ) -> None:
        self.images, self.size, self.seed, self.view = images, size, seed, view
        self._renderer, self._rng = Renderer(ops, exact_order), generator(seed)
        self._fixed = all(isinstance(op, ResizeShort | CenterCrop | Squash | HFlip) for op in ops)

    def describe(self, rows: Sequence[int]) -> str:
        return f"images {self.images.name(rows[0])} to {self.images.name(rows[-1])}"

    def fill(self, rows: Sequence[int], out: Pixels) -> Found:
        """Put the pixels of these rows into ``out``, uint8 [at least b, size, size, 3]."""
        areas: list[Area] = []
        broken: list[tuple[int, str]] = []
        planned = [self._renderer.plan(one, self._numbers(one)) for one in self.images.read(rows)]
        for at, row in enumerate(rows):
            area: Area = (0, 0, 0, 0)
            try:
                out[at], area = self._renderer.render(planned[at])
            except CorruptImageError as error:
                out[at] = 0
                broken.append((row, str(error)))
            areas.append(area)
        return Found([int(self.images.labels[row]) for row in rows], areas, list(rows), list(rows), broken)

    def _numbers(self, data: Encoded) -> np.random.Generator:
        """The generator for an image. Of views without randomness it decides nothing: hashing costs 1 ms per MB."""
        if self._fixed or isinstance(data, CorruptImageError):
            return self._rng
        return rewind(self._rng, self.seed, "view", self.view, hashlib.blake2b(data, digest_size=16).hexdigest())


class EvalDataset:
    """All rows of a split in some views: index v * rows + row is view v of that row; a batch is of one view.

    An image is read again for its next view while its file is still in the page cache.
    """

    def __init__(self, rows: Dataset, views: Sequence[View], run: Run) -> None:
        """``views``: none is the plain image."""
        self.rows, self.views = rows, tuple(views) or PLAIN
        frame, images = run.data.evaluated, images_of(rows)
        self.size = frame.size
        self._views = [
            Views(images, view_ops(view, frame), frame.size, run.seed, view, frame.exact_order) for view in self.views
        ]

    def describe(self, indices: Sequence[int]) -> str:
        return self._views[0].describe([index % len(self.rows) for index in indices])

    def fill(self, indices: Sequence[int], out: Pixels) -> Found:
        view = self._views[indices[0] // len(self.rows)]
        return view.fill([index % len(self.rows) for index in indices], out)


@dataclass(frozen=True)
class EvalSets:
    """The evaluation sets of a run; None for what it does not have."""

    val: EvalDataset
    val_tta: EvalDataset | None
    """The validation images in the recipe's test-time views."""
    test: EvalDataset | None

    def named(self) -> dict[str, EvalDataset]:
        sets = {"val": self.val, "val_tta": self.val_tta, "test": self.test}
        return {name: images for name, images in sets.items() if images is not None}


def eval_sets(val: Dataset, test: Dataset | None, run: Run) -> EvalSets:
    tta = run.augment.tta
    return EvalSets(
        EvalDataset(val, (), run),
        EvalDataset(val, tta, run) if tta else None,
        EvalDataset(test, tta, run) if test else None,
    )
