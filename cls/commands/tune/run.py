"""``cls tune``: rounds of short complete runs, from which the rate of the whole run follows."""

import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cls.commands.fields import changed_fields
from cls.commands.options import TuneOptions
from cls.commands.sweep.local import run_members
from cls.commands.sweep.scripts import write_lines
from cls.commands.tune.members import DIVERGED, candidate, command, head_run, member
from cls.commands.tune.race import Race, best_between, guessing, image_losses, race
from cls.commands.tune.rounds import GRID, STARTS, Plan, neighbors
from cls.commands.tune.show import show, show_plan
from cls.config import Run, diff, flat, to_yaml
from cls.data.sources import load
from cls.evaluation.run_record import RunRecord
from cls.runtime.files import write_whole
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_files import read_run
from cls.tracking.run_status import state_of

USELESS = 0.95
"""Of the loss of guessing: a candidate must be below it."""
SLOPES = (-0.5, 0.0)
"""Bounds of the exponent of the best rate over the steps."""


class Waiting(Exception):
    """The next runs were written for SLURM, or are running elsewhere."""


def tune(run: Run, options: TuneOptions, stop: StopSignal) -> dict[str, Any]:
    """The document of tune.json; without "rate" where SLURM has to run the next round first."""
    folder = Path(run.out or f"runs/tune-{run.recipe}")
    images = len(load(run.data, run.seed).train)
    plan = Plan(images, run.train.batch, run.train.epochs, run.model.weights != "none", options.budget)
    with writing("out", folder):
        _keep(folder, run, plan)
    search = Search(run, plan, folder, options, stop)
    show_plan(run, plan)
    try:
        document = search.result()
    except Waiting as waiting:
        print(waiting, file=sys.stderr)
        return {"folder": str(folder), "waiting": str(waiting)}
    with writing("out", folder):
        from cls.commands.tune.picture import write_picture  # matplotlib: 0.6 s

        write_picture(document, folder / "tune.png")
        write_whole(folder / "tune.json", json.dumps(document, indent=1).encode())
    show(document, folder)
    return document


def _keep(folder: Path, run: Run, plan: Plan) -> None:
    """Store the run that is tuned; ValueError where the folder holds another search, whose results would be mixed."""
    folder.mkdir(parents=True, exist_ok=True)
    file, facts = folder / "tune.yaml", f"# {plan.images} images, budget {plan.budget:g}\n"
    if not file.exists():
        write_whole(file, (facts + to_yaml(run)).encode())
        return
    lines = diff(read_run(file), run)
    before = file.read_text().partition("\n")[0] + "\n"
    if before != facts:
        lines.append(f"{before.strip()} -> {facts.strip()}")
    if lines:
        raise ValueError(
            f"out: {folder} holds a search with other settings; use another --out:\n  " + "\n  ".join(lines)
        )


