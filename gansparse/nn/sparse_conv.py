# SPDX-License-Identifier: Apache-2.0
"""Sparse convolutions as modules: packed weights are buffers, so they move, save and load."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from gansparse.errors import CheckpointError, InputError
from gansparse.ops import (
    PackedConv2d,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    sparse_conv2d,
    sparse_conv_transpose2d,
)
from gansparse.ops.sparse_conv2d import Activation, _output, _run_out
from gansparse.ops.sparse_conv2d_packing import ConvGeometry

_PACKED = ("values", "offsets", "starts", "rows", "geometry")
_SHAPE = 11  # the first numbers of a geometry, which say what layer it is


class _SparseConv(nn.Module):
    """What both have: the buffers, and how a state with other zeros is loaded."""

    values: Tensor
    offsets: Tensor
    starts: Tensor
    rows: Tensor
    geometry: Tensor
    bias: Tensor | None
    slope: Tensor | None

    def __init__(
        self,
        weight: PackedConv2d,
        bias: Tensor | None = None,  # [O]
        *,
        activation: Activation = "none",
        slope: float | Tensor = 0.01,
    ) -> None:
        super().__init__()
        *tensors, geometry = weight
        for name, tensor in zip(_PACKED, (*tensors, torch.tensor(geometry)), strict=True):
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        given = isinstance(slope, Tensor)
        self.register_buffer("slope", cast(Tensor, slope).detach().clone() if given else None)
        self.activation: Activation = activation
        self.slope_number = 0.0 if isinstance(slope, Tensor) else float(slope)
        self._numbers = geometry

    @property
    def packed(self) -> PackedConv2d:
        """The packed weight, as the ops take it."""
        return PackedConv2d(self.values, self.offsets, self.starts, self.rows, self._numbers)

    def run(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """`forward` past torch's dispatcher and modules: on the CPU, without gradients."""
        has, slope = self._buffers, self._buffers["slope"]
        out = _output(x, self._numbers) if out is None else out
        _run_out(
            x, has["values"], has["offsets"], has["starts"], has["rows"], self._numbers,
            has["bias"], residual, self.activation, self.slope_number, slope, out,
        )  # fmt: skip
        return out

    def extra_repr(self) -> str:
        """Sizes and how much of it stayed."""
        g = self._numbers
        dense = g.out_channels * g.upscale**2 * g.in_channels * g.taps_h * g.taps_w
        return (
            f"{g.in_channels}, {g.out_channels}, window={g.taps_h}x{g.taps_w}, stride={g.stride}, "
            f"upscale={g.upscale}, vector={g.vector}, kept={self.values.numel() / dense:.1%}, "
            f"activation={self.activation}"
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Takes the number of weights from the file: the same layer may have lost others."""
        found = {name: state_dict.get(prefix + name) for name in _PACKED}
        numbers = found["geometry"]
        absent = [name for name, tensor in found.items() if tensor is None]
        if absent and len(absent) < len(_PACKED):
            raise CheckpointError(f"{prefix}{absent[0]} is missing: a packed weight is {_PACKED}")
        if numbers is not None:
            own, new = self._numbers[:_SHAPE], tuple(numbers.tolist()[:_SHAPE])
            if own != new or len(numbers) != len(self._numbers):
                raise CheckpointError(
                    f"{prefix}geometry: a layer of {ConvGeometry._fields[:_SHAPE]} = {own} can't "
                    f"take weights packed for {new}"
                )
        for name, tensor in found.items():
            if tensor is not None:
                setattr(self, name, torch.empty_like(tensor, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._numbers = ConvGeometry(*self.geometry.tolist())


class SparseConv2d(_SparseConv):
    """Convolution that holds and computes only the weights that stayed; float32, CPU or CUDA.

    Args:
        weight: from `gansparse.ops.pack_sparse_conv2d`; stride and padding are part of it.
        bias: [O] float32.
        activation: ``none``, ``relu``, ``leaky_relu``, ``prelu`` or ``tanh``, in the same pass.
        slope: of negative values, for ``leaky_relu`` and ``prelu``: number, [1] or [O].

    All tensors are buffers: ``values``, ``offsets``, ``starts``, ``rows`` and ``geometry`` as
    `PackedConv2d` has them, ``bias``, and ``slope`` where it is a tensor. A state of the same layer
    with other zeros can be loaded.

    Example:
        >>> dense = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        >>> _ = dense.weight.data[:, 1:].fill_(0)
        >>> sparse, x = SparseConv2d.from_dense(dense), torch.randn(1, 3, 6, 6)
        >>> len(sparse.values), torch.allclose(sparse(x), dense(x), atol=1e-5)
        (72, True)
    """

    @classmethod
    def from_dense(
        cls,
        layer: nn.Conv2d,
        *,
        vector_size: int = 1,
        size: tuple[int, int, int] | None = None,
    ) -> SparseConv2d:
        """The layer without its zeros.

        Args:
            layer: float32, groups 1, dilation 1, stride 1 or 2 the same both ways.
            vector_size: as for `gansparse.ops.pack_sparse_conv2d`.
            size: (N, H, W) of the input that it will see most.

        Raises:
            InputError: the layer is of another kind; the message names the setting.
        """
        mode = layer.padding_mode
        if mode == "circular":
            raise InputError("padding_mode circular has no sparse convolution; leave it dense")
        padding = layer.padding
        if isinstance(padding, str):
            padding = cast(Any, [side // 2 for side in layer.kernel_size])
            if layer.padding == "valid":
                padding = (0, 0)
            elif not all(side % 2 for side in layer.kernel_size):
                raise InputError("padding 'same' of an even kernel has no sparse convolution")
        packed = pack_sparse_conv2d(
            layer.weight.detach(),
            stride=_plain(layer),
            padding=cast(tuple[int, int], tuple(padding)),
            padding_mode=mode,
            vector_size=vector_size,
            size=size,
        )
        return cls(packed, layer.bias)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O, OH, OW]
        out: Tensor | None = None,  # [N, O, OH, OW]
    ) -> Tensor:  # [N, O, OH, OW]
        """Convolution plus bias plus residual, then the activation; into ``out``, if given."""
        slope = self.slope_number if self.slope is None else self.slope
        return sparse_conv2d(
            x, self.packed, self.bias, residual=residual, activation=self.activation, slope=slope,
            out=out,
        )  # fmt: skip


class SparseConvTranspose2d(_SparseConv):
    """`SparseConv2d` for a transposed convolution.

    Args:
        weight: from `gansparse.ops.pack_sparse_conv_transpose2d`.
        bias: [O] float32, or one for each phase, as `gansparse.ops.sparse_conv_transpose2d` has it.
        activation: as for `SparseConv2d`.
        slope: as for `SparseConv2d`.

    Example:
        >>> dense = nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
        >>> _ = dense.weight.data[1:].fill_(0)
        >>> sparse, x = SparseConvTranspose2d.from_dense(dense), torch.randn(1, 4, 3, 3)
        >>> sparse(x).shape, torch.allclose(sparse(x), dense(x), atol=1e-5)
        (torch.Size([1, 2, 6, 6]), True)
    """

    @classmethod
    def from_dense(
        cls,
        layer: nn.ConvTranspose2d,
        *,
        vector_size: int = 1,
        size: tuple[int, int, int] | None = None,
    ) -> SparseConvTranspose2d:
        """The layer without its zeros; arguments and errors as `SparseConv2d.from_dense`."""
        packed = pack_sparse_conv_transpose2d(
            layer.weight.detach(),
            stride=_plain(layer),
            padding=cast(tuple[int, int], layer.padding),
            output_padding=cast(tuple[int, int], layer.output_padding),
            vector_size=vector_size,
            size=size,
        )
        return cls(packed, layer.bias)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O, OH, OW]
        out: Tensor | None = None,  # [N, O, OH, OW]
    ) -> Tensor:  # [N, O, OH, OW]
        """Transposed convolution plus bias plus residual, then activation; in ``out`` if given."""
        slope = self.slope_number if self.slope is None else self.slope
        return sparse_conv_transpose2d(
            x, self.packed, self.bias, residual=residual, activation=self.activation, slope=slope,
            out=out,
        )  # fmt: skip


def _plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """The layer's stride, if it is of a kind that can be packed."""
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.stride[0] != layer.stride[1]:
        raise InputError(
            "a sparse convolution has groups 1, dilation 1 and one stride, got groups "
            f"{layer.groups}, dilation {layer.dilation}, stride {layer.stride}"
        )
    return layer.stride[0]
