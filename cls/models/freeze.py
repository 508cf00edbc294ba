"""Frozen parts: no gradient and, with ``model.freeze_norms``, eval mode: in train mode BatchNorm statistics move even
without gradients.
"""

from torch import nn

from cls.models.attention import CBAM


def frozen_parts(model: nn.Module, freeze: tuple[str, ...]) -> list[nn.Module]:
    """The modules meant by ``model.freeze``: "stem" (all before layer1), "layer1", ... or a top-level module's name.

    CBAM and dropout appended to a frozen stage are not part of it: they have no pretrained values to keep.
    """
    children = dict(model.named_children())
    known = [name for name, child in children.items() if next(child.parameters(), None) is not None]
    if "layer1" in children:
        known.insert(0, "stem")
    parts: list[nn.Module] = []
    for name in freeze:
        if name not in known:
            raise ValueError(f"model.freeze: no part named {name!r}; this backbone has {', '.join(known)}")
        if name == "stem":
            parts += list(children.values())[: list(children).index("layer1")]
        elif name in ("layer1", "layer2", "layer3", "layer4"):
            parts += [block for block in children[name].children() if not isinstance(block, CBAM | nn.Dropout)]
        else:
            parts.append(children[name])
    return parts


def freeze_parts(model: nn.Module, freeze: tuple[str, ...]) -> None:
    """Take the frozen parts' parameters out of training; ValueError when nothing would be left to train."""
    for part in frozen_parts(model, freeze):
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze: {', '.join(freeze)} leaves nothing to train; leave at least the head out")


def train_mode(model: nn.Module, in_eval_mode: tuple[str, ...]) -> None:
    """``model.train()``, with these parts back in eval mode: their BatchNorm buffers keep their bits."""
    model.train()
    for part in frozen_parts(model, in_eval_mode):
        part.eval()
