"""Memory and file descriptors of a long run, read from the kernel during the run."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT, environment

STEPS, SETTLED = int(os.environ.get("CLS_SOAK_STEPS", 10_000)), 0.2  # share of the steps until all is warm
RUN = [
    "digits", "--data.size", "32", "--data.workers", "1", "--train.batch", "2", "--train.micro-batch", "2",
    "--train.epochs", "1000", "--train.max-steps", str(STEPS), "--train.eval-batch", "64", "--track.wandb", "disabled",
    "--model.backbone", "timm/test_resnet", "--model.weights", "none",
]  # fmt: skip


def anonymous_bytes(pid: int) -> int:
    """Memory of no file. Not the private part of it, which a fork halves."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return 1024 * int(found.group(1))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def steps_done(out: Path) -> int:
    """From the last whole row of the record."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        rows = file.read().split(b"\n")[1:-1]
    return int(json.loads(rows[-1])["step"]) if rows else 0


def slope(points: list[tuple[int, int]]) -> float:
    """Bytes per step: the median of the last fifth against that of the first, so that a passing snapshot is nothing."""
    fifth = max(1, len(points) // 5)
    first, last = sorted(points[:fifth], key=lambda p: p[1]), sorted(points[-fifth:], key=lambda p: p[1])
    (a, low), (b, high) = first[len(first) // 2], last[len(last) // 2]
    return (high - low) / (b - a)


@pytest.mark.soak
def test_ten_thousand_steps_leave_nothing_behind(tmp_path: Path) -> None:
    """Less than 100 bytes a step in the main process and in its loader process, and no further descriptor.

    14 epochs with their validations and checkpoints; the loader process is the oldest child.
    CLS_SOAK_STEPS makes it shorter.
    """
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *RUN, "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, cwd=tmp_path)
    memory: dict[str, list[tuple[int, int]]] = {"main": [], "loader": []}
    files: dict[str, list[int]] = {"main": [], "loader": []}
    while process.poll() is None:
        time.sleep(0.25)
        done = steps_done(out)
        if not SETTLED * STEPS <= done < STEPS:
            continue
        try:
            for name, pid in (("main", process.pid), ("loader", min(children(process.pid)))):
                memory[name].append((done, anonymous_bytes(pid)))
                files[name].append(descriptors(pid))
        except (FileNotFoundError, ProcessLookupError, ValueError):
            assert process.poll() is not None or done > STEPS - 50, (tmp_path / "log").read_text()
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert len(memory["main"]) > 50
    for name, points in memory.items():
        found = slope(points)
        print(f"{name}: {found:.1f} bytes a step, {points[-1][1] / 1e6:.0f} MB at the end", end="; ")
        print(f"{min(files[name])} to {max(files[name])} descriptors")
        assert found < 100
        fifth = len(points) // 5
        assert min(files[name][-fifth:]) <= min(files[name][:fifth])
