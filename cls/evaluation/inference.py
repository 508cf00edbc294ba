"""The one inference path: every image exactly once, in row order, on any number of processes."""

from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cls.config import Run
from cls.data.dataset import EvalDataset
from cls.data.loader import AHEAD, Group, Loader, Preprocess, worker_count
from cls.data.readers import column
from cls.data.sources import Rows
from cls.distributed.world import World
from cls.evaluation.metrics import summary
from cls.evaluation.predictions import Predictions
from cls.models.loss import loss_per_image
from cls.transforms.mixup import soft_targets

EXCHANGED = 64  # batches per rank between two exchanges: each exchange waits for the slowest rank


class RowLogits(NamedTuple):
    """The results of all ranks for n rows from ``start`` on."""

    start: int
    logits: Tensor  # views n classes, float64, on the host
    corrupt: dict[int, str]  # row -> why it could not be read


@dataclass(frozen=True)
class Predictor:
    """A model and everything its predictions depend on.

    Batches are fixed slices of rows, each computed as a whole by rank i mod world size, so a row's logits are the same
    bits on any number of ranks. The loss (the training criterion without label smoothing, class weights and mixing) is
    summed in row order in float64. All ranks must call each method.
    """

    model: nn.Module
    """Images b 3 h w -> logits b classes; unwrapped. Each pass leaves it in eval mode."""
    classes: tuple[str, ...]
    run: Run
    world: World
    prepare: Preprocess
    loader: Loader | None = None
    """The loader of training, which has its evaluation sets; without one, each pass makes its own."""

    def predict(self, images: EvalDataset) -> Predictions:
        """Probabilities of each image, averaged over views; all ranks get the same result."""
        with self.world.timer.on("evaluation"):
            parts = list(self._parts(images, EXCHANGED))
        corrupt = {row: why for part in parts for row, why in part.corrupt.items()}
        whole = RowLogits(0, torch.cat([part.logits for part in parts], dim=1), corrupt)
        return self._predictions(whole, images.rows)

    def figures(self, images: EvalDataset | None) -> dict[str, float]:
        """:func:`cls.evaluation.metrics.summary` of the predictions; empty without images."""
        return summary(self.predict(images)) if images else {}

    def stream(self, images: EvalDataset) -> Generator[Predictions, None, None]:
        """:meth:`predict` in parts: after each batch of every rank the predictions of these rows, in row order.

        Together they have the ids, labels, errors and the same bits of probabilities as the whole; each loss is that of
        its part. All ranks must take all parts. An exchange per batch costs one wait for the slowest rank.
        """
        for part in self._parts(images, 1):
            yield self._predictions(part, images.rows)

    def _predictions(self, part: RowLogits, rows: Rows) -> Predictions:
        count = part.logits.shape[1]
        probabilities = _over_views(part.logits.softmax(2))
        labels = torch.from_numpy(column(rows, "label").slice(part.start, count).to_numpy().copy())
        corrupt = {row - part.start: why for row, why in part.corrupt.items()}
        known = [row for row, label in enumerate(labels.tolist()) if label >= 0 and row not in corrupt]
        loss = float("nan")
        if known:
            targets = soft_targets(labels[known], len(self.classes), 0.0)
            losses = loss_per_image(_over_views(part.logits)[known], targets, self.run.optim.loss)
            loss = sum(losses.tolist()) / len(known)
        probabilities[list(corrupt)] = 0.0
        return Predictions(
            ids=column(rows, "id").slice(part.start, count).to_pylist(),
            labels=labels.numpy(),
            probs=probabilities.numpy(),
            errors=[corrupt.get(row, "") for row in range(count)],
            classes=self.classes,
            loss=loss,
        )

    def _parts(self, images: EvalDataset, exchanged: int) -> Iterator[RowLogits]:
        """Logits in row order, ``exchanged`` batches of every rank at a time; each slice in all views in turn."""
        self.model.eval()
        world, size = self.world, self.run.train.eval_batch
        total, views = len(images.rows), len(images.views)
        slices = row_slices(total, size, world.rank, world.size)
        indices = [[view * total + row for row in some] for some in slices for view in range(views)]
        flag, start, stop = world.stop_flag(), 0, 0
        own = nullcontext(self.loader) if self.loader else eval_loader(images, self.run, world)
        with own as loader:
            for turn, batch in enumerate(loader.batches(images, indices)):
                index, view = divmod(turn, views)
                if index % exchanged == 0 and view == 0:
                    start, stop = stop, min(stop + exchanged * world.size * size, total)
                    found = torch.zeros(views, stop - start, len(self.classes), device=world.device)
                    corrupt: dict[int, str] = {}
                flag.check()
                with torch.no_grad(), world.autocast(self.run.train.precision):
                    output = self.model(self.prepare(batch))
                if index * world.size + world.rank < -(-total // size):  # not the repeated first slice
                    found[view, batch.rows[0] - start : batch.rows[-1] + 1 - start] = output.float()
                    corrupt.update(batch.corrupt)
                if view == views - 1 and (index + 1 == len(slices) or (index + 1) % exchanged == 0):
                    for others in world.gather(corrupt):
                        corrupt |= others
                    yield RowLogits(start, world.sum(found).cpu().double(), corrupt)
        flag.close()


def _over_views(values: Tensor) -> Tensor:
    """The mean over views, added in order: the bits of ``mean(0)`` depend on the number of rows."""
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total / len(values)


def eval_loader(images: EvalDataset, run: Run, world: World) -> Loader:
    """A loader for one evaluation; training has one for all of its own."""
    workers = worker_count(run.data.workers, world.local_size)
    return Loader([Group([images], run.train.eval_batch, AHEAD)], workers, world.device)


def row_slices(rows: int, size: int, rank: int, world_size: int) -> list[list[int]]:
    """Slices i of rows [i·size, (i+1)·size) with i mod world = rank; every rank gets equally many.

    A rank without a slice left repeats the first one, and its result is dropped: sharded models need every rank in
    every forward pass.
    """
    slices = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    slices += [slices[0]] * (-len(slices) % world_size)
    return slices[rank::world_size]
