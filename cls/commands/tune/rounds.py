"""How a search is cut into rounds, and what it costs, counted in images.

One image is one forward and backward pass of the whole network; a forward pass alone counts as a third of it.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple

STARTS = {"adamw": (3e-5, 3e-4, 3e-3), "sgd": (3e-3, 3e-2, 3e-1)}
"""The first candidates, a decade apart, around the rates of published fine-tuning. The neighbors of the best follow."""
FIRST, LATER = 5, 3
"""Candidates of the first round, and of the others: the best rate and its neighbors."""
SHARE = 0.1
"""Of the run's images: the default budget of a long run."""
LEAST = 7_300
"""The default budget of a short run, but at most SHORT of it. Five candidates then have about 13 steps of 64 images:
after 8 steps EfficientNet-lite0 (96 px, batch 64, clothing photos) ranked rates otherwise than after 16 and 32, which
agreed within a factor of 1.4 (one seed, 2026-11-29)."""
SHORT = 0.9
SEVERAL, FEWEST = 16, 8
"""Steps of the first of several rounds, and of a single one, at least."""
HEAD_IMAGES = 10_000
"""Images that the head is fitted on, at most, and one epoch."""
HELD = 500
"""Images held out, at least, if that is not more than a fifth of them; and at least a twentieth."""


class Round(NamedTuple):
    candidates: int
    steps: int


def parts_of(images: int) -> int:
    """One of so many parts of the training images is held out."""
    return max(5, min(20, images // HELD))


@dataclass(frozen=True)
class Plan:
    """A search for a run over ``images`` training images in steps of ``batch``; its candidates train on ``trained``."""

    images: int
    trained: int
    held: int
    batch: int
    epochs: float
    fits_head: bool
    budget: float
    """As a share of the run's images; 0: SHARE, or for a short run LEAST images, at most SHORT."""

    @property
    def whole(self) -> float:
        """Images of the run that the rate is for."""
        return self.images * self.epochs

    @property
    def steps(self) -> int:
        """Optimizer steps of that run."""
        return ceil(self.whole / self.batch)

    @property
    def allowed(self) -> float:
        """The budget in images."""
        return self.whole * self.budget if self.budget else max(SHARE * self.whole, min(LEAST, SHORT * self.whole))

    @property
    def head_epochs(self) -> float:
        return round(min(1.0, HEAD_IMAGES / self.trained), 6) if self.fits_head else 0.0

    @property
    def head_cost(self) -> float:
        """One validation, and the prediction of the kept weights."""
        return (self.head_epochs * self.trained + 2 * self.held) / 3 if self.fits_head else 0.0

    def cost(self, steps: int) -> float:
        """Images of one candidate: it validates after each epoch and at its end, and predicts with the kept weights."""
        validations = max(1, ceil(steps * self.batch / self.trained))
        return steps * self.batch + (validations + 1) * self.held / 3

    @cached_property
    def rounds(self) -> tuple[Round, ...]:
        """Twice the steps in each round; as many rounds as let the first one have SEVERAL steps."""
        for count in (3, 2, 1):
            steps = self._longest(count)
            if steps >= SEVERAL or count == 1:
                return _rounds(count, max(steps, FEWEST))
        raise AssertionError

    def _longest(self, count: int) -> int:
        """The most steps of the first of ``count`` rounds within the budget, 0 for none; not more than the run has."""
        low, high = 0, self.steps >> (count - 1)
        while low < high:
            steps = (low + high + 1) // 2
            low, high = (steps, high) if self._cost_of(_rounds(count, steps)) <= self.allowed else (low, steps - 1)
        return low

    def _cost_of(self, rounds: tuple[Round, ...]) -> float:
        return self.head_cost + sum(k * self.cost(steps) for k, steps in rounds)

    @property
    def planned(self) -> float:
        """Images of the whole search."""
        return self._cost_of(self.rounds)

    def cost_after(self, place: int) -> float:
        """Images of the rounds after the one at ``place``."""
        return sum(k * self.cost(steps) for k, steps in self.rounds[place + 1 :])

    @property
    def comparisons(self) -> int:
        """Pairs of candidates in all rounds as planned; a best rate at the edge adds some."""
        return sum(k * (k - 1) // 2 for k, _ in self.rounds)

    def epochs_of(self, steps: int) -> float:
        """``train.epochs`` of a run of so many steps over the candidates' images."""
        return round((steps - 0.5) * self.batch / self.trained, 6)


def _rounds(count: int, steps: int) -> tuple[Round, ...]:
    return tuple(Round(LATER if i else FIRST, steps << i) for i in range(count))


def neighbors(rate: float) -> tuple[float, float]:
    """The rates below and above on the grid 1, 3, 10, 30, …: 1e-3 and 1e-2 of 3e-3."""
    three = f"{rate:.0e}".startswith("3")
    return float(f"{rate / (3 if three else 10 / 3):.0e}"), float(f"{rate * (10 / 3 if three else 3):.0e}")
