# SPDX-License-Identifier: Apache-2.0
"""instance_norm with what follows it against torch's ways, and on CUDA against torch.compile."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import OURS, Candidate, Case
from gansparse.ops import instance_norm, instance_norm_reference
from gansparse.testing.samples.instance_norm import Sample, moments_of, samples


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """The norms of our generators; on the CPU in float32, on CUDA in bfloat16."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for sample in samples("model"):
        elements = torch.Size(sample.shape).numel()
        for count in threads if device == "cpu" else [1]:
            yield Case(
                "instance_norm",
                sample.name,
                partial(candidates, sample, device, dtype),
                threads=count,
                moved_bytes=dtype.itemsize * elements * (4 if sample.residual else 3),
                device=device,
                dtype=dtype,
            )


def candidates(sample: Sample, device: str, dtype: torch.dtype) -> dict[str, Candidate]:
    """In inference; torch's in both layouts."""
    a = sample.arguments(device, dtype)
    affines = [None if a[name] is None else a[name].to(dtype) for name in ("weight", "bias")]

    @torch.inference_mode()
    def torchs(input: Tensor, residual: Tensor | None) -> None:
        y = F.instance_norm(input, None, None, *affines, eps=a["eps"])
        y = y if residual is None else y.add_(residual)
        if a["activation"] == "relu":
            y.relu_()

    planes, pictures = (
        tuple(None if x is None else x.contiguous(memory_format=lies)
              for x in (a["input"], a["residual"]))
        for lies in (torch.contiguous_format, torch.channels_last)
    )  # fmt: skip
    found: dict[str, Candidate] = {
        OURS: torch.inference_mode()(partial(instance_norm, **a)),
        "torch": partial(torchs, *planes),
        "torch channels_last": partial(torchs, *pictures),
    }
    if device == "cuda":
        left = {"moments": moments_of(a["input"], 32)}  # as of a convolution by tiles
        found["with moments"] = torch.inference_mode()(partial(instance_norm, **a | left))
        compiled = torch.compile(instance_norm_reference, mode="max-autotune-no-cudagraphs")
        found["torch.compile channels_last"] = torch.inference_mode()(partial(compiled, **a))
    return found
