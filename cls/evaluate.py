"""The one inference path: every image exactly once, in row order, on any number of processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cls.config import Run, View
from cls.data.access import images_of
from cls.data.draws import Views
from cls.data.loader import Preprocess, batches, worker_count
from cls.data.sources import Rows
from cls.images.ops import view_ops
from cls.journal import Journal
from cls.metrics import Predictions, summary
from cls.mix import loss_per_image, soft_targets
from cls.models import train_mode
from cls.parallel.cluster import Cluster
from cls.parallel.watch import check_validation
from cls.state import State
from cls.steps import Steps

Look = Callable[..., Predictions]
"""``predict`` for this run: a model, rows and, if not the plain one, ``views`` -> predictions."""


def validate(
    step: int, steps: Steps, state: State, look: Look, rows: Rows, journal: Journal, freeze: tuple[str, ...]
) -> None:
    """After an epoch, or where a smoke run stops: figures, schedule, history; the model is back in train mode."""
    with journal.cluster.clock.on("evaluation"):
        figures = summary(look(state.evaluated, rows))
    check_validation(step, figures["loss"])
    if steps.ends_epoch(step):
        state.schedule.epoch(figures["loss"], figures["accuracy"])
        state.history.add(step, figures["accuracy"], figures["loss"])
    state.history.validated = step
    journal.epoch(step, figures, state.history)
    train_mode(state.model, freeze)


def predict(
    model: nn.Module,
    rows: Rows,
    classes: tuple[str, ...],
    run: Run,
    prepare: Preprocess,
    cluster: Cluster,
    views: Sequence[View] = ("identity",),
) -> Predictions:
    """Probabilities of each image, averaged over views; all ranks get the same result.

    Batches are fixed slices of rows, carried whole by rank i mod world, so a row's logits are the same bits wherever
    they are computed; the loss (the training criterion without smoothing, weights and mixing) is summed in row order
    in float64. ``model`` is the unwrapped module; it is left in eval mode.
    """
    model.eval()
    broken: dict[int, str] = {}
    logits = torch.stack(
        [_logits(model, rows, len(classes), run, prepare, cluster, view, broken) for view in views]
    ).double()  # views rows classes
    for found in cluster.gather(broken):
        broken |= found
    probabilities = logits.softmax(2).mean(0)
    labels = torch.tensor(rows["label"], dtype=torch.long)
    known = [row for row, label in enumerate(labels.tolist()) if label >= 0 and row not in broken]
    loss = float("nan")
    if known:
        targets = soft_targets(labels[known], len(classes), 0.0)
        loss = sum(loss_per_image(logits.mean(0)[known], targets, run.optim.loss).tolist()) / len(known)
    probabilities[list(broken)] = 0.0
    errors = [broken.get(row, "") for row in range(len(rows))]
    return Predictions(
        ids=list(rows["id"]),
        labels=labels.numpy(),
        probs=probabilities.numpy(),
        errors=errors,
        classes=classes,
        loss=loss,
    )


def _logits(
    model: nn.Module,
    rows: Rows,
    classes: int,
    run: Run,
    prepare: Preprocess,
    cluster: Cluster,
    view: View,
    broken: dict[int, str],
) -> Tensor:  # rows classes, float32, on the host
    slices = row_slices(len(rows), run.train.eval_batch, cluster.rank, cluster.world)
    frame = run.data.evaluated
    data = Views(images_of(rows), view_ops(view, frame), frame.size, run.seed, view, run.data.exact_order)
    workers = worker_count(run.data.workers, cluster.local_world)
    found = torch.zeros(len(rows), classes, device=cluster.device)
    agreed = cluster.agreed()
    with torch.no_grad():
        for index, batch in enumerate(batches(data, slices, workers, run.train.eval_batch, cluster.device)):
            agreed.check()
            with cluster.autocast(run.train.precision):
                output = model(prepare(batch))
            if index * cluster.world + cluster.rank < -(-len(rows) // run.train.eval_batch):
                found[batch.rows] = output.float()
                broken.update(batch.broken)
    agreed.close()
    return cluster.sum(found).cpu()


def row_slices(rows: int, size: int, rank: int, world: int) -> list[list[int]]:
    """Slices i of rows [i·size, (i+1)·size) with i mod world = rank; every rank gets equally many.

    Where there are none left a rank repeats the first slice, and its result is dropped: sharded models need every rank
    in every forward pass.
    """
    slices = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    slices += [slices[0]] * (-len(slices) % world)
    return slices[rank::world]
