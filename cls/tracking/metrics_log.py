"""metrics.jsonl: the record of a run, one JSON object per row."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cls.runtime.files import write_whole
from cls.tracking.run_files import read_lines

Row = Mapping[str, float]


class Mistake(NamedTuple):
    """A validation image that the best weights misclassify."""

    id: str
    picture: bytes
    """A small JPEG."""
    true: str
    predicted: str
    probability: float


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first, null as nan; [] without a file.

    A last line cut short by a crash is left out; any other damaged line is a ValueError.
    """
    rows = []
    for place, row in read_lines(folder / "metrics.jsonl"):
        try:
            if type(row["step"]) is not int or not 0 <= row["step"] < 1 << 53:
                raise ValueError(f"step is {row['step']!r}")
            rows.append({key: math.nan if value is None else _number(key, value) for key, value in row.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{place} is no record of a step ({error!r}); remove that line") from error
    return rows


def best_row(rows: Sequence[dict[str, Any]], by: Literal["accuracy", "loss"]) -> dict[str, Any] | None:
    """The validation whose weights are kept: of the ends of epochs the best, the first of equals.

    The validation of a smoke run that ended inside an epoch counts while no epoch has ended, and then the last one:
    its "epoch", of those that are over, is no new one. None where there is no validation.
    """
    validated, ends, over = [row for row in rows if "val/accuracy" in row], list[dict[str, Any]](), 0.0
    for row in validated:
        if (epoch := row.get("epoch", over + 1)) > over:
            ends.append(row)
            over = epoch
    if not ends:
        return validated[-1] if validated else None
    if by == "loss":
        return min(ends, key=lambda row: float(row["val/loss"]))
    return max(ends, key=lambda row: float(row["val/accuracy"]))


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300:  # larger integers do not fit a float
        raise ValueError(f"{key} is {str(value)[:40]!r}")
    return value  # type: ignore[no-any-return]  # checked above


def encode(row: Row) -> bytes:
    # JSON has no nan and no infinity
    plain = {key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in row.items()}
    return json.dumps(plain, allow_nan=False, default=float).encode() + b"\n"


def rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Move rows beyond the resumed step to metrics.lost.jsonl, written first so that no row is lost; returns them."""
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
