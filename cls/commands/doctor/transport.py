"""Whether processes of this machine can add tensors together, and how fast: each trial in processes of its own.

A hung NCCL cannot be cancelled from inside its process; from outside it can be killed. As a program
(``python -m cls.commands.doctor.transport --backend gloo …``) this file is one rank of a trial.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

START_SECONDS = 60.0  # importing torch from a cold network file system
NUMBERS = {"gloo": 1 << 22, "nccl": 1 << 24}  # float32 per round: 16 and 64 MiB


@dataclass(frozen=True)
class Trial:
    """What came of adding tensors for a few seconds. ``rate`` is in bytes of the tensor per second, 0 if it failed.

    ``total`` is the sum that was found, of 1, 2, … ``world``; ``problem`` is '' or why there is none.
    """

    world_size: int
    rate: float = 0.0
    total: float = 0.0
    problem: str = ""


def trial(
    backend: str, world_size: int, seconds: float, variables: Mapping[str, str], start_seconds: float = START_SECONDS
) -> Trial:
    """Let ``world`` processes all-reduce for ``seconds`` with these environment variables.

    Returns within ``start_seconds + 3 * seconds`` whatever they do; none of them is left then.
    """
    limit = start_seconds + 3 * seconds
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "cls.commands.doctor.transport", "--backend", backend,
            "--world_size", str(world_size),
            "--seconds", str(seconds), "--limit", str(limit), "--store", os.path.join(folder, "store"), "--rank",
        ]  # fmt: skip
        env = os.environ | {"OMP_NUM_THREADS": "1"} | dict(variables)
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(world_size):
                with open(os.path.join(folder, f"{rank}.out"), "wb") as out:
                    ranks.append(
                        subprocess.Popen(
                            [*command, str(rank)], env=env, stdin=subprocess.DEVNULL, stdout=out,
                            stderr=subprocess.STDOUT, start_new_session=True,  # killed with all that it has started
                        )
                    )  # fmt: skip
            failed, problem = _wait(ranks, time.monotonic() + limit, limit)
        finally:
            for process in ranks:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said = [Path(folder, f"{rank}.out").read_text(errors="replace").splitlines() for rank in range(world_size)]
    if problem:
        last = next((line for line in reversed(said[failed]) if line.strip()), "")
        return Trial(world_size, problem=f"{problem}: {last[:200]}" if last else problem)
    found = json.loads(said[0][-1])
    return Trial(world_size, found["rate"], found["total"])


def _wait(ranks: list[subprocess.Popen[bytes]], deadline: float, limit: float) -> tuple[int, str]:
    """A rank and what is wrong with it, as soon as it is known; '' when all have ended well."""
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        if failed := [rank for rank, code in enumerate(codes) if code]:
            return failed[0], f"rank {failed[0]} ended with status {codes[failed[0]]}"
        if all(code == 0 for code in codes):
            return 0, ""
        time.sleep(0.05)
    return 0, f"hung: no answer within {limit:.0f} s"


def main() -> None:
    """One rank: rank 0 prints ``{"rate": bytes per second, "total": sum of 1 … world}`` as its last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("backend", str), ("store", str), ("rank", int), ("world_size", int), ("seconds", float),
                       ("limit", float)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    asked = parser.parse_args()
    signal.setitimer(signal.ITIMER_REAL, asked.limit + 10)  # ends even a hung process whose starter was killed
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", asked.rank) if asked.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        asked.backend, init_method=f"file://{asked.store}", rank=asked.rank, world_size=asked.world_size,
        timeout=timedelta(seconds=asked.limit),
    )  # fmt: skip
    tensor = torch.empty(NUMBERS[asked.backend], device=device)
    over = torch.zeros(1, device=device)
    rounds, since = -2, 0.0  # the first rounds set connections up and are not counted
    while over.item() == 0:
        tensor.fill_(asked.rank + 1)
        dist.all_reduce(tensor)
        rounds += 1
        if rounds <= 0:
            total, since = tensor.max().item(), time.monotonic()
        over.fill_(float(rounds > 0 and time.monotonic() - since > asked.seconds))
        dist.broadcast(over, 0)  # one rank's clock decides for all
    rate = rounds * tensor.numel() * tensor.element_size() / (time.monotonic() - since)
    assert tensor.min() == tensor.max() == total == asked.world_size * (asked.world_size + 1) / 2, "a wrong sum"
    if asked.rank == 0:
        print(json.dumps({"rate": rate, "total": total}), flush=True)
    os._exit(0)  # a group's teardown may hang or abort, which says nothing about the transport


if __name__ == "__main__":
    main()
