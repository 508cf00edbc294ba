"""The augmentations as values: what may happen to an image, in which order.

Each operation is named after torchvision's transform and has its distribution; draw.py draws its numbers.
"""

from dataclasses import dataclass

from cls import config

Fill = tuple[int, int, int]
"""Colour of exposed corners, RGB 0 to 255."""


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
    | Affine | Jitter | RandAugment | Blur | Erase
)  # fmt: skip


def training_ops(augment: config.Augment, data: config.Data, mean: tuple[float, float, float]) -> tuple[Op, ...]:
    """The operations of a training image in ``augment.order``, those at zero left out.

    ``mean`` is the normalisation's, 0 to 1, RGB; it is the fill colour where ``augment.fill`` is "mean". A number out
    of range, or an order that leaves out a wanted operation, is a ValueError naming the field.
    """
    _check(augment)
    fill = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255)) if augment.fill == "mean" else (0, 0, 0)
    a = augment
    wanted: dict[str, tuple[Op, ...]] = {"frame": _frame(augment, data)}
    if a.hflip:
        wanted["hflip"] = (HFlip(p=a.hflip),)
    if a.vflip:
        wanted["vflip"] = (VFlip(p=a.vflip),)
    if a.rotate:
        wanted["rotate"] = (Rotate(degrees=a.rotate, fill=fill),)
    if a.translate or a.zoom != (1.0, 1.0):
        wanted["affine"] = (Affine(translate=a.translate, zoom=a.zoom, fill=fill),)
    if a.brightness or a.contrast or a.saturation or a.hue:
        jitter = Jitter(brightness=a.brightness, contrast=a.contrast, saturation=a.saturation, hue=a.hue)
        wanted["jitter"] = (jitter,)
    if a.randaugment:
        wanted["randaugment"] = (RandAugment(n=a.randaugment, magnitude=a.randaugment_magnitude, fill=fill),)
    if a.blur:
        wanted["blur"] = (Blur(kernel=a.blur),)
    if a.erase:
        wanted["erase"] = (Erase(p=a.erase, scale=a.erase_scale),)
    for name in wanted:
        if a.order.count(name) != 1:
            found = f"appears {a.order.count(name)} times"
            raise ValueError(f"augment.order: {name!r} is wanted and must appear once, but {found} in {a.order}")
    active = [name for name in a.order if name in wanted]
    if a.erase and active[-1] != "erase":
        # Its noise is added on the device, after all that a worker does: nothing can come after it.
        raise ValueError(f"augment.order: 'erase' must come last, but {active[-1]!r} follows it in {a.order}")
    return tuple(op for name in active for op in wanted[name])


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
    if not 0 < data.crop_pct <= 1:
        raise ValueError(f"data.crop_pct must be above 0 and at most 1, found {data.crop_pct}")
    return ResizeShort(size=round(data.size / data.crop_pct)), CenterCrop(size=data.size)


def _frame(augment: config.Augment, data: config.Data) -> tuple[Op, ...]:
    if augment.frame == "crop":
        return (RandomResizedCrop(size=data.size, scale=augment.crop_scale),)
    return (Squash(size=data.size),) if augment.frame == "squash" else _center(data)


def _check(augment: config.Augment) -> None:
    a = augment
    repeated = sorted({name for name in a.order if a.order.count(name) > 1})
    if repeated:
        raise ValueError(f"augment.order: each operation at most once, found {', '.join(repeated)} more often")
    for field, low, high in (
        ("hflip", 0, 1), ("vflip", 0, 1), ("erase", 0, 1), ("rotate", 0, 180), ("translate", 0, 1), ("hue", 0, 0.5),
        ("brightness", 0, 10), ("contrast", 0, 10), ("saturation", 0, 10),
        ("randaugment", 0, 14), ("randaugment_magnitude", 0, 30),
    ):  # fmt: skip
        if not low <= getattr(a, field) <= high:
            raise ValueError(f"augment.{field} must be in {low} to {high}, found {getattr(a, field)}")
    for field, high in (("crop_scale", 1.0), ("erase_scale", 1.0), ("zoom", 10.0)):
        small, large = getattr(a, field)
        if not 0 < small <= large <= high:
            raise ValueError(f"augment.{field} must be two ascending numbers in 0 to {high:g}, found {small} {large}")
    if a.blur < 0 or (a.blur and a.blur % 2 == 0):
        raise ValueError(f"augment.blur must be an odd number of pixels, or 0 for off, found {a.blur}")
