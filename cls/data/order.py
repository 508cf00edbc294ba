"""Which image each draw is: arithmetic on (seed, draw), without state."""

import numpy as np

from cls.seed import generator


class Order:
    """The image of each draw.

    ``epoch, k = divmod(draw, n)`` and the image is the k-th of that epoch's permutation. Balanced: classes take turns
    in a seeded order (every block of c draws has each class once) and each runs through its own permutations.
    """

    def __init__(self, labels: np.ndarray, seed: int, balanced: bool) -> None:
        self.seed, self.rows = seed, len(labels)
        self.of_class = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
        self.of_class = [rows for rows in self.of_class if len(rows)] if balanced else []
        self._cache: dict[tuple[str | int, ...], np.ndarray] = {}

    def row(self, draw: int) -> int:
        if not self.of_class:
            epoch, k = divmod(draw, self.rows)
            return int(self._permutation(self.rows, "order", epoch)[k])
        turn, k = divmod(draw, len(self.of_class))
        chosen = int(self._permutation(len(self.of_class), "turn", turn)[k])
        rows = self.of_class[chosen]
        epoch, k = divmod(turn, len(rows))
        return int(rows[self._permutation(len(rows), "class", chosen, epoch)[k]])

    def _permutation(self, n: int, *tags: str | int) -> np.ndarray:
        if tags not in self._cache:
            if len(self._cache) > 2 * len(self.of_class) + 2:
                self._cache.clear()
            self._cache[tags] = generator(self.seed, *tags).permutation(n)
        return self._cache[tags]
