"""Time on this GPU what cannot be known beforehand: memory formats, exact against fast, deterministic kernels.

Grouped convolutions in channels_last were 30 to 40 times slower than in channels_first with some versions of cuDNN
(pytorch issue 34977) and are faster with others. The times are kept in a file per kind of GPU, versions, network and
sizes, so that all fresh runs on one kind of GPU take the same format, on any number of GPUs.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cls.config import Run, change
from cls.distributed import launch
from cls.distributed.memory_probe import fits, forward_backward
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World
from cls.runtime.files import write_whole
from cls.runtime.paths import cache_folder

REPEATS = 5
SLOW_SECONDS = 0.5  # of one repeat: it is then the only one
FASTER = 1.2  # channels_first is taken only if it is faster by this factor: the default should not change by noise


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Seconds of forward and backward pass of one micro-batch on the slowest rank; infinite where it does not fit."""

    channels_first: float
    channels_last: float
    chunk: int
    """Micro-batches of the largest chunk that ``fast`` could take in one forward pass; 1: no chunk is possible."""
    chunk_seconds: float
    """Of the whole chunk."""
    free: float
    """With kernels that need not give the same bits every time."""

    @property
    def takes_channels_last(self) -> bool:
        return math.isinf(self.channels_first) or self.channels_last < FASTER * self.channels_first

    @property
    def exact(self) -> float:
        """How many times as long a step with ``exact`` takes as one with ``fast``, without the exchange."""
        return self.single * self.chunk / self.chunk_seconds

    @property
    def single(self) -> float:
        """Of one micro-batch in the format taken."""
        return self.channels_last if self.takes_channels_last else self.channels_first


def measures(run: Run, world: World) -> bool:
    """Whether the memory format of this run is still to be measured."""
    return run.train.channels_last == "auto" and launch.times_formats(world.device, world.fsdp)


def speeds(model: nn.Module, optimizer: Optimizer, run: Run, world: World) -> Speeds:
    """Measured now or by an earlier run, the same on all ranks; ``model`` (not in DDP) is left in the format taken.

    Call it before the first step: it takes some seconds the first time.
    """
    path = cache_folder() / "speed" / f"{_digest(run, world)}.json"
    found = world.on_rank_0(lambda: _read(path))
    if found is None:
        found = _measure(model, optimizer, run, world)
        kept = json.dumps({"of": _key(run, world), "seconds": dataclasses.asdict(found)}, indent=1)
        world.on_rank_0(lambda: _write(path, kept))
    _convert(model, found.takes_channels_last)
    return found


def lines(found: Speeds, run: Run, world_size: int) -> list[str]:
    """What was measured, in a line each; chunks only if a rank of this run has as many micro-batches."""
    share = -(-(run.train.batch // run.train.micro_batch) // world_size)
    taken, other = ("channels_last", "channels_first")[:: 1 if found.takes_channels_last else -1]
    times = {name: getattr(found, name) for name in (taken, other)}
    said = [f"memory format: {taken}, {times[taken]:.3g} s a micro-batch; {other} {times[other]:.3g} s"]
    if 1 < found.chunk <= share:
        advice = "; --train.reduce fast to change" if run.train.reduce == "exact" else ""
        said.append(f"exact costs {found.exact:.2f} × fast here (chunks of {found.chunk} micro-batches){advice}")
    if math.isfinite(found.free):
        advice = "; --train.deterministic False to change" if run.train.deterministic else ""
        said.append(f"deterministic kernels cost {found.single / found.free:.2f} × free ones here{advice}")
    return said


def _key(run: Run, world: World) -> dict[str, Any]:
    """Everything that the times depend on."""
    cuda, cudnn = world.device.type == "cuda", torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch's
    model = {name: value for name, value in dataclasses.asdict(run.model).items() if name != "weights"}
    train = run.train
    return {
        "gpu": torch.cuda.get_device_name(world.device) if cuda else "CPU", "torch": torch.__version__,
        "cudnn": cudnn, "model": model, "size": run.data.size,
        "micro_batch": train.micro_batch, "precision": train.precision, "deterministic": train.deterministic,
    }  # fmt: skip


def _digest(run: Run, world: World) -> str:
    return hashlib.sha256(json.dumps(_key(run, world), sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> Speeds | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # an unreadable file is measured again
        return Speeds(**json.loads(path.read_text())["seconds"])
    return None


def _write(path: Path, text: str) -> None:
    with suppress(OSError):  # without a place for it every run measures
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())


def _convert(model: nn.Module, channels_last: bool) -> None:
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _measure(model: nn.Module, optimizer: Optimizer, run: Run, world: World) -> Speeds:
    """All ranks time the same things in the same order."""
    micro = MicroBatches(world, model, run)

    def of(count: int, channels_last: bool) -> float:
        _convert(model, channels_last)
        chosen = change(run, train={"channels_last": channels_last})
        if not all(world.gather(fits(micro, optimizer, chosen, run.train.micro_batch, count))):
            return math.inf
        chunk = range(-count, 0)
        return seconds_of(lambda: forward_backward(micro, chosen, run.train.micro_batch, chunk), world)

    first, last = of(1, False), of(1, True)
    found = Speeds(first, last, 1, math.inf, math.inf)
    taken = found.takes_channels_last
    chunk, seconds = _largest_chunk(micro, lambda count: of(count, taken))
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        free = of(1, taken)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
    return Speeds(first, last, chunk, seconds, free)


def _largest_chunk(micro: MicroBatches, of: Callable[[int], float]) -> tuple[int, float]:
    """A rank's whole share if it fits, else half of it and so on; with its seconds."""
    count = 1 if not micro.norms.chunkable else -(-micro.count // micro.world.size)
    while count > 1:
        seconds = of(count)
        if math.isfinite(seconds):
            return count, seconds
        count = -(-count // 2)
    return 1, math.inf


def seconds_of(work: Callable[[], None], world: World) -> float:
    """Median time of ``work`` on the slowest rank, after a warm-up; all ranks repeat it equally often."""
    work()
    first = max(world.gather(once(work, world)))
    times = [first] if first > SLOW_SECONDS else [once(work, world) for _ in range(REPEATS)]
    return max(world.gather(median(times)))


def once(work: Callable[[], None], world: World) -> float:
    _wait(world)
    since = time.perf_counter()
    work()
    _wait(world)
    return time.perf_counter() - since


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
