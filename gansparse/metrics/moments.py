# SPDX-License-Identifier: Apache-2.0
"""Mean and covariance of features that arrive batch by batch, in float64 and O(F²) memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gansparse.errors import InputError
from gansparse.ops import feature_moments

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A tensor made in inference mode can't be added to outside; sums outlive the mode.
_OUTSIDE_INFERENCE_MODE = torch.inference_mode(False)


def checked_rows(
    features: torch.Tensor,  # [N, F]
    num_features: int,
    name: str,
    device: torch.device | None = None,
) -> torch.Tensor:  # [N, F], detached
    """The features, if they are finite floating point rows of that width, on that device.

    Raises:
        InputError: they are not; the message begins with `name`.
    """
    if features.dim() != 2 or features.shape[1] != num_features:
        raise InputError(f"{name} must have shape [N, {num_features}], got {list(features.shape)}")
    if features.dtype not in _DTYPES:
        raise InputError(f"{name} must be floating point, got {features.dtype}")
    if device is not None and device != features.device:
        raise InputError(f"{name} must be on {device}, got {features.device}")
    features = features.detach()
    # A sum is finite only if all its terms are; finite terms may still overflow it.
    if not bool(features.sum().isfinite()) and not bool(features.isfinite().all()):
        row, column = (int(i) for i in (~features.isfinite()).nonzero()[0])
        raise InputError(
            f"{name} must be finite, got {float(features[row, column])} in row {row}, "
            f"feature {column}"
        )
    return features


class FeatureMoments:
    """Running mean and unbiased covariance of feature vectors.

    Batches are checked as they arrive and copied into a buffer of rows; a full buffer is folded
    into float64 sums (see `gansparse.ops.feature_moments`) of the features' deviations from
    `shift`, the mean of the first buffer: without it a mean far above the spread would cost the
    covariance its digits. Results depend on the batch size only by rounding.

    Args:
        num_features: F.
        buffer_rows: rows folded at once; more is faster, at 4 bytes · F a row.

    Example:
        >>> moments = FeatureMoments(2)
        >>> moments.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        >>> moments.update(torch.tensor([[5.0, 3.0]]))
        >>> moments.count, moments.mean.tolist(), moments.cov.tolist()
        (3, [3.0, 1.0], [[4.0, 3.0], [3.0, 3.0]])
    """

    def __init__(self, num_features: int, buffer_rows: int = 1024) -> None:
        if num_features < 1 or buffer_rows < 1:
            raise InputError(
                "FeatureMoments: num_features and buffer_rows must be at least 1, "
                f"got {num_features} and {buffer_rows}"
            )
        self.num_features = num_features
        self.buffer_rows = buffer_rows
        self._batches = 0  # seen, to name one that is refused
        self._folded = 0  # rows in the sums
        self._shift: torch.Tensor | None = None  # [F] float64; None until the first fold
        self._total = torch.empty(0)  # [F] float64, Σ (x - shift)
        self._second = torch.empty(0)  # [F, F] float64, Σ (x - shift)(x - shift)ᵀ, lower triangle
        self._buffer: torch.Tensor | None = None  # [buffer_rows, F] float32 or float64
        self._buffered = 0  # rows in the buffer

    @_OUTSIDE_INFERENCE_MODE
    @torch.no_grad()
    def update(
        self,
        features: torch.Tensor,  # [N, F], floating point
    ) -> None:
        """Take a batch in. Float16 and bfloat16 are widened to float32, which is exact.

        Raises:
            InputError: wrong shape, dtype or device, or a NaN or infinity; the message names the
                batch, and nothing of it has been taken in.
        """
        features = self._checked(features)
        if self._buffer is None or self._buffer.dtype != features.dtype:
            self._fold()
            self._buffer = features.new_empty(self.buffer_rows, self.num_features)
        self._batches += 1
        taken = 0
        while taken < len(features):
            rows = features[taken : taken + self.buffer_rows - self._buffered]
            self._buffer[self._buffered : self._buffered + len(rows)] = rows
            self._buffered += len(rows)
            taken += len(rows)
            if self._buffered == self.buffer_rows:
                self._fold()

    @_OUTSIDE_INFERENCE_MODE
    @torch.no_grad()
    def merge(self, other: FeatureMoments) -> None:
        """Take in all that `other` has seen, exactly (Chan, Golub and LeVeque 1979).

        The result is the same to rounding as if one object had seen every batch.
        """
        if other.num_features != self.num_features:
            raise InputError(
                f"FeatureMoments: merge needs as many features as here, {self.num_features}, "
                f"got {other.num_features}"
            )
        if other.count == 0:
            return
        self._fold()
        other_mean, other_scatter = other._mean_and_scatter()
        if self._folded == 0:
            mean, scatter = other_mean.clone(), other_scatter.clone()
        else:
            mean, scatter = self._mean_and_scatter()
            gap = other_mean.to(mean.device) - mean
            share = other._folded / (self._folded + other._folded)
            scatter = scatter + other_scatter.to(mean.device)
            scatter += torch.outer(gap, gap) * (self._folded * share)
            mean = mean + gap * share
        # From here on the sums are about the common mean.
        self._folded += other._folded
        self._shift, self._total, self._second = mean, torch.zeros_like(mean), scatter

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._folded + self._buffered

    @property
    def mean(self) -> torch.Tensor:
        """[F] float64. Needs one row."""
        self._require(1, "mean")
        assert self._shift is not None
        return self._shift + self._total / self._folded

    @property
    def cov(self) -> torch.Tensor:
        """[F, F] float64, symmetric, divided by N - 1. Needs two rows."""
        self._require(2, "covariance")
        lower = self._mean_and_scatter()[1].tril() / (self._folded - 1)
        return lower + lower.tril(-1).T

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that was seen, as tensors on their device: "count", "shift", "total", "second"."""
        self._fold()
        shift, total, second = self._shift, self._total, self._second
        if shift is None:  # nothing seen: the shift stays open
            shift = total = torch.zeros(self.num_features, dtype=torch.float64)
            second = shift.new_zeros(self.num_features, self.num_features)
        return {
            "count": torch.tensor(self._folded),
            "shift": shift,
            "total": total,
            "second": second,
        }

    @_OUTSIDE_INFERENCE_MODE
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the place of the object whose `state_dict` this is. The tensors are copied."""
        f = self.num_features
        wanted = {"count": (), "shift": (f,), "total": (f,), "second": (f, f)}
        got = {name: tuple(value.shape) for name, value in state.items()}
        if got != wanted:
            raise InputError(f"FeatureMoments: state must have shapes {wanted}, got {got}")
        self._buffer, self._buffered = None, 0
        self._folded = int(state["count"])
        sums = (state[name].to(torch.float64, copy=True) for name in ("shift", "total", "second"))
        self._shift, self._total, self._second = sums
        if self._folded == 0:
            self._shift = None

    def _checked(self, features: torch.Tensor) -> torch.Tensor:
        """The batch as float32 or float64 rows, or an InputError that names it."""
        known = self._shift if self._shift is not None else self._buffer
        features = checked_rows(
            features,
            self.num_features,
            f"FeatureMoments: batch {self._batches}",
            None if known is None else known.device,
        )
        return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features

    @_OUTSIDE_INFERENCE_MODE
    def _fold(self) -> None:
        """Empty the buffer into the sums."""
        if self._buffer is None or self._buffered == 0:
            return
        rows = self._buffer[: self._buffered]  # [N, F]
        if self._shift is None:
            self._start(rows.mean(0, dtype=torch.float64))
        assert self._shift is not None
        feature_moments(rows, self._total, self._second, shift=self._shift)
        self._folded += self._buffered
        self._buffered = 0

    def _start(self, shift: torch.Tensor) -> None:
        """Set the sums to zero about `shift`."""
        self._shift = shift
        self._total = torch.zeros_like(shift)
        self._second = shift.new_zeros(self.num_features, self.num_features)

    def _mean_and_scatter(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean [F], and Σ (x - mean)(x - mean)ᵀ in the lower triangle of [F, F]."""
        self._fold()
        assert self._shift is not None
        offset = self._total / self._folded
        scatter = self._second - torch.outer(self._total, offset)
        return self._shift + offset, scatter

    def _require(self, rows: int, what: str) -> None:
        if self.count < rows:
            raise InputError(
                f"FeatureMoments: the {what} needs at least {rows} rows, got {self.count}"
            )
        self._fold()
