"""What the figures of a validation change: the learning-rate schedule, the history of the epochs, the log."""

import math

from cls.runtime.exit import NonFiniteError
from cls.training.logger import RunLogger
from cls.training.state import State
from cls.training.steps import Steps


def record_validation(step: int, steps: Steps, state: State, figures: dict[str, float], logger: RunLogger) -> None:
    """After an epoch, or where a smoke run stops; the model is back in train mode.

    NonFiniteError before weights are saved that no training can continue from: the training losses came before them.
    """
    if not math.isfinite(figures["loss"]):
        raise NonFiniteError(
            f"the validation loss after step {step} is {figures['loss']}: the weights are not finite, or no image can "
            "be read; the last checkpoint is the state to continue from. Try a lower --optim.lr or --optim.clip 1"
        )
    if steps.ends_epoch(step):
        state.schedule.epoch(figures["loss"], figures["accuracy"])
        state.history.add(step, figures["accuracy"], figures["loss"])
    state.history.validated = step
    logger.log_validation(step, figures, state.history)
    state.train_mode()
