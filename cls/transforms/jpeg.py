"""JPEG at the speed of its decoder: header first, then no more pixels than the crop needs.

simplejpeg (libjpeg-turbo) is strict about corrupt files, decodes at 1/2, 1/4 and 1/8, and into a reused buffer: fresh
pages cost up to a quarter of the time. What it does not decode as Pillow does (CMYK, corrupt files, other formats) goes
to :func:`cls.transforms.decode.decode`, which alone decides whether an image is corrupt.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from cls.transforms.decode import MAX_PIXELS, decode, orientation

Pixels = np.ndarray
"""Upright RGB, uint8 [h, w, 3], or where stated [h, w, 4] with an unused channel; may be a view of a buffer that the
next image overwrites."""

KEPT_BYTES = 64_000_000  # the buffer is kept up to this size (a photo of 16 megapixels)

_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
"""Undoes each EXIF orientation."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file of which only the header has been read; sizes are those of the upright image."""

    data: bytes | memoryview
    width: int
    height: int
    orientation: int

    def corner(self, k: int) -> tuple[int, int]:
        """Offset of the first k x k block in the upright image; blocks start at the stored image's corner."""
        x, y = (self.orientation in turned for turned in ((2, 3, 6, 7), (3, 4, 7, 8)))
        return -(-self.width % k) if x else 0, -(-self.height % k) if y else 0


@dataclass(frozen=True)
class Decoded:
    """An image that had to be decoded to know its size."""

    pixels: Pixels

    def corner(self, k: int) -> tuple[int, int]:
        return 0, 0  # it is never decoded smaller

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


class Decoder:
    """Opens and decodes images, one at a time; owns the buffer."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def open(self, data: bytes | memoryview) -> Jpeg | Decoded:
        """Size and, if the fast decoder cannot be used, pixels; CorruptImageError if it is no image."""
        return _header(data) or Decoded(np.array(decode(bytes(data))))

    def pixels(self, image: Jpeg | Decoded, k: int = 1, shrinks: bool = False) -> tuple[Pixels, int]:
        """The image at 1 / k of its size, or whole if it cannot be reduced, and its k; CorruptImageError.

        JPEGs have a fourth channel: libjpeg-turbo writes four in a fifth less time (64 clothing photos, interleaved,
        2026-11-23), with the same values. ``shrinks``: it will be reduced later. Chroma is then replicated, not
        interpolated: a tenth less time, and 0.2 grey levels after the reduction.
        """
        if isinstance(image, Decoded):
            return image.pixels, 1
        width, height = -(-image.width // k), -(-image.height // k)
        stored = (height, width) if image.orientation >= 5 else (width, height)
        # given for k = 1, they would decode an image of less than 8 pixels at 7/8
        reduced = {"min_factor": k, "min_width": stored[0], "min_height": stored[1]} if k > 1 else {}
        buffer = self._space(4 * width * height)
        try:
            pixels = simplejpeg.decode_jpeg(image.data, "RGBA", fastupsample=shrinks, buffer=buffer, **reduced)
            return _UPRIGHT[image.orientation](pixels), k
        except ValueError:  # Pillow decides whether it is corrupt
            return np.array(decode(bytes(image.data))), 1

    def _space(self, size: int) -> np.ndarray:
        """A buffer of at least ``size`` bytes."""
        if size <= self._buffer.size:
            return self._buffer
        space = np.empty(size, np.uint8)
        if size <= KEPT_BYTES:
            self._buffer = space
        return space


def damage(data: bytes | memoryview) -> str:
    """The strict decoder's complaint about a JPEG file that Pillow may still decode; '' if none, or no JPEG."""
    if _header(data) is None:
        return ""
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=8, min_width=1, min_height=1)  # 0.3 ms: all but the pixels
    except ValueError as error:
        return str(error)
    return ""


def _header(data: bytes | memoryview) -> Jpeg | None:
    """None if the fast decoder cannot decode it, or not as Pillow does."""
    if bytes(data[:3]) != b"\xff\xd8\xff":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    turned = _orientation(data) if _has_app1(data) else 1
    if colours not in ("YCbCr", "Gray") or not 0 < width * height <= MAX_PIXELS or turned is None:
        return None
    return Jpeg(data, *((width, height) if turned < 5 else (height, width)), turned)


def _has_app1(data: bytes | memoryview) -> bool:
    """Whether a segment before the pixels can hold an orientation (EXIF or XMP)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # any number of these may precede a marker
            at += 1
            continue
        if data[at + 1] == 0xE1:
            return True
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _orientation(data: bytes | memoryview) -> int | None:
    """As read by Pillow from the header; None if Pillow cannot open the file."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    except Exception:  # decode() raises CorruptImageError
        return None
    return orientation(image)
