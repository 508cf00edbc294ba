"""The label options of a run for `cls evaluate` of the same images."""

import os
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from cls.config import Data
from cls.data.labels.read import read_labelled
from cls.data.readers import column


def evaluate_options(data: Data, image: str, classes: Collection[str]) -> str:
    """PATH and options, quoted, with which `cls evaluate` scores the images that ``image`` (an id) is among.

    What is returned has been tried: all of the run's label files or one of them, for data.path or the image's folder
    in it, give one split whose labels are all among ``classes``. FOLDER and the option's name where none does.
    """
    root, path = Path(data.path).expanduser(), data.path.rstrip("/")
    top, _, rest = image.partition("/")
    places = [(data.path, image, data.labels)]
    if rest:
        places.append((f"{path}/{top}", rest, tuple(_absolute(root, text) for text in data.labels)))
    for count in (len(data.labels), 1):
        for place, name, labels in places:
            for start in range(len(labels) // count if count else 1):
                tried = replace(data, path=place, labels=labels[start * count : (start + 1) * count])
                if _works(tried, name, classes):
                    return " ".join((shlex.quote(place), *_words(tried)))
    return "FOLDER --data.labels FILE"


def _absolute(root: Path, text: str) -> str:
    """A label file by its full path, if it lies below the images' folder or above."""
    before, mark, name = text.rpartition("=")
    inside = root / Path(name).expanduser()
    return f"{before}{mark}{os.path.abspath(inside if inside.is_file() else name)}"


def _works(data: Data, image: str, classes: Collection[str]) -> bool:
    try:
        parts = list(read_labelled(data.path, data).parts.values())
    except ValueError:
        return False
    if len(parts) != 1 or parts[0].unlabelled or not set(parts[0].present) <= set(classes):
        return False
    return image in column(parts[0].images, "id").to_pylist()


def _words(data: Data) -> list[str]:
    found = ["--data.labels", *data.labels] if data.labels else []
    for option, value in (("label-pattern", data.label_pattern), ("label-column", data.label_column),
                          ("id-column", data.id_column)):  # fmt: skip
        found += [f"--data.{option}", value] if value else []
    return [shlex.quote(word) for word in found]
