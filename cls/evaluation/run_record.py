"""The one reader of a run directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cls.config import Run, flat
from cls.evaluation.predictions import Predictions, read_parquet
from cls.tracking import goodput
from cls.tracking.events import read_events
from cls.tracking.metrics_log import best_row, read_rows
from cls.tracking.run_files import read_classes, read_data, read_run_directory
from cls.tracking.run_status import read_exit, state_of


@dataclass(frozen=True)
class RunRecord:
    """What a run directory holds; each file is read when first asked for. A damaged one is a ValueError that names it.

    A run that has not finished holds less.
    """

    path: Path
    computed: Mapping[str, Predictions] = field(default_factory=dict)
    """Predictions that a command has just computed, by the name they would be stored under."""

    @cached_property
    def run(self) -> Run:
        """config.yaml; ValueError where ``path`` is no run directory."""
        return read_run_directory(self.path)

    @cached_property
    def data(self) -> dict[str, dict[str, Any]]:
        """data.json: the number of images, and more, by split; empty before the run has read its images."""
        return read_data(self.path)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return read_rows(self.path)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The configuration by dotted name, own start weights with the start of their SHA-256: another file may have
        been at that place for another seed."""
        fields = flat(self.run)
        if self.run.model.own_weights and self.weights_sha256:
            fields["model.weights"] += f" ({self.weights_sha256[:8]})"
        return fields

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The validation whose weights are kept (``train.best_on``), the first of equals; None before the first."""
        return best_row(self.rows, self.run.train.best_on)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.path)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The start event of each attempt."""
        return [event for event in self.events if event["event"] == "start"]

    @property
    def weights_sha256(self) -> str:
        """Of the pretrained weights that training started from; '' where there are none, and in early versions.

        The last start that had no checkpoint to resume from: those before it were for nothing.
        """
        return next((str(each["weights_sha256"]) for each in reversed(self.starts) if each.get("weights_sha256")), "")

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """:func:`cls.tracking.goodput.attempts`."""
        return goodput.attempts(self.events)

    @property
    def state(self) -> str:
        """:func:`cls.tracking.run_status.state_of`."""
        return state_of(self.path)

    @property
    def outcome(self) -> str:
        """How the run ended, '' where it has not. With its results written it is done: exit.json is its last file."""
        if self.events and self.events[-1]["event"] == "results":
            return "done"
        return read_exit(self.path).outcome

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Empty before the run has read its images."""
        names = self.path / "classes.txt"
        if self.val is None and names.exists():
            return read_classes(names)
        return self.val.classes if self.val else ()

    def predictions_file(self, name: str) -> Path:
        return self.path / "predictions" / f"{name}.parquet"

    def predictions(self, name: str) -> Predictions | None:
        """Those of the best weights on val, val_tta (averaged over the test-time views) or test, if they are stored."""
        file = self.predictions_file(name)
        return self.computed.get(name) or (read_parquet(file) if file.exists() else None)

    @cached_property
    def val(self) -> Predictions | None:
        return self.predictions("val")

    @cached_property
    def val_tta(self) -> Predictions | None:
        return self.predictions("val_tta")

    @cached_property
    def test(self) -> Predictions | None:
        return self.predictions("test")
