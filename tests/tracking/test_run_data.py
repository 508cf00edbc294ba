"""What a run was trained on is known again: by names, labels and sizes, when it goes on and when it is looked at."""

import csv
import dataclasses
import json
import logging
import os
import re
import shlex
import shutil
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from cls.commands.audit import audit_run
from cls.commands.check.run import check_images
from cls.commands.contact_sheet import Tile, end
from cls.commands.evaluate import evaluate_images
from cls.commands.export.run import export
from cls.commands.main import parse_command
from cls.commands.options import EvaluateOptions, ExportOptions, PackOptions, ReportOptions
from cls.commands.pack import pack
from cls.commands.report import report_run
from cls.config import Data, Run, change, to_yaml
from cls.data.readers import image_sizes, images_of
from cls.data.sources import Splits, load
from cls.evaluation.model_file import best_header
from cls.evaluation.plots import short
from cls.evaluation.predictions import read_parquet, write_parquet
from cls.models.build import build_model
from cls.runtime.exit import DataError
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import is_own, look, numbered_as, same_everywhere
from cls.tracking.run_dir import RunDir
from cls.tracking.run_files import encode_classes, read_classes, read_data, stored_classes
from cls.training.resume import _keep
from tests.harness.runs import Runs


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(seed: int, side: int = 16) -> bytes:
    """Noise; as many bytes as the seed says."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))

    def saved(comment: bytes) -> bytes:
        data = BytesIO()
        image.save(data, "JPEG", comment=comment)
        return data.getvalue()

    return saved(b"x" * (5000 + seed - len(saved(b"x"))))


def photos(root: Path, splits: tuple[str, ...] = ("train", "val"), classes: tuple[str, ...] = ("ant", "bee", "cat"),
           images: int = 8) -> Path:  # fmt: skip
    for split in splits:
        for label, name in enumerate(classes):
            for i in range(images):
                path = root / split / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(10 * label + i))
    return root


def begun(out: Path, root: Path, **data: Any) -> Path:
    """A run directory as a start leaves it, with best weights that nobody trained."""
    fields = {"path": str(root), "size": 16, "workers": 0, "eval_frame": "squash"} | data
    run = change(
        Run(), data=fields, model={"weights": "none", "backbone": "timm/test_resnet"},
        train={"device": "cpu", "precision": "fp32", "eval_batch": 8},
    )  # fmt: skip
    splits = load(run.data, run.seed)
    (out / "best").mkdir(parents=True)
    (out / "config.yaml").write_text(to_yaml(run))
    weights = {k: v.contiguous() for k, v in build_model(run.model, len(splits.classes), 7).state_dict().items()}
    save_file(weights, out / "best" / "model.safetensors", best_header(run, splits))
    start(out, splits)
    return out


def start(out: Path, splits: Splits) -> None:
    """What a start does with its images, on one process."""
    _keep(RunDir(out, Run(), "", 0), look(splits))


def evaluated(out: Path, images: str = "") -> dict[str, Any]:
    found = evaluate_images([str(out)], images, EvaluateOptions(device="cpu", workers=0), StopSignal())
    assert found is not None
    return found


def typed(text: str) -> list[str]:
    """The words of the cls command at the end of a message."""
    return shlex.split(text[text.index("cls evaluate ") :])[1:]


# --- a run's own data, loaded again ---


def remove_held_out(root: Path) -> None:
    (root / load(Data(path=str(root)), 0).val["id"][0]).unlink()


def add_image(root: Path) -> None:
    (root / "ant" / "new.jpg").write_bytes(picture(3))


DRIFTS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any], str]] = {
    "class renamed": (("",), lambda root: (root / "ant").rename(root / "zant"), "'zant' new and 'ant' missing"),
    "class renamed to keep its place": (("",), lambda root: (root / "ant").rename(root / "anu"), "'anu' new"),
    "image more": (("",), add_image, r"3 validation images as then|other images"),
    "image less": (("",), remove_held_out, "images"),
    "class more": (("",), lambda root: photos(root, ("",), ("aaa",)), "'aaa' new"),
    "class less": (("",), lambda root: shutil.rmtree(root / "bee"), "images|'bee' missing"),
    "class renamed in both splits": (
        ("train", "val"), lambda root: [(root / s / "ant").rename(root / s / "zant") for s in ("train", "val")],
        "'zant' new",
    ),
    "validation image more": (
        ("train", "val"), lambda root: (root / "val/ant/x.jpg").write_bytes(picture(1)),
        "24 validation images then, 25 now",
    ),
    "validation image replaced": (
        ("train", "val"), lambda root: (root / "val/ant/3.jpg").write_bytes(picture(4)),
        r"1 of 24 validation images have other contents .*'val/ant/3.jpg': [0-9,]+ bytes then, [0-9,]+ bytes now",
    ),
    "validation image in another class": (
        ("train", "val"), lambda root: (root / "val/ant/3.jpg").rename(root / "val/bee/33.jpg"), "other images, labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DRIFTS)
def test_a_run_s_own_data_that_has_changed_is_rejected(tmp_path: Path, case: str) -> None:
    """Accuracy was that of other images, with code 0, or there was a traceback."""
    splits, change_data, text = DRIFTS[case]
    root = photos(tmp_path / "photos", splits)
    out = begun(tmp_path / "run", root)
    evaluated(out)
    change_data(root)
    with pytest.raises(ValueError, match=text) as caught:
        evaluated(out)
    said = str(caught.value)
    assert f"{root} is not what {out} was trained on" in said and "\n" not in said
    words = typed(said)
    command = parse_command(words[0], words[1:])
    assert command.run == str(out)
    if command.path != ("FOLDER",):  # what was printed works as it is
        assert evaluated(out, *command.path)["accuracy"] >= 0
    else:
        assert "new" in said
    with pytest.raises(ValueError, match=r"need the run's images: .* is not what"):
        report_run(str(out), ReportOptions(predict=True, device="cpu", workers=0), StopSignal())
    with pytest.raises(ValueError, match=r"is not what .* was trained on .*name some with --images FOLDER"):
        export(str(out), tmp_path / "to", ExportOptions(), StopSignal())
    assert report_run(str(out), ReportOptions(), StopSignal())  # a page without pictures


def rows_of(*names: str) -> str:
    rows = (f"{name},{('ant', 'bee')[number % 2]}\n" for number, name in enumerate(names))
    return "id,my label\n" + "".join(rows)


TEN = [f"{n}" for n in range(10)]
LABELLED: dict[str, tuple[list[str], dict[str, str], dict[str, Any], str]] = {  # images, files, options, what is scored
    "one file": (
        [f"images/{n}.jpg" for n in TEN], {"my labels.csv": rows_of(*TEN)},
        {"labels": ("my labels.csv",), "label_column": "my label", "id_column": "id", "val_fraction": 0.4},
        "'{0}' --data.labels 'my labels.csv' --data.label-column 'my label' --data.id-column id",
    ),
    "a file for each split": (
        [f"images/{n}.jpg" for n in TEN], {"train.csv": rows_of(*TEN[:6]), "two.csv": rows_of(*TEN[6:])},
        {"labels": ("train.csv", "val=two.csv")}, "'{0}' --data.labels val=two.csv",
    ),
    "a test beside it": (
        [f"train/{n}.jpg" for n in TEN] + ["test/1.jpg"], {"train.csv": rows_of(*TEN)},
        {"labels": ("train.csv",), "val_fraction": 0.4}, "'{0}/train' --data.labels '{0}/train.csv'",
    ),
    "the file of val": (
        [f"train/{name}/{n}.jpg" for n in TEN for name in ("ant", "bee")] + [f"val/images/{n}.jpg" for n in TEN],
        {"val/val.csv": rows_of(*TEN)}, {"labels": ("val/val.csv",)}, "'{0}/val' --data.labels '{0}/val/val.csv'",
    ),
    "names": (
        [f"{name}_{n}.jpg" for n in TEN for name in ("ant", "bee")], {},
        {"label_pattern": r"(.+)_\d+", "val_fraction": 0.4}, r"'{0}' --data.label-pattern '(.+)_\d+'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELLED)
def test_the_command_after_drift_has_the_run_s_label_options(tmp_path: Path, case: str) -> None:
    """It failed at once: the images lie in no class folders."""
    names, files, options, words = LABELLED[case]
    root = tmp_path / "my set"
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    for name, text in files.items():
        (root / name).write_text(text)
    out = begun(tmp_path / "run", root, **options)
    for number, name in enumerate(names):
        (root / name).write_bytes(picture(number + 40))
    with pytest.raises(ValueError, match="validation images have other contents") as caught:
        evaluated(out)
    assert str(caught.value).endswith(f": cls evaluate {out} {words.format(root)}")
    command = parse_command("evaluate", [*typed(str(caught.value))[1:], "--device", "cpu", "--workers", "0"])
    assert command.do(StopSignal())[0]["accuracy"] >= 0


def test_the_command_after_drift_names_no_folder_with_several_splits(tmp_path: Path) -> None:
    """`cls evaluate` rejects such a folder; its training part would score images that were trained on."""
    root = tmp_path / "set"
    names = [f"{split}/{name}/{n}.jpg" for split in ("train", "test") for name in ("ant", "bee") for n in TEN]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    out = begun(tmp_path / "run", root, val_fraction=0.4)
    for number, name in enumerate(names):
        (root / name).write_bytes(picture(number + 80))
    with pytest.raises(ValueError, match=rf"there now: cls evaluate {out} FOLDER$"):
        evaluated(out)


def test_what_does_not_touch_the_validation_images_is_no_drift_for_them(tmp_path: Path) -> None:
    """Labels go by name: a class more in train/ moves the numbers of the others."""
    root = photos(tmp_path / "photos")
    out = begun(tmp_path / "run", root)
    before = evaluated(out)
    photos(root, ("train",), ("aaa",))
    (root / "train/bee/0.jpg").write_bytes(picture(77))
    assert evaluated(out) == before
    assert report_run(str(out), ReportOptions(predict=True, device="cpu", workers=0), StopSignal())
    with pytest.raises(ValueError, match=r"need the run's images: .*is not what"):  # these need the training images
        report_run(str(out), ReportOptions(neighbors=2, predict=True, device="cpu", workers=0), StopSignal())


def test_neighbors_need_the_training_images_of_then(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    out = begun(tmp_path / "run", root)
    assert report_run(str(out), ReportOptions(neighbors=2, predict=True, device="cpu", workers=0), StopSignal())
    (root / "train/bee/0.jpg").write_bytes(picture(77))
    with pytest.raises(ValueError, match="1 of 24 training images have other contents"):
        report_run(str(out), ReportOptions(neighbors=2, predict=True, device="cpu", workers=0), StopSignal())


def test_data_that_has_moved_is_named_with_the_command(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    out = begun(tmp_path / "run", root)
    root.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=rf"photos; to evaluate .*: cls evaluate {re.escape(str(out))} FOLDER$"):
        evaluated(out)
    assert evaluated(out, str(tmp_path / "moved/val"))["accuracy"] >= 0


def test_a_model_without_its_directory_says_that_nothing_is_proved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photos(tmp_path / "photos", ("",))
    figures = evaluated(out := begun(tmp_path / "run", root))
    assert not caplog.records
    shutil.copy(out / "best" / "model.safetensors", alone := tmp_path / "alone.safetensors")
    assert evaluated(alone) == figures
    (said,) = (record.getMessage() for record in caplog.records)
    assert "nothing proves" in said and f"cls evaluate {alone} FOLDER" in said and "\n" not in said
    (root / "ant").rename(root / "zant")  # labels go by name without a directory, too
    with pytest.raises(ValueError, match="'zant' new and 'ant' missing"):
        evaluated(alone)


def test_check_knows_the_images_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos(tmp_path / "photos", classes=("ant", "bee"))
    out = begun(tmp_path / "run", root)
    assert report_run(str(out), ReportOptions(predict=True, device="cpu", workers=0), StopSignal())

    def asked() -> dict[str, Any]:
        return check_images(Data(path=str(root)), 0, str(out), None, 0, "cpu", StopSignal())["predictions"]

    assert "these labels" in asked()["train"]["how"]
    (root / "train/bee/0.jpg").write_bytes(picture(77))
    assert "predicted now" in asked()["train"]["how"]


# --- what a resumed run notices ---


def parquet(root: Path, images: dict[str, list[tuple[bytes, str]]], **how: Any) -> None:
    root.mkdir(exist_ok=True)
    for split, rows in images.items():
        table = pa.table({
            "image": [{"bytes": data, "path": f"{i}.jpg"} for i, (data, _) in enumerate(rows)],
            "label": [name for _, name in rows],
        })  # fmt: skip
        pq.write_table(table, root / f"{split}-0.parquet", row_group_size=5, **how)


def tars(root: Path, images: dict[str, list[tuple[bytes, str]]], kind: str = "tar") -> None:
    root.mkdir(exist_ok=True)
    for split, rows in images.items():
        with tarfile.open(root / f"{split}-0.{kind}", "w:gz" if kind == "tgz" else "w") as tar:
            for i, (data, name) in enumerate(rows):
                for ending, content in (("jpg", data), ("cls", name.encode())):
                    info = tarfile.TarInfo(f"{i:03d}.{ending}")
                    info.size, info.mtime = len(content), time.time()  # of no account
                    tar.addfile(info, BytesIO(content))


def arrow(root: Path, images: dict[str, list[tuple[bytes, str]]]) -> None:
    root.mkdir(exist_ok=True)
    for split, rows in images.items():
        table = pa.table({"image": [{"bytes": d, "path": None} for d, _ in rows], "label": [name for _, name in rows]})
        with pa.ipc.new_stream(root / f"{split}-0.arrow", table.schema) as writer:
            writer.write_table(table)


def saved(root: Path, images: dict[str, list[tuple[bytes, str]]]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    made = {
        split: datasets.Dataset.from_dict({"image": [{"bytes": d, "path": None} for d, _ in rows],
                                           "label": [name for _, name in rows]})
        for split, rows in images.items()
    }  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(root)


def folder(root: Path, images: dict[str, list[tuple[bytes, str]]]) -> None:
    for split, rows in images.items():
        for i, (data, name) in enumerate(rows):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            (root / split / name / f"{i}.jpg").write_bytes(data)


def packed(root: Path, images: dict[str, list[tuple[bytes, str]]]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    source = root.with_name("source")
    folder(source, images)
    pack(str(source), root, PackOptions())


KINDS: dict[str, tuple[Callable[..., None], bool]] = {
    f"{name}{', streamed' if streaming else ''}": (write, streaming)
    for name, write in {
        "folder": folder, "parquet": parquet, "tar": tars, "tgz": lambda *a: tars(*a, "tgz"), "arrow": arrow,
        "save_to_disk": saved, "packed": packed,
    }.items()
    for streaming in (False, True)
    if not (streaming and name in ("tgz", "arrow", "save_to_disk"))
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_images_replaced_under_the_same_name_are_noticed_whatever_they_lie_in(tmp_path: Path, kind: str) -> None:
    write, streaming = KINDS[kind]
    images = {split: [(picture(i), "ab"[i % 2]) for i in range(12)] for split in ("train", "val")}
    root, out = tmp_path / "data", tmp_path / "run"
    out.mkdir()
    write(root, images)

    def again(root: Path) -> Splits:
        return load(Data(path=str(root), streaming=streaming), 0)

    start(out, again(root))
    start(out, again(root))
    shutil.copytree(root, tmp_path / "staged")  # on another disk, with other times
    for path in (tmp_path / "staged").rglob("*"):
        os.utime(path, (1, 1))
    start(out, again(tmp_path / "staged"))
    for split in ("train", "val"):
        write(root, images | {split: [(picture(i + 40), "ab"[i % 2]) for i in range(12)]})
        with pytest.raises(
            ValueError, match=r"data\.path: .* is not what .* started with \(.*other (contents|images)"
        ) as caught:
            start(out, again(root))
        assert {"train": "training", "val": "validation"}[split] in str(caught.value) and "\n" not in str(caught.value)
    write(root, images)
    start(out, again(root))


def test_the_message_counts_and_names_what_was_replaced(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", images=16), tmp_path / "run"
    out.mkdir()
    start(out, load(Data(path=str(root)), 0))
    for i in range(9):  # of 48
        (root / "train" / "bee" / f"{i}.jpg").write_bytes(picture(60 + i, 20))
    text = r"9 of 48 training images have other contents under the same name, e\.g\. 'train/bee/0\.jpg': [0-9,]+ bytes"
    with pytest.raises(ValueError, match=text):
        start(out, load(Data(path=str(root)), 0))
    (out / "sizes.npz").write_bytes(b"damaged")  # which image it is, is then not known, that it is, is
    with pytest.raises(ValueError, match=r"48 training images as then, but of other sizes in bytes"):
        start(out, load(Data(path=str(root)), 0))
    (out / "sizes.npz").unlink()
    with pytest.raises(ValueError, match="of other sizes in bytes"):
        start(out, load(Data(path=str(root)), 0))


def test_a_corrupt_training_image_may_be_replaced_by_a_whole_one(tmp_path: Path) -> None:
    """corrupt_images.csv asks for it. A corrupt validation image has counted as wrong in every figure."""
    root, out = photos(tmp_path / "photos"), tmp_path / "run"
    out.mkdir()
    bad, other = root / "train/bee/0.jpg", root / "val/bee/0.jpg"
    for path in (bad, other):
        path.write_bytes(b"broken")
    start(out, load(Data(path=str(root)), 0))
    (out / "corrupt_images.csv").write_text("id,reason\ntrain/bee/0.jpg,cannot be decoded\n")
    bad.write_bytes(picture(1))
    start(out, load(Data(path=str(root)), 0))
    (root / "train/bee/1.jpg").write_bytes(picture(70))
    with pytest.raises(ValueError, match=r"1 of 24 training images .*'train/bee/1\.jpg'"):
        start(out, load(Data(path=str(root)), 0))
    (root / "train/bee/1.jpg").write_bytes(picture(11))
    other.write_bytes(picture(1))
    with pytest.raises(ValueError, match=r"1 of 24 validation images .*'val/bee/0\.jpg'"):
        start(out, load(Data(path=str(root)), 0))


def test_a_run_of_an_earlier_version_goes_on_and_says_once_what_it_cannot_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, out = photos(tmp_path / "photos"), tmp_path / "run"
    out.mkdir()
    splits = load(Data(path=str(root)), 0)
    early = {k: {"images": v["images"], "sha256": v["sha256"]} for k, v in look(splits).facts.items()}
    (out / "data.json").write_text(json.dumps(early))
    (out / "classes.txt").write_text("ant\nbee\ncat\n")
    (root / "train/bee/1.jpg").write_bytes(picture(70))
    start(out, splits)
    start(out, splits)
    (said,) = (record.getMessage() for record in caplog.records)
    assert "earlier version" in said and str(out / "data.json") in said and "\n" not in said
    (root / "train/bee/1.jpg").write_bytes(picture(71))
    with pytest.raises(ValueError, match=r"1 of 24 training images .*'train/bee/1\.jpg'"):
        start(out, splits)


@pytest.mark.parametrize("text", ["[]", "{", "", '{"train": 3}', '{"train": {"images": "4", "sha256": "x"}}', "\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    root = photos(tmp_path / "photos", images=2)
    out = begun(tmp_path / "run", root)
    (out / "data.json").write_bytes(text.encode("latin-1"))
    for work in (lambda: start(out, load(Data(path=str(root)), 0)), lambda: evaluated(out)):
        with pytest.raises(ValueError, match=rf"{re.escape(str(out / 'data.json'))} is damaged"):
            work()
    shutil.rmtree(out)
    out = begun(tmp_path / "run", root)
    (out / "classes.txt").unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(out / 'classes.txt'))} cannot be read"):
        start(out, load(Data(path=str(root)), 0))


def test_all_processes_must_see_the_same_contents(tmp_path: Path) -> None:
    """One of each node looks at the files; the others know names and labels."""
    root = photos(tmp_path / "photos", images=2)
    splits = load(Data(path=str(root)), 0)
    first, blind = look(splits).facts, look(splits, contents=False).facts
    assert same_everywhere(first, blind) and same_everywhere(first, look(splits).facts)
    (root / "val/ant/0.jpg").write_bytes(picture(50))
    assert not same_everywhere(first, look(splits).facts)
    assert same_everywhere(first, look(splits, contents=False).facts)
    photos(root, ("train",), images=3)
    assert not same_everywhere(first, look(load(Data(path=str(root)), 0), contents=False).facts)


def test_a_copy_without_pack_json_is_the_same_set_and_one_with_another_is_not(tmp_path: Path) -> None:
    root, out = tmp_path / "packed", tmp_path / "run"
    out.mkdir()
    packed(root, {split: [(picture(i), "ab"[i % 2]) for i in range(6)] for split in ("train", "val")})
    start(out, load(Data(path=str(root)), 0))
    about = json.loads((root / "pack.json").read_text())
    (root / "pack.json").unlink()
    start(out, load(Data(path=str(root)), 0))
    name = next(name for name in about["files"] if name.startswith("val"))
    about["files"][name]["sha256"] = "0" * 64  # as many bytes, other pixels
    (root / "pack.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"1 of 1 validation tables have other contents, e.g. {name}"):
        start(out, load(Data(path=str(root)), 0))


def test_sizes_are_those_of_the_files_in_row_order(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", ("",))
    splits = load(Data(path=str(root)), 0)  # held out: both are selections of one table
    for rows in (splits.train, splits.val):
        images = images_of(rows)
        expected = [(root / images.name(row)).stat().st_size for row in range(len(rows))]
        assert image_sizes(rows).tolist() == expected
    gone = root / images_of(splits.val).name(1)
    gone.unlink()
    assert image_sizes(splits.val)[1] == -1
    parquet(tmp_path / "tables", {"train": [(picture(i), "ab"[i % 2]) for i in range(40)]})
    held = load(Data(path=str(tmp_path / "tables")), 0)
    assert image_sizes(held.val).tolist() == [
        len(data) for data in map(bytes, images_of(held.val).read(range(len(held.val))))
    ]


def test_the_embedded_digits_are_known_by_their_names_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """How many bytes their pixels take depends on the version of Pillow."""
    splits = load(Data(path="digits"), 0)
    start(tmp_path, splits)
    start(tmp_path, splits)
    assert "contents" not in read_data(tmp_path)["train"] and not caplog.records


def test_a_report_of_a_run_that_has_not_read_its_images_says_so(tmp_path: Path) -> None:
    run = change(Run(), data={"path": str(photos(tmp_path / "photos", images=2))})
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert report_run(str(tmp_path), ReportOptions(), StopSignal())
    with pytest.raises(ValueError, match=r"need the run's images: .* has not read its images yet"):
        report_run(str(tmp_path), ReportOptions(predict=True, device="cpu", workers=0), StopSignal())


@pytest.mark.parametrize("streaming", [False, True])
def test_the_training_images_of_each_class_are_counted(tmp_path: Path, streaming: bool) -> None:
    root = photos(tmp_path / "photos", images=3)
    photos(root, ("train",), ("bee",), 7)
    (tmp_path / "run").mkdir()
    start(tmp_path / "run", load(Data(path=str(root), streaming=streaming), 0))
    assert read_data(tmp_path / "run")["train"]["per_class"] == [3, 7, 3]


def test_numbering_by_name_keeps_images_and_moves_labels(tmp_path: Path) -> None:
    for streaming in (False, True):
        splits = load(Data(path=str(photos(tmp_path / "photos", images=2)), streaming=streaming), 0)
        other = numbered_as(splits, ("cat", "x", "ant"))
        for split in ("train", "val"):
            old, new = (images_of(getattr(found, split)) for found in (splits, other))
            assert [old.name(row) for row in range(len(old))] == [new.name(row) for row in range(len(new))]
            assert new.labels.tolist() == [
                {"ant": 2, "bee": -1, "cat": 0}[splits.classes[label]] for label in old.labels
            ]
    assert not is_own(tmp_path, splits, "test")


# --- class names that a line cannot hold ---

HOSTILE = (
    "new\nline",
    "nel\x85",
    "sep\u2028",
    "feed\x0c",
    "file\x1csep",
    "return\r",
    "esc\x1b[31m",
    '"quoted"',
    "[bold]",
    "café",
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, unique=True))
def test_any_class_name_survives_classes_txt(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "classes.txt"
    path.write_bytes(encode_classes(names))
    assert read_classes(path) == tuple(names)
    assert path.read_bytes().count(b"\n") == len(names) == len(path.read_text().splitlines())


def test_the_classes_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text('2\n10\nnel\x85\nsep\u2028x\nback\\slash\n"no JSON\n')
    assert read_classes(path) == ("2", "10", "nel\x85", "sep\u2028x", "back\\slash", '"no JSON')
    path.write_bytes("".join(f"{name}\n" for name in HOSTILE).encode())
    assert stored_classes(path, HOSTILE) == HOSTILE  # a run goes on with what its own version wrote
    assert stored_classes(path, HOSTILE[1:]) != HOSTILE[1:]


def test_pictures_show_no_control_characters() -> None:
    assert short("new\nline", 20) == "new\\nline" and short("esc\x1b[31m" * 9, 12) == "esc\\x1b[31m…"
    assert Tile(torch.zeros(3, 1, 1), {"a\u2028b": 1.0}, 0, "x").caption == "a\\u2028b"
    assert end("some/feed\x0c/x.jpg", 40) == "some/feed\\x0c/x.jpg"


def test_the_log_shows_no_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("cls").warning("%d images of %s are\nempty", 3, "esc\x1b[31m\x85")
    assert caplog.messages == ["3 images of esc\\x1b[31m\\x85 are\nempty"]


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.integration
def test_a_real_run_with_such_classes_goes_on_and_notices_other_images(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = photos(tmp_path / "photos", ("train",), HOSTILE, 4), tmp_path / "run"
    photos(root, ("val",), HOSTILE[:4], 2)  # validation lacks classes: they are named
    photos(root / "test", ("",), HOSTILE[:2], 1)
    text = "--data.size 32 --data.workers 0 --track.wandb disabled --train.batch 16 --train.micro-batch 8 "
    text += "--train.epochs 4 --model.backbone timm/test_resnet --track.ledger True"
    words = ["digits", *shlex.split(text), "--data.path", str(root)]
    first = runs.run(out, [*words, "--train.max-steps", "1"])
    assert first.codes == [0] and "validation has no image of 6 classes" in first.output, first.output
    ended = runs.run(out, [*words, "--train.max-steps", "2"])
    assert ended.codes == [0] and clean(first.output + ended.output), repr(ended.output)
    assert set(read_classes(out / "classes.txt")) == set(HOSTILE)
    assert audit_run(str(out))[0]["samples"] == 32
    capsys.readouterr()
    figures = evaluated(out)
    assert set(figures["classes"]) == set(HOSTILE) and clean(capsys.readouterr().err)
    assert report_run(str(out), ReportOptions(), StopSignal())
    with (out / "prediction.csv").open(newline="") as file:
        guesses = [row["pred_label"] for row in csv.DictReader(file)]
    assert len(guesses) == 2 and set(guesses) <= set(HOSTILE)  # exact: the next program reads it
    capsys.readouterr()
    found = read_parquet(out / "predictions" / "val.parquet")
    right = np.eye(len(HOSTILE))[found.labels]
    for name, probs in (("right", right), ("wrong", right[:, ::-1])):
        write_parquet(tmp_path / f"{name}.parquet", dataclasses.replace(found, probs=probs))
    files = [str(tmp_path / f"{name}.parquet") for name in ("right", "wrong")]
    command = parse_command("compare", [*files, "--to", str(tmp_path / "table.md")])
    assert len(command.do(StopSignal())[0]["comparisons"][0]["classes"]) == 4 and clean(capsys.readouterr().err)
    table = (tmp_path / "table.md").read_text()
    assert "new\\\\nline" in table and clean(table)
    with suppress(DataError):  # copies, of course
        check_images(Data(path=str(root)), 0, str(out), tmp_path / "sheet.png", 0, "cpu", StopSignal())
    said = capsys.readouterr().err
    assert clean(said) and "file\\x1csep" in said and "esc\\x1b[31m" in said
    with pytest.raises(ValueError, match="classes that training lacks") as caught:
        evaluated(out, str(photos(tmp_path / "other", ("",), ("x\ny", "b\x1b"), 1)))
    assert str(caught.value).isprintable()
    for i in range(3):
        (root / "train" / HOSTILE[0] / f"{i}.jpg").write_bytes(picture(70 + i))
    ended = runs.run(out, [*words, "--train.max-steps", "3"])
    assert ended.codes == [2] and "3 of 40 training images have other contents" in ended.output and clean(ended.output)
