"""Rates, groups, schedules and the moving average: torch's own, used plainly, is the second opinion."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from cls.config import Optim
from cls.training.optim import Schedule, build_optimizer, decay_after, moving_average, parameter_groups


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def optimizer_of(model: nn.Module, config: Optim, fresh: set[str] = frozenset()) -> torch.optim.Optimizer:  # type: ignore[assignment]  # an empty set
    return build_optimizer(parameter_groups(model, config, fresh, config.lr), config)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    images = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).dtype)
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


# --- rate and groups ---


def test_the_rate_follows_the_batch_only_if_asked() -> None:
    for scale, factor in (("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)):
        config = Optim(lr=0.01, lr_batch=64, scale_lr=scale)  # type: ignore[arg-type]  # a literal
        assert config.learning_rate(256) == pytest.approx(0.01 * factor)
        assert config.learning_rate(64) == 0.01


def named(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """(rate, decay) of each parameter by name; each is in one group only."""
    names = {id(p): name for name, p in model.named_parameters()}
    flat = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(flat) == len(dict(flat))
    return dict(flat)


def test_by_default_every_parameter_has_one_rate_and_one_decay() -> None:
    model = small_model()
    groups = parameter_groups(model, Optim(weight_decay=0.05), {"3.weight", "3.bias"}, 0.01)
    assert len(groups) == 1
    assert set(named(model, groups).values()) == {(0.01, 0.05)} and len(named(model, groups)) == 6


def test_norms_and_biases_without_decay_and_a_faster_head() -> None:
    model = small_model()
    config = Optim(weight_decay=0.05, decay_norms=False, head_lr=10.0)
    assert named(model, parameter_groups(model, config, {"3.weight", "3.bias"}, 0.01)) == {
        "0.weight": (0.01, 0.05), "0.bias": (0.01, 0.0), "1.weight": (0.01, 0.0), "1.bias": (0.01, 0.0),
        "3.weight": (0.1, 0.05), "3.bias": (0.1, 0.0),
    }  # fmt: skip


def test_each_stage_has_its_factor_and_the_group_at_the_rate_itself_is_first() -> None:
    model = small_model()
    config = Optim(stage_decay=0.5, head_lr=10.0)
    depths = {"0.weight": 2, "0.bias": 2, "1.weight": 0, "1.bias": 0, "3.weight": 0, "3.bias": 0}
    groups = parameter_groups(model, config, {"3.weight", "3.bias"}, 0.01, depths)
    rates = {name: rate for name, (rate, _) in named(model, groups).items()}
    assert rates == {
        "0.weight": 0.0025, "0.bias": 0.0025, "1.weight": 0.01, "1.bias": 0.01, "3.weight": 0.1, "3.bias": 0.1,
    }  # fmt: skip
    assert groups[0]["lr"] == 0.01  # the one that is logged


def test_frozen_parameters_are_left_out() -> None:
    model = small_model()
    model[0].requires_grad_(False)  # type: ignore[index,union-attr]  # a Sequential
    assert set(named(model, parameter_groups(model, Optim(), set(), 0.01))) == {
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
    }


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizers_are_torchs_with_the_recipes_numbers(name: str) -> None:
    config = Optim(name=name, lr=0.05, weight_decay=0.1, betas=(0.8, 0.95))  # type: ignore[arg-type]  # a literal
    ours, theirs = small_model().double(), small_model().double()
    own = optimizer_of(ours, config)
    plain: torch.optim.Optimizer = (
        torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1, betas=(0.8, 0.95))
        if name == "adamw"
        else torch.optim.SGD(theirs.parameters(), lr=0.05, weight_decay=0.1, momentum=0.9)
    )
    for step in range(5):
        train_step(ours, own, step)
        train_step(theirs, plain, step)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)  # fused rounds elsewhere


def test_head_lr_moves_the_head_ten_times_as_far() -> None:
    slow, fast = small_model(), small_model()
    for model, factor in ((slow, 1.0), (fast, 10.0)):
        optimizer = optimizer_of(model, Optim(name="sgd", lr=1e-3, weight_decay=0.0, head_lr=factor), {"3.weight"})
        train_step(model, optimizer, 0)
    start = small_model()
    moved = [[p - q for p, q in zip(m.parameters(), start.parameters(), strict=True)] for m in (slow, fast)]
    names = [name for name, _ in start.named_parameters()]
    for name, a, b in zip(names, *moved, strict=True):
        assert torch.allclose(b, a * (10 if name == "3.weight" else 1), atol=1e-6, rtol=1e-4)


# --- schedules ---

Figures = list[tuple[float, float]]
STEPS_PER_EPOCH = 4


def dummy(lr: float, groups: int = 1) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr * 10**i} for i in range(groups)])


def trace(config: Optim, figures: Figures, stop_after: int = -1) -> list[float]:
    """Rate of each step; with ``stop_after`` epochs the state goes through JSON into new objects."""
    epochs = len(figures)
    optimizer = dummy(config.lr)
    schedule = Schedule(optimizer, config, epochs, epochs * STEPS_PER_EPOCH)
    rates = []
    for epoch, (loss, accuracy) in enumerate(figures):
        if epoch == stop_after:
            state = json.loads(json.dumps([schedule.state_dict(), optimizer.state_dict()]))
            optimizer = dummy(config.lr)
            schedule = Schedule(optimizer, config, epochs, epochs * STEPS_PER_EPOCH)
            optimizer.load_state_dict(state[1])
            schedule.load_state_dict(state[0])
        for _ in range(STEPS_PER_EPOCH):
            rates.append(schedule.lr)
            optimizer.step()
            schedule.step()
        schedule.epoch(loss, accuracy)
    return rates


def by_epoch(rates: list[float]) -> list[float]:
    """The rate of each epoch; within one it must not change."""
    assert all(len(set(rates[i : i + STEPS_PER_EPOCH])) == 1 for i in range(0, len(rates), STEPS_PER_EPOCH))
    return rates[::STEPS_PER_EPOCH]


FLAT: Figures = [(1.0, 0.5)] * 12
NOISY: Figures = [(abs(math.sin(7.3 * i)), abs(math.cos(3.1 * i))) for i in range(40)]


def test_fixed() -> None:
    assert trace(Optim(lr=0.1), FLAT) == [0.1] * 48


@pytest.mark.parametrize("t_max", [0, 8, 30])
def test_cosine_is_torchs_and_rises_again_after_t_max(t_max: int) -> None:
    rates = by_epoch(trace(Optim(lr=0.1, schedule="cosine", t_max=t_max, min_lr=0.01), FLAT))
    optimizer = dummy(0.1)
    reference, expected = CosineAnnealingLR(optimizer, t_max or 12, 0.01), []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates == expected
    formula = [0.01 + 0.09 * (1 + math.cos(math.pi * e / (t_max or 12))) / 2 for e in range(12)]
    assert rates == pytest.approx(formula, rel=1e-9)
    if t_max == 8:
        assert rates[8] == pytest.approx(0.01) and rates[11] > rates[10] > rates[9] > rates[8]


def plateau(on: str, figures: Figures, patience: int, **extra: float) -> list[float]:
    return by_epoch(
        trace(Optim(lr=1.0, schedule="plateau", factor=0.5, patience=patience, plateau_on=on, **extra), figures)
    )  # type: ignore[arg-type]  # a literal, floats


@pytest.mark.parametrize(("on", "mode", "column"), [("loss", "min", 0), ("accuracy", "max", 1)])
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(on: str, mode: Any, column: int, patience: int) -> None:
    optimizer = dummy(1.0)
    reference, expected = ReduceLROnPlateau(optimizer, mode, 0.5, patience, min_lr=0.01), []
    for figures in NOISY:
        expected.append(optimizer.param_groups[0]["lr"])
        reference.step(figures[column])
    assert plateau(on, NOISY, patience, min_lr=0.01) == expected
    assert expected[-1] < 1 and (patience or min(expected) == 0.01)


def test_plateau_by_hand() -> None:
    """patience 1: the second bad epoch in a row lowers the rate of the next epoch."""
    losses = [1.0, 0.9, 0.95, 0.92, 0.8, 0.8, 0.8, 0.8, 0.8]
    assert plateau("loss", [(x, 0.0) for x in losses], 1) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    accuracies = [0.1, 0.2, 0.2, 0.15, 0.3, 0.1, 0.2, 0.3, 0.4]
    assert plateau("accuracy", [(0.0, x) for x in accuracies], 1) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_on_either_by_hand() -> None:
    """Bad only when neither improved on its own best; report 4: two such epochs in a row lower the rate."""
    figures = [
        (1.0, 0.1), (0.9, 0.1), (0.95, 0.2), (0.95, 0.2), (0.89, 0.1), (0.89, 0.2), (0.95, 0.1), (0.9, 0.21),
        (0.9, 0.21), (0.89, 0.2), (0.88, 0.0), (0.8, 0.0),
    ]  # fmt: skip
    #  better:  both       loss        accuracy     none       loss         none         none        accuracy
    assert plateau("either", figures, 1) == [1, 1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert plateau("either", figures, 0) == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.125, 0.125, 0.0625, 0.03125, 0.03125]


def test_plateau_sees_a_loss_that_is_no_number_as_bad() -> None:
    nan = float("nan")
    assert plateau("either", [(1.0, 0.5), (nan, 0.5), (nan, 0.6), (nan, 0.6), (nan, 0.6)], 0) == [1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.0, 2.6])
def test_warm_up_then_cosine_is_the_formula(warmup: float) -> None:
    rates = trace(Optim(lr=0.1, schedule="warmup-cosine", warmup=warmup, min_lr=0.01), FLAT)
    warm, total = warmup * STEPS_PER_EPOCH, 48
    ramp = [s for s in range(total) if s < warm]
    assert [rates[s] for s in ramp] == pytest.approx([0.1 * (s + 1) / (math.floor(warm) + 1) for s in ramp])
    rest = range(len(ramp), total)
    assert [rates[s] for s in rest] == pytest.approx(
        [0.01 + 0.09 * (1 + math.cos(math.pi * (s - warm) / (total - warm))) / 2 for s in rest]
    )
    assert max(rates) <= 0.1 + 1e-12 and rates[0] > 0 and max(rates) > 0.0985
    assert 0.01 < rates[-1] < 0.0102


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 10, 48, 101])
def test_one_cycle_is_torchs(steps: int) -> None:
    config, optimizer, other = Optim(lr=0.1, schedule="one-cycle"), dummy(0.1, groups=2), dummy(0.1, groups=2)
    ours = Schedule(optimizer, config, 5, steps)
    rates = [group["lr"] for group in other.param_groups]
    theirs = torch.optim.lr_scheduler.OneCycleLR(other, rates, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        for one, two in zip(optimizer.param_groups, other.param_groups, strict=True):
            assert one["lr"] == pytest.approx(two["lr"], rel=1e-9), step
        optimizer.step()
        other.step()
        ours.step()
        if step < steps - 1:  # torch rejects one more step
            theirs.step()


def test_the_lowest_rate_is_a_rate_also_where_the_rate_was_scaled() -> None:
    """scale_lr doubles the rate; min_lr is the lowest rate of every schedule, not a ratio to the unscaled one."""
    config = Optim(lr=0.1, lr_batch=64, scale_lr="sqrt", schedule="warmup-cosine", min_lr=0.01)
    optimizer = dummy(config.learning_rate(256))
    schedule = Schedule(optimizer, config, 10, 1000)
    for _ in range(1000):
        optimizer.step()
        schedule.step()
    assert schedule.lr == pytest.approx(0.01)


def test_groups_keep_their_ratio() -> None:
    config = Optim(lr=0.1, schedule="warmup-cosine", warmup=1.0)
    optimizer = dummy(0.1, groups=2)
    schedule = Schedule(optimizer, config, 5, 20)
    for _ in range(20):
        assert optimizer.param_groups[1]["lr"] == pytest.approx(10 * optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


# --- the lowest rate, for each group ---

FACTORS = [[1.0, 10.0], [1.0, 0.1, 1.0], [10.0, 1.0], [10.0]]  # the last: a frozen backbone has no group


def grouped(config: Optim, factors: list[float], figures: Figures) -> list[list[float]]:
    """Rate of each step and group; the backbone's is config.lr."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": config.lr * f} for f in factors])
    schedule = Schedule(optimizer, config, len(figures), len(figures) * STEPS_PER_EPOCH, config.lr)
    rates = []
    for loss, accuracy in figures:
        for _ in range(STEPS_PER_EPOCH):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        schedule.epoch(loss, accuracy)
    return rates


