"""What fits? Tried at the start, on all ranks, at full size, beside all that a step will hold."""

import sys

import torch
from torch.optim import Optimizer

from cls.config import Run
from cls.distributed import tree_reduce
from cls.distributed.micro_batches import MicroBatches, advice, smaller
from cls.runtime.exit import OutOfMemory


def probe(micro: MicroBatches, optimizer: Optimizer, run: Run) -> MicroBatches:
    """Forward and backward of one chunk; nothing of it stays. It is warm-up as well. Gives ``micro``, cut into chunks.

    A micro-batch is part of the method and never changes by itself: where it does not fit this raises OutOfMemory, on
    all ranks, with the largest one that fits on each of them. How many of them make a chunk (reduce=fast) is not: the
    whole share of a rank where that fits, else half as many and so on, the same number on all ranks.
    """
    size = run.train.micro_batch
    most = 1 if micro.exact or not micro.norms.chunkable else -(-micro.count // micro.world.size)
    if micro.world.fsdp:
        most = _sharded(micro, optimizer, run, most)
    while not all(micro.world.gather(fits(micro, optimizer, run, size, most))):
        if most == 1:
            least = 2 if micro.norms.buffers else 1  # BatchNorm needs two images
            sizes = [d for d in range(size - 1, least - 1, -1) if run.train.batch % d == 0]
            found = next((d for d in sizes if all(micro.world.gather(fits(micro, optimizer, run, d)))), 0)
            raise OutOfMemory(advice(run, found))
        most = -(-most // 2)
    if micro.exact:
        return micro
    micro.set_chunk_size(most)
    if micro.world.main:
        print(f"fast: {most} micro-batch{'es' * (most > 1)} per forward", file=sys.stderr, flush=True)
    if micro.world.size > 1 and not micro.world.fsdp:
        # DDP rebuilds its buckets after its first backward; a resumed run must add in the order of the first attempt
        for _ in range(2):
            _forward_backward(micro, run, size, micro.chunks[-1])
    return micro


def _sharded(micro: MicroBatches, optimizer: Optimizer, run: Run, most: int) -> int:
    """How many micro-batches make a chunk of a sharded model: reckoned, since a rank that fails leaves the others in a
    collective. One is tried; its activations are what was held at the highest moment beyond what was held before.
    """
    fits(micro, optimizer, run, run.train.micro_batch)
    if micro.world.device.type != "cuda":
        return most  # a CPU's memory has no limit that can be asked for
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fits(micro, optimizer, run, run.train.micro_batch)
    free, _ = torch.cuda.mem_get_info()
    room = free + torch.cuda.memory_reserved() - held
    return min(micro.world.gather(chunks_in(room, torch.cuda.max_memory_allocated() - held, most)))


def chunks_in(room: int, one: int, most: int) -> int:
    """``most``, halved until so many times ``one`` bytes fit into 0.8 of ``room`` (gaps, workspaces); at least 1."""
    while most > 1 and most * one > 0.8 * room:
        most = -(-most // 2)
    return most


def fits(micro: MicroBatches, optimizer: Optimizer, run: Run, size: int, count: int = 1) -> bool:
    """``count`` micro-batches at once on this rank. Sharded models need all ranks in it: there a failure is raised."""
    try:
        held = _held(micro, optimizer, run, count)
        _forward_backward(micro, run, size, range(-count, 0))
        del held
        return True
    except OutOfMemory:
        if micro.world.fsdp:
            raise
    finally:
        # a backward pass that failed leaves its activations in autograd's queue until the next one
        torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if micro.world.device.type == "cuda":
            torch.cuda.empty_cache()
    return False


def _held(micro: MicroBatches, optimizer: Optimizer, run: Run, count: int) -> list[torch.Tensor]:
    """As much as the optimizer's state (if there is none yet) and earlier gradients will take."""
    share = micro.share
    # before the forward of micro-batch `stop`; if its left sibling is there, that one's gradients are still in .grad
    before = [range(share.start, stop - stop % 2) for stop in share[1:]]
    sums = max((len(tree_reduce.block_sizes(part)) for part in before), default=0)
    earlier = sums if micro.exact else int(count < len(share))  # fast: chunks accumulate in .grad
    moments = 0 if optimizer.state else 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    try:
        return [torch.empty_like(p) for p in micro.parameters for _ in range(earlier + moments)]
    except RuntimeError as error:
        raise OutOfMemory(f"{advice(run, smaller(run))} ({error})") from None


def _forward_backward(micro: MicroBatches, run: Run, size: int, chunk: range) -> None:
    micro.start_step(0)
    try:
        with micro.context(chunk):
            images = torch.zeros(len(chunk) * size, 3, run.data.size, run.data.size, device=micro.world.device)
            if run.train.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with micro.world.autocast(run.train.precision):
                logits = micro.model(images)
            logits.float().square().sum().backward()
    finally:
        micro.discard_step()
