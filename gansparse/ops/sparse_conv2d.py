# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d: convolution with packed sparse weights; bias, residual, activation at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops._arrays import takes_arrays
from gansparse.ops._library import (
    current_stream,
    define,
    define_autocast,
    define_gradient,
    describe,
    has_tangent,
    wants_gradient,
)
from gansparse.ops.sparse_conv2d_gradients import (
    _margins,
    _phases,
    _unpack,
    dense_gradients,
    kernel_gradients,
)
from gansparse.ops.sparse_conv2d_packing import ConvGeometry, PackedConv2d
from gansparse.ops.sparse_conv2d_tiles import PackedTiles

Activation = Literal["none", "relu", "leaky_relu", "prelu", "tanh"]


@takes_arrays
def sparse_conv2d(
    input: Tensor,  # [N, C, H, W]
    weight: PackedConv2d | PackedTiles,  # of [O, C, R, S]
    bias: Tensor | None = None,  # [O]
    *,
    residual: Tensor | None = None,  # [N, O, OH, OW]
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    out: Tensor | None = None,  # [N, O, OH, OW]
) -> Tensor:  # [N, O, OH, OW]
    r"""Convolve with the weights that stayed, and finish the layer in the same pass.

    .. math::
        y = \mathrm{activation}\Bigl(\text{bias} + \text{residual} + \sum_{c,r,s}
            W_{o,c,r,s} \, \hat{x}_{n,\, c,\, i \cdot \text{stride} + r,\,
            j \cdot \text{stride} + s} \Bigr)

    Stride and padding belong to the packed weight, and so does T: float32 for a `PackedConv2d`, on
    the CPU or CUDA; float16 or bfloat16, with float32 sums, for `PackedTiles`, on CUDA. What was
    pruned is not computed, so a NaN in the input goes no further than the weights that stayed
    (tiles: than their blocks). Gradients reach `input`, `weight.values` (so the mask stays: a value
    of tiles that is 0 gets none), `bias`, `residual` and a `slope` that is a tensor; where one is
    wanted the activation is torch's own. On CUDA they come from kernels that do only what stayed,
    of `PackedTiles` where at most half of the blocks did; the others are torch's dense ones at the
    places that stayed. The CUDA kernels have been checked without a GPU only, and not yet been
    timed.

    Args:
        input: [N, C, H, W] T. Contiguous is fastest, for tiles channels_last; anything else is
            copied.
        weight: from `pack_sparse_conv2d`; on CUDA also from `pack_tiles_conv2d`.
        bias: [O], computed with in float32.
        residual: [N, O, OH, OW] T, added before the activation.
        activation: ``none``, ``relu``, ``leaky_relu``, ``prelu`` or ``tanh``.
        slope: of negative values, for ``leaky_relu`` and ``prelu``: number, [1] or [O] float32.
        out: [N, O, OH, OW] float32, contiguous: memory for the result, not of tiles and without
            gradients; it may not overlap input or residual.

    Returns:
        [N, O, OH, OW] T, contiguous, of tiles channels_last; ``out``, if that is given.

    Raises:
        InputError: an argument breaks a rule; the message names it and what it was.

    Example:
        >>> from gansparse.ops import pack_sparse_conv2d
        >>> weight = torch.tensor([[[[0.0, 2.0], [-1.0, 0.0]]]])
        >>> packed = pack_sparse_conv2d(weight, padding=(0, 0))
        >>> sparse_conv2d(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), packed, torch.ones(1))
        tensor([[[[2.]]]])
    """
    return _convolve(input, weight, bias, residual, activation, slope, out=out)


def sparse_conv2d_reference(
    input: Tensor,
    weight: PackedConv2d | PackedTiles,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    out: Tensor | None = None,
) -> Tensor:
    """The same in plain torch, in the dtype of its arguments: to be read, not to be fast."""
    g = weight.geometry
    padded = F.pad(input, _margins(input, g), ("constant", "reflect", "replicate")[g.padding])
    dense = _unpack(weight).to(input.dtype)
    z = F.conv2d(padded, dense, stride=g.stride)
    if bias is not None:  # one a channel, or one a phase
        each = bias.view(g.out_channels, -1).expand(-1, g.upscale**2)
        z = z + each.reshape(-1, 1, 1)
    high, wide = g.output_size(*input.shape[2:])
    z = F.pixel_shuffle(z, g.upscale)[:, :, :high, :wide]
    if residual is not None:
        z = z + residual
    y = _activate(z, activation, slope)
    return y if out is None else out.copy_(y)


