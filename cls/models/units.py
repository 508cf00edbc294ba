"""The pieces of a network whose parameters are gathered together when it is sharded."""

from torch import nn

from cls.config import Model
from cls.models.backbones import classifier_name


def sharding_units(model: nn.Module, config: Model) -> list[nn.Module]:
    """Residual blocks (and what stands among them, as CBAM) and the head; the stem is left to the model itself."""
    head = model.get_submodule(classifier_name(config.backbone))
    return [*_blocks(model, head), head]


def _blocks(container: nn.Module, head: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in container.children():
        if child is head:
            continue
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += _blocks(child, head)
        elif isinstance(container, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
            # a single convolution of a deep stem is not worth a gathering of its own
            found += [child] if next(child.parameters(), None) is not None else []
    return found
