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

TilePattern = Literal["2:4", "block", "vector"]

_CHANNELS, _MOST_CHANNELS = 32, 64  # of a list; of vector
_FEW_ROWS = 128  # with which several blocks lie beside each other, if shared memory is left
_PART = 8  # input channels of a block
_PARTS = _CHANNELS // _PART
_MOST_TAPS = 9
_ROWS = {"2:4": (32, 64, 128), "block": (16, 32), "vector": (16,)}
#: Places of a step of `vector`: columns. The others have `_PARTS`, of 8 channels each.
COLUMN_STEP = 16
#: A step of tiles with so many rows is the 32 channels of a list at one tap.
_WHOLE_STEPS = 128


class PackedTiles(NamedTuple):
    """A packed convolution or transposed convolution for CUDA.

    Args:
        values: [K, V / 16, F, 32, 8] float16 or bfloat16, K steps; F is 2 for block, else 1.
        metadata: [K, V / 32, 32] int32, which two of four stayed; but for 2:4 [0].
        places: [K, 4] int16, the blocks of each step; for vector [K, 16], its columns.
        starts: [L + 1] int32, the first step of each list.
        geometry: shape of the layer; ``vector`` is V, ``block`` the channels of a list.
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
    list_channels: int | None = None,
) -> PackedTiles:
    """Pack the weight of a convolution for `sparse_conv2d` on CUDA.

    ``block`` and ``2:4`` leave out what is zero in blocks of `rows` output channels x 8 input
    channels at a tap, ``2:4`` also half of what is in a block; ``vector`` leaves out what is zero
    in `rows` output channels of one input channel at a tap, with kernels of up to 4 x 4 to 8 x 8,
    by stride and device.

    Args:
        weight: [O, C, R, S] float32, C a multiple of 8, kernels of up to 9 x 9. For ``2:4`` at most
            two of each four neighbouring input channels are kept for an output channel at a tap.
        pattern: ``2:4``, ``block`` or ``vector``.
        rows: output channels of a block: 32 or 64 for ``2:4``, 16 or 32 for ``block``, 16 for
            ``vector``. 128, for ``2:4``, is a kernel of its own, for compute capability 9.0 only;
            its blocks are 128 output channels x 32 input channels.
        dtype: float16 or bfloat16, of the packed weights and of the layer's input.
        stride: 1 or 2.
        padding: pixels on each side, or (height, width).
        padding_mode: ``zeros``, ``reflect`` or ``replicate``.
        mask: which weights are kept; None: those that are not 0.
        list_channels: of ``vector``, how many input channels lie in shared memory at a time: 32,
            or 64, which takes twice as much of it: 150 KB at 3 x 3. None: 64 at stride 1 with up to
            3 x 3 taps, more than 32 channels and more than 128 rows of outputs and phases.

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
    return _pack(layer, pattern, dtype, list_channels)


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
    list_channels: int | None = None,
) -> PackedTiles:
    """Pack the weight of a transposed convolution for `sparse_conv_transpose2d` on CUDA.

    Each phase of an output pixel (`pack_sparse_conv_transpose2d` tells what that is) has its own
    rows, and its blocks are only those of the taps that meet it: nothing is computed in vain.

    Args:
        weight: [C, O, R, S] float32; else as for `pack_tiles_conv2d`.
        pattern: as for `pack_tiles_conv2d`.
        rows: as for `pack_tiles_conv2d`.
        dtype: float16 or bfloat16.
        stride: 1 or 2.
        padding: as torch has it, at most R − 1.
        output_padding: 0, or with stride 2 up to 1.
        mask: which weights are kept; None: those that are not 0.
        list_channels: as for `pack_tiles_conv2d`.

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
    return _pack(layer, pattern, dtype, list_channels)


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
    taps, chunks = g.taps_h * g.taps_w, _padded_channels(g) // g.block
    lists = torch.arange(len(weight.starts) - 1, device=device)
    of_step = torch.repeat_interleave(lists, weight.starts.long().diff(), output_size=steps)
    # ---- Products [K, 32], of vector [K, 16]: channel and tap ----
    places = weight.places.long()
    first = of_step[:, None] % chunks * g.block
    if places.shape[1] == COLUMN_STEP:
        columns = (first + places % g.block) * taps + places // g.block
    else:
        channels = first + places % _PARTS * _PART
        channels = (channels[:, :, None] + torch.arange(_PART, device=device)).flatten(1)
        columns = channels * taps + (places // _PARTS).repeat_interleave(_PART, 1)
    # ---- Columns of the matrices [K, V, 16 F]: which product ----
    if places.shape[1] == COLUMN_STEP:
        which = torch.arange(COLUMN_STEP, device=device).expand(steps, 16 * tiles, -1)
    elif matrices == 1:
        which = _told(weight.metadata)
    else:
        which = torch.arange(_CHANNELS, device=device).expand(steps, 16 * tiles, -1)
    columns = columns[:, None].expand(-1, 16 * tiles, -1).gather(2, which)
    rows = (of_step // chunks * g.vector)[:, None] + torch.arange(g.vector, device=device)
    return _in_lanes(rows[:, :, None] * (_padded_channels(g) * taps) + columns)


def _padded_channels(g: ConvGeometry) -> int:
    return -(-g.in_channels // g.block) * g.block


def _pack(
    layer: Layer, pattern: TilePattern, dtype: torch.dtype, list_channels: int | None = None
) -> PackedTiles:
    g = layer.geometry
    if list_channels is None:
        narrow = g.stride == 1 and max(g.taps_h, g.taps_w) <= 3 and g.in_channels > _CHANNELS
        narrow &= g.matrix_rows > _FEW_ROWS
        list_channels = _MOST_CHANNELS if narrow and pattern == "vector" else _CHANNELS
    if list_channels != _CHANNELS and (list_channels, pattern) != (_MOST_CHANNELS, "vector"):
        raise InputError(f"list_channels must be 32, or 64 for vector, got {list_channels}")
    if list_channels == _MOST_CHANNELS and g.taps_h * g.taps_w > list_channels:
        raise InputError(
            f"list_channels must be 32 for more than 64 taps, got {g.taps_h} x {g.taps_w} taps"
        )
    g = g._replace(patch=1, block=list_channels)
    if g.in_channels % _PART:
        raise InputError(f"weight must have a multiple of 8 input channels, got {g.in_channels}")
    if max(g.taps_h, g.taps_w) > _MOST_TAPS:
        raise InputError(f"weight must have at most 9 x 9 taps, got {g.taps_h} x {g.taps_w}")
    missing = _padded_channels(g) - g.in_channels
    if pattern == "vector":
        return _pack_columns(layer, g, dtype)

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
    of_list = tile * used.shape[1] + chunk
    starts, places, step, slot = _steps(tap * _PARTS + part, of_list, counts)
    steps = len(places)
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


def _pack_columns(layer: Layer, g: ConvGeometry, dtype: torch.dtype) -> PackedTiles:
    """Columns of 16 rows, one input channel at one tap; 16 of a list make a step."""
    missing = _padded_channels(g) - g.in_channels

    def lists(matrix: Tensor) -> Tensor:
        """[M / V, V, chunks, channels, R·S]."""
        matrix = torch.nn.functional.pad(packed_rows(matrix, g).flatten(3), (0, 0, 0, missing))
        return torch.unflatten(matrix, 2, (-1, g.block))

    values = lists(layer.weight.detach().to(dtype))
    used = lists(layer.kept).any(1)  # [M / V, chunks, channels, R·S]
    # ---- Which columns, in the order of lists ----
    tile, chunk, channel, tap = used.nonzero(as_tuple=True)
    counts = used.flatten(0, 1).flatten(1).sum(1)
    # ---- Steps of each list ----
    steps = -(-counts // COLUMN_STEP)
    starts = torch.cat([counts.new_zeros(1), steps.cumsum(0)])
    kept: list[int] = (tap * g.block + channel).tolist()
    number, of_number = [], []  # of the column in each place; whether it is one, or fills up
    begin = 0
    for count in counts.tolist():
        order = _spread_over_banks(kept[begin : begin + count])
        number += [begin + index for index, _ in order]
        of_number += [real for _, real in order]
        begin += count
    which = torch.tensor(number, dtype=torch.int64, device=tap.device).view(-1, COLUMN_STEP)
    real = torch.tensor(of_number, dtype=torch.bool, device=tap.device).view(-1, COLUMN_STEP)
    products = values[tile, :, chunk, channel, tap][which].masked_fill(~real[..., None], 0)
    return PackedTiles(
        _in_lanes(products.transpose(1, 2)),
        torch.empty(0, dtype=torch.int32, device=values.device),
        (tap * g.block + channel)[which].to(torch.int16), starts.to(torch.int32), g,
    )  # fmt: skip


def _spread_over_banks(places: list[int]) -> list[tuple[int, bool]]:
    """Columns of a list in whole steps, so that eight together lie in as many banks as they can.

    Banks are told by the channel modulo 8. What there is more of than there are eights goes several
    times into as few of them as may be; an eight may have fewer columns, filled up with the last.

    Returns:
        index and whether it stands here for the first time; what comes again only fills up.

    Example:
        >>> order = _spread_over_banks([0, 8, 16, 1, 9, 2])
        >>> [index for index, real in order if real]
        [0, 3, 5, 1, 4, 2]
    """
    waiting: list[list[int]] = [[] for _ in range(8)]
    for index in reversed(range(len(places))):
        waiting[places[index] % 8].append(index)
    eights = -(-len(places) // COLUMN_STEP) * 2
    left, order = len(places), []
    for eight in range(eights):
        remain = eights - eight
        needed = left - 8 * (remain - 1)
        at_once = -(-max(map(len, waiting)) // remain)
        taken: list[int] = []
        while left and (at_once > 0 or len(taken) < needed):
            for bank in sorted(waiting, key=len, reverse=True):
                if bank and len(taken) < 8:
                    taken.append(bank.pop())
            left, at_once = sum(map(len, waiting)), at_once - 1
        order += [(index, True) for index in taken]
        last = order[-1][0]
        order += [(last, False)] * (8 - len(taken))
    return order


def _steps(
    places: Tensor,  # [B], in the order of lists
    of_list: Tensor,  # [B]
    counts: Tensor,  # [L]: of each list
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lists [L + 1] as steps of four places [K, 4], and where each place went: step, slot.

    What fills a list's last step up is its last place again, so that no input is read which it does
    not have.
    """
    steps = -(-counts // _PARTS)
    starts = torch.cat([counts.new_zeros(1), steps.cumsum(0)])
    number = torch.arange(len(places), device=places.device) - (counts.cumsum(0) - counts)[of_list]
    step, slot = starts[of_list] + number // _PARTS, number % _PARTS
    last = places[(counts.cumsum(0) - 1)[counts > 0]].repeat_interleave(steps[counts > 0])
    filled = last[:, None].repeat(1, _PARTS)
    filled[step, slot] = places
    return starts, filled, step, slot


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
        raise InputError(f"pattern must be 2:4, block or vector, got {pattern!r}")
    if rows not in _ROWS[pattern]:
        *first, last = map(str, _ROWS[pattern])
        known = f"{', '.join(first)} or {last}" if first else last
        raise InputError(f"rows must be {known} for pattern {pattern}, got {rows!r}")
    if dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"dtype must be float16 or bfloat16, got {dtype}")
