# SPDX-License-Identifier: Apache-2.0
"""mask_update against torch's ways to the same exact masks, and to one that forgets ties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import OURS, Candidate, Case
from gansparse.ops import mask_update
from gansparse.testing.samples.mask_update import Sample, samples

SHARES = (0.0, 0.5, 0.75, 0.9)
# Score and mask read three times to select, once to count ties, once to write; and the mask.
BYTES = 26


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """Every model at every sparsity, from the masks of a step before."""
    for sample in samples("model"):
        weights = sum(torch.Size(shape).numel() for shape in sample.shapes)
        for count in threads if device == "cpu" else [1]:
            for share in SHARES:
                yield Case(
                    "mask_update",
                    sample.name,
                    partial(candidates, sample, share, device),
                    threads=count,
                    sparsity=share,
                    moved_bytes=BYTES * weights,
                    device=device,
                )


def candidates(sample: Sample, share: float, device: str) -> dict[str, Candidate]:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(shape, generator=generator).to(device) for shape in sample.shapes]
    masks = [(torch.rand_like(score) >= share * 0.9).contiguous() for score in scores]
    prune = [round(share * score.numel()) for score in scores]

    def torchs(choose: Callable[[Tensor, int], Tensor]) -> Candidate:
        def update() -> None:
            for score, mask, count in zip(scores, masks, prune, strict=True):
                if count:
                    ranked = torch.where(mask, score.abs(), -1.0).flatten()
                    choose(ranked, count)

        return update

    return {
        OURS: partial(mask_update, scores, masks, prune),
        "torch kthvalue": torchs(by_threshold),
        "torch stable sort": torchs(by_sort),
    }


def by_threshold(ranked: Tensor, count: int) -> Tensor:
    """Prunes too many where scores are equal."""
    return ranked > ranked.kthvalue(count).values


def by_sort(ranked: Tensor, count: int) -> Tensor:
    kept = torch.ones_like(ranked, dtype=torch.bool)
    kept[ranked.argsort(stable=True)[:count]] = False
    return kept
