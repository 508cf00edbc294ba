"""Measurements: quota, disk and data rates, servers that answer."""

import os
import re
import shutil
import statistics
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from pathlib import Path

from cls.transforms.decode import EXTENSIONS

CHUNK = 8 << 20  # bytes
DISK_BYTES = 256 << 20  # written at most


def existing(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


@dataclass(frozen=True)
class Quota:
    """One file system of a user, in bytes; ``limit`` is the smaller of quota and hard limit."""

    name: str
    used: float
    limit: float


def quotas() -> list[Quota]:
    """The output of ``quota`` for this user; nothing if there is no such command, or no answer within 5 s."""
    if not shutil.which("quota"):
        return []
    try:
        return parse_quota(subprocess.run(["quota", "-sw"], capture_output=True, text=True, timeout=5).stdout)
    except subprocess.TimeoutExpired:
        return []


def parse_quota(text: str) -> list[Quota]:
    """Lines of ``quota -sw``: file system, space (with a ``*`` when over quota), quota, limit, …"""
    found = []
    for line in text.splitlines():
        words = line.split()
        sizes = [re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)\*?", word) for word in words[1:4]]
        if len(sizes) == 3 and all(sizes):
            used, *limits = (float(s[1]) * 1024 ** (1 + "KMGTP".find(s[2] or "K")) for s in sizes if s)
            if any(limits):
                found.append(Quota(words[0], used, min(limit for limit in limits if limit)))
    return found


@dataclass(frozen=True)
class Disk:
    """Rates in bytes per second; ``skew`` is how far the file system's clock is ahead of this machine's, seconds."""

    write: float
    read: float
    skew: float


def disk(folder: Path, seconds: float = 5.0) -> Disk:
    """Write up to 256 MiB to ``folder`` (fewer in ``seconds``), wait for the disk, read them, and delete them."""
    path, data = folder / f".cls-doctor-{os.getpid()}", os.urandom(CHUNK)
    try:
        with path.open("wb", buffering=0) as file:
            since, written = time.monotonic(), 0
            while written < DISK_BYTES and time.monotonic() - since < seconds:
                written += file.write(data)
            os.fsync(file.fileno())
            write = written / (time.monotonic() - since)
            os.utime(path)  # the file system's time of now, where that is a server's
            skew = os.stat(path).st_mtime - time.time()
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from the page cache
            since = time.monotonic()
            while file.read(CHUNK):
                pass
            read = written / (time.monotonic() - since)
    finally:
        path.unlink(missing_ok=True)
    return Disk(write, read, skew)


@dataclass(frozen=True)
class Reading:
    """Reading a sample of files one after the other: rates per second; ``latency`` is the median of seconds from
    opening a file to its first byte."""

    files: int
    bytes: int
    seconds: float
    latency: float


def reading(path: Path, files: int = 200, seconds: float = 10.0) -> Reading:
    """Read up to ``files`` images below a folder, spread over the first 5,000 found, or the first 64 MiB of a file."""
    names = [path] if path.is_file() else list(islice(_images(path), 5000))
    chosen = names[:: max(1, len(names) // files)][:files]
    latencies, size, begin = [], 0, time.monotonic()
    for name in chosen:
        since = time.monotonic()
        with name.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # not from the page cache
            size += len(file.read(1))
            latencies.append(time.monotonic() - since)
            size += len(file.read(64 << 20))
        if time.monotonic() - begin > seconds:
            break
    return Reading(len(latencies), size, time.monotonic() - begin, statistics.median(latencies or [0.0]))


def _images(folder: Path) -> Iterator[Path]:
    for above, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        yield from (Path(above, name) for name in sorted(names) if name.lower().endswith(EXTENSIONS))


def reach(addresses: list[str], seconds: float) -> dict[str, str]:
    """'' for each server that answers anything (through the proxy if one is set), else the reason."""
    answers: dict[str, str] = {}

    def ask(address: str) -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
                answers[address] = ""
        except urllib.error.HTTPError:
            answers[address] = ""
        except (OSError, ValueError, HTTPException) as error:
            answers[address] = str(getattr(error, "reason", error)) or type(error).__name__

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    deadline = time.monotonic() + seconds + 0.5
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))  # name resolution has no timeout of its own
    return {address: answers.get(address, f"no answer in {seconds:g} s") for address in addresses}
