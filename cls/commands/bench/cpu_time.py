"""CPU time per image of this process and of running loader workers, between two moments at which all are idle."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

IDLE_CHECKS = 4  # in a row, at which no worker may have done anything
CHECK_SECONDS = 0.01
LONGEST = 100_000  # batches of one loader: more than any measurement takes


class Cost(NamedTuple):
    """Seconds of CPU time per image."""

    main: float
    worker: float

    @property
    def total(self) -> float:
        return self.main + self.worker


def cpu_seconds(pid: int) -> float:
    """CPU time that a running process and all its threads have used, in nanosecond steps.

    The clock that clock_getcpuclockid(3) gives on Linux: /proc/PID/stat counts in steps of 10 ms, RUSAGE_CHILDREN only
    processes that have ended.
    """
    return time.clock_gettime((~pid << 3) | 2)


def wait_until_idle(pids: Sequence[int]) -> None:
    """Until no thread of these processes runs and none has used CPU time, in IDLE_CHECKS checks in a row."""
    idle, before = 0, [0.0] * len(pids)
    while idle < IDLE_CHECKS:
        time.sleep(CHECK_SECONDS)
        now = [cpu_seconds(pid) for pid in pids]
        idle = idle + 1 if now == before and not any(map(_runs, pids)) else 0
        before = now


def _runs(pid: int) -> bool:
    """A runnable thread that gets no core on a busy machine is not idle; nor is one that waits for the disk."""
    states = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # that thread has just ended
            states.append(task.read_text().rpartition(")")[2].split()[0])
    return any(state in "RD" for state in states)


class Lists:
    """Lists of indices, repeated, and how many of them a loader has taken."""

    def __init__(self, lists: Sequence[list[int]]) -> None:
        self.lists, self.taken = lists, 0

    def __iter__(self) -> Iterator[list[int]]:
        while self.taken < LONGEST:
            self.taken += 1
            yield self.lists[(self.taken - 1) % len(self.lists)]

    def __len__(self) -> int:
        return LONGEST


class Stream:
    """A loader with worker processes, measured by the CPU time per image in the main process and in its workers.

    ``make`` starts the loader on :class:`Lists`, whose lists it takes in the main process. A measurement starts and
    ends when the workers are idle, so it includes neither the start nor a part of a batch: all worker images that are
    counted were produced within it, and ``lists`` is received once. The lists are repeated: each measurement has the
    same images.
    """

    def __init__(self, make: Callable[[Lists], Iterator[object]], lists: Sequence[list[int]]) -> None:
        self.lists = Lists(lists)
        self.images = len(lists[0])
        assert all(len(one) == self.images for one in lists)
        before = {child.pid for child in multiprocessing.active_children()}
        self.batches = make(self.lists)
        next(self.batches)  # the workers have started
        after = multiprocessing.active_children()
        self.workers = sorted(child.pid for child in after if child.pid is not None and child.pid not in before)
        wait_until_idle(self.workers)

    def measure(self) -> Cost:
        taken, main = self.lists.taken, time.process_time()
        workers = sum(map(cpu_seconds, self.workers))
        for _ in self.lists.lists:
            next(self.batches)
        main = time.process_time() - main
        wait_until_idle(self.workers)
        workers = sum(map(cpu_seconds, self.workers)) - workers
        made = (self.lists.taken - taken) * self.images
        received = len(self.lists.lists) * self.images
        assert made or not self.workers, "the loader has taken its indices in advance"
        return Cost(main / received, workers / made if made else 0.0)

    def close(self) -> None:
        """Ends the workers: a loader's iterator does so when it is deleted."""
        del self.batches
