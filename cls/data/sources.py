"""All kinds of data as three datasets of undecoded images, integer labels and stable ids."""

import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from datasets import Dataset, Value

from cls import config
from cls.data import digits, hold_out, streaming, tables
from cls.data.fixes import links, some, without
from cls.data.folders import ignored, image_folder
from cls.data.folders.folder_cache import keep_index, read_index
from cls.data.folders.image_folder import natural
from cls.data.folders.tree import Tree
from cls.data.labels.hint import hinted
from cls.data.labels.read import read_labelled
from cls.data.readers import Stream, column
from cls.data.split import RawSplits, Split, normal
from cls.data.subset import limited
from cls.data.summary import say, summary
from cls.data.table_splits import TABLES, given, grouped, kind_of, with_pictures
from cls.runtime.console import printable
from cls.transforms.decode import EXTENSIONS

PACKED = ("pack.json", "packing.json", "packing.lock")  # of cls pack, beside its shards

Rows: TypeAlias = (
    Dataset  # one split: columns ``image`` (undecoded), ``label`` (index into the class list, -1 unknown), ``id``
)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Datasets with the columns image (``{"bytes", "path"}``, undecoded), label (int64, -1: unknown) and id.

    ``classes`` are the class names by label: those of the training images, naturally sorted ("2" before "10").
    """

    train: Dataset | Stream
    val: Dataset | None  # None: data.hold_out none
    test: Dataset | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()  # the printed lines about the data
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the local tables that a split was read from
    encoded_here: bool = False  # the embedded digits: another version of Pillow may encode the same pixels differently


def load(data: config.Data, seed: int, *, quiet: bool = False) -> Splits:
    """Index the images of ``data.path`` without reading them; rank 0 prints a summary, unless ``quiet``.

    What validates is :mod:`cls.data.hold_out`'s. Labels of all splits are mapped by name to the classes of the training
    images. ValueError naming the field for what cannot be used.
    """
    with hinted(data.copy or data.path, data):
        found = RawSplits(digits.splits(), []) if data.path == "digits" else _read(data.copy or data.path, data)
        parts, aside = hold_out.used(found.parts, data)
        notes = [*found.notes, *aside]
        _reject_unusable(parts, data)
        classes = tuple(sorted(hold_out.training_classes(parts, data), key=natural))
        if len(classes) < 2:
            raise ValueError(f"data.path: {data.path} has only one class, {classes[0]!r}; at least two are needed")
        labelled = {
            split: _number(part, classes, f"the {split} split of {data.path}")
            for split, part in parts.items()
            if isinstance(part.images, Dataset)
        }
    labelled, held = hold_out.validating(labelled, data, seed)
    notes += [*held, *_lacking(labelled, classes)]
    if data.limit:
        cut = {split: part for split, part in labelled.items() if split != "test"}  # its predictions are submitted
        labelled |= {split: limited(part, data.limit, seed, split) for split, part in cut.items()}
    train = labelled["train"] if "train" in labelled else _stream(parts["train"], classes)
    kept = {"train": train} | labelled
    origins = {split: part.origin for split, part in parts.items() if split != "val" or not data.hold_out}
    line = summary(data.path, {split: labels_of(rows) for split, rows in kept.items()}, origins, found.ignored)
    if not quiet:
        say([line], notes)
    return Splits(
        train=train, val=labelled.get("val"), test=labelled.get("test"), classes=classes, notes=(line, *notes),
        files=hold_out.files(parts, data), encoded_here=data.path == "digits",
    )  # fmt: skip


def _lacking(labelled: Mapping[str, Dataset], classes: tuple[str, ...]) -> list[str]:
    """The line about classes that cannot be validated."""
    if "val" not in labelled:
        return []
    lacking = np.flatnonzero(np.bincount(labels_of(labelled["val"]), minlength=len(classes)) == 0)
    names = printable(", ".join(classes[label] for label in lacking.tolist()))
    return [f"validation has no image of {len(lacking)} classes: {names}"] if len(lacking) else []


def labels_of(rows: Dataset | Stream) -> np.ndarray:
    """Class index of each row, -1 unknown."""
    labels: np.ndarray = column(rows, "label").to_numpy() if isinstance(rows, Dataset) else rows.labels
    return labels


def load_images(path: str, data: config.Data) -> Dataset:
    """All images of a folder (nested or not), a table or one image file, for prediction; every label is -1.

    Ids are the paths below the folder, the table's ids, or the file's path as given. ValueError for no path.
    """
    if not path:
        raise ValueError("the path is empty: name images, a folder or a table")
    if not path.lower().endswith(TABLES) and os.path.isfile(file := os.path.expanduser(path)):
        return load_listed([file])
    return _unlabelled(_read_one(path, data, labelled=False))


def load_given(paths: Sequence[str], data: config.Data) -> Dataset:
    """Paths of a command line, for prediction: one as in :func:`load_images`, image files, or tables of one kind.

    Ids of image files are the paths as given; a missing one of several gets a row with an
    error. ValueError for other paths.
    """
    if len(paths) == 1:
        return load_images(paths[0], data)
    if all(map(is_one_image, paths)):
        return load_listed(paths)
    for path in paths:
        if not (is_one_image(path) or path.lower().endswith(TABLES) or os.path.exists(os.path.expanduser(path))):
            raise ValueError(f"there is no file or folder {path}")
    if not all(path.lower().endswith(TABLES) for path in paths):
        raise ValueError(
            f"{paths[0]} to {paths[-1]} cannot be read together: name one folder, or image files, or tables of one "
            f"kind ({', '.join(TABLES)}); or pipe a list of files: find FOLDER -type f | cls predict RUN -"
        )
    return _unlabelled(_only(tables.read_files(given(paths), _unstreamed(data, labelled=False)), ", ".join(paths)))


def is_one_image(path: str) -> bool:
    """Whether a path means one image: by its ending, even if missing, or as a file that is no table."""
    lower = path.lower()
    return lower.endswith((*EXTENSIONS, *ignored.UNREAD)) or (os.path.isfile(path) and not lower.endswith(TABLES))


def load_listed(names: Sequence[str]) -> Dataset:
    """Image files; their paths are their ids. An unreadable one gets a row with an error."""
    return _unlabelled(image_folder.listed(list(names)))


def _unlabelled(part: Split) -> Dataset:
    assert isinstance(part.images, Dataset)
    return part.images.add_column("label", np.full(len(part), -1), feature=Value("int64"))


def load_labelled(path: str, classes: tuple[str, ...], data: config.Data) -> Dataset:
    """Class folders, label files or a table, labels numbered as in ``classes``; ValueError for an unknown class."""
    with hinted(path, data, classes):
        part = _read_one(path, data, labelled=True)
        _reject_level(path, part, classes)
        if part.unlabelled:
            raise ValueError(f"{path}: {part.unlabelled} of {len(part)} images have no label")
        return _number(part, classes, path)


def _reject_unusable(parts: dict[str, Split], data: config.Data) -> None:
    if "train" not in parts:
        only = f"data.path: {data.path} has no train split, only {', '.join(sorted(parts)) or 'other ones'}"
        if os.path.isfile(file := os.path.expanduser(data.path)):
            name = os.path.basename(file)
            only += f"; to train on it: {links(Path(file).parent, {f'train{kind_of(file)}': name})}"
        if len(data.labels) == 1 and "=" not in data.labels[0]:  # "valid" may mean another thing
            only += f"; if {data.labels[0]} is for training: --data.labels train={shlex.quote(data.labels[0])}"
        raise ValueError(only)
    for split, part in parts.items():
        if len(part) == 0:
            raise ValueError(f"data.path: {data.path} has no images in its {split} split")
        if part.unlabelled and split != "test":
            raise ValueError(
                f"data.path: {part.unlabelled} of {len(part)} {split} images in {data.path} have no label; remove them"
                f"{part.unlabelled_hint}"
            )


def _read(path: str, data: config.Data) -> RawSplits:
    root = Path(path).expanduser()
    if data.own_labels:
        found = read_labelled(path, data)
        blocks = data.streaming and "train" in found.parts
        return found._replace(parts=streaming.folder_blocks(found.parts)) if blocks else found
    if root.is_dir():
        if tables.is_saved(root):
            if data.streaming:
                raise ValueError(f"data.streaming: {path} is memory-mapped; leave data.streaming off")
            return tables.read_saved(root, data)
        known, scanned = read_index(root), time.time()
        if known is None:
            listing = image_folder.scan(root)
            if not listing.images and not listing.tables:
                raise ValueError(ignored.nothing_to_read(root, listing.others, EXTENSIONS))
            if _holds_tables(listing):
                return _tables(root, listing, data)
            known = keep_index(root, listing, image_folder.read(root, listing), scanned)
        return known._replace(parts=streaming.folder_blocks(known.parts)) if data.streaming else known
    if root.is_file():
        if root.name.lower().endswith(TABLES):
            return _tables(root.parent, image_folder.Listing([], [root.name], [], [], False), data)
        raise ValueError(f"data.path: {path} is a file; expected a folder of images or one of {', '.join(TABLES)}")
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) and not path.lower().endswith((*TABLES, *EXTENSIONS)):
        return streaming.read_hub(path, data) if data.streaming else tables.read_hub(path, data)
    raise ValueError(f"data.path: there is no file or folder {path}")


def _holds_tables(listing: image_folder.Listing) -> bool:
    """Images may have a table of annotations beside them; tables with splits in their names a few pictures."""
    return len(listing.tables) >= len(listing.images) or with_pictures(listing.tables, listing.images)


def _tables(root: Path, listing: image_folder.Listing, data: config.Data) -> RawSplits:
    try:
        files = grouped(root, listing.tables)
        parts = streaming.read_files(root, files, data) if data.streaming else tables.read_files(files, data)
    except ValueError as error:
        if len(listing.images) <= len(listing.tables):
            raise
        raise ValueError(f"{error}; or to train on the image files: {without(root, listing.tables)}") from None
    others = [name for name in (*listing.others, *listing.images) if name not in PACKED]
    notes = [*files.notes, *ignored.notes(root, others, "tables")]
    return RawSplits(parts, notes, f"{len(others):,} other files" if others else "")


def _read_one(path: str, data: config.Data, *, labelled: bool) -> Split:
    root, data = Path(path).expanduser(), _unstreamed(data, labelled=labelled)
    if not root.exists():
        raise ValueError(f"there is no file or folder {path}")
    if root.is_dir() and not tables.is_saved(root) and not data.own_labels:
        listing = image_folder.scan(root)
        unread = [] if labelled else [name for name in listing.others if ignored.is_unread_image(name)]
        if len(listing.images) + len(unread) > len(listing.tables):
            known = {*unread}
            rest = [name for name in (*listing.others, *listing.tables) if name not in known]
            empty_class_folders = (
                image_folder.empty_class_folders(root, {"train": ""}, listing, Tree(root, listing.images))
                if labelled
                else []
            )
            say([], [*empty_class_folders, *ignored.notes(root, rest, "images")])
            names = sorted((*listing.images, *unread), key=natural) if unread else listing.images
            return image_folder.files(root, names, [name.split("/")[0] if "/" in name else None for name in names])
    found = _read(path, data)
    say([], found.notes)
    return _only(found.parts, path)


def _unstreamed(data: config.Data, *, labelled: bool) -> config.Data:
    """Without the run's training options: streaming and, if unlabelled, those of labels."""
    if not labelled:
        data = replace(data, labels=(), id_column="", label_column=tables.NO_LABELS, label_pattern="")
    return replace(data, streaming=False)


