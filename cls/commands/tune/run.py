"""``cls tune``: rounds of short complete runs, from which the rate of the whole run follows."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cls.commands.options import TuneOptions
from cls.commands.tune.members import candidate, head_run, starts, with_part_held_out
from cls.commands.tune.rounds import Plan, parts_of
from cls.commands.tune.search import Search, Waiting
from cls.commands.tune.show import show, show_plan
from cls.config import Run, diff, to_yaml
from cls.data.sources import Splits, labels_of, load
from cls.runtime.files import write_whole
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import Seen, drift, look
from cls.tracking.run_files import read_run, stored_classes
from cls.tracking.seen_images import reject_seen
from cls.validate import check

SEVERAL = "train with several --optim.lr and compare the runs (cls compare)"


def tune(run: Run, options: TuneOptions, stop: StopSignal) -> dict[str, Any]:
    """The document of tune.json; without "rate" where SLURM has to run the next candidates first."""
    _reject(run)
    plan, held, splits = _planned(run, options.budget)
    folder = Path(run.out or f"runs/tune-{run.recipe}")
    if plan.fits_head:
        check(head_run(held, plan, folder))
    for rate in starts(run):
        check(candidate(held, plan, folder, rate, plan.rounds[0].steps))
    seen = look(splits)
    reject_seen(held, splits, seen.facts)  # before SLURM is given a run that would find it
    with writing("out", folder):
        _keep(folder, run, plan)
    _reject_drift(folder, seen)
    show_plan(run, plan)
    try:
        document = Search(run, held, plan, folder, options, stop).result()
    except Waiting as waiting:
        print(waiting, file=sys.stderr)
        return {"folder": str(folder), "waiting": str(waiting)}
    with writing("out", folder):
        from cls.commands.tune.picture import write_picture  # matplotlib: 0.6 s

        write_whole(folder / "tune.json", json.dumps(document, indent=1).encode())
        write_picture(document, folder / "tune.png")
    show(document, folder)
    return document


def _reject(run: Run) -> None:
    """ValueError for a run that a search cannot shorten."""
    if run.data.streaming:
        raise ValueError("data.streaming: a search holds out single training images, which a stream cannot: set it off")
    if run.train.max_steps:
        raise ValueError(
            f"train.max_steps is {run.train.max_steps}: a search is for the length of train.epochs, set it to 0"
        )
    if run.optim.head_epochs == run.train.epochs:
        raise ValueError("optim.head_epochs is all of train.epochs: a search is for the rate of the whole network")


def _planned(run: Run, budget: float) -> tuple[Plan, Run, Splits]:
    """The plan, the run with a part of its training images held out, and its images."""
    images = len(load(run.data, run.seed).train)
    if images < (parts := parts_of(images)):
        raise ValueError(f"a search holds out one of {parts} parts of the training images, found {images}: {SEVERAL}")
    held = with_part_held_out(run, parts)
    splits = load(held.data, run.seed)
    assert splits.val is not None
    if len(known := np.unique(labels_of(splits.val))) < 2:
        raise ValueError(
            f"the {len(splits.val)} images that a search would hold out are all of class {splits.classes[known[0]]!r}, "
            f"which every network could learn to guess: {SEVERAL}"
        )
    plan = Plan(images, len(splits.train), len(splits.val), run.train.batch, run.train.epochs,
                run.model.weights != "none", budget)  # fmt: skip
    if run.train.batch > plan.trained:
        raise ValueError(
            f"train.batch is {run.train.batch}, but the short runs of a search train on {plan.trained} images: use a "
            f"smaller batch, or {SEVERAL}"
        )
    return plan, held, splits


def _reject_drift(folder: Path, seen: Seen) -> None:
    """ValueError where the images are not those of the runs that the search has already made."""
    made = sorted(path.parent for path in folder.glob("*/data.json"))
    for path in made[:1]:  # the others are compared with each other
        if text := drift(path, seen, stored_classes(path / "classes.txt", seen.splits.classes)):
            raise ValueError(f"out: {folder} holds a search on other images ({text}): use another --out")


def _keep(folder: Path, run: Run, plan: Plan) -> None:
    """Store the run that is tuned; ValueError where the folder holds another search, whose results would be mixed.

    As long as no run of a search has weights, its settings may be corrected.
    """
    if (folder / "config.yaml").exists():
        raise ValueError(f"out: {folder} is a run directory: name another one for the search")
    folder.mkdir(parents=True, exist_ok=True)
    file, facts = folder / "tune.yaml", f"# {plan.images} images, budget {plan.budget:g}\n"
    if file.exists() and any(folder.glob("*/best")):
        lines, before = diff(read_run(file), run), file.read_text().partition("\n")[0] + "\n"
        if before != facts:
            lines.append(f"{before.strip()} -> {facts.strip()}")
        if lines:
            changes = "\n  ".join(lines)
            raise ValueError(f"out: {folder} holds a search with other settings; use another --out:\n  {changes}")
    write_whole(file, (facts + to_yaml(run)).encode())
