"""Webdataset tars: consecutive members with the same name up to the first dot are one sample."""

import contextlib
import hashlib
import itertools
import json
import os
import shlex
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from datasets.table import MemoryMappedTable

from cls.data.fixes import unpack
from cls.data.folders.folder_cache import cache_folder
from cls.data.folders.ignored import is_unread_image
from cls.data.readers import Encoded, locate, pread
from cls.data.sampler import block_counts
from cls.runtime.files import replacing
from cls.transforms.decode import EXTENSIONS

T = TypeVar("T")
Mode = Literal["r:", "r:*"]
PEEKED = 1000  # members examined for a hint
TEXTS = ("cls", "txt", "text", "label", "class", "id")  # endings of members that may hold a label
READING = 2
"""Part of the names of caches: raised when the same tar is read differently."""
SCHEMA = pa.schema({"key": pa.string(), "offset": pa.int64(), "size": pa.int64(), "label": pa.string()})


class Sample(NamedTuple, Generic[T]):
    key: str
    base: str  # name of the image's member without folders
    image: T
    label: str | None


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # isfile
    return stream.read()


def samples(
    path: str, mode: Mode, take: Callable[[tarfile.TarFile, tarfile.TarInfo], T], where: str = ""
) -> Iterator[Sample[T]]:
    """One pass over a tar; ``take`` returns what is needed of an image's member. Samples without an image are skipped;
    one whose only image is of a kind that is not read (.heic) has that: a corrupt image is counted and named.

    ``mode``: "r:" for uncompressed tars only, "r:*" for any. ``where`` the label is: "txt" for the text of member .txt,
    "json.KEY" for a value in .json; empty: .cls, or "label" in .json. ReadError for a tar that is damaged or cut off,
    ValueError for two images in a sample.
    """
    with tarfile.open(path, mode) as tar:
        key, label = None, None
        image: tuple[str, T] | None = None
        unread: tuple[str, T] | None = None
        for member in tar:
            folder, base = os.path.split(member.name)
            if not member.isfile() or base.startswith("."):
                continue
            stem, _, suffix = base.partition(".")
            own = f"{folder}/{stem}" if folder else stem
            if own != key:
                if key is not None and (one := image or unread):
                    yield Sample(key, *one, label)
                key, label, image, unread = own, None, None, None
            last = suffix.rpartition(".")[2].lower()
            if "." + last in EXTENSIONS:
                if image:
                    raise ValueError(
                        f"sample {own!r} has two images, {image[0]} and {base}: a name up to its first dot must be of "
                        "one image alone"
                    )
                image = base, take(tar, member)
            elif is_unread_image(f".{last}"):
                unread = base, take(tar, member)
            elif (found := _label(tar, member, last, where)) is not None:
                label = found
        _check_end(tar)
        if key is not None and (one := image or unread):
            yield Sample(key, *one, label)


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, last: str, where: str) -> str | None:
    """The label that a member holds, if any; ``last`` is its ending."""
    if last == "json" and (not where or where.startswith("json.")):
        about = json.loads(content(tar, member))
        found = about.get(where.removeprefix("json.") or "label") if isinstance(about, dict) else None
        if isinstance(found, list | dict):
            raise ValueError(f"{member.name} holds {str(found)[:40]} as label, not one class")
        whole = isinstance(found, float) and found.is_integer()
        return None if found is None else str(int(found) if whole else found)
    return content(tar, member).decode().strip() if last == (where or "cls") else None


