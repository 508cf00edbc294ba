"""Images in tables: parquet, arrow, save_to_disk, webdataset tars, the Hugging Face hub.

Parquet and tars are converted once to memory-mapped Arrow in the datasets cache (HF_HOME), keyed by path, size and
mtime; arrow and save_to_disk are memory-mapped where they are.
"""

import os
import re
import shlex
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value

from cls import config
from cls.data import webdataset
from cls.data.labels.splits import SURE_NAMES
from cls.data.readers import column as column_of
from cls.data.split import COLUMNS, RawSplits, Split, coded, merged
from cls.data.table_splits import Grouped, chosen, origin, reject_split_column

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
DAMAGED = (OSError, pa.ArrowException)
UNREADABLE = (OSError, ValueError, KeyError, TypeError, UnicodeError, tarfile.TarError, pa.ArrowException)
TARS = (".tar", ".tgz", ".tar.gz")
_INTEGER = re.compile(r"u?int\d+")
STRINGS = ("string", "large_string")
_FLOAT = re.compile(r"float\d+")
NO_LABELS = "\0"
"""In place of a label column's name: no column is read, whatever the table has."""
LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label", "category")


def is_saved(root: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def read_saved(root: Path, data: config.Data) -> RawSplits:
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # missing shards, another format version: OSError, ValueError, ArrowInvalid, KeyError
        raise ValueError(f"data.path: cannot read the saved dataset {root}: {reason(error)}") from None
    return _found(loaded, data, str(root), local=True)


def read_hub(name: str, data: config.Data) -> RawSplits:
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the hub client raises OSError, ValueError, RuntimeError and httpx's errors
        raise no_hub(name, error) from None
    return _found(loaded, data, name)


def no_hub(name: str, error: Exception) -> ValueError:
    fetch = f"cls fetch RECIPE --data.path {shlex.quote(name)}"
    return ValueError(
        f"data.path: {name!r} is no file or folder here, and as a hub dataset it could not be loaded "
        f"({reason(error)}); for a hub dataset run `{fetch}` where there is internet; a relative path is looked "
        "for in the current directory"
    )


def read_files(files: Grouped, data: config.Data) -> dict[str, Split]:
    """Parquet, arrow or tar files by split."""
    return {split: read_split(files.kind, paths, split, data) for split, paths in files.paths.items()}


def read_split(kind: str, paths: list[str], split: str, data: config.Data) -> Split:
    tarred, where_label = kind in TARS, data.label_column.strip(NO_LABELS)
    try:
        table = _load(kind, paths, where_label)
    except Exception as error:  # pyarrow, tarfile and datasets each have their own errors
        for path in filter(os.path.exists, paths):  # not the hub's
            with readable(path, Exception):
                _read_through(kind, path)
        where = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]} together"
        raise ValueError(f"data.path: cannot read {where}: {reason(error)}") from None
    origins, files = origin(paths), tuple(paths)
    part = _part(table, split, replace(data, label_column="") if tarred else data)
    part = replace(part, origin=origins, files=files)
    missing = tarred and part.unlabelled and split != "test"
    return replace(part, unlabelled_hint=webdataset.hint(paths[0], where_label)) if missing else part


def _read_through(kind: str, path: str) -> None:
    """Raises for a damaged file; datasets does not report which one it is."""
    if kind == ".parquet":
        rows: Iterator[Any] = pq.ParquetFile(path).iter_batches()
    elif kind == ".arrow":
        rows = iter([_arrow(path)])
    else:
        rows = webdataset.samples(path, "r:*", webdataset.content)
    for _ in rows:
        pass


@contextmanager
def readable(path: str, family: type[Exception] | tuple[type[Exception], ...] = UNREADABLE) -> Iterator[None]:
    """Errors inside become a ValueError that names this file."""
    try:
        yield
    except family as error:
        raise ValueError(f"data.path: cannot read {path}: {reason(error)}") from None


def _load(kind: str, paths: list[str], label: str) -> Dataset:
    if kind == ".parquet":
        return datasets.load_dataset("parquet", data_files=paths, split="train")
    if kind == ".arrow":
        return datasets.concatenate_datasets([_arrow(path) for path in paths])
    stamps = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    features = Features({"image": Image(decode=False), "label": Value("string"), "__key__": Value("string")})
    given = {"stamps": stamps, "label": label, "reading": webdataset.READING}
    return Dataset.from_generator(_samples, features=features, gen_kwargs=given)


def _arrow(path: str) -> Dataset:
    try:
        return Dataset.from_file(path)
    except pa.ArrowInvalid:  # not the stream format that datasets writes but the file format (feather)
        return Dataset(pa.ipc.open_file(pa.memory_map(path)).read_all())


def _samples(stamps: list[tuple[str, int, int]], label: str, reading: int) -> Iterator[dict[str, Any]]:
    """Size, mtime and ``reading`` are unused: like this function's source, they are part of the cache's key."""
    for path, _, _ in stamps:
        for one in webdataset.samples(path, "r:*", webdataset.content, label):
            yield {"image": {"bytes": one.image, "path": one.base}, "label": one.label, "__key__": one.key}


def _found(loaded: Any, data: config.Data, where: str, local: bool = False) -> RawSplits:
    """Splits of a Dataset or a DatasetDict; other splits than train, validation and test are left out.

    ``local``: their files belong to the user, not to a cache.
    """

    def part(table: Dataset, split: str, origin: str) -> Split:
        files = tuple(file["filename"] for file in table.cache_files) if local else ()
        return replace(_part(table, split, data), origin=origin, files=files)

    if isinstance(loaded, Dataset):
        return RawSplits({"train": part(loaded, "train", "one table")}, [])
    names, notes = chosen(map(str, loaded), where)
    return RawSplits({split: part(loaded[name], split, f"split {name}") for split, name in names.items()}, notes)


