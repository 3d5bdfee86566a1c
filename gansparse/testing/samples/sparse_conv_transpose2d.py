# SPDX-License-Identifier: Apache-2.0
"""Samples of sparse_conv_transpose2d: what the tests convolve and what the benchmark times."""

from __future__ import annotations

from functools import partial

from gansparse.testing.samples.sparse_conv2d import Sample, Size


def samples(size: Size) -> list[Sample]:
    """The table.

    Args:
        size: ``tiny``: each option once. ``edge``: kernels, strides and paddings, and sizes around
            a tile. ``model``: the layers that cost most in our generators.
    """
    layer = partial(Sample, transposed=True, stride=2, kernel=4)
    if size == "tiny":
        few = (2, 5, 5, 4)
        return [
            layer("plain", few, 6),
            layer("vector-4", few, 6, vector_size=4),
            layer("output-padding", few, 6, kernel=3, output_padding=1),
            layer("bias-of-phases", few, 6, kernel=3, phased=True, residual=True),
            layer("stride-1", few, 6, stride=1, padding=0),
            layer("all-options", few, 6, residual=True, activation="prelu", slopes=6),
            layer("fitted", few, 6, fitted=True, activation="relu"),
        ]
    if size == "edge":
        return [
            *(
                layer(f"{k}-stride-{s}-padding-{p}-{e}", (1, 3, 7, 9), 5, kernel=k, stride=s,
                      padding=p, output_padding=e)
                for k in (1, 2, 3, 4, 5, 7, 9) for s in (1, 2) for p in (0, 1, 3) for e in (0, 1)
                if p < k and e < s and (p, e) != (3, 1)
            ),
            *(layer(f"picture-{h}x{w}", (1, 3, h, w), 4) for h, w in ((1, 1), (16, 17), (9, 33))),
            *(layer(f"batch-{n}-of-{h}x{h}", (n, 5, h, h), 6, fitted=True, vector_size=v)
              for n, h in ((1, 1), (3, 2), (16, 4)) for v in (1, 4)),
            layer("more-than-a-chunk", (1, 4, 4, 4), 70),
            layer("more-than-a-chunk-vector", (1, 4, 4, 4), 70, vector_size=16),
        ]  # fmt: skip
    return [
        layer("pix2pix-up@4", (1, 1024, 4, 4), 512, fitted=True),
        layer("pix2pix-up@16", (1, 1024, 16, 16), 256, fitted=True),
        layer("dcgan-up@4", (16, 512, 4, 4), 256, fitted=True),
        layer("cyclegan-up@64", (1, 256, 64, 64), 128, kernel=3, output_padding=1),
    ]
