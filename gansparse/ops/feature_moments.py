# SPDX-License-Identifier: Apache-2.0
"""feature_moments: add a batch of feature vectors to running first and second moments."""

from __future__ import annotations

import torch
from torch import Tensor

from gansparse import _C
from gansparse.ops._arrays import takes_arrays
from gansparse.ops._library import current_stream, define, describe


@takes_arrays
def feature_moments(
    features: Tensor,  # [N, F]
    total: Tensor,  # [F]
    second: Tensor,  # [F, F], lower triangle
    *,
    shift: Tensor | None = None,  # [F]
) -> None:
    r"""Add a batch's sums and products, taken about a shift, in place and in float64.

    .. math::
        d_n = x_n - \text{shift} \qquad
        \text{total} \mathrel{+}= \sum_n d_n \qquad
        \text{second} \mathrel{+}= \sum_n d_n d_n^\top

    There is no gradient through this op. Entries of `second` above the diagonal are neither read
    nor written. `gansparse.metrics.FeatureMoments` keeps such sums and makes mean and covariance
    of them. The CPU kernel is ours because it measured faster than the float64 BLAS of torch; the
    CUDA kernel has been checked but not yet been timed against cuBLAS.

    Args:
        features: [N, F] float16, bfloat16, float32 or float64, contiguous; widened to float64,
            which is exact.
        total: [F] float64, contiguous; written.
        second: [F, F] float64, contiguous, its lower triangle; written.
        shift: [F] float64, contiguous, subtracted from every row; None: nothing. Best near the
            mean, and the same at every call that adds to the same sums.

    Raises:
        InputError: an argument breaks a rule; the message names it and what it was.

    Example:
        >>> total, second = torch.zeros(2).double(), torch.zeros(2, 2).double()
        >>> feature_moments(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), total, second)
        >>> total.tolist(), second.tolist()
        ([4.0, 6.0], [[10.0, 0.0], [14.0, 20.0]])
    """
    with torch.no_grad():
        torch.ops.gansparse.feature_moments(features, total, second, shift)


def feature_moments_reference(
    features: Tensor, total: Tensor, second: Tensor, *, shift: Tensor | None = None
) -> None:
    """The same in plain torch: to be read, not to be fast."""
    deviations = features.to(torch.float64)
    if shift is not None:
        deviations = deviations - shift
    total.add_(deviations.sum(0))
    second.add_((deviations.T @ deviations).tril())


def _run(features: Tensor, total: Tensor, second: Tensor, shift: Tensor | None) -> None:
    _C.feature_moments(features, total, second, shift=shift, stream=current_stream(features))


def _fake(features: Tensor, total: Tensor, second: Tensor, shift: Tensor | None) -> None:
    _C.feature_moments(describe(features), describe(total), describe(second), shift=describe(shift))


define(
    "feature_moments(Tensor features, Tensor(a!) total, Tensor(b!) second, Tensor? shift) -> ()",
    _run,
    _fake,
)
