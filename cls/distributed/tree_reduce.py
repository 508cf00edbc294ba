"""The sum over all micro-batches, with the same bits on any number of ranks.

Floating-point addition is not associative, so the order is fixed: micro-batches are the leaves of one binary tree
(a binary counter: equal neighbours merge; at the end the remainders merge, smallest first). Each rank sums the maximal
aligned subtrees of its range; ranks exchange these sums and finish the tree on a slice each.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cls.distributed.world import World

Layout = tuple[torch.Size, tuple[int, ...]]
"""Shape and strides of a tensor."""


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
    shapes = [(value.shape, value.stride()) for value in stack[0].values]
    sizes = [value.numel() for value in stack[0].values]
    part = -(-sum(sizes) // world.size)
    length = world.size * part
    sent = _buffer(buffers, "sent", like, len(stack) * length)
    flat = _buffer(buffers, "flat", like, length) if len(stack) > 1 else sent
    for index, block in enumerate(stack):
        flat[sum(sizes) :] = 0
        torch._foreach_copy_(_views(flat, shapes, sizes), block.values)
        if len(stack) > 1:
            sent.view(world.size, len(stack), part)[:, index] = flat.view(world.size, part)
    count = len(stack)
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
    return _views(whole, shapes, sizes)


def _buffer(buffers: dict[str, Tensor], name: str, like: Tensor, length: int) -> Tensor:
    """Memory reused by each step: new pages cost a CPU 1 ms per MB. CUDA's allocator caches its own."""
    buffer = buffers.get(name)
    if buffer is None or buffer.numel() != length:
        buffer = like.new_empty(length)
        if not like.is_cuda:
            buffers[name] = buffer
    return buffer


def _gather(whole: Tensor, mine: Tensor, world: World) -> None:
    """All ranks' slices in rank order. gloo's all_gather takes 3 times as long: it copies through a new buffer."""
    if mine.is_cuda:
        dist.all_gather_single(whole, mine)
        return
    rows = whole.view(world.size, -1)
    rows[world.rank] = mine
    works: list[Any] = [dist.broadcast(row, rank, async_op=True) for rank, row in enumerate(rows)]
    for work in works:
        work.wait()


def _views(flat: Tensor, shapes: list[Layout], sizes: list[int]) -> list[Tensor]:
    """Views of a flat buffer with the shapes and strides of the originals (channels-last is kept)."""
    views, offset = [], 0
    for (shape, stride), size in zip(shapes, sizes, strict=True):
        views.append(flat.as_strided(shape, stride, offset))
        offset += size
    return views
