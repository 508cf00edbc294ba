"""What a run remembers of its epochs: the best by accuracy, the best by loss, and how long the loss has not fallen."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass
class History:
    best_accuracy: float = -math.inf
    best_accuracy_step: int = -1
    best_loss: float = math.inf
    best_loss_step: int = -1
    stale: int = 0
    """Epochs in a row without a lower validation loss."""
    validated: int = 0
    """The last step after which there was a validation."""

    def add(self, step: int, accuracy: float, loss: float) -> bool:
        """Record an epoch's validation figures; True if its accuracy is the best so far (a tie goes to the first)."""
        best = accuracy > self.best_accuracy
        if best:
            self.best_accuracy, self.best_accuracy_step = accuracy, step
        self.stale += 1
        if loss < self.best_loss:
            self.best_loss, self.best_loss_step, self.stale = loss, step, 0
        return best

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        return cls(**state)
