"""``cls evaluate``: figures of a run's best weights on labelled images, or of several runs as one."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from cls.commands.options import EvaluateOptions, views_of
from cls.data.dataset import EvalDataset
from cls.data.sources import Rows, Splits, labels_of, load_labelled
from cls.evaluation import ensemble_record
from cls.evaluation.ensemble import Ensemble, load_ensemble, other_images, own_images
from cls.evaluation.metrics import accuracy, per_class, summary
from cls.evaluation.predictions import Predictions, readable
from cls.evaluation.stats import paired_difference, wilson
from cls.runtime.console import console, printable
from cls.runtime.files import sha256
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.tracking.seen_images import seen_by


def evaluate_images(
    runs: Sequence[str], images: str, options: EvaluateOptions, stop: StopSignal
) -> dict[str, Any] | None:
    """Figures on labelled images: another folder's, or the validation split of the runs' own data ('').

    Of the former, "trained_on" is how many a run was trained on; None where its images are not here any more.

    The latter must still be what each run was trained on (:func:`cls.tracking.run_data.run_data`).
    """
    _check_place(runs, images, options.to)
    models = load_ensemble(runs, options.device, options.workers, stop)
    splits = [] if images else models.world.on_all_ranks(lambda: own_images(models, _advice(models)))
    rows = [own.val for own in splits] or models.world.on_all_ranks(lambda: _labelled(models, images, options))
    views = views_of(options.tta)
    val, each = models.predict([EvalDataset(own, views, m.run) for own, m in zip(rows, models.members, strict=True)])
    test = _predict_test(models, splits) if options.to else {}
    if not models.world.main:
        return None
    document = _figures(val) | (_of_members(models, val, each) if len(each) > 1 else {})
    if images:
        document["trained_on"] = _trained_on(models, rows)
    if options.to:
        facts = {key: document[key] for key in ("rule", "members", "accuracy", "loss", "loss_is")}
        with writing("to", options.to):
            ensemble_record.write(Path(options.to), facts | {"views": list(views)}, {"val": val, **test})
        print(f"{options.to}: cls compare and cls report take it like a run", file=sys.stderr)
    _print(document)
    return document


def _check_place(runs: Sequence[str], images: str, to: str) -> None:
    """Before the work: ValueError where --to has no meaning or cannot be written."""
    if to and (len(runs) == 1 or images):
        raise ValueError("--to is for several runs on their own images: cls evaluate RUN RUN --to FOLDER")
    check_output("to", to, folder=True)
    if to:
        ensemble_record.check_place(Path(to), ensemble_record.MEAN)


def _advice(models: Ensemble) -> str:
    names = [member.name for member in models.members]
    return f"; to evaluate labelled images that lie elsewhere: {shlex.join(['cls', 'evaluate', *names])} FOLDER"


def _labelled(models: Ensemble, images: str, options: EvaluateOptions) -> list[Rows]:
    """The images for each member, with labels in its numbers; read once where members agree on how."""
    known: dict[Any, Rows] = {}
    found: list[Rows] = []
    for member in models.members:
        data = options.in_column(member.run.data.labelled_as(options.data(images)))
        key = (member.classes, data.label_column, data.image_column)
        known[key] = known[key] if key in known else load_labelled(images, member.classes, data)
        found.append(known[key])
        if text := other_images(found[0], found[-1], models.classes, member.classes):
            raise ValueError(f"{images} is other images for {member.name} than for {models.members[0].name} ({text})")
    return found


def _trained_on(models: Ensemble, rows: Sequence[Rows]) -> int | None:
    """Of how many of the images a member was trained on, with a line about it; None where that is not known."""
    seen, known = np.zeros(len(rows[0]), dtype=bool), True
    for member, own in zip(models.members, rows, strict=True):
        found = seen_by(member.run, member.folder, own)
        if found is None:
            known = False
            print(f"whether {member.name} has seen some of these in training is not known: its own images are not here",
                  file=sys.stderr)  # fmt: skip
            continue
        if not found.any():
            continue
        seen |= found
        text = f"{member.name} was trained on {found.sum():,} of these {len(own):,} images: figures of seen images are"
        own_images = f" (on those that validated it: {shlex.join(['cls', 'evaluate', member.name])})"
        print(f"{text} too good{own_images if member.run.data.validates else ''}", file=sys.stderr)
    return int(seen.sum()) if known else None


def _predict_test(models: Ensemble, splits: Sequence[Splits]) -> dict[str, Predictions]:
    """The mean on the runs' labelled test images, each member in its recipe's views as in its run; else nothing."""
    tests = [own.test for own in splits if own.test is not None and (labels_of(own.test) >= 0).any()]
    if len(tests) < len(splits):
        return {}
    pairs = list(zip(tests, models.members, strict=True))
    if any(other_images(tests[0], test, models.classes, member.classes) for test, member in pairs):
        return {}
    mean, _ = models.predict([EvalDataset(test, member.run.augment.tta, member.run) for test, member in pairs])
    return {"test": mean}


def _figures(found: Predictions) -> dict[str, Any]:
    classes = per_class(found)
    columns = (found.classes, classes.support, classes.recall, classes.precision, classes.f1)
    document: dict[str, Any] = dict(summary(found))
    document["accuracy_low"], document["accuracy_high"] = wilson(document["accuracy"], int((found.labels >= 0).sum()))
    document["classes"] = {
        name: {"images": int(n), "recall": float(r), "precision": float(p), "f1": float(f)}
        for name, n, r, p, f in zip(*columns, strict=True)
    }
    return document


def _of_members(models: Ensemble, mean: Predictions, each: Sequence[Predictions]) -> dict[str, Any]:
    """What each member does alone, what the mean gains over it on the same images, and what the loss is."""
    labelled = mean.labels >= 0
    first, *others = [
        ((p.probs.argmax(axis=1) == p.labels) & readable(p))[None, labelled] for p in (mean, *each)
    ]  # fmt: skip
    members = []
    for member, own, right in zip(models.members, each, others, strict=True):
        gain = paired_difference(right, first)
        run, file = member.run, member.file
        members.append({
            "run": member.name, "folder": str(member.folder.resolve()), "file": str(file.resolve()),
            "sha256": sha256(file), "recipe": run.recipe, "seed": run.seed, "backbone": run.model.backbone,
            "size": run.data.evaluated.size, "accuracy": accuracy(own),
            "gain": gain.difference, "low": gain.low, "high": gain.high,
        })  # fmt: skip
    if models.scored:
        return {"rule": ensemble_record.RULE, "members": members, "loss_is": "mean of -log(mean probability)"}
    why = "none, since a member was trained with optim.loss mse"
    return {"rule": ensemble_record.RULE, "members": members, "loss": None, "loss_is": why}


def _print(document: dict[str, Any]) -> None:
    """The figures, the members and the ten classes of the lowest recall, on standard error."""
    for name in ("accuracy", "top5", "macro_f1", "loss", "images", "corrupt"):
        value = document[name]
        text = "none" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")
        if name == "accuracy":
            text += f" ({document['accuracy_low']:.4f} to {document['accuracy_high']:.4f}, 95 % interval)"
        print(f"{name:<10} {text}", file=sys.stderr)
    if "members" in document:
        members = Table("member", "accuracy", "gain of the mean, points", "95 % interval", box=None)
        for row in document["members"]:
            gain, *ends = (f"{100 * row[key]:+.1f}" for key in ("gain", "low", "high"))
            members.add_row(escape(printable(row["run"])), f"{row['accuracy']:.4f}", gain, " to ".join(ends))
        console.print(f"loss: {document['loss_is']}", members, sep="\n", soft_wrap=True)
    table = Table("class", "images", "recall", "95 % interval", "precision", "f1", box=None)
    ranked = sorted(document["classes"].items(), key=lambda item: (item[1]["recall"], item[0]))
    for name, figure in [item for item in ranked if item[1]["images"]][:10]:
        low, high = wilson(figure["recall"], figure["images"])
        recall, precision, f1 = (f"{figure[key]:.3f}" for key in ("recall", "precision", "f1"))
        interval = f"{low:.3f} to {high:.3f}"
        table.add_row(escape(printable(name)), str(figure["images"]), recall, interval, precision, f1)
    console.print("worst classes:", table, sep="\n")
