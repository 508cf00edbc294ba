"""``cls sweep NAME``: show, write or run the members of a sweep."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cls.commands.fields import typed_values, without_out
from cls.commands.options import SweepOptions
from cls.commands.sweep.local import run_members
from cls.commands.sweep.members import Member, Rows, find_members, unique
from cls.commands.sweep.scripts import arguments, write_lines, write_wandb
from cls.commands.sweep.table import show_sweeps
from cls.config import Run
from cls.recipes.tables import SWEEPS, Row, chosen, figure, unknown
from cls.runtime.console import console
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal

FOLDER = "runs/sweeps"


def list_sweeps() -> list[dict[str, Any]]:
    """All sweeps with their rows and the reports' figures."""
    table = Table("sweep", "rows: the report's validation / test", "what differs", box=None, padding=(0, 1, 1, 0))
    for name, sweep in SWEEPS.items():
        rows = ", ".join(row.name + _stated(row) for row in sweep.rows)
        table.add_row(name, escape(rows), escape(sweep.what))
    console.print(table)
    print("cls sweep NAME --data.path FOLDER shows the commands; a system's name: all of its tables", file=sys.stderr)
    return [
        {"sweep": name, "what": sweep.what, "finding": sweep.finding, "rows": [vars(row) for row in sweep.rows]}
        for name, sweep in SWEEPS.items()
    ]


def _stated(row: Row) -> str:
    return f" {figure(row.validation)} / {figure(row.test)}" if row.validation or row.test else ""


def run_sweep(
    name: str, options: SweepOptions, fields: Run, words: Sequence[str], stop: StopSignal
) -> tuple[dict[str, Any], ValueError | None]:
    """The table of the members after showing, writing or running them, and an error that names failed members.

    ``words`` are the fields on the command line; ``fields`` holds their values.
    """
    sweeps, folder = chosen(name), Path(fields.out or FOLDER)
    launch = [os.path.expanduser(word) for word in shlex.split(options.launch)]
    if not sweeps:
        raise unknown(name)
    _check(name, options, fields, launch)
    values, shared = typed_values(fields, words), without_out(words)
    seeds, folds = options.runs_per_row
    rows = find_members(sweeps, seeds, values, folder, folds)
    document: dict[str, Any] = {"folder": str(folder), "failed": {}}
    if options.slurm:
        with writing("slurm", options.slurm):
            document["sbatch"] = _slurm(Path(options.slurm), [m for m in unique(rows) if m.open], shared, folder)
    if options.wandb:
        project = fields.track.project
        with writing("wandb", options.wandb):
            document["wandb"] = write_wandb(Path(options.wandb), name, sweeps, rows, launch, shared, folder, project)
        print(f"register it with\n{document['wandb']}\nand start the agent that it names", file=sys.stderr)

    def command(member: Member) -> list[str]:
        return [*launch, *arguments(member, shared)]

    if options.run:
        document["failed"] = run_members(unique(rows), [*map(command, unique(rows))], len(launch), stop, options.jobs)
        rows = find_members(sweeps, seeds, values, folder, folds)
    elif not (options.slurm or options.wandb):
        _print_commands(rows, command)
        if not fields.data.path:
            print("# data.path is empty: add --data.path FOLDER, without which only digits can train", file=sys.stderr)
    document["members"] = [
        {"run": member.run.out, "recipe": member.run.recipe, "seed": member.run.seed, "fold": member.fold,
         "state": member.state or "not started", "command": shlex.join(command(member))}
        for member in unique(rows)
    ]  # fmt: skip
    started = any(member.state for member in unique(rows))
    document["sweeps"] = show_sweeps(sweeps, rows, folder, folds) if started else []
    return document, _failed(document["failed"])


def _check(name: str, options: SweepOptions, fields: Run, launch: Sequence[str]) -> None:
    if not launch:
        raise ValueError("launch is empty: give the launcher and the script, as 'accelerate launch train.py'")
    if options.run and (options.slurm or options.wandb):
        raise ValueError("run trains here, slurm and wandb write for elsewhere: ask for one of them")
    if options.jobs < 1:
        raise ValueError(f"jobs is {options.jobs}: it must be 1 or more")
    if options.seeds < 0:
        raise ValueError(f"seeds is {options.seeds}: it must be 1 or more")
    if options.folds < 0 or options.folds == 1:
        raise ValueError(f"folds is {options.folds}: it must be 2 or more, or 0 for no cross-validation")
    if options.folds and fields.data.hold_out:
        raise ValueError(f"data.hold_out is {fields.data.hold_out}, which --folds sets for each run: leave it out")
    if (options.run or options.slurm or options.wandb) and not fields.data.path:
        raise ValueError(f"data.path is empty: name the images with cls sweep {name} --data.path FOLDER")


def _slurm(file: Path, members: Sequence[Member], words: Sequence[str], folder: Path) -> str:
    if not members:
        print(f"nothing is left to run: {file} was not written", file=sys.stderr)
        return ""
    line = write_lines(file, [arguments(member, words) for member in members], folder)
    print(f"{len(members)} runs in {file}; submit them with\n{line}", file=sys.stderr)
    return line


def _print_commands(rows: Rows, command: Callable[[Member], Sequence[str]]) -> None:
    """Each member's command, ready for a shell; as a comment if it is done or running."""
    for member in unique(rows):
        names = "; ".join(f"{sweep} {row}" for (sweep, row), found in rows.items() if member in found)
        which = f"fold {member.label}" if member.fold else f"seed {member.label}"
        print(f"# {names}, {which}" + (f": {member.state}" if member.state else ""), file=sys.stderr)
        print(("" if member.open else "# ") + shlex.join(command(member)), file=sys.stderr)


def _failed(failed: Mapping[str, str]) -> ValueError | None:
    if not failed:
        return None
    text = "\n  ".join(f"{path}: {reason}" for path, reason in failed.items())
    return ValueError(f"{len(failed)} members failed; the same command tries them again:\n  {text}")
