"""Any source of images as self-contained parquet shards, for file systems that hate small files and for streaming.

Each shard is written aside, read back and compared, and only then gets its name. ``packing.json`` notes the finished
ones until ``pack.json`` says that all is there, so an interrupted `cls pack` goes on where it was.
"""

import base64
import hashlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value

from cls import config
from cls.data.access import Encoded, column, fingerprint, images_of
from cls.data.packing import PLACES, Packing
from cls.data.part import SPLITS
from cls.data.sources import labels_of, load
from cls.files import replacing, write_whole
from cls.images.decode import BadImage, decode
from cls.seed import generator

log = logging.getLogger("cls")

GROUP_BYTES = 4_000_000
"""Of a row group: a window of 16 of them is what streaming mixes."""
SAMPLE = 64  # images from whose size the number of shards follows
VERSION = 1


class Row(NamedTuple):
    key: str  # the image's id without its split
    label: int
    data: bytes
    bad: str  # why it could not be decoded, where that was tried


def pack(source: str, to: Path, how: Packing) -> dict[str, Any]:
    """Write ``to``/<split>-00000-of-00007.parquet and pack.json, whose content is returned; goes on where it was.

    Rows lie in a seeded random order: class-sorted folders must not give blocks of one class.
    """
    root = Path(source).expanduser()
    if root.is_dir() and to.absolute().is_relative_to(root.absolute()):
        raise ValueError(f"--to {to} lies inside {source}: pack to a folder beside it")
    data = config.Data(path=source, val_fraction=how.val_fraction, image_column=how.image_column,
                       label_column=how.label_column)  # fmt: skip
    splits = load(data, how.seed)
    found = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test else {})
    rows = {split: rows for split, rows in found.items() if isinstance(rows, Dataset)}
    plan = {
        "version": VERSION,
        "source": str(root.absolute()) if root.exists() else source,
        "options": asdict(how),
        "classes": list(splits.classes),
        "splits": {split: _split_plan(part, split, how) for split, part in rows.items()},
    }
    done = _begin(to, plan)
    if not (to / "pack.json").exists():
        _write(to, plan, done, rows, splits.classes, how)
    document: dict[str, Any] = json.loads((to / "pack.json").read_text())
    for split, part in document["splits"].items():
        size = sum(entry["bytes"] for name, entry in document["files"].items() if name.startswith(f"{split}-"))
        _say(f"{split}: {part['images']:,} images, {part['shards']} shards, {size / 1e6:,.1f} MB")
    _say(f"{len(splits.classes)} classes; {to} is for --data.path and for datasets.load_dataset")
    return document | {"folder": str(to)}


def _split_plan(rows: Dataset, split: str, how: Packing) -> dict[str, Any]:
    labels = labels_of(rows)
    images, sample = images_of(rows), _order(rows, split, how)[:SAMPLE]
    size = sum(len(_shrunk(data, how)[0]) for data in images.read(sample) if not isinstance(data, BadImage))
    shards = ceil(max(1, size) / len(sample) * len(rows) / (how.shard_mb * 1e6))
    numbers, counts = np.unique(labels, return_counts=True)
    return {
        "images": len(rows),
        "sha256": fingerprint(rows),  # of ids and labels
        "shards": min(len(rows), shards),
        "of_class": dict(zip(map(str, numbers.tolist()), counts.tolist(), strict=True)),
    }


def _order(rows: Dataset, split: str, how: Packing) -> list[int]:
    return list(map(int, generator(how.seed, "pack", split).permutation(len(rows))))


