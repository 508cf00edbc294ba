"""Layouts in which public data sets are handed out: each is read as meant, or rejected with commands that then work.

And random ones against an oracle: no image in two splits, none disappears without a word, no split becomes a class.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from cls import config
from cls.data.folders import folder_cache, image_folder
from cls.data.folders.layout import arrange
from cls.data.folders.tree import Tree
from cls.data.sources import Splits, load, load_given, load_labelled
from cls.data.split_words import split_name, splits_in, words
from cls.transforms.decode import EXTENSIONS

Counts = dict[str, int]
IMAGE = io.BytesIO()
Pillow.new("RGB", (9, 7), (9, 99, 199)).save(IMAGE, "JPEG")
BODY = IMAGE.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# What is built


def expand(text: str) -> list[str]:
    """Braces as a shell's: {a,b} and {0..2}."""
    found = re.search(r"\{([^{}]*)\}", text)
    if not found:
        return [text]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    parts = [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else found[1].split(",")
    return [name for part in parts for name in expand(text[: found.start()] + part + text[found.end() :])]


def build(root: Path, *patterns: str) -> None:
    """Images, tables of two cats and two dogs, and files of text, by their endings."""
    for name in (name for pattern in patterns for name in expand(pattern)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.lower().endswith(EXTENSIONS):
            path.write_bytes(BODY)
        elif name.endswith(".parquet"):
            pq.write_table(table(), path)
        elif name.endswith(".arrow"):
            with pa.ipc.new_stream(str(path), table().schema) as writer:
                writer.write_table(table())
        elif name.endswith(".tar"):
            wds(path, [{"jpg": BODY, "cls": label.encode()} for label in ("cat", "cat", "dog", "dog")])
        else:
            path.write_text("x")


def table(label: str = "label", **more: list[object]) -> pa.Table:
    image = pa.array([{"bytes": BODY, "path": f"{i}.jpg"} for i in range(4)])
    return pa.table({"image": image, label: ["cat", "cat", "dog", "dog"], **more})


def wds(path: Path, samples: list[dict[str, bytes]], names: list[str] | None = None, mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for number, sample in enumerate(samples):
            for ending, body in sample.items():
                info = tarfile.TarInfo(f"{names[number] if names else f's{number:07}'}.{ending}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


CATS = {"cat": 2, "dog": 2}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A public layout. Where no validation images are of their own, train is what is held out of, too."""

    name: str
    files: tuple[str, ...] = ()
    more: Callable[[Path], None] | None = None
    path: str = "root"
    read: dict[str, Counts] = field(default_factory=dict)
    """Classes and numbers of images of each split, "" without a label."""
    under: dict[str, str] = field(default_factory=dict)
    """What the ids of a split begin with."""
    says: str = ""
    """What is printed beside, a pattern."""
    rejected: tuple[str, ...] = ()
    """Patterns of the messages one after the other, each with a command for the next, and then for ``read``."""


def saved(root: Path) -> None:
    splits = {name: Dataset(table()) for name in ("train", "validation", "dev", "unsupervised")}
    DatasetDict(splits).save_to_disk(root)


def class_labels(root: Path) -> None:
    fine = ClassLabel(names=["dog", "cat"])
    features = Features({"img": Image(), "fine_label": fine, "coarse_label": Value("int64")})
    for split in ("train", "test"):
        rows = {"img": [{"bytes": BODY, "path": None}] * 4, "fine_label": [0, 0, 1, 1], "coarse_label": [0] * 4}
        (root / "cifar100").mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(root / f"cifar100/{split}-00000-of-00001.parquet")


def txt_tar(root: Path) -> None:
    for split in ("train", "val"):
        wds(root / f"{split}-0.tar", [{"jpg": BODY, "txt": name} for name in (b"cat\n", b"cat", b"dog", b"dog")])


def json_tar(root: Path) -> None:
    for split in ("train", "val"):
        about = [{"id": f"{split}{i}", "class": name} for i, name in enumerate(("cat", "cat", "dog", "dog"))]
        wds(root / f"{split}-0.tar", [{"jpg": BODY, "json": json.dumps(one).encode()} for one in about])


def folders_tar(root: Path) -> None:
    names = [f"flower_photos/{name}/{i}" for name in ("cat", "dog") for i in range(2)]
    wds(root / "flower_photos.tgz", [{"jpg": BODY}] * 4, names, "w:gz")


def annotations(root: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"name": ["0.jpg"], "label": ["cat"]}), root / f"{split}.parquet")


def targa(root: Path) -> None:
    for name in expand("{cat,dog}/{0..1}.tga"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (9, 7)).save(root / name)


def bare(root: Path) -> None:
    for name in expand("{cat,dog}/img{0..1}"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(BODY)


def zipped(root: Path) -> None:
    build(root / "x", "{cat,dog}/{0..1}.jpg")
    shutil.make_archive(str(root / "photos"), "zip", root / "x")
    shutil.rmtree(root / "x")


def two_forms(root: Path) -> None:
    """café composed in train, decomposed in val, and both among the training folders."""
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    build(root, f"train/{nfc}/{{0..1}}.jpg", f"train/{nfd}/2.jpg", "train/bar/{0..1}.jpg", f"val/{{{nfd},bar}}/0.jpg")


# fmt: off
TRAIN_VAL = {"train": CATS, "val": CATS}
TRAIN_TEST = {"train": CATS, "test": CATS}
ROWS = (
    # folders that torchvision, Kaggle and universities hand out
    Row(name="imagefolder", files=("{train,val}/{cat,dog}/{0..1}.jpg",), read=TRAIN_VAL),
    Row(
        name="imagenet", files=("{train,val}/{n01440764,n01443537}/{0..1}.JPEG", "test/{0..2}.JPEG"),
        read={"train": {"n01440764": 2, "n01443537": 2}, "val": {"n01440764": 2, "n01443537": 2}, "test": {"": 3}},
    ),
    *(
        Row(
            name=f"imagenet from {path}", path=path,
            files=("root/ILSVRC/Data/CLS-LOC/{train,val}/{cat,dog}/{0..1}.JPEG", "root/ILSVRC/Data/CLS-LOC/test/0.JPEG",
                   "root/ILSVRC/Annotations/CLS-LOC/val/{0..1}.xml", "root/ILSVRC/ImageSets/CLS-LOC/train_cls.txt"),
            rejected=("only one class.*Data/CLS-LOC$",) if path != "root/ILSVRC/Data/CLS-LOC" else (),
            read=TRAIN_VAL | {"test": {"": 1}},
        )
        for path in ("root", "root/ILSVRC", "root/ILSVRC/Data", "root/ILSVRC/Data/CLS-LOC")
    ),
    Row(
        name="intel scenes", files=("seg_train/seg_train/{cat,dog}/{0..1}.jpg",
                                    "seg_test/seg_test/{cat,dog}/{0..1}.jpg", "seg_pred/seg_pred/{0..6}.jpg"),
        read=TRAIN_TEST, under={"train": "seg_train/seg_train/", "test": "seg_test/seg_test/"},
        says=r"7 images outside train/, val/ and test/ .*seg_pred \(7\); .*cls predict RUN /.*root/seg",
    ),
    Row(
        name="intel scenes, flat", files=("seg_train/{cat,dog}/{0..1}.jpg", "seg_test/{cat,dog}/{0..1}.jpg",
                                          "seg_pred/{0..6}.jpg"),
        read=TRAIN_TEST, says=r"ignored: 7 images",
    ),
    Row(
        name="intel scenes without test", files=("seg_train/{cat,dog}/{0..1}.jpg", "seg_pred/{0..6}.jpg"),
        rejected=("only seg_train can be training images",), read={"train": CATS},
    ),
    Row(
        name="cats and dogs", files=("training_set/training_set/{cat,dog}/{0..1}.jpg",
                                     "test_set/test_set/{cat,dog}/{0..1}.jpg"),
        read=TRAIN_TEST, under={"test": "test_set/test_set/"},
    ),
    Row(
        name="chest x-ray", files=("{train,val,test}/{cat,dog}/{0..1}.jpeg",
                                   "chest_xray/{train,val,test}/{cat,dog}/{0..1}.jpeg",
                                   "__MACOSX/chest_xray/train/cat/._0.jpeg", "__MACOSX/train/{cat,dog}/0.jpeg"),
        read=TRAIN_VAL | {"test": CATS}, under={"train": "train/"}, says=r"12 images outside.*chest_xray \(12\)",
    ),
    Row(
        name="chest x-ray, a level too high", files=("chest_xray/{train,val,test}/{cat,dog}/{0..1}.jpeg",
                                                     "__MACOSX/chest_xray/train/cat/0.jpeg"),
        rejected=("only one class, 'chest_xray'",), read=TRAIN_VAL | {"test": CATS},
    ),
    Row(name="food-101", files=("images/{cat,dog}/{0..1}.jpg", "meta/{train,test}.txt", "README.txt", "license.txt"),
        rejected=("only one class, 'images'",), read={"train": CATS}),
    Row(name="food-11", files=("{training,validation}/{cat,dog}/{0..1}.jpg", "evaluation/{cat,dog}/{0..1}.jpg"),
        read=TRAIN_VAL, says=r"4 images outside train/.*evaluation \(4\)"),
    Row(
        name="cub", files=("images/{001.Black_footed_Albatross,002.Laysan_Albatross}/{0..1}.jpg",
                           "train_test_split.txt",
                           "segmentations/{001.Black_footed_Albatross,002.Laysan_Albatross}/{0..1}.png"),
        rejected=("by their names no classes",),
        read={"train": {"001.Black_footed_Albatross": 2, "002.Laysan_Albatross": 2}},
    ),
    Row(name="cub, a level too high", files=("CUB_200_2011/images/{cat,dog}/{0..1}.jpg", "CUB_200_2011/classes.txt"),
        rejected=("CUB_200_2011 has only one class, 'images'",), read={"train": CATS}),
    Row(name="flowers", files=("{cat,dog}/{0..1}.jpg", "LICENSE.txt"), read={"train": CATS}, says=r"1 \.txt"),
    Row(name="flower_photos.tgz, unpacked around", files=("flower_photos/{cat,dog}/{0..1}.jpg",
                                                          "flower_photos/LICENSE.txt"),
        rejected=("only one class, 'flower_photos'",), read={"train": CATS}),
    Row(name="eurosat", files=("2750/{cat,dog}/{0..1}.jpg",), rejected=("one class, '2750'",), read={"train": CATS}),
    Row(
        name="caltech-101", files=("101_ObjectCategories/{BACKGROUND_Google,cat}/{0..1}.jpg",
                                   "Annotations/cat/annotation_{0..1}.mat"),
        rejected=("only one class, '101_ObjectCategories'",), read={"train": {"BACKGROUND_Google": 2, "cat": 2}},
    ),
    Row(name="dtd", files=("images/{cat,dog}/{0..1}.jpg", "labels/{train,val,test}1.txt", "imdb/imdb.mat"),
        rejected=("only one class, 'images'",), read={"train": CATS}),
    Row(name="stanford dogs", files=("Images/{n02085620-Chihuahua,n02085782-spaniel}/{0..1}.jpg",
                                     "Annotation/n02085620-Chihuahua/n02085620_10074"),
        rejected=("only one class, 'Images'",),
        read={"train": {"n02085620-Chihuahua": 2, "n02085782-spaniel": 2}}),
    Row(name="stanford cars", files=("car_data/car_data/{train,test}/{cat,dog}/{0..1}.jpg", "anno_train.csv"),
        rejected=("only one class, 'car_data'",), read=TRAIN_TEST),
    Row(
        name="fruits-360", files=("Training/{Apple Red 1,Banana}/{0..1}.jpg", "Test/{Apple Red 1,Banana}/0.jpg",
                                  "test-multiple_fruits/{0..2}.jpg"),
        read={"train": {"Apple Red 1": 2, "Banana": 2}, "test": {"Apple Red 1": 1, "Banana": 1}},
        under={"test": "Test/"}, says=r"3 images outside.*test-multiple_fruits",
    ),
    Row(name="brain tumours", files=("{Training,Testing}/{cat,dog}/{0..1}.jpg",), read=TRAIN_TEST),
    Row(name="mnist png", files=("{training,testing}/{0..1}/{0..1}.png",),
        read={"train": {"0": 2, "1": 2}, "test": {"0": 2, "1": 2}}),
    Row(name="real and fake faces", files=("real_vs_fake/real-vs-fake/{train,valid,test}/{cat,dog}/{0..1}.jpg",),
        rejected=("only one class, 'real-vs-fake'",), read=TRAIN_VAL | {"test": CATS}),
    Row(
        name="new plant diseases", files=(
            "New Plant Diseases (Aug)/New Plant Diseases (Aug)/{train,valid}/{cat,dog}/{0..1}.JPG",
            "test/test/{Apple1,Corn2}.JPG"),
        rejected=("has only one class, 'New Plant Diseases",), read=TRAIN_VAL,
    ),
    Row(
        name="asl alphabet", files=("asl_alphabet_train/asl_alphabet_train/{cat,dog}/{0..1}.jpg",
                                    "asl_alphabet_test/asl_alphabet_test/{cat,dog}_test.jpg"),
        read={"train": CATS, "test": {"": 2}}, under={"test": "asl_alphabet_test/asl_alphabet_test/"},
    ),
    Row(name="gtsrb", files=("Train/{0..1}/{0..1}.png", "Test/{0..2}.png", "Meta/{0..1}.png", "Train.csv"),
        read={"train": {"0": 2, "1": 2}, "test": {"": 3}}, says=r"2 images outside.*Meta \(2\)"),
    Row(name="garbage", files=("Garbage classification/Garbage classification/{cat,dog}/{0..1}.jpg", "one-indexed.txt"),
        rejected=("only one class",), read={"train": CATS}),
    Row(name="images_train", files=("images_train/{cat,dog}/{0..1}.jpg", "images_test/{0..1}.jpg", "extra/{0..2}.jpg"),
        read={"train": CATS, "test": {"": 2}}, says=r"3 images outside.*extra \(3\)"),
    Row(name="coco's years", files=("{train,val}2017/{cat,dog}/{0..1}.jpg",), read=TRAIN_VAL),
    Row(name="camel case", files=("{TrainSet,ValidationSet}/{cat,dog}/{0..1}.jpg",), read=TRAIN_VAL),
    Row(name="dev and holdout", files=("{train,dev,holdout}/{cat,dog}/{0..1}.jpg",), read=TRAIN_VAL | {"test": CATS}),
    Row(name="hold-out", files=("{train,eval,hold-out}/{cat,dog}/{0..1}.jpg",), read=TRAIN_VAL | {"test": CATS}),
    Row(name="wrapped classes", files=("{train,val}/images/{cat,dog}/{0..1}.jpg",), read=TRAIN_VAL,
        under={"val": "val/images/"}),
    Row(name="two of one split", files=("{train,val,eval}/{cat,dog}/{0..1}.jpg",),
        rejected=("eval and val; keep one folder for val",)),
    Row(name="trainval", files=("{trainval,test}/{cat,dog}/{0..1}.jpg",), rejected=("no train/",), read=TRAIN_TEST),
    Row(name="images and validation", files=("{images,validation}/{cat,dog}/{0..1}.jpg",), rejected=("no train/",),
        read=TRAIN_VAL),
    Row(name="splits in classes", files=("{cat,dog}/train/{0..1}.jpg", "{cat,dog}/test/{2..3}.jpg"),
        rejected=("splits inside its folders.*put each split's into one folder",), read=TRAIN_TEST),
    Row(name="train and val in classes", files=("{cat,dog}/{train,val}/{0..1}.jpg",),
        rejected=("splits inside its folders.*or leave them out: cp",), read=TRAIN_VAL),
    Row(name="splits in some classes", files=("{cat,dog}/{train,val}/{0..1}.jpg", "owl/{0..1}.jpg"),
        rejected=("put each split's into one folder",), read={"train": CATS | {"owl": 2}, "val": CATS}),
    Row(name="splits in classes beside images", files=("{cat,dog}/{train,val}/{0..1}.jpg", "cat/{0..1}.jpg"),
        rejected=(": leave them out",), read={"train": {"cat": 4, "dog": 2}}),
    Row(name="covid radiography", files=("{COVID,Normal}/{images,masks}/{0..1}.png",),
        rejected=("beside the images in its classes .*masks",), read={"train": {"COVID": 2, "Normal": 2}}),
    Row(name="masks inside the classes of splits", files=("{train,val}/{c1,c2,d}/{image,mask}/{0..1}.png",),
        rejected=("train has folders beside the images", "val has folders beside the images"),
        read={split: {"c1": 2, "c2": 2, "d": 2} for split in ("train", "val")}),
    Row(name="splits in classes and images", files=("{cat,dog}/{0..1}.jpg", "{cat,dog}/val/{0..1}.jpg"),
        rejected=("splits inside its folders.*: leave them out",), read={"train": CATS}),
    Row(name="classes with splits in their names", files=("{cat_train,cat_test,dog_train,dog_test}/{0..1}.jpg",),
        rejected=("cat_test, cat_train, .*several of one split; if each is",), read=TRAIN_TEST),
    Row(name="numbered classes with splits", files=("{train_a1,train_a2,val_a1,val_a2,test_a1}/{0..1}.jpg",),
        rejected=("several of one split; if each is",),
        read={"train": {"a1": 2, "a2": 2}, "val": {"a1": 2, "a2": 2}, "test": {"a1": 2}}),
    Row(name="train_aug", files=("{train_aug,val,test}/{cat,dog}/{0..1}.jpg",),
        rejected=("no train/.*if train_aug is train",), read=TRAIN_VAL | {"test": CATS}),
    Row(name="train_aug and val", files=("{train_aug,val}/{cat,dog}/{0..1}.jpg",),
        rejected=("no train/.*if train_aug is train",), read=TRAIN_VAL),
    Row(name="nested classes and test", files=("{cat,dog,test}/{a,b}/{0..0}.jpg",),
        rejected=("has test but no train/.*if the others are the classes",), read={"train": CATS}),
    Row(name="nested classes and val", files=("{cat,dog,val}/{a,b}/{0..0}.jpg",),
        rejected=("has val but no train/.*if the others are the classes",), read={"train": CATS}),
    Row(name="data sets side by side", files=("{v1,v2}/{train,test}/{cat,dog}/{0..1}.jpg",),
        rejected=("splits inside its folders.*name one",), read=TRAIN_TEST),
    Row(name="another split inside", files=("{train,val}/{cat,dog}/{0..1}.jpg", "train/cat/test/{0..1}.jpg"),
        rejected=("folders of another split inside",), read=TRAIN_VAL),
    Row(name="vehicles", files=("{train,plane}/{0..1}.jpg",), read={"train": {"train": 2, "plane": 2}},
        says="train beside class folders is read as a class"),
    Row(name="vehicles, split", files=("{train,val}/{train,plane}/{0..1}.jpg",),
        read={"train": {"train": 2, "plane": 2}, "val": {"train": 2, "plane": 2}}),
    Row(name="shoes", files=("{training_shoes,boots,latest,contest}/{0..1}.jpg",),
        read={"train": dict.fromkeys(("training_shoes", "boots", "latest", "contest"), 2)}),
    Row(name="train images beside classes", files=("{train_images,cat,dog}/{0..1}.jpg",),
        rejected=("has train_images beside class folders",), read={"train": CATS}),
    Row(name="splits of another language", files=("{Trainingsdaten,Testdaten}/{cat,dog}/{0..1}.jpg",),
        read={"train": {"Trainingsdaten": 4, "Testdaten": 4}}, says="2 class folders hold.*each holds cat, dog"),
    Row(name="superclasses", files=("animals/{cat,dog}/{0..1}.jpg", "plants/{rose,tulip}/{0..1}.jpg"),
        read={"train": {"animals": 4, "plants": 4}}, says="such as cat, dog in animals: .*move them one level up"),
    Row(name="capitals", files=("{cat,Cat,dog}/{0..1}.jpg",), read={"train": {"cat": 2, "Cat": 2, "dog": 2}},
        says="'Cat' and 'cat' differ in capitals or spaces only"),
    Row(name="test in capitals", files=("train/{cat,dog}/{0..1}.jpg", "test/{Cats,Dogs}/{0..1}.jpg"),
        read={"train": CATS, "test": {"": 4}}, says=r"test: its folders \(Cats, Dogs\) are no classes of train"),
    Row(name="validation beside classes", files=("{cat,dog}/{0..1}.jpg", "{cat,dog}_val/{0..1}.jpg"),
        rejected=("has cat_val, dog_val beside cat, dog; if they are of the class in their name",), read=TRAIN_VAL),
    Row(name="one class like a split of another", files=("{covid,covid_test,flu}/{0..1}.jpg",),
        read={"train": {"covid": 2, "covid_test": 2, "flu": 2}}, says="covid_test beside covid, read as two classes"),
    Row(name="thumbnails in classes", files=("{cat,dog}/{0..1}.jpg", "{cat,dog}/thumbnails/{0..1}.jpg"),
        rejected=("beside the images in its classes .*thumbnails",), read={"train": CATS}),
    Row(name="busi", files=("{benign,malignant}/x (1).png", "{benign,malignant}/x (1)_mask.png"),
        read={"train": {"benign": 2, "malignant": 2}}, says="2 images are called like masks of others, e.g. benign/x"),
    # files that are none of the images
    Row(name="notebooks", files=("{cat,dog}/{0..1}.jpg", "cat/.ipynb_checkpoints/0-checkpoint.jpg", "cat/.DS_Store"),
        read={"train": CATS}, says="ignored: 2 hidden"),
    Row(name="windows", files=("{cat,dog}/{0..1}.jpg", "{cat,dog}/Thumbs.db", "desktop.ini"), read={"train": CATS},
        says=r"3 files that are no images ignored: 2 \.db, 1 \.ini"),
    Row(name="a table of annotations", files=("{cat,dog}/{0..1}.jpg", "annotations.parquet"), read={"train": CATS},
        says=r"1 other files\n.*1 files that are no images ignored: 1 \.parquet"),
    Row(name="a preview beside tables", files=("{train,test}.parquet", "preview.png", "README.md"), read=TRAIN_TEST,
        says=r"2 other files\n.*2 files that are no tables ignored: 1 \.md, 1 \.png"),
    Row(name="phones", files=("{cat,dog}/{0..1}.jpg", "{cat,dog}/{2..6}.HEIC", "bird/{0..2}.heic", "x.csv"),
        read={"train": CATS}, says=r"(?s)1 folders without an image.*bird \(3 other files\).*13 images of "
        r"kinds "
        r"that are not read ignored: 13 \.heic; to convert them: pip install pillow-heif && find .*1 files that are "
        r"no images ignored: 1 \.csv"),
    Row(name="targa", more=targa, rejected=(r"holds no images \(4 other files: 4 \.tga\)",), read={"train": CATS}),
    Row(name="without endings", more=bare, rejected=(r"no images \(4 other files: 4 without ending\)",),
        read={"train": CATS}),
    Row(name="zip", more=zipped, rejected=(r"no images \(1 other files: 1 \.zip\)",), read={"train": CATS}),
    Row(name="café", more=two_forms, read={"train": {"café": 3, "bar": 2}, "val": {"café": 1, "bar": 1}},
        says="1 classes have two folders whose names differ in their Unicode form only.*café"),
    Row(name="kaggle flowers, with a copy", files=("{cat,dog}/{0..1}.jpg", "flowers/{cat,dog}/{0..1}.jpg"),
        rejected=("flowers has the folders cat, dog, as .* has",), read={"train": CATS}),
    Row(name="a copy inside train", files=("{train,val}/{cat,dog}/{0..1}.jpg", "train/x/{cat,dog}/{0..1}.jpg"),
        rejected=("train/x has the folders cat, dog",), read=TRAIN_VAL),
    Row(name="images and annotations inside", files=("{train,val}/{images,annotations}/{cat,dog}/{0..1}.jpg",),
        rejected=("train has annotations, images; if images has the classes",), read=TRAIN_VAL),
    Row(name="images and masks inside, test without", files=("train/{images,masks}/{cat,dog}/{0..1}.jpg",
                                                             "test/{cat,dog}/{0..1}.jpg"),
        rejected=("train has images, masks; if images",), read=TRAIN_TEST),
    Row(name="images and extra inside", files=("train/images/{cat,dog}/{0..1}.jpg", "train/extra/{0..1}.jpg"),
        rejected=("train has extra, images; if images has the classes",), read={"train": CATS}),
    Row(name="masks beside classes inside", files=("{train,val}/{cat,dog,masks}/{0..1}.jpg",),
        read={split: CATS | {"masks": 2} for split in ("train", "val")},
        says="masks is read as a class; if it is none: cp -rLs"),
    Row(name="pictures of a README", files=("dataset/{cat,dog}/{0..1}.jpg", "docs/{0..1}.png"),
        rejected=("has dataset, docs; the folder below has the classes",), read={"train": CATS}),
    Row(name="split data beside pictures", files=("data/{train,test}/{cat,dog}/{0..1}.jpg", "docs/{0..1}.png"),
        rejected=("the folder below has the classes",), read=TRAIN_TEST),
    # tables
    Row(name="cifar-10 parquet", files=("plain_text/{train,test}-00000-of-00001.parquet", "README.md"),
        read=TRAIN_TEST),
    Row(name="cifar-100 parquet", more=class_labels, read=TRAIN_TEST),
    Row(name="cifar-10 as datasets caches it", files=("plain_text/0.0.0/0b2714987fa4/cifar10-{train,test}.arrow",
                                                      "plain_text/0.0.0/0b2714987fa4/dataset_info.json"),
        read=TRAIN_TEST),
    Row(name="mnist parquet", files=("mnist_{train,test}.parquet",), read=TRAIN_TEST),
    Row(name="converted parquet", files=("default/{train,validation}/0000.parquet",), read=TRAIN_VAL),
    Row(name="hive", files=("split={train,test}/0.parquet",), read=TRAIN_TEST),
    Row(name="timm imagenet-1k", files=("imagenet1k-train-{0000..0002}.tar", "imagenet1k-validation-{00..01}.tar",
                                        "_info.json"),
        read={"train": {"cat": 6, "dog": 6}, "val": {"cat": 4, "dog": 4}}),
    Row(name="timm imagenet-12k", files=("imagenet12k_train-{0000..0001}.tar", "imagenet12k_validation-0000.tar"),
        read={"train": {"cat": 4, "dog": 4}, "val": CATS}),
    Row(name="clip benchmark", files=("{train,test}/0.tar", "classnames.txt"), read=TRAIN_TEST),
    Row(name="dev and eval", files=("dev.parquet", "my-train.parquet"), read=TRAIN_VAL),
    Row(name="stl-10", files=("data/{train,test,unlabeled}-00000-of-00001.parquet",), read=TRAIN_TEST,
        says="1 files of no split left out: data/unlabeled"),
    Row(name="svhn", files=("full_numbers/{train,test,extra}-00000-of-00001.parquet",), read=TRAIN_TEST,
        says="1 files of no split left out: full_numbers/extra"),
    Row(name="predictions", files=("train.parquet", "test.parquet", "test_pred.parquet"),
        rejected=(r"is not clear.*several splits in the name: test_pred\.parquet; train: train\.parquet|test_pred",),
        read=TRAIN_TEST),
    Row(name="another file", files=("train.parquet", "more-{0..9}.parquet"),
        rejected=(r"the split of .*more-0\.parquet is not clear; .*no split in the name: more-0.*and 2 more",),
        read={"train": CATS}),
    Row(name="two words", files=("{train,val,train-val}-00.tar",),
        rejected=("several splits in the name: train-val-0",),
        read=TRAIN_VAL),
    Row(name="contradiction", files=("test/train.parquet", "train/0.parquet"), rejected=("several splits in the name",),
        read={"train": CATS}),
    Row(name="two kinds", files=("train-{0..2}.parquet", "x.tar"), rejected=("mixes .parquet and .tar",),
        read={"train": {"cat": 6, "dog": 6}}),
    Row(name="one file", files=("trainval.parquet",), path="root/trainval.parquet", read={"train": CATS}),
    Row(name="a test file", files=("mnist_test.parquet",), path="root/mnist_test.parquet",
        rejected=("no train split, only test",), read={"train": CATS}),
    Row(name="two configurations", files=("{cropped_digits,full_numbers}/{train,test}-00000-of-00001.parquet",),
        rejected=("several sets side by side, cropped_digits, full_numbers",), read=TRAIN_TEST),
    Row(name="parts", files=("train/part{1,2}/{0..1}.tar", "val/0.tar"),
        read={"train": {"cat": 8, "dog": 8}, "val": CATS}),
    Row(name="saved", more=saved, read=TRAIN_VAL, says="2 splits left out: dev, unsupervised; used are train, val"),
    Row(name="webdataset txt", more=txt_tar, rejected=("member .cls and the key label of .json.*4 .jpg, 4 .txt",),
        read=TRAIN_VAL),
    Row(name="webdataset json", more=json_tar, rejected=("--data.label-column json.class",), read=TRAIN_VAL),
    Row(name="a tar of folders", more=folders_tar, path="root/flower_photos.tgz",
        rejected=("4 .jpg; if the folders in it are the classes", "one class, 'flower_photos'"),
        read={"train": CATS}),
    Row(name="two sizes", files=("full/{train-00000-of-00002,train-00001-of-00002,test-00000-of-00001}.parquet",
                                 "mini/{train,test}-00000-of-00003.parquet"),
        rejected=("several sets side by side, full, mini; point at one",),
        read={"train": {"cat": 4, "dog": 4}, "test": CATS}),
    Row(name="two converted sizes", files=("{full,small}/{train,test}/0000.parquet",),
        rejected=("several sets side by side, full, small",), read=TRAIN_TEST),
    Row(name="two versions", files=("v1/train-0.tar", "v2/train-1.tar", "v2/test-0.tar"),
        rejected=("several sets side by side, v1, v2",), read={"train": CATS}),
    Row(name="a val of its own beside", files=("a/val-0.tar", "b/{train,val}-0.tar"),
        rejected=("several sets side by side, a, b; .*root/b$",), read=TRAIN_VAL),
    Row(name="an old set inside", files=("{train,test}-0.parquet", "old/{train,test}-0.parquet"),
        rejected=("several sets side by side, .*leave the other files out",), read=TRAIN_TEST),
    Row(name="shards of one folder", files=("train/shard-{0..1}.tar", "data/val-0.tar"),
        read={"train": {"cat": 4, "dog": 4}, "val": CATS}),
    Row(name="a clone with many pictures", files=("data/{train,test}-00000-of-00001.parquet", "assets/{0..2}.png",
                                                  "figures/{0..2}.png", "README.md"),
        read=TRAIN_TEST, says=r"7 files that are no tables ignored: 6 \.png, 1 \.md"),
    Row(name="annotations by split beside classes", files=("{cat,dog}/{0..1}.jpg",), more=annotations,
        rejected=(r"the image column.*; or to train on the image files: cp",), read={"train": CATS}),
    Row(name="annotations by split beside splits", files=("{train,test}/{cat,dog}/{0..1}.jpg",), more=annotations,
        read=TRAIN_TEST, says=r"2 files that are no images ignored: 2 \.parquet"),
    *(
        Row(name=f"tables {files}", files=(f"train-{{0..1}}.{files.rpartition('.')[2]}", files), rejected=(message,),
            read={"train": {"cat": 4, "dog": 4}, split: CATS})
        for files, message, split in (
            ("{val,valid}.parquet", "files named val and valid; keep one name for val", "val"),
            ("{dev,eval}.parquet", "files named dev and eval; keep one name for val", "val"),
            ("{val,validation}-0.tar", "files named validation and val; keep one name for val", "val"),
            ("{test,holdout}.parquet", "files named test and holdout; keep one name for test", "test"),
            ("{test,testing}/0.parquet", "files named test and testing; keep one name for test", "test"),
        )
    ),
    Row(name="a split's word in the folder around", files=("my-test-project/{train,val}-0.parquet",), read=TRAIN_VAL),
    Row(name="a split's word above the folders", files=("test-sets/a/{train,test}/0.tar",), read=TRAIN_TEST),
    Row(name="two sets in a folder", files=("my-test-project/{full,mini}/{train,val}-0.parquet",),
        rejected=("several sets side by side, full, mini",), read=TRAIN_VAL),
    Row(name="two names in a folder", files=("my-test-project/{train,val,valid}-0.parquet",),
        rejected=("files named val and valid",), read=TRAIN_VAL),
    *(
        Row(name=f"glued tables {files}", files=(files,), read={"train": CATS, split: CATS})
        for files, split in (
            ("mnist{train,test}.parquet", "test"), ("x_{trn,tst}.parquet", "test"), ("d{train,val}.parquet", "val"),
            ("{tr,te}.parquet", "test"), ("mnist{train,test}/0.tar", "test"), ("{trains,tests}-0.tar", "test"),
            ("{train,validate}.parquet", "val"),
        )
    ),
    Row(name="two glued sets", files=("{fashion,mnist}{train,test}.parquet",),
        rejected=("no split in the name: mnisttest.parquet, mnisttrain.parquet",), read=TRAIN_TEST),
    *(
        Row(name=f"glued folders {files}", files=(f"{files}/{{cat,dog}}/{{0..1}}.jpg",),
            rejected=("by their names and folders splits: mkdir",), read=TRAIN_TEST)
        for files in ("mnist{train,test}", "{trn,tst}", "{tr,te}", "{trains,tests}", "x_{trn,tst}")
    ),
    *(
        Row(name=f"ordinary words {' '.join(names)}", files=tuple(f"{name}/{{a,b}}/0.jpg" for name in names),
            read={"train": dict.fromkeys(names, 2)})
        for names in (("strain", "constrain", "latest", "contest"), ("tree", "tea", "test_tube"), ("tr", "en", "de"),
                      ("evaluation", "cat"))
    ),
    Row(name="two names glued", files=("mnist{train,val,valid}.parquet",),
        rejected=("files named val and valid; keep one name for val",), read=TRAIN_VAL),
    Row(name="tables of trainval", files=("{trainval-0,trainval-1,test}.parquet",),
        rejected=("several splits in the name: trainval-0.*or train on what has train in its name: mkdir",),
        read={"train": {"cat": 4, "dog": 4}, "test": CATS}),
    Row(name="tables of trainval in a folder", files=("tables/{trainval,test}.parquet",),
        rejected=("several splits in the name: .*or train on what has train in its name: mkdir",),
        read={"train": CATS, "test": CATS}),
    Row(name="two sets by file names", files=("{mnist,fashion}_{train,test}-{0..1}.parquet",),
        rejected=("several sets side by side, of files named fashion, mnist; leave the other files out",),
        read={"train": {"cat": 4, "dog": 4}, "test": {"cat": 4, "dog": 4}}),
    Row(name="starts of one split", files=("{a,b}_train.parquet", "test.parquet"),
        read={"train": {"cat": 4, "dog": 4}, "test": CATS}),
    Row(name="languages", files=("{tr,te,en}/{0..1}.jpg",), read={"train": {"tr": 2, "te": 2, "en": 2}}),
)
LABELS = (
    # Labels are in a file or in the names: rejected here; reading them is --data.labels and --data.label-pattern.
    Row(name="kaggle csv", files=("{train_images,test_images}/{0..2}.jpg", "train.csv")),
    Row(name="kaggle csv, train and test", files=("{train,test}/{0..2}.jpg", "train.csv", "sample_submission.csv")),
    Row(name="kaggle csv, images", files=("images/{0..2}.jpg", "train.csv")),
    Row(name="images_train flat", files=("images_train/{0..2}.jpg", "images_test/{0..2}.jpg", "extra/{0..2}.jpg")),
    Row(name="dogs vs cats", files=("train/{cat,dog}.{0..2}.jpg", "test1/{0..2}.jpg", "sampleSubmission.csv")),
    Row(name="dogs vs cats, nested", files=("train/train/{cat,dog}.{0..2}.jpg", "test1/test1/{0..2}.jpg")),
    Row(name="oxford pets", files=("images/great_pyrenees_{0..2}.jpg", "annotations/trimaps/great_pyrenees_{0..2}.png",
                                   "annotations/list.txt")),
    Row(name="oxford pets, images alone", files=("great_pyrenees_{0..2}.jpg", "Abyssinian_{0..2}.jpg")),
    Row(name="metadata.csv", files=("train/{0..2}.jpg", "train/metadata.csv")),
    Row(name="metadata.jsonl", files=("{0..2}.jpg", "metadata.jsonl")),
    Row(name="stanford cars flat", files=("cars_train/cars_train/{0..2}.jpg", "cars_test/cars_test/{0..2}.jpg",
                                          "cars_annos.mat")),
    Row(name="ham10000", files=("HAM10000_images_part_{1,2}/ISIC_{0..2}.jpg", "HAM10000_metadata.csv")),
    Row(name="flowers 102", files=("jpg/image_{00001..00003}.jpg", "imagelabels.mat", "setid.mat")),
    Row(name="tiny-imagenet", files=("train/{n01443537,n01629819}/images/{0..2}.JPEG", "val/images/val_{0..2}.JPEG",
                                     "val/val_annotations.txt", "test/images/{0..2}.JPEG", "wnids.txt")),
    Row(name="images and masks", files=("{train,val}/{images,masks}/{0..3}.jpg",)),
    Row(name="imagenet, flat val", files=("ILSVRC/Data/CLS-LOC/train/{n01440764,n01443537}/{0..2}.JPEG",
                                          "ILSVRC/Data/CLS-LOC/val/{0..2}.JPEG", "LOC_val_solution.csv")),
)
# fmt: on


def test_there_are_many() -> None:
    names = [row.name for row in (*ROWS, *LABELS)]
    assert len({*names}) == len(names) and len(ROWS) >= 40


def found(splits: Splits) -> dict[str, Counts]:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    known = {
        split: Counter((*splits.classes, "")[label] for label in rows["label"])
        for split, rows in parts.items()
        if rows is not None
    }
    if "held out of train" in splits.notes[0]:
        known["train"] += known.pop("val")
    return {split: dict(counts) for split, counts in known.items()}


def follow(message: str, where: Path, path: str, fields: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Do what a message says: its shell commands, then its options."""
    shell = re.search(r"(?:: |; )((?:mkdir|cp -rLs|unzip|find|pip) .*?)(?:, then (?=--data)|$)", message)
    if shell:
        program = shell[1].replace("python3 ", f"{shlex.quote(sys.executable)} ")
        subprocess.run(["bash", "-ec", program], cwd=where, check=True, timeout=60)
    typed = re.findall(r"--data\.([a-z-]+) ('[^']*'|[^\s;,]+)", message[shell.end() - 1 if shell else 0 :])
    options = {name.replace("-", "_"): shlex.split(value)[0] for name, value in reversed(typed)}
    assert shell or options, f"no command in: {message}"
    return options.pop("path", path), fields | options


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_public_layouts(
    row: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder_cache, "RACY_SECONDS", 0.0)  # the second start is from what the first one kept
    if row.more:
        (tmp_path / "root").mkdir()
        row.more(tmp_path / "root")
    build(tmp_path if row.path.startswith("root/ILSVRC") or row.name == "imagenet from root" else tmp_path / "root",
          *row.files)  # fmt: skip
    path, fields = row.path, dict[str, str]()
    for pattern in row.rejected:
        with pytest.raises(ValueError, match=pattern) as caught:
            load(config.Data(path=path, **fields), 0)
        assert "\n" not in str(caught.value)
        path, fields = follow(str(caught.value), tmp_path, path, fields)
    again = []
    for _ in range(2):
        caplog.clear()
        splits = load(config.Data(path=path, **fields), 0)
        again.append((splits.notes, caplog.messages, found(splits)))
    assert again[0] == again[1]
    assert found(splits) == (row.read or TRAIN_VAL)
    everything = [name for rows in (splits.train, splits.val, splits.test) if rows is not None for name in rows["id"]]
    assert len({*everything}) == len(everything)
    for split, start in row.under.items():
        assert all(name.startswith(start) for name in getattr(splits, split)["id"][:])
    assert re.search(row.says, "\n".join(splits.notes)), splits.notes
    assert caplog.messages == [*splits.notes[1:]] and all("\n" not in note for note in splits.notes)


@pytest.mark.parametrize("row", LABELS, ids=[row.name for row in LABELS])
def test_layouts_that_need_labels_are_rejected(row: Row, tmp_path: Path) -> None:
    build(tmp_path / "root", *row.files)
    with pytest.raises(ValueError, match=r"no class folders|only one class|no classes|no train/") as caught:
        load(config.Data(path=str(tmp_path / "root")), 0)
    assert "\n" not in str(caught.value)


def test_printed_commands_leave_linked_originals_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "disk", "{train,val}/{cat,dog}/{0..1}.jpg", "train/cat/test/{0..1}.jpg", "extra/{0..1}.jpg")
    for name, links, files in (
        ("split", {"train": "train", "val": "val"}, ()),  # rm -r train/cat/test in a linked split
        ("class", {"extra": "extra"}, ("{cat,dog}/{0..1}.jpg",)),  # rm -r extra, itself the link
    ):
        build(tmp_path / name, *files)
        (tmp_path / name).mkdir(exist_ok=True)
        for link, to in links.items():
            (tmp_path / name / link).symlink_to(tmp_path / "disk" / to)
        (tmp_path / f"{name}-clear").mkdir()  # of an earlier command: rm -r must not go through it
        for link in links:
            (tmp_path / f"{name}-clear" / link).symlink_to(tmp_path / "disk" / links[link])
        before = sorted((tmp_path / "disk").rglob("*"))
        with pytest.raises(ValueError, match=r"cp -r.* && rm -r") as caught:
            load(config.Data(path=name), 0)
        path, fields = follow(str(caught.value), tmp_path, name, {})
        assert sorted((tmp_path / "disk").rglob("*")) == before
        assert found(load(config.Data(path=path, **fields), 0))["train"] == CATS


def test_folders_of_systems_are_no_data(tmp_path: Path) -> None:
    names = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX")
    build(tmp_path, "{cat,dog}/{0..1}.jpg", *(f"{name}/{{0..1}}.jpg" for name in names), "cat/@eaDir/0.jpg/THUMB_M.jpg")
    splits = load(config.Data(path=str(tmp_path)), 0)
    assert found(splits) == {"train": CATS} and splits.notes[0].endswith("ignored: 7 hidden")
    assert len(load_given([str(tmp_path)], config.Data())) == 4


def test_runs_inside_the_data_are_no_data(tmp_path: Path) -> None:
    build(tmp_path, "{cat,dog}/{0..1}.jpg", "runs/{a,b}/{config.yaml,events.jsonl,confusion.png}",
          "runs/b/report/{0..3}.jpg", "runs/sweep/c/{config.yaml,val.parquet}",
          "runs/sweep/c/checkpoints/last/x.jpg", "runs/now/{config.yaml,lock}")  # fmt: skip
    splits = load(config.Data(path=str(tmp_path)), 0)
    assert found(splits) == {"train": CATS} and splits.notes[0].endswith("ignored: 4 run directories")
    assert len(splits.notes) == 1
    assert len(load_given([str(tmp_path)], config.Data())) == 4
    build(tmp_path, "owl/{config.yaml,0.jpg}")  # a file of this name alone makes no run
    assert found(load(config.Data(path=str(tmp_path)), 0))["train"] == CATS | {"owl": 1}
    assert len(load_given([str(tmp_path / "runs/b")], config.Data())) == 5  # asked for by name


def arranged(root: Path, classes: int) -> tuple[int, list[str]]:
    """Function calls that it takes to arrange twice as many images, and the notes on those outside."""
    images = [f"class{i}/{j}.jpg" for i in range(classes) for j in range(2)]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        arrange(Tree(root, images))
        arrange(Tree(root, [f"{split}/{name}" for split in ("train", "val") for name in images]))
        left = image_folder._left_out(root, {"train": "train"}, [f"train/{i}.jpg" for i in range(classes)] + images)
    finally:
        sys.setprofile(None)
    return calls, left


def test_the_work_grows_in_proportion_to_the_number_of_classes(tmp_path: Path) -> None:
    few, _ = arranged(tmp_path, 400)
    many, left = arranged(tmp_path, 4000)
    assert few < many < 12 * few and "8,000 images outside" in left[1]


def test_a_stray_image_is_named(tmp_path: Path) -> None:
    build(tmp_path, "{train,val}/{cat,dog}/{0..1}.jpg", "preview.jpg")
    (note,) = load(config.Data(path=str(tmp_path)), 0).notes[1:]
    option = note.split("cls predict RUN ")[1]
    assert option == f"{tmp_path}/preview.jpg" and len(load_given([option], config.Data())) == 1


@pytest.mark.parametrize("inside", ["", "val", "val/cat"])
def test_printed_commands_work_inside_the_data(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "a data"
    build(root, "{cat,dog}/{0..1}.jpg", "extra/{0..1}.jpg")
    build(tmp_path / "b", "{images,val}/{cat,dog}/{0..1}.jpg")
    build(tmp_path / "c", "{cat,dog}/img{0..1}")
    for path in (tmp_path / "c").rglob("img*"):
        path.write_bytes(BODY)
    for each in (root, tmp_path / "b", tmp_path / "c"):
        (each / inside).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(each / inside)
        typed = os.path.relpath(each)
        with pytest.raises(ValueError, match=r"beside class|no train/|without ending") as caught:
            load(config.Data(path=typed), 0)
        path, fields = follow(str(caught.value), each / inside, typed, {})
        assert found(load(config.Data(path=path, **fields), 0))["train"] == CATS
        assert (tmp_path / Path(path).name).is_dir()


def test_an_empty_split_is_rejected_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (train, empty) in enumerate((("train", "validation_images"), ("train_images", "val2017"))):
        build(tmp_path / f"{number}", f"{train}/{{cat,dog}}/{{0..1}}.jpg", f"{empty}/")
        with pytest.raises(ValueError, match=f"{empty} holds no images") as caught:
            load(config.Data(path=f"{number}"), 0)
        path, fields = follow(str(caught.value), tmp_path, f"{number}", {})
        assert found(load(config.Data(path=path, **fields), 0)) == {"train": CATS}


def test_a_class_may_be_called_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "oil", "{extra,virgin,olive}/{0..1}.jpg")
    with pytest.raises(ValueError, match="has extra beside class folders: if only olive, virgin are") as caught:
        load(config.Data(path="oil"), 0)
    without, every = str(caught.value).split("; if all are: ")
    for message, classes in ((without, {"olive", "virgin"}), (f"x: {every}", {"extra", "olive", "virgin"})):
        path, _ = follow(message, tmp_path, "oil", {})
        assert found(load(config.Data(path=path), 0)) == {"train": dict.fromkeys(classes, 2)}


# One line, once


def test_one_line_says_what_became_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "x", "seg_train/seg_train/{cat,dog}/{0..9}.jpg", "seg_test/{cat,dog}/{0..1}.jpg",
          "seg_pred/{0..2}.jpg", "notes.csv", ".hidden")  # fmt: skip
    splits = load(config.Data(path=str(tmp_path / "x")), 0)
    line, *more = capsys.readouterr().err.splitlines()
    assert line == splits.notes[0]
    assert line == (
        f"data {tmp_path}/x: train 18 images of 2 classes (seg_train/seg_train/); val 2 images of 2 classes (held out "
        "of train); test 4 images of 2 classes (seg_test/); ignored: 3 images, 1 other files, 1 hidden"
    )
    assert not more  # warnings go through logging, which pytest has taken
    assert len(splits.notes) == 3 and "cls predict RUN" in splits.notes[1] and "1 .csv" in splits.notes[2]


def test_what_is_kept_holds_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_cache, "RACY_SECONDS", 0.0)
    build(tmp_path / "x", "train/{cat,dog}/{0..1}.jpg", "more/0.jpg")
    (tmp_path / "y").mkdir()
    for place, path in ((tmp_path, "x"), (tmp_path / "y", "../x")):
        monkeypatch.chdir(place)
        (note,) = load(config.Data(path=path), 0).notes[1:]
        assert len(load_given([note.split("cls predict RUN ")[1]], config.Data())) == 1


def test_only_rank_0_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    build(tmp_path, "{cat,dog}/{0..1}.jpg", "notes.csv")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        load(config.Data(path=str(tmp_path)), 0)
        assert len(capsys.readouterr().err.splitlines()) == len(caplog.messages) == lines
        caplog.clear()


def test_files_that_are_not_read_get_rows_of_prediction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(
        tmp_path, "photos/{0..19}.jpg", "photos/{20..29}.HEIC", "photos/notes.txt", "only/{0..2}.heic", "train.parquet"
    )
    assert load_given(["photos"], config.Data())["id"][:] == [f"{i}.{'jpg' if i < 20 else 'HEIC'}" for i in range(30)]
    assert caplog.messages == ["photos: 1 files that are no images ignored: 1 .txt"]
    assert load_given(["only"], config.Data())["id"][:] == [f"{i}.heic" for i in range(3)]
    for given_paths in (["only/0.heic"], ["photos/0.jpg", "photos/20.HEIC", "photos/notes.txt"]):
        assert load_given(given_paths, config.Data())["id"][:] == given_paths
    with pytest.raises(ValueError, match="cannot be read together"):
        load_given(["photos/0.jpg", "train.parquet"], config.Data())
    with pytest.raises(ValueError, match="no file or folder"):
        load_given(["photos/gone.jpg"], config.Data())


def test_evaluation_a_level_too_high_names_the_folder(tmp_path: Path) -> None:
    build(tmp_path, "seg_test/seg_test/{cat,dog}/{0..1}.jpg", "{train,val}/images/{cat,dog}/0.jpg")
    for path, options in (
        ("seg_test", ["seg_test/seg_test"]),
        ("", ["seg_test/seg_test", "train/images", "val/images"]),
    ):
        with pytest.raises(ValueError, match="has no folder of the run's classes") as caught:
            load_labelled(str(tmp_path / path), ("cat", "dog"), config.Data())
        found = re.findall(r"cls evaluate RUN (\S+?)(?:,|$)", str(caught.value))
        assert sorted(found) == [f"{tmp_path}/{option}" for option in options]
        for option in found:
            assert len(load_labelled(option, ("cat", "dog"), config.Data())) in (2, 4)


def test_evaluation_names_what_it_ignores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, "{cat,dog}/{0..1}.jpg", "bird/{0..2}.heic", "notes.txt")
    assert len(load_labelled(str(tmp_path), ("bird", "cat", "dog"), config.Data())) == 4
    said = "\n".join(caplog.messages)
    assert "no classes: bird (3 other files)" in said and "3 .heic" in said and "ignored: 1 .txt" in said


