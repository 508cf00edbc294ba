"""Training images in blocks that are read when their turn comes: ``data.streaming``, for sets too large to index.

Counts and labels alone are read at the start: the footers and label columns of parquet files, the headers of tars.
Validation and test images are ordinary datasets.
"""

import logging
import os
import re
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value
from huggingface_hub import HfFileSystem, hf_hub_download, try_to_load_from_cache

from cls import config
from cls.data import tables
from cls.data.access import Encoded, Indexed, encoded, fingerprint
from cls.data.order import WINDOW, block_counts
from cls.data.part import SPLITS, Part
from cls.data.tars import TarBlocks
from cls.images.decode import BadImage

log = logging.getLogger("cls")

MAX_BLOCK_BYTES = 256_000_000
"""Each process that reads images holds WINDOW + 1 row groups."""
HUB = "hf://"


def pack_command(path: str) -> str:
    """What to type for shards that can be streamed well."""
    return shlex.join(["cls", "pack", path, "--to", f"{Path(path).name}-packed"])


def read_files(root: Path, names: list[str], data: config.Data) -> dict[str, Part]:
    """Parquet or tar files: train in blocks, the other splits as :func:`tables.read_files` gives them."""
    kind, groups = tables.grouped(root, names)
    if kind == ".arrow":
        raise ValueError(f"data.streaming: arrow files ({root}) are mapped where they lie; leave data.streaming off")
    if kind in (".tgz", ".tar.gz"):
        raise ValueError(
            f"data.streaming: {root} has compressed tars, which cannot be read from the middle: unpack them to .tar, "
            f"or use {pack_command(data.path)}"
        )
    parts = {split: tables.read_split(kind, paths, split, data) for split, paths in groups.items() if split != "train"}
    if paths := groups.get("train"):
        try:
            parts["train"] = row_groups(root, paths, data) if kind == ".parquet" else _tars(root, paths)
        except tables.UNREADABLE as error:
            raise ValueError(f"data.path: cannot read {paths[0]}: {tables.reason(error)}") from None
    return parts


def folder_blocks(parts: dict[str, Part]) -> dict[str, Part]:
    """The splits of a folder, train in blocks of neighbouring files."""
    train = parts["train"]
    assert isinstance(train.images, Dataset)
    return parts | {"train": Part(FileBlocks(train.images, train.codes), train.codes, train.names)}


def read_hub(name: str, data: config.Data) -> dict[str, Part]:
    """The parquet shards of a hub data set; each is downloaded once per machine, when its first image is needed."""
    try:
        builder = datasets.load_dataset_builder(name)
        found = {
            SPLITS[s.lower()]: list(f) for s, f in (builder.config.data_files or {}).items() if s.lower() in SPLITS
        }
        if not all(path.endswith(".parquet") for paths in found.values() for path in paths):
            raise ValueError(f"data.streaming: {name} is not kept as parquet files; use {pack_command(name)}")
        parts = {s: tables.read_split(".parquet", p, s, data) for s, p in found.items() if s != "train"}
        if paths := found.get("train"):
            parts["train"] = row_groups(Path(""), paths, data)
    except Exception as error:  # the hub client raises OSError, ValueError, RuntimeError and httpx's own family
        if str(error).startswith("data."):
            raise
        raise tables.no_hub(name, error) from None
    return parts


class FileBlocks:
    """Image files in blocks of neighbours."""

    def __init__(self, rows: Dataset, codes: np.ndarray) -> None:
        self._rows = rows.add_column("label", codes)
        images = Indexed(self._rows)
        self.counts, self.name, self.read = block_counts(len(rows)), images.name, images.read

    def identity(self) -> list[Any]:
        return [fingerprint(self._rows)]


