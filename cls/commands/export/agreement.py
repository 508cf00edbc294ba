"""Printed code run on real images: the network's logits, and the whole path against ``cls predict``."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from cls.commands.export.reading import APPLIED, Code, Reading, applied
from cls.config import View
from cls.data.dataset import PLAIN, EvalDataset, ViewDataset
from cls.data.loader import batches, worker_count
from cls.data.readers import images_of
from cls.data.sources import Rows
from cls.evaluation.predictions import Predictions
from cls.evaluation.trained_model import TrainedModel
from cls.transforms.decode import CorruptImageError
from cls.transforms.ops import view_ops

log = logging.getLogger("cls")

LIMIT = 1e-4
"""Largest difference of a logit in fp32 on the CPU: kernels add in different orders."""
CHOSEN_ON = 25
"""Photos on which the ways to read a file are compared: 12 megapixels take Pillow 0.1 s."""


class Photos(NamedTuple):
    """Images that can be read, and as the network gets them."""

    rows: Rows
    images: Tensor  # b 3 h w, normalised
    pixels: Tensor  # b h w 3, uint8


@dataclass(frozen=True)
class Verified:
    """Code that loads what was written and reads image files, and what its verification found."""

    code: Code
    reading: Reading
    logits: float
    """Largest difference of a logit."""
    agreement: dict[str, Any]


def photos(trained: TrainedModel, rows: Rows, count: int) -> Photos:
    """Evenly spread images in the plain view, without corrupt ones. ValueError if none can be read."""
    data, size = trained.run.data.evaluated, trained.run.train.eval_batch
    some = rows.select(np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)))
    ops = view_ops("identity", data)
    views = ViewDataset(images_of(some), ops, data.size, trained.run.seed, "identity", data.exact_order)
    slices = [list(range(start, min(start + size, len(some)))) for start in range(0, len(some), size)]
    images, pixels, readable = [], [], list[int]()
    for batch in batches(views, slices, worker_count(data.workers, 1), size):
        corrupt = {row for row, _ in batch.corrupt}
        whole = [place for place, row in enumerate(batch.rows) if row not in corrupt]
        images.append(trained.prepare(batch)[whole])
        pixels.append(batch.pixels.permute(0, 2, 3, 1)[whole].contiguous())
        readable += [batch.rows[place] for place in whole]
    if not readable:
        raise ValueError("no image could be read, and the export is verified on real ones: name others with --images")
    return Photos(some.select(readable), torch.cat(images), torch.cat(pixels))


@contextmanager
def as_files(rows: Rows) -> Iterator[list[Path]]:
    """The images as files, as another program has them."""
    with tempfile.TemporaryDirectory(prefix="cls-") as folder:
        files = []
        for row, data in enumerate(images_of(rows).read(range(len(rows)))):
            assert not isinstance(data, CorruptImageError), "photos() has read it"
            files.append(Path(folder, str(row)))
            files[-1].write_bytes(data)
        yield files


def logit_difference(
    name: str, net: Callable[[Tensor], Tensor], inputs: Tensor, ours: Tensor, sizes: list[int]
) -> float:
    """The largest difference of a logit, in batches of these sizes; ValueError above LIMIT."""
    with torch.no_grad():
        theirs = torch.cat([net(some) for some in torch.split(inputs, sizes)])
    largest = float((theirs - ours).abs().max()) if theirs.shape == ours.shape else float("inf")
    if not largest <= LIMIT:  # nor nan
        raise ValueError(
            f"{name} gives other logits than the run's network: they differ by up to {largest:.2g} on "
            f"{len(ours)} images, more than {LIMIT:g} (logits up to {float(ours.abs().max()):.3g}); nothing was written"
        )
    return largest


def most_similar(code: Code, scope: dict[str, Any], folder: Path, files: list[Path], inputs: Tensor) -> Reading:
    """Of the ways to read a file the one whose input differs least from ours on average; it is left in ``scope``."""
    some = np.unique(np.linspace(0, len(files) - 1, min(CHOSEN_ON, len(files))).astype(int)).tolist()
    ours = inputs[some].double().numpy()
    readings, found = get_args(Reading), list[float]()
    for reading in readings:
        exec(code.read(folder, reading, PLAIN), scope)
        theirs = [_tried(scope["read"], files[place]) for place in some]
        differences = [np.abs(one[0] - own).mean() for one, own in zip(theirs, ours, strict=True) if one is not None]
        found.append(float(np.mean(differences)) if differences else float("inf"))
    best: Reading = readings[int(np.argmin(found))]
    exec(code.read(folder, best, code.views), scope)
    return best


def predicted(trained: TrainedModel, rows: Rows) -> dict[tuple[View, ...], Predictions]:
    """What ``cls predict`` gives in the recipe's test-time views, and in those that printed code applies, by views."""
    views = trained.run.augment.tta or PLAIN
    own = applied(views)
    wanted = [views] if set(views) == set(own) else [views, own]
    return {some: trained.predict(EvalDataset(rows, some, trained.run)) for some in wanted}


def agreement(
    probabilities: Callable[[Path], Any], files: list[Path], ours: Mapping[tuple[View, ...], Predictions]
) -> dict[str, Any]:
    """Printed code against each of ``ours``: equal labels, the largest difference of a probability, the rest."""
    theirs = [_tried(probabilities, file) for file in files]
    found = []
    for views, known in ours.items():
        unread = np.full(len(known.classes), np.nan)
        probs = np.stack([unread if one is None else one for one in theirs])
        same = (probs.argmax(1) == known.probs.argmax(1)) & np.isfinite(probs).all(1)
        found.append({
            "views": list(views), "labels": int(same.sum()), "images": len(files),
            "probability": float(np.nan_to_num(np.abs(probs - known.probs), nan=1.0).max()),
            "others": [known.ids[row] for row in np.flatnonzero(~same)],
        })  # fmt: skip
    return {"applied": list(applied(next(iter(ours)))), "against": found}


def _tried(function: Callable[[Path], Any], file: Path) -> np.ndarray | None:
    """None, with a warning, where Pillow cannot read what cls can: it counts as another label."""
    try:
        return np.asarray(function(file), np.float64)
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, TypeError and others
        log.warning("image %s: the printed lines cannot read it (%s: %s)", file.name, type(error).__name__, error)
        return None


def sentence(name: str, found: Mapping[str, Any], named: bool = True) -> str:
    """The result of :func:`agreement` for users; ``named``: with the names of images that got another label."""
    full, *rest = found["against"]
    text = f"{name}, from image file to probability: {_figures(full)} of cls predict ({_named(full['views'])})"
    if rest:
        (own,) = rest
        left = [view for view in full["views"] if view not in APPLIED]
        text += f"; the lines lack its views {_named(left)}: {_figures(own)} with --tta {' '.join(own['views'])}"
    if (others := full["others"]) and named:
        text += f"; other labels: {', '.join(others[:3])}{', …' if len(others) > 3 else ''}"
    return text


def _figures(found: Mapping[str, Any]) -> str:
    return f"{found['labels']} of {found['images']} labels, probabilities within {found['probability']:.2g},"


def _named(views: list[str]) -> str:
    return "the plain image, no test-time views" if views == ["identity"] else ", ".join(views)
