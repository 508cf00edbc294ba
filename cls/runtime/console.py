"""Where people are told things: standard error, so that standard output is left to documents."""

import re
import sys
import textwrap

from rich.console import Console

console = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
"""As wide as the terminal; a log gets whole tables."""
SOURCE = 116  # characters of a line of a function's docstring


def printable(text: str) -> str:
    """A file's name may hold what a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def clean(text: str) -> str:
    """A message, its own line breaks kept: names in it that may hold one are passed through :func:`printable`."""
    return "\n".join(map(printable, text.split("\n")))


def folded(text: str, width: int) -> str:
    """A docstring's text in lines of at most ``width``, literals in single backticks; breaks that were meant stay.

    A line was only broken for the source's sake where the next word would not have fitted there. Indented lines hang
    below their last column, which two spaces part from the one before.
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
