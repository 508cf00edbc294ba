"""The network as an ONNX graph for any batch size."""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cls.commands.export.snippets import input_name
from cls.commands.options import Input
from cls.models.backbones import Statistics

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """ValueError if the extra is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


class FromPixels(nn.Module):
    """uint8 b h w 3 -> logits b c: the normalisation, then the network."""

    def __init__(self, net: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.net = net
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in statistics)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float() / 255
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits


def write_graph(
    path: Path, net: nn.Module, statistics: Statistics, size: int, kind: Input, facts: Mapping[str, Any]
) -> None:
    """Write a network in eval mode, weights inside; ``facts`` become the file's metadata, as JSON by name."""
    if kind == "uint8":
        net, example = FromPixels(net, statistics).eval(), torch.zeros(2, size, size, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(2, 3, size, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx warns about its own internals
        program = torch.onnx.export(
            net, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
            input_names=[input_name(kind)], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # torch's stack traces, with the paths of this machine
    for name, value in facts.items():
        program.model.metadata_props[name] = json.dumps(value)
    program.save(path)
