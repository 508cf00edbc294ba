"""The images of one rank, from sample indices to normalised floats on the device."""

from typing import Self

from torch import Tensor

from cls.data.corrupt_images import CorruptImages
from cls.data.dataset import eval_sets, train_dataset
from cls.data.loader import AHEAD, PREFETCH, Group, Loader, preprocess, worker_count
from cls.data.readers import images_of
from cls.data.sampler import MicroBatchSampler
from cls.data.sources import Splits
from cls.distributed import tree_reduce
from cls.distributed.world import World
from cls.models.backbones import input_statistics
from cls.models.loss import class_weights
from cls.tracking.ledger import Ledger
from cls.tracking.run_dir import RunDir
from cls.transforms.mixup import soft_targets


class TrainLoader:
    """This rank's micro-batches of the given steps, in order, and the evaluation sets, in the same worker processes.

    Records corrupt training images. Construct it before the process has threads: it forks the workers.
    """

    def __init__(self, splits: Splits, run_dir: RunDir, world: World, steps: range) -> None:
        run, self.device, self.timer = run_dir.run, world.device, world.timer
        share = tree_reduce.shares(run.train.batch // run.train.micro_batch, world.size)[world.rank]
        images = images_of(splits.train)
        self.prepare = preprocess(input_statistics(run), run.seed, run.train.images_channels_last, self.device)
        self.dataset = train_dataset(images, run)
        self.evaluated = eval_sets(splits.val, splits.test, run)
        groups = [
            Group([self.dataset], run.train.micro_batch, PREFETCH),
            Group(list(self.evaluated.named().values()), run.train.eval_batch, AHEAD),
        ]
        with run_dir.without_threads():
            self.shared = Loader(groups, worker_count(run.data.workers, world.local_size), world.device)
        sampler = MicroBatchSampler(steps.start, steps.stop, run.train.batch, run.train.micro_batch, share)
        self.batches = self.shared.batches(self.dataset, sampler)
        self.corrupt = CorruptImages(run_dir.path, images, run.data.max_corrupt, world)
        self.classes, self.smoothing = len(splits.classes), run.optim.label_smoothing
        self.weights = class_weights(self.dataset.labels, self.classes, run.optim.class_weight, world.device)
        path = run_dir.path / "ledger" / f"{run_dir.attempt:04d}-{world.rank:04d}.csv"
        self.ledger = Ledger(path, images, run.train.batch) if run.track.ledger else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shared.__exit__()

    def next(self) -> tuple[Tensor, Tensor]:
        """Images (b 3 h w, normalised) and soft targets (b classes) of the next micro-batch, on the device."""
        with self.timer.on("data"):
            batch = next(self.batches)
        self.timer.loop()
        self.corrupt.note(batch.corrupt)
        if self.ledger:
            self.ledger.note(batch)
        labels = batch.labels.to(self.device, non_blocking=True)
        return self.prepare(batch), soft_targets(labels, self.classes, self.smoothing)
