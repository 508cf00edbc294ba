"""The command line: ``train.py RECIPE --section.field value``, and the verbs of the ``cls`` command."""

import dataclasses
import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from cls import recipes
from cls.bench.options import Options
from cls.checks import check
from cls.cluster.request import Request
from cls.config import Run, View, to_yaml
from cls.data.packing import Packing
from cls.fetch import fetch, require_offline
from cls.outcome import Ending
from cls.stop import Stop

T = TypeVar("T")
HEARD_SECONDS = 5.0  # a launcher ends all processes with the first: rank 0, which speaks, must not come too late


def out_of(argv: list[str]) -> str:
    """The run directory that a command line names, readable even where the rest of it is not; '' if it names none."""
    for word, following in pairwise([*argv, ""]):
        if word == "--out":
            return following
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return ""


def parse_run(argv: list[str]) -> Run:
    """The run of a command line; without a recipe, digits. ``--show`` prints it as YAML and exits.

    A misspelt field or a wrong type exits with the nearest field named; a bad value is a ValueError naming its field.
    """
    name, rest = ("digits", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    text = (
        f"Train recipe {name!r}; others: train.py RECIPE (`cls recipes` lists them). "
        "--show prints the final configuration and exits; --offline checks that no network is needed, and uses none."
    )
    run = _tyro(
        Run, recipes.get(name), [word for word in rest if word not in ("--show", "--offline")], f"train.py {name}", text
    )
    _check(run, name)
    if "--show" in rest:
        print(to_yaml(run), end="")
        sys.exit(0)
    _need_images(run)
    if "--offline" in rest:
        require_offline(run)
    return run


def refuse_early(argv: list[str]) -> None:
    """Tell what is wrong with the command line of a run, as the run itself would; needs no library that loads long."""
    try:
        parse_run(argv)
    except (ValueError, SystemExit):
        if os.environ.get("RANK", "0") != "0":
            time.sleep(HEARD_SECONDS)
        with Ending(out_of(argv)):
            raise


def _need_images(run: Run) -> None:
    if not run.data.path:
        raise ValueError(f"data.path is empty: name the images with {run.recipe} --data.path FOLDER")


def _tyro(kind: type[T], default: T | None, argv: list[str], prog: str, text: str) -> T:
    markers = (tyro.conf.FlagConversionOff, tyro.conf.HelptextFromCommentsOff)  # --field True, as sweeps write it
    heard = os.environ.get("RANK", "0") == "0"  # every rank finds the same mistake; one tells of it
    if default is None:
        return tyro.cli(kind, args=argv, prog=prog, description=text, config=markers, console_outputs=heard)
    return tyro.cli(
        kind, args=argv, prog=prog, description=text, config=markers, console_outputs=heard, default=default
    )


def _check(run: Run, name: str) -> None:
    if run.recipe != name:
        raise ValueError(f"recipe is {run.recipe}: the recipe is the first word of the command, not a field")
    check(run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes: name, report, what it is, batch and micro-batch, most processes, parameters at 100 classes."""

    name: tyro.conf.Positional[str] = ""
    """Show this recipe's page instead: its command, the paper's facts, what differs from its program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a contact sheet of training images as the model gets them, augmented and mixed, with their labels."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    to: str = "draws.png"
    """PNG file to write."""
    count: int = 32
    """Number of images."""
    step: int = 0
    """The first optimizer step whose images are shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict the classes of images with a run's best weights: prediction.csv, prediction.zip, predictions.parquet."""

    run: tyro.conf.Positional[str]
    """Run directory, or its best/model.safetensors."""
    path: tyro.conf.Positional[str]
    """Folder of images, image file, or table of images."""
    out: str = ""
    """Folder to write to; empty: predict-<name of path> in the run directory."""
    tta: tuple[View, ...] = ()
    """Views whose softmax is averaged; empty: the recipe's own."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = -1
    """Loader processes; -1 takes one per core."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run's best weights on labelled images: accuracy, top-5, macro-F1, and the worst classes."""

    run: tyro.conf.Positional[str]
    """Run directory, or its best/model.safetensors."""
    path: tyro.conf.Positional[str] = ""
    """Labelled images; empty: the validation split of the run's own data."""
    tta: tuple[View, ...] = ()
    """Views whose softmax is averaged; empty: one plain view."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = -1
    """Loader processes; -1 takes one per core."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """Show a run's lives and lost steps; prove from its ledger that no image was lost or repeated."""

    run: tyro.conf.Positional[str]
    """Run directory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Show the runs in a folder side by side: what differs, outcome, accuracy, goodput; writes table.md and .csv."""

    folder: tyro.conf.Positional[str]
    """Folder that holds the run directories."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Tell before queueing what a run needs: memory, largest micro-batch, time, cores, and the sbatch line."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    request: Annotated[Request, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure input pipelines and training loop on one's own images, ours and the usual ones side by side; advice."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download what a run needs, for machines without internet: pretrained weights and hub data, checked by hash."""

    run: Annotated[Run, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Write images as self-contained parquet shards, to be streamed or read on file systems that hate small files."""

    path: tyro.conf.Positional[str]
    """A folder of images, a parquet, arrow or webdataset file or folder, or a hub name."""
    to: str
    """Folder for the shards and pack.json; the same command again goes on where it was interrupted."""
    packing: Annotated[Packing, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Examine this machine: driver, cores, memory, caches, network, disk, and whether its GPUs can talk; remedies."""

    out: str = "runs"
    """Folder whose disk is measured."""
    data: str = ""
    """Images whose reading is measured; empty: none."""
    save: bool = False
    """Write the variables that this node's transports need where slurm/env.sh reads them."""
    seconds: float = 5.0
    """How long each transport may take before it counts as hanging."""


VERBS = {
    "recipes": Recipes, "show": Show, "plan": Plan, "bench": Bench, "fetch": Fetch, "pack": Pack, "doctor": Doctor,
    "predict": Predict, "evaluate": Evaluate, "audit": Audit, "sweep": Sweep,
}  # fmt: skip


def main() -> None:
    """The ``cls`` command; exit codes are those of a run (0 done, 2 user error, …)."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in VERBS:
        lines = [f"  cls {name:<9} {(kind.__doc__ or '').strip()}" for name, kind in VERBS.items()]
        asked = not argv or argv[0] in ("-h", "--help")
        head = "" if asked else f"cls: there is no verb {argv[0]!r}\n"
        usage = "usage: cls VERB …   (cls VERB --help explains a verb)\n" + "\n".join(lines)
        print(head + usage, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    with Ending("") as ending, ending.stop.interruptible():
        document = _do(argv[0], [word for word in argv[1:] if word != "--json"], ending.stop)
        ending.message = "done"
        if "--json" in argv and document is not None:  # rank 0's
            print(json.dumps(document, indent=1))
        if argv[0] == "doctor":
            from cls.cluster.doctor import refuse_bad

            refuse_bad(document)


def _command(verb: str, argv: list[str]) -> Any:
    """What is to be done, of the verb's own type; needs no library that loads long."""
    text = f"{VERBS[verb].__doc__} --json prints one JSON document on standard output."
    if verb not in ("show", "plan", "bench", "fetch"):
        return _tyro(VERBS[verb], None, argv, f"cls {verb}", text)
    name, rest = ("digits", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    text += f" Takes every field of train.py {name}."
    own: dict[str, dict[str, Any]] = {"plan": {"request": Request()}, "bench": {"options": Options()}}
    default = VERBS[verb](run=recipes.get(name), **own.get(verb, {}))
    command: Any = _tyro(VERBS[verb], default, rest, f"cls {verb} {name}", text)
    _check(command.run, name)
    if verb != "fetch":
        _need_images(command.run)
    return command


def _do(verb: str, argv: list[str], stop: Stop) -> Any:
    """Carry out a verb, which tells people about it on standard error; gives its JSON document."""
    command = _command(verb, argv)
    if isinstance(command, Pack):
        from cls.data.pack import pack  # 2 s, a fifth of what torch takes

        return pack(command.path, Path(command.to), command.packing)
    from cls import verbs  # torch and datasets; --help must not wait for them
    from cls.cluster.doctor import doctor
    from cls.cluster.plan import plan, table

    match command:
        case Recipes():
            return verbs.recipe_page(command.name) if command.name else verbs.recipe_table()
        case Show():
            return verbs.contact_sheet(command.run, Path(command.to), command.count, command.step)
        case Predict():
            return verbs.predict_images(
                command.run, command.path, command.out, command.tta, command.device, command.workers, stop
            )
        case Plan():
            document = plan(command.run, command.request)
            table(document)
            return document
        case Bench():
            return verbs.bench_run(command.run, command.options, stop)
        case Fetch():
            return fetch(command.run)
        case Doctor():
            return doctor(command.out, command.data, command.save, command.seconds)
        case Audit():
            return verbs.audit_run(command.run)
        case Sweep():
            return verbs.sweep_table(command.folder)
        case _:
            return verbs.evaluate_images(command.run, command.path, command.tta, command.device, command.workers, stop)
