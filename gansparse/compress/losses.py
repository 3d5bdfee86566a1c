# SPDX-License-Identifier: Apache-2.0
"""Losses of self-supervised compression: Yu & Pool 2020, eq. 3-9, and distances of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from gansparse.compress.distributed import average
from gansparse.tasks.gan import Fake, GANTask, Terms, pictures_of


def relative_gap(
    loss_o: torch.Tensor,  # [N], a loss term on the original generator's pictures
    loss_c: torch.Tensor,  # [N], the same term on the compressed generator's pictures
    reduction: str = "sample",
    floor: float = 1e-8,
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
    normaliser = average(loss_o.detach().mean()).abs().clamp_min(floor)
    if reduction == "batch":
        gap = loss_o.mean() - loss_c.mean()
        return gap * average(gap.detach()).sign() / normaliser
    return (loss_o - loss_c).abs().mean() / normaliser


class References:
    """The size that each term of the original path had at the first step: mean |l_O|.

    A term's guard is a share of it, for what is small differs between losses: a WGAN's term may be
    in the hundreds and a least-squares one below 0.1.

    Example:
        >>> references = References()
        >>> references.floors({"gen": torch.tensor([-1.0, 3.0])}, 0.5)
        {'gen': 1.0}
        >>> references.floors({"gen": torch.tensor([0.0, 0.0])}, 0.5)
        {'gen': 1.0}
    """

    def __init__(self) -> None:
        self.sizes: dict[str, float] = {}

    def floors(self, terms_o: Terms, share: float) -> dict[str, float]:
        """Least normaliser of each term."""
        for name, values in terms_o.items():
            if name not in self.sizes:
                self.sizes[name] = max(float(average(values.detach().abs().mean())), 1e-8)
        return {name: share * self.sizes[name] for name in terms_o}

    def state_dict(self) -> dict[str, float]:
        """The sizes."""
        return dict(self.sizes)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.sizes = dict(state)


def consistency(
    task: GANTask,
    terms_o: Terms,  # each [N]
    terms_c: Terms,  # each [N]
    reduction: str,
    floors: Mapping[str, float],
) -> torch.Tensor:  # scalar
    """L_GC of eq. 3 (terms gen, cla, rec) or L_DC of eq. 6 (terms dis, gp).

    The sum over the terms the GAN has, each with the weight of the GAN's own training (alpha,
    beta, delta); the first term of each loss has weight 1 in the paper.
    """
    gaps = [
        task.weight(name) * relative_gap(terms_o[name], terms_c[name], reduction, floors[name])
        for name in terms_o
    ]
    return torch.stack(gaps).sum()


def output_distance(
    fake_o: Fake,
    fake_c: Fake,
    kind: str,
) -> torch.Tensor:  # scalar
    """Distance of the two generators' pictures: ``mse`` or ``l1``, mean over all pixels."""
    distance = F.mse_loss if kind == "mse" else F.l1_loss
    pictures_o, pictures_c = pictures_of(fake_o), pictures_of(fake_c)
    return torch.stack([distance(pictures_c[name], pictures_o[name]) for name in pictures_o]).mean()


def feature_distance(
    features_o: list[torch.Tensor],  # each [N, ...]
    features_c: list[torch.Tensor],  # each [N, ...]
) -> torch.Tensor:  # scalar
    """Mean over layers of the L1 distance, relative to the original's mean magnitude."""
    gaps = [
        F.l1_loss(c, o.detach()) / average(o.detach().abs().mean()).clamp_min(1e-6)
        for o, c in zip(features_o, features_c, strict=True)
    ]
    return torch.stack(gaps).mean()


def inner_layers(module: nn.Module) -> list[nn.Module]:
    """The layers whose outputs are compared: normalisations, or where there are none convolutions.

    After a normalisation features have a scale that pruning does not change.
    """
    kinds = (_NormBase, nn.GroupNorm)
    norms: list[nn.Module] = [m for m in module.modules() if isinstance(m, kinds)]
    return norms or weighted_layers(module)


def weighted_layers(module: nn.Module) -> list[nn.Module]:
    """Every convolution and linear layer."""
    return [m for m in module.modules() if isinstance(m, (_ConvNd, nn.Linear))]


@contextmanager
def tapped(layers: Iterable[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collects the layers' outputs while the context is open, in the order they are computed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
        >>> with tapped(weighted_layers(net)) as features:
        ...     _ = net(torch.zeros(1, 1, 8, 8))
        >>> [tuple(f.shape) for f in features]
        [(1, 2, 6, 6), (1, 1, 4, 4)]
    """
    features: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        features.append(output)

    taps = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield features
    finally:
        for tap in taps:
            tap.remove()
