"""The reports' tables as sweeps: rows and figures as printed, what their runs differ in, each of them end to end."""

import csv
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import environment
from forked import Bench, bench, thin
from PIL import Image

from cls import recipes
from cls.cli import _command
from cls.config import flat
from cls.models.backbones import plain
from cls.recipes.sweeps import SWEEPS, chosen, figure
from cls.stop import Stop

# Typed off the reports' summary by hand: row, validation / test. A dash is where a report has no figure.
TABLES = {
    "systems": "attention-gate –/–, cbam-mixup .91/–, mlp-head .93/.96, se-resnext .8567/.91, resnet50-mlp .86/.92",
    "attention-gate/classifier": "plain –/–, gate –/–, ResNeXtL –/–",
    "cbam-mixup/mixup": "off –/–, on –/–",
    "cbam-mixup/random-mixup": "always –/–, random .91/–",
    "cbam-mixup/cbam": "off –/–, on –/–",
    "cbam-mixup/dropout3": "off –/–, on –/–",
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
}

V0, V1 = "dropout:0.5", "500 relu dropout:0.5"
V2, V3 = "500 relu 250 dropout:0.5", "500 bn relu 250 relu dropout:0.5"
V4 = "1024 bn relu dropout:0.5 512 bn relu dropout:0.4 256 bn relu dropout:0.3"
LAST2, LAST1 = ("stem", "layer1", "layer2"), ("stem", "layer1", "layer2", "layer3")
DEEP = "bn 1024 relu dropout:0.5 512 relu dropout:0.5"

