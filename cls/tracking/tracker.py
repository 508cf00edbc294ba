"""The log of a run: metrics.jsonl is the record; W&B and TensorBoard mirror it, each in a thread of its own.

A mirror that fails is dropped with one warning. At every start a mirror is filled from the record, so the next process
sends what a killed one had not (W&B keeps up to 32 KiB of rows in memory).
"""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cls.config import Run, Track
from cls.runtime.files import Lines
from cls.tracking import tensorboard, wandb_run
from cls.tracking.background import BackgroundTracker
from cls.tracking.metrics_log import Mistake, Row, encode, read_rows, rewind
from cls.tracking.tensorboard import TensorBoardWriter
from cls.tracking.wandb_run import WandbRun, wandb_key, wandb_mode

__all__ = ["Mistake", "Tracker", "check_tracking", "read_rows", "rewind", "wandb_mode"]


def check_tracking(track: Track) -> None:
    """ValueError for a tracker that could not work: a missing package or a missing key."""
    if track.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "track.tensorboard is on, but the package tensorboard is not installed: pip install 'cls[tensorboard]'"
        )
    if wandb_mode(track) == "online" and not wandb_key():
        raise ValueError(
            "track.wandb is online (or WANDB_MODE is), but no W&B key is known: "
            "run `wandb login`, set WANDB_API_KEY, or use --track.wandb offline"
        )


@dataclass(frozen=True)
class Results:
    """The end of a finished run. Ranks other than 0 have only ``text``."""

    text: str
    figures: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    """PNG files by title."""
    mistakes: list[Mistake] = field(default_factory=list)


class Tracker:
    """The log of one run; used on rank 0 only.

    ``info``: for the W&B config, besides the run's own (parameters, processes, attempts, versions, device).
    """

    def __init__(self, run: Run, out: Path, info: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        rows = read_rows(out)
        self._record = Lines(out / "metrics.jsonl")
        self._mirrors: list[BackgroundTracker] = []
        mode = wandb_mode(run.track)
        if mode != "disabled":
            wandb_run.load()
            self._mirrors.append(BackgroundTracker("W&B", lambda: WandbRun(run, out, mode, rows, info)))
        if run.track.tensorboard:
            tensorboard.load()
            self._mirrors.append(BackgroundTracker("TensorBoard", lambda: TensorBoardWriter(out, rows)))

    def log(self, row: Row) -> None:
        """Write one row: ``step`` (optimizer steps done), ``epoch``, and any of ``train/…``, ``val/…``, ``time/…``.

        ``time`` (unix seconds) is added here.
        """
        timed = {"step": row["step"], "time": round(time.time(), 3), **row}
        self._record.add(encode(timed))
        for mirror in self._mirrors:
            mirror.do(lambda target: target.log(timed))

    def results(self, pictures: Mapping[str, Path], mistakes: Sequence[Mistake], model: Path) -> None:
        """Log PNG files by title, wrong images and, if configured, ``model``: best/model.safetensors."""
        for mirror in self._mirrors:
            mirror.do(lambda target: target.results(pictures, mistakes, model))

    def finish(self, summary: Mapping[str, float], seconds: float, leave: Callable[[], bool] = lambda: False) -> str:
        """Close everything; waits for each mirror at most so long, and until ``leave()``.

        Returns the command that uploads what is left, or ''.
        """
        self._record.close()
        messages = [mirror.finish(summary, seconds, leave) for mirror in self._mirrors]
        self._mirrors.clear()
        return "".join(messages)
