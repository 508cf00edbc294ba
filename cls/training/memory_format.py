"""The memory format of a run whose configuration leaves it open: measured at the first start, then stored."""

import sys

import torch

from cls.config import change
from cls.distributed import speed_probe
from cls.distributed.world import World
from cls.tracking.run_dir import RunDir
from cls.training.state import State
from cls.training.train_loader import TrainLoader


def choose_memory_format(run_dir: RunDir, state: State, loader: TrainLoader, world: World) -> None:
    """Decide ``train.channels_last`` auto for model, moving average, images and config.yaml; the same on all ranks.

    Call it before the model is in DDP, whose buckets have the format of the parameters, and after the loader has
    forked its workers: the first backward pass starts threads.
    """
    if not speed_probe.measures(run_dir.run, world):
        return
    found = speed_probe.speeds(state.model, state.optimizer, run_dir.run, world)
    taken = found.takes_channels_last
    if state.average is not None:
        layout = torch.channels_last if taken else torch.contiguous_format
        state.average.to(memory_format=layout)
    loader.prepare = loader.prepare._replace(channels_last=taken)
    run_dir.store(change(run_dir.run, train={"channels_last": taken}), world)
    if world.main:
        print(*speed_probe.lines(found, run_dir.run, world.size), sep="\n", file=sys.stderr, flush=True)
