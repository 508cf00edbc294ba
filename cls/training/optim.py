"""Parameter groups, optimizers, learning-rate schedules and the moving average, built from the configuration."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from cls.config import Optim
from cls.models.sharding import local


def parameter_groups(
    model: nn.Module, config: Optim, fresh: set[str], lr: float, depths: Mapping[str, int] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Trainable parameters by rate (fresh parts, stages of the backbone) and by decay (norms and biases without it if
    asked). ``depths``: how many stages follow that of a parameter. A group at ``lr`` itself, if there is one, is first.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = lr * (config.head_lr if name in fresh else config.stage_decay ** depths.get(name, 0))
        decay = config.weight_decay if config.decay_norms or parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != lr)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in ordered]


def build_optimizer(groups: list[dict[str, Any]], config: Optim) -> Optimizer:
    """Fused, on a CPU too: for ResNet-50 on one core AdamW takes 79 instead of 196 ms, SGD 57 instead of 70."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, fused=True)
    return torch.optim.AdamW(groups, betas=config.betas, fused=True)


class Schedule:
    """The learning rate as a function of steps, epochs and validation figures.

    ``min_lr`` is the floor of the backbone's rate in every schedule (a warm-up starts below it); a group with k times
    the backbone's rate has k times its floor, so the groups keep their ratio.
    In the first ``optim.head_epochs`` the rate is constant; the schedule covers what follows.
    Never passed to ``Accelerator.prepare``: a prepared scheduler steps once per process (PITFALLS 18, 19).
    """

    def __init__(
        self, optimizer: Optimizer, config: Optim, epochs: float, steps: int, lr: float = 0.0, head_steps: int = 0
    ) -> None:
        """``steps``: optimizer steps of the whole run (for the per-step schedules), the first ``head_steps`` for the
        head alone.

        ``lr``: the backbone's rate at its highest; 0 is the first group's. The backbone may be frozen, without a group.
        """
        epochs, steps = epochs - config.head_epochs or 1, steps - head_steps  # 1: nothing follows the head's epochs
        self.optimizer, self.config = optimizer, config
        lr = lr or self.lr
        low = config.min_lr / lr  # min_lr is a rate, as in torch's schedules, not a share of optim.lr
        floors = [config.min_lr * (group["lr"] / lr) for group in optimizer.param_groups]
        self.ratios = [group["lr"] / self.lr for group in optimizer.param_groups]
        self.improved, self.best_loss, self.best_accuracy = 0, math.inf, -math.inf
        self.torch: CosineAnnealingLR | ReduceLROnPlateau | LambdaLR | None = None
        if config.schedule == "cosine":
            period: Any = config.t_max or epochs  # torch's type is int, its formula takes 2.5
            self.torch = CosineAnnealingLR(optimizer, period, floors[0])
        elif config.schedule == "plateau":
            self.torch = ReduceLROnPlateau(
                optimizer,
                mode="min" if config.plateau_on == "loss" else "max",
                factor=config.factor,
                patience=config.patience,
                threshold_mode="abs" if config.plateau_on == "either" else "rel",  # a count of improvements
                min_lr=floors,
            )
        elif config.schedule == "warmup-cosine":
            warm = config.warmup * steps / epochs
            self.torch = LambdaLR(
                optimizer, lambda s: 1.0 if s < head_steps else _warmup_cosine(s - head_steps, warm, steps, low)
            )
        elif config.schedule == "one-cycle":
            self.torch = LambdaLR(
                optimizer, lambda s: 1.0 if s < head_steps else _one_cycle(s - head_steps, steps, low)
            )

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """After an optimizer step."""
        if isinstance(self.torch, LambdaLR):
            self.torch.step()

    def epoch(self, loss: float, accuracy: float) -> None:
        """After an epoch of the whole network, with its validation figures, which some schedules ignore."""
        if isinstance(self.torch, CosineAnnealingLR):
            self.torch.step()
            for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
                group["lr"] = self.lr * ratio  # torch's has one floor for all groups
        elif isinstance(self.torch, ReduceLROnPlateau):
            self.improved += loss < self.best_loss or accuracy > self.best_accuracy
            self.best_loss, self.best_accuracy = min(loss, self.best_loss), max(accuracy, self.best_accuracy)
            self.torch.step({"loss": loss, "accuracy": accuracy, "either": self.improved}[self.config.plateau_on])

    def state_dict(self) -> dict[str, Any]:
        inner = {k: v for k, v in self.torch.state_dict().items() if k != "lr_lambdas"} if self.torch else {}
        return {"torch": inner, "best": [self.improved, self.best_loss, self.best_accuracy]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The rates themselves are in the optimizer's state."""
        if self.torch:
            functions = {"lr_lambdas": [None]} if isinstance(self.torch, LambdaLR) else {}
            self.torch.load_state_dict(state["torch"] | functions)
        self.improved, self.best_loss, self.best_accuracy = state["best"]


def _warmup_cosine(step: int, warm: float, steps: int, low: float) -> float:
    if step < warm:
        return (step + 1) / (math.floor(warm) + 1)
    progress = min(1.0, (step - warm) / max(1.0, steps - warm))
    return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2


def _one_cycle(step: int, steps: int, low: float) -> float:
    """As torch's OneCycleLR, which would also write its rates into the parameter groups that a checkpoint holds."""
    first, last = max(1 / 25, low), max(4e-6, low)
    top, end = 0.3 * steps - 1, steps - 1
    if step <= top:
        return 1 - (1 - first) * (1 + math.cos(math.pi * step / top)) / 2
    return last + (1 - last) * (1 + math.cos(math.pi * min(1.0, (step - top) / max(1.0, end - top)))) / 2


class MovingAverage(AveragedModel):
    """Exponential moving average of parameters and buffers, by position in the unwrapped model.

    The decay warms up as in TensorFlow's ExponentialMovingAverage with num_updates: update n, from 0, keeps
    min(decay, (1 + n) / (10 + n)) of the average, which starts at the model's first weights. With a fixed 0.9999 those
    are 90 % of the average after 1,000 steps; with the warm-up they are 0.001 % after 10, and the average is over about
    the last ninth of the steps or the last 1 / (1 - decay), whichever is shorter. n is ``n_averaged``, the updates
    done: it equals the step, so a continued run has the same bits.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """torch's own moves the count of updates to the GPU and waits for that, twice a step."""
        averaged, current = ([local(t) for t in (*m.parameters(), *m.buffers())] for m in (self.module, model))
        decay = decay_after(int(self.n_averaged), self.decay)  # the count is on the CPU
        # torch would average integers, too, and cut: index tables lose one
        copied = [at for at, tensor in enumerate(averaged) if not tensor.is_floating_point()]
        mixed = sorted({*range(len(averaged))} - {*copied})
        if mixed:
            torch._foreach_lerp_([averaged[at] for at in mixed], [current[at] for at in mixed], 1 - decay)
        if copied:
            torch._foreach_copy_([averaged[at] for at in copied], [current[at] for at in copied])
        self.n_averaged += 1


def decay_after(updates: int, decay: float) -> float:
    """The share of the average that stays, after so many updates before this one: min(decay, (1 + n) / (10 + n))."""
    return min(decay, (1 + updates) / (10 + updates))


def moving_average(model: nn.Module, decay: float) -> MovingAverage | None:
    """None when off."""
    return MovingAverage(model, decay) if decay else None
