"""Memory and work of a training step: the real network and the real step, traced on tensors without storage.

Nothing is computed and no GPU is needed: torch's fake tensors have shapes, types and lifetimes only. The micro-batch
changes only sizes, and each size is affine in it: two traces give all micro-batches.
"""

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from cls.config import Run, change
from cls.distributed.micro_batches import MicroBatches
from cls.distributed.tree_reduce import block_sizes, shares
from cls.distributed.world import World
from cls.models.build import build_shapes, fresh_parameters
from cls.models.freeze import train_mode
from cls.models.loss import loss_per_image, right_per_image
from cls.models.sharding import sharding_units
from cls.training.optim import Schedule, build_optimizer, moving_average, parameter_groups
from cls.training.state import History, State
from cls.transforms.mixup import Mixing, mix, soft_targets

PARTS = ("parameters", "average", "gradients", "optimizer", "activations")
"""Uses of memory; buffers count as parameters, images and temporaries as activations."""

SIZES = (4, 6)  # of the traced micro-batches


@dataclass
class Tape:
    """One trace, in order."""

    bytes: list[int] = field(default_factory=list)  # of each allocation (positive) and release
    part: list[int] = field(default_factory=list)  # index into PARTS
    marks: list[int] = field(default_factory=list)  # places in `bytes`: start of step 2, of its last micro-batch, end
    flops: list[int] = field(default_factory=list)  # of each operation of one micro-batch, then of the update
    moved: list[int] = field(default_factory=list)  # bytes read and written by each operation
    update: int = 0  # operations from here on belong to the update


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Records when each storage is allocated and freed, and the work of each operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.tape = Tape()
        self.counting = False
        self.live: dict[int, tuple[Any, int, int]] = {}  # weak reference (kept for its callback), bytes, part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        fresh = [self._see(t.untyped_storage()) for t in tree_leaves(out) if isinstance(t, Tensor)]
        if self.counting and (any(fresh) or func._schema.is_mutable):
            given = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
            self.tape.moved.append(0 if "empty" in str(func) else sum(t.nbytes for t in given.values()))
            self.tape.flops.append(flops(func, args, kwargs, out))
        return out

    def _see(self, storage: Any) -> bool:
        key = storage._cdata
        if key in self.live:
            return False
        self.live[key] = weakref.ref(storage, lambda _: self._freed(key)), storage.nbytes(), len(PARTS) - 1
        self._note(storage.nbytes(), len(PARTS) - 1)
        return True

    def _freed(self, key: int) -> None:
        _, size, part = self.live.pop(key)
        self._note(-size, part)

    def _note(self, size: int, part: int) -> None:
        self.tape.bytes.append(size)
        self.tape.part.append(part)

    def label(self, tensors: Iterable[Tensor], name: str) -> None:
        """Set the part of these tensors; until then they count as activations."""
        part = PARTS.index(name)
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self.live and self.live[key][2] != part:
                ref, size, before = self.live[key]
                self._note(-size, before)
                self._note(size, part)
                self.live[key] = ref, size, part

    def mark(self) -> None:
        self.tape.marks.append(len(self.tape.bytes))


def flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Operations (a multiplication and an addition are two) of a convolution or matrix product, forward or backward.

    torch's own formula for the weight gradient of a grouped convolution is too large by the number of groups; each of
    the two gradients costs as much as the forward pass.
    """
    packet = func.overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        grad, _, weight, mask = args[0], args[1], args[2], args[10]
        return int(2 * grad.numel() * prod(weight.shape[1:]) * (bool(mask[0]) + bool(mask[1])))
    return int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0


class Need(NamedTuple):
    """Bytes at the moment of the highest need, by part (all of PARTS)."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Step:
    """A traced optimizer step, for micro-batches of any size (images m): every figure is ``base + slope * m``."""

    run: Run
    tapes: tuple[Tape, Tape]
    norms: bool  # BatchNorm that needs two images

    @cached_property
    def _parts(self) -> np.ndarray:
        return np.array(self.tapes[0].part)

    def _at(self, name: str, size: int) -> np.ndarray:
        small, large = (np.array(getattr(tape, name), dtype=np.int64) for tape in self.tapes)
        slope, rest = np.divmod(large - small, SIZES[1] - SIZES[0])
        assert not rest.any()
        at: np.ndarray = small + slope * (size - SIZES[0])
        return at

    def work(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """FLOPs and bytes moved of each operation of one micro-batch, forward and backward."""
        update = self.tapes[0].update
        return self._at("flops", size)[:update], self._at("moved", size)[:update]

    def update_bytes(self) -> int:
        """Bytes moved by the optimizer's step, moving average included."""
        return int(self._at("moved", SIZES[0])[self.tapes[0].update :].sum())

    def held(self, part: str) -> int:
        """Bytes of a part between steps (all of the gradients just before the update)."""
        level = np.where(self._parts == PARTS.index(part), self._at("bytes", SIZES[0]), 0).cumsum()
        return int(level.max()) if part == "gradients" else int(level[-1])

    def peak(self, size: int, share: range) -> Need:
        """Highest need of a process with the micro-batches ``share`` of ``size`` images, without the exchange.

        One micro-batch per forward pass, in fast mode too: a run joins several only if they fit (the probe).
        Replays the second step. A micro-batch whose left sibling's gradients are still in ``.grad`` (or, in fast mode,
        any but the first) is the traced second one, else the traced first one; in exact mode every further partial sum
        on the stack is one more set of gradients: their number is that of the maximal aligned subtrees so far.
        """
        sizes = self._at("bytes", size)
        levels = np.stack([np.where(self._parts == i, sizes, 0).cumsum() for i in range(len(PARTS))])
        start, second, over, _ = self.tapes[0].marks
        first = np.r_[start:second, over : levels.shape[1]]
        best = Need({})
        for places, sums in {(index_is_second, n) for index_is_second, n in self._situations(share)}:
            chosen = levels[:, np.arange(second, over) if places else first].copy()
            chosen[PARTS.index("gradients")] += sums * self.held("gradients")
            top = chosen[:, chosen.sum(0).argmax()]
            found = Need(dict(zip(PARTS, top.tolist(), strict=True)))
            best = max(best, found, key=lambda need: need.total)
        return best

    def _situations(self, share: range) -> set[tuple[bool, int]]:
        """For each micro-batch: whether ``.grad`` is set when it starts, and the partial sums on the stack."""
        if self.run.train.reduce == "fast":
            return {(index > share.start, 0) for index in share}
        found = set()
        for index in share:
            sibling = index % 2 == 1 and index - 1 in share
            found.add((sibling, len(block_sizes(range(share.start, index - sibling)))))
        return found


def with_exchange(step: Step, size: int, world_size: int, fsdp: bool, unit: int) -> dict[str, int]:
    """Bytes by part at the highest need of the process that needs most, with a part ``exchange``.

    G is the size of the gradients, k a rank's partial sums (maximal aligned subtrees), K those of all ranks.
    DDP keeps buckets of G beside all else. Exact also copies its k sums into one buffer (and into another one of G
    if k > 1) and receives a slice of G/world of each of the K: k·G + k·G + (k > 1)·G + K·G/world beside parameters,
    average, optimizer and buckets, after activations are freed; it counts only if that exceeds the step's own peak.
    FSDP divides parameters, average, gradients and optimizer by world and holds three times the largest unit (``unit``
    bytes): gathered, the next one being gathered, and its whole gradients.
    """
    count = step.run.train.batch // size
    ranges = shares(count, world_size)
    needs = [step.peak(size, share).parts for share in ranges]
    parts = max(needs, key=lambda need: sum(need.values())) | {"exchange": 0}
    if world_size == 1:
        return parts
    if fsdp:
        divided = {name: -(-parts[name] // world_size) for name in ("parameters", "average", "gradients", "optimizer")}
        return parts | divided | {"exchange": 3 * unit}
    gradients = step.held("gradients")
    parts["exchange"] = gradients
    if step.run.train.reduce == "exact":
        blocks = [len(block_sizes(share)) for share in ranges]
        most = max(blocks)
        buffers = (most + (most > 1)) * gradients + -(-sum(blocks) * gradients // world_size)
        exchanging = {name: step.held(name) for name in ("parameters", "average", "optimizer")} | {
            "gradients": most * gradients, "activations": 0, "exchange": gradients + buffers
        }  # fmt: skip
        parts = max(parts, exchanging, key=lambda need: sum(need.values()))
    return parts


def workspace(traced: int) -> int:
    """Bytes that no trace shows: a conservative assumption, not measured by us.

    0.5 GiB for the CUDA context and the loaded kernels of one process, 0.5 GiB for the workspaces of cuDNN's and
    cuBLAS's kernels (cuBLAS alone has 32 MiB in deterministic mode) and NCCL's channels, and 5 % of all that is held,
    since the caching allocator rounds sizes up and cannot use every gap.
    """
    return 2**30 + traced // 20


def largest_unit(run: Run, classes: int) -> int:
    """Bytes of the largest unit that FSDP gathers at once; ValueError if the network has none."""
    units = sharding_units(build_shapes(run.model, classes), run.model)
    return max(sum(p.numel() * p.element_size() for p in unit.parameters()) for unit in units)


def trace_step(run: Run, classes: int, precision: str) -> Step:
    """Two optimizer steps of ``run`` at two micro-batches; ``precision`` is bf16 or fp32; seconds of CPU time.

    The kernels' own workspace is not seen.
    """
    found = [_trace(run, size, classes, precision) for size in SIZES]
    tapes = found[0][0], found[1][0]
    assert tapes[0].part == tapes[1].part and tapes[0].marks == tapes[1].marks
    return Step(run, tapes, found[0][1])


def _trace(run: Run, size: int, classes: int, precision: str) -> tuple[Tape, bool]:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    run = change(run, train={"batch": 2 * size, "micro_batch": size})
    model = build_shapes(run.model, classes)
    with torch.device("meta"):
        average = moving_average(model, run.optim.ema)
    tracer = Tracer()
    with warnings.catch_warnings(), FakeTensorMode(), tracer:
        warnings.simplefilter("ignore")
        for network, name in ((model, "parameters"), (average, "average")):
            if network is not None:
                _fill(network, run.train.images_channels_last)
                tracer.label([*network.parameters(), *network.buffers()], name)
        groups = parameter_groups(model, run.optim, fresh_parameters(model, run.model), 1e-3)
        optimizer = build_optimizer(groups, run.optim)
        state = State(model, optimizer, Schedule(optimizer, run.optim, run.train.epochs, 100), average, History())
        train_mode(model, run.model.in_eval_mode)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]  # torch's
                    lambda p: tracer.label([] if p.grad is None else [p.grad], "gradients")
                )
        # the first step is there for the optimizer's state: one micro-batch is enough
        for step, one in enumerate((change(run, train={"batch": size}), run)):
            micro = MicroBatches(world, model, one)
            _step(tracer, step, one, precision, classes, micro, state)
    return tracer.tape, bool(micro.norms.buffers)


def _fill(model: nn.Module, channels_last: bool) -> None:
    """Fake storage for a network on the meta device; ``Module.to_empty`` cannot (it swaps what has weak references)."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                layout = torch.channels_last if channels_last and parameter.ndim == 4 else torch.contiguous_format
                value = torch.empty(parameter.shape).contiguous(memory_format=layout)
                module._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:  # torch.tensor keeps its value: the moving average asks whether its count is 0
                count = buffer.ndim == 0 and not buffer.is_floating_point()
                module._buffers[name] = torch.tensor(0) if count else torch.empty(buffer.shape, dtype=buffer.dtype)


def _step(tracer: Tracer, step: int, run: Run, precision: str, classes: int, micro: MicroBatches, state: State) -> None:
    """train.py's forward_backward and what follows it, with marks."""
    tracer.tape.marks.clear()
    tracer.mark()
    weights = torch.empty(classes) if run.optim.class_weight else None
    mixed = run.augment.mixup or run.augment.cutmix
    mixing = Mixing("mixup" if run.augment.mixup else "cutmix", 0.5, (0.5, 0.5)) if mixed else Mixing("none", 1.0)
    layout = torch.channels_last if run.train.images_channels_last else torch.contiguous_format
    size = run.train.micro_batch
    for chunk in micro.start_step(step):
        if chunk.start:
            tracer.mark()
        tracer.counting = step == 1 and chunk.start == 0
        images = torch.empty(size, 3, run.data.size, run.data.size).contiguous(memory_format=layout)
        labels = torch.empty(size, dtype=torch.int64)
        targets = soft_targets(labels, classes, run.optim.label_smoothing)
        images, targets = mix(images, targets, mixing, labels)
        with micro.context(chunk):
            with micro.world.autocast(precision):
                logits = micro.model(images)
            losses = loss_per_image(logits, targets, run.optim.loss, weights)
            losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        tracer.counting = False
        micro.accumulate(chunk, losses, right_per_image(logits, targets))
    tracer.mark()
    tracer.counting = step == 1
    tracer.tape.update = len(tracer.tape.flops)
    micro.all_reduce()
    state.update(run.optim.clip)
    tracer.counting = False
    tracer.label([v for values in state.optimizer.state.values() for v in values.values()], "optimizer")
    tracer.mark()
