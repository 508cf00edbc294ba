"""What a start does not read: files counted by ending, with what to do about them; system folders, run directories."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from cls.data import fixes
from cls.runtime.console import printable

SYSTEM = frozenset((
    "__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found",
))  # fmt: skip
"""Names, lower case, of folders that macOS, Windows, network disks and file systems make."""
MARKS = ("lock", "events.jsonl", "lives.jsonl", "data.json", "exit.json", "metrics.jsonl", "checkpoints")
"""A run directory has at least one of these beside its config.yaml."""
UNREAD = (
    *fixes.HEIF, *fixes.PILLOW, ".svg", ".jxl", ".exr", ".hdr", ".eps", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".raf", ".rw2", ".dcm", ".dicom", ".jxr", ".bpg", ".xcf",
)  # fmt: skip
"""Endings, lower case, of image files that are not read."""
ARCHIVES = (".zip", ".tar.xz", ".tar.bz2", ".tbz2", ".txz")
SHOWN = 8
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never read."""
    return name.startswith(".") or name.lower() in SYSTEM


def run_directories(files: Sequence[str], folders: Collection[str]) -> tuple[str, ...]:
    """The run directories among the folders below a root; they end with "/"."""
    made = [name.removesuffix("config.yaml") for name in files if name.endswith("/config.yaml")]
    if not made:
        return ()
    there = {*files, *(path.rstrip("/") for path in folders)}
    return tuple(path for path in made if not there.isdisjoint(path + mark for mark in MARKS))


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
    where, found = printable(str(root)), []
    if unread:
        found.append(
            f"{where}: {len(unread):,} images of kinds that are not read ignored: {by_ending(unread)}; "
            f"{fixes.convert(root, sorted({*map(ending, unread)}))}"
        )
    if rest:
        found.append(f"{where}: {len(rest):,} files that are no {what} ignored: {by_ending(rest)}")
    return found


def nothing_to_read(root: Path, others: Sequence[str], read: Sequence[str]) -> str:
    """Why a folder has no images, and what to do, by the files that it does hold."""
    where = printable(str(root))
    if not others:
        return f"data.path: {where} holds no images (0 other files)"
    what = f"data.path: {where} holds no images ({len(others):,} other files: {by_ending(others)})"
    to = fixes.new_folder(root, "images")
    if unread := [name for name in others if is_unread_image(name)]:
        return f"{what}; {fixes.convert(root, sorted({*map(ending, unread)}))}"
    if archives := [name for name in others if name.lower().endswith(ARCHIVES)]:
        return f"{what}; {fixes.unpack(root / archives[0], to)}"
    bare = [name for name in others if ending(name) == "without ending"]
    if bare and len(bare) * 2 > len(others) and all(_is_image(root / name) for name in bare[:3]):
        return f"{what}; the ones without ending are images: {fixes.add_ending(root, to)}"
    return f"{what}; read are images ({fixes.some(read, 6)}) and tables (.parquet, .arrow, .tar)"


def _is_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith(SIGNATURES)
    except OSError:
        return False
