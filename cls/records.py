"""What the records of runs say, as tables; no network is built and no image is read for it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cls import goodput
from cls.console import PEOPLE
from cls.data.ledger import audit
from cls.outcome import DataError
from cls.stored import read_data, read_run_directory
from cls.sweep.folder import sweep, write_tables


def audit_run(path: str) -> dict[str, Any]:
    """Whether each image was used exactly once per epoch over all lives; DataError if not."""
    out = Path(path)
    run, data = read_run_directory(out), read_data(out)
    if not data:
        raise ValueError(f"{out} ended before its images were read: it has no {out / 'data.json'} to audit")
    found = audit(out, data["train"]["images"], run.train.batch, run.data.balanced, data["train"].get("ids", ""))
    found |= {"lives": goodput.lives(out)}
    found |= {"total": goodput.total(found["lives"])}
    print_lives(found["lives"], found["total"])
    if not (out / "metrics.jsonl").exists() and found["total"]["steps"]:
        found["problems"].append(f"metrics.jsonl is missing, and {found['total']['steps']} steps were done")
    if found["problems"]:
        raise DataError(f"{out}: " + "; ".join(found["problems"][:5]))
    epochs = found["draws"] / data["train"]["images"]
    proof = f"{found['draws']} draws ({epochs:.2f} epochs), each used exactly once, up to the last step of the record"
    if not run.data.balanced:
        proof += "; every whole epoch is a permutation of the same images"
        if (out / "bad_images.csv").exists():
            proof += ", but that others replace those of bad_images.csv"
    for first, end in found["silent"]:
        proof += f"; nothing is known of steps {first} to {end - 1}: there is no ledger of them"
    absent = "no ledger: start the run with --track.ledger True for the proof of exactly-once"
    print(proof if found["ledger"] else absent, file=sys.stderr)
    return found


def print_lives(lives: Sequence[dict[str, Any]], total: dict[str, Any]) -> None:
    """Each life of a run and all of them: where it was and how it ended, and where its seconds went."""
    facts = Table("life", "from step", "steps", "lost", "processes", "device", "nodes", "job", "outcome", box=None)
    spent = Table("life", *(f"{part} s" for part in goodput.PARTS), "goodput", "slowest rank", box=None)
    for life in lives:
        row = [life[key] for key in ("life", "step", "steps", "lost_steps", "processes", "device")]
        facts.add_row(*map(str, [*row, life["nodes"] or life["host"], life["job"], life["outcome"]]))
        seconds = [f"{value:.1f}" for value in life["seconds"].values()]
        spent.add_row(str(life["life"]), *seconds, f"{life['goodput']:.2f}", str(life["slowest_rank"]))
    spent.add_row("all", *(f"{value:.1f}" for value in total["seconds"].values()), f"{total['goodput']:.2f}", "")
    PEOPLE.print(facts, "", spent)


def sweep_table(folder: str) -> list[dict[str, Any]]:
    """Runs side by side."""
    rows = sweep(Path(folder))
    table = Table(*map(escape, rows[0]), box=None)
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    PEOPLE.print(table)
    try:
        write_tables(Path(folder), rows)
        print(f"also in {Path(folder) / 'table.md'} and table.csv", file=sys.stderr)
    except OSError as error:  # of somebody else's runs: what is shown is the answer
        print(f"table.md and table.csv were not written into {folder} ({error.strerror})", file=sys.stderr)
    return rows
