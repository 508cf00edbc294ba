"""Which folders of images are splits and which are classes, by names and nesting alone.

Folders are paths below the root with "/"; "" is the root. An ambiguous folder is a ValueError with a command for each
possible meaning: nothing is guessed.
"""

from collections.abc import Collection

from cls.data.fixes import links, some, without
from cls.data.folders.tree import Tree, join, listed, reject_marked, transposed
from cls.data.split import SPLITS
from cls.data.split_words import (
    ALL_WORDS,
    class_in_name,
    glued,
    is_generic,
    is_no_class,
    is_unused,
    other_words,
    split_name,
    splits_in,
)
from cls.runtime.console import printable


class NoClasses(ValueError):
    """There are no class folders: labels must come from elsewhere."""


def arrange(tree: Tree, base: str = "") -> dict[str, str]:
    """The folder of each split, whose subfolders are its classes; {"train": base} where there are only class folders.

    ValueError for what is ambiguous or a level too high, NoClasses for images outside class folders.
    """
    tops = tree.children(base)
    family = _family(tree, base, tops)
    if not family:
        _reject_glued(tree, base, glued(tops))
        _check_classes(tree, base, tops)
        return {"train": base}
    found: dict[str, list[str]] = {}
    for top, split in family.items():
        found.setdefault(split, []).append(top)
    for split, names in found.items():
        if len(names) > 1:
            chosen = {other: join(base, tied[0]) for other, tied in found.items()}
            raise ValueError(
                f"data.path: {tree.where(base)} has {' and '.join(sorted(names))}; keep one folder for {split}: "
                f"{links(tree.root, chosen)}"
            )
    return _inside(tree, {split: join(base, names[0]) for split, names in found.items()})


def _family(tree: Tree, base: str, tops: dict[str, bool]) -> dict[str, str]:
    """Top folders that are splits; {} if all are classes. A class may be called "train" if it holds no folders."""
    named = {top: found.pop() for top in tops if len(found := splits_in(top)) == 1}
    exact = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    plain = {top: split for top in named if (split := split_name(top))}
    if any(split == "train" and tops[top] for top, split in exact.items()):
        return exact | {top: split for top, split in plain.items() if split not in exact.values()}
    nested = any(split == "train" and tops[top] for top, split in plain.items())
    same = len({tuple(other_words(top)) for top in named}) == 1
    for family in (plain, named):
        several = "train" in family.values() and len({*family.values()}) > 1
        if (several and (family is plain or same)) or (nested and family is plain):
            break
    else:
        _reject_splits(tree, base, tops, named)
        return {}
    if any(split == "train" and tops[top] for top, split in family.items()):
        return family
    others = [top for top in tops if top not in family and not is_no_class(top)]
    if others and family.keys() <= exact.keys() and not any(tops[top] for top in family):
        return {}
    if family is not plain:
        _reject_by_class(tree, base, family)
    train = next(top for top, split in family.items() if split == "train")
    raise NoClasses(
        f"data.path: {tree.where(base)} has {listed(family)} but no train/ with class folders: "
        f"{tree.where(join(base, train))} has no class folders with images; expected train/<class>/..., or class "
        "folders only"
    )


def _reject_glued(tree: Tree, base: str, found: dict[str, str]) -> None:
    """ValueError for the folders of such a family if they hold the same folders, two or more: these are splits."""
    inside = [{*tree.children(join(base, name))} for name in found]
    if inside and len(set.intersection(*inside)) > 1:
        places = {ALL_WORDS[word]: join(base, name) for name, word in found.items()}
        raise ValueError(
            f"data.path: {printable(str(tree.root / base))} has {printable(some(found, 8))}, by their names and "
            f"folders splits: {links(tree.root, dict(sorted(places.items())))}"
        )


