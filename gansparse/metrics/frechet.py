# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance between two Gaussians, exact on full-rank and on singular covariances.

For covariances S1, S2 and any factors S1 = F1 F1ᵀ, S2 = F2 F2ᵀ (Dowson and Landau 1982; used as
FID by Heusel et al. 2017):

    distance = |mean1 - mean2|² + Tr S1 + Tr S2 - 2 Tr (S1 S2)^½,
    Tr (S1 S2)^½ = Σ sqrt eig(L1ᵀ S2 L1) = Σ singular values of F1ᵀ F2.

The first form of the trace is the fast one: one Cholesky factor L1, one symmetric product and a
values-only eigensolver. Its eigenvalues are squares of what is wanted, so it is taken only where
they are well conditioned. The second form loses nothing when they are not: the
factors come from pivoted Cholesky, cut at their numerical rank, or are the centred features
themselves. No jitter is added and no imaginary part can arise.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch

from gansparse.errors import InputError

Array: TypeAlias = "torch.Tensor | np.ndarray[tuple[int, ...], np.dtype[np.floating]]"

# The eigenvalue form is taken where the smallest eigenvalue exceeds this share of the largest. On
# features of 64 to 1024 dimensions with spectra i^-a, a = 0 … 6, its error was then below 1e-13 of
# the sum of the traces; at 1e-20 of it, the error reached 2e-12.
_WELL_CONDITIONED = 1e-12
# A covariance may be asymmetric or indefinite by this share of its largest variance: far above
# the rounding of any float64 estimate, far below that of a float32 one (1e-7).
_ROUNDING = 1e-10
_PANEL = 64  # columns a step of the pivoted factorisation
_TILE = 256  # side of the blocks that matrix products on the CPU work on


