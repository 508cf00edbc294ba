"""The mutable state: which layers train at a step, at which rate, and what the others keep."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cls.config import Run, change
from cls.distributed.world import World
from cls.models.backbones import plain, stage_depths
from cls.models.build import build_shapes
from cls.training.state import State, build_state
from cls.training.steps import Steps
from cls.training.validation import record_validation

ALONE = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
HEAD = "128 bn relu dropout:0.5"


def built(reduce: str = "exact", **optim: Any) -> State:
    """40 steps in 4 epochs."""
    torch.manual_seed(0)
    model = {"backbone": "resnext14_8x8d", "weights": "none", "head": HEAD, "cbam": (4,)}
    run = change(Run(), model=model, train={"epochs": 4, "batch": 16, "reduce": reduce}, optim=optim)
    return build_state(run, ("a", "b", "c"), Steps(160, run.train), ALONE)


def step(state: State, number: int) -> tuple[set[str], set[str]]:
    """One step on random images: the names of the parameters and of the buffers that it changed."""
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    state.train_mode(number)
    state.optimizer.zero_grad()
    state.model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    state.update(1.0)
    changed = {name for name, value in state.model.state_dict().items() if not value.equal(before[name])}
    parameters = {name for name, _ in state.model.named_parameters()}
    return changed & parameters, changed - parameters


@pytest.mark.parametrize("skips_backward", [True, False])
def test_in_the_head_epochs_only_fresh_layers_train_and_all_else_keeps_its_bits(skips_backward: bool) -> None:
    state = built(name="adamw", lr=0.01, head_lr=5.0, head_epochs=0.5, weight_decay=0.1, ema=0.5)
    state.skips_backward = skips_backward
    assert state.head_steps == 5
    names = {name for name, _ in state.model.named_parameters()}
    fresh = {name for name in names if name.startswith("fc.") or ".mlp." in name or ".spatial." in name}
    for number in range(5):
        parameters, buffers = step(state, number)
        assert parameters == fresh and buffers == {"fc.1.running_mean", "fc.1.running_var", "fc.1.num_batches_tracked"}
        assert {group["lr"] for group in state.optimizer.param_groups} == {0.01, 0.05}
    touched = {name for name, p in state.model.named_parameters() if p in state.optimizer.state}
    assert touched == fresh  # the backbone's moments begin with its own first gradient
    parameters, buffers = step(state, 5)
    assert parameters == names and "bn1.running_mean" in buffers
    assert {int(s["step"]) for s in state.optimizer.state.values()} == {1, 6}


def test_gradients_that_are_not_needed_are_not_computed() -> None:
    state = built(head_epochs=1.0)
    state.train_mode(0)
    assert not state.model.conv1.weight.requires_grad and state.model.fc[0].weight.requires_grad
    state.train_mode(10)
    assert all(parameter.requires_grad for parameter in state.model.parameters())


def test_after_a_validation_the_same_layers_are_in_train_mode_again() -> None:
    state = built(head_epochs=1.0)
    for number, training in ((0, False), (3, False), (10, True), (20, True)):
        state.train_mode(number)
        assert (state.model.bn1.training, state.model.fc[1].training) == (training, True)
        assert state.model.layer4[-1].training  # CBAM
        state.model.eval()


@pytest.mark.parametrize(
    ("schedule", "first", "later"),
    [("warmup-cosine", {10: 0.001, 19: 0.01}, {39: 1e-4}), ("one-cycle", {10: 0.0004, 18: 0.01}, {39: 1e-5})],
)
def test_the_schedule_begins_after_the_head_epochs(
    schedule: str, first: dict[int, float], later: dict[int, float]
) -> None:
    state = built(name="sgd", lr=0.01, head_epochs=1.0, schedule=schedule, warmup=1.0)
    rates = [state.update(0.0) for _ in range(40)]
    assert rates[:10] == [0.01] * 10
    for number, rate in first.items():
        assert rates[number] == pytest.approx(rate, rel=0.1)
    assert all(rates[number] <= rate for number, rate in later.items())
    assert max(rates[10:]) == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", ["fixed", "cosine", "plateau", "warmup-cosine", "one-cycle"])
def test_a_run_may_train_the_head_alone_at_one_rate(schedule: str) -> None:
    state = built(name="sgd", lr=0.01, head_epochs=4.0, schedule=schedule, warmup=1.0)
    assert state.head_steps == 40 and [state.update(0.0) for _ in range(40)] == [0.01] * 40


def test_a_schedule_by_epochs_covers_the_epochs_after_the_head() -> None:
    state = built(name="sgd", lr=0.01, head_epochs=1.0, schedule="cosine")
    rates = [state.schedule.lr]
    for _ in range(3):
        state.schedule.epoch(1.0, 0.5)
        rates.append(state.schedule.lr)
    assert rates == pytest.approx([0.01, 0.0075, 0.0025, 0.0])


def depths(net: nn.Module, name: str) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for parameter, depth in stage_depths(net, name).items():
        found.setdefault(depth, set()).add(parameter.split(".")[0])
    return found


@pytest.mark.parametrize("name", ["resnet18", "resnext14_8x8d", "timm/resnet18", "timm/seresnext101d_32x8d.ah_in1k"])
def test_stages_of_a_resnet_are_counted_from_the_last_one(name: str) -> None:
    with torch.device("meta"):
        net = plain(name)
    assert depths(net, name) == {
        0: {"layer4", "fc"}, 1: {"layer3"}, 2: {"layer2"}, 3: {"layer1"}, 4: {"conv1", "bn1"},
    }  # fmt: skip


def test_stages_of_another_network_are_those_that_timm_states() -> None:
    name = "timm/tf_efficientnet_lite0"
    with torch.device("meta"):
        net = plain(name)
    found = stage_depths(net, name)
    assert {parameter for parameter, depth in found.items() if depth == 7} == {
        "conv_stem.weight", "bn1.weight", "bn1.bias",
    }  # fmt: skip
    assert {found[f"blocks.{stage}.0.conv_dw.weight"] for stage in (6,)} == {found["conv_head.weight"]} == {0}
    assert [found[f"blocks.{stage}.0.conv_dw.weight"] for stage in range(7)] == [6, 5, 4, 3, 2, 1, 0]
    assert found["classifier.weight"] == 0 and set(found) == {each for each, _ in net.named_parameters()}


def test_stage_decay_gives_each_stage_its_rate() -> None:
    state = built(name="sgd", lr=0.01, head_lr=5.0, stage_decay=0.5)
    rates = {id(p): group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
    of = {name: rates[id(p)] for name, p in state.model.named_parameters()}
    assert of["conv1.weight"] == 0.01 / 16 and of["layer1.0.conv1.weight"] == 0.01 / 8
    assert of["layer4.0.conv1.weight"] == 0.01 and of["fc.0.weight"] == of["layer4.1.mlp.0.weight"] == 0.05
    assert state.schedule.lr == 0.01


def test_frozen_parts_are_in_eval_mode_from_the_first_step_on() -> None:
    """Else their BatchNorm statistics would move until the first validation."""
    model = {"backbone": "resnext14_8x8d", "weights": "none", "freeze": ("stem", "layer1")}
    run = change(Run(), model=model, train={"batch": 16})
    state = build_state(run, ("a", "b", "c"), Steps(160, run.train), ALONE)
    norms = {name: module.training for name, module in state.model.named_modules() if name.endswith("bn1")}
    assert not norms["bn1"] and not norms["layer1.0.bn1"] and norms["layer2.0.bn1"]
    parameters, buffers = step(state, 0)
    assert (
        parameters and buffers and not any(name.startswith(("conv1", "bn1", "layer1")) for name in parameters | buffers)
    )


def test_the_epochs_of_the_head_do_not_count_as_stale() -> None:
    state = built(head_epochs=2.0)
    steps = Steps(160, Run().train)
    noted = SimpleNamespace(log_validation=lambda *_: None)
    for epoch, (loss, stale) in enumerate(((0.5, 0), (0.6, 0), (0.9, 0), (0.8, 0), (0.85, 1)), 1):
        at = SimpleNamespace(ends_epoch=lambda _: True, train=steps.train)
        record_validation(10 * epoch, at, state, {"loss": loss, "accuracy": 0.5}, noted)  # type: ignore[arg-type]  # all that it asks for
        assert state.history.stale == stale
    assert state.history.best_loss == 0.5  # the head's own epochs may be the best


def test_a_frozen_head_cannot_train_alone() -> None:
    run = change(Run(), model={"backbone": "resnext14_8x8d", "weights": "none", "freeze": ("fc",)},
                 train={"epochs": 4, "batch": 16}, optim={"head_epochs": 1.0})  # fmt: skip
    with pytest.raises(ValueError, match=r"freezes the head: set optim\.head_epochs to 0"):
        build_state(run, ("a", "b", "c"), Steps(160, run.train), ALONE)


@pytest.mark.parametrize("name", ["timm/convnext_atto", "timm/swin_tiny_patch4_window7_224"])
def test_norms_at_the_end_of_a_network_are_no_stage(name: str) -> None:
    with torch.device("meta"):
        net = plain(name)
    found = stage_depths(net, name)
    last = [depth for each, depth in found.items() if each.startswith(("stages.3", "layers.3"))]
    assert last and set(last) == {0} and min(found.values()) == 0


@pytest.mark.parametrize(("name", "head"), [("timm/rdnet_tiny", ""), ("timm/inception_v3", "500 relu")])
def test_a_network_without_stages_is_named(name: str, head: str) -> None:
    model = change(Run(), model={"backbone": name, "weights": "none", "head": head}).model
    with pytest.raises(ValueError, match=f"optim.stage_decay: {name} does not state its stages: leave it at 1"):
        stage_depths(build_shapes(model, 3), name)
