"""What survival costs: a save beside a step, a resume beside a fresh start, the question whether to stop beside a step.

python tests/benchmarks/bench_save.py [backbone] [pixels]  medians over 7 pairs in one process; ratios are what counts

A save is timed in three parts: what its step waits for (the copy to host memory), the steps that run while the file is
written, and the writing itself. Resume and fresh start end with the first optimizer step; images are random.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

from cls.config import Run, change
from cls.distributed.memory_probe import probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World, start
from cls.runtime.signals import StopSignal
from cls.tracking.events import EventLog, read_events
from cls.tracking.run_dir import open_run_dir
from cls.training import checkpoint
from cls.training.checkpoint_writer import CheckpointWriter
from cls.training.state import State, build_state
from cls.training.steps import Steps

PAIRS = 7


def one_step(step: int, micro: MicroBatches, state: State, images: torch.Tensor, ask: bool = True) -> float:
    since = time.perf_counter()
    for chunk in micro.start_step(step):
        with micro.context(chunk):
            losses = micro.model(images).square().sum(1)
            losses.sum().backward()
        micro.accumulate(chunk, losses, losses > 0)
    float(micro.all_reduce(micro.world.stop.requested() if ask else False)[0])
    state.update(0.0)
    return time.perf_counter() - since


def first_step(run: Run, world: World, out: Path, images: torch.Tensor) -> tuple[float, State, MicroBatches]:
    """Seconds from an empty process's state to the end of the first step."""
    since = time.perf_counter()
    state = build_state(run, [*map(str, range(100))], Steps(10**6, run.train), world)
    step = checkpoint.restore(out / "checkpoints", state, world)
    micro = MicroBatches(world, world.wrap(state.model, False), run)
    probe(micro, state.optimizer, run)
    one_step(step, micro, state, images)
    return time.perf_counter() - since, state, micro


def main(backbone: str, size: int) -> None:
    world = start(Run().train, StopSignal())
    run = change(
        Run(),
        model={"backbone": backbone, "weights": "none"},
        data={"size": size},
        optim={"ema": 0.99},
        train={"batch": 16, "micro_batch": 8, "save_minutes": 0.0},
    )
    images = torch.randn(8, 3, size, size, device=world.device).contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        fresh, state, micro = first_step(run, world, out, images)
        run = dataclasses.replace(run, out=str(out / "run"))
        with open_run_dir(run, world) as folder:
            events = EventLog(folder.path, 0)
            plain, waits, beside = [], [], []
            with CheckpointWriter(folder, world, state, {}, events) as saver:
                for pair in range(PAIRS + 1):
                    plain.append(one_step(2 * pair, micro, state, images))
                    since = time.perf_counter()
                    saver.save(pair + 1)
                    waits.append(time.perf_counter() - since)
                    beside.append(one_step(2 * pair + 1, micro, state, images))
                    saver.save_and_wait(pair + 1)  # of the same state: only waits
            events.close()
            saves = [event for event in read_events(folder.path) if event["event"] == "save"][1:]
            resumes = [first_step(run, world, folder.path, images)[0] for _ in range(3)]
        asks = []
        for _ in range(PAIRS):
            since = time.perf_counter()
            for _ in range(10_000):
                world.stop.requested()
            asks.append((time.perf_counter() - since) / 10_000)
    step = statistics.median(plain[1:])
    wait, write = statistics.median(waits[1:]), statistics.median(save["seconds"] for save in saves)
    print(f"{backbone} at {size} px with AdamW and EMA, {world.device}: a save is {saves[0]['bytes'] / 1e6:.0f} MB")
    print(f"  its step waits {1000 * wait:.0f} ms ({wait / step:.3f} of a step of {1000 * step:.0f} ms)")
    print(f"  the next step, beside the writing: {statistics.median(beside[1:]) / step:.2f} of a step alone")
    print(f"  writing in the background: {write:.2f} s ({write / step:.2f} steps)")
    print(f"  resume to the end of the first step / fresh start: {statistics.median(resumes) / fresh:.2f}")
    print(f"  asking whether to stop / a step: {statistics.median(asks) / step:.1e} ({1e6 * asks[0]:.2f} us)")
    world.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "resnet50", int(sys.argv[2]) if len(sys.argv) > 2 else 128)
