"""The verbs of the ``cls`` command: what each takes from the command line, with its help, and what it calls.

``do`` tells people on standard error what it finds and gives the JSON document. It alone imports what loads long
(torch, datasets), after what it can refuse without: ``--help`` and slips of the pen must not wait for that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cls.commands.bench.options import BenchOptions
from cls.commands.export.options import ExportOptions
from cls.commands.pack_options import PackOptions
from cls.commands.plan.options import PlanOptions
from cls.commands.sweep.options import SweepOptions
from cls.config import Data, Preset, Run, View, views_of
from cls.runtime.files import write_whole
from cls.runtime.paths import check_output, writing
from cls.runtime.signals import StopSignal
from cls.validate import check_labels


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the recipes: name, report, what it is, batch and micro-batch, most processes, parameters at 100 classes."""

    name: tyro.conf.Positional[str] = ""
    """Show this recipe's page instead: its command, the paper's facts, what differs from its program."""

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.recipes import recipe_page, recipe_table

        return recipe_page(self.name) if self.name else recipe_table()


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

    def do(self, stop: StopSignal) -> Any:
        check_output("to", self.to)
        if self.count < 1 or self.step < 0:
            raise ValueError(
                f"--count is {self.count}, --step {self.step}: give at least one image, and a step from 0 on"
            )
        from cls.commands import show

        return show.contact_sheet(self.run, Path(self.to), self.count, self.step)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict the classes of images with a run's best weights, a row for each as soon as it is known."""

    run: tyro.conf.Positional[str]
    """Run directory, or its best/model.safetensors."""
    path: tyro.conf.Positional[tuple[str, ...]]
    """Folder of images, image files, or tables of images (parquet, arrow, tar). - reads a list of files, one a line or
    each ended by NUL, from standard input to its end; what of it cannot be read gets a row with the error. An image's
    id is its path below the folder, its path as it is named here or in the list, or the table's own id of it."""
    out: str = ""
    """Folder for top.csv (row by row while it goes on) and at the end prediction.csv, prediction.zip and
    predictions.parquet (all probabilities); empty: predict-<name of path> in the run directory. - writes no files but
    a JSON line per image to standard output, as path - does where this is empty."""
    tta: tuple[View | Preset, ...] = ()
    """Views whose softmax is averaged: none is the plain image, flip adds its mirror image, all takes all four views;
    empty: the recipe's own."""
    top_k: int = 5
    """Most probable classes in each row of top.csv or of standard output."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = -1
    """Loader processes; -1 takes one per core."""

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.predict import predict_images

        views = views_of(self.tta)
        return predict_images(self.run, self.path, self.out, views, self.top_k, self.device, self.workers, stop)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a run's best weights on labelled images: accuracy, top-5, macro-F1, and the worst classes."""

    run: tyro.conf.Positional[str]
    """Run directory, or its best/model.safetensors."""
    path: tyro.conf.Positional[str] = ""
    """Labelled images; empty: the validation split of the run's own data."""
    labels: tuple[str, ...] = ()
    """Label files of PATH, where class folders do not say it, as train.py's --data.labels."""
    id_column: str = ""
    """Column of the label files with the images' names; empty: the one whose values match them."""
    label_column: str = ""
    """Column with the labels in the label files or in a table; empty: found by type and name, in a table the run's."""
    label_pattern: str = ""
    """Regular expression whose one group is the class in the name of an image file of PATH, as train.py's."""
    tta: tuple[View | Preset, ...] = ()
    """Views whose softmax is averaged; flip: the image and its mirror image, all: all four; empty: one plain view."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = -1
    """Loader processes; -1 takes one per core."""

    def do(self, stop: StopSignal) -> Any:
        data = Data(path=self.path, labels=self.labels, id_column=self.id_column, label_column=self.label_column,
                    label_pattern=self.label_pattern)  # fmt: skip
        if data != Data(path=self.path) and not self.path:
            raise ValueError("the options for labels need a path: cls evaluate RUN PATH --labels FILE")
        check_labels(data)
        from cls.commands import evaluate

        return evaluate.evaluate_images(self.run, self.path, views_of(self.tta), self.device, self.workers, stop, data)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html: curves, confusion matrix, wrong images, calibration, time and setup of a run on one page."""

    run: tyro.conf.Positional[str]
    """Run directory, of a finished run or of one that still goes on."""
    to: str = ""
    """File to write; empty: report.html in the run directory."""
    neighbours: int = 0
    """Show so many nearest training images of the predicted and of the true class beside the 24 most confidently wrong
    images; costs a pass over at most 5,000 training images."""
    predict: bool = False
    """Predict the validation images with the best weights where the run has not stored that yet, plain and with its
    test-time views: a pass over them for each view."""
    device: str = "auto"
    """auto, cpu or cuda, for --predict and --neighbours."""
    workers: int = -1
    """Loader processes; -1 takes one per core."""

    def do(self, stop: StopSignal) -> Any:
        check_output("to", self.to)
        from cls.commands.report import report_run

        return report_run(self.run, self.to, self.neighbours, self.predict, self.device, self.workers, stop)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Show a run's attempts and lost steps; prove from its ledger that no image was lost or repeated."""

    run: tyro.conf.Positional[str]
    """Run directory."""

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.audit import audit_run

        return audit_run(self.run)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A report's ablation table on your images: commands, runs here or as a job array, your figures beside its own.

    Without a name it lists the sweeps; with a folder it shows the runs in it side by side, whatever they are. Every
    field of train.py may follow and goes to all runs; one that is not given is each recipe's own, whatever the defaults
    below say. --out names the folder of the runs (runs/sweeps).
    """

    name: tyro.conf.Positional[str] = ""
    """A sweep (mlp-head/heads), a system for all of its sweeps, or a folder of runs; empty: lists them."""
    wish: Annotated[SweepOptions, tyro.conf.arg(name="")]
    fields: Annotated[Run, tyro.conf.arg(name="")]
    words: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The fields of train.py as they were typed."""

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.sweep.run import carry_out, list_sweeps
        from cls.recipes.tables import chosen

        folder = not chosen(self.name) and Path(self.name).is_dir()
        if (folder or not self.name) and (self.words or self.wish != SweepOptions()):
            raise ValueError("these options need a sweep as the first word: cls sweep NAME … (`cls sweep` lists them)")
        if not self.name:
            return list_sweeps()
        if folder:
            from cls.commands.sweep.folder import sweep_table

            return sweep_table(self.name)
        check_output("slurm", self.wish.slurm)
        check_output("wandb", self.wish.wandb)
        return carry_out(self.name, self.wish, self.fields, self.words, stop)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare runs on the same images: accuracies with intervals, paired differences, classes, fields that differ."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories, or predictions files (.parquet); runs that differ only in the seed are pooled. Of several, those
    that hold no finished run are skipped and named."""
    baseline: str = ""
    """Run, or group of seeds, that the others are compared with; empty: the first."""
    split: Literal["val", "test"] = "val"
    """Which stored predictions of run directories: predictions/val.parquet or test.parquet (where labelled)."""
    to: str = ""
    """Markdown file to write the tables to; empty: none."""

    def do(self, stop: StopSignal) -> Any:
        check_output("to", self.to)
        from cls.commands.compare import markdown, show
        from cls.evaluation.compare import compare

        document = compare(self.runs, self.baseline, self.split)
        show(document)
        if self.to:
            with writing("to", self.to):
                write_whole(Path(self.to), markdown(document).encode())
        return document


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tell before queueing what a run needs: memory, largest micro-batch, time, cores, and the sbatch line."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    request: Annotated[PlanOptions, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Any:
        self.request.card()  # refuses a slip
        from cls.commands.plan.run import plan, table

        document = plan(self.run, self.request)
        table(document)
        return document


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure input pipelines and training loop on one's own images, ours and the usual ones side by side; advice."""

    run: Annotated[Run, tyro.conf.arg(name="")]
    options: Annotated[BenchOptions, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.bench.render import table
        from cls.commands.bench.run import bench

        document = bench(self.run, self.options, stop)
        table(document)
        return document


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Download what a run needs, for machines without internet: pretrained weights and hub data, checked by hash."""

    run: Annotated[Run, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.fetch import fetch

        return fetch(self.run)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Write images as self-contained parquet shards, to be streamed or read on file systems that hate small files."""

    path: tyro.conf.Positional[str]
    """A folder of images, a parquet, arrow or webdataset file or folder, or a hub name."""
    to: str
    """Folder for the shards and pack.json; the same command again goes on where it was interrupted."""
    packing: Annotated[PackOptions, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.pack import pack

        return pack(self.path, Path(self.to), self.packing)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run's best network for timm, torchvision or ONNX, compared with it on real images; shows how to load."""

    run: tyro.conf.Positional[str]
    """Run directory, or its best/model.safetensors."""
    to: str
    """Folder for model.safetensors, model.onnx and config.json (classes, size, frame, mean and std)."""
    options: Annotated[ExportOptions, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.export.run import export

        return export(self.run, Path(self.to), self.options, stop)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look at every image before training on it: broken and odd ones, copies within and across splits, labels.

    Exits with 3 where something must be mended: broken images, one picture in several splits or under several labels.
    """

    path: tyro.conf.Positional[str]
    """A folder of images, a parquet, arrow or webdataset file or folder, a hub name, or 'digits' (embedded)."""
    run: str = ""
    """Directory of a finished run whose model tells which labels it doubts; its data fields and seed are used."""
    to: str = ""
    """PNG file to write: copies side by side, broken images, doubted labels."""
    workers: int = -1
    """Processes that decode; -1 takes one per core; 0 decodes in the main process."""
    device: str = "auto"
    """Of the run's model: auto, cpu or cuda."""
    val_fraction: float = 0.1
    """Share of the training images that training would hold out when the data has no validation split."""
    seed: int = 0
    """Decides what is held out."""
    image_column: str = ""
    """Column with the images in parquet, arrow or hub data; empty: found by type, then by name."""
    labels: tuple[str, ...] = ()
    """Label files of image files, as train.py's --data.labels: train.csv, or val=solution.csv."""
    id_column: str = ""
    """Column of the label files with the images' names; empty: the one whose values match them."""
    label_column: str = ""
    """Column with the labels in parquet, arrow or hub data or in the label files; member (txt) or key (json.class) of a
    webdataset; empty: found by type and name."""
    label_pattern: str = ""
    """Regular expression whose one group is the class in an image file's name, from its start: '(.+)_[0-9]+'."""

    def do(self, stop: StopSignal) -> Any:
        check_output("to", self.to)
        from cls.commands.check.run import check_images

        data = Data(path=self.path, val_fraction=self.val_fraction, image_column=self.image_column, labels=self.labels,
                    id_column=self.id_column, label_column=self.label_column,
                    label_pattern=self.label_pattern)  # fmt: skip
        check_labels(data)
        return check_images(
            data, self.seed, self.run, Path(self.to) if self.to else None, self.workers, self.device, stop
        )


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

    def do(self, stop: StopSignal) -> Any:
        from cls.commands.doctor.run import doctor

        return doctor(self.out, self.data, self.save, self.seconds)


VERBS = {
    "recipes": Recipes, "show": Show, "check": Check, "plan": Plan, "bench": Bench, "fetch": Fetch, "pack": Pack,
    "doctor": Doctor, "predict": Predict, "export": Export, "evaluate": Evaluate, "compare": Compare,
    "report": Report, "audit": Audit, "sweep": Sweep,
}  # fmt: skip
