"""The device under test and the configurations that are tried on it."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cls import recipes
from cls.commands.bench.run import PUBLISHED
from cls.config import Run, change
from cls.data.sources import Splits, load
from cls.distributed.launch import driver, resolve_precision
from cls.distributed.world import World, start
from cls.runtime.signals import StopSignal
from tests.gpu.rows import Figures

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts, as in cls.distributed.world
GPU, SMALL = torch.cuda.is_available(), bool(os.environ.get("SMALL"))
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
FIRST = "mlp-head"
NAMES = (FIRST, *(name for name in PUBLISHED if name != FIRST))
GIB = 2**30


def describe() -> Figures:
    """Names of card and versions, for the table's title."""
    found: Figures = {"card": torch.cuda.get_device_name() if GPU else "none (CPU)", "torch": torch.__version__}
    if GPU:
        found |= {"GiB": torch.cuda.get_device_properties(DEVICE).total_memory / GIB, "driver": driver()}
        found |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return found | {"Python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}


@dataclass(frozen=True)
class Setting:
    """What the rows share: one process, and the JPEGs below ``out``."""

    out: Path
    world: World
    splits: Splits

    def recipe(self, name: str, channels_last: bool = True, **train: Any) -> Run:
        return recipe(self.out, name, channels_last, **train)


def build_setting(out: Path) -> Setting:
    run = recipe(out, FIRST)
    return Setting(out, start(run.train, StopSignal()), load(run.data, run.seed))


def recipe(out: Path, name: str, channels_last: bool = True, **train: Any) -> Run:
    """The recipe on random weights and the JPEGs below ``out``; sizes as published, tiny ones with SMALL."""
    data: dict[str, Any] = {"path": str(out / "photos")}
    model: dict[str, Any] = {"weights": "none"}
    sizes: dict[str, Any] = {}
    if SMALL:
        data |= {"size": 32, "workers": 1}
        model |= {"backbone": "timm/test_resnet"}
        sizes = {"batch": 8, "micro_batch": 4}
    chosen = {"precision": resolve_precision("auto", DEVICE), **memory_format(channels_last)}
    return change(recipes.get(name), data=data, model=model, train=sizes | chosen | train)


def memory_format(channels_last: bool) -> dict[str, Any]:
    """The field that asks for a memory format."""
    return {"channels_last": channels_last}


def layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
