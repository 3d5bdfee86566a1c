# SPDX-License-Identifier: Apache-2.0
"""FID as an object; what undoes its bias, on Gaussians whose distance is known."""

from __future__ import annotations

import functools
import gc

import pytest
import torch

from gansparse.errors import InputError
from gansparse.metrics import (
    FeatureMoments,
    FrechetInceptionDistance,
    fid_infinity,
    fid_interval,
    frechet_distance,
    frechet_distance_from_features,
)
from gansparse.metrics.features import module_extractor
from gansparse.metrics.fid import FIDInterval

FEATURES = 8
PIXELS = module_extractor("pixels", torch.nn.Flatten(), FEATURES)
SPREAD = torch.arange(1, FEATURES + 1, dtype=torch.float64) ** -0.5
# The real pictures' Gaussian, known without sampling; the generated ones are N(0, diag SPREAD²).
MEAN, COV = torch.full_like(SPREAD, 0.2), (1.2 * SPREAD).square().diag()
TRUE = float(MEAN.square().sum() + (0.2 * SPREAD).square().sum())


def draw(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, FEATURES, dtype=torch.float64, generator=generator) * SPREAD


def distance(x: torch.Tensor) -> float:
    return frechet_distance(MEAN, COV, x.mean(0), torch.cov(x.T))


# ---- The object ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, FEATURES, 100])
def test_it_is_the_distance_of_all_features(rows: int) -> None:
    x, y = draw(rows, 1).float(), draw(rows + 3, 2).float() + 0.5
    fid = FrechetInceptionDistance(PIXELS)
    for part in x.split(7):
        fid.update(part.view(-1, 2, 2, 2), real=True)
    for part in y.split(11):
        fid.update(part.view(-1, 2, 2, 2), real=False)
    assert fid.compute() == pytest.approx(frechet_distance_from_features(x, y), rel=1e-9)


def test_real_statistics_may_be_given() -> None:
    x, y = draw(50, 1), draw(60, 2)
    given = FeatureMoments(FEATURES)
    given.update(x)
    fid = FrechetInceptionDistance(PIXELS)
    fid.real.merge(given)
    fid.update_features(y, real=False)
    assert fid.compute() == pytest.approx(frechet_distance_from_features(x, y), rel=1e-9)


@pytest.mark.parametrize("method", ["infinity", "interval"])
def test_the_object_asks_the_functions(method: str) -> None:
    x, y = draw(50, 1), draw(400, 2)
    fid = FrechetInceptionDistance(PIXELS, keep_features=True)
    fid.update_features(x, real=True)
    for part in y.split(37):
        fid.update_features(part, real=False)
    function = {"infinity": fid_infinity, "interval": fid_interval}[method]
    got = getattr(fid, method)(seed=3)
    want = function(x.mean(0), torch.cov(x.T), y, seed=3)
    for key, value in vars(want).items():
        assert getattr(got, key) == pytest.approx(value, rel=1e-9), key
    without = FrechetInceptionDistance(PIXELS)
    with pytest.raises(InputError, match="this needs keep_features=True"):
        getattr(without, method)()


def test_memory_does_not_grow_with_the_pictures() -> None:
    width = 64  # beside it a batch of 100 is as large as the sums
    wide = module_extractor("given", torch.nn.Identity(), width)
    fid = FrechetInceptionDistance(wide)

    def update(times: int) -> None:
        for seed in range(times):
            features = torch.randn(100, width, generator=torch.Generator().manual_seed(seed))
            fid.update_features(features, real=True)
            fid.update_features(features + 1, real=False)

    update(20)
    state = sum(tensor.nbytes for tensor in fid.state_dict().values())
    assert state == 2 * 8 * (width**2 + 2 * width + 1)  # covariance, sum, shift and count
    before = held()
    update(50)
    assert held() == before


