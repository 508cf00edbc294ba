"""Where people are told things: standard error, so that standard output is left to documents."""

import sys

from rich.console import Console

PEOPLE = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
"""As wide as the terminal; a log gets whole tables."""
