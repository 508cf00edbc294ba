"""Colour changes in few passes: consecutive brightness, contrast and saturation become one matrix [3, 4]."""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from cls.transforms.geometry import Effect
from cls.transforms.params import Colour, Gaussian, RandOp

Change = Callable[[Any], Any]
"""From pixels to pixels, uint8 [h, w, 3]; applied to a patch of one colour, it gives that colour's result."""

GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's luma
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # of Pillow's and torchvision's sharpness
_NAMES = {"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast"}


def apply_effects(image: Any, effects: list[Effect]) -> tuple[Any, list[Change]]:
    """The image after all changes, and the changes with the image's statistics (mean, histogram) bound."""
    done: list[Change] = []
    if not effects:
        return image, done
    mix = _Mix()
    for name, value, pixels in [step for effect in effects for step in _steps(effect)]:
        if name in ("brightness", "contrast", "saturation"):
            mix = mix.then(name, value, image)
            continue
        image, mix = _carry_out(mix.change(), image, done), _Mix()
        image = _carry_out(_change(name, value, pixels, image), image, done)
    return _carry_out(mix.change(), image, done), done


def uses_neighbors(effect: Effect) -> bool:
    """Whether a change depends on more than each pixel itself, the mean and the extremes."""
    match effect.param:
        case Gaussian() | RandOp("Sharpness" | "Equalize"):
            return True
    return False


def _carry_out(change: Change | None, image: Any, done: list[Change]) -> Any:
    if change is None:
        return image
    done.append(change)
    return change(image)


class _Mix(NamedTuple):
    """Consecutive brightness, contrast and saturation: own * colour + grey * (its grey) + constant, in all channels.

    This suffices because each factor moves every colour towards a grey (black, the mean, its own).
    """

    own: float = 1.0
    grey: float = 0.0
    constant: float = 0.0

    def then(self, name: str, factor: float, image: Any) -> "_Mix":
        """With one more factor; ``image`` is the input of them all."""
        grey, constant = 0.0, 0.0
        if name == "contrast":
            red, green, blue, _ = cv2.mean(image)
            mean = GREY[0] * red + GREY[1] * green + GREY[2] * blue
            constant = float(int((self.own + self.grey) * mean + self.constant + 0.5))
        elif name == "saturation":
            grey, constant = self.own + self.grey, self.constant
        rest = 1 - factor
        return _Mix(factor * self.own, factor * self.grey + rest * grey, factor * self.constant + rest * constant)

    def change(self) -> Change | None:
        """As a change; None for the identity."""
        own, grey, constant = self
        if (own, grey, constant) == (1.0, 0.0, 0.0):
            return None
        red, green, blue = (grey * part for part in GREY)
        matrix = np.array(
            [(own + red, green, blue, constant), (red, own + green, blue, constant), (red, green, own + blue, constant)]
        )
        return lambda image: cv2.transform(image, matrix)


def _steps(effect: Effect) -> list[tuple[str, float, tuple[float, float]]]:
    match effect.param:
        case Colour(factors):
            return [(name, factor, effect.pixels) for name, factor in factors]
        case Gaussian(kernel, sigma):
            return [(f"blur {kernel}", sigma, effect.pixels)]
        case RandOp(name, level):
            return [(_NAMES[name], 1.0 + level, effect.pixels) if name in _NAMES else (name, level, effect.pixels)]
    raise AssertionError(effect.param)


def _change(name: str, value: float, pixels: tuple[float, float], image: np.ndarray) -> Change | None:
    match name:
        case "hue":
            turn = int(value * 255) % 256  # as torchvision has it for PIL images
            return _hue(turn) if turn else None
        case "Identity":
            return None
        case "Sharpness":
            return _sharpness(1.0 + value, pixels)
        case "Posterize":
            return _table(np.arange(256) & ~(2 ** (8 - int(value)) - 1))
        case "Solarize":
            levels = np.arange(256)
            return _table(np.where(levels < value, levels, 255 - levels))
        case "AutoContrast":
            return _table(np.stack([_stretched(counts) for counts in _histograms(image)], 1))
        case "Equalize":
            return _table(np.stack([_equalized(counts) for counts in _histograms(image)], 1))
        case _:
            return _blur(int(name.removeprefix("blur ")), value, pixels)


def _hue(turn: int) -> Change:
    def change(image: np.ndarray) -> Any:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        rows = hsv.reshape(len(hsv), -1)
        row = np.zeros(rows.shape[1], np.uint8)  # adding to all bytes takes a third of the time of every third one
        row[::3] = turn
        np.add(rows, row, out=rows)  # wraps
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)

    return change


def _table(levels: np.ndarray) -> Change:
    """``levels``: 256 values, or 256 values x channels."""
    table = levels.astype(np.uint8).reshape(256, 1, -1)

    def change(image: Any) -> Any:
        return cv2.LUT(image, table)

    return change


def _histograms(image: np.ndarray) -> list[np.ndarray]:
    return [cv2.calcHist([image], [c], None, [256], [0, 256]).astype(np.int64).ravel() for c in range(3)]


def _stretched(counts: np.ndarray) -> np.ndarray:
    """Pillow's autocontrast: the darkest value becomes 0, the brightest 255."""
    there = np.flatnonzero(counts)
    low, high = there[0], there[-1]
    if high <= low:
        return np.arange(256)
    scale = 255.0 / (high - low)
    levels: np.ndarray = np.clip((np.arange(256) * scale - low * scale).astype(np.int64), 0, 255)
    return levels


def _equalized(counts: np.ndarray) -> np.ndarray:
    """Pillow's equalize: about as many pixels on each level."""
    there = counts[counts > 0]
    step = int(there.sum() - there[-1]) // 255
    if len(there) <= 1 or not step:
        return np.arange(256)
    levels: np.ndarray = np.clip((step // 2 + np.cumsum(counts) - counts) // step, 0, 255)
    return levels


def _sharpness(factor: float, pixels: tuple[float, float]) -> Change:
    """Away from the smoothed image; before a reduction by s, weighted 1 / s²: the kernel is that much narrower."""
    weight = (factor - 1) / (pixels[0] * pixels[1])

    def change(image: np.ndarray) -> Any:
        smooth = cv2.filter2D(image, -1, _SMOOTH, borderType=cv2.BORDER_REFLECT_101)
        if min(pixels) == max(pixels) == 1.0:  # torchvision leaves the outermost pixels as they are
            smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1] = image[0], image[-1], image[:, 0], image[:, -1]
        return cv2.addWeighted(image, 1 + weight, smooth, -weight, 0.0)

    return change


def _blur(kernel: int, sigma: float, pixels: tuple[float, float]) -> Change | None:
    places = np.arange(kernel) - kernel // 2
    weights = np.exp(-0.5 * (places / sigma) ** 2)
    weights /= weights.sum()
    if pixels == (1.0, 1.0):
        across = down = weights
    else:  # the variance that remains after the reduction
        across, down = (_narrow(float(weights @ places**2) / p**2) for p in pixels)
        if max(across[0], down[0]) < 0.002:  # less than half a grey level
            return None

    def change(image: Any) -> Any:
        return cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REFLECT_101)

    return change


def _narrow(variance: float) -> np.ndarray:
    """A small kernel of this variance, square pixels."""
    if variance <= 0.5:
        return np.array([variance / 2, 1 - variance, variance / 2])
    places = np.arange(-(radius := int(3 * variance**0.5) + 1), radius + 1)
    weights: np.ndarray = np.exp(-0.5 * places**2 / variance)
    weights /= weights.sum()
    return weights
