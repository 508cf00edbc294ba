"""Means over an epoch's steps: the same ones whatever part of them is read from the record."""

from typing import Any

import numpy as np
import pytest

from cls.config import Train
from cls.training.epoch_means import EpochMeans
from cls.training.steps import Steps

STEPS = Steps(100, Train(batch=32, micro_batch=8, epochs=3))  # epochs end after steps 4, 7 and 10
RNG = np.random.default_rng(0)
ROWS: list[dict[str, Any]] = [
    {"step": step, "train/loss": float(RNG.random()), "train/accuracy": int(RNG.integers(33)) / 32}
    for step in range(1, 11)
]


def logged(stop: int, rows: list[dict[str, Any]] = ROWS) -> dict[int, dict[str, float]]:
    """What an attempt logs that resumes at step ``stop``."""
    record = [*rows[:stop], {"step": stop, "val/loss": 1.0}]
    means, found = EpochMeans(STEPS, record), {}
    for step in range(stop, 11):
        if STEPS.validates(step):
            found[step] = means.at(step)
        for row in rows[step : step + 1]:
            means.add(row)
    return found


def test_they_are_the_means_of_the_steps() -> None:
    found = logged(0)
    assert list(found) == [4, 7, 10]
    for start, end in ((0, 4), (4, 7), (7, 10)):
        for key in ("loss", "accuracy"):
            expected = np.mean([row[f"train/{key}"] for row in ROWS[start:end]])
            assert found[end][f"train/epoch_{key}"] == pytest.approx(expected)


@pytest.mark.parametrize("stop", range(11))
def test_a_resumed_run_logs_those_of_an_uninterrupted_one(stop: int) -> None:
    assert logged(stop) == {step: means for step, means in logged(0).items() if step >= stop}


def test_an_epoch_that_is_not_whole_in_the_record_has_none() -> None:
    means = EpochMeans(STEPS, [row for row in ROWS[:4] if row["step"] != 2])
    assert means.at(4) == {} and means.at(5) == {}
    for row in ROWS[4:7]:
        means.add(row)
    assert means.at(7) == logged(0)[7]


def test_rows_of_an_earlier_version_have_no_accuracy() -> None:
    old = [{"step": row["step"], "train/loss": row["train/loss"]} for row in ROWS[:2]]
    means = EpochMeans(STEPS, old)
    for row in ROWS[2:7]:
        means.add(row)
        if row["step"] == 4:
            assert set(means.at(4)) == {"train/epoch_loss"}
    assert set(means.at(7)) == {"train/epoch_loss", "train/epoch_accuracy"}
