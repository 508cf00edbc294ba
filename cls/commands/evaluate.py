"""``cls evaluate``: figures of a run's best weights on labelled images."""

import dataclasses
import shlex
import sys
from typing import Any

from rich.markup import escape
from rich.table import Table

from cls.commands.options import EvaluateOptions
from cls.config import views_of
from cls.data.dataset import EvalDataset
from cls.data.sources import load_labelled
from cls.evaluation.metrics import per_class, summary
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.console import console, printable
from cls.runtime.signals import StopSignal


def evaluate_images(path: str, images: str, options: EvaluateOptions, stop: StopSignal) -> dict[str, Any] | None:
    """Figures on labelled images: another folder's, or the validation split of the run's own data ('').

    The latter must still be what the run was trained on (:func:`cls.tracking.run_data.run_data`).
    """
    trained = load_trained_model(path, options.device, options.workers, stop)
    data = dataclasses.replace(trained.run.data, copy="")  # that was on another machine's disk
    other = f"; to evaluate labelled images that lie elsewhere: {shlex.join(['cls', 'evaluate', trained.name])} FOLDER"
    given = data.labelled_as(options.data(images))
    rows = trained.world.on_all_ranks(
        lambda: load_labelled(images, trained.classes, given) if images else trained.own_data(other).val
    )
    found = trained.predict(EvalDataset(rows, views_of(options.tta), trained.run))
    if not trained.world.main:
        return None
    classes = per_class(found)
    document: dict[str, Any] = dict(summary(found))
    document["classes"] = {
        name: {"images": int(n), "recall": float(r), "precision": float(p), "f1": float(f)}
        for name, n, r, p, f in zip(
            trained.classes, classes.support, classes.recall, classes.precision, classes.f1, strict=True
        )
    }
    _print(document)
    return document


def _print(document: dict[str, Any]) -> None:
    """The figures and the ten classes of the lowest recall, on standard error."""
    for name, value in document.items():
        if name != "classes":
            print(f"{name:<10} {value:.4f}".rstrip("0").rstrip("."), file=sys.stderr)
    table = Table("class", "images", "recall", "precision", "f1", box=None)
    ranked = sorted(document["classes"].items(), key=lambda item: (item[1]["recall"], item[0]))
    for name, figure in [item for item in ranked if item[1]["images"]][:10]:
        cells = [f"{figure[key]:.3f}" for key in ("recall", "precision", "f1")]
        table.add_row(escape(printable(name)), str(figure["images"]), *cells)
    console.print("worst classes:", table, sep="\n")
