"""User-facing messages go to standard error; standard output carries only machine-readable output."""

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console

console = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
"""As wide as the terminal; 180 columns in a log, so that tables are not cut."""
SOURCE = 116  # columns of a docstring line in the source


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Standard output of the whole process, also of libraries in C++, goes to standard error inside."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class Unread:
    """A standard stream that can lose its reader (``| head``, a notebook that ended): instead of an error on each line
    ``lost`` is called, and nothing is written any more."""

    def __init__(self, stream: TextIO, lost: Callable[[], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        with self._caught():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._caught():
            self._stream.flush()

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._lost()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable(text: str) -> str:
    """``text`` with control characters escaped: a file name may contain terminal commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def clean(text: str) -> str:
    """A message with control characters escaped, line breaks kept: escape names in it with :func:`printable` first."""
    return "\n".join(map(printable, text.split("\n")))


def folded(text: str, width: int) -> str:
    """A docstring's text in lines of at most ``width``, literals in single backticks.

    Lines are joined where the next word would not have fitted in the source; other line breaks stay. Indented lines
    wrap below their last column; columns are separated by two spaces.
    """
    lines: list[str] = []
    last = ""  # of the source
    for line in text.splitlines():
        if last and line and line[0] != " " and last[0] != " " and len(last) + 1 + len(line.split()[0]) > SOURCE:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        last = line
    lines = [line.replace("``", "`") for line in lines]
    hung = [(line, re.match(r" +(?:.*  )?", line)) for line in lines]
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=" " * (begin.end() if begin else 0), break_on_hyphens=False,
                      break_long_words=False)
        for line, begin in hung
    )  # fmt: skip
