"""The sum over all micro-batches, with the same bits on any number of ranks.

Floating-point addition is not associative, so the order is fixed: micro-batches are the leaves of one binary tree
(a binary counter: equal neighbours merge; at the end the remainders merge, smallest first). Each rank sums the maximal
aligned subtrees of its range; ranks exchange these sums and finish the tree on a slice each.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cls.distributed.world import World

ALIGNMENT = 4
"""Elements between the starts of a flat buffer's tensors: 16 bytes of float32. CUDA's foreach norms add a tensor that
starts elsewhere in another order, so clipping would depend on the number of GPUs, and fused AdamW takes a slower path.
"""


class Place(NamedTuple):
    """Where a tensor lies in a flat buffer."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass
class Block:
    """The sum of ``size`` consecutive micro-batches from ``start`` on; ``size`` is a power of two that divides it."""

    start: int
    size: int
    values: list[Tensor]


def shares(micro_batches: int, world_size: int) -> list[range]:
    """The contiguous micro-batches of each rank; the first ranks have one more where it does not divide."""
    each, more = divmod(micro_batches, world_size)
    starts = [rank * each + min(rank, more) for rank in range(world_size + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


def push(stack: list[Block], index: int, values: list[Tensor], size: int = 1) -> None:
    """Add the sum of ``size`` micro-batches from ``index`` on; ``values`` is changed in place."""
    stack.append(Block(index, size, values))
    while len(stack) > 1 and stack[-2].size == stack[-1].size and stack[-2].start % (2 * stack[-1].size) == 0:
        right = stack.pop()
        torch._foreach_add_(stack[-1].values, right.values)
        stack[-1].size *= 2


def _merge_rest(stack: list[Block]) -> list[Tensor]:
    total = stack.pop().values
    while stack:
        left = stack.pop().values
        torch._foreach_add_(left, total)
        total = left
    return total


def block_sizes(share: range) -> list[tuple[int, int]]:
    """(start, size) of the maximal aligned subtrees in a rank's range: its final stack."""
    sizes: list[tuple[int, int]] = []
    start = share.start
    while start < share.stop:
        size = start & -start or 1 << (share.stop - 1).bit_length()
        while start + size > share.stop:
            size //= 2
        sizes.append((start, size))
        start += size
    return sizes


def total(
    stack: list[Block], micro_batches: int, world: World, buffers: dict[str, Tensor] | None = None
) -> list[Tensor]:
    """The sum over all micro-batches of the run, the same bits on every rank and for every number of ranks.

    The memory in ``buffers``, and with it the result of an earlier call, is overwritten.
    """
    if world.size == 1:
        return _merge_rest(stack)
    buffers = {} if buffers is None else buffers
    ranges = shares(micro_batches, world.size)
    assert [(b.start, b.size) for b in stack] == block_sizes(ranges[world.rank])
    like = stack[0].values[0]
    places, end = _places(stack[0].values)
    part = _aligned(-(-end // world.size))
    length = world.size * part
    sent = _buffer(buffers, "sent", like, len(stack) * length)
    flat = _buffer(buffers, "flat", like, length) if len(stack) > 1 else sent
    for index, block in enumerate(stack):
        torch._foreach_copy_(_views(flat, places), block.values)  # what lies between the tensors is never read
        if len(stack) > 1:
            sent.view(world.size, len(stack), part)[:, index] = flat.view(world.size, part)
    count = len(stack)
    del block  # with the stack it frees the sums before the slices arrive
    stack.clear()
    blocks = [block for share in ranges for block in block_sizes(share)]
    counts = [len(block_sizes(share)) * part for share in ranges]
    received = _buffer(buffers, "received", like, len(blocks) * part)
    dist.all_to_all_single(received, sent, counts, [count * part] * world.size)
    tree: list[Block] = []
    for (start, size), row in zip(blocks, received.view(-1, part), strict=True):
        push(tree, start, [row], size)
    whole = sent[:length]  # its content is no longer needed
    _gather(whole, _merge_rest(tree)[0], world)
    return _views(whole, places)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _places(values: list[Tensor]) -> tuple[list[Place], int]:
    """Of each value, one after the other, and where the last one ends."""
    places, end = [], 0
    for value in values:
        places.append(Place(value.shape, value.stride(), end))
        end += _aligned(value.numel())
    return places, end


def _buffer(buffers: dict[str, Tensor], name: str, like: Tensor, length: int) -> Tensor:
    """Memory reused by each step: new pages cost a CPU 1 ms per MB. CUDA's allocator caches its own."""
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() != length:
        buffer = like.new_empty(length)
        if not like.is_cuda:
            buffers[name] = buffer
    return buffer


def _gather(whole: Tensor, mine: Tensor, world: World) -> None:
    """All ranks' slices in rank order."""
    if gathers_in_one_call(mine.device.type):
        # torch 2.14 renamed it
        gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
        gather(whole, mine)
        return
    rows = whole.view(world.size, -1)
    rows[world.rank] = mine
    works: list[Any] = [dist.broadcast(row, rank, async_op=True) for rank, row in enumerate(rows)]
    for work in works:
        work.wait()


def gathers_in_one_call(device_type: str) -> bool:
    """Whether one collective gathers all slices: gloo's takes 3 times as long as broadcasts, it copies through a new
    buffer.
    """
    return device_type == "cuda"


def _views(flat: Tensor, places: list[Place]) -> list[Tensor]:
    """Views of a flat buffer with the shapes and strides of the originals (channels-last is kept)."""
    return [flat.as_strided(place.shape, place.stride, place.offset) for place in places]
