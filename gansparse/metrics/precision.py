# SPDX-License-Identifier: Apache-2.0
"""Plain float32, whatever the program around it has allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_float32(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products without TF32, bfloat16 or autocast while the block runs.

    Torch lets cuDNN's convolutions use TF32 by default, ten bits of mantissa: enough to move a
    feature by a thousandth. The switches belong to the process, not to the thread; they are put
    back when the block ends.

    Args:
        device: whose autocast is switched off.

    Example:
        >>> with plain_float32(torch.device("cpu")), torch.no_grad():
        ...     _ = torch.nn.Conv2d(3, 8, 3)(torch.rand(1, 3, 8, 8))
    """
    switched = _by_op() if hasattr(torch.backends.cudnn, "conv") else _by_library()
    with torch.autocast(device.type, enabled=False), switched:
        yield


@contextmanager
def _by_op() -> Iterator[None]:
    """Torch 2.9 and later: a switch for each library and op."""
    cudnn, mkldnn, cuda = (vars(torch.backends)[name] for name in ("cudnn", "mkldnn", "cuda"))
    ops = (cudnn.conv, cuda.matmul, mkldnn.conv, mkldnn.matmul)
    before = [op.fp32_precision for op in ops]
    try:
        for op in ops:
            op.fp32_precision = "ieee"
        yield
    finally:
        for op, precision in zip(ops, before, strict=True):
            op.fp32_precision = precision


@contextmanager
def _by_library() -> Iterator[None]:
    """Torch before 2.9."""
    convolutions, products = (
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    )
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)
