"""Augmentation parameters executed one by one with torchvision's public functions on PIL images.

Slow and simple: what the published programs do, and the oracle for tests of the fused path.
"""

import math
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cls.transforms.ops import Fill
from cls.transforms.params import Box, Colour, Crop, Flip, Gaussian, Param, RandOp, Resize, Rotation, Shift

NEAREST = InterpolationMode.NEAREST  # torchvision's default for rotation, affine and RandAugment


def apply(image: Image.Image, params: tuple[Param, ...]) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Execute on an RGB image: uint8 pixels [3, h, w], and the box to erase (top, left, height, width; zeros: none).

    The box is not erased here: its noise is made on the device, before normalising.
    """
    box = (0, 0, 0, 0)
    for param in params:
        if isinstance(param, Box):
            box = (param.top, param.left, param.height, param.width)
        else:
            image = _step(image, param)
    return tv.pil_to_tensor(image), box


def _step(image: Image.Image, param: Param) -> Any:  # an image; torchvision ships no types
    match param:
        case Crop(left, top, width, height):
            return tv.crop(image, top, left, height, width)
        case Resize(width, height):
            return tv.resize(image, [height, width], antialias=True)
        case Flip(axis):
            return tv.horizontal_flip(image) if axis == "horizontal" else tv.vertical_flip(image)
        case Rotation(angle, fill):
            return tv.rotate(image, angle, interpolation=NEAREST, fill=list(fill))
        case Shift(right, down, scale, fill):
            return _affine(image, fill, translate=[right, down], scale=scale)
        case Colour(factors):
            for name, factor in factors:
                image = getattr(tv, f"adjust_{name}")(image, factor)
            return image
        case RandOp():
            return _rand_op(image, param)
        case Gaussian(kernel, sigma):
            return tv.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
    raise AssertionError(param)


def _affine(image: Image.Image, fill: Fill, **how: Any) -> Any:
    given = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | how
    return tv.affine(image, interpolation=NEAREST, fill=list(fill), **given)


def _rand_op(image: Image.Image, param: RandOp) -> Any:
    level, fill = param.magnitude, param.fill
    match param.name:
        case "Identity":
            return image
        case "ShearX":  # about the top left corner, as the official AutoAugment code
            return _affine(image, fill, shear=[math.degrees(math.atan(level)), 0.0], center=[0.0, 0.0])
        case "ShearY":
            return _affine(image, fill, shear=[0.0, math.degrees(math.atan(level))], center=[0.0, 0.0])
        case "TranslateX":
            return _affine(image, fill, translate=[int(level), 0])
        case "TranslateY":
            return _affine(image, fill, translate=[0, int(level)])
        case "Rotate":
            return tv.rotate(image, level, interpolation=NEAREST, fill=list(fill))
        case "Brightness":
            return tv.adjust_brightness(image, 1.0 + level)
        case "Color":
            return tv.adjust_saturation(image, 1.0 + level)
        case "Contrast":
            return tv.adjust_contrast(image, 1.0 + level)
        case "Sharpness":
            return tv.adjust_sharpness(image, 1.0 + level)
        case "Posterize":
            return tv.posterize(image, int(level))
        case "Solarize":
            return tv.solarize(image, level)
        case "AutoContrast":
            return tv.autocontrast(image)
        case "Equalize":
            return tv.equalize(image)
    raise AssertionError(param.name)
