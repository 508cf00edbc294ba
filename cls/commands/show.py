"""``cls show``: a contact sheet of training images as the model receives them, each beside its file's picture."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cls.commands.contact_sheet import LEAST, Tile, write_sheet
from cls.config import Run
from cls.data.dataset import train_dataset
from cls.data.loader import batches, preprocess, worker_count
from cls.data.readers import Images, images_of
from cls.data.sampler import MicroBatchSampler
from cls.data.sources import load
from cls.models.backbones import input_statistics
from cls.runtime.console import printable
from cls.runtime.paths import writing
from cls.training.steps import Steps
from cls.transforms.decode import CorruptImageError, decode
from cls.transforms.mixup import draw_mixing, mix, partners, soft_targets


def original(source: Images, row: int, side: int) -> np.ndarray | None:
    """What is in the file, upright and not larger than ``side``, h w 3, uint8; None where it is corrupt."""
    (content,) = source.read([row])
    try:
        if isinstance(content, CorruptImageError):
            return None
        image = decode(bytes(content))
    except CorruptImageError:
        return None
    image.thumbnail((side, side))
    return np.asarray(image)


def contact_sheet(run: Run, to: Path, count: int, step: int) -> dict[str, Any]:
    """``count`` training images, from the first one of ``step`` on."""
    splits = load(run.data, run.seed)
    source = images_of(splits.train)
    dataset = train_dataset(source, run)
    size, every = run.train.micro_batch, run.train.batch // run.train.micro_batch
    steps = -(-count // run.train.batch)
    Steps(len(splits.train), run.train)  # rejects a batch larger than the data
    indices = MicroBatchSampler(step, step + steps, run.train.batch, size, range(every))
    prepare = preprocess(input_statistics(run), run.seed, False, torch.device("cpu"))
    tiles, corrupt = list[Tile](), list[dict[str, str]]()
    for i, batch in enumerate(batches(dataset, indices, worker_count(run.data.workers, 1), size)):
        at, index = step + i // every, i % every
        mixing, partner = draw_mixing(run.augment, run.seed, at), partners(size, run.seed, at, index)
        images, targets = mix(prepare(batch), soft_targets(batch.labels, len(splits.classes), 0.0), mixing, partner)
        pixels = ((images * prepare.std + prepare.mean).clamp(0, 1) * 255).round().byte()
        for image, target, sample, row in zip(pixels, targets, batch.indices, batch.rows, strict=True):
            shares = {splits.classes[c]: float(target[c]) for c in target.nonzero().flatten().tolist()}
            tiles.append(
                Tile(image, shares, sample, source.name(row), original(source, row, max(run.data.size, LEAST)))
            )
        corrupt += [{"id": source.name(row), "error": why} for row, why in batch.corrupt]
        if len(tiles) >= count:
            break
    del tiles[count:]
    with writing("to", to):
        write_sheet(to, tiles, f"{run.recipe}, from step {step} on: each file, and what the model gets")
    for one in corrupt:
        print(printable(f"{one['id']} is corrupt, another image is in its place: {one['error']}"), file=sys.stderr)
    print(f"{len(tiles)} training images in {to}", file=sys.stderr)
    return {
        "file": str(to),
        "samples": [{"index": t.sample, "id": t.id, "labels": t.shares} for t in tiles],
        "corrupt": corrupt,
    }
