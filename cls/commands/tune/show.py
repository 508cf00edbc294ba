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
        "worse: 95 % sure for the whole search; undecided: the budget ends before they can be told apart\n"
        f"{spent:,} images, planned were {planned:,}; {spent / document['run_images']:.0%} of the run's; also in "
        f"{folder / 'tune.json'} and tune.png\nrate for {document['steps']:,} steps: {document['rate']:g}\n"
        f"{document['command']}",
        file=sys.stderr,
    )
