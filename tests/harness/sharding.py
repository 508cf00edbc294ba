"""How each rank of a run holds and gathers its tensors, and what is read back of it.

Each rank leaves ``<out>.rank<r>.json``; rank 0 also ``<out>.<when>.safetensors``, the whole tensors at the start of an
attempt and after its last step, put together from the ranks' rows without DTensor's help, and
``<out>.ema.safetensors``, the moving average recomputed in float64.
"""

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import train
from cls.training.checkpoint import optimizer_tensors
from cls.training.state import State
from tests.harness.records import Result

Tensors = dict[str, Tensor]
RECORD = "tests.harness.sharding:record"


def beside(out: Path, end: str) -> Path:
    return out.parent / f"{out.name}.{end}"


def records(result: Result) -> list[dict[str, Any]]:
    return [json.loads(beside(result.out, f"rank{rank}.json").read_text()) for rank in range(len(result.codes))]


def gathered(result: Result, when: str) -> Tensors:
    found = load_file(beside(result.out, f"{when}.safetensors"))
    return {
        name: tensor.clone() for name, tensor in found.items()
    }  # safetensors 0.5 maps the file; attempts overwrite it


# --- inside the processes ---


def mine(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of each block of memory once, padding included."""
    blocks = {}
    for tensor in map(mine, tensors):
        storage = tensor.untyped_storage()
        blocks[storage.data_ptr()] = storage.nbytes()
    return sum(blocks.values())


def sha(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + mine(tensors[name].detach()).contiguous().numpy().tobytes())
    return digest.hexdigest()


def whole_tensors(tensors: Tensors) -> Tensors:
    """Rows of all ranks one below the other, which is how a sharded tensor is cut; whole ones are only copied."""
    cut = {name: mine(t.detach()) for name, t in tensors.items() if isinstance(t, DTensor)}
    if not cut:
        return {name: t.detach().clone() for name, t in tensors.items()}
    assert all(shard.dtype == torch.float32 for shard in cut.values())
    # one tensor: an exchange of hundreds of small ones takes longer than a step
    sent = [shard.shape for shard in cut.values()], torch.cat([shard.flatten() for shard in cut.values()])
    received: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(received, sent)
    ranks = [
        [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        for shapes, flat in received
    ]
    joined = {name: torch.cat(shards) for name, *shards in zip(cut, *ranks, strict=True)}
    return {name: joined[name] if name in joined else t.detach().clone() for name, t in tensors.items()}


class Record:
    """What is seen on one rank in one attempt."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {
            "most_gathered": {"train": 0, "eval": 0, "backward": 0}, "layers_seen": 0, "left_gathered": 0, "looks": 0,
            "steps": 0, "buffers": [],
        }  # fmt: skip
        self.start: Tensors = {}
        self.last: Tensors = {}
        self.ema: Tensors = {}
        self.average: nn.Module | None = None

    def begin(self, state: Any, run: Any, world: Any) -> None:
        self.state, self.decay, self.out = state, run.optim.ema, Path(run.out)
        self.average = state.average.module if state.average is not None else None
        self.networks = [state.model, *([self.average] if self.average is not None else [])]
        self.facts |= {"rank": world.rank, "world": dist.get_world_size(), "fsdp": world.fsdp, "pid": os.getpid()}
        self.facts["networks"] = [
            {
                "groups": sum(isinstance(m, FSDPModule) for m in network.modules()),
                "parameters": len(list(network.parameters())),
                "sharded": sum(isinstance(p, DTensor) for p in network.parameters()),
                "empty": sum(mine(p).numel() == 0 for p in network.parameters()),
            }
            for network in self.networks
        ]
        for network in self.networks:
            self._watch(network)
        self.start = self.last = self.whole()
        self.ema = {k[8:]: v.double() for k, v in self.start.items() if k.startswith("average.")}
        self.averaged = int(state.average.n_averaged) if state.average is not None else 0

    def _watch(self, network: nn.Module) -> None:
        """Count gathered groups before each layer, on the way there and back."""
        groups = [m for m in network.modules() if isinstance(m, FSDPModule)]
        taken: set[int] = set()
        first: list[tuple[nn.Module, str]] = []  # a parameter of each group, by the module that holds it
        for group in reversed(groups):  # inner ones come after outer ones
            for module in group.modules():
                own = [name for name in module._parameters if id(module) not in taken]
                if own:
                    first.append((module, own[0]))
                    break
            taken.update(id(module) for module in group.modules())

        def count() -> int:
            return sum(not isinstance(module._parameters[name], DTensor) for module, name in first)

        def see(key: str) -> None:
            most = self.facts["most_gathered"]
            most[key] = max(most[key], count())

        def before(module: nn.Module, _: Any) -> None:
            assert not any(isinstance(p, DTensor) for p in module._parameters.values())
            self.facts["layers_seen"] += 1
            see("train" if torch.is_grad_enabled() else "eval")

        def after(module: nn.Module, _: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda _: see("backward"))

        if groups:
            assert len(first) == len(groups)
        for module in network.modules() if groups else ():
            if any(p is not None for p in module._parameters.values()) and not list(module.children()):
                module.register_forward_pre_hook(before)
                module.register_forward_hook(after)

    def whole(self) -> Tensors:
        """Weights, average and optimizer state by part and name."""
        found = {f"model.{k}": v for k, v in self.state.model.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        moments = optimizer_tensors(self.state.model, self.state.optimizer)
        return whole_tensors(found | {f"optimizer.{k}": v for k, v in moments.items()})

    def resharded(self) -> None:
        if self.facts["fsdp"]:
            wrong = [p for network in self.networks for p in network.parameters() if not isinstance(p, DTensor)]
            self.facts["left_gathered"] += len(wrong)
        self.facts["looks"] += 1

    def updated(self) -> None:
        self.resharded()
        self.facts["steps"] += 1
        state, optimizer = self.state, self.state.optimizer
        parameters = list(state.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        moments = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor) and v.ndim]
        held = {"parameters": parameters, "gradients": gradients, "moments": moments}
        self.facts["bytes"] = {name: storage_bytes(tensors) for name, tensors in held.items()}
        if self.facts["steps"] == 2 and self.facts["bytes"]["parameters"] > 5e6:  # else the rest is most of it
            self.facts["alive"] = self._alive()
        self.facts["moments"] = len(moments)
        self.facts["buffers"].append(sha(dict(state.model.named_buffers())))
        self.last = self.whole()
        self._average()

    def _alive(self) -> int:
        """Every tensor that Python can see, but for this record's own."""
        gc.unfreeze()  # the loop hides what was there before its first step
        gc.collect()
        own = [*self.start.values(), *self.last.values(), *self.ema.values()]
        every = [t for t in gc.get_objects() if issubclass(type(t), Tensor) and not isinstance(t, DTensor)]
        return storage_bytes(every) - storage_bytes(own)

    def _average(self) -> None:
        for name, value in self.ema.items():
            new = self.last[f"model.{name}"].double()
            warm = min(self.decay, (1 + self.averaged) / (10 + self.averaged))
            keep = warm if self.last[f"model.{name}"].is_floating_point() else 0.0
            self.ema[name] = keep * value + (1 - keep) * new
        self.averaged += 1

    def write(self) -> None:
        if "world" not in self.facts:
            return  # rejected before there was a model
        state = self.state
        self.facts["weights"] = sha(state.model.state_dict())
        self.facts["training"] = sorted(name for name, module in state.model.named_modules() if module.training)
        beside(self.out, f"rank{self.facts['rank']}.json").write_text(json.dumps(self.facts))
        if self.facts["rank"] == 0:
            for when, tensors in (("start", self.start), ("last", self.last), ("ema", self.ema)):
                save_file({k: v.contiguous() for k, v in tensors.items()}, beside(self.out, f"{when}.safetensors"))


def record(_: list[str]) -> None:
    """Put a record into train.py of this process."""
    found = Record()

    def following(owner: Any, name: str, note: Callable[..., None]) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            note(result, *args)
            return result

        setattr(owner, name, wrapped)

    following(train, "setup", lambda result, folder, world: found.begin(result[2], folder.run, world))
    following(State, "update", lambda *_: found.updated())
    following(train, "record_validation", lambda *_: found.resharded())
    following(train, "write_results", lambda *_: found.resharded())
    leave = train.ExitHandler.__exit__

    def ending(*args: Any) -> None:
        found.write()  # it may leave by os._exit
        leave(*args)

    train.ExitHandler.__exit__ = ending
