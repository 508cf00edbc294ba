"""A contact sheet: what the model is shown, for a person to look at before training."""

import io
import math
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from cls.files import write_whole
from cls.report import short


class Tile(NamedTuple):
    image: Tensor  # 3 h w, uint8
    shares: dict[str, float]
    """Classes and their shares of the target."""
    draw: int
    id: str

    @property
    def caption(self) -> str:
        """'cat', or 'cat .70 + dog .30', the larger share first."""
        ranked = sorted(self.shares.items(), key=lambda item: -item[1])
        if len(ranked) == 1:
            return short(ranked[0][0], 20)
        return " + ".join(f"{short(name, 9)} {share:.2f}".replace("0.", ".") for name, share in ranked)


def write_sheet(path: Path, tiles: list[Tile], title: str) -> None:
    """A PNG of all tiles in draw order, about twice as wide as high."""
    columns = max(1, math.ceil(math.sqrt(1.6 * len(tiles))))
    rows = math.ceil(len(tiles) / columns)
    figure = Figure(figsize=(1.7 * columns, 1.95 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    for axes, tile in zip(figure.subplots(rows, columns, squeeze=False).flat, tiles, strict=False):
        axes.imshow(tile.image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(tile.caption, fontsize=8)
        axes.set_xlabel(f"draw {tile.draw}", fontsize=6)
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_whole(path, buffer.getvalue())
