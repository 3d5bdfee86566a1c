# SPDX-License-Identifier: Apache-2.0
"""feature_moments: add a batch of features to running sums of first and second moments."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def feature_moments_reference(
    features: Tensor, total: Tensor, second: Tensor, *, shift: Tensor | None = None
) -> None:
    """The same in plain torch: to be read, not to be fast."""
    deviations = features.double() if shift is None else features.double() - shift
    total += deviations.sum(0)
    second += (deviations.T @ deviations).tril()


feature_moments = feature_moments_reference
