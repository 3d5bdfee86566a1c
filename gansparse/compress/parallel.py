# SPDX-License-Identifier: Apache-2.0
"""Several processes at the runs of one comparison: a run each at a time, on a device of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import torch

from gansparse.errors import GansparseError, InputError, TrainingError

if TYPE_CHECKING:
    from gansparse.compress.compare import Comparison, Entry, Watcher

Row = dict[str, Any]
_TOLD_EVERY = 0.2  # seconds between two messages about progress
_GRACE = 10.0  # seconds that a process has to end in


def rows_by_processes(
    make: Callable[..., Comparison],
    entries: Mapping[int, Entry],
    *,
    devices: Sequence[torch.device],
    threads: int = 0,
    watchers: Sequence[Watcher] = (),
    on_share: Callable[[float], None] | None = None,
) -> Generator[tuple[int, Row], None, None]:
    """Runs each entry in one of several processes; gives each result as it comes.

    The processes end with this one, however it ends; what they were at is resumed by the next call.

    Args:
        make: (device=, watcher=, on_share=) -> the comparison; must be picklable.
        entries: by the number that comes back with the result.
        devices: one process for each, on it.
        threads: CPU threads of each process; 0: as torch chooses.
        watchers: get told the progress of each process.
        on_share: gets the runs that are done, with the shares of those under way.

    Raises:
        InputError: ``make`` can't be pickled.
        GansparseError: what a process raised, or that one was killed.
    """
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"several processes can't share this task ({error}): give the comparison a module's "
            "function that makes it, functools.partial(load_task, ...) say, or use one process"
        ) from None
    context = multiprocessing.get_context("spawn")  # CUDA and threads don't survive a fork
    waiting = iter(entries.items())
    workers: dict[Connection, _Worker] = {}
    done = 0
    try:
        for number, device in enumerate(devices[: len(entries)]):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, make, device, threads))
            process.start()
            theirs.close()  # so that its death closes the pipe
            workers[ours] = _Worker(process, watchers[number] if number < len(watchers) else None)
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                kind, *values = _received(connection, worker)
                if kind in ("row", "ready"):
                    job = next(waiting, None)
                    connection.send(job)
                    worker.entry, worker.share = "" if job is None else job[1].name, 0.0
                    if job is None:
                        worker.process.join(_GRACE)
                        del workers[connection]
                else:
                    worker.told(kind, values)
                done += kind == "row"
                if on_share is not None:
                    on_share(done + sum(worker.share for worker in workers.values()))
                if kind == "row":
                    yield values[0], values[1]
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join(_GRACE)
            worker.process.kill()


class _Worker:
    """A process as the one that started it sees it."""

    def __init__(self, process: BaseProcess, watcher: Watcher | None) -> None:
        self.process, self.watcher = process, watcher
        self.entry, self.share = "", 0.0

    def told(self, kind: str, values: Sequence[Any]) -> None:
        """Takes a message about its progress, or raises the error that it tells of."""
        if kind == "error":
            raise values[0]
        if kind == "share":
            self.share = values[0]
        elif self.watcher is not None:
            (self.watcher.start if kind == "start" else self.watcher.advance)(*values)


def _received(connection: Connection, worker: _Worker) -> tuple[Any, ...]:
    try:
        message: tuple[Any, ...] = connection.recv()
        return message
    except (EOFError, ConnectionError):
        worker.process.join(_GRACE)
        at = f" while at {worker.entry}" if worker.entry else ""
        raise TrainingError(
            f"a process ended{at} with status {worker.process.exitcode}: killed, or out of memory? "
            "The same command goes on from its last checkpoint"
        ) from None


class _Told:
    """A watcher in a process: passes on what it is told, not too often."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._total, self._last = 0, dict.fromkeys(("advance", "share"), 0.0)

    def start(self, label: str, total: int, found: int = 0) -> None:
        """A piece of work of ``total`` steps begins, of which some were done before."""
        self._total = total
        self.connection.send(("start", label, total, found))

    def advance(self, done: int) -> None:
        """``done`` of its steps are done."""
        self._tell("advance", done, done >= self._total)

    def share(self, share: float) -> None:
        """That share of the entry is done."""
        self._tell("share", share)

    def _tell(self, kind: str, value: float, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._last[kind] >= _TOLD_EVERY:
            self._last[kind] = now
            self.connection.send((kind, value))


def _work(
    connection: Connection, make: Callable[..., Comparison], device: torch.device, threads: int
) -> None:
    """What a process does: a run after another, until there is none left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the process that started it ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that unfinished files are removed
    try:
        if threads:
            torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        told = _Told(connection)
        comparison = make(device=device, watcher=told, on_share=told.share)
        connection.send(("ready",))
        while (job := connection.recv()) is not None:
            connection.send(("row", job[0], comparison.attempt(job[1])))
    except (EOFError, ConnectionError):
        pass  # the process that started it is gone
    except GansparseError as error:
        connection.send(("error", error))
    except Exception:
        connection.send(("error", RuntimeError(traceback.format_exc())))
