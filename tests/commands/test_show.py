"""`cls show` draws what the model is given: the same samples, pixels and targets as training."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cls.commands.contact_sheet import LEAST, Tile, write_sheet
from cls.commands.show import contact_sheet, original
from cls.config import Data
from cls.data.dataset import train_dataset
from cls.data.loader import load_batch
from cls.data.readers import images_of
from cls.data.sources import load, load_given
from tests.commands.test_bench import SMALL, on


def test_the_samples_of_a_step_are_listed_with_their_mixed_labels(photos: Path, tmp_path: Path) -> None:
    run = on(photos, train=SMALL, augment={"mixup": 0.4})
    document = contact_sheet(run, tmp_path / "samples.png", 10, 2)
    splits = load(run.data, run.seed)
    images = images_of(splits.train)
    rows = [images.sampler(run.seed, False).row(index) for index in range(16, 26)]  # step 2 of batches of 8
    assert [one["index"] for one in document["samples"]] == list(range(16, 26))
    assert [one["id"] for one in document["samples"]] == [images.name(row) for row in rows]
    for one, row in zip(document["samples"], rows, strict=True):
        assert splits.classes[images.labels[row]] in one["labels"]
        assert sum(one["labels"].values()) == pytest.approx(1)
    assert max(len(one["labels"]) for one in document["samples"]) == 2
    with Image.open(document["file"]) as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height > 300


def test_the_pixels_are_those_that_training_gets(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = on(photos, train=SMALL, augment={"erase": 0.0, "mixup": 0.0, "cutmix": 0.0})
    drawn: list[Tile] = []
    monkeypatch.setattr("cls.commands.show.write_sheet", lambda to, tiles, title: drawn.extend(tiles))
    contact_sheet(run, tmp_path / "samples.png", 3, 1)
    dataset = train_dataset(images_of(load(run.data, run.seed).train), run)
    expected = load_batch(dataset, [8, 9, 10]).pixels
    assert len(drawn) == 3 and all(tile.image.equal(pixels) for tile, pixels in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_each_sample_is_beside_the_picture_of_its_file(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    drawn: list[Tile] = []
    monkeypatch.setattr("cls.commands.show.write_sheet", lambda to, tiles, title: drawn.extend(tiles))
    run = on(photos, train=SMALL, data={"streaming": streaming})
    contact_sheet(run, tmp_path / "samples.png", 8, 0)
    assert len({tile.id for tile in drawn}) == 8 and run.data.size < LEAST
    for tile in drawn:
        with Image.open(photos / tile.id) as image:
            image.thumbnail((LEAST, LEAST))
            assert tile.original is not None and (tile.original == np.asarray(image.convert("RGB"))).all(), tile.id


def test_a_corrupt_file_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    bad = sorted((tmp_path / "photos" / "train").rglob("*.jpg"))[0]
    bad.write_bytes(b"no image")
    run = on(tmp_path / "photos", train=SMALL)
    count = len(load(run.data, run.seed).train)
    document = contact_sheet(run, tmp_path / "samples.png", count, 0)
    assert [one["id"] for one in document["corrupt"]] == [str(bad.relative_to(tmp_path / "photos"))]
    assert f"{document['corrupt'][0]['id']} is corrupt, another image is in its place: " in capsys.readouterr().err


def test_a_corrupt_file_has_no_original(tmp_path: Path) -> None:
    for name, content in (("broken", b"no image"), ("empty", b"")):
        (tmp_path / f"{name}.jpg").write_bytes(content)
    images = images_of(load_given([str(tmp_path / "broken.jpg"), str(tmp_path / "empty.jpg")], Data()))
    assert [original(images, row, 32) for row in range(2)] == [None, None]
    write_sheet(tmp_path / "s.png", [Tile(torch.zeros(3, 32, 32, dtype=torch.uint8), {"cat": 1.0}, 0, "x")], "one")
    with Image.open(tmp_path / "s.png") as sheet:
        greys = {color for _, color in sheet.convert("RGB").getcolors(1 << 20)}
    assert (225, 225, 225) in greys  # the cross
