"""A file is whole or absent: small files are written aside and renamed into place; lines are only ever added."""

import contextlib
import hashlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

VISIBLE_SECONDS = 120  # a network file system may show another host a new name this late

log = logging.getLogger("cls")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new, never a part."""
    with replacing(path) as aside:
        aside.write_bytes(data)


@contextmanager
def replacing(path: Path, parents: bool = True) -> Iterator[Path]:
    """A temporary path, renamed to ``path`` if the block succeeds and deleted otherwise.

    ``parents``: create missing folders. A run directory that was deleted is never created again.
    The mode is 0644 whatever the umask: other users of a cluster read the run directory.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}-{os.getpid()}"  # process ids are unique on one node only
    aside = path.with_name(f".{path.name}.{own}.tmp")  # same folder: a rename across file systems is a copy
    try:
        yield aside
        aside.chmod(0o644)
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)  # the rename itself must survive a power cut


ASIDE = re.compile(r"\..+-\d+\.tmp")
"""Names that :func:`replacing` writes to."""


def drop_asides(folder: Path) -> None:
    """Delete temporary files of killed processes (as large as a model); call it only where no other process writes."""
    for path in folder.glob(".*.tmp"):
        if ASIDE.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def new_directory(first: Path) -> Path:
    """Make a directory that nobody else makes: ``first``, or the first free one of first-2, first-3, …"""
    first.parent.mkdir(parents=True, exist_ok=True)
    for n in count(1):
        path = first if n == 1 else first.with_name(f"{first.name}-{n}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("count has no end")


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Lines:
    """An append-only file; each line is in the kernel when ``add`` returns, so it survives a kill.

    On a full disk lines are kept in memory and written before the next one: logging must not end the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)  # an incomplete line of a killed attempt
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        self._lock = threading.Lock()  # background saves log, too

    def add(self, line: bytes) -> None:
        with self._lock:
            self._add(line)

    def _add(self, line: bytes) -> None:
        known, self._waiting = bool(self._waiting), self._waiting + line
        try:
            while self._waiting:  # a nearly full disk accepts a part
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not known:
                log.warning("%s cannot be written (%s): its lines wait in memory", self.path, error.strerror)

    def close(self) -> None:
        self.add(b"")
        self._file.close()
        if self._waiting:
            log.warning("%s: the last %d lines could not be written", self.path, self._waiting.count(b"\n"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def await_file(path: Path, good: Callable[[], bool] | None = None) -> None:
    """Wait until a file that rank 0 sees is visible on this host: network file systems show new names late."""
    since = time.monotonic()
    while not _seen(path, good):
        if time.monotonic() - since > VISIBLE_SECONDS:
            raise ValueError(f"{path} is not visible on this host, as it is on rank 0's: run on one shared file system")
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # asks the server again


def _seen(path: Path, good: Callable[[], bool] | None) -> bool:
    try:
        return good() if good else path.exists()
    except OSError:
        return False
