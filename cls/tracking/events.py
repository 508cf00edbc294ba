"""events.jsonl: one line per event of a run's attempts (starts): when and on what each began, and what it saved."""

import json
import time
from pathlib import Path
from typing import Any

from cls.runtime.files import Lines
from cls.runtime.timer import KINDS


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
    "start": {"step": int, "processes": int, "device": str, "host": str},
    "epoch": {"step": int, "slowest": int, "clock": dict},
    "save": {"step": int, "clock": dict},
    "save_failed": {"step": int},
    "results": {"step": int, "clock": dict},
    "end": {"step": int, "outcome": str, "clock": dict},
}
"""What each kind of event has."""
LATER: dict[str, type] = {
    "began": float, "queue": float, "lost": int, "previous_end": float, "job": str, "nodes": str, "command": str,
    "versions": dict, "step": int,
}  # fmt: skip
"""What events of early versions lack."""
EARLY_NAMES = {"life": "attempt", "heard": "previous_end"}
"""Fields of lives.jsonl, which earlier versions wrote in place of events.jsonl."""


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events, oldest first; a last line cut short by a crash is left out. ValueError for any other damaged line.

    A run that an earlier version began has its first events in lives.jsonl.
    """
    return _read(folder / "lives.jsonl", EARLY_NAMES) + _read(folder / "events.jsonl", {})


def _read(path: Path, names: dict[str, str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"line {number} ({error}); remove that line"
            raise ValueError(f"{path} holds a line that is not JSON, {why}") from None
        if isinstance(event, dict):
            event = {names.get(name, name): value for name, value in event.items()}
        if problem := _problem(event):
            raise ValueError(f"{path} holds a line that is no event, line {number} ({problem}); remove that line")
        found.append(event)
    return found


def _problem(event: Any) -> str:
    """What is wrong with a line; '' for an event. One of a kind that is not known needs the common fields only."""
    if not isinstance(event, dict):
        return f"it is {type(event).__name__}, not an object"
    kind = event.get("event")
    known = FIELDS.get(kind, {}) if isinstance(kind, str) else {}
    needed = {name: kinds for name, kinds in (known | LATER).items() if name in known or name in event}
    needed |= COMMON | ({"step": int} if kind == "start" else {})
    wrong = [name for name, kinds in needed.items() if not _is(event.get(name), kinds)]
    if "clock" in event and not wrong and not all(_is(event["clock"].get(kind), float) for kind in KINDS):
        wrong.append("clock")
    return f"{wrong[0]} is {json.dumps(event.get(wrong[0]))[:60]}" if wrong else ""


def _is(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a kind; a float may be written without a point, and no number is beyond measure."""
    if kind in (int, float):
        known = type(value) is int or (kind is float and type(value) is float)
        return known and -1 < value < 1 << 53  # not nan, nor inf
    return isinstance(value, kind)
