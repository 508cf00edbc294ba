"""The command line: ``train.py RECIPE --section.field value``, and the verbs of the ``cls`` command."""

import dataclasses
import inspect
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import tyro

from cls import recipes
from cls.commands.arguments import VERBS
from cls.commands.bench.options import BenchOptions
from cls.commands.fetch import require_offline
from cls.commands.plan.options import PlanOptions
from cls.commands.sweep.options import SweepOptions
from cls.commands.sweep.overrides import field_words
from cls.config import Run, reject_renamed, to_yaml
from cls.runtime.exit import CODES, ExitHandler
from cls.runtime.paths import expanded
from cls.validate import check

T = TypeVar("T")
PATH_PLACES = {"check": 0, "pack": 0, "evaluate": 1}
"""Verbs that take images as a word, and its place among their words."""
HEARD_SECONDS = 5.0  # a launcher ends all processes with the first: rank 0, which speaks, must not come too late


def out_of(argv: list[str]) -> str:
    """The run directory that a command line names, readable even where the rest of it is not; '' if it names none."""
    found = ""
    for word, following in pairwise([*argv, ""]):
        if word == "--out":
            found = following
        elif word.startswith("--out="):
            found = word.removeprefix("--out=")  # the last one counts, as for the parser
    found = os.path.expanduser(found)
    return "" if found.startswith("~") else found  # an unknown user's: the parser rejects it


def parse_run(argv: list[str]) -> Run:
    """The run of a command line; without a recipe, the embedded digits. ``--show`` prints it as YAML and exits.

    A misspelt field or a wrong type exits with the nearest field named; a bad value is a ValueError naming its field,
    as are images of one's own without a recipe.
    """
    name, rest = _recipe_and_fields(argv)
    text = (
        f"Train recipe {name!r}; others: train.py RECIPE (`cls recipes` lists them). "
        "--show prints the final configuration and exits; --offline checks that no network is needed, and uses none."
    )
    run = _tyro(
        Run, recipes.get(name), [word for word in rest if word not in ("--show", "--offline")], f"train.py {name}", text
    )
    _check(run, name)
    _need_recipe(run, "train.py", argv)
    if "--show" in rest:
        _print(to_yaml(run).rstrip("\n"))
        sys.exit(0)
    _need_images(run)
    if "--offline" in rest:
        require_offline(run)
    return run


def _recipe_and_fields(argv: list[str]) -> tuple[str, list[str]]:
    """The recipe, the first word of a command line (without one: digits), and the words after it."""
    return ("digits", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])


def _need_recipe(run: Run, program: str, argv: list[str]) -> None:
    """ValueError for a command line that names images but no recipe: photos would train the 32 px digits network."""
    own = "data.copy" if run.data.copy else "data.path"
    if _recipe_and_fields(argv)[1] is not argv or (run.data.path in ("", "digits") and not run.data.copy):
        return
    words = [*argv, "--data.path", run.data.copy] if run.data.path in ("", "digits") else argv
    raise ValueError(
        f"{own} is {run.data.copy or run.data.path}, but no recipe is named; the recipes are "
        f"{', '.join(recipes.systems())}, and their variants (`cls recipes` lists all {len(recipes.RECIPES)}): "
        f"name one as the first word, e.g. {program} best {shlex.join(words)}"
    )


