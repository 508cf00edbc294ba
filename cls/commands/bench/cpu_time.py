"""CPU time of this process and of loader workers that are still alive, from one standstill to the next."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CALM = 4  # looks in a row at which no worker may have done anything
LOOK_SECONDS = 0.01
LONGEST = 100_000  # batches that one loader may be asked for: more than any measurement takes


class Cost(NamedTuple):
    """Seconds of CPU time per image."""

    main: float
    worker: float

    @property
    def total(self) -> float:
        return self.main + self.worker


def cpu_seconds(pid: int) -> float:
    """CPU time that a live process and all its threads have used, in nanosecond steps.

    The clock that clock_getcpuclockid(3) gives on Linux: /proc/PID/stat counts in steps of 10 ms, RUSAGE_CHILDREN only
    processes that have ended.
    """
    return time.clock_gettime((~pid << 3) | 2)


def still(pids: Sequence[int]) -> None:
    """Wait until these processes wait: none of their threads runs and none of their clocks moves, 4 looks in a row."""
    calm, before = 0, [0.0] * len(pids)
    while calm < CALM:
        time.sleep(LOOK_SECONDS)
        now = [cpu_seconds(pid) for pid in pids]
        calm = calm + 1 if now == before and not any(map(_runs, pids)) else 0
        before = now


def _runs(pid: int) -> bool:
    """A runnable thread that gets no core on a crowded machine is not idle; nor is one that waits for the disk."""
    states = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # that thread has just ended
            states.append(task.read_text().rpartition(")")[2].split()[0])
    return any(state in "RD" for state in states)


class Lists:
    """Lists of indices, over and over, and how many of them a loader has taken."""

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

    ``make`` starts the loader on :class:`Lists`, which it takes in the main process as it hands them out. A measurement
    goes from a standstill (all that was handed out is ready) to the next one, so it holds neither start-up nor half a
    batch: each worker image that is counted has been produced within it, and as many batches as ``lists`` holds are
    received. The lists come round, so these are the same images in every measurement.
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
        still(self.workers)

    def measure(self) -> Cost:
        taken, main = self.lists.taken, time.process_time()
        workers = sum(map(cpu_seconds, self.workers))
        for _ in self.lists.lists:
            next(self.batches)
        main = time.process_time() - main
        still(self.workers)
        workers = sum(map(cpu_seconds, self.workers)) - workers
        made = (self.lists.taken - taken) * self.images
        received = len(self.lists.lists) * self.images
        assert made or not self.workers, "the loader has taken its indices in advance"
        return Cost(main / received, workers / made if made else 0.0)

    def close(self) -> None:
        """Ends the workers: a loader's iterator does so when nobody holds it."""
        del self.batches
