"""Labels from label files and from file names: public layouts as small real trees, and one clear error for each slip."""

import json
import logging
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import pytest
from conftest import ROOT, environment
from PIL import Image

from cls import config
from cls.checks import check_labels
from cls.data import folder
from cls.data.access import images_of
from cls.data.label_hint import label_hint
from cls.data.label_table import read_table
from cls.data.labels import read_labels
from cls.data.part import split_words
from cls.data.sources import Splits, load, load_images, load_labelled

Files = dict[str, str]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Label files with their text, and images, which have none."""
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tif": "TIFF"}[path.suffix[1:].lower()]
            Image.new("RGB", (9, 7), (number % 256, 80, 99)).save(path, kind)
    return root


def images(pattern: str, *numbers: int) -> Files:
    """``images("train/{}.jpg", 1, 2)``."""
    return {pattern.format(number): "" for number in numbers}


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


def found(root: Path, **options: object) -> dict[str, dict[str, str | None]]:
    """The label of each image by its id, by split, as the label files say it, before any is held out."""
    parts = read_labels(root, folder.scan(root), config.Data(path=str(root), **options)).parts
    named = {}
    for split, part in parts.items():
        labels = [part.names[code] if code >= 0 else None for code in part.codes]
        named[split] = dict(zip(part.images["id"][:], labels, strict=True))
    return named


def by_id(splits: Splits) -> dict[str, str | None]:
    """The same after load, of train and val together."""
    rows = [(splits.train, split) for split in ("train",)] + [(splits.val, "val")]
    return {
        name: splits.classes[label] for part, _ in rows for name, label in zip(part["id"], part["label"], strict=True)
    }


KAGGLE = images("train/{:02}.jpg", *range(6)) | images("test/{:02}.jpg", 7, 8)
ANSWER = {f"train/{n:02}.jpg": "ab"[n % 2] for n in range(6)}
UNKNOWN = {"test/07.jpg": None, "test/08.jpg": None}


def kaggle(row: Callable[[int], str], head: str = "id,label", name: str = "train.csv") -> Files:
    return KAGGLE | {name: lines(*([head] if head else []), *(row(n) for n in range(6)))}


def with_ids(root: str, answer: Mapping[str, str | None]) -> dict[str, str | None]:
    return {root + name: label for name, label in answer.items()}


TRAIN_TEST = {"train": ANSWER, "test": UNKNOWN}
FLAT = images("images/{}.jpg", *range(8))
FLAT_ANSWER = {f"images/{n}.jpg": "ab"[n % 2] for n in range(8)}
PETS = {f"images/{name}_{n}.jpg": "" for name in ("great_pyrenees", "Abyssinian") for n in (1, 12, 103)}
PETS_ANSWER = {name: name[7:].rpartition("_")[0] for name in PETS}
TINY = {f"train/{wnid}/images/{wnid}_{n}.JPEG": "" for wnid in ("n01", "n02") for n in range(3)}
TINY |= {f"train/{wnid}/{wnid}_boxes.txt": lines(*(f"{wnid}_{n}.JPEG\t0\t0\t{n % 2}\t62" for n in range(3)))
         for wnid in ("n01", "n02")}  # fmt: skip
TINY |= images("val/images/val_{}.JPEG", *range(4)) | images("test/images/test_{}.JPEG", 0, 1)
TINY |= {"val/val_annotations.txt": lines(*(f"val_{n}.JPEG\tn0{1 + n % 2}\t0\t32\t44\t62" for n in range(4)))}
TINY |= {"wnids.txt": lines("n01", "n02"), "words.txt": lines("n01\tgoldfish, carp", "n02\tfox, red fox")}
TINY_ANSWER = {
    "train": {f"train/n0{w}/images/n0{w}_{n}.JPEG": f"n0{w}" for w in (1, 2) for n in range(3)},
    "val": {f"val/images/val_{n}.JPEG": f"n0{1 + n % 2}" for n in range(4)},
    "test": {"test/images/test_0.JPEG": None, "test/images/test_1.JPEG": None},
}
NET = "ILSVRC/Data/CLS-LOC/"
IMAGENET = {f"{NET}train/n0{w}/n0{w}_{n}.JPEG": "" for w in (1, 2) for n in range(3)}
IMAGENET |= images(NET + "val/ILSVRC2012_val_{:08}.JPEG", *range(4)) | images(NET + "test/x_{}.JPEG", 1)
IMAGENET |= {"LOC_val_solution.csv": lines("ImageId,PredictionString", *(
    f"ILSVRC2012_val_{n:08},n0{1 + n % 2} 1 2 300 4 " + f"n0{1 + n % 2} 5 6 7 8 " * n for n in range(4)))}  # fmt: skip
IMAGENET_ANSWER = {
    "train": {f"train/n0{w}/n0{w}_{n}.JPEG": f"n0{w}" for w in (1, 2) for n in range(3)},
    "val": {f"val/ILSVRC2012_val_{n:08}.JPEG": f"n0{1 + n % 2}" for n in range(4)},
    "test": {"test/x_1.JPEG": None},
}
FOOD = {f"images/{name}/{n}.jpg": "" for name in ("apple_pie", "sushi") for n in range(4)}
FOOD |= {"meta/train.txt": lines("apple_pie/0", "apple_pie/1", "sushi/0", "sushi/2"),
         "meta/test.txt": lines("apple_pie/2", "apple_pie/3", "sushi/1", "sushi/3"),
         "meta/classes.txt": lines("apple_pie", "sushi")}  # fmt: skip
FOOD |= {"meta/train.json": json.dumps({"apple_pie": ["apple_pie/0", "apple_pie/1"], "sushi": ["sushi/0", "sushi/2"]})}
FOOD_ANSWER = {
    "train": {f"images/{name}.jpg": name[:-2] for name in ("apple_pie/0", "apple_pie/1", "sushi/0", "sushi/2")},
    "test": {f"images/{name}.jpg": name[:-2] for name in ("apple_pie/2", "apple_pie/3", "sushi/1", "sushi/3")},
}
HF_ROWS = [f'{{"file_name": "{n:02}.jpg", "label": "{"ab"[n % 2]}", "text": null}}' for n in range(6)]
ISIC = lines("image,MEL,NV,BCC", *(f"{n:02},{n % 3 == 0:.1f},{n % 3 == 1:.1f},{n % 3 == 2:.1f}" for n in range(6)))
ISIC_ANSWER = {f"train/{n:02}.jpg": ("MEL", "NV", "BCC")[n % 3] for n in range(6)}

# name: (the tree, options, what comes of it; a root below the tree)
LAYOUTS: dict[str, tuple[Files, dict[str, object], dict[str, dict[str, str | None]], str]] = {
    "kaggle, ids with ending": (kaggle(lambda n: f"{n:02}.jpg,{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "kaggle, ids without ending": (kaggle(lambda n: f"{n:02},{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "kaggle, integer ids": (kaggle(lambda n: f"{n},{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "kaggle, ids with folder": (kaggle(lambda n: f"train/{n:02}.jpg,{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "ids of another machine": (kaggle(lambda n: f"/kaggle/input/c/train/{n:02}.jpg,{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "ids of Windows": (kaggle(lambda n: f"C:\\data\\{n:02}.jpg,{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "ids of DICOM files": (kaggle(lambda n: f"{n:02}.dcm,{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "ending in capitals": (kaggle(lambda n: f"{n:02}.JPG,{'ab'[n % 2]}"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "labels before ids": (kaggle(lambda n: f"{'ab'[n % 2]},{n:02}.jpg", "Id,Image"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "pandas's index": (kaggle(lambda n: f"{n},{n:02}.jpg,{'ab'[n % 2]}", ",file,y"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "one folder for train and test": (
        {**FLAT, "labels.csv": lines("id,breed", *(f"{n},{'ab'[n % 2]}" for n in range(8)))}, {"labels": ("labels.csv",)},
        {"train": FLAT_ANSWER}, ""),
    "images and test images": (
        {name.replace("/", "_images/"): text for name, text in kaggle(lambda n: f"{n:02}.jpg,{'ab'[n % 2]}").items()},
        {"labels": ("train.csv",)}, {split: {name.replace("/", "_images/"): label for name, label in part.items()}
                                     for split, part in TRAIN_TEST.items()}, ""),
    "semicolons, BOM, CRLF, quotes": (
        kaggle(lambda n: f'"{n:02}.jpg";"{"ab"[n % 2]}"\r', "\ufeff\"file\";\"class\"\r"), {"labels": ("train.csv",)}, TRAIN_TEST, ""),
    "tabs": (kaggle(lambda n: f"{n:02}.jpg\t{'ab'[n % 2]}", "file\tclass", "train.tsv"), {"labels": ("train.tsv",)}, TRAIN_TEST, ""),
    "words": (kaggle(lambda n: f"{n:02}.jpg {'ab'[n % 2]}", "", "train.txt"), {"labels": ("train.txt",)}, TRAIN_TEST, ""),
    "commas without header": (kaggle(lambda n: f"train/{n:02}.jpg,{'ab'[n % 2]}", "", "train.txt"), {"labels": ("train.txt",)}, TRAIN_TEST, ""),
    "old Mac's line ends": (
        KAGGLE | {"train.csv": "id,label\r" + "".join(f"{n},{'ab'[n % 2]}\r" for n in range(6))}, {"labels": ("train.csv",)},
        TRAIN_TEST, ""),
    "names with spaces": (
        {**images("train/my {}.jpg", *range(4)), "train/5.jpg": "",
         "train.txt": lines(*(f"my {n}.jpg {'ab'[n % 2]}" for n in range(4)), "5.jpg a")},
        {"labels": ("train.txt",)}, {"train": {f"train/my {n}.jpg": "ab"[n % 2] for n in range(4)} | {"train/5.jpg": "a"}}, ""),
    "more columns, one chosen": (
        kaggle(lambda n: f"{n:02},{n % 3},{'ab'[n % 2]},{n / 7}", "image_id,hotel,chain,time"),
        {"labels": ("train.csv",), "label_column": "chain"}, TRAIN_TEST, ""),
    "both columns chosen": (
        kaggle(lambda n: f"{n},{n:02},{'ab'[n % 2]},{n % 3}", "row,key,kind,fold"),
        {"labels": ("train.csv",), "label_column": "KIND", "id_column": "key"}, TRAIN_TEST, ""),
    "columns by number": (
        kaggle(lambda n: f"{n:02} {n % 3} {'ab'[n % 2]} x{n % 3}", "", "train.txt"),
        {"labels": ("train.txt",), "label_column": "3", "id_column": "1"}, TRAIN_TEST, ""),
    "train and val files": (
        {**FLAT, "train.csv": lines("image,label", *(f"{n}.jpg,{'ab'[n % 2]}" for n in range(4))),
         "val.csv": lines("image,label", *(f"{n}.jpg,{'ab'[n % 2]}" for n in range(4, 8)))},
        {"labels": ("train.csv", "val.csv")},
        {"train": dict(list(FLAT_ANSWER.items())[:4]), "val": dict(list(FLAT_ANSWER.items())[4:])}, ""),
    "splits named": (
        {**FLAT, "one.csv": lines("image,label", *(f"{n}.jpg,{'ab'[n % 2]}" for n in range(4))),
         "two.csv": lines("image,label", *(f"{n}.jpg,{'ab'[n % 2]}" for n in range(4, 8)))},
        {"labels": ("train=one.csv", "validation=two.csv")},
        {"train": dict(list(FLAT_ANSWER.items())[:4]), "val": dict(list(FLAT_ANSWER.items())[4:])}, ""),
    "a column of splits": (
        {**FLAT, "all.csv": lines("path,label,split", *(
            f"images/{n}.jpg,{'ab'[n % 2]},{('train', 'valid', 'test', 'train')[n // 2]}" for n in range(8)))},
        {"labels": ("all.csv",)},
        {split: {f"images/{n}.jpg": "ab"[n % 2] for n in numbers}
         for split, numbers in (("train", (0, 1, 6, 7)), ("val", (2, 3)), ("test", (4, 5)))}, ""),
    "a column is_valid": (
        {**FLAT, "train.csv": lines("path,label,is_valid", *(f"{n}.jpg,{'ab'[n % 2]},{n > 5}" for n in range(8)))},
        {"labels": ("train.csv",)},
        {split: {f"images/{n}.jpg": "ab"[n % 2] for n in numbers}
         for split, numbers in (("train", range(6)), ("val", (6, 7)))}, ""),
    "files of another split's folder": (  # train_images/ has all, the files say which is which
        images("train_images/{}.jpg", *range(8)) | {
            "fold_train.csv": lines("id,label", *(f"{n},{'ab'[n % 2]}" for n in range(6))),
            "fold_val.csv": lines("id,label", "6,a", "7,b")},
        {"labels": ("fold_train.csv", "fold_val.csv")},
        {split: {f"train_images/{n}.jpg": "ab"[n % 2] for n in numbers}
         for split, numbers in (("train", range(6)), ("val", (6, 7)))}, ""),
    "the same names in train and test": (
        images("train/{}.png", *range(4)) | images("test/{}.png", *range(4)) |
        {"trainLabels.csv": lines("id,label", *(f"{n},{'ab'[n % 2]}" for n in range(4)))},
        {"labels": ("trainLabels.csv",)},
        {"train": {f"train/{n}.png": "ab"[n % 2] for n in range(4)}, "test": {f"test/{n}.png": None for n in range(4)}}, ""),
    "a labelled test": (
        kaggle(lambda n: f"{n:02},{'ab'[n % 2]}") | {"test.csv": lines("id,label", "07,b", "08,")},
        {"labels": ("train.csv", "test.csv")}, {"train": ANSWER, "test": {"test/07.jpg": "b", "test/08.jpg": None}}, ""),
    "ids of a test": (
        kaggle(lambda n: f"{n:02},{'ab'[n % 2]}") | {"test.csv": lines("id", "07", "08")},
        {"labels": ("train.csv", "test.csv"), "label_column": "label"}, TRAIN_TEST, ""),
    "hugging face, jsonl in the folder": (
        KAGGLE | {"train/metadata.jsonl": lines(*HF_ROWS)}, {"labels": ("train/metadata.jsonl",)}, TRAIN_TEST, ""),
    "hugging face, csv in each folder": (
        KAGGLE | {"train/metadata.csv": lines("file_name,label", *(f"{n:02}.jpg,{'ab'[n % 2]}" for n in range(6))),
                  "test/metadata.csv": lines("file_name,label", "07.jpg,a", "08.jpg,b")},
        {"labels": ("train/metadata.csv", "test/metadata.csv")},
        {"train": ANSWER, "test": {"test/07.jpg": "a", "test/08.jpg": "b"}}, ""),
    "hugging face, csv at the root": (
        kaggle(lambda n: f"train/{n:02}.jpg,{'ab'[n % 2]}", "file_name,label", "metadata.csv"),
        {"labels": ("metadata.csv",)}, TRAIN_TEST, ""),
    "a list of objects": (
        KAGGLE | {"train.json": json.dumps([{"file": f"{n:02}.jpg", "class": n % 2} for n in range(6)])},
        {"labels": ("train.json",)}, {"train": {name: str("ab".index(label)) for name, label in ANSWER.items()}, "test": UNKNOWN}, ""),
    "a mapping": (
        KAGGLE | {"train.json": json.dumps({f"{n:02}.jpg": "ab"[n % 2] for n in range(6)})}, {"labels": ("train.json",)}, TRAIN_TEST, ""),
    "floats for integers": (
        kaggle(lambda n: f"{n},{n % 2}.0"), {"labels": ("train.csv",)},
        {"train": {name: str("ab".index(label)) for name, label in ANSWER.items()}, "test": UNKNOWN}, ""),
    "one column for each class": (KAGGLE | {"train.csv": ISIC}, {"labels": ("train.csv",)}, {"train": ISIC_ANSWER, "test": UNKNOWN}, ""),
    "tiny-imagenet": (TINY, {"labels": ("val/val_annotations.txt",)}, TINY_ANSWER, ""),
    "imagenet": (IMAGENET, {"labels": ("../../../LOC_val_solution.csv",)}, IMAGENET_ANSWER, NET),
    "food-101": (FOOD, {"labels": ("meta/train.txt", "meta/test.txt")}, FOOD_ANSWER, ""),
    "food-101's json": (FOOD, {"labels": ("meta/train.json", "meta/test.txt")}, FOOD_ANSWER, ""),
    "the images' folder alone": (
        {**FLAT, "labels.csv": lines("id,breed", *(f"images/{n}.jpg,{'ab'[n % 2]}" for n in range(8)))},
        {"labels": ("../labels.csv",)}, {"train": {name[7:]: label for name, label in FLAT_ANSWER.items()}}, "images"),
    "oxford-pets": ({**PETS, "annotations/list.txt": lines("#Image ID")}, {"label_pattern": r"(.+)_\d+\.jpg"}, {"train": PETS_ANSWER}, ""),
    "cats and dogs": (
        {f"train/{name}.{n}.jpg": "" for name in ("cat", "dog") for n in range(3)} | images("test/{}.jpg", 1, 2),
        {"label_pattern": "(cat|dog)"},
        {"train": {f"train/{name}.{n}.jpg": name for name in ("cat", "dog") for n in range(3)},
         "test": {"test/1.jpg": None, "test/2.jpg": None}}, ""),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every label by id and split as its people mean it, also through load, which holds out of train where val lacks."""
    files, options, answer, below = LAYOUTS[layout]
    root = tree(tmp_path / "set", files) / below
    assert found(root, **options) == answer
    with caplog.at_level(logging.INFO, "cls"):
        splits = load(config.Data(path=str(root), val_fraction=0.3, **options), seed=0)
    assert by_id(splits) == answer["train"] | answer.get("val", {})
    assert "val" not in answer or list(splits.val["id"]) == list(answer["val"])
    assert (list(splits.test["id"]) if splits.test else []) == list(answer.get("test", {}))
    assert f"train {len(answer['train']):,} images" in caplog.text
    assert not [one for one in caplog.records if one.levelno > logging.INFO and "name no image" in one.getMessage()]
    first = images_of(splits.train)
    assert bytes(first.read([0])[0]) == (root / first.name(0)).read_bytes()


def test_absolute_and_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is looked for below data.path first, then where the shell's completion finds it."""
    root = tree(tmp_path / "photos", kaggle(lambda n: f"{n},{'ab'[n % 2]}"))
    assert found(root, labels=(str(root / "train.csv"),)) == TRAIN_TEST
    monkeypatch.chdir(tmp_path)
    assert found(root, labels=("photos/train.csv",)) == TRAIN_TEST
    (root / "train.csv").rename(tmp_path / "all.csv")
    assert found(root, labels=("train=all.csv",)) == TRAIN_TEST
