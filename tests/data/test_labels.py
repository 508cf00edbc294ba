"""Labels from label files and file names: public layouts as small real trees, and one clear error for each mistake."""

import csv
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cls import config
from cls.commands.main import parse_command
from cls.commands.parsing import parse_run
from cls.data.folders import image_folder
from cls.data.labels.hint import label_hint
from cls.data.labels.read import read_labels
from cls.data.labels.table import FILES
from cls.data.labels.values import UnclearColumnError
from cls.data.readers import images_of
from cls.data.sources import Splits, load, load_images, load_labelled
from cls.data.split_words import splits_in
from cls.runtime.signals import StopSignal
from cls.validate import check_data
from tests.harness import ROOT, environment
from tests.harness.untrained import untrained

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
    parts = read_labels(root, image_folder.scan(root), config.Data(path=str(root), **options)).parts
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
HAM_ANSWER = {
    f"HAM_images_part_{1 + n % 2}/ISIC_{n:07}.jpg": ("mel", "nv")[n // 2 % 2] for n in (0, 2, 4, 6, 1, 3, 5, 7)
}
HAM: Files = dict.fromkeys(HAM_ANSWER, "") | {"HAM10000_metadata.csv": lines(
    "lesion_id,image_id,dx,dx_type,age,sex,localization", *(
        f"HAM_{n // 2:07},ISIC_{n:07},{('mel', 'nv')[n // 2 % 2]},histo,80.{n},male,scalp" for n in range(8)))
}  # fmt: skip

AB, CSV = "ab", {"labels": ("train.csv",)}

# name: (the tree, options, what comes of it; a root below the tree)
LAYOUTS: dict[str, tuple[Files, dict[str, object], dict[str, dict[str, str | None]], str]] = {
    "kaggle, ids with ending": (kaggle(lambda n: f"{n:02}.jpg,{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "kaggle, ids without ending": (kaggle(lambda n: f"{n:02},{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "kaggle, integer ids": (kaggle(lambda n: f"{n},{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "kaggle, ids with folder": (kaggle(lambda n: f"train/{n:02}.jpg,{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "ids of another machine": (kaggle(lambda n: f"/kaggle/input/c/train/{n:02}.jpg,{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "ids of Windows": (kaggle(lambda n: f"C:\\data\\{n:02}.jpg,{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "ids of DICOM files": (kaggle(lambda n: f"{n:02}.dcm,{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "ending in capitals": (kaggle(lambda n: f"{n:02}.JPG,{AB[n % 2]}"), CSV, TRAIN_TEST, ""),
    "labels before ids": (kaggle(lambda n: f"{AB[n % 2]},{n:02}.jpg", "Id,Image"), CSV, TRAIN_TEST, ""),
    "pandas's index": (kaggle(lambda n: f"{n},{n:02}.jpg,{AB[n % 2]}", ",file,y"), CSV, TRAIN_TEST, ""),
    "one folder for train and test": (
        {**FLAT, "labels.csv": lines("id,breed", *(f"{n},{AB[n % 2]}" for n in range(8)))},
        {"labels": ("labels.csv",)},
        {"train": FLAT_ANSWER},
        "",
    ),
    "images and test images": (
        {name.replace("/", "_images/"): text for name, text in kaggle(lambda n: f"{n:02}.jpg,{AB[n % 2]}").items()},
        CSV,
        {
            split: {name.replace("/", "_images/"): label for name, label in part.items()}
            for split, part in TRAIN_TEST.items()
        },
        "",
    ),
    "semicolons, BOM, CRLF, quotes": (
        kaggle(lambda n: f'"{n:02}.jpg";"{AB[n % 2]}"\r', '\ufeff"file";"class"\r'),
        CSV,
        TRAIN_TEST,
        "",
    ),
    "tabs": (
        kaggle(lambda n: f"{n:02}.jpg\t{AB[n % 2]}", "file\tclass", "train.tsv"),
        {"labels": ("train.tsv",)},
        TRAIN_TEST,
        "",
    ),
    "words": (kaggle(lambda n: f"{n:02}.jpg {AB[n % 2]}", "", "train.txt"), {"labels": ("train.txt",)}, TRAIN_TEST, ""),
    "commas without header": (
        kaggle(lambda n: f"train/{n:02}.jpg,{AB[n % 2]}", "", "train.txt"),
        {"labels": ("train.txt",)},
        TRAIN_TEST,
        "",
    ),
    "old Mac's line ends": (
        KAGGLE | {"train.csv": "id,label\r" + "".join(f"{n},{AB[n % 2]}\r" for n in range(6))},
        CSV,
        TRAIN_TEST,
        "",
    ),
    "names with spaces": (
        {
            **images("train/my {}.jpg", *range(4)),
            "train/5.jpg": "",
            "train.txt": lines(*(f"my {n}.jpg {AB[n % 2]}" for n in range(4)), "5.jpg a"),
        },
        {"labels": ("train.txt",)},
        {"train": {f"train/my {n}.jpg": AB[n % 2] for n in range(4)} | {"train/5.jpg": "a"}},
        "",
    ),
    "more columns, one chosen": (
        kaggle(lambda n: f"{n:02},{n % 3},{AB[n % 2]},{n / 7}", "image_id,hotel,chain,time"),
        {"labels": ("train.csv",), "label_column": "chain"},
        TRAIN_TEST,
        "",
    ),
    "both columns chosen": (
        kaggle(lambda n: f"{n},{n:02},{AB[n % 2]},{n % 3}", "row,key,kind,fold"),
        {"labels": ("train.csv",), "label_column": "KIND", "id_column": "key"},
        TRAIN_TEST,
        "",
    ),
    "columns by number": (
        kaggle(lambda n: f"{n:02} {n % 3} {AB[n % 2]} x{n % 3}", "", "train.txt"),
        {"labels": ("train.txt",), "label_column": "3", "id_column": "1"},
        TRAIN_TEST,
        "",
    ),
    "train and val files": (
        {
            **FLAT,
            "train.csv": lines("image,label", *(f"{n}.jpg,{AB[n % 2]}" for n in range(4))),
            "val.csv": lines("image,label", *(f"{n}.jpg,{AB[n % 2]}" for n in range(4, 8))),
        },
        {"labels": ("train.csv", "val.csv")},
        {"train": dict(list(FLAT_ANSWER.items())[:4]), "val": dict(list(FLAT_ANSWER.items())[4:])},
        "",
    ),
    "splits named": (
        {
            **FLAT,
            "one.csv": lines("image,label", *(f"{n}.jpg,{AB[n % 2]}" for n in range(4))),
            "two.csv": lines("image,label", *(f"{n}.jpg,{AB[n % 2]}" for n in range(4, 8))),
        },
        {"labels": ("train=one.csv", "validation=two.csv")},
        {"train": dict(list(FLAT_ANSWER.items())[:4]), "val": dict(list(FLAT_ANSWER.items())[4:])},
        "",
    ),
    "a column of splits": (
        {
            **FLAT,
            "all.csv": lines(
                "path,label,split",
                *(f"images/{n}.jpg,{AB[n % 2]},{('train', 'valid', 'test', 'train')[n // 2]}" for n in range(8)),
            ),
        },
        {"labels": ("all.csv",)},
        {
            split: {f"images/{n}.jpg": AB[n % 2] for n in numbers}
            for split, numbers in (("train", (0, 1, 6, 7)), ("val", (2, 3)), ("test", (4, 5)))
        },
        "",
    ),
    "a column is_valid": (
        {**FLAT, "train.csv": lines("path,label,is_valid", *(f"{n}.jpg,{AB[n % 2]},{n > 5}" for n in range(8)))},
        CSV,
        {
            split: {f"images/{n}.jpg": AB[n % 2] for n in numbers}
            for split, numbers in (("train", range(6)), ("val", (6, 7)))
        },
        "",
    ),
    "files of another split's folder": (  # train_images/ has all, the files say which is which
        images("train_images/{}.jpg", *range(8))
        | {
            "fold_train.csv": lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(6))),
            "fold_val.csv": lines("id,label", "6,a", "7,b"),
        },
        {"labels": ("fold_train.csv", "fold_val.csv")},
        {
            split: {f"train_images/{n}.jpg": AB[n % 2] for n in numbers}
            for split, numbers in (("train", range(6)), ("val", (6, 7)))
        },
        "",
    ),
    "the same names in train and test": (
        images("train/{}.png", *range(4))
        | images("test/{}.png", *range(4))
        | {"trainLabels.csv": lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(4)))},
        {"labels": ("trainLabels.csv",)},
        {"train": {f"train/{n}.png": AB[n % 2] for n in range(4)}, "test": {f"test/{n}.png": None for n in range(4)}},
        "",
    ),
    "a labelled test": (
        kaggle(lambda n: f"{n:02},{AB[n % 2]}") | {"test.csv": lines("id,label", "07,b", "08,")},
        {"labels": ("train.csv", "test.csv")},
        {"train": ANSWER, "test": {"test/07.jpg": "b", "test/08.jpg": None}},
        "",
    ),
    "ids of a test": (
        kaggle(lambda n: f"{n:02},{AB[n % 2]}") | {"test.csv": lines("id", "07", "08")},
        {"labels": ("train.csv", "test.csv"), "label_column": "label"},
        TRAIN_TEST,
        "",
    ),
    "hugging face, jsonl in the folder": (
        KAGGLE | {"train/metadata.jsonl": lines(*HF_ROWS)},
        {"labels": ("train/metadata.jsonl",)},
        TRAIN_TEST,
        "",
    ),
    "hugging face, csv in each folder": (
        KAGGLE
        | {
            "train/metadata.csv": lines("file_name,label", *(f"{n:02}.jpg,{AB[n % 2]}" for n in range(6))),
            "test/metadata.csv": lines("file_name,label", "07.jpg,a", "08.jpg,b"),
        },
        {"labels": ("train/metadata.csv", "test/metadata.csv")},
        {"train": ANSWER, "test": {"test/07.jpg": "a", "test/08.jpg": "b"}},
        "",
    ),
    "hugging face, csv at the root": (
        kaggle(lambda n: f"train/{n:02}.jpg,{AB[n % 2]}", "file_name,label", "metadata.csv"),
        {"labels": ("metadata.csv",)},
        TRAIN_TEST,
        "",
    ),
    "a list of objects": (
        KAGGLE | {"train.json": json.dumps([{"file": f"{n:02}.jpg", "class": n % 2} for n in range(6)])},
        {"labels": ("train.json",)},
        {"train": {name: str("ab".index(label)) for name, label in ANSWER.items()}, "test": UNKNOWN},
        "",
    ),
    "a mapping": (
        KAGGLE | {"train.json": json.dumps({f"{n:02}.jpg": AB[n % 2] for n in range(6)})},
        {"labels": ("train.json",)},
        TRAIN_TEST,
        "",
    ),
    "floats for integers": (
        kaggle(lambda n: f"{n},{n % 2}.0"),
        CSV,
        {"train": {name: str("ab".index(label)) for name, label in ANSWER.items()}, "test": UNKNOWN},
        "",
    ),
    "one column for each class": (KAGGLE | {"train.csv": ISIC}, CSV, {"train": ISIC_ANSWER, "test": UNKNOWN}, ""),
    "HAM10000": (HAM, {"labels": ("HAM10000_metadata.csv",)}, {"train": HAM_ANSWER}, ""),
    "tiny-imagenet": (TINY, {"labels": ("val/val_annotations.txt",)}, TINY_ANSWER, ""),
    "imagenet": (IMAGENET, {"labels": ("../../../LOC_val_solution.csv",)}, IMAGENET_ANSWER, NET),
    "food-101": (FOOD, {"labels": ("meta/train.txt", "meta/test.txt")}, FOOD_ANSWER, ""),
    "food-101's json": (FOOD, {"labels": ("meta/train.json", "meta/test.txt")}, FOOD_ANSWER, ""),
    "the images' folder alone": (
        {**FLAT, "labels.csv": lines("id,breed", *(f"images/{n}.jpg,{AB[n % 2]}" for n in range(8)))},
        {"labels": ("../labels.csv",)},
        {"train": {name[7:]: label for name, label in FLAT_ANSWER.items()}},
        "images",
    ),
    "oxford-pets' list": (
        {
            **PETS,
            "annotations/list.txt": lines(
                "#Image CLASS-ID SPECIES BREED ID",
                "#SPECIES: 1:Cat 2:Dog",
                *(f"{name[7:-4]} 1 {1 + ('great' in name)} 1" for name in PETS),
            ),
        },
        {"labels": ("annotations/list.txt",), "label_column": "3"},
        {"train": {name: str(1 + ("great" in name)) for name in PETS}},
        "",
    ),
    "oxford-pets": (
        {**PETS, "annotations/list.txt": lines("#Image ID")},
        {"label_pattern": r"(.+)_\d+\.jpg"},
        {"train": PETS_ANSWER},
        "",
    ),
    "cats and dogs": (
        {f"train/{name}.{n}.jpg": "" for name in ("cat", "dog") for n in range(3)} | images("test/{}.jpg", 1, 2),
        {"label_pattern": "(cat|dog)"},
        {
            "train": {f"train/{name}.{n}.jpg": name for name in ("cat", "dog") for n in range(3)},
            "test": {"test/1.jpg": None, "test/2.jpg": None},
        },
        "",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    """Every label by id and split as its authors mean it, also through load, which may hold some out of train."""
    files, options, answer, below = LAYOUTS[layout]
    root = tree(tmp_path / "set", files) / below
    assert found(root, **options) == answer and "name no image" not in warnings(root, **options)
    splits = load(config.Data(path=str(root), val_fraction=0.3, **options), seed=0)
    assert by_id(splits) == answer["train"] | answer.get("val", {})
    assert "val" not in answer or list(splits.val["id"]) == list(answer["val"])
    assert (list(splits.test["id"]) if splits.test else []) == list(answer.get("test", {}))
    first = images_of(splits.train)
    assert bytes(first.read([0])[0]) == (root / first.name(0)).read_bytes()


@pytest.mark.parametrize("head", [",filename,label", "row,file_name,label", "id,photo,label"])
def test_numbers_beside_file_names_are_no_ids(tmp_path: Path, head: str) -> None:
    """pandas's index names more of these images than the file names, of which some are not here."""
    files = {**images("{:03}.jpg", *range(60)), **images("{:03}.jpg", *range(160, 200))}
    rows = [f"{n - 80},{n:03}.jpg,{AB[n % 2]}" for n in range(100, 180)]  # numbers: 20 to 99; names: 160 to 179
    root = tree(tmp_path / "set", files | {"train.csv": lines(head, *rows)})
    given = {name: label for split in found(root, **CSV).values() for name, label in split.items()}
    assert given == {f"{n}.jpg": AB[n % 2] for n in range(160, 180)}


def test_train_csv_does_not_train_on_images_of_test(tmp_path: Path) -> None:
    """Its name is for train, but it is of all images."""
    rows = lines("id,label", *(f"{n:02},{AB[n % 2]}" for n in (0, 1, *range(4, 12))))
    root = tree(
        tmp_path, {**images("train/{:02}.jpg", 0, 1), **images("test/{:02}.jpg", *range(4, 12)), "train.csv": rows}
    )
    with pytest.raises(
        ValueError, match=r"8 of 10 rows of train\.csv name images of test, e\.g\. test/04\.jpg: remove"
    ):
        found(root, **CSV)
    assert len(found(root, labels=("train=train.csv",))["train"]) == 10


def test_a_list_of_paths_with_several_folders_is_unclear(tmp_path: Path) -> None:
    names = [f"photos/{('cat', 'dog')[n % 2]}/{('indoor', 'outdoor')[n // 4]}/{n}.jpg" for n in range(8)]
    root = tree(tmp_path, dict.fromkeys(names, "") | {"train.txt": lines(*names)})
    with pytest.raises(ValueError, match=r"several folders that may be the classes \(cat, dog and indoor, outdoor\)"):
        found(root, labels=("train.txt",))
    names = [f"{('train', 'val')[n // 4]}/{('cat', 'dog')[n % 2]}/{n}.jpg" for n in range(8)]
    root = tree(tmp_path / "split", dict.fromkeys(names, "") | {"all.txt": lines(*names)})
    assert {*found(root, labels=("all.txt",))["val"].values()} == {"cat", "dog"}


@pytest.mark.parametrize(("mark", "form"), [("|", "{}.jpg"), (",", "{}.0"), ("|", "{}.0")])
def test_bars_and_ids_that_pandas_wrote_as_floats(tmp_path: Path, mark: str, form: str) -> None:
    rows = ["id,label", *(f"{form.format(n)},{AB[n % 2]}" for n in range(8))]
    root = tree(tmp_path, FLAT | {"labels.csv": lines(*(row.replace(",", mark) for row in rows))})
    assert found(root, labels=("labels.csv",)) == {"train": FLAT_ANSWER}


def test_a_file_that_is_for_another_split_by_its_name(tmp_path: Path) -> None:
    root = tree(tmp_path, FLAT | {"valid_labels.csv": lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(8)))})
    with pytest.raises(ValueError, match=r"only val; if valid_labels\.csv is for training: --data\.labels train=val"):
        load(config.Data(path=str(root), labels=("valid_labels.csv",)), seed=0)
    assert len(load(config.Data(path=str(root), labels=("train=valid_labels.csv",)), seed=0).train) == 6


def test_minus_one_is_no_class_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path, FLAT | {"labels.csv": lines("id,label", *(f"{n},{(1, -1)[n % 2]}" for n in range(8)))})
    with pytest.raises(ValueError, match=r"4 rows of labels\.csv have no label.*-1 is read as unknown: give a class"):
        found(root, labels=("labels.csv",))


def test_a_place_in_the_picture_is_no_label(tmp_path: Path) -> None:
    rows = lines("image,x,y,w,h,kind", *(f"{n}.jpg,{n},{n % 3},9,9,{AB[n % 2]}" for n in range(8)))
    root = tree(tmp_path, FLAT | {"labels.csv": rows})
    with pytest.raises(ValueError, match=r"several columns of labels\.csv may hold the classes: .*kind"):
        found(root, labels=("labels.csv",))


@pytest.mark.parametrize("head", [[], ["image breed"]])
def test_a_class_of_two_words_behind_an_image(tmp_path: Path, head: list[str]) -> None:
    names = ("great dane", "beagle", "great pyrenees")
    root = tree(tmp_path, FLAT | {"labels.txt": lines(*head, *(f"{n}.jpg {names[n % 3]}" for n in range(8)))})
    assert list(found(root, labels=("labels.txt",))["train"].values()) == [names[n % 3] for n in range(8)]


def test_formats_that_are_not_read_are_counted_beside_label_files(tmp_path: Path) -> None:
    root = tree(
        tmp_path, kaggle(lambda n: f"{n:02},{AB[n % 2]}") | dict.fromkeys(images("test/{}.HEIC", 7, 8, 9), b"heic")
    )
    assert "3 images of kinds that are not read ignored: 3 .heic" in warnings(root, **CSV)
    root = tree(tmp_path / "named", images("a_{}.jpg", 1, 2) | images("b_{}.jpg", 3, 4) | {"b_5.heic": b"heic"})
    assert "1 images of kinds that are not read ignored: 1 .heic" in warnings(root, label_pattern="(.)_")


def test_columns_that_name_different_images_are_unclear(tmp_path: Path) -> None:
    rows = lines(",photo,label", *(f"{n},{(n + 3) % 10:02},{AB[n % 2]}" for n in range(10)))
    root = tree(tmp_path / "set", {**images("{:02}.jpg", *range(10)), "train.csv": rows})
    with pytest.raises(
        ValueError, match=r"columns #1 and photo of train\.csv name different images: .*--data.id-column"
    ):
        found(root, **CSV)
    assert found(root, **CSV, id_column="photo")["train"] == {f"{(n + 3) % 10:02}.jpg": AB[n % 2] for n in range(10)}


def test_file_names_that_name_no_image_are_not_replaced_by_numbers(tmp_path: Path) -> None:
    rows = lines(",filepath,label", *(f"{n},raw/{AB[n % 2]}/{n:03}.jpg,{AB[n % 2]}" for n in range(10)))
    root = tree(tmp_path / "set", {**images("images/{:03}.jpg", *range(10)), "train.csv": rows})
    with pytest.raises(ValueError, match=r"train\.csv names no image of .*its ids look like 'raw/b/009\.jpg'"):
        found(root, **CSV)


def test_absolute_and_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is looked for below data.path first, then where the shell's completion finds it."""
    root = tree(tmp_path / "photos", kaggle(lambda n: f"{n},{AB[n % 2]}"))
    assert found(root, labels=(str(root / "train.csv"),)) == TRAIN_TEST
    monkeypatch.chdir(tmp_path)
    assert found(root, labels=("photos/train.csv",)) == TRAIN_TEST
    (root / "train.csv").rename(tmp_path / "all.csv")
    assert found(root, labels=("train=all.csv",)) == TRAIN_TEST


# What says the splits of an image and of a file


@pytest.mark.parametrize("folders", [("test_tube", "beaker"), ("site_test", "site_b"), ("valid_ids", "lab")])
def test_a_split_word_in_a_folder_of_another_thing(tmp_path: Path, folders: tuple[str, str]) -> None:
    files = images(f"{folders[0]}/{{}}.jpg", *range(4)) | images(f"{folders[1]}/{{}}.jpg", *range(4, 8))
    root = tree(tmp_path, files | {"labels.csv": lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(8)))})
    assert found(root, labels=("labels.csv",)) == {"train": {name: AB[n % 2] for n, name in enumerate(files)}}
    assert found(root, label_pattern=r"(\d)").keys() == {"train"}


@pytest.mark.parametrize(
    ("folder", "split"),
    [("test_results", "train"), ("test", "test"), ("val_annotations", "val"), ("labels/validation", "val")],
)
def test_the_folder_of_a_label_file(tmp_path: Path, folder: str, split: str) -> None:
    rows = lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(8)))
    root = tree(tmp_path, FLAT | {f"{folder}/labels.csv": rows})
    assert found(root, labels=(f"{folder}/labels.csv",)) == {split: FLAT_ANSWER}


def test_folders_of_one_family_are_splits(tmp_path: Path) -> None:
    root = tree(tmp_path, KAGGLE | images("seg_train/a/{}.jpg", 1) | images("seg_test/{}.jpg", 2)
                | {"labels.csv": lines("id,label", *(f"{n:02},{AB[n % 2]}" for n in range(6)))})  # fmt: skip
    assert found(root, labels=("labels.csv",))["test"].keys() == {"test/07.jpg", "test/08.jpg", "seg_test/2.jpg"}


# Masks and the like are no images of a class

MASKS = images("images/{}.jpg", *range(8)) | images("masks/{}.png", *range(8))
TRIMAPS = {f"annotations/trimaps/{name}_{n}.png": "" for name in ("great_pyrenees", "Abyssinian") for n in (1, 12, 103)}


def test_trimaps_are_left_out_of_the_pattern(tmp_path: Path) -> None:
    root = tree(tmp_path, PETS | TRIMAPS)
    assert r"--data.label-pattern '(.+)_\d+'" in label_hint(root, image_folder.scan(root))
    options = {"label_pattern": r"(.+)_\d+"}
    assert found(root, **options) == {"train": PETS_ANSWER}
    text = "6 images in folders of masks or annotations left out, e.g. annotations/trimaps/Abyssinian_1.png"
    assert warnings(root, **options) == f"{root}: {text}"
    alone = {name.removeprefix("annotations/trimaps/"): name[20:].rpartition("_")[0] for name in TRIMAPS}
    assert found(root / "annotations/trimaps", **options) == {"train": alone}


@pytest.mark.parametrize("ids", ["{}", "{}.jpg", "images/{}.jpg"])
@pytest.mark.parametrize("name", ["train.csv", "labels.csv"])
def test_masks_are_left_out_of_label_files(tmp_path: Path, ids: str, name: str) -> None:
    root = tree(tmp_path, MASKS | {name: lines("id,label", *(f"{ids.format(n)},{AB[n % 2]}" for n in range(8)))})
    assert found(root, labels=(name,)) == {"train": FLAT_ANSWER}
    assert "8 images in folders of masks or annotations left out, e.g. masks/0.png" in warnings(root, labels=(name,))
    with pytest.raises(ValueError, match=rf"{re.escape(name)} looks like labels of 8 of the 8 images: add --data"):
        load(config.Data(path=str(root)), seed=0)


def test_images_of_their_own_in_a_folder_of_labels_are_kept(tmp_path: Path) -> None:
    files = images("images/{}.jpg", *range(4)) | images("labels/{}.jpg", *range(4, 8))
    root = tree(tmp_path, files | {"train.csv": lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(8)))})
    assert len(found(root, **CSV)["train"]) == 8 and not warnings(root, **CSV)


@pytest.mark.parametrize("name", ["train.csv", "train=train.csv", "all.csv"])
def test_the_advice_for_unclear_ids_works(tmp_path: Path, name: str) -> None:
    """It is not what was typed."""
    files = images("one/{}.jpg", *range(4)) | images("two/{}.jpg", *range(4))
    rows = lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(4)))
    root = tree(tmp_path / "my set", files | {"train.csv": rows, "all.csv": rows})
    with pytest.raises(ValueError, match="write folders and endings into the ids, or name the images' folder") as error:
        found(root, labels=(name,))
    run = parse_run(["best", *shlex.split("--data.path" + str(error.value).rpartition("--data.path")[2])])
    assert run.data.path == str(root / "one")
    assert found(root / "one", labels=run.data.labels) == {"train": {f"{n}.jpg": AB[n % 2] for n in range(4)}}


