"""The images that all contestants load: read once, so that they lie in the page cache, and looked at."""

import io
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import PIL.Image

from cls.data.readers import Images
from cls.runtime.exit import DataError
from cls.transforms.decode import FORMATS, CorruptImageError

TRIES = 100  # broken images that are passed over, besides as many as are wanted


class Sample(NamedTuple):
    """One image of the measurements."""

    draw: int
    row: int
    data: bytes
    format: str
    width: int
    height: int


def choose(images: Images, seed: int, balanced: bool, count: int) -> tuple[list[Sample], int]:
    """The first training draws whose image can be decoded, and how many could not; DataError where most cannot."""
    order, found, broken = images.sampler(seed, balanced), list[Sample](), 0
    for draw in range(2 * count + TRIES):
        row = order.row(draw)
        try:
            data = images.read([row])[0]
            if isinstance(data, CorruptImageError):
                raise data
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.convert("RGB")  # decodes
                found.append(Sample(draw, row, bytes(data), str(image.format), image.width, image.height))
        except Exception:  # Pillow's readers raise whatever their formats think of
            broken += 1
        if len(found) == count:
            return found, broken
    raise DataError(f"{broken} of the first {broken + len(found)} training images cannot be read or decoded")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def about(chosen: Sequence[Sample], broken: int) -> dict[str, Any]:
    """What the images are like."""
    return {
        "used": len(chosen),
        "different": len({one.row for one in chosen}),
        "broken_left_out": broken,
        "formats": dict(Counter(one.format for one in chosen).most_common()),
        "kilobytes": spread([len(one.data) / 1000 for one in chosen]),
        "megapixels": spread([one.width * one.height / 1e6 for one in chosen]),
        "short_side": spread([min(one.width, one.height) for one in chosen]),
    }
