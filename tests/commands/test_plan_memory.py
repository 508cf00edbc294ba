"""The traced memory against published figures, against the CPU's own allocator, and against direct traces."""

from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchvision
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from cls import recipes
from cls.commands.gpus import find
from cls.commands.plan.memory import PARTS, SIZES, Step, _trace, flops, trace_step, with_exchange, workspace
from cls.config import Run, change
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.tree_reduce import block_sizes, push, shares, total
from cls.distributed.world import World
from cls.models.loss import loss_per_image
from cls.training.state import build_state
from cls.training.steps import Steps
from cls.transforms.mixup import Mixing, mix, soft_targets

GIB = 2**30


def traced(backbone: str, precision: str = "fp32", freeze: tuple[str, ...] = ()) -> Step:
    return _traced(backbone, precision, freeze)


@cache
def _traced(backbone: str, precision: str, freeze: tuple[str, ...]) -> Step:
    model = {"weights": "none", "backbone": backbone, "freeze": freeze}
    run = change(recipes.get("mlp-head"), model=model, train={"reduce": "fast", "batch": 64})
    return trace_step(run, 100, precision)


def gib(step: Step, size: int) -> float:
    """Of one process whose batch is one micro-batch, without context and workspace."""
    return step.peak(size, range(1)).total / GIB


SOAK = pytest.mark.soak
FACTS = [
    ("resnet50", "fp32", {64: 5.40}),
    pytest.param("resnet101", "fp32", {64: 8.05, 32: 4.27}, marks=SOAK),
    pytest.param("resnext101_32x8d", "fp32", {64: 15.69, 32: 8.33}, marks=SOAK),
    pytest.param("resnext101_32x8d", "bf16", {64: 8.56, 32: 4.85}, marks=SOAK),
    pytest.param("resnext50_32x4d", "fp32", {64: 6.96, 32: 3.61}, marks=SOAK),
    pytest.param("resnext101_64x4d", "fp32", {64: 15.63}, marks=SOAK),
    pytest.param("resnext101_64x4d", "bf16", {64: 8.49}, marks=SOAK),
]


@pytest.mark.parametrize(("backbone", "precision", "facts"), FACTS)
def test_the_trace_agrees_with_an_independent_one(backbone: str, precision: str, facts: dict[int, float]) -> None:
    """AdamW, two steps, 224 pixels, GiB, traced by another program on fake tensors."""
    for size, expected in facts.items():
        assert gib(traced(backbone, precision), size) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("backbone", ["resnet50", pytest.param("resnext101_32x8d", marks=SOAK)])
def test_flops_agree_with_torchvisions_own_figures(backbone: str) -> None:
    """torchvision states multiply-adds of a forward pass; a step has three such passes less the images' gradient."""
    weights = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V2"]
    stem = 112 * 112 * 64 * 3 * 7 * 7
    expected = 2 * (3 * weights.meta["_ops"] * 1e9 - stem)
    assert traced(backbone).work(1)[0].sum() == pytest.approx(expected, rel=0.005)


def fits(step: Step, size: int, gpu: str, share: range = range(1)) -> bool:
    need = step.peak(size, share).total
    return (need + workspace(need)) / GIB <= find(gpu).usable_gib


LAST = ("stem", "layer1", "layer2", "layer3")


@pytest.mark.soak
@pytest.mark.parametrize("gpu", ["rtx2070", "3060 ti"])
def test_what_fitted_on_the_authors_eight_gigabytes(gpu: str) -> None:
    """The reports' own cards at 224 pixels in fp32."""
    assert fits(traced("resnet50"), 64, gpu)
    assert not fits(traced("resnet101"), 64, gpu)
    assert fits(traced("resnet101"), 32, gpu)


@pytest.mark.soak
def test_what_else_fitted_there() -> None:
    """Frozen stages, ResNeXt-50 at 32; ResNeXt-101 needed a borrowed card, or here micro-batches."""
    assert fits(traced("resnet101", "fp32", LAST), 64, "rtx2070")
    assert fits(traced("resnet101", "fp32", LAST[:3]), 64, "rtx2070")
    assert fits(traced("resnext50_32x4d"), 32, "rtx2070")
    assert not fits(traced("resnext101_32x8d"), 64, "rtx2070")
    assert fits(traced("resnext101_32x8d"), 16, "rtx2070", range(4))


