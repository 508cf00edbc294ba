"""What all ranks agree on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from cls.distributed.world import StopFlag, World
from cls.runtime.signals import Stopped
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
