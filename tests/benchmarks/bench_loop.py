"""What our training step costs beyond the model, and what exactness costs for each published network.

python tests/benchmarks/bench_loop.py host  our step against a bare PyTorch loop over the same resident micro-batches
python tests/benchmarks/bench_loop.py pieces  micro-batches one by one against all of them in one forward pass
python tests/benchmarks/bench_loop.py recipes
    reduce=exact against reduce=fast: each recipe's network, batch and micro-batch

One process, one thread, images of SIZE pixels (2nd argument, 64 unless told). CPU time on a CPU (other people's load
does not count), wall time on a GPU. Each figure is the median over ROUNDS rounds in which the contestants take turns.
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

from cls import recipes
from cls.config import Run, Train, change
from cls.distributed.memory_probe import probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World, start
from cls.models.loss import loss_per_image
from cls.runtime.garbage_collection import GarbageCollection
from cls.runtime.signals import StopSignal
from cls.tracking.run_dir import RunDir
from cls.training.logger import RunLogger
from cls.training.loss_monitor import LossMonitor
from cls.training.state import State, build_state
from cls.training.steps import Steps
from cls.transforms.mixup import draw_mixing, join, mix, partners, soft_targets

ROUNDS, CLASSES = 7, 100
PUBLISHED = ("attention-gate", "cbam-mixup", "mlp-head", "se-resnext", "resnet50-mlp")


def seconds(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Loop:
    """One contestant: a state of its own and its step."""

    def __init__(self, run: Run, world: World, out: Path) -> None:
        self.run, self.world, self.done = run, world, 0
        steps = Steps(10**6, run.train)
        self.state: State = build_state(run, CLASSES, steps, world)
        size, count = run.train.micro_batch, run.train.batch // run.train.micro_batch
        images = torch.randn(count, size, 3, run.data.size, run.data.size, device=world.device)
        self.images = [part.contiguous(memory_format=torch.channels_last) for part in images]
        self.labels = torch.arange(run.train.batch, device=world.device).view(count, size) % CLASSES
        self.micro = probe(MicroBatches(world, self.state.model, run), self.state.optimizer, run)
        self.losses = LossMonitor(run.train.batch)
        out.mkdir()
        self.journal = RunLogger(RunDir(out, run, "", 0), world, steps, 0, self.state.model)

    def ours(self) -> None:
        """train.py's step on resident images."""
        run, step = self.run, self.done
        mixing = draw_mixing(run.augment, run.seed, step)
        for chunk in self.micro.start_step(step):
            mixed = []
            for index in chunk:
                targets = soft_targets(self.labels[index], CLASSES, run.optim.label_smoothing)
                partner = partners(run.train.micro_batch, run.seed, step, index)
                mixed.append(mix(self.images[index], targets, mixing, partner))
            images, targets = join(mixed)
            with self.micro.context(chunk):
                with self.world.autocast(run.train.precision):
                    logits = self.micro.model(images)
                losses = loss_per_image(logits, targets, run.optim.loss)
                losses.sum().backward()
            self.micro.accumulate(chunk, losses)
        result = self.micro.all_reduce(self.world.stop.requested(), False)
        self.journal.steps(self.losses.put(step + 1, result, self.state.update(run.optim.clip)))
        self.done += 1

    def bare(self) -> None:
        """What a person writes: forward, loss, backward for each micro-batch, then the optimizer."""
        self.state.optimizer.zero_grad()
        for images, labels in zip(self.images, self.labels, strict=True):
            with self.world.autocast(self.run.train.precision):
                logits = self.state.model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            (loss / len(self.images)).backward()
        self.state.optimizer.step()


def race(contestants: dict[str, Callable[[], Any]], world: World) -> dict[str, float]:
    """Median seconds of each; the first round is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    with GarbageCollection():
        for turn in range(ROUNDS + 1):
            for name, step in list(contestants.items())[:: -1 if turn % 2 else 1]:
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
                contestants = {"bare": fast.bare, "fast one by one": single.ours, "exact": exact.ours}
                table(title, race(contestants, world), "bare")
            else:
                table(title, race({"one by one": single.ours, "one piece": fast.ours}, world), "one by one")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
