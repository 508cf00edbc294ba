"""The reports' tables as sweeps: rows and figures as printed, what their runs differ in, each of them end to end."""

import csv
import dataclasses
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from cls import recipes
from cls.commands.main import parse_command
from cls.commands.parsing import parse_run
from cls.commands.sweep.local import gpus_of_jobs, run_members, slots_of
from cls.commands.sweep.members import Member, find_members
from cls.commands.sweep.table import _squared, row_curves
from cls.config import Run, change, flat, to_yaml
from cls.evaluation.predictions import Predictions, write_parquet
from cls.models.backbones import plain
from cls.recipes.tables import SWEEPS, chosen, figure
from cls.runtime.signals import StopSignal
from cls.runtime.system import cores
from cls.tracking.events import read_events
from cls.tracking.goodput import attempts
from cls.training.checkpoint import checkpoints, verify
from tests.harness import ROOT, environment
from tests.harness.faults import narrow
from tests.harness.runs import Runs, submit

# Typed off the reports' summary by hand: row, validation / test. A dash is where a report has no figure.
TABLES = {
    "systems": "attention-gate –/–, cbam-mixup .91/–, mlp-head .93/.96, se-resnext .8567/.91, resnet50-mlp .86/.92",
    "attention-gate/classifier": "plain –/–, gate –/–, ResNeXtL –/–",
    "cbam-mixup/mixup": "off –/–, always –/–",
    "cbam-mixup/cbam": "off –/–, on –/–",
    "cbam-mixup/dropout3": "off –/–, on –/–",
    "cbam-mixup/combined": "nothing added –/–, mixup –/–, and CBAM –/–, and dropout –/–",
    "cbam-mixup/random-mixup": "always –/–, random .91/–",
    "cbam-mixup/position": "after layer1 –/–, after layer2 –/–, after layer3 –/–, after layer4 –/–",
    "cbam-mixup/backbone": "resnet50 –/–, resnext50_32x4d –/–, resnext101_32x8d –/–",
    "cbam-mixup/frozen": "none –/–, layer1+layer2 –/–",
    "mlp-head/depth": "R34_64 .86/–, R50_64 .90/.92, R101_32 .88/.92, R101_64 last 2 .89/.93, R101_64 last 1 .89/.92, "
    "X50_32 .91/.94",
    "mlp-head/weights": "none .50/–, DEFAULT .89/.92, V2 .89/.93",
    "mlp-head/heads-r50": "V0 .92/.93, V1 .90/.94, V2 .90/.94, V3 .90/.95, V4 .88/.93",
    "mlp-head/heads-r101": "V1 .89/.93, V2 .90/.94, V3 .88/.94, V4 .89/.93",
    "mlp-head/heads-x50": "V0 .92/.94, V1 .92/.94, V2 .90/.94, V3 .91/.94",
    "mlp-head/heads": "V0 .93/.95, V1 .93/.96, V2 .92/.94, V3 .93/.94",
    "mlp-head/schedule": "fixed (V0) .89/.93, cosine T50 (V0) .92/.93, cosine T50 (V1) .90/.93, "
    "cosine T80 (V1) .90/.94",
    "mlp-head/dropout": ".25 .91/.94, .5 .92/.94",
    "se-resnext/techniques": "off –/–, on .8567/.91",
    "se-resnext/backbone": "resnext50_32x4d .86/–, resnetrs50 .90/–, seresnext101d_32x8d .91/–",
    "resnet50-mlp/parts": "whole –/.92, no MLP –/.912, no mixup –/.91",
    "best/systems": "attention-gate –/–, cbam-mixup –/–, mlp-head –/–, se-resnext –/–, resnet50-mlp –/–, "
    "plain baseline –/–, best –/–",
    "best/parts": "whole –/–, no TrivialAugment –/–, no mixup –/–, whole from the start –/–, one rate –/–, "
    "no average –/–",
}
SYSTEMS = ("systems", "best/systems")  # their rows differ in everything

V0, V1 = "dropout:0.5", "500 relu dropout:0.5"
V2, V3 = "500 relu 250 dropout:0.5", "500 bn relu 250 relu dropout:0.5"
V4 = "1024 bn relu dropout:0.5 512 bn relu dropout:0.4 256 bn relu dropout:0.3"
LAST2, LAST1 = ("stem", "layer1", "layer2"), ("stem", "layer1", "layer2", "layer3")
PIXELS = ("frame", "hflip", "trivialaugment")
DEEP = "bn 1024 relu dropout:0.5 512 relu dropout:0.5"

