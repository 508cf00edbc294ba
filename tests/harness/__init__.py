"""Real processes for the tests: runs, launchers, a SLURM cluster, and what is read back from run directories."""

import os
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"

Mount = Callable[[int], Path]  # makes a disk of so many megabytes: the fixture `disk`

# Enough for BatchNorm, dropout, mixing, a moving average and a falling rate to matter, small enough for four processes.
SMALL = [
    "digits", "--data.limit", "100", "--data.workers", "0", "--train.batch", "32", "--train.micro-batch", "8",
    "--train.epochs", "7", "--track.wandb", "disabled", "--train.eval-batch", "16",
]  # fmt: skip

# 8 steps; the epochs end after steps 3, 5 and 8, the first two of them inside a batch; 3 slices a validation
TINY = [
    "digits", "--data.limit", "40", "--data.workers", "0", "--train.batch", "16", "--train.micro-batch", "4",
    "--train.epochs", "3", "--train.eval-batch", "16", "--track.wandb", "disabled", "--model.backbone",
    "timm/test_resnet", "--model.head", "32 bn relu dropout:0.5", "--augment.mixup", "0.4", "--optim.ema", "0.9",
    "--track.ledger", "True",
]  # fmt: skip


def environment(**extra: str) -> dict[str, str]:
    """A clean one: no W&B account, no launcher settings, no network, one thread a process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "ACCELERATE", "SLURM", "FSDP", "CLS_"))}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | extra
