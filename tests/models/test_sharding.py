"""Which parts of a network are gathered together when it is sharded."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn

from cls.config import Model
from cls.models.build import build_model, build_shapes
from cls.models.sharding import sharding_units


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [
        ("resnet18", 8),
        ("resnext101_32x8d", 33),
        ("timm/test_resnet", 4),
        ("timm/regnetx_002", 13),
        ("timm/convnext_atto", 12),
    ],
)
def test_each_residual_block_is_a_unit_of_its_own(backbone: str, blocks: int) -> None:
    """RegNet's and ConvNeXt's stages of two blocks too: a unit of a whole stage would gather twice as much at once."""
    config = Model(backbone=backbone, weights="none")
    units = sharding_units(build_model(config, 5, 0), config)
    assert len(units) == blocks + 1  # and the head
    held = [id(p) for unit in units for p in unit.parameters()]
    assert len(held) == len(set(held))


def blocks_of(network: nn.Module, kinds: tuple[str, ...]) -> list[nn.Module]:
    return [module for module in network.modules() if type(module).__name__ in kinds]


def meta(backbone: str, **more: Any) -> tuple[nn.Module, list[nn.Module]]:
    config = Model(backbone=backbone, weights="none", **more)
    network = build_shapes(config, 100)
    return network, sharding_units(network, config)


def size(parameters: Iterator[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


@pytest.mark.parametrize(
    ("backbone", "more", "kinds", "blocks", "head"),
    [
        ("resnet18", {}, ("BasicBlock",), 8, "fc"),
        ("resnet50", {"head": "512 bn silu dropout:0.5"}, ("Bottleneck",), 16, "fc"),
        ("resnext101_32x8d", {}, ("Bottleneck",), 33, "fc"),
        ("resnext101_32x8d", {"cbam": (4,), "dropout3": 0.2}, ("Bottleneck", "CBAM"), 34, "fc"),
        ("resnet50", {"cbam": (1, 2, 3, 4), "cbam_chained": True}, ("Bottleneck", "CBAM"), 20, "fc"),
        ("resnext101_64x4d", {"gate": 500, "head": "bn 512 relu dropout:0.5"}, ("Bottleneck",), 33, "fc"),
        ("resnext14_8x8d", {}, ("Bottleneck",), 4, "fc"),
        ("timm/seresnext101d_32x8d.ah_in1k", {"head": "dropout:0.5"}, ("Bottleneck",), 33, "fc"),
        ("timm/seresnextaa101d_32x8d", {}, ("Bottleneck",), 33, "fc"),
        ("timm/vit_base_patch16_224", {}, ("Block",), 12, "head"),
    ],
)
def test_each_block_and_the_head_are_gathered_alone(
    backbone: str, more: dict[str, Any], kinds: tuple[str, ...], blocks: int, head: str
) -> None:
    network, units = meta(backbone, **more)
    expected = [*blocks_of(network, kinds), network.get_submodule(head)]
    assert len(expected) == blocks + 1
    assert sorted(map(id, units)) == sorted(map(id, expected))
    parameters = [id(p) for unit in units for p in unit.parameters()]
    assert len(parameters) == len(set(parameters))
    assert size(network.parameters()) - sum(size(unit.parameters()) for unit in units) < 0.02 * size(
        network.parameters()
    )


@pytest.mark.parametrize(
    ("backbone", "kind", "blocks", "left"),
    [
        ("timm/test_convnext", "ConvNeXtBlock", 9, 0.2),
        ("timm/test_vit", "Block", 6, 0.2),
        ("timm/convnext_tiny", "ConvNeXtBlock", 18, 0.1),
        ("timm/regnety_016", "Bottleneck", 27, 0.01),  # its stages are no sequences
    ],
)
def test_networks_of_other_kinds(backbone: str, kind: str, blocks: int, left: float) -> None:
    """No block is cut or counted twice; a tiny transformer's patch embedding is a large part of it."""
    network, units = meta(backbone)
    found = blocks_of(network, (kind,))
    assert len(found) == blocks
    for block in found:
        assert sum(any(block is module for module in unit.modules()) for unit in units) == 1
    parameters = [id(p) for unit in units for p in unit.parameters()]
    assert len(parameters) == len(set(parameters))
    root = size(network.parameters()) - sum(size(unit.parameters()) for unit in units)
    assert root < left * size(network.parameters())


def test_a_network_without_blocks_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match=r"model\.backbone: \d\d% of timm/efficientvit_b0's parameters.*use DDP"):
        meta("timm/efficientvit_b0")
