"""From a run's material to what its page says, and the page itself."""

import base64
import hashlib
import math
import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cls import __version__, recipes
from cls.config import Run, diff, flat, to_yaml
from cls.evaluation.metrics import BINS, accuracy, calibration, confusion, per_class, summary, wrong
from cls.evaluation.predictions import Predictions, readable
from cls.evaluation.report.charts import curves, reliability
from cls.evaluation.report.run_record import RunRecord
from cls.evaluation.report.thumbnails import Pictures
from cls.evaluation.stats import mcnemar, wilson
from cls.models.build import count_parameters
from cls.runtime.console import printable
from cls.runtime.files import write_whole
from cls.tracking import goodput

LISTED = 10_000
"""Wrong images that are named at their cell of the confusion matrix; 60 bytes of page each."""
SHOWN = 24
"""Wrong images in sight; the other thumbnails unfold."""


def write_page(material: RunRecord, pictures: Pictures, to: Path) -> dict[str, Any]:
    """Write the page; gives the size of the file and what the summary says."""
    folder, words = files("cls.evaluation.report"), document(material, pictures)
    script, style = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page.filters |= {"percent": percent, "seconds": seconds}
    template = page.from_string((folder / "report.html").read_text(encoding="utf-8"))
    text = template.render(words, script=script, style=style, script_hash=f"sha256-{own}")
    data = text.encode()
    write_whole(to, data)
    return {"file": str(to), "bytes": len(data), "summary": dict(words["summary"])}


def document(material: RunRecord, pictures: Pictures) -> dict[str, Any]:
    """What the template lays out: only texts, numbers, lists and dictionaries."""
    val, total = material.val and _printable(material.val), goodput.total(material.attempts)
    about = {
        "summary": _summary(material),
        "starts": material.starts,
        "changes": _changes(material.run),
        "note": pictures.note,
        "config": to_yaml(material.run),
    }
    shown: dict[str, Any] = _without_secrets(about)
    return shown | {
        "headline": _headline(val) if val else None,
        "title": material.folder.resolve().name,
        "recipe": material.run.recipe,
        "state": _state(material),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "curves": curves(material.rows),
        "classes": _classes(val) if val else [],
        "pairs": _pairs(val) if val else [],
        "wrong": _wrong(val, pictures) if val else [],
        "shown": SHOWN,
        "calibration": _calibration(val) if val else None,
        "views": _views(material),
        "time": [(part, total["seconds"][part]) for part in goodput.PARTS],
        "total": total,
        "attempts": material.attempts,
        "data": _data(val) if val else None,
    }


def _printable(p: Predictions) -> Predictions:
    """Names as the page shows them, without control characters."""
    return replace(p, classes=tuple(map(printable, p.classes)), ids=[printable(name) for name in p.ids])


def percent(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}%"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else str(timedelta(seconds=round(value)))


def _state(material: RunRecord) -> str:
    done = max((row["step"] for row in material.rows), default=0)
    if material.outcome == "done":
        return ""
    ended = f"ended as “{material.outcome.replace('_', ' ')}”" if material.outcome else "has not ended"
    return f"This run {ended}: what follows is its state after {done:,} steps."


def _summary(material: RunRecord) -> list[tuple[str, str]]:
    run, rows = material.run, material.rows
    lines = [("recipe", run.recipe), ("backbone", f"{run.model.backbone}, weights {run.model.weights}")]
    lines = [*_scores(material), *lines]
    if material.classes:
        parameters, trainable = count_parameters(run.model, len(material.classes))
        lines.append(("parameters", f"{parameters:,}, {trainable:,} of them trained"))
        lines.append(("classes", f"{len(material.classes):,}"))
    sizes = [(name, material.counts.get(split)) for name, split in (("training", "train"), ("validation", "val"))]
    sizes += [("test", len(material.test.ids))] if material.test else []
    lines.append(("images", ", ".join(f"{count:,} {name}" for name, count in sizes if count) or "not known"))
    lines.append(("data", f"{run.data.path}, {run.data.size} px"))
    steps, epoch = (max((row.get(key, 0) for row in rows), default=0) for key in ("step", "epoch"))
    lines.append(("trained", f"epoch {epoch:g} of {run.train.epochs}, {steps:,} steps of {run.train.batch} images"))
    return lines


def _scores(material: RunRecord) -> list[tuple[str, str]]:
    scored = [row for row in material.rows if "val/accuracy" in row]
    best = max(scored, key=lambda row: float(row["val/accuracy"]), default=None)  # the first of equals, as the run does
    lines = []
    if material.val:
        lines = _figures("validation accuracy", material.val)
    elif best:
        lines.append(("best validation accuracy so far", percent(best["val/accuracy"], 2)))
    if best:
        lines.append(("best epoch", f"{best['epoch']:g}, step {best['step']:,}"))
    if material.test and (material.test.labels >= 0).any():
        lines += _figures("test accuracy", material.test)[:1]
    return lines


