"""The input pipeline of one recipe, part by part: CPU time per image on one thread, in interleaved repeats."""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from math import prod
from statistics import median
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import simplejpeg
import torch

from cls.commands.bench.cpu_time import Cost, Stream
from cls.commands.bench.sample import Sample, spread
from cls.config import Run
from cls.data.dataset import train_dataset
from cls.data.loader import batches
from cls.data.readers import Images
from cls.transforms.decode import FORMATS

MEASURED = {
    "decode": "simplejpeg into a reused buffer, from memory (Pillow for other formats); nothing else",
    "read": "the bytes of the files or table rows, nothing else",
    "in_process": "our pipeline from reading to uint8 micro-batches in one process, without transport",
    "end_to_end": "our loader with 1 worker, uint8 micro-batches received in the main process; CPU time of "
    "both. Normalising and erasing are left to the device: loop.prepare_us_per_image",
}
AGAINST = {"in_process": "decode", "end_to_end": "decode"}
"""What each is divided by."""

Costs = dict[str, list[Cost]]
Work = Callable[[list[Sample]], object]
T = TypeVar("T")


class DecodeFloor:
    """The lower bound: decoding into one buffer by simplejpeg (libjpeg-turbo), or by Pillow where that fails."""

    def __init__(self, chosen: Sequence[Sample]) -> None:
        largest = max(one.width * one.height * 3 for one in chosen)
        self.buffer = np.ones(-(-largest // 2**20) * 2**20, np.uint8)  # written to, so that its pages are allocated
        self.slow = {one.sample_index for one in chosen if not self._is_fast(one)}

    def _is_fast(self, one: Sample) -> bool:
        if one.format not in ("JPEG", "MPO"):
            return False
        try:
            simplejpeg.decode_jpeg(one.data, buffer=self.buffer)
        except ValueError:
            return False
        return True

    def decode(self, part: Sequence[Sample]) -> None:
        for one in part:
            if one.sample_index not in self.slow:
                simplejpeg.decode_jpeg(one.data, buffer=self.buffer)
                continue
            with PIL.Image.open(io.BytesIO(one.data), formats=FORMATS) as image:
                image.convert("RGB")


def measure(run: Run, images: Images, chosen: Sequence[Sample], repeats: int) -> dict[str, Any]:
    """CPU microseconds per image of each part, and ratios of pairs measured in the same repeat.

    ``chosen`` fills whole batches of ``run``.
    """
    with one_thread(), closing(own_stream(run, images, chosen)) as stream:
        found = interleaved(local_work(run, images, chosen), {"end_to_end": stream}, run, chosen, repeats)
    return document(run, len(chosen), found, AGAINST)


def document(run: Run, images: int, found: Costs, against: Mapping[str, str]) -> dict[str, Any]:
    return {
        "recipe": run.recipe,
        "size": run.data.size,
        "micro_batch": run.train.micro_batch,
        "batch": run.train.batch,
        "images": images,
        "us_per_image": {name: _figures(costs) for name, costs in found.items()},
        "ratios": {f"{name}/{other}": _ratio(found[name], found[other]) for name, other in against.items()},
    }


def local_work(run: Run, images: Images, chosen: Sequence[Sample]) -> dict[str, Work]:
    """What runs in this process without a loader, on one micro-batch of the chosen images."""
    dataset = train_dataset(images, run)
    buffer = np.empty((run.train.micro_batch, run.data.size, run.data.size, 3), np.uint8)
    return {
        "decode": DecodeFloor(chosen).decode,
        "read": lambda part: images.read([one.row for one in part]),
        "in_process": lambda part: dataset.fill([one.sample_index for one in part], buffer),
    }


def own_stream(run: Run, images: Images, chosen: Sequence[Sample]) -> Stream:
    """Our loader with one worker, over all chosen images again and again."""
    dataset, size = train_dataset(images, run), run.train.micro_batch
    return Stream(lambda lists: batches(dataset, lists, 1, size), cut([one.sample_index for one in chosen], size))


def interleaved(
    local: Mapping[str, Work], streams: Mapping[str, Stream], run: Run, chosen: Sequence[Sample], repeats: int
) -> Costs:
    """All costs in each repeat, in turns: other programs on the machine slow down all of them."""
    parts = cut(list(chosen), run.train.micro_batch)
    found: Costs = {name: [] for name in (*local, *streams)}
    _in_turns(local, parts)  # warm-up; a stream has loaded some batches already
    for turn in range(repeats):
        costs = _in_turns(local, parts) | {name: streams[name].measure() for name in _rotated(streams, turn)}
        for name, cost in costs.items():
            found[name].append(cost)
    return found


def _in_turns(local: Mapping[str, Work], parts: Sequence[list[Sample]]) -> dict[str, Cost]:
    """All work on one micro-batch before the next one: within a second a shared core's speed changes by a third."""
    seconds, images = dict.fromkeys(local, 0.0), sum(map(len, parts))
    for turn, part in enumerate(parts):
        for name in _rotated(local, turn):
            since = time.process_time()
            local[name](part)
            seconds[name] += time.process_time() - since
    return {name: Cost(spent / images, 0.0) for name, spent in seconds.items()}


def _rotated(names: Mapping[str, Any], turn: int) -> list[str]:
    """Another one first in each turn."""
    first = turn % max(1, len(names))
    return [*names][first:] + [*names][:first]


def cut(items: list[T], size: int) -> list[list[T]]:
    assert len(items) % size == 0
    return [items[first : first + size] for first in range(0, len(items), size)]


def _figures(costs: Sequence[Cost]) -> dict[str, Any]:
    repeats = [1e6 * cost.total for cost in costs]
    main = median(1e6 * cost.main for cost in costs)
    return spread(repeats) | {"main_process": main, "repeats": repeats}


def _ratio(costs: Sequence[Cost], others: Sequence[Cost]) -> dict[str, float]:
    return spread([cost.total / other.total for cost, other in zip(costs, others, strict=True)])


def geometric_means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Over the recipes, of the median ratios."""
    return {name: prod(row["ratios"][name]["median"] for row in rows) ** (1 / len(rows)) for name in rows[0]["ratios"]}


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        yield
    finally:
        torch.set_num_threads(threads)
