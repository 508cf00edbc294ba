"""Every kind of data as the same three datasets: undecoded images, integer labels, stable ids."""

import io
import logging
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Features, Value

from cls import config
from cls.data import folder, tables
from cls.data.folder import COLUMNS, TABLES, Part, natural
from cls.images.decode import EXTENSIONS, BadImage
from cls.seed import generator

log = logging.getLogger("cls")


Rows = Dataset
"""One split: columns ``image`` (undecoded), ``label`` (index into the class list, -1 unknown), ``id``."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Datasets with the columns image (``{"bytes", "path"}``, undecoded), label (int64, -1: unknown) and id.

    ``classes`` are the class names by label: those of the training images, naturally sorted ("2" before "10").
    """

    train: Dataset
    val: Dataset
    test: Dataset | None
    classes: tuple[str, ...]


def load(data: config.Data, seed: int) -> Splits:
    """Index the images of ``data.path`` without reading them.

    Without validation images, ``data.val_fraction`` of each class is held out by ``seed``. Labels of all splits are
    mapped by name to the classes of the training images. What cannot be used is a ValueError naming the field.
    """
    parts = _digits() if data.path == "digits" else _read(data.copy or data.path, data)
    if "train" not in parts:
        raise ValueError(f"data.path: {data.path} has no train split, only {', '.join(sorted(parts)) or 'other ones'}")
    for split, part in parts.items():
        unlabelled = sum(name is None for name in part.names)
        if len(part.names) == 0:
            raise ValueError(f"data.path: {data.path} has no images in its {split} split")
        if unlabelled and split != "test":
            raise ValueError(
                f"data.path: {unlabelled} of {len(part.names)} {split} images in {data.path} have no label; remove them"
                + (f", or set data.label_column to one of {', '.join(part.columns)}" if part.columns else "")
            )
    classes = tuple(sorted({name for name in parts["train"].names if name}, key=natural))
    if len(classes) < 2:
        raise ValueError(f"data.path: {data.path} has only one class, {classes[0]!r}; at least two are needed")
    labelled = {split: _number(part, classes, f"the {split} split of {data.path}") for split, part in parts.items()}
    if "val" not in labelled:
        if not 0 < data.val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, found {data.val_fraction}")
        everything = labelled["train"]
        held = _held_out(everything["id"][:], everything["label"][:], data.val_fraction, seed, "split")
        labelled["train"] = everything.select(np.setdiff1d(np.arange(len(everything)), held))
        labelled["val"] = everything.select(held)
    present = set(labelled["val"]["label"][:])
    lacking = [name for i, name in enumerate(classes) if i not in present]
    if lacking:
        log.warning("validation has no image of %d classes: %s", len(lacking), ", ".join(lacking))
    if data.limit:
        labelled = {split: _limit(part, data.limit, seed, split) for split, part in labelled.items()}
    return Splits(train=labelled["train"], val=labelled["val"], test=labelled.get("test"), classes=classes)


def load_images(path: str, data: config.Data) -> Dataset:
    """All images of a folder (nested or not), a table or one image file, for prediction; every label is -1."""
    part = _read_one(path, data, labelled=False)
    return part.images.add_column("label", np.full(len(part.names), -1), feature=Value("int64"))


def load_labelled(path: str, classes: tuple[str, ...], data: config.Data) -> Dataset:
    """Class folders or a table with labels, numbered by name after ``classes``; an unknown class is a ValueError."""
    part = _read_one(path, data, labelled=True)
    if None in part.names:
        raise ValueError(f"{path}: {part.names.count(None)} of {len(part.names)} images have no label")
    return _number(part, classes, path)


def read_bytes(row: dict[str, Any]) -> bytes:
    """The encoded image of a row; a file that cannot be read is a BadImage, as one that cannot be decoded."""
    image = row["image"] or {"bytes": None, "path": None}
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    if not image["path"]:
        return b""
    try:
        if not stat.S_ISREG(os.stat(image["path"]).st_mode):
            raise BadImage("is no regular file")  # a pipe would be waited for, a device read without end
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None


