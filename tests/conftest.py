"""Starting real runs: train.py in one process, or in several gloo processes under torchrun."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# Enough for BatchNorm, dropout, mixing, a moving average and a falling rate to matter, small enough for four processes.
SMALL = [
    "digits", "--data.limit", "100", "--data.workers", "0", "--train.batch", "32", "--train.micro-batch", "8",
    "--train.epochs", "7", "--track.wandb", "disabled", "--train.eval-batch", "16",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    code: int
    output: str
    out: Path

    @property
    def exit(self) -> dict[str, Any]:
        return json.loads((self.out / "exit.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a record without what a clock decides."""
    return [
        {k: v for k, v in row.items() if k not in ("time", "train/images_per_second") and not k.startswith("time/")}
        for row in rows
    ]


def environment(**extra: str) -> dict[str, str]:
    """A clean one: no W&B account, no launcher settings, no network, one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "ACCELERATE", "SLURM", "FSDP", "CLS_"))}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | extra


def launch(out: Path, args: list[str], processes: int = 1, script: str = "train.py", **env: str) -> Result:
    """Run a training script to its end; ``processes`` > 1 through torchrun on gloo."""
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    command += [str(ROOT / script), *args, "--out", str(out)]
    done = subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=600, cwd=out.parent)
    return Result(done.returncode, done.stdout + done.stderr, out)


# tests of real processes, without what `pytest` alone runs and without the soak tests of the same files
INTEGRATION = "integration and not promise and not soak"


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "integration":
        config.option.markexpr = INTEGRATION


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start real runs first, the longest ones foremost: the workers then end at about the same time.

    xdist gives each of its three workers two files at once, so three short ones stand behind the three longest.
    """
    long = ("test_slurm", "test_scripts", "test_train", "test_fsdp", "test_any_run", "test_exact", "test_rng",
            "test_steps", "test_main", "test_stopping", "test_survival", "test_disk", "test_report_page", "test_damage",
            "test_memory_probe", "test_plan", "test_plan_memory", "test_doctor", "test_fetch", "test_offline",
            "test_zoo")  # fmt: skip
    order = {f"{name}.py": place for place, name in enumerate(long)}
    items.sort(key=lambda item: order.get(item.path.name, len(long)))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 66 small JPEGs in classes 0 to 11, told apart by hue; validation lacks three classes."""
    root = tmp_path_factory.mktemp("photos")
    for split, count, classes in (("train", 4, range(12)), ("val", 2, range(9)), ("test", 0, ())):
        for label in classes:
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("HSV", (48 + i, 40), (label * 20, 200, 120 + 20 * i)).convert("RGB")
                image.save(folder / f"{label}-{i}.jpg", quality=95)
    flat = root / "test"
    flat.mkdir()
    for i in range(6):
        Image.new("HSV", (40, 40), (i * 20, 200, 150)).convert("RGB").save(flat / f"t{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def clothing() -> Path:
    path = SHARED / "data" / "clothing"
    if not path.is_dir():
        pytest.skip("needs the real photos in ../shared/data/clothing")
    return path
