"""`cls check` on a corpus with planted faults: every one is found, and nothing else is reported."""

import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cls.commands import main
from cls.commands.check import duplicates
from cls.commands.check.findings import data_error, problems
from cls.commands.check.label_issues import label_issues
from cls.commands.check.run import check_images
from cls.commands.contact_sheet import Panel, Tile, write_panels
from cls.config import Data
from cls.evaluation.predictions import Predictions
from cls.runtime.exit import DataError
from cls.runtime.signals import StopSignal
from tests.commands.test_duplicates import brighter, cut, mirror, quality, scaled
from tests.harness import environment
from tests.harness.runs import Runs
from tests.transforms.test_fused import encode, picture


def drawn(number: int) -> Image.Image:
    return picture(100 + number, 240, 320)


def save(path: Path, data: bytes | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(data) if isinstance(data, Image.Image) else data)


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def clean(root: Path) -> None:
    """14 different pictures in two classes, and three without labels."""
    places = [f"train/{label}/{i}" for label in "ab" for i in range(5)] + [
        f"val/{label}/{i}" for label in "ab" for i in (5, 6)
    ]
    for number, place in enumerate([*places, *(f"test/{i}" for i in range(3))]):
        save(root / f"{place}.jpg", drawn(number))


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image, exif=exif)


