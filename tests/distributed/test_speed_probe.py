"""Memory formats are timed on all ranks, the slowest counts, and the choice is stored, kept in a cache and resumed."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cls.config import Run, change, from_yaml
from cls.distributed import speed_probe
from cls.distributed.speed_probe import Speeds, lines, measures
from cls.distributed.world import World
from cls.tracking.events import read_events
from tests.distributed.test_memory_probe import trace
from tests.distributed.test_tree_reduce import Net, run_of, world
from tests.harness import TINY
from tests.harness.records import bits
from tests.harness.runs import Runs
from tests.harness.timings import PATCH

GPU = replace(world(), device=torch.device("cuda", 0))


def speeds(
    first: float, last: float, chunk: int = 1, chunk_seconds: float = math.inf, free: float = math.inf
) -> Speeds:
    return Speeds(first, last, chunk, chunk_seconds, free)


@pytest.mark.parametrize(
    ("first", "last", "taken"),
    [
        (1.0, 30.0, False), (1.0, 1.21, False), (1.0, 1.19, True), (2.0, 1.0, True), (1.0, math.inf, False),
        (math.inf, 1.0, True), (math.inf, math.inf, True),
    ],
)  # fmt: skip
def test_channels_first_is_taken_where_it_is_faster_by_a_fifth(first: float, last: float, taken: bool) -> None:
    found = speeds(first, last)
    assert found.takes_channels_last is taken and found.single == (last if taken else first)


def test_only_a_gpu_whose_format_is_open_is_measured() -> None:
    assert measures(Run(), GPU) and not measures(Run(), world()) and not measures(Run(), replace(GPU, fsdp=True))
    for chosen in (True, False):
        assert not measures(change(Run(), train={"channels_last": chosen}), GPU)


def test_the_lines_say_what_was_measured_and_how_to_change_it() -> None:
    found = speeds(0.1, 0.14, chunk=4, chunk_seconds=0.32, free=0.08)
    assert lines(found, Run(), 1) == [
        "memory format: channels_first, 0.1 s a micro-batch; channels_last 0.14 s",
        "exact costs 1.25 × fast here (chunks of 4 micro-batches); --train.reduce fast to change",
        "deterministic kernels cost 1.25 × free ones here; --train.deterministic False to change",
    ]
    free = change(Run(), train={"reduce": "fast", "deterministic": False})
    assert [text.partition(";")[2] for text in lines(found, free, 1)[1:]] == ["", ""]
    assert len(lines(speeds(0.1, 0.1), Run(), 1)) == 1
    assert len(lines(found, Run(), 2)) == 2  # no rank of two has four micro-batches


def test_the_median_of_the_slowest_rank_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.3, 0.1, 0.2, 0.9, 0.2, 0.4])
    monkeypatch.setattr(speed_probe, "once", lambda work, group: next(times))
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine, 0.25])
    done: list[int] = []
    assert speed_probe.seconds_of(lambda: done.append(1), world()) == 0.25  # the median here is 0.2
    assert next(times, None) is None
    monkeypatch.setattr(speed_probe, "once", lambda work, group: 0.1)
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine, 4.0])  # slow elsewhere: once here, too
    assert speed_probe.seconds_of(lambda: done.append(1), world()) == 4.0


def measured(model: nn.Module, run: Run, times: list[float], monkeypatch: pytest.MonkeyPatch) -> Speeds:
    left = list(times)

    def once(work: Any, group: World) -> float:
        work()
        return left.pop(0)

    monkeypatch.setattr(speed_probe, "once", once)
    found = speed_probe.speeds(model, torch.optim.AdamW(model.parameters()), run, world())
    assert left == []
    return found


@pytest.mark.parametrize(("last", "row_major"), [(3.0, True), (1.0, False)])
def test_measuring_changes_no_bit_and_leaves_the_model_in_the_format_taken(
    last: float, row_major: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLS_CACHE", str(tmp_path))
    run = change(run_of(), data={"size": 8})  # 4 micro-batches of 3
    model = Net("batch", dropout=0.5).to(memory_format=torch.channels_last)
    before = trace(model, torch.optim.AdamW(model.parameters()))
    settings = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    found = measured(model, run, [2.0, last, 5.0, 1.5], monkeypatch)
    assert found == Speeds(2.0, last, 4, 5.0, 1.5)
    after = trace(model, torch.optim.AdamW(model.parameters()))
    assert {k: v for k, v in after.items() if k != "generator"} == {k: v for k, v in before.items() if k != "generator"}
    assert model.conv.weight.is_contiguous() is row_major
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) is not row_major
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == settings

    again = Net("batch", dropout=0.5).to(memory_format=torch.channels_last)
    assert measured(again, run, [], monkeypatch) == found  # from the cache
    assert again.conv.weight.is_contiguous() is row_major
    for other in ({"size": 9}, {"micro_batch": 6}, {"head": "8 relu"}, {"precision": "bf16"}):
        (name, value), = other.items()  # fmt: skip
        section = {"size": "data", "head": "model"}.get(name, "train")
        assert speed_probe._digest(change(run, **{section: {name: value}}), world()) != speed_probe._digest(
            run, world()
        )
    elsewhere = change(run, data={"path": "elsewhere"}, model={"weights": "none"}, optim={"lr": 9.0})
    assert speed_probe._digest(elsewhere, replace(world(), size=4)) == speed_probe._digest(run, world())

    (file,) = (tmp_path / "speed").iterdir()
    for text in ("", "{}", '{"seconds": {"free": 1}}'):
        file.write_text(text)
        assert measured(again, run, [2.0, last, 5.0, 1.5], monkeypatch) == found  # unreadable: measured again


def test_a_format_or_a_chunk_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Small(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 6 or not images.is_contiguous():
                raise torch.OutOfMemoryError("CUDA out of memory, says the test")
            return super().forward(images)

    monkeypatch.setenv("CLS_CACHE", str(tmp_path))
    found = measured(Small("batch"), change(run_of(), data={"size": 8}), [2.0, 3.0, 1.5], monkeypatch)
    assert found == Speeds(2.0, math.inf, 2, 3.0, 1.5) and not found.takes_channels_last


# --- in real runs ---


def started(runs: Runs, out: Path, seconds: list[list[float]], *args: str, fault: str = "") -> Any:
    env = {"FAKE_SECONDS": json.dumps(seconds), "CLS_CACHE": str(out.parent / "cache")}
    result = runs.run(out, [*TINY, *args], len(seconds), fault, PATCH, **env)
    assert result.codes == [85 if fault else 0] * len(seconds), result.output
    return result


def stored(out: Path) -> object:
    return from_yaml((out / "config.yaml").read_text()).train.channels_last


@pytest.mark.integration
def test_all_ranks_take_the_format_of_the_slowest_and_a_resumed_run_keeps_it(runs: Runs, tmp_path: Path) -> None:
    """By rank 1 alone it would be channels_last. Micro-batches of 2 of 4 are a chunk."""
    out = tmp_path / "run"
    seconds = [[1.0, 1.3, 1.5, 0.8], [1.0, 1.1, 1.6, 0.7]]
    first = started(runs, out, seconds, fault="SIGTERM@1:step:3")
    assert first.output.count("memory format: channels_first, 1 s a micro-batch; channels_last 1.3 s\n") == 1
    assert "exact costs 1.25 × fast here (chunks of 2 micro-batches)" in first.output
    assert "deterministic kernels cost 1.25 × free ones here" in first.output
    assert stored(out) is False
    again = started(runs, out, [[], []])
    assert "memory format" not in again.output and stored(out) is False
    assert [event["processes"] for event in read_events(out) if event["event"] == "start"] == [2, 2]
    asked = started(runs, tmp_path / "asked", [[]], "--train.channels-last", "False")
    assert bits(again) == bits(asked)  # on one process
    fresh = started(runs, tmp_path / "fresh", [[]])
    assert "memory format: channels_first" in fresh.output and bits(fresh) == bits(again)  # from the cache


@pytest.mark.integration
def test_a_run_that_ends_before_it_has_measured_measures_again(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    killed = {"FAKE_SECONDS": "[[2.0, 3.0, 1.0, 1.0]]", "CLS_CACHE": str(tmp_path / "other")}
    assert runs.run(out, TINY, 1, "SIGKILL@0:probe:1", PATCH, **killed).codes == [-9] and stored(out) is False
    text = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(text.replace("channels_last: false", "channels_last: auto"))  # as it was before
    again = started(runs, out, [[1.0, 1.0, 1.0, 1.0]])
    assert "memory format: channels_last" in again.output and stored(out) is True
