"""The commands of ``cls``: the options of each, with their help, and what it calls.

``do`` prints tables and messages to standard error and returns an :data:`cls.commands.command.Answer`. Heavy imports
(torch, datasets) are inside it, after what can be rejected without them, so that --help and argument errors return
immediately.
"""

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from cls.commands.command import Answer, Command, ImagePath, Name, RunCommand, RunPath
from cls.commands.config_file import with_config
from cls.commands.fields import field_words
from cls.commands.options import (
    BenchOptions,
    DeviceOptions,
    EvaluateOptions,
    ExplainOptions,
    ExportOptions,
    PackOptions,
    PlanOptions,
    PredictOptions,
    ReportOptions,
    SoupOptions,
    SplitOptions,
    SweepOptions,
    TuneOptions,
)
from cls.commands.parsing import parse_options, paths_and_options, plain_options
from cls.config import Data, Run
from cls.runtime.files import write_whole
from cls.runtime.paths import check_output, check_picture, writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_files import leading, models_first


@dataclass(frozen=True, kw_only=True)
class Recipes(Command):
    """List the recipes: name, report, what it is, batch and micro-batch, most processes, parameters at 100 classes."""

    name: Name = ""
    """Show the page of this recipe: its command, the facts of its report, what differs from its program."""

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.recipes import recipe_page, recipe_table

        return recipe_page(self.name) if self.name else recipe_table(), None


@dataclass(frozen=True, kw_only=True)
class Show(RunCommand):
    """Draw a contact sheet of training images as the model receives them, augmented and mixed, with their labels."""

    to: str = "samples.png"
    """PNG file to write."""
    count: int = 32
    """Number of images."""
    step: int = 0
    """First optimizer step whose images are shown."""

    def do(self, stop: StopSignal) -> Answer:
        check_picture("to", self.to)
        if self.count < 1 or self.step < 0:
            raise ValueError(
                f"--count is {self.count}, --step {self.step}: give at least one image, and a step from 0 on"
            )
        from cls.commands import show

        return show.contact_sheet(self.run, Path(self.to), self.count, self.step), None


@dataclass(frozen=True, kw_only=True)
class OnImages(Command):
    """A command of runs and images, in this order; options may be anywhere."""

    @classmethod
    def parse(cls, argv: list[str], text: str) -> Self:
        several = [field.name for field in dataclasses.fields(cls) if isinstance(field.default, tuple)]
        paths, options = paths_and_options(argv, several)
        words = plain_options([*paths, *options], max(1, leading(paths)))
        return parse_options(cls, None, words, f"cls {cls.__name__.lower()}", text)


@dataclass(frozen=True, kw_only=True)
class Predict(PredictOptions, OnImages):
    """Predict the classes of images with a run's best weights; each row is written as soon as it is known.

    Several runs predict together: the mean of their probabilities. All their networks are in memory at once.
    """

    run: RunPath
    """Run directory, or its best/model.safetensors. More of them may follow, before the images."""
    path: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RUN …] PATH …")]
    """Folder of images, image files, or tables of images (parquet, arrow, tar). - reads a list of files from standard
    input, one per line or each ended by NUL; a file that cannot be read gets a row with the error. An image's id is its
    path below the folder, its path as given here or in the list, or its id in the table."""

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.predict import predict_images

        return predict_images(*models_first((self.run, *self.path)), self, stop), None


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluateOptions, OnImages):
    """Score a run's best weights on labelled images: accuracy, top-5, macro-F1, and the worst classes.

    Several runs are scored together: the mean of their probabilities. All their networks are in memory at once.
    """

    run: RunPath
    """Run directory, or its best/model.safetensors. More of them may follow, before the images."""
    path: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RUN …] [PATH]")] = ()
    """Labelled images; empty: the validation split of the runs' own data, which must be the same images."""

    def do(self, stop: StopSignal) -> Answer:
        runs, images = models_first((self.run, *self.path))
        if len(images) > 1:
            first, second = images[:2]
            found = f"{first} and {second}" if os.path.exists(first) else f"there is no file or folder {first}"
            raise ValueError(f"{found}: name one folder or table of labelled images, after the runs")
        path = "".join(images)
        if self.data(path) != Data(path=path) and not path:
            raise ValueError("the options for labels need a path: cls evaluate RUN PATH --labels FILE")
        from cls.commands.evaluate import evaluate_images

        return evaluate_images(runs, path, self, stop), None


@dataclass(frozen=True, kw_only=True)
class Explain(ExplainOptions, OnImages):
    """Draw what a run's network looks at: heat maps (Grad-CAM) of the predicted class and of another one, as a PNG.

    A row for each image in the plain view. With CBAM its spatial attention is shown, too.
    """

    run: RunPath
    """Run directory, or its best/model.safetensors."""
    path: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH …")]
    """Image files, a folder of images, or tables of images (parquet, arrow, tar)."""

    def do(self, stop: StopSignal) -> Answer:
        check_picture("to", self.to)
        from cls.commands.explain import explain_images

        return explain_images(*models_first((self.run, *self.path)), self, stop), None