class Search:
    """One search: its runs are on disk, all else follows from them."""

    def __init__(self, run: Run, plan: Plan, folder: Path, options: TuneOptions, stop: StopSignal) -> None:
        self.run, self.plan, self.folder, self.options, self.stop = run, plan, folder, options, stop
        self.launch = shlex.split(options.launch)
        self.spent, self.batches, self.began = 0.0, 0, time.monotonic()
        self.losses: dict[tuple[int, float], np.ndarray] = {}
        self.guessing = math.inf

    def result(self) -> dict[str, Any]:
        if self.plan.fits_head:
            self._perform([head_run(self.run, self.plan, self.folder)])
            self.spent += self.plan.head_cost
        rounds: list[dict[str, Any]] = []
        rates: list[float] = []
        for number, (_, steps) in enumerate(self.plan.rounds):
            rates = self._explore(steps) if number == 0 else rates
            self._try(steps, rates)
            found = self._race(steps, rates)
            self._reject_useless(found, steps)
            rounds.append(_described(found, steps, rates, self.guessing))
            order = [i for i in np.argsort(found.losses) if not found.worse[i]]
            if len(order) == 1 or number + 1 == len(self.plan.rounds):
                break
            rates = sorted(rates[i] for i in order[: self.plan.rounds[number + 1].candidates])
        return self._document(rounds)

    def _explore(self, steps: int) -> list[float]:
        """The first round's rates: three a decade apart, the neighbors of the best, and more while an edge is best."""
        rates = [rate for rate in STARTS[self.run.optim.name] if rate >= self.run.optim.min_lr]
        for _ in range(GRID):
            self._try(steps, rates)
            best = rates[int(np.argmin([self.losses[steps, rate].mean() for rate in rates]))]
            new = [rate for rate in neighbors(best) if rate not in rates and rate >= self.run.optim.min_lr]
            if not new:
                break
            rates = sorted([*rates, *new])
        return rates

    def _try(self, steps: int, rates: Sequence[float]) -> None:
        """Run the candidates that are new, and read the losses of their held-out images."""
        new = [rate for rate in rates if (steps, rate) not in self.losses]
        runs = [candidate(self.run, self.plan, self.folder, rate, steps) for rate in new]
        self._perform(runs)
        for rate, run in zip(new, runs, strict=True):
            if state_of(Path(run.out)) == DIVERGED:
                self.losses[steps, rate] = np.full(1, math.inf)
                continue
            found = RunRecord(Path(run.out)).val
            if found is None:
                raise ValueError(f"{run.out} is done, but without predictions: delete it, and the same command runs it")
            self.losses[steps, rate], self.guessing = image_losses(found), guessing(found)
        self.spent += sum(self.plan.cost(steps, self.plan.validations(steps)) for _ in new)

    def _perform(self, runs: Sequence[Run]) -> None:
        """Run what is not done; Waiting where that is elsewhere, ValueError for a run that failed."""
        members = [member(run) for run in runs]
        self.batches += 1
        if self.options.slurm and any(each.open for each in members):
            file = Path(self.options.slurm)
            file = file.with_name(f"{file.stem}-{self.batches}{file.suffix}")
            with writing("slurm", file):
                line = write_lines(file, [command(run) for run in runs], self.folder)  # a finished one ends at once
            raise Waiting(f"submit the next runs with\n{line}\nand give the same command again when they have ended")
        failed = run_members(members, [[*self.launch, *command(run)] for run in runs], len(self.launch), self.stop,
                             self.options.jobs)  # fmt: skip
        failed = {path: reason for path, reason in failed.items() if not reason.startswith(DIVERGED)}
        if failed:
            text = "\n  ".join(f"{path}: {reason}" for path, reason in failed.items())
            raise ValueError(f"{len(failed)} runs failed; the same command tries them again:\n  {text}")
        if running := [str(each.path) for each in map(member, runs) if each.state == "running"]:
            raise Waiting(
                f"{', '.join(running)} are running elsewhere: give the same command again when they have ended"
            )

    def _reject_useless(self, found: Race, steps: int) -> None:
        """ValueError where no candidate has learnt anything, so that their order is chance."""
        lowest = found.losses[found.leader]
        if lowest > USELESS * self.guessing:
            raise ValueError(
                f"the lowest held-out loss after {steps} steps is {lowest:.3f}, that of guessing {self.guessing:.3f}: "
                "the runs are too short to compare rates. Give a larger --budget (it is now "
                f"{self.plan.planned / self.plan.whole:.2g}) and another --out"
            )

    def _race(self, steps: int, rates: Sequence[float]) -> Race:
        size = max(len(self.losses[steps, rate]) for rate in rates)
        rows = [np.broadcast_to(self.losses[steps, rate], size) for rate in rates]
        return race(np.stack(rows), self.plan.comparisons)

    def _document(self, rounds: list[dict[str, Any]]) -> dict[str, Any]:
        lengths, best = [each["steps"] for each in rounds], [each["best_rate"] for each in rounds]
        slope = 0.0
        if len(rounds) > 1:
            slope = float(np.clip(np.polyfit(np.log(lengths), np.log(best), 1)[0], *SLOPES))
        rate = float(f"{best[-1] * (self.plan.steps / lengths[-1]) ** slope:.2g}")
        fields = changed_fields(self.run, [name for name in flat(self.run) if name not in ("out", "optim.lr")])
        words = [self.run.recipe, *fields, "--optim.lr", f"{rate:g}"]
        return {
            "recipe": self.run.recipe, "rate": rate,
            "command": shlex.join(["accelerate", "launch", "train.py", *words]),
            "steps": self.plan.steps, "images": self.plan.images, "held": self.plan.held, "slope": slope,
            "run_images": self.plan.whole, "planned_images": round(self.plan.planned),
            "spent_images": round(self.spent), "rounds": rounds,
        }  # fmt: skip


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
        "candidates": [
            {"rate": rate, "loss": plain(found.losses[i]), "low": plain(found.against[i].low),
             "high": plain(found.against[i].high), "verdict": verdict(i)}
            for i, rate in enumerate(rates)
        ],
    }  # fmt: skip
