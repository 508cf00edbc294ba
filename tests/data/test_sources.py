"""The same tiny photographs from every kind of source: same pixels, labels and ids; and one clear error each."""

import datetime
import io
import json
import logging
import math
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from datasets.table import embed_table_storage
from PIL import Image as Pillow
from sklearn.datasets import load_digits

from cls import config
from cls.data import readers
from cls.data.folders.image_folder import natural
from cls.data.readers import images_of
from cls.data.sources import Splits, load, load_given, load_images, load_labelled
from cls.runtime.exit import DataError
from cls.transforms.decode import CorruptImageError, decode


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def jpeg(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (9, 7), (grey, 2 * grey % 256, 99)).save(path, "JPEG")
    return path


def make(root: Path, **splits: dict[str, int]) -> Path:
    """``make(root, train={"a": 3})``: three JPEGs in root/train/a; the split "flat" has no folder of its own."""
    number = 0
    for split, classes in splits.items():
        for name, count in classes.items():
            for i in range(count):
                number += 1
                jpeg(root / ("" if split == "flat" else split) / name / f"{name or 'photo'}-{i}.jpg", number)
    return root


def data(path: Path | str, **fields: object) -> config.Data:
    return config.Data(path=str(path), **fields)


def ids(table: Dataset) -> list[str]:
    return table["id"][:]


def rows(table: Dataset, classes: tuple[str, ...]) -> list[tuple[bytes, str]]:
    """(pixels, class name) of every row, sorted."""
    names = [(*classes, "?")[label] for label in table["label"]]
    return sorted((np.asarray(decode(data)).tobytes(), name) for data, name in zip(contents(table), names, strict=True))


def contents(table: Dataset) -> list[bytes]:
    found = images_of(table).read(range(len(table)))
    assert not any(isinstance(data, CorruptImageError) for data in found)
    return [bytes(data) for data in found]


def contract(splits: Splits) -> None:
    for table in (splits.train, splits.val, splits.test):
        if table is None:
            continue
        assert table.features == {"image": Image(decode=False), "label": Value("int64"), "id": Value("string")}
        assert len(set(ids(table))) == len(table)
        assert set(table["label"]) <= {-1, *range(len(splits.classes))}
    assert not set(ids(splits.train)) & set(ids(splits.val))


# Folders


def test_natural_order() -> None:
    names = ["10", "2", "1", "01", "a10", "a9", "b", "²", "0"]
    assert sorted(names, key=natural) == ["0", "01", "1", "2", "10", "a9", "a10", "b", "²"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    numbers = {str(i): 2 for i in range(12)}
    make(tmp_path, train=numbers, **{val: dict.fromkeys(numbers, 1)}, test={"": 3})
    splits = load(data(tmp_path), seed=0)
    contract(splits)
    assert splits.classes == tuple(str(i) for i in range(12))
    assert splits.train["label"][:] == [i for i in range(12) for _ in range(2)]
    assert splits.val["label"][:] == list(range(12))
    assert splits.test is not None and splits.test["label"][:] == [-1] * 3
    assert ids(splits.test) == ["test/photo-0.jpg", "test/photo-1.jpg", "test/photo-2.jpg"]
    assert ids(splits.train)[-1] == "train/11/11-1.jpg"
    assert splits.train[20]["image"] == {"bytes": None, "path": f"{tmp_path}/train/10/10-0.jpg"}
    assert contents(splits.train)[20] == (tmp_path / "train/10/10-0.jpg").read_bytes()


def test_splits_of_other_names_are_no_classes(tmp_path: Path) -> None:
    """As brain tumours, scenes of Intel and others are handed out: two classes would be learnt, and well."""
    classes = {"a": 2, "b": 2}
    make(tmp_path / "long", Training=classes, Testing={"a": 1})
    splits = load(data(tmp_path / "long"), seed=0)
    assert splits.classes == ("a", "b") and splits.test is not None and len(splits.train) + len(splits.val) == 4
    for number, (one, other) in enumerate((("seg_train", "seg_test"), ("train_set", "val_set"), ("Train2", "Test2"))):
        make(tmp_path / str(number), **{one: classes, other: classes})
        splits = load(data(tmp_path / str(number)), seed=0)
        other_part = splits.val if "val" in other else splits.test
        assert splits.classes == ("a", "b") and other_part is not None
        assert ids(other_part) == [f"{other}/{name}/{name}-{i}.jpg" for name in "ab" for i in range(2)]
    make(tmp_path / "half", images=classes, validation=classes)
    rejects(tmp_path / "half", "has validation but no train/ with class folders")
    make(tmp_path / "fine", test_tube={"deep": 4}, beaker={"deep": 4})
    assert load(data(tmp_path / "fine"), seed=0).classes == ("beaker", "test_tube")


def test_nested_hidden_and_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, train={"a": 2, "b": 2}, val={"a": 1, "b": 1})
    jpeg(tmp_path / "train/a/deep/er/x.JPEG")
    jpeg(tmp_path / "train/a/.hidden.jpg")
    jpeg(tmp_path / "train/.hidden/y.jpg")
    jpeg(tmp_path / "train/stray.jpg")
    for name in ("train/a/notes.txt", "README", "val/b/Thumbs.db"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.INFO, "cls"):
        splits = load(data(tmp_path), seed=0)
    assert ids(splits.train) == [
        "train/a/a-0.jpg", "train/a/a-1.jpg", "train/a/deep/er/x.JPEG", "train/b/b-0.jpg", "train/b/b-1.jpg",
    ]  # fmt: skip
    assert splits.train["label"][:] == [0, 0, 0, 1, 1]
    assert "3 files that are no images ignored" in caplog.text
    assert "1 images outside the class folders ignored" in caplog.text


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path / "real", flat={"a": 2, "b": 2})
    make(tmp_path / "root", flat={"c": 2})
    (tmp_path / "root/a").symlink_to(tmp_path / "real/a")
    (tmp_path / "real/a/loop").symlink_to(tmp_path / "real/a")
    (tmp_path / "root/c/up").symlink_to(tmp_path / "root")
    table = load_labelled(str(tmp_path / "root"), ("a", "c"), data(""))
    assert ids(table) == ["a/a-0.jpg", "a/a-1.jpg", "c/c-0.jpg", "c/c-1.jpg"]


