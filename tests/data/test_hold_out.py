"""Which images validate: none, or a part of the training images in which each image is exactly once."""

import logging
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cls import config
from cls.data.readers import column, images_of
from cls.data.sources import Splits, load
from cls.data.subset import in_parts
from cls.tracking.run_data import look


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def photos(root: Path, **splits: dict[str, int]) -> Path:
    """``photos(root, train={"a": 3})``: three PNGs in root/train/a, each of another grey."""
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / ("" if split == "flat" else split) / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (3, 3), 17 * i % 256).save(folder / f"{name}-{i}.png")
    return root


def data(path: Path, hold_out: str, **fields: object) -> config.Data:
    return config.Data(path=str(path), hold_out=hold_out, **fields)


def ids(rows: datasets.Dataset) -> list[str]:
    return column(rows, "id").to_pylist()


def per_class(splits: Splits, rows: datasets.Dataset) -> Counter[str]:
    return Counter(splits.classes[label] for label in column(rows, "label").to_pylist())


COUNTS = {"a": 11, "b": 7, "c": 4, "d": 2}


@pytest.mark.parametrize(
    ("kind", "parts"), [("folders", 3), ("folders", 9), ("flat", 2), ("parquet", 5), ("labels", 3)]
)
def test_each_image_validates_in_exactly_one_part(
    tmp_path: Path, kind: str, parts: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = photos(tmp_path / "photos", **{"flat" if kind == "flat" else "train": COUNTS})
    fields: dict[str, object] = {}
    if kind == "folders":
        photos(path, val={"a": 3, "new": 1}, test={"": 2})
    if kind == "labels":
        lines = [f"{file.relative_to(path)},{file.parent.name}" for file in sorted(path.glob("train/*/*"))]
        (path / "train.csv").write_text("\n".join(["file,label", *lines]))
        fields["labels"] = ("train.csv",)
    if kind == "parquet":
        files = sorted(path.glob("train/*/*"))
        columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
        pq.write_table(pa.table(columns), tmp_path / "train.parquet")
        path = tmp_path / "train.parquet"
    everything = {name for file in [load(data(path, f"1/{parts}", **fields), 0)] for name in ids(file.train)}
    found = [load(data(path, f"{part}/{parts}", **fields), seed=part) for part in range(1, parts + 1)]
    held = [ids(splits.val) for splits in found]
    everything |= {*held[0]}
    assert len(everything) == sum(COUNTS.values())
    assert sorted(name for part in held for name in part) == sorted(everything)
    for splits, part in zip(found, held, strict=True):
        assert splits.classes == ("a", "b", "c", "d")
        assert sorted([*ids(splits.train), *part]) == sorted(everything)
        assert per_class(splits, splits.train).keys() == COUNTS.keys()  # no class is lost to training
    sizes = [len(part) for part in held]
    assert max(sizes) - min(sizes) <= 1
    for name, count in COUNTS.items():
        counts = [per_class(splits, splits.val)[name] for splits in found]
        assert sum(counts) == count and max(counts) - min(counts) <= 1, name
    few = sum(count < parts for count in COUNTS.values())
    assert (f"{few} classes have fewer than {parts} images" in caplog.text) == bool(few)
    if kind == "folders":
        assert "4 validation images are left aside" in caplog.text and len(found[0].test or ()) == 2
        assert ids(found[0].val)[0].startswith("train/")


def test_the_parts_depend_on_neither_seed_nor_listing(tmp_path: Path) -> None:
    path = photos(tmp_path, flat=COUNTS)
    first, other = (load(data(path, "2/3"), seed) for seed in (0, 2**70))
    assert ids(first.val) == ids(other.val) and ids(first.train) == ids(other.train)
    names, labels = [*map(str, range(60))], np.arange(60) % 3
    order = np.random.default_rng(0).permutation(60)
    one = in_parts(pa.chunked_array([names]), labels, 4)
    again = in_parts(pa.chunked_array([[names[i] for i in order]]), labels[order], 4)
    assert (again == one[order]).all() and not (one == np.arange(60) % 4).all()


def test_an_image_is_in_any_part_equally_often() -> None:
    """Over many classes, the first image by id falls into each of five parts about 400 times of 2,000."""
    labels = np.repeat(np.arange(2000), 7)
    names = pa.chunked_array([[f"{i % 7}" for i in range(len(labels))]])
    counts = np.bincount(in_parts(names, labels, 5)[::7], minlength=5)
    assert counts.sum() == 2000 and abs(counts - 400).max() < 4 * np.sqrt(2000 * 0.2 * 0.8)


def test_the_only_image_of_a_class_always_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = photos(tmp_path, flat={"a": 5, "b": 1, "c": 1})
    found = [load(data(path, f"{part}/2"), 0) for part in (1, 2)]
    for splits in found:
        assert {"b/b-0.png", "c/c-0.png"} <= {*ids(splits.train)} and per_class(splits, splits.val).keys() == {"a"}
    assert "2 classes have fewer than 2 images, so not in every part; the only image of 2 classes" in caplog.text
    with pytest.raises(ValueError, match=r"data\.hold_out: 1/6 cuts 5 images .* use at most 5"):
        load(data(path, "1/6"), 0)


def test_without_validation_its_images_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = photos(tmp_path, train={"a": 3, "b": 3}, val={"b": 2, "new": 2}, test={"": 1})
    splits = load(data(path, "none"), 0)
    assert splits.val is None and splits.classes == ("a", "b", "new") and len(splits.test or ()) == 1
    assert per_class(splits, splits.train) == {"a": 3, "b": 5, "new": 2} and len({*ids(splits.train)}) == 10
    assert images_of(splits.train).read([9])[0] == (path / "val/new/new-1.png").read_bytes()
    assert "4 validation images are trained on" in caplog.text
    assert look(splits).facts.keys() == {"train"} and look(splits).facts["train"]["images"] == 10
    assert len(load(data(path, "none", limit=4), 0).train) == 4


def test_without_a_validation_split_all_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = load(data(photos(tmp_path, flat=COUNTS), "none", val_fraction=0.5), 0)
    assert splits.val is None and per_class(splits, splits.train) == COUNTS
    assert "data.val_fraction 0.5 is not used with data.hold_out none" in caplog.text


def test_tables_of_validation_images_that_train_are_compared_too(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        files = sorted(photos(tmp_path / split, flat={"a": count, "b": count}).glob("*/*"))
        columns = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
        pq.write_table(pa.table(columns), tmp_path / f"{split}.parquet")
    (tmp_path / "tables").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.parquet").rename(tmp_path / "tables" / f"{split}.parquet")
    whole = look(load(data(tmp_path / "tables", "none"), 0)).facts["train"]
    assert whole["images"] == 12 and [table["name"] for table in whole["tables"]] == ["train.parquet", "val.parquet"]
    part = look(load(data(tmp_path / "tables", "1/2"), 0)).facts
    assert [table["name"] for table in part["train"]["tables"]] == ["train.parquet"] and part["val"]["tables"] == []


@pytest.mark.parametrize("first", ["", "1/3", "none"])
@pytest.mark.parametrize("own", [True, False])
def test_a_plus_takes_a_part_of_what_would_train(
    tmp_path: Path, first: str, own: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """So a search for a learning rate never sees the images that its run validates on."""
    splits = {"train": {"a": 12, "b": 9}} | ({"val": {"a": 3}} if own else {})
    path = photos(tmp_path, **(splits if own else {"flat": splits["train"]}))
    caplog.set_level(logging.WARNING)
    base = load(data(path, first), seed=4)
    held: list[str] = []
    for part in range(1, 5):
        caplog.clear()
        found = load(data(path, f"{first}+{part}/4"), seed=4)
        assert sorted([*ids(found.train), *ids(found.val)]) == sorted(ids(base.train))
        assert found.classes == base.classes
        held += ids(found.val)
        aside = len(base.val) if base.val else 0
        assert (f"{aside} validation images are left aside" in caplog.text) == bool(aside)
    assert sorted(held) == sorted(ids(base.train))
