# SPDX-License-Identifier: Apache-2.0
"""feature_moments against float64 BLAS, and FeatureMoments against the metric libraries' states."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import OURS, Candidate, Case
from benchmarks.peers import (
    draw,
    on_as_many_threads,
    torch_fidelity_fid,
    torchmetrics_fid,
    usable,
)
from gansparse.metrics import FeatureMoments
from gansparse.ops import feature_moments
from gansparse.testing.samples.feature_moments import Sample, samples

BATCH = 50
BATCHES = 21  # 1050 rows: one full buffer of FeatureMoments a turn
TRIANGLE_STRIP = 256
WHOLE_SET = Sample("inception-50k", 50_000, 2048)  # an FID's pictures, minutes on a CPU


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """The op on every model sample, then whole updates at the batch size people use."""
    for count in threads if device == "cpu" else [1]:
        case = partial(Case, "feature_moments", threads=count, device=device, dtype=torch.float64)
        whole = [] if device == "cpu" else [WHOLE_SET]
        for sample in samples("model") + whole:
            yield case(
                sample.name,
                partial(sums, sample, device),
                flops=sample.rows * sample.width**2,
            )
        for width in (120, 2048):
            yield case(
                f"updates-{BATCH}x{width}",
                partial(updates, width, device),
                flops=BATCH * BATCHES * width**2,
                errors=partial(errors_of_updates, width) if device == "cpu" else None,
            )


def sums(sample: Sample, device: str) -> dict[str, Candidate]:
    """One call, and the two ways to write it with torch: half the product, or all of it."""
    ours, half, whole = (sample.arguments(device) for _ in range(3))

    def strips(features: Tensor, total: Tensor, second: Tensor, shift: Tensor) -> None:
        d = features.double() - shift
        total.add_(d.sum(0))
        for i in range(0, sample.width, TRIANGLE_STRIP):
            second[i:, i : i + TRIANGLE_STRIP].addmm_(d[:, i:].T, d[:, i : i + TRIANGLE_STRIP])

    def product(features: Tensor, total: Tensor, second: Tensor, shift: Tensor) -> None:
        d = features.double() - shift
        total.add_(d.sum(0))
        second.addmm_(d.T, d)

    return {
        OURS: lambda: feature_moments(**ours),
        "torch half addmm": lambda: strips(**half),
        "torch addmm": lambda: product(**whole),
    }


def updates(width: int, device: str) -> dict[str, Candidate]:
    """1050 rows in batches of 50; torch-fidelity has no update and takes all rows at once."""
    rows = draw(BATCH * BATCHES, width, seed=0).to(device)
    batches = rows.split(BATCH)
    ours = FeatureMoments(width)

    def update_ours() -> None:
        for batch in batches:
            ours.update(batch)

    candidates: dict[str, Candidate] = {OURS: update_ours}
    if usable("torchmetrics.image.fid"):
        theirs = torchmetrics_fid(width).to(device)

        def update_theirs() -> None:
            for batch in batches:
                theirs.update(batch, real=True)

        candidates["torchmetrics"] = update_theirs
    if device == "cpu":
        fidelity = torch_fidelity_fid()
        candidates["torch-fidelity (at once)"] = lambda: on_as_many_threads(
            lambda: fidelity.fid_features_to_statistics(rows)
        )
    return candidates


def errors_of_updates(width: int) -> dict[str, float]:
    """Largest error of a covariance, as a share of its largest entry; truth: two float64 passes."""
    rows = draw(BATCH * BATCHES, width, seed=0)
    want = torch.cov(rows.double().T)
    ours, theirs = FeatureMoments(width), torchmetrics_fid(width)
    for batch in rows.split(BATCH):
        ours.update(batch)
        theirs.update(batch, real=True)
    count = len(rows)
    mean = theirs.real_features_sum / count
    cov = (theirs.real_features_cov_sum - count * torch.outer(mean, mean)) / (count - 1)
    fidelity = torch.as_tensor(torch_fidelity_fid().fid_features_to_statistics(rows)["sigma"])
    found = {OURS: ours.cov, "torchmetrics": cov, "torch-fidelity (at once)": fidelity}
    return {name: float((got - want).abs().max() / want.max()) for name, got in found.items()}
