"""The report's table with our figures beside it: per row the mean over seeds, its spread, and what is missing."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cls.commands.sweep.members import Member, Rows
from cls.evaluation.metrics import accuracy
from cls.evaluation.predictions import read_parquet
from cls.recipes.tables import Sweep, figure
from cls.runtime.files import write_whole

HEAD = ("row", "recipe", "report val", "report test", "our val", "our test", "our val loss", "seeds", "missing")


def measured(sweep_name: str, sweep: Sweep, rows: Rows) -> list[dict[str, Any]]:
    """One record per row of the table: the report's figures, ours (mean, sample standard deviation), the seeds."""
    return [
        {
            "row": row.name,
            "recipe": row.recipe,
            "report_validation": row.validation,
            "report_test": row.test,
            **_ours(rows[sweep_name, row.name]),
        }
        for row in sweep.rows
    ]


def _ours(members: Sequence[Member]) -> dict[str, Any]:
    done = [member for member in members if member.state == "done"]
    val = [read_parquet(_needed(member.path / "predictions" / "val.parquet")) for member in done]
    tests = [member.path / "predictions" / "test.parquet" for member in done]
    test = [read_parquet(path) for path in tests if path.is_file()]
    figures = {
        "validation": [accuracy(p) for p in val],
        "test": [accuracy(p) for p in test if (p.labels >= 0).any()],
        "validation_loss": [p.loss for p in val],
    }
    found: dict[str, Any] = {}
    for name, values in figures.items():
        found[name] = mean(values) if values else None
        found[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
        found[f"{name}_n"] = len(values)
    found["seeds"] = [member.run.seed for member in done]
    found["missing"] = {member.run.seed: member.state or "not started" for member in members if member.state != "done"}
    found["runs"] = [str(member.path) for member in done]
    return found


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is missing though that run is done: copy it here, or delete the run directory")
    return path


def cells(record: Mapping[str, Any], seeds: int) -> list[str]:
    """A record as people read it."""
    missing = ", ".join(f"{seed} {state.replace('_', ' ')}" for seed, state in record["missing"].items())
    return [
        record["row"],
        record["recipe"],
        figure(record["report_validation"]),
        figure(record["report_test"]),
        _spread(record, "validation", seeds),
        _spread(record, "test", seeds),
        _spread(record, "validation_loss", seeds),
        f"{len(record['seeds'])} of {seeds}",
        missing,
    ]


def _spread(record: Mapping[str, Any], name: str, seeds: int) -> str:
    value, sd, n = record[name], record[f"{name}_sd"], record[f"{name}_n"]
    if value is None:
        return "–"
    text = f"{value:.4f}" if math.isfinite(value) else str(value)
    text += f" ± {sd:.4f}" if sd is not None else ""
    # test images may carry labels in some runs only: then it is a mean of fewer than the seeds that are there
    return text if n == len(record["seeds"]) else f"{text} (n = {n})"


def write_table(folder: Path, name: str, sweep: Sweep, records: Sequence[Mapping[str, Any]], seeds: int) -> list[Path]:
    """Write SWEEP.md and SWEEP.csv (numbers in full; the spread is the sample standard deviation) into ``folder``."""
    markdown, table = (folder / f"{name.replace('/', '-')}.{kind}" for kind in ("md", "csv"))
    lines = [f"# {name}: {sweep.what}", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(cells(record, seeds)) + " |" for record in records]
    lines += ["", note(sweep)]
    write_whole(markdown, ("\n".join(lines) + "\n").encode())
    text = io.StringIO()
    columns = [key for key in records[0] if key != "runs"]
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for record in records:
        flat = {
            key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in record.items()
        } | {"missing": ", ".join(f"{seed} {state}" for seed, state in record["missing"].items())}
        writer.writerow(flat)
    write_whole(table, text.getvalue().encode())
    return [markdown, table]


def note(sweep: Sweep) -> str:
    """What the columns are."""
    theirs = any(row.validation or row.test for row in sweep.rows)
    text = "report: the figures of its author, on other images. " if theirs else ""
    text += "our: accuracy of the best weights, mean ± sample "
    text += "standard deviation over the seeds that are done; test with the recipe's test-time views."
    return text + (f" The report says: {sweep.finding}." if sweep.finding else "")
