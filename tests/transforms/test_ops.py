"""Parameters have torchvision's distributions; executing them gives torchvision's pixels."""

import io
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import autoaugment, v2
from torchvision.transforms import transforms as v1
from torchvision.transforms.v2 import functional as tv

from cls import config
from cls.runtime.rng import generator
from cls.transforms import ops
from cls.transforms import params as d
from cls.transforms.decode import decode
from cls.transforms.ops import training_ops, view_ops
from cls.transforms.params import make_params
from cls.transforms.reference import apply

MEAN = (0.485, 0.456, 0.406)
GREY = (124, 116, 104)
BLACK = (0, 0, 0)
NEAREST = tv.InterpolationMode.NEAREST
DRAWS = 20_000
# A true hypothesis fails one such test in 100,000; all are seeded anyway, so none can flicker.
ALPHA = 1e-5

# The five published systems (RECIPES.md), written by hand.
RECIPES = {
    "attention-gate": (
        config.Augment(order=("hflip", "frame"), frame="center", hflip=0.5),
        config.Data(size=256, crop_pct=1.0),
        (ops.HFlip(p=0.5), ops.ResizeShort(size=256), ops.CenterCrop(size=256)),
    ),
    "cbam-mixup": (
        config.Augment(
            crop_scale=(0.8, 1.0), hflip=0.5, rotate=15.0, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2
        ),
        config.Data(eval_frame="squash"),
        (
            ops.RandomResizedCrop(size=224, scale=(0.8, 1.0)), ops.HFlip(p=0.5), ops.Rotate(degrees=15.0, fill=BLACK),
            ops.Jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2),
        ),
    ),
    "mlp-head": (
        config.Augment(
            order=("frame", "hflip", "jitter", "rotate", "affine"), hflip=0.5, brightness=0.2, contrast=0.2,
            saturation=0.2, hue=0.1, rotate=10.0, translate=0.1, fill="mean",
        ),
        config.Data(),
        (
            ops.RandomResizedCrop(size=224, scale=(0.08, 1.0)), ops.HFlip(p=0.5),
            ops.Jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1), ops.Rotate(degrees=10.0, fill=GREY),
            ops.Affine(translate=0.1, zoom=(1.0, 1.0), fill=GREY),
        ),
    ),
    "se-resnext": (
        config.Augment(order=("blur", "hflip", "rotate", "frame"), frame="squash", blur=3, hflip=0.5, rotate=15.0),
        config.Data(eval_frame="squash"),
        (ops.Blur(kernel=3), ops.HFlip(p=0.5), ops.Rotate(degrees=15.0, fill=BLACK), ops.Squash(size=224)),
    ),
    "resnet50-mlp": (
        config.Augment(
            order=("hflip", "vflip", "rotate", "affine", "jitter", "randaugment", "frame", "erase"), frame="squash",
            hflip=0.5, vflip=0.2, rotate=15.0, translate=0.1, zoom=(0.9, 1.1), brightness=0.2, contrast=0.2,
            saturation=0.2, hue=0.1, randaugment=2, erase=0.3, erase_scale=(0.02, 0.1),
        ),
        config.Data(eval_frame="squash"),
        (
            ops.HFlip(p=0.5), ops.VFlip(p=0.2), ops.Rotate(degrees=15.0, fill=BLACK),
            ops.Affine(translate=0.1, zoom=(0.9, 1.1), fill=BLACK),
            ops.Jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
            ops.RandAugment(n=2, magnitude=10, fill=BLACK), ops.Squash(size=224), ops.Erase(p=0.3, scale=(0.02, 0.1)),
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A real JPEG where ../shared is present, otherwise one encoded here: smooth colours, an edge and grain."""
    folder = Path(__file__).parents[3] / "shared/data/clothing/test"
    if folder.is_dir():
        return decode(min(folder.iterdir()).read_bytes())
    y, x = np.mgrid[:211, :150]
    grain = np.random.default_rng(0).normal(0, 8, (211, 150, 3))
    rgb = np.stack([x * 1.6, y, 255 - (x + y) * 0.7], -1) + (x > 70)[..., None] * 40 + grain
    buffer = io.BytesIO()
    Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
    return decode(buffer.getvalue())


def many(op: ops.Op, width: int = 300, height: int = 200, n: int = DRAWS) -> list[tuple[d.Param, ...]]:
    rng = generator(1, "test", type(op).__name__)
    return [make_params((op,), width, height, rng) for _ in range(n)]


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def uniform(values: object, low: float, high: float) -> None:
    values = np.asarray(values)
    assert low <= values.min() and values.max() <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > ALPHA


def same(ours: list[float], theirs: list[float]) -> None:
    assert stats.ks_2samp(ours, theirs).pvalue > ALPHA


def share(hits: int, n: int, p: float) -> None:
    assert stats.binomtest(hits, n, p).pvalue > ALPHA, f"{hits} of {n}, expected {p}"


# Which operations a configuration means


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_as_operations(recipe: str) -> None:
    augment, data, expected = RECIPES[recipe]
    assert training_ops(augment, data, MEAN) == expected


def test_operations_at_zero_are_dropped_and_order_is_kept() -> None:
    only_frame = (ops.RandomResizedCrop(size=224, scale=(0.08, 1.0)),)
    assert training_ops(config.Augment(), config.Data(), MEAN) == only_frame
    augment = config.Augment(order=("vflip", "frame", "hflip"), hflip=0.1, vflip=0.2, frame="squash")
    expected = (ops.VFlip(p=0.2), ops.Squash(size=32), ops.HFlip(p=0.1))
    assert training_ops(augment, config.Data(size=32), MEAN) == expected


def test_views() -> None:
    data = config.Data()
    resize, crop = ops.ResizeShort(size=256), ops.CenterCrop(size=224)
    flip, turn = ops.HFlip(p=1.0), ops.Rotate(degrees=10.0, fill=BLACK)
    box, squash = ops.RandomResizedCrop(size=224, scale=(0.8, 1.0)), ops.Squash(size=224)
    assert view_ops("identity", data) == (resize, crop)
    assert view_ops("hflip", data) == (resize, flip, crop)
    assert view_ops("rotate", data) == (resize, turn, crop)
    assert view_ops("crop", data) == (resize, box)
    data = config.Data(eval_frame="squash")
    assert view_ops("identity", data) == (squash,)
    assert view_ops("hflip", data) == (squash, flip)
    assert view_ops("rotate", data) == (squash, turn)
    assert view_ops("crop", data) == (box,)


# Distributions


def test_flips_have_their_frequency() -> None:
    for op, axis in ((ops.HFlip(p=0.5), "horizontal"), (ops.VFlip(p=0.2), "vertical")):
        drawn = many(op)
        assert set(drawn) == {(), (d.Flip(axis),)}
        share(sum(map(bool, drawn)), DRAWS, op.p)
    assert all(many(ops.HFlip(p=1.0), n=1000))


def test_rotation_is_uniform() -> None:
    uniform([param.angle for (param,) in many(ops.Rotate(degrees=15.0, fill=BLACK))], -15, 15)


def test_affine_has_torchvisions_distribution() -> None:
    ours = [param for (param,) in many(ops.Affine(translate=0.1, zoom=(0.9, 1.1), fill=BLACK), n=4000)]
    torch.manual_seed(0)
    params = [v1.RandomAffine.get_params([0, 0], (0.1, 0.1), (0.9, 1.1), None, [300, 200]) for _ in range(4000)]
    for axis, side in ((0, 300), (1, 200)):
        mine = [(p.right, p.down)[axis] for p in ours]
        assert {min(mine), max(mine)} == {-side // 10, side // 10}
        same(mine, [p[1][axis] for p in params])
    uniform([p.scale for p in ours], 0.9, 1.1)
    assert all(isinstance(p.right, int) and isinstance(p.down, int) for p in ours)
    still = many(ops.Affine(translate=0.1, zoom=(1.0, 1.0), fill=BLACK), n=100)
    assert {param.scale for (param,) in still} == {1.0}


def test_jitter_is_uniform_in_every_order() -> None:
    drawn = [param.factors for (param,) in many(ops.Jitter(brightness=0.2, contrast=0.4, saturation=1.5, hue=0.1))]
    for name, low, high in (
        ("brightness", 0.8, 1.2), ("contrast", 0.6, 1.4), ("saturation", 0.0, 2.5), ("hue", -0.1, 0.1)
    ):  # fmt: skip
        uniform([dict(factors)[name] for factors in drawn], low, high)
    orders = Counter(tuple(name for name, _ in factors) for factors in drawn)
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > ALPHA
    (only,) = make_params((ops.Jitter(brightness=0.0, contrast=0.0, saturation=0.3, hue=0.0),), 9, 9, generator(0))
    assert [name for name, _ in only.factors] == ["saturation"]


def test_blur_sigma_is_uniform_and_slivers_stay_sharp() -> None:
    drawn = [param for (param,) in many(ops.Blur(kernel=3))]
    uniform([param.sigma for param in drawn], 0.1, 2.0)
    assert {param.kernel for param in drawn} == {3}
    assert make_params((ops.Blur(kernel=5),), 2, 500, generator(0)) == ()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (100, 900), (31, 30)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.8, 1.0)])
def test_random_resized_crop_has_torchvisions_distribution(width: int, height: int, scale: tuple) -> None:
    n = 2500
    drawn = many(ops.RandomResizedCrop(size=224, scale=scale), width, height, n)
    assert {resize for _, resize in drawn} == {d.Resize(224, 224)}
    ours = [(box.top, box.left, box.height, box.width) for box, _ in drawn]
    image = torch.empty(1, height, width)
    torch.manual_seed(0)
    theirs = [v1.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]
    for top, left, h, w in ours:
        assert 0 <= top <= height - h and 0 <= left <= width - w and h > 0 and w > 0
    for i in range(4):
        same([box[i] for box in ours], [box[i] for box in theirs])
    same([h * w for _, _, h, w in ours], [h * w for _, _, h, w in theirs])
    same([w / h for _, _, h, w in ours], [w / h for _, _, h, w in theirs])


def test_random_resized_crop_falls_back_to_the_centre() -> None:
    op = ops.RandomResizedCrop(size=32, scale=(1.0, 1.0))
    image = torch.empty(1, 20, 1000)
    assert v1.RandomResizedCrop.get_params(image, [1.0, 1.0], [3 / 4, 4 / 3]) == (0, 486, 20, 27)
    assert make_params((op,), 1000, 20, generator(0))[0] == d.Crop(486, 0, 27, 20)
    assert make_params((op,), 20, 1000, generator(0))[0] == d.Crop(0, 486, 20, 27)
    assert make_params((op,), 1, 1, generator(0))[0] == d.Crop(0, 0, 1, 1)


def test_erasing_has_torchvisions_distribution() -> None:
    op = ops.Erase(p=0.3, scale=(0.02, 0.33))
    share(sum(map(bool, many(op))), DRAWS, 0.3)  # 224-like images always find a box
    n = 2500
    for width, height in ((224, 224), (40, 200)):
        ours = [p for p in many(replace(op, p=1.0), width, height, n) if p]
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        boxes = [v1.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(n)]
        theirs = [box for box in boxes if box != (0, 0, height, width)]
        assert abs(len(ours) - len(theirs)) <= 0.02 * n
        for i in range(4):
            mine = [(box.top, box.left, box.height, box.width)[i] for (box,) in ours]
            same(mine, [box[i] for box in theirs])
        for (box,) in ours:
            assert box.top + box.height <= height and box.left + box.width <= width


def test_rand_augment_space_is_torchvisions() -> None:
    assert tuple(v2.RandAugment._AUGMENTATION_SPACE) == d.RAND_OPS
    for magnitude in (0, 1, 9, 10, 17, 30):
        op = ops.RandAugment(n=3, magnitude=magnitude, fill=BLACK)
        drawn = [param for params in many(op, 331, 200, 800) for param in params]
        assert len(drawn) == 2400
        for name, (magnitudes, signed) in v1_space(331, 200).items():
            expected = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            levels = {param.magnitude for param in drawn if param.name == name}
            if name.startswith("Translate"):
                expected = float(int(expected))
            wanted = {expected, -expected} if signed else {expected}
            assert len(levels) == len(wanted)
            np.testing.assert_allclose(sorted(levels), sorted(wanted), rtol=1e-6, atol=1e-6)


def v1_space(width: int, height: int) -> dict[str, tuple[torch.Tensor, bool]]:
    return autoaugment.RandAugment()._augmentation_space(31, (height, width))


def test_rand_augment_translations_are_torchvisions_pixels() -> None:
    """int() of a float32 near a whole number may go either way: same pixels at common sizes."""
    for side in (224, 256, 331, 400, 500, 533):
        space = v1_space(side, side)
        for magnitude in range(31):
            op = ops.RandAugment(n=60, magnitude=magnitude, fill=BLACK)
            drawn = [p for p in make_params((op,), side, side, generator(0)) if p.name == "TranslateX"]
            assert drawn
            assert {abs(p.magnitude) for p in drawn} == {int(float(space["TranslateX"][0][magnitude]))}


def test_rand_augment_frequencies() -> None:
    drawn = [param for params in many(ops.RandAugment(n=2, magnitude=10, fill=GREY)) for param in params]
    counts = Counter(param.name for param in drawn)
    assert stats.chisquare([counts[name] for name in d.RAND_OPS]).pvalue > ALPHA
    for name in (
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
        "Rotate",
        "Brightness",
        "Color",
        "Contrast",
        "Sharpness",
    ):
        share(sum(p.name == name and p.magnitude > 0 for p in drawn), counts[name], 0.5)
    assert {param.fill for param in drawn} == {GREY}


def wide_space() -> dict[str, tuple[torch.Tensor, bool]]:
    return autoaugment.TrivialAugmentWide()._augmentation_space(31)


def test_trivial_augment_draws_every_strength_of_torchvisions_wide_space_equally_often() -> None:
    drawn = [param for (param,) in many(ops.TrivialAugment(fill=GREY), 331, 200, 40_000)]
    counts = Counter(param.name for param in drawn)
    assert {param.fill for param in drawn} == {GREY}
    assert stats.chisquare([counts[name] for name in d.RAND_OPS]).pvalue > ALPHA
    for name, (magnitudes, signed) in wide_space().items():
        own = [param.magnitude for param in drawn if param.name == name]
        levels = [float(level) for level in magnitudes] if magnitudes.ndim else [0.0]
        if name.startswith("Translate"):
            levels = [float(int(level)) for level in levels]
        wanted = Counter(round(sign * level, 4) for level in levels for sign in ((1, -1) if signed else (1,)))
        found = Counter(round(level, 4) for level in own)
        assert set(found) == set(wanted), name
        expected = [len(own) * wanted[level] / wanted.total() for level in wanted]
        if len(wanted) > 1:
            assert stats.chisquare([found[level] for level in wanted], expected).pvalue > ALPHA, name


# Pixels


def test_trivial_augment_kernels_are_torchvisions_at_every_strength(photo: Image.Image) -> None:
    width, height = photo.size
    seen = Counter[str]()
    for param in {param for (param,) in many(ops.TrivialAugment(fill=GREY), width, height, 300)}:
        expected = autoaugment._apply_op(photo, param.name, param.magnitude, NEAREST, list(GREY))
        assert torch.equal(apply(photo, (param,))[0], tensor(expected)), param
        seen[param.name] += 1
    assert set(seen) == set(d.RAND_OPS)


@pytest.mark.parametrize("magnitude", [0, 3, 10, 17, 30])
def test_rand_augment_kernels_are_torchvisions(photo: Image.Image, magnitude: int) -> None:
    width, height = photo.size
    seen = set()
    for fill in (BLACK, GREY):
        op = ops.RandAugment(n=150, magnitude=magnitude, fill=fill)
        for param in {
            p.name + str(p.magnitude > 0): p for p in make_params((op,), width, height, generator(3))
        }.values():
            magnitudes, signed = v1_space(width, height)[param.name]
            level = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            level = math.copysign(level, param.magnitude) if signed else level
            expected = autoaugment._apply_op(photo, param.name, level, NEAREST, list(fill))
            assert torch.equal(apply(photo, (param,))[0], tensor(expected)), param
            seen.add(param.name)
    assert seen == set(d.RAND_OPS)


def test_each_step_is_torchvisions(photo: Image.Image) -> None:
    """Against the older v1 functional API, which shares no dispatch with v2."""
    from torchvision.transforms import functional as F

    bilinear = F.InterpolationMode.BILINEAR
    for param, expected in (
        (d.Crop(3, 5, 70, 90), F.crop(photo, 5, 3, 90, 70)),
        (d.Resize(61, 47), F.resize(photo, [47, 61], bilinear, antialias=True)),
        (d.Flip("horizontal"), F.hflip(photo)),
        (d.Flip("vertical"), F.vflip(photo)),
        (d.Rotation(13.7, GREY), F.rotate(photo, 13.7, NEAREST, fill=list(GREY))),
        (d.Shift(11, -7, 1.08, GREY), F.affine(photo, 0.0, [11, -7], 1.08, [0.0, 0.0], NEAREST, fill=list(GREY))),
        (
            d.Colour((("hue", 0.07), ("contrast", 1.2), ("brightness", 0.85), ("saturation", 1.15))),
            F.adjust_saturation(F.adjust_brightness(F.adjust_contrast(F.adjust_hue(photo, 0.07), 1.2), 0.85), 1.15),
        ),
        (d.Gaussian(3, 1.3), F.gaussian_blur(photo, [3, 3], [1.3, 1.3])),
    ):
        got, box = apply(photo, (param,))
        assert torch.equal(got, tensor(expected)), param
        assert got.dtype == torch.uint8 and box == (0, 0, 0, 0)


def test_framing_equals_torchvisions_transforms(photo: Image.Image) -> None:
    for image in (photo, photo.transpose(Image.Transpose.ROTATE_90), photo.crop((0, 0, 101, 100))):
        for size, crop_pct in ((224, 0.875), (64, 0.95), (33, 1.0)):
            data = config.Data(size=size, crop_pct=crop_pct)
            got, _ = apply(image, make_params(view_ops("identity", data), *image.size, generator(0)))
            expected = v1.Compose([v1.Resize(round(size / crop_pct)), v1.CenterCrop(size)])(image)
            assert torch.equal(got, tensor(expected))
            got, _ = apply(image, make_params(view_ops("hflip", data), *image.size, generator(0)))
            flipped = image.resize(v1.Resize(round(size / crop_pct))(image).size, Image.Resampling.BILINEAR)
            expected = v1.CenterCrop(size)(flipped.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
            assert torch.equal(got, tensor(expected))
        got, _ = apply(
            image,
            make_params(view_ops("identity", config.Data(eval_frame="squash", size=50)), *image.size, generator(0)),
        )
        assert torch.equal(got, tensor(v1.Resize((50, 50))(image)))


def test_a_long_strip_costs_no_memory() -> None:
    strip = Image.new("RGB", (1, 60_000), (1, 2, 3))
    params = make_params(view_ops("identity", config.Data()), *strip.size, generator(0))
    assert max(p.width * p.height for p in params if isinstance(p, d.Resize)) == 256 * 256 * d.LONGEST
    pixels, _ = apply(strip, params)
    assert torch.equal(pixels, torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand(3, 224, 224))


def torchvision_chain(image: Image.Image, params: tuple[d.Param, ...]) -> torch.Tensor:
    """A second executor: torchvision's v1 transform objects and functions, parameters read one by one."""
    from torchvision.transforms import functional as F

    adjust = {"brightness": F.adjust_brightness, "contrast": F.adjust_contrast, "saturation": F.adjust_saturation}
    for p in params:
        if isinstance(p, d.Crop):
            image = image.crop((p.left, p.top, p.left + p.width, p.top + p.height))
        elif isinstance(p, d.Resize):
            image = v1.Resize((p.height, p.width))(image)
        elif isinstance(p, d.Flip):
            image = (v1.RandomHorizontalFlip(1.0) if p.axis == "horizontal" else v1.RandomVerticalFlip(1.0))(image)
        elif isinstance(p, d.Rotation):
            image = v1.RandomRotation((p.angle, p.angle), fill=p.fill)(image)
        elif isinstance(p, d.Shift):
            image = F.affine(image, 0, [p.right, p.down], p.scale, [0, 0], fill=list(p.fill))
        elif isinstance(p, d.Colour):
            for name, factor in p.factors:
                image = F.adjust_hue(image, factor) if name == "hue" else adjust[name](image, factor)
        elif isinstance(p, d.RandOp):
            image = autoaugment._apply_op(image, p.name, p.magnitude, NEAREST, list(p.fill))
        elif isinstance(p, d.Gaussian):
            image = v1.GaussianBlur(p.kernel, (p.sigma, p.sigma))(image)
    return tensor(image)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_on_a_photo(photo: Image.Image, recipe: str) -> None:
    augment, data, _ = RECIPES[recipe]
    chain = training_ops(augment, data, MEAN)
    results, boxes = set(), 0
    for k in range(8):
        params = make_params(chain, *photo.size, generator(0, "augment", k))
        pixels, box = apply(photo, params)
        assert pixels.shape == (3, data.size, data.size) and pixels.dtype == torch.uint8
        assert torch.equal(pixels, torchvision_chain(photo, params))
        again, box_again = apply(photo, make_params(chain, *photo.size, generator(0, "augment", k)))
        assert torch.equal(pixels, again) and box == box_again
        assert 0 <= box[0] <= data.size - box[2] and 0 <= box[1] <= data.size - box[3]
        boxes += box[2] > 0
        results.add(pixels.numpy().tobytes())
    assert len(results) == (2 if recipe == "attention-gate" else 8)  # report 1 only flips
    assert (boxes > 0) == (augment.erase > 0)


def test_order_matters_and_is_respected(photo: Image.Image) -> None:
    augment = config.Augment(frame="squash", hflip=1.0, rotate=30.0, order=("frame", "hflip", "rotate"))
    data = config.Data(size=64)
    params = make_params(training_ops(augment, data, MEAN), *photo.size, generator(0))
    assert [type(p) for p in params] == [d.Resize, d.Flip, d.Rotation]
    swapped = make_params(
        training_ops(replace(augment, order=("rotate", "hflip", "frame")), data, MEAN), *photo.size, generator(0)
    )
    assert [type(p) for p in swapped] == [d.Rotation, d.Flip, d.Resize]
    assert not torch.equal(apply(photo, params)[0], apply(photo, swapped)[0])


def test_rotation_and_shift_corners_have_the_fill_colour(photo: Image.Image) -> None:
    augment = config.Augment(frame="squash", rotate=45.0, fill="mean")
    chain = training_ops(augment, config.Data(size=64), MEAN)
    params = next(p for k in range(99) if abs((p := make_params(chain, *photo.size, generator(k)))[1].angle) > 20)
    assert apply(photo, params)[0][:, 0, 0].tolist() == [round(255 * m) for m in MEAN] == list(GREY)
