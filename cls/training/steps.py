"""Epochs and validations as functions of the optimizer step."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

from cls.config import Train


@dataclass(frozen=True)
class Steps:
    """Steps of a run over ``images`` training images; step s uses the sample indices [s·batch, (s+1)·batch)."""

    images: int
    train: Train

    def __post_init__(self) -> None:
        if self.train.batch > self.images:
            micro = min(self.train.micro_batch, self.images)
            raise ValueError(
                f"train.batch is {self.train.batch} but there are only {self.images} training images: "
                f"use --train.batch {self.images // micro * micro} --train.micro-batch {micro}"
            )

    @cached_property
    def whole(self) -> int:
        """Steps of all epochs, the last one filled up from the next permutation."""
        return self.after(self.train.epochs)

    def after(self, epochs: float) -> int:
        """Steps until so many epochs are over; 0.1 epochs are a tenth, exactly."""
        return ceil(Fraction(str(epochs)) * self.images / self.train.batch)

    @property
    def total(self) -> int:
        """Steps until this command ends."""
        return min(self.whole, self.train.max_steps or self.whole)

    def epochs_done(self, step: int) -> int:
        """Epochs that are over once ``step`` steps are done: epoch e ends after step ceil((e+1)·images / batch)."""
        return step * self.train.batch // self.images

    def epoch_of(self, step: int) -> float:
        """The epoch, from 1, that ``step`` (the number of steps with it) is in; the last part of one is 2.5."""
        return min(self.epochs_done(step - 1) + 1, self.train.epochs)

    def epoch_after(self, step: int) -> float:
        """Epochs that are over once ``step`` steps are done, at the end of the run all of them: 2.5."""
        return self.train.epochs if step == self.whole else self.epochs_done(step)

    def syncs(self, step: int) -> bool:
        """Where ranks exchange the corrupt images found, which costs a wait: every 50 steps and at the ends."""
        return step % 50 == 0 or self.ends_epoch(step) or step == self.total

    def validates(self, step: int) -> bool:
        """After an epoch, and where this command ends."""
        return step > 0 and (self.ends_epoch(step) or step == self.total)

    def ends_epoch(self, step: int) -> bool:
        """After a whole epoch, and at the end of the run, so that a complete run has best weights."""
        return self.epochs_done(step) > self.epochs_done(step - 1) or step == self.whole
