"""Shell commands that messages print: rename, link, unpack or convert images so that they can be read."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

HEIF = (".heic", ".heif", ".hif")
PILLOW = (".tga", ".ico", ".psd", ".pcx", ".sgi", ".dds", ".jpf", ".jpx", ".j2c", ".jpc", ".icns", ".xpm")
"""Endings of images that are not read, but that Pillow can convert."""
MANY = 8  # more names or patterns than this are not listed one by one


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first names and how many more there are."""
    found = list(names)
    more = f" and {len(found) - shown:,} more" if len(found) > shown else ""
    return ", ".join(found[:shown]) + more


def path_option(path: str | Path) -> str:
    return f"--data.path {shlex.quote(str(path))}"


def new_folder(root: Path, why: str) -> str:
    """A folder that does not exist, in the working directory; if that is inside ``root``: beside ``root``."""
    real, here = os.path.realpath(root), os.path.realpath(os.curdir)
    name = f"{os.path.basename(real) or 'data'}-{why}"
    if os.path.commonpath((real, here)) == real:
        name = os.path.join(os.path.relpath(os.path.dirname(real), here), name)
    names = (name if n == 1 else f"{name}-{n}" for n in count(1))
    return next(each for each in names if not os.path.lexists(each))


def links(root: Path, folders: dict[str, str]) -> str:
    """Rename without a copy: a new folder of links (new name -> path below the root), and the option that uses it."""
    real, to = os.path.realpath(root), new_folder(root, "split")
    made = [to, *sorted({f"{to}/{os.path.dirname(new)}" for new in folders if "/" in new})]
    steps = [f"mkdir {shlex.join(made)}"]
    steps += [shlex.join(["ln", "-s", os.path.join(real, old), f"{to}/{new}"]) for new, old in folders.items()]
    return f"{' && '.join(steps)}, then {path_option(to)}"


def without(root: Path, names: Iterable[str], to: str = "") -> str:
    """Leave files or folders out: a tree of links without them, in ``to`` or a new folder, and the option that uses it.

    Names that differ in numbers only become one pattern: their other words are the same.
    """
    to = to or new_folder(root, "clear")
    patterns = sorted({re.sub(r"[0-9]+", "*", name) for name in names})
    if len(patterns) > MANY:  # one in each of many class folders
        patterns = sorted({_wide(pattern.split("/")) for pattern in patterns})
    out = " ".join("/".join((shlex.quote(to), _quoted(pattern))) for pattern in patterns)
    return f"cp -rLs {shlex.quote(os.path.realpath(root))} {shlex.quote(to)} && rm -r {out}, then {path_option(to)}"


def _wide(parts: list[str]) -> str:
    """a/b/c/d -> a/*/*/d, and b/d -> */d."""
    first = parts[: len(parts) > 2]
    return "/".join([*first, *("*" for _ in parts[len(first) : -1]), parts[-1]])


def _quoted(pattern: str) -> str:
    return "*".join(shlex.quote(part) if part else "" for part in pattern.split("*"))


def unpack(archive: str | Path, to: str) -> str:
    """Unpack into the new folder ``to``, and the option that uses it."""
    file, folder = shlex.quote(os.path.realpath(archive)), shlex.quote(to)
    zipped = str(archive).lower().endswith(".zip")
    command = f"unzip -q {file} -d {folder}" if zipped else f"mkdir {folder} && tar -xf {file} -C {folder}"
    return f"unpack it: {command}, then {path_option(to)}"


def convert(root: Path, kinds: Sequence[str]) -> str:
    """Convert images with these endings: a command if Pillow can open one of them."""
    known = [kind for kind in kinds if kind in (*HEIF, *PILLOW)]
    if not known:
        return f"convert {', '.join(kinds)} to JPEG or PNG with a program that reads them"
    heif = any(kind in HEIF for kind in known)
    names = " -o ".join(f"-iname '*{kind}'" for kind in known)
    program = (
        f"import sys; from PIL import Image; {'import pillow_heif; pillow_heif.register_heif_opener(); ' * heif}"
        "[Image.open(f).convert('RGB').save(f + '.png') for f in sys.argv[1:]]"
    )
    found = f"find {shlex.quote(str(root))} \\( {names} \\) -exec python3 -c {shlex.quote(program)} {{}} +"
    return f"to convert them: {'pip install pillow-heif && ' * heif}{found}"


def add_ending(root: Path, to: str) -> str:
    """Give files without an ending the ending .jpg: a tree of links, and the option that uses it."""
    folder = shlex.quote(to)
    return (
        f"cp -rLs {shlex.quote(os.path.realpath(root))} {folder} && "
        f"find {folder} -type l ! -name '*.*' -exec mv {{}} {{}}.jpg \\;, then {path_option(to)}"
    )
