"""Curves over the optimizer step, in a box of 1000 by 1000 that the page stretches to its width."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cls.evaluation.metrics import Calibration
from cls.evaluation.plots import epoch_ends, series, smooth, ticks

POINTS = 500
"""Per line: a screen shows no more."""
WIDEST = 6
"""Characters of a mark in the margin."""

Row = dict[str, Any]


class Line(NamedTuple):
    name: str
    style: str
    """Its class in the style sheet."""
    x: list[float]
    y: list[float]
    dots: bool = False


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over equal intervals, at most POINTS of them."""
    if len(x) <= POINTS:
        return list(x), list(y)
    places = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*places, len(x)])
    return [(np.add.reduceat(np.asarray(values, float), places) / sizes).tolist() for values in (x, y)]  # type: ignore[return-value]  # two lists


def curves(rows: list[Row]) -> list[dict[str, Any]]:
    """Loss, accuracy, learning rate and throughput, as far as metrics.jsonl has them."""
    ends = list(epoch_ends(rows))
    last = max((row["step"] for row in rows), default=1)
    loss, score = (
        [*_training(rows, figure), Line("validation", "orange", *series(rows, f"val/{figure}"), dots=True)]
        for figure in ("loss", "accuracy")
    )
    wanted = [
        _chart("loss", "Loss", loss, ends, last),
        _chart("accuracy", "Accuracy", score, ends, last, share=True),
        _chart("lr", "Learning rate", [Line("learning rate", "gray", *thin(*series(rows, "train/lr")))], ends, last),
        _chart("throughput", "Training images per second",
               [Line("images/s", "blue", *thin(*series(rows, "train/images_per_second")))], ends, last),
    ]  # fmt: skip
    return [chart for chart in wanted if chart]


def _training(rows: list[Row], figure: str) -> list[Line]:
    """Each step and the means of epochs; before the second one, smoothed."""
    steps, values = series(rows, f"train/{figure}")
    ends, means = series(rows, f"train/epoch_{figure}")
    each = Line("each step", "faint", *thin(steps, values))
    if len(ends) > 1:
        return [each, Line("training (epoch means)", "blue", *thin(ends, means), dots=True)]
    if len(values) > 50:
        return [each, Line("training (smoothed)", "blue", *thin(steps, smooth(values, 1 - 50 / len(values))))]
    return [Line("training", "blue", *each[2:4])]


def _chart(
    key: str, title: str, lines: list[Line], ends: list[int], last: int, share: bool = False
) -> dict[str, Any] | None:
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    every = [value for line in lines for value in line.y]
    low, high = (0.0, max(every)) if key in ("lr", "throughput") else (min(every), max(every))
    spare = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = max(0.0, low - spare), min(1.0, high + spare) if share else high + spare
    marks = ticks(low, high)
    texts = _marks(marks, share)
    return {
        "key": key,
        "title": title,
        "share": share,
        "paths": [{"style": line.style, "name": line.name, **_path(line, last, low, high)} for line in lines],
        "y": [{"at": _percent(mark, low, high), "text": text} for mark, text in zip(marks, texts, strict=True)],
        "x": [{"at": _percent(mark, 0, last), "text": f"{mark:,.0f}"} for mark in ticks(0, last) if mark == int(mark)],
        "ends": [_percent(end, 0, last) for end in ends] if len(ends) <= 60 else [],
        "words": "; ".join(
            f"{line.name}: {_number(line.y[0], share)} at step {line.x[0]:.0f}, "
            f"{_number(line.y[-1], share)} at step {line.x[-1]:.0f}"
            for line in lines
        ),
        "data": {
            "last": last, "low": low, "high": high, "share": share, "ends": ends,
            "lines": [{"name": line.name, "style": line.style, "x": line.x, "y": [_short(v) for v in line.y]}
                      for line in lines],
        },
    }  # fmt: skip


def _path(line: Line, last: int, low: float, high: float) -> dict[str, str]:
    """``d`` of the line; ``dots``: lines of no length with round ends, which stay round when the box is stretched.

    A single value is a dot: a line has no length there.
    """
    places = [(1000 * x / last, 1000 * (high - y) / (high - low)) for x, y in zip(line.x, line.y, strict=True)]
    texts = [f"{x:.1f} {y:.1f}" for x, y in places]
    return {
        "d": "M" + "L".join(texts),
        "dots": "".join(f"M{text}h0" for text in texts) if line.dots or len(places) == 1 else "",
    }


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 3)


def _number(value: float, share: bool) -> str:
    if share:
        return f"{100 * value:.3g}%"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _marks(values: list[float], share: bool) -> list[str]:
    """The texts of an axis; all with an exponent where one, such as 0.00045, would be wider than the margin."""
    texts = [_number(value, share) for value in values]
    if share or max(map(len, texts), default=0) <= WIDEST:
        return texts
    parts = [f"{value:.2e}".split("e") for value in values]
    return [f"{float(digits):g}e{int(exponent)}" if float(digits) else "0" for digits, exponent in parts]


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def reliability(found: Calibration, intervals: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Per bin what the diagram draws, in percent of the box; ``intervals`` are those of the accuracy."""
    bins, most = len(found.images), max(1, int(found.images.max()))
    return [
        {
            "left": 100 * m / bins,
            "width": 100 / bins,
            "range": f"{m / bins:.2f} to {(m + 1) / bins:.2f}",
            "images": int(found.images[m]),
            "confidence": float(found.confidence[m]),
            "accuracy": float(found.accuracy[m]),
            "low": intervals[m][0],
            "high": intervals[m][1],
            "count": 100 * float(found.images[m]) / most,
        }
        for m in range(bins)
        if found.images[m]
    ]
