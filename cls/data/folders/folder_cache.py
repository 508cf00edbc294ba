"""Cached result of walking an image folder; the next start only checks whether a folder has changed.

One Arrow file per image folder in the datasets cache (HF_HOME), memory-mapped: 100,000 files cost a process no memory
but their labels. Valid while each walked folder has the same inode and ctime. Only names are cached, so images may be
rewritten in place.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import MemoryMappedTable

from cls.data.folders.image_folder import Listing, Stamp, stamp
from cls.data.split import COLUMNS, RawSplits, Split
from cls.runtime.files import replacing

RACY_SECONDS = 2.0
"""A folder changed this recently may get another name within the same tick of the file system's clock (2 s on FAT),
without a new ctime."""
VERSION = 6


def cache_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "cls-index"


def read_index(root: Path) -> RawSplits | None:
    """The cached splits of an image folder; None if there are none, or they are outdated or damaged."""
    path = _path(root)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # ArrowInvalid is a ValueError
        table = MemoryMappedTable.from_file(str(path))
        about = json.loads(table.schema.metadata[b"cls"])
        real = os.path.realpath(root)
        known = [Stamp(*one) for one in about["folders"]]
        if about["version"] != VERSION or about["root"] != real or any(stamp(real, one.path) != one for one in known):
            return None
        table.validate(full=True)  # 10 ms for 100,000 files; offsets beyond the file would crash
        if len(table) != sum(part["rows"] for part in about["parts"]):
            return None
        return RawSplits(_parts(table, about, path.stem), list(about["notes"]), about["ignored"])
    return None


def keep_index(root: Path, listing: Listing, found: RawSplits, scanned: float) -> RawSplits:
    """Cache what a walk that began at ``scanned`` (Unix time) found; returns it memory-mapped if possible.

    A cache that cannot be written is no error: the next start walks again, as it does after a recent change. An index
    that another process has written meanwhile stays: others may have it mapped.
    """
    youngest = max(one.changed_ns for one in listing.folders) / 1e9
    if listing.dangling or youngest > scanned - RACY_SECONDS:
        return found
    if known := read_index(root):
        return known
    about: dict[str, Any] = {"version": VERSION, "root": os.path.realpath(root), "folders": listing.folders}
    about |= {"notes": found.notes, "ignored": found.ignored}
    about["parts"] = [
        {"split": split, "rows": len(part), "names": part.names, "origin": part.origin}
        for split, part in found.parts.items()
    ]
    try:
        with replacing(_path(root)) as aside, pa.OSFile(str(aside), "wb") as file:
            _write(file, about, found)
    except OSError:
        return found
    return read_index(root) or found


def _write(file: pa.NativeFile, about: dict[str, Any], found: RawSplits) -> None:
    tables = []
    for part in found.parts.values():
        assert isinstance(part.images, Dataset)
        codes = pa.array(part.codes.astype(np.int32))
        tables.append(part.images.data.table.replace_schema_metadata().append_column("code", codes))
    table = pa.concat_tables(tables).replace_schema_metadata({"cls": json.dumps(about)})
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _parts(table: MemoryMappedTable, about: dict[str, Any], name: str) -> dict[str, Split]:
    parts, start = {}, 0
    for one in about["parts"]:
        own = table.slice(start, one["rows"])
        start += one["rows"]
        codes = own.column("code").combine_chunks().to_numpy(zero_copy_only=False)
        info = datasets.DatasetInfo(features=datasets.Features(COLUMNS))
        images = Dataset(own.select([*COLUMNS]), info=info, fingerprint=f"{name}-{one['split']}")
        parts[one["split"]] = Split(images, codes, tuple(one["names"]), origin=one["origin"])
    return parts


def _path(root: Path) -> Path:
    """By the path as given, links not resolved: images are opened below it."""
    return cache_folder() / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]}.arrow"
