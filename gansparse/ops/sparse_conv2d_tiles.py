# SPDX-License-Identifier: Apache-2.0
"""Packed weights of sparse convolutions on CUDA: tiles as tensor cores take them.

The layout is told in ``csrc/ops/sparse_conv2d/sparse_conv2d_tiles.h``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gansparse.errors import InputError
from gansparse.ops.sparse_conv2d_packing import (
    ConvGeometry,
    Layer,
    PaddingMode,
    Pair,
    conv2d_layer,
    conv_transpose2d_layer,
    packed_rows,
    shuffled_rows,
)

TilePattern = Literal["2:4", "block"]

_CHANNELS = 32  # of a list
_PART = 8  # input channels of a block
_PARTS = _CHANNELS // _PART
_MOST_TAPS = 9
_ROWS = {"2:4": (32, 64, 128), "block": (16, 32)}
#: A step of tiles with so many rows is the 32 channels of a list at one tap.
_WHOLE_STEPS = 128


class PackedTiles(NamedTuple):
    """A packed convolution or transposed convolution for CUDA.

    Args:
        values: [K, V / 16, F, 32, 8] float16 or bfloat16, K steps; F is 1 for 2:4, 2 for block.
        metadata: [K, V / 32, 32] int32, which two of four stayed; for block [0].
        places: [K, 4] int16, the blocks of each step.
        starts: [L + 1] int32, the first step of each list.
        geometry: shape of the layer; ``vector`` is V, ``block`` is 32.
    """

    values: Tensor
    metadata: Tensor
    places: Tensor
    starts: Tensor
    geometry: ConvGeometry


def pack_tiles_conv2d(
    weight: Tensor,  # [O, C, R, S], pruned weights are 0
    pattern: TilePattern = "2:4",
    *,
    rows: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    stride: int = 1,
    padding: int | Pair = 0,
    padding_mode: PaddingMode = "zeros",
    mask: Tensor | None = None,  # [O, C, R, S] bool
) -> PackedTiles:
    """Pack the weight of a convolution for `sparse_conv2d` on CUDA.

    Both patterns leave out what is zero in blocks of `rows` output channels x 8 input channels at a
    tap; ``2:4`` also leaves out half of what is in a block.

    Args:
        weight: [O, C, R, S] float32, C a multiple of 8, kernels of up to 9 x 9. For ``2:4`` at most
            two of each four neighbouring input channels are kept for an output channel at a tap.
        pattern: ``2:4`` or ``block``.
        rows: output channels of a block: 32 or 64 for ``2:4``, 16 or 32 for ``block``. 128, for
            ``2:4``, is a kernel of its own, for compute capability 9.0 only; its blocks are 128
            output channels x 32 input channels.
        dtype: float16 or bfloat16, of the packed weights and of the layer's input.
        stride: 1 or 2.
        padding: pixels on each side, or (height, width).
        padding_mode: ``zeros``, ``reflect`` or ``replicate``.
        mask: which weights are kept; None: those that are not 0.

    Returns:
        the packed weight, where the weight was.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> weight = torch.zeros(32, 8, 1, 1)
        >>> weight[:, [1, 3, 4]] = 2.0
        >>> packed = pack_tiles_conv2d(weight)
        >>> packed.values.shape, hex(packed.metadata[0, 0, 0] & 0xF)
        (torch.Size([1, 2, 1, 32, 8]), '0xd')
    """
    _check(pattern, rows, dtype)
    layer = conv2d_layer(weight, stride, padding, padding_mode, mask, vector_size=rows)
    return _pack(layer, pattern, dtype)


def pack_tiles_conv_transpose2d(
    weight: Tensor,  # [C, O, R, S], pruned weights are 0
    pattern: TilePattern = "2:4",
    *,
    rows: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    stride: int = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    mask: Tensor | None = None,  # [C, O, R, S] bool
) -> PackedTiles:
    """Pack the weight of a transposed convolution for `sparse_conv_transpose2d` on CUDA.

    Each phase of an output pixel (`pack_sparse_conv_transpose2d` tells what that is) has its own
    rows, and its blocks are only those of the taps that meet it: nothing is computed in vain.

    Args:
        weight: [C, O, R, S] float32; else as for `pack_tiles_conv2d`.
        pattern: ``2:4`` or ``block``.
        rows: as for `pack_tiles_conv2d`.
        dtype: float16 or bfloat16.
        stride: 1 or 2.
        padding: as torch has it, at most R − 1.
        output_padding: 0, or with stride 2 up to 1.
        mask: which weights are kept; None: those that are not 0.

    Returns:
        the packed weight, where the weight was.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> weight = torch.ones(8, 16, 4, 4)
        >>> packed = pack_tiles_conv_transpose2d(weight, "block", rows=16, stride=2)
        >>> packed.geometry.upscale, packed.starts.diff().tolist()
        (2, [1, 1, 1, 1])
    """
    _check(pattern, rows, dtype)
    layer = conv_transpose2d_layer(weight, stride, padding, output_padding, mask, vector_size=rows)
    return _pack(layer, pattern, dtype)


def unpack_tiles(weight: PackedTiles) -> Tensor:
    """The dense weight of packed tiles, [upscale² · O, C, R, S], as `unpack_sparse_conv2d` has it.

    Example:
        >>> weight = torch.ones(16, 8, 1, 1)
        >>> packed = pack_tiles_conv2d(weight, "block", rows=16)
        >>> torch.equal(unpack_tiles(packed), weight.bfloat16())
        True
    """
    g = weight.geometry
    matrix = weight.values.new_zeros(g.matrix_rows * _padded_channels(g) * g.taps_h * g.taps_w)
    # What fills a step up are zeros at a place that others may have: they are added.
    matrix = matrix.index_put((tile_places(weight),), weight.values, accumulate=True)
    matrix = matrix.view(g.matrix_rows, -1, g.taps_h, g.taps_w)[:, : g.in_channels]
    return shuffled_rows(matrix, g)


def tile_places(weight: PackedTiles) -> Tensor:
    """Where each packed value lies in the flattened matrix [M, C to 32, R·S]: int64, as values."""
    g, device = weight.geometry, weight.values.device
    steps, tiles, matrices = weight.values.shape[:3]
    taps, chunks = g.taps_h * g.taps_w, _padded_channels(g) // _CHANNELS
    lists = torch.arange(len(weight.starts) - 1, device=device)
    of_step = torch.repeat_interleave(lists, weight.starts.long().diff(), output_size=steps)
    # ---- Products [K, 32]: channel and tap ----
    places = weight.places.long()
    channels = of_step[:, None] % chunks * _CHANNELS + places % _PARTS * _PART
    channels = (channels[:, :, None] + torch.arange(_PART, device=device)).flatten(1)
    columns = channels * taps + (places // _PARTS).repeat_interleave(_PART, 1)
    # ---- Columns of the matrices [K, V, 16 F]: which product ----
    if matrices == 1:
        which = _told(weight.metadata)
    else:
        which = torch.arange(_CHANNELS, device=device).expand(steps, 16 * tiles, -1)
    columns = columns[:, None].expand(-1, 16 * tiles, -1).gather(2, which)
    first = of_step // chunks * g.vector
    rows = first[:, None] + torch.arange(g.vector, device=device)
    return _in_lanes(rows[:, :, None] * (_padded_channels(g) * taps) + columns)


def _padded_channels(g: ConvGeometry) -> int:
    return -(-g.in_channels // _CHANNELS) * _CHANNELS


def _pack(layer: Layer, pattern: TilePattern, dtype: torch.dtype) -> PackedTiles:
    g = layer.geometry._replace(patch=1, block=_CHANNELS)
    if g.in_channels % _PART:
        raise InputError(f"weight must have a multiple of 8 input channels, got {g.in_channels}")
    if max(g.taps_h, g.taps_w) > _MOST_TAPS:
        raise InputError(f"weight must have at most 9 x 9 taps, got {g.taps_h} x {g.taps_w}")
    missing = _padded_channels(g) - g.in_channels

    def blocks(matrix: Tensor) -> Tensor:
        """[M / V, V, chunks, parts, 8, R·S]."""
        matrix = packed_rows(matrix, g).flatten(3)
        filled = torch.nn.functional.pad(matrix, (0, 0, 0, missing))
        return torch.unflatten(filled, 2, (-1, _PARTS, _PART))

    values, kept = blocks(layer.weight.detach().to(dtype)), blocks(layer.kept)
    # ---- Which blocks, in the order of lists; four make a step ----
    used = kept.any(4).any(1).transpose(2, 3)  # [M / V, chunks, R·S, parts]
    if g.vector == _WHOLE_STEPS:
        used = used.any(3, keepdim=True).expand_as(used)
    tile, chunk, tap, part = used.nonzero(as_tuple=True)
    counts = used.flatten(0, 1).flatten(1).sum(1)
    starts = torch.cat([counts.new_zeros(1), (-(-counts // _PARTS)).cumsum(0)])
    of_list = tile * used.shape[1] + chunk
    number = torch.arange(len(tile), device=tile.device) - (counts.cumsum(0) - counts)[of_list]
    step, slot = starts[of_list] + number // _PARTS, number % _PARTS
    steps = int(starts[-1])
    places = tap.new_zeros(steps, _PARTS)
    places[step, slot] = tap * _PARTS + part
    # ---- Their weights: [K, V, 32] ----
    products = values.new_zeros(steps, _PARTS, g.vector, _PART)
    stay = kept.new_zeros(products.shape)
    products[step, slot] = values[tile, :, chunk, part, :, tap]
    stay[step, slot] = kept[tile, :, chunk, part, :, tap]
    products, stay = (x.transpose(1, 2).flatten(2) for x in (products, stay))
    metadata = torch.empty(0, dtype=torch.int32, device=values.device)
    if pattern == "2:4":
        which = _two_of_four(stay)
        products = products.gather(2, which)
        metadata = _metadata(which)
    return PackedTiles(
        _in_lanes(products), metadata, places.to(torch.int16), starts.to(torch.int32), g
    )


def _two_of_four(stay: Tensor) -> Tensor:
    """[K, V, 32] bool → [K, V, 16]: the two columns of each four that stay, rising."""
    quads = torch.unflatten(stay, 2, (-1, 4))
    if bool((quads.sum(3) > 2).any()):
        raise InputError(
            "weight must keep at most two of each four neighbouring input channels for pattern "
            "2:4, got more; prune it with granularity 2:4, or pack it as block"
        )
    # What stays first, then, where there are fewer than two, whatever comes first.
    two = (~quads).long().argsort(dim=3, stable=True)[..., :2].sort(dim=3).values
    four = 4 * torch.arange(quads.shape[2], device=stay.device)
    return (two + four[:, None]).flatten(2)


def _metadata(which: Tensor) -> Tensor:
    """[K, V, 16] columns → [K, V / 32, 32]: as sparse tensor cores want them, a word a lane."""
    bits = which % 4 << (2 * torch.arange(16, device=which.device) % 16)
    halves = torch.unflatten(bits, 2, (2, 8)).sum(3)  # [K, V, 16 columns of A each]: 16 bits
    halves = torch.unflatten(
        halves, 1, (-1, 2, 2, 8)
    )  # [K, V / 32, selector, row / 8, row % 8, half]
    words = halves[:, :, :, 0] | halves[:, :, :, 1] << 16
    return words.permute(0, 1, 3, 2, 4).flatten(2).to(torch.int32)


def _told(metadata: Tensor) -> Tensor:
    """The reverse of `_metadata`."""
    words = torch.unflatten(metadata.long(), 2, (8, 2, 2)).permute(0, 1, 3, 2, 4)
    halves = torch.stack([words & 0xFFFF, words >> 16 & 0xFFFF], 3).flatten(1, 4)  # [K, V, 2]
    device = metadata.device
    two = halves[..., None] >> 2 * torch.arange(8, device=device) & 3
    return two.flatten(2) + 4 * (torch.arange(16, device=device) // 2)


def _in_lanes(matrix: Tensor) -> Tensor:
    """[K, V, 16 F] → [K, V / 16, F, 32, 8]: 16 x 16 matrices as the lanes of a warp hold them."""
    # [K, V / 16, row / 8, row % 8, F, column / 8, column % 8 / 2, column % 2]
    parts = torch.unflatten(torch.unflatten(matrix, 2, (-1, 2, 4, 2)), 1, (-1, 2, 8))
    return parts.permute(0, 1, 4, 3, 6, 5, 2, 7).flatten(5).flatten(3, 4).contiguous()


def _check(pattern: str, rows: int, dtype: torch.dtype) -> None:
    if pattern not in get_args(TilePattern):
        raise InputError(f"pattern must be 2:4 or block, got {pattern!r}")
    if rows not in _ROWS[pattern]:
        *first, last = map(str, _ROWS[pattern])
        known = f"{', '.join(first)} or {last}"
        raise InputError(f"rows must be {known} for pattern {pattern}, got {rows!r}")
    if dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"dtype must be float16 or bfloat16, got {dtype}")
