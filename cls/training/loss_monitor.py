"""Non-blocking copy of the loss and the stop and save requests to the host, read one step later."""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from cls.runtime.exit import NonFiniteError


class Finished(NamedTuple):
    step: int  # optimizer steps done
    loss: float
    accuracy: float  # on the batch as the model has seen it: mixed, augmented, before the update
    lr: float
    seconds: float  # since the step before finished


class LossMonitor:
    """A queue of one: ``put`` starts the copy of this step's result and returns the step before.

    ``stop_requested`` and ``save_requested``: by any rank, as of the step last read. They travel with the loss, so all
    ranks read the same values at the same step.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.stop_requested = self.save_requested = False
        self._waiting: tuple[int, Tensor, float, float, torch.cuda.Event | None] | None = None
        self._last = time.perf_counter()

    def put(self, step: int, result: Tensor, lr: float) -> list[Finished]:
        """``result``: the loss, the number of stop requests, of save requests and of recognised images."""
        host = torch.empty(4, pin_memory=result.is_cuda)
        host.copy_(result, non_blocking=True)
        event = torch.cuda.Event() if result.is_cuda else None  # type: ignore[no-untyped-call]  # torch's
        if event:
            event.record()
        done = self.drain()
        now = time.perf_counter()
        self._waiting, self._last = (step, host, lr, now - self._last, event), now
        return done

    def drain(self) -> list[Finished]:
        """The step in the queue, if any; NonFiniteError, with its sample indices, for a non-finite loss."""
        self.save_requested = False
        if self._waiting is None:
            return []
        step, host, lr, seconds, event = self._waiting
        self._waiting = None
        if event:
            event.synchronize()
        value, stop, save, right = host.tolist()
        self.stop_requested, self.save_requested = self.stop_requested or stop > 0, save > 0
        if not math.isfinite(value):
            first = (step - 1) * self.batch
            raise NonFiniteError(
                f"the loss of step {step} is {value} (sample indices {first} to {first + self.batch - 1}); that step "
                "may have been applied: try a lower --optim.lr or --optim.clip 1, with another --out"
            )
        return [Finished(step, value, right / self.batch, lr, seconds)]

    def reset_timer(self) -> None:
        """Do not count the time of validation and saving as a step's."""
        self._last = time.perf_counter()
