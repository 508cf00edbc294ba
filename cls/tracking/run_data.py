"""The images a run was trained on, as stored in data.json, sizes.npz and classes.txt; and whether they have changed.

Images are identified by ids and labels, their contents by the size of each image in bytes and the size and footer of
each table, without reading them. Modification times do not count: a copy has others. So an image that is replaced by
another one of the same size is not noticed.
"""

import hashlib
import io
import json
import logging
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cls.config import Data, Run
from cls.data.corrupt_images import read_corrupt
from cls.data.footers import footers
from cls.data.labels.hint import evaluate_options
from cls.data.readers import Stream, column, fingerprint, image_sizes, images_of
from cls.data.sources import Rows, Splits, labels_of, load
from cls.data.split_words import splits_in
from cls.runtime.files import write_whole
from cls.tracking.ledger import id_sum
from cls.tracking.run_files import encode_classes, read_data

log = logging.getLogger("cls")

WORDS = {"train": "training", "val": "validation"}
SHOWN = 5  # class names in a message
Facts = dict[str, dict[str, Any]]
"""By split: images, sha256 (of ids and labels) and, if they were inspected, contents (sha256 of the images' sizes) and
tables (:func:`cls.data.footers.footers`). In data.json both also hold pairs, a sum over ids and class names in any
order, by which runs that divide the same images differently agree; those of train also ids, a sum for `cls audit`, and
per_class, the number of images of each class."""


class Seen(NamedTuple):
    """The images now."""

    splits: Splits
    facts: Facts
    sizes: dict[str, np.ndarray]
    """Bytes of each image by split, -1 if unknown; only of splits whose contents were inspected."""


def look(splits: Splits, *, contents: bool = True, which: Sequence[str] = ("train", "val")) -> Seen:
    """The facts of these splits. ``contents``: also the size of each image file, 2.6 us if the kernel knows it."""
    facts: Facts = {}
    sizes: dict[str, np.ndarray] = {}
    for split in which:
        rows: Rows | None = getattr(splits, split)
        if rows is None:  # without validation images
            continue
        facts[split] = {"images": len(rows), "sha256": fingerprint(rows)}
        if contents and not splits.encoded_here:
            sizes[split] = image_sizes(rows)
            digest = _sha256(sizes[split].astype("<i8").tobytes())
            facts[split] |= {"contents": digest, "tables": footers(splits.files.get(split, ()))}
    return Seen(splits, facts, sizes)


def keep(out: Path, seen: Seen) -> None:
    """Write the three files into a run directory; data.json last, so that it implies the others."""
    write_whole(out / "classes.txt", encode_classes(seen.splits.classes))
    _keep_contents(out, seen)


def _keep_contents(out: Path, seen: Seen) -> None:
    data = io.BytesIO()
    train = seen.splits.train
    if "train" in seen.facts:
        labels = labels_of(train)
        counts = np.bincount(labels[labels >= 0], minlength=len(seen.splits.classes))
        seen.facts["train"]["per_class"] = counts.tolist()
    if not isinstance(train, Stream) and "train" in seen.facts:  # a stream's names would cost too much
        seen.facts["train"]["ids"] = id_sum(_names(train))
    for split, facts in seen.facts.items():
        rows: Rows | Stream = getattr(seen.splits, split)
        if not isinstance(rows, Stream):
            named = zip(_names(rows), labels_of(rows).tolist(), strict=True)
            facts["pairs"] = id_sum(f"{name}\0{seen.splits.classes[label]}" for name, label in named)
    np.savez_compressed(data, **seen.sizes)  # type: ignore[arg-type]  # the stub takes them for its own options
    write_whole(out / "sizes.npz", data.getvalue())
    write_whole(out / "data.json", json.dumps(seen.facts, indent=1).encode())


def _names(rows: Rows) -> Iterator[str]:
    """The ids, a part at a time: those of a million images are 100 MB."""
    ids = column(rows, "id")
    for start in range(0, len(ids), 10_000):
        yield from ids.slice(start, 10_000).to_pylist()


