"""config.json of an export, in timm's format: architecture, classes, preprocessing."""

import math
from collections.abc import Sequence
from typing import Any

from cls import __version__
from cls.commands.export.snippets import plain
from cls.config import Data, Run
from cls.models.backbones import Statistics, classifier_name
from cls.transforms.ops import ResizeShort, view_ops


def preprocessing(data: Data, statistics: Statistics) -> dict[str, Any]:
    """The plain view as ``timm.data.resolve_data_config`` gives it: frame, size, interpolation, mean and std.

    timm resizes the short side to floor(size / crop_pct): where the run rounds up, another crop_pct gives the same.
    """
    mode, share = "squash", 1.0
    if data.eval_frame == "center":
        resize = view_ops("identity", data)[0]
        assert isinstance(resize, ResizeShort)
        shares = (data.crop_pct, data.size / resize.size, data.size / (resize.size + 0.5))
        mode, share = "center", next(share for share in shares if math.floor(data.size / share) == resize.size)
    mean, std = statistics
    return {
        "input_size": [3, data.size, data.size],
        "interpolation": "bilinear",
        "crop_pct": share,
        "crop_mode": mode,
        "mean": list(mean),
        "std": list(std),
    }


def config_json(run: Run, classes: Sequence[str], statistics: Statistics) -> dict[str, Any]:
    """The architecture is named only where timm builds exactly this network."""
    known: dict[str, Any] = {"classifier": classifier_name(run.model.backbone)}
    named = {}
    if run.model.backbone.startswith("timm/"):
        import timm

        name = run.model.backbone.removeprefix("timm/")
        stated = timm.get_pretrained_cfg(name)
        assert stated  # classifier_name has read it
        known |= {"first_conv": stated.first_conv, "fixed_input_size": stated.fixed_input_size}
        named = {"architecture": name.split(".")[0]} if plain(run.model) else {}
    return named | {
        "num_classes": len(classes),
        "label_names": list(classes),
        "pretrained_cfg": preprocessing(run.data.evaluated, statistics) | known,
        "written_by": f"cls {__version__}, recipe {run.recipe}",
    }