@dataclass(frozen=True, kw_only=True)
class Report(ReportOptions, Command):
    """Write report.html: curves, confusion matrix, wrong images, calibration, time and setup of a run on one page."""

    run: RunPath
    """Run directory; the run need not be finished. Or the directory of an ensemble (cls evaluate --to)."""

    def do(self, stop: StopSignal) -> Answer:
        check_output("to", self.to)
        from cls.commands.report import report_run

        return report_run(self.run, self, stop), None


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Show a run's attempts and lost steps; prove from its ledger that no image was lost or repeated."""

    run: RunPath
    """Run directory."""

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.audit import audit_run

        return audit_run(self.run)


@dataclass(frozen=True, kw_only=True)
class Sweep(Command):
    """Train the rows of a report's ablation table on your images, here or as a job array; compare the figures.

    Without a name it lists the sweeps; with a directory of runs it shows them side by side. Every field of train.py may
    follow and goes to all runs; for a field that is not given, each recipe's own value counts, not the default below.
    --config FILE takes fields from a YAML file, as if they were typed.
    --out names the directory of the runs (runs/sweeps).
    """

    resumes: ClassVar[bool] = True
    name: Name = ""
    """A sweep (mlp-head/heads), a system for all of its sweeps, or a directory of runs; empty: list the sweeps."""
    options: Annotated[SweepOptions, tyro.conf.arg(name="")]
    fields: Annotated[Run, tyro.conf.arg(name="")]
    words: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The fields of train.py on the command line."""

    @classmethod
    def parse(cls, argv: list[str], text: str) -> Self:
        argv = with_config(argv, sweep=True)
        name = argv[0] if argv and not argv[0].startswith("-") else ""
        default = cls(name=name, options=SweepOptions(), fields=Run())
        command = parse_options(cls, default, argv, "cls sweep", text)
        if command.name != os.path.expanduser(name):
            raise ValueError(f"{command.name}: the sweep is the first word after cls sweep")
        return dataclasses.replace(command, words=field_words(argv))

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.sweep.run import list_sweeps, run_sweep
        from cls.recipes.tables import chosen

        folder = not chosen(self.name) and Path(self.name).is_dir()
        if (folder or not self.name) and (self.words or self.options != SweepOptions()):
            raise ValueError("these options need a sweep as the first word: cls sweep NAME … (`cls sweep` lists them)")
        if not self.name:
            return list_sweeps(), None
        if folder:
            from cls.commands.sweep.table import show_directory

            return show_directory(Path(self.name)), None
        check_output("slurm", self.options.slurm)
        check_output("wandb", self.options.wandb)
        return run_sweep(self.name, self.options, self.fields, self.words, stop)


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Compare runs on the same images: accuracies with intervals, paired differences, classes, fields that differ."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN …")]
    """Directories of runs, ensembles (cls evaluate --to) or soups, or predictions files (.parquet); runs that differ
    only in the seed are pooled. Those without a finished run are skipped and named."""
    baseline: str = ""
    """Run, or group of seeds, to compare the others with; empty: the first."""
    split: Literal["val", "test"] = "val"
    """Stored predictions to compare: predictions/val.parquet or test.parquet (if labelled)."""
    to: str = ""
    """Markdown file to write the tables to; empty: none."""
    curves: str = ""
    """PNG file to draw loss and accuracy over epochs to, also of runs that have not finished; empty: none."""

    def do(self, stop: StopSignal) -> Answer:
        check_output("to", self.to)
        check_picture("curves", self.curves)
        from cls.commands.compare import draw, markdown, show, without_tables
        from cls.evaluation.compare import comparable, compare

        drawn = {"curves": draw(self.runs, self.curves)} if self.curves else {}
        if drawn and not comparable(self.runs, self.split):
            return drawn | without_tables(self.to), None
        document = compare(self.runs, self.baseline, self.split) | drawn
        show(document)
        if self.to:
            with writing("to", self.to):
                write_whole(Path(self.to), markdown(document).encode())
        return document, None


@dataclass(frozen=True, kw_only=True)
class Tune(RunCommand):
    """Find the learning rate for a run: short complete runs at several rates, compared on held-out training images.

    It prints the --optim.lr to use; validation and test images are never used. --out names the directory of the search
    (runs/tune-RECIPE); the same command resumes an interrupted one.
    """

    resumes: ClassVar[bool] = True
    options: Annotated[TuneOptions, tyro.conf.arg(name="")] = field(default_factory=TuneOptions)

    def do(self, stop: StopSignal) -> Answer:
        check_output("slurm", self.options.slurm)
        from cls.commands.tune.run import tune

        return tune(self.run, self.options, stop), None


@dataclass(frozen=True, kw_only=True)
class Plan(RunCommand):
    """Estimate before queueing what a run needs: memory, largest micro-batch, time, cores, and the sbatch line."""

    options: Annotated[PlanOptions, tyro.conf.arg(name="")] = field(default_factory=PlanOptions)

    def do(self, stop: StopSignal) -> Answer:
        self.options.card()  # before the imports
        from cls.commands.plan.render import table
        from cls.commands.plan.run import plan

        document = plan(self.run, self.options)
        table(document)
        return document, None


@dataclass(frozen=True, kw_only=True)
class Bench(RunCommand):
    """Measure the input pipeline and the training loop on your images, against decoding alone; advice."""

    options: Annotated[BenchOptions, tyro.conf.arg(name="")] = field(default_factory=BenchOptions)

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.bench.render import table
        from cls.commands.bench.run import bench

        document = bench(self.run, self.options, stop)
        table(document)
        return document, None


@dataclass(frozen=True, kw_only=True)
class Fetch(RunCommand):
    """Download what a run needs, for machines without internet: pretrained weights and hub data, verified by hash."""

    needs_images: ClassVar[bool] = False

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.fetch import fetch

        return fetch(self.run), None


@dataclass(frozen=True, kw_only=True)
class Pack(Command):
    """Write images as parquet shards, for streaming and for file systems that are slow with small files."""

    resumes: ClassVar[bool] = True
    path_place: ClassVar[int] = 0
    path: ImagePath
    """A folder of images, a parquet, arrow or webdataset file or folder, or a hub name."""
    to: str
    """Folder for the shards and pack.json; the same command resumes an interrupted one."""
    options: Annotated[PackOptions, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.pack import pack

        return pack(self.path, Path(self.to), self.options), None


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a run's best model for timm, torchvision or ONNX, verified on real images; print the code that loads it."""

    run: RunPath
    """Run directory, or its best/model.safetensors."""
    more: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RUN …]")] = ()
    """More of them: each is written to a folder member-N of its own, with ensemble.json and the code that averages."""
    to: str
    """Folder for model.safetensors, model.onnx and config.json (classes, size, frame, mean and std)."""
    options: Annotated[ExportOptions, tyro.conf.arg(name="")]

    @classmethod
    def parse(cls, argv: list[str], text: str) -> Self:
        words = [re.sub(r"^--data\.path", "--images", word) for word in argv]  # as messages print it
        return parse_options(cls, None, plain_options(words, -1), "cls export", text)

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.export.members import export_members
        from cls.commands.export.run import export
        from cls.evaluation.ensemble_record import models_of

        models = [model for path in (self.run, *self.more) for model in models_of(path)]
        if len(models) > 1:
            return export_members(models, Path(self.to), self.options, stop), None
        return export(models[0], Path(self.to), self.options, stop), None


