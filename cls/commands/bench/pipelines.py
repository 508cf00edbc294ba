"""Input pipelines of one recipe side by side: CPU time per image, repetitions interleaved, one thread."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from cls.commands.bench import baselines
from cls.commands.bench.cpu_time import Cost, Stream
from cls.commands.bench.floor import Floor
from cls.commands.bench.sample import Sample, spread
from cls.config import Run
from cls.data.dataset import train_dataset
from cls.data.loader import batches
from cls.data.readers import Images
from cls.models.build import input_statistics
from cls.transforms.ops import training_ops

CONTESTANTS = {
    "decode": "simplejpeg into a reused buffer, from memory (Pillow for what is no JPEG); nothing else",
    "read": "the bytes of the files or table rows, nothing else",
    "in_process": "our pipeline from reading to uint8 micro-batches in one process, without transport",
    "end_to_end": "our loader with 1 worker, uint8 micro-batches received in the main process; CPU time of "
    "both. Normalising and erasing are left to the device: loop.prepare_us_per_image",
}
AGAINST = {"in_process": "decode", "end_to_end": "decode"} | dict.fromkeys(baselines.DESCRIBED, "end_to_end")
"""What each is compared with."""


def measure(
    run: Run, split: Any, images: Images, chosen: Sequence[Sample], repeats: int, with_peers: bool
) -> dict[str, Any]:
    """Microseconds of CPU time per image of each contestant, and the ratios of pairs measured in the same repetition.

    ``images``: ``split`` by row. ``chosen`` fills whole batches of ``run``.
    """
    parts = _cut(list(chosen), run.train.micro_batch)
    with one_thread(), ExitStack() as stack:
        here, streams = _here(run, images, chosen), _streams(run, split, images, chosen, with_peers, stack)
        _in_turns(here, parts)  # warm-up; a stream has loaded some batches already
        found: dict[str, list[Cost]] = {name: [] for name in (*here, *streams)}
        for turn in range(repeats):
            costs = _in_turns(here, parts)
            for name in _rotated(list(streams), turn):
                costs[name] = streams[name].measure()
            for name, cost in costs.items():
                found[name].append(cost)
    return {
        "recipe": run.recipe,
        "size": run.data.size,
        "micro_batch": run.train.micro_batch,
        "batch": run.train.batch,
        "images": len(chosen),
        "us_per_image": {name: _figures(costs) for name, costs in found.items()},
        "ratios": {
            f"{name}/{other}": _ratio(found[name], found[other]) for name, other in AGAINST.items() if name in found
        },
    }


Work = Callable[[list[Sample]], object]
T = TypeVar("T")


def _here(run: Run, images: Images, chosen: Sequence[Sample]) -> dict[str, Work]:
    """What works in this process, on one micro-batch of the chosen images."""
    draws = train_dataset(images, run)
    room = np.empty((run.train.micro_batch, run.data.size, run.data.size, 3), np.uint8)
    return {
        "decode": Floor(chosen).decode,
        "read": lambda part: images.read([one.row for one in part]),
        "in_process": lambda part: draws.fill([one.draw for one in part], room),
    }


def _in_turns(works: dict[str, Work], parts: Sequence[list[Sample]]) -> dict[str, Cost]:
    """Each part by everybody before the next one: within a second a shared core's speed changes by a third."""
    seconds, images = dict.fromkeys(works, 0.0), sum(map(len, parts))
    for turn, part in enumerate(parts):
        for name in _rotated(list(works), turn):
            since = time.process_time()
            works[name](part)
            seconds[name] += time.process_time() - since
    return {name: Cost(spent / images, 0.0) for name, spent in seconds.items()}


def _rotated(names: list[str], turn: int) -> list[str]:
    """Nobody is always first."""
    return names[turn % len(names) :] + names[: turn % len(names)]


def _streams(
    run: Run, split: Any, images: Images, chosen: Sequence[Sample], with_peers: bool, stack: ExitStack
) -> dict[str, Stream]:
    """Loaders that load all chosen images once and again; ``stack`` ends them."""
    statistics = input_statistics(run)
    operations = training_ops(run.augment, run.data, statistics[0])
    draws, size = train_dataset(images, run), run.train.micro_batch
    micro_batches = _cut([one.draw for one in chosen], size)
    streams = {"end_to_end": Stream(lambda lists: batches(draws, lists, 1, size), micro_batches)}
    if with_peers:
        rows, whole = [one.row for one in chosen], _cut(list(range(len(chosen))), run.train.batch)
        hugging_face = baselines.hugging_face(split, rows, baselines.published(operations, statistics), 1)
        timm = baselines.timm_style(images, rows, baselines.frame_first(operations), 1)
        streams |= {"hugging_face": Stream(hugging_face, whole), "timm": Stream(timm, whole)}
    for stream in streams.values():
        stack.callback(stream.close)
    return streams


def _cut(items: list[T], size: int) -> list[list[T]]:
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
