"""Any source of images as self-contained parquet shards: for streaming, and for file systems that are slow with small
files.

Each shard is written under another name, read back, compared and then renamed. ``packing.json`` lists the finished ones
until ``pack.json`` says that all are there, so an interrupted `cls pack` resumes. It is an error if the source has
changed since: other ids, labels or classes, other sizes or modification times of image files; of images inside tables
and tars other sizes, or other bytes of a sample of them (reading all again would take as long as packing).
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
from contextlib import ExitStack
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.compute as pc
from datasets import Dataset

from cls.commands.options import PackOptions
from cls.data.readers import Encoded, column, files_of, fingerprint, images_of, sizes_of
from cls.data.shards import Row, write_shard
from cls.data.sources import labels_of, load
from cls.data.split import SPLITS
from cls.runtime.files import ASIDE, sha256, write_whole
from cls.runtime.lock import Heartbeat, claim
from cls.runtime.paths import writing
from cls.runtime.progress import ProgressMeter
from cls.runtime.rng import generator
from cls.runtime.system import cores
from cls.transforms.decode import CorruptImageError, decode

log = logging.getLogger("cls")

SAMPLE = 64  # images from whose size the number of shards follows
VERSION = 2
LOCK = "packing.lock"
OTHER = {
    "classes": "other classes",
    "splits": "other images",
    "stamps": "images of other sizes or contents, or image files of other modification times",
}


def pack(source: str, to: Path, options: PackOptions) -> dict[str, Any]:
    """Write ``to``/<split>-00000-of-00007.parquet and pack.json, whose content is returned; resumes an interrupted one.

    The rows of each split are in a seeded random order: folders are sorted by class, blocks of shards must not be.
    """
    root, to = Path(source).expanduser(), to.expanduser()
    if root.is_dir() and to.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"--to {to} lies inside {source}: pack to a folder beside it")
    above = next(path for path in (to.absolute(), *to.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"--to {to}: {above} is a file; name a folder")
    splits = load(options.data(source), options.seed)
    found = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test else {})
    rows = {split: part for split, part in found.items() if isinstance(part, Dataset)}
    orders = {split: generator(options.seed, "pack", split).permutation(len(part)) for split, part in rows.items()}
    samples = {split: order[:SAMPLE].tolist() for split, order in orders.items()}
    plan = {
        "version": VERSION,
        "source": str(root.absolute()) if root.exists() else source,
        "options": _as_json(options),
        "classes": list(splits.classes),
        "stamps": {split: _stamps(part, samples[split]) for split, part in rows.items()},
        "splits": {split: _split_plan(part, samples[split], options) for split, part in rows.items()},
    }
    with ExitStack() as stack:
        _claim(to, stack)
        done = _finished(to, plan)
        if not (to / "pack.json").exists():
            with writing("to", to):
                _write(to, plan, done, rows, orders, options)
    document: dict[str, Any] = json.loads((to / "pack.json").read_text())
    for split, part in document["splits"].items():
        size = sum(entry["bytes"] for name, entry in document["files"].items() if name.startswith(f"{split}-"))
        _print(f"{split}: {part['images']:,} images, {part['shards']} shards, {size / 1e6:,.1f} MB")
    _print(f"{len(splits.classes)} classes; use {to} as --data.path or with datasets.load_dataset")
    return document | {"folder": str(to)}


def _as_json(options: PackOptions) -> dict[str, Any]:
    """Its fields as they are read from a file: tuples become lists."""
    return dict(json.loads(json.dumps(asdict(options))))


def _claim(to: Path, stack: ExitStack) -> None:
    """No other process packs into this folder until ``stack`` ends. A read-only folder needs no lock to be verified."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        if os.access(to, os.W_OK):
            claim(to / LOCK, "--to")
            stack.enter_context(Heartbeat(to / LOCK))
    except OSError as error:
        raise ValueError(f"--to {to}: {error.strerror} ({error.filename}); name another folder") from None


def _split_plan(rows: Dataset, sample: list[int], options: PackOptions) -> dict[str, Any]:
    data = [one for one in images_of(rows).read(sample) if not isinstance(one, CorruptImageError)]
    size = sum(len(_reduced(one, options)[0]) for one in data)
    shards = ceil(max(1, size) / len(sample) * len(rows) / (options.shard_mb * 1e6))
    numbers, counts = np.unique(labels_of(rows), return_counts=True)
    return {
        "images": len(rows),
        "sha256": fingerprint(rows),  # of ids and labels
        "shards": min(len(rows), shards),
        "of_class": dict(zip(map(str, numbers.tolist()), counts.tolist(), strict=True)),
    }


