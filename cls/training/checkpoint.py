"""Checkpoints: written to a temporary folder, hashed, renamed; verified by hash when read.

They hold whole tensors by name, so a run resumes on any number of ranks, with DDP or FSDP.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cls.distributed.world import World
from cls.models.sharding import like, whole
from cls.models.weights import load_exact
from cls.runtime.files import await_file, replacing, sha256, sync
from cls.training.state import History, State

Tensors = dict[str, Tensor]
log = logging.getLogger("cls")


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state on the host, to be written while training continues."""

    step: int
    model: Tensors
    average: Tensors
    optimizer: Tensors
    progress: dict[str, Any]


class HostCopies:
    """Copies of tensors in host memory, which the next snapshot reuses; pinned if the tensors are on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def snapshot(self, step: int, state: State, main: bool) -> Snapshot:
        """All ranks call it (sharded tensors are gathered one by one); only ``main`` stores the values."""
        progress: dict[str, Any] = {
            "step": step,
            "schedule": state.schedule.state_dict(),
            "history": state.history.state_dict(),
            "rates": [group["lr"] for group in state.optimizer.param_groups],
        }
        average: Tensors = {}
        if state.average is not None:
            average = self._copy("average", state.average.module.state_dict(), main)
            progress["averaged"] = int(state.average.n_averaged)
        model = self._copy("model", state.model.state_dict(), main)
        optimizer = self._copy("optimizer", optimizer_tensors(state.model, state.optimizer), main)
        if any(value.is_cuda for value in state.model.state_dict().values()):
            torch.cuda.synchronize()
        return Snapshot(step, model, average, optimizer, progress)

    def _copy(self, part: str, tensors: Tensors, main: bool) -> Tensors:
        copies: Tensors = {}
        for name, tensor in tensors.items():
            value = whole(tensor.detach())
            if main:
                host = self._buffers.get((part, name))
                if host is None:  # safetensors needs row-major tensors
                    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                    self._buffers[part, name] = host
                copies[name] = host.copy_(value, non_blocking=True)
        return copies

    def release(self) -> None:
        """Do not reuse the memory of earlier snapshots."""
        self._buffers.clear()


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """The optimizer's state by parameter name: ``layer4.0.conv1.weight.exp_avg``."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def write(folder: Path, snapshot: Snapshot) -> Path:
    """Write ``folder/step-0001234``, whole or not at all; a second one of that step is step-0001234-2."""
    names = (f"step-{snapshot.step:07d}" + (f"-{n}" if n > 1 else "") for n in count(1))
    final = folder / next(name for name in names if not (folder / name).exists())
    aside = folder / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)  # a deleted run directory is not created again
        aside.mkdir()
        for part in ("model", "average", "optimizer"):
            if tensors := cast(Tensors, getattr(snapshot, part)):
                _save(tensors, aside / f"{part}.safetensors")
        (aside / "progress.json").write_text(json.dumps(snapshot.progress))
        hashes = {path.name: sha256(path) for path in sorted(aside.iterdir())}
        (aside / "manifest.json").write_text(json.dumps({"sha256": hashes, "torch": torch.__version__}, indent=1))
        for path in [*sorted(aside.iterdir()), aside]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync(path)
        aside.rename(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk the next save needs the space
        raise
    sync(folder)
    return final


def restore(folder: Path, state: State, world: World) -> int:
    """Load the newest valid checkpoint into ``state``, on all ranks; returns its step, 0 if there is none.

    Each damaged one is logged and renamed to ``damaged-step-…``. ValueError if there are checkpoints but none is valid:
    starting over would discard the run.
    """
    world.on_rank_0(lambda: _clean(folder))
    found = world.on_rank_0(lambda: checkpoints(folder)[::-1])
    damaged: list[Path] = []
    for path in found:
        problem = world.on_rank_0(partial(verify, path))
        if not problem:
            world.on_all_ranks(partial(await_file, path / "manifest.json"))
            try:
                step = world.on_all_ranks(partial(load, path, state))
                world.on_rank_0(lambda: _rename_damaged(damaged))
                return step
            except ValueError as error:
                problem = str(error)
        damaged.append(path)
        if world.main:
            log.warning("checkpoint %s cannot be used (%s): trying the one before", path.name, problem)
    if found:
        raise ValueError(f"{folder}: none of {len(found)} checkpoints can be used; delete the folder to start over")
    return 0


def load(path: Path, state: State) -> int:
    """Fill ``state`` from a checkpoint and return its step; ValueError for a file with other content."""
    with _naming("progress.json"):
        progress: dict[str, Any] = json.loads((path / "progress.json").read_text())
        history, step, rates = History.of(progress["history"]), int(progress["step"]), list(progress["rates"])
    with _naming("model.safetensors"):
        load_exact(state.model, path / "model.safetensors")
    if state.average is not None:
        with _naming("average.safetensors"):
            load_exact(state.average.module, path / "average.safetensors")
            state.average.n_averaged.fill_(progress["averaged"])
    with _naming("optimizer.safetensors"):
        _load_optimizer(state, path / "optimizer.safetensors")
    with _naming("progress.json"):
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = float(rate)
        state.schedule.load_state_dict(progress["schedule"])
    state.history = history
    return step


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Any error of reading this file as a ValueError that names it."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error


def _load_optimizer(state: State, file: Path) -> None:
    named = dict(state.model.named_parameters())
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in (load_file(file) if file.exists() else {}).items():  # step 0 has no state
        name, _, kind = key.rpartition(".")
        if value.ndim and value.shape != named[name].shape:
            raise ValueError(f"{key} has shape {list(value.shape)}, the parameter {list(named[name].shape)}")
        by_name.setdefault(name, {})[kind] = like(named[name], value) if value.ndim else value
    order = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    places = {parameter: index for index, parameter in enumerate(order)}
    optimizer = state.optimizer.state_dict()
    optimizer["state"] = {places[named[name]]: values for name, values in by_name.items()}
    state.optimizer.load_state_dict(optimizer)


def verify(path: Path) -> str:
    """The problem with a checkpoint, or ''."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())["sha256"]
        present = {file.name for file in path.iterdir()}  # and perhaps files of a file manager
        missing = {"model.safetensors", "progress.json", *hashes} - present
        if missing:
            return f"{', '.join(sorted(missing))} missing"
        wrong = [name for name, digest in hashes.items() if sha256(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(wrong)} changed after writing" if wrong else ""


def step_of(path: Path) -> tuple[int, int] | None:
    """(step, n) of ``step-0001234`` or, if that name was taken, ``step-0001234-n``; None for anything else."""
    found = re.fullmatch(r"step-(\d+)(?:-(\d+))?", path.name)
    return (int(found[1]), int(found[2] or 1)) if found else None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first, valid or not; other files are ignored."""
    found = {path: step for path in folder.glob("step-*") if (step := step_of(path))}
    return sorted(found, key=found.__getitem__)


def prune(folder: Path, keep: int, history: History) -> None:
    """Delete all but the last ``keep``, the best by accuracy and the best by loss; call it after writing a new one."""
    best = {history.best_accuracy_step, history.best_loss_step}
    newest = {step: path for path in checkpoints(folder) if (step := (step_of(path) or (0, 0))[0])}
    for path in checkpoints(folder)[:-keep]:
        step = (step_of(path) or (0, 0))[0]
        if step not in best or newest[step] != path:
            shutil.rmtree(path, ignore_errors=True)


def _clean(folder: Path) -> None:
    """Delete incomplete checkpoints of a killed attempt."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _rename_damaged(damaged: list[Path]) -> None:
    """They must not count as kept checkpoints; the user may delete them."""
    for path in damaged:
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f"damaged-{path.name}-{time.time():.0f}"))


def save_weights(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """One self-contained safetensors file for prediction and export, replaced whole."""
    path.parent.mkdir(exist_ok=True)  # a deleted run directory is not created again
    with replacing(path, parents=False) as aside:
        _save(tensors, aside, metadata)


def _save(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # also for a full disk
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
