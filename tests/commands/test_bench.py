"""The benchmark measures what it says: whole CPU time, the decode floor, the loop of train.py."""

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import train
from cls import recipes
from cls.commands.bench import loop, pipelines, settings
from cls.commands.bench.advice import Demand, advise, demand
from cls.commands.bench.cpu_time import Lists, Stream, cpu_seconds
from cls.commands.bench.run import PUBLISHED, pipelines_of
from cls.commands.bench.sample import about, choose
from cls.commands.main import parse_command
from cls.commands.options import BenchOptions, PlanOptions
from cls.commands.plan.run import plan
from cls.config import Run, change
from cls.data.sampler import Sampler
from cls.data.sources import load
from cls.distributed.world import start
from cls.runtime.exit import DataError
from cls.runtime.signals import StopSignal
from cls.transforms.decode import CorruptImageError


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

    def sampler(self, seed: int, balanced: bool) -> Sampler:
        return Sampler(self.labels, seed, balanced)


def jpeg(value: int, mode: str = "RGB", kind: str = "JPEG", side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), value).save(buffer, kind)
    return buffer.getvalue()


def test_corrupt_images_are_left_out_and_counted() -> None:
    images = Kept([jpeg(0), b"", jpeg(9)[:300], CorruptImageError("missing"), jpeg(7, "L"), jpeg(3, kind="PNG")])
    chosen, corrupt = choose(images, 0, False, 6)
    assert corrupt == sum(images.sampler(0, False).row(index) in (1, 2, 3) for index in range(chosen[-1].sample_index))
    assert {one.row for one in chosen} == {0, 4, 5} and len({one.sample_index for one in chosen}) == 6
    facts = about(chosen, corrupt)
    assert facts["used"] == 6 and facts["different"] == 3 and facts["short_side"]["median"] == 40
    assert facts["formats"] == {"JPEG": sum(one.row != 5 for one in chosen), "PNG": sum(one.row == 5 for one in chosen)}
    with pytest.raises(DataError, match="108 of the first 108 training images cannot be read or decoded"):
        choose(Kept([b"", b"x"]), 0, False, 4)


def test_the_decode_floor_uses_pillow_where_simplejpeg_cannot() -> None:
    images = Kept([jpeg(0, side=600), jpeg(7, "L"), jpeg(3, kind="PNG")])
    chosen, _ = choose(images, 0, False, 3)
    large, small, png = sorted(chosen, key=lambda one: one.row)
    floor = pipelines.DecodeFloor(chosen)
    assert floor.slow == {png.sample_index} and len(floor.buffer) == 2 << 20
    floor.buffer[:] = 255
    floor.decode([small, png])
    assert floor.buffer[:4800].tolist() == 4800 * [7] and floor.buffer[4800:].min() == 255  # Pillow has its own buffer
    floor.decode([large])
    assert floor.buffer[4800 : 3 * 600**2].max() == 0


def test_local_work_takes_turns_at_each_micro_batch() -> None:
    done: list[tuple[str, int]] = []

    def work_of(name: str, seconds: float) -> Callable[[list[int]], None]:
        def work(part: list[int]) -> None:
            done.append((name, part[0]))
            burn(seconds)

        return work

    costs = pipelines._in_turns({"a": work_of("a", 0.002), "b": work_of("b", 0.006)}, [[0, 1], [2, 3], [4, 5]])
    assert done == [("a", 0), ("b", 0), ("b", 2), ("a", 2), ("a", 4), ("b", 4)]
    assert costs["a"].total >= 0.001 and costs["b"].total >= 0.003  # per image: three parts of two


def finite(document: Any) -> bool:
    if isinstance(document, dict):
        return all(map(finite, document.values()))
    if isinstance(document, list):
        return all(map(finite, document))
    return not isinstance(document, float) or math.isfinite(document)


