"""Loader processes: forked once, before the program has a thread, and kept as long as it needs images.

A process forked beside a thread inherits the locks and pipes in use at that moment: W&B, which starts its service in a
thread, once hung at the end of a run because loader processes held one of its pipes.
"""

import gc
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from multiprocessing.util import Finalize
from typing import Any

import torch
from tqdm import tqdm

from cls.runtime.exit import DataError, out_of_memory
from cls.runtime.signals import SIGNALS

tqdm.monitor_interval = 0  # the monitor of progress bars (datasets, downloads) is a thread that never ends
Work = Callable[[Any], Any]
JOIN_SECONDS = 5.0  # a killed process that waits for a dead disk may never end
FEWER = "fewer --data.workers (--workers of other commands)"


class WorkerDied(Exception):
    """A process ended unexpectedly: killed, or out of memory. ``task``: its current task."""

    def __init__(self, pid: int, code: int | None, task: Any) -> None:
        self.pid, self.code, self.task = pid, code, task
        super().__init__(f"loader process {pid} ended unexpectedly ({_status(code)})")


class Workers:
    """``count`` processes that do ``work(task)``, each its tasks in order.

    Tasks and answers cross a socket: keep them small. The processes ignore the signals that a run handles, which are
    sent to the whole process group: they end at :meth:`close`, or with this process.
    """

    def __init__(self, count: int, work: Work) -> None:
        context = multiprocessing.get_context("fork")
        self._links: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._asked: list[deque[tuple[int, Any]]] = [deque() for _ in range(count)]
        self._answers: dict[int, tuple[Any, Exception | None]] = {}
        self._dropped: set[int] = set()
        self._tickets = 0
        # if nobody closes: runs before Python's own end of daemons, which sends SIGTERM and waits
        self._end = Finalize(self, _end, (self._links, self._processes), exitpriority=10)
        if multiprocessing.current_process().daemon:
            raise ValueError("data.workers: a daemonic process cannot have loader processes: use 0 workers here")
        try:
            for _ in range(count):
                self._start(context, work)
        except OSError as error:  # no more processes, memory or descriptors
            self.close()
            raise ValueError(
                f"data.workers: process {len(self._processes) + 1} of {count} could not be started ({error.strerror}): "
                f"use {FEWER}"
            ) from error

    def _start(self, context: ForkContext, work: Work) -> None:
        ours, theirs = context.Pipe()
        self._links.append(ours)
        process = context.Process(target=_serve, args=(work, theirs, tuple(self._links)), daemon=True)
        process.start()
        theirs.close()  # the link then ends with the process
        self._processes.append(process)

    def __len__(self) -> int:
        return len(self._links)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def ask(self, worker: int, task: Any) -> int:
        """Give a process a task; returns a ticket for :meth:`answer`."""
        self._tickets += 1
        self._asked[worker].append((self._tickets, task))
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: answer() raises
            self._links[worker].send((self._tickets, task))
        return self._tickets

    def answer(self, worker: int, ticket: int) -> Any:
        """Wait for the answer to a task; DataError as raised by the work, RuntimeError for others, WorkerDied."""
        while ticket not in self._answers:
            try:
                number, value, error = self._links[worker].recv()
            except (EOFError, OSError):  # OSError: it ended in the middle of an answer
                raise self._died(worker) from None
            self._asked[worker].popleft()
            if number not in self._dropped:
                self._answers[number] = value, error
            self._dropped.discard(number)
        value, error = self._answers.pop(ticket)
        if error is not None:
            raise error
        return value

    def drop(self, ticket: int) -> None:
        """Discard this answer."""
        if self._answers.pop(ticket, None) is None:
            self._dropped.add(ticket)

    def close(self) -> None:
        """Kill the processes: they have no state to save."""
        self._end()

    def _died(self, worker: int) -> WorkerDied:
        process = self._processes[worker]
        process.join(JOIN_SECONDS)
        return WorkerDied(process.pid or 0, process.exitcode, self._asked[worker][0][1])


def _end(links: list[Connection], processes: list[multiprocessing.process.BaseProcess]) -> None:
    for link in links:
        link.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join(JOIN_SECONDS)


def in_order(work: Work, tasks: Iterable[Any], count: int, ahead: int = 2) -> Iterator[Any]:
    """Answers in the order of ``tasks``, from ``count`` new processes; with 0, from this one."""
    if not count:
        yield from map(work, tasks)
        return
    workers, wanted = Workers(count, work), iter(tasks)
    first = enumerate(islice(wanted, ahead * count))
    pending = deque((turn % count, workers.ask(turn % count, task)) for turn, task in first)
    try:
        while pending:
            worker, ticket = pending.popleft()
            answer = workers.answer(worker, ticket)
            pending.extend((worker, workers.ask(worker, task)) for task in islice(wanted, 1))
            yield answer
    finally:
        workers.close()


def _serve(work: Work, link: Connection, others: tuple[Connection, ...]) -> None:
    """Runs in a loader process: answer until the link ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for other in others:  # inherited ends would keep the links open after their owner has ended
        other.close()
    torch.set_num_threads(1)
    gc.freeze()  # a collection would copy the inherited pages
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, task = link.recv()
            link.send((number, *_attempt(work, task)))


def _attempt(work: Work, task: Any) -> tuple[Any, Exception | None]:
    try:
        return work(task), None
    except DataError as error:
        return None, error
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """As a RuntimeError, which every process can unpickle, with this one's traceback."""
    kind: type[Exception] = MemoryError if out_of_memory(error) else RuntimeError
    sent = kind(f"{type(error).__name__} in a loader process: {error}")
    sent.add_note("".join(traceback.format_exception(error)))
    return sent


def _status(code: int | None) -> str:
    if code is None:
        return "it does not answer"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