def fail_early(argv: list[str]) -> None:
    """Tell what is wrong with the command line of a run, as the run itself would; needs no library that loads long."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave_early)
    try:
        run = parse_run(argv)
        if not (run.out and os.path.exists(os.path.join(run.out, "config.yaml"))):  # a finished run needs no images
            _need_folder(run, argv)
    except (ValueError, SystemExit):
        if os.environ.get("RANK", "0") != "0":
            time.sleep(HEARD_SECONDS)
        with ExitHandler(out_of(argv)):
            raise


def _leave_early(*_: object) -> None:
    """Ctrl-C while the libraries load: nothing has begun, and a traceback of their imports helps nobody."""
    os.write(2, b"\nstopped: SIGINT, before the run began\n")
    os._exit(CODES["stopped"])


def _need_images(run: Run) -> None:
    if not run.data.path:
        raise ValueError(f"data.path is empty: name the images with {run.recipe} --data.path FOLDER")


def _print(document: str) -> None:
    with _reader_may_leave():
        print(document, flush=True)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Standard output may be a pipe that is closed early: ``| head``."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _need_folder(run: Run, argv: list[str]) -> None:
    """Before weights are downloaded for it; only of what cannot name a dataset of a hub. Names it as it was typed."""
    path = run.data.copy or run.data.path
    if path.startswith(("/", ".")) and not os.path.exists(path):
        typed = (word.rpartition("=")[2] for word in argv if os.path.expanduser(word.rpartition("=")[2]) == path)
        raise ValueError(f"data.path: there is no file or folder {next(typed, path)}")


def _tyro(kind: type[T], default: T | None, argv: list[str], prog: str, text: str) -> T:
    """The options of a command line, with ``~`` in all paths expanded."""
    reject_renamed(argv)
    markers = (tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff)  # --field True, as sweeps write it
    heard = os.environ.get("RANK", "0") == "0"  # every rank finds the same mistake; one tells of it
    with _reader_may_leave():
        given: dict[str, Any] = {} if default is None else {"default": default}
        found: T = tyro.cli(
            kind, args=argv, prog=prog, description=text, config=markers, console_outputs=heard, **given
        )
        return expanded(found)
    sys.exit(0)  # of --help, with nobody to read it


def _check(run: Run, name: str) -> None:
    if run.recipe != name:
        raise ValueError(f"recipe is {run.recipe}: the recipe is the first word of the command, not a field")
    check(run)


def main() -> None:
    """The ``cls`` command; exit codes are those of a run (0 done, 2 user error, …)."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in VERBS:
        lines = [f"  cls {name:<9} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in VERBS.items()]
        asked = not argv or argv[0] in ("-h", "--help")
        usage = "usage: cls VERB …   (cls VERB --help explains a verb)\n" + "\n".join(lines)
        if asked:
            _print(usage)
            sys.exit(0)
        print(f"cls: there is no verb {argv[0]!r}\n{usage}", file=sys.stderr)
        sys.exit(2)
    with ExitHandler("") as ending, ending.stop.interruptible():
        command = _command(argv[0], [word for word in argv[1:] if word != "--json"])
        document = command.do(ending.stop)
        ending.message = "done"
        if "--json" in argv and document is not None:  # rank 0's
            _print(json.dumps(document, indent=1))
        if argv[0] == "sweep" and isinstance(document, dict):
            from cls.commands.sweep.run import refuse_failed

            refuse_failed(document)
        if argv[0] == "doctor":
            from cls.commands.doctor.run import refuse_bad

            refuse_bad(document)
        if argv[0] == "check":
            from cls.commands.check.findings import refuse_problems

            refuse_problems(document)


def _command(verb: str, argv: list[str]) -> Any:
    """What is to be done, of the verb's own type; needs no library that loads long."""
    text = f"{inspect.cleandoc(VERBS[verb].__doc__ or '')} --json prints one JSON document on standard output."
    if verb == "sweep":
        return _sweep(argv, text)
    if verb not in ("show", "plan", "bench", "fetch"):
        argv = _path_as_word(verb, argv) if verb in PATH_PLACES else argv
        argv = [re.sub(r"^--data\.", "--", word) for word in argv]  # messages name options as train.py has them
        return _tyro(VERBS[verb], None, argv, f"cls {verb}", text)
    name, rest = _recipe_and_fields(argv)
    text += f" Takes every field of train.py {name}."
    own: dict[str, dict[str, Any]] = {"plan": {"request": PlanOptions()}, "bench": {"options": BenchOptions()}}
    default = VERBS[verb](run=recipes.get(name), **own.get(verb, {}))
    command: Any = _tyro(VERBS[verb], default, rest, f"cls {verb} {name}", text)
    _check(command.run, name)
    _need_recipe(command.run, f"cls {verb}", argv)
    if verb != "fetch":
        _need_images(command.run)
    return command


def _path_as_word(verb: str, argv: list[str]) -> list[str]:
    """``--data.path X``, as messages print it, becomes the word that names the images; it replaces one typed before."""
    words, paths = list[str](), list[str]()
    rest = iter(argv)
    for word in rest:
        if word == "--data.path":
            paths += [following] if (following := next(rest, "")) else []
        elif word.startswith("--data.path="):
            paths.append(word.removeprefix("--data.path="))
        else:
            words.append(word)
    if not paths:
        return argv
    place = PATH_PLACES[verb]
    if any(word.startswith("-") for word in words[:place]):  # options come first: the words may be anywhere
        return [*words, paths[-1]]
    typed = len(words) > place and not words[place].startswith("-")
    return [*words[:place], paths[-1], *words[place + typed :]]


def _sweep(argv: list[str], text: str) -> Any:
    """``cls sweep``: its own options and, for all members, any field of train.py."""
    name = argv[0] if argv and not argv[0].startswith("-") else ""
    default = VERBS["sweep"](name=name, wish=SweepOptions(), fields=Run())
    command: Any = _tyro(VERBS["sweep"], default, argv, "cls sweep", text)
    if command.name != os.path.expanduser(name):
        raise ValueError(f"{command.name}: the sweep is the first word after cls sweep")
    return dataclasses.replace(command, words=field_words(argv))