# every field in which the rows of a table differ, with its values in the order of the rows
ABOUT: dict[str, dict[str, list[Any]]] = {
    "attention-gate/classifier": {"model.gate": [0, 500, 500], "model.head": ["", "bn 512 relu dropout:0.5", DEEP]},
    "cbam-mixup/mixup": {"augment.mixup": [0.0, 0.2]},
    "cbam-mixup/cbam": {"model.cbam": [(), (4,)]},
    "cbam-mixup/dropout3": {"model.dropout3": [0.0, 0.2]},
    "cbam-mixup/combined": {
        "augment.mixup": [0.0, 0.2, 0.2, 0.2],
        "model.cbam": [(), (), (4,), (4,)],
        "model.dropout3": [0.0, 0.0, 0.0, 0.2],
    },
    "cbam-mixup/random-mixup": {"augment.mix_probability": [1.0, 0.5]},
    "cbam-mixup/position": {"model.cbam": [(1,), (2,), (3,), (4,)]},
    "cbam-mixup/backbone": {
        "model.backbone": ["resnet50", "resnext50_32x4d", "resnext101_32x8d"],
        "optim.patience": [2, 2, 3],
    },
    "cbam-mixup/frozen": {"model.freeze": [(), ("layer1", "layer2")]},
    "mlp-head/depth": {
        "model.backbone": ["resnet34", "resnet50", "resnet101", "resnet101", "resnet101", "resnext50_32x4d"],
        "model.weights": ["IMAGENET1K_V1", "DEFAULT"] + ["IMAGENET1K_V2"] * 4,
        "model.head": [V0, V0, V0, V1, V1, V1],
        "optim.schedule": ["fixed"] * 3 + ["cosine"] * 3,
        "model.freeze": [(), (), (), LAST2, LAST1, ()],
        "train.batch": [64, 64, 32, 64, 64, 32],
        "optim.lr_batch": [64, 64, 32, 64, 64, 32],
        "train.micro_batch": [16, 16, 8, 16, 16, 8],
    },
    "mlp-head/weights": {"model.weights": ["none", "DEFAULT", "IMAGENET1K_V2"]},
    "mlp-head/heads-r50": {"model.head": [V0, V1, V2, V3, V4]},
    "mlp-head/heads-r101": {"model.head": [V1, V2, V3, V4]},
    "mlp-head/heads-x50": {"model.head": [V0, V1, V2, V3]},
    "mlp-head/heads": {"model.head": [V0, V1, V2, V3]},
    "mlp-head/schedule": {
        "model.head": [V0, V0, V1, V1],
        "optim.schedule": ["fixed", "cosine", "cosine", "cosine"],
        "optim.t_max": [80, 50, 50, 80],
    },
    "mlp-head/dropout": {"model.head": ["dropout:0.25", V0]},
    "se-resnext/techniques": {
        "augment.blur": [0, 3],
        "augment.hflip": [0.0, 0.5],
        "augment.rotate": [0.0, 15.0],
        "model.head": ["", "dropout:0.5"],
        "optim.weight_decay": [0.0, 1e-3],
        "optim.schedule": ["fixed", "plateau"],
    },
    "se-resnext/backbone": {
        "model.backbone": [
            "timm/resnext50_32x4d.a1h_in1k", "timm/resnetrs50.tf_in1k", "timm/seresnext101d_32x8d.ah_in1k",
        ],
    },
    "resnet50-mlp/parts": {"model.head": ["512 bn silu dropout:0.5", "", "512 bn silu dropout:0.5"],
                           "augment.mixup": [0.2, 0.2, 0.0]},
    "best/parts": {
        "augment.order": [PIXELS, PIXELS[:2], PIXELS, PIXELS, PIXELS, PIXELS],
        "augment.trivialaugment": [True, False, True, True, True, True],
        "augment.mixup": [0.1, 0.1, 0.0, 0.1, 0.1, 0.1],
        "optim.head_epochs": [1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
        "optim.stage_decay": [0.7, 0.7, 0.7, 0.7, 1.0, 0.7],
        "optim.ema": [0.999, 0.999, 0.999, 0.999, 0.999, 0.0],
    },
}  # fmt: skip

# what all rows of a table have in common, where its name alone does not say so
COMMON = {
    "mlp-head/heads-r50": {"model.backbone": "resnet50", "optim.min_lr": 5e-5},
    "mlp-head/heads-r101": {"model.backbone": "resnet101", "model.freeze": LAST2, "train.batch": 64},
    "mlp-head/heads-x50": {"model.backbone": "resnext50_32x4d", "train.batch": 32},
    "mlp-head/heads": {"model.backbone": "resnext101_32x8d", "optim.min_lr": 5e-5, "train.batch": 64},
    "cbam-mixup/cbam": {"augment.mixup": 0.2, "augment.mix_probability": 1.0, "model.dropout3": 0.0},
    "cbam-mixup/mixup": {"augment.mix_probability": 1.0, "model.cbam": (), "model.dropout3": 0.0},
    "cbam-mixup/dropout3": {"augment.mixup": 0.2, "augment.mix_probability": 1.0, "model.cbam": (4,)},
    "mlp-head/weights": {"model.backbone": "resnet50", "model.head": V0, "optim.schedule": "fixed"},
    "mlp-head/schedule": {"model.backbone": "resnet50"},
    "mlp-head/dropout": {"model.backbone": "resnext50_32x4d"},
}


def printed(name: str) -> list[tuple[str, str, str]]:
    """The expected rows: name, validation, test."""
    rows = []
    for text in TABLES[name].split(", "):
        row, _, figures = text.rpartition(" ")
        validation, test = figures.split("/")
        rows.append((row.replace("+", ", "), validation, test))
    return rows


def test_the_tables_are_those_of_the_reports() -> None:
    assert list(SWEEPS) == list(TABLES) and set(ABOUT) == set(TABLES) - set(SYSTEMS)


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_figures_are_as_printed(name: str) -> None:
    found = [(row.name, figure(row.validation), figure(row.test)) for row in SWEEPS[name].rows]
    assert found == printed(name)
    assert not any(sign.isdigit() for sign in SWEEPS[name].finding.replace("ResNeXtL", "").replace("layer4", ""))


@pytest.mark.parametrize("name", ABOUT)
def test_the_rows_differ_in_what_the_table_is_about_and_in_nothing_else(name: str) -> None:
    rows = [flat(recipes.get(row.recipe)) for row in SWEEPS[name].rows]
    fields = [field for field in rows[0] if field != "recipe" and len({str(row[field]) for row in rows}) > 1]
    assert {field: [row[field] for row in rows] for field in fields} == ABOUT[name]
    for field, value in COMMON.get(name, {}).items():
        assert {row[field] for row in rows} == {value}
    assert all(row.recipe.startswith(name.split("/")[0]) for row in SWEEPS[name].rows)


def test_a_page_names_the_sweeps_of_its_system() -> None:
    for system in ("attention-gate", "cbam-mixup", "mlp-head", "se-resnext", "resnet50-mlp"):
        own = [name for name in TABLES if name.startswith(f"{system}/")]
        assert own and list(chosen(system)) == own
        for recipe in [name for name in recipes.RECIPES if name.startswith(system)]:
            lines = [line.split()[:3] for line in recipes.page(recipe).splitlines() if "cls sweep" in line]
            assert lines[-len(own) :] == [["cls", "sweep", name] for name in own]
    assert "cls sweep" not in recipes.page("digits")


def test_a_recipes_line_ends_with_its_figures() -> None:
    lines = recipes.describe()
    assert lines["mlp-head-x101-v3"][1].endswith("(report: .93 / .94)")
    assert lines["resnet50-mlp-plain"][1] == "no MLP: only the output layer (report: – / .912)"
    assert "report:" not in lines["mlp-head-v4"][1]


# --- end to end ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three colours, the test images labelled; the file with ResNet-50's V2 weights, of a narrow one; and
    weights of a small ResNeXt."""
    root = tmp_path_factory.mktemp("sweeps")
    for split, count in ("photos/train", 4), ("photos/val", 2), ("photos/test", 3):
        for label in range(3):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                colour = (label * 80, 200, 120 + 20 * (i % 5))
                picture = Image.new("HSV", (40, 36 + i % 8), colour).convert("RGB")
                picture.save(folder / f"{folder.parent.name}{label}{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch.setattr)
        weights, small = plain("resnet50").state_dict(), plain("resnext14_8x8d").state_dict()
    file = root / "torch" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    file.parent.mkdir(parents=True)
    torch.save(weights, file)
    save_file(small, root / "pretrained.safetensors")
    return root


@dataclass(frozen=True)
class Server:
    """Real runs in forked processes; the ResNets are narrow, no plots are drawn."""

    env: dict[str, str]

    def run(self, argv: list[str], log: Path) -> None:
        """A run that must end well."""
        request = {"argv": argv, "cwd": os.getcwd(), "env": self.env, "world": 1, "fault": "", "patch": ""}
        with log.open("w") as file:
            _, answers = submit(self.env["HARNESS_SERVER"], request, (file.fileno(), file.fileno()))
            assert json.loads(next(answers)) == [0], log.read_text()


@pytest.fixture(scope="module")
def server(runs: Runs, place: Path) -> Server:
    extra = {
        "HARNESS_NARROW": "1",
        "HARNESS_NO_PLOTS": "1",
        "HARNESS_NO_PROBE": "1",
        "TORCH_HOME": str(place / "torch"),
    }
    return Server(environment(PYTHONPATH=str(ROOT), HARNESS_SERVER=runs.address, **extra))


# two steps of everything; a table about the backbone or its weights keeps its own
SMALL_BATCH = "--train.batch 8 --train.micro-batch 4 --optim.lr-batch 8"
TOY = """
--data.size 32 --data.workers 0 --train.epochs 1
--track.wandb disabled --train.device cpu --train.keep 1
"""
BACKBONE, NO_WEIGHTS = "--model.backbone resnext14_8x8d", "--model.weights none"
OWN_BACKBONE = ("mlp-head/depth", "cbam-mixup/backbone", "se-resnext/backbone")
WEIGHTS = "mlp-head/weights"  # its rows are recipes of the depth table, which has no weights here
HEAD_FIRST = ("best/systems", "best/parts")  # an epoch of the head on pretrained features, then one of the network


def toy(place: Path, name: str) -> list[str]:
    words = [*shlex.split(SMALL_BATCH), *shlex.split(TOY), "--data.path", str(place / "photos")]
    if name == WEIGHTS:
        return words
    if name in HEAD_FIRST:
        weights = str(place / "pretrained.safetensors")
        longer = shlex.split("--train.epochs 2 --optim.warmup 0.5")
        return [*words, *shlex.split(BACKBONE), "--model.weights", weights, *longer]
    return [*words, *shlex.split(NO_WEIGHTS), *([] if name in OWN_BACKBONE else shlex.split(BACKBONE))]


def cls_sweep(*words: str) -> Any:
    return parse_command("sweep", list(words)).do(StopSignal())[0]


def carry(server: Server, members: list[dict[str, Any]]) -> int:
    """Run the command lines of members that are not done; how many there were."""
    todo = [member for member in members if member["state"] != "done"]
    for member in todo:
        words = shlex.split(member["command"])
        assert words[:3] == ["accelerate", "launch", "train.py"]
        Path(member["run"]).parent.mkdir(exist_ok=True)
        server.run(words[3:], Path(member["run"] + ".log"))
    return len(todo)


# Runs that a table adds to those of the tables before it: "systems" adds mlp-head, whose cosine ends lower.
NEW = {
    "attention-gate/classifier": 3, "cbam-mixup/mixup": 2, "cbam-mixup/cbam": 1, "cbam-mixup/dropout3": 1,
    "cbam-mixup/combined": 0, "cbam-mixup/random-mixup": 1, "cbam-mixup/position": 3, "cbam-mixup/frozen": 1,
    "mlp-head/heads-r50": 5, "mlp-head/heads-r101": 4, "mlp-head/heads-x50": 0, "mlp-head/heads": 0,
    "mlp-head/schedule": 3, "mlp-head/dropout": 1, "se-resnext/techniques": 2, "resnet50-mlp/parts": 3, "systems": 1,
    "mlp-head/depth": 6, "cbam-mixup/backbone": 3, "se-resnext/backbone": 3, "mlp-head/weights": 3, "best/systems": 7,
    "best/parts": 6,
}  # fmt: skip


# one of each kind: with a run of the one before, with own weights, with own backbones, with the head first
SOME = {"cbam-mixup/mixup": 2, "cbam-mixup/cbam": 1, "mlp-head/weights": 3, "se-resnext/backbone": 3, "best/parts": 6}


@pytest.mark.integration
@pytest.mark.parametrize("new", [SOME, pytest.param(NEW, marks=pytest.mark.soak)], ids=["some", "all"])
def test_every_table_end_to_end(new: dict[str, int], server: Server, place: Path, tmp_path: Path) -> None:
    """In one folder, in which a run that stands in several tables is there once; a table is whole when all are done."""
    assert set(new) == set(TABLES) or new == SOME
    for name in new:
        own = name in (*OWN_BACKBONE, WEIGHTS, *HEAD_FIRST)
        out = tmp_path / (name.replace("/", "-") if own else "runs")
        words = [name, "--seeds", "1", *toy(place, name), "--out", str(out)]
        assert carry(server, cls_sweep(*words)["members"]) == new[name], name
        document = cls_sweep(*words)
        assert {member["state"] for member in document["members"]} == {"done"}
        (table,) = document["sweeps"]
        check_table(name, table)


def check_table(name: str, table: dict[str, Any]) -> None:
    """All rows, each with the report's figures and ours, in the document, in Markdown and in CSV."""
    rows = table["rows"]
    assert [row["row"] for row in rows] == [row for row, _, _ in printed(name)]
    for row, (_, validation, test) in zip(rows, printed(name), strict=True):
        (out,) = row["runs"]
        assert (row["validation"], row["test"]) == (score(out, "val", 6), score(out, "test", 9))
        assert (row["seeds"], row["missing"], row["validation_sd"]) == ([0], {}, None)
        assert (figure(row["report_validation"]), figure(row["report_test"])) == (validation, test)
    markdown, comma, picture = (Path(file) for file in table["files"])
    with Image.open(picture) as image:
        assert image.format == "PNG"
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("| ") and "---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][2:6] == ["report val", "report test", "our val", "our test"]
    assert [(c[0], c[2], c[3]) for c in cells[1:]] == printed(name)
    assert [c[4:6] for c in cells[1:]] == [[f"{row['validation']:.4f}", f"{row['test']:.4f}"] for row in rows]
    with comma.open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["validation"]) for row in written] == [row["validation"] for row in rows]
    assert {row["validation_sd"] for row in written} == {""}  # of one seed


