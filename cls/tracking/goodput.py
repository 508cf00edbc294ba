"""Goodput: the share of a run's time, queue included, that went into steps which are part of the result.

Everything here is computed from the events of :mod:`cls.tracking.events`, per attempt and in total.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cls.runtime.timer import KINDS

Event = Mapping[str, Any]
PARTS = ("queue", *KINDS, "lost", "other")


def lost(rows: Sequence[Event], lost_rows: Sequence[Event]) -> dict[str, float]:
    """For a start event: the steps that were lost with the attempt before, and the time of its last row."""
    steps = len({row["step"] for row in lost_rows if "train/loss" in row})
    return {"lost": steps, "previous_end": max((row.get("time", 0.0) for row in (*rows, *lost_rows)), default=0.0)}


def slowest(clocks: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """The rank that was busy longest, and by how many seconds longer than the median.

    Busy: loading and computing. With ``train.reduce = fast`` and on GPUs computing includes the wait for other ranks,
    so there only the loading times differ.
    """
    busy = [clock["data"] + clock["compute"] for clock in clocks]
    rank = max(range(len(busy)), key=busy.__getitem__)
    return rank, busy[rank] - median(busy)


def share(seconds: Mapping[str, float]) -> float:
    """The goodput of seconds by part."""
    return seconds["compute"] / max(1e-9, sum(seconds.values()))


def attempts(events: Sequence[Event]) -> list[dict[str, Any]]:
    """One row per attempt: where it ran, which steps, and its seconds by part (PARTS).

    ``events`` as :func:`cls.tracking.events.read_events` gives them.
    """
    starts = [event for event in events if event["event"] == "start"]
    return [
        _attempt(start, following, [event for event in events if event["attempt"] == start["attempt"]])
        for start, following in zip(starts, [*starts[1:], None], strict=False)
    ]


def _attempt(start: Event, following: Event | None, events: Sequence[Event]) -> dict[str, Any]:
    lost_steps = following["lost"] if following else 0
    timed = [event for event in events if "clock" in event]
    if lost_steps:  # what came after the last checkpoint was done again
        timed = [event for event in timed if event["event"] == "save"]
    last_active = max(events[-1]["time"], following["previous_end"] if following else 0.0)
    seconds: dict[str, float] = {"queue": start["queue"], "lost": 0.0}
    if timed:
        seconds |= timed[-1]["clock"]
    else:  # killed before anything was saved
        seconds |= dict.fromkeys(KINDS, 0.0) | {"startup": start["time"] - start["began"]}
    if lost_steps:
        seconds["lost"] = max(0.0, last_active - (timed[-1] if timed else start)["time"])
    seconds["other"] = max(0.0, last_active - start["began"] + start["queue"] - sum(seconds.values()))
    last = following["step"] if following else max(event.get("step", 0) for event in events)
    outcomes = [event["outcome"] for event in events if event["event"] == "end"]
    ranks = [event["slowest"] for event in events if "slowest" in event]
    return {
        "attempt": start["attempt"], "step": start["step"], "steps": last - start["step"], "lost_steps": lost_steps,
        "processes": start["processes"], "device": start["device"], "host": start["host"], "nodes": start["nodes"],
        "job": start["job"], "outcome": outcomes[0] if outcomes else "killed" if following else "",
        "slowest_rank": ranks[-1] if ranks else 0,
        "seconds": {part: round(seconds[part], 3) for part in PARTS}, "goodput": round(share(seconds), 4),
    }  # fmt: skip


def total(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All attempts together; ``repeated_steps`` are those that were done more than once."""
    seconds = {part: round(sum(row["seconds"][part] for row in table), 3) for part in PARTS}
    lost_steps = sum(row["lost_steps"] for row in table)
    return {
        "attempts": len(table), "steps": sum(row["steps"] for row in table), "lost_steps": lost_steps,
        "repeated_steps": lost_steps if len(table) > 1 else 0, "seconds": seconds, "goodput": round(share(seconds), 4),
    }  # fmt: skip
