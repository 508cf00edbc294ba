"""The small files of a run directory. A damaged one is a ValueError of one line that names it."""

import json
from pathlib import Path
from typing import Any

from cls.config import Run, from_yaml
from cls.validate import check

AGAIN = "copy it from where it is whole, or use another run directory"


def read_text(path: Path) -> str:
    """ValueError where the file is missing, is not readable or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged (byte {error.start} is not UTF-8): {AGAIN}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {AGAIN}") from None


def read_json(path: Path) -> Any:
    """ValueError as :func:`read_text`, and where the text is not JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path} is damaged (nested too deeply): {AGAIN}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged (not JSON: {error}): {AGAIN}") from None


def read_run(path: Path) -> Run:
    """The configuration in a config.yaml; ValueError naming the file, and the field where one is wrong."""
    text = read_text(path)
    try:
        run = from_yaml(text)
        check(run)
        return run
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_run_directory(folder: Path) -> Run:
    """The configuration of a run directory; ValueError where ``folder`` is none."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is not a run directory: it has no config.yaml")
    return read_run(folder / "config.yaml")


def read_data(folder: Path) -> dict[str, dict[str, Any]]:
    """data.json: "images" and more by split; empty for a run that has not read its images yet."""
    path = folder / "data.json"
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or "train" not in found or not all(map(_is_split, found.values())):
        raise ValueError(f"{path} is damaged (no number of images for each split): {AGAIN}")
    return found


def _is_split(facts: Any) -> bool:
    """Whether this is what data.json says of a split: images, and what the run knows them by."""
    if not isinstance(facts, dict) or type(facts.get("images")) is not int or facts["images"] < 1:
        return False
    tables = facts.get("tables", [])
    named = isinstance(tables, list) and all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tables)
    return named and all(isinstance(facts.get(key, ""), str) for key in ("sha256", "contents", "ids"))


def read_outcome(folder: Path) -> str:
    """The outcome in exit.json; '' where there is none that can be read."""
    try:
        record = read_json(folder / "exit.json")
    except ValueError:
        return ""
    found = record.get("outcome") if isinstance(record, dict) else None
    return found if isinstance(found, str) else ""
