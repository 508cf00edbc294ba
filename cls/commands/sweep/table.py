"""Tables of runs: the rows of a sweep beside its report's figures, or all runs of one directory side by side."""

import csv
import io
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.markup import escape
from rich.table import Table

from cls.commands.sweep.folds import write_folds
from cls.commands.sweep.members import Member, Rows, unique
from cls.config import NO_VALIDATION, RUNTIME_FIELDS, flat
from cls.evaluation.curves import CurveGroup, lines_of
from cls.evaluation.metrics import accuracy
from cls.evaluation.predictions import Predictions
from cls.evaluation.run_record import RunRecord
from cls.recipes.tables import Sweep, figure
from cls.runtime.console import console
from cls.runtime.files import write_whole
from cls.tracking import goodput

HEAD = ("row", "recipe", "report val", "report test", "our val", "our test", "our val loss", "seeds", "missing")


def show_directory(folder: Path) -> list[dict[str, Any]]:
    """Print one row per run directory in ``folder``, by name, and write them to table.md and table.csv there.

    Columns are the fields in which the runs differ, then the state, epochs done, the best validation accuracy with its
    epoch, attempts, lost steps and goodput. ValueError if there is no run.
    """
    found = [RunRecord(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    if not found:
        raise ValueError(f"{folder} holds no run directories: name the one that slurm/sweep.sh wrote to")
    configs = [flat(record.run) for record in found]
    differing = [name for name in configs[0] if len({str(config[name]) for config in configs}) > 1]
    shown = [name for name in differing if not name.startswith(RUNTIME_FIELDS)]
    rows = [
        {"run": record.path.name} | {name: _text(config[name]) for name in shown} | _result(record)
        for record, config in zip(found, configs, strict=True)
    ]
    cells = [[str(value) for value in row.values()] for row in rows]
    _print("", list(rows[0]), cells)
    if files := _write(folder / "table", _markdown(list(rows[0]), cells), rows):
        print(f"also in {' and '.join(files)}", file=sys.stderr)
    return rows


def _result(record: RunRecord) -> dict[str, Any]:
    ended, validated = ([row for row in record.rows if key in row] for key in ("time/goodput", "val/accuracy"))
    best = record.best_row
    spent = goodput.total(record.attempts)
    return {
        "outcome": record.state,
        "epochs": max((row.get("epoch", 0) for row in (*ended, *validated)), default=0),
        "best accuracy": f"{best['val/accuracy']:.4f}"
        if best
        else ""
        if record.run.data.validates
        else "not validated",
        "at epoch": best.get("epoch", "") if best else "",
        "attempts": spent["attempts"],
        "lost steps": spent["lost_steps"],
        "goodput": f"{spent['goodput']:.2f}",
    }


def _text(value: Any) -> str:
    if value is None:  # an empty cell
        return ""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def show_sweeps(sweeps: Mapping[str, Sweep], rows: Rows, folder: Path, folds: int) -> list[dict[str, Any]]:
    """Print each sweep's table and write it to SWEEP.md and SWEEP.csv (numbers in full) in ``folder``.

    SWEEP.png there has the curves: a line for each row, a band over its seeds or ``folds``.
    """
    found, head = [], tuple("folds" if folds and word == "seeds" else word for word in HEAD)
    for name, sweep in sweeps.items():
        records = measured(name, sweep, rows)
        cells = [_cells(record) for record in records]
        note = _note(sweep, all(member.run.data.validates for member in unique(rows)), folds)
        note += _squared({row.name: rows[name, row.name][0].run.optim.loss for row in sweep.rows})
        lines = [f"# {name}: {sweep.what}", "", *_markdown(head, cells), "", note]
        whole = [
            {key: _text(value) for key, value in record.items() if key != "runs"}
            | {"missing": ", ".join(f"{seed} {state}" for seed, state in record["missing"].items())}
            for record in records
        ]
        stem = folder / name.replace("/", "-")
        files = _write(stem, lines, whole) + _draw(stem, {row.name: rows[name, row.name] for row in sweep.rows})
        _print(f"{name}: {sweep.what}", head, cells)
        print(note + (f"\nalso in {', '.join(files)}" if files else ""), file=sys.stderr)
        if folds:
            _add_folds({row.name: rows[name, row.name] for row in sweep.rows}, records, folder)
        found.append({"sweep": name, "what": sweep.what, "finding": sweep.finding, "rows": records, "files": files})
    return found


def _add_folds(members: Mapping[str, Sequence[Member]], records: Sequence[dict[str, Any]], folder: Path) -> None:
    """Add to each record, by seed, what its folds are together, and print it."""
    for record, (row, own) in zip(records, members.items(), strict=True):
        record["cross_validated"] = {}
        for seed in dict.fromkeys(member.run.seed for member in own):
            some = [member for member in own if member.run.seed == seed]
            if together := write_folds(folder / f"{record['recipe']}-seed{seed}-{len(some)}folds", some):
                record["cross_validated"][seed] = together
                print(
                    f"{row}: {100 * together['accuracy']:.1f} % ({100 * together['low']:.1f} to "
                    f"{100 * together['high']:.1f}) of {together['images']:,} images, each predicted by the run that "
                    f"did not train on it\n  for cls compare: {together['predictions']}\n"
                    f"  all as one: {together['predict']}",
                    file=sys.stderr,
                )


def measured(sweep_name: str, sweep: Sweep, rows: Rows) -> list[dict[str, Any]]:
    """One record per row of the table: the report's figures, ours (mean, sample standard deviation), the seeds."""
    return [
        {"row": row.name, "recipe": row.recipe, "report_validation": row.validation, "report_test": row.test}
        | _ours(rows[sweep_name, row.name])
        for row in sweep.rows
    ]


def _ours(members: Sequence[Member]) -> dict[str, Any]:
    done = [member for member in members if member.state == "done"]
    val = [_validation(RunRecord(member.path)) for member in done if member.run.data.validates]
    test = [RunRecord(member.path).test for member in done]
    figures = {
        "validation": [accuracy(p) for p in val],
        "test": [accuracy(p) for p in test if p and (p.labels >= 0).any()],
        "validation_loss": [p.loss for p in val],
    }
    found: dict[str, Any] = {}
    for name, values in figures.items():
        found[name] = mean(values) if values else None
        found[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
        found[f"{name}_n"] = len(values)
    found["seeds"] = [member.run.seed for member in done]
    found["missing"] = {member.label: member.state or "not started" for member in members if member.state != "done"}
    found["runs"] = [str(member.path) for member in done]
    return found


def _validation(record: RunRecord) -> Predictions:
    if record.val is None:
        file = record.predictions_file("val")
        raise ValueError(f"{file} is missing though that run is done: copy it here, or delete the run directory")
    return record.val


def _cells(record: Mapping[str, Any]) -> list[str]:
    """A record as text, in the columns of HEAD."""
    missing = ", ".join(f"{seed} {state.replace('_', ' ')}" for seed, state in record["missing"].items())
    done = len(record["seeds"])
    reported = [figure(record["report_validation"]), figure(record["report_test"])]
    ours = [_spread(record, name) for name in ("validation", "test", "validation_loss")]
    return [record["row"], record["recipe"], *reported, *ours, f"{done} of {done + len(record['missing'])}", missing]


def _spread(record: Mapping[str, Any], name: str) -> str:
    value, sd, n = record[name], record[f"{name}_sd"], record[f"{name}_n"]
    if value is None:
        return "–"
    text = f"{value:.4f}" if math.isfinite(value) else str(value)
    text += f" ± {sd:.4f}" if sd is not None else ""
    # test images may have labels in some runs only: then it is a mean over fewer seeds
    return text if n == len(record["seeds"]) else f"{text} (n = {n})"


def _note(sweep: Sweep, validates: bool, folds: int) -> str:
    """What the columns are."""
    theirs = any(row.validation or row.test for row in sweep.rows)
    text = "report: the figures of its author, on other images. " if theirs else ""
    text += "" if validates else f"Of some runs: {NO_VALIDATION}. "
    text += "our: accuracy of the best weights, mean ± sample standard deviation over the "
    text += f"{'folds' if folds else 'seeds'} that are done; test with the recipe's test-time views."
    return text + (f" The report says: {sweep.finding}." if sweep.finding else "")


def _squared(losses: Mapping[str, str]) -> str:
    """A sentence about the rows whose loss is not that of the others."""
    squared = [row for row, loss in losses.items() if loss == "mse"]
    if len(squared) in (0, len(losses)):
        return ""
    return f" val loss: the squared error for {', '.join(squared)}, the log loss for the others."


def _print(title: str, head: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(*map(escape, head), title=escape(title) or None, title_justify="left", box=None)
    for row in cells:
        table.add_row(*map(escape, row))
    console.print(table)


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    first, *rest = ["| " + " | ".join(row) + " |" for row in (head, *cells)]
    return [first, "|" + "---|" * len(head), *rest]


def _write(stem: Path, markdown: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write STEM.md and STEM.csv; their names, none if they cannot be written: the folder may be another user's."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    names = [f"{stem}.md", f"{stem}.csv"]
    try:
        write_whole(Path(names[0]), ("\n".join(markdown) + "\n").encode())
        write_whole(Path(names[1]), text.getvalue().encode())
    except OSError as error:
        print(f"{stem.name}.md and .csv were not written into {stem.parent} ({error.strerror})", file=sys.stderr)
        return []
    return names


def row_curves(members: Mapping[str, Sequence[Member]]) -> list[CurveGroup]:
    """The curves of each row's finished runs, or of those begun where none has finished."""
    groups = []
    for row, own in members.items():
        done = [member for member in own if member.state == "done"]
        runs = [lines_of(RunRecord(member.path)) for member in done or own if member.state]
        if runs := [lines for lines in runs if any(lines.values())]:
            groups.append(CurveGroup(row, runs, own[0].run.optim.loss))
    return groups


def _draw(stem: Path, members: Mapping[str, Sequence[Member]]) -> list[str]:
    """Draw STEM.png; its name, if there is something to draw."""
    groups = row_curves(members)
    if not groups:
        return []
    from cls.evaluation.plots import write_group_curves  # matplotlib: 1 s, only for a picture

    file = Path(f"{stem}.png")
    try:
        write_group_curves(groups, file)
    except OSError as error:
        print(f"{file.name} was not written into {file.parent} ({error.strerror})", file=sys.stderr)
        return []
    return [str(file)]
