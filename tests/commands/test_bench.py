"""The benchmark measures what it says: the same images for all, whole CPU time, the published order."""

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1

from cls import recipes
from cls.commands.bench import baselines, loop, pipelines
from cls.commands.bench.advice import Demand, advise, demand
from cls.commands.bench.cpu_time import Lists, Stream, cpu_seconds
from cls.commands.bench.floor import Floor
from cls.commands.bench.run import PUBLISHED, pipelines_of
from cls.commands.bench.sample import about, choose
from cls.commands.main import parse_command
from cls.commands.options import BenchOptions, PlanOptions
from cls.commands.plan.run import plan
from cls.config import Run, change
from cls.data.dataset import train_dataset
from cls.data.loader import load_batch
from cls.data.readers import images_of
from cls.data.sampler import Sampler
from cls.data.sources import load
from cls.distributed.world import start
from cls.models.build import input_statistics
from cls.runtime.exit import DataError
from cls.runtime.signals import StopSignal
from cls.transforms.decode import CorruptImageError
from cls.transforms.ops import training_ops


def burn(seconds: float) -> None:
    since = time.process_time()
    while time.process_time() - since < seconds:
        pass


class Burning(Dataset[int]):
    """Items that cost 5 ms of CPU time each, wherever they are made."""

    def __getitem__(self, index: int) -> int:
        burn(0.005)
        return index


def loaded(workers: int) -> Stream:
    def make(lists: Lists) -> Any:
        return iter(DataLoader(Burning(), batch_sampler=lists, num_workers=workers))

    return Stream(make, [[4 * i + k for k in range(4)] for i in range(8)])


def test_the_cpu_time_of_workers_is_counted_whole_and_apart() -> None:
    stream = loaded(1)
    costs = [stream.measure() for _ in range(2)]
    assert len(stream.workers) == 1
    stream.close()
    for cost in costs:
        assert 0.005 <= cost.worker < 0.006 and cost.main < 0.001


def test_without_workers_the_main_process_has_the_cost() -> None:
    stream = loaded(0)
    cost = stream.measure()
    assert not stream.workers and cost.worker == 0 and 0.005 <= cost.main < 0.006


def test_a_second_loaders_workers_are_not_the_first_ones() -> None:
    first = loaded(1)
    second = loaded(2)
    assert len(second.workers) == 2 and not set(first.workers) & set(second.workers)
    idle = sum(map(cpu_seconds, first.workers))
    assert second.measure().worker >= 0.005 and sum(map(cpu_seconds, first.workers)) == idle
    first.close()
    second.close()


def on(photos: Path, name: str = "digits", **sections: dict[str, Any]) -> Run:
    data = {"path": str(photos), "workers": 1} | sections.pop("data", {})
    return change(recipes.get(name), data=data, **sections)


SMALL = {"batch": 8, "micro_batch": 4}
TINY = {"backbone": "timm/test_resnet"}

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
def test_peers_do_the_recipes_operations_in_their_order_and_give_batches(name: str, photos: Path) -> None:
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


def test_the_numbers_of_the_peers_operations_are_the_recipes() -> None:
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


def test_all_contestants_load_the_same_images(photos: Path) -> None:
    """Without anything random, what arrives is the same pixels, but for the decoders' and resizers' rounding."""
    run = on(photos, "se-resnext", augment={"blur": 0, "hflip": 0.0, "rotate": 0.0}, data={"size": 32}, train=SMALL)
    splits = load(run.data, run.seed)
    images, statistics = images_of(splits.train), input_statistics(run)
    chosen, broken = choose(images, run.seed, False, 8)
    assert broken == 0 and [one.draw for one in chosen] == list(range(8))
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


class Kept:
    """Images in memory, as a source that is no dataset has them; reading takes ``seconds`` each."""

    def __init__(self, files: list[bytes | CorruptImageError], seconds: float = 0.0) -> None:
        self.files, self.seconds = files, seconds
        self.labels = np.arange(len(files)) % 2

    def __len__(self) -> int:
        return len(self.files)

    def name(self, row: int) -> str:
        return str(row)

    def read(self, rows: Any) -> Any:
        time.sleep(self.seconds * len(rows))
        return [self.files[row] for row in rows]

    def order(self, seed: int, balanced: bool) -> Sampler:
        return Sampler(self.labels, seed, balanced)


