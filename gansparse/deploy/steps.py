# SPDX-License-Identifier: Apache-2.0
"""What a compiled generator is made of: fused layers, and the kernels that can run them.

A `Conv` is a convolution with all that was fused into it; it runs in plain torch and is the
reference for its kernels, which `kernels` names. A `Norm` is an InstanceNorm with what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gansparse import _C
from gansparse.deploy.packable import unpackable
from gansparse.nn import SparseConv2d, SparseConvTranspose2d
from gansparse.ops import (
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    pack_winograd_conv2d,
    pack_winograd_conv_transpose2d,
)
from gansparse.ops.sparse_conv2d import Activation, _output
from gansparse.ops.sparse_conv2d_packing import PaddingMode
from gansparse.ops.winograd_conv2d import _run as run_winograd

Pair = tuple[int, int]
Slope = float | Tensor
#: How a kernel wants its input, and gives its output.
Layout = Literal["NCHW", "channels_last"]
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
#: A dense kernel leaves out a layer's empty filters when they are at least this share.
_WORTH_SPREADING = 1 / 8
#: An element kernel needs this share of zeros to have a chance; measured break-even is at 0.2.
WORTH_PACKING = 0.1
#: Filters may share a pattern though each lost some more: what that may cost.
_WORTH_SHARING = 1.1
#: Up to this share of zeros, sixteen filters that share all that any of them has may still be the
#: fastest: a dense kernel for small pictures.
_WORTH_FILLING = 0.6
#: Rows and columns below which patches of 4 x 4 are never full.
_WINOGRAD_PIXELS = 4


@dataclass
class ConvLayer:
    """A convolution, or a transposed one, and what was fused into it.

    In this order: padding, convolution, bias, pixel shuffle, residual, activation.
    """

    weight: Tensor  # [O, C / groups, R, S]; transposed: [C, O / groups, R, S]
    bias: Tensor | None  # [O]
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    transposed: bool = False
    output_padding: Pair = (0, 0)
    pad_mode: PaddingMode = "zeros"
    shuffle: int = 1
    activation: Activation = "none"
    slope: Slope = 0.0
    fused: list[str] = field(default_factory=list)

    @property
    def out_channels(self) -> int:
        """O, before the pixel shuffle."""
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    @property
    def filters(self) -> Tensor:
        """[O, C, R, S], a view, of a layer with one group."""
        return self.weight.transpose(0, 1) if self.transposed else self.weight

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - float((self.weight != 0).sum()) / max(1, self.weight.numel())


def activate(y: Tensor, activation: Activation, slope: Slope) -> Tensor:
    """In place: y is nobody else's."""
    if activation == "relu":
        return y.relu_()
    if activation == "tanh":
        return y.tanh_()
    if activation == "none":
        return y
    return F.prelu(y, slope) if isinstance(slope, Tensor) else F.leaky_relu_(y, slope)


class Conv(nn.Module):
    """A layer in torch's own convolutions: reference, and two of its kernels.

    Args:
        layer: what to compute.
        layout: of input and output.
        sparse_filters: leave out filters without any weight.
    """

    rows: Tensor | None

    def __init__(
        self, layer: ConvLayer, layout: Layout = "NCHW", sparse_filters: bool = False
    ) -> None:
        super().__init__()
        self.layer, self.format = layer, FORMATS[layout]
        filled = (layer.filters != 0).flatten(1).any(1) if layer.groups == 1 else torch.ones(1)
        empty = 1 - float(filled.float().mean())
        rows = None
        if sparse_filters and _WORTH_SPREADING <= empty < 1:
            rows = filled.nonzero().flatten()
        weight, bias = layer.weight, layer.bias
        if rows is not None:
            weight = weight.index_select(int(layer.transposed), rows)
            bias = None if bias is None else bias[rows]
        self.register_buffer("rows", rows)
        self.register_buffer("bias", bias)
        self.register_buffer("weight", weight.contiguous(memory_format=self.format))

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O', OH, OW], O' after the shuffle
    ) -> Tensor:  # [N, O', OH, OW]
        """The layer."""
        layer = self.layer
        x = x.contiguous(memory_format=self.format)
        y = self.convolve(x)
        if self.rows is not None:
            y = self._spread(y)
        if layer.shuffle > 1:
            y = F.pixel_shuffle(y, layer.shuffle)
        y = y.contiguous(memory_format=self.format)
        if residual is not None:
            y = y.add_(residual.contiguous(memory_format=self.format))
        return activate(y, layer.activation, layer.slope)

    def convolve(self, x: Tensor) -> Tensor:
        """Padding, convolution and bias."""
        layer = self.layer
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        if layer.transposed:
            settings = (layer.stride, layer.padding, layer.output_padding)
            return F.conv_transpose2d(
                x, weight, bias, *settings, groups=layer.groups, dilation=layer.dilation
            )
        x, padding = self.padded(x)
        return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

    def padded(self, x: Tensor) -> tuple[Tensor, Pair]:
        """What the convolution reads, and the zero padding that is left to it."""
        high, wide = self.layer.padding
        if self.layer.pad_mode == "zeros":
            return x, (high, wide)
        return F.pad(x, (wide, wide, high, high), self.layer.pad_mode), (0, 0)

    def _spread(self, made: Tensor) -> Tensor:
        shape = (made.shape[0], self.layer.out_channels, *made.shape[2:])
        out = made.new_zeros(shape)
        if self.layer.bias is not None:
            out += self.layer.bias.view(-1, 1, 1)
        return out.index_copy_(1, cast(Tensor, self.rows), made)


