"""The run directory: one writer at a time, one configuration for life."""

import dataclasses
import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

from cls.config import Run, change, diff, from_yaml, to_yaml
from cls.files import ASIDE, drop_asides, write_whole
from cls.lives import read_lives
from cls.lock import Heartbeat, claim, mine, owner_of
from cls.outcome import ForeignFolderError
from cls.parallel.cluster import Cluster
from cls.parallel.guards import resolve_precision


@dataclasses.dataclass
class Folder:
    """A claimed run directory and the run as it is to be continued."""

    path: Path
    run: Run  # precision resolved, out filled in
    finished: str
    """What the finished run said at its end; '' for a run that goes on."""
    life: int
    """How many lives the run has had before this one."""
    _heartbeat: Heartbeat | None = None

    def __enter__(self) -> Self:
        """Keep the lock alive, on the rank that holds it."""
        if mine(owner_of(self.path / "lock")):
            self._heartbeat = Heartbeat(self.path / "lock").__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back, on the rank that holds it."""
        if self._heartbeat:
            self._heartbeat.__exit__()

    def without_threads(self) -> AbstractContextManager[None]:
        """The heartbeat's thread rests inside: no process may be forked beside a thread."""
        return self._heartbeat.paused() if self._heartbeat else nullcontext()

    def refuse_successor(self) -> None:
        """ForeignFolderError if another process has taken this one for dead and writes here now (rank 0 only)."""
        owner = owner_of(self.path / "lock")
        # none: deleted by hand; "?": could not be read just now: no reasons to die
        if owner and owner["pid"] != "?" and not mine(owner):
            raise ForeignFolderError(f"out: {self.path} was taken over by process {owner['pid']} on {owner['host']}")


def open_folder(run: Run, cluster: Cluster) -> Folder:
    """Create or continue ``run.out`` (called on rank 0 only).

    Raises ValueError when the directory cannot be written, is in use, or belongs to a run with another configuration.
    """
    path = Path(run.out or f"runs/{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        others = [name for name in os.listdir(path) if name not in ("exit.json", "lock") and not ASIDE.fullmatch(name)]
        if others and not (path / "config.yaml").exists():
            raise ForeignFolderError(
                f"out: {path} holds other files and no config.yaml: name an empty or a run directory"
            )
        claim(path / "lock")
    except OSError as error:
        raise ValueError(f"out: {path} cannot be written ({error.strerror}): choose another --out") from error
    try:
        return _agree(path, run, cluster)
    except BaseException:
        (path / "lock").unlink(missing_ok=True)
        raise


def _agree(path: Path, run: Run, cluster: Cluster) -> Folder:
    run = dataclasses.replace(run, out=str(path))
    finished, file = "", path / "config.yaml"
    if file.exists():
        try:
            stored = from_yaml(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if run.train.precision == "auto":
            run = change(run, train={"precision": stored.train.precision})
        lines = diff(stored, run)
        if lines:
            changes = "\n  ".join(lines)
            raise ValueError(f"out: {path} holds a run with another configuration; use another --out:\n  {changes}")
        if stored.train.max_steps == run.train.max_steps:
            finished = _said_done(path)
    else:
        run = change(run, train={"precision": resolve_precision(run.train.precision, cluster.device)})
    if finished:
        print(f"{path} is finished: {finished}", flush=True)
    else:
        (path / "exit.json").unlink(missing_ok=True)
        for folder in (path, path / "best", path / "predictions"):
            drop_asides(folder)
        write_whole(path / "config.yaml", to_yaml(run).encode())
    cluster.stop.watch(path)
    lives = [event["life"] for event in read_lives(path) if event["event"] == "start"]
    return Folder(path, run, finished, max(lives, default=-1) + 1)


def _said_done(path: Path) -> str:
    try:
        record = json.loads((path / "exit.json").read_text())
        return str(record["reason"]) if record["outcome"] == "done" else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
