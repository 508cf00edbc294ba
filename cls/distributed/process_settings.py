"""What a run sets for its whole process, in torch and other libraries."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cls.config import Train

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def apply_settings(train: Train) -> None:
    """The choice of kernels; before the first use of CUDA."""
    torch.use_deterministic_algorithms(train.deterministic)
    os.environ.setdefault(WORKSPACE, ":4096:8")  # read once, when CUDA starts; `cls bench` tries both
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
    """Inside, the functions above may be called and modules of cls imported; at the end all is as it was.

    The modules that decode images limit OpenCV to one thread and silence Pillow, at their import.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # mypy cannot see it
    benchmark, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    workspace, pillow = os.environ.get(WORKSPACE), logging.getLogger("PIL")
    level, opencv = pillow.level, _opencv_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        pillow.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)
            torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]  # as above
            torch.backends.cudnn.benchmark = benchmark
            torch.set_num_threads(threads)
            pillow.setLevel(level)
            if workspace is None:
                os.environ.pop(WORKSPACE, None)
            _opencv_threads(opencv)


def _opencv_threads(set_to: int | None = None) -> int:
    """OpenCV's number of threads, -1 (its default) where it is not loaded yet."""
    cv2: Any = sys.modules.get("cv2")
    if cv2 is not None and set_to is not None:
        cv2.setNumThreads(set_to)
    return int(cv2.getNumThreads()) if cv2 is not None else -1
