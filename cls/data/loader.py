"""Sample indices -> batches on the device. Workers write uint8 pixels into memory shared by all processes.

Only slot numbers, labels and the like cross a socket: sending pixels would cost 200 us an image at 224 px, most of it
page faults of fresh memory. Here the same pages are reused.
"""

import logging
import math
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import cycle, islice
from typing import NamedTuple, Self

import torch
from torch import Tensor

from cls.data.dataset import BatchDataset, BatchInfo
from cls.data.workers import FEWER, WorkerDied, Workers
from cls.models.backbones import Statistics
from cls.runtime.exit import DataError
from cls.runtime.rng import torch_seed
from cls.runtime.system import cgroup_limits, cores, memory_bytes
from cls.transforms.pipeline import Area

log = logging.getLogger("cls")

CPU = torch.device("cpu")
PREFETCH = 4  # micro-batches that each worker may be ahead
AHEAD = 2  # the same for evaluation batches, which are larger


class Batch(NamedTuple):
    """b images in the order of their sample indices."""

    pixels: Tensor  # b 3 h w, uint8, channels last in memory
    labels: Tensor  # b, int64
    areas: list[Area]  # to be erased
    indices: list[int]
    rows: list[int]
    corrupt: list[tuple[int, str]]  # (row, reason)


def _batch(pixels: Tensor, info: BatchInfo) -> Batch:
    """``pixels``: b h w 3."""
    return Batch(pixels.permute(0, 3, 1, 2), torch.tensor(info.labels), *info[1:])


def load_batch(dataset: BatchDataset, indices: Sequence[int]) -> Batch:
    """A batch made in this process."""
    pixels = torch.empty(len(indices), dataset.size, dataset.size, 3, dtype=torch.uint8)
    return _batch(pixels, dataset.fill(indices, pixels.numpy()))


