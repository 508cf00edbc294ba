"""After a validation: update the learning-rate schedule and the history, and log the figures."""

import math

from cls.runtime.exit import NonFiniteError
from cls.training.logger import RunLogger
from cls.training.state import State
from cls.training.steps import Steps


def record_validation(step: int, steps: Steps, state: State, figures: dict[str, float], logger: RunLogger) -> None:
    """Call it after an epoch or the last step of a smoke run.

    ``figures`` are empty where no image validates: then only the schedule is updated, and nothing is the best.
    NonFiniteError before unusable weights are saved: training losses are computed before the step's update.
    """
    loss, accuracy = figures.get("loss", math.inf), figures.get("accuracy", -math.inf)
    if figures and not math.isfinite(loss):
        raise NonFiniteError(
            f"the validation loss after step {step} is {loss}: the weights are not finite, or no image can "
            "be read: try a lower --optim.lr or --optim.clip 1, with another --out"
        )
    if steps.ends_epoch(step):
        if step > state.head_steps:
            state.schedule.epoch(loss, accuracy)
        if figures:
            state.history.add(step, accuracy, loss, steps.train)
            if step <= state.head_steps:
                state.history.restart_patience()
    state.history.validated = step
    logger.log_validation(step, figures, state.history)
