"""``cls export``: write to a temporary folder, load with timm or torchvision only, verify on real images, publish."""

import glob
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cls.commands.export.onnx import require_packages, write_graph
from cls.commands.export.snippets import framing, input_name, library, loading, running
from cls.commands.export.timm_config import config_json
from cls.commands.options import ExportOptions
from cls.data.dataset import ViewDataset
from cls.data.loader import batches, worker_count
from cls.data.readers import images_of
from cls.data.sources import Rows, load_images
from cls.evaluation.trained_model import TrainedModel, load_trained_model
from cls.runtime.files import replacing
from cls.runtime.lock import Heartbeat, claim, in_use
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.transforms.ops import view_ops

LOCK = "lock"
NEW_SECONDS = 5.0  # a temporary folder may be this old before its export has locked it
LIMIT = 1e-4
"""Largest difference of a logit in fp32 on the CPU: kernels add in different orders."""


def export(path: str, to: Path, options: ExportOptions, stop: StopSignal) -> dict[str, Any]:
    """Write a run's best network to a folder and print the code that loads it; the JSON document of the command.

    ValueError, with nothing written, if a logit on real images differs by more than LIMIT.
    """
    if "onnx" in options.format:
        require_packages()
    if to.exists() and not to.is_dir():
        raise ValueError(f"--to {to} is a file; name a folder")
    check_output("to", to, folder=True)
    trained = load_trained_model(path, "cpu", -1, stop)
    if trained.file.resolve().parent == to.resolve():
        raise ValueError(f"--to {to} holds the exported run's own weights: name another folder")
    if trained.world.size > 1:
        raise ValueError(
            f"{trained.world.size} processes were started, but cls export needs one: start it without a launcher"
        )
    images, pixels = photos(trained, _rows(trained, options), options.count)
    facts = config_json(trained.run, trained.classes, trained.statistics)
    with torch.no_grad():
        ours = torch.cat([trained.model(some) for some in torch.split(images, trained.run.train.eval_batch)])
    with aside_of(to) as aside:
        differences = _write(trained, aside, options, facts, images, pixels, ours)
        with writing("to", to):
            _publish(aside, to)
    return _shown(trained, to, options, len(images), differences)