def _convolve(
    input: Tensor,
    weight: PackedConv2d | PackedTiles,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    slope: float | Tensor,
    *,
    out: Tensor | None,
) -> Tensor:
    """Both ops; with gradients, all but the convolution and its bias is torch's."""
    op = torch.ops.gansparse.sparse_conv2d
    if isinstance(weight, PackedTiles):
        op = torch.ops.gansparse.sparse_conv2d_tiles
        bias = None if bias is None else bias.float()
        slope = slope.float() if isinstance(slope, Tensor) else slope
    *tensors, g = weight
    slopes = slope if isinstance(slope, Tensor) else None
    number = 0.0 if isinstance(slope, Tensor) else float(slope)
    trained = (input, weight.values, bias, residual, slopes)
    wanted = wants_gradient(*trained)
    if out is not None:
        if wanted or isinstance(weight, PackedTiles):
            raise InputError(
                "sparse_conv2d: out must be None for tiles and where gradients are wanted"
            )
        into = torch.ops.gansparse.sparse_conv2d_out
        into(input, *tensors, g, bias, residual, activation, number, slopes, out)
        return out
    if has_tangent(*trained):  # forward derivatives are torch's
        return sparse_conv2d_reference(
            input, weight, bias, residual=residual, activation=_known(activation), slope=slope
        )
    if not wanted or activation not in get_args(Activation):  # the latter is refused
        y: Tensor = op(input, *tensors, g, bias, residual, activation, number, slopes)
        return y
    if g.padding:
        input = F.pad(input, _margins(input, g), ("", "reflect", "replicate")[g.padding])
        growth = (g.stride - g.taps_h, g.stride - g.taps_w)
        g = g._replace(padding=0, pad_h=0, pad_w=0, growth_h=growth[0], growth_w=growth[1])
    z: Tensor = op(input, *tensors, g, bias, None, "none", 0.0, None)
    if residual is not None and residual.shape != z.shape:
        raise InputError(
            f"sparse_conv2d: residual must have shape {list(z.shape)}, got {list(residual.shape)}"
        )
    return _activate(z if residual is None else z + residual, activation, slope)


def _known(activation: str) -> Any:
    if activation not in get_args(Activation):
        known = ", ".join(get_args(Activation))
        raise InputError(f"sparse_conv2d: activation must be {known}, got {activation!r}")
    return activation


def _activate(z: Tensor, activation: str, slope: float | Tensor) -> Tensor:
    if activation == "relu":
        return z.relu()
    if activation == "tanh":
        return z.tanh()
    if activation == "none":
        return z
    if isinstance(slope, Tensor):
        return F.prelu(z, slope.to(z.dtype))
    return F.leaky_relu(z, float(slope))


# Everything is positional: keywords cost 5 µs a call. A number and a tensor for slope, as torch has
# no type for either.
_SCHEMA = """sparse_conv2d(
    Tensor input, Tensor values, Tensor offsets, Tensor starts, Tensor rows, int[] geometry,
    Tensor? bias, Tensor? residual, str activation, float slope, Tensor? slopes) -> Tensor"""
# An op may not return what it was given, so this one returns nothing.
_OUT_SCHEMA = """sparse_conv2d_out(
    Tensor input, Tensor values, Tensor offsets, Tensor starts, Tensor rows, int[] geometry,
    Tensor? bias, Tensor? residual, str activation, float slope, Tensor? slopes, Tensor(a!) out
    ) -> ()"""
_TILES_SCHEMA = """sparse_conv2d_tiles(
    Tensor input, Tensor values, Tensor metadata, Tensor places, Tensor starts, int[] geometry,
    Tensor? bias, Tensor? residual, str activation, float slope, Tensor? slopes) -> Tensor"""


def _output(input: Tensor, geometry: Sequence[int]) -> Tensor:
    """Memory for the result."""
    g = ConvGeometry(*geometry)
    if input.dim() != 4:
        return input.new_empty(0)  # the core tells what is wrong
    return input.new_empty(input.shape[0], g.out_channels, *g.output_size(*input.shape[2:]))


def _run(input: Tensor, *arguments: Any) -> Tensor:
    out = _output(input, arguments[4])
    _run_out(input, *arguments, out)
    return out


