# SPDX-License-Identifier: Apache-2.0
"""Precision and recall: torch-fidelity's, the definition's, and no accident at ties."""

from __future__ import annotations

import pytest
import torch
from peers import peer

from gansparse.errors import InputError
from gansparse.metrics import PrecisionRecall, precision_recall
from gansparse.metrics.features import module_extractor


def draw(rows: int, features: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return (0.8 + 0.2 * seed) * x + 0.1 * seed


def found(real: torch.Tensor, fake: torch.Tensor, neighbours: int = 3) -> tuple[float, float]:
    given = module_extractor("given", torch.nn.Identity(), real.shape[1])
    metric = PrecisionRecall(given, neighbours=neighbours)
    metric.update_features(real, real=True)
    metric.update_features(fake, real=False)
    return metric.compute()


def by_hand(points: torch.Tensor, centres: torch.Tensor, k: int) -> float:
    """The definition, with distances from differences."""

    def distance(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x - y).square().sum().sqrt())

    radii = [
        sorted(distance(c, other) for j, other in enumerate(centres) if j != i)[k - 1]
        for i, c in enumerate(centres)
    ]
    hits = [
        any(distance(p, c) <= radius for c, radius in zip(centres, radii, strict=True))
        for p in points
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("block", [7, 512])
def test_it_is_the_definition(neighbours: int, block: int, monkeypatch) -> None:
    monkeypatch.setattr(precision_recall, "_BLOCK", block)
    real, fake = draw(40, 3, 1), draw(30, 3, 2)
    got = found(real, fake, neighbours)
    want = by_hand(fake, real, neighbours), by_hand(real, fake, neighbours)
    assert got == want
    assert got != (1, 1)


@pytest.mark.parametrize(("n", "m", "features"), [(300, 400, 64), (900, 700, 16)])
@pytest.mark.parametrize("neighbours", [1, 3])
def test_agrees_with_torch_fidelity(n: int, m: int, features: int, neighbours: int) -> None:
    theirs = peer("torch_fidelity.metric_prc")
    real, fake = draw(n, features, 1), draw(m, features, 2)
    got = found(real, fake, neighbours)
    want = theirs.prc_features_to_metric(fake, real, prc_neighborhood=neighbours, verbose=False)
    assert got == (
        pytest.approx(want[theirs.KEY_METRIC_PRECISION], abs=1e-7),  # theirs is a float32 mean
        pytest.approx(want[theirs.KEY_METRIC_RECALL], abs=1e-7),
    )


def test_far_sets_and_equal_sets() -> None:
    x = draw(50, 4, 1)
    assert found(x, x) == (1, 1)
    assert found(x, x + 1000) == (0, 0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_ties_are_inside(offset: float) -> None:
    """All real pictures alike: their balls have radius 0 and hold that picture and no other."""
    real = torch.full((20, 5), 0.1, dtype=torch.float64) + offset
    fake = torch.cat([real[:10], real[:10] + 0.01])
    assert found(real, fake) == (0.5, 1)


def test_variety_lost_is_recall_lost() -> None:
    real, fake = draw(200, 2, 1), 0.1 * draw(200, 2, 2)
    precision, recall = found(real, fake)
    assert precision > 0.8
    assert recall < 0.2


def test_bad_input() -> None:
    given = module_extractor("given", torch.nn.Identity(), 3)
    with pytest.raises(InputError, match="neighbours must be at least 1, got 0"):
        PrecisionRecall(given, neighbours=0)
    with pytest.raises(InputError, match="needs at least 4 real pictures, got 3"):
        found(draw(3, 3, 1), draw(9, 3, 1))
