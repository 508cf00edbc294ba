"""Every kind of data as the same three datasets: undecoded images, integer labels, stable ids."""

import io
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from cls import config
from cls.console import printable
from cls.data import folder, stream, tables
from cls.data.access import Stream, column
from cls.data.folder import TABLES, natural
from cls.data.index import keep_index, read_index
from cls.data.part import COLUMNS, Part
from cls.images.decode import EXTENSIONS
from cls.seed import generator

log = logging.getLogger("cls")


Rows = Dataset
"""One split: columns ``image`` (undecoded), ``label`` (index into the class list, -1 unknown), ``id``."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Datasets with the columns image (``{"bytes", "path"}``, undecoded), label (int64, -1: unknown) and id.

    ``classes`` are the class names by label: those of the training images, naturally sorted ("2" before "10").
    """

    train: Dataset | Stream
    val: Dataset
    test: Dataset | None
    classes: tuple[str, ...]
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The tables that a split was read from, where they are files here."""
    encoded_here: bool = False
    """The embedded digits: another version of Pillow may write the same pixels in another number of bytes."""


def load(data: config.Data, seed: int) -> Splits:
    """Index the images of ``data.path`` without reading them.

    Without validation images, ``data.val_fraction`` of each class is held out by ``seed``. Labels of all splits are
    mapped by name to the classes of the training images. What cannot be used is a ValueError naming the field.
    """
    parts = _digits() if data.path == "digits" else _read(data.copy or data.path, data)
    _refuse_unusable(parts, data)
    classes = tuple(sorted(parts["train"].present, key=natural))
    if len(classes) < 2:
        raise ValueError(f"data.path: {data.path} has only one class, {classes[0]!r}; at least two are needed")
    labelled = {
        split: _number(part, classes, f"the {split} split of {data.path}")
        for split, part in parts.items()
        if isinstance(part.images, Dataset)
    }
    if "val" not in labelled:
        if data.streaming:
            raise ValueError(
                f"data.streaming needs validation images of their own, which {data.path} lacks: "
                f"hold some out with {stream.pack_command(data.path)}"
            )
        if not 0 < data.val_fraction < 1:
            raise ValueError(f"data.val_fraction must be between 0 and 1, found {data.val_fraction}")
        everything = labelled["train"]
        held = _held_out(column(everything, "id"), labels_of(everything), data.val_fraction, seed, "split")
        labelled["train"] = everything.select(np.delete(np.arange(len(everything)), held))
        labelled["val"] = everything.select(held)
    lacking = np.flatnonzero(np.bincount(labels_of(labelled["val"]), minlength=len(classes)) == 0)
    if len(lacking):
        log.warning(
            "validation has no image of %d classes: %s",
            len(lacking),
            ", ".join(printable(classes[label]) for label in lacking),
        )
    if data.limit:
        cut = {split: part for split, part in labelled.items() if split != "test"}  # its predictions are handed in
        labelled |= {split: _limit(part, data.limit, seed, split) for split, part in cut.items()}
    train = labelled["train"] if "train" in labelled else _stream(parts["train"], classes)
    return Splits(train=train, val=labelled["val"], test=labelled.get("test"), classes=classes,
                  files={split: part.files for split, part in parts.items() if part.files},
                  encoded_here=data.path == "digits")  # fmt: skip


def labels_of(rows: Dataset | Stream) -> np.ndarray:
    """Class index of each row, -1 unknown."""
    labels: np.ndarray = column(rows, "label").to_numpy() if isinstance(rows, Dataset) else rows.labels
    return labels


def load_images(path: str, data: config.Data) -> Dataset:
    """All images of a folder (nested or not), a table or one image file, for prediction; every label is -1.

    Ids are the paths below the folder; the path of the file as given, as in :func:`load_listed`; those of the table.
    """
    if path.lower().endswith(EXTENSIONS) and os.path.isfile(file := os.path.expanduser(path)):
        return load_listed([file])
    return _unlabelled(_read_one(path, data, labelled=False))


def load_given(paths: Sequence[str], data: config.Data) -> Dataset:
    """What a command line names, for prediction: one path as in :func:`load_images`, image files, or tables.

    Ids of image files, one or several, are the paths as given; of several, one that is not there is found when it is
    read. Several tables (``test-*.parquet``) are of one kind. Anything else is a ValueError.
    """
    if len(paths) == 1:
        return load_images(paths[0], data)
    if all(path.lower().endswith(EXTENSIONS) for path in paths):
        return load_listed(paths)
    if not all(path.lower().endswith(TABLES) for path in paths):
        raise ValueError(
            f"{paths[0]} to {paths[-1]} cannot be read together: name one folder, or image files, or tables of one "
            f"kind ({', '.join(TABLES)}); or pipe a list of files: find FOLDER -type f | cls predict RUN -"
        )
    kind, groups = tables.grouped(Path(), list(paths))
    return _unlabelled(_only({split: tables.read_split(kind, names, split, _unstreamed(data, labelled=False))
                              for split, names in groups.items()}, ", ".join(paths)))  # fmt: skip


def load_listed(names: Sequence[str]) -> Dataset:
    """Image files by their paths, which become their ids; what cannot be read is found when it is read."""
    return _unlabelled(folder.listed(list(names)))


def _unlabelled(part: Part) -> Dataset:
    assert isinstance(part.images, Dataset)
    return part.images.add_column("label", np.full(len(part), -1), feature=Value("int64"))


def load_labelled(path: str, classes: tuple[str, ...], data: config.Data) -> Dataset:
    """Class folders or a table with labels, numbered by name after ``classes``; an unknown class is a ValueError."""
    part = _read_one(path, data, labelled=True)
    if part.unlabelled:
        raise ValueError(f"{path}: {part.unlabelled} of {len(part)} images have no label")
    return _number(part, classes, path)


def _refuse_unusable(parts: dict[str, Part], data: config.Data) -> None:
    if "train" not in parts:
        raise ValueError(f"data.path: {data.path} has no train split, only {', '.join(sorted(parts)) or 'other ones'}")
    for split, part in parts.items():
        if len(part) == 0:
            raise ValueError(f"data.path: {data.path} has no images in its {split} split")
        if part.unlabelled and split != "test":
            raise ValueError(
                f"data.path: {part.unlabelled} of {len(part)} {split} images in {data.path} have no label; remove them"
                + (f", or set data.label_column to one of {', '.join(part.columns)}" if part.columns else "")
            )


def _read(path: str, data: config.Data) -> dict[str, Part]:
    root = Path(path).expanduser()
    if root.is_dir():
        if tables.is_saved(root):
            if data.streaming:
                raise ValueError(f"data.streaming: {path} is mapped where it lies; leave data.streaming off")
            return tables.read_saved(root, data)
        found, scanned = read_index(root), time.time()
        if found is None:
            listing = folder.scan(root)
            if not listing.images and not listing.tables:
                raise ValueError(f"data.path: {path} holds no images ({len(listing.others)} other files)")
            # A table of annotations may lie beside the images, a preview image beside the tables.
            if len(listing.tables) >= len(listing.images):
                return _tables(root, listing.tables, data)
            found = keep_index(root, listing, folder.read(root, listing), scanned)
        for level, text in found.notes:
            log.log(level, text)
        return stream.folder_blocks(found.parts) if data.streaming else found.parts
    if root.is_file():
        if root.name.lower().endswith(TABLES):
            return _tables(root.parent, [root.name], data)
        raise ValueError(f"data.path: {path} is a file; expected a folder of images or one of {', '.join(TABLES)}")
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) and not path.lower().endswith((*TABLES, *EXTENSIONS)):
        return stream.read_hub(path, data) if data.streaming else tables.read_hub(path, data)
    raise ValueError(f"data.path: there is no file or folder {path}")


def _tables(root: Path, names: list[str], data: config.Data) -> dict[str, Part]:
    return stream.read_files(root, names, data) if data.streaming else tables.read_files(root, names, data)


def _read_one(path: str, data: config.Data, *, labelled: bool) -> Part:
    root, data = Path(path).expanduser(), _unstreamed(data, labelled=labelled)
    if not root.exists():
        raise ValueError(f"there is no file or folder {path}")
    if root.is_dir() and not tables.is_saved(root):
        listing = folder.scan(root)
        if len(listing.images) > len(listing.tables):
            tops = [name.split("/")[0] if "/" in name else None for name in listing.images]
            return folder.files(root, listing.images, tops)
    return _only(_read(path, data), path)


def _unstreamed(data: config.Data, *, labelled: bool) -> config.Data:
    """Streaming, and without labels their column, are how the run was trained."""
    return replace(data, streaming=False, label_column=data.label_column if labelled else "")


def _only(parts: dict[str, Part], path: str) -> Part:
    if not parts:
        raise ValueError(f"{path} has no split called train, validation or test")
    if len(parts) > 1:
        raise ValueError(f"{path} holds several splits ({', '.join(parts)}); point at the files of one")
    return parts.popitem()[1]


def _digits() -> dict[str, Part]:
    """scikit-learn's 1,797 scans of handwritten digits, 8 x 8 grey; about a fifth, always the same, is validation."""
    from sklearn.datasets import load_digits  # 1 s that only they need to pay

    loaded = load_digits()
    ids = [f"digit-{i:04d}" for i in range(len(loaded.target))]
    held = _held_out(pa.chunked_array([ids]), loaded.target, 0.2, 0, "digits")
    parts = {}
    for split, rows in (("train", np.setdiff1d(np.arange(len(ids)), held)), ("val", held)):
        images = [{"bytes": _png(np.rint(loaded.images[i] * 255 / 16).astype(np.uint8)), "path": None} for i in rows]
        table = Dataset.from_dict({"image": images, "id": [ids[i] for i in rows]}, features=Features(COLUMNS))
        parts[split] = Part(table, loaded.target[rows], tuple(map(str, range(10))))
    return parts


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _number(part: Part, classes: tuple[str, ...], where: str) -> Dataset:
    assert isinstance(part.images, Dataset)
    return part.images.add_column("label", _labels(part, classes, where), feature=Value("int64"))


