"""The pieces of a network whose parameters are gathered together when it is sharded."""

from torch import nn

from cls.config import Model
from cls.models.backbones import classifier_name


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
            f"model.backbone: {left:.0%} of {config.backbone}'s parameters are in no block that could be sharded by "
            "itself: use DDP (--config_file accelerate_configs/ddp.yaml)"
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
