"""Several runs as one prediction: the mean of what each says, on the images that each prepares for itself."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cls.commands.arguments import Evaluate, Predict
from cls.commands.compare import notes, sheets
from cls.commands.evaluate import evaluate_images
from cls.commands.export.members import export_members
from cls.commands.main import parse_command
from cls.commands.options import EvaluateOptions, ExportOptions, PredictOptions
from cls.commands.predict import predict_images
from cls.data.dataset import EvalDataset
from cls.data.sources import load_given
from cls.evaluation.compare import compare, read_member
from cls.evaluation.ensemble import mean_of, other_classes
from cls.evaluation.predictions import Predictions, read_parquet, readable, renumbered, write_parquet
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.files import sha256
from cls.runtime.signals import StopSignal
from tests.harness import ROOT, environment
from tests.harness.untrained import CLASSES, member, photos, untrained

NETWORK: dict[str, Any] = {"backbone": "timm/test_resnet"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three members that differ in all that may differ."""
    root = tmp_path_factory.mktemp("runs")
    return [
        member(root / "a", images, augment={"tta": ("identity", "hflip")}),
        member(root / "b", images, ("dog", "ant", "cat", "bee"), 3, 1, 24, {"eval_frame": "center"}),
        member(root / "c", images, eval_batch=5, seed=2, data={"normalize": "imagenet"}, model={"head": "9 relu"}),
    ]


def alone(run: str, images: Path, views: tuple[Any, ...] | None = None) -> Predictions:
    """What a run itself predicts for a folder, all at once, in the order of CLASSES; by default in its own views."""
    trained = load_trained_model(run, "cpu", 0, StopSignal())
    rows = load_given([str(images)], trained.run.data)
    own = trained.run.augment.tta if views is None else views
    return renumbered(trained.predict(EvalDataset(rows, own, trained.run)), CLASSES)


def predicted(runs: list[str], images: Path, out: Path | str, **more: Any) -> Any:
    options: dict[str, Any] = {"device": "cpu", "workers": 0} | more
    return predict_images(runs, (str(images),), PredictOptions(out=str(out), **options), StopSignal())


def evaluated(runs: list[str], images: str = "", **more: Any) -> Any:
    options: dict[str, Any] = {"device": "cpu", "workers": 0} | more
    return evaluate_images(runs, images, EvaluateOptions(**options), StopSignal())


def made(probs: list[list[float]], errors: list[str] | None = None, labels: list[int] | None = None) -> Predictions:
    n, c = len(probs), len(probs[0])
    return Predictions(ids=[f"{i}" for i in range(n)], labels=np.array(labels or [-1] * n), probs=np.array(probs),
                       errors=errors or [""] * n, classes=CLASSES[:c], loss=7.0)  # fmt: skip


# --- the mean ---


@pytest.mark.parametrize("workers", [0, 2])
def test_the_mean_has_the_bits_of_the_members_own_predictions(
    runs: list[str], images: Path, tmp_path: Path, workers: int
) -> None:
    """Other batch sizes, class order, image size, framing, normalisation and views; from one set of workers, too."""
    own = [alone(run, images / "test") for run in runs]
    document = predicted(runs, images / "test", tmp_path, workers=workers)
    assert document == {"images": 20, "corrupt": 0, "folder": str(tmp_path), "members": runs}
    found = read_parquet(tmp_path / "predictions.parquet")
    expected = np.mean([p.probs for p in own], axis=0)
    assert found.ids == own[0].ids and found.classes == CLASSES and found.probs.tobytes() == expected.tobytes()
    assert all(np.abs(p.probs - expected).max() > 0.01 for p in own) and np.isnan(found.loss)
    rows = (tmp_path / "top.csv").read_text().splitlines()
    assert rows[1].split(",")[2] == CLASSES[expected[0].argmax()]


def test_one_run_alone_is_what_it_was(runs: list[str], images: Path, tmp_path: Path) -> None:
    document = predicted(runs[:1], images / "test", "", tta=("none",))
    assert document == {"images": 20, "corrupt": 0, "folder": f"{runs[0]}/predict-test"}
    found = read_parquet(Path(document["folder"]) / "predictions.parquet")
    assert found.probs.tobytes() == alone(runs[0], images / "test", ()).probs.tobytes()
    assert "members" not in evaluated(runs[:1])


def test_several_runs_write_beside_the_first(runs: list[str], images: Path) -> None:
    place = predicted(runs[:2], images / "test", "")["folder"]
    assert place == str(Path(runs[0]).parent / "predict-test-by-2-runs")
    shutil.rmtree(place)


