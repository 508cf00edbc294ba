"""One search for a rate: its runs are on disk, all else follows from them."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cls.commands.fields import changed_fields
from cls.commands.options import TuneOptions
from cls.commands.sweep.local import run_members
from cls.commands.sweep.members import Member
from cls.commands.sweep.scripts import write_lines
from cls.commands.tune.members import DIVERGED, FAILED, candidate, command, head_run, member, starts, usable
from cls.commands.tune.race import Race, best_between, guessing, image_losses, proposal, race, trend
from cls.commands.tune.rounds import Plan, neighbors
from cls.config import Run, change, flat
from cls.evaluation.run_record import RunRecord
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import same_everywhere
from cls.tracking.run_files import read_data
from cls.tracking.run_status import read_exit, state_of
from cls.validate import check

USELESS = 0.95
"""Of the loss of guessing: a candidate must be below it."""
AGAIN = "the same command tries them again"


class Waiting(Exception):
    """The next runs were written for SLURM, or are running elsewhere."""


class Search:
    """``run`` is tuned; ``held`` is the same run with a part of its training images held out."""

    def __init__(self, run: Run, held: Run, plan: Plan, folder: Path, options: TuneOptions, stop: StopSignal) -> None:
        self.run, self.held, self.plan, self.folder, self.options, self.stop = run, held, plan, folder, options, stop
        self.launch = [os.path.expanduser(word) for word in shlex.split(options.launch)]
        self.spent, self.batches = 0.0, 0
        self.to_come = plan.fits_head + sum(k for k, _ in plan.rounds)
        self.losses: dict[tuple[int, float], np.ndarray] = {}
        self.guessing, self.precisions = math.inf, set[str]()
        self.first: Path | None = None

    def result(self) -> dict[str, Any]:
        if self.plan.fits_head:
            self._perform([head_run(self.held, self.plan, self.folder)])
            self.spent += self.plan.head_cost
        rounds: list[tuple[int, list[float]]] = []
        rates, pairs = starts(self.run), self.plan.comparisons
        for place, (count, steps) in enumerate(self.plan.rounds):
            rates = self._explore(count, steps, rates, self.plan.cost_after(place))
            rounds.append((steps, rates))
            best = rates[self._race(steps, rates, pairs).leader]
            rates = usable(self.run, [neighbors(best)[0], best, neighbors(best)[1]])
        pairs = max(pairs, sum(len(tried) * (len(tried) - 1) // 2 for _, tried in rounds))
        return self._document([(steps, tried, self._race(steps, tried, pairs)) for steps, tried in rounds])

    def _explore(self, count: int, steps: int, rates: list[float], later: float) -> list[float]:
        """These rates, and the neighbors of the best: up to ``count`` in all, or as far as the budget goes.

        ``later``: images that the following rounds cost.
        """
        while True:
            self._try(steps, rates)
            best = min(rates, key=lambda rate: float(self.losses[steps, rate].mean()))
            new = [rate for rate in usable(self.run, neighbors(best)) if rate not in rates]
            cost = self.spent + len(new) * self.plan.cost(steps) + later
            if not new or (cost > self.plan.allowed and len(rates) + len(new) > count):
                return rates
            rates = sorted([*rates, *new])

    def _try(self, steps: int, rates: Sequence[float]) -> None:
        """Run the candidates that are new, and read the losses of their held-out images."""
        new = [rate for rate in rates if (steps, rate) not in self.losses]
        runs = [candidate(self.held, self.plan, self.folder, rate, steps) for rate in new]
        self._perform(runs)
        for rate, run in zip(new, runs, strict=True):
            if state_of(Path(run.out)) == DIVERGED:
                self.losses[steps, rate] = np.array([math.inf])
                continue
            found = RunRecord(Path(run.out)).val
            if found is None:
                raise ValueError(f"{run.out} is done, but without predictions: delete it, and the same command runs it")
            self.losses[steps, rate] = image_losses(found, run.optim.loss)
            self.guessing = guessing(found, run.optim.loss)
        self.spent += len(new) * self.plan.cost(steps)

    def _perform(self, runs: Sequence[Run]) -> None:
        """Run what is not done; Waiting where that is elsewhere, ValueError for a run that failed."""
        members, rejected = [member(run) for run in runs], dict[str, str]()
        self.batches += 1
        self.to_come = max(0, self.to_come - len(runs))
        if self.options.slurm:
            self._queue(members)
        elif members:
            rejected = run_members(members, [[*self.launch, *command(run)] for run in runs], len(self.launch),
                                   self.stop, self.options.jobs, self.to_come)  # fmt: skip
        _reject_failed(members := [member(run) for run in runs], rejected)
        if open_ones := [str(each.path) for each in members if each.state != "done"]:
            names = ", ".join(open_ones)
            raise Waiting(f"{names}: running elsewhere; give the same command again when they have ended")
        _reject_other_images([self.first or members[0].path, *(each.path for each in members)])
        self.first = self.first or members[0].path
        self.precisions |= {RunRecord(each.path).run.train.precision for each in members}
        if len(self.precisions) > 1:
            raise ValueError(f"{self.folder}: its runs have different train.precision: name one, and another --out")

    def _queue(self, members: Sequence[Member]) -> None:
        """Write the runs for slurm/sweep.sh, and raise Waiting, unless all have ended."""
        if all(each.state == "done" for each in members):
            return
        file = Path(self.options.slurm)
        file = file.with_name(f"{file.stem}-{self.batches}{file.suffix}")
        written = file.exists()
        with writing("slurm", file):  # all of the batch: a queued task reads its line by number
            line = write_lines(file, [command(each.run) for each in members], self.folder)
        states = ", ".join(f"{each.path.name} {each.state or 'not started'}" for each in members)
        _reject_failed(members, {}, f"unless they are in the queue, submit them again with `{line}`")
        first = f"submit the next runs, unless they are in the queue ({states})," if written else "submit the next runs"
        raise Waiting(f"{first} with\n{line}\nand give the same command again when they have ended")

    def _race(self, steps: int, rates: Sequence[float], pairs: int) -> Race:
        losses = self._stacked(steps, rates)
        if not np.isfinite(losses).all(axis=1).any():
            remedy = "see the batches with cls show" if self.run.optim.clip else "try --optim.clip 1, and another --out"
            raise ValueError(f"all rates from {rates[0]:g} on diverged in {steps} steps: {remedy}")
        found = race(losses, pairs)
        lowest = found.losses[found.leader]
        # with weighted classes a useful network may lose against guessing the frequent one
        plain = not self.run.data.balanced and not self.run.optim.class_weight
        if plain and lowest > USELESS * self.guessing:
            raise ValueError(
                f"the lowest held-out loss after {steps} steps is {lowest:.3f}, that of guessing {self.guessing:.3f}: "
                "the runs are too short to compare rates. Give a larger --budget (it is now "
                f"{self.plan.planned / self.plan.whole:.2g}) and another --out"
            )
        return found

    def _stacked(self, steps: int, rates: Sequence[float]) -> np.ndarray:
        """k n losses; a row of inf where training diverged."""
        rows = [self.losses[steps, rate] for rate in rates]
        return np.stack([np.broadcast_to(row, max(map(len, rows))) for row in rows])

    def _document(self, rounds: Sequence[tuple[int, list[float], Race]]) -> dict[str, Any]:
        described = [_described(found, steps, rates, self.guessing) for steps, rates, found in rounds]
        last, slope, bounds = described[-1], 0.0, None
        if len(rounds) > 1:
            stacked = [(steps, np.array(rates), self._stacked(steps, rates)) for steps, rates, _ in rounds]
            slope, *bounds = trend(stacked, self.guessing, self.run.seed)
        scheduled = self.plan.steps - round(self.plan.images * self.run.optim.head_epochs / self.plan.batch)
        exact = proposal(last["best_rate"], last["steps"], scheduled, slope)
        least = self.run.optim.min_lr * self.run.optim.lr / self.run.optim.learning_rate(self.run.train.batch)
        rate = two_digits(exact, least)
        check(change(self.run, optim={"lr": rate}))
        fields = changed_fields(self.run, [name for name in flat(self.run) if name not in ("out", "optim.lr")])
        words = [*self.launch, self.run.recipe, *fields, "--optim.lr", f"{rate:g}"]
        return {
            "recipe": self.run.recipe, "rate": rate, "command": shlex.join(words), "steps": self.plan.steps,
            "images": self.plan.images, "held": self.plan.held, "slope": slope, "slope_interval": bounds,
            "run_images": self.plan.whole, "planned_images": round(self.plan.planned),
            "spent_images": round(self.spent), "rounds": described,
        }  # fmt: skip


def two_digits(rate: float, least: float) -> float:
    """The rate with two digits, not below ``least``."""
    near = float(f"{max(rate, least):.2g}")
    if near >= least:
        return near
    unit = 10.0 ** (math.floor(math.log10(least)) - 1)
    return float(f"{math.ceil(least / unit) * unit:.2g}")


def _reject_failed(members: Sequence[Member], rejected: Mapping[str, str], remedy: str = AGAIN) -> None:
    """``rejected``: directory and reason of those that failed now, also killed ones, which have no exit.json."""
    failed = {
        each.path: f"{each.state}: {read_exit(each.path).reason}"
        for each in members if each.state in (*FAILED, DIVERGED)
    } | {
        each.path: rejected[str(each.path)]
        for each in members if each.state not in ("done", "running") and str(each.path) in rejected
    }  # fmt: skip
    if failed:
        text = "\n  ".join(f"{path}: {reason}" for path, reason in failed.items())
        raise ValueError(f"{len(failed)} runs failed; {remedy}:\n  {text}")


def _reject_other_images(paths: Sequence[Path]) -> None:
    """ValueError unless these runs were trained and judged on the same images: their losses are compared in pairs."""
    first = read_data(paths[0])
    for path in paths[1:]:
        other = read_data(path)
        if first.keys() != other.keys() or not same_everywhere(first, other):
            raise ValueError(
                f"{paths[0]} and {path} were trained or judged on other images: delete the one that is out of date, or "
                "give another --out"
            )


def _described(found: Race, steps: int, rates: Sequence[float], ceiling: float) -> dict[str, Any]:
    """A round as plain values; a loss that is not finite is None."""

    def plain(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    def verdict(i: int) -> str:
        if not math.isfinite(found.losses[i]):
            return "diverged"
        return "best" if i == found.leader else "worse" if found.worse[i] else "undecided"

    return {
        "steps": steps,
        "best_rate": best_between(np.array(rates), found.losses, ceiling),
        "edge": found.leader in (0, len(rates) - 1),
        "candidates": [
            {"rate": rate, "loss": plain(found.losses[i]), "low": plain(found.against[i].low),
             "high": plain(found.against[i].high), "verdict": verdict(i)}
            for i, rate in enumerate(rates)
        ],
    }  # fmt: skip
