# SPDX-License-Identifier: Apache-2.0
"""FeatureMoments: any split into batches gives numpy's mean and covariance."""

from __future__ import annotations

import pytest
import torch

from gansparse.errors import InputError
from gansparse.metrics import FeatureMoments
from gansparse.testing import close


def draw(rows: int, features: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, features, generator=generator).add(0.3).to(dtype)


def check(moments: FeatureMoments, rows: torch.Tensor) -> None:
    """Against two-pass float64; a covariance sums N products and its sums are about the shift."""
    exact = rows.double()
    assert moments.count == len(rows)
    largest = float(exact.abs().max())
    close(moments.mean, exact.mean(0), terms=len(rows), scale=largest, name="mean")
    scale = float(exact.sub(exact.mean(0)).abs().max()) ** 2
    close(moments.cov, torch.cov(exact.T), terms=4 * len(rows), scale=scale, name="cov")
    assert torch.equal(moments.cov, moments.cov.T)


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 9, 16, 50, 200])
@pytest.mark.parametrize("buffer_rows", [1, 8, 1024])
def test_any_batches(batch: int, buffer_rows: int) -> None:
    rows = draw(100, 13)
    moments = FeatureMoments(13, buffer_rows)
    for part in rows.split(batch):
        moments.update(part)
    check(moments, rows)
    moments.update(rows)  # a read in between changes nothing
    check(moments, torch.cat([rows, rows]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    rows = draw(40, 5, dtype)
    moments = FeatureMoments(5, 16)
    moments.update(rows)
    check(moments, rows)


def test_dtypes_may_change_on_the_way() -> None:
    parts = [draw(11, 5, dtype) for dtype in (torch.float32, torch.float64, torch.float16)]
    moments = FeatureMoments(5)
    for part in parts:
        moments.update(part)
    check(moments, torch.cat([part.double() for part in parts]))


def test_strided_and_empty_batches() -> None:
    rows = draw(30, 10)
    moments = FeatureMoments(5, 8)
    moments.update(rows[:0, ::2])
    moments.update(rows[:, ::2])
    check(moments, rows[:, ::2])


def test_a_mean_far_above_the_spread_costs_no_digits() -> None:
    rows = draw(500, 4).double() + 1e6
    moments = FeatureMoments(4, 50)
    for part in rows.split(50):
        moments.update(part)
    want = torch.cov(rows.T)
    # The features themselves are rounded to 1e6 · eps; raw moments would be off by 1e12 · eps.
    assert float((moments.cov - want).abs().max()) < 1e-13 * 500**0.5


def test_finite_features_may_overflow_their_sum() -> None:
    rows = torch.full((4, 2), 3e38)
    moments = FeatureMoments(2)
    moments.update(rows)
    assert moments.mean.tolist() == rows[0].double().tolist()
    assert not moments.cov.any()


def test_batches_are_copied() -> None:
    rows = draw(10, 3)
    moments = FeatureMoments(3)
    batch = rows.clone()
    moments.update(batch)
    batch.zero_()
    check(moments, rows)


def test_no_gradient_is_kept() -> None:
    moments = FeatureMoments(3)
    moments.update(draw(10, 3).requires_grad_())
    assert not moments.mean.requires_grad
    assert not moments.cov.requires_grad


@pytest.mark.parametrize("cuts", [(0, 40), (1, 40), (40, 41), (100, 100), (13, 77)])
def test_merge(cuts: tuple[int, int]) -> None:
    rows = draw(100, 6) * 3
    rows[50:] += 100  # parts with different means: the term between them matters
    pieces = rows[: cuts[0]], rows[cuts[0] : cuts[1]], rows[cuts[1] :]
    merged = FeatureMoments(6, 16)
    for piece in pieces:
        part = FeatureMoments(6, 16)
        part.update(piece)
        before = part.count
        merged.merge(part)
        assert part.count == before
    check(merged, rows)
    merged.update(rows)
    check(merged, torch.cat([rows, rows]))


def test_state_goes_on_with_the_same_bits() -> None:
    rows = draw(100, 6)
    whole, first, second = (FeatureMoments(6, 16) for _ in range(3))
    for moments in (whole, first):
        moments.update(rows[:50])
    whole.state_dict()  # folds, as saving does
    second.load_state_dict(first.state_dict())
    for moments in (whole, second):
        moments.update(rows[50:])
    assert torch.equal(whole.mean, second.mean)
    assert torch.equal(whole.cov, second.cov)
    check(second, rows)


def test_state_of_nothing() -> None:
    moments = FeatureMoments(6)
    moments.load_state_dict(FeatureMoments(6).state_dict())
    assert moments.count == 0
    moments.update(draw(9, 6))
    check(moments, draw(9, 6))


def refused() -> FeatureMoments:
    moments = FeatureMoments(3)
    moments.update(torch.ones(2, 3))
    return moments


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(2, 4), r"batch 1 must have shape \[N, 3\], got \[2, 4\]"),
        (torch.ones(3), r"batch 1 must have shape \[N, 3\], got \[3\]"),
        (torch.ones(2, 3, dtype=torch.int64), "batch 1 must be floating point, got torch.int64"),
        (
            torch.tensor([[1.0, 2, 3], [4, torch.nan, 6]]),
            "batch 1 must be finite, got nan in row 1, feature 1",
        ),
        (torch.full((1, 3), -torch.inf), "batch 1 must be finite, got -inf in row 0, feature 0"),
        (torch.ones(2, 3, device="meta"), "batch 1 must be on cpu, got meta"),
    ],
)
def test_refuses_a_batch_and_keeps_what_it_had(batch: torch.Tensor, message: str) -> None:
    moments = refused()
    with pytest.raises(InputError, match=message) as caught:
        moments.update(batch)
    assert "\n" not in str(caught.value)
    assert moments.count == 2


def test_refuses_too_few_rows() -> None:
    moments = FeatureMoments(3)
    with pytest.raises(InputError, match="the mean needs at least 1 rows, got 0"):
        _ = moments.mean
    moments.update(torch.ones(1, 3))
    with pytest.raises(InputError, match="the covariance needs at least 2 rows, got 1"):
        _ = moments.cov


def test_refuses_wrong_sizes() -> None:
    with pytest.raises(InputError, match="num_features and buffer_rows must be at least 1"):
        FeatureMoments(0)
    with pytest.raises(InputError, match="merge needs as many features as here, 3, got 4"):
        refused().merge(FeatureMoments(4))
    with pytest.raises(InputError, match="state must have shapes"):
        refused().load_state_dict(FeatureMoments(4).state_dict())
