"""Several micro-batches in one forward pass: the same step as one after the other, statistics of each by themselves.

In double precision, so that what is left of a difference is rounding and nothing else.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cls.config import change
from cls.distributed.batchnorm import BatchNorms
from cls.distributed.memory_probe import chunks_in, probe
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.world import World
from tests.distributed.test_tree_reduce import JOBS, Net, launch, main, run_of, world

SIZE, COUNT = 3, 4  # images of a micro-batch, micro-batches of a step


class Tokens(nn.Module):
    """A norm that sees b·n rows, as timm's LeViT has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(2).transpose(1, 2)  # b n c
        return self.norm(rows.flatten(0, 1)).reshape_as(rows).mean(1)  # type: ignore[no-any-return]  # modules return Any


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Linear(8, 4))
    stateless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    return {
        "conv": Net("batch"),
        "channels last": Net("batch").to(memory_format=torch.channels_last),
        "head": head,
        "tokens": Tokens(),
        "no running statistics": stateless,
        "norm with activation": nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.Linear(144, 4)),
        "no norm": Net("group"),
    }


def images_of(step: int) -> Tensor:
    images = torch.randn(COUNT * SIZE, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return images.contiguous(memory_format=torch.channels_last) * torch.arange(1, 13).view(-1, 1, 1, 1)  # all different


def losses_of(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).flatten(1).cos().sum(1)  # type: ignore[no-any-return]  # modules return Any


def steps(micro: MicroBatches, model: nn.Module, count: int = 3) -> list[Tensor]:
    """Losses; the model is moved on by plain gradient descent."""
    found = []
    for step in range(count):
        for chunk in micro.start_step(step):
            with micro.context(chunk):
                losses = losses_of(model, images_of(step)[chunk.start * SIZE : chunk.stop * SIZE])
                losses.sum().backward()
            micro.accumulate(chunk, losses, losses > 0)
        found.append(micro.all_reduce()[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-4 * parameter.grad
    return found


def after(model: nn.Module, mode: str, most: int) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses of three steps, the last one's gradients, parameters and buffers."""
    model = copy.deepcopy(model).double()
    micro = MicroBatches(world(), model, run_of(reduce=mode))
    micro.set_chunk_size(most)
    losses = steps(micro, model)
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, model.state_dict()


@pytest.mark.parametrize("most", [2, 3, 4])
@pytest.mark.parametrize("name", networks())
def test_a_chunk_is_its_micro_batches_one_after_the_other(name: str, most: int) -> None:
    model = networks()[name]
    losses, gradients, state = after(model, "exact", 1)
    ours = after(model, "fast", most)
    assert torch.stack(ours[0]).allclose(torch.stack(losses), rtol=1e-12)
    assert ours[1].keys() == gradients.keys() and len(gradients) == len(list(model.parameters()))
    for name, gradient in gradients.items():
        assert (ours[1][name] - gradient).norm() <= 1e-9 * gradient.norm() + 1e-12, name
    for name, value in state.items():
        assert torch.allclose(ours[2][name].double(), value.double(), rtol=1e-12, atol=1e-12), name
        if name.endswith("num_batches_tracked"):
            assert ours[2][name] == value == 3


@pytest.mark.parametrize("name", ["conv", "head", "tokens", "no running statistics", "norm with activation"])
def test_control_statistics_of_the_whole_chunk_are_another_method(name: str) -> None:
    model = networks()[name].double()
    whole = copy.deepcopy(model)
    loss = losses_of(whole, images_of(0)).sum() / (SIZE * COUNT)
    loss.backward()
    losses, _, state = after(model, "fast", 4)
    assert abs(losses[0].item() / loss.item() - 1) > 1e-3
    if name != "no running statistics":
        assert any(not torch.allclose(state[n], v, rtol=1e-2) for n, v in whole.state_dict().items() if "running" in n)


def test_a_chunk_leaves_the_model_as_it_was() -> None:
    """Frozen norms keep their bits, evaluation is the module's own, and no forward pass is left replaced."""
    model = nn.Sequential(Net("batch"), nn.BatchNorm1d(4)).double()
    model[1].eval()
    before = {name: value.clone() for name, value in model[1].state_dict().items()}
    micro = MicroBatches(world(), model, run_of(reduce="fast"))
    micro.set_chunk_size(4)
    steps(micro, model)
    assert (
        all(value.equal(before[name]) for name, value in model[1].state_dict().items() if "running" in name)
        and int(model[1].num_batches_tracked) == 0
    )
    assert all("forward" not in module.__dict__ for module in model.modules())
    with pytest.raises(ValueError, match="as it comes"):
        for chunk in micro.start_step(0):
            with micro.context(chunk):
                losses_of(model, images_of(0))
                raise ValueError("as it comes")
    micro.discard_step()
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert int(model[0].norm.num_batches_tracked) == 3


def test_dropout_is_seeded_by_the_first_micro_batch_of_the_chunk() -> None:
    model = nn.Dropout(0.5)
    found = {}
    for most in (1, 2, 4):
        micro = MicroBatches(world(), model, run_of(reduce="fast"))
        micro.set_chunk_size(most)
        for chunk in micro.start_step(7):
            with micro.context(chunk):
                found[most, chunk.start] = model(torch.ones(len(chunk), 100))
    assert found[4, 0][0].equal(found[1, 0][0]) and found[2, 2][0].equal(found[1, 2][0])
    assert not found[4, 0][2].equal(found[1, 2][0])


@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, type("Own", (nn.BatchNorm2d,), {"forward": lambda s, x: x})])
def test_norms_of_another_kind_go_one_micro_batch_at_a_time(kind: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4, track_running_stats=True), nn.Flatten(), nn.Linear(144, 2))
    assert not BatchNorms(model).chunkable and BatchNorms(Net("batch")).chunkable
    run = change(run_of(reduce="fast"), data={"size": 8})
    micro = probe(MicroBatches(world(), model, run), torch.optim.SGD(model.parameters()), run)
    assert [len(chunk) for chunk in micro.chunks] == [1, 1, 1, 1]