def test_labels_follow_names_not_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Validation alone would number its classes 0, 1, 2."""
    make(tmp_path, train={str(i): 2 for i in range(6)}, val={"1": 1, "3": 1, "5": 2}, test={"4": 1, "0": 1})
    splits = load(data(tmp_path), seed=0)
    contract(splits)
    assert splits.val["label"][:] == [1, 3, 5, 5]
    assert splits.test is not None and splits.test["label"][:] == [0, 4]
    assert "validation has no image of 3 classes: 0, 2, 4" in caplog.text


def test_test_folder_with_foreign_subfolders_is_unlabelled(tmp_path: Path) -> None:
    make(tmp_path, train={"a": 2, "b": 2}, val={"a": 1}, test={"images": 2})
    splits = load(data(tmp_path), seed=0)
    assert splits.test is not None and splits.test["label"][:] == [-1, -1]
    make(tmp_path, test={"a": 1})
    with pytest.raises(ValueError, match=r"test split.*'images'"):
        load(data(tmp_path), seed=0)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, flat={"train": 4, "plane": 4, "test": 4})
    splits = load(data(tmp_path), seed=0)
    assert splits.classes == ("plane", "test", "train") and splits.test is None


def test_class_folders_are_split_by_seed(tmp_path: Path) -> None:
    counts = {"a": 40, "b": 10, "c": 2, "d": 1}
    make(tmp_path, flat=counts)
    splits = load(data(tmp_path, val_fraction=0.25), seed=3)
    contract(splits)
    names = [splits.classes[i] for i in splits.val["label"]]
    assert Counter(names) == {"a": 10, "b": 2, "c": 1}  # round(2.5) is 2; at least one where there are two
    everything = {f"{name}/{name}-{i}.jpg" for name, count in counts.items() for i in range(count)}
    assert set(ids(splits.train)) | set(ids(splits.val)) == everything
    assert len(splits.train) + len(splits.val) == len(everything)
    again, other = load(data(tmp_path, val_fraction=0.25), seed=3), load(data(tmp_path, val_fraction=0.25), seed=4)
    assert ids(again.val) == ids(splits.val) and ids(again.train) == ids(splits.train)
    assert ids(other.val) != ids(splits.val)


def test_the_split_does_not_depend_on_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, flat={"a": 20, "b": 20})
    first = load(data(tmp_path), seed=0)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(scandir(path))))
    second = load(data(tmp_path), seed=0)
    assert ids(second.val) == ids(first.val) and ids(second.train) == ids(first.train)


def test_the_split_of_a_table_does_not_depend_on_its_row_order(tmp_path: Path) -> None:
    table = embedded(make(tmp_path / "images", flat={"a": 20, "b": 20}))
    held = []
    for order in (list(range(40)), list(reversed(range(40)))):
        path = tmp_path / f"{order[0]}.parquet"
        pq.write_table(table.take(order), path)
        held.append(set(ids(load(data(path), seed=0).val)))
    assert held[0] == held[1] and len(held[0]) == 4


def test_limit_covers_classes_first_and_keeps_order_and_leaves_the_test_images_whole(tmp_path: Path) -> None:
    make(tmp_path, train={str(i): 9 for i in range(5)}, val={"0": 50, "1": 1}, test={"": 9})
    full = load(data(tmp_path), seed=0)
    splits = load(data(tmp_path, limit=7), seed=0)
    contract(splits)
    assert sorted(Counter(splits.train["label"]).values()) == [1, 1, 1, 2, 2]
    assert Counter(splits.val["label"]) == {0: 6, 1: 1}
    assert splits.test is not None and full.test is not None and len(splits.test) == 9  # prediction.csv is handed in
    assert ids(splits.test) == ids(full.test)
    assert splits.classes == full.classes
    for part, whole in ((splits.train, full.train), (splits.val, full.val)):
        assert [i for i in ids(whole) if i in set(ids(part))] == ids(part)
    assert ids(load(data(tmp_path, limit=7), seed=0).train) == ids(splits.train)
    assert ids(load(data(tmp_path, limit=7), seed=1).train) != ids(splits.train)
    small = load(data(tmp_path, limit=3), seed=0)
    assert small.classes == full.classes and len(set(small.train["label"])) == 3
    assert len(load(data(tmp_path, limit=1000), seed=0).train) == 45


# Digits


@pytest.mark.parametrize("listed", [True, False])
def test_digits(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the file of an installation that lists its files, else through scikit-learn."""
    if listed:
        monkeypatch.setattr("sklearn.datasets.load_digits", lambda: pytest.fail("its import takes 3 s"))
    else:
        monkeypatch.setattr("importlib.metadata.files", lambda _: None)
    splits = load(config.Data(path="digits"), seed=0)
    contract(splits)
    assert splits.classes == tuple("0123456789") and splits.test is None
    assert len(splits.train) + len(splits.val) == 1797
    assert abs(len(splits.val) / 1797 - 0.2) < 0.005
    for table in (splits.train, splits.val):
        expected = np.bincount(load_digits().target) * len(table) / 1797
        assert np.abs(np.bincount(table["label"]) - expected).max() < 1
    assert ids(load(config.Data(path="digits"), seed=9).val) == ids(splits.val)
    truth = load_digits()
    for row, data in ((splits.train[0], contents(splits.train)[0]), (splits.val[-1], contents(splits.val)[-1])):
        i = int(row["id"].removeprefix("digit-"))
        pixels = np.asarray(decode(data))
        assert np.array_equal(pixels, np.repeat(np.rint(truth.images[i] * 255 / 16)[..., None], 3, 2))
        assert row["label"] == truth.target[i]


