"""metrics.jsonl: the record of a run, one JSON object per row."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cls.runtime.files import write_whole

Row = Mapping[str, float]


class Mistake(NamedTuple):
    """A validation image that the run's best weights take for another class."""

    id: str
    picture: bytes
    """A small JPEG."""
    true: str
    predicted: str
    probability: float


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first, null as nan; no file is no rows.

    A last line cut short by a crash is left out; any other broken line is a ValueError.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is nothing, or half a row
        try:
            row = json.loads(line)
            if type(row["step"]) is not int or not 0 <= row["step"] < 1 << 53:
                raise ValueError(f"step is {row['step']!r}")
            rows.append({key: math.nan if value is None else _number(key, value) for key, value in row.items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is no record of a step ({error!r}); remove that line") from error
    return rows


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300:  # larger integers do not fit a float
        raise ValueError(f"{key} is {str(value)[:40]!r}")
    return value  # type: ignore[no-any-return]  # checked above


def encode(row: Row) -> bytes:
    # JSON has no nan and no infinity: null, so that any reader can read the file
    plain = {key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in row.items()}
    return json.dumps(plain, allow_nan=False, default=float).encode() + b"\n"


def rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Move rows beyond the resumed step to metrics.lost.jsonl (first written there, so none is ever lost).

    Gives the moved ones, oldest first.
    """
    rows = read_rows(folder)
    lost = [row for row in rows if row["step"] > step]
    kept = [row for row in rows if row["step"] <= step]
    if lost:
        with (folder / "metrics.lost.jsonl").open("ab") as file:
            file.write(b"".join(map(encode, lost)))
            file.flush()
            os.fsync(file.fileno())
    write_whole(folder / "metrics.jsonl", b"".join(map(encode, kept)))  # also drops half a row at the end
    return lost