# What says the splits of a file's rows

SPLIT_COLUMNS = {  # the column's name, its cells, and the splits they mean
    "FER2013": ("Usage", ["Training", "PublicTest", "PrivateTest"], ["train", "test", "test"]),
    "sets": ("set", ["train_set", "val_set", "test_set"], ["train", "val", "test"]),
    "is_train, yes and no": ("is_train", ["yes", "no", "yes"], ["train", "test", "train"]),
    "is_train, truth": ("is_train", ["True", "False", "True"], ["train", "test", "train"]),
    "is_test": ("is_test", ["0", "1", "0"], ["train", "test", "train"]),
    "is_validation": ("isValidation", ["no", "yes", "no"], ["train", "val", "train"]),
    "two flags": ("is_test,is_valid", ["0,0", "1,0", "0,1"], ["train", "test", "val"]),
    "two flags with train": ("is_train,is_valid", ["1,0", "0,1", "0,0"], ["train", "val", "test"]),
    "both words": ("train/test", ["train", "test", "train"], ["train", "test", "train"]),
    "a longer name": ("train_val_split", ["train", "val", "test"], ["train", "val", "test"]),
    "images": ("is_training_img", ["1", "0", "1"], ["train", "test", "train"]),
    "without is": ("test", ["0", "1", "0"], ["train", "test", "train"]),
    "of a person": ("use_for_training", ["True", "False", "True"], ["train", "test", "train"]),
    "three flags": ("train,val,test", ["1,0,0", "0,1,0", "0,0,1"], ["train", "val", "test"]),
    "held out": ("is_held_out", ["no", "yes", "no"], ["train", "test", "train"]),
    "in one word": ("isvalid", ["0", "1", "0"], ["train", "val", "train"]),
    "another name": ("which", ["train", "test", "train"], ["train", "test", "train"]),
    "folds": ("fold", ["0", "1", "2"], ["train", "train", "train"]),
    "another set": ("dataset", ["vienna", "rosendahl", "vienna"], ["train", "train", "train"]),
}


