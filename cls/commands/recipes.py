"""`cls recipes`: the list of the recipes, and the page of one."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from cls import recipes
from cls.config import Model
from cls.runtime.console import console, folded
from cls.runtime.files import write_whole
from cls.runtime.paths import cache_folder


def recipe_table() -> list[dict[str, Any]]:
    """All recipes, with exact parameter counts from the networks built without storage."""
    counted = _counted({recipes.get(name).model: 10 if name == "digits" else 100 for name in recipes.RECIPES})
    heads = {"recipe": "recipe", "report": "report", "what": "what it is", "batch": "batch",
             "micro_batch": "micro- batch", "most_processes": "most processes", "parameters": "parameters"}  # fmt: skip
    if console.width < 110:  # the names must stay whole, to be copied
        heads = {name: head for name, head in heads.items() if name not in ("report", "most_processes")}
    table = Table(*heads.values(), box=None, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for name, column in zip(heads, table.columns, strict=True):
        if name not in ("recipe", "report", "what"):
            column.justify = "right"
    rows = []
    for name, (source, text) in recipes.describe().items():
        run = recipes.get(name)
        batch, micro_batch = run.train.batch, run.train.micro_batch
        row = {"recipe": name, "report": source, "what": text, "batch": batch, "micro_batch": micro_batch,
               "most_processes": batch // micro_batch, "parameters": counted[run.model]}  # fmt: skip
        rows.append(row)
        table.add_row(*(f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in heads))
    console.print(table)
    return rows


def _counted(models: Mapping[Model, int]) -> dict[Model, int]:
    """Parameters of each network with so many classes. They are computed once, which takes a while, and kept in a file.

    Another version of a library that builds them is another key.
    """
    versions = [f"{name} {version(name)}" for name in ("torch", "torchvision", "timm")]
    keys = {model: f"{', '.join(versions)}: {classes} classes, {model}" for model, classes in models.items()}
    file = cache_folder() / "parameters.json"
    known = {key: count for key, count in _stored(file).items() if type(count) is int}
    missing = {key: model for model, key in keys.items() if key not in known}
    if missing:
        from cls.models.build import count_parameters  # torch, 3 s

        print(f"counting the parameters of {len(missing)} networks, once", file=sys.stderr)
        known |= {key: count_parameters(model, models[model])[0] for key, model in missing.items()}
        with suppress(OSError):  # nobody's cache need be writable
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps({key: known[key] for key in keys.values()}).encode())
    return {model: known[key] for model, key in keys.items()}


def _stored(file: Path) -> dict[str, Any]:
    """{} where the file is missing or damaged."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def recipe_page(name: str) -> dict[str, Any]:
    """One recipe's evidence and its configuration."""
    run, (source, text) = recipes.get(name), recipes.describe()[name]
    page = recipes.page(name)
    heading = f"{name} ({source}): {text}".replace(" (–)", "")
    shown = f"{heading}\n\n{page.removeprefix(text).lstrip()}"
    console.print(folded(shown, min(console.width, 120)), markup=False, highlight=False, soft_wrap=True)
    return {"recipe": name, "report": source, "what": text, "page": page, "config": dataclasses.asdict(run)}
