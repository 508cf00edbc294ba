"""The folders with images below a root, by names and nesting."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from cls.data.fixes import path_option, some, without
from cls.data.split_words import is_generic, is_no_class, other_words, split_name, splits_in
from cls.runtime.console import printable


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class Tree:
    """The folders below a root that hold images."""

    def __init__(self, root: Path, images: Sequence[str]) -> None:
        self.root = root
        self.counts = Counter(name.rpartition("/")[0] for name in images)  # images directly in a folder
        self._inside: dict[str, dict[str, list[str]]] = {"": {}}  # folder -> name of a folder in it -> its paths
        for path in self.counts:
            above = ""
            for name in path.split("/") if path else ():
                self._inside.setdefault(above, {}).setdefault(name, []).append(path)
                above = join(above, name)
        meant: dict[tuple[str, ...], set[str]] = {}
        for part in {part for path in self.counts for part in path.split("/")}:
            if found := splits_in(part):
                meant.setdefault(tuple(other_words(part)), set()).update(found)
        self._families = {rest for rest, splits in meant.items() if len(splits) > 1}

    def means(self, name: str) -> set[str]:
        """The splits that a folder's name means; "seg_test" counts only beside a "seg_train" or "seg_val"."""
        found = splits_in(name)
        return found if len(found) > 1 or split_name(name) or tuple(other_words(name)) in self._families else set()

    def below(self, folder: str) -> list[list[str]]:
        """Paths from a folder to the folders in it that hold images; [] is the folder itself."""
        start = len(folder) + 1 if folder else 0
        inside = [path[start:].split("/") for paths in self._inside.get(folder, {}).values() for path in paths]
        return inside + ([[]] if folder in self.counts else [])

    def children(self, folder: str) -> dict[str, bool]:
        """Names of the subfolders with images in or below them, and whether they have such subfolders, too."""
        inside = self._inside.get(folder, {}).items()
        return {name: len(paths) > 1 or paths[0] != join(folder, name) for name, paths in inside}

    def where(self, folder: str) -> str:
        return printable(f"{self.root}/{folder}" if folder else f"{self.root}")

    def option(self, folder: str) -> str:
        return path_option(f"{self.root}/{folder}" if folder else self.root)


def listed(names: Collection[str]) -> str:
    return printable(some(sorted(names), 8))


def transposed(tree: Tree, base: str) -> dict[str, str]:
    """<split>/<class> for <class>/<split>; {} if that left out images. A class without splits is all train."""
    wanted: dict[str, str] = {}
    for top in sorted(tree.children(base)):
        folder = join(base, top)
        inside = {join(folder, name): split_name(name) for name in tree.children(folder)}
        places = inside or {folder: "train"}
        if (inside and folder in tree.counts) or not all(places.values()) or len({*places.values()}) < len(places):
            return {}
        wanted |= {f"{split}/{top}": place for place, split in places.items()}
    return wanted if sum(new.startswith("train/") for new in wanted) > 1 else {}


def reject_marked(tree: Tree, folder: str) -> None:
    """ValueError for folders of annotations beside the images of a class: cat/masks, cat/images or cat/1.jpg."""
    found = []
    for top in tree.children(folder):
        names = tree.children(join(folder, top))
        if join(folder, top) in tree.counts or any(map(is_generic, names)):
            found += [join(folder, f"{top}/{name}") for name in names if is_no_class(name) and not is_generic(name)]
    if found:
        raise ValueError(
            f"data.path: {tree.where(folder)} has folders beside the images in its classes ({some(sorted(found))}): "
            f"leave them out: {without(tree.root, found)}"
        )
