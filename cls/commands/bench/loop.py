"""Speed of the training loop with its loader, and of the same steps on one micro-batch that stays on the device."""

import time
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cls.commands.bench.cpu_time import Lists
from cls.commands.bench.sample import spread
from cls.config import Run, change
from cls.data.dataset import train_dataset
from cls.data.loader import Batch, batches, preprocess, worker_count
from cls.data.readers import images_of
from cls.data.sources import Splits
from cls.distributed.memory_probe import probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World
from cls.models.backbones import input_statistics
from cls.models.loss import class_weights, loss_per_image, right_per_image
from cls.training.state import State, build_state
from cls.training.steps import Steps
from cls.transforms.mixup import draw_mixing, join, mix, partners, soft_targets

MOST_STEPS = 20  # of one measurement
TRIAL = 2  # images; BatchNorm needs them

Next = Callable[[], tuple[Tensor, Tensor]]
"""Gives a micro-batch on the device: images b 3 h w, normalised, and soft targets b classes."""


class Trainer(NamedTuple):
    """What a step needs."""

    run: Run
    world: World
    state: State
    micro_batches: MicroBatches
    weights: Tensor | None

    def step(self, step: int, next_batch: Next) -> None:
        """train.py's step, on the micro-batches that ``next_batch`` gives. A test compares the weights of both."""
        run, micro_batches = self.run, self.micro_batches
        mixing = draw_mixing(run.augment, run.seed, step)
        for chunk in micro_batches.start_step(step):
            mixed = []
            for index in chunk:
                images, targets = next_batch()
                mixed.append(mix(images, targets, mixing, partners(len(images), run.seed, step, index)))
            images, targets = join(mixed)
            with micro_batches.context(chunk):
                with self.world.autocast(run.train.precision):
                    logits = micro_batches.model(images)
                losses = loss_per_image(logits, targets, run.optim.loss, self.weights)
                losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            micro_batches.accumulate(chunk, losses, right_per_image(logits, targets))
        micro_batches.all_reduce()
        self.state.update(run.optim.clip)

    def resized(self, batch: int, micro_batch: int) -> "Trainer":
        """The same network with other batch sizes."""
        run = change(self.run, train={"batch": batch, "micro_batch": micro_batch})
        micro_batches = MicroBatches(self.world, self.micro_batches.model, run)
        return self._replace(run=run, micro_batches=probe(micro_batches, self.state.optimizer, run))

    def seconds(self, first: int, steps: int, next_batch: Next) -> float:
        self.wait()
        since = time.perf_counter()
        for step in range(first, first + steps):
            self.step(step, next_batch)
        self.wait()
        return time.perf_counter() - since

    def wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()


def trainer(run: Run, splits: Splits, world: World) -> Trainer:
    """With random weights: a step takes as long with them."""
    run = change(run, model={"weights": "none"})
    state = build_state(run, splits.classes, Steps(len(splits.train), run.train), world)
    model = world.wrap(state.model, run.train.compile)
    weights = class_weights(images_of(splits.train).labels, len(splits.classes), run.optim.class_weight, world.device)
    return Trainer(run, world, state, MicroBatches(world, model, run), weights)


class TimedLoader:
    """Our loader on the device, with as many workers as training has; it counts the seconds that it was waited for."""

    def __init__(self, run: Run, splits: Splits, device: torch.device, lists: list[list[int]]) -> None:
        dataset = train_dataset(images_of(splits.train), run)
        self.workers, self.device = worker_count(run.data.workers, 1), device
        self.classes, self.smoothing = len(splits.classes), run.optim.label_smoothing
        self.lists, self.received, self.waited = Lists(lists), 0, 0.0
        self.prepare = preprocess(input_statistics(run), run.seed, run.train.images_channels_last, device)
        self.batches: Iterator[Batch] = batches(dataset, self.lists, self.workers, len(lists[0]), device)

    def next(self) -> tuple[Tensor, Tensor]:
        since = time.perf_counter()
        batch = next(self.batches)
        self.received, self.waited = self.received + 1, self.waited + time.perf_counter() - since
        labels = batch.labels.to(self.device, non_blocking=True)
        return self.prepare(batch), soft_targets(labels, self.classes, self.smoothing)

    def empty(self) -> None:
        """Drop what is ready in advance: the first steps would be faster than all others."""
        for _ in range(self.lists.taken - self.received):
            self.received += 1
            next(self.batches)


