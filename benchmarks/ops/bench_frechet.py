# SPDX-License-Identifier: Apache-2.0
"""The Fréchet distance against the formulas of torch-fidelity and torchmetrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import OURS, Candidate, Case
from benchmarks.peers import (
    draw,
    on_as_many_threads,
    torch_fidelity_fid,
    torchmetrics_distance,
    usable,
)
from gansparse.metrics import frechet_distance


@dataclass(frozen=True)
class Pair:
    """Two sets of features.

    Args:
        name: of the case.
        rows: N of both; no more than the width makes singular covariances.
        width: F.
        decay: the spectrum of the covariances is i^-decay.
    """

    name: str
    rows: int
    width: int
    decay: float

    @functools.lru_cache(maxsize=1)  # noqa: B019  (pairs live as long as the program)
    def features(self) -> tuple[Tensor, Tensor]:
        x, y = (draw(self.rows, self.width, seed, self.decay).double() for seed in (0, 1))
        return x, 1.05 * y + 0.01

    def statistics(self, device: str) -> tuple[Tensor, ...]:
        """Mean and covariance of both, float64."""
        sets = self.features()
        return tuple(s.to(device) for x in sets for s in (x.mean(0), torch.cov(x.T)))


PAIRS = (
    Pair("flat-120", 1000, 120, 0.0),
    Pair("flat-2048", 6144, 2048, 0.0),
    Pair("decaying-2048", 6144, 2048, 1.0),
    Pair("steep-2048", 6144, 2048, 3.0),  # ill-conditioned: the rank-revealing form
    Pair("singular-2048", 1000, 2048, 1.0),
)


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """Every pair; flops are those of the fast form: factor, symmetric product, eigenvalues."""
    for pair in PAIRS:
        for count in threads if device == "cpu" else [1]:
            yield Case(
                "frechet",
                pair.name,
                partial(distances, pair, device),
                threads=count,
                flops=8 * pair.width**3 // 3,
                device=device,
                dtype=torch.float64,
                errors=partial(errors, pair, device),
            )


def distances(pair: Pair, device: str) -> dict[str, Candidate]:
    """All from the same statistics. torch-fidelity computes on the CPU only."""
    return {name: partial(run, *arguments) for name, (run, arguments) in _line_up(pair, device)}


def errors(pair: Pair, device: str) -> dict[str, float]:
    """Relative to a distance from the features themselves: R factors, no covariance, no squares."""
    x, y = (z.to(device) for z in pair.features())
    centred = [(z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    r = [torch.linalg.qr(z, mode="r")[1] for z in centred]
    overlap = torch.linalg.svdvals(r[0] @ r[1].T).sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    want = float(gap + sum(z.square().sum() for z in centred) - 2 * overlap)
    found = {name: float(run(*arguments)) for name, (run, arguments) in _line_up(pair, device)}
    return {name: abs(got - want) / want for name, got in found.items()}


def _line_up(pair: Pair, device: str) -> list[tuple[str, tuple[Callable[..., Any], Any]]]:
    """Candidates with their functions and arguments."""
    tensors = pair.statistics(device)
    line_up: list[tuple[str, tuple[Callable[..., Any], Any]]] = [
        (OURS, (frechet_distance, tensors)),
    ]
    if usable("torchmetrics.image.fid"):
        line_up.append(("torchmetrics", (torchmetrics_distance(), tensors)))
    if device == "cpu":
        mean1, cov1, mean2, cov2 = (tensor.numpy() for tensor in tensors)
        two = ({"mu": mean1, "sigma": cov1}, {"mu": mean2, "sigma": cov2})
        line_up.append(("torch-fidelity", (partial(_fidelity, *two), ())))
    return line_up


def _fidelity(first: dict[str, Any], second: dict[str, Any]) -> float:
    fid = torch_fidelity_fid()
    told = on_as_many_threads(lambda: fid.fid_statistics_to_metric(first, second, False))
    return float(told[fid.KEY_METRIC_FID])
