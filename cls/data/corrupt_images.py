"""Training images that could not be read: replaced where they are drawn, counted and named here."""

import contextlib
import csv
import io
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from cls.data.readers import Images
from cls.distributed.world import World
from cls.runtime.exit import DataError
from cls.runtime.files import write_whole
from cls.transforms.decode import CorruptImageError, decode

log = logging.getLogger("cls")


def still_corrupt(images: Images, names: Collection[str]) -> Iterator[str]:
    """Those of these images that have not been mended since."""
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
    """Distinct broken training images over all lives and ranks, named in bad_images.csv."""

    def __init__(self, path: Path, images: Images, max_bad: float, world: World) -> None:
        self.path, self.images, self.world = path, images, world
        self.quota = max(1.0, max_bad * len(images))
        self.reasons: dict[str, str] = {}
        self._mended: dict[str, str] = {}  # they stay named: `cls audit` asks why others stood in for them
        self._new: dict[str, str] = {}
        if path.exists():
            try:
                # a spreadsheet may have made something else of it
                with path.open(newline="", encoding="utf-8", errors="replace") as file:
                    rows = list(csv.DictReader(file))
            except (OSError, csv.Error) as error:
                raise ValueError(f"{path} is damaged ({error}): delete it or copy it from where it is whole") from None
            known = {row["id"]: row["reason"] for row in rows if row.get("id") and row.get("reason")}
            self.reasons = {name: known[name] for name in still_corrupt(images, known)}
            self._mended = {name: reason for name, reason in known.items() if name not in self.reasons}

    def note(self, broken: list[tuple[int, str]]) -> None:
        known = self.reasons | self._new
        found = {self.images.name(row): reason for row, reason in broken}
        if found.keys() - known.keys():  # written now: a kill may come first, and the next life begins behind them
            self._write(known | found)
        self._new |= found

    def agree(self) -> None:
        """Exchange what the ranks found; DataError on all of them when there are too many."""
        known = len(self.reasons)
        # all that each rank knows: a slow network file system may have shown them different files at the start
        for found in self.world.gather(self.reasons | self._new):
            self.reasons |= found
        self._new = {}
        if len(self.reasons) > known and self.world.main:
            self._write(self.reasons)
            log.warning("%d broken training images so far, replaced; see %s", len(self.reasons), self.path)
        if len(self.reasons) > self.quota:
            raise DataError(
                f"{len(self.reasons)} of {len(self.images)} training images are broken, more than data.max_bad allows "
                f"({self.quota:.0f}); they are named in {self.path}: mend them or raise --data.max-bad and run the same"
                " command again; without them it is another data set, which needs another --out"
            )

    def _write(self, reasons: dict[str, str]) -> None:
        if self.world.main:
            text = io.StringIO()
            csv.writer(text).writerows([("id", "reason"), *sorted((self._mended | reasons).items())])
            with contextlib.suppress(OSError):  # a full disk: the list is whole again with the next one found
                write_whole(self.path, text.getvalue().encode())
