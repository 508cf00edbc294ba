"""The augmentations as values, in order.

Each operation has the name and distribution of torchvision's transform; params.py makes its parameters.
"""

from dataclasses import dataclass

from cls import config

Fill = tuple[int, int, int]  # colour of exposed corners, RGB 0 to 255


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio (log-uniform), resized to a square (Szegedy et al. 2015)."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class ResizeShort:
    """Resize the short side to ``size``, keeping the aspect ratio."""

    size: int


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """Cut the central square; the image must be at least as large."""

    size: int


@dataclass(frozen=True, kw_only=True)
class Squash:
    """Resize the whole image to a square, whatever its aspect ratio."""

    size: int


@dataclass(frozen=True, kw_only=True)
class HFlip:
    p: float


@dataclass(frozen=True, kw_only=True)
class VFlip:
    p: float


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Rotate about the centre by an angle uniform in ±degrees, size kept."""

    degrees: float
    fill: Fill


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Shift by at most ``translate`` of width and height (whole pixels) and scale about the centre by ``zoom``."""

    translate: float
    zoom: tuple[float, float]
    fill: Fill


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Brightness, contrast, saturation factors uniform in 1 ± x (not below 0), hue in ±hue turns, in random order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """``n`` of 14 operations drawn with replacement, all at one magnitude of 0 to 30 (Cubuk et al. 2019)."""

    n: int
    magnitude: int
    fill: Fill


@dataclass(frozen=True, kw_only=True)
class TrivialAugment:
    """One of the same 14 operations, at a strength uniform over its 31 (Müller and Hutter 2021, "wide")."""

    fill: Fill


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Gaussian blur, sigma uniform in 0.1 to 2 pixels."""

    kernel: int


@dataclass(frozen=True, kw_only=True)
class Erase:
    """A random box becomes noise (Zhong et al. 2017). ``scale``: share of the area; ``ratio``: height / width."""

    p: float
    scale: tuple[float, float]
    ratio: tuple[float, float] = (0.3, 3.3)


Op = (
    RandomResizedCrop | ResizeShort | CenterCrop | Squash | HFlip | VFlip | Rotate
    | Affine | Jitter | RandAugment | TrivialAugment | Blur | Erase
)  # fmt: skip


def training_ops(augment: config.Augment, data: config.Data, mean: tuple[float, float, float]) -> tuple[Op, ...]:
    """The operations of a training image in ``augment.order``, those at zero left out.

    ``mean`` is the normalisation's, 0 to 1, RGB; it is the fill colour where ``augment.fill`` is "mean".
    """
    a = augment
    assert set(a.active) <= set(a.order), "validate.check rejects such an order"
    fill = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255)) if a.fill == "mean" else (0, 0, 0)
    known: dict[str, tuple[Op, ...]] = {
        "frame": _frame(augment, data),
        "hflip": (HFlip(p=a.hflip),),
        "vflip": (VFlip(p=a.vflip),),
        "rotate": (Rotate(degrees=a.rotate, fill=fill),),
        "affine": (Affine(translate=a.translate, zoom=a.zoom, fill=fill),),
        "jitter": (Jitter(brightness=a.brightness, contrast=a.contrast, saturation=a.saturation, hue=a.hue),),
        "randaugment": (RandAugment(n=a.randaugment, magnitude=a.randaugment_magnitude, fill=fill),),
        "trivialaugment": (TrivialAugment(fill=fill),),
        "blur": (Blur(kernel=a.blur),),
        "erase": (Erase(p=a.erase, scale=a.erase_scale),),
    }
    return tuple(op for name in a.ordered for op in known[name])


def view_ops(view: config.View, data: config.Data) -> tuple[Op, ...]:
    """The operations of one evaluation view; "identity" is the plain framing, the others are report 3's TTA views.

    With centre framing each view starts by resizing the short side, and flip and rotation (±10°, black corners) come
    before the crop; when squashing they follow the squash, and the crop is taken from the image itself.
    """
    moves: dict[config.View, tuple[Op, ...]] = {
        "identity": (),
        "hflip": (HFlip(p=1.0),),
        "rotate": (Rotate(degrees=10.0, fill=(0, 0, 0)),),
        "crop": (RandomResizedCrop(size=data.size, scale=(0.8, 1.0)),),
    }
    if data.eval_frame == "squash":
        return moves[view] if view == "crop" else (Squash(size=data.size), *moves[view])
    resize, crop = _center(data)
    return (resize, *moves[view]) if view == "crop" else (resize, *moves[view], crop)


def _center(data: config.Data) -> tuple[Op, Op]:
    return ResizeShort(size=round(data.size / data.crop_pct)), CenterCrop(size=data.size)


def _frame(augment: config.Augment, data: config.Data) -> tuple[Op, ...]:
    if augment.frame == "crop":
        return (RandomResizedCrop(size=data.size, scale=augment.crop_scale),)
    return (Squash(size=data.size),) if augment.frame == "squash" else _center(data)