# Other sources hold the same images


def embedded(folder: Path, label: object = None) -> pa.Table:
    """Class folders as a table with the images' bytes."""
    files = sorted(folder.rglob("*.jpg"))
    names = sorted({path.parent.name for path in files}, reverse=True)  # the table's own numbering is another one
    table = Dataset.from_dict(
        {"image": [str(path) for path in files], "label": [names.index(path.parent.name) for path in files]},
        features=Features({"image": Image(), "label": label or ClassLabel(names=names)}),
    )
    return embed_table_storage(table.data.table)


def write_tar(path: Path, folder: Path, how: str) -> None:
    with tarfile.open(path, "w") as tar:
        for image in sorted(folder.rglob("*.jpg")):
            label = image.parent.name
            meta = ("json", json.dumps({"label": label})) if how == "json" else ("cls", label)
            for suffix, body in (("jpg", image.read_bytes()), (meta[0], meta[1].encode())):
                info = tarfile.TarInfo(f"{image.stem}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


def convert(source: Path, target: Path, kind: str) -> Path:
    splits = {"train": source / "train", "validation": source / "val"}
    target.mkdir()
    if kind == "parquet":
        for name, folder in splits.items():
            pq.write_table(embedded(folder), target / f"{name}-00000-of-00001.parquet")
    elif kind == "parquet subfolders":
        for name, folder in splits.items():
            (target / "data" / name).mkdir(parents=True)
            table = embedded(folder)
            pq.write_table(table.slice(0, 3), target / "data" / name / "0000.parquet")
            pq.write_table(table.slice(3), target / "data" / name / "0001.parquet")
    elif kind in ("arrow stream", "arrow file"):
        for name, folder in splits.items():
            table = embedded(folder)
            new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
            with new(str(target / f"{name}.arrow"), table.schema) as writer:
                writer.write_table(table)
    elif kind == "saved":
        DatasetDict({name: Dataset(embedded(folder)) for name, folder in splits.items()}).save_to_disk(target)
    else:
        for name, folder in splits.items():
            write_tar(target / f"{name}-0000.tar", folder, kind.split()[1])
    return target


@pytest.mark.parametrize(
    "kind", ["parquet", "parquet subfolders", "arrow stream", "arrow file", "saved", "tar cls", "tar json"]
)
def test_every_source_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    source = make(tmp_path / "images", train={str(i): 2 for i in range(11)}, val={"2": 1, "10": 3})
    expected = load(data(source), seed=0)
    got = load(data(convert(source, tmp_path / "other", kind)), seed=0)
    contract(got)
    assert got.classes == expected.classes == tuple(str(i) for i in range(11))
    assert rows(got.train, got.classes) == rows(expected.train, expected.classes)
    assert rows(got.val, got.classes) == rows(expected.val, expected.classes)
    assert "train/10-1" in {name.removesuffix(".jpg") for name in ids(got.train)}
    assert got.train[0]["image"]["bytes"] is not None


def test_one_file_or_saved_dataset_is_split(tmp_path: Path) -> None:
    source = make(tmp_path / "images", flat={"a": 10, "b": 10})
    pq.write_table(embedded(source), tmp_path / "all.parquet")
    Dataset(embedded(source)).save_to_disk(tmp_path / "saved")
    write_tar(tmp_path / "all.tar", source, "cls")
    for name in ("all.parquet", "saved", "all.tar"):
        splits = load(data(tmp_path / name), seed=0)
        contract(splits)
        assert (len(splits.train), len(splits.val), splits.classes) == (18, 2, ("a", "b"))


def test_only_splits_of_other_names(tmp_path: Path) -> None:
    source = make(tmp_path / "images", flat={"a": 2, "b": 2})
    DatasetDict({"unsupervised": Dataset(embedded(source))}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved has no split called train, validation or test"):
        load_images(str(tmp_path / "saved"), data(tmp_path / "saved"))


def test_a_rewritten_tar_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "all.tar"
    write_tar(path, make(tmp_path / "one", flat={"a": 2, "b": 2}), "cls")
    assert load(data(path), seed=0).classes == ("a", "b")
    write_tar(path, make(tmp_path / "two", flat={"c": 2, "d": 2}), "cls")
    assert load(data(path), seed=0).classes == ("c", "d")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tar_is_read_to_its_end_or_rejected(tmp_path: Path, streaming: bool) -> None:
    """tarfile ends without a word at a header that it does not understand; a second tar behind it is never seen."""
    (tmp_path / "tars").mkdir()
    path = tmp_path / "tars/train.tar"
    write_tar(path, make(tmp_path / "one", flat={"a": 4, "b": 4}), "cls")
    whole = path.read_bytes()
    (tmp_path / "tars/val.tar").write_bytes(whole)
    with tarfile.open(path) as tar:
        at = tar.getmembers()[8].offset
        end = tar.offset
    flipped = bytearray(whole)
    flipped[at + 150] ^= 1
    for body, text in (
        (bytes(flipped), f"behind byte {at:,} it is damaged"), (whole + whole, "another tar begins"),
        (whole[: at + 100], "it is cut off after"), (whole[:at], "it is cut off after"), (whole[:end], "no end mark"),
        (whole[: at + 700], "unexpected end of data"),
    ):  # fmt: skip
        path.write_bytes(body)
        rejects(tmp_path / "tars", rf"data\.path: cannot read .*train\.tar: .*{text}", streaming=streaming)
    for body in (whole[: end + 512], whole + bytes(5000)):  # what GNU tar accepts
        path.write_bytes(body)
        assert len(load(data(tmp_path / "tars", streaming=streaming), seed=0).train) == 8


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("names", [("0.jpg", "0.cls", "0.mask.png"), ("at 10.15.00.jpg", "at 10.15.01.jpg", "x.cls")])
def test_two_images_of_one_sample_are_rejected(tmp_path: Path, names: tuple[str, ...], streaming: bool) -> None:
    path = tmp_path / "all.tar"
    body = jpeg(tmp_path / "x.jpg").read_bytes()
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(b"1" * len(body) if name.endswith("cls") else body))
    rejects(path, r"cannot read .*all\.tar: sample .* has two images, .* and ", streaming=streaming)


def test_columns_and_labels_of_tables(tmp_path: Path) -> None:
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    table = {"other": [b"no image"] * 4, "img": [body] * 4, "n": [1, 2, 3, 4], "cls": [20, 3, 20, 3], "kind": [*"xyxy"]}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(table), path)
    splits = load(data(path), seed=0)
    assert splits.classes == ("3", "20") and set(contents(splits.train)) == {body}
    assert sorted(ids(splits.train) + ids(splits.val)) == ["train-0", "train-1", "train-2", "train-3"]
    assert load(data(path, label_column="kind"), seed=0).classes == ("x", "y")
    assert contents(load(data(path, image_column="other"), seed=0).train)[0] == b"no image"
    for field in ("image_column", "label_column"):
        with pytest.raises(ValueError, match=rf"data\.{field}.*'nope'.*other, img, n, cls, kind"):
            load(data(path, **{field: "nope"}), seed=0)
    with pytest.raises(ValueError, match=r"data\.image_column.*'n' does not hold images"):
        load(data(path, image_column="n"), seed=0)
    pq.write_table(pa.table({"a": [body] * 2, "b": [body] * 2, "label": [0, 1]}), path)
    with pytest.raises(ValueError, match=r"data\.image_column.*a, b, label"):
        load(data(path), seed=0)
    pq.write_table(pa.table({"a": [body] * 2, "score": [0.5, 1.0]}), path)
    with pytest.raises(ValueError, match=r"2 of 2 train images .* no label.*data\.label_column.*a, score"):
        load(data(path), seed=0)
    with pytest.raises(ValueError, match=r"data\.label_column.*float"):
        load(data(path, label_column="score"), seed=0)


