"""From draws to micro-batches on the device: worker processes write uint8 pixels into memory that all processes share.

Only slot numbers, labels and the like cross a pipe. Copying pixels there and back costs 200 us an image at 224 px,
most of it page faults of fresh memory; here the same pages are used again and again.
"""

import logging
import math
import mmap
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from cls.cluster.measure import cgroup_limits, memory_bytes
from cls.data.draws import Batch, Found, Source, batch_of, made_here
from cls.models import Statistics
from cls.outcome import DataError
from cls.seed import torch_seed

log = logging.getLogger("cls")
T = TypeVar("T")

CPU = torch.device("cpu")
PREFETCH = 4  # batches that each worker may be ahead


class MicroBatchDraws:
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


def worker_count(wanted: int, local_world: int) -> int:
    """Loader processes per rank: the cores that this process may really use, shared by the ranks of its machine."""
    return wanted if wanted >= 0 else min(16, max(1, cores() // local_world))


def cores() -> int:
    """Cores of this process: those it is bound to, or fewer where its control group's quota allows fewer."""
    bound, quota = len(os.sched_getaffinity(0)), cgroup_limits().cores
    return bound if math.isinf(quota) else min(bound, ceil(quota))


class Slots(Dataset[tuple[int, Found]]):
    """A worker's side: fills the slots of the shared memory in turn.

    The loader lets a worker be at most PREFETCH batches ahead of the one that has been handed out last, so with two
    slots more none is written to that is still being read: no locks, and nothing to clean up after a kill.
    """

    def __init__(self, source: Source, largest: int, workers: int) -> None:
        self.source, self.each = source, PREFETCH + 2
        shape = (workers * self.each, largest, source.size, source.size, 3)
        _check_room(int(np.prod(shape)), workers)
        # not /dev/shm, which containers keep small
        self.pixels = torch.frombuffer(mmap.mmap(-1, int(np.prod(shape))), dtype=torch.uint8).view(shape)
        self.busy = np.frombuffer(mmap.mmap(-1, workers * 3 * 8), dtype=np.int64).reshape(workers, 3)
        self._count = 0

    def __getitems__(self, indices: list[int]) -> tuple[int, Found]:
        worker = get_worker_info()
        assert worker is not None
        self.busy[worker.id] = os.getpid(), indices[0], indices[-1]
        slot = worker.id * self.each + self._count % self.each
        self._count += 1
        return slot, self.source.fill(indices, self.pixels[slot].numpy())


def batches(
    source: Source, indices: Iterable[list[int]], workers: int, largest: int, device: torch.device = CPU
) -> Iterator[Batch]:
    """Batches in the order of ``indices``, none longer than ``largest``, whatever the number of workers.

    The pixels of a batch are overwritten after the next one has been asked for. DataError where a worker dies.
    """
    if not workers:
        yield from (made_here(source, some) for some in indices)
        return
    slots = Slots(source, largest, workers)
    loader: DataLoader[tuple[int, Found]] = DataLoader(
        slots,
        batch_sampler=indices,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",  # the shared memory is inherited
        generator=torch.Generator(),  # the default would draw worker seeds from the generator of the dropout masks
    )
    found = started(loader)
    with _pinned(slots.pixels, device):  # after the workers have been forked
        while True:
            try:
                slot, facts = next(found)
            except StopIteration:
                return
            except DataError as error:  # torch puts the worker's traceback before its message
                raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise  # of a worker that lives: a fault of ours
                raise DataError(_epitaph(str(error), slots.busy)) from error
            yield batch_of(slots.pixels[slot, : len(facts.draws)], facts)


def started(loader: DataLoader[T]) -> Iterator[T]:
    """Its iterator, whose ``next()`` alone tells of a worker's death, within 5 s.

    torch also has the signal of a child's end raise it, wherever the main thread is: in a backward pass, or in the
    validation that another loader feeds.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    found = iter(loader)
    if main and before is not None:  # None: not Python's, which could not be set again
        signal.signal(signal.SIGCHLD, before)
    return found


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


def _as_it_is(found: Any) -> Any:
    return found


def _epitaph(message: str, busy: np.ndarray) -> str:
    gone = [row for row in busy.tolist() if str(row[0]) in re.findall(r"\d+", message)]
    what = ", ".join(f"{pid} at draws {first} to {last}" for pid, first, last in gone)
    return (
        f"a loader process ended unexpectedly ({what or message}): if memory ran out, use fewer with --data.workers "
        "(--workers of a cls verb); if it is always the same draws of a training, `cls show --step` draws them"
    )


def _check_room(wanted: int, workers: int) -> None:
    """ValueError before the kernel kills a process for want of memory."""
    free = min(memory_bytes()[1], cgroup_limits().memory)
    if wanted > free:
        raise ValueError(
            f"data.workers: {workers} loader processes share {wanted / 1e9:.1f} GB of images but {free / 1e9:.1f} GB "
            f"are free: use --data.workers {max(1, int(workers * free / wanted / 2))}"
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