def _read(path: str, data: config.Data) -> dict[str, Part]:
    root = Path(path).expanduser()
    if root.is_dir():
        if tables.is_saved(root):
            return tables.read_saved(root, data)
        listing = folder.scan(root)
        if not listing.images and not listing.tables:
            raise ValueError(f"data.path: {path} holds no images ({listing.others} other files)")
        # A table of annotations may lie beside the images, a preview image beside the tables.
        if len(listing.tables) >= len(listing.images):
            return tables.read_files(root, listing.tables, data)
        return folder.read(root, listing)
    if root.is_file():
        if root.name.lower().endswith(TABLES):
            return tables.read_files(root.parent, [root.name], data)
        raise ValueError(f"data.path: {path} is a file; expected a folder of images or one of {', '.join(TABLES)}")
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) and not path.lower().endswith((*TABLES, *EXTENSIONS)):
        return tables.read_hub(path, data)
    raise ValueError(f"data.path: there is no file or folder {path}")


def _read_one(path: str, data: config.Data, *, labelled: bool) -> Part:
    root = Path(path).expanduser()
    if not labelled:
        data = replace(data, label_column="")
    if root.is_file() and root.suffix.lower() in EXTENSIONS and not labelled:
        return folder.files(root.parent, [root.name], [None])
    if not root.exists():
        raise ValueError(f"there is no file or folder {path}")
    if root.is_dir() and not tables.is_saved(root):
        listing = folder.scan(root)
        if len(listing.images) > len(listing.tables):
            tops = [name.split("/")[0] if "/" in name else None for name in listing.images]
            return folder.files(root, listing.images, tops)
    parts = _read(path, data)
    if len(parts) > 1:
        raise ValueError(f"{path} holds several splits ({', '.join(parts)}); point at the files of one")
    return parts.popitem()[1]


def _digits() -> dict[str, Part]:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 grey; about a fifth, always the same, is validation."""
    from sklearn.datasets import load_digits  # 1 s that only they need to pay

    loaded = load_digits()
    labels = loaded.target.tolist()
    ids = [f"digit-{i:04d}" for i in range(len(labels))]
    held = set(_held_out(ids, labels, 0.2, 0, "digits"))
    parts = {}
    for split, rows in (("train", [i for i in range(len(ids)) if i not in held]), ("val", sorted(held))):
        images = [{"bytes": _png(np.rint(loaded.images[i] * 255 / 16).astype(np.uint8)), "path": None} for i in rows]
        table = Dataset.from_dict({"image": images, "id": [ids[i] for i in rows]}, features=Features(COLUMNS))
        parts[split] = Part(table, [str(labels[i]) for i in rows])
    return parts


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _number(part: Part, classes: tuple[str, ...], where: str) -> Dataset:
    index = {name: i for i, name in enumerate(classes)}
    unknown = Counter(name for name in part.names if name is not None and name not in index)
    if unknown:
        listed = ", ".join(f"{name!r} ({count} images)" for name, count in sorted(unknown.items())[:10])
        raise ValueError(
            f"{where} has {len(unknown)} classes that training lacks: {listed}; "
            f"training has {len(classes)}: {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    labels = np.array([-1 if name is None else index[name] for name in part.names], dtype=np.int64)
    return part.images.add_column("label", labels, feature=Value("int64"))


def _held_out(ids: list[str], labels: list[int], fraction: float, seed: int, tag: str) -> list[int]:
    """Rows to hold out: of each class with two or more images the fraction, at least one and never all.

    Each class is sorted by id and drawn by its own key: neither the order of the listing nor other classes matter.
    """
    held: list[int] = []
    for label, rows in _by_class(ids, labels).items():
        if len(rows) > 1:
            count = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
            held += generator(seed, tag, label).permutation(rows)[:count].tolist()
    if not held:
        raise ValueError("data.path: no class has two images, so none can be held out; provide a val/ folder")
    return sorted(held)


def _limit(table: Dataset, limit: int, seed: int, split: str) -> Dataset:
    """At most ``limit`` rows in their order, drawn one per class in turn so that every class is there early."""
    if limit < 0:
        raise ValueError(f"data.limit must be 0 (all) or positive, found {limit}")
    turns: list[tuple[int, int, int]] = []
    classes = _by_class(table["id"][:], table["label"][:])
    order = generator(seed, "limit", split).permutation(len(classes)).tolist()
    for place, (label, rows) in zip(order, classes.items(), strict=True):
        drawn = generator(seed, "limit", split, label).permutation(rows).tolist()
        turns += [(turn, place, row) for turn, row in enumerate(drawn)]
    return table.select(sorted(row for _, _, row in sorted(turns)[:limit]))


def _by_class(ids: list[str], labels: list[int]) -> dict[int, list[int]]:
    """Rows of each label, ascending, each list sorted by id."""
    rows: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        rows[labels[row]].append(row)
    return rows
