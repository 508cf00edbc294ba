"""``cls report``: report.html of a run."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from cls.commands.options import ReportOptions
from cls.config import NO_VALIDATION
from cls.data.dataset import EvalDataset
from cls.data.readers import images_of
from cls.data.sources import Splits
from cls.evaluation.ensemble_record import EnsembleRecord, is_ensemble
from cls.evaluation.report.build import write_page
from cls.evaluation.report.neighbors import nearest_images
from cls.evaluation.report.overlays import heat_maps
from cls.evaluation.report.thumbnails import Pictures, thumbnails
from cls.evaluation.run_record import RunRecord
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import run_data


def report_run(path: str, options: ReportOptions, stop: StopSignal) -> dict[str, Any] | None:
    """Write report.html of a run, from its directory and, if requested, from its best weights; or of an ensemble."""
    if is_ensemble(Path(path)):
        return _report_ensemble(EnsembleRecord(Path(path)), options)
    neighbors, predict = options.neighbors, options.predict
    if min(neighbors, options.heat_maps) < 0:
        raise ValueError(f"--neighbors and --heat-maps must be 0 or more, found {neighbors} and {options.heat_maps}")
    record, file = RunRecord(Path(path)), Path(options.to) if options.to else Path(path) / "report.html"
    # a damaged file is reported before the passes over images
    run, *_ = record.run, record.rows, record.attempts, record.data, record.val, record.val_tta, record.test
    check_output("to", file)
    if (predict or neighbors) and not run.data.validates:
        raise ValueError(f"--predict and --neighbors show validation images: {path} has {NO_VALIDATION}")
    splits, why = _own_images(record, ("train", "val") if neighbors else ("val",))
    if (predict or neighbors) and splits is None:
        raise ValueError(f"--predict and --neighbors need the run's images: {why}")
    if neighbors and not (record.val or predict):
        raise ValueError("--neighbors needs predictions, which this run has not stored yet: add --predict True")
    trained = load_trained_model(path, options.device, options.workers, stop) if predict or neighbors else None
    if trained and splits and predict:
        views = {"val": (), "val_tta": run.augment.tta} if run.augment.tta else {"val": ()}
        stored = {"val": record.val, "val_tta": record.val_tta}
        record = RunRecord(record.path, {
            name: stored[name] or trained.predict(EvalDataset(splits.val, tta, trained.run))
            for name, tta in views.items()
        })  # fmt: skip
    if trained and not trained.world.main:
        return None
    pictures = Pictures(note=f"Without pictures: {why}" if why else "")
    if splits and splits.val and record.val:
        val = images_of(splits.val)
        heat, note = heat_maps(lambda: trained or load_trained_model(path, options.device, options.workers, stop), val,
                               record.val, options.heat_maps)  # fmt: skip
        pictures = Pictures(thumbs=thumbnails(val, record.val), heat=heat, note=note)
        if trained and neighbors:
            near, compared = nearest_images(trained, images_of(splits.train), val, record.val, neighbors)
            pictures = dataclasses.replace(pictures, neighbors=near, note=f"{note} {compared}".strip())
    return _write(record, pictures, file)


def _report_ensemble(record: EnsembleRecord, options: ReportOptions) -> dict[str, Any]:
    """From its directory; the photos are those of its first member, if they are still there."""
    if options.predict or options.neighbors:
        raise ValueError("--predict and --neighbors are for one run: an ensemble has its predictions, and no network")
    file = Path(options.to) if options.to else record.path / "report.html"
    check_output("to", file)
    val, first = record.val, RunRecord(Path(record.members[0]["folder"]))
    try:
        own = run_data(first.path, record.members[0]["run"], first.run, val.classes)
        note = "Without heat maps, which are of one network: the reports of the members have theirs."
        pictures = Pictures(thumbs=thumbnails(images_of(own.val), val), note=note)
    except (ValueError, OSError) as error:
        pictures = Pictures(note=f"Without pictures: {error}")
    return _write(record, pictures, file)


def _write(record: RunRecord | EnsembleRecord, pictures: Pictures, file: Path) -> dict[str, Any]:
    with writing("to", file):
        document = write_page(record, pictures, file)
    print(f"{document['file']} ({document['bytes'] / 1e6:.1f} MB)", file=sys.stderr)
    return document


def _own_images(record: RunRecord, which: tuple[str, ...]) -> tuple[Splits | None, str]:
    """The images a run was trained on, or why they are not available: the report is written without them."""
    if not record.classes:
        return None, f"{record.path} has not read its images yet"
    try:
        return run_data(record.path, str(record.path), record.run, record.classes, which), ""
    except (ValueError, OSError) as error:  # another user's images may not be readable
        return None, str(error)
