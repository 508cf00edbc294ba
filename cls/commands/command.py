"""What the commands of ``cls`` have in common: how their words are parsed, and what they return."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import tyro

from cls import recipes
from cls.commands.config_file import HELP, with_config
from cls.commands.parsing import check_run, need_images, parse_options, plain_options, recipe_and_fields
from cls.config import Run

RunPath = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
ImagePath = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")]
Answer = tuple[Any, Exception | None]
"""The JSON document (None: nothing to print, as on ranks other than 0) and the problems found, which end the command
after the document is printed: a ValueError exits with 2, a DataError with 3."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command whose options are its own."""

    path_place: ClassVar[int] = -1
    """Number of the positional argument that --data.path, as messages print it, stands for; -1: none."""
    resumes: ClassVar[bool] = False
    """Whether the same command continues one that was stopped."""

    @classmethod
    def parse(cls, argv: list[str], text: str) -> Self:
        """The command line after the command's name; ``text`` is shown by --help."""
        return parse_options(cls, None, plain_options(argv, cls.path_place), f"cls {cls.__name__.lower()}", text)


@dataclass(frozen=True, kw_only=True)
class RunCommand(Command):
    """A command that takes a recipe and every field of train.py."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    needs_images: ClassVar[bool] = True

    @classmethod
    def parse(cls, argv: list[str], text: str) -> Self:
        (name, rest), program = recipe_and_fields(argv := with_config(argv)), f"cls {cls.__name__.lower()}"
        text += f" Takes every field of train.py {name}. {HELP}"
        command = parse_options(cls, cls(run=recipes.get(name)), rest, f"{program} {name}", text)
        check_run(command.run, program, argv)
        if cls.needs_images:
            need_images(command.run)
        return command
