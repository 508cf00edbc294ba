"""Compare runs on the same images, from their stored predictions."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cls.config import NO_VALIDATION
from cls.evaluation.ensemble_record import EnsembleRecord, is_ensemble, made_of
from cls.evaluation.groups import Group, Named, differing, group_up
from cls.evaluation.predictions import Predictions, read_parquet, readable
from cls.evaluation.run_record import RunRecord
from cls.evaluation.stats import LEVEL, Bools, Difference, class_differences, holm, paired_difference, pooled_accuracy

EXAMPLES = 3
SplitName = Literal["val", "test"]


@dataclass(frozen=True)
class Member(Named):
    """One run, or several as one, with its stored predictions."""

    found: Predictions
    made: str = ""
    """What it was made of, if it is no run: mean of 3 runs, soup of 2 runs."""
    averaged: int = 1
    """The mean of how many runs' predictions it is."""
    contents: str = ""
    """The digest of its validation images' sizes in bytes, where that was stored and these are what was predicted."""


def compare(paths: Sequence[str], baseline: str = "", split: SplitName = "val") -> dict[str, Any]:
    """The document of ``cls compare``: accuracies, differences to the baseline, classes, fields that differ.

    ``paths``: directories of runs or ensembles, whose predictions/<split>.parquet is read, or such files. Runs that
    differ only in the seed are one group. The others are compared with the first one, or with the one that ``baseline``
    names.
    ValueError if predictions are missing, unlabelled, or not of the same images with the same labels.
    """
    if not paths:
        raise ValueError("name at least one run directory: cls compare RUN RUN")
    skipped = unfinished(paths, split)
    if baseline in skipped:
        raise ValueError(f"baseline is {baseline}: it holds no finished run ({skipped[baseline]})")
    paths = [path for path in paths if path not in skipped]
    members = [read_member(path, split) for path in paths]
    labels = common_labels(members)
    groups = _first(group_up(members), baseline)
    images, present = sorted(labels), set(labels.values())
    names = [name for name in members[0].found.classes if name in present]  # in their natural order
    right = {group.name: np.array([right_of(m.found, images) for m in group.members]) for group in groups}
    number = {name: i for i, name in enumerate(names)}
    numbers = np.array([number[labels[image]] for image in images])
    base = groups[0]
    comparisons = [_against(base, other, right, numbers, names) for other in groups[1:]]
    for row, p in zip(comparisons, holm(np.array([row["p"] for row in comparisons])), strict=True):
        row["p_holm"] = float(p)
        if row["told_apart"] and p > 1 - LEVEL and len(comparisons) > 1:
            row["verdict"] += f"; among {len(comparisons)} comparisons this may be chance (Holm's p is {p:.2f})"
    return {
        "split": split if any(not path.endswith(".parquet") for path in paths) else "",
        "images": len(images),
        "classes": len(names),
        "baseline": base.name,
        "groups": [_described(group, right[group.name]) for group in groups],
        "comparisons": comparisons,
        "fields": differing(groups),
        "other_files": _other_files(members),
        "skipped": skipped,
    }


def unfinished(paths: Sequence[str], split: SplitName) -> dict[str, str]:
    """Of several paths, as from ``runs/best-*``, those without predictions to compare, and why.

    ValueError if fewer than two remain. A path that does not exist and a damaged file are errors of their own.
    """
    several = len(set(paths)) > 1
    found = {path: why for path in paths if several and (why := _unusable(Path(path), split))}
    if found and len(set(paths)) - len(found) < 2:
        raise ValueError(
            f"nothing is left to compare: {listed(found, len(paths))}. Where {split}.parquet does not exist: a run "
            "writes it when it ends"
        )
    return found


def comparable(paths: Sequence[str], split: SplitName) -> bool:
    """Whether :func:`compare` finds predictions of enough of them: of two if there are several."""
    given = set(paths)
    return sum(not _unusable(Path(path), split) for path in given) >= min(2, len(given))


