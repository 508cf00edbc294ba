"""What all ranks agree on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist

from cls.config import Train
from cls.distributed import world as world_module
from cls.distributed.world import StopFlag, World, start
from cls.runtime.signals import Stopped, StopSignal
from tests.distributed.test_tree_reduce import world


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[World]:
    """Rank 0 of two in a process group that has no other rank: sums are its own parts."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield replace(world(), size=2)
    dist.destroy_process_group()


def test_a_stop_request_of_one_rank_stops_all_at_the_next_check(alone: World) -> None:
    flag = StopFlag(alone)
    flag.check()
    alone.stop.reason = "SIGTERM"
    flag.check()
    with pytest.raises(Stopped):
        flag.check()


def test_closing_answers_the_last_check(alone: World) -> None:
    flag = StopFlag(alone)
    flag.check()
    flag.close()
    alone.stop.reason = "SIGTERM"
    flag.check()
    with pytest.raises(Stopped):
        flag.close()


class Recorded:
    """CUDA's streams and events as a list of calls; tensors are on the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        full, empty, note = torch.full, torch.empty, self.note

        def filled(shape: tuple[int, ...], value: float, device: torch.device) -> torch.Tensor:
            note(f"fill {value:g}")
            return full(shape, value)

        class InStream:
            def __enter__(self) -> Self:
                note("enter stream")
                return self

            def __exit__(self, *_: object) -> None:
                note("leave stream")

        def all_reduce(flag: torch.Tensor, async_op: bool) -> Any:
            note("all_reduce")
            flag += 1  # another rank's request
            return SimpleNamespace(wait=lambda: note("stream waits"))

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: note("new stream"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: InStream())
        monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(
            record=lambda: note("record"), synchronize=lambda: note("host waits for the event")))  # fmt: skip
        monkeypatch.setattr(torch, "full", filled)
        monkeypatch.setattr(torch, "empty", lambda shape, pin_memory: (note("pinned"), empty(shape))[1])
        monkeypatch.setattr(torch, "tensor", lambda *_, **__: note("a copy from the host"))
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        world_module._flag_stream.cache_clear()

    def note(self, call: str) -> None:
        self.calls.append(call)


def test_on_gpus_the_flag_has_a_stream_and_an_event_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    flag = StopFlag(replace(world(), size=2, device=torch.device("cuda", 0)))
    flag.check()
    asked = ["enter stream", "fill 0", "all_reduce", "stream waits", "pinned", "record", "leave stream"]
    assert recorded.calls == ["new stream", *asked]
    with pytest.raises(Stopped):
        flag.close()
    assert recorded.calls[8:] == ["host waits for the event"]  # not for the stream of the forward passes
    world_module._flag_stream.cache_clear()


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_the_last_barrier_names_the_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[int] | None] = []
    monkeypatch.setattr(dist, "barrier", lambda device_ids: given.append(device_ids))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    replace(world(), size=2, device=torch.device(device)).close()
    assert given == [[1] if device == "cuda:1" else None]


def test_cudnn_may_time_its_kernels_where_bits_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)  # restored afterwards
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        for chosen in (False, True):
            start(Train(device="cpu", deterministic=chosen), StopSignal())
            assert torch.backends.cudnn.benchmark is not chosen
            assert torch.are_deterministic_algorithms_enabled() is chosen
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
