"""Which places of an image speak for a class: Grad-CAM, and the map of a network's own spatial attention."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from cls.models.attention import CBAM

# b batch, c channels, h height, w width (of the last features), k logits


class Maps(NamedTuple):
    """Of b images; each map b h w, float32, on the device of the images."""

    logits: Tensor  # b k
    predicted: Tensor
    """Grad-CAM of the class of the highest logit; not negative, zeros where no place raises it."""
    labelled: Tensor
    """Grad-CAM of the given class."""
    attention: Tensor | None
    """Factors, 0 to 1, of the last CBAM's spatial attention, whatever the class; None without CBAM."""


def class_maps(model: nn.Module, images: Tensor, labels: Tensor) -> Maps:
    """The maps of images b 3 h w, prepared as for prediction; ``labels`` b: a class each, -1: the predicted one.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): relu of the channels of the last features, each weighted by the
    mean over places of the logit's derivative. Nothing before those features is differentiated, so frozen parts do not
    matter, and memory is that of a prediction. The model is left as it was, also after an error. ValueError for one
    that classifies without a map of places.
    """
    body, head = parts_of(model)
    with _in_eval_mode(model), _attention_of(model) as attention:
        with torch.no_grad():
            features = body(images)
            places = _channels_first(features, model).float()
        with torch.enable_grad():
            features = features.detach().requires_grad_()  # the same values; a tensor of its own
            logits = head(features)
            predicted = logits.argmax(1)
            slopes = [
                torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features, retain_graph=True)[0]
                for classes in (predicted, torch.where(labels >= 0, labels, predicted))
            ]
    found = [_weighted(places, _channels_first(slope, model).float()) for slope in slopes]
    own = torch.sigmoid(attention[-1].float()).squeeze(1) if attention else None
    return Maps(logits.detach().float(), found[0], found[1], own)


def _weighted(features: Tensor, slopes: Tensor) -> Tensor:
    """b c h w, b c h w -> b h w."""
    weights = reduce(slopes, "b c h w -> b c 1 1", "mean")
    return reduce(features * weights, "b c h w -> b h w", "sum").relu()


def parts_of(model: nn.Module) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor]]:
    """The network up to its last features, and the rest of it; every timm network has both as methods."""
    if not isinstance(model, ResNet):
        return model.forward_features, model.forward_head  # type: ignore[return-value]  # nn.Module has any attribute
    *body, pool, classifier = model.children()
    return nn.Sequential(*body), lambda features: classifier(pool(features).flatten(1))


def _channels_first(features: Any, model: nn.Module) -> Tensor:
    """b c h w; ValueError for tokens: they may have places, but a class token reads them without a slope of its own."""
    if not isinstance(features, Tensor) or features.dim() != 4:
        raise ValueError(
            f"model.backbone: the features of {type(model).__name__} are no map of places, so that none can be shown; "
            "convolutional networks have one, and Swin"
        )
    return rearrange(features, "b h w c -> b c h w") if getattr(model, "output_fmt", "") == "NHWC" else features


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Each module has its mode back afterwards: frozen parts of a network in training are in eval mode already."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _attention_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the spatial convolution of the last CBAM returns, b 1 h w, before the sigmoid."""
    found: list[Tensor] = []
    blocks = [module for module in model.modules() if isinstance(module, CBAM)]
    hooks = [block.spatial.register_forward_hook(lambda _, args, output: found.append(output)) for block in blocks[-1:]]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
