"""Colours in as few passes as the order allows: runs of brightness, contrast and saturation are one matrix."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from cls.images.draw import Colour, Gaussian, RandOp
from cls.images.geometry import Look

Change = Callable[[Any], Any]
"""From pixels to pixels, uint8 [h, w, 3]; where it is one colour's, it is that of a patch of this colour."""

GREY = np.array([19595, 38470, 7471]) / 65536  # Pillow's luma
_FIRST_IDENTITY = np.eye(3, 4)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # of Pillow's and torchvision's sharpness
_NAMES = {"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast"}


def paint(image: np.ndarray, looks: list[Look]) -> tuple[np.ndarray, list[Change]]:
    """The image after all changes, and these changes with what they took from the image (its mean, its histogram)."""
    done: list[Change] = []
    matrix = _FIRST_IDENTITY
    mean: np.ndarray | None = None

    def carry_out(change: Change | None) -> None:
        nonlocal image, matrix, mean
        if matrix is not _FIRST_IDENTITY:
            done.append(_linear(matrix))
            image, matrix = done[-1](image), _FIRST_IDENTITY
        if change is not None:
            done.append(change)
            image, mean = change(image), None

    for look in looks:
        for name, value in _steps(look):
            if name in ("brightness", "saturation", "contrast"):
                if name == "contrast" and (mean is None or matrix is _FIRST_IDENTITY):
                    mean = np.array([*cv2.mean(image)[:3], 1.0])
                grey = int(GREY @ (matrix @ mean) + 0.5) if name == "contrast" and mean is not None else 0
                matrix = _factor(name, value, grey) @ np.vstack([matrix, [0, 0, 0, 1]])
            else:
                carry_out(None)
                if change := _change(name, value, look.pixels, image):
                    carry_out(change)
    carry_out(None)
    return image, done


def _steps(look: Look) -> list[tuple[str, float]]:
    match look.param:
        case Colour(factors):
            return list(factors)
        case Gaussian(kernel, sigma):
            return [(f"blur {kernel}", sigma)]
        case RandOp(name, level) if name in _NAMES:
            return [(_NAMES[name], 1.0 + level)]
        case RandOp(name, level):
            return [(name, level)]
    raise AssertionError(look.param)


def _factor(name: str, factor: float, grey: int) -> np.ndarray:
    """Towards black, towards the mean grey, towards the own grey: 3 x 4."""
    if name == "brightness":
        return np.eye(3, 4) * factor
    if name == "contrast":
        return np.hstack([np.eye(3) * factor, np.full((3, 1), (1 - factor) * grey)])
    return np.hstack([np.eye(3) * factor + (1 - factor) * GREY, np.zeros((3, 1))])


def _linear(matrix: np.ndarray) -> Change:
    return lambda image: cv2.transform(image, matrix)


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
        hue = hsv[..., 0]
        hue += np.uint8(turn)  # wraps
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)

    return change


def _table(levels: np.ndarray) -> Change:
    """``levels``: of 256 values, or of 256 values for each channel."""
    table = levels.astype(np.uint8).reshape(256, 1, -1)
    return lambda image: cv2.LUT(image, table)


def _histograms(image: np.ndarray) -> list[np.ndarray]:
    return [cv2.calcHist([image], [c], None, [256], [0, 256]).astype(np.int64).ravel() for c in range(3)]


def _stretched(counts: np.ndarray) -> np.ndarray:
    """Pillow's autocontrast: the darkest value becomes 0, the brightest 255."""
    there = np.flatnonzero(counts)
    low, high = there[0], there[-1]
    if high <= low:
        return np.arange(256)
    scale = 255.0 / (high - low)
    return np.clip((np.arange(256) * scale - low * scale).astype(np.int64), 0, 255)


def _equalized(counts: np.ndarray) -> np.ndarray:
    """Pillow's equalize: about as many pixels on each level."""
    there = counts[counts > 0]
    step = int(there.sum() - there[-1]) // 255
    if len(there) <= 1 or not step:
        return np.arange(256)
    return np.clip((step // 2 + np.cumsum(counts) - counts) // step, 0, 255)


def _sharpness(factor: float, pixels: tuple[float, float]) -> Change:
    """Away from the smoothed image. Before a reduction by s it counts s² less: its kernel is that much narrower."""
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
    else:  # as much variance as is left of it after the reduction
        across, down = (_narrow(float(weights @ places**2) / p**2) for p in pixels)
        if max(across[0], down[0]) < 0.002:  # less than half a grey level
            return None
    return lambda image: cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REFLECT_101)


def _narrow(variance: float) -> np.ndarray:
    """A small kernel of this variance, square pixels."""
    if variance <= 0.5:
        return np.array([variance / 2, 1 - variance, variance / 2])
    places = np.arange(-(radius := int(3 * variance**0.5) + 1), radius + 1)
    weights = np.exp(-0.5 * places**2 / variance)
    return weights / weights.sum()
