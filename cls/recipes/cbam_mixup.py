"""Report 2: ResNeXt-101 32×8d with CBAM and random mixup."""

from typing import Any

from cls.config import Augment, Data, Model, Optim, Run, Train

REPORT = "report 2"


def cbam_mixup() -> Run:
    """ResNeXt-101 32×8d, CBAM after stage 4, stages 1 and 2 frozen, mixup in half of the steps.

    ``accelerate launch train.py cbam-mixup --data.path FOLDER``

    Dropout .2 between stages 3 and 4, CBAM (reduction 16, 7×7, no bias) after stage 4, average pool, Dropout .5,
    Linear(2048→C): 87,471,622 parameters for 100 classes. RandomResizedCrop(224, scale .8 to 1), flip, rotation ±15°,
    colour jitter .2; mixup alpha .2 with probability .5 per step. 50 epochs, batch 32, AdamW lr 1e-4, decay .045,
    plateau factor .1 down to 1e-6. The report's best validation accuracy is 0.91.

    Silent in the report, taken from the program: betas (.9, .96), patience 3 on the validation loss (2 for the 50-layer
    backbones), validation images squashed to 224×224, seed 118.
    Report and program disagree on CBAM: the program feeds the max branch with the average branch's output (``-code``).
    BatchNorm statistics are those of micro-batches of 8; ``-code`` takes them over all 32. Frozen stages keep their
    BatchNorm statistics; in the program they are in train mode, so that the statistics move (``-code``).
    The report adds its parts one after another, so that a pair has what the pairs before it added: nothing, mixup in
    every step, CBAM, dropout after stage 3, and at last mixup in half of the steps. The further ablations (the stage
    of CBAM, the backbone, the frozen stages) change one thing of the whole system; the report does not say more about
    them. A CBAM behind a frozen stage is trained: it has no pretrained values.
    """
    return Run(
        recipe="cbam-mixup",
        seed=118,
        data=Data(size=224, eval_frame="squash"),
        augment=Augment(
            order=("frame", "hflip", "rotate", "jitter"), frame="crop", crop_scale=(0.8, 1.0), hflip=0.5, rotate=15.0,
            brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, mixup=0.2, mix_probability=0.5,
        ),
        model=Model(
            backbone="resnext101_32x8d", weights="DEFAULT", head="dropout:0.5", cbam=(4,), dropout3=0.2,
            freeze=("layer1", "layer2"),
        ),
        optim=Optim(
            name="adamw", lr=1e-4, lr_batch=32, weight_decay=0.045, betas=(0.9, 0.96), schedule="plateau", factor=0.1,
            patience=3, min_lr=1e-6, plateau_on="loss",
        ),
        train=Train(epochs=50, batch=32, micro_batch=8),
    )  # fmt: skip


def _added(**sections: dict[str, Any]) -> dict[str, Any]:
    """The system before dropout after stage 3 was added, with mixup in every step."""
    augment, model = ({"mix_probability": 1.0}, {"dropout3": 0.0})
    return {"augment": augment | sections.get("augment", {}), "model": model | sections.get("model", {})}


# name: what it is, and what it changes
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cbam-mixup-plain": (
        "nothing added: no mixup, no CBAM, no dropout after stage 3",
        _added(augment={"mixup": 0.0}, model={"cbam": ()}),
    ),
    "cbam-mixup-mixup-only": (
        "mixup in every step; no CBAM, no dropout after stage 3 (report: lower loss than without)",
        _added(model={"cbam": ()}),
    ),
    "cbam-mixup-mixup-and-cbam": (
        "mixup in every step and CBAM; no dropout after stage 3 (report: worse than without CBAM)",
        _added(),
    ),
    "cbam-mixup-mixup-always": (
        "the whole system with mixup in every step (report: random mixup is better)",
        {"augment": {"mix_probability": 1.0}},
    ),
    "cbam-mixup-cbam1": ("CBAM after stage 1 instead of 4 (report: after 4 is best)", {"model": {"cbam": (1,)}}),
    "cbam-mixup-cbam2": ("CBAM after stage 2 instead of 4 (report: after 4 is best)", {"model": {"cbam": (2,)}}),
    "cbam-mixup-cbam3": ("CBAM after stage 3 instead of 4 (report: after 4 is best)", {"model": {"cbam": (3,)}}),
    "cbam-mixup-unfrozen": ("all stages trained", {"model": {"freeze": ()}}),
    "cbam-mixup-resnet50": ("ResNet-50", {"model": {"backbone": "resnet50"}, "optim": {"patience": 2}}),
    "cbam-mixup-resnext50": ("ResNeXt-50 32×4d", {"model": {"backbone": "resnext50_32x4d"}, "optim": {"patience": 2}}),
    "cbam-mixup-code": (
        "the program: chained CBAM, frozen BatchNorm in train mode, statistics over the whole batch of 32",
        {"model": {"cbam_chained": True, "freeze_norms": False}, "train": {"micro_batch": 32}},
    ),
}
