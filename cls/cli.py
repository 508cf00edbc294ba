"""The command line: ``train.py RECIPE --section.field value`` and the verbs of the ``cls`` command."""

import sys

import tyro

from cls import recipes
from cls.checks import check
from cls.config import Run, to_yaml


def out_of(argv: list[str]) -> str:
    """The run directory that a command line names, readable even where the rest of it is not; '' if it names none."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--out":
            return following
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return ""


def parse_run(argv: list[str]) -> Run:
    """The run of a command line; without a recipe, digits. ``--show`` prints it as YAML and exits.

    A misspelt field or a wrong type exits with the nearest field named; a bad value is a ValueError naming its field.
    """
    name, rest = ("digits", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    run = recipes.get(name)
    show = "--show" in rest
    run = tyro.cli(
        Run,
        default=run,
        args=[word for word in rest if word != "--show"],
        prog=f"train.py {name}",
        description=f"Train recipe {name!r}. Others: train.py RECIPE (`cls recipes` lists them). "
        "--show prints the final configuration and exits.",
        config=(tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff),
    )
    if run.recipe != name:
        raise ValueError(f"recipe is the first word of the command: train.py {run.recipe} …")
    check(run)
    if show:
        print(to_yaml(run), end="")
        sys.exit(0)
    return run
