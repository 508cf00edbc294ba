"""A training script that costs little to start: real runs of train.py, forked from a server that has loaded torch.

``lent.py RECIPE …`` is what a launcher is to a run: it passes its arguments, directory, environment and output to the
server, waits for the run and ends with its status. As ``accelerate launch`` does, it is gone at once on SIGINT, which
the run gets too, and leaves the run behind, saving. LENT is the server's socket; ``lent.py --serve SOCKET`` is the
server.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def order(server: str, argv: list[str], env: dict[str, str], output: tuple[int, int]) -> tuple[int, Iterator[str]]:
    """Start a run; its process id, and what gives its exit status (minus the signal's number) when it is over."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(server)
    request = {"argv": argv, "cwd": os.getcwd(), "env": env}
    socket.send_fds(client, [json.dumps(request).encode()], output)
    answers = client.makefile()
    return int(answers.readline()), answers


def borrow() -> None:
    pid, answers = order(os.environ["LENT"], sys.argv[1:], dict(os.environ), (1, 2))

    def pass_on(number: int, frame: Any) -> None:
        os.kill(pid, number)
        os._exit(1)

    signal.signal(signal.SIGINT, pass_on)
    code = int(next(answers))
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(path: str) -> None:
    from forked import load

    load()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                keep(client)
            client.close()


def keep(client: socket.socket) -> None:
    """Fork one run and tell its client how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, fds, _, _ = socket.recv_fds(client, 1 << 20, 2)
    pid = os.fork()
    if pid == 0:
        client.close()
        run(json.loads(data), fds)
    try:
        client.sendall(f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        client.sendall(f"{code}\n".encode())
    finally:
        os._exit(0)


def run(request: dict[str, Any], fds: list[int]) -> None:
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    from forked import leaving, weather

    with leaving():
        import train

        weather(0)
        train.main(request["argv"])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        borrow()
