"""The run directory: one writer at a time, one configuration for life."""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Self

from cls.config import Run, change, diff, from_yaml, to_yaml
from cls.files import write_whole
from cls.lives import read_lives
from cls.outcome import ForeignFolderError
from cls.parallel.cluster import Cluster
from cls.parallel.guards import resolve_precision

HEARTBEAT_SECONDS = 30
DEAD_AFTER_SECONDS = 300  # a writer on another host is gone


@dataclasses.dataclass
class Folder:
    """A claimed run directory and the run as it is to be continued."""

    path: Path
    run: Run  # precision resolved, out filled in
    finished: str
    """What the finished run said at its end; '' for a run that goes on."""
    life: int
    """How many lives the run has had before this one."""
    _left: threading.Event | None = None

    def __enter__(self) -> Self:
        """Show other hosts that this writer lives, whatever it is doing, on the rank that holds the lock."""
        if self._mine(_owner(self.path / "lock")):
            self._left = threading.Event()
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back, on the rank that holds it."""
        if self._left:
            self._left.set()
        if self._mine(_owner(self.path / "lock")):
            (self.path / "lock").unlink(missing_ok=True)

    def refuse_successor(self) -> None:
        """ForeignFolderError if another process has taken this one for dead and writes here now (rank 0 only)."""
        owner = _owner(self.path / "lock")
        # none: deleted by hand; "?": could not be read just now: no reasons to die
        if owner and owner["pid"] != "?" and not self._mine(owner):
            raise ForeignFolderError(f"out: {self.path} was taken over by process {owner['pid']} on {owner['host']}")

    @staticmethod
    def _mine(owner: dict[str, str | int]) -> bool:
        return (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid())

    def _beat(self) -> None:
        assert self._left is not None
        while not self._left.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # deleted by hand, or a disk in trouble: no reason to die
                os.utime(self.path / "lock")


def open_folder(run: Run, cluster: Cluster) -> Folder:
    """Create or continue ``run.out`` (called on rank 0 only).

    Raises ValueError when the directory cannot be written, is in use, or belongs to a run with another configuration.
    """
    path = Path(run.out or f"runs/{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "config.yaml").exists() and set(os.listdir(path)) - {"exit.json", "lock"}:
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


def claim(lock: Path) -> None:
    """Take the lock or raise ValueError naming its owner; a dead owner's lock is taken over."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
    mine["birth"] = _birth(os.getpid())
    for _ in range(2):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = _owner(lock)
            if owner and _alive(owner, lock):
                raise ForeignFolderError(
                    f"out: {lock.parent} is being written by process {owner['pid']} on {owner['host']} "
                    f"(job {owner['job'] or '-'}): wait for it, or delete {lock} if it is gone"
                ) from None
            _clear(lock)
            continue
        with os.fdopen(handle, "w") as file:
            json.dump(mine, file)
        return
    raise ForeignFolderError(f"out: {lock} was taken by another process just now: try again")


def in_use(path: Path) -> bool:
    """Whether a living process writes to a run directory."""
    owner = _owner(path / "lock")
    return bool(owner) and _alive(owner, path / "lock")


def _clear(lock: Path) -> None:
    """Take a dead owner's lock away, and no other: somebody else may have done so and be its owner by now."""
    aside = lock.with_name(f"lock.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(lock, aside)
        owner = _owner(aside)
        if owner and _alive(owner, aside):
            with contextlib.suppress(FileExistsError):
                os.link(aside, lock)
        aside.unlink()


def _owner(lock: Path) -> dict[str, str | int]:
    try:
        found = json.loads(lock.read_text())
        return found if isinstance(found, dict) and {"host", "pid", "job", "birth"} <= found.keys() else {}
    except (OSError, ValueError):
        # being written this very moment by somebody else, unless it is old
        fresh = lock.exists() and time.time() - lock.stat().st_mtime < 5
        return {"host": "?", "pid": "?", "job": "", "birth": ""} if fresh else {}


def _alive(owner: dict[str, str | int], lock: Path) -> bool:
    if owner["host"] == socket.gethostname():
        return _birth(int(owner["pid"])) == owner["birth"]
    if owner["job"] and owner["job"] == os.environ.get("SLURM_JOB_ID") and "SLURM_RESTART_COUNT" in os.environ:
        return False  # the same job, requeued: its earlier life is over
    return lock.exists() and time.time() - lock.stat().st_mtime < DEAD_AFTER_SECONDS


def _birth(pid: int) -> str:
    """Start time of a process in clock ticks since boot, '' if there is none: tells a reused pid from the old one."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
            return fields[18] if state not in "ZX" else ""  # in a container nobody may ever bury a zombie
    except OSError:
        return ""