def test_unlabelled_test_split_of_a_table(tmp_path: Path) -> None:
    source = make(tmp_path / "images", train={"a": 3, "b": 3}, val={"a": 1, "b": 1})
    target = convert(source, tmp_path / "other", "parquet")
    pq.write_table(embedded(source / "val").select(["image"]), target / "test.parquet")
    splits = load(data(target, label_column="label"), seed=0)
    assert splits.test is not None and splits.test["label"][:] == [-1, -1]
    pq.write_table(embedded(source / "val", ClassLabel(names=["b", "a"])).slice(1), target / "test.parquet")
    splits = load(data(target), seed=0)
    assert splits.test is not None and [splits.classes[i] for i in splits.test["label"]] == ["b"]


# Prediction and evaluation of a path


def test_images_for_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "images", flat={"": 2, "deep": 2})
    table = load_images(str(root), data(""))
    assert ids(table) == ["deep/deep-0.jpg", "deep/deep-1.jpg", "photo-0.jpg", "photo-1.jpg"]
    assert table["label"][:] == [-1] * 4
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(root)
    for given, name in (("photo-1.jpg",) * 2, ("./deep/../photo-1.jpg",) * 2, (f"{root}/photo-1.jpg",) * 2,
                        ("~/images/photo-1.jpg", f"{root}/photo-1.jpg")):  # fmt: skip
        single, several = load_images(given, data("")), load_given([given, "deep/deep-0.jpg"], data(""))
        assert ids(single) == [name] and ids(several) == [given, "deep/deep-0.jpg"]
        assert contents(single)[0] == (root / "photo-1.jpg").read_bytes()
    pq.write_table(embedded(root).select(["image"]), tmp_path / "t.parquet")
    got = load_images(str(tmp_path / "t.parquet"), data("", label_column="gone"))
    assert rows(got, ()) == rows(table, ()) and got["label"][:] == [-1] * 4
    with pytest.raises(ValueError, match="no file or folder"):
        load_images(str(tmp_path / "gone"), data(""))


