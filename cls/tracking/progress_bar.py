"""Training progress at the terminal or in the job's log."""

import math
import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from cls.tracking.metrics_log import Row


class ProgressBar:
    """A bar if standard error is a terminal, else a line every 30 seconds.

    The estimated time left includes validation at its share so far. Epochs count from 1.
    """

    def __init__(self, total_steps: int, start_step: int, *, epochs: float) -> None:
        self._total, self._epochs = total_steps, epochs
        self._row: dict[str, float] = {}
        self._first: tuple[int, float] | None = None  # step and time of the first call, after compiling and loading
        self._shown = -math.inf
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = Bar(
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                auto_refresh=False,  # a thread of its own would make forking loader workers unsafe
                redirect_stdout=sys.stdout.isatty(),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=total_steps, completed=start_step)
            self._bar.start()

    def step(self, step: int, row: Row) -> None:
        """Show a step's figures; costs a clock reading unless an update is due."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
        self._row.update(row)
        if now - self._shown < (0.2 if self._bar else 30.0):
            return
        self._shown = now
        if self._bar:
            self._bar.update(self._task, completed=step, description=self._describe(step, now), refresh=True)
        else:
            self.line(self._describe(step, now))

    def _describe(self, step: int, now: float) -> str:
        row, parts = self._row, [f"step {step}/{self._total}"]
        parts += [f"epoch {row['epoch']:g}/{self._epochs}"] if "epoch" in row else []
        parts += [f"loss {row['train/loss']:.3f}"] if "train/loss" in row else []
        parts += [f"lr {row['train/lr']:.3g}"] if "train/lr" in row else []
        parts += [f"val accuracy {row['val/accuracy']:.3f}"] if "val/accuracy" in row else []
        parts += [f"{row['train/images_per_second']:.0f} img/s"] if "train/images_per_second" in row else []
        assert self._first is not None
        first, since = self._first
        if step > first:
            left = (now - since) / (step - first) * (self._total - step)
            parts.append(f"ETA {timedelta(seconds=round(left))}")
        return "  ".join(parts)

    def line(self, text: str) -> None:
        """Print any other line above the bar, on standard output."""
        print(text, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