def splits_file(name: str, cells: list[str]) -> Files:
    return FLAT | {"labels.csv": lines(f"id,label,{name}", *(f"{n},{AB[n % 2]},{cells[n % 3]}" for n in range(8)))}


@pytest.mark.parametrize("case", SPLIT_COLUMNS)
def test_split_columns(tmp_path: Path, case: str) -> None:
    name, cells, splits = SPLIT_COLUMNS[case]
    root = tree(tmp_path, splits_file(name, cells))
    options = {"labels": ("labels.csv",), "label_column": "label"}
    given = {image: split for split, part in found(root, **options).items() for image in part}
    assert given == {f"images/{n}.jpg": splits[n % 3] for n in range(8)}
    unused = f"column {name} ({', '.join(sorted(set(cells)))}, ...) holds no splits and is not used"
    assert (unused in warnings(root, **options)) == (case in ("folds", "another set"))
    asked = {**options, "labels": ("val=labels.csv",)}
    assert found(root, **asked).keys() == {"val"}
    assert ("all rows are val, as in data.labels" in warnings(root, **asked)) != (case in ("folds", "another set"))


@pytest.mark.parametrize("classes", [("bus", "car", "train"), ("car", "train")])
def test_a_class_called_train_is_no_split(tmp_path: Path, classes: tuple[str, ...]) -> None:
    given = [classes[n % len(classes)] for n in range(8)]
    rows = [f"{n}," + ",".join("01"[name == own] for name in classes) for n, own in enumerate(given)]
    root = tree(tmp_path, FLAT | {"labels.csv": lines(f"id,{','.join(classes)}", *rows)})
    assert list(found(root, labels=("labels.csv",))["train"].values()) == given
    assert not warnings(root, labels=("labels.csv",))


