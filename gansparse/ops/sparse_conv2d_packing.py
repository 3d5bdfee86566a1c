# SPDX-License-Identifier: Apache-2.0
"""Packed weights of sparse convolutions: plain tensors that move, save and load like any other.

The layout is told in ``csrc/ops/sparse_conv2d/sparse_conv2d.h``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gansparse.errors import InputError

PaddingMode = Literal["zeros", "reflect", "replicate"]
Pair = tuple[int, int]

_LANES = 16
_CHUNK_ROWS = 256
# Rows of a vector share what they load, and so can have it from the second cache; longer lists are
# worth more to them: 5 to 15 % at 90 % zeros.
_SCRATCH_FLOATS = {True: 24576, False: 10240}
_MOST_TAPS = 15


class ConvGeometry(NamedTuple):
    """The numbers of a packed convolution, in the order of the native struct."""

    out_channels: int
    in_channels: int
    taps_h: int
    taps_w: int
    stride: int
    upscale: int
    pad_h: int
    pad_w: int
    growth_h: int
    growth_w: int
    padding: int  # 0 zeros, 1 reflect, 2 replicate
    patch: int
    vector: int
    block: int

    def output_size(self, height: int, width: int) -> Pair:
        """(OH, OW) for an input of this size."""
        return (
            max(0, (height * self.upscale + self.growth_h) // self.stride),
            max(0, (width * self.upscale + self.growth_w) // self.stride),
        )

    @property
    def matrix_rows(self) -> int:
        """M: rows of the packed matrix."""
        return self.upscale**2 * -(-self.out_channels // self.vector) * self.vector

    @property
    def channel_floats(self) -> int:
        """Scratch that one input channel takes."""
        rows = self.patch - 1 + -(-self.taps_h // self.stride)
        columns = self.patch - 1 + -(-self.taps_w // self.stride)
        return self.stride**2 * rows * columns * _LANES


class PackedConv2d(NamedTuple):
    """A packed convolution or transposed convolution.

    Args:
        values: [K, V] float32, the weights that stayed.
        offsets: [K] int16, where the kernel finds the input of each.
        starts: [L + 1] int32, the first weight of each list.
        rows: [L] int32, the output row of each list.
        geometry: shape of the layer and of the packing.
    """

    values: Tensor
    offsets: Tensor
    starts: Tensor
    rows: Tensor
    geometry: ConvGeometry


def pack_sparse_conv2d(
    weight: Tensor,  # [O, C, R, S], pruned weights are 0
    *,
    stride: int = 1,
    padding: int | Pair = 0,
    padding_mode: PaddingMode = "zeros",
    vector_size: int = 1,
    mask: Tensor | None = None,  # [O, C, R, S] bool
    size: tuple[int, int, int] | None = None,
) -> PackedConv2d:
    """Pack the weight of a convolution for `sparse_conv2d`.

    Args:
        weight: [O, C, R, S] float32, kernels of up to 15 x 15.
        stride: 1 or 2.
        padding: pixels on each side, or (height, width).
        padding_mode: ``zeros``, ``reflect`` or ``replicate``.
        vector_size: 1, or 4, 8, 16, 32, 64, 128 where so many neighbouring output channels share a
            pattern; what only some of them keep costs as if all of them did.
        mask: which weights are kept; None: those that are not 0.
        size: (N, H, W) of the input that the layer will see most. It makes the packing fit, for as
            many threads as torch has now; others stay right.

    Returns:
        the packed weight, on the CPU.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> packed = pack_sparse_conv2d(torch.eye(4).view(4, 4, 1, 1))
        >>> packed.values.flatten().tolist(), packed.rows.tolist()
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 2, 3])
    """
    layer = conv2d_layer(weight, stride, padding, padding_mode, mask, vector_size=vector_size)
    return pack_layer(layer._replace(geometry=_fit(layer.geometry, size)))


def pack_sparse_conv_transpose2d(
    weight: Tensor,  # [C, O, R, S], pruned weights are 0
    *,
    stride: int = 1,
    padding: int | Pair = 0,
    output_padding: int | Pair = 0,
    vector_size: int = 1,
    mask: Tensor | None = None,  # [C, O, R, S] bool
    size: tuple[int, int, int] | None = None,
) -> PackedConv2d:
    """Pack the weight of a transposed convolution for `sparse_conv_transpose2d`.

    With stride 2, output pixel (2i + a, 2j + b) is made by the taps r of one parity, from input
    rows i + (a + padding − r) / 2: for each of the four phases (a, b) a convolution of stride 1.
    All four become one, over the window of input rows that any of them needs.

    Args:
        weight: [C, O, R, S] float32.
        stride: 1 or 2.
        padding: as torch has it, at most R − 1.
        output_padding: 0, or with stride 2 up to 1.
        vector_size: as for `pack_sparse_conv2d`.
        mask: which weights are kept; None: those that are not 0.
        size: (N, H, W) of the input that the layer will see most.

    Returns:
        the packed weight, on the CPU.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> packed = pack_sparse_conv_transpose2d(torch.ones(1, 1, 4, 4), stride=2, padding=1)
        >>> packed.geometry.upscale, packed.geometry.taps_h, len(packed.values)
        (2, 3, 16)
    """
    layer = conv_transpose2d_layer(
        weight, stride, padding, output_padding, mask, vector_size=vector_size
    )
    return pack_layer(layer._replace(geometry=_fit(layer.geometry, size)))


def unpack_sparse_conv2d(weight: PackedConv2d) -> Tensor:
    """The dense weight of a packed convolution.

    Args:
        weight: from `pack_sparse_conv2d`, or from `pack_sparse_conv_transpose2d`.

    Returns:
        [upscale² · O, C, R, S]: of a convolution of stride 1 or 2, to be followed by a pixel
        shuffle where upscale is 2.

    Example:
        >>> weight = torch.tensor([[[[0.0, 2.0], [3.0, 0.0]]]])
        >>> torch.equal(unpack_sparse_conv2d(pack_sparse_conv2d(weight)), weight)
        True
    """
    g = weight.geometry
    matrix = weight.values.new_zeros(g.matrix_rows * g.in_channels * g.taps_h * g.taps_w)
    matrix = matrix.index_put((places(weight),), weight.values)
    return shuffled_rows(matrix.view(-1, g.in_channels, g.taps_h, g.taps_w), g)


class Layer(NamedTuple):
    """A convolution, or a transposed one written as one, before it is packed.

    Args:
        weight: [upscale² · O, C, R, S] float32.
        kept: which weights stay, bool.
        geometry: with the largest patch and the smallest block.
    """

    weight: Tensor
    kept: Tensor
    geometry: ConvGeometry


def conv2d_layer(
    weight: Tensor,  # [O, C, R, S]
    stride: int,
    padding: int | Pair,
    padding_mode: PaddingMode,
    mask: Tensor | None,
    *,
    vector_size: int,
) -> Layer:
    """Check a convolution and describe it; arguments as of `pack_sparse_conv2d`."""
    kept = _check(weight, mask, vector_size, stride, padding_mode)
    weight = torch.where(kept, weight, 0)  # what is kept as a whole may have lost a part
    out, channels, taps_h, taps_w = weight.shape
    pad_h, pad_w = _pair(padding)
    geometry = ConvGeometry(
        out, channels, taps_h, taps_w, stride, 1, pad_h, pad_w,
        2 * pad_h - taps_h + stride, 2 * pad_w - taps_w + stride,
        get_args(PaddingMode).index(padding_mode), 4, vector_size, 1,
    )  # fmt: skip
    return Layer(weight, kept, geometry)


def conv_transpose2d_layer(
    weight: Tensor,  # [C, O, R, S]
    stride: int,
    padding: int | Pair,
    output_padding: int | Pair,
    mask: Tensor | None,
    *,
    vector_size: int,
) -> Layer:
    """Write a transposed convolution as a convolution; see `pack_sparse_conv_transpose2d`."""
    kept = _check(weight, mask, vector_size, stride, "zeros")
    weight = torch.where(kept, weight, 0)
    channels, out, taps_h, taps_w = weight.shape
    (pad_h, pad_w), (extra_h, extra_w) = _pair(padding), _pair(output_padding)
    for name, pad, extra, taps in (("h", pad_h, extra_h, taps_h), ("w", pad_w, extra_w, taps_w)):
        if pad >= taps:
            raise InputError(f"padding must be less than the kernel, got {pad} for {taps} ({name})")
        if not 0 <= extra < stride:
            raise InputError(f"output_padding must be at least 0 and less than stride, got {extra}")
    rows, columns = _window(taps_h, stride, pad_h), _window(taps_w, stride, pad_w)
    phases = stride**2
    shape = (out * phases, channels, rows.taps, columns.taps)
    windowed, window_kept = weight.new_zeros(shape), kept.new_zeros(shape)
    for a, r, i in rows.places:
        for b, s, j in columns.places:
            windowed[a * stride + b :: phases, :, i, j] = weight[:, :, r, s].T
            window_kept[a * stride + b :: phases, :, i, j] = kept[:, :, r, s].T
    geometry = ConvGeometry(
        out, channels, rows.taps, columns.taps, 1, stride, rows.pad, columns.pad,
        taps_h - stride - 2 * pad_h + extra_h, taps_w - stride - 2 * pad_w + extra_w,
        0, 4, vector_size, 1,
    )  # fmt: skip
    return Layer(windowed, window_kept, geometry)


def places(weight: PackedConv2d) -> Tensor:
    """Where each packed value lies in the flattened matrix [M, C, R, S]: [K, V] int64."""
    g, device = weight.geometry, weight.starts.device
    taps = g.taps_h * g.taps_w
    blocks, lists = -(-g.in_channels // g.block), len(weight.rows)
    groups, in_chunk = g.matrix_rows // g.vector, _CHUNK_ROWS // g.vector
    number = torch.arange(lists, device=device)
    chunk = number // (in_chunk * blocks)
    in_last = groups - (groups - 1) // in_chunk * in_chunk
    in_this = torch.where(chunk == (groups - 1) // in_chunk, in_last, in_chunk)
    block = (number - chunk * in_chunk * blocks) // in_this
    first = weight.rows.long() * (g.in_channels * taps) + block * (g.block * taps)
    lengths = weight.starts.long().diff()
    of_weight = torch.repeat_interleave(first, lengths, output_size=len(weight.offsets))
    place_at = [0] * (g.block * g.channel_floats // _LANES)
    for place, offset in enumerate(_offsets(g)):
        place_at[offset // _LANES] = place
    found = torch.tensor(place_at, device=device)[(weight.offsets.long() & 0xFFFF) // _LANES]
    of_weight = of_weight + found
    return of_weight[:, None] + torch.arange(g.vector, device=device) * (g.in_channels * taps)


def shuffled_rows(matrix: Tensor, g: ConvGeometry) -> Tensor:
    """Rows from [O / V][phase][V], filled up, to [O][phase], as a pixel shuffle wants them."""
    rows = matrix.view(-1, g.upscale**2, g.vector, *matrix.shape[1:]).transpose(1, 2)
    return rows.flatten(0, 1)[: g.out_channels].flatten(0, 1)


def packed_rows(matrix: Tensor, g: ConvGeometry) -> Tensor:
    """The reverse of `shuffled_rows`: [M / V, V, ...]."""
    rows = matrix.view(g.out_channels, g.upscale**2, *matrix.shape[1:])
    missing = g.matrix_rows // g.upscale**2 - g.out_channels
    rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return rows.view(-1, g.vector, *rows.shape[1:]).transpose(1, 2).flatten(0, 1)


def pack_layer(layer: Layer) -> PackedConv2d:
    """Pack what its geometry says."""
    weight, kept, g = layer
    matrix = packed_rows(weight.detach().cpu(), g).flatten(3)  # [M / V, V, C, R·S]
    keep = packed_rows(kept.cpu(), g).flatten(3).any(1)  # [M / V, C, R·S]
    table = torch.tensor(_offsets(g))
    in_chunk = _CHUNK_ROWS // g.vector
    values, offsets, counts, rows = [], [], [], []
    for group in range(0, len(matrix), in_chunk):
        for channel in range(0, g.in_channels, g.block):
            part = keep[group : group + in_chunk, channel : channel + g.block].flatten(1)
            lengths, order = part.sum(1).sort(stable=True)
            which, place = part[order].nonzero(as_tuple=True)
            dense = matrix[group : group + in_chunk, :, channel : channel + g.block].flatten(2)
            values.append(dense[order[which], :, place])
            offsets.append(table[place])
            counts.append(lengths)
            rows.append((order + group) * g.vector)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
    return PackedConv2d(
        torch.cat(values).contiguous(),
        torch.cat(offsets).to(torch.int16),
        starts.to(torch.int32),
        torch.cat(rows).to(torch.int32),
        g,
    )


def _offsets(g: ConvGeometry) -> list[int]:
    """For c < block, r, s: floats from the scratch's start to the vector of the weight's input."""
    rows = g.patch - 1 + -(-g.taps_h // g.stride)
    columns = g.patch - 1 + -(-g.taps_w // g.stride)

    def vector(r: int, s: int) -> int:
        phase = r % g.stride * g.stride + s % g.stride
        return (phase * rows + r // g.stride) * columns + s // g.stride

    taps = [vector(r, s) * _LANES for r in range(g.taps_h) for s in range(g.taps_w)]
    return [c * g.channel_floats + tap for c in range(g.block) for tap in taps]


def _fit(g: ConvGeometry, size: tuple[int, int, int] | None) -> ConvGeometry:
    """Choose patch and block."""
    if size is not None:
        g = g._replace(patch=_patch(g, *size))
    most = max(1, _SCRATCH_FLOATS[g.vector > 1] // g.channel_floats)
    blocks = -(-g.in_channels // most)
    return g._replace(block=-(-g.in_channels // blocks))


def _patch(g: ConvGeometry, batch: int, height: int, width: int) -> int:
    """The patch for which the thread with most pixels, weighted by what one costs, has fewest."""
    high, wide = (-(-n // g.upscale) for n in g.output_size(height, width))
    chunks, threads = -(-g.matrix_rows // _CHUNK_ROWS), torch.get_num_threads()

    def cost(patch: int) -> float:
        tiles = min(
            -(-batch // n) * -(-high // (y * patch)) * -(-wide // (16 // n // y * patch))
            for n in (1, 2, 4, 8, 16)
            for y in (1, 2, 4, 8, 16)
            if n * y <= _LANES
        )
        return -(-tiles * chunks // threads) * patch**2 * {4: 1.0, 2: 1.25, 1: 2.0}[patch]

    return min((4, 2, 1), key=cost)


class _Window(NamedTuple):
    taps: int
    pad: int
    places: list[tuple[int, int, int]]  # phase, tap of the kernel, tap of the window


def _window(taps: int, stride: int, pad: int) -> _Window:
    """One dimension of a transposed convolution as a convolution of stride 1."""
    every = ((a, r) for a in range(stride) for r in range(taps) if (a + pad - r) % stride == 0)
    found = [(a, r, (a + pad - r) // stride) for a, r in every]
    shifts = [shift for _, _, shift in found]
    first, last = min(0, *shifts), max(shifts)
    return _Window(last - first + 1, -first, [(a, r, shift - first) for a, r, shift in found])


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value


def _check(
    weight: Tensor, mask: Tensor | None, vector_size: int, stride: int, padding_mode: str
) -> Tensor:
    """Refuse what can't be packed; returns which weights are kept."""
    shape = list(weight.shape)
    if weight.dtype != torch.float32 or weight.dim() != 4 or weight.numel() == 0:
        raise InputError(f"weight must be float32 with 4 dimensions, got {weight.dtype} {shape}")
    if max(shape[2:]) > _MOST_TAPS:
        raise InputError(f"weight must have at most {_MOST_TAPS} x {_MOST_TAPS} taps, got {shape}")
    if stride not in (1, 2):
        raise InputError(f"stride must be 1 or 2, got {stride}; torch's dense convolution has more")
    if padding_mode not in get_args(PaddingMode):
        known = ", ".join(get_args(PaddingMode))
        raise InputError(f"padding_mode must be one of {known}, got {padding_mode!r}")
    if vector_size not in (1, 4, 8, 16, 32, 64, 128):
        raise InputError(f"vector_size must be 1, 4, 8, 16, 32, 64 or 128, got {vector_size!r}")
    if mask is None:
        return weight != 0
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise InputError(f"mask must be bool {shape}, got {mask.dtype} {list(mask.shape)}")
    return mask
