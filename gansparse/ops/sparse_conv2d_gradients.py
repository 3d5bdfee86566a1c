# SPDX-License-Identifier: Apache-2.0
"""Gradients of sparse_conv2d with packed lists, by the op's own kernels; the mask stays.

The gradient of the input is a convolution with the same weights, transposed: the op again, on a
packing made once for each mask. That of the weights that stayed is a kernel of its own, on CUDA
(``csrc/ops/sparse_conv2d/sparse_conv2d_lists.h``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gansparse import _C
from gansparse.ops._library import current_stream, define, describe
from gansparse.ops.sparse_conv2d_packing import (
    ConvGeometry,
    Layer,
    PackedConv2d,
    Pair,
    _fit,
    _window,
    pack_layer,
    unpack_sparse_conv2d,
)


class Transposed(NamedTuple):
    """The packing by which the gradient of a convolution's output goes back to its input.

    Args:
        order: [K'] int64, which values of the packing it was made from are its own.
        offsets: [K'] int16; this and what follows as in `PackedConv2d`.
        starts: [L' + 1] int32.
        rows: [L'] int32.
        geometry: without ``growth_h`` and ``growth_w``, which depend on the input's size.
        cut: rows and columns of padding that are left around the output.
    """

    order: Tensor
    offsets: Tensor
    starts: Tensor
    rows: Tensor
    geometry: ConvGeometry
    cut: Pair


def transposed_packing(weight: PackedConv2d) -> Transposed:
    """Pack the convolution whose output is the gradient of this one's input.

    A convolution of stride 2 becomes a transposed one, by its four phases, and the reverse; at
    stride 1 the taps are mirrored.

    Args:
        weight: packed, on any device; what it pads with is zero.

    Returns:
        the packing, on the device of the weight.

    Example:
        >>> from gansparse.ops import pack_sparse_conv2d
        >>> weight = pack_sparse_conv2d(torch.ones(2, 3, 4, 4), stride=2, padding=1)
        >>> back = transposed_packing(weight).geometry
        >>> back.out_channels, back.in_channels, back.upscale, back.output_size(5, 5)
        (3, 2, 2, (10, 10))
    """
    g, device = weight.geometry, weight.offsets.device
    numbers = torch.arange(1, weight.values.numel() + 1, dtype=torch.int32, device=device)
    dense = unpack_sparse_conv2d(weight._replace(values=numbers.view(weight.values.shape))).cpu()
    cut = (0, 0)
    if g.upscale == 2:
        matrix, pads = _to_stride_2(dense, g)
    else:
        # Padding as wide as the kernel, or wider: back to the input with its padding.
        if g.pad_h >= g.taps_h or g.pad_w >= g.taps_w:
            cut = (g.pad_h, g.pad_w)
        high = _window(g.taps_h, g.stride, g.pad_h - cut[0])
        wide = _window(g.taps_w, g.stride, g.pad_w - cut[1])
        pads, phases = (high.pad, wide.pad), g.stride**2
        matrix = dense.new_zeros(g.in_channels * phases, g.out_channels, high.taps, wide.taps)
        for a, r, i in high.places:
            for b, s, j in wide.places:
                matrix[a * g.stride + b :: phases, :, i, j] = dense[:, :, r, s].T
    taps_h, taps_w = matrix.shape[2:]
    back = ConvGeometry(
        g.in_channels, g.out_channels, taps_h, taps_w, g.upscale, g.stride, pads[0], pads[1],
        0, 0, 0, 4, 1, 1,
    )  # fmt: skip
    numbered, offsets, starts, rows, geometry = pack_layer(
        Layer(matrix, matrix != 0, _fit(back, None))
    )
    order = numbered.flatten().long() - 1
    order, offsets, starts, rows = (t.to(device) for t in (order, offsets, starts, rows))
    return Transposed(order, offsets, starts, rows, geometry, cut)


def _to_stride_2(dense: Tensor, g: ConvGeometry) -> tuple[Tensor, Pair]:
    """[4 O, C, R, S] of a transposed convolution's phases → [C, O, 2 R, 2 S], and its padding.

    Output pixel 2i + a, by the window's tap u of phase a, comes from input i + u − pad. Seen from
    the input, the tap is 2 (R − 1 − u) + a of a window that begins 2 (R − 1 − pad) before 2i.
    """
    phases = dense.view(g.out_channels, 2, 2, g.in_channels, g.taps_h, g.taps_w).flip(4, 5)
    matrix = phases.permute(3, 0, 4, 1, 5, 2).flatten(4).flatten(2, 3)
    pads = []
    for dim, taps, pad in ((2, g.taps_h, g.pad_h), (3, g.taps_w, g.pad_w)):
        before = 2 * (taps - 1 - pad)
        used = matrix.movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist() or [0]
        first = min(used[0], before)
        matrix = matrix.narrow(dim, first, used[-1] + 1 - first)
        pads.append(before - first)
    return matrix, (pads[0], pads[1])


def list_gradients(
    grad: Tensor,  # [N, O, OH, OW]
    input: Tensor,  # [N, C, H, W]
    weight: PackedConv2d,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input, [N, C, H, W], and of the packed values, [K, V]: those wanted."""
    ops, lists = torch.ops.gansparse, (*weight[1:4], list(weight.geometry))
    of_input = of_values = None
    if wanted[0]:
        of_input = ops.sparse_conv2d_input_gradient(grad, weight.values, *lists, *input.shape[2:])
    if wanted[1]:
        of_values = ops.sparse_conv2d_values_gradient(grad, input, *lists)
    return of_input, of_values


# The last packing made from each tensor of offsets, with what it was made from.
_made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _transposed(weight: PackedConv2d) -> Transposed:
    """`transposed_packing`, made once for a mask."""
    of = (weight.offsets._version, weight.geometry)
    if weight.offsets not in _made or _made[weight.offsets][0] != of:
        _made[weight.offsets] = of, transposed_packing(weight)
    found: Transposed = _made[weight.offsets][1]
    return found


_INPUT_SCHEMA = """sparse_conv2d_input_gradient(
    Tensor grad, Tensor values, Tensor offsets, Tensor starts, Tensor rows, int[] geometry,
    int height, int width) -> Tensor"""
_VALUES_SCHEMA = """sparse_conv2d_values_gradient(
    Tensor grad, Tensor input, Tensor offsets, Tensor starts, Tensor rows, int[] geometry) -> Tensor
"""


def _run_input(grad: Tensor, values: Tensor, *arguments: Any) -> Tensor:
    offsets, starts, rows, geometry, height, width = arguments
    weight = PackedConv2d(values, offsets, starts, rows, ConvGeometry(*geometry))
    order, *tensors, g, (cut_h, cut_w) = _transposed(weight)
    high, wide = height + 2 * cut_h, width + 2 * cut_w
    g = g._replace(
        growth_h=high * g.stride - grad.shape[2] * g.upscale,
        growth_w=wide * g.stride - grad.shape[3] * g.upscale,
    )
    permuted = values.flatten()[order][:, None]
    op = torch.ops.gansparse.sparse_conv2d
    whole: Tensor = op(grad, permuted, *tensors, list(g), None, None, "none", 0.0, None)
    return whole[:, :, cut_h : high - cut_h, cut_w : wide - cut_w].contiguous()


def _fake_input(grad: Tensor, values: Tensor, *arguments: Any) -> Tensor:
    *_, geometry, height, width = arguments
    return grad.new_empty(grad.shape[0], ConvGeometry(*geometry).in_channels, height, width)


def _run_values(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    offsets, starts, rows, geometry = arguments
    output = input.new_zeros(len(offsets), ConvGeometry(*geometry).vector)
    _C.sparse_conv2d_gradient(
        input.contiguous(), offsets, starts, rows, geometry, grad.contiguous(), output,
        current_stream(input),
    )  # fmt: skip
    return output


def _fake_values(grad: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    offsets, starts, rows, geometry = arguments
    output = input.new_empty(len(offsets), ConvGeometry(*geometry).vector)
    _C.sparse_conv2d_gradient(
        describe(input.contiguous()), describe(offsets), describe(starts), describe(rows),
        geometry, describe(grad.contiguous()), describe(output),
    )  # fmt: skip
    return output


define(_INPUT_SCHEMA, _run_input, _fake_input)
define(_VALUES_SCHEMA, _run_values, _fake_values)
