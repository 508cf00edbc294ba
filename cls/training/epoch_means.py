"""The mean training loss and accuracy of an epoch, from the steps in the record."""

from collections.abc import Iterable

from cls.tracking.metrics_log import Row
from cls.training.steps import Steps

MEANS = {"train/loss": "train/epoch_loss", "train/accuracy": "train/epoch_accuracy"}


class EpochMeans:
    """Sums since the last end of an epoch, in the order of the steps.

    Filled from the record first, so that a resumed run logs the figures of an uninterrupted one.
    """

    def __init__(self, steps: Steps, rows: Iterable[Row]) -> None:
        self.steps, self.step, self.count = steps, 0, 0
        self.sums: dict[str, float] = {}
        for row in rows:
            if "train/loss" in row:
                self.add(row)

    def add(self, row: Row) -> None:
        """The row of a step. An epoch whose steps are not all in the record has no means."""
        step = int(row["step"])
        if self.steps.ends_epoch(step - 1):  # also before the first step
            self.sums, self.count = dict.fromkeys(MEANS, 0.0), 0
        elif step != self.step + 1:
            self.sums = {}
        self.step, self.count = step, self.count + 1
        self.sums = {key: total + row[key] for key, total in self.sums.items() if key in row}

    def at(self, step: int) -> dict[str, float]:
        """The figures of a validation after ``step``: over the steps of its epoch so far."""
        if step != self.step:
            return {}
        return {MEANS[key]: total / self.count for key, total in self.sums.items()}