def _stamps(rows: Dataset, sample: list[int]) -> str:
    """Hash of the image files' sizes and modification times; of images inside tables their sizes, and the bytes of a
    sample. A missing image file is an error.
    """
    digest = hashlib.sha256()
    if (sizes := sizes_of(rows)).null_count < len(rows):
        digest.update(pc.fill_null(sizes, -1).to_numpy().astype("<i8").tobytes())
        for data in images_of(rows).read(sample):
            digest.update(b"" if isinstance(data, CorruptImageError) else data)
    for path in (path for chunk in files_of(rows).chunks for path in chunk.drop_null().to_pylist()):
        try:
            status = os.stat(path)
            problem = "" if stat.S_ISREG(status.st_mode) else "is no regular file"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem:
            raise ValueError(f"{path} {problem}: fix or remove it, then run the same command")
        digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _finished(to: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The shards that an earlier command of the same plan has finished, each compared with its hash."""
    for name in ("pack.json", "packing.json"):
        if not (to / name).exists():
            continue
        earlier, files = _read(to / name)
        _check_same(to, earlier, plan)
        whole = {
            file: entry
            for file, entry in files.items()
            if (to / file).is_file() and sha256(to / file) == entry["sha256"]
        }
        if lost := sorted(set(files) - set(whole)):
            log.warning("%s: %s corrupt or missing, packed again", to, ", ".join(lost))
            _save(to / "packing.json", plan, whole)  # first: a kill in between must not lose what is whole
            (to / "pack.json").unlink(missing_ok=True)
        elif name == "pack.json":
            (to / "packing.json").unlink(missing_ok=True)  # of a process that was killed just before its end
        for aside in to.glob(".*.tmp"):  # of a process that was killed
            aside.unlink()
        if whole:
            _print(f"{len(whole)} finished shards in {to} verified and kept")
        return whole
    left = [path.name for path in to.iterdir()]  # also by a process that was killed in its first moments
    if any(not name.startswith(LOCK) and not ASIDE.fullmatch(name) for name in left):
        raise ValueError(f"--to {to} is not empty and holds no interrupted packing: name a new folder")
    _save(to / "packing.json", plan, {})
    return {}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """An earlier command's plan with its options, and its finished shards."""
    try:
        known = json.loads(path.read_text())
        files = {name: entry for name, entry in known["files"].items() if entry["sha256"]}
        return _as_json(PackOptions()) | known["options"] | known, files  # an older pack.json lacks newer options
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is corrupt ({error}): delete {path.parent}, or name another --to") from None


def _save(path: Path, plan: dict[str, Any], files: dict[str, Any]) -> None:
    write_whole(path, json.dumps(plan | {"files": files}, indent=1).encode())


def _check_same(to: Path, old: dict[str, Any], plan: dict[str, Any]) -> None:
    new = plan["options"] | plan
    for name in [*plan["options"], "version", "source", *OTHER]:
        if old.get(name) != new[name]:
            field = f"--{name.replace('_', '-')}" if name in plan["options"] else name
            what = OTHER.get(name) or f"{field} {old.get(name)!r}, not {new[name]!r}"
            raise ValueError(f"{to} was packed with {what}: name another --to, or delete it")


def _write(
    to: Path, plan: dict[str, Any], done: dict[str, Any], rows: dict[str, Dataset], orders: dict[str, np.ndarray],
    options: PackOptions,
) -> None:  # fmt: skip
    meter = ProgressMeter(sum(map(len, orders.values())), "images packed")
    for split, part in rows.items():
        count = plan["splits"][split]["shards"]
        for number, own in enumerate(np.array_split(orders[split], count)):
            name = f"{split}-{number:05d}-of-{count:05d}.parquet"
            if name in done:
                meter.skip(len(own))
                continue
            done[name] = write_shard(to / name, _rows(part, split, own.tolist(), options, meter), plan["classes"])
            _save(to / "packing.json", plan, done)
    _save(to / "pack.json", plan, done)
    (to / "packing.json").unlink()
    if corrupt := sum(len(entry["undecodable"]) for entry in done.values()):
        log.warning("%d images cannot be decoded and were packed unchanged; %s lists them", corrupt, to / "pack.json")


def _rows(part: Dataset, split: str, own: list[int], options: PackOptions, meter: ProgressMeter) -> Iterator[Row]:
    """Rows in the given order, read and reduced by as many threads as there are cores."""
    images, labels, ids = images_of(part), labels_of(part), column(part, "id")
    with ThreadPoolExecutor(cores()) as pool:
        for batch in _batched(own, 256):
            data = [one for some in pool.map(images.read, _batched(batch, 16)) for one in some]
            reduced = pool.map(lambda one: _reduced(one, options), data)
            for row, (encoded, error) in zip(batch, reduced, strict=True):
                key = ids[row].as_py()
                if error.startswith("cannot be read"):
                    raise ValueError(
                        f"{key} {error}: run the same command when it can be read, or remove it and name another --to"
                    )
                top, _, rest = key.partition("/")
                key = rest if SPLITS.get(top.lower()) == split and rest else key
                yield Row(key, int(labels[row]), encoded, error)
                meter.add(1, len(encoded))


def _batched(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _reduced(data: Encoded, options: PackOptions) -> tuple[bytes, str]:
    """Bytes to store, and why they cannot be decoded. Small and corrupt images keep their bytes."""
    if isinstance(data, CorruptImageError):
        return b"", str(data) if str(data).startswith("cannot be read") else f"cannot be read: {data}"
    data = bytes(data)
    if not options.short:
        return data, ""
    try:
        image = decode(data)
    except CorruptImageError as error:
        return data, str(error)
    scale = options.short / min(image.size)
    if scale >= 1:
        return data, ""
    size = [max(options.short, round(side * scale)) for side in image.size]
    image = image.resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality)
    return buffer.getvalue(), ""


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
