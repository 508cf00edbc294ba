"""Does a micro-batch fit? Tried at the start, on all ranks, at full size, beside all that a step will hold."""

import torch
from torch.optim import Optimizer

from cls.config import Run
from cls.outcome import OutOfMemory
from cls.parallel import reduce
from cls.parallel.step import MicroBatches, advice, smaller


def probe(micro: MicroBatches, optimizer: Optimizer, run: Run) -> None:
    """Forward and backward of one micro-batch; nothing of it stays. It is warm-up as well.

    Raises OutOfMemory, on all ranks, with the largest micro-batch that fits on each of them: the micro-batch is part
    of the method and never changes by itself.
    """
    size = run.train.micro_batch
    if not all(micro.cluster.gather(fits(micro, optimizer, run, size))):
        least = 2 if micro.norms else 1  # BatchNorm needs two images
        sizes = [d for d in range(size - 1, least - 1, -1) if run.train.batch % d == 0]
        found = next((d for d in sizes if all(micro.cluster.gather(fits(micro, optimizer, run, d)))), 0)
        raise OutOfMemory(advice(run, found))
    if micro.cluster.world > 1 and not (micro.exact or micro.cluster.fsdp):
        # DDP rebuilds its buckets after its first backward; a resumed run must add in the order of the first life
        for _ in range(2):
            _forward_backward(micro, run, size, micro.share[-1])


def fits(micro: MicroBatches, optimizer: Optimizer, run: Run, size: int) -> bool:
    """One micro-batch on this rank. Sharded models need all ranks in it: there the first failure is raised."""
    try:
        held = _held(micro, optimizer, run)
        _forward_backward(micro, run, size, -1)
        del held
        return True
    except OutOfMemory:
        if micro.cluster.fsdp:
            raise
    finally:
        # a backward pass that failed leaves its activations in autograd's queue until the next one
        torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if micro.cluster.device.type == "cuda":
            torch.cuda.empty_cache()
    return False


def _held(micro: MicroBatches, optimizer: Optimizer, run: Run) -> list[torch.Tensor]:
    """As much as the optimizer's state (if there is none yet) and the partial sums of gradients will take."""
    share = micro.share
    # before the forward of micro-batch `stop`; if its left sibling is there, that one's gradients are still in .grad
    before = [range(share.start, stop - stop % 2) for stop in share[1:]]
    sums = max((len(reduce.block_sizes(part)) for part in before), default=0) * micro.exact
    moments = 0 if optimizer.state else 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    try:
        return [torch.empty_like(p) for p in micro.parameters for _ in range(sums + moments)]
    except RuntimeError as error:
        raise OutOfMemory(f"{advice(run, smaller(run))} ({error})") from None


def _forward_backward(micro: MicroBatches, run: Run, size: int, index: int) -> None:
    micro.begin()
    try:
        with micro.micro_batch(0, index):
            images = torch.zeros(size, 3, run.data.size, run.data.size, device=micro.cluster.device)
            if run.train.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with micro.cluster.autocast(run.train.precision):
                logits = micro.model(images)
            logits.float().square().sum().backward()
    finally:
        micro.abandon()