# every field in which the rows of a table differ, with its values in the order of the rows
ABOUT: dict[str, dict[str, list[Any]]] = {
    "attention-gate/classifier": {"model.gate": [0, 500, 500], "model.head": ["", "bn 512 relu dropout:0.5", DEEP]},
    "cbam-mixup/mixup": {"augment.mixup": [0.0, 0.2]},
    "cbam-mixup/random-mixup": {"augment.mix_probability": [1.0, 0.5]},
    "cbam-mixup/cbam": {"model.cbam": [(), (4,)]},
    "cbam-mixup/dropout3": {"model.dropout3": [0.0, 0.2]},
    "cbam-mixup/position": {"model.cbam": [(1,), (2,), (3,), (4,)]},
    "cbam-mixup/backbone": {
        "model.backbone": ["resnet50", "resnext50_32x4d", "resnext101_32x8d"],
        "optim.patience": [2, 2, 3],
    },
    "cbam-mixup/frozen": {"model.freeze": [(), ("layer1", "layer2")]},
    "mlp-head/depth": {
        "model.backbone": ["resnet34", "resnet50", "resnet101", "resnet101", "resnet101", "resnext50_32x4d"],
        "model.weights": ["IMAGENET1K_V1"] + ["IMAGENET1K_V2"] * 5,
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
    "mlp-head/dropout": {"model.head": ["500 relu dropout:0.25", V1]},
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
}  # fmt: skip

# what all rows of a table have in common, where its name alone does not say so
COMMON = {
    "mlp-head/heads-r50": {"model.backbone": "resnet50", "optim.min_lr": 5e-5},
    "mlp-head/heads-r101": {"model.backbone": "resnet101", "model.freeze": LAST2, "train.batch": 64},
    "mlp-head/heads-x50": {"model.backbone": "resnext50_32x4d", "train.batch": 32},
    "mlp-head/heads": {"model.backbone": "resnext101_32x8d", "optim.min_lr": 5e-5, "train.batch": 64},
    "mlp-head/weights": {"model.backbone": "resnet50", "model.head": V1},
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
    assert list(SWEEPS) == list(TABLES) and set(ABOUT) == set(TABLES) - {"systems"}


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
    """Photos of three colours, the test images labelled; and the file with ResNet-50's V2 weights, of a thin one."""
    root = tmp_path_factory.mktemp("sweeps")
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for label in range(3):
            folder = root / "photos" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                colour = (label * 80, 200, 120 + 20 * i)
                Image.new("HSV", (40, 36 + i), colour).convert("RGB").save(folder / f"{split}{label}{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        thin(patch.setattr)
        weights = plain("resnet50").state_dict()
    file = root / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    file.parent.mkdir(parents=True)
    torch.save(weights, file)
    return root


@pytest.fixture(scope="module")
def runs(place: Path) -> Iterator[Bench]:
    extra = {"FORKED_THIN": "1", "FORKED_NO_PICTURES": "1", "FORKED_NO_PROBE": "1", "TORCH_HOME": str(place / "torch")}
    (place / "torch").mkdir()
    (place / "hub").rename(place / "torch" / "hub")
    with bench(environment(**extra)) as found:
        yield found


# two steps of everything; a table about the backbone or its weights keeps its own
TOY = """
--data.size 32 --data.workers 0 --train.batch 8 --train.micro-batch 4 --optim.lr-batch 8 --train.epochs 1
--track.wandb disabled --train.device cpu --train.keep 1
"""
BACKBONE, NO_WEIGHTS = "--model.backbone resnext14_8x8d", "--model.weights none"
OWN_BACKBONE = ("mlp-head/depth", "cbam-mixup/backbone", "se-resnext/backbone")


def toy(place: Path, name: str) -> list[str]:
    words = [*shlex.split(TOY), "--data.path", str(place / "photos"), "--out", str(place / "runs")]
    if name != "mlp-head/weights":
        words += shlex.split(NO_WEIGHTS)
        words += [] if name in OWN_BACKBONE else shlex.split(BACKBONE)
    else:
        words[-1] = str(place / "weights")  # its rows are recipes of the depth table, which has no weights here
    return words


def cls_sweep(*words: str) -> Any:
    return _command("sweep", list(words)).do(Stop())


def carry(runs: Bench, members: list[dict[str, Any]]) -> int:
    """Run the command lines of members that are not done; how many there were."""
    todo = [member for member in members if member["state"] != "done"]
    for member in todo:
        words = shlex.split(member["command"])
        assert words[:3] == ["accelerate", "launch", "train.py"]
        ended = runs.run(Path(member["run"]), words[3:])
        assert ended.codes == [0], ended.output
    return len(todo)


# Runs that a table adds to those of the tables before it: "systems" adds mlp-head, whose cosine ends lower.
NEW = {
    "attention-gate/classifier": 3, "cbam-mixup/mixup": 2, "cbam-mixup/random-mixup": 1, "cbam-mixup/cbam": 1,
    "cbam-mixup/dropout3": 1, "cbam-mixup/position": 3, "cbam-mixup/frozen": 1, "mlp-head/heads-r50": 5,
    "mlp-head/heads-r101": 4, "mlp-head/heads-x50": 0, "mlp-head/heads": 0, "mlp-head/schedule": 3,
    "mlp-head/dropout": 1, "se-resnext/techniques": 2, "resnet50-mlp/parts": 3, "systems": 1, "mlp-head/depth": 6,
    "cbam-mixup/backbone": 3, "se-resnext/backbone": 3, "mlp-head/weights": 3,
}  # fmt: skip


def test_every_table_end_to_end(runs: Bench, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one folder, in which a run that stands in several tables is there once; a table is whole when all are done."""
    assert set(NEW) == set(TABLES)
    for name in NEW:
        folder = ["--out", str(place / name.replace("/", "-"))] if name in OWN_BACKBONE else []
        words = [name, "--seeds", "1", *toy(place, name), *folder]
        assert carry(runs, cls_sweep(*words)["members"]) == NEW[name], name
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
    markdown, comma = (Path(file) for file in table["files"])
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][2:6] == ["report val", "report test", "our val", "our test"]
    assert [(c[0], c[2], c[3]) for c in cells[1:]] == printed(name)
    assert [c[4:6] for c in cells[1:]] == [[f"{row['validation']:.4f}", f"{row['test']:.4f}"] for row in rows]
    with comma.open() as file:
        assert [float(row["validation"]) for row in csv.DictReader(file)] == [row["validation"] for row in rows]


def score(out: str, split: str, images: int) -> float:
    """Accuracy by another way: the stored names."""
    table = pq.read_table(Path(out) / "predictions" / f"{split}.parquet").to_pydict()
    assert len(table["label"]) == images
    return sum(a == b for a, b in zip(table["label"], table["predicted"], strict=True)) / images
