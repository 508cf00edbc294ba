"""The picture of a search: held-out loss against the rate, one line for each length."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cls.evaluation.plots import GRAY, GROUP_COLORS, plain_axes, save_figure


def write_picture(document: dict[str, Any], path: Path) -> None:
    save_figure(figure(document), path)


def figure(document: dict[str, Any]) -> Figure:
    """Losses with the intervals of their differences to the best of their round, and the rate that is proposed.

    Losses far above the others, and those of runs that diverged, are triangles at the upper edge.
    """
    drawn = Figure(figsize=(8, 4.8), layout="constrained")
    axes = drawn.subplots()
    rounds = document["rounds"]
    finite = [row["loss"] for each in rounds for row in each["candidates"] if row["loss"] is not None]
    low = min(finite)
    top = low + 1.15 * max(np.quantile([loss - low for loss in finite], 0.8), 0.02)
    higher = any(row["loss"] is None or row["loss"] > top for each in rounds for row in each["candidates"])
    for each, color in zip(rounds, GROUP_COLORS, strict=False):
        rows = [row for row in each["candidates"] if row["loss"] is not None and row["loss"] <= top]
        rates, losses = ([row[key] for row in rows] for key in ("rate", "loss"))
        best = min(losses, default=0.0)  # all of a short round may be far above a longer one
        errors = [[row["loss"] - best - row["low"] for row in rows], [row["high"] - row["loss"] + best for row in rows]]
        axes.errorbar(rates, losses, np.maximum(errors, 0), color=color, marker="o", markersize=5, capsize=3,
                      label=f"{each['steps']} steps")  # fmt: skip
        beyond = [row["rate"] for row in each["candidates"] if row["loss"] is None or row["loss"] > top]
        axes.plot(beyond, [top] * len(beyond), linestyle="", marker="^", color=color, markersize=8, clip_on=False)
    axes.axvline(document["rate"], color=GRAY, linestyle="--", linewidth=1.2)
    axes.set_xscale("log")
    tried = sorted({row["rate"] for each in rounds for row in each["candidates"]})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.minorticks_off()
    axes.set_ylim(top=top)
    axes.set_xlabel("learning rate (optim.lr)")
    axes.set_ylabel(f"log loss of {document['held']:,} held-out images")
    axes.legend(frameon=False, fontsize=9)
    title = f"{document['recipe']}: {document['rate']:g} for {document['steps']:,} steps (dashed)"
    plain_axes(axes, f"{title}    ▲ higher, or diverged" if higher else title)
    axes.title.set_y(1.03)
    return drawn
