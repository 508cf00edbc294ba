"""Duplicates: outlines, the search among all pairs, and the comparison of a pair."""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cls.commands.check import duplicates
from cls.commands.check.duplicates import DUPLICATE, candidates, miniature, outline, similarity
from cls.transforms.decode import decode
from tests.transforms.test_fused import encode, picture

COUNT = 6


@cache
def drawn(number: int) -> Image.Image:
    return picture(number, 240, 320)


def scaled(image: Image.Image, by: float) -> Image.Image:
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


def quality(image: Image.Image, value: int) -> Image.Image:
    return decode(encode(image, quality=value))


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    w, h = image.size
    return image.crop((round(w * left), round(h * top), round(w * (1 - right)), round(h * (1 - bottom))))


def brighter(image: Image.Image, by: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(by)


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


DUPLICATES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": lambda i: scaled(i, 0.5),
    "a third of the size": lambda i: scaled(i, 0.33),
    "twice the size": lambda i: scaled(i, 2),
    "squashed": lambda i: i.resize((200, 200)),
    "quality 30": lambda i: quality(i, 30),
    "quality 95": lambda i: quality(i, 95),
    "a corner cropped": lambda i: cut(i, 0.05, 0.05, 0, 0),
    "another corner cropped": lambda i: cut(i, 0, 0.05, 0.05, 0),
    "all sides cropped": lambda i: cut(i, 0.025, 0.025, 0.025, 0.025),
    "one side cropped": lambda i: cut(i, 0, 0, 0.05, 0),
    "cropped here and there": lambda i: cut(i, 0.01, 0.02, 0.03, 0.005),
    "darker": lambda i: brighter(i, 0.6),
    "brighter": lambda i: brighter(i, 1.3),
    "mirrored": mirror,
    "mirrored, cropped, darker, half the size, quality 50": lambda i: quality(
        scaled(brighter(cut(mirror(i), 0, 0.04, 0.04, 0), 0.8), 0.5), 50
    ),
}


def found_among(images: list[Image.Image]) -> set[tuple[int, int]]:
    """Pairs that are duplicates by both the search and the comparison."""
    pixels = [np.asarray(image) for image in images]
    small = [miniature(one) for one in pixels]
    pairs = set()
    for block in candidates(np.array([outline(one) for one in pixels])):
        for first, second, mirrored in zip(block.first.tolist(), block.second.tolist(), block.mirrored, strict=True):
            if similarity(small[first], small[second], bool(mirrored)) >= DUPLICATE:
                pairs.add((first, second))
    return pairs


@pytest.mark.parametrize("how", DUPLICATES)
def test_each_kind_of_duplicate_is_found_and_nothing_else(how: str) -> None:
    originals = [drawn(number) for number in range(COUNT)]
    found = found_among([*originals, *(DUPLICATES[how](one) for one in originals)])
    assert found == {(number, COUNT + number) for number in range(COUNT)}


def test_another_hue_is_another_picture() -> None:
    """Where the hue is the class, two that differ in it alone are no duplicates."""
    one = drawn(3)
    turned = Image.merge("RGB", [one.split()[i] for i in (2, 0, 1)])
    disc = np.full((96, 96, 3), 255, np.uint8)
    place = np.hypot(*np.indices((96, 96)) - 48) < 30
    discs = [disc.copy() for _ in range(2)]
    discs[0][place], discs[1][place] = (220, 30, 30), (30, 120, 30)
    assert similarity(miniature(np.asarray(one)), miniature(np.asarray(turned)), False) < DUPLICATE
    assert similarity(discs[0], discs[1], False) < DUPLICATE < similarity(discs[0], discs[0], False)


def test_plain_and_tiny_pictures_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    plain = rng.integers(120, 124, (64, 64, 3), dtype=np.uint8)
    tiny = rng.integers(0, 255, (31, 64, 3), dtype=np.uint8)
    assert not outline(plain).any() and not outline(tiny).any() and outline(tiny.repeat(2, 0)).any()
    assert list(candidates(np.array([outline(plain)] * 3))) == []


def random_outlines(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, duplicates.F, duplicates.F)).astype(np.float32)
    rows[:, 0, 0] = 0
    return (rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True)).astype(np.float16)


def plant(outlines: np.ndarray, count: int) -> set[tuple[int, int, bool]]:
    """Make rows duplicates of others: turned away from them by a known angle, and every other one mirrored."""
    rng, half = np.random.default_rng(7), len(outlines) // 2
    noise = random_outlines(count, 8).astype(np.float32)
    sources, copies = rng.permutation(half)[:count], half + rng.permutation(half)[:count]
    signs = np.where(np.arange(duplicates.F) % 2, -1, 1)
    for i, (source, copy) in enumerate(zip(sources, copies, strict=True)):
        row = outlines[source].astype(np.float32) + 0.2 * noise[i]  # a cosine of about 0.98
        outlines[copy] = (row / np.linalg.norm(row) * (signs if i % 2 else 1)).astype(np.float16)
    return {(int(s), int(c), bool(i % 2)) for i, (s, c) in enumerate(zip(sources, copies, strict=True))}