@pytest.mark.parametrize("kind", ["parquet", "tar cls"])
def test_what_a_streaming_run_predicts_and_evaluates_is_not_streamed(tmp_path: Path, kind: str) -> None:
    source = make(tmp_path / "images", train={"a": 2, "b": 1}, val={"a": 1})
    (path,) = convert(source, tmp_path / "other", kind).glob("train-*")
    predicted = load_images(str(path), data("", streaming=True))
    assert predicted["label"][:] == [-1] * 3
    labelled = load_labelled(str(path), ("a", "b"), data("", streaming=True))
    assert rows(labelled, ("a", "b")) == rows(load(data(source), seed=0).train, ("a", "b"))
    assert contents(predicted) == contents(labelled)


def test_labelled_path_for_evaluation(tmp_path: Path) -> None:
    root = make(tmp_path / "images", flat={"10": 1, "2": 2})
    assert load_labelled(str(root), ("1", "2", "10"), data(""))["label"][:] == [1, 1, 2]
    with pytest.raises(ValueError, match=r"1 classes that training lacks: '2' \(2 images\)"):
        load_labelled(str(root), ("1", "10"), data(""))
    jpeg(root / "loose.jpg")
    with pytest.raises(ValueError, match="1 of 4 images have no label"):
        load_labelled(str(root), ("1", "2", "10"), data(""))


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_that_no_class_has(tmp_path: Path, streaming: bool) -> None:
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()

    def write(name: str, labels: list[int | None], kind: object) -> None:
        features = Features({"image": Image(), "label": kind})
        table = {"image": [{"bytes": body, "path": None}] * len(labels), "label": labels}
        Dataset.from_dict(table, features=features).to_parquet(tmp_path / f"{name}.parquet")

    two = ClassLabel(names=["a", "b"])
    write("train", [0, 1, 0, 1], two)
    write("val", [0, 1], two)
    write("test", [None, None], Value("null"))
    splits = load(data(tmp_path, streaming=streaming), seed=0)
    assert splits.test is not None and splits.test["label"][:] == [-1, -1]
    table = pq.read_table(tmp_path / "train.parquet")
    for labels, text in (([0, 1, 0, 2], "has the label 2, but names of 2 classes"), ([5, 1, 0, 0], "has the label 5")):
        wrong = table.set_column(1, table.schema.field("label"), [pa.array(labels)])
        pq.write_table(wrong, tmp_path / "train.parquet")
        rejects(tmp_path, rf"data\.label_column: column 'label' {text}", streaming=streaming)
    pq.write_table(
        pa.table({"image": [body] * 2, "label": pa.array([2**63, 1], pa.uint64())}), tmp_path / "train.parquet"
    )
    rejects(tmp_path, r"data\.label_column: column 'label' holds uint64; .*9223372036854775808", streaming=streaming)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("streaming", [False, True])
