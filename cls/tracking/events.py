"""events.jsonl: one line per event of a run's attempts (starts): when and on what each began, and what it saved."""

import json
import time
from pathlib import Path
from typing import Any

from cls.runtime.files import Lines
from cls.runtime.timer import KINDS
from cls.tracking.run_files import read_lines


class EventLog:
    """Adds events of one attempt; used on rank 0 only."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.attempt = attempt
        self._lines = Lines(folder / "events.jsonl")

    def add(self, event: str, **facts: Any) -> None:
        row = {"attempt": self.attempt, "event": event, "time": round(time.time(), 3), **facts}
        self._lines.add(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        self._lines.close()


COMMON: dict[str, type] = {"attempt": int, "event": str, "time": float}
FIELDS: dict[str, dict[str, type]] = {
    "start": {
        "step": int, "processes": int, "device": str, "host": str, "began": float, "queue": float, "lost": int,
        "previous_end": float, "job": str, "nodes": str, "command": str, "versions": dict,
    },
    "epoch": {"step": int, "slowest": int, "clock": dict},
    "save": {"step": int, "clock": dict},
    "save_failed": {"step": int},
    "results": {"step": int, "clock": dict},
    "end": {"step": int, "outcome": str, "clock": dict},
}  # fmt: skip
"""What each kind of event has besides COMMON."""
EARLY_START: dict[str, Any] = {
    "queue": 0.0, "lost": 0, "previous_end": 0.0, "job": "", "nodes": "", "command": "", "versions": {}
}  # fmt: skip
"""For what the start events of early versions lack."""
EARLY_NAMES = {"life": "attempt", "heard": "previous_end"}
"""Fields of lives.jsonl, which earlier versions wrote in place of events.jsonl."""


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events of a run directory, oldest first; a last line cut short by a crash is left out.

    ValueError for any other damaged line. A run that an earlier version began has its first events in lives.jsonl.
    """
    return _read(folder / "lives.jsonl", EARLY_NAMES) + _read(folder / "events.jsonl", {})


def _read(path: Path, names: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    for place, event in read_lines(path):
        if isinstance(event, dict):
            event = {names.get(name, name): value for name, value in event.items()}
            if event.get("event") == "start":
                event = {"began": event.get("time")} | EARLY_START | event
        if problem := _problem(event, early=bool(names)):
            raise ValueError(f"{place} is no event ({problem}); remove that line")
        found.append(event)
    return found


def _problem(event: Any, early: bool) -> str:
    """What is wrong with a line; '' for an event. An event of unknown kind needs the common fields only.

    ``early``: as earlier versions wrote it, so a field may be missing.
    """
    if not isinstance(event, dict):
        return f"it is {type(event).__name__}, not an object"
    kind = event.get("event")
    needed = COMMON | (FIELDS.get(kind, {}) if isinstance(kind, str) else {})
    needed |= {"step": int} if "step" in event else {}
    needed = {name: kind for name, kind in needed.items() if name in COMMON or name in event or not early}
    wrong = [name for name, kinds in needed.items() if not _is(event.get(name), kinds)]
    if "clock" in needed and not wrong and not all(_is(event["clock"].get(part), float) for part in KINDS):
        wrong.append("clock")
    return f"{wrong[0]} is {json.dumps(event.get(wrong[0]))[:60]}" if wrong else ""


def _is(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a type; an int counts as a float. Numbers must be finite and not negative."""
    if kind in (int, float):
        return type(value) in (int, kind) and -1 < value < 1 << 53
    return isinstance(value, kind)
