"""``cls audit``: attempts and lost steps of a run, and proof from its ledger that each image was used exactly once."""

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cls.data.corrupt_images import corrupt_file, read_corrupt
from cls.evaluation.run_record import RunRecord
from cls.runtime.console import console
from cls.runtime.exit import DataError
from cls.tracking import goodput
from cls.tracking.ledger import HEADER, id_sum

Row = tuple[int, int, str, str]
"""Step, sample index, image and hash of its pixels."""


def audit_run(path: str) -> tuple[dict[str, Any], DataError | None]:
    """Check that each image was used once per epoch over all attempts: what was found, and a DataError if not."""
    record, out = RunRecord(Path(path)), Path(path)
    run, data = record.run, record.data
    if not data:
        raise ValueError(f"{out} ended before its images were read: it has no {out / 'data.json'} to audit")
    images, total = data["train"]["images"], goodput.total(record.attempts)
    found = audit(out, images, run.train.batch, run.data.balanced, data["train"].get("ids", ""))
    found |= {"attempts": record.attempts, "total": total}
    print_attempts(record.attempts, total)
    if not (out / "metrics.jsonl").exists() and total["steps"]:
        found["problems"].append(f"metrics.jsonl is missing, and {total['steps']} steps were done")
    if found["problems"]:
        return found, DataError(f"{out}: " + "; ".join(found["problems"][:5]))
    proof = f"{found['samples']} sample indices ({found['samples'] / images:.2f} epochs), each used exactly once, "
    proof += "up to the last recorded step"
    if not run.data.balanced:
        proof += "; every whole epoch is a permutation of the same images"
        if (listed := corrupt_file(out)).exists():
            proof += f", except that others replace those of {listed.name}"
    for first, end in found["silent"]:
        proof += f"; steps {first} to {end - 1} have no ledger and are not checked"
    absent = "no ledger: start the run with --track.ledger True to prove that each image is used exactly once"
    print(proof if found["ledger"] else absent, file=sys.stderr)
    return found, None


def print_attempts(attempts: Sequence[dict[str, Any]], total: dict[str, Any]) -> None:
    """Each attempt: where it ran, how it ended, how its seconds were spent; and the sum of all."""
    facts = Table("attempt", "from step", "steps", "lost", "processes", "device", "nodes", "job", "outcome", box=None)
    spent = Table("attempt", *(f"{part} s" for part in goodput.PARTS), "goodput", "slowest rank", box=None)
    for attempt in attempts:
        row = [attempt[key] for key in ("attempt", "step", "steps", "lost_steps", "processes", "device")]
        facts.add_row(*map(str, [*row, attempt["nodes"] or attempt["host"], attempt["job"], attempt["outcome"]]))
        seconds = [f"{value:.1f}" for value in attempt["seconds"].values()]
        spent.add_row(str(attempt["attempt"]), *seconds, f"{attempt['goodput']:.2f}", str(attempt["slowest_rank"]))
    spent.add_row("all", *(f"{value:.1f}" for value in total["seconds"].values()), f"{total['goodput']:.2f}", "")
    console.print(facts, "", spent)
    print("attempt: one start of the run; lost: steps that a later one had to do again, since no checkpoint held them; "
          "goodput: the share of the time in steps that are part of the result", file=sys.stderr)  # fmt: skip


def audit(out: Path, images: int, batch: int, balanced: bool, ids: str = "") -> dict[str, Any]:
    """Attempts, lost steps and, where there is a ledger, what it proves; ``problems`` is empty when all is right.

    An attempt's rows count up to the step from which the next one resumed; later ones were lost and done again. The
    last attempt's rows must reach the last step of events.jsonl and metrics.jsonl; metrics.jsonl must have each step
    once. Unless balanced, each whole epoch must be one permutation of the same images, except for corrupt ones, which
    others replace. A sample index that was used again must have had the same image and pixels.
    ``images``: number of training images; ``batch``: global batch; ``ids``: :func:`id_sum` of the training set, '' if
    unknown; ``silent``: steps [from, to) of attempts without a ledger, which are not checked.
    """
    record = RunRecord(out)
    if not record.starts:
        raise ValueError(f"{out / 'events.jsonl'} does not exist or is empty: name a run directory")
    metrics = record.rows  # before the ledger: a live run writes the ledger first
    numbers, begins = ([start[key] for start in record.starts] for key in ("attempt", "step"))
    noted = [event for event in record.events if event["attempt"] == numbers[-1]]
    last = max((int(row["step"]) for row in (*noted, *metrics) if "step" in row), default=0)
    rows = [_rows(out, number) for number in numbers]
    ends = [*begins[1:], _reached(rows[-1], batch, last)]
    attempts, kept, image_of, silent = [], Counter[int](), dict[int, str](), list[tuple[int, int]]()
    for number, found, begin, end in zip(numbers, rows, begins, ends, strict=True):
        lost = max(0, _whole_steps(found, batch, begin) - end)
        attempts.append({"attempt": number, "step": begin, "lost": lost})
        for step, index, name, _ in found:
            if begin <= step < end:
                kept[index] += 1
                image_of[index] = name
        if not found and end > begin:
            silent.append((begin, end))
    problems = _recorded(out, metrics, last)
    if any(rows):
        problems += _repeats(rows, batch) + _gaps(kept, batch, silent, last)
        problems += [] if balanced else _epochs(image_of, images, set(read_corrupt(out)), ids)
    return {"attempts": attempts, "samples": len(kept), "ledger": any(rows), "silent": silent, "problems": problems}


