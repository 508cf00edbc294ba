"""Rows of the check: written to OUT/rows.jsonl as soon as they are known."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
"""What a row found; names of figures end in their unit."""

FINAL = ("ok", "FAILED", "skipped")


class NoTime(Exception):
    """The check's time is used up."""


class Rows:
    """The file of rows. Each line has ``row``, ``state`` (planned, started or one of FINAL), ``time`` and what was
    found; the last line of a row counts. Rows keep the order in which they were planned.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / "rows.jsonl"

    def write(self, row: str, state: str, **found: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"row": row, "state": state, "time": time.time()} | found) + "\n")
        if state in FINAL:
            print(f"{row:<44} {words(found) if state == 'ok' else state + ': ' + found['why']}", flush=True)

    def read(self) -> dict[str, Figures]:
        """The last line of each row."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found: dict[str, Figures] = {}
        for line in map(json.loads, lines):
            found[line["row"]] = line
        return found

    def plan(self, names: Iterable[str]) -> None:
        """Rows that are to be answered; those that are known already keep their state."""
        known = self.read()
        for name in names:
            if name not in known:
                self.write(name, "planned")

    def answer(self, row: str, work: Callable[[], Figures]) -> bool:
        """Write what ``work`` returns; an error is an answer, too, and hides no other row. False for an error."""
        try:
            self.write(row, "ok", **work())
        except NoTime as error:
            self.write(row, "skipped", why=str(error) or "no time was left")
        except Exception as error:  # of any library, on a machine that nobody has tried
            self.write(row, "FAILED", why=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
            return False
        return True


def words(found: Figures) -> str:
    """Figures in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in found.items())


def number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
