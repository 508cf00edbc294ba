"""The runs that a sweep consists of, and how far each is."""

import dataclasses
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from cls import recipes
from cls.config import Run, change, diff, flat
from cls.recipes.tables import Sweep
from cls.tracking.ledger import all_pairs
from cls.tracking.run_files import read_run, read_text
from cls.tracking.run_status import state_of
from cls.validate import check

Rows = dict[tuple[str, str], list["Member"]]
"""(sweep, row) -> its members, by seed; rows with the same configuration share them."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep: its configuration, its directory and its state."""

    run: Run
    """With its seed; ``recipe`` and ``out`` are those of the run directory, if there is one."""
    precision: str
    """Precision it was trained with; '' before it was started."""
    state: str
    """'' (not started), running, done, killed, or another outcome of exit.json."""
    fold: str = ""
    """Of a cross-validation, as ``data.hold_out`` has it: 2/5; else ''."""

    @property
    def path(self) -> Path:
        return Path(self.run.out)

    @property
    def label(self) -> int | str:
        """Its name among the members of its row: the seed, or the fold with a seed other than 0."""
        return f"{self.fold}{f' of seed {self.run.seed}' * (self.run.seed > 0)}" if self.fold else self.run.seed

    @property
    def open(self) -> bool:
        """Neither done nor running."""
        return self.state not in ("done", "running")


def find_members(
    sweeps: Mapping[str, Sweep], seeds: int, fields: Mapping[str, Any], folder: Path, folds: int = 0
) -> Rows:
    """All members of some sweeps with ``fields`` ("section.field" -> value) applied to each, as found in ``folder``.

    With ``folds`` each seed has as many members, each of which validates on another part of the training images. A
    member is identified by its configuration, not by its directory's name: the same run in several tables, or started
    by slurm/sweep.sh or W&B, is one run. ValueError: a value that cannot train, fields that make two rows of a sweep
    equal, or a run with a member's recipe and seed but another configuration (with the diff).
    """
    stored = {path.parent: read_run(path) for path in sorted(folder.glob("*/config.yaml"))}
    known: dict[Any, Member] = {}
    rows: Rows = {}
    for sweep_name, sweep in sweeps.items():
        methods: dict[Any, str] = {}
        for row in sweep.rows:
            run = _apply(row.recipe, fields)
            other = methods.setdefault(_method(run), row.name)
            if other != row.name:
                raise ValueError(
                    f"{sweep_name}: rows {other} and {row.name} are the same run with these fields: leave out the "
                    "field that this sweep is about"
                )
            rows[sweep_name, row.name] = members = []
            for seed, fold in product(range(seeds), folds_of(folds)):
                name = f"{row.recipe}-seed{seed}" + (f"-fold{fold.replace('/', 'of')}" if fold else "")
                held = _apply(row.recipe, {**fields, "data.hold_out": fold}) if fold else run
                wanted = dataclasses.replace(held, seed=seed, out=str(folder / name))
                _reject_other(wanted, stored)
                key = seed, _method(wanted)
                if key not in known:
                    known[key] = dataclasses.replace(_find(wanted, stored), fold=fold)
                members.append(known[key])
    _reject_mixture(rows)
    return rows


def folds_of(count: int) -> list[str]:
    """The values of data.hold_out in a cross-validation with ``count`` folds; 0: one member that has none."""
    return [f"{number}/{count}" for number in range(1, count + 1)] or [""]


def unique(rows: Rows) -> list[Member]:
    """Each member once, in the order of the rows."""
    return list({member.run.out: member for members in rows.values() for member in members}.values())


def _apply(recipe: str, fields: Mapping[str, Any]) -> Run:
    run = recipes.get(recipe)
    for name, value in fields.items():
        section, _, field = name.partition(".")
        run = dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **{field: value})})
    try:
        check(run)
    except ValueError as error:
        raise ValueError(f"{recipe}: {error}") from None
    return run


def _method(run: Run) -> tuple[Any, ...]:
    """The configuration without names: recipe, directory and seed."""
    return tuple(value for name, value in flat(run).items() if name not in ("recipe", "seed", "out"))


def differences(stored: Run, wanted: Run) -> list[str]:
    """One line per field in which a stored run differs from the wanted one; resolving ``auto`` is no difference."""
    for field in ("precision", "channels_last"):
        if getattr(wanted.train, field) == "auto":
            wanted = change(wanted, train={field: getattr(stored.train, field)})
    return diff(stored, dataclasses.replace(wanted, recipe=stored.recipe))


def _reject_other(wanted: Run, stored: Mapping[Path, Run]) -> None:
    for path, run in stored.items():
        same = (run.recipe, run.seed, run.data.hold_out) == (wanted.recipe, wanted.seed, wanted.data.hold_out)
        if (same or str(path) == wanted.out) and (lines := differences(run, wanted)):
            changes = "\n  ".join(lines)
            raise ValueError(
                f"{path} is {run.recipe} with seed {run.seed}, but not as this sweep would run it; give the fields it "
                f"was started with, or another --out:\n  {changes}"
            )


def _find(wanted: Run, stored: Mapping[Path, Run]) -> Member:
    """The stored run with the wanted configuration; of several, a finished one."""
    found = []
    for path, run in stored.items():
        if not differences(run, wanted):
            state = state_of(path)
            if state == "done" and run.train.max_steps != wanted.train.max_steps:
                state = "stopped"  # it is not as long as the sweep wants it
            own = dataclasses.replace(wanted, recipe=run.recipe, out=str(path))
            found.append(Member(run=own, precision=run.train.precision, state=state))
    # an unfinished run under another recipe's name is left out: its fields may come from a command line
    found = [member for member in found if member.state == "done" or member.run.recipe == wanted.recipe]
    absent = Member(run=wanted, precision="", state="")
    return min(found, key=lambda member: member.state != "done", default=absent)


def _reject_mixture(rows: Rows) -> None:
    """ValueError if members were trained with different precisions, or on other images.

    Those of one seed and fold have the same splits; all have the same images in training and validation together.
    """
    started = [member for member in unique(rows) if member.precision]
    for member in started:
        if member.precision != started[0].precision:
            raise ValueError(
                f"{started[0].path} was trained with train.precision {started[0].precision}, {member.path} with "
                f"{member.precision}: train all with one, in a folder of their own (--train.precision … --out …)"
            )
    images: dict[Any, tuple[Path, str]] = {}
    for member in [member for member in started if (member.path / "data.json").is_file()]:
        data = member.run.data
        known: dict[Any, str] = {member.label: read_text(member.path / "data.json")}
        if not data.limit and (together := all_pairs(member.path)):
            known["all", data.hold_out in ("", "none")] = together  # I/N leaves a val split aside
        for key, own in known.items():
            first, content = images.setdefault(key, (member.path, own))
            if content != own:
                raise ValueError(
                    f"{first} and {member.path} were trained or validated on other images: delete the one "
                    "that is out of date, or give another --out"
                )
