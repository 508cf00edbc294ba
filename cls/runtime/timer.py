"""Where the time of a process goes, for the goodput of its run."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("startup", "data", "compute", "exchange", "evaluation", "saving")


class Timer:
    """Seconds by kind; each moment counts once, for the innermost kind.

    ``startup`` lasts from the job's or the process's beginning to the first micro-batch, whatever is done in it;
    ``data`` is waiting for the loader, ``exchange`` the sum over ranks with the wait for slower ones (on a GPU, and
    with ``train.reduce = fast``, it runs beside the computation and is counted there), ``saving`` what a checkpoint
    keeps the training waiting. ``compute`` is the rest: what all the others are there for.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._kind = "startup"
        self._seconds["startup"] = max(0.0, time.time() - began())
        self._since = time.monotonic()

    def loop(self) -> None:
        """A micro-batch is there: start-up is over; costs a comparison."""
        if self._kind == "startup":
            self.turn("compute")

    def turn(self, kind: str) -> None:
        """What follows is of this kind."""
        now = time.monotonic()
        self._seconds[self._kind] += now - self._since
        self._since, self._kind = now, kind

    @contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """What happens inside is of this kind; costs 3 us, a step has a handful of them."""
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
    """Unix time at which this attempt began: the job's start where slurm/train.sh tells it, else this process's."""
    if "CLS_SUBMIT_TIME" in os.environ and os.environ.get("SLURM_JOB_START_TIME"):
        return float(os.environ["SLURM_JOB_START_TIME"])
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # since boot
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def queued() -> float:
    """Seconds this job waited before it could start, as slurm/train.sh tells it; 0 elsewhere."""
    submitted = os.environ.get("CLS_SUBMIT_TIME")
    return max(0.0, began() - float(submitted)) if submitted else 0.0
