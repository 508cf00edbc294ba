"""What a search prints: its plan before it begins, and its result."""

import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from cls.commands.tune.rounds import FEWEST, Plan
from cls.config import Run
from cls.runtime.console import console


def show_plan(run: Run, plan: Plan) -> None:
    share, whole = plan.planned / plan.whole, f"{plan.whole:,.0f} images of {plan.epochs:g} epochs"
    rounds = ", then ".join(f"{k} rates for {steps} steps" for k, steps in plan.rounds)
    print(
        f"{run.recipe}: {plan.images:,} training images, {plan.held:,} of them held out to compare; {rounds}; about "
        f"{plan.planned:,.0f} images, {share:.0%} of the {whole}",
        file=sys.stderr,
    )
    if plan.planned > plan.allowed:
        print(
            f"that is more than the budget of {plan.allowed:,.0f} images: rates cannot be compared in fewer than "
            f"{FEWEST} steps", file=sys.stderr,
        )  # fmt: skip
    if run.optim.schedule in ("cosine", "plateau"):
        print(
            f"optim.schedule {run.optim.schedule} moves by whole epochs: the short runs have a cosine by steps",
            file=sys.stderr,
        )
    sys.stderr.flush()


def show(document: dict[str, Any], folder: Path) -> None:
    for each in document["rounds"]:
        table = Table("rate", "held-out loss", "to the best of the round", "", box=None, title_justify="left",
                      title=f"{each['steps']} steps each, best near {each['best_rate']:.2g}")  # fmt: skip
        for row in each["candidates"]:
            known = row["loss"] is not None
            loss = f"{row['loss']:.4f}" if known else "not finite"
            span = f"{row['low']:+.4f} to {row['high']:+.4f}" if known and row["verdict"] != "best" else ""
            table.add_row(f"{row['rate']:g}", loss, span, row["verdict"])
        console.print(table)
    spent, planned = document["spent_images"], document["planned_images"]
    print(
        "worse: the interval over images excludes 0, at 95 % for the whole search (one seed each); undecided: it does "
        f"not\n{spent:,} images, planned were {planned:,}; {spent / document['run_images']:.0%} of the run's; also "
        f"in {folder / 'tune.json'} and tune.png\n{_trend(document)}\nrate for {document['steps']:,} steps: "
        f"{document['rate']:g}\n{document['command']}",
        file=sys.stderr,
    )


def _trend(document: dict[str, Any]) -> str:
    """What the proposal assumes about the length of training, and whether the best rate is at an edge."""
    last = document["rounds"][-1]
    text = f"trend over the steps: not measured, all candidates have {last['steps']}; the same rate is assumed"
    if document["slope_interval"]:
        low, high = document["slope_interval"]
        taken = f"taken as {document['slope']:.2f}" if document["slope"] else "taken as 0: it need not fall"
        text = (
            f"trend: the best rate follows the steps with exponent {low:.2f} to {high:.2f} (95 % over images; the "
            f"chance of a training run is not in it), {taken}"
        )
    if last["edge"]:
        text += "\nthe best rate is at the edge of those tried: try a larger --budget, with another --out"
    return text
