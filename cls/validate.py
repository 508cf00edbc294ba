"""Values and combinations that cannot train: rejected by the field's name before anything is built or written."""

import math
import re
from collections.abc import Callable
from typing import Any

from cls.config import Augment, Data, Run, flat
from cls.runtime.paths import name_problem


def _ascending(most: float) -> Callable[[tuple[float, float]], bool]:
    return lambda pair: 0 < pair[0] <= pair[1] <= most


# what a field must be, the test, and the fields: every number of a run is here once
RULES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("greater than 0", lambda x: x > 0, (
        "data.size", "train.epochs", "train.batch", "train.micro_batch", "train.eval_batch", "train.keep",
        "optim.lr", "optim.lr_batch", "optim.head_lr", "optim.stage_decay")),
    ("0 or more", lambda x: x >= 0, (
        "seed", "data.limit", "data.eval_size", "augment.mixup", "augment.cutmix", "model.gate", "optim.weight_decay",
        "optim.clip", "optim.class_weight", "optim.t_max", "optim.min_lr", "optim.patience", "optim.warmup",
        "optim.head_epochs", "train.early_stop_change",
        "train.max_steps", "train.early_stop", "train.save_minutes")),
    ("from 0 to 1", lambda x: 0 <= x <= 1, (
        "data.max_corrupt", "augment.hflip", "augment.vflip", "augment.translate", "augment.erase",
        "augment.mix_probability", "optim.label_smoothing")),
    ("from 0 to below 1", lambda x: 0 <= x < 1, ("model.dropout3", "optim.ema", "optim.factor")),
    ("from 0 to 180", lambda x: 0 <= x <= 180, ("augment.rotate",)),
    ("from 0 to 10", lambda x: 0 <= x <= 10, ("augment.brightness", "augment.contrast", "augment.saturation")),
    ("from 0 to 0.5", lambda x: 0 <= x <= 0.5, ("augment.hue",)),
    ("from 0 to 14", lambda x: 0 <= x <= 14, ("augment.randaugment",)),
    ("from 0 to 30", lambda x: 0 <= x <= 30, ("augment.randaugment_magnitude",)),
    ("0 or odd", lambda x: x == 0 or (x > 0 and x % 2 == 1), ("augment.blur",)),
    ("two shares of the area, 0 < from <= to <= 1", _ascending(1), ("augment.crop_scale", "augment.erase_scale")),
    ("0 < from <= to <= 10", _ascending(10), ("augment.zoom",)),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("data.crop_pct",)),
    ("between 0 and 1", lambda x: 0 < x < 1, ("data.val_fraction",)),
    ("-1 (automatic), or 0 or more", lambda x: x >= -1, ("data.workers",)),
    ("two numbers from 0 to below 1", lambda pair: all(0 <= x < 1 for x in pair), ("optim.betas",)),
    ("different stages from 1 to 4", lambda x: len(set(x)) == len(x) and set(x) <= {1, 2, 3, 4}, ("model.cbam",)),
)  # fmt: skip


def check(run: Run) -> None:
    """ValueError naming the field, what it is and what it may be."""
    values = flat(run)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: it must be a finite number")
        for text in (value,) if isinstance(value, str) else value if name == "data.labels" else ():
            # bytes of a path that are no UTF-8 are lone surrogates in Python
            if text.encode("utf-8", "ignore").decode() != text:
                raise ValueError(f"{name} is {text!a}: it {name_problem().replace('is not', 'must be', 1)}")
    _check_ranges(values)
    _check_labels(run.data)
    _check_hold_out(run)
    _check_order(run.augment)
    _combinations(run)


def check_data(data: Data) -> None:
    """ValueError for numbers out of range and for label options that contradict each other, the data or themselves."""
    _check_ranges({f"data.{name}": value for name, value in vars(data).items()})
    _check_labels(data)


def _check_ranges(values: dict[str, Any]) -> None:
    for rule, good, names in RULES:
        for name in names:
            if name in values and not good(values[name]):
                raise ValueError(f"{name} is {values[name]}: it must be {rule}")


def _check_labels(data: Data) -> None:
    if data.labels and data.label_pattern:
        raise ValueError("data.labels and data.label_pattern are two sources of the same labels: set one of them")
    if data.id_column and not data.labels:
        raise ValueError("data.id_column names a column of the label files, but there are none: add --data.labels FILE")
    if data.label_pattern and data.label_column:
        raise ValueError("data.label_column names a column, but data.label_pattern reads file names: set one of them")
    if data.own_labels and data.path == "digits":
        raise ValueError("data.labels and data.label_pattern are for image files, but data.path is the embedded digits")
    if not all(data.labels):
        raise ValueError(f"data.labels is {' '.join(map(repr, data.labels))}: a file's name must not be empty")
    try:
        groups = re.compile(data.label_pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"data.label_pattern is {data.label_pattern!r}, no regular expression: {error}") from None
    if data.label_pattern and groups != 1:
        raise ValueError(
            f"data.label_pattern is {data.label_pattern!r} with {groups} groups: put ( ) around the class alone, and "
            "(?: ) around the rest, as in '(.+)_[0-9]+'"
        )


