"""What rank 0 writes and shows while a run goes on; the other ranks' journals do nothing."""

import contextlib
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

from cls import __version__, goodput
from cls.clock import began, queued
from cls.folder import Folder
from cls.history import History
from cls.lives import Lives
from cls.outcome import classify
from cls.parallel.cluster import Cluster
from cls.parallel.watch import Finished
from cls.steps import Steps
from cls.stop import LOOK_SECONDS
from cls.track import Mistake, Progress, Tracker, read_rows, rewind
from cls.track.page import FINISH_SECONDS, LEAVE_SECONDS

# the libraries whose versions decide a result
DECIDE = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "opencv-python-headless", "simplejpeg")


class Journal:
    """metrics.jsonl with its mirrors, lives.jsonl, and the progress display."""

    def __init__(self, folder: Folder, cluster: Cluster, steps: Steps, first: int, model: nn.Module) -> None:
        self.folder, self.count = folder, steps
        self.tracker: Tracker | None = None
        self.figures: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self.lives: Lives | None = None
        self.step, self.cluster, self._looked = first, cluster, time.monotonic()
        if cluster.main:
            gone = goodput.lost(read_rows(folder.path), rewind(folder.path, first))
            before = goodput.so_far(folder.path)["lost_steps"]
            info = describe(cluster, model) | {"lives": folder.life + 1, "lost_steps": before + gone["lost"]}
            self.tracker = Tracker(folder.run, folder.path, info)
            self.progress = Progress(steps.total, first, epochs=folder.run.train.epochs)
            self.lives = Lives(folder.path, folder.life)
            self.lives.add(
                "start", step=first, processes=cluster.world, sharded=cluster.fsdp,
                **{key: info[key] for key in ("device", "host", "job", "nodes", "command", "versions")},
                began=round(began(), 3), queue=round(queued(), 3), **gone,
            )  # fmt: skip
            gloo = " (gloo)" if cluster.world > 1 and cluster.device.type == "cpu" else ""
            self.progress.line(
                f"{folder.run.recipe}: {info['parameters']:,} parameters ({info['trainable']:,} trainable), "
                f"{steps.images:,} training images, {cluster.world} process(es){gloo} on {info['device']}, "
                f"{folder.run.train.precision}, step {first} of {steps.total} -> {folder.path}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.tracker:
            assert self.lives is not None
            self.lives.add("end", step=self.step, outcome=classify(error), clock=self.cluster.clock.read())
            self.lives.close()
            self.progress.close()
            spent = goodput.so_far(self.folder.path)
            self.figures |= {f"time/{part}": seconds for part, seconds in spent["seconds"].items()}
            self.figures |= {key: spent[key] for key in ("goodput", "lives", "lost_steps")}
            hint = self._finish_tracker(stopped=kind is not None)
            if hint and kind is None:
                print(hint, flush=True)

    def _finish_tracker(self, stopped: bool) -> str:
        """A request to stop ends the wait for an upload; where the run was stopped by one, a second Ctrl-C does."""
        assert self.tracker is not None
        stop, seconds = self.cluster.stop, LEAVE_SECONDS if stopped else FINISH_SECONDS
        with stop.deferred("what has been uploaded so far"):
            return self.tracker.finish(self.figures, seconds, lambda: stop.at_once if stopped else bool(stop.reason))

    def steps(self, finished: list[Finished]) -> None:
        """Steps whose loss has reached the host."""
        if not self.tracker:
            return
        self._look()
        for done in finished:
            self.step = done.step
            row = {
                "step": done.step,
                "epoch": self.count.epochs_done(done.step - 1) + 1,
                "train/loss": done.loss,
                "train/lr": done.lr,
                "train/images_per_second": self.count.train.batch / done.seconds,
            }
            self.tracker.log(row)
            self.progress.step(done.step, row | self.validated)

    def _look(self) -> None:
        """Ask for a stop, on which all ranks agree, where the run directory was deleted or renamed: one stat a second.

        Files that are open would take its rows without an error, and be lost.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if self.folder.lost:
                self.cluster.stop.reason = self.cluster.stop.reason or f"{self.folder.path} no longer exists"

    def epoch(self, step: int, figures: dict[str, float], history: History) -> None:
        """A validation: its figures go to the record, one line to the screen; all ranks call it."""
        clocks = self.cluster.gather(self.cluster.clock.read())
        if not self.tracker:
            return
        epoch, best = self.count.epochs_done(step), max(history.best_accuracy, figures["accuracy"])
        self.validated = {"val/accuracy": figures["accuracy"]}
        spent = self.spent(step, clocks)
        self.tracker.log({"step": step, "epoch": epoch, **{f"val/{k}": v for k, v in figures.items()}, **spent})
        self.progress.line(
            f"epoch {epoch}/{self.count.train.epochs} done  val accuracy {figures['accuracy']:.4f} (best {best:.4f})  "
            f"val loss {figures['loss']:.4f}"
        )

    def spent(self, step: int, clocks: list[dict[str, float]]) -> dict[str, float]:
        """Where this life's seconds have gone so far, on rank 0, and the rank that the others waited for."""
        assert self.lives is not None
        rank, longer = goodput.slowest(clocks)
        self.lives.add("epoch", step=step, slowest=rank, clock=clocks[0])
        seconds = {f"time/{kind}": value for kind, value in clocks[0].items()} | {"time/queue": round(queued(), 3)}
        return seconds | {
            "time/goodput": round(goodput.share(clocks[0], queued()), 4),
            "time/slowest_rank": rank,
            "time/slowest_longer": round(longer, 3),
        }

    def result(self, text: str, figures: dict[str, float], pictures: dict[str, Path], mistakes: list[Mistake]) -> None:
        if self.tracker:
            self.tracker.results(pictures, mistakes, self.folder.path / "best" / "model.safetensors")
            self.figures = figures
            self.progress.line(text)

    def results(self) -> None:
        """The predictions are written: where the time has gone until here, for the report."""
        if self.lives:
            self.lives.add("results", step=self.step, clock=self.cluster.clock.read())

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.folder.path)


def describe(cluster: Cluster, model: nn.Module) -> dict[str, Any]:
    """Facts of this life of the run that its configuration does not hold."""
    device = torch.cuda.get_device_name(cluster.device) if cluster.device.type == "cuda" else "CPU"
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "processes": cluster.world,
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
        with contextlib.suppress(PackageNotFoundError):  # another distribution of the same library, as conda's
            found[name] = version(name)
    return found
