"""Injected times in place of a GPU's, for the choices that a run makes by measuring."""

import json
import os
from collections.abc import Callable

from cls.distributed import launch, speed_probe
from cls.distributed.world import World

PATCH = "tests.harness.timings:inject"


def inject(_: list[str]) -> None:
    """Measure as on a GPU. FAKE_SECONDS has a list for each rank: what the calls to ``speed_probe.once`` give in turn.

    Times above ``SLOW_SECONDS`` are taken once for each thing that is measured.
    """
    seconds = json.loads(os.environ["FAKE_SECONDS"])

    def once(work: Callable[[], None], world: World) -> float:
        work()
        assert seconds[world.rank], "measured, where the choice was known"
        return float(seconds[world.rank].pop(0))

    speed_probe.once, launch.times_formats = once, lambda device, fsdp: True
