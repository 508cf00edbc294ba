"""Any configuration either trains or is rejected by the name of the field that is wrong; nothing ends in a traceback.

FIELDS holds values of every field of the configuration, REJECTS what may be rejected, when, and in which words. An
example is some fields at some values, sometimes with one of the rejected combinations put on top. REJECTS decides what
must come of it, so a run that is rejected without a reason fails as well as one that trains in spite of one.
"""

import contextlib
import io
import json
import math
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageColumn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import train
from cls import recipes
from cls.config import Run, change, flat, from_yaml
from cls.models.backbones import plain
from tests.harness import environment

Values = dict[str, Any]

# --- what there is to train on, and to train ---

# training and validation images; "tall" and "table" have no validation split
SOURCES = {"digits": (1438, 359), "photos": (24, 6), "tall": (24, 0), "table": (24, 0)}

SMALL = "resnext14_8x8d"
STAGED = (SMALL, "timm/test_resnet")  # stem, layer1 to layer4
BATCH_NORM = (*STAGED, "timm/test_efficientnet", "timm/test_byobnet")
# sides of images that a backbone takes, at least from 8 to 64
SIZES: dict[str, Callable[[int], bool]] = {
    **dict.fromkeys((*BATCH_NORM, "timm/test_efficientnet_gn", "timm/test_nfnet"), lambda size: True),
    "timm/test_mambaout": lambda size: True,
    "timm/test_convnext": lambda size: size >= 32,
    "timm/test_convnext3": lambda size: size >= 32,
    "timm/test_vit": lambda size: size % 16 == 0,
    "timm/test_vit2": lambda size: size % 16 == 0,
    "timm/test_vit_relpos": lambda size: size == 160,
}
WORDS = re.compile(r"(0*[1-9][0-9]*|bn|relu|silu|dropout:0?\.[0-9]+)( |$)")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with splits and an unreadable image, one without splits, a saved table, and weights, by name."""
    root = tmp_path_factory.mktemp("sources")
    for split, count in (("photos/train", 8), ("photos/val", 2), ("tall", 8)):
        for label, name in enumerate(("cat", "dog", "eel")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                side = (30 + i, 90) if split == "tall" else (40, 30 + i)
                picture = Image.new("HSV", side, (label * 80, 200, 100 + 10 * i)).convert("RGB")
                picture.save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    (root / "photos" / "train" / "cat" / "0.jpg").write_bytes(b"no image")
    names = [f"{file.parent.name}/{file.name},{file.parent.name}\n" for file in (root / "photos" / "train").glob("*/*")]
    (root / "photos" / "train.csv").write_text("file,animal\n" + "".join(names))
    (root / "photos" / "test").mkdir()
    for i in range(3):
        Image.new("RGB", (33, 31), (80 * i, 0, 0)).save(root / "photos" / "test" / f"{i}.png")

    files = sorted(str(file) for file in (root / "tall").glob("*/*"))
    pictures = [{"bytes": Path(file).read_bytes(), "path": None} for file in files]
    columns = {
        "front": pictures,
        "back": pictures[::-1],
        "animal": [Path(file).parent.name for file in files],
        "coat": [i % 2 for i in range(len(files))],
    }
    features = Features({"front": ImageColumn(decode=False), "back": ImageColumn(decode=False),
                         "animal": Value("string"), "coat": ClassLabel(names=["short", "long"])})  # fmt: skip
    Dataset.from_dict(columns, features=features).save_to_disk(str(root / "table"))
    save_file(plain(SMALL).state_dict(), root / "small.safetensors")
    (root / "mine").mkdir()
    (root / "mine" / "thesis.tex").write_text("mine")
    places = {name: str(root / name) for name in ("photos", "tall", "table", "nowhere", "mine", "small.safetensors")}
    return {"digits": "digits", "": ""} | places


def training_images(values: Values) -> int:
    """Images to train on, by the second formula: a tenth (or data.val_fraction) of each class is held out."""
    images, validation = SOURCES[values["data.path"]]
    first, _, more = values["data.hold_out"].partition("+")
    images += validation if first == "none" else 0
    if not first and not validation:
        classes = {"coat": 2}.get(values["data.label_column"], 3) if values["data.path"] == "table" else 3
        each = images // classes
        images -= classes * min(each - 1, max(1, round(each * values["data.val_fraction"])))
    for part in (first, more):
        if found := re.fullmatch(r"([12])/([23])", part):
            images -= len(range(int(found[1]) - 1, images, int(found[2])))
    return min(images, values["data.limit"] or images)


# --- values that train ---


def among(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def subsets(*values: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), unique=True).map(tuple)


SWITCH = among(False, True)
OPS = ("frame", "hflip", "vflip", "rotate", "affine", "jitter", "randaugment", "trivialaugment", "blur")

# A value of each field that trains unless a combination in REJECTS forbids it. Rates are such that one step cannot
# blow up; None: see the strategy `configurations`.
FIELDS: dict[str, st.SearchStrategy[Any] | None] = {
    "recipe": None,
    "seed": among(0, 1, 118, 2**32, 2**70),
    "out": None,
    "data.path": None,
    "data.copy": among(""),  # the same images elsewhere: test_slurm
    "data.size": None,
    "data.eval_size": None,
    "data.eval_frame": among("center", "squash"),
    "data.crop_pct": among(1.0, 0.875, 0.1),
    "data.normalize": among("auto", "imagenet", "half"),
    "data.image_column": among("", "front", "back"),
    "data.labels": None,
    "data.id_column": None,
    "data.label_column": among("", "animal", "coat"),
    "data.label_pattern": None,
    "data.val_fraction": among(0.1, 0.25, 0.01),
    "data.hold_out": among("", "", "none", "2/3", "+1/2", "none+2/2", "1/2+2/3"),
    "data.limit": None,
    "data.balanced": SWITCH,
    "data.max_corrupt": among(0.0, 0.01, 1.0),
    "data.streaming": among(False),  # wants a validation split and other sources: test_stream
    "data.exact_order": SWITCH,
    "data.workers": among(0),  # as cheap as it gets; other numbers: test_exact
    "augment.order": None,
    "augment.frame": among("crop", "center", "squash"),
    "augment.crop_scale": among((0.08, 1.0), (1.0, 1.0), (0.001, 0.001), (0.8, 1.0)),
    "augment.hflip": among(0.0, 0.5, 1.0),
    "augment.vflip": among(0.0, 0.5, 1.0),
    "augment.rotate": among(0.0, 10.0, 180.0),
    "augment.translate": among(0.0, 0.1, 1.0),
    "augment.zoom": among((1.0, 1.0), (0.9, 1.1), (0.05, 10.0)),
    "augment.brightness": among(0.0, 0.2, 10.0),
    "augment.contrast": among(0.0, 0.2, 10.0),
    "augment.saturation": among(0.0, 0.2, 10.0),
    "augment.hue": among(0.0, 0.1, 0.5),
    "augment.randaugment": among(0, 2, 14),
    "augment.randaugment_magnitude": among(0, 10, 30),
    "augment.trivialaugment": SWITCH,
    "augment.blur": among(0, 1, 3, 99),
    "augment.erase": among(0.0, 0.3, 1.0),
    "augment.erase_scale": among((0.02, 0.33), (1.0, 1.0), (0.001, 0.001)),
    "augment.fill": among("black", "mean"),
    "augment.mixup": among(0.0, 0.2, 1e-8, 1e4),
    "augment.cutmix": among(0.0, 1.0, 1e-8, 1e4),
    "augment.mix_probability": among(0.0, 0.5, 1.0),
    "augment.tta": st.lists(among("identity", "hflip", "rotate", "crop"), max_size=4).map(tuple),
    "model.backbone": None,
    "model.weights": None,
    "model.head": among("", "bn", "8 relu dropout:0.5", "16 bn silu 8", "dropout:.1", "relu relu", "1"),
    "model.gate": among(0, 1, 20),
    "model.cbam": None,
    "model.cbam_chained": SWITCH,
    "model.dropout3": None,
    "model.freeze": None,
    "model.freeze_norms": SWITCH,
    "optim.name": among("adamw", "sgd"),
    "optim.lr": among(1e-3, 1e-4, 1e-6, 1e-30),
    "optim.lr_batch": among(1, 64, 10**9),
    "optim.scale_lr": among("none", "sqrt", "linear"),
    "optim.weight_decay": among(0.0, 0.01, 1.0),
    "optim.decay_norms": SWITCH,
    "optim.head_lr": among(1.0, 10.0, 1e-9),
    "optim.head_epochs": None,
    "optim.stage_decay": among(1.0, 0.7, 2.0),
    "optim.betas": among((0.9, 0.999), (0.0, 0.0), (0.99, 0.0)),
    "optim.clip": among(0.0, 1.0, 1e-9),
    "optim.ema": among(0.0, 0.9, 0.999999),
    "optim.loss": among("ce", "mse"),
    "optim.label_smoothing": None,
    "optim.class_weight": among(0.0, 0.5, 1.0, 3.0),
    "optim.schedule": among("fixed", "cosine", "plateau", "warmup-cosine", "one-cycle"),
    "optim.t_max": among(0, 1, 80),
    "optim.min_lr": None,
    "optim.factor": among(0.0, 0.1, 0.99),
    "optim.patience": among(0, 3),
    "optim.plateau_on": among("loss", "accuracy", "either"),
    "optim.warmup": among(0.0, 0.3, 0.99),
    "train.epochs": among(1, 2, 100, 0.3, 1.05),
    "train.batch": None,
    "train.micro_batch": None,
    "train.max_steps": among(1),
    "train.eval_batch": among(1, 7, 1000),
    "train.save_minutes": among(0.0, 1e-9, 10.0),
    "train.early_stop": among(0, 1, 3),
    "train.early_stop_on": among("loss", "accuracy"),
    "train.early_stop_change": among(0.0, 0.01),
    "train.best_on": among("accuracy", "loss"),
    "train.reduce": among("exact", "fast"),
    "train.deterministic": SWITCH,
    "train.precision": among("auto", "fp32", "bf16"),
    "train.device": among("auto", "cpu"),
    "train.channels_last": among("auto", False, True),
    "train.compile": among(False),  # true costs 55 s: once, in the long test
    "train.keep": among(1, 2, 9),
    "track.wandb": among("disabled", "auto"),
    "track.project": among("cls", "another project"),
    "track.name": among("", "a name, with: signs/and\u00fcmlaut"),
    "track.artifact": among("auto", "always", "never"),
    "track.tensorboard": SWITCH,
    "track.ledger": SWITCH,
}

CHEAP: Values = {
    "data.path": "photos", "data.size": 16, "data.limit": 0, "data.workers": 0, "model.backbone": "timm/test_resnet",
    "model.weights": "none", "model.cbam": (), "model.dropout3": 0.0, "model.freeze": (), "train.batch": 4,
    "train.micro_batch": 2, "train.max_steps": 1, "train.eval_batch": 8, "track.wandb": "disabled",
}  # fmt: skip
"""What every example states: no recipe's own value trains here within a second."""


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, Values]:
    """A recipe's name and the fields that its command states; mostly a run that trains."""
    name = draw(among("digits", "attention-gate", "cbam-mixup", "mlp-head-code", "se-resnext", "resnet50-mlp"))
    values = dict(CHEAP)
    share = draw(among(0, 3, 6, 9))  # tenths of the free fields that are stated
    for field, strategy in FIELDS.items():
        if strategy is not None and (field in CHEAP or draw(st.integers(0, 9)) < share):
            values[field] = draw(strategy)
    values["model.backbone"] = draw(among(*SIZES))
    sizes = [size for size in (8, 9, 16, 24, 32, 33, 48, 64, 160) if SIZES[values["model.backbone"]](size)]
    values["data.size"] = draw(among(*sizes[:8]))
    values["data.eval_size"] = draw(among(0, 0, *sizes[:8]))
    values["data.path"] = draw(among("photos", "tall", "table", "digits"))
    values["data.limit"] = draw(among(12, 20, 40)) if values["data.path"] == "digits" else draw(among(0, 0, 6, 99))
    values |= {"data.labels": (), "data.id_column": "", "data.label_pattern": ""}
    if values["data.path"] == "photos" and (kind := draw(among("folders", "file", "names"))) != "folders":
        values["data.label_column"] = draw(among("", "animal")) if kind == "file" else ""
        values["data.label_pattern"] = r"([0-9])\." if kind == "names" else ""
        if kind == "file":
            values |= {"data.labels": ("train.csv",), "data.id_column": draw(among("", "file"))}
    if values["data.path"] == "table":
        values["data.image_column"] = draw(among("front", "back"))
    if values["model.backbone"] == SMALL:
        values["model.weights"] = draw(among("none", "small.safetensors"))
    if values["model.backbone"] in STAGED:
        values["model.cbam"] = draw(among((), (4,), (3, 1), (1, 2, 3, 4)))
        values["model.dropout3"] = draw(among(0.0, 0.2, 0.99))
        values["model.freeze"] = draw(subsets("stem", "layer1", "layer2", "layer4"))
    if values.get("data.hold_out") == "none":
        values |= {
            "optim.schedule": draw(among("fixed", "cosine", "warmup-cosine", "one-cycle")),
            "train.early_stop": 0,
        }
    effective = flat(run_of(name, values))
    if effective["optim.warmup"] >= effective["train.epochs"]:
        values["optim.warmup"] = 0.0
    if draw(SWITCH):
        low = [rate for rate in (0.0, 1e-31, 1e-6) if rate < effective["optim.lr"]]
        values["optim.min_lr"] = draw(among(*low, effective["optim.lr"]))
    elif effective["optim.min_lr"] > effective["optim.lr"]:
        values["optim.min_lr"] = 0.0
    if effective["optim.loss"] == "mse" or draw(SWITCH):
        values["optim.label_smoothing"] = 0.0 if effective["optim.loss"] == "mse" else draw(among(0.0, 0.1, 1.0))
    if effective["model.weights"] != "none" and effective["optim.warmup"] < effective["train.epochs"] - 0.5:
        values["optim.head_epochs"] = draw(among(0.0, 0.5))
    norms = has_batch_norm(effective)
    images = training_images(effective)
    micro = draw(st.integers(2 if norms else 1, 4))
    values["train.micro_batch"] = micro
    values["train.batch"] = micro * draw(st.integers(1, min(4, images // micro)))
    if draw(SWITCH) or not wanted_ops(effective) <= set(effective["augment.order"]):
        values["augment.order"] = (*draw(st.permutations(OPS)), "erase")
    if draw(among(False, False, False, True)):
        values |= draw(among(*draw(among(*REJECTS)).wrong))
    return name, values


# --- values that are rejected ---


@dataclass(frozen=True)
class Reject:
    when: Callable[[Values], bool]
    words: str
    """Regular expression of the message."""
    wrong: tuple[Values, ...]
    """Examples, to be put over values that train."""


def number(field: str, good: Callable[[Any], bool], words: str, *wrong: Any) -> Reject:
    """One number out of its range; nan and infinity have a message of their own."""

    def when(values: Values) -> bool:
        return math.isfinite(values[field]) and not good(values[field])

    return Reject(when, rf"^{re.escape(field)} .*{words}", tuple({field: value} for value in wrong))


def pair(field: str, top: float, *wrong: tuple[float, float]) -> Reject:
    def when(values: Values) -> bool:
        low, high = values[field]
        return not 0 < low <= high <= top

    return Reject(when, rf"^{re.escape(field)} .*0 < from <= to|^{re.escape(field)} must be two ascending",
                   tuple({field: value} for value in wrong))  # fmt: skip


def has_batch_norm(values: Values) -> bool:
    """Some BatchNorm is in train mode: in a backbone that is not wholly in eval mode, or in the head."""
    frozen = {"stem", "layer1", "layer2", "layer3", "layer4"} <= set(values["model.freeze"])
    frozen = frozen and values["model.freeze_norms"]
    return (values["model.backbone"] in BATCH_NORM and not frozen) or "bn" in values["model.head"].split()


def wanted_ops(values: Values) -> set[str]:
    a = {field.removeprefix("augment."): value for field, value in values.items() if field.startswith("augment.")}
    wanted = {
        name for name in ("hflip", "vflip", "rotate", "randaugment", "trivialaugment", "blur", "erase") if a[name]
    }
    if a["translate"] or a["zoom"] != (1.0, 1.0):
        wanted.add("affine")
    if a["brightness"] or a["contrast"] or a["saturation"] or a["hue"]:
        wanted.add("jitter")
    return wanted | {"frame"}


def erase_is_followed(values: Values) -> bool:
    order, wanted = values["augment.order"], wanted_ops(values)
    return "erase" in wanted & set(order) and [name for name in order if name in wanted][-1] != "erase"


def known_head(head: str) -> bool:
    return all(WORDS.fullmatch(word) for word in head.split())


def fields(pattern: str, wanted: type) -> list[str]:
    return [name for name, value in flat(Run()).items() if re.match(pattern, name) and type(value) is wanted]


POSITIVE = ("data.size", "train.epochs", "train.batch", "train.micro_batch", "train.eval_batch", "train.keep",
            "optim.lr", "optim.lr_batch", "optim.head_lr", "optim.stage_decay")  # fmt: skip
NOT_NEGATIVE = ("seed", "data.limit", "data.eval_size", "augment.mixup", "augment.cutmix", "model.gate",
                "optim.weight_decay",
                "optim.clip", "optim.class_weight", "optim.t_max", "optim.min_lr", "optim.patience", "optim.warmup",
                "train.max_steps", "train.early_stop", "train.save_minutes", "optim.head_epochs",
                "train.early_stop_change")  # fmt: skip
SHARES = ("data.max_corrupt", "augment.hflip", "augment.vflip", "augment.translate", "augment.erase",
          "augment.mix_probability", "optim.label_smoothing")  # fmt: skip
FLOATS = fields("", float)
UNKNOWN = ("timm/test_resnets", "resnext14", "test_vit", "", "timm/")
UNUSABLE = {"timm/dla46_c": "is no linear layer", "timm/deit_tiny_distilled_patch16_224": "no single output layer"}

REJECTS = [
    Reject(
        lambda v: any(not math.isfinite(v[name]) for name in FLOATS),
        f"^({'|'.join(map(re.escape, FLOATS))}) is (nan|inf|-inf): it must be a finite number",
        tuple({name: value} for name, value in zip(FLOATS, [math.nan, math.inf, -math.inf] * 99, strict=False)),
    ),
    *(number(name, lambda x: x > 0, "must be greater than 0", 0, -1) for name in POSITIVE),
    *(number(name, lambda x: x >= 0, "must be 0 or more", -1) for name in NOT_NEGATIVE),
    *(number(name, lambda x: 0 <= x <= 1, "must be from 0 to 1", -0.1, 1.1) for name in SHARES),
    *(number(name, lambda x: 0 <= x < 1, "must be from 0 to below 1", -0.1, 1.0)
      for name in ("model.dropout3", "optim.ema", "optim.factor")),
    number("augment.rotate", lambda x: 0 <= x <= 180, "from 0 to 180", -1.0, 181.0),
    *(number(f"augment.{name}", lambda x: 0 <= x <= 10, "from 0 to 10", -0.1, 10.1)
      for name in ("brightness", "contrast", "saturation")),
    number("augment.hue", lambda x: 0 <= x <= 0.5, "from 0 to 0.5", -0.1, 0.6),
    number("augment.randaugment", lambda x: 0 <= x <= 14, "from 0 to 14", -1, 15),
    number("augment.randaugment_magnitude", lambda x: 0 <= x <= 30, "from 0 to 30", -1, 31),
    number("augment.blur", lambda x: x == 0 or (x > 0 and x % 2), "must be 0 or odd", 2, -3),
    number("data.crop_pct", lambda x: 0 < x <= 1, "above 0 and at most 1", 0.0, 1.1),
    number("data.val_fraction", lambda x: 0 < x < 1, "between 0 and 1", 0.0, 1.0),
    number("data.workers", lambda x: x >= -1, "-1 .automatic., or 0 or more", -2),
    *(pair(f"augment.{name}", top, (0.0, 1.0), (0.5, 0.4), (0.5, top + 0.1), (math.nan, 1.0), (0.1, math.inf))
      for name, top in (("crop_scale", 1.0), ("erase_scale", 1.0), ("zoom", 10.0))),
    Reject(lambda v: not all(0 <= x < 1 for x in v["optim.betas"]), r"^optim\.betas .* from 0 to below 1",
            tuple({"optim.betas": x} for x in ((-0.1, 0.9), (0.9, 1.0), (math.nan, 0.9)))),
    # combinations
    Reject(lambda v: v["train.micro_batch"] > 0 and v["train.batch"] % v["train.micro_batch"] != 0,
            r"^train\.micro_batch is \d+, which does not divide train\.batch \d+: use --train\.micro-batch \d",
            ({"train.batch": 5, "train.micro_batch": 2}, {"train.batch": 2, "train.micro_batch": 4})),
    Reject(lambda v: v["data.path"] in SOURCES and 0 < v["data.val_fraction"] < 1
            and v["train.batch"] > training_images(v),
            r"^train\.batch is \d+ but there are only \d+ training images: use --train\.batch \d",
            ({"train.batch": 1440}, {"data.limit": 1, "train.batch": 2, "train.micro_batch": 2})),
    Reject(lambda v: v["train.micro_batch"] == 1 and has_batch_norm(v), r"^train\.micro_batch is 1: BatchNorm",
            ({"train.micro_batch": 1, "model.head": "bn"},
             {"train.micro_batch": 1, "model.backbone": "timm/test_byobnet"})),
    Reject(lambda v: v["train.compile"] and v["train.reduce"] == "exact", r"^train\.compile .*--train\.reduce fast",
            ({"train.compile": True, "train.reduce": "exact"},)),
    Reject(lambda v: v["optim.head_epochs"] > v["train.epochs"], r"^optim\.head_epochs is .*, more than",
            ({"optim.head_epochs": 1.5, "train.epochs": 1},)),
    Reject(lambda v: v["optim.head_epochs"] > 0 and v["model.weights"] == "none",
            r"^optim\.head_epochs trains .* model\.weights is none",
            ({"optim.head_epochs": 0.5, "model.weights": "none"},)),
    Reject(lambda v: v["optim.schedule"] == "warmup-cosine"
            and v["optim.warmup"] >= v["train.epochs"] - v["optim.head_epochs"] > 0,
            r"^optim\.warmup is .* epochs, not fewer than train\.epochs",
            ({"optim.schedule": "warmup-cosine", "optim.warmup": 1.0, "train.epochs": 1},)),
    Reject(lambda v: v["optim.min_lr"] > v["optim.lr"], r"^optim\.min_lr is .*, above optim\.lr",
            ({"optim.min_lr": 0.5},)),
    Reject(lambda v: v["optim.loss"] == "mse" and v["optim.label_smoothing"] != 0,
            r"^optim\.label_smoothing applies to cross entropy",
            ({"optim.loss": "mse", "optim.label_smoothing": 0.1},)),
    Reject(lambda v: bool(v["data.labels"] and v["data.label_pattern"]),
            r"^data\.labels and data\.label_pattern are two sources",
            ({"data.labels": ("a.csv",), "data.label_pattern": "(a)"},)),
    Reject(lambda v: bool(v["data.id_column"] and not v["data.labels"]), r"^data\.id_column names a column",
            ({"data.id_column": "id", "data.labels": ()},)),
    Reject(lambda v: bool(v["data.labels"] or v["data.label_pattern"]) and v["data.path"] in ("digits", "table"),
            r"^data\.labels and data\.label_pattern are for (image files|folders of image files)",
            tuple({"data.path": path, "data.label_pattern": "(a)", "data.labels": (), "data.label_column": ""}
                  for path in ("digits", "table"))),
    Reject(lambda v: v["data.label_pattern"] in ("(", "a", "(a)(b)"), r"^data\.label_pattern is '.*'",
            tuple({"data.label_pattern": pattern, "data.label_column": ""} for pattern in ("(", "a", "(a)(b)"))),
    Reject(lambda v: not re.fullmatch(r"(none|[12]/[23])?(\+[12]/[23])*", v["data.hold_out"]),
            r"^data\.hold_out is '.*': it must be empty, none, or a part of train such as 1/5",
            tuple({"data.hold_out": text}
                  for text in ("all", "1/1", "0/2", "3/2", "1/2/3", "+", "+none", "1/2 ", "-1/2"))),
    Reject(lambda v: v["data.hold_out"] == "none" and v["optim.schedule"] == "plateau",
            r"^optim\.schedule plateau follows the validation",
            ({"data.hold_out": "none", "optim.schedule": "plateau"},)),
    Reject(lambda v: v["data.hold_out"] == "none" and v["train.early_stop"] > 0,
            r"^train\.early_stop follows the validation",
            ({"data.hold_out": "none", "train.early_stop": 3},)),
    # augmentation
    Reject(lambda v: len(set(v["augment.order"])) < len(v["augment.order"]),
            r"^augment\.order: each operation at most once", ({"augment.order": ("frame", "hflip", "frame")},)),
    Reject(lambda v: not wanted_ops(v) <= set(v["augment.order"]),
            r"^augment\.order: '\w+' is used, but not in the order",
            ({"augment.order": ()}, {"augment.order": ("frame",), "augment.hflip": 0.5})),
    Reject(erase_is_followed, r"^augment\.order: 'erase' must come last",
            ({"augment.order": ("erase", *OPS), "augment.erase": 0.5},)),
    # model
    Reject(lambda v: v["model.backbone"] in UNKNOWN, r"^model\.backbone: unknown backbone",
            tuple({"model.backbone": name} for name in UNKNOWN)),
    *(Reject(lambda v, name=name: v["model.backbone"] == name, rf"^model\.backbone: .*{words}",
              ({"model.backbone": name},)) for name, words in UNUSABLE.items()),
    Reject(lambda v: v["model.backbone"] in SIZES and v["data.size"] > 0
            and not SIZES[v["model.backbone"]](v["data.size"]),
            r"^model\.backbone: timm/test_\w+ cannot take images of data\.size \d",
            ({"model.backbone": "timm/test_vit", "data.size": 24},
             {"model.backbone": "timm/test_vit_relpos", "data.size": 32},
             {"model.backbone": "timm/test_convnext", "data.size": 8})),
    Reject(lambda v: v["model.backbone"] in SIZES and v["data.eval_size"] > 0
            and not SIZES[v["model.backbone"]](v["data.eval_size"]),
            r"^model\.backbone: timm/test_\w+ cannot take images of data\.eval_size \d",
            ({"model.backbone": "timm/test_vit", "data.size": 32, "data.eval_size": 24},)),
    Reject(lambda v: v["model.weights"] not in ("none", "small.safetensors", "./nothing.pth"),
            r"^model\.weights: .* has no weights .* it takes none", ({"model.weights": "IMAGENET1K_V9"},)),
    Reject(lambda v: v["model.weights"] == "./nothing.pth", r"^model\.weights: .*no such file",
            ({"model.weights": "./nothing.pth"},)),
    Reject(lambda v: v["model.weights"] == "small.safetensors" and v["model.backbone"] != SMALL,
            r"small\.safetensors: does not fit the model",
            ({"model.weights": "small.safetensors", "model.backbone": "timm/test_resnet"},)),
    Reject(lambda v: not known_head(v["model.head"]), r"^model\.head: unknown word",
            tuple({"model.head": words} for words in ("8 gelu", "dropout", "dropout:1.5", "-8", "8.5", "0"))),
    Reject(lambda v: len(set(v["model.cbam"]) & {1, 2, 3, 4}) < len(v["model.cbam"]),
            r"^model\.cbam is .*: it must be different stages from 1 to 4",
            tuple({"model.cbam": stages} for stages in ((7,), (0,), (2, 2), (-1, 3)))),
    Reject(lambda v: v["model.backbone"] not in STAGED and v["model.cbam"] != (), r"^model\.cbam: .* has no stage",
            ({"model.backbone": "timm/test_vit", "data.size": 16, "model.cbam": (4,)},)),
    Reject(lambda v: v["model.backbone"] not in STAGED and v["model.dropout3"] != 0, r"^model\.dropout3: .* no stage",
            ({"model.backbone": "timm/test_convnext", "data.size": 32, "model.dropout3": 0.5},)),
    Reject(lambda v: not set(v["model.freeze"]) <= {"stem", "layer1", "layer2", "layer3", "layer4", "fc"}
            or (v["model.backbone"] not in STAGED and v["model.freeze"] != ()), r"^model\.freeze: no part named",
            ({"model.freeze": ("layer9",)}, {"model.backbone": "timm/test_vit", "model.freeze": ("layer1",)})),
    Reject(lambda v: {"stem", "layer1", "layer2", "layer3", "layer4", "fc"} == set(v["model.freeze"])
            and v["model.cbam"] == (), r"^model\.freeze: .* leaves nothing to train",
            ({"model.freeze": ("stem", "layer1", "layer2", "layer3", "layer4", "fc"), "model.cbam": (),
              "model.backbone": SMALL},)),
    # where it runs, what it reads and where it writes
    Reject(lambda v: v["train.device"] == "cuda", r"^train\.device is cuda but this machine shows no GPU",
            ({"train.device": "cuda"},)),
    Reject(lambda v: v["track.wandb"] == "online", r"^track\.wandb is online .* no W&B key",
            ({"track.wandb": "online"},)),
    Reject(lambda v: v["data.path"] == "", r"^data\.path is empty", ({"data.path": ""},)),
    Reject(lambda v: v["data.path"] in ("nowhere", "mine"), r"^data\.path: (there is no file or folder|.* holds no)",
            ({"data.path": "nowhere"}, {"data.path": "mine"})),
    *(Reject(lambda v, field=field, known=known: v["data.path"] == "table" and v[field] not in known,
              rf"^{re.escape(field)}[: ]", ({"data.path": "table", field: "side"},))
      for field, known in (("data.image_column", ("front", "back")), ("data.label_column", ("", "animal", "coat")))),
    Reject(lambda v: v["out"] == "mine", r"^out: .* holds other files", ({"out": "mine"},)),
    Reject(lambda v: v["recipe"] == "another", r"^recipe is another: the recipe is the first word",
            ({"recipe": "another"},)),
]  # fmt: skip


# --- one example ---


def run_of(name: str, values: Values) -> Run:
    """The run that a command means."""
    run = recipes.get(name)
    top = {field: value for field, value in values.items() if "." not in field}
    for field, value in values.items():
        section, _, key = field.partition(".")
        run = change(run, **{section: {key: value}}) if key else run
    return replace(run, **top)


def command(name: str, values: Values) -> list[str]:
    words = [name]
    for field, value in values.items():
        option = f"--{field.replace('_', '-')}"
        if isinstance(value, tuple):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return words


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A run changes signals, threads, kernels, the generator and accelerate's singletons; other tests share them."""
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    generator, variables = torch.default_generator.get_state(), dict(os.environ)
    clean = environment(WANDB_MODE="disabled", NETRC="/dev/null")
    singletons = (AcceleratorState, GradientState, PartialState)
    states = [dict(state._shared_state) for state in singletons]  # of the Accelerators that other tests hold
    try:
        for state in singletons:
            state._shared_state.clear()
        os.environ.clear()
        os.environ.update(clean)
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in signals.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.default_generator.set_state(generator)
        for state, kept in zip(singletons, states, strict=True):
            state._shared_state.clear()
            state._shared_state.update(kept)


def start(argv: list[str]) -> tuple[object, str]:
    """Exit status and what was said on standard error."""
    said, ignored = io.StringIO(), io.StringIO()
    with undisturbed(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(ignored):
        try:
            train.main(argv)
        except SystemExit as left:
            return left.code, said.getvalue()
    return None, said.getvalue()


def judge(name: str, values: Values, sources: dict[str, str]) -> bool:
    """Start it and hold what comes of it against REJECTS; True if it trained."""
    meant = run_of(name, values)
    expected = flat(meant) | ({"recipe": name} if "recipe" not in values else {})
    reasons = [rejection.words for rejection in REJECTS if rejection.when(expected)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(sources["mine"] if values.get("out") else f"{folder}/run")
        real = {"data.path": sources[values["data.path"]], "out": str(out)}
        if values["model.weights"] == "small.safetensors":
            real["model.weights"] = sources["small.safetensors"]
        argv = command(name, values | real)
        code, said = start(argv)
        shown = f"train.py {' '.join(argv)}\n{said[-3000:]}"
        if reasons:
            assert code == 2, f"not rejected, though {reasons}: {code}\n{shown}"
            message = said.partition("user error: ")[2].strip()
            assert any(re.search(words, message) for words in reasons), (
                f"rejected in other words than {reasons}\n{shown}"
            )
            assert "Traceback" not in said, shown
            if values.get("out"):
                assert os.listdir(out) == ["thesis.tex"]
                return False
            record = json.loads((out / "exit.json").read_text())
            assert (record["outcome"], record["step"], record["reason"]) == ("user_error", 0, message), shown
            return False
        record = json.loads((out / "exit.json").read_text())
        assert (code, record["outcome"], record["step"]) == (0, "done", 1), f"{record}\n{shown}"
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert len(losses) == 1 and math.isfinite(losses[0]), f"{rows}\n{shown}"
        assert (out / "best" / "model.safetensors").is_file(), shown
        # the command line arrived as it was meant
        kept = from_yaml((out / "config.yaml").read_text())
        precision = "fp32" if meant.train.precision == "auto" else meant.train.precision
        layout = True if meant.train.channels_last == "auto" else meant.train.channels_last
        resolved = {"precision": precision, "channels_last": layout}
        assert flat(kept) == flat(change(meant, train=resolved)) | real, shown
    return True


# --- the tests ---


def test_every_field_has_values() -> None:
    assert set(FIELDS) == set(flat(Run())), "a new field needs values here, and REJECTS of its bad ones"
    assert set(CHEAP) <= set(FIELDS)


WRONG = [(rejection, wrong) for rejection in REJECTS for wrong in rejection.wrong]


@pytest.mark.parametrize(("rejection", "wrong"), WRONG, ids=lambda item: str(item) if isinstance(item, dict) else "")
def test_every_rejection_of_the_table_happens(rejection: Reject, wrong: Values, sources: dict[str, str]) -> None:
    values = CHEAP | {"augment.order": (*OPS, "erase")} | wrong
    assert rejection.when(flat(run_of("digits", values)))
    assert not judge("digits", values, sources)


@pytest.mark.parametrize(
    "values",
    [
        # BatchNorm that is wholly frozen uses its own statistics: one image is enough
        {"model.freeze": ("stem", "layer1", "layer2", "layer3", "layer4"), "train.micro_batch": 1},
        # only what has no pretrained values is left to train
        {"model.freeze": ("stem", "layer1", "layer2", "layer3", "layer4", "fc"), "model.cbam": (2,)},
        {"train.batch": 24, "train.micro_batch": 24, "train.epochs": 1},
        {"data.size": 1},
        {"data.limit": 2, "train.batch": 2},
        {"train.epochs": 1e30, "data.balanced": True},
        {"train.epochs": 0.01, "data.hold_out": "none", "optim.schedule": "cosine", "augment.tta": ("hflip",)},
    ],
    ids=str,
)
def test_borders_that_train(values: Values, sources: dict[str, str]) -> None:
    assert judge("digits", CHEAP | {"optim.warmup": 0.3} | values, sources)


def explore(examples: int, sources: dict[str, str]) -> list[Values]:
    """Judge so many configurations; all fields of those that trained. At least 60 % do."""
    trained: list[Values] = []
    seen: list[Values] = []

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(configurations())
    def each(example: tuple[str, Values]) -> None:
        seen.append(example[1])
        if judge(*example, sources):
            trained.append(flat(run_of(*example)))

    each()
    assert len(seen) >= examples
    assert len(trained) >= 0.6 * len(seen), f"{len(trained)} of {len(seen)} examples trained"
    return trained


def test_some_configurations(sources: dict[str, str]) -> None:
    explore(3, sources)


@pytest.mark.integration
def test_more_configurations(sources: dict[str, str]) -> None:
    explore(8, sources)


@pytest.mark.soak
def test_hundreds_of_configurations(sources: dict[str, str]) -> None:
    """Every field was at another value than its default in some run that trained."""
    trained = explore(300, sources)
    compiled = CHEAP | {"train.compile": True, "train.reduce": "fast"}
    assert judge("digits", compiled, sources)
    trained.append(flat(run_of("digits", compiled)))
    default = flat(Run())
    moved = {field for values in trained for field, value in values.items() if value != default[field]}
    assert moved | {"out"} == set(default)  # every run has its --out
    backbones, paths = ({values[field] for values in trained} for field in ("model.backbone", "data.path"))
    assert backbones == set(SIZES) and paths == set(SOURCES)


WRONG_TYPES = [
    ("--optim.lrr=3", "--optim.lr"),
    ("--train.microbatch=3", "--train.micro-batch"),
    ("--optim.lr=fast", "--optim.lr"),
    ("--train.batch=1.5", "--train.batch"),
    ("--optim.name=adam", "--optim.name"),
    ("--data.balanced=maybe", "--data.balanced"),
    ("--optim.betas=0.9", "--optim.betas"),
    ("--augment.order=flip", "--augment.order"),
    ("--augment.tta=vflip", "--augment.tta"),
    ("--model.cbam=four", "--model.cbam"),
    ("--train.precision=fp16", "--train.precision"),
    ("--optim.schedule=step", "--optim.schedule"),
]


@pytest.mark.parametrize(("word", "named"), WRONG_TYPES)
def test_wrong_types_name_the_nearest_field(word: str, named: str, tmp_path: Path) -> None:
    code, said = start(["digits", word, "--out", str(tmp_path / "run")])
    assert code == 2 and re.search(rf"{named}(?![\w-])", said), said
    assert "Traceback" not in said
    record = json.loads((tmp_path / "run" / "exit.json").read_text())
    assert (record["outcome"], record["code"], record["step"]) == ("user_error", 2, 0)


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    code, said = start(["mlp-haed", "--out", str(tmp_path / "run")])
    assert code == 2 and "unknown recipe 'mlp-haed'; did you mean mlp-head" in said and "Traceback" not in said


def test_the_number_of_digits_is_scikit_learns() -> None:
    """Of each class about a fifth is validation; the table above counts on the sum."""
    from sklearn.datasets import load_digits

    counts = np.bincount(load_digits().target)
    held = sum(round(count / 5) for count in counts)
    assert SOURCES["digits"] == (1797 - held, held)
