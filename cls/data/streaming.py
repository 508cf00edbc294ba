"""Training images in blocks that are read when needed: ``data.streaming``, for sets too large to index.

A start reads counts and labels only: footers and label columns of parquet files, headers of tars. Validation and test
images are ordinary datasets.
"""

import base64
import logging
import os
import re
import shlex
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from huggingface_hub import HfFileSystem, hf_hub_download, try_to_load_from_cache

from cls import config
from cls.data import tables, webdataset
from cls.data.readers import Encoded, Indexed, encoded, fingerprint, image_sizes, locate, pread
from cls.data.sampler import WINDOW, block_counts
from cls.data.shards import PLACES
from cls.data.split import RawSplits, Split
from cls.data.table_splits import Grouped, chosen, origin
from cls.data.webdataset import TarBlocks
from cls.runtime.exit import DataError
from cls.transforms.decode import CorruptImageError

log = logging.getLogger("cls")
T = TypeVar("T")

MAX_BLOCK_BYTES = 256_000_000  # of a row group; each process that reads images holds WINDOW + 1 of them
LARGE_BLOCK_BYTES = 64_000_000  # of which a process holds 1 GB
HUB = "hf://"


def pack_command(path: str) -> str:
    """The command that writes shards suited to streaming."""
    name = Path(path).name or str(Path(path).resolve())  # of ".", beside it
    return shlex.join(["cls", "pack", path, "--to", f"{name}-packed"])


def read_files(root: Path, files: Grouped, data: config.Data) -> dict[str, Split]:
    """Parquet or tar files: train in blocks, the other splits as in :func:`tables.read_files`."""
    kind, groups = files.kind, dict(files.paths)
    if kind == ".arrow":
        raise ValueError(f"data.streaming: arrow files ({root}) are memory-mapped; leave data.streaming off")
    if kind in (".tgz", ".tar.gz"):
        raise ValueError(
            f"data.streaming: {root} has compressed tars, which cannot be read from the middle: unpack them to .tar, "
            f"or use {pack_command(data.path)}"
        )
    parts = {}
    if paths := groups.pop("train", []):
        train = row_groups(root, paths, data) if kind == ".parquet" else _tars(root, paths, data.label_column)
        parts["train"] = replace(train, origin=origin(paths))
    return parts | {split: tables.read_split(kind, paths, split, data) for split, paths in groups.items()}


def folder_blocks(parts: dict[str, Split]) -> dict[str, Split]:
    """The splits of a folder, train in blocks of neighbouring files."""
    train = parts["train"]
    assert isinstance(train.images, Dataset)
    return parts | {"train": replace(train, images=FileBlocks(train.images, train.codes))}


def read_hub(name: str, data: config.Data) -> RawSplits:
    """The parquet shards of a hub data set; each is downloaded once per machine, when its first image is needed."""
    if datasets.config.HF_HUB_OFFLINE:
        raise ValueError(
            f"data.streaming reads {name} from the hub, but this process is offline (HF_HUB_OFFLINE or "
            "HF_DATASETS_OFFLINE): run 'cls fetch' where there is internet, and leave data.streaming off"
        )
    try:
        listed = datasets.load_dataset_builder(name).config.data_files or {}
    except Exception as error:  # the hub client raises OSError, ValueError, RuntimeError and httpx's errors
        raise tables.no_hub(name, error) from None
    names, notes = chosen(map(str, listed), name)
    found = {split: list(listed[own]) for split, own in names.items()}
    if not all(path.endswith(".parquet") for paths in found.values() for path in paths):
        raise ValueError(f"data.streaming: {name} is not kept as parquet files; use {pack_command(name)}")
    parts = {split: tables.read_split(".parquet", f, split, data) for split, f in found.items() if split != "train"}
    if paths := found.get("train"):
        parts["train"] = row_groups(Path(""), paths, data)
    return RawSplits({split: replace(part, origin=f"split {names[split]}") for split, part in parts.items()}, notes)


class FileBlocks:
    """Image files in blocks of consecutive rows."""

    def __init__(self, rows: Dataset, codes: np.ndarray) -> None:
        self._rows = rows.add_column("label", codes)
        images = Indexed(self._rows)
        self.counts, self.name, self.read = block_counts(len(rows)), images.name, images.read

    def identity(self) -> list[Any]:
        return [fingerprint(self._rows)]

    def sizes(self) -> np.ndarray:
        return image_sizes(self._rows)


