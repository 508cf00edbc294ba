"""From sample indices to batches on the device: workers write uint8 pixels into memory that all processes share.

Only slot numbers, labels and the like cross a socket. Copying pixels there and back costs 200 us an image at 224 px,
most of it page faults of fresh memory; here the same pages are used again and again.
"""

import logging
import math
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import cycle, islice
from math import ceil
from typing import NamedTuple, Self

import torch
from torch import Tensor

from cls.data.dataset import Batch, Found, Source, batch_of, made_here
from cls.data.workers import WorkerDied, Workers
from cls.models.backbones import Statistics
from cls.runtime.exit import DataError
from cls.runtime.rng import torch_seed
from cls.runtime.system import cgroup_limits, memory_bytes

log = logging.getLogger("cls")

CPU = torch.device("cpu")
PREFETCH = 4  # micro-batches that each worker may be ahead
AHEAD = 2  # the same of evaluation batches, which are larger


class MicroBatchSampler:
    """The draws of this rank's micro-batches from step ``start`` on: step s owns draws [s·B, (s+1)·B)."""

    def __init__(self, start: int, stop: int, batch: int, micro_batch: int, share: range) -> None:
        self.start, self.stop, self.batch, self.micro_batch, self.share = start, stop, batch, micro_batch, share

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for index in self.share:
                first = step * self.batch + index * self.micro_batch
                yield list(range(first, first + self.micro_batch))

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.share)


