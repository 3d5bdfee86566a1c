# SPDX-License-Identifier: Apache-2.0
"""Times that can be compared: candidates take turns in one run.

Every round times each candidate once, in an order that rotates, so that whatever slows the machine
down slows all of them. What counts are the ratios within a round.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

L2_FLUSH_BYTES = 1 << 30
FLUSHES = 4
LEAST_ROUNDS = 3
TURN, WARM_TURN = 1e-3, 20e-3  # seconds that fast candidates are repeated for

Candidate = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """Seconds a round, in the order of the rounds, by candidate."""

    seconds: dict[str, list[float]]

    def median(self, candidate: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[candidate])

    def spread(self, candidate: str) -> float:
        """Interquartile range over the median."""
        low, _, high = statistics.quantiles(self.seconds[candidate], n=4)
        return (high - low) / self.median(candidate)

    def ratio(self, candidate: str, to: str) -> tuple[float, float]:
        """How many times ``to``'s time it took: median of the rounds, interquartile range."""
        pairs = zip(self.seconds[candidate], self.seconds[to], strict=True)
        low, middle, high = statistics.quantiles([one / other for one, other in pairs], n=4)
        return middle, high - low


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many of torch's CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleave(
    candidates: Mapping[str, Candidate],
    rounds: int,
    device: str = "cpu",
    *,
    warm_up: int = 2,
    pause: float = 0.0,
    seconds: float = math.inf,
    warm: bool = False,
) -> Measurement:
    """Time the candidates in turns; fast ones are repeated within a turn to last 1 ms.

    A CPU candidate finds the caches as the one before it left them, unless ``warm``.

    Args:
        candidates: what to run, by name.
        rounds: turns of each.
        device: ``cpu``, or ``cuda``: events, and a cold L2 in every call.
        warm_up: calls of each before the clock runs; but one of those that take a second.
        pause: seconds before each turn, where candidates have threads of their own: those go on
            spinning for a while, and would take time from whoever is next. Then the candidate runs
            for a while untimed, until its own threads are awake and have a core each.
        seconds: after these no further round begins, but three there are at least.
        warm: each turn lasts 20 ms, after one call that is not timed: the caches hold as much of
            the candidate's own numbers as they can.

    Example:
        >>> interleave({"a": lambda: None, "b": lambda: sum(range(9999))}, 5).ratio("b", "a")[0] > 1
        True
    """
    timer = _cuda_seconds if device == "cuda" else _cpu_seconds
    turn = WARM_TURN if warm else TURN
    repeats = {}
    for name, run in candidates.items():
        begin = time.monotonic()
        for _ in range(warm_up):
            run()
            if time.monotonic() - begin > 1.0:
                break
        repeats[name] = max(1, round(turn / max(timer(run, 1), 1e-7)))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    end = time.monotonic() + seconds
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.monotonic() > end:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            if pause:
                time.sleep(pause)
                _settle(candidates[name])
            elif warm:
                candidates[name]()
            found[name].append(timer(candidates[name], repeats[name]))
    return Measurement(found)


def _settle(run: Candidate, seconds: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while True:
        run()
        if time.monotonic() > end:
            return


def _cpu_seconds(run: Candidate, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _cuda_seconds(run: Candidate, repeats: int) -> float:
    """Each call with a cold L2: the flush lies outside the events.

    So often that it takes the device longer (1 ms on an H200) than the CPU takes to send off a call
    of one op, an optimizer's step of many tensors say: events time kernels.
    """
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    total = 0.0
    for _ in range(repeats):
        for _ in range(FLUSHES):
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end) * 1e-3
    return total / repeats


# ---- What the machine can do ---------------------------------------------------------------------
# Each gives candidates with the work that they do, in bytes read and written or in flops.


def memory_limits(
    device: str = "cpu", items: int | None = None
) -> dict[str, tuple[Candidate, int]]:
    """A copy, and an addition in place, far larger than the caches.

    On a CPU the copy also reads what it overwrites, which is not counted; the addition writes what
    it has read, as an optimizer does, and is the nearer limit for one.
    """
    items = items or (64 << 20 if device == "cpu" else 256 << 20)
    x, y = (torch.rand(items, device=device) for _ in range(2))
    return {"copy": (lambda: x.copy_(y), 2 * x.nbytes), "add": (lambda: x.add_(y), 3 * x.nbytes)}


def arithmetic_limits(
    device: str = "cpu", dtype: torch.dtype = torch.float32, size: int | None = None
) -> dict[str, tuple[Candidate, int]]:
    """What comes nearest to the multiply-add peak in torch itself.

    A square matrix product and, in float32, a convolution 3x3 of 256 channels; on a CPU two
    libraries compute them. The numbers are random: on ones a GPU draws less power, and is faster.
    """
    size = size or (1536 if device == "cpu" else 8192 if dtype.itemsize == 2 else 4096)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    limits: dict[str, tuple[Candidate, int]] = {
        "matmul": (lambda: torch.mm(a, b, out=out), 2 * size**3)
    }
    if dtype == torch.float32:
        batch = 8 if device == "cpu" else 64
        x = torch.randn(batch, 256, 32, 32, device=device).to(memory_format=torch.channels_last)
        w = torch.randn(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
        flops = 2 * 9 * 256 * x.numel()
        limits["conv"] = (lambda: F.conv2d(x, w, padding=1), flops)
    return limits
