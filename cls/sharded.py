"""Tensors that are spread over ranks (FSDP): made, put together, filled. Whole tensors pass through unchanged."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, units: list[nn.Module], mesh: DeviceMesh) -> None:
    """Spread the parameters over the mesh in place, gathered unit by unit while a forward or backward pass needs them.

    fp32 throughout (the forward runs under autocast, as with DDP); names stay as they are. Accelerate's own wrapper is
    not used: it wraps nothing in torchvision's and timm's models, reduces in bf16, and fails on BatchNorm's buffers
    (PITFALLS 24-26).
    """
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    groups = sum(isinstance(module, FSDPModule) for module in model.modules())
    assert groups > 1 and all(isinstance(p, DTensor) for p in model.parameters()), f"{groups} sharded groups"


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(target: Tensor, value: Tensor) -> Tensor:
    """``value``, the same on all ranks, on the device of ``target``, spread and laid out in memory as it is.

    Fused optimizers go through parameters and moments by address: row-major moments (a file knows no others) beside
    channels-last parameters are another training, without a word on a CPU.
    """
    value = value.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    if value.stride() != target.stride():
        value = torch.empty_like(target, dtype=value.dtype, requires_grad=False).copy_(value)
    return value


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    local(target).copy_(local(like(target, value)))