class OneDNNConv(Conv):
    """The layer by oneDNN with its weight reordered once, and not on each call.

    ``torch.ops.mkldnn`` is what torch.compile calls; where a build of torch lacks it, this kernel
    can't be made and is no candidate.
    """

    def __init__(self, layer: ConvLayer, layout: Layout, size: tuple[int, ...]) -> None:
        super().__init__(layer, layout, sparse_filters=True)
        self.size = size
        self._reorder()

    def _reorder(self) -> None:
        layer, ops = self.layer, torch.ops.mkldnn
        weight, size = cast(Tensor, self.weight).contiguous(), list(self.size)
        reads_zeros = layer.pad_mode == "zeros"
        self.zeros = list(layer.padding) if reads_zeros else [0, 0]
        if not reads_zeros:
            size[2:] = [n + 2 * p for n, p in zip(size[2:], layer.padding, strict=True)]
        stride, dilation = list(layer.stride), list(layer.dilation)
        with torch.no_grad():
            if layer.transposed:
                self.reordered = ops._reorder_convolution_transpose_weight(
                    weight, self.zeros, list(layer.output_padding), stride, dilation,
                    layer.groups, size,
                )  # fmt: skip
            else:
                self.reordered = ops._reorder_convolution_weight(
                    weight, self.zeros, stride, dilation, layer.groups, size
                )
        self.settings: tuple[Any, ...] = (stride, dilation, layer.groups, "none", [], "")

    def convolve(self, x: Tensor) -> Tensor:
        """Padding, convolution and bias."""
        layer, bias = self.layer, self.bias
        if layer.transposed:
            made = torch.ops.mkldnn._convolution_transpose_pointwise(
                x, self.reordered, bias, self.zeros, list(layer.output_padding), *self.settings
            )
        else:
            x, _ = self.padded(x)
            made = torch.ops.mkldnn._convolution_pointwise(
                x, self.reordered, bias, self.zeros, *self.settings
            )
        return cast(Tensor, made)


class OnePixel(Conv):
    """A transposed convolution of single pixels, as the matrix product that it is."""

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__(replace(layer, bias=None))
        with torch.no_grad():
            made = super().convolve(torch.eye(len(layer.weight))[..., None, None])  # [C, O, OH, OW]
        bias = made.new_zeros(made.shape[1]) if layer.bias is None else layer.bias
        self.weight = made.flatten(1)
        self.bias = bias[:, None, None].expand(made.shape[1:]).flatten()
        self.shape = made.shape[1:]

    def convolve(self, x: Tensor) -> Tensor:
        """Convolution and bias."""
        made = torch.addmm(self.bias, x.flatten(1), self.weight)
        return made.view(len(x), *self.shape)


