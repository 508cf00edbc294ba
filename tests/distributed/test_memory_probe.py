"""Memory that does not suffice is found at the start, on all ranks, with what to type; later it costs no checkpoint."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from cls.config import change
from cls.distributed import memory_probe
from cls.distributed.memory_probe import probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World
from cls.runtime.exit import OutOfMemory
from cls.tracking.events import read_events
from tests.distributed.test_tree_reduce import Net, one_step, run_of, world
from tests.harness import TINY
from tests.harness.records import Result, bits, saved
from tests.harness.runs import Runs

# beyond what the process has at the start a micro-batch of 64 takes 540 to 600 MB, one of 32 less than 340
LARGE = [
    "digits", "--data.limit", "128", "--data.workers", "0", "--data.size", "192", "--train.batch", "128",
    "--train.epochs", "1", "--train.eval-batch", "8", "--track.wandb", "disabled", "--model.backbone",
    "timm/test_resnet",
]  # fmt: skip
ADVICE = (
    "a micro-batch of 64 images of 192 pixels does not fit into memory: add --train.micro-batch 32 "
    "(a step is then 4 micro-batches; it is part of the method: BatchNorm and mixing see that many images at once, "
    "so a run with checkpoints needs another --out)"
)


@pytest.fixture(scope="module")
def limited() -> Iterator[Runs]:
    # the limit is on addresses: glibc is to keep none of what is free, and to reserve no further heaps of 64 MB
    with Runs(MALLOC_MMAP_THRESHOLD_="100000", MALLOC_ARENA_MAX="1") as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("world_size", "megabytes"),
    [pytest.param(2, 440, marks=pytest.mark.soak), pytest.param(1, 540, marks=pytest.mark.soak)],
)
def test_a_micro_batch_that_does_not_fit_on_one_rank_stops_all_with_one_that_does(
    limited: Runs, folder: Path, world_size: int, megabytes: int
) -> None:
    """Only the last rank has the limit; the others would have gone on. The larger one ends the backward pass."""
    limit = f"limit={megabytes}@{world_size - 1}:probe:1"
    ended = limited.run(folder / f"large-{world_size}", [*LARGE, "--train.micro-batch", "64"], world_size, limit)
    assert ended.codes == [5] * world_size and ended.faults == ["probe"], ended.output
    assert ended.exit == {"outcome": "out_of_memory", "code": 5, "reason": ADVICE, "step": 0}
    assert f"out of memory: {ADVICE}" in ended.output and "Traceback" not in ended.output
    assert saved(ended.out) == [] and read_events(ended.out) == [] and not (ended.out / "lock").exists()
    flag = re.findall(r"--train\.micro-batch \d+", ended.output)
    assert set(flag) == {"--train.micro-batch 32"}
    faults = f"{limit};SIGTERM@0:step:1"  # a whole step fits as well; validation is left out, it takes longer
    again = limited.run(folder / f"fits-{world_size}", [*LARGE, *flag[0].split()], world_size, faults)
    assert again.codes == [85] * world_size and again.faults == ["probe", "step"], again.output
    assert saved(again.out) == [(1, 0)]


@pytest.mark.parametrize(
    ("world_size", "megabytes", "found"),
    [(2, 440, "1 micro-batch"), (1, 800, "2 micro-batches")],
)
@pytest.mark.soak
def test_a_chunk_that_does_not_fit_on_one_rank_is_cut_on_all(
    limited: Runs, folder: Path, world_size: int, megabytes: int, found: str
) -> None:
    """Micro-batches of 32; the whole share is tried first (64 or 128 images) on the rank that has the limit."""
    out, limit = folder / f"chunks-{world_size}", f"limit={megabytes}@{world_size - 1}:probe:1;SIGTERM@0:step:1"
    ended = limited.run(out, [*LARGE, "--train.micro-batch", "32", "--train.reduce", "fast"], world_size, limit)
    assert ended.codes == [85] * world_size and ended.faults == ["probe", "step"], ended.output
    assert ended.output.count("per forward") == 1 and f"fast: {found} per forward\n" in ended.output
    assert saved(out) == [(1, 0)]


@pytest.mark.integration
def test_memory_that_is_short_later_on_costs_no_checkpoint(limited: Runs, folder: Path, tiny: Result) -> None:
    """Rank 1 fails in the first of its two micro-batches of step 5; rank 0 loses its partner."""
    out = folder / "later"
    ended = limited.run(out, TINY, 2, "raise@1:forward:9")
    assert ended.codes == [1, 5] and ended.faults == ["forward"], ended.output
    assert ended.exit["outcome"] == "out_of_memory" and ended.exit["code"] == 5 and ended.exit["step"] == 4
    assert ended.exit["reason"].startswith("a micro-batch of 4 images of 32 pixels does not fit into memory: add "
                                           "--train.micro-batch 2 (a step is then 8 micro-batches")  # fmt: skip
    assert "says the test" in ended.exit["reason"] and "Traceback" not in ended.output
    assert "stopped because another process of this run failed" in ended.output
    assert saved(out) == [(3, 3)]
    again = limited.run(out, TINY, 2)
    assert again.codes == [0, 0] and "step 3 of 8 ->" in again.output, again.output
    assert bits(again) == bits(tiny)


@pytest.mark.soak
def test_memory_that_is_short_in_the_only_process(limited: Runs, folder: Path, tiny: Result) -> None:
    out = folder / "alone"
    ended = limited.run(out, TINY, 1, "raise@0:forward:17")
    assert ended.codes == [5] and ended.exit["outcome"] == "out_of_memory" and saved(out) == [(3, 3)]
    again = limited.run(out, TINY)
    assert again.codes == [0] and bits(again) == bits(tiny)


# --- the probe leaves nothing behind ---


def trace(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    state = {f"{i}.{k}": v for i, values in optimizer.state_dict()["state"].items() for k, v in values.items()}
    values = {**model.state_dict(), **state, "generator": torch.get_rng_state()}
    grads = {name: p.grad is None for name, p in model.named_parameters()}
    return {name: value.numpy().tobytes() for name, value in values.items()} | {"no gradients": grads}


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("before", [0, 2])
def test_the_probe_changes_no_bit(mode: str, before: int) -> None:
    """Before the first step, and where a run resumes with moments in the optimizer; the next step is the same too."""
    run = change(run_of(reduce=mode), data={"size": 8})
    model = Net("batch", dropout=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    micro = MicroBatches(world(), model, run)
    for step in range(before):
        one_step(micro, model, step)
        optimizer.step()
    optimizer.zero_grad()
    torch.manual_seed(3)
    unprobed, expected = copy.deepcopy(model), trace(model, optimizer)
    seeds: list[int] = []
    model.conv.register_forward_hook(lambda *_: seeds.append(torch.default_generator.initial_seed()))
    probe(micro, optimizer, run)
    assert len(seeds) == 1  # it did go forward
    found = trace(model, optimizer)
    # each micro-batch seeds the generator itself, so nothing after the probe reads what it leaves there
    assert {k: v for k, v in found.items() if k != "generator"} == {
        k: v for k, v in expected.items() if k != "generator"
    }
    losses = [one_step(MicroBatches(world(), net, run), net, before) for net in (model, unprobed)]
    assert losses[0].equal(losses[1])
    for ours, theirs in zip(model.parameters(), unprobed.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None and ours.grad.equal(theirs.grad)
    for ours, theirs in zip(model.buffers(), unprobed.buffers(), strict=True):
        assert ours.equal(theirs)


def test_a_chunk_that_does_not_fit_on_another_rank_is_halved_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    other = iter([False, True])
    monkeypatch.setattr(World, "gather", lambda self, fits: [fits, next(other)])
    run, model = change(run_of(reduce="fast"), data={"size": 8}), Net("batch")
    micro = MicroBatches(world(), model, run)
    probe(micro, torch.optim.SGD(model.parameters()), run)
    assert [len(chunk) for chunk in micro.chunks] == [2, 2]


class Small(Net):
    """Has memory for 5 images of an evaluation."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training and len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory, says the test")
        return super().forward(images)


