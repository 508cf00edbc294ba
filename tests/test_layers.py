"""The rules of the house, read from the source: imports point down, files and functions stay short."""

import ast
from pathlib import Path

import pytest

from tests.harness import ROOT

LAYERS = {
    "config": 0, "runtime": 0, "cls": 1,
    "models": 2, "transforms": 2, "distributed": 2, "recipes": 2, "validate": 2,
    "data": 3, "tracking": 4, "training": 5, "evaluation": 5, "commands": 6, "__main__": 7, "api": 7, "train": 7,
}  # fmt: skip

FILES = [*sorted(ROOT.glob("cls/**/*.py")), ROOT / "train.py"]


def parts(path: Path) -> tuple[str, ...]:
    names = path.relative_to(ROOT).with_suffix("").parts
    return names[:-1] if names[-1] == "__init__" else names


def unit(names: tuple[str, ...]) -> str:
    """The top-level part of the package that a module belongs to."""
    return names[1] if len(names) > 1 and names[0] == "cls" else names[0]


def imports(path: Path) -> set[str]:
    """Absolute names imported anywhere in a file; `from cls import a` counts as cls.a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            found |= {f"{base}.{a.name}" for a in node.names} if base == "cls" else {base}
    return found


def modules() -> dict[str, Path]:
    return {".".join(parts(path)): path for path in FILES}


def test_every_file_has_a_layer() -> None:
    assert {unit(parts(path)) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = unit(parts(path))
    for name in imports(path):
        names = tuple(name.split("."))
        if names[0] in ("cls", "train"):
            other = unit(names) if unit(names) in LAYERS else "cls"  # `from cls import __version__`
            found = f"{path} (layer {LAYERS[own]}) imports {name} (layer {LAYERS[other]})"
            assert other == own or LAYERS[other] < LAYERS[own], found


def test_the_house_is_small() -> None:
    """Ten packages; what is no package is the configuration, its validation and the three entry points."""
    units = {unit(parts(path)) for path in FILES}
    packages = {name for name in units if (ROOT / "cls" / name).is_dir()}
    assert len(packages) == 10 and units - packages == {"config", "validate", "cls", "__main__", "api", "train"}
    assert len({LAYERS[name] for name in units - {"cls"}}) <= 7


def test_no_cycles() -> None:
    known = modules()
    graph = {
        name: {other for other in imports(path) if other in known and other != name} for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert sum(map(len, graph.values())) > 50  # the graph was read


OWNERS = {
    "wandb": ("cls/tracking/wandb_run.py",),
    "datasets": ("cls/data/", "cls/commands/pack.py"),
    "accelerate": ("cls/distributed/",),
    "tyro": tuple(f"cls/commands/{name}.py" for name in ("parsing", "command", "arguments", "options")),
    "jinja2": ("cls/evaluation/report/build.py",),
    "scipy": ("cls/evaluation/stats.py", "cls/commands/check/survey.py"),
    "matplotlib": (
        "cls/evaluation/plots.py",
        "cls/evaluation/fonts.py",
        "cls/commands/contact_sheet.py",
        "cls/commands/tune/picture.py",
    ),
}


@pytest.mark.parametrize("package", OWNERS)
def test_one_owner_of_each_library(package: str) -> None:
    users = {str(p.relative_to(ROOT)) for p in FILES if any(n.split(".")[0] == package for n in imports(p))}
    assert users and all(user.startswith(OWNERS[package]) for user in users)


def code_lines(path: Path) -> set[int]:
    """Line numbers that hold code: not blank, not comment, not docstring (nor a field's text)."""
    source = path.read_text()
    quiet: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            quiet |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = source.splitlines()
    return {i for i, text in enumerate(lines, 1) if text.strip() and not text.strip().startswith("#")} - quiet


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    code = code_lines(path)
    if "recipes" not in path.parts:
        assert len(code) <= 250
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and "recipes" not in path.parts:
            length = len(code & set(range(node.lineno, (node.end_lineno or 0) + 1)))
            assert length <= 40, f"{path}: {node.name} has {length} lines of code"


def test_train_is_one_page() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) <= 120
