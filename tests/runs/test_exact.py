"""The promise of the product: the same bits on 1, 2, 3 and 4 processes, and after moving a run from 4 to 2."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cls.evaluation.metrics import summary
from cls.evaluation.predictions import read_parquet
from cls.evaluation.run_record import RunRecord
from cls.training.checkpoint_writer import best_step
from tests.harness import ROOT, SMALL, TINY, environment
from tests.harness.records import Result, bits
from tests.harness.runs import Runs

pytestmark = pytest.mark.integration

METHOD = """
--model.backbone timm/test_resnet --model.head=64_bn_relu_dropout:0.5 --augment.mixup 0.4 --augment.mix-probability 0.5
--augment.erase 0.3 --augment.hflip 0.5 --optim.ema 0.9 --optim.clip 1.0 --optim.label-smoothing 0.1
--optim.schedule plateau --optim.plateau-on accuracy --optim.patience 0 --optim.factor 0.5
"""
FULL = [*SMALL, *(word.replace("_", " ") if "dropout" in word else word for word in METHOD.split())]
STEPS = 22  # 7 epochs of 100 images in batches of 32: epochs end inside batches


def run(runs: Runs, folder: Path, name: str, processes: int, *extra: str) -> Result:
    result = runs.run(folder / name, [*FULL, *extra], processes, patch="tests.harness.traces:record")
    assert result.code == 0, result.output
    return result


def traces(result: Result, world: int) -> list[dict[str, Any]]:
    """Micro-batches of all ranks in global order; asserts the number of processes and who decoded what."""
    records = [json.loads((result.out / f"trace-{rank}.json").read_text()) for rank in range(world)]
    assert not (result.out / f"trace-{world}.json").exists()
    assert [(r["world"], r["rank"]) for r in records] == [(world, rank) for rank in range(world)]
    for record in records:
        assert record["decoded"] == sum(len(t["rows"]) for t in record["trace"])  # its own images and no others
    return sorted((t for r in records for t in r["trace"]), key=lambda t: (t["step"], t["index"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(scope="module")
def one(runs: Runs, folder: Path) -> Result:
    return run(runs, folder, "one", 1)


@pytest.mark.promise
def test_control_training_changes_the_weights(one: Result) -> None:
    rows = [row for row in one.rows if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert len({row["train/lr"] for row in rows}) > 1  # the plateau schedule did something
    first, last = sorted((one.out / "checkpoints").glob("step-*"))[
        :: len(list((one.out / "checkpoints").glob("step-*"))) - 1
    ]
    before, after = load_file(first / "model.safetensors"), load_file(last / "model.safetensors")
    assert all(not before[name].equal(after[name]) for name in before)  # parameters and BatchNorm statistics


@pytest.mark.promise
def test_the_logged_validation_is_that_of_the_best_weights(one: Result) -> None:
    """These are the moving average: another model's figures would not agree."""
    best = max((row for row in one.rows if "val/accuracy" in row), key=lambda row: row["val/accuracy"])
    found = summary(read_parquet(one.out / "predictions" / "val.parquet"))
    assert found["accuracy"] == pytest.approx(best["val/accuracy"], abs=1e-6)
    assert found["loss"] == pytest.approx(best["val/loss"], abs=1e-6)


@pytest.mark.promise
def test_training_accuracy_counts_what_was_recognised_and_epochs_have_means(one: Result) -> None:
    right = [0] * (STEPS + 1)
    for micro_batch in traces(one, 1):
        right[micro_batch["step"] + 1] += micro_batch["right"]
    rows = {row["step"]: row for row in one.rows if "train/loss" in row}
    assert [rows[step]["train/accuracy"] for step in rows] == [n / 32 for n in right[1:]] and len(set(right)) > 5
    ends = [row for row in one.rows if "val/loss" in row]
    assert [row["step"] for row in ends] == [4, 7, 10, 13, 16, 19, 22]
    for start, row in zip([0, 4, 7, 10, 13, 16, 19], ends, strict=True):
        own = [rows[step] for step in range(start + 1, row["step"] + 1)]
        for key in ("loss", "accuracy"):
            assert row[f"train/epoch_{key}"] == pytest.approx(sum(r[f"train/{key}"] for r in own) / len(own))


@pytest.mark.promise
def test_control_every_image_once_per_epoch(one: Result) -> None:
    seen = [row for micro_batch in traces(one, 1) for row in micro_batch["rows"]]
    for epoch in range(7):
        assert sorted(seen[epoch * 100 : (epoch + 1) * 100]) == list(range(100))
    assert len(seen) == STEPS * 32