@pytest.mark.parametrize(("other", "found"), [([True, True, True], 4), ([False, True, False, False, True], 1)])
def test_an_evaluation_batch_that_does_not_fit_names_one_that_does_on_all_ranks(
    other: list[bool], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(other)
    monkeypatch.setattr(World, "gather", lambda self, fits: [fits, next(answers)])
    run, model = change(run_of(eval_batch=16), data={"eval_size": 8}), Small("batch")
    model.norm.eval()
    before = trace(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(OutOfMemory, match=rf"batch of 16 images of 8 pixels .* add --train.eval-batch {found}$"):
        memory_probe.try_evaluation(MicroBatches(world(), model, run), torch.optim.SGD(model.parameters()), run)
    assert trace(model, torch.optim.SGD(model.parameters())) == before
    assert model.training and not model.norm.training
    monkeypatch.undo()
    small = change(run, train={"eval_batch": 4})
    memory_probe.try_evaluation(MicroBatches(world(), model, run), torch.optim.SGD(model.parameters()), small)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_exchange_is_tried_with_all_its_buffers(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its highest moment: k partial sums, their copies in one buffer, and for k > 1 one more, beside two moments."""
    sizes: list[int] = []
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda p: (sizes.append(p.numel()), empty_like(p))[1])
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, n: (sizes.append(n), new_empty(t, n))[1])
    monkeypatch.setattr(World, "gather", lambda self, fits: [fits] * ranks)
    model = Net("batch")
    micro = MicroBatches(world(0, ranks), model, run_of(batch=18))  # 6 micro-batches: shares of 3 or 2
    memory_probe._try_exchange(micro, torch.optim.AdamW(model.parameters()))
    gradients = sum(p.numel() for p in model.parameters())
    own = 2 if ranks == 2 else 1
    assert sum(sizes[:-2]) == (2 + own) * gradients and sizes[-2] == (3 if own == 2 else 1) * gradients
    assert sizes[-1] == (4 if ranks == 2 else 3) * gradients // ranks

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory, says the test")

    monkeypatch.setattr(torch.Tensor, "new_empty", refuse)
    with pytest.raises(OutOfMemory, match=rf"of {ranks} processes in a fixed order .* add --train.reduce fast"):
        memory_probe._try_exchange(micro, torch.optim.AdamW(model.parameters()))


FAST = [*TINY, "--train.reduce", "fast"]


@pytest.mark.soak
@pytest.mark.parametrize("world_size", [3, 4])
def test_a_fast_run_that_is_continued_on_as_many_ranks_has_the_same_bits(
    limited: Runs, folder: Path, world_size: int
) -> None:
    """DDP rebuilds its buckets after its first backward pass; the probe has had that pass before the first step."""
    straight = limited.run(folder / f"fast-{world_size}", FAST, world_size)
    assert straight.codes == [0] * world_size, straight.output
    out = folder / f"fast-stopped-{world_size}"
    stopped = limited.run(out, FAST, world_size, "SIGTERM@1:step:3")
    assert stopped.codes == [85] * world_size and saved(out)[-1][0] == stopped.exit["step"] in (3, 4)
    again = limited.run(out, FAST, world_size)
    assert again.codes == [0] * world_size and bits(again) == bits(straight)


@pytest.mark.soak
def test_control_without_the_probe_a_continued_fast_run_has_other_bits(limited: Runs, folder: Path) -> None:
    straight = limited.run(folder / "cold", FAST, 4, HARNESS_NO_PROBE="1")
    out = folder / "cold-stopped"
    stopped = limited.run(out, FAST, 4, "SIGTERM@1:step:3", HARNESS_NO_PROBE="1")
    again = limited.run(out, FAST, 4, HARNESS_NO_PROBE="1")
    assert (straight.codes, stopped.codes, again.codes) == ([0] * 4, [85] * 4, [0] * 4)
    assert bits(again) != bits(straight)
