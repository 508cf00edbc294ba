"""The sections of the report page, as values: what each says about a run."""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from cls import recipes
from cls.config import NO_VALIDATION, Run, diff, flat
from cls.evaluation import metrics
from cls.evaluation.ensemble_record import EnsembleRecord
from cls.evaluation.metrics import BINS, accuracy, calibration, confusion, per_class, wrong
from cls.evaluation.predictions import Predictions, readable
from cls.evaluation.report.charts import reliability
from cls.evaluation.report.thumbnails import Pictures
from cls.evaluation.run_record import RunRecord
from cls.evaluation.stats import mcnemar, wilson
from cls.models.build import count_parameters

LISTED = 10_000
"""Wrong images that are named at their cell of the confusion matrix; 60 bytes of page each."""
SHOWN = 24
"""Wrong images that are visible at first; the other thumbnails unfold."""
SPLITS = {"train": "training", "val": "validation"}


def percent(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else str(timedelta(seconds=round(value)))


def state(record: RunRecord) -> str:
    done = max((row["step"] for row in record.rows), default=0)
    if record.outcome == "done":
        return ""
    ended = f"ended as “{record.outcome.replace('_', ' ')}”" if record.outcome else "has not ended"
    return f"This run {ended}: what follows is its state after {done:,} steps."


def summary(record: RunRecord) -> list[tuple[str, str]]:
    run, rows = record.run, record.rows
    weights = run.model.weights + (f", sha256 {known[:16]}…" if (known := record.weights_sha256) else "")
    lines = [("recipe", run.recipe), ("backbone", run.model.backbone), ("weights", weights)]
    lines = [*_scores(record), *lines]
    if record.classes:
        parameters, trainable = count_parameters(run.model, len(record.classes))
        lines.append(("parameters", f"{parameters:,}, {trainable:,} of them trained"))
        lines.append(("classes", f"{len(record.classes):,}"))
    sizes = [(name, record.data[split]["images"]) for split, name in SPLITS.items() if split in record.data]
    sizes += [("test", len(record.test.ids))] if record.test else []
    lines.append(("images", ", ".join(f"{count:,} {name}" for name, count in sizes) or "not known"))
    lines.append(("data", f"{run.data.path}, {run.data.size} px"))
    steps, epoch = (max((row.get(key, 0) for row in rows), default=0) for key in ("step", "epoch"))
    lines.append(("trained", f"epoch {epoch:g} of {run.train.epochs}, {steps:,} steps of {run.train.batch} images"))
    return lines


def ensemble_summary(record: EnsembleRecord) -> list[tuple[str, str]]:
    members, views, meaning = record.members, record.facts["views"], record.facts["loss_is"]
    loss = meaning if math.isnan(record.val.loss) else f"{record.val.loss:.4f} ({meaning})"
    lines = [(name, loss if name == "loss" else text) for name, text in _figures("validation accuracy", record.val)]
    if record.test and (record.test.labels >= 0).any():
        lines += _figures("test accuracy", record.test)[:1]
    best = max(members, key=lambda row: float(row["accuracy"]))
    low, high = (f"{100 * best[key]:+.1f}" for key in ("low", "high"))
    lines.append(("gain over its best member", f"{100 * best['gain']:+.1f} points (95% interval {low} to {high})"))
    lines.append(("members", f"{len(members)} runs, {record.facts['rule']}"))
    lines.append(("networks", ", ".join(sorted({f"{row['backbone']} at {row['size']} px" for row in members}))))
    lines.append(("views", ", ".join(views) or "identity"))
    return [*lines, ("classes", f"{len(record.val.classes):,}")]


def _scores(record: RunRecord) -> list[tuple[str, str]]:
    if not record.run.data.validates:
        return [("validation", NO_VALIDATION), *_tested(record)]
    best, lines = record.best_row, []
    if record.val:
        lines = _figures("validation accuracy", record.val)
    elif best:
        lines.append(("best validation accuracy so far", percent(best["val/accuracy"], 2)))
    if best:
        why = " (lowest validation loss)" if record.run.train.best_on == "loss" else ""
        lines.append(("best epoch", f"{best['epoch']:g}, step {best['step']:,}{why}"))
    return lines + _tested(record)


def _tested(record: RunRecord) -> list[tuple[str, str]]:
    test = record.test
    return _figures("test accuracy", test)[:1] if test and (test.labels >= 0).any() else []


def headline(p: Predictions) -> dict[str, Any]:
    labelled = int((p.labels >= 0).sum())
    low, high = wilson(accuracy(p) if labelled else 0.0, labelled)
    return {"accuracy": accuracy(p), "low": low, "high": high, "images": labelled}


def _figures(name: str, p: Predictions) -> list[tuple[str, str]]:
    found, head = metrics.summary(p), headline(p)
    span = f"95% interval {percent(head['low'])} to {percent(head['high'])}, {head['images']:,} images"
    lines = [
        (name, f"{percent(found['accuracy'], 2)} ({span})"),
        ("top-5 accuracy", percent(found["top5"], 2)),
        ("macro-F1", f"{found['macro_f1']:.4f}"),
        ("loss", f"{found['loss']:.4f}"),
        ("calibration error", f"{percent(calibration(p).error)} ({BINS} bins)"),
    ]
    return [*lines, ("corrupt images", f"{found['corrupt']:,}, counted as wrong")] if found["corrupt"] else lines


def classes(p: Predictions, training: Sequence[int | None] = ()) -> list[dict[str, Any]]:
    """One row per class, the lowest recall first, those without images last; with the classes it is taken for.

    ``training``: the number of training images of each class; runs of an early version do not have it.
    """
    if len(training) != len(p.classes):
        training = [None] * len(p.classes)
    figures, counts = per_class(p), confusion(p)
    ranked = np.lexsort((-figures.support, figures.recall))  # nan, no images, is last
    rows = []
    for i in ranked.tolist():
        others = counts[i].copy()
        others[i] = 0
        taken = [(p.classes[j], int(others[j])) for j in np.argsort(-others, kind="stable")[:3] if others[j]]
        rows.append({
            "number": i, "name": p.classes[i], "images": int(figures.support[i]), "training": training[i],
            "recall": float(figures.recall[i]), "precision": float(figures.precision[i]), "f1": float(figures.f1[i]),
            "taken": taken,
        })  # fmt: skip
    return rows


def pairs(p: Predictions) -> list[dict[str, Any]]:
    """The ten most frequent confusions."""
    counts, support = confusion(p), per_class(p).support
    np.fill_diagonal(counts, 0)
    rows, columns = np.nonzero(counts)  # far fewer than there are cells
    places = np.argsort(-counts[rows, columns], kind="stable")[:10]
    return [
        {"true": p.classes[i], "predicted": p.classes[j], "count": int(counts[i, j]),
         "share": float(counts[i, j] / support[i])}
        for i, j in zip(rows[places].tolist(), columns[places].tolist(), strict=True)
    ]  # fmt: skip


def wrong_images(p: Predictions, pictures: Pictures) -> list[dict[str, Any]]:
    """The wrong images that have a thumbnail, or without any the first ones by name, most confident first."""
    rows = wrong(p)
    cards = []
    for place, row in enumerate(rows.tolist()):
        if row not in pictures.thumbs and (pictures.thumbs or place >= SHOWN):
            continue
        guess, (predicted, true) = int(p.probs[row].argmax()), pictures.neighbors.get(row, ([], []))
        cards.append({
            "place": place, "id": p.ids[row], "true": p.classes[p.labels[row]], "predicted": p.classes[guess],
            "probability": float(p.probs[row, guess]), "own": float(p.probs[row, p.labels[row]]),
            "picture": pictures.thumbs.get(row, ""), "heat": _heat(p, row, pictures),
            "neighbors": [(predicted, guess), (true, int(p.labels[row]))],
        })  # fmt: skip
    return cards


def _heat(p: Predictions, row: int, pictures: Pictures) -> list[dict[str, str]]:
    """The captions and overlays of an image; empty where it has none."""
    found = pictures.heat.get(row)
    if found is None:
        return []
    guess, true = p.classes[int(p.probs[row].argmax())], p.classes[p.labels[row]]
    shown = [{"kind": "guess", "why": "for", "what": guess, "picture": found.predicted},
             {"kind": "truth", "why": "for", "what": true, "picture": found.true}]  # fmt: skip
    attention = {"kind": "own", "why": "attention", "what": "", "picture": found.attention}
    return [*shown, attention] if found.attention else shown


def reliability_diagram(p: Predictions) -> dict[str, Any] | None:
    found = calibration(p)
    images = found.images.tolist()
    if not sum(images):
        return None
    shares = np.nan_to_num(found.accuracy).tolist()  # an empty bin is not drawn
    spans = [wilson(share, n) for share, n in zip(shares, images, strict=True)]
    return {"error": found.error, "bins": reliability(found, spans), "count": BINS}


def views(record: RunRecord) -> dict[str, Any] | None:
    """What the test-time views change on the validation images."""
    plain, averaged = record.val, record.val_tta
    if plain is None or averaged is None or plain.ids != averaged.ids:
        return None
    first, second = ((p.probs.argmax(axis=1) == p.labels) & readable(p) for p in (plain, averaged))
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return {
        "names": ", ".join(record.run.augment.tta),
        "plain": accuracy(plain), "averaged": accuracy(averaged), "gained": gained, "lost": lost,
        "p": mcnemar(first, second),
        "errors": (calibration(plain).error, calibration(averaged).error),
    }  # fmt: skip


def changes(run: Run) -> list[tuple[str, str, str]] | None:
    """Fields that differ from the recipe's default; None where the recipe is not known here."""
    try:
        usual = recipes.get(run.recipe)
    except ValueError:
        return None
    before, after = flat(usual), flat(run)
    names = [line.partition(":")[0] for line in diff(usual, run)]
    return [(name, _plain(before[name]), _plain(after[name])) for name in names]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"


def script_data(p: Predictions) -> dict[str, Any]:
    """What the page's script needs: cells as true, predicted, count; wrong images as true, predicted, both
    probabilities in thousandths, name.
    """
    counts = confusion(p)
    rows, columns = np.nonzero(counts)
    cells = np.stack([rows, columns, counts[rows, columns]], axis=1)
    listed = wrong(p)[:LISTED]
    own, guesses = p.labels[listed], p.probs[listed].argmax(axis=1)
    shares = [np.round(1000 * p.probs[listed, which]).astype(int).tolist() for which in (guesses, own)]
    return {
        "classes": list(p.classes),
        "cells": cells.ravel().tolist(),
        "support": per_class(p).support.tolist(),  # corrupt images count as wrong
        "wrong": list(zip(own.tolist(), guesses.tolist(), *shares, (p.ids[row] for row in listed), strict=True)),
        "unlisted": len(wrong(p)) - len(listed),
    }