@pytest.mark.parametrize("schedule", ["cosine", "warmup-cosine", "one-cycle"])
def test_a_schedule_over_part_of_an_epoch_ends_with_the_run(schedule: Any) -> None:
    """2.5 epochs of 4 steps: per step as in a run of 10 steps; per epoch at 0, 0.4 and 0.8 of the run."""
    config = Optim(lr=0.1, min_lr=0.01, schedule=schedule, warmup=0.5)
    optimizer = dummy(0.1)
    found, rates = Schedule(optimizer, config, 2.5, 10), []
    for step in range(10):
        rates.append(found.lr)
        optimizer.step()
        found.step()
        if step % 4 == 3:
            found.epoch(1.0, 0.0)
    if schedule == "cosine":
        at = [0.01 + 0.09 * math.cos(math.pi / 2 * share) ** 2 for share in (0, 0.4, 0.8)]
        assert rates == pytest.approx([at[0]] * 4 + [at[1]] * 4 + [at[2]] * 2)
        return
    whole = Schedule(dummy(0.1), dataclasses.replace(config, warmup=2.0), 10, 10)
    assert isinstance(whole.torch, torch.optim.lr_scheduler.LambdaLR)
    assert rates == pytest.approx([0.1 * whole.torch.lr_lambdas[0](step) for step in range(10)])


