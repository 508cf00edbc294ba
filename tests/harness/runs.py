"""Real runs of train.py without their start: forked from a server that has imported torch, see server.py."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.harness import ROOT, environment
from tests.harness.records import Result


def submit(server: str, request: dict[str, object], output: tuple[int, int]) -> tuple[int, Iterator[str]]:
    """Start a run; its process group, and an iterator that gives its exit statuses as JSON when it is over."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(server)
    socket.send_fds(client, [json.dumps(request).encode()], output)
    answers = client.makefile()
    return int(answers.readline()), answers


class Runs:
    """The server, started with the first run, and a client of it."""

    def __init__(self, **env: str) -> None:
        self.env = environment(PYTHONPATH=str(ROOT), **env)
        self._folder = tempfile.mkdtemp(prefix="cls-runs-")  # not pytest's: a socket's path has at most 107 bytes
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            self._server.kill()
            self._server.wait()
        shutil.rmtree(self._folder)

    @property
    def address(self) -> str:
        """The server's socket."""
        path = Path(self._folder, "socket")
        if not self._server:
            command = [sys.executable, "-m", "tests.harness.server", str(path)]
            self._server = subprocess.Popen(command, env=self.env, cwd=ROOT)
        while not path.exists():
            assert self._server.poll() is None
            time.sleep(0.02)
        return str(path)

    def run(
        self, out: Path, args: list[str], world_size: int = 1, fault: str = "", patch: str = "", **env: str
    ) -> Result:
        """train.py with ``args`` in so many gloo processes, to its end.

        ``fault``: see faults.py. ``patch``: "module:function" that each process calls before it trains.
        """
        server, log, since = self.address, out.parent / f"{out.name}.log", time.monotonic()
        request = {
            "argv": [*args, "--out", str(out)], "cwd": str(out.parent), "env": self.env | env, "world": world_size,
            "fault": fault, "patch": patch,
        }  # fmt: skip
        with log.open("w") as file:
            _, answers = submit(server, request, (file.fileno(), file.fileno()))
            codes = json.loads(next(answers))
        return Result(codes, log.read_text(), out, time.monotonic() - since)


def launch(out: Path, args: list[str], processes: int = 1, **env: str) -> Result:
    """The real command, as a user starts it: ``python train.py``, or torchrun for several processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    command += [str(ROOT / "train.py"), *args, "--out", str(out)]
    done = subprocess.run(command, env=environment(**env), capture_output=True, text=True, timeout=600, cwd=out.parent)
    return Result([done.returncode], done.stdout + done.stderr, out)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