def listed(skipped: Mapping[str, str], count: int) -> str:
    """One line: how many of ``count`` paths were skipped, and why each."""
    names = ", ".join(f"{path} ({why})" for path, why in skipped.items())
    return f"{len(skipped)} of {count} hold no finished run: {names}"


def _unusable(given: Path, split: SplitName) -> str:
    if not os.path.lexists(given) or (given.suffix == ".parquet" and given.is_file()):
        return ""
    if not (given / "config.yaml").is_file() and not made_of(given):
        return "no config.yaml"
    record = RunRecord(given)
    if record.predictions_file(split).exists():
        return ""
    if split == "test" and record.predictions_file("val").exists():
        return "no test split"
    if split == "val" and not made_of(given) and not record.run.data.validates:
        return f"{NO_VALIDATION}: try --split test"
    return f"{record.state}, no predictions"


def read_member(path: str, split: SplitName) -> Member:
    """One run, from its directory or a predictions file; the configuration from the run directory, if there is one."""
    given = Path(path)
    file = given if given.suffix == ".parquet" else RunRecord(given).predictions_file(split)
    record = RunRecord(file.parent.parent)
    folder = record.path if file.parent.name == "predictions" else given
    made = made_of(folder)
    if file is not given and not (given / "config.yaml").is_file() and not made:
        raise ValueError(f"{path} is neither a run directory (it has no config.yaml) nor a predictions file (.parquet)")
    if not file.is_file():
        what = "a run writes it when it ends" + (", if its data has a test split" if split == "test" else "")
        if file is not given and split == "val" and not made and not record.run.data.validates:
            what = f"{NO_VALIDATION}: try --split test"
        raise ValueError(f"{file} does not exist: " + (what if file is not given else "name a predictions file"))
    found = read_parquet(file)
    if not (found.labels >= 0).any():
        raise ValueError(f"{file} has no labels, so nothing in it is right or wrong: compare labelled images")
    twice, times = Counter(found.ids).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{file} holds image {twice!r} more than once: every image counts once")
    if file.parent.name != "predictions" or not (record.path / "config.yaml").is_file():
        averaged = len(EnsembleRecord(folder).members) if is_ensemble(folder) else 1
        return Member(path, file.stem, {}, found, made, averaged)
    try:
        contents = record.data.get("val", {}).get("contents", "") if file.stem.startswith("val") else ""
        return Member(path, file.stem, record.fields, found, contents=contents)
    except ValueError as error:
        raise ValueError(f"{error}; or copy predictions/{file.name} and name the copy") from error


def labelled(p: Predictions) -> dict[str, str]:
    return {name: p.classes[label] for name, label in zip(p.ids, p.labels, strict=True) if label >= 0}


def common_labels(members: Sequence[Member]) -> dict[str, str]:
    """Label of each labelled image by id; ValueError if any two runs differ in them."""
    first, *others = members
    labels = labelled(first.found)
    for other in others:
        theirs = labelled(other.found)
        parts = [
            f"{len(extra)} of the {len(whole)} images of {mine.name} are not in {lacking.name} ({_some(extra)})"
            for mine, lacking, whole, known in ((first, other, labels, theirs), (other, first, theirs, labels))
            if (extra := [image for image in whole if image not in known])
        ]
        changed = [f"{i}: {labels[i]} / {theirs[i]}" for i in labels if i in theirs and labels[i] != theirs[i]]
        if changed:
            parts.append(f"{len(changed)} have another label ({_some(changed)})")
        if parts:
            raise ValueError(
                f"{first.name} and {other.name} cannot be compared: " + "; ".join(parts) + ". Runs are compared on the "
                "same images: where a run's seed drew its validation images, give the data a val folder, train with "
                "--data.hold-out 1/10 (the same for all seeds), or use --split test"
            )
    return labels


def _other_files(members: Sequence[Member]) -> list[str]:
    """Members whose validation images have other sizes in bytes than those of the first, under the same names."""
    known = [(member.name, member.contents) for member in members if member.contents]
    return [name for name, contents in known[1:] if contents != known[0][1]]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")