def hint(path: str, where: str) -> str:
    """What to do about samples without a label, by the members of the first ones."""
    read = f"read are {f'labels in {where!r}' if where else 'member .cls and the key label of .json'}"
    endings: Counter[str] = Counter()
    values: dict[str, set[str]] = {}
    with contextlib.suppress(OSError, ValueError, tarfile.TarError), tarfile.open(path, "r:*") as tar:
        for member in itertools.islice((one for one in tar if one.isfile()), PEEKED):
            last = os.path.basename(member.name).rpartition(".")[2].lower()
            endings[last] += 1
            if last == "json":
                about = json.loads(content(tar, member))
                for key, value in (about if isinstance(about, dict) else {}).items():
                    if isinstance(value, str | int) and key.isprintable():
                        values.setdefault(f"json.{key}", set()).add(str(value))
            elif last in TEXTS and member.size < 1000:
                values.setdefault(last, set()).add(content(tar, member).decode().strip())
    fit = sorted((len(found), name) for name, found in values.items() if name != where)
    listed = ", ".join(f"{count} .{name}" for name, count in endings.most_common(8))
    if endings[where or "cls"] >= sum(count for name, count in endings.items() if f".{name}" in EXTENSIONS) > 0:
        return f"; the first members are {listed}: those of one image must follow each other (tar --sort=name)"
    if fit:
        names = [name for _, name in sorted(fit, key=lambda one: (one[0] < 2, one[0]))]
        options = f"--data.label-column {shlex.quote(names[0])}" + (
            f" (or {', '.join(names[1:4])})" if names[1:] else ""
        )
        return f"; {read}, the first members are {listed}: name where it is: {options}"
    classes = unpack(path, os.path.basename(path).partition(".")[0])
    return f"; {read}, the first members are {listed}; if the folders in it are the classes, {classes}"


def _check_end(tar: tarfile.TarFile) -> None:
    """ReadError for data after the end: tarfile stops at the first header that it does not understand."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off after {tar.offset:,} bytes: no end mark follows")
    while rest:
        if any(rest):
            raise tarfile.ReadError(f"behind byte {tar.offset:,} it is damaged, or another tar begins (not read)")
        rest = tar.fileobj.read(2**20)


class TarBlocks:
    """Images in uncompressed tars, read at their offsets, in blocks of consecutive samples."""

    def __init__(self, root: Path, indices: dict[str, pa.Table]) -> None:
        self._paths, self._indices = list(indices), list(indices.values())
        self._names = [os.path.relpath(path, root) for path in indices]
        self._starts = np.cumsum([0, *(len(found) for found in self._indices)])
        self.counts = np.concatenate([block_counts(len(found)) for found in self._indices])

    @property
    def labels(self) -> pa.ChunkedArray:
        return pa.chunked_array([c for found in self._indices for c in found.column("label").chunks], pa.string())

    def name(self, row: int) -> str:
        """File, sample in it (from 0), and its key, which may occur several times."""
        tar, place = locate(self._starts, row)
        return f"{self._names[tar]}:{place}:{self._indices[tar].column('key')[place].as_py()}"

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        return [self._read(row) for row in rows]

    def identity(self) -> list[Any]:
        sizes = [int(np.sum(found.column("size").to_numpy())) for found in self._indices]
        return [*zip(self._names, sizes, strict=True)]

    def sizes(self) -> np.ndarray:
        return np.concatenate([found.column("size").to_numpy() for found in self._indices])

    def _read(self, row: int) -> Encoded:
        tar, place = locate(self._starts, row)
        offset, size = (self._indices[tar].column(name)[place].as_py() for name in ("offset", "size"))
        return pread(self._paths[tar], offset, size)


def index(path: str, where: str) -> MemoryMappedTable | pa.Table:
    """Key, offset, size and label of each sample of a tar; cached in the datasets cache by path, size and mtime.

    The first pass reads headers and labels only, about 30 us a member. A cache that cannot be written is no error.
    """
    status = os.stat(path)
    stamp = f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {where} {READING}"
    file = cache_folder() / f"whole-tar-{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.arrow"
    with contextlib.suppress(OSError, ValueError):  # ArrowInvalid is a ValueError
        return _mapped(file)
    found = [
        {"key": one.key, "offset": one.image[0], "size": one.image[1], "label": one.label}
        for one in samples(path, "r:", lambda _, member: (member.offset_data, member.size), where)
    ]
    table = pa.Table.from_pylist(found, SCHEMA)
    with contextlib.suppress(OSError, ValueError):
        return _mapped(file)  # written by another process meanwhile; others may have it mapped
    with contextlib.suppress(OSError):
        with replacing(file) as aside, pa.ipc.new_stream(str(aside), SCHEMA) as writer:
            writer.write_table(table)
        return _mapped(file)
    return table


def _mapped(file: Path) -> MemoryMappedTable:
    table = MemoryMappedTable.from_file(str(file))
    table.validate(full=True)
    if table.schema != SCHEMA:
        raise ValueError("of another version")
    return table
