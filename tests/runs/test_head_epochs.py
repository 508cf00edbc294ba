"""Runs whose first epochs train the head alone: the same bits on any number of processes and after a kill."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cls.config import Model
from cls.models.build import build_model
from tests.harness import TINY
from tests.harness.records import bits
from tests.harness.runs import Runs

pytestmark = pytest.mark.integration


def test_head_epochs_survive_a_kill_and_another_number_of_processes(runs: Runs, tmp_path: Path) -> None:
    """8 steps, the first 4 for the head; killed in the second of them, resumed on 2 processes."""
    pretrained = build_model(Model(backbone="timm/test_resnet", weights="none"), 3, 1).state_dict()
    save_file({name: value.contiguous() for name, value in pretrained.items()}, tmp_path / "pretrained.safetensors")
    args = [
        *TINY, "--model.weights", str(tmp_path / "pretrained.safetensors"), "--optim.head-epochs", "1.5",
        "--optim.stage-decay", "0.5", "--optim.warmup", "0.5", "--train.best-on", "loss", "--train.keep", "9",
        "--augment.trivialaugment", "True",
    ]  # fmt: skip
    whole = runs.run(tmp_path / "whole", args)
    assert whole.codes == [0], whole.output
    rates = [row["train/lr"] for row in whole.rows if "train/lr" in row]
    assert rates == pytest.approx([0.003] * 4 + [0.0015, 0.003, 0.00256, 0.00093], rel=0.01)
    after = load_file(whole.out / "checkpoints" / "step-0000003" / "model.safetensors")
    last = load_file(whole.out / "checkpoints" / "step-0000008" / "model.safetensors")
    head = {name for name in after if name.startswith("fc.")}
    assert all(after[name].equal(pretrained[name]) for name in after.keys() - head)
    assert not any(last[name].equal(after[name]) for name in after if after[name].is_floating_point())

    killed = runs.run(tmp_path / "killed", args, 2, "SIGKILL@0:step:2")
    assert killed.codes == [-9, -9]
    assert bits(runs.run(tmp_path / "killed", args, 1)) == bits(whole)

    fast = runs.run(tmp_path / "fast", [*args, "--train.reduce", "fast"], 2)  # DDP's reducer waits for all gradients
    assert fast.codes == [0, 0], fast.output
    fast_after = load_file(fast.out / "checkpoints" / "step-0000003" / "model.safetensors")
    assert all(fast_after[name].equal(pretrained[name]) for name in after.keys() - head)
