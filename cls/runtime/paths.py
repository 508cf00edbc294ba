"""Paths in options: ``~`` is expanded, and output paths are checked before the work."""

import dataclasses
import errno
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATHS = {
    "Run": ("out",), "Data": ("path", "copy"), "Model": ("weights",),
    "Show": ("to",), "Predict": ("run", "path", "out"), "Evaluate": ("run", "path", "to"), "Report": ("run", "to"),
    "Explain": ("run", "path", "to"),
    "Audit": ("run",), "Sweep": ("name",), "SweepOptions": ("slurm", "wandb"), "TuneOptions": ("slurm",),
    "Compare": ("runs", "baseline", "to", "curves"),
    "PlanOptions": ("script",), "Pack": ("path", "to"), "Export": ("run", "more", "to"),
    "Soup": ("runs", "to"), "ExportOptions": ("images",),
    "Check": ("path", "run", "to"), "Doctor": ("out", "data"),
}  # fmt: skip
"""The fields that hold a path, by the class of the options: in them ``~`` and ``~user`` are a home directory."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_folder() -> Path:
    """Files of this user that belong to no run."""
    return Path(os.environ.get("CLS_CACHE") or "~/.cache/cls").expanduser()


def expanded(options: T) -> T:
    """A dataclass of options, and those inside it, with ``~`` and ``~user`` at the start of each path expanded.

    A shell does so only where the path is a word of its own, not in ``--out=~/runs``. ValueError for an unknown user.
    """
    assert dataclasses.is_dataclass(options) and not isinstance(options, type)
    found = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    changed: dict[str, object] = {
        name: expanded(value) for name, value in found.items() if dataclasses.is_dataclass(value)
    }
    for name in PATHS.get(type(options).__name__, ()):
        value = found[name]
        changed[name] = (
            tuple(expand_home(name, v) for v in value) if isinstance(value, tuple) else expand_home(name, value)
        )
    return dataclasses.replace(options, **{name: value for name, value in changed.items() if value != found[name]})


def expand_home(name: str, value: T) -> T:
    """A path with ``~`` and ``~user`` expanded; ``name`` is the option's, for the ValueError of an unknown user."""
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise ValueError(
            f"{name}: {value}: there is no user {value[1:].partition('/')[0]!r}; a name that starts with ~ is written "
            f"./{value}"
        )
    return path  # type: ignore[return-value]  # T is str here


def check_picture(option: str, path: str) -> None:
    """:func:`check_output` for a picture, which is written as PNG whatever its name."""
    check_output(option, path)
    if path and not path.lower().endswith(".png"):
        raise ValueError(f"--{option} {path}: pictures are PNG files: name one that ends in .png")


def check_output(option: str, path: str | Path, folder: bool = False) -> None:
    """ValueError, before the work and not after it, where the file (or ``folder``) of an option cannot be written.

    Nothing is left behind by the attempt. ``path`` '' is no output.
    """
    if not str(path):
        return
    path = Path(path)
    with writing(option, path):
        if not folder and path.is_dir():
            raise ValueError(f"{option}: {path} is a folder: name a file in it")
        if path.exists() and not folder and not path.is_file():  # /dev/null would be replaced by the file
            raise ValueError(f"{option}: {path} is not a regular file: name another one")
        if path.exists() and folder and not path.is_dir():
            raise ValueError(f"--{option} {path} is a file: name a folder")
        places = (path, *path.absolute().parents) if folder else path.absolute().parents
        place = next(place for place in places if place.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
        with tempfile.TemporaryFile(dir=place) as file:  # permissions, ACLs, quotas, read-only and full disks
            file.write(b"\0" * 4096)


@contextmanager
def writing(option: str, path: str | Path) -> Iterator[None]:
    """Turns an OSError of writing to ``path`` into a ValueError with a command that writes elsewhere.

    Only for code that writes, not for code that reads other files.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by us
            raise
        reason = error.strerror
        way = "free space, or write" if error.errno in FULL else "write"
        raise ValueError(
            f"{option}: {path} cannot be written ({reason}): {way} elsewhere with: "
            f"{command_line({option: elsewhere(path)})}"
        ) from error


def elsewhere(path: str | Path) -> str:
    """An unused, writable path for an error message: in this folder, the home or the temporary directory."""
    places = [Path(), Path.home(), Path(tempfile.gettempdir())]
    place = next((place for place in places if os.access(place, os.W_OK | os.X_OK)), Path("FOLDER"))
    name = Path(path).name or "out"
    stem, ending = os.path.splitext(name)
    names = (name if n == 1 else f"{stem}-{n}{ending}" for n in count(1))
    return str(place / next(each for each in names if not os.path.lexists(place / each)))


def name_problem() -> str:
    """The problem with a name that Python could not decode, and the remedy: the name or the locale may be the cause.

    Python treats LC_ALL=C as UTF-8 unless PYTHONUTF8=0; other locales it obeys.
    """
    encoding = sys.getfilesystemencoding()
    if encoding.replace("-", "").lower() == "utf8":
        return "is not UTF-8; rename it"
    return f"is not {encoding}, which the locale makes Python expect: run the same command with PYTHONUTF8=1 before it"


def command_line(options: dict[str, str], launcher: Sequence[str] = ()) -> str:
    """This process's command line for a shell, with some options changed, started by ``launcher``."""
    program, *words = sys.argv
    kept: list[str] = []
    skip = False
    names = {f"--{name}" for name in options} | {f"--{name.replace('_', '-')}" for name in options}
    for word in words:
        if skip:
            skip = False
        elif word in names:
            skip = True
        elif word.partition("=")[0] not in names:
            kept.append(word)
    own = Path(program).name in ("cls", "__main__.py")
    start = ["cls"] if own and not launcher else ["-m", "cls"] if own else [program]
    start = [*launcher, *start] if launcher or own else ["python", *start]
    return shlex.join([*start, *kept, *(word for name, value in options.items() for word in (f"--{name}", value))])
