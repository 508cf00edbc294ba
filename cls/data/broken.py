"""Training images that could not be read: replaced where they are drawn, counted and named here."""

import contextlib
import csv
import io
import logging
from pathlib import Path

from cls.data.access import Images
from cls.files import write_whole
from cls.outcome import DataError
from cls.parallel.cluster import Cluster

log = logging.getLogger("cls")


class BrokenImages:
    """Distinct broken training images over all lives and ranks, named in bad_images.csv."""

    def __init__(self, path: Path, images: Images, max_bad: float) -> None:
        self.path, self.images = path, images
        self.quota = max(1.0, max_bad * len(images))
        self.reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}
        if path.exists():
            with path.open(newline="") as file:
                self.reasons = {row["id"]: row["reason"] for row in csv.DictReader(file)}

    def note(self, broken: list[tuple[int, str]]) -> None:
        self._new |= {self.images.name(row): reason for row, reason in broken}

    def agree(self, cluster: Cluster) -> None:
        """Exchange what the ranks found; DataError on all of them when there are too many."""
        # all that each rank knows: a slow network file system may have shown them different files at the start
        self._learn(cluster.gather(self.reasons | self._new), cluster)
        if len(self.reasons) > self.quota:
            raise DataError(
                f"{len(self.reasons)} of {len(self.images)} training images are broken, more than data.max_bad allows "
                f"({self.quota:.0f}); they are named in {self.path}: mend or delete them, then run the same command"
            )

    def keep(self, cluster: Cluster) -> None:
        """Without the other ranks, before leaving at once: the next life begins behind the draws that found these."""
        self._learn([self._new], cluster)

    def _learn(self, found: list[dict[str, str]], cluster: Cluster) -> None:
        known = len(self.reasons)
        for reasons in found:
            self.reasons |= reasons
        self._new = {}
        if len(self.reasons) > known and cluster.main:
            text = io.StringIO()
            csv.writer(text).writerows([("id", "reason"), *sorted(self.reasons.items())])
            with contextlib.suppress(OSError):  # a full disk: the list is whole again with the next one found
                write_whole(self.path, text.getvalue().encode())
            log.warning("%d broken training images so far, replaced; see %s", len(self.reasons), self.path)
