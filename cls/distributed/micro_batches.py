"""One optimizer step as a sum over micro-batches: gradients, BatchNorm statistics, loss and recognised images."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from cls.config import Run
from cls.distributed import tree_reduce
from cls.distributed.batchnorm import BatchNorms
from cls.distributed.world import World
from cls.runtime.exit import OutOfMemory, out_of_memory
from cls.runtime.rng import torch_seed
from cls.runtime.signals import Stopped


class MicroBatches:
    """This rank's micro-batches of a step, and the sums over all ranks' micro-batches.

    Each micro-batch starts from the step's BatchNorm buffers, so its result depends neither on the rank that computes
    it nor on what that rank computed before. ``exact``: one forward pass per micro-batch, dropout masks seeded by
    (seed, step, micro-batch), gradients added in the fixed tree of :mod:`cls.distributed.tree_reduce`.

    ``fast`` is the same method with other rounding. The micro-batches of a *chunk* share one forward pass; BatchNorm
    statistics, mixing partners and running buffers stay those of each micro-batch; dropout masks are seeded once per
    chunk, by (seed, step, its first micro-batch). Autograd accumulates chunks; DDP all-reduces during the last backward
    pass. A chunk is one micro-batch until the memory probe calls :meth:`set_chunk_size`. Buffers and losses (a few
    hundred kB) take the tree in both modes. With FSDP each chunk's gradients are summed over ranks at once: whole
    gradients would fill the memory that sharding saves. ``model`` is in train mode.
    """

    def __init__(self, world: World, model: nn.Module, run: Run) -> None:
        self.world, self.model = world, model
        self.count = run.train.batch // run.train.micro_batch
        if world.size > self.count:
            raise ValueError(
                f"{world.size} processes but only {self.count} micro-batches (train.batch {run.train.batch} / "
                f"train.micro_batch {run.train.micro_batch}): use accelerate launch --num_processes {self.count}, or "
                f"--train.batch {world.size * run.train.micro_batch} --optim.scale-lr sqrt"
            )
        if world.fsdp and self.count % world.size:
            fewer = max((d for d in range(2, world.size) if self.count % d == 0), default=0)
            raise ValueError(
                f"{self.count} micro-batches (train.batch {run.train.batch} / train.micro_batch "
                f"{run.train.micro_batch}) on {world.size} processes: with FSDP each must have the same number, so use "
                + (f"--num_processes {fewer}, or " if fewer else "")
                + "DDP (--config_file accelerate_configs/ddp.yaml)"
            )
        self.norms = BatchNorms(model)
        if run.train.micro_batch == 1 and self.norms.batch:
            raise ValueError("train.micro_batch is 1: BatchNorm needs the statistics of 2 or more images")
        self.share = tree_reduce.shares(self.count, world.size)[world.rank]
        self.exact = run.train.reduce == "exact"
        self.run, self.batch, self.seed = run, run.train.batch, run.seed
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.set_chunk_size(1)
        self.in_step = False
        self.left: list[Tensor] = []  # values of the first of two siblings
        self.exchange_buffers: dict[str, Tensor] = {}
        if isinstance(model, DistributedDataParallel) and not self.exact:
            model.register_comm_hook(None, _sum_over_ranks)
        if world.fsdp:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_gradient_divide_factor(1.0)  # a sum; the batch is divided by once, in all_reduce()
                    module.set_force_sum_reduction_for_comms(True)

    def set_chunk_size(self, most: int) -> None:
        """At most ``most`` micro-batches per forward pass; the last chunk may be smaller."""
        assert most == 1 or not self.exact
        starts = self.share[::most]
        self.chunks = [range(start, min(start + most, self.share.stop)) for start in starts]

    def start_step(self, step: int) -> list[range]:
        """Clear gradients and save the buffers that each micro-batch starts from; returns this rank's chunks."""
        if self.norms.changed:
            self.norms = BatchNorms(self.model)
        self.norms.save()
        self.step, self.in_step = step, True
        self.stack: list[tree_reduce.Block] = []
        for parameter in self.parameters:
            parameter.grad = None
        return self.chunks

    @contextmanager
    def context(self, chunk: range) -> Iterator[None]:
        """For the forward and backward pass of a chunk, whose micro-batches are concatenated in order."""
        self._seed_dropout(self.step, chunk.start)
        quiet = isinstance(self.model, DistributedDataParallel) and (self.exact or chunk.stop != self.share.stop)
        together = self.norms.chunked(len(chunk)) if len(chunk) > 1 else nullcontext(None)
        self.norms.restore()
        try:
            with together as self.rows, self.model.no_sync() if quiet else nullcontext():  # type: ignore[operator]  # DDP's
                yield
        except Exception as error:
            if out_of_memory(error):
                raise OutOfMemory(f"{advice(self.run, smaller(self.run))} ({error})") from error
            raise

    def accumulate(self, chunk: range, losses: Tensor, right: Tensor) -> None:
        """Add a chunk's losses and recognised images (both one per image), buffers and, in exact mode, gradients.

        Raises Stopped on a stop request that cannot wait for the end of the step.
        """
        losses, right = losses.detach(), right.to(losses.dtype)  # a count in fp32 is exact up to 16.7 million images
        rows = [torch.cat([losses.sum().view(1), losses.new_zeros(2), right.sum().view(1), *self.norms.buffers])]
        if self.rows is not None:
            sums, counts = (values.view(len(chunk), -1).sum(1, keepdim=True) for values in (losses, right))
            rows = [*torch.cat([sums, losses.new_zeros(len(chunk), 2), counts, self.rows], dim=1)]
        if self.exact:
            self._accumulate_gradients(chunk.start, rows)
        else:
            for index, row in zip(chunk, rows, strict=True):
                tree_reduce.push(self.stack, index, [row])
        if self.world.stop.at_once:
            raise Stopped

    def _accumulate_gradients(self, index: int, values: list[Tensor]) -> None:
        """Of two siblings, the left one's gradients stay in ``.grad`` and autograd adds the right one's layer by layer:
        one set of gradients less in memory.
        """
        if index % 2 == 0 and index + 1 in self.share:
            self.left = values
            return
        size = 2 if index % 2 and index - 1 in self.share else 1
        if size == 2:
            torch._foreach_add_(values, self.left)
        for parameter in self.parameters:
            grad = parameter.grad
            values.append(torch.zeros_like(parameter) if grad is None else grad)
            parameter.grad = None
        tree_reduce.push(self.stack, index + 1 - size, values, size)

    def all_reduce(self, stop: bool = False, save: bool = False) -> Tensor:
        """Set every ``.grad`` to the gradient of the batch's mean loss, and the buffers to their mean.

        Returns four numbers: the mean loss, how many ranks requested a stop, how many a checkpoint, and how many images
        of the batch were recognised.
        """
        for place, requested in ((1, stop), (2, save)):
            if requested:
                self.stack[0].values[0][place] += 1
        with self.world.timer.on("exchange"):
            row, *gradients = tree_reduce.total(self.stack, self.count, self.world, self.exchange_buffers)
        self.norms.load(row[4:].div_(self.count))
        self.norms.set_count(1)
        if self.exact:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
        else:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_div_(gradients, self.batch)
        result = row[:4].clone()  # the next step writes into the same buffer
        result[0] /= self.batch
        self.in_step = False
        return result

    def discard_step(self) -> None:
        """Undo an unfinished step, if there is one: the buffers as before it, no gradients."""
        if not self.in_step:
            return
        self.norms.restore()
        self.norms.set_count(0)
        for parameter in self.parameters:
            parameter.grad = None
        self.in_step = False

    def _seed_dropout(self, step: int, index: int) -> None:
        device = self.world.device
        drawing = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
        drawing.manual_seed(torch_seed(self.seed, "dropout", step, index))  # 1 us; torch.manual_seed costs 85


def _sum_over_ranks(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]  # no stub
    """DDP's default hook averages; the batch is divided by once, in :meth:`MicroBatches.all_reduce`."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Any] = work.get_future()
    return future.then(lambda done: done.value()[0])


def smaller(run: Run) -> int:
    """The next smaller micro-batch that divides the batch; 0 if there is none with the two images of BatchNorm."""
    return max((d for d in range(2, run.train.micro_batch) if run.train.batch % d == 0), default=0)


def advice(run: Run, size: int) -> str:
    """The message for a micro-batch that does not fit; ``size``: one that fits or the next to try, 0 for none."""
    text = f"a micro-batch of {run.train.micro_batch} images of {run.data.size} pixels does not fit into memory: "
    if not size:
        return text + "use a smaller --data.size or --model.backbone"
    return text + (
        f"add --train.micro-batch {size} (a step is then {run.train.batch // size} micro-batches; it is part of the "
        "method: BatchNorm and mixing see that many images at once, so a run with checkpoints needs another --out)"
    )