@pytest.mark.soak
@pytest.mark.parametrize("gpu", ["rtx3090", "a6000"])
def test_resnext101_at_batch_64_fits_on_the_borrowed_cards(gpu: str) -> None:
    assert fits(traced("resnext101_32x8d", "bf16"), 64, gpu)


# --- against real tensors ---


def small(reduce: str, count: int, **sections: dict[str, Any]) -> Run:
    train = {"batch": 8 * count, "micro_batch": 8, "reduce": reduce}
    model = {"weights": "none", "backbone": "resnet18"} | sections.pop("model", {})
    return change(recipes.get("digits"), data={"size": 64}, model=model, train=train, **sections)


@cache
def _traced_small(run: Run) -> Step:
    return trace_step(run, 10, "fp32")


def small_step(run: Run) -> Step:
    """Traced once for all numbers of micro-batches: the trace has two anyway."""
    step = _traced_small(change(run, train={"batch": 16}))
    return Step(run, step.tapes, step.norms)


def one_cpu() -> World:
    nobody = cast(Accelerator, None)
    return World(accelerator=nobody, rank=0, size=1, local_size=1, device=torch.device("cpu"))


def two_steps(run: Run) -> None:
    """As train.py makes them, on real tensors."""
    world = one_cpu()
    state = build_state(run, "abcdefghij", Steps(1000, run.train), world)
    micro = MicroBatches(world, state.model, run)
    mixing = Mixing("mixup", 0.5) if run.augment.mixup else Mixing("none", 1.0)
    for step in range(2):
        for chunk in micro.start_step(step):
            images = torch.rand(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
            targets = soft_targets(torch.arange(8), 10, 0.0)
            images, targets = mix(images, targets, mixing, torch.arange(8))
            with micro.context(chunk):
                logits = micro.model(images)
                losses = loss_per_image(logits, targets, "ce")
                losses.sum().backward()
            micro.accumulate(chunk, losses, losses > 0)
        micro.all_reduce()
        state.update(run.optim.clip)


def allocated(run: Run) -> int:
    """Highest number of bytes that the CPU's allocator held."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        two_steps(run)
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum(changes).max())


DEFAULT = ("exact, four", "fast, four")
CASES = {
    "exact, one": small("exact", 1),
    "exact, four": small("exact", 4),
    "exact, seven": small("exact", 7),
    "fast, four": small("fast", 4),
    "sgd with average": small("exact", 2, optim={"name": "sgd", "ema": 0.9}),
    "frozen, mixed, clipped": small(
        "exact", 4, model={"freeze": ("stem", "layer1", "layer2")}, augment={"mixup": 0.2}, optim={"clip": 1.0}
    ),
    "frozen, statistics move": small("exact", 4, model={"freeze": ("stem", "layer1"), "freeze_norms": False}),
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in DEFAULT else SOAK) for c in CASES])
def test_the_estimate_is_what_the_allocator_really_held(case: str) -> None:
    """What is missing is known: oneDNN's kernels hold a weight and its gradient once more, reordered; without AVX-512
    both twice.

    The largest weight of ResNet-18 has 512 × 512 × 3 × 3 elements (9 MiB), in the stage where the backward pass starts.
    """
    run = CASES[case]
    torch.set_num_threads(1)
    held = allocated(run)
    estimated = trace_step(run, 10, "fp32").peak(8, range(run.train.batch // 8)).total
    copies = (2 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4) * 4 * 512 * 512 * 9
    assert estimated + copies == pytest.approx(held, rel=0.1)
    assert 0.99 * estimated <= held <= 1.01 * (estimated + copies)


def test_parts_are_what_they_are_called() -> None:
    """ResNet-18 with 10 classes has 11,181,642 parameters; AdamW holds two moments, the average one copy."""
    run = small("exact", 4, optim={"ema": 0.9})
    step = small_step(run)
    weights = 4 * 11_181_642
    parts = step.peak(8, range(4)).parts
    assert tuple(parts) == PARTS
    assert step.held("gradients") == weights
    assert parts["gradients"] == 2 * weights  # two micro-batches added, and the left one of the next two
    assert weights < parts["parameters"] < 1.002 * weights  # buffers
    assert weights < parts["average"] < 1.002 * weights
    assert 2 * weights < parts["optimizer"] < 2.0001 * weights  # counts of steps
    fast = small_step(small("fast", 4))
    assert fast.peak(8, range(4)).parts["gradients"] == weights


def test_sixteen_images_follow_from_four_and_six() -> None:
    """Each allocation, operation and byte of a direct trace at 16, not only the sum."""
    run = small("exact", 2)
    step = trace_step(run, 10, "bf16")
    assert 16 not in SIZES
    direct, _ = _trace(run, 16, 10, "bf16")
    assert direct.bytes == step._at("bytes", 16).tolist()
    assert direct.part == step.tapes[0].part and direct.marks == step.tapes[0].marks
    assert direct.flops == step._at("flops", 16).tolist() and direct.moved == step._at("moved", 16).tolist()


# --- work ---


@pytest.mark.parametrize("freeze", [(), ("stem", "layer1", "layer2")])
def test_flops_are_those_of_torchs_counter_where_that_is_right(freeze: tuple[str, ...]) -> None:
    """ResNet-18 has no grouped convolutions; frozen stages have no backward pass. Real tensors."""
    run = small("exact", 1, model={"freeze": freeze})
    state = build_state(run, "abcdefghij", Steps(1000, run.train), one_cpu())
    with FlopCounterMode(display=False) as counter:
        state.model(torch.rand(2, 3, 64, 64)).sum().backward()
    ours, _ = small_step(run).work(2)
    assert int(ours.sum()) == counter.get_total_flops()


def test_the_gradients_of_a_grouped_convolution_cost_what_its_forward_pass_does() -> None:
    """By hand: 2 · 5 images · 6 × 6 places · 8 outputs · (4 / 2 inputs) · 3 × 3. torch counts the weight's twice."""
    images, weight = torch.rand(5, 4, 6, 6), torch.rand(8, 2, 3, 3)
    rest: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)
    aten = torch.ops.aten
    out = aten.convolution(images, weight, None, *rest)
    once = 2 * 5 * 36 * 8 * 2 * 9
    assert flops(aten.convolution.default, (images, weight, None, *rest), {}, out) == once
    for mask, times in (([True, True, False], 2), ([False, True, False], 1), ([True, False, False], 1)):
        args = (out, images, weight, None, *rest, mask)
        found = aten.convolution_backward(*args)
        assert flops(aten.convolution_backward.default, args, {}, found) == times * once


