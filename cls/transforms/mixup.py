"""Soft targets and the mixing of images: mixup, cutmix, and 'random mixup'."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cls.config import Augment
from cls.runtime.rng import generator

# b batch, c classes (or channels of an image), h height, w width


@dataclass(frozen=True)
class Mixing:
    """How one step mixes its images; shared by all its micro-batches."""

    kind: str  # "none", "mixup" or "cutmix"
    share: float  # of the image itself; 1 - share is the partner's
    box: tuple[float, float] = (0.0, 0.0)  # cutmix: centre, as fractions of height and width


NOT_MIXED = Mixing("none", 1.0)


def draw_mixing(augment: Augment, seed: int, step: int) -> Mixing:
    """The coin, the kind and the coefficient of a step.

    mixup: share ~ Beta(a, a) (Zhang et al. 2017); cutmix: likewise, as an area (Yun et al. 2019).
    """
    kinds = [name for name, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if alpha]
    rng = generator(seed, "mix", step)
    if not kinds or rng.random() >= augment.mix_probability:
        return NOT_MIXED
    kind = kinds[int(rng.integers(len(kinds)))]
    alpha = augment.mixup if kind == "mixup" else augment.cutmix
    return Mixing(kind, float(rng.beta(alpha, alpha)), (float(rng.random()), float(rng.random())))


def partners(size: int, seed: int, step: int, micro_batch: int) -> Tensor:
    """A permutation of one micro-batch: image i is mixed with image partners[i], possibly itself."""
    return torch.from_numpy(generator(seed, "partners", step, micro_batch).permutation(size))


def mix(images: Tensor, targets: Tensor, mixing: Mixing, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed images (b c h w) and targets (b c)."""
    if mixing.kind == "none":
        return images, targets
    partner = partner.to(images.device, non_blocking=True)
    share = mixing.share
    if mixing.kind == "mixup":
        return share * images + (1 - share) * images[partner], share * targets + (1 - share) * targets[partner]
    height, width = images.shape[2:]
    top, bottom, left, right = cutmix_box(mixing, height, width)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)  # the box is clipped at the border
    return images, share * targets + (1 - share) * targets[partner]


def join(mixed: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenated images and targets of several micro-batches; a single one is not copied. Empties the list to free
    its memory.
    """
    if len(mixed) == 1:
        return mixed.pop()
    images, targets = zip(*mixed, strict=True)
    mixed.clear()
    return torch.cat(images), torch.cat(targets)


def cutmix_box(mixing: Mixing, height: int, width: int) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a box of area 1 - share around the chosen centre, clipped (the paper's rand_bbox)."""
    ratio = (1 - mixing.share) ** 0.5
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    y, x = int(mixing.box[0] * height), int(mixing.box[1] * width)
    top, left = max(0, y - cut_h // 2), max(0, x - cut_w // 2)
    return top, min(height, y + cut_h // 2), left, min(width, x + cut_w // 2)


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """One-hot targets (b c) with a share of ``smoothing`` spread evenly (Szegedy et al. 2016)."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
