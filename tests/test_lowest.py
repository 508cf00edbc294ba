"""The lowest versions that can be installed are those that tests/lowest.sh tries; both have every name that is used."""

import ast
import importlib
import sys
import tomllib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.harness import ROOT

GUARDED = {"torch.distributed.all_gather_single"}  # since torch 2.14; used only where it exists


def test_the_floors_of_the_project_are_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    floors = [*project["dependencies"], *extras["onnx"], *extras["tensorboard"]]
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pins = [line.replace("==", ">=") for line in lines if not line.startswith("#")]
    assert sorted(floors) == sorted(pins)


@pytest.mark.integration  # imports every library: 10 s
def test_every_name_of_a_library_exists() -> None:
    """With the installed versions: the newest ones here, the lowest ones in tests/lowest.sh."""
    files = [*sorted((ROOT / "cls").rglob("*.py")), ROOT / "train.py"]
    found = [(str(path.relative_to(ROOT)), *name) for path in files for name in names(ast.parse(path.read_text()))]
    assert len(found) > 1000
    assert {(file, name) for file, name, exists in found if not exists and name not in GUARDED} == set()


def names(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Names that a file imports, or takes from a module that it has imported, and whether they exist."""
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = importlib.import_module(alias.name)
                modules[alias.asname or alias.name.split(".")[0]] = (
                    whole if alias.asname else sys.modules[alias.name.split(".")[0]]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                value = attribute(importlib.import_module(node.module), alias.name)
                yield f"{node.module}.{alias.name}", value is not None
                if isinstance(value, ModuleType):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        first, *words = chain(node)
        value: Any = modules.get(first)
        for word in words:
            if not isinstance(value, ModuleType | type):
                break  # an object's attributes may come into being later
            parent, value = value, attribute(value, word)
            yield f"{parent.__name__}.{word}", value is not None


def chain(node: ast.AST) -> list[str]:
    """``a.b.c`` as its words; [""] for anything else."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return [node.id, *reversed(words)] if isinstance(node, ast.Name) and words else [""]


def attribute(owner: Any, name: str) -> Any:
    """A name in a module, which may be a module that is not imported yet; None if there is none."""
    if not hasattr(owner, name) and isinstance(owner, ModuleType):
        try:
            return importlib.import_module(f"{owner.__name__}.{name}")
        except ImportError:
            return None
    return getattr(owner, name, None)
