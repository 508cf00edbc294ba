"""Streaming: blocks in a computed order. Every image once per epoch, the same on any number of processes, no state."""

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from scipy import stats

import train
from cls import config, recipes
from cls.commands.options import PackOptions
from cls.commands.pack import pack
from cls.config import Run, change
from cls.data import streaming as streams
from cls.data.readers import Images, Stream, fingerprint, images_of
from cls.data.sampler import WINDOW, BlockSampler, MicroBatchSampler, block_counts
from cls.data.sources import Splits, load
from cls.distributed.tree_reduce import shares
from cls.tracking.run_data import look
from cls.tracking.run_dir import open_run_dir
from cls.training.resume import _keep
from cls.transforms.decode import CorruptImageError
from cls.validate import check
from tests.commands.test_fetch import Hub, Server, unmoved
from tests.harness import ROOT
from tests.harness.runs import Runs
from tests.runs.test_any_run import undisturbed
from tests.tracking.test_run_dir import CLUSTER

CLASSES = ("2", "10", "b")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", found)
    return found


# --- order ---

UNEVEN = np.array(
    [5, 1, 40, 7, 7, 1, 1, 1, 30, 2, 9, 3, 3, 3, 3, 3, 17, 1, 4, 4, 8, 1, 13, 2, 6, 6, 6, 50, 1, 1, 1, 1, 2]
)


