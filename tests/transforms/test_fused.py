"""The fused path against its oracle: the same drawn parameters, the same picture but for what its table says."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from cls import recipes
from cls.runtime.rng import generator
from cls.transforms import fused, ops, reference
from cls.transforms import params as d
from cls.transforms.decode import CorruptImageError, decode
from cls.transforms.geometry import IDENTITY, arrange, compose, inverse
from cls.transforms.jpeg import Decoded, Decoder, Jpeg
from cls.transforms.ops import Op, training_ops, view_ops
from cls.transforms.pipeline import Renderer

BLACK, GREY = (0, 0, 0), (124, 116, 104)
SIZE = 224
CROP = ops.RandomResizedCrop(size=SIZE, scale=(0.08, 1.0))
SQUASH = ops.Squash(size=SIZE)


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "JPEG", "quality": 90} | options))  # type: ignore[arg-type]  # Pillow's options
    return buffer.getvalue()


def picture(number: int, width: int = 400, height: int = 533) -> Image.Image:
    """Like a photo: colours that vary slowly, edges, fine texture; full range of brightness."""
    rng = np.random.default_rng(number)
    layers = np.zeros((height, width, 3))
    for cells, strength in ((3, 90), (12, 45), (50, 18), (200, 8)):
        cell = max(1, width // cells)
        colour = 1.0 if cells < 50 else 0.0  # texture is grey, as in photos
        noise = rng.normal(size=(height // cell + 2, width // cell + 2, 3))
        noise = colour * noise + (1 - colour) * noise[..., :1]
        small = Image.fromarray(np.uint8(np.clip(noise * 40 + 128, 0, 255)))
        layers += (np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) - 128.0) / 40 * strength
    layers[height // 3 : height // 2, width // 4 : width // 2] += 60
    return Image.fromarray(np.uint8(np.clip(layers + 128, 0, 255)))


PICTURES = [encode(picture(i)) for i in range(8)]


def apply_fused(
    image: Jpeg | Decoded, params: tuple[d.Param, ...], decoder: Decoder
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Final pixels [h, w, 3] and the box to erase."""
    plan = arrange(params, image.width, image.height)
    return fused.carry_out(image, plan, decoder), plan.box


