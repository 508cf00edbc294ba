"""Real runs of train.py in forked processes, with a blow at a given moment: torch is imported once for all of them.

As a script this file is the server: it reads one JSON request per line, forks the processes of one run, waits for them
and answers with their exit statuses. A blow is "what@rank:moment:count": SIGKILL hits all processes of the run, any
other signal the one rank; "raise" raises torch.OutOfMemoryError there. Moments are the names passed to ``reach``.
More of them are joined by ";". "$NAME" runs the shell command in the environment variable NAME, "limit=300" lets this
process have 300 MB of addresses more than it has then, "scramble" re-seeds every generator. FORKED_SET, FORKED_SLOW
and FORKED_LATE: see ``weather``.
"""

import errno
import gc
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    codes: list[int]  # one per rank; minus the signal's number
    output: str
    out: Path
    seconds: float

    @property
    def exit(self) -> dict[str, Any]:
        return json.loads((self.out / "exit.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]

    @property
    def struck(self) -> list[str]:
        """The blows that fell in this run directory so far."""
        path = self.out.parent / f"{self.out.name}.struck"
        return path.read_text().splitlines() if path.exists() else []


class Bench:
    """The server's other end."""

    def __init__(self, env: dict[str, str]) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )

    def run(self, out: Path, args: list[str], world_size: int = 1, blow: str = "", **env: str) -> Ended:
        request = {"out": str(out), "argv": [*args, "--out", str(out)], "world": world_size, "blow": blow, "env": env}
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return Ended(answer["codes"], answer["output"], out, answer["seconds"])

    def close(self) -> None:
        self.server.kill()
        self.server.wait()


def load() -> None:
    """What every run pays at its start, once for all children: 1 s of their CPU each."""
    import sklearn.datasets  # noqa: F401  # for the children
    import timm  # noqa: F401  # as above
    import torch

    import cls.evaluation.plots  # noqa: F401  # as above
    import train  # noqa: F401  # as above
    from cls.commands.parsing import parse_run
    from cls.models.build import check_model

    torch.set_num_threads(1)
    run = parse_run(["digits"])
    check_model(run.model, run.data)
    gc.collect()
    gc.freeze()


def serve() -> None:
    load()
    for line in sys.stdin:
        request = json.loads(line)
        out = Path(request["out"])
        log = out.parent / f"{out.name}.log"
        log.unlink(missing_ok=True)
        since = time.monotonic()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        group, pids = 0, []
        for rank in range(request["world"]):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, group)
                child(request, rank, port, log)
            os.setpgid(pid, group)  # as the child does: the next one must find the group, whoever runs first
            group = group or pid
            pids.append(pid)
        codes = buried(pids, since + PATIENCE_SECONDS)
        answer = {"codes": codes, "output": log.read_text(), "seconds": time.monotonic() - since}
        print(json.dumps(answer), flush=True)


