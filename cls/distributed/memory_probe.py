"""Find at the start, on all ranks, how many micro-batches fit into memory with everything else a step needs."""

import sys

import torch
from torch.optim import Optimizer

from cls.config import Run
from cls.distributed import tree_reduce
from cls.distributed.micro_batches import MicroBatches, advice, smaller
from cls.runtime.exit import OutOfMemory, out_of_memory


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
    _try_exchange(micro, optimizer)
    if micro.world.device.type == "cuda":  # free memory of a CPU is unknown, and the forward pass would cost seconds
        try_evaluation(micro, optimizer, run)
    if micro.exact:
        return micro
    micro.set_chunk_size(most)
    if micro.world.main:
        print(f"fast: {most} micro-batch{'es' * (most > 1)} per forward", file=sys.stderr, flush=True)
    if micro.world.size > 1 and not micro.world.fsdp:
        # DDP rebuilds its buckets after its first backward pass: a resumed run must add in the same order
        for _ in range(2):
            forward_backward(micro, run, size, micro.chunks[-1])
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
        forward_backward(micro, run, size, range(-count, 0))
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
    try:
        return _copies(micro, earlier + _moments(optimizer))
    except RuntimeError as error:
        raise OutOfMemory(f"{advice(run, smaller(run))} ({error})") from None


def _copies(micro: MicroBatches, count: int) -> list[torch.Tensor]:
    return [torch.empty_like(p) for p in micro.parameters for _ in range(count)]


def _moments(optimizer: Optimizer) -> int:
    """Tensors of a parameter's size that the optimizer's first step will allocate for it."""
    # after the head's epochs (optim.head_epochs) only its parameters have some
    known = all(parameter in optimizer.state for group in optimizer.param_groups for parameter in group["params"])
    return 0 if known else 2 if isinstance(optimizer, torch.optim.AdamW) else 1


def _try_exchange(micro: MicroBatches, optimizer: Optimizer) -> None:
    """Allocate what the exchange of exact gradients holds after the activations are freed; OutOfMemory on all ranks."""
    if micro.world.size == 1 or not micro.exact:
        return
    ranges = tree_reduce.shares(micro.count, micro.world.size)
    blocks = [len(tree_reduce.block_sizes(share)) for share in ranges]
    own = blocks[micro.world.rank]
    fitting = _exchanges(micro, _moments(optimizer), own, sum(blocks))
    if micro.world.device.type == "cuda":
        torch.cuda.empty_cache()
    if not all(micro.world.gather(fitting)):
        raise OutOfMemory(
            f"adding the gradients of {micro.world.size} processes in a fixed order takes {2 * own + (own > 1)} times "
            "their size, which does not fit into memory: add --train.reduce fast, or use fewer processes"
        )


def _exchanges(micro: MicroBatches, moments: int, own: int, blocks: int) -> bool:
    """Whether there is memory for a rank's ``own`` sums and their copies, then for its slice of all ``blocks`` sums."""
    gradients = sum(p.numel() for p in micro.parameters)
    try:
        held = _copies(micro, moments + own)
        buffer = held[0].new_empty((own + (own > 1)) * gradients)
        del held[moments * len(micro.parameters) :]  # the sums are freed before the slices arrive
        buffer.new_empty(blocks * gradients // micro.world.size)
        return True
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False


def try_evaluation(micro: MicroBatches, optimizer: Optimizer, run: Run) -> None:
    """Try the forward pass of one evaluation batch beside gradients and the optimizer's state.

    OutOfMemory on all ranks names the size that fits.
    """
    exchanged = len(tree_reduce.block_sizes(micro.share)) if micro.exact and micro.world.size > 1 else 1
    copies = _moments(optimizer) + exchanged
    if all(micro.world.gather(_evaluates(micro, run, run.train.eval_batch, copies))):
        return
    found, size = 0, run.train.eval_batch // 2
    while size and not found:
        found = size if all(micro.world.gather(_evaluates(micro, run, size, copies))) else 0
        size //= 2
    raise OutOfMemory(
        f"an evaluation batch of {run.train.eval_batch} images of {run.data.evaluated.size} pixels does not fit into "
        "memory: " + (f"add --train.eval-batch {found}" if found else "use a smaller --data.eval-size")
    )


@torch.no_grad()
def _evaluates(micro: MicroBatches, run: Run, size: int, copies: int) -> bool:
    """Whether ``size`` images fit beside so many copies of the parameters; with FSDP it raises if not."""
    model = getattr(micro.model, "module", micro.model)  # DDP exchanges nothing in an evaluation
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        held = _copies(micro, copies)
        with micro.world.autocast(run.train.precision):
            model(_images(micro, run, size, run.data.evaluated.size))
        del held
        return True
    except RuntimeError as error:
        if micro.world.fsdp or not out_of_memory(error):
            raise
        return False
    finally:
        for module, training in modes:
            module.training = training
        if micro.world.device.type == "cuda":
            torch.cuda.empty_cache()


def _images(micro: MicroBatches, run: Run, count: int, side: int) -> torch.Tensor:
    images = torch.zeros(count, 3, side, side, device=micro.world.device)
    return images.contiguous(memory_format=torch.channels_last) if run.train.images_channels_last else images


def forward_backward(micro: MicroBatches, run: Run, size: int, chunk: range) -> None:
    micro.start_step(0)
    try:
        with micro.context(chunk):
            images = _images(micro, run, len(chunk) * size, run.data.size)
            with micro.world.autocast(run.train.precision):
                logits = micro.model(images)
            logits.float().square().sum().backward()
    finally:
        micro.discard_step()