def expected_rates(config: Optim, epochs: int) -> list[float]:
    """The backbone's, by formulas of their own; the plateau's figures never improve."""
    steps, high, low = epochs * STEPS_PER_EPOCH, config.lr, config.min_lr
    if config.schedule == "cosine":
        by_epoch = [low + (high - low) * math.cos(math.pi / 2 * e / epochs) ** 2 for e in range(epochs)]
        return [rate for rate in by_epoch for _ in range(STEPS_PER_EPOCH)]
    if config.schedule == "plateau":
        by_epoch = [max(low, high * config.factor ** max(0, e - 1)) for e in range(epochs)]
        return [rate for rate in by_epoch for _ in range(STEPS_PER_EPOCH)]
    if config.schedule == "warmup-cosine":
        warm = int(config.warmup * STEPS_PER_EPOCH)
        falling = [math.cos(math.pi / 2 * s / (steps - warm)) ** 2 for s in range(steps - warm)]
        return [high * (s + 1) / (warm + 1) for s in range(warm)] + [low + (high - low) * x for x in falling]
    optimizer = dummy(high)  # torch's, with the floor as its first and last rate where that is higher
    first, last = max(high / 25, low), max(high * 4e-6, low)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, high, total_steps=steps, cycle_momentum=False, div_factor=high / first, final_div_factor=first / last
    )
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:  # torch rejects one more step
            cycle.step()
    return found


