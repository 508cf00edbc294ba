"""Folders that are never data: those of systems, and run directories that lie among the images."""

from collections.abc import Collection, Sequence

SYSTEM = frozenset((
    "__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found",
))  # fmt: skip
"""Names, lower case, of folders that macOS, Windows, network disks and file systems make."""
MARKS = ("lock", "events.jsonl", "lives.jsonl", "data.json", "exit.json", "metrics.jsonl", "checkpoints")
"""Files and folders, one of which a run directory has beside its config.yaml."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is never read, by its name."""
    return name.startswith(".") or name.lower() in SYSTEM


def run_directories(files: Sequence[str], folders: Collection[str]) -> tuple[str, ...]:
    """Those among the folders below a root; paths of folders end with "/" as they do in the result."""
    made = [name.removesuffix("config.yaml") for name in files if name.endswith("/config.yaml")]
    if not made:
        return ()
    there = {*files, *(path.rstrip("/") for path in folders)}
    return tuple(path for path in made if not there.isdisjoint(path + mark for mark in MARKS))


def outside(names: Sequence[str], inside: Collection[str]) -> list[str]:
    """Files that are directly in none of the folders."""
    return [name for name in names if name[: name.rfind("/") + 1] not in inside] if inside else list(names)