class Sparse(nn.Module):
    """The layer by `gansparse.ops.sparse_conv2d`.

    A pixel shuffle by 2 that follows goes into the kernel, as a transposed convolution of stride 2:
    output channel 4 o + 2 a + b is phase (a, b) of channel o.
    """

    def __init__(
        self, layer: ConvLayer, vector: int, size: tuple[int, int, int], *, on_cpu: bool = False
    ) -> None:
        super().__init__()
        self.layer, self.on_cpu = layer, on_cpu
        slope, activation, bias = layer.slope, layer.activation, layer.bias
        fused_shuffle = can_shuffle(layer)
        self.shuffle = 1 if fused_shuffle else layer.shuffle
        if self.shuffle > 1 and isinstance(slope, Tensor) and slope.numel() > 1:
            slope = slope.repeat_interleave(self.shuffle**2)
        self.conv: SparseConv2d | SparseConvTranspose2d
        if layer.transposed or fused_shuffle:
            weight = _shuffling(layer) if fused_shuffle else layer.weight
            packed = pack_sparse_conv_transpose2d(
                weight,
                stride=2 if fused_shuffle else layer.stride[0],
                padding=_shuffled_padding(layer) if fused_shuffle else layer.padding,
                output_padding=layer.output_padding,
                vector_size=vector,
                size=size,
            )
            self.conv = SparseConvTranspose2d(packed, bias, activation=activation, slope=slope)
        else:
            packed = pack_sparse_conv2d(
                layer.weight,
                stride=layer.stride[0],
                padding=layer.padding,
                padding_mode=layer.pad_mode,
                vector_size=vector,
                size=size,
            )
            self.conv = SparseConv2d(packed, bias, activation=activation, slope=slope)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O', OH, OW]
        out: Tensor | None = None,  # [N, O', OH, OW], where the shuffle is the kernel's
    ) -> Tensor:  # [N, O', OH, OW]
        """The layer; into ``out``, if that is given."""
        y: Tensor = (self.conv.run if self.on_cpu else self.conv)(x, residual, out)
        return y if self.shuffle == 1 else F.pixel_shuffle(y, self.shuffle)


class Winograd(nn.Module):
    """The layer by `gansparse.ops.winograd_conv2d`, dense; a pixel shuffle follows in torch.

    Its weight takes four times the memory of the layer's.
    """

    values: Tensor
    bias: Tensor | None

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.layer, self.shuffle = layer, layer.shuffle
        slope = layer.slope
        if self.shuffle > 1 and isinstance(slope, Tensor) and slope.numel() > 1:
            slope = slope.repeat_interleave(self.shuffle**2)
        self.slope = slope
        if layer.transposed:
            packed = pack_winograd_conv_transpose2d(
                layer.weight,
                stride=layer.stride[0],
                padding=layer.padding,
                output_padding=layer.output_padding,
            )
        else:
            packed = pack_winograd_conv2d(
                layer.weight, padding=layer.padding, padding_mode=layer.pad_mode
            )
        self.register_buffer("values", packed.values)
        self.register_buffer("bias", layer.bias)
        self.geometry = packed.geometry

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O', OH, OW]
        out: Tensor | None = None,  # [N, O', OH, OW], where nothing is shuffled
    ) -> Tensor:  # [N, O', OH, OW]
        """The layer; into ``out``, if that is given."""
        has, number = self._buffers, 0.0 if isinstance(self.slope, Tensor) else self.slope
        y = _output(x, self.geometry) if out is None else out
        run_winograd(
            x, has["values"], self.geometry, has["bias"], residual, self.layer.activation, number,
            self.slope if isinstance(self.slope, Tensor) else None, y,
        )  # fmt: skip
        return y if self.shuffle == 1 else F.pixel_shuffle(y, self.shuffle)


class Norm(nn.Module):
    """InstanceNorm, then a sum, then an activation.

    On the CPU (`on_cpu`) in one pass over each plane, by the core's ``instance_norm``. Elsewhere by
    torch's group norm with a group a channel: it norms plane by plane, where torch's instance norm
    passes over the whole tensor three times. Only in NCHW: torch's channels_last kernel takes the
    variance as mean square less squared mean, in float32, and errs by 1e-3 where a channel's mean
    is three times its deviation.

    Args:
        weight: [C], or None.
        bias: [C], or None.
        eps: added to the variance.
        activation: of the sum.
        slope: of its negative values.
        fused: what was fused into it, for the table.
    """

    def __init__(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        *,
        activation: Activation = "none",
        slope: Slope = 0.0,
        fused: list[str],
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.eps, self.activation, self.slope, self.fused = eps, activation, slope, fused
        self.on_cpu = False

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, C, H, W]
    ) -> Tensor:  # [N, C, H, W]
        """The norm and what follows."""
        if self.on_cpu:
            has, out = self._buffers, torch.empty(x.shape, dtype=x.dtype)
            torch.get_num_threads()  # applies torch.set_num_threads to this thread
            _C.instance_norm(
                x.contiguous(), has["weight"], has["bias"], self.eps,
                None if residual is None else residual.contiguous(), self.activation, self.slope,
                out,
            )  # fmt: skip
            return out
        y = F.group_norm(
            x, x.shape[1], cast("Tensor | None", self.weight), cast("Tensor | None", self.bias),
            self.eps,
        )  # fmt: skip
        if residual is not None:
            y = y.add_(residual)
        return activate(y, self.activation, self.slope)


