"""Grad-CAM: against its definition, on every kind of network; and on a class whose place is known."""

import copy

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from cls.config import Model
from cls.models.attention import CBAM
from cls.models.build import build_model
from cls.models.grad_cam import class_maps, parts_of

NETWORKS = {
    "cbam": Model(backbone="resnext14_8x8d", weights="none", cbam=(3, 4), dropout3=0.3),
    "gate": Model(backbone="resnext14_8x8d", weights="none", gate=20, head="16 bn relu dropout:0.5"),
    "frozen": Model(backbone="resnext14_8x8d", weights="none", freeze=("stem", "layer1", "layer2", "layer3", "layer4")),
    "timm": Model(backbone="timm/test_resnet", weights="none"),
    "efficientnet": Model(backbone="timm/test_efficientnet", weights="none", head="16 relu"),
    "convnext": Model(backbone="timm/test_convnext", weights="none"),
    "channels last": Model(backbone="timm/test_mambaout", weights="none"),
}


def network(name: str) -> nn.Module:
    return build_model(NETWORKS[name], 5, 0)


def images(count: int = 3, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, object]:
    """All that may have changed: values, gradients, hooks, modes."""
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "modes": [m.training for m in model.modules()],
    }


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    values, others = a.pop("values"), b.pop("values")
    assert isinstance(values, dict) and isinstance(others, dict)
    return a == b and all(torch.equal(value, others[name]) for name, value in values.items())


def by_definition(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """relu(sum over channels of the mean slope times the features), by a hook on the whole network's backward pass."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    body, _ = parts_of(model)
    last = list(body)[-1] if isinstance(body, nn.Sequential) else None
    seen: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        features.retain_grad()
        seen.append(features)
        return features

    if last is not None:
        last.register_forward_hook(lambda _, args, output: keep(output))
    else:
        model.forward_features = lambda images: keep(body(images))  # type: ignore[assignment]  # of this copy
    model(x)[range(len(x)), classes].sum().backward()
    features, slopes = seen[0].detach(), seen[0].grad
    assert slopes is not None
    if getattr(model, "output_fmt", "") == "NHWC":
        features, slopes = (rearrange(one, "b h w c -> b c h w") for one in (features, slopes))
    return torch.einsum("bc,bchw->bhw", slopes.mean((2, 3)), features).clamp(min=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_the_definition_and_the_network_is_left_as_it_was(name: str) -> None:
    model, x, labels = network(name), images(), torch.tensor([4, -1, 0])
    model.train()
    next(iter(model.children())).eval()  # as a frozen part in training
    before = state(model)
    with torch.no_grad():  # as in evaluation
        maps = class_maps(model, x, labels)
    assert same(before, state(model))
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(x)
    assert torch.equal(maps.logits, logits)
    guesses = logits.argmax(1)
    torch.testing.assert_close(maps.predicted, by_definition(model, x, guesses), rtol=1e-4, atol=1e-6)
    wanted = torch.where(labels >= 0, labels, guesses)
    torch.testing.assert_close(maps.labelled, by_definition(model, x, wanted), rtol=1e-4, atol=1e-6)
    assert maps.predicted.shape[1:] == (2, 2) and bool((maps.predicted >= 0).all())
    assert (maps.attention is not None) == (name == "cbam")


def test_the_attention_is_that_of_the_last_cbam() -> None:
    model, x = network("cbam").eval(), images()
    last = [module for module in model.modules() if isinstance(module, CBAM)][-1]
    seen: list[tuple[Tensor, Tensor]] = []
    hook = last.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    maps = class_maps(model, x, torch.zeros(3, dtype=torch.int64))
    hook.remove()
    before, after = seen[0]  # of one channel, ratios of places are those of the map
    channel = (after / before)[:, 0]
    assert maps.attention is not None
    ratio = channel / maps.attention
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-3) and maps.attention.shape == (3, 2, 2)


def test_an_error_leaves_the_network_as_it_was() -> None:
    model = network("cbam").train()
    before = state(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = model.get_submodule("fc").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        class_maps(model, images(), torch.tensor([0, 1, 2]))
    hook.remove()
    assert same(before, state(model))


def test_a_network_of_tokens_has_no_map() -> None:
    model = build_model(Model(backbone="timm/test_vit", weights="none"), 5, 0)
    with pytest.raises(ValueError, match="the features of VisionTransformer are no map of places"):
        class_maps(model, images(1, 160), torch.tensor([0]))
