"""Command lines to options. Needs no library that takes long to load, so mistakes are reported at once."""

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tyro

from cls import recipes
from cls.commands.config_file import HELP, with_config
from cls.commands.fetch import require_offline
from cls.commands.fields import option_of, renamed
from cls.config import Run, change, to_yaml
from cls.runtime.exit import CODES, ExitHandler
from cls.runtime.paths import expand_home, expanded
from cls.tracking.run_files import has_checkpoint, read_run_directory
from cls.validate import check

T = TypeVar("T")
OTHER_RANKS_SECONDS = 5.0  # the launcher kills all ranks when one exits: rank 0 must have printed the error by then


def out_of(argv: list[str]) -> str:
    """The run directory that a command line names, readable even where the rest of it is not; '' if it names none."""
    found = ""
    with suppress(ValueError):
        argv = with_config(argv)
    for word, following in pairwise([*argv, ""]):
        if word == "--out":
            found = following
        elif word.startswith("--out="):
            found = word.removeprefix("--out=")  # the last one counts, as for the parser
    found = os.path.expanduser(found)
    return "" if found.startswith("~") else found  # of an unknown user: the parser rejects it


def parse_run(argv: list[str]) -> Run:
    """The run of a command line; without a recipe, the embedded digits. ``--show`` prints it as YAML and exits.

    A misspelt field or a wrong type exits with the nearest field named; a bad value is a ValueError naming its field,
    as are images without a recipe.
    """
    argv, earlier = _start_from(with_config(argv))
    name, rest = recipe_and_fields(argv)
    text = (
        f"Train recipe {name!r}; others: train.py RECIPE (`cls recipes` lists them). "
        "--show prints the final configuration and exits; --offline checks that no network is needed, and uses none. "
        "--start-from RUN takes the configuration of a run directory in place of a recipe's, and its best weights. "
        + HELP
    )
    fields = [word for word in rest if word not in ("--show", "--offline")]
    run = parse_options(Run, earlier or recipes.get(name), fields, f"train.py {name}", text)
    check_run(run, "train.py", argv)
    if "--show" in rest:
        print_document(to_yaml(run).rstrip("\n"))
        sys.exit(0)
    need_images(run)
    if "--offline" in rest:
        require_offline(run)
    return run


def _start_from(argv: list[str]) -> tuple[list[str], Run | None]:
    """A command line without ``--start-from RUN``, but with the run's recipe as its first word; and the defaults.

    These are the run's configuration, with its best weights; nothing else of that run is used, so that steps, epochs
    and schedule count from 0. ValueError where there are no such weights, and for another recipe.
    """
    words, path = option_of(argv, "--start-from")
    if path is None:
        return argv, None
    directory = Path(expand_home("start-from", path))
    best = directory / "best" / "model.safetensors"
    weights = str(directory) if "/" in str(directory) else f"./{directory}"
    try:
        if not path:
            raise ValueError("the option has no value")
        stored = _begun(Path(out_of(argv)), weights) if not best.is_file() else None
        run = stored or _method(read_run_directory(directory), weights)
    except ValueError as error:
        raise ValueError(f"start-from: {error}; name the directory of a run") from None
    if not (stored or best.is_file()):
        raise ValueError(f"start-from: {best} does not exist: name a run in which at least one epoch is done")
    if words and not words[0].startswith("-") and words[0] != run.recipe:
        raise ValueError(f"start-from: {path} is {run.recipe}, not {words[0]}: leave out the recipe's name")
    return [run.recipe, *words[(words[:1] == [run.recipe]) :]], replace(run, out="")


def _method(run: Run, weights: str) -> Run:
    """A run's configuration without what belonged to that start: its end, its name, and what its device chose."""
    usual = (recipes.get(run.recipe) if run.recipe in recipes.RECIPES else Run()).train
    chosen = {"precision": usual.precision, "channels_last": usual.channels_last}
    return change(
        run, data={"copy": ""}, model={"weights": weights}, train={"max_steps": 0, **chosen}, track={"name": ""}
    )


def _begun(out: Path, weights: str) -> Run | None:
    """The run in ``out`` if it started from these weights and has a checkpoint: it resumes without them."""
    if not (out / "config.yaml").is_file() or not has_checkpoint(out):
        return None
    run = read_run_directory(out)
    return change(run, data={"copy": ""}) if run.model.weights == weights else None


