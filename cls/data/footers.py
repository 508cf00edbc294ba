"""What tells two tables apart without reading their images: size, footer and, of `cls pack`, the noted checksum."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TAIL = 65_536
"""Bytes at the end of an arrow file: its last rows, or its footer."""
DIGITS = 16  # of each hash


def footers(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Of each local table: name (below the folder of all), bytes, footer (hash), packed (checksum in pack.json).

    Some 50 us a file where the kernel knows it. Of a tar its size alone: with the sizes of its images that is all that
    its index says, without its members' times of change; of a compressed one, where the times decide the size, nothing.
    Files of a hub (``hf://…``) are named by their version and left out.
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
    """Size in bytes and hash; -1 and '' of a file that cannot be read: reading its images will say why."""
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
    """Checksums of `cls pack` by file name; none where there is no whole pack.json."""
    try:
        files = json.loads((folder / "pack.json").read_bytes())["files"]
        return {str(name): str(entry["sha256"])[:DIGITS] for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
