"""The fixed tree of sums and the step made of micro-batches, alone and on real gloo processes.

Run as a script this file is the worker: ``python test_tree_reduce.py JOB WORLD ...`` forks the processes of each world
in turn, so that torch is imported once.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cls.config import Run, change
from cls.distributed import tree_reduce
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.tree_reduce import Block, block_sizes, push, shares, total
from cls.distributed.world import World
from cls.runtime.console import stdout_to_stderr


def world(rank: int = 0, world_size: int = 1) -> World:
    return World(rank=rank, size=world_size, local_size=world_size, device=torch.device("cpu"))


def leaf(index: int) -> list[Tensor]:
    """What a micro-batch contributes, in layouts of a real model; magnitudes differ, so the order of adding shows."""
    rng = torch.Generator().manual_seed(index)
    scale = 10 ** (torch.rand((), generator=rng) * 8 - 4)
    shapes: list[tuple[int, ...]] = [(1,), (5, 3, 3, 3), (6, 5, 1, 1), (7, 6), (7,), (2, 3, 5)]
    values = [torch.randn(shape, generator=rng) * scale for shape in shapes]
    values[1] = values[1].contiguous(memory_format=torch.channels_last)
    values[2] = values[2].contiguous(memory_format=torch.channels_last)
    values[5] = values[5].transpose(0, 2)
    return values


def tree(values: list[list[Tensor]]) -> list[Tensor]:
    """The same sum by recursion: the largest power of two below n on the left, the rest on the right."""
    if len(values) == 1:
        return values[0]
    half = 1 << ((len(values) - 1).bit_length() - 1)
    return [a + b for a, b in zip(tree(values[:half]), tree(values[half:]), strict=True)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(a.equal(b) and a.stride() == b.stride() for a, b in zip(ours, theirs, strict=True))


# --- the arithmetic of shares and trees ---


def test_shares_are_contiguous_complete_and_even() -> None:
    for v in range(1, 34):
        for world_size in range(1, v + 1):
            found = shares(v, world_size)
            assert [i for share in found for i in share] == list(range(v))
            sizes = [len(share) for share in found]
            assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def maximal_subtrees(share: range) -> list[tuple[int, int]]:
    """All aligned blocks of a power of two inside the range that no larger one contains."""
    blocks = [
        (start, size)
        for size in (1, 2, 4, 8, 16, 32, 64)
        for start in range(0, 64, size)
        if share.start <= start and start + size <= share.stop
    ]
    return sorted((s, n) for s, n in blocks if not any(t <= s and s + n <= t + m and m > n for t, m in blocks))


def test_a_rank_keeps_the_maximal_aligned_subtrees_of_its_share() -> None:
    for start in range(34):
        for stop in range(start + 1, 34):
            expected = maximal_subtrees(range(start, stop))
            assert block_sizes(range(start, stop)) == expected
            stack: list[Block] = []
            for index in range(start, stop):
                push(stack, index, [torch.ones(())])
            assert [(block.start, block.size) for block in stack] == expected
            assert [float(block.values[0]) for block in stack] == [size for _, size in expected]


@pytest.mark.parametrize("v", range(1, 34))
def test_alone_the_sum_has_the_bits_of_the_recursive_tree(v: int) -> None:
    stack: list[Block] = []
    for index in range(v):
        push(stack, index, leaf(index))
        assert len(stack) == (index + 1).bit_count()  # memory: as many partial sums as the counter has ones
    ours = total(stack, v, world())
    assert same(ours, tree([leaf(index) for index in range(v)]))
    exact = [sum(t.double() for t in parts) for parts in zip(*(leaf(i) for i in range(v)), strict=True)]
    for a, b in zip(ours, exact, strict=True):
        assert torch.allclose(a.double(), cast(Tensor, b), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("first", range(1, 9))
def test_in_a_flat_buffer_every_tensor_starts_on_16_bytes_and_none_overlap(first: int) -> None:
    values = [torch.full((first,), 1.0), *leaf(3)]
    places, end = tree_reduce._places(values)
    flat = torch.zeros(end)
    views = tree_reduce._views(flat, places)
    torch._foreach_copy_(views, values)
    assert same(views, values) and all(view.data_ptr() % 16 == 0 for view in views)
    assert end == sum(-(-value.numel() // 4) * 4 for value in values)


def test_gpus_gather_in_one_call() -> None:
    assert tree_reduce.gathers_in_one_call("cuda") and not tree_reduce.gathers_in_one_call("cpu")


def test_control_another_order_has_other_bits() -> None:
    leaves = [leaf(index) for index in range(16)]
    in_turn = leaves[0]
    for values in leaves[1:]:
        in_turn = [a + b for a, b in zip(in_turn, values, strict=True)]
    assert not same(in_turn, tree(leaves))


# --- one step made of micro-batches ---


class Net(nn.Module):
    """A convolution, a norm, dropout and a linear layer; 3 8 8 images."""

    def __init__(self, norm: str, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm == "batch" else nn.GroupNorm(2, 6)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(6, 4)
        self.unused = nn.Linear(2, 2) if norm == "unused" else None

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))  # type: ignore[no-any-return]  # modules return Any


def run_of(batch: int = 12, micro_batch: int = 3, **sections: Any) -> Run:
    return change(Run(), seed=5, train={"batch": batch, "micro_batch": micro_batch, **sections})


def images_of(step: int, batch: int = 12) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def one_step(micro: MicroBatches, model: nn.Module, step: int, batch: int = 12) -> Tensor:
    images, size = images_of(step, batch), batch // micro.count
    for chunk in micro.start_step(step):
        with micro.context(chunk):
            losses = model(images[chunk.start * size : chunk.stop * size]).square().sum(1)
            losses.sum().backward()
        micro.accumulate(chunk, losses, losses > 0)
    return micro.all_reduce()[0]


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("norm", ["group", "frozen"])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 12])
def test_gradients_are_those_of_the_whole_batchs_mean_loss(mode: str, norm: str, micro_batch: int) -> None:
    models = [Net("batch" if norm == "frozen" else norm) for _ in range(2)]
    if norm == "frozen":
        for model in models:
            model.norm.eval()
    micro = MicroBatches(world(), models[0], run_of(micro_batch=micro_batch, reduce=mode))
    for step in range(2):  # the second one must not see the first one's gradients
        loss = one_step(micro, models[0], step)
        models[1].zero_grad()
        whole = models[1](images_of(step)).square().sum() / 12
        whole.backward()
        assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert a.grad is not None and b.grad is not None
            assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-6)
            assert a.grad.stride() == a.stride()


def test_a_parameter_without_gradient_keeps_none_or_zero() -> None:
    model = Net("unused")
    one_step(MicroBatches(world(), model, run_of()), model, 0)
    assert model.unused is not None
    assert model.unused.weight.grad is None or not model.unused.weight.grad.any()


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("micro_batch", [2, 3, 12])
def test_batchnorm_buffers_are_the_mean_over_micro_batches(mode: str, micro_batch: int) -> None:
    model = Net("batch")
    micro = MicroBatches(world(), model, run_of(micro_batch=micro_batch, reduce=mode))
    for step in range(3):
        starts = [model.norm.running_mean.clone(), model.norm.running_var.clone()]
        features = model.conv(images_of(step)).detach().split(micro_batch)
        expected_mean = sum(0.9 * starts[0] + 0.1 * part.mean((0, 2, 3)) for part in features) / len(features)
        expected_var = sum(0.9 * starts[1] + 0.1 * part.var((0, 2, 3)) for part in features) / len(features)
        one_step(micro, model, step)
        assert torch.allclose(model.norm.running_mean, expected_mean, atol=1e-6)
        assert torch.allclose(model.norm.running_var, expected_var, atol=1e-6)
        assert int(model.norm.num_batches_tracked) == step + 1


def test_frozen_norms_keep_their_bits() -> None:
    model = Net("batch")
    model.norm.eval()
    before = {name: value.clone() for name, value in model.norm.named_buffers()}
    one_step(MicroBatches(world(), model, run_of()), model, 0)
    assert all(value.equal(before[name]) for name, value in model.norm.named_buffers())


def masks(seed: int, step: int, order: list[int]) -> dict[int, Tensor]:
    model = Net("group", dropout=0.5)
    micro = MicroBatches(world(), model, change(run_of(), seed=seed))
    micro.start_step(step)
    found = {}
    for index in order:
        torch.rand(7)  # something else draws in between
        with micro.context(range(index, index + 1)):
            found[index] = model.drop(torch.ones(200))
    return found


def test_dropout_masks_are_a_function_of_seed_step_and_micro_batch() -> None:
    torch.manual_seed(1)
    first = masks(5, 7, [0, 1, 2, 3])
    torch.manual_seed(2)
    again = masks(5, 7, [2, 0, 3, 1])
    assert all(first[i].equal(again[i]) for i in range(4))
    every = [*first.values(), *masks(6, 7, [0, 1, 2, 3]).values(), *masks(5, 8, [0, 1, 2, 3]).values()]
    assert len({mask.numpy().tobytes() for mask in every}) == 12
    assert {float(value) for mask in every for value in mask} == {0.0, 2.0}
    assert abs(torch.stack(every).mean() - 1) < 5 / (12 * 200) ** 0.5


def test_the_global_generator_does_not_matter_to_a_step() -> None:
    results = []
    for noise in (1, 2):
        model = Net("batch", dropout=0.5)
        micro = MicroBatches(world(), model, run_of())
        for step in range(3):
            torch.manual_seed(noise * 100 + step)
            one_step(micro, model, step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * cast(Tensor, parameter.grad)
        results.append([value.clone() for value in model.state_dict().values()])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_more_processes_than_micro_batches_are_rejected_with_two_ways_out() -> None:
    with pytest.raises(ValueError) as caught:
        MicroBatches(world(0, 5), Net("batch"), run_of(batch=12, micro_batch=3))
    for part in ("5 processes but only 4 micro-batches", "train.batch 12", "train.micro_batch 3",
                 "--num_processes 4", "--train.batch 15 --optim.scale-lr sqrt"):  # fmt: skip
        assert part in str(caught.value)


# --- on real processes ---


def job_total(group: World, folder: Path) -> None:
    """All V up to 33, layouts included, against the sum of a single process."""
    for v in range(group.size, 34):
        stack: list[Block] = []
        for index in shares(v, group.size)[group.rank]:
            push(stack, index, leaf(index))
        alone: list[Block] = []
        for index in range(v):
            push(alone, index, leaf(index))
        ours = total(stack, v, group)
        assert same(ours, total(alone, v, world())), f"V = {v} of {group.size}"
        assert all(value.data_ptr() % 16 == 0 for value in ours)


def job_one_call(group: World, folder: Path) -> None:
    """As on GPUs: one collective gathers the slices, under its name in torch 2.14 and under the one of before."""
    calls: list[str] = []
    old, new = dist.all_gather_into_tensor, getattr(dist, "all_gather_single", dist.all_gather_into_tensor)

    def counted(name: str, collective: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], None]:
        return lambda whole, mine: (calls.append(name), collective(whole, mine))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_reduce, "gathers_in_one_call", lambda device_type: True)
        patch.setattr(dist, "all_gather_single", counted("new", new), raising=False)
        patch.setattr(dist, "all_gather_into_tensor", counted("old", old))
        job_total(group, folder)
        assert set(calls) == {"new"} and len(calls) == 34 - group.size
        patch.delattr(dist, "all_gather_single")
        job_total(group, folder)
        assert calls[34 - group.size :] == ["old"] * (34 - group.size)


def job_step(group: World, folder: Path) -> None:
    """Three steps with BatchNorm and dropout in DDP: exact has the bits of one process, fast its numbers."""
    for mode in ("exact", "fast"):
        dropout = 0.5 if mode == "exact" else 0.0
        nets = [Net("batch", dropout).to(memory_format=torch.channels_last) for _ in range(2)]
        wrapped = DistributedDataParallel(nets[0], broadcast_buffers=False)
        ours = MicroBatches(group, wrapped, run_of(reduce=mode))
        theirs = MicroBatches(world(), nets[1], run_of(reduce=mode))
        for step in range(3):
            torch.manual_seed(group.rank)  # another global state on every rank
            losses = [one_step(ours, wrapped, step), one_step(theirs, nets[1], step)]
            for pair in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
                a, b = cast(Tensor, pair[0].grad), cast(Tensor, pair[1].grad)
                assert a.equal(b) if mode == "exact" else torch.allclose(a, b, rtol=1e-4, atol=1e-6)
                assert a.stride() == b.stride()
                with torch.no_grad():
                    for parameter in pair:
                        parameter -= 0.1 * cast(Tensor, parameter.grad)
            for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
                assert a.equal(b) if mode == "exact" else torch.allclose(a, b, rtol=1e-4, atol=1e-6)
            assert losses[0].equal(losses[1]) if mode == "exact" else torch.allclose(*losses, rtol=1e-5)
        assert group.gather(nets[0].fc.weight.sum().item()) == [nets[0].fc.weight.sum().item()] * group.size


def job_freed(group: World, folder: Path) -> None:
    """No sum is kept while the slices arrive: it would be one set of gradients more than the memory probe tries."""
    alive: list[bool] = []
    stack: list[Block] = []
    for index in shares(7, group.size)[group.rank]:
        push(stack, index, leaf(index))
    kept = [weakref.ref(value) for block in stack for value in block.values[1:]]
    exchange = dist.all_to_all_single

    def watched(*args: Any) -> None:
        alive.extend(reference() is not None for reference in kept)
        exchange(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_to_all_single", watched)
        total(stack, 7, group)
    assert len(alive) >= 5 and not any(alive)


class Unsendable(Exception):
    """Cannot be rebuilt from its pickle, as many libraries' exceptions cannot."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")


