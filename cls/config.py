"""The configuration of a run: everything that decides its result.

Every field is reachable from the command line as ``--section.field value``; the text under a field is its help.
A feature is off at its zero (``mixup=0.0``, ``cbam=()``), never ``None``.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

Op = Literal["frame", "hflip", "vflip", "rotate", "affine", "jitter", "randaugment", "trivialaugment", "blur", "erase"]
View = Literal["identity", "hflip", "rotate", "crop"]
NO_VALIDATION = "no validation images (data.hold_out none)"
"""Shown wherever a validation figure would be."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and how they are framed when nothing is random."""

    path: str = ""
    """An image folder, a parquet, arrow or webdataset file or folder, a hub name, or 'digits' (embedded)."""
    copy: str = ""
    """Local copy of data.path, read instead of it (slurm/env.sh makes one)."""
    size: int = 224
    """Side of the square image the model sees, pixels."""
    eval_size: int = 0
    """Side of validation and test images if different (random crops enlarge objects, Touvron et al. 2019)."""
    eval_frame: Literal["center", "squash"] = "center"
    """Validation and test: resize the short side and crop the centre, or squash the whole image to a square."""
    crop_pct: float = 0.875
    """Centre framing: the crop as a fraction of the resized short side (224 / 256 = 0.875)."""
    normalize: Literal["auto", "imagenet", "half"] = "auto"
    """Mean and std of the input: auto follows the pretrained weights; half is mean = std = 0.5."""
    image_column: str = ""
    """Column with the images in parquet, arrow or hub data; empty: found by type, then by name."""
    labels: tuple[str, ...] = ()
    """Label files of image files, where class folders do not say it: CSV, TSV, text lists or JSON, below data.path or
    anywhere. One or several, each for the split in its name (train.csv), or named: val=solution.csv."""
    id_column: str = ""
    """Column of the label files with the images' names; empty: the one whose values match them. Without a header: 1."""
    label_column: str = ""
    """Column with the labels in parquet, arrow or hub data or in the label files; member (txt) or key (json.class) of a
    webdataset; empty: found by type and name."""
    label_pattern: str = ""
    """Regular expression whose one group is the class in an image file's name, from its start: '(.+)_[0-9]+'."""
    val_fraction: float = 0.1
    """Share of the training images held out (seeded, stratified) when the data has no validation split."""
    hold_out: str = ""
    """Which images validate. Empty: the validation split, or val_fraction of train. none: no image; the validation
    split is trained on. 2/5: the second of five equal parts of train (by class; the same for every seed), while the
    validation split is left aside. +1/20: a twentieth of what else would be trained on, in place of what else would
    validate, which is left aside with the test split: for choosing between runs."""
    limit: int = 0
    """Smoke run: at most this many training and validation images each (seeded, stratified); 0: all. Test is whole."""
    balanced: bool = False
    """Sample every class equally often instead of every image exactly once per epoch."""
    max_corrupt: float = 0.01
    """Stop when more than this share of the training images (and more than one) are corrupt."""
    streaming: bool = False
    """Read a folder, parquet, tar or hub set block by block in a computed order; for sets too large to index."""
    exact_order: bool = False
    """Slow: every operation by torchvision on the full-size image, in the recipe's order, as published."""
    workers: int = -1
    """Loader processes per rank; -1: one per core available to this rank, less one for the rank itself, at most 16;
    0: decode in the main process."""

    @property
    def validates(self) -> bool:
        """Whether there are validation images."""
        return self.hold_out != "none"

    @property
    def own_labels(self) -> bool:
        """Whether labels come from label files or file names instead of class folders."""
        return bool(self.labels or self.label_pattern)

    def labelled_as(self, other: "Data") -> "Data":
        """This data with the label options of ``other``; label_column is kept where both read tables."""
        kept = "" if self.own_labels or other.own_labels else self.label_column
        return dataclasses.replace(self, labels=other.labels, id_column=other.id_column,
                                   label_column=other.label_column or kept,
                                   label_pattern=other.label_pattern)  # fmt: skip

    @property
    def evaluated(self) -> "Data":
        """The data for validation and test: ``size`` is eval_size."""
        return dataclasses.replace(self, size=self.eval_size or self.size)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images, in the given order; every number is drawn from (seed, sample index)."""

    order: tuple[Op, ...] = (
        "frame", "hflip", "vflip", "rotate", "affine", "jitter", "randaugment", "trivialaugment", "blur", "erase",
    )  # fmt: skip
    """The order in which the operations are applied; those at zero do nothing."""
    frame: Literal["crop", "center", "squash"] = "crop"
    """How a training image becomes a square: random resized crop, centre crop, or squashed whole."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: share of the image's area, from and to (aspect ratio 3/4 to 4/3)."""
    hflip: float = 0.0
    """Probability of a left-right flip."""
    vflip: float = 0.0
    """Probability of an upside-down flip."""
    rotate: float = 0.0
    """Rotation by an angle uniform in plus or minus this many degrees."""
    translate: float = 0.0
    """Affine: largest shift as a fraction of width and height."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Affine: range of the scale factor."""
    brightness: float = 0.0
    """Colour jitter: factor uniform in 1 plus or minus this."""
    contrast: float = 0.0
    """Colour jitter: factor uniform in 1 plus or minus this."""
    saturation: float = 0.0
    """Colour jitter: factor uniform in 1 plus or minus this."""
    hue: float = 0.0
    """Colour jitter: hue shift uniform in plus or minus this, in turns of the colour circle (at most 0.5)."""
    randaugment: int = 0
    """RandAugment: number of operations per image (Cubuk et al. 2019); 0 is off."""
    randaugment_magnitude: int = 10
    """RandAugment: magnitude, 0 to 30."""
    trivialaugment: bool = False
    """TrivialAugment: one operation of random strength per image (Müller and Hutter 2021, wide space)."""
    blur: int = 0
    """Gaussian blur kernel, odd pixels, sigma uniform in 0.1 to 2; 0 is off."""
    erase: float = 0.0
    """Probability of replacing a random box by noise (Zhong et al. 2017)."""
    erase_scale: tuple[float, float] = (0.02, 0.33)
    """Random erasing: share of the image's area, from and to (aspect ratio 0.3 to 3.3)."""
    fill: Literal["black", "mean"] = "black"
    """Colour of corners exposed by rotation and shift: black, or the normalisation mean."""
    mixup: float = 0.0
    """Mixup: alpha of the Beta distribution (Zhang et al. 2017); 0 is off."""
    cutmix: float = 0.0
    """CutMix: alpha of the Beta distribution (Yun et al. 2019); 0 is off; with mixup, one of the two by a fair coin."""
    mix_probability: float = 1.0
    """Share of steps that are mixed at all; one coin per step ('random mixup' at 0.5)."""
    tta: tuple[View, ...] = ()
    """Test-time views whose softmax is averaged for the test prediction; empty: one plain view."""

    @property
    def active(self) -> tuple[Op, ...]:
        """The operations that do something."""
        jitter = self.brightness or self.contrast or self.saturation or self.hue
        strength = vars(self) | {"affine": self.translate or self.zoom != (1.0, 1.0), "jitter": jitter}
        return tuple(name for name in typing.get_args(Op) if strength[name])

    @property
    def ordered(self) -> tuple[Op, ...]:
        """``order`` without the operations that do nothing."""
        return tuple(name for name in self.order if name in self.active)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network: a backbone with pretrained weights, optional attention, and a head."""

    backbone: str = "resnext101_32x8d"
    """A torchvision ResNet or ResNeXt name, 'timm/NAME' for a timm model, or 'resnext14_8x8d' (small, for digits)."""
    weights: str = "DEFAULT"
    """'none', a torchvision name such as IMAGENET1K_V2 or DEFAULT, 'timm' (that model's own), a local file, or a run
    directory: its best weights. The head is loaded too if network, classes and their order are the same."""
    head: str = ""
    """Hidden head layers, e.g. '500 relu dropout:0.5': a number is a linear layer of that width; also bn, silu."""
    gate: int = 0
    """Width of the attention gate on the backbone's own logits, which are then kept (report 1 uses 500); 0 is off."""
    cbam: tuple[int, ...] = ()
    """Stages (1 to 4) that are followed by a convolutional block attention module (Woo et al. 2018)."""
    cbam_chained: bool = False
    """CBAM as report 2's program has it: the max-pool branch is fed the average branch's output."""
    dropout3: float = 0.0
    """Dropout between the third and the fourth stage."""
    freeze: tuple[str, ...] = ()
    """Parts whose weights keep their pretrained values: stem, layer1, ... or a module's name."""
    freeze_norms: bool = True
    """BatchNorm of frozen parts keeps its statistics, too. False: it normalises by the batch and they move, as in the
    programs of reports 2 and 3, which only take the gradients away."""

    @property
    def in_eval_mode(self) -> tuple[str, ...]:
        """The parts that stay in eval mode while the others train."""
        return self.freeze if self.freeze_norms else ()

    @property
    def own_weights(self) -> bool:
        """Whether the weights are a local file or a run directory, not a name."""
        return "." in self.weights or "/" in self.weights


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Loss, optimizer and schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimizer: AdamW, or SGD with momentum 0.9."""
    lr: float = 1e-4
    """Learning rate at the batch given by lr_batch."""
    lr_batch: int = 64
    """The global batch for which lr was stated; only used by scale_lr."""
    scale_lr: Literal["none", "sqrt", "linear"] = "none"
    """How the rate follows train.batch / lr_batch; none keeps lr whatever the batch."""
    weight_decay: float = 0.01
    """Decoupled weight decay (AdamW) or L2 penalty (SGD)."""
    decay_norms: bool = True
    """Also decay norms and biases, as all five published programs do."""
    head_lr: float = 1.0
    """Factor on the rate of the head and of other fresh parts."""
    head_epochs: float = 0.0
    """Epochs at the start in which only the head and other fresh parts train, at lr · head_lr, while the backbone keeps
    its pretrained values and BatchNorm statistics (Kumar et al. 2022); the schedule begins after them. As many as
    train.epochs: the head alone is trained, at one rate."""
    stage_decay: float = 1.0
    """Factor on the rate for each stage below the last one, so that the stem of a ResNet has the fourth power of it;
    1: one rate for all. The stages of a timm network are those of its own group_matcher."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two decay rates."""
    clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, which is then what is evaluated; 0 is off. It warms up:
    after n steps it is min(ema, (1 + n) / (10 + n)), so that a short run is not averaged with its first weights."""
    loss: Literal["ce", "mse"] = "ce"
    """Cross entropy, or the mean squared error between logits and one-hot targets, mean over classes."""
    label_smoothing: float = 0.0
    """Share of each training target spread evenly over all classes."""
    class_weight: float = 0.0
    """Weight each class by frequency to the power of minus this (1: inverse frequency); 0 is off."""
    schedule: Literal["fixed", "cosine", "plateau", "warmup-cosine", "one-cycle"] = "fixed"
    """Rate: fixed; cosine or plateau stepped per epoch; warm-up then cosine stepped per step; one-cycle, per step: from
    lr / 25 up to lr over the first 30 % of the run and down to nothing (Smith and Topin 2017)."""
    t_max: int = 0
    """Cosine: epochs from lr down to min_lr (the rate rises again after them); 0 is all epochs."""
    min_lr: float = 0.0
    """Lowest rate of the backbone, in every schedule that lowers it (a warm-up starts below); that of new layers is
    head_lr times as high, that of lower stages is lower by stage_decay."""
    factor: float = 0.1
    """Plateau: factor on the rate."""
    patience: int = 10
    """Plateau: epochs without improvement that are tolerated; the next one lowers the rate."""
    plateau_on: Literal["loss", "accuracy", "either"] = "loss"
    """Plateau: the validation figure that must improve; either: at least one of them."""
    warmup: float = 0.0
    """Warm-up + cosine: epochs of linear warm-up from zero."""

    def learning_rate(self, batch: int) -> float:
        """The rate for this global batch: ``lr``, scaled by batch / lr_batch as ``scale_lr`` says."""
        ratio = batch / self.lr_batch
        return self.lr * {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[self.scale_lr]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Length of the run, batch sizes, precision, device, checkpoints."""

    epochs: float = 100
    """Passes over the training images, also 2.5: the end of the run is then validated as that of an epoch is."""
    batch: int = 64
    """Global batch: images per optimizer step over all processes."""
    micro_batch: int = 16
    """Images that share BatchNorm statistics, mixing partners and, with exact, dropout masks; divides batch."""
    max_steps: int = 0
    """Smoke run: stop after this many optimizer steps; 0 runs all epochs."""
    eval_batch: int = 32
    """Images per forward pass of validation and test."""
    early_stop: int = 0
    """Stop after this many epochs in a row without an improvement of early_stop_on, counted from the end of
    optim.head_epochs; 0 never stops early."""
    early_stop_on: Literal["loss", "accuracy"] = "loss"
    """The validation figure that early_stop follows."""
    early_stop_change: float = 0.0
    """How much better than the best so far that figure must be to count as an improvement (0.001: .1 points)."""
    best_on: Literal["accuracy", "loss"] = "accuracy"
    """Which weights are kept in best/ and tested: of the highest validation accuracy, or of the lowest loss."""
    reduce: Literal["exact", "fast"] = "exact"
    """exact: gradients are added in one fixed tree, so any number of processes gives the same bits; fast: any order.
    fast also puts several micro-batches into one forward pass. On one CPU core a step took with exact 0.92 and 0.96
    times as long as with fast at 224 pixels (resnet50-mlp, cbam-mixup), 1.05 to 1.44 times at 64 (the five systems),
    where micro-batches of 8 or 16 are little work each; not measured on GPUs."""
    deterministic: bool = True
    """Use only kernels that give the same bits every time."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the GPU has it natively, else fp32; resolved at the first start and then kept. fp32 on
    Ampere and later GPUs: convolutions run as TF32 (10-bit mantissa), matrix products in full, as in torch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one that works, else the CPU."""
    channels_last: Literal["auto", True, False] = "auto"
    """Keep images and convolutions (with FSDP images) in the channels-last memory format. auto: True on a CPU and with
    FSDP; else both are timed at the first start, and channels-first is taken if it is 1.2 times faster or more."""
    compile: bool = False
    """Compile the model with torch.compile (not together with reduce=exact)."""
    save_minutes: float = 10.0
    """Minutes between checkpoints inside an epoch; 0 saves at the end of each epoch only."""
    keep: int = 2
    """Number of latest checkpoints kept, besides the best by accuracy and the best by loss."""

    def __post_init__(self) -> None:
        if isinstance(self.epochs, float) and self.epochs.is_integer():
            object.__setattr__(self, "epochs", int(self.epochs))  # 100, not 100.0, in every text

    @property
    def images_channels_last(self) -> bool:
        """``channels_last``, where auto is True until it is measured."""
        return self.channels_last is not False


@dataclass(frozen=True, kw_only=True)
class Track:
    """Logging options; they do not affect results."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """W&B: auto is online when an API key is known, else offline."""
    project: str = "cls"
    """W&B project."""
    name: str = ""
    """W&B run name; empty: the run directory's name."""
    artifact: Literal["auto", "always", "never"] = "auto"
    """Upload the best weights with classes and preprocessing to W&B: auto does so online; offline it costs a copy."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra 'tensorboard')."""
    ledger: bool = False
    """Record the sample index and a hash of the pixels of each training image (0.4 ms at 224 px), for `cls audit`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run."""

    recipe: str = "digits"
    """Name of the recipe this run started from (set by the first word of the command)."""
    seed: int = 0
    """Decides order, augmentation, mixing, dropout, and the initial values of fresh layers."""
    out: str = ""
    """Run directory; the same directory again continues the run; empty: runs/<recipe>-<date>-<time>, or the next free
    name, which is removed where the run ends before its first step."""
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    track: Track = field(default_factory=Track)


RENAMED = {"data.max_bad": "data.max_corrupt"}
"""Fields with another name in the config.yaml of earlier versions, and what they are called now."""

# may change on resume without changing the experiment
RUNTIME_FIELDS = (
    "out", "data.copy", "data.workers", "data.max_corrupt", "train.device", "train.keep", "train.save_minutes",
    "train.max_steps", "track.",
)  # fmt: skip


def change(run: Run, *, recipe: str = "", seed: int | None = None, out: str = "", **sections: dict[str, Any]) -> Run:
    """A variant of a run: ``change(run, train=dict(batch=32), model=dict(head=""))``."""
    changed = {name: dataclasses.replace(getattr(run, name), **values) for name, values in sections.items()}
    seed = run.seed if seed is None else seed
    return dataclasses.replace(run, recipe=recipe or run.recipe, seed=seed, out=out or run.out, **changed)


def flat(run: Run) -> dict[str, Any]:
    """All fields as one level of dotted names, in the order of definition."""
    found: dict[str, Any] = {}
    for name, value in vars(run).items():
        is_section = dataclasses.is_dataclass(value)
        found |= {f"{name}.{key}": inner for key, inner in vars(value).items()} if is_section else {name: value}
    return found


def to_yaml(run: Run) -> str:
    return str(yaml.safe_dump(dataclasses.asdict(run), sort_keys=False, allow_unicode=True))


def from_yaml(text: str) -> Run:
    """Rebuild a run from :func:`to_yaml`'s text; an unknown or ill-typed field is a ValueError that names it."""
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:  # bad dates and the like
        raise ValueError(f"config: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        found = "nothing" if loaded is None else "a list" if isinstance(loaded, list) else _as_yaml(loaded)
        raise ValueError(f"config: expected a mapping of sections, found {found}")
    return typing.cast(Run, _build(Run, loaded, ""))


def _build(kind: type, values: dict[Any, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    built = {}
    for given, value in values.items():
        key = RENAMED.get(f"{prefix}{given}", "").removeprefix(prefix) or given
        if key not in hints:
            names = {name: name.replace(".", ": {") + ": …}" for name in flat(Run())}  # optim.lr is optim: {lr: …}
            names |= {name.rpartition(".")[2]: name for name in flat(Run())} | {name: prefix + name for name in hints}
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"; did you mean {names[near[0]]}?" if near else ""
            raise ValueError(f"config: unknown field {prefix}{key}{hint}")
        if not dataclasses.is_dataclass(hints[key]):
            built[key] = _convert(hints[key], value, prefix + key)
        elif isinstance(value, dict):
            built[key] = _build(typing.cast(type, hints[key]), value, f"{prefix}{key}.")
        else:
            raise ValueError(f"config: {prefix}{key} must be a mapping of fields, found {_as_yaml(value)}")
    return kind(**built)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_convert(kind, item, name) for kind, item in zip(kinds, value, strict=True))
    elif origin is Literal:
        for arg in args:
            if type(value) is type(arg) and value == arg:  # 1 is not True
                return value
    elif isinstance(hint, type) and type(value) is hint:
        return value
    elif hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)  # YAML 1.1 reads 1e-4 (no dot) as a string
    raise ValueError(f"config: {name} must be {_in_words(hint)}, found {_as_yaml(value)}")


def _in_words(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}, each item {_in_words(args[0])}"
    simple = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return "one of " + ", ".join(map(_as_yaml, args)) if args else simple[hint]


def _as_yaml(value: Any) -> str:
    return str(yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=math.inf))[1:-2]


def diff(old: Run, new: Run) -> list[str]:
    """One line for each field that differs, except RUNTIME_FIELDS."""
    before, after = flat(old), flat(new)
    for name in ("data.path", "model.weights"):  # config.yaml may hold ~, the command line is expanded
        before[name] = os.path.expanduser(before[name])
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in before
        if before[name] != after[name] and not name.startswith(RUNTIME_FIELDS)
        and not (name == "augment.order" and old.augment.ordered == new.augment.ordered)
    ]  # fmt: skip
