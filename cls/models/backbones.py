"""Backbones by name, and the normalisation of their input."""

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from cls.config import Model, Run

SMALL = "resnext14_8x8d"  # one block per stage: trains on a CPU in seconds

TORCHVISION = tuple(torchvision.models.list_models(include=["resnet*", "resnext*", "wide_resnet*"]))

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@cache
def _timm_names() -> frozenset[str]:
    import timm  # imported late here and below: it takes 1.5 s

    return frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


def check_backbone(name: str) -> None:
    """ValueError with the nearest names unless ``name`` is in TORCHVISION, SMALL, or ``timm/`` and a timm model."""
    if name in (*TORCHVISION, SMALL) or (name.startswith("timm/") and name.removeprefix("timm/") in _timm_names()):
        return
    known = [*TORCHVISION, SMALL, *(f"timm/{item}" for item in sorted(_timm_names()))]
    near = [f"timm/{name}"] if name in _timm_names() else difflib.get_close_matches(name, known, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"model.backbone: unknown backbone {name!r}{hint} (torchvision: {', '.join(TORCHVISION)}; {SMALL};"
                     " timm/NAME with a name from timm.list_models())")  # fmt: skip


def plain(name: str) -> nn.Module:
    """The backbone as its library builds it, with its own output layer and random values."""
    check_backbone(name)
    if name == SMALL:
        net = ResNet(Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=8)
    elif name.startswith("timm/"):
        import timm

        net = timm.create_model(name.removeprefix("timm/"))
    else:
        net = torchvision.models.get_model(name)
    assert isinstance(net, nn.Module)
    return net


def _timm_config(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(name.removeprefix("timm/"))


def pretrained_size(config: Model) -> int:
    """Side of the images that a timm network's own weights were trained on; 0 where it is not known."""
    if not config.backbone.startswith("timm/") or config.weights == "none":
        return 0
    found = _timm_config(config.backbone)
    return int(found.input_size[-1]) if found else 0


def classifier_name(name: str) -> str:
    """The dotted name of the backbone's output layer, "fc" in every ResNet."""
    if not name.startswith("timm/"):
        return "fc"
    config = _timm_config(name)
    classifier = config.classifier if config else None
    if not isinstance(classifier, str):
        raise ValueError(
            f"model.backbone: {name} has no single output layer (timm says {classifier!r}); use another one"
        )
    return classifier


def stage_depths(net: nn.Module, name: str) -> dict[str, int]:
    """Of each parameter, how many stages of the backbone follow its own: 0 in the last stage and in all that follows.

    torchvision's ResNets have a stem and layer1 to layer4; timm's networks state their stages (``group_matcher``).
    """
    if name.startswith("timm/"):
        from timm.models import group_parameters

        matcher: Any = getattr(net, "group_matcher", None)
        try:
            stages = group_parameters(net, matcher(coarse=True), reverse=True)
        except (TypeError, AssertionError, KeyError):  # it has none, none of stages, or one that misses our head
            raise ValueError(f"optim.stage_decay: {name} does not state its stages: leave it at 1") from None
    else:
        stages = {each: int(each[5]) if each.startswith("layer") else 0 for each, _ in net.named_parameters()}
    head = f"{classifier_name(name)}."
    # a group of norms and biases alone is the end of the network, not a stage
    last = max(stages[each] for each, value in net.named_parameters() if value.ndim > 1 and not each.startswith(head))
    return {each: 0 if each.startswith(head) else max(0, last - stage) for each, stage in stages.items()}


def normalization(config: Model) -> Statistics:
    """Mean and std (of RGB in 0 to 1) that the backbone's weights were trained with; needs no model and no network.

    timm states them per model, and a local file for a timm backbone follows them; torchvision has ImageNet's.
    """
    check_backbone(config.backbone)
    if config.backbone == SMALL:
        return HALF
    stated = _timm_config(config.backbone) if "/" in config.backbone else None
    return (_rgb(stated.mean), _rgb(stated.std)) if stated else IMAGENET


def input_statistics(run: Run) -> Statistics:
    """Mean and std of the input, in units of [0, 1]: what the weights want unless data.normalize says else."""
    if run.data.normalize == "auto":
        return normalization(run.model)
    return HALF if run.data.normalize == "half" else IMAGENET


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