def job_together(group: World, folder: Path) -> None:
    """Results and errors reach every rank."""
    calls: list[int] = []
    assert group.on_rank_0(lambda: calls.append(1) or {"rank": group.rank}) == {"rank": 0}
    assert len(calls) == (group.rank == 0)
    assert group.on_all_ranks(lambda: group.rank * 10) == group.rank * 10
    assert group.gather(group.rank) == list(range(group.size))
    assert group.sum(torch.full((3,), float(group.rank))).tolist() == [sum(range(group.size))] * 3

    def fail(rank: int, error: Exception) -> int:
        if group.rank == rank:
            raise error
        return 0

    with pytest.raises(ValueError, match="on rank 0"):
        group.on_rank_0(lambda: fail(0, ValueError("on rank 0")))
    with pytest.raises(OSError, match="on rank 1"):
        group.on_all_ranks(lambda: fail(1, OSError("on rank 1")))
    assert group.gather(1) == [1] * group.size  # still in step with each other


def job_unsendable(group: World, folder: Path) -> None:
    with pytest.raises(Exception, match=r"broken \(7\)"):
        group.on_all_ranks(lambda: 1 if group.rank == 0 else (_ for _ in ()).throw(Unsendable(7, "broken")))
    with pytest.raises(Exception, match="lambda"):
        local = type("Local", (Exception,), {})
        group.on_all_ranks(lambda: 1 if group.rank == 0 else (_ for _ in ()).throw(local("a lambda inside", lambda: 0)))
    assert group.gather(1) == [1] * group.size


