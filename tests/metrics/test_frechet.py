# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance: agreement with scipy where that is right, with mpmath where it is not."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch

from gansparse.errors import InputError
from gansparse.metrics import frechet, frechet_distance, frechet_distance_from_features

EPS = torch.finfo(torch.float64).eps


def gaussian(rows: int, features: int, seed: int, decay: float = 0.0) -> torch.Tensor:
    """Correlated features [rows, features] whose spectrum falls as i^-decay."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(rows, features, dtype=torch.float64, generator=generator)
    spread = torch.arange(1, features + 1, dtype=torch.float64) ** (-decay / 2)
    turn = torch.randn(features, features, dtype=torch.float64, generator=generator)
    return (draw * spread) @ torch.linalg.qr(turn)[0] + 0.1 * seed


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    """The textbook formula with scipy's matrix square root."""
    (m1, s1), (m2, s2) = ((m.numpy(), s.numpy()) for m, s in map(statistics, (x, y)))
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real)


def integers(rows: int, features: int, seed: int) -> torch.Tensor:
    """Features whose mean and covariance float64 holds without rounding.

    Small integers, each row beside its negative and one row of zeros: the mean is 0, and where
    `rows` is a power of two, so is N - 1 = 2 · rows.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(-8, 9, (rows, features), generator=generator).double()
    return torch.cat([half, -half, torch.zeros(1, features, dtype=torch.float64)])


def by_mpmath(x: torch.Tensor, y: torch.Tensor) -> float:
    """50 digits: the singular values of Xc Ycᵀ, on features whose mean is exactly 0."""
    with mpmath.workdps(50):
        a, b = (mpmath.matrix(z[: len(z) // 2].tolist()) * mpmath.sqrt(2) for z in (x, y))
        overlap = sum(mpmath.svd_r(a * b.T, compute_uv=False))
        overlap /= mpmath.sqrt((len(x) - 1) * (len(y) - 1))
        squares = [mpmath.mpf(float(z.square().sum())) / (len(z) - 1) for z in (x, y)]
        return float(squares[0] + squares[1] - 2 * overlap)


# ---- Full rank -----------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 2, 17, 64, 150])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_agrees_with_scipy_on_full_rank(features: int, decay: float) -> None:
    x, y = (gaussian(4 * features + 10, features, seed, decay) for seed in (1, 2))
    want = by_scipy(x, y)
    assert frechet_distance(*statistics(x), *statistics(y)) == pytest.approx(want, rel=1e-9)
    assert frechet_distance_from_features(x, y) == pytest.approx(want, rel=1e-9)


def test_both_forms_of_the_trace_agree() -> None:
    s1, s2 = (statistics(gaussian(600, 200, seed, 1.0))[1] for seed in (1, 2))
    fast = frechet._overlap_from_eigenvalues(s1, s2)
    assert fast is not None
    factors = [frechet._pivoted_factor(s, "1") for s in (s1, s2)]
    assert float(fast) == pytest.approx(float(frechet._overlap_from_factors(*factors)), rel=1e-13)


@pytest.mark.parametrize("features", [1, 255, 256, 257, 513, 700])
def test_blocked_factor_and_product(features: int) -> None:
    """Around the blocks' side; of the product nothing but its lower triangle is promised."""
    cov1, cov2 = (statistics(gaussian(2 * features + 2, features, seed))[1] for seed in (1, 2))
    lower = frechet._cholesky(cov1)
    assert lower is not None
    assert not lower.triu(1).any()
    bound = 4 * EPS * features**0.5
    assert (lower @ lower.T - cov1).abs().max() <= bound * cov1.abs().max()
    product = torch.full_like(cov2, torch.nan)
    frechet._congruence(lower, cov2, product)
    want = lower.T @ cov2 @ lower
    assert (product - want).tril().abs().max() <= bound * want.abs().max()


def test_one_feature_is_the_closed_form() -> None:
    mean1, mean2 = torch.tensor([1.0]), torch.tensor([4.0])
    assert frechet_distance(mean1, torch.tensor([[4.0]]), mean2, torch.tensor([[25.0]])) == 9 + 9