def jpeg(value: int, mode: str = "RGB", kind: str = "JPEG", side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), value).save(buffer, kind)
    return buffer.getvalue()


def test_broken_images_are_left_out_and_counted() -> None:
    images = Kept([jpeg(0), b"", jpeg(9)[:300], CorruptImageError("gone"), jpeg(7, "L"), jpeg(3, kind="PNG")])
    chosen, broken = choose(images, 0, False, 6)
    assert broken == sum(images.sampler(0, False).row(draw) in (1, 2, 3) for draw in range(chosen[-1].draw))
    assert {one.row for one in chosen} == {0, 4, 5} and len({one.draw for one in chosen}) == 6
    facts = about(chosen, broken)
    assert facts["used"] == 6 and facts["different"] == 3 and facts["short_side"]["median"] == 40
    assert facts["formats"] == {"JPEG": sum(one.row != 5 for one in chosen), "PNG": sum(one.row == 5 for one in chosen)}
    with pytest.raises(DataError, match="108 of the first 108 training images cannot be read or decoded"):
        choose(Kept([b"", b"x"]), 0, False, 4)


def test_a_source_that_is_no_dataset_reaches_the_hugging_face_peer() -> None:
    images = Kept([jpeg(10 * i, "L") for i in range(4)])
    loader = baselines.hugging_face(images, [3, 1], v1.ToTensor(), 0)(Lists([[0, 1]]))
    batch = next(loader)
    assert batch["label"].tolist() == [1, 1]
    assert (255 * batch["pixels"]).round().flatten(1).mean(1).tolist() == [30.0, 10.0]


def test_the_decode_floor_takes_each_image_by_the_decoder_that_can() -> None:
    images = Kept([jpeg(0, side=600), jpeg(7, "L"), jpeg(3, kind="PNG")])
    chosen, _ = choose(images, 0, False, 3)
    large, small, png = sorted(chosen, key=lambda one: one.row)
    floor = Floor(chosen)
    assert floor.slow == {png.draw} and len(floor.buffer) == 2 << 20
    floor.buffer[:] = 255
    floor.decode([small, png])
    assert floor.buffer[:4800].tolist() == 4800 * [7] and floor.buffer[4800:].min() == 255  # Pillow has its own room
    floor.decode([large])
    assert floor.buffer[4800 : 3 * 600**2].max() == 0


def test_what_works_here_takes_turns_at_each_micro_batch() -> None:
    done: list[tuple[str, int]] = []

    def works(name: str, seconds: float) -> Callable[[list[int]], None]:
        def work(part: list[int]) -> None:
            done.append((name, part[0]))
            burn(seconds)

        return work

    costs = pipelines._in_turns({"a": works("a", 0.002), "b": works("b", 0.006)}, [[0, 1], [2, 3], [4, 5]])
    assert done == [("a", 0), ("b", 0), ("b", 2), ("a", 2), ("a", 4), ("b", 4)]
    assert costs["a"].total >= 0.001 and costs["b"].total >= 0.003  # per image: three parts of two


def finite(document: Any) -> bool:
    if isinstance(document, dict):
        return all(map(finite, document.values()))
    if isinstance(document, list):
        return all(map(finite, document))
    return not isinstance(document, float) or math.isfinite(document)


