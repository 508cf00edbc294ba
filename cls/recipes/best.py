"""Our own recipe and the plain baseline that it has to beat."""

from functools import partial
from typing import Any

from cls.config import Augment, Data, Model, Optim, Run, Train, change

REPORT = "own"


def best() -> Run:
    """Our own: a plain crop and flip, small batches at a high one-cycle rate, the whole picture at the end.

    ``accelerate launch train.py best --data.path FOLDER``

    EFFECTS
    """
    return Run(
        recipe="best",
        data=Data(size=224, eval_frame="center", crop_pct=1.0),
        augment=Augment(
            order=("frame", "hflip"), frame="crop", crop_scale=(0.35, 1.0), hflip=0.5, tta=("identity", "hflip")
        ),
        model=Model(backbone="resnext101_32x8d", weights="IMAGENET1K_V2"),
        optim=Optim(
            name="adamw", lr=2e-3, lr_batch=32, weight_decay=0.01, label_smoothing=0.1, schedule="one-cycle"
        ),
        train=Train(epochs=12, batch=32, micro_batch=32),
    )  # fmt: skip


_BASELINE: dict[str, Any] = {
    "data": {"crop_pct": 0.875},
    "augment": {"tta": ()},
    "optim": {"lr": 1e-3, "lr_batch": 64},
    "train": {"batch": 64, "micro_batch": 64},
}

# name: what it is, and what it changes
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "best-baseline": ("the plain baseline: rate 1e-3, batch 64, centre crop of 0.875", _BASELINE),
    "best-rate": ("half the rate, 1e-3", {"optim": {"lr": 1e-3}}),
    "best-batch": (
        "batch 64, at the same rate",
        {"train": {"batch": 64, "micro_batch": 64}, "optim": {"lr_batch": 64}},
    ),
    "best-crop": ("the usual centre crop of 0.875 in validation and test", {"data": {"crop_pct": 0.875}}),
}

RECIPES = {"best": best} | {
    name: partial(change, best(), recipe=name, **sections) for name, (_, sections) in VARIANTS.items()
}
