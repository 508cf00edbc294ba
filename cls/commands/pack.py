"""Any source of images as self-contained parquet shards, for file systems that hate small files and for streaming.

Each shard is written aside, read back and compared, and only then gets its name. ``packing.json`` notes the finished
ones until ``pack.json`` says that all is there, so an interrupted `cls pack` goes on where it was. It refuses to where
the source has changed since: other ids, labels or classes, other sizes or times of change of image files; of images
that lie inside tables and tars other sizes, or other bytes of a sample of them: reading all again would take as long as
packing.
"""

import hashlib
import io
import json
import logging
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.compute as pc
from datasets import Dataset

from cls import config
from cls.commands.options import PackOptions
from cls.data.readers import Encoded, column, files_of, fingerprint, images_of, sizes_of
from cls.data.shards import Row, sha256, write_shard
from cls.data.sources import labels_of, load
from cls.data.split import SPLITS
from cls.runtime.files import ASIDE, write_whole
from cls.runtime.lock import Heartbeat, claim
from cls.runtime.paths import writing
from cls.runtime.progress import ProgressMeter
from cls.runtime.rng import generator
from cls.transforms.decode import CorruptImageError, decode
from cls.validate import check_labels

log = logging.getLogger("cls")

SAMPLE = 64  # images from whose size the number of shards follows
VERSION = 2
LOCK = "packing.lock"
OTHER = {
    "classes": "other classes",
    "splits": "other images",
    "stamps": "images of other sizes or contents, or image files of other times of change",
}


def pack(source: str, to: Path, how: PackOptions) -> dict[str, Any]:
    """Write ``to``/<split>-00000-of-00007.parquet and pack.json, whose content is returned; goes on where it was.

    Rows lie in a seeded random order: class-sorted folders must not give blocks of one class.
    """
    root, to = Path(source).expanduser(), to.expanduser()
    if root.is_dir() and to.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"--to {to} lies inside {source}: pack to a folder beside it")
    above = next(path for path in (to.absolute(), *to.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"--to {to}: {above} is a file; name a folder")
    data = config.Data(path=source, val_fraction=how.val_fraction, image_column=how.image_column, labels=how.labels,
                       id_column=how.id_column, label_column=how.label_column,
                       label_pattern=how.label_pattern)  # fmt: skip
    check_labels(data)
    splits = load(data, how.seed)
    found = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test else {})
    rows = {split: rows for split, rows in found.items() if isinstance(rows, Dataset)}
    plan = {
        "version": VERSION,
        "source": str(root.absolute()) if root.exists() else source,
        "options": _plain(how),
        "classes": list(splits.classes),
        "stamps": {split: _stamps(part, _order(part, split, how)[:SAMPLE]) for split, part in rows.items()},
        "splits": {split: _split_plan(part, split, how) for split, part in rows.items()},
    }
    with _alone(to):
        done = _begin(to, plan)
        if not (to / "pack.json").exists():
            with writing("to", to):
                _write(to, plan, done, rows, splits.classes, how)
    document: dict[str, Any] = json.loads((to / "pack.json").read_text())
    for split, part in document["splits"].items():
        size = sum(entry["bytes"] for name, entry in document["files"].items() if name.startswith(f"{split}-"))
        _say(f"{split}: {part['images']:,} images, {part['shards']} shards, {size / 1e6:,.1f} MB")
    _say(f"{len(splits.classes)} classes; {to} is for --data.path and for datasets.load_dataset")
    return document | {"folder": str(to)}


def _plain(how: PackOptions) -> dict[str, Any]:
    """Its fields as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(how)))
    return plain


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """The only packing into this folder, on any host; what may only be read has no writer, and can be verified."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        writable = os.access(to, os.W_OK)
        if writable:
            claim(to / LOCK, "--to")
    except OSError as error:
        raise ValueError(f"--to {to}: {error.strerror} ({error.filename}); name another folder") from None
    if not writable:
        yield
        return
    with Heartbeat(to / LOCK):
        yield


def _split_plan(rows: Dataset, split: str, how: PackOptions) -> dict[str, Any]:
    labels = labels_of(rows)
    images, sample = images_of(rows), _order(rows, split, how)[:SAMPLE]
    size = sum(len(_shrunk(data, how)[0]) for data in images.read(sample) if not isinstance(data, CorruptImageError))
    shards = ceil(max(1, size) / len(sample) * len(rows) / (how.shard_mb * 1e6))
    numbers, counts = np.unique(labels, return_counts=True)
    return {
        "images": len(rows),
        "sha256": fingerprint(rows),  # of ids and labels
        "shards": min(len(rows), shards),
        "of_class": dict(zip(map(str, numbers.tolist()), counts.tolist(), strict=True)),
    }


