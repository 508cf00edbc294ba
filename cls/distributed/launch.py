"""Checks of the launcher's settings and of the device; what is not supported is rejected by name."""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path

import torch

from cls.config import Run, Train, change
from cls.runtime.exit import LocalError
from cls.runtime.paths import command_line


def check_launcher(env: os._Environ[str] | dict[str, str]) -> None:
    """ValueError where accelerate's configuration, which may be inherited, asks for something that is not supported."""
    asked = {
        "DeepSpeed": env.get("ACCELERATE_USE_DEEPSPEED", "false") == "true",
        "Megatron-LM": env.get("ACCELERATE_USE_MEGATRON_LM", "false") == "true",
        "fp16": env.get("ACCELERATE_MIXED_PRECISION", "no") == "fp16",
        "fp8": env.get("ACCELERATE_MIXED_PRECISION", "no") == "fp8",
        "dynamo (this program's way to compile is --train.compile True)": (
            env.get("ACCELERATE_DYNAMO_BACKEND", "").upper() not in ("", "NO")
        ),
    }
    for name, found in asked.items():
        if found:
            raise ValueError(
                f"the accelerate configuration asks for {name}, which is not supported: name another one with "
                "accelerate launch --config_file accelerate_configs/ddp.yaml "
                "(an unnamed one comes from `accelerate config`)"
            )


ON_CPU = "--train.device cpu (--device cpu of other commands)"
TAKEN = (
    "see nvidia-smi; wait until that program ends, or choose another GPU with CUDA_VISIBLE_DEVICES=NUMBER before the "
    "command"
)
MPI = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")
MPI_LOCAL = ("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
             "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE")  # fmt: skip


def ignore_mpi(env: MutableMapping[str, str]) -> None:
    """Remove MPI's variables: accelerate prefers them to those of its own launcher.

    srun and mpirun set them for each process, also for accelerate's launcher on each node. ValueError for several
    processes without a launcher: each would train alone, or wait forever for the others.
    """
    for name in MPI:
        size = env.get(f"{name}_SIZE", "")
        if size.strip().isdecimal() and int(size) > 1 and "WORLD_SIZE" not in env:
            launcher = ("accelerate", "launch", "--num_processes", size.strip())
            raise ValueError(
                f"{name}_SIZE is {size}: by it, mpirun or srun started {size} processes, which cannot find each other "
                f"without a launcher. Start once: {command_line({}, launcher)} (or, where the variable is only left "
                f"over: unset {name}_SIZE {name}_RANK)"
            )
    for key in (*(f"{name}_{what}" for name in MPI for what in ("SIZE", "RANK")), *MPI_LOCAL):
        env.pop(key, None)


def check_fsdp(env: os._Environ[str] | dict[str, str], train: Train) -> bool:
    """True where the launcher asks for FSDP; ValueError where these settings do not allow it."""
    if env.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = env.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"the accelerate configuration asks for FSDP version {version}, which loses the optimizer's state in "
            "checkpoints: use --config_file accelerate_configs/fsdp.yaml (fsdp_version: 2)"
        )
    if int(env.get("WORLD_SIZE", "1")) == 1:
        raise ValueError(
            "the accelerate configuration asks for FSDP, but there is one process: nothing can be sharded; use "
            "--num_processes 2 or more, or --config_file accelerate_configs/one_gpu.yaml"
        )
    if train.reduce == "exact":
        raise ValueError(
            "train.reduce is exact, but FSDP adds gradients in its own order: use DDP (--config_file "
            "accelerate_configs/ddp.yaml), or train with --train.reduce fast"
        )
    if train.compile:
        raise ValueError("train.compile is not tested with FSDP: drop it, or use accelerate_configs/ddp.yaml")
    return True