def worker_count(wanted: int, local_size: int) -> int:
    """Loader processes per rank: ``wanted``, or for -1 its part of the usable cores less one, which feeds the GPU."""
    return wanted if wanted >= 0 else min(16, max(1, cores() // local_size - 1))


class Group(NamedTuple):
    """Datasets that are never read at the same time: they share one buffer."""

    datasets: Sequence[BatchDataset]
    largest: int  # images in their largest batch
    ahead: int  # batches that each worker may be ahead of the one last returned


class Slots:
    """Shared-memory slots for the batches of one group; each worker uses its own in turn.

    A worker is at most ``ahead`` batches ahead of the one last returned: with one slot more, none is written while it
    is read. No locks, and nothing to clean up after a kill.
    """

    def __init__(self, group: Group, workers: int) -> None:
        self.ahead, self._each = group.ahead, group.ahead + 1
        self._counts = [0] * workers
        # not /dev/shm, which containers keep small
        shape = slots_shape(group, workers)
        self.pixels = torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)

    def next(self, worker: int) -> int:
        self._counts[worker] += 1
        return worker * self._each + self._counts[worker] % self._each


def slots_shape(group: Group, workers: int) -> tuple[int, int, int, int, int]:
    (size,) = {dataset.size for dataset in group.datasets}
    return workers * (group.ahead + 1), group.largest, size, size, 3


class Loader:
    """One set of loader processes for all datasets of ``groups``; datasets of different groups can be read together.

    With 0 workers the main process decodes. Construct it before the first thread is started: it forks.
    """

    def __init__(self, groups: Sequence[Group], workers: int, device: torch.device = CPU) -> None:
        self._datasets = [dataset for group in groups for dataset in group.datasets]
        self._stack = ExitStack()
        self._workers: Workers | None = None
        if not workers:
            return
        _check_memory(sum(math.prod(slots_shape(group, workers)) for group in groups), workers)
        slots = [Slots(group, workers) for group in groups]
        self._slots = [one for group, one in zip(groups, slots, strict=True) for _ in group.datasets]
        self._workers = Workers(workers, self._fill)
        self._stack.callback(self._workers.close)
        for one in slots:
            self._stack.enter_context(_pinned(one.pixels, device))  # after the workers have been forked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def pids(self) -> list[int]:
        return self._workers.pids if self._workers else []

    def _fill(self, task: tuple[int, int, Sequence[int]]) -> BatchInfo:
        """Runs in a worker."""
        number, slot, indices = task
        return self._datasets[number].fill(indices, self._slots[number].pixels[slot].numpy())

    def batches(self, dataset: BatchDataset, sampler: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Batches of ``dataset`` in the order of ``sampler``, whatever the number of workers.

        The pixels of a batch are overwritten once the next one has been requested. DataError where a worker dies.
        """
        if self._workers is None:
            yield from (load_batch(dataset, indices) for indices in sampler)
            return
        workers, number = self._workers, next(i for i, one in enumerate(self._datasets) if one is dataset)
        slots, remaining, turns = self._slots[number], iter(sampler), cycle(range(len(workers)))
        pending: deque[tuple[int, int, int, Sequence[int]]] = deque()

        def request() -> None:
            for indices in islice(remaining, 1):
                worker = next(turns)
                slot = slots.next(worker)
                pending.append((worker, slot, workers.ask(worker, (number, slot, _compact(indices))), indices))

        try:
            for _ in range(slots.ahead * len(workers)):
                request()
            while pending:
                worker, slot, ticket, indices = pending[0]
                info = self._answer(worker, ticket, dataset, indices)
                pending.popleft()
                request()
                yield _batch(slots.pixels[slot, : len(indices)], info)
        finally:
            for _, _, ticket, _ in pending:
                workers.drop(ticket)

    def _answer(self, worker: int, ticket: int, dataset: BatchDataset, indices: Sequence[int]) -> BatchInfo:
        assert self._workers is not None
        try:
            info: BatchInfo = self._workers.answer(worker, ticket)
            return info
        except WorkerDied as error:
            raise DataError(_died(error, self._datasets[error.task[0]])) from None
        except MemoryError as error:
            raise MemoryError(f"{error} at {dataset.describe(indices)}: use {FEWER}") from error


def batches(
    dataset: BatchDataset, sampler: Iterable[Sequence[int]], workers: int, largest: int, device: torch.device = CPU
) -> Iterator[Batch]:
    """Batches of one dataset with loader processes of its own; see :meth:`Loader.batches`."""
    with Loader([Group([dataset], largest, PREFETCH)], workers, device) as loader:
        yield from loader.batches(dataset, sampler)


def _compact(indices: Sequence[int]) -> Sequence[int]:
    """Consecutive indices as a range: the task is then a few bytes, however large the batch."""
    whole = range(indices[0], indices[-1] + 1)
    return whole if len(whole) == len(indices) and [*whole] == [*indices] else indices


@contextmanager
def _pinned(memory: Tensor, device: torch.device) -> Iterator[None]:
    """Page-locks ``memory`` for a GPU, so that copies overlap with computation."""
    if device.type != "cuda":
        yield
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    failed = int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if failed:
        with suppress(RuntimeError):  # clears the error, which the next launch would raise
            torch.zeros(1, device=device)
        log.info("loader memory cannot be page-locked (CUDA error %d): copies to the GPU are slower", failed)
    try:
        yield
    finally:
        if not failed:
            runtime.cudaHostUnregister(memory.data_ptr())


def _died(error: WorkerDied, dataset: BatchDataset) -> str:
    what = dataset.describe(error.task[2])
    return f"{error} at {what}: if memory ran out, use {FEWER}" + (
        "; if the training always fails at the same ones, `cls show --step` shows them" if "sample ind" in what else ""
    )


def _check_memory(needed: int, workers: int) -> None:
    """ValueError here, where the kernel would kill a process later."""
    free = min(memory_bytes()[1], cgroup_limits().memory)
    if needed > free:
        fewer = int(workers * free / needed / 2)
        raise ValueError(
            f"data.workers: {workers} loader processes share {needed / 1e9:.1f} GB of images but {free / 1e9:.1f} GB "
            f"are free: use --data.workers {fewer} (--workers of other commands)"
            + ("" if fewer else " and smaller --train.eval-batch and --train.micro-batch")
        )


class Preprocess(NamedTuple):
    """uint8 batches -> normalised floats on the device; erased boxes get noise before normalising."""

    mean: Tensor  # 1 3 1 1, in units of [0, 1]
    std: Tensor
    seed: int
    channels_last: bool

    def __call__(self, batch: Batch) -> Tensor:  # b 3 h w, float32
        device = self.mean.device
        images = _on_device(batch.pixels, device).float() / 255
        noise = torch.Generator(device)
        for i, (top, left, height, width) in enumerate(batch.areas):
            if height:
                noise.manual_seed(torch_seed(self.seed, "erase", batch.indices[i]))
                box = torch.randn(3, height, width, generator=noise, device=device)
                images[i, :, top : top + height, left : left + width] = box
        images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def _on_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Copied while the GPU computes; the host waits for the copy, after which the slot is free."""
    if device.type != "cuda":
        return pixels
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        copied = pixels.to(device, non_blocking=True)
    stream.synchronize()
    copied.record_stream(torch.cuda.current_stream(device))
    return copied


@lru_cache(maxsize=1)
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all copies: the allocator caches memory per stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def preprocess(statistics: Statistics, seed: int, channels_last: bool, device: torch.device) -> Preprocess:
    """``statistics``: mean and std of each channel, in units of [0, 1]."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in statistics)
    return Preprocess(mean, std, seed, channels_last)
