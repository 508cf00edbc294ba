"""Runs the members of a sweep on this machine, one after the other."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cls.commands.sweep.members import Member
from cls.runtime.exit import CODES
from cls.runtime.lock import in_use, owner_of
from cls.runtime.paths import writing
from cls.runtime.signals import Stopped, StopSignal
from cls.tracking.run_status import Exit, read_exit

POLL_SECONDS = 0.2
EXIT_SECONDS = 2.0  # from releasing the lock to writing exit.json
TAIL_LINES = 8  # of the output of a member that failed


def run_members(
    members: Sequence[Member], commands: Sequence[Sequence[str]], launch: int, stop: StopSignal
) -> dict[str, str]:
    """Run each member that is not done; returns the reason of each that failed, by directory.

    The first ``launch`` words of each command are a launcher and, last, the training script. A failure is reported with
    the end of its output (all of it is in DIRECTORY.log), and the next member is run. A stop request is passed to the
    running member, which saves and exits; then Stopped is raised.
    """
    failed: dict[str, str] = {}
    program = executable(commands[0][:launch])
    todo = [(member, command) for member, command in zip(members, commands, strict=True) if member.open]
    print(f"{len(members) - len(todo)} of {len(members)} are done or running elsewhere", file=sys.stderr)
    since = time.monotonic()
    for number, (member, command) in enumerate(todo, 1):
        began, of = time.monotonic(), f"[{number}/{len(todo)}]"
        if in_use(member.path):
            print(f"{of} {member.path} is running elsewhere now", file=sys.stderr, flush=True)
            continue
        print(f"{of} {shlex.join(command)}", file=sys.stderr, flush=True)
        with stop.deferred("the checkpoint of the current run"):
            outcome, reason = _run(member, [program, *command[1:]], stop)
        if stop.reason:
            raise Stopped(stop.reason)
        now, left = time.monotonic(), len(todo) - number
        took = f"({_clock(now - began)}; {left} left, ETA {_clock((now - since) / number * left)})"
        print(f"{of} {outcome}: {reason} {took}", file=sys.stderr, flush=True)
        if outcome == "stopped":  # by the end of its job or a stop file: the next ones would be, too
            raise Stopped(reason)
        if outcome != "done":
            failed[str(member.path)] = f"{outcome}: {reason}"
    return failed


def _run(member: Member, command: Sequence[str], stop: StopSignal) -> tuple[str, str]:
    """Outcome and reason of one run, in a process group of its own: Ctrl-C then reaches it once, from here."""
    log, end = Path(f"{member.path}.log"), member.path / "exit.json"
    with writing("out", log.parent):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    before = _written(end)
    with output:
        first = log.stat().st_size
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        _wait(child, member.path, log, stop)
    with log.open(errors="replace") as text:
        text.seek(first)
        lines = deque((line.rstrip() for line in text if line.strip()), TAIL_LINES)
    found = read_exit(member.path) if _written(end) not in (0, before) else Exit()  # 0: a resumed run deletes it first
    outcome, reason = found if found.outcome else _unwritten(child.returncode, lines)
    if outcome not in ("done", "stopped"):
        print("".join(f"    {line}\n" for line in lines) + f"    (all of it: {log})", file=sys.stderr)
    return outcome, reason


def _unwritten(code: int, lines: Sequence[str]) -> tuple[str, str]:
    """Outcome and reason of a run without exit.json: by its signal, or its last message before its launcher's."""
    if code < 0:
        return "killed", signal.Signals(-code).name
    for line in reversed(lines):
        said, _, reason = line.partition(": ")
        if said.replace(" ", "_") in CODES:
            return said.replace(" ", "_"), reason
    return "error", f"ended with status {code}"


def _wait(child: subprocess.Popen[bytes], out: Path, log: Path, stop: StopSignal) -> None:
    """Wait for the run, which may outlive its launcher while it saves; show its last line; pass stop requests on.

    A run that is rejected because another one holds the directory's lock ends with its launcher.
    """
    sent, orphaned, before = 0, False, owner_of(out / "lock")
    with log.open(errors="replace") as text, Console(stderr=True).status("starting") as shown:
        text.seek(0, os.SEEK_END)
        while child.poll() is None or (in_use(out) and owner_of(out / "lock") != before):
            requests = bool(stop.reason) + stop.at_once
            if requests > sent:
                sent = requests
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGINT)
            orphaned = orphaned or child.poll() is not None
            if lines := [line for line in text.read().splitlines() if line.strip()]:
                shown.update(escape(lines[-1].strip()))
            time.sleep(POLL_SECONDS)
    if orphaned:
        time.sleep(EXIT_SECONDS)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


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
