# SPDX-License-Identifier: Apache-2.0
"""Samples of feature_moments: what the tests add and what the benchmark times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Size = Literal["tiny", "edge", "model"]


@dataclass(frozen=True)
class Sample:
    """A batch of features that is added to sums of earlier ones.

    Args:
        name: for the test's name and the benchmark's table.
        rows: N.
        width: F.
        shifted: there is a shift, near the mean.
        mean: of every feature; their spread is 1.
    """

    name: str
    rows: int
    width: int
    shifted: bool = True
    mean: float = 0.5

    def arguments(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of `feature_moments`, the same for every call."""
        generator = torch.Generator().manual_seed(seed)
        n, f = self.rows, self.width

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        out: dict[str, Any] = {
            "features": (normal(n, f) + self.mean).to(device=device, dtype=dtype),
            "total": normal(f).to(device),
            "second": normal(f, f).to(device),
            "shift": None,
        }
        if self.shifted:
            out["shift"] = (normal(f) * 0.1 + self.mean).to(device)
        return out


def samples(size: Size) -> list[Sample]:
    """The table.

    Args:
        size: ``tiny``: each option once. ``edge``: sizes around every border of the kernels.
            ``model``: the feature vectors of our extractors, in a batch and in a full buffer.
    """
    if size == "tiny":
        return [
            Sample("plain", 7, 5, shifted=False),
            Sample("shifted", 7, 5),
            Sample("far-mean", 40, 6, mean=1000.0),
        ]
    if size == "edge":
        # Rows: 16 are a step of the CUDA kernel, 256 a chunk of the CPU's. Features: 4, 12 and 24
        # make a panel of the three instruction sets, 64 a tile of CUDA, 192 a block of the CPU.
        widths = (1, 3, 4, 8, 11, 12, 13, 24, 25, 63, 64, 65, 191, 192, 193, 389)
        rows = (1, 2, 15, 16, 17, 255, 256, 257, 600)
        return [
            Sample("no-rows", 0, 5),
            Sample("no-features", 5, 0),
            *(Sample(f"width-{width}", 19, width) for width in widths),
            *(Sample(f"rows-{n}", n, 29) for n in rows),
        ]
    return [
        Sample("lenet-120", 1024, 120),
        Sample("inception-2048-batch", 50, 2048),
        Sample("inception-2048", 1024, 2048),
    ]


@dataclass(frozen=True)
class Refusal:
    """One bad argument, and the message it must give.

    Args:
        name: for the test's name.
        spoil: changes good arguments into bad ones.
        message: regular expression that the message matches.
    """

    name: str
    spoil: Callable[[dict[str, Any]], object]
    message: str


def _put(argument: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], object]:
    return lambda arguments: arguments.update({argument: change(arguments[argument])})


#: To be applied to the sample "shifted" of the size tiny, on the CPU.
REFUSALS = (
    Refusal(
        "features-dtype",
        _put("features", lambda x: x.int()),
        r"feature_moments: features must be float16, bfloat16, float32 or float64, got int32",
    ),
    Refusal(
        "features-flat",
        _put("features", lambda x: x[0]),
        r"features must have shape \[N, F\], got float32 \[5\]",
    ),
    Refusal(
        "features-with-gaps",
        _put("features", lambda x: torch.cat([x, x], 1)[:, ::2]),
        r"features must be contiguous, got float32 \[7, 5\] with other strides",
    ),
    Refusal(
        "features-transposed",
        _put("features", lambda x: x.T.contiguous().T),
        r"features must be contiguous, got float32 \[7, 5\] with other strides",
    ),
    Refusal(
        "total-dtype",
        _put("total", lambda x: x.float()),
        r"total must be float64 \[5\] on cpu, got float32 \[5\]",
    ),
    Refusal(
        "total-shape",
        _put("total", lambda x: x[:4]),
        r"total must be float64 \[5\] on cpu, got float64 \[4\]",
    ),
    Refusal(
        "total-with-gaps",
        _put("total", lambda x: torch.cat([x, x])[::2]),
        r"total must be contiguous",
    ),
    Refusal(
        "second-dtype",
        _put("second", lambda x: x.float()),
        r"second must be float64 \[5, 5\] on cpu, got float32 \[5, 5\]",
    ),
    Refusal(
        "second-shape",
        _put("second", lambda x: x[:, :4].contiguous()),
        r"second must be float64 \[5, 5\] on cpu, got float64 \[5, 4\]",
    ),
    Refusal(
        "second-flat",
        _put("second", lambda x: x[0].clone()),
        r"second must be float64 \[5, 5\] on cpu, got float64 \[5\]",
    ),
    Refusal(
        "second-transposed",
        _put("second", lambda x: x.T),
        r"second must be contiguous",
    ),
    Refusal(
        "shift-dtype",
        _put("shift", lambda x: x.float()),
        r"shift must be float64 \[5\] on cpu, got float32 \[5\]",
    ),
    Refusal(
        "shift-shape",
        _put("shift", lambda x: x[None]),
        r"shift must be float64 \[5\] on cpu, got float64 \[1, 5\]",
    ),
)
