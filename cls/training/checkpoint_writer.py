"""Save checkpoints: rank 0 writes in a background thread, and a failed save does not end the training."""

import logging
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cls.config import Train
from cls.distributed.world import World
from cls.runtime.exit import ForeignDirectoryError, lost_directory
from cls.tracking.events import EventLog
from cls.tracking.run_dir import RunDir
from cls.training import checkpoint
from cls.training.checkpoint import HostCopies, Snapshot, Tensors
from cls.training.state import History, State

RETRY_SECONDS = 60.0  # after a save that failed
log = logging.getLogger("cls")


PREDICTED = ("predictions/*.parquet", "prediction.csv", "prediction.zip", "report.html")
"""Files in a run directory that the best weights have made: a run that is made longer has those of its shorter form."""


class CheckpointWriter:
    """Checkpoints and best/model.safetensors of one attempt.

    Training waits only for the copy to host memory. The order on disk is checkpoint, best weights, pruning: a kill
    loses nothing, and :func:`repair_best` restores the best weights from their checkpoint. A failed save is logged and
    retried with a newer state; it ends the run only if there is no checkpoint at all yet.
    """

    def __init__(
        self, run_dir: RunDir, world: World, state: State, header: dict[str, str], events: EventLog | None
    ) -> None:
        """``events`` of rank 0; the others have none."""
        self.run_dir, self.world, self.state, self.header, self.events = run_dir, world, state, header, events
        self.checkpoints = run_dir.path / "checkpoints"
        self.copies = HostCopies()
        self.saved = (-1, -1)  # (step, last validation) of the newest request
        self._interval = 60 * run_dir.run.train.save_minutes
        self._due = time.monotonic() + self._interval
        self._thread: threading.Thread | None = None
        self._waiting_best: tuple[int, Tensors] | None = None
        self._problem = ""
        self._slowest, self._over = 0.0, False
        world.on_rank_0(lambda: check_disk_space(run_dir.path, state))
        world.on_rank_0(lambda: repair_best(run_dir.path, state, header, run_dir.run.train))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._thread:
            self._thread.join()

    def due(self) -> bool:
        """Rank 0: True once per checkpoint due inside an epoch. ValueError if the first could not be written."""
        if not self.world.main or (self._thread and self._thread.is_alive()):
            return False
        if self._problem and not checkpoint.checkpoints(self.checkpoints):
            raise ValueError(
                f"{self.checkpoints}: the first checkpoint could not be written ({self._problem}): free space, or use "
                "another --out"
            )
        if (not self._interval and not self._problem) or time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + max(self._interval, RETRY_SECONDS)
        return True

    def save(self, step: int) -> None:
        """Wait for the previous write, copy the state (all ranks call it) and start to write it."""
        with self.world.timer.on("saving"):
            self._save(step)

    def save_and_wait(self, step: int) -> None:
        """:meth:`save` before exit, without returning early: 30 s after one rank exits the launcher kills the others.

        A sharded model is not saved on a stop that cannot wait for other ranks: one shard is useless.
        """
        if self.world.stop.at_once and self.world.fsdp:
            return
        self.save(step)
        if self._thread:
            with self.world.timer.on("saving"):
                self._thread.join()

    def _save(self, step: int) -> None:
        if self._over:  # stopped after finish()
            return
        self._reject_lost()
        if self.saved == (step, self.state.history.validated):  # already saved; the same on all ranks
            return
        since = time.monotonic()
        if self._thread:
            self._thread.join()
        self.saved = (step, self.state.history.validated)
        snapshot = self.copies.snapshot(step, self.state, self.world.main)
        if not self.world.main:
            return
        self.run_dir.reject_successor()
        waited = time.monotonic() - since
        self._due = time.monotonic() + self._interval
        # not a daemon: a write that has begun is finished even if the run ends
        clock = self.world.timer.read()
        self._thread = threading.Thread(target=self._write, args=(snapshot, self._best(snapshot), waited, clock))
        self._thread.start()

    def _reject_lost(self) -> None:
        """ForeignDirectoryError, on all ranks, if the run directory no longer exists."""
        lost = self.world.main and self.run_dir.lost
        if not self.world.stop.at_once:  # then ranks do not communicate
            lost = any(self.world.gather(lost))
        if lost:
            raise ForeignDirectoryError(lost_directory(self.run_dir.path))

    def finish(self) -> None:
        """Wait for the last write; later saves are ignored, since the model will get the best weights.

        Rank 0: ValueError if the best weights could not be written.
        """
        self._over = True
        if self._thread:
            self._thread.join()
        if self._waiting_best:
            step, tensors = self._waiting_best
            try:
                self._write_best(step, tensors)
            except OSError as error:
                raise ValueError(
                    f"{self.run_dir.path}: the best weights could not be written ({error.strerror}): free space, then "
                    "the same command resumes from the last checkpoint"
                ) from error

    def _best(self, snapshot: Snapshot) -> tuple[int, Tensors] | None:
        """The weights to write as the best: this step's after the best epoch, or if there is no complete epoch yet."""
        history, best = self.state.history, self.state.history.best_step(self.run_dir.run.train)
        if best == snapshot.step or (best < 0 and history.validated == snapshot.step):
            return snapshot.step, snapshot.average or snapshot.model
        return self._waiting_best

    def _write(
        self, snapshot: Snapshot, best: tuple[int, Tensors] | None, waited: float, clock: dict[str, float]
    ) -> None:
        since, history = time.monotonic(), History.of(snapshot.progress["history"])
        assert self.events is not None
        try:
            if best and best[0] != snapshot.step:
                self._write_best(*best)  # of a failed save: no checkpoint holds these weights
            path = checkpoint.write(self.checkpoints, snapshot)
            if best and best[0] == snapshot.step:
                self._write_best(*best)
            checkpoint.prune(self.checkpoints, self.run_dir.run.train.keep, history)
            size = sum(file.stat().st_size for file in path.iterdir())
            self._problem = ""
        except Exception as error:  # no failed save may end the training or be silent
            self._failed(snapshot.step, best, error)
            return
        seconds = time.monotonic() - since
        self.world.stop.leave_seconds = self._slowest = max(self._slowest, waited + seconds)
        self.events.add(
            "save", step=snapshot.step, waited=round(waited, 4), seconds=round(seconds, 4), bytes=size, clock=clock
        )

    def _write_best(self, step: int, tensors: Tensors) -> None:
        out = self.run_dir.path
        for file in [file for pattern in PREDICTED for file in out.glob(pattern)]:
            file.unlink(missing_ok=True)
        checkpoint.save_weights(out / "best" / "model.safetensors", tensors, self.header | {"step": str(step)})
        self._waiting_best = None

    def _failed(self, step: int, best: tuple[int, Tensors] | None, error: Exception) -> None:
        self._problem = (error.strerror if isinstance(error, OSError) else "") or f"{type(error).__name__}: {error}"
        self._due = time.monotonic() + RETRY_SECONDS
        if best:
            self._waiting_best = best
            self.copies.release()
        good = checkpoint.checkpoints(self.checkpoints)
        last = f"the last one is {good[-1].name}" if good else "there is none yet"
        assert self.events is not None
        log.warning("checkpoint of step %d could not be written (%s); %s", step, self._problem, last)
        self.events.add("save_failed", step=step, reason=self._problem)


