"""Runs the members of a sweep on this machine, one or several at once."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cls.commands.sweep.members import Member
from cls.runtime.lock import in_use, owner_of
from cls.runtime.paths import writing
from cls.runtime.signals import Stopped, StopSignal
from cls.runtime.system import cores
from cls.tracking.run_status import how_it_ended, written

POLL_SECONDS = 0.2
EXIT_SECONDS = 2.0  # from releasing the lock to writing exit.json
TAIL_LINES = 8  # of the output of a member that failed


@dataclass(frozen=True)
class Slot:
    """What one of several jobs at once has to itself: CUDA_VISIBLE_DEVICES and cores; empty: all that there are."""

    gpus: str
    cores: frozenset[int]

    @contextlib.contextmanager
    def inherited(self) -> Iterator[None]:
        """Within it, this thread is bound to the slot's cores, as the processes are that it starts."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores or before)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def run_members(
    members: Sequence[Member],
    commands: Sequence[Sequence[str]],
    launch: int,
    stop: StopSignal,
    jobs: int = 1,
    to_come: int = 0,
) -> dict[str, str]:
    """Run each member that is not done, ``jobs`` at once; returns the reason of each that failed, by directory.

    The first ``launch`` words of each command are a launcher and, last, the training script. A failure is reported with
    the end of its output (all of it is in DIRECTORY.log), and the next member is run. A stop request is passed to the
    running members, which save and exit; then Stopped is raised. ``to_come``: runs after these, for the time left.
    """
    failed: dict[str, str] = {}
    todo = deque((member, command) for member, command in zip(members, commands, strict=True) if member.open)
    print(f"{len(members) - len(todo)} of {len(members)} are done or running elsewhere", file=sys.stderr)
    if not todo:
        return failed
    program, count, since = executable(commands[0][:launch]), len(todo), time.monotonic()
    slots, running, ended = deque(slots_of(jobs, len(todo))), dict[Job, Slot](), ""
    if shared := slots[0].cores:
        print(f"{min(jobs, count)} at once, each on {len(shared)} of {cores()} cores", file=sys.stderr)
    with stop.deferred("the checkpoint of each current run"), Console(stderr=True).status("starting") as shown:
        while running or (todo and not (stop.reason or ended)):
            while todo and slots and not (stop.reason or ended):
                member, command = todo.popleft()
                if job := _start(member, [program, *command[1:]], slots[0], f"[{count - len(todo)}/{count}]"):
                    running[job] = slots.popleft()
            for job in [job for job in running if not job.running(bool(stop.reason) + stop.at_once)]:
                slots.append(running.pop(job))
                outcome, reason = job.result()
                done = count - len(todo) - len(running)
                took, left = time.monotonic() - job.began, count - done + to_come
                eta = (time.monotonic() - since) / done * left
                after = f"({_clock(took)}; {left} left, ETA {_clock(eta)})"
                print(f"{job.name} {outcome}: {reason} {after}", file=sys.stderr, flush=True)
                if outcome == "stopped":  # by the end of its job or a stop file: the next ones would be, too
                    ended = reason
                elif outcome != "done":
                    failed[str(job.path)] = f"{outcome}: {reason}"
            shown.update(escape("\n".join(job.last_line for job in running)))
            time.sleep(POLL_SECONDS)
    if stop.reason or ended:
        raise Stopped(stop.reason or ended)
    return failed


def _start(member: Member, command: Sequence[str], slot: Slot, name: str) -> "Job | None":
    """The running job; None where the member's directory is in use."""
    if in_use(member.path):
        print(f"{name} {member.path} is running elsewhere now", file=sys.stderr, flush=True)
        return None
    print(f"{name} {shlex.join(command)}", file=sys.stderr, flush=True)
    return Job(member.path, command, slot, name)


def slots_of(jobs: int, runs: int) -> list[Slot]:
    """A slot for each job: its GPU, and an equal part of the cores for as many as there are runs.

    Without a part of its own, each run would start as many loader processes as one that has the machine to itself.
    """
    most = min(jobs, runs)
    own, each = sorted(os.sched_getaffinity(0)), cores() // most if most > 1 else 0
    return [Slot(gpus, frozenset(own[i * each : (i + 1) * each])) for i, gpus in enumerate(gpus_of_jobs(jobs))]


def gpus_of_jobs(jobs: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each job: one GPU each, or for a single job '', which leaves it as it is.

    With several GPUs each, launchers of several processes would compete for one port. ValueError for more jobs than
    GPUs, which would share one.
    """
    gpus = gpu_numbers()
    if jobs == 1 or not gpus:
        return [""] * jobs
    if jobs > len(gpus):
        raise ValueError(f"jobs is {jobs}, but there are {len(gpus)} GPUs: use --jobs {len(gpus)} or less")
    return gpus[:jobs]


def gpu_numbers() -> list[str]:
    """The GPUs that a process started here would see, as CUDA_VISIBLE_DEVICES names them; without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sorted(Path("/dev").glob("nvidia[0-9]*"), key=lambda path: (len(path.name), path.name))
    numbers = [path.name.removeprefix("nvidia") for path in found] if visible is None else visible.split(",")
    return [number for number in numbers if number not in ("", "-1")]


class Job:
    """The process of one run, in a process group of its own: Ctrl-C then reaches it once, from here."""

    def __init__(self, path: Path, command: Sequence[str], slot: Slot, name: str) -> None:
        self.path, self.name, self.began, self.last_line = path, name, time.monotonic(), "starting"
        self._log, self._sent, self._orphaned = Path(f"{path}.log"), 0, False
        with writing("out", self._log.parent):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            output = self._log.open("ab")
        self._before, self._owner = written(path / "exit.json"), owner_of(path / "lock")
        with output, slot.inherited():
            self._first = self._log.stat().st_size
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": slot.gpus} if slot.gpus else {}),
            )  # fmt: skip
        self._text = self._log.open(errors="replace")
        self._text.seek(self._first)

    def running(self, requests: int) -> bool:
        """Whether it runs, which may outlast its launcher while it saves; passes on so many stop requests in all.

        A run that is rejected because another one holds the directory's lock ends with its launcher.
        """
        if self._child.poll() is not None and not (in_use(self.path) and owner_of(self.path / "lock") != self._owner):
            return False
        self._orphaned = self._child.poll() is not None
        if requests > self._sent:
            self._sent = requests
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGINT)
        if lines := [line for line in self._text.read().splitlines() if line.strip()]:
            self.last_line = lines[-1].strip()
        return True

    def result(self) -> tuple[str, str]:
        """Outcome and reason of the ended run."""
        if self._orphaned:
            time.sleep(EXIT_SECONDS)
        self._text.seek(self._first)
        with self._text as text:
            lines = deque((line.rstrip() for line in text if line.strip()), TAIL_LINES)
        outcome, reason = how_it_ended(self.path, self._before, self._child.returncode, lines)
        if outcome not in ("done", "stopped"):
            print("".join(f"    {line}\n" for line in lines) + f"    (all of it: {self._log})", file=sys.stderr)
        return outcome, reason


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def executable(launch: Sequence[str]) -> str:
    """The path of the launcher, next to this Python or in PATH; ValueError if it or the training script is missing."""
    program = shutil.which(launch[0], path=str(Path(sys.executable).parent)) or shutil.which(launch[0])
    if program is None:
        raise ValueError(f"launch: there is no program {launch[0]!r}")
    if not Path(launch[-1]).is_file():
        raise ValueError(
            f"launch: there is no {launch[-1]} in {Path.cwd()}: go to the checkout, or name it: "
            "--launch 'accelerate launch PATH/train.py'"
        )
    return program