def complete(out: Path, seen: Seen) -> None:
    """Add the contents to the data.json of a version that did not store them, with a warning."""
    known = read_data(out)
    if any("contents" not in facts for facts in known.values()) and all("contents" in f for f in seen.facts.values()):
        log.warning(
            "%s is of an earlier version and holds no file sizes: images that were replaced before this start are not "
            "noticed, those replaced from now on are",
            out / "data.json",
        )
        _keep_contents(out, seen)


def drift(out: Path, seen: Seen, classes: Sequence[str]) -> str:
    """How the images differ from those of data.json, in words; '' if they are the same.

    ``classes``: of the labels in data.json. Training images in corrupt_images.csv may have
    other contents: replacing a corrupt file by a whole one is what the run asks for.
    """
    known = read_data(out)
    if classes != seen.splits.classes:
        return _other_names(classes, seen.splits.classes)
    for split, now in seen.facts.items():
        if text := difference(known.get(split, {}), now, split):
            return text
    for split, now in seen.facts.items():
        if text := _other_contents(out, known.get(split, {}), now, seen, split):
            return text
    return ""


def difference(then: dict[str, Any], now: dict[str, Any], split: str) -> str:
    """How the ids and labels of a split differ, in words."""
    word, count = WORDS[split], now["images"]
    if then.get("images", count) != count:
        return f"{then['images']:,} {word} images then, {count:,} now"
    if then.get("sha256", now["sha256"]) != now["sha256"]:
        return f"{count:,} {word} images as then, but other images, labels or classes, or another way of reading them"
    return ""


def same_everywhere(one: Facts, other: Facts) -> bool:
    """Whether two processes see the same images; contents are compared if both have inspected them."""
    return all(
        not difference(one[split], other[split], split)
        and (
            "contents" not in one[split] or "contents" not in other[split]
            or (one[split]["contents"] == other[split]["contents"] and not _tables(one[split], other[split]))
        )
        for split in one
    )  # fmt: skip


def _other_contents(out: Path, then: dict[str, Any], now: dict[str, Any], seen: Seen, split: str) -> str:
    if "contents" not in then or "contents" not in now:
        return ""
    if tables := _tables(then, now):
        return f"{len(tables)} of {len(now['tables'])} {WORDS[split]} tables have other contents, e.g. {tables[0]}"
    if then["contents"] == now["contents"]:
        return ""
    rows = getattr(seen.splits, split)
    sizes = _stored_sizes(out, split, len(rows))
    if sizes is None:
        return f"{len(rows):,} {WORDS[split]} images as then, but of other sizes in bytes"
    images, exempt = images_of(rows), read_corrupt(out) if split == "train" else {}
    changed = [row for row in np.flatnonzero(sizes != seen.sizes[split]).tolist() if images.name(row) not in exempt]
    if not changed:
        return ""
    row = changed[0]
    return (
        f"{len(changed):,} of {len(rows):,} {WORDS[split]} images have other contents under the same name, e.g. "
        f"{images.name(row)!r}: {_bytes(sizes[row])} then, {_bytes(seen.sizes[split][row])} now"
    )


def _bytes(size: int) -> str:
    return f"{size:,} bytes" if size >= 0 else "no readable file"


def _stored_sizes(out: Path, split: str, count: int) -> np.ndarray | None:
    """Sizes at the first start; None if sizes.npz is missing or damaged: it only adds a name to data.json's finding."""
    try:
        with np.load(out / "sizes.npz", allow_pickle=False) as found:
            sizes: np.ndarray = found[split]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None
    return sizes if sizes.shape == (count,) else None


