"""Loader processes: forked once, while the program has no thread, and kept for as long as it needs images.

A process that is forked beside a thread inherits whatever lock or pipe the thread is using at that moment: W&B, which
starts its service in a thread, once waited for the end of a run because loader processes held a pipe of its.
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

tqdm.monitor_interval = 0  # of datasets' and downloads' bars, too: its monitor is a thread that never ends
Work = Callable[[Any], Any]
JOIN_SECONDS = 5.0  # for the kernel to end a killed process; one that waits for a dead disk may take for ever


class WorkerDied(Exception):
    """A process ended without being asked to: killed, or out of memory. ``task``: what it had been given."""

    def __init__(self, pid: int, code: int | None, task: Any) -> None:
        self.pid, self.code, self.task = pid, code, task
        super().__init__(f"loader process {pid} ended unexpectedly ({_status(code)})")


class Workers:
    """``count`` processes that do ``work(task)``; each takes its tasks in order.

    Tasks and answers cross a socket each: keep them small. The processes ignore the signals that a run handles, which
    reach a whole process group: they leave when :meth:`close` ends them or when this process has ended.
    """

    def __init__(self, count: int, work: Work) -> None:
        context = multiprocessing.get_context("fork")
        self._links: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._asked: list[deque[tuple[int, Any]]] = [deque() for _ in range(count)]
        self._answers: dict[int, tuple[Any, Exception | None]] = {}
        self._dropped: set[int] = set()
        self._tickets = 0
        # also where nobody closes: Python's own end of daemons, which this comes before, is SIGTERM and a wait for them
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
                "use fewer --data.workers (--workers of other commands)"
            ) from error

    def _start(self, context: ForkContext, work: Work) -> None:
        ours, theirs = context.Pipe()
        self._links.append(ours)
        process = context.Process(target=_serve, args=(work, theirs, tuple(self._links)), daemon=True)
        process.start()
        theirs.close()  # the end of the process is then the end of the link
        self._processes.append(process)

    def __len__(self) -> int:
        return len(self._links)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def ask(self, worker: int, task: Any) -> int:
        """Give a process a task; the number is what :meth:`answer` wants."""
        self._tickets += 1
        self._asked[worker].append((self._tickets, task))
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died, which its answer says
            self._links[worker].send((self._tickets, task))
        return self._tickets

    def answer(self, worker: int, ticket: int) -> Any:
        """Wait for the answer to a task.

        DataError as the work raised it, RuntimeError for any other exception in it, WorkerDied.
        """
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
        """Nobody will ask for this answer."""
        if self._answers.pop(ticket, None) is None:
            self._dropped.add(ticket)

    def close(self) -> None:
        """End the processes at once: they have nothing to lose."""
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
    """Answers in the order of ``tasks``, from ``count`` processes of their own; 0 works in this one."""
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
    """The life of a process: answer until the link ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for other in others:  # or this process would keep them open when their owner has ended
        other.close()
    torch.set_num_threads(1)
    gc.freeze()  # a search of what was inherited would copy its pages
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
    """As a RuntimeError, which every process can read; with the traceback of this one."""
    kind: type[Exception] = MemoryError if out_of_memory(error) else RuntimeError
    sent = kind(f"{type(error).__name__} in a loader process: {error}")
    sent.add_note("".join(traceback.format_exception(error)))
    return sent


def _status(code: int | None) -> str:
    if code is None:
        return "it does not answer"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
