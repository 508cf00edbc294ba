"""What there is to know of one image file before training on it."""

import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from cls.commands.check.duplicates import outline
from cls.transforms.decode import FORMATS, CorruptImageError, decode, orientation
from cls.transforms.jpeg import damage

ASPECT = 3.0  # a centre crop of such an image shows a third of it
TINY = 32
UNUSUAL = {
    "grey": "stored without colour",
    "CMYK": "stored in printing colours",
    "alpha": "with transparency, which is replaced by white",
    "palette": "stored with a table of colours",
    "deep": "with more than 8 bits per channel, scaled to 8",
    "long": f"with one side at least {ASPECT:g} times the other: a centre crop loses most of it",
    "tiny": f"with a shorter side below {TINY} pixels",
    "rotated": "rotated or mirrored by EXIF, which other programs may ignore",
    "animated": "with several frames, of which the first is used",
    "partly corrupt": "with errors in the JPEG data, though they can be decoded: parts may be grey or smeared",
}
"""Kinds of unusual images; all of them can be used."""


class ImageInfo(NamedTuple):
    """One image file; of a corrupt one only ``error`` is set."""

    error: str = ""
    format: str = ""
    mode: str = ""
    """Pillow's, as stored."""
    width: int = 0
    height: int = 0
    """Of the upright image."""
    digest: bytes = bytes(16)
    """Of size and pixels: equal for files that show exactly the same."""
    unusual: tuple[str, ...] = ()
    """Keys of UNUSUAL."""
    outline: np.ndarray | None = None
    """See :mod:`cls.commands.check.duplicates`."""


def describe(data: bytes) -> ImageInfo:
    try:
        pixels = np.asarray(decode(data))
    except CorruptImageError as error:
        return ImageInfo(error=str(error))
    height, width = pixels.shape[:2]
    file = Image.open(io.BytesIO(data), formats=FORMATS)  # the header alone
    digest = hashlib.blake2b(f"{width}x{height}:".encode() + pixels.tobytes(), digest_size=16).digest()
    unusual = tuple(_unusual(file, data, width, height))
    return ImageInfo("", str(file.format), file.mode, width, height, digest, unusual, outline(pixels))


def _unusual(file: Image.Image, data: bytes, width: int, height: int) -> list[str]:
    mode = file.mode
    found = {
        "grey": mode in ("1", "L", "LA", "La") or mode.startswith(("I", "F")),
        "CMYK": mode == "CMYK",
        "alpha": file.has_transparency_data,
        "palette": mode in ("P", "PA"),
        "deep": mode.startswith(("I", "F")),
        "long": max(width, height) >= ASPECT * min(width, height),
        "tiny": min(width, height) < TINY,
        "rotated": orientation(file) > 1,
        "animated": file.format != "MPO" and _frames(file) > 1,  # MPO: a phone's second view
        "partly corrupt": bool(damage(data)),
    }
    assert set(found) == set(UNUSUAL)
    return [kind for kind, is_so in found.items() if is_so]


def _frames(file: Image.Image) -> int:
    try:
        return int(getattr(file, "n_frames", 1))
    except Exception:  # whatever Pillow raises on a corrupt later frame: there is one
        return 2
