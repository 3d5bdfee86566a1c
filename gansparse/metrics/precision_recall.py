# SPDX-License-Identifier: Apache-2.0
"""Precision and recall of generated pictures, by nearest neighbours among features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from gansparse.errors import InputError
from gansparse.metrics.features import Extractor, Pictures
from gansparse.metrics.metric import RowsMetric

_BLOCK = 512  # rows compared with all others at once: 4 KB a row and 512 others


class Manifold(NamedTuple):
    """How two sets of pictures overlap.

    Attributes:
        precision: share of the generated pictures that lie among the real ones.
        recall: share of the real pictures that lie among the generated ones.
    """

    precision: float
    recall: float


class PrecisionRecall(RowsMetric):
    """Improved precision and recall: fidelity and variety, told apart.

    Kynkäänniemi et al., NeurIPS 2019. A set's manifold is the union of balls round its points, each
    reaching to the k-th nearest of the others; precision is the share of generated points in the
    manifold of the real ones, recall the reverse. Features are kept, 4 F bytes a picture, and every
    pair is compared: O(N²). Both depend on N: compare only numbers with equal counts.

    Args:
        extractor: pictures to features, its name, or a module: see `features.as_extractor`.
        neighbours: k.
        reset_real_features: False: `reset` keeps the real pictures' features.
        process_group: of torch.distributed; None: all ranks.
        sync_on_compute: False: this rank's own number.

    Example:
        >>> from gansparse.metrics.features import module_extractor
        >>> pixels = module_extractor("pixels", lambda images: images.flatten(1), 1)
        >>> found = PrecisionRecall(pixels, neighbours=1)
        >>> found.update_features(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), real=True)
        >>> found.update_features(torch.tensor([[0.2], [0.4], [1.5], [5.0]]), real=False)
        >>> found.compute()
        Manifold(precision=0.75, recall=0.5)
    """

    def __init__(
        self,
        extractor: Extractor | str | Pictures,
        *,
        neighbours: int = 3,
        reset_real_features: bool = True,
        process_group: dist.ProcessGroup | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        if neighbours < 1:
            raise InputError(f"PrecisionRecall: neighbours must be at least 1, got {neighbours}")
        self.neighbours = neighbours
        super().__init__(
            extractor,
            reset_real_features=reset_real_features,
            process_group=process_group,
            sync_on_compute=sync_on_compute,
        )

    def settings(self) -> dict[str, Any]:
        """The extractor's, and k."""
        return {**super().settings(), "neighbours": self.neighbours}

    def _compute(self) -> Manifold:
        self._require(self.neighbours + 1)
        real, fake = self.real.all.double(), self.fake.all.double()
        # About a common point in their midst the squares below are small, and cancel less.
        real, fake = real - real.mean(0), fake - real.mean(0)
        return Manifold(
            precision=_share_inside(fake, real, self.neighbours),
            recall=_share_inside(real, fake, self.neighbours),
        )


def _share_inside(
    points: torch.Tensor,  # [N, F] float64
    centres: torch.Tensor,  # [M, F] float64
    neighbours: int,
) -> float:
    """Share of the points in a ball of some centre; a tie is inside, to rounding."""
    radii = torch.cat(
        [
            _squared_distances(block, centres).kthvalue(neighbours + 1).values  # itself the first
            for block in torch.split(centres, _BLOCK)
        ]
    )
    largest = torch.cat([points, centres]).square().sum(1).max()
    rounding = 4 * torch.finfo(torch.float64).eps * centres.shape[1] ** 0.5 * largest
    inside = sum(
        int((_squared_distances(block, centres) <= radii + rounding).any(1).count_nonzero())
        for block in torch.split(points, _BLOCK)
    )
    return inside / len(points)


def _squared_distances(
    x: torch.Tensor,  # [N, F] float64
    y: torch.Tensor,  # [M, F] float64
) -> torch.Tensor:  # [N, M]
    """|x|² + |y|² - 2 xᵀy."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    return squares.addmm_(x, y.T, alpha=-2.0)
