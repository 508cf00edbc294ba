"""The runs that a sweep consists of, and what a folder of runs has of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cls import recipes
from cls.config import Run, change, diff, flat
from cls.recipes.tables import Sweep
from cls.tracking.run_files import read_run, read_text
from cls.tracking.run_status import state_of
from cls.validate import check

Rows = dict[tuple[str, str], list["Member"]]
"""(sweep, row) -> its members, by seed; rows that are the same run share them."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep: what it is, where it is or would be, and how it stands there."""

    run: Run
    """With its seed; ``recipe`` and ``out`` are those of the run in the folder, where there is one."""
    precision: str
    """With which it was trained; '' before it was started."""
    state: str
    """'' (not started), running, done, killed, or another outcome of exit.json."""

    @property
    def path(self) -> Path:
        return Path(self.run.out)

    @property
    def open(self) -> bool:
        """Whether there is something left to run, and nobody runs it."""
        return self.state not in ("done", "running")


def find_members(sweeps: Mapping[str, Sweep], seeds: int, fields: Mapping[str, Any], folder: Path) -> Rows:
    """All members of some sweeps with ``fields`` ("section.field" -> value) applied to each, as found in ``folder``.

    A member is known by its configuration, not by the name of its directory: the same run in several tables, or put
    there by slurm/sweep.sh or W&B, is one run. ValueError: a value that cannot train, fields that make two rows of a
    sweep the same run, or a run of the recipe and seed of a member that has another configuration (with the diff).
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
            for seed in range(seeds):
                wanted = dataclasses.replace(run, seed=seed, out=str(folder / f"{row.recipe}-seed{seed}"))
                _refuse_other(wanted, stored)
                key = seed, _method(run)
                if key not in known:
                    known[key] = _find(wanted, stored)
                members.append(known[key])
    _refuse_mixture(rows)
    return rows


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
    """What a run is, whatever its recipe is called."""
    return tuple(value for name, value in flat(run).items() if name not in ("recipe", "seed", "out"))


def differences(stored: Run, wanted: Run) -> list[str]:
    """One line for each field in which a stored run is not the wanted one; resolving ``auto`` is no difference."""
    if wanted.train.precision == "auto":
        wanted = change(wanted, train={"precision": stored.train.precision})
    return diff(stored, dataclasses.replace(wanted, recipe=stored.recipe))


def _refuse_other(wanted: Run, stored: Mapping[Path, Run]) -> None:
    for path, run in stored.items():
        if (run.recipe, run.seed) == (wanted.recipe, wanted.seed) and (lines := differences(run, wanted)):
            changes = "\n  ".join(lines)
            raise ValueError(
                f"{path} is {run.recipe} with seed {run.seed}, but not as this sweep would run it; give the fields it "
                f"was started with, or another --out:\n  {changes}"
            )


def _find(wanted: Run, stored: Mapping[Path, Run]) -> Member:
    """The run in the folder that is the wanted one; of several copies a finished one."""
    found = [
        Member(
            run=dataclasses.replace(wanted, recipe=run.recipe, out=str(path)),
            precision=run.train.precision,
            state=_state(path, run.train.max_steps == wanted.train.max_steps),
        )
        for path, run in stored.items()
        if not differences(run, wanted)
    ]
    # one that would have to go on by the name of another recipe is left alone: its fields may have been typed
    found = [member for member in found if member.state == "done" or member.run.recipe == wanted.recipe]
    absent = Member(run=wanted, precision="", state="")
    return min(found, key=lambda member: member.state != "done", default=absent)


def _state(path: Path, whole: bool) -> str:
    """``whole``: the run is as long as the sweep wants it; one that ended after other max_steps is not done."""
    found = state_of(path)
    return "stopped" if found == "done" and not whole else found


def _refuse_mixture(rows: Rows) -> None:
    """ValueError where members were trained in another precision, or those of a seed on other images."""
    started = [member for member in unique(rows) if member.precision]
    for member in started:
        if member.precision != started[0].precision:
            raise ValueError(
                f"{started[0].path} was trained with train.precision {started[0].precision}, {member.path} with "
                f"{member.precision}: train all with one, in a folder of their own (--train.precision … --out …)"
            )
    images: dict[int, tuple[Path, str]] = {}
    for member in started:
        file = member.path / "data.json"
        if file.is_file():
            own = read_text(file)
            first, content = images.setdefault(member.run.seed, (member.path, own))
            if content != own:
                raise ValueError(
                    f"{first} and {member.path} were trained or validated on other images: delete the one "
                    "that is out of date, or give another --out"
                )