@pytest.mark.parametrize("counts", [[1], [7], [3] * 16, [3] * 17, [2] * 48, UNEVEN.tolist()])
def test_each_row_exactly_once_per_epoch(counts: list[int]) -> None:
    n, order = sum(counts), BlockSampler(np.array(counts), 3)
    epochs = [[order.row(index) for index in range(e * n, (e + 1) * n)] for e in range(4)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    if n > 17:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        other = BlockSampler(np.array(counts), 4)
        assert [other.row(index) for index in range(n)] != epochs[0]


def test_order_has_no_state() -> None:
    n = int(UNEVEN.sum())
    indices = range(n - 60, n + 60)  # over the end of an epoch
    forward = [BlockSampler(UNEVEN, 0).row(index) for index in indices]  # a fresh one for every index
    one = BlockSampler(UNEVEN, 0)
    assert [one.row(index) for index in indices] == forward
    assert [one.row(index) for index in reversed(indices)] == forward[::-1]
    jumps = np.random.default_rng(0).permutation(len(indices))
    assert [one.row(indices[i]) for i in jumps] == [forward[i] for i in jumps]


def test_a_window_mixes_its_blocks_and_no_others() -> None:
    blocks, size = 5 * WINDOW + 3, 10
    order, seen = BlockSampler(np.full(blocks, size), 1), []
    for first in range(0, blocks * size, WINDOW * size):
        rows = [order.row(index) for index in range(first, min(first + WINDOW * size, blocks * size))]
        own = [row // size for row in rows]
        seen.append(set(own))
        assert len(seen[-1]) == len(rows) // size
        if len(rows) == WINDOW * size:
            # of neighbours in a random order, (size - 1) in (WINDOW * size - 1) lie in one block: 9 of 159 pairs
            assert sum(a == b for a, b in pairwise(own)) < 30
            assert max(Counter(own[: WINDOW * size // 4]).values()) < size  # none is used up first
    assert sum(map(len, seen)) == len(set().union(*seen)) == blocks
    assert any(max(window) - min(window) > blocks // 2 for window in seen)  # far neighbours come together


def test_places_are_uniform() -> None:
    """Blocks of equal size: any row may be any index of an epoch."""
    counts, seeds = np.full(25, 4), range(1200)
    for index in (0, 50, 99):
        found = np.bincount([BlockSampler(counts, seed).row(index) for seed in seeds], minlength=100)
        assert stats.chisquare(found).pvalue > 1e-4
    pairs = [BlockSampler(counts, seed).row(1) - BlockSampler(counts, seed).row(0) for seed in range(300)]
    assert abs(np.mean(np.array(pairs) > 0) - 0.5) < 0.12


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch", "micro_batch"), [(8, 2), (20, 5), (12, 3)])
def test_ranks_together_use_each_row_once_per_epoch(world_size: int, batch: int, micro_batch: int) -> None:
    """Rows are a multiple of neither batch nor ranks; the run goes on with another number of ranks at any step."""
    n = int(UNEVEN.sum())
    whole = BlockSampler(UNEVEN, 0)
    expected = [whole.row(index) for index in range(2 * n // batch * batch)]
    for stop in (0, 1, n // batch, n // batch + 1, 2 * n // batch - 1):
        seen: dict[int, int] = {}
        for first, last, ranks in ((0, stop, world_size), (stop, 2 * n // batch, world_size % 4 + 1)):
            for share in shares(batch // micro_batch, ranks):
                own = BlockSampler(UNEVEN, 0)  # each process has its own
                for indices in MicroBatchSampler(first, last, batch, micro_batch, share):
                    for index in indices:
                        assert index not in seen
                        seen[index] = own.row(index)
        assert [seen[index] for index in sorted(seen)] == expected


def test_blocks_of_neighbours() -> None:
    assert block_counts(300).tolist() == [128, 128, 44]
    assert block_counts(256).tolist() == [128, 128] and block_counts(1).tolist() == [1]
    assert block_counts(0).sum() == 0


# --- sources ---


def picture(label: int, number: int) -> bytes:
    pixels = np.random.default_rng([label, number]).integers(80 * label, 80 * label + 90, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


COUNTS = {"train": (40, 25, 12), "val": (3, 3, 3)}


def pictures(split: str) -> list[tuple[bytes, str, str]]:
    """(image, class, name) sorted by class, as folders are."""
    extra = 1000 * (split == "val")
    return [
        (picture(label, extra + i), CLASSES[label], f"{CLASSES[label]}-{i}.jpg")
        for label, count in enumerate(COUNTS[split])
        for i in range(count)
    ]


def write_folder(root: Path) -> Path:
    for split in COUNTS:
        for data, name, file in pictures(split):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            (root / split / name / file).write_bytes(data)
    return root


def table(items: Sequence[tuple[bytes, str, str]], label: Any = None) -> pa.Table:
    kind = label or ClassLabel(names=["b", "2", "10"])  # another numbering than the natural one
    features = Features({"image": ImageFeature(), "label": kind})
    labels = [kind.str2int(name) if isinstance(kind, ClassLabel) else name for _, name, _ in items]
    images = [{"bytes": data, "path": file} for data, _, file in items]
    return pa.table([images, labels], schema=features.arrow_schema)


def write_parquet(root: Path, label: Any = None, **how: Any) -> Path:
    """Train in three uneven files with row groups of 5."""
    root.mkdir()
    items = pictures("train")
    for i, (first, last) in enumerate(((0, 3), (3, 60), (60, len(items)))):
        pq.write_table(table(items[first:last], label), root / f"train-{i}.parquet", row_group_size=5, **how)
    pq.write_table(table(pictures("val"), label), root / "validation-0.parquet")
    return root


def write_tars(root: Path, how: str = "cls", mode: str = "w", suffix: str = "tar") -> Path:
    root.mkdir()
    for split in COUNTS:
        items = pictures(split)
        for i, own in enumerate((items[:30], items[30:])):
            if not own:
                continue
            with tarfile.open(root / f"{split}-{i}.{suffix}", mode) as tar:
                for data, name, file in own:
                    meta = {"cls": name.encode(), "json": json.dumps({"label": name}).encode()}[how]
                    add(tar, file, data)
                    add(tar, f"{Path(file).stem}.{how}", meta)
    return root


def write_packed(root: Path) -> Path:
    pack(str(write_folder(root.parent / "unpacked")), root, PackOptions(shard_mb=1))
    return root


SOURCES = {
    "folder": write_folder,
    "parquet": write_parquet,
    "parquet of strings": lambda root: write_parquet(root, Value("string")),
    "compressed parquet": lambda root: write_parquet(root, compression="zstd"),
    "tar cls": write_tars,
    "tar json": lambda root: write_tars(root, "json"),
    "packed": write_packed,
}


def streamed(root: Path, **fields: Any) -> Splits:
    return load(config.Data(path=str(root), streaming=True, **fields), 0)


def content(images: Images, classes: tuple[str, ...], rows: Sequence[int] | None = None) -> list[tuple[bytes, str]]:
    rows = range(len(images)) if rows is None else rows
    return [(bytes(data), classes[images.labels[row]]) for data, row in zip(images.read(rows), rows, strict=True)]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_streams_the_same_images(tmp_path: Path, kind: str) -> None:
    root = SOURCES[kind](tmp_path / "data")
    splits = streamed(root)
    assert isinstance(splits.train, Stream) and splits.classes == CLASSES
    train = images_of(splits.train)
    assert len(train) == len(train.labels) == 77 and train.labels.dtype == np.int32
    expected = sorted((data, name) for data, name, _ in pictures("train"))
    assert sorted(content(train, CLASSES)) == expected
    mixed = np.random.default_rng(0).permutation(77).tolist()
    assert content(train, CLASSES, mixed) == [content(train, CLASSES)[row] for row in mixed]
    assert len({train.name(row) for row in range(77)}) == 77
    order = train.sampler(0, False)
    assert sorted(content(train, CLASSES, [order.row(index) for index in range(77, 154)])) == expected
    plain = load(config.Data(path=str(root)), 0)  # map-style: the same validation images, the same training images
    assert splits.val["id"][:] == plain.val["id"][:] and splits.val["label"][:] == plain.val["label"][:]
    assert sorted(content(images_of(plain.train), plain.classes)) == expected


@pytest.mark.parametrize("kind", ["folder", "parquet", "tar cls", "packed"])
def test_the_fingerprint_sees_other_images(tmp_path: Path, kind: str) -> None:
    root = SOURCES[kind](tmp_path / "data")
    known = fingerprint(streamed(root).train)
    assert fingerprint(streamed(root).train) == known
    moved = root.rename(tmp_path / "moved")  # slurm/env.sh copies data to a node's own disk
    assert fingerprint(streamed(moved).train) == known
    first = min(path for path in moved.rglob("*") if path.is_file() and "train" in str(path.relative_to(moved)))
    first.rename(first.with_name(f"train-x{first.suffix}"))
    assert fingerprint(streamed(moved).train) != known


def test_names_say_where_an_image_is(tmp_path: Path) -> None:
    parquet = images_of(streamed(write_parquet(tmp_path / "parquet")).train)
    assert [parquet.name(row) for row in (0, 2, 3, 76)] == [
        "train-0.parquet:0", "train-0.parquet:2", "train-1.parquet:0", "train-2.parquet:16",
    ]  # fmt: skip
    tars = images_of(streamed(write_tars(tmp_path / "tars")).train)
    assert [tars.name(row) for row in (0, 29, 30)] == [
        "train-0.tar:0:2-0", "train-0.tar:29:2-29", "train-1.tar:0:2-30",
    ]  # fmt: skip


def add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    tar.addfile(info, io.BytesIO(body))


def test_a_tar_may_repeat_keys_and_hold_json_of_another_kind(tmp_path: Path) -> None:
    root = write_tars(tmp_path / "data")
    with tarfile.open(root / "train-2.tar", "w") as tar:
        for key, number in (("x", 90), ("y", 91), ("x", 92), ("y", 93)):
            add(tar, f"{key}.json", b'["no", "object"]')
            add(tar, f"{key}.jpg", picture(2, number))
            add(tar, f"{key}.cls", b"b")
    train = images_of(streamed(root).train)
    names = [train.name(row) for row in range(len(train))]
    assert names[77:] == [f"train-2.tar:{place}:{key}" for place, key in enumerate("xyxy")]
    assert len(set(names)) == 81
    assert content(train, CLASSES, range(77, 81)) == [(picture(2, number), "b") for number in range(90, 94)]
    assert len(load(config.Data(path=str(root)), 0).train) == 81
    with tarfile.open(root / "train-3.tar", "w") as tar:
        add(tar, "z.jpg", picture(2, 94))
        add(tar, "z.json", b"3")
    rejects(root, "1 of 82 train images in .* have no label")


def test_one_failed_read_does_not_spoil_the_row_group(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "data")
    train = images_of(streamed(root).train)
    (root / "train-1.parquet").rename(tmp_path / "away")
    assert isinstance(train.read([5])[0], CorruptImageError)
    (tmp_path / "away").rename(root / "train-1.parquet")
    assert content(train, CLASSES) == [(data, name) for data, name, _ in pictures("train")]


def test_a_shard_without_rows_is_none(tmp_path: Path) -> None:
    root = write_packed(tmp_path / "data")
    schema = pq.read_schema(root / "train-00000-of-00001.parquet")
    with pq.ParquetWriter(root / "train-00001-of-00001.parquet", schema) as writer:
        writer.add_key_value_metadata({"cls.places": ""})
    assert len(streamed(root).train) == 77


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "tar cls"])
def test_the_damaged_file_is_named(tmp_path: Path, kind: str, streaming: bool) -> None:
    root = SOURCES[kind](tmp_path / "data")
    path = next(root.glob("train-1.*"))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=rf"data\.path: cannot read {re.escape(str(path))}: "):
        load(config.Data(path=str(root), streaming=streaming), 0)


def test_each_row_group_is_decoded_once_per_epoch_and_few_are_held(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    items = [(b"%d" % i, CLASSES[i % 3], "") for i in range(300)]
    pq.write_table(table(items), root / "train.parquet", row_group_size=4)  # 75 row groups
    pq.write_table(table(pictures("val")), root / "val.parquet")
    train = images_of(streamed(root).train)
    assert isinstance(train, Stream) and isinstance(train.blocks, streams.RowGroups)
    blocks, decoded, held = train.blocks, Counter[int](), 0
    decode = blocks._decoded
    blocks._decoded = lambda block: [decoded.update([block]), decode(block)][1]  # type: ignore[method-assign]  # counts
    order = train.sampler(0, False)
    for index in range(300):
        row = order.row(index)
        assert train.read([row]) == [b"%d" % row]
        held = max(held, len(blocks._held))
    assert decoded == Counter(range(75)) and held == WINDOW + 1


def test_a_start_reads_no_image(tmp_path: Path) -> None:
    """Image bytes that are spoilt in the file are noticed when they are read, as values."""
    root = write_parquet(tmp_path / "data", compression="zstd")
    path = root / "train-1.parquet"
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(2).column(0)
    assert chunk.path_in_schema == "image.bytes"
    data = bytearray(path.read_bytes())
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    train = images_of(streamed(root).train)
    found = train.read(range(77))
    bad = [row for row, data in enumerate(found) if isinstance(data, CorruptImageError)]
    assert bad == list(range(3 + 10, 3 + 15)) and "cannot be read" in str(found[13])


@pytest.mark.parametrize("kind", ["parquet", "tar cls", "packed", "folder"])
def test_files_that_go_away_or_shrink_are_corrupt_images_not_errors(tmp_path: Path, kind: str) -> None:
    root = SOURCES[kind](tmp_path / "data")
    train = images_of(streamed(root).train)
    for path in root.rglob("*"):
        if path.is_file() and "train" in path.name:
            path.write_bytes(path.read_bytes()[:50])
        elif path.is_file() and kind == "folder":
            path.unlink()
    assert all(isinstance(data, CorruptImageError) and "cannot be read" in str(data) for data in train.read(range(77)))


def test_places_noted_by_cls_pack_are_not_trusted_in_a_rewritten_shard(tmp_path: Path) -> None:
    """A program that copies all of a file's notes; the images then lie elsewhere."""
    root = write_packed(tmp_path / "data")
    path = root / "train-00000-of-00001.parquet"
    train = images_of(streamed(root).train)
    assert isinstance(train, Stream) and isinstance(train.blocks, streams.RowGroups)
    assert train.blocks._files[0].places is not None
    expected, rows = content(train, CLASSES), pq.read_table(path)
    notes = pq.read_metadata(path).metadata
    assert b"cls.places" in notes and b"cls.places" not in rows.schema.metadata
    rows = rows.replace_schema_metadata({key: notes[key] for key in (b"huggingface", b"cls.places")})
    for how in ({}, {"compression": "none", "row_group_size": 9}, {"compression": "none", "write_statistics": False}):
        pq.write_table(rows, path, **how)
        again = images_of(streamed(root).train)
        assert isinstance(again, Stream) and again.blocks._files[0].places is None
        assert content(again, CLASSES) == expected
    # as cls pack writes, in another order that ends with the same image: the layout is the same, the places are not
    plain = {"compression": "none", "write_statistics": False, "use_dictionary": False}
    pq.write_table(rows.take([*range(75, -1, -1), 76]), path, **plain)
    again = images_of(streamed(root).train)
    assert isinstance(again, Stream) and again.blocks._files[0].places is not None
    found = again.read(range(77))
    right = [data for data, _ in expected]
    assert sum(isinstance(data, CorruptImageError) for data in found) > 60
    assert all(isinstance(data, CorruptImageError) or bytes(data) in right for data in found)


def test_files_with_other_class_numbers_are_rejected(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "data")
    pq.write_table(table(pictures("val"), ClassLabel(names=["2", "b", "10"])), root / "train-9.parquet")
    rejects(root, r"train-9.parquet has other columns or class names than .*train-0.parquet")


def test_tars_are_indexed_once_until_they_change(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, opened, plain = write_tars(tmp_path / "tars"), [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: [opened.append(a), plain(*a, **k)][1])
    streamed(root)
    assert sum("train" in str(a[0]) for a in opened) == 2
    for file in (cache / "cls-index").glob("tar-*"):
        assert file.stat().st_size < 10_000
    opened.clear()
    first = content(images_of(streamed(root).train), CLASSES)
    assert opened == []
    with plain(root / "train-1.tar", "a") as tar:
        add(tar, "x.jpg", picture(2, 99))
        add(tar, "x.cls", b"b")
    assert content(images_of(streamed(root).train), CLASSES) == [*first, (picture(2, 99), "b")]
    for file in (cache / "cls-index").glob("tar-*"):
        file.write_bytes(b"damaged")
    assert len(streamed(root).train) == 78


def test_a_run_reports_what_differs_when_its_images_are_read_another_way(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    run = replace(change(recipes.get("digits"), data={"path": str(root)}), out=str(tmp_path / "run"))
    with open_run_dir(run, CLUSTER) as folder:
        for streaming, message in ((True, None), (True, None), (False, "77 training images as then, but other .*read")):
            splits = load(config.Data(path=str(root), streaming=streaming), 0)
            with pytest.raises(ValueError, match=message) if message else nullcontext():
                _keep(folder, look(splits))
        (root / "train/b/b-1.jpg").unlink()
        splits = streamed(root)
        with pytest.raises(ValueError, match=r"\(77 training images then, 76 now\): use another --out"):
            _keep(folder, look(splits))


# --- what cannot be streamed ---


def rejects(root: Path | str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        streamed(Path(root))
    assert "\n" not in str(caught.value)


def test_errors_name_what_to_do(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "data")
    (root / "validation-0.parquet").unlink()
    rejects(root, rf"data\.streaming needs validation images .*cls pack {root} --to data-packed")
    pq.write_table(table(pictures("val")), root / "val.parquet")
    assert len(streamed(root).val) == 9
    (root / "train-0.parquet").write_bytes(b"PAR1 nothing")
    rejects(root, r"data\.path: cannot read .*train-")
    tars = write_tars(tmp_path / "tgz", mode="w:gz", suffix="tgz")
    rejects(tars, r"data\.streaming: .*compressed tars.*cls pack .*tgz --to tgz-packed")
    hidden = write_tars(tmp_path / "hidden", mode="w:gz")
    rejects(hidden, r"data\.path: cannot read .*\.tar")
    load(config.Data(path=str(tars)), 0)
    arrow = tmp_path / "arrow"
    arrow.mkdir()
    for split in ("train", "val"):
        with pa.ipc.new_stream(str(arrow / f"{split}.arrow"), table(pictures(split)).schema) as writer:
            writer.write_table(table(pictures(split)))
    rejects(arrow, r"data\.streaming: arrow files.*leave data\.streaming off")
    datasets.DatasetDict({"train": datasets.Dataset(table(pictures("train")))}).save_to_disk(tmp_path / "saved")
    rejects(tmp_path / "saved", r"data\.streaming: .*leave data\.streaming off")
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for split in ("train", "val"):
        pq.write_table(table(pictures(split)).select(["image"]), unlabelled / f"{split}.parquet")
    rejects(unlabelled, r"\d+ of \d+ train images in .* have no label")


def test_the_hub_is_not_streamed_from_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rejects("some-org/some-data", r"data\.streaming reads some-org/some-data from the hub.*offline.*cls fetch")


def test_row_groups_that_memory_cannot_hold_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_parquet(tmp_path / "data")
    monkeypatch.setattr(streams, "LARGE_BLOCK_BYTES", 3000)
    assert len(streamed(root).train) == 77
    assert re.search(r"of which each process that reads images holds 16; smaller ones: cls pack ", caplog.text)
    monkeypatch.setattr(streams, "MAX_BLOCK_BYTES", 3000)
    rejects(root, r"train-\d.parquet has row groups of 0 MB.*would hold 16.*cls pack")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balanced": True}, r"data\.balanced .*data\.streaming"),
        ({"limit": 5}, r"data\.limit .*data\.streaming .*train\.max_steps"),
        ({"path": "digits"}, r"data\.streaming .*digits"),
    ],
)
def test_combinations_that_contradict(fields: dict[str, Any], message: str) -> None:
    run = change(Run(), data={"path": "somewhere", "streaming": True} | fields)
    with pytest.raises(ValueError, match=message):
        check(run)
    check(change(run, data={"streaming": False}))


# --- real runs ---


def digits(root: Path) -> Path:
    """100 scans of digits in two uneven parquet files with row groups of 3; two training images are corrupt."""
    from sklearn.datasets import load_digits

    loaded, items = load_digits(), []
    for i in range(140):
        buffer = io.BytesIO()
        Image.fromarray(np.rint(loaded.images[i] * 255 / 16).astype(np.uint8)).save(buffer, "PNG")
        items.append((buffer.getvalue(), str(loaded.target[i]), f"{i}.png"))
    items[31] = (items[31][0][:40], *items[31][1:])
    items[77] = (b"", *items[77][1:])
    root.mkdir()
    kind = Value("string")
    pq.write_table(table(items[:13], kind), root / "train-0.parquet", row_group_size=3)
    pq.write_table(table(items[13:100], kind), root / "train-1.parquet", row_group_size=3)
    pq.write_table(table(items[100:], kind), root / "val.parquet")
    return root


def run_args(root: Path) -> list[str]:
    return [
        "digits", "--data.path", str(root), "--data.streaming", "True", "--data.workers", "0",
        "--data.max-corrupt", "0.05",
        "--train.batch", "32", "--train.micro-batch", "8", "--train.epochs", "2", "--train.eval-batch", "16",
        "--track.wandb", "disabled", "--track.ledger", "True",
    ]  # fmt: skip


def weights(out: Path) -> str:
    return hashlib.sha256(sorted(out.glob("checkpoints/step-*/model.safetensors"))[-1].read_bytes()).hexdigest()


def used(out: Path) -> dict[int, tuple[str, str]]:
    """Image and pixels of each index."""
    rows = [row for path in (out / "ledger").iterdir() for row in csv.reader(path.open(newline=""))]
    return {int(index): (name, pixels) for _, index, name, pixels in (row for row in rows if len(row[3]) == 32)}


def replaced(root: Path, out: Path, indices: int) -> set[int]:
    """Draws of which the ledger names another image than the order does."""
    order = images_of(streamed(root).train).sampler(0, False)
    rows = [order.row(index) for index in range(indices)]
    names = [f"train-0.parquet:{row}" if row < 13 else f"train-1.parquet:{row - 13}" for row in rows]
    found = used(out)
    assert sorted(found) == list(range(indices))
    wrong = {index for index, (name, _) in found.items() if name != names[index]}
    assert wrong == {index for index, row in enumerate(rows) if row in (31, 77)}
    return wrong


def check_broken(out: Path) -> None:
    with (out / "corrupt_images.csv").open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == {"train-1.parquet:18", "train-1.parquet:64"}


def test_a_run_streams_each_image_once_and_replaces_corrupt_ones(tmp_path: Path) -> None:
    root, out = digits(tmp_path / "data"), tmp_path / "run"
    with undisturbed(), pytest.raises(SystemExit) as left:
        train.main([*run_args(root), "--train.max-steps", "4", "--out", str(out)])
    assert left.value.code in (0, None)
    assert len(replaced(root, out, 4 * 32)) >= 2
    check_broken(out)
    assert len({name for index, (name, _) in used(out).items() if index < 100}) == 98  # the first epoch: all but two


@pytest.mark.soak
def test_one_and_two_processes_train_the_same_weights(tmp_path: Path, runs: Runs) -> None:
    """With uneven shards and corrupt images, replaced by the same others everywhere."""
    root = digits(tmp_path / "data")
    ends = [
        runs.run(tmp_path / f"{world_size}", [*run_args(root), "--train.max-steps", "4"], world_size=world_size)
        for world_size in (1, 2)
    ]
    for ended in ends:
        assert set(ended.codes) == {0}, ended.output
        assert len(replaced(root, ended.out, 4 * 32)) >= 2
        check_broken(ended.out)
    one, two = (ended.out for ended in ends)
    assert weights(one) == weights(two) and used(one) == used(two)


@pytest.mark.soak
def test_a_run_resumed_elsewhere_ends_with_the_same_weights(tmp_path: Path, runs: Runs) -> None:
    root = digits(tmp_path / "data")
    whole = runs.run(tmp_path / "whole", run_args(root))
    assert whole.codes == [0] and replaced(root, whole.out, 7 * 32), whole.output
    for world_size, stop in ((2, 1), (1, 3), (4, 5), (2, 7)):
        ended = runs.run(tmp_path / "parts", [*run_args(root), "--train.max-steps", str(stop)], world_size=world_size)
        assert set(ended.codes) == {0}, ended.output
    assert weights(ended.out) == weights(whole.out) and used(ended.out) == used(whole.out)
    parts = [*run_args(root), "--train.max-steps", "2"]
    runs.run(tmp_path / "moved", parts)
    (root / "train-0.parquet").rename(root / "train-2.parquet")
    other = runs.run(tmp_path / "moved", run_args(root))
    assert other.exit["outcome"] == "user_error" and "is not what" in other.exit["reason"], other.output


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["packed", "tar cls", "folder", "parquet"])
def test_every_source_trains_the_same_on_any_number_of_processes(tmp_path: Path, runs: Runs, kind: str) -> None:
    root = SOURCES[kind](tmp_path / "data")
    found = set()
    for world_size in (1, 2, 4):
        ended = runs.run(
            tmp_path / f"{world_size}", [*run_args(root), "--data.workers", str(world_size % 2)], world_size=world_size
        )
        assert ended.codes == [0] * world_size, ended.output
        found.add(weights(ended.out))
    assert len(found) == 1


class Ranged(Hub):
    """The test hub, which also gives parts of files."""

    def _answer(self, data: bytes, status: int, headers: dict[str, str] | None = None, size: int = -1) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if part and status == 200 and self.command == "GET":
            first, last = int(part[1]), int(part[2])
            own = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            return super()._answer(data[first : last + 1], 206, (headers or {}) | own)
        return super()._answer(data, status, headers, size)


HUB_PROGRAM = """
import json, sys
from cls import config
from cls.data.readers import images_of
from cls.data.sources import load
from huggingface_hub import try_to_load_from_cache
splits = load(config.Data(path="me/shots", streaming=True), 0)
train = images_of(splits.train)
here = lambda: [isinstance(try_to_load_from_cache("me/shots", f"data/train-{i}.parquet", repo_type="dataset"), str)
                for i in range(2)]
seen = [here()]
first = [bytes(train.read([row])[0]).hex() for row in range(10)]
seen.append(here())
rest = [bytes(data).hex() for data in train.read(range(10, len(train)))]
print(json.dumps({"here": [*seen, here()], "train": first + rest, "val": len(splits.val), "classes": splits.classes,
                  "labels": train.labels.tolist(), "name": train.name(0)}))
"""


@pytest.mark.soak
def test_hub_shards_are_downloaded_when_they_are_needed(tmp_path: Path) -> None:
    """A server on this machine in place of the hub: footers and labels are read from afar, each shard comes once."""
    items, server = pictures("train"), Server()
    server.RequestHandlerClass = Ranged
    for name, own in (("train-0", items[:50]), ("train-1", items[50:]), ("validation-0", pictures("val"))):
        pq.write_table(table(own), tmp_path / "shard", row_group_size=5)
        server.files[f"datasets/me/shots/data/{name}.parquet"] = (tmp_path / "shard").read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = unmoved() | {
        "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", HUB_PROGRAM], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
        server.asked.clear()
    server.shutdown()
    assert found[0]["here"] == [[False, False], [True, False], [True, True]]
    assert found[1]["here"] == [[True, True]] * 3
    for one in found:
        assert one["train"] == [data.hex() for data, _, _ in items] and one["val"] == 9
        assert [one["classes"][label] for label in one["labels"]] == [name for _, name, _ in items]
        assert one["classes"] == list(CLASSES) and one["name"].endswith("data/train-0.parquet:0")
