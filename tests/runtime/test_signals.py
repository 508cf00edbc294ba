"""Requests to stop: who may ask, how a request is received once, and how ranks agree on it without waiting."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cls.runtime import signals as module
from cls.runtime.signals import SIGNALS, Stopped, StopSignal
from tests.harness import ROOT, environment


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> StopSignal:
    """One that listens, and looks at every call."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    found = StopSignal()
    found.listen()
    return found


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_sets_the_flag(stop: StopSignal, number: signal.Signals) -> None:
    assert not stop.requested() and stop.reason == ""
    os.kill(os.getpid(), number)
    assert stop.requested() and stop.reason == number.name and not stop.at_once


def test_the_first_reason_is_kept(stop: StopSignal) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == "SIGUSR1" and not stop.at_once


def test_an_echo_of_ctrl_c_is_the_same_request_and_a_later_one_is_not(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested() and not stop.at_once
    monkeypatch.setattr(module, "ECHO_SECONDS", 0.0)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.at_once
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the third one kills


def test_what_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    StopSignal().listen()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_interruptible_work_is_cut_off_and_other_work_is_not(stop: StopSignal) -> None:
    with pytest.raises(Stopped, match="SIGTERM"), stop.interruptible(), stop.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    with pytest.raises(Stopped, match="SIGTERM"), stop.interruptible():  # asked before: not begun
        raise AssertionError
    os.kill(os.getpid(), signal.SIGTERM)  # outside: nothing is raised


def test_leaving_an_inner_part_leaves_the_outer_interruptible(stop: StopSignal) -> None:
    with pytest.raises(Stopped), stop.interruptible():
        with stop.interruptible():
            pass
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)


def test_a_stop_file_is_a_request_and_one_of_an_earlier_attempt_is_not(stop: StopSignal, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    stop.watch(tmp_path)
    assert not stop.requested() and not (tmp_path / "stop").exists()
    (tmp_path / "stop").touch()
    assert stop.requested() and stop.reason == f"{tmp_path / 'stop'} exists"


@pytest.mark.parametrize(
    ("left", "leave_seconds", "asked"), [(1000, 30, False), (100, 30, False), (80, 30, True), (100, 50, True)]
)
def test_the_jobs_end_is_a_request_when_leaving_would_take_longer(
    stop: StopSignal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float, leave_seconds: float, asked: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + left)))
    stop.watch(tmp_path)
    stop.leave_seconds = leave_seconds
    assert stop.requested() == asked
    assert not asked or "the job ends in" in stop.reason


def test_slow_steps_are_given_time_to_end(stop: StopSignal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 100)))
    stop.watch(tmp_path)
    assert not stop.requested()
    stop._asked -= 10  # the last step took ten seconds
    assert stop.requested()


ORPHAN = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from cls.runtime import signals
signals.LOOK_SECONDS = 0.0
found = signals.StopSignal()
assert not found.requested()
print(os.getpid(), flush=True)
while os.getppid() == int(sys.argv[2]):
    time.sleep(0.01)
open(sys.argv[3], "w").write(f"{found.requested()} {found.reason}")
"""


@pytest.mark.parametrize(("launched", "said"), [(True, "True the launcher has ended"), (False, "False ")])
def test_the_launchers_death_is_a_request_and_a_shells_is_not(tmp_path: Path, launched: bool, said: str) -> None:
    parent = (
        "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2], "
        "str(os.getpid()), sys.argv[3]], stdout=subprocess.PIPE); p.stdout.readline()"
    )
    extra = {"TORCHELASTIC_RUN_ID": "1"} if launched else {}
    env = {k: v for k, v in environment(**extra).items() if launched or not k.startswith("TORCHELASTIC")}
    out = tmp_path / "said"
    subprocess.run([sys.executable, "-c", parent, ORPHAN, str(ROOT), str(out)], env=env, check=True, timeout=60)
    since = time.monotonic()
    while not out.exists() or not out.read_text():
        assert time.monotonic() - since < 30
        time.sleep(0.02)
    assert out.read_text() == said
