"""Run the members of a sweep on this machine, one after the other."""

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
from typing import TextIO

from rich.console import Console
from rich.markup import escape

from cls.commands.sweep.members import Member
from cls.runtime.exit import CODES
from cls.runtime.lock import in_use, owner_of
from cls.runtime.paths import writing
from cls.runtime.signals import Stopped, StopSignal
from cls.tracking.run_files import read_json

POLL_SECONDS = 0.2
LAST_WORD_SECONDS = 2.0  # from giving the lock back to exit.json
TAIL_LINES = 8  # of the output of a member that failed


def run_members(
    members: Sequence[Member], commands: Sequence[Sequence[str]], launch: int, stop: StopSignal
) -> dict[str, str]:
    """Run each member that is not done to its end; gives those that failed, by directory, with the reason.

    The first ``launch`` words of each command are a launcher and, last, the training script.
    One that fails is told of, with the end of its output (all of it is in DIRECTORY.log), and the others go on. A
    request to stop is passed to the running one, which saves and leaves; then Stopped is raised.
    """
    failed: dict[str, str] = {}
    program = executable(commands[0][:launch])
    todo = [(member, command) for member, command in zip(members, commands, strict=True) if member.open]
    print(f"{len(members) - len(todo)} of {len(members)} are done or running elsewhere", file=sys.stderr)
    since = time.monotonic()
    for done, (member, command) in enumerate(todo):
        if in_use(member.path):
            print(f"[{done + 1}/{len(todo)}] {member.path} is running elsewhere by now", file=sys.stderr, flush=True)
            continue
        print(f"[{done + 1}/{len(todo)}] {shlex.join(command)}", file=sys.stderr, flush=True)
        began = time.monotonic()
        with stop.deferred("the checkpoint of the run that is going on"):
            outcome, reason = _run(member, [program, *command[1:]], stop)
        if stop.reason:
            raise Stopped(stop.reason)
        now = time.monotonic()
        left = (now - since) / (done + 1) * (len(todo) - done - 1)
        took = f"({_clock(now - began)}; {len(todo) - done - 1} left, ETA {_clock(left)})"
        print(f"[{done + 1}/{len(todo)}] {outcome}: {reason} {took}", file=sys.stderr, flush=True)
        if outcome == "stopped":  # by its job's end or a stop-file: the next ones would be
            raise Stopped(reason)
        if outcome != "done":
            failed[str(member.path)] = f"{outcome}: {reason}"
    return failed


def _run(member: Member, command: Sequence[str], stop: StopSignal) -> tuple[str, str]:
    """Outcome and reason of one run; it has its own process group, so that a Ctrl-C reaches it once, from here."""
    log, end = Path(f"{member.path}.log"), member.path / "exit.json"
    with writing("out", log.parent):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    before = _written(end)
    with output:
        first = output.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        _wait(child, member.path, log, stop)
    with log.open(errors="replace") as text:
        text.seek(first)
        lines = deque((line.rstrip() for line in text if line.strip()), TAIL_LINES)
    if _written(end) not in (0, before):  # 0: a run that goes on takes its last end away first
        record = read_json(end)
        outcome, reason = str(record["outcome"]), str(record["reason"])
    else:
        outcome, reason = _unwritten(child.returncode, lines)
    if outcome not in ("done", "stopped"):
        print("".join(f"    {line}\n" for line in lines) + f"    (all of it: {log})", file=sys.stderr)
    return outcome, reason


def _unwritten(code: int, lines: Sequence[str]) -> tuple[str, str]:
    """Outcome and reason of a run that left no exit.json: by its signal, or by what it said before its launcher did."""
    if code < 0:
        return "killed", signal.Signals(-code).name
    for line in reversed(lines):
        said, _, reason = line.partition(": ")
        if said.replace(" ", "_") in CODES:
            return said.replace(" ", "_"), reason
    return "error", f"ended with status {code}"


def _wait(child: subprocess.Popen[bytes], out: Path, log: Path, stop: StopSignal) -> None:
    """Until the run is over: its launcher may be gone before it, while it still saves.

    A run that is refused because another one holds the directory's lock is over with its launcher.
    """
    told, orphaned, before = 0, False, owner_of(out / "lock")
    with log.open(errors="replace") as text, Console(stderr=True).status("starting") as shown:
        text.seek(0, os.SEEK_END)
        while child.poll() is None or (in_use(out) and owner_of(out / "lock") != before):
            asked = bool(stop.reason) + stop.at_once
            if asked > told:
                told = asked
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGINT)
            orphaned = orphaned or child.poll() is not None
            if line := _last_line(text):
                shown.update(escape(line))
            time.sleep(POLL_SECONDS)
    if orphaned:
        time.sleep(LAST_WORD_SECONDS)


def _last_line(text: TextIO) -> str:
    return next((line.strip() for line in reversed(text.readlines()) if line.strip()), "")


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def executable(launch: Sequence[str]) -> str:
    """The program of the launching words, looked for beside this Python, then in PATH; ValueError if there is none."""
    program = shutil.which(launch[0], path=str(Path(sys.executable).parent)) or shutil.which(launch[0])
    if program is None:
        raise ValueError(f"launch: there is no program {launch[0]!r}")
    if not Path(launch[-1]).is_file():
        raise ValueError(
            f"launch: there is no {launch[-1]} in {Path.cwd()}: go to the checkout, or name it: "
            "--launch 'accelerate launch PATH/train.py'"
        )
    return program