def buried(pids: list[int], until: float) -> list[int]:
    """Exit statuses; a run that hangs is killed, which no test takes for a good end."""
    found: dict[int, int] = {}
    while len(found) < len(pids):
        for pid in set(pids) - set(found):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                found[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [found[pid] for pid in pids]


def child(request: dict[str, Any], rank: int, port: int, log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    world_size = request["world"]
    os.environ.update(request["env"])
    if world_size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    with leaving():
        import train

        weather(rank)
        if request["blow"]:
            for blow in reversed(request["blow"].split(";")):  # of two at one moment the first falls first
                arm(blow, rank, Path(request["out"]))
        train.main(request["argv"])


@contextmanager
def leaving() -> Iterator[None]:
    """The end of a child: with the exit status that Python itself would have, and nothing of the parent's clean-up."""
    code = 1
    try:
        yield
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def arm(blow: str, rank: int, out: Path) -> None:
    """Put a call of ``reach`` at each moment of a run; the count is of this rank's own moments, from 1."""
    what, _, rest = blow.partition("@")
    where, moment, number = rest.split(":")
    counts = Counter[str]()

    def reach(name: str) -> None:
        counts[name] += 1
        if int(where) != rank or name != moment or counts[name] != int(number):
            return
        with (out.parent / f"{out.name}.struck").open("a") as file:
            file.write(f"{name}\n")
        if what == "raise":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory, says the test")
        if what == "scramble":
            scramble()
        elif what.startswith("$"):
            subprocess.run(os.environ[what[1:]], shell=True, check=True)
        elif what.startswith("limit="):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + int(what.removeprefix("limit=")) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        else:
            os.killpg(0, signal.SIGKILL) if what == "SIGKILL" else os.kill(os.getpid(), signal.Signals[what])

    import train
    from cls.distributed import micro_batches
    from cls.training import checkpoint, checkpoint_writer, train_loader
    from cls.training.state import State

    before(train, "build_state", reach, "build")
    before(train, "probe", reach, "probe")
    before(train, "loss_per_image", reach, "forward")  # inside the block of a micro-batch
    before(train, "write_results", reach, "results")
    before(train, "forward_backward", reach, "step")  # count k: k - 1 steps of this attempt are done
    before(micro_batches.MicroBatches, "accumulate", reach, "micro")
    before(State, "update", reach, "update")
    before(train_loader.TrainLoader, "next", reach, "feed")
    inside_evaluation(reach, "evaluation")
    before(checkpoint, "write", reach, "before a save")
    before(checkpoint, "_save", reach, "between files")
    before(checkpoint, "sync", reach, "before fsync")
    before(Path, "rename", reach, "before rename")
    after(Path, "rename", reach, "after rename")
    before(checkpoint_writer.CheckpointWriter, "_write_best", reach, "before best")
    after(checkpoint_writer.CheckpointWriter, "_write_best", reach, "after best")
    after(checkpoint, "prune", reach, "after pruning")


def scramble() -> None:
    """Another state of every generator there is: no run may depend on it."""
    import random

    import numpy as np
    import torch

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.rand(7)


def weather(rank: int) -> None:
    """The world around this process: other constants of modules, a file system whose names come late, as on NFS.

    FORKED_SET: {"cls.runtime.signals.ECHO_SECONDS": 0.0}. FORKED_SLOW: seconds before each rename. FORKED_LATE: seconds
    from the first look until a rank other than 0 sees the name of a checkpoint or of the best weights. FORKED_NO_PROBE:
    the start does not try a micro-batch. FORKED_NO_PICTURES: the end of a run draws none. FORKED_THIN: see ``thin``.
    """
    for name, value in json.loads(os.environ.get("FORKED_SET", "{}")).items():
        owner, _, attribute = name.rpartition(".")
        module = importlib.import_module(owner)
        assert hasattr(module, attribute), name
        setattr(module, attribute, value)
    if "FORKED_NO_PROBE" in os.environ:
        import train

        train.probe = lambda micro, *_: micro
    if "FORKED_NO_PICTURES" in os.environ:
        import cls.evaluation.plots

        cls.evaluation.plots.write_plots = lambda *_: {}
    if "FORKED_THIN" in os.environ:
        thin(setattr)
    slow, late = float(os.environ.get("FORKED_SLOW", 0)), float(os.environ.get("FORKED_LATE", 0))
    if slow:
        for name in ("rename", "replace"):
            before(os, name, lambda _: time.sleep(slow), "")
    if late and rank:
        exists, opened = Path.exists, Path.open
        asked: dict[str, float] = {}

        def hidden(path: Path) -> bool:
            shared = path.name == "manifest.json" or path.parent.name == "best"
            return shared and time.monotonic() < asked.setdefault(str(path), time.monotonic()) + late

        def late_open(path: Path, *args: Any, **kwargs: Any) -> Any:
            if hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return opened(path, *args, **kwargs)

        Path.exists = lambda path: not hidden(path) and exists(path)  # type: ignore[method-assign]  # for this process
        Path.open = late_open  # type: ignore[method-assign,assignment]  # as above


def thin(put: Callable[[Any, str, Any], None]) -> None:
    """ResNets of torchvision and timm at a quarter of their width, with all their layers."""
    import timm
    from torch import nn
    from torchvision.models.resnet import ResNet

    init, make_layer, create = ResNet.__init__, ResNet._make_layer, timm.create_model

    def thin_init(self: ResNet, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.fc = nn.Linear(self.fc.in_features // 4, self.fc.out_features)

    def thin_layer(self: ResNet, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return make_layer(self, block, planes // 4, *args, **kwargs)

    put(ResNet, "__init__", thin_init)
    put(ResNet, "_make_layer", thin_layer)
    put(timm, "create_model", lambda name, **more: create(name, channels=(16, 32, 64, 128), **more))


def before(owner: Any, name: str, reach: Callable[[str], None], moment: str) -> None:
    real = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        reach(moment)
        return real(*args, **kwargs)

    setattr(owner, name, patched)


def after(owner: Any, name: str, reach: Callable[[str], None], moment: str) -> None:
    real = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        reach(moment)
        return result

    setattr(owner, name, patched)


def inside_evaluation(reach: Callable[[str], None], moment: str) -> None:
    """At the first batch of an evaluation."""
    from cls.data.dataset import EvalDataset
    from cls.data.loader import Loader

    real = Loader.batches

    def batches(self: Loader, source: Any, indices: Any) -> Iterator[Any]:
        if isinstance(source, EvalDataset):
            reach(moment)
        return real(self, source, indices)

    Loader.batches = batches  # type: ignore[method-assign]  # for this process


@contextmanager
def bench(env: dict[str, str]) -> Iterator[Bench]:
    found = Bench(env)
    try:
        yield found
    finally:
        found.close()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve()
