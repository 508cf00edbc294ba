"""Python's garbage collector runs only when the training loop calls it."""

import gc
from typing import Self


class GarbageCollection:
    """Disables automatic collection of reference cycles; :meth:`collect` runs it.

    Automatic collection scans the libraries' 400,000 objects for 240 ms, at a different step on each rank, while the
    others wait. Objects that exist before the first step are frozen, so that a collection is short.
    """

    def __enter__(self) -> Self:
        gc.collect()
        gc.freeze()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()

    def collect(self) -> None:
        gc.collect()
