# SPDX-License-Identifier: Apache-2.0
"""sparse_conv_transpose2d: transposed convolution, by the kernels of sparse_conv2d."""

from __future__ import annotations

import torch  # noqa: F401  (the example uses it)
from torch import Tensor

from gansparse.ops._arrays import takes_arrays
from gansparse.ops.sparse_conv2d import Activation, _convolve, sparse_conv2d_reference
from gansparse.ops.sparse_conv2d_packing import PackedConv2d
from gansparse.ops.sparse_conv2d_tiles import PackedTiles


@takes_arrays
def sparse_conv_transpose2d(
    input: Tensor,  # [N, C, H, W]
    weight: PackedConv2d | PackedTiles,  # of [C, O, R, S]
    bias: Tensor | None = None,  # [O], or [stride² · O]
    *,
    residual: Tensor | None = None,  # [N, O, OH, OW]
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    out: Tensor | None = None,  # [N, O, OH, OW]
) -> Tensor:  # [N, O, OH, OW]
    r"""Transposed convolution with the weights that stayed, finished in the same pass.

    .. math::
        y_{n,o,i,j} = \mathrm{activation}\Bigl(\text{bias}_o + \text{residual}_{n,o,i,j} +
            \sum_{c,r,s} W_{c,o,r,s} \, x_{n,\, c,\, (i + \text{padding} - r) / \text{stride},\,
            (j + \text{padding} - s) / \text{stride}} \Bigr)

    over the taps for which both divisions are whole and the pixel is inside. Computed as one
    convolution of stride 1 for all stride² phases of an output pixel, which share every load of
    the input (Shi et al. 2016 call it sub-pixel convolution).

    Args:
        input: [N, C, H, W] T, as for `sparse_conv2d`.
        weight: from `pack_sparse_conv_transpose2d`; on CUDA also from
            `pack_tiles_conv_transpose2d`.
        bias: [O], computed with in float32. But for tiles also [stride² · O], one for each phase:
            that of channel o at the pixels (a, b) modulo the stride is number
            (o · stride + a) · stride + b, so that a convolution with a pixel shuffle after it keeps
            its bias.
        residual: [N, O, OH, OW] T, added before the activation.
        activation: ``none``, ``relu``, ``leaky_relu``, ``prelu`` or ``tanh``.
        slope: of negative values, for ``leaky_relu`` and ``prelu``: number, [1] or [O] float32.
        out: memory for the result, as for `sparse_conv2d`.

    Returns:
        [N, O, OH, OW] T, contiguous, of tiles channels_last; ``out``, if that is given.

    Raises:
        InputError: an argument breaks a rule; the message names it and what it was.

    Example:
        >>> from gansparse.ops import pack_sparse_conv_transpose2d
        >>> weight = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
        >>> packed = pack_sparse_conv_transpose2d(weight, stride=2)
        >>> sparse_conv_transpose2d(torch.full((1, 1, 1, 1), 3.0), packed)
        tensor([[[[3., 0.],
                  [0., 6.]]]])
    """
    return _convolve(input, weight, bias, residual, activation, slope, out=out)


def sparse_conv_transpose2d_reference(
    input: Tensor,
    weight: PackedConv2d | PackedTiles,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    out: Tensor | None = None,
) -> Tensor:
    """The same in plain torch, in the dtype of its arguments."""
    return sparse_conv2d_reference(
        input, weight, bias, residual=residual, activation=activation, slope=slope, out=out
    )
