"""How a run directory stands: running, an outcome, or killed."""

from pathlib import Path
from typing import Any

from cls.runtime.lock import in_use
from cls.tracking.run_files import read_json, read_outcome


def state_of(path: Path) -> str:
    """How a run directory stands: running, an outcome of exit.json, or killed where there is none."""
    if in_use(path):
        return "running"
    return read_outcome(path) or ("running" if in_use(path) else "killed")


def _said_done(path: Path) -> str:
    try:
        record = read_json(path / "exit.json")
        return str(record["reason"]) if record["outcome"] == "done" else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _outcome(folder: Path, events: list[dict[str, Any]]) -> str:
    if events and events[-1]["event"] == "results":  # at this moment the run writes its last files
        return "done"
    return read_outcome(folder)
