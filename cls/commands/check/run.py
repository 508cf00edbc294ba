"""`cls check`: survey the images, compare the labels with a model's predictions, print and draw the findings."""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cls import config
from cls.commands.check.findings import document
from cls.commands.check.label_issues import label_issues
from cls.commands.check.render import show
from cls.commands.check.survey import Files, Group, find_duplicates, survey
from cls.commands.contact_sheet import Panel, write_panels
from cls.data.dataset import EvalDataset
from cls.data.readers import images_of
from cls.data.sources import Splits, load
from cls.evaluation.metrics import accuracy
from cls.evaluation.plots import short
from cls.evaluation.predictions import read_parquet
from cls.evaluation.trained_model import TrainedModel, load_trained_model
from cls.runtime.console import console, printable
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import is_own, numbered_as
from cls.transforms.decode import CorruptImageError
from cls.transforms.jpeg import Pixels

SHOWN = 16  # panels of each kind
STORED = "stored predictions of the run"
TRAINED_ON = "the model was trained on these labels, so it finds few of the wrong ones"
MAYBE_TRAINED_ON = "predicted now; where the model was trained on these images, it finds fewer of the wrong labels"
NOT_STORED = "the run has stored no predictions of these images: predicted now"


def check_images(
    data: config.Data, seed: int, run: str, to: Path | None, workers: int, device: str, stop: StopSignal
) -> dict[str, Any]:
    """Check all splits of ``data`` as training would see them; the document that ``--json`` prints."""
    trained = load_trained_model(run, device, workers, stop) if run else None
    if trained:
        own = dataclasses.replace(trained.run.data, path=data.path, copy="", streaming=False, limit=0)
        own = dataclasses.replace(own, image_column=data.image_column or own.image_column)
        data = own.labelled_as(data) if data.own_labels or (data.label_column and not own.own_labels) else own
        seed = trained.run.seed
    splits = load(data, seed)
    rows = {split: part for split in ("train", "val", "test") if (part := getattr(splits, split)) is not None}
    files = Files({split: images_of(part) for split, part in rows.items()})
    found = survey(files, workers)
    groups = find_duplicates(files, found, workers)
    facts = document(files, splits.classes, found, groups) | {"notes": list(splits.notes)}
    if trained:
        facts |= _label_issues(trained, splits, rows)
    show(facts)
    if to:
        panels = _panels(files, facts, groups)
        with writing("to", to):
            write_panels(to, panels, f"{data.path}: findings: {len(panels)}, at most {SHOWN} of each kind")
        facts["contact_sheet"] = str(to)
        console.print(f"findings drawn in {to}: {len(panels)}", markup=False, highlight=False)
    return facts


def _label_issues(trained: TrainedModel, splits: Splits, rows: dict[str, Any]) -> dict[str, Any]:
    """Labels that the run's model contradicts; of each split where its predictions are from, and their accuracy."""
    if unknown := [name for name in splits.classes if name not in trained.classes]:
        raise ValueError(
            f"--run {trained.folder} knows no class {', '.join(map(repr, unknown[:10]))}: it was trained on "
            f"{', '.join(map(printable, trained.classes[:10]))}; name a run on this data"
        )
    own = numbered_as(splits, trained.classes)
    sources, issues = {}, []
    for split, part in rows.items():
        if not (images_of(part).labels >= 0).any():
            continue
        known = is_own(trained.folder, own, split)
        stored = trained.folder / "predictions" / f"{split}.parquet"
        if known and stored.is_file():
            predictions, how = read_parquet(stored), STORED
        else:
            predictions = trained.predict(EvalDataset(getattr(own, split), (), trained.run))
            how = NOT_STORED if split != "train" else TRAINED_ON if known else MAYBE_TRAINED_ON
        sources[split] = {"how": how, "accuracy": accuracy(predictions)}
        issues += [{"split": split} | one for one in label_issues(predictions)]
    return {"run": str(trained.folder), "predictions": sources, "label_issues": issues}


def _panels(files: Files, facts: dict[str, Any], groups: Sequence[Group]) -> list[Panel]:
    """Duplicates that are a problem, other duplicates, corrupt images, label issues; at most SHOWN of each."""
    panels: list[Panel] = []
    for wanted in (True, False):
        some = (
            _pair_panels(files, group, known)
            for group, known in zip(groups, facts["duplicates"], strict=True)
            if (len(known["splits"]) > 1 or len(known["labels"]) > 1) == wanted
        )
        panels += islice(chain.from_iterable(some), SHOWN)
    for one in facts["corrupt"][:SHOWN]:
        panels.append(Panel((None,), "corrupt", (_where(one), one["id"], short(one["reason"], 58))))
    for one in facts.get("label_issues", [])[:SHOWN]:
        title = f"{short(one['label'], 18)} {one['label_prob']:.2f}?  {short(one['predicted'], 18)} "
        title += f"{one['predicted_prob']:.2f}"
        number = files.number(one["split"], one["row"])
        panels.append(Panel((_shown(files, number),), title, (one["split"], one["id"])))
    return panels


def _pair_panels(files: Files, group: Group, facts: dict[str, Any]) -> Iterator[Panel]:
    """The near duplicates, then those with the same pixels; ``facts``: the group's entry in the document."""
    known = dict(zip(group.members, facts["images"], strict=True))
    pairs = [
        (f"similarity {pair.similarity:.3f}{', mirrored' if pair.mirrored else ''}", pair.first, pair.second)
        for pair in group.pairs
    ]
    for title, one, other in [*pairs, *(("exact duplicate", *equal) for equal in group.equal)]:
        both = (known[one], known[other])
        title += ", two labels" if len({image["label"] for image in both} - {None}) > 1 else ""
        title += ", two splits" if both[0]["split"] != both[1]["split"] else ""
        where = " | ".join(map(_where, both))
        yield Panel((_shown(files, one), _shown(files, other)), title, (where, both[0]["id"], both[1]["id"]))


def _where(image: dict[str, Any]) -> str:
    return f"{image['split']}, {image['label'] or 'no label'}"


def _shown(files: Files, number: int) -> Pixels | None:
    """None where it has become unreadable since the survey."""
    try:
        return files.pixels(number)
    except CorruptImageError:
        return None
