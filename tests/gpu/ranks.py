"""Two ranks on one device: does `exact` have the bits of one rank, and are its packed gradients aligned?

python -m tests.gpu.ranks OUT RANK, once for each rank; the last line of rank 0 is what was found, as JSON. cls rejects
two processes on one GPU because NCCL does; gloo copies CUDA tensors through the host. So one card runs the code of two:
packing, all-to-all, gather, gradient norms of views, fused AdamW.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cls.commands.bench.loop import Trainer, trainer
from cls.config import Run, change
from cls.data.sources import load
from cls.distributed.world import World, start
from cls.runtime.signals import StopSignal
from cls.transforms.mixup import soft_targets
from tests.gpu.machine import DEVICE, recipe
from tests.gpu.rows import Figures

STEPS, SIZE, BATCH, MICRO = 3, 64, 32, 8
ALIGNED = 16  # bytes that vectorised CUDA kernels load at once


def configuration(out: Path) -> Run:
    """Clipped, so that the norm of the gradients counts."""
    run = recipe(out, "resnet50-mlp", batch=BATCH, micro_batch=MICRO, reduce="exact")
    return change(run, model={"backbone": "resnet18"}, data={"size": SIZE}, optim={"clip": 0.1})


def batches(work: Trainer, step: int, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The step's micro-batches of this rank: the same images on any number of ranks."""
    for index in work.micro_batches.share:
        generator = torch.Generator().manual_seed(1000 * step + index)
        images = torch.randn(MICRO, 3, SIZE, SIZE, generator=generator)
        labels = torch.randint(classes, (MICRO,), generator=generator).to(DEVICE)
        yield images.to(DEVICE, memory_format=torch.channels_last), soft_targets(labels, classes, 0.0)


def trained(world: World, run: Run) -> tuple[str, int, int]:
    """Hash of weights and optimizer after STEPS steps; gradients at an aligned address, and all of them."""
    splits = load(run.data, run.seed)
    work = trainer(run, splits, world)
    for step in range(STEPS):
        given = batches(work, step, len(splits.classes))
        work.step(step, lambda given=given: next(given))
    grads = [p.grad for p in work.state.model.parameters() if p.grad is not None]
    digest = hashlib.sha256()
    for tensor in tensors(work.state.model.state_dict(), work.state.optimizer.state_dict()):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest(), sum(grad.data_ptr() % ALIGNED == 0 for grad in grads), len(grads)


def tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(trees) if isinstance(leaf, Tensor)]


def found(one: str, two: str, aligned: int, count: int) -> Figures:
    """RuntimeError where the promise does not hold."""
    if one != two or aligned < count:
        raise RuntimeError(
            f"bits of 1 and 2 ranks: {'same' if one == two else 'DIFFERENT'}; {aligned} of {count} gradients aligned"
        )
    return {"same_bits": "as one rank", "aligned": f"{aligned} of {count} gradients"}


def main(out: Path, rank: int) -> None:
    run = configuration(out)
    single = start(run.train, StopSignal())
    one = trained(single, run)[0] if rank == 0 else ""
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/ranks", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    digest, aligned, count = trained(replace(single, rank=rank, size=2, local_size=2), run)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found(one, digest, aligned, count)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
