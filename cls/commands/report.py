"""``cls report``: report.html of a run."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from cls.commands.options import ReportOptions
from cls.data.dataset import EvalDataset
from cls.data.readers import images_of
from cls.data.sources import Splits
from cls.evaluation.report import neighbors
from cls.evaluation.report.build import write_page
from cls.evaluation.report.run_record import RunRecord, read_record
from cls.evaluation.report.thumbnails import Pictures, thumbnails
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import run_data


def report_run(path: str, options: ReportOptions, stop: StopSignal) -> dict[str, Any] | None:
    """Write report.html of a run, from its directory and, if requested, from its best weights."""
    neighbours = options.neighbours
    if neighbours < 0:
        raise ValueError(f"--neighbours must be 0 or more, found {neighbours}")
    material, file = read_record(Path(path)), Path(options.to) if options.to else Path(path) / "report.html"
    check_output("to", file)
    splits, why = _own_images(path, material, ("train", "val") if neighbours else ("val",))
    if (options.predict or neighbours) and splits is None:
        raise ValueError(f"--predict and --neighbours need the run's images: {why}")
    if neighbours and not (material.val or options.predict):
        raise ValueError("--neighbours needs predictions, which this run has not stored yet: add --predict True")
    trained = load_trained_model(path, options.device, options.workers, stop) if options.predict or neighbours else None
    if trained and splits and options.predict:
        tta = material.run.augment.tta
        predict = trained.predictor.predict
        val = material.val or predict(EvalDataset(splits.val, (), trained.run))
        views = material.views or (predict(EvalDataset(splits.val, tta, trained.run)) if tta else None)
        material = dataclasses.replace(material, val=val, views=views)
    if trained and not trained.world.main:
        return None
    pictures = Pictures(note=f"Without pictures: {why}" if why else "")
    if splits and material.val:
        images = images_of(splits.val)
        pictures = Pictures(thumbs=thumbnails(images, material.val))
        if trained and neighbours:
            look = neighbors.features(trained.predictor.model, trained.run, trained.predictor.prepare)
            near, note = neighbors.neighbours(
                look, images_of(splits.train), images, material.val, neighbours, trained.run.seed
            )
            pictures = dataclasses.replace(pictures, near=near, note=note)
    with writing("to", file):
        document = write_page(material, pictures, file)
    print(f"{document['file']} ({document['bytes'] / 1e6:.1f} MB)", file=sys.stderr)
    return document


def _own_images(path: str, material: RunRecord, which: tuple[str, ...]) -> tuple[Splits | None, str]:
    """The images a run was trained on, or why they are not available: the report is written without them."""
    if not material.classes:
        return None, f"{path} has not read its images yet"
    try:
        return run_data(material.folder, path, material.run, material.classes, which), ""
    except (ValueError, OSError) as error:  # another user's images may not be readable
        return None, str(error)
