"""Options that commands share, and those of single commands; no heavy imports, so that --help returns immediately."""

import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from cls.commands.gpus import Gpu, find
from cls.config import Data, View
from cls.validate import check_data

Format = Literal["safetensors", "onnx"]
Input = Literal["float", "uint8"]

Preset = Literal["none", "flip", "all"]
PRESETS: dict[Preset, tuple[View, ...]] = {
    "none": ("identity",), "flip": ("identity", "hflip"), "all": ("identity", "hflip", "rotate", "crop"),
}  # fmt: skip
"""Sets of test-time views by name."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Where a model runs, and what loads its images."""

    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""
    workers: int = -1
    """Processes that decode images; -1: one per core but one, at most 16; 0: decode in the main process."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Where the images are in a table that is not the run's own."""

    image_column: str = ""
    """Column with the images in parquet or arrow data; empty: that of the run's own data, else found by type and
    name."""

    def in_column(self, data: Data) -> Data:
        return replace(data, image_column=self.image_column or data.image_column)


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Where the labels of images are, if not in class folders; as the fields of the same name of train.py."""

    labels: tuple[str, ...] = ()
    """Label files, as train.py's --data.labels: train.csv, or val=solution.csv."""
    id_column: str = ""
    """Column of the label files with the image names; empty: the one whose values match them."""
    label_column: str = ""
    """Column with the labels in parquet, arrow or hub data or in the label files; member (txt) or key (json.class) of a
    webdataset; empty: found by type and name."""
    label_pattern: str = ""
    """Regular expression whose one group is the class in an image's file name, from its start: '(.+)_[0-9]+'."""

    def data(self, path: str) -> Data:
        """The images of ``path`` with these labels; ValueError for options that exclude each other."""
        data = Data(path=path, labels=self.labels, id_column=self.id_column, label_column=self.label_column,
                    label_pattern=self.label_pattern)  # fmt: skip
        check_data(data)
        return data


