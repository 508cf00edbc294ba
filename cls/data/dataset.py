"""Training and evaluation images by sample index: image, order and augmentation are functions of (seed, index)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from datasets import Dataset

from cls.config import Run, View
from cls.data.readers import Encoded, Images, images_of
from cls.models.backbones import input_statistics
from cls.runtime.exit import DataError
from cls.runtime.rng import generator, rewind
from cls.transforms.decode import CorruptImageError
from cls.transforms.jpeg import Pixels
from cls.transforms.ops import CenterCrop, HFlip, Op, ResizeShort, Squash, training_ops, view_ops
from cls.transforms.pipeline import Area, Planned, Rendered, Renderer

# Corrupt images in a row after which replacements may be of any class; after twice as many the run stops.
MAX_TRIES = 50
PLAIN: tuple[View, ...] = ("identity",)


class BatchInfo(NamedTuple):
    """A batch of b images without its pixels, small enough to cross a socket."""

    labels: list[int]
    areas: list[Area]  # to be erased
    indices: list[int]
    rows: list[int]
    corrupt: list[tuple[int, str]]  # (row, reason) of images that could not be read; replaced in training


class BatchDataset(Protocol):
    """A dataset that is read in batches: pixels and BatchInfo by sample index."""

    size: int  # side of its images, pixels

    def describe(self, indices: Sequence[int], /) -> str:
        """What these indices are, for an error message."""

    def fill(self, indices: Sequence[int], out: Pixels, /) -> BatchInfo:
        """Write the pixels of these indices into ``out``, uint8 [at least b, size, size, 3]."""


class TrainDataset:
    """The augmented training images of a run. A corrupt image is replaced and named in ``corrupt``."""

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
        self.labels, self.sampler = images.labels, images.sampler(seed, balanced)
        self._renderer, self._rng = Renderer(ops, exact_order), generator(seed)

    def describe(self, indices: Sequence[int]) -> str:
        return f"sample indices {indices[0]} to {indices[-1]}"

    def fill(self, indices: Sequence[int], out: Pixels) -> BatchInfo:
        rows = [self.sampler.row(index) for index in indices]
        areas: list[Area] = []
        corrupt: list[tuple[int, str]] = []
        for place, (index, planned) in enumerate(zip(indices, self._plan(indices, rows), strict=True)):
            tried: list[tuple[int, str]] = []
            while True:
                try:
                    out[place], area = self._renderer.render(planned)
                    break
                except CorruptImageError as error:
                    tried.append((rows[place], str(error)))
                    rows[place] = self._replacement(index, tried)
                    (planned,) = self._plan([index], [rows[place]])
            areas.append(area)
            corrupt += tried
        return BatchInfo([int(self.labels[row]) for row in rows], areas, list(indices), rows, corrupt)

    def _plan(self, indices: Sequence[int], rows: Sequence[int]) -> list[Planned | Rendered | CorruptImageError]:
        contents = zip(indices, self.images.read(rows), strict=True)
        return [self._renderer.plan(data, rewind(self._rng, self.seed, "augment", index)) for index, data in contents]

    def _replacement(self, index: int, tried: list[tuple[int, str]]) -> int:
        """Another row of the first one's class, the same in every process; of any class after MAX_TRIES."""
        corrupt = [row for row, _ in tried]
        if len(corrupt) == min(len(self.labels), 2 * MAX_TRIES):
            raise DataError(
                f"{len(corrupt)} images in a row could not be read, the last one {self.images.name(corrupt[-1])} "
                f"({tried[-1][1]}): is data.path still available?"
            )
        others = np.setdiff1d(np.flatnonzero(self.labels == self.labels[corrupt[0]]), corrupt)
        if not len(others) or len(corrupt) >= MAX_TRIES:
            others = np.setdiff1d(np.arange(len(self.labels)), corrupt)
        return int(generator(self.seed, "replace", index, len(corrupt)).choice(others))


def train_dataset(images: Images, run: Run) -> TrainDataset:
    ops = training_ops(run.augment, run.data, input_statistics(run)[0])
    return TrainDataset(images, ops, run.data.size, run.seed, run.data.balanced, run.data.exact_order)


class ViewDataset:
    """One view of every row of an evaluation split. A corrupt image is black and named in ``corrupt``.

    The angle or box of a random view follows from (seed, view, bytes of the image file): the same for the image alone,
    in a folder, in a list of any order and in packed shards that keep the bytes.
    """

    def __init__(
        self, images: Images, ops: tuple[Op, ...], size: int, seed: int, view: str, exact_order: bool = False
    ) -> None:
        self.images, self.size, self.seed, self.view = images, size, seed, view
        self._renderer, self._rng = Renderer(ops, exact_order), generator(seed)
        self._fixed = all(isinstance(op, ResizeShort | CenterCrop | Squash | HFlip) for op in ops)

    def describe(self, rows: Sequence[int]) -> str:
        return f"images {self.images.name(rows[0])} to {self.images.name(rows[-1])}"

    def fill(self, rows: Sequence[int], out: Pixels) -> BatchInfo:
        areas: list[Area] = []
        corrupt: list[tuple[int, str]] = []
        planned = [self._renderer.plan(data, self._rng_of(data)) for data in self.images.read(rows)]
        for place, row in enumerate(rows):
            area: Area = (0, 0, 0, 0)
            try:
                out[place], area = self._renderer.render(planned[place])
            except CorruptImageError as error:
                out[place] = 0
                corrupt.append((row, str(error)))
            areas.append(area)
        return BatchInfo([int(self.images.labels[row]) for row in rows], areas, list(rows), list(rows), corrupt)

    def _rng_of(self, data: Encoded) -> np.random.Generator:
        """The image's generator; views without randomness skip the hash, which costs 1 ms per MB."""
        if self._fixed or isinstance(data, CorruptImageError):
            return self._rng
        return rewind(self._rng, self.seed, "view", self.view, hashlib.blake2b(data, digest_size=16).hexdigest())


class EvalDataset:
    """All rows of a split in some views: index v * rows + row is view v of that row; a batch is of one view.

    The next view of an image is read while its file is still in the page cache.
    """

    def __init__(self, rows: Dataset, views: Sequence[View], run: Run) -> None:
        """``views``: empty is the plain image."""
        self.rows, self.views = rows, tuple(views) or PLAIN
        data, images = run.data.evaluated, images_of(rows)
        self.size = data.size
        self._views = [
            ViewDataset(images, view_ops(view, data), data.size, run.seed, view, data.exact_order)
            for view in self.views
        ]

    def describe(self, indices: Sequence[int]) -> str:
        return self._views[0].describe([index % len(self.rows) for index in indices])

    def fill(self, indices: Sequence[int], out: Pixels) -> BatchInfo:
        view = self._views[indices[0] // len(self.rows)]
        return view.fill([index % len(self.rows) for index in indices], out)


@dataclass(frozen=True)
class EvalSets:
    """The evaluation sets of a run; None for what it does not have."""

    val: EvalDataset | None
    val_tta: EvalDataset | None  # the validation images in the recipe's test-time views
    test: EvalDataset | None

    def named(self) -> dict[str, EvalDataset]:
        sets = {"val": self.val, "val_tta": self.val_tta, "test": self.test}
        return {name: images for name, images in sets.items() if images is not None}


def eval_sets(val: Dataset | None, test: Dataset | None, run: Run) -> EvalSets:
    tta = run.augment.tta
    plain, val_tta = EvalDataset(val, (), run) if val else None, EvalDataset(val, tta, run) if val and tta else None
    return EvalSets(plain, val_tta, EvalDataset(test, tta, run) if test else None)
