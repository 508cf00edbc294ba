"""`cls recipes`: the list of the recipes, and the page of one."""

import dataclasses
from typing import Any

from rich.table import Table

from cls import recipes
from cls.runtime.console import console, folded


def recipe_table() -> list[dict[str, Any]]:
    """All recipes, with exact parameter counts from the networks built without storage."""
    from cls.models.build import count_parameters  # torch: a page does not need it

    heads = {"recipe": "recipe", "report": "report", "what": "what it is", "batch": "batch",
             "micro_batch": "micro- batch", "most_processes": "most processes", "parameters": "parameters"}  # fmt: skip
    if console.width < 110:  # the names must stay whole, to be copied
        heads = {name: head for name, head in heads.items() if name not in ("report", "most_processes")}
    table = Table(*heads.values(), box=None, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for name, column in zip(heads, table.columns, strict=True):
        if name not in ("recipe", "report", "what"):
            column.justify = "right"
    rows, counted = [], dict[Any, int]()
    for name, (source, text) in recipes.describe().items():
        run = recipes.get(name)
        if run.model not in counted:
            counted[run.model] = count_parameters(run.model, 10 if name == "digits" else 100)[0]
        batch, micro_batch = run.train.batch, run.train.micro_batch
        row = {"recipe": name, "report": source, "what": text, "batch": batch, "micro_batch": micro_batch,
               "most_processes": batch // micro_batch, "parameters": counted[run.model]}  # fmt: skip
        rows.append(row)
        table.add_row(*(f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in heads))
    console.print(table)
    return rows


def recipe_page(name: str) -> dict[str, Any]:
    """One recipe's evidence and its configuration."""
    run, (source, text) = recipes.get(name), recipes.describe()[name]
    page = recipes.page(name)
    heading = f"{name} ({source}): {text}".replace(" (–)", "")
    shown = f"{heading}\n\n{page.removeprefix(text).lstrip()}"
    console.print(folded(shown, min(console.width, 120)), markup=False, highlight=False, soft_wrap=True)
    return {"recipe": name, "report": source, "what": text, "page": page, "config": dataclasses.asdict(run)}
