"""From augmentation parameters to a plan: crops, one warp for all moves of pixels, colour changes in groups.

Affine maps are six numbers (a, b, c, d, e, f) from output to input: x' = a x + b y + c, y' = d x + e y + f, in
continuous coordinates (the first pixel's centre is at 0.5, 0.5), as in Pillow and torchvision.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from cls.transforms.ops import Fill
from cls.transforms.params import Box, Crop, Flip, Param, RandOp, Resize, Rotation, Shift

Affine = tuple[float, float, float, float, float, float]
IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PLACES = 4  # binary places of the outlines
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # RandAugment's operations that move pixels


@dataclass
class Effect:
    """A change of colour or sharpness, and how many pixels of its input form a final pixel."""

    param: Param
    pixels: tuple[float, float]


@dataclass
class Frame:
    """The image before a move, outside of which the move shows its fill. ``matrix``: from final pixels to its own."""

    width: int
    height: int
    matrix: Affine
    fill: Fill
    outside: list[np.ndarray] = field(default_factory=list)
    """Two outlines, int32 [4, 2] in 1 / 2^PLACES final pixels, with the fill between them; or empty."""


@dataclass
class Plan:
    """Augmentation parameters as steps of one pass; see :mod:`cls.transforms.fused`."""

    width: int  # of the final image
    height: int
    cuts: list[Crop | Resize] = field(default_factory=list)  # first, one after the other
    mirrored: tuple[bool, bool] = (False, False)  # left to right, upside down: where nothing else moves
    matrix: Affine = IDENTITY  # from final pixels to those of what has been cut out
    shrunk: tuple[float, float] = (1.0, 1.0)  # by all resizing: pixels of the source in one final pixel
    frames: list[Frame] = field(default_factory=list)  # one for each move, in order
    effects: list[list[Effect]] = field(default_factory=lambda: [[]])  # before the first move, after it, …
    box: tuple[int, int, int, int] = (0, 0, 0, 0)


def compose(outer: Affine, inner: Affine) -> Affine:
    """First ``inner``, then ``outer``."""
    a, b, c, d, e, f = outer
    p, q, r, s, t, u = inner
    return a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f


def inverse(matrix: Affine) -> Affine:
    a, b, c, d, e, f = matrix
    det = a * e - b * d
    return e / det, -b / det, (b * f - e * c) / det, -d / det, a / det, (d * c - a * f) / det


def arrange(params: tuple[Param, ...], width: int, height: int) -> Plan:
    """The plan for an upright image of this size."""
    plan = Plan(width, height)
    for param in params:
        match param:
            case Crop():
                _crop(plan, param)
            case Resize(to_width, to_height):
                ratio = plan.width / to_width, plan.height / to_height
                plan.shrunk = plan.shrunk[0] * ratio[0], plan.shrunk[1] * ratio[1]
                if plan.frames:
                    _move(plan, (ratio[0], 0.0, 0.0, 0.0, ratio[1], 0.0))
                else:
                    plan.cuts.append(param)
                plan.width, plan.height = to_width, to_height
            case Flip(axis):
                _flip(plan, axis == "horizontal")
            case Box(top, left, box_height, box_width):
                plan.box = (top, left, box_height, box_width)
            case Rotation() | Shift():
                _warp(plan, _inverse_map(param, plan.width, plan.height), param.fill)
            case RandOp(name) if name in MOVES:
                _warp(plan, _inverse_map(param, plan.width, plan.height), param.fill)
            case _:
                plan.effects[-1].append(Effect(param, plan.shrunk))
    for effect in (effect for group in plan.effects for effect in group):
        effect.pixels = plan.shrunk[0] / effect.pixels[0], plan.shrunk[1] / effect.pixels[1]
    for frame in plan.frames:
        frame.outside = _outside(frame, plan.width, plan.height)
    return plan


def _outside(frame: Frame, width: int, height: int) -> list[np.ndarray]:
    """Part of the plan: Python code between decodings takes twice as long."""
    a, b, c, d, e, f = frame.matrix
    corners = ((0.5, 0.5), (width - 0.5, 0.5), (width - 0.5, height - 0.5), (0.5, height - 0.5))
    if all(0 <= a * x + b * y + c <= frame.width and 0 <= d * x + e * y + f <= frame.height for x, y in corners):
        return []
    left, top = -math.hypot(a, b) / 2, -math.hypot(d, e) / 2  # fillPoly also paints its outline: half a pixel more
    right, bottom = frame.width - left, frame.height - top
    a, b, c, d, e, f = inverse(frame.matrix)
    one = 2**PLACES
    near, wide, high = -2 * one, (width + 1) * one, (height + 1) * one
    numbers = [near, near, wide, near, wide, high, near, high]
    for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
        numbers += round((a * x + b * y + c) * one - one / 2), round((d * x + e * y + f) * one - one / 2)
    return list(np.array(numbers, np.int32).reshape(2, 4, 2))


def region(plan: Plan, width: int, height: int) -> tuple[Crop, Affine]:
    """The region to decode of an image of this size, and the map from final pixels to the region's."""
    left, top, across, down = 0.0, 0.0, 1.0, 1.0  # of what has been cut out so far, in pixels of the source
    w, h = width, height
    for cut in plan.cuts:
        if isinstance(cut, Crop):
            left, top = left + cut.left * across, top + cut.top * down
        else:
            across, down = across * w / cut.width, down * h / cut.height
        w, h = cut.width, cut.height
    x, y = max(0, round(left)), max(0, round(top))
    right, bottom = min(width, round(left + w * across)), min(height, round(top + h * down))
    to_region: Affine = (across, 0.0, left - x, 0.0, down, top - y)
    return Crop(x, y, max(1, right - x), max(1, bottom - y)), compose(to_region, plan.matrix)