def test_the_verb_measures_everything_and_its_ratios_are_those_of_its_figures(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", "9", "--repeats", "2", "--recipes", "this", "--steps", "2"]
    words += ["--data.path", str(photos), "--train.batch", "8", "--train.micro-batch", "4", "--data.workers", "1"]
    words += ["--model.backbone", TINY["backbone"]]
    document, _ = parse_command("bench", ["digits", *words, "--out", str(tmp_path / "b")]).do(StopSignal())
    assert json.loads((tmp_path / "b" / "bench.json").read_text()) == document
    assert finite(document)
    (row,) = document["pipelines"]
    assert row["recipe"] == "digits" and row["images"] == document["images"]["used"] == 16  # whole batches
    figures = row["us_per_image"]
    assert set(figures) == {"decode", "read", "in_process", "end_to_end", "hugging_face", "timm"}
    assert set(figures) == set(document["contestants"])
    for found in figures.values():
        assert len(found["repeats"]) == 2 and 0 < found["min"] <= found["median"] <= found["max"]
        assert found["min"] == min(found["repeats"]) and found["max"] == max(found["repeats"])
    for pair, found in row["ratios"].items():
        above, below = pair.split("/")
        ratios = [a / b for a, b in zip(figures[above]["repeats"], figures[below]["repeats"], strict=True)]
        assert found["median"] == pytest.approx(sum(ratios) / 2) and found["max"] == pytest.approx(max(ratios))
        assert document["geometric_means"][pair] == pytest.approx(found["median"])
    assert set(row["ratios"]) == {"in_process/decode", "end_to_end/decode", "hugging_face/end_to_end",
                                  "timm/end_to_end"}  # fmt: skip
    rates, efficiency = document["loop"]["images_per_second"], document["loop"]["efficiency"]["repeats"]
    assert document["loop"]["steps"] == 2 and document["loop"]["batch"] == 8 and document["loop"]["workers"] == 1
    assert efficiency == [w / r for w, r in zip(rates["with_data"]["repeats"], rates["resident"]["repeats"],
                                                strict=True)]  # fmt: skip
    advice = document["advice"]
    assert advice["images_per_second_per_core"] == pytest.approx(1e6 / figures["end_to_end"]["median"])
    assert advice["device"] == "cpu" and advice["images_per_second_wanted"] == rates["resident"]["median"]
    shown = capsys.readouterr().err
    assert "decode floor" in shown and "training loop on cpu" in shown and advice["text"][:60] in shown


def test_the_loop_compares_equally_many_steps_and_empties_the_loader_first(photos: Path) -> None:
    run = on(photos, train=SMALL, model=TINY)
    splits = load(run.data, run.seed)
    steps, repeats = 3, 2
    work = loop.trainer(run, splits, start(run.train, StopSignal()))
    feed = loop.Feed(change(run, data={"workers": 0}), splits, work.world.device, [[0, 1, 2, 3], [4, 5, 6, 7]])
    loop._compare(work, feed, steps, repeats)
    made = {int(state["step"]) for state in work.state.optimizer.state.values()}
    with_data = (feed.received - 1) // 2  # two micro-batches a step; the first one is the resident
    untimed = 1 + repeats
    assert with_data == repeats * (steps + 1) and made == {untimed + 2 * repeats * steps}


def test_a_loader_that_is_too_slow_shows_in_the_efficiency(photos: Path) -> None:
    """A window of four micro-batches, as many as the loader keeps ready: they must not come for free."""
    run = on(photos, train={"batch": 4, "micro_batch": 4}, model=TINY)
    splits = load(run.data, run.seed)
    slow = Kept([jpeg(value) for value in range(8)], seconds=0.05)
    fed = loop.Feed(run, replace(splits, train=slow), torch.device("cpu"), [[0, 1, 2, 3]])  # type: ignore[arg-type]  # Images
    work = loop.trainer(run, splits, start(run.train, StopSignal()))
    time.sleep(5 * 4 * slow.seconds)  # all that it makes ready in advance is ready
    found = loop._compare(work, fed, 4, 1)
    assert fed.workers == 1 and found["images_per_second"]["with_data"]["median"] < 1.5 / 0.05
    assert 0 < found["waiting_for_data"]["median"] < 1
    fed.batches = iter(())  # ends the worker


def test_a_model_that_takes_too_long_is_left_out_with_the_remedy(photos: Path) -> None:
    run = on(photos, train=SMALL, model=TINY)
    found = loop.measure(run, load(run.data, 0), list(range(8)), 5, 0, 1e-4, StopSignal())
    assert "images_per_second" not in found and "give --seconds" in found["left_out"]
    assert demand(run, 12, BenchOptions(), found) is None


def test_the_other_recipes_are_measured_on_this_runs_images_with_their_own_augmentation(photos: Path) -> None:
    run = on(photos, "mlp-head", data={"limit": 9}, train={"batch": 8, "micro_batch": 8})
    runs = {each.recipe: each for each in pipelines_of(run, BenchOptions())}
    assert list(runs) == ["mlp-head", *(name for name in PUBLISHED if name != "mlp-head")]
    assert runs["mlp-head"] == run and pipelines_of(run, BenchOptions(recipes="this")) == [run]
    for name, each in runs.items():
        assert each.augment == recipes.get(name).augment and each.seed == run.seed
        assert (each.data.path, each.data.limit) == (str(photos), 9)
        assert (each.data.size, each.data.normalize) == (256, "half") if name == "attention-gate" else (224, "auto")


def figures(us: float) -> dict[str, Any]:
    return {"us_per_image": {"end_to_end": {"repeats": [us, us, us]}}}


@pytest.mark.parametrize(
    ("wanted", "gpus", "cores", "workers", "short", "text"),
    [
        (300.0, 1, 2, -1, 300, "so there is nothing to do"),  # one core decodes 1,000 a second
        (300.0, 2, 3, -1, 300, "ask for 2 cores a GPU (4 in all; 3 are here)."),
        (2500.0, 1, 4, -1, 300, "4 cores a GPU are enough and 4 are here, so there is nothing to do"),
        (2500.0, 1, 4, 2, 300, "leave --data.workers out, or give 3; 2 are too few"),
        (2500.0, 1, 2, -1, 1200, "or make smaller copies with `cls pack --short 512` (their short side is 1200 now)"),
        (2500.0, 1, 2, -1, 700, "ask for 4 cores a GPU (4 in all; 2 are here)."),
    ],
)
def test_the_advice_follows_from_the_figures(
    wanted: float, gpus: int, cores: float, workers: int, short: float, text: str
) -> None:
    run = change(recipes.get("mlp-head"), data={"workers": workers})
    found = advise(run, BenchOptions(gpus=gpus), Demand(wanted, "RTX 3090", "measured"), figures(1000.0), short, cores)
    assert (
        text in found["text"] and f"takes {wanted * gpus:.0f} images/s (measured), one core feeds 1000" in found["text"]
    )
    assert found["images_per_second_of_the_cores"] == 1000 * (cores - gpus)
    assert found["cores_per_gpu"] == math.ceil(wanted / 1000) + 1


def test_without_a_gpu_the_devices_own_rate_is_what_it_wants() -> None:
    measured = {"device": "cpu", "images_per_second": {"resident": {"median": 12.0}}}
    want = demand(recipes.get("digits"), 10, BenchOptions(), measured)
    assert want == Demand(12.0, "cpu", "measured on a resident batch")
    found = advise(recipes.get("digits"), BenchOptions(), want, figures(1000.0), 40, 2)
    assert "computing limits it, not the input" in found["text"]
    assert "name your GPU" in advise(recipes.get("digits"), BenchOptions(), None, figures(1000.0), 40, 2)["text"]


@pytest.mark.soak
def test_a_named_gpu_wants_what_the_plan_says(photos: Path) -> None:
    run = on(photos, train=SMALL, model=TINY)
    want = demand(run, 12, BenchOptions(gpu="3090"), {})
    assert want == Demand(
        plan(run, PlanOptions(gpu="3090"))["images_per_second"], "RTX 3090", "estimated (roofline of `cls plan`)"
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--repeats", "0"), "repeats is 0"),
        (("--gpu", "rtx3091"), "did you mean 'RTX 3090'"),
        (("--gpu", "rtx2070", "--train.precision", "bf16"), "RTX 2070 does not compute"),
        (("--seconds", "0"), "some seconds"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_it_starts(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_command("bench", ["digits", *words]).do(StopSignal())
