"""The document of ``cls compare`` as text: the same tables and sentences in the terminal and as Markdown."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cls.evaluation.compare import listed
from cls.runtime.console import console, printable
from cls.runtime.paths import writing

SHOWN_CLASSES = 8


@dataclass(frozen=True)
class Sheet:
    """One table: a heading, the names of its columns, and its cells as text."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def numeric(sheet: Sheet, column: int) -> bool:
    """Whether a column has numbers only, which are aligned to the right."""
    return all(row[column][:1] in (*"+-<0123456789", "") for row in sheet.rows)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def sheets(document: dict[str, Any]) -> list[Sheet]:
    """All tables of a comparison; tables without rows and columns without text are left out."""
    found = [_accuracies(document), _differences(document)]
    found += [_classes(document["baseline"], row) for row in document["comparisons"]]
    found.append(_fields(document))
    return [_full(sheet) for sheet in found if sheet.rows]


def _full(sheet: Sheet) -> Sheet:
    kept = [i for i in range(len(sheet.columns)) if any(row[i] for row in sheet.rows)]
    rows = [tuple(printable(row[i]) for i in kept) for row in sheet.rows]
    return Sheet(printable(sheet.title), tuple(printable(sheet.columns[i]) for i in kept), rows)


def _accuracies(document: dict[str, Any]) -> Sheet:
    columns = ("run", "seed", "accuracy", "sd of seeds", "95 % interval", "corrupt")
    rows: list[tuple[str, ...]] = []
    for group in document["groups"]:
        runs, several = group["runs"], len(group["runs"]) > 1
        if several:
            count, sd = f"{len(runs)} seeds", percent(group["sd"])
            rows.append((group["group"], count, percent(group["mean"]), sd, _interval(group), ""))
        for run in runs:
            seed = run["made"] or ("" if run["seed"] is None else str(run["seed"]))
            name = f"· {run['run']}" if several else group["group"]
            rows.append((name, seed, percent(run["accuracy"]), "", _interval(run), str(run["corrupt"] or "")))
    of = f"{document['split']} images" if document["split"] else "images"
    title = f"Accuracy on {document['images']:,} {of} of {document['classes']} classes"
    return Sheet(title, columns, rows)


def _interval(row: dict[str, Any]) -> str:
    return f"{percent(row['low'])} to {percent(row['high'])}"


def _differences(document: dict[str, Any]) -> Sheet:
    columns = ("run", "points", "95 % interval", "only it right", "only baseline right", "p", "p (Holm)")
    many = len(document["comparisons"]) > 1
    rows: list[tuple[str, ...]] = [
        (
            row["group"], points(row["difference"]), f"{points(row['low'])} to {points(row['high'])}",
            str(row.get("only_group", "")), str(row.get("only_baseline", "")),
            p_text(row["p"]), p_text(row["p_holm"]) if many else "",
        )
        for row in document["comparisons"]
    ]  # fmt: skip
    return Sheet(f"Difference to {document['baseline']} on the same images", columns, rows)


def _classes(baseline: str, comparison: dict[str, Any]) -> Sheet:
    columns = ("class", "images", f"recall of {baseline}", f"of {comparison['group']}", "points", "p", "p (FDR)")
    changed = [row for row in comparison["classes"] if row["difference"]]
    rows: list[tuple[str, ...]] = [
        (
            row["class"], str(row["images"]), percent(row["baseline"]), percent(row["group"]),
            points(row["difference"]), p_text(row["p"]), p_text(row["p_adjusted"]),
        )
        for row in changed[:SHOWN_CLASSES]
    ]  # fmt: skip
    of = f" ({SHOWN_CLASSES} of {len(changed)} that differ)" if len(changed) > SHOWN_CLASSES else ""
    return Sheet(f"Classes that make most of the difference: {comparison['group']}{of}", columns, rows)


def _fields(document: dict[str, Any]) -> Sheet:
    columns = ("field", *(group["group"] for group in document["groups"]))
    rows: list[tuple[str, ...]] = [(field, *map(_value, values)) for field, values in document["fields"].items()]
    return Sheet("Fields that differ", columns, rows)


def _value(value: Any) -> str:
    if value is None:
        return "?"
    return (" ".join(map(str, value)) or "()") if isinstance(value, tuple) else str(value) or "''"