def check_disk_space(out: Path, state: State) -> None:
    """ValueError if one checkpoint and the best weights do not fit on the disk."""
    weights = sum(t.numel() * t.element_size() for t in state.model.state_dict().values())
    moments = 2 if isinstance(state.optimizer, torch.optim.AdamW) else 1
    needed = weights * (1 + moments + (state.average is not None)) + weights
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(
            f"out: {free / 1e6:.0f} MB are free in {out}; one checkpoint and the best weights take {needed / 1e6:.0f}, "
            "and up to train.keep + 2 are kept: free space, or use another --out"
        )


def repair_best(out: Path, state: State, header: dict[str, str], train: Train) -> None:
    """Restore best/model.safetensors from its checkpoint if a kill or a damaged checkpoint left other weights there."""
    best = state.history.best_step(train)
    step = best if best >= 0 else state.history.validated
    if step <= 0 or best_step(out) == step:  # without validation images, and in a smoke run, the last weights are kept
        return
    part = "average" if state.average is not None else "model"
    for path in checkpoint.checkpoints(out / "checkpoints")[::-1]:
        if (checkpoint.step_of(path) or (0, 0))[0] == step and not checkpoint.verify(path):
            weights = load_file(path / f"{part}.safetensors")
            checkpoint.save_weights(out / "best" / "model.safetensors", weights, header | {"step": str(step)})
            return
    log.warning("the best weights (step %d) are lost with their checkpoint: those of the next epoch replace them", step)
    state.history.forget_best(train)


def best_step(out: Path) -> int:
    """The step of best/model.safetensors; -1 if it cannot be read."""
    try:
        with safe_open(out / "best" / "model.safetensors", framework="pt") as file:
            return int((file.metadata() or {})["step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return -1
