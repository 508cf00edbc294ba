"""In place of ``accelerate launch`` where a test asks what a script of slurm/ starts, not what is computed (no torch).

Notes how it was started in FAKE_NOTES/JOB.jsonl, then behaves like a run: config.yaml, a stop-file, exit.json. Seconds:
FAKE_IMPORT before it handles signals, FAKE_RUN of the run, FAKE_SAVE of the checkpoint when it is asked to stop.
"""

import json
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import FrameType

ASKED: list[int] = []


def note(folder: Path, argv: list[str]) -> None:
    """One short line is appended whole, also by several nodes at once."""
    own = {"argv": argv, "cwd": os.getcwd(), "node": os.environ["SLURMD_NODENAME"]}
    own |= {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "cpus": os.environ.get("SLURM_CPUS_PER_TASK", "")}
    own |= {"attempt": os.environ.get("SLURM_RESTART_COUNT", "0"), "data": os.environ.get("CLS_DATA", "")}
    with open(folder / f"{os.environ['SLURM_JOB_ID']}.jsonl", "a") as file:
        file.write(json.dumps(own) + "\n")


def ask(number: int, _: FrameType | None) -> None:
    ASKED.append(number)


def seconds(name: str) -> float:
    return float(os.environ.get(name, "0"))


def leave(out: Path, outcome: str, code: int) -> None:
    (out / "aside").write_text(json.dumps({"outcome": outcome, "code": code, "reason": outcome, "step": 1}))
    (out / "aside").replace(out / "exit.json")
    sys.exit(1 if code else 0)


def main(argv: list[str]) -> None:
    note(Path(os.environ["FAKE_NOTES"]), argv)
    outs = [os.path.expanduser(b) for a, b in pairwise(argv) if a == "--out"]
    outs += [os.path.expanduser(word.removeprefix("--out=")) for word in argv if word.startswith("--out=")]
    if not outs or argv[argv.index("--machine_rank") + 1] != "0":
        return
    out = Path(outs[-1])
    time.sleep(seconds("FAKE_IMPORT"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, ask)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").touch()
    for name in ("stop", "exit.json"):
        (out / name).unlink(missing_ok=True)
    (out / "running").touch()
    end = time.monotonic() + seconds("FAKE_RUN")
    while time.monotonic() < end:
        time.sleep(0.05)
        if ASKED or (out / "stop").exists():
            end = time.monotonic() + seconds("FAKE_SAVE")
            while time.monotonic() < end:
                time.sleep(0.05)
            leave(out, "stopped", 85)
    leave(out, "done", 0)


main(sys.argv[1:])
