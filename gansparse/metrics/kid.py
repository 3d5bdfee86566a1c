# SPDX-License-Identifier: Apache-2.0
"""Kernel inception distance: an unbiased squared maximum mean discrepancy of features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from gansparse.errors import InputError
from gansparse.metrics.features import Extractor, Pictures
from gansparse.metrics.metric import RowsMetric

_BLOCK = 256  # rows compared with all others at once: memory O(N), and each pair once


class KID(NamedTuple):
    """Over the subsets.

    Attributes:
        mean: the estimate; unbiased, so it may be a little below 0.
        std: population standard deviation of a subset's estimate.
    """

    mean: float
    std: float


class KernelInceptionDistance(RowsMetric):
    """Mean squared discrepancy of random subsets of real and generated pictures' features.

    Bińkowski et al., ICLR 2018. The subsets are drawn from NumPy's legacy generator, whose stream
    is frozen, as torch-fidelity draws them: given the same features in the same order the numbers
    are the same. Over ranks the order is that of the ranks, so another split of the pictures draws
    other subsets. Features are kept, 4 F bytes a picture; the kernel is computed in float64.

    Args:
        extractor: pictures to features, its name, or a module: see `features.as_extractor`.
        subsets: how many.
        subset_size: pictures of each side in one.
        degree: of the kernel (gamma xᵀy + coef)^degree.
        gamma: None: 1 / F.
        coef: see `degree`.
        seed: of the subsets.
        reset_real_features: False: `reset` keeps the real pictures' features.
        process_group: of torch.distributed; None: all ranks.
        sync_on_compute: False: this rank's own number.

    Example:
        >>> from gansparse.metrics.features import module_extractor
        >>> pixels = module_extractor("pixels", lambda images: images.flatten(1), 4)
        >>> kid = KernelInceptionDistance(pixels, subsets=2, subset_size=3)
        >>> kid.update_features(torch.eye(4)[:3], real=True)
        >>> kid.update_features(torch.eye(4)[1:], real=False)
        >>> round(kid.compute().mean, 6)
        -0.423611
    """

    def __init__(
        self,
        extractor: Extractor | str | Pictures,
        *,
        subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        seed: int = 2020,
        reset_real_features: bool = True,
        process_group: dist.ProcessGroup | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        if subsets < 1 or subset_size < 2:
            raise InputError(
                "KernelInceptionDistance: subsets must be at least 1 and subset_size at least 2, "
                f"got {subsets} and {subset_size}"
            )
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.degree, self.gamma, self.coef = degree, gamma, coef
        super().__init__(
            extractor,
            reset_real_features=reset_real_features,
            process_group=process_group,
            sync_on_compute=sync_on_compute,
        )

    def settings(self) -> dict[str, Any]:
        """The extractor's, the subsets' and the kernel's."""
        names = ("subsets", "subset_size", "degree", "gamma", "coef", "seed")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def _compute(self) -> KID:
        self._require(self.subset_size)
        real, fake = self.real.all, self.fake.all
        draws = np.random.RandomState(self.seed)
        found = []
        for _ in range(self.subsets):
            some = [
                rows[draws.choice(len(rows), self.subset_size, replace=False)]
                for rows in (real, fake)
            ]
            found.append(
                polynomial_mmd(*some, degree=self.degree, gamma=self.gamma, coef=self.coef)
            )
        return KID(float(np.mean(found)), float(np.std(found)))


def polynomial_mmd(
    x: torch.Tensor,  # [N, F]
    y: torch.Tensor,  # [M, F]
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (gamma xᵀy + coef)^degree.

    Gretton et al., JMLR 2012, equation 3:

        Σ_{i≠j} k(x_i, x_j) / N(N-1) + Σ_{i≠j} k(y_i, y_j) / M(M-1) - 2 Σ_ij k(x_i, y_j) / NM

    Args:
        x: [N, F] floating point, N ≥ 2; computed in float64.
        y: [M, F], as `x`.
        degree: of the kernel.
        gamma: None: 1 / F.
        coef: of the kernel.

    Raises:
        InputError: the shapes don't fit.

    Example:
        >>> polynomial_mmd(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
        -121.0
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(
            "polynomial_mmd: x and y must be [N, F] and [M, F] with N, M ≥ 2, "
            f"got {list(x.shape)} and {list(y.shape)}"
        )
    x, y = x.double(), y.double()
    scale = 1 / x.shape[1] if gamma is None else gamma

    def kernel(inner: torch.Tensor) -> float:
        return float(inner.mul_(scale).add_(coef).pow_(degree).sum())

    def within(z: torch.Tensor) -> float:
        """Σ_{i≠j} k(z_i, z_j): blocks above the diagonal count twice."""
        total = -kernel(z.square().sum(1))
        for a in range(0, len(z), _BLOCK):
            b = a + _BLOCK
            total += kernel(z[a:b] @ z[a:b].T) + 2 * kernel(z[a:b] @ z[b:].T)
        return total / (len(z) * (len(z) - 1))

    between = sum(kernel(part @ y.T) for part in torch.split(x, _BLOCK)) / (len(x) * len(y))
    return within(x) + within(y) - 2 * between
