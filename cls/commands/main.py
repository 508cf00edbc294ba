"""The ``cls`` program: one command of its own module each, one JSON document on standard output."""

import inspect
import json
import math
import sys
from typing import Any

from cls.commands.arguments import COMMANDS
from cls.commands.parsing import print_document
from cls.runtime.exit import ExitHandler


def main() -> None:
    """Run one command; exit codes are those of a run (0 done, 2 user error, …)."""
    name, *words = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        lines = [f"  cls {name:<9} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in COMMANDS.items()]
        usage = "usage: cls COMMAND …   (cls COMMAND --help explains a command)\n" + "\n".join(lines)
        if name in ("-h", "--help"):
            print_document(usage)
            sys.exit(0)
        print(f"cls: there is no command {name!r}\n{usage}", file=sys.stderr)
        sys.exit(2)
    with ExitHandler("", COMMANDS[name].resumes) as handler, handler.stop.interruptible():
        document, problems = parse_command(name, [word for word in words if word != "--json"]).do(handler.stop)
        if "--json" in words and document is not None:  # rank 0's
            print_document(json.dumps(_plain(document), indent=1, allow_nan=False))
        if problems:
            raise problems
        handler.message = "done"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_command(name: str, argv: list[str]) -> Any:
    """The command with its options; needs no library that takes long to load."""
    kind = COMMANDS[name]
    text = f"{inspect.cleandoc(kind.__doc__ or '')} --json prints one JSON document on standard output."
    return kind.parse(argv, text)
