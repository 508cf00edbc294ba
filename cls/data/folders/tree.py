"""The folders of images below a root, by names and nesting."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from cls.data.split_words import besides, path_option, some, split_name, splits_in
from cls.runtime.console import printable


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class Tree:
    """The folders below a root that hold images, by the paths of the images."""

    def __init__(self, root: Path, images: Sequence[str]) -> None:
        self.root = root
        self.counts = Counter(name.rpartition("/")[0] for name in images)  # images directly in a folder
        self._inside: dict[str, dict[str, list[str]]] = {"": {}}  # folder -> name of a folder in it -> its paths
        for path in self.counts:
            above = ""
            for name in path.split("/") if path else ():
                self._inside.setdefault(above, {}).setdefault(name, []).append(path)
                above = join(above, name)
        said: dict[tuple[str, ...], set[str]] = {}
        for part in {part for path in self.counts for part in path.split("/")}:
            if found := splits_in(part):
                said.setdefault(tuple(besides(part)), set()).update(found)
        self._families = {rest for rest, splits in said.items() if len(splits) > 1}

    def means(self, name: str) -> set[str]:
        """The splits that a folder's name says; of "seg_test" only where a "seg_train" or "seg_val" is there, too."""
        found = splits_in(name)
        return found if len(found) > 1 or split_name(name) or tuple(besides(name)) in self._families else set()

    def below(self, folder: str) -> list[list[str]]:
        """Paths from a folder to those inside it that hold images; [] is the folder itself."""
        start = len(folder) + 1 if folder else 0
        inside = [path[start:].split("/") for paths in self._inside.get(folder, {}).values() for path in paths]
        return inside + ([[]] if folder in self.counts else [])

    def children(self, folder: str) -> dict[str, bool]:
        """Names of the folders in a folder with images in or below them, and whether these have such folders, too."""
        return {
            name: len(paths) > 1 or paths[0] != join(folder, name)
            for name, paths in self._inside.get(folder, {}).items()
        }

    def where(self, folder: str) -> str:
        return printable(f"{self.root}/{folder}" if folder else f"{self.root}")

    def option(self, folder: str) -> str:
        return path_option(f"{self.root}/{folder}" if folder else self.root)


def listed(names: Collection[str]) -> str:
    return printable(some(sorted(names), 8))
