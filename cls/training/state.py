"""Mutable training state: model, optimizer, learning-rate schedule, moving average, validation history."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from cls.config import Run, Train
from cls.distributed.world import World
from cls.models.backbones import stage_depths
from cls.models.build import build_model, fresh_modules, fresh_parameters
from cls.models.freeze import train_mode
from cls.models.sharding import shard, sharding_units
from cls.training.optim import Schedule, build_optimizer, moving_average, parameter_groups
from cls.training.steps import Steps


@dataclass
class History:
    """The best validation figures so far, and how long the one that early stopping follows has not improved."""

    best_accuracy: float = -math.inf
    best_accuracy_step: int = -1
    best_loss: float = math.inf
    best_loss_step: int = -1
    stale: int = 0
    """Epochs in a row in which the figure of ``train.early_stop_on`` did not improve by ``train.early_stop_change``."""
    improved: float = math.inf
    """That figure when it last improved: the loss, or minus the accuracy."""
    validated: int = 0
    """The last step after which there was a validation."""

    def add(self, step: int, accuracy: float, loss: float, train: Train) -> None:
        """Record an epoch's validation figures; of equal ones the first is the best."""
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_accuracy_step = accuracy, step
        if loss < self.best_loss:
            self.best_loss, self.best_loss_step = loss, step
        followed = loss if train.early_stop_on == "loss" else -accuracy
        self.stale += 1
        if followed < self.improved - train.early_stop_change:
            self.improved, self.stale = followed, 0

    def restart_patience(self) -> None:
        """What follows is compared with itself: the first epochs of a network may be worse than those of its head."""
        self.stale, self.improved = 0, math.inf

    def best_step(self, train: Train) -> int:
        """The step of the weights that ``train.best_on`` keeps; -1 before the first epoch has ended."""
        return self.best_accuracy_step if train.best_on == "accuracy" else self.best_loss_step

    def forget_best(self, train: Train) -> None:
        """The next epoch's weights are the best then."""
        if train.best_on == "accuracy":
            self.best_accuracy = -math.inf
        else:
            self.best_loss = math.inf

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        # earlier versions followed the loss
        return cls(**({"improved": state["best_loss"]} | state))


@dataclass
class State:
    model: nn.Module  # unwrapped: its keys are torchvision's or timm's own
    optimizer: Optimizer
    schedule: Schedule
    average: AveragedModel | None
    history: History
    in_eval_mode: tuple[str, ...] = ()
    """Parts that stay in eval mode while the others train."""
    head_steps: int = 0
    """Steps at the start in which only fresh layers train."""
    fresh: tuple[list[nn.Module], set[str]] = field(default_factory=lambda: ([], set()))
    """The modules and the names of the parameters without pretrained values."""
    skips_backward: bool = False
    """Whether no gradient is computed for what does not train: DDP's reducer and FSDP wait for all of them."""
    head_only: bool = False
    """Whether only fresh layers train at this step."""

    @property
    def evaluated(self) -> nn.Module:
        """The model with the weights to validate, keep as best and predict with."""
        if self.average is None:
            return self.model
        module: nn.Module = self.average.module
        return module

    def train_mode(self, step: int) -> None:
        """Train mode for the layers that train at this step; the others keep their weights and buffers bit for bit."""
        head_only = step < self.head_steps
        if head_only == self.head_only and (self.fresh[0][0] if head_only else self.model).training:
            return  # a validation leaves everything in eval mode
        if head_only:
            self.model.eval()
            for module in self.fresh[0]:
                module.train()
        else:
            train_mode(self.model, self.in_eval_mode)
        if self.skips_backward and head_only != self.head_only:
            for parameter in self._held:
                parameter.requires_grad_(not head_only)
        self.head_only = head_only

    @cached_property
    def _held(self) -> list[nn.Parameter]:
        """The optimizer's parameters that have pretrained values."""
        trained = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        return [p for name, p in self.model.named_parameters() if p in trained and name not in self.fresh[1]]

    def update(self, clip: float) -> float:
        """One step of optimizer, moving average and schedule; returns its learning rate. ``clip`` 0: no clipping."""
        lr = self.schedule.lr
        if self.head_only:
            for parameter in self._held:
                parameter.grad = None  # the optimizer skips it, its weight decay and its moments
        if clip:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.schedule.step()
        return lr


def build_state(run: Run, classes: Sequence[str], steps: Steps, world: World) -> State:
    """Model, optimizer, schedule and moving average at step 0, the same on every rank; sharded if FSDP is asked for."""
    model = build_model(run.model, len(classes), run.seed, classes).to(world.device)
    if run.train.images_channels_last and not world.fsdp:  # sharding needs row-major parameters
        model = model.to(memory_format=torch.channels_last)
    average = moving_average(model, run.optim.ema)
    if world.fsdp:
        for network in (model, *([average.module] if average else [])):
            shard(network, sharding_units(network, run.model), world.mesh())
    lr = run.optim.learning_rate(run.train.batch)
    fresh, head_steps = fresh_parameters(model, run.model), steps.after(run.optim.head_epochs)
    depths = stage_depths(model, run.model.backbone) if run.optim.stage_decay != 1 else {}
    optimizer = build_optimizer(parameter_groups(model, run.optim, fresh, lr, depths), run.optim)
    schedule = Schedule(optimizer, run.optim, run.train.epochs, steps.whole, lr, head_steps)
    state = State(
        model, optimizer, schedule, average, History(), run.model.in_eval_mode, head_steps,
        fresh=(fresh_modules(model, run.model), fresh),
        skips_backward=world.size == 1 or (run.train.reduce == "exact" and not world.fsdp),
    )  # fmt: skip
    model.eval()  # a model in train mode is taken to be as train_mode left it, with its frozen parts in eval mode
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if head_steps and not any(parameter in trained and name in fresh for name, parameter in model.named_parameters()):
        raise ValueError(f"model.freeze {' '.join(run.model.freeze)} freezes the head: set optim.head_epochs to 0")
    state.train_mode(steps.whole)  # the memory probe tries the step of the whole network
    return state