def test_a_column_that_may_hold_splits_is_not_passed_over(tmp_path: Path) -> None:
    root = tree(tmp_path, splits_file("train_test", ["0", "1", "0"]))
    assert "column train_test (0, 1, ...) holds no splits and is not used" in warnings(root, labels=("labels.csv",))
    root = tree(tmp_path / "other", splits_file("group", ["train", "test", "unused"]))
    with pytest.raises(ValueError, match=r"2 of 8 rows of labels\.csv say no split.* in column group: unused \(2\)"):
        found(root, labels=("labels.csv",))


def test_a_class_column_with_a_split_column_s_name(tmp_path: Path) -> None:
    rows = lines("id,phase", *(f"{n},{('new', 'full')[n % 2]} moon" for n in range(8)))
    root = tree(tmp_path, FLAT | {"labels.csv": rows})
    assert set(found(root, labels=("labels.csv",))["train"].values()) == {"new moon", "full moon"}
    assert not warnings(root, labels=("labels.csv",))


def test_split_column_without_header(tmp_path: Path) -> None:
    rows = lines(*(f"{n}.jpg,{AB[n % 2]},{('train', 'test')[n // 4]}" for n in range(8)))
    root = tree(tmp_path, FLAT | {"labels.csv": rows})
    names = list(FLAT)
    assert found(root, labels=("labels.csv",)) == {
        split: {name: FLAT_ANSWER[name] for name in part} for split, part in (("train", names[:4]), ("test", names[4:]))
    }


