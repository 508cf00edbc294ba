"""What is found out about the machine before the processes start."""

from pathlib import Path

import pytest
import torch

from cls.distributed import launch
from cls.runtime.exit import LocalError, classify


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024", "470.256.02"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build", "560.35.03"),
        ("NVRM version: unknown", "not loaded"),
    ],
    ids=["own module", "open module", "unknown"],
)
def test_the_driver_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, version: str) -> None:
    file = tmp_path / "version"
    monkeypatch.setattr(launch, "Path", lambda _: file)
    assert launch.driver() == "not loaded"
    file.write_text(f"{line}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n")
    assert launch.driver() == version


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 1 has a total capacity of 23.57 GiB of which 1.56 MiB is "
    "free. Process 4711 has 23.30 GiB memory in use. Of the allocated memory 0 bytes is allocated by PyTorch, and …"
)
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"
HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call"


def forced(monkeypatch: pytest.MonkeyPatch, where: str, error: Exception | None, gpus: int = 2) -> list[int]:
    """torch with so many GPUs, one of whose two first calls raises; returns the list that collects the current GPU."""
    chosen: list[int] = []
    real = torch.zeros

    def call(name: str) -> None:
        if error is not None and name == where:
            raise error

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.set_device", lambda index: (chosen.append(index), call("set_device")))
    monkeypatch.setattr("torch.zeros", lambda *size, device: (call("zeros"), real(*size))[1])
    monkeypatch.setenv("LOCAL_RANK", "1")
    return chosen


@pytest.mark.parametrize(
    ("where", "error", "reason"),
    [
        ("zeros", torch.OutOfMemoryError(FULL), "Process 4711 has 23.30 GiB memory in use)"),
        ("set_device", RuntimeError(f"CUDA error: out of memory{HINT}"), "(CUDA error: out of memory)"),
        ("zeros", torch.AcceleratorError(BUSY + HINT), f"({BUSY})"),
        (
            "set_device", torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable"),
            "(CUDA error: all CUDA-capable devices are busy or unavailable)",
        ),
    ],
    ids=["full", "full for a context", "exclusive", "exclusive before CUDA 12"],
)  # fmt: skip
def test_a_gpu_that_another_program_has_taken_is_said_so(
    monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, reason: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert forced(monkeypatch, where, error) == []
    with pytest.raises(LocalError) as caught:
        launch.choose_device("auto")
    text = str(caught.value)
    assert text.startswith("GPU 1 of CUDA_VISIBLE_DEVICES=2,3 is taken by another program (") and reason in text
    for part in ("see nvidia-smi", "CUDA_VISIBLE_DEVICES=NUMBER", "--train.device cpu"):
        assert part in text
    assert "driver" not in text and "Of the allocated" not in text and "\n" not in text
    assert classify(caught.value) == "user_error"


def test_any_other_error_of_the_first_allocation_is_about_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing else shows that there is a GPU, as in WSL: it must not become the CPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    forced(monkeypatch, "zeros", RuntimeError("CUDA error: no kernel image is available" + HINT))
    for rank in ("1", "0"):  # each process has a card of its own: nobody else would report it
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(
            LocalError, match=r"cannot use it: CUDA error: no kernel image is available\. Driver"
        ) as caught:
            launch.choose_device("auto")
        assert "pip install torch" in str(caught.value)


def test_more_processes_than_gpus_are_rejected_before_they_block_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = forced(monkeypatch, "zeros", None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"3 processes .* has 2 GPU\(s\): use accelerate launch --num_processes 2"):
        launch.choose_device("auto")
    assert chosen == []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch.choose_device("auto") == "cuda" and chosen == [1]
