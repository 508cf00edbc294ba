"""Cores and memory available to this process by its control group's limits."""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Cores and bytes; infinite without a limit."""

    cores: float
    memory: float


def cgroup_limits(root: Path = Path("/")) -> Limits:
    """The tightest CPU quota and memory limit of this process's groups (version 1 or 2) and all those above them.

    ``root`` is where /proc and /sys are.
    """
    cores, memory = [math.inf], [math.inf]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        for mount in [base / name for name in names.split(",")] if names else [base, base / "unified"]:
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                if not folder.is_relative_to(mount):
                    break
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                quota = quota or _read(folder / "cpu.cfs_quota_us")
                period = period or _read(folder / "cpu.cfs_period_us")
                if quota not in ("", "max", "-1") and period:
                    cores.append(int(quota) / int(period))
                limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
                if limit not in ("", "max") and int(limit) < 1 << 60:  # version 1 writes no limit as 2**63 less a page
                    memory.append(int(limit))
    return Limits(min(cores), min(memory))


def cores() -> int:
    """Cores this process may use: its CPU affinity, limited by the control group's quota."""
    bound, quota = len(os.sched_getaffinity(0)), cgroup_limits().cores
    return bound if math.isinf(quota) else min(bound, math.ceil(quota))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def memory_bytes() -> tuple[int, int]:
    """Total and available memory of the machine."""
    text = Path("/proc/meminfo").read_text()
    total, available = (re.search(rf"{name}:\s+(\d+) kB", text) for name in ("MemTotal", "MemAvailable"))
    assert total and available
    return int(total[1]) * 1024, int(available[1]) * 1024
