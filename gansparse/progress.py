# SPDX-License-Identifier: Apache-2.0
"""Progress with time left: live bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

LINE_EVERY_SECONDS = 15.0


class ProgressBars:
    """Progress of one piece of work after another, or of several at a time; a context manager.

    `start` and `advance` are for one piece after another, each with a bar of its own; `lane` and
    `runs` for a comparison: the present piece of each process, and all its runs.

    Args:
        console: where to draw; default: standard error, so that results can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<40}", markup=False),  # brackets of a path are a path's
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._lanes: dict[int, Lane] = {}
        self._runs: Lane | None = None
        self._piece = self._lane()

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, label: str, total: int, found: int = 0) -> None:
        """A piece of work of ``total`` steps begins, of which some were done before."""
        self._piece = self._lane()
        self._piece.start(label, total, found)

    def advance(self, done: int) -> None:
        """``done`` of its steps are done."""
        self._piece.advance(done)

    def lane(self, number: int) -> Lane:
        """The bar of a process: a watcher for its comparison."""
        return self._lanes.setdefault(number, self._lane())

    def runs(self, done: float, total: int) -> None:
        """So many of the runs are done, shares of those under way counted."""
        if self._runs is None:
            self._runs = self._lane()
            self._runs.start("all runs", total, found=done)
        self._runs.advance(done)

    def _lane(self) -> Lane:
        return Lane(self._progress, self.console)


class Lane:
    """One bar, or one line now and then, of one piece of work after another."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._bar: TaskID | None = None
        self._label, self._total, self._found, self._ended = "", 0.0, 0.0, True
        self._began = self._told = 0.0

    def start(self, label: str, total: int, found: float = 0.0) -> None:
        """A piece of work of ``total`` steps begins, of which some were done before."""
        self._label, self._total, self._found, self._ended = label, total, found, False
        self._began = self._told = time.monotonic()
        if self._bar is None:
            self._bar = self._progress.add_task(label, total=total, left="")
        self._progress.reset(self._bar, description=label, total=total, completed=0, left="")
        if not self._console.is_terminal:
            self._console.print(f"{label}: {int(found)}/{total}", highlight=False, markup=False)

    def advance(self, done: float) -> None:
        """``done`` of its steps are done."""
        now = time.monotonic()
        left = self._left(done, now - self._began)
        if self._bar is not None:
            self._progress.update(self._bar, completed=done, left=left)
        ends = done >= self._total
        due = (now - self._told >= LINE_EVERY_SECONDS or ends) and not self._ended
        if not self._console.is_terminal and due:
            text = f"{self._label}: {int(done)}/{self._total:.0f}, {left}".rstrip(", ")
            self._console.print(text, highlight=False, markup=False)
            self._told, self._ended = now, ends

    def _left(self, done: float, seconds: float) -> str:
        if done >= self._total:
            return f"took {duration(seconds)}"
        if done <= self._found:
            return ""
        return f"{duration(seconds / (done - self._found) * (self._total - done))} left"


def duration(seconds: float | None) -> str:
    """Seconds for reading: "42 s", "3 min 20 s", "2 h 05 min".

    >>> duration(200.0)
    '3 min 20 s'
    """
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
