"""From draws to micro-batches on the device: worker processes send uint8, floats exist only where the model is."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cls.data.draws import Sample
from cls.models import Statistics
from cls.seed import torch_seed


class Batch(NamedTuple):
    """Samples of one micro-batch, in draw order; b images."""

    pixels: Tensor  # b 3 h w, uint8
    labels: Tensor  # b, int64
    boxes: Tensor  # b 4, int64: erased boxes
    draws: list[int]
    rows: list[int]
    broken: list[tuple[int, str]]


def collate(samples: list[Sample]) -> Batch:
    return Batch(
        pixels=torch.stack([s.pixels for s in samples]),
        labels=torch.tensor([s.label for s in samples]),
        boxes=torch.tensor([s.box for s in samples]),
        draws=[s.draw for s in samples],
        rows=[s.row for s in samples],
        broken=[found for s in samples for found in s.broken],
    )


class MicroBatchDraws:
    """The draws of this rank's micro-batches from step ``start`` on: step s owns draws [s·B, (s+1)·B)."""

    def __init__(self, start: int, stop: int, batch: int, micro_batch: int, share: range) -> None:
        self.start, self.stop, self.batch, self.micro_batch, self.share = start, stop, batch, micro_batch, share

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for index in self.share:
                first = step * self.batch + index * self.micro_batch
                yield list(range(first, first + self.micro_batch))

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.share)


def worker_count(wanted: int, local_world: int) -> int:
    """Loader processes per rank: the cores that this process may really use, shared by the ranks of its machine."""
    return wanted if wanted >= 0 else min(16, max(1, len(os.sched_getaffinity(0)) // local_world))


def batches(dataset: Dataset[Sample], indices: object, workers: int, pin: bool) -> Iterator[Batch]:
    """Micro-batches in the order of ``indices``, whatever the number of workers."""
    loader = DataLoader(
        dataset,
        batch_sampler=indices,  # type: ignore[arg-type]  # any iterable of index lists
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the default would draw worker seeds from the generator of the dropout masks
    )
    return iter(loader)


class Preprocess(NamedTuple):
    """uint8 micro-batches to normalised floats on the device, erased boxes filled with noise before normalising."""

    mean: Tensor  # 1 3 1 1, in units of [0, 1]
    std: Tensor
    seed: int
    channels_last: bool

    def __call__(self, batch: Batch) -> Tensor:  # b 3 h w, float32
        device = self.mean.device
        images = batch.pixels.to(device, non_blocking=True).float() / 255
        noise = torch.Generator(device)
        for i, (top, left, height, width) in enumerate(batch.boxes.tolist()):
            if height:
                noise.manual_seed(torch_seed(self.seed, "erase", batch.draws[i]))
                box = torch.randn(3, height, width, generator=noise, device=device)
                images[i, :, top : top + height, left : left + width] = box
        images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


def preprocess(statistics: Statistics, seed: int, channels_last: bool, device: torch.device) -> Preprocess:
    """``statistics``: mean and std of each channel, in units of [0, 1]."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in statistics)
    return Preprocess(mean, std, seed, channels_last)