def measure(
    run: Run, splits: Splits, indices: list[int], repeats: int, steps: int, seconds: float, world: World
) -> dict[str, Any]:
    """Images per second with the loader and on a resident micro-batch, interleaved, the same number of steps each.

    The sample ``indices`` fill whole micro-batches. Where ``repeats`` of both would last longer than ``seconds`` even
    with a batch of one micro-batch, the document says so and has no figures.
    """
    work, size = trainer(run, splits, world), run.train.micro_batch
    one = _micro_batch_seconds(work, len(splits.classes), seconds)
    fits = int(seconds / (2 * repeats + 2) / one)  # micro-batches of one measurement
    cuda = world.device.type == "cuda"
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(world.device) if cuda else world.device.type,
        "precision": run.train.precision,
        "micro_batch": size,
    }
    if not steps and not fits:
        why = f"a micro-batch takes about {one:.0f} s on this device: give --seconds {ceil(one * (2 * repeats + 2))}"
        return document | {"left_out": why}
    batch = run.train.batch if steps or fits * size >= run.train.batch else size
    steps = steps or min(MOST_STEPS, fits * size // batch)
    loader = TimedLoader(run, splits, world.device, [indices[i : i + size] for i in range(0, len(indices), size)])
    document |= {"batch": batch, "steps": steps, "workers": loader.workers}
    return document | _compare(work.resized(batch, size), loader, steps, repeats)


def _compare(work: Trainer, loader: TimedLoader, steps: int, repeats: int) -> dict[str, Any]:
    resident = loader.next()
    work.step(0, lambda: resident)
    found: dict[str, list[float]] = {"with_data": [], "resident": []}
    waited, images, at = [], steps * work.run.train.batch, 1

    def without_loader() -> None:
        found["resident"].append(images / work.seconds(at, steps, lambda: resident))

    def with_loader() -> None:
        loader.empty()
        work.step(at, loader.next)  # the workers run again, as they always do in training
        loader.waited = 0.0
        seconds = work.seconds(at, steps, loader.next)
        found["with_data"].append(images / seconds)
        waited.append(loader.waited / seconds)

    for turn in range(repeats):
        for once in (without_loader, with_loader) if turn % 2 else (with_loader, without_loader):
            once()
            at += steps
    efficiency = [w / r for w, r in zip(found["with_data"], found["resident"], strict=True)]
    return {
        "images_per_second": {name: spread(values) | {"repeats": values} for name, values in found.items()},
        "efficiency": spread(efficiency) | {"repeats": efficiency},
        "waiting_for_data": spread(waited),
        "prepare_us_per_image": _prepare(work, loader, repeats),
    }


def _prepare(work: Trainer, loader: TimedLoader, repeats: int) -> dict[str, float]:
    """uint8 to normalised floats with erased boxes, on the device; part of ``with_data``."""
    found, batch = [], next(loader.batches)
    for _ in range(repeats):
        work.wait()
        since = time.perf_counter()
        loader.prepare(batch)
        work.wait()
        found.append(1e6 * (time.perf_counter() - since) / len(batch.labels))
    return spread(found)


def _micro_batch_seconds(work: Trainer, classes: int, seconds: float) -> float:
    """A step of one micro-batch; where trying it may last too long, the upper bound that two images give."""
    size = work.run.train.micro_batch
    rough = _step_seconds(work, classes, TRIAL) * size / TRIAL
    return _step_seconds(work, classes, size) if 2 * rough < seconds / 4 else rough


def _step_seconds(work: Trainer, classes: int, images: int) -> float:
    """The second step with this many images in one micro-batch; the first one warms up."""
    side, device = work.run.data.size, work.world.device
    layout = torch.channels_last if work.run.train.images_channels_last else torch.contiguous_format
    pixels = torch.zeros(images, 3, side, side, device=device).contiguous(memory_format=layout)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    resident = pixels, soft_targets(labels, classes, work.run.optim.label_smoothing)
    single = work.resized(images, images)
    single.step(0, lambda: resident)
    return single.seconds(1, 1, lambda: resident)
