"""Report 3: ResNeXt-101 32×8d with a small MLP head, and its many ablations."""

from functools import partial
from typing import Any

from cls.config import Augment, Data, Model, Optim, Run, Train

REPORT = "report 3"

HEADS = {
    "v0": "dropout:0.5",
    "v1": "500 relu dropout:0.5",
    "v2": "500 relu 250 dropout:0.5",
    "v3": "500 bn relu 250 relu dropout:0.5",
    "v4": "1024 bn relu dropout:0.5 512 bn relu dropout:0.4 256 bn relu dropout:0.3",
}


def mlp_head() -> Run:
    """ResNeXt-101 32×8d, all layers trained, head V1: Linear(2048→500), ReLU, Dropout .5, Linear(500→C).

    ``accelerate launch train.py mlp-head --data.path FOLDER``

    87,816,936 parameters for 100 classes. RandomResizedCrop(224), flip, colour jitter .2/.2/.2/.1, rotation ±10°, shift
    .1; 100 epochs, batch 64, AdamW lr 1e-4, decay 1e-3; cosine down to 1e-5 at epoch 80, then the rate rises again;
    early stopping on the validation loss with patience 100 // 50 = 2, which stops at the third bad epoch in a row.
    The test prediction averages the softmax over a flip, a rotation and a crop ("about +0.5 points of test accuracy").
    The report's accuracies: 0.93 validation, 0.96 public test.

    Silent in the report, taken from the program: Resize 256 + CenterCrop 224 in validation, seed 63. The program
    rotates and shifts after normalising, so exposed corners have the mean's colour, here too; it tests the weights of
    the lowest validation loss.
    Report and program disagree: patience epochs // 5 (also in the readme), the unchanged image as a further test-time
    view, and a ReLU after 250 in V2: ``-code`` and ``-v2-code``. The report disagrees with itself on the cosine's end:
    1e-5 in section 2.4 (and program and readme), 5e-5 at the ablations and the ResNeXt-101 table. So ``mlp-head`` and
    its heads ``-v0`` to ``-v4`` have 1e-5; that table (``-x101-v0``, ``-eta5e-5`` for its V1, ``-x101-v2``,
    ``-x101-v3``) and the ablations on other backbones have 5e-5, their ``-code`` variants 1e-5.
    Not reproduced: the program reloads the best weights after every epoch.
    BatchNorm statistics are those of micro-batches of 16 (8 where the batch is 32); ``-code`` takes the whole batch.
    Frozen stages keep their BatchNorm statistics; in the program they are in train mode, so that the statistics move
    (``-r101-last2-code``, ``-r101-last1-code``; elsewhere ``--model.freeze-norms False``).

    What ran in the tables of depth and weights is not in the report but in the program's comments: ResNet-50 with
    DEFAULT and with V2 weights and ResNet-101 at batch 32 had head V0 and a fixed rate of 1e-4; ResNet-101 with frozen
    stages had V1 and the cosine. Neither says it of three rows: ResNet-34 and ResNet-50 from scratch have V0 and the
    fixed rate here, as the others of their tables; X50_32, behind the frozen ones, has V1 and the cosine. R50_64 is the
    run with DEFAULT weights, whose test figure it has (.92; V2 has .93); DEFAULT is V2 today.
    The dropout table is headed V0, but the program's lines for .25 and .5 are V1: ``-x50-dropout25`` and ``-dropout50``
    have V0, ``-x50-dropout25-code`` and ``-x50-dropout50-code`` V1.
    Also open: batch 32 for every ResNeXt-50, as in the depth table; "last 2 stages" = stages 3, 4 and the head. The
    figures (``cls sweep mlp-head``) are the report's "most frequently observed values"; where its tables repeat a run,
    that run has several names and is trained once.
    """
    return Run(
        recipe="mlp-head",
        seed=63,
        data=Data(size=224, eval_frame="center", crop_pct=0.875),
        augment=Augment(
            order=("frame", "hflip", "jitter", "rotate", "affine"), frame="crop", crop_scale=(0.08, 1.0), hflip=0.5,
            brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, rotate=10.0, translate=0.1, fill="mean",
            tta=("hflip", "rotate", "crop"),
        ),
        model=Model(backbone="resnext101_32x8d", weights="IMAGENET1K_V2", head=HEADS["v1"]),
        optim=Optim(
            name="adamw", lr=1e-4, lr_batch=64, weight_decay=1e-3, schedule="cosine", t_max=80, min_lr=1e-5
        ),
        train=Train(epochs=100, batch=64, micro_batch=16, early_stop=100 // 50 + 1, best_on="loss"),
    )  # fmt: skip


_CODE: dict[str, Any] = {
    "augment": {"tta": ("identity", "hflip", "rotate", "crop")},
    "train": {"micro_batch": 64, "early_stop": 100 // 5 + 1},
}


def _ablation(backbone: str, head: str = "v1", *, batch: int = 64, **model: Any) -> dict[str, Any]:
    micro_batch = 16 if batch == 64 else 8
    return {
        "model": {"backbone": backbone, "head": HEADS.get(head, head), **model},
        "optim": {"min_lr": 5e-5, "lr_batch": batch},
        "train": {"batch": batch, "micro_batch": micro_batch},
    }


def _schedule(head: str, backbone: str = "resnet50", *, batch: int = 64, weights: str = "IMAGENET1K_V2",
              **optim: Any) -> dict[str, Any]:  # fmt: skip
    sections = _ablation(backbone, head, batch=batch, weights=weights)
    return sections | {"optim": sections["optim"] | optim}


def _as_program(sections: dict[str, Any]) -> dict[str, Any]:
    """An ablation as the program has it."""
    model, batch = dict(sections["model"]), sections["train"]["batch"]
    if "freeze" in model:
        model["freeze_norms"] = False
    return {
        "augment": _CODE["augment"],
        "model": model,
        "optim": sections["optim"] | {"min_lr": 1e-5},
        "train": sections["train"] | _CODE["train"] | {"micro_batch": batch},
    }


_FIXED = partial(_schedule, "v0", schedule="fixed")
_X50 = partial(_ablation, "resnext50_32x4d", batch=32)
_LAST2 = partial(_ablation, "resnet101", freeze=("stem", "layer1", "layer2"))
_LAST1 = partial(_ablation, "resnet101", freeze=("stem", "layer1", "layer2", "layer3"))

# name: what it is and what it changes
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # heads
    "mlp-head-v0": ("head V0: dropout only", {"model": {"head": HEADS["v0"]}}),
    "mlp-head-v2": ("head V2: 500, 250", {"model": {"head": HEADS["v2"]}}),
    "mlp-head-v3": ("head V3: 500, 250 with BatchNorm", {"model": {"head": HEADS["v3"]}}),
    "mlp-head-v4": ("head V4: 1024, 512, 256 with BatchNorm", {"model": {"head": HEADS["v4"]}}),
    "mlp-head-eta5e-5": ("cosine down to 5e-5", {"optim": {"min_lr": 5e-5}}),
    "mlp-head-code": ("the program: patience 20, four test-time views, BatchNorm over the whole batch", _CODE),
    "mlp-head-v2-code": (
        "the program with its V2, which has a ReLU after 250",
        _CODE | {"model": {"head": "500 relu 250 relu dropout:0.5"}},
    ),
    # depth
    "mlp-head-r34": (
        "depth: ResNet-34 with IMAGENET1K_V1, V0, fixed rate",
        _FIXED("resnet34", weights="IMAGENET1K_V1"),
    ),
    "mlp-head-r50": ("depth: ResNet-50, V0, fixed rate", _FIXED(weights="DEFAULT")),
    "mlp-head-r101-b32": ("depth: ResNet-101, batch 32, V0, fixed rate", _FIXED("resnet101", batch=32)),
    "mlp-head-r101-last2": ("depth: ResNet-101, stages 3 and 4 trained", _LAST2()),
    "mlp-head-r101-last1": ("depth: ResNet-101, stage 4 trained", _LAST1()),
    "mlp-head-r101-last2-code": ("the program: stages 1 and 2 without gradients only", _as_program(_LAST2())),
    "mlp-head-r101-last1-code": ("the program: stages 1 to 3 without gradients only", _as_program(_LAST1())),
    "mlp-head-x50-b32": ("depth: ResNeXt-50 32×4d, batch 32", _X50()),
    # weights
    "mlp-head-r50-scratch": ("weights: ResNet-50 from scratch, V0, fixed rate", _FIXED(weights="none")),
    "mlp-head-r50-default": (
        "weights: ResNet-50 DEFAULT, which is V2 today, V0, fixed rate",
        _FIXED(weights="DEFAULT"),
    ),
    "mlp-head-r50-v2weights": ("weights: ResNet-50 IMAGENET1K_V2, V0, fixed rate", _FIXED()),
    # heads
    **{
        f"mlp-head-x101-{head}": (
            f"heads: {head.upper()} with the cosine down to 5e-5",
            _ablation("resnext101_32x8d", head),
        )
        for head in ("v0", "v2", "v3")
    },
    **{f"mlp-head-r50-{head}": (f"heads: ResNet-50, {head.upper()}", _ablation("resnet50", head)) for head in HEADS},
    **{
        f"mlp-head-r101-last2-{head}": (f"heads: ResNet-101, stages 3 and 4 trained, {head.upper()}", _LAST2(head))
        for head in ("v1", "v2", "v3", "v4")
    },
    **{
        f"mlp-head-x50-{head}": (f"heads: ResNeXt-50 32×4d, {head.upper()}", _X50(head))
        for head in ("v0", "v1", "v2", "v3")
    },
    # schedule
    "mlp-head-r50-v0-fixed": ("schedule: ResNet-50 V0, fixed rate", _FIXED()),
    "mlp-head-r50-v0-t50": ("schedule: ResNet-50 V0, T_max 50", _schedule("v0", t_max=50)),
    "mlp-head-r50-v1-t50": ("schedule: ResNet-50 V1, T_max 50", _schedule("v1", t_max=50)),
    "mlp-head-r50-v1-t80": ("schedule: ResNet-50 V1, T_max 80", _schedule("v1", t_max=80)),
    # dropout
    "mlp-head-x50-dropout25": ("dropout: ResNeXt-50 V0 with .25", _X50("dropout:0.25")),
    "mlp-head-x50-dropout50": ("dropout: ResNeXt-50 V0 with .5", _X50("dropout:0.5")),
    "mlp-head-x50-dropout25-code": (
        "the program's dropout of .25: ResNeXt-50 V1",
        _as_program(_X50("500 relu dropout:0.25")),
    ),
    "mlp-head-x50-dropout50-code": (
        "the program's dropout of .5: ResNeXt-50 V1",
        _as_program(_X50("500 relu dropout:0.5")),
    ),
}
