"""The Accelerator, the guards around it, and the few ways in which ranks talk to each other."""

import os
import pickle
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from cls.config import Train

T = TypeVar("T")

# A rank that waits longer than this for another one reports an error; hub downloads on rank 0 are the longest wait.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes of one run, seen from one of them."""

    accelerator: Accelerator
    rank: int
    world: int
    local_world: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def on_main(self, work: Callable[[], T]) -> T:
        """Run on rank 0 only and give every rank its result, or its error."""
        return self._share(work, [0])

    def together(self, work: Callable[[], T]) -> T:
        """Run on every rank; if one fails, all raise that rank's error instead of waiting for it in a collective."""
        return self._share(work, list(range(self.world)))

    def _share(self, work: Callable[[], T], ranks: list[int]) -> T:
        result: Any = None
        error: Exception | None = None
        if self.rank in ranks:
            try:
                result = work()
            except Exception as raised:
                if self.world == 1:
                    raise
                error = raised
        if self.world == 1:
            return result  # type: ignore[no-any-return]  # ranks holds rank 0, so work() has run
        errors: list[Any] = [None] * self.world
        dist.all_gather_object(errors, error and _sendable(error))
        failed = [index for index, found in enumerate(errors) if found is not None]
        if failed:
            # the local object keeps its traceback; others get the copy from the first rank that failed
            raise error or errors[failed[0]]
        if ranks == [0]:
            box = [result]
            dist.broadcast_object_list(box, src=0)
            result = box[0]
        return result  # type: ignore[no-any-return]  # what work() returned, here or on rank 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks in place; exact where at most one rank holds a non-zero in each element."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: T) -> list[T]:
        """One object of each rank, in rank order, on every rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def wrap(self, model: nn.Module, compiled: bool) -> nn.Module:
        """The model as training calls it: compiled in place if asked, in DDP when there are several processes."""
        if compiled:
            model.compile()  # in place: the keys of the state dict stay as they are
        with warnings.catch_warnings():
            # the successor of broadcast_buffers is not reachable through accelerate's settings yet
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare(model)
        return wrapped

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def close(self) -> None:
        """Leave the process group after every rank has got here."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


def _sendable(error: Exception) -> Exception:
    """The error itself where it survives pickling, else its name and text: no error may stop the exchange of errors."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def start(train: Train) -> Cluster:
    """Join the other processes; every guard of DESIGN 6 that can be checked before data and model exist.

    Raises ValueError for a device that is not there, for launcher settings that would change the method, and for
    processes that do not find each other.
    """
    refuse_launcher(os.environ)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
        torch.use_deterministic_algorithms(True)
    device = choose_device(train.device)
    wanted, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and local > torch.cuda.device_count():
        raise ValueError(
            f"{local} processes were started on this machine, which has {torch.cuda.device_count()} GPU(s): "
            f"use accelerate launch --num_processes {torch.cuda.device_count()}"
        )
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # autocast is entered where the forward is; the launcher's choice must not add another
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
        ],
    )
    if accelerator.num_processes != wanted:
        raise ValueError(
            f"the launcher started {wanted} processes but they form groups of {accelerator.num_processes}: each would "
            "train alone; start with accelerate launch --config_file accelerate_configs/ddp.yaml (or cpu.yaml)"
        )
    if device == "cpu" and train.reduce == "exact":
        torch.set_num_threads(1)  # another number of threads gives other bits
    return Cluster(
        accelerator=accelerator,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        local_world=local,
        device=accelerator.device,
    )


def refuse_launcher(env: os._Environ[str] | dict[str, str]) -> None:
    """An inherited accelerate configuration may ask for what this program does not do: say which, and what to do."""
    asked = {
        "DeepSpeed": env.get("ACCELERATE_USE_DEEPSPEED", "false") == "true",
        "FSDP": env.get("ACCELERATE_USE_FSDP", "false") == "true",
        "Megatron-LM": env.get("ACCELERATE_USE_MEGATRON_LM", "false") == "true",
        "fp16": env.get("ACCELERATE_MIXED_PRECISION", "no") == "fp16",
        "fp8": env.get("ACCELERATE_MIXED_PRECISION", "no") == "fp8",
    }
    for name, found in asked.items():
        if found:
            raise ValueError(
                f"the accelerate configuration asks for {name}, which is not supported: name another one with "
                "accelerate launch --config_file accelerate_configs/ddp.yaml "
                "(an unnamed one comes from `accelerate config`)"
            )


def choose_device(wanted: str) -> str:
    """'cuda' or 'cpu'; never the CPU silently where GPUs are visible but unusable."""
    if wanted == "cpu":
        return "cpu"
    problem = ""
    try:
        if torch.cuda.is_available():
            torch.zeros(1, device="cuda")
            return "cuda"
    except RuntimeError as error:
        problem = f": {str(error).splitlines()[0]}"
    sign = visible_gpus(os.environ, Path("/dev/nvidia0").exists())
    if sign:
        raise ValueError(
            f"a GPU is visible ({sign}) but torch {torch.__version__} cannot use it{problem}. Driver: {_driver()}; "
            f"this torch was built for CUDA {torch.version.cuda}. Install a torch that fits the driver, e.g. pip "
            "install torch torchvision --index-url https://download.pytorch.org/whl/cu126, or use --train.device cpu"
        )
    if wanted == "cuda":
        raise ValueError("train.device is cuda but this machine shows no GPU: use --train.device cpu or auto")
    return "cpu"


def visible_gpus(env: os._Environ[str] | dict[str, str], device_file: bool) -> str:
    """The sign that this process was given a GPU, or ''. An explicitly empty CUDA_VISIBLE_DEVICES means none."""
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return f"CUDA_VISIBLE_DEVICES={chosen}" if chosen.strip() not in ("", "-1", "NoDevFiles") else ""
    for name in sorted(env):
        if name.startswith("SLURM_GPUS") and env[name] not in ("", "0"):
            return f"{name}={env[name]}"
    return "/dev/nvidia0" if device_file else ""


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?(\d+\.\d+[.\d]*)", version.read_text()) if version.exists() else None
    return found.group(1) if found else "not loaded"


def resolve_precision(wanted: str, device: torch.device) -> str:
    """auto: bf16 where the GPU computes it natively (Ampere on), else fp32."""
    if wanted != "auto":
        return wanted
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"
