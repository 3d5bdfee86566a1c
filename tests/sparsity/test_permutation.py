# SPDX-License-Identifier: Apache-2.0
"""The search for an order of columns, against all orders where there are few."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from gansparse.errors import InputError
from gansparse.sparsity import permutation, search_permutation
from gansparse.sparsity.permutation import _Climb, kept_by_two_of_four


def scores_of(rows, columns, seed=0):
    """Columns of very different sizes, as channels are."""
    source = torch.Generator().manual_seed(seed)
    sizes = torch.randn(columns, generator=source).exp()
    return torch.rand(rows, columns, generator=source) * sizes


def kept_by_hand(scores, order):
    kept = 0.0
    for row in scores[:, order].tolist():
        for first in range(0, len(row), 4):
            kept += sum(sorted(row[first : first + 4])[2:])
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_finds_the_best_of_all_orders_of_eight(seed):
    scores = scores_of(5, 8, seed)
    rest = set(range(1, 8))
    best = max(
        kept_by_hand(scores, [0, *three, *sorted(rest - set(three))])
        for three in itertools.combinations(sorted(rest), 3)
    )
    found = search_permutation(scores)
    assert sorted(found.order.tolist()) == list(range(8))
    assert found.after == pytest.approx(best, rel=1e-12)
    assert found.before == pytest.approx(kept_by_hand(scores, list(range(8))), rel=1e-12)
    assert found.finished


def test_what_an_exchange_gains():
    """The table of all exchanges, against making each of them."""
    scores = scores_of(7, 12)
    climb = _Climb(scores.T.contiguous())
    before = kept_by_hand(scores, list(range(12)))
    for i, j in itertools.combinations(range(12), 2):
        if i // 4 == j // 4:
            continue
        order = list(range(12))
        order[i], order[j] = j, i
        values = climb.values.double()
        gain = values[i, j] + values[j, i] - values[i, i] - values[j, j]
        # a sum of 7 numbers, four times
        error = 4 * 7 * torch.finfo(torch.float32).eps * before
        assert float(gain) == pytest.approx(kept_by_hand(scores, order) - before, abs=error)


def test_the_table_follows_the_order():
    """After many exchanges it is what it would be if it were made anew."""
    scores = scores_of(50, 32)
    climb = _Climb(scores.T.contiguous())
    climb.shake(torch.Generator().manual_seed(1))
    climb.climb()
    anew = _Climb(scores[:, climb.order].T.contiguous())
    torch.testing.assert_close(climb.values[climb.order][:, climb.order], anew.values)
    assert climb.total() == pytest.approx(kept_by_two_of_four(scores[:, climb.order]), rel=1e-6)


def test_loud_columns_are_spread():
    scores = torch.cat([torch.full((3, 16), 10.0), torch.full((3, 16), 1.0)], 1)
    found = search_permutation(scores, rounds=0)
    assert found.before == 3 * (8 * 10 + 8)
    assert found.after == 3 * 16 * 10, "nothing loud is lost"


def test_repeats_itself_and_stops_in_time():
    scores = scores_of(64, 64)
    first = search_permutation(scores, rounds=3, seed=4)
    again = search_permutation(scores, rounds=3, seed=4)
    assert torch.equal(first.order, again.order)
    straight = search_permutation(scores, rounds=0)
    assert first.after >= straight.after > straight.before
    short = search_permutation(scores, time_limit=0.0)
    assert not short.finished
    assert sorted(short.order.tolist()) == list(range(64))
    assert straight.after >= short.after == kept_by_two_of_four(scores[:, short.order])


def test_without_time_the_order_is_what_it_was(monkeypatch):
    """At once, however large the table of exchanges would be."""
    monkeypatch.setattr(_Climb, "_renew", lambda climb, changed: pytest.fail("made the table"))
    scores = scores_of(64, 64)
    found = search_permutation(scores, time_limit=0.0)
    assert found.order.tolist() == list(range(64))
    assert found.before == found.after == kept_by_two_of_four(scores)
    assert not found.finished


def test_wherever_it_is_cut_short_it_has_an_order(monkeypatch):
    """Also within the first table, a sweep, or the shaking: a clock that counts the looks at it."""
    monkeypatch.setattr(permutation, "_AT_ONCE", 1)  # looks after every four
    scores = scores_of(16, 32)
    whole = search_permutation(scores, rounds=2)
    kept = []
    for limit in range(1, 1000):
        clock = SimpleNamespace(monotonic=itertools.count().__next__)
        monkeypatch.setattr(permutation, "time", clock)
        found = search_permutation(scores, rounds=2, time_limit=limit)
        assert sorted(found.order.tolist()) == list(range(32))
        assert found.after == kept_by_two_of_four(scores[:, found.order]) >= found.before
        kept.append(found.after)
        if found.finished:
            break
    assert found.finished
    assert torch.equal(found.order, whole.order)
    assert kept == sorted(kept)
    assert kept[7] == whole.before, "the first table takes 8 looks"
    assert len(set(kept)) > 2


@pytest.mark.cuda
def test_searches_on_cuda():
    scores = scores_of(300, 64)
    found = search_permutation(scores.cuda(), rounds=3)
    assert found.after > found.before
    assert found.after == pytest.approx(kept_by_two_of_four(scores[:, found.order]), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (3, 0), (0, 8), (2, 16)])
def test_nothing_to_gain(shape):
    found = search_permutation(torch.ones(shape))
    assert sorted(found.order.tolist()) == list(range(shape[1]))
    assert found.before == found.after == shape[0] * shape[1] / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": torch.ones(2, 6)}, r"multiple of 4, got torch.float32 \[2, 6\]"),
        ({"scores": torch.ones(8)}, r"got torch.float32 \[8\]"),
        ({"scores": torch.ones(2, 8).int()}, "got torch.int32"),
        ({"rounds": -1}, "must be ≥ 0, got -1"),
        ({"time_limit": math.nan}, "got 10 and nan"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        search_permutation(**{"scores": torch.ones(2, 8), **arguments})
