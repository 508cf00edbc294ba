"""One table of all rows: aligned on standard output, in Markdown in OUT/table.md.

python -m tests.gpu.table OUT; exits with 1 if a row failed.
"""

import sys
import time
from pathlib import Path

from tests.gpu.rows import FINAL, Figures, Rows, words

COLUMNS = {"images_per_second": "images/s", "step_ms": "step ms", "host_ms": "host ms", "peak_gib": "peak GiB"}
MACHINE = "machine"  # the row with the names of card and versions


def cells(row: str, line: Figures) -> list[str]:
    """The row's name, its four figures where it has them, and everything else as words."""
    line = dict(line)
    state, _, _ = line.pop("state"), line.pop("time"), line.pop("row")
    if state not in FINAL:
        state, line = "skipped", {"why": "no time was left" if state == "planned" else "stopped in it"}
    why = line.pop("why", "")
    figures = [f"{line.pop(name):.4g}" if name in line else "" for name in COLUMNS]
    return [row, *figures, words(line) if state == "ok" else f"{state}: {why}"]


def aligned(table: list[list[str]]) -> str:
    """Columns padded to their widest cell; figures to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        figures = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *figures, row[-1]]).rstrip())
    return "\n".join(lines)


def markdown(table: list[list[str]]) -> str:
    head, *rows = [[cell.replace("|", "/") for cell in row] for row in table]
    rule = ["---", *["---:"] * len(COLUMNS), "---"]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)) + "\n"


def main(out: Path) -> int:
    rows = Rows(out).read()
    head = cells(MACHINE, rows.pop(MACHINE))[-1] if MACHINE in rows else "machine unknown"
    title = f"{time.strftime('%Y-%m-%d %H:%M')}, {head}"
    table = [["row", *COLUMNS.values(), "result"], *(cells(row, line) for row, line in rows.items())]
    failed = sum(line["state"] == "FAILED" for line in rows.values())
    skipped = sum(row[-1].startswith("skipped") for row in table)
    total = f"{len(rows)} rows, {failed} FAILED, {skipped} skipped"
    (out / "table.md").write_text(f"{title}\n\n{markdown(table)}\n{total}\n")
    print(f"\n{title}\n\n{aligned(table)}\n\n{total}; in Markdown: {out / 'table.md'}")
    return int(failed > 0 or not rows)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
