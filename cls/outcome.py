"""How a run ends: one word, one code and one reason, in ``<out>/exit.json`` and as the exit status.

``accelerate launch`` turns every non-zero status into 1 with a traceback of its own, so scripts read the file.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch

from cls.files import write_whole

CODES = {"done": 0, "error": 1, "user_error": 2, "data": 3, "non_finite": 4, "out_of_memory": 5, "stopped": 85}


class DataError(Exception):
    """The images cannot be used any further."""


class NonFiniteError(Exception):
    """The loss became infinite or not a number."""


class ForeignFolderError(ValueError):
    """The run directory belongs to something else: not even exit.json may be written there."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to leave; torch's loader workers leave quietly on a KeyboardInterrupt."""


class Ending:
    """``with Ending() as ending:`` around a run: turns what ends it into exit.json, a message and an exit status.

    A ValueError raised by this program's own code is a message to the user and is printed without a traceback.
    ``ending.out`` is the run directory once it is known, ``claimed`` once it is this run's; ``step``: steps done.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out) if out else None
        self.claimed = False
        self.step = 0
        self.message = ""
        self._since = time.time()
        self._main = os.environ.get("RANK", "0") == "0"

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, SystemExit) and error.code in (0, None):
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a repeated one must not cut exit.json off: this takes milliseconds
        outcome = classify(error)
        code = CODES[outcome]
        reason = self.message if error is None else str(error) or type(error).__name__
        if isinstance(error, SystemExit):
            outcome, code, reason = "user_error", CODES["user_error"], "the command line could not be understood"
        elif error is not None:
            self._say(outcome, reason, error)
        self._write(outcome, code, reason, error)
        sys.stdout.flush()
        sys.stderr.flush()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            os._exit(code)  # gloo's teardown aborts one process in ten; everything is flushed and closed by now
        sys.exit(code)

    def _say(self, outcome: str, reason: str, error: BaseException) -> None:
        if outcome == "error":
            traceback.print_exception(error)
        elif self._main:
            print(f"{outcome.replace('_', ' ')}: {reason}", file=sys.stderr)
            if outcome == "stopped":
                print("the same command continues from the last checkpoint", file=sys.stderr)

    def _write(self, outcome: str, code: int, reason: str, error: BaseException | None) -> None:
        """Rank 0 writes; another rank only its own failure, which rank 0, stopped from outside, leaves in place."""
        agreed = outcome in ("done", "stopped", "user_error")
        if self.out is None or isinstance(error, ForeignFolderError) or (not self._main and agreed):
            return
        path = self.out / "exit.json"
        known = path.exists() and path.stat().st_mtime >= self._since  # this life's: of a rank that failed first
        if outcome in ("stopped", "error") and known:
            return
        if not self.claimed and self.out.is_dir() and set(os.listdir(self.out)) - {"exit.json"}:
            return  # a command that was refused does not speak for the run, or the stranger, that lives there
        record = {"outcome": outcome, "code": code, "reason": reason, "step": self.step}
        try:
            write_whole(path, (json.dumps(record) + "\n").encode())
        except OSError as problem:
            print(f"{path} could not be written: {problem}", file=sys.stderr)


def classify(error: BaseException | None) -> str:
    """The outcome that an exception means."""
    if error is None:
        return "done"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, NonFiniteError):
        return "non_finite"
    if isinstance(error, torch.OutOfMemoryError):
        return "out_of_memory"
    return "user_error" if isinstance(error, ValueError) and raised_by_us(error) else "error"


def raised_by_us(error: BaseException) -> bool:
    """True if the raise statement is in this package, not in a library that was handed something odd."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends it at once
    raise Stopped(signal.Signals(number).name)
