"""A run directory with a best network that nobody trained: what prediction and export work on, in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from cls.config import Run, change, to_yaml
from cls.models.backbones import input_statistics
from cls.models.build import build_model


def untrained(
    out: Path, classes: int | tuple[str, ...], data: dict[str, Any], model: dict[str, Any], eval_batch: int = 8,
    seed: int = 0, **sections: Any,
) -> Run:  # fmt: skip
    """The file that train.py writes; without weights, norms are drawn and have seen noise, so that all matters."""
    train = {"eval_batch": eval_batch, "precision": "fp32", "device": "cpu"}
    data, model = data | {"workers": 0}, {"weights": "none"} | model
    run = change(Run(), seed=seed, data=data, model=model, train=train, **sections)
    names = tuple(f"class {i}" for i in range(classes)) if isinstance(classes, int) else classes
    net = build_model(run.model, len(names), seed)
    drawn = torch.Generator().manual_seed(1 + seed)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    if run.model.weights == "none":
        for norm in norms:
            for tensor in (norm.weight, norm.bias):
                tensor.data += torch.rand(tensor.shape, generator=drawn) - 0.4
            norm.momentum = None  # of all that it sees, so that logits are as large as a trained network's
        with torch.no_grad():
            net(torch.randn(8, 3, run.data.evaluated.size, run.data.evaluated.size, generator=drawn))
    header = {
        "config": to_yaml(run),
        "classes": json.dumps(names),
        "statistics": json.dumps(input_statistics(run)),
        "fallback": "1",
    }
    (out / "best").mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, out / "best" / "model.safetensors", header)
    return run
