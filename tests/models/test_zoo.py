"""A zoo of odd and hostile image files: each is an RGB image or a BadImage, and none of them stops the training.

Files that might hang or fill the memory are first decoded in a process of their own, see SANDBOX.
"""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL
import pytest
from datasets import Dataset
from PIL import Image

from cls import config
from cls.data.dataset import TrainDataset, ViewDataset
from cls.data.loader import batches, load_batch
from cls.data.readers import images_of
from cls.data.sampler import MicroBatchSampler
from cls.data.sources import load
from cls.transforms.decode import MAX_PIXELS, CorruptImageError, decode
from cls.transforms.ops import RandAugment, training_ops, view_ops
from cls.transforms.params import RAND_OPS, RandOp, make_params
from cls.transforms.reference import apply
from tests.harness import ROOT, SHARED

# in the sandbox no warnings are allowed; here pytest has its own filters
pytestmark = [pytest.mark.filterwarnings("ignore:::PIL"), pytest.mark.filterwarnings("ignore::UserWarning:PIL")]

BYTES_PER_PIXEL = 32  # WebP with alpha needs most: two canvases of libwebp (8) and five images of Pillow (20)
PEAK = MAX_PIXELS * BYTES_PER_PIXEL // 1024  # kB on top of the interpreter, whatever a file claims to be
REFUSED = 120_000  # kB for a file that is refused by its header or a text chunk; Pillow keeps 64 MB of such text

SANDBOX = """
import json, os, signal, struct, sys
from PIL import Image
from cls.transforms.decode import CorruptImageError, decode

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

def answer(data):
    signal.setitimer(signal.ITIMER_PROF, 20)  # seconds of CPU, then a signal that ends the process
    start = kilobytes("VmRSS")
    try:
        image = decode(data)
        found = f"{image.mode} {image.width}x{image.height}"
    except CorruptImageError as error:
        found = f"bad: {error}"
    return json.dumps([found, kilobytes("VmHWM") - start])

Image.init()
stream, batch = open(sys.argv[1], "rb"), int(sys.argv[2])
while files := [stream.read(*struct.unpack("<Q", header)) for _ in range(batch) if (header := stream.read(8))]:
    pid = os.fork()  # its peak starts at what is in use now
    if not pid:
        for data in files:
            os.write(1, answer(data).encode() + b"\\n")
        os._exit(0)
    if status := os.waitpid(pid, 0)[1]:
        print(json.dumps([f"died of {os.waitstatus_to_exitcode(status)}", 0]), flush=True)
"""


def sandbox(files: list[bytes], folder: Path, batch: int = 1) -> tuple[list[tuple[str, int]], str]:
    """What decode() says of each file ("RGB 32x24" or "bad: reason"), the peak memory in kB; and all of stderr.

    The peak is that of the file in a process of its own, or with a larger ``batch`` of those before it as well.
    """
    (folder / "files").write_bytes(b"".join(struct.pack("<Q", len(data)) + data for data in files))
    command = [sys.executable, "-c", SANDBOX, str(folder / "files"), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    answers = [(found, peak) for found, peak in map(json.loads, done.stdout.splitlines())]
    for i, (found, peak) in enumerate(answers):
        assert found.startswith(("RGB ", "bad: ")), f"file {i}: {found}\n{done.stderr}"
        assert "MemoryError" not in found and peak < PEAK, (i, found, peak)
        assert len(found) < 160 and found.isprintable(), found
    assert done.returncode == 0 and len(answers) == len(files), done.stderr
    return answers, done.stderr


# --- parts of files ---


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Rows with their filter bytes. Colour: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 255, marker, len(body) + 2) + body + jpeg[2:]


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """One directory at 8 of (tag, type, count, 4 bytes of value or offset), big endian."""
    fields = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + fields + bytes(4)


