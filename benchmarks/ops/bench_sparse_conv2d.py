# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_conv_transpose2d against torch's dense convolution, in both layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.harness import OURS, Candidate, Case
from gansparse.ops import sparse_conv2d, sparse_conv_transpose2d
from gansparse.testing.samples import sparse_conv_transpose2d as transposed
from gansparse.testing.samples.sparse_conv2d import Sample, samples

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9)
PATTERNS = {"element": 1, "vector-4": 4, "vector-16": 16}


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """Every layer with every pattern at every sparsity."""
    if device != "cpu":
        return
    for sample in samples("model") + transposed.samples("model"):
        for pattern, vector_size in PATTERNS.items():
            for sparsity in SPARSITIES:
                layer = replace(sample, vector_size=vector_size, sparsity=sparsity)
                for count in threads:
                    yield Case(
                        "sparse_conv2d",
                        f"{sample.name} {pattern}",
                        partial(candidates, layer),
                        threads=count,
                        sparsity=sparsity,
                        flops=flops(layer),
                    )


def candidates(sample: Sample) -> dict[str, Candidate]:
    """One layer with its bias; torch's also with input and weight in channels_last."""
    arguments, weight = sample.arguments(), sample.dense()
    input, bias = arguments["input"], arguments["bias"]
    run = sparse_conv_transpose2d if sample.transposed else sparse_conv2d
    last = [x.to(memory_format=torch.channels_last) for x in (input, weight)]

    @torch.inference_mode()
    def ours() -> None:
        run(**arguments)

    @torch.inference_mode()
    def torchs(input: torch.Tensor, weight: torch.Tensor) -> None:
        sample.convolve(input, weight, bias)

    return {
        OURS: ours,
        "torch dense": partial(torchs, input, weight),
        "torch dense channels_last": partial(torchs, *last),
    }


def flops(sample: Sample) -> int:
    """Of the weights that stayed. Each meets every output pixel, transposed: every input pixel."""
    input = torch.empty(sample.shape, device="meta")
    weight = sample.dense()
    pixels = input if sample.transposed else sample.convolve(input, weight.to("meta"))
    return 2 * int((weight != 0).sum()) * sample.shape[0] * pixels[0, 0].numel()
