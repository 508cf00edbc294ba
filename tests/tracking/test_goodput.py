"""Where the time of a run went."""

import json
from pathlib import Path

import pytest

from cls.runtime.timer import KINDS
from cls.tracking.events import read_events
from cls.tracking.goodput import attempts, slowest


def clock(data: float, compute: float) -> dict[str, float]:
    return dict.fromkeys(KINDS, 100.0) | {"data": data, "compute": compute}


def test_the_slowest_rank_is_compared_with_the_median_of_all() -> None:
    """Ranks busy for 5, 9, 30 and 10 seconds: the third is 30 - 9.5 longer; the fastest does not decide."""
    assert slowest([clock(2, 3), clock(4, 5), clock(20, 10), clock(4, 6)]) == (2, 20.5)
    assert slowest([clock(1, 1)]) == (0, 0.0)
    assert slowest([clock(1, 1), clock(1, 1), clock(1, 1)])[1] == 0.0


def test_events_of_early_versions_may_lack_fields(tmp_path: Path) -> None:
    """They saved without a clock. A field with a wrong value is rejected there, too."""
    start = {"life": 0, "event": "start", "time": 10.0, "step": 0, "processes": 1, "device": "cpu", "host": "a"}
    saved = {"life": 0, "event": "save", "time": 20.0, "step": 5}
    epoch = {"life": 0, "event": "epoch", "time": 21.0, "step": 5}
    file = tmp_path / "lives.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in (start, saved, epoch)))
    (attempt,) = attempts(read_events(tmp_path))
    assert (attempt["steps"], attempt["slowest_rank"], attempt["seconds"]["startup"]) == (5, 0, 0.0)
    file.write_text(json.dumps(start) + "\n" + json.dumps(saved | {"clock": None}) + "\n")
    with pytest.raises(ValueError, match=r"lives\.jsonl: line 2 is no event \(clock is null\)"):
        read_events(tmp_path)
    (tmp_path / "events.jsonl").write_text(json.dumps({"attempt": 0, "event": "save", "time": 1.0, "step": 1}) + "\n")
    file.unlink()
    with pytest.raises(ValueError, match=r"events\.jsonl: line 1 is no event \(clock is null\)"):
        read_events(tmp_path)
