"""All recipes by name: our own, the five published systems with their ablations, and the embedded digits."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial

from cls.config import Run, change, diff
from cls.recipes import attention_gate, best, cbam_mixup, digits, mlp_head, resnet50_mlp, se_resnext
from cls.recipes.tables import SWEEPS, figure

# each has REPORT, VARIANTS, and a function of its own name that returns the base recipe
_SYSTEMS = {
    "digits": digits, "best": best, "attention-gate": attention_gate, "cbam-mixup": cbam_mixup, "mlp-head": mlp_head,
    "se-resnext": se_resnext, "resnet50-mlp": resnet50_mlp,
}  # fmt: skip

RECIPES: dict[str, Callable[[], Run]] = {}
"""Each system, then its variants."""
for _name, _system in _SYSTEMS.items():
    RECIPES[_name] = getattr(_system, _name.replace("-", "_"))
    for _variant, (_, _sections) in _system.VARIANTS.items():
        RECIPES[_variant] = partial(change, RECIPES[_name](), recipe=_variant, **_sections)


def get(name: str) -> Run:
    """The run of a recipe; ValueError with the nearest names for an unknown one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"unknown recipe {name!r}{hint} (`cls recipes` lists all)")
    return RECIPES[name]()


def systems() -> list[str]:
    """The recipes that are no variants: digits, our own, and one for each published system."""
    return list(_SYSTEMS)


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
    for base, system in _SYSTEMS.items():
        described[base] = (system.REPORT, (RECIPES[base].__doc__ or "").splitlines()[0])
        for name, (text, _) in system.VARIANTS.items():
            described[name] = (system.REPORT, text + figures.get(name, ""))
    return described


def page(name: str) -> str:
    """The evidence of a recipe: for a variant what it changes, its system's docstring, and its sweeps."""
    run = get(name)
    base, system = next((base, system) for base, system in _SYSTEMS.items() if name in (base, *system.VARIANTS))
    text = inspect.cleandoc(RECIPES[base].__doc__ or "")
    own = {key: sweep for key, sweep in SWEEPS.items() if key.startswith(f"{base}/")}
    if own:
        width = max(map(len, own))
        text += "\n\nIts" if system.REPORT == "own" else "\n\nThe report's"
        text += " tables, to be run on your images:\n  "
        text += "\n  ".join(f"cls sweep {key:<{width}}  {sweep.what}" for key, sweep in own.items())
    if name == base:
        return text
    changed = [line for line in diff(RECIPES[base](), run) if not line.startswith("recipe:")]
    text = text.replace(f"train.py {base} ", f"train.py {name} ")
    return f"{name} is {base} with\n  " + "\n  ".join(changed) + f"\n\n{base}: {text}"