class RowGroups:
    """Images in the row groups of parquet files, of which each process holds the last WINDOW + 1, decoded to Arrow."""

    def __init__(self, root: Path, files: list["Footer"], column: str) -> None:
        self._files, self._column = files, column
        self._names = [path if (path := f.path).startswith(HUB) else os.path.relpath(path, root) for f in files]
        self._places = [(f, g) for f, file in enumerate(files) for g, count in enumerate(file.counts) if count]
        self.counts = np.array([files[f].counts[g] for f, g in self._places], dtype=np.int64)
        self._starts = np.cumsum(self.counts) - self.counts
        self._held: OrderedDict[int, pa.Array | BadImage] = OrderedDict()

    def name(self, row: int) -> str:
        """File and row in it, from 0."""
        block = self._block_of(row)
        file, group = self._places[block]
        return f"{self._names[file]}:{sum(self._files[file].counts[:group]) + row - self._starts[block]}"

    def read(self, rows: Sequence[int]) -> list[Encoded]:
        found: list[Encoded] = []
        for row in rows:
            block = self._block_of(row)
            images = self._block(block)
            bad = isinstance(images, BadImage)
            found.append(images if bad else encoded(images, [int(row - self._starts[block])])[0])
        return found

    def identity(self) -> list[Any]:
        return [[name, file.size] for name, file in zip(self._names, self._files, strict=True)]

    def _block_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, "right")) - 1

    def _block(self, block: int) -> pa.Array | BadImage:
        images = self._held.pop(block, None)
        self._held[block] = self._read_block(block) if images is None else images
        while len(self._held) > WINDOW + 1:
            self._held.popitem(last=False)
        return self._held[block]

    def _read_block(self, block: int) -> pa.Array | BadImage:
        file, group = self._places[block]
        try:
            with pq.ParquetFile(_local(self._files[file].path), memory_map=True) as parquet:
                images = parquet.read_row_group(group, [self._column], use_threads=False).column(0).combine_chunks()
        except tables.UNREADABLE as error:
            return BadImage(f"cannot be read: {tables.reason(error)}")
        if len(images) != self.counts[block]:
            return BadImage(f"cannot be read: {self._names[file]} has changed since the start")
        return images


class Footer:
    """What the end of a parquet file tells of it: rows of each row group, columns; and the file's size in bytes."""

    def __init__(self, path: str) -> None:
        self.path = path
        with _opened(path) as parquet:
            about = parquet.metadata
            self.features = Features.from_arrow_schema(parquet.schema_arrow)
            groups = [about.row_group(g) for g in range(about.num_row_groups)]
            self.counts = [group.num_rows for group in groups]
            self.largest = max((group.total_byte_size for group in groups), default=0)
        self.size = int(HfFileSystem().info(path)["size"]) if path.startswith(HUB) else os.stat(path).st_size


def row_groups(root: Path, paths: list[str], data: config.Data) -> Part:
    """Training images in parquet files; ValueError where a row group is too large to hold a window of."""
    files = [Footer(path) for path in paths]
    features = files[0].features
    image, label = tables.image_column(features, data), tables.label_column(features, data, "train")
    for file in files:
        if file.largest > MAX_BLOCK_BYTES:
            raise ValueError(
                f"data.streaming: {file.path} has row groups of {file.largest / 1e6:.0f} MB, of which each process "
                f"that reads images would hold {WINDOW}: write smaller ones with {pack_command(data.path)}"
            )
    blocks = RowGroups(root, files, image)
    if not label:
        return Part(blocks, *tables.unknown(int(blocks.counts.sum())), tuple(features))
    columns = []
    for path in paths:
        with _opened(path) as parquet:
            columns += parquet.read([label], use_threads=False).column(0).chunks
    codes, names = tables.numbered(pa.chunked_array(columns), features[label], label)
    return Part(blocks, codes.astype(np.int32), names, tuple(features))


def _tars(root: Path, paths: list[str]) -> Part:
    blocks = TarBlocks(root, paths)
    return Part(blocks, *tables.numbered(blocks.labels, Value("string"), "label"))


def _opened(path: str) -> pq.ParquetFile:
    """A parquet file for its footer and labels; one of the hub is not downloaded for them."""
    here = _cached(path) if path.startswith(HUB) else path
    return pq.ParquetFile(here, memory_map=True) if here else pq.ParquetFile(HfFileSystem().open(path))


def _cached(path: str) -> str:
    """A file of the hub on this machine, '' if it is not here."""
    repo, revision, name = _of_hub(path)
    found = try_to_load_from_cache(repo, name, revision=revision, repo_type="dataset")
    return found if isinstance(found, str) else ""


def _local(path: str) -> str:
    """A file on this machine; one of the hub is downloaded by the first process that needs it."""
    if not path.startswith(HUB):
        return path
    repo, revision, name = _of_hub(path)
    return hf_hub_download(repo, name, revision=revision, repo_type="dataset")


def _of_hub(path: str) -> tuple[str, str, str]:
    """Repository, revision and name in it of hf://datasets/OWNER/NAME@REVISION/FILE."""
    match = re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.+)", path)
    assert match, path
    return match[1], match[2], match[3]
