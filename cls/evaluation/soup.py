"""One network from several: the mean of their weights (model soups, Wortsman et al. 2022, arXiv:2203.05482).

Runs that start from the same weights end in one basin of the loss: the mean of their weights is often better than each
of them, at the cost of one network. The greedy soup takes the runs from the best one down and keeps each that does not
lower the validation accuracy. It is chosen by these images, so its accuracy on them is optimistic.

BatchNorm statistics of an average are not the average of the statistics: each candidate's are renewed on training
images before it is judged (as ``torch.optim.swa_utils.update_bn`` does for averaged weights, Izmailov et al. 2018).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cls.data.dataset import train_dataset
from cls.data.loader import batches, worker_count
from cls.data.readers import images_of
from cls.data.sources import Splits
from cls.evaluation.metrics import accuracy, log_loss
from cls.evaluation.predictions import Predictions
from cls.evaluation.run_record import RunRecord
from cls.evaluation.trained_model import TrainedModel
from cls.models.freeze import frozen_parts

State = Mapping[str, Tensor]
WITHOUT_WEIGHTS = ("freeze", "freeze_norms", "dropout3", "weights")
"""Fields of the model that no weight depends on; equal start weights are checked separately, by sha256 if known."""


class Score(NamedTuple):
    """The larger, the better: accuracy, and between equal ones the lower loss."""

    accuracy: float
    minus_loss: float


def score(p: Predictions) -> Score:
    """The loss is that of the probabilities, whatever the runs were trained with."""
    return Score(accuracy(p), -log_loss(p))


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """Mean of each tensor, added in float64 in this order; whole numbers (BatchNorm's counts) are the first one's."""
    found = {}
    for name, first in states[0].items():
        total = first.double()
        for state in states[1:]:
            total = total + state[name].double()
        found[name] = (total / len(states)).to(first.dtype) if first.is_floating_point() else first.clone()
    return found


def difference(first: TrainedModel, other: TrainedModel) -> str:
    """Why the weights of two runs cannot be averaged, in words; '' if they can."""
    mine, theirs = vars(first.run.model), vars(other.run.model)
    for name in mine:
        if name not in WITHOUT_WEIGHTS and mine[name] != theirs[name]:
            return f"model.{name} is {mine[name]!r} and {theirs[name]!r}"
    if mine["weights"] != theirs["weights"]:
        return f"model.weights is {mine['weights']} and {theirs['weights']}: they did not start from the same weights"
    if mine["weights"] == "none" and first.run.seed != other.run.seed:
        return f"model.weights is none, and seeds {first.run.seed} and {other.run.seed} drew different start weights"
    if all(digests := [RunRecord(one.folder).weights_sha256 for one in (first, other)]) and len(set(digests)) > 1:
        return f"model.weights {mine['weights']} was another file for each: they did not start from the same weights"
    if first.statistics != other.statistics:
        return "their images are normalised differently"
    if first.classes != other.classes:
        return "their classes are in another order"
    shapes, others = ({k: v.shape for k, v in one.model.state_dict().items()} for one in (first, other))
    lacking = sorted(shapes.keys() ^ others.keys())
    if lacking:
        return f"weight {lacking[0]} is in one of them only"
    changed = [name for name in shapes if shapes[name] != others[name]]
    return f"{changed[0]} is {list(shapes[changed[0]])} and {list(others[changed[0]])}" if changed else ""


def greedy(ranked: Sequence[State], best: Score, judge: Callable[[State], Score]) -> tuple[list[int], list[Score]]:
    """Which members are kept, of those ``ranked`` from the best one (whose score is ``best``), and the score with each.

    ``judge`` gives the score of an average.
    """
    kept, trials = [0], [best]
    for place in range(1, len(ranked)):
        trials.append(judge(average([ranked[i] for i in (*kept, place)])))
        if trials[-1] >= best:
            kept.append(place)
            best = trials[-1]
    return kept, trials


def renewable(model: nn.Module, frozen: Sequence[str]) -> list[_BatchNorm]:
    """The BatchNorm layers whose statistics depend on weights that differ; frozen parts are the same in all runs."""
    kept = {id(module) for part in frozen_parts(model, tuple(frozen)) for module in part.modules()}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None and id(norm) not in kept]


def renew_norms(predictor: TrainedModel, splits: Splits, frozen: Sequence[str], count: int) -> None:
    """Replace the BatchNorm statistics by their mean over training images, in micro-batches as in training.

    The images are the first ``count`` samples of the run (a function of its seed), augmented as in training but not
    mixed. Only these layers are in train mode: dropout would shift the statistics that evaluation needs.
    """
    model, run = predictor.model.eval(), predictor.run
    norms = renewable(model, frozen)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    size = run.train.micro_batch
    first = range(0, max(size, min(count, len(splits.train)) // size * size), size)
    dataset = train_dataset(images_of(splits.train), run)
    slices = [range(start, start + size) for start in first]
    with torch.no_grad(), predictor.world.autocast(run.train.precision):
        for batch in batches(dataset, slices, worker_count(run.data.workers, 1), size, predictor.world.device):
            model(predictor.prepare(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
