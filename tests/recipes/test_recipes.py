"""The five published systems and our own: exact parameter counts, every ablation, the settings easily mistaken."""

import dataclasses

import pytest
import torch

from cls.config import Run, diff, flat, from_yaml, to_yaml
from cls.models.build import build_shapes
from cls.models.weights import weight_file
from cls.recipes import RECIPES, describe, get

# computed independently of this code (four of them stated by the reports themselves)
PARAMETERS = {
    "attention-gate": 85_022_584,
    "attention-gate-deep": 86_059_896,
    "cbam-mixup": 87_471_622,
    "cbam-mixup-mixup-and-cbam": 87_471_622,
    "cbam-mixup-plain": 86_947_236,
    "cbam-mixup-mixup-only": 86_947_236,
    "mlp-head": 87_816_936,
    "mlp-head-r50": 23_712_932,
    "mlp-head-v0": 86_947_236,
    "mlp-head-v2": 87_917_186,
    "mlp-head-v2-code": 87_917_186,
    "mlp-head-v3": 87_918_186,
    "mlp-head-v4": 89_525_924,
    "se-resnext": 91_744_180,
    "resnet50-mlp": 24_609_444,
    "resnet50-mlp-plain": 23_712_932,
    "best": 86_947_236,
}

# every ablation of the reports, and the fields in which it differs from its base
ABLATIONS = {
    "attention-gate-ce": {"optim.loss"},
    "attention-gate-deep": {"model.head"},
    "attention-gate-plain": {"model.gate", "model.head"},
    "attention-gate-code": {"train.micro_batch"},
    "cbam-mixup-plain": {"augment.mixup", "augment.mix_probability", "model.cbam", "model.dropout3"},
    "cbam-mixup-mixup-only": {"augment.mix_probability", "model.cbam", "model.dropout3"},
    "cbam-mixup-mixup-and-cbam": {"augment.mix_probability", "model.dropout3"},
    "cbam-mixup-mixup-always": {"augment.mix_probability"},
    "cbam-mixup-cbam1": {"model.cbam"},
    "cbam-mixup-cbam2": {"model.cbam"},
    "cbam-mixup-cbam3": {"model.cbam"},
    "cbam-mixup-unfrozen": {"model.freeze"},
    "cbam-mixup-resnet50": {"model.backbone", "optim.patience"},
    "cbam-mixup-resnext50": {"model.backbone", "optim.patience"},
    "cbam-mixup-code": {"model.cbam_chained", "model.freeze_norms", "train.micro_batch"},
    "mlp-head-v0": {"model.head"},
    "mlp-head-v2": {"model.head"},
    "mlp-head-v3": {"model.head"},
    "mlp-head-v4": {"model.head"},
    "mlp-head-eta5e-5": {"optim.min_lr"},
    "mlp-head-code": {"train.micro_batch", "train.early_stop", "augment.tta"},
    "mlp-head-v2-code": {"model.head", "train.micro_batch", "train.early_stop", "augment.tta"},
    "se-resnext-resnext50": {"model.backbone"},
    "se-resnext-resnetrs50": {"model.backbone"},
    "se-resnext-none": {
        "model.head", "augment.blur", "augment.hflip", "augment.rotate", "optim.weight_decay", "optim.schedule",
    },
    "se-resnext-code": {"optim.plateau_on", "optim.patience", "train.micro_batch"},
    "resnet50-mlp-plain": {"model.head"},
    "resnet50-mlp-mixup-off": {"augment.mixup"},
    "resnet50-mlp-code": {"train.micro_batch"},
    "best-small": {
        "augment.mixup", "augment.order", "augment.trivialaugment", "augment.tta", "optim.clip", "optim.decay_norms",
        "optim.ema", "optim.head_epochs", "optim.lr", "optim.lr_batch", "optim.stage_decay", "optim.warmup",
        "optim.weight_decay", "train.batch", "train.micro_batch",
    },
    "best-baseline": {
        "augment.mixup", "augment.order", "augment.trivialaugment", "data.crop_pct", "optim.clip", "optim.decay_norms",
        "optim.ema", "optim.head_epochs", "optim.lr", "optim.schedule", "optim.stage_decay", "optim.warmup",
        "optim.weight_decay", "train.micro_batch",
    },
    "best-plain-pixels": {"augment.order", "augment.trivialaugment"},
    "best-no-mixup": {"augment.mixup"},
    "best-whole-start": {"optim.head_epochs"},
    "best-one-rate": {"optim.stage_decay"},
    "best-no-average": {"optim.ema"},
}  # fmt: skip

