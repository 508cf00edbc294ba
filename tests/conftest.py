"""Fixtures that several files share, and the tiers of the tests."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from cls.runtime.exit import HANGING
from cls.runtime.signals import SIGNALS
from tests.harness import SHARED, TINY, Mount
from tests.harness.hub import TOKEN, Hub, serving
from tests.harness.records import Result
from tests.harness.runs import Runs

# tests of real processes, without what `pytest` alone runs and without the soak tests of the same files
INTEGRATION = "integration and not promise and not soak"


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "integration":
        config.option.markexpr = INTEGRATION
    for number in SIGNALS:  # in a shell's background or under nohup some are ignored, as all runs would inherit
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    tests, leave, capture = os.getpid(), os._exit, config.pluginmanager.getplugin("capturemanager")

    def leave_loudly(code: int) -> NoReturn:
        """A run in this process that calls os._exit would end all tests silently, with status 0."""
        if os.getpid() == tests:  # not in a child that a test has forked
            capture.suspend_global_capture()
            print(f"os._exit({code}) in the process of the tests: {os.environ.get('PYTEST_CURRENT_TEST')}", flush=True)
            code = 1
        leave(code)

    os._exit = leave_loudly


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """A tracker that a test left hanging would make the next run in this process end by os._exit."""
    yield
    HANGING.clear()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A command that ends in this process leaves its signals ignored, which later tests' processes would inherit."""
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Loading a run chooses kernels for its process, which here is that of other tests, too."""
    yield
    if torch := sys.modules.get("torch"):
        torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start real runs first, the longest ones foremost: the workers then end at about the same time.

    xdist gives each of its three workers two files at once, so three short ones stand behind the three longest.
    """
    long = ("test_slurm", "test_scripts", "test_train", "test_fsdp", "test_any_run", "test_exact", "test_rng",
            "test_steps", "test_workers", "test_wandb_run", "test_api", "test_check", "test_export",
            "test_main", "test_stopping", "test_survival", "test_disk", "test_report_page", "test_damage",
            "test_memory_probe", "test_plan", "test_plan_memory", "test_doctor", "test_fetch", "test_offline",
            "test_zoo")  # fmt: skip
    order = {f"{name}.py": place for place, name in enumerate(long)}
    items.sort(key=lambda item: order.get(item.path.name, len(long)))


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    """Real runs in forked processes."""
    with Runs() as found:
        yield found


@pytest.fixture(scope="session")
def tiny(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """TINY in one process, never interrupted: the reference of runs that were stopped or short of disk or memory."""
    result = runs.run(tmp_path_factory.mktemp("tiny") / "run", TINY)
    assert result.codes == [0], result.output
    return result


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub of models on this machine; a token for it is set."""
    from huggingface_hub import constants

    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    """Makes a disk of so many megabytes."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("needs root to mount a small disk")
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"cannot mount a small disk here: {tried.stderr.strip()}")
        mounted.append(place)
        return place

    try:
        yield mount
    finally:
        for place in mounted:
            while subprocess.run(["umount", str(place / "run")], capture_output=True).returncode == 0:
                pass  # read-only views of the run directory
            subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 66 small JPEGs in classes 0 to 11, told apart by hue; validation lacks three classes."""
    root = tmp_path_factory.mktemp("photos")
    for split, count, classes in (("train", 4, range(12)), ("val", 2, range(9)), ("test", 0, ())):
        for label in classes:
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("HSV", (48 + i, 40), (label * 20, 200, 120 + 20 * i)).convert("RGB")
                image.save(folder / f"{label}-{i}.jpg", quality=95)
    flat = root / "test"
    flat.mkdir()
    for i in range(6):
        Image.new("HSV", (40, 40), (i * 20, 200, 150)).convert("RGB").save(flat / f"t{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def clothing() -> Path:
    path = SHARED / "data" / "clothing"
    if not path.is_dir():
        pytest.skip("needs the real photos in ../shared/data/clothing")
    return path
