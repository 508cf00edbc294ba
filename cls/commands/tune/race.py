"""Which of several rates is better, from the log losses of the same held-out images.

Letters of the shapes: k candidates, n images.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cls.evaluation.predictions import Floats, Predictions, readable
from cls.evaluation.stats import mean_interval

LEVEL = 0.95
"""Confidence that none of a whole search's candidates is wrongly called worse."""
FLOOR = 1e-7
"""Smallest probability of a true class: one image with probability 0 would decide every mean."""


class Interval(NamedTuple):
    """A difference of mean log losses, with its bounds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Race:
    """The result of one round."""

    losses: Floats
    """k mean log losses; inf where training diverged."""
    leader: int
    against: list[Interval]
    """k differences to the leader, positive where the leader is better."""

    @property
    def worse(self) -> list[bool]:
        """k: whether the interval against the leader excludes 0."""
        return [bool(interval.low > 0) for interval in self.against]


def image_losses(p: Predictions) -> Floats:
    """n: minus the log of the probability of each labelled image's true class; a corrupt image has log FLOOR."""
    rows = np.flatnonzero(p.labels >= 0)
    own = np.where(readable(p)[rows], p.probs[rows, p.labels[rows]], 0.0)
    losses: Floats = -np.log(np.maximum(own, FLOOR))
    return losses


def guessing(p: Predictions) -> float:
    """The mean log loss of predicting each class as often as it occurs: their entropy."""
    counts = np.bincount(p.labels[p.labels >= 0])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def race(losses: Floats, comparisons: int) -> Race:
    """The mean losses of k n ``losses`` (inf in a row: diverged) and their paired differences to the lowest.

    Student's t intervals over images. The leader is the best of k, and a search compares in several rounds: each
    interval is at 1 - (1 - LEVEL) / ``comparisons``, the number of pairs in all rounds (Bonferroni), so the leader may
    be any of them.
    """
    means = losses.mean(axis=1)
    leader = int(np.argmin(means))
    assert np.isfinite(means[leader]), "no candidate has a finite loss"
    level = 1 - (1 - LEVEL) / max(comparisons, 1)
    against = []
    for row in losses:
        difference = row - losses[leader]
        if not np.isfinite(difference).all():
            against.append(Interval(np.inf, np.inf, np.inf))
            continue
        against.append(Interval(*mean_interval(difference, level)))
    return Race(means, leader, against)


def pairs(k: int) -> int:
    return k * (k - 1) // 2


def best_between(rates: Floats, means: Floats, ceiling: float) -> float:
    """The rate at the lowest point of the parabola in log(rate) through the best rate and its two neighbors.

    Losses above ``ceiling``, that of guessing, count as it: how bad a useless network is says nothing about the best.
    Without two neighbors it is the best rate itself. ``rates`` ascend.
    """
    at = int(np.argmin(means))
    if not 0 < at < len(rates) - 1:
        return float(rates[at])
    x, y = np.log(rates[at - 1 : at + 2]), np.minimum(means[at - 1 : at + 2], ceiling)
    a, b, _ = np.polyfit(x, y, 2)
    return float(np.exp(np.clip(-b / (2 * a), x[0], x[2]))) if a > 0 else float(rates[at])
