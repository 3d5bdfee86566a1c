# SPDX-License-Identifier: Apache-2.0
"""Progress with time left: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_SECONDS = 15.0


class ProgressBars:
    """One bar per piece of work; use as a context manager.

    Args:
        console: where to draw; default: standard error, so that results can be piped.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._label, self._total, self._done = "", 0, 0
        self._began = self._told = time.monotonic()

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, label: str, total: int) -> None:
        """A piece of work of ``total`` steps begins."""
        self._label, self._total, self._done = label, total, 0
        self._began = self._told = time.monotonic()
        self._task = self._bars.add_task(label, total=total)
        if not self.console.is_terminal:
            self.console.print(f"{label}: 0/{total}", highlight=False)

    def advance(self, done: int) -> None:
        """``done`` of its steps are done."""
        if self._task is not None:
            self._bars.update(self._task, completed=done)
        now = time.monotonic()
        finished = done >= self._total
        due = now - self._told >= LINE_EVERY_SECONDS or finished
        if not self.console.is_terminal and due and done > self._done:
            left = (now - self._began) / max(done, 1) * (self._total - done)
            text = (
                f"{self._label}: {done}/{self._total}, {now - self._began:.0f} s, {left:.0f} s left"
            )
            self.console.print(text, highlight=False)
            self._told, self._done = now, done
