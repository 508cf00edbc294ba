"""Which images validate: the data's own split, a share or a part of the training images, or none (data.hold_out)."""

from collections.abc import Mapping

import datasets
import numpy as np
from datasets import Dataset

from cls import config
from cls.data.readers import column
from cls.data.split import Split
from cls.data.streaming import pack_command
from cls.data.subset import held_out, in_parts

Labelled = dict[str, Dataset]


def used(parts: Mapping[str, Split], data: config.Data) -> tuple[dict[str, Split], list[str]]:
    """The splits to read, and lines about the others: no validation split where a part of train takes its place, no
    test split where a part of what would train chooses between runs.
    """
    rest, notes = dict(parts), list[str]()
    if data.hold_out.split("+")[0] not in ("", "none") and "val" in rest:
        notes.append(_aside(len(rest.pop("val")), data))
    if "+" in data.hold_out and "test" in rest:
        notes.append(f"data.hold_out {data.hold_out}: {len(rest.pop('test')):,} test images are left aside")
    return rest, notes


def training_classes(parts: Mapping[str, Split], data: config.Data) -> set[str]:
    """Names of the classes with images to train on."""
    trained = ("train", "val") if data.hold_out.startswith("none") else ("train",)
    return {name for split in trained if split in parts for name in parts[split].present}


def validating(labelled: Labelled, data: config.Data, seed: int) -> tuple[Labelled, list[str]]:
    """The splits with the images that validate under "val", which is missing if there are none; printed lines.

    ``seed`` chooses the images only where ``data.val_fraction`` does. ValueError where there are too few images.
    """
    first, *more = data.hold_out.split("+")
    notes: list[str] = []
    if first and data.val_fraction != config.Data().val_fraction:
        notes.append(f"data.val_fraction {data.val_fraction} is not used with data.hold_out {data.hold_out}")
    if first == "none":
        labelled, found = _joined(labelled)
        notes += [*found, *([] if more else [config.NO_VALIDATION])]
    elif first:
        labelled, found = _cut(labelled, first)
        notes += found
    elif "val" not in labelled:
        labelled = _share(labelled, data, seed)
    for part in more:
        if "val" in labelled:
            notes.append(_aside(len(labelled["val"]), data))
        labelled, found = _cut(labelled, part)
        notes += found
    return labelled, notes


def _aside(images: int, data: config.Data) -> str:
    return (
        f"data.hold_out {data.hold_out}: {images:,} validation images are left aside, neither trained on nor validated"
    )


def _share(labelled: Labelled, data: config.Data, seed: int) -> Labelled:
    """``data.val_fraction`` of each class."""
    if data.streaming:
        raise ValueError(
            f"data.streaming needs validation images of their own, which {data.path} lacks: "
            f"hold some out with {pack_command(data.path)}"
        )
    train = labelled["train"]
    labels = column(train, "label").to_numpy()
    return _split(labelled, held_out(column(train, "id"), labels, data.val_fraction, seed, "split"))


def _cut(labelled: Labelled, words: str) -> tuple[Labelled, list[str]]:
    """One of N parts of the training images, "2/5" the second of five."""
    train, (part, parts) = labelled["train"], map(int, words.split("/"))
    labels = column(train, "label").to_numpy()
    numbers, counts = in_parts(column(train, "id"), labels, parts), np.bincount(labels)
    if parts > (most := int((numbers >= 0).sum())):
        raise ValueError(
            f"data.hold_out: {words} cuts {most} images (without classes of one image) into {parts} parts: use at most "
            f"{most}"
        )
    few, single = int(((counts > 0) & (counts < parts)).sum()), int((counts == 1).sum())
    notes = []
    if few:
        notes.append(f"data.hold_out {words}: {few} classes have fewer than {parts} images, so not in every part")
        notes[0] += f"; the only image of {single} classes is in no part, it always trains" if single else ""
    return _split(labelled, np.flatnonzero(numbers == part - 1)), notes


def _split(labelled: Labelled, held: np.ndarray) -> Labelled:
    train = labelled["train"]
    return labelled | {"train": train.select(np.delete(np.arange(len(train)), held)), "val": train.select(held)}


def _joined(labelled: Labelled) -> tuple[Labelled, list[str]]:
    """The validation images behind the training images; their ids name the split, or each file has one split only."""
    rest = {split: part for split, part in labelled.items() if split != "val"}
    if "val" not in labelled:
        return rest, []
    rest["train"] = datasets.concatenate_datasets([labelled["train"], labelled["val"]])
    return rest, [f"data.hold_out none: {len(labelled['val']):,} validation images are trained on"]


def files(parts: Mapping[str, Split], data: config.Data) -> dict[str, tuple[str, ...]]:
    """The tables that each split was read from; those of validation images that are trained on count as train's."""
    found = {split: part.files for split, part in parts.items() if part.files}
    if data.hold_out and (val := found.pop("val", ())) and data.hold_out.startswith("none"):
        found["train"] = (*found.get("train", ()), *val)
    return found