def both(data: bytes, operations: tuple[Op, ...], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [h, w, 3] by the fused path and by the reference, with the same parameters; the erased area agrees."""
    decoder = Decoder()
    image = decoder.open(data)
    params = d.make_params(operations, image.width, image.height, generator(0, "test", number))
    ours, area = apply_fused(image, params, decoder)
    theirs, expected = reference.apply(decode(data), params)
    assert area == expected
    return ours.astype(int), theirs.permute(1, 2, 0).numpy().astype(int)


def difference(data: list[bytes], operations: tuple[Op, ...]) -> float:
    """Mean absolute difference in grey levels over pictures."""
    found = []
    for number, one in enumerate(data):
        ours, theirs = both(one, operations, number)
        assert ours.shape == theirs.shape
        found.append(np.abs(ours - theirs).mean())
    return float(np.mean(found))


def jitter(**strengths: float) -> ops.Jitter:
    return ops.Jitter(**({"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | strengths))


ROTATE, SHIFT = ops.Rotate(degrees=15, fill=BLACK), ops.Affine(translate=0.1, zoom=(0.9, 1.1), fill=BLACK)
ALL = jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)

# operations: bound of the mean difference in grey levels, about 1.5 times what was measured on pictures and photos
BOUNDS: dict[str, tuple[tuple[Op, ...], float]] = {
    "crop": ((CROP,), 0.4),
    "squash": ((SQUASH,), 0.4),
    "centre": ((ops.ResizeShort(size=256), ops.CenterCrop(size=SIZE)), 0.4),
    "flips, then squash": ((ops.HFlip(p=0.5), ops.VFlip(p=0.5), SQUASH), 0.4),
    "flips, then crop": ((ops.HFlip(p=1.0), ops.VFlip(p=1.0), CROP), 0.5),
    "flips between resize and crop": ((ops.ResizeShort(size=256), ops.HFlip(p=1.0), ops.CenterCrop(size=SIZE)), 0.4),
    "rotation": ((CROP, ROTATE), 4.5),
    "rotation, then squash": ((ROTATE, SQUASH), 3.0),
    "rotation, then crop": ((ROTATE, CROP), 4.0),
    "rotation between resize and crop": ((ops.ResizeShort(size=256), ROTATE, ops.CenterCrop(size=SIZE)), 4.5),
    "shift and zoom": ((CROP, SHIFT), 4.5),
    "rotation, shift, squash": ((ROTATE, SHIFT, SQUASH), 4.0),
    "brightness": ((CROP, jitter(brightness=0.4)), 1.0),
    "contrast": ((CROP, jitter(contrast=0.4)), 1.0),
    "saturation": ((CROP, jitter(saturation=0.4)), 1.0),
    "hue": ((CROP, jitter(hue=0.2)), 1.8),
    "jitter": ((CROP, ALL), 2.3),
    "jitter, then squash": ((ALL, SQUASH), 2.3),
    "blur": ((CROP, ops.Blur(kernel=3)), 0.4),
    "blur, then squash": ((ops.Blur(kernel=3), SQUASH), 0.8),
    "wide blur, then squash": ((ops.Blur(kernel=9), SQUASH), 1.0),
    "RandAugment": ((CROP, ops.RandAugment(n=2, magnitude=10, fill=BLACK)), 2.5),
    "RandAugment, then squash": ((ops.RandAugment(n=2, magnitude=10, fill=BLACK), SQUASH), 4.5),
    "TrivialAugment": ((CROP, ops.TrivialAugment(fill=BLACK)), 2.5),
    "TrivialAugment, then squash, grey corners": ((ops.TrivialAugment(fill=GREY), SQUASH), 4.5),
    "strong RandAugment, grey corners": ((CROP, ops.RandAugment(n=3, magnitude=20, fill=GREY)), 3.5),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_each_operation_stays_within_its_bound(name: str) -> None:
    operations, bound = BOUNDS[name]
    assert 0 < difference(PICTURES, operations) <= bound


RECIPES = {"attention-gate": 0.4, "cbam-mixup": 5.5, "mlp-head": 5.0, "se-resnext": 2.5, "resnet50-mlp": 6.5}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_stays_within_its_bound(name: str) -> None:
    run = recipes.get(name)
    operations = training_ops(run.augment, run.data, (0.485, 0.456, 0.406))
    assert 0 < difference(PICTURES, operations) <= RECIPES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_stays_within_its_bound_on_photos(name: str, clothing: Path) -> None:
    run = recipes.get(name)
    operations = training_ops(run.augment, run.data, (0.485, 0.456, 0.406))
    photos = sorted(clothing.glob("train/*/*.jpg"))[::250]
    assert len(photos) >= 10
    assert difference([photo.read_bytes() for photo in photos], operations) <= RECIPES[name]


def test_control_other_parameters_give_another_image() -> None:
    """The bounds mean something: what another seed makes of the same image is far outside of them."""
    run = recipes.get("resnet50-mlp")
    operations = training_ops(run.augment, run.data, (0.485, 0.456, 0.406))
    apart = []
    for number, data in enumerate(PICTURES):
        ours, _ = both(data, operations, number)
        _, theirs = both(data, operations, number + 1000)
        apart.append(np.abs(ours - theirs).mean())
    assert np.mean(apart) > 4 * RECIPES["resnet50-mlp"]


@pytest.mark.parametrize("view", ["identity", "hflip", "rotate", "crop"])
@pytest.mark.parametrize("frame", ["center", "squash"])
def test_evaluation_views(view: str, frame: str) -> None:
    from cls.config import Data

    operations = view_ops(view, Data(eval_frame=frame))  # type: ignore[arg-type]  # of their values
    assert difference(PICTURES[:4], operations) <= (4.5 if view == "rotate" else 0.5)


# --- geometry ---


def test_a_map_and_its_inverse() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = tuple(rng.normal(size=6))
        assert compose(matrix, inverse(matrix)) == pytest.approx(IDENTITY, abs=1e-9)


@pytest.mark.parametrize(
    "param",
    [
        d.Rotation(33.0, BLACK), d.Shift(40, -25, 0.8, BLACK), d.RandOp("ShearX", 0.2, BLACK),
        d.RandOp("ShearY", -0.25, BLACK), d.RandOp("TranslateX", 31.0, BLACK), d.RandOp("TranslateY", -31.0, BLACK),
        d.RandOp("Rotate", -20.0, BLACK), d.Flip("horizontal"), d.Flip("vertical"),
    ],
    ids=str,
)  # fmt: skip
def test_pixels_go_where_torchvision_puts_them(param: d.Param) -> None:
    """A smooth ramp: half a pixel in the wrong direction would show as half a grey level everywhere."""
    y, x = np.mgrid[0:120, 0:200]
    ramp = Image.fromarray(np.uint8(np.stack([x + 20, 2 * y + 10, 220 - x], 2)))
    ours, _ = apply_fused(Decoded(np.array(ramp)), (param,), Decoder())
    theirs = reference.apply(ramp, (param,))[0].permute(1, 2, 0).numpy()
    shown = ((theirs.min(2) > 0) & (ours.min(2) > 0)).astype(np.uint8)
    inside = cv2.erode(shown, np.ones((5, 5)), borderValue=0) > 0  # edges are blended here, not there
    apart = (ours.astype(int) - theirs.astype(int))[inside]
    assert inside.mean() > 0.3
    assert abs(apart.mean()) < 0.2 and np.abs(apart).max() <= 3
    assert ((theirs.max(2) == 0) == (ours.max(2) == 0)).mean() > 0.99  # the same corners are exposed


@pytest.mark.parametrize("width, height", [(400, 533), (401, 534), (225, 224), (120, 90), (1003, 757), (2001, 300)])
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("first", ["crop", "resize"])
def test_a_warp_that_also_reduces_does_not_shift(width: int, height: int, where: str, first: str) -> None:
    """A smooth ramp, reduced (by halves, too) and enlarged: it stays where resizing alone puts it, to its last line."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.uint8(np.stack([x / width * 250, y / height * 250, (x / width + y / height) * 125], 2))
    flipped = (d.Flip("vertical"), d.Rotation(180.0, BLACK), d.Flip("horizontal"))  # a move that changes nothing
    cut: tuple[d.Param, ...] = (d.Crop(10, 6, width - 21, height - 11), d.Resize(SIZE, SIZE))
    if first == "resize":  # then the crop begins between pixels
        wide, high = round(1.14 * SIZE), round(1.31 * SIZE)
        cut = (d.Resize(wide, high), d.Crop((wide - SIZE) // 2, (high - SIZE) // 2, SIZE, SIZE))
    params = (*flipped, *cut) if where == "before" else (*cut, *flipped)
    assert arrange(params, width, height).frames
    apart = []
    for image in (ramp, 250 - ramp):  # halves are rounded up in both; a shift would have the other sign
        ours, _ = apply_fused(Decoded(image), params, Decoder())
        apart.append(ours - reference.apply(Image.fromarray(image), cut)[0].permute(1, 2, 0).numpy().astype(int))
    assert np.abs((apart[0] - apart[1]).mean(axis=(0, 1)) / 2).max() < 0.2  # half a pixel would be 0.55
    assert np.abs(apart).max() <= 3


@pytest.mark.parametrize("angle", [0.1, 9.0, 90.0, 181.0])
@pytest.mark.parametrize("blurred", [False, True])
def test_the_part_of_a_long_image_is_warped_as_the_whole(
    angle: float, blurred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside, across an edge or a corner, and outside; a blur makes the warp extend the edge."""
    image = Decoded(np.array(picture(5, 300, 500)))
    for left, top in ((140, 240), (-8, 300), (280, -20), (700, 100)):
        params = (d.Rotation(angle, BLACK), d.Crop(left, top, 32, 32), *([d.Gaussian(5, 1.0)] if blurred else []))
        assert arrange(params, 300, 500).frames
        found = []
        for longest in (499, 32_766):
            monkeypatch.setattr(fused, "MAX_SIDE", longest)
            found.append(apply_fused(image, params, Decoder())[0].astype(int))
        assert np.abs(found[0] - found[1]).max() <= 1  # the same but for the matrix's rounding
    monkeypatch.setattr(fused, "MAX_SIDE", 499)
    part, _ = fused._sampled(image.pixels, np.array([[1.0, 0.0, 100.0], [0.0, 1.0, 200.0]]), 32, 32)
    assert max(part.shape) < 40


@pytest.mark.parametrize("side", [150, 224, 300, 400, 700])
def test_no_line_is_left_where_a_moved_picture_ends(side: int) -> None:
    """White on black, moved on black: black stays black, also where the outermost pixels are blended."""
    image = np.zeros((side, side, 3), np.uint8)
    image[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    moves = (d.Rotation(9.0, BLACK), d.Shift(14, -11, 1.0, BLACK))
    for cut in ((d.Resize(SIZE, SIZE),), (d.Resize(256, 256), d.Crop(16, 16, SIZE, SIZE))):
        ours, _ = apply_fused(Decoded(image), (*cut, *moves), Decoder())
        theirs = reference.apply(Image.fromarray(image), (*cut, *moves))[0].permute(1, 2, 0).numpy()
        black = cv2.dilate(theirs.max(2), np.ones((7, 7))) == 0
        assert black.mean() > 0.4 and ours[black].max() == 0


@pytest.mark.parametrize("side", [49, 66, 97, 130, 199, 260])
def test_images_decoded_smaller_are_as_sharp_as_whole_ones(side: int) -> None:
    """Mean difference between neighbours: a validation image blurred by 5 % costs up to a point of accuracy."""
    found = []
    for number, data in enumerate(PICTURES):
        ours, theirs = both(data, (ops.Squash(size=side),), number)
        found.append([float(np.abs(np.diff(pixels.mean(2), axis=1)).mean()) for pixels in (ours, theirs)])
    ours, theirs = np.mean(found, axis=0)
    assert 0.97 < ours / theirs < 1.02


def test_reduced_images_are_as_sharp_as_the_reference() -> None:
    """Mean slope from pixel to pixel, against that of the antialiased crop alone: neither grainy nor blurred."""

    def slope(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels.astype(float).mean(2), axis=0)).mean())

    turn = d.Rotation(0.1, BLACK)
    for scale in (1.0, 1.3, 1.6, 1.9, 2.2, 2.6, 3.4):
        side = round(SIZE * scale)
        cut = (d.Crop(0, 0, side, side), d.Resize(SIZE, SIZE))
        found = []
        for number in range(4):
            image = Image.fromarray(np.array(picture(number, 800, 800)))
            ours, _ = apply_fused(Decoded(np.array(image)), (*cut, turn), Decoder())
            theirs = reference.apply(image, cut)[0].permute(1, 2, 0).numpy()
            found.append(slope(ours) / slope(theirs))
        assert 0.75 < np.mean(found) < 1.25, (scale, found)


def test_all_moves_are_one_warp_and_every_move_exposes_its_corners() -> None:
    """Two moves in one resampling: what the second one exposes is filled though the first had pixels for it."""
    white = Image.new("RGB", (200, 200), "white")
    moves = (d.Rotation(30.0, (255, 0, 0)), d.Shift(60, 0, 1.0, (0, 0, 255)), d.Flip("horizontal"))
    plan = arrange(moves, 200, 200)
    assert len(plan.frames) == 2 and not plan.cuts
    ours, _ = apply_fused(Decoded(np.array(white)), moves, Decoder())
    theirs = reference.apply(white, moves)[0].permute(1, 2, 0).numpy()
    for colour in ((255, 255, 255), (255, 0, 0), (0, 0, 255)):
        a, b = (ours == colour).all(2), (theirs == colour).all(2)
        assert b.mean() > 0.02 and (a & b).sum() > 0.94 * b.sum() and (a & ~b).mean() < 0.01


def test_later_colours_change_earlier_corners() -> None:
    white = Image.new("RGB", (100, 100), "white")
    dim = d.Colour((("brightness", 0.5),))
    steps = (d.Rotation(45.0, (200, 100, 50)), dim, d.Shift(30, 0, 1.0, (200, 100, 50)))
    ours, _ = apply_fused(Decoded(np.array(white)), steps, Decoder())
    assert ours[12, 36].tolist() == [100, 50, 25] and ours[50, 5].tolist() == [200, 100, 50]
    assert ours[50, 70].tolist() == [128, 128, 128]


def test_only_what_is_exposed_is_painted() -> None:
    """Whole pixels: no row or column more than the reference paints."""
    white = Image.new("RGB", (64, 48), "white")
    for move in (d.RandOp("TranslateX", 5.0, BLACK), d.Shift(0, -7, 1.0, BLACK), d.Shift(3, 2, 1.0, BLACK)):
        moves = (d.Rotation(360.0, BLACK), move)  # a first move that exposes nothing
        ours, _ = apply_fused(Decoded(np.array(white)), moves, Decoder())
        theirs = reference.apply(white, moves)[0].permute(1, 2, 0).numpy()
        assert len(arrange(moves, 64, 48).frames) == 2
        assert np.array_equal(ours, theirs), move


def test_a_reduced_image_is_not_stretched() -> None:
    """A side that k does not divide: its last reduced pixel reaches beyond the image, which nothing may show."""
    y, x = np.mgrid[0:1801, 0:1793]
    ramp = encode(Image.fromarray(np.uint8(np.stack([x / 8, y / 8, (x + y) / 16], 2))), quality=100)
    ours, theirs = both(ramp, (ops.Squash(size=224),), 0)
    apart = (ours - theirs)[:, :, 0].mean(0)  # by column: a stretch would grow to 0.87 of a pixel, which is 0.87
    assert np.abs(apart[:-1]).max() < 0.3


@pytest.mark.parametrize("width, height", [(400, 533), (533, 400), (1003, 757), (120, 90)])
def test_a_crop_of_a_resized_image_is_that_of_all_of_it(width: int, height: int) -> None:
    """Rows that will be cut off are not made; the others are what they are in the whole."""
    image = Decoded(np.array(picture(5, width, height)))
    to = d.Resize(320, 240) if width > height else d.Resize(240, 320)
    whole, _ = apply_fused(image, (to,), Decoder())
    assert np.abs(whole.astype(int) - np.asarray(Image.fromarray(image.pixels).resize(whole.shape[1::-1], 2))).max() < 2
    boxes = [(0, 0, 50, 60), (17, 31, 200, 200), (to.height - 40, 3, 40, 200)]
    if height < to.height:  # an enlarged image of which as many rows are made as it has
        boxes.append((height - 50, 0, 50, 60))
    for top, left, high, wide in boxes:
        cut, _ = apply_fused(image, (to, d.Crop(left, top, wide, high)), Decoder())
        assert np.array_equal(cut, whole[top : top + high, left : left + wide])
        again, _ = apply_fused(image, (to, d.Crop(left, top, wide, high), d.Resize(30, 30)), Decoder())
        assert np.array_equal(again, apply_fused(Decoded(cut), (d.Resize(30, 30),), Decoder())[0])


def test_images_of_less_than_a_block() -> None:
    for side in (1, 2, 5, 7):
        image = picture(3, 200, 200).resize((side, side))
        data = encode(image, quality=100, subsampling=0)
        assert np.array_equal(Decoder().pixels(Decoder().open(data))[0][..., :3], np.asarray(decode(data)))


# --- JPEG ---


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("shrinks", [False, True])
def test_four_channels_have_the_values_of_three(k: int, shrinks: bool) -> None:
    for data in [*PICTURES[:2], encode(picture(4, 333, 257), subsampling=2), encode(picture(4, 90, 70), subsampling=0)]:
        image = Decoder().open(data)
        least = {"min_factor": k, "min_width": -(-image.width // k), "min_height": -(-image.height // k)}
        three = simplejpeg.decode_jpeg(data, "RGB", fastupsample=shrinks, **(least if k > 1 else {}))
        four, reduced = Decoder().pixels(image, k, shrinks)
        assert reduced == k and four.shape[2] == 4 and np.array_equal(four[..., :3], three)
        to = d.Resize(50, 40), 50 / three.shape[1], 40 / three.shape[0], (0, 40)
        assert np.array_equal(fused._resize(four, *to)[..., :3], fused._resize(three, *to))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_by_the_fast_decoder(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(1, 320, 200), exif=exif)
    image = Decoder().open(data)
    assert isinstance(image, Jpeg) and (image.width, image.height) == decode(data).size
    for k in (1, 2):
        pixels, reduced = Decoder().pixels(image, k)
        pixels = pixels[..., :3]
        upright = decode(data).reduce(k)
        assert reduced == k and pixels.shape[:2] == (upright.height, upright.width)
        assert np.abs(pixels.astype(int) - np.asarray(upright).astype(int)).mean() < 2.0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flipped", [False, True])
def test_a_reduced_crop_does_not_move(orientation: int, flipped: bool) -> None:
    """Sides that no power of two divides: the decoder's blocks begin at the stored corner, crops at the upright one."""
    y, x = np.mgrid[0:757, 0:1003]
    ramp = Image.fromarray(np.uint8(np.stack([x / 4, y / 4, (x + y) / 8], 2)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    crop = ops.RandomResizedCrop(size=64, scale=(0.08, 1.0))
    operations = (ops.HFlip(p=1.0), ops.VFlip(p=1.0), crop) if flipped else (crop,)
    data = [encode(ramp, exif=exif)] * 6
    assert difference(data, operations) < 0.3
    # from pixels at 1/8 (rounded twice; OpenCV 4 has steps of 1/32 pixel: 0.32), 1/4, 1/2 to a warp
    for size, bound in ((64, 0.33), (150, 0.12), (300, 0.12)):
        bent = (ops.RandomResizedCrop(size=size, scale=(0.5, 1.0)), ops.Rotate(degrees=1e-6, fill=BLACK))
        for number in range(6):
            ours, theirs = both(data[0], (*operations[:-1], *bent), number)
            assert np.abs((ours - theirs).mean((0, 1))).max() < bound  # a pixel of the source is 0.25


def test_orientation_behind_fill_bytes() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(1, 320, 200), exif=exif)
    at = data.index(b"\xff\xe1")
    filled = data[:at] + b"\xff\xff" + data[at:]
    image = Decoder().open(filled)
    assert isinstance(image, Jpeg) and (image.width, image.height) == decode(filled).size == (200, 320)


def test_orientation_in_xmp_alone() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(picture(2, 120, 80), xmp=xmp)
    image = Decoder().open(data)
    assert (image.width, image.height) == decode(data).size == (80, 120)


@pytest.mark.parametrize("name", ["png", "grey", "cmyk", "progressive", "444", "webp", "gif"])
def test_every_kind_of_file_looks_as_pillow_shows_it(name: str) -> None:
    image = picture(3, 90, 70)
    data = {
        "png": lambda: encode(image, format="PNG"),
        "grey": lambda: encode(image.convert("L")),
        "cmyk": lambda: encode(image.convert("CMYK")),
        "progressive": lambda: encode(image, progressive=True),
        "444": lambda: encode(image, subsampling=0),
        "webp": lambda: encode(image, format="WEBP"),
        "gif": lambda: encode(image.quantize(), format="GIF"),
    }[name]()
    decoder = Decoder()
    found = decoder.open(data)
    pixels, _ = decoder.pixels(found)
    assert isinstance(found, Jpeg) == (name in ("grey", "progressive", "444"))
    assert np.abs(pixels[..., :3].astype(int) - np.asarray(decode(data)).astype(int)).mean() < 1.0


def test_only_pillow_decides_what_is_corrupt() -> None:
    whole = PICTURES[0]
    decoder = Decoder()
    trailing, cut = whole + b"more", whole[: len(whole) // 2]
    assert np.array_equal(decoder.pixels(decoder.open(trailing))[0].copy(), decoder.pixels(decoder.open(whole))[0])
    assert isinstance(decoder.open(cut), Jpeg)  # its header is whole
    with pytest.raises(CorruptImageError, match="truncated"):
        decoder.pixels(decoder.open(cut))
    for nothing in (b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1\x00"):
        with pytest.raises(CorruptImageError):
            decoder.open(nothing)


def test_reduced_decoding_leaves_twice_the_target_and_not_less() -> None:
    sizes = ((895, 1800), (896, 896), (1791, 4000), (1792, 1792), (3584, 8000))
    assert [d.reduction(*size, 224, 224) for size in sizes] == [1, 2, 2, 4, 8]
    crops = []
    for number in range(200):
        crop = d.make_params((CROP,), 3200, 2400, generator(0, number))[0]
        assert isinstance(crop, d.Crop)
        k = d.reduction(crop.width, crop.height, SIZE, SIZE)
        assert (all(value % k == 0 for value in crop) and min(crop.width, crop.height) >= 2 * k * SIZE - k) or k == 1
        crops.append(k)
    assert {1, 2, 4} <= set(crops)


def test_large_photos_are_as_faithful_as_another_resize_filter() -> None:
    """Decoding at 1 / 2 and 1 / 4 costs less than what bicubic in place of bilinear changes."""
    photo = encode(picture(5, 1600, 1200))
    reduced = difference([photo] * 12, (CROP,))
    image = decode(photo)
    bicubic = []
    for number in range(12):
        params = d.make_params((CROP,), 1600, 1200, generator(0, "test", number))
        box = params[0]
        assert isinstance(box, d.Crop)
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        a, b = (np.asarray(image.resize((SIZE, SIZE), how, edges)).astype(int)
                for how in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR))  # fmt: skip
        bicubic.append(np.abs(a - b).mean())
    assert 0 < reduced < float(np.mean(bicubic)) + 0.5


def test_the_buffer_is_used_again_and_a_result_does_not_change_with_the_next_image() -> None:
    both, other = Renderer((CROP,), False), Renderer((CROP,), False)
    first, _ = both.render(both.plan(PICTURES[0], generator(0)))
    kept = first.copy()
    waiting = [both.plan(PICTURES[i], generator(i)) for i in (1, 2)]
    one, _ = both.render(waiting[0])
    assert np.array_equal(first, kept)  # a resized image is its own
    again, _ = other.render(other.plan(PICTURES[1], generator(1)))
    assert np.array_equal(one, again)


def test_equalize_and_autocontrast_are_pillows() -> None:
    image = picture(6, 224, 224)
    dark = Image.fromarray((np.asarray(image) // 2 + 20).astype(np.uint8))
    for name, theirs in (("Equalize", ImageOps.equalize), ("AutoContrast", ImageOps.autocontrast)):
        ours, _ = apply_fused(Decoded(np.array(dark)), (d.RandOp(name, 0.0, BLACK),), Decoder())
        assert np.abs(ours.astype(int) - np.asarray(theirs(dark)).astype(int)).max() <= 1


def test_header_and_pixels_come_from_the_decoder_that_is_strict() -> None:
    with pytest.raises(ValueError, match="Premature end"):
        simplejpeg.decode_jpeg(PICTURES[0][:-2000])
