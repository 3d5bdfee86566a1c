# SPDX-License-Identifier: Apache-2.0
"""masked_adam against torch's Adam between two multiplications by the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import OURS, Candidate, Case
from gansparse.optim import MaskedAdam
from gansparse.testing.samples.masked_adam import Sample, samples

SPARSITIES = (0.0, 0.5, 0.75, 0.9)
# Parameter, gradient and two moments read, all but the gradient written, one byte of mask.
BYTES_MASKED = 29
BYTES_PLAIN = 28


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """Every model at every sparsity, and without masks at all: the cost of masking nothing."""
    for sample in samples("model"):
        weights = sum(torch.Size(shape).numel() for shape in sample.shapes)
        for count in threads if device == "cpu" else [1]:
            case = partial(Case, "masked_adam", sample.name, threads=count, device=device)
            for sparsity in SPARSITIES:
                yield case(
                    partial(masked, sample, sparsity, device),
                    sparsity=sparsity,
                    moved_bytes=BYTES_MASKED * weights,
                )
            yield case(partial(unmasked, sample, device), moved_bytes=BYTES_PLAIN * weights)


def masked(sample: Sample, sparsity: float, device: str) -> dict[str, Candidate]:
    generator = torch.Generator().manual_seed(0)
    keeps = [torch.rand(shape, generator=generator) >= sparsity for shape in sample.shapes]
    ours = parameters(sample, device)
    masks = {p: keep.to(device) for p, keep in zip(ours, keeps, strict=True)}
    multiply = multiply_each if device == "cpu" else torch._foreach_mul_  # whichever is faster
    return {
        OURS: MaskedAdam(ours, masks=masks).step,
        "torch fused + 2 mul": between_masks(sample, keeps, device, multiply, fused=True),
        "torch foreach + 2 mul": between_masks(
            sample, keeps, device, torch._foreach_mul_, foreach=True
        ),
    }


def unmasked(sample: Sample, device: str) -> dict[str, Candidate]:
    return {
        OURS: MaskedAdam(parameters(sample, device)).step,
        "torch fused": torch.optim.Adam(parameters(sample, device), fused=True).step,
        "torch foreach": torch.optim.Adam(parameters(sample, device), foreach=True).step,
    }


def parameters(sample: Sample, device: str) -> list[nn.Parameter]:
    """Parameters with gradients, the same for every candidate."""
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, device=device)) for shape in sample.shapes]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def between_masks(
    sample: Sample,
    keeps: list[Tensor],
    device: str,
    multiply: Callable[[list[Tensor], list[Tensor]], Any],
    **options: bool,
) -> Candidate:
    """What one writes without this library: gradient times mask, step, weight times mask."""
    params = parameters(sample, device)
    grads = [p.grad for p in params]
    masks = [keep.to(device, torch.float32) for keep in keeps]
    optimizer = torch.optim.Adam(params, **options)

    @torch.no_grad()
    def step() -> None:
        multiply(grads, masks)
        optimizer.step()
        multiply(params, masks)

    return step


def multiply_each(tensors: list[Tensor], masks: list[Tensor]) -> None:
    for tensor, mask in zip(tensors, masks, strict=True):
        tensor.mul_(mask)