V = {
    "v0": "dropout:0.5",
    "v1": "500 relu dropout:0.5",
    "v2": "500 relu 250 dropout:0.5",
    "v3": "500 bn relu 250 relu dropout:0.5",
    "v4": "1024 bn relu dropout:0.5 512 bn relu dropout:0.4 256 bn relu dropout:0.3",
}
LAST2, LAST1 = ("stem", "layer1", "layer2"), ("stem", "layer1", "layer2", "layer3")
W2 = "IMAGENET1K_V2"

# report 3's ablations: backbone, weights, head, frozen, batch, schedule, t_max
TABLES = {
    "r34": ("resnet34", "IMAGENET1K_V1", V["v0"], (), 64, "fixed", 80),
    "r50": ("resnet50", "DEFAULT", V["v0"], (), 64, "fixed", 80),
    "r101-b32": ("resnet101", W2, V["v0"], (), 32, "fixed", 80),
    "r101-last2": ("resnet101", W2, V["v1"], LAST2, 64, "cosine", 80),
    "r101-last1": ("resnet101", W2, V["v1"], LAST1, 64, "cosine", 80),
    "x50-b32": ("resnext50_32x4d", W2, V["v1"], (), 32, "cosine", 80),
    "r50-scratch": ("resnet50", "none", V["v0"], (), 64, "fixed", 80),
    "r50-default": ("resnet50", "DEFAULT", V["v0"], (), 64, "fixed", 80),
    "r50-v2weights": ("resnet50", W2, V["v0"], (), 64, "fixed", 80),
    **{f"x101-{v}": ("resnext101_32x8d", W2, V[v], (), 64, "cosine", 80) for v in ("v0", "v2", "v3")},
    **{f"r50-{v}": ("resnet50", W2, V[v], (), 64, "cosine", 80) for v in ("v0", "v1", "v2", "v3", "v4")},
    **{f"r101-last2-{v}": ("resnet101", W2, V[v], LAST2, 64, "cosine", 80) for v in ("v1", "v2", "v3", "v4")},
    **{f"x50-{v}": ("resnext50_32x4d", W2, V[v], (), 32, "cosine", 80) for v in ("v0", "v1", "v2", "v3")},
    "r50-v0-fixed": ("resnet50", W2, V["v0"], (), 64, "fixed", 80),
    "r50-v0-t50": ("resnet50", W2, V["v0"], (), 64, "cosine", 50),
    "r50-v1-t50": ("resnet50", W2, V["v1"], (), 64, "cosine", 50),
    "r50-v1-t80": ("resnet50", W2, V["v1"], (), 64, "cosine", 80),
    "x50-dropout25": ("resnext50_32x4d", W2, "dropout:0.25", (), 32, "cosine", 80),
    "x50-dropout50": ("resnext50_32x4d", W2, V["v0"], (), 32, "cosine", 80),
}
# the same as its program has it
PROGRAM = {
    "r101-last2-code": ("resnet101", W2, V["v1"], LAST2, 64, "cosine", 80),
    "r101-last1-code": ("resnet101", W2, V["v1"], LAST1, 64, "cosine", 80),
    "x50-dropout25-code": ("resnext50_32x4d", W2, "500 relu dropout:0.25", (), 32, "cosine", 80),
    "x50-dropout50-code": ("resnext50_32x4d", W2, V["v1"], (), 32, "cosine", 80),
}
BASES = ("digits", "best", "attention-gate", "cbam-mixup", "mlp-head", "se-resnext", "resnet50-mlp")


