"""Goodput: the share of a run's time, queue included, that went into steps which are part of the result.

Everything here is computed from the events of :mod:`cls.tracking.events`, per attempt and in total.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cls.runtime.timer import KINDS

PARTS = ("queue", *KINDS, "lost", "other")


def lost(rows: Sequence[Mapping[str, Any]], lost_rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For a start event: the steps that were lost with the attempt before, and the time of its last row."""
    steps = len({row["step"] for row in lost_rows if "train/loss" in row})
    return {"lost": steps, "previous_end": max((row.get("time", 0.0) for row in (*rows, *lost_rows)), default=0.0)}


def slowest(clocks: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """The rank that the others waited for most, and how many seconds longer than their median it was busy.

    Busy is loading and computing; with ``train.reduce = fast`` and on GPUs computing includes the wait for others, so
    there only the loading tells ranks apart.
    """
    busy = [clock["data"] + clock["compute"] for clock in clocks]
    rank = max(range(len(busy)), key=busy.__getitem__)
    return rank, busy[rank] - median(busy)


def share(clock: Mapping[str, float], queue: float) -> float:
    """Goodput of an attempt that has lost nothing so far."""
    return clock["compute"] / max(1e-9, sum(clock.values()) + queue)


def attempts(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per attempt: where it ran, which steps, and its seconds by part (PARTS).

    ``events`` as :func:`cls.tracking.events.read_events` gives them.
    """
    early = {"queue": 0.0, "nodes": "", "job": "", "lost": 0, "previous_end": 0.0}  # what earlier versions lack
    starts = [early | {"began": event["time"]} | {**event} for event in events if event["event"] == "start"]
    return [
        _attempt(start, following, [event for event in events if event["attempt"] == start["attempt"]])
        for start, following in zip(starts, [*starts[1:], None], strict=False)
    ]


def _attempt(
    start: dict[str, Any], following: dict[str, Any] | None, events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    steps_lost = following["lost"] if following else 0
    timed = [event for event in events if "clock" in event]
    if steps_lost:  # what came after the last checkpoint was done again
        timed = [event for event in timed if event["event"] == "save"]
    clock = timed[-1]["clock"] if timed else dict.fromkeys(KINDS, 0.0)
    until = timed[-1]["time"] if timed else start["time"]
    last_active = max(events[-1]["time"], following["previous_end"] if following else 0.0)
    wall = last_active - start["began"] + start["queue"]
    if not timed:  # killed before anything was saved
        clock = clock | {"startup": start["time"] - start["began"]}
    end = next((event for event in events if event["event"] == "end"), None)
    ranks = [event["slowest"] for event in events if event["event"] == "epoch"]
    seconds = {"queue": start["queue"], **clock, "lost": max(0.0, last_active - until) if steps_lost else 0.0}
    seconds["other"] = max(0.0, wall - sum(seconds.values()))
    last = following["step"] if following else max(event.get("step", 0) for event in events)
    return {
        "attempt": start["attempt"], "step": start["step"], "steps": last - start["step"], "lost_steps": steps_lost,
        "processes": start["processes"], "device": start["device"], "host": start["host"], "nodes": start["nodes"],
        "job": start["job"], "outcome": end["outcome"] if end else "killed" if following else "",
        "slowest_rank": ranks[-1] if ranks else 0,
        "seconds": {part: round(seconds[part], 3) for part in PARTS}, "goodput": round(_share(seconds), 4),
    }  # fmt: skip


def total(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All attempts together; ``repeated_steps`` are those that were done more than once."""
    seconds = {part: round(sum(row["seconds"][part] for row in table), 3) for part in PARTS}
    lost_steps = sum(row["lost_steps"] for row in table)
    return {
        "attempts": len(table), "steps": sum(row["steps"] for row in table), "lost_steps": lost_steps,
        "repeated_steps": lost_steps if len(table) > 1 else 0, "seconds": seconds, "goodput": round(_share(seconds), 4),
    }  # fmt: skip


def _share(seconds: Mapping[str, float]) -> float:
    return seconds["compute"] / max(1e-9, sum(seconds.values()))