def fail_early(argv: list[str]) -> None:
    """Exit as the run itself would for a mistake on its command line, before the heavy imports."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave_early)
    try:
        run = parse_run(argv)
        if not (run.out and os.path.exists(os.path.join(run.out, "config.yaml"))):  # a finished run needs no images
            _need_folder(run, argv)
    except (ValueError, SystemExit):
        if os.environ.get("RANK", "0") != "0":
            time.sleep(OTHER_RANKS_SECONDS)
        with ExitHandler(out_of(argv)):
            raise


def _leave_early(*_: object) -> None:
    """Ctrl-C during the imports: exit without their traceback."""
    os.write(2, b"\nstopped: SIGINT, before the run began\n")
    os._exit(CODES["stopped"])


def parse_options(kind: type[T], default: T | None, argv: list[str], prog: str, text: str) -> T:
    """The options of a command line, with ``~`` in all paths expanded."""
    if any(not word and not before.startswith("--") for before, word in pairwise(["", *argv])):
        raise ValueError("a word of the command line is empty: is a variable of the shell not set?")
    markers = (tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff)  # --field True, as sweeps write it
    prints = os.environ.get("RANK", "0") == "0"  # every rank finds the same mistake
    for old, word in zip(argv, argv := renamed(argv), strict=True):
        if old != word and prints:
            print(f"{old.partition('=')[0]} is now {word.partition('=')[0]}", file=sys.stderr)
    with _pipe_may_close():
        given: dict[str, Any] = {} if default is None else {"default": default}
        found: T = tyro.cli(
            kind, args=argv, prog=prog, description=text, config=markers, console_outputs=prints, **given
        )
        return expanded(found)
    sys.exit(0)  # after --help into a closed pipe


def recipe_and_fields(argv: list[str]) -> tuple[str, list[str]]:
    """The recipe, the first word of a command line (without one: digits), and the words after it."""
    return ("digits", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])


def check_run(run: Run, program: str, argv: list[str]) -> None:
    """ValueError for fields out of range, and for images without a recipe: digits, the default, is for 32 px."""
    name, fields = recipe_and_fields(argv)
    if run.recipe != name:
        raise ValueError(f"recipe is {run.recipe}: the recipe is the first word of the command, not a field")
    check(run)
    own = "data.copy" if run.data.copy else "data.path"
    if fields is not argv or (run.data.path in ("", "digits") and not run.data.copy):
        return
    words = [*argv, "--data.path", run.data.copy] if run.data.path in ("", "digits") else argv
    raise ValueError(
        f"{own} is {run.data.copy or run.data.path}, but no recipe is named; the recipes are "
        f"{', '.join(recipes.systems())}, and their variants (`cls recipes` lists all {len(recipes.RECIPES)}): "
        f"name one as the first word, e.g. {program} best {shlex.join(words)}"
    )


def need_images(run: Run) -> None:
    if not run.data.path:
        raise ValueError(f"data.path is empty: name the images with {run.recipe} --data.path FOLDER")


def _need_folder(run: Run, argv: list[str]) -> None:
    """ValueError for a missing local folder, before weights are downloaded; a name without / or . may be on a hub."""
    field, path = ("data.copy", run.data.copy) if run.data.copy else ("data.path", run.data.path)
    if path.startswith(("/", ".")) and not os.path.exists(path):
        given = (word.rpartition("=")[2] for word in argv if os.path.expanduser(word.rpartition("=")[2]) == path)
        raise ValueError(f"{field}: there is no file or folder {next(given, path)}")
    if path != "digits" and "://" not in path and not os.path.exists(path) and os.environ.get("RANK", "0") == "0":
        print(f"{field}: there is no file or folder {path} here: looking for it on the hub", file=sys.stderr)


def plain_options(argv: list[str], place: int) -> list[str]:
    """A command line with the options of train.py, as messages print them, in the command's own form.

    ``--data.labels`` becomes ``--labels``; ``--data.path X`` becomes the positional argument number ``place`` (from 0;
    -1: none), in place of one that is there.
    """
    words, paths = list[str](), list[str]()
    rest = iter(argv)
    for word in rest:
        if place >= 0 and word == "--data.path":
            paths += [following] if (following := next(rest, "")) else []
        elif place >= 0 and word.startswith("--data.path="):
            paths.append(word.removeprefix("--data.path="))
        else:
            words.append(re.sub(r"^--data\.", "--", word))
    if not paths:
        return words
    replaced = len(words) > place and not words[place].startswith("-")
    return [*words[:place], paths[-1], *words[place + replaced :]]


def paths_and_options(argv: list[str], several: Sequence[str]) -> tuple[list[str], list[str]]:
    """The positional arguments of a command line, and its options with their values, wherever they stand.

    Each option takes one value, those named ``several`` all words up to the next option.
    """
    paths, options, values = list[str](), list[str](), 0
    for word in argv:
        if word.startswith("--") or word == "-h":
            name = word.lstrip("-").removeprefix("data.").replace("-", "_")
            values = 0 if "=" in word else len(argv) if name in several else 1
            options.append(word)
        elif values:
            values -= 1
            options.append(word)
        else:
            paths.append(word)
    return paths, options


def print_document(text: str) -> None:
    with _pipe_may_close():
        print(text, flush=True)


@contextmanager
def _pipe_may_close() -> Iterator[None]:
    """Standard output may be a pipe that is closed early: ``| head``."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