DUPLICATES = {
    frozenset({"train/a/0.jpg", "train/a/again.jpg"}): ("exact", False, False),
    frozenset({"train/a/1.jpg", "train/b/pixels.png"}): ("exact", False, True),
    frozenset({"train/a/2.jpg", "val/a/small.jpg", "test/mirrored.jpg"}): ("near", True, False),
    frozenset({"train/a/3.jpg", "train/a/coarse.jpg"}): ("near", False, False),
    frozenset({"train/b/0.jpg", "test/cropped.jpg"}): ("near", True, False),
    frozenset({"train/b/1.jpg", "val/a/dark.jpg"}): ("near", True, True),
    frozenset({"val/b/5.jpg", "test/same.jpg"}): ("exact", True, False),
}
"""Ids of each picture's duplicates: kind, several splits, several labels."""
CORRUPT = {
    "train/a/half.jpg": "image file is truncated",
    "train/b/empty.jpg": "empty file",
    "val/b/text.jpg": "not an image",
}
UNUSUAL = {
    "grey": {"train/a/grey.jpg", "train/b/deep.png"},
    "CMYK": {"train/a/ink.jpg"},
    "alpha": {"train/a/glass.png"},
    "palette": {"train/b/table.png", "val/a/film.gif", "val/a/cut.gif"},
    "deep": {"train/b/deep.png"},
    "long": {"train/b/long.jpg"},
    "tiny": {"val/b/tiny.png"},
    "rotated": {"train/b/turned.jpg"},
    "animated": {"val/a/film.gif", "val/a/cut.gif"},
    "partly corrupt": {"train/b/smeared.jpg"},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    clean(root)
    train, val = root / "train", root / "val"
    shutil.copy(train / "a/0.jpg", train / "a/again.jpg")
    save(train / "b/pixels.png", encoded(Image.open(train / "a/1.jpg"), format="PNG"))
    save(val / "a/small.jpg", scaled(drawn(2), 0.5))
    save(root / "test/mirrored.jpg", mirror(drawn(2)))
    save(train / "a/coarse.jpg", quality(drawn(3), 30))
    save(root / "test/cropped.jpg", cut(drawn(5), 0.03, 0, 0, 0.05))
    save(val / "a/dark.jpg", brighter(drawn(6), 0.7))
    shutil.copy(val / "b/5.jpg", root / "test/same.jpg")
    whole = encode(drawn(50))
    save(train / "a/half.jpg", whole[: len(whole) // 2])
    save(train / "b/empty.jpg", b"")
    save(val / "b/text.jpg", b"<html>404</html>")
    save(train / "a/grey.jpg", drawn(51).convert("L"))
    save(
        train / "b/deep.png",
        encoded(Image.fromarray(np.asarray(drawn(52).convert("L")).astype(np.uint16) * 257), format="PNG"),
    )
    save(train / "a/ink.jpg", drawn(53).convert("CMYK"))
    glass = drawn(54).resize((120, 160)).convert("RGBA")
    glass.putpixel((0, 0), (0, 0, 0, 0))
    save(train / "a/glass.png", encoded(glass, format="PNG"))
    save(train / "b/table.png", encoded(drawn(55).resize((120, 160)).quantize(64), format="PNG"))
    frames = [drawn(number).resize((60, 80)).quantize(32) for number in (56, 57)]
    save(val / "a/film.gif", encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:]))
    film = encoded(frames[1], format="GIF", save_all=True, append_images=frames[:1])
    save(val / "a/cut.gif", film[: film.index(b"\x2c", len(film) // 2) + 5])  # in the header of the second frame
    save(train / "b/long.jpg", drawn(58).resize((300, 100)))
    save(val / "b/tiny.png", encoded(drawn(59).resize((20, 24)), format="PNG"))
    save(train / "b/turned.jpg", turned(drawn(60)))
    save(train / "b/smeared.jpg", encode(drawn(61))[: len(whole) // 2] + b"\xff\xd9")  # it even ends as it should
    return root


def forked(words: list[str], folder: Path) -> dict[str, Any]:
    """A command in a process forked from this one, which has imported torch: that takes as long as the commands."""
    pid, code, env = os.fork(), 0, environment()
    if not pid:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = words
        with open("out", "w") as sys.stdout, open("err", "w") as sys.stderr:
            try:
                main.main()
            except SystemExit as error:
                code = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 99
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"code": code, "out": (folder / "out").read_text(), "err": (folder / "err").read_text()}


@pytest.fixture(scope="module")
def commands(runs: Runs, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The output of a check of the planted corpus, and a small run on small pictures."""
    root = tmp_path_factory.mktemp("commands")
    hues(root / "hues", 0, {"val/red/3.png": "green", "train/blue/5.png": "red"})
    (root / "check").mkdir()
    check = forked(["cls", "check", str(planted), "--workers", "0", "--json"], root / "check")
    args = ["digits", "--data.path", str(root / "hues"), "--data.size", "16", "--data.workers", "0"]
    args += ["--train.epochs", "4", "--train.batch", "12", "--train.micro-batch", "12", "--track.wandb", "disabled"]
    run = runs.run(root / "out", args)
    assert run.code == 0, run.output
    return {"check": check, "root": root}


def checked(path: Path, workers: int = 0, to: Path | None = None, run: str = "") -> dict[str, Any]:
    stop = StopSignal()
    return check_images(Data(path=str(path)), 0, run, to, workers, "cpu", stop)


@pytest.fixture(scope="module")
def found(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return checked(planted, to=tmp_path_factory.mktemp("sheet") / "check.png")


def test_every_planted_duplicate_is_found_and_no_other(found: dict[str, Any]) -> None:
    groups = {
        frozenset(one["id"] for one in group["images"]): (
            group["kind"],
            len(group["splits"]) > 1,
            len(group["labels"]) > 1,
        )
        for group in found["duplicates"]
    }
    assert groups == DUPLICATES
    for group in found["duplicates"]:
        assert all(pair["similarity"] >= 0.8 for pair in group["pairs"])
        mirrored = {group["images"][i]["id"] for pair in group["pairs"] if pair["mirrored"] for i in pair["images"]}
        assert ("test/mirrored.jpg" in mirrored) == any(one["id"] == "test/mirrored.jpg" for one in group["images"])


def test_every_corrupt_and_unusual_image_is_named(found: dict[str, Any]) -> None:
    assert {one["id"] for one in found["corrupt"]} == set(CORRUPT)
    assert all(CORRUPT[one["id"]] in one["reason"] for one in found["corrupt"])
    assert {kind: {one["id"] for one in some["images"]} for kind, some in found["unusual"].items()} == UNUSUAL
    assert found["not_compared"] == 1  # tiny.png


def test_images_with_many_similar_ones_are_reported_as_partly_compared(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve shots of one scene, and the limit made as small."""
    assert found["partly_compared"] == 0
    rng, scene = np.random.default_rng(0), np.asarray(drawn(0).resize((120, 160))).astype(int)
    for number, place in enumerate(f"{split}/{label}" for split in ("train", "val") for label in "abc" for _ in "12"):
        shot = np.clip(scene + rng.normal(size=scene.shape) * 30, 0, 255).astype(np.uint8)
        save(tmp_path / place / f"{number}.png", encoded(Image.fromarray(shot), format="PNG"))
    monkeypatch.setattr(duplicates, "MANY", 6)
    facts = checked(tmp_path)
    assert facts["partly_compared"] == 12 and not facts["duplicates"]
    assert "12 images have too many similar images: each was compared only with the most" in capsys.readouterr().err


def test_figures_of_each_split(found: dict[str, Any], planted: Path) -> None:
    train = found["splits"]["train"]
    assert train["of_class"] == {"a": 11, "b": 12} and found["splits"]["test"]["of_class"] == {"a": 0, "b": 0}
    assert train["images"] == 23 and found["splits"]["test"]["unlabelled"] == 6 and found["images"] == 39
    assert train["modes"] == {"RGB": 16, "L": 1, "I;16": 1, "CMYK": 1, "RGBA": 1, "P": 1}
    assert train["formats"] == {"JPEG": 17, "PNG": 4}
    assert train["width"] == {"min": 120, "median": 240, "max": 320} and train["height"]["max"] == 320
    assert train["shorter_side"]["64 to 127"] == 3 and sum(train["shorter_side"].values()) == 21


def test_problems_are_listed_in_an_error(found: dict[str, Any]) -> None:
    corrupt, across, double = problems(found)
    assert corrupt.startswith("3 corrupt images: replace or remove ")
    assert "train/a/half.jpg (cannot be decoded" in corrupt
    assert across.startswith("4 pictures in several splits: ") and across.endswith(" and 1 more")
    assert (
        double.startswith("2 pictures under several labels: ")
        and "train/a/1.jpg = train/b/pixels.png as a and b" in double
    )
    error = data_error(found)
    assert isinstance(error, DataError) and str(error).startswith("this data has problems:\n  3 corrupt")


def test_the_contact_sheet_shows_all_findings(found: dict[str, Any]) -> None:
    with Image.open(found["contact_sheet"]) as sheet:
        rows = -(-(8 + 3) // 4)  # eight pairs: one picture has three duplicates; three corrupt images
        assert sheet.format == "PNG" and sheet.width == 1848 and 300 * rows < sheet.height < 500 * rows
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    hidden = (abs(pixels - 225).max(2) == 0).sum()  # the frames of what cannot be shown, but for their crosses
    coloured = (np.ptp(pixels, 2) > 10).sum()  # the pictures
    assert 3 * 90**2 < hidden < 3 * 230**2 and coloured > 18 * 120 * 150


def test_processes_do_not_change_the_findings(found: dict[str, Any], planted: Path, tmp_path: Path) -> None:
    again = checked(planted, workers=2)
    assert again == {key: value for key, value in found.items() if key != "contact_sheet"}


def test_a_process_that_dies_is_an_error_that_names_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(tmp_path)
    monkeypatch.setattr("cls.commands.check.survey.describe", lambda data: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match="at images 0 to 16: if memory ran out, use fewer with --workers"):
        checked(tmp_path, workers=1)


@pytest.mark.integration
def test_the_command_prints_its_document_and_exits_with_the_data_code(commands: dict[str, Any]) -> None:
    check = commands["check"]
    assert check["code"] == 3 and "Traceback" not in check["err"]
    document = json.loads(check["out"])
    assert len(document["duplicates"]) == len(DUPLICATES) and "run" not in document
    assert "data: this data has problems:\n  3 corrupt images" in check["err"]
    assert "39 images decoded" in check["err"] and "ETA 0:00:00" in check["err"]
    assert "groups of duplicates: 7" in check["err"] and "train/a/half.jpg" in check["err"]


def test_tables_are_checked_as_folders_are_and_clean_data_has_no_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(tmp_path / "folder")
    for split in ("train", "val"):
        paths = sorted((tmp_path / "folder" / split).rglob("*.jpg"))
        table = pa.table(
            {"image": [path.read_bytes() for path in paths], "label": [path.parent.name for path in paths]}
        )
        pq.write_table(table, tmp_path / f"{split}.parquet")
    (tmp_path / "tables").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}.parquet").rename(tmp_path / "tables" / f"{split}.parquet")
    for path, count in ((tmp_path / "folder", 17), (tmp_path / "tables", 14)):
        facts = checked(path)
        assert facts["images"] == count and facts["duplicates"] == facts["corrupt"] == [] and facts["unusual"] == {}
        assert problems(facts) == []
        assert data_error(facts) is None
        assert "no problems found" in capsys.readouterr().err


def test_what_is_ignored_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean(tmp_path / "folder")
    for number in range(10):
        save(tmp_path / f"folder/train/c/{number}.HEIC", b"\0\0\0\x18ftypheic")
    facts = checked(tmp_path / "folder")
    line, hollow, unread = facts["notes"]
    assert facts["images"] == 17 and line.endswith("ignored: 10 other files")
    assert "1 folders without an image that can be read, so no classes: train/c (10 other files)" in hollow
    assert "10 images of kinds that are not read ignored: 10 .heic; to convert them" in unread
    shown = capsys.readouterr().err
    assert "no problems found; what the warnings above name was not checked" in shown and line in shown


# --- labels ---


def predictions(probs: list[list[float]], labels: list[int]) -> Predictions:
    names = [str(i) for i in range(len(labels))]
    return Predictions(ids=names, labels=np.array(labels), probs=np.array(probs), errors=[""] * len(labels),
                       classes=("a", "b", "c"), loss=0.0)  # fmt: skip


def test_a_label_is_an_issue_where_another_class_is_much_more_probable() -> None:
    probs = [[0.9, 0.1, 0.0], [0.19, 0.71, 0.1], [0.25, 0.74, 0.01], [0.01, 0.0, 0.99], [0.1, 0.9, 0.0], [0.0] * 3]
    p = predictions(probs, [0, 0, 0, 0, -1, 1])  # the third has too small a margin, the last is unreadable
    first, second = label_issues(dataclasses.replace(p, errors=[""] * 5 + ["corrupt"]))
    keys = ("row", "label", "predicted", "label_prob", "predicted_prob")
    assert [first[key] for key in keys] == [3, "a", "c", 0.01, 0.99]
    assert [second[key] for key in keys] == [1, "a", "b", 0.19, 0.71]
    assert label_issues(predictions([[0.1, 0.9, 0]], [-1])) == []


def hues(root: Path, seed: int, wrong: dict[str, str]) -> None:
    """Small pictures of one hue a class; ``wrong``: places whose pictures are of another class."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 24), ("val", 8)):
        for label in ("blue", "green", "red"):
            for number in range(count):
                place = f"{split}/{label}/{number}.png"
                hue = {"blue": 160, "green": 85, "red": 0}[wrong.get(place, label)]
                bright = rng.integers(150, 255, (8, 8), dtype=np.uint8)
                layers = [np.full((8, 8), hue, np.uint8), np.full((8, 8), 220, np.uint8), bright]
                image = Image.merge("HSV", [Image.fromarray(layer) for layer in layers]).convert("RGB")
                save(root / place, encoded(image.resize((40, 40), Image.Resampling.BICUBIC), format="PNG"))


@pytest.mark.integration
def test_a_run_s_model_finds_the_wrong_labels(
    commands: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In validation by its stored predictions, in training and in other data by predicting now."""
    data, other, run = commands["root"] / "hues", tmp_path / "other", commands["root"] / "out"
    hues(other, 1, {"train/green/7.png": "blue"})
    shutil.rmtree(other / "train/red")
    shutil.rmtree(other / "val/red")
    facts = checked(data, run=str(run), to=tmp_path / "check.png")
    issues = {(one["split"], one["id"], one["label"], one["predicted"]) for one in facts["label_issues"]}
    assert issues == {("val", "val/red/3.png", "red", "green"), ("train", "train/blue/5.png", "blue", "red")}
    assert all(one["predicted_prob"] > 0.5 > one["label_prob"] for one in facts["label_issues"])
    assert facts["predictions"]["val"] == {"how": "stored predictions of the run", "accuracy": 23 / 24}
    assert "trained on these labels" in facts["predictions"]["train"]["how"] and facts["duplicates"] == []
    assert "predictions of train: the model was trained on these labels" in capsys.readouterr().err
    assert problems(facts) == [], "a label issue is no proof"
    facts = checked(other, run=str(run))
    assert [(one["id"], one["label"], one["predicted"]) for one in facts["label_issues"]] == [
        ("train/green/7.png", "green", "blue")
    ]
    assert all("predicted now" in how["how"] for how in facts["predictions"].values())
    (other / "train/red").mkdir()
    (other / "train/green").rename(other / "train/violet")
    shutil.rmtree(other / "val/green")
    with pytest.raises(ValueError, match="knows no class 'violet'"):
        checked(other, run=str(run))


def test_an_exact_duplicate_is_shown_beside_what_it_equals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three duplicates is smaller, the third is the second: not the first, which it merely resembles."""
    for number, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / name).mkdir(parents=True)
        picture(number, 320, 240).save(tmp_path / name / "1.png")
    for name in ("2.png", "3.png"):
        picture(0, 320, 240).resize((160, 120)).save(tmp_path / "train" / "a" / name)
    panels: list[Panel] = []
    monkeypatch.setattr("cls.commands.check.run.write_panels", lambda to, drawn, title: panels.extend(drawn))
    checked(tmp_path, to=tmp_path / "sheet.png")
    equal = [panel for panel in panels if panel.title == "exact duplicate"]
    assert len(panels) == 2 and [panel.lines[1:] for panel in equal] == [("train/a/2.png", "train/a/3.png")]


def test_a_mixed_image_is_titled_with_its_shares() -> None:
    tile = Tile(torch.zeros(3, 8, 8, dtype=torch.uint8), {"b": 0.3, "v10.5": 0.7}, 0, "x")
    assert tile.caption == "v10.5 .70 + b .30"


def test_an_empty_contact_sheet_can_be_written(tmp_path: Path) -> None:
    write_panels(tmp_path / "empty.png", [], "nothing")
    write_panels(tmp_path / "one.png", [Panel((None,), "corrupt", ("a", "b"))], "one")
    assert all(Image.open(tmp_path / f"{name}.png").format == "PNG" for name in ("empty", "one"))