class RowGroups:
    """Images in the row groups of parquet files.

    Files of `cls pack` store the offset of each image, which is then read alone. For others, each process that reads
    images decodes every row group of a window, however few of its rows it needs, and keeps the last WINDOW + 1.
    """

    def __init__(self, root: Path, files: list["Footer"]) -> None:
        self._files, self._column = files, files[0].image
        self._here: dict[int, str] = {}
        self._names = [path if (path := f.path).startswith(HUB) else os.path.relpath(path, root) for f in files]
        self._places = [(f, g) for f, file in enumerate(files) for g, count in enumerate(file.counts) if count]
        self.counts = np.array([files[f].counts[g] for f, g in self._places], dtype=np.int64)
        self._starts = np.cumsum(self.counts) - self.counts
        self._files_start = np.cumsum([0, *(sum(file.counts) for file in files)])
        self._held: OrderedDict[int, pa.Array] = OrderedDict()

    def name(self, row: int) -> str:
        """File and row in it, from 0."""
        file, place = locate(self._files_start, row)
        return f"{self._names[file]}:{place}"

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        return [self._read(row) for row in rows]

    def _read(self, row: int) -> Encoded:
        file, place = locate(self._files_start, row)
        if (places := self._files[file].places) is not None:
            offset, size = places[place].tolist()
            return self._of_local(file, lambda path: _at(path, offset, size))
        block, place = locate(self._starts, row)
        images = self._block(block)
        return images if isinstance(images, CorruptImageError) else encoded(images, place)

    def _of_local(self, file: int, take: Callable[[str], T]) -> T | CorruptImageError:
        if file not in self._here:
            self._here[file] = _local(self._files[file].path)
        try:
            return take(self._here[file])
        except tables.UNREADABLE as error:
            return CorruptImageError(f"cannot be read: {tables.reason(error)}")

    def _block(self, block: int) -> pa.Array | CorruptImageError:
        held = self._held.pop(block, None)
        images = self._decoded(block) if held is None else held
        if not isinstance(images, CorruptImageError):  # a cached failure would make all rows of the block corrupt
            self._held[block] = images
            while len(self._held) > WINDOW + 1:
                self._held.popitem(last=False)
        return images

    def _decoded(self, block: int) -> pa.Array | CorruptImageError:
        file, group = self._places[block]

        def take(path: str) -> pa.Array:
            with pq.ParquetFile(path, memory_map=True) as parquet:
                return parquet.read_row_group(group, [self._column], use_threads=False).column(0).combine_chunks()

        images = self._of_local(file, take)
        if not isinstance(images, CorruptImageError) and len(images) != self.counts[block]:
            return CorruptImageError(f"cannot be read: {self._names[file]} has changed since the start")
        return images

    def identity(self) -> list[Any]:
        return [[name, file.size] for name, file in zip(self._names, self._files, strict=True)]

    def sizes(self) -> np.ndarray:
        places = [file.places for file in self._files]
        known = [each[:, 1] for each in places if each is not None]
        return np.concatenate(known) if len(known) == len(places) else np.zeros(0, np.int64)


class Footer:
    """What a start reads of a parquet file: rows of each row group, columns, labels; and its size in bytes."""

    def __init__(self, path: str, data: config.Data) -> None:
        self.path = path
        with _opened(path) as parquet:
            about = parquet.metadata
            self.features = Features.from_arrow_schema(parquet.schema_arrow)
            self.image = tables.image_column(self.features, data)
            self.label = tables.label_column(self.features, data, "train")
            self.labels = parquet.read([self.label], use_threads=False).column(0).chunks if self.label else []
            groups = [about.row_group(g) for g in range(about.num_row_groups)]
            self.counts = [group.num_rows for group in groups]
            self.places = places_of(about)
            self.largest = 0 if self.places is not None else max((group.total_byte_size for group in groups), default=0)
        self.size = int(HfFileSystem().info(path)["size"]) if path.startswith(HUB) else os.stat(path).st_size

    @property
    def columns(self) -> tuple[str, str, Any]:
        """Columns of images and labels, and the labels' type, with its class names: the same in all files."""
        return self.image, self.label, self.features.get(self.label)


