"""``cls explain``: heat maps on images whose answer is known, and what it says of images it cannot or does not draw."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cls.commands.arguments import Explain
from cls.commands.contact_sheet import MapRow
from cls.commands.explain import explain_images
from cls.commands.export.run import export
from cls.commands.options import ExplainOptions, ExportOptions, PredictOptions, ReportOptions
from cls.commands.predict import predict_images
from cls.commands.report import report_run
from cls.data.readers import images_of
from cls.data.sources import load_given
from cls.evaluation.heat_maps import explain, overlay
from cls.evaluation.predictions import read_parquet
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.exit import DataError
from cls.runtime.signals import StopSignal
from tests.harness.runs import Runs
from tests.harness.untrained import CLASSES, member, photos

STOP = StopSignal()
COLORS = {"blue": (40, 60, 230), "green": (30, 200, 30), "red": (230, 30, 30)}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"), 3, 64)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return member(tmp_path_factory.mktemp("runs") / "one", images, size=64)


def explained(runs: str | list[str], paths: list[Path | str], to: Path, **more: Any) -> dict[str, Any]:
    named = [runs] if isinstance(runs, str) else runs
    return explain_images(named, [*map(str, paths)], ExplainOptions(to=str(to), device="cpu", **more), STOP)


# --- a known answer ---


def squares(root: Path, count: int, side: int = 96, size: int = 32) -> Path:
    """JPEGs of noise with a square in one corner, whose color is the class; the corner is in the name."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 4)):
        for name, color in COLORS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
                top, left = (int(value) * (side - size) for value in rng.integers(0, 2, 2))
                pixels[top : top + size, left : left + size] = color
                Image.fromarray(pixels).save(root / split / name / f"{i}-{top}-{left}.jpg", quality=92)
    return root


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("squares"), 16)


NETWORKS = {"cbam": ("resnext14_8x8d", "--model.cbam", "4"), "timm": ("timm/test_efficientnet",)}


