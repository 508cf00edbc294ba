"""PNG plots of a run: curves, confusion matrix, worst classes; curves of several runs."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cls.evaluation.curves import PANELS, CurveGroup
from cls.evaluation.fonts import drawable
from cls.evaluation.metrics import accuracy, confusion, macro_f1, per_class
from cls.evaluation.predictions import Predictions
from cls.runtime.console import printable
from cls.runtime.files import write_whole
from cls.tracking.metrics_log import best_row

Row = dict[str, Any]
BestOn = Literal["accuracy", "loss"]
rcParams["text.parse_math"] = False  # names may have dollars in them
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#666666"  # Okabe & Ito 2008, distinguishable by everyone
GROUP_COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # theirs but yellow
GROUP_DASHES = ("-", "--", ":", "-.")  # of every seven groups
DOTS = 30  # a line of more epochs has none
NAME_LENGTH = 40


def write_plots(folder: Path, val: Predictions | None, rows: Sequence[Row], best_on: BestOn) -> dict[str, Path]:
    """Draw curves.png and, of validation images, confusion.png and worst_classes.png; returns name -> path."""
    paths = {name: folder / f"{name}.png" for name in ("curves", "confusion", "worst_classes")}
    save_figure(curves_figure(rows, best_on), paths["curves"])
    if val is None:
        return {"curves": paths["curves"]}
    confusion_picture(val, paths["confusion"])
    worst_classes(val, paths["worst_classes"])
    return paths


def save_figure(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # an object of its own: pyplot keeps global state and may look for a display
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    write_whole(path, data.getvalue())


def plain_axes(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``."""
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def series(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one figure of the record."""
    points = [(row["step"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
    return [step for step, _ in points], [value for _, value in points]


def epoch_ends(rows: Sequence[Row]) -> dict[int, float]:
    """Step -> epochs done, where epochs end: in the rows that are no training steps, with or without a validation.

    The last step allowed (``train.max_steps``) also has such a row, with the epochs done before it: no end.
    """
    found = {row["step"]: row.get("epoch") for row in rows if "train/loss" not in row}
    ends: dict[int, float] = {}
    for number, step in enumerate(sorted(found), 1):
        done = number if (epoch := found[step]) is None else epoch
        if done > max(ends.values(), default=0):
            ends[step] = done
    return ends


def smooth(values: Sequence[float], decay: float) -> list[float]:
    """Exponential moving average without the bias of its zero start (Kingma & Ba 2015, section 3)."""
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total = decay * total + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        out.append(total / weight)
    return out


def curves_figure(rows: Sequence[Row], best_on: BestOn = "accuracy") -> Figure:
    """Loss, accuracy and learning rate against the optimizer step, epochs on the upper axis.

    The validation whose weights are kept is marked. Training figures: thin for each step, thick the means of epochs;
    before the second one, smoothed.
    """
    figure = Figure(figsize=(8, 8.5), layout="constrained")
    loss, score, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.6])
    _training(loss, rows, "loss")
    steps, values = series(rows, "val/loss")
    if steps:
        loss.plot(steps, values, color=ORANGE, marker="o", markersize=4, label="validation")
    plain_axes(loss, "Loss")
    if loss.get_legend_handles_labels()[1]:
        handles = loss.get_legend_handles_labels()
        figure.legend(*handles, frameon=False, loc="outside upper right", ncols=2)  # no corner is always empty
    _training(score, rows, "accuracy")
    steps, values = series(rows, "val/accuracy")
    title = "Accuracy"
    if steps:
        score.plot(steps, values, color=ORANGE, marker="o", markersize=4)
    if best := best_row(rows, best_on):
        step, value = best["step"], best["val/accuracy"]
        score.plot(step, value, "o", color=ORANGE, markersize=11, fillstyle="none", markeredgewidth=1.5)
        title += f"    best validation {value:.2%} at step {step}"
    elif not score.lines:
        score.text(0.5, 0.5, "no validation", transform=score.transAxes, ha="center", color=GRAY)
    plain_axes(score, title)
    if series(rows, "train/accuracy")[0]:
        score.set_title("training: on the batch as it is seen", loc="right", fontsize=8, color=GRAY)
    score.yaxis.set_major_formatter(PercentFormatter(1.0))
    steps, values = series(rows, "train/lr")
    rate.plot(steps, values, color=GRAY, marker=_marker(values))
    rate.set_ylim(0, 1.1 * max(values, default=0.0) or 1.0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    plain_axes(rate, "Learning rate")
    rate.set_xlabel("optimizer step")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len({row["step"] for row in rows}) == 1:
        rate.set_xlim(rows[0]["step"] - 1, rows[0]["step"] + 1)  # around one point matplotlib shows parts of a step
    _mark_epochs(loss, (score, rate), rows)
    return figure


def _training(axes: Axes, rows: Sequence[Row], figure: str) -> None:
    steps, values = series(rows, f"train/{figure}")
    if steps:
        axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    ends, means = series(rows, f"train/epoch_{figure}")
    if len(ends) > 1:
        axes.plot(ends, means, color=BLUE, marker="o", markersize=4, label="training (epoch means)")
    elif steps:
        smoothed = smooth(values, 1 - 1 / max(1, len(values) / 50))
        axes.plot(steps, smoothed, color=BLUE, marker=_marker(values), label="training (smoothed)")


def _marker(values: Sequence[float]) -> str:
    """A line through one point is invisible."""
    return "o" if len(values) == 1 else ""


def _mark_epochs(top: Axes, others: Sequence[Axes], rows: Sequence[Row]) -> None:
    """Thin lines where epochs end, with their number on the upper axis; at most fifteen of them."""
    ends = epoch_ends(rows)
    if not ends:
        return
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if len(ends) / n <= 15)
    shown = [(f"{epoch:g}", step) for place, (step, epoch) in enumerate(ends.items(), 1) if place % every == 0]
    for axes in (top, *others):
        for _, step in shown:
            axes.axvline(step, color="#EEEEEE", linewidth=0.8, zorder=0)
    epochs = top.secondary_xaxis("top")
    epochs.set_xticks([step for _, step in shown], [text for text, _ in shown], fontsize=8, color=GRAY)
    epochs.tick_params(length=2, color=GRAY)
    epochs.spines["top"].set_visible(False)
    epochs.set_xlabel("epoch", fontsize=8, color=GRAY)


def write_group_curves(groups: Sequence[CurveGroup], path: Path) -> None:
    save_figure(group_curves_figure(groups), path)


def group_curves_figure(groups: Sequence[CurveGroup]) -> Figure:
    """Loss and accuracy over epochs, training and validation: a line for each group, a band where it has seeds."""
    rows = -(-len(groups) // 2)
    figure = Figure(figsize=(11, 8 + 0.25 * rows), layout="constrained")
    seeds = max(len(group.runs) for group in groups) > 1
    squared = [group for group in groups if group.loss == "mse"]
    apart = squared if len(squared) < len(groups) else []
    for axes, (panel, title) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items(), strict=True):
        for number, group in enumerate(groups):
            if not (panel.endswith("loss") and group in apart):
                _group_line(axes, group, panel, number)
        plain_axes(axes, title)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if panel.endswith("accuracy"):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_xlabel("epoch")
        if panel.startswith("train"):
            axes.set_title("on the batch as it is seen", loc="right", fontsize=8, color=GRAY)
        if not any(len(line.get_xdata()) for line in axes.lines):
            axes.text(0.5, 0.5, "not in these records", transform=axes.transAxes, ha="center", color=GRAY)
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=min(2, len(groups))
    )
    said = ["line: mean over the seeds, band: lowest to highest; epochs that all seeds of a line have"] if seeds else []
    if apart:
        few = len(apart) <= 2
        names = ", ".join(short(group.name, NAME_LENGTH) for group in apart) if few else f"{len(apart)} lines"
        said.append(f"the losses are log losses: the squared errors of {names} have another axis, and are not drawn")
    if said:
        figure.suptitle("\n".join(said), x=0.01, ha="left", fontsize=9, color=GRAY)
    return figure


def _group_line(axes: Axes, group: CurveGroup, panel: str, number: int) -> None:
    curve, count = group.curve(panel), len(group.runs)
    color = GROUP_COLORS[number % len(GROUP_COLORS)]
    axes.plot(
        curve.epochs, curve.mean, color=color, linestyle=GROUP_DASHES[number // len(GROUP_COLORS) % len(GROUP_DASHES)],
        marker="o" if len(curve.epochs) <= DOTS else "", markersize=3,
        label=short(group.name, NAME_LENGTH) + (f" ({count} seeds)" if count > 1 else ""),
    )  # fmt: skip
    if count > 1:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)


def short(name: str, width: int) -> str:
    """Without what a picture cannot show: control characters, line breaks, letters that no font here has."""
    name = drawable(printable(name))
    return name if len(name) <= width else name[: width - 1] + "…"


def confusion_picture(p: Predictions, path: Path) -> None:
    """The confusion matrix, each row divided by its sum; with numbers in the cells up to 20 classes."""
    counts = confusion(p)
    c = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(3.0 + 0.45 * c, 5.5, 11))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["Blues"]  # one hue, dark is more: order survives every kind of color vision, and gray print
    image = axes.imshow(shares, cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(
        image, ax=axes, format=PercentFormatter(1.0), label="share of the true class", fraction=0.04, pad=0.02
    )
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if c / n <= 50)
    names = [short(name, 18) for name in p.classes[::every]]
    size = 9 if c <= 20 else 7
    axes.set_xticks(range(0, c, every), names, rotation=0 if max(map(len, names)) <= 2 else 90, fontsize=size)
    axes.set_yticks(range(0, c, every), names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    corrupt = int((p.labels >= 0).sum() - counts.sum())
    title = f"Confusion matrix    accuracy {accuracy(p):.2%}, macro-F1 {macro_f1(p):.3f}, {counts.sum()} images"
    title += f" (and {corrupt} corrupt)" if corrupt else ""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")  # over the axes it could be cut off
    if c <= 20:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.55 else "#222222"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def worst_classes(p: Predictions, path: Path) -> None:
    """The ten classes of lowest recall, with their support and the class they are taken for most often."""
    figures, counts = per_class(p), confusion(p)
    present = np.flatnonzero(figures.support)
    worst = present[np.argsort(figures.recall[present], kind="stable")][:10]
    figure = Figure(figsize=(9.5, 1.6 + 0.4 * max(len(worst), 1)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(worst)), figures.recall[worst], color=BLUE, height=0.62)
    for row, i in enumerate(worst):
        right, support = counts[i, i], figures.support[i]
        wrong = counts[i] * (np.arange(len(p.classes)) != i)
        text = f"{right} of {support}"
        if wrong.any():
            text += f" · {wrong.max()} taken for “{short(p.classes[int(wrong.argmax())], 16)}”"
        # beside a short bar, inside a long one: the text never leaves the picture
        inside = figures.recall[i] > 0.5
        axes.text(
            figures.recall[i] + (-0.01 if inside else 0.01), row, text, va="center", fontsize=9,
            ha="right" if inside else "left", color="white" if inside else "#222222",
            bbox=None if inside else {"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.set_yticks(range(len(worst)), [short(p.classes[i], 24) for i in worst])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("recall: share of the class's images that are recognised")
    title = f"The {len(worst)} worst of {len(present)} classes" if len(worst) < len(present) else "Classes by recall"
    if len(present):
        axes.axvline(accuracy(p), color=ORANGE, linewidth=1.2, linestyle="--", zorder=0)
        title += f"    dashed: accuracy over all images, {accuracy(p):.2%}"
    plain_axes(axes, title)
    axes.grid(visible=False)
    save_figure(figure, path)