def score(out: str, split: str, images: int) -> float:
    """Accuracy by another way: the stored names."""
    table = pq.read_table(Path(out) / "predictions" / f"{split}.parquet").to_pydict()
    assert len(table["label"]) == images
    return sum(a == b for a, b in zip(table["label"], table["predicted"], strict=True)) / images


# --- running here ---

# 18 steps with a checkpoint after each of the 12 epochs
LONGER = "--train.epochs 12 --model.backbone resnext14_8x8d --model.weights none"


@dataclass(frozen=True)
class Local:
    """The command in a process of its own, running the four members of a sweep here."""

    server: Server
    folder: Path
    photos: Path

    @property
    def words(self) -> list[str]:
        launch = shlex.join([sys.executable, str(ROOT / "tests" / "harness" / "launcher.py")])
        own = ["mlp-head/dropout", "--seeds", "2", "--run", "True", "--launch", launch, "--out", str(self.folder)]
        return [*own, *shlex.split(f"{SMALL_BATCH} {TOY} {LONGER}"), "--data.path", str(self.photos)]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from cls.commands.main import main; main()", "sweep", *self.words, "--json"]
        pipe = subprocess.PIPE
        env = self.server.env | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, cwd=self.folder)

    def member(self, row: str, seed: int) -> Path:
        return self.folder / f"mlp-head-x50-dropout{row}-seed{seed}"

    def when_saved(self, out: Path, attempt: int) -> int:
        """The process id of a member that is in this attempt, once it has written a checkpoint in it."""
        until = time.monotonic() + 200
        while not any(event["event"] == "save" and event["attempt"] == attempt for event in read_events(out)):
            assert time.monotonic() < until
            time.sleep(0.005)
        return int(json.loads((out / "lock").read_text())["pid"])