def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path, kind: str, streaming: bool) -> None:
    """As pandas stores integers of which one is missing."""
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    values = {"train": [2.0, 10.0, 0.0, 10.0], "val": [10.0, 0.0], "test": [math.nan, 2.0, -1.0, None]}

    def write(split: str, labels: list[float | None]) -> None:
        column = pa.array(labels).cast(getattr(pa, kind)())
        pq.write_table(pa.table({"image": [body] * len(labels), "label": column}), tmp_path / f"{split}.parquet")

    for split, labels in values.items():
        write(split, labels)
    splits = load(data(tmp_path, streaming=streaming), seed=0)
    assert splits.classes == ("0", "2", "10")
    assert splits.val is not None and splits.val["label"][:] == [2, 0]
    assert splits.test is not None and splits.test["label"][:] == [-1, 1, -1, -1]
    write("train", [0.0, 0.5, 0.0, 1.0])
    rejects(tmp_path, r"data\.label_column: column 'label' holds .*float.* integers: .*0\.5", streaming=streaming)


@pytest.mark.parametrize(
    "labels",
    [[["a"], []], [datetime.date(2026, 1, 1), None], [0.5, 1.5], [{"x": 1}, {"x": 2}], [b"a", b"b"], ["", "new"]],
)
def test_labels_of_a_table_do_not_matter_for_prediction(tmp_path: Path, labels: list[Any]) -> None:
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    pq.write_table(pa.table({"image": [{"bytes": body}] * 2, "label": labels}), tmp_path / "new.parquet")
    rows = load_images(str(tmp_path / "new.parquet"), data("", label_column="elsewhere"))
    assert rows["label"][:] == [-1, -1] and images_of(rows).read([0]) == [body]
    with pytest.raises(ValueError, match=r"data\.label_column: column 'label' holds|1 of 2 images have no label"):
        load_labelled(str(tmp_path / "new.parquet"), ("new", "b"), data(""))


def labelled_table(path: Path, labels: list[Any], **columns: list[Any]) -> Path:
    body = jpeg(path.parent / "x.jpg", 7).read_bytes()
    pq.write_table(pa.table({"image": [{"bytes": body}] * len(labels), "label": labels, **columns}), path)
    (path.parent / "x.jpg").unlink()
    return path


def test_a_table_of_several_splits_is_not_all_train(tmp_path: Path) -> None:
    labels, splits = ["cat", "dog"] * 6, ["train"] * 8 + ["test"] * 4
    table = labelled_table(tmp_path / "all.parquet", labels, split=splits)
    rejects(table, r"column 'split' of a table for training holds several splits, train \(8\), test \(4\): write each")
    assert len(load_images(str(table), data(""))) == 12
    one = labelled_table(tmp_path / "one.parquet", labels, split=["train"] * 12, partition=list(range(12)))
    assert load(data(one), 0).classes == ("cat", "dog")


