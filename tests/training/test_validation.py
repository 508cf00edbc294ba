"""What a validation changes: which figure goes where, and which weights it is about."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import train
from cls import recipes
from cls.config import Run, change
from cls.data.dataset import eval_sets
from cls.data.loader import preprocess
from cls.data.sources import load
from cls.distributed.world import World
from cls.evaluation.inference import Predictor
from cls.models.backbones import input_statistics
from cls.models.build import build_model
from cls.models.weights import load_exact
from cls.runtime.exit import ExitHandler, NonFiniteError
from cls.tracking.run_dir import open_run_dir
from cls.training.state import State, build_state
from cls.training.steps import Steps
from cls.training.validation import record_validation

ALONE = World(accelerator=Accelerator(cpu=True), rank=0, size=1, local_size=1, device=torch.device("cpu"))
FIGURES = {"accuracy": 0.75, "loss": 0.5}


class Noted:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, dict[str, float]]] = []

    def log_validation(self, step: int, figures: dict[str, float], history: Any) -> None:
        self.epochs.append((step, figures))


def built(**optim: Any) -> tuple[Steps, State]:
    run = change(
        Run(), model={"backbone": "timm/test_resnet", "weights": "none"}, train={"epochs": 4, "batch": 16}, optim=optim
    )
    steps = Steps(64, run.train)
    return steps, build_state(run, ("a", "b", "c"), steps, ALONE)


def test_the_schedule_is_given_the_loss_as_loss_and_the_accuracy_as_accuracy() -> None:
    steps, state = built()
    given: list[tuple[float, float]] = []
    state.schedule = SimpleNamespace(epoch=lambda loss, accuracy: given.append((loss, accuracy)))  # type: ignore[assignment]  # a recorder
    logger = Noted()
    record_validation(4, steps, state, FIGURES, logger)  # type: ignore[arg-type]  # all that it asks for
    assert given == [(0.5, 0.75)] and logger.epochs == [(4, FIGURES)]
    assert (state.history.best_loss, state.history.best_accuracy) == (0.5, 0.75)
    assert (state.history.best_loss_step, state.history.validated) == (4, 4)


def test_without_validation_the_schedule_goes_on_and_nothing_is_best() -> None:
    steps, state = built(schedule="cosine")
    before, logger = state.schedule.lr, Noted()
    state.optimizer.step()
    record_validation(4, steps, state, {}, logger)  # type: ignore[arg-type]  # all that it asks for
    assert state.schedule.lr < before and logger.epochs == [(4, {})] and state.model.training
    assert state.history.validated == 4 and state.history.best_accuracy_step == state.history.best_loss_step == -1


def test_inside_an_epoch_neither_schedule_nor_best_change() -> None:
    steps, state = built()
    state.schedule = SimpleNamespace(epoch=lambda *_: pytest.fail("no epoch has ended"))  # type: ignore[assignment]  # must not be called
    record_validation(3, steps, state, FIGURES, Noted())  # type: ignore[arg-type]  # all that it asks for
    assert state.history.best_accuracy_step == -1 and state.history.validated == 3


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_noted(loss: float) -> None:
    steps, state = built()
    with pytest.raises(NonFiniteError, match="after step 4"):
        record_validation(4, steps, state, {"accuracy": 0.5, "loss": loss}, Noted())  # type: ignore[arg-type]  # as above
    assert state.history.validated == 0


def test_with_a_moving_average_its_weights_are_the_evaluated_ones() -> None:
    _, state = built(ema=0.9)
    assert state.average is not None and state.evaluated is state.average.module is not state.model
    _, plain = built()
    assert plain.average is None and plain.evaluated is plain.model


def test_a_run_with_a_moving_average_validates_the_averaged_weights(tmp_path: Path) -> None:
    run = change(
        recipes.get("digits"), model={"backbone": "timm/test_resnet"}, data={"limit": 192, "workers": 0},
        optim={"ema": 0.9, "lr": 0.03}, train={"epochs": 1, "batch": 32, "device": "cpu"}, track={"wandb": "disabled"},
    )  # fmt: skip
    with open_run_dir(dataclasses.replace(run, out=str(tmp_path / "run")), ALONE) as run_dir:
        train.train(run_dir, ALONE, ExitHandler(""))
    (row,) = (row for row in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
              if "val/loss" in row)  # fmt: skip
    (written,) = (tmp_path / "run/checkpoints").iterdir()
    splits = load(run.data, run.seed)
    images = eval_sets(splits.val, splits.test, run).val

    def figures(part: str) -> dict[str, float]:
        model = build_model(run.model, len(splits.classes), run.seed)
        load_exact(model, written / f"{part}.safetensors")
        prepare = preprocess(input_statistics(run), run.seed, run.train.channels_last, ALONE.device)
        return Predictor(model, splits.classes, run, ALONE, prepare).figures(images)

    averaged, current = figures("average"), figures("model")
    assert row["val/loss"] == pytest.approx(averaged["loss"], rel=1e-5)
    assert row["val/accuracy"] == averaged["accuracy"]
    assert abs(averaged["loss"] - current["loss"]) > 1e-3
