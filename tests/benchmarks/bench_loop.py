"""The cost of our training step beyond the model, and of reduce=exact for each published network.

python tests/benchmarks/bench_loop.py host [SIZE]     our step against a bare PyTorch loop over the same micro-batches
python tests/benchmarks/bench_loop.py chunks [SIZE]   micro-batches one by one against all of them in one forward pass
python tests/benchmarks/bench_loop.py recipes [SIZE]  reduce=exact against reduce=fast: each recipe's network and batch

One process, one thread, resident images of SIZE (64) pixels. CPU time on a CPU (the load of other programs does not
count), wall time on a GPU. Each figure is the median over ROUNDS rounds in which all variants take turns.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import train
from cls import recipes
from cls.commands.bench.run import PUBLISHED
from cls.config import Run, Train, change
from cls.distributed.memory_probe import probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World, start
from cls.runtime.garbage_collection import GarbageCollection
from cls.runtime.signals import StopSignal
from cls.tracking.run_dir import RunDir
from cls.training.logger import RunLogger
from cls.training.loss_monitor import LossMonitor
from cls.training.state import State, build_state
from cls.training.steps import Steps
from cls.transforms.mixup import soft_targets

ROUNDS, CLASSES = 7, 100


def seconds(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Loop:
    """One variant: a state of its own and its step; it is train.py's loader as well."""

    def __init__(self, run: Run, world: World, out: Path) -> None:
        self.run, self.world, self.done = run, world, 0
        steps = Steps(10**6, run.train)
        self.state: State = build_state(run, [*map(str, range(CLASSES))], steps, world)
        size, count = run.train.micro_batch, run.train.batch // run.train.micro_batch
        images = torch.randn(count, size, 3, run.data.size, run.data.size, device=world.device)
        self.images = [part.contiguous(memory_format=torch.channels_last) for part in images]
        self.labels = torch.arange(run.train.batch, device=world.device).view(count, size) % CLASSES
        self.micro = probe(MicroBatches(world, self.state.model, run), self.state.optimizer, run)
        self.weights, self.turn = None, 0
        self.losses = LossMonitor(run.train.batch)
        out.mkdir()
        self.logger = RunLogger(RunDir(out, run, "", 0), world, steps, 0, self.state.model)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        index, self.turn = self.turn % len(self.images), self.turn + 1
        return self.images[index], soft_targets(self.labels[index], CLASSES, self.run.optim.label_smoothing)

    def ours(self) -> None:
        """train.py's step on resident images."""
        train.forward_backward(self.done, self.run, self.state, self.micro, self)  # type: ignore[arg-type]  # loader
        result = self.micro.all_reduce(self.world.stop.requested(), False)
        self.logger.log_steps(self.losses.put(self.done + 1, result, self.state.update(self.run.optim.clip)))
        self.done += 1

    def bare(self) -> None:
        """The usual loop: forward, loss, backward for each micro-batch, then the optimizer."""
        self.state.optimizer.zero_grad()
        for images, labels in zip(self.images, self.labels, strict=True):
            with self.world.autocast(self.run.train.precision):
                logits = self.state.model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            (loss / len(self.images)).backward()
        self.state.optimizer.step()


def race(variants: dict[str, Callable[[], Any]], world: World) -> dict[str, float]:
    """Median seconds of each; the first round is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    with GarbageCollection():
        for turn in range(ROUNDS + 1):
            for name, step in list(variants.items())[:: -1 if turn % 2 else 1]:
                since = seconds(world.device)
                step()
                spent[name].append(seconds(world.device) - since)
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def table(title: str, found: dict[str, float], base: str) -> None:
    shown = "  ".join(f"{name} {1e3 * value:.1f} ms ({value / found[base]:.3f})" for name, value in found.items())
    print(f"{title}: {shown}", flush=True)


def main(what: str, size: int = 64) -> None:
    world = start(Train(), StopSignal())
    resnets = {
        name: change(
            Run(), data={"size": size}, model={"backbone": name, "weights": "none"},
            train={"batch": 64, "precision": "fp32"}, track={"wandb": "disabled"},
        )
        for name in ("resnet18", "resnet50")
    }  # fmt: skip
    published = {}
    for name in PUBLISHED:
        run = recipes.get(name)
        published[name] = change(
            replace(run, model=replace(run.model, weights="none", freeze=())),
            data={"size": size}, train={"precision": "fp32"}, track={"wandb": "disabled"},
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as found:
        out = Path(found)

        def loop(run: Run, mode: str) -> Loop:
            return Loop(change(run, train={"reduce": mode}), world, out / f"{len(list(out.iterdir()))}")

        for name, run in (published if what == "recipes" else resnets).items():
            title = f"{name}, {run.train.batch} / {run.train.micro_batch} images of {size} px, {world.device}"
            exact, fast = loop(run, "exact"), loop(run, "fast")
            if what == "recipes":
                table(title, race({"fast": fast.ours, "exact": exact.ours}, world), "fast")
                continue
            single = copy.copy(fast)
            single.micro = MicroBatches(world, fast.state.model, fast.run)
            if what == "host":
                variants = {"bare": fast.bare, "fast one by one": single.ours, "exact": exact.ours}
                table(title, race(variants, world), "bare")
            else:
                table(title, race({"one by one": single.ours, "one chunk": fast.ours}, world), "one by one")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
