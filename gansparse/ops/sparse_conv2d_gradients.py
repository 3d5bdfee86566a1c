# SPDX-License-Identifier: Apache-2.0
"""Gradients of sparse_conv2d, on CUDA by the op's own kernels; the mask stays.

The gradient of the input is a convolution with the same weights, transposed: the op again, on a
packing made once for each mask. That of the weights that stayed is a kernel of its own, on CUDA
(``csrc/ops/sparse_conv2d/sparse_conv2d_lists.h``, ``sparse_conv2d_tiles.h``). Tiles of which most
blocks stayed, and 2:4 within them, leave both to torch's dense convolution: docs/cuda.md says why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
    packed_rows,
    places,
    unpack_sparse_conv2d,
)
from gansparse.ops.sparse_conv2d_tiles import (
    COLUMN_STEP,
    PackedTiles,
    _in_lanes,
    _pack,
    tile_places,
    unpack_tiles,
)

# Of a dense convolution's products, by the rows of a block: with more it is in front, says the
# model of docs/cuda.md; of two ways the one further below is faster.
_MOST_BACK = {16: 0.45, 32: 0.75}
_MOST_OWN = 0.5


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
    matrix, back, cut = _exchanged(dense, g)
    packed = pack_layer(Layer(matrix, matrix != 0, _fit(back, None)))
    numbered, offsets, starts, rows, geometry = packed
    order = numbered.flatten().long() - 1
    order, offsets, starts, rows = (t.to(device) for t in (order, offsets, starts, rows))
    return Transposed(order, offsets, starts, rows, geometry, cut)


def _exchanged(dense: Tensor, g: ConvGeometry) -> tuple[Tensor, ConvGeometry, Pair]:
    """The matrix of the convolution back, with roles of channels exchanged, its geometry and cut.

    [upscale² · O, C, R, S] becomes [upscale'² · C, O, R', S'].
    """
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
    return matrix, back, cut


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


class TransposedTiles(NamedTuple):
    """What the gradients of packed tiles need beside the values, made once for a mask.

    Args:
        back: the convolution that takes the gradient of the output to that of the input, a
            ``block`` packing. Its values are numbers: which of the values it was made from, counted
            from 1; 0 where a kept block has nothing.
        cut: rows and columns of padding that are left around the output.
        share: products that `back` does, of those that a dense convolution does.
        own_share: the same of the packing it was made from.
    """

    back: PackedTiles
    cut: Pair
    share: float
    own_share: float

    @property
    def cost(self) -> float:
        """Of `back`, in units of where a dense convolution becomes as fast."""
        return self.share / _MOST_BACK[self.back.geometry.vector]


def transposed_tiles(weight: PackedTiles) -> TransposedTiles:
    """Pack the tiles whose convolution's output is the gradient of this one's input.

    A block of V output x 8 input channels lies in V / 8 blocks of 16 or 32 rows of the transposed
    matrix; of these two sizes the one is taken that should be faster.

    Args:
        weight: packed, on any device; what it pads with is zero.

    Returns:
        the packing, on the device of the weight.

    Example:
        >>> from gansparse.ops import pack_tiles_conv2d
        >>> weight = torch.zeros(32, 64, 3, 3)
        >>> weight[:, :8, 1, 1] = 1.0
        >>> made = transposed_tiles(pack_tiles_conv2d(weight, "block"))
        >>> made.back.geometry.out_channels, made.back.geometry.vector, made.back.starts.tolist()
        (64, 16, [0, 1, 1, 1, 1])
    """
    g, device = weight.geometry, weight.places.device
    values, metadata, where, starts = (t.cpu() for t in weight[:4])
    steps, _, matrices = values.shape[:3]
    # The blocks of a step rise, its columns differ; what does not fills it up, no value of anyone.
    columns = where.shape[1] == COLUMN_STEP
    again = where[:, 1:] == where[:, :-1] if columns else where[:, 1:] <= where[:, :-1]
    filled = F.pad(again, (1, 0)).repeat_interleave(16 * matrices // where.shape[1], 1)
    filled = _in_lanes(filled[:, None].expand(-1, g.vector, -1))
    numbers = torch.arange(1, values.numel() + 1, dtype=torch.int32).view(values.shape)
    numbered = PackedTiles(numbers.masked_fill(filled, 0), metadata, where, starts, g)
    dense = unpack_tiles(numbered)
    # Taps of any phase that some channels have: the dense convolution does no others.
    phases = dense.view(g.out_channels, g.upscale**2, *dense.shape[1:])
    taps = max(1, int((phases != 0).any(2).any(0).sum()))
    all_products = g.out_channels * g.in_channels * taps
    matrix, geometry, cut = _exchanged(dense, g)
    matrix = F.pad(matrix, (0, 0, 0, 0, 0, -g.out_channels % 8))
    geometry = geometry._replace(in_channels=matrix.shape[1])
    made = []
    for rows in _MOST_BACK:
        layer = Layer(matrix, matrix != 0, geometry._replace(vector=rows))
        back = _pack(layer, "block", torch.int32)
        products = len(back.values) * 32 * rows
        back = PackedTiles(
            back.values.long().to(device), back.metadata.to(device), back.places.to(device),
            back.starts.to(device), back.geometry,
        )  # fmt: skip
        own = steps * (COLUMN_STEP if columns else 32) * g.vector
        made.append(TransposedTiles(back, cut, products / all_products, own / all_products))
    return min(made, key=lambda each: each.cost)


def kernel_gradients(
    grad: Tensor,  # [N, O, OH, OW]
    input: Tensor,  # [N, C, H, W]
    weight: PackedConv2d | PackedTiles,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input, [N, C, H, W], and of the packed values, as they lie: those wanted."""
    ops = torch.ops.gansparse
    packing: tuple[Any, ...] = (*weight[1:4], list(weight.geometry))
    of_input = of_values = None
    if isinstance(weight, PackedTiles):
        packing = (weight.values, *packing)
        if wanted[0]:
            of_input = ops.sparse_conv2d_tiles_input_gradient(grad, input, *packing)
        if wanted[1]:
            of_values = ops.sparse_conv2d_tiles_values_gradient(grad, input, *packing)
        return of_input, of_values
    if wanted[0]:
        of_input = ops.sparse_conv2d_input_gradient(grad, weight.values, *packing, *input.shape[2:])
    if wanted[1]:
        of_values = ops.sparse_conv2d_values_gradient(grad, input, *packing)
    return of_input, of_values


def _unpack(weight: PackedConv2d | PackedTiles) -> Tensor:
    return unpack_tiles(weight) if isinstance(weight, PackedTiles) else unpack_sparse_conv2d(weight)


def _margins(input: Tensor, g: ConvGeometry) -> list[int]:
    """Left, right, top, bottom: the padding that makes a dense convolution's outputs complete."""
    out: list[int] = []
    sizes = g.output_size(*input.shape[2:])
    along_w = (input.shape[3], sizes[1], g.pad_w, g.taps_w)
    along_h = (input.shape[2], sizes[0], g.pad_h, g.taps_h)
    for size, outputs, pad, taps in (along_w, along_h):
        grid = -(-outputs // g.upscale)
        out += [pad, (grid - 1) * g.stride + taps - pad - size]
    return out


def _phases(grad: Tensor, g: ConvGeometry) -> Tensor:
    """The gradient of outputs, filled up so that each phase has as many."""
    high, wide = (-(-n // g.upscale) * g.upscale for n in grad.shape[2:])
    return F.pad(grad, (0, wide - grad.shape[3], 0, high - grad.shape[2]))


def dense_gradients(
    grad: Tensor, input: Tensor, weight: PackedConv2d | PackedTiles, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The same by torch's dense convolution."""
    g = weight.geometry
    margins = _margins(input, g)
    padded = F.pad(input, margins)
    grad_padded, grad_dense, _ = torch.ops.aten.convolution_backward(
        F.pixel_unshuffle(_phases(grad, g), g.upscale), padded, _unpack(weight), None,
        [g.stride] * 2, [0, 0], [1, 1], False, [0, 0], 1, [*wanted, False],
    )  # fmt: skip
    grad_input = F.pad(grad_padded, [-m for m in margins]) if wanted[0] else None
    grad_values = None
    if wanted[1] and isinstance(weight, PackedTiles):
        matrix = F.pad(packed_rows(grad_dense, g), (0, 0, 0, 0, 0, -g.in_channels % g.block))
        grad_values = matrix.flatten()[tile_places(weight)] * (weight.values != 0)
    elif wanted[1] and isinstance(weight, PackedConv2d):
        grad_values = packed_rows(grad_dense, g).flatten()[places(weight)]
    return grad_input, grad_values


# The last packing made from each tensor of offsets or places, with what it was made from.
_made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _once(key: Tensor, weight: Any, make: Any) -> Any:
    """What is made of a packing, made once for a mask; `key` tells masks apart."""
    of = (key._version, weight.geometry)
    if key not in _made or _made[key][0] != of:
        _made[key] = of, make(weight)
    return _made[key][1]


_INPUT_SCHEMA = """sparse_conv2d_input_gradient(
    Tensor grad, Tensor values, Tensor offsets, Tensor starts, Tensor rows, int[] geometry,
    int height, int width) -> Tensor"""
_VALUES_SCHEMA = """sparse_conv2d_values_gradient(
    Tensor grad, Tensor input, Tensor offsets, Tensor starts, Tensor rows, int[] geometry) -> Tensor
"""


def _run_input(grad: Tensor, values: Tensor, *arguments: Any) -> Tensor:
    offsets, starts, rows, geometry, height, width = arguments
    weight = PackedConv2d(values, offsets, starts, rows, ConvGeometry(*geometry))
    order, *tensors, g, cut = _once(offsets, weight, transposed_packing)
    permuted = values.flatten()[order][:, None]
    op = torch.ops.gansparse.sparse_conv2d
    return _back(op, grad, (permuted, *tensors), g, (height, width), cut=cut).contiguous()


def _back(op: Any, grad: Tensor, tensors: Any, g: ConvGeometry, size: Pair, *, cut: Pair) -> Tensor:
    """The convolution of a transposed packing, for an input of this size."""
    high, wide = size[0] + 2 * cut[0], size[1] + 2 * cut[1]
    g = g._replace(
        growth_h=high * g.stride - grad.shape[2] * g.upscale,
        growth_w=wide * g.stride - grad.shape[3] * g.upscale,
    )
    whole: Tensor = op(grad, *tensors, list(g), None, None, "none", 0.0, None)
    return whole[:, :, cut[0] : high - cut[0], cut[1] : wide - cut[1]]


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


# ---- Tiles ----

_TILES_INPUT_SCHEMA = """sparse_conv2d_tiles_input_gradient(
    Tensor grad, Tensor input, Tensor values, Tensor metadata, Tensor places, Tensor starts,
    int[] geometry) -> Tensor"""
_TILES_VALUES_SCHEMA = """sparse_conv2d_tiles_values_gradient(
    Tensor grad, Tensor input, Tensor values, Tensor metadata, Tensor places, Tensor starts,
    int[] geometry) -> Tensor"""


def _to_eights(grad: Tensor) -> Tensor:
    """Channels filled up with zeros, channels_last."""
    padded = F.pad(grad, (0, 0, 0, 0, 0, -grad.shape[1] % 8))
    return padded.contiguous(memory_format=torch.channels_last)


def _tiles_of(arguments: tuple[Any, ...]) -> PackedTiles:
    values, metadata, places, starts, geometry = arguments
    return PackedTiles(values, metadata, places, starts, ConvGeometry(*geometry))


def _run_tiles_input(grad: Tensor, input: Tensor, *packing: Any) -> Tensor:
    weight = _tiles_of(packing)
    made: TransposedTiles = _once(weight.places, weight, transposed_tiles)
    if made.cost > 1:
        of_input, _ = dense_gradients(grad, input, weight, (True, False))
        assert of_input is not None
    else:
        numbers, *tensors, g = made.back
        values = F.pad(weight.values.flatten(), (1, 0))[numbers]
        op = torch.ops.gansparse.sparse_conv2d_tiles
        size = (input.shape[2], input.shape[3])
        of_input = _back(op, _to_eights(grad), (values, *tensors), g, size, cut=made.cut)
    return of_input.contiguous(memory_format=torch.channels_last)


def _fake_tiles_input(grad: Tensor, input: Tensor, *packing: Any) -> Tensor:
    return torch.empty_like(input, memory_format=torch.channels_last)


def _run_tiles_values(grad: Tensor, input: Tensor, *packing: Any) -> Tensor:
    weight = _tiles_of(packing)
    made: TransposedTiles = _once(weight.places, weight, transposed_tiles)
    if weight.values.shape[2] == 1 or made.own_share > _MOST_OWN:
        _, of_values = dense_gradients(grad, input, weight, (False, True))
        assert of_values is not None
        return of_values
    output = torch.zeros_like(weight.values)
    arguments = (*_gradient_arguments(grad, input, weight), output, current_stream(input))
    _C.sparse_conv2d_tiles_gradient(*arguments)
    return output


def _gradient_arguments(grad: Tensor, input: Tensor, weight: PackedTiles) -> Any:
    """Of the core's function, but for output and stream."""
    values, _, places, starts, g = weight
    grad = _to_eights(grad)
    g = g._replace(out_channels=grad.shape[1])
    input = input.contiguous(memory_format=torch.channels_last)
    return input, values, places, starts, list(g), grad


def _fake_tiles_values(grad: Tensor, input: Tensor, *packing: Any) -> Tensor:
    weight = _tiles_of(packing)
    output = torch.empty_like(weight.values)
    if weight.values.shape[2] == 2:
        arguments = (*_gradient_arguments(grad, input, weight), output)
        described: Any = (describe(x) if isinstance(x, Tensor) else x for x in arguments)
        _C.sparse_conv2d_tiles_gradient(*described)
    return output


define(_INPUT_SCHEMA, _run_input, _fake_input)
define(_VALUES_SCHEMA, _run_values, _fake_values)
define(_TILES_INPUT_SCHEMA, _run_tiles_input, _fake_tiles_input)
define(_TILES_VALUES_SCHEMA, _run_tiles_values, _fake_tiles_values)