def _stream(part: Part, classes: tuple[str, ...]) -> Stream:
    assert not isinstance(part.images, Dataset)
    return Stream(part.images, _labels(part, classes, "").astype(np.int32))


def _labels(part: Part, classes: tuple[str, ...], where: str) -> np.ndarray:
    """Index into ``classes`` of each row, -1 unknown."""
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(name for name in part.present if name not in index)
    if unknown:
        counts = {name: int((part.codes == part.names.index(name)).sum()) for name in unknown[:10]}
        listed = ", ".join(f"{name!r} ({count} images)" for name, count in counts.items())
        raise ValueError(
            f"{where} has {len(unknown)} classes that training lacks: {listed}; "
            f"training has {len(classes)}: {', '.join(map(printable, classes[:10]))}"
            f"{', ...' if len(classes) > 10 else ''}"
        )
    numbers = np.array([*(index.get(name, -1) for name in part.names), -1], dtype=np.int64)  # code -1 is the last
    labels: np.ndarray = numbers[part.codes]
    return labels


def _held_out(ids: pa.ChunkedArray, labels: np.ndarray, fraction: float, seed: int, tag: str) -> np.ndarray:
    """Rows to hold out: of each class with two or more images the fraction, at least one and never all.

    Each class is sorted by id and drawn by its number: neither the order of the listing nor the images of other classes
    matter, but a class whose name comes before changes what is drawn of those behind it.
    """
    held = []
    for label, rows in _by_class(ids, labels).items():
        if len(rows) > 1:
            count = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
            held.append(generator(seed, tag, label).permutation(rows)[:count])
    if not held:
        raise ValueError("data.path: no class has two images, so none can be held out; provide a val/ folder")
    return np.sort(np.concatenate(held))


