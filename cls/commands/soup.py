"""``cls soup``: the greedy average of several runs' weights, written only if it is better than the best of them."""

import copy
import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table
from safetensors import safe_open

from cls.commands.options import SoupOptions
from cls.data.dataset import EvalDataset
from cls.data.sources import Splits
from cls.evaluation.ensemble import Ensemble, load_ensemble, own_images
from cls.evaluation.ensemble_record import SOUP, check_place, predictions_file
from cls.evaluation.metrics import accuracy
from cls.evaluation.predictions import Predictions, readable, write_parquet
from cls.evaluation.soup import Score, State, average, difference, greedy, renew_norms, score
from cls.evaluation.stats import paired_difference
from cls.evaluation.trained_model import TrainedModel, weights_file
from cls.runtime.console import console, printable
from cls.runtime.files import replacing, sha256, write_whole
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.training.checkpoint import save_weights

COPIED = ("classes.txt", "data.json", "sizes.npz")
"""Of the best run: with them the soup's own images are checked as a run's are."""


class Ranked(NamedTuple):
    """The runs from the best one down, and what each predicts for the validation images."""

    members: list[TrainedModel]
    found: list[Predictions]
    splits: Splits
    """The images of the best one, training images included."""


def make_soup(paths: Sequence[str], to: Path, options: SoupOptions, stop: StopSignal) -> dict[str, Any]:
    """The document of the command: every run's figures, the trials, the soup's gain, and whether it was written."""
    if len(paths) < 2:
        raise ValueError("a soup needs two or more runs: cls soup RUN RUN --to FOLDER")
    _check_place(to, paths)
    models = load_ensemble(paths, options.device, options.workers, stop)
    if (size := models.world.size) > 1:
        raise ValueError(f"{size} processes were started, but cls soup needs one: start it without a launcher")
    first = models.members[0]
    for member in models.members[1:]:
        if text := difference(first, member):
            raise ValueError(f"{first.name} and {member.name} cannot be averaged: {text}")
    ranked = _ranked(models)
    frozen = sorted(set.intersection(*(set(member.run.model.in_eval_mode) for member in models.members)))
    best = dataclasses.replace(ranked.members[0], model=copy.deepcopy(ranked.members[0].model))

    def judged(state: State) -> Predictions:
        best.model.load_state_dict(state)
        renew_norms(best, ranked.splits, frozen, options.norm_images)
        return best.predict(EvalDataset(ranked.splits.val, (), best.run))

    states = [member.model.state_dict() for member in ranked.members]
    kept, trials = greedy(states, score(ranked.found[0]), lambda state: score(judged(state)))
    soup = judged(average([states[i] for i in kept])) if len(kept) > 1 else ranked.found[0]
    document = _document(ranked, kept, trials, soup, options)
    document["written"] = len(kept) > 1 and score(soup) > score(ranked.found[0])
    if document["written"]:
        with writing("to", to):
            _write(to, ranked.members[0], best, soup, document)
    _print(document, to)
    return document


def _check_place(to: Path, paths: Sequence[str]) -> None:
    """Before the work: ValueError where nothing can be written, or where it would replace a run's weights."""
    check_output("to", to, folder=True)
    place = (to / "best" / "model.safetensors").resolve()
    check_place(to, "a soup")
    if any(weights_file(path).resolve() == place for path in paths):
        raise ValueError(f"--to {to} holds the weights of one of the runs: name another folder")


def _ranked(models: Ensemble) -> Ranked:
    """Each member is judged on its own framing; a tie of accuracies goes to the lower loss."""
    splits = own_images(models, "; a soup needs the runs' own validation images")
    _, found = models.predict([
        EvalDataset(own.val, (), member.run) for own, member in zip(splits, models.members, strict=True)
    ])  # fmt: skip
    order = sorted(range(len(found)), key=lambda i: score(found[i]), reverse=True)
    best = models.members[order[0]]
    own = best.own_data("; a soup renews BatchNorm statistics on training images", ("train", "val"))
    return Ranked([models.members[i] for i in order], [found[i] for i in order], own)


def _document(
    ranked: Ranked, kept: Sequence[int], trials: Sequence[Score], soup: Predictions, options: SoupOptions
) -> dict[str, Any]:
    members = [
        {
            "run": member.name, "sha256": sha256(member.file), "seed": member.run.seed, "accuracy": accuracy(p),
            "loss": _number(-score(p).minus_loss), "kept": place in kept,
            "soup_accuracy": trials[place].accuracy, "soup_loss": _number(-trials[place].minus_loss),
        }
        for place, (member, p) in enumerate(zip(ranked.members, ranked.found, strict=True))
    ]  # fmt: skip
    before, after = (
        ((p.probs.argmax(axis=1) == p.labels) & readable(p))[None] for p in (ranked.found[0], soup)
    )  # fmt: skip
    gain = paired_difference(before, after)
    return {
        "members": members,
        "kept": [ranked.members[place].name for place in kept],
        "accuracy": accuracy(soup),
        "loss": _number(-score(soup).minus_loss),
        "images": len(soup.ids),
        "gain": gain.difference,
        "low": gain.low,
        "high": gain.high,
        "norm_images": options.norm_images,
        "judged": "chosen and judged on the same validation images: optimistic",
    }


def _number(loss: float) -> float | None:
    """JSON has no infinity, the loss of a probability of 0."""
    return loss if math.isfinite(loss) else None


def _write(to: Path, base: TrainedModel, soup: TrainedModel, found: Predictions, document: dict[str, Any]) -> None:
    """The network with the header of the best run and its predictions; soup.json is last: it implies the others."""
    (to / "best").mkdir(parents=True, exist_ok=True)
    (to / SOUP).unlink(missing_ok=True)
    with safe_open(base.file, framework="pt") as file:
        header = dict(file.metadata())
    header.pop("step", None)  # of the best run: a soup has none
    tensors = {name: value.cpu().contiguous() for name, value in soup.model.state_dict().items()}
    save_weights(to / "best" / "model.safetensors", tensors, header)
    write_parquet(predictions_file(to, "val"), found)
    for name in COPIED:
        (to / name).unlink(missing_ok=True)
        if (base.folder / name).is_file():
            with replacing(to / name) as aside:
                shutil.copyfile(base.folder / name, aside)
    write_whole(to / SOUP, json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")


def _print(document: dict[str, Any], to: Path) -> None:
    table = Table("run, the best first", "accuracy", "loss", "soup with it", "loss", "", box=None)
    for row in document["members"]:
        figures = [row[key] for key in ("accuracy", "loss", "soup_accuracy", "soup_loss")]
        cells = ["inf" if value is None else f"{value:.4f}" for value in figures]
        table.add_row(escape(printable(row["run"])), *cells, "kept" if row["kept"] else "left out")
    console.print(table)
    gain, low, high = (f"{100 * document[key]:+.1f}" for key in ("gain", "low", "high"))
    text = "no soup of these runs is better than the best of them on validation: nothing was written"
    if document["written"]:
        text = f"{to}: soup of {len(document['kept'])} runs, accuracy {document['accuracy']:.4f}, {gain} points "
        text += f"against the best run (95 % interval {low} to {high}); {document['judged']}"
    print(text, file=sys.stderr)
