"""Whether processes can all-reduce, and how fast: each trial in processes of its own.

A hung NCCL cannot be cancelled from inside its process; from outside it can be killed. As a program
(``python -m cls.commands.doctor.transport JSON``) this file is one rank of a trial.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

START_SECONDS = 60.0  # importing torch from a cold network file system
OVER = "ended: another process failed"
NUMBERS = {"gloo": 1 << 22, "nccl": 1 << 24}  # float32 per round: 16 and 64 MiB


@dataclass(frozen=True)
class Trial:
    """The result of all-reducing for a few seconds. ``rate``: bytes of the tensor per second, 0 if it failed;
    ``total``: the sum of 1, 2, … ``world_size`` as found; ``problem``: '' or why there is none."""

    world_size: int
    rate: float = 0.0
    total: float = 0.0
    problem: str = ""


def trial(
    backend: str, world_size: int, seconds: float, variables: Mapping[str, str], start_seconds: float = START_SECONDS
) -> Trial:
    """All-reduce in ``world_size`` processes of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        store = {"file": os.path.join(folder, "store")}
        return run_ranks(backend, range(world_size), world_size, store, seconds, variables, start_seconds)


def run_ranks(
    backend: str, ranks: range, world_size: int, store: Mapping[str, str | int], seconds: float,
    variables: Mapping[str, str], start_seconds: float = START_SECONDS, over: Callable[[], bool] = lambda: False,
) -> Trial:  # fmt: skip
    """All-reduce for ``seconds`` in the processes ``ranks`` of this machine with these environment variables.

    ``store``: where all ``world_size`` processes meet, a ``file`` or a TCP store's ``host``, ``port`` and ``prefix``.
    Returns within ``start_seconds + 3 * seconds`` even if they hang, or at once if ``over()`` becomes true; they are
    killed then.
    """
    limit = start_seconds + 3 * seconds
    facts = {"backend": backend, "world_size": world_size, "seconds": seconds, "limit": limit, "store": dict(store)}
    command = [sys.executable, "-m", "cls.commands.doctor.transport"]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables)
    with tempfile.TemporaryDirectory() as folder:
        started: list[subprocess.Popen[bytes]] = []
        try:
            for gpu, rank in enumerate(ranks):
                words = [*command, json.dumps(facts | {"rank": rank, "gpu": gpu})]
                with open(os.path.join(folder, f"{rank}.out"), "wb") as out:  # in a session: killed with its children
                    started.append(subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=out,
                                                    stderr=subprocess.STDOUT, start_new_session=True))  # fmt: skip
            failed, problem = _wait(started, ranks, limit, over)
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output = {rank: Path(folder, f"{rank}.out").read_text(errors="replace").splitlines() for rank in ranks}
    if problem:
        last = next((line for line in reversed(output[failed]) if line.strip()), "")
        return Trial(world_size, problem=f"{problem}: {last[:200]}" if last else problem)
    found = json.loads(output[ranks.start][-1])
    return Trial(world_size, found["rate"], found["total"])


def _wait(
    started: list[subprocess.Popen[bytes]], ranks: range, limit: float, over: Callable[[], bool]
) -> tuple[int, str]:
    """A rank that failed and its problem, as soon as it is known; '' when all have succeeded."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        codes = dict(zip(ranks, (process.poll() for process in started), strict=True))
        if failed := [rank for rank, code in codes.items() if code]:
            return failed[0], f"rank {failed[0]} ended with status {codes[failed[0]]}"
        if all(code == 0 for code in codes.values()):
            return ranks.start, ""
        if over():
            return ranks.start, OVER
        time.sleep(0.05)
    return ranks.start, f"hung: no answer within {limit:.0f} s"


def main() -> None:
    """One rank: it prints ``{"rate": bytes per second, "total": sum of 1 … world}`` as its last line."""
    facts = SimpleNamespace(**json.loads(sys.argv[1]))
    signal.setitimer(signal.ITIMER_REAL, facts.limit + 10)  # ends even a hung process whose parent was killed
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", facts.gpu) if facts.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place, timeout = facts.store, timedelta(seconds=facts.limit)
    if "file" in place:
        where: dict[str, Any] = {"init_method": f"file://{place['file']}"}
    else:
        store = dist.TCPStore(place["host"], place["port"], is_master=False, timeout=timeout)  # type: ignore[attr-defined]  # torch does not export it by name
        where = {"store": dist.PrefixStore(place["prefix"], store)}  # type: ignore[attr-defined]  # as above
    dist.init_process_group(facts.backend, rank=facts.rank, world_size=facts.world_size, timeout=timeout, **where)
    tensor = torch.empty(NUMBERS[facts.backend], device=device)
    over = torch.zeros(1, device=device)
    rounds, since = -2, 0.0  # the first rounds set connections up and are not counted
    while over.item() == 0:
        tensor.fill_(facts.rank + 1)
        dist.all_reduce(tensor)
        rounds += 1
        if rounds <= 0:
            total, since = tensor.max().item(), time.monotonic()
        over.fill_(float(rounds > 0 and time.monotonic() - since > facts.seconds))
        dist.broadcast(over, 0)  # one rank's clock decides for all
    rate = rounds * tensor.numel() * tensor.element_size() / (time.monotonic() - since)
    assert tensor.min() == tensor.max() == total == facts.world_size * (facts.world_size + 1) / 2, "a wrong sum"
    print(json.dumps({"rate": rate, "total": total}), flush=True)
    os._exit(0)  # closing the group may hang or abort, which is not the transport's fault


if __name__ == "__main__":
    main()
