"""README.md of an export: a model card in the form of the Hugging Face hub, without anything of this machine."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cls import __version__
from cls.commands.export.agreement import Verified, sentence
from cls.commands.export.snippets import library, plain
from cls.config import NO_VALIDATION, Run, Track, to_yaml
from cls.evaluation.ensemble_record import made_of
from cls.evaluation.metrics import accuracy, calibration, per_class
from cls.evaluation.model_file import read_header
from cls.evaluation.predictions import Predictions
from cls.evaluation.run_record import RunRecord
from cls.evaluation.stats import wilson
from cls.evaluation.trained_model import TrainedModel
from cls.models.weights import HubFile, TorchFile, weight_source

MARK = "<!-- written by cls export -->"
LICENSE = "unknown"
WORST = 10
"""Classes whose recall is listed."""
NAMED = 100
"""Classes that are named; more are in config.json."""
TITLES = {"val": "validation", "val_tta": "validation, test-time views", "test": "test"}


@dataclass(frozen=True)
class Figure:
    """An accuracy on one set of images."""

    title: str
    value: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.value, self.images)


def require_record(trained: TrainedModel) -> RunRecord:
    """What the card is written from; ValueError where the run has not stored it."""
    record = RunRecord(trained.folder)
    file = record.predictions_file("val")
    if trained.file != trained.folder / "best" / "model.safetensors":
        raise ValueError(f"--card needs a run directory, for its figures: {trained.file} lies outside of one")
    if trained.run.data.validates and record.val is None:
        raise ValueError(f"--card needs the run's figures, but {file} does not exist: let the run finish")
    return record


def license_of(folder: Path, with_card: bool) -> str:
    """The license that a user has named in an earlier card there; ValueError for a README.md that must stay."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if MARK in text and not with_card:
        raise ValueError(f"{file} describes an earlier export: add --card True, or delete it")
    if not text or not with_card:
        return LICENSE
    if MARK not in text:
        raise ValueError(f"{file} was not written by cls export, and the card would replace it: name another folder")
    try:
        return str(ModelCard(text, ignore_metadata_errors=True).data.get("license") or LICENSE)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: its first lines are no YAML ({error}): correct or delete it") from error


def public(run: Run) -> Run:
    """The configuration without places and names of this machine; local weights keep the name of their file."""
    data = replace(run.data, path=_dataset(run), copy="", labels=(), id_column="", label_column="", label_pattern="",
                   image_column="")  # fmt: skip
    weights = run.model.weights
    if run.model.own_weights:
        weights = Path(weights).name if Path(weights).suffix else "model.safetensors"
    return replace(run, out="", data=data, model=replace(run.model, weights=weights), track=Track())


def _dataset(run: Run) -> str:
    """digits, else '': USER/NAME may be a data set of the hub or a folder of this machine."""
    return "digits" if run.data.path == "digits" else ""


def save_weights(trained: TrainedModel, to: Path) -> None:
    """The same tensors; the header, which ``cls predict`` reads, has the :func:`public` configuration."""
    with safe_open(trained.file, framework="pt") as file:
        header = file.metadata() | {"config": to_yaml(public(read_header(trained.file)[0]))}
    save_file(load_file(trained.file), to, header)


def figures(record: RunRecord) -> list[Figure]:
    """Accuracies of what the run has predicted and whose labels are known."""
    found = []
    for name, title in TITLES.items():
        known = record.predictions(name)
        if known is not None and (known.labels >= 0).any():
            found.append(Figure(title, accuracy(known), int((known.labels >= 0).sum())))
    return found


