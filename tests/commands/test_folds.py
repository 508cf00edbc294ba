"""Cross-validation: ``cls sweep NAME --folds N``, its table, and the folds as one."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cls.commands.main import parse_command
from cls.commands.options import PredictOptions
from cls.commands.parsing import parse_run
from cls.commands.predict import predict_images
from cls.config import change, to_yaml
from cls.data.sources import load
from cls.evaluation.compare import compare
from cls.evaluation.predictions import read_parquet
from cls.evaluation.stats import wilson
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import keep, look
from tests.harness.runs import Runs
from tests.harness.untrained import CLASSES, photos

SMALL = shlex.split(
    "--data.size 16 --data.workers 0 --model.backbone timm/test_resnet --model.weights none --train.epochs 1 "
    "--train.batch 4 --train.micro-batch 4 --train.device cpu --track.wandb disabled"
)


def sweep(*words: str) -> Any:
    return parse_command("sweep", list(words)).do(StopSignal())[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training images of four classes, and as many validation images, which are left aside."""
    return photos(tmp_path_factory.mktemp("folds") / "photos")


def words(images: Path, out: Path, *more: str) -> list[str]:
    return ["mlp-head/dropout", "--data.path", str(images), "--out", str(out), *more, *SMALL]


def test_each_seed_has_a_member_for_each_fold(images: Path, tmp_path: Path) -> None:
    members = sweep(*words(images, tmp_path, "--folds", "3", "--seeds", "2"))["members"]
    assert [(m["recipe"][-2:], m["seed"], m["fold"]) for m in members] == [
        (row, seed, fold) for row in ("25", "50") for seed in (0, 1) for fold in ("1/3", "2/3", "3/3")
    ]
    for member in members:
        run = parse_run(shlex.split(member["command"])[3:])
        assert (run.recipe, run.seed, run.data.hold_out) == (member["recipe"], member["seed"], member["fold"])
        assert run.out == member["run"] and member["fold"].replace("/", "of") in run.out
    assert len({member["run"] for member in members}) == 12


def test_the_usual_number_of_seeds(images: Path, tmp_path: Path) -> None:
    count = {folds: len(sweep(*words(images, tmp_path, "--folds", folds))["members"]) for folds in ("0", "2", "5")}
    assert count == {"0": 2 * 3, "2": 2 * 2, "5": 2 * 5}


def test_a_recipe_alone(images: Path, tmp_path: Path) -> None:
    members = sweep("best-baseline/only", *words(images, tmp_path, "--folds", "2")[1:])["members"]
    assert [(m["recipe"], m["fold"]) for m in members] == [("best-baseline", "1/2"), ("best-baseline", "2/2")]
    with pytest.raises(ValueError, match="did you mean best-baseline"):
        sweep("best-baselin/only", *words(images, tmp_path)[1:])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--folds", "1"), "folds is 1: it must be 2 or more"),
        (("--folds", "-2"), "folds is -2"),
        (("--seeds", "-1"), "seeds is -1"),
        (("--folds", "3", "--data.hold-out", "1/4"), r"data\.hold_out is 1/4, which --folds sets"),
        (("--folds", "3", "--data.streaming", "True"), r"data\.streaming"),
    ],
)
def test_what_cannot_be_cross_validated_is_rejected(
    images: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(*words(images, tmp_path, *more))


def test_an_array_and_a_sweep_of_wandb_have_the_folds(images: Path, tmp_path: Path) -> None:
    lines, file = tmp_path / "lines.txt", tmp_path / "sweep.yaml"
    members = sweep(*words(images, tmp_path / "out", "--folds", "2", "--slurm", str(lines)))["members"]
    assert [shlex.split(line) for line in lines.read_text().splitlines()] == [
        shlex.split(member["command"])[3:] for member in members
    ]
    launch = f"{tmp_path / 'print.sh'} train.py"
    (tmp_path / "print.sh").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "print.sh").chmod(0o755)
    sweep(*words(images, tmp_path / "out", "--folds", "2", "--wandb", str(file), "--launch", launch))
    written = yaml.safe_load(file.read_text())
    assert written["parameters"]["fold"] == {"values": ["1/2", "2/2"]}
    bash = written["command"][written["command"].index("bash") : -1]
    given = ["seed=0", "fold=2/2", "recipe=mlp-head-x50-dropout25"]
    said = subprocess.run([*bash, *given], capture_output=True, text=True, check=True).stdout.splitlines()
    (member,) = (m for m in members if (m["recipe"], m["fold"]) == ("mlp-head-x50-dropout25", "2/2"))
    assert said[0] == "train.py" and parse_run(said[1:]) == parse_run(shlex.split(member["command"])[3:])


