# SPDX-License-Identifier: Apache-2.0
"""Schedules: how much is pruned at which step of a compression run.

Steps count from 0, and the schedule is asked *before* the step is trained. A schedule is a pure
function of step, run length and target, so a resumed run needs nothing of it but its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gansparse.errors import InputError


class Schedule(Protocol):
    """What the pruner asks of a schedule."""

    def sparsity_at(self, step: int, total_steps: int, target: float) -> float:
        """Sparsity in force while ``step`` of ``total_steps`` is trained."""
        ...

    def is_update_step(self, step: int, total_steps: int) -> bool:
        """Whether masks are chosen anew before ``step``."""
        ...


@dataclass(frozen=True)
class OneShot:
    """Prune to the target at step 0, then train with the mask fixed.

    >>> OneShot().sparsity_at(0, 1000, 0.75)
    0.75
    """

    def sparsity_at(self, step: int, total_steps: int, target: float) -> float:
        """The target, from the first step on."""
        _check_steps(step, total_steps)
        return target

    def is_update_step(self, step: int, total_steps: int) -> bool:
        """True at step 0 only."""
        _check_steps(step, total_steps)
        return step == 0


@dataclass(frozen=True)
class AGP:
    """Automated gradual pruning: a cubic ramp, fast while weights are plenty and slow at the end.

    With the ramp's first step 0 and its last step n = ⌊end · total_steps⌋ (Zhu & Gupta 2018, eq. 1;
    the values 5 % and one half are those of Yu & Pool 2020):

        s(t) = target + (initial − target) · (1 − t / n)³

    s is held between updates, and from step n on it is the target exactly.

    Args:
        initial: sparsity at step 0; a lower target starts at the target.
        end: where the ramp ends, as a share of the run, 0 ≤ end ≤ 1.
        frequency: steps between two updates of the masks; None: as many as make 100 updates of the
            ramp (at least 1).

    Example:
        >>> agp = AGP(frequency=10)
        >>> [round(agp.sparsity_at(step, 200, 0.75), 3) for step in (0, 9, 10, 50, 99, 100, 199)]
        [0.05, 0.05, 0.24, 0.662, 0.749, 0.75, 0.75]
    """

    initial: float = 0.05
    end: float = 0.5
    frequency: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.initial < 1:
            raise InputError(f"AGP: initial must lie in [0, 1), got {self.initial!r}")
        if not 0 <= self.end <= 1:
            raise InputError(f"AGP: end must lie in [0, 1], got {self.end!r}")
        if self.frequency is not None and self.frequency < 1:
            raise InputError(f"AGP: frequency must be at least 1 step, got {self.frequency!r}")

    def sparsity_at(self, step: int, total_steps: int, target: float) -> float:
        """The cubic ramp, held between updates."""
        _check_steps(step, total_steps)
        last = self._last_step(total_steps)
        if step >= last:
            return target
        updated = step - step % self._frequency(last)
        initial = min(self.initial, target)
        return target + (initial - target) * (1 - updated / last) ** 3

    def is_update_step(self, step: int, total_steps: int) -> bool:
        """True at every ``frequency``-th step of the ramp and at its last step."""
        _check_steps(step, total_steps)
        last = self._last_step(total_steps)
        return step == last or (step < last and step % self._frequency(last) == 0)

    def _last_step(self, total_steps: int) -> int:
        # A run always trains at least one step at its target.
        return min(math.floor(self.end * total_steps), total_steps - 1)

    def _frequency(self, last: int) -> int:
        return self.frequency or max(1, last // 100)


#: Every schedule by the name that recipes and the command line use.
SCHEDULES: dict[str, Callable[[], Schedule]] = {"one-shot": OneShot, "agp": AGP}


def schedule_by_name(name: str) -> Schedule:
    """The schedule of that name, with its default settings.

    >>> schedule_by_name("agp")
    AGP(initial=0.05, end=0.5, frequency=None)
    """
    if name not in SCHEDULES:
        raise InputError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    return SCHEDULES[name]()


def _check_steps(step: int, total_steps: int) -> None:
    if total_steps < 1 or step < 0:
        raise InputError(f"step must be ≥ 0 and total_steps ≥ 1, got {step} of {total_steps}")
