"""The run directory: one writer at a time, one configuration for all attempts."""

import dataclasses
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import NoReturn, Self

from cls.config import Run, change, diff, to_yaml
from cls.distributed.launch import resolve_automatic
from cls.distributed.world import World
from cls.models.build import check_model
from cls.runtime.exit import ForeignDirectoryError, is_missing, lost_directory
from cls.runtime.files import ASIDE, drop_asides, new_directory, write_whole
from cls.runtime.lock import Heartbeat, claim, mine, owner_of
from cls.runtime.paths import command_line, writing
from cls.tracking.events import read_events
from cls.tracking.run_files import has_checkpoint, read_run, stored_classes
from cls.tracking.run_status import read_exit
from cls.tracking.tracker import check_tracking

FILES = (
    "config.yaml", "data.json", "sizes.npz", "classes.txt", "metrics.jsonl", "metrics.lost.jsonl", "events.jsonl",
    "lives.jsonl", "corrupt_images.csv", "bad_images.csv", "exit.json", "lock", "stop",
)  # fmt: skip
FOLDERS = ("checkpoints", "best", "predictions", "ledger")


@dataclasses.dataclass
class RunDir:
    """A claimed run directory and the configuration to train with."""

    path: Path
    run: Run  # precision resolved, out filled in
    finished: str
    """The last line of a finished run; '' for any other run."""
    attempt: int
    """How many attempts came before this one."""
    unnamed: bool = False
    """Made by this start, without --out."""
    resumes: bool = False
    """There are checkpoints, one of which replaces the start weights."""
    _heartbeat: Heartbeat | None = None

    def __enter__(self) -> Self:
        """Keep the lock alive, on the rank that holds it."""
        if mine(owner_of(self.path / "lock")):
            self._heartbeat = Heartbeat(self.path / "lock").__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock, on the rank that holds it."""
        if self._heartbeat:
            self._heartbeat.__exit__()

    def without_threads(self) -> AbstractContextManager[None]:
        """Pause the heartbeat's thread: processes must not be forked while another thread runs."""
        return self._heartbeat.paused() if self._heartbeat else nullcontext()

    def __post_init__(self) -> None:
        self._mark = self.path / "config.yaml" if (self.path / "config.yaml").exists() else self.path

    @property
    def built(self) -> Run:
        """The run whose state is built: start weights that a checkpoint replaces may be missing by now."""
        return change(self.run, model={"weights": "none"}) if self.resumes else self.run

    @property
    def lost(self) -> bool:
        """Whether the run directory was deleted or renamed under this run."""
        return is_missing(self._mark)

    def store(self, run: Run, world: World) -> None:
        """Train with ``run`` from now on, and when resumed; all ranks call it."""
        self.run = run
        world.on_rank_0(lambda: write_whole(self.path / "config.yaml", to_yaml(run).encode()))

    def reject_successor(self) -> None:
        """Rank 0: ForeignDirectoryError if another process has taken over the lock, or the directory is missing."""
        if self.lost:
            raise ForeignDirectoryError(lost_directory(self.path))
        owner = owner_of(self.path / "lock")
        # no owner: deleted by hand; "?": unreadable at the moment; neither is a reason to stop
        if owner and owner["pid"] != "?" and not mine(owner):
            raise ForeignDirectoryError(f"out: {self.path} was taken over by process {owner['pid']} on {owner['host']}")


def open_run_dir(run: Run, world: World) -> RunDir:
    """Create or continue ``run.out``, or a new directory in runs/ if that is empty; called on rank 0 only.

    ValueError if the model or the trackers cannot work, or the directory cannot be written, is in use, or belongs to a
    run with another configuration.
    """
    check_tracking(run.track)
    resumes = bool(run.out) and has_checkpoint(Path(run.out))
    check_model(dataclasses.replace(run.model, weights="none") if resumes else run.model, run.data)
    name = f"{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    with writing("out", run.out or f"runs/{name}"):
        path = Path(run.out) if run.out else new_directory(Path("runs") / name)
        path.mkdir(parents=True, exist_ok=True)
    try:
        with writing("out", path):
            others = {each for each in os.listdir(path) if not ASIDE.fullmatch(each)} - {"exit.json", "lock"}
            if others and not (path / "config.yaml").exists():
                raise ForeignDirectoryError(
                    f"out: {path} holds other files and no config.yaml: name an empty or a run directory"
                )
            _reject_misplaced(path)
            claim(path / "lock")
        try:
            return _agree(path, run, world)
        except BaseException:
            (path / "lock").unlink(missing_ok=True)
            raise
    except BaseException:
        if not run.out:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _reject_misplaced(path: Path) -> None:
    """ValueError for a directory in place of a run's file, or a file in place of a directory."""
    for name in FILES:
        if (path / name).is_dir():
            raise ValueError(f"{path / name} is a directory, where a run has a file: remove it or use another --out")
    for name in FOLDERS:
        if (path / name).exists() and not (path / name).is_dir():
            raise ValueError(f"{path / name} is a file, where a run has a directory: remove it or use another --out")