@contextmanager
def aside_of(to: Path) -> Iterator[Path]:
    """A temporary folder on the file system of ``to``, removed at the end, as are those of killed exports to ``to``.

    It is in ``to`` if that exists (its parent may be another user's), else next to it.
    """
    home = to if to.exists() else to.parent
    with writing("to", to):
        home.mkdir(parents=True, exist_ok=True)
        for path in home.glob(f".{glob.escape(to.name)}-*.export"):
            claimed = (path / LOCK).exists() or time.time() - path.stat().st_mtime > NEW_SECONDS
            if claimed and not in_use(path):
                shutil.rmtree(path, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{to.name}-", suffix=".export", dir=home))
        claim(aside / LOCK, "to")
    try:
        with Heartbeat(aside / LOCK):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.onnx"):
        (to / name).unlink(missing_ok=True)  # of an earlier export
    files = [file for file in aside.iterdir() if file.name != LOCK]
    for file in sorted(files, key=lambda file: file.name == "config.json"):
        with replacing(to / file.name) as place:
            os.replace(file, place)


def photos(trained: TrainedModel, rows: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Evenly spread images as the network gets them: b 3 h w normalised, and b h w 3 uint8; without corrupt ones.

    ValueError if none can be read.
    """
    data, size = trained.run.data.evaluated, trained.run.train.eval_batch
    some = rows.select(np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)))
    ops = view_ops("identity", data)
    views = ViewDataset(images_of(some), ops, data.size, trained.run.seed, "identity", data.exact_order)
    slices = [list(range(start, min(start + size, len(some)))) for start in range(0, len(some), size)]
    images, pixels = [], []
    for batch in batches(views, slices, worker_count(data.workers, 1), size):
        corrupt = {row for row, _ in batch.corrupt}
        whole = [place for place, row in enumerate(batch.rows) if row not in corrupt]
        images.append(trained.prepare(batch)[whole])
        pixels.append(batch.pixels.permute(0, 2, 3, 1)[whole].contiguous())
    if not sum(map(len, images)):
        raise ValueError("no image could be read, and the export is verified on real ones: name others with --images")
    return torch.cat(images), torch.cat(pixels)


def _rows(trained: TrainedModel, options: ExportOptions) -> Rows:
    if options.images:
        return load_images(options.images, trained.run.data)
    try:
        return trained.own_data().val
    except ValueError as error:
        raise ValueError(f"{error}; the export is verified on real images: name some with --images FOLDER") from error


def _write(trained: TrainedModel, aside: Path, options: ExportOptions, facts: dict[str, Any], images: Tensor,
           pixels: Tensor, ours: Tensor) -> dict[str, float]:  # fmt: skip
    """Write all files; the largest difference of its logits from ours, by library."""
    run, model, found = trained.run, trained.model, dict[str, float]()
    (aside / "config.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if "safetensors" in options.format:
        shutil.copyfile(trained.file, aside / "model.safetensors")  # only cls predict reads its header
        text = loading(run.model, model, len(trained.classes), aside)
        scope: dict[str, Any] = {}
        exec(text, scope)  # the printed code itself: it imports and loads what another program does
        name = library(run.model)
        found[name] = _difference(name, scope["model"], images, ours, run.train.eval_batch)
    if "onnx" in options.format:
        stated = facts["pretrained_cfg"] | {"label_names": facts["label_names"], "input": options.input}
        path, size = aside / "model.onnx", run.data.evaluated.size
        write_graph(path, model, trained.statistics, size, options.input, stated)
        fed = pixels if options.input == "uint8" else images
        session = _session(aside, options, fed)
        found["onnxruntime"] = _difference("onnxruntime", session, fed, ours, run.train.eval_batch)
    return found


def _session(folder: Path, options: ExportOptions, fed: Tensor) -> Callable[[Tensor], Tensor]:
    one = fed[:1].numpy()
    scope: dict[str, Any] = {"images": one, "pixels": one}
    exec(running(folder, options.input), scope)  # as above

    def logits(some: Tensor) -> Tensor:
        return torch.from_numpy(scope["session"].run(None, {input_name(options.input): some.numpy()})[0])

    return logits


def _difference(name: str, net: Callable[[Tensor], Tensor], inputs: Tensor, ours: Tensor, size: int) -> float:
    with torch.no_grad():
        theirs = torch.cat([net(some) for some in torch.split(inputs, size)])
    largest = float((theirs - ours).abs().max()) if theirs.shape == ours.shape else float("inf")
    if not largest <= LIMIT:  # nor nan
        raise ValueError(
            f"{name} gives other logits than the run's network: they differ by up to {largest:.2g} on "
            f"{len(ours)} images, more than {LIMIT:g} (logits up to {float(ours.abs().max()):.3g}); nothing was written"
        )
    return largest


def _shown(
    trained: TrainedModel, to: Path, options: ExportOptions, count: int, differences: dict[str, float]
) -> dict[str, Any]:
    model = trained.run.model
    python = {}
    if "safetensors" in options.format:
        python["safetensors"] = loading(model, trained.model, len(trained.classes), to)
        python["safetensors"] += f"\n{framing(model, to)}"
    if "onnx" in options.format:
        python["onnx"] = running(to, options.input)
    for name, value in differences.items():
        print(f"{name}: logits differ by at most {value:.1e} on {count} images", file=sys.stderr)
    for text in python.values():
        print(f"\n{text}", file=sys.stderr)
    files = sorted(path.name for path in to.glob("[!.]*"))
    return {"folder": str(to), "files": files, "images": count, "limit": LIMIT, "differences": differences,
            "python": python}  # fmt: skip
