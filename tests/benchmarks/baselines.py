"""The two usual ways of loading the same augmented images, for comparison with ours.

Hugging Face style: a `datasets` dataset that decodes (Pillow), `with_transform` with torchvision.transforms (v1, on
Pillow images) in the recipe's own order, ToTensor and Normalize in the worker, float32, torch's default collate.
timm style: Pillow decoding, the operation that makes the image small first and the recipe's other operations on the
small image (torchvision v1), timm's ToNumpy and fast_collate, uint8; normalising and erasing are left to the device,
as timm's PrefetchLoader does. Both through torch's DataLoader, in the recipe's whole batches, as such programs load.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Dataset as Table
from datasets import Features, Image, Value
from timm.data.loader import fast_collate
from timm.data.transforms import ToNumpy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1

from cls.commands.bench.cpu_time import Lists
from cls.data.readers import Images
from cls.models.backbones import Statistics
from cls.transforms import ops
from cls.transforms.ops import Op

FRAMES = (ops.RandomResizedCrop, ops.ResizeShort, ops.CenterCrop, ops.Squash)


def published(operations: tuple[Op, ...], statistics: Statistics) -> v1.Compose:
    """Pillow image to normalised float32 tensor (3 h w), every operation where the recipe has it; erasing on the tensor
    before normalising."""
    on_image = [_transform(op) for op in operations if not isinstance(op, ops.Erase)]
    on_tensor = [_transform(op) for op in operations if isinstance(op, ops.Erase)]
    return v1.Compose([*on_image, v1.ToTensor(), *on_tensor, v1.Normalize(*statistics)])


def frame_first(operations: tuple[Op, ...]) -> v1.Compose:
    """Pillow image to uint8 array (3 h w), made small before anything else; what erases is left to the device."""
    frames = [op for op in operations if isinstance(op, FRAMES)]
    others = [op for op in operations if not isinstance(op, (*FRAMES, ops.Erase))]
    return v1.Compose([*map(_transform, [*frames, *others]), ToNumpy()])


def _transform(op: Op) -> Any:  # a transform; torchvision ships no types
    match op:
        case ops.RandomResizedCrop():
            return v1.RandomResizedCrop(op.size, op.scale, op.ratio)
        case ops.ResizeShort():
            return v1.Resize(op.size)
        case ops.CenterCrop():
            return v1.CenterCrop(op.size)
        case ops.Squash():
            return v1.Resize((op.size, op.size))
        case ops.HFlip():
            return v1.RandomHorizontalFlip(op.p)
        case ops.VFlip():
            return v1.RandomVerticalFlip(op.p)
        case ops.Rotate():
            return v1.RandomRotation(op.degrees, fill=op.fill)
        case ops.Affine():
            zoom = None if op.zoom == (1.0, 1.0) else op.zoom
            return v1.RandomAffine(0, (op.translate, op.translate), zoom, fill=op.fill)
        case ops.Jitter():
            return v1.ColorJitter(op.brightness, op.contrast, op.saturation, op.hue)
        case ops.RandAugment():
            return v1.RandAugment(op.n, op.magnitude, fill=list(op.fill))
        case ops.TrivialAugment():
            return v1.TrivialAugmentWide(fill=list(op.fill))
        case ops.Blur():
            return v1.GaussianBlur(op.kernel)  # sigma 0.1 to 2
        case ops.Erase():
            return v1.RandomErasing(op.p, op.scale, op.ratio, value="random")


def hugging_face(
    split: Table | Images, rows: Sequence[int], transform: Callable[[Any], Any], workers: int
) -> Callable[[Lists], Iterator[Any]]:
    """Starts a loader of ``{"pixels": b 3 h w float32, "label": b}``; index i is the i-th of ``rows``.

    A split that is no dataset (one that is streamed) is read into memory.
    """

    def together(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixels": [transform(image.convert("RGB")) for image in found["image"]], "label": found["label"]}

    if isinstance(split, Table):
        table = split.select(rows).select_columns(["image", "label"])
    else:
        content = [{"bytes": bytes(data), "path": None} for data in split.read(rows)]
        columns = {"image": content, "label": [int(split.labels[row]) for row in rows]}
        table = Table.from_dict(columns, features=Features({"image": Image(decode=False), "label": Value("int64")}))
    dataset = table.cast_column("image", Image(decode=True)).with_transform(together)
    return lambda lists: iter(_loader(dataset, lists, workers, None))


class Opened(Dataset[Any]):
    """Labelled images as timm's datasets give them: opened by Pillow, transformed."""

    def __init__(self, images: Images, rows: Sequence[int], transform: Callable[[Any], Any]) -> None:
        self.images, self.rows, self.transform = images, rows, transform

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        row = self.rows[index]
        data = self.images.read([row])[0]
        assert isinstance(data, bytes | memoryview)
        image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        return self.transform(image), int(self.images.labels[row])


def timm_style(
    images: Images, rows: Sequence[int], transform: Callable[[Any], Any], workers: int
) -> Callable[[Lists], Iterator[Any]]:
    """Starts a loader of (b 3 h w uint8, labels b); index i is the i-th of ``rows``."""
    dataset = Opened(images, rows, transform)
    return lambda lists: iter(_loader(dataset, lists, workers, fast_collate))


def _loader(dataset: Any, lists: Lists, workers: int, collate: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=lists,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="fork" if workers else None,  # functions inside functions cannot be sent
        generator=torch.Generator(),
    )
