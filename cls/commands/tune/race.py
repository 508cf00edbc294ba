"""Which of several rates is better, from the losses of the same held-out images.

Letters of the shapes: k candidates, n images, c classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cls.evaluation.predictions import Floats, Ints, Predictions, readable
from cls.evaluation.stats import mean_interval
from cls.runtime.rng import generator

LEVEL = 0.95
"""Confidence, over images, that none of a whole search's candidates is wrongly called worse."""
FLOOR = 1e-7
"""Smallest probability of a true class: one image with probability 0 would decide every mean."""
RESAMPLES = 1000
SLOPES = (-0.5, 0.0)
"""Bounds of the exponent of the best rate over the steps: from no change to its root. A choice, as FARTHEST is: how
rates of candidates carry over to runs many times as long was not measured."""
FLAT = 1e-9
"""Curvature of three equal losses, which rounding makes positive or negative."""
FARTHEST = 3.0
"""By how much a trend may lower the best rate of the longest candidates."""


class Interval(NamedTuple):
    """A difference of mean losses, with its bounds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """The result of one round."""

    losses: Floats
    """k mean losses; inf where training diverged."""
    leader: int
    against: list[Interval]
    """k differences to the leader, positive where the leader is better."""

    @property
    def worse(self) -> list[bool]:
        """k: whether the interval against the leader excludes 0."""
        return [bool(interval.low > 0) for interval in self.against]


def compared(p: Predictions) -> Ints:
    """The rows that count: labelled, of a file that can be read. An unreadable one is so for all candidates."""
    return np.array([row for row, error in enumerate(p.errors) if p.labels[row] >= 0 and not error], dtype=np.int64)


def image_losses(p: Predictions, kind: str) -> Floats:
    """n: the loss of each image of :func:`compared`, for ``optim.loss``.

    ce: minus the log of the true class's probability, at most that of FLOOR, which probabilities that are not finite
    have. mse: the squared error to the one-hot target, mean over classes, of the logits that have these probabilities
    and the mean 1 / c, as the targets have.
    """
    rows = compared(p)
    probs = np.where(readable(p)[rows, None], p.probs[rows], 1 / p.probs.shape[1])
    if kind == "mse":
        logs = np.log(np.maximum(probs, FLOOR))
        logits = logs - logs.mean(axis=1, keepdims=True) + 1 / logs.shape[1]
        errors: Floats = ((logits - np.eye(logs.shape[1])[p.labels[rows]]) ** 2).mean(axis=1)
        return errors
    own = np.where(readable(p)[rows], probs[np.arange(len(rows)), p.labels[rows]], 0.0)
    losses: Floats = -np.log(np.maximum(own, FLOOR))
    return losses


def guessing(p: Predictions, kind: str) -> float:
    """The mean loss of a prediction that is the same for all images: how often each class occurs."""
    counts = np.bincount(p.labels[compared(p)], minlength=p.probs.shape[1])
    shares = counts / counts.sum()
    if kind == "mse":
        return float((1 - (shares**2).sum()) / len(shares))
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def race(losses: Floats, comparisons: int) -> Race:
    """The mean losses of k n ``losses`` (inf in a row: diverged) and their paired differences to the lowest.

    Student's t intervals over images. The leader is the best of k, and a search compares in several rounds: each
    interval is at 1 - (1 - LEVEL) / ``comparisons``, the number of pairs in all rounds (Bonferroni), so the leader may
    be any of them. The intervals are about these networks; another seed may order them differently.
    """
    means = losses.mean(axis=1)
    leader = int(np.argmin(means))
    level = 1 - (1 - LEVEL) / max(comparisons, 1)
    against = []
    for row in losses:
        if np.isfinite(row).all():
            against.append(Interval(*mean_interval(row - losses[leader], level)))
        else:
            against.append(Interval(np.inf, np.inf, np.inf))
    return Race(means, leader, against)


def best_between(rates: Floats, means: Floats, ceiling: float) -> float:
    """The rate at the lowest point of the parabola in log(rate) through the best rate and its two neighbors.

    Losses above ``ceiling``, that of guessing, count as it: how bad a useless network is says nothing about the best.
    Without two neighbors, or where the lowest loss is above it, it is the best rate itself. ``rates`` ascend.
    """
    at = int(np.argmin(means))
    if not 0 < at < len(rates) - 1 or means[at] >= ceiling:
        return float(rates[at])
    x, y = np.log(rates[at - 1 : at + 2]), np.minimum(means[at - 1 : at + 2], ceiling)
    a, b, _ = np.polyfit(x, y, 2)
    return float(np.exp(np.clip(-b / (2 * a), x[0], x[2]))) if a > FLAT else float(rates[at])


class Trend(NamedTuple):
    slope: float
    """The exponent of the best rate over the steps that is applied; 0 unless its interval excludes 0."""
    low: float
    high: float
    """The bootstrap interval, over images, of the measured exponent."""


def trend(rounds: Sequence[tuple[int, Floats, Floats]], ceiling: float, seed: int) -> Trend:
    """How the best rate follows the steps.

    ``rounds``: steps, k ascending rates, and k n losses; of the same images in all rounds.
    """
    steps = np.log([each for each, _, _ in rounds])
    rng, n = generator(seed, "tune", "trend"), rounds[0][2].shape[1]

    def slope(images: np.ndarray) -> float:
        best = [best_between(rates, losses[:, images].mean(axis=1), ceiling) for _, rates, losses in rounds]
        return float(np.polyfit(steps, np.log(best), 1)[0])

    found = [slope(np.array(rng.integers(n, size=n))) for _ in range(RESAMPLES)]
    low, high = (float(np.quantile(found, tail)) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Trend(float(np.clip(slope(np.arange(n)), *SLOPES)) if high < 0 else 0.0, low, high)


def proposal(best: float, steps: int, whole: int, slope: float) -> float:
    """The rate for ``whole`` steps, from the best one at ``steps``."""
    return best * float(max((whole / steps) ** slope, 1 / FARTHEST))
