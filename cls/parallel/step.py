"""One optimizer step as a sum over micro-batches: gradients, BatchNorm statistics and the loss."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from cls.config import Run
from cls.outcome import OutOfMemory, out_of_memory
from cls.parallel import reduce
from cls.parallel.cluster import Cluster
from cls.seed import torch_seed


class MicroBatches:
    """The micro-batches that this rank carries, and the sums over all of them.

    Each micro-batch sees the step's BatchNorm buffers and its own dropout masks, seeded by (seed, step, micro-batch):
    what it computes does not depend on who carries it or on what was computed before. ``exact`` adds gradients in the
    fixed tree of :mod:`cls.parallel.reduce`; ``fast`` lets autograd accumulate and DDP all-reduce while it goes back.
    Buffers and the loss are a few hundred kilobytes and take the tree in both modes. ``model`` is in train mode.
    Sharded (FSDP), each micro-batch's gradients are summed over ranks at once: kept whole they would fill the memory
    that sharding is to save.
    """

    def __init__(self, cluster: Cluster, model: nn.Module, run: Run) -> None:
        self.cluster, self.model = cluster, model
        self.count = run.train.batch // run.train.micro_batch
        if cluster.world > self.count:
            raise ValueError(
                f"{cluster.world} processes but only {self.count} micro-batches (train.batch {run.train.batch} / "
                f"train.micro_batch {run.train.micro_batch}): use accelerate launch --num_processes {self.count}, or "
                f"--train.batch {cluster.world * run.train.micro_batch} --optim.scale-lr sqrt"
            )
        if cluster.fsdp and self.count % cluster.world:
            fewer = max((d for d in range(2, cluster.world) if self.count % d == 0), default=0)
            raise ValueError(
                f"{self.count} micro-batches (train.batch {run.train.batch} / train.micro_batch "
                f"{run.train.micro_batch}) on {cluster.world} processes: with FSDP each must carry as many, so use "
                + (f"--num_processes {fewer}, or " if fewer else "")
                + "DDP (--config_file accelerate_configs/ddp.yaml)"
            )
        training = [m for m in model.modules() if isinstance(m, _NormBase) and m.training]
        if run.train.micro_batch == 1 and any(p.requires_grad for norm in training for p in norm.parameters()):
            raise ValueError("train.micro_batch is 1: BatchNorm needs the statistics of 2 or more images")
        self.norms = [norm for norm in training if norm.running_mean is not None]
        # a cumulative average (momentum None) would count the micro-batches that this rank has seen
        assert all(norm.momentum is not None for norm in self.norms)
        self.share = reduce.shares(self.count, cluster.world)[cluster.rank]
        self.exact = run.train.reduce == "exact"
        self.run, self.batch, self.seed = run, run.train.batch, run.seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.start: list[Tensor] = []
        self.done: int | None = None  # forward passes of the step that is being made
        self.left: list[Tensor] = []  # the first of two siblings
        self.rooms: dict[str, Tensor] = {}
        if isinstance(model, DistributedDataParallel) and not self.exact:
            model.register_comm_hook(None, _sum_over_ranks)
        if cluster.fsdp:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_gradient_divide_factor(1.0)  # a sum; the batch is divided by once, in finish()
                    module.set_force_sum_reduction_for_comms(True)

    def begin(self) -> None:
        """Start a step: remember the BatchNorm buffers that every micro-batch starts from."""
        self.start = [buffer.clone() for buffer in self._buffers()]
        self.done = 0
        self.stack: list[reduce.Block] = []
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def micro_batch(self, step: int, index: int) -> Iterator[None]:
        """Forward and backward of one micro-batch go inside."""
        torch._foreach_copy_(self._buffers(), self.start) if self.start else None
        self._seed_dropout(step, index)
        quiet = isinstance(self.model, DistributedDataParallel) and (self.exact or index != self.share[-1])
        assert self.done is not None
        try:
            with self.model.no_sync() if quiet else nullcontext():  # type: ignore[operator]  # DDP's
                yield
        except Exception as error:
            if out_of_memory(error):
                raise OutOfMemory(f"{advice(self.run, smaller(self.run))} ({error})") from error
            raise
        self.done += 1

    def collect(self, index: int, loss: Tensor) -> None:
        """Take one micro-batch's summed loss (scalar), buffers and, in exact mode, gradients.

        Where a rank carries two siblings, the left one's stay in ``.grad`` and autograd adds the right one's, layer by
        layer: one set of gradients less in memory.
        """
        head = torch.zeros(3, device=loss.device)  # loss, wishes to stop, wishes to save
        head[0] = loss.detach()
        values = [head, *(buffer.clone() for buffer in self._buffers())]
        if index % 2 == 0 and index + 1 in self.share:
            self.left = values
            return
        size = 2 if index % 2 and index - 1 in self.share else 1
        if size == 2:
            torch._foreach_add_(values, self.left)
        if self.exact:
            for parameter in self.parameters:
                grad = parameter.grad
                values.append(torch.zeros_like(parameter) if grad is None else grad)
                parameter.grad = None
        reduce.push(self.stack, index + 1 - size, values, size)

    def finish(self, stop: bool = False, save: bool = False) -> Tensor:
        """Set every ``.grad`` to the gradient of the batch's mean loss, the buffers to their mean.

        Gives the mean loss and how many ranks wished to stop or to save: wishes travel with the sums.
        """
        for place, wish in ((1, stop), (2, save)):
            if wish:
                self.stack[0].values[0][place] += 1
        with self.cluster.clock.on("exchange"):
            result, *values = reduce.total(self.stack, self.count, self.cluster, self.rooms)
        buffers, gradients = values[: len(self.start)], values[len(self.start) :]
        if buffers:
            torch._foreach_div_(buffers, self.count)
            torch._foreach_copy_(self._buffers(), buffers)
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= len(self.share) - 1  # each forward added one; a step counts once
        if self.exact:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
        else:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_div_(gradients, self.batch)
        result = result.clone()  # the next step writes into the same room
        result[0] /= self.batch
        self.done = None
        return result

    def abandon(self) -> None:
        """Give an unfinished step up, if there is one: buffers as it found them, no gradients."""
        if self.done is None:
            return
        if self.start:
            torch._foreach_copy_(self._buffers(), self.start)
        for norm in self.norms:
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= self.done
        for parameter in self.parameters:
            parameter.grad = None
        self.done = None

    def _buffers(self) -> list[Tensor]:
        return [
            buffer
            for norm in self.norms
            for buffer in (cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var))
        ]

    def _seed_dropout(self, step: int, index: int) -> None:
        device = self.cluster.device
        drawing = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
        drawing.manual_seed(torch_seed(self.seed, "dropout", step, index))  # 1 us; torch.manual_seed costs 85


def _sum_over_ranks(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]  # no stub
    """DDP's default hook averages; the batch is divided by once, in :meth:`MicroBatches.finish`."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Any] = work.get_future()
    return future.then(lambda done: done.value()[0])


def smaller(run: Run) -> int:
    """The next smaller micro-batch that divides the batch; 0 if there is none."""
    return max((d for d in range(1, run.train.micro_batch) if run.train.batch % d == 0), default=0)


def advice(run: Run, size: int) -> str:
    """What to type where a micro-batch does not fit; ``size``: one that does, or the next to try; 0 for none."""
    text = f"a micro-batch of {run.train.micro_batch} images of {run.data.size} pixels does not fit into memory: "
    if not size:
        return text + "use a smaller --data.size or --model.backbone"
    return text + (
        f"add --train.micro-batch {size} (a step is then {run.train.batch // size} micro-batches; it is part of the "
        "method: BatchNorm and mixing see that many images at once)"
    )
