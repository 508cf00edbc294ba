"""All recipes by name: our own, the five published systems with their ablations, and the embedded digits."""

import difflib
import inspect
from collections.abc import Callable

from cls.config import Run, diff
from cls.recipes import attention_gate, best, cbam_mixup, digits, mlp_head, resnet50_mlp, se_resnext
from cls.recipes.tables import SWEEPS, figure

_SYSTEMS = (digits, best, attention_gate, cbam_mixup, mlp_head, se_resnext, resnet50_mlp)

# each system, then its variants
RECIPES: dict[str, Callable[[], Run]] = {name: make for system in _SYSTEMS for name, make in system.RECIPES.items()}


def get(name: str) -> Run:
    """The run of a recipe; ValueError with the nearest names for an unknown one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown recipe {name!r}{hint} (`cls recipes` lists all)")
    return RECIPES[name]()


def systems() -> list[str]:
    """The recipes that are no variants: digits, our own, and one for each published system."""
    return [next(iter(system.RECIPES)) for system in _SYSTEMS]


def describe() -> dict[str, tuple[str, str]]:
    """Each recipe's report and what it is, one line: a base's from its docstring, a variant's from its table.

    A variant's line ends with the report's figures for it, validation / test.
    """
    described = {}
    figures = {
        row.recipe: f" (report: {figure(row.validation)} / {figure(row.test)})"
        for sweep in SWEEPS.values()
        for row in sweep.rows
        if row.validation or row.test
    }
    for system in _SYSTEMS:
        for name, make in system.RECIPES.items():
            variant = name in system.VARIANTS
            text = system.VARIANTS[name][0] + figures.get(name, "") if variant else (make.__doc__ or "").splitlines()[0]
            described[name] = (system.REPORT, text)
    return described


def page(name: str) -> str:
    """The evidence of a recipe: for a variant what it changes, its system's docstring, and its sweeps."""
    run = get(name)
    system = next(system for system in _SYSTEMS if name in system.RECIPES)
    base = next(iter(system.RECIPES))
    text = inspect.cleandoc(system.RECIPES[base].__doc__ or "")
    own = {key: sweep for key, sweep in SWEEPS.items() if key.startswith(f"{base}/")}
    if own:
        width = max(map(len, own))
        text += "\n\nIts" if system.REPORT == "own" else "\n\nThe report's"
        text += " tables, to be run on your images:\n  "
        text += "\n  ".join(f"cls sweep {key:<{width}}  {sweep.what}" for key, sweep in own.items())
    if name == base:
        return text
    changed = [line for line in diff(system.RECIPES[base](), run) if not line.startswith("recipe:")]
    text = text.replace(f"train.py {base} ", f"train.py {name} ")
    return f"{name} is {base} with\n  " + "\n  ".join(changed) + f"\n\n{base}: {text}"