def model_card(trained: TrainedModel, record: RunRecord, found: list[Verified], name: str, license: str) -> str:
    """The card's text. ``name``: USER/NAME on the hub, or '' where it is not uploaded."""
    title = name.partition("/")[2] or f"{trained.run.recipe}, {trained.run.model.backbone}"
    front = _front(trained, record, found, title, license).to_yaml()
    if license == LICENSE:
        front = front.replace(
            f"license: {LICENSE}",
            f"license: {LICENSE}  # name one (https://hf.co/docs/hub/repositories-licenses); the data and the "
            "pretrained weights have their own",
        )
    folder = Path(name.partition("/")[2] or "exported")
    parts = [f"---\n{front}\n---\n{MARK}\n\n# {title}", _summary(trained, record), _data(trained, record),
             _method(trained, record), _loading(found, folder, name), _limits(record, found)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front(trained: TrainedModel, record: RunRecord, found: list[Verified], title: str, license: str) -> ModelCardData:
    run, names = trained.run, {one.code.name for one in found}
    data = _dataset(run)
    base = None if run.model.own_weights else weight_source(run.model)
    results = [
        EvalResult(
            task_type="image-classification", dataset_type=data or "images", dataset_name=data or "images of its own",
            dataset_split=figure.title, metric_type="accuracy", metric_value=round(figure.value, 4),
            metric_args={"images": figure.images, "wilson_95": [round(bound, 4) for bound in figure.interval]},
        )
        for figure in figures(record)
    ]  # fmt: skip
    own = "timm" if plain(run.model) and library(run.model) == "timm" else "pytorch"
    return ModelCardData(
        license=license, library_name=own if names - {"onnxruntime"} else "onnx", pipeline_tag="image-classification",
        tags=["image-classification", "cls", *(["onnx"] if "onnxruntime" in names else [])], metrics=["accuracy"],
        base_model=base.repo if isinstance(base, HubFile) else None,
        model_name=title, eval_results=results or None,
    )  # fmt: skip


def _summary(trained: TrainedModel, record: RunRecord) -> str:
    run = trained.run
    known = figures(record)
    rows = [f"| {one.title} | {one.value:.4f} | {one.interval[0]:.4f} to {one.interval[1]:.4f} | {one.images} |"
            for one in known]  # fmt: skip
    table = "\n".join(["| images | accuracy | 95% interval (Wilson) | number |", "|---|---|---|---|", *rows])
    size = run.data.evaluated.size
    text = f"An image classifier of {len(trained.classes)} classes: {run.model.backbone} at {size} px."
    if not rows:
        return f"{text} It has no figures: {NO_VALIDATION}."
    return f"{text}\n\n{table}\n\n{_caution(run, record)}"


def _caution(run: Run, record: RunRecord) -> str:
    """What the intervals of the figures leave out."""
    if made := made_of(record.path):
        return (
            f"The weights are the average of several runs ({made}), which were chosen on these validation images, so "
            "their figures are optimistic. The intervals are about these images and these training runs."
        )
    text = "The intervals are about these images and this one training run."
    optimistic = "The validation images also chose the epoch, so their figures are optimistic."
    return f"{optimistic} {text}" if run.data.validates else text


def _data(trained: TrainedModel, record: RunRecord) -> str:
    run, counts = trained.run, []
    counts += [f"{facts['images']} {TITLES.get(split, 'training')}" for split, facts in record.data.items()]
    if record.test is not None and "test" not in record.data:
        counts.append(f"{len(record.test.ids)} test")
    seeded = f"of the training images, stratified, seed {run.seed}"
    held = f"the data's own validation split where it has one, else {run.data.val_fraction:g} {seeded}"
    if run.data.hold_out:
        part = f"`data.hold_out {run.data.hold_out}` of the training images, stratified"  # the same for all seeds
        held = part if run.data.validates else NO_VALIDATION
    names = trained.classes
    listed = ", ".join(names) if len(names) <= NAMED else f"{len(names)}, in `config.json` (`label_names`)"
    source = "digits, of scikit-learn" if _dataset(run) else "images of the author's own (describe them here)"
    return "\n".join([
        "## Data", "", f"* Source: {source}", f"* Images: {', '.join(counts) or 'not recorded'}",
        f"* Validation: {held}", f"* Classes: {listed}",
    ])  # fmt: skip


def _method(trained: TrainedModel, record: RunRecord) -> str:
    run = trained.run
    optim, train = run.optim, run.train
    made = made_of(record.path)
    averaged = [f"* Average of the weights of several runs ({made}); what follows is the best one's"] if made else []
    return "\n".join([
        "## Method", "", *averaged,
        f"* Recipe `{run.recipe}` of cls {__version__}, seed {run.seed}",
        f"* Backbone `{run.model.backbone}`{f', head `{run.model.head}`' if run.model.head else ''}",
        f"* Pretrained weights: {_weights(run, record)}",
        f"* {train.epochs:g} epochs, batch {train.batch}, {optim.name} at {optim.lr:g} ({optim.schedule}), loss "
        f"{optim.loss}, {train.precision}, trained at {run.data.size} px",
        "", "<details><summary>Configuration</summary>", "", f"```yaml\n{to_yaml(public(run))}```", "", "</details>",
    ])  # fmt: skip


def _weights(run: Run, record: RunRecord) -> str:
    shown = public(run).model.weights
    if shown == "none":
        return "none"
    source = None if run.model.own_weights else weight_source(run.model)
    place = f"a file `{shown}`"
    if isinstance(source, HubFile):
        place = f"`{source.name}` of https://hf.co/{source.repo}"
    elif isinstance(source, TorchFile):
        place = source.url
    digest = record.weights_sha256
    return f"{place}, sha256 {f'`{digest}`' if digest else 'not recorded'}"


def _loading(found: list[Verified], folder: Path, name: str) -> str:
    parts = [f"## How to load\n\n`hf download {name or 'USER/NAME'} --local-dir {folder}`, then one of these."]
    for one in found:
        code = one.code.text(folder, one.reading)
        parts.append(
            f"Checked by running it: {sentence(one.code.name, one.agreement, named=False)}.\n\n```python\n{code}\n```"
        )
    if any(one.code.name != "onnxruntime" for one in found):
        parts.append(
            f"With cls itself: `cls predict {folder / 'model.safetensors'} photo.jpg`, in Python "
            f"`cls.load({str(folder)!r}).predict('photo.jpg')`."
        )
    return "\n\n".join(parts)


def _limits(record: RunRecord, found: list[Verified]) -> str:
    shown = record.test if record.test is not None and (record.test.labels >= 0).any() else record.val
    lines = ["## Limits", "", "* It names one of its classes for every image, also for one of none of them.",
             "* Images of other cameras, places or times than those above can be recognised less often.",
             "* The lines above ignore transparency and cut 16-bit images off at 255; `cls predict` puts transparent "
             "pixels on white and scales 16 bits to 8."]  # fmt: skip
    left = found[0].agreement["against"][0]["views"] if len(found[0].agreement["against"]) > 1 else []
    if left:
        lines.append(f"* `cls predict` averages the views {', '.join(left)}, of which the lines above lack some.")
    if shown is None:
        return "\n".join([*lines, f"* Nothing was measured: {NO_VALIDATION}."])
    which = "test" if shown is record.test else "validation"
    lines.append(
        f"* Expected calibration error of its probabilities on the {which} images: {calibration(shown).error:.3f}."
    )
    return "\n".join([*lines, "", _worst(shown, which)])


def _worst(shown: Predictions, which: str) -> str:
    """A table of the classes with the lowest recall."""
    known = per_class(shown)
    present = np.flatnonzero(known.support > 0)
    worst = present[np.argsort(known.recall[present], kind="stable")][:WORST]
    rows: list[Any] = []
    for label in worst.tolist():
        recall, support = float(known.recall[label]), int(known.support[label])
        low, high = wilson(recall, support)
        name = shown.classes[label].replace("|", "\\|")
        rows.append(f"| {name} | {recall:.3f} | {low:.3f} to {high:.3f} | {support} |")
    head = f"The {len(worst)} classes of lowest recall on the {which} images:"
    return "\n".join([head, "", "| class | recall | 95% interval | images |", "|---|---|---|---|", *rows])
