"""A folder of image files as a Hugging Face dataset.

Walks the folder in 0.3 s for 30,000 files; ``load_dataset("imagefolder")`` takes 14 to 18 s at every launch and drops
the label column when one file lies deeper than the others. folder_cache.py keeps the result.
"""

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cls.data.fixes import links, some, without
from cls.data.folders import ignored
from cls.data.folders.doubts import doubts
from cls.data.folders.layout import arrange
from cls.data.folders.tree import Tree
from cls.data.split import SPLITS, RawSplits, Split, coded, dataset, normal
from cls.data.split_words import MARKED, split_name, words
from cls.data.table_splits import TABLES
from cls.runtime.console import printable
from cls.runtime.paths import name_problem
from cls.transforms.decode import EXTENSIONS


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key with numbers as numbers: "2" before "10"; the text itself breaks ties ("1" and "01")."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], name


class Stamp(NamedTuple):
    """A folder just before its names were read; it changes whenever a name in the folder does."""

    path: str  # below the root; "" is the root itself
    changed_ns: int
    inode: int
    device: int


@dataclass(frozen=True)
class Listing:
    """Relative paths with "/" below one root, naturally sorted; hidden files are not listed."""

    images: list[str]
    tables: list[str]
    others: list[str]  # neither images nor tables
    folders: list[Stamp]
    dangling: bool = False  # a link to nothing, which may become a folder without changing a stamp
    hidden: int = 0  # hidden files and folders, and those of the system
    runs: tuple[str, ...] = ()  # run directories, ending with "/"; nothing inside them is listed


def stamp(root: str | Path, path: str) -> Stamp:
    status = os.stat(f"{root}/{path}")
    # ctime: cp -a, rsync and tar restore the mtime; no program can set the ctime
    return Stamp(path, status.st_ctime_ns, status.st_ino, status.st_dev)


def scan(root: Path) -> Listing:
    """Walk a folder and, through symbolic links, its subfolders. A folder that cannot be read is a ValueError."""
    images, tables, others, folders = list[str](), list[str](), list[str](), list[Stamp]()
    dangling, hidden = False, 0
    root = Path(os.path.realpath(root))
    pending = [(root, "", frozenset((str(root),)))]
    while pending:
        folder, prefix, above = pending.pop()
        try:
            folders.append(stamp(root, prefix))  # before the names: a name added meanwhile makes it stale
            for entry in os.scandir(folder):
                if ignored.is_hidden(entry.name):
                    hidden += 1
                    continue
                if _is_folder(entry):
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if real not in above:  # a link to a folder above would never end
                        pending.append((Path(real), f"{prefix}{entry.name}/", above | {real}))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    images.append(prefix + entry.name)
                elif entry.name.lower().endswith(TABLES):
                    tables.append(prefix + entry.name)
                else:
                    others.append(prefix + entry.name)
                    dangling |= entry.is_symlink() and not os.path.exists(entry.path)
        except OSError as error:
            raise ValueError(f"data.path: cannot read folder {folder}: {error.strerror}") from None
    found = _without_runs(Listing(images, tables, others, folders, dangling, hidden))
    for name in (*found.images, *found.tables):
        if not name.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in name):  # surrogates
            raise ValueError(f"data.path: the file name {name!r} in {root} {name_problem()}")
    return found


def _without_runs(found: Listing) -> Listing:
    """Naturally sorted, without what lies in run directories."""
    runs = ignored.run_directories(found.others, [one.path for one in found.folders])
    inside = {one.path for one in found.folders if one.path.startswith(runs)} if runs else set()

    def kept(names: list[str]) -> list[str]:
        outside = [name for name in names if name[: name.rfind("/") + 1] not in inside] if inside else names
        return sorted(outside, key=natural)

    folders = [one for one in found.folders if one.path not in inside]
    images, tables, others = map(kept, (found.images, found.tables, found.others))
    return replace(found, images=images, tables=tables, others=others, folders=folders, runs=runs)


def files(root: Path, names: list[str], labels: Sequence[str | None]) -> Split:
    """Image files; their paths relative to ``root`` are their ids."""
    ids = pa.array(names, pa.string())
    paths = pc.binary_join_element_wise(str(root.absolute()), ids, "/")
    return _part(ids, paths, f"files-{root.absolute()}", labels)


def listed(names: list[str]) -> Split:
    """Unlabelled image files, existing or not; their ids are the paths as given, relative to the working directory.

    A path given twice is a ValueError; one that is not UTF-8 cannot be read, and is shown with \\xNN.
    """
    names = [name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in names]
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if lines.setdefault(name, line) != line:
            raise ValueError(f"{name!r} is given twice, as path {lines[name]} and {line}: pass them through sort -u")
    paths = pa.array([os.path.abspath(name) for name in names], pa.string())
    fingerprint = hashlib.sha256("\0".join(paths.to_pylist()).encode()).hexdigest()
    return _part(pa.array(names, pa.string()), paths, f"list-{fingerprint[:32]}", [None] * len(names))


def _part(ids: pa.Array, paths: pa.Array, fingerprint: str, labels: Sequence[str | None]) -> Split:
    images = pa.StructArray.from_arrays([pa.nulls(len(ids), pa.binary()), paths], ["bytes", "path"])
    return Split(dataset(images, ids, fingerprint), *coded(labels))