@pytest.mark.parametrize(
    ("name", "cells", "counts"),
    [
        ("split", ["trainval", "test", "test"], r"3 of 8 rows .* in column split: trainval \(3\); write train, val or"),
        ("Usage", ["Train", "Public", "Private"], r"5 of 8 rows .* Public \(3\), Private \(2\); .*train=FILE"),
        ("split", ["training", "evaluation", "training"], r"evaluation \(3\)"),
        ("split", ["train", "query", "val"], r"query \(3\)"),
        ("split", ["train", "", "train"], r"empty \(3\)"),
        ("fold", ["train", "unknown", "test"], r"unknown \(3\)"),
        ("partition", ["0", "1", "2"], r"8 of 8 rows .* 0 \(3\), 1 \(3\), 2 \(2\)"),
        ("is_train", ["yes", "", "maybe"], r"5 of 8 rows .* neither yes nor no .*: empty \(3\), maybe \(2\)"),
        ("is_test,is_valid", ["1,1", "0,0", "0,0"], r"3 rows .* several, in columns is_test, is_valid, e\.g\. line 2"),
        ("split,set", ["train,train", "val,test", "train,train"], "say different splits in 3 rows, e.g. line 3"),
    ],
)
def test_unclear_split_columns(tmp_path: Path, name: str, cells: list[str], counts: str) -> None:
    root = tree(tmp_path, splits_file(name, cells))
    with pytest.raises(ValueError, match=rf"^data\.labels: .*{counts}"):
        found(root, labels=("labels.csv",), label_column="label")


@pytest.mark.parametrize(("labels", "known"), [("a,-1", "a"), ("-1,b", "b"), ("-1,-1", None), ("-1.0,b", "b")])
def test_minus_one_in_a_test_file_is_no_class(tmp_path: Path, labels: str, known: str | None) -> None:
    one, two = labels.split(",")
    files = kaggle(lambda n: f"{n:02},{('a', 'b', '3')[n % 3]}")
    root = tree(tmp_path, files | {"test.csv": lines("id,label", f"07,{one}", f"08,{two}")})
    options = {"labels": ("train.csv", "test.csv")}
    assert set(found(root, **options)["test"].values()) == {known, None}
    count = labels.count("-1")
    assert f"test.csv: {count} of 2 rows have -1 in column label: no label known" in warnings(root, **options)
    assert load(config.Data(path=str(root), val_fraction=0.3, **options), seed=0).classes == ("3", "a", "b")
    (root / "train.csv").write_text(lines("id,label", *(f"{n:02},{('cat', 'b', '-1')[n % 3]}" for n in range(6))))
    with pytest.raises(ValueError, match=r"2 rows of train\.csv have no label, e\.g\. line 4"):
        found(root, **options)


def test_a_label_file_that_is_not_in_the_copy(tmp_path: Path) -> None:
    """It lay above data.path, which has moved since."""
    root = tree(tmp_path / "copy", images("{}.jpg", *range(4)))
    data = config.Data(path=str(tmp_path / "set/train"), copy=str(tmp_path / "cp"), labels=("../train.csv",))
    message = r"no file \.\./train\.csv in .*/copy; data\.copy .*/set/train .* absolute path, or a file inside .*$"
    with pytest.raises(ValueError, match=message):
        read_labels(root, image_folder.scan(root), data)
    tree(tmp_path, {"moved.csv": lines("id,label", *(f"{n},{AB[n % 2]}" for n in range(4)))})
    again = config.Data(path=data.path, copy=data.copy, labels=(str(tmp_path / "moved.csv"),))
    assert len(read_labels(root, image_folder.scan(root), again).parts["train"]) == 4


# What is left out, repeated or missing is counted and named


def warnings(root: Path, **options: object) -> str:
    return "\n".join(read_labels(root, image_folder.scan(root), config.Data(path=str(root), **options)).notes)


def test_rows_without_a_file_and_images_without_a_row(tmp_path: Path) -> None:
    rows = lines("id,label", *(f"{n:02},{AB[n % 2]}" for n in range(4)), "20,a", "21,b", "22,b")
    root = tree(tmp_path, KAGGLE | {"stray.jpg": "", "train.csv": rows})
    text = warnings(root, labels=("train.csv",))
    assert "train.csv: 3 of 7 rows name no image, e.g. line 6 ('20'): ignored" in text
    assert "3 images without a row in train.csv left out, e.g. stray.jpg" in text
    parts = found(root, labels=("train.csv",))
    assert parts == {"train": dict(list(ANSWER.items())[:4]), "test": UNKNOWN}


def test_repeated_rows_that_agree_count_once(tmp_path: Path) -> None:
    files = kaggle(lambda n: f"{n:02},{AB[n % 2]}")
    root = tree(tmp_path, {**files, "train.csv": files["train.csv"] + lines("03.jpg,b", "04,a", "04,a")})
    assert found(root, labels=("train.csv",)) == TRAIN_TEST
    text = warnings(root, labels=("train.csv",))
    assert "3 rows repeat an image with the same label: used once, e.g. train.csv, line 5 and train.csv, line 8" in text
    assert "name no image" not in text and "left out" not in text


def test_the_source_of_each_split(tmp_path: Path) -> None:
    files, options, _, _ = LAYOUTS["tiny-imagenet"]
    root = tree(tmp_path, files)
    parts = read_labels(root, image_folder.scan(root), config.Data(path=str(root), **options)).parts
    sources = {split: part.origin for split, part in parts.items()}
    file = "val/val_annotations.txt: ids in column 1, labels: column 2"
    assert sources == {"train": "folders", "val": file, "test": "folders"}