def tiff_sized(data: bytes, width: int, height: int) -> bytes:
    out = bytearray(data)
    start = struct.unpack_from("<I", out, 4)[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", out, start)[0], 12):
        side = {256: width, 257: height}.get(struct.unpack_from("<H", out, at)[0])
        if side is not None:
            struct.pack_into("<HII", out, at + 2, 4, 1, side)
    return bytes(out)


def put(data: bytes, at: int, form: str, *values: int) -> bytes:
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


def seen(stored: np.ndarray, orientation: int) -> np.ndarray:
    """By the table of the EXIF standard: on which visual sides the stored row 0 and column 0 are."""
    row, column = ("tl", "tr", "br", "bl", "lt", "rt", "rb", "lb")[orientation - 1]
    if row in "lr":
        stored, row, column = stored.swapaxes(0, 1), column, row
    return stored[:: -1 if row == "b" else 1, :: -1 if column == "r" else 1]


Y, X = np.mgrid[:24, :32]
PIXELS = np.stack([X * 8, Y * 10, (X + Y) * 4], 2).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)
JPEG = encode(PHOTO, "JPEG", quality=90)
JPEG_PIXELS = np.asarray(Image.open(io.BytesIO(JPEG)))
RGB_ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)
NOISE = np.random.default_rng(0).bytes(10_000)
BOMB = zlib.compress(bytes(50_000_000), 9)