@dataclass(frozen=True, kw_only=True)
class Soup(Command):
    """Average the weights of runs of one network into one, greedily by validation accuracy; written if it gains.

    The runs must have started from the same weights; sizes, augmentation, optimizer and seeds may differ. The images
    that choose the members also judge them: the soup's validation accuracy is optimistic.
    """

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN RUN …")]
    """Run directories, or their best/model.safetensors, validated on the same images. All are in memory at once."""
    to: str
    """Directory for best/model.safetensors and soup.json, which predict, evaluate, export and compare take like a run;
    framed as the best of the runs."""
    options: Annotated[SoupOptions, tyro.conf.arg(name="")]

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.soup import make_soup

        return make_soup(self.runs, Path(self.to), self.options, stop), None


@dataclass(frozen=True, kw_only=True)
class Check(SplitOptions, DeviceOptions, Command):
    """Check all images before training: corrupt and unusual ones, duplicates within and across splits, labels.

    Exits with 3 where something must be fixed: corrupt images, one picture in several splits or under several labels.
    """

    path_place: ClassVar[int] = 0
    path: ImagePath
    """A folder of images, a parquet, arrow or webdataset file or folder, a hub name, or 'digits' (embedded)."""
    run: str = ""
    """Directory of a finished run, to find labels that its model contradicts; its data fields and seed are used."""
    to: str = ""
    """PNG file to write: duplicates side by side, corrupt images, possible label errors."""

    def do(self, stop: StopSignal) -> Answer:
        check_picture("to", self.to)
        data, to = self.data(self.path), Path(self.to) if self.to else None
        from cls.commands.check.findings import data_error
        from cls.commands.check.run import check_images

        found = check_images(data, self.seed, self.run, to, self.workers, self.device, stop)
        return found, data_error(found)


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Check this machine: driver, cores, memory, caches, network, disk, communication between GPUs; with remedies.

    Started by srun with one task on each of several nodes, it also tries the communication between them.
    """

    out: str = "runs"
    """Directory whose disk is measured."""
    data: str = ""
    """Images whose reading is measured; empty: none."""
    save: bool = False
    """Save the variables that communication on this node needs, where slurm/env.sh reads them."""
    seconds: float = 5.0
    """Time to measure each transport; one without an answer after three times this plus a minute counts as hung."""

    def do(self, stop: StopSignal) -> Answer:
        from cls.commands.doctor.run import doctor, not_ready

        found = doctor(self.out, self.data, self.save, self.seconds)
        return found, not_ready(found or [])


COMMANDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (Recipes, Show, Check, Plan, Tune, Bench, Fetch, Pack, Doctor, Predict, Export, Evaluate, Compare,
                 Explain, Report, Soup, Audit, Sweep)
}  # fmt: skip