def _agree(path: Path, run: Run, world: World) -> RunDir:
    unnamed = not run.out
    run = dataclasses.replace(run, out=str(path))
    finished, file = "", path / "config.yaml"
    if file.exists() and _failed_at_start(path):
        _empty(path)
    if file.exists():
        stored = read_run(file)
        run = resolve_automatic(run, world.device, world.fsdp, stored.train)
        if stored.train.channels_last == "auto":  # ended before it was measured
            stored = change(stored, train={"channels_last": run.train.channels_last})
        lines = diff(stored, run)
        if lines:
            _reject_other(path, stored, run, lines)
        if stored.train.max_steps == run.train.max_steps:
            ended = read_exit(path)
            finished = ended.reason if ended.outcome == "done" else ""
    else:
        run = resolve_automatic(run, world.device, world.fsdp, None)
    if finished:
        print(f"{path} is finished: {finished}", flush=True)
    else:
        (path / "exit.json").unlink(missing_ok=True)
        for folder in (path, path / "best", path / "predictions"):
            drop_asides(folder)
        write_whole(path / "config.yaml", to_yaml(run).encode())
    world.stop.watch(path)
    starts = [event["attempt"] for event in read_events(path) if event["event"] == "start"]
    return RunDir(path, run, finished, max(starts, default=-1) + 1, unnamed, has_checkpoint(path))


def _failed_at_start(path: Path) -> bool:
    """Whether the last attempt failed before its first step: the corrected command may then change any field."""
    if has_checkpoint(path):
        return False
    record, outcome = path / "metrics.jsonl", read_exit(path).outcome
    if outcome == "out_of_memory":  # its message suggests another micro-batch
        return True
    return not (record.exists() and record.stat().st_size > 0) and outcome in ("user_error", "data", "error")


def _empty(path: Path) -> None:
    """Remove the files of failed attempts with another configuration."""
    for name in {*FILES, "wandb_id"} - {"lock", "stop"}:
        (path / name).unlink(missing_ok=True)
    for name in (*FOLDERS, "wandb", "tensorboard"):
        shutil.rmtree(path / name, ignore_errors=True)


def _reject_other(path: Path, stored: Run, run: Run, lines: Sequence[str]) -> NoReturn:
    """ValueError naming the fields that differ and what to do."""
    what = f"out: {path} holds a run with another configuration"
    if len(lines) == 1 and lines[0].startswith("data.path: "):
        raise ValueError(f"{what} ({lines[0]}); {_moved_images(path, stored, run)}")
    changes = "\n  ".join(lines)
    raise ValueError(f"{what}; use another --out:\n  {changes}{_longer(path, stored, run, lines)}")


def _longer(path: Path, stored: Run, run: Run, lines: Sequence[str]) -> str:
    """The command that trains on where more epochs are asked for; '' for other changes, and without best weights."""
    if run.train.epochs <= stored.train.epochs or not (path / "best" / "model.safetensors").is_file():
        return ""
    free = next(str(new) for n in count(2) if not (new := path.with_name(f"{path.name}-{n}")).exists())
    words = ["--start-from", str(path), "--train.epochs", str(run.train.epochs), "--out", free]
    others = " (add the other changes)" if len(lines) > 1 else ""
    return f"\nto train longer, from its best weights: {shlex.join(['python', 'train.py', run.recipe, *words])}{others}"


def _moved_images(path: Path, stored: Run, run: Run) -> str:
    """The advice if only data.path differs: with the same images a run continues exactly."""
    from cls.data.sources import load
    from cls.tracking import run_data  # slow to load, only for this error

    options = {"data.path": stored.data.path, "data.copy": run.data.path, "out": str(path)}
    command = f"the run continues, with the same results, with: {command_line(options)}"
    try:
        found = load(run.data, run.seed)
        drift = run_data.drift(path, run_data.look(found), stored_classes(path / "classes.txt", found.classes))
    except Exception as error:  # any kind: it only decides the text of an error
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        return f"use another --out ({reason}); but if the images were only moved, {command}"
    if not drift:
        return f"{run.data.path} has the same images, so {command}"
    return f"{run.data.path} is not what the run was started with ({drift}): use another --out"
