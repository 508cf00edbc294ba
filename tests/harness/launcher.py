"""``python -m tests.harness.launcher RECIPE …``: what ``accelerate launch train.py`` is to a run, without its start.

It hands its arguments, directory, environment and output to the server whose socket is HARNESS_SERVER, waits for the
run, of HARNESS_WORLD processes, and
ends with its status. As ``accelerate launch`` does, it ends at once on SIGINT, which the run gets too, and
leaves the run behind, saving.
"""

import json
import os
import signal
import sys

from tests.harness.runs import submit


def main() -> None:
    env = dict(os.environ)
    world = int(env.get("HARNESS_WORLD", "1"))
    request = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": env, "world": world, "fault": "", "patch": ""}
    pid, answers = submit(env["HARNESS_SERVER"], request, (1, 2))

    def pass_on(number: int, frame: object) -> None:
        os.kill(pid, number)
        os._exit(1)

    signal.signal(signal.SIGINT, pass_on)
    code = max(json.loads(next(answers)), key=abs)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
