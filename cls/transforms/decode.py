"""Image bytes to upright RGB, for any colour mode, or an error with a short reason."""

import contextlib
import ctypes
import io
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# In the order of the attempts. No EPS, PDF or WMF: Pillow runs other programs for those.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k",
)  # fmt: skip
"""File name endings, lower case, of images."""
MAX_PIXELS = 100_000_000  # more are rejected by the header: 50 kB of PNG can claim 400 megapixels, 1.2 GB of RGB

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A line per unusual file and worker would flood the log; errors become CorruptImageError. No catch_warnings inside
# decode(): it swaps global state and is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _silence_libtiff() -> None:
    """Keep the libtiff that Pillow has loaded from printing to stderr for each corrupt file.

    Once per process, at no cost per image. libjpeg, openjpeg and the others print nothing.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        for path in {line.split(maxsplit=5)[-1] for line in lines if "/libtiff" in line}:
            with contextlib.suppress(OSError, AttributeError):  # replaced since it was loaded, or built differently
                library = ctypes.CDLL(path)
                for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                    function = getattr(library, name)
                    function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_void_p
                    function(None)


Image.init()  # Pillow's plug-ins, and with them the libraries
_silence_libtiff()


class CorruptImageError(ValueError):
    """These bytes are not an image that can be used; the message is a short reason without a file name."""


def decode(data: bytes) -> Image.Image:
    """Decode the first frame to mode RGB: EXIF orientation applied, transparency on white, 16 bits scaled to 8.

    Raises CorruptImageError for every fault of the bytes, and nothing else.
    """
    if not data:
        raise CorruptImageError("empty file (0 bytes)")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise CorruptImageError(
                f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels"
            )
        image.load()
        return upright_rgb(image)
    except CorruptImageError:
        raise
    except UnidentifiedImageError:
        raise CorruptImageError("not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise CorruptImageError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, MemoryError and others
        reason = " ".join(f"{error}".split())[:120]
        raise CorruptImageError(f"cannot be decoded: {reason or type(error).__name__}") from None


def orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 (upright) where there is none."""
    try:
        found = image.getexif().get(0x0112)
    except Exception:  # struct.error, SyntaxError, TypeError and others: corrupt EXIF says nothing about the pixels
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as :func:`decode` gives it, of an image that Pillow has decoded or made."""
    method = _UPRIGHT.get(orientation(image))
    return _rgb(image if method is None else image.transpose(method))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # convert("RGB") would clip all above 255 to white
        grey = _eight_bits(image)
        if (key := image.info.get("transparency")) is not None:  # of a 16-bit PNG: one grey that is transparent
            grey[np.asarray(image) == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits to uint8 [h, w].

    16-bit files (PNG, TIFF, PGM) have a fixed range. For 32-bit integers and floats it is the first of 0..1 (floats
    only), 0..255 and 0..65535 that contains all values; otherwise the values are stretched from min to max.
    """
    # In place: at 100 megapixels each copy is 800 MB.
    with np.errstate(invalid="ignore"):  # casting a signalling NaN warns
        values = np.asarray(image).astype(np.float64)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or image.format == "PPM":
        ranges: tuple[float, ...] = (65535.0,)
    else:
        ranges = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
    top = next((top for top in ranges if low >= 0 and high <= top), 0.0)
    if not top:
        values -= low
    values /= top or max(high - low, 1e-300)
    values *= 255
    return np.rint(values, out=values).astype(np.uint8)
