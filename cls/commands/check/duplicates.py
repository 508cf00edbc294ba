"""Duplicates of a picture: rescaled, encoded again, cropped by up to a twentieth, brighter or darker, mirrored.

Three filters of increasing cost and precision. An *outline* is the low frequencies of the grey picture, as in the
perceptual hash pHash (Zauner 2010), but kept as numbers instead of signs: cropping and mirroring are then linear maps
of it, so all pairs are compared, cropped and mirrored too, by matrix products (8 x 8 frequencies), and the pairs that
pass by more frequencies and more crops (12 x 12). What is left is compared as *miniatures*: aligned by ECC (Evangelidis
& Psarakis 2008), then the correlation of their fine detail decides. Two photos of similar things share the outline, not
the detail.

Letters of the shapes: n pictures, m of them, f frequencies down and across.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

from cls.transforms.jpeg import Pixels

SIDE = 32  # pixels of the square that the frequencies are taken of
F = 16
COARSE, FINE = 8, 12  # a crop mixes neighbouring frequencies: more are kept than are compared
CROP = 0.04  # of width and height, in the maps: crops of 0 to 5 % are within 2.5 % of one of them
SIMILAR_COARSE, SIMILAR_FINE = 0.88, 0.88
"""Cosines of outlines. Of 150 photos and duplicates made of them the least were 0.91, coarse and fine: for one side
cropped by 5 %, and for 40 % more brightness, which clips. Of all pairs of 3,781 photos of clothes 1 in 1,000 and 1 in
6,000 pass.
"""
DUPLICATE = 0.80
"""Least correlation of detail of two duplicates. The least of 50 photos' duplicates was 0.84; of those 3,781 photos one
pair had more than 0.77, the same photo twice. Two shots of one scene have 0.75 at most and are not reported.
"""
SAME_COLOURS = 0.90
CONTRAST = 4.0  # grey levels: the outline of a plainer picture is noise
MINIATURE = 96
STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-4)  # of the alignment
OVERLAP = 0.75
BEST = 16  # candidates kept of each picture: frames of one film must not become a million pairs
MANY, MANY_BEST = 256, 4
"""X-rays and scanned pages all look the same, and the cost after the coarse filter would grow with the square of their
number. Of a picture with more than MANY coarsely similar ones only the MANY most similar are compared finely, and
MANY_BEST are kept (30 ms each): an untouched or rescaled duplicate is among the first.
"""
CELLS = 1 << 24  # similarities held at a time, 2 x 64 MB
WEIGHTS = np.hypot(*np.indices((F, F), np.float32))
"""Amplitudes are multiplied by their frequency: those of natural pictures fall off as its inverse (Field 1987), and the
lowest ones would decide alone.
"""

Cut = tuple[float, float]
"""Of one direction: the share that is cut off before, and in all."""


class Candidates(NamedTuple):
    """Pairs of pictures to compare as miniatures, of one block of the search."""

    first: np.ndarray
    second: np.ndarray  # > first
    mirrored: np.ndarray
    cut_short: np.ndarray
    """Pictures of this block with more candidates than were kept."""
    done: int
    """Pictures compared with all others so far."""


def outline(pixels: Pixels) -> np.ndarray:
    """[f f] float16 of norm 1; zeros for a picture that is too plain or too small to be compared."""
    if min(pixels.shape[:2]) >= SIDE:
        grey = cv2.resize(_grey(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if grey.std() >= CONTRAST:
            found = cv2.dct(grey)[:F, :F] * WEIGHTS
            return np.asarray(found / np.linalg.norm(found), np.float16)
    return np.zeros((F, F), np.float16)


def candidates(outlines: np.ndarray) -> Iterator[Candidates]:
    """All pairs of ``outlines`` [n f f] that are similar, block by block; at most BEST of each picture.

    Time n² for the coarse filter, minutes of one core for 100,000 pictures; n for all else, however similar they are.
    """
    usable = np.flatnonzero(outlines.any((1, 2)))
    plain = outlines[usable].astype(np.float32)
    coarse, fine = (_flat(plain[:, :size, :size]) for size in (COARSE, FINE))
    step = max(1, CELLS // max(1, len(plain)))
    for start in range(0, len(plain), step):
        own = np.arange(start, min(start + step, len(plain)))
        found = [_similar(plain[own], own, coarse, fine, mirror) for mirror in (False, True)]
        first, second, mirrored, score = map(np.concatenate, zip(*(pairs for pairs, _ in found), strict=True))
        most = np.where(found[0][1] | found[1][1], MANY_BEST, BEST)  # of each of the block's pictures
        best = _best(first - start, score, most)
        low, high = np.minimum(first, second)[best], np.maximum(first, second)[best]
        cut_short = own[np.bincount(first - start, minlength=len(own)) > most]
        yield Candidates(usable[low], usable[high], mirrored[best], usable[cut_short], int(own[-1]) + 1)


def _similar(block: np.ndarray, own: np.ndarray, coarse: np.ndarray, fine: np.ndarray, mirror: bool) -> tuple[
    tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray
]:  # fmt: skip
    """A block's pictures cropped against all uncropped ones: pairs, as rows, other rows, whether mirrored and
    similarity; and of each of the block whether it has more than MANY coarsely similar ones.
    """
    if mirror:
        block = block * np.where(np.arange(F) % 2, -1, 1).astype(np.float32)
    near = np.full((len(block), len(coarse)), -1.0, np.float32)
    for crop in _crops(few=True):
        np.maximum(near, _flat(_cropped(block, *crop)[:, :COARSE, :COARSE]) @ coarse.T, out=near)
    near[np.arange(len(own)), own] = -1.0
    many = (near > SIMILAR_COARSE).sum(1) > MANY
    for row in np.flatnonzero(many):
        near[row, np.argpartition(-near[row], MANY)[MANY:]] = -1.0
    rows, others = np.nonzero(near > SIMILAR_COARSE)
    score = _fine_scores(block, fine, rows, others)
    kept = score > SIMILAR_FINE
    return (own[rows[kept]], others[kept], np.full(int(kept.sum()), mirror), score[kept]), many


def _fine_scores(block: np.ndarray, fine: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Similarity of each pair of a block's row, cropped, and another row."""
    score = np.full(len(rows), -1.0, np.float32)
    for crop in _crops(few=False):
        cropped = _flat(_cropped(block, *crop)[:, :FINE, :FINE])
        for start in range(0, len(rows), 1 << 16):  # a gathered copy of 37 MB
            some = slice(start, start + (1 << 16))
            dots = np.einsum("mf,mf->m", cropped[rows[some]], fine[others[some]])
            score[some] = np.maximum(score[some], dots)
    return score