# Bytes, and what comes of them: pixels and how far they may be off; a size (width, height); or the reason (a regular
# expression) of a BadImage. None: an image of 32 x 24 or a BadImage.
Animal = tuple[bytes, tuple[np.ndarray, int] | tuple[int, int] | str | None]


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(values)[..., None], 3, 2)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def colours() -> Iterator[tuple[str, Animal]]:
    luma, alpha, index = PIXELS[..., 0], PIXELS[..., 1], PIXELS[..., 2] % 4
    table = np.array([[255, 0, 0], [0, 255, 0], [9, 99, 199], [0, 0, 0]])
    yield "rgb.png", (encode(PHOTO, "PNG"), (PIXELS, 0))
    yield "rgb.bmp", (encode(PHOTO, "BMP"), (PIXELS, 0))
    yield "bilevel.png", (encode(Image.fromarray(luma > 99), "PNG"), (grey((luma > 99) * 255), 0))
    yield "grey.jpg", (encode(Image.fromarray(luma), "JPEG", quality=100), (grey(luma), 2))
    two = Image.merge("LA", (Image.fromarray(luma), Image.fromarray(alpha)))
    yield "grey_alpha.png", (encode(two, "PNG"), (on_white(grey(luma), alpha), 1))
    four = Image.merge("RGBA", (*PHOTO.split(), Image.fromarray(alpha)))
    for kind, options in (("png", {}), ("webp", {"lossless": True, "exact": True}), ("tiff", {})):
        yield f"rgba.{kind}", (encode(four, kind.upper(), **options), (on_white(PIXELS, alpha), 1))
    palette = Image.fromarray(index)
    palette.putpalette(table.astype(np.uint8).tobytes())
    yield "palette.png", (encode(palette, "PNG"), (table[index], 0))
    yield "palette.gif", (encode(palette, "GIF"), (table[index], 0))
    veil = np.array([255, 0, 100, 255])
    yield "palette_alpha.png", (encode(palette, "PNG", transparency=bytes(veil)), (
        on_white(table[index], veil[index]), 1))  # fmt: skip
    yield "palette_key.gif", (encode(palette, "GIF", transparency=3), (on_white(table[index], 255 * (index != 3)), 0))
    inks = np.stack([PIXELS[..., 0], PIXELS[..., 1], PIXELS[..., 2], PIXELS[..., 1] // 2], 2)
    printed = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    printable = Image.frombytes("CMYK", PHOTO.size, inks.tobytes())
    cmyk = encode(printable, "JPEG", quality=100, subsampling=0)
    adobe = cmyk.index(b"\xff\xee")
    yield "cmyk_adobe.jpg", (cmyk, (printed, 5))
    yield "cmyk_no_marker.jpg", (cmyk[:adobe] + cmyk[adobe + 16 :], (printed, 5))
    yield "cmyk.tiff", (encode(printable, "TIFF"), (printed, 2))
    # Pillow before 13 calls it truncated
    readable = int(PIL.__version__.split(".")[0]) >= 13
    yield "ycbcr.tiff", (encode(PHOTO.convert("YCbCr"), "TIFF"), (PIXELS, 3) if readable else None)
    lab = Image.new("LAB", (3, 1))
    lab.putdata([(255, 128, 128), (0, 128, 128), (136, 208, 195)])  # L* 53, a* 80, b* 67: sRGB's red
    red = np.array([[[255] * 3, [0] * 3, [255, 0, 0]]])
    yield "lab.tiff", (encode(lab, "TIFF"), (red, 14))
    deep = (X * 2000 + Y * 100).astype(np.uint16)
    for kind in ("png", "tiff", "ppm"):
        yield f"grey16.{kind}", (encode(Image.fromarray(deep), kind.upper()), (grey(deep / 257), 0))
    lines = b"".join(b"\0" + row.tobytes() for row in deep.astype(">u2"))
    keyed = grey(np.where(deep == deep[5, 5], 65535, deep) / 257)
    key = chunk(b"tRNS", struct.pack(">H", deep[5, 5]))
    yield "grey16_key.png", (png(32, 24, 16, 0, lines, key), (keyed, 0))
    lines = b"".join(b"\0" + row.tobytes() for row in (PIXELS * 257.0 - 90 * (PIXELS > 0)).astype(">u2"))
    yield "rgb16.png", (png(32, 24, 16, 2, lines), (PIXELS, 1))
    yield "integer.tiff", (encode(Image.fromarray(deep.astype(np.int32)), "TIFF"), (grey(deep / 257), 0))
    yield "float.tiff", (encode(Image.fromarray((deep / 65535).astype(np.float32)), "TIFF"), (grey(deep / 257), 1))
    nan = np.array([[0x7F800001, 0x3F800000]], np.uint32).view(np.float32)  # a signalling NaN, and 1
    yield "nan.tiff", (encode(Image.fromarray(nan), "TIFF"), (np.array([[[0] * 3, [255] * 3]]), 0))


def orientations() -> Iterator[tuple[str, Animal]]:
    for i in range(1, 9):
        block = chunk(b"eXIf", exif((0x0112, 3, 1, struct.pack(">HH", i, 0))))
        yield f"orientation_{i}.png", (png(32, 24, 8, 2, RGB_ROWS, block), (seen(PIXELS, i), 0))
    loop = exif((0x8769, 4, 1, struct.pack(">I", 8)), (0x8825, 4, 1, struct.pack(">I", 8)))
    blocks = {
        "empty": b"", "noise": NOISE[:400], "huge": exif() + NOISE * 6, "cut": exif()[:9], "loop": loop,
        "count": b"MM\0*\0\0\0\x08\xff\xff", "outside": b"MM\0*\xff\xff\xff\xf0",
        "text": exif((0x0112, 2, 4, b"six\0")), "float": exif((0x0112, 11, 1, struct.pack(">f", 6))),
        "nan": exif((0x0112, 11, 1, struct.pack(">f", np.nan))), "ratio": exif((0x0112, 5, 1, bytes(4))),
        "nine": exif((0x0112, 3, 1, b"\0\x09\0\0")), "zero": exif((0x0112, 3, 1, bytes(4))),
        "many": exif((0x0112, 3, 0xFFFFFFFF, b"\0\x06\0\x06")),
        "signed": exif((0x0112, 9, 1, struct.pack(">i", -6))), "type": exif((0x0112, 99, 1, b"\0\x06\0\0")),
    }  # fmt: skip
    for name, block in blocks.items():
        yield f"exif_{name}.jpg", (with_segment(JPEG, 0xE1, b"Exif\0\0" + block), (JPEG_PIXELS, 0))
    long = JPEG
    for _ in range(100):
        long = with_segment(long, 0xE1, b"Exif\0\0" + exif() + NOISE * 6)
    yield "exif_6_megabytes.jpg", (long, (JPEG_PIXELS, 0))


def cuts() -> Iterator[tuple[str, Animal]]:
    for kind, options in (
        ("jpg", {}), ("png", {}), ("webp", {"lossless": True}), ("gif", {}), ("tiff", {}), ("bmp", {}), ("avif", {}),
    ):  # fmt: skip
        data = encode(PHOTO, {"jpg": "JPEG"}.get(kind, kind.upper()), **options)
        for name, length in (("0", 0), ("1", 1), ("10", 10), ("header", 30), ("half", len(data) // 2)):
            yield f"cut_{name}.{kind}", (data[:length], "cannot be decoded|not an image" if length else "^empty file")
        yield f"cut_last.{kind}", (data[:-1], None)


def bombs() -> Iterator[tuple[str, Animal]]:
    large, text = "megapixels", "cannot be decoded: .*(large|memory)"
    yield "bomb_400mp.png", (png(20_000, 20_000, 8, 2, bytes(2_000_000)), large)
    yield "bomb_just_over.png", (png(MAX_PIXELS // 100 + 1, 100, 8, 2, b""), large)
    yield "bomb_signed.png", (png(2**31 - 1, 2**31 - 1, 1, 0, b""), large)
    for name in (b"zTXt", b"iCCP"):
        yield f"bomb_{name.decode()}.png", (png(32, 24, 8, 2, RGB_ROWS, chunk(name, b"x\0\0" + BOMB)), text)
    yield "bomb_iTXt.png", (png(32, 24, 8, 2, RGB_ROWS, chunk(b"iTXt", b"x\0\1\0\0\0" + BOMB)), text)
    texts = [chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(10**6))) for i in range(100)]
    yield "bomb_100_texts.png", (png(32, 24, 8, 2, RGB_ROWS, *texts), text)
    gif, webp = encode(PHOTO, "GIF"), encode(PHOTO, "WEBP")
    yield "bomb_screen.gif", (put(gif, 6, "<HH", 65535, 65535), large)
    yield "bomb_frame.gif", (put(gif, gif.index(b",\0\0\0\0") + 5, "<HH", 65535, 65535), large)
    for name, options in (("raw", {}), ("lzw", {"compression": "tiff_lzw"})):
        for side in (10**5, 2**32 - 1):
            yield f"bomb_{name}_{side}.tiff", (tiff_sized(encode(PHOTO, "TIFF", **options), side, side), large)
    yield "bomb_raw.bmp", (put(encode(PHOTO, "BMP"), 18, "<ii", 30_000, 30_000), large)
    yield "bomb_raw.jpg", (put(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 65500, 65500), large)
    yield "bomb_text.ppm", (b"P3 99999 99999 255\n1 2 3", large)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\0" * 2
    yield "bomb_canvas.webp", (b"RIFF" + struct.pack("<I", len(webp) + 10) + b"WEBP" + extended + webp[12:],
                              f"{large}|cannot be decoded")  # fmt: skip


def oddities() -> Iterator[tuple[str, Animal]]:
    others = [Image.new("RGB", PHOTO.size, colour) for colour in ("red", "blue")]
    for kind, options in (("png", {}), ("webp", {"lossless": True}), ("tiff", {})):
        frames = encode(PHOTO, kind.upper(), save_all=True, append_images=others, **options)
        yield f"animated.{kind}", (frames, (PIXELS, 0))
    red, *rest = others[0], others[1], PHOTO
    yield "animated.gif", (encode(red, "GIF", save_all=True, append_images=rest), (np.asarray(red), 0))
    yield "pair.mpo.jpg", (encode(red, "MPO", save_all=True, append_images=rest), (np.asarray(red), 1))
    yield "png_in.jpg", (encode(PHOTO, "PNG"), (PIXELS, 0))
    yield "jpeg_in.png", (JPEG, (JPEG_PIXELS, 0))
    for name, data in (
        ("text.png", b"no image\n" * 9), ("html.jpg", b"<!DOCTYPE html><html>404</html>"), ("zeros.jpg", bytes(999)),
        ("eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), ("pdf.jpg", b"%PDF-1.7\n"),
        ("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("noise.webp", NOISE), ("pushed.jpg", b"\0" + JPEG),
        ("no_width.png", png(0, 5, 8, 2, b"")), ("no_height.jpg", put(JPEG, JPEG.index(b"\xff\xc0") + 5, ">H", 0)),
        ("twelve_bit.jpg", put(JPEG, JPEG.index(b"\xff\xc0") + 4, ">B", 12)),
        ("no_width.tiff", tiff_sized(encode(PHOTO, "TIFF"), 0, 24)),
        ("samples.tiff", encode(PHOTO, "TIFF").replace(struct.pack("<HHI", 277, 3, 1) + b"\3", struct.pack(
            "<HHI", 277, 3, 1) + b"\xff", 1)),
    ):  # fmt: skip
        yield name, (data, "^not an image")
    for width, height in ((1, 1), (30_000, 1), (1, 30_000), (2, 1)):
        strip = np.arange(width * height * 3).reshape(height, width, 3).astype(np.uint8)
        yield f"strip_{width}x{height}.png", (encode(Image.fromarray(strip), "PNG"), (strip, 0))
    yield "progressive.jpg", (encode(PHOTO, "JPEG", progressive=True, quality=100, subsampling=0), (PIXELS, 4))
    yield "arithmetic.jpg", (JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1), None)  # its data are Huffman codes
    yield "trailing.jpg", (JPEG + NOISE, (JPEG_PIXELS, 0))
    yield "twice.jpg", (JPEG + JPEG, (JPEG_PIXELS, 0))
    yield "icc_noise.jpg", (with_segment(JPEG, 0xE2, b"ICC_PROFILE\0\1\1" + NOISE[:999]), (JPEG_PIXELS, 0))
    yield "icc_part_9_of_2.jpg", (with_segment(JPEG, 0xE2, b"ICC_PROFILE\0\x09\2"), (JPEG_PIXELS, 0))
    yield "icc_noise.png", (png(32, 24, 8, 2, RGB_ROWS, chunk(b"iCCP", b"x\0\0" + NOISE[:99])), (PIXELS, 0))


ZOO: dict[str, Animal] = dict(item for part in (colours, orientations, cuts, bombs, oddities) for item in part())


@pytest.fixture(scope="module")
def sandboxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple[str, int]], str]:
    found, stderr = sandbox([data for data, _ in ZOO.values()], tmp_path_factory.mktemp("sandbox"))
    return dict(zip(ZOO, found, strict=True)), stderr


@pytest.fixture(scope="module")
def answers(sandboxed: tuple[dict[str, tuple[str, int]], str]) -> dict[str, tuple[str, int]]:
    return sandboxed[0]


def test_the_zoo_prints_nothing(sandboxed: tuple[dict[str, tuple[str, int]], str]) -> None:
    assert sandboxed[1] == ""


@pytest.mark.parametrize("name", ZOO)
def test_each_animal_is_what_it_should_be(name: str, answers: dict[str, tuple[str, int]]) -> None:
    data, wanted = ZOO[name]
    found, peak = answers[name]
    if isinstance(wanted, str):
        with pytest.raises(CorruptImageError, match=wanted) as caught:
            decode(data)
        assert found == f"bad: {caught.value}" and peak < REFUSED
    elif wanted is None:
        assert found == "RGB 32x24" or found.startswith("bad: ")
    else:
        expected, off = wanted
        image = decode(data)
        assert image.mode == "RGB" and found == f"RGB {image.width}x{image.height}"
        got = np.asarray(image).astype(float)
        assert got.shape == expected.shape and np.abs(got - expected).max() <= off


# --- memory ---


def test_the_largest_images_need_a_bounded_number_of_bytes_per_pixel(tmp_path: Path) -> None:
    """At 4 megapixels, of those kinds that need most; and MAX_PIXELS itself is allowed."""
    side = 2000
    turned = chunk(b"eXIf", exif((0x0112, 3, 1, b"\0\x06\0\0")))
    dull = Image.new("RGBA", (side, side), (9, 99, 199, 99))
    many = Image.new("F", (side, side), 0.5)
    files = [png(side, side, 16, 0, bytes((2 * side + 1) * side), turned)]
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        files.append(png(side, side, 8, colour, bytes((channels * side + 1) * side), turned))
    files += [encode(dull, "WEBP"), encode(dull, "AVIF"), encode(dull, "TIFF", compression="tiff_lzw")]
    files += [encode(many, "TIFF", compression="tiff_lzw"), encode(dull.convert("CMYK"), "JPEG", progressive=True)]
    files += [encode(dull.convert("RGB"), kind) for kind in ("GIF", "JPEG2000", "BMP")]
    largest = png(MAX_PIXELS // 10_000, 10_000, 1, 0, bytes((MAX_PIXELS // 80_000 + 1) * 10_000))
    (*answers, last), stderr = sandbox([*files, largest], tmp_path)
    assert stderr == "" and {found for found, _ in answers} == {f"RGB {side}x{side}"}
    peaks = [peak * 1024 / side**2 for _, peak in answers]
    assert max(peaks) <= BYTES_PER_PIXEL, peaks
    assert min(peaks) >= 4  # the control: an RGB image of Pillow has 4 bytes a pixel
    assert last[0] == f"RGB {MAX_PIXELS // 10_000}x10000"


# --- mutations ---


def originals() -> list[bytes]:
    """JPEGs of real photos if they are at hand, and else of drawn ones; two as they are, the others small."""
    paths = sorted((SHARED / "data" / "clothing").glob("*/*/*.jpg"))[::300][:8]
    photos = [Image.open(path).convert("RGB") for path in paths]
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:160, :120]
    for k in range(8 - len(photos)):
        waves = [np.sin(x / (9 + k) + c) * np.cos(y / (14 - k)) for c in range(3)]
        drawn = 128 + 90 * np.stack(waves, 2) + rng.normal(0, 9, (160, 120, 3))
        photos.append(Image.fromarray(drawn.clip(0, 255).astype(np.uint8)))
    out = [path.read_bytes() for path in paths[:2]]
    for k, photo in enumerate(photos):
        photo.thumbnail((96 + 16 * k, 96 + 16 * k))
        block = Image.Exif()
        block[0x0112], block[0x010F], block[0x011A] = k + 1, "maker", 72.0
        options = {"progressive": k % 2 == 1, "subsampling": k % 3, "restart_marker_blocks": 5 * (k % 4)}
        out.append(encode(photo, "JPEG", quality=60 + 5 * k, exif=block, comment=b"zoo", **options))
    return out


def segments(data: bytes) -> list[int]:
    """Where the segments of a JPEG start, up to the first scan."""
    starts = [2]
    while data[starts[-1] + 1] != 0xDA:
        starts.append(starts[-1] + 2 + int.from_bytes(data[starts[-1] + 2 : starts[-1] + 4], "big"))
    return starts


def swapped(data: bytes, bounds: list[int], rng: np.random.Generator) -> bytes:
    """The parts between the bounds with two of them exchanged."""
    parts = [data[a:b] for a, b in pairwise((0, *bounds, len(data)))]
    i, j = rng.integers(1, len(parts) - 1, size=2)
    parts[i], parts[j] = parts[j], parts[i]
    return b"".join(parts)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three faults: flipped bits, lost, inserted, moved or missing bytes, and extreme numbers near the start."""
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(1, len(data))), int(rng.geometric(0.05))
        match rng.integers(6):
            case 0:
                flips = np.zeros(len(data), np.uint8)
                flips[rng.integers(len(data), size=rng.integers(1, 9))] = 1 << rng.integers(8)
                data = (np.frombuffer(data, np.uint8) ^ flips).tobytes()
            case 1:
                data = data[:at] + rng.bytes(length) + data[at:]
            case 2:
                data = data[:at] + data[at + length :]
            case 3:
                data = data[:at] if rng.random() < 0.5 else data
            case 4:
                data = swapped(data, sorted(rng.integers(1, len(data), size=4).tolist()), rng)
            case 5:
                at = int(rng.integers(min(len(data) - 1, 300)))
                number = (0, 1, 255, 0x7FFF, 0xFFFF, 0x4000)[rng.integers(6)]
                data = data[:at] + number.to_bytes(2, "big") + data[at + 2 :]
        data = data if len(data) > 1 else b"\xff\xd8"
    return data


def test_two_thousand_damaged_jpegs(tmp_path: Path) -> None:
    rng, sources = np.random.default_rng(1), originals()
    files = [mutate(sources[i % len(sources)], rng) for i in range(1800)]
    for i in range(400):
        data = sources[i % len(sources)]
        bounds = segments(data)
        if i % 2:
            files.append(swapped(data, bounds, rng))
        else:  # one byte of a header, as the sizes and the tables
            start = bounds[rng.integers(len(bounds) - 1)]
            files.append(put(data, start + int(rng.integers(2, 14)), "B", int(rng.integers(256))))
    answers, stderr = sandbox(files, tmp_path, batch=50)
    assert stderr == ""
    good = sum(found.startswith("RGB ") for found, _ in answers)
    assert len(files) == 2200 and 0.1 < good / 2200 < 0.9, good


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_hundreds_of_damaged_files_of_other_formats(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    veiled = Image.merge("RGBA", (*PHOTO.split(), Image.fromarray(PIXELS[..., 1])))
    variants = {
        "PNG": [encode(PHOTO, kind), encode(PHOTO.quantize(), kind, transparency=3), encode(veiled, kind)],
        "WEBP": [encode(PHOTO, kind), encode(veiled, kind, lossless=True), encode(veiled, kind, save_all=True,
                 append_images=[veiled.rotate(90)])],
        "GIF": [encode(PHOTO, kind), encode(PHOTO, kind, save_all=True, append_images=[PHOTO.rotate(9)])],
        "TIFF": [encode(PHOTO, kind), encode(veiled, kind, compression="tiff_lzw"), encode(PHOTO, kind,
                 compression="jpeg"), encode(PHOTO.convert("1"), kind, compression="group4")],
    }[kind]  # fmt: skip
    files = [mutate(variants[i % len(variants)], rng) for i in range(400)]
    if kind == "PNG":  # without a right checksum Pillow looks no further
        files += [mended(data) for data in files]
    answers, stderr = sandbox(files, tmp_path, batch=50)
    good = sum(found.startswith("RGB ") for found, _ in answers)
    assert 0 < good < len(files), good
    if kind == "TIFF":  # libtiff's own error lines, which Python cannot hold back
        assert "Warning" not in stderr and "Traceback" not in stderr
    else:
        assert stderr == ""


def mended(data: bytes) -> bytes:
    """A PNG with the signature and right checksums, as far as its chunks can be followed."""
    out, at = b"\x89PNG\r\n\x1a\n", 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out


# --- through the training path ---

SIZE = 32
DATA = config.Data(path="unused", size=SIZE)
WILD = config.Augment(
    hflip=0.5, vflip=0.5, rotate=45.0, translate=0.3, zoom=(0.5, 2.0), brightness=0.5, contrast=0.5, saturation=0.5,
    hue=0.5, randaugment=2, randaugment_magnitude=30, blur=5, erase=0.5,
)  # fmt: skip
FRAME_LAST = config.Augment(
    **vars(WILD) | {"order": ("rotate", "affine", "randaugment", "blur", "jitter", "hflip", "vflip", "frame", "erase")}
)
MEAN = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The zoo shared out to two classes, eight good images in each."""
    root = tmp_path_factory.mktemp("zoo")
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(8):
                (root / split / label / f"good_{i}.jpg").write_bytes(JPEG)
    for i, (name, (data, _)) in enumerate(ZOO.items()):
        (root / "train" / "ab"[i % 2] / name).write_bytes(data)
    return load(config.Data(path=str(root), size=SIZE), 0).train


@pytest.fixture(scope="module")
def bad(rows: Dataset, answers: dict[str, tuple[str, int]]) -> dict[int, str]:
    """Rows and reasons of the broken ones, as found in the sandbox."""
    found = {row: answers.get(Path(id).name, ("RGB", 0))[0] for row, id in enumerate(rows["id"])}
    assert len(found) == len(ZOO) + 16
    return {row: text.removeprefix("bad: ") for row, text in found.items() if text.startswith("bad: ")}


@pytest.mark.parametrize("augment", [config.Augment(), WILD, FRAME_LAST], ids=["default", "wild", "frame last"])
def test_an_epoch_of_the_zoo(rows: Dataset, bad: dict[int, str], augment: config.Augment) -> None:
    for exact_order in (False, True):  # both paths call the same images broken, for the same reasons
        draws = TrainDataset(images_of(rows), training_ops(augment, DATA, MEAN), SIZE, 0, exact_order=exact_order)
        samples = [load_batch(draws, [draw]) for draw in range(len(rows))]
        assert {row for sample in samples for row, _ in sample.corrupt} == bad.keys()
        for draw, sample in enumerate(samples):
            asked = draws.sampler.row(draw)
            assert sample.pixels.shape == (1, 3, SIZE, SIZE) and sample.rows[0] not in bad
            assert sample.labels.tolist() == [rows[asked]["label"]] == [rows[sample.rows[0]]["label"]]
            assert all(bad[row] == reason for row, reason in sample.corrupt)
            assert (sample.corrupt[0][0] if sample.corrupt else sample.rows[0]) == asked
        for draw in range(len(rows) - 1, 0, -7):  # the same from another object, in another order
            other = TrainDataset(images_of(rows), training_ops(augment, DATA, MEAN), SIZE, 0, exact_order=exact_order)
            again = load_batch(other, [draw])
            assert again.pixels.equal(samples[draw].pixels) and again[2:] == samples[draw][2:]


def test_a_loader_process_sends_the_same(rows: Dataset, bad: dict[int, str]) -> None:
    steps = MicroBatchSampler(0, len(rows) // 16 + 1, 16, 8, range(2))
    draws = TrainDataset(images_of(rows), training_ops(WILD, DATA, MEAN), SIZE, 0)
    broken: dict[int, str] = {}
    count = 0
    for one, other in zip(*(batches(draws, steps, workers, 8) for workers in (0, 1)), strict=True):
        assert one.pixels.equal(other.pixels) and one.labels.equal(other.labels) and one[2:] == other[2:]
        broken |= dict(other.corrupt)
        count += 1
    assert count == len(steps) and broken == bad


@pytest.mark.parametrize("view", ["identity", "hflip", "rotate", "crop"])
@pytest.mark.parametrize("frame", ["center", "squash"])
def test_broken_evaluation_images_are_black_and_named(
    rows: Dataset, bad: dict[int, str], view: config.View, frame: str
) -> None:
    data = config.Data(path="unused", size=SIZE, eval_frame=frame)  # type: ignore[arg-type]  # one of its two values
    batch = load_batch(ViewDataset(images_of(rows), view_ops(view, data), SIZE, 0, view), range(len(rows)))
    assert batch.rows == list(range(len(rows))) and batch.labels.tolist() == rows["label"][:]
    assert batch.pixels.shape[1:] == (3, SIZE, SIZE) and batch.corrupt == sorted(bad.items())
    assert not batch.pixels[sorted(bad)].any()


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (30_000, 1), (1, 30_000)], ids=lambda shape: "{}x{}".format(*shape))
def test_strips_survive_every_operation(shape: tuple[int, int]) -> None:
    image = decode(ZOO["strip_{}x{}.png".format(*shape)][0])
    for frame in ("crop", "center", "squash"):
        for augment in (WILD, FRAME_LAST):
            operations = training_ops(config.Augment(**vars(augment) | {"frame": frame}), DATA, MEAN)
            for seed in range(20):
                params = make_params(operations, *image.size, np.random.default_rng(seed))
                pixels, (top, left, height, width) = apply(image, params)
                assert pixels.shape == (3, SIZE, SIZE) and top + height <= SIZE and left + width <= SIZE
    drawn = set()
    for seed in range(20):
        every = (RandAugment(n=14, magnitude=30 * (seed % 2), fill=(1, 2, 3)),)
        params = make_params(every, *image.size, np.random.default_rng(seed))
        drawn |= {param.name for param in params if isinstance(param, RandOp)}
        assert apply(image, params)[0].shape == (3, *shape[::-1])
    assert drawn == set(RAND_OPS)


# --- things in a folder that are no files ---


class Hangs(Exception):
    """Not TimeoutError: that is an OSError, which is taken for a broken image."""


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reasons(root: Path, make: Callable[[Path], object]) -> dict[str, str]:
    """Load a folder in which something was put as a/x.jpg: why an image of x.jpg is broken, empty where it is not."""
    for label in "ab":
        for split in ("train", "val"):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "good.jpg").write_bytes(JPEG)
    make(root / "train" / "a" / "x.jpg")
    found = {}
    rows = load(config.Data(path=str(root), size=SIZE), 0).train
    with patience(3):
        for name, data in zip(rows["id"], images_of(rows).read(range(len(rows))), strict=True):
            if "x.jpg" in name:
                try:
                    found[name] = str(data) if isinstance(data, CorruptImageError) else ""
                    if not found[name]:
                        decode(bytes(data))
                except CorruptImageError as error:
                    found[name] = str(error)
    return found


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "inside.jpg").write_bytes(JPEG)

    assert reasons(tmp_path, make) == {"train/a/x.jpg/inside.jpg": ""}


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path: Path) -> None:
    gone = reasons(tmp_path / "1", lambda path: path.symlink_to(path.parent / "gone"))
    assert gone == {"train/a/x.jpg": "cannot be read: No such file or directory"}
    assert reasons(tmp_path / "2", lambda path: path.symlink_to(path.parent.parent)) == {}


def test_a_link_to_itself_is_one_broken_image(tmp_path: Path) -> None:
    found = reasons(tmp_path, lambda path: path.symlink_to(path))
    assert found == {"train/a/x.jpg": "cannot be read: Too many levels of symbolic links"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    assert all(reasons(tmp_path, os.mkfifo).values())  # not listed, or broken


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_broken_image(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.write_bytes(JPEG)
        path.chmod(0)

    assert reasons(tmp_path, make) == {"train/a/x.jpg": "cannot be read: Permission denied"}