def notes(document: dict[str, Any]) -> list[str]:
    """How to read the figures; only what applies to these runs."""
    skipped = []
    if document["skipped"]:
        count = sum(len(group["runs"]) for group in document["groups"]) + len(document["skipped"])
        skipped = [f"Skipped: {listed(document['skipped'], count)}."]
    if others := document["other_files"]:
        skipped.append(
            f"Other files: those that validated {', '.join(others)} have the same names, but other sizes in bytes. "
            "Compare only where the pictures are the same, as after packing them at another size."
        )
    if not document["comparisons"]:
        return skipped
    of_one = [row["group"] for row in document["comparisons"] if row["test"] == "exact McNemar"]
    several = len(of_one) < len(document["comparisons"])
    single = any(group["seeds"] == 1 for group in document["groups"])
    out = [
        *skipped,
        "Accuracies: Wilson intervals. Differences: bootstrap over images, paired; the verdict follows the interval.",
    ]
    if several:
        out.append("Several seeds: intervals hold for images and seeds not seen; p by the same model, not McNemar's.")
    if several and single:
        out.append("A run of one seed is assumed to vary between seeds like the runs that it is compared with.")
    made = {group["group"]: group["runs"][0]["made"] for group in document["groups"]}
    if several and any(text.startswith("mean") for text in made.values()):
        out.append("An ensemble is assumed to vary between seeds like the mean of as many runs.")
    if of_one:
        who = f"{', '.join(of_one)} against {document['baseline']}: one" if several else "One"
        out.append(f"{who} seed each: this is about these networks; another seed of the same configuration may differ.")
    if any(row["images_needed"] for row in document["comparisons"] if not row["told_apart"]):
        out.append("Images needed: to detect a difference as large as observed here with 80 % power.")
    if len(document["comparisons"]) > 1:
        out.append("Each interval is for its comparison alone; p (Holm) allows for the number of comparisons.")
    if document["split"] == "val" and (soups := [name for name, text in made.items() if text.startswith("soup")]):
        out.append(f"{', '.join(soups)}: chosen by validation images, so its accuracy on them is optimistic.")
    out.append("p (FDR) of classes: Benjamini-Hochberg over all classes.")
    return out


def verdicts(document: dict[str, Any]) -> list[str]:
    """One sentence for each comparison."""
    return [f"{row['group']} against {document['baseline']}: {row['verdict']}" for row in document["comparisons"]]


def draw(paths: Sequence[str], file: str) -> dict[str, Any]:
    """Draw the runs' curves into ``file``; what it shows and what it skips."""
    from cls.evaluation.curves import read_groups, said
    from cls.evaluation.plots import write_group_curves  # matplotlib: 1 s, only for a picture

    groups, skipped = read_groups(paths)
    with writing("curves", file):
        write_group_curves(groups, Path(file))
    count = sum(len(group.runs) for group in groups)
    text = f"curves of {count} runs in {len(groups)} lines: {file}"
    print(text + (f"; skipped: {said(skipped)}" if skipped else ""), file=sys.stderr)
    return {"file": file, "lines": {group.name: len(group.runs) for group in groups}, "skipped": skipped}


def without_tables(to: str) -> dict[str, Any]:
    """Where too few runs have finished for a comparison: say so, also that ``to`` was not written."""
    text = "no tables: a comparison needs the predictions that runs write when they end"
    print(text + (f"; {to} was not written" if to else ""), file=sys.stderr)
    return {"groups": [], "comparisons": []}


def show(document: dict[str, Any]) -> None:
    """Print on standard error."""
    for sheet in sheets(document):
        console.print(sheet.title, style="bold", markup=False, highlight=False)
        table = Table(box=None)
        for i, column in enumerate(sheet.columns):
            table.add_column(escape(column), justify="right" if numeric(sheet, i) else "left")
        for row in sheet.rows:
            table.add_row(*map(escape, row))
        console.print(table, "")
    for sentence in verdicts(document):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for note in notes(document):
        console.print(note, style="dim", markup=False, highlight=False, soft_wrap=True)


def markdown(document: dict[str, Any]) -> str:
    """The tables and notes as one Markdown text."""
    lines = [*(f"- **{_plain(sentence)}**" for sentence in verdicts(document)), ""] if document["comparisons"] else []
    for sheet in sheets(document):
        rule = "".join("---:|" if numeric(sheet, i) else "---|" for i in range(len(sheet.columns)))
        lines += [f"### {_plain(sheet.title)}", "", _row(sheet.columns), f"|{rule}"]
        lines += [*map(_row, sheet.rows), ""]
    named = ("Skipped", "Other files")  # names have marks
    said = [_plain(note) if note.startswith(named) else note for note in notes(document)]
    return "\n".join([*lines, *(f"- {note}" for note in said)]).rstrip() + "\n"


def _plain(text: str) -> str:
    """Text escaped for a Markdown heading or cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~])|!(?=\[)", lambda found: "\\" + found[0], text)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"
