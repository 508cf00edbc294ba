"""The report page of a run: one HTML file that needs no network."""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from cls import __version__
from cls.config import to_yaml
from cls.evaluation.ensemble_record import EnsembleRecord
from cls.evaluation.predictions import Predictions
from cls.evaluation.report import sections
from cls.evaluation.report.charts import curves
from cls.evaluation.report.thumbnails import Pictures
from cls.evaluation.run_record import RunRecord
from cls.runtime.console import printable
from cls.runtime.files import write_whole
from cls.tracking import goodput


def write_page(record: RunRecord | EnsembleRecord, pictures: Pictures, to: Path) -> dict[str, Any]:
    """Write the page; returns the file's path, its size in bytes and the page's summary."""
    folder = files("cls.evaluation.report")
    words = document(record, pictures) if isinstance(record, RunRecord) else ensemble_document(record, pictures)
    script, style = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page.filters |= {"percent": sections.percent, "seconds": sections.seconds}
    template = page.from_string((folder / "report.html").read_text(encoding="utf-8"))
    data = template.render(words, script=script, style=style, script_hash=f"sha256-{digest}").encode()
    write_whole(to, data)
    return {"file": str(to), "bytes": len(data), "summary": dict(words["summary"])}


def document(record: RunRecord, pictures: Pictures) -> dict[str, Any]:
    """The values that the template shows: only texts, numbers, lists and dictionaries."""
    total = goodput.total(record.attempts)
    shown: dict[str, Any] = _without_secrets({
        "summary": sections.summary(record),
        "starts": record.starts,
        "changes": sections.changes(record.run),
        "note": pictures.note,
        "config": to_yaml(record.run),
    })  # fmt: skip
    shown |= {
        "title": record.path.resolve().name,
        "recipe": record.run.recipe,
        "state": sections.state(record),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "curves": curves(record.rows),
        "shown": sections.SHOWN,
        "views": sections.views(record),
        "time": list(total["seconds"].items()),
        "total": total,
        "attempts": record.attempts,
        "members": [],
    }
    training = record.data.get("train", {}).get("per_class", [])
    return shown | _of_validation(record.val and _printable(record.val), pictures, training)


def ensemble_document(record: EnsembleRecord, pictures: Pictures) -> dict[str, Any]:
    """The same of an ensemble, which has members where a run has curves, time and setup."""
    facts = {"summary": sections.ensemble_summary(record), "members": record.members, "note": pictures.note}
    shown: dict[str, Any] = _without_secrets(facts)
    shown |= {
        "title": record.path.resolve().name,
        "state": "",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "curves": [],
        "shown": sections.SHOWN,
        "views": None,
        "rule": record.facts["rule"],
    }
    return shown | _of_validation(_printable(record.val), pictures)


def _of_validation(val: Predictions | None, pictures: Pictures, training: Sequence[int] = ()) -> dict[str, Any]:
    if val is None:
        return dict.fromkeys(("headline", "calibration", "data")) | {"classes": [], "pairs": [], "wrong": []}
    return {
        "headline": sections.headline(val),
        "classes": sections.classes(val, training),
        "pairs": sections.pairs(val),
        "wrong": sections.wrong_images(val, pictures),
        "calibration": sections.reliability_diagram(val),
        "data": sections.script_data(val),
    }


def _printable(p: Predictions) -> Predictions:
    """With the names as the page shows them, without control characters."""
    return replace(p, classes=tuple(map(printable, p.classes)), ids=[printable(name) for name in p.ids])


def _without_secrets(found: Any) -> Any:
    """Mask keys in command lines and paths: those in this process's environment, and passwords in addresses."""
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