def row_groups(root: Path, paths: list[str], data: config.Data) -> Split:
    """Training images in parquet files; ValueError if row groups are too large to keep a window of them."""
    files = []
    for path in paths:
        with tables.readable(path, tables.DAMAGED):
            files.append(Footer(path, data))
    first = files[0]
    if other := next((file for file in files if file.columns != first.columns), None):
        raise ValueError(f"data.path: {other.path} has other columns or class names than {first.path}")
    largest = max(files, key=lambda file: file.largest)
    held = f"{largest.path} has row groups of {largest.largest / 1e6:.0f} MB, of which each process that reads images"
    if largest.largest > MAX_BLOCK_BYTES:
        raise ValueError(f"data.streaming: {held} would hold {WINDOW}; smaller ones: {pack_command(data.path)}")
    if largest.largest > LARGE_BLOCK_BYTES:
        log.warning("%s holds %d; smaller ones: %s", held, WINDOW, pack_command(data.path))
    blocks, hint = RowGroups(root, files), tables.column_hint(first.features, first.image, first.label)
    if not first.label:
        return Split(blocks, *tables.unknown(int(blocks.counts.sum())), hint, files=tuple(paths))
    labels = pa.chunked_array([chunk for file in files for chunk in file.labels])
    codes, names = tables.numbered(labels, first.features[first.label], first.label)
    return Split(blocks, codes.astype(np.int32), names, hint, files=tuple(paths))


def places_of(about: pq.FileMetaData) -> np.ndarray | None:
    """Offset and size of each image as stored by `cls pack`; None if the file was rewritten since."""
    found = (about.metadata or {}).get(PLACES.encode())
    if found is None or not about.num_row_groups:
        return None
    places = np.frombuffer(base64.b64decode(found), "<i8").reshape(-1, 2)
    image = about.row_group(0).column(0)
    last = about.row_group(about.num_row_groups - 1).column(0)
    end = last.data_page_offset + last.total_compressed_size
    same = len(places) == about.num_rows and image.compression == "UNCOMPRESSED" and places[-1].sum() == end
    return places if same else None


def _at(path: str, offset: int, size: int) -> Encoded:
    """An image at its offset; parquet stores its length before it, which is compared."""
    found = pread(path, offset - 4, size + 4)
    if isinstance(found, CorruptImageError):
        return found
    if int.from_bytes(found[:4], "little") != size:
        return CorruptImageError(f"cannot be read: {path} has changed since the start")
    return memoryview(found)[4:]


def _tars(root: Path, paths: list[str], label: str) -> Split:
    indices = {}
    for path in paths:
        with tables.readable(path):
            indices[path] = webdataset.index(path, label)
    blocks = TarBlocks(root, indices)
    codes, names = tables.numbered(blocks.labels, Value("string"), "label")
    hint = webdataset.hint(paths[0], label) if (codes < 0).any() else ""
    return Split(blocks, codes, names, hint, files=tuple(paths))


def _opened(path: str) -> pq.ParquetFile:
    """A parquet file for its footer and labels; a hub file is not downloaded for them."""
    here = _cached(path) if path.startswith(HUB) else path
    return pq.ParquetFile(here, memory_map=True) if here else pq.ParquetFile(HfFileSystem().open(path))


def _cached(path: str) -> str:
    """The cached copy of a hub file, '' if there is none."""
    repo, revision, name = _of_hub(path)
    found = try_to_load_from_cache(repo, name, revision=revision, repo_type="dataset")
    return found if isinstance(found, str) else ""


def _local(path: str) -> str:
    """A local file; a hub file is downloaded by the first process that needs it.

    A failed download is a DataError, not a corrupt image: else the network would decide what is trained on.
    """
    if not path.startswith(HUB):
        return path
    repo, revision, name = _of_hub(path)
    try:
        return hf_hub_download(repo, name, revision=revision, repo_type="dataset")
    except Exception as error:  # as in read_hub
        raise DataError(f"{path} cannot be downloaded ({tables.reason(error)}): run the same command again") from None


def _of_hub(path: str) -> tuple[str, str, str]:
    """Repository, revision and name in it of hf://datasets/OWNER/NAME@REVISION/FILE."""
    match = re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.+)", path)
    assert match, path
    return match[1], match[2], match[3]