@pytest.mark.parametrize("min_lr", [0.0, 0.003, 0.02, 0.1])
@pytest.mark.parametrize("schedule", ["cosine", "plateau", "warmup-cosine", "one-cycle"])
@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_the_lowest_rate_is_the_backbones_and_the_other_groups_keep_their_factor(
    schedule: Any, min_lr: float, factors: list[float]
) -> None:
    config = Optim(lr=0.1, schedule=schedule, min_lr=min_lr, factor=0.5, patience=0, warmup=2.0)
    expected = expected_rates(config, len(FLAT))
    rates = grouped(config, factors, FLAT)
    for step, row in enumerate(rates):
        assert row == pytest.approx([expected[step] * factor for factor in factors], rel=1e-9, abs=1e-15), step
    after = rates[8:] if schedule == "warmup-cosine" else rates
    assert all(rate >= min_lr * factor * (1 - 1e-9) for row in after for rate, factor in zip(row, factors, strict=True))


CONFIGS = [
    Optim(lr=0.1),
    Optim(lr=0.1, schedule="cosine", t_max=15, min_lr=1e-3),
    *(
        Optim(lr=0.1, schedule="plateau", patience=1, factor=0.7, plateau_on=on)
        for on in ("loss", "accuracy", "either")
    ),  # type: ignore[arg-type]  # a literal
    Optim(lr=0.1, schedule="warmup-cosine", warmup=3.5, min_lr=1e-3),
    Optim(lr=0.1, schedule="one-cycle"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.schedule}-{c.plateau_on}")
def test_a_schedule_continues_after_json(config: Optim) -> None:
    whole = trace(config, NOISY)
    for stop in (1, 2, 17, 39):
        assert trace(config, NOISY, stop_after=stop) == whole
    if config.schedule != "fixed":
        assert len(set(whole)) > 5


# --- moving average ---


def run_average(steps: int, decay: float, between: Callable[[int], None] = lambda _: None) -> list[dict[str, Tensor]]:
    """States of model (w.) and average (a.): at the start and after each step."""
    model = small_model()
    average = moving_average(model, decay)
    assert average is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def both() -> dict[str, Tensor]:
        return copy.deepcopy({**{f"w.{k}": v for k, v in model.state_dict().items()},
                              **{f"a.{k}": v for k, v in average.module.state_dict().items()}})  # fmt: skip

    states = [both()]
    for step in range(steps):
        train_step(model, optimizer, step)
        average.update_parameters(model)
        between(step)
        states.append(both())
    return states


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.9, 0.9999])
def test_the_average_is_the_formula_buffers_included(decay: float) -> None:
    """a_0 = w_0; a_(n+1) = d a_n + (1 - d) w_(n+1) with d = min(decay, (1 + n) / (10 + n)); integers are copied."""
    states = run_average(12, decay)
    names = [k[2:] for k in states[0] if k.startswith("w.") and states[0][k].is_floating_point()]
    assert {"1.running_mean", "1.running_var", "0.weight"} <= set(names)
    for name in names:
        expected = states[0]["w." + name].double()
        for n, state in enumerate(states[1:]):
            d = min(decay, (1 + n) / (10 + n))
            expected = d * expected + (1 - d) * state["w." + name].double()
            assert torch.allclose(state["a." + name].double(), expected, atol=1e-6)
    for name in ("1.running_mean", "0.weight"):  # a bias before BatchNorm has no gradient: it may stay where it is
        assert not states[-1]["a." + name].equal(states[-1]["w." + name])
    assert [int(state["a.1.num_batches_tracked"]) for state in states] == list(range(13))


