"""What a walk of a folder found, kept for the next start, which then only looks whether a folder has changed.

One Arrow file for each folder of images, in the datasets cache (HF_HOME), mapped and not read: 100,000 files then cost
a process no memory but its labels. It holds while each folder that was walked has the inode and the ctime that it
had; images rewritten in place change nothing here, their names are what is kept.
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
from cls.data.split import COLUMNS, Found, Split
from cls.runtime.files import replacing

RACY_SECONDS = 2.0
"""A folder younger than this when it is walked may get one more name within the same tick of its file system's clock
(FAT's is 2 s) and keep its time of change."""
VERSION = 5


def cache_folder() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "cls-index"


def read_index(root: Path) -> Found | None:
    """What is known of a folder of images, if that still holds; a damaged index is none."""
    path = _path(root)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):  # ArrowInvalid is a ValueError
        table = MemoryMappedTable.from_file(str(path))
        about = json.loads(table.schema.metadata[b"cls"])
        real = os.path.realpath(root)
        known = [Stamp(*one) for one in about["folders"]]
        if about["version"] != VERSION or about["root"] != real or any(stamp(real, one.path) != one for one in known):
            return None
        table.validate(full=True)  # 10 ms for 100,000 files: offsets beyond the file would end the process
        if len(table) != sum(part["rows"] for part in about["parts"]):
            return None
        return Found(_parts(table, about, path.stem), list(about["notes"]), about["ignored"])
    return None


def keep_index(root: Path, listing: Listing, found: Found, scanned: float) -> Found:
    """Keep what a walk that began at ``scanned`` (seconds since 1970) found; gives it mapped where that is possible.

    A cache that cannot be written is no error: the next start walks again, as it does while a folder is too young.
    What another process kept meanwhile stays: others may have it mapped.
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


def _write(file: pa.NativeFile, about: dict[str, Any], found: Found) -> None:
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
        images = Dataset(
            own.select([*COLUMNS]),
            info=datasets.DatasetInfo(features=datasets.Features(COLUMNS)),
            fingerprint=f"{name}-{one['split']}",
        )
        parts[one["split"]] = Split(images, codes, tuple(one["names"]), origin=one["origin"])
    return parts


def _path(root: Path) -> Path:
    """By the name that was given: images are opened below it, whatever its links lead to."""
    return cache_folder() / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]}.arrow"
