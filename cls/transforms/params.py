"""Augmentation parameters: all random numbers of one image, chosen before any pixel is touched.

reference.py and fused.py execute the same parameters, so they apply the same augmentation. The distributions are
torchvision's (0.29, transforms.v2).
"""

import math
from typing import Literal, NamedTuple

import numpy as np
import torch

from cls.transforms import ops
from cls.transforms.ops import Fill, Op

LONGEST = 16
"""Above this aspect ratio only the centre is kept: a 1 x 60,000 strip resized to a short side of 256 is 12 GB."""
SPARE = 2
"""Decoded pixels per final pixel and side, at least: for Pillow (``reducing_gap``) the difference to a full decoding is
then almost invisible. Mean slope between pixels over that of a full decoding, 60 clothing photos: 0.98; with 1 in place
of 2, 0.93, and a network's validation loss rose by .01 to .02 (2026-11-23)."""
BINS = 30  # RandAugment and TrivialAugment: magnitudes run from 0 to this (31 bins)


class Crop(NamedTuple):
    """Cut a box, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Resize(NamedTuple):
    """Resize to this many pixels, bilinear with antialiasing."""

    width: int
    height: int


class Flip(NamedTuple):
    axis: Literal["horizontal", "vertical"]


class Rotation(NamedTuple):
    """Counter-clockwise about the centre, degrees."""

    angle: float
    fill: Fill


class Shift(NamedTuple):
    """Move right and down by whole pixels after scaling about the centre."""

    right: int
    down: int
    scale: float
    fill: Fill


class Colour(NamedTuple):
    """Factors in the order of application; names are brightness, contrast, saturation, hue (turns)."""

    factors: tuple[tuple[str, float], ...]


class RandOp(NamedTuple):
    """One operation of RandAugment or TrivialAugment.

    torchvision's name and signed magnitude (pixels for Translate, bits, 0..255).
    """

    name: str
    magnitude: float
    fill: Fill


class Gaussian(NamedTuple):
    kernel: int
    sigma: float


class Box(NamedTuple):
    """The box to be erased, pixels of the final image."""

    top: int
    left: int
    height: int
    width: int


Param = Crop | Resize | Flip | Rotation | Shift | Colour | RandOp | Gaussian | Box


def make_params(operations: tuple[Op, ...], width: int, height: int, rng: np.random.Generator) -> tuple[Param, ...]:
    """The parameters for one upright image of this size, in order; skipped operations (no flip) are left out."""
    params: list[Param] = []
    for op in operations:
        for param in _params_of(op, width, height, rng):
            params.append(param)
            if isinstance(param, Crop | Resize):
                width, height = param.width, param.height
    return tuple(params)


def _params_of(op: Op, width: int, height: int, rng: np.random.Generator) -> list[Param]:
    match op:
        case ops.RandomResizedCrop(size=size):
            return [_on_grid(_random_box(op, width, height, rng), size), Resize(size, size)]
        case ops.ResizeShort(size=size):
            return _resize_short(size, width, height)
        case ops.CenterCrop(size=size):
            return [Crop(round((width - size) / 2), round((height - size) / 2), size, size)]
        case ops.Squash(size=size):
            return [Resize(size, size)]
        case ops.HFlip(p=p):
            return [Flip("horizontal")] if rng.random() < p else []
        case ops.VFlip(p=p):
            return [Flip("vertical")] if rng.random() < p else []
        case ops.Rotate(degrees=degrees, fill=fill):
            return [Rotation(_uniform(rng, -degrees, degrees), fill)]
        case ops.Affine(translate=share, zoom=zoom, fill=fill):
            right, down = (round(_uniform(rng, -share * side, share * side)) for side in (width, height))
            return [Shift(right, down, _uniform(rng, *zoom), fill)]
        case ops.Jitter():
            return [_colour(op, rng)]
        case ops.RandAugment(n=n):
            return [_rand_op(op, width, height, rng) for _ in range(n)]
        case ops.TrivialAugment(fill=fill):
            return [_trivial_op(fill, rng)]
        case ops.Blur(kernel=kernel):
            # reflected edges need more pixels than half a kernel; a smaller image stays sharp
            return [Gaussian(kernel, _uniform(rng, 0.1, 2.0))] if min(width, height) > kernel // 2 else []
        case ops.Erase():
            return _erase_box(op, width, height, rng)


def _random_box(op: ops.RandomResizedCrop, width: int, height: int, rng: np.random.Generator) -> Crop:
    low, high = op.ratio
    for _ in range(10):
        area = width * height * _uniform(rng, *op.scale)
        ratio = math.exp(_uniform(rng, math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            return Crop(int(rng.integers(width - w + 1)), top, w, h)
    # The image is too elongated for the ratios (or the scale too near 1): the largest central box within them.
    w = round(height * high) if width / height > high else width
    h = round(width / low) if width / height < low else height
    return Crop((width - w) // 2, (height - h) // 2, w, h)


def _on_grid(crop: Crop, size: int) -> Crop:
    """Aligned to multiples of k if the crop can be decoded at 1 / k: a reduced JPEG has one pixel per k x k."""
    k = reduction(crop.width, crop.height, size, size)
    return crop if k == 1 else Crop(*(number // k * k for number in crop))


def reduction(width: int, height: int, to_width: int, to_height: int) -> int:
    """The largest of 1, 2, 4, 8 by which a box can be reduced and still have SPARE times the target's size."""
    wide, high = SPARE * to_width, SPARE * to_height
    return next(k for k in (8, 4, 2, 1) if k == 1 or (width // k >= wide and height // k >= high))


def _resize_short(size: int, width: int, height: int) -> list[Param]:
    params: list[Param] = []
    short = min(width, height)
    if max(width, height) > LONGEST * short:
        w, h = min(width, LONGEST * short), min(height, LONGEST * short)
        params.append(Crop((width - w) // 2, (height - h) // 2, w, h))
        width, height = w, h
    return [*params, Resize(size * width // short, size * height // short)]


def _colour(op: ops.Jitter, rng: np.random.Generator) -> Colour:
    order = rng.permutation(4)
    factors = [
        ("brightness", _uniform(rng, max(0.0, 1 - op.brightness), 1 + op.brightness), op.brightness),
        ("contrast", _uniform(rng, max(0.0, 1 - op.contrast), 1 + op.contrast), op.contrast),
        ("saturation", _uniform(rng, max(0.0, 1 - op.saturation), 1 + op.saturation), op.saturation),
        ("hue", _uniform(rng, -op.hue, op.hue), op.hue),
    ]
    return Colour(tuple(factors[i][:2] for i in order if factors[i][2]))


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """As ``rng.uniform``, without its overhead for arrays."""
    return low + (high - low) * rng.random()


RAND_OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""torchvision's RandAugment space, in its order."""

# float32 as in torchvision: the last bit decides the rounding of some pixels
_SHEAR, _DEGREES, _FACTOR = (torch.linspace(0.0, top, BINS + 1).tolist() for top in (0.3, 30.0, 0.9))


def _rand_op(op: ops.RandAugment, width: int, height: int, rng: np.random.Generator) -> RandOp:
    name = RAND_OPS[rng.integers(len(RAND_OPS))]
    match name:
        case "ShearX" | "ShearY":
            magnitude = _SHEAR[op.magnitude]
        case "TranslateX":
            magnitude = float(5 * width * op.magnitude // 331)  # 150 / 331 of the side at 30, whole pixels
        case "TranslateY":
            magnitude = float(5 * height * op.magnitude // 331)
        case "Rotate":
            magnitude = _DEGREES[op.magnitude]
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            magnitude = _FACTOR[op.magnitude]
        case "Posterize":
            return RandOp(name, float(round(8 - 4 * op.magnitude / BINS)), op.fill)
        case "Solarize":
            return RandOp(name, 8.5 * (BINS - op.magnitude), op.fill)
        case _:
            return RandOp(name, 0.0, op.fill)
    return RandOp(name, magnitude if rng.random() < 0.5 else -magnitude, op.fill)


# torchvision's TrivialAugmentWide: the largest shear, shift in pixels whatever the image's size, angle, factor
_WIDE = {
    "ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0,
    "Brightness": 0.99, "Color": 0.99, "Contrast": 0.99, "Sharpness": 0.99,
}  # fmt: skip
_WIDE_STEPS = {name: torch.linspace(0.0, top, BINS + 1).tolist() for name, top in _WIDE.items()}


def _trivial_op(fill: Fill, rng: np.random.Generator) -> RandOp:
    name = RAND_OPS[rng.integers(len(RAND_OPS))]
    strength = int(rng.integers(BINS + 1))
    if name in _WIDE:
        magnitude = _WIDE_STEPS[name][strength] * (1.0 if rng.random() < 0.5 else -1.0)
        return RandOp(name, float(int(magnitude)) if name.startswith("Translate") else magnitude, fill)
    if name == "Posterize":
        return RandOp(name, float(round(8 - 6 * strength / BINS)), fill)
    return RandOp(name, 8.5 * (BINS - strength) if name == "Solarize" else 0.0, fill)


def _erase_box(op: ops.Erase, width: int, height: int, rng: np.random.Generator) -> list[Param]:
    if rng.random() >= op.p:
        return []
    for _ in range(10):
        area = width * height * _uniform(rng, *op.scale)
        ratio = math.exp(_uniform(rng, math.log(op.ratio[0]), math.log(op.ratio[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            top = int(rng.integers(height - h + 1))
            return [Box(top, int(rng.integers(width - w + 1)), h, w)]
    return []
