"""Notes on folders that are read in one of several ways that their names allow."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cls.data.fixes import links, some
from cls.data.folders.tree import Tree, join
from cls.data.split import Split, normal
from cls.data.split_words import class_in_name, splits_in
from cls.runtime.console import printable

MASK = re.compile(r"(.+?)[ _-](?:mask|seg|segmentation|gt|annotation)(?:[ _-]?\d+)?\.[A-Za-z]+")
RENAME = "if these are the classes, name the folders above them train, val and test"


def doubts(
    root: Path, images: Sequence[str], parts: Mapping[str, Split], places: Mapping[str, str], tree: Tree
) -> list[str]:
    """One line for each reading that may not be what was meant. ``places``: the folder of each split."""
    notes = _masks(root, images)
    for split, place in places.items():
        where = printable(f"{root}/{place}".rstrip("/"))
        notes += _same_names(where, [*tree.children(place)], {*parts[split].names})
    train = printable(f"{root}/{places['train']}".rstrip("/"))
    notes += _nested(train, tree, places["train"]) + _paired(train, tree, places["train"])
    if "test" in places and not parts["test"].names:
        notes += _foreign(root, [*tree.children(places["test"])], places["test"], parts["train"].names)
    return notes


def _same_names(where: str, folders: list[str], classes: set[str]) -> list[str]:
    """Class folders whose names differ in their Unicode form, in capitals or in spaces only."""
    notes = []
    raw = [name for name in folders if normal(name) in classes]
    if twice := sorted(name for name, count in Counter(map(normal, raw)).items() if count > 1):
        notes.append(
            f"{where}: {len(twice)} classes have two folders whose names differ in their Unicode form only, each "
            f"is read as one class: {printable(some(twice))}"
        )
    similar: dict[str, set[str]] = {}
    for name in raw:
        similar.setdefault(normal(name).strip().casefold(), set()).add(normal(name))
    if several := [names for names in similar.values() if len(names) > 1]:
        shown = some(" and ".join(map(repr, sorted(names))) for names in several)
        notes.append(f"{where}: {printable(shown)} differ in capitals or spaces only, and are read as classes of their "
                     "own: if they are one, move the images together")  # fmt: skip
    return notes


def _masks(root: Path, images: Sequence[str]) -> list[str]:
    """Images that are called like others with a word for masks behind: benign (1)_mask.png."""
    stems = {name.rpartition(".")[0] for name in images}
    masks = [name for name in images if (found := MASK.fullmatch(name)) and found[1] in stems]
    if not masks:
        return []
    return [
        f"{printable(str(root))}: {len(masks):,} images are called like masks of others, e.g. {printable(masks[0])}, "
        "and are read as images of their own: if they are masks, move them out of the classes"
    ]


def _nested(where: str, tree: Tree, place: str) -> list[str]:
    """Class folders that all hold several folders: these may be the classes, and the upper ones splits or groups."""
    inside = {name: {*tree.children(join(place, name))} for name in tree.children(place)}
    if len(inside) < 2 or any(len(below) < 2 for below in inside.values()):
        return []
    first = next(iter(inside))
    shared = sorted(set.intersection(*inside.values()))
    what = f"each holds {some(shared)}: {RENAME}" if len(shared) > 1 else (
        f"such as {some(sorted(inside[first]))} in {first}: if these are the classes, move them one level up"
    )  # fmt: skip
    return [f"{where}: the {len(inside)} class folders hold folders, read as one class each; {printable(what)}"]


def _paired(where: str, tree: Tree, place: str) -> list[str]:
    """cat and cat_val; ValueError if it is so for several classes."""
    tops = [*tree.children(place)]
    split_of = {top: next(iter(found)) for top in tops if len(found := splits_in(top)) == 1}
    paired = {top: split for top, split in split_of.items() if class_in_name(top) in tops}
    if not paired:
        return []
    what = f"{where} has {printable(some(sorted(paired)))} beside {printable(some(map(class_in_name, sorted(paired))))}"
    if len(paired) == 1:
        return [f"{what}, read as two classes"]
    wanted = {f"train/{top}": join(place, top) for top in tops if top not in paired}
    wanted |= {f"{split}/{class_in_name(top)}": join(place, top) for top, split in paired.items()}
    raise ValueError(f"data.path: {what}; if they are of the class in their name: {links(tree.root, wanted)}")


def _foreign(root: Path, folders: list[str], place: str, classes: tuple[str, ...]) -> list[str]:
    """Folders of test whose names are those of classes but for their capitals or a plural s."""
    near = {name.strip().casefold().removesuffix("s") for name in classes}
    if not any(normal(name).strip().casefold().removesuffix("s") in near for name in folders):
        return []
    return [
        f"{printable(f'{root}/{place}')}: its folders ({printable(some(sorted(folders)))}) are no classes of train "
        f"({printable(some(classes))}), so its images have no labels"
    ]
