"""The label files of data.labels: their paths and splits."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cls import config
from cls.data.folders.image_folder import Listing
from cls.data.folders.tree import Tree
from cls.data.labels.table import FILES
from cls.data.split import SPLITS
from cls.data.split_words import GENERIC, KINDS, MARKED, other_words, splits_in, words


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """One word of data.labels."""

    name: str  # as given, without the split
    path: Path
    split: str  # empty if its rows or the images' folders decide
    asked: bool  # whether the split was given, not found in the path
    folder: str  # its folder below the root, ending with "/"; "" for the root itself or outside it


def find_file(root: Path, text: str, listing: Listing, data: config.Data) -> LabelFile:
    """The file of a word of data.labels, ``FILE`` or ``split=FILE``: below the root, else in the working directory."""
    before, _, after = text.partition("=")
    asked = bool(after) and before.lower() in SPLITS
    split, name = (SPLITS[before.lower()], after) if asked else ("", text)
    beside = Path(data.path if data.copy else root).expanduser()  # the copy may lack what lies above data.path
    paths = [place / Path(name).expanduser() for place in (root, beside, Path())]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        there = ", ".join(candidates(listing.others)[:5])
        text = f"data.labels: there is no file {name} in {root}" + (f"; there is {there}" if there else "")
        if data.copy and beside != root:
            text += f"; data.copy holds only what is below data.path, and {beside} does not have the file either: "
            text += "give an absolute path, or a file inside the copy"
        raise ValueError(text)
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(root)).replace(os.sep, "/")
    parts = inside.split("/") if not inside.startswith("../") else [path.name]
    tree = Tree(root, [*listing.images, *listing.others])
    found = [splits_in(parts[-1]), *(_splits_of(tree, part) for part in reversed(parts[:-1]))]
    split = split or next((words.pop() for words in found if len(words) == 1), "")
    folder = "".join(f"{part}/" for part in parts[:-1])
    return LabelFile(name=name, path=path, split=split, asked=asked, folder=folder)


def candidates(others: Iterable[str]) -> list[str]:
    """The files that may hold labels, the most likely first. A sample submission has ids, but no labels."""
    found = [name for name in others if name.lower().endswith(FILES) and not re.search("submission|readme|license",
                                                                                       name.lower())]  # fmt: skip
    return sorted(found, key=lambda name: (name.count("/"), not re.search("label|train|metadata", name.lower())))


def _splits_of(tree: Tree, folder: str) -> set[str]:
    """The splits meant by a folder of label files: by "val" and "val_annotations", but not by "test_results"."""
    plain = splits_in(folder) if (GENERIC | KINDS | MARKED).issuperset(other_words(folder)) else set()
    return plain or tree.means(folder)


def folder_splits(root: Path, names: Sequence[str]) -> list[str]:
    """The split of each image by its first folder that means one split; "" if none does."""
    tree, known = Tree(root, names), dict[str, str]()
    for path in tree.counts:
        found = [split for folder in path.split("/") if len(split := tree.means(folder)) == 1]
        known[path] = found[0].pop() if found else ""
    return [known[name.rpartition("/")[0]] for name in names]


def class_folder(tree: Tree, name: str, split: str) -> str | None:
    """The folder below the split's; None for an image directly in the split's folder."""
    folders = name.split("/")[:-1]
    start = next(place for place, folder in enumerate(folders) if tree.means(folder) == {split})
    while start < len(folders) and tree.means(folders[start]) == {split}:  # seg_train/seg_train/
        start += 1
    return unicodedata.normalize("NFC", folders[start]) if start < len(folders) else None


def without_marked(listing: Listing, same: bool) -> tuple[Listing, str]:
    """Without images in folders of masks and the like, if there are others; and a note on them, or "".

    ``same``: leave out only those with the name of an image elsewhere, which the label of that name belongs to.
    """
    folders = {name.rpartition("/")[0] for name in listing.images}
    marked = {folder for folder in folders if not MARKED.isdisjoint(words(folder))}
    kept = [name for name in listing.images if name.rpartition("/")[0] not in marked]
    stems = {Path(name).stem for name in kept} if marked else set()
    out = [
        name for name in listing.images if name.rpartition("/")[0] in marked and (not same or Path(name).stem in stems)
    ]
    if not out or not kept:
        return listing, ""
    left = set(out)
    text = f"{len(out):,} images in folders of masks or annotations left out, e.g. {out[0]}"
    return replace(listing, images=[name for name in listing.images if name not in left]), text
