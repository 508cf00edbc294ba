"""The one inference path: every image exactly once, in row order, on any number of processes."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cls.config import Run
from cls.data.access import column
from cls.data.draws import EvalImages
from cls.data.loader import AHEAD, Group, Loader, Preprocess, worker_count
from cls.data.sources import Rows
from cls.journal import Journal
from cls.metrics import Predictions, summary
from cls.mix import loss_per_image, soft_targets
from cls.models import train_mode
from cls.parallel.cluster import Cluster
from cls.parallel.watch import check_validation
from cls.state import State
from cls.steps import Steps

Look = Callable[[nn.Module, EvalImages], Predictions]
"""``predict`` for one run: an unwrapped model and images -> predictions."""

EXCHANGED = 64  # batches of each rank between two exchanges: each of them waits for the slowest rank


class Piece(NamedTuple):
    """What all ranks have found for the n rows from ``start`` on."""

    start: int
    logits: Tensor  # views n classes, float64, on the host
    broken: dict[int, str]  # row -> why it could not be read


def validate(
    step: int, steps: Steps, state: State, look: Look, images: EvalImages, journal: Journal, freeze: tuple[str, ...]
) -> None:
    """After an epoch, or where a smoke run stops: figures, schedule, history; the model is back in train mode."""
    with journal.cluster.clock.on("evaluation"):
        figures = summary(look(state.evaluated, images))
    check_validation(step, figures["loss"])
    if steps.ends_epoch(step):
        state.schedule.epoch(figures["loss"], figures["accuracy"])
        state.history.add(step, figures["accuracy"], figures["loss"])
    state.history.validated = step
    journal.epoch(step, figures, state.history)
    train_mode(state.model, freeze)


def predictor(run: Run, classes: tuple[str, ...], cluster: Cluster, prepare: Preprocess, loader: Loader) -> Look:
    return partial(predict, classes=classes, run=run, prepare=prepare, cluster=cluster, loader=loader)


def predict(
    model: nn.Module,
    images: EvalImages,
    classes: tuple[str, ...],
    run: Run,
    prepare: Preprocess,
    cluster: Cluster,
    loader: Loader,
) -> Predictions:
    """Probabilities of each image, averaged over views; all ranks get the same result.

    Batches are fixed slices of rows, carried whole by rank i mod world, so a row's logits are the same bits wherever
    they are computed; the loss (the training criterion without smoothing, weights and mixing) is summed in row order
    in float64. ``model`` is the unwrapped module; it is left in eval mode.
    """
    pieces = list(_pieces(model, images, len(classes), run, prepare, cluster, loader, EXCHANGED))
    broken = {row: why for piece in pieces for row, why in piece.broken.items()}
    whole = Piece(0, torch.cat([piece.logits for piece in pieces], dim=1), broken)
    return _predictions(whole, images.rows, classes, run)


def stream(
    model: nn.Module,
    images: EvalImages,
    classes: tuple[str, ...],
    run: Run,
    prepare: Preprocess,
    cluster: Cluster,
    loader: Loader,
) -> Iterator[Predictions]:
    """:func:`predict` while it goes on: after each batch of every rank the predictions of these rows, in row order.

    Together they have the ids, labels, errors and bits of the probabilities of the whole; losses are those of the
    pieces. All ranks must take all pieces. An exchange per batch costs one wait for the slowest rank.
    """
    for piece in _pieces(model, images, len(classes), run, prepare, cluster, loader, 1):
        yield _predictions(piece, images.rows, classes, run)


def _predictions(piece: Piece, rows: Rows, classes: tuple[str, ...], run: Run) -> Predictions:
    count = piece.logits.shape[1]
    probabilities = _over_views(piece.logits.softmax(2))
    labels = torch.from_numpy(column(rows, "label").slice(piece.start, count).to_numpy().copy())
    broken = {row - piece.start: why for row, why in piece.broken.items()}
    known = [row for row, label in enumerate(labels.tolist()) if label >= 0 and row not in broken]
    loss = float("nan")
    if known:
        targets = soft_targets(labels[known], len(classes), 0.0)
        loss = sum(loss_per_image(_over_views(piece.logits)[known], targets, run.optim.loss).tolist()) / len(known)
    probabilities[list(broken)] = 0.0
    return Predictions(
        ids=column(rows, "id").slice(piece.start, count).to_pylist(),
        labels=labels.numpy(),
        probs=probabilities.numpy(),
        errors=[broken.get(row, "") for row in range(count)],
        classes=classes,
        loss=loss,
    )


def _over_views(values: Tensor) -> Tensor:
    """The mean over views, added in their order: ``mean(0)`` of five gives a row other bits in another piece."""
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total / len(values)


def _pieces(
    model: nn.Module,
    images: EvalImages,
    classes: int,
    run: Run,
    prepare: Preprocess,
    cluster: Cluster,
    loader: Loader,
    exchanged: int,
) -> Iterator[Piece]:
    """Logits in row order, ``exchanged`` batches of every rank at a time; each slice is seen in all views in turn."""
    model.eval()
    size, world, total, views = run.train.eval_batch, cluster.world, len(images.rows), len(images.views)
    slices = row_slices(total, size, cluster.rank, world)
    indices = [[view * total + row for row in some] for some in slices for view in range(views)]
    agreed, start, stop = cluster.agreed(), 0, 0
    for turn, batch in enumerate(loader.batches(images, indices)):
        index, view = divmod(turn, views)
        if index % exchanged == 0 and view == 0:
            start, stop = stop, min(stop + exchanged * world * size, total)
            found = torch.zeros(views, stop - start, classes, device=cluster.device)
            broken: dict[int, str] = {}
        agreed.check()
        with torch.no_grad(), cluster.autocast(run.train.precision):
            output = model(prepare(batch))
        if index * world + cluster.rank < -(-total // size):  # not the first slice once more
            found[view, batch.rows[0] - start : batch.rows[-1] + 1 - start] = output.float()
            broken.update(batch.broken)
        if view == views - 1 and (index + 1 == len(slices) or (index + 1) % exchanged == 0):
            for others in cluster.gather(broken):
                broken |= others
            yield Piece(start, cluster.sum(found).cpu().double(), broken)
    agreed.close()


def eval_loader(images: EvalImages, run: Run, cluster: Cluster) -> Loader:
    """A loader for one evaluation; training has one for all of its own."""
    workers = worker_count(run.data.workers, cluster.local_world)
    return Loader([Group([images], run.train.eval_batch, AHEAD)], workers, cluster.device)


def row_slices(rows: int, size: int, rank: int, world: int) -> list[list[int]]:
    """Slices i of rows [i·size, (i+1)·size) with i mod world = rank; every rank gets equally many.

    Where there are none left a rank repeats the first slice, and its result is dropped: sharded models need every rank
    in every forward pass.
    """
    slices = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    slices += [slices[0]] * (-len(slices) % world)
    return slices[rank::world]