def _run_out(input: Tensor, *arguments: Any) -> None:
    """The op with ``out``, past torch's dispatcher, which costs 12 µs a call: for plain tensors."""
    values, offsets, starts, rows, geometry, bias, residual, activation, slope, slopes, out = (
        arguments
    )
    if not input.is_contiguous():
        input = input.contiguous()
    if residual is not None:
        residual = residual.contiguous()
    _C.sparse_conv2d(
        input, values, offsets, starts, rows, geometry, bias, residual,
        "none" if activation == "tanh" else activation,
        slope if slopes is None else slopes, out, current_stream(input),
    )  # fmt: skip
    if activation == "tanh":
        out.tanh_()


def _fake(input: Tensor, *arguments: Any) -> Tensor:
    out = _output(input, arguments[4])
    _fake_out(input, *arguments, out)
    return out


def _fake_out(input: Tensor, *arguments: Any) -> None:
    values, offsets, starts, rows, geometry, bias, residual, activation, slope, slopes, out = (
        arguments
    )
    _C.sparse_conv2d(
        describe(input.contiguous()), describe(values), describe(offsets), describe(starts),
        describe(rows), geometry, describe(bias),
        describe(residual if residual is None else residual.contiguous()),
        "none" if activation == "tanh" else activation,
        slope if slopes is None else describe(slopes), describe(out),
    )  # fmt: skip


def _channels_last(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or tensor.dim() != 4:
        return tensor  # the core tells what is wrong
    return tensor.contiguous(memory_format=torch.channels_last)


def _tiles_output(input: Tensor, geometry: list[int]) -> Tensor:
    shape = _output(input.to("meta"), geometry).shape
    lies = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=lies)


def _run_tiles(input: Tensor, *arguments: Any) -> Tensor:
    values, metadata, places, starts, geometry, bias, residual, activation, slope, slopes = (
        arguments
    )
    output = _tiles_output(input, geometry)
    _C.sparse_conv2d_tiles(
        _channels_last(input), values, metadata, places, starts, geometry, bias,
        _channels_last(residual), activation, slope if slopes is None else slopes, output,
        current_stream(input),
    )  # fmt: skip
    return output


def _fake_tiles(input: Tensor, *arguments: Any) -> Tensor:
    values, metadata, places, starts, geometry, bias, residual, activation, slope, slopes = (
        arguments
    )
    output = _tiles_output(input, geometry)
    _C.sparse_conv2d_tiles(
        describe(_channels_last(input)), describe(values), describe(metadata), describe(places),
        describe(starts), geometry, describe(bias), describe(_channels_last(residual)), activation,
        slope if slopes is None else describe(slopes), describe(output),
    )  # fmt: skip
    return output


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, *tensors, geometry, bias, residual, activation, _, _ = inputs
    ctx.save_for_backward(input, *tensors)
    ctx.geometry, ctx.fused = geometry, activation != "none"
    ctx.biases = 0 if bias is None else bias.numel()
    ctx.added = residual is not None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """At the places that stayed; padding is zero. Of packed lists on CUDA by kernels of ours."""
    if ctx.fused or ctx.geometry[ConvGeometry._fields.index("padding")]:
        raise NotImplementedError("call gansparse.ops.sparse_conv2d, which has these gradients")
    input, values, one, two, three = ctx.saved_tensors
    g, wanted = ConvGeometry(*ctx.geometry), ctx.needs_input_grad[:2]
    packing = PackedTiles if values.dim() == 5 else PackedConv2d
    gradients = kernel_gradients if input.is_cuda else dense_gradients
    ours = gradients(grad, input, packing(values, one, two, three, g), wanted)
    grad_bias = None
    if ctx.biases:  # one a channel, or one a phase
        each = F.pixel_unshuffle(_phases(grad, g), g.upscale).sum((0, 2, 3), dtype=torch.float32)
        grad_bias = each.view(ctx.biases, -1).sum(1)
    grad_residual = grad if ctx.added else None
    return *ours, *[None] * 4, grad_bias, grad_residual, *[None] * 3


define(_SCHEMA, _run, _fake)
define_gradient("sparse_conv2d", _gradients, _save)
define_autocast("sparse_conv2d", torch.float32)
define(_OUT_SCHEMA, _run_out, _fake_out)
define(_TILES_SCHEMA, _run_tiles, _fake_tiles)
define_gradient("sparse_conv2d_tiles", _gradients, _save)
