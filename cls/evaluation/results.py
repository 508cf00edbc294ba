"""Files written at the end of a run: predictions, the submission CSV, pictures, the report page."""

import dataclasses
import logging
from functools import partial
from pathlib import Path

from cls.config import NO_VALIDATION
from cls.data.dataset import EvalSets
from cls.data.readers import images_of
from cls.data.sources import Splits
from cls.evaluation.inference import Predictor
from cls.evaluation.metrics import summary
from cls.evaluation.model_file import fallback_class
from cls.evaluation.predictions import write_csv, write_parquet
from cls.evaluation.run_record import RunRecord
from cls.evaluation.trained_model import load_trained_model
from cls.models.weights import load_exact
from cls.runtime.files import await_file, sha256
from cls.tracking.metrics_log import read_rows
from cls.tracking.tracker import Results

log = logging.getLogger("cls")


def write_results(out: Path, splits: Splits, images: EvalSets, predictor: Predictor) -> Results:
    """Load the best weights of run directory ``out``, predict validation and test, and write all files."""
    world = predictor.world
    world.timer.turn("evaluation")
    best = out / "best" / "model.safetensors"
    written = world.on_rank_0(lambda: sha256(best))
    world.on_all_ranks(lambda: await_file(best, lambda: sha256(best) == written))
    world.on_all_ranks(lambda: load_exact(predictor.model, best))
    found = {name: predictor.predict(one) for name, one in images.named().items()}
    val = found.get("val")
    figures = {f"best/{name}": value for name, value in summary(val).items()} if val else {}
    by_loss = predictor.run.train.best_on == "loss"
    chosen = "validation accuracy at the lowest loss" if by_loss else "best validation accuracy"
    text = f"{chosen} {figures['best/accuracy']:.4f}" if val else f"done; {NO_VALIDATION}"
    if views := found.get("val_tta"):
        figures["best/accuracy_tta"] = summary(views)["accuracy"]
        text += f", with test-time views {figures['best/accuracy_tta']:.4f}"
    if not world.main:
        return Results(text)
    (out / "predictions").mkdir(exist_ok=True)
    for name, predictions in found.items():
        write_parquet(out / "predictions" / f"{name}.parquet", predictions)
    if test := found.get("test"):
        write_csv(out, test, fallback_class(splits))
        text += f"; {len(test.ids)} test predictions in {out / 'prediction.csv'}"
        if (test.labels >= 0).any():
            figures["test/accuracy"] = summary(test)["accuracy"]
            text += f" (accuracy {figures['test/accuracy']:.4f})"
    from cls.evaluation.plots import write_plots  # matplotlib: 0.6 s, only at the end of a run

    pictures = write_plots(out, val, read_rows(out), predictor.run.train.best_on)
    text += f"; pictures: {', '.join(path.name for path in pictures.values())} in {out}"
    return Results(text, figures, pictures)


def write_report(out: Path, splits: Splits, results: Results, predictor: Predictor) -> Results:
    """Write report.html, and add the wrong images to the results. An error on the page does not fail the run.

    Rank 0 alone writes it, so nothing in it may need the others: the network of its heat maps is read from best/.
    """
    if not results.pictures:  # not rank 0
        return results
    try:
        from cls.evaluation.report.build import write_page
        from cls.evaluation.report.overlays import heat_maps
        from cls.evaluation.report.sections import SHOWN
        from cls.evaluation.report.thumbnails import Pictures, mistakes, thumbnails

        record, world, pictures = RunRecord(out), predictor.world, Pictures()
        if splits.val and record.val:
            images, device = images_of(splits.val), predictor.run.train.device
            best = partial(load_trained_model, str(out), device, 0, world.stop, lambda *_: world)
            heat, note = heat_maps(best, images, record.val, SHOWN)
            pictures = Pictures(thumbs=thumbnails(images, record.val), heat=heat, note=note)
        write_page(record, pictures, out / "report.html")
        text = f"{results.text}; all of it: {out / 'report.html'}"
        found = mistakes(record.val, pictures.thumbs) if record.val else []
        return dataclasses.replace(results, text=text, mistakes=found)
    except Exception as error:
        log.warning("report.html was not written (%s: %s); try: cls report %s", type(error).__name__, error, out)
        return results