def _limit(table: Dataset, limit: int, seed: int, split: str) -> Dataset:
    """At most ``limit`` rows in their order, drawn one per class in turn so that every class is there early."""
    if limit < 0:
        raise ValueError(f"data.limit must be 0 (all) or positive, found {limit}")
    turns: list[tuple[int, int, int]] = []
    classes = _by_class(column(table, "id"), labels_of(table))
    order = generator(seed, "limit", split).permutation(len(classes)).tolist()
    for place, (label, rows) in zip(order, classes.items(), strict=True):
        drawn = generator(seed, "limit", split, label).permutation(rows)[:limit].tolist()
        turns += [(turn, place, row) for turn, row in enumerate(drawn)]
    return table.select(sorted(row for _, _, row in sorted(turns)[:limit]))


def _by_class(ids: pa.ChunkedArray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Rows of each label, ascending, each sorted by id (its UTF-8 bytes: the order of Python's strings)."""
    by_id = pc.sort_indices(ids).to_numpy().astype(np.int64)
    order = by_id[np.argsort(labels[by_id], kind="stable")]
    counts = np.bincount(labels + 1)  # from -1, unknown; np.unique hashes all, 0.03 s for 100,000
    classes = np.flatnonzero(counts)
    return dict(zip((classes - 1).tolist(), np.split(order, np.cumsum(counts[classes])[:-1]), strict=True))
