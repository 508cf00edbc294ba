"""How a run ends: real processes, each left by an exception or a signal; exit status, exit.json, what is printed."""

import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cls.config import Run, change
from cls.distributed import launch
from cls.runtime.console import stdout_to_stderr
from cls.runtime.exit import (
    CODES,
    DISK,
    DataError,
    ExitHandler,
    ForeignDirectoryError,
    NonFiniteError,
    classify,
    is_missing,
    little_shared_memory,
)
from cls.validate import check
from tests.harness import ROOT, environment


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str
    record: dict[str, Any] | None


def child(work: Callable[[], object], files: list[str]) -> None:
    for number, name in enumerate(files, 1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    code = 99
    try:
        work()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 98
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ending(out: Path, work: Callable[[ExitHandler], object], rank: int = 0, send: tuple[int, ...] = ()) -> Ended:
    """Fork a process that runs ``work`` in an Ending and, if asked, send it signals once the file 'ready' is there."""

    def body() -> None:
        os.environ["RANK"] = str(rank)
        with ExitHandler(str(out)) as found:
            work(found)

    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{name}" for name in ("stdout", "stderr")]
        for file in files:
            Path(file).touch()
        pid = os.fork()
        if pid == 0:
            child(body, files)
        for number in send:
            while not (out.parent / "ready").exists():
                time.sleep(0.01)
            (out.parent / "ready").unlink()
            os.kill(pid, number)
        status = os.waitpid(pid, 0)[1]
        path = out / "exit.json"
        record = json.loads(path.read_text()) if path.exists() else None
        return Ended(os.waitstatus_to_exitcode(status), Path(files[0]).read_text(), Path(files[1]).read_text(), record)


def raising(error: BaseException, step: int = 7) -> Callable[[ExitHandler], None]:
    def work(found: ExitHandler) -> None:
        found.step = step
        raise error

    return work


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_run_that_ends_well(out: Path) -> None:
    def work(found: ExitHandler) -> None:
        found.step, found.message = 22, "best 0.97"

    ended = ending(out, work)
    assert ended == Ended(0, "", "", {"outcome": "done", "code": 0, "reason": "best 0.97", "step": 22})
    assert oct((out / "exit.json").stat().st_mode & 0o777) == "0o644"


@pytest.mark.parametrize(
    ("error", "outcome", "code", "with_traceback"),
    [
        (DataError("9 broken images"), "data", 3, False),
        (NonFiniteError("the loss of step 7 is nan"), "non_finite", 4, False),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", 5, False),
        (torch.AcceleratorError("CUDA error: out of memory"), "out_of_memory", 5, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory", 5, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), "out_of_memory", 5, False),
        (RuntimeError("something else"), "error", 1, True),
        (KeyError("missing"), "error", 1, True),
        (ValueError("raised by a test, not by the package"), "error", 1, True),
        (AssertionError(), "error", 1, True),
        (MemoryError(), "out_of_memory", 5, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", 5, False),
        (OSError(errno.EIO, "Input/output error"), "error", 1, True),
    ],
)
def test_each_exception_has_its_outcome_and_code(
    out: Path, error: Exception, outcome: str, code: int, with_traceback: bool
) -> None:
    ended = ending(out, raising(error))
    assert ended.code == code == CODES[outcome]
    assert ended.record == {"outcome": outcome, "code": code, "reason": str(error) or type(error).__name__, "step": 7}
    assert ("Traceback" in ended.stderr) == with_traceback
    assert (str(error) or type(error).__name__).strip("'") in ended.stderr and ended.stdout == ""


def test_the_codes_are_the_documented_ones() -> None:
    assert [CODES[name] for name in ("done", "stopped", "user_error", "data", "non_finite", "out_of_memory", "error")] \
        == [0, 85, 2, 3, 4, 5, 1]  # fmt: skip


def test_a_value_error_of_ours_is_a_message_without_a_traceback(out: Path) -> None:
    ended = ending(out, lambda _: check(change(Run(), train={"batch": 0})))
    assert ended.code == 2 and ended.record is not None and ended.record["outcome"] == "user_error"
    assert ended.record["reason"] == "train.batch is 0: it must be greater than 0"
    assert ended.stderr == "user error: train.batch is 0: it must be greater than 0\n"


def test_a_value_error_of_torch_is_an_error_with_its_traceback(out: Path) -> None:
    ended = ending(out, lambda _: nn.BatchNorm1d(3)(torch.zeros(1, 3)))
    assert ended.code == 1 and ended.record is not None and ended.record["outcome"] == "error"
    assert "Expected more than 1 value per channel" in ended.stderr and "Traceback" in ended.stderr


def test_a_command_line_that_is_not_understood(out: Path) -> None:
    ended = ending(out, raising(SystemExit(2)))
    assert ended.code == 2 and ended.record is not None
    assert (ended.record["outcome"], ended.record["code"]) == ("user_error", 2)


@pytest.mark.parametrize("code", [None, 0])
def test_help_and_show_leave_no_trace(out: Path, code: int | None) -> None:
    assert ending(out, raising(SystemExit(code))) == Ended(0, "", "", None)


def wait(found: ExitHandler) -> None:
    found.step = 11
    assert found.out is not None
    with found.stop.interruptible():
        (found.out.parent / "ready").touch()
        time.sleep(30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_a_run(out: Path, number: signal.Signals) -> None:
    ended = ending(out, wait, send=(number,))
    assert ended.code == 85
    assert ended.record == {"outcome": "stopped", "code": 85, "reason": number.name, "step": 11}
    assert "stopped: " + number.name in ended.stderr and "continues from the last checkpoint" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_third_interrupt_kills(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cls.runtime.signals.ECHO_SECONDS", 0.0)

    def stubborn(found: ExitHandler) -> None:
        for _ in range(3):
            (out.parent / "ready").touch()
            since = time.monotonic()
            while not found.stop.at_once and time.monotonic() - since < 1:
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    ended = ending(out, stubborn, send=(signal.SIGINT, signal.SIGINT))
    assert ended.code == -signal.SIGINT and ended.record is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loader_processes_die_quietly_when_the_group_is_signalled(out: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group, loader workers included."""

    class Slow(torch.utils.data.Dataset[int]):
        def __getitem__(self, index: int) -> int:
            time.sleep(0.02)
            return index

        def __len__(self) -> int:
            return 10_000

    def work(found: ExitHandler) -> None:
        os.setpgid(0, 0)
        with found.stop.interruptible():
            for i, _ in enumerate(torch.utils.data.DataLoader(Slow(), num_workers=2)):
                if i == 3:
                    assert found.out is not None
                    (found.out.parent / "ready").touch()
                    os.killpg(0, number)

    ended = ending(out, work)
    assert ended.code == 85 and ended.record is not None and ended.record["outcome"] == "stopped"
    assert "Traceback" not in ended.stderr


# --- who writes where ---


def test_other_ranks_leave_agreed_ends_to_rank_0(out: Path) -> None:
    assert ending(out, lambda _: None, rank=1).record is None
    assert ending(out, lambda _: check(change(Run(), seed=-1)), rank=1) == Ended(2, "", "", None)
    ended = ending(out, wait, rank=1, send=(signal.SIGTERM,))
    assert (ended.code, ended.record) == (85, None)


def test_a_user_error_of_one_rank_is_reported_by_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU of one rank is taken; a second one with the same problem keeps quiet where the first has said so."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(launch, "first_allocation", lambda _: "CUDA error: out of memory")
    ended = ending(out, lambda _: launch.choose_device("auto"), rank=1)
    assert ended.code == 2 and ended.stderr.startswith("user error: GPU 0") and "nvidia-smi" in ended.stderr
    assert ended.record is not None and ended.record["outcome"] == "user_error"

    def second(_: ExitHandler) -> None:
        assert ending(out, lambda _: launch.choose_device("auto"), rank=1).stderr == ended.stderr
        launch.choose_device("auto")

    assert ending(out, second, rank=2) == Ended(2, "", "", ended.record)


def test_another_ranks_failure_is_kept_when_rank_0_is_stopped_or_loses_its_connection(out: Path) -> None:
    """The rank that ran out of memory knows why the run ended; the others only see it vanish."""
    (out / "exit.json").write_text('{"outcome": "done"}')
    os.utime(out / "exit.json", (1, 1))  # of an earlier attempt

    def after_rank_1(last: Callable[[ExitHandler], object]) -> Callable[[ExitHandler], object]:
        def work(found: ExitHandler) -> None:
            assert ending(out, raising(torch.OutOfMemoryError("on rank 1")), rank=1).code == 5
            last(found)

        return work

    def stopped(found: ExitHandler) -> None:
        with found.stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)

    first = ending(out, after_rank_1(stopped))
    assert first.code == 85 and first.record is not None and first.record["outcome"] == "out_of_memory"
    lost = ending(out, after_rank_1(raising(RuntimeError("Connection closed by peer"))))
    assert lost.record is not None and lost.record["outcome"] == "out_of_memory"


def test_a_stop_replaces_the_record_of_an_earlier_attempt(out: Path) -> None:
    (out / "exit.json").write_text('{"outcome": "done"}')
    os.utime(out / "exit.json", (1, 1))
    ended = ending(out, wait, send=(signal.SIGTERM,))
    assert ended.record is not None and ended.record["outcome"] == "stopped"


def test_nothing_is_written_into_somebody_elses_folder(out: Path) -> None:
    (out / "thesis.tex").write_text("mine")

    def foreign(_: ExitHandler) -> None:
        raise ForeignDirectoryError("out: holds other files")

    ended = ending(out, foreign)
    assert ended.record is None and [p.name for p in out.iterdir()] == ["thesis.tex"]
    for work in (raising(SystemExit(2)), lambda _: check(change(Run(), train={"batch": 0}))):
        assert ending(out, work).record is None


def test_a_rejected_command_does_not_undo_a_finished_run(out: Path) -> None:
    """A misspelt option, or another configuration, with the --out of a run that is done or is being written."""
    (out / "config.yaml").write_text("seed: 0")
    (out / "exit.json").write_text('{"outcome": "done", "reason": "best 0.9"}')
    for work in (raising(SystemExit(2)), lambda _: check(change(Run(), train={"batch": 0}))):
        ended = ending(out, work)
        assert ended.code == 2
        assert ended.record == {"outcome": "done", "reason": "best 0.9"}


def test_a_full_or_closed_disk_does_not_hide_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ended = ending(tmp_path / "file", raising(DataError("9 broken images")))
    assert ended.code == 3 and "9 broken images" in ended.stderr and "could not be written" in ended.stderr


def test_inside_a_process_group_the_status_survives(out: Path) -> None:
    """os._exit instead of gloo's teardown; what was printed is flushed."""

    def work(_: ExitHandler) -> None:
        store = f"file://{out.parent}/store"
        with stdout_to_stderr():  # gloo's own line
            torch.distributed.init_process_group("gloo", store, rank=0, world_size=1, timeout=timedelta(seconds=15))
        print("said before the end")
        raise DataError("9 broken images")

    ended = ending(out, work)
    assert ended.code == 3 and ended.stdout == "said before the end\n"
    assert ended.record is not None and ended.record["outcome"] == "data"


# --- directories that nobody named, and those that are no longer there ---


def claimed(found: ExitHandler, out: Path, unnamed: bool, step: int) -> None:
    (out / "config.yaml").write_text("seed: 0")
    found.claim(out, unnamed)
    found.step = step


@pytest.mark.parametrize("error", [DataError("9 broken"), RuntimeError("a fault"), None, KeyboardInterrupt("SIGTERM")])
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("unnamed", [True, False])
def test_a_directory_without_a_name_is_removed_if_no_step_is_done(
    out: Path, error: BaseException | None, step: int, unnamed: bool
) -> None:
    def work(found: ExitHandler) -> None:
        claimed(found, out, unnamed, step)
        (out / "checkpoints").mkdir()
        if error:
            raise error

    ended = ending(out, work)
    assert out.exists() != (unnamed and not step and error is not None)
    assert (ended.record is None) != out.exists()
    assert (f"{out} was removed: no step was done" in ended.stderr) != out.exists()
    if isinstance(error, KeyboardInterrupt) and out.exists():
        way = f"the same command with --out {out} continues" if unnamed else "the same command continues"
        assert way in ended.stderr


def test_another_rank_leaves_the_removal_to_rank_0(out: Path) -> None:
    """Its exit.json tells rank 0 why the run ended."""

    def work(found: ExitHandler) -> None:
        claimed(found, out, True, 0)
        raise torch.OutOfMemoryError("on rank 1")

    ended = ending(out, work, rank=1)
    assert out.exists() and ended.record is not None and ended.record["outcome"] == "out_of_memory"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt("SIGTERM"), FileNotFoundError(2, "No such file", "best")])
def test_a_directory_that_was_deleted_is_an_error_and_is_not_made_again(out: Path, error: BaseException | None) -> None:
    def work(found: ExitHandler) -> None:
        claimed(found, out, False, 9)
        (out / "config.yaml").unlink()
        out.rmdir()
        if error:
            raise error

    ended = ending(out, work)
    assert ended.code == 2 and not out.exists()
    assert ended.stderr == (
        f"user error: out: {out} was deleted or renamed while the run was writing to it: where it was renamed, the "
        "same command with --out NEW_NAME continues from its last checkpoint\n"
    )


def test_what_a_place_forbids_is_a_message_without_a_traceback(out: Path) -> None:
    for number in (errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOSPC):
        ended = ending(out, raising(OSError(number, os.strerror(number), "/x/y")))
        assert ended.code == 2 and "Traceback" not in ended.stderr and "/x/y" in ended.stderr
        assert ("free space, or name another place with --out or --to" in ended.stderr) == (number in DISK)
    kept = ending(out, lambda found: (claimed(found, out, False, 3), raising(OSError(28, "No space", "/x"))(found)))
    assert "with --out COPY" in kept.stderr


def test_full_shared_memory_is_named(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that finds no room there raises an error that names no file."""
    assert little_shared_memory("/proc") and not little_shared_memory(str(tmp_path)) and not little_shared_memory("/no")
    monkeypatch.setattr("cls.runtime.exit.little_shared_memory", lambda: True)
    ended = ending(out, raising(OSError(errno.ENOSPC, "No space left on device")))
    assert ended.code == 2 and "/dev/shm is full: give it more (docker run --shm-size 1g)" in ended.stderr


def test_only_an_absent_file_is_missing(tmp_path: Path) -> None:
    """A file system that cannot say so just now does not end a run: here with errors that every system has."""
    (tmp_path / "file").write_text("")
    assert is_missing(tmp_path / "none") and not is_missing(tmp_path / "file")
    assert not is_missing(tmp_path / "file" / "below") and not is_missing(tmp_path / ("n" * 300))


def test_memory_that_the_system_lacks_is_out_of_memory() -> None:
    with pytest.raises(OSError) as caught:
        mmap.mmap(-1, 1 << 62)
    assert caught.value.errno == errno.ENOMEM and classify(caught.value) == "out_of_memory"


@pytest.mark.integration
def test_an_exit_of_the_process_that_runs_the_tests_is_a_failure(tmp_path: Path) -> None:
    """Without tests/conftest.py pytest would end in the middle, silently and with status 0."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_leaves.py").write_text("import os\n\n\ndef test_one():\n    os._exit(0)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)))
    assert ended.returncode == 1 and "os._exit(0)" in ended.stdout and "test_one" in ended.stdout
