"""What exactness costs: optimizer steps with reduce=exact against reduce=fast, side by side in the same processes.

python tests/benchmarks/bench_reduce.py  1, 2 and 4 gloo processes, 4, 6 and 16 micro-batches of 4 (ResNet-18, 64 px)
torchrun --nproc_per_node 4 tests/benchmarks/bench_reduce.py 16       in the processes that are there, e.g. on GPUs

Prints the median over pairs of steps of exact / fast. With more processes than cores the ratio holds, the times do not.
"""

import copy
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torchvision.models import resnet18

from cls.config import Run, Train, change
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import start
from cls.runtime.signals import StopSignal

PAIRS = 9


def here(count: int) -> None:
    world = start(Train(), StopSignal())
    model = resnet18(num_classes=100).to(world.device, memory_format=torch.channels_last)
    loops = {}
    for kind in ("exact", "fast"):
        run = change(Run(), train={"batch": 4 * count, "micro_batch": 4, "reduce": kind})
        twin = world.wrap(copy.deepcopy(model), False)
        loops[kind] = MicroBatches(world, twin, run), twin, torch.optim.AdamW(twin.parameters(), 1e-4)
    images = torch.randn(4, 3, 64, 64, device=world.device).contiguous(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {"exact": [], "fast": []}
    for step in range(PAIRS + 2):
        for kind, (micro, twin, optimizer) in loops.items():
            world.gather(None)
            since = time.perf_counter()
            for chunk in micro.start_step(step):
                with micro.context(chunk):
                    losses = twin(images).square().sum(1)
                    losses.sum().backward()
                micro.accumulate(chunk, losses, losses > 0)
            float(micro.all_reduce()[0])
            optimizer.step()
            world.gather(None)
            seconds[kind].append(time.perf_counter() - since)
    ratios = [e / f for e, f in zip(seconds["exact"], seconds["fast"], strict=True)][2:]
    if world.main:
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        text = f"{world.size} process(es), {count} micro-batches: exact / fast = {middle:.2f}"
        print(f"{text} (min {low:.2f}, max {high:.2f}, {PAIRS} pairs)")
    world.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        here(int(sys.argv[1]))
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--master_port=29611"]
        for processes, count in product((1, 2, 4), (4, 6, 16)):
            subprocess.run([*launcher, f"--nproc_per_node={processes}", __file__, str(count)], check=True)
