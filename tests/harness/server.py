"""``python -m tests.harness.server SOCKET``: imports torch once, then forks the processes of each run.

A request is one JSON line with two file descriptors, for standard output and error. The answers are the run's process
group and, when all its processes are over, their exit statuses.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.harness import ROOT
from tests.harness.runs import free_port

PATIENCE_SECONDS = 300
LOADED = ("train", "timm", "torch._dynamo", "torch.utils.tensorboard", "pyarrow.parquet", "cls.evaluation.plots",
          "tests.harness.faults", "tests.harness.sharding")  # fmt: skip


def load() -> None:
    """What every run pays at its start, once for all children: 1 s of their CPU each."""
    for name in LOADED:
        with contextlib.suppress(ImportError):  # tensorboard is an extra
            importlib.import_module(name)
    import torch

    from cls.commands.parsing import parse_run
    from cls.models.build import check_model

    torch.set_num_threads(1)
    run = parse_run(["digits"])
    check_model(run.model, run.data)
    gc.collect()
    gc.freeze()


def serve(path: str) -> None:
    load()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                with exiting():
                    keep(client)
            client.close()


def keep(client: socket.socket) -> None:
    """Fork the processes of one run and answer how they ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 2)
    request, port, pids = json.loads(data), free_port(), list[int]()
    for rank in range(request["world"]):
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, pids[0] if pids else 0)
            client.close()
            with exiting():
                run_rank(request, rank, port, descriptors)
        os.setpgid(pid, pids[0] if pids else pid)  # as the child does: the next one must find the group
        pids.append(pid)
    for descriptor in descriptors:
        os.close(descriptor)  # they may be on a disk that the test unmounts
    client.sendall(f"{pids[0]}\n".encode())
    client.sendall(f"{json.dumps(statuses(pids))}\n".encode())


def statuses(pids: list[int]) -> list[int]:
    """Exit statuses; a run that hangs is killed, which no test takes for a good end."""
    found: dict[int, int] = {}
    until = time.monotonic() + PATIENCE_SECONDS
    while len(found) < len(pids):
        for pid in set(pids) - set(found):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                found[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [found[pid] for pid in pids]


def run_rank(request: dict[str, Any], rank: int, port: int, descriptors: list[int]) -> None:
    """One process of a run."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[1], 2)
    world = request["world"]
    os.environ.clear()
    os.environ.update(request["env"])
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    os.chdir(request["cwd"])
    sys.argv = [str(ROOT / "train.py"), *request["argv"]]
    import torch

    import train
    from tests.harness import faults  # in the server already

    torch.set_num_threads(1)  # makes its thread pool anew after the fork, before several threads do so at once

    faults.change_surroundings(rank)
    if request["patch"]:
        module, _, name = request["patch"].partition(":")
        getattr(importlib.import_module(module), name)(sys.argv[1:])
    faults.plant(request["fault"], rank, sys.argv[1:])
    train.main(sys.argv[1:])


@contextmanager
def exiting() -> Iterator[None]:
    """The end of a child: with the exit status that Python itself would have, and nothing of the parent's clean-up."""
    code = 1
    try:
        yield
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
