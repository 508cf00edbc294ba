"""What a start does not read, counted by ending, with what to do about it."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cls.data.split_words import new_folder, path_option, some
from cls.runtime.console import printable

HEIF = (".heic", ".heif", ".hif")
PILLOW = (".tga", ".ico", ".psd", ".pcx", ".sgi", ".dds", ".jpf", ".jpx", ".j2c", ".jpc", ".icns", ".xpm")
"""Endings of images that Pillow opens where it is asked to."""
UNREAD = (
    *HEIF, *PILLOW, ".svg", ".jxl", ".exr", ".hdr", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf",
    ".rw2", ".dcm", ".dicom", ".jxr", ".bpg", ".xcf",
)  # fmt: skip
"""Endings, lower case, of image files that are not read."""
ARCHIVES = (".zip", ".tar.xz", ".tar.bz2", ".tbz2", ".txz")
SHOWN = 8
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def ending(name: str) -> str:
    found = os.path.splitext(os.path.basename(name))[1].lower()
    return printable(found) if found else "without ending"


def by_ending(names: Sequence[str]) -> str:
    """ "10 .heic, 3 .csv, 1 without ending": the most frequent first."""
    counts = sorted(Counter(map(ending, names)).items(), key=lambda item: (-item[1], item[0]))
    rest = f" and {len(counts) - SHOWN} other endings" if len(counts) > SHOWN else ""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts[:SHOWN]) + rest


def is_unread_image(name: str) -> bool:
    return name.lower().endswith(UNREAD)


def notes(root: Path, others: Sequence[str], what: str) -> list[str]:
    """A line for files that are not ``what`` (images, tables), and one for images of kinds that are not read."""
    unread, rest = [name for name in others if is_unread_image(name)], [n for n in others if not is_unread_image(n)]
    found = []
    if unread:
        found.append(
            f"{printable(str(root))}: {len(unread):,} images of kinds that are not read ignored: {by_ending(unread)}; "
            f"{convert(root, unread)}"
        )
    if rest:
        found.append(f"{printable(str(root))}: {len(rest):,} files that are no {what} ignored: {by_ending(rest)}")
    return found


def convert(root: Path, unread: Sequence[str]) -> str:
    """What to do with images of kinds that are not read: a command where Pillow can open them."""
    kinds = sorted({ending(name) for name in unread})
    heif, known = any(kind in HEIF for kind in kinds), [kind for kind in kinds if kind in (*HEIF, *PILLOW)]
    if not known:
        return f"convert {', '.join(kinds)} to JPEG or PNG with a program that reads them"
    names = " -o ".join(f"-iname '*{kind}'" for kind in known)
    plugin = "import pillow_heif; pillow_heif.register_heif_opener(); " if heif else ""
    program = (
        f"import sys; from PIL import Image; {plugin}"
        "[Image.open(f).convert('RGB').save(f + '.png') for f in sys.argv[1:]]"
    )
    found = f"find {shlex.quote(str(root))} \\( {names} \\) -exec python3 -c {shlex.quote(program)} {{}} +"
    return f"to convert them: {'pip install pillow-heif && ' if heif else ''}{found}"


def nothing_to_read(root: Path, others: Sequence[str], read: Sequence[str]) -> str:
    """Why a folder has no images, by the files that it does hold, and what to do."""
    where = printable(str(root))
    if not others:
        return f"data.path: {where} holds no images (0 other files)"
    what = f"data.path: {where} holds no images ({len(others):,} other files: {by_ending(others)})"
    to = new_folder(root, "images")
    unread = [name for name in others if is_unread_image(name)]
    archives = [name for name in others if name.lower().endswith(ARCHIVES)]
    bare = [name for name in others if ending(name) == "without ending"]
    if unread:
        return f"{what}; {convert(root, unread)}"
    if archives:
        return f"{what}; unpack it: {unpack(root / archives[0], to)}, then {path_option(to)}"
    if bare and len(bare) * 2 > len(others) and all(_is_image(root / name) for name in bare[:3]):
        quoted = shlex.quote(to)
        return (
            f"{what}; the ones without ending are images: cp -rLs {shlex.quote(os.path.realpath(root))} {quoted} && "
            f"find {quoted} -type l ! -name '*.*' -exec mv {{}} {{}}.jpg \\;, then {path_option(to)}"
        )
    return f"{what}; read are images ({some(read, 6)}) and tables (.parquet, .arrow, .tar)"


def unpack(archive: Path, to: str) -> str:
    file, to = shlex.quote(os.path.realpath(archive)), shlex.quote(to)
    return (
        f"unzip -q {file} -d {to}"
        if file.strip("'").lower().endswith(".zip")
        else f"mkdir {to} && tar -xf {file} -C {to}"
    )


def _is_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNATURES)
    except OSError:
        return False