def _tables(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of tables that differ, by the checksums that both sides have: a copy may lack pack.json."""
    before, after = then.get("tables", []), now.get("tables", [])
    names = {table["name"]: table for table in before}
    different = []
    for table in after:
        known = names.pop(table["name"], {})
        shared = known.keys() & table.keys()
        if not known or any(known[key] != table[key] for key in shared):
            different.append(table["name"])
    return different + list(names)


def run_data(out: Path, name: str, run: Run, classes: Sequence[str], which: Sequence[str] = ("val",),
             advice: str = "") -> Splits:  # fmt: skip
    """The images of a run, loaded again, with labels numbered by ``classes``, the run's own.

    ``out`` is the run directory, ``name`` what was typed for it. ValueError, with the command that evaluates other
    images, if those of the splits ``which`` (of which there may be no val) differ from data.json. Without a data.json
    that cannot be checked: a warning. ``advice`` is added to the error if they cannot be loaded.
    """
    data = replace(run.data, copy="")  # maybe on another machine's disk
    elsewhere = shlex.join(["cls", "evaluate", name]) + " FOLDER"
    try:
        splits = load(data, run.seed)
    except ValueError as error:
        raise ValueError(f"{error}{advice}") from None
    unknown = {split: _unknown(rows, splits.classes, classes) for split in which if (rows := getattr(splits, split))}
    text = _other_names(classes, splits.classes) if any(unknown.values()) else ""
    command = elsewhere
    if not text:
        command = f"{shlex.join(['cls', 'evaluate', name])} {_place(splits, data, classes)}"
        splits = numbered_as(splits, classes)
        if not (out / "data.json").exists():
            log.warning(
                "%s has no data.json: nothing proves that %s holds the images of the run, and that its validation "
                "images were not trained on; to evaluate other images: %s", out, data.path, elsewhere,
            )  # fmt: skip
            return splits
        text = drift(out, look(splits, which=which), classes)
    if text:
        raise ValueError(
            f"data.path: {data.path} is not what {name} was trained on ({text}); to evaluate the images that are there "
            f"now: {command}"
        )
    return splits


def is_own(out: Path, splits: Splits, split: str) -> bool:
    """Whether a split, with labels numbered by the run's classes, is what the run in ``out`` was started with."""
    if split not in WORDS or getattr(splits, split) is None or not (out / "data.json").is_file():
        return False
    return not drift(out, look(splits, which=(split,)), splits.classes)


def numbered_as(splits: Splits, classes: Sequence[str]) -> Splits:
    """The same images with labels numbered by ``classes``, -1 for names it lacks."""
    if splits.classes == tuple(classes):
        return splits
    places = {name: place for place, name in enumerate(classes)}
    numbers = np.array([*(places.get(name, -1) for name in splits.classes), -1])

    def numbered(rows: Any) -> Any:
        labels = numbers[labels_of(rows)]
        if isinstance(rows, Stream):
            return Stream(rows.blocks, labels.astype(np.int32))
        return rows.remove_columns("label").add_column("label", labels)

    found = {
        split: numbered(rows) for split in ("train", "val", "test") if (rows := getattr(splits, split)) is not None
    }
    return replace(splits, **found, classes=tuple(classes))


def _unknown(rows: Rows, names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Classes of these images that a run does not have."""
    labels, known = labels_of(rows), set(classes)
    return [names[label] for label in np.unique(labels[labels >= 0]) if names[label] not in known]


def _place(splits: Splits, data: Data, classes: Sequence[str]) -> str:
    """The word, quoted, that names the current validation images in a command, or all images if they are no split."""
    names, path = images_of(splits.train if splits.val is None else splits.val), data.path
    if data.own_labels:
        return evaluate_options(data, names.name(0), classes)
    top, own = names.name(0).partition("/")[0], splits.files.get("val", ())
    if own:
        return shlex.quote(own[0]) if len(own) == 1 else "FOLDER"
    root = Path(path).expanduser()
    if not root.exists():
        return "FOLDER"  # of a hub
    if splits_in(top) == {"val"} and (root / top).is_dir():
        return shlex.quote(f"{path.rstrip('/')}/{top}")
    return "FOLDER" if splits_in(top) or len(splits.files) > 1 else shlex.quote(path)  # one split of several


def _other_names(then: Sequence[str], now: Sequence[str]) -> str:
    before, after = set(then), set(now)
    new, missing = [name for name in now if name not in before], [name for name in then if name not in after]
    parts = [f"{_some(new)} new" if new else "", f"{_some(missing)} missing" if missing else ""]
    return "other classes: " + (" and ".join(filter(None, parts)) or "in another order")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
