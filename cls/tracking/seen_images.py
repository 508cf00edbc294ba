"""What runs were trained on: such images do not validate a run that starts from their weights, and measure nothing."""

import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cls.config import Run, flat, from_yaml
from cls.data.readers import Stream
from cls.data.same_files import also_in
from cls.data.sources import Rows, Splits, load
from cls.tracking.run_files import read_data, read_run_directory

log = logging.getLogger("cls")

DIVIDE = ("seed", "data.hold_out", "data.val_fraction", "data.limit")
"""Fields that decide which of the same images validate."""


def reject_seen(run: Run, splits: Splits, facts: dict[str, dict[str, object]]) -> None:
    """ValueError if an earlier run, whose weights this one starts from, was trained on its validation images.

    ``facts``: of :func:`cls.tracking.run_data.look`. Where an earlier run or its images cannot be read any more, that
    is a warning.
    """
    if splits.val is None:
        return
    for source, earlier in earlier_runs(run):
        if earlier is None:
            log.warning("%s may have been trained on images that validate here: it does not exist any more", source)
        elif read_data(source).get("val", {}).get("sha256", "") != facts["val"]["sha256"]:
            _reject(run, source, earlier, splits)


def earlier_runs(run: Run, directory: Path = Path()) -> Iterator[tuple[Path, Run | None]]:
    """The runs whose weights this one, of ``directory``, starts from, the last one first: their directories (of a soup
    or an export its own) and configurations; None for one that does not exist any more.
    """
    known: set[Path] = set()
    while run.model.own_weights:
        place = _near(run.model.weights, directory)
        source, earlier = (Path(run.model.weights), None) if place is None else _trained(place)
        if source in known or (place and earlier is None):  # weights from elsewhere
            return
        yield source, earlier
        if earlier is None:
            return
        known.add(source)
        run, directory = earlier, source


def _near(path: str, directory: Path) -> Path | None:
    """An existing path that a run has; a relative one may begin in any folder above its directory."""
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [folder / given for folder in (Path(), *directory.resolve().parents)]
    return next((place.resolve() for place in places if place.exists()), None)


def _trained(place: Path) -> tuple[Path, Run | None]:
    """The directory and configuration of the run that wrote these weights, or the file itself; None if no run did."""
    folder, file = (place, place / "best" / "model.safetensors") if place.is_dir() else (place.parent, place)
    if file == place and folder.name == "best":
        folder = folder.parent
    if file == place and folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    folder = place if folder == place.parent else folder
    if (folder / "config.yaml").is_file():
        return folder, read_run_directory(folder)
    try:
        with safe_open(file, framework="pt") as opened:
            return folder, from_yaml((opened.metadata() or {})["config"])
    except (OSError, KeyError, ValueError, SafetensorError):  # not of ours, or damaged: loading it will say so
        return folder, None


def _reject(run: Run, source: Path, earlier: Run, splits: Splits) -> None:
    assert splits.val is not None
    print(f"looking for images that {source} was trained on among those that validate", flush=True)
    try:
        train = _training_images(earlier, source)
    except ValueError as error:
        log.warning("%s may have been trained on images that validate here: its own cannot be read (%s)", source, error)
        return
    if train is None:
        log.warning("%s was trained on a stream: whether it has seen images that validate here is not known", source)
        return
    if seen := int(also_in(splits.val, train).sum()):
        raise ValueError(
            f"model.weights: {source} was trained on {seen} of the {len(splits.val)} images that would validate here, "
            f"so figures would be of seen images: {_remedy(run, earlier)}"
        )


def _training_images(run: Run, directory: Path) -> Rows | None:
    """None for a stream; ValueError if they cannot be read."""
    here = _near(run.data.path, directory) if run.data.path != "digits" else None
    train = load(replace(run.data, copy="", path=str(here or run.data.path)), run.seed, quiet=True).train
    return None if isinstance(train, Stream) else train


def _remedy(run: Run, earlier: Run) -> str:
    if "+" in run.data.hold_out:  # a search's: a part of what would train, which no other division leaves unseen
        return f"search with --model.weights {shlex.quote(earlier.model.weights)}, or on images that it has not seen"
    now, then = flat(run), flat(earlier)
    words = [(f"--{name.replace('_', '-')}", str(then[name])) for name in DIVIDE if now[name] != then[name]]
    same = shlex.join([word for pair in words for word in pair])
    return (f"divide the images as that run did ({same}), or " if same else "") + "give the data a val folder"


def seen_by(run: Run, directory: Path, rows: Rows) -> np.ndarray | None:
    """n: whether the run in ``directory``, or one whose weights it started from, was trained on each of these images.

    None where theirs are not on this machine any more, or are a stream; nothing is fetched for this.
    """
    found = np.zeros(len(rows), dtype=bool)
    for place, each in [(directory, run), *earlier_runs(run, directory)]:
        if each is None or (each.data.path != "digits" and _near(each.data.path, place) is None):
            return None
        try:
            train = _training_images(each, place)
        except ValueError:
            return None
        if train is None:
            return None
        found |= also_in(rows, train)
    return found