JOBS: dict[str, Callable[[World, Path], None]] = {
    name: value for name, value in list(globals().items()) if name.startswith("job_")
}


def launch(job: str, *worlds: int, script: str = __file__) -> None:
    command = [sys.executable, script, job, *map(str, worlds)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [f"{rank}/{world_size}" for world_size in worlds for rank in range(world_size)]


@pytest.mark.integration
def test_the_sum_has_the_same_bits_on_two_three_and_four_processes() -> None:
    launch("job_total", 2, 3, 4)


@pytest.mark.integration
def test_a_step_has_the_same_bits_on_two_three_and_four_processes() -> None:
    launch("job_step", 2, 3, 4)


@pytest.mark.integration
def test_partial_sums_are_freed_before_the_slices_arrive() -> None:
    launch("job_freed", 2, 3)


@pytest.mark.integration
def test_the_collective_of_gpus_gives_the_same_bits() -> None:
    launch("job_one_call", 2, 3)


@pytest.mark.integration
def test_results_and_errors_reach_every_rank() -> None:
    launch("job_together", 2, 3)


@pytest.mark.integration
def test_an_error_that_cannot_be_sent_does_not_leave_the_others_waiting() -> None:
    launch("job_unsendable", 2)


def child(job: str, rank: int, world_size: int, folder: Path) -> None:
    code = 1
    try:
        store = f"file://{folder}/store-{world_size}"
        with stdout_to_stderr():
            dist.init_process_group(
                "gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=20)
            )
        assert (dist.get_rank(), dist.get_world_size()) == (rank, world_size)
        JOBS[job](world(rank, world_size), folder)
        dist.barrier()
        (folder / f"{world_size}-{rank}").write_text("done")
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(job: str, *worlds: str) -> int:
    if job != "job_total":
        importlib.import_module("torch._dynamo")  # DDP does it: once here instead of once in every child
    with tempfile.TemporaryDirectory() as found:
        folder = Path(found)
        for world_size in map(int, worlds):
            children = []
            for rank in range(world_size):
                pid = os.fork()
                if pid == 0:
                    child(job, rank, world_size, folder)
                children.append(pid)
            failed = [pid for pid in children if os.waitpid(pid, 0)[1]]
            if failed:
                return 1
            for rank in range(world_size):
                assert (folder / f"{world_size}-{rank}").exists()
                print(f"{rank}/{world_size}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
