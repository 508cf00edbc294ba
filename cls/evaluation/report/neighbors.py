"""Which training images lie near a wrong one: similar photos with another label explain many a mistake."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cls.config import Run
from cls.data.dataset import ViewDataset
from cls.data.loader import Preprocess, batches, worker_count
from cls.data.readers import Images
from cls.evaluation.metrics import wrong
from cls.evaluation.predictions import Predictions
from cls.evaluation.report.thumbnails import Near, thumbnail
from cls.models.build import output_layer
from cls.runtime.rng import generator
from cls.transforms.jpeg import Decoder
from cls.transforms.ops import view_ops

EXPLAINED = 24
"""Of the most confidently wrong images."""
LOOKED_AT = 5000
"""Training images at most; more are sampled, equally many of each class."""

Features = Callable[[Images, Sequence[int], str], tuple[Tensor, list[int]]]


def features(model: nn.Module, run: Run, prepare: Preprocess) -> Features:
    """A function of images and rows: unit features before the output layer, rows f, and the rows they are of.

    One plain view in evaluation mode; broken images are left out. Shows how far it is.
    """
    model.eval()
    device = prepare.mean.device

    def look(images: Images, rows: Sequence[int], what: str) -> tuple[Tensor, list[int]]:
        frame = run.data.evaluated
        data = ViewDataset(images, view_ops("identity", frame), frame.size, run.seed, "identity", frame.exact_order)
        size, kept, good = run.train.eval_batch, list[Tensor](), list[int]()
        slices = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
        hook = output_layer(model, run.model).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            with torch.no_grad(), _meter() as meter:
                task = meter.add_task(what, total=len(rows), rate="")
                found = []
                for batch in batches(data, slices, worker_count(run.data.workers, 1), size, device):
                    with torch.autocast(device.type, torch.bfloat16, enabled=run.train.precision == "bf16"):
                        model(prepare(batch))
                    broken = {row for row, _ in batch.corrupt}
                    whole = [at for at, row in enumerate(batch.rows) if row not in broken]
                    found.append(nn.functional.normalize(kept.pop().float().flatten(1)[whole]).cpu())
                    good += [batch.rows[at] for at in whole]
                    speed = meter.tasks[task].speed
                    meter.update(
                        task, advance=len(batch.rows), rate=f"{speed:.0f} img/s" if speed else "", refresh=True
                    )
        finally:
            hook.remove()
        return torch.cat(found), good

    return look


def _meter() -> Progress:
    columns: list[Any] = [
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]  # fmt: skip
    # no thread of its own, beside which the loader would be forked
    return Progress(*columns, console=Console(file=sys.stderr), auto_refresh=False)


def neighbours(
    look: Features, train: Images, val: Images, p: Predictions, count: int, seed: int
) -> tuple[dict[int, tuple[list[Near], list[Near]]], str]:
    """The ``count`` nearest training images of the predicted and of the true class of each of the most confidently
    wrong images, by row, and in words what was looked at.
    """
    rows = wrong(p)[:EXPLAINED].tolist()
    if len(val) != len(p.ids) or any(val.name(row) != p.ids[row] for row in rows):
        raise ValueError("--neighbours: the validation images are not those of the stored predictions any more")
    guesses = {row: int(p.probs[row].argmax()) for row in rows}
    wanted = sorted({*guesses.values(), *(int(p.labels[row]) for row in rows)})
    chosen, note = sample(train.labels, wanted, seed)
    if not rows or not len(chosen):
        return {}, note
    own, kept = look(val, rows, "wrong images")
    theirs, places = look(train, chosen.tolist(), "training images")
    labels, decoder = torch.tensor(train.labels[places]), Decoder()

    def nearest(similar: Tensor, label: int) -> list[Near]:
        best = similar.masked_fill(labels != label, -torch.inf).topk(min(count, int((labels == label).sum())))
        return [
            Near(id=train.name(places[i]), similarity=value, picture=thumbnail(decoder, train.read([places[i]])[0]))
            for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    return {
        row: (nearest(own[at] @ theirs.T, guesses[row]), nearest(own[at] @ theirs.T, int(p.labels[row])))
        for at, row in enumerate(kept)
    }, note


def sample(labels: np.ndarray, wanted: Sequence[int], seed: int) -> tuple[np.ndarray, str]:
    """Rows of training images of the wanted classes, at most LOOKED_AT, and in words which they are."""
    rng, each = generator(seed, "neighbours"), LOOKED_AT // max(1, len(wanted))
    everything = [np.flatnonzero(labels == label) for label in wanted]
    chosen = [rows if len(rows) <= each else np.sort(rng.choice(rows, each, replace=False)) for rows in everything]
    found, total = sum(map(len, chosen)), sum(map(len, everything))
    note = f"Neighbours (cosine of the features before the output layer) among all {total:,} training images of "
    if found < total:
        note = note.replace("all", f"{found:,} (at most {each} a class, drawn by seed {seed}) of the")
    note += "their classes."
    return np.concatenate([*chosen, np.empty(0, np.int64)]), note