def _crop(plan: Plan, crop: Crop) -> None:
    left, top = crop.left, crop.top
    if plan.frames:
        _move(plan, (1.0, 0.0, float(left), 0.0, 1.0, float(top)))
    else:
        if plan.mirrored[0]:
            left = plan.width - left - crop.width
        if plan.mirrored[1]:
            top = plan.height - top - crop.height
        plan.cuts.append(Crop(left, top, crop.width, crop.height))
    plan.width, plan.height = crop.width, crop.height


def _flip(plan: Plan, horizontal: bool) -> None:
    x, y = plan.mirrored
    if plan.frames:
        _move(plan, _mirror(plan, horizontal, not horizontal))
    else:
        plan.mirrored = (x ^ horizontal, y ^ (not horizontal))


def _mirror(plan: Plan, x: bool, y: bool) -> Affine:
    return (-1.0 if x else 1.0, 0.0, plan.width * x, 0.0, -1.0 if y else 1.0, plan.height * y)


def _move(plan: Plan, matrix: Affine) -> None:
    plan.matrix = compose(plan.matrix, matrix)
    for frame in plan.frames:
        frame.matrix = compose(frame.matrix, matrix)


def _warp(plan: Plan, matrix: Affine, fill: Fill) -> None:
    if matrix == IDENTITY:
        return
    if not plan.frames:
        plan.matrix = _mirror(plan, *plan.mirrored)
        plan.mirrored = (False, False)
    plan.frames.append(Frame(plan.width, plan.height, IDENTITY, fill))
    plan.effects.append([])
    _move(plan, matrix)


def _inverse_map(param: Rotation | Shift | RandOp, width: int, height: int) -> Affine:
    match param:
        case Rotation(angle):
            return _rotation(angle, width, height)
        case Shift(right, down, scale):
            x, y = width / 2, height / 2
            return 1 / scale, 0.0, x - (x + right) / scale, 0.0, 1 / scale, y - (y + down) / scale
        case RandOp("Rotate", angle):
            return _rotation(angle, width, height)
        case RandOp("ShearX", level):  # about the top left corner, as the official AutoAugment code
            return 1.0, level, 0.0, 0.0, 1.0, 0.0
        case RandOp("ShearY", level):
            return 1.0, 0.0, 0.0, level, 1.0, 0.0
        case RandOp("TranslateX", level):
            return 1.0, 0.0, -float(int(level)), 0.0, 1.0, 0.0
        case _:
            return 1.0, 0.0, 0.0, 0.0, 1.0, -float(int(param.magnitude))


def _rotation(angle: float, width: int, height: int) -> Affine:
    """Counter-clockwise about the centre, in degrees; y points down."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
