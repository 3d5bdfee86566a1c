# SPDX-License-Identifier: Apache-2.0
"""Inception Score: torch-fidelity's to rounding, and the cases one can do in the head."""

from __future__ import annotations

import pytest
import torch
from peers import peer

from gansparse.errors import InputError
from gansparse.metrics import InceptionScore
from gansparse.metrics.features import Extractor, module_extractor

CLASSES = 10
GIVEN = Extractor("given", 1, torch.nn.Identity(), classify=lambda images: images.flatten(1))


def score_of(logits: torch.Tensor, **settings) -> InceptionScore:
    metric = InceptionScore(GIVEN, **settings)
    for part in logits.split(64):
        metric.update(part[:, :, None, None])
    return metric


def draw(rows: int, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (3 * torch.randn(rows, classes, generator=generator)).to(dtype)


@pytest.mark.parametrize("splits", [1, 3, 10])
@pytest.mark.parametrize("seed", [2020, 5, None])
def test_agrees_with_torch_fidelity(splits: int, seed: int | None) -> None:
    theirs = peer("torch_fidelity.metric_isc")
    logits = draw(107, 1008)
    got = score_of(logits, splits=splits, seed=seed).compute()
    want = theirs.isc_features_to_metric(logits, splits, seed is not None, seed)
    # Exponentials of sums over 1008 classes and 107 pictures, in float64 on both sides.
    bound = 1008 * torch.finfo(torch.float64).eps
    assert got.mean == pytest.approx(want[theirs.KEY_METRIC_ISC_MEAN], rel=bound)
    assert got.std == pytest.approx(want[theirs.KEY_METRIC_ISC_STD], rel=1e3 * bound, abs=bound)


def test_sure_and_even_is_the_number_of_classes() -> None:
    logits = 1000 * torch.eye(CLASSES).repeat(3, 1)
    assert score_of(logits, splits=3, seed=None).compute() == pytest.approx((CLASSES, 0))


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(20, CLASSES), draw(1).repeat(20, 1), 1e4 * torch.eye(CLASSES)[:1].repeat(20, 1)],
)
def test_all_alike_is_one(logits: torch.Tensor) -> None:
    assert score_of(logits).compute() == pytest.approx((1, 0))


def test_the_order_is_drawn_and_splits_depend_on_it() -> None:
    logits = draw(60)
    drawn, as_they_came = (score_of(logits, seed=seed).compute() for seed in (2020, None))
    assert drawn != as_they_came
    assert score_of(logits, splits=1).compute().mean == pytest.approx(
        score_of(logits.flip(0), splits=1).compute().mean, rel=1e-12
    )


def test_bad_input() -> None:
    with pytest.raises(InputError, match="splits must be at least 1, got 0"):
        InceptionScore(GIVEN, splits=0)
    with pytest.raises(InputError, match="a picture for each of 10 splits, got 9"):
        score_of(draw(9)).compute()
    blind = InceptionScore(module_extractor("pixels", torch.nn.Flatten(), 3))
    with pytest.raises(InputError, match="extractor pixels tells no classes"):
        blind.update(torch.zeros(1, 3, 1, 1))
    metric = score_of(draw(20))
    with pytest.raises(InputError, match=r"must have shape \[N, 10\], got \[2, 9\]"):
        metric.update_logits(torch.zeros(2, 9))
