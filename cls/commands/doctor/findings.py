"""One line of the doctor's output."""

from dataclasses import dataclass
from typing import Literal

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line: what was found and, unless it is ok, the remedy."""

    state: Literal["ok", "warn", "bad"]
    name: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.name}  {self.found}" + (f"  -> {self.remedy}" if self.remedy else "")


def graded(name: str, found: str, remedy: str, *, warn: bool = False, bad: bool = False) -> Finding:
    """``remedy`` is shown unless the finding is ok."""
    return Finding("bad" if bad else "warn" if warn else "ok", name, found, remedy if warn or bad else "")