def frechet_distance(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> float:
    """Squared Fréchet distance between N(mean1, cov1) and N(mean2, cov2).

    Where it is well conditioned the eigenvalue form is taken, otherwise the rank-revealing one
    (see the head of this module); both are exact to rounding where they are used. The result is
    clamped at 0, below which only rounding can bring it.

    Args:
        mean1: [F] floating point, finite.
        cov1: [F, F] floating point, symmetric positive semi-definite; singular is fine.
        mean2: [F], as `mean1`.
        cov2: [F, F], as `cov1`.

    Returns:
        The distance, in the square of the features' unit.

    Raises:
        InputError: a shape, dtype or value breaks a rule; the message names the argument.

    Example:
        >>> import torch
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> frechet_distance(torch.zeros(3), eye, torch.ones(3), 4 * eye)
        6.0
    """
    mean1, cov1 = _statistics(mean1, cov1, "1")
    mean2, cov2 = _statistics(mean2, cov2, "2")
    if mean1.shape != mean2.shape:
        raise InputError(
            "frechet_distance: mean2 must have as many features as mean1, "
            f"{mean1.numel()}, got {mean2.numel()}"
        )
    cov2, mean2 = cov2.to(cov1.device), mean2.to(mean1.device)
    overlap = _overlap_from_eigenvalues(cov1, cov2)
    if overlap is None:
        overlap = _overlap_from_factors(_pivoted_factor(cov1, "1"), _pivoted_factor(cov2, "2"))
    return _distance(mean1 - mean2, cov1.trace() + cov2.trace(), overlap)


def frechet_distance_from_features(x: Array, y: Array) -> float:
    """Squared Fréchet distance between the Gaussians fitted to two sets of features.

    Where a set has no more rows than features its centred rows are themselves the factor of its
    covariance: Tr (S1 S2)^½ = Σ singular values of Xc Ycᵀ / sqrt((N - 1)(M - 1)), and the
    singular covariance is never formed.

    Args:
        x: [N, F] floating point, finite, N ≥ 2.
        y: [M, F], as `x`.

    Returns:
        The distance, as `frechet_distance` of the two means and unbiased covariances.

    Raises:
        InputError: a shape, dtype or value breaks a rule; the message names the argument.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> frechet_distance_from_features(x, x + 1)
        2.0
    """
    x, y = _features(x, "x"), _features(y, "y")
    if x.shape[1] != y.shape[1]:
        raise InputError(
            "frechet_distance_from_features: y must have as many features as x, "
            f"{x.shape[1]}, got {y.shape[1]}"
        )
    y = y.to(x.device)
    mean_x, mean_y = x.mean(0), y.mean(0)
    rows_x = (x - mean_x) / (x.shape[0] - 1) ** 0.5  # [N, F], rowsᵀ rows = covariance
    rows_y = (y - mean_y) / (y.shape[0] - 1) ** 0.5  # [M, F]
    if min(x.shape[0], y.shape[0]) > x.shape[1]:
        return frechet_distance(mean_x, rows_x.T @ rows_x, mean_y, rows_y.T @ rows_y)
    traces = rows_x.square().sum() + rows_y.square().sum()
    overlap = _overlap_from_factors(_narrow_factor(rows_x, "x"), _narrow_factor(rows_y, "y"))
    return _distance(mean_x - mean_y, traces, overlap)


def _distance(shift: torch.Tensor, traces: torch.Tensor, overlap: torch.Tensor) -> float:
    """|shift|² + traces - 2 overlap; refuses a sum that left the range of float64."""
    distance = float(shift.dot(shift) + traces - 2 * overlap)
    if not np.isfinite(distance):
        raise InputError("frechet_distance: features too large: their squares overflow float64")
    return max(0.0, distance)


def _overlap_from_eigenvalues(cov1: torch.Tensor, cov2: torch.Tensor) -> torch.Tensor | None:
    """Tr (S1 S2)^½ from eigenvalues, or None where that form would lose digits."""
    lower = _cholesky(cov1)
    if lower is None:
        return None
    product = torch.empty_like(cov2)  # above its diagonal nobody reads
    _congruence(lower, cov2, product)
    eigenvalues = torch.linalg.eigvalsh(product)
    well_conditioned = bool(eigenvalues[0] > _WELL_CONDITIONED * eigenvalues[-1])
    return eigenvalues.sqrt().sum() if well_conditioned else None


def _cholesky(cov: torch.Tensor) -> torch.Tensor | None:
    """The lower Cholesky factor, or None where a pivot is not above rounding.

    On the CPU a strip of columns at a time, so that matrix products do the work: LAPACK's own
    takes 1.25 times as long on one thread.
    """
    strip = _tile(cov)
    lower = torch.zeros_like(cov)
    for a in range(0, cov.shape[0], strip):
        b = a + strip
        columns = torch.addmm(cov[a:, a:b], lower[a:, :a], lower[a:b, :a].T, alpha=-1.0)
        top, info = torch.linalg.cholesky_ex(columns[:strip])
        if int(info) != 0:
            return None
        lower[a:b, a:b] = top
        if b >= cov.shape[0]:
            break
        lower[b:, a:b] = torch.linalg.solve_triangular(
            top.T, columns[strip:], upper=True, left=False
        )
    return lower if bool(lower.diagonal().min().square() > _rank_cut(cov)) else None


def _congruence(lower: torch.Tensor, cov: torch.Tensor, out: torch.Tensor) -> None:
    """Writes Lᵀ S L into the lower triangle of `out`, by halves of L and S: F³ flops.

    With P = S21 L11 + ½ S22 L21 its quarters are

        L11ᵀ S11 L11 + Pᵀ L21 + L21ᵀ P
        L22ᵀ (P + ½ S22 L21)              L22ᵀ S22 L22

    which takes each product of S once, although S stands on both sides of its diagonal.
    """
    if lower.shape[0] <= _tile(lower):
        torch.mm(lower.T, cov @ lower, out=out)
        return
    h = lower.shape[0] // 2
    l11, l21, l22 = lower[:h, :h], lower[h:, :h], lower[h:, h:]
    half = (cov[h:, h:] @ l21).mul_(0.5)
    p = torch.empty_like(half)
    for a in range(0, h, _TILE):  # S21 L11, without the zeros of L11
        torch.mm(cov[h:, a:h], l11[a:, a : a + _TILE], out=p[:, a : a + _TILE])
    p += half
    _congruence(l11, cov[:h, :h], out[:h, :h])
    cross = p.T @ l21
    out[:h, :h] += cross
    out[:h, :h] += cross.T
    p += half
    below = out[h:, :h]
    for a in range(0, below.shape[0], _TILE):
        torch.mm(l22[a:, a : a + _TILE].T, p[a:], out=below[a : a + _TILE])
    _congruence(l22, cov[h:, h:], out[h:, h:])


def _tile(matrix: torch.Tensor) -> int:
    """Side of the blocks that work goes by: what fits a CPU's cache; a GPU takes all at once."""
    return _TILE if matrix.device.type == "cpu" else matrix.shape[0]


def _rank_cut(cov: torch.Tensor) -> torch.Tensor:
    """A pivot up to this is rounding: F · ε · the largest variance."""
    return cov.shape[0] * torch.finfo(cov.dtype).eps * cov.diagonal().max()


def _overlap_from_factors(factor1: torch.Tensor, factor2: torch.Tensor) -> torch.Tensor:
    """Σ singular values of F1ᵀ F2, for factors [F, rank]."""
    if factor1.shape[1] == 0 or factor2.shape[1] == 0:
        return factor1.new_zeros(())
    overlap: torch.Tensor = torch.linalg.svdvals(factor1.T @ factor2).sum()
    return overlap


def _narrow_factor(rows: torch.Tensor, which: str) -> torch.Tensor:
    """A factor of rowsᵀ rows with at most F columns: the rows, or a factor of their covariance."""
    return rows.T if rows.shape[0] <= rows.shape[1] else _pivoted_factor(rows.T @ rows, which)


def _pivoted_factor(cov: torch.Tensor, which: str) -> torch.Tensor:
    """Pivoted Cholesky: F [F, rank] with F Fᵀ = `cov`, cut at the numerical rank.

    The largest remaining variance is the next pivot, until none exceeds F·ε of the largest. Rows
    stay in place (F is a row permutation of a triangle), and the remainder is updated a panel of
    columns at a time, so almost all work is matrix products.
    """
    features = cov.shape[0]
    cut = _rank_cut(cov)
    remainder = cov.clone()
    open_rows = torch.ones_like(cov[0])  # 1 where a row has not been a pivot
    panels: list[torch.Tensor] = []
    for start in range(0, features, _PANEL):
        panel = cov.new_zeros(features, min(_PANEL, features - start))
        variance = remainder.diagonal() * open_rows
        for j in range(panel.shape[1]):
            pivot = variance.argmax()
            scale = variance[pivot].clamp_min(cut).rsqrt()
            column = remainder[pivot] - panel[:, :j] @ panel[pivot, :j]
            column = torch.where(variance[pivot] > cut, column * scale * open_rows, 0.0)
            panel[:, j] = column
            open_rows[pivot] = 0.0
            variance = (variance - column.square()) * open_rows
        remainder -= panel @ panel.T
        panels.append(panel)
        if not bool((variance > cut).any()):
            break
    # What is left of a positive semi-definite matrix is rounding; anything else is not one.
    residual = float(((remainder * open_rows).T * open_rows).abs().max())
    if residual > _ROUNDING * float(cov.diagonal().max()):
        raise InputError(
            f"frechet_distance: cov{which} must be positive semi-definite, but {residual:.3g} is "
            "left after its factorisation; compute it in float64 from features"
        )
    factor = torch.cat(panels, dim=1)
    return factor[:, factor.abs().amax(0) > 0]


def _float64(value: Array, name: str, ndim: int) -> torch.Tensor:
    """`value` as a float64 tensor of `ndim` axes, or an InputError that names it."""
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise InputError(f"{name} must be a tensor or array, got {type(value).__name__}")
    tensor = torch.as_tensor(value).detach()
    if not tensor.is_floating_point():
        raise InputError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.dim() != ndim:
        axes = {1: "[F]", 2: "two axes"}[ndim]
        raise InputError(f"{name} must have shape {axes}, got {list(tensor.shape)}")
    # A sum is finite only if all its terms are; finite terms may still overflow it.
    if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        raise InputError(f"{name} must be finite, got NaN or infinity; check the features' source")
    return tensor.to(torch.float64)


def _statistics(mean: Array, cov: Array, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A checked pair of mean [F] and covariance [F, F] in float64."""
    mean = _float64(mean, f"frechet_distance: mean{which}", 1)
    cov = _float64(cov, f"frechet_distance: cov{which}", 2)
    features = mean.numel()
    if features == 0 or cov.shape != (features, features):
        raise InputError(
            f"frechet_distance: cov{which} must have shape [F, F] with F ≥ 1 as mean{which}'s "
            f"[{features}], got {list(cov.shape)}"
        )
    scale = max(abs(float(bound)) for bound in cov.aminmax())
    if _asymmetry(cov) > _ROUNDING * scale:
        raise InputError(
            f"frechet_distance: cov{which} must be symmetric; compute it in float64 from features"
        )
    if scale > float(cov.diagonal().max()) * (1 + _ROUNDING):
        raise InputError(
            f"frechet_distance: cov{which} must be positive semi-definite, but an entry exceeds "
            "the largest variance"
        )
    return mean, cov


def _asymmetry(cov: torch.Tensor) -> float:
    """Largest difference between an entry and its mirror image, tile by tile."""
    tile = _tile(cov)
    starts = range(0, cov.shape[0], tile)
    differences = (
        cov[a : a + tile, b : b + tile] - cov[b : b + tile, a : a + tile].T
        for a in starts
        for b in starts
        if b <= a
    )
    return max(float(difference.abs().max()) for difference in differences)


def _features(value: Array, name: str) -> torch.Tensor:
    """Checked features [N, F], N ≥ 2, in float64."""
    tensor = _float64(value, f"frechet_distance_from_features: {name}", 2)
    if tensor.shape[0] < 2 or tensor.shape[1] < 1:
        raise InputError(
            f"frechet_distance_from_features: {name} must have shape [N, F] with N ≥ 2 and F ≥ 1 "
            f"(a covariance needs two samples), got {list(tensor.shape)}"
        )
    return tensor