@pytest.fixture(scope="module", params=[pytest.param("cbam", marks=pytest.mark.soak), "timm"])
def trained(
    request: pytest.FixtureRequest, runs: Runs, colored: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A real run."""
    frame = ["--data.size", "96", "--augment.frame", "squash", "--data.eval-frame", "squash", "--data.workers", "0"]
    train = ["--train.batch", "8", "--train.micro-batch", "8", "--train.epochs", "8", "--optim.lr-batch", "8"]
    words = ["digits", "--data.path", str(colored), *frame, *train, "--track.wandb", "disabled", "--model.backbone"]
    result = runs.run(tmp_path_factory.mktemp("trained") / "run", [*words, *NETWORKS[request.param]])
    assert result.codes == [0], result.output
    return result.out


@pytest.mark.integration
def test_the_map_lies_on_the_square_that_decides(trained: Path, colored: Path, tmp_path: Path) -> None:
    p = read_parquet(trained / "predictions" / "val.parquet")
    assert (p.probs.argmax(1) == p.labels).all()
    model = load_trained_model(str(trained), "cpu", 0, STOP)
    rows = images_of(load_given([str(colored / "val")], model.run.data))
    found, corrupt = explain(model, rows, range(len(rows)), [-1] * len(rows))
    shares = []
    for row, one in found.items():
        top, left = (int(word) for word in Path(rows.name(row)).stem.split("-")[1:])
        corner = one.predicted[48:] if top else one.predicted[:48]
        corner = corner[:, 48:] if left else corner[:, :48]
        shares.append(float(corner.sum() / one.predicted.sum()))  # a map without a place has a quarter there
        assert np.array_equal(one.predicted, one.labelled) and one.predicted.max() > 0.9
    assert not corrupt and len(shares) == 12 and min(shares) > 0.4 and np.mean(shares) > 0.65
    document = explained(str(trained), [colored / "val"], tmp_path / "e.png")
    for one, probs, name in zip(document["images"], p.probs, p.ids, strict=True):
        assert name.endswith(one["id"]) and one["predicted"] == one["target"] == one["id"].split("/")[0]
        assert one["probability"] == pytest.approx(probs.max(), abs=1e-5)


# --- the command ---


def test_probabilities_are_those_of_cls_predict(run: str, images: Path, tmp_path: Path) -> None:
    document = explained(run, [images / "val"], tmp_path / "e.png", target="cat", count=4)
    predict_images([run], [str(images / "val")], PredictOptions(out=str(tmp_path), device="cpu", workers=0), STOP)
    p = read_parquet(tmp_path / "predictions.parquet")
    assert [one["id"] for one in document["images"]] == p.ids[:4] and document["left_out"] == len(p.ids) - 4
    for one, probs in zip(document["images"], p.probs[:4], strict=True):
        assert one["predicted"] == CLASSES[probs.argmax()] and one["target"] == "cat"
        assert one["probability"] == pytest.approx(probs.max(), abs=1e-5)
        assert one["target_probability"] == pytest.approx(probs[2], abs=1e-5)
    json.dumps(document, allow_nan=False)
    with Image.open(tmp_path / "e.png") as picture:
        assert picture.format == "PNG" and picture.height > 1.3 * picture.width  # 4 lines of 3 images


def test_what_is_not_drawn_is_named(run: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = images / "val" / "dog" / "0.png"
    (tmp_path / "torn.jpg").write_bytes(b"no image")
    (tmp_path / "other.png").write_bytes(good.read_bytes())
    document = explained(run, [tmp_path / "torn.jpg", good, tmp_path / "none.png"], tmp_path / "e.png")
    assert [one["id"] for one in document["corrupt"]] == [str(tmp_path / "torn.jpg"), str(tmp_path / "none.png")]
    assert [one.get("target") for one in document["images"]] == ["dog"]  # the folder's name
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" is left out: ")[0] for line in said[:2]] == [one["id"] for one in document["corrupt"]]

    document = explained(run, [images / "val"], tmp_path / "e.png", count=5)
    assert len(document["images"]) == 5 and document["left_out"] == 7
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "7 more images were left out: raise --count (at most 100), or name the images"
    document = explained(run, [tmp_path / "other.png"], tmp_path / "e.png")
    assert "target" not in document["images"][0]
    with pytest.raises(DataError, match="none of 1 images could be read: nothing was drawn"):
        explained(run, [tmp_path / "torn.jpg"], tmp_path / "e.png")


def test_a_list_comes_from_standard_input(
    run: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(images / "val" / name / "1.png") for name in ("dog", "ant")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    document = explained(run, ["-"], tmp_path / "e.png")
    assert [(one["id"], one["target"]) for one in document["images"]] == list(zip(names, ("dog", "ant"), strict=True))


def test_what_cannot_be_explained_is_one_message(run: str, images: Path, tmp_path: Path) -> None:
    other = member(tmp_path / "two", images, seed=1, size=64)
    for runs, paths, more, text in (
        (run, [], {}, "there is nothing to explain: name images after the run"),
        ([run, other], [images / "val"], {}, f"of one network, found 2 \\({run}, {other}\\): explain each alone"),
        (run, [images / "val"], {"target": "catt"}, "--target 'catt' is none of the run's classes: did you mean 'cat'"),
        (run, [images / "val"], {"target": "xyzw"}, "there are 4, such as 'ant', 'bee', 'cat', 'dog'"),
        (run, [images / "nowhere"], {}, "there is no file or folder"),
    ):
        with pytest.raises(ValueError, match=text):
            explained(runs, paths, tmp_path / "e.png", **more)
    for count in (0, 101):
        with pytest.raises(ValueError, match=f"--count is {count}: it must be from 1 to 100"):
            ExplainOptions(count=count)
    assert not (tmp_path / "e.png").exists()


def test_an_export_is_explained_like_its_run(run: str, images: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "exported", ExportOptions(count=2), STOP)
    command = Explain.parse([str(tmp_path / "exported/model.safetensors"), str(images / "val"), "--count", "2"], "")
    assert command.count == 2 and command.path == (str(images / "val"),)
    documents = [
        explained(model, [images / "val"], tmp_path / f"{i}.png", count=2)
        for i, model in enumerate((run, command.run, f"{run}/best/model.safetensors"))
    ]
    assert documents[0]["images"] == documents[1]["images"] == documents[2]["images"]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "2.png").read_bytes()  # with the name of the same run


def test_views_are_named_and_cbam_is_beside(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"backbone": "resnext14_8x8d", "cbam": (3, 4), "gate": 8}
    run = member(tmp_path / "run", images, size=64, model=model, augment={"tta": ("identity", "hflip")})
    drawn: list[MapRow] = []
    monkeypatch.setattr("cls.commands.explain.write_maps", lambda to, rows, title: drawn.extend(rows))
    document = explained(run, [images / "val" / "cat"], tmp_path / "e.png", count=2)
    (guess,) = {one["predicted"] for one in document["images"]}
    said = capsys.readouterr().err
    assert "these are probabilities of the plain view; cls predict averages it with hflip" in said
    assert all(row[2][0].startswith("CBAM, 0.") for row in drawn) and len(drawn) == 2
    assert {one.shape for row in drawn for _, one in row} == {(224, 224, 3)}
    if guess == "cat":
        assert [len(row) for row in drawn] == [3, 3] and drawn[0][1][0].endswith("(its folder)")
    else:
        assert [len(row) for row in drawn] == [4, 4] and drawn[0][3][0].startswith("folder: cat 0.")


def test_a_map_colors_what_is_high_and_leaves_the_rest_grey() -> None:
    pixels = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    heat = np.zeros((64, 64), np.float32)
    heat[:20, :20] = 1
    shown = overlay(pixels, heat, 128).astype(int)
    assert np.ptp(shown[60:, 60:], axis=2).max() == 0 and np.ptp(shown[:30, :30], axis=2).min() > 40
    assert shown[10, 10, 0] > shown[10, 10, 2] + 40  # yellow


# --- the report ---


def test_the_report_shows_why_a_mistake_was_made(images: Path, tmp_path: Path) -> None:
    run = member(tmp_path / "run", images, size=64)
    options = {"predict": True, "device": "cpu", "workers": 0}
    page = {}
    for count in (24, 2, 0):
        to = tmp_path / f"{count}.html"
        report_run(run, ReportOptions(to=str(to), heat_maps=count, **options), STOP)
        page[count] = to.read_text()
    mistakes = page[24].count('class="photo"')
    assert mistakes > 2 and page[24].count('<img src="data:') == 2 * mistakes - page[24].count("no place raises it")
    assert page[2].count('class="maps"') == 2 and "Grad-CAM" in page[2]
    assert page[0].count('class="maps"') == 0 and "Grad-CAM" not in page[0]
    with pytest.raises(ValueError, match="--heat-maps must be 0 or more, found 0 and -1"):
        report_run(run, ReportOptions(heat_maps=-1), STOP)


def test_a_network_without_maps_costs_the_maps_and_not_the_page(images: Path, tmp_path: Path) -> None:
    run = member(tmp_path / "run", images, size=160, model={"backbone": "timm/test_vit"})
    report_run(run, ReportOptions(predict=True, device="cpu", workers=0), STOP)
    page = (Path(run) / "report.html").read_text()
    assert "Without heat maps: model.backbone: the features of VisionTransformer are no map of places" in page
    assert 'class="photo"' in page and 'class="maps"' not in page
