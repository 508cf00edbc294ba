"""The findings of `cls check` as tables on standard error."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cls.commands.check.describe import UNUSUAL
from cls.commands.check.findings import equal_ids, problems
from cls.runtime.console import console, printable

LINES = 20
IDS = 4


def show(facts: dict[str, Any]) -> None:
    """The document of :func:`cls.commands.check.findings.document`; long lists are cut, and say so."""
    _splits(facts["splits"])
    _classes(facts["classes"], facts["splits"])
    for kind, some in facts["unusual"].items():
        names = ", ".join(printable(one["id"]) for one in some["images"][:IDS]) or "most images, so none is listed"
        _print(f"{kind}: {some['count']:,} image(s) {UNUSUAL[kind]}: {names}")
    _table("corrupt images", facts["corrupt"], ("id", "split", "label", "reason"))
    ranked = sorted(facts["duplicates"], key=lambda group: (-len(group["splits"]), -len(group["labels"])))
    groups = [
        {
            "what": group["kind"],
            "splits": ", ".join(group["splits"]),
            "labels": ", ".join(group["labels"]),
            "images": equal_ids(group["images"], IDS),
        }
        for group in ranked
    ]
    _table("groups of duplicates", groups, ("what", "splits", "labels", "images"))
    if facts["partly_compared"]:
        _print(
            f"{facts['partly_compared']:,} images have too many similar images: each was compared only with the most "
            "similar of them, so some duplicates may be missed"
        )
    if facts["not_compared"]:
        _print(f"{facts['not_compared']:,} images are too small or too plain: of these only exact duplicates are found")
    for split, how in facts.get("predictions", {}).items():
        _print(f"predictions of {split}: {how['how']}; accuracy {how['accuracy']:.3f}")
    keys = ("id", "split", "label", "label_prob", "predicted", "predicted_prob")
    _table("possible label errors", facts.get("label_issues", []), keys)
    if not problems(facts):
        unseen = "; what the warnings above name was not checked" if len(facts.get("notes", ())) > 1 else ""
        _print(f"no problems found{unseen}")


def _splits(splits: dict[str, Any]) -> None:
    table = Table("split", "images", "unlabelled", "formats", "modes", "width", "height", "shorter side", box=None)
    for name, split in splits.items():
        sides = _counts({span: count for span, count in split["shorter_side"].items() if count})
        spans = [" / ".join(f"{value:g}" for value in split[side].values()) for side in ("width", "height")]
        counts = [_counts(split[key]) for key in ("formats", "modes")]
        table.add_row(name, f"{split['images']:,}", f"{split['unlabelled']:,}", *counts, *spans, sides)
    console.print(table, "")


def _classes(classes: Sequence[str], splits: dict[str, Any]) -> None:
    """The largest and the smallest ones, by training images."""
    train = splits["train"]["of_class"]
    ranked: list[str] = sorted(classes, key=lambda name: -train[name])
    shown = ranked if len(ranked) <= LINES else [*ranked[: LINES // 2], "…", *ranked[-LINES // 2 :]]
    table = Table("class", *splits, box=None)
    for name in shown:
        table.add_row(Text(printable(name)), *(str(split["of_class"].get(name, "…")) for split in splits.values()))
    ratio = train[ranked[0]] / max(1, train[ranked[-1]])
    console.print(table)
    _print(f"{len(classes)} classes; the largest has {ratio:.1f} times the training images of the smallest\n")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.items())


def _table(what: str, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    if not rows:
        return
    table = Table(*keys, box=None)
    for row in rows[:LINES]:
        table.add_row(*(Text(printable(str(row[key]))) for key in keys))
    _print(f"\n{what}: {len(rows):,}{f', the first {LINES}' if len(rows) > LINES else ''}")
    console.print(table)


def _print(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
