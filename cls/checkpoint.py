"""Checkpoints: written aside, hashed, renamed; read back only when every byte is what was written."""

import hashlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cls.files import write_whole
from cls.history import History
from cls.models import load_exact
from cls.state import State

log = logging.getLogger("cls")


def save(folder: Path, step: int, state: State) -> Path:
    """Write ``folder/step-0001234``: whole or absent."""
    final = folder / f"step-{step:07d}"
    aside = folder / f".{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(plain_state(state.model), aside / "model.safetensors")
    progress = {"step": step, "schedule": state.schedule.state_dict(), "history": state.history.state_dict()}
    if state.average is not None:
        save_file(plain_state(state.average.module), aside / "average.safetensors")
        progress["averaged"] = int(state.average.n_averaged)
    torch.save(state.optimizer.state_dict(), aside / "optimizer.pt")
    (aside / "progress.json").write_text(json.dumps(progress))
    hashes = {path.name: _sha256(path) for path in sorted(aside.iterdir())}
    (aside / "manifest.json").write_text(json.dumps({"sha256": hashes, "torch": torch.__version__}, indent=1))
    for path in [*aside.iterdir(), aside]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _sync(folder)
    return final


def restore(folder: Path, state: State) -> int:
    """Load the newest checkpoint that is whole into ``state``; gives its step, 0 when there is none.

    Each damaged one is named in one line. If there are checkpoints but none is whole, that is a ValueError: starting
    over would throw the run away.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        problem = verify(path)
        if problem:
            log.warning("checkpoint %s is damaged (%s): trying the one before", path.name, problem)
            continue
        load_exact(state.model, path / "model.safetensors")
        progress: dict[str, Any] = json.loads((path / "progress.json").read_text())
        if state.average is not None:
            load_exact(state.average.module, path / "average.safetensors")
            state.average.n_averaged.fill_(progress["averaged"])
        try:
            state.optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path / 'optimizer.pt'} was not written by this program; delete {path}") from error
        state.schedule.load_state_dict(progress["schedule"])
        state.history = History.of(progress["history"])
        return int(progress["step"])
    if found:
        raise ValueError(f"{folder}: none of {len(found)} checkpoints is whole; delete the folder to start over")
    return 0


def verify(path: Path) -> str:
    """What is wrong with a checkpoint, or ''."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())["sha256"]
        wrong = [name for name, digest in hashes.items() if _sha256(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{', '.join(wrong)} changed after writing" if wrong else ""


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints of a run, oldest first, whole or damaged; other things beside them are ignored."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def prune(folder: Path, keep: int, history: History) -> None:
    """Delete all but the last ``keep``, the best by accuracy and the best by loss; called after a new one is whole."""
    best = {history.best_accuracy_step, history.best_loss_step}
    for path in checkpoints(folder)[:-keep]:
        if int(path.name.removeprefix("step-")) not in best:
            shutil.rmtree(path, ignore_errors=True)


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """One self-contained safetensors file for prediction and export, replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.torch.save(plain_state(model), metadata))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict on the host in row-major layout, which safetensors needs."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
