"""Nearest training images of wrong validation images: similar photos with another label explain many mistakes."""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cls.data.readers import Images
from cls.evaluation.features import features_of
from cls.evaluation.inference import Predictor
from cls.evaluation.metrics import wrong
from cls.evaluation.predictions import Predictions
from cls.evaluation.report.thumbnails import Neighbor, thumbnail
from cls.runtime.rng import generator
from cls.transforms.jpeg import Decoder

EXPLAINED = 24
"""Wrong images that get neighbors: the most confident ones."""
COMPARED = 5000
"""Training images at most; of more a sample is taken, equally many of each class."""


def features(predictor: Predictor, images: Images, rows: Sequence[int], title: str) -> tuple[Tensor, list[int]]:
    """Unit vectors before the output layer, n f, and the n rows they belong to; corrupt images are left out.

    One plain view in evaluation mode. Shows a progress bar with this title.
    """
    found, kept = list[Tensor](), list[int]()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # auto_refresh would start a thread, and the loader forks
    with Progress(*columns, console=Console(file=sys.stderr), auto_refresh=False) as bar:
        task = bar.add_task(title, total=len(rows), rate="")
        for some, batch in features_of(predictor, images, rows):
            corrupt = {row for row, _ in batch.corrupt}
            places = [place for place, row in enumerate(batch.rows) if row not in corrupt]
            found.append(nn.functional.normalize(some[places]))
            kept += [batch.rows[place] for place in places]
            rate = f"{speed:.0f} img/s" if (speed := bar.tasks[task].speed) else ""
            bar.update(task, advance=len(batch.rows), rate=rate, refresh=True)
    return torch.cat(found), kept


def nearest_images(
    predictor: Predictor, train: Images, val: Images, p: Predictions, count: int
) -> tuple[dict[int, tuple[list[Neighbor], list[Neighbor]]], str]:
    """The ``count`` nearest training images of the predicted and of the true class, for the most confidently wrong
    validation images, by row; and a sentence on what was compared.
    """
    rows = wrong(p)[:EXPLAINED].tolist()
    if len(val) != len(p.ids) or any(val.name(row) != p.ids[row] for row in rows):
        raise ValueError("--neighbors: the validation images are no longer those of the stored predictions")
    guesses = {row: int(p.probs[row].argmax()) for row in rows}
    classes = sorted({*guesses.values(), *(int(p.labels[row]) for row in rows)})
    chosen, note = sample(train.labels, classes, predictor.run.seed)
    if not rows or not len(chosen):
        return {}, note
    own, readable_rows = features(predictor, val, rows, "wrong images")
    others, places = features(predictor, train, chosen.tolist(), "training images")
    labels, decoder = torch.tensor(train.labels[places]), Decoder()

    def nearest(similarity: Tensor, label: int) -> list[Neighbor]:
        best = similarity.masked_fill(labels != label, -torch.inf).topk(min(count, int((labels == label).sum())))
        return [
            Neighbor(id=train.name(places[i]), similarity=value, picture=thumbnail(decoder, train.read([places[i]])[0]))
            for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    similarities = own @ others.T
    return {
        row: (nearest(similarity, guesses[row]), nearest(similarity, int(p.labels[row])))
        for row, similarity in zip(readable_rows, similarities, strict=True)
    }, note


def sample(labels: np.ndarray, classes: Sequence[int], seed: int) -> tuple[np.ndarray, str]:
    """Rows of training images of these classes, at most COMPARED, and a sentence on which they are."""
    rng, each = generator(seed, "neighbors"), COMPARED // max(1, len(classes))
    of_class = [np.flatnonzero(labels == label) for label in classes]
    chosen = [rows if len(rows) <= each else np.sort(rng.choice(rows, each, replace=False)) for rows in of_class]
    found, total = sum(map(len, chosen)), sum(map(len, of_class))
    which = (
        f"all {total:,}"
        if found == total
        else f"{found:,} (at most {each} a class, drawn by seed {seed}) of the {total:,}"
    )
    note = f"Neighbors (cosine of the features before the output layer) among {which} training images of their classes."
    return np.concatenate([*chosen, np.empty(0, np.int64)]), note
