# SPDX-License-Identifier: Apache-2.0
"""KID: torch-fidelity's to rounding, and unbiased where the truth is known."""

from __future__ import annotations

import pytest
import torch
from peers import peer

from gansparse.errors import InputError
from gansparse.metrics import KernelInceptionDistance, kid
from gansparse.metrics.features import module_extractor
from gansparse.metrics.kid import polynomial_mmd

EPS = torch.finfo(torch.float64).eps


def draw(rows: int, features: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return (x + 0.1 * seed).relu().to(dtype)


def kid_of(x: torch.Tensor, y: torch.Tensor, **settings) -> KernelInceptionDistance:
    pixels = module_extractor("given", torch.nn.Identity(), x.shape[1])
    metric = KernelInceptionDistance(pixels, **settings)
    for part in y.split(333):
        metric.update_features(part, real=True)
    for part in x.split(100):
        metric.update_features(part, real=False)
    return metric


def by_hand(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition, pair by pair."""
    k = [[(float(a @ b) / x.shape[1] + 1) ** 3 for b in (*x, *y)] for a in (*x, *y)]
    n, m = len(x), len(y)
    xx = sum(k[i][j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k[n + i][n + j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k[i][n + j] for i in range(n) for j in range(m)) / (n * m)


@pytest.mark.parametrize(("n", "m", "features"), [(2, 2, 1), (5, 8, 3), (12, 3, 7)])
@pytest.mark.parametrize("block", [1, 3, 256])
def test_the_discrepancy_is_the_definition(
    n: int, m: int, features: int, block: int, monkeypatch
) -> None:
    monkeypatch.setattr(kid, "_BLOCK", block)
    x, y = draw(n, features, 1), draw(m, features, 2)
    assert polynomial_mmd(x, y) == pytest.approx(by_hand(x, y), abs=100 * EPS)


@pytest.mark.parametrize(
    "settings",
    [
        {"subsets": 10, "subset_size": 50},
        {"subsets": 3, "subset_size": 200, "degree": 2, "gamma": 0.3, "coef": 0.5, "seed": 7},
    ],
)
def test_agrees_with_torch_fidelity_on_its_subsets(settings: dict) -> None:
    theirs = peer("torch_fidelity.metric_kid")
    x, y = draw(300, 64, 1), draw(200, 64, 2)
    got = kid_of(x, y, **settings).compute()
    want = theirs.kid_features_to_metric(
        y,
        x,
        verbose=False,
        kid_subsets=settings["subsets"],
        kid_subset_size=settings["subset_size"],
        kid_kernel="poly",
        kid_kernel_poly_degree=settings.get("degree", 3),
        kid_kernel_poly_gamma=settings.get("gamma"),
        kid_kernel_poly_coef0=settings.get("coef", 1),
        rng_seed=settings.get("seed", 2020),
    )
    # Both sum subset_size² kernels of some tens in float64; the discrepancy is their difference.
    bound = 100 * EPS * settings["subset_size"]
    assert got.mean == pytest.approx(want[theirs.KEY_METRIC_KID_MEAN], abs=bound)
    assert got.std == pytest.approx(want[theirs.KEY_METRIC_KID_STD], abs=bound)


def test_agrees_with_torch_fidelitys_defaults_on_float32_features() -> None:
    """As people run it: 2048 features in float32, in which torch-fidelity computes, subsets of
    1000. Sizes and seed are its defaults; only the number of subsets is cut."""
    theirs = peer("torch_fidelity.metric_kid")
    x, y = (draw(1000, 2048, seed, torch.float32) for seed in (1, 2))
    got = kid_of(x, y, subsets=1).compute()
    want = theirs.kid_features_to_metric(y, x, verbose=False, kid_subsets=1)
    assert got.mean == pytest.approx(want[theirs.KEY_METRIC_KID_MEAN], abs=1e-6)


def test_it_is_unbiased() -> None:
    """Two sets of one distribution: the mean over many pairs is 0 to its standard error."""
    found = torch.tensor([polynomial_mmd(draw(20, 4, 1), draw(15, 4, 1) * 0)])  # not 0 elsewhere
    assert float(found) > 0.1
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 400, 20, 4, generator=generator, dtype=torch.float64)
    found = torch.tensor([polynomial_mmd(a, b) for a, b in zip(x, y, strict=True)])
    assert abs(float(found.mean())) < 4 * float(found.std()) / 400**0.5
    assert float(found.min()) < 0


def test_bad_input() -> None:
    pixels = module_extractor("given", torch.nn.Identity(), 3)
    with pytest.raises(InputError, match="subsets must be at least 1 and subset_size at least 2"):
        KernelInceptionDistance(pixels, subset_size=1)
    few = kid_of(draw(999, 3, 1), draw(1000, 3, 1))
    with pytest.raises(InputError, match="needs at least 1000 generated pictures, got 999"):
        few.compute()
    with pytest.raises(InputError, match=r"with N, M ≥ 2, got \[4, 3\] and \[4, 2\]"):
        polynomial_mmd(torch.zeros(4, 3), torch.zeros(4, 2))
