"""A sweep to run elsewhere: command lines, a SLURM array, a W&B sweep."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cls.commands.sweep.members import Member, Rows
from cls.recipes.tables import Sweep
from cls.runtime.files import write_whole


def arguments(member: Member, words: Sequence[str]) -> list[str]:
    """The arguments of train.py for a member; ``words`` are the fields that all members share."""
    fold = ["--data.hold-out", member.fold] if member.fold else []
    return [member.run.recipe, "--seed", str(member.run.seed), "--out", member.run.out, *fold, *words]


def write_lines(file: Path, runs: Sequence[Sequence[str]], folder: Path) -> str:
    """Write one line for slurm/sweep.sh per run, the arguments of train.py; returns the command that submits them.

    ValueError if the file has other lines: queued tasks read theirs by its number.
    """
    if bad := [word for words in runs for word in words if "\n" in word]:
        raise ValueError(f"slurm: {bad[0]!r} has a line break, which a line of the file cannot hold")
    lines = [shlex.join(words) for words in runs]
    data = ("\n".join(lines) + "\n").encode()
    if file.exists() and file.read_bytes() != data:
        raise ValueError(f"slurm: {file} exists and jobs may still read its lines: name another file")
    write_whole(file, data)
    array = f"sbatch --array=1-{len(lines)} slurm/sweep.sh {shlex.quote(str(file))}"
    return f"CLS_SWEEP={shlex.quote(str(folder))} {array}"


def write_wandb(file: Path, name: str, sweeps: Mapping[str, Sweep], rows: Rows, launch: Sequence[str],
                words: Sequence[str], folder: Path, project: str) -> str:  # fmt: skip
    """Write the same members as a W&B grid; returns the command that registers it.

    W&B passes parameters as name=value in any order; bash makes variables of them: the recipe must be the first
    argument of train.py and the run directory is named after both.
    """
    firsts: dict[str, str] = {}  # of rows with the same configuration, the first one's recipe
    for name_of_sweep, row in ((name, row) for name, sweep in sweeps.items() for row in sweep.rows):
        firsts.setdefault(rows[name_of_sweep, row.name][0].run.out, row.recipe)
    seeds = sorted({member.run.seed for members in rows.values() for member in members})
    parameters: dict[str, Any] = {"recipe": {"values": list(dict.fromkeys(firsts.values()))}, "seed": {"values": seeds}}
    name, shared = '"$recipe-seed$seed"', f" {shlex.join(words)}" if words else ""
    if folds := sorted({member.fold for members in rows.values() for member in members} - {""}):
        name, shared = '"$recipe-seed$seed-fold${fold/\\//of}"', f' --data.hold-out "$fold"{shared}'
        parameters["fold"] = {"values": folds}
    out = f"{shlex.quote(str(folder))}/{name}"
    script = f'declare "$@"; exec {shlex.join(launch)} "$recipe" --seed "$seed" --out {out}{shared}'
    names = [f"{row.name}: {row.recipe}" for sweep in sweeps.values() for row in sweep.rows]
    document = {
        "program": launch[-1], "name": name, "description": "; ".join(names), "project": project, "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"}, "parameters": parameters,
        "command": ["${env}", "bash", "-c", script, "sweep", "${args_no_hyphens}"],
    }  # fmt: skip
    write_whole(file, yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=10_000).encode())
    return f"wandb sweep {shlex.quote(str(file))}"