def test_the_command_measures_everything_and_its_ratios_are_those_of_its_figures(
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
    assert set(figures) == {"decode", "read", "in_process", "end_to_end"} == set(document["measured"])
    for found in figures.values():
        assert len(found["repeats"]) == 2 and 0 < found["min"] <= found["median"] <= found["max"]
        assert found["min"] == min(found["repeats"]) and found["max"] == max(found["repeats"])
    for pair, found in row["ratios"].items():
        above, below = pair.split("/")
        ratios = [a / b for a, b in zip(figures[above]["repeats"], figures[below]["repeats"], strict=True)]
        assert found["median"] == pytest.approx(sum(ratios) / 2) and found["max"] == pytest.approx(max(ratios))
        assert document["geometric_means"][pair] == pytest.approx(found["median"])
    assert set(row["ratios"]) == {"in_process/decode", "end_to_end/decode"}
    rates, efficiency = document["loop"]["images_per_second"], document["loop"]["efficiency"]["repeats"]
    assert document["loop"]["steps"] == 2 and document["loop"]["batch"] == 8 and document["loop"]["workers"] == 1
    assert efficiency == [w / r for w, r in zip(rates["with_data"]["repeats"], rates["resident"]["repeats"],
                                                strict=True)]  # fmt: skip
    table = document["settings"]
    assert len(table["rows"]) == 4
    for one in table["rows"]:
        assert one["images_per_second"] == pytest.approx(8 / one["step_seconds"]) and "peak_gib" not in one
    advice = document["advice"]
    assert advice["images_per_second_per_core"] == pytest.approx(1e6 / figures["end_to_end"]["median"])
    assert advice["device"] == "cpu" and advice["images_per_second_wanted"] == rates["resident"]["median"]
    shown = capsys.readouterr().err
    assert "exact, channels_first" in shown and table["text"] in shown
    assert "decode floor" in shown and "training loop on cpu" in shown and advice["text"][:60] in shown


def test_a_step_gives_the_weights_of_train_py(photos: Path) -> None:
    """The copy in the package, which cannot import train.py, on the same micro-batches: mixed, weighted, two a step."""
    run = on(photos, train=SMALL, model=TINY, augment={"mixup": 0.4}, optim={"label_smoothing": 0.1, "clip": 1.0,
             "class_weight": 0.5})  # fmt: skip
    splits, world = load(run.data, run.seed), start(run.train, StopSignal())
    ours, theirs = (loop.trainer(run, splits, world) for _ in "12")
    before = {name: value.clone() for name, value in ours.state.model.state_dict().items()}
    lists = [[0, 1, 2, 3], [4, 5, 6, 7]]
    one, other = (loop.TimedLoader(change(run, data={"workers": 0}), splits, world.device, lists) for _ in range(2))
    loader: Any = SimpleNamespace(next=other.next, weights=theirs.weights)
    for step in range(3):
        ours.step(step, one.next)
        train.forward_backward(step, run, theirs.state, theirs.micro_batches, loader)
        theirs.micro_batches.all_reduce()
        theirs.state.update(run.optim.clip)
    after, expected = ours.state.model.state_dict(), theirs.state.model.state_dict()
    assert all(value.equal(expected[name]) for name, value in after.items())
    assert not any(value.equal(before[name]) for name, value in after.items())


def test_the_loop_compares_equally_many_steps_and_empties_the_loader_first(photos: Path) -> None:
    run = on(photos, train=SMALL, model=TINY)
    splits = load(run.data, run.seed)
    steps, repeats = 3, 2
    work = loop.trainer(run, splits, start(run.train, StopSignal()))
    loader = loop.TimedLoader(change(run, data={"workers": 0}), splits, work.world.device, [[0, 1, 2, 3], [4, 5, 6, 7]])
    loop._compare(work, loader, steps, repeats)
    made = {int(state["step"]) for state in work.state.optimizer.state.values()}
    with_data = (loader.received - 1) // 2  # two micro-batches a step; the first one is the resident
    untimed = 1 + repeats
    assert with_data == repeats * (steps + 1) and made == {untimed + 2 * repeats * steps}


def test_a_loader_that_is_too_slow_shows_in_the_efficiency(photos: Path) -> None:
    """A window of four micro-batches, as many as the loader keeps ready: they must not come for free."""
    run = on(photos, train={"batch": 4, "micro_batch": 4}, model=TINY)
    splits = load(run.data, run.seed)
    slow = Kept([jpeg(value) for value in range(8)], seconds=0.05)
    slow_loader = loop.TimedLoader(run, replace(splits, train=slow), torch.device("cpu"), [[0, 1, 2, 3]])  # type: ignore[arg-type]  # Images
    work = loop.trainer(run, splits, start(run.train, StopSignal()))
    time.sleep(5 * 4 * slow.seconds)  # all that it makes ready in advance is ready
    found = loop._compare(work, slow_loader, 4, 1)
    assert slow_loader.workers == 1 and found["images_per_second"]["with_data"]["median"] < 1.5 / 0.05
    assert 0 < found["waiting_for_data"]["median"] < 1
    slow_loader.batches = iter(())  # ends the worker


def test_a_model_that_takes_too_long_is_left_out_with_the_remedy(photos: Path) -> None:
    run = on(photos, train=SMALL, model=TINY)
    world = start(run.train, StopSignal())
    found = loop.measure(run, load(run.data, 0), list(range(8)), 5, 0, 1e-4, world)
    assert "images_per_second" not in found and "give --seconds" in found["left_out"]
    assert demand(run, 12, BenchOptions(), found) is None
    table = settings.measure(run, load(run.data, 0), world, 2, 1e-4)
    assert (
        table["rows"] == [] and "4 settings take about" in table["left_out"] and "give --seconds" in table["left_out"]
    )


@pytest.mark.parametrize(("device", "count"), [("cpu", 4), ("cuda", 12)])
def test_the_settings_are_all_that_apply_to_the_device_the_runs_own_first(device: str, count: int) -> None:
    own = change(Run(), train={"reduce": "fast", "deterministic": False, "channels_last": False})
    for run in (Run(), own):
        found = settings.combinations(run, device)
        assert len(found) == count and len({tuple(one.items()) for one in found}) == count
        assert all(getattr(run.train, name) == value for name, value in found[0].items() if name != "channels_last")
        assert found[0]["channels_last"] is run.train.images_channels_last
        assert not any(one["compile"] and one["reduce"] == "exact" for one in found)


def test_a_setting_that_does_not_work_here_is_a_row_and_hides_no_other(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on(photos, train=SMALL, model=TINY)
    real = settings.trainer

    def failing(run: Run, *args: Any) -> loop.Trainer:
        if run.train.reduce == "fast":
            raise RuntimeError("no C compiler was found\nand so on")
        return real(run, *args)

    monkeypatch.setattr(settings, "trainer", failing)
    found = settings.measure(run, load(run.data, 0), start(run.train, StopSignal()), 1, 60.0)
    assert [row.get("failed") for row in found["rows"]] == [None, None, *["RuntimeError: no C compiler was found"] * 2]


def test_the_advice_on_settings_names_the_fastest_only_where_it_is_worth_it() -> None:
    own = {"reduce": "exact", "channels_last": True, "deterministic": True, "compile": False}
    rows = [own | {"step_seconds": 1.0}, own | {"reduce": "fast", "failed": "too large"}]
    other = own | {"channels_last": False, "deterministic": False}
    assert settings.advice([*rows, other | {"step_seconds": 0.95}]).startswith("none of these settings is faster")
    text = "--train.channels-last False --train.deterministic False is 1.25 times as fast here"
    assert settings.advice([*rows, other | {"step_seconds": 0.8}]) == text
    assert settings.advice(rows[1:]) == "this configuration does not run here: too large"


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
        (300.0, 2, 3, -1, 300, "ask for 2 cores per GPU (4 in all; 3 are here)."),
        (2500.0, 1, 4, -1, 300, "4 cores per GPU are enough and 4 are here, so there is nothing to do"),
        (2500.0, 1, 4, 2, 300, "leave --data.workers out, or give 3; 2 are too few"),
        (2500.0, 1, 2, -1, 1200, "or make smaller copies with `cls pack --short 512` (their short side is 1200 now)"),
        (2500.0, 1, 2, -1, 700, "ask for 4 cores per GPU (4 in all; 2 are here)."),
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
    assert "computing is the limit, not the input" in found["text"]
    assert "name your GPU" in advise(recipes.get("digits"), BenchOptions(), None, figures(1000.0), 40, 2)["text"]


@pytest.mark.soak
def test_a_named_gpu_wants_what_the_plan_says(photos: Path) -> None:
    run = on(photos, train=SMALL, model=TINY)
    want = demand(run, 12, BenchOptions(gpu="3090"), {})
    assert want == Demand(
        plan(run, PlanOptions(gpu="3090"))["fastest_images_per_second"],
        "RTX 3090",
        "estimated (the faster end of `cls plan`)",
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
def test_what_cannot_be_measured_is_rejected_before_it_starts(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_command("bench", ["digits", *words]).do(StopSignal())
