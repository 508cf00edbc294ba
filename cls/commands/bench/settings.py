"""Steps of one recipe under other settings that change its speed: memory format, reduce, kernels, compiling."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from statistics import median
from typing import Any

import torch

from cls.commands.bench.loop import Trainer, trainer
from cls.config import Run, change
from cls.data.sources import Splits
from cls.distributed.memory_probe import probe
from cls.distributed.world import World
from cls.transforms.mixup import soft_targets

OPTIONS = ("reduce", "channels_last", "deterministic", "compile")
WORTH_IT = 1.1  # times that differ by less are not worth another setting


def combinations(run: Run, device_type: str) -> list[dict[str, Any]]:
    """The settings to try, this run's own first; on a CPU the kernels are the same and compiling takes a minute."""
    own = {name: getattr(run.train, name) for name in OPTIONS} | {"channels_last": run.train.images_channels_last}
    tried = [
        {"reduce": reduce, "channels_last": channels_last, "deterministic": deterministic, "compile": compiled}
        for reduce in ("exact", "fast")
        for channels_last in (True, False)
        for deterministic in ((True, False) if device_type == "cuda" else (own["deterministic"],))
        for compiled in ((False, True) if device_type == "cuda" and reduce == "fast" else (False,))
    ]
    return [own, *(one for one in tried if one != own)]


def measure(run: Run, splits: Splits, world: World, repeats: int, seconds: float) -> dict[str, Any]:
    """Seconds of a step on a resident micro-batch and peak GPU memory, a row per setting.

    ``left_out`` says why there are no rows: all of them would last longer than ``seconds``.
    """
    rows: list[dict[str, Any]] = []
    settings = combinations(run, world.device.type)
    for one in settings:
        row = one | _row(change(run, train=one), splits, world, repeats)
        rows.append(row)
        whole = row.get("step_seconds", 0.0) * (repeats + 1) * (len(settings) - 1)
        if len(rows) == 1 and whole > seconds:
            return {"rows": [], "left_out": f"{len(settings)} settings take about {whole:.0f} s: give --seconds "
                                            f"{ceil(whole)}"}  # fmt: skip
    return {"rows": rows, "text": advice(rows)}


def _row(run: Run, splits: Splits, world: World, repeats: int) -> dict[str, Any]:
    """A setting that does not work here (no compiler, no deterministic kernel, too little memory) is a row, too."""
    cuda = world.device.type == "cuda"
    gc.collect()  # the network of the row before is in a cycle of references
    torch._dynamo.reset()  # compiled code is kept by function, and after eight variants torch compiles no more
    if cuda:
        torch.cuda.empty_cache()
    try:
        with _kernels(run.train.deterministic):
            work = _ready(run, splits, world)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            found: dict[str, Any] = {"step_seconds": median(_steps(work, len(splits.classes), repeats))}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
    if cuda:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found | {"images_per_second": run.train.batch / found["step_seconds"]}


def _ready(run: Run, splits: Splits, world: World) -> Trainer:
    work = trainer(run, splits, world)
    return work._replace(micro_batches=probe(work.micro_batches, work.state.optimizer, run))


def _steps(work: Trainer, classes: int, repeats: int) -> Iterator[float]:
    train, side, device = work.run.train, work.run.data.size, work.world.device
    layout = torch.channels_last if train.images_channels_last else torch.contiguous_format
    pixels = torch.randn(train.micro_batch, 3, side, side, device=device).contiguous(memory_format=layout)
    labels = torch.zeros(train.micro_batch, dtype=torch.int64, device=device)
    resident = pixels, soft_targets(labels, classes, work.run.optim.label_smoothing)
    work.step(0, lambda: resident)
    for step in range(1, repeats + 1):
        yield work.seconds(step, 1, lambda: resident)


@contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    """As :func:`cls.distributed.world.start` chooses them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def advice(rows: list[dict[str, Any]]) -> str:
    """One sentence: the fastest of these settings against the run's own, the first row."""
    own, done = rows[0], [row for row in rows if "step_seconds" in row]
    if "step_seconds" not in own or not done:
        return f"this configuration does not run here: {own.get('failed', '')}"
    best = min(done, key=lambda row: float(row["step_seconds"]))
    gain = own["step_seconds"] / best["step_seconds"]
    if gain < WORTH_IT:
        return "none of these settings is faster here by a tenth or more"
    words = [f"--train.{name.replace('_', '-')} {best[name]}" for name in OPTIONS if best[name] != own[name]]
    return f"{' '.join(words)} is {gain:.2f} times as fast here"
