"""The directory of an ensemble: ensemble.json, classes.txt, predictions/; for ``cls compare`` and ``cls report``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cls.evaluation.predictions import Predictions, read_parquet, write_parquet
from cls.runtime.files import sha256, write_whole
from cls.tracking.run_files import encode_classes, read_json

FILE = "ensemble.json"
SOUP = "soup.json"
"""In a directory with one network made from several: ``cls soup`` writes it."""
RULE = "mean of softmax"
TEXTS, NUMBERS = ("folder", "run", "sha256", "recipe", "backbone"), ("seed", "size", "accuracy", "gain", "low", "high")
"""What each member has on the page; ``gain`` is the ensemble's accuracy minus its own, low to high its interval."""

FACTS = {"rule": str, "loss_is": str, "views": list}


@dataclass(frozen=True)
class EnsembleRecord:
    """What :func:`write` has written; a damaged file is a ValueError that names it."""

    path: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """ensemble.json."""
        file = self.path / FILE
        found = read_json(file)
        members = found.get("members") if isinstance(found, dict) else None
        if not isinstance(members, list) or not members or not all(map(_is_member, members)):
            raise ValueError(f"{file} is damaged (its members are incomplete): write it again with cls evaluate --to")
        assert isinstance(found, dict)
        lacking = [key for key, kind in FACTS.items() if not isinstance(found.get(key), kind)]
        if lacking:
            raise ValueError(f"{file} is damaged (no {lacking[0]}): write it again with cls evaluate --to")
        return found

    @property
    def members(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.facts["members"]
        return found

    @cached_property
    def val(self) -> Predictions:
        return read_parquet(predictions_file(self.path, "val"))

    @cached_property
    def test(self) -> Predictions | None:
        file = predictions_file(self.path, "test")
        return read_parquet(file) if file.exists() else None


def _is_member(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    return all(isinstance(found.get(key), str) for key in TEXTS) and all(
        isinstance(found.get(key), int | float) for key in NUMBERS
    )


def is_ensemble(path: Path) -> bool:
    """Whether it holds an ensemble with its predictions; ``cls export`` writes an index of the same name without."""
    return (path / FILE).is_file() and (path / "predictions").is_dir()


def models_of(path: str) -> list[str]:
    """The trained models that a path names: itself, or the members of an ensemble's directory, as they were then.

    ValueError if one of those is missing or has other weights now.
    """
    index = Path(path) / FILE
    if not index.is_file():
        return [path]
    found = read_json(index)
    members = found.get("members") if isinstance(found, dict) else None
    rows: list[dict[str, Any]] = [row for row in members or [] if isinstance(row, dict)]
    stated = [(str(row.get("file", "")), str(row.get("sha256", ""))) for row in rows]
    if not stated or not all(name and digest for name, digest in stated):
        raise ValueError(f"{index} does not name its members' files: name the runs themselves")
    for name, digest in stated:
        file = Path(path) / name  # of an evaluation the name is absolute, of an export below the directory
        if not file.is_file() or sha256(file) != digest:
            problem = "has other weights than when" if file.is_file() else "does not exist any more, as when"
            raise ValueError(f"{file} {problem} {index} was written: name the runs themselves")
    return [str(Path(path) / name) for name, _ in stated]


MEAN, EXPORTS = "the mean of several runs", "an export of several runs"


def check_place(to: Path, own: str = "") -> None:
    """ValueError where the directory holds files that another command has written; ``own``: what may be replaced."""
    kind = ""
    if (to / "config.yaml").exists():
        kind = "a run"
    elif (to / SOUP).is_file():
        kind = "a soup"
    elif (to / FILE).is_file():
        kind = MEAN if is_ensemble(to) else EXPORTS
    if kind not in ("", own):
        raise ValueError(f"--to {to} holds {kind}, with which its files would be mixed: name another folder")


def made_of(path: Path) -> str:
    """What the predictions in a directory were made of, if not of one run; '' for a run."""
    if is_ensemble(path):
        return f"mean of {len(EnsembleRecord(path).members)} runs"
    if not (path / SOUP).is_file():
        return ""
    found = read_json(path / SOUP)
    kept = found.get("kept") if isinstance(found, dict) else None
    if not isinstance(kept, list) or not kept:
        raise ValueError(f"{path / SOUP} is damaged (it names no runs): write it again with cls soup --to")
    return f"soup of {len(kept)} runs"


def predictions_file(path: Path, name: str) -> Path:
    return path / "predictions" / f"{name}.parquet"


def write(to: Path, facts: Mapping[str, Any], found: Mapping[str, Predictions]) -> None:
    """``found``: the mean by split. ensemble.json comes last, so that it implies the others."""
    (to / FILE).unlink(missing_ok=True)  # of an earlier one, whose predictions are replaced now
    for name in ("val", "test"):
        predictions_file(to, name).unlink(missing_ok=True)
    for name, predictions in found.items():
        write_parquet(predictions_file(to, name), predictions)
    write_whole(to / "classes.txt", encode_classes(found["val"].classes))
    write_whole(to / FILE, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")