def _reject_splits(tree: Tree, base: str, tops: dict[str, bool], named: dict[str, str]) -> None:
    """An error for would-be classes with the name of a split, without training folders beside them."""
    others, where = [top for top in tops if top not in named], tree.where(base)
    lone = bool(others) and all(map(is_no_class, others))
    trains = [top for top, split in named.items() if split == "train" and tops[top]]
    if trains and lone:
        raise ValueError(
            f"data.path: {where} has {listed(tops)}: only {trains[0]} can be training images: "
            f"{tree.option(join(base, trains[0]))}"
        )
    plain = [top for top in named if split_name(top)] or (list(named) if lone else [])
    exact = [top for top in plain if top.lower() in SPLITS]
    flat_classes = [top for top in others if not (tops[top] or is_no_class(top))]
    renamed = {named[top]: join(base, top) for top in plain}
    if plain and (any(tops[top] for top in exact) or not flat_classes):
        if len(others) == 1 and tops[others[0]]:
            _reject_level(tree, [join(base, others[0])], f"{where} has {listed(tops)}", only="splits")
        one, do = trains or [top for top in others if tops[top]], ""
        if len(one) == 1 and "train" not in renamed and (trains or len(others) == 1):
            do = f"; if {one[0]} is train: {links(tree.root, {'train': join(base, one[0])} | renamed)}"
        elif len([top for top in others if not is_no_class(top)]) > 1:
            unfit = sorted([*named, *filter(is_no_class, others)])
            do = f"; if the others are the classes: {without(tree.root, [join(base, top) for top in unfit])}"
        raise NoClasses(
            f"data.path: {where} has {listed(plain)} but no train/ with class folders; expected train/<class>/..., "
            f"or class folders only{do}"
        )
    if unclear := [top for top in others if splits_in(top)]:
        do = f"without it: {without(tree.root, [join(base, top) for top in unclear])}"
        if tops[unclear[0]]:
            do = f"if it is train: {links(tree.root, {'train': join(base, unclear[0])} | renamed)}"
        raise ValueError(f"data.path: {where} has {listed(unclear)}, whose name means several splits; {do}")
    if named and not others and len({*named.values()}) > 1:
        _reject_by_class(tree, base, named)
        raise ValueError(
            f"data.path: {where} has {listed(named)}, which are splits by their names: call them train, val and test: "
            + links(tree.root, {split: join(base, top) for top, split in named.items()})
        )


def _reject_by_class(tree: Tree, base: str, named: dict[str, str]) -> None:
    """An error for several folders of one split, each with a class in its name: cat_train, dog_train."""
    if len({*named.values()}) == len(named):
        return
    wanted = {f"{split}/{class_in_name(top)}": join(base, top) for top, split in named.items()}
    what = f"data.path: {tree.where(base)} has {listed(named)}, several of one split"
    several = sum(new.startswith("train/") for new in wanted) > 1 and len(wanted) == len(named)
    if several and not any(new.endswith("/") for new in wanted):
        raise ValueError(f"{what}; if each is of the class in its name: {links(tree.root, wanted)}")
    raise NoClasses(f"{what}; expected train/<class>/...")


def _check_classes(tree: Tree, base: str, tops: dict[str, bool]) -> None:
    """ValueError where the top folders are no classes."""
    where = tree.where(base)
    if not tops:
        raise NoClasses(f"data.path: {where} has no class folders with images; expected <class>/<image> inside it")
    if len(tops) == 1:
        (top,) = tops
        if tops[top]:
            _reject_level(tree, [join(base, top)], f"{where} has only one class, {top!r}")
        raise NoClasses(f"data.path: {where} has only one class, {top!r}; at least two are needed")
    if all(is_no_class(top) for top in tops):
        _reject_level(tree, [join(base, top) for top in tops], f"{where} has {listed(tops)}, by their names no classes")
    same = {tuple(other_words(top)) for top in tops}
    if len(same) == 1 and not {"image", "images", "img", "imgs"}.isdisjoint(*same):
        raise NoClasses(f"data.path: {where} has {listed(tops)}, by their names parts of one set and no classes")
    if wrong := [top for top in tops if is_unused(top)]:
        _reject_beside(tree, base, tops, wrong, f"; if all are: {links(tree.root, {'train': base})}")
    if data := [top for top in tops if tops[top] and is_generic(top)]:
        _reject_level(tree, [join(base, top) for top in data], f"{where} has {listed(tops)}", only="fit")
    _check_names(tree, base, tops)
    inner = [parts for parts in tree.below(base) if any(tree.means(part) - {"train"} for part in parts[1:])]
    if inner:
        _reject_inner(tree, base, [join(base, "/".join(parts)) for parts in inner])
    reject_marked(tree, base)


def _check_names(tree: Tree, folder: str, classes: Collection[str]) -> None:
    """ValueError for a class that is a copy of the whole set or has a split's name ("train" itself may be one)."""
    known = {*classes}
    for name in classes:
        inside = tree.children(join(folder, name))
        if len(inside) > 1 and inside.keys() <= known:
            raise ValueError(
                f"data.path: {tree.where(join(folder, name))} has the folders {listed(inside)}, as "
                f"{tree.where(folder)} has; if it is no class: {without(tree.root, [join(folder, name)])}"
            )
    if wrong := [name for name in classes if tree.means(name) and name.lower() not in SPLITS]:
        _reject_beside(tree, folder, classes, wrong)


def _reject_beside(tree: Tree, folder: str, classes: Collection[str], wrong: Collection[str], more: str = "") -> None:
    raise ValueError(
        f"data.path: {tree.where(folder)} has {listed(wrong)} beside class folders: if only "
        f"{listed(set(classes) - set(wrong)) or 'others'} are classes: "
        f"{without(tree.root, [join(folder, name) for name in wrong])}{more}"
    )


