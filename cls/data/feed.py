"""The training images of one rank, from draws to normalised floats on the device."""

from pathlib import Path

from torch import Tensor

from cls.config import Run
from cls.data.broken import BrokenImages
from cls.data.draws import Draws
from cls.data.loader import MicroBatchDraws, Preprocess, batches, worker_count
from cls.data.sources import Rows
from cls.images.ops import training_ops
from cls.models import input_statistics
from cls.outcome import DataError
from cls.parallel.cluster import Cluster


class Feed:
    """Micro-batches of this rank for the given steps, in order; notes images that could not be read."""

    def __init__(
        self, rows: Rows, run: Run, cluster: Cluster, prepare: Preprocess, share: range, steps: range, out: Path
    ) -> None:
        self.prepare, self.device = prepare, cluster.device
        self.draws = Draws(
            rows, training_ops(run.augment, run.data, input_statistics(run)[0]), run.seed, run.data.balanced
        )
        indices = MicroBatchDraws(steps.start, steps.stop, run.train.batch, run.train.micro_batch, share)
        workers = worker_count(run.data.workers, cluster.local_world)
        self.batches = batches(self.draws, indices, workers, cluster.device.type == "cuda")
        self.broken = BrokenImages(out / "bad_images.csv", list(rows["id"]), run.data.max_bad)

    def next(self) -> tuple[Tensor, Tensor]:
        """Images (b 3 h w, normalised) and labels (b) of the next micro-batch, on the device."""
        try:
            batch = next(self.batches)
        except DataError as error:  # a loader process adds its traceback; the last line is the message
            raise DataError(str(error).strip().splitlines()[-1].removeprefix("cls.outcome.DataError: ")) from None
        self.broken.note(batch.broken)
        return self.prepare(batch), batch.labels.to(self.device, non_blocking=True)
