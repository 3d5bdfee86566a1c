# SPDX-License-Identifier: Apache-2.0
"""Samples of mask_update: what the tests prune and what the benchmark times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gansparse.testing.samples.masked_adam import unet_shapes

Size = Literal["tiny", "edge", "model"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A list of score tensors and the options of one update.

    Args:
        name: for the test's name and the benchmark's table.
        shapes: one a tensor.
        share: how much of each tensor goes.
        pruned: how much of each was pruned before.
        levels: scores are drawn from so many values, so that many are equal; 0: from all.
        magnitude: rank by absolute values.
        monotone: what is pruned already goes first.
        channels_last: 4-dimensional tensors lie in memory as [N, H, W, C].
        mask_dtype: bool or uint8.
        odd: among the scores are NaN, infinities, both zeros and subnormals.
    """

    name: str
    shapes: tuple[Shape, ...]
    share: float = 0.75
    pruned: float = 0.5
    levels: int = 0
    magnitude: bool = True
    monotone: bool = True
    channels_last: bool = False
    mask_dtype: torch.dtype = torch.bool
    odd: bool = False

    def arguments(
        self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Any]:
        """Keyword arguments of `mask_update`, the same for every call."""
        generator = torch.Generator().manual_seed(seed)
        scores, masks = [], []
        for shape in self.shapes:
            score = torch.randn(shape, generator=generator, dtype=torch.float64)
            if self.levels:
                score = (score * self.levels / 4).round()
            if self.odd:
                strange = [torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 5e-324, 1e-40]
                score.view(-1)[: len(strange)] = torch.tensor(strange)[: score.numel()]
            mask = torch.rand(shape, generator=generator) >= self.pruned
            scores.append(self._placed(score).to(device=device, dtype=dtype))
            masks.append(self._placed(mask.to(self.mask_dtype)).to(device))
        return {
            "scores": scores,
            "masks": masks,
            "prune": [round(self.share * score.numel()) for score in scores],
            "magnitude": self.magnitude,
            "monotone": self.monotone,
        }

    def _placed(self, tensor: Tensor) -> Tensor:
        if self.channels_last and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor


_LAYERS: tuple[Shape, ...] = ((6, 5, 3, 3), (40,), (4, 6, 1, 1))


def samples(size: Size) -> list[Sample]:
    """The table.

    Args:
        size: ``tiny``: each option once. ``edge``: sizes around every border of the kernels.
            ``model``: the weights of our own generators.
    """
    if size == "tiny":
        return [
            Sample("plain", _LAYERS),
            Sample("from-dense", _LAYERS, pruned=0.0),
            Sample("not-monotone", _LAYERS, monotone=False),
            Sample("signed", _LAYERS, magnitude=False),
            Sample("signed-not-monotone", _LAYERS, magnitude=False, monotone=False),
            Sample("uint8-mask", _LAYERS, mask_dtype=torch.uint8),
            Sample("ties", _LAYERS, levels=3),
            Sample("fewer-than-pruned", _LAYERS, 0.25),
            Sample("odd", _LAYERS, 0.1, 0.0, magnitude=False, odd=True),
            Sample("odd-magnitude", _LAYERS, 0.95, odd=True),
        ]
    if size == "edge":
        # 32: a round of a warp; 1024: its stretch; 8192: a block; 16384: a chunk of the CPU.
        counts = (0, 1, 2, 31, 32, 33, 1023, 1024, 1025, 8191, 8192, 8193, 16385, 131073)
        return [
            *(Sample(f"counts-{share}", tuple((n,) for n in counts), share)
              for share in (0.0, 0.5, 0.99, 1.0)),
            Sample("counts-ties", tuple((n,) for n in counts), 0.6, levels=3),
            Sample("counts-signed-ties", tuple((n,) for n in counts), 0.6, 0.0, levels=3,
                   magnitude=False),
            Sample("all-equal", ((5000,), (20000,)), 0.3, 0.0, levels=1),
            Sample("scalar", ((), ()), 1.0),
            Sample("empty", ((0,), (3, 0, 2))),
            Sample("channels-last", _LAYERS, channels_last=True),
            # More tensors than one batch of the CUDA kernels holds.
            Sample("many", tuple((5 + i % 7,) for i in range(230))),
        ]  # fmt: skip
    return [
        # The inner layers of a 256-pixel Pix2Pix: 31.5 M weights.
        Sample("pix2pix-inner", (*[(512, 512, 4, 4)] * 7, (256, 512, 4, 4))),
        Sample("pix2pix-unet", unet_shapes()),  # all of it: 54.4 M
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


def _put(argument: str, i: int, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda arguments: arguments[argument].__setitem__(i, change(arguments[argument][i]))


#: To be applied to the sample "plain" of the size tiny.
REFUSALS = (
    Refusal(
        "score-dtype",
        _put("scores", 0, lambda x: x.half()),
        r"mask_update: scores\[0\] must be float32 or float64 \(on CUDA also float16 or bfloat16\)"
        r", got float16 \[6, 5, 3, 3\]",
    ),
    Refusal(
        "mixed-dtypes",
        _put("scores", 1, lambda x: x.double()),
        r"scores\[1\] must have the dtype and device of scores\[0\], got float64 \[40\]",
    ),
    Refusal(
        "score-with-gaps",
        _put("scores", 1, lambda x: torch.cat([x, x])[::2]),
        r"scores\[1\] must be dense in memory",
    ),
    Refusal(
        "mask-dtype",
        _put("masks", 0, lambda x: x.float()),
        r"masks\[0\] must be bool or uint8 \[6, 5, 3, 3\] on cpu, got float32",
    ),
    Refusal(
        "mask-shape",
        _put("masks", 1, lambda x: x[1:]),
        r"masks\[1\] must be bool or uint8 \[40\] on cpu, got bool \[39\]",
    ),
    Refusal(
        "mask-strides",
        _put("masks", 0, lambda x: x.contiguous(memory_format=torch.channels_last)),
        r"masks\[0\] must have the strides of its score",
    ),
    Refusal(
        "masks-length",
        lambda a: a["masks"].pop(),
        r"masks must have one item a score \(3\), got 2",
    ),
    Refusal(
        "prune-length",
        lambda a: a["prune"].pop(),
        r"prune must have one item a score \(3\), got 2",
    ),
    Refusal(
        "prune-negative", _put("prune", 2, lambda _: -1), r"prune\[2\] must be 0 to 24, got -1"
    ),
    Refusal(
        "prune-too-many", _put("prune", 1, lambda _: 41), r"prune\[1\] must be 0 to 40, got 41"
    ),
)