def read(root: Path, listing: Listing) -> RawSplits:
    """The splits of a folder: ``train/ val/ test/`` and their synonyms, or only class folders (all is train).

    Labels are the names of the class folders, in NFC; files may lie deeper inside them. The test folder may be flat, or
    have subfolders that are no classes: its images are then unlabelled. ValueError as in layout.arrange.
    """
    tree = Tree(root, listing.images)
    places = arrange(tree)
    _reject_empty(root, places, listing)
    parts, stray = _parts(root, places, listing.images)
    root = root.absolute()  # the notes are cached, and printed by starts in other directories
    notes = [*doubts(root, listing.images, parts, places, tree), *_left_out(root, places, stray)]
    notes += empty_class_folders(root, places, listing, tree)
    if places["train"] == "" and (named := sorted(name for name in parts["train"].names if name.lower() in SPLITS)):
        notes.append(f"{root}: {some(named)} beside class folders is read as a class, not as a split")
    if about := sorted(name for name in parts["train"].names if MARKED.issuperset(words(name) or "-")):
        folders = [f"{places['train']}/{name}".lstrip("/") for name in about]
        to = f"{os.path.realpath(root)}-clear"  # absolute: the note is cached
        notes.append(f"{root}: {some(about)} is read as a class; if it is none: {without(root, folders, to)}")
    others = [*listing.others, *listing.tables]
    notes += ignored.notes(root, others, "images")
    counts = (
        (len(stray), "images"), (len(others), "other files"), (listing.hidden, "hidden"),
        (len(listing.runs), "run directories"),
    )  # fmt: skip
    return RawSplits(parts, notes, ", ".join(f"{count:,} {what}" for count, what in counts if count))


def _parts(root: Path, places: dict[str, str], images: Sequence[str]) -> tuple[dict[str, Split], list[str]]:
    """The images of each split with their labels, and those of no split."""
    roles: dict[str, tuple[str, str | None] | None] = {}  # of each folder with images
    names: dict[str, list[str]] = {split: [] for split in places}
    labels: dict[str, list[str | None]] = {split: [] for split in places}
    stray = []
    for name in images:
        above = name.rpartition("/")[0]
        if above not in roles:
            roles[above] = _role(above, places)
        if (role := roles[above]) is None:
            stray.append(name)
        else:
            names[role[0]].append(name)
            labels[role[0]].append(role[1])
    if "test" in places and not {*labels["test"]} - {None} & {*labels["train"]}:  # no subfolder is a class
        labels["test"] = [None] * len(labels["test"])
    return {
        split: replace(files(root, names[split], labels[split]), origin=f"{place}/" if place else "class folders")
        for split, place in places.items()
    }, stray


def _role(above: str, places: dict[str, str]) -> tuple[str, str | None] | None:
    """Split and label of the images directly in a folder."""
    for split, place in places.items():
        if not place or above == place or above.startswith(f"{place}/"):
            inside = above[len(place) :].lstrip("/")
            if inside or split == "test":
                return split, normal(inside.split("/")[0]) if inside else None
    return None


def _left_out(root: Path, places: dict[str, str], left: Sequence[str]) -> list[str]:
    """Notes on images that are in no class folder of a split."""
    inside = [name for name in left if any(name.startswith(f"{place}/") or not place for place in places.values())]
    notes = []
    if inside:
        where = printable(f"{root}/{inside[0].rpartition('/')[0]}".rstrip("/"))
        notes.append(f"{where}: {len(inside):,} images outside the class folders ignored, e.g. {printable(inside[0])}")
    if len(inside) < len(left):
        known = {*inside}
        stray = [name for name in left if name not in known]
        counts = Counter(name.split("/")[0] if "/" in name else "." for name in stray)
        listed = printable(some(f"{top} ({count:,})" for top, count in counts.most_common()))
        most = counts.most_common()[0][0]
        target = f"{root}/{most if most != '.' else next(name for name in stray if '/' not in name)}"
        notes.append(
            f"{root}: {len(stray):,} images outside train/, val/ and test/ ignored, e.g. {printable(stray[0])}: "
            f"{listed}; to predict them: {shlex.join(['cls', 'predict', 'RUN', target])}"
        )
    return notes


def empty_class_folders(root: Path, places: dict[str, str], listing: Listing, tree: Tree) -> list[str]:
    """A note on class folders without images; [] if there are none."""
    used: set[str] = set()
    for above in tree.counts:
        while above and above not in used:
            used.add(above)
            above = above.rpartition("/")[0]
    walked = [one.path.rstrip("/") for one in listing.folders]
    labelled = {place for split, place in places.items() if split != "test"}
    used |= {path for path in walked if any(run.startswith(f"{path}/") for run in listing.runs)}
    empty = sorted(path for path in walked if path and path not in used and path.rpartition("/")[0] in labelled)
    if not empty:
        return []
    held = Counter(name.rpartition("/")[0] for name in listing.others)
    found = [f"{path} ({count:,} other files)" if (count := held[path]) else path for path in empty]
    return [
        f"{root}: {len(empty):,} folders without an image that can be read, so no classes: {printable(some(found, 8))}"
    ]


def _reject_empty(root: Path, places: dict[str, str], listing: Listing) -> None:
    """ValueError for a split's folder without images; ``places`` are those of the splits with images."""
    if places["train"] == "":
        return
    for one in listing.folders:
        name = one.path.rstrip("/")
        split = split_name(name)
        if split and split not in places and "/" not in name:
            raise ValueError(
                f"data.path: {root}/{name} holds no images; fill it or remove it, or leave it out: "
                f"{links(root, places)}"
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself: one corrupt image
