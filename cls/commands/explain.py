"""``cls explain``: one PNG with a row for each image: what the network sees, and the places that speak for a class."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cls.commands.contact_sheet import MapRow, end, write_maps
from cls.commands.options import ExplainOptions
from cls.commands.predict import read_list
from cls.data.readers import Images, images_of
from cls.data.sources import load_given
from cls.data.split import normal
from cls.evaluation.ensemble_record import models_of
from cls.evaluation.heat_maps import Explained, Heat, enlarged, explain, overlay
from cls.evaluation.plots import short
from cls.evaluation.trained_model import TrainedModel, load_trained_model
from cls.runtime.console import printable
from cls.runtime.exit import DataError
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal
from cls.transforms.jpeg import Pixels

SIDE = 224
"""Of each image in the picture, pixels."""


def explain_images(
    runs: Sequence[str], paths: Sequence[str], options: ExplainOptions, stop: StopSignal
) -> dict[str, Any]:
    """Draw the first ``options.count`` images; the document has the classes and probabilities of each.

    DataError if none of them can be read.
    """
    paths = read_list() if list(paths) == ["-"] else paths
    if not paths:
        raise ValueError("there is nothing to explain: name images after the run")
    models = [model for run in runs for model in models_of(run)]
    if len(models) > 1:
        raise ValueError(f"a heat map is of one network, found {len(models)} ({', '.join(models)}): explain each alone")
    trained = load_trained_model(models[0], options.device, 0, stop)
    if (size := trained.world.size) > 1:
        raise ValueError(f"{size} processes were started, but cls explain needs one: start it without a launcher")
    target = _number(options.target, trained.classes)
    images = images_of(load_given(paths, options.in_column(trained.run.data)))
    rows = range(min(len(images), options.count))
    folder = Path(paths[0] if len(paths) == 1 and Path(paths[0]).is_dir() else "")
    labels = [_label(folder / images.name(row), trained.classes) if target < 0 else target for row in rows]
    found, corrupt = explain(trained, images, rows, labels)
    for row, why in corrupt.items():
        _say(f"{images.name(row)} is left out: {why}")
    if not found:
        raise DataError(f"none of {len(rows)} images could be read: nothing was drawn")
    word = "target" if options.target else "folder"
    drawn = [_row(images.name(row), one, labels[row], word, trained) for row, one in found.items()]
    with writing("to", options.to):
        write_maps(Path(options.to), drawn, _title(trained, max(map(len, drawn))))
    left = len(images) - len(rows)
    _report(trained, len(drawn), left, options)
    return {
        "file": options.to, "images": [_facts(images, row, one, labels[row], trained) for row, one in found.items()],
        "corrupt": [{"id": images.name(row), "error": why} for row, why in corrupt.items()], "left_out": left,
    }  # fmt: skip


def _number(name: str, classes: Sequence[str]) -> int:
    """Of the class ``--target`` names; -1 for ''."""
    known = {normal(one): number for number, one in enumerate(classes)}
    if name and normal(name) not in known:
        near = difflib.get_close_matches(normal(name), known, 3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {len(classes)}, such as "
        listed = "" if near else ", ".join(map(repr, classes[:5]))
        raise ValueError(printable(f"--target {name!r} is none of the run's classes: {hint}{listed}"))
    return known.get(normal(name), -1)


def _label(place: Path, classes: Sequence[str]) -> int:
    """The class that the folder of the image is named after; -1 where it is none."""
    folder = normal(place.parent.name)
    return next((number for number, name in enumerate(classes) if normal(name) == folder), -1)


def _row(name: str, one: Explained, label: int, word: str, trained: TrainedModel) -> MapRow:
    """The image, the predicted class, CBAM, and last the other class: places are the same in all lines."""
    classes, guess = trained.classes, int(one.probs.argmax())
    same = f" (its {word})" if label == guess else ""
    shown = [(end(name, 34), enlarged(one.pixels, SIDE)),
             _cell(classes[guess], one.probs[guess], same, one, one.predicted)]  # fmt: skip
    if one.attention is not None:
        low, high = one.factors
        shown.append((f"CBAM, {low:.2f} to {high:.2f}", overlay(one.pixels, one.attention, SIDE)))
    if label not in (-1, guess):
        shown.append(_cell(f"{word}: {classes[label]}", one.probs[label], "", one, one.labelled))
    return shown


def _cell(name: str, probability: float, after: str, one: Explained, heat: Heat) -> tuple[str, Pixels]:
    nowhere = "" if heat.any() else "\nno place raises it"
    return f"{short(name, 30)} {probability:.3f}{after}{nowhere}", overlay(one.pixels, heat, SIDE)


def _facts(images: Images, row: int, one: Explained, label: int, trained: TrainedModel) -> dict[str, Any]:
    guess = int(one.probs.argmax())
    facts = {"id": images.name(row), "predicted": trained.classes[guess], "probability": float(one.probs[guess])}
    if label >= 0:
        facts |= {"target": trained.classes[label], "target_probability": float(one.probs[label])}
    return facts


def _title(trained: TrainedModel, columns: int) -> str:
    """Not wider than so many images beside each other."""
    return f"{end(trained.name, 25 * columns - 33)}: Grad-CAM, plain view of {trained.run.data.evaluated.size} px"


def _report(trained: TrainedModel, drawn: int, left: int, options: ExplainOptions) -> None:
    _say(f"{options.to}: {drawn} images")
    if left:
        _say(f"{left:,} more images were left out: raise --count (at most 100), or name the images")
    if views := [view for view in trained.run.augment.tta if view != "identity"]:
        _say(f"these are probabilities of the plain view; cls predict averages it with {', '.join(views)}")


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
