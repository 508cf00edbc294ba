"""A mirror in a thread of its own, so that no network, server or slow disk holds the training up."""

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
    """Starts a mirror and does with it what it is told, in order; the first failure is warned of and is the last."""

    def __init__(self, name: str, start: Callable[[], Mirror]) -> None:
        self.name = name
        self._actions: queue.SimpleQueue[Callable[[Mirror], object] | None] = queue.SimpleQueue()
        self._said = ""
        self._failed = False
        # a daemon: one that waits for a server must not keep the process alive
        self._thread = threading.Thread(target=self._work, args=(start,), name=name, daemon=True)
        self._thread.start()

    def do(self, action: Callable[[Mirror], object]) -> None:
        """Have this done when its turn comes; never waits."""
        if not self._failed:
            self._actions.put(action)

    def finish(self, summary: Mapping[str, float], seconds: float, leave: Callable[[], bool]) -> str:
        """Let it come to its end, for at most so many seconds and until ``leave()``; gives what it says then."""

        def last(mirror: Mirror) -> None:
            self._said = mirror.finish(summary)

        self.do(last)
        self._actions.put(None)
        since = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - since < seconds and not leave():
            self._thread.join(min(0.2, seconds))
        if self._thread.is_alive():
            HANGING.append(self.name)
            waited = time.monotonic() - since
            LOG.warning("%s took longer than %.0f seconds to end; metrics.jsonl has it all", self.name, waited)
        return self._said

    def _work(self, start: Callable[[], Mirror]) -> None:
        try:
            mirror = start()
            while action := self._actions.get():
                action(mirror)
        except Exception as error:  # whatever a mirror raises
            self._failed = True
            HANGING.append(self.name)  # it was not ended: what it waits for at exit must not keep the process
            LOG.warning(
                "%s failed and is off for the rest of this process; metrics.jsonl goes on (%s: %s)",
                self.name, type(error).__name__, str(error).partition("\n")[0],
            )  # fmt: skip
