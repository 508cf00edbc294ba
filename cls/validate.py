"""Values and combinations that cannot train: refused before anything is built, by the field's name."""

import math
import re

from cls.config import Data, Run, flat
from cls.runtime.paths import name_problem

POSITIVE = ("data.size", "train.epochs", "train.batch", "train.micro_batch", "train.eval_batch", "train.keep",
            "optim.lr", "optim.lr_batch", "optim.head_lr")  # fmt: skip
NOT_NEGATIVE = ("seed", "data.limit", "data.eval_size", "augment.rotate", "augment.brightness", "augment.contrast",
                "augment.saturation", "augment.randaugment", "augment.blur", "augment.mixup", "augment.cutmix",
                "model.gate", "optim.weight_decay", "optim.clip", "optim.class_weight", "optim.t_max", "optim.min_lr",
                "optim.patience", "optim.warmup", "train.max_steps", "train.early_stop",
                "train.save_minutes")  # fmt: skip
SHARES = ("data.max_corrupt", "augment.hflip", "augment.vflip", "augment.translate", "augment.erase",
          "augment.mix_probability", "optim.label_smoothing")  # fmt: skip
BELOW_ONE = ("model.dropout3", "optim.ema", "optim.factor")


def check(run: Run) -> None:
    """ValueError naming the field, what it is and what it may be."""
    values = flat(run)
    for name, value in values.items():
        _need(not isinstance(value, float) or math.isfinite(value), name, value, "must be a finite number")
        for text in (value,) if isinstance(value, str) else value if name == "data.labels" else ():
            # bytes of a path that are no UTF-8 are lone surrogates in Python
            if text.encode("utf-8", "ignore").decode() != text:
                raise ValueError(f"{name} is {text!a}: it {name_problem().replace('is not', 'must be', 1)}")
    for name in POSITIVE:
        _need(values[name] > 0, name, values[name], "must be greater than 0")
    for name in NOT_NEGATIVE:
        _need(values[name] >= 0, name, values[name], "must be 0 or more")
    for name in SHARES:
        _need(0 <= values[name] <= 1, name, values[name], "must be from 0 to 1")
    for name in BELOW_ONE:
        _need(0 <= values[name] < 1, name, values[name], "must be from 0 to below 1")
    for name in ("augment.crop_scale", "augment.erase_scale"):
        low, high = values[name]
        _need(0 < low <= high <= 1, name, values[name], "must be two shares of the area, 0 < from <= to <= 1")
    _need(0 < run.augment.zoom[0] <= run.augment.zoom[1], "augment.zoom", run.augment.zoom, "must be 0 < from <= to")
    _need(0 <= run.augment.hue <= 0.5, "augment.hue", run.augment.hue, "must be from 0 to 0.5")
    _need(run.augment.blur == 0 or run.augment.blur % 2 == 1, "augment.blur", run.augment.blur, "must be 0 or odd")
    _need(run.augment.randaugment_magnitude in range(31), "augment.randaugment_magnitude",
          run.augment.randaugment_magnitude, "must be from 0 to 30")  # fmt: skip
    _need(0 < run.data.crop_pct <= 1, "data.crop_pct", run.data.crop_pct, "must be above 0 and at most 1")
    _need(0 < run.data.val_fraction < 1, "data.val_fraction", run.data.val_fraction, "must be between 0 and 1")
    _need(all(0 <= b < 1 for b in run.optim.betas), "optim.betas", run.optim.betas, "must both be from 0 to below 1")
    _need(run.data.workers >= -1, "data.workers", run.data.workers, "must be -1 (automatic), 0 or more")
    check_labels(run.data)
    _combinations(run)


def check_labels(data: Data) -> None:
    """ValueError for label options that contradict each other, the data or themselves."""
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
    if run.optim.schedule == "warmup-cosine" and run.optim.warmup >= train.epochs:
        raise ValueError(f"optim.warmup is {run.optim.warmup} epochs, not fewer than train.epochs {train.epochs}")
    if run.optim.min_lr > (lr := run.optim.learning_rate(train.batch)):
        scaled = "" if lr == run.optim.lr else f", which for train.batch {train.batch} is {lr:g}"
        raise ValueError(
            f"optim.min_lr is {run.optim.min_lr}, above optim.lr {run.optim.lr}{scaled}: the rate would rise"
        )
    if run.optim.loss == "mse" and run.optim.label_smoothing:
        raise ValueError("optim.label_smoothing applies to cross entropy: set it to 0 with optim.loss mse")


def _need(good: bool, name: str, value: object, rule: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value}: it {rule}")


def _divisor(batch: int, near: int) -> int:
    return max(d for d in range(1, min(batch, max(1, near)) + 1) if batch % d == 0)
