"""How a run ends: one word, one code and one reason, in ``<out>/exit.json`` and as the exit status.

``accelerate launch`` turns every non-zero status into 1 with a traceback of its own, so scripts read the file.
"""

import contextlib
import errno
import json
import os
import shlex
import shutil
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Self

from cls.runtime.console import clean
from cls.runtime.files import write_whole
from cls.runtime.signals import StopSignal

CODES = {"done": 0, "error": 1, "user_error": 2, "data": 3, "non_finite": 4, "out_of_memory": 5, "stopped": 85}
AGREED = ("done", "stopped", "user_error")  # the same on all ranks
ONEDNN = "could not create a primitive"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PLACE = (*DISK, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors about a path; with a file name they are a message to the user."""

HANGING: list[str] = []
"""Background uploads still pending at exit; we exit without joining them (W&B's own exit may wait forever)."""


class DataError(Exception):
    """The images cannot be used: corrupt, unreadable, or a loader process died."""


class NonFiniteError(Exception):
    """The loss became infinite or not a number."""


class ForeignDirectoryError(ValueError):
    """The run directory belongs to another process or is not ours: not even exit.json may be written there."""


class LocalError(ValueError):
    """A user error that only this process can see, e.g. of its GPU: whichever rank has it reports it."""


class OutOfMemory(Exception):
    """A micro-batch does not fit; the message says which one does."""


class ExitHandler:
    """``with ExitHandler(out) as handler:`` around a run: writes exit.json, prints a message and sets the exit status.

    A ValueError raised by this program's own code is printed without a traceback. ``out``: the run directory, once
    known; ``claimed``: it is this run's; ``unnamed``: it was created without --out and is removed if no step is done;
    ``step``: steps done; ``stop`` receives the signals. ``resumes``: a command without a run directory that continues
    where it was stopped.
    """

    def __init__(self, out: str, resumes: bool = False) -> None:
        self.resumes = resumes
        self.out = Path(out) if out else None
        self.claimed = self.unnamed = False
        self.step = 0
        self.message = ""
        self.stop = StopSignal()
        self._since = time.time()
        self._main = os.environ.get("RANK", "0") == "0"

    def __enter__(self) -> Self:
        with contextlib.suppress(AttributeError):  # a test's stream
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that a locale lacks
        self.stop.listen()
        return self

    def claim(self, out: Path, unnamed: bool) -> None:
        """From now on ``out`` is this run's directory."""
        self.out, self.claimed, self.unnamed = out, True, unnamed

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, SystemExit) and error.code in (0, None):
            return
        self.stop.ignore_signals()  # another signal must not interrupt writing exit.json: it takes milliseconds
        outcome, reason = self._outcome(error)
        code = CODES[outcome]
        if not isinstance(error, SystemExit) and (error is not None or outcome != "done"):
            self._print(outcome, reason, error)
        if self._is_empty(outcome) and self._main:
            self._remove()
        else:
            self._write(outcome, code, reason, error)
        sys.stdout.flush()
        sys.stderr.flush()
        torch = sys.modules.get("torch")  # not imported here: command-line mistakes are reported without it
        group = torch and torch.distributed.is_available() and torch.distributed.is_initialized()
        if group or HANGING:
            os._exit(code)  # gloo's teardown aborts one process in ten; everything is flushed and closed
        sys.exit(code)

    def _outcome(self, error: BaseException | None) -> tuple[str, str]:
        """The outcome and its reason."""
        if self._lost() and classify(error) in ("done", "stopped", "user_error", "error"):
            return "user_error", lost_directory(self.out)
        reason = self.message if error is None else str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno in PLACE and classify(error) == "user_error":
            reason += f": {self._remedy(error)}"
        if isinstance(error, SystemExit):
            return "user_error", "the command line could not be understood"
        return classify(error), reason

    def _remedy(self, error: OSError) -> str:
        if error.errno not in DISK:
            return "ask its owner for access, or name another place"
        if error.errno == errno.ENOSPC and error.filename is None and little_shared_memory():
            return "/dev/shm is full: give it more (docker run --shm-size 1g), or use fewer --data.workers, or 0"
        if self.claimed:
            return "free space, or copy the run directory elsewhere; then resume with --out COPY"
        return "free space, or name another place with --out or --to"

    def _lost(self) -> bool:
        """Whether the run directory was deleted or renamed under this run."""
        return self.claimed and self.out is not None and is_missing(self.out / "config.yaml")

    def _is_empty(self, outcome: str) -> bool:
        return self.unnamed and self.step == 0 and outcome != "done"

    def _remove(self) -> None:
        """Remove an unnamed directory without a step: no run would ever resume from it."""
        assert self.out is not None
        shutil.rmtree(self.out, ignore_errors=True)
        left = "could not be removed" if self.out.exists() else "was removed"
        print(f"{self.out} {left}: no step was done, and --out did not name it", file=sys.stderr)

    def _print(self, outcome: str, reason: str, error: BaseException | None) -> None:
        if outcome == "error" and self._reported():
            print("stopped because another process of this run failed; see its message", file=sys.stderr)
        elif outcome == "error":
            assert error is not None
            traceback.print_exception(error)
        elif self._main or not (agreed(outcome, error) or self._reported()):
            print(f"{outcome.replace('_', ' ')}: {clean(reason)}", file=sys.stderr)
            if outcome == "stopped" and self.resumes:
                print("the same command continues", file=sys.stderr)
            elif outcome == "stopped" and self.out is not None and not self._is_empty(outcome):
                way = f" with --out {shlex.quote(str(self.out))}" if self.unnamed else ""
                print(f"the same command{way} continues from the last checkpoint", file=sys.stderr)

    def _write(self, outcome: str, code: int, reason: str, error: BaseException | None) -> None:
        """Rank 0 writes; other ranks only their own failure, which rank 0 keeps if it was only stopped."""
        if self.out is None or isinstance(error, ForeignDirectoryError) or (not self._main and agreed(outcome, error)):
            return
        if self._lost():  # do not recreate it only for exit.json
            return
        if outcome in ("stopped", "error") and self._reported():
            return
        if not self.claimed and self.out.is_dir() and set(os.listdir(self.out)) - {"exit.json"}:
            return  # not claimed: it may belong to a running process or to other software
        path, record = self.out / "exit.json", {"outcome": outcome, "code": code, "reason": reason, "step": self.step}
        try:
            write_whole(path, (json.dumps(record) + "\n").encode())
        except OSError as problem:
            if "cannot be written" not in reason:  # already reported
                print(f"{path} could not be written: {problem}", file=sys.stderr)

    def _reported(self) -> bool:
        """True if another rank has written exit.json in this attempt."""
        path = self.out / "exit.json" if self.out else None
        return path is not None and path.exists() and path.stat().st_mtime >= self._since


def agreed(outcome: str, error: BaseException | None) -> bool:
    """True if all ranks end this way, so that only rank 0 reports it."""
    return outcome in AGREED and not isinstance(error, LocalError)


def is_missing(path: Path) -> bool:
    """True only if the file does not exist; other errors (ESTALE, EIO) may be temporary."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def lost_directory(out: Path | None) -> str:
    """The message for a run directory that no longer exists."""
    return (
        f"out: {out} was deleted or renamed while the run was writing to it: where it was renamed, the same command "
        "with --out NEW_NAME continues from its last checkpoint"
    )


def little_shared_memory(path: str = "/dev/shm") -> bool:
    """True if shared memory has under 64 kB free: containers keep it small, and the system's error names no file."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < 1 << 16


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
    if isinstance(error, OutOfMemory) or out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, OSError) and (error.errno in DISK or (error.errno in PLACE and error.filename is not None)):
        return "user_error"
    return "user_error" if isinstance(error, ValueError) and raised_by_us(error) else "error"


def out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed, on a GPU or on the host (where torch has no type of its own for it)."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    # messages of CUDA, cuBLAS, cuDNN and NCCL, of the host, and the only one of oneDNN
    said = ("allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
    return isinstance(error, RuntimeError) and (any(each in str(error) for each in said) or str(error) == ONEDNN)


def raised_by_us(error: BaseException) -> bool:
    """True if the raise statement is in this package, not in a library."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parents[1] in Path(frames[-1].filename).parents
