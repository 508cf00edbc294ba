"""Augmentation parameters applied in one pass over few pixels: crop and decode, one resize or warp, colours, uint8.

The parameters and the augmentation are those of reference.py; where the pixels differ:

=====================  ===================================================  ==========================================
                       reference.py (``data.exact_order``)                  here
=====================  ===================================================  ==========================================
order                  as drawn, at full size                               crop and resize first, the rest at the end
rotation, shift,       one nearest-neighbour resampling each, an            one bilinear resampling for all of them and
shear, RandAugment's   antialiased one for the size                         the size, from an image halved until fewer
                                                                            than 1.5 pixels go into one
blur, sharpness        before a reduction: at full size                     at the final size, with what is left
contrast, Equalize,    statistics of the full-size image with the corners   statistics of the final image with the
AutoContrast           exposed so far                                       corners that the first move exposes
brightness, contrast,  rounded and cut off at 255 after each                one matrix, rounded once
saturation
exposed corners        of each move in its fill colour, coloured by what    the same
                       comes later
JPEG                   decoded whole                                        at 1/2, 1/4, 1/8 where the crop stays twice
                                                                            as large as the target, or would be halved
                                                                            for a warp; chroma replicated where the
                                                                            crop is larger
=====================  ===================================================  ==========================================

tests/transforms/test_fused.py holds the bounds: mean absolute difference in grey levels, per operation and per recipe.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cls.transforms.color import Change, apply_effects, uses_neighbors
from cls.transforms.geometry import PLACES, Frame, Plan, region
from cls.transforms.jpeg import Decoded, Decoder, Jpeg, Pixels
from cls.transforms.params import Crop, Resize, reduction

Matrix = NDArray[np.float64]  # [2, 3], from final pixels to those of the source
cv2.setNumThreads(0)  # one thread per process: there are as many processes as cores
HALVED = 1.5
"""Source pixels in a final one from which on a warp starts with half of them. Mean slope between pixels over that of
the reference, 52 clothing photos, the four recipes that warp, colours off (2026-11-22): 0.92 to 1.01; with 2.0 here
1.01 to 1.15. tests/transforms/test_fused.py bounds it for drawn pictures.
"""
MAX_SIDE = 32_766  # pixels of a side: OpenCV before 5.0 warps no longer image


def carry_out(image: Jpeg | Decoded, plan: Plan, decoder: Decoder) -> Pixels:
    """Final pixels, uint8 [h, w, 3], of a plan made for this image; CorruptImageError if it cannot be decoded.

    They may be in the decoder's buffer: copy them before the next image.
    """
    if plan.frames:
        pixels: Pixels = apply_effects(_warp(image, plan, decoder), plan.effects[0])[0]
        _expose(pixels, plan.frames[0], [])
        changes: list[list[Change]] = []
        for effects in plan.effects[1:]:
            pixels, done = apply_effects(pixels, effects)
            changes.append(done)
        for at in range(1, len(plan.frames)):
            _expose(pixels, plan.frames[at], [change for done in changes[at:] for change in done])
    else:
        pixels = apply_effects(_three(_cut(image, plan.cuts, decoder)), plan.effects[0])[0]
        if any(plan.mirrored):
            pixels = cv2.flip(pixels, {(True, False): 1, (False, True): 0, (True, True): -1}[plan.mirrored])
    return pixels


def _cut(image: Jpeg | Decoded, cuts: list[Crop | Resize], decoder: Decoder) -> Pixels:
    crop = cuts[0] if cuts and isinstance(cuts[0], Crop) else Crop(0, 0, image.width, image.height)
    rest = cuts[1:] if cuts and cuts[0] is crop else cuts
    size = (rest[0].width, rest[0].height) if rest and isinstance(rest[0], Resize) else (crop.width, crop.height)
    pixels, k = _decode(image, crop, size, decoder)
    width, height = crop.width / k, crop.height / k
    above = 0  # rows skipped because a later crop removes them
    for cut, after in zip(rest, [*rest[1:], None], strict=False):
        if isinstance(cut, Crop):
            pixels = pixels[cut.top - above :][: cut.height, cut.left : cut.left + cut.width]
            above = 0
        elif pixels.shape[:2] != (cut.height, cut.width):
            rows = (after.top, after.top + after.height) if isinstance(after, Crop) else (0, cut.height)
            pixels, above = _resize(pixels, cut, cut.width / width, cut.height / height, rows), rows[0]
        width, height = cut.width, cut.height
    return pixels


def _three(pixels: Pixels) -> Pixels:
    """Without a fourth channel."""
    return pixels if pixels.shape[2] == 3 else cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)


def _decode(image: Jpeg | Decoded, crop: Crop, size: tuple[int, int], decoder: Decoder) -> tuple[Pixels, int]:
    """The crop, reduced by k if its corner allows that, and k; ``size``: (width, height) after the resize.

    If k does not divide a side of the crop, the last pixels extend beyond it.
    """
    shrinks = crop.width > size[0] and crop.height > size[1]
    k = reduction(crop.width, crop.height, *size)
    while any((at - corner) % k for at, corner in zip((crop.left, crop.top), image.corner(k), strict=True)):
        k //= 2
    pixels, k = decoder.pixels(image, k, shrinks)
    x, y = image.corner(k)
    left, top, width, height = (crop.left - x) // k, (crop.top - y) // k, -(-crop.width // k), -(-crop.height // k)
    return pixels[top : top + height, left : left + width], k


def _resize(pixels: Pixels, to: Resize, across: float, down: float, rows: tuple[int, int]) -> Pixels:
    """These rows (first, last + 1) of the image resized, bilinear with antialiasing.

    ``across``, ``down``: scale factors, which do not follow from the sizes if the last pixel is not whole.

    Rows before columns: columns take more than twice the time, and are then fewer. Pillow resizes columns first, so one
    value in eight differs by one, on average 0.12 grey levels; in its order 0.002, in a fifth more time (2026-11-22, 40
    clothing photos of 400 x 533 to 256 and a centre crop, medians of 15 interleaved rounds).
    """
    # torch does not resample a side that keeps its size, whatever the scale: then all rows
    end = rows[1] if rows[1] != len(pixels) else to.height
    low = _bilinear(pixels, (end, pixels.shape[1]), down, None)[rows[0] : rows[1]]
    return _bilinear(low, (len(low), to.width), None, across)


def _bilinear(pixels: Pixels, size: tuple[int, int], down: float | None, across: float | None) -> Pixels:
    # strides of a batch of one image select the channels-last kernel
    images = np.ascontiguousarray(pixels).reshape(1, *pixels.shape).transpose(0, 3, 1, 2)
    # F.interpolate takes a size or a scale, not both
    resized = torch.ops.aten._upsample_bilinear2d_aa(torch.from_numpy(images), size, False, down, across)
    found: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return found


def _warp(image: Jpeg | Decoded, plan: Plan, decoder: Decoder) -> Pixels:
    """Crop, reduction and all moves in one resampling: half the time of a resize and a warp."""
    crop, (a, b, c, d, e, f) = region(plan, image.width, image.height)
    across, down = plan.shrunk
    k = 1
    while k < 8 and across * down >= (HALVED * k) ** 2 and 0.5 < across / down < 2.0:  # as _halve, at no cost
        k *= 2
    pixels, k = decoder.pixels(image, k, min(across, down) > 1.0)
    x, y = image.corner(k)
    left, top = (crop.left - x) // k, (crop.top - y) // k
    right, bottom = -(-(crop.left + crop.width - x) // k), -(-(crop.top + crop.height - y) // k)
    c, f = c + crop.left - x - k * left, f + crop.top - y - k * top  # the window begins less than k before the crop
    pixels = pixels[top:bottom, left:right]
    if min(across, down) < 1.0:  # enlarged before the warp: the other order changes small images visibly
        width, height = round(crop.width / across), round(crop.height / down)
        x, y = pixels.shape[1] * k / width, pixels.shape[0] * k / height
        if max(across, down) <= 1.0:  # nothing to antialias: the same result in half the time
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            pixels = _bilinear(pixels, (height, width), k / y, k / x)
    else:
        pixels, *halved = _halve(pixels, across / k, down / k)
        x, y = (k * each for each in halved)
    around = any(map(uses_neighbors, plan.effects[0]))
    edge = int(not around)
    if edge:  # blends the outermost pixels with their own colour, not with the border's
        pixels = cv2.copyMakeBorder(pixels, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    # from pixel centres to OpenCV's pixel numbers
    matrix = np.array(
        [[a / x, b / x, (c + (a + b) / 2) / x - 0.5 + edge], [d / y, e / y, (f + (d + e) / 2) / y - 0.5 + edge]]
    )
    fill = cv2.mean(pixels[:: max(1, len(pixels) // 64)])
    pixels, matrix = _sampled(pixels, matrix, plan.width, plan.height)
    wide = cv2.warpAffine(
        # OpenCV's kernel for four channels takes half the time of that for three
        pixels if pixels.shape[2] == 4 else cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA),
        matrix,
        (plan.width, plan.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        # not the fill colour, which would enter the outermost pixels and the mean before the first move; _expose
        # paints it later. The mean colour (of about 64 rows) takes half the time of replicating with 0.2 outside
        borderMode=cv2.BORDER_REPLICATE if around else cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    return _three(wide)


def _sampled(pixels: Pixels, matrix: Matrix, width: int, height: int) -> tuple[Pixels, Matrix]:
    """The part of a very long image that a warp to this size samples, and the matrix for that part."""
    if max(pixels.shape) <= MAX_SIDE:
        return pixels, matrix
    corners = matrix @ [[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]]
    low = np.floor(corners.min(1)).astype(int) - 2
    high = np.ceil(corners.max(1)).astype(int) + 2
    most = np.array([pixels.shape[1], pixels.shape[0]])
    low, high = np.clip(low, 0, most - 1), np.clip(high, 1, most)  # a pixel at the edge, where all of it is outside
    (left, top), (right, bottom) = low, np.maximum(high, low + 1)
    return pixels[top:bottom, left:right], matrix - np.array([[0, 0, left], [0, 0, top]])


def _halve(pixels: Pixels, across: float, down: float) -> tuple[Pixels, int, int]:
    """Means of 2 x 2 pixels (a tenth of the time of any other filter), or of 2 x 1 if one side shrinks twice as much,
    until fewer than HALVED source pixels form a final one; and the divisors of width and height.

    ``across``, ``down``: source pixels in a final one.
    """
    x = y = 1
    while max(across, down) >= HALVED and (across * down >= HALVED**2 or not 0.5 < across / down < 2.0):
        by = (2 if 2 * across > down else 1), (2 if 2 * down > across else 1)
        width, height = pixels.shape[1] // by[0], pixels.shape[0] // by[1]
        if not width or not height:
            break
        even = pixels[: height * by[1], : width * by[0]]  # OpenCV's fast path needs whole blocks
        rest = pixels.shape[0] - even.shape[0], pixels.shape[1] - even.shape[1]
        pixels = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
        if any(rest):
            pixels = cv2.copyMakeBorder(pixels, 0, rest[0], 0, rest[1], cv2.BORDER_REPLICATE)
        x, y, across, down = x * by[0], y * by[1], across / by[0], down / by[1]
    return pixels, x, y


def _expose(pixels: Pixels, frame: Frame, later: list[Change]) -> None:
    """Paint the area outside of a frame in its fill colour, as changed by later operations."""
    if not frame.outside:
        return
    colour: tuple[int, ...] = frame.fill
    if later:
        patch = np.full((1, 1, 3), frame.fill, np.uint8)
        for change in later:
            patch = change(patch)
        colour = tuple(patch.ravel().tolist())
    cv2.fillPoly(pixels, frame.outside, colour, shift=PLACES)
