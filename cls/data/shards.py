"""One parquet shard of `cls pack`: written aside, read back, compared, then renamed."""

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value

from cls.runtime.files import replacing, sha256, sync

PLACES = "cls.places"

GROUP_BYTES = 4_000_000  # of a row group; streaming shuffles windows of 16


class Row(NamedTuple):
    key: str  # the image's id without its split
    label: int
    data: bytes
    bad: str  # why it could not be decoded, where that was tried


def write_shard(path: Path, rows: Iterator[Row], classes: Sequence[str]) -> dict[str, Any]:
    """Write one shard, read it back, and give its entry of pack.json."""
    features = Features({"image": Image(), "label": ClassLabel(names=list(classes)), "__key__": Value("string")})
    written: list[tuple[str, int, bytes]] = []
    places: list[tuple[int, int]] = []
    bad: dict[str, str] = {}
    with replacing(path) as aside:
        with aside.open("w+b") as file, _writer(file, features.arrow_schema) as writer:
            for group in _groups(rows):
                start = file.tell()
                writer.write_table(_table(group, features.arrow_schema))
                places += _places(file, start, group)
                written += [(row.key, row.label, _digest(row.data)) for row in group]
                bad |= {row.key: row.bad for row in group if row.bad}
            writer.add_key_value_metadata({PLACES: base64.b64encode(np.array(places, dtype="<i8").tobytes())})
        _uncache(aside)
        if list(_read_back(aside)) != written:
            raise OSError(f"{path}: verification failed: data read back differs from data written (faulty disk?)")
        entry = {"images": len(written), "bytes": aside.stat().st_size, "sha256": sha256(aside), "undecodable": bad}
    return entry


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Uncompressed: images do not compress; statistics would store the smallest and largest image of a row group."""
    return pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False)


def _groups(rows: Iterator[Row]) -> Iterator[list[Row]]:
    group, size = list[Row](), 0
    for row in rows:
        group.append(row)
        size += len(row.data)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _places(file: BinaryIO, start: int, group: list[Row]) -> list[tuple[int, int]]:
    """Offset and size of each image of the row group that starts at ``start``.

    Uncompressed parquet stores the values in row order, each as its length (4 bytes) and its bytes.
    """
    file.flush()
    content, found, at = os.pread(file.fileno(), file.tell() - start, start), [], 0
    for row in group:
        at = content.index(len(row.data).to_bytes(4, "little") + row.data, at) + 4
        found.append((start + at, len(row.data)))
        at += len(row.data)
    return found


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    images = [{"bytes": row.data, "path": PurePosixPath(row.key).name} for row in rows]
    return pa.table([images, [row.label for row in rows], [row.key for row in rows]], schema=schema)


def _uncache(path: Path) -> None:
    """Drop the file from the page cache, so that the next read is from the disk or file server."""
    sync(path)  # only synced pages can be dropped
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_back(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """The shard's rows as pyarrow reads them; no digest where the noted places give other bytes."""
    with path.open("rb") as file, pq.ParquetFile(path, memory_map=True) as parquet:
        places = iter(np.frombuffer(base64.b64decode(parquet.metadata.metadata[PLACES.encode()]), "<i8").reshape(-1, 2))
        for group in range(parquet.num_row_groups):
            for row, (offset, size) in zip(parquet.read_row_group(group).to_pylist(), places, strict=False):
                data = os.pread(file.fileno(), size, offset)
                yield row["__key__"], row["label"], _digest(data) if data == row["image"]["bytes"] else b""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
