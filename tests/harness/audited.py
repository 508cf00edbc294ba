"""A program with a record of its forks: ``audited.py FILE train|cls WORDS…``; FILE gets the threads alive at each fork.

One JSON list of thread names a line.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
record = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def at_each_fork(event: str, args: tuple[Any, ...]) -> None:
    if event in ("os.fork", "os.forkpty"):
        os.write(record, json.dumps([thread.name for thread in threading.enumerate()]).encode() + b"\n")


if __name__ == "__main__":
    program, words = sys.argv[2], sys.argv[3:]
    sys.addaudithook(at_each_fork)
    if program == "train":
        import train

        train.main(words)
    else:
        from cls.commands.main import main

        sys.argv = ["cls", *words]
        main()
