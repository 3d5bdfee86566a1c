# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d on CUDA's tiles, and the moments of its output, which `instance_norm` takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops._arrays import takes_arrays
from gansparse.ops._library import current_stream, define, describe, wants_gradient
from gansparse.ops.sparse_conv2d import _channels_last, _tiles_output, sparse_conv2d_reference
from gansparse.ops.sparse_conv2d_tiles import COLUMN_STEP, PackedTiles


@takes_arrays
def sparse_conv2d_moments(
    input: Tensor,  # [N, C, H, W]
    weight: PackedTiles,  # of [O, C, R, S]; transposed: of [C, O, R, S]
    bias: Tensor | None = None,  # [O]
) -> tuple[Tensor, Tensor]:  # [N, O, OH, OW], [N, P, 3, O]
    """Convolve, and leave behind what a norm of the output needs, so that it reads it once.

    A convolution or a transposed one, as the weight was packed. The moments are of the output as
    stored, made in registers: in each of P parts of a picture first the mean and then the squared
    distances from it, so that a large mean does no harm; the same bits at every call. No gradients.
    The CUDA kernels have been checked without a GPU only, and not yet been timed.

    Args:
        input: [N, C, H, W] float16 or bfloat16 on CUDA, channels_last, or it is copied.
        weight: from `pack_tiles_conv2d` or `pack_tiles_conv_transpose2d`.
        bias: [O], computed with in float32.

    Returns:
        [N, O, OH, OW], as `gansparse.ops.sparse_conv2d` gives it, and [N, P, 3, O] float32: how
        many pixels a part has, their mean, and the sum of their squared distances from it.

    Raises:
        InputError: an argument breaks a rule, or a gradient is wanted.

    Example:
        >>> from gansparse.ops import pack_tiles_conv2d
        >>> weight = pack_tiles_conv2d(torch.ones(16, 8, 1, 1), "block", rows=16)
        >>> x = torch.tensor([1.0, 3.0]).expand(1, 8, 1, 2).bfloat16()
        >>> y, moments = sparse_conv2d_moments_reference(x, weight)
        >>> y[0, 0].tolist(), moments[0, 0, :, 0].tolist()
        ([[8.0, 24.0]], [2.0, 16.0, 128.0])
    """
    *tensors, geometry = weight
    if wants_gradient(input, weight.values, bias):
        raise InputError(
            "sparse_conv2d_moments: computes no gradients: call sparse_conv2d, or call it under "
            "torch.no_grad()"
        )
    y, moments = torch.ops.gansparse.sparse_conv2d_moments(
        input, *tensors, geometry, None if bias is None else bias.float()
    )
    return y, moments


def sparse_conv2d_moments_reference(
    input: Tensor, weight: PackedTiles, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in plain torch, each picture as one part."""
    y = sparse_conv2d_reference(input, weight, bias)
    wide = y if y.dtype == torch.float64 else y.float()
    mean = wide.mean((2, 3), keepdim=True)
    distances = (wide - mean).square().sum((2, 3))
    count = torch.full_like(distances, y.shape[2] * y.shape[3])
    return y, torch.stack([count, mean[:, :, 0, 0], distances], 1)[:, None]


_SCHEMA = """sparse_conv2d_moments(
    Tensor input, Tensor values, Tensor metadata, Tensor places, Tensor starts, int[] geometry,
    Tensor? bias) -> (Tensor, Tensor)"""


def _outputs(input: Tensor, geometry: list[int], places: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for both results."""
    output = _tiles_output(input, geometry)
    if input.dim() != 4:
        return output, input.new_empty(0)  # the core tells what is wrong
    columns = places.shape[-1] == COLUMN_STEP
    size = int(input.shape[2]), int(input.shape[3])
    parts = _C.sparse_conv2d_tiles_parts(geometry, *size, columns)
    shape = (input.shape[0], parts, 3, output.shape[1])
    return output, input.new_empty(shape, dtype=torch.float32)


def _run(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    values, metadata, places, starts, geometry, bias = arguments
    output, moments = _outputs(input, geometry, places)
    _C.sparse_conv2d_tiles(
        _channels_last(input), values, metadata, places, starts, geometry, bias, None, "none", 0.0,
        output, current_stream(input), moments,
    )  # fmt: skip
    return output, moments


def _fake(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    values, metadata, places, starts, geometry, bias = arguments
    output, moments = _outputs(input, geometry, places)
    _C.sparse_conv2d_tiles(
        describe(_channels_last(input)), describe(values), describe(metadata), describe(places),
        describe(starts), geometry, describe(bias), None, "none", 0.0, describe(output),
        moments=describe(moments),
    )  # fmt: skip
    return output, moments


define(_SCHEMA, _run, _fake)
