"""Where the numbers of a run go: metrics.jsonl is the record, W&B and TensorBoard mirror it, a progress line shows it.

A mirror that fails is dropped with one warning; training goes on. At every start a mirror is brought up to date from
the record, so what a killed process had not sent (W&B keeps up to 32 KiB of rows in memory) is sent by the next one.
"""

import dataclasses
import importlib.util
import json
import logging
import math
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from cls.config import Run, Track
from cls.files import Lines, write_whole

Row = Mapping[str, float]
Mode = Literal["online", "offline", "disabled"]
LOG = logging.getLogger("cls")
INIT_SECONDS = 60  # a cluster node without internet waits this long at every start, then logs offline
FINISH_SECONDS = 120  # upload at the end; what is left stays on disk for `wandb sync`


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first, null as nan; no file is no rows.

    A last line cut short by a crash is left out; any other broken line is a ValueError.
    """
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is nothing, or half a row
        try:
            row = json.loads(line)
            rows.append({key: math.nan if value is None else value for key, value in row.items()})
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} is not a JSON object ({error}); remove that line") from error
    return rows


def _encode(row: Row) -> bytes:
    # JSON has no nan and no infinity: null, so that any reader can read the file
    plain = {key: value if isinstance(value, int) or math.isfinite(value) else None for key, value in row.items()}
    return json.dumps(plain, allow_nan=False, default=float).encode() + b"\n"


def _rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Move rows beyond the resumed step to metrics.lost.jsonl (first written there, so none is ever lost)."""
    rows = read_rows(folder)
    lost = [row for row in rows if row["step"] > step]
    kept = [row for row in rows if row["step"] <= step]
    if lost:
        with (folder / "metrics.lost.jsonl").open("ab") as file:
            file.write(b"".join(map(_encode, lost)))
            file.flush()
            os.fsync(file.fileno())
    write_whole(folder / "metrics.jsonl", b"".join(map(_encode, kept)))  # also drops half a row at the end
    return kept


def check_tracking(track: Track) -> None:
    """Refuse before training what could not be tracked: a missing package or a missing key is a ValueError."""
    if track.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "track.tensorboard is on, but the package tensorboard is not installed: pip install 'cls[tensorboard]'"
        )
    if wandb_mode(track) == "online" and not _wandb_key():
        raise ValueError(
            "track.wandb is online (or WANDB_MODE is), but no W&B key is known: "
            "run `wandb login`, set WANDB_API_KEY, or use --track.wandb offline"
        )


def wandb_mode(track: Track) -> Mode:
    """The W&B mode: the configured one; with auto, WANDB_MODE if set, else online when a key is known, else offline."""
    if track.wandb != "auto":
        return track.wandb
    match os.environ.get("WANDB_MODE", ""):
        case "":
            return "online" if _wandb_key() else "offline"
        case "online" | "run":
            return "online"
        case "offline" | "dryrun":
            return "offline"
        case "disabled":
            return "disabled"
        case other:
            raise ValueError(f"WANDB_MODE must be online, offline or disabled, found {other!r}")


def _wandb_key() -> bool:
    import wandb  # here and below: 1 s that only rank 0 of a tracked run has to pay

    try:
        wandb.setup(wandb.Settings(silent=True))
        return wandb.login(prompt=False, verify=False)
    except (wandb.errors.AuthenticationError, ValueError) as error:  # a malformed key; a WANDB_* value it refuses
        raise ValueError(f"W&B: {error}; correct it, or use --track.wandb disabled") from error