def _best(rows: np.ndarray, score: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Places of the ``most[row]`` highest scores of each row."""
    order = np.lexsort((-score, rows))
    starts = np.searchsorted(rows[order], rows[order])
    return np.asarray(order[np.arange(len(order)) - starts < most[rows[order]]])


def _flat(outlines: np.ndarray) -> np.ndarray:
    """[m f f] to [m f*f] of norm 1; zeros stay zeros."""
    rows = np.ascontiguousarray(outlines).reshape(len(outlines), outlines.shape[1] * outlines.shape[2])
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


def _cropped(outlines: np.ndarray, down: Cut, across: Cut) -> np.ndarray:
    """Outlines [m f f], not normed, of the same pictures cropped; each direction on its own."""
    amplitudes = outlines / np.where(WEIGHTS == 0, 1, WEIGHTS)
    return np.asarray(_crop(*down) @ amplitudes @ _crop(*across).T * WEIGHTS)


def _crops(few: bool) -> list[tuple[Cut, Cut]]:
    """Of both directions: none, all corners and the centre; or every combination of none, start, middle and end."""
    none: Cut = (0.0, 0.0)
    start, middle, end = ((offset, CROP) for offset in (0.0, CROP / 2, CROP))
    if few:
        return [(none, none), (middle, middle), *product((start, end), (start, end))]
    every = (none, start, middle, end)
    return list(product(every, every))


@cache
def _crop(offset: float, share: float) -> np.ndarray:
    """[f f]: amplitudes of a row's cosines to those of its part from ``offset`` on, 1 - ``share`` long."""
    middles, numbers = (np.arange(SIDE) + 0.5) / SIDE, np.arange(F)
    scale = np.where(numbers == 0, 1, 2) / SIDE
    waves = np.cos(np.pi * np.outer(middles, numbers)) * np.sqrt(scale)
    part = np.cos(np.pi * np.outer(offset + middles * (1 - share), numbers)) * np.sqrt(scale)
    return np.asarray(waves.T @ part, np.float32)


def miniature(pixels: Pixels) -> Pixels:
    """The picture squashed to a square, never enlarged."""
    side = min(MINIATURE, *pixels.shape[:2])
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)


def similarity(one: Pixels, other: Pixels, mirrored: bool) -> float:
    """Correlation of the detail of two miniatures, once aligned; 0 where colours differ or no alignment is found."""
    side = min(len(one), len(other))
    one, other = (cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in (one, other))
    if mirrored:
        other = np.ascontiguousarray(other[:, ::-1])
    grey, moving = _grey(one), _grey(other)
    try:
        _, place = cv2.findTransformECC(grey, moving, _start(grey, moving), cv2.MOTION_AFFINE, STEPS)
    except cv2.error:  # it diverges: they have nothing in common
        return 0.0
    moved = _warp(other.astype(np.float32), place)
    inside = (_warp(np.ones((side, side), np.float32), place) > 0.99).astype(np.uint8)
    if inside.mean() < OVERLAP or _correlation(one.astype(np.float32), moved, inside) < SAME_COLOURS:
        return 0.0
    within = cv2.erode(inside, np.ones((7, 7), np.uint8), borderValue=0)
    return _correlation(_detail(grey), _detail(_grey(moved)), within)


def _start(grey: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The crop of either picture that matches the other best, as the map that the alignment starts from."""
    side, found, best = len(grey), np.eye(2, 3, dtype=np.float32), -1.0
    for (top, height), (left, width) in _crops(few=False):
        crop = np.array([[1 - width, 0, left * side], [0, 1 - height, top * side]], np.float32)
        for place in (crop, cv2.invertAffineTransform(crop).astype(np.float32)):
            inside = _warp(np.ones_like(grey), place) > 0.99
            if (score := _correlation(grey, _warp(moving, place), inside)) > best:
                found, best = place, score
    return found


def _grey(pixels: Pixels) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _warp(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, place, image.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _detail(grey: np.ndarray) -> np.ndarray:
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 3))


def _correlation(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Of all values of the pixels ``where`` [h w], the channels together: a change of hue shows."""
    one, other = one[where > 0], other[where > 0]
    if not one.size:
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(np.sqrt((one**2).sum() * (other**2).sum()), 1e-6))
