"""The small files of a run directory. A damaged one is a ValueError of one line that names it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from cls.config import RUNTIME_FIELDS, Augment, Run, from_yaml
from cls.validate import check

AGAIN = "restore it from a backup, or use a different run directory"


def read_text(path: Path) -> str:
    """ValueError where the file is missing, is not readable or is not UTF-8."""
    try:
        return path.read_bytes().decode()
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


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Each JSON line with its place, for messages; nothing without a file. A last line cut short by a crash is skipped.

    ValueError for a file that cannot be read, and for a line that is not JSON.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        place = f"{path}: line {number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is not JSON ({error}); remove that line") from None


def read_run(path: Path) -> Run:
    """The configuration in a config.yaml; ValueError naming the file, and the field where one is wrong."""
    text = read_text(path)
    try:
        run = from_yaml(text)
        check(run)
        return run
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_run_directory(out: Path) -> Run:
    """The configuration of a run directory; ValueError where ``out`` is none."""
    if not (out / "config.yaml").is_file():
        raise ValueError(f"{out} is not a run directory: it has no config.yaml")
    return read_run(out / "config.yaml")


def names_model(path: str) -> bool:
    """Whether a path means a trained model, not images: weights, or a directory of a started run, soup or ensemble."""
    known = ("best/model.safetensors", "events.jsonl", "ensemble.json")
    return path.endswith(".safetensors") or any((Path(path) / name).is_file() for name in known)


def has_checkpoint(out: Path) -> bool:
    """Whether a run resumes from a checkpoint: it starts over only if there is none."""
    return any((out / "checkpoints").glob("step-*"))


def leading(paths: Sequence[str]) -> int:
    """How many of the first paths mean trained models; the first one counts in any case."""
    return min(len(paths), 1 + sum(1 for _ in takewhile(names_model, paths[1:])))


def models_first(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The leading paths that mean trained models, the first one in any case, and the images that follow.

    ValueError for a run directory after images.
    """
    models, images = list(paths[: leading(paths)]), list(paths[leading(paths) :])
    if late := [path for path in images if names_model(path)]:
        raise ValueError(f"{late[0]} is a trained model, but follows the images {images[0]}: name all runs first")
    return models, images


def without_seed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What runs have in common that differ in the seed only, by dotted name: all but the seed and RUNTIME_FIELDS.

    train.max_steps counts: a run cut short is not another seed of it.
    """
    left_out = tuple(field for field in ("seed", *RUNTIME_FIELDS) if field != "train.max_steps")
    kept = {name: value for name, value in fields.items() if not name.startswith(left_out)}
    if "augment.order" in kept:  # an operation at zero has no place in it
        section = {name.removeprefix("augment."): value for name, value in kept.items() if name.startswith("augment.")}
        kept["augment.order"] = Augment(**section).ordered
    return kept


def read_data(out: Path) -> dict[str, dict[str, Any]]:
    """data.json: "images" and more by split; empty for a run that has not read its images yet."""
    path = out / "data.json"
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or "train" not in found or not all(map(_is_split, found.values())):
        raise ValueError(f"{path} is damaged (no number of images for each split): {AGAIN}")
    return found


def _is_split(facts: Any) -> bool:
    """Whether this has the form of a split in data.json."""
    if not isinstance(facts, dict) or type(facts.get("images")) is not int or facts["images"] < 1:
        return False
    tables = facts.get("tables", [])
    named = isinstance(tables, list) and all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tables)
    return named and all(isinstance(facts.get(key, ""), str) for key in ("sha256", "contents", "ids", "pairs"))


def encode_classes(classes: Sequence[str]) -> bytes:
    """classes.txt: one name a line; a name with line breaks or control characters becomes a JSON string."""
    lines = (json.dumps(name) if not name.isprintable() or name.startswith('"') else name for name in classes)
    return "".join(f"{line}\n" for line in lines).encode()


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in classes.txt. In files of earlier versions a line is a name, whatever characters it has."""
    return tuple(map(_name, read_text(path).split("\n")[:-1]))


def _name(line: str) -> str:
    try:
        found = json.loads(line) if line.startswith('"') else line
    except ValueError:
        return line
    return found if isinstance(found, str) else line


def stored_classes(path: Path, now: Sequence[str]) -> Sequence[str]:
    """The names at the start; ``now`` where an earlier version would have written the same bytes for them."""
    found, early = read_classes(path), "".join(f"{name}\n" for name in now)
    return tuple(now) if path.read_bytes() == early.encode() else found