def test_what_one_member_cannot_read_or_compute_has_no_prediction() -> None:
    first = made([[0.2, 0.8], [0.5, 0.5], [0.1, 0.9]], ["", "cut short", ""], [1, 0, 1])
    second = made([[0.4, 0.6], [0.9, 0.1], [np.nan, np.nan]], labels=[1, 0, 1])
    mean = mean_of([first, second], True)
    assert mean.errors == ["", "cut short", ""] and list(readable(mean)) == [True, False, False]
    assert mean.probs[0].tolist() == [(0.2 + 0.4) / 2, (0.8 + 0.6) / 2] and not mean.probs[1].any()
    assert np.isnan(mean.loss)  # of the third image: as for one run
    assert mean_of([first], True) is first


def test_the_loss_is_that_of_the_mean_or_none() -> None:
    parts = [made([[0.2, 0.8], [0.5, 0.5]], labels=[1, 0]), made([[0.4, 0.6], [0.9, 0.1]], labels=[1, 0])]
    assert mean_of(parts, True).loss == pytest.approx((-np.log(0.7) - np.log(0.7)) / 2)
    assert np.isnan(mean_of(parts, False).loss)


@pytest.mark.integration
def test_two_processes_give_the_bits_of_one(runs: list[str], images: Path, tmp_path: Path) -> None:
    """accelerate launch, two real gloo processes; one process is the test above."""
    config = str(ROOT / "accelerate_configs" / "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    command += ["-m", "cls", "predict", *runs, str(images / "test"), "--workers", "1", "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "the mean of 3 runs, by 2 processes" in done.stderr, done.stderr
    predicted(runs, images / "test", tmp_path / "one")
    one, two = (read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert one.ids == two.ids and one.probs.tobytes() == two.probs.tobytes()
    rows = [(tmp_path / name / "top.csv").read_bytes() for name in ("one", "two")]
    assert rows[0] == rows[1]


# --- figures ---


def test_figures_on_the_runs_own_images(runs: list[str], images: Path) -> None:
    document = evaluated(runs)
    own = [alone(run, images / "val", ()) for run in runs]
    probs = np.mean([p.probs for p in own], axis=0)
    labels = np.repeat(np.arange(4), 5)
    assert document["accuracy"] == (probs.argmax(1) == labels).mean() and document["images"] == 20
    assert document["loss"] == pytest.approx(-np.log(probs[np.arange(20), labels]).mean())
    assert document["loss_is"] == "mean of -log(mean probability)" and document["rule"] == "mean of softmax"
    for row, run, p in zip(document["members"], runs, own, strict=True):
        assert row["run"] == run and row["accuracy"] == (p.probs.argmax(1) == labels).mean()
        assert row["gain"] == pytest.approx(document["accuracy"] - row["accuracy"]) and row["low"] <= row["high"]
        assert evaluated([run])["accuracy"] == row["accuracy"]  # with labels in the run's own order
    elsewhere = evaluated(runs, str(images / "val"))
    assert elsewhere.pop("trained_on") == 20  # the splits of these folders are copies
    assert elsewhere == document


def test_a_member_of_another_loss_leaves_none(images: Path, runs: list[str], tmp_path: Path) -> None:
    other = member(tmp_path / "mse", images, optim={"loss": "mse"})
    document = evaluated([runs[0], other])
    assert document["loss"] is None and "optim.loss mse" in document["loss_is"]
    json.loads(json.dumps(document, allow_nan=False))


# --- its directory ---


def store(runs: list[str]) -> None:
    """The predictions that a run writes at its end."""
    for run in runs:
        trained = load_trained_model(run, "cpu", 0, StopSignal())
        own = trained.own_data()
        for name, rows, views in (("val", own.val, ()), ("test", own.test, trained.run.augment.tta)):
            found = trained.predict(EvalDataset(rows, views, trained.run))
            write_parquet(Path(run) / "predictions" / f"{name}.parquet", found)


@pytest.fixture(scope="module")
def stored(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble's directory, and the stored predictions of its runs."""
    store(runs)
    to = tmp_path_factory.mktemp("ensembles") / "three"
    evaluated(runs, to=str(to))
    torch.use_deterministic_algorithms(False)
    return to


def test_an_ensemble_is_compared_like_a_run(runs: list[str], stored: Path) -> None:
    """Paired on the same images: the figures are those of plain counts."""
    for split in ("val", "test"):
        own = [renumbered(read_parquet(Path(run) / "predictions" / f"{split}.parquet"), CLASSES) for run in runs]
        probs, labels = np.mean([p.probs for p in own], axis=0), np.repeat(np.arange(4), 5)
        found = read_parquet(stored / "predictions" / f"{split}.parquet")
        assert found.probs.tobytes() == probs.tobytes() and found.ids == own[0].ids
        document = compare([str(stored), *runs], split=split)
        assert [g["seeds"] for g in document["groups"]] == [1, 1, 1, 1]
        first = document["groups"][0]["runs"][0]
        assert first["made"] == "mean of 3 runs" and first["seed"] is None
        assert first["accuracy"] == (probs.argmax(1) == labels).mean()
        for row, p in zip(document["comparisons"], own, strict=True):
            right, alone = probs.argmax(1) == labels, p.probs.argmax(1) == labels
            assert row["only_baseline"] == (right & ~alone).sum() and row["only_group"] == (alone & ~right).sum()
        assert sheets(document)[0].rows[0][1] == "mean of 3 runs"


def test_seeds_against_their_ensemble_are_paired(runs: list[str], images: Path, tmp_path: Path) -> None:
    seeds = [member(tmp_path / f"s{seed}", images, seed=seed) for seed in range(2)]
    store(seeds)
    evaluated(seeds, to=str(tmp_path / "both"))
    document = compare([str(tmp_path / "both"), *seeds], baseline="s")
    assert [(g["group"], g["seeds"]) for g in document["groups"]] == [("s", 2), ("both", 1)]
    assert any(note.startswith("An ensemble is assumed to vary") for note in notes(document))


def test_its_directory_predicts_with_its_members(runs: list[str], stored: Path, images: Path, tmp_path: Path) -> None:
    predicted(runs, images / "test", tmp_path / "runs")
    document = predicted([str(stored)], images / "test", "")
    assert document["folder"] == str(stored / "predict-test")
    files = [folder / "predictions.parquet" for folder in (tmp_path / "runs", stored / "predict-test")]
    assert read_parquet(files[0]).probs.tobytes() == read_parquet(files[1]).probs.tobytes()
    shutil.rmtree(stored / "predict-test")
    document, _ = Evaluate(run=str(stored), path=(str(images / "test"),), device="cpu", workers=0).do(StopSignal())
    assert len(document["members"]) == 3
    with pytest.raises(ValueError, match="is named twice"):
        predicted([str(stored), runs[2]], images / "test", "-")

    copy, other = shutil.copytree(stored, tmp_path / "copy"), shutil.copytree(runs[0], tmp_path / "other")
    text, place = (stored / "ensemble.json").read_text(), f"{runs[0]}/best/model.safetensors"
    weights = other / "best" / "model.safetensors"
    (copy / "ensemble.json").write_text(text.replace(place, str(weights)))
    assert predicted([str(copy)], images / "test", tmp_path / "o")["images"] == 20
    shutil.copy(Path(runs[1]) / "best" / "model.safetensors", weights)  # trained anew
    with pytest.raises(ValueError, match=f"{re.escape(str(weights))} has other weights than when"):
        predicted([str(copy)], images / "test", "-")
    weights.unlink()
    with pytest.raises(ValueError, match="does not exist any more"):
        predicted([str(copy)], images / "test", "-")


def test_a_damaged_or_incomplete_ensemble_is_one_line(runs: list[str], stored: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(stored, tmp_path / "copy")
    for text, message in (("{", "is damaged (not"), ('{"members": [{}]}', "is damaged (its members are incomplete)")):
        (copy / "ensemble.json").write_text(text)
        with pytest.raises(ValueError, match=re.escape(f"{copy}/ensemble.json {message}")):
            compare([str(copy), runs[0]])
    shutil.copy(stored / "ensemble.json", copy)
    (copy / "predictions" / "test.parquet").unlink()
    with pytest.raises(ValueError, match=r"test\.parquet does not exist|no test split"):
        compare([str(copy), runs[0]], split="test")
    facts = json.loads((stored / "ensemble.json").read_text())
    assert [row["run"] for row in facts["members"]] == runs and facts["views"] == []
    assert facts["members"][0]["sha256"] == sha256(Path(runs[0]) / "best" / "model.safetensors")
    assert (stored / "classes.txt").read_text().split() == list(CLASSES)


# --- rejections ---


def test_other_classes_are_rejected_by_name(images: Path, runs: list[str], tmp_path: Path) -> None:
    untrained(tmp_path / "x", ("ant", "bee", "cow"), {"size": 16}, NETWORK)
    with pytest.raises(ValueError, match=re.escape(
        f"{runs[0]} and {tmp_path}/x have other classes (only the first has 'cat', 'dog'; only the second has 'cow')"
    )):  # fmt: skip
        predicted([runs[0], str(tmp_path / "x")], images / "test", "-")
    assert other_classes("ab", "ba") == "" and other_classes("ab", "abc") == "only the second has 'c'"


def test_a_run_named_twice_is_rejected(images: Path, runs: list[str]) -> None:
    for again in (runs[0], f"{runs[0]}/best/model.safetensors"):
        with pytest.raises(ValueError, match=f"{re.escape(again)} is named twice"):
            predicted([*runs, again], images / "test", "-")


def test_a_copy_of_a_member_is_rejected(images: Path, runs: list[str], tmp_path: Path) -> None:
    copy = str(shutil.copytree(runs[1], tmp_path / "copy"))
    options = ExportOptions(images=str(images / "test"))
    for again, what in ((copy, f"{copy} has the weights of {runs[1]}"), (runs[1], f"{runs[1]} is named twice")):
        with pytest.raises(ValueError, match=re.escape(f"{what}: each run counts once")):
            predicted([*runs, again], images / "test", "-")
        with pytest.raises(ValueError, match=re.escape(f"{what}: each run counts once")):
            export_members([*runs, again], tmp_path / "exported", options, StopSignal())
    assert not (tmp_path / "exported").exists()


def test_an_ensemble_named_by_its_predictions_has_its_members(stored: Path) -> None:
    by_file = read_member(str(stored / "predictions" / "val.parquet"), "val")
    by_folder = read_member(str(stored), "val")
    assert by_file.averaged == by_folder.averaged == 3 and by_file.made == by_folder.made == "mean of 3 runs"


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_options_may_come_before_and_after_what_they_are_about(runs: list[str], stored: Path, name: str) -> None:
    a, b, c = runs
    for words in (
        ["--device", "cpu", a, b, c, "photos"], [a, "--device", "cpu", b, c, "photos"],
        [a, b, c, "photos", "--device", "cpu"], ["--device=cpu", a, b, c, "photos"],
        [a, b, c, "--device", "cpu", "photos"], [a, "--device=cpu", b, c, "photos"],
        ["--device", "cpu", a, b, c, "--data.path", "photos"], [a, b, c, "--data.path=photos", "--device", "cpu"],
    ):  # fmt: skip
        found = parse_command(name, words)
        assert (found.run, found.path, found.device) == (a, (b, c, "photos"), "cpu"), words
    found = parse_command(name, [a, "--tta", "identity", "hflip", "--device", "cpu", b, "-"])
    assert (found.path, found.tta) == ((b, "-"), ("identity", "hflip"))
    again = parse_command("evaluate", [a, b, "--to", str(stored)])
    assert (again.run, again.path, again.to) == (a, (b,), str(stored))


def test_other_validation_images_are_rejected_with_both_names(images: Path, runs: list[str], tmp_path: Path) -> None:
    held_out = shutil.copytree(images / "train", tmp_path / "flat")  # class folders only: the seed draws validation
    drawn = [member(tmp_path / f"s{seed}", held_out, seed=seed, data={"val_fraction": 0.4}) for seed in range(2)]
    fewer = photos(tmp_path / "fewer", 4)
    other = photos(tmp_path / "other", side=21)
    moved = shutil.copytree(images, tmp_path / "moved")
    (moved / "val" / "ant" / "0.png").rename(moved / "val" / "bee" / "0 .png")
    for first, second, text in (
        (*drawn, "8 and 8 images, "),
        (runs[0], member(tmp_path / "y", fewer), "20 and 16 images, 16 of them in both"),
        (runs[0], member(tmp_path / "m", moved), "20 and 20 images, 19 of them in both"),
        (runs[0], member(tmp_path / "z", other), "other contents under the same names"),
    ):
        with pytest.raises(ValueError) as caught:
            evaluated([first, second])
        assert f"{first} and {second} were not validated on the same images ({text}" in str(caught.value)
        assert str(caught.value).endswith(f"cls evaluate {first} {second} FOLDER")
    copied = member(tmp_path / "copied", shutil.copytree(images, tmp_path / "copy"))
    assert evaluated([runs[0], copied])["images"] == 20  # the same images in another place


def test_the_words_of_a_command_are_runs_then_images(runs: list[str], images: Path) -> None:
    stop, test = StopSignal(), str(images / "test")
    for command, text in (
        (Predict(run=runs[0], path=(test, runs[1])), "is a trained model, but follows the images"),
        (Predict(run=runs[0], path=(runs[1],)), "there is nothing to predict"),
        (Evaluate(run=runs[0], path=(runs[1], test, test)), "name one folder or table of labelled images"),
        (Evaluate(run=runs[0], to="x"), "--to is for several runs on their own images"),
        (Evaluate(run=runs[0], path=(runs[1], test), to="x"), "--to is for several runs on their own images"),
        (Evaluate(run=runs[0], path=(runs[1],), to=runs[0]), f"{runs[0]} holds a run"),
    ):
        with pytest.raises(ValueError, match=text):
            command.do(stop)
    document, _ = Evaluate(run=runs[0], path=(runs[1], test), device="cpu", workers=0).do(stop)
    assert [row["run"] for row in document["members"]] == runs[:2]
    command = Evaluate.parse([runs[0], runs[1], "--data.path", test], "")
    assert (command.run, command.path) == (runs[0], (runs[1], test))
