"""The training images of one rank, from draws to normalised floats on the device."""

from torch import Tensor

from cls.data.access import images_of
from cls.data.broken import BrokenImages
from cls.data.draws import draws_of
from cls.data.ledger import Ledger
from cls.data.loader import MicroBatchDraws, batches, preprocess, worker_count
from cls.data.sources import Splits
from cls.folder import Folder
from cls.mix import class_weights
from cls.models import input_statistics
from cls.parallel.cluster import Cluster


class Feed:
    """Micro-batches of this rank for the given steps, in order; notes images that could not be read."""

    def __init__(self, splits: Splits, folder: Folder, cluster: Cluster, share: range, steps: range) -> None:
        run, self.device, self.clock = folder.run, cluster.device, cluster.clock
        images = images_of(splits.train)
        self.prepare = preprocess(input_statistics(run), run.seed, run.train.channels_last, self.device)
        self.draws = draws_of(images, run)
        indices = MicroBatchDraws(steps.start, steps.stop, run.train.batch, run.train.micro_batch, share)
        workers = worker_count(run.data.workers, cluster.local_world)
        self.batches = batches(self.draws, indices, workers, run.train.micro_batch, cluster.device)
        self.broken = BrokenImages(folder.path / "bad_images.csv", images, run.data.max_bad, cluster)
        self.classes = len(splits.classes)
        self.weights = class_weights(self.draws.labels, self.classes, run.optim.class_weight, cluster.device)
        self.ledger = Ledger(folder, cluster.rank, images) if run.track.ledger else None

    def next(self) -> tuple[Tensor, Tensor]:
        """Images (b 3 h w, normalised) and labels (b) of the next micro-batch, on the device."""
        with self.clock.on("data"):
            batch = next(self.batches)
        self.clock.loop()
        self.broken.note(batch.broken)
        if self.ledger:
            self.ledger.note(batch)
        return self.prepare(batch), batch.labels.to(self.device, non_blocking=True)
