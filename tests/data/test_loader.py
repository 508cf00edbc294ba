"""Batches through worker processes: the right pixels, in order, in reused memory; dead workers are reported."""

import gc
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cls.data import loader
from cls.data.dataset import BatchInfo
from cls.data.loader import PREFETCH, Group, Loader, batches, load_batch, worker_count
from cls.runtime import system
from cls.runtime.exit import DataError
from cls.runtime.system import cores, memory_bytes
from cls.transforms.jpeg import Pixels


class Numbers:
    """A source whose pixels say which index they are of; ``slow`` indices take their time, ``last`` kills."""

    size = 8

    def __init__(self, slow: Sequence[int] = (), last: int = -1) -> None:
        self.slow, self.last = set(slow), last

    def describe(self, indices: Sequence[int]) -> str:
        return f"sample indices {indices[0]} to {indices[-1]}"

    def fill(self, indices: Sequence[int], out: Pixels) -> BatchInfo:
        for at, index in enumerate(indices):
            if index in self.slow:
                time.sleep(0.05)
            if index == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            out[at] = index % 251
            out[at, 0, 0] = index // 251
        none = [(0, 0, 0, 0)] * len(indices)
        return BatchInfo([index % 7 for index in indices], none, list(indices), list(indices), [])


def of(batch: loader.Batch) -> list[int]:
    """The indices that the pixels tell of."""
    for image in batch.pixels:
        assert (image.permute(1, 2, 0).reshape(-1, 3)[1:] == image[0, 1, 1]).all()  # no pixel of another image
    return [251 * int(image[0, 0, 0]) + int(image[0, 1, 1]) for image in batch.pixels]


LISTS = [list(range(first, first + 4)) for first in range(0, 800, 4)] + [[900, 901]]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_no_slot_is_written_to_while_it_is_read(workers: int) -> None:
    """The consumer looks again after a pause in which the workers go as far ahead as they may."""
    rng = np.random.default_rng(workers)
    slow = rng.choice(800, 20, replace=False).tolist()
    for expected, batch in zip(LISTS, batches(Numbers(slow), LISTS, workers, 4), strict=True):
        assert of(batch) == expected == batch.indices and batch.labels.tolist() == [i % 7 for i in expected]
        if rng.random() < 0.1:
            time.sleep(0.03)
        assert of(batch) == expected


def test_slots_are_used_again_and_a_batch_ends_with_the_next_one() -> None:
    first, kept = None, None
    addresses = set()
    for batch in batches(Numbers(), LISTS, 1, 4):
        addresses.add(batch.pixels.data_ptr())
        if first is None:
            first, kept = batch, batch.pixels.clone()
    assert len(addresses) == PREFETCH + 1
    assert first is not None and kept is not None and not first.pixels.equal(kept)  # so callers must not keep them


def test_without_workers_it_is_the_same() -> None:
    here = [load_batch(Numbers(), some) for some in LISTS]
    for one, batch in zip(here, batches(Numbers(), LISTS, 0, 4), strict=True):
        assert batch.pixels.equal(one.pixels) and batch[2:] == one[2:] and batch.labels.equal(one.labels)
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)


def test_a_dead_worker_is_an_error_that_names_its_sample_indices() -> None:
    seen = 0
    with pytest.raises(DataError) as caught:
        for batch in batches(Numbers(last=102), LISTS, 2, 4):
            seen += len(batch.indices)
    for part in ("at sample indices 100 to 103", "data.workers", "cls show"):
        assert part in str(caught.value)
    assert seen <= 100


def test_a_worker_that_dies_meanwhile_is_reported_by_its_own_loader_alone() -> None:
    """Not by a signal in the middle of a step, nor by the loader of a validation: they could not name its images."""
    training = batches(Numbers(slow=(8, 9), last=10), LISTS, 1, 4)  # what is before them has arrived
    assert of(next(training)) == [0, 1, 2, 3]
    end = time.monotonic() + 2
    while time.monotonic() < end:  # as a step: the worker is dead long before its end
        torch.ones(64, 64) @ torch.ones(64, 64)
    assert sum(len(batch.indices) for batch in batches(Numbers(), LISTS, 1, 4)) == 802
    with pytest.raises(DataError, match="at sample indices 8 to 11"):
        for _ in training:
            pass


