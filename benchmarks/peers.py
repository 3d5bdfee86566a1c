# SPDX-License-Identifier: Apache-2.0
"""Other libraries' functions, reached without their networks: `pip install gansparse[peers]`."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


class _Given(nn.Module):
    """A feature extractor whose features are given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def torchmetrics_fid(num_features: int) -> Any:
    """A torchmetrics FID whose `update` takes features, and whose states are float64."""
    torch_fidelity_fid()  # which torchmetrics imports
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=_Given(num_features))


def torchmetrics_distance() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """torchmetrics' distance of (mean1, cov1, mean2, cov2)."""
    torch_fidelity_fid()
    from torchmetrics.image.fid import _compute_fid

    return _compute_fid


def torch_fidelity_fid() -> Any:
    """torch-fidelity's module of FID functions, which need nothing of the torchvision it imports.

    Where there is no torchvision, as often beside a CPU build of torch, an empty one stands in.
    """
    names = [f"torchvision{part}" for part in ("", ".datasets", ".models", ".transforms")]
    names.append("torchvision.transforms.functional")
    if importlib.util.find_spec("torchvision") is not None:
        names = []
    sys.modules.update({name: mock.MagicMock() for name in names})
    try:
        from torch_fidelity import metric_fid
    finally:
        for name in names:
            del sys.modules[name]
    return metric_fid


@functools.cache
def _numpys_threads() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api="openblas")


def on_as_many_threads(run: Callable[[], Any]) -> Any:
    """`run()`, with NumPy's BLAS on as many threads as torch, which torch's setting misses."""
    with _numpys_threads().limit(limits=torch.get_num_threads()):
        return run()


def draw(rows: int, width: int, seed: int, decay: float = 0.0) -> Tensor:
    """Features [rows, width] float32, all different in direction, with a spectrum of i^-decay."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    x *= torch.arange(1, width + 1, dtype=torch.float64) ** (-decay / 2)
    if decay:
        turn = torch.randn(width, width, generator=generator, dtype=torch.float64)
        x = x @ torch.linalg.qr(turn)[0]
    return (x + 0.4).float()