@dataclass(frozen=True, kw_only=True)
class SplitOptions(LabelOptions):
    """How images are found and split; as the fields of the same name of train.py."""

    val_fraction: float = 0.1
    """Share of the training images held out (stratified) if the data has no validation split."""
    seed: int = 0
    """Seed of the held-out split."""
    image_column: str = ""
    """Column with the images in parquet, arrow or hub data; empty: found by type, then by name."""

    def data(self, path: str) -> Data:
        data = replace(super().data(path), val_fraction=self.val_fraction, image_column=self.image_column)
        check_data(data)
        return data


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ImageOptions, DeviceOptions):
    """What is predicted, and where it is written."""

    out: str = ""
    """Folder for top.csv (written row by row) and, at the end, prediction.csv, prediction.zip and predictions.parquet
    (all probabilities); empty: predict-<name of path> in the run directory, with several runs predict-<name of
    path>-by-<N>-runs beside the first. - writes a JSON line per image to standard output instead; this is the default
    if the path is -."""
    tta: tuple[View | Preset, ...] = ()
    """Views whose softmax is averaged: none: the image, flip: the image and its mirror image, all: all four; empty:
    each recipe's own."""
    top_k: int = 5
    """Number of most probable classes in each row."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(LabelOptions, ImageOptions, DeviceOptions):
    """The labels of images of another folder, and the views."""

    tta: tuple[View | Preset, ...] = ()
    """Views whose softmax is averaged: flip: the image and its mirror image, all: all four; empty: one plain view."""
    to: str = ""
    """Directory for the predictions of several runs on their own validation images (and labelled test images, in the
    recipes' own views), which cls compare and cls report take like a run; empty: none."""


@dataclass(frozen=True, kw_only=True)
class SoupOptions(DeviceOptions):
    """How candidates are prepared."""

    norm_images: int = 2048
    """Training images on which the BatchNorm statistics of each candidate are renewed before it is judged."""

    def __post_init__(self) -> None:
        if self.norm_images < 1:
            raise ValueError(f"--norm-images must be at least 1, found {self.norm_images}")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(DeviceOptions):
    """What a report shows besides the stored results."""

    to: str = ""
    """File to write; empty: report.html in the run directory."""
    heat_maps: int = 24
    """Number of the most confident mistakes to show with heat maps (Grad-CAM) of the predicted and of the true class;
    0: none. Costs as much as predicting these images; needs the run's images and best/model.safetensors."""
    neighbors: Annotated[int, tyro.conf.arg(aliases=["--neighbours"])] = 0
    """Number of nearest training images of the predicted and of the true class to show beside the 24 most confident
    mistakes; costs a pass over at most 5,000 training images."""
    predict: bool = False
    """Predict the validation images with the best weights if the run has not stored that yet, plain and with its
    test-time views: one pass over them per view."""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ImageOptions):
    """What is drawn, and where."""

    to: str = "explain.png"
    """PNG file to write."""
    target: str = ""
    """Class to explain besides the predicted one; empty: the name of the folder that holds the image, if that is a
    class of the run."""
    count: int = 12
    """Images at most, 1 to 100, the first ones of a folder; the others are counted."""
    device: str = "auto"
    """Device of the model: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 100:
            raise ValueError(f"--count is {self.count}: it must be from 1 to 100")


@dataclass(frozen=True, kw_only=True)
class PackOptions(SplitOptions):
    """How images are packed; changing any field changes the shards. The seed also sets the order of the rows."""

    short: int = 0
    """Reduce the short side of larger images to this many pixels, as JPEG; 0 keeps every file's bytes as they are."""
    quality: int = 90
    """JPEG quality of reduced images, 1 to 95."""
    shard_mb: int = 256
    """Approximate size of a shard file, MB."""

    def __post_init__(self) -> None:
        if self.short < 0:
            raise ValueError(f"--short is {self.short}: it must be 0 (no change) or a number of pixels")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"--quality is {self.quality}: it must be from 1 to 95")
        if self.shard_mb < 1:
            raise ValueError(f"--shard-mb is {self.shard_mb}: it must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ImageOptions):
    """Which files are written, and which images they are verified on."""

    format: tuple[Format, ...] = ("safetensors",)
    """safetensors: model.safetensors for timm or torchvision (or cls, where the attention is its own); onnx: model.onnx
    with any batch size, which needs the extra 'onnx'; or both. config.json is always written."""
    input: Input = "float"
    """Input of model.onnx: float is images b 3 h w, float32, normalised; uint8 is pixels b h w 3, RGB, 0 to 255, which
    the network normalises itself. Both framed as config.json says."""
    images: str = ""
    """Images to compare logits, labels and probabilities on; empty: the validation split of the run's own data."""
    count: int = 100
    """Number of images to compare on, evenly spaced."""
    card: bool = False
    """Also write README.md, a model card as the Hugging Face hub has them: figures, data, method, loading, limits."""
    push: str = ""
    """Upload folder and card to this model repository of the Hugging Face hub, USER/NAME."""
    public: bool = False
    """Everyone may see the repository of --push; else it is private."""

    def __post_init__(self) -> None:
        if self.push and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.push, re.ASCII):
            raise ValueError(f"--push {self.push!r} is not the name of a repository of the hub: write USER/NAME")
        if self.public and not self.push:
            raise ValueError("--public is for --push USER/NAME, which is not given")
        if not self.format:
            raise ValueError("--format is empty: name safetensors, onnx or both")
        if self.count < 1:
            raise ValueError(f"--count must be at least 1, found {self.count}")

    @property
    def with_card(self) -> bool:
        return self.card or bool(self.push)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The machine that a run is planned for."""

    gpu: str = ""
    """GPU name, case-insensitive: 3090, rtx3090, a6000, 'RTX 3060 Ti', a100, a100-80, h100."""
    memory: float = 0.0
    """Memory of a GPU of another type, GB; then time is not estimated."""
    gpus: int = 1
    """GPUs per node."""
    nodes: int = 1
    """Nodes (machines)."""
    cpus: int = 0
    """Cores per node that the job will request; 0: as many as feed its GPUs (those of --script are compared)."""
    time: str = ""
    """Time limit of a job as SLURM writes it (12:00:00, 1-00:00:00); empty: none."""
    script: str = ""
    """Batch script to submit; its #SBATCH lines are compared with the plan. `sbatch --test-only` finds lines that SLURM
    itself rejects."""
    fsdp: bool = False
    """Shard parameters, gradients and optimizer over the GPUs (needs --train.reduce fast)."""
    link: float = 10.0
    """Network between nodes, Gbit/s."""

    def card(self) -> Gpu | None:
        """The named GPU; None where only its memory is given; ValueError for neither, both, or an unknown name."""
        if bool(self.gpu) == bool(self.memory):
            raise ValueError("gpu: name it (--gpu a6000) or, for another type, give its memory in GB (--memory 16)")
        if self.memory < 0:
            raise ValueError(f"memory is {self.memory}: give the GPU's memory in GB")
        return find(self.gpu) if self.gpu else None

    @property
    def world_size(self) -> int:
        return self.gpus * self.nodes


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured, and for how long."""

    images: int = 64
    """Images of each measurement, rounded up to whole batches."""
    repeats: int = 5
    """Interleaved repetitions; medians are reported."""
    recipes: Literal["all", "this"] = "all"
    """The input pipelines of the five published recipes and this run's, or this run's only."""
    steps: int = 0
    """Optimizer steps of one measurement of the training loop; 0: as many as fit into --seconds, at most 20."""
    seconds: float = 60.0
    """Time limit of the training loop, and again of the table of settings; what would take longer is left out."""
    gpu: str = ""
    """GPU to compare the input with (as `cls plan` takes it); empty: this machine's own device, as measured."""
    gpus: int = 1
    """GPUs that this machine's cores must feed."""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The options of ``cls sweep NAME``, besides the fields of train.py."""

    seeds: int = 0
    """Runs of each row, with seeds 0, 1, …; 0: three, with --folds one."""
    folds: int = 0
    """Cross-validation: as many runs of each row and seed, each validated on another part of the training images
    (data.hold_out 1/5, 2/5, …), and the mean over them; 0 is off."""
    run: bool = False
    """Run what is not done on this machine: finished runs are skipped, interrupted ones resume."""
    jobs: int = 1
    """Number of runs at once; if more than one, each has one GPU and an equal part of the cores."""
    slurm: str = ""
    """Write what is not done to this file, one line per run for slurm/sweep.sh, and print the sbatch command."""
    wandb: str = ""
    """Write the same runs to this file as a W&B sweep."""
    launch: str = "accelerate launch train.py"
    """Command before the recipe: a launcher with its options, and the training script."""

    @property
    def runs_per_row(self) -> tuple[int, int]:
        """Seeds, and folds of each."""
        return self.seeds or (1 if self.folds else 3), self.folds


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What a search for the learning rate may cost, and where its runs are trained."""

    budget: float = 0.0
    """Cost of the search as a share of the run's images; 0: a tenth, or for a short run 7,300 images, at
    most 0.9 of it."""
    jobs: int = 1
    """Number of runs at once; if more than one, each has one GPU and an equal part of the cores."""
    slurm: str = ""
    """Write the next runs to this file (FILE-1, FILE-2, …), one line per run for slurm/sweep.sh, and print the sbatch
    command; when they have ended, the same command continues."""
    launch: str = "accelerate launch train.py"
    """Command before the recipe: a launcher with its options, and the training script."""

    def __post_init__(self) -> None:
        if not 0 <= self.budget < math.inf:
            raise ValueError(f"--budget is {self.budget}: it must be 0 (chosen by the run's length) or a share, as 0.2")
        if self.jobs < 1:
            raise ValueError(f"--jobs is {self.jobs}: it must be 1 or more")
        if self.slurm and self.jobs != 1:
            raise ValueError("--jobs is for runs on this machine: SLURM decides how many of an array run at once")
        if not self.launch.split():
            raise ValueError("--launch is empty: give the launcher and the script, as 'accelerate launch train.py'")


def views_of(words: Sequence[View | Preset]) -> tuple[View, ...]:
    """Test-time views with the presets among them spelled out."""
    views = (view for word in words for view in PRESETS.get(typing.cast(Preset, word), (typing.cast(View, word),)))
    return tuple(dict.fromkeys(views))  # each once: two would weigh double
