"""How a search is cut into rounds, and what it costs, counted in images.

One image is one forward and backward pass of the whole network; a forward pass alone counts as a third of it.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from cls.commands.tune.race import pairs

STARTS = {"adamw": (3e-5, 3e-4, 3e-3), "sgd": (1e-3, 1e-2, 1e-1)}
"""The first candidates, a decade apart: what published fine-tuning uses. The neighbors of the best follow."""
GRID = 3
"""How often neighbors may follow, half a decade apart."""
SHARE = 0.1
"""Of the run's images: the default budget of a long run."""
LEAST = 7_300
"""The default budget of a short run, but at most SHORT of it: rankings of fewer than a dozen steps mean little."""
SHORT = 0.9
FIRST, FEWEST = 16, 8
"""Steps of the first of several rounds, and of a single one, at least."""
HEAD_IMAGES = 10_000
"""Images that the head is fitted on, at most, and one epoch."""
HELD = 500
"""Images held out, at least, if that is not more than a fifth of them; and at least a twentieth."""


class Round(NamedTuple):
    candidates: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """A search for a run over ``images`` training images in steps of ``batch``."""

    images: int
    batch: int
    epochs: float
    fits_head: bool
    budget: float
    """As a share of the run's images; 0: SHARE, or for a short run LEAST images, at most SHORT."""

    @property
    def parts(self) -> int:
        """One of so many parts of the images is held out."""
        return max(5, min(20, self.images // HELD))

    @property
    def held(self) -> int:
        return ceil(self.images / self.parts)

    @property
    def trained(self) -> int:
        """Training images of a candidate."""
        return self.images - self.held

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
        return round(min(1.0, HEAD_IMAGES / self.trained), 3) if self.fits_head else 0.0

    @property
    def head_cost(self) -> float:
        return (self.head_epochs * self.trained + 2 * self.held) / 3 if self.fits_head else 0.0

    def cost(self, steps: int, validations: int = 1) -> float:
        """Images of one candidate."""
        return steps * self.batch + validations * self.held / 3

    def validations(self, steps: int) -> int:
        """After each whole epoch and at the end, and the prediction of the kept weights."""
        return 1 + max(1, ceil(Fraction(steps * self.batch, self.trained)))

    @property
    def rounds(self) -> tuple[Round, ...]:
        """Fewer candidates at twice the steps in each round; as many rounds as let the first one have FIRST steps."""
        for kept in ((5, 3, 2), (5, 2), (5,)):
            steps = self._longest(kept)
            if steps >= FIRST or len(kept) == 1:
                return tuple(Round(k, max(steps, FEWEST) << i) for i, k in enumerate(kept))
        raise AssertionError

    def _longest(self, kept: tuple[int, ...]) -> int:
        """The most steps of the first round within the budget; not more than the run has."""
        most = max(1, self.steps >> (len(kept) - 1))
        return max((steps for steps in range(1, most + 1) if self._planned(kept, steps) <= self.allowed), default=0)

    def _planned(self, kept: tuple[int, ...], steps: int) -> float:
        each = (k * self.cost(steps << i, self.validations(steps << i)) for i, k in enumerate(kept))
        return self.head_cost + sum(each)

    @property
    def planned(self) -> float:
        """Images of the whole search."""
        return self._planned(tuple(k for k, _ in self.rounds), self.rounds[0].steps)

    @property
    def comparisons(self) -> int:
        """Pairs of candidates that may be compared in all rounds, for :func:`cls.commands.tune.race.race`."""
        return sum(pairs(k + (GRID - 1 if i == 0 else 0)) for i, (k, _) in enumerate(self.rounds))

    def epochs_of(self, steps: int) -> float:
        """``train.epochs`` of a run of so many steps over the candidates' images."""
        return round((steps - 0.5) * self.batch / self.trained, 6)


def neighbors(rate: float) -> tuple[float, float]:
    """The rates below and above on the grid 1, 3, 10, 30, …: 1e-3 and 1e-2 of 3e-3."""
    three = f"{rate:.0e}".startswith("3")
    return float(f"{rate / (3 if three else 10 / 3):.0e}"), float(f"{rate * (10 / 3 if three else 3):.0e}")
