"""The runs of a search: the fit of the head, and a complete short schedule for each rate."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cls.commands.fields import changed_fields
from cls.commands.sweep.members import Member, differences
from cls.commands.tune.rounds import STARTS, Plan
from cls.config import Run, change
from cls.tracking.run_files import read_run
from cls.tracking.run_status import state_of

HEAD_RATE = 3e-3
"""Of AdamW for a fresh head on fixed features; its moving average is what is kept."""
DIVERGED = "non_finite"
FAILED = ("user_error", "data", "out_of_memory", "error")


def head_run(run: Run, plan: Plan, folder: Path) -> Run:
    """One epoch of the head alone, on the backbone as it is: every candidate starts from it, so that a short schedule
    need not prefer high rates for the head's sake.
    """
    run = _short(run, out=folder / "head", epochs=plan.head_epochs)
    optim = {
        "name": "adamw", "lr": HEAD_RATE, "lr_batch": run.train.batch, "head_lr": 1.0, "weight_decay": 0.0, "clip": 1.0,
        "ema": 0.999, "schedule": "fixed", "min_lr": 0.0, "head_epochs": plan.head_epochs,
    }  # fmt: skip
    return change(run, optim=optim)


def candidate(run: Run, plan: Plan, folder: Path, rate: float, steps: int) -> Run:
    """The run's method at ``rate`` in so many steps: warm-up and end of the schedule keep their shares of the run.

    A schedule by epochs (cosine, plateau) cannot be shorter than one: a cosine by steps is in its place.
    """
    epochs = plan.epochs_of(steps)
    short = _short(run, out=folder / f"steps{steps}-lr{rate:g}", epochs=epochs)
    schedule = {"cosine": "warmup-cosine", "plateau": "warmup-cosine"}.get(run.optim.schedule, run.optim.schedule)
    warmup = run.optim.warmup * epochs / (run.train.epochs - run.optim.head_epochs)
    optim = {"lr": rate, "schedule": schedule, "warmup": round(warmup, 6) if schedule == run.optim.schedule else 0.0}
    weights = {"weights": str(folder / "head" / "best" / "model.safetensors")} if plan.fits_head else {}
    return change(short, optim=optim, model=weights)


def with_part_held_out(run: Run, parts: int) -> Run:
    return change(run, data={"hold_out": f"{run.data.hold_out}+1/{parts}"})


def _short(run: Run, *, out: Path, epochs: float) -> Run:
    return change(
        run,
        out=str(out),
        augment={"tta": ()},
        optim={"head_epochs": 0.0, "t_max": 0},
        train={"epochs": epochs, "early_stop": 0, "best_on": "loss", "keep": 1},
        track={"wandb": "disabled", "tensorboard": False, "ledger": False},
    )


def usable(run: Run, rates: Sequence[float]) -> list[float]:
    """The rates at which the schedule does not rise to ``optim.min_lr``."""
    return [rate for rate in rates if replace(run.optim, lr=rate).learning_rate(run.train.batch) >= run.optim.min_lr]


def starts(run: Run) -> list[float]:
    """The first rates; ValueError if optim.min_lr is above all of them."""
    found = usable(run, STARTS[run.optim.name])
    if not found:
        raise ValueError(f"optim.min_lr is {run.optim.min_lr}, above all candidates for optim.lr: give a lower one")
    return found


def member(run: Run) -> Member:
    """As it is on disk; a candidate that diverged has its result, as one that is done.

    ValueError for a run of other settings: its result would be mixed with the others. One that failed may have them:
    train.py decides whether it can still be corrected.
    """
    path = Path(run.out)
    state = state_of(path) if (path / "config.yaml").exists() else ""
    if state and state not in FAILED and (lines := differences(read_run(path / "config.yaml"), run)):
        changes = "\n  ".join(lines)
        raise ValueError(
            f"{path} is a run with other settings than this search: delete it, or give another --out:\n  {changes}"
        )
    return Member(run=run, precision="", state="done" if state == DIVERGED and path.name != "head" else state)


def command(run: Run) -> list[str]:
    """The arguments of train.py."""
    return [run.recipe, *changed_fields(run)]