def test_what_a_worker_rejects_is_its_message_alone() -> None:
    class Refusing(Numbers):
        def fill(self, indices: Sequence[int], out: Pixels) -> BatchInfo:
            raise DataError("20 images in a row are corrupt: cat.jpg")

    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            next(batches(Refusing(), LISTS, workers, 4))
        assert str(caught.value) == "20 images in a row are corrupt: cat.jpg"


def test_a_fault_in_a_worker_is_reported_as_it_is() -> None:
    class Faulty(Numbers):
        def fill(self, indices: Sequence[int], out: Pixels) -> BatchInfo:
            raise RuntimeError("tensors of another kind")

    with pytest.raises(RuntimeError, match="tensors of another kind") as caught:
        next(batches(Faulty(), LISTS, 1, 4))
    assert "unexpectedly" not in str(caught.value)


def test_no_shared_memory_file_and_no_descriptor_is_left() -> None:
    """Anonymous memory: containers keep /dev/shm small, and a killed process would leave its files there."""
    shared = Path("/dev/shm")
    gc.collect()  # what torch's loaders leave lies in circles, and other tests' may go in the middle of this one
    before, open_before = {path.name for path in shared.iterdir()}, len(os.listdir("/proc/self/fd"))
    for turn in range(3):
        for at, _ in enumerate(batches(Numbers(), LISTS, 1, 4)):
            if at == 0:
                during = {path.name for path in shared.iterdir() if not path.name.startswith("sem.")}
                assert during <= before
        gc.collect()
        if turn == 0:
            open_before = max(open_before, len(os.listdir("/proc/self/fd")))
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_too_little_memory_is_reported_before() -> None:
    class Huge(Numbers):
        size = 4096

    per_worker = (PREFETCH + 1) * 64 * 3 * 4096**2
    workers = memory_bytes()[1] // per_worker + 2
    with pytest.raises(ValueError, match=r"data\.workers: \d+ loader processes share .* use --data\.workers \d+"):
        Loader([Group([Huge()], 64, PREFETCH)], workers)


def test_workers_are_the_cores_that_there_really_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = len(os.sched_getaffinity(0))
    assert cores() <= bound
    assert worker_count(5, 1) == 5 and worker_count(-1, 100) == 1
    for usable, local_size, expected in ((8, 1, 7), (8, 4, 1), (9, 2, 3), (1, 1, 1), (64, 2, 16)):  # one is the rank's
        monkeypatch.setattr(loader, "cores", lambda usable=usable: usable)
        assert worker_count(-1, local_size) == expected
        monkeypatch.undo()
    for quota, expected in ((0.5, 1), (1.5, min(2, bound)), (float("inf"), bound)):
        limits = system.cgroup_limits()
        monkeypatch.setattr(system, "cgroup_limits", lambda q=quota, li=limits: type(li)(q, li.memory))
        assert cores() == expected
        monkeypatch.undo()


def test_a_copy_to_the_gpu_has_its_own_stream_and_its_memory_waits_for_the_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    stream = SimpleNamespace(synchronize=lambda: calls.append("host waits for the copy"))
    copied = SimpleNamespace(record_stream=lambda current: calls.append(f"kept for {current}"))
    pixels = SimpleNamespace(to=lambda device, non_blocking: (calls.append(f"copy {non_blocking}"), copied)[1])

    @contextmanager
    def inside(_: object) -> Iterator[None]:
        calls.append("enter stream")
        yield
        calls.append("leave stream")

    monkeypatch.setattr(loader, "_copy_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the default stream")
    assert loader._on_device(cast(Tensor, pixels), torch.device("cuda", 0)) is copied
    copying = ["enter stream", "copy True", "leave stream", "host waits for the copy"]
    assert calls == [*copying, "kept for the default stream"]
