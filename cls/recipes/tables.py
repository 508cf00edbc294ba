"""The reports' ablation tables as data: which rows, which recipe each is, and the figures that its author gives."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table; its figures are the report's own, as shares of 1, None where it gives none."""

    name: str
    """As in the report."""
    recipe: str
    validation: float | None = None
    """The report's validation accuracy."""
    test: float | None = None
    """The report's accuracy on the public test images."""


@dataclass(frozen=True)
class Sweep:
    """One table of a report: the rows differ in what it is about and in nothing else."""

    what: str
    """What the rows differ in, and what else of the method differs from the recipe."""
    rows: tuple[Row, ...]
    finding: str = ""
    """What the report says in words, where it has no figures or only a picture of them."""


# SYSTEM/TABLE, in the order of the reports; "systems" is all five
SWEEPS: dict[str, Sweep] = {
    "systems": Sweep(
        "the five published systems as their reports have them",
        (
            Row("attention-gate", "attention-gate"),
            Row("cbam-mixup", "cbam-mixup", 0.91),
            Row("mlp-head", "mlp-head", 0.93, 0.96),
            Row("se-resnext", "se-resnext", 0.8567, 0.91),
            Row("resnet50-mlp", "resnet50-mlp", 0.86, 0.92),
        ),
    ),
    "attention-gate/classifier": Sweep(
        "what follows ResNeXt-101 64×4d: an output layer, the gate with its classifier, the gate with a deeper one",
        (Row("plain", "attention-gate-plain"), Row("gate", "attention-gate"), Row("ResNeXtL", "attention-gate-deep")),
        "plain: the result was quite good; ResNeXtL: worse",
    ),
    "cbam-mixup/mixup": Sweep(
        "mixup in every step, the first part added (no CBAM, no dropout after stage 3)",
        (Row("off", "cbam-mixup-plain"), Row("always", "cbam-mixup-mixup-only")),
        "always: the same accuracy, lower loss",
    ),
    "cbam-mixup/cbam": Sweep(
        "CBAM after stage 4, the second part added (mixup in every step, no dropout after stage 3)",
        (Row("off", "cbam-mixup-mixup-only"), Row("on", "cbam-mixup-mixup-and-cbam")),
        "CBAM alone: lower accuracy, higher loss",
    ),
    "cbam-mixup/dropout3": Sweep(
        "dropout after stage 3, the third part added (mixup in every step, CBAM)",
        (Row("off", "cbam-mixup-mixup-and-cbam"), Row("on", "cbam-mixup-mixup-always")),
        "on: higher accuracy",
    ),
    "cbam-mixup/combined": Sweep(
        "all parts, added one after another",
        (
            Row("nothing added", "cbam-mixup-plain"),
            Row("mixup", "cbam-mixup-mixup-only"),
            Row("and CBAM", "cbam-mixup-mixup-and-cbam"),
            Row("and dropout", "cbam-mixup-mixup-always"),
        ),
    ),
    "cbam-mixup/random-mixup": Sweep(
        "mixup in every step or in half of them, everything else on",
        (Row("always", "cbam-mixup-mixup-always"), Row("random", "cbam-mixup", 0.91)),
        "random: better, the report's best system",
    ),
    "cbam-mixup/position": Sweep(
        "the stage that CBAM follows",
        (
            Row("after layer1", "cbam-mixup-cbam1"),
            Row("after layer2", "cbam-mixup-cbam2"),
            Row("after layer3", "cbam-mixup-cbam3"),
            Row("after layer4", "cbam-mixup"),
        ),
        "after layer4: best",
    ),
    "cbam-mixup/backbone": Sweep(
        "the backbone (patience 2 for the 50-layer ones)",
        (
            Row("resnet50", "cbam-mixup-resnet50"),
            Row("resnext50_32x4d", "cbam-mixup-resnext50"),
            Row("resnext101_32x8d", "cbam-mixup"),
        ),
    ),
    "cbam-mixup/frozen": Sweep(
        "the frozen stages", (Row("none", "cbam-mixup-unfrozen"), Row("layer1, layer2", "cbam-mixup"))
    ),
    "mlp-head/depth": Sweep(
        "the depth of the backbone; _64 and _32 are the batch; R34, R50, R101_32: V0 at a fixed rate; the others V1",
        (
            Row("R34_64", "mlp-head-r34", 0.86),
            Row("R50_64", "mlp-head-r50", 0.90, 0.92),
            Row("R101_32", "mlp-head-r101-b32", 0.88, 0.92),
            Row("R101_64 last 2", "mlp-head-r101-last2", 0.89, 0.93),
            Row("R101_64 last 1", "mlp-head-r101-last1", 0.89, 0.92),
            Row("X50_32", "mlp-head-x50-b32", 0.91, 0.94),
        ),
    ),
    "mlp-head/weights": Sweep(
        "the pretrained weights of ResNet-50 (V0, fixed rate); DEFAULT is V2 today: the report's two figures show the "
        "noise of training, and here a seed has one result in both rows",
        (
            Row("none", "mlp-head-r50-scratch", 0.50),
            Row("DEFAULT", "mlp-head-r50-default", 0.89, 0.92),
            Row("V2", "mlp-head-r50-v2weights", 0.89, 0.93),
        ),
    ),
    "mlp-head/heads-r50": Sweep(
        "the head on ResNet-50",
        (
            Row("V0", "mlp-head-r50-v0", 0.92, 0.93),
            Row("V1", "mlp-head-r50-v1", 0.90, 0.94),
            Row("V2", "mlp-head-r50-v2", 0.90, 0.94),
            Row("V3", "mlp-head-r50-v3", 0.90, 0.95),
            Row("V4", "mlp-head-r50-v4", 0.88, 0.93),
        ),
    ),
    "mlp-head/heads-r101": Sweep(
        "the head on ResNet-101, stages 3 and 4 trained",
        (
            Row("V1", "mlp-head-r101-last2-v1", 0.89, 0.93),
            Row("V2", "mlp-head-r101-last2-v2", 0.90, 0.94),
            Row("V3", "mlp-head-r101-last2-v3", 0.88, 0.94),
            Row("V4", "mlp-head-r101-last2-v4", 0.89, 0.93),
        ),
    ),
    "mlp-head/heads-x50": Sweep(
        "the head on ResNeXt-50 32×4d",
        (
            Row("V0", "mlp-head-x50-v0", 0.92, 0.94),
            Row("V1", "mlp-head-x50-v1", 0.92, 0.94),
            Row("V2", "mlp-head-x50-v2", 0.90, 0.94),
            Row("V3", "mlp-head-x50-v3", 0.91, 0.94),
        ),
    ),
    "mlp-head/heads": Sweep(
        "the head on ResNeXt-101 32×8d, the system's own backbone (cosine down to 5e-5, as this table says)",
        (
            Row("V0", "mlp-head-x101-v0", 0.93, 0.95),
            Row("V1", "mlp-head-eta5e-5", 0.93, 0.96),
            Row("V2", "mlp-head-x101-v2", 0.92, 0.94),
            Row("V3", "mlp-head-x101-v3", 0.93, 0.94),
        ),
    ),
    "mlp-head/schedule": Sweep(
        "the learning rate on ResNet-50: fixed, or a cosine over T_max epochs (heads V0 and V1)",
        (
            Row("fixed (V0)", "mlp-head-r50-v0-fixed", 0.89, 0.93),
            Row("cosine T50 (V0)", "mlp-head-r50-v0-t50", 0.92, 0.93),
            Row("cosine T50 (V1)", "mlp-head-r50-v1-t50", 0.90, 0.93),
            Row("cosine T80 (V1)", "mlp-head-r50-v1-t80", 0.90, 0.94),
        ),
    ),
    "mlp-head/dropout": Sweep(
        "the dropout of head V0 on ResNeXt-50 32×4d (the program's lines are V1: …-dropout25-code, …50-code)",
        (Row(".25", "mlp-head-x50-dropout25", 0.91, 0.94), Row(".5", "mlp-head-x50-dropout50", 0.92, 0.94)),
    ),
    "se-resnext/techniques": Sweep(
        "dropout, augmentation, weight decay and dynamic rate, all of them at once",
        (Row("off", "se-resnext-none"), Row("on", "se-resnext", 0.8567, 0.91)),
    ),
    "se-resnext/backbone": Sweep(
        "the backbone; its figures are called validation there",
        (
            Row("resnext50_32x4d", "se-resnext-resnext50", 0.86),
            Row("resnetrs50", "se-resnext-resnetrs50", 0.90),
            Row("seresnext101d_32x8d", "se-resnext", 0.91),
        ),
    ),
    "resnet50-mlp/parts": Sweep(
        "the system without one of its parts; test is the public score",
        (
            Row("whole", "resnet50-mlp", test=0.92),
            Row("no MLP", "resnet50-mlp-plain", test=0.912),
            Row("no mixup", "resnet50-mlp-mixup-off", test=0.91),
        ),
    ),
    "best/systems": Sweep(
        "the five published systems, a plain baseline and our own recipe",
        (
            Row("attention-gate", "attention-gate"),
            Row("cbam-mixup", "cbam-mixup"),
            Row("mlp-head", "mlp-head"),
            Row("se-resnext", "se-resnext"),
            Row("resnet50-mlp", "resnet50-mlp"),
            Row("plain baseline", "best-baseline"),
            Row("best", "best"),
        ),
    ),
    "best/parts": Sweep(
        "our own recipe without one of its parts",
        (
            Row("whole", "best"),
            Row("no TrivialAugment", "best-plain-pixels"),
            Row("no mixup", "best-no-mixup"),
            Row("whole from the start", "best-whole-start"),
            Row("one rate", "best-one-rate"),
            Row("no average", "best-no-average"),
        ),
    ),
}


def chosen(name: str) -> dict[str, Sweep]:
    """The sweep of that name, or all of a system's; RECIPE/only is a recipe alone; empty where there is none."""
    if name.endswith("/only"):
        recipe = name.removesuffix("/only")
        return {name: Sweep("the recipe alone", (Row(recipe, recipe),))}
    return {key: sweep for key, sweep in SWEEPS.items() if name in (key, key.partition("/")[0])}


def unknown(name: str) -> ValueError:
    """The error message for an unknown name, with the nearest names."""
    near = difflib.get_close_matches(name, SWEEPS, 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ValueError(f"{name} is neither a sweep nor a directory{hint} (`cls sweep` lists all)")


def figure(share: float | None) -> str:
    """As the reports print it: .91, .912; an en dash where there is none."""
    return "–" if share is None else max(f"{share:.2f}", f"{share:.4f}".rstrip("0"), key=len).removeprefix("0")
