"""What lies inside class folders and is no image of the class: splits, and folders about the images."""

from cls.data.folders.tree import Tree, join
from cls.data.split_words import is_generic, is_no_class, some, split_name, without


def turned(tree: Tree, base: str) -> dict[str, str]:
    """<split>/<class> for <class>/<split>, where no image would be left out; a class without splits is all train."""
    wanted: dict[str, str] = {}
    for top in sorted(tree.children(base)):
        folder = join(base, top)
        inside = {join(folder, name): split_name(name) for name in tree.children(folder)}
        places = inside or {folder: "train"}
        if (inside and folder in tree.counts) or not all(places.values()) or len({*places.values()}) < len(places):
            return {}
        wanted |= {f"{split}/{top}": place for place, split in places.items()}
    return wanted if sum(new.startswith("train/") for new in wanted) > 1 else {}


def refuse_marked(tree: Tree, folder: str) -> None:
    """Folders about the images beside those of the images inside class folders: cat/masks beside cat/images."""
    found = []
    for top in tree.children(folder):
        names = tree.children(join(folder, top))
        if any(map(is_generic, names)):
            found += [join(folder, f"{top}/{name}") for name in names if is_no_class(name) and not is_generic(name)]
    if found:
        raise ValueError(
            f"data.path: {tree.where(folder)} has folders beside the images in its classes ({some(sorted(found))}): "
            f"leave them out: {without(tree.root, found)}"
        )
