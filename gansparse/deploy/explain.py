# SPDX-License-Identifier: Apache-2.0
"""Which layer of a compiled generator runs how, and why."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table

from gansparse.deploy.plan import Row


@dataclass
class Explanation:
    """A table for one shape of input: ``print`` it, or give it to rich.

    Args:
        shape: of the inputs.
        rows: the layers; none where the module runs as it was.
        verdict: what runs, and why.
        before: milliseconds of the module as it was; None where it was not measured.
        after: milliseconds of the plan.
        whole: submodules that run as they were → why.
        notes: what else was decided.
    """

    shape: str
    rows: list[Row] = field(default_factory=list)
    verdict: str = ""
    before: float | None = None
    after: float | None = None
    whole: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def headline(self, threads: int) -> str:
        """All of it in one line, where another shape has the table."""
        each = f"{self.shape}, {threads} thread{'s' if threads > 1 else ''}: {self.verdict}"
        return each + ("" if self.before is None else f", {self._times()}")

    def _times(self) -> str:
        if self.before is None or self.after is None:
            return ""
        ratio = self.before / self.after
        return f"before {self.before:.2f} ms, after {self.after:.2f} ms: {ratio:.2f}x"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = ("layer", "shape", "zeros", "runs on", "ms", "others, ms", "with it", "why")
        table = Table(*names, title=f"input {self.shape}")
        for row in self.rows:
            others = sorted((ms, name) for name, ms in row.times.items() if name != row.kernel)
            table.add_row(
                row.layer,
                row.shape,
                "" if row.sparsity is None else f"{row.sparsity:.0%}",
                row.kernel,
                f"{row.times[row.kernel]:.3f}" if row.times.get(row.kernel) else "",
                ", ".join(f"{name} {ms:.3f}" for ms, name in others),
                ", ".join(row.fused),
                row.why,
            )
        lines = [] if self.rows else [f"input {self.shape}"]
        lines += [f"{name} runs as it was: {reason}" for name, reason in self.whole.items()]
        lines += [*self.notes, self.verdict]
        if self.before is not None and self.after is not None:
            lines.append(self._times())
        yield Group(*([table] if self.rows else []), *lines)

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=200).print(self, markup=False)
        return text.getvalue().rstrip()
