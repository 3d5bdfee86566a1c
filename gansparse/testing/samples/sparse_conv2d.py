# SPDX-License-Identifier: Apache-2.0
"""Samples of sparse_conv2d: what the tests convolve and what the benchmark times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gansparse.ops import (
    PackedConv2d,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
)
from gansparse.ops.sparse_conv2d import Activation
from gansparse.ops.sparse_conv2d_packing import PaddingMode

Size = Literal["tiny", "edge", "model"]


@dataclass(frozen=True)
class Sample:
    """A layer and its input.

    Args:
        name: for the test's name and the benchmark's table.
        shape: N, C, H, W of the input.
        out: output channels O.
        kernel: R = S, or (R, S).
        stride: 1 or 2.
        padding: on each side.
        padding_mode: zeros, reflect or replicate.
        vector_size: output channels that share a pattern.
        sparsity: share pruned.
        biased: there is a bias.
        phased: of a transposed one: a bias for each phase.
        residual: there is a residual.
        activation: none, relu, leaky_relu, prelu or tanh.
        slopes: of prelu: 1 or O of them; 0: a number.
        fitted: packed for this input's size.
        transposed: a transposed convolution.
        output_padding: of a transposed one.
    """

    name: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    padding: int = 1
    padding_mode: PaddingMode = "zeros"
    vector_size: int = 1
    sparsity: float = 0.75
    biased: bool = True
    phased: bool = False
    residual: bool = False
    activation: Activation = "none"
    slopes: int = 0
    fitted: bool = False
    transposed: bool = False
    output_padding: int = 0

    def dense(self, seed: int = 0) -> Tensor:
        """The masked weight: [O, C, R, S], transposed [C, O, R, S]."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.shape[1]
        r, s = self.kernel if isinstance(self.kernel, tuple) else (self.kernel, self.kernel)
        weight = torch.randn(self.out, channels, r, s, generator=generator)
        blocks = -(-self.out // self.vector_size)
        kept = torch.rand(blocks, channels, r, s, generator=generator) >= self.sparsity
        weight *= kept.repeat_interleave(self.vector_size, 0)[: self.out]
        return weight.transpose(0, 1).contiguous() if self.transposed else weight

    def pack(self, weight: Tensor, mask: Tensor | None = None) -> PackedConv2d:
        """Pack a weight of this layer."""
        n, _, h, w = self.shape
        size = (n, h, w) if self.fitted else None
        if self.transposed:
            return pack_sparse_conv_transpose2d(
                weight, stride=self.stride, padding=self.padding,
                output_padding=self.output_padding, vector_size=self.vector_size, mask=mask,
                size=size,
            )  # fmt: skip
        return pack_sparse_conv2d(
            weight, stride=self.stride, padding=self.padding, padding_mode=self.padding_mode,
            vector_size=self.vector_size, mask=mask, size=size,
        )  # fmt: skip

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Torch's dense convolution of the same layer."""
        if self.transposed:
            return F.conv_transpose2d(
                input, weight, bias, stride=self.stride, padding=self.padding,
                output_padding=self.output_padding,
            )  # fmt: skip
        if self.padding_mode != "zeros":
            input = F.pad(input, [self.padding] * 4, self.padding_mode)
            return F.conv2d(input, weight, bias, stride=self.stride)
        return F.conv2d(input, weight, bias, stride=self.stride, padding=self.padding)

    def arguments(self, seed: int = 0) -> dict[str, Any]:
        """Keyword arguments of the op, the same for every call."""
        generator = torch.Generator().manual_seed(seed + 1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        weight = self.dense(seed)
        input = normal(*self.shape)
        output = self.convolve(input.to("meta"), weight.to("meta")).shape
        return {
            "input": input,
            "weight": self.pack(weight),
            "bias": normal(self.out * (4 if self.phased else 1)) if self.biased else None,
            "residual": normal(*output) if self.residual else None,
            "activation": self.activation,
            "slope": normal(self.slopes) if self.slopes else 0.2,
        }


def samples(size: Size) -> list[Sample]:
    """The table.

    Args:
        size: ``tiny``: each option once. ``edge``: sizes around every border of the kernels.
            ``model``: the layers that cost most in our generators.
    """
    if size == "tiny":
        few = (2, 5, 9, 7)
        return [
            Sample("plain", few, 6),
            Sample("no-bias", few, 6, biased=False),
            Sample("vector-4", few, 6, vector_size=4),
            Sample("vector-16", few, 20, vector_size=16),
            Sample("vector-128", few, 140, vector_size=128),
            Sample("stride-2", few, 6, kernel=4, stride=2),
            Sample("reflect", few, 6, padding_mode="reflect"),
            Sample("replicate", few, 6, kernel=5, padding=2, padding_mode="replicate"),
            Sample("relu", few, 6, activation="relu"),
            Sample("leaky", few, 6, activation="leaky_relu"),
            Sample("prelu", few, 6, activation="prelu", slopes=1),
            Sample("prelu-each", few, 6, activation="prelu", slopes=6, residual=True),
            Sample("tanh", few, 6, activation="tanh"),
            Sample("residual", few, 6, residual=True),
            Sample("fitted", (2, 5, 3, 3), 6, fitted=True),
            Sample("fitted-vector", (1, 5, 5, 5), 8, vector_size=8, fitted=True),
        ]
    if size == "edge":
        # A tile is 16 patches of 4 x 4, 2 x 2 or 1 x 1 pixels in one of fifteen arrangements; a
        # chunk 256 rows; a block of 3 x 3 taps at most 17 channels.
        kernels: tuple[tuple[int, int], ...] = (
            (1, 1), (2, 3), (3, 3), (4, 4), (5, 5), (7, 7), (9, 9),
        )  # fmt: skip
        modes: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate")
        pictures = ((1, 1), (1, 40), (40, 1), (15, 17), (16, 16), (17, 33), (8, 32), (4, 70))
        return [
            Sample("empty-batch", (0, 3, 8, 8), 4),
            *(
                Sample(f"{r}x{s}-stride-{stride}-{mode}", (1, 3, 19, 21), 5, (r, s), stride,
                       max(r, s) // 2, mode)
                for r, s in kernels for stride in (1, 2) for mode in modes
            ),
            *(Sample(f"vector-{v}-stride-{stride}-{mode}", (1, 6, 11, 13), 2 * v, 4, stride, 2,
                     mode, v, residual=True, activation="tanh")
              for v in (4, 8, 16) for stride in (1, 2) for mode in modes),
            *(Sample(f"picture-{h}x{w}", (1, 3, h, w), 4) for h, w in pictures),
            *(Sample(f"channels-{c}", (1, c, 6, 6), 3) for c in (1, 16, 17, 18, 35)),
            *(Sample(f"out-{o}", (1, 4, 5, 5), o, vector_size=v)
              for o, v in ((1, 1), (255, 1), (257, 1), (3, 4), (257, 16), (70, 64))),
            *(Sample(f"batch-{n}-of-{h}x{h}", (n, 5, h, h), 6, fitted=True, vector_size=v)
              for n, h in ((1, 2), (3, 4), (17, 1), (5, 8), (16, 4)) for v in (1, 4)),
            Sample("tiles-and-chunks", (2, 40, 20, 20), 300, vector_size=4, sparsity=0.9),
            Sample("nothing-kept", (1, 4, 8, 8), 4, sparsity=1.0),
            Sample("all-kept", (1, 4, 8, 8), 4, sparsity=0.0),
            Sample("no-padding", (2, 4, 20, 20), 4, padding=0),
            Sample("wide-padding", (1, 4, 5, 5), 4, padding=3),
        ]  # fmt: skip
    return [
        Sample("stargan-256@32", (1, 256, 32, 32), 256),
        Sample("cyclegan-256@64", (1, 256, 64, 64), 256, padding_mode="reflect"),
        Sample("srgan-64@96", (1, 64, 96, 96), 64),
        Sample("srgan-output@192", (1, 64, 192, 192), 3, kernel=9, padding=4),
        Sample("pix2pix-down@16", (1, 512, 16, 16), 512, kernel=4, stride=2, fitted=True),
    ]


@dataclass(frozen=True)
class Refusal:
    """One bad argument, and the message it must give.

    Args:
        name: for the test's name.
        spoil: changes good arguments into bad ones.
        message: regular expression that the message matches.
        needs_values: the rule is about values, which fake tensors do not have.
    """

    name: str
    spoil: Callable[[dict[str, Any]], object]
    message: str
    needs_values: bool = False


def _put(argument: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda arguments: arguments.update({argument: change(arguments[argument])})


def _field(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return _put("weight", lambda weight: weight._replace(**{name: change(getattr(weight, name))}))


def _number(**numbers: int) -> Callable[[dict[str, Any]], object]:
    return _field("geometry", lambda geometry: geometry._replace(**numbers))


def _set(tensor: Tensor, at: int, value: int) -> Tensor:
    changed = tensor.clone()
    changed[at] = value
    return changed


#: To be applied to the sample "prelu-each" of the size tiny.
REFUSALS = (
    Refusal(
        "input-dtype",
        _put("input", lambda x: x.double()),
        r"sparse_conv2d: input must be float32 \[N, 5, H, W\] on cpu, got float64 \[2, 5, 9, 7\]",
    ),
    Refusal(
        "input-flat",
        _put("input", lambda x: x[0]),
        r"input must be float32 \[N, 5, H, W\] on cpu, got float32 \[5, 9, 7\]",
    ),
    Refusal(
        "input-channels",
        _put("input", lambda x: x[:, :4]),
        r"input must be float32 \[N, 5, H, W\] on cpu, got float32 \[2, 4, 9, 7\]",
    ),
    Refusal(
        "input-too-small",
        lambda a: (_number(pad_h=0, growth_h=-2)(a), _put("input", lambda x: x[:, :, :2])(a)),
        r"input must be at least as large as the kernel, .* got float32 \[2, 5, 2, 7\]",
    ),
    Refusal(
        "input-smaller-than-mirror",
        lambda a: (_number(padding=1)(a), _put("input", lambda x: x[:, :, :1])(a)),
        r"input must be .* larger than a reflected padding, got float32 \[2, 5, 1, 7\]",
    ),
    Refusal(
        "bias-shape",
        _put("bias", lambda x: x[:5]),
        r"bias must be float32 \[6\] on cpu, got float32 \[5\]",
    ),
    Refusal(
        "bias-with-gaps",
        _put("bias", lambda x: torch.cat([x, x])[::2]),
        r"bias must be contiguous",
    ),
    Refusal(
        "residual-shape",
        _put("residual", lambda x: x[:, :, 1:]),
        r"residual must be float32 \[2, 6, 9, 7\] on cpu, got float32 \[2, 6, 8, 7\]",
    ),
    Refusal(
        "residual-dtype",
        _put("residual", lambda x: x.half()),
        r"residual must be float32 \[2, 6, 9, 7\] on cpu, got float16",
    ),
    Refusal(
        "activation",
        _put("activation", lambda _: "gelu"),
        r"activation must be none, relu, leaky_relu, prelu or tanh, got gelu",
    ),
    Refusal(
        "slope-shape",
        _put("slope", lambda x: x[:4]),
        r"slope must be float32 \[6\] on cpu, got float32 \[4\]",
    ),
    Refusal(
        "values-dtype",
        _field("values", lambda x: x.double()),
        r"weight.values must be float32 \[\d+, 1\] on cpu, got float64",
    ),
    Refusal(
        "values-length",
        _field("values", lambda x: x[1:]),
        r"weight.values must be float32 \[\d+, 1\] on cpu, got float32 \[\d+, 1\]",
    ),
    Refusal(
        "offsets-dtype",
        _field("offsets", lambda x: x.int()),
        r"weight.offsets must be int16 \[\d+\] on cpu, got int32",
    ),
    Refusal(
        "starts-length",
        _field("starts", lambda x: x[1:]),
        r"weight.starts must be int32 \[7\] on cpu, got int32 \[6\]",
    ),
    Refusal(
        "rows-length",
        _field("rows", lambda x: x[1:]),
        r"weight.rows must be int32 \[6\] on cpu, got int32 \[5\]",
    ),
    Refusal(
        "starts-first",
        _field("starts", lambda x: _set(x, 0, 1)),
        r"weight.starts must begin with 0, got 1",
        needs_values=True,
    ),
    Refusal(
        "starts-descend",
        _field("starts", lambda x: _set(x, 3, -1)),
        r"weight.starts must not descend, got -1",
        needs_values=True,
    ),
    Refusal(
        "starts-last",
        _field("starts", lambda x: _set(x, -1, 10**6)),
        r"weight.starts must end with the number of offsets, got 1000000",
        needs_values=True,
    ),
    Refusal(
        "rows-outside",
        _field("rows", lambda x: _set(x, 2, 6)),
        r"weight.rows must lie within their chunk, got 6",
        needs_values=True,
    ),
    Refusal(
        "rows-negative",
        _field("rows", lambda x: _set(x, 2, -1)),
        r"weight.rows must lie within their chunk, got -1",
        needs_values=True,
    ),
    Refusal("stride", _number(stride=3), r"weight.geometry.stride must be 1 or 2, got 3"),
    Refusal("patch", _number(patch=3), r"weight.geometry.patch must be 1, 2 or 4, got 3"),
    Refusal("taps", _number(taps_h=16), r"weight.geometry.taps_h must be 1 to 15, got 16"),
    Refusal("block", _number(block=999), r"weight.geometry.block must be so few .*, got 999"),
    Refusal("vector", _number(vector=6), r"weight.geometry.vector must be 1, 4, 8, .*, got 6"),
    Refusal("padding", _number(padding=3), r"weight.geometry.padding must be 0 .*, got 3"),
    Refusal("upscale", _number(upscale=0), r"weight.geometry.upscale must be 1 or 2, got 0"),
)
