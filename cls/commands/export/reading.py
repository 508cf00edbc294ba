"""Python code from an image file to probabilities, for programs without this package."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from cls.commands.export.snippets import input_name, library, loading, plain, running
from cls.commands.options import Input
from cls.config import Data, Model, View
from cls.models.backbones import Statistics
from cls.transforms.ops import ResizeShort, view_ops
from cls.transforms.params import SPARE

BILINEAR = "Image.Resampling.BILINEAR"
APPLIED: tuple[View, ...] = ("identity", "hflip")
"""The test-time views that take a line in any library; the angle and box of the others are drawn for each file."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plain view as numbers."""

    size: int
    short: int
    """What the short side is resized to before the central crop; 0: the whole image is squashed."""
    statistics: Statistics


Reading = Literal["cls", "library"]
"""How printed code reads a file; printed is what gives the input that is most like ours.

cls: Pillow does what the fused path does: a large JPEG decoded at 1/2, 1/4 or 1/8, rows reduced before columns.
library: the library's own transform on the whole image, as ``data.exact_order``. A trained tf_efficientnet_lite0, 100
photos of the clothing data set, at 96 px, at 64 px and squashed to 96: 100, 100 and 100 labels of cls predict with
probabilities within .008 for cls; 99, 97 and 98 labels within .077 for library (2026-11-29).
"""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Code for one library: ``load`` makes the network, ``read`` makes ``read(path)`` and ``probabilities(path)``."""

    name: str
    load: Callable[[Path], str]
    """Of the folder with the exported files."""
    read: Callable[[Path, Reading, tuple[View, ...]], str]
    views: tuple[View, ...]
    """Those of APPLIED that are averaged."""

    def text(self, folder: Path, reading: Reading) -> str:
        return f"{self.load(folder)}\n{self.read(folder, reading, self.views)}"


def frame_of(data: Data, statistics: Statistics) -> Frame:
    first = view_ops("identity", data)[0]
    return Frame(size=data.size, short=first.size if isinstance(first, ResizeShort) else 0, statistics=statistics)


def torch_code(model: Model, net: nn.Module, classes: int, frame: Frame, views: tuple[View, ...]) -> Code:
    """For timm, torchvision or (own attention) cls."""
    return Code(
        name=library(model),
        load=lambda folder: loading(model, net, classes, folder),
        read=partial(_torch_reading, model, frame),
        views=views,
    )


def onnx_code(kind: Input, frame: Frame, views: tuple[View, ...]) -> Code:
    """For ONNX Runtime with NumPy and Pillow."""
    return Code(name="onnxruntime", load=running, read=partial(_onnx_reading, kind, frame), views=views)


def _opening(frame: Frame, reading: Reading) -> list[str]:
    """Lines of a function that make ``image``, upright RGB; with the reading of cls it is resized, too."""
    if reading == "library":
        return ["    image = ImageOps.exif_transpose(Image.open(path)).convert('RGB')"]
    return [
        "    image = Image.open(path)",
        *_target(frame),
        "    # as cls does: a large JPEG is decoded at 1/2, 1/4 or 1/8, rows are reduced before columns",
        f"    _, box = image.draft('RGB', ({SPARE} * width, {SPARE} * height)) or ('', (0, 0, *image.size))",
        "    image = image.convert('RGB')",
        f"    image = image.resize((image.width, height), {BILINEAR}, box=(0, 0, image.width, box[3]))",
        f"    image = image.resize((width, height), {BILINEAR}, box=(0, 0, box[2], height))",
        "    image = ImageOps.exif_transpose(image)",
    ]


def _target(frame: Frame) -> list[str]:
    """Lines that make ``width`` and ``height`` of the resized image."""
    if not frame.short:
        return [f"    width, height = {frame.size}, {frame.size}"]
    return [
        "    short = min(image.size)",
        f"    width, height = ({frame.short} * side // short for side in image.size)",
    ]


def _listed(views: tuple[View, ...]) -> str:
    """The test-time views of ``image``: mirrored before the crop, as cls does."""
    known: dict[View, str] = {"identity": "image", "hflip": "ImageOps.mirror(image)"}
    return f"[{', '.join(known[view] for view in views)}]"


def _classes(folder: Path) -> str:
    return f"classes = json.load(open({str(folder / 'config.json')!r}, encoding='utf-8'))['label_names']"


def _torch_reading(model: Model, frame: Frame, folder: Path, reading: Reading, views: tuple[View, ...]) -> str:
    return "\n".join([
        "import json, torch",
        "from PIL import Image, ImageOps",
        _transform(model, frame, folder),
        _classes(folder),
        "",
        f"def read(path):  # an image file -> {len(views)} 3 {frame.size} {frame.size}",
        *_opening(frame, reading),
        f"    return torch.stack([transform(view) for view in {_listed(views)}])",
        "",
        "def probabilities(path):  # of classes",
        "    with torch.no_grad():",
        "        return model(read(path)).softmax(1).mean(0)",
    ])  # fmt: skip


def _transform(model: Model, frame: Frame, folder: Path) -> str:
    """Code that makes ``transform``: from an upright RGB image of Pillow to the input."""
    if library(model) == "timm":
        if plain(model):
            return "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        known = f"json.load(open({str(folder / 'config.json')!r}, encoding='utf-8'))['pretrained_cfg']"
        resolved = f"timm.data.resolve_data_config(pretrained_cfg={known})"
        return f"transform = timm.data.create_transform(**{resolved})"
    size, (mean, std) = frame.size, map(list, frame.statistics)
    steps = [f"v2.Resize({frame.short})", f"v2.CenterCrop({size})"] if frame.short else [f"v2.Resize([{size}, {size}])"]
    steps += ["v2.PILToTensor()", "v2.ToDtype(torch.float32, scale=True)", f"v2.Normalize({mean}, {std})"]
    lines = ["from torchvision.transforms import v2", "transform = v2.Compose(["]
    return "\n".join([*lines, *(f"    {step}," for step in steps), "])"])


def _onnx_reading(kind: Input, frame: Frame, folder: Path, reading: Reading, views: tuple[View, ...]) -> str:
    size, short, name = frame.size, frame.short, input_name(kind)
    framed = []
    if reading == "library":
        framed += [*_target(frame), f"    image = image.resize((width, height), {BILINEAR})"]
    view = "view"
    if short:
        framed += [f"    left, top = round((image.width - {size}) / 2), round((image.height - {size}) / 2)"]
        view = f"view.crop((left, top, left + {size}, top + {size}))"
    mean, std = map(list, frame.statistics)
    end = ["    return pixels"]
    if kind == "float":
        end = [f"    images = (pixels / 255 - {mean}) / {std}",
               "    return images.transpose(0, 3, 1, 2).astype('float32')"]  # fmt: skip
    shape = f"{len(views)} {size} {size} 3" if kind == "uint8" else f"{len(views)} 3 {size} {size}"
    return "\n".join([
        "import json, numpy",
        "from PIL import Image, ImageOps",
        _classes(folder),
        "",
        f"def read(path):  # an image file -> {shape}",
        *_opening(frame, reading),
        *framed,
        f"    pixels = numpy.stack([numpy.asarray({view}) for view in {_listed(views)}])",
        *end,
        "",
        "def probabilities(path):  # of classes",
        f"    logits = session.run(None, {{{name!r}: read(path)}})[0]",
        "    shares = numpy.exp(logits - logits.max(1, keepdims=True))",
        "    return (shares / shares.sum(1, keepdims=True)).mean(0)",
    ])  # fmt: skip


def applied(views: tuple[View, ...]) -> tuple[View, ...]:
    """Those of the test-time views that the code averages, in the order of APPLIED; without any the plain one."""
    return tuple(view for view in APPLIED if view in views) or APPLIED[:1]