def test_a_column_called_label_is_the_label(tmp_path: Path) -> None:
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    features = Features({"image": Image(), "label": Value("string"), "source": ClassLabel(names=["web", "phone"])})
    rows = {"image": [body] * 8, "label": ["cat", "dog"] * 4, "source": [0, 0, 1, 1] * 2}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert load(data(tmp_path / "train.parquet"), 0).classes == ("cat", "dog")


def test_unknown_labels_of_a_table_of_text(tmp_path: Path) -> None:
    table = labelled_table(tmp_path / "train.parquet", ["cat", "dog ", " cat", "dog"] * 2)
    assert load(data(table), 0).classes == ("cat", "dog")
    for unknown in ("", " ", "-1", "nan", None):
        table = labelled_table(tmp_path / "train.parquet", ["cat", "dog", unknown, "dog"] * 2)
        rejects(table, "2 of 8 train images in .* have no label")


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_a_tar_that_are_not_read_are_there_to_be_named(tmp_path: Path, streaming: bool) -> None:
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for number in range(8):
                kinds = ("heic",) if number % 4 == 3 else ("heic", "jpg") if number % 4 == 1 else ("jpg",)
                for ending, content in (*((kind, body if kind == "jpg" else b"heic") for kind in kinds),
                                        ("cls", str(number % 2).encode())):  # fmt: skip
                    info = tarfile.TarInfo(f"{number}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    splits = load(data(tmp_path, streaming=streaming), 0)
    images = images_of(splits.val)
    assert len(splits.train) == len(images) == 8
    assert [bytes(each) == body for each in images.read(range(8))] == [number % 4 != 3 for number in range(8)]


def test_a_tar_whose_labels_follow_all_images_is_to_be_sorted(tmp_path: Path) -> None:
    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for ending in ("jpg", "cls"):
            for number in range(6):
                content = body if ending == "jpg" else str(number % 2).encode()
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    rejects(
        tmp_path / "train.tar", r"6 of 6 .* have no label.*6 \.jpg, 6 \.cls: .*follow each other \(tar --sort=name\)"
    )


def test_a_label_in_json_is_one_class(tmp_path: Path) -> None:
    def write(values: list[Any]) -> Path:
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            for number, value in enumerate(values):
                for ending, content in (("jpg", body), ("json", json.dumps({"label": value}).encode())):
                    info = tarfile.TarInfo(f"{number}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return tmp_path / "train.tar"

    body = jpeg(tmp_path / "x.jpg", 7).read_bytes()
    assert load(data(write([1.0, 2.0, 1, 2] * 2)), 0).classes == ("1", "2")
    rejects(write([[0, 1], [1]] * 3), r"0\.json holds \[0, 1\] as label, not one class")


def test_a_fault_of_the_machine_is_no_corrupt_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another image would stand in for it: it is tried again, and then an error."""
    make(tmp_path, flat={"a": 2, "b": 2})
    images = images_of(load_images(str(tmp_path), data("")))
    monkeypatch.setattr(readers, "PAUSES", (0.1, 0.2, 0.4))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tight = os.open(os.devnull, os.O_RDONLY)  # the lowest free number: none below it is left
    os.close(tight)
    resource.setrlimit(resource.RLIMIT_NOFILE, (tight, hard))
    back = threading.Timer(0.2, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
    try:
        with pytest.raises(
            DataError, match=r"a-0.jpg cannot be read .Too many open files, 4 times within .* run the same"
        ):
            images.read([0])
        back.start()
        assert bytes(images.read([0])[0]) == (tmp_path / "a/a-0.jpg").read_bytes()
    finally:
        back.cancel()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_unreadable_rows_are_corrupt_images(tmp_path: Path) -> None:
    make(tmp_path, flat={"a": 2, "b": 2})
    table = load_images(str(tmp_path), data(""))
    (tmp_path / "a/a-0.jpg").unlink()
    gone, there = images_of(table).read([0, 1])
    assert isinstance(gone, CorruptImageError) and "No such file" in str(gone)
    assert bytes(there) == (tmp_path / "a/a-1.jpg").read_bytes()
    images = pa.array([{"bytes": None, "path": None}, None], table.data.table.schema.field("image").type)
    nothing = Dataset(pa.table({"image": images, "label": [0, 0], "id": ["x", "y"]}))
    assert images_of(nothing).read([1, 0]) == [b"", b""]


# What cannot be used


def rejects(path: Path | str, message: str, **fields: object) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(data(path, **fields), seed=0)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    rejects(tmp_path / "gone", r"data\.path: there is no file or folder")
    for path in ("./gone", "~/gone/x", "a/b/c", "gone/x.parquet", "photo.jpg"):
        rejects(path, r"data\.path: there is no file or folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    rejects(empty, r"data\.path: .*holds no images \(0 other files\)")
    rejects(jpeg(tmp_path / "x.jpg"), r"data\.path: .*x\.jpg is a file")
    rejects(make(tmp_path / "flat", flat={"": 3}), r"data\.path: .*no class folders")
    rejects(make(tmp_path / "one", flat={"a": 3}), "only one class, 'a'")
    rejects(make(tmp_path / "val only", val={"a": 3, "b": 3}, test={"": 1}), "no train/")
    root = make(tmp_path / "extra", train={"a": 2, "b": 2}, val={"a": 1, "c": 2, "d": 1})
    rejects(root, r"val split.*2 classes that training lacks: 'c' \(2 images\), 'd' \(1 images\); training has 2: a, b")
    root = make(tmp_path / "hollow", train={"a": 2, "b": 2})
    (root / "val/a").mkdir(parents=True)
    rejects(root, "val holds no images")
    rejects(make(tmp_path / "flat val", train={"a": 2, "b": 2}, val={"": 2}), "val has no class folders")
    rejects(make(tmp_path / "two", train={"a": 2, "b": 2}, val={"a": 1}, valid={"a": 1}), "val and valid")
    rejects(make(tmp_path / "single", flat={"a": 1, "b": 1}), "no class has two images")
    make(tmp_path / "fraction", flat={"a": 2, "b": 2})
    name = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(tmp_path / "x.jpg", tmp_path / "fraction/a" / name)
    rejects(tmp_path / "fraction", "not UTF-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_unreadable_folder(tmp_path: Path) -> None:
    make(tmp_path, flat={"a": 2, "b": 2})
    (tmp_path / "a").chmod(0)
    rejects(tmp_path, "cannot read folder .*Permission denied")


def test_bad_tables(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.arrow", "x.tar"):
        (tmp_path / name).write_bytes(b"this is no such file")
        rejects(tmp_path / name, rf"data\.path: cannot read .*{name}")
    rejects(tmp_path, r"mixes \.arrow and \.parquet and \.tar")
    source = make(tmp_path / "images", train={"a": 2, "b": 2}, val={"a": 1})
    target = convert(source, tmp_path / "tables", "parquet")
    shutil.copy(target / "train-00000-of-00001.parquet", target / "more.parquet")
    rejects(target, "the split of .*more.parquet is not clear")
    (target / "more.parquet").rename(target / "testing.parquet")
    assert load(data(target), seed=0).test is not None
    (target / "testing.parquet").unlink()
    (target / "train-00000-of-00001.parquet").unlink()
    rejects(target, "no train split, only val")
    shutil.rmtree(target)
    saved = convert(source, tmp_path / "saved", "saved")
    next((saved / "train").glob("*.arrow")).unlink()
    rejects(saved, "cannot read the saved dataset")
    (tmp_path / "notes.txt").write_text("x")
    rejects(tmp_path / "notes.txt", r"notes\.txt is a file; expected")


def test_hub_name_offline_is_one_clear_error() -> None:
    """In a fresh process: the offline variables are read at import."""
    program = (
        "from cls import config; from cls.data.sources import load\n"
        "try: load(config.Data(path='some-org/some-data'), 0)\n"
        "except ValueError as error: print(error)\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data.path: 'some-org/some-data' is no file or folder here")
    assert "cls fetch" in done.stdout and done.stdout.count("\n") == 1


def test_real_photographs() -> None:
    root = Path(__file__).parents[3] / "shared/data/clothing"
    if not root.is_dir():
        pytest.skip("the clothing photographs are not beside this checkout (../shared/data/clothing)")
    start = time.perf_counter()
    splits = load(data(root), seed=0)
    print(f"indexed in {time.perf_counter() - start:.3f} s")
    contract(splits)
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (3068, 341, 372)
    assert len(splits.classes) == 10 and Counter(splits.test["label"]) == {-1: 372}
    counts = Counter(splits.classes[i] for i in [*splits.train["label"], *splits.val["label"]])
    assert (counts.most_common()[0][0], counts.most_common()[-1][0]) == ("t-shirt", "skirt")
