"""What is found out about the machine before the processes start."""

from pathlib import Path

import pytest

from cls.distributed import launch


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
