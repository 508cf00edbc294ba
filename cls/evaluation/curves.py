"""Loss and accuracy of several runs over epochs, as data: training and validation, seeds pooled."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cls.evaluation.ensemble_record import made_of
from cls.evaluation.groups import Named, group_up
from cls.evaluation.run_record import RunRecord

PANELS = {
    "train/epoch_loss": "Training loss", "val/loss": "Validation loss",
    "train/epoch_accuracy": "Training accuracy", "val/accuracy": "Validation accuracy",
}  # fmt: skip
"""Field of the record -> its title."""

Lines = dict[str, dict[float, float]]
"""Field -> epoch -> value; an epoch is named by its number, from 1."""


@dataclass(frozen=True)
class Curve:
    """One line over epochs: the mean of the runs, and their lowest and highest value."""

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class CurveGroup:
    """Runs that differ only in the seed."""

    name: str
    runs: list[Lines]
    loss: str = "ce"
    """optim.loss: the squared errors of some runs and the log losses of others have no common axis."""

    def curve(self, panel: str) -> Curve:
        """Over the epochs that all runs have: a mean of fewer seeds would jump where one ends."""
        own = [run[panel] for run in self.runs]
        epochs = sorted(set.intersection(*map(set, own)))
        values = np.array([[line[epoch] for epoch in epochs] for line in own]).reshape(len(own), -1)
        parts = (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
        return Curve(epochs, *(part.tolist() for part in parts))


def lines_of(record: RunRecord) -> Lines:
    """The figures at the ends of epochs; a record without means has those of its steps' losses."""
    steps = defaultdict(list)
    ends: dict[float, dict[str, Any]] = {}
    for row in record.rows:
        if "train/loss" in row:
            steps[row["epoch"]].append(row["train/loss"])
        elif row.get("epoch", 0) > 0:
            ends.setdefault(row["epoch"], row)  # a smoke run validates again inside the next epoch
    lines: Lines = {
        panel: {epoch: row[panel] for epoch, row in ends.items() if np.isfinite(row.get(panel, np.nan))}
        for panel in PANELS
    }
    for epoch in ends:
        if steps[epoch]:
            lines["train/epoch_loss"].setdefault(epoch, float(np.mean(steps[epoch])))
    return lines


def read_groups(paths: Sequence[str]) -> tuple[list[CurveGroup], dict[str, str]]:
    """The groups of ``cls compare``, also of runs that have not finished; and what is skipped, with the reason.

    ValueError for a path that does not exist, a damaged file, or if nothing is left.
    """
    found: dict[str, Lines] = {}
    skipped: dict[str, str] = {}
    members = []
    for path in dict.fromkeys(paths):
        given = Path(path)
        if reason := _without_record(given):
            skipped[path] = reason
            continue
        record = RunRecord(given)
        found[path] = lines_of(record)
        if not any(found[path].values()):
            skipped[path] = "no epoch has ended"
            continue
        members.append(Named(path, "", record.fields))
    if not members:
        raise ValueError("curves: there is nothing to draw: " + said(skipped))
    groups = [
        CurveGroup(group.name, [found[member.name] for member in group.members], group.members[0].config["optim.loss"])
        for group in group_up(members)
    ]
    return groups, skipped


def _without_record(given: Path) -> str:
    if not given.exists():
        raise ValueError(f"{given} does not exist: name run directories")
    if given.suffix == ".parquet" and given.is_file():
        return "a file of predictions has no curves"
    if made := made_of(given):
        return f"{made}, which have curves of their own"
    return "" if (given / "config.yaml").is_file() else "no config.yaml"


def said(skipped: Mapping[str, str]) -> str:
    return ", ".join(f"{path} ({reason})" for path, reason in skipped.items())
