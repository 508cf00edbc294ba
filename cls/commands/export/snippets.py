"""Python code that loads an exported network, with the library of its backbone or with ONNX Runtime."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from cls.config import Model
from cls.models.backbones import SMALL, classifier_name


def expressible(model: Model) -> bool:
    """Whether the backbone's library can build the network; dropout between stages is not used in inference.

    Any other field of the model needs this package.
    """
    usual = replace(Model(), backbone=model.backbone, weights=model.weights, head=model.head, freeze=model.freeze,
                    freeze_norms=model.freeze_norms, dropout3=model.dropout3)  # fmt: skip
    return usual == model


def plain(model: Model) -> bool:
    """Whether it is the library's network with its usual output layer."""
    return expressible(model) and not model.head


def library(model: Model) -> str:
    """The library that builds the network."""
    if not expressible(model):
        return "cls"
    return "timm" if model.backbone.startswith("timm/") else "torchvision"


def loading(model: Model, net: nn.Module, classes: int, folder: Path) -> str:
    """Code that makes ``model`` the network in eval mode: imports and at most three lines."""
    weights = repr(str(folder / "model.safetensors"))
    if library(model) == "cls":
        return f"from cls.evaluation.trained_model import network\nmodel = network({weights})"
    if plain(model) and library(model) == "timm":
        # config.json gives classes and framing; timm's pretrained=True reads safetensors there from 1.0.26 on only
        imported, built = "import timm", f"timm.create_model({f'local-dir:{folder}'!r})"
    else:
        imported, built = _built(model.backbone, "" if model.head else f"num_classes={classes}")
    lines = ["from safetensors.torch import load_model", imported, f"model = {built}"]
    if model.head:
        name = classifier_name(model.backbone)
        head = net.get_submodule(name)
        assert isinstance(head, nn.Sequential)
        lines.insert(1, "from torch import nn")
        lines.append(f"model.{name} = nn.Sequential({', '.join(f'nn.{layer!r}' for layer in head)})")
    return "\n".join([*lines, f"load_model(model.eval(), {weights})"])


def _built(backbone: str, arguments: str) -> tuple[str, str]:
    """Import and expression of the backbone."""
    if backbone.startswith("timm/"):
        return "import timm", f"timm.create_model({', '.join([repr(backbone[5:]), *filter(None, [arguments])])})"
    if backbone == SMALL:
        more = ", ".join(["Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=8", *filter(None, [arguments])])
        return "from torchvision.models.resnet import Bottleneck, ResNet", f"ResNet({more})"
    return "import torchvision", f"torchvision.models.{backbone}({arguments})"


def running(folder: Path) -> str:
    """Code that makes ``session``."""
    return f"import onnxruntime\nsession = onnxruntime.InferenceSession({str(folder / 'model.onnx')!r})"


def input_name(kind: str) -> str:
    return "pixels" if kind == "uint8" else "images"
