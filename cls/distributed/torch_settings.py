"""What a run sets in torch for the whole process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cls.config import Train


def apply_settings(train: Train) -> None:
    """The choice of kernels; before the first use of CUDA."""
    torch.use_deterministic_algorithms(train.deterministic)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts; `cls bench` tries both
    if train.deterministic:
        # filling empty tensors with NaN costs 3 % of a step
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # mypy cannot see it
    torch.backends.cudnn.benchmark = not train.deterministic  # cuDNN times its kernels and takes the fastest


def limit_threads(train: Train, device: str) -> None:
    """One thread where another number of them would give other bits; ``device`` is cpu or cuda."""
    if device == "cpu" and train.reduce == "exact":
        torch.set_num_threads(1)


@contextmanager
def settings_restored() -> Iterator[None]:
    """Inside, the functions above may be called; at the end torch is as it was."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # mypy cannot see it
    benchmark, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]  # as above
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads)
