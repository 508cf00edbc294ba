"""Rank 0 logs metrics, events and progress; on other ranks the logger does nothing."""

import contextlib
import logging
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from cls import __version__
from cls.config import NO_VALIDATION
from cls.distributed.world import World
from cls.models.weights import weights_sha256
from cls.runtime.exit import classify
from cls.runtime.signals import LOOK_SECONDS
from cls.runtime.timer import began, queued
from cls.tracking import goodput
from cls.tracking.events import EventLog, read_events
from cls.tracking.metrics_log import read_rows, rewind
from cls.tracking.progress_bar import ProgressBar
from cls.tracking.run_dir import RunDir
from cls.tracking.tracker import Results, Tracker
from cls.tracking.wandb_run import FINISH_SECONDS, LEAVE_SECONDS
from cls.training.epoch_means import EpochMeans
from cls.training.hints import hints
from cls.training.loss_monitor import Finished
from cls.training.state import History
from cls.training.steps import Steps

log = logging.getLogger("cls")
# libraries whose versions may change a result
DECIDE = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "opencv-python-headless", "simplejpeg")


class RunLogger:
    """metrics.jsonl with its mirrors, events.jsonl, and the progress display."""

    def __init__(self, run_dir: RunDir, world: World, steps: Steps, first: int, model: nn.Module) -> None:
        self.run_dir, self.steps = run_dir, steps
        self.tracker: Tracker | None = None
        self.figures: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self.events: EventLog | None = None
        self.step, self.world, self._checked = first, world, time.monotonic()
        if world.main:
            rows = read_rows(run_dir.path)
            discarded = goodput.lost(rows, rewind(run_dir.path, first))
            self.means = EpochMeans(steps, (row for row in rows if row["step"] <= first))
            before = spent_so_far(run_dir.path)["lost_steps"]
            info = describe(world, model) | {"attempts": run_dir.attempt + 1, "lost_steps": before + discarded["lost"]}
            digest = weights_sha256(run_dir.run.model) if first == 0 else ""  # later, the state is a checkpoint's
            weights = {"weights_sha256": digest} if digest else {}
            self.tracker = Tracker(run_dir.run, run_dir.path, info | weights)
            self.progress = ProgressBar(steps.total, first, epochs=run_dir.run.train.epochs)
            self.events = EventLog(run_dir.path, run_dir.attempt)
            self.events.add(
                "start", step=first, processes=world.size, sharded=world.fsdp,
                **{key: info[key] for key in ("device", "host", "job", "nodes", "command", "versions")},
                began=round(began(), 3), queue=round(queued(), 3), **discarded, **weights,
            )  # fmt: skip
            gloo = " (gloo)" if world.size > 1 and world.device.type == "cpu" else ""
            self.progress.line(
                f"{run_dir.run.recipe}: {info['parameters']:,} parameters ({info['trainable']:,} trainable), "
                f"{steps.images:,} training images, {world.size} process(es){gloo} on {info['device']}, "
                f"{run_dir.run.train.precision}, step {first} of {steps.total} -> {run_dir.path}"
            )
            for line in () if first else hints(run_dir.run, world):
                self.progress.line(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.tracker:
            assert self.events is not None
            self.events.add("end", step=self.step, outcome=classify(error), clock=self.world.timer.read())
            self.events.close()
            self.progress.close()
            spent = spent_so_far(self.run_dir.path)
            self.figures |= {f"time/{part}": seconds for part, seconds in spent["seconds"].items()}
            self.figures |= {key: spent[key] for key in ("goodput", "attempts", "lost_steps")}
            hint = self._finish_tracker(stopped=kind is not None)
            if hint and kind is None:
                print(hint, flush=True)

    def _finish_tracker(self, stopped: bool) -> str:
        """A stop request ends the wait for an upload; after a stopped run, a second Ctrl-C does."""
        assert self.tracker is not None
        stop, seconds = self.world.stop, LEAVE_SECONDS if stopped else FINISH_SECONDS
        with stop.deferred("what has been uploaded so far"):
            return self.tracker.finish(self.figures, seconds, lambda: stop.at_once if stopped else bool(stop.reason))

    def log_steps(self, finished: list[Finished]) -> None:
        """Log steps whose loss has reached the host."""
        if not self.tracker:
            return
        self._check_run_dir()
        for done in finished:
            self.step = done.step
            row = {
                "step": done.step,
                "epoch": self.steps.epoch_of(done.step),
                "train/loss": done.loss,
                "train/accuracy": done.accuracy,
                "train/lr": done.lr,
                "train/images_per_second": self.steps.train.batch / done.seconds,
            }
            self.means.add(row)
            self.tracker.log(row)
            self.progress.step(done.step, row | self.validated)

    def _check_run_dir(self) -> None:
        """Request a stop if the run directory was deleted or renamed; one stat per second.

        Writes to its open files would succeed, and be lost.
        """
        now = time.monotonic()
        if now - self._checked >= LOOK_SECONDS:
            self._checked = now
            if self.run_dir.lost:
                self.world.stop.reason = self.world.stop.reason or f"{self.run_dir.path} no longer exists"

    def log_validation(self, step: int, figures: dict[str, float], history: History) -> None:
        """Log the end of an epoch with its validation, if there is one, and print one line; all ranks call it."""
        clocks = self.world.gather(self.world.timer.read())
        if not self.tracker:
            return
        epoch, spent, words = self.steps.epoch_after(step), self._time_spent(step, clocks), NO_VALIDATION
        if figures:
            self.validated = {"val/accuracy": figures["accuracy"]}
            best = max(history.best_accuracy, figures["accuracy"])
            words = f"val accuracy {figures['accuracy']:.4f} (best {best:.4f})  val loss {figures['loss']:.4f}"
        validated = {f"val/{key}": value for key, value in figures.items()}
        self.tracker.log({"step": step, "epoch": epoch, **self.means.at(step), **validated, **spent})
        epochs = self.steps.train.epochs
        done = (
            f"epoch {epoch}/{epochs} done"
            if self.steps.ends_epoch(step)
            else f"step {step}, in epoch {min(epoch + 1, epochs)}/{epochs}"
        )
        self.progress.line(f"{done}  {words}")

    def _time_spent(self, step: int, clocks: list[dict[str, float]]) -> dict[str, float]:
        """This attempt's seconds by kind, on rank 0, and the slowest rank."""
        assert self.events is not None
        rank, longer = goodput.slowest(clocks)
        self.events.add("epoch", step=step, slowest=rank, clock=clocks[0])
        seconds = clocks[0] | {"queue": round(queued(), 3)}
        return {f"time/{part}": value for part, value in seconds.items()} | {
            "time/goodput": round(goodput.share(seconds), 4),
            "time/slowest_rank": rank,
            "time/slowest_longer": round(longer, 3),
        }

    def log_results(self, results: Results) -> str:
        """Log the results of the finished run and return its last line."""
        if self.tracker:
            best = self.run_dir.path / "best" / "model.safetensors"
            self.tracker.results(results.pictures, results.mistakes, best)
            self.figures = results.figures
            self.progress.line(results.text)
        return results.text

    def log_predicted(self) -> None:
        """Log the time spent until the predictions were written, for the report."""
        if self.events:
            self.events.add("results", step=self.step, clock=self.world.timer.read())


def spent_so_far(folder: Path) -> dict[str, Any]:
    """:func:`goodput.total` of a run in progress: damaged events are a warning, they must not end the run."""
    try:
        return goodput.total(goodput.attempts(read_events(folder)))
    except Exception as error:  # a record only: training does not depend on it
        log.warning("goodput is not known: %s", error)
        return goodput.total([])


def describe(world: World, model: nn.Module) -> dict[str, Any]:
    """Facts of this attempt that the configuration does not contain."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "processes": world.size,
        "device": device,
        "host": platform.node(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "command": shlex.join(sys.argv),
        "versions": {"cls": __version__, "python": platform.python_version()} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in DECIDE:
        with contextlib.suppress(PackageNotFoundError):  # conda may use another distribution name
            found[name] = version(name)
    return found