# --- several processes ---


def test_the_buffers_of_the_exchange_are_as_large_as_stated() -> None:
    """Rank 1 of 2 with micro-batches 4, 5, 6 of 7, in a group that sends nothing: its buffers are real tensors."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        world = World(accelerator=cast(Accelerator, None), rank=1, size=2, local_size=2, device=torch.device("cpu"))
        stack: list[Any] = []
        for index in range(4, 7):
            push(stack, index, [torch.ones(1000, 1000)])
        buffers: dict[str, torch.Tensor] = {}
        total(stack, 7, world, buffers)
        held = {name: buffer.nbytes / 4e6 for name, buffer in buffers.items()}
    finally:
        dist.destroy_process_group()
    assert held == {"sent": 2.0, "flat": 1.0, "received": 1.5}
    run = small("exact", 7)
    step = small_step(run)
    one = step.held("gradients")
    parts = with_exchange(step, 8, 2, fsdp=False, unit=0)
    assert parts["exchange"] == one + int(sum(held.values()) * one)  # DDP's buckets and the buffers
    assert parts["gradients"] == 2 * one and parts["activations"] == 0  # at 64 pixels the exchange needs most


@pytest.mark.parametrize("count", [4, 7])
def test_every_rank_is_looked_at(count: int) -> None:
    """The most sums that any rank holds before a micro-batch: those on the stack, and a left sibling's gradients."""
    run = small("exact", count)
    step = small_step(run)
    for world_size in range(1, count + 1):
        most = 0
        for share in shares(count, world_size):
            for index in share:
                sibling = index % 2 == 1 and index - 1 in share
                most = max(most, len(block_sizes(range(share.start, index - sibling))) + sibling)
        peaks = [step.peak(8, share).parts["gradients"] for share in shares(count, world_size)]
        # the last partial sum is still growing where there is no sibling
        assert most * step.held("gradients") <= max(peaks) <= (most + 1) * step.held("gradients")


def test_sharding_divides_the_state_and_holds_three_units() -> None:
    run = small("fast", 4)
    step = small_step(run)
    alone, sharded = step.peak(8, range(2)).parts, with_exchange(step, 8, 2, fsdp=True, unit=1000)
    for name in ("parameters", "gradients", "optimizer"):
        assert sharded[name] == -(-alone[name] // 2)
    assert sharded["activations"] == alone["activations"] and sharded["exchange"] == 3000