def _reject_level(tree: Tree, folders: list[str], what: str, only: str = "") -> None:
    """The error for classes that are one level deeper: a command that names the folder, or that folder's own error.

    ``only``: raise only if the folder can be read as it is ("fit"), or also has splits inside ("splits").
    """
    fit, errors = [], []
    for folder in folders:
        try:
            places = arrange(tree, folder)
            if len(tree.children(places["train"])) > 1 and (len(places) > 1 or only != "splits"):
                fit.append(folder)
        except ValueError as error:
            errors.append(error)
    if fit:
        more = f" (or {some(map(tree.option, fit[1:]))})" if fit[1:] else ""
        raise ValueError(f"data.path: {what}; the folder below has the classes: {tree.option(fit[0])}{more}")
    if only == "fit" or (only and not any(type(error) is ValueError for error in errors)):
        return
    if len(folders) == 1 and errors:
        raise errors[0]
    raise NoClasses(f"data.path: {what}; at least two classes are needed")


def _reject_inner(tree: Tree, base: str, inner: list[str]) -> None:
    """The error for splits inside class folders."""
    what = f"{tree.where(base)} has splits inside its folders ({some(sorted(inner))})"
    tops = sorted({path[len(base) :].lstrip("/").split("/")[0] for path in inner})
    for top in tops:
        try:
            arrange(tree, join(base, top))
        except ValueError:
            continue
        raise ValueError(f"data.path: {what}: name one of the folders: {tree.option(join(base, top))}")
    if wanted := transposed(tree, base):
        more = f"; or leave them out: {without(tree.root, inner)}"
        raise ValueError(f"data.path: {what}: put each split's into one folder: {links(tree.root, wanted)}{more}")
    raise ValueError(f"data.path: {what}: leave them out: {without(tree.root, inner)}")


def _inside(tree: Tree, folders: dict[str, str]) -> dict[str, str]:
    """The folder of each split that has its classes, below folders that hold nothing but one folder."""
    found = {"train": _base(tree, folders["train"], "train", ())}
    classes = tree.children(found["train"])
    passed = found["train"][len(folders["train"]) :].split("/")
    if not classes:
        raise NoClasses(
            f"data.path: {tree.where(found['train'])} has no class folders with images; expected <class>/<image> inside"
        )
    if all(split_name(name) for name in classes):
        _reject_level(tree, [found["train"]], f"{tree.where(found['train'])} has {listed(classes)}, which are splits")
    _check_inside(tree, folders, found["train"], classes)
    _check_names(tree, found["train"], classes)
    for split, folder in folders.items():
        if split != "train":
            found[split] = _base(tree, folder, split, classes, passed)
        if split == "val" and not tree.children(found[split]):
            raise NoClasses(
                f"data.path: {tree.where(found[split])} has no class folders with images; expected <class>/<image> "
                f"inside it, or hold images out of training: {tree.option(found['train'])}"
            )
        reject_marked(tree, found[split])
        other = [
            join(found[split], "/".join(parts))
            for parts in tree.below(found[split])
            if any(tree.means(part) - {split} for part in parts[1:])
        ]
        if other:
            raise ValueError(
                f"data.path: {tree.where(found[split])} has folders of another split inside ({some(sorted(other))}): "
                f"leave them out: {without(tree.root, other)}"
            )
    return found


def _check_inside(tree: Tree, folders: dict[str, str], base: str, classes: dict[str, bool]) -> None:
    """ValueError where the training folder has a folder of images beside one of annotations, as at the root."""
    none = all(map(is_no_class, classes))
    data = [top for top in sorted(classes, key=lambda top: not is_generic(top)) if none or is_generic(top)]
    what = f"data.path: {tree.where(base)} has {listed(classes)}"
    if fit := [top for top in data if len(tree.children(join(base, top))) > 1]:
        chosen = {}
        for split, folder in folders.items():
            place = base if split == "train" else _base(tree, folder, split, ())
            chosen[split] = join(place, fit[0]) if fit[0] in tree.children(place) else place
        raise ValueError(f"{what}; if {fit[0]} has the classes: {links(tree.root, chosen)}")
    if none and len(classes) > 1:
        raise NoClasses(f"{what}, by their names no classes; at least two classes are needed")


def _base(tree: Tree, folder: str, split: str, classes: Collection[str], passed: Collection[str] = ()) -> str:
    """The folder inside folders that hold nothing but one folder which is no class: seg_test/seg_test."""
    while folder not in tree.counts and len(children := tree.children(folder)) == 1:
        (child,) = children
        last = folder.split("/")[-1]
        wraps = child.lower() == last.lower() or splits_in(child) == {split} or is_no_class(child) or child in passed
        if child in classes or not (wraps or (split == "train" and children[child])):
            break
        folder = join(folder, child)
    return folder
