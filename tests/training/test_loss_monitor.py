"""Losses are read one step late; times and guards that need no process group."""

import subprocess
import sys
import time

import pytest
import torch

from cls.config import Run, change
from cls.distributed.launch import check_launcher, choose_device, ignore_mpi, resolve_precision, visible_gpus
from cls.distributed.world import start
from cls.runtime.exit import NonFiniteError
from cls.runtime.signals import StopSignal
from cls.training.loss_monitor import Finished, LossMonitor
from tests.harness import ROOT, environment

CPU = torch.device("cpu")


def result(loss: float, stop: int = 0, save: int = 0, right: int = 0) -> torch.Tensor:
    return torch.tensor([loss, stop, save, right], dtype=torch.float32)


def test_a_loss_comes_out_one_step_later() -> None:
    losses, found = LossMonitor(8), []
    for step in range(1, 6):
        loss = result(step / 2, right=step)
        done = losses.put(step, loss, 0.1 * step)
        loss.fill_(9.0)  # what the caller does to it afterwards does not matter
        assert [f.step for f in done] == ([step - 1] if step > 1 else [])
        found += done
    found += losses.drain()
    assert [(f.step, f.loss, f.accuracy, f.lr) for f in found] == [(s, s / 2, s / 8, 0.1 * s) for s in range(1, 6)]
    assert losses.drain() == []


def test_requests_come_with_the_loss_of_their_step() -> None:
    """Three ranks: one requests to save at step 2, two to stop at step 4."""
    losses, seen = LossMonitor(8), []
    for step in range(1, 7):
        losses.put(step, result(1.0, stop=2 * (step == 4), save=step == 2), 0.1)
        seen.append((losses.stop_requested, losses.save_requested))
    assert seen == [(False, False), (False, False), (False, True), (False, False), (True, False), (True, False)]
    losses.drain()
    assert (
        losses.stop_requested and not losses.save_requested
    )  # a request to stop is never forgotten, one to save is met once


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_names_its_draws(value: float) -> None:
    losses = LossMonitor(32)
    losses.put(6, result(1.0), 0.1)
    losses.put(7, result(value), 0.1)
    with pytest.raises(NonFiniteError) as caught:
        losses.put(8, result(1.0), 0.1)
    assert "step 7" in str(caught.value) and "sample indices 192 to 223" in str(caught.value)
    assert "a lower --optim.lr or --optim.clip 1, with another --out" in str(caught.value)


def test_each_step_has_its_own_time() -> None:
    """Two epochs of three steps of 30 ms, and 200 ms of validation that belong to no step."""
    losses, found = LossMonitor(8), list[Finished]()
    for epoch in range(2):
        for step in range(3):
            time.sleep(0.03)
            found += losses.put(3 * epoch + step + 1, result(1.0), 0.1)
        found += losses.drain()
        time.sleep(0.2)
        losses.reset_timer()
    assert [f.step for f in found] == [1, 2, 3, 4, 5, 6]
    assert all(0.029 < f.seconds < 0.2 for f in found)
    assert sum(f.seconds for f in found) < 6 * 0.05


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo"),
    ],
)
def test_a_launcher_that_asks_for_another_method_is_rejected_by_name(variable: str, value: str, name: str) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        check_launcher({variable: value})
    assert "--config_file accelerate_configs/" in str(caught.value)


def test_what_an_ordinary_launcher_exports_is_accepted() -> None:
    check_launcher({})
    check_launcher(
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_CPU": "true",
         "ACCELERATE_DYNAMO_BACKEND": "NO"}
    )  # fmt: skip


@pytest.mark.integration
def test_one_process_knows_the_number_of_its_gpu() -> None:
    """Accelerate gives one process "cuda" alone, but each GPU has random numbers of its own, found by its number.

    No GPU here: torch is told that there are two, and which one was made the current one.
    """
    script = """
import os, torch
from unittest.mock import patch
from cls.config import Train
from cls.distributed import launch, world
from cls.runtime.signals import StopSignal
real, made = torch.zeros, []
with (
    patch("torch.cuda.is_available", lambda: True), patch("torch.cuda.device_count", lambda: 2),
    patch("torch.cuda.set_device", made.append), patch("torch.cuda.current_device", lambda: made[-1]),
    patch("torch.zeros", lambda *size, device="cpu": real(*size)),
):
    os.environ["LOCAL_RANK"] = "1"
    assert launch.choose_device("auto") == "cuda"
    del os.environ["LOCAL_RANK"]
    print(made, repr(world.start(Train(), StopSignal()).device))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split("\n")[0] == "[1, 0] device(type='cuda', index=0)", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("env", "file", "sign"),
    [
        ({}, False, ""),
        ({}, True, "/dev/nvidia0"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, False, "CUDA_VISIBLE_DEVICES=0,1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, True, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, True, ""),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_GPUS": "1"}, True, ""),
        ({"SLURM_GPUS_ON_NODE": "2"}, False, "SLURM_GPUS_ON_NODE=2"),
        ({"SLURM_GPUS_ON_NODE": "0"}, False, ""),
    ],
)
def test_signs_of_a_gpu(env: dict[str, str], file: bool, sign: str) -> None:
    assert visible_gpus(env, file) == sign


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that works")
def test_a_gpu_that_cannot_be_used_is_never_silently_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for wanted in ("auto", "cuda"):
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=0") as caught:
            choose_device(wanted)
        for part in (torch.__version__, "pip install", "--train.device cpu", "Driver"):
            assert part in str(caught.value)
    assert choose_device("cpu") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match=r"train\.device is cuda but this machine shows no GPU"):
        choose_device("cuda")


def test_precision_is_resolved_by_the_device() -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16" and resolve_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize("name", ["PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD"])
def test_processes_of_mpi_without_a_launcher_are_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "digits", "--train.epochs", "3"])
    with pytest.raises(ValueError, match=rf"{name}_SIZE is 2: .* or srun started 2 processes") as caught:
        ignore_mpi({f"{name}_SIZE": "2", f"{name}_RANK": "0"})
    assert "accelerate launch --num_processes 2 train.py digits --train.epochs 3 (or" in str(caught.value)
    assert f"unset {name}_SIZE {name}_RANK" in str(caught.value)
    monkeypatch.setenv(f"{name}_SIZE", "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=f"{name}_SIZE is 2"):  # before accelerate looks at it
        start(change(Run(), train={"device": "cpu"}).train, StopSignal())


@pytest.mark.parametrize("launcher", [{}, {"WORLD_SIZE": "8", "RANK": "3"}])
def test_variables_of_mpi_are_ignored_where_they_mean_nothing(launcher: dict[str, str]) -> None:
    """One process, or the tasks of an srun that starts one launcher a node: accelerate would take them for its own."""
    size = "2" if launcher else "1"
    found = launcher | {"PMI_SIZE": size, "PMI_RANK": "0", "OMPI_COMM_WORLD_SIZE": size, "MPI_LOCALRANKID": "0",
                        "OMPI_COMM_WORLD_LOCAL_RANK": "0", "MV2_COMM_WORLD_SIZE": "?", "HOME": "/root"}  # fmt: skip
    ignore_mpi(found)
    assert found == launcher | {"HOME": "/root"}
