"""The images of all measurements: read once, so that they are in the page cache, and described."""

import io
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import PIL.Image

from cls.data.readers import Images
from cls.runtime.exit import DataError
from cls.transforms.decode import FORMATS, CorruptImageError

EXTRA = 100  # corrupt images that are skipped, besides as many as are wanted


class Sample(NamedTuple):
    """One image of the measurements."""

    sample_index: int
    row: int
    data: bytes
    format: str
    width: int
    height: int


def choose(images: Images, seed: int, balanced: bool, count: int) -> tuple[list[Sample], int]:
    """The first training samples that can be decoded, and how many cannot; DataError where most cannot."""
    sampler, found, corrupt = images.sampler(seed, balanced), list[Sample](), 0
    for index in range(2 * count + EXTRA):
        row = sampler.row(index)
        try:
            data = images.read([row])[0]
            if isinstance(data, CorruptImageError):
                raise data
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.convert("RGB")  # decodes
                found.append(Sample(index, row, bytes(data), str(image.format), image.width, image.height))
        except Exception:  # Pillow's readers raise errors of any type
            corrupt += 1
        if len(found) == count:
            return found, corrupt
    raise DataError(f"{corrupt} of the first {corrupt + len(found)} training images cannot be read or decoded")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def about(chosen: Sequence[Sample], corrupt: int) -> dict[str, Any]:
    """Formats and sizes of the images."""
    return {
        "used": len(chosen),
        "different": len({one.row for one in chosen}),
        "corrupt_left_out": corrupt,
        "formats": dict(Counter(one.format for one in chosen).most_common()),
        "kilobytes": spread([len(one.data) / 1000 for one in chosen]),
        "megapixels": spread([one.width * one.height / 1e6 for one in chosen]),
        "short_side": spread([min(one.width, one.height) for one in chosen]),
    }