def test_classes_of_another_unicode_form_are_those_of_the_run(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    build(tmp_path, f"{nfd}/0.jpg", "bar/0.jpg")
    for name in (nfc, nfd):  # of a run before names were made equal, too
        assert load_labelled(str(tmp_path), (name, "bar"), config.Data())["label"][:] == [1, 0]
    rows = {"image": table()["image"], "label": [nfd, nfc, "bar", "bar"]}
    pq.write_table(pa.table(rows), tmp_path / "one.parquet")
    assert load(config.Data(path=str(tmp_path / "one.parquet")), 0).classes == ("bar", nfc)
    names = [{"jpg": BODY, "cls": name.encode()} for name in (nfd, nfc, "bar", "bar")]
    wds(tmp_path / "one.tar", names)
    assert load(config.Data(path=str(tmp_path / "one.tar")), 0).classes == ("bar", nfc)


@pytest.mark.parametrize("streaming", [False, True])
def test_advice_about_labels_in_a_webdataset_works(tmp_path: Path, streaming: bool) -> None:
    for make, option in ((txt_tar, "txt"), (json_tar, "json.class")):
        root = tmp_path / option
        make(root)
        with pytest.raises(ValueError, match=f"4 of 4 train images .* no label.*--data.label-column {option}"):
            load(config.Data(path=str(root), streaming=streaming), 0)
        splits = load(config.Data(path=str(root), streaming=streaming, label_column=option), 0)
        assert splits.classes == ("cat", "dog") and splits.train.labels.tolist() == [0, 0, 1, 1] if streaming else True
        with pytest.raises(ValueError, match=r"read are labels in 'nope', the first members are .*--data.label-column"):
            load(config.Data(path=str(root), streaming=streaming, label_column="nope"), 0)


# Random layouts


def test_words() -> None:
    for name, expected in {
        "train2017": {"train"}, "val_2014": {"val"}, "split=train": {"train"}, "TrainSet": {"train"},
        "testset": {"test"},
        "imagenet1k-validation-00.tar": {"val"}, "hold-out": {"test"}, "HeldOut": {"test"}, "TEST": {"test"},
        "trainval": {"train", "val"}, "train-val-00": {"train", "val"}, "dev": {"val"}, "eval": {"val"},
        "valé": set(), "entraînement": set(), "testé": set(),
    }.items():  # fmt: skip
        assert splits_in(name) == expected, name
    for name in ("contest", "protest", "latest", "evaluation", "devices", "trained", "validity", "strain", "ILSVRC"):
        assert not splits_in(name), name
    assert words("IMGTrain_v2") == ["img", "train", "v"]
    assert [split_name(name) for name in ("train_images", "test_tube", "training_shoes", "val1", "seg_test")] == [
        "train", "", "", "val", "",
    ]  # fmt: skip


SPLIT_WORDS = {
    "train": {"train"}, "Training": {"train"}, "training_set": {"train"}, "seg_train": {"train"},
    "train2017": {"train"},
    "val": {"val"}, "valid": {"val"}, "dev": {"val"}, "seg_val": {"val"}, "val_images": {"val"},
    "test": {"test"}, "Testing": {"test"}, "test_set": {"test"}, "seg_test": {"test"}, "holdout": {"test"},
    "trainval": {"train", "val"}, "train-val": {"train", "val"}, "seg_pred": set(), "extra": set(),
    "unlabeled": set(), "images": set(), "data": set(),
}  # fmt: skip
"""An oracle that does not read names: what each means."""
TRUE_NAMES = {"train", "Training", "val", "valid", "dev", "test", "Testing", "holdout"}
CLASS_NAMES = ("cat", "dog", "latest", "contest", "devices", "ant 2")
NOISE = ("train.csv", "labels.txt", "annotations/0.xml", "bird/0.heic", "cat/notes.txt", ".hidden/0.jpg", "preview.png")


@st.composite
def structured(draw: st.DrawFn) -> list[str]:
    """Splits of some names around class folders, as users make them, with a few files beside."""
    tops = draw(st.lists(st.sampled_from([*SPLIT_WORDS, *CLASS_NAMES]), min_size=1, max_size=4, unique=True))
    classes = draw(st.lists(st.sampled_from([*CLASS_NAMES, "test", "train"]), min_size=1, max_size=3, unique=True))
    base, files = draw(st.sampled_from(("", "", "", "root/", "images/"))), []
    for top in tops:
        how = draw(st.sampled_from(("classes", "classes", "classes", "nested", "flat", "deep")))
        deep = draw(st.sampled_from(("x", "test", "val2")))
        inner = {"classes": classes, "nested": [f"{top}/{name}" for name in classes],
                 "flat": [""],
                 "deep": [f"{name}/{deep}" for name in classes]}[how]  # fmt: skip
        files += [f"{base}{top}/{name}/{i}.jpg".replace("//", "/") for name in inner for i in range(2)]
    return files + draw(st.lists(st.sampled_from(NOISE), max_size=3, unique=True))


PARTS = st.sampled_from([*SPLIT_WORDS, *CLASS_NAMES])
SOUP = st.lists(st.lists(PARTS, min_size=0, max_size=4), min_size=1, max_size=8, unique_by=tuple).map(
    lambda folders: ["/".join([*parts, f"{i}.jpg"]) for parts in folders for i in range(2)]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.one_of(structured(), structured(), SOUP))
def test_random_folders(files: list[str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    build(root, *files)
    try:
        splits = load(config.Data(path=str(root)), 0)
    except ValueError as error:
        assert "\n" not in str(error) and str(root) in str(error)
        return
    own = {
        "train": splits.train["id"][:],
        "val": splits.val["id"][:],
        "test": splits.test["id"][:] if splits.test else [],
    }
    used = [name for names in own.values() for name in names]
    seen = [name for name in files if not name.startswith(".")]
    images, others = ([n for n in seen if n.endswith(EXTENSIONS) is kind] for kind in (True, False))
    assert len({*used}) == len(used) and {*used} <= {*images}  # none in two splits
    assert _number(splits.notes[0], "images", "ignored") == len(images) - len(used), splits.notes  # none disappears
    assert _number(splits.notes[0], "other files", "ignored") == len(others)
    assert all(Path(name).suffix in "\n".join(splits.notes[1:]) for name in others)
    held = "held out of train" in splits.notes[0]
    seg = {
        folder for name in files for folder in name.split("/")[:-1] if folder.startswith("seg_") and SPLIT_WORDS[folder]
    }
    said = SPLIT_WORDS | ({name: set() for name in seg} if len(seg) == 1 else {})  # alone it is what "test_tube" is
    for split, names in own.items():
        for name, label in zip(names, (getattr(splits, split) or {"label": []})["label"][:], strict=True):
            folders = name.split("/")[:-1]
            if label >= 0:
                folders.remove(splits.classes[label])
            meant = set().union(*(said.get(folder, set()) for folder in folders))
            meant |= {"val"} if "val2" in folders else set()
            assert meant <= ({"train"} if held and split == "val" else {split}), (name, splits.notes)
    inside = all(len(path.split("/")) > 2 for path in own["train"])  # of a split's folder
    noted = any("read as a class, not as a split" in note for note in splits.notes)
    assert inside or not {"extra", "unlabeled", "seg_pred"} & {*splits.classes}
    for name in {*splits.classes} & {name for name, splits in said.items() if splits}:
        assert name in TRUE_NAMES and (inside or noted), splits.notes


def _number(line: str, what: str, after: str) -> int:
    found = re.search(rf"{after}: .*?\b(\d+) {what}", line)
    return int(found[1]) if found else 0


BASES = ("training", "train", "valid", "val", "dev", "testing", "test", "holdout")
TABLE_WORDS = [*SPLIT_WORDS, "imagenet1k", "latest", "0000", "part"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.tuples(st.lists(st.sampled_from(TABLE_WORDS), min_size=1, max_size=2), st.integers(0, 3)),
                   min_size=1, max_size=5, unique_by=str),
    how=st.sampled_from(("-", "_", "/", "split=")),
)  # fmt: skip
def test_random_tables(names: list[tuple[list[str], int]], how: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    join = "/split=" if how == "split=" else how
    meant: Counter[str] = Counter()
    inner = [parts[1:] for parts, _ in names]
    others = {"seg_pred", "extra", "unlabeled"}
    around = how in ("/", "split=") and len({parts[0] for parts, _ in names}) == 1  # a folder around all files
    around &= any(SPLIT_WORDS.get(part) for parts in inner for part in parts)
    around &= all(any(SPLIT_WORDS.get(part) or part in others for part in parts) for parts in inner)
    places: set[str | bool] = set()
    meant_words: dict[str, str] = {}
    for parts, number in names:
        build(root, f"{join.join(parts)}{'/' if how == '/' else '-'}{number:05d}.arrow")
        parts = parts[1:] if around else parts
        splits_meant = set().union(*(SPLIT_WORDS.get(part, set()) for part in parts))
        unused = {"seg_pred", "extra", "unlabeled"} & {*parts}
        clear = len(splits_meant) == 1 and (not unused or (splits_meant == {"test"} and "seg_pred" not in parts))
        kind = splits_meant.copy().pop() if clear else "unclear" if splits_meant else "unused" if unused else "none"
        meant[kind] += 1
        word = next((word for part in parts if SPLIT_WORDS.get(part) for word in BASES if word in part.lower()), "")
        meant_words[word] = kind
        places.add(how in ("/", "split=") and len(parts) == 2 and not SPLIT_WORDS.get(parts[0]) and parts[0])
    try:
        splits = load(config.Data(path=str(root)), 0)
    except ValueError as error:
        assert str(error).startswith("data.path: ") and "\n" not in str(error)
        unclear = meant["unclear"] or meant["none"] or meant["unused"] or not meant["train"]
        starts = {parts[0] for parts, _ in names} if "of files named" in str(error) else set()
        assert unclear or len(places) > 1 or len(starts) > 1 or len({*meant_words.values()}) < len({*meant_words}), (
            error
        )
        return
    rows = {"train": len(splits.train), "val": len(splits.val), "test": len(splits.test or [])}
    left = sum(
        int(found[1]) for note in splits.notes if (found := re.search(r"(\d+) files of no split left out", note))
    )
    if "held out of train" in splits.notes[0]:
        rows["train"] += rows["val"]
        rows["val"] = 0
    if len(names) > 1:
        assert not meant["unclear"] and len({*meant_words.values()}) == len(meant_words)
        whole = {"none": meant["none"], "unused": meant["unused"]}
        if meant["train"]:
            assert not meant["none"] and left == meant["unused"]
            assert rows == {split: 4 * meant[split] for split in ("train", "val", "test")}
        else:  # no name has a split
            assert not meant["val"] and not meant["test"]
            assert rows["train"] == 4 * (whole["none"] or whole["unused"])
            assert left == (whole["unused"] if whole["none"] else 0)
