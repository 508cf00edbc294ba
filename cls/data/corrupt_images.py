"""Corrupt training images: replaced in training, counted and listed in the run directory."""

import contextlib
import csv
import io
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cls.runtime.exit import DataError
from cls.runtime.files import write_whole
from cls.transforms.decode import CorruptImageError, decode

if TYPE_CHECKING:  # `cls audit` reads the list without loading torch and datasets
    from cls.data.readers import Images
    from cls.distributed.world import World

log = logging.getLogger("cls")

NAME, OLD_NAME = "corrupt_images.csv", "bad_images.csv"


def corrupt_file(run_dir: Path) -> Path:
    """The list of a run directory, or the path it will have; runs of earlier versions have bad_images.csv."""
    new, old = run_dir / NAME, run_dir / OLD_NAME
    return old if old.exists() and not new.exists() else new


def read_corrupt(run_dir: Path) -> dict[str, str]:
    """Id and reason of each training image that could not be read, now or earlier; ValueError for a damaged file."""
    path = corrupt_file(run_dir)
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:  # a spreadsheet may have changed it
            return {row["id"]: row.get("reason") or "" for row in csv.DictReader(file) if row.get("id")}
    except (OSError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it from a backup or delete it") from None


def still_corrupt(images: "Images", names: Collection[str]) -> Iterator[str]:
    """Those of these images that have not been repaired since."""
    for row in range(len(images)) if names else ():
        if (name := images.name(row)) in names:
            (data,) = images.read([row])
            try:
                if isinstance(data, CorruptImageError):
                    raise data
                decode(bytes(data))
            except CorruptImageError:
                yield name


class CorruptImages:
    """Distinct corrupt training images over all attempts and ranks, listed in corrupt_images.csv."""

    def __init__(self, run_dir: Path, images: "Images", max_corrupt: float, world: "World") -> None:
        self._run_dir, self.images, self.world = run_dir, images, world
        self.quota = max(1.0, max_corrupt * len(images))
        known = read_corrupt(run_dir)
        self.reasons = {name: known[name] for name in still_corrupt(images, known)}
        # repaired ones stay listed: `cls audit` needs them to explain replacements
        self._repaired = {name: reason for name, reason in known.items() if name not in self.reasons}
        self._new: dict[str, str] = {}

    def note(self, corrupt: list[tuple[int, str]]) -> None:
        """Add the (row, reason) pairs of a batch."""
        known = self.reasons | self._new
        found = {self.images.name(row): reason for row, reason in corrupt}
        if found.keys() - known.keys():  # written now: after a kill, the next attempt starts behind these images
            self._write(known | found)
        self._new |= found

    def agree(self) -> None:
        """Exchange what the ranks found; DataError on all of them when there are too many."""
        known = len(self.reasons)
        # everything each rank knows: a slow network file system may have shown them different files at the start
        for found in self.world.gather(self.reasons | self._new):
            self.reasons |= found
        self._new = {}
        if len(self.reasons) > known and self.world.main:
            self._write(self.reasons)
            path = corrupt_file(self._run_dir)
            log.warning("corrupt training images so far: %d, replaced; see %s", len(self.reasons), path)
        if len(self.reasons) > self.quota:
            raise DataError(
                f"{len(self.reasons)} of {len(self.images)} training images are corrupt, more than data.max_corrupt "
                f"allows ({self.quota:.0f}); they are listed in {corrupt_file(self._run_dir)}: repair them or raise "
                "--data.max-corrupt and run the same command again; if you delete them instead, use another --out: "
                "it is then another data set"
            )

    def _write(self, reasons: dict[str, str]) -> None:
        if self.world.main:
            text = io.StringIO()
            csv.writer(text).writerows([("id", "reason"), *sorted((self._repaired | reasons).items())])
            with contextlib.suppress(OSError):  # a full disk: the next corrupt image writes the whole list again
                write_whole(self._run_dir / NAME, text.getvalue().encode())
