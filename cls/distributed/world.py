"""The processes of a run: start, collectives, and errors and stop requests that all ranks share."""

import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cls.config import Train
from cls.distributed.launch import check_fsdp, check_launcher, choose_device, ignore_mpi
from cls.distributed.process_settings import apply_settings, limit_threads
from cls.runtime.console import stdout_to_stderr
from cls.runtime.signals import Stopped, StopSignal
from cls.runtime.timer import Timer

T = TypeVar("T")

# the longest wait is for a hub download on rank 0
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one run, seen from one of them."""

    rank: int
    size: int
    local_size: int
    device: torch.device
    accelerator: Accelerator | None = None
    """Of the processes that :func:`start` has joined."""
    fsdp: bool = False
    stop: StopSignal = field(default_factory=StopSignal)
    timer: Timer = field(default_factory=Timer)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Run on rank 0 only; all ranks get its result, its error, or Stopped if any rank has a stop request."""
        return self._share(work, [0])

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run on every rank; if one fails, all raise its error instead of waiting for it in a collective."""
        return self._share(work, list(range(self.size)))

    def _share(self, work: Callable[[], T], ranks: list[int]) -> T:
        if self.size == 1:
            with self.stop.interruptible():
                return work()
        result: Any = None
        error: BaseException | None = None
        try:
            with self.stop.interruptible():  # not around the exchange, in which the others wait
                result = work() if self.rank in ranks else None
        except (Exception, Stopped) as raised:
            error = raised
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, error and _sendable(error))
        failed = [index for index, found in enumerate(errors) if found is not None]
        if failed:
            # its own error with its traceback, else a copy from the first rank that failed
            raise error or errors[failed[0]]
        if ranks == [0]:
            box = [result]
            dist.broadcast_object_list(box, src=0)
            result = box[0]
        return result  # type: ignore[no-any-return]  # the result of work()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks in place; exact where at most one rank holds a non-zero in each element."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: T) -> list[T]:
        """One object of each rank, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def stop_reason(self) -> str:
        """The reason of the first rank with a stop request; only this rank's if it must not wait for the others."""
        reasons = [self.stop.reason] if self.stop.at_once else self.gather(self.stop.reason)
        return next((reason for reason in reasons if reason), "")

    def mesh(self) -> DeviceMesh:
        """All ranks in one dimension, to shard over."""
        return init_device_mesh(self.device.type, (self.size,))

    def stop_flag(self) -> "StopFlag":
        """See :class:`StopFlag`."""
        return StopFlag(self)

    def wrap(self, model: nn.Module, compiled: bool) -> nn.Module:
        """The model for training: compiled in place if asked, in DDP if there are several processes.

        A sharded model is already wrapped, before the optimizer was built.
        """
        if compiled:
            model.compile()  # in place: keeps the keys of the state dict
        if self.fsdp:
            return model
        with warnings.catch_warnings():
            # the successor of broadcast_buffers is not reachable through accelerate's settings yet
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            assert self.accelerator is not None, "only processes that were joined train"
            wrapped: nn.Module = self.accelerator.prepare(model)
        return wrapped

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def close(self) -> None:
        """Wait for all ranks and leave the process group."""
        if self.size > 1:
            # NCCL warns if the device is not named
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)
            dist.destroy_process_group()


class StopFlag:
    """Asynchronous flag: has any rank a stop request? The answer is one call old, so no rank waits.

    All ranks must call it equally often and get the same answers.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._answer: Callable[[], bool] | None = None

    def check(self) -> None:
        """Raises Stopped on all ranks at the same call if one of them had a stop request at the call before."""
        asked = self.world.stop.requested()
        if self.world.stop.at_once or (asked and self.world.size == 1):
            raise Stopped(self.world.stop.reason)
        if self.world.size > 1:
            self.close()
            self._answer = _any_rank(asked, self.world.device)

    def close(self) -> None:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            if answer():
                raise Stopped("agreed")


def _any_rank(asked: bool, device: torch.device) -> Callable[[], bool]:
    """Ask all ranks whether one of them has a request; the result waits for the answer."""
    if device.type != "cuda":
        flag = torch.tensor(int(asked))
        work: Any = dist.all_reduce(flag, async_op=True)

        def received() -> bool:
            work.wait()
            return bool(flag.item())

        return received
    # in a stream of its own, or the host would wait for the forward passes that it has just queued
    with torch.cuda.stream(_flag_stream(device)):
        flag = torch.full((), float(asked), device=device)  # torch.tensor would copy from the host, and wait
        waiting: Any = dist.all_reduce(flag, async_op=True)
        waiting.wait()  # the stream waits, not the host
        answer = torch.empty((), pin_memory=True).copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        copied.record()

    def arrived() -> bool:
        copied.synchronize()
        return bool(answer.item())

    return arrived


@lru_cache(maxsize=1)
def _flag_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _sendable(error: BaseException) -> BaseException:
    """The error itself if it can be pickled, else a RuntimeError with its name and text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # pickling an error of any library may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")


def start(train: Train, stop: StopSignal) -> World:
    """Join the other processes.

    ValueError for a missing device, launcher settings that would change the method, or unconnected processes.
    """
    check_launcher(os.environ)
    ignore_mpi(os.environ)
    fsdp = check_fsdp(os.environ, train)
    apply_settings(train)
    device = choose_device(train.device)
    wanted, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    accelerator = _join(train, device)
    if accelerator.num_processes != wanted:
        raise ValueError(
            f"the launcher started {wanted} processes but they form groups of {accelerator.num_processes}: each would "
            "train alone; start with accelerate launch --config_file accelerate_configs/ddp.yaml (or cpu.yaml)"
        )
    limit_threads(train, device)
    return World(
        accelerator=accelerator,
        rank=accelerator.process_index,
        size=accelerator.num_processes,
        local_size=local,
        # accelerate gives a single process a GPU without an index
        device=_device("cuda") if device == "cuda" else accelerator.device,
        fsdp=fsdp,
        stop=stop,
    )


def alone(train: Train, stop: StopSignal) -> World:
    """This process alone, whatever its launcher started: inside of another program, whose torch stays as it is.

    The caller restores torch's settings (:func:`cls.distributed.process_settings.settings_restored`).
    """
    apply_settings(train)
    return World(rank=0, size=1, local_size=1, device=_device(choose_device(train.device)), stop=stop)


def _device(kind: str) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _join(train: Train, device: str) -> Accelerator:
    """Join the process group. Some versions of gloo print a line of theirs to standard output: not among documents."""
    with stdout_to_stderr():
        return Accelerator(
            cpu=device == "cpu",
            mixed_precision="no",  # World.autocast does it; the launcher's choice is not used
            kwargs_handlers=[
                # fast: gradients live in DDP's buckets, which saves one set of them; exact never fills the buckets
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=train.reduce == "fast"),
                InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            ],
        )