def choose_device(wanted: str) -> str:
    """'cuda', with this process's GPU as the current device, or 'cpu'.

    ValueError where a visible GPU is unusable or taken by another program: a LocalError in the process that reports it.
    """
    if wanted == "cpu":
        return "cpu"
    problem, first = "", os.environ.get("LOCAL_RANK", "0") == "0"
    error = LocalError if first else ValueError  # of what all processes of a machine see
    if torch.cuda.is_available():
        count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if local > count:  # before the first allocation: in exclusive mode these processes would block each other
            raise error(
                f"{local} processes were started on this machine, which has {count} GPU(s): "
                f"use accelerate launch --num_processes {count}"
            )
        index = int(os.environ.get("LOCAL_RANK", "0")) % count
        problem = first_allocation(index)
        if not problem:
            return "cuda"
        if is_taken(problem):
            chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
            name = f"GPU {index}{f' of CUDA_VISIBLE_DEVICES={chosen}' if chosen else ''}"
            raise LocalError(f"{name} is {taken(problem)}: {TAKEN}, or use {ON_CPU}")
    sign = visible_gpus(os.environ, Path("/dev/nvidia0").exists())
    if sign or problem:
        error = LocalError if problem else error  # of this process's own card
        raise error(f"{unusable(sign, problem)}, or use {ON_CPU}")
    if wanted == "cuda":
        raise error(f"train.device is cuda but this machine shows no GPU: use {ON_CPU}")
    return "cpu"


def first_allocation(index: int) -> str:
    """Make this GPU the current one and allocate on it; '' or the error's first line."""
    try:
        torch.cuda.set_device(index)  # on GPU 0 each process would leave a context of some hundred MB
        torch.zeros(1, device="cuda")
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def is_taken(problem: str) -> bool:
    """True for an error that means another program: it fills the memory, or has the card in exclusive mode.

    torch's allocator says "CUDA out of memory", the driver "out of memory", "all CUDA-capable devices are busy or
    unavailable" or, from CUDA 12 on, "CUDA-capable device(s) is/are busy or unavailable".
    """
    return any(text in problem for text in ("out of memory", "busy or unavailable"))


def taken(problem: str) -> str:
    """What is said of a GPU that another program has taken."""
    reason = problem.partition(" Of the allocated memory")[0]  # the rest is about this process's own memory
    return f"taken by another program ({reason.rstrip('.')})"


def unusable(sign: str, problem: str) -> str:
    """The message for a GPU that this torch cannot use."""
    return (
        f"a GPU is visible ({sign or 'to torch'}) but torch {torch.__version__} cannot use it"
        f"{f': {problem}' if problem else ''}. "
        f"Driver: {driver()}; this torch was built for CUDA {torch.version.cuda}. Install a torch that fits the "
        "driver, e.g. pip install torch torchvision --index-url https://download.pytorch.org/whl/cu126"
    )


def visible_gpus(env: os._Environ[str] | dict[str, str], device_file: bool) -> str:
    """Evidence that this process was given a GPU, or ''. An explicitly empty CUDA_VISIBLE_DEVICES means none."""
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return f"CUDA_VISIBLE_DEVICES={chosen}" if chosen.strip() not in ("", "-1", "NoDevFiles") else ""
    for name in sorted(env):
        if name.startswith("SLURM_GPUS") and env[name] not in ("", "0"):
            return f"{name}={env[name]}"
    return "/dev/nvidia0" if device_file else ""


def driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?(\d+\.\d+[.\d]*)", version.read_text()) if version.exists() else None
    return found.group(1) if found else "not loaded"


def resolve_precision(wanted: str, device: torch.device) -> str:
    """auto: bf16 where the GPU computes it natively (Ampere on), else fp32."""
    if wanted != "auto":
        return wanted
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def times_formats(device: torch.device, fsdp: bool) -> bool:
    """Whether memory formats are timed.

    Not on a CPU, where all fresh runs are to have the same bits. Not with FSDP: a rank that runs out of memory in the
    format that needs more would leave the others in a collective.
    """
    return device.type == "cuda" and not fsdp


def resolve_automatic(run: Run, device: torch.device, fsdp: bool, stored: Train | None) -> Run:
    """``run`` with precision and memory format for fields that are auto: those stored, else the device's.

    On a GPU the memory format stays auto until it is measured (:mod:`cls.distributed.speed_probe`).
    """
    precision, channels_last = run.train.precision, run.train.channels_last
    if stored and precision == "auto":
        precision = stored.precision
    if stored and channels_last == "auto":
        channels_last = stored.channels_last
    if channels_last == "auto" and not times_formats(device, fsdp):
        channels_last = True
    return change(run, train={"precision": resolve_precision(precision, device), "channels_last": channels_last})
