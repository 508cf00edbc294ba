"""What a run was trained on: images that validate neither it nor a run that starts from its weights."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np

from cls.config import Run
from cls.data.readers import Stream
from cls.data.same_files import also_in
from cls.data.sources import Rows, Splits, load
from cls.tracking.run_files import read_data, read_run_directory

log = logging.getLogger("cls")


def reject_seen(run: Run, splits: Splits, facts: dict[str, dict[str, object]]) -> None:
    """ValueError if an earlier run, whose weights this one starts from, was trained on its validation images.

    ``facts``: of :func:`cls.tracking.run_data.look`. Where the earlier run's images cannot be read any more, that is a
    warning.
    """
    if splits.val is None:
        return
    known: set[Path] = set()
    source = source_of(run)
    while source is not None and source not in known:
        known.add(source)
        earlier = read_run_directory(source)
        if read_data(source).get("val", {}).get("sha256", "") != facts["val"]["sha256"]:
            _reject(run, source, earlier, splits)
        source = source_of(earlier)


def source_of(run: Run) -> Path | None:
    """The run directory whose best weights are ``model.weights``; None for others, and if it exists no more."""
    if not run.model.own_weights:
        return None
    path = Path(run.model.weights).expanduser()
    folder = path.parent.parent if path.name == "model.safetensors" and path.parent.name == "best" else path
    return folder.resolve() if (folder / "config.yaml").is_file() else None


def _reject(run: Run, source: Path, earlier: Run, splits: Splits) -> None:
    assert splits.val is not None
    print(f"looking for images that {source} was trained on among those that validate", flush=True)
    try:
        train = load(replace(earlier.data, copy=""), earlier.seed, quiet=True).train
    except ValueError as error:
        log.warning("%s may have been trained on images that validate here: its own cannot be read (%s)", source, error)
        return
    if isinstance(train, Stream):
        log.warning("%s was trained on a stream: whether it has seen images that validate here is not known", source)
        return
    if seen := int(also_in(splits.val, train).sum()):
        raise ValueError(
            f"model.weights: {source} was trained on {seen} of the {len(splits.val)} images that would validate here, "
            f"so figures would be of seen images: {_remedy(run, earlier)}"
        )


def _remedy(run: Run, earlier: Run) -> str:
    if "+" in run.data.hold_out:  # a search's: a part of what would train, which no other division leaves unseen
        return f"search with --model.weights {shlex.quote(earlier.model.weights)}, or on images that it has not seen"
    same = ["--seed", str(earlier.seed), "--data.hold-out", earlier.data.hold_out]
    words = shlex.join(same[:2] if earlier.data.hold_out == run.data.hold_out else same)
    return f"divide the images as that run did ({words}), or give the data a val folder"


def seen_by(run: Run, rows: Rows) -> np.ndarray | None:
    """n: whether the run was trained on each of these images; None where its own are not on this machine any more, or
    are a stream.
    """
    if run.data.path != "digits" and not Path(run.data.path).expanduser().exists():  # nothing is fetched for this
        return None
    try:
        train = load(replace(run.data, copy=""), run.seed, quiet=True).train
    except ValueError:
        return None
    return None if isinstance(train, Stream) else also_in(rows, train)
