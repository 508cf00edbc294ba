"""Contact sheets: training images as the model gets them, and the findings of `cls check`."""

import io
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cls.evaluation.fonts import drawable
from cls.evaluation.plots import short
from cls.runtime.console import printable
from cls.runtime.files import write_whole


class Tile(NamedTuple):
    image: Tensor  # 3 h w, uint8
    shares: dict[str, float]
    """Classes and their shares of the target."""
    sample: int
    """Sample index."""
    id: str
    original: np.ndarray | None = None
    """What is in the file, upright, h w 3, uint8, of any size; None where it cannot be read."""

    @property
    def caption(self) -> str:
        """'cat', or 'cat .70 + dog .30', the larger share first."""
        ranked = sorted(self.shares.items(), key=lambda item: -item[1])
        if len(ranked) == 1:
            return short(ranked[0][0], 20)
        return " + ".join(f"{short(name, 9)} {f'{share:.2f}'.removeprefix('0')}" for name, share in ranked)


LEAST = 160
"""Pixels that an image is drawn with, nearly at least: the original of a tiny one would be unrecognisable."""


def write_sheet(path: Path, tiles: list[Tile], title: str) -> None:
    """A PNG of all tiles in the given order, each beside its original, about twice as wide as high."""
    columns = max(2, math.ceil(math.sqrt(len(tiles))))  # as wide as the title at least
    figure, cells = _grid(len(tiles), columns, (3.4, 1.95), title)
    for axes, tile in zip(cells, tiles, strict=False):
        image = tile.image.permute(1, 2, 0).numpy()
        times = max(1, LEAST // image.shape[0])
        image = image.repeat(times, axis=0).repeat(times, axis=1)
        side = image.shape[0]
        axes.imshow(np.concatenate([_framed(tile.original, side, side // 16), image], axis=1), interpolation="nearest")
        axes.set_title(tile.caption, fontsize=8)
        axes.set_xlabel(f"sample {tile.sample}", fontsize=6)
    _write(path, figure)


class Panel(NamedTuple):
    """One image, or two side by side; ``None`` in place of one that cannot be shown."""

    images: tuple[np.ndarray | None, ...]  # h w 3, uint8
    title: str
    lines: tuple[str, ...]
    """Below the images."""


SIDE = 228  # of the square that an image is drawn in, pixels


def write_panels(path: Path, panels: list[Panel], title: str) -> None:
    """A PNG of panels, four in a row; names keep their ends, where they differ."""
    columns = 4 if len(panels) > 2 else 2  # as wide as the title at least
    below = max([len(panel.lines) for panel in panels], default=0)
    figure, cells = _grid(len(panels), columns, (4.2, 2.6 + 0.16 * below), end(title, 40 * columns))
    for axes, panel in zip(cells, panels, strict=False):
        frames = np.concatenate([_framed(image, SIDE, 4) for image in panel.images], axis=1)
        beside = (2 * SIDE - frames.shape[1]) // 2  # one image is drawn as large as each of two
        axes.imshow(np.pad(frames, ((0, 0), (beside, beside), (0, 0)), constant_values=255))
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel("\n".join(end(line, 58) for line in panel.lines), fontsize=7)
    _write(path, figure)


MapRow = list[tuple[str, np.ndarray]]
"""An image and its heat maps, each h w 3, uint8, below its title."""


def write_maps(path: Path, rows: list[MapRow], title: str) -> None:
    """A PNG with a line for each image."""
    columns = max(map(len, rows))
    figure, cells = _grid(columns * len(rows), columns, (2.4, 2.7), title, fitted=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.8 / figure.get_figheight(), wspace=0.04, hspace=0.2)
    for number, row in enumerate(rows):
        for axes, (text, image) in zip(cells[number * columns :], row, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(text, fontsize=8)
    _write(path, figure)


def _grid(
    count: int, columns: int, inches: tuple[float, float], title: str, fitted: bool = True
) -> tuple[Figure, list[Axes]]:
    """``count`` cells or a few more, without frames and ticks, each of the given width and height.

    ``fitted``: between texts of any height, which are measured: half a minute for 400 cells.
    """
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(inches[0] * columns, inches[1] * rows + 0.6), layout="constrained" if fitted else None)
    figure.suptitle(title)
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.set(xticks=[], yticks=[], frame_on=False)
    return figure, cells


def end(name: str, width: int) -> str:
    """The last part of a long name, without what a picture cannot show, as in :func:`short`."""
    name = drawable(printable(name))
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _framed(image: np.ndarray | None, whole: int, margin: int) -> np.ndarray:
    """In the middle of a white square of ``whole`` pixels; grey with a cross where there is none to show."""
    frame = np.full((whole, whole, 3), 255, np.uint8)
    last = whole - margin - 1
    if image is None:
        frame[margin : last + 1, margin : last + 1] = 225
        for left, right in ((margin, last), (last, margin)):
            cv2.line(frame, (left, margin), (right, last), (170, 170, 170), 1)
        return frame
    scale = (whole - 2 * margin) / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    fitted = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    frame[top : top + height, left : left + width] = fitted
    return frame


def _write(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())
