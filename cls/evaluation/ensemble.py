"""Several trained models as one: the prediction is the mean of their probabilities.

Networks, image sizes, framing, normalisation, views and precision may differ: each member prepares its own images. The
classes must have the same names; another order is mapped. All members are in memory at once.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from cls.config import View
from cls.data.dataset import EvalDataset
from cls.data.loader import AHEAD, Group, Loader, worker_count
from cls.data.readers import column
from cls.data.sources import Rows, Splits, labels_of
from cls.distributed.world import World, start
from cls.evaluation.ensemble_record import models_of
from cls.evaluation.metrics import log_loss
from cls.evaluation.predictions import Predictions, renumbered, sliced
from cls.evaluation.trained_model import Join, TrainedModel, load_trained_model, weights_file
from cls.runtime.files import sha256
from cls.runtime.signals import StopSignal
from cls.tracking.run_files import read_data

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Ensemble:
    """One or several trained models; one alone gives its own predictions and loss. All ranks must call each method."""

    members: tuple[TrainedModel, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.members[0].classes

    @property
    def world(self) -> World:
        return self.members[0].world

    @property
    def fallback(self) -> int:
        """The class predicted for an image that cannot be read: the first member's."""
        return self.members[0].fallback

    @property
    def scored(self) -> bool:
        """Whether the mean has a loss: a probability has none under the squared error of logits."""
        return all(member.run.optim.loss == "ce" for member in self.members)

    def predict(self, images: Sequence[EvalDataset]) -> tuple[Predictions, list[Predictions]]:
        """The mean, and what each member predicts. ``images``: one set for each, with labels in its own numbers."""
        pairs = zip(self.members, images, strict=True)
        found = [renumbered(member.predict(own), self.classes) for member, own in pairs]
        return mean_of(found, self.scored), found

    def stream(self, rows: Rows, views: Sequence[View]) -> Iterator[Predictions]:
        """Predictions of unlabelled rows in parts, in row order, from the members in turn.

        ``views``: empty is each member's own. One set of loader processes serves all members, forked before the first
        forward pass.
        """
        sets = [EvalDataset(rows, views or member.run.augment.tta, member.run) for member in self.members]
        groups = [
            Group([images], member.run.train.eval_batch, AHEAD)
            for images, member in zip(sets, self.members, strict=True)
        ]
        workers = worker_count(self.members[0].run.data.workers, self.world.local_size)
        with ExitStack() as stack:
            loader = stack.enter_context(Loader(groups, workers, self.world.device))
            streams = [
                stack.enter_context(closing(dataclasses.replace(member, loader=loader).stream(images)))
                for member, images in zip(self.members, sets, strict=True)
            ]
            for parts in _in_lock_step(streams):
                yield mean_of([renumbered(part, self.classes) for part in parts], self.scored)


def load_ensemble(paths: Sequence[str], device: str, workers: int, stop: StopSignal, join: Join = start) -> Ensemble:
    """All members, an ensemble's directory being its own; ValueError for one named twice or of other classes.

    The device, the kernels and the number of threads of this process are those of the first member, which ``join``
    sets.
    """
    paths = [model for path in paths for model in models_of(path)]
    reject_twice(paths)
    first = load_trained_model(paths[0], device, workers, stop, join)
    others = [load_trained_model(path, device, workers, stop, lambda *_: first.world) for path in paths[1:]]
    for member in others:
        if text := other_classes(first.classes, member.classes):
            raise ValueError(f"{first.name} and {member.name} have other classes ({text}): a mean needs the same names")
    return Ensemble((first, *others))


def reject_twice(paths: Sequence[str]) -> None:
    """ValueError for a run that is named twice, or that is a copy of another one: it would count double in the mean."""
    known: dict[str, str] = {}
    for path in paths:
        file = weights_file(path)
        if not file.is_file():  # an error of its own
            continue
        if other := known.get(digest := sha256(file)):
            same = file.resolve() == weights_file(other).resolve()
            what = f"{path} is named twice" if same else f"{path} has the weights of {other}"
            raise ValueError(f"{what}: each run counts once in the mean")
        known[digest] = path


