"""Table files are compared without reading images: by size, footer and, for `cls pack`, the stored checksum."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TAIL = 65_536  # bytes at the end of an arrow file: its last rows, or its footer
DIGITS = 16  # of each hash


def footers(paths: Sequence[str]) -> list[dict[str, Any]]:
    """For each local table: name (below the common folder), bytes, footer (hash), packed (checksum in pack.json).

    About 50 us a cached file. Tars have no footer: all but size and image sizes depends on the members' mtimes.
    Compressed tars, whose size depends on them, and hub files (``hf://…``), named by their version, are left out.
    """
    local = [path for path in paths if "://" not in path and not path.lower().endswith((".tgz", ".tar.gz"))]
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in local]) if local else ""
    packed: dict[str, dict[str, str]] = {}
    found = []
    for path in local:
        folder = os.path.dirname(os.path.abspath(path))
        if folder not in packed:
            packed[folder] = _packed(Path(folder))
        size, footer = _footer(path)
        facts = {"name": os.path.relpath(os.path.abspath(path), root), "bytes": size}
        facts |= {} if path.lower().endswith(".tar") else {"footer": footer}
        checksum = packed[folder].get(os.path.basename(path))
        found.append(facts | ({"packed": checksum} if checksum else {}))
    return found


def _footer(path: str) -> tuple[int, str]:
    """Size in bytes and hash; -1 and '' if the file cannot be read: reading its images reports why."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            end = file.read(8)
            length = int.from_bytes(end[:4], "little") + 8 if end[4:] == b"PAR1" else TAIL
            file.seek(max(0, size - length))
            return size, hashlib.sha256(file.read()).hexdigest()[:DIGITS]
    except OSError:
        return -1, ""


def _packed(folder: Path) -> dict[str, str]:
    """Checksums of `cls pack` by file name; {} without a valid pack.json."""
    try:
        files = json.loads((folder / "pack.json").read_bytes())["files"]
        return {str(name): str(entry["sha256"])[:DIGITS] for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