def _stamps(rows: Dataset, sample: list[int]) -> str:
    """Hash of the image files' sizes and times of change: one look at each, which also finds those that are gone; of
    images inside tables their sizes, and the bytes of a sample.
    """
    digest = hashlib.sha256()
    if (sizes := sizes_of(rows)).null_count < len(rows):
        digest.update(pc.fill_null(sizes, -1).to_numpy().astype("<i8").tobytes())
        for data in images_of(rows).read(sample):
            digest.update(b"" if isinstance(data, CorruptImageError) else data)
    for path in (path for chunk in files_of(rows).chunks for path in chunk.drop_null().to_pylist()):
        try:
            status = os.stat(path)
        except OSError as error:
            raise _unread(path, f"cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise _unread(path, "is no regular file")
        digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _unread(path: str, why: str) -> ValueError:
    return ValueError(f"{path} {why}: mend or remove it, then run the same command")


def _order(rows: Dataset, split: str, how: PackOptions) -> list[int]:
    return list(map(int, generator(how.seed, "pack", split).permutation(len(rows))))


def _begin(to: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The shards that an earlier command of the same plan has finished, each compared with its hash."""
    for name in ("pack.json", "packing.json"):
        if (to / name).exists():
            asked, files = _known(to / name)
            _refuse_other(to, asked, plan)
            whole = {file: entry for file, entry in files.items() if sha256(to / file) == entry["sha256"]}
            if len(whole) < len(files):
                lost = sorted(set(files) - set(whole))
                log.warning("%s: %s damaged or gone, packed again", to, ", ".join(lost))
                _note(to / "packing.json", plan, whole)  # first: a kill in between must not lose what is whole
                (to / "pack.json").unlink(missing_ok=True)
            elif name == "pack.json":
                (to / "packing.json").unlink(missing_ok=True)  # of one that was killed just before its end
            for aside in to.glob(".*.tmp"):  # of a process that was killed
                aside.unlink()
            if whole:
                _say(f"{len(whole)} finished shards in {to} verified and kept")
            return whole
    left = [path.name for path in to.iterdir()]  # also by a process that was killed in its first moments
    if any(not name.startswith(LOCK) and not ASIDE.fullmatch(name) for name in left):
        raise ValueError(f"--to {to} is not empty and holds no begun packing: name a new folder")
    _note(to / "packing.json", plan, {})
    return {}


def _known(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was asked for, and the finished shards."""
    try:
        known = json.loads(path.read_text())
        files = {name: entry for name, entry in known["files"].items() if entry["sha256"]}
        return _plain(PackOptions()) | known["options"] | known, files  # an older pack.json lacks newer options
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent}, or name another --to") from None


def _note(path: Path, plan: dict[str, Any], files: dict[str, Any]) -> None:
    write_whole(path, json.dumps(plan | {"files": files}, indent=1).encode())


def _refuse_other(to: Path, old: dict[str, Any], plan: dict[str, Any]) -> None:
    new = plan["options"] | plan
    for name in [*plan["options"], "version", "source", *OTHER]:
        if old.get(name) != new[name]:
            field = f"--{name.replace('_', '-')}" if name in plan["options"] else name
            what = OTHER.get(name) or f"{field} {old.get(name)!r}, not {new[name]!r}"
            raise ValueError(f"{to} was begun with {what}: name another --to, or delete it")


def _write(to: Path, plan: dict[str, Any], done: dict[str, Any], rows: dict[str, Dataset], classes: Sequence[str],
           how: PackOptions) -> None:  # fmt: skip
    meter = ProgressMeter(sum(len(part) for part in rows.values()), "images packed")
    for split, part in rows.items():
        count = plan["splits"][split]["shards"]
        for number, own in enumerate(np.array_split(np.array(_order(part, split, how)), count)):
            name = f"{split}-{number:05d}-of-{count:05d}.parquet"
            if name in done:
                meter.skip(len(own))
                continue
            done[name] = write_shard(to / name, _rows(part, split, own.tolist(), how, meter), classes)
            _note(to / "packing.json", plan, done)
    _note(to / "pack.json", plan, done)
    (to / "packing.json").unlink()
    bad = sum(len(entry["undecodable"]) for entry in done.values())
    if bad:
        log.warning("%d images cannot be decoded and were packed as they are; %s names them", bad, to / "pack.json")


def _rows(part: Dataset, split: str, own: list[int], how: PackOptions, meter: ProgressMeter) -> Iterator[Row]:
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
                    raise ValueError(
                        f"{key} {bad}: run the same command when it can be read, or remove it and name another --to"
                    )
                top, _, rest = key.partition("/")
                yield Row(rest if SPLITS.get(top.lower()) == split and rest else key, int(labels[place]), data, bad)
                meter.add(1, len(data))


def _batched(values: list[int], size: int) -> Iterator[list[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _shrunk(data: Encoded, how: PackOptions) -> tuple[bytes, str]:
    """Bytes to store, and why they could not be decoded. Smaller images keep their bytes, never enlarged."""
    if isinstance(data, CorruptImageError):
        return b"", f"cannot be read: {data}".replace("cannot be read: cannot be read", "cannot be read")
    data = bytes(data)
    if not how.short:
        return data, ""
    try:
        image = decode(data)
    except CorruptImageError as error:
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
