# SPDX-License-Identifier: Apache-2.0
"""winograd_conv2d: dense convolutions of 3 x 3 taps with a quarter of the multiplications.

For layers that kept most of their weights, and for what filter pruning leaves. It lives in the room
of `sparse_conv2d`, with which it shares all but the products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops._library import current_stream, define, describe, wants_gradient
from gansparse.ops.sparse_conv2d import Activation, _output, sparse_conv2d_reference
from gansparse.ops.sparse_conv2d_packing import (
    ConvGeometry,
    Layer,
    PackedConv2d,
    PaddingMode,
    conv2d_layer,
    conv_transpose2d_layer,
    pack_layer,
    packed_rows,
    shuffled_rows,
)

Pair = tuple[int, int]

_A, _B = 0.75, 1.5
_AT_A, _AT_B = 2 * _A**2 * (_A**2 - _B**2), 2 * _B**2 * (_B**2 - _A**2)
#: G of F(4, 3) at the points 0, a, −a, b, −b and infinity.
_POINTS = (
    (1 / (_A * _B) ** 2, 0, 0),
    *((1 / _AT_A, p / _AT_A, p**2 / _AT_A) for p in (_A, -_A)),
    *((1 / _AT_B, p / _AT_B, p**2 / _AT_B) for p in (_B, -_B)),
    (0, 0, 1),
)
_ROWS = 8
_TAPS = 3


class PackedWinograd(NamedTuple):
    """A convolution's weight at the 36 points.

    Args:
        values: [36, M / 8, C, 8] float32.
        geometry: shape of the layer.
    """

    values: Tensor
    geometry: ConvGeometry


def winograd_conv2d(
    input: Tensor,  # [N, C, H, W]
    weight: PackedWinograd,
    bias: Tensor | None = None,  # [O], or [stride² · O] of a transposed one
    *,
    residual: Tensor | None = None,  # [N, O, OH, OW]
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    out: Tensor | None = None,  # [N, O, OH, OW]
) -> Tensor:  # [N, O, OH, OW]
    """Convolve by Winograd's minimal filtering F(4 x 4, 3 x 3), and finish the layer on the way.

    Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. The largest
    rounding error is 2e-6 to 4e-6 of the largest output (64 to 256 channels), ten times that of
    torch's; a NaN or an infinite pixel makes the 4 x 4 outputs of its patches NaN. CPU only,
    without gradients.

    Args:
        input: [N, C, H, W] float32; anything but contiguous is copied.
        weight: from `pack_winograd_conv2d` or `pack_winograd_conv_transpose2d`.
        bias: as for `gansparse.ops.sparse_conv_transpose2d`.
        residual: [N, O, OH, OW] float32, added before the activation.
        activation: ``none``, ``relu``, ``leaky_relu``, ``prelu`` or ``tanh``.
        slope: of negative values, for ``leaky_relu`` and ``prelu``: number, [1] or [O] float32.
        out: memory for the result; it may not overlap input or residual.

    Returns:
        [N, O, OH, OW] float32, contiguous; ``out``, if that is given.

    Raises:
        InputError: an argument breaks a rule, or asks for a gradient.

    Example:
        >>> weight, x = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> winograd_conv2d(x, pack_winograd_conv2d(weight, padding=1)).round().int().tolist()
        [[[[4, 6, 4], [6, 9, 6], [4, 6, 4]]]]
    """
    if out is None:
        out = _output(input, weight.geometry)
    slopes = slope if isinstance(slope, Tensor) else None
    number = 0.0 if isinstance(slope, Tensor) else float(slope)
    read = (input, weight.values, bias, residual, slopes)
    if wants_gradient(*read):
        raise InputError("winograd_conv2d has no gradients: call it under torch.no_grad()")
    op = torch.ops.gansparse.winograd_conv2d
    op(input, *weight, bias, residual, activation, number, slopes, out)
    return out


def winograd_conv2d_reference(
    input: Tensor,
    weight: PackedWinograd,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    out: Tensor | None = None,
) -> Tensor:
    """The same in plain torch, as a direct convolution."""
    return sparse_conv2d_reference(
        input, _direct(weight), bias, residual=residual, activation=activation, slope=slope, out=out
    )


def pack_winograd_conv2d(
    weight: Tensor,  # [O, C, 3, 3]
    *,
    padding: int | Pair = 0,
    padding_mode: PaddingMode = "zeros",
) -> PackedWinograd:
    """Pack the weight of a convolution of stride 1 for `winograd_conv2d`.

    Args:
        weight: [O, C, 3, 3] float32.
        padding: pixels on each side, or (height, width).
        padding_mode: ``zeros``, ``reflect`` or ``replicate``.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> pack_winograd_conv2d(torch.ones(16, 5, 3, 3)).values.shape
        torch.Size([36, 2, 5, 8])
    """
    return _pack(conv2d_layer(weight, 1, padding, padding_mode, None, vector_size=_ROWS))


def pack_winograd_conv_transpose2d(
    weight: Tensor,  # [C, O, R, S]
    *,
    stride: int = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
) -> PackedWinograd:
    """Pack the weight of a transposed convolution for `winograd_conv2d`.

    Args:
        weight: [C, O, R, S] float32: 3 x 3 at stride 1; at stride 2 what has a window of 3 x 3
            pixels for its four phases, as 4 x 4 with padding 1 has.
        stride: 1 or 2.
        padding: as torch has it.
        output_padding: as torch has it.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> packed = pack_winograd_conv_transpose2d(torch.ones(5, 4, 4, 4), stride=2, padding=1)
        >>> packed.values.shape, packed.geometry.upscale
        (torch.Size([36, 4, 5, 8]), 2)
    """
    return _pack(
        conv_transpose2d_layer(weight, stride, padding, output_padding, None, vector_size=_ROWS)
    )


def _pack(layer: Layer) -> PackedWinograd:
    g = layer.geometry
    if (g.taps_h, g.taps_w) != (_TAPS, _TAPS):
        raise InputError(
            f"winograd_conv2d: weight must have a window of 3 x 3, got {g.taps_h} x {g.taps_w}"
        )
    rows = packed_rows(layer.weight.detach().double(), g)  # [M / 8, 8, C, 3, 3]
    points = torch.tensor(_POINTS, dtype=torch.float64)
    values = torch.einsum("ai,mvcij,bj->abmcv", points, rows, points)
    return PackedWinograd(values.flatten(0, 1).float().contiguous(), g)


def _direct(weight: PackedWinograd) -> PackedConv2d:
    """The weight itself, as the reference takes it."""
    g = weight.geometry
    back = torch.linalg.pinv(torch.tensor(_POINTS, dtype=torch.float64))  # [3, 6]
    points = weight.values.double().view(6, 6, *weight.values.shape[1:])
    matrix = torch.einsum("ia,abmcv,jb->mvcij", back, points, back).flatten(0, 1)
    direct = shuffled_rows(matrix, g).float()
    return pack_layer(Layer(direct, torch.ones_like(direct, dtype=torch.bool), g))


# Everything is positional: keywords cost 5 µs a call. An op may not return what it was given, so
# this one returns nothing.
_SCHEMA = """winograd_conv2d(
    Tensor input, Tensor values, int[] geometry, Tensor? bias, Tensor? residual, str activation,
    float slope, Tensor? slopes, Tensor(a!) out) -> ()"""


def _run(input: Tensor, *arguments: Any) -> None:
    """The op, past torch's dispatcher: for plain tensors."""
    values, geometry, bias, residual, activation, slope, slopes, out = arguments
    current_stream(input)
    _C.winograd_conv2d(
        input.contiguous(), values, geometry, bias,
        None if residual is None else residual.contiguous(),
        "none" if activation == "tanh" else activation, slope if slopes is None else slopes, out,
    )  # fmt: skip
    if activation == "tanh":
        out.tanh_()


def _fake(input: Tensor, *arguments: Any) -> None:
    values, geometry, bias, residual, activation, slope, slopes, out = arguments
    _C.winograd_conv2d(
        describe(input.contiguous()), describe(values), geometry, describe(bias),
        describe(None if residual is None else residual.contiguous()),
        "none" if activation == "tanh" else activation,
        slope if slopes is None else describe(slopes), describe(out),
    )  # fmt: skip


define(_SCHEMA, _run, _fake)
