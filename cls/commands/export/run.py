"""``cls export``: write to a temporary folder, load with timm or torchvision only, verify on real images, publish."""

import glob
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cls.commands.export.agreement import (
    LIMIT,
    Photos,
    Verified,
    agreement,
    as_files,
    logit_difference,
    most_similar,
    photos,
    predicted,
    sentence,
)
from cls.commands.export.card import license_of, model_card, require_record, save_weights
from cls.commands.export.hub import check_access, upload
from cls.commands.export.onnx import require_packages, write_graph
from cls.commands.export.reading import Code, applied, frame_of, onnx_code, torch_code
from cls.commands.export.snippets import input_name
from cls.commands.export.timm_config import config_json
from cls.commands.options import ExportOptions
from cls.config import View
from cls.data.sources import Rows, load_images
from cls.evaluation.ensemble_record import check_place
from cls.evaluation.predictions import Predictions
from cls.evaluation.trained_model import TrainedModel, load_trained_model
from cls.runtime.files import replacing
from cls.runtime.lock import Heartbeat, claim, in_use
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal

LOCK = "lock"
NEW_SECONDS = 5.0  # a temporary folder may be this old before its export has locked it


def export(path: str, to: Path, options: ExportOptions, stop: StopSignal) -> dict[str, Any]:
    """Write a run's best network to a folder and print the code that loads it; the JSON document of the command.

    ValueError, with nothing written, if a logit on real images differs by more than LIMIT.
    """
    if "onnx" in options.format:
        require_packages()
    if to.exists() and not to.is_dir():
        raise ValueError(f"--to {to} is a file; name a folder")
    check_output("to", to, folder=True)
    check_place(to)
    license = license_of(to, options.with_card)
    if options.push:
        check_access(options.push, options.public)
    trained = load_trained_model(path, "cpu", -1, stop)
    if trained.file.resolve().parent == to.resolve():
        raise ValueError(f"--to {to} holds the exported run's own weights: name another folder")
    if trained.world.size > 1:
        raise ValueError(
            f"{trained.world.size} processes were started, but cls export needs one: start it without a launcher"
        )
    record = require_record(trained) if options.with_card else None
    some = photos(trained, _rows(trained, options), options.count)
    with torch.no_grad():
        ours = torch.cat([trained.model(part) for part in torch.split(some.images, trained.run.train.eval_batch)])
    with aside_of(to) as aside:
        found = _write(trained, aside, options, some, ours)
        if record:
            text = model_card(trained, record, found, options.push, license)
            (aside / "README.md").write_text(text, encoding="utf-8")
        with writing("to", to):
            names = _publish(aside, to)
    document = _shown(to, len(some.images), found)
    if options.push:
        document["hub"] = upload(to, names, options.push, options.public)
        print(f"\n{document['hub']} ({'public' if options.public else 'private'})", file=sys.stderr)
    return document


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


def _publish(aside: Path, to: Path) -> list[str]:
    to.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.onnx"):
        (to / name).unlink(missing_ok=True)  # of an earlier export
    files = [file for file in aside.iterdir() if file.name != LOCK]
    for file in sorted(files, key=lambda file: file.name == "config.json"):
        with replacing(to / file.name) as place:
            os.replace(file, place)
    return [file.name for file in files]


def _rows(trained: TrainedModel, options: ExportOptions) -> Rows:
    if options.images:
        return load_images(options.images, options.in_column(trained.run.data))
    try:
        return trained.own_data().val
    except ValueError as error:
        raise ValueError(f"{error}; the export is verified on real images: name some with --images FOLDER") from error


def _write(trained: TrainedModel, aside: Path, options: ExportOptions, some: Photos, ours: Tensor) -> list[Verified]:
    """Write all files, run the code of each library on the photos."""
    run, model = trained.run, trained.model
    facts = config_json(run, trained.classes, trained.statistics)
    (aside / "config.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    data, views = run.data.evaluated, applied(run.augment.tta)
    frame, codes = frame_of(data, trained.statistics), list[Code]()
    if "safetensors" in options.format:
        copy = save_weights if options.with_card else _copy_weights
        copy(trained, aside / "model.safetensors")
        codes.append(torch_code(run.model, model, len(trained.classes), frame, views))
    if "onnx" in options.format:
        stated = facts["pretrained_cfg"] | {"label_names": facts["label_names"], "input": options.input}
        write_graph(aside / "model.onnx", model, trained.statistics, data.size, options.input, stated)
        codes.append(onnx_code(options.input, frame, views))
    known = predicted(trained, some.rows)
    with as_files(some.rows) as files:
        return [_verified(code, aside, options, some, ours, run.train.eval_batch, files, known) for code in codes]


def _copy_weights(trained: TrainedModel, to: Path) -> None:
    shutil.copyfile(trained.file, to)  # only cls predict reads its header


def _verified(code: Code, aside: Path, options: ExportOptions, some: Photos, ours: Tensor, size: int,
              files: list[Path], known: dict[tuple[View, ...], Predictions]) -> Verified:  # fmt: skip
    scope: dict[str, Any] = {}
    exec(code.load(aside), scope)  # the printed code itself: it imports and loads what another program does
    inputs, net = some.images, scope.get("model")
    if code.name == "onnxruntime":
        inputs = some.pixels if options.input == "uint8" else some.images
        net = _runner(scope["session"], input_name(options.input))
    assert net is not None
    logits = logit_difference(code.name, net, inputs, ours, batch_sizes(len(inputs), size))
    reading = most_similar(code, scope, aside, files, inputs)
    return Verified(code, reading, logits, agreement(scope["probabilities"], files, known))


def _runner(session: Any, name: str) -> Callable[[Tensor], Tensor]:
    def logits(some: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: some.numpy()})[0])

    return logits


def batch_sizes(count: int, most: int) -> list[int]:
    """1, 7, then ``most`` at a time: what is for any batch size is tried with several."""
    first = [1, min(7, count - 1)]
    whole, rest = divmod(count - sum(first), most)
    return [size for size in (*first, *[most] * whole, rest) if size]


def _shown(to: Path, count: int, found: Sequence[Verified]) -> dict[str, Any]:
    python = {}
    for one in found:
        kind = "onnx" if one.code.name == "onnxruntime" else "safetensors"
        python[kind] = one.code.text(to, one.reading)
        print(f"{one.code.name}: logits differ by at most {one.logits:.1e} on {count} images", file=sys.stderr)
        print(sentence(one.code.name, one.agreement), file=sys.stderr)
    for text in python.values():
        print(f"\n{text}", file=sys.stderr)
    return {
        "folder": str(to), "files": sorted(path.name for path in to.glob("[!.]*")), "images": count, "limit": LIMIT,
        "differences": {one.code.name: one.logits for one in found},
        "agreement": {one.code.name: one.agreement for one in found}, "python": python,
    }  # fmt: skip
