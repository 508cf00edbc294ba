"""What several GPUs would call, in a group of one: names, arguments and types are the same."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cls.commands.bench.loop import trainer
from cls.distributed import tree_reduce
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World
from cls.models.sharding import whole
from cls.transforms.mixup import soft_targets
from tests.gpu.machine import DEVICE, GPU, Setting
from tests.gpu.rows import Figures

LIKELY = 0.05  # other kernels and TF32 round gradients by less


@contextmanager
def group() -> Iterator[None]:
    dist.init_process_group("nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def collectives(setting: Setting) -> Figures:
    """The calls of tree_reduce, of World and of the stop flag; RuntimeError if one changes what it carries."""
    received, sent = torch.zeros(8, device=DEVICE), torch.arange(8.0, device=DEVICE)
    items: list[Any] = [None]
    with group():
        dist.all_to_all_single(received, sent, [8], [8])
        same = torch.equal(received, sent)
        tree_reduce._gather(received.zero_(), sent, setting.world)
        same &= torch.equal(received, sent)
        dist.all_gather_object(items, {"a": 1})
        dist.broadcast_object_list(items, src=0)
        dist.all_reduce(received, async_op=True).wait()
        same &= torch.equal(received, sent) and items == [{"a": 1}]
        dist.barrier()
    if not same:
        raise RuntimeError("a collective changed its values")
    return {"all-to-all, gather, objects, broadcast, all-reduce, barrier": "ok", "on": "NCCL" if GPU else "gloo"}


def ddp(setting: Setting) -> Figures:
    """Our hook, buckets as gradient views, chunks without synchronisation."""

    def wrapped(model: nn.Module) -> nn.Module:
        devices = [DEVICE.index] if GPU else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)  # as in World.wrap
            return DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)

    plain = gradients(setting, setting.world)
    with group():
        return compared(plain, gradients(setting, setting.world, wrapped))


def fsdp(setting: Setting) -> Figures:
    plain = gradients(setting, setting.world)
    with group():
        return compared(plain, gradients(setting, replace(setting.world, fsdp=True)))


def gradients(
    setting: Setting, world: World, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> list[Tensor]:
    """Of the first of two steps, whole; the second one has DDP's final buckets."""
    run = setting.recipe("resnet50-mlp", reduce="fast", precision="fp32")
    work = trainer(run, setting.splits, world)
    work = work._replace(micro_batches=MicroBatches(world, wrap(work.state.model), run))
    size, side, classes = run.train.micro_batch, run.data.size, len(setting.splits.classes)
    images = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = images.to(DEVICE, memory_format=torch.channels_last)
    targets = soft_targets(torch.arange(size) % classes, classes, 0.0).to(DEVICE)
    found = []
    for step in range(2):
        work.step(step, lambda: (images, targets))
        if step == 0:
            found = [whole(p.grad).clone() for p in work.state.model.parameters() if p.grad is not None]
    return found


def compared(plain: list[Tensor], other: list[Tensor]) -> Figures:
    """RuntimeError where they differ by more than rounding."""
    length = sum(float(grad.square().sum()) for grad in plain) ** 0.5
    apart = sum(float((one - two).square().sum()) for one, two in zip(plain, other, strict=True)) ** 0.5 / length
    if not apart < LIKELY:
        raise RuntimeError(f"gradients differ from those without a group by {apart:.1e} of their norm")
    return {"gradients differ by": f"{apart:.1e} of their norm from those without a group"}


def norms() -> Figures:
    """Of a gradient with memory of its own, and in a flat buffer at 4 bytes past a 16-byte boundary."""
    shapes = ((64, 64, 3, 3), (2048, 512), (100,))
    generator = torch.Generator().manual_seed(0)
    aligned = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    flat, start = torch.zeros(1 + sum(grad.numel() for grad in aligned), device=DEVICE), 1
    unaligned = []
    for grad in aligned:
        unaligned.append(flat[start : start + grad.numel()].view_as(grad).copy_(grad))
        start += grad.numel()
    one, two = (torch.stack(list(torch._foreach_norm(grads))) for grads in (aligned, unaligned))
    apart = float(((one - two) / one).abs().max())
    return {"bits": "those of aligned ones" if torch.equal(one, two) else f"differ, norms by up to {apart:.1e}"}
