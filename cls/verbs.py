"""What the verbs of the ``cls`` command do; each prints for people on standard error and gives a JSON document."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from cls.config import Data, Run, View
from cls.console import PEOPLE, printable
from cls.data.access import images_of
from cls.data.draws import draws_of
from cls.data.loader import MicroBatchDraws, batches, preprocess, worker_count
from cls.data.sources import load, load_labelled
from cls.metrics import per_class, summary
from cls.mix import draw_mixing, mix, partners, soft_targets
from cls.models import input_statistics
from cls.paths import writing
from cls.sheet import Tile, write_sheet
from cls.steps import Steps
from cls.stop import Stop
from cls.trained import load_trained


def contact_sheet(run: Run, to: Path, count: int, step: int) -> dict[str, Any]:
    """Training images of the steps from ``step`` on, as the model gets them."""
    splits = load(run.data, run.seed)
    images_by_row = images_of(splits.train)
    draws = draws_of(images_by_row, run)
    size, every = run.train.micro_batch, run.train.batch // run.train.micro_batch
    steps = -(-count // run.train.batch)
    Steps(len(splits.train), run.train)
    indices = MicroBatchDraws(step, step + steps, run.train.batch, size, range(every))
    prepare = preprocess(input_statistics(run), run.seed, False, torch.device("cpu"))
    tiles: list[Tile] = []
    for i, batch in enumerate(batches(draws, indices, worker_count(run.data.workers, 1), size)):
        at, index = step + i // every, i % every
        mixing, partner = draw_mixing(run.augment, run.seed, at), partners(size, run.seed, at, index)
        images, targets = mix(prepare(batch), soft_targets(batch.labels, len(splits.classes), 0.0), mixing, partner)
        pixels = ((images * prepare.std + prepare.mean).clamp(0, 1) * 255).round().byte()
        for image, target, draw, row in zip(pixels, targets, batch.draws, batch.rows, strict=True):
            shares = {splits.classes[c]: float(target[c]) for c in target.nonzero().flatten().tolist()}
            tiles.append(Tile(image, shares, draw, images_by_row.name(row)))
        if len(tiles) >= count:
            break
    tiles = tiles[:count]
    with writing("to", to):
        write_sheet(to, tiles, f"{run.recipe}: draws from step {step} on")
    print(f"{len(tiles)} training images in {to}", file=sys.stderr)
    return {
        "file": str(to),
        "draws": [{"draw": t.draw, "id": t.id, "labels": t.shares} for t in tiles],
    }


def evaluate_images(
    path: str, images: str, tta: tuple[View, ...], device: str, workers: int, stop: Stop, labels: Data | None = None
) -> dict[str, Any] | None:
    """Figures on labelled images: another folder's, or the validation split of the run's own data.

    Another folder's labels are as the fields of ``labels`` say, by default in class folders. The run's own must still
    be what it was trained on (:func:`cls.data.identity.run_data`).
    """
    trained = load_trained(path, device, workers, stop)
    data = dataclasses.replace(trained.run.data, copy="")  # that was on another machine's disk
    other = f"; to evaluate labelled images that lie elsewhere: {shlex.join(['cls', 'evaluate', trained.name])} FOLDER"
    rows = trained.cluster.together(
        lambda: (
            load_labelled(images, trained.classes, data.labelled_as(labels or Data()))
            if images
            else trained.own_data(other).val
        )
    )
    found = trained.look(rows, tta)
    if not trained.cluster.main:
        return None
    figures, classes = summary(found), per_class(found)
    document: dict[str, Any] = dict(figures)
    document["classes"] = {
        name: {"images": int(n), "recall": float(r), "precision": float(p), "f1": float(f)}
        for name, n, r, p, f in zip(
            trained.classes, classes.support, classes.recall, classes.precision, classes.f1, strict=True
        )
    }
    for name, value in figures.items():
        print(f"{name:<10} {value:.4f}".rstrip("0").rstrip("."), file=sys.stderr)
    table = Table("class", "images", "recall", "precision", "f1", box=None)
    ranked = sorted(document["classes"].items(), key=lambda item: (item[1]["recall"], item[0]))
    for name, figure in [item for item in ranked if item[1]["images"]][:10]:
        table.add_row(
            escape(printable(name)),
            str(figure["images"]),
            *(f"{figure[key]:.3f}" for key in ("recall", "precision", "f1")),
        )
    PEOPLE.print("worst classes:")
    PEOPLE.print(table)
    return document