def can_shuffle(layer: ConvLayer) -> bool:
    """Whether the sparse kernel can do the layer's pixel shuffle, too."""
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    high, wide = layer.weight.shape[2:]
    inside = layer.padding[0] < high and layer.padding[1] < wide
    small = max(high, wide) * 2 <= 15
    zeros = layer.pad_mode == "zeros" and not layer.transposed
    return plain and inside and small and zeros and layer.shuffle == 2


def _shuffling(layer: ConvLayer) -> Tensor:
    """[C, O / 4, 2 R, 2 S]: the transposed convolution that is the layer with its shuffle."""
    out, channels, high, wide = layer.weight.shape
    taps = layer.weight.view(out // 4, 2, 2, channels, high, wide).flip(4, 5)
    return taps.permute(3, 0, 4, 1, 5, 2).reshape(channels, out // 4, 2 * high, 2 * wide)


def _shuffled_padding(layer: ConvLayer) -> Pair:
    high, wide = layer.weight.shape[2:]
    return (2 * (high - 1 - layer.padding[0]), 2 * (wide - 1 - layer.padding[1]))


def vector_sizes(layer: ConvLayer) -> list[int]:
    """Numbers of neighbouring filters that share a pattern; 1 where hardly any does."""
    weight = _shuffling(layer).transpose(0, 1) if can_shuffle(layer) else layer.filters
    kept = (weight != 0).flatten(1)
    most = _WORTH_SHARING * float(kept.sum())
    sizes = []
    for size in (16, 8, 4):
        blocks = torch.split(kept, size)  # the last may be smaller
        computed = sum(len(block) * float(block.any(0).sum()) for block in blocks)
        if size < 2 * len(kept) and computed <= most:
            sizes.append(size)
    worth = not sizes or sizes[0] < 8
    return sizes + ([1] if worth and layer.sparsity >= WORTH_PACKING else [])


@dataclass(frozen=True)
class Kernel:
    """One way to run a layer."""

    layout: Layout
    make: Callable[[], nn.Module]


def kernels(layer: ConvLayer, size: tuple[int, ...]) -> dict[str, Kernel]:
    """The ways to run a layer for an input of this size, by name; the first is torch's own.

    Args:
        layer: as it was fused.
        size: [N, C, H, W] of its input.
    """
    found: dict[str, Kernel] = {}

    def add(name: str, layout: Layout, make: Callable[[Layout], nn.Module]) -> None:
        found[name] = Kernel(layout, lambda: make(layout))

    def torch_conv(layout: Layout) -> nn.Module:
        return Conv(layer, layout, sparse_filters=True)

    def onednn_conv(layout: Layout) -> nn.Module:
        return OneDNNConv(layer, layout, size)

    add("torch", "NCHW", torch_conv)
    add("torch channels_last", "channels_last", torch_conv)
    if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        add("onednn", "NCHW", onednn_conv)
        add("onednn channels_last", "channels_last", onednn_conv)
    if layer.transposed and layer.groups == 1 and tuple(size[2:]) == (1, 1):
        found["matrix"] = Kernel("NCHW", lambda: OnePixel(layer))
    if not unpackable(layer):
        n, _, h, w = size
        if _takes_winograd(layer, size):
            found["winograd"] = Kernel("NCHW", lambda: Winograd(layer))
        vectors = vector_sizes(layer)
        if layer.sparsity <= _WORTH_FILLING and layer.out_channels > 8:
            vectors = list(dict.fromkeys([*vectors, 16]))
        for vector in vectors:
            name = "sparse" if vector == 1 else f"sparse vector-{vector}"
            made = partial(Sparse, layer, vector, (n, h, w), on_cpu=True)
            found[name] = Kernel("NCHW", made)
    return found


def _takes_winograd(layer: ConvLayer, size: tuple[int, ...]) -> bool:
    """Whether the layer has a window of 3 x 3, and pictures that fill patches of 4 x 4."""
    taps, stride = tuple(layer.weight.shape[2:]), layer.stride
    fits = taps == (3, 3) and stride == (1, 1)
    if layer.transposed and stride == (2, 2):
        fits = taps == (4, 4) and layer.padding == (1, 1)
    return fits and min(size[2:]) >= _WINOGRAD_PIXELS
