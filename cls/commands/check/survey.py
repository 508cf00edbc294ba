"""Every image of a data set decoded and described, and which of them are copies of one picture.

Of each image about 700 bytes are kept (512 of them its outline), so 100,000 take 70 MB whatever their size.
"""

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cls.commands.check.describe import Facts, describe
from cls.commands.check.duplicates import COPY, F, candidates, likeness, miniature
from cls.data.loader import worker_count
from cls.data.readers import Encoded, Images
from cls.data.workers import WorkerDied, in_order
from cls.runtime.exit import DataError
from cls.runtime.progress import ProgressMeter
from cls.transforms.decode import CorruptImageError, decode
from cls.transforms.jpeg import Pixels

EACH = 32  # images, or pairs, that a process takes at a time
KEPT = 256  # miniatures that a process keeps: pairs of one image follow each other


class Files:
    """The images of all splits, numbered through."""

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
        """BadImage where it cannot be decoded."""
        data = self.read(number)
        if isinstance(data, CorruptImageError):
            raise data
        return np.asarray(decode(bytes(data)))

    def _row(self, number: int) -> int:
        return int(number - self._starts[self.split_of[number]])


@dataclass
class Survey:
    """What was found of n images, by number."""

    sizes: np.ndarray  # n 2, width and height; 0 where broken
    outlines: np.ndarray  # n f f
    formats: list[str]
    modes: list[str]
    errors: dict[int, str] = field(default_factory=dict)
    odd: dict[str, list[int]] = field(default_factory=dict)
    same: dict[bytes, list[int]] = field(default_factory=dict)
    """Images that show the very same, by digest."""
    crowded: list[int] = field(default_factory=list)
    """Images that look almost the same as so many others that they were compared with the likest of them only."""


class Pair(NamedTuple):
    first: int
    second: int
    likeness: float
    mirrored: bool


class Group(NamedTuple):
    """Copies of one picture."""

    members: tuple[int, ...]
    pairs: tuple[Pair, ...]
    """Near duplicates by which members belong together."""
    equal: tuple[tuple[int, int], ...]
    """The first of those that are the same in every pixel, and another of them."""


class _Describe:
    """What a loader process gives: size in bytes and facts of each image."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __call__(self, numbers: Sequence[int]) -> list[tuple[int, Facts]]:
        found = []
        for number in numbers:
            data = self.files.read(number)
            if isinstance(data, CorruptImageError):
                found.append((0, Facts(error=str(data))))
            else:
                found.append((len(data), describe(bytes(data))))
        return found


class _Compare:
    """What a loader process gives: the likeness of each pair."""

    def __init__(self, files: Files, pairs: Sequence[tuple[int, int, bool]]) -> None:
        self.files, self.pairs = files, pairs
        self._kept: OrderedDict[int, Pixels] = OrderedDict()

    def __call__(self, places: Sequence[int]) -> list[float]:
        found = []
        for first, second, mirrored in (self.pairs[place] for place in places):
            try:
                found.append(likeness(self._miniature(first), self._miniature(second), mirrored))
            except CorruptImageError:  # it has become unreadable since it was described
                found.append(0.0)
        return found

    def _miniature(self, number: int) -> Pixels:
        if number not in self._kept:
            self._kept[number] = miniature(self.files.pixels(number))
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return self._kept[number]


def survey(files: Files, workers: int) -> Survey:
    """Decode and describe everything; ``workers`` processes, -1 one per core, 0 this one alone."""
    count = len(files)
    found = Survey(np.zeros((count, 2), np.int32), np.zeros((count, F, F), np.float16), [""] * count, [""] * count)
    meter = ProgressMeter(count, "images decoded")
    for numbers, answers in _parallel(_Describe(files), count, workers):
        for number, (_, facts) in zip(numbers, answers, strict=True):
            if facts.error:
                found.errors[number] = facts.error
                continue
            found.sizes[number], found.outlines[number] = (facts.width, facts.height), facts.outline
            found.formats[number], found.modes[number] = facts.format, facts.mode
            found.same.setdefault(facts.digest, []).append(number)
            for kind in facts.odd:
                found.odd.setdefault(kind, []).append(number)
        meter.add(len(numbers), sum(size for size, _ in answers))
    return found


def copies(files: Files, found: Survey, workers: int) -> list[Group]:
    """Groups of two or more images that show one picture, in the order of their first ones; notes ``crowded``."""
    one_of_each = np.array([numbers[0] for numbers in found.same.values()], dtype=np.int64)
    outlines = found.outlines[one_of_each]
    meter, pairs = ProgressMeter(int(outlines.any((1, 2)).sum()), "images compared with all others"), set()
    for piece in candidates(outlines):
        some = (one_of_each[piece.first], one_of_each[piece.second], piece.mirrored)
        pairs |= set(zip(*(part.tolist() for part in some), strict=True))
        found.crowded += one_of_each[piece.crowded].tolist()
        meter.add(piece.done - meter.done)
    ranked = sorted(pairs)
    best: dict[tuple[int, int], Pair] = {}
    meter = ProgressMeter(len(ranked), "pairs looked at")
    for places, answers in _parallel(_Compare(files, ranked), len(ranked), workers):
        for (first, second, mirrored), score in zip((ranked[place] for place in places), answers, strict=True):
            if score >= max(COPY, best[first, second].likeness if (first, second) in best else 0.0):
                best[first, second] = Pair(first, second, round(score, 4), mirrored)
        meter.add(len(places))
    return _groups(found, best.values())


def _groups(found: Survey, pairs: Collection[Pair]) -> list[Group]:
    """Equal images and near duplicates joined."""
    root: dict[int, int] = {}

    def top(number: int) -> int:
        while (above := root.setdefault(number, number)) != number:
            number = above
        return number

    same = [(numbers[0], other) for numbers in found.same.values() for other in numbers[1:]]
    for first, second in itertools.chain(same, ((pair.first, pair.second) for pair in pairs)):
        low, high = sorted((top(first), top(second)))
        root[high] = low
    members: dict[int, list[int]] = {}
    for number in sorted(root):
        members.setdefault(top(number), []).append(number)
    edges: dict[int, list[Pair]] = {}
    for pair in sorted(pairs):
        edges.setdefault(top(pair.first), []).append(pair)
    equal: dict[int, list[tuple[int, int]]] = {}
    for one, other in same:
        equal.setdefault(top(one), []).append((one, other))
    return [
        Group(tuple(numbers), tuple(edges.get(first, ())), tuple(equal.get(first, ())))
        for first, numbers in members.items()
    ]


def _parallel(work: _Describe | _Compare, count: int, workers: int) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Answers in order, whatever the number of processes; DataError where one dies."""
    pieces = [range(start, min(start + EACH, count)) for start in range(0, count, EACH)]
    try:
        yield from zip(pieces, in_order(work, pieces, min(worker_count(workers, 1), len(pieces))), strict=True)
    except WorkerDied as error:
        what = type(work).__name__.strip("_").lower()
        raise DataError(
            f"{error} at {what} {error.task[0]} to {error.task[-1]}: if memory ran out, use fewer with --workers"
        ) from None