def test_diagonal_covariances_are_the_closed_form() -> None:
    v1, v2 = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = float((v1.sqrt() - v2.sqrt()).square().sum())
    zero = torch.zeros(50)
    assert frechet_distance(zero, v1.diag(), zero, v2.diag()) == pytest.approx(want, rel=1e-12)


def test_right_on_full_rank() -> None:
    x, y = integers(64, 32, seed=1), integers(32, 32, seed=2)
    want = by_mpmath(x, y)
    assert frechet_distance(*statistics(x), *statistics(y)) == pytest.approx(want, rel=1e-12)
    assert frechet_distance_from_features(x, y) == pytest.approx(want, rel=1e-12)
    assert by_scipy(x, y) == pytest.approx(want, rel=1e-9)


def test_all_at_once_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, on the CPU: Cholesky, product and eigenvalues without blocks."""
    x, y = gaussian(700, 300, 1), gaussian(800, 300, 2)
    want = frechet_distance(*statistics(x), *statistics(y))
    monkeypatch.setattr(frechet, "_tile", lambda matrix: matrix.shape[0])
    monkeypatch.setattr(frechet, "_overlap_from_factors", lambda *_: pytest.fail("not needed"))
    assert frechet_distance(*statistics(x), *statistics(y)) == pytest.approx(want, rel=1e-12)


@pytest.mark.cuda
def test_a_gpu_keeps_the_fast_form_and_its_results_to_itself() -> None:
    """Full rank: Cholesky and eigenvalues, in float64, where the statistics are."""
    x, y = gaussian(700, 300, 1), gaussian(800, 300, 2)
    want = by_scipy(x, y)
    (m1, s1), (m2, s2) = (tuple(v.cuda() for v in statistics(z)) for z in (x, y))
    overlap = frechet._overlap_from_eigenvalues(s1, s2)
    assert overlap is not None
    assert overlap.is_cuda
    assert overlap.dtype == torch.float64
    assert frechet_distance(m1, s1, m2, s2) == pytest.approx(want, rel=1e-9)


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [20, 300])  # singular, and of full rank
def test_a_gpu_gives_the_same_distance(rows: int) -> None:
    x, y = gaussian(rows, 64, 1), gaussian(rows, 64, 2)
    want = frechet_distance_from_features(x, y)
    on_gpu = (value.cuda() for z in (x, y) for value in statistics(z))
    assert frechet_distance(*on_gpu) == pytest.approx(want, rel=1e-10)
    assert frechet_distance_from_features(x.cuda(), y.cuda()) == pytest.approx(want, rel=1e-10)


# ---- Singular and ill-conditioned ----------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(4, 4), (2, 8), (8, 64), (16, 32)])
def test_right_on_singular_covariances(n: int, m: int) -> None:
    x, y = integers(n, 32, seed=1), integers(m, 32, seed=2)
    want = by_mpmath(x, y)
    assert frechet_distance(*statistics(x), *statistics(y)) == pytest.approx(want, rel=1e-10)
    assert frechet_distance_from_features(x, y) == pytest.approx(want, rel=1e-10)


def test_scipys_formula_is_not_right_there() -> None:
    """Why the second form exists: this fails the tolerance of the test above."""
    x, y = integers(8, 32, seed=1), integers(8, 32, seed=2)
    with np.errstate(all="ignore"):
        got = by_scipy(x, y)
    assert got != pytest.approx(by_mpmath(x, y), rel=1e-10)


@pytest.mark.parametrize("decay", [3.0, 6.0, 12.0])
def test_right_on_ill_conditioned_covariances(decay: float) -> None:
    """Columns of decaying scale: the factors of the features themselves are the reference."""
    scale = torch.arange(1, 65, dtype=torch.float64) ** (-decay / 2)
    x, y = (gaussian(64, 64, seed) * scale for seed in (1, 2))
    want = frechet_distance_from_features(x, y)
    assert frechet_distance(*statistics(x), *statistics(y)) == pytest.approx(want, rel=1e-10)


def test_constant_features_have_no_covariance() -> None:
    x, y = torch.full((5, 3), 2.0), torch.full((7, 3), 4.0)
    assert frechet_distance_from_features(x, y) == 12.0
    assert frechet_distance(*statistics(x), *statistics(y)) == 12.0


def test_a_dead_feature_changes_nothing() -> None:
    x, y = (gaussian(200, 20, seed) for seed in (1, 2))
    with_dead = [torch.cat([z, torch.zeros(200, 1, dtype=torch.float64)], 1) for z in (x, y)]
    want = frechet_distance_from_features(x, y)
    assert frechet_distance_from_features(*with_dead) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("rows", [5, 64, 65, 500])
def test_identical_sets_are_at_zero(rows: int) -> None:
    x = gaussian(rows, 64, 3)
    assert 0 <= frechet_distance_from_features(x, x) < 1e-9
    assert 0 <= frechet_distance(*statistics(x), *statistics(x)) < 1e-9


@pytest.mark.parametrize("features", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("rank", [1, 40, 200])
def test_pivoted_factor_reproduces_and_reveals_rank(features: int, rank: int) -> None:
    cov = statistics(gaussian(rank + 1, features, 1))[1]
    factor = frechet._pivoted_factor(cov, "1")
    assert factor.shape == (features, min(rank, features))
    error = (factor @ factor.T - cov).abs().max()
    assert error <= 4 * EPS * features**0.5 * cov.abs().max()


def test_same_either_way_round_and_for_arrays() -> None:
    x, y = gaussian(30, 40, 1), gaussian(100, 40, 2)
    forth = frechet_distance(*statistics(x), *statistics(y))
    back = frechet_distance(*statistics(y), *statistics(x))
    assert forth == pytest.approx(back, rel=1e-12)
    assert frechet_distance(*(v.numpy() for v in (*statistics(x), *statistics(y)))) == forth
    assert frechet_distance_from_features(x.numpy(), y.numpy()) == pytest.approx(forth, rel=1e-10)


# ---- Refusals ------------------------------------------------------------------------------------

EYE, ZERO = torch.eye(3), torch.zeros(3)
NAN = torch.full((3, 3), torch.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ZERO, EYE, torch.zeros(2), torch.eye(2)), "mean2 must have as many features as mean1, 3"),
        ((ZERO, torch.eye(2), ZERO, EYE), r"cov1 must have shape \[F, F\] .*\[3\], got \[2, 2\]"),
        ((torch.zeros(0), torch.zeros(0, 0), ZERO, EYE), r"cov1 must have shape .* F ≥ 1"),
        ((EYE, EYE, ZERO, EYE), r"mean1 must have shape \[F\], got \[3, 3\]"),
        ((ZERO, NAN, ZERO, EYE), "cov1 must be finite, got NaN or infinity"),
        ((ZERO, EYE, ZERO / 0, EYE), "mean2 must be finite"),
        ((ZERO, EYE / 0, ZERO, EYE), "cov1 must be finite"),
        ((ZERO, EYE.int(), ZERO, EYE), "cov1 must be floating point, got torch.int32"),
        (("x", EYE, ZERO, EYE), "mean1 must be a tensor or array, got str"),
        ((ZERO, EYE + torch.ones(3, 3).triu(1), ZERO, EYE), "cov1 must be symmetric"),
        ((ZERO, EYE, ZERO, -EYE), "cov2 must be positive semi-definite"),
        ((ZERO, EYE, ZERO, 2 * torch.ones(3, 3) - EYE), "cov2 must be positive semi-definite"),
        (
            (ZERO, EYE, ZERO, torch.tensor([[1, 0.9, 0], [0.9, 1, 0.9], [0, 0.9, 1]])),
            "cov2 must be positive semi-definite, but 0.[0-9]+ is left",
        ),
        ((torch.full((3,), 1e300, dtype=torch.float64), EYE, ZERO, EYE), "overflow float64"),
    ],
)
def test_refuses(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        frechet_distance(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), r"x must have shape \[N, F\] with N ≥ 2.*\[1, 3\]"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "y must have as many features as x, 3, got 2"),
        (torch.zeros(4), torch.zeros(4, 3), "x must have shape two axes"),
        (torch.zeros(4, 3), torch.full((4, 3), torch.inf), "y must be finite"),
        (torch.zeros(4, 0), torch.zeros(4, 0), "F ≥ 1"),
    ],
)
def test_refuses_features(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        frechet_distance_from_features(x, y)
    assert "\n" not in str(caught.value)
