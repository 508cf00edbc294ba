"""Mutable training state: model, optimizer, learning-rate schedule, moving average, validation history."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cls.config import Run
from cls.distributed.world import World
from cls.models.build import build_model, fresh_parameters
from cls.models.freeze import train_mode
from cls.models.sharding import shard, sharding_units
from cls.training.optim import Schedule, build_optimizer, moving_average, parameter_groups
from cls.training.steps import Steps


@dataclass
class History:
    """The best validation figures so far, and how long the loss has not fallen."""

    best_accuracy: float = -math.inf
    best_accuracy_step: int = -1
    best_loss: float = math.inf
    best_loss_step: int = -1
    stale: int = 0
    """Epochs in a row without a lower validation loss."""
    validated: int = 0
    """The last step after which there was a validation."""

    def add(self, step: int, accuracy: float, loss: float) -> bool:
        """Record an epoch's validation figures; True if its accuracy is the best so far (a tie goes to the first)."""
        best = accuracy > self.best_accuracy
        if best:
            self.best_accuracy, self.best_accuracy_step = accuracy, step
        self.stale += 1
        if loss < self.best_loss:
            self.best_loss, self.best_loss_step, self.stale = loss, step, 0
        return best

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        return cls(**state)


@dataclass
class State:
    model: nn.Module  # unwrapped: its keys are torchvision's or timm's own
    optimizer: Optimizer
    schedule: Schedule
    average: AveragedModel | None
    history: History
    in_eval_mode: tuple[str, ...] = ()
    """Parts that stay in eval mode while the others train."""

    @property
    def evaluated(self) -> nn.Module:
        """The model with the weights to validate, keep as best and predict with."""
        if self.average is None:
            return self.model
        module: nn.Module = self.average.module
        return module

    def train_mode(self) -> None:
        train_mode(self.model, self.in_eval_mode)

    def update(self, clip: float) -> float:
        """One step of optimizer, moving average and schedule; returns its learning rate. ``clip`` 0: no clipping."""
        lr = self.schedule.lr
        if clip:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.schedule.step()
        return lr


def build_state(run: Run, classes: int, steps: Steps, world: World) -> State:
    """Model, optimizer, schedule and moving average at step 0, the same on every rank; sharded if FSDP is asked for."""
    model = build_model(run.model, classes, run.seed).to(world.device)
    if run.train.images_channels_last and not world.fsdp:  # sharding needs row-major parameters
        model = model.to(memory_format=torch.channels_last)
    average = moving_average(model, run.optim.ema)
    if world.fsdp:
        for network in (model, *([average.module] if average else [])):
            shard(network, sharding_units(network, run.model), world.mesh())
    lr = run.optim.learning_rate(run.train.batch)
    groups = parameter_groups(model, run.optim, fresh_parameters(model, run.model), lr)
    optimizer = build_optimizer(groups, run.optim)
    schedule = Schedule(optimizer, run.optim, run.train.epochs, steps.whole, lr)
    state = State(model, optimizer, schedule, average, History(), run.model.in_eval_mode)
    state.train_mode()
    return state
