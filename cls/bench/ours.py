"""Our own pipeline as the measurements drive it: the one place that knows how its parts are called."""

from cls.config import Run
from cls.data.access import Images
from cls.data.draws import Draws
from cls.images.ops import training_ops
from cls.models import input_statistics


def draws_of(run: Run, images: Images) -> Draws:
    """The training draws of a run, as its loader gets them."""
    operations = training_ops(run.augment, run.data, input_statistics(run)[0])
    return Draws(images, operations, run.seed, run.data.balanced)


def one_micro_batch(draws: Draws, indices: list[int]) -> None:
    """One micro-batch in this process, as a worker makes it."""
    for draw in indices:
        draws[draw]
