"""A run directory with a best network that nobody trained: what prediction and export work on, in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cls.config import Run, change, to_yaml
from cls.data.sources import load
from cls.models.backbones import input_statistics
from cls.models.build import build_model
from cls.tracking.run_data import keep, look, numbered_as

CLASSES = ("ant", "bee", "cat", "dog")


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


def photos(root: Path, count: int = 5, side: int = 20, apart: bool = False) -> Path:
    """Class folders of noise, ``count`` images in each split of each of four classes; ``apart``: others in each."""
    for place, split in enumerate(("train", "val", "test")):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([number, i, place if apart else 0]).integers(
                    0, 60 + 60 * number, (side, side, 3), np.uint8
                )
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def member(
    out: Path, images: Path, classes: tuple[str, ...] = CLASSES, eval_batch: int = 8, seed: int = 0, size: int = 16,
    data: dict[str, Any] | None = None, **sections: Any,
) -> str:  # fmt: skip
    """A finished run's directory with a network that nobody trained."""
    frame = {"path": str(images), "size": size, "eval_frame": "squash"} | (data or {})
    model = {"backbone": "timm/test_resnet"} | sections.pop("model", {})
    run = untrained(out, classes, frame, model, eval_batch, seed, **sections)
    (out / "config.yaml").write_text(to_yaml(run))
    keep(out, look(numbered_as(load(run.data, run.seed), classes)))
    return str(out)
