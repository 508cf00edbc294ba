"""Every colour mode and every kind of corrupt file, made with Pillow, against exact colours."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from cls.transforms.decode import CorruptImageError, decode

# pytest installs its own warning filters; test_no_warnings_are_printed looks at the real ones
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(height: int = 40, width: int = 60) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encode(noise(), kind, **options)), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = pixels(encode(Image.fromarray(ramp), kind))
    expected = np.rint(ramp.astype(np.float64) * 255 / 65535)
    assert np.array_equal(got, np.repeat(expected[..., None], 3, 2))


def test_dark_sixteen_bit_image_stays_dark() -> None:
    dark = np.full((4, 4), 257 * 3, dtype=np.uint16)  # all values below 1024: its range is the format's, not its own
    for kind in ("PNG", "PPM", "TIFF"):
        assert np.unique(pixels(encode(Image.fromarray(dark), kind))).tolist() == [3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257 * 128, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[0, 257 * 7, 65535]], np.float32), [0, 7, 255]),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], np.float32), [0, 0, 255]),
        (np.array([[7, 7, 7]], np.float32), [7, 7, 7]),
    ],
)
def test_thirty_two_bit_ranges(values: np.ndarray, expected: list[int]) -> None:
    assert pixels(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == expected


def test_grey_and_bilevel() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels(encode(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, 2))
    bits = np.array([[0, 1, 1, 0]], dtype=bool)
    assert pixels(encode(Image.fromarray(bits), "PNG"))[0, :, 1].tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_rgba_is_composited_on_white(kind: str) -> None:
    colours = [(255, 0, 0, 255), (10, 20, 30, 0), (0, 0, 0, 51)]
    image = Image.new("RGBA", (3, 1))
    image.putdata(colours)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert pixels(encode(image, kind, **options))[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]


def test_grey_with_alpha_and_palettes_with_transparency() -> None:
    grey_alpha = Image.new("LA", (2, 1))
    grey_alpha.putdata([(0, 0), (90, 255)])
    assert pixels(encode(grey_alpha, "PNG"))[0].tolist() == [[255] * 3, [90] * 3]
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    assert pixels(encode(palette, "PNG"))[0].tolist() == [list(c) for c in (RED, GREEN, BLUE)]
    assert pixels(encode(palette, "PNG", transparency=1))[0].tolist() == [list(c) for c in (RED, WHITE, BLUE)]
    assert pixels(encode(palette, "PNG", transparency=b"\xff\x00\x33"))[0].tolist() == [
        [255, 0, 0], [255, 255, 255], [204, 204, 255],
    ]  # fmt: skip
    assert pixels(encode(palette, "GIF", transparency=2))[0].tolist() == [list(c) for c in (RED, GREEN, WHITE)]


def test_colour_key_transparency_without_alpha_channel() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([RED, GREEN])
    assert pixels(encode(image, "PNG", transparency=RED))[0].tolist() == [list(WHITE), list(GREEN)]


def test_cmyk_jpeg_has_adobe_polarity() -> None:
    for ink, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), (0, 0, 0))):
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert b"Adobe" in data
        assert np.abs(pixels(data).astype(int) - colour).max() <= 2
    assert pixels(encode(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF"))[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    """Corners by hand: EXIF says on which side the stored row 0 and column 0 are to be seen."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = RED, GREEN, BLUE  # the fourth quarter is black
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    got = pixels(encode(stored, kind, exif=exif, **options))
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() <= 3


def test_corrupt_exif_is_ignored() -> None:
    image = noise()
    plain = decode(encode(image, "JPEG"))
    rng = np.random.default_rng(1)
    bodies = [
        b"",
        b"II*\0",
        b"MM\0*\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        rng.bytes(200),
        b"II*\0" + rng.bytes(99),
    ]
    nonsense = struct.pack("<2sHIHHHII", b"II", 42, 8, 1, 0x0112, 2, 1, 0xFFFFFFF0)  # orientation as text, out of file
    bad_value = struct.pack("<2sHIHHHIIi", b"II", 42, 8, 1, 0x0112, 3, 1, 99, 0)  # orientation 99
    for body in (*bodies, nonsense, bad_value):
        assert np.array_equal(pixels(encode(image, "JPEG", exif=b"Exif\0\0" + body)), np.asarray(plain))


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(np.unique(pixels(data).reshape(-1, 3), axis=0), [RED])


def huge_png(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(50_000))) + chunk(b"IEND", b"")


def test_corrupt_files_have_a_short_reason() -> None:
    jpeg, png = encode(noise(), "JPEG"), encode(noise(), "PNG")
    cases = {
        b"": "empty file",
        b"hello world, I am no image": "not an image",
        b"<html><body>404</body></html>": "not an image",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n": "not an image",  # never handed to ghostscript
        jpeg[: len(jpeg) // 2]: "truncated",
        png[: len(png) // 2]: "cannot be decoded",
        jpeg[:20]: "cannot be decoded|not an image",
        huge_png(20_000): "megapixels",
        huge_png(10_001): "megapixels",
    }
    for data, reason in cases.items():
        with pytest.raises(CorruptImageError, match=reason) as caught:
            decode(data)
        assert len(str(caught.value)) < 160 and "\n" not in str(caught.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_damaged_bytes_raise_nothing_but_corrupt_image() -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = noise().convert("P")
    originals = [
        *(encode(noise(), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        *(encode(palette, kind) for kind in ("GIF", "PNG", "BMP")), encode(noise(), "PPM"),
        encode(noise(), "TIFF", compression="tiff_lzw"),
    ]  # fmt: skip
    good = bad = 0
    for original in originals:
        for _ in range(60):
            data = bytearray(original)
            where = rng.integers(0, min(len(data), 400), size=rng.integers(1, 6))
            data[where[0]] = 255
            for place in where:
                data[place] = rng.integers(256)
            if rng.random() < 0.3:
                del data[rng.integers(1, len(data)) :]
            try:
                image = decode(bytes(data))
            except CorruptImageError:
                bad += 1
            else:
                good += 1
                assert image.mode == "RGB" and min(image.size) > 0
    assert good > 50 and bad > 50


def test_no_warnings_are_printed(tmp_path: Path) -> None:
    """In a fresh interpreter: pytest collects warnings and would hide them."""
    program = (
        "import sys; from cls.transforms.decode import decode, CorruptImageError\n"
        "for path in sys.argv[1:]:\n    try: decode(open(path, 'rb').read())\n    except CorruptImageError: pass\n"
    )
    palette = noise().convert("P")
    data = [huge_png(9_900), encode(palette, "PNG", transparency=b"\x00\xff")]
    data.append(encode(noise(), "JPEG", exif=b"Exif\0\0II*\0\xff"))
    paths = [tmp_path / str(i) for i in range(len(data))]
    for path, body in zip(paths, data, strict=True):
        path.write_bytes(body)
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_damaged_files_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff wrote up to three lines for each, from C: 400 of them hid what the run said."""
    rng, said = np.random.default_rng(0), 0
    for kind, compression in (("TIFF", "tiff_lzw"), ("TIFF", "jpeg"), ("TIFF", None), ("JPEG", None), ("PNG", None)):
        file = io.BytesIO()
        options = {"compression": compression} if compression else {}
        Image.new("RGB", (64, 64), (200, 3, 4)).save(file, kind, **options)
        for _ in range(40):
            data = bytearray(file.getvalue())
            for place in rng.integers(8, len(data), 5):
                data[place] = rng.integers(256)
            try:
                decode(bytes(data))
            except CorruptImageError:
                said += 1
    assert said > 40  # they were damaged
    assert capfd.readouterr() == ("", "")