def _headline(p: Predictions) -> dict[str, Any]:
    labelled = int((p.labels >= 0).sum())
    low, high = wilson(accuracy(p) if labelled else 0.0, labelled)
    return {"accuracy": accuracy(p), "low": low, "high": high, "images": labelled}


def _figures(name: str, p: Predictions) -> list[tuple[str, str]]:
    found, head = summary(p), _headline(p)
    span = f"95% interval {percent(head['low'])} to {percent(head['high'])}, {head['images']:,} images"
    lines = [
        (name, f"{percent(found['accuracy'], 2)} ({span})"),
        ("top-5 accuracy", percent(found["top5"], 2)),
        ("macro-F1", f"{found['macro_f1']:.4f}"),
        ("loss", f"{found['loss']:.4f}"),
        ("calibration error", f"{percent(calibration(p).error)} ({BINS} bins)"),
    ]
    return [*lines, ("broken images", f"{found['broken']:,}, counted as wrong")] if found["broken"] else lines


def _classes(p: Predictions) -> list[dict[str, Any]]:
    """One row per class, the worst first and those without images last, with what it is taken for."""
    figures, counts = per_class(p), confusion(p)
    ranked = np.lexsort((-figures.support, figures.recall))  # nan, no images, is last
    rows = []
    for i in ranked.tolist():
        others = counts[i].copy()
        others[i] = 0
        taken = [(p.classes[j], int(others[j])) for j in np.argsort(-others, kind="stable")[:3] if others[j]]
        rows.append({
            "number": i, "name": p.classes[i], "images": int(figures.support[i]), "recall": float(figures.recall[i]),
            "precision": float(figures.precision[i]), "f1": float(figures.f1[i]), "taken": taken,
        })  # fmt: skip
    return rows


def _pairs(p: Predictions) -> list[dict[str, Any]]:
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


def _wrong(p: Predictions, pictures: Pictures) -> list[dict[str, Any]]:
    """The wrong images that have a thumbnail, or without any the first ones by name, most confident first."""
    rows = wrong(p)
    cards = []
    for place, row in enumerate(rows.tolist()):
        if row not in pictures.thumbs and (pictures.thumbs or place >= SHOWN):
            continue
        guess, (predicted, true) = int(p.probs[row].argmax()), pictures.near.get(row, ([], []))
        cards.append({
            "place": place, "id": p.ids[row], "true": p.classes[p.labels[row]], "predicted": p.classes[guess],
            "probability": float(p.probs[row, guess]), "own": float(p.probs[row, p.labels[row]]),
            "picture": pictures.thumbs.get(row, ""), "near": [(predicted, guess), (true, int(p.labels[row]))],
        })  # fmt: skip
    return cards


def _calibration(p: Predictions) -> dict[str, Any] | None:
    found = calibration(p)
    images = found.images.tolist()
    if not sum(images):
        return None
    shares = np.nan_to_num(found.accuracy).tolist()  # an empty bin is not drawn
    spans = [wilson(share, n) for share, n in zip(shares, images, strict=True)]
    return {"error": found.error, "bins": reliability(found, spans), "count": BINS}


def _views(material: RunRecord) -> dict[str, Any] | None:
    """What the test-time views change on the validation images."""
    plain, views = material.val, material.views
    if plain is None or views is None or plain.ids != views.ids:
        return None
    first, second = ((p.probs.argmax(axis=1) == p.labels) & readable(p) for p in (plain, views))
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return {
        "names": ", ".join(material.run.augment.tta),
        "plain": accuracy(plain), "averaged": accuracy(views), "gained": gained, "lost": lost,
        "p": mcnemar(first, second),
        "errors": (calibration(plain).error, calibration(views).error),
    }  # fmt: skip


def _changes(run: Run) -> list[tuple[str, str, str]] | None:
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


def _data(p: Predictions) -> dict[str, Any]:
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
        "support": per_class(p).support.tolist(),  # broken images count as wrong
        "wrong": list(zip(own.tolist(), guesses.tolist(), *shares, (p.ids[row] for row in listed), strict=True)),
        "unlisted": len(wrong(p)) - len(listed),
    }


def _without_secrets(found: Any) -> Any:
    """A command line or a path may hold a key: those that this process knows, and passwords in addresses, go."""
    if isinstance(found, dict):
        return {key: _without_secrets(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(_without_secrets, found))
    if not isinstance(found, str):
        return found
    text = re.sub(r"://[^/\s@\"'<>]+@", "://***@", found)
    for name, value in os.environ.items():
        if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)$", name) and len(value) >= 8:
            text = text.replace(value, f"[{name}]")
    return text
