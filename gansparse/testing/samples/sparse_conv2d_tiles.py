# SPDX-License-Identifier: Apache-2.0
"""Samples of sparse_conv2d on CUDA, where weights are packed as tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gansparse.ops.sparse_conv2d_tiles import (
    PackedTiles,
    TilePattern,
    pack_tiles_conv2d,
    pack_tiles_conv_transpose2d,
)
from gansparse.testing.samples.sparse_conv2d import Sample, Size


@dataclass(frozen=True)
class TileSample(Sample):
    """A layer and its input; `sparsity` is of blocks, and within them 2:4 takes half.

    Args:
        pattern: 2:4, block or vector, whose blocks have one input channel.
        rows: output channels of a block.
        dtype: of input, weight, residual and output.
        list_channels: of vector; None: as the packing chooses.
    """

    sparsity: float = 0.0
    pattern: TilePattern = "2:4"
    rows: int = 32
    dtype: torch.dtype = torch.bfloat16
    list_channels: int | None = None

    def dense(self, seed: int = 0) -> Tensor:
        """The masked weight: [O, C, R, S], transposed [C, O, R, S]; float32, exact in `dtype`."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.shape[1]
        r, s = self.kernel if isinstance(self.kernel, tuple) else (self.kernel, self.kernel)
        weight = torch.randn(self.out, channels, r, s, generator=generator)
        width = 1 if self.pattern == "vector" else 8
        blocks = -(-self.out // self.rows), channels // width
        kept = torch.rand(*blocks, r, s, generator=generator) >= self.sparsity
        weight *= kept.repeat_interleave(self.rows, 0)[: self.out].repeat_interleave(width, 1)
        if self.pattern == "2:4":
            quads = torch.unflatten(weight, 1, (-1, 4))
            lost = torch.rand(quads.shape, generator=generator).argsort(2) >= 2
            weight = quads.masked_fill(lost, 0).flatten(1, 2)
        weight = weight.to(self.dtype).float()
        return weight.transpose(0, 1).contiguous() if self.transposed else weight

    def pack_tiles(self, weight: Tensor, mask: Tensor | None = None) -> PackedTiles:
        """Pack a weight of this layer."""
        if self.transposed:
            return pack_tiles_conv_transpose2d(
                weight, self.pattern, rows=self.rows, dtype=self.dtype, stride=self.stride,
                padding=self.padding, output_padding=self.output_padding, mask=mask,
                list_channels=self.list_channels,
            )  # fmt: skip
        return pack_tiles_conv2d(
            weight, self.pattern, rows=self.rows, dtype=self.dtype, stride=self.stride,
            padding=self.padding, padding_mode=self.padding_mode, mask=mask,
            list_channels=self.list_channels,
        )  # fmt: skip

    def arguments(self, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
        """Keyword arguments of the op, the same for every call."""
        generator = torch.Generator().manual_seed(seed + 1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def image(*shape: int) -> Tensor:
            lies = torch.channels_last
            return normal(*shape).to(dtype=self.dtype, device=device, memory_format=lies)

        weight = self.dense(seed)
        packed = self.pack_tiles(weight)
        input = image(*self.shape)
        output = self.convolve(input.to("meta"), weight.to("meta", self.dtype)).shape
        return {
            "input": input,
            "weight": PackedTiles(
                packed.values.to(device),
                packed.metadata.to(device),
                packed.places.to(device),
                packed.starts.to(device),
                packed.geometry,
            ),
            "bias": normal(self.out).to(device) if self.biased else None,
            "residual": image(*output) if self.residual else None,
            "activation": self.activation,
            "slope": normal(self.slopes).to(device) if self.slopes else 0.2,
        }


def tile_samples(size: Size) -> list[TileSample]:
    """The table.

    Args:
        size: ``tiny``: each option once. ``edge``: sizes around every border of the kernel.
            ``model``: the layers that cost most in our generators.
    """
    layer = TileSample
    block = partial(TileSample, pattern="block", rows=16)
    column = partial(TileSample, pattern="vector", rows=16)
    if size == "tiny":
        few = (2, 16, 9, 7)
        return [
            layer("plain", few, 32),
            layer("rows-64", few, 64, rows=64),
            layer("float16", few, 32, dtype=torch.float16),
            layer("block-16", few, 16, pattern="block", rows=16, sparsity=0.5),
            layer("block-32", few, 32, pattern="block", sparsity=0.5, dtype=torch.float16),
            layer("2:4-of-blocks", few, 32, sparsity=0.5),
            layer("no-bias", few, 32, biased=False),
            layer("stride-2", few, 32, kernel=4, stride=2),
            layer("reflect", few, 32, padding_mode="reflect"),
            layer("replicate", few, 32, padding=2, padding_mode="replicate"),
            layer("relu", few, 32, activation="relu"),
            layer("leaky", few, 32, activation="leaky_relu"),
            layer("prelu", few, 32, activation="prelu", slopes=1),
            layer("prelu-each", few, 32, activation="prelu", slopes=32, residual=True),
            layer("tanh", few, 32, activation="tanh", residual=True),
            layer("transposed", few, 16, 4, 2, pattern="block", rows=16, transposed=True),
            layer("transposed-2:4", few, 32, 3, 2, output_padding=1, transposed=True),
            column("vector", few, 16, sparsity=0.7),
            column(
                "vector-float16",
                few,
                40,
                4,
                2,
                sparsity=0.5,
                dtype=torch.float16,
                activation="prelu",
                slopes=40,
                residual=True,
            ),
            column("vector-transposed", few, 16, 4, 2, sparsity=0.5, transposed=True),
        ]
    if size == "edge":
        # A block is 128 pixels in one of many arrangements and two tiles of rows; a list 32
        # channels; buffers are 2 to 4.
        kernels = ((1, 1), (2, 3), (4, 4), (7, 7), (9, 9))
        return [
            *(block(f"{r}x{s}-stride-{stride}", (1, 8, 11, 13), 16, (r, s), stride, max(r, s) // 2)
              for r, s in kernels for stride in (1, 2)),
            *(block(f"reflect-{k}-stride-{s}", (1, 8, 11, 18), 16, k, s, k // 2, "reflect")
              for k in (3, 7) for s in (1, 2)),
            *(block(f"picture-{h}x{w}", (1, 8, h, w), 16)
              for h, w in ((1, 1), (1, 130), (129, 1), (17, 9))),
            *(layer(f"channels-{c}", (1, c, 5, 5), 32) for c in (8, 24, 32, 40, 168)),
            *(layer(f"out-{o}-rows-{rows}", (1, 8, 4, 4), o, rows=rows, residual=True)
              for o, rows in ((1, 32), (33, 32), (100, 32), (65, 64), (136, 64))),
            *(block(f"batch-{n}-of-{h}", (n, 8, h, h), 16)
              for n, h in ((3, 4), (17, 2), (130, 1))),
            layer("nothing-kept", (1, 8, 5, 5), 32, sparsity=1.0),
            block("no-padding", (1, 8, 9, 9), 16, padding=0),
            block("wide-padding", (1, 8, 3, 3), 16, padding=3),
            *(block(f"transposed-{k}-stride-{s}-{p}-{e}", (1, 8, 5, 9), 16, k, s, p,
                    output_padding=e, transposed=True)
              for k, s, p, e in ((1, 1, 0, 0), (3, 1, 1, 0), (2, 2, 0, 0), (4, 2, 1, 1),
                                 (7, 2, 3, 1))),
            *(column(f"vector-{r}x{s}-stride-{stride}", (1, 8, 11, 13), 16, (r, s), stride,
                     max(r, s) // 2, sparsity=0.5)
              for r, s in kernels for stride in (1, 2) if max(r, s) * stride <= 8),
            *(column(f"vector-picture-{h}x{w}", (1, 8, h, w), 16)
              for h, w in ((1, 1), (1, 130), (129, 1), (17, 9))),
            *(column(f"vector-channels-{c}", (1, c, 5, 5), 20, sparsity=0.8)
              for c in (24, 32, 40, 168)),
            column("vector-channels-168-by-32", (1, 168, 5, 5), 20, sparsity=0.8,
                   list_channels=32),
            *(column(f"vector-{k}x{k}-by-64", (1, 72, 9, 11), 20, k, stride, k // 2, sparsity=0.8,
                     list_channels=64)
              for k, stride in ((1, 1), (3, 1), (4, 1))),
            column("vector-two-buffers-three-lists", (1, 72, 5, 5), 130, sparsity=0.8,
                   list_channels=32),
            *(column(f"vector-out-{o}", (1, 8, 4, 4), o, residual=True)
              for o in (1, 33, 256, 272, 300)),
            *(column(f"vector-batch-{n}-of-{h}", (n, 8, h, h), 16)
              for n, h in ((3, 4), (17, 2), (130, 1))),
            column("vector-nothing-kept", (1, 8, 5, 5), 32, sparsity=1.0),
            column("vector-reflect", (1, 8, 11, 18), 16, 4, 2, 3, "reflect", sparsity=0.5),
            *(column(f"vector-transposed-{k}-stride-{s}-{p}-{e}", (1, 8, 5, 9), 16, k, s, p,
                     output_padding=e, transposed=True, sparsity=0.5)
              for k, s, p, e in ((3, 1, 1, 0), (4, 2, 1, 1), (7, 2, 3, 1))),
        ]  # fmt: skip
    return [
        layer("cyclegan-256@64", (16, 256, 64, 64), 256, padding_mode="reflect"),
        layer("stargan-256@32", (16, 256, 32, 32), 256),
        layer("srgan-64@96", (16, 64, 96, 96), 64),
        layer("pix2pix-down@16", (16, 512, 16, 16), 512, 4, 2),
        layer("pix2pix-up@16", (16, 1024, 16, 16), 256, 4, 2, transposed=True),
    ]
