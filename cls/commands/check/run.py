"""`cls check`: survey the images, ask a run's model about the labels, tell people, draw the sheet."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cls import config
from cls.commands.check.findings import document
from cls.commands.check.label_issues import suspects
from cls.commands.check.render import tell
from cls.commands.check.survey import Files, Group, copies, survey
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
SEEN = "the model was trained on these very labels, so it doubts few of the wrong ones"
FRESH = {
    "train": "predicted now; if the model was trained on some of these images, it doubts fewer of their labels",
    "val": "the run has stored no predictions of these images: predicted now",
    "test": "the run has stored no predictions of these images: predicted now",
}
"""How a split's labels were judged."""


def check_images(
    data: config.Data, seed: int, run: str, to: Path | None, workers: int, device: str, stop: StopSignal
) -> dict[str, Any]:
    """Check all splits of ``data`` as training would see them; the document that ``--json`` prints."""
    trained = load_trained_model(run, device, workers, stop) if run else None
    if trained:
        own = dataclasses.replace(trained.run.data, path=data.path, copy="", streaming=False, limit=0)
        data = own.labelled_as(data) if data.own_labels else own
        seed = trained.run.seed
    splits = load(data, seed)
    rows = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test else {})
    files = Files({split: images_of(part) for split, part in rows.items()})
    found = survey(files, workers)
    groups = copies(files, found, workers)
    facts = document(files, splits.classes, found, groups) | {"notes": list(splits.notes)}
    if trained:
        facts |= _doubts(trained, splits, rows)
    tell(facts)
    if to:
        panels = _panels(files, facts, groups)
        with writing("to", to):
            write_panels(to, panels, f"{data.path}: findings: {len(panels)}, at most {SHOWN} of each kind")
        facts["sheet"] = str(to)
        console.print(f"findings drawn in {to}: {len(panels)}", markup=False, highlight=False)
    return facts


def _doubts(trained: TrainedModel, splits: Splits, rows: dict[str, Any]) -> dict[str, Any]:
    """Labels that the run's model contradicts, by split; how it was asked, and how good it is there."""
    if unknown := [name for name in splits.classes if name not in trained.classes]:
        raise ValueError(
            f"--run {trained.folder} knows no class {', '.join(map(repr, unknown[:10]))}: it was trained on "
            f"{', '.join(map(printable, trained.classes[:10]))}; name a run on this data"
        )
    own = numbered_as(splits, trained.classes)
    asked, doubted = {}, []
    for split, part in rows.items():
        if not (images_of(part).labels >= 0).any():
            continue
        known = is_own(trained.folder, own, split)
        stored = trained.folder / "predictions" / f"{split}.parquet"
        if known and stored.is_file():
            predictions, how = read_parquet(stored), STORED
        else:
            predictions, how = (
                trained.predictor.predict(EvalDataset(getattr(own, split), (), trained.run)),
                SEEN if known and split == "train" else FRESH[split],
            )
        asked[split] = {"how": how, "accuracy": accuracy(predictions)}
        doubted += [
            {
                "id": predictions.ids[one.row],
                "split": split,
                "row": one.row,
                "label": trained.classes[one.label],
                "predicted": trained.classes[one.predicted],
                "label_prob": round(one.label_prob, 4),
                "predicted_prob": round(one.predicted_prob, 4),
            }
            for one in suspects(predictions)
        ]
    return {"run": str(trained.folder), "asked": asked, "suspects": doubted}


def _panels(files: Files, facts: dict[str, Any], groups: Sequence[Group]) -> list[Panel]:
    """What people look at: copies that must be mended, other copies, broken images, doubted labels; some of each."""
    told = list(zip(groups, facts["copies"], strict=True))
    mend = [both for both in told if len(both[1]["splits"]) > 1 or len(both[1]["labels"]) > 1]
    rest = [both for both in told if both not in mend]
    panels = []
    for some in (mend, rest):
        pairs = [pair for group, group_facts in some for pair in _pairs(group, group_facts)]
        panels += [_pair_panel(files, *pair) for pair in pairs[:SHOWN]]
    for one in facts["broken"][:SHOWN]:
        panels.append(Panel((None,), "broken", (_where(one), one["id"], short(one["reason"], 58))))
    for one in facts.get("suspects", [])[:SHOWN]:
        title = f"{short(one['label'], 18)} {one['label_prob']:.2f}?  {short(one['predicted'], 18)} "
        title += f"{one['predicted_prob']:.2f}"
        number = files.number(one["split"], one["row"])
        panels.append(Panel((_shown(files, number),), title, (one["split"], one["id"])))
    return panels


def _pairs(group: Group, facts: dict[str, Any]) -> list[tuple[str, int, dict[str, Any], int, dict[str, Any]]]:
    """Title, and two images each with what is known of it: the near duplicates, and each that equals an earlier one."""
    told = dict(zip(group.members, facts["images"], strict=True))
    pairs = [
        (f"alike {pair.likeness:.3f}{', mirrored' if pair.mirrored else ''}", pair.first, pair.second)
        for pair in group.pairs
    ]
    pairs += [("equal", one, other) for one, other in group.equal]
    return [(title, one, told[one], other, told[other]) for title, one, other in pairs]


def _pair_panel(
    files: Files, title: str, one: int, one_facts: dict[str, Any], other: int, other_facts: dict[str, Any]
) -> Panel:
    both = (one_facts, other_facts)
    title += ", two labels" if len({facts["label"] for facts in both} - {None}) > 1 else ""
    title += ", two splits" if one_facts["split"] != other_facts["split"] else ""
    where = " | ".join(map(_where, both))
    return Panel((_shown(files, one), _shown(files, other)), title, (where, one_facts["id"], other_facts["id"]))


def _where(facts: dict[str, Any]) -> str:
    return f"{facts['split']}, {facts['label'] or 'no label'}"


def _shown(files: Files, number: int) -> Pixels | None:
    """None where it has become unreadable since it was looked at."""
    try:
        return files.pixels(number)
    except CorruptImageError:
        return None