def worker_count(wanted: int, local_size: int) -> int:
    """Loader processes per rank: the cores that this process may really use, shared by the ranks of its machine."""
    return wanted if wanted >= 0 else min(16, max(1, cores() // local_size))


def cores() -> int:
    """Cores of this process: those it is bound to, or fewer where its control group's quota allows fewer."""
    bound, quota = len(os.sched_getaffinity(0)), cgroup_limits().cores
    return bound if math.isinf(quota) else min(bound, ceil(quota))


class Group(NamedTuple):
    """Sources that are read one after the other, never two at a time: they share one piece of memory."""

    sources: Sequence[Source]
    largest: int
    """Images of their longest batch."""
    ahead: int
    """Batches that each worker may be ahead of the one that is handed out."""


class Slots:
    """Places for the batches of one group, in memory that is shared with the workers; each uses its own in turn.

    A worker is at most ``ahead`` batches ahead of the one that is handed out: with one slot more, none is written to
    while it is being read. No locks, and nothing to clean up after a kill.
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
    (size,) = {source.size for source in group.sources}
    return workers * (group.ahead + 1), group.largest, size, size, 3


class Loader:
    """The one set of loader processes of a program: they serve each source of ``groups``, several at the same time.

    Without workers the main process decodes. Construct it before the first thread is started: it forks.
    """

    def __init__(self, groups: Sequence[Group], workers: int, device: torch.device = CPU) -> None:
        self._sources = [source for group in groups for source in group.sources]
        self._stack = ExitStack()
        self._workers: Workers | None = None
        if not workers:
            return
        _check_room(sum(math.prod(slots_shape(group, workers)) for group in groups), workers)
        slots = [Slots(group, workers) for group in groups]
        self._slots = [one for group, one in zip(groups, slots, strict=True) for _ in group.sources]
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

    def _fill(self, task: tuple[int, int, Sequence[int]]) -> Found:
        """A worker's side."""
        number, slot, indices = task
        return self._sources[number].fill(indices, self._slots[number].pixels[slot].numpy())

    def batches(self, source: Source, indices: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Batches of ``source`` in the order of ``indices``, whatever the number of workers.

        The pixels of a batch are overwritten after the next one has been asked for. DataError where a worker dies.
        """
        if self._workers is None:
            yield from (made_here(source, some) for some in indices)
            return
        workers, number = self._workers, next(i for i, one in enumerate(self._sources) if one is source)
        slots, wanted, turns = self._slots[number], iter(indices), cycle(range(len(workers)))
        pending: deque[tuple[int, int, int, Sequence[int]]] = deque()

        def ask() -> None:
            for some in islice(wanted, 1):
                worker = next(turns)
                slot = slots.next(worker)
                pending.append((worker, slot, workers.ask(worker, (number, slot, _compact(some))), some))

        try:
            for _ in range(slots.ahead * len(workers)):
                ask()
            while pending:
                worker, slot, ticket, some = pending[0]
                facts = self._answer(worker, ticket, source, some)
                pending.popleft()
                ask()
                yield batch_of(slots.pixels[slot, : len(facts.draws)], facts)
        finally:
            for _, _, ticket, _ in pending:
                workers.drop(ticket)

    def _answer(self, worker: int, ticket: int, source: Source, indices: Sequence[int]) -> Found:
        assert self._workers is not None
        try:
            found: Found = self._workers.answer(worker, ticket)
            return found
        except WorkerDied as error:
            raise DataError(_obituary(error, self._sources[error.task[0]])) from None
        except MemoryError as error:
            raise MemoryError(f"{error} at {source.describe(indices)}: use fewer --data.workers") from error


def batches(
    source: Source, indices: Iterable[Sequence[int]], workers: int, largest: int, device: torch.device = CPU
) -> Iterator[Batch]:
    """Batches of one source, by loader processes of its own; see :meth:`Loader.batches`."""
    with Loader([Group([source], largest, PREFETCH)], workers, device) as loader:
        yield from loader.batches(source, indices)


def _compact(indices: Sequence[int]) -> Sequence[int]:
    """Neighbours as a range: a task is then a few bytes, however long the batch is."""
    together = range(indices[0], indices[-1] + 1)
    return together if len(together) == len(indices) and [*together] == [*indices] else indices


@contextmanager
def _pinned(memory: Tensor, device: torch.device) -> Iterator[None]:
    """Page-locked where the device is a GPU, so that copies to it run beside the computation."""
    if device.type != "cuda":
        yield
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    failed = int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if failed:
        with suppress(RuntimeError):  # the error would be raised by what is launched next
            torch.zeros(1, device=device)
        log.info("the loader's memory cannot be page-locked (CUDA error %d): copies to the GPU take longer", failed)
    try:
        yield
    finally:
        if not failed:
            runtime.cudaHostUnregister(memory.data_ptr())


def _obituary(error: WorkerDied, source: Source) -> str:
    what = source.describe(error.task[2])
    return f"{error} at {what}: if memory ran out, use fewer with --data.workers (--workers of other commands)" + (
        "; if it is always the same draws of a training, `cls show --step` draws them" if "draws" in what else ""
    )


def _check_room(wanted: int, workers: int) -> None:
    """ValueError before the kernel kills a process for want of memory."""
    free = min(memory_bytes()[1], cgroup_limits().memory)
    if wanted > free:
        fewer = int(workers * free / wanted / 2)
        raise ValueError(
            f"data.workers: {workers} loader processes share {wanted / 1e9:.1f} GB of images but {free / 1e9:.1f} GB "
            f"are free: use --data.workers {fewer}"
            + ("" if fewer else " and smaller --train.eval-batch and --train.micro-batch")
        )


class Preprocess(NamedTuple):
    """uint8 micro-batches to normalised floats on the device, erased boxes filled with noise before normalising."""

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
                noise.manual_seed(torch_seed(self.seed, "erase", batch.draws[i]))
                box = torch.randn(3, height, width, generator=noise, device=device)
                images[i, :, top : top + height, left : left + width] = box
        images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def _on_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Copied beside what the GPU computes; the host waits for the copy, so that the slot is free again."""
    if device.type != "cuda":
        return pixels
    beside = _stream(device)
    with torch.cuda.stream(beside):
        copied = pixels.to(device, non_blocking=True)
    beside.synchronize()
    copied.record_stream(torch.cuda.current_stream(device))
    return copied


@lru_cache(maxsize=1)
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all copies: memory is kept by stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def preprocess(statistics: Statistics, seed: int, channels_last: bool, device: torch.device) -> Preprocess:
    """``statistics``: mean and std of each channel, in units of [0, 1]."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in statistics)
    return Preprocess(mean, std, seed, channels_last)