@pytest.mark.soak
def test_members_are_run_skipped_continued_and_reported(server: Server, place: Path) -> None:
    """Of four members one is done, one is killed, one cannot be written and one ends well; then the others."""
    local = Local(server, place / "local", place / "photos")
    local.folder.mkdir()
    done, killed, foreign = local.member("25", 0), local.member("25", 1), local.member("50", 0)
    (first,) = [m for m in cls_sweep(*local.words, "--run", "False")["members"] if m["run"] == str(done)]
    server.run(shlex.split(first["command"])[2:], place / "first.log")
    record = (done / "metrics.jsonl").read_bytes()
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")

    process = local.start()
    os.kill(local.when_saved(killed, 0), signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    document = json.loads(output)
    assert [m["state"] for m in document["members"]] == ["done", "killed", "not started", "done"]
    assert document["failed"][str(killed)] == "killed: SIGKILL"
    assert "holds other files and no config.yaml" in document["failed"][str(foreign)]
    assert "1 of 4 are done or running elsewhere" in errors and f"user error: out: {foreign} holds other" in errors
    assert "user error: 2 members failed; the same command tries them again" in errors
    assert (done / "metrics.jsonl").read_bytes() == record
    rows = document["sweeps"][0]["rows"]
    assert [(row["seeds"], row["missing"]) for row in rows] == [([0], {"1": "killed"}), ([1], {"0": "not started"})]

    process = local.start()
    local.when_saved(killed, 1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 85 and output == "" and "stopped: SIGINT" in errors and "Traceback" not in errors
    end = json.loads((killed / "exit.json").read_text())
    newest = checkpoints(killed / "checkpoints")[-1]
    assert end["outcome"] == "stopped" and newest.name == f"step-{end['step']:07d}" and verify(newest) == ""
    assert 0 < end["step"] < 18 and not (killed / "lock").exists() and (foreign / "thesis.tex").exists()

    (foreign / "thesis.tex").unlink()
    process = local.start()
    os.kill(local.when_saved(killed, 2), signal.SIGKILL)  # it has taken its earlier exit.json away and leaves none
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and json.loads(output)["failed"] == {str(killed): "killed: SIGKILL"}, errors
    assert [m["state"] for m in json.loads(output)["members"]] == ["done", "killed", "done", "done"]

    process = local.start()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    document = json.loads(output)
    assert {m["state"] for m in document["members"]} == {"done"} and document["failed"] == {}
    assert [attempt["outcome"] for attempt in attempts(read_events(killed))] == ["killed", "stopped", "killed", "done"]
    assert attempts(read_events(killed))[2]["step"] == end["step"]
    for row, part in zip(document["sweeps"][0]["rows"], ("25", "50"), strict=True):
        scores = [score(str(local.member(part, seed)), "val", 6) for seed in (0, 1)]
        assert (row["validation"], row["validation_sd"]) == (statistics.mean(scores), statistics.stdev(scores))
    assert "2 of 2" in errors


SCRIPT = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[1]); out.mkdir()
(out / "gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
(out / "cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
until = time.monotonic() + 60
while out.name in ("a", "b") and not (out.parent / "ab".replace(out.name, "")).exists():  # each waits for the other
    assert time.monotonic() < until
    time.sleep(0.01)
running = [path.name for path in out.parent.iterdir() if path.is_dir() and not (path / "exit.json").exists()]
(out / "running").write_text(" ".join(running))
(out / "exit.json").write_text(json.dumps({"outcome": "done" if out.name != "c" else "data", "reason": "as planned"}))
"""


@pytest.mark.integration
def test_several_members_run_at_once_on_a_gpu_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    outs = [tmp_path / name for name in "abcd"]
    members = [Member(run=Run(out=str(out)), precision="", state="") for out in outs]
    commands = [[sys.executable, str(tmp_path / "script.py"), str(out)] for out in outs]
    failed = run_members(members, commands, 2, StopSignal(), jobs=2)
    assert failed == {str(tmp_path / "c"): "data: as planned"}
    assert [(out / "gpus").read_text() for out in outs[:2]] == ["4", "5"]
    assert all((out / "gpus").read_text() in ("4", "5") for out in outs)
    assert all(1 <= len((out / "running").read_text().split()) <= 2 for out in outs)
    said = capfd.readouterr().err
    assert "[4/4] done: as planned" in said
    if each := cores() // 2:  # else there is one core, which both have
        assert f"2 at once, each on {each} of {cores()} cores" in said
        first, second, *others = [set(json.loads((out / "cores").read_text())) for out in outs]
        assert len(first) == len(second) == each and not first & second
        assert first | second <= os.sched_getaffinity(0) and all(one in (first, second) for one in others)
    assert gpus_of_jobs(1) == [""]  # one run has them all
    with pytest.raises(ValueError, match="jobs is 4, but there are 3 GPUs"):
        gpus_of_jobs(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus_of_jobs(2) == ["", ""]


@pytest.mark.parametrize(
    ("own", "usable", "jobs", "runs", "shares"),
    [
        (range(8), 8, 1, 9, [()]),
        (range(8), 8, 2, 9, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (range(8), 8, 3, 9, [(0, 1), (2, 3), (4, 5)]),
        (range(8), 8, 3, 2, [(0, 1, 2, 3), (4, 5, 6, 7), ()]),  # the third has no run
        (range(8), 8, 3, 1, [(), (), ()]),
        ((1, 3, 64, 70), 4, 2, 9, [(1, 3), (64, 70)]),
        (range(64), 16, 8, 8, [(2 * i, 2 * i + 1) for i in range(8)]),  # a quota of 16 on a machine of 64
        (range(2), 2, 4, 4, [(), (), (), ()]),
    ],
)
def test_jobs_at_once_have_cores_of_their_own(
    own: Sequence[int],
    usable: int,
    jobs: int,
    runs: int,
    shares: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(own))
    monkeypatch.setattr("cls.commands.sweep.local.cores", lambda: usable)
    assert [tuple(sorted(slot.cores)) for slot in slots_of(jobs, runs)] == shares


@pytest.mark.soak
def test_members_under_the_real_launcher(place: Path, tmp_path: Path) -> None:
    """``accelerate launch`` exits at once on a signal; its run saves, and resumes the next time."""
    words = ["mlp-head/dropout", "--seeds", "1", "--run", "True", "--out", str(tmp_path)]
    words += [*shlex.split(f"{SMALL_BATCH} {TOY} {LONGER} --train.epochs 40"), "--data.path", str(place / "photos")]
    command = [sys.executable, "-c", "from cls.commands.main import main; main()", "sweep", *words]
    pipe, out = subprocess.PIPE, tmp_path / "mlp-head-x50-dropout25-seed0"
    process = subprocess.Popen(command, env=environment(), stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    while not (out / "checkpoints").is_dir() or not checkpoints(out / "checkpoints"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "stopped: SIGINT" in process.communicate(timeout=300)[1] and process.returncode == 85
    assert json.loads((out / "exit.json").read_text())["outcome"] == "stopped"
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0 and [attempt["outcome"] for attempt in attempts(read_events(out))] == [
        "stopped",
        "done",
    ], ended.stderr


# --- what is in a folder ---

PATH = ["--data.path", "photos", "--train.micro-batch", "4"]


def planted(folder: Path, recipe: str, seed: int, right: int, name: str = "", **sections: Any) -> Path:
    """A finished run of this recipe with PATH, with so many of 8 validation images right; test has no labels."""
    out = folder / (name or f"{recipe}-seed{seed}")
    (out / "predictions").mkdir(parents=True)
    run = change(recipes.get(recipe), seed=seed, data={"path": "photos"}, train={"micro_batch": 4, "precision": "fp32"})
    (out / "config.yaml").write_text(to_yaml(change(run, **sections)))
    (out / "exit.json").write_text(json.dumps({"outcome": "done", "code": 0, "reason": "", "step": 9}))
    (out / "data.json").write_text('{"train": {"images": 8}}')
    labels = np.array([0] * right + [1] * (8 - right))
    for split, known in (("val", labels), ("test", np.full(8, -1))):
        p = Predictions(ids=[str(i) for i in range(8)], labels=known, probs=np.tile([0.9, 0.1], (8, 1)),
                        errors=[""] * 8, classes=("a", "b"), loss=right / 10)  # fmt: skip
        write_parquet(out / "predictions" / f"{split}.parquet", p)
    return out


HERE = str(Path(__file__).parent)


def dropout(folder: Path, *words: str, seeds: int = 3) -> Any:
    return cls_sweep("mlp-head/dropout", "--seeds", str(seeds), "--out", str(folder), *PATH, *words)


def test_the_mean_and_its_spread_are_those_of_the_seeds_that_are_done(tmp_path: Path, capfd: Any) -> None:
    for seed, right in ((0, 4), (1, 6), (2, 8)):
        planted(tmp_path, "mlp-head-x50-dropout25", seed, right)
    planted(tmp_path, "mlp-head-x50-dropout50", 2, 5)
    stopped = planted(tmp_path, "mlp-head-x50-dropout50", 1, 8)
    (stopped / "exit.json").write_text('{"outcome": "out_of_memory", "code": 5, "reason": "", "step": 3}')
    document = dropout(tmp_path)
    low, high = document["sweeps"][0]["rows"]
    assert (low["validation"], low["validation_sd"], low["validation_n"]) == (0.75, 0.25, 3)
    assert low["validation_loss"] == pytest.approx(0.6) and low["validation_loss_sd"] == pytest.approx(0.2)
    assert (low["test"], low["test_n"], low["missing"]) == (None, 0, {})
    assert (high["validation"], high["validation_sd"], high["seeds"]) == (0.625, None, [2])
    assert high["missing"] == {0: "not started", 1: "out_of_memory"}
    line = (tmp_path / "mlp-head-dropout.md").read_text().splitlines()[5]
    cells = [".5", "mlp-head-x50-dropout50", ".92", ".94", "0.6250", "–", "0.5000", "1 of 3",
             "0 not started, 1 out of memory"]  # fmt: skip
    assert line == "| " + " | ".join(cells) + " |"
    shown = capfd.readouterr().err
    assert "0.7500 ± 0.2500" in shown and "0 not started, 1 out of memory" in shown


def test_the_rows_are_drawn_with_their_seeds(tmp_path: Path) -> None:
    """Of a row with a finished run its finished ones, of another those begun; without records there is no picture."""
    names = ("mlp-head-x50-dropout25", 0), ("mlp-head-x50-dropout25", 1), ("mlp-head-x50-dropout50", 0)
    outs = [planted(tmp_path, name, seed, 4) for name, seed in names]
    (outs[2] / "exit.json").unlink()
    assert [Path(file).suffix for file in dropout(tmp_path)["sweeps"][0]["files"]] == [".md", ".csv"]
    for number, out in enumerate(outs[1:]):
        row = {"step": 3, "epoch": 1, "val/loss": 1.0 + number, "val/accuracy": 0.5, "train/epoch_loss": 2.0}
        (out / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    files = dropout(tmp_path)["sweeps"][0]["files"]
    assert files[2] == str(tmp_path / "mlp-head-dropout.png")
    with Image.open(files[2]) as image:
        assert image.format == "PNG" and min(image.size) > 1000
    members = find_members(chosen("mlp-head/dropout"), 3, {"data.path": "photos", "train.micro_batch": 4}, tmp_path)
    groups = row_curves({row: own for (_, row), own in members.items()})
    assert [(group.name, [run["val/loss"] for run in group.runs]) for group in groups] == [
        (".25", [{1: 1.0}]), (".5", [{1: 2.0}]),
    ]  # fmt: skip


def test_squared_errors_beside_log_losses_are_named(tmp_path: Path) -> None:
    assert _squared({"a": "ce", "b": "ce"}) == _squared({"a": "mse"}) == ""
    said = " val loss: the squared error for b, c, the log loss for the others."
    assert _squared({"a": "ce", "b": "mse", "c": "mse"}) == said
    members = find_members(chosen("systems"), 1, {"data.path": "photos"}, tmp_path)
    for own in members.values():
        out = own[0].path
        planted(tmp_path, own[0].run.recipe, 0, 4, name=out.name)
        (out / "metrics.jsonl").write_text('{"step": 3, "epoch": 1, "val/loss": 1.0, "val/accuracy": 0.5}\n')
    members = find_members(chosen("systems"), 1, {"data.path": "photos", "train.micro_batch": 4}, tmp_path)
    losses = {group.name: group.loss for group in row_curves({row: own for (_, row), own in members.items()})}
    assert len(losses) == 5 and [name for name, loss in losses.items() if loss == "mse"] == ["attention-gate"]


def test_a_run_is_found_by_what_it_is(tmp_path: Path) -> None:
    """Whatever its directory is called, and under another recipe's name when that is the same run."""
    planted(tmp_path, "mlp-head-x50-dropout25", 0, 4, "001")
    same = planted(tmp_path, "mlp-head-x50-v0", 0, 6)  # V0 has dropout .5
    planted(tmp_path, "mlp-head-x50-v2", 0, 8)  # no row of this table
    document = dropout(tmp_path, seeds=1)
    rows = document["sweeps"][0]["rows"]
    assert [row["runs"] for row in rows] == [[str(tmp_path / "001")], [str(same)]]
    assert [row["validation"] for row in rows] == [0.5, 0.75]
    assert shlex.split(document["members"][1]["command"])[3:8] == ["mlp-head-x50-v0", "--seed", "0", "--out", str(same)]


def test_a_run_with_another_configuration_is_rejected_with_the_difference(tmp_path: Path) -> None:
    out = planted(tmp_path, "mlp-head-x50-dropout25", 1, 4, optim={"lr": 3e-4}, train={"epochs": 7})
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.0003 -> 0\.0001\n  train\.epochs: 7 -> 100") as caught:
        dropout(tmp_path)
    assert str(out) in str(caught.value) and "another --out" in str(caught.value)
    dropout(tmp_path, seeds=1)  # not one of its members


def test_precisions_and_images_are_never_mixed(tmp_path: Path) -> None:
    planted(tmp_path, "mlp-head-x50-dropout25", 0, 4)
    other = planted(tmp_path, "mlp-head-x50-dropout50", 0, 4, train={"precision": "bf16"})
    with pytest.raises(ValueError, match=r"dropout25-seed0 was trained with train.precision fp32, .* with bf16"):
        dropout(tmp_path)
    with pytest.raises(ValueError, match="'bf16' -> 'fp32'"):
        dropout(tmp_path, "--train.precision", "fp32")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("bf16", "fp32"))
    dropout(tmp_path)
    (other / "data.json").write_text('{"train": {"images": 9}}')
    with pytest.raises(ValueError, match=r"dropout25-seed0 and .*dropout50-seed0 were trained or validated on other"):
        dropout(tmp_path)


def test_a_shorter_run_is_not_done(tmp_path: Path) -> None:
    """train.max_steps may change when a run resumes, so it is no difference; but the figures are of another length."""
    planted(tmp_path, "mlp-head-x50-dropout25", 0, 4, train={"max_steps": 2})
    assert dropout(tmp_path, seeds=1)["members"][0]["state"] == "stopped"
    assert dropout(tmp_path, "--train.max-steps", "2", seeds=1)["members"][0]["state"] == "done"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("mlp-head/head",), "is neither a sweep nor a directory; did you mean mlp-head/heads"),
        (("mlp-head/heads", "--seed", "3"), "seed: a sweep has several; --seeds 3 takes 0, 1 and 2"),
        (("mlp-head/heads", "--seeds", "-1"), "seeds is -1: it must be 1 or more"),
        (("mlp-head/heads", "--model.head", "bn"), "rows V0 and V1 are the same run with these fields"),
        (("mlp-head/heads", "--train.batch", "7"), "mlp-head-x101-v0: train.micro_batch is 16, which does not divide"),
        (("mlp-head/heads", "--run", "True"), "data.path is empty"),
        (("mlp-head/heads", "--run", "True", "--data.path", "x", "--launch", "python none.py"), "there is no none.py"),
        (("mlp-head/heads", "--run", "True", "--data.path", "x", "--launch", "pythn train.py"), "program 'pythn'"),
        (("--data.path", "x", "mlp-head/heads"), "the sweep is the first word"),
        (("--seeds", "2"), "these options need a sweep as the first word"),
        ((HERE, "--run", "True"), "these options need a sweep as the first word"),
        (("mlp-head/heads", "--data.path", "x", "--slurm", HERE), f"slurm: {HERE} is a folder: name a file"),
    ],
)
def test_what_cannot_be_swept_is_one_message(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        cls_sweep(*words)
    assert text in str(caught.value)


# --- elsewhere ---

FIELDS = ["--data.path", "my photos", "--train.micro_batch=4", "--model.freeze", "--optim.betas", "0.8", "0.9"]


def wanted(recipe: str, seed: int, out: str) -> Run:
    """The configuration that FIELDS make of a recipe, by hand."""
    sections: dict[str, Any] = {"model": {"freeze": ()}, "optim": {"betas": (0.8, 0.9)}}
    run = change(recipes.get(recipe), seed=seed, data={"path": "my photos"}, train={"micro_batch": 4}, **sections)
    return dataclasses.replace(run, out=out)


def test_the_lines_for_slurm_are_the_members_that_are_not_done(tmp_path: Path) -> None:
    folder, file = tmp_path / "the runs", tmp_path / "lines.txt"
    words = ["resnet50-mlp/parts", "--seeds", "2", "--out", str(folder), *FIELDS]
    out = planted(folder, "resnet50-mlp-plain", 1, 4)
    (out / "config.yaml").write_text(to_yaml(wanted("resnet50-mlp-plain", 1, str(out))))
    document = cls_sweep(*words, "--slurm", str(file))
    assert document["sbatch"] == f"CLS_SWEEP='{folder}' sbatch --array=1-5 slurm/sweep.sh {file}"
    found = []
    for line in file.read_text().splitlines():
        # as slurm/sweep.sh reads them
        read = subprocess.run(
            ["xargs", "-n", "1", "printf", "%s\\n"], input=f"{line} end", capture_output=True, text=True
        )
        found.append(parse_run(read.stdout.splitlines()[:-1]))
    names = ["resnet50-mlp", "resnet50-mlp", "resnet50-mlp-plain", "resnet50-mlp-mixup-off", "resnet50-mlp-mixup-off"]
    expected = [(name, seed) for name, seed in zip(names, (0, 1, 0, 0, 1), strict=True)]
    assert found == [wanted(name, seed, str(folder / f"{name}-seed{seed}")) for name, seed in expected]
    lines = file.read_bytes()
    with pytest.raises(ValueError, match="jobs may still read its lines"):
        cls_sweep("resnet50-mlp/parts", "--seeds", "1", "--out", str(folder), *FIELDS, "--slurm", str(file))
    assert file.read_bytes() == lines


def test_a_wandb_agent_starts_the_members(tmp_path: Path) -> None:
    """The agent's own functions make the command of each point of the grid; bash runs it, in any order."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # 3 s in every worker

    echo, file = tmp_path / "echo.py", tmp_path / "sweep.yaml"
    echo.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    launch = shlex.join([sys.executable, str(echo)])
    words = ["mlp-head/heads", "--seeds", "2", "--out", str(tmp_path / "the runs"), *FIELDS, "--launch", launch]
    assert cls_sweep(*words, "--wandb", str(file))["wandb"] == f"wandb sweep {file}"
    config = yaml.safe_load(file.read_text())
    assert (config["method"], config["program"], config["project"]) == ("grid", str(echo), "cls")
    names, seeds = config["parameters"]["recipe"]["values"], config["parameters"]["seed"]["values"]
    assert names == ["mlp-head-x101-v0", "mlp-head-eta5e-5", "mlp-head-x101-v2", "mlp-head-x101-v3"] and seeds == [0, 1]
    for name, seed, turn in ((names[0], 0, 1), (names[-1], 1, -1)):
        values = dict([("recipe", {"value": name}), ("seed", {"value": seed})][::turn])
        macros = create_sweep_command_args({"args": values}) | {"env": ["/usr/bin/env"]}
        command: list[str] = []
        for chunk in create_sweep_command(list(config["command"])):
            command += macros[chunk[2:-1]] if chunk.startswith("${") and chunk.endswith("}") else [chunk]
        argv = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert parse_run(argv) == wanted(name, seed, str(tmp_path / "the runs" / f"{name}-seed{seed}"))