def other_classes(first: Sequence[str], second: Sequence[str]) -> str:
    """How two lists of class names differ, in words; '' if they have the same names."""
    parts = [
        f"only the {which} has {', '.join(map(repr, names[:SHOWN]))}{', …' * (len(names) > SHOWN)}"
        for which, mine, theirs in (("first", first, second), ("second", second, first))
        if (names := [name for name in mine if name not in set(theirs)])
    ]
    return "; ".join(parts)


def mean_of(parts: Sequence[Predictions], scored: bool) -> Predictions:
    """The mean of the members' probabilities for the same images, added in the order of the members.

    An image that is corrupt for one member is corrupt. The loss is :func:`cls.evaluation.metrics.log_loss`; nan unless
    ``scored``. One member alone keeps its own loss.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    assert all(part.ids == first.ids and (part.labels == first.labels).all() for part in parts)
    errors = [next(filter(None, texts), "") for texts in zip(*(part.errors for part in parts), strict=True)]
    probs = first.probs.copy()
    for part in parts[1:]:
        probs += part.probs
    probs /= len(parts)
    corrupt = np.array([bool(error) for error in errors], dtype=bool)
    probs[corrupt] = 0.0
    mean = dataclasses.replace(first, probs=probs, errors=errors, loss=math.nan)
    return dataclasses.replace(mean, loss=log_loss(mean)) if scored else mean


def _in_lock_step(streams: Sequence[Iterator[Predictions]]) -> Iterator[list[Predictions]]:
    """Parts with the same rows from every stream: members may have batches of different sizes."""
    rest = [next(stream) for stream in streams]
    while all(part.ids for part in rest):
        count = min(len(part.ids) for part in rest)
        yield [sliced(part, slice(0, count)) for part in rest]
        left = [sliced(part, slice(count, None)) for part in rest]
        rest = [part if part.ids else next(stream, part) for part, stream in zip(left, streams, strict=True)]


def own_images(ensemble: Ensemble, advice: str = "") -> list[Splits]:
    """Each member's own images; ValueError, with both names, unless all were validated on the same ones."""
    first, found = ensemble.members[0], list[Splits]()
    for member in ensemble.members:
        found.append(member.own_data(advice))
        text = other_images(found[0].val, found[-1].val, first.classes, member.classes)
        if not text and len({*_contents(first), *_contents(member)}) > 1:
            text = "other contents under the same names"
        if text:
            raise ValueError(
                f"{first.name} and {member.name} were not validated on the same images ({text}); where a run's seed "
                f"drew them, give the data a val folder, or name images: cls evaluate {first.name} {member.name} FOLDER"
            )
    return found


def _contents(member: TrainedModel) -> tuple[str, ...]:
    """The digest of the validation images' sizes, as stored at the start; empty if it was not."""
    val = read_data(member.folder).get("val", {})
    return (val["contents"],) if "contents" in val else ()


def other_images(first: Rows, second: Rows, classes: Sequence[str], others: Sequence[str]) -> str:
    """How two image sets differ in ids, order or labels (by name), in words; '' if they are the same."""
    names, theirs = column(first, "id").to_pylist(), column(second, "id").to_pylist()
    if lacking := sorted(set(names) ^ set(theirs)):
        both = len(set(names) & set(theirs))
        return f"{len(names):,} and {len(theirs):,} images, {both:,} of them in both; {lacking[0]!r} in one only"
    if names != theirs:
        return "the same names in another order"
    pairs = zip(labels_of(first).tolist(), labels_of(second).tolist(), names, strict=True)
    changed = [(classes[a], others[b], name) for a, b, name in pairs if a >= 0 and b >= 0 and classes[a] != others[b]]
    if changed:
        return f"{len(changed):,} have another label, e.g. {changed[0][2]!r}: {changed[0][0]!r} and {changed[0][1]!r}"
    return ""
