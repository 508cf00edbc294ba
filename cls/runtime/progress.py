"""Progress of a long task on standard error: rate and time left, every few seconds, in a log every half minute."""

import sys
import time
from datetime import timedelta

EVERY_SECONDS, IN_A_LOG = 5.0, 30.0


class ProgressMeter:
    """Prints e.g. '300 images packed, 60 images/s, 700 left, ETA 0:00:12'; ``what`` is 'images packed'."""

    def __init__(self, left: int, what: str) -> None:
        self.left, self.what, self.done, self.bytes = left, what, 0, 0
        self.since = self.printed = time.monotonic()

    def skip(self, count: int) -> None:
        self.left -= count

    def add(self, count: int, size: int = 0) -> None:
        """``size``: their bytes, to print MB/s."""
        self.left, self.done, self.bytes = self.left - count, self.done + count, self.bytes + size
        now = time.monotonic()
        if now - self.printed >= (EVERY_SECONDS if sys.stderr.isatty() else IN_A_LOG) or not self.left:
            self.printed, seconds = now, max(now - self.since, 1e-3)
            eta = timedelta(seconds=round(self.left * seconds / self.done))
            rates = f"{self.done / seconds:.0f} {self.what.split()[0]}/s"
            rates += f", {self.bytes / seconds / 1e6:.1f} MB/s" if self.bytes else ""
            print(f"{self.done} {self.what}, {rates}, {self.left} left, ETA {eta}", file=sys.stderr, flush=True)
