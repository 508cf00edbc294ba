"""Time of a step (a roofline), of the exchange of gradients, and the cores that its input needs."""

import time
from math import ceil
from statistics import median
from typing import NamedTuple

import numpy as np

from cls.commands.gpus import Gpu
from cls.commands.plan.memory import Step
from cls.config import Run
from cls.data.dataset import train_dataset
from cls.data.readers import images_of
from cls.data.sources import Splits
from cls.distributed.tree_reduce import block_sizes, shares


class End(NamedTuple):
    """One end of the estimate; the truth is expected between the two."""

    efficiency: float  # of the datasheet's figures, for operations as for bandwidth
    launch_seconds: float  # least time of an operation
    pcie_gb_per_s: float  # between GPUs of one machine


SLOWER = End(0.5, 1e-5, 10.0)
FASTER = End(0.9, 5e-6, 20.0)
"""timm's published training throughput on an RTX 3090 (results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv: mixed
precision, channels last, PyTorch 1.12) means efficiencies from 0.67 (resnext101_32x8d) over 0.78 (resnet50) to 0.89
(wide_resnet50_2). The slower end leaves space for small micro-batches and deterministic kernels. Launching and PCIe
(3.0 and 4.0 x16 in practice) are assumptions; we measured none of this."""

ASSUMPTIONS = (
    "each operation takes the longer of FLOPs / peak and bytes / bandwidth, at "
    f"{SLOWER.efficiency:.0%} (slower end) to {FASTER.efficiency:.0%} (faster end) of the datasheet, and at least "
    f"{SLOWER.launch_seconds * 1e6:.0f} or {FASTER.launch_seconds * 1e6:.0f} us to start; timm's "
    "published figures for an RTX 3090 lie between the two ends",
    "cores are those of the faster end, time limits and requeues those of the slower one",
    "fp32 convolutions run as TF32 where the GPU has it (torch's default)",
    f"GPUs of one node exchange gradients at {SLOWER.pcie_gb_per_s:.0f} to {FASTER.pcie_gb_per_s:.0f} GB/s (PCIe), not "
    "overlapped with computing",
    "one micro-batch per forward pass; reduce fast puts several into one where memory allows it, which is no slower",
    "images arrive in time (see the cores); validation is counted by its images at a third of a training image's time",
)


class Speed(NamedTuple):
    """Estimated seconds of one optimizer step of the rank that carries most."""

    compute: float
    exchange: float
    exchange_bytes: int  # that one rank sends

    @property
    def step(self) -> float:
        return self.compute + self.exchange


def roofline(step: Step, size: int, gpu: Gpu, precision: str, end: End) -> float:
    """Seconds of one micro-batch of ``size`` images, forward and backward."""
    flops, moved = step.work(size)
    peak = (gpu.bf16_tflops if precision == "bf16" else gpu.fp32_tflops) * 1e12
    assert peak, f"{gpu.name} has no native {precision}"
    seconds = np.maximum(flops / peak, moved / (gpu.bandwidth_gb_per_s * 1e9)) / end.efficiency
    return float(np.maximum(seconds, end.launch_seconds).sum())


def exchange_bytes(gradients: int, micro_batches: int, world_size: int, exact: bool, fsdp: bool) -> int:
    """Bytes that the busiest rank sends per step, for ``gradients`` bytes of gradients.

    All-reduce (DDP): 2 (w-1)/w. Exact: the scatter half once for each of its k partial sums, so (k+1) (w-1)/w. FSDP:
    parameters gathered twice and gradients scattered once for each of its micro-batches, 3 m (w-1)/w.
    """
    ranges = shares(micro_batches, world_size)
    times = 1 + max(len(block_sizes(share)) for share in ranges) if exact else 2
    times = 3 * len(ranges[0]) if fsdp else times
    return ceil(times * gradients * (world_size - 1) / world_size)


def estimate(
    step: Step, run: Run, gpu: Gpu, precision: str, gpus: int, nodes: int, link_gbit_per_s: float, fsdp: bool, end: End
) -> Speed:
    """The step of the rank with most micro-batches; all GPUs of a node share one link to other nodes."""
    count = run.train.batch // run.train.micro_batch
    world_size = gpus * nodes
    most = len(shares(count, world_size)[0])
    update = step.update_bytes() / (world_size if fsdp else 1) / (gpu.bandwidth_gb_per_s * 1e9) / end.efficiency
    compute = most * roofline(step, run.train.micro_batch, gpu, precision, end) + update
    exact = run.train.reduce == "exact"
    sent = exchange_bytes(step.held("gradients"), count, world_size, exact, fsdp)
    pcie = end.pcie_gb_per_s
    rate = pcie if nodes == 1 else min(pcie, link_gbit_per_s / 8 / (gpus if exact else 1))
    return Speed(compute, sent / (rate * 1e9), sent)


def images_per_second_per_core(run: Run, splits: Splits, images: int = 250, chunks: int = 5) -> float:
    """Training images that one core reads, decodes and augments per second: the median of ``chunks`` timings.

    In this process, on the user's images from sample index 0 on; the first 10 are not timed.
    """
    dataset = train_dataset(images_of(splits.train), run)
    rates, each = [], max(1, images // chunks)
    buffer = np.empty((max(10, each), run.data.size, run.data.size, 3), np.uint8)
    dataset.fill(range(10), buffer)
    for chunk in range(chunks):
        start = time.perf_counter()
        dataset.fill(range(10 + chunk * each, 10 + (chunk + 1) * each), buffer)
        rates.append(each / (time.perf_counter() - start))
    return median(rates)


def cores_needed(images_per_second: float, per_core: float) -> int:
    """Cores of one GPU: those that decode what it consumes, and one for its training process, as loaders leave it."""
    return ceil(images_per_second / per_core) + 1
