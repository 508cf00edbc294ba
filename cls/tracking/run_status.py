"""Whether a run is running, and how it ended."""

from pathlib import Path
from typing import NamedTuple

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