def held() -> int:
    """Bytes of all tensors that Python holds anywhere, each storage once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu")
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


# ---- Without the bias ----------------------------------------------------------------------------


EXPERIMENTS = 150


@functools.cache
def intervals() -> list[FIDInterval]:
    """Of experiments of 10 pictures a feature. Not a fixture: those run on all threads."""
    sets = (draw(10 * FEATURES, seed) for seed in range(EXPERIMENTS))
    return [fid_interval(MEAN, COV, x, resamples=25) for x in sets]


def off(values: torch.Tensor) -> float:
    """How far the mean is from the truth, in its standard errors."""
    return float((values.mean() - TRUE) / (values.std() / len(values) ** 0.5))


def test_the_interval_holds_the_true_distance_as_often_as_it_says() -> None:
    """Hits are binomial: four standard deviations, and 1 % for z where t of 25 would be right."""
    expected = 0.95 * EXPERIMENTS
    slack = 4 * (expected * 0.05) ** 0.5 + 0.01 * EXPERIMENTS
    hits = sum(one.low <= TRUE <= one.high for one in intervals())
    assert abs(hits - expected) <= slack
    # An interval about the biased value holds it less often than that.
    about_value = sum(abs(one.value - TRUE) <= 1.96 * one.standard_error for one in intervals())
    assert about_value < expected - slack


def test_the_bootstrap_tells_bias_and_spread() -> None:
    value, bias, error = (
        torch.tensor([getattr(one, name) for one in intervals()])
        for name in ("value", "bias", "standard_error")
    )
    assert off(value) > 8
    assert abs(off(value - bias)) < 4
    # The spread of the experiments is itself known to a share of 1 / sqrt(2 · EXPERIMENTS).
    assert float(error.mean()) == pytest.approx(
        float(value.std()), rel=4 / (2 * EXPERIMENTS) ** 0.5
    )


def test_the_line_removes_the_bias() -> None:
    sets = [draw(40 * FEATURES, seed) for seed in range(100)]
    assert off(torch.tensor([distance(x) for x in sets])) > 5
    line = [fid_infinity(MEAN, COV, x, points=8, seed=seed).value for seed, x in enumerate(sets)]
    assert abs(off(torch.tensor(line))) < 4


def test_the_line_goes_through_its_points() -> None:
    found = fid_infinity(MEAN, COV, draw(1000, 0), points=10)
    assert found.counts == (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    assert found.distances[-1] == pytest.approx(distance(draw(1000, 0)), rel=1e-12)
    inverse = torch.tensor([1 / count for count in found.counts], dtype=torch.float64)
    told = torch.tensor(found.distances, dtype=torch.float64)
    design = torch.stack([inverse, torch.ones_like(inverse)], 1)
    want = torch.linalg.lstsq(design, told).solution
    assert [found.slope, found.value] == pytest.approx(want.tolist(), rel=1e-9)


def test_the_seed_decides() -> None:
    x = draw(200, 0)
    for function in (fid_infinity, fid_interval):
        assert function(MEAN, COV, x, seed=1) == function(MEAN, COV, x, seed=1)
        assert function(MEAN, COV, x, seed=1) != function(MEAN, COV, x, seed=2)


def test_progress_is_told() -> None:
    told: list[int] = []
    fid_infinity(MEAN, COV, draw(100, 0), points=3, on_step=told.append)
    fid_interval(MEAN, COV, draw(100, 0), resamples=20, on_step=told.append)
    assert told == [1, 2, 3, *range(1, 21)]


def test_a_higher_level_is_wider() -> None:
    narrow, wide = (fid_interval(MEAN, COV, draw(200, 0), level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high
    # z of 99 % over z of 50 %, from tables.
    ratio = (wide.high - wide.low) / (narrow.high - narrow.low)
    assert ratio == pytest.approx(2.5758293 / 0.6744898, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fid_infinity(MEAN, COV, draw(79, 0)), "10 pictures a feature, 80, got 79"),
        (lambda: fid_infinity(MEAN, COV, draw(80, 0), points=1), "points must be at least 2"),
        (lambda: fid_interval(MEAN, COV, draw(15, 0)), "2 pictures a feature, 16, got 15"),
        (lambda: fid_interval(MEAN, COV, draw(80, 0), resamples=19), "at least 20 .* got 19"),
        (lambda: fid_interval(MEAN, COV, draw(80, 0), level=1.0), "level between 0 and 1"),
        (lambda: fid_interval(MEAN, COV, torch.zeros(80)), r"features must be \[N, F\]"),
        (lambda: fid_interval(MEAN, COV, draw(80, 0) / 0), "must be finite"),
        (lambda: fid_infinity(MEAN[:3], COV[:3, :3], draw(80, 0)), "as many features as mean1"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
