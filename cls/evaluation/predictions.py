"""The predictions of one set of images: a value, its parquet file and the submission CSV."""

import csv
import io
import json
import logging
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cls.runtime.files import write_whole

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The result of one inference pass, one row per image, in row order of the set."""

    ids: list[str]
    """n stable names of the images."""
    labels: Ints
    """n true classes, -1 where unknown."""
    probs: Floats
    """n c softmax, averaged over the test-time views; zeros for an image that could not be read."""
    errors: list[str]
    """n texts: empty, or why the image could not be read."""
    classes: tuple[str, ...]
    """c names."""
    loss: float
    """Mean criterion over the readable labelled images; nan when there are none."""

    def __post_init__(self) -> None:
        n, c = len(self.ids), len(self.classes)
        assert self.labels.shape == (n,) and self.probs.shape == (n, c) and len(self.errors) == n, (
            f"rows disagree: {n} ids, labels {self.labels.shape}, probs {self.probs.shape}, {len(self.errors)} errors"
        )
        assert ((self.labels >= -1) & (self.labels < c)).all(), f"labels outside -1..{c - 1}"


def readable(p: Predictions) -> NDArray[np.bool_]:
    """n: whether the image has a prediction at all."""
    read = np.array([not error for error in p.errors], dtype=bool)
    return read & np.isfinite(p.probs).all(axis=1)


def predicted(p: Predictions, fallback: int) -> Ints:
    """n predicted classes; a corrupt image gets the fallback (the most frequent class of the training set)."""
    assert 0 <= fallback < len(p.classes), f"fallback class {fallback} of {len(p.classes)}"
    return np.where(readable(p), p.probs.argmax(axis=1), fallback).astype(np.int64)


def write_csv(folder: Path, p: Predictions, fallback: int) -> None:
    """Write prediction.csv (image_name, pred_label as class names, in row order) and prediction.zip with it inside.

    The bytes of both depend on the predictions only. A corrupt image gets the fallback class.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image_name", "pred_label"])
    table.writerows(zip(image_names(p.ids), (p.classes[i] for i in predicted(p, fallback)), strict=True))
    data = text.getvalue().encode()
    packed = io.BytesIO()
    entry = zipfile.ZipInfo("prediction.csv", date_time=(1980, 1, 1, 0, 0, 0))  # the clock must not change the bytes
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(entry, data)
    write_whole(folder / "prediction.csv", data)
    write_whole(folder / "prediction.zip", packed.getvalue())


def image_names(ids: Sequence[str]) -> list[str]:
    """The shortest of: file name without extension, id without extension, id, that names every image differently."""
    assert len(set(ids)) == len(ids), "image ids are not unique"
    bare = [re.sub(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", "", name) for name in ids]  # not the .5 of 'sample-1.5'
    stems = [PurePosixPath(name).name for name in bare]
    if len(set(stems)) == len(ids):
        return stems
    names, what = (bare, "their path") if len(set(bare)) == len(ids) else (list(ids), "their path and extension")
    logging.getLogger("cls").warning(
        "prediction.csv: %d of %d file names occur in several folders, so image_name is %s",
        len(ids) - len(set(stems)), len(ids), what,
    )  # fmt: skip
    return names


def write_parquet(path: Path, p: Predictions) -> None:
    """Write one row per image: id, label, predicted (class names or null), error, probs (list of c doubles).

    The schema's metadata holds the class names (``classes``, JSON) and the ``loss``.
    """
    guesses = [p.classes[i] if ok else None for i, ok in zip(predicted(p, 0), readable(p), strict=True)]
    columns = {
        "id": pa.array(p.ids, pa.string()),
        "label": pa.array([p.classes[i] if i >= 0 else None for i in p.labels], pa.string()),
        "predicted": pa.array(guesses, pa.string()),
        "error": pa.array(p.errors, pa.string()),
        "probs": pa.array(list(p.probs), pa.list_(pa.float64())),
    }
    facts = {"classes": json.dumps(p.classes, ensure_ascii=False), "loss": repr(p.loss)}
    data = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(facts), data)
    write_whole(path, data.getvalue())


def read_parquet(path: Path) -> Predictions:
    """The exact predictions that :func:`write_parquet` wrote; another or a damaged parquet file is a ValueError."""
    try:
        return _parsed(pq.read_table(path))
    except Exception as error:  # whatever damage makes pyarrow, numpy and json raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        what = f"{path}: not a predictions file of cls ({reason})"
        raise ValueError(f"{what}: name a run, or its predictions/val.parquet") from error


def _parsed(table: pa.Table) -> Predictions:
    """The rows of a predictions file; raises whatever does not fit."""
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    classes = json.loads(facts["classes"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are no list of names")
    if len(set(classes)) < len(classes) or not classes:
        raise ValueError("its classes are not different names")
    for name, kind in {"id": pa.string(), "label": pa.string(), "error": pa.string()}.items():
        if table[name].type not in (kind, pa.null()):
            raise ValueError(f"column {name} is {table[name].type}, not text")
        if name != "label" and table[name].null_count:
            raise ValueError(f"column {name} has empty rows")
    probs = table["probs"].combine_chunks()
    if probs.type != pa.list_(pa.float64()):
        raise ValueError(f"column probs is {probs.type}, not lists of numbers")
    if probs.null_count or probs.flatten().null_count or (np.diff(probs.offsets.to_numpy()) != len(classes)).any():
        raise ValueError(f"a row of column probs does not have {len(classes)} numbers, one of each class")
    number = {name: i for i, name in enumerate(classes)} | {None: -1}
    labels = table["label"].to_pylist()
    if unknown := set(labels) - number.keys():
        raise ValueError(f"label {min(map(str, unknown))!r} is none of its classes")
    return Predictions(
        ids=table["id"].to_pylist(),
        labels=np.array([number[name] for name in labels], dtype=np.int64),
        # as a list of lists 1,000 classes of 10,000 images took 1.6 s and 1 GB, so 0.2 s
        probs=np.asarray(probs.flatten(), np.float64).reshape(len(table), len(classes)),
        errors=table["error"].to_pylist(),
        classes=tuple(classes),
        loss=float(facts["loss"]),
    )


def sliced(p: Predictions, rows: slice) -> Predictions:
    """Some rows of an unlabelled set; the loss is of all rows, so these have none."""
    return replace(p, ids=p.ids[rows], labels=p.labels[rows], probs=p.probs[rows], errors=p.errors[rows],
                   loss=float("nan"))  # fmt: skip


def renumbered(p: Predictions, classes: tuple[str, ...]) -> Predictions:
    """The same predictions with the classes in another order; the names must be the same."""
    if classes == p.classes:
        return p
    assert sorted(classes) == sorted(p.classes)
    number = {name: place for place, name in enumerate(classes)}
    places = np.array([*(number[name] for name in p.classes), -1])  # label -1 is the last
    order = [p.classes.index(name) for name in classes]
    return replace(p, labels=places[p.labels], probs=p.probs[:, order], classes=classes)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Parts with different rows as one, in their order; its loss is not known."""
    return Predictions(
        ids=[name for part in parts for name in part.ids],
        labels=np.concatenate([part.labels for part in parts]),
        probs=np.concatenate([part.probs for part in parts]),
        errors=[error for part in parts for error in part.errors],
        classes=parts[0].classes,
        loss=float("nan"),
    )
