"""The lines that a start prints about its data: a summary, and a warning for all that is left out or decided."""

import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from cls.runtime.console import console, printable

log = logging.getLogger("cls")


def say(lines: Sequence[str], warnings: Sequence[str]) -> None:
    """Print lines and log warnings to stderr, on rank 0 only: every rank reads the same data."""
    if os.environ.get("RANK", "0") != "0":
        return
    for text in lines:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for text in warnings:
        log.warning("%s", text)


def summary(path: str, labels: Mapping[str, np.ndarray], origins: Mapping[str, str], ignored: str) -> str:
    """One line: images, classes and source of each split, and what is ignored."""
    found = []
    for split in sorted(labels, key=("train", "val", "test").index):
        known = labels[split][labels[split] >= 0]
        classes, images = len(np.unique(known)), len(labels[split])
        what = f"of {classes:,} class{'es' * (classes > 1)}" if len(known) else "without labels"
        where = origins.get(split, "held out of train")
        found.append(f"{split} {images:,} image{'s' * (images > 1)} {what}" + (f" ({where})" if where else ""))
    return printable(f"data {path}: {'; '.join(found)}" + (f"; ignored: {ignored}" if ignored else ""))
