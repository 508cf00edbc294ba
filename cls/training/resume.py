"""The images of a run: stored at its first start, compared at each later one."""

import os
import platform

from cls.data.sources import Splits, load
from cls.distributed.world import World
from cls.tracking import run_data
from cls.tracking.run_dir import RunDir


def load_data(folder: RunDir, world: World) -> Splits:
    """The images of a run, checked by :func:`keep_data`."""
    splits = world.on_all_ranks(lambda: load(folder.run.data, folder.run.seed))
    keep_data(folder, splits, world)
    return splits


def keep_data(folder: RunDir, splits: Splits, world: World) -> None:
    """Write classes.txt, data.json and sizes.npz at the first start; at a later one, other images are a ValueError.

    Images are known by id and label, which image a draw is hangs on them, and by their sizes in bytes. They must be the
    same on all ranks, which may read them from disks of their own: one process of each node looks at the files.
    """
    looks = os.environ.get("LOCAL_RANK", "0") == "0"
    seen = world.on_all_ranks(lambda: run_data.look(splits, contents=looks))
    everywhere = world.gather((platform.node(), seen.facts))
    other = next((host for host, facts in everywhere if not run_data.same_everywhere(everywhere[0][1], facts)), None)
    if other is not None:
        raise ValueError(
            f"data.path: {folder.run.data.path} holds other images on {other} than on {everywhere[0][0]}: make them "
            "the same, or delete the older copy"
        )
    world.on_rank_0(lambda: _keep(folder, seen))


def _keep(folder: RunDir, seen: run_data.Seen) -> None:
    out = folder.path
    if not (out / "data.json").exists():
        run_data.keep(out, seen)
        return
    classes = run_data.stored_classes(out / "classes.txt", seen.splits.classes)
    if what := run_data.drift(out, seen, classes):
        raise ValueError(
            f"data.path: {folder.run.data.path} is not what {out} was started with ({what}): use another --out"
        )
    run_data.complete(out, seen)