def _reject_level(path: str, part: Split, classes: tuple[str, ...]) -> None:
    """ValueError if no top folder is a class, but folders deeper down contain classes."""
    known = {normal(name) for name in classes}
    if not os.path.isdir(path) or not isinstance(part.images, Dataset) or known & {*part.present}:
        return
    above: Counter[str] = Counter()
    for name in column(part.images, "id").to_pylist():
        parts = name.split("/")[:-1]
        above["/".join(parts[: next((i for i, one in enumerate(parts) if normal(one) in known), 0)])] += 1
    if fit := [f"cls evaluate RUN {shlex.quote(os.path.join(path, name))}" for name, _ in above.most_common() if name]:
        raise ValueError(f"{path} has no folder of the run's classes; folders in it do: {some(fit)}")


def _only(parts: dict[str, Split], path: str) -> Split:
    if not parts:
        raise ValueError(f"{path} has no split called train, validation or test")
    if len(parts) > 1:
        raise ValueError(f"{path} holds several splits ({', '.join(parts)}): name the files, or the label file, of one")
    return parts.popitem()[1]


def _number(part: Split, classes: tuple[str, ...], where: str) -> Dataset:
    assert isinstance(part.images, Dataset)
    return part.images.add_column("label", _labels(part, classes, where), feature=Value("int64"))


def _stream(part: Split, classes: tuple[str, ...]) -> Stream:
    assert not isinstance(part.images, Dataset)
    return Stream(part.images, _labels(part, classes, "").astype(np.int32))


def _labels(part: Split, classes: tuple[str, ...], where: str) -> np.ndarray:
    """Index into ``classes`` of each row, -1 unknown."""
    index = {normal(name): i for i, name in enumerate(classes)} | {name: i for i, name in enumerate(classes)}
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
