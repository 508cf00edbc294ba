"""Several runs side by side: what differs between them and how far each has come."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cls.commands.sweep.members import stored_run
from cls.config import RUNTIME_FIELDS, flat
from cls.runtime.console import console
from cls.runtime.files import write_whole
from cls.tracking import goodput
from cls.tracking.events import read_events
from cls.tracking.metrics_log import read_rows
from cls.tracking.run_status import state_of


def sweep(folder: Path) -> list[dict[str, Any]]:
    """One row per run directory in ``folder``, by name; :func:`write_tables` writes them there.

    Columns are the fields in which the runs differ, then the outcome ("running" while there is none), epochs done,
    the best validation accuracy with its epoch, attempts, lost steps and goodput. ValueError where there is no run.
    """
    found = sorted(path.parent for path in folder.glob("*/config.yaml"))
    if not found:
        raise ValueError(f"{folder} holds no run directories: name the folder that slurm/sweep.sh wrote to")
    configs = [flat(stored_run(path / "config.yaml")) for path in found]
    differing = [name for name in configs[0] if len({str(config[name]) for config in configs}) > 1]
    shown = [name for name in differing if not name.startswith(RUNTIME_FIELDS)]
    rows = [
        {"run": path.name} | {name: _text(config[name]) for name in shown} | _result(path)
        for path, config in zip(found, configs, strict=True)
    ]
    return rows


def write_tables(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write table.md and table.csv into ``folder``; OSError where that cannot be."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "table.csv", text.getvalue().encode())
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
    write_whole(folder / "table.md", ("\n".join(lines) + "\n").encode())


def _result(path: Path) -> dict[str, Any]:
    validated = [row for row in read_rows(path) if "val/accuracy" in row]
    best = max(validated, key=lambda row: row["val/accuracy"], default=None)
    spent = goodput.total(goodput.attempts(read_events(path)))
    return {
        "outcome": state_of(path),
        "epochs": validated[-1].get("epoch", 0) if validated else 0,
        "best accuracy": f"{best['val/accuracy']:.4f}" if best else "",
        "at epoch": best.get("epoch", "") if best else "",
        "attempts": spent["attempts"],
        "lost steps": spent["lost_steps"],
        "goodput": f"{spent['goodput']:.2f}",
    }


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def sweep_table(folder: str) -> list[dict[str, Any]]:
    """Runs side by side."""
    rows = sweep(Path(folder))
    table = Table(*map(escape, rows[0]), box=None)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    console.print(table)
    try:
        write_tables(Path(folder), rows)
        print(f"also in {Path(folder) / 'table.md'} and table.csv", file=sys.stderr)
    except OSError as error:  # of somebody else's runs: what is shown is the answer
        print(f"table.md and table.csv were not written into {folder} ({error.strerror})", file=sys.stderr)
    return rows
