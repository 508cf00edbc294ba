"""Speed and memory of the published networks' steps on this device: ours, a bare PyTorch loop and timm's."""

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn import functional as F

from cls.commands.bench.loop import TimedLoader, Trainer, trainer
from cls.commands.plan.memory import trace_step, workspace
from cls.config import Run
from cls.distributed import speed_probe
from cls.models.build import build_model
from cls.transforms.mixup import soft_targets
from tests.gpu.machine import DEVICE, GIB, GPU, SMALL, Setting, layout
from tests.gpu.rows import Figures, Rows

WARM_UP, STEPS = (1, 1) if SMALL else (3, 8)
CLASSES = 100  # of the loops beside ours
LOADED_STEPS = 2 if SMALL else 20  # with the real loader
AHEAD = 12  # batches that the loader prepares in advance, at most


def sync() -> None:
    if GPU:
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], images: int) -> Figures:
    """Of ``step()``, which trains on so many images. ``host_ms``: a step on an idle device, until it returns."""
    for _ in range(WARM_UP):
        step()
    sync()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    since = time.perf_counter()
    for _ in range(STEPS):
        step()
    sync()
    whole = (time.perf_counter() - since) / STEPS
    since = time.perf_counter()
    step()
    host = time.perf_counter() - since
    sync()
    found = {"images_per_second": images / whole, "step_ms": 1e3 * whole, "host_ms": 1e3 * host}
    if GPU:
        found |= {"peak_gib": torch.cuda.max_memory_allocated() / GIB}
        found |= {"reserved_gib": torch.cuda.max_memory_reserved() / GIB}
    return found


def kernels(deterministic: bool) -> None:
    """As ``start`` sets them, for one row after another in one process."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def built(setting: Setting, run: Run) -> Trainer:
    """With its chunk size set by the probe."""
    kernels(run.train.deterministic)
    return trainer(run, setting.splits, setting.world).resized(run.train.batch, run.train.micro_batch)


def ours(setting: Setting, name: str, channels_last: bool = True, **train: Any) -> Figures:
    """train.py's step on a micro-batch that stays on the device."""
    run = setting.recipe(name, channels_last, **train)
    work = built(setting, run)
    size, side = run.train.micro_batch, run.data.size
    images = torch.randn(size, 3, side, side, device=DEVICE).contiguous(memory_format=layout(channels_last))
    labels = torch.zeros(size, dtype=torch.int64, device=DEVICE)
    resident = images, soft_targets(labels, len(setting.splits.classes), run.optim.label_smoothing)
    chunk = len(work.micro_batches.chunks[0])
    found = timed(lambda: work.step(1, lambda: resident), run.train.batch)
    return found | ({"micro_batches_per_forward": chunk} if run.train.reduce == "fast" else {})


def loaded(setting: Setting, name: str, **train: Any) -> Figures:
    """With the real loader on JPEGs: reading, decoding, augmenting, copying, normalising."""
    run = setting.recipe(name, **train)
    work, size = built(setting, run), run.train.micro_batch
    batch = run.train.batch
    count = (3 + LOADED_STEPS + AHEAD) * batch // size
    lists = [list(range(start, start + size)) for start in range(0, count * size, size)]
    loader = TimedLoader(run, setting.splits, DEVICE, lists)
    work.seconds(0, 3, loader.next)
    loader.waited = 0.0
    seconds = work.seconds(3, LOADED_STEPS, loader.next)
    found: Figures = {"images_per_second": LOADED_STEPS * batch / seconds, "step_ms": 1e3 * seconds / LOADED_STEPS}
    return found | {"waited": f"{loader.waited / seconds:.0%} of the time", "loader_processes": loader.workers}


def bare(setting: Setting, name: str, channels_last: bool = True) -> Figures:
    """PyTorch's usual loop: the whole batch in one forward pass, any kernels, nothing around it."""
    run = setting.recipe(name)
    model = build_model(run.model, CLASSES, 0).to(DEVICE, memory_format=layout(channels_last))
    return loop(run, model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), F.cross_entropy, channels_last)


def timms(setting: Setting, name: str) -> Figures:
    """timm's network of the same name, optimizer and loss in the same loop."""
    run = setting.recipe(name)
    backbone = run.model.backbone.removeprefix("timm/").partition(".")[0]
    model = timm.create_model(backbone, num_classes=CLASSES).to(DEVICE, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=1e-3)
    return loop(run, model, optimizer, SoftTargetCrossEntropy(), True)


def loop(run: Run, model: nn.Module, optimizer: Any, loss: Callable[..., torch.Tensor], channels_last: bool) -> Figures:
    kernels(False)
    batch, side = run.train.batch, run.data.size
    images = torch.randn(batch, 3, side, side, device=DEVICE).contiguous(memory_format=layout(channels_last))
    targets = soft_targets(torch.zeros(batch, dtype=torch.int64, device=DEVICE), CLASSES, 0.0)
    model.train()

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16) if run.train.precision == "bf16" else nullcontext():
            value = loss(model(images), targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, batch)


def planned(setting: Setting, name: str) -> Figures:
    """`cls plan`'s memory for one process beside the highest need of the timed steps."""
    run = setting.recipe(name, reduce="exact")
    count = run.train.batch // run.train.micro_batch
    need = trace_step(run, len(setting.splits.classes), run.train.precision)
    total = need.peak(run.train.micro_batch, range(count)).total
    found: Figures = {"planned_gib": total / GIB, "with_workspace_gib": (total + workspace(total)) / GIB}
    measured = Rows(setting.out).read().get(f"{name} exact", {})
    if "peak_gib" in measured:
        found |= {"measured_gib": measured["peak_gib"], "reserved_gib": measured["reserved_gib"]}
        found |= {"planned_to_measured": total / GIB / measured["peak_gib"]}
    return found


def probed(setting: Setting, name: str) -> Figures:
    """What the first run on a kind of card measures to choose a memory format, and how long that takes."""
    run = setting.recipe(name)
    kernels(run.train.deterministic)
    work = trainer(run, setting.splits, setting.world)
    since = time.perf_counter()
    found = speed_probe.speeds(work.state.model, work.state.optimizer, run, setting.world)
    seconds = time.perf_counter() - since
    return {"measured": "; ".join(speed_probe.lines(found, run, 1)), "seconds": seconds}


def clean() -> None:
    """Return the memory of a row."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
