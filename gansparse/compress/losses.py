# SPDX-License-Identifier: Apache-2.0
"""Losses of self-supervised compression: Yu & Pool 2020, eq. 3-9, and distances of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.tasks.gan import GANTask, Terms

NORMALISER_FLOOR = 1.0  # of cross entropies: see Reading.normaliser_floor


def relative_gap(
    loss_o: torch.Tensor,  # [N], a loss term on the original generator's pictures
    loss_c: torch.Tensor,  # [N], the same term on the compressed generator's pictures
    reduction: str = "sample",
    floor: float = NORMALISER_FLOOR,
) -> torch.Tensor:  # scalar
    """|l_O - l_C| / |l_O|: one summand of eq. 3 and 6.

    The normaliser |l_O| is the absolute batch mean, taken as a constant (no gradient: otherwise D
    could shrink the ratio by inflating l_O), and never less than ``floor``: a trained GAN's term
    passes through zero (a WGAN loss changes sign, a BCE term vanishes when D is sure), and
    without the guard one batch there would outweigh all others. Where |l_O| >= floor the value is
    the paper's exactly.

    Args:
        loss_o: term of the original path.
        loss_c: term of the compressed path.
        reduction: ``batch``: the gap of the means; ``sample``: the mean of the samples' gaps.
        floor: least normaliser.

    Example:
        >>> relative_gap(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), "batch").item()
        0.0
        >>> relative_gap(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), "sample").item()
        1.0
    """
    normaliser = loss_o.detach().mean().abs().clamp_min(floor)
    if reduction == "batch":
        return (loss_o.mean() - loss_c.mean()).abs() / normaliser
    return (loss_o - loss_c).abs().mean() / normaliser


def consistency(
    task: GANTask,
    terms_o: Terms,  # each [N]
    terms_c: Terms,  # each [N]
    reduction: str = "sample",
    floor: float = NORMALISER_FLOOR,
) -> torch.Tensor:  # scalar
    """L_GC of eq. 3 (terms gen, cla, rec) or L_DC of eq. 6 (terms dis, gp).

    The sum over the terms the GAN has, each with the weight of the GAN's own training (alpha,
    beta, delta); the first term of each loss has weight 1 in the paper.
    """
    gaps = [
        task.weight(name) * relative_gap(terms_o[name], terms_c[name], reduction, floor)
        for name in terms_o
    ]
    return torch.stack(gaps).sum()


def output_distance(
    fake_o: torch.Tensor,  # [N, C, H, W]
    fake_c: torch.Tensor,  # [N, C, H, W]
    kind: str,
) -> torch.Tensor:  # scalar
    """Distance of the two generators' pictures: ``mse`` or ``l1``, mean over all pixels."""
    if kind == "mse":
        return F.mse_loss(fake_c, fake_o)
    return F.l1_loss(fake_c, fake_o)


def feature_distance(
    features_o: list[torch.Tensor],  # each [N, ...]
    features_c: list[torch.Tensor],  # each [N, ...]
) -> torch.Tensor:  # scalar
    """Mean over D's layers of the L1 distance, relative to the original's mean magnitude."""
    gaps = [
        F.l1_loss(c, o.detach()) / o.detach().abs().mean().clamp_min(1e-6)
        for o, c in zip(features_o, features_c, strict=True)
    ]
    return torch.stack(gaps).mean()


@contextmanager
def tapped_features(discriminator: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the output of every convolution of D while the context is open.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
        >>> with tapped_features(net) as features:
        ...     _ = net(torch.zeros(1, 1, 8, 8))
        >>> [tuple(f.shape) for f in features]
        [(1, 2, 6, 6), (1, 1, 4, 4)]
    """
    features: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        features.append(output)

    taps = [
        module.register_forward_hook(keep)
        for module in discriminator.modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    try:
        yield features
    finally:
        for tap in taps:
            tap.remove()
