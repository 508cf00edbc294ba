"""The verbs of the ``cls`` command: what each takes from the command line, with its help, and what it calls.

``do`` tells people on standard error what it finds and gives the JSON document. It alone imports what loads long
(torch, datasets): ``--help`` and slips of the pen must not wait for that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cls.bench.options import Options
from cls.cluster.request import Request
from cls.config import Run, View
from cls.data.packing import Packing
from cls.stop import Stop
from cls.sweep.wish import Wish


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes: name, report, what it is, batch and micro-batch, most processes, parameters at 100 classes."""

    name: tyro.conf.Positional[str] = ""
    """Show this recipe's page instead: its command, the paper's facts, what differs from its program."""

    def do(self, stop: Stop) -> Any:
        from cls import verbs

        return verbs.recipe_page(self.name) if self.name else verbs.recipe_table()


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw a contact sheet of training images as the model gets them, augmented and mixed, with their labels."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    to: str = "draws.png"
    """PNG file to write."""
    count: int = 32
    """Number of images."""
    step: int = 0
    """The first optimizer step whose images are shown."""

    def do(self, stop: Stop) -> Any:
        from cls import verbs

        return verbs.contact_sheet(self.run, Path(self.to), self.count, self.step)


@dataclass(frozen=True, kw_only=True)
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

    def do(self, stop: Stop) -> Any:
        from cls import verbs

        return verbs.predict_images(self.run, self.path, self.out, self.tta, self.device, self.workers, stop)


@dataclass(frozen=True, kw_only=True)
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

    def do(self, stop: Stop) -> Any:
        from cls import verbs

        return verbs.evaluate_images(self.run, self.path, self.tta, self.device, self.workers, stop)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Show a run's lives and lost steps; prove from its ledger that no image was lost or repeated."""

    run: tyro.conf.Positional[str]
    """Run directory."""

    def do(self, stop: Stop) -> Any:
        from cls import verbs

        return verbs.audit_run(self.run)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A report's ablation table on your images: commands, runs here or as a job array, your figures beside its own.

    Without a name it lists the sweeps; with a folder it shows the runs in it side by side, whatever they are. Every
    field of train.py may follow and goes to all runs; one that is not given is each recipe's own, whatever the defaults
    below say. --out names the folder of the runs (runs/sweeps).
    """

    name: tyro.conf.Positional[str] = ""
    """A sweep (mlp-head/heads), a system for all of its sweeps, or a folder of runs; empty: lists them."""
    wish: Annotated[Wish, tyro.conf.arg(name="")]
    fields: Annotated[Run, tyro.conf.arg(name="")]
    words: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The fields of train.py as they were typed."""

    def do(self, stop: Stop) -> Any:
        from cls.recipes.sweeps import chosen
        from cls.sweep.show import carry_out, list_sweeps

        if not self.name:
            return list_sweeps()
        if not chosen(self.name) and Path(self.name).is_dir():
            from cls import verbs

            return verbs.sweep_table(self.name)
        return carry_out(self.name, self.wish, self.fields, self.words, stop)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tell before queueing what a run needs: memory, largest micro-batch, time, cores, and the sbatch line."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    request: Annotated[Request, tyro.conf.arg(name="")]

    def do(self, stop: Stop) -> Any:
        from cls.cluster.plan import plan, table

        document = plan(self.run, self.request)
        table(document)
        return document


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure input pipelines and training loop on one's own images, ours and the usual ones side by side; advice."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]

    def do(self, stop: Stop) -> Any:
        from cls import verbs

        return verbs.bench_run(self.run, self.options, stop)


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download what a run needs, for machines without internet: pretrained weights and hub data, checked by hash."""

    run: Annotated[Run, tyro.conf.arg(name="")]

    def do(self, stop: Stop) -> Any:
        from cls.fetch import fetch

        return fetch(self.run)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write images as self-contained parquet shards, to be streamed or read on file systems that hate small files."""

    path: tyro.conf.Positional[str]
    """A folder of images, a parquet, arrow or webdataset file or folder, or a hub name."""
    to: str
    """Folder for the shards and pack.json; the same command again goes on where it was interrupted."""
    packing: Annotated[Packing, tyro.conf.arg(name="")]

    def do(self, stop: Stop) -> Any:
        from cls.data.pack import pack

        return pack(self.path, Path(self.to), self.packing)


@dataclass(frozen=True, kw_only=True)
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

    def do(self, stop: Stop) -> Any:
        from cls.cluster.doctor import doctor

        return doctor(self.out, self.data, self.save, self.seconds)


VERBS = {
    "recipes": Recipes, "show": Show, "plan": Plan, "bench": Bench, "fetch": Fetch, "pack": Pack, "doctor": Doctor,
    "predict": Predict, "evaluate": Evaluate, "audit": Audit, "sweep": Sweep,
}  # fmt: skip
