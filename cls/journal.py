"""What rank 0 writes and shows while a run goes on; the other ranks' journals do nothing."""

import os
import platform
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from cls import __version__
from cls.folder import Folder
from cls.history import History
from cls.lives import Lives
from cls.outcome import classify
from cls.parallel.cluster import Cluster
from cls.parallel.watch import Finished
from cls.steps import Steps
from cls.track import Progress, Tracker, read_rows


class Journal:
    """metrics.jsonl with its mirrors, lives.jsonl, and the progress display."""

    def __init__(self, folder: Folder, cluster: Cluster, steps: Steps, first: int, model: nn.Module) -> None:
        self.folder, self.count = folder, steps
        self.tracker: Tracker | None = None
        self.figures: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self.lives: Lives | None = None
        self.step = first
        if cluster.main:
            info = describe(cluster, model)
            self.tracker = Tracker(folder.run, folder.path, step=first, info=info)
            self.progress = Progress(steps.total, first, epochs=folder.run.train.epochs)
            self.lives = Lives(folder.path, folder.life)
            self.lives.add(
                "start", step=first, processes=cluster.world, sharded=cluster.fsdp, device=info["device"],
                host=platform.node(), job=os.environ.get("SLURM_JOB_ID", ""),
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
            self.lives.add("end", step=self.step, outcome=classify(error))
            self.lives.close()
            self.progress.close()
            hint = self.tracker.finish(self.figures)
            if hint and kind is None:
                print(hint, flush=True)

    def steps(self, finished: list[Finished]) -> None:
        """Steps whose loss has reached the host."""
        if not self.tracker:
            return
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

    def epoch(self, step: int, figures: dict[str, float], history: History) -> None:
        """A validation: its figures go to the record, one line to the screen."""
        if not self.tracker:
            return
        epoch, best = self.count.epochs_done(step), max(history.best_accuracy, figures["accuracy"])
        self.validated = {"val/accuracy": figures["accuracy"]}
        self.tracker.log({"step": step, "epoch": epoch, **{f"val/{name}": value for name, value in figures.items()}})
        self.progress.line(
            f"epoch {epoch}/{self.count.train.epochs} done  val accuracy {figures['accuracy']:.4f} (best {best:.4f})  "
            f"val loss {figures['loss']:.4f}"
        )

    def result(self, text: str, figures: dict[str, float], pictures: dict[str, Path]) -> None:
        if self.tracker:
            self.tracker.pictures(pictures)
            self.figures = figures
            self.progress.line(text)

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
        "versions": {"cls": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