def parameters(run: Run, classes: int = 100) -> int:
    return sum(parameter.numel() for parameter in build_shapes(run.model, classes).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_exact_parameter_counts(name):
    assert parameters(get(name)) == PARAMETERS[name]


def test_every_network_builds():
    """One build per distinct network; the shapes run through on fake tensors of the recipe's own size."""
    runs = [get(name) for name in RECIPES]
    for model, size in {(dataclasses.replace(run.model, weights="none"), run.data.size) for run in runs}:
        with torch.device("meta"):
            assert build_shapes(model, 7).eval()(torch.empty(2, 3, size, size)).shape == (2, 7), model


def test_the_list_is_complete():
    assert set(RECIPES) == {*BASES, *ABLATIONS, *(f"mlp-head-{name}" for name in TABLES | PROGRAM)}
    order = list(RECIPES)
    for base in BASES:  # a system's own variants follow it
        family = [name for name in order if name == base or name.startswith(f"{base}-")]
        start = order.index(base)
        assert order[start : start + len(family)] == family


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_says_and_nothing_else(name):
    base = get(max((base for base in BASES if name.startswith(f"{base}-")), key=len))
    changed = {line.split(":")[0] for line in diff(base, get(name))}
    assert changed == ABLATIONS[name] | {"recipe"}


@pytest.mark.parametrize("name", TABLES | PROGRAM)
def test_report_3s_tables(name):
    run, program = get(f"mlp-head-{name}"), name in PROGRAM
    found = (run.model.backbone, run.model.weights, run.model.head, run.model.freeze, run.train.batch)
    assert (*found, run.optim.schedule, run.optim.t_max) == (TABLES | PROGRAM)[name]
    allowed = {"recipe", "model.backbone", "model.weights", "model.head", "model.freeze", "train.batch",
               "train.micro_batch", "optim.lr_batch", "optim.schedule", "optim.t_max", "optim.min_lr"}  # fmt: skip
    allowed |= {"model.freeze_norms", "augment.tta", "train.early_stop"} if program else set()
    assert {line.split(":")[0] for line in diff(get("mlp-head"), run)} <= allowed
    assert run.optim.lr == 1e-4 and run.optim.min_lr == (1e-5 if program else 5e-5)
    assert run.model.freeze_norms == (not (program and run.model.freeze))
    assert (run.train.early_stop, len(run.augment.tta)) == ((21, 4) if program else (3, 3))


def method(name):
    return {field: value for field, value in flat(get(name)).items() if field != "recipe"}


@pytest.mark.parametrize(
    "names",
    [
        ("mlp-head-r50", "mlp-head-r50-default"),
        ("mlp-head-r50-v2weights", "mlp-head-r50-v0-fixed"),
        ("mlp-head-r101-last2", "mlp-head-r101-last2-v1"),
        ("mlp-head-x50-b32", "mlp-head-x50-v1"),
        ("mlp-head-x50-dropout50", "mlp-head-x50-v0"),
        ("mlp-head-r50-v1", "mlp-head-r50-v1-t80"),
    ],
)
def test_a_run_of_several_tables_is_one_run(names):
    assert method(names[0]) == method(names[1])


def test_report_2_adds_its_parts_one_after_another():
    names = ("plain", "mixup-only", "mixup-and-cbam", "mixup-always")
    runs = [*(get(f"cbam-mixup-{name}") for name in names), get("cbam-mixup")]
    found = [(run.augment.mixup and run.augment.mix_probability, run.model.cbam, run.model.dropout3) for run in runs]
    assert found == [(0, (), 0.0), (1.0, (), 0.0), (1.0, (4,), 0.0), (1.0, (4,), 0.2), (0.5, (4,), 0.2)]
    assert {(run.model.freeze, run.model.freeze_norms) for run in runs} == {(("layer1", "layer2"), True)}
    assert not get("cbam-mixup-code").model.freeze_norms


def test_the_values_that_change_in_the_ablations():
    assert get("attention-gate").optim.loss == "mse" and get("attention-gate-ce").optim.loss == "ce"
    assert [get(f"cbam-mixup-cbam{k}").model.cbam for k in (1, 2, 3)] == [(1,), (2,), (3,)]
    assert get("cbam-mixup-code").model.cbam_chained
    assert get("cbam-mixup-resnet50").optim.patience == get("cbam-mixup-resnext50").optim.patience == 2
    assert get("mlp-head").train.early_stop == 3 and get("mlp-head-code").train.early_stop == 21
    assert get("mlp-head").augment.tta == ("hflip", "rotate", "crop")
    assert get("mlp-head-code").augment.tta == ("identity", "hflip", "rotate", "crop")
    assert get("mlp-head-v2-code").model.head == "500 relu 250 relu dropout:0.5"
    assert (get("se-resnext").optim.plateau_on, get("se-resnext").optim.patience) == ("either", 1)
    assert (get("se-resnext-code").optim.plateau_on, get("se-resnext-code").optim.patience) == ("loss", 0)
    assert get("se-resnext-none").optim.schedule == "fixed" and get("se-resnext-none").optim.weight_decay == 0.0


# section.field values of the README's first run and of the reports
SETTINGS = {
    "digits": {
        "data.size": 32, "data.eval_frame": "squash", "augment.frame": "squash", "augment.rotate": 10.0,
        "augment.translate": 0.08, "augment.hflip": 0.0, "optim.lr": 3e-3, "optim.weight_decay": 0.05,
        "optim.schedule": "warmup-cosine", "optim.warmup": 0.5, "train.epochs": 4, "train.batch": 128,
        "model.backbone": "resnext14_8x8d", "model.weights": "none",
    },
    "attention-gate": {
        "data.size": 256, "data.crop_pct": 1.0, "data.normalize": "half", "augment.frame": "center",
        "augment.order": ("hflip", "frame"), "optim.lr": 1e-4, "optim.weight_decay": 0.01, "train.epochs": 100,
        "train.batch": 64, "model.weights": "DEFAULT", "model.gate": 500,
    },
    "cbam-mixup": {
        "seed": 118, "data.size": 224, "data.eval_frame": "squash", "augment.crop_scale": (0.8, 1.0),
        "augment.order": ("frame", "hflip", "rotate", "jitter"), "augment.rotate": 15.0, "augment.hue": 0.2,
        "augment.mixup": 0.2, "augment.mix_probability": 0.5, "optim.betas": (0.9, 0.96), "optim.weight_decay": 0.045,
        "optim.schedule": "plateau", "optim.factor": 0.1, "optim.min_lr": 1e-6, "optim.patience": 3,
        "optim.plateau_on": "loss", "train.epochs": 50, "train.batch": 32, "model.freeze": ("layer1", "layer2"),
    },
    "mlp-head": {
        "seed": 63, "data.eval_frame": "center", "data.crop_pct": 0.875, "augment.crop_scale": (0.08, 1.0),
        "augment.order": ("frame", "hflip", "jitter", "rotate", "affine"), "augment.hue": 0.1, "augment.rotate": 10.0,
        "augment.translate": 0.1, "augment.fill": "mean", "optim.lr": 1e-4, "optim.weight_decay": 1e-3,
        "optim.schedule": "cosine", "optim.t_max": 80, "optim.min_lr": 1e-5, "train.epochs": 100, "train.batch": 64,
        "model.freeze": (), "model.weights": W2,
    },
    "se-resnext": {
        "augment.order": ("blur", "hflip", "rotate", "frame"), "augment.frame": "squash", "augment.blur": 3,
        "augment.rotate": 15.0, "data.eval_frame": "squash", "optim.lr": 1e-4, "optim.weight_decay": 1e-3,
        "optim.factor": 0.65, "train.epochs": 10, "train.batch": 16, "model.weights": "timm",
    },
    "resnet50-mlp": {
        "augment.order": ("hflip", "vflip", "rotate", "affine", "jitter", "randaugment", "frame", "erase"),
        "augment.vflip": 0.2, "augment.zoom": (0.9, 1.1), "augment.randaugment": 2, "augment.randaugment_magnitude": 10,
        "augment.erase": 0.3, "augment.erase_scale": (0.02, 0.1), "augment.mixup": 0.2, "augment.mix_probability": 1.0,
        "optim.lr": 5e-4, "optim.weight_decay": 5e-4, "optim.label_smoothing": 0.1, "optim.factor": 0.5,
        "optim.patience": 3, "optim.min_lr": 0.0, "train.epochs": 100, "train.batch": 64, "data.eval_frame": "squash",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_reports(name):
    found = flat(get(name))
    assert {field: found[field] for field in SETTINGS[name]} == SETTINGS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound(name):
    run = get(name)
    assert run.recipe == name
    assert from_yaml(to_yaml(run)) == run
    assert run.optim.lr_batch == run.train.batch
    plain = name in ("best-small", "best-baseline")
    assert run.optim.decay_norms == (plain or not name.startswith("best"))
    assert run.optim.name == "adamw" and run.track == Run().track
    micro_batch = {64: 16, 32: 8, 16: 8, 128: 16}[run.train.batch]
    whole = name.endswith("-code") or plain
    assert run.train.micro_batch == (run.train.batch if whole else micro_batch)
    report, text = describe()[name]
    assert report.startswith("report ") or (name == "digits" or name.startswith("best"))
    assert text and "\n" not in text and len(text) < 120


def test_every_weights_name_is_known(tmp_path, monkeypatch):
    """Offline with an empty cache, a known name ends in the command that fetches it, an unknown one does not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model in {get(name).model for name in RECIPES if get(name).model.weights != "none"}:
        with pytest.raises(ValueError, match=r"run:\n  (curl -L|hf download)"):
            weight_file(model)


def test_an_unknown_recipe_comes_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'mlp-heads'; did you mean mlp-head or .*`cls recipes` lists"):
        get("mlp-heads")
