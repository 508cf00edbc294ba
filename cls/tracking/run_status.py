"""Whether a run is running, and how it ended."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cls.runtime.exit import CODES
from cls.runtime.lock import in_use
from cls.tracking.run_files import read_json


class Exit(NamedTuple):
    """What exit.json says; '' where there is none that can be read."""

    outcome: str = ""
    """done, stopped, user_error, data, non_finite, out_of_memory or error."""
    reason: str = ""
    """The last line of a finished run, else what ended it."""


def read_exit(folder: Path) -> Exit:
    """The one reader of a run directory's exit.json."""
    try:
        record = read_json(folder / "exit.json")
    except ValueError:
        return Exit()
    found = record if isinstance(record, dict) and isinstance(record.get("outcome"), str) else {}
    return Exit(found.get("outcome", ""), str(found.get("reason", "")))


def state_of(folder: Path) -> str:
    """running, an outcome of exit.json, or killed where there is none."""
    if in_use(folder):
        return "running"
    return read_exit(folder).outcome or ("running" if in_use(folder) else "killed")


def how_it_ended(folder: Path, before: int, code: int, lines: Sequence[str]) -> Exit:
    """Outcome and reason of a run that was a child process.

    By its exit.json, where that is another one than at ``before`` (see :func:`written`); else by the signal that killed
    it, or by its last message, before the launcher's, among ``lines``, the end of its output.
    """
    if written(folder / "exit.json") not in (0, before):  # 0: a resumed run deletes it first
        found = read_exit(folder)
        if found.outcome:
            return found
    if code < 0:
        return Exit("killed", signal.Signals(-code).name)
    for line in reversed(lines):
        said, _, reason = line.partition(": ")
        if (outcome := said.replace(" ", "_")) in CODES:
            return Exit(outcome, reason)
    return Exit("error", f"ended with status {code}")


def written(path: Path) -> int:
    """When a file was last written, ns; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0
