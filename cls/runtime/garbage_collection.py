"""When Python's garbage collector runs: at the steps where the loop asks for it."""

import gc
from typing import Self


class GarbageCollection:
    """Python's search for circular garbage, at the steps where the loop asks for it and at no others.

    By itself it searches all 400,000 objects of the libraries for 240 ms, at another step on each rank, while the
    others wait. What was there before the first step is left out here, so that a search has little to look at.
    Everything else goes when its last reference does, as ever.
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
