"""A finished command and what its run directory holds."""

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cls.training.checkpoint import checkpoints, verify


@dataclass(frozen=True)
class Result:
    codes: list[int]  # one per process; minus the signal's number
    output: str
    out: Path
    seconds: float = 0

    @property
    def code(self) -> int:
        """0 if all processes ended well."""
        return max(self.codes, key=abs)

    @property
    def exit(self) -> dict[str, Any]:
        return json.loads((self.out / "exit.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def faults(self) -> list[str]:
        """Moments of the planted faults that happened in this run directory so far."""
        path = self.out.parent / f"{self.out.name}.faults"
        return path.read_text().splitlines() if path.exists() else []


def wandb_records(file: Path) -> list[dict[str, Any]]:
    """The records of a W&B file, by W&B's own reader; before 0.30 there is none and the test is skipped."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "No such" in done.stderr:
        pytest.skip("this version of W&B cannot print its files")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a record without what a clock decides."""
    return [
        {k: v for k, v in row.items() if k not in ("time", "train/images_per_second") and not k.startswith("time/")}
        for row in rows
    ]


def bits(result: Result) -> dict[str, Any]:
    """Losses, rates and validation of each step, final weights and average, best weights, predictions, ledger."""
    last = checkpoints(result.out / "checkpoints")[-1]
    files = [last / "model.safetensors", last / "average.safetensors", last / "optimizer.safetensors"]
    found: dict[str, Any] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    predictions = pq.read_table(result.out / "predictions" / "val.parquet").to_pydict()
    return found | {"rows": timeless(result.rows), "predictions": predictions, "images": images(result.out)}


def images(out: Path) -> dict[int, tuple[str, str]]:
    """Image and pixel hash of each sample index of the steps that count; {} without a ledger."""
    found = {}
    for path in sorted((out / "ledger").glob("*")):
        for row in csv.reader(path.open(newline="")):
            if len(row) == 4 and len(row[3]) == 32:
                found[int(row[1])] = (row[2], row[3])
    return found


def saved(out: Path) -> list[tuple[int, int]]:
    """(step, last validation) of each checkpoint, all of them whole."""
    found = checkpoints(out / "checkpoints")
    assert [verify(path) for path in found] == [""] * len(found)
    progress = [json.loads((path / "progress.json").read_text()) for path in found]
    return [(record["step"], record["history"]["validated"]) for record in progress]
