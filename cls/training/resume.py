"""The data of a run: recorded at its first start, compared at each later one."""

import os
import platform

from cls.data.sources import Splits, load
from cls.distributed.world import World
from cls.tracking import run_data
from cls.tracking.run_dir import RunDir
from cls.tracking.run_files import stored_classes
from cls.tracking.seen_images import reject_seen


def load_data(run_dir: RunDir, world: World) -> Splits:
    """The images of a run, checked by :func:`keep_data`."""
    splits = world.on_all_ranks(lambda: load(run_dir.run.data, run_dir.run.seed))
    keep_data(run_dir, splits, world)
    return splits


def keep_data(run_dir: RunDir, splits: Splits, world: World) -> None:
    """Write classes.txt, data.json and sizes.npz at the first start; ValueError for other images at a later one.

    Images are compared by id and label, on which the sample order depends, and by size in bytes. They must be the same
    on all ranks, which may read them from local disks: one process of each node compares the files.
    """
    looks = os.environ.get("LOCAL_RANK", "0") == "0"
    seen = world.on_all_ranks(lambda: run_data.look(splits, contents=looks))
    everywhere = world.gather((platform.node(), seen.facts))
    other = next((host for host, facts in everywhere if not run_data.same_everywhere(everywhere[0][1], facts)), None)
    if other is not None:
        raise ValueError(
            f"data.path: {run_dir.run.data.path} holds other images on {other} than on {everywhere[0][0]}: make them "
            "the same, or delete the older copy"
        )
    world.on_rank_0(lambda: _keep(run_dir, seen))


def _keep(run_dir: RunDir, seen: run_data.Seen) -> None:
    out = run_dir.path
    if not (out / "data.json").exists():
        reject_seen(run_dir.run, seen.splits, seen.facts)
        run_data.keep(out, seen)
        return
    classes = stored_classes(out / "classes.txt", seen.splits.classes)
    if what := run_data.drift(out, seen, classes):
        raise ValueError(
            f"data.path: {run_dir.run.data.path} is not what {out} was started with ({what}): use another --out"
        )
    run_data.complete(out, seen)