MISTAKES: dict[str, tuple[Files, dict[str, object], str]] = {
    "no such file": (
        kaggle(lambda n: f"{n},a"),
        {"labels": ("trian.csv",)},
        r"there is no file trian\.csv in .*; there is train\.csv$",
    ),
    "other ids": (
        kaggle(lambda n: f"x{n},{AB[n % 2]}"),
        CSV,
        r"train\.csv names no image of .*: its ids look like 'x5' \(column id, line 7\), a file like "
        r"'test/07\.jpg'; name the column of the ids with --data\.id-column, of id, label$",
    ),
    "the wrong id column": (
        kaggle(lambda n: f"{n},{AB[n % 2]}"),
        {"labels": ("train.csv",), "id_column": "label"},
        r"its ids look like 'b' \(column label, line 7\)",
    ),
    "no such id column": (
        kaggle(lambda n: f"{n},a"),
        {"labels": ("train.csv",), "id_column": "key"},
        r"--data\.id-column key: train\.csv has no such column; it has id, label$",
    ),
    "no such label column": (
        kaggle(lambda n: f"{n},a"),
        {"labels": ("train.csv",), "label_column": "kind"},
        r"--data\.label-column kind: train\.csv has no such column; it has id, label$",
    ),
    "no such numbered column": (
        kaggle(lambda n: f"{n:02}.jpg x a", "", "train.txt"),
        {"labels": ("train.txt",), "label_column": "7"},
        r"--data\.label-column 7: train\.txt has no such column; it has 1, 2, 3 \(the file has no",
    ),
    "several columns": (
        kaggle(lambda n: f"{n},{n % 3},{AB[n % 2]},{n / 7}", "id,hotel,chain,time"),
        CSV,
        r"several columns of train\.csv may hold the classes: name one with "
        r"--data\.label-column, of hotel, chain$",
    ),
    "only ids": (
        kaggle(lambda n: f"{n}", "id"),
        CSV,
        r"cannot find the labels in train\.csv: name their column with --data\.label-column, of id$",
    ),
    "measures": (
        kaggle(lambda n: f"{n},{n + 0.5}"),
        CSV,
        r"column label of train\.csv holds numbers such as 0\.5, no classes",
    ),
    "empty labels": (
        kaggle(lambda n: f"{n},{'a' if n % 2 else ''}"),
        CSV,
        r"3 rows of train\.csv have no label, e\.g\. line 2 \(id '0', column label\): fill or remove them",
    ),
    "NaN": (
        kaggle(lambda n: f"{n},{'NaN' if n == 4 else 'ab'[n % 2]}"),
        CSV,
        r"1 rows of train\.csv have no label, e\.g\. line 6 \(id '4'",
    ),
    "null in JSON": (
        KAGGLE
        | {
            "train.jsonl": lines(
                *(f'{{"file": "{n:02}.jpg", "label": {"null" if n == 3 else n % 2}}}' for n in range(6))
            )
        },
        {"labels": ("train.jsonl",)},
        r"1 rows of train\.jsonl have no label, e\.g\. line 4",
    ),
    "minus one": (kaggle(lambda n: f"{n},{n % 3 - 1}"), CSV, r"2 rows of train\.csv have no label, e\.g\. line 2"),
    "two labels of an image": (
        kaggle(lambda n: f"{n // 2},{AB[n % 2]}"),
        CSV,
        r"train/00\.jpg is 'a' in train by train\.csv, line 2, and 'b' in train by train\.csv, line 3: "
        "each image needs one label and one split",
    ),
    "two splits of an image": (
        {**FLAT, "train.csv": lines("id,label", "1,a", "2,b"), "val.csv": lines("id,label", "2,b")},
        {"labels": ("train.csv", "val.csv")},
        r"images/2\.jpg is 'b' in train by train\.csv, line 3, and 'b' in val by val\.csv, line 2",
    ),
    "an id of two images": (
        images("train/{}.png", 1, 2) | images("test/{}.png", 1, 2) | {"labels.csv": lines("id,label", "1,a", "2,b")},
        {"labels": ("labels.csv",)},
        r"2 ids of labels\.csv are the names of several images, e\.g\. '1' \(line 2\) of 'test/1\.png' and "
        r"'train/1\.png': .*--data\.labels train=labels\.csv$",
    ),
    "several labels": (
        kaggle(lambda n: f"{n},{'a|b' if n == 3 else 'a'}"),
        CSV,
        r"train\.csv, line 5: 'a\|b' in column label is several labels or none",
    ),
    "a list as label": (
        KAGGLE | {"train.jsonl": lines(*(f'{{"file": "{n:02}.jpg", "label": ["a", "b"]}}' for n in range(6)))},
        {"labels": ("train.jsonl",)},
        r"line 1: .* is several labels or none",
    ),
    "several ones": (
        KAGGLE | {"train.csv": lines("image,rain,sun,fog", *(f"{n},1,{n % 2},0" for n in range(6)))},
        CSV,
        r"train\.csv, line 3 marks 2 of the columns rain, sun, fog: these are several labels of an image",
    ),
    "val without labels": (
        kaggle(lambda n: f"{n},{AB[n % 2]}") | images("valid/{}.jpg", 3, 4),
        CSV,
        r"2 images of .* are val by their folders and have neither a row nor a class folder, e\.g\. "
        r"valid/3\.jpg: add the label file of val",
    ),
    "ragged": (kaggle(lambda n: f"{n},a" + ",x" * (n == 3)), CSV, r"train\.csv, line 5 has 3 fields, but line 1 has 2"),
    "an open quote": (
        kaggle(lambda n: f"{n},{chr(34) if n == 4 else ''}a"),
        CSV,
        r"train\.csv, line 6: unexpected end of data; is a quote not closed\?",
    ),
    "no JSON": (
        KAGGLE | {"train.jsonl": lines('{"file": "01.jpg", "label": "a"}', "{oops")},
        {"labels": ("train.jsonl",)},
        r"train\.jsonl, line 2: not JSON",
    ),
    "COCO": (
        KAGGLE | {"train.json": '{"images": [{"id": 1}], "annotations": []}'},
        {"labels": ("train.json",)},
        r"train\.json is not understood: expected objects",
    ),
    "empty objects": (
        KAGGLE | {"train.jsonl": "{}\n{}\n"},
        {"labels": ("train.jsonl",)},
        r"train\.jsonl is not understood: expected objects",
    ),
    "nothing": (KAGGLE | {"train.csv": "\n\n"}, CSV, r"train\.csv has no rows"),
    "a name without class": (
        PETS,
        {"label_pattern": r"([A-Z]\w+)_\d+"},
        r"'\(\[A-Z\].*' finds no class in the names of 3 of 6 images in .*, e\.g\. "
        r"'images/great_pyrenees_1\.jpg': its group must match in each",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(tmp_path: Path, mistake: str) -> None:
    files, options, message = MISTAKES[mistake]
    root = tree(tmp_path / "set", files)
    with pytest.raises(ValueError, match=r"^(data\.|--data\.)\S+.*") as caught:
        load(config.Data(path=str(root), **options), seed=0)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label\n00,caf\u00e9\n01,b\n".encode("latin-1"), r"train\.csv, line 2 is not UTF-8: .*iconv -f LATIN1"),
        ("id,label\n00,a\n".encode("utf-16"), r"train\.csv is UTF-16, not UTF-8: .*iconv -f UTF-16"),
        (b"PK\x03\x04 and so on", r"train\.csv is an Excel or zip file: save the table as CSV"),
        (b"\x1f\x8b\x08\x00", r"train\.csv is compressed: unpack it first"),
    ],
)
def test_files_of_other_encodings(tmp_path: Path, content: bytes, message: str) -> None:
    root = tree(tmp_path, {**KAGGLE, "train.csv": content})
    with pytest.raises(ValueError, match=message):
        found(root, labels=("train.csv",))


