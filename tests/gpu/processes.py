"""Processes of the check: each has a log, a time limit, and a group that is killed with it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.gpu.rows import NoTime

RUN_SECONDS = 100.0  # longest process; one that hangs leaves time for the others


class Processes:
    """Starts commands in the project's root; none outlives ``seconds`` from now.

    OUT/NAME.log has their standard error, OUT/NAME.out their standard output.
    """

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.end = out, time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def start(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        """``python ARGUMENTS``; NoTime if the time is used up."""
        if self.left() <= 0:
            raise NoTime
        with self.log(name).open("ab") as log, self.output(name).open("ab") as output:
            return subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=log, start_new_session=True)

    def wait(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Until it ends; RuntimeError with the end of its log if that is not well."""
        code = self.code(process)
        if code:
            raise RuntimeError(f"exit status {code}: {self.last_line(name)}")

    def code(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status; TimeoutError after RUN_SECONDS, NoTime where the check's time ends before."""
        limit = min(self.left(), RUN_SECONDS)
        try:
            return process.wait(max(limit, 1.0))
        except subprocess.TimeoutExpired:
            kill(process)
            if limit < RUN_SECONDS:
                raise NoTime(f"not over after {limit:.0f} s, when the time was used up") from None
            raise TimeoutError(f"not over after {limit:.0f} s") from None

    def log(self, name: str) -> Path:
        return self.out / f"{name}.log"

    def output(self, name: str) -> Path:
        return self.out / f"{name}.out"

    def last_line(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
