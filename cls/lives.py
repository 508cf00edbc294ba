"""The lives of a run, one line per event in lives.jsonl: when each began, on what, and what it saved."""

import json
import time
from pathlib import Path
from typing import Any

from cls.files import Lines


class Lives:
    """Adds events of one life; used on rank 0 only."""

    def __init__(self, folder: Path, life: int) -> None:
        self.life = life
        self._lines = Lines(folder / "lives.jsonl")

    def add(self, event: str, **facts: Any) -> None:
        row = {"life": self.life, "event": event, "time": round(time.time(), 3), **facts}
        self._lines.add(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        self._lines.close()


def read_lives(folder: Path) -> list[dict[str, Any]]:
    """All events, oldest first; a last line cut short by a crash is left out."""
    path = folder / "lives.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        found = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} holds a line that is not JSON ({error}); remove that line") from error
    for number, event in enumerate(found, 1):
        if not isinstance(event, dict) or not {"life", "event", "time"} <= event.keys():
            raise ValueError(f"{path} holds a line that is no event of a life, line {number}; remove that line")
    return found