class Tracker:
    """The log of one run; used on rank 0 only.

    ``step`` is the resumed step, 0 for a new run: rows beyond it move to metrics.lost.jsonl. ``info`` are facts for
    the W&B config besides the run's own (parameters, world size, versions, device).
    """

    def __init__(self, run: Run, folder: Path, *, step: int, info: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = _rewind(folder, step)
        self._record = Lines(folder / "metrics.jsonl")
        self._mirrors: dict[str, _Wandb | _Board] = {}
        starts: dict[str, Callable[[], _Wandb | _Board]] = {}
        mode = wandb_mode(run.track)
        if mode != "disabled":
            starts["W&B"] = lambda: _Wandb(run, folder, mode, rows, info)
        if run.track.tensorboard:
            starts["TensorBoard"] = lambda: _Board(folder, rows)
        for name, start in starts.items():
            try:
                self._mirrors[name] = start()
            except Exception as error:  # whatever a mirror raises
                self._drop(name, error)

    def log(self, row: Row) -> None:
        """Write one row: ``step`` (optimizer steps done), ``epoch``, and any of ``train/…``, ``val/…``.

        ``time`` (unix seconds) is added here.
        """
        timed = {"step": row["step"], "time": round(time.time(), 3), **row}
        self._record.add(_encode(timed))
        self._mirror(lambda mirror: mirror.log(timed))

    def pictures(self, paths: Mapping[str, Path]) -> None:
        """Show PNG files under their names."""
        self._mirror(lambda mirror: mirror.pictures(paths))

    def finish(self, summary: Mapping[str, float]) -> str:
        """Close everything; returns the command that uploads an offline W&B run, else an empty text."""
        said: list[str] = []
        self._mirror(lambda mirror: said.append(mirror.finish(summary)))
        self._mirrors.clear()
        self._record.close()
        return "".join(said)

    def _mirror(self, action: Callable[["_Wandb | _Board"], None]) -> None:
        for name, mirror in list(self._mirrors.items()):
            try:
                action(mirror)
            except Exception as error:  # whatever a mirror raises
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._mirrors.pop(name, None)
        LOG.warning(
            "%s failed and is off for the rest of this process; metrics.jsonl goes on (%s: %s)",
            name, type(error).__name__, str(error).partition("\n")[0],
        )  # fmt: skip


class _Wandb:
    """One W&B run per run directory, whatever the number of processes that carried it."""

    def __init__(self, run: Run, folder: Path, mode: Mode, rows: Sequence[Row], info: dict[str, Any]) -> None:
        import wandb

        try:
            self._run = _init_wandb(run, folder, mode, info)
        except Exception as error:  # no network, a refused key, a server that does not answer
            if mode == "offline":
                raise
            # the data are not lost, only later: nodes without internet are common, and `wandb sync` sends them
            LOG.warning("W&B cannot be reached, logging offline (%s)", str(error).partition("\n")[0])
            wandb.teardown()  # the failed attempt still holds the run id
            self._run = _init_wandb(run, folder, "offline", info)
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")
        self._step = 0
        # What this W&B run already has: nothing when offline (each process writes a new directory), else all before
        # the step it saw last; a row of that step may be sent twice and lies on itself.
        seen = self._run.summary.get("global_step", 0)
        for row in rows:
            if row["step"] >= seen:
                self.log(row)
        if not self._run.offline:
            LOG.info("W&B run: %s", self._run.url)

    def log(self, row: Row) -> None:
        self._step = int(row["step"])
        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        self._run.log({"global_step": self._step, **values})  # never step=: what is behind the server's is dropped

    def pictures(self, paths: Mapping[str, Path]) -> None:
        import wandb

        self._run.log({"global_step": self._step} | {name: wandb.Image(str(path)) for name, path in paths.items()})

    def finish(self, summary: Mapping[str, float]) -> str:
        command = f"wandb sync {shlex.quote(self._run.settings.sync_dir)}"
        self._run.summary.update(dict(summary))
        try:
            self._run.finish()
        except TimeoutError:
            return command
        return command if self._run.offline else ""


def _init_wandb(run: Run, folder: Path, mode: Mode, info: dict[str, Any]) -> Any:
    import wandb

    config = dataclasses.asdict(run) | info
    text = json.dumps(config, default=str)
    for name, value in os.environ.items():
        if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)$", name) and len(value) >= 8 and value in text:
            raise ValueError(f"the configuration contains the value of {name}; nothing was sent")
    stored = folder / "wandb_id"
    if not stored.exists():
        write_whole(stored, (os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)).encode())
    return wandb.init(
        project=run.track.project,
        name=run.track.name or folder.resolve().name,
        id=stored.read_text().strip(),
        resume="allow",
        dir=str(folder.resolve()),
        mode=mode,
        config=config,
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )


class _Board:
    """TensorBoard event files, rebuilt from the record at every start."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0, flush_secs=10)
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        for key, value in row.items():
            if key not in ("step", "time"):
                self._writer.add_scalar(key, value, int(row["step"]), walltime=row["time"])

    def pictures(self, paths: Mapping[str, Path]) -> None:
        """TensorBoard shows curves of its own; the files lie in the run directory."""

    def finish(self, summary: Mapping[str, float]) -> str:
        for key, value in summary.items():
            self._writer.add_scalar(f"summary/{key}", value)
        self._writer.close()
        return ""


class Progress:
    """What a person sees of training: a bar when standard error is a terminal, else a line every 30 seconds.

    The estimated time left counts validation at its share so far. Epochs count from 1.
    """

    def __init__(self, total_steps: int, start_step: int, *, epochs: int) -> None:
        self._total, self._epochs = total_steps, epochs
        self._row: dict[str, float] = {}
        self._first: tuple[int, float] | None = None  # step and time of the first call: compiling and loading are over
        self._shown = -math.inf
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = Bar(
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
                auto_refresh=False,  # no thread that loader processes would be forked beside
                redirect_stdout=sys.stdout.isatty(),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=total_steps, completed=start_step)
            self._bar.start()

    def step(self, step: int, row: Row) -> None:
        """Steps done and what is known of them; costs a clock reading unless something is due."""
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
        """Any other line, above the bar; on standard output, so that it ends up in the job's log."""
        print(text, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
