"""The best weights of a run, ready to predict."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cls.config import NO_VALIDATION, Train, change
from cls.data.loader import preprocess
from cls.data.sources import Splits
from cls.distributed.world import World, start
from cls.evaluation.inference import Predictor
from cls.evaluation.model_file import read_header
from cls.models.backbones import Statistics
from cls.models.build import build_model
from cls.models.weights import load_exact
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import run_data

Join = Callable[[Train, StopSignal], World]
"""Gives the processes that predict together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModel(Predictor):
    """A Predictor with the network of best/model.safetensors: the moving average, if the run kept one."""

    file: Path
    folder: Path
    fallback: int
    """The class predicted for an image that cannot be read."""
    statistics: Statistics

    @property
    def name(self) -> str:
        """The run directory, or the file if it lies outside of one."""
        return str(self.folder if self.file == self.folder / "best" / "model.safetensors" else self.file)

    def own_data(self, advice: str = "", which: Sequence[str] = ("val",)) -> Splits:
        """The run's own images; ValueError if those of the splits ``which`` have changed, or if it validates none."""
        if "val" in which and not self.run.data.validates:
            raise ValueError(f"{self.name} has {NO_VALIDATION}{advice}")
        return run_data(self.folder, self.name, self.run, self.classes, which, advice)


def weights_file(path: str) -> Path:
    """A run directory's best weights, or the file itself."""
    return Path(path) if path.endswith(".safetensors") else Path(path) / "best" / "model.safetensors"


def load_trained_model(path: str, device: str, workers: int, stop: StopSignal, join: Join = start) -> TrainedModel:
    """Rebuild a run's network from best/model.safetensors; ValueError if there is none or it is damaged.

    All processes that the launcher started predict together, unless ``join`` gives others.
    """
    file = weights_file(path)
    if not file.is_file():
        raise ValueError(f"{file} does not exist: name a run directory in which at least one epoch is done")
    run, classes, statistics, fallback = read_header(file)
    run = change(run, train={"device": device}, data={"workers": workers})
    world = join(run.train, stop)
    model = network(file)
    if run.train.images_channels_last:
        model = model.to(memory_format=torch.channels_last)
    folder = file.parent.parent if file.parent.name == "best" else file.parent
    prepare = preprocess(statistics, run.seed, run.train.images_channels_last, world.device)
    return TrainedModel(
        model=model.to(world.device), classes=classes, run=run, world=world, prepare=prepare,
        file=file, folder=folder, fallback=fallback, statistics=statistics,
    )  # fmt: skip


def network(file: str | Path) -> torch.nn.Module:
    """The network of a model.safetensors that train.py or ``cls export`` wrote: images b 3 h w -> logits b classes.

    On the CPU, in fp32 and eval mode. ValueError for another file, or a damaged one.
    """
    run, classes, _, _ = read_header(Path(file))
    model = build_model(dataclasses.replace(run.model, weights="none"), len(classes), run.seed)
    load_exact(model, Path(file))
    return model.eval()
