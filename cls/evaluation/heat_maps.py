"""Why a network decides as it does: the places of an image that speak for a class, drawn over what it sees."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from cls.data.dataset import ViewDataset
from cls.data.loader import load_batch
from cls.data.readers import Images
from cls.evaluation.inference import Predictor
from cls.evaluation.predictions import Floats
from cls.models.grad_cam import class_maps
from cls.transforms.jpeg import Pixels
from cls.transforms.ops import view_ops

BATCH = 8
"""Images in one pass: as few as keep a processor busy, since prediction may need less memory than training left."""
STRENGTH = 0.7
"""Of the color at a map's maximum; the photo shows through."""

Heat = np.ndarray
"""float32 [h, w], 0 to 1, of the image's size."""


class Explained(NamedTuple):
    """An image in the plain view, and its maps, each divided by its maximum; all zero where no place raises a class."""

    pixels: Pixels  # as the network sees them, before normalisation
    probs: Floats  # c, softmax
    predicted: Heat
    labelled: Heat
    """Of the label; that of the predicted class if there is none."""
    attention: Heat | None
    """Of the last CBAM, stretched from its lowest to its highest factor."""
    factors: tuple[float, float]
    """These two; zeros without CBAM."""


def explain(
    predictor: Predictor, images: Images, rows: Sequence[int], labels: Sequence[int]
) -> tuple[dict[int, Explained], dict[int, str]]:
    """Maps by row, and why the other rows cannot be read. ``labels``: a class for each of ``rows``, -1 unknown.

    On this process alone, whatever the number of others.
    """
    run, device = predictor.run, predictor.prepare.mean.device
    frame, label_of = run.data.evaluated, dict(zip(rows, labels, strict=True))
    data = ViewDataset(images, view_ops("identity", frame), frame.size, run.seed, "identity", frame.exact_order)
    found, corrupt = dict[int, Explained](), dict[int, str]()
    for start in range(0, len(rows), BATCH):
        batch = load_batch(data, rows[start : start + BATCH])
        corrupt |= dict(batch.corrupt)
        classes = torch.tensor([label_of[row] for row in batch.rows], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.train.precision == "bf16"):
            maps = class_maps(predictor.model, predictor.prepare(batch), classes)
        probs = maps.logits.double().softmax(1).cpu().numpy()
        predicted, labelled = maps.predicted.cpu().numpy(), maps.labelled.cpu().numpy()
        attention = None if maps.attention is None else maps.attention.cpu().numpy()
        for i, row in enumerate(batch.rows):
            if row in corrupt:
                continue
            own = None if attention is None else attention[i]
            low, high = (0.0, 0.0) if own is None else (float(own.min()), float(own.max()))
            found[row] = Explained(
                batch.pixels[i].permute(1, 2, 0).numpy(), probs[i],
                _stretched(predicted[i], 0.0, frame.size), _stretched(labelled[i], 0.0, frame.size),
                None if own is None else _stretched(own, low, frame.size), (low, high),
            )  # fmt: skip
    return found, corrupt


def _stretched(values: np.ndarray, low: float, size: int) -> Heat:
    """From ``low`` to the maximum onto 0 to 1, in the size of the image; zeros where all are ``low``."""
    span = float(values.max()) - low
    if not 0 < span < np.inf:
        return np.zeros((size, size), np.float32)
    return cv2.resize((values - low) / np.float32(span), (size, size), interpolation=cv2.INTER_LINEAR)


def enlarged(pixels: Pixels, side: int) -> Pixels:
    """The image, ``side`` pixels wide and high; a smaller one keeps its pixels: it is no blurred photo."""
    way = cv2.INTER_AREA if side < len(pixels) else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=way))


def overlay(pixels: Pixels, heat: Heat, side: int) -> Pixels:
    """The image in grey, ``side`` pixels wide and high, colored where the map is high: purple, red, yellow.

    The order of these colors is one of brightness, too: it survives every kind of color vision.
    """
    grey = cv2.cvtColor(enlarged(pixels, side), cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    heat = cv2.resize(heat, (side, side), interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = STRENGTH * heat[..., None]
    return np.rint((1 - share) * grey + share * colors).astype(np.uint8)
