"""Every image of a data set decoded and described, and which of them are duplicates.

Of each image about 700 bytes are kept (512 of them its outline), so 100,000 take 70 MB whatever their size.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cls.commands.check.describe import ImageInfo, describe
from cls.commands.check.duplicates import DUPLICATE, F, candidates, miniature, similarity
from cls.data.readers import Encoded, Images
from cls.data.workers import WorkerDied, in_order
from cls.runtime.exit import DataError
from cls.runtime.progress import ProgressMeter
from cls.runtime.system import cores
from cls.transforms.decode import CorruptImageError, decode
from cls.transforms.jpeg import Pixels

EACH = 32  # images, or pairs, that a process takes at a time
KEPT = 256  # miniatures that a process keeps: pairs of one image follow each other

T = TypeVar("T")


class Files:
    """The images of all splits, numbered from 0."""

    def __init__(self, splits: Mapping[str, Images]) -> None:
        self.splits, self._images = tuple(splits), tuple(splits.values())
        counts = [len(images) for images in self._images]
        self._starts = np.cumsum([0, *counts])
        self.split_of = np.repeat(np.arange(len(counts)), counts)
        self.labels = np.concatenate([images.labels for images in self._images])

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, number: int) -> str:
        return self.splits[int(self.split_of[number])]

    def number(self, split: str, row: int) -> int:
        return int(self._starts[self.splits.index(split)]) + row

    def name(self, number: int) -> str:
        return self._images[int(self.split_of[number])].name(self._row(number))

    def read(self, number: int) -> Encoded:
        return self._images[int(self.split_of[number])].read([self._row(number)])[0]

    def pixels(self, number: int) -> Pixels:
        """CorruptImageError where it cannot be decoded."""
        data = self.read(number)
        if isinstance(data, CorruptImageError):
            raise data
        return np.asarray(decode(bytes(data)))

    def _row(self, number: int) -> int:
        return int(number - self._starts[self.split_of[number]])


@dataclass
class Survey:
    """What was found of n images, by number."""

    sizes: np.ndarray  # n 2, width and height; 0 where corrupt
    outlines: np.ndarray  # n f f
    formats: list[str]
    modes: list[str]
    errors: dict[int, str] = field(default_factory=dict)
    unusual: dict[str, list[int]] = field(default_factory=dict)
    same: dict[bytes, list[int]] = field(default_factory=dict)
    """Images with the same pixels, by digest."""
    partly_compared: list[int] = field(default_factory=list)
    """Images with so many similar ones that they were compared only with the most similar of them."""


class Pair(NamedTuple):
    first: int
    second: int
    similarity: float
    mirrored: bool


class Group(NamedTuple):
    """Duplicates of one picture."""

    members: list[int]
    pairs: list[Pair]
    """Near duplicates that join the members."""
    equal: list[tuple[int, int]]
    """The first of those with the same pixels, and another of them."""


def survey(files: Files, workers: int) -> Survey:
    """Decode and describe everything; ``workers`` processes, -1 one per core, 0 this one alone."""
    count = len(files)
    found = Survey(np.zeros((count, 2), np.int32), np.zeros((count, F, F), np.float16), [""] * count, [""] * count)
    meter = ProgressMeter(count, "images decoded")

    def work(number: int) -> tuple[int, ImageInfo]:
        data = files.read(number)
        if isinstance(data, CorruptImageError):
            return 0, ImageInfo(error=str(data))
        return len(data), describe(bytes(data))

    for number, (size, info) in enumerate(_parallel(work, count, "images", workers)):
        meter.add(1, size)
        if info.error:
            found.errors[number] = info.error
            continue
        found.sizes[number], found.outlines[number] = (info.width, info.height), info.outline
        found.formats[number], found.modes[number] = info.format, info.mode
        found.same.setdefault(info.digest, []).append(number)
        for kind in info.unusual:
            found.unusual.setdefault(kind, []).append(number)
    return found


def find_duplicates(files: Files, found: Survey, workers: int) -> list[Group]:
    """Groups of two or more images that show one picture, ordered by their first ones; fills ``partly_compared``."""
    one_of_each = np.array([numbers[0] for numbers in found.same.values()], dtype=np.int64)
    outlines = found.outlines[one_of_each]
    meter, pairs = ProgressMeter(int(outlines.any((1, 2)).sum()), "images compared with all others"), set()
    for block in candidates(outlines):
        some = (one_of_each[block.first], one_of_each[block.second], block.mirrored)
        pairs |= set(zip(*(part.tolist() for part in some), strict=True))
        found.partly_compared += one_of_each[block.cut_short].tolist()
        meter.add(block.done - meter.done)
    ranked: list[tuple[int, int, bool]] = sorted(pairs)
    load = lru_cache(KEPT)(lambda number: miniature(files.pixels(number)))

    def work(place: int) -> float:
        first, second, mirrored = ranked[place]
        try:
            return similarity(load(first), load(second), mirrored)
        except CorruptImageError:  # it has become unreadable since it was described
            return 0.0

    best: dict[tuple[int, int], Pair] = {}
    meter = ProgressMeter(len(ranked), "pairs compared in detail")
    for (first, second, mirrored), score in zip(ranked, _parallel(work, len(ranked), "pairs", workers), strict=True):
        meter.add(1)
        if score >= max(DUPLICATE, best[first, second].similarity if (first, second) in best else 0.0):
            best[first, second] = Pair(first, second, round(score, 4), mirrored)
    return _groups(found, best.values())


def _groups(found: Survey, pairs: Collection[Pair]) -> list[Group]:
    """Images with the same pixels and near duplicates, joined where they share an image."""
    same = [(numbers[0], other) for numbers in found.same.values() for other in numbers[1:]]
    edges = np.array([*same, *((pair.first, pair.second) for pair in pairs)], dtype=np.int64).reshape(-1, 2)
    count = len(found.formats)
    _, group_of = connected_components(coo_array((np.ones(len(edges)), edges.T), (count, count)), directed=False)
    groups: dict[int, Group] = {}
    for number in np.unique(edges).tolist():
        groups.setdefault(group_of[number], Group([], [], [])).members.append(number)
    for pair in sorted(pairs):
        groups[group_of[pair.first]].pairs.append(pair)
    for one, other in same:
        groups[group_of[one]].equal.append((one, other))
    return list(groups.values())


def _parallel(work: Callable[[int], T], count: int, what: str, workers: int) -> Iterator[T]:
    """``work`` of 0 to ``count`` - 1, in this order for any number of processes; DataError where one dies."""
    tasks = [range(start, min(start + EACH, count)) for start in range(0, count, EACH)]
    processes = min(cores() if workers < 0 else workers, len(tasks))
    try:
        for answers in in_order(lambda task: list(map(work, task)), tasks, processes):
            yield from answers
    except WorkerDied as error:
        where = f"{what} {error.task[0]} to {error.task[-1]}"
        raise DataError(f"{error} at {where}: if memory ran out, use fewer with --workers") from None
