"""Build the network: a backbone with pretrained weights, optional attention, a head, frozen parts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cls.config import Data, Model
from cls.models.attention import CBAM, add_attention
from cls.models.backbones import classifier_name, plain
from cls.models.freeze import freeze_parts
from cls.models.heads import replace_classifier
from cls.models.weights import load_pretrained, weight_file
from cls.runtime.rng import torch_seed


def build_model(config: Model, classes: int, seed: int, names: Sequence[str] = ()) -> nn.Module:
    """The network for images b 3 h w -> logits b classes, on the CPU in fp32, in train mode.

    Keys of the state dict are torchvision's or timm's own; added parts only add keys. Fresh layers are drawn from
    (seed, "init") alone: neither the global generator nor the backbone changes them, and the global generator is left
    as it was. ``names``: of the classes, in order; the head of a file with other ones is not loaded. Bad fields and
    weights are a ValueError that names the field or the file.
    """
    if classes < 1:
        raise ValueError(f"expected at least one class, found {classes}")
    file = weight_file(config)
    classifier = classifier_name(config.backbone)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also re-seed the GPU's generators, which the fork does not restore
        torch.default_generator.manual_seed(torch_seed(seed, "init", "backbone"))
        model = plain(config.backbone)
        pretrained = set(model.state_dict())
        torch.default_generator.manual_seed(torch_seed(seed, "init"))
        add_attention(model, config.cbam, chained=config.cbam_chained, dropout3=config.dropout3)
        replace_classifier(model, classifier, words=config.head, gate=config.gate, classes=classes)
    if file:
        added = set(model.state_dict()) - pretrained
        added -= {name for name in added if config.gate and name.startswith(f"{classifier}.0.")}
        load_pretrained(model, file, classifier=classifier, gate=config.gate, added=added,
                        whole=config.own_weights, names=names)  # fmt: skip
    freeze_parts(model, config.freeze)
    return model


def build_shapes(config: Model, classes: int) -> nn.Module:
    """The same network without weights and without storage: on the meta device.

    Where timm 1.0.20 computes a network's widths or rates with tensors, it is built on the CPU first.
    """
    config = replace(config, weights="none")
    with _NoValues():
        try:
            with torch.device("meta"):
                return build_model(config, classes, 0)
        except RuntimeError:  # of tensors without values
            return build_model(config, classes, 0).to("meta")


class _NoValues(TorchFunctionMode):
    """Skips random initialisation, which takes 1 ms a tensor on the meta device and seconds a network on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_):
            return args[0]
        return func(*args, **kwargs or {})


def check_model(config: Model, data: Data) -> None:
    """Make sure, before any set-up, that weights, backbone and frozen parts exist and that it takes these image sizes.

    May download the weights; else forward passes on fake tensors, 0.5 s. ValueError names the field or the file.
    """
    weight_file(config)
    model = build_shapes(config, 2).eval()
    with torch.device("meta"):
        for field, size in {"data.size": data.size, "data.eval_size": data.evaluated.size}.items():
            try:
                model(torch.empty(2, 3, size, size))
            except (AssertionError, RuntimeError, ValueError) as error:  # each library and layer has its own
                raise ValueError(
                    f"model.backbone: {config.backbone} cannot take images of {field} {size} ({error})"
                ) from error


def count_parameters(config: Model, classes: int) -> tuple[int, int]:
    """All of them and those that are trained, from the network built without storage."""
    sizes = [(p.numel(), p.requires_grad) for p in build_shapes(config, classes).parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def fresh_parameters(model: nn.Module, config: Model) -> set[str]:
    """Names of the parameters without pretrained values: head, gate and CBAM (for ``optim.head_lr``)."""
    classifier = classifier_name(config.backbone)
    added = [f"{name}." for name, module in model.named_modules() if isinstance(module, CBAM)]
    return {
        name
        for name, _ in model.named_parameters()
        if name.startswith((f"{classifier}.", *added)) and not (config.gate and name.startswith(f"{classifier}.0."))
    }


def fresh_modules(model: nn.Module, config: Model) -> list[nn.Module]:
    """The modules of :func:`fresh_parameters`: what is in train mode while the rest keeps its pretrained values."""
    head = model.get_submodule(classifier_name(config.backbone))
    return [head, *(module for module in model.modules() if isinstance(module, CBAM))]


def output_layer(model: nn.Module, config: Model) -> nn.Linear:
    """The last layer of a network of :func:`build_model`: features b f -> logits b classes."""
    head = model.get_submodule(classifier_name(config.backbone))
    last = head[-1] if isinstance(head, nn.Sequential) else head
    assert isinstance(last, nn.Linear)
    return last