def test_chunks_cut_a_share_with_the_rest_last() -> None:
    for world_size, rank, most, lengths in ((1, 0, 4, [4]), (1, 0, 3, [3, 1]), (3, 0, 2, [2]), (3, 1, 2, [1])):
        micro = MicroBatches(world(rank, world_size), Net("batch"), run_of(reduce="fast"))
        micro.set_chunk_size(most)
        assert [len(chunk) for chunk in micro.chunks] == lengths
        assert [i for chunk in micro.chunks for i in chunk] == list(micro.share)


def test_chunks_of_sharded_models_are_computed() -> None:
    assert [chunks_in(available, 10, 8) for available in (100, 99, 50, 49, 25, 24, 5)] == [8, 4, 4, 2, 2, 1, 1]
    assert chunks_in(10**9, 10, 5) == 5 and chunks_in(40, 10, 5) == 3


def test_compiled_a_chunk_is_traced_once() -> None:
    results = []
    for backend in ("", "eager"):
        model = Net("batch").double()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if backend:
            model.compile(backend=backend)
        micro = MicroBatches(world(), model, run_of(reduce="fast"))
        micro.set_chunk_size(4)
        results.append(steps(micro, model))
    assert torch.stack(results[0]).allclose(torch.stack(results[1]), rtol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def job_chunks(group: World, folder: Path) -> None:
    """Shares of 4 on 2 and of 2 + 1 + 1 on 3, gradients in DDP's buckets, against one process and one by one."""
    for name in ("conv", "head"):
        nets = [networks()[name].double() for _ in range(2)]
        wrapped = DistributedDataParallel(nets[0], broadcast_buffers=False, gradient_as_bucket_view=True)
        ours = MicroBatches(group, wrapped, run_of(reduce="fast"))
        theirs = MicroBatches(world(), nets[1], run_of(reduce="exact"))
        ours.set_chunk_size(2)
        losses = [steps(ours, wrapped), steps(theirs, nets[1])]
        assert torch.stack(losses[0]).allclose(torch.stack(losses[1]), rtol=1e-12)
        for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-10, atol=1e-12)
        sums = [float(sum(p.sum() for p in nets[0].parameters()))]
        assert group.gather(sums) == [sums] * group.size


@pytest.mark.integration
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_chunks_on_several_processes(processes: int) -> None:
    launch("job_chunks", processes, script=__file__)


if __name__ == "__main__":
    JOBS["job_chunks"] = job_chunks
    sys.exit(main(*sys.argv[1:]))


class Calls(TorchDispatchMode):
    """How many operations a GPU would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = ("aten.split", "aten.unbind", "aten.detach", "aten.select", "aten.view")
        self.count += not str(func).startswith(views)
        return func(*args, **kwargs or {})


def test_saving_and_counting_statistics_takes_as_many_operations_for_many_norms_as_for_few() -> None:
    counts = []
    for layers in (2, 50):
        norms = BatchNorms(nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(layers))))
        with Calls() as calls:
            norms.save()
            norms.restore()
            norms.set_count(1)
        counts.append(calls.count)
        assert [int(count) for count in norms.counts] == [1] * layers
    assert counts[0] == counts[1] <= 6
