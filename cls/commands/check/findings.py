"""Problems and figures of a data set, as one JSON document and as short sentences."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cls.commands.check.describe import UNUSUAL
from cls.commands.check.survey import Files, Group, Survey
from cls.runtime.console import printable
from cls.runtime.exit import DataError

EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Pixels at which the histogram of shorter sides is cut."""
NAMED = 3


def document(files: Files, classes: Sequence[str], found: Survey, groups: Sequence[Group]) -> dict[str, Any]:
    """Images are named as {"id", "split", "label"}, label null where unknown.

    A kind of unusual image is only counted where most images are of it. ``partly_compared``: images with many similar
    ones, each of which was compared only with the most similar; ``not_compared``: too small or too plain.
    """

    def image(number: int) -> dict[str, Any]:
        label = int(files.labels[number])
        return {
            "id": files.name(number),
            "split": files.split(number),
            "label": classes[label] if label >= 0 else None,
        }

    corrupt = [image(number) | {"reason": reason} for number, reason in found.errors.items()]
    unusual = {kind: found.unusual[kind] for kind in UNUSUAL if kind in found.unusual}
    return {
        "images": len(files),
        "classes": list(classes),
        "splits": {name: _split(files, index, classes, found) for index, name in enumerate(files.splits)},
        "corrupt": corrupt,
        "unusual": {
            kind: {"count": len(some), "images": list(map(image, some)) if len(some) <= len(files) / 2 else []}
            for kind, some in unusual.items()
        },
        "duplicates": [_group(group, image) for group in groups],
        "partly_compared": len(found.partly_compared),
        "not_compared": int((~found.outlines.any((1, 2))).sum()) - len(corrupt),
    }


def _split(files: Files, index: int, classes: Sequence[str], found: Survey) -> dict[str, Any]:
    numbers = np.flatnonzero(files.split_of == index)
    labels, good = files.labels[numbers], [n for n in numbers.tolist() if n not in found.errors]
    counts = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
    sizes = found.sizes[good]
    short, cuts = sizes.min(1), [0, *EDGES, np.inf]
    names = [f"below {EDGES[0]}", *(f"{low} to {high - 1}" for low, high in pairwise(EDGES)),
             f"{EDGES[-1]} and more"]  # fmt: skip
    return {
        "images": len(numbers),
        "unlabelled": int((labels < 0).sum()),
        "of_class": dict(zip(classes, counts, strict=True)),
        "formats": dict(Counter(found.formats[n] for n in good).most_common()),
        "modes": dict(Counter(found.modes[n] for n in good).most_common()),
        "shorter_side": dict(zip(names, np.histogram(short, cuts)[0].tolist(), strict=True)),
        "width": _quantiles(sizes[:, 0]),
        "height": _quantiles(sizes[:, 1]),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    return dict(zip(("min", "median", "max"), np.quantile(values, (0, 0.5, 1)).tolist(), strict=True))


def _group(group: Group, image: Any) -> dict[str, Any]:
    members = [image(number) for number in group.members]
    return {
        "kind": "near" if group.pairs else "exact",
        "images": members,
        "pairs": [
            {
                "images": [group.members.index(pair.first), group.members.index(pair.second)],
                "similarity": pair.similarity,
                "mirrored": pair.mirrored,
            }
            for pair in group.pairs
        ],
        "splits": sorted({one["split"] for one in members}),
        "labels": sorted({one["label"] for one in members if one["label"] is not None}),
    }


def problems(found: dict[str, Any]) -> list[str]:
    """What must be fixed before a result on this data means anything, one sentence each, with what to do."""
    groups = found["duplicates"]
    corrupt = [f"{one['id']} ({one['reason']})" for one in found["corrupt"]]
    across = [equal_ids(group["images"], NAMED) for group in groups if len(group["splits"]) > 1]
    double = [
        f"{equal_ids(group['images'], NAMED)} as {' and '.join(group['labels'])}"
        for group in groups
        if len(group["labels"]) > 1
    ]
    lines = [
        (corrupt, "corrupt image", ": replace or remove "),
        (across, "picture", " in several splits: keep each in one of them: "),
        (double, "picture", " under several labels: keep the right one: "),
    ]
    return [
        f"{len(names)} {what}{'s' if len(names) > 1 else ''}{remedy}{'; '.join(names[:NAMED])}{_more(names, NAMED)}"
        for names, what, remedy in lines
        if names
    ]


def data_error(found: dict[str, Any]) -> DataError | None:
    """An error that lists the problems, if there are any."""
    lines = problems(found)
    return DataError("this data has problems:\n  " + "\n  ".join(map(printable, lines))) if lines else None


def equal_ids(images: Sequence[dict[str, Any]], most: int) -> str:
    """The first ids of a group of duplicates."""
    return " = ".join(one["id"] for one in images[:most]) + _more(images, most)


def _more(found: Sequence[Any], most: int) -> str:
    return f" and {len(found) - most} more" if len(found) > most else ""
