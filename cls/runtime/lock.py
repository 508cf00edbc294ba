"""One writer of a run directory at a time, on any host that shares the file system."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cls.runtime.exit import ForeignDirectoryError

HEARTBEAT_SECONDS = 30
DEAD_AFTER_SECONDS = 300  # without a heartbeat, a writer on another host counts as dead


def claim(lock: Path, field: str = "out") -> None:
    """Take the lock or raise ValueError naming ``field`` and the owner; a dead owner's lock is taken over."""
    own = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
    _take(lock, json.dumps(own | {"birth": _birth(os.getpid())}).encode(), f"{field}: {lock.parent}")


def _take(lock: Path, own: bytes, what: str) -> None:
    """Create the lock, or replace that of a dead owner.

    Only the holder of a second lock, named by the hash of the first one's content, may replace it; a process that is
    too late finds other content. The second lock's holder may be dead, too, hence the recursion. Needs only exclusive
    creation and renaming: Lustre may have no flock, other file systems no links.
    """
    for _ in range(2):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            dead, owner = _content(lock), owner_of(lock)
            if owner and _alive(owner, lock):
                job = f" (job {owner['job']})" if owner["job"] else ""
                raise ForeignDirectoryError(
                    f"{what} is being written by process {owner['pid']} on {owner['host']}{job}: wait for it, or "
                    f"delete {lock} if that process no longer exists"
                ) from None
            if dead is None:  # released just now
                continue
            right = lock.with_name(f"{lock.name}.{hashlib.sha256(dead).hexdigest()[:16]}")
            _take(right, own, what)
            if _content(lock) == dead:
                os.rename(right, lock)
                return
            right.unlink()
            continue
        with os.fdopen(handle, "wb") as file:
            file.write(own)
        return
    raise ForeignDirectoryError(f"{what} was taken by another process just now: try again")


class Heartbeat:
    """Touches the lock, so that other hosts see that its owner is alive; removes it at the end."""

    def __init__(self, lock: Path) -> None:
        self.lock = lock
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._left.clear()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if mine(owner_of(self.lock)):
            self.lock.unlink(missing_ok=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the thread inside, so that processes can be forked."""
        self._stop()
        try:
            yield
        finally:
            self.__enter__()

    def _stop(self) -> None:
        self._left.set()
        if self._thread:
            self._thread.join()

    def _beat(self) -> None:
        while not self._left.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # deleted by hand, or a disk error: not fatal
                os.utime(self.lock)


def in_use(path: Path) -> bool:
    """Whether a running process writes to a run directory."""
    owner = owner_of(path / "lock")
    return bool(owner) and _alive(owner, path / "lock")


def _content(lock: Path) -> bytes | None:
    try:
        return lock.read_bytes()
    except FileNotFoundError:
        return None


def owner_of(lock: Path) -> dict[str, str | int]:
    """The lock's owner; empty if there is none, "?" while it is being written."""
    try:
        found = json.loads(lock.read_text())
        texts = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("host", "job", "birth"))
        return found if texts and type(found.get("pid")) is int else {}  # other content is no owner
    except (OSError, ValueError, RecursionError):
        # being written right now, unless it is old
        fresh = lock.exists() and time.time() - lock.stat().st_mtime < 5
        return {"host": "?", "pid": "?", "job": "", "birth": ""} if fresh else {}


def mine(owner: dict[str, str | int]) -> bool:
    """Whether this process is that owner."""
    return (owner.get("host"), owner.get("pid")) == (socket.gethostname(), os.getpid())


def _alive(owner: dict[str, str | int], lock: Path) -> bool:
    if owner["host"] == socket.gethostname():
        return _birth(int(owner["pid"])) == owner["birth"]
    if owner["job"] and owner["job"] == os.environ.get("SLURM_JOB_ID") and "SLURM_RESTART_COUNT" in os.environ:
        return False  # the same job, requeued: its earlier attempt is over
    return lock.exists() and time.time() - lock.stat().st_mtime < DEAD_AFTER_SECONDS


def _birth(pid: int) -> str:
    """Start time of a process in clock ticks since boot, '' if there is none: pids are reused."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
            return (
                fields[18] if state not in "ZX" else ""
            )  # zombies count as dead: in a container they may never be reaped
    except OSError:
        return ""
