"""Which parts of a network are gathered together when it is sharded."""

import pytest

from cls.config import Model
from cls.models.build import build_model
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
