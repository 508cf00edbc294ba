"""`cls bench` as a whole: one document of everything that was measured."""

import importlib.metadata
import json
import os
import platform
import re
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from cls import recipes
from cls.commands.bench import loop, pipelines, settings
from cls.commands.bench.advice import advise, demand
from cls.commands.bench.render import say
from cls.commands.bench.sample import about, choose
from cls.commands.gpus import find, precision_on
from cls.commands.options import BenchOptions
from cls.config import Run, change
from cls.data.readers import images_of
from cls.data.sources import Splits, load
from cls.distributed.launch import resolve_precision
from cls.distributed.world import start
from cls.models.build import check_model
from cls.runtime.files import write_whole
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.runtime.system import cgroup_limits
from cls.training.steps import Steps
from cls.validate import check

PUBLISHED = ("attention-gate", "cbam-mixup", "mlp-head", "se-resnext", "resnet50-mlp")
VERSIONS = ("torch", "torchvision", "datasets", "timm", "pillow", "simplejpeg", "opencv-python-headless", "numpy")


def bench(run: Run, options: BenchOptions, stop: StopSignal) -> dict[str, Any]:
    """All measurements and the advice that follows, also written to ``run.out``/bench.json; ValueError names a field.

    CPU time is counted, but other processes slow these down by sharing caches and memory: the machine should be idle.
    """
    _check(run, options)
    if run.out:
        check_output("out", run.out, folder=True)
    machine = _machine()
    splits = load(run.data, run.seed)
    Steps(len(splits.train), run.train)  # rejects a batch larger than the data before minutes of measuring
    images, runs = images_of(splits.train), pipelines_of(run, options)
    counts = [ceil(options.images / each.train.batch) * each.train.batch for each in runs]
    say(f"reading {max(counts)} of {len(images)} training images …")
    chosen, corrupt = choose(images, run.seed, run.data.balanced, max(counts))
    rows = []
    for each, count in zip(runs, counts, strict=True):
        say(f"{each.recipe}: {options.repeats} repeats of {count} images …")
        rows.append(pipelines.measure(each, images, chosen[:count], options.repeats))
    indices = [one.sample_index for one in chosen[: counts[0]]]
    loops, other = _steps(run, splits, indices, options, stop)
    facts = about(chosen, corrupt)
    want = demand(run, len(splits.classes), options, loops)
    document = {
        "recipe": run.recipe,
        "machine": machine,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        "images": facts | {"in_training_split": len(images)},
        "repeats": options.repeats,
        "measured": pipelines.MEASURED,
        "pipelines": rows,
        "geometric_means": pipelines.geometric_means(rows),
        "loop": loops,
        "settings": other,
        "advice": advise(run, options, want, rows[0], facts["short_side"]["median"], machine["cores"]),
    }
    if run.out:
        with writing("out", run.out):
            write_whole(Path(run.out) / "bench.json", json.dumps(document, indent=1).encode())
    return document


def _steps(
    run: Run, splits: Splits, indices: list[int], options: BenchOptions, stop: StopSignal
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The training loop on this device, and its steps under other settings."""
    say("training loop …")
    world = start(run.train, stop)
    run = change(run, train={"precision": resolve_precision(run.train.precision, world.device)})
    loops = loop.measure(run, splits, indices, options.repeats, options.steps, options.seconds, world)
    if "left_out" in loops:
        return loops, {"rows": [], "left_out": loops["left_out"]}
    say("settings …")
    run = change(run, train={"batch": loops["batch"]})  # smaller than the run's own where a step lasts too long here
    return loops, settings.measure(run, splits, world, options.repeats, options.seconds)


def _check(run: Run, options: BenchOptions) -> None:
    check(run)
    for name in ("images", "repeats", "gpus"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: give 1 or more")
    if options.steps < 0 or options.seconds <= 0:
        raise ValueError(f"steps is {options.steps}, seconds {options.seconds}: give 0 or more steps, and some seconds")
    if options.gpu:
        precision_on(run, find(options.gpu))
    check_model(replace(run.model, weights="none"), run.data)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("bench measures one process: start it without a launcher")


def pipelines_of(run: Run, options: BenchOptions) -> list[Run]:
    """This run, then the other published recipes as they are, on this run's images and seed."""
    others = [name for name in PUBLISHED if options.recipes == "all" and name != run.recipe]
    return [run, *(_on(recipes.get(name), run) for name in others)]


def _on(recipe: Run, run: Run) -> Run:
    own = recipe.data
    data = replace(run.data, size=own.size, eval_frame=own.eval_frame, crop_pct=own.crop_pct, normalize=own.normalize)
    return change(replace(recipe, data=data), seed=run.seed)


def _machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    affinity = len(os.sched_getaffinity(0))
    return {
        "cores": min(float(affinity), cgroup_limits().cores),
        "load_average": os.getloadavg()[0],  # above this process's share: other programs use the cores as well
        "processor": model[1] if model else platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }
