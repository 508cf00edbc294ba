"""How much of a run's time was training: per life and in total, from lives.jsonl.

Goodput is the share of all seconds, queue included, that went into steps which are still part of the run.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cls.runtime.timer import KINDS
from cls.tracking.events import read_events

log = logging.getLogger("cls")
PARTS = ("queue", *KINDS, "lost", "other")


def lost(rows: Sequence[Mapping[str, Any]], lost_rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For a life's start event: the steps that died with the one before, and when that was last heard of."""
    steps = len({row["step"] for row in lost_rows if "train/loss" in row})
    return {"lost": steps, "heard": max((row.get("time", 0.0) for row in (*rows, *lost_rows)), default=0.0)}


def slowest(clocks: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """The rank that the others waited for most, and how many seconds longer than their median it was busy.

    Busy is loading and computing; with ``train.reduce = fast`` and on GPUs computing includes the wait for others, so
    there only the loading tells ranks apart.
    """
    busy = [clock["data"] + clock["compute"] for clock in clocks]
    rank = max(range(len(busy)), key=busy.__getitem__)
    return rank, busy[rank] - median(busy)


def share(clock: Mapping[str, float], queue: float) -> float:
    """Goodput of a life that has lost nothing so far."""
    return clock["compute"] / max(1e-9, sum(clock.values()) + queue)


def lives(folder: Path) -> list[dict[str, Any]]:
    """One row per life: where, which steps, and its seconds by part (PARTS); ValueError for a damaged lives.jsonl."""
    events = read_events(folder, whole=True)
    early = {"queue": 0.0, "nodes": "", "job": "", "lost": 0, "heard": 0.0}  # what earlier versions did not note
    starts = [early | {"began": event["time"]} | event for event in events if event["event"] == "start"]
    return [
        _life(start, following, [event for event in events if event["life"] == start["life"]])
        for start, following in zip(starts, [*starts[1:], None], strict=False)
    ]


def _life(start: dict[str, Any], following: dict[str, Any] | None, events: list[dict[str, Any]]) -> dict[str, Any]:
    steps_lost = following["lost"] if following else 0
    timed = [event for event in events if "clock" in event]
    if steps_lost:  # what came after the last checkpoint was done again
        timed = [event for event in timed if event["event"] == "save"]
    clock = timed[-1]["clock"] if timed else dict.fromkeys(KINDS, 0.0)
    until = timed[-1]["time"] if timed else start["time"]
    heard = max(events[-1]["time"], following["heard"] if following else 0.0)
    wall = heard - start["began"] + start["queue"]
    if not timed:  # killed before anything was saved
        clock = clock | {"startup": start["time"] - start["began"]}
    gone = heard - until if steps_lost else 0.0
    end = next((event for event in events if event["event"] == "end"), None)
    ranks = [event["slowest"] for event in events if event["event"] == "epoch"]
    seconds = {"queue": start["queue"], **clock, "lost": max(0.0, gone)}
    seconds["other"] = max(0.0, wall - sum(seconds.values()))
    last = following["step"] if following else max(event.get("step", 0) for event in events)
    return {
        "life": start["life"], "step": start["step"], "steps": last - start["step"], "lost_steps": steps_lost,
        "processes": start["processes"], "device": start["device"], "host": start["host"], "nodes": start["nodes"],
        "job": start["job"], "outcome": end["outcome"] if end else "killed" if following else "",
        "slowest_rank": ranks[-1] if ranks else 0,
        "seconds": {part: round(seconds[part], 3) for part in PARTS}, "goodput": round(_share(seconds), 4),
    }  # fmt: skip


def so_far(folder: Path) -> dict[str, Any]:
    """:func:`total` of a run that is going on: what cannot be read is told of, and must not end the run."""
    try:
        return total(lives(folder))
    except Exception as error:  # lives.jsonl is a record; training does not hang on it
        log.warning("goodput is not known: %s", error)
        return total([])


def total(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All lives together; ``repeated_steps`` are those that were done more than once."""
    seconds = {part: round(sum(life["seconds"][part] for life in table), 3) for part in PARTS}
    gone = sum(life["lost_steps"] for life in table)
    return {
        "lives": len(table), "steps": sum(life["steps"] for life in table), "lost_steps": gone,
        "repeated_steps": gone if len(table) > 1 else 0, "seconds": seconds, "goodput": round(_share(seconds), 4),
    }  # fmt: skip


def _share(seconds: Mapping[str, float]) -> float:
    return seconds["compute"] / max(1e-9, sum(seconds.values()))
