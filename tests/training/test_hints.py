"""What is said before a long run: idle cores, a backbone that the recipe was not made for, weights of a run of
another network, a run of the head alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cls import recipes
from cls.config import Run, change, to_yaml
from cls.distributed.world import World
from cls.training.hints import hints

ALONE = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cls.training.hints.cores", lambda: 4)


def said(run: Run, world: World = ALONE) -> str:
    return "\n".join(hints(run, world))


def test_idle_cores_are_named_where_more_processes_give_the_same_bits() -> None:
    run = recipes.get("mlp-head")  # batch 64 in micro-batches of 16
    assert "one of 4 cores trains" in said(run) and "--num_processes 4" in said(run)
    assert "--num_processes 2" in said(change(run, train={"micro_batch": 32}))
    assert said(change(run, train={"micro_batch": 64})) == ""
    assert said(change(run, train={"reduce": "fast"})) == ""
    assert said(run, dataclasses.replace(ALONE, size=2)) == ""
    assert said(run, dataclasses.replace(ALONE, device=torch.device("cuda", 0))) == ""


def test_a_backbone_of_ones_own_needs_a_rate_of_its_own() -> None:
    run = change(recipes.get("mlp-head"), train={"reduce": "fast"}, data={"path": "my photos"})
    assert said(run) == ""
    other = change(run, model={"backbone": "timm/tf_efficientnet_lite2", "weights": "timm"})
    assert said(other).startswith("the rate of mlp-head, 0.0001, is meant for resnext101_32x8d, not for timm/tf_eff")
    assert "its weights were trained at 260 px, data.size is 224" in said(other)
    assert "cls tune mlp-head --data.path 'my photos' --model.backbone timm/tf_efficientnet_lite2" in said(other)
    assert "trained at" not in said(change(other, data={"size": 260}))
    assert "trained at" not in said(change(other, model={"weights": "none"}))
    assert said(change(other, optim={"lr": 3e-4})) == ""
    assert said(dataclasses.replace(other, recipe="of-an-earlier-version")) == ""


def test_a_run_of_the_head_alone_is_named() -> None:
    run = change(recipes.get("best"), train={"reduce": "fast"})
    assert said(run) == ""
    short = change(run, train={"epochs": 1.0})
    assert said(short) == (
        "only the head trains: optim.head_epochs 1 is the whole run; for the network too, add epochs or --optim.head-"
        "epochs 0"
    )
    assert said(change(short, train={"epochs": 1.5})) == said(change(short, optim={"head_epochs": 0.0})) == ""


def test_weights_of_a_run_of_another_network_are_named(tmp_path: Path) -> None:
    """Keys and shapes are the same for all of these."""
    earlier = change(recipes.get("mlp-head"), train={"reduce": "fast"}, out=str(tmp_path / "earlier"))
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "config.yaml").write_text(to_yaml(earlier))
    run = change(earlier, model={"weights": earlier.out})
    assert said(run) == ""
    start = f"model.weights: {earlier.out} was trained otherwise: "
    assert said(change(run, optim={"lr": 3e-4}, model={"backbone": "resnext101_64x4d"})) == (
        f"{start}model.backbone was resnext101_32x8d, is resnext101_64x4d"
    )
    other = said(change(run, data={"normalize": "half"}, model={"cbam_chained": True}))
    assert other.startswith(f"{start}model.cbam_chained was False, is True; the mean and deviation of the input was")
    assert "is ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))" in other
    assert said(change(run, model={"weights": "DEFAULT"}, data={"normalize": "half"})) == ""