def test_one_name_in_two_unicode_forms_is_one_class_and_one_file(tmp_path: Path) -> None:
    """macOS writes cafe and a combining accent where others write one letter."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    rows = lines("id,label", *(f"{apart} {n}.jpg,{(composed, apart)[n % 2]}" for n in range(4)), "x,b", "y,b")
    root = tree(
        tmp_path,
        images(f"train/{composed} {{}}.jpg", *range(4)) | {"train/x.jpg": "", "train/y.jpg": "", "train.csv": rows},
    )
    assert set(found(root, labels=("train.csv",))["train"].values()) == {composed, "b"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a.csv",), "label_pattern": "(a)"}, "two sources of the same labels: set one of them"),
        ({"id_column": "id"}, r"data\.id_column .* add --data\.labels FILE"),
        ({"label_pattern": "(.+"}, r"data\.label_pattern is '\(\.\+', no regular expression: missing \)"),
        ({"label_pattern": r".+_\d+"}, r"with 0 groups: put \( \) around the class"),
        ({"label_pattern": r"(a)(b)"}, "with 2 groups"),
        ({"label_pattern": "(a)", "label_column": "x"}, r"data\.label_column names a column"),
        ({"path": "digits", "labels": ("a.csv",)}, "the embedded digits"),
        ({"labels": ("",)}, "must not be empty"),
    ],
)
def test_options_that_cannot_be_together(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_data(config.Data(**{"path": "photos", **fields}))


def test_labels_are_for_folders_of_images(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [b"x"], "label": ["a"]})
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "train.parquet"))
    for path in (tmp_path / "saved", tmp_path / "train.parquet"):
        with pytest.raises(ValueError, match=r"are for folders of image files, which .* is not: .*data\.label_column"):
            load(config.Data(path=str(path), labels=("train.csv",)), seed=0)
    with pytest.raises(ValueError, match="there is no file or folder beans"):
        load(config.Data(path="beans", label_pattern="(a)"), seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        load(config.Data(path=str(tmp_path / "empty"), label_pattern="(a)"), seed=0)


def test_splits_in() -> None:
    assert splits_in("trainLabels.csv") == splits_in("TRAIN_2.txt") == splits_in("my-training set") == {"train"}
    assert splits_in("LOC_val_solution.csv") == {"val"} and splits_in("train_test_split") == {"train", "test"}
    assert not splits_in("latest/contest") | splits_in("strain")


# The other ways in


def test_streaming_and_the_cache_of_folders(tmp_path: Path) -> None:
    """The folder was read as classes before, and is again after: neither reading is taken for the other."""
    files, options, _, _ = LAYOUTS["tiny-imagenet"]
    root = tree(tmp_path / "tiny", files)
    (root / "val" / "n01").mkdir()
    (root / "val" / "images").rename(root / "val" / "n01" / "images")
    assert set(load(config.Data(path=str(root)), seed=0).val["label"]) == {0}
    splits = load(config.Data(path=str(root), **options), seed=0)
    assert list(splits.val["label"]) == [0, 1, 0, 1]
    streamed = load(config.Data(path=str(root), streaming=True, **options), seed=0)
    assert streamed.train.labels.tolist() == list(splits.train["label"]) and streamed.classes == splits.classes
    assert set(load(config.Data(path=str(root)), seed=0).val["label"]) == {0}


def test_evaluating_and_predicting_another_folder(tmp_path: Path) -> None:
    flat = tree(
        tmp_path / "flat", {**images("{}.jpg", *range(4)), "answers.csv": lines("id,label", "0,b", "1,a", "2,b")}
    )
    rows = load_labelled(str(flat), ("a", "b"), config.Data(labels=("answers.csv",)))
    assert dict(zip(rows["id"], rows["label"], strict=True)) == {"0.jpg": 1, "1.jpg": 0, "2.jpg": 1}
    hint = (
        r"4 of 4 images have no label; answers\.csv looks like labels of 3 of the 4 images: add --data\.labels answers"
    )
    with pytest.raises(ValueError, match=hint):
        load_labelled(str(flat), ("a", "b"), config.Data())
    with pytest.raises(ValueError, match=r"has 1 classes that training lacks: 'b'"):
        load_labelled(str(flat), ("a",), config.Data(labels=("answers.csv",)))
    options = {"labels": ("train.csv",), "id_column": "id", "label_column": "label"}
    assert list(load_images(str(flat), config.Data(**options))["label"]) == [-1] * 4
    run = config.Data(path="photos", labels=("train.csv",), label_column="breed")
    assert run.labelled_as(config.Data(labels=("val.csv",))) == config.Data(path="photos", labels=("val.csv",))
    assert run.labelled_as(config.Data()) == config.Data(path="photos")
    assert config.Data(label_column="coat").labelled_as(config.Data()).label_column == "coat"


# What is found beside the images is named with the command that uses it

HINTS: dict[str, tuple[str, str]] = {
    "kaggle, integer ids": (
        "--data.labels train.csv",
        "train.csv looks like labels of 6 of the 8 images",
    ),
    "images and test images": ("--data.labels train.csv", "train.csv looks like labels of 6 of the 8 images"),
    "one folder for train and test": ("--data.labels labels.csv", "labels.csv looks like labels of 8 of the 8 images"),
    "more columns, one chosen": (
        "--data.labels train.csv --data.label-column hotel",
        "add --data.labels train.csv --data.label-column hotel, or chain",
    ),
    "train and val files": (
        "--data.labels train.csv val.csv",
        "train.csv and val.csv look like labels of 8 of the 8 images",
    ),
    "hugging face, jsonl in the folder": ("--data.labels train/metadata.jsonl", "train/metadata.jsonl looks like"),
    "hugging face, csv in each folder": (
        "--data.labels train/metadata.csv test/metadata.csv",
        "labels of 8 of the 8 images",
    ),
    "tiny-imagenet": (
        "--data.labels val/val_annotations.txt",
        "val/val_annotations.txt looks like labels of 4 of the 12 images",
    ),
    "food-101": ("--data.labels meta/train.json meta/test.txt", "look like labels of 8 of the 8 images"),
    "the images' folder alone": (
        "--data.labels ../labels.csv",
        "../labels.csv looks like labels of 8 of the 8 images",
    ),
    "HAM10000": ("--data.labels HAM10000_metadata.csv", "HAM10000_metadata.csv looks like labels of 8 of the 8 images"),
    "oxford-pets": (
        r"--data.label-pattern '(.+)_\d+'",
        "the files' names look like 2 classes (Abyssinian, great_pyrenees)",
    ),
    "cats and dogs": (r"--data.label-pattern '(.+)\.\d+'", "the files' names look like 2 classes (cat, dog)"),
}


@pytest.mark.parametrize("layout", HINTS)
def test_the_hint_is_a_command_that_works(tmp_path: Path, layout: str) -> None:
    """The words that the message prints are typed after train.py's, and give the layout's labels."""
    files, _, answer, below = LAYOUTS[layout]
    words, text = HINTS[layout]
    sample = {"sample_submission.csv": lines("id,label", "07,a", "08,a")} if "kaggle" in layout else {}
    root = tree(tmp_path / "my set", files | sample) / below
    hint = label_hint(root, image_folder.scan(root))
    assert text in hint and f"add {words}" in hint
    run = parse_run(["best", "--data.path", str(root), *shlex.split(words)])
    again = found(
        root, labels=run.data.labels, label_pattern=run.data.label_pattern, label_column=run.data.label_column
    )
    if "more columns" in layout:  # the first of the columns that may hold the classes
        answer = {"train": {name: str(n % 3) for n, name in enumerate(answer["train"])}, "test": answer["test"]}
    if layout == "hugging face, csv in each folder":
        assert again == answer
    assert again["train"] == answer["train"] and again.keys() == answer.keys()
    for command in (["check", str(root)], ["pack", str(root), "--to", "x"], ["evaluate", "run", str(root)]):
        typed = parse_command(command[0], [*command[1:], *shlex.split(words)])
        typed = typed.options if command[0] == "pack" else typed
        assert (typed.labels, typed.label_pattern) == (run.data.labels, run.data.label_pattern)


@pytest.mark.parametrize("layout", ["kaggle, integer ids", "one folder for train and test", "tiny-imagenet",
                                    "food-101", "oxford-pets", "cats and dogs",
                                    "the images' folder alone"])  # fmt: skip
def test_a_start_without_labels_prints_the_hint(tmp_path: Path, layout: str) -> None:
    files, _, _, below = LAYOUTS[layout]
    root = tree(tmp_path / "set", files) / below
    with pytest.raises(ValueError, match=rf"^data\.path: .*; .*: add {re.escape(HINTS[layout][0])}$|lacks: .*add"):
        load(config.Data(path=str(root)), seed=0)


def test_no_hint_where_nothing_helps(tmp_path: Path) -> None:
    notes = {
        "README.txt": "some words\n",
        "sizes.csv": lines("id,width", *(f"{n},{n}" for n in range(6))),
        "sample_submission.csv": lines("id,label", "07,a", "08,b"),
        "broken.json": "{",
        "empty.csv": "",
    }
    root = tree(tmp_path / "set", KAGGLE | {name: text or b"\n" for name, text in notes.items()})
    (root / "gone.csv").symlink_to(root / "nowhere.csv")
    assert label_hint(root, image_folder.scan(root)) == ""
    with pytest.raises(ValueError, match=r"^data\.path: (?!.*add --).*$"):
        load(config.Data(path=str(root)), seed=0)
    single = tree(tmp_path / "single", {f"photo-{n}.jpg": "" for n in range(4)})
    assert label_hint(single, image_folder.scan(single)) == ""


LONG = "0.1," * 60_000


@pytest.mark.parametrize("text", [LONG, "x" * 200_000, f"{LONG};{'y' * 200_000}\n", f'0,"{LONG}', "a,b\0\n"])
def test_no_file_beside_the_images_stops_the_hint(tmp_path: Path, text: str) -> None:
    """Embeddings and masks are no labels, and the file that is one is still found."""
    root = tree(tmp_path, kaggle(lambda n: f"{n},{AB[n % 2]}") | {"embedding.txt": text, "a.csv": text})
    with pytest.raises(ValueError, match=r"^data\.path: .*add --data\.labels train\.csv$"):
        load(config.Data(path=str(root)), seed=0)


def test_long_fields_are_read(tmp_path: Path) -> None:
    mask = "1 2 " * 50_000
    files = kaggle(lambda n: f'{n:02}.jpg,{AB[n % 2]},"{mask}{n}"', "id,label,EncodedPixels")
    limit = csv.field_size_limit()
    assert found(tree(tmp_path, files), **CSV) == TRAIN_TEST and csv.field_size_limit() == limit
    (tmp_path / "train.csv").write_text("id,label\n0," + "x" * 100_000_001)
    with pytest.raises(ValueError, match=r"train\.csv, line 2: field larger than field limit \(100000000\)$"):
        found(tmp_path, **CSV)


# Real commands


@pytest.mark.integration
def test_packing_a_kaggle_set_gives_a_plain_one(tmp_path: Path) -> None:
    """`cls pack` typed with the hint's words; its shards load as the folder with its label file does."""
    root = tree(tmp_path / "set", kaggle(lambda n: f"{n},{AB[n % 2]}"))
    command = [sys.executable, "-m", "cls", "pack", "set", "--to", "packed", "--val-fraction", "0.3"]
    env = environment(PYTHONPATH=str(ROOT), HF_HOME=str(tmp_path / "cache"))
    failed = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    words = re.search(r"add (--data\.labels .*)", failed.stderr)
    assert words
    command += shlex.split(words[1])
    for _ in range(2):  # the second time all is there
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert "1 finished shards" in done.stderr or "finished shards" in done.stderr
    asked = config.Data(path=str(root), labels=("train.csv",), val_fraction=0.3)
    folder_rows, packed = load(asked, seed=0), load(config.Data(path=str(tmp_path / "packed")), seed=0)
    assert packed.classes == folder_rows.classes == ("a", "b")
    for one, other in ((folder_rows.train, packed.train), (folder_rows.val, packed.val)):
        assert Counter(one["label"]) == Counter(other["label"])
        contents = [
            {bytes(images_of(part).read([row])[0]): part["label"][row] for row in range(len(part))}
            for part in (one, other)
        ]
        assert contents[0] == contents[1]
    assert packed.test is not None and len(packed.test) == 2


