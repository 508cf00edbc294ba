"""Input pipelines of one recipe side by side: CPU time per image, repetitions interleaved, one thread."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from statistics import median
from typing import Any

import numpy as np
import torch

from cls.bench import peers
from cls.bench.chosen import Chosen, spread
from cls.bench.cpu import Cost, Stream
from cls.bench.floor import Floor, read
from cls.config import Run
from cls.data.access import Images
from cls.data.draws import draws_of
from cls.data.loader import batches
from cls.images.ops import training_ops
from cls.models import input_statistics

CONTESTANTS = {
    "decode": "simplejpeg into a reused buffer, from memory (Pillow for what is no JPEG); nothing else",
    "read": "the bytes of the files or table rows, nothing else",
    "in_process": "our pipeline from reading to uint8 micro-batches in one process, without transport",
    "end_to_end": "our loader with 1 worker, uint8 micro-batches received in the main process; CPU time of "
    "both. Normalising and erasing are left to the device: loop.prepare_us_per_image",
}
AGAINST = {"in_process": "decode", "end_to_end": "decode"} | dict.fromkeys(peers.DESCRIBED, "end_to_end")
"""What each is compared with."""


def measure(
    run: Run, split: Any, images: Images, chosen: Sequence[Chosen], repeats: int, with_peers: bool
) -> dict[str, Any]:
    """Microseconds of CPU time per image of each contestant, and the ratios of pairs measured in the same repetition.

    ``images``: ``split`` by row. ``chosen`` fills whole batches of ``run``.
    """
    with one_thread(), ExitStack() as stack:
        contestants = _contestants(run, split, images, chosen, with_peers, stack)
        found: dict[str, list[Cost]] = {name: [] for name in contestants}
        names = list(contestants)
        for turn in range(repeats):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody is always first
                found[name].append(contestants[name]())
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


def _contestants(
    run: Run, split: Any, images: Images, chosen: Sequence[Chosen], with_peers: bool, stack: ExitStack
) -> dict[str, Callable[[], Cost]]:
    """Functions that load all chosen images once."""
    statistics = input_statistics(run)
    operations = training_ops(run.augment, run.data, statistics[0])
    draws, floor = draws_of(images, run), Floor(chosen)
    size, count = run.train.micro_batch, len(chosen)
    micro_batches = _cut([one.draw for one in chosen], size)
    streams = {"end_to_end": Stream(lambda lists: batches(draws, lists, 1, size), micro_batches)}
    if with_peers:
        rows, whole = [one.row for one in chosen], _cut(list(range(count)), run.train.batch)
        hugging_face = peers.hugging_face(split, rows, peers.published(operations, statistics), 1)
        timm = peers.timm_style(images, rows, peers.frame_first(operations), 1)
        streams |= {"hugging_face": Stream(hugging_face, whole), "timm": Stream(timm, whole)}
    for stream in streams.values():
        stack.callback(stream.close)

    room = np.empty((size, run.data.size, run.data.size, 3), np.uint8)

    def ours() -> None:
        for indices in micro_batches:
            draws.fill(indices, room)

    here: dict[str, Callable[[], None]] = {
        "decode": floor.decode,
        "read": partial(read, images, chosen, size),
        "in_process": ours,
    }
    for work in here.values():
        work()  # warm-up; a stream has loaded some batches already
    return {name: partial(_timed, work, count) for name, work in here.items()} | {
        name: stream.measure for name, stream in streams.items()
    }


def _timed(work: Callable[[], None], images: int) -> Cost:
    since = time.process_time()
    work()
    return Cost((time.process_time() - since) / images, 0.0)


def _cut(items: list[int], size: int) -> list[list[int]]:
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