def _part(table: Dataset, split: str, data: config.Data) -> Split:
    image, label = image_column(table.features, data), label_column(table.features, data, split)
    codes, names = numbered(column_of(table, label), table.features[label], label) if label else unknown(len(table))
    if split == "train" and data.label_column != NO_LABELS:
        named = [name for name in table.features if name.lower() in SURE_NAMES]
        reject_split_column({name: column_of(table, name) for name in named})
    images = table.select_columns([image])
    if image != "image":
        images = images.rename_column(image, "image")
    try:
        images = images.cast_column("image", Image(decode=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"data.image_column: column {image!r} does not hold images: {reason(error)}") from None
    ids = _ids(images, column_of(table, "__key__") if "__key__" in table.features else None, split)
    hint = column_hint(table.features, image, label)
    return Split(images.add_column("id", ids, feature=COLUMNS["id"]), codes, names, hint)


def _ids(images: Dataset, keys: pa.ChunkedArray | None, split: str) -> pa.Array:
    """``<split>/<name>`` if the rows have distinct keys or file names, else ``<split>-<row>``."""
    if keys is None:
        paths = pc.struct_field(images.data.column("image"), "path")
        keys = pc.replace_substring_regex(pc.utf8_rtrim(paths, "/"), ".*/", "")
    if not keys.null_count and pc.count_distinct(keys).as_py() == len(images):
        return pc.binary_join_element_wise(split, keys.cast(pa.string()), "/")
    rows = pa.array(np.arange(len(images))).cast(pa.string())
    return pc.binary_join_element_wise(split, rows, "-")


def image_column(features: Features, data: config.Data) -> str:
    """The name of the column with the images: the configured one, or found by type, then by name."""
    if data.image_column:
        return _named(features, data.image_column, "data.image_column")
    kinds = {name: _image_kind(feature) for name, feature in features.items()}
    for rank in (1, 2, 3):
        found = [name for name, kind in kinds.items() if kind == rank]
        chosen = found if len(found) == 1 else [name for name in IMAGE_NAMES if name in found]
        if chosen:
            return chosen[0]
    raise ValueError(f"data.image_column: the image column is not clear; name one of {', '.join(features)}")


def _image_kind(feature: Any) -> int:
    if isinstance(feature, Image):
        return 1
    if isinstance(feature, dict) and "bytes" in feature:
        return 2
    return 3 if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary") else 0


def label_column(features: Features, data: config.Data, split: str) -> str:
    """The name of the label column, empty if there is none; only a test split may lack the configured one."""
    if data.label_column == NO_LABELS:
        return ""
    if data.label_column and (split != "test" or data.label_column in features):
        return _named(features, data.label_column, "data.label_column")
    if clear := next((name for name in ("label", "labels") if _is_label(features.get(name))), ""):
        return clear
    named: list[str] = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(named) == 1:
        return named[0]
    return next((name for name in LABEL_NAMES if name in features), "")


def column_hint(features: Features, image: str, label: str) -> str:
    """What to do about missing labels in a table."""
    fit = [name for name, feature in features.items() if name not in (image, label, "__key__") and _is_label(feature)]
    if fit:
        return f", or name the column of the classes: --data.label-column {shlex.quote(fit[0])} (of {', '.join(fit)})"
    others = ", ".join(features)
    return (
        f"; for data.label_column none of the columns {others} {'but ' + repr(label) if label else ''} can be used, "
        "which needs class names or integers"
    )


def _is_label(feature: Any) -> bool:
    kind = feature.dtype if isinstance(feature, Value) else ""
    return isinstance(feature, ClassLabel) or kind in (*STRINGS, "bool") or bool(_INTEGER.fullmatch(kind))


def _named(features: Features, column: str, field: str) -> str:
    if column not in features:
        raise ValueError(f"{field}: there is no column {column!r}; the columns are {', '.join(features)}")
    return column


def numbered(values: pa.ChunkedArray, feature: Any, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and class names of a label column: the names of a ClassLabel, strings themselves, integers as text.

    Spaces around strings do not count. -1, null, NaN and the empty string are unknown (code -1). Whole numbers stored
    as floats are integers: pandas stores a column so as soon as one label is missing.
    """
    kind = feature.dtype if isinstance(feature, Value) else str(feature)
    if isinstance(feature, ClassLabel):
        codes = pc.fill_null(values.cast(pa.int64()), -1).to_numpy()
        if len(codes) and codes.max() >= len(feature.names):
            raise ValueError(
                f"data.label_column: column {column!r} has the label {codes.max()}, but names of {len(feature.names)} "
                f"classes, numbered from 0: {', '.join(feature.names[:5])} ..."
            )
        return merged(np.maximum(codes, -1), feature.names)
    if kind == "null":
        return unknown(len(values))
    if kind in STRINGS:
        texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
        unclear = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(["", "-1", "nan"]))
        return coded(pc.if_else(unclear, pa.scalar(None, pa.string()), texts))
    if _FLOAT.fullmatch(kind):
        values = values.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    if kind == "bool" or _INTEGER.fullmatch(kind) or _FLOAT.fullmatch(kind):
        try:
            numbers = values.cast(pa.int64())
        except pa.ArrowInvalid as error:  # a fraction, or more than int64 holds
            message = f"column {column!r} holds {kind}; expected class names or integers: {reason(error)}"
            raise ValueError(f"data.label_column: {message}") from None
        return coded(pc.if_else(pc.less(numbers, 0), pa.scalar(None, pa.string()), numbers.cast(pa.string())))
    raise ValueError(f"data.label_column: column {column!r} holds {kind}; expected class names or integers")


def unknown(rows: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels where there are none."""
    return np.full(rows, -1), ()


def reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
