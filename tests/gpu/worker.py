"""Answers the rows of the measurements that have no answer yet, one after another, in this process.

python -m tests.gpu.worker OUT END; END is the time (seconds since 1970) after which no row is started.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.gpu import groups, networks
from tests.gpu.machine import DEVICE, FIRST, NAMES, SMALL, Setting, build_setting
from tests.gpu.rows import FINAL, Figures, Rows

UNUSABLE = 75  # exit status: CUDA in this process does not work any more
SPARE_SECONDS = 5.0  # a row takes at least so long on a GPU
ROW_SECONDS, COMPILE_SECONDS = 60.0, 200.0  # a row that takes longer is stopped
COMPILE = f"{FIRST} fast, compile"


def answers(setting: Setting) -> dict[str, Callable[[], Figures]]:
    """All rows: what matters most comes first, what takes longest comes last."""
    found: dict[str, Callable[[], Figures]] = {
        "norms of unaligned gradients": groups.norms,
        "collectives in a group of one": partial(groups.collectives, setting),
        "DDP in a group of one": partial(groups.ddp, setting),
        "FSDP in a group of one": partial(groups.fsdp, setting),
    }
    for name in NAMES:
        for reduce in ("exact", "fast"):
            found[f"{name} {reduce}"] = partial(networks.ours, setting, name, reduce=reduce)
        found[f"{name} bare loop"] = partial(networks.bare, setting, name)
        found[f"{name} timm's loop"] = partial(networks.timms, setting, name)
    found |= choices(setting)
    for name in NAMES:
        found[f"{name} memory of cls plan"] = partial(networks.planned, setting, name)
    if not SMALL:
        found[COMPILE] = partial(networks.ours, setting, FIRST, reduce="fast", compile=True)
    return found


def choices(setting: Setting) -> dict[str, Callable[[], Figures]]:
    """What can be chosen, for one network."""
    ours = partial(networks.ours, setting, FIRST)
    found: dict[str, Callable[[], Figures]] = {f"{FIRST} first start": partial(networks.probed, setting, FIRST)}
    for reduce in ("exact", "fast"):
        found[f"{FIRST} {reduce}, JPEGs loaded"] = partial(networks.loaded, setting, FIRST, reduce=reduce)
        found[f"{FIRST} {reduce}, channels_last False"] = partial(ours, False, reduce=reduce)
        found[f"{FIRST} {reduce}, deterministic False"] = partial(ours, reduce=reduce, deterministic=False)
    found[f"{FIRST} bare loop, channels_last False"] = partial(networks.bare, setting, FIRST, False)
    for size in (8,) if SMALL else (32, 64):
        found[f"{FIRST} exact, micro-batch {size}"] = partial(ours, reduce="exact", micro_batch=size)
    if not SMALL:
        found[f"{FIRST} exact, fp32"] = partial(ours, reduce="exact", precision="fp32")
    return found


def usable() -> bool:
    """False after an illegal memory access and the like."""
    try:
        torch.zeros(1, device=DEVICE).item()
        return True
    except RuntimeError:
        return False


def main(out: Path, end: float) -> int:
    rows = Rows(out)
    work = answers(build_setting(out))
    rows.plan(work)
    for name, answer in work.items():
        if rows.read()[name]["state"] in FINAL:
            continue
        if time.time() + SPARE_SECONDS > end:
            rows.write(name, "skipped", why="no time was left")
            continue
        rows.write(name, "started", limit_s=COMPILE_SECONDS if name == COMPILE else ROW_SECONDS)
        if not rows.answer(name, answer) and not usable():
            return UNUSABLE
        networks.clean()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