def test_check_and_evaluate_take_label_files(tmp_path: Path) -> None:
    """`cls check` of a Kaggle set; `cls evaluate` scores another folder by its own file, though the run had another."""
    root = tree(tmp_path / "set", kaggle(lambda n: f"{n},class {n % 2}"))
    check = parse_command("check", [str(root), "--data.labels", "train.csv", "--workers", "0"])
    facts, _ = check.do(StopSignal())
    assert facts["classes"] == ["class 0", "class 1"] and facts["splits"]["test"]["images"] == 2
    data = {"path": str(root), "labels": ("train.csv",), "label_column": "label", "size": 16}
    untrained(tmp_path / "run", 2, data, {"backbone": "timm/test_resnet"})
    flat = tree(
        tmp_path / "flat",
        {
            **images("{}.jpg", *range(4)),
            "answers.csv": "".join(["file,animal\n", *(f"{n}.jpg,class {n % 2}\n" for n in range(3))]),
        },
    )
    words = [str(tmp_path / "run"), str(flat), "--device", "cpu", "--workers", "0"]
    with pytest.raises(
        ValueError, match=r"have no label; answers\.csv looks like .*: add --data\.labels answers\.csv$"
    ):
        parse_command("evaluate", words).do(StopSignal())
    document, _ = parse_command("evaluate", [*words, "--data.labels", "answers.csv"]).do(StopSignal())
    assert {name: one["images"] for name, one in document["classes"].items()} == {"class 0": 2, "class 1": 1}
    with pytest.raises(ValueError, match="the options for labels need a path"):
        parse_command("evaluate", [words[0], "--labels", "answers.csv"]).do(StopSignal())


def test_a_large_file_is_read_in_reasonable_time(tmp_path: Path) -> None:
    """20,000 rows in a second or two: nothing is quadratic, also where all files have the same name."""
    names = [f"train/{n:05}/image.jpg" for n in range(20_000)]
    (tmp_path / "train.csv").write_text(lines("path,label", *(f"{name},{n % 7}" for n, name in enumerate(names))))
    listing = image_folder.Listing(names, [], ["train.csv"], [], False)
    start = time.process_time()
    parts = read_labels(tmp_path, listing, config.Data(path=str(tmp_path), labels=("train.csv",))).parts
    assert time.process_time() - start < 5
    assert len(parts["train"]) == 20_000 and parts["train"].names == tuple("0123456")


# Any table, any file

names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8).filter(
    lambda text: (
        text.lower() not in ("nan", "<na>")
        and not set(text) & set("|[{/\\.#'\"")
        and not re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", text, re.ASCII)
    )
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    st.lists(names, min_size=2, max_size=4, unique_by=lambda text: unicodedata.normalize("NFC", text).lower()),
    st.lists(names, min_size=6, max_size=9, unique_by=lambda text: unicodedata.normalize("NFC", text).lower()),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["{}", "{}.png", "train/{}.png", "./train/{}"]),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_any_table(
    classes: list[str], files: list[str], mark: str, end: str, form: str, headed: bool, front: bool, data: st.DataObject
) -> None:
    """Whatever the names, the delimiter, the form of the ids and the order of the columns: each image has its label."""
    labels = [classes[n % len(classes)] for n in range(len(files))]
    rows = [(form.format(name), label) for name, label in zip(files, labels, strict=True)]
    rows = [("image", "label")] * headed + data.draw(st.permutations(rows))
    text, quoting = io.StringIO(), csv.QUOTE_ALL if front else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=mark, lineterminator=end, quoting=quoting)
    writer.writerows(row[::-1] if front else row for row in rows)
    listing = image_folder.Listing([f"train/{name}.png" for name in files], [], [], [], False)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "train.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
        part = read_labels(Path(place), listing, config.Data(path=place, labels=("train.csv",))).parts["train"]
    given = {name: part.names[code] for name, code in zip(part.images["id"][:], part.codes, strict=True)}
    expected = zip(listing.images, labels, strict=True)
    assert given == {name: unicodedata.normalize("NFC", label) for name, label in expected}


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    st.one_of(st.binary(max_size=60), st.text('idab0,;\t"\n\r{}[]:| .#', max_size=60).map(str.encode)),
    st.sampled_from(FILES),
)
def test_any_file_is_read_or_named(content: bytes, ending: str) -> None:
    listing = image_folder.Listing(["train/a.png", "train/0.png", "b/1.png"], [], [], [], False)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / f"list{ending}").write_bytes(content)
        try:
            read_labels(Path(place), listing, config.Data(path=place, labels=(f"list{ending}",)))
        except ValueError as error:
            assert type(error) in (ValueError, UnclearColumnError) and f"list{ending}" in str(error), repr(error)
            assert len(str(error).splitlines()) == 1
