"""A run's best weights, ready to use."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cls.artifacts import read_header
from cls.config import Run, View, change
from cls.data.draws import EvalImages
from cls.data.identity import run_data
from cls.data.loader import Preprocess, preprocess
from cls.data.sources import Rows, Splits
from cls.evaluate import eval_loader, predict, stream
from cls.metrics import Predictions
from cls.models import Statistics, build_model, load_exact
from cls.parallel.cluster import Cluster, start
from cls.stop import Stop


@dataclasses.dataclass(frozen=True)
class Trained:
    """The network of best/model.safetensors (the moving average where the run kept one) and what it was made with."""

    run: Run
    file: Path
    folder: Path
    classes: tuple[str, ...]
    fallback: int
    cluster: Cluster
    model: torch.nn.Module
    statistics: Statistics

    @property
    def name(self) -> str:
        """What a command calls it: the run directory, or the file where it lies alone."""
        return str(self.folder if self.file == self.folder / "best" / "model.safetensors" else self.file)

    def own_data(self, advice: str = "") -> Splits:
        """The run's own images; ValueError where the validation images are not those it was trained with."""
        return run_data(self.folder, self.name, self.run, self.classes, advice=advice)

    @property
    def prepare(self) -> Preprocess:
        return preprocess(self.statistics, self.run.seed, self.run.train.channels_last, self.cluster.device)

    def look(self, rows: Rows, views: Sequence[View]) -> Predictions:
        """``views``: none is the plain image."""
        images = EvalImages(rows, views, self.run)
        with eval_loader(images, self.run, self.cluster) as loader:
            return predict(self.model, images, self.classes, self.run, self.prepare, self.cluster, loader)

    def stream(self, rows: Rows, views: Sequence[View]) -> Iterator[Predictions]:
        images = EvalImages(rows, views, self.run)
        with eval_loader(images, self.run, self.cluster) as loader:
            yield from stream(self.model, images, self.classes, self.run, self.prepare, self.cluster, loader)


def load_trained(path: str, device: str, workers: int, stop: Stop) -> Trained:
    """Rebuild a run's network from best/model.safetensors; ValueError if there is none or it is damaged."""
    file = Path(path) if path.endswith(".safetensors") else Path(path) / "best" / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"{file} does not exist: name a run directory in which at least one epoch is done")
    run, classes, statistics, fallback = read_header(file)
    run = change(run, train={"device": device}, data={"workers": workers})
    cluster = start(run.train, stop)
    model = network(file)
    if run.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    folder = file.parent.parent if file.parent.name == "best" else file.parent
    return Trained(run, file, folder, classes, fallback, cluster, model.to(cluster.device), statistics)


def network(file: str | Path) -> torch.nn.Module:
    """The network of a model.safetensors that train.py or ``cls export`` wrote: images b 3 h w -> logits b classes.

    On the CPU, in fp32 and eval mode. ValueError for another file, or a damaged one.
    """
    run, classes, _, _ = read_header(Path(file))
    model = build_model(dataclasses.replace(run.model, weights="none"), len(classes), run.seed)
    load_exact(model, Path(file))
    return model.eval()
