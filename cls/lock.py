"""One writer of a run directory at a time, on any host that shares the file system."""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from cls.outcome import ForeignFolderError

DEAD_AFTER_SECONDS = 300  # a writer on another host is gone


def claim(lock: Path) -> None:
    """Take the lock or raise ValueError naming its owner; a dead owner's lock is taken over."""
    own = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
    own["birth"] = _birth(os.getpid())
    for _ in range(2):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = owner_of(lock)
            if owner and _alive(owner, lock):
                raise ForeignFolderError(
                    f"out: {lock.parent} is being written by process {owner['pid']} on {owner['host']} "
                    f"(job {owner['job'] or '-'}): wait for it, or delete {lock} if it is gone"
                ) from None
            _clear(lock)
            continue
        with os.fdopen(handle, "w") as file:
            json.dump(own, file)
        return
    raise ForeignFolderError(f"out: {lock} was taken by another process just now: try again")


def in_use(path: Path) -> bool:
    """Whether a living process writes to a run directory."""
    owner = owner_of(path / "lock")
    return bool(owner) and _alive(owner, path / "lock")


def state_of(path: Path) -> str:
    """How a run directory stands: running, an outcome of exit.json, or killed where there is none."""
    if in_use(path):
        return "running"
    try:
        return str(json.loads((path / "exit.json").read_text())["outcome"])
    except (OSError, ValueError, KeyError):
        return "running" if in_use(path) else "killed"


def _clear(lock: Path) -> None:
    """Take a dead owner's lock away, and no other: somebody else may have done so and be its owner by now."""
    aside = lock.with_name(f"lock.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(lock, aside)
        owner = owner_of(aside)
        if owner and _alive(owner, aside):
            with contextlib.suppress(FileExistsError):
                os.link(aside, lock)
        aside.unlink()


def owner_of(lock: Path) -> dict[str, str | int]:
    """Who holds a lock; empty if nobody does, "?" while it is being written."""
    try:
        found = json.loads(lock.read_text())
        return found if isinstance(found, dict) and {"host", "pid", "job", "birth"} <= found.keys() else {}
    except (OSError, ValueError):
        # being written this very moment by somebody else, unless it is old
        fresh = lock.exists() and time.time() - lock.stat().st_mtime < 5
        return {"host": "?", "pid": "?", "job": "", "birth": ""} if fresh else {}


def mine(owner: dict[str, str | int]) -> bool:
    """Whether this process is that owner."""
    return (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid())


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