@pytest.mark.parametrize(
    "processes",
    [*(pytest.param(n, marks=pytest.mark.soak) for n in (2, 3)), pytest.param(4, marks=pytest.mark.promise)],
)
def test_same_bits_on_any_number_of_processes(runs: Runs, folder: Path, one: Result, processes: int) -> None:
    result = run(runs, folder, f"of{processes}", processes)
    assert traces(result, processes) == traces(one, 1)
    assert bits(result) == bits(one)


def test_statistics_of_frozen_norms_that_move_are_the_same_on_two_processes(runs: Runs, folder: Path) -> None:
    args = [*TINY, "--model.freeze", "stem", "layer1", "--model.freeze-norms", "False"]
    one, two = (runs.run(folder / f"moving{n}", args, n) for n in (1, 2))
    assert one.code == two.code == 0, one.output + two.output
    assert bits(two) == bits(one)
    first, last = (
        load_file(path / "model.safetensors")
        for path in (one.out / "checkpoints" / "step-0000003", one.out / "checkpoints" / "step-0000008")
    )
    frozen = {name for name in first if name.startswith(("bn1", "layer1"))}
    moved = {name for name in frozen if not first[name].equal(last[name])}
    assert moved and moved == {name for name in frozen if name.split(".")[-1].startswith(("running", "num_batches"))}


@pytest.mark.soak
def test_a_run_moved_from_four_processes_to_two_has_the_bits_of_the_uninterrupted_one(
    runs: Runs, folder: Path, one: Result
) -> None:
    run(runs, folder, "moved", 4, "--train.max-steps", "9")  # inside epoch 3
    first = traces(Result([0], "", folder / "moved"), 4)
    stopped = RunRecord(folder / "moved")
    assert stopped.best_row and stopped.best_row["step"] == best_step(stopped.path) != 9
    for rank in range(4):
        (folder / "moved" / f"trace-{rank}.json").unlink()
    result = run(runs, folder, "moved", 2)
    assert first + traces(result, 2) == traces(one, 1)
    ours, theirs = bits(result), bits(one)
    # the stop inside an epoch validated once more; nothing else may differ
    ours["rows"] = [row for row in ours["rows"] if not (row["step"] == 9 and "val/loss" in row)]
    assert ours == theirs


@pytest.mark.soak
def test_fast_reduction_of_a_model_without_batch_statistics_agrees_within_rounding(runs: Runs, folder: Path) -> None:
    """GroupNorm: the sum's order is all that may differ between world sizes."""
    losses = {}
    for n in (1, 2, 4):
        args = [
            *SMALL,
            "--model.backbone",
            "timm/test_efficientnet_gn",
            "--train.reduce",
            "fast",
            "--train.max-steps",
            "20",
        ]
        result = runs.run(folder / f"gn{n}", [*args, "--train.channels-last", "False"], n)
        assert result.code == 0 and f"{n} process(es)" in result.output, result.output
        losses[n] = [row["train/loss"] for row in result.rows if "train/loss" in row]
    assert len(losses[1]) == 20 and losses[1][0] != losses[1][-1]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5) and losses[4] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.soak
def test_a_killed_run_ends_with_the_bits_of_the_uninterrupted_one(runs: Runs, folder: Path, one: Result) -> None:
    """SIGKILL of the whole process group after the second checkpoint, then the same command again."""
    out = folder / "killed"
    command = [sys.executable, str(ROOT / "train.py"), *FULL, "--out", str(out)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(out.glob("checkpoints/step-*7")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "exit.json").exists()
    again = runs.run(out, FULL)
    assert again.code == 0 and " of 22 ->" in again.output and "step 0 of 22" not in again.output
    assert bits(again) == bits(one)


@pytest.mark.soak
def test_control_another_seed_and_fast_reduction_differ(runs: Runs, folder: Path, one: Result) -> None:
    short = ["--train.max-steps", "6"]
    seed = run(runs, folder, "seed", 1, "--seed", "1", *short)
    assert traces(seed, 1)[0] != traces(one, 1)[0]
    fast = {n: run(runs, folder, f"fast{n}", n, "--train.reduce", "fast", *short) for n in (1, 2)}
    losses = {n: [row["train/loss"] for row in r.rows if "train/loss" in row] for n, r in fast.items()}
    assert losses[1][0] == pytest.approx(losses[2][0], rel=1e-6)
    assert losses[1] != losses[2]
