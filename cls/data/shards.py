"""One parquet shard of `cls pack`: written aside, read back, compared, and only then named."""

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

GROUP_BYTES = 4_000_000
"""Of a row group: a window of 16 of them is what streaming mixes."""


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
            raise OSError(f"{path}: what was read back is not what was written; the disk is not to be trusted")
        entry = {"images": len(written), "bytes": aside.stat().st_size, "sha256": sha256(aside), "undecodable": bad}
    return entry


def _writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Plain: images do not compress, and statistics would repeat the least and the greatest of each row group."""
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
    """Offset and size in the file of each image of the row group that was written from ``start`` on.

    Uncompressed parquet holds each value's length, 4 bytes, and then its bytes as they are, in the order of the rows.
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
    """Have the next read ask the disk (or the file server), not this machine's memory."""
    sync(path)  # only what is written can be dropped
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_back(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """What the shard holds, by pyarrow and, where they agree, by the noted places."""
    with path.open("rb") as file, pq.ParquetFile(path, memory_map=True) as parquet:
        places = iter(np.frombuffer(base64.b64decode(parquet.metadata.metadata[PLACES.encode()]), "<i8").reshape(-1, 2))
        for group in range(parquet.num_row_groups):
            for row, (offset, size) in zip(parquet.read_row_group(group).to_pylist(), places, strict=False):
                data = os.pread(file.fileno(), size, offset)
                yield row["__key__"], row["label"], _digest(data) if data == row["image"]["bytes"] else b""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
