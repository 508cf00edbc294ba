"""Find at the start, on all ranks, how many micro-batches fit into memory with everything else a step needs."""

import sys

import torch
from torch.optim import Optimizer

from cls.config import Run
from cls.distributed import tree_reduce
from cls.distributed.micro_batches import MicroBatches, advice, smaller
from cls.runtime.exit import OutOfMemory


def probe(micro: MicroBatches, optimizer: Optimizer, run: Run) -> MicroBatches:
    """Try forward and backward of one chunk, which is the warm-up, too. Returns ``micro`` with its chunk size set.

    The micro-batch is part of the method and never changed: where it does not fit, all ranks raise OutOfMemory with the
    largest one that fits on each of them. The chunk (reduce=fast) is a rank's whole share if that fits, else half of it
    and so on, the same on all ranks.
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
        # DDP rebuilds its buckets after its first backward pass: a resumed run must add in the same order
        for _ in range(2):
            _forward_backward(micro, run, size, micro.chunks[-1])
    return micro


def _sharded(micro: MicroBatches, optimizer: Optimizer, run: Run, most: int) -> int:
    """The chunk size of a sharded model, computed from the peak memory of one micro-batch: a rank that runs out of
    memory would leave the others in a collective.
    """
    fits(micro, optimizer, run, run.train.micro_batch)
    if micro.world.device.type != "cuda":
        return most  # free memory of a CPU is unknown
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fits(micro, optimizer, run, run.train.micro_batch)
    free, _ = torch.cuda.mem_get_info()
    available = free + torch.cuda.memory_reserved() - held
    return min(micro.world.gather(chunks_in(available, torch.cuda.max_memory_allocated() - held, most)))


def chunks_in(available: int, one: int, most: int) -> int:
    """``most``, halved until so many times ``one`` bytes fit into 0.8 of ``available`` (fragmentation, workspace)."""
    while most > 1 and most * one > 0.8 * available:
        most = -(-most // 2)
    return most


def fits(micro: MicroBatches, optimizer: Optimizer, run: Run, size: int, count: int = 1) -> bool:
    """Whether ``count`` micro-batches fit at once on this rank; with FSDP all ranks call it, and it raises if not."""
    try:
        held = _held(micro, optimizer, run, count)
        _forward_backward(micro, run, size, range(-count, 0))
        del held
        return True
    except OutOfMemory:
        if micro.world.fsdp:
            raise
    finally:
        # a failed backward pass keeps its activations in autograd's queue until the next one
        torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if micro.world.device.type == "cuda":
            torch.cuda.empty_cache()
    return False


def _held(micro: MicroBatches, optimizer: Optimizer, run: Run, count: int) -> list[torch.Tensor]:
    """Memory of the size of the optimizer's state (if there is none yet) and of earlier gradients."""
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
