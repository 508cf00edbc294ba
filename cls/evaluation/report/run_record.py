"""What a run directory holds, read once; a run that is not finished holds less."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cls.config import Run
from cls.evaluation.predictions import Predictions, read_parquet
from cls.tracking import goodput
from cls.tracking.events import read_events
from cls.tracking.metrics_log import read_rows
from cls.tracking.run_data import read_classes
from cls.tracking.run_files import read_data, read_run_directory
from cls.tracking.run_status import _outcome


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    folder: Path
    run: Run
    rows: list[dict[str, Any]]
    """metrics.jsonl."""
    attempts: list[dict[str, Any]]
    """:func:`cls.tracking.goodput.attempts`."""
    starts: list[dict[str, Any]]
    """The start event of each attempt."""
    counts: dict[str, int]
    """Training and validation images by split; empty for runs of early versions."""
    outcome: str
    """How the run ended, '' where it has not."""
    val: Predictions | None
    """Validation by the best weights."""
    views: Predictions | None
    """The same averaged over the recipe's test-time views."""
    test: Predictions | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Empty while the run has not stored them."""
        names = self.folder / "classes.txt"
        if self.val is None and names.exists():
            return read_classes(names)
        return self.val.classes if self.val else ()


def read_record(folder: Path) -> RunRecord:
    """ValueError where ``folder`` is no run directory, or a file in it is damaged."""
    run, events = read_run_directory(folder), read_events(folder)
    early: dict[str, Any] = {"command": "", "versions": {}, "job": ""}  # what earlier versions did not note
    return RunRecord(
        folder=folder,
        run=run,
        rows=read_rows(folder),
        attempts=goodput.attempts(events),
        starts=[early | event for event in events if event["event"] == "start"],
        counts={split: facts["images"] for split, facts in read_data(folder).items()},
        outcome=_outcome(folder, events),
        val=_predictions(folder, "val"),
        views=_predictions(folder, "val_tta"),
        test=_predictions(folder, "test"),
    )


def _predictions(folder: Path, name: str) -> Predictions | None:
    path = folder / "predictions" / f"{name}.parquet"
    return read_parquet(path) if path.exists() else None
