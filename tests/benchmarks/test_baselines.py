"""The usual loaders of the benchmarks deliver the right images and labels, augmented as the recipes say."""

from pathlib import Path

import pytest
import torch
from torchvision import transforms as v1

from cls import recipes
from cls.commands.bench.cpu_time import Lists
from cls.commands.bench.run import PUBLISHED
from cls.commands.bench.sample import choose
from cls.data.dataset import train_dataset
from cls.data.loader import load_batch
from cls.data.readers import images_of
from cls.data.sources import load
from cls.models.backbones import input_statistics
from cls.transforms.ops import training_ops
from tests.benchmarks import baselines, bench_pipelines
from tests.commands.test_bench import SMALL, Kept, jpeg, on

ORDERS: dict[str, tuple[list[str], list[str]]] = {  # in the published order; with the frame first
    "attention-gate": (
        ["RandomHorizontalFlip", "Resize", "CenterCrop", "ToTensor", "Normalize"],
        ["Resize", "CenterCrop", "RandomHorizontalFlip", "ToNumpy"],
    ),
    "cbam-mixup": (
        ["RandomResizedCrop", "RandomHorizontalFlip", "RandomRotation", "ColorJitter", "ToTensor", "Normalize"],
        ["RandomResizedCrop", "RandomHorizontalFlip", "RandomRotation", "ColorJitter", "ToNumpy"],
    ),
    "mlp-head": (
        ["RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomRotation", "RandomAffine", "ToTensor",
         "Normalize"],
        ["RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomRotation", "RandomAffine", "ToNumpy"],
    ),
    "se-resnext": (
        ["GaussianBlur", "RandomHorizontalFlip", "RandomRotation", "Resize", "ToTensor", "Normalize"],
        ["Resize", "GaussianBlur", "RandomHorizontalFlip", "RandomRotation", "ToNumpy"],
    ),
    "resnet50-mlp": (
        ["RandomHorizontalFlip", "RandomVerticalFlip", "RandomRotation", "RandomAffine", "ColorJitter", "RandAugment",
         "Resize", "ToTensor", "RandomErasing", "Normalize"],
        ["Resize", "RandomHorizontalFlip", "RandomVerticalFlip", "RandomRotation", "RandomAffine", "ColorJitter",
         "RandAugment", "ToNumpy"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_usual_loaders_do_the_recipes_operations_in_their_order(name: str, photos: Path) -> None:
    run = on(photos, name)
    statistics = input_statistics(run)
    operations = training_ops(run.augment, run.data, statistics[0])
    in_order, first = baselines.published(operations, statistics), baselines.frame_first(operations)
    names = [[type(step).__name__ for step in transform.transforms] for transform in (in_order, first)]
    assert tuple(names) == ORDERS[name]
    split = load(run.data, 0).train
    images, rows, side = images_of(split), [5, 0, 7, 2], run.data.size
    lists = [[0, 1], [2, 3]]
    one = next(baselines.hugging_face(split, rows, in_order, 0)(Lists(lists)))
    assert one["pixels"].shape == (2, 3, side, side) and one["pixels"].dtype == torch.float32
    assert one["label"].tolist() == images.labels[rows[:2]].tolist()
    pixels, labels = next(baselines.timm_style(images, rows, first, 0)(Lists(lists)))
    assert pixels.shape == (2, 3, side, side) and pixels.dtype == torch.uint8
    assert labels.tolist() == images.labels[rows[:2]].tolist()


def test_the_parameters_of_these_operations_are_the_recipes() -> None:
    run = recipes.get("resnet50-mlp")
    statistics = input_statistics(run)
    steps = {type(s).__name__: s for s in baselines.published(training_ops(run.augment, run.data, statistics[0]),
                                                         statistics).transforms}  # fmt: skip
    assert steps["RandomHorizontalFlip"].p == 0.5 and steps["RandomVerticalFlip"].p == 0.2
    assert steps["RandomRotation"].degrees == [-15.0, 15.0] and steps["Resize"].size == (224, 224)
    affine, jitter, erase = (steps[name] for name in ("RandomAffine", "ColorJitter", "RandomErasing"))
    assert (affine.degrees, affine.translate, affine.scale) == ([0.0, 0.0], (0.1, 0.1), (0.9, 1.1))
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.8, 1.2) and jitter.hue == (-0.1, 0.1)
    assert (steps["RandAugment"].num_ops, steps["RandAugment"].magnitude) == (2, 10)
    assert (erase.p, erase.scale, erase.ratio, erase.value) == (0.3, (0.02, 0.1), (0.3, 3.3), "random")
    assert steps["Normalize"].mean == statistics[0] and steps["Normalize"].std == statistics[1]
    crop = baselines.frame_first(training_ops(recipes.get("mlp-head").augment, run.data, statistics[0])).transforms[0]
    assert isinstance(crop, v1.RandomResizedCrop) and (crop.size, crop.scale) == ((224, 224), (0.08, 1.0))


def test_all_loaders_give_the_same_images(photos: Path) -> None:
    """Without anything random, what arrives is the same pixels, but for the decoders' and resizers' rounding."""
    run = on(photos, "se-resnext", augment={"blur": 0, "hflip": 0.0, "rotate": 0.0}, data={"size": 32}, train=SMALL)
    splits = load(run.data, run.seed)
    images, statistics = images_of(splits.train), input_statistics(run)
    chosen, corrupt = choose(images, run.seed, False, 8)
    assert corrupt == 0 and [one.sample_index for one in chosen] == list(range(8))
    operations = training_ops(run.augment, run.data, statistics[0])
    rows, positions = [one.row for one in chosen], Lists([list(range(8))])
    ours = load_batch(train_dataset(images, run), list(range(8)))
    assert ours.rows == rows
    theirs, labels = next(baselines.timm_style(images, rows, baselines.frame_first(operations), 0)(positions))
    assert labels.equal(ours.labels) and (theirs.float() - ours.pixels.float()).abs().mean() < 1
    assert (theirs[0].float() - ours.pixels[1].float()).abs().mean() > 5  # another image
    transform = baselines.published(operations, statistics)
    floats = next(baselines.hugging_face(splits.train, rows, transform, 0)(Lists([list(range(8))])))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    assert (255 * (floats["pixels"] * std + mean) - ours.pixels).abs().mean() < 1


def test_a_source_that_is_no_dataset_is_read_for_the_hugging_face_style() -> None:
    images = Kept([jpeg(10 * i, "L") for i in range(4)])
    loader = baselines.hugging_face(images, [3, 1], v1.ToTensor(), 0)(Lists([[0, 1]]))
    batch = next(loader)
    assert batch["label"].tolist() == [1, 1]
    assert (255 * batch["pixels"]).round().flatten(1).mean(1).tolist() == [30.0, 10.0]


def test_the_script_prints_the_ratios_of_every_recipe(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_pipelines, "PUBLISHED", ("se-resnext",))
    bench_pipelines.main(str(photos), 9, 1)
    first, *lines = capsys.readouterr().out.splitlines()
    assert "'used': 16" in first  # one whole batch
    names = ["decode", "read", "in_process", "end_to_end", "hugging_face", "timm"]
    pairs = ["in_process/decode", "end_to_end/decode", "hugging_face/end_to_end", "timm/end_to_end"]
    assert [line.split()[:2] for line in lines[:10]] == [["se-resnext", name] for name in names + pairs]
    assert [line.split()[2] for line in lines[10:]] == pairs
    times = {line.split()[1]: float(line.split()[2]) for line in lines[:10]}
    for pair in pairs:
        above, below = pair.split("/")
        assert times[pair] == pytest.approx(times[above] / times[below], rel=0.1)
