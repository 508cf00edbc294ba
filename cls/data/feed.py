"""The images of one rank, from sample indices to normalised floats on the device."""

from typing import Self

from torch import Tensor

from cls.data.access import images_of
from cls.data.broken import BrokenImages
from cls.data.draws import EvalImages, draws_of
from cls.data.ledger import Ledger
from cls.data.loader import AHEAD, PREFETCH, Group, Loader, MicroBatchDraws, preprocess, worker_count
from cls.data.sources import Splits
from cls.folder import Folder
from cls.mix import class_weights
from cls.models import input_statistics
from cls.parallel.cluster import Cluster


class Feed:
    """Micro-batches of this rank for the given steps, in order, and the evaluation splits: one loader serves them all.

    Notes training images that could not be read. Construct it before the run has threads: it forks the loader.
    """

    def __init__(self, splits: Splits, folder: Folder, cluster: Cluster, share: range, steps: range) -> None:
        run, self.device, self.clock = folder.run, cluster.device, cluster.clock
        images, tta = images_of(splits.train), run.augment.tta
        self.prepare = preprocess(input_statistics(run), run.seed, run.train.channels_last, self.device)
        self.draws = draws_of(images, run)
        self.val = EvalImages(splits.val, (), run)
        self.val_tta = EvalImages(splits.val, tta, run) if tta else None
        self.test = EvalImages(splits.test, tta, run) if splits.test else None
        evaluated = [one for one in (self.val, self.val_tta, self.test) if one]
        groups = [Group([self.draws], run.train.micro_batch, PREFETCH), Group(evaluated, run.train.eval_batch, AHEAD)]
        with folder.without_threads():
            self.loader = Loader(groups, worker_count(run.data.workers, cluster.local_world), cluster.device)
        indices = MicroBatchDraws(steps.start, steps.stop, run.train.batch, run.train.micro_batch, share)
        self.batches = self.loader.batches(self.draws, indices)
        self.broken = BrokenImages(folder.path / "bad_images.csv", images, run.data.max_bad, cluster)
        self.classes = len(splits.classes)
        self.weights = class_weights(self.draws.labels, self.classes, run.optim.class_weight, cluster.device)
        path = folder.path / "ledger" / f"{folder.life:04d}-{cluster.rank:04d}.csv"
        self.ledger = Ledger(path, images, run.train.batch) if run.track.ledger else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.__exit__()

    def next(self) -> tuple[Tensor, Tensor]:
        """Images (b 3 h w, normalised) and labels (b) of the next micro-batch, on the device."""
        with self.clock.on("data"):
            batch = next(self.batches)
        self.clock.loop()
        self.broken.note(batch.broken)
        if self.ledger:
            self.ledger.note(batch)
        return self.prepare(batch), batch.labels.to(self.device, non_blocking=True)
