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


class Norms:
    """The norms of a model that take statistics of images; looked for once, since a step may not walk all modules.

    A *row* is all their running buffers behind one another (R numbers).
    """

    def __init__(self, model: nn.Module) -> None:
        training = [m for m in model.modules() if isinstance(m, _NormBase) and m.training]
        self.batch = [norm for norm in training if isinstance(norm, _BatchNorm)]
        tracking = [norm for norm in training if norm.running_mean is not None]
        # a cumulative average (momentum None) would count the micro-batches that this rank has seen
        assert all(norm.momentum is not None for norm in tracking)
        self.learn = any(p.requires_grad for norm in training for p in norm.parameters())
        # whose forward pass is known; of a model with others one micro-batch goes forward at a time
        self.together = all(
            type(norm).forward is _BatchNorm.forward or _activates(norm) for norm in {*tracking, *self.batch}
        )
        self.buffers = [b for norm in tracking for b in (norm.running_mean, norm.running_var) if b is not None]
        self.counts = [norm.num_batches_tracked for norm in tracking if norm.num_batches_tracked is not None]
        self._sizes = [buffer.numel() for buffer in self.buffers]
        self._empty = torch.empty(0, device=next((p.device for p in model.parameters()), None))

    def remember(self) -> None:
        """Keep buffers and counts as they are: the step's start."""
        self._start = torch.cat(self.buffers) if self.buffers else self._empty
        self._start_counts = [count.clone() for count in self.counts]

    def recall(self) -> None:
        """The step's start again, for the next micro-batch."""
        self.become(self._start)

    def become(self, row: Tensor) -> None:
        """Fill the buffers from a row (R)."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, row.split_with_sizes(self._sizes))

    def count(self, steps: int) -> None:
        """Batches seen since the start: each forward pass has added one, but a step counts once, an undone one not."""
        if self.counts:
            torch._foreach_copy_(self.counts, self._start_counts)
            torch._foreach_add_(self.counts, steps)

    @contextmanager
    def apart(self, count: int) -> Iterator[Tensor]:
        """Inside, a forward pass sees ``count`` micro-batches at once and keeps their statistics apart.

        Gives the rows (count R): the start's, each moved on by its own micro-batch after the forward pass.
        """
        rows = self._start.expand(count, -1).clone()
        means_and_variances = [iter(row.split_with_sizes(self._sizes)) for row in rows]
        for norm in self.batch:
            own: list[Pair] = [(None, None)] * count
            if norm.running_mean is not None:
                own = [(next(row), next(row)) for row in means_and_variances]
            norm.__dict__["forward"] = _Apart(norm, own).forward  # Module.__setattr__ takes 1 us for each
        try:
            yield rows
        finally:
            for norm in self.batch:
                del norm.__dict__["forward"]


def _activates(norm: nn.Module) -> bool:
    """Whether it is timm's norm with an activation; by name, since the import of timm takes 1.5 s."""
    return f"{type(norm).__module__}.{type(norm).__name__}" == "timm.layers.norm_act.BatchNormAct2d"


class _Apart:
    """A norm's forward pass that takes one micro-batch after the other.

    One call for each and one concatenation cost 1.4 to 1.6 times the single norm on a CPU, forward and backward.
    Folding micro-batches into channels costs 2.1 (channels-last) to 6.7 times: two copies there and back in place
    of one, and memory traffic is all that a norm costs, on a GPU too. A formula of var_mean and pointwise
    operations costs 6 to 8 times. The activation of timm's BatchNormAct2d runs once, so that it keeps one result
    for the backward pass. (A TorchFunctionMode around the norm's own forward would do for any subclass, but
    torch.compile drops it and the gradients of weight and bias without a word: torch 2.14.)
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