def right_of(p: Predictions, images: Sequence[str]) -> Bools:
    """n: whether each of ``images`` (ids) got its label; a corrupt one did not."""
    row = {name: i for i, name in enumerate(p.ids)}
    right: Bools = (p.probs.argmax(axis=1) == p.labels) & readable(p)
    return right[[row[image] for image in images]]


def _first(groups: list[Group[Member]], baseline: str) -> list[Group[Member]]:
    """The groups, first the one whose name, or whose run's name, is ``baseline``."""
    if not baseline:
        return groups
    for group in groups:
        if baseline in (group.name, *(m.name for m in group.members), *(Path(m.name).name for m in group.members)):
            return [group, *(other for other in groups if other is not group)]
    raise ValueError(f"baseline is {baseline!r}: name one of {', '.join(group.name for group in groups)}")


def _described(group: Group[Member], right: Bools) -> dict[str, Any]:
    """A group and its runs, each with its interval."""
    pooled, single = asdict(pooled_accuracy(right)), [pooled_accuracy(row[None]) for row in right]
    return {"group": group.name} | {k: None if v != v else v for k, v in pooled.items()} | {
        "runs": [
            {
                "run": member.name,
                "seed": member.config.get("seed"),
                "made": member.made,
                "accuracy": own.mean,
                "low": own.low,
                "high": own.high,
                "corrupt": int((~readable(member.found) & (member.found.labels >= 0)).sum()),
            }
            for member, own in zip(group.members, single, strict=True)
        ],
    }  # fmt: skip


def _against(base: Group[Member], other: Group[Member], right: dict[str, Bools], labels: Any,
             names: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    first, second = right[base.name], right[other.name]
    runs = base.members[0].averaged, other.members[0].averaged
    found = paired_difference(first, second, runs)
    of_classes = class_differences(first, second, labels, len(names), runs)
    single = len(first) == len(second) == 1
    discordant = {
        "only_baseline": int((first[0] & ~second[0]).sum()),
        "only_group": int((second[0] & ~first[0]).sum()),
    }
    columns = (names, of_classes.support, of_classes.first, of_classes.second, of_classes.p, of_classes.adjusted)
    rows = [
        {
            "class": name, "images": int(n), "baseline": float(a), "group": float(b), "difference": float(b - a),
            "p": float(p), "p_adjusted": float(q),
        }
        for name, n, a, b, p, q in zip(*columns, strict=True)
    ]  # fmt: skip
    numbers = asdict(found) | {"told_apart": found.told_apart}
    numbers["images_needed"] = int(found.images_needed) if math.isfinite(found.images_needed) else None
    return {
        "group": other.name,
        **numbers,
        "test": "exact McNemar" if single else "Student t over seeds, normal over images",
        **(discordant if single else {}),
        "verdict": verdict(found, first.shape[1], (len(first), len(second))),
        # how many more images a class got right is what it did to the accuracy
        "classes": sorted(rows, key=lambda row: -abs(row["difference"] * row["images"])),
    }


def verdict(found: Difference, images: int, seeds: tuple[int, int]) -> str:
    """The interval in words: better or worse by how much, or how many images would be needed to know."""
    low, high = 100 * found.low, 100 * found.high
    if found.told_apart:
        sides = (low, high) if low > 0 else (-high, -low)
        word = "better" if low > 0 else "worse"
        return f"{word} by {abs(100 * found.difference):.1f} points ({sides[0]:.1f} to {sides[1]:.1f})"
    several = f" and {seeds[0]} seeds each" if seeds[0] == seeds[1] else f" and {seeds[0]} against {seeds[1]} seeds"
    several = several if max(seeds) > 1 else ""
    text = f"cannot be told apart on {images:,} images{several}"
    if found.difference == 0:
        return f"{text}: equally often right"
    if math.isinf(found.images_needed):
        return f"{text}; with as few seeds no number of images would be enough"
    return f"{text}; about {about(found.images_needed):,} would be needed"


def about(n: float) -> int:
    """Rounded to two digits, the precision of the estimate."""
    return int(round(n, 1 - math.floor(math.log10(n))))
