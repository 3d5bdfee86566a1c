# SPDX-License-Identifier: Apache-2.0
"""instance_norm: InstanceNorm, a sum and an activation in one pass over the pictures."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gansparse import _C
from gansparse.ops._arrays import takes_arrays
from gansparse.ops._library import current_stream, define, describe, wants_gradient
from gansparse.ops.sparse_conv2d import Activation


@takes_arrays
def instance_norm(
    input: Tensor,  # [N, C, H, W]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,  # [N, C, H, W]
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    moments: Tensor | None = None,  # [N, P, 3, C]
) -> Tensor:  # [N, C, H, W]
    r"""Bring each channel of each picture to mean 0 and variance 1; then sum and activation.

    .. math::
        y_{n,c,i,j} = \mathrm{activation}\Bigl(\frac{x_{n,c,i,j} - \mu_{n,c}}
            {\sqrt{\sigma^2_{n,c} + \text{eps}}} \cdot \text{weight}_c + \text{bias}_c +
            \text{residual}_{n,c,i,j}\Bigr)

    (Ulyanov et al. 2016) with mean and variance of all H · W pixels. T is float32 on the CPU,
    float16 or bfloat16 on CUDA, where all sums are float32 and the input is read twice and the
    output written once; with the moments that `sparse_conv2d_moments` leaves it is read once. The
    variance is a sum of squared distances from the mean, so a large mean does no harm. Where a
    gradient is wanted, `instance_norm_reference` computes it, in plain torch, and the moments, too.
    The CUDA kernels have been checked without a GPU only, and not yet been timed.

    Args:
        input: [N, C, H, W] T, contiguous on the CPU and channels_last on CUDA, or it is copied; on
            CUDA C is a multiple of 8.
        weight: [C] float32; None: 1.
        bias: [C] float32; None: 0.
        eps: added to the variance.
        residual: [N, C, H, W] T, added before the activation.
        activation: ``none``, ``relu``, ``leaky_relu``, ``prelu`` or ``tanh``.
        slope: of negative values, for ``leaky_relu`` and ``prelu``: number, [1] or [C] float32.
        moments: [N, P, 3, C] float32, on CUDA only: of each of P parts of a picture how many pixels
            it has, their mean, and the sum of their squared distances from it. None: they are
            computed.

    Returns:
        [N, C, H, W] T, contiguous on the CPU, channels_last on CUDA.

    Raises:
        InputError: an argument breaks a rule; the message names it and what it was.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> instance_norm(x, eps=0.0).flatten().tolist()
        [-1.0, 1.0]
    """
    slopes = slope if isinstance(slope, Tensor) else None
    trained = (input, weight, bias, residual, slopes)
    if wants_gradient(*trained):
        if not torch.compiler.is_compiling():
            _check(input, weight, bias, eps, residual, activation, slope)
        return instance_norm_reference(
            input, weight, bias, eps=eps, residual=residual, activation=activation, slope=slope
        )
    number = 0.0 if isinstance(slope, Tensor) else float(slope)
    y: Tensor = torch.ops.gansparse.instance_norm(
        input, weight, bias, eps, residual, activation, number, slopes, moments
    )
    return y


def instance_norm_reference(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: Activation = "none",
    slope: float | Tensor = 0.01,
    moments: Tensor | None = None,
) -> Tensor:
    """The same in plain torch, sums at least in float32: to be read, not to be fast."""
    wide = input if input.dtype == torch.float64 else input.float()
    if moments is None:
        mean = wide.mean((2, 3), keepdim=True)
        variance = (wide - mean).square().mean((2, 3), keepdim=True)
    else:
        counts, means, distances = moments.to(wide.dtype).unbind(2)  # [N, P, C]
        pixels = counts.sum(1)
        mean = (counts * means).sum(1) / pixels
        distances = distances + counts * (means - mean[:, None]).square()
        variance = (distances.sum(1) / pixels)[..., None, None]
        mean = mean[..., None, None]
    z = (wide - mean) / (variance + eps).sqrt()
    if weight is not None:
        z = z * weight.view(-1, 1, 1)
    if bias is not None:
        z = z + bias.view(-1, 1, 1)
    if residual is not None:
        z = z + residual
    if activation in ("leaky_relu", "prelu"):
        slopes = torch.as_tensor(slope, dtype=z.dtype, device=z.device).reshape(-1)
        z = F.prelu(z, slopes)
    elif activation != "none":
        z = z.relu() if activation == "relu" else z.tanh()
    return z.to(input.dtype, memory_format=_layout(input))


def _check(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: str,
    slope: float | Tensor,
) -> None:
    """The core's rules for shapes and numbers, whatever the dtype: gradients take any."""

    def plain(tensor: Tensor | None) -> Any:
        return (
            None
            if tensor is None
            else describe(torch.empty(tensor.shape, dtype=torch.float32, device="meta"))
        )

    output = plain(input)
    _C.instance_norm(
        plain(input), plain(weight), plain(bias), eps, plain(residual), activation,
        plain(slope) if isinstance(slope, Tensor) else float(slope), output,
    )  # fmt: skip


_SCHEMA = """instance_norm(
    Tensor input, Tensor? weight, Tensor? bias, float eps, Tensor? residual, str activation,
    float slope, Tensor? slopes, Tensor? moments) -> Tensor"""


def _layout(input: Tensor) -> torch.memory_format:
    """How the kernels of this device want their pictures."""
    last = input.device.type == "cuda" and input.dim() == 4  # or the core tells what is wrong
    return torch.channels_last if last else torch.contiguous_format


def _laid_out(input: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Input and residual as the kernels want them, and memory for the result."""
    lies = _layout(input)
    if residual is not None and residual.dim() == 4:
        residual = residual.contiguous(memory_format=lies)
    return (
        input.contiguous(memory_format=lies),
        residual,
        torch.empty_like(input, memory_format=lies),
    )


def _run(input: Tensor, *arguments: Any) -> Tensor:
    weight, bias, eps, residual, activation, slope, slopes, moments = arguments
    input, residual, output = _laid_out(input, residual)
    _C.instance_norm(
        input, weight, bias, eps, residual, activation, slope if slopes is None else slopes,
        output, current_stream(input), moments,
    )  # fmt: skip
    return output


def _fake(input: Tensor, *arguments: Any) -> Tensor:
    weight, bias, eps, residual, activation, slope, slopes, moments = arguments
    input, residual, output = _laid_out(input, residual)
    _C.instance_norm(
        describe(input), describe(weight), describe(bias), eps, describe(residual), activation,
        slope if slopes is None else describe(slopes), describe(output),
        moments=describe(moments),
    )  # fmt: skip
    return output


define(_SCHEMA, _run, _fake)
