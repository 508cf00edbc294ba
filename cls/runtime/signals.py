"""Stop requests. They set a flag, which the training loop reads at step boundaries and on which all ranks agree."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO, cast

from cls.runtime.console import Unread

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
ECHO_SECONDS = 2.0  # the launcher forwards Ctrl-C: ignore a second SIGINT within this time
LOOK_SECONDS = 1.0  # between checks of the stop file, the deadline and the launcher
SPARE_SECONDS = 30.0  # reserved before the job's end for starting and ending programs


class Stopped(KeyboardInterrupt):
    """The run ends early. A KeyboardInterrupt, on which torch's loader workers exit silently."""


class StopSignal:
    """The stop requests of this process.

    SIGTERM, SIGINT, SIGUSR1, SIGHUP, a file ``<out>/stop``, the end of the SLURM job (SLURM_JOB_END_TIME) minus the
    time that stopping takes, the launcher's death, and output that nobody reads any more. ``reason`` is '' until the
    first. A second Ctrl-C sets ``at_once``: stop without waiting for the other processes; a third one kills.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.at_once = False
        self.leave_seconds = 30.0  # of a checkpoint; the longest so far, once there is one
        self._file: Path | None = None
        self._end = 0.0
        # without a launcher the parent is a shell, which may end: `nohup python train.py &`, then logging out
        launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
        self._launcher = os.getppid() if launched else 0
        self._interruptible = False
        self._until = "this step with a checkpoint"
        self._interrupted = 0.0
        self._looked = self._asked = time.monotonic()
        self._slowest = 0.0

    def listen(self) -> None:
        self._process = os.getpid()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, on purpose
                signal.signal(number, self._receive)

    def ignore_signals(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def watch(self, out: Path) -> None:
        """Also check the stop file, the job's end and whether the output has a reader; on one rank, which the others
        follow."""
        sys.stdout, sys.stderr = (cast(TextIO, Unread(stream, self._unread)) for stream in (sys.stdout, sys.stderr))
        self._file = out / "stop"
        self._file.unlink(missing_ok=True)  # an earlier attempt's request
        self._end = float(os.environ.get("SLURM_JOB_END_TIME") or 0)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal raises Stopped inside: for work that loses nothing and for which no other rank waits."""
        if self.reason:
            raise Stopped(self.reason)
        before, self._interruptible = self._interruptible, True
        try:
            yield
        finally:
            self._interruptible = before

    @contextmanager
    def deferred(self, until: str) -> Iterator[None]:
        """Inside, a signal only sets ``reason`` and prints ``until``: for work that must not be interrupted."""
        before, self._interruptible, self._until = (self._interruptible, self._until), False, until
        try:
            yield
        finally:
            self._interruptible, self._until = before

    def requested(self) -> bool:
        """True once this process was asked to stop; 1 us, and some system calls once a second."""
        now = time.monotonic()
        self._slowest, self._asked = max(self._slowest, now - self._asked), now
        if not self.reason and now - self._looked >= LOOK_SECONDS:
            self._looked, seen = now, self._look()
            self.reason = self.reason or seen  # a signal may have arrived meanwhile
        return bool(self.reason)

    def _unread(self) -> None:
        self.reason = self.reason or "nobody reads the output any more"

    def _look(self) -> str:
        if self._launcher not in (0, os.getppid()):
            return "the launcher has ended"
        if self._file is not None and self._file.exists():
            return f"{self._file} exists"
        left = self._end - time.time()
        # flags are read one step later: two steps may pass before the checkpoint
        if self._end and left < SPARE_SECONDS + 2 * self.leave_seconds + 3 * self._slowest:
            return f"the job ends in {left:.0f} seconds"
        return ""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader worker, which Ctrl-C reaches, too: it ends with its owner
        now, first = time.monotonic(), not self.reason
        self.reason = self.reason or signal.Signals(number).name
        if number == signal.SIGINT:
            if self._interrupted and now - self._interrupted > ECHO_SECONDS:
                self.at_once = True
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._interrupted = self._interrupted or now
        if self._interruptible:
            raise Stopped(self.reason)
        if first and os.environ.get("RANK", "0") == "0":
            # not print: a signal may arrive inside another print
            with suppress(BrokenPipeError):
                os.write(2, f"\n{self.reason}: stopping after {self._until}\n".encode())