def test_the_warm_up_is_tensorflows_and_ends_at_the_decay() -> None:
    assert [decay_after(n, 0.9999) for n in (0, 8, 90)] == pytest.approx([0.1, 0.5, 0.91])
    assert decay_after(80, 0.9) == 0.9 == decay_after(10**9, 0.9) and decay_after(79, 0.9) < 0.9
    assert decay_after(89_990, 0.9999) == pytest.approx(0.9999) and decay_after(80_000, 0.9999) < 0.9999
    start = math.prod(decay_after(n, 0.9999) for n in range(10))  # of the first weights, as the docstring says
    assert start == pytest.approx(1e-5, rel=0.1) and round(0.9999**1000, 2) == 0.9


def test_a_short_run_with_a_long_average_is_about_as_good_as_its_weights() -> None:
    """60 steps on ten blobs at 0.9999: without the warm-up the average would still be the random first weights."""
    torch.manual_seed(1)
    centres, noise = torch.randn(10, 8) * 2, torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    average = moving_average(model, 0.9999)
    assert average is not None

    def blobs(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(10, (count,), generator=noise)
        return centres[labels] + torch.randn(count, 8, generator=noise), labels

    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    test, truth = blobs(1000)

    def accuracy(network: nn.Module) -> float:
        return float((copy.deepcopy(network).eval()(test).argmax(1) == truth).float().mean())

    first = accuracy(model)
    for _ in range(60):
        images, labels = blobs(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        average.update_parameters(model)
    assert first < 0.3 and accuracy(model) > 0.9
    assert abs(accuracy(average.module) - accuracy(model)) < 0.03


def test_a_restored_average_continues_with_the_same_bits() -> None:
    whole = run_average(6, 0.9)
    model, average = small_model(), moving_average(small_model(), 0.9)
    assert average is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict({k[2:]: v for k, v in whole[3].items() if k.startswith("w.")})
    average.module.load_state_dict({k[2:]: v for k, v in whole[3].items() if k.startswith("a.")})
    average.n_averaged.fill_(3)
    for step in range(3, 6):
        train_step(model, optimizer, step)
        average.update_parameters(model)
    for name, value in average.module.state_dict().items():
        assert value.equal(whole[-1]["a." + name])


def test_the_average_is_off_at_zero_and_a_copy_otherwise() -> None:
    model = small_model()
    assert moving_average(model, 0.0) is None
    average = moving_average(model, 0.9)
    assert average is not None
    assert all(a is not b and a.equal(b) for a, b in zip(average.module.parameters(), model.parameters(), strict=True))
