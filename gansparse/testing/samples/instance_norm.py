# SPDX-License-Identifier: Apache-2.0
"""Samples of instance_norm: what the tests norm and what the benchmark times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gansparse.ops.sparse_conv2d import Activation

Size = Literal["tiny", "edge", "model"]


@dataclass(frozen=True)
class Sample:
    """Pictures, and what follows their norm.

    Args:
        name: for the test's name and the benchmark's table.
        shape: [N, C, H, W].
        affine: with weight and bias.
        residual: with one.
        activation: at the end.
        slopes: 0: a number; else so many of a tensor.
        mean: of all pixels, in their deviations.
        constant: every second channel has one value.
        eps: as the op has it.
        parts: of the moments that come with them; 0: none come.
    """

    name: str
    shape: tuple[int, int, int, int]
    affine: bool = False
    residual: bool = False
    activation: Activation = "none"
    slopes: int = 0
    mean: float = 0.0
    constant: bool = False
    eps: float = 1e-5
    parts: int = 0

    def arguments(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of the op, the same for every call."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def pictures() -> Tensor:
            picture = normal(*self.shape) + self.mean
            if self.constant:
                picture[:, ::2] = 3.0 + self.mean
            lies = torch.channels_last if device == "cuda" else torch.contiguous_format
            return picture.to(device=device, dtype=dtype, memory_format=lies)

        channels = self.shape[1]
        input = pictures()
        return {
            "input": input,
            "weight": normal(channels).to(device) if self.affine else None,
            "bias": normal(channels).to(device) if self.affine else None,
            "eps": self.eps,
            "residual": pictures() if self.residual else None,
            "activation": self.activation,
            "slope": normal(self.slopes).to(device) if self.slopes else 0.2,
            "moments": moments_of(input, self.parts) if self.parts else None,
        }


def moments_of(
    pictures: Tensor,  # [N, C, H, W]
    parts: int,
) -> Tensor:  # [N, P, 3, C]
    """Moments of so many parts of each picture, some of one pixel less than others, or of none."""
    found = []
    for part in pictures.double().flatten(2).tensor_split(parts, 2):
        mean = part.sum(2) / max(1, part.shape[2])
        distances = (part - mean[:, :, None]).square().sum(2)
        found.append(torch.stack([torch.full_like(mean, part.shape[2]), mean, distances], 1))
    return torch.stack(found, 1).float()


def samples(size: Size) -> list[Sample]:
    """The table; channels are multiples of 8, as the CUDA kernels want them.

    Args:
        size: ``tiny``: each option once. ``edge``: sizes around every border of the kernels.
            ``model``: the norms of our own generators.
    """
    few = (2, 16, 9, 7)
    if size == "tiny":
        return [
            Sample("plain", few),
            Sample("affine", few, affine=True),
            Sample("relu", few, affine=True, activation="relu"),
            Sample("residual", few, residual=True),
            Sample("leaky", few, activation="leaky_relu", residual=True),
            Sample("prelu", few, activation="prelu", slopes=1),
            Sample("prelu-each", few, affine=True, activation="prelu", slopes=16),
            Sample("tanh", few, activation="tanh"),
            Sample("constant", few, constant=True, affine=True),
            Sample("large-mean", few, mean=100.0),
            Sample("no-eps", few, eps=0.0),
        ]
    if size == "edge":
        # A block has 64 channels and rounds of 128 pixels, 4 a thread; a picture up to 64 tiles.
        return [
            *(Sample(f"pixels-{h}x{w}", (1, 8, h, w)) for h, w in
              ((1, 1), (1, 2), (31, 1), (3, 11), (1, 127), (16, 8), (1, 129), (23, 89))),
            *(Sample(f"channels-{c}", (1, c, 5, 5)) for c in (56, 64, 72, 200)),
            Sample("many-pictures", (130, 8, 2, 2), affine=True),
            Sample("more-than-64-rounds", (1, 8, 131, 129)),
            Sample("no-pictures", (0, 8, 4, 4)),
            Sample("no-pixels", (2, 8, 0, 4)),
        ]  # fmt: skip
    return [
        Sample("cyclegan-256@64", (16, 256, 64, 64), activation="relu"),
        Sample("cyclegan-64@256", (16, 64, 256, 256), activation="relu"),
        Sample("stargan-256@32", (16, 256, 32, 32), affine=True, residual=True),
    ]


@dataclass(frozen=True)
class Refusal:
    """One bad argument, and the message it must give.

    Args:
        name: for the test's name.
        argument: which.
        spoil: from the good one to a bad one.
        message: regular expression that the message matches.
    """

    name: str
    argument: str
    spoil: Callable[[Any], Any]
    message: str


#: To be applied to the sample "prelu-each" with a residual, on the CPU.
REFUSALS = (
    Refusal("dtype", "input", lambda x: x.double(),
            r"input must be float32 \[N, C, H, W\] on cpu, got float64"),
    Refusal("dimensions", "input", lambda x: x[0], r"input must be float32 \[N, C, H, W\] on cpu"),
    Refusal("weight", "weight", lambda x: x[1:], r"weight must be float32 \[16\] on cpu, got fl"),
    Refusal("bias", "bias", lambda x: x.half(), r"bias must be float32 \[16\] on cpu, got float16"),
    Refusal("eps", "eps", lambda x: -1.0, r"eps must be at least 0, got -1"),
    Refusal("residual", "residual", lambda x: x[:, :, 1:],
            r"residual must be float32 \[2, 16, 9, 7\] on cpu, got float32 \[2, 16, 8, 7\]"),
    Refusal("activation", "activation", lambda x: "gelu",
            r"activation must be none, relu, leaky_relu, prelu or tanh, got gelu"),
    Refusal("moments", "moments", lambda _: torch.zeros(2, 1, 3, 16),
            r"moments must be None on cpu, got float32 \[2, 1, 3, 16\]"),
    Refusal("slope", "slope", lambda x: x[:3], r"slope must be float32 \[16\] on cpu, got float32"),
)  # fmt: skip