def _rows(out: Path, attempt: int) -> list[Row]:
    found: list[Row] = []
    for path in sorted((out / "ledger").glob(f"{attempt:04d}-*.csv")):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.reader(file), 1):
                    if len(row) == len(HEADER) and len(row[3]) == 32:  # not the half line of a kill
                        found.append((_index(row[0], number), _index(row[1], number), row[2], row[3]))
        except (OSError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged ({error}): copy it from where it is whole") from None
    return found


def _index(text: str, number: int) -> int:
    """A step or sample index; ValueError names the row ``number``."""
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"row {number}: {text[:40]!r} is not a step or sample index")
    return int(text)


def _whole_steps(rows: list[Row], batch: int, first: int) -> int:
    """The step that an attempt from step ``first`` on reached; it may have been killed inside its last step."""
    counts = Counter(step for step, *_ in rows)
    last = max(counts, default=first - 1)
    return last + (counts[last] >= batch)


def _reached(rows: list[Row], batch: int, last: int) -> int:
    """The step up to which the last attempt's rows count: ``last``, and whole steps after it."""
    counts = Counter(step for step, *_ in rows)
    while counts[last] >= batch:
        last += 1
    return last


def _recorded(out: Path, metrics: list[dict[str, Any]], last: int) -> list[str]:
    if not (out / "metrics.jsonl").exists():
        return []
    counts = Counter(row["step"] for row in metrics if "train/loss" in row)
    wrong = [step for step in range(1, last + 1) if counts[step] != 1] + [step for step in counts if step < 1]
    if not wrong:
        return []
    return [f"{len(wrong)} of {last} steps not once in metrics.jsonl, e.g. step {wrong[0]}: {counts[wrong[0]]} times"]


def _repeats(rows: list[list[Row]], batch: int) -> list[str]:
    """Sample indices used again with another image, and rows under a wrong step."""
    problems, seen, astray = [], dict[int, tuple[str, str]](), list[Row]()
    for step, index, name, pixels in (row for found in rows for row in found):
        if seen.setdefault(index, (name, pixels)) != (name, pixels):
            problems.append(f"index {index} was {seen[index][0]} and later {name}, or had other pixels")
        if step != index // batch:
            astray.append((step, index, name, pixels))
    if astray:
        step, index, *_ = astray[0]
        which = f"index {index}: {step}, not {index // batch}"
        problems.append(f"{len(astray)} sample indices under another step, e.g. {which}")
    return problems


def _gaps(kept: Counter[int], batch: int, silent: list[tuple[int, int]], last: int) -> list[str]:
    """Sample indices used twice or never, from 0 to the end of the last step."""
    total = max(-(-(max(kept, default=-1) + 1) // batch), last) * batch
    unknown = {index for first, end in silent for index in range(first * batch, end * batch)}
    wrong = [index for index in range(total) if kept[index] != 1 and index not in unknown]
    first = f"e.g. index {wrong[0]}: {kept[wrong[0]]} times" if wrong else ""
    return [f"{len(wrong)} sample indices not used exactly once, {first}"] if wrong else []


def _epochs(image_of: dict[int, str], images: int, corrupt: set[str], ids: str) -> list[str]:
    """Images that an epoch has twice or lacks. Only whole epochs, with a ledger and without gaps, can lack one."""
    problems, whole = [], list[set[str]]()
    for epoch in range(-(-(max(image_of, default=-1) + 1) // images)):
        indices = range(epoch * images, (epoch + 1) * images)
        counts = Counter(image_of[index] for index in indices if index in image_of)
        twice = [name for name, count in counts.items() if count > 1]
        spare = counts.total() - len(counts)  # corrupt images, replaced by others
        if spare > len(corrupt - counts.keys()):
            problems.append(f"epoch {epoch + 1}: {len(twice)} images more than once, e.g. {twice[0]}")
        if counts.total() == images:
            whole.append(set(counts))
    known = set(image_of.values()) | corrupt
    seen = Counter(name for epoch in whole for name in epoch)
    if lacking := sorted((seen[name], name) for name in known - corrupt if seen[name] < len(whole)):
        count, name = lacking[0]
        problems.append(f"{len(lacking)} images not in every epoch, e.g. {name}: in {count} of {len(whole)}")
    elif whole and ids and id_sum(known) != ids:
        problems.append(f"the {len(known)} images of the ledger are not those that data.json was written for")
    return problems
