"""Which image each draw was, on which rank, with which pixels: the proof of exactly-once, and the audit of it."""

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cls.files import Lines
from cls.folder import Folder
from cls.lives import read_lives

if TYPE_CHECKING:  # `cls audit` would load torch and datasets for two words
    from cls.data.access import Images
    from cls.data.draws import Batch

HEADER = ("step", "draw", "id", "pixels")


class Ledger:
    """One rank's rows of one life, in ``<out>/ledger/<life>-<rank>.csv``: step, draw, image, hash of its pixels."""

    def __init__(self, folder: Folder, rank: int, images: "Images") -> None:
        path = folder.path / "ledger" / f"{folder.life:04d}-{rank:04d}.csv"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # of a start that failed before its life began
        self._lines, self._images, self._batch = Lines(path), images, folder.run.train.batch

    def note(self, batch: "Batch") -> None:
        rows = []
        for draw, row, pixels in zip(batch.draws, batch.rows, batch.pixels, strict=True):
            name = self._images.name(row).replace('"', '""')
            digest = hashlib.blake2b(pixels.permute(1, 2, 0).numpy(), digest_size=16).hexdigest()
            rows.append(f'{draw // self._batch},{draw},"{name}",{digest}\n')
        self._lines.add("".join(rows).encode())


def audit(out: Path, images: int, batch: int, balanced: bool) -> dict[str, Any]:
    """Lives, lost steps and, where there is a ledger, what it proves; ``problems`` is empty when all is as it must be.

    A life's rows count up to the step from which the next life went on; the later ones were lost with it and done
    again. ``images``: of the training set; ``batch``: the global one. Unless balanced, each whole epoch must be one
    permutation, but for broken images that others stood in for; a draw that was done again must have had the same image
    and pixels. ``silent``: steps [from, to) of lives without a ledger, of which nothing is known.
    """
    starts = [event for event in read_lives(out) if event["event"] == "start"]
    if not starts:
        raise ValueError(f"{out / 'lives.jsonl'} does not exist or is empty: name a run directory")
    rows = [_rows(out, start["life"]) for start in starts]
    ends = [*(start["step"] for start in starts[1:]), None]
    lives, kept, seen = [], Counter[int](), dict[int, tuple[str, str]]()
    image_of, problems = dict[int, str](), list[str]()
    for start, found, end in zip(starts, rows, ends, strict=True):
        done = _whole_steps(found, batch, start["step"])
        last = done if end is None else end
        lives.append({"life": start["life"], "step": start["step"], "lost": max(0, done - last)})
        for step, draw, name, pixels in found:
            if seen.setdefault(draw, (name, pixels)) != (name, pixels):
                problems.append(f"draw {draw} was {seen[draw][0]} and later {name}, or had other pixels")
            if start["step"] <= step < last:
                kept[draw] += 1
                image_of[draw] = name
    spans = zip(starts, rows, ends, strict=True)
    silent = [(start["step"], end) for start, found, end in spans if not found and (end or 0) > start["step"]]
    if any(rows):
        problems += _gaps(kept, batch, silent) + ([] if balanced else _epochs(image_of, images, _broken(out)))
    return {"lives": lives, "draws": len(kept), "ledger": any(rows), "silent": silent, "problems": problems}


def _rows(out: Path, life: int) -> list[tuple[int, int, str, str]]:
    found: list[tuple[int, int, str, str]] = []
    for path in sorted((out / "ledger").glob(f"{life:04d}-*.csv")):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.reader(file):
                    if len(row) == len(HEADER) and len(row[3]) == 32:  # not the half line of a kill
                        found.append((_index(row[0]), _index(row[1]), row[2], row[3]))
        except (OSError, ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged ({error}): copy it from where it is whole") from None
    return found


def _index(text: str) -> int:
    """A step or a draw."""
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{text[:40]!r} is no number of a step or draw")
    return int(text)


def _whole_steps(rows: list[tuple[int, int, str, str]], batch: int, first: int) -> int:
    """The step up to which a life came: its last one may have been cut off inside."""
    counts = Counter(step for step, *_ in rows)
    last = max(counts, default=first - 1)
    return last + (counts[last] >= batch)


def _broken(out: Path) -> set[str]:
    path = out / "bad_images.csv"
    if not path.exists():
        return set()
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return {row.get("id", "") for row in csv.DictReader(file)}
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it from where it is whole") from None


def _gaps(kept: Counter[int], batch: int, silent: list[tuple[int, int]]) -> list[str]:
    """Draws that were used twice or never, from 0 to the last one."""
    total = -(-(max(kept, default=-1) + 1) // batch) * batch
    unknown = {draw for first, end in silent for draw in range(first * batch, end * batch)}
    wrong = [draw for draw in range(total) if kept[draw] != 1 and draw not in unknown]
    return [f"{len(wrong)} draws not used exactly once, e.g. draw {wrong[0]}: {kept[wrong[0]]} times"] if wrong else []


def _epochs(image_of: dict[int, str], images: int, broken: set[str]) -> list[str]:
    problems = []
    for epoch in range((max(image_of, default=-1) + 1) // images):
        draws = range(epoch * images, (epoch + 1) * images)
        if not all(draw in image_of for draw in draws):
            continue  # of a life without a ledger, or among the gaps
        counts = Counter(image_of[draw] for draw in draws)
        twice = [name for name, count in counts.items() if count > 1]
        if images - len(counts) > len(broken - counts.keys()):  # more than stood in for others
            problems.append(f"epoch {epoch + 1}: {len(twice)} images more than once, e.g. {twice[0]}")
    return problems
