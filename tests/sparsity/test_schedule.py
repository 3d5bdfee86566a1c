# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from gansparse.errors import InputError
from gansparse.sparsity import AGP, SCHEDULES, OneShot, schedule_by_name

RUNS = [1, 2, 3, 7, 100, 1000, 1877]
SCHEDULES_TRIED = [
    OneShot(), AGP(), AGP(frequency=1), AGP(frequency=7), AGP(end=1.0), AGP(end=0.0), AGP(0.0, 0.3),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES_TRIED, ids=str)
@pytest.mark.parametrize("total", RUNS)
def test_rises_to_the_target_and_only_at_updates(schedule, total):
    values = [schedule.sparsity_at(step, total, 0.75) for step in range(total)]
    assert values == sorted(values)
    assert values[-1] == 0.75
    assert schedule.is_update_step(0, total)
    for step in range(1, total):
        if not schedule.is_update_step(step, total):
            assert values[step] == values[step - 1], "sparsity moved between updates"
    assert max(step for step in range(total) if schedule.is_update_step(step, total)) == next(
        step for step in range(total) if values[step] == 0.75
    )


def test_agp_is_zhu_and_guptas_formula():
    agp = AGP(initial=0.05, end=0.5, frequency=25)
    for step in range(0, 500, 25):  # s_t = s_f + (s_i - s_f)(1 - (t - t_0)/(n·Δt))³, n·Δt = 500
        expected = 0.9 + (0.05 - 0.9) * (1 - step / 500) ** 3
        assert agp.sparsity_at(step, 1000, 0.9) == pytest.approx(expected, rel=1e-15)
    assert agp.sparsity_at(0, 1000, 0.9) == pytest.approx(0.05, abs=1e-15)
    assert agp.sparsity_at(499, 1000, 0.9) < 0.9
    assert agp.sparsity_at(500, 1000, 0.9) == 0.9


def test_default_frequency_makes_about_a_hundred_updates():
    for total in (1000, 1877, 60_000):
        updates = sum(AGP().is_update_step(step, total) for step in range(total))
        assert 100 <= updates <= 200


def test_target_below_the_start_is_not_overshot():
    assert AGP().sparsity_at(0, 100, 0.02) == 0.02
    assert AGP().sparsity_at(0, 100, 0.0) == 0.0


def test_registry():
    assert schedule_by_name("agp") == AGP()
    assert schedule_by_name("one-shot") == OneShot()
    assert set(SCHEDULES) == {"agp", "one-shot"}
    with pytest.raises(InputError, match="one of one-shot, agp, got 'cosine'"):
        schedule_by_name("cosine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AGP(initial=1.0), "initial"),
        (lambda: AGP(end=1.5), "end"),
        (lambda: AGP(end=float("nan")), "end"),
        (lambda: AGP(frequency=0), "frequency"),
        (lambda: AGP().sparsity_at(-1, 10, 0.5), "got -1 of 10"),
        (lambda: OneShot().is_update_step(0, 0), "got 0 of 0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=message):
        make()
