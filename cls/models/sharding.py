"""Shard models (FSDP); gather, convert and fill sharded tensors. Ordinary tensors pass through unchanged."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cls.config import Model
from cls.models.backbones import classifier_name


def shard(model: nn.Module, units: list[nn.Module], mesh: DeviceMesh) -> None:
    """Shard the parameters over the mesh in place; forward and backward gather them unit by unit.

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
    """``value``, the same on all ranks, with the device, sharding and memory layout of ``target``.

    Fused optimizers iterate over memory: row-major moments, as read from a file, beside channels-last parameters would
    silently change the training results on a CPU.
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


def sharding_units(model: nn.Module, config: Model) -> list[nn.Module]:
    """Residual blocks (and what stands among them, as CBAM) and the head; the stem is left to the model itself.

    ValueError where that leaves most of the parameters to the model itself: all of them would be gathered at once.
    """
    head = model.get_submodule(classifier_name(config.backbone))
    total = _size(model)
    units = [*_blocks(model, head), head]
    left = 1 - sum(map(_size, units)) / total
    if left > 0.5:
        raise ValueError(
            f"model.backbone: {left:.0%} of {config.backbone}'s parameters are in no block that could be "
            "sharded: use DDP (--config_file accelerate_configs/ddp.yaml)"
        )
    return units


def _blocks(container: nn.Module, head: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in container.children():
        if child is head:
            continue
        if isinstance(child, nn.Sequential | nn.ModuleList) or head in child.modules() or _is_stage(child):
            found += _blocks(child, head)
        elif _is_block(child):
            found.append(child)
    return found


def _is_block(module: nn.Module) -> bool:
    """Two weights or more; a lone convolution with its norm is not worth a gathering of its own."""
    own = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    return len(own) > 1 and next(module.children(), None) is not None


def _is_stage(module: nn.Module) -> bool:
    """Most of it is several blocks of one class, which stand in it or in a sequence in it."""
    inside = [*module.children()]
    inside += [m for s in inside if isinstance(s, nn.Sequential | nn.ModuleList) for m in s.children()]
    sizes: dict[type, list[int]] = {}
    for part in inside:
        if _is_block(part) and not isinstance(part, nn.Sequential | nn.ModuleList):
            sizes.setdefault(type(part), []).append(_size(part))
    return any(len(same) > 1 and sum(same) > _size(module) / 2 for same in sizes.values())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
