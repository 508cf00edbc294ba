"""The audit of a run finds whatever is planted: in a ledger, in metrics.jsonl, in the order of images."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cls.commands.audit import audit, audit_run
from cls.config import Run, change, to_yaml
from cls.data.sampler import Sampler
from cls.runtime.exit import DataError
from cls.runtime.timer import KINDS
from cls.tracking.ledger import id_sum

IMAGES, BATCH, STEPS = 10, 4, 12  # four whole epochs and 8 images of the fifth
NAMES = [f"train/{'ab'[i % 2]}/{i}.jpg" for i in range(IMAGES)]
Rows = list[list[Any]]


def rows_of(first: int, last: int, names: list[str] = NAMES) -> Rows:
    """The ledger of an undisturbed process."""
    order, draws = Sampler(np.zeros(IMAGES, dtype=int), 0, False), range(first * BATCH, last * BATCH)
    return [[draw // BATCH, draw, names[order.row(draw)], f"{draw:032x}"] for draw in draws]


def record(out: Path, rows: Rows, steps: int = STEPS, attempt: int = 0, first: int = 0, ids: bool = True) -> Path:
    """A run directory of one attempt, or one attempt more."""
    (out / "ledger").mkdir(parents=True, exist_ok=True)
    run = change(Run(), train={"batch": BATCH, "micro_batch": BATCH}, track={"ledger": True})
    (out / "config.yaml").write_text(to_yaml(run))
    facts = {"images": IMAGES, "sha256": "x"} | ({"ids": id_sum(reversed(NAMES))} if ids else {})
    (out / "data.json").write_text(json.dumps({"train": facts, "val": {"images": 1, "sha256": "x"}}))
    with (out / "ledger" / f"{attempt:04d}-0000.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    clock = dict.fromkeys(KINDS, 1.0)
    about = {"attempt": attempt, "time": 1.0, "host": "h", "processes": 1, "device": "CPU", "job": ""}
    start = about | {"event": "start", "step": first, "lost": 0, "previous_end": 0.0, "began": 0.5, "queue": 0.0}
    end = about | {"event": "end", "step": steps, "outcome": "done", "clock": clock}
    with (out / "events.jsonl").open("a") as file:
        file.write("".join(json.dumps(event) + "\n" for event in (start, end)))
    write_metrics(out, list(range(1, steps + 1)))
    return out


def write_metrics(out: Path, steps: list[int]) -> None:
    rows: list[dict[str, Any]] = [{"step": step, "time": 1.0, "train/loss": 0.5} for step in steps]
    rows += [{"step": step, "time": 1.0, "val/accuracy": 0.5} for step in steps if step % 3 == 0]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def problems(out: Path) -> list[str]:
    data = json.loads((out / "data.json").read_text())["train"]
    found = audit(out, IMAGES, BATCH, False, data.get("ids", ""))["problems"]
    document, error = audit_run(str(out))
    assert document["problems"] == found
    if found:
        assert isinstance(error, DataError) and found[0] in str(error)
    else:
        assert error is None
    return found


def changed(row: int, column: int, value: Any) -> Callable[[Rows], Rows]:
    def change_one(rows: Rows) -> Rows:
        rows[row][column] = value
        return rows

    return change_one


def swapped(rows: Rows) -> Rows:
    rows[3][2], rows[4][2] = rows[4][2], rows[3][2]  # within an epoch: still a permutation
    return rows


PLANTED: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "the last 5 steps cut": (
        lambda rows: rows[: -5 * BATCH], "20 sample indices not used exactly once, e.g. index 28: 0 times"
    ),
    "the last row cut": (lambda rows: rows[:-1], "1 sample indices not used exactly once, e.g. index 47: 0 times"),
    "all but the first row cut": (lambda rows: rows[:1], "47 sample indices not used"),
    "a foreign image": (changed(17, 2, "foreign.jpg"), "images not in every epoch, e.g. foreign.jpg: in 1 of 4"),
    "a foreign image in the unfinished epoch": (changed(45, 2, "foreign.jpg"), "e.g. foreign.jpg: in 0 of 4"),
    "an image twice in the unfinished epoch": (
        lambda rows: changed(45, 2, rows[44][2])(rows), "epoch 5: 1 images more than once",
    ),
    "one image renamed in all epochs": (
        lambda rows: [[*row[:2], "foreign.jpg" if row[2] == NAMES[3] else row[2], row[3]] for row in rows],
        "the 10 images of the ledger are not those that data.json was written for",
    ),
    "a draw under the next step": (changed(20, 0, 6), "1 sample indices under another step, e.g. index 20: 6, not 5"),
    "a draw twice": (lambda rows: [*rows, rows[9]], "index 9: 2 times"),
    "a draw lost in the middle": (lambda rows: rows[:9] + rows[10:], "index 9: 0 times"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_what_is_planted_in_a_ledger_is_found(tmp_path: Path, fault: str) -> None:
    plant, text = PLANTED[fault]
    assert problems(record(tmp_path / "whole", rows_of(0, STEPS))) == []
    found = problems(record(tmp_path / "run", plant(rows_of(0, STEPS))))
    assert any(text in one for one in found), found


def test_a_foreign_image_in_the_only_epoch_is_found_where_data_json_knows_the_ids(tmp_path: Path) -> None:
    rows = changed(7, 2, "foreign.jpg")(rows_of(0, 3))
    assert "not those that data.json" in problems(record(tmp_path / "run", rows, 3))[0]
    assert problems(record(tmp_path / "early", rows, 3, ids=False)) == []  # an earlier version noted none


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (list(range(1, STEPS - 4)), "5 of 12 steps not once in metrics.jsonl, e.g. step 8: 0 times"),
        ([1, 2, 4, *range(5, STEPS + 1)], "1 of 12 steps not once in metrics.jsonl, e.g. step 3: 0 times"),
        ([*range(1, STEPS + 1), 7], "1 of 12 steps not once in metrics.jsonl, e.g. step 7: 2 times"),
        ([*range(STEPS + 1)], "e.g. step 0: 1 times"),
        # a step without a ledger
        ([*range(1, STEPS + 2)], "4 sample indices not used exactly once, e.g. index 48: 0 times"),
        ([], "12 of 12 steps"),
    ],
)
def test_metrics_must_have_every_step_once(tmp_path: Path, steps: list[int], text: str) -> None:
    out = record(tmp_path / "run", rows_of(0, STEPS))
    write_metrics(out, steps)
    assert any(text in one for one in problems(out)), problems(out)


def test_a_missing_record_is_a_problem(tmp_path: Path) -> None:
    out = record(tmp_path / "run", rows_of(0, STEPS))
    (out / "metrics.jsonl").unlink()
    _, error = audit_run(str(out))
    assert isinstance(error, DataError) and "metrics.jsonl is missing, and 12 steps were done" in str(error)


def test_attempts_without_a_ledger_are_named_wherever_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = record(tmp_path / "run", rows_of(0, 7), 7)
    record(out, [], STEPS, 1, 7)
    (out / "ledger" / "0001-0000.csv").unlink()
    assert problems(out) == []
    assert "steps 7 to 11 have no ledger" in capsys.readouterr().err
    assert audit(out, IMAGES, BATCH, False)["silent"] == [(7, STEPS)]


def test_a_killed_attempt_may_have_begun_a_step_and_the_next_repeats_it(tmp_path: Path) -> None:
    """The kill came within step 8 of an attempt whose last checkpoint was of step 7."""
    half = rows_of(0, 9)[:-2]
    out = record(tmp_path / "run", half, 8)
    assert problems(out) == []
    shutil.copytree(out, tmp_path / "other")
    record(out, rows_of(7, STEPS), STEPS, 1, 7)
    assert problems(out) == []
    other = changed(1, 3, "f" * 32)(rows_of(7, STEPS))
    assert "index 29 was" in problems(record(tmp_path / "other", other, STEPS, 1, 7))[0]


@pytest.mark.parametrize("name", ["corrupt_images.csv", "bad_images.csv"])  # the second of earlier versions
def test_corrupt_images_may_be_replaced_by_others_of_the_epoch_and_no_more(tmp_path: Path, name: str) -> None:
    rows = rows_of(0, STEPS)
    bad = rows[3][2]
    for row in rows:
        if row[2] == bad:
            row[2] = next(name for name in NAMES if name != bad)
    out = record(tmp_path / "run", rows)
    assert problems(out)
    (out / name).write_text(f"id,reason\n{bad},broken\n")
    assert problems(out) == []
    with (out / "ledger" / "0000-0000.csv").open("w", newline="") as file:
        csv.writer(file).writerows(changed(12, 2, rows[13][2])(rows))
    assert "epoch 2" in problems(out)[0]


def test_a_ledger_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    out = record(tmp_path / "run", changed(5, 1, "five")(rows_of(0, STEPS)))
    with pytest.raises(ValueError, match=r"0000-0000\.csv is damaged \(row 6: 'five' is not a step or sample index\)"):
        audit(out, IMAGES, BATCH, False)