def searched(outlines: np.ndarray) -> set[tuple[int, int, bool]]:
    return {
        (int(a), int(b), bool(m))
        for block in candidates(outlines)
        for a, b, m in zip(block.first, block.second, block.mirrored, strict=True)
    }


def plainly(outlines: np.ndarray, others: np.ndarray) -> set[tuple[int, int, bool]]:
    """Pairs by the definition, one row at a time: a picture or its mirror image, whole or cropped, against whole ones.

    Cropping is done on the picture that has these amplitudes, drawn from cosines.
    """
    f, side = duplicates.F, duplicates.SIDE
    numbers, weights = np.arange(f), np.hypot(*np.indices((f, f)))
    middles = (np.arange(side) + 0.5) / side

    def waves(points: np.ndarray) -> np.ndarray:
        return np.cos(np.pi * np.outer(points, numbers)) * np.sqrt(np.where(numbers, 2, 1) / side)

    def unit(values: np.ndarray, size: int) -> np.ndarray:
        values = values[..., :size, :size].reshape(len(values), -1)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    cuts = [(0.0, 0.0), (0.0, 0.04), (0.02, 0.04), (0.04, 0.04)]
    few = {(0, 0), (2, 2), (1, 1), (1, 3), (3, 1), (3, 3)}
    whole = {size: unit(outlines.astype(np.float32), size) for size in (duplicates.COARSE, duplicates.FINE)}
    found = set()
    for row, mirrored in itertools.product(others, (False, True)):
        own = outlines[row].astype(float) * (np.where(numbers % 2, -1, 1) if mirrored else 1)
        amplitudes = own / np.where(weights, weights, 1)
        coarse, fine = np.zeros(len(outlines)), np.zeros(len(outlines))
        for (i, down), (j, across) in itertools.product(enumerate(cuts), repeat=2):
            grey = (
                waves(down[0] + middles * (1 - down[1])) @ amplitudes @ waves(across[0] + middles * (1 - across[1])).T
            )
            seen = (waves(middles).T @ grey @ waves(middles) * weights)[None]
            if (i, j) in few:
                coarse = np.maximum(coarse, whole[duplicates.COARSE] @ unit(seen, duplicates.COARSE)[0])
            fine = np.maximum(fine, whole[duplicates.FINE] @ unit(seen, duplicates.FINE)[0])
        for other in np.flatnonzero((coarse > duplicates.SIMILAR_COARSE) & (fine > duplicates.SIMILAR_FINE)):
            if other != row:
                found.add((min(int(row), int(other)), max(int(row), int(other)), mirrored))
    return found


def test_the_search_agrees_with_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    outlines = random_outlines(150, 1)
    planted = plant(outlines, 30)
    monkeypatch.setattr(duplicates, "CELLS", 150 * 40)  # several blocks, the last one short
    assert searched(outlines) == plainly(outlines, np.arange(0, 150)) == planted


def test_frames_of_a_film_give_few_pairs_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_outlines(1, 1).repeat(200, 0)
    pairs = searched(frames)
    assert {number for pair in pairs for number in pair[:2]} == set(range(200))
    assert 199 <= len(pairs) <= 200 * duplicates.BEST and not any(mirrored for _, _, mirrored in pairs)


def test_many_similar_pictures_are_not_all_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 X-rays, say: the cost of the later filters grows with their number, and real duplicates are found."""
    count, compared, real = 3000, 0, duplicates._fine_scores
    monkeypatch.setattr(duplicates, "MANY", 32)
    rng, one = np.random.default_rng(3), random_outlines(1, 1)[0].astype(np.float32)
    crowd = one + 0.1 * random_outlines(count, 2).astype(np.float32)  # cosines of about 0.99
    crowd[1500:1510] = crowd[:10] + 0.003 * rng.normal(size=(10, duplicates.F, duplicates.F)).astype(np.float32)
    outlines = (crowd / np.linalg.norm(crowd, axis=(1, 2), keepdims=True)).astype(np.float16)

    def counted(block: np.ndarray, fine: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(rows)
        return real(block, fine, rows, others)

    monkeypatch.setattr(duplicates, "_fine_scores", counted)
    blocks = list(candidates(outlines))
    assert compared == count * duplicates.MANY  # of 8,997,000
    assert sum(len(block.first) for block in blocks) == count * duplicates.MANY_BEST
    assert np.concatenate([block.cut_short for block in blocks]).tolist() == list(range(count))
    found = {pair for block in blocks for pair in zip(block.first.tolist(), block.second.tolist(), strict=True)}
    assert {(i, 1500 + i) for i in range(10)} <= found


@pytest.mark.soak
def test_the_search_finds_every_planted_duplicate_among_100_000() -> None:
    """About 10 minutes of one core; a sample of rows is compared with the definition."""
    outlines = random_outlines(100_000, 2)
    planted = plant(outlines, 500)
    found = searched(outlines)
    assert found == planted
    rows = np.array(sorted(planted))[:10, 0]
    assert plainly(outlines, rows) == {pair for pair in planted if pair[0] in rows}
