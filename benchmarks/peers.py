# SPDX-License-Identifier: Apache-2.0
"""Other libraries' functions; the tests know how to import them where torchvision is missing."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import ROOT

sys.path.insert(0, str(ROOT / "tests" / "metrics"))

from peers import (  # noqa: F401
    fidelity_network,
    peer,
    pytorch_fid_network,
    random_inception,
)


class _Given(nn.Module):
    """A feature extractor whose features are given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def usable(module: str) -> bool:
    """Whether a peer's module is installed and can be imported; says so where it is not."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: left out", file=sys.stderr)
        return False
    try:
        peer(module)
    except Exception as error:  # whatever it lacks itself
        print(f"{package} can't be imported: left out: {error}", file=sys.stderr)
        return False
    return True


def torchmetrics_fid(num_features: int) -> Any:
    """A torchmetrics FID whose `update` takes features, and whose states are float64."""
    fid = peer("torchmetrics.image.fid")
    return fid.FrechetInceptionDistance(feature=_Given(num_features))


def torchmetrics_distance() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """torchmetrics' distance of (mean1, cov1, mean2, cov2)."""
    distance: Callable[..., Tensor] = peer("torchmetrics.image.fid")._compute_fid
    return distance


def torch_fidelity_fid() -> Any:
    """torch-fidelity's module of FID functions."""
    return peer("torch_fidelity.metric_fid")


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