def begin(member: dict[str, Any]) -> None:
    """The files that a run writes when it has read its images."""
    run, out = parse_run(shlex.split(member["command"])[3:]), Path(member["run"])
    out.mkdir(parents=True)
    (out / "config.yaml").write_text(to_yaml(change(run, train={"precision": "fp32"})))
    keep(out, look(load(run.data, run.seed)))


@pytest.mark.parametrize("how", ["folds", "seeds", "drawn", "none"])
@pytest.mark.parametrize("change_one", ["remove", "relabel"])
def test_members_on_other_images_are_not_mixed(tmp_path: Path, how: str, change_one: str) -> None:
    """Folds, and seeds whose validation images are drawn, divide the same images differently."""
    root = photos(tmp_path / "photos")
    if how == "drawn":
        shutil.rmtree(root / "val")
    number = {"folds": ("--folds", "3"), "none": ("--seeds", "2", "--data.hold-out", "none", "--train.early-stop", "0")}
    given = words(root, tmp_path / "out", *number.get(how, ("--seeds", "2")))
    if how == "none":
        given += ["--optim.schedule", "fixed"]
    first, second, *_ = sweep(*given)["members"]
    begin(first)
    begin(second)
    sweep(*given)
    shutil.rmtree(second["run"])
    image = min((root / "train").rglob("*.png"))
    others = [folder for folder in (root / "train").iterdir() if folder != image.parent]
    image.rename(others[0] / "moved.png") if change_one == "relabel" else image.unlink()
    begin(second)
    with pytest.raises(ValueError, match="trained or validated on other images: delete the one"):
        sweep(*given)


def test_seeds_of_a_drawn_subset_have_their_own_images(tmp_path: Path) -> None:
    given = words(photos(tmp_path / "photos"), tmp_path / "out", "--seeds", "2", "--data.limit", "8")
    for member in sweep(*given)["members"]:
        begin(member)
    sweep(*given)


@pytest.mark.integration
def test_real_folds(images: Path, runs: Runs, tmp_path: Path) -> None:
    """Each training image is predicted once, by the run that did not train on it; three runs predict as one."""
    given = words(images, tmp_path / "out", "--folds", "3")
    (tmp_path / "out").mkdir()
    members = sweep(*given)["members"]
    for member in members:
        own = shlex.split(member["command"])[3:]
        place = own.index("--out")
        assert runs.run(Path(member["run"]), own[:place] + own[place + 2 :], HARNESS_NO_PLOTS="1").codes == [0]
        if member is members[0]:
            row = sweep(*given)["sweeps"][0]["rows"][0]
            assert row["missing"] == {"2/3": "not started", "3/3": "not started"} and row["cross_validated"] == {}
    (table,) = sweep(*given)["sweeps"]
    train = sorted(str(file.relative_to(images / "train")) for file in (images / "train").rglob("*.png"))
    for row, (first, *_) in zip(table["rows"], (members[:3], members[3:]), strict=True):
        together = row["cross_validated"][0]
        found = read_parquet(Path(together["predictions"]))
        assert sorted(name.removeprefix("train/") for name in found.ids) == train and found.classes == CLASSES
        parts = [read_parquet(Path(run) / "predictions" / "val.parquet") for run in row["runs"]]
        assert len(parts) == 3 and sum(len(part.ids) for part in parts) == 20
        right = sum(int((part.probs.argmax(1) == part.labels).sum()) for part in parts)
        assert together["accuracy"] == right / 20 and (together["low"], together["high"]) == wilson(right / 20, 20)
        shares = [float((part.probs.argmax(1) == part.labels).mean()) for part in parts]
        assert (
            row["validation"] == pytest.approx(np.mean(shares)) and row["missing"] == {} and first["run"] in row["runs"]
        )
        predict = shlex.split(together["predict"])
        assert predict[:2] == ["cls", "predict"] and predict[2:-1] == row["runs"]
    files = [row["cross_validated"][0]["predictions"] for row in table["rows"]]
    assert compare(files, "", "val")["images"] == 20
    head, *rows = [line for line in Path(table["files"][0]).read_text().splitlines() if line.startswith("| ")]
    assert "| folds |" in head and all("| 3 of 3 |" in line for line in rows)
    predict_images(
        table["rows"][0]["runs"], [str(images / "test")], PredictOptions(out=str(tmp_path / "one"), device="cpu"),
        StopSignal(),
    )  # fmt: skip
    assert len(read_parquet(tmp_path / "one" / "predictions.parquet").ids) == 20
    json.dumps(table)
