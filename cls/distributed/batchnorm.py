"""BatchNorm by micro-batch: running buffers as one row of numbers, and several micro-batches in one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

Pair = tuple[Tensor | None, Tensor | None]
"""Running mean and variance."""


class BatchNorms:
    """The normalization layers in train mode, found once: walking all modules at each step is slow.

    A *row* is all their running buffers concatenated (R numbers).
    """

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(m, m.training) for m in model.modules() if isinstance(m, _NormBase)]
        training = [norm for norm, trains in self._modes if trains]
        self.batch = [norm for norm in training if isinstance(norm, _BatchNorm)]
        tracking = [norm for norm in training if norm.running_mean is not None]
        # a cumulative average (momentum None) would count the micro-batches that this rank has seen
        assert all(norm.momentum is not None for norm in tracking)
        # only these forward passes can be chunked; a model with others runs one micro-batch at a time
        self.chunkable = all(
            type(norm).forward is _BatchNorm.forward or _activates(norm) for norm in {*tracking, *self.batch}
        )
        self.buffers = [b for norm in tracking for b in (norm.running_mean, norm.running_var) if b is not None]
        self.counts = [norm.num_batches_tracked for norm in tracking if norm.num_batches_tracked is not None]
        self._sizes = [buffer.numel() for buffer in self.buffers]
        self._empty = torch.empty(0, device=next((p.device for p in model.parameters()), None))

    @property
    def changed(self) -> bool:
        """Whether another set of layers is in train mode now (with optim.head_epochs)."""
        return any(norm.training != trained for norm, trained in self._modes)

    def save(self) -> None:
        """Save buffers and counts at the start of a step."""
        self._start = torch.cat(self.buffers) if self.buffers else self._empty
        if self.counts:
            self._start_counts = torch.stack(self.counts)  # one kernel instead of one for each norm

    def restore(self) -> None:
        """The saved buffers again, for the next micro-batch."""
        self.load(self._start)

    def load(self, row: Tensor) -> None:
        """Fill the buffers from a row (R)."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, row.split_with_sizes(self._sizes))

    def set_count(self, steps: int) -> None:
        """Set num_batches_tracked to the saved count + ``steps``: each forward pass has added 1, a step counts once."""
        if self.counts:
            torch._foreach_copy_(self.counts, self._start_counts.unbind())
            torch._foreach_add_(self.counts, steps)

    @contextmanager
    def chunked(self, count: int) -> Iterator[Tensor]:
        """Inside, a forward pass takes ``count`` micro-batches at once and keeps their statistics separate.

        Yields the rows (count R), all equal to the saved one; the forward pass updates each with its micro-batch.
        """
        rows = self._start.expand(count, -1).clone()
        means_and_variances = [iter(row.split_with_sizes(self._sizes)) for row in rows]
        for norm in self.batch:
            own: list[Pair] = [(None, None)] * count
            if norm.running_mean is not None:
                own = [(next(row), next(row)) for row in means_and_variances]
            norm.__dict__["forward"] = _ChunkedNorm(norm, own).forward  # Module.__setattr__ takes 1 us
        try:
            yield rows
        finally:
            for norm in self.batch:
                del norm.__dict__["forward"]


def _activates(norm: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d; compared by name, since importing timm takes 1.5 s."""
    return f"{type(norm).__module__}.{type(norm).__name__}" == "timm.layers.norm_act.BatchNormAct2d"


class _ChunkedNorm:
    """A norm's forward pass, one micro-batch after the other.

    One call each and one concatenation cost 1.4 to 1.6 times the single norm on a CPU, forward and backward. Folding
    micro-batches into channels costs 2.1 (channels-last) to 6.7 times, since it copies twice and memory traffic is all
    that a norm costs, on a GPU too; var_mean and pointwise operations cost 6 to 8 times. The activation of timm's
    BatchNormAct2d runs once, so that one result is kept for the backward pass. (A TorchFunctionMode would serve any
    subclass, but torch.compile silently drops it and the gradients of weight and bias: torch 2.14.)
    """

    def __init__(self, norm: _BatchNorm, own: list[Pair]) -> None:
        self.norm, self.own, self.activates = norm, own, _activates(norm)

    def forward(self, images: Tensor) -> Tensor:
        norm: Any = self.norm
        parts = images.split_with_sizes([len(images) // len(self.own)] * len(self.own))  # a norm of tokens has b·n rows
        done = torch.cat([
            F.batch_norm(part, mean, variance, norm.weight, norm.bias, True, norm.momentum or 0.0, norm.eps)
            for part, (mean, variance) in zip(parts, self.own, strict=True)
        ])  # fmt: skip
        if self.activates:
            done = norm.act(norm.drop(done))
        return done
