"""A tracker in a thread of its own: training waits for no network, server or slow disk."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cls.runtime.exit import HANGING
from cls.tracking.metrics_log import Mistake, Row

LOG = logging.getLogger("cls")


class Mirror(Protocol):
    def log(self, row: Row) -> None: ...
    def results(self, pictures: Mapping[str, Path], mistakes: Sequence[Mistake], model: Path) -> None: ...
    def finish(self, summary: Mapping[str, float]) -> str: ...


class BackgroundTracker:
    """Starts a mirror and calls it, in order, in a daemon thread. After its first failure, a warning, it is off."""

    def __init__(self, name: str, start: Callable[[], Mirror]) -> None:
        self.name = name
        self._actions: queue.SimpleQueue[Callable[[Mirror], object] | None] = queue.SimpleQueue()
        self._message = ""
        self._failed = False
        self._thread = threading.Thread(target=self._work, args=(start,), name=name, daemon=True)
        self._thread.start()

    def do(self, action: Callable[[Mirror], object]) -> None:
        """Queue a call; never blocks."""
        if not self._failed:
            self._actions.put(action)

    def finish(self, summary: Mapping[str, float], seconds: float, leave: Callable[[], bool]) -> str:
        """Wait for the queued calls, at most so many seconds or until ``leave()``; returns the last message."""

        def last(mirror: Mirror) -> None:
            self._message = mirror.finish(summary)

        self.do(last)
        self._actions.put(None)
        since = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < seconds and not leave():
            self._thread.join(min(0.2, seconds))
        if self._thread.is_alive():
            HANGING.append(self.name)
            waited = time.monotonic() - since
            LOG.warning("%s took longer than %.0f seconds to end; metrics.jsonl is complete", self.name, waited)
        return self._message

    def _work(self, start: Callable[[], Mirror]) -> None:
        try:
            mirror = start()
            while action := self._actions.get():
                action(mirror)
        except Exception as error:  # any kind
            self._failed = True
            HANGING.append(self.name)  # not closed: the process must not wait for it at exit
            LOG.warning(
                "%s failed and is off for the rest of this process; metrics.jsonl is still written (%s: %s)",
                self.name, type(error).__name__, str(error).partition("\n")[0],
            )  # fmt: skip
