"""Seconds of a process by kind, for the goodput of its run."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("startup", "data", "compute", "exchange", "evaluation", "saving")


class Timer:
    """Seconds by kind; each moment counts once, for the innermost kind.

    ``startup``: from the start of the job or process to the first micro-batch; ``data``: waiting for the loader;
    ``exchange``: the sum over ranks, with the wait for slower ones (on a GPU and with ``train.reduce = fast`` it
    overlaps with the computation and counts as that); ``saving``: waiting for checkpoints; ``compute``: the rest.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind = "startup"
        self._seconds["startup"] = max(0.0, time.time() - began())
        self._since = time.monotonic()

    def loop(self) -> None:
        """The first micro-batch ends start-up."""
        if self._kind == "startup":
            self.turn("compute")

    def turn(self, kind: str) -> None:
        """From now on time counts as ``kind``."""
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        self._since, self._kind = now, kind

    @contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Time inside counts as ``kind``; costs 3 us."""
        before = self._kind
        if before != "startup":
            self.turn(kind)
        try:
            yield
        finally:
            if before != "startup":
                self.turn(before)

    def read(self) -> dict[str, float]:
        self.turn(self._kind)
        return {kind: round(seconds, 3) for kind, seconds in self._seconds.items()}


def began() -> float:
    """Unix time at which this attempt began: the job's start from slurm/train.sh, else this process's."""
    if "CLS_SUBMIT_TIME" in os.environ and os.environ.get("SLURM_JOB_START_TIME"):
        return float(os.environ["SLURM_JOB_START_TIME"])
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # since boot
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def queued() -> float:
    """Seconds that this job was queued, from slurm/train.sh; 0 elsewhere."""
    submitted = os.environ.get("CLS_SUBMIT_TIME")
    return max(0.0, began() - float(submitted)) if submitted else 0.0