def _begin(to: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The shards that an earlier command of the same plan has finished, each compared with its hash."""
    for name in ("pack.json", "packing.json"):
        if (to / name).exists():
            known = json.loads((to / name).read_text())
            _refuse_other(to, known, plan)
            whole = {file: entry for file, entry in known["files"].items() if _sha256(to / file) == entry["sha256"]}
            if len(whole) < len(known["files"]):
                lost = sorted(set(known["files"]) - set(whole))
                log.warning("%s: %s damaged or gone, packed again", to, ", ".join(lost))
                (to / "pack.json").unlink(missing_ok=True)
            for aside in to.glob(".*.tmp"):  # of a process that was killed
                aside.unlink()
            if whole:
                _say(f"{len(whole)} finished shards in {to} verified and kept")
            return whole
    if to.exists() and any(to.iterdir()):
        raise ValueError(f"--to {to} is not empty and holds no begun packing: name a new folder")
    write_whole(to / "packing.json", json.dumps(plan | {"files": {}}, indent=1).encode())
    return {}


def _refuse_other(to: Path, known: dict[str, Any], plan: dict[str, Any]) -> None:
    old, new = known["options"] | known, plan["options"] | plan
    for name in [*plan["options"], "version", "source", "classes", "splits"]:
        if old.get(name) != new[name]:
            field = f"--{name.replace('_', '-')}" if name in plan["options"] else name
            values = "other ones" if name in ("classes", "splits") else f"{old.get(name)!r}, not {new[name]!r}"
            raise ValueError(f"{to} was begun with {field} {values}: name another --to, or delete it")


def _write(to: Path, plan: dict[str, Any], done: dict[str, Any], rows: dict[str, Dataset], classes: Sequence[str],
           how: Packing) -> None:  # fmt: skip
    meter = Meter(sum(len(part) for part in rows.values()))
    for split, part in rows.items():
        count = plan["splits"][split]["shards"]
        for number, own in enumerate(np.array_split(np.array(_order(part, split, how)), count)):
            name = f"{split}-{number:05d}-of-{count:05d}.parquet"
            if name in done:
                meter.skip(len(own))
                continue
            done[name] = _shard(to / name, _rows(part, split, own.tolist(), how, meter), classes)
            write_whole(to / "packing.json", json.dumps(plan | {"files": done}, indent=1).encode())
    write_whole(to / "pack.json", json.dumps(plan | {"files": done}, indent=1).encode())
    (to / "packing.json").unlink()
    bad = sum(len(entry["undecodable"]) for entry in done.values())
    if bad:
        log.warning("%d images cannot be decoded and were packed as they are; %s names them", bad, to / "pack.json")


def _rows(part: Dataset, split: str, own: list[int], how: Packing, meter: "Meter") -> Iterator[Row]:
    """Rows in the given order, read and reduced by as many threads as there are cores."""
    images, labels = images_of(part), labels_of(part)
    ids = column(part, "id")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for places in _batched(own, 256):
            pieces = pool.map(images.read, _batched(places, 16))
            shrunk = pool.map(lambda data: _shrunk(data, how), [data for piece in pieces for data in piece])
            for place, (data, bad) in zip(places, shrunk, strict=True):
                key = ids[place].as_py()
                if bad.startswith("cannot be read"):
                    raise ValueError(f"{key} {bad}: mend or remove it, then run the same command")
                top, _, rest = key.partition("/")
                yield Row(rest if SPLITS.get(top.lower()) == split and rest else key, int(labels[place]), data, bad)
                meter.add(len(data))


def _batched(values: list[int], size: int) -> Iterator[list[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _shrunk(data: Encoded, how: Packing) -> tuple[bytes, str]:
    """Bytes to store, and why they could not be decoded. Smaller images keep their bytes, never enlarged."""
    if isinstance(data, BadImage):
        return b"", f"cannot be read: {data}".replace("cannot be read: cannot be read", "cannot be read")
    data = bytes(data)
    if not how.short:
        return data, ""
    try:
        image = decode(data)
    except BadImage as error:
        return data, str(error)
    scale = how.short / min(image.size)
    if scale >= 1:
        return data, ""
    width, height = (max(how.short, round(side * scale)) for side in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), PIL.Image.Resampling.BICUBIC, reducing_gap=3.0).save(
        buffer, "JPEG", quality=how.quality
    )
    return buffer.getvalue(), ""


def _shard(path: Path, rows: Iterator[Row], classes: Sequence[str]) -> dict[str, Any]:
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
        if list(_read_back(aside)) != written:
            raise OSError(f"{path}: what was read back is not what was written; the disk is not to be trusted")
        entry = {"images": len(written), "bytes": aside.stat().st_size, "sha256": _sha256(aside), "undecodable": bad}
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


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


class Meter:
    """How far the packing is, on standard error, every few seconds."""

    def __init__(self, images: int) -> None:
        self.left, self.done, self.bytes = images, 0, 0
        self.since = self.told = time.monotonic()

    def skip(self, images: int) -> None:
        self.left -= images

    def add(self, size: int) -> None:
        self.left, self.done, self.bytes = self.left - 1, self.done + 1, self.bytes + size
        now = time.monotonic()
        if now - self.told >= 5 or not self.left:
            self.told, seconds = now, max(now - self.since, 1e-3)
            eta = timedelta(seconds=round(self.left * seconds / self.done))
            rates = f"{self.done / seconds:.0f} images/s, {self.bytes / seconds / 1e6:.1f} MB/s"
            _say(f"{self.done} images packed, {rates}, {self.left} left, ETA {eta}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