def _check_hold_out(run: Run) -> None:
    text = run.data.hold_out
    first, *more = text.split("+")
    for part in [*more, *([first] if first not in ("", "none") else [])]:
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
        if not found or int(found[2]) < 2 or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"data.hold_out is {text!r}: it must be empty, none, or a part of train such as 1/5 (1/5 to 5/5); "
                "+1/20 after any of them takes a part of what is left"
            )
    if text and run.data.streaming:
        raise ValueError(f"data.hold_out {text} picks single images, which data.streaming cannot: set one of them")
    if run.data.validates:
        return
    without = "data.hold_out none leaves no image to validate"
    if run.optim.schedule == "plateau":
        raise ValueError(f"optim.schedule plateau follows the validation, and {without}: use another, such as cosine")
    if run.train.early_stop:
        raise ValueError(f"train.early_stop follows the validation, and {without}: add --train.early-stop 0")


def _check_order(augment: Augment) -> None:
    order = augment.order
    if repeated := sorted({name for name in order if order.count(name) > 1}):
        raise ValueError(f"augment.order: each operation at most once, found {', '.join(repeated)} more often")
    if missing := [name for name in augment.active if name not in order]:
        after = sorted([*order, *missing], key=lambda one: one == "erase")  # which must be the last
        raise ValueError(
            f"augment.order: {missing[0]!r} is used, but not in the order {' '.join(order)}: "
            f"use --augment.order {' '.join(after)}"
        )
    last = augment.ordered[-1]
    if augment.erase and last != "erase":  # its noise is added on the device, after all that a worker does
        raise ValueError(f"augment.order: 'erase' must come last, but {last!r} follows it in {order}")


def _combinations(run: Run) -> None:
    train = run.train
    if train.batch % train.micro_batch:
        raise ValueError(
            f"train.micro_batch is {train.micro_batch}, which does not divide train.batch {train.batch}: "
            f"use --train.micro-batch {_divisor(train.batch, train.micro_batch)}"
        )
    if run.data.streaming and run.data.balanced:
        raise ValueError("data.balanced draws from all classes at once, which data.streaming cannot: set one of them")
    if run.data.streaming and run.data.limit:
        raise ValueError("data.limit picks single images, which data.streaming cannot: use train.max_steps instead")
    if run.data.streaming and run.data.path == "digits":
        raise ValueError("data.streaming reads files block by block, but data.path is the embedded digits: set it off")
    if train.compile and train.reduce == "exact":
        raise ValueError("train.compile is not proven to give the same bits: add --train.reduce fast")
    _check_phases(run)
    if run.optim.min_lr > (lr := run.optim.learning_rate(train.batch)):
        scaled = "" if lr == run.optim.lr else f", which for train.batch {train.batch} is {lr:g}"
        raise ValueError(
            f"optim.min_lr is {run.optim.min_lr}, above optim.lr {run.optim.lr}{scaled}: the rate would rise"
        )
    if run.optim.loss == "mse" and run.optim.label_smoothing:
        raise ValueError("optim.label_smoothing applies to cross entropy: set it to 0 with optim.loss mse")


def _check_phases(run: Run) -> None:
    optim, epochs = run.optim, run.train.epochs
    if optim.head_epochs > epochs:
        raise ValueError(
            f"optim.head_epochs is {optim.head_epochs:g}, more than train.epochs {epochs:g}: add --optim.head-epochs 0"
        )
    if optim.head_epochs and run.model.weights == "none":
        raise ValueError(
            "optim.head_epochs trains the head on pretrained features, but model.weights is none: "
            "add --optim.head-epochs 0"
        )
    if optim.schedule in ("cosine", "plateau") and optim.head_epochs % 1 > 0 and optim.head_epochs < epochs:
        whole = max(1, round(optim.head_epochs))
        raise ValueError(
            f"optim.head_epochs is {optim.head_epochs:g}, but optim.schedule {optim.schedule} moves by whole epochs: "
            f"add --optim.head-epochs {whole if whole <= epochs else 0}"
        )
    if optim.schedule == "warmup-cosine" and optim.warmup >= epochs - optim.head_epochs > 0:
        head = f" less optim.head_epochs {optim.head_epochs:g}" if optim.head_epochs else ""
        raise ValueError(
            f"optim.warmup is {optim.warmup} epochs, not fewer than train.epochs {epochs:g}{head}: "
            f"add --optim.warmup {(epochs - optim.head_epochs) / 4:g}"
        )


def _divisor(batch: int, near: int) -> int:
    """The largest one up to ``near``, but not 1: BatchNorm needs two images; else the batch."""
    return max((d for d in range(2, min(batch, near) + 1) if batch % d == 0), default=batch)
