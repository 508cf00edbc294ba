"""JPEG at the speed of its decoder: header first, then no more pixels than the crop needs.

simplejpeg (libjpeg-turbo) is the one wrapper that is strict about damaged files, decodes at 1/2, 1/4 and 1/8, and into
memory that is used again: fresh pages cost up to a quarter of the time. What it does not take as Pillow would (CMYK,
damaged files, other formats) goes to :func:`cls.transforms.decode.decode`, which alone decides what is broken.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from cls.transforms.decode import MAX_PIXELS, decode, orientation

Pixels = np.ndarray
"""Upright RGB, uint8 [h, w, 3], or [h, w, 4] with a fourth channel of no meaning where that is said; may be a window of
a buffer that the next image overwrites.
"""

KEPT_BYTES = 64_000_000
"""The buffer is kept up to this size (a photo of 16 megapixels)."""

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
"""What the EXIF orientations undo."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file of which only the header has been read; sizes are those of the upright image."""

    data: bytes | memoryview
    width: int
    height: int
    orientation: int

    def corner(self, k: int) -> tuple[int, int]:
        """Where the first pixel of k x k begins in the upright image: they are counted from the stored one's corner."""
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
        """Size and, where the fast way cannot be taken, pixels; BadImage where they are no image."""
        return _header(data) or Decoded(np.array(decode(bytes(data))))

    def pixels(self, image: Jpeg | Decoded, k: int = 1, shrinks: bool = False) -> tuple[Pixels, int]:
        """The image at 1 / k of its size, or whole where it cannot be reduced, and by how much it was; or BadImage.

        With a fourth channel, but what Pillow decoded has three: libjpeg-turbo writes four in a fifth less time (64
        clothing photos, in turns, 2026-11-23), the same values. ``shrinks``: it will be made smaller. Chroma is then
        replicated, not interpolated: a tenth less time, and 0.2 grey levels of what is left of it.
        """
        if isinstance(image, Decoded):
            return image.pixels, 1
        width, height = -(-image.width // k), -(-image.height // k)
        lying = image.orientation >= 5
        try:
            pixels = simplejpeg.decode_jpeg(
                image.data,
                "RGBA",
                fastupsample=shrinks,
                # without them it is whole; with them one of less than 8 pixels would be at 7/8
                **(
                    {"min_factor": k, "min_width": height if lying else width, "min_height": width if lying else height}
                    if k > 1
                    else {}
                ),
                buffer=self._room(4 * width * height),
            )
            return _UPRIGHT[image.orientation](pixels), k
        except ValueError:  # damaged in some way: Pillow decides whether it is broken
            return np.array(decode(bytes(image.data))), 1

    def _room(self, wanted: int) -> np.ndarray:
        if wanted <= self._buffer.size:
            return self._buffer
        room = np.empty(wanted, np.uint8)
        if wanted <= KEPT_BYTES:
            self._buffer = room
        return room


def damage(data: bytes | memoryview) -> str:
    """What the strict decoder says against a JPEG file that Pillow may show nonetheless; '' if nothing, or no JPEG."""
    if _header(data) is None:
        return ""
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=8, min_width=1, min_height=1)  # 0.3 ms: all but the pixels
    except ValueError as error:
        return str(error)
    return ""


def _header(data: bytes | memoryview) -> Jpeg | None:
    """None where the fast decoder cannot take it, or would not show what Pillow shows."""
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
    """Whether there is a segment that can hold an orientation (EXIF or XMP) before the pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a marker may be preceded by any number of these
            at += 1
            continue
        if data[at + 1] == 0xE1:
            return True
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return False


def _orientation(data: bytes | memoryview) -> int | None:
    """As Pillow reads it, from the header alone; None where Pillow cannot open the file."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
    except Exception:  # what decode() makes a BadImage of
        return None
    return orientation(image)
